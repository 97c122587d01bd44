// The training step on active codes alone: everything of it but the encoder's product and the optimiser.
//
// Row b of the batch has the entries crow[b] .. crow[b + 1] - 1: its latents col[], in rising order. Sums run in a fixed
// order whatever the number of threads, so results do not depend on it. All arrays are contiguous; W and its gradients
// are latent by latent, [n_latents][d]. A row's open latents are kept as bits, in words of 64.

#include "words.h"

#define CACHE (1 << 20)  // bytes that surely stay in a core's second cache while they are used

// Round to nearest, ties to even; finite values only.
static uint16_t to_bf16(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Bit l: a[l] + bias[l] > 0, for 16 latents.
static uint64_t above(const float *a, const float *bias) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(_mm512_add_ps(_mm512_loadu_ps(a), _mm512_loadu_ps(bias)), _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__)
    __m256 zero = _mm256_setzero_ps(), lo = _mm256_add_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(bias));
    __m256 hi = _mm256_add_ps(_mm256_loadu_ps(a + 8), _mm256_loadu_ps(bias + 8));
    return (uint64_t)_mm256_movemask_ps(_mm256_cmp_ps(lo, zero, _CMP_GT_OQ)) |
           (uint64_t)_mm256_movemask_ps(_mm256_cmp_ps(hi, zero, _CMP_GT_OQ)) << 8;
#else
    uint64_t bits = 0;
    for (int l = 0; l < LANES; l++) bits |= (uint64_t)(a[l] + bias[l] > 0) << l;
    return bits;
#endif
}

// Bits of a[b][i] + bias[i] > 0, and their number in each row.
void screen(const float *a, const float *bias, int64_t rows, int64_t n, uint64_t *bits, int64_t *counts) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        const float *row = a + b * n;
        uint64_t *out = bits + b * words(n);
        int64_t count = 0;
        for (int64_t w = 0; w < words(n); w++) {
            uint64_t word = 0;
            int64_t i = w * WORD, stop = i + WORD < n ? i + WORD : n;
            for (; i + LANES <= stop; i += LANES) word |= above(row + i, bias + i) << (i - w * WORD);
            for (; i < stop; i++) word |= (uint64_t)(row[i] + bias[i] > 0) << (i - w * WORD);
            out[w] = word;
            count += __builtin_popcountll(word);
        }
        counts[b] = count;
    }
}

// Latents of the bits, and a[b][i] there.
void gather(const float *a, const uint64_t *bits, int64_t rows, int64_t n, const int64_t *crow, int32_t *col,
            float *value) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        int64_t at = crow[b];
        for (int64_t w = 0; w < words(n); w++)
            for (uint64_t word = bits[b * words(n) + w]; word; word &= word - 1) {
                int64_t i = w * WORD + __builtin_ctzll(word);
                col[at] = (int32_t)i;
                value[at++] = a[b * n + i];
            }
    }
}

// Rows in bfloat16, with ‖row‖ and ‖row - bfloat16(row)‖.
void round_rows(const float *x, int64_t rows, int64_t d, uint16_t *out, float *norm, float *residual) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        double square[LANES] = {0}, lost[LANES] = {0};  // squares of float32 neither overflow nor vanish in it
        for (int64_t k = 0; k < d; k += LANES) {
            int64_t lanes = d - k < LANES ? d - k : LANES;
            for (int64_t l = 0; l < lanes; l++) {
                float v = x[b * d + k + l];
                uint16_t r = to_bf16(v);
                float e = v - from_bf16(r);
                out[b * d + k + l] = r;
                square[l] += (double)v * v;
                lost[l] += (double)e * e;
            }
        }
        for (int l = 1; l < LANES; l++) square[0] += square[l], lost[0] += lost[l];
        norm[b] = (float)sqrt(square[0]);
        residual[b] = (float)sqrt(lost[0]);
    }
}

