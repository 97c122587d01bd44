// What the C files share: bits of latents in words of 64, and bfloat16.

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define LANES 16
#define WORD 64

static inline int64_t words(int64_t n) { return (n + WORD - 1) / WORD; }

static inline float from_bf16(uint16_t v) {
    uint32_t bits = (uint32_t)v << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
