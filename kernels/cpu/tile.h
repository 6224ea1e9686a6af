// A tile of products in registers: a few rows of x against a panel of 32 columns.
//
// A unit of x is multiplied with that of all columns at once. Every sum adds its units in ascending
// order, whatever the size of the tile: that is what makes a row's result independent of the rows
// that are computed with it.
#pragma once
#include "panel.h"

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 14;  // the most rows of x at a time: 28 sums in 32 registers
#else
constexpr int TILE_ROWS = 3;   // where a vector takes two registers of 16, or four of 32
#endif

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

// Rows of x, of k numbers and `stride` apart, against a panel; the sums [rows, 32] go to `out`.
template <typename T>
struct Tile {
    const T* x;
    int64_t stride, k;
    const uint32_t* panel;
    float* out;
    bool add;  // to what is in `out`
    // Memory that is wanted soon: two pieces, `call_step` bytes further with each unit. (Calling for
    // the address 0 is no way to call for nothing: it is looked up every time.)
    const void* call[2] = {x, x};
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
    const char *call = (const char*)t.call[0], *call_too = (const char*)t.call[1];
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