// Bits of the latents whose bfloat16 product a[b][i] may belong to a pre-activation above 0. The product is wrong by
//   |x·w - x'·w'| <= ‖x - x'‖ ‖w‖ + ‖x'‖ ‖w - w'‖            (Cauchy-Schwarz; primes are bfloat16)
// plus `sums` ‖x‖ ‖w‖ for adding up in float32, plus `rounding` |a| for a itself being bfloat16.
void screen_bf16(const uint16_t *a, const float *bias, int64_t rows, int64_t n, const float *x_norm,
                 const float *x_residual, const float *w_norm, const float *w_residual, float sums, float rounding,
                 uint64_t *bits, int64_t *counts) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        const uint16_t *row = a + b * n;
        float by_norm = x_residual[b] + sums * x_norm[b], by_residual = x_norm[b] + x_residual[b];
        int64_t count = 0;
        for (int64_t w = 0; w < words(n); w++) {
            float upper[WORD], zero[WORD] = {0};
            int64_t i = w * WORD, size = n - i < WORD ? n - i : WORD;
            for (int64_t l = 0; l < size; l++) {
                float v = from_bf16(row[i + l]);
                upper[l] = v + rounding * fabsf(v) + by_norm * w_norm[i + l] + by_residual * w_residual[i + l];
                upper[l] = !(upper[l] + bias[i + l] <= 0);  // what overflowed to NaN is looked at again too
            }
            for (int64_t l = size; l < WORD; l++) upper[l] = -1;
            uint64_t word = 0;
            for (int l = 0; l < WORD; l += LANES) word |= above(upper + l, zero + l) << l;
            bits[b * words(n) + w] = word;
            count += __builtin_popcountll(word);
        }
        counts[b] = count;
    }
}

typedef float vec __attribute__((vector_size(4 * LANES)));  // the compiler splits it where registers are shorter
typedef float half __attribute__((vector_size(2 * LANES)));
typedef float quarter __attribute__((vector_size(LANES)));

static vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static float total(vec v) {
    half h[2];
    quarter q[2];
    memcpy(h, &v, sizeof h);
    h[0] += h[1];
    memcpy(q, h, sizeof q);
    q[0] += q[1];
    return (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
}

// The rows of W that a row of the batch needs lie anywhere in a matrix larger than the cache of a core. So all rows of
// the batch first take their entries among some latents, whose weights stay in the cache, then those among the next.
static int64_t latents_at_once(int64_t d) { return 1 + CACHE / (sizeof(float) * d); }

// The end of the entries from `at` on, before `stop`, of latents below `latent`; `at` where they are fewer than four and
// there are latents to come: then they are taken with the next. So what a row's sums are depends on that row alone.
static int64_t entries_below(int64_t latent, int64_t n, const int32_t *col, int64_t at, int64_t stop) {
    int64_t end = at;
    while (end < stop && col[end] < latent) end++;
    return end - at < 4 && latent < n ? at : end;
}

// out[q] = a · w[q], for four rows at once: four independent chains of sums.
static void four_dots(const float *a, const float *const w[4], int64_t d, float out[4]) {
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int64_t k = 0;
    for (; k + LANES <= d; k += LANES) {
        vec v = load(a + k);
        s0 += v * load(w[0] + k);
        s1 += v * load(w[1] + k);
        s2 += v * load(w[2] + k);
        s3 += v * load(w[3] + k);
    }
    out[0] = total(s0), out[1] = total(s1), out[2] = total(s2), out[3] = total(s3);
    for (; k < d; k++)
        for (int q = 0; q < 4; q++) out[q] += a[k] * w[q][k];
}

// out[j] = a · W[col[j]] for each j.
static void dots(const float *a, const float *W, int64_t d, const int32_t *col, int64_t count, float *out) {
    for (int64_t j = 0; j < count; j += 4) {
        const float *w[4];
        float four[4];
        for (int q = 0; q < 4; q++) w[q] = W + (int64_t)col[j + q < count ? j + q : j] * d;
        four_dots(a, w, d, four);
        for (int q = 0; q < 4 && j + q < count; q++) out[j + q] = four[q];
    }
}

// Latents of the bits of each row, from crow[b] on.
static void expand(const uint64_t *bits, int64_t rows, int64_t n, const int64_t *crow, int32_t *col) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        int64_t at = crow[b];
        for (int64_t w = 0; w < words(n); w++)
            for (uint64_t word = bits[b * words(n) + w]; word; word &= word - 1)
                col[at++] = (int32_t)(w * WORD + __builtin_ctzll(word));
    }
}

