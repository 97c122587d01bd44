// Adam over the rows of a weight, each row in one pass: moments, step and, for rows of unit norm, what keeps them so.
//
// Arrays are contiguous, [rows][d]. A row is the work of one thread and its sums run in a fixed order, so results do not
// depend on the number of threads. The arithmetic is that of torch.optim.Adam, fused.

#include <math.h>
#include <stdint.h>

// Remove from g what lies along the unit vector w; returns ‖g‖² of the rest.
static float project(float *restrict g, const float *restrict w, int64_t d) {
    float along = 0, square = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t k = 0; k < d; k++) along += g[k] * w[k];
#pragma omp simd reduction(+ : square)
    for (int64_t k = 0; k < d; k++) {
        g[k] -= along * w[k];
        square += g[k] * g[k];
    }
    return square;
}

// `project` for each row where `unit` is not 0; ‖g‖² of each row either way.
void squares(float *g, const float *w, int64_t rows, int64_t d, int64_t unit, double *square) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        float *restrict row = g + i * d;
        float sum = 0;
        if (unit) {
            square[i] = project(row, w + i * d, d);
            continue;
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < d; k++) sum += row[k] * row[k];
        square[i] = sum;
    }
}

// One step with the gradient factor · g. m and v are the moments, `first` and `second` 1 - β₁ and 1 - β₂, `rate` the
// learning rate over m's bias correction, `root` one over the square root of v's. Where `unit` is not 0, g is projected first,
// unless `projected`, and w is brought back to unit norm.
void adam(float *w, float *g, float *m, float *v, int64_t rows, int64_t d, int64_t unit, int64_t projected, float factor,
          float first, float beta2, float second, float rate, float root, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        float *restrict wi = w + i * d, *restrict gi = g + i * d;
        float *restrict mi = m + i * d, *restrict vi = v + i * d;
        float square = 0;
        if (unit && !projected) project(gi, wi, d);
#pragma omp simd reduction(+ : square)
        for (int64_t k = 0; k < d; k++) {
            float value = factor * gi[k];
            mi[k] += first * (value - mi[k]);
            vi[k] = beta2 * vi[k] + second * value * value;
            wi[k] -= rate * mi[k] / (sqrtf(vi[k]) * root + eps);
            square += wi[k] * wi[k];
        }
        if (!unit) continue;
        float inverse = 1 / fmaxf(sqrtf(square), 1e-12f);
        for (int64_t k = 0; k < d; k++) wi[k] *= inverse;
    }
}
