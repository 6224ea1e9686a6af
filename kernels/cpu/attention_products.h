// The products of attention: queries against keys, weights against values.
//
// Many rows meet panels in memory. For a few a panel is not worth writing: its vectors are used as
// they come, while the sums stay in registers. Both add in the same order, to the same bits.
#pragma once
#include "few_rows.h"

constexpr int FEW_QUERIES = 8;  // up to which that is the fastest way

// `rows` of x against a panel, a tile at a time.
template <typename T>
static void run_tiles(const T* x, int64_t stride, int64_t k, const uint32_t* panel, int64_t rows,
                      float* out, bool add) {
    int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, row = 0;
    for (int64_t t = 0; t < tiles; ++t) {
        int count = (int)((rows - row + tiles - t - 1) / (tiles - t));
        run_tile(Tile<T>{x + row * stride, stride, k, panel, out + row * COLUMNS, add}, count);
        row += count;
    }
}

// ROWS of weights, `stride` apart, of as many units as values have; the `count` numbers of these
// from `d` on are added to `out` [ROWS, 32].
template <typename T, int ROWS>
__attribute__((noinline)) static void few_values(const T* weights, int64_t stride, int64_t units,
                                                 const T* const* values, int64_t d, int count,
                                                 float* out) {
    vec sum[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < 2; ++c) sum[r][c] = load(out + r * COLUMNS + c * LANES);
    for (int64_t u = 0; u < units; ++u, values += PER_UNIT<T>, weights += PER_UNIT<T>) {
        uvec part[2];
        pack_side_by_side(values, d, count, (uint32_t*)part);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            uint32_t unit;
            memcpy(&unit, weights + r * stride, sizeof unit);
            for (int c = 0; c < 2; ++c)
                sum[r][c] = add_products<T>(sum[r][c], uvec{} + unit, part[c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < 2; ++c) store(out + r * COLUMNS + c * LANES, sum[r][c]);
}

template <typename T, int ROWS = FEW_QUERIES>
static inline void run_few_values(int rows, const T* weights, int64_t stride, int64_t units,
                                  const T* const* values, int64_t d, int count, float* out) {
    if (rows == ROWS)
        few_values<T, ROWS>(weights, stride, units, values, d, count, out);
    else if constexpr (ROWS > 1)
        run_few_values<T, ROWS - 1>(rows, weights, stride, units, values, d, count, out);
}

// Rows of q, of k numbers, against 32 keys -> out [rows, 32]. `panel` is room for one; `call` is
// called before each half of the work.
template <typename T, typename Call>
static void panel_scores(const T* q, int64_t rows, int64_t k, const T* const* keys,
                         uint32_t* panel, float* out, Call call) {
    if (rows <= FEW_QUERIES && takes_few_rows<T>(rows, k, k)) {
        for (int half = 0; half < COLUMNS; half += LANES) {
            call();
            run_few_rows<T, FEW_QUERIES, false>({q, k, k, keys + half, nullptr, out + half}, rows);
        }
        return;
    }
    call();
    for (int64_t u = 0; u < units_of<T>(k); u += BLOCK) pack_block(keys, u, k, panel);
    call();
    run_tiles(q, k, k, panel, rows, out, false);
}

// Rows of weights, `stride` apart, of `keys` numbers each (a multiple of 4); the numbers of their
// values from `d` on, `count` of them, are added to out [rows, 32]. `call` as above.
template <typename T, typename Call>
static void panel_values(const T* weights, int64_t rows, int64_t stride, int64_t keys,
                         const T* const* values, int64_t d, int count, uint32_t* panel, float* out,
                         Call call) {
    int64_t units = keys / PER_UNIT<T>;
    if (rows <= FEW_QUERIES) {
        for (int64_t half = 0; half < keys; half += keys / 2) {
            call();
            run_few_values((int)rows, weights + half, stride, units / 2, values + half, d, count,
                           out);
        }
        return;
    }
    call();
    for (int64_t u = 0; u < units; ++u)
        pack_side_by_side(values + u * PER_UNIT<T>, d, count, panel + u * COLUMNS);
    call();
    run_tiles(weights, stride, keys, panel, rows, out, true);
}
