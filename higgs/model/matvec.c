/* The layers of a decode step, and products with weight-only quantised matrices [outputs, in], on a CPU.

   Activations are float32 inside; what comes in and goes out, norms, rotation and cache are float32 or bfloat16 (`half`).
   Weights have 32, 8 or 4 bits; matrices.py has their layouts. For 8 and 4, each row of x is rounded to 16 bits with one
   scale, products are summed as integers, and only sums are scaled as floats. Weights are read once for all rows, at the
   speed of memory; sums have one order for each row, whatever the other rows and the number of threads. */
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
#define SHARED (1 << 20)   /* bytes: what reads less is faster in one thread, above all where others are not free */

typedef int8_t Int8 __attribute__((vector_size(BYTES)));
typedef int16_t Int16 __attribute__((vector_size(BYTES)));
typedef int32_t Int32 __attribute__((vector_size(BYTES)));
typedef uint32_t UInt32 __attribute__((vector_size(BYTES)));
typedef float Float __attribute__((vector_size(BYTES)));
typedef uint16_t Halves __attribute__((vector_size(HALF)));
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

/* Of a vector's numbers those that are there, `left` */
static inline void copy(void *to, const void *from, int64_t left, size_t size) {
    if (left >= LANES) memcpy(to, from, LANES * size);
    else memcpy(to, from, left * size);
}

/* Numbers from the i-th, zeros behind the last */
static inline Float load(const void *from, int64_t i, int64_t left, int half) {
    Float wide = {0};
    Halves halves = {0};
    if (!half) copy(&wide, (const float *)from + i, left, 4);
    else copy(&halves, (const uint16_t *)from + i, left, 2);
    return half ? (Float)(__builtin_convertvector(halves, UInt32) << 16) : wide;
}

static inline void store(float *to, Float v, int64_t left) { copy(to, &v, left, sizeof(float)); }

static void to_floats(const void *from, float *to, int64_t count, int half) {
    if (!half) memcpy(to, from, count * sizeof(float));
    else for (int64_t i = 0; i < count; i++) to[i] = bfloat16(((const uint16_t *)from)[i]);
}

