// Attention of one query token over the pages of its sequence, which are read where they lie.
//
// Softmax in float32 in two passes, over the keys in ascending order: a token's result depends on
// its own sequence only, wherever its pages are and whoever else is in the batch.
#pragma once
#include <type_traits>

#include "linear.h"

struct Attention {
    int64_t heads, kv_heads, head_dim, page_size;
    int64_t page_shift;     // page_size == 1 << page_shift; -1 if it is no power of two
    int64_t window, chunk;  // 0: none
    float scale, softcap;   // softcap 0: none
    const float* sinks;     // [heads] or null
    const float* slopes;    // [heads] of ALiBi, or null
};

// Where key or value `j` of a sequence is.
template <typename T>
static inline const T* at_position(const Attention& a, const T* cache, const int32_t* pages,
                                   int64_t kv, int64_t j) {
    int64_t page = a.page_shift < 0 ? j / a.page_size : j >> a.page_shift;
    int64_t slot = (pages[page] - page) * a.page_size + j;
    return cache + (slot * a.kv_heads + kv) * a.head_dim;
}

template <typename T>
static inline vec4 four_products(const T* q, const T* const* keys, int64_t width) {
    typedef Dot<T> D;
    vec sum[4] = {};
    int64_t i = 0;
    for (; i + D::STEP <= width; i += D::STEP) {
        typename D::Operand query = D::read(q + i);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sum[j] = D::add(sum[j], query, D::read(keys[j] + i));
    }
    if (i < width) {
        int rest = (int)(width - i);
        typename D::Operand query = D::read_first(q + i, rest);
        for (int j = 0; j < 4; ++j)
            sum[j] = D::add(sum[j], query, D::read_first(keys[j] + i, rest));
    }
    return four_totals(sum[0], sum[1], sum[2], sum[3]);
}

// Scores of the query heads of `kv_count` key heads, over the keys `first` to `position`. All heads
// of a token are read together, as they lie, and its values are called for meanwhile.
template <typename T>
static void attention_scores(const Attention& a, const T* q, const T* keys, const T* values,
                             const int32_t* pages, int64_t kv, int64_t kv_count, int64_t first,
                             int64_t position, float* scores, int64_t stride, int64_t head,
                             int64_t group) {
    int64_t line = 64 / sizeof(T), size = kv_count * a.head_dim;
    for (int64_t j = first; j <= position; j += 4) {
        int count = (int)std::min<int64_t>(4, position + 1 - j);
        const T* four[4];
        for (int c = 0; c < 4; ++c) {  // the last key again where there are fewer
            int64_t token = std::min(j + c, position);
            four[c] = at_position(a, keys, pages, kv, token);
            const T* value = at_position(a, values, pages, kv, token);
            for (int64_t i = 0; i < size; i += line) __builtin_prefetch(value + i, 0, 2);
        }
        for (int64_t g = 0; g < kv_count * group; ++g) {
            if (g && g % group == 0)
                for (int c = 0; c < 4; ++c) four[c] += a.head_dim;
            vec4 score = four_products(q + g * a.head_dim, four, a.head_dim) * a.scale;
            if (a.softcap != 0.0f)
                for (int c = 0; c < 4; ++c) score[c] = a.softcap * tanhf(score[c] / a.softcap);
            if (a.slopes)
                for (int c = 0; c < 4; ++c)
                    score[c] += a.slopes[head + g] * (float)(j + c - position);
            memcpy(scores + g * stride + j - first, &score, count * sizeof(float));
        }
    }
}

// Scores -> weights that add up to one (less what a sink takes).
static void softmax(float* scores, int64_t count, const float* sink) {
    vec best = fill(sink ? *sink : -INFINITY);
    int64_t padded = (count + LANES - 1) / LANES * LANES;
    for (int64_t j = count; j < padded; ++j) scores[j] = -INFINITY;
    for (int64_t j = 0; j < padded; j += LANES) best = maximum(load(scores + j), best);
    float top = largest(best);
    vec sum{};
    for (int64_t j = 0; j < padded; j += LANES) {
        vec weight = exponential(load(scores + j) - top);
        sum += weight;
        store(scores + j, weight);
    }
    float whole = total(sum) + (sink ? expf(*sink - top) : 0.0f);
    for (int64_t j = 0; j < padded; j += LANES) store(scores + j, load(scores + j) / whole);
}

