// y = x Wᵀ + b for few or many rows of x, with the weight as the checkpoint has it, [N, K] by rows.
//
// 32 rows of W at a time are packed into a panel, which the tiles of all rows find in the second
// cache: W is read from memory once. Few rows of x meet them as they lie (few_rows.h), and some
// more are packed themselves (packed_rows.h).
#pragma once
#include "activations.h"
#include "few_rows.h"

enum Epilogue { PLAIN, ACTIVATED, GATED };

static inline int features_of_panel(int epilogue) { return epilogue == GATED ? LANES : COLUMNS; }

// The rows of a weight that are the columns of a panel: 16 neighbours, and 16 more.
template <typename T>
struct FirstRows {
    const T *left = nullptr, *right = nullptr;  // null: not known
    int64_t k = 0;

    FirstRows() = default;
    FirstRows(const T* weight, int64_t first, int64_t k, int64_t n, int epilogue)
        : left(weight + first * k), right(left + (epilogue == GATED ? n : LANES) * k), k(k) {}

    void columns(const T** columns) const {
        for (int i = 0; i < LANES; ++i) {
            columns[i] = left + i * k;
            columns[LANES + i] = right + i * k;
        }
    }
};

template <typename T>
struct Product {
    const T *x, *weight, *bias;  // x [rows, k], weight [n, k] ([2 n, k]: gates, ups); bias or null
    T* y;                        // [rows, n]
    int64_t rows, k, n;
    int epilogue, activation;    // of what is stored: y, act(y), or act(gate) * up
    int64_t x_stride = k;        // from row to row of x
    FirstRows<T> next{};         // what this thread multiplies with next

    // What comes after the features before `end`, of those before `last`.
    FirstRows<T> after(int64_t end, int64_t last) const {
        return end < last || !next.left ? FirstRows<T>(weight, end, k, n, epilogue) : next;
    }
};

constexpr int64_t CHUNK = 2048;  // the most units of a panel: it stays in the second cache

// Floats that `linear` needs for itself.
static inline int64_t linear_scratch(int64_t rows) {
    return (CHUNK + std::max<int64_t>(rows, TILE_ROWS)) * COLUMNS;
}

// The sums [rows, 32] of the features from `first` on -> y. Rounded where the torch modules round.
template <typename T>
static void finish(const Product<T>& p, const float* sums, int64_t row, int rows, int64_t first,
                   int64_t last) {
    int64_t half = p.epilogue == GATED ? p.n : LANES;  // from the left columns to the right ones
    int left = (int)std::min<int64_t>(LANES, last - first);
    int right = p.epilogue == GATED ? left : (int)std::min<int64_t>(LANES, last - first - LANES);
    vec left_bias{}, right_bias{};
    if (p.bias) left_bias = take(p.bias + first, left);
    if (p.bias && right > 0) right_bias = take(p.bias + first + half, right);
    for (int r = 0; r < rows; ++r) {
        T* y = p.y + (row + r) * p.n + first;
        vec a = load(sums + r * COLUMNS) + left_bias;
        vec b = load(sums + r * COLUMNS + LANES) + right_bias;
        if (p.epilogue == PLAIN) {
            give(y, a, left);
            if (right > 0) give(y + LANES, b, right);
        } else if (p.epilogue == ACTIVATED) {
            give(y, activate_any(rounded<T>(a), p.activation), left);
            if (right > 0) give(y + LANES, activate_any(rounded<T>(b), p.activation), right);
        } else {
            give(y, rounded<T>(activate_any(rounded<T>(a), p.activation)) * rounded<T>(b), left);
        }
    }
}

// The rows of W that are the columns of a panel; the last one again where there are fewer.
template <typename T>
static void columns_of(const Product<T>& p, int64_t first, int64_t last, const T** columns) {
    for (int i = 0; i < LANES; ++i) {
        int64_t left = std::min(first + i, last - 1);
        int64_t right = p.epilogue == GATED ? p.n + left : std::min(first + LANES + i, last - 1);
        columns[i] = p.weight + left * p.k;
        columns[LANES + i] = p.weight + right * p.k;
    }
}

