// Where the largest number of each row stands: greedy sampling.
#pragma once
#include <atomic>

#include "vectors.h"

// The first column with the largest of `n` numbers; -1 if one is NaN or that is not finite.
template <typename T>
static int64_t largest_column(const T* row, int64_t n) {
    vec top = fill(-INFINITY);
    ivec nan{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec x = load(row + i);
        top = maximum(x, top);
        nan |= x != x;
    }
    float best = largest(top);
    bool numbers = true;
    for (int lane = 0; lane < LANES; ++lane) numbers &= !nan[lane];
    for (; i < n; ++i) {
        float x = to_float(row[i]);
        best = x > best ? x : best;
        numbers &= x == x;
    }
    if (!numbers || best == INFINITY || best == -INFINITY) return -1;
    for (i = 0; i + LANES <= n; i += LANES) {
        ivec found = load(row + i) == fill(best);
        if (largest((vec)(found & (ivec)fill(1.0f))) > 0.0f) break;
    }
    while (to_float(row[i]) != best) ++i;
    return i;
}

// The columns of many rows, which threads take one by one.
template <typename T>
struct LargestColumns {
    const T* values;  // [rows, n]
    int64_t rows, n;
    int64_t* columns;  // [rows]
    std::atomic<int64_t> next{0};

    static void run(void* all) {
        LargestColumns& a = *(LargestColumns*)all;
        for (int64_t r; (r = a.next++) < a.rows;)
            a.columns[r] = largest_column(a.values + r * a.n, a.n);
    }
};
