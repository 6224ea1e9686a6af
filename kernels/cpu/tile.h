// A tile of products in registers: a few rows of x against a panel of 32 columns.
//
// A unit of x is multiplied with that of all columns at once. Every sum adds its units in ascending
// order, whatever the size of the tile: that is what makes a row's result independent of the rows
// that are computed with it.
#pragma once
#include <type_traits>

#include "panel.h"

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 14;  // the most rows of x at a time: 28 sums in 32 registers
#else
constexpr int TILE_ROWS = 3;   // where a vector takes two registers of 16, or four of 32
#endif

// Half a vector: 8 columns, which cost half where a vector takes a pipeline twice (Zen 4).
typedef float half_floats __attribute__((vector_size(32)));
typedef uint32_t half_units __attribute__((vector_size(32)));
struct no_floats {};  // where the right columns are left out
template <typename Sum>
using Units = std::conditional_t<sizeof(Sum) == sizeof(vec), uvec, half_units>;

template <typename Sum>
static inline Units<Sum> first_lanes(uvec all) {
    Units<Sum> some;
    memcpy(&some, &all, sizeof some);
    return some;
}

// sum + a * b, of all numbers of the units.
template <typename T, typename Sum>
static inline Sum add_products(Sum sum, Units<Sum> a, Units<Sum> b) {
    if constexpr (std::is_same_v<T, float>) return sum + (Sum)a * (Sum)b;
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
    else if constexpr (sizeof(Sum) == sizeof(vec))
        return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    else
        return (Sum)_mm256_dpbf16_ps((__m256)sum, (__m256bh)a, (__m256bh)b);
#else
    sum = sum + (Sum)(a << 16) * (Sum)(b << 16);
    return sum + (Sum)(a & 0xffff0000u) * (Sum)(b & 0xffff0000u);
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

// One unit of the rows of x against that of all columns.
template <typename T, int ROWS, typename Right>
static inline void add_unit(const T* x, int64_t stride, int64_t bytes, const uint32_t* panel,
                            vec* left, Right* right) {
    uvec a;
    memcpy(&a, panel, sizeof a);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        uint32_t unit = 0;
        memcpy(&unit, x + r * stride, bytes);
        left[r] = add_products<T>(left[r], uvec{} + unit, a);
        if constexpr (!std::is_same_v<Right, no_floats>) {
            Units<Right> b;
            memcpy(&b, panel + LANES, sizeof b);
            right[r] = add_products<T>(right[r], first_lanes<Right>(uvec{} + unit), b);
        }
    }
}

// Without the last 8 columns where the right sums are halves.
template <typename T, int ROWS, typename Right = vec>
__attribute__((noinline)) static void tile(const Tile<T>& t) {
    constexpr size_t RIGHT = std::is_same_v<Right, no_floats> ? 0 : sizeof(Right);
    vec left[ROWS];
    Right right[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        left[r] = t.add ? load(t.out + r * COLUMNS) : vec{};
        right[r] = Right{};
        if (t.add) memcpy(&right[r], t.out + r * COLUMNS + LANES, RIGHT);
    }
    int64_t whole = t.k / PER_UNIT<T>, stride = t.stride;
    const T* x = t.x;
    const uint32_t* panel = t.panel;
    const char *call = (const char*)t.call[0], *call_too = (const char*)t.call[1];
    for (int64_t u = 0; u < whole; ++u, x += PER_UNIT<T>, panel += COLUMNS) {
        __builtin_prefetch(call, 0, 2);
        __builtin_prefetch(call_too, 0, 2);
        call += t.call_step;
        call_too += t.call_step;
        add_unit<T, ROWS, Right>(x, stride, sizeof(uint32_t), panel, left, right);
    }
    if (whole * PER_UNIT<T> < t.k)  // an odd bfloat16
        add_unit<T, ROWS, Right>(x, stride, sizeof(T), panel, left, right);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        store(t.out + r * COLUMNS, left[r]);
        memcpy(t.out + r * COLUMNS + LANES, &right[r], RIGHT);
    }
}

// The tile of any number of rows up to TILE_ROWS.
template <typename T, typename Right = vec, int ROWS = TILE_ROWS>
static inline void run_tile(const Tile<T>& t, int rows) {
    if (rows == ROWS)
        tile<T, ROWS, Right>(t);
    else if constexpr (ROWS > 1)
        run_tile<T, Right, ROWS - 1>(t, rows);
}
