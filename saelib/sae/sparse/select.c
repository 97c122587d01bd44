// The largest pre-activations of each row, or of the whole batch, without sorting all of them.
//
// First a lower bound of the k-th largest: latents fall into more groups than k, group j of a row holding its latents
// j, j + groups, ..., and the k-th largest of the groups' maxima is at most the k-th largest of all. What is not below
// it are a few more entries than k, kept as bits in words of 64 as in sparse_step.c. Among these the k largest are
// found exactly. Only pre-activations above 0 count, and of equal ones the first.

#include "words.h"

// Floats of 0 and above order as their bits do.
static int32_t to_bits(float v) {
    int32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}

static float from_bits(int32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

// Bit l: v[l] >= least, for 16 values; NaN is not.
static uint64_t not_below(const float *v, float least) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(v), _mm512_set1_ps(least), _CMP_GE_OQ);
#elif defined(__AVX2__)
    __m256 bound = _mm256_set1_ps(least);
    return (uint64_t)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(v), bound, _CMP_GE_OQ)) |
           (uint64_t)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(v + 8), bound, _CMP_GE_OQ)) << 8;
#else
    uint64_t bits = 0;
    for (int l = 0; l < LANES; l++) bits |= (uint64_t)(v[l] >= least) << l;
    return bits;
#endif
}

// A word of bits for 64 values, of which `size` count.
static uint64_t word_of(float *v, int64_t size, float least) {
    uint64_t word = 0;
    for (int64_t l = size; l < WORD; l++) v[l] = -1;
    for (int l = 0; l < WORD; l += LANES) word |= not_below(v + l, least) << l;
    return word;
}

static int64_t count_not_below(const int32_t *bits, int64_t n, int32_t least) {
    int64_t count = 0;
    for (int64_t first = 0; first < n; first += 1 << 20) {
        int64_t stop = first + (1 << 20) < n ? first + (1 << 20) : n;
        int32_t part = 0;
        for (int64_t i = first; i < stop; i++) part += bits[i] >= least;
        count += part;
    }
    return count;
}

// A bound that at least k of n bits reach, and exactly k where one parts them: the k-th largest, or one that has as many
// above it. 0 where there are fewer. None of the bits is negative.
static int32_t bound_of_largest(const int32_t *bits, int64_t n, int64_t k) {
    int32_t bound = 0;
    for (int bit = 30; bit >= 0; bit--) {
        int32_t higher = bound | (int32_t)1 << bit;
        int64_t count = count_not_below(bits, n, higher);
        if (count >= k) bound = higher;
        if (count == k) break;
    }
    return bound;
}

// The largest pre-activation of each group of a row, or 0: [rows][groups].
void group_maxima(const float *a, const float *bias, int64_t rows, int64_t n, int64_t groups, float *maxima) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        float *restrict most = maxima + b * groups;
        memset(most, 0, groups * sizeof *most);
        for (int64_t first = 0; first < n; first += groups) {
            const float *restrict row = a + b * n + first, *restrict add = bias + first;
            int64_t size = n - first < groups ? n - first : groups;
            for (int64_t j = 0; j < size; j++) {
                float v = row[j] + add[j];
                most[j] = v > most[j] ? v : most[j];
            }
        }
    }
}

// Half the width of the interval around a bfloat16 product that holds the float32 one: see `screen_bf16` in
// sparse_step.c.
static inline float width(float v, float by_norm, float by_residual, float rounding, float w_norm, float w_residual) {
    return rounding * fabsf(v) + by_norm * w_norm + by_residual * w_residual;
}

// As `group_maxima`, of lower bounds of the pre-activations.
void group_maxima_bf16(const uint16_t *a, const float *bias, int64_t rows, int64_t n, int64_t groups,
                       const float *x_norm, const float *x_residual, const float *w_norm, const float *w_residual,
                       float sums, float rounding, float *maxima) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        float by_norm = x_residual[b] + sums * x_norm[b], by_residual = x_norm[b] + x_residual[b];
        float *restrict most = maxima + b * groups;
        memset(most, 0, groups * sizeof *most);
        for (int64_t first = 0; first < n; first += groups) {
            const uint16_t *restrict row = a + b * n + first;
            int64_t size = n - first < groups ? n - first : groups;
            for (int64_t j = 0; j < size; j++) {
                float v = from_bf16(row[j]);
                v -= width(v, by_norm, by_residual, rounding, w_norm[first + j], w_residual[first + j]);
                v += bias[first + j];  // in this order: rounding is monotonic, as it is in float32's sum
                most[j] = v > most[j] ? v : most[j];
            }
        }
    }
}

