// Mixtures of experts: which experts a token goes to, and the tokens of each expert side by side.
//
// Slot n * top_k + j is the j-th choice of token n. The slots are sorted by expert once a layer; an
// expert that has any reads its weights once for all of them, and one without costs nothing.
#pragma once
#include "dot.h"

enum RouterKind { SOFTMAX_ROUTER, SIGMOID_ROUTER, SPARSE_MIXER };

// How experts are chosen and weighed: the fields of blocks/router.py.
struct Routing {
    int64_t experts, top_k, kind;
    int64_t groups, top_groups, best_two;  // groups 0: none; best_two: a group's score is their sum
    int64_t normalise, weigh_input;
    float min_sum, scale, jitter;
    const float* selection_bias;           // [experts] or null
};

// The slots by expert, in memory that a program has for it.
struct Groups {
    int32_t* active;  // [experts] those that have slots, *count of them
    int32_t* starts;  // [experts + 1] where the slots of an expert begin
    int32_t* order;   // [slots] slots by expert
    int32_t* place;   // [slots] where in `order` each slot is
    int32_t* count;

    Groups(void* memory, const Routing& g, int64_t rows) {
        count = (int32_t*)memory;
        active = count + 1;
        starts = active + g.experts;
        order = starts + g.experts + 1;
        place = order + rows * g.top_k;
    }
};

// Logits of experts `first` to `last` for `rows` rows of x, in float32, rounded to T on demand.
template <typename T>
static void score_experts(const T* x, const T* weight, const T* bias, bool round, float* scores,
                          int64_t stride, int64_t rows, int64_t k, int64_t first, int64_t last) {
    for (int64_t r = 0; r < rows; ++r, x += k, scores += stride)
        for (int64_t e = first; e < last; e += 4) {
            int count = (int)std::min<int64_t>(4, last - e);
            const T* four[4];  // the last expert again where there are fewer
            for (int j = 0; j < 4; ++j) four[j] = weight + std::min(e + j, last - 1) * k;
            quad products = inner_products(x, four, k);
            for (int j = 0; j < count; ++j) {
                float score = products[j] + (bias ? to_float(bias[e + j]) : 0.0f);
                scores[e + j] = round ? rounded<T>(score) : score;
            }
        }
}

// The best of `wanted`, the first of equals; a NaN counts as the greatest.
static int64_t best_of(const float* wanted, int64_t count) {
    int64_t best = 0;
    for (int64_t e = 1; e < count; ++e)
        if (wanted[e] > wanted[best] || (wanted[e] != wanted[e] && wanted[best] == wanted[best]))
            best = e;
    return best;
}

// Phi-3.5-MoE: one expert after the other; each counts its share among those that come close.
static void mix_sparsely(const Routing& g, const float* logits, float* left, float* weights,
                         int32_t* chosen) {
    memcpy(left, logits, g.experts * sizeof(float));
    for (int64_t j = 0; j < g.top_k; ++j) {
        int64_t expert = best_of(left, g.experts);
        float best = left[expert], sum = 0.0f;
        for (int64_t e = 0; e < g.experts; ++e) {
            float distance = (best - logits[e]) / std::max(fabsf(logits[e]), best);
            if (!(distance > 2 * g.jitter)) sum += expf(left[e] - best);
        }
        weights[j] = 1.0f / sum;
        if (best == -INFINITY)  // whatever the logits: no expert twice
            while (std::find(chosen, chosen + j, (int32_t)expert) != chosen + j) ++expert;
        chosen[j] = (int32_t)expert;
        left[expert] = -INFINITY;
    }
}

