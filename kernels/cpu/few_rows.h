// A few rows of x against 16 columns as they lie: these are turned in registers, 16 units at a time,
// and no panel is written. Every sum adds its units in ascending order, as in tile.h.
#pragma once
#include "tile.h"

constexpr int FEW_ROWS = 19;            // up to which that is the fastest way
constexpr int64_t CALLED_BYTES = 1024;  // of a column, before they are needed

// Rows of x, of k numbers and `stride` apart, against 16 columns; the sums to `out`, rows 32 apart.
template <typename T>
struct FewRows {
    const T* x;
    int64_t stride, k;  // k: whole units
    const T* const* columns;
    const T* const* following;  // columns whose memory is wanted next
    float* out;
};

template <typename T, int ROWS, bool CALLS>
__attribute__((noinline)) static void few_rows(const FewRows<T>& f) {
    constexpr int64_t CALLED = CALLED_BYTES / sizeof(T);
    vec sum[ROWS];
#pragma GCC unroll 20
    for (int r = 0; r < ROWS; ++r) sum[r] = vec{};
    for (int64_t start = 0; start < f.k; start += BLOCK * PER_UNIT<T>) {
        int64_t units = std::min<int64_t>(BLOCK, (f.k - start) / PER_UNIT<T>);
        int64_t wanted = start + CALLED;
        const T* const* called = f.columns;
        if (wanted >= f.k) wanted -= f.k, called = f.following;
        uvec part[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) {
            if (CALLS) __builtin_prefetch(called[i] + wanted, 0, 2);
            part[i] = read_units(f.columns[i], start, f.k);
        }
        transpose(part);
        const T* x = f.x + start;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i, x += PER_UNIT<T>) {
            if (i >= units) break;
#pragma GCC unroll 20
            for (int r = 0; r < ROWS; ++r) {
                uint32_t unit;
                memcpy(&unit, x + r * f.stride, sizeof unit);
                sum[r] = add_products<T>(sum[r], uvec{} + unit, part[i]);
            }
        }
    }
#pragma GCC unroll 20
    for (int r = 0; r < ROWS; ++r) store(f.out + r * COLUMNS, sum[r]);
}

// Up to ROWS rows; CALLS: for the memory of the next columns.
template <typename T, int ROWS, bool CALLS>
static inline void run_few_rows(const FewRows<T>& f, int64_t rows) {
    if (rows == ROWS)
        few_rows<T, ROWS, CALLS>(f);
    else if constexpr (ROWS > 1)
        run_few_rows<T, ROWS - 1, CALLS>(f, rows);
}

// Whether rows of k numbers, `stride` apart, are best taken that way: whole units, and not many in
// the same places of the first cache.
template <typename T>
static inline bool takes_few_rows(int64_t rows, int64_t k, int64_t stride) {
    int64_t most = stride * (int64_t)sizeof(T) % 4096 ? FEW_ROWS : 4;
    return rows <= most && k % PER_UNIT<T> == 0;
}
