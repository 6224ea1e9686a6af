// Latent attention (DeepSeek-V2) over pages that hold one latent and one rotated key a token.
//
// Queries are multiplied by the keys' projection first, so that all heads read the same keys, which
// are their values too; what they read is multiplied by the values' projection afterwards.
#pragma once
#include <algorithm>
#include <type_traits>

#include "vectors.h"

struct Latent {
    int64_t nope, rope, rank, value;  // widths: of a head's query in two parts, the latent, a value
};

constexpr int MIXED_ROWS = 4, MIXED_VECTORS = 4;  // sums that are kept in registers

// y[r] = sum over n < count of x[r][n] * row(n), for ROWS rows and numbers `start` to `end`.
template <int ROWS, typename X, typename T, typename Row>
static void mix_tile(const X* x, int64_t x_stride, int64_t count, Row row, int64_t start,
                     int64_t end, T* y, int64_t y_stride) {
    int64_t width = std::min<int64_t>(MIXED_VECTORS * LANES, end - start);
    vec sum[ROWS][MIXED_VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < MIXED_VECTORS; ++v) sum[r][v] = vec{};
    for (int64_t n = 0; n < count; ++n) {
        const T* w = row(n) + start;
        vec part[MIXED_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < MIXED_VECTORS; ++v) {
            int64_t rest = width - v * LANES;
            part[v] = rest >= LANES ? load(w + v * LANES)
                      : rest > 0    ? load_first(w + v * LANES, (int)rest)
                                    : vec{};
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            float factor = to_float(x[r * x_stride + n]);
#pragma GCC unroll 4
            for (int v = 0; v < MIXED_VECTORS; ++v) sum[r][v] += factor * part[v];
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < MIXED_VECTORS; ++v) {
            int rest = (int)std::min<int64_t>(LANES, width - v * LANES);
            T* place = y + r * y_stride + start + v * LANES;
            if (rest == LANES) store(place, sum[r][v]);
            else if (rest > 0) store_first(place, sum[r][v], rest);
        }
}

// The same for any number of rows, and all numbers of `width`.
template <typename X, typename T, typename Row>
static void mix(const X* x, int64_t x_stride, int64_t rows, int64_t count, Row row, int64_t width,
                T* y, int64_t y_stride) {
    for (int64_t start = 0; start < width; start += MIXED_VECTORS * LANES) {
        int64_t r = 0;
        auto tile = [&](auto size) {
            mix_tile<size.value>(x + r * x_stride, x_stride, count, row, start, width,
                                 y + r * y_stride, y_stride);
            r += size.value;
        };
        while (r + MIXED_ROWS <= rows) tile(std::integral_constant<int, MIXED_ROWS>());
        while (r < rows) tile(std::integral_constant<int, 1>());
    }
}

// Queries of one head for `rows` tokens -> [rank + rope], to be compared with what is cached.
template <typename T>
static void absorb(const Latent& l, const T* q, int64_t q_stride, const T* to_keys, int64_t rows,
                   T* out, int64_t out_stride) {
    auto weight = [&](int64_t n) { return to_keys + n * l.rank; };
    mix(q, q_stride, rows, l.nope, weight, l.rank, out, out_stride);
    for (int64_t r = 0; r < rows; ++r)
        memcpy(out + r * out_stride + l.rank, q + r * q_stride + l.nope, l.rope * sizeof(T));
}