// All experts outside of the best groups become unwanted.
static void leave_out_groups(const Routing& g, float* wanted) {
    int64_t size = g.experts / g.groups;
    float score[g.groups];
    for (int64_t group = 0; group < g.groups; ++group) {
        float first = -INFINITY, second = -INFINITY;
        for (int64_t e = group * size; e < (group + 1) * size; ++e) {
            if (!(wanted[e] <= first)) second = first, first = wanted[e];
            else if (wanted[e] > second) second = wanted[e];
        }
        score[group] = g.best_two ? first + second : first;
    }
    bool kept[g.groups];
    memset(kept, 0, sizeof kept);
    for (int64_t n = 0; n < g.top_groups; ++n) {
        int64_t group = best_of(score, g.groups);
        kept[group] = true;
        score[group] = -INFINITY;
    }
    for (int64_t e = 0; e < g.experts; ++e)
        if (!kept[e / size]) wanted[e] = -INFINITY;
}

// Logits -> scores, in place.
static void score_logits(const Routing& g, float* logits) {
    if (g.kind == SIGMOID_ROUTER) {
        for (int64_t e = 0; e < g.experts; ++e) logits[e] = 1.0f / (1.0f + expf(-logits[e]));
        return;
    }
    float top = logits[best_of(logits, g.experts)], sum = 0.0f;
    for (int64_t e = 0; e < g.experts; ++e) sum += logits[e] = expf(logits[e] - top);
    for (int64_t e = 0; e < g.experts; ++e) logits[e] /= sum;
}

// One token's logits [2 * experts], the second half of which is room -> its experts and weights.
static void choose_experts(const Routing& g, float* scores, float* weights, int32_t* chosen) {
    float* wanted = scores + g.experts;
    if (g.kind == SPARSE_MIXER) return mix_sparsely(g, scores, wanted, weights, chosen);
    // Scores grow with the logits, but those of great logits may round to the same number.
    bool by_logits = !g.selection_bias && !g.groups;
    if (by_logits) memcpy(wanted, scores, g.experts * sizeof(float));
    score_logits(g, scores);
    if (!by_logits)
        for (int64_t e = 0; e < g.experts; ++e)
            wanted[e] = scores[e] + (g.selection_bias ? g.selection_bias[e] : 0.0f);
    if (g.groups) leave_out_groups(g, wanted);
    float sum = 0.0f;
    for (int64_t j = 0; j < g.top_k; ++j) {
        int64_t expert = best_of(wanted, g.experts);
        if (wanted[expert] == -INFINITY)  // whatever the logits: no expert twice
            while (std::find(chosen, chosen + j, (int32_t)expert) != chosen + j) ++expert;
        chosen[j] = (int32_t)expert;
        wanted[expert] = -INFINITY;
        sum += weights[j] = scores[chosen[j]];
    }
    float divisor = g.normalise ? (sum < g.min_sum ? g.min_sum : sum) : 1.0f;
    for (int64_t j = 0; j < g.top_k; ++j) weights[j] = weights[j] / divisor * g.scale;
}

// Sort the slots by expert. `choices` [rows, 2 * top_k]: of each token its weights, then experts.
static void group_by_expert(const Routing& g, const float* choices, int64_t rows, Groups groups) {
    int64_t k = g.top_k;
    auto expert_of = [&](int64_t slot) {
        int32_t expert;
        memcpy(&expert, choices + slot / k * 2 * k + k + slot % k, sizeof expert);
        return expert;
    };
    memset(groups.starts, 0, (g.experts + 1) * sizeof(int32_t));
    for (int64_t slot = 0; slot < rows * k; ++slot) ++groups.starts[expert_of(slot) + 1];
    *groups.count = 0;
    for (int64_t e = 0; e < g.experts; ++e) {
        if (groups.starts[e + 1]) groups.active[(*groups.count)++] = (int32_t)e;
        groups.starts[e + 1] += groups.starts[e];
    }
    for (int64_t slot = 0; slot < rows * k; ++slot) {  // starts[e] runs on to the end of e, which
        int32_t at = groups.starts[expert_of(slot)]++;
        groups.order[at] = (int32_t)slot;
        groups.place[slot] = at;
    }
    for (int64_t e = g.experts; e > 0; --e) groups.starts[e] = groups.starts[e - 1];  // is undone
    groups.starts[0] = 0;
}
