// Panels: what rows of x are multiplied with, in the order in which a tile reads it.
//
// A *unit* is 32 bits of a row: one float32 or two neighbouring bfloat16. A *panel* holds the units
// of 32 columns (rows of a weight, keys, or dimensions of values), [units, 32]: a vector is the same
// unit of 16 columns.
#pragma once
#include <algorithm>

#include "elementwise.h"

constexpr int COLUMNS = 2 * LANES;  // of a panel
constexpr int BLOCK = LANES;        // units of a panel that are packed at a time
constexpr int64_t AHEAD = 64;       // units of a column that are called for before they are needed

template <typename T>
constexpr int PER_UNIT = 4 / sizeof(T);

template <typename T>
static inline int64_t units_of(int64_t k) {
    return (k + PER_UNIT<T> - 1) / PER_UNIT<T>;
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (quad_units){__VA_ARGS__})
#endif
typedef uint32_t quad_units __attribute__((vector_size(16)));

static inline void transpose_quad(quad_units* a) {
    quad_units t[4] = {SHUFFLE(a[0], a[1], 0, 4, 1, 5), SHUFFLE(a[0], a[1], 2, 6, 3, 7),
                       SHUFFLE(a[2], a[3], 0, 4, 1, 5), SHUFFLE(a[2], a[3], 2, 6, 3, 7)};
    a[0] = SHUFFLE(t[0], t[2], 0, 1, 4, 5);
    a[1] = SHUFFLE(t[0], t[2], 2, 3, 6, 7);
    a[2] = SHUFFLE(t[1], t[3], 0, 1, 4, 5);
    a[3] = SHUFFLE(t[1], t[3], 2, 3, 6, 7);
}

// 16 rows of 16 units, rows to columns. In line, or they go through memory where GCC thinks a call is
// cheap: a fifth of the time of few rows.
__attribute__((always_inline)) static inline void transpose(uvec* a) {
#if defined(__AVX512F__)
    __m512i t[LANES], *m = (__m512i*)a;
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 4) {
        m[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        m[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        m[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        m[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(m[i], m[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(m[i], m[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(m[i + 8], m[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(m[i + 8], m[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        m[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        m[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        m[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        m[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
#else
    uvec out[LANES];
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < LANES; j += 4) {
            quad_units part[4];
            for (int r = 0; r < 4; ++r) memcpy(&part[r], (uint32_t*)&a[i + r] + j, sizeof part[r]);
            transpose_quad(part);
            for (int r = 0; r < 4; ++r)
                memcpy((uint32_t*)&out[j + r] + i, &part[r], sizeof part[r]);
        }
    memcpy(a, out, sizeof out);
#endif
}

// 16 units of a row from number `start` on; what lies beyond `k` is 0.
template <typename T>
static inline uvec read_units(const T* row, int64_t start, int64_t k) {
    uvec units{};
    constexpr int64_t SIZE = BLOCK * PER_UNIT<T>;
    if (start + SIZE <= k)
        memcpy(&units, row + start, sizeof units);
    else
        memcpy(&units, row + start, (k - start) * sizeof(T));
    return units;
}

// Units `first` to `first + BLOCK` of a panel whose columns are `rows`, of k numbers each.
template <typename T>
static inline void pack_block(const T* const* rows, int64_t first, int64_t k, uint32_t* panel) {
    int64_t start = first * PER_UNIT<T>;
    int count = (int)std::min<int64_t>(BLOCK, units_of<T>(k) - first);
    for (int half = 0; half < COLUMNS; half += LANES) {
        uvec a[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) a[i] = read_units(rows[half + i], start, k);
        transpose(a);
        uint32_t* to = panel + first * COLUMNS + half;
        if (count == BLOCK)
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i) memcpy(to + i * COLUMNS, &a[i], sizeof a[i]);
        else
            for (int i = 0; i < count; ++i) memcpy(to + i * COLUMNS, &a[i], sizeof a[i]);
    }
}

// Pack a panel. Its columns are called for AHEAD units before they are packed, and at the end those
// that are packed next.
template <typename T>
static void pack_panel(const T* const* columns, int64_t k, const T* const* following,
                       uint32_t* panel) {
    int64_t units = units_of<T>(k);
    for (int64_t u = 0; u < units; u += BLOCK) {
        bool here = u + AHEAD < units;
        const T* const* called = here ? columns : following;
        int64_t wanted = (u + AHEAD - (here ? 0 : units)) * PER_UNIT<T>;
        for (int i = 0; i < COLUMNS; ++i) __builtin_prefetch(called[i] + wanted, 0, 2);
        pack_block(columns, u, k, panel);
    }
}

// The unit that PER_UNIT rows have side by side in 32 columns from number `d` on, of which there are
// `count`: 32, or less at the end.
static inline void pack_side_by_side(const float* const* rows, int64_t d, int count, uint32_t* unit) {
    for (int c = 0; c < COLUMNS; c += LANES)
        store((float*)unit + c, take(rows[0] + d + c, std::max(0, std::min(LANES, count - c))));
}
static inline void pack_side_by_side(const bf16* const* rows, int64_t d, int count, uint32_t* unit) {
#if defined(__AVX512BW__)
    alignas(64) static constexpr uint16_t LEFT[2 * LANES] = {
        0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    __mmask32 mask = (__mmask32)((1ull << count) - 1);
    __m512i one = _mm512_maskz_loadu_epi16(mask, rows[0] + d);
    __m512i two = _mm512_maskz_loadu_epi16(mask, rows[1] + d);
    __m512i left = _mm512_load_si512(LEFT);
    __m512i right = _mm512_add_epi16(left, _mm512_set1_epi16(LANES));
    _mm512_storeu_si512(unit, _mm512_permutex2var_epi16(one, left, two));
    _mm512_storeu_si512(unit + LANES, _mm512_permutex2var_epi16(one, right, two));
#else
    for (int c = 0; c < COLUMNS; c += LANES) {
        int part = std::max(0, std::min(LANES, count - c));
        uvec units = (uvec)take(rows[0] + d + c, part) >> 16 | (uvec)take(rows[1] + d + c, part);
        memcpy(unit + c, &units, sizeof units);
    }
#endif
}
