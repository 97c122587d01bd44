// Pursuit, the non-negative lasso and learned atoms on the CPU: the twin of pursuit.py, which defines them.
//
// Arrays are contiguous. A row of codes is the work of one thread and depends on no other row, so results depend on the
// number of threads only as far as the products that are given do. What a row's search needs of its residual are the products with all atoms,
// q = D x - G f with G = D Dᵀ, and they come from the few rows of G whose codes are not 0 (Batch-OMP: Rubinstein,
// Zibulevsky and Elad 2008). These rows stay in the processor's cache from one round to the next.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TILE 4096    // products updated at once
#define PART 256     // products whose largest is found at once
#define TOGETHER 8   // rows of G read at once
#define COARSE 1e-3  // below this share of ‖x‖, products from G are rounding in part: taken from the residual
#define DEPENDENT 1e-6  // an atom is not taken where no more of its square lies outside of those taken, as a share
#define PASSES 200      // over all atoms in `lasso`, at most
#define SWEEPS 200      // over a row's active atoms between two of them, at most

// What one row is coded with. Atoms are those that may be taken, `size` of them.
typedef struct {
    int64_t size;
    const float *gram;     // [size][size]
    const float *product;  // x · atom
    const float *x;        // [d]
    const float *atoms;    // [.][d]
    const int64_t *which;  // the place of each in `atoms`; NULL for its own
    int64_t d;
} problem;

// The atoms a row has taken, in the order in which it took them, and the Cholesky factor of their Gram matrix.
typedef struct {
    int64_t count, room;
    int64_t *atom;
    double *value, *best;
    double *factor;   // [room][room], lower triangle
    double *forward;  // L⁻¹ product
} support;

// More than d atoms are never independent.
static int new_support(support *s, int64_t most, int64_t d) {
    int64_t room = most < d ? most : d;
    s->count = 0;
    s->room = room;
    s->atom = malloc(room * sizeof *s->atom);
    s->value = malloc(room * sizeof *s->value);
    s->best = malloc(room * sizeof *s->best);
    s->forward = malloc(room * sizeof *s->forward);
    s->factor = malloc(room * room * sizeof *s->factor);
    return s->atom && s->value && s->best && s->forward && s->factor;
}

static void free_support(support *s) {
    free(s->atom);
    free(s->value);
    free(s->best);
    free(s->forward);
    free(s->factor);
}

static float dot(const float *restrict a, const float *restrict b, int64_t d) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < d; k++) sum += a[k] * b[k];
    return sum;
}

// ‖a‖, of any finite values.
static double size_of(const float *a, int64_t d) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < d; k++) sum += (double)a[k] * a[k];
    return sqrt(sum);
}

static double dot_wide(const double *restrict a, const double *restrict b, int64_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < n; k++) sum += a[k] * b[k];
    return sum;
}

// q -= Σ code · row, for `size` products.
static void subtract(float *restrict q, const float *const *rows, const float *codes, int64_t count, int64_t first,
                     int64_t size) {
    int64_t j = 0;
    for (; j + TOGETHER <= count; j += TOGETHER) {
        const float *restrict a = rows[j] + first, *restrict b = rows[j + 1] + first;
        const float *restrict c = rows[j + 2] + first, *restrict d = rows[j + 3] + first;
        const float *restrict e = rows[j + 4] + first, *restrict g = rows[j + 5] + first;
        const float *restrict h = rows[j + 6] + first, *restrict l = rows[j + 7] + first;
        const float *f = codes + j;
        float f0 = f[0], f1 = f[1], f2 = f[2], f3 = f[3], f4 = f[4], f5 = f[5], f6 = f[6], f7 = f[7];
        for (int64_t t = 0; t < size; t++) {
            float even = f0 * a[t] + f2 * c[t] + f4 * e[t] + f6 * h[t];
            float odd = f1 * b[t] + f3 * d[t] + f5 * g[t] + f7 * l[t];
            q[t] -= even + odd;
        }
    }
    for (; j + 3 <= count; j += 3) {
        const float *restrict a = rows[j] + first, *restrict b = rows[j + 1] + first;
        const float *restrict c = rows[j + 2] + first;
        float f0 = codes[j], f1 = codes[j + 1], f2 = codes[j + 2];
        for (int64_t t = 0; t < size; t++) q[t] -= f0 * a[t] + f1 * b[t] + f2 * c[t];
    }
    for (; j < count; j++) {
        const float *restrict a = rows[j] + first;
        float own = codes[j];
        for (int64_t t = 0; t < size; t++) q[t] -= own * a[t];
    }
}

