// Products of so few rows of x that packing the weight is felt, and too many for registers: x is
// packed in its place.
//
// The rows of the weight are the rows of the tiles then, and the columns are those of x: each sum
// adds the same products in the same order as in linear.h, to the same bits.
#pragma once
#include "linear.h"

// Where that is faster (measured with vectors of 512 bits). The rows are 16, 24 or 32 columns.
static inline bool packs_rows(int64_t rows) {
#if defined(__AVX512F__)
    return rows > FEW_ROWS && rows <= COLUMNS;
#else
    (void)rows;
    return false;
#endif
}

constexpr int WEIGHT_ROWS = std::min(11, TILE_ROWS);  // of a tile: 32 are three of them

// Floats that `packed_rows_linear` needs for itself, beside the panel of `packed_rows`.
constexpr int64_t PACKED_ROWS_SCRATCH = 2 * COLUMNS * COLUMNS;

// Floats of the panel of rows of k numbers of any type.
static inline int64_t packed_rows(int64_t k) { return units_of<float>(k) * COLUMNS; }

template <typename T>
static void pack_rows(const Product<T>& p, uint32_t* panel) {
    const T* columns[COLUMNS];
    for (int64_t i = 0; i < COLUMNS; ++i)
        columns[i] = p.x + std::min(i, p.rows - 1) * p.x_stride;
    for (int64_t u = 0; u < units_of<T>(p.k); u += BLOCK) pack_block(columns, u, p.k, panel);
}

// A tile of rows of a weight. Without right columns there can be 16; fewer are taken as if some of
// the right columns were there, whose sums nobody reads.
template <typename T, typename Right>
static inline void weight_tile(const Tile<T>& t, int rows) {
    if constexpr (!std::is_same_v<Right, no_floats>)
        run_tile<T, Right, WEIGHT_ROWS>(t, rows);
    else if (rows == LANES)
        tile<T, LANES, no_floats>(t);
    else
        run_tile<T, half_floats, WEIGHT_ROWS>(t, rows);
}

// `count` rows of a weight against the panel -> sums [count, 32]. Each tile calls for its share of
// the `next` rows.
template <typename T, typename Right>
static void weight_tiles(const T* weight, int64_t k, int count, const uint32_t* panel, float* sums,
                         const T* next) {
    bool alike = k * sizeof(T) % 4096 == 0;  // see `rows_of_tile`
    int most = alike ? std::min(7, WEIGHT_ROWS) : WEIGHT_ROWS;
    for (int row = 0, rows; row < count; row += rows) {
        int left = count - row, tiles = (left + most - 1) / most;
        rows = (left + tiles - 1) / tiles;
        if (std::is_same_v<Right, no_floats> && !alike && left >= LANES) rows = LANES;
        Tile<T> tile{weight + row * k, k, k, panel, sums + row * COLUMNS, false};
        tile.call[0] = next + row * k;
        tile.call[1] = next + row * k + rows * k / 2;
        tile.call_step = rows * 4 / 2;
        weight_tile<T, Right>(tile, rows);
    }
}

// Sums [features, rows] -> [rows, features], 32 of each.
static inline void transpose_sums(const float* sums, int64_t rows, float* out) {
    for (int f = 0; f < COLUMNS; f += LANES)
        for (int64_t r = 0; r < rows; r += LANES) {
            uvec part[LANES];
            for (int i = 0; i < LANES; ++i)
                memcpy(&part[i], sums + (f + i) * COLUMNS + r, sizeof part[i]);
            transpose(part);
            for (int i = 0; i < LANES; ++i)
                memcpy(out + (r + i) * COLUMNS + f, &part[i], sizeof part[i]);
        }
}

template <typename T, typename Right>
static void packed_rows_panel(const Product<T>& p, int64_t first, int64_t last,
                              const FirstRows<T>& next, const uint32_t* panel, float* scratch) {
    float *sums = scratch, *turned = scratch + COLUMNS * COLUMNS;
    int count = (int)(last - first);
    weight_tiles<T, Right>(p.weight + first * p.k, p.k, count, panel, sums, next.left);
    if (p.epilogue == GATED)
        weight_tiles<T, Right>(p.weight + (p.n + first) * p.k, p.k, count, panel,
                               sums + LANES * COLUMNS, next.right);
    transpose_sums(sums, p.rows, turned);
    finish(p, turned, 0, (int)p.rows, first, last);
}

// Features `first` to `last` of rows that `pack_rows` has packed; as `linear`.
template <typename T>
static void packed_rows_linear(const Product<T>& p, int64_t first, int64_t last,
                            const uint32_t* panel, float* scratch) {
    for (int64_t step = features_of_panel(p.epilogue); first < last; first += step) {
        int64_t end = std::min(last, first + step);
        FirstRows<T> next = p.after(end, last);
        if (p.rows <= LANES)
            packed_rows_panel<T, no_floats>(p, first, end, next, panel, scratch);
        else if (p.rows <= COLUMNS - LANES / 2)
            packed_rows_panel<T, half_floats>(p, first, end, next, panel, scratch);
        else
            packed_rows_panel<T, vec>(p, first, end, next, panel, scratch);
    }
}
