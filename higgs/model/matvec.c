/* Rows x [rows, in] float32 times a weight-only quantised matrix [outputs, in] -> [rows, outputs] float32.

   Each row of x is rounded to 16 bits with one scale, products are summed as integers, and only sums are scaled as
   floats: one pass over the weights, at the speed at which memory is read. matrices.py has the layouts of weights. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512BW__
#define BYTES 64
#define AVX(name) _mm512_##name
#define WIDE(v) ((__m512i)(v))
#else
#define BYTES 32
#define AVX(name) _mm256_##name
#define WIDE(v) ((__m256i)(v))
#endif
#define HALF (BYTES / 2)   /* 16-bit numbers in a vector */
#define LANES (BYTES / 4)
#define GROUP 64           /* int4 weights with one scale: 32 bytes */
#define LARGEST 32639      /* its high byte, rounded to nearest, is 127 */

typedef int8_t Int8 __attribute__((vector_size(BYTES)));
typedef int16_t Int16 __attribute__((vector_size(BYTES)));
typedef int32_t Int32 __attribute__((vector_size(BYTES)));
typedef float Float __attribute__((vector_size(BYTES)));
typedef struct { Int8 low[2], high[2]; Int32 offset; } Part; /* x for BYTES of int4 weights */

#define LOAD(type, from) ({ type v_; memcpy(&v_, (from), sizeof v_); v_; })

static inline Float to_float(Int32 v) { return __builtin_convertvector(v, Float); }

static inline float total(Float v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

static inline float bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    return LOAD(float, &wide);
}

/* sum + HALF weights times x, neighbours added in pairs */
static inline Int32 dot_pairs(Int32 sum, const int8_t *w, const int16_t *x) {
#if defined(__AVX512BW__)
    __m512i a = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w)), b = _mm512_loadu_si512(x);
#ifdef __AVX512VNNI__
    return (Int32)_mm512_dpwssd_epi32(WIDE(sum), a, b);
#else
    return sum + (Int32)_mm512_madd_epi16(a, b);
#endif
#elif defined(__AVX2__)
    __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w)), b = _mm256_loadu_si256((const __m256i *)x);
    return sum + (Int32)_mm256_madd_epi16(a, b);
#else
    for (int i = 0; i < HALF; i++) sum[i / 2] += w[i] * x[i];
    return sum;
#endif
}

/* sum + BYTES weights from 0 to 15 times bytes of x, neighbours added in fours */
static inline Int32 dot_fours(Int32 sum, Int8 w, Int8 x) {
#if defined(__AVX512VNNI__)
    return (Int32)_mm512_dpbusd_epi32(WIDE(sum), WIDE(w), WIDE(x));
#elif defined(__AVX2__)
    return sum + (Int32)AVX(madd_epi16)(AVX(maddubs_epi16)(WIDE(w), WIDE(x)), AVX(set1_epi16)(1));
#else
    for (int i = 0; i < BYTES; i++) sum[i / 4] += w[i] * x[i];
    return sum;
#endif
}

/* `rounded` [in]; -> the scale */
static float round_row(const float *x, int16_t *rounded, int64_t in) {
    float largest = 0;
    for (int64_t i = 0; i < in; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    float factor = largest > 0 ? LARGEST / largest : 0;
    for (int64_t i = 0; i < in; i++) rounded[i] = (int16_t)rintf(x[i] * factor);
    return largest / LARGEST;
}

static float int8_product(const int8_t *w, const uint16_t *scale, const int16_t *x, int64_t in) {
    Int32 sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * HALF <= in; i += 4 * HALF)
        for (int64_t j = 0; j < 4; j++) sums[j] = dot_pairs(sums[j], w + i + j * HALF, x + i + j * HALF);
    for (; i < in; i += HALF) sums[0] = dot_pairs(sums[0], w + i, x + i);
    return bfloat16(*scale) * total((to_float(sums[0]) + to_float(sums[1])) + (to_float(sums[2]) + to_float(sums[3])));
}

