// Attention of a few neighbouring tokens of a sequence over its pages, read where they lie.
//
// Softmax goes along with the reading (online; Milakov and Gimelshein 2018, Dao et al. 2022): keys
// come in blocks that begin at multiples of KEYS, and each block adds its part to the sums of every
// query. Where the blocks begin depends on no query, and keys that a query does not see add nothing:
// a token's result depends on its own sequence only, whoever is computed with it.
#pragma once
#include "attention_products.h"
#include "attention_state.h"

// The rows of a block's keys or values in a cache, one key head of them, and those of the next one.
template <typename T>
struct BlockRows {
    const T *rows[KEYS], *next[KEYS];
    int64_t next_count;
    bool two;  // the next block has two panels, this one has one

    BlockRows(const Attention& a, const T* cache, const Block& b, int64_t kv, const Block& then,
              int64_t then_kv)
        : next_count(then.count()), two(b.count() < then.count()) {
        for (int64_t j = 0; j < b.count(); ++j)
            rows[j] = cache + b.places[b.panel() * COLUMNS + j] + kv * a.head_dim;
        for (int64_t j = 0; j < KEYS; ++j)  // `count` is a power of two
            next[j] = cache + then.places[then.panel() * COLUMNS + (j & (next_count - 1))] +
                      then_kv * a.head_dim;
    }
    // Those of panel `p` of the block, counted from its first one.
    KeyRows<T> panel(int64_t p) const {
        return {rows + p * COLUMNS, next + p * COLUMNS, two ? next + COLUMNS : nullptr};
    }
    // Share `part` of `parts` of the next rows, their numbers from `d` on.
    void call(int64_t part, int64_t parts, int64_t d, int64_t head_dim) const {
        for (int64_t j = next_count * part / parts; j < next_count * (part + 1) / parts; ++j)
            for (int64_t at = d; at < head_dim; at += LINE<T>)
                __builtin_prefetch(next[j] + at, 0, 2);
    }
};

template <typename T>
static void block_scores(const Attention& a, const BlockRows<T>& keys, const Block& b, const T* q,
                         const Sums<T>& s) {
    for (int64_t p = 0; p < b.count() / COLUMNS; ++p)
        panel_scores(q, s.rows, a.head_dim, keys.panel(p), s.panel,
                     s.scores + (b.panel() + p) * s.rows * COLUMNS);
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

// Up to which number of a value's the next values are called for by `block_values`; those behind it
// are by `block_weights`, so that it is as much at any time.
static inline int64_t called_beside_values(int64_t panels) { return (panels + 1) / 2 * COLUMNS; }

// A block's scores -> weights beside the highest score so far; the sums before become as small.
template <typename T>
static void block_weights(const Attention& a, const Queries<T>& queries, int64_t kv,
                          const BlockRows<T>& rows, const Block& b, const Sums<T>& s,
                          float* values, float* best, float* whole) {
    for (int64_t r = 0; r < s.rows; ++r) {
        rows.call(r, s.rows, called_beside_values(s.panels), a.head_dim);
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
static void block_values(const Attention& a, const BlockRows<T>& rows, const Block& b,
                         const Sums<T>& s, float* values) {
    for (int64_t p = 0; p < s.panels; ++p) {
        int64_t d = p * COLUMNS;
        int count = (int)std::min<int64_t>(COLUMNS, a.head_dim - d);
        panel_values(s.weights + b.panel() * COLUMNS, s.rows, KEYS, b.count(),
                     ValueColumns<T>{rows.panel(0), d, count, d < called_beside_values(s.panels)},
                     s.panel, values + p * s.rows * COLUMNS);
    }
}

// The state of no key seen yet; the queries side by side.
template <typename T>
static void begin_sums(const Attention& a, const Queries<T>& queries, int64_t kv, int64_t kv_count,
                       const Sums<T>& s) {
    int64_t group = a.group(), width = group * a.head_dim;
    memset(s.values, 0, kv_count * s.panels * s.rows * COLUMNS * sizeof(float));
    memset(s.whole, 0, kv_count * s.rows * LANES * sizeof(float));
    for (int64_t i = 0; i < kv_count * s.rows; ++i) {
        const float* sink =
            a.sinks ? a.sinks + kv * group + i / s.rows * group + i % group : nullptr;
        s.best[i] = sink ? *sink : LOWEST;
        s.whole[i * LANES] = sink ? 1.0f : 0.0f;
    }
    for (int t = 0; t < queries.count; ++t)
        for (int64_t h = 0; h < kv_count; ++h)
            memcpy(s.q + (h * s.rows + t * group) * a.head_dim,
                   queries.q + t * queries.stride + (kv + h) * width, width * sizeof(T));
}

template <typename T>
static void give_results(const Attention& a, const Queries<T>& queries, int64_t kv,
                         int64_t kv_count, const Sums<T>& s) {
    int64_t group = a.group(), size = s.panels * s.rows * COLUMNS;
    for (int64_t i = 0; i < kv_count * s.rows; ++i) {
        int64_t h = i / s.rows, r = i % s.rows;
        T* out = queries.out + r / group * queries.out_stride;
        out += ((kv + h) * group + r % group) * a.head_dim;
        float whole = total(load(s.whole + i * LANES));
        by_lanes(a.head_dim, [&](int64_t d, int n) {
            const float* sums = s.values + h * size + (d / COLUMNS * s.rows + r) * COLUMNS;
            give(out + d, load(sums + d % COLUMNS) / whole, n);
        });
    }
}

// Key heads `kv` to `kv + kv_count` and their queries, of tokens of one sequence. `next` is what
// this thread will read when it is done with these.
template <typename T>
static void attend(const Attention& a, const Queries<T>& queries, const T* keys, const T* values,
                   int64_t kv, int64_t kv_count, float* scratch, const NextBlock& next = {}) {
    Sums<T> s(a, kv_count, queries.count * a.group(), scratch);
    int64_t size = s.panels * s.rows * COLUMNS, first = queries.first_key(a), last = 0;
    for (int t = 0; t < queries.count; ++t) last = std::max(last, queries.positions[t]);
    begin_sums(a, queries, kv, kv_count, s);
    int64_t start = first / KEYS * KEYS;
    Block b(a, queries.pages, start, first, last);
    for (; start <= last; start += KEYS) {
        bool more = start + KEYS <= last, known = !more && next.pages;
        int64_t then_kv = known ? next.kv : kv;
        Block then = more    ? Block(a, queries.pages, start + KEYS, first, last)
                     : known ? next.block(a) : b;
        for (int64_t h = 0; h < kv_count; ++h) {
            float* sums = s.values + h * size;
            block_scores(a, BlockRows<T>(a, keys, b, kv + h, then, then_kv + h), b,
                         s.q + h * s.rows * a.head_dim, s);
            BlockRows<T> rows(a, values, b, kv + h, then, then_kv + h);
            block_weights(a, queries, kv + h, rows, b, s, sums, s.best + h * s.rows,
                          s.whole + h * s.rows * LANES);
            block_values(a, rows, b, s, sums);
        }
        b = then;
    }
    give_results(a, queries, kv, kv_count, s);
}