// q = product - G f: what each atom still has in common with the residual.
static void left_over(const float *product, int64_t size, const float *const *rows, const float *codes, int64_t count,
                      float *q) {
    for (int64_t first = 0; first < size; first += TILE) {
        int64_t part = size - first < TILE ? size - first : TILE;
        memcpy(q + first, product + first, part * sizeof *q);
        subtract(q + first, rows, codes, count, first, part);
    }
}

static float largest(const float *q, int64_t size) {
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (int64_t t = 0; t < size; t++) most = q[t] > most ? q[t] : most;
    return most;
}

// The first of the largest.
static int64_t argmax(const float *q, int64_t size) {
    float most = -INFINITY;
    int64_t from = 0;
    for (int64_t first = 0; first < size; first += PART) {
        float other = largest(q + first, size - first < PART ? size - first : PART);
        if (other > most) {
            most = other;
            from = first;
        }
    }
    while (from + 1 < size && q[from] != most) from++;
    return from;
}

static int64_t place(const problem *p, int64_t atom) { return p->which ? p->which[atom] : atom; }

// As `left_over`, from the residual itself: slower, and exact where little is left.
static void left_over_exactly(const problem *p, const support *s, double *wide, float *narrow, float *q) {
    for (int64_t k = 0; k < p->d; k++) wide[k] = p->x[k];
    for (int64_t i = 0; i < s->count; i++) {
        const float *atom = p->atoms + place(p, s->atom[i]) * p->d;
        for (int64_t k = 0; k < p->d; k++) wide[k] -= s->value[i] * atom[k];
    }
    for (int64_t k = 0; k < p->d; k++) narrow[k] = wide[k];
    for (int64_t t = 0; t < p->size; t++) q[t] = dot(p->atoms + place(p, t) * p->d, narrow, p->d);
}

// Row i of the factor, from those before it; 0 where the atom depends on theirs.
static int factor_row(const problem *p, support *s, int64_t i) {
    double *row = s->factor + i * s->room;
    const float *gram = p->gram + s->atom[i] * p->size;
    for (int64_t j = 0; j < i; j++) {
        const double *other = s->factor + j * s->room;
        row[j] = (gram[s->atom[j]] - dot_wide(row, other, j)) / other[j];
    }
    double own = gram[s->atom[i]], outside = own - dot_wide(row, row, i);
    if (!(outside > DEPENDENT * own)) return 0;
    row[i] = sqrt(outside);
    s->forward[i] = (p->product[s->atom[i]] - dot_wide(row, s->forward, i)) / row[i];
    return 1;
}

// The least squares on the support.
static void solve(support *s) {
    memcpy(s->best, s->forward, s->count * sizeof *s->best);
    for (int64_t i = s->count - 1; i >= 0; i--) {
        const double *restrict row = s->factor + i * s->room;
        double value = s->best[i] / row[i];
        s->best[i] = value;
        for (int64_t j = 0; j < i; j++) s->best[j] -= value * row[j];
    }
}

// How much of the way from the codes to the best ones, until a code reaches 0; 2 where none does.
static double way_of(const support *s, int64_t i) {
    if (s->best[i] > 0) return 2;
    double way = s->value[i] - s->best[i];
    return s->value[i] / (way > 1e-300 ? way : 1e-300);
}

// Go to the best codes, or as far as codes stay above 0 and without those that reached it; 1 at the best.
static int step(const problem *p, support *s) {
    double share = 2;
    for (int64_t i = 0; i < s->count; i++) share = fmin(share, way_of(s, i));
    int arrived = share == 2;
    double least = share;
    share = fmin(share, 1);
    int64_t kept = 0, first = s->count;
    for (int64_t i = 0; i < s->count; i++) {
        double value = s->value[i] + share * (s->best[i] - s->value[i]);
        if (!arrived && way_of(s, i) <= least) {
            first = i < first ? i : first;
            continue;
        }
        s->atom[kept] = s->atom[i];
        s->value[kept++] = fmax(value, 0);
    }
    s->count = kept;
    for (int64_t i = first; i < kept; i++) factor_row(p, s, i);  // with fewer before it no pivot is smaller
    return arrived;
}