// For each of `parts` equal parts of the maxima a bound that k of them reach, and no less than the smallest float > 0.
void bounds(const int32_t *maxima, int64_t parts, int64_t size, int64_t k, float *bound) {
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < parts; p++) {
        int32_t bits = bound_of_largest(maxima + p * size, size, k);
        bound[p] = from_bits(bits > 0 ? bits : 1);
    }
}

// Bits of the pre-activations that are not below their row's bound, and their number in each row.
void bits_from(const float *a, const float *bias, int64_t rows, int64_t n, const float *bound, uint64_t *bits,
               int64_t *counts) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        int64_t count = 0;
        for (int64_t w = 0; w < words(n); w++) {
            float v[WORD];
            int64_t i = w * WORD, size = n - i < WORD ? n - i : WORD;
            for (int64_t l = 0; l < size; l++) v[l] = a[b * n + i + l] + bias[i + l];
            uint64_t word = word_of(v, size, bound[b]);
            bits[b * words(n) + w] = word;
            count += __builtin_popcountll(word);
        }
        counts[b] = count;
    }
}

// As `bits_from`, where a pre-activation may not be below the bound by its bfloat16 product.
void bits_from_bf16(const uint16_t *a, const float *bias, int64_t rows, int64_t n, const float *x_norm,
                    const float *x_residual, const float *w_norm, const float *w_residual, float sums, float rounding,
                    const float *bound, uint64_t *bits, int64_t *counts) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        float by_norm = x_residual[b] + sums * x_norm[b], by_residual = x_norm[b] + x_residual[b];
        int64_t count = 0;
        for (int64_t w = 0; w < words(n); w++) {
            float v[WORD];
            int64_t i = w * WORD, size = n - i < WORD ? n - i : WORD;
            for (int64_t l = 0; l < size; l++) {
                float u = from_bf16(a[b * n + i + l]);
                u += width(u, by_norm, by_residual, rounding, w_norm[i + l], w_residual[i + l]);
                u += bias[i + l];
                v[l] = u == u ? u : INFINITY;  // what overflowed to NaN is looked at again too
            }
            uint64_t word = word_of(v, size, bound[b]);
            bits[b * words(n) + w] = word;
            count += __builtin_popcountll(word);
        }
        counts[b] = count;
    }
}

// Of each row's entries `from[b]` .. from[b] + counts[b] - 1 keep the k whose value + bias is largest, in their order
// and from `from[b]` on. `scratch` has room for all entries.
void keep_largest(const int64_t *from, const float *bias, int64_t rows, int64_t k, int32_t *scratch, int32_t *col,
                  float *value, int64_t *counts) {
#pragma omp parallel for schedule(dynamic, 16)
    for (int64_t b = 0; b < rows; b++) {
        int64_t start = from[b], count = counts[b], kept = start;
        if (count <= k) continue;
        int32_t *bits = scratch + start;
        for (int64_t j = 0; j < count; j++) bits[j] = to_bits(value[start + j] + bias[col[start + j]]);
        int32_t bound = bound_of_largest(bits, count, k);
        // above k only where several equal the bound, which is then the k-th largest: the last of them go
        int64_t surplus = count_not_below(bits, count, bound) - k, ties = 0;
        if (surplus > 0)
            for (int64_t j = 0; j < count; j++) ties += bits[j] == bound;
        for (int64_t j = 0; j < count; j++) {
            if (bits[j] < bound) continue;
            if (surplus > 0 && bits[j] == bound && ties-- <= surplus) continue;
            col[kept] = col[start + j];
            value[kept++] = value[start + j];
        }
        counts[b] = kept - start;
    }
}