constexpr int VALUE_VECTORS = 4;  // vectors of a value that are summed at a time
constexpr int VALUE_HEADS = 4;    // query heads that a value is read for at a time

// Sums of values for HEADS query heads, of a part of the head: all VALUE_VECTORS (FULL) or less.
template <typename T, int HEADS, bool FULL>
static void weighted_part(const Attention& a, const T* values, const int32_t* pages, int64_t kv,
                          int64_t first, int64_t position, const float* weights, int64_t stride,
                          int64_t start, int64_t width, T* out) {
    vec sum[HEADS][VALUE_VECTORS];
    for (int h = 0; h < HEADS; ++h)
        for (int v = 0; v < VALUE_VECTORS; ++v) sum[h][v] = vec{};
    for (int64_t j = first; j <= position; ++j) {
        const T* value = at_position(a, values, pages, kv, j) + start;
        vec part[VALUE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VALUE_VECTORS; ++v) {
            int64_t rest = width - v * LANES;
            if (FULL || rest >= LANES)
                part[v] = load(value + v * LANES);
            else
                part[v] = rest > 0 ? load_first(value + v * LANES, (int)rest) : vec{};
        }
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
            float weight = weights[h * stride + j - first];
#pragma GCC unroll 4
            for (int v = 0; v < VALUE_VECTORS; ++v) sum[h][v] += weight * part[v];
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < VALUE_VECTORS; ++v) {
            int rest = (int)std::min<int64_t>(LANES, width - v * LANES);
            T* place = out + h * a.head_dim + start + v * LANES;
            if (FULL || rest == LANES)
                store(place, sum[h][v]);
            else if (rest > 0)
                store_first(place, sum[h][v], rest);
        }
}

template <typename T>
static void weighted_values(const Attention& a, const T* values, const int32_t* pages, int64_t kv,
                            int64_t first, int64_t position, const float* weights, int64_t stride,
                            int64_t group, T* out) {
    constexpr int64_t PART = VALUE_VECTORS * LANES;
    for (int64_t start = 0; start < a.head_dim; start += PART) {
        int64_t width = std::min(PART, a.head_dim - start), g = 0;
        auto part = [&](auto heads) {
            auto run = width == PART ? weighted_part<T, heads.value, true>
                                     : weighted_part<T, heads.value, false>;
            run(a, values, pages, kv, first, position, weights + g * stride, stride, start, width,
                out + g * a.head_dim);
            g += heads.value;
        };
        while (g + VALUE_HEADS <= group) part(std::integral_constant<int, VALUE_HEADS>());
        switch (group - g) {
            case 3: part(std::integral_constant<int, 3>()); break;
            case 2: part(std::integral_constant<int, 2>()); break;
            case 1: part(std::integral_constant<int, 1>()); break;
        }
    }
}

// Heads `head` to `head + count`, one head or all, of the token at `position`; scratch [count,
// stride] floats.
template <typename T>
static void attend(const Attention& a, const T* q, const T* keys, const T* values,
                   const int32_t* pages, int64_t position, int64_t head, int64_t count, T* out,
                   float* scratch, int64_t stride) {
    int64_t share = a.heads / a.kv_heads, kv = head / share, first = 0;
    int64_t group = std::min(share, count), kv_count = count / group;
    if (a.window) first = std::max(first, position - a.window + 1);
    if (a.chunk) first = std::max(first, position - position % a.chunk);
    attention_scores(a, q, keys, values, pages, kv, kv_count, first, position, scratch, stride,
                     head, group);
    for (int64_t h = 0; h < count; ++h)
        softmax(scratch + h * stride, position - first + 1, a.sinks ? a.sinks + head + h : nullptr);
    for (int64_t h = 0; h < count; h += group)
        weighted_values(a, values, pages, kv + h / group, first, position, scratch + h * stride,
                        stride, group, out + h * a.head_dim);
}