// Lawson and Hanson's inner loop (1974) with one more atom; 0 where it depends on those taken.
static int with_atom(const problem *p, support *s, int64_t atom) {
    if (s->count == s->room) return 0;
    s->atom[s->count] = atom;
    s->value[s->count] = 0;
    if (!factor_row(p, s, s->count)) return 0;
    s->count++;
    do solve(s);
    while (!step(p, s));
    return 1;
}

typedef struct {
    float *q, *codes, *narrow;
    const float **rows;
    double *wide;
    int64_t barred, *bar;  // atoms that depended on others
} scratch;

static int new_scratch(scratch *w, int64_t size, int64_t room, int64_t d) {
    w->q = malloc(size * sizeof *w->q);
    w->codes = malloc(room * sizeof *w->codes);
    w->narrow = malloc(d * sizeof *w->narrow);
    w->rows = malloc(room * sizeof *w->rows);
    w->wide = malloc(d * sizeof *w->wide);
    w->bar = malloc(size * sizeof *w->bar);
    return w->q && w->codes && w->narrow && w->rows && w->wide && w->bar;
}

static void free_scratch(scratch *w) {
    free(w->q);
    free(w->codes);
    free(w->narrow);
    free(w->rows);
    free(w->wide);
    free(w->bar);
}

static int64_t best_atom(const problem *p, const support *s, scratch *w, double norm) {
    for (int64_t i = 0; i < s->count; i++) {
        w->rows[i] = p->gram + s->atom[i] * p->size;
        w->codes[i] = s->value[i];
    }
    left_over(p->product, p->size, w->rows, w->codes, s->count, w->q);
    for (int exactly = 0;; exactly = 1) {
        if (exactly) left_over_exactly(p, s, w->wide, w->narrow, w->q);
        for (int64_t i = 0; i < s->count; i++) w->q[s->atom[i]] = -INFINITY;
        for (int64_t i = 0; i < w->barred; i++) w->q[w->bar[i]] = -INFINITY;
        int64_t atom = argmax(w->q, p->size);
        if (exactly || !s->count || w->q[atom] > COARSE * norm) return atom;
    }
}

// At most k atoms, one a round; 3 k rounds, since atoms may be given back.
static void pursue(const problem *p, support *s, scratch *w, int64_t k, double tolerance) {
    double norm = size_of(p->x, p->d);
    s->count = 0;
    w->barred = 0;
    for (int64_t round = 0; round < 3 * k && s->count < k; round++) {
        int64_t atom = best_atom(p, s, w, norm);
        if (!(w->q[atom] > tolerance * norm)) return;
        if (!with_atom(p, s, atom)) w->bar[w->barred++] = atom;
    }
}

// Codes [rows][m] of x by pursuit over all atoms, at most k of each row's and no more than `most`; they begin as zeros.
// `product` is x Dᵀ. `failed` becomes 1 where memory does not suffice.
void pursuit(const float *x, const float *atoms, const float *gram, const float *product, const int64_t *k,
             int64_t rows, int64_t m, int64_t d, int64_t most, float tolerance, float *codes, int64_t *failed) {
#pragma omp parallel
    {
        support s;
        scratch w;
        int ready = new_support(&s, most, d) & new_scratch(&w, m, most, d);
        if (!ready) {
#pragma omp atomic write
            *failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < rows; b++) {
            if (!ready) continue;
            problem p = {m, gram, product + b * m, x + b * d, atoms, NULL, d};
            pursue(&p, &s, &w, k[b], tolerance);
            for (int64_t i = 0; i < s.count; i++) codes[b * m + s.atom[i]] = s.value[i];
        }
        free_support(&s);
        free_scratch(&w);
    }
}

// The problem of a row's own atoms alone: their Gram matrix and products.
static void own_problem(problem *p, float *gram, float *product) {
    for (int64_t i = 0; i < p->size; i++) {
        const float *atom = p->atoms + p->which[i] * p->d;
        product[i] = dot(p->x, atom, p->d);
        for (int64_t j = 0; j <= i; j++) {
            float both = dot(atom, p->atoms + p->which[j] * p->d, p->d);
            gram[i * p->size + j] = gram[j * p->size + i] = both;
        }
    }
    p->gram = gram;
    p->product = product;
}

