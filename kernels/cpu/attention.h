// Attention of a few neighbouring tokens of a sequence over its pages, read where they lie.
//
// Softmax goes along with the reading (online; Milakov and Gimelshein 2018, Dao et al. 2022): keys
// come in blocks that begin at multiples of KEYS, and each block adds its part to the sums of every
// query. Where the blocks begin depends on no query, and keys that a query does not see add nothing:
// a token's result depends on its own sequence only, whoever is computed with it.
#pragma once
#include "tile.h"

struct Attention {
    int64_t heads, kv_heads, head_dim, page_size;
    int64_t page_shift;     // page_size == 1 << page_shift; -1 if it is no power of two
    int64_t window, chunk;  // 0: none
    float scale, softcap;   // softcap 0: none
    const float* sinks;     // [heads] or null
    const float* slopes;    // [heads] of ALiBi, or null
    int64_t rounded;        // 1: ALiBi as Falcon has it, see kernels/attention_options.py

    int64_t group() const { return heads / kv_heads; }
    int64_t first_key(int64_t position) const {
        int64_t first = 0;
        if (window) first = std::max(first, position - window + 1);
        if (chunk) first = std::max(first, position - position % chunk);
        return first;
    }
};

constexpr int64_t KEYS = 2 * COLUMNS;  // of a block
constexpr int QUERY_TOKENS = 16;       // the most tokens at a time
constexpr float LOWEST = -1e30f;       // under every score

// Tokens of one sequence: their heads, and where the results go, `stride` and `out_stride` apart.
template <typename T>
struct Queries {
    const T* q;
    T* out;
    int64_t stride, out_stride;
    const int32_t* pages;
    int count;
    int64_t positions[QUERY_TOKENS];
};

// Where a thread keeps the state of `heads` key heads with `rows` queries each.
template <typename T>
struct Sums {
    int64_t rows, panels;
    uint32_t* panel;  // of keys or values
    T* q;             // [heads, rows, head_dim]
    float* values;    // [heads, panels, rows, 32]
    float* scores;    // [2, rows, 32] of one key head
    T* weights;       // [rows, KEYS]
    float* best;      // [heads, rows] the highest score so far
    float* whole;     // [heads, rows, 16] sums of weights

    Sums(const Attention& a, int64_t heads, int64_t rows, float* scratch)
        : rows(rows), panels((a.head_dim + COLUMNS - 1) / COLUMNS) {
        auto take = [&](int64_t count) {
            float* place = scratch;
            scratch += (count + LANES - 1) / LANES * LANES;
            return place;
        };
        panel = (uint32_t*)take(std::max(a.head_dim, KEYS) * COLUMNS);
        q = (T*)take(heads * rows * a.head_dim);
        values = take(heads * panels * rows * COLUMNS);
        scores = take(rows * KEYS);
        weights = (T*)take(rows * KEYS);
        best = take(heads * rows);
        whole = take(heads * rows * LANES);
        end = scratch;
    }
    float* end;
};

// Floats that `attend` needs for itself.
static inline int64_t attention_scratch(const Attention& a) {
    float* none = nullptr;
    return std::max(Sums<float>(a, a.kv_heads, a.group(), none).end,
                    Sums<float>(a, 1, a.group() * QUERY_TOKENS, none).end) - none;
}

// Where key or value `j` of a sequence is.
template <typename T>
static inline const T* at_position(const Attention& a, const T* cache, const int32_t* pages,
                                   int64_t kv, int64_t j) {
    int64_t page = a.page_shift < 0 ? j / a.page_size : j >> a.page_shift;
    int64_t slot = (pages[page] - page) * a.page_size + j;
    return cache + (slot * a.kv_heads + kv) * a.head_dim;
}

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

// The keys of a block that any query sees.
struct Block {
    int64_t start, first, last;  // `start` is a multiple of KEYS; `last` is one of them
    int64_t panel() const { return (first - start) / COLUMNS; }
    int64_t panels() const { return (last - start) / COLUMNS + 1; }
};

template <typename T>
static void block_scores(const Attention& a, const T* keys, const int32_t* pages, int64_t kv,
                         const Block& b, const T* q, const Sums<T>& s) {
    for (int64_t p = b.panel(); p < b.panels(); ++p) {
        const T* columns[COLUMNS];
        for (int i = 0; i < COLUMNS; ++i) {  // another key again where there is none
            int64_t key = b.start + p * COLUMNS + i;
            key = std::max(b.first, std::min(b.last, key));
            columns[i] = at_position(a, keys, pages, kv, key);
        }
        for (int64_t u = 0; u < units_of<T>(a.head_dim); u += BLOCK)
            pack_block(columns, u, a.head_dim, s.panel);
        run_tiles(q, a.head_dim, a.head_dim, s.panel, s.rows, s.scores + p * s.rows * COLUMNS,
                  false);
    }
}

// Scores `at` to `at + 16` of a query, of keys of which it sees `first` to `position`.
static inline vec final_scores(const Attention& a, vec score, int64_t head, int64_t at,
                               int64_t first, int64_t position) {
    constexpr vec LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    score = score * a.scale;
    if (a.softcap != 0.0f) score = a.softcap * hyperbolic_tangent(score / a.softcap);
    if (a.slopes && a.rounded)
        score = score + a.scale * rounded<bf16>(a.slopes[head] * rounded<bf16>(LANE + (float)at));
    else if (a.slopes)
        score = score + a.slopes[head] * (LANE + (float)(at - position));
    if (at < first) score = LANE < (float)(first - at) ? fill(-INFINITY) : score;
    if (at + LANES - 1 > position)
        score = LANE > (float)(position - at) ? fill(-INFINITY) : score;
    return score;
}

