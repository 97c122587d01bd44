// The training step on active codes alone: everything of it but the encoder's product and the optimiser.
//
// Row b of the batch has the entries crow[b] .. crow[b + 1] - 1: its latents col[], in rising order. Sums run in a fixed
// order whatever the number of threads, so results do not depend on it. All arrays are contiguous; W and its gradients
// are latent by latent, [n_latents][d].

#include <stdint.h>
#include <string.h>

// Number of entries a[b][i] + bias[i] > 0 of each row.
void count_open(const float *a, const float *bias, int64_t rows, int64_t n, int64_t *counts) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        const float *row = a + b * n;
        int32_t count = 0;
        for (int64_t i = 0; i < n; i++) count += row[i] + bias[i] > 0;
        counts[b] = count;
    }
}

// The entries themselves: latent and a[b][i].
void fill_open(const float *a, const float *bias, int64_t rows, int64_t n, const int64_t *crow, int32_t *col,
               float *value) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        const float *row = a + b * n;
        int64_t at = crow[b], end = crow[b + 1];
        for (int64_t i = 0; i < n && at < end; i += 16) {
            int64_t stop = i + 16 < n ? i + 16 : n;
            uint32_t bits = 0;
            for (int64_t j = i; j < stop; j++) bits |= (uint32_t)(row[j] + bias[j] > 0) << (j - i);
            while (bits) {
                int64_t j = i + __builtin_ctz(bits);
                bits &= bits - 1;
                col[at] = (int32_t)j;
                value[at++] = row[j];
            }
        }
    }
}

static float dot(const float *restrict a, const float *restrict b, int64_t d) {
    float sum[16] = {0};
    int64_t k = 0;
    for (; k + 16 <= d; k += 16)
        for (int l = 0; l < 16; l++) sum[l] += a[k + l] * b[k + l];
    float total = 0;
    for (int l = 0; l < 16; l++) total += sum[l];
    for (; k < d; k++) total += a[k] * b[k];
    return total;
}

// error[b] = Σ f W_dec[col] + b_dec − x[b] (scaled by `scale` on the way out), its squared norm, and the gradient of
// each entry's code, scale · error · W_dec[col].
void decode_and_code_gradient(const float *x, const float *W_dec, const float *b_dec, int64_t rows, int64_t d,
                              const int64_t *crow, const int32_t *col, const float *f, float scale, float *error,
                              double *squared, float *g_code) {
#pragma omp parallel for schedule(dynamic, 16)
    for (int64_t b = 0; b < rows; b++) {
        float *restrict e = error + b * d;
        const float *xb = x + b * d;
        for (int64_t k = 0; k < d; k++) e[k] = b_dec[k] - xb[k];
        for (int64_t j = crow[b]; j < crow[b + 1]; j++) {
            if (f[j] == 0) continue;
            const float *restrict w = W_dec + (int64_t)col[j] * d;
            for (int64_t k = 0; k < d; k++) e[k] += f[j] * w[k];
        }
        squared[b] = dot(e, e, d);
        for (int64_t k = 0; k < d; k++) e[k] *= scale;
        for (int64_t j = crow[b]; j < crow[b + 1]; j++) g_code[j] = dot(e, W_dec + (int64_t)col[j] * d, d);
    }
}

// For each latent, over its entries e (entry numbers in `order`, rows in `row`): the sum of v[e] · rows_of[row] into g.
void weight_gradient(const float *rows_of, int64_t n, int64_t d, const int64_t *ccol, const int32_t *row,
                     const int32_t *order, const float *v, float *g) {
#pragma omp parallel for schedule(dynamic, 32)
    for (int64_t i = 0; i < n; i++) {
        float *restrict out = g + i * d;
        memset(out, 0, d * sizeof(float));
        for (int64_t j = ccol[i]; j < ccol[i + 1]; j++) {
            float value = v[order[j]];
            if (value == 0) continue;
            const float *restrict in = rows_of + (int64_t)row[j] * d;
            for (int64_t k = 0; k < d; k++) out[k] += value * in[k];
        }
    }
}

// The same entries latent by latent: where each latent starts, and for each place its row and its entry number.
void by_latent(int64_t rows, int64_t n, const int64_t *crow, const int32_t *col, int64_t *ccol, int32_t *row,
               int32_t *order) {
    memset(ccol, 0, (n + 1) * sizeof(int64_t));
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
