// What happens to a row between two products: norms, activations, sums, and the rotation of heads.
// Results are rounded where the torch modules round them.
#pragma once
#include "vectors.h"

enum Activation { SILU, GELU, GELU_TANH, RELU, RELU2 };

static inline vec hyperbolic_tangent(vec x) {
    vec e = exponential(x * 2.0f);
    vec y = 1.0f - 2.0f / (e + 1.0f);
    return x == x ? y : x;
}

static inline vec activate(vec x, int kind) {
    switch (kind) {
        case SILU: return x / (1.0f + exponential(-x));
        case GELU_TANH: {
            vec inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
            return 0.5f * x * (1.0f + hyperbolic_tangent(inner));
        }
        case GELU: {
            float lane[LANES];
            store(lane, x);
            for (float& value : lane) value = 0.5f * value * (1.0f + erff(value * 0.70710678f));
            return load(lane);
        }
        case RELU2: x = x < 0.0f ? fill(0.0f) : x; return x * x;
        default: return x < 0.0f ? fill(0.0f) : x;
    }
}

// Calls body(start, count) for groups of 16, the last of which may be smaller.
template <typename Body>
static inline void by_lanes(int64_t width, Body body) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) body(i, LANES);
    if (i < width) body(i, (int)(width - i));
}
template <typename T>
static inline vec take(const T* p, int count) {
    return count == LANES ? load(p) : load_first(p, count);
}
template <typename T>
static inline void give(T* p, vec x, int count) {
    if (count == LANES)
        store(p, x);
    else
        store_first(p, x, count);
}

template <typename T>
static void add_row(const T* a, const T* b, T* y, int64_t width) {
    by_lanes(width, [&](int64_t i, int n) { give(y + i, take(a + i, n) + take(b + i, n), n); });
}
template <typename T>
static void scale_row(const T* x, float factor, bool divide, T* y, int64_t width) {
    by_lanes(width, [&](int64_t i, int n) {
        vec value = take(x + i, n);
        give(y + i, divide ? value / factor : value * factor, n);
    });
}

// RMSNorm. With offset 0 the weight multiplies what has been rounded (Llama), else 1 + weight
// multiplies in float32 (Gemma).
template <typename T>
static void rms_norm_row(const T* x, const T* weight, T* y, int64_t width, float eps, int offset) {
    vec squares{};
    by_lanes(width, [&](int64_t i, int n) {
        vec value = take(x + i, n);
        squares += value * value;
    });
    float factor = 1.0f / sqrtf(total(squares) / (float)width + eps);
    by_lanes(width, [&](int64_t i, int n) {
        vec normed = take(x + i, n) * factor;
        if (weight && offset)
            normed = normed * (take(weight + i, n) + 1.0f);
        else if (weight)
            normed = rounded<T>(normed) * take(weight + i, n);
        give(y + i, normed, n);
    });
}

template <typename T>
static void layer_norm_row(const T* x, const T* weight, const T* bias, T* y, int64_t width,
                           float eps, int offset) {
    vec sum{}, squares{};
    by_lanes(width, [&](int64_t i, int n) { sum += take(x + i, n); });
    float mean = total(sum) / (float)width;
    by_lanes(width, [&](int64_t i, int n) {
        vec centred = take(x + i, n) - mean;
        if (n < LANES)
            for (int j = n; j < LANES; ++j) centred[j] = 0.0f;
        squares += centred * centred;
    });
    float factor = 1.0f / sqrtf(total(squares) / (float)width + eps);
    by_lanes(width, [&](int64_t i, int n) {
        vec normed = (take(x + i, n) - mean) * factor;
        if (weight) {
            vec factor = take(weight + i, n);
            normed = normed * (offset ? rounded<T>(factor + 1.0f) : factor);
        }
        if (bias) normed = normed + take(bias + i, n);
        give(y + i, normed, n);
    });
}

// Turn the first `dim` numbers of a head by tables whose sine carries the sign of the rotation.
template <typename T>
static void rotate_head(T* head, const T* cosine, const T* sine, int dim, bool interleaved) {
    float old[1024];
    for (int d = 0; d < dim; ++d) old[d] = to_float(head[d]);
    int half = dim / 2;
    for (int d = 0; d < dim; ++d) {
        float partner = interleaved ? old[d ^ 1] : old[d < half ? d + half : d - half];
        float kept = rounded<T>(old[d] * to_float(cosine[d]));
        put(head + d, kept + partner * to_float(sine[d]));
    }
}