// Of the bits' latents those with x_c[b] · W[i] + bias[i] > 0 in float32, with that product: from crow[b] on, counts[b]
// of them. Room is needed for all bits.
void recompute(const float *x_c, const float *W, const float *bias, const uint64_t *bits, int64_t rows, int64_t n,
               int64_t d, const int64_t *crow, int32_t *col, float *value, int64_t *counts) {
    int64_t step = latents_at_once(d);
    expand(bits, rows, n, crow, col);
    memset(counts, 0, rows * sizeof *counts);
    for (int64_t latent = 0; latent < n; latent += step) {
#pragma omp parallel for schedule(dynamic, 16)
        for (int64_t b = 0; b < rows; b++) {
            int64_t at = crow[b] + counts[b], stop = entries_below(latent + step, n, col, at, crow[b + 1]);
            dots(x_c + b * d, W, d, col + at, stop - at, value + at);
            counts[b] += stop - at;
        }
    }
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        int64_t kept = crow[b];
        for (int64_t j = crow[b]; j < crow[b + 1]; j++)
            if (value[j] + bias[col[j]] > 0) {
                col[kept] = col[j];
                value[kept++] = value[j];
            }
        counts[b] = kept - crow[b];
    }
}

// Close the gaps that `recompute` leaves: row b moves from `from[b]` to crow[b].
void pack(int64_t rows, const int64_t *from, const int64_t *crow, int32_t *col, float *value) {
    for (int64_t b = 0; b < rows; b++) {
        int64_t count = crow[b + 1] - crow[b];
        memmove(col + crow[b], col + from[b], count * sizeof *col);
        memmove(value + crow[b], value + from[b], count * sizeof *value);
    }
}

// out += Σ_j v[j] · row(j), four rows at a time, row(j) = R + where[j] · d, of which `width` values count.
static void add_rows(float *restrict out, const float *R, int64_t d, int64_t width, const int32_t *where,
                     const float *v, const int32_t *order, int64_t count) {
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
        const float *restrict r0 = R + (int64_t)where[j] * d, *restrict r1 = R + (int64_t)where[j + 1] * d;
        const float *restrict r2 = R + (int64_t)where[j + 2] * d, *restrict r3 = R + (int64_t)where[j + 3] * d;
        float v0 = v[order ? order[j] : j], v1 = v[order ? order[j + 1] : j + 1];
        float v2 = v[order ? order[j + 2] : j + 2], v3 = v[order ? order[j + 3] : j + 3];
        int64_t k = 0;
        for (; k + LANES <= width; k += LANES) {
            vec sum = (v0 * load(r0 + k) + v1 * load(r1 + k)) + (v2 * load(r2 + k) + v3 * load(r3 + k)) + load(out + k);
            memcpy(out + k, &sum, sizeof sum);
        }
        for (; k < width; k++) out[k] += (v0 * r0[k] + v1 * r1[k]) + (v2 * r2[k] + v3 * r3[k]);
    }
    for (; j < count; j++) {
        const float *restrict r = R + (int64_t)where[j] * d;
        float value = v[order ? order[j] : j];
        for (int64_t k = 0; k < width; k++) out[k] += value * r[k];
    }
}

// ‖a‖² in double.
static double square_norm(const float *a, int64_t d) {
    double sum[LANES] = {0};
    for (int64_t k = 0; k < d; k += LANES)
        for (int64_t l = 0; l < LANES && k + l < d; l++) sum[l] += (double)a[k + l] * a[k + l];
    for (int l = 1; l < LANES; l++) sum[0] += sum[l];
    return sum[0];
}

// value[j] = R[b] · W[col[j]] for each entry j of row b. For each of `sets` of rows: R [sets][rows][d], value
// [sets][entries]. `next` is room for a number a row.
void entry_products(const float *R, const float *W, int64_t rows, int64_t n, int64_t d, const int64_t *crow,
                    const int32_t *col, int64_t sets, float *value, int64_t *next) {
    int64_t entries = crow[rows], step = latents_at_once(d);
    memcpy(next, crow, rows * sizeof *next);
    for (int64_t latent = 0; latent < n; latent += step) {
#pragma omp parallel for schedule(dynamic, 16)
        for (int64_t b = 0; b < rows; b++) {
            int64_t at = next[b], stop = entries_below(latent + step, n, col, at, crow[b + 1]);
            for (int64_t s = 0; s < sets; s++)
                dots(R + (s * rows + b) * d, W, d, col + at, stop - at, value + s * entries + at);
            next[b] = stop;
        }
    }
}