// As `pursuit`, where a row's atoms are those whose `old` code is above 0, at most `most`, and all may be taken.
void refit(const float *x, const float *atoms, const float *old, int64_t rows, int64_t m, int64_t d, int64_t most,
           float tolerance, float *codes, int64_t *failed) {
#pragma omp parallel
    {
        support s;
        scratch w;
        int64_t *which = malloc(most * sizeof *which);
        float *gram = malloc(most * most * sizeof *gram), *product = malloc(most * sizeof *product);
        int ready = new_support(&s, most, d) & new_scratch(&w, most, most, d);
        ready = ready && which && gram && product;
        if (!ready) {
#pragma omp atomic write
            *failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < rows; b++) {
            if (!ready) continue;
            problem p = {0, NULL, NULL, x + b * d, atoms, which, d};
            for (int64_t j = 0; j < m; j++)
                if (old[b * m + j] > 0) which[p.size++] = j;
            own_problem(&p, gram, product);
            pursue(&p, &s, &w, p.size, tolerance);
            for (int64_t i = 0; i < s.count; i++) codes[b * m + which[s.atom[i]]] = s.value[i];
        }
        free_support(&s);
        free_scratch(&w);
        free(which);
        free(gram);
        free(product);
    }
}

// Lasso: a row's active atoms, the Gram matrix among them, and half the gradient of each with the sign of a descent.
typedef struct {
    int64_t room;  // atoms that `gram` has room for
    int64_t *atom;
    float *gram, *code, *slope;
    const float **rows;
} active_set;

static int new_active(active_set *a, int64_t m) {
    a->atom = malloc(m * sizeof *a->atom);
    a->code = malloc(m * sizeof *a->code);
    a->slope = malloc(m * sizeof *a->slope);
    a->rows = malloc(m * sizeof *a->rows);
    a->gram = NULL;
    a->room = 0;
    return a->atom && a->code && a->slope && a->rows;
}

// Room for the Gram matrix of so many atoms; 0 where there is no memory.
static int make_room(active_set *a, int64_t count, int64_t m) {
    if (count <= a->room) return 1;
    int64_t room = 2 * count < m ? 2 * count : m;
    free(a->gram);
    a->gram = malloc(room * room * sizeof *a->gram);
    a->room = a->gram ? room : 0;
    return a->gram != NULL;
}

static void free_active(active_set *a) {
    free(a->atom);
    free(a->code);
    free(a->slope);
    free(a->rows);
    free(a->gram);
}

// By how much a code misses the conditions of the minimum.
static float violation(float slope, float code) { return code > 0 ? fabsf(slope) : slope; }

// Cyclic coordinate descent on the active atoms until no code misses its condition by more than `least`.
static void descend(active_set *a, int64_t count, float least) {
    for (int64_t sweep = 0; sweep < SWEEPS; sweep++) {
        float worst = 0;
        for (int64_t i = 0; i < count; i++) {
            const float *restrict gram = a->gram + i * count;
            float *restrict slope = a->slope;
            float off = violation(slope[i], a->code[i]);
            worst = off > worst ? off : worst;
            float code = a->code[i] + slope[i] / gram[i];
            if (!(code > 0)) code = 0;
            float change = code - a->code[i];
            if (change == 0) continue;
            a->code[i] = code;
            for (int64_t j = 0; j < count; j++) slope[j] -= change * gram[j];
        }
        if (worst <= least) return;
    }
}

// The atoms with codes, and of the others those that miss the condition by at least half of what the worst one does.
static int64_t choose_active(active_set *a, const float *q, const float *codes, int64_t m, float half, float least) {
    int64_t count = 0;
    float worst = 0, most = 0;
    for (int64_t j = 0; j < m; j++) {
        float off = violation(q[j] - half, codes[j]);
        worst = off > worst ? off : worst;
        most = codes[j] == 0 && off > most ? off : most;
    }
    if (!(worst > least)) return 0;
    float bound = fmaxf(most / 2, least);
    for (int64_t j = 0; j < m; j++)
        if (codes[j] > 0 || q[j] - half > bound) a->atom[count++] = j;
    return count;
}

static void gather_active(active_set *a, const float *gram, const float *q, const float *codes, int64_t count,
                          int64_t m, float half) {
    for (int64_t i = 0; i < count; i++) {
        const float *row = gram + a->atom[i] * m;
        a->code[i] = codes[a->atom[i]];
        a->slope[i] = q[a->atom[i]] - half;
        for (int64_t j = 0; j < count; j++) a->gram[i * count + j] = row[a->atom[j]];
    }
}