// Each tile calls for its share of the next panel, whose rows are neighbours.
template <typename T>
static void call_for_next(const T* const* next, int64_t t, int64_t tiles, Tile<T>& tile) {
    int64_t share = LANES * tile.k * sizeof(T) / tiles;
    tile.call_step = LANES * 4 / tiles;
    for (int half = 0; half < 2; ++half)
        tile.call[half] = (const char*)next[half * LANES] + t * share;
}

// The most rows of a tile: half of them where all rows have their numbers in the same places of the
// first cache, which holds eight such lines at a time.
static inline int64_t rows_of_tile(int64_t stride_bytes) {
    return stride_bytes % 4096 ? TILE_ROWS : (TILE_ROWS + 1) / 2;
}

// Features `first` to `last`, of one panel at most, of all rows. `next` are the columns after them.
template <typename T>
static void linear_panel(const Product<T>& p, int64_t first, int64_t last, const FirstRows<T>& next,
                         float* scratch) {
    uint32_t* panel = (uint32_t*)scratch;
    float* sums = scratch + CHUNK * COLUMNS;
    int64_t most = rows_of_tile(p.x_stride * sizeof(T));
    int64_t tiles = (p.rows + most - 1) / most, chunk = CHUNK * PER_UNIT<T>;
    const T *columns[COLUMNS], *following[COLUMNS];
    columns_of(p, first, last, columns);
    for (int64_t start = 0; start < p.k; start += chunk) {
        int64_t k = std::min(chunk, p.k - start), row = 0;
        bool more = start + k < p.k;
        if (more)
            for (int i = 0; i < COLUMNS; ++i) following[i] = columns[i] + k;
        else
            next.columns(following);
        pack_panel(columns, k, following, panel);
        for (int64_t t = 0; t < tiles; ++t) {
            int count = (int)((p.rows - row + tiles - t - 1) / (tiles - t));
            float* out = sums + (chunk < p.k ? row * COLUMNS : 0);
            Tile<T> tile{p.x + row * p.x_stride + start, p.x_stride, k, panel, out, start > 0};
            if (k == p.k) call_for_next(following, t, tiles, tile);
            run_tile(tile, count);
            if (!more) finish(p, out, row, count, first, last);
            row += count;
        }
        std::copy(following, following + COLUMNS, columns);
    }
}

// The same of few rows.
template <typename T>
static void few_rows_panel(const Product<T>& p, int64_t first, int64_t last,
                           const FirstRows<T>& next, float* sums) {
    const T *columns[COLUMNS], *following[COLUMNS];
    columns_of(p, first, last, columns);
    next.columns(following);
    for (int half = 0; half < COLUMNS; half += LANES)
        run_few_rows<T, FEW_ROWS>({p.x, p.x_stride, p.k, columns + half, sums + half}, p.rows,
                                  CallsAhead<T>{columns + half, following + half, p.k});
    finish(p, sums, 0, (int)p.rows, first, last);
}

// Features `first` to `last` of all rows; scratch as `linear_scratch` says.
template <typename T>
static void linear(const Product<T>& p, int64_t first, int64_t last, float* scratch) {
    int64_t step = features_of_panel(p.epilogue);
    for (; first < last; first += step) {
        int64_t end = std::min(last, first + step);
        FirstRows<T> next = p.after(end, last);
        if (takes_few_rows<T>(p.rows, p.k, p.x_stride))
            few_rows_panel(p, first, end, next, scratch);
        else
            linear_panel(p, first, end, next, scratch);
    }
}

// A product's rows of x, put where they do not lie in the same places of the first cache, if they
// do; `room` is for `spread_rows_scratch` floats.
static inline int64_t spread_rows_scratch(int64_t k) { return FEW_ROWS * (k + LANES); }

template <typename T>
static Product<T> spread_rows(Product<T> p, float* room, bool copy) {
    if (p.rows == 1 || p.rows > FEW_ROWS || p.x_stride * sizeof(T) % 4096) return p;
    int64_t stride = p.k + LANES * PER_UNIT<T>;
    for (int64_t r = 0; copy && r < p.rows; ++r)
        memcpy((T*)room + r * stride, p.x + r * p.x_stride, p.k * sizeof(T));
    p.x = (T*)room;
    p.x_stride = stride;
    return p;
}
