/* Rows x [rows, in] times a weight-only quantised matrix [outputs, in] -> [rows, outputs], in float32 or bfloat16.

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
#define AHEAD 8192         /* bytes: weights are asked for so long before they are needed */

typedef int8_t Int8 __attribute__((vector_size(BYTES)));
typedef int16_t Int16 __attribute__((vector_size(BYTES)));
typedef int32_t Int32 __attribute__((vector_size(BYTES)));
typedef float Float __attribute__((vector_size(BYTES)));
typedef struct { Int8 low[2], high[2]; Int32 offset; } Part; /* x for BYTES of int4 weights */

#define LOAD(type, from) ({ type v_; memcpy(&v_, (from), sizeof v_); v_; })

static inline Float to_float(Int32 v) { return __builtin_convertvector(v, Float); }

static inline float total(Float v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
#endif
}

static inline float bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    return LOAD(float, &wide);
}

/* To the nearest, ties to even */
static inline uint16_t to_bfloat16(float v) {
    uint32_t bits = LOAD(uint32_t, &v);
    return isnan(v) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
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

/* `rounded` [in]; -> the scale */
static float round_row(const float *x, int16_t *rounded, int64_t in) {
    Int32 most = {0}; /* without their signs floats are ordered as integers */
    for (int64_t i = 0; i < in; i += LANES) {
        Int32 v = LOAD(Int32, x + i) & 0x7fffffff, more = v > most;
        most = (v & more) | (most & ~more);
    }
    int32_t top = 0;
    for (int i = 0; i < LANES; i++) top = most[i] > top ? most[i] : top;
    float largest = LOAD(float, &top); /* what is no number is above all, and goes on into the products */
    float factor = largest > 0 ? LARGEST / largest : 0;
    for (int64_t i = 0; i < in; i++) rounded[i] = (int16_t)rintf(x[i] * factor);
    return largest / LARGEST;
}

static float int8_product(const int8_t *w, const uint16_t *scale, const int16_t *x, int64_t in) {
    Int32 sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * HALF <= in; i += 4 * HALF)
        for (int64_t j = 0; j < 4; j++) {
            if (j % 2 == 0) __builtin_prefetch(w + i + j * HALF + AHEAD);
            sums[j] = dot_pairs(sums[j], w + i + j * HALF, x + i + j * HALF);
        }
    for (; i < in; i += HALF) sums[0] = dot_pairs(sums[0], w + i, x + i);
    return bfloat16(*scale) * total((to_float(sums[0]) + to_float(sums[1])) + (to_float(sums[2]) + to_float(sums[3])));
}

/* Weights from 0 to 15, for BYTES of x's low bytes and as many of its high ones -> sums of fours, and `offset` */
static inline Int32 int4_sums(Int8 w, const Part *x) {
    Int8 first = w & 15, second = (Int8)((Int16)w >> 4) & 15;
#if defined(__AVX512VNNI__)
#define DOT(sum, w, x) _mm512_dpbusd_epi32(sum, WIDE(w), WIDE(x))
    Int32 high = (Int32)DOT(DOT(_mm512_setzero_si512(), first, x->high[0]), second, x->high[1]);
    return (Int32)DOT(DOT(WIDE(x->offset), first, x->low[0]), second, x->low[1]) + (high << 8);
#elif defined(__AVX2__)
#define DOT(x) AVX(add_epi16)(AVX(maddubs_epi16)(WIDE(first), WIDE(x[0])), AVX(maddubs_epi16)(WIDE(second), WIDE(x[1])))
    Int32 low = (Int32)AVX(madd_epi16)(DOT(x->low), AVX(set1_epi16)(1));
    return x->offset + low + (Int32)AVX(madd_epi16)(DOT(x->high), AVX(set1_epi16)(256));
#else
    Int32 sum = x->offset;
    for (int i = 0; i < BYTES; i++)
        sum[i / 4] += first[i] * (x->low[0][i] + 256 * x->high[0][i]) + second[i] * (x->low[1][i] + 256 * x->high[1][i]);
    return sum;
#endif
}

/* Low and high bytes of x in the order of the nibbles; `offset` is -8 times their sum, for a stored 8 stands for 0. */
static void split_row(const int16_t *x, Part *parts, int64_t count, int64_t in) {
    memset(parts, 0, count * sizeof(Part));
    for (int64_t i = 0; i < in; i += GROUP / 2) {
        Part *part = parts + i / (2 * BYTES);
        int64_t half = i / (GROUP / 2) % 2, byte = i % (2 * BYTES) / GROUP * (GROUP / 2);
        int8_t *low = (int8_t *)(part->low + half) + byte, *high = (int8_t *)(part->high + half) + byte;
        for (int j = 0; j < GROUP / 2; j++) {
            low[j] = (int8_t)x[i + j];
            high[j] = (int8_t)((x[i + j] - low[j]) >> 8);
        }
    }
    for (Part *part = parts; part < parts + count; part++) part->offset = -int4_sums((Int8){0} - 120, part);
}