// error[b] = Σ f W_dec[col] + b_dec - x[b] (scaled by `scale` on the way out), its squared norm, and the gradient of
// each entry's code, scale · error · W_dec[col]. For each of `sets` of codes at the same places: f and g_code
// [sets][entries], error [sets][rows][d], squared [sets][rows]. `next` is room for a number a row.
void decode_and_code_gradient(const float *x, const float *W_dec, const float *b_dec, int64_t rows, int64_t n, int64_t d,
                              const int64_t *crow, const int32_t *col, int64_t sets, const float *f, float scale,
                              float *error, double *squared, float *g_code, int64_t *next) {
    int64_t entries = crow[rows], step = latents_at_once(d);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < sets * rows; r++)
        for (int64_t k = 0; k < d; k++) error[r * d + k] = b_dec[k] - x[r % rows * d + k];
    memcpy(next, crow, rows * sizeof *next);
    for (int64_t latent = 0; latent < n; latent += step) {
#pragma omp parallel for schedule(dynamic, 16)
        for (int64_t b = 0; b < rows; b++) {
            int64_t at = next[b], stop = entries_below(latent + step, n, col, at, crow[b + 1]);
            for (int64_t s = 0; s < sets; s++)
                add_rows(error + (s * rows + b) * d, W_dec, d, d, col + at, f + s * entries + at, 0, stop - at);
            next[b] = stop;
        }
    }
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < sets * rows; r++) {
        squared[r] = square_norm(error + r * d, d);
        for (int64_t k = 0; k < d; k++) error[r * d + k] *= scale;
    }
    entry_products(error, W_dec, rows, n, d, crow, col, sets, g_code, next);
}

// For each latent, over its entries e (entry numbers in `order`, rows in `row`): the sum of v[e] · rows_of[row] into g.
// Some columns after the others, so that those of all rows stay in the cache of a core.
void weight_gradient(const float *rows_of, int64_t rows, int64_t n, int64_t d, const int64_t *ccol, const int32_t *row,
                     const int32_t *order, const float *v, float *g) {
    int64_t fitting = CACHE / (sizeof(float) * (rows + 1)) / LANES * LANES, step = fitting > 8 * LANES ? fitting : 8 * LANES;
    for (int64_t k = 0; k < d; k += step) {
        int64_t width = d - k < step ? d - k : step;
#pragma omp parallel for schedule(dynamic, 32)
        for (int64_t i = 0; i < n; i++) {
            float *out = g + i * d + k;
            memset(out, 0, width * sizeof *out);
            add_rows(out, rows_of + k, d, width, row + ccol[i], v, order + ccol[i], ccol[i + 1] - ccol[i]);
        }
    }
}

// The same entries latent by latent: where each latent starts, and for each place its row and its entry number.
void by_latent(int64_t rows, int64_t n, const int64_t *crow, const int32_t *col, int64_t *ccol, int32_t *row,
               int32_t *order) {
    memset(ccol, 0, (n + 1) * sizeof *ccol);
    for (int64_t j = 0; j < crow[rows]; j++) ccol[col[j] + 1]++;
    for (int64_t i = 0; i < n; i++) ccol[i + 1] += ccol[i];
    for (int64_t b = 0; b < rows; b++)
        for (int64_t j = crow[b]; j < crow[b + 1]; j++) {
            int64_t at = ccol[col[j]]++;
            row[at] = (int32_t)b;
            order[at] = (int32_t)j;
        }
    for (int64_t i = n; i > 0; i--) ccol[i] = ccol[i - 1];
    ccol[0] = 0;
}

// For each latent the sum of v over its entries, in double, in the order of the rows.
void sum_by_latent(int64_t n, const int64_t *ccol, const int32_t *order, const float *v, float *out) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t at = ccol[i]; at < ccol[i + 1]; at++) sum += v[order[at]];
        out[i] = (float)sum;
    }
}
