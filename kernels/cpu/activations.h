// Every activation by name, the rare ones number by number, and gates with limits and offsets.
#pragma once
#include "elementwise.h"

// Those of elementwise.h come first: SILU, GELU, GELU_TANH, RELU, RELU2.
enum RareActivation {
    SIGMOID = RELU2 + 1, TANH, QUICK_GELU, IDENTITY, GELU_10, HARDSWISH, LAPLACE, LEAKY_RELU, MISH,
    RELU6, SOFTPLUS, SQRT_SOFTPLUS
};

static inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

static inline float clamp(float x, float least, float most) {
    return x < least ? least : x > most ? most : x;
}

static float activate_one(float x, int kind) {
    switch (kind) {
        case GELU_10: return clamp(0.5f * x * (1.0f + erff(x * 0.70710678f)), -10.0f, 10.0f);
        case HARDSWISH: return x * clamp(x + 3.0f, 0.0f, 6.0f) / 6.0f;
        case LAPLACE: return 0.5f * (1.0f + erff((x - 0.707107f) / (0.282095f * sqrtf(2.0f))));
        case LEAKY_RELU: return x < 0.0f ? 0.01f * x : x;
        case MISH: return x * tanhf(softplus(x));
        case RELU6: return clamp(x, 0.0f, 6.0f);
        case SOFTPLUS: return softplus(x);
        case SQRT_SOFTPLUS: return sqrtf(softplus(x));
        default: return x;
    }
}

static inline vec activate_any(vec x, int kind) {
    switch (kind) {
        case SIGMOID: return 1.0f / (1.0f + exponential(-x));
        case TANH: return hyperbolic_tangent(x);
        case QUICK_GELU: return x / (1.0f + exponential(-1.702f * x));
        case IDENTITY: return x;
    }
    if (kind <= RELU2) return activate(x, kind);
    float lane[LANES];
    store(lane, x);
    for (float& value : lane) value = activate_one(value, kind);
    return load(lane);
}

template <typename T>
static void activate_any_row(const T* x, T* y, int64_t width, int kind) {
    by_lanes(width, [&](int64_t i, int n) { give(y + i, activate_any(take(x + i, n), kind), n); });
}

// y = act(gate) * (up + offset) of a row [gate, up], both kept within `limit` if it is not 0.
template <typename T>
static void limited_gate_row(const T* x, T* y, int64_t width, int kind, float limit, float offset) {
    vec most = fill(limit == 0.0f ? INFINITY : limit);
    by_lanes(width, [&](int64_t i, int n) {
        vec gate = take(x + i, n), up = take(x + width + i, n);
        gate = gate > most ? most : gate;
        up = up > most ? most : up < -most ? -most : up;
        gate = rounded<T>(activate_any(gate, kind));
        give(y + i, gate * rounded<T>(up + offset), n);
    });
}

// xIELU (blocks/activations.py); settings: slope of x > 0, slope of the others, beta, eps.
template <typename T>
static void xielu_row(const T* x, const float* settings, T* y, int64_t width) {
    float beta = settings[2], eps = settings[3];
    for (int64_t i = 0; i < width; ++i) {
        float value = to_float(x[i]);
        float bent = value > 0.0f ? settings[0] * value * value
                                  : (expm1f(value < eps ? value : eps) - value) * settings[1];
        put(y + i, bent + beta * value);
    }
}