/* The scale of each lane */
static inline Float lane_scales(const uint16_t *scales) {
#if BYTES == 64
    const __m512i order = _mm512_inserti64x4(_mm512_set1_epi32(0x03028080), _mm256_set1_epi32(0x01008080), 0);
    return (Float)_mm512_shuffle_epi8(_mm512_set1_epi32(LOAD(int32_t, scales)), order);
#else
    return (Float)((Int32)((Int16){0} + (int16_t)*scales) << 16);
#endif
}

static inline Float int4_part(const int8_t *w, const uint16_t *scales, const Part *x) {
    return lane_scales(scales) * to_float(int4_sums(LOAD(Int8, w), x));
}

static float int4_product(const int8_t *w, const uint16_t *scales, const Part *x, int64_t in) {
    const int64_t per_part = 2 * BYTES / GROUP, whole = in / (2 * BYTES);
    Float sums[2] = {{0}};
    int64_t p = 0;
    for (; p + 2 <= whole; p += 2)
        for (int64_t j = 0; j < 2; j++) {
            __builtin_prefetch(w + (p + j) * BYTES + AHEAD);
            sums[j] += int4_part(w + (p + j) * BYTES, scales + (p + j) * per_part, x + p + j);
        }
    for (; 2 * BYTES * p < in; p++) {
        int8_t last[BYTES] = {0};
        uint16_t few[2] = {0};
        int64_t bytes = in / 2 - p * BYTES < BYTES ? in / 2 - p * BYTES : BYTES;
        memcpy(last, w + p * BYTES, bytes);
        memcpy(few, scales + p * per_part, bytes / 16);
        sums[0] += int4_part(last, few, x + p);
    }
    return total(sums[0] + sums[1]);
}

/* A row of x, by its RMS norm where there is one, as `rms_norm` of the decode step -> floats [in] */
static void widen_row(const void *x, float *wide, int64_t in, int half, const void *norm, const float *epsilon) {
    for (int64_t i = 0; i < in; i++) wide[i] = half ? bfloat16(((const uint16_t *)x)[i]) : ((const float *)x)[i];
    if (!norm) return;
    Float squares = {0};
    for (int64_t i = 0; i < in; i += LANES) squares += LOAD(Float, wide + i) * LOAD(Float, wide + i);
    if (half) {
        float factor = 1 / sqrtf(total(squares) / in + *epsilon);
        for (int64_t i = 0; i < in; i++) {
            float normed = bfloat16(to_bfloat16(wide[i] * factor));
            wide[i] = bfloat16(to_bfloat16(normed * bfloat16(((const uint16_t *)norm)[i])));
        }
    } else {
        float length = hypotf(sqrtf(total(squares)), *epsilon);
        for (int64_t i = 0; i < in; i++) wide[i] = wide[i] / length * ((const float *)norm)[i];
    }
}

/* product + residual, each rounded as `out` is */
static inline void put(void *out, const void *residual, int64_t i, float product, int half) {
    if (!half) {
        ((float *)out)[i] = residual ? ((const float *)residual)[i] + product : product;
        return;
    }
    uint16_t rounded = to_bfloat16(product);
    if (residual) rounded = to_bfloat16(bfloat16(((const uint16_t *)residual)[i]) + bfloat16(rounded));
    ((uint16_t *)out)[i] = rounded;
}

/* 0, or 1 where there is no memory. `int8`: one byte for each weight, else half of one; `half`: x, residual, out
   and norm are bfloat16. `residual` [rows, outputs], `norm` [in] and its `epsilon` may be null. */
int multiply(const char *x, const int8_t *w, const uint16_t *scales, const void *residual, const void *norm,
             const float *epsilon, void *out, int64_t rows, int64_t in, int64_t outputs, int int8, int half, int threads) {
    int64_t parts = int8 ? 0 : (in + 2 * BYTES - 1) / (2 * BYTES);
    size_t size = rows * parts * sizeof(Part) + rows * (in * sizeof(int16_t) + sizeof(float)) + in * sizeof(float);
    Part *split = aligned_alloc(64, (size + 63) / 64 * 64);
    if (!split) return 1;
    float *wide = (float *)(split + rows * parts), *factors = wide + in;
    int16_t *rounded = (int16_t *)(factors + rows);
    for (int64_t i = 0; i < AHEAD; i += 64) __builtin_prefetch(w + i);
    for (int64_t r = 0; r < rows; r++) {
        widen_row(x + r * in * (half ? 2 : 4), wide, in, half, norm, epsilon);
        factors[r] = round_row(wide, rounded + r * in, in);
        if (!int8) split_row(rounded + r * in, split + r * parts, parts, in);
    }
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t r = 0; r < rows; r++) {
            float sum = int8 ? int8_product(w + o * in, scales + o, rounded + r * in, in)
                             : int4_product(w + o * in / 2, scales + o * (in / GROUP), split + r * parts, in);
            put(out, residual, r * outputs + o, factors[r] * sum, half);
        }
    free(split);
    return 0;
}
