// Instructions that make one row of another (or of several), whichever thread takes it.
//
// Those of a chain run one after the other on a few rows while these are in the cache, and nobody
// waits between them.
#pragma once
#include "activations.h"
#include "instructions.h"

template <typename T>
struct Rows {
    const Step& step;

    T* at(int64_t value) const {
        return value == -1 ? (T*)step.logits : (T*)step.workspace + value;
    }
    int64_t tokens(const Instruction& i) const { return i.sampled ? step.logit_rows : step.rows; }
    int64_t count(const Instruction& i) const { return tokens(i) * i.times; }
    Groups groups(const Instruction& i) const {
        return Groups(at(i.opcode == GROUP_BY_EXPERT ? i.out : i.in2), i.routing, tokens(i));
    }
    // What row `r` finds in table `number`; the instruction says how.
    const T* table(const Instruction& i, int64_t number, int64_t r, int64_t width) const {
        return (const T*)step.tables[number] + (i.by_position ? step.positions[r] : r) * width;
    }

    void run(const Instruction& i, int64_t r) const {
        const T* in = at(i.in) + r * i.k;  // EMBED, POSITIONS and TABLE have none
        T* out = at(i.out) + r * i.n;
        const T* weight = (const T*)i.weight;
        switch (i.opcode) {
            case EMBED: memcpy(out, weight + step.tokens[r] * i.n, i.n * sizeof(T)); break;
            case POSITIONS:
                memcpy(out, weight + (step.positions[r] + i.offset) * i.n, i.n * sizeof(T));
                break;
            case TABLE: memcpy(out, table(i, i.table, r, i.n), i.n * sizeof(T)); break;
            case ROWS: memcpy(out, at(i.in) + step.wanted[r] * i.k, i.n * sizeof(T)); break;
            case ADD: add_row(in, at(i.in2) + r * i.k, out, i.n); break;
            case MULTIPLY: multiply(i, in, r, out); break;
            case SCALE: scale_row(in, i.scalar, i.kind == 1, out, i.n); break;
            case SOFTCAP: softcap(in, i.scalar, out, i.n); break;
            case ACTIVATE: activate_any_row(in, out, i.n, i.kind); break;
            case XIELU: xielu_row(in, (const float*)i.weight, out, i.n); break;
            case GATE:
                limited_gate_row(in, out, i.n, (int)i.kind, i.limit, i.up_offset);
                break;
            case CLIP: clip(i, in, out); break;
            case TURN: turn(i, r, out); break;
            case STORE: store_row(i, in, step.slots[r]); break;
            case CHOOSE_EXPERTS: choose(i, r); break;
            case GATHER: gather(i, r, out); break;
            case COMBINE: combine(i, r, out); break;
            default: norm(i, in, r, out);
        }
    }

    static void softcap(const T* x, float cap, T* y, int64_t width) {
        by_lanes(width, [&](int64_t i, int n) {
            vec inner = rounded<T>(hyperbolic_tangent(rounded<T>(take(x + i, n) / cap)));
            give(y + i, inner * cap, n);
        });
    }

    static void clip(const Instruction& i, const T* x, T* y) {
        by_lanes(i.n, [&](int64_t c, int n) {
            vec value = take(x + c, n), most = fill(i.scalar);
            give(y + c, value > most ? most : value < -most ? -most : value, n);
        });
    }

    // The span of a row by factors, each of which `shared` numbers have.
    void multiply(const Instruction& i, const T* x, int64_t r, T* y) const {
        int64_t width = i.span.width, first = i.span.first;
        const T* factors = at(i.in2) + r * (width / i.shared);
        if (i.shared == 1) {
            by_lanes(width, [&](int64_t c, int n) {
                give(y + first + c, take(x + first + c, n) * take(factors + c, n), n);
            });
        } else {
            for (int64_t c = first; c < first + width; c += i.shared)
                scale_row(x + c, to_float(*factors++), false, y + c, i.shared);
        }
    }

    // A norm of each unit of the span.
    void norm(const Instruction& i, const T* x, int64_t r, T* y) const {
        if (i.in2 >= 0) {  // the sum first, which others read too
            T* sum = at(i.out2) + r * i.k;
            add_row(at(i.in2) + r * i.k, x, sum, i.k);
            x = sum;
        }
        const T *weight = (const T*)i.weight, *bias = (const T*)i.bias;
        const Span& s = i.span;
        for (int64_t u = 0; u < s.count; ++u) {
            int64_t place = s.first + u * s.stride;
            if (i.opcode == RMS_NORM)
                rms_norm_row(x + place, weight, y + place, s.width, i.eps, (int)i.offset);
            else
                layer_norm_row(x + place, weight, bias, y + place, s.width, i.eps, (int)i.offset);
            if (weight) weight += i.weight_step;
            if (bias) bias += i.weight_step;
        }
    }

    // Turn each unit of the span in place; the table after that of the cosines has the sines.
    void turn(const Instruction& i, int64_t r, T* row) const {
        const Span& s = i.span;
        const T* cosine = table(i, i.table, r, s.width);
        const T* sine = table(i, i.table + 1, r, s.width);
        for (int64_t u = 0; u < s.count; ++u)
            rotate_head(row + s.first + u * s.stride, cosine, sine, (int)s.width,
                        i.interleaved != 0);
    }

    // The span is what the cache has of a token: its keys, and after them its values.
    static void store_row(const Instruction& i, const T* row, int64_t slot) {
        if (slot < 0) return;
        const T* key = row + i.span.first;
        memcpy((T*)i.keys + slot * i.span.width, key, i.span.width * sizeof(T));
        if (i.values)
            memcpy((T*)i.values + slot * i.span.width, key + i.span.width,
                   i.span.width * sizeof(T));
    }

    void choose(const Instruction& i, int64_t r) const {
        const Routing& g = i.routing;
        float* weights = (float*)at(i.out) + r * 2 * g.top_k;
        choose_experts(g, (float*)at(i.in) + r * 2 * g.experts, weights,
                       (int32_t*)(weights + g.top_k));
    }

    // What slot `order[r]` gives to its expert.
    void gather(const Instruction& i, int64_t r, T* out) const {
        const Routing& g = i.routing;
        int64_t slot = groups(i).order[r], token = slot / g.top_k;
        const T* in = at(i.in) + token * i.k;
        if (!g.weigh_input) {
            memcpy(out, in, i.n * sizeof(T));
            return;
        }
        const float* weights = (const float*)at(i.out2) + token * 2 * g.top_k;
        scale_row(in, weights[slot % g.top_k], false, out, i.n);
    }

    // The sum of what a token's experts made of it, weighed unless their inputs were.
    void combine(const Instruction& i, int64_t r, T* out) const {
        const Routing& g = i.routing;
        const float* weights = (const float*)at(i.out2) + r * 2 * g.top_k;
        const int32_t* place = groups(i).place + r * g.top_k;
        by_lanes(i.n, [&](int64_t c, int n) {
            vec sum{};
            for (int64_t j = 0; j < g.top_k; ++j) {
                vec part = take(at(i.in) + place[j] * i.k + c, n);
                sum += g.weigh_input ? part : part * weights[j];
            }
            give(out + c, sum, n);
        });
    }
};
