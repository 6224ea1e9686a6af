// A few rows of x against 16 columns as they lie: these are turned in registers, 16 units at a time,
// and no panel is written. Every sum adds its units in ascending order, as in tile.h.
#pragma once
#include "tile.h"

constexpr int FEW_ROWS = 15;  // up to which that is fastest: their sums and a block are 31 registers
constexpr int64_t CALLED_BYTES = 1024;  // of a column, before they are needed

// Rows of x, of k numbers and `stride` apart, against 16 columns; the sums to `out`, rows 32 apart.
template <typename T>
struct FewRows {
    const T* x;
    int64_t stride, k;  // k: whole units
    const T* const* columns;
    float* out;
};

// Calls for these columns some way ahead, and at their end for the beginning of others.
template <typename T>
struct CallsAhead {
    const T *const *columns, *const *following;
    int64_t k;

    void operator()(int i, int64_t start) const {
        constexpr int64_t CALLED = CALLED_BYTES / sizeof(T);
        bool here = start + CALLED < k;
        const T* const* called = here ? columns : following;
        __builtin_prefetch(called[i] + start + CALLED - (here ? 0 : k), 0, 2);
    }
};

template <typename T, int ROWS, typename Call>
__attribute__((noinline)) static void few_rows(const FewRows<T>& f, Call call) {
    vec sum[ROWS];
#pragma GCC unroll 20
    for (int r = 0; r < ROWS; ++r) sum[r] = vec{};
    for (int64_t start = 0; start < f.k; start += BLOCK * PER_UNIT<T>) {
        int64_t units = std::min<int64_t>(BLOCK, (f.k - start) / PER_UNIT<T>);
        uvec part[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) {
            call(i, start);
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

// Up to ROWS rows. `call` is told which column is read from where on, and calls for what is wanted.
template <typename T, int ROWS, typename Call>
static inline void run_few_rows(const FewRows<T>& f, int64_t rows, Call call) {
    if (rows == ROWS)
        few_rows<T, ROWS>(f, call);
    else if constexpr (ROWS > 1)
        run_few_rows<T, ROWS - 1>(f, rows, call);
}

// Whether rows of k numbers, `stride` apart, are best taken that way: whole units, and not many in
// the same places of the first cache.
template <typename T>
static inline bool takes_few_rows(int64_t rows, int64_t k, int64_t stride) {
    int64_t most = stride * (int64_t)sizeof(T) % 4096 ? FEW_ROWS : 4;
    return rows <= most && k % PER_UNIT<T> == 0;
}
