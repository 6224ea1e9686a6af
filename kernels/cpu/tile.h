// A tile of products in registers: a few rows of x against a panel of 32 columns.
//
// A *unit* is 32 bits of a row: one float32 or two neighbouring bfloat16. A *panel* holds units of 32
// columns (rows of a weight, keys, or dimensions of values), [units, 32]: a vector is the same unit of
// 16 columns, and a unit of x is multiplied with all of them at once. Every sum adds its units in
// ascending order, whatever the size of the tile: that is what makes a row's result independent of
// the rows that are computed with it.
#pragma once
#include <algorithm>

#include "vectors.h"

constexpr int COLUMNS = 2 * LANES;  // of a panel
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 14;       // the most rows of x at a time: 28 sums in 32 registers
#else
constexpr int TILE_ROWS = 3;        // where a vector takes two registers of 16, or four of 32
#endif
constexpr int BLOCK = LANES;        // units of a panel that are packed at a time
constexpr int64_t AHEAD = 64;       // units of a column that are called for before they are needed

template <typename T>
constexpr int PER_UNIT = 4 / sizeof(T);

template <typename T>
static inline int64_t units_of(int64_t k) {
    return (k + PER_UNIT<T> - 1) / PER_UNIT<T>;
}

// sum + a * b, of all numbers of the units.
template <typename T>
static inline vec add_products(vec sum, uvec a, uvec b);
template <>
inline vec add_products<float>(vec sum, uvec a, uvec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#else
    return sum + (vec)a * (vec)b;
#endif
}
template <>
inline vec add_products<bf16>(vec sum, uvec a, uvec b) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum = sum + (vec)(a << 16) * (vec)(b << 16);
    return sum + (vec)(a & 0xffff0000u) * (vec)(b & 0xffff0000u);
#endif
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

// 16 rows of 16 units, rows to columns.
static inline void transpose(uvec* a) {
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
            for (int r = 0; r < 4; ++r) memcpy((uint32_t*)&out[j + r] + i, &part[r], sizeof part[r]);
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
// that are packed next, which begin `next` numbers after these.
template <typename T>
static void pack_panel(const T* const* columns, int64_t k, int64_t next, uint32_t* panel) {
    int64_t units = units_of<T>(k);
    for (int64_t u = 0; u < units; u += BLOCK) {
        int64_t wanted = u + AHEAD < units ? (u + AHEAD) * PER_UNIT<T>
                                           : next + (u + AHEAD - units) * PER_UNIT<T>;
        for (int i = 0; i < COLUMNS; ++i) __builtin_prefetch(columns[i] + wanted, 0, 2);
        pack_block(columns, u, k, panel);
    }
}

// Rows of x, of k numbers and `stride` apart, against a panel; the sums [rows, 32] go to `out`.
template <typename T>
struct Tile {
    const T* x;
    int64_t stride, k;
    const uint32_t* panel;
    float* out;
    bool add;  // to what is in `out`
    // Memory that is wanted soon: two pieces, read `call_step` bytes further with each unit.
    const char* call[2] = {};
    int64_t call_step = 0;
};

template <typename T, int ROWS>
__attribute__((noinline)) static void tile(const Tile<T>& t) {
    vec sum[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < 2; ++c)
            sum[r][c] = t.add ? load(t.out + r * COLUMNS + c * LANES) : vec{};
    int64_t whole = t.k / PER_UNIT<T>, stride = t.stride;
    const T* x = t.x;
    const uint32_t* panel = t.panel;
    const char *call = t.call[0], *call_too = t.call[1];
    for (int64_t u = 0; u < whole; ++u, x += PER_UNIT<T>, panel += COLUMNS) {
        __builtin_prefetch(call, 0, 2);
        __builtin_prefetch(call_too, 0, 2);
        call += t.call_step;
        call_too += t.call_step;
        uvec left, right;
        memcpy(&left, panel, sizeof left);
        memcpy(&right, panel + LANES, sizeof right);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            uint32_t unit;
            memcpy(&unit, x + r * stride, sizeof unit);
            uvec all = uvec{} + unit;
            sum[r][0] = add_products<T>(sum[r][0], all, left);
            sum[r][1] = add_products<T>(sum[r][1], all, right);
        }
    }
    if (whole * PER_UNIT<T> < t.k)  // an odd bfloat16
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            uint32_t unit = 0;
            memcpy(&unit, x + r * stride, sizeof(T));
            for (int c = 0; c < 2; ++c) {
                uvec half;
                memcpy(&half, panel + c * LANES, sizeof half);
                sum[r][c] = add_products<T>(sum[r][c], uvec{} + unit, half);
            }
        }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < 2; ++c) store(t.out + r * COLUMNS + c * LANES, sum[r][c]);
}

// The tile of any number of rows up to TILE_ROWS.
template <typename T, int ROWS = TILE_ROWS>
static inline void run_tile(const Tile<T>& t, int rows) {
    if (rows == ROWS)
        tile<T, ROWS>(t);
    else if constexpr (ROWS > 1)
        run_tile<T, ROWS - 1>(t, rows);
}
