// Sixteen numbers at a time, in the vector extensions of GCC and Clang: the compiler lowers them to
// whatever the processor has. Arithmetic is float32; bfloat16 is a storage format.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

struct bf16 {
    uint16_t bits;
};

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t half_vec __attribute__((vector_size(32)));
constexpr int LANES = 16;

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

// Round to the nearest, ties to even; a NaN stays one.
static inline void put(float* p, float x) { *p = x; }
static inline void put(bf16* p, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000)
        p->bits = 0x7fc0;
    else
        p->bits = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T>
static inline float rounded(float x) {  // to the precision of T
    T y;
    put(&y, x);
    return to_float(y);
}

static inline vec fill(float x) { return vec{} + x; }

static inline vec load(const float* p) {
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline vec load(const bf16* p) {
#if defined(__AVX512F__)
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return (vec)_mm512_slli_epi32(wide, 16);
#else
    half_vec half;
    memcpy(&half, p, sizeof half);
    return (vec)(__builtin_convertvector(half, uvec) << 16);
#endif
}

static inline void store(float* p, vec x) { memcpy(p, &x, sizeof x); }
static inline void store(bf16* p, vec x) {
#if defined(__AVX512BF16__)
    __m256bh half = _mm512_cvtneps_pbh((__m512)x);
#else
    uvec bits = (uvec)x;
    uvec even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uvec nan = (uvec)((bits & 0x7fffffff) > 0x7f800000);
    half_vec half = __builtin_convertvector((even & ~nan) | (nan & 0x7fc0), half_vec);
#endif
    memcpy(p, &half, sizeof half);
}

template <typename T>
static inline vec rounded(vec x);
template <>
inline vec rounded<float>(vec x) {
    return x;
}
template <>
inline vec rounded<bf16>(vec x) {
#if defined(__AVX512BF16__)
    __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
    return (vec)_mm512_slli_epi32(wide, 16);
#else
    bf16 kept[LANES];
    store(kept, x);
    return load(kept);
#endif
}

// The first `count` of 16; the others are 0.
template <typename T>
static inline vec load_first(const T* p, int count) {
    T padded[LANES] = {};
    memcpy(padded, p, count * sizeof(T));
    return load(padded);
}
template <typename T>
static inline void store_first(T* p, vec x, int count) {
    T padded[LANES];
    store(padded, x);
    memcpy(p, padded, count * sizeof(T));
}

static inline vec maximum(vec a, vec b) { return a > b ? a : b; }
static inline vec minimum(vec a, vec b) { return a < b ? a : b; }

// Always added in the same order, so that a sum does not depend on who asks for it.
static inline float total(vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float lane[LANES];
    store(lane, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
#endif
}
static inline float largest(vec x) {  // of numbers: NaN among them is passed over or not
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float lane[LANES];
    store(lane, x);
    float best = lane[0];
    for (int i = 1; i < LANES; ++i) best = lane[i] > best ? lane[i] : best;
    return best;
#endif
}

// e^x within 2 units in the last place (Cephes' polynomial); NaN stays NaN.
static inline vec exponential(vec x) {
    vec clamped = x < -87.3f ? fill(-87.3f) : x;
    clamped = clamped > 89.0f ? fill(89.0f) : clamped;
#if defined(__AVX512F__)
    vec n = (vec)_mm512_roundscale_ps((__m512)(clamped * 1.44269504088896341f), 8);
#else
    vec magic = fill(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    vec n = (clamped * 1.44269504088896341f + magic) - magic;
#endif
    vec r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = fill(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    vec y = p * r * r + r + 1.0f;
#if defined(__AVX512F__)
    y = (vec)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    y = y * (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
    y = x > 88.0f ? fill(INFINITY) : y;
    y = x == x ? y : x;
#endif
    return x < -87.3f ? fill(0.0f) : y;
}
