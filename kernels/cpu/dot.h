// Inner products of rows, one number each: four of them are added up at a time.
#pragma once
#include <algorithm>

#include "vectors.h"

template <typename T>
struct Inner {  // products of 16 numbers in float32
    static constexpr int STEP = LANES;
    typedef vec Operand;
    static Operand read(const T* p) { return load(p); }
    static Operand read_first(const T* p, int count) { return load_first(p, count); }
    static vec add(vec sum, Operand a, Operand b) { return sum + a * b; }
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
template <>
struct Inner<bf16> {  // pairs of bfloat16, multiplied and added by one instruction
    static constexpr int STEP = 2 * LANES;
    typedef __m512i Operand;
    static Operand read(const bf16* p) { return _mm512_loadu_si512(p); }
    static Operand read_first(const bf16* p, int count) {
        return _mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), p);
    }
    static vec add(vec sum, Operand a, Operand b) {
        return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
};
#endif

typedef float quad __attribute__((vector_size(16)));

// The products of x with four rows.
template <typename T>
static inline quad inner_products(const T* x, const T* const* four, int64_t k) {
    typedef Inner<T> I;
    vec sum[4] = {};
    int64_t i = 0;
    for (; i + I::STEP <= k; i += I::STEP)
        for (int j = 0; j < 4; ++j) sum[j] = I::add(sum[j], I::read(x + i), I::read(four[j] + i));
    if (int rest = (int)(k - i))
        for (int j = 0; j < 4; ++j)
            sum[j] = I::add(sum[j], I::read_first(x + i, rest), I::read_first(four[j] + i, rest));
    return quad{total(sum[0]), total(sum[1]), total(sum[2]), total(sum[3])};
}
