// y = x Wᵀ + b for few or many rows of x, with the weight as the checkpoint has it, [N, K] by rows.
//
// Every output is one dot product whose terms are added in one fixed order, whatever the other rows
// are: a row's result does not depend on the batch. Few rows are bound by the reading of W, which
// is read once; for many rows a tile of 4 rows of W meets 6 rows of x in registers.
#pragma once
#include <algorithm>

#include "vectors.h"

template <typename T>
struct Dot {  // products of 16 numbers in float32
    static constexpr int STEP = LANES;
    typedef vec Operand;
    static Operand read(const T* p) { return load(p); }
    static Operand read_first(const T* p, int count) { return load_first(p, count); }
    static vec add(vec sum, Operand a, Operand b) { return sum + a * b; }
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
template <>
struct Dot<bf16> {  // pairs of bfloat16, multiplied and added by one instruction
    static constexpr int STEP = 2 * LANES;
    typedef __m512i Operand;
    static Operand read(const bf16* p) { return _mm512_loadu_si512(p); }
    static Operand read_first(const bf16* p, int count) {
        return _mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), p);
    }
    static vec add(vec sum, Operand a, Operand b) {
        return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
};
#endif

typedef float vec4 __attribute__((vector_size(16)));

// The totals of four vectors.
static inline vec4 four_totals(vec a, vec b, vec c, vec d) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    __m512 A = (__m512)a, B = (__m512)b, C = (__m512)c, D = (__m512)d;
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(A, B), _mm512_unpackhi_ps(A, B));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(C, D), _mm512_unpackhi_ps(C, D));
    __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    __m512 sums = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
    return (vec4)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
    return vec4{total(a), total(b), total(c), total(d)};
#endif
}

static inline void put_four(float* p, vec4 x) { memcpy(p, &x, sizeof x); }
static inline void put_four(bf16* p, vec4 x) {  // as `put` does
    typedef uint32_t uvec4 __attribute__((vector_size(16)));
    typedef uint16_t half4 __attribute__((vector_size(8)));
    uvec4 bits = (uvec4)x;
    uvec4 even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uvec4 nan = (uvec4)((bits & 0x7fffffff) > 0x7f800000);
    half4 half = __builtin_convertvector((even & ~nan) | (nan & 0x7fc0), half4);
    memcpy(p, &half, sizeof half);
}

constexpr int TILE_ROWS = 6;      // of x
constexpr int TILE_FEATURES = 4;  // rows of W

// ROWS rows of x against FEATURES (a multiple of 4) rows of W.
template <typename T, int ROWS, int FEATURES>
static inline void linear_tile(const T* x, const T* w, const T* bias, T* y, int64_t k, int64_t n) {
    typedef Dot<T> D;
    vec sum[ROWS][FEATURES];
    for (int r = 0; r < ROWS; ++r)
        for (int f = 0; f < FEATURES; ++f) sum[r][f] = vec{};
    int64_t i = 0;
    for (; i + D::STEP <= k; i += D::STEP) {
        typename D::Operand weights[FEATURES];
#pragma GCC unroll 8
        for (int f = 0; f < FEATURES; ++f) weights[f] = D::read(w + f * k + i);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            typename D::Operand row = D::read(x + r * k + i);
#pragma GCC unroll 8
            for (int f = 0; f < FEATURES; ++f) sum[r][f] = D::add(sum[r][f], row, weights[f]);
        }
    }
    if (i < k) {
        int rest = (int)(k - i);
        typename D::Operand weights[FEATURES];
        for (int f = 0; f < FEATURES; ++f) weights[f] = D::read_first(w + f * k + i, rest);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            typename D::Operand row = D::read_first(x + r * k + i, rest);
#pragma GCC unroll 8
            for (int f = 0; f < FEATURES; ++f) sum[r][f] = D::add(sum[r][f], row, weights[f]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int f = 0; f < FEATURES; f += 4) {
            vec4 out = four_totals(sum[r][f], sum[r][f + 1], sum[r][f + 2], sum[r][f + 3]);
            if (bias)
                for (int j = 0; j < 4; ++j) out[j] += to_float(bias[f + j]);
            put_four(y + r * n + f, out);
        }
}

// Features that are no multiple of four, one at a time.
template <typename T>
static void linear_single(const T* x, const T* w, const T* bias, T* y, int64_t k) {
    typedef Dot<T> D;
    vec sum{};
    int64_t i = 0;
    for (; i + D::STEP <= k; i += D::STEP) sum = D::add(sum, D::read(x + i), D::read(w + i));
    if (i < k)
        sum = D::add(sum, D::read_first(x + i, (int)(k - i)), D::read_first(w + i, (int)(k - i)));
    float out = four_totals(sum, vec{}, vec{}, vec{})[0];
    put(y, bias ? out + to_float(*bias) : out);
}

template <typename T, int ROWS>
static void linear_rows(const T* x, const T* w, const T* bias, T* y, int64_t k, int64_t n,
                        int64_t count) {
    int64_t f = 0;
    if (ROWS == 1)
        for (; f + 8 <= count; f += 8)
            linear_tile<T, ROWS, ROWS == 1 ? 8 : 4>(x, w + f * k, bias ? bias + f : 0, y + f, k, n);
    for (; f + 4 <= count; f += 4)
        linear_tile<T, ROWS, 4>(x, w + f * k, bias ? bias + f : 0, y + f, k, n);
    for (; f < count; ++f)
        for (int r = 0; r < ROWS; ++r)
            linear_single(x + r * k, w + f * k, bias ? bias + f : 0, y + r * n + f, k);
}

// Features `first` to `last` of all rows: x [m, k], w [n, k], y [m, n].
template <typename T>
static void linear(const T* x, const T* w, const T* bias, T* y, int64_t m, int64_t k, int64_t n,
                   int64_t first, int64_t last) {
    w += first * k;
    y += first;
    if (bias) bias += first;
    int64_t count = last - first, row = 0;
    // The tile of x stays in the first cache while the features pass; they stay in the second.
    for (; row + TILE_ROWS <= m; row += TILE_ROWS)
        linear_rows<T, TILE_ROWS>(x + row * k, w, bias, y + row * n, k, n, count);
    x += row * k;
    y += row * n;
    switch (m - row) {
        case 5: return linear_rows<T, 5>(x, w, bias, y, k, n, count);
        case 4: return linear_rows<T, 4>(x, w, bias, y, k, n, count);
        case 3: return linear_rows<T, 3>(x, w, bias, y, k, n, count);
        case 2: return linear_rows<T, 2>(x, w, bias, y, k, n, count);
        case 1: return linear_rows<T, 1>(x, w, bias, y, k, n, count);
    }
}
