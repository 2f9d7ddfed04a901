/* Rows x [rows, in] float32 times a weight-only quantised matrix [outputs, in] -> [rows, outputs] float32.

   Each row is rounded to 16 bits with one scale, products are summed as integers, and only groups of sums are scaled
   as floats: one pass over the weights, at the speed at which memory is read. See matrices.py for the layouts. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512BW__
#define BYTES 64
#else
#define BYTES 32
#endif
#define LANES (BYTES / 2) /* 16-bit numbers in a vector */
#define GROUP 64          /* int4 weights with one scale */

typedef int8_t Int8 __attribute__((vector_size(BYTES / 2)));
typedef int16_t Int16 __attribute__((vector_size(BYTES)));
typedef int32_t Int32 __attribute__((vector_size(BYTES)));
typedef float Float __attribute__((vector_size(BYTES)));

static inline Int16 load(const int16_t *from) {
    Int16 v;
    memcpy(&v, from, BYTES);
    return v;
}

/* LANES bytes, widened; GCC's own conversion of vectors goes by halves */
static inline Int16 load_bytes(const int8_t *from) {
#if defined(__AVX512BW__)
    return (Int16)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__AVX2__)
    return (Int16)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from));
#else
    Int8 v;
    memcpy(&v, from, BYTES / 2);
    return __builtin_convertvector(v, Int16);
#endif
}

/* sum + the products of neighbours, added in pairs */
static inline Int32 dot(Int32 sum, Int16 a, Int16 b) {
#if defined(__AVX512VNNI__)
    return (Int32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sum + (Int32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sum + (Int32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    Int32 x = (Int32)a, y = (Int32)b;
    return sum + ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}

static inline float bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline Float to_float(Int32 v) { return __builtin_convertvector(v, Float); }

static inline float total(Float v) {
    float sum = 0;
    for (int i = 0; i < BYTES / 4; i++) sum += v[i];
    return sum;
}

/* -> the scale */
static float round_row(const float *x, int16_t *rounded, int64_t in) {
    float largest = 0;
    for (int64_t i = 0; i < in; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    float factor = largest > 0 ? 32767 / largest : 0;
    for (int64_t i = 0; i < in; i++) rounded[i] = (int16_t)rintf(x[i] * factor);
    return largest / 32767;
}

static float int8_product(const int8_t *w, const uint16_t *scale, const int16_t *x, int64_t in) {
    Int32 sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= in; i += 4 * LANES)
        for (int64_t j = 0; j < 4; j++)
            sums[j] = dot(sums[j], load_bytes(w + i + j * LANES), load(x + i + j * LANES));
    for (; i < in; i += LANES) sums[0] = dot(sums[0], load_bytes(w + i), load(x + i));
    return bfloat16(*scale) * total((to_float(sums[0]) + to_float(sums[1])) + (to_float(sums[2]) + to_float(sums[3])));
}

static inline Float int4_group(const int8_t *w, const int16_t *x) {
    Int32 sum = {0};
    for (int64_t i = 0; i < GROUP / 2; i += LANES) {
        Int16 both = load_bytes(w + i);
        sum = dot(dot(sum, (both << 12) >> 12, load(x + i)), both >> 4, load(x + GROUP / 2 + i));
    }
    return to_float(sum);
}

static float int4_product(const int8_t *w, const uint16_t *scales, const int16_t *x, int64_t in) {
    int64_t groups = in / GROUP, g = 0;
    float wide[groups];
    for (int64_t i = 0; i < groups; i++) wide[i] = bfloat16(scales[i]);
    Float even = {0}, odd = {0};
    for (; g + 2 <= groups; g += 2) {
        even += wide[g] * int4_group(w + g * GROUP / 2, x + g * GROUP);
        odd += wide[g + 1] * int4_group(w + (g + 1) * GROUP / 2, x + (g + 1) * GROUP);
    }
    if (g < groups) even += wide[g] * int4_group(w + g * GROUP / 2, x + g * GROUP);
    return total(even + odd);
}

/* 0, or 1 where there is no memory. `int8`: one byte for each weight, else half of one. */
int multiply(const float *x, const int8_t *w, const uint16_t *scales, float *out, int64_t rows, int64_t in,
             int64_t outputs, int int8, int threads) {
    int16_t *rounded = malloc(rows * in * sizeof *rounded + rows * sizeof(float));
    if (!rounded) return 1;
    float *factors = (float *)(rounded + rows * in);
    for (int64_t r = 0; r < rows; r++) factors[r] = round_row(x + r * in, rounded + r * in, in);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t r = 0; r < rows; r++)
            out[r * outputs + o] =
                factors[r] * (int8 ? int8_product(w + o * in, scales + o, rounded + r * in, in)
                                   : int4_product(w + o * in / 2, scales + o * (in / GROUP), rounded + r * in, in));
    free(rounded);
    return 0;
}
