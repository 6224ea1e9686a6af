// What attention works with: its settings, queries, blocks of keys, and the state between these.
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

    int64_t first_key(const Attention& a) const {
        int64_t first = INT64_MAX;
        for (int t = 0; t < count; ++t) first = std::min(first, a.first_key(positions[t]));
        return first;
    }
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

// Where key or value `j` of a sequence is in its cache, that of the first head.
static inline int64_t place_of(const Attention& a, const int32_t* pages, int64_t j) {
    int64_t page = a.page_shift < 0 ? j / a.page_size : j >> a.page_shift;
    return ((pages[page] - page) * a.page_size + j) * a.kv_heads * a.head_dim;
}

// The keys of a block that any query sees.
struct Block {
    int64_t start, first, last;  // `start` is a multiple of KEYS; `last` is one of them
    int64_t places[KEYS];        // of each key in the cache; where there is none, another one's

    Block(const Attention& a, const int32_t* pages, int64_t start, int64_t first, int64_t last)
        : start(start), first(std::max(first, start)), last(std::min(last, start + KEYS - 1)) {
        for (int64_t j = panel() * COLUMNS; j < panels() * COLUMNS; ++j)
            places[j] = place_of(a, pages, std::max(this->first, std::min(this->last, start + j)));
    }
    int64_t panel() const { return (first - start) / COLUMNS; }
    int64_t panels() const { return (last - start) / COLUMNS + 1; }
    int64_t count() const { return (panels() - panel()) * COLUMNS; }  // 32 or 64
};

// The block that comes after others; no pages: none is known.
struct NextBlock {
    const int32_t* pages = nullptr;
    int64_t first = 0, last = 0, kv = 0;  // the keys that its queries see, and the first head

    Block block(const Attention& a) const {
        return Block(a, pages, first / KEYS * KEYS, first, last);
    }
};