/* Low and high bytes of x in the order of the nibbles; `offset` is -8 times their sum, for a stored 8 stands for 0. */
static void split_row(const int16_t *x, Part *parts, int64_t in) {
    const Int8 eight = (Int8){0} + 8;
    for (int64_t i = 0; i < 2 * BYTES * ((in + 2 * BYTES - 1) / (2 * BYTES)); i++) {
        Part *part = parts + i / (2 * BYTES);
        int64_t half = i % GROUP / (GROUP / 2), byte = i % (2 * BYTES) / GROUP * (GROUP / 2) + i % (GROUP / 2);
        int8_t low = i < in ? (int8_t)x[i] : 0;
        part->low[half][byte] = low;
        part->high[half][byte] = i < in ? (int8_t)((x[i] - low) >> 8) : 0;
    }
    for (Part *part = parts; part < parts + (in + 2 * BYTES - 1) / (2 * BYTES); part++) {
        Int32 low = {0}, high = {0};
        for (int half = 0; half < 2; half++) {
            low = dot_fours(low, eight, part->low[half]);
            high = dot_fours(high, eight, part->high[half]);
        }
        part->offset = -(low + (high << 8));
    }
}

static inline Float int4_part(Int8 w, const Part *x) {
    Int8 first = w & 15, second = (Int8)((Int16)w >> 4) & 15;
    Int32 high = dot_fours(dot_fours((Int32){0}, first, x->high[0]), second, x->high[1]);
    return to_float(dot_fours(dot_fours(x->offset, first, x->low[0]), second, x->low[1]) + (high << 8));
}

/* The scale of each lane */
static inline Float lane_scales(const float *scales) {
#if BYTES == 64
    const __m512i group = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    return (Float)_mm512_permutexvar_ps(group, (__m512)_mm512_set1_pd(LOAD(double, scales)));
#else
    return (Float){0} + *scales;
#endif
}

static float int4_product(const int8_t *w, const uint16_t *scales, const Part *x, int64_t in) {
    int64_t groups = in / GROUP, whole = in / (2 * BYTES), p = 0;
    float wide[groups + 1];
    for (int64_t i = 0; i < groups; i++) wide[i] = bfloat16(scales[i]);
    wide[groups] = 0;
    Float even = {0}, odd = {0};
    for (; p + 2 <= whole; p += 2) {
        even += lane_scales(wide + p * BYTES / 32) * int4_part(LOAD(Int8, w + p * BYTES), x + p);
        odd += lane_scales(wide + (p + 1) * BYTES / 32) * int4_part(LOAD(Int8, w + (p + 1) * BYTES), x + p + 1);
    }
    if (p < whole) odd += lane_scales(wide + p * BYTES / 32) * int4_part(LOAD(Int8, w + p * BYTES), x + p), p++;
    if (in % (2 * BYTES)) {
        Int8 last = {0};
        memcpy(&last, w + p * BYTES, in / 2 - p * BYTES);
        even += lane_scales(wide + p * BYTES / 32) * int4_part(last, x + p);
    }
    return total(even + odd);
}

/* 0, or 1 where there is no memory. `int8`: one byte for each weight, else half of one. */
int multiply(const float *x, const int8_t *w, const uint16_t *scales, float *out, int64_t rows, int64_t in,
             int64_t outputs, int int8, int threads) {
    int64_t parts = int8 ? 0 : (in + 2 * BYTES - 1) / (2 * BYTES);
    size_t size = rows * parts * sizeof(Part) + rows * (in * sizeof(int16_t) + sizeof(float));
    Part *split = aligned_alloc(64, (size + 63) / 64 * 64);
    if (!split) return 1;
    float *factors = (float *)(split + rows * parts);
    int16_t *rounded = (int16_t *)(factors + rows);
    for (int64_t r = 0; r < rows; r++) {
        factors[r] = round_row(x + r * in, rounded + r * in, in);
        if (!int8) split_row(rounded + r * in, split + r * parts, in);
    }
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t r = 0; r < rows; r++)
            out[r * outputs + o] =
                factors[r] * (int8 ? int8_product(w + o * in, scales + o, rounded + r * in, in)
                                   : int4_product(w + o * in / 2, scales + o * (in / GROUP), split + r * parts, in));
    free(split);
    return 0;
}