static void from_floats(const float *from, void *to, int64_t count, int half) {
    if (!half) memcpy(to, from, count * sizeof(float));
    else for (int64_t i = 0; i < count; i++) ((uint16_t *)to)[i] = to_bfloat16(from[i]);
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

static float float_product(const float *w, const float *x, int64_t in) {
    Float sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= in; i += 4 * LANES)
        for (int64_t j = 0; j < 4; j++) {
            if (BYTES == 64 || j % 2 == 0) __builtin_prefetch((const char *)(w + i + j * LANES) + AHEAD);
            sums[j] += LOAD(Float, w + i + j * LANES) * LOAD(Float, x + i + j * LANES);
        }
    for (; i < in; i += LANES) sums[0] += load(w, i, in - i, 0) * load(x, i, in - i, 0);
    return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
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

typedef struct { const void *values; const uint16_t *scales; int64_t in, outputs; int bits; } Matrix;
typedef struct { Part *split; int16_t *rounded; float *factors; } Rounded; /* rows of x for a quantised matrix */

static inline int64_t parts_of(int64_t in) { return (in + 2 * BYTES - 1) / (2 * BYTES); }

/* One block of memory for `count` arrays of so many bytes, each with room for a vector behind it; null if there is none */
static void *allocate(void **arrays, const size_t *bytes, int count) {
    size_t sum = 0, start = 0;
    for (int i = 0; i < count; i++) sum += (bytes[i] + 127) / 64 * 64;
    char *block = aligned_alloc(64, sum);
    for (int i = 0; block && i < count; i++) {
        arrays[i] = block + start;
        start += (bytes[i] + 127) / 64 * 64;
    }
    return block;
}

/* x [rows, in] times a matrix -> out [rows, outputs], or added to it */
static void product(const float *x, Matrix m, Rounded work, float *out, int add, int64_t rows, int threads) {
    (void)threads; /* without OpenMP */
    const int64_t in = m.in, parts = parts_of(in);
    const char *values = m.values;
    for (int64_t i = 0; i < AHEAD; i += 64) __builtin_prefetch(values + i);
    for (int64_t r = 0; m.bits < 32 && r < rows; r++) {
        work.factors[r] = round_row(x + r * in, work.rounded + r * in, in);
        if (m.bits == 4) split_row(work.rounded + r * in, work.split + r * parts, parts, in);
    }
#pragma omp parallel for num_threads(threads) if (rows * m.outputs * in * m.bits / 8 >= SHARED)
    for (int64_t o = 0; o < m.outputs; o++) {
        const void *w = values + o * in * m.bits / 8;
        for (int64_t r = 0; r < rows; r++) {
            float sum = m.bits == 32  ? float_product(w, x + r * in, in)
                        : m.bits == 8 ? work.factors[r] * int8_product(w, m.scales + o, work.rounded + r * in, in)
                                      : work.factors[r] * int4_product(w, m.scales + o * (in / GROUP), work.split + r * parts, in);
            out[r * m.outputs + o] = add ? out[r * m.outputs + o] + sum : sum;
        }
    }
}

/* x [rows, in] times a quantised matrix -> out [rows, outputs]; 0, or 1 where there is no memory */
int multiply(const void *x, const void *values, const uint16_t *scales, void *out, int64_t rows, int64_t in,
             int64_t outputs, int bits, int half, int threads) {
    const size_t bytes[] = {rows * in * 4, rows * outputs * 4, rows * parts_of(in) * sizeof(Part), rows * in * 2, rows * 4};
    void *arrays[5], *block = allocate(arrays, bytes, 5);
    if (!block) return 1;
    float *wide = arrays[0], *sums = arrays[1];
    to_floats(x, wide, rows * in, half);
    product(wide, (Matrix){values, scales, in, outputs, bits}, (Rounded){arrays[2], arrays[3], arrays[4]}, sums, 0, rows,
            threads);
    from_floats(sums, out, rows * outputs, half);
    free(block);
    return 0;
}

/* e^v, for v up to -87 that of -87 and from 88 that of 88; what is no number stays so */
static inline Float exponential(Float v) {
    const Float least = (Float){0} - 87, most = (Float){0} + 88;
    Int32 below = v < least, above = v > most;
    v = (Float)(((Int32)least & below) | ((Int32)most & above) | ((Int32)v & ~(below | above)));
    Float shifted = v * 1.44269504f + 12582912; /* 1.5 * 2^23: the nearest whole number is in the lowest bits */
    Float whole = shifted - 12582912, rest = v - whole * 0.693145751953125f - whole * 1.42860682e-6f;
    Float sum = (Float){0} + 1;
    for (int k = 7; k > 0; k--) sum = 1 + sum * rest * (1.0f / k);
    return sum * (Float)(((UInt32)shifted + 127) << 23);
}

/* As `rms_norm` of the decode step, which says what weight and epsilon hold: x [rows, in] -> out */
static void normalise(const float *x, float *out, int64_t rows, int64_t in, const void *weight, float epsilon, int half) {
    for (int64_t r = 0; r < rows; r++, x += in, out += in) {
        Float squares = {0};
        for (int64_t i = 0; i < in; i += LANES) squares += load(x, i, in - i, 0) * load(x, i, in - i, 0);
        float length = half ? sqrtf(total(squares) / in + epsilon) : hypotf(sqrtf(total(squares)), epsilon);
        for (int64_t i = 0; i < in; i += LANES)
            store(out + i, load(x, i, in - i, 0) / length * load(weight, i, in - i, half), in - i);
    }
}

/* x [heads, d] by cos and signed sin [2, d], in place: the first half of the channels is paired with the second */
static void rotate(float *x, const float *rope, int64_t heads, int64_t d) {
    for (float *end = x + heads * d; x < end; x += d)
        for (int64_t i = 0, j = d / 2; j < d; i++, j++) {
            float first = x[i], second = x[j];
            x[i] = first * rope[i] + second * rope[d + i];
            x[j] = second * rope[j] + first * rope[d + j];
        }
}

/* q [group, d] over keys and values [n, d] -> out [group, d]; `scores` has room for [group, n] */
static inline __attribute__((always_inline)) void attend(const float *q, const char *k, const char *v, float *scores,
                                                         float *out, int64_t group, int64_t n, int64_t d, int half) {
    const int64_t row = d * (half ? 2 : 4);
    const float scale = 1 / sqrtf(d);
    for (int64_t t = 0; t < n; t++)
        for (int64_t g = 0; g < group; g++) {
            Float sum = {0};
            for (int64_t i = 0; i < d; i += LANES) sum += load(q + g * d, i, d - i, 0) * load(k + t * row, i, d - i, half);
            scores[g * n + t] = total(sum) * scale;
        }
    for (int64_t g = 0; g < group; g++) {
        float *p = scores + g * n, most = p[0];
        for (int64_t t = 1; t < n; t++) most = p[t] > most ? p[t] : most;
        Float sums = {0};
        for (int64_t t = 0; t < n; t += LANES) {
            store(p + t, exponential(load(p, t, n - t, 0) - most), n - t);
            sums += load(p, t, n - t, 0);
        }
        const float sum = total(sums);
        for (int64_t i = 0; i < d; i += LANES) {
            Float sums[4] = {{0}};
            int64_t t = 0;
            for (; t + 4 <= n; t += 4)
                for (int64_t j = 0; j < 4; j++) sums[j] += p[t + j] * load(v + (t + j) * row, i, d - i, half);
            for (; t < n; t++) sums[0] += p[t] * load(v + t * row, i, d - i, half);
            store(out + g * d + i, ((sums[0] + sums[1]) + (sums[2] + sums[3])) / sum, d - i);
        }
    }
}

typedef struct {
    const void *attention_norm, *qkv, *qkv_scales, *out, *out_scales;
    const void *ffn_norm, *gate_up, *gate_up_scales, *down, *down_scales;
} Layer;

/* As `pointers` of fused_weights.py lays it out; `head` may be null */
typedef struct {
    int64_t layers, width, heads, kv_heads, d, ffn, codes, bits, half;
    const void *rope, *norm, *head;
    const float *epsilon;
    Layer layer[];
} Weights;

/* x [rows, width] -> out: logits in float32 [rows, codes], or without a head what it would be given, as x is.

   `kv` has for each layer keys and values [2, rows, kv heads, positions, d] with the distances `strides` between the
   first three. Each row's are written at its position, and it attends to all up to there. 0, or 1 where there is no
   memory, or 2 where a position is not below `limit`; nothing is written then. */
int decode(const Weights *w, const void *x, char *const *kv, const int64_t *position, void *out, int64_t rows,
           int64_t limit, const int64_t *strides, int threads) {
    const int64_t D = w->width, F = w->ffn, d = w->d, group = w->heads / w->kv_heads, half = w->half, size = half ? 2 : 4;
    const int64_t q = w->heads * d, heads = w->heads + w->kv_heads, qkv = (heads + w->kv_heads) * d;
    const int64_t most = q > D ? q : D, widest = F > most ? F : most;
    int64_t longest = 0;
    for (int64_t r = 0; r < rows; r++) {
        if (position[r] < 0 || position[r] >= limit) return 2;
        if (position[r] >= longest) longest = position[r] + 1;
    }
    const size_t many = rows * 4, bytes[8] = {
        many * D, many * widest, many * (qkv > 2 * F ? qkv : 2 * F), many * w->heads * longest, many * 2 * d,
        w->bits == 4 ? rows * parts_of(widest) * sizeof(Part) : 0, rows * widest * sizeof(int16_t), many,
    };
    void *arrays[8], *block = allocate(arrays, bytes, 8);
    if (!block) return 1;
    float *hidden = arrays[0], *given = arrays[1], *made = arrays[2], *scores = arrays[3], *rope = arrays[4];
    const Rounded work = {arrays[5], arrays[6], arrays[7]};
    to_floats(x, hidden, rows * D, half);
    for (int64_t r = 0; r < rows; r++)
        to_floats((const char *)w->rope + position[r] * 2 * d * size, rope + r * 2 * d, 2 * d, half);

    for (const Layer *layer = w->layer; layer < w->layer + w->layers; layer++, kv++) {
        normalise(hidden, given, rows, D, layer->attention_norm, *w->epsilon, half);
        product(given, (Matrix){layer->qkv, layer->qkv_scales, D, qkv, w->bits}, work, made, 0, rows, threads);
        for (int64_t r = 0; r < rows; r++) rotate(made + r * qkv, rope + r * 2 * d, heads, d);
#pragma omp parallel for num_threads(threads) if (rows * w->heads * longest * 2 * d * size >= SHARED)
        for (int64_t i = 0; i < rows * w->kv_heads; i++) {
            const int64_t r = i / w->kv_heads, h = i % w->kv_heads, n = position[r] + 1, first = r * w->heads + h * group;
            float *row = made + r * qkv, *query = row + h * group * d, *room = scores + first * longest;
            char *keys = *kv + (r * strides[1] + h * strides[2]) * size, *values = keys + strides[0] * size;
            from_floats(row + q + h * d, keys + (n - 1) * d * size, d, half);
            from_floats(row + (heads + h) * d, values + (n - 1) * d * size, d, half);
            if (half) attend(query, keys, values, room, given + first * d, group, n, d, 1);
            else attend(query, keys, values, room, given + first * d, group, n, d, 0);
        }
        product(given, (Matrix){layer->out, layer->out_scales, q, D, w->bits}, work, hidden, 1, rows, threads);
        normalise(hidden, given, rows, D, layer->ffn_norm, *w->epsilon, half);
        product(given, (Matrix){layer->gate_up, layer->gate_up_scales, D, 2 * F, w->bits}, work, made, 0, rows, threads);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < F; i += LANES) {
                Float gate = load(made + r * 2 * F, i, F - i, 0), up = load(made + (2 * r + 1) * F, i, F - i, 0);
                store(given + r * F + i, gate / (1 + exponential(-gate)) * up, F - i);
            }
        product(given, (Matrix){layer->down, layer->down_scales, F, D, w->bits}, work, hidden, 1, rows, threads);
    }
    normalise(hidden, given, rows, D, w->norm, *w->epsilon, half);
    if (w->head) product(given, (Matrix){w->head, NULL, D, w->codes, 32}, work, out, 0, rows, threads);
    else from_floats(given, out, rows * D, half);
    free(block);
    return 0;
}
