// The products of attention: queries against keys, weights against values.
//
// Many rows meet panels in memory. For a few a panel is not worth writing: its vectors are used as
// they come, while the sums stay in registers. Both add in the same order, to the same bits.
#pragma once
#include "few_rows.h"

constexpr int FEW_QUERIES = 8;  // up to which that is the fastest way

// Keys or values in a row, and as many that are wanted next: one for each, or two.
//
// A thread waits for few lines at a time that it asks for itself, and the processor foresees no page
// of another sequence. Called for one by one, among the work with the block before them, they come
// at nearly the rate of memory; in bursts of some dozens at two thirds of it.
template <typename T>
struct KeyRows {
    const T *const *rows, *const *next, *const *next_too;  // next_too: or null

    // The line of what is wanted for row `i` that begins with number `d`.
    void call(int64_t i, int64_t d) const {
        __builtin_prefetch(next[i] + d, 0, 2);
        if (next_too) __builtin_prefetch(next_too[i] + d, 0, 2);
    }
};

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

// The same for `few_rows`, one or two for each column.
template <typename T>
struct CallsOne {
    const T* const* next;
    void operator()(int i, int64_t start) const { __builtin_prefetch(next[i] + start, 0, 2); }
};
template <typename T>
struct CallsTwo {
    CallsOne<T> one, too;
    void operator()(int i, int64_t start) const { one(i, start), too(i, start); }
};

template <typename T>
constexpr int64_t LINE = 64 / sizeof(T);  // numbers of a line of the caches

// The numbers from `d` on of neighbouring rows of values, 32 or at the end fewer.
template <typename T>
struct ValueColumns {
    KeyRows<T> values;
    int64_t d;
    int count;
    bool calls;  // for the same numbers of the next values

    // Pack unit `u` of them.
    void pack(int64_t u, uint32_t* unit) const {
        if (calls)
            for (int64_t i = u * PER_UNIT<T>; i < (u + 1) * PER_UNIT<T>; ++i)
                for (int64_t at = d; at < d + COLUMNS; at += LINE<T>) values.call(i, at);
        pack_side_by_side(values.rows + u * PER_UNIT<T>, d, count, unit);
    }
};

// ROWS of weights, `stride` apart, of as many units as values have; what comes of these is added to
// `out` [ROWS, 32].
template <typename T, int ROWS>
__attribute__((noinline)) static void few_values(const T* weights, int64_t stride, int64_t units,
                                                 const ValueColumns<T>& values, float* out) {
    vec sum[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < 2; ++c) sum[r][c] = load(out + r * COLUMNS + c * LANES);
    for (int64_t u = 0; u < units; ++u, weights += PER_UNIT<T>) {
        uvec part[2];
        values.pack(u, (uint32_t*)part);
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
                                  const ValueColumns<T>& values, float* out) {
    if (rows == ROWS)
        few_values<T, ROWS>(weights, stride, units, values, out);
    else if constexpr (ROWS > 1)
        run_few_values<T, ROWS - 1>(rows, weights, stride, units, values, out);
}

// Rows of q, of k numbers, against 32 keys -> out [rows, 32]. `panel` is room for one.
template <typename T>
static void panel_scores(const T* q, int64_t rows, int64_t k, const KeyRows<T>& keys,
                         uint32_t* panel, float* out) {
    if (rows <= FEW_QUERIES && takes_few_rows<T>(rows, k, k)) {
        for (int half = 0; half < COLUMNS; half += LANES) {
            FewRows<T> few{q, k, k, keys.rows + half, out + half};
            CallsOne<T> one{keys.next + half};
            if (keys.next_too)
                run_few_rows<T, FEW_QUERIES>(few, rows,
                                             CallsTwo<T>{one, {keys.next_too + half}});
            else
                run_few_rows<T, FEW_QUERIES>(few, rows, one);
        }
        return;
    }
    for (int64_t u = 0; u < units_of<T>(k); u += BLOCK) {
        for (int i = 0; i < COLUMNS; ++i) keys.call(i, u * PER_UNIT<T>);
        pack_block(keys.rows, u, k, panel);
    }
    run_tiles(q, k, k, panel, rows, out, false);
}

// Rows of weights, `stride` apart, of `keys` numbers each (a multiple of 4), against as many values
// -> added to out [rows, 32].
template <typename T>
static void panel_values(const T* weights, int64_t rows, int64_t stride, int64_t keys,
                         const ValueColumns<T>& values, uint32_t* panel, float* out) {
    int64_t units = keys / PER_UNIT<T>;
    if (rows <= FEW_QUERIES)
        return run_few_values((int)rows, weights, stride, units, values, out);
    for (int64_t u = 0; u < units; ++u) values.pack(u, panel + u * COLUMNS);
    run_tiles(weights, stride, keys, panel, rows, out, true);
}
