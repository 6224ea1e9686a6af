// Attention of one query token over the pages of its sequence, which are read where they lie.
//
// Softmax in float32 in two passes, over the keys in ascending order: a token's result depends on
// its own sequence only, wherever its pages are and whoever else is in the batch.
#pragma once
#include "linear.h"

struct Attention {
    int64_t heads, kv_heads, head_dim, page_size;
    int64_t window, chunk;  // 0: none
    float scale, softcap;   // softcap 0: none
    const float* sinks;     // [heads] or null
    const float* slopes;    // [heads] of ALiBi, or null
};

template <typename T>
static inline float dot(const T* a, const T* b, int64_t width) {
    typedef Dot<T> D;
    vec sum{};
    int64_t i = 0;
    for (; i + D::STEP <= width; i += D::STEP) sum = D::add(sum, D::read(a + i), D::read(b + i));
    if (i < width) {
        int rest = (int)(width - i);
        sum = D::add(sum, D::read_first(a + i, rest), D::read_first(b + i, rest));
    }
    float out[4];
    four_totals(sum, vec{}, vec{}, vec{}, out);
    return out[0];
}

// Scores of `group` query heads, which share the head `kv`, over the keys `first` to `position`.
template <typename T>
static void attention_scores(const Attention& a, const T* q, const T* keys, const int32_t* pages,
                             int64_t kv, int64_t first, int64_t position, float* scores,
                             int64_t stride, int64_t head, int64_t group) {
    for (int64_t j = first; j <= position; ++j) {
        int64_t slot = (int64_t)pages[j / a.page_size] * a.page_size + j % a.page_size;
        const T* key = keys + (slot * a.kv_heads + kv) * a.head_dim;
        for (int64_t g = 0; g < group; ++g) {
            float score = dot(q + g * a.head_dim, key, a.head_dim) * a.scale;
            if (a.softcap != 0.0f) score = a.softcap * tanhf(score / a.softcap);
            if (a.slopes) score += a.slopes[head + g] * (float)(j - position);
            scores[g * stride + j - first] = score;
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

constexpr int VALUE_LANES = 4;  // vectors of a value that are summed at a time

template <typename T>
static void weighted_values(const Attention& a, const T* values, const int32_t* pages, int64_t kv,
                            int64_t first, int64_t position, const float* weights, T* out) {
    for (int64_t start = 0; start < a.head_dim; start += VALUE_LANES * LANES) {
        int64_t width = std::min<int64_t>(VALUE_LANES * LANES, a.head_dim - start);
        vec sum[VALUE_LANES] = {};
        for (int64_t j = first; j <= position; ++j) {
            int64_t slot = (int64_t)pages[j / a.page_size] * a.page_size + j % a.page_size;
            const T* value = values + (slot * a.kv_heads + kv) * a.head_dim + start;
            float weight = weights[j - first];
            if (width == VALUE_LANES * LANES)
                for (int v = 0; v < VALUE_LANES; ++v) sum[v] += weight * load(value + v * LANES);
            else
                for (int v = 0; v * LANES < width; ++v)
                    sum[v] += weight * load_first(value + v * LANES,
                                                  (int)std::min<int64_t>(LANES, width - v * LANES));
        }
        for (int v = 0; v * LANES < width; ++v)
            store_first(out + start + v * LANES, sum[v],
                        (int)std::min<int64_t>(LANES, width - v * LANES));
    }
}

// Heads `head` to `head + group` of the token at `position`; scratch [group, stride] floats.
template <typename T>
static void attend(const Attention& a, const T* q, const T* keys, const T* values,
                   const int32_t* pages, int64_t position, int64_t head, int64_t group, T* out,
                   float* scratch, int64_t stride) {
    int64_t first = 0, kv = head / (a.heads / a.kv_heads);
    if (a.window) first = std::max(first, position - a.window + 1);
    if (a.chunk) first = std::max(first, position - position % a.chunk);
    attention_scores(a, q, keys, pages, kv, first, position, scratch, stride, head, group);
    for (int64_t g = 0; g < group; ++g) {
        float* weights = scratch + g * stride;
        softmax(weights, position - first + 1, a.sinks ? a.sinks + head + g : nullptr);
        weighted_values(a, values, pages, kv, first, position, weights, out + g * a.head_dim);
    }
}