// One row: `half` is λ / 2, `least` what a product may miss its condition by. 0 where there is no memory.
static int lasso_row(const float *gram, const float *product, int64_t m, float half, float least, active_set *a,
                      float *q, float *codes) {
    for (int64_t pass = 0; pass < PASSES; pass++) {
        int64_t count = 0;
        for (int64_t j = 0; j < m; j++) {
            if (codes[j] == 0) continue;
            a->rows[count] = gram + j * m;
            a->code[count++] = codes[j];
        }
        left_over(product, m, a->rows, a->code, count, q);
        count = choose_active(a, q, codes, m, half, least);
        if (!count) return 1;
        if (!make_room(a, count, m)) return 0;
        gather_active(a, gram, q, codes, count, m, half);
        descend(a, count, least / 2);
        for (int64_t i = 0; i < count; i++) codes[a->atom[i]] = a->code[i];
    }
    return 1;
}

// Codes [rows][m] of the least ‖x - f D‖² + λ‖f‖₁ under f ≥ 0, from those given: no product of an atom with the
// residual misses its condition by more than `tolerance` of the row's largest product with an atom, where `PASSES`
// suffice.
void lasso(const float *gram, const float *product, int64_t rows, int64_t m, float lambda, float tolerance,
           float *codes, int64_t *failed) {
#pragma omp parallel
    {
        active_set a;
        float *q = malloc(m * sizeof *q);
        int ready = new_active(&a, m) && q;
        if (!ready) {
#pragma omp atomic write
            *failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < rows; b++) {
            if (!ready) continue;
            const float *own = product + b * m;
            float least = tolerance * largest(own, m);
            if (!lasso_row(gram, own, m, lambda / 2, fmaxf(least, 0), &a, q, codes + b * m)) {
#pragma omp atomic write
                *failed = 1;
            }
        }
        free_active(&a);
        free(q);
    }
}

// gram += fᵀ f and cross += fᵀ x, [m][m] and [m][d], from codes [rows][m] of which few are not 0; `which` has room for
// m.
void add_codes(const float *codes, const float *x, int64_t rows, int64_t m, int64_t d, float *gram, float *cross,
               int64_t *which) {
    for (int64_t b = 0; b < rows; b++) {
        const float *f = codes + b * m;
        int64_t count = 0;
        for (int64_t j = 0; j < m; j++)
            if (f[j] != 0) which[count++] = j;
        for (int64_t i = 0; i < count; i++) {
            float own = f[which[i]];
            float *restrict to = cross + which[i] * d;
            for (int64_t j = 0; j < count; j++) gram[which[i] * m + which[j]] += own * f[which[j]];
            for (int64_t k = 0; k < d; k++) to[k] += own * x[b * d + k];
        }
    }
}

// Block coordinate descent over atoms first .. first + count - 1, in turn. `mixed` [count][d] is gram · atoms of these
// rows with the atoms as they are at first; `moved` [count][d] has room for what each of them changes by.
void move_atoms(float *atoms, const float *gram, const float *cross, const float *mixed, int64_t first, int64_t count,
                int64_t m, int64_t d, float *moved) {
    for (int64_t i = 0; i < count; i++) {
        const float *row = gram + (first + i) * m + first;
        float *restrict atom = atoms + (first + i) * d, *restrict by = moved + i * d;
        float square = 0, own = row[i];
        memset(by, 0, d * sizeof *by);
        if (own == 0) continue;
        for (int64_t j = 0; j < i; j++) {
            const float *restrict other = moved + j * d;
            if (row[j] == 0) continue;
            for (int64_t k = 0; k < d; k++) by[k] += row[j] * other[k];
        }
#pragma omp simd reduction(+ : square)
        for (int64_t k = 0; k < d; k++) {
            by[k] = atom[k] + (cross[(first + i) * d + k] - mixed[i * d + k] - by[k]) / own;
            square += by[k] * by[k];
        }
        float norm = sqrtf(square);
        for (int64_t k = 0; k < d; k++) {
            float value = norm > 0 ? by[k] / norm : atom[k];  // an atom of 0 has no direction
            by[k] = value - atom[k];
            atom[k] = value;
        }
    }
}