// A block's scores -> weights beside the highest score so far; the sums before become as small.
template <typename T>
static void block_weights(const Attention& a, const Queries<T>& queries, int64_t kv,
                          const Block& b, const Sums<T>& s, float* values, float* best,
                          float* whole) {
    for (int64_t r = 0; r < s.rows; ++r) {
        int64_t position = queries.positions[r / a.group()], first = a.first_key(position);
        int64_t head = kv * a.group() + r % a.group();
        vec score[KEYS / LANES], top = fill(best[r]), sum{};
        for (int v = 0; v < KEYS / LANES; ++v) {
            int64_t p = v * LANES / COLUMNS, lane = v * LANES % COLUMNS;
            score[v] = fill(-INFINITY);
            if (p >= b.panel() && p < b.panels())
                score[v] = final_scores(a, load(s.scores + (p * s.rows + r) * COLUMNS + lane), head,
                                        b.start + v * LANES, first, position);
            top = maximum(score[v], top);
        }
        float highest = largest(top);
        for (int v = 0; v < KEYS / LANES; ++v) {
            vec weight = exponential(score[v] - highest);
            sum += weight;
            store(s.weights + r * KEYS + v * LANES, weight);
        }
        vec before = load(whole + r * LANES);
        if (highest > best[r]) {
            vec less = exponential(fill(best[r] - highest));
            before = before * less;
            for (int64_t p = 0; p < s.panels; ++p)
                for (int c = 0; c < COLUMNS; c += LANES) {
                    float* place = values + (p * s.rows + r) * COLUMNS + c;
                    store(place, load(place) * less);
                }
            best[r] = highest;
        }
        store(whole + r * LANES, before + sum);
    }
}

template <typename T>
static void block_values(const Attention& a, const T* cache, const int32_t* pages, int64_t kv,
                         const Block& b, const Sums<T>& s, float* values) {
    int64_t begin = b.panel() * COLUMNS, keys = b.panels() * COLUMNS - begin;
    const T* rows[KEYS];
    for (int64_t j = 0; j < keys; ++j) {
        int64_t key = std::max(b.first, std::min(b.last, b.start + begin + j));
        rows[j] = at_position(a, cache, pages, kv, key);
    }
    for (int64_t p = 0; p < s.panels; ++p) {
        int64_t d = p * COLUMNS;
        int count = (int)std::min<int64_t>(COLUMNS, a.head_dim - d);
        for (int64_t u = 0; u < keys / PER_UNIT<T>; ++u)
            pack_side_by_side(rows + u * PER_UNIT<T>, d, count, s.panel + u * COLUMNS);
        run_tiles(s.weights + begin, KEYS, keys, s.panel, s.rows, values + p * s.rows * COLUMNS,
                  true);
    }
}

// Key heads `kv` to `kv + kv_count` and their queries, of tokens of one sequence.
template <typename T>
static void attend(const Attention& a, const Queries<T>& queries, const T* keys, const T* values,
                   int64_t kv, int64_t kv_count, float* scratch) {
    int64_t group = a.group(), rows = queries.count * group, width = group * a.head_dim;
    Sums<T> s(a, kv_count, rows, scratch);
    int64_t size = s.panels * rows * COLUMNS, first = INT64_MAX, last = 0;
    memset(s.values, 0, kv_count * size * sizeof(float));
    memset(s.whole, 0, kv_count * rows * LANES * sizeof(float));
    for (int64_t i = 0; i < kv_count * rows; ++i) {
        const float* sink = a.sinks ? a.sinks + kv * group + i / rows * group + i % group : nullptr;
        s.best[i] = sink ? *sink : LOWEST;
        s.whole[i * LANES] = sink ? 1.0f : 0.0f;
    }
    for (int t = 0; t < queries.count; ++t) {
        first = std::min(first, a.first_key(queries.positions[t]));
        last = std::max(last, queries.positions[t]);
        for (int64_t h = 0; h < kv_count; ++h)
            memcpy(s.q + (h * rows + t * group) * a.head_dim,
                   queries.q + t * queries.stride + (kv + h) * width, width * sizeof(T));
    }
    for (int64_t start = first / KEYS * KEYS; start <= last; start += KEYS) {
        Block b{start, std::max(first, start), std::min(last, start + KEYS - 1)};
        for (int64_t h = 0; h < kv_count; ++h) {
            block_scores(a, keys, queries.pages, kv + h, b, s.q + h * rows * a.head_dim, s);
            block_weights(a, queries, kv + h, b, s, s.values + h * size, s.best + h * rows,
                          s.whole + h * rows * LANES);
            block_values(a, values, queries.pages, kv + h, b, s, s.values + h * size);
        }
    }
    for (int64_t i = 0; i < kv_count * rows; ++i) {
        int64_t h = i / rows, r = i % rows;
        T* out = queries.out + r / group * queries.out_stride + (kv + h) * width;
        out += r % group * a.head_dim;
        float whole = total(load(s.whole + i * LANES));
        by_lanes(a.head_dim, [&](int64_t d, int n) {
            const float* sums = s.values + h * size + (d / COLUMNS * rows + r) * COLUMNS;
            give(out + d, load(sums + d % COLUMNS) / whole, n);
        });
    }
}
