// Attention of a few neighbouring tokens of a sequence over its pages, read where they lie.
//
// Softmax goes along with the reading (online; Milakov and Gimelshein 2018, Dao et al. 2022): keys
// come in blocks that begin at multiples of KEYS, and each block adds its part to the sums of every
// query. Where the blocks begin depends on no query, and keys that a query does not see add nothing:
// a token's result depends on its own sequence only, whoever is computed with it.
#pragma once
#include "attention_products.h"
#include "attention_state.h"

template <typename T, typename Call>
static void block_scores(const Attention& a, const T* keys, int64_t kv, const Block& b, const T* q,
                         const Sums<T>& s, Call call) {
    for (int64_t p = b.panel(); p < b.panels(); ++p) {
        const T* columns[COLUMNS];
        for (int i = 0; i < COLUMNS; ++i)
            columns[i] = keys + b.places[p * COLUMNS + i] + kv * a.head_dim;
        panel_scores(q, s.rows, a.head_dim, columns, s.panel, s.scores + p * s.rows * COLUMNS,
                     call);
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

template <typename T, typename Call>
static void block_values(const Attention& a, const T* cache, int64_t kv, const Block& b,
                         const Sums<T>& s, float* values, Call call) {
    int64_t begin = b.panel() * COLUMNS, keys = b.panels() * COLUMNS - begin;
    const T* rows[KEYS];
    for (int64_t j = 0; j < keys; ++j) rows[j] = cache + b.places[begin + j] + kv * a.head_dim;
    for (int64_t p = 0; p < s.panels; ++p) {
        int64_t d = p * COLUMNS;
        int count = (int)std::min<int64_t>(COLUMNS, a.head_dim - d);
        panel_values(s.weights + begin, s.rows, KEYS, keys, rows, d, count, s.panel,
                     values + p * s.rows * COLUMNS, call);
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
                   int64_t kv, int64_t kv_count, float* scratch, const Ahead<T>& next = {}) {
    Sums<T> s(a, kv_count, queries.count * a.group(), scratch);
    int64_t size = s.panels * s.rows * COLUMNS, first = queries.first_key(a), last = 0;
    for (int t = 0; t < queries.count; ++t) last = std::max(last, queries.positions[t]);
    begin_sums(a, queries, kv, kv_count, s);
    int64_t start = first / KEYS * KEYS, calls = kv_count * 2 * (KEYS / COLUMNS + s.panels);
    Ahead<T> ahead{queries.pages, start + KEYS, last + 1, kv, kv_count};
    auto call = [&, at_once = (KEYS + calls - 1) / calls] {
        ahead.call(a, keys, values, at_once);
    };
    for (; start <= last; start += KEYS) {
        Block b(a, queries.pages, start, first, last);
        if (start + KEYS > last) ahead = next;
        for (int64_t h = 0; h < kv_count; ++h) {
            float* sums = s.values + h * size;
            block_scores(a, keys, kv + h, b, s.q + h * s.rows * a.head_dim, s, call);
            block_weights(a, queries, kv + h, b, s, sums, s.best + h * s.rows,
                          s.whole + h * s.rows * LANES);
            block_values(a, values, kv + h, b, s, sums, call);
        }
    }
    give_results(a, queries, kv, kv_count, s);
}
