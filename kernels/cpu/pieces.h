// The pieces of an instruction: into how many it is cut, and what one of them is.
//
// Pieces are small, so that threads which take them one by one end at about the same time.
#pragma once
#include <vector>

#include "packed_rows.h"
#include "rows.h"

constexpr int64_t ROWS_OF_A_HEAD = 64;  // that a piece takes of latent attention's projections
constexpr int64_t HEADS_OF_ONE_KEY = 16;  // that a piece takes where all heads share one key;
constexpr int64_t FEW_HEADS = 4;          // and where tokens are few

// `count` of the heads that share one key, from `first` on.
static Attention some_heads(Attention a, int64_t first, int64_t count) {
    a.heads = std::min(count, a.heads - first);
    if (a.sinks) a.sinks += first;
    if (a.slopes) a.slopes += first;
    return a;
}

// Neighbouring rows that are tokens of one sequence.
struct Run {
    int64_t row;
    int count;
};

// What a thread is to do when it is done with a piece, as far as that is known.
struct NextPiece {
    const Instruction* instruction = nullptr;
    int64_t number = 0;
};

// What a thread has to itself.
struct Worker {
    float* scratch;
    const Instruction* packed = nullptr;  // the product whose rows are in its scratch, if any are
};

template <typename T>
struct Pieces {
    const Step& step;
    const Rows<T> rows;
    std::vector<Run> runs, sampled_runs;

    explicit Pieces(const Step& s)
        : step(s), rows{s}, runs(find_runs(false)), sampled_runs(find_runs(true)) {}

    int64_t token_of(bool sampled, int64_t r) const { return sampled ? step.wanted[r] : r; }

    std::vector<Run> find_runs(bool sampled) const {
        std::vector<Run> found;
        int64_t count = sampled ? step.logit_rows : step.rows;
        for (int64_t r = 0, last = -1; r < count; ++r) {
            int64_t sequence = step.sequence_of[token_of(sampled, r)];
            if (sequence != last || found.back().count == QUERY_TOKENS) found.push_back({r, 0});
            ++found.back().count;
            last = sequence;
        }
        return found;
    }
    const std::vector<Run>& runs_of(const Instruction& i) const {
        return i.sampled ? sampled_runs : runs;
    }
    // Into how many pieces the heads of a run are cut.
    int64_t parts_of_heads(const Instruction& i) const {
        bool few = (int64_t)runs_of(i).size() < 4 * step.threads;
        if (i.attention.kv_heads == 1)
            return cuts(i.attention.heads, few ? FEW_HEADS : HEADS_OF_ONE_KEY);
        return few ? i.attention.kv_heads : 1;
    }

    T* at(int64_t value) const { return rows.at(value); }

    // Features of a product that a piece takes; `parts` products of the same kind run at once.
    int64_t features_at_once(const Instruction& i, int64_t parts = 1) const {
        int64_t share = i.n * parts / (step.threads * 8), panel = features_of_panel((int)i.kind);
        return std::min<int64_t>(256, std::max<int64_t>(panel, share / panel * panel));
    }
    int64_t rows_at_once(const Instruction& i) const {
        return std::min<int64_t>(16, rows.count(i) / (step.threads * 8) + 1);
    }
    static int64_t cuts(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

    int64_t pieces(const Instruction& i) const {
        switch (i.opcode) {
            case LINEAR: case SCORE_EXPERTS:
                return rows.count(i) ? cuts(i.n, features_at_once(i)) : 0;
            case ATTEND: return runs_of(i).size() * parts_of_heads(i);
            case GROUP_BY_EXPERT: return 1;
            case EXPERT_LINEAR: {
                int64_t active = *rows.groups(i).count;
                return active * cuts(i.n, features_at_once(i, active));
            }
            case ABSORB: case READ_LATENT:
                return i.attention.heads * cuts(step.rows, ROWS_OF_A_HEAD);
            default: return cuts(rows.count(i), rows_at_once(i));
        }
    }

    void execute(const Instruction& i, int64_t piece, NextPiece next, Worker& worker) const {
        float* scratch = worker.scratch;
        switch (i.opcode) {
            case LINEAR: case SCORE_EXPERTS: return product(i, piece, next, worker);
            case ATTEND:
                return attend_piece(i, piece, next.instruction ? next.number : -1, scratch);
            case GROUP_BY_EXPERT:
                return group_by_expert(i.routing, (const float*)at(i.in), rows.tokens(i),
                                       rows.groups(i));
            case EXPERT_LINEAR: return expert_piece(i, piece, next, scratch);
            case ABSORB: return absorb_piece(i, piece);
            case READ_LATENT: return read_piece(i, piece, scratch);
        }
        int64_t size = rows_at_once(i), last = std::min(rows.count(i), (piece + 1) * size);
        for (int64_t r = piece * size; r < last; ++r)
            for (int64_t c = 0; c < i.chain; ++c) rows.run((&i)[c], r);
    }

    // The rows of a weight that a piece of a product begins with.
    FirstRows<T> first_rows(NextPiece piece) const {
        if (!piece.instruction) return {};
        const Instruction& i = *piece.instruction;
        if (i.opcode == EXPERT_LINEAR) {
            ExpertPiece e = expert_of(i, piece.number);
            return FirstRows<T>(e.weight, e.first, i.k, i.n, (int)i.kind);
        }
        return FirstRows<T>((const T*)i.weight, piece.number * features_at_once(i), i.k, i.n,
                            (int)i.kind);
    }

    void product(const Instruction& i, int64_t piece, NextPiece next, Worker& worker) const {
        int64_t size = features_at_once(i), first = piece * size, last = std::min(i.n, first + size);
        const T *x = at(i.in), *weight = (const T*)i.weight, *bias = (const T*)i.bias;
        if (i.opcode == SCORE_EXPERTS)
            return score_experts(x, weight, bias, i.kind == 1, (float*)at(i.out), 2 * i.n,
                                 rows.count(i), i.k, first, last);
        Product<T> product{x, weight, bias, at(i.out), rows.count(i), i.k, i.n, (int)i.kind,
                           (int)i.offset};
        product.next = first_rows(next);
        bool first_piece = worker.packed != &i;
        worker.packed = &i;
        if (!packs_rows(product.rows)) {
            float* room = worker.scratch + linear_scratch(product.rows);
            return linear(spread_rows(product, room, first_piece), first, last, worker.scratch);
        }
        uint32_t* panel = (uint32_t*)worker.scratch + PACKED_ROWS_SCRATCH;
        if (first_piece) pack_rows(product, panel);
        packed_rows_linear(product, first, last, panel, worker.scratch);
    }

    // Some features of one of the experts that have tokens.
    struct ExpertPiece {
        int64_t expert, first, last;
        const T* weight;
    };
    ExpertPiece expert_of(const Instruction& i, int64_t piece) const {
        Groups groups = rows.groups(i);
        int64_t size = features_at_once(i, *groups.count), each = cuts(i.n, size);
        int64_t expert = groups.active[piece / each], first = piece % each * size;
        int64_t features = i.kind == GATED ? 2 * i.n : i.n;
        return {expert, first, std::min(i.n, first + size),
                (const T*)i.weight + expert * features * i.k};
    }
    void expert_piece(const Instruction& i, int64_t piece, NextPiece next, float* scratch) const {
        Groups groups = rows.groups(i);
        ExpertPiece e = expert_of(i, piece);
        int64_t start = groups.starts[e.expert], count = groups.starts[e.expert + 1] - start;
        const T* bias = i.bias ? (const T*)i.bias + (e.weight - (const T*)i.weight) / i.k : nullptr;
        Product<T> product{at(i.in) + start * i.k, e.weight, bias, at(i.out) + start * i.n, count,
                           i.k, i.n, (int)i.kind, (int)i.offset};
        product.next = first_rows(next);
        linear(product, e.first, e.last, scratch);
    }

    // The last runs first: in a prefill they take longest. A token alone reads all heads of a key
    // together, as they lie; of several tokens one head at a time, which stays in the first cache.
    void attend_piece(const Instruction& i, int64_t piece, int64_t after, float* scratch) const {
        int64_t parts = parts_of_heads(i), part = piece % parts;
        const Run& run = run_of(i, piece);
        Attention a = i.attention;
        bool shared = a.kv_heads == 1, together = parts > 1 || run.count == 1;
        int64_t first = shared ? part * cuts(a.heads, parts) * a.head_dim : 0;
        if (shared) a = some_heads(a, part * cuts(a.heads, parts), cuts(a.heads, parts));
        Queries<T> queries = queries_of(i, run, first);
        const T *keys = (const T*)i.keys, *values = (const T*)i.values;
        int64_t kv = shared ? 0 : part, heads = shared ? 1 : a.kv_heads / parts;
        if (!together) kv = 0, heads = 1;
        NextBlock next;
        if (after >= 0) {
            Queries<T> those = queries_of(i, run_of(i, after), 0);
            next = {those.pages, those.first_key(a), those.positions[those.count - 1],
                    together && !shared ? after % parts : 0};
        }
        int64_t all = together ? 1 : a.kv_heads, first_key = queries.first_key(a);
        for (int64_t h = 0; h < all; ++h)
            attend(a, queries, keys, values, kv + h, heads, scratch,
                   h + 1 == all ? next
                                : NextBlock{queries.pages, first_key,
                                               queries.positions[queries.count - 1], h + 1});
    }
    const Run& run_of(const Instruction& i, int64_t piece) const {
        const std::vector<Run>& all = runs_of(i);
        return all[all.size() - 1 - piece / parts_of_heads(i)];
    }
    // Their heads from number `first` of a row on.
    Queries<T> queries_of(const Instruction& i, const Run& run, int64_t first) const {
        int64_t sequence = step.sequence_of[token_of(i.sampled, run.row)];
        Queries<T> queries{at(i.in) + run.row * i.k + first, at(i.out) + run.row * i.n + first, i.k,
                           i.n, step.page_table + sequence * step.page_table_width, run.count, {}};
        for (int t = 0; t < run.count; ++t)
            queries.positions[t] = step.positions[token_of(i.sampled, run.row + t)];
        return queries;
    }

    // Queries [rows, heads, nope + rope] -> [rows, heads, rank + rope].
    void absorb_piece(const Instruction& i, int64_t piece) const {
        const Latent& l = i.latent;
        int64_t heads = i.attention.heads, head = piece % heads;
        int64_t first = piece / heads * ROWS_OF_A_HEAD;
        absorb(l, at(i.in) + first * i.k + head * (l.nope + l.rope), i.k,
               (const T*)i.weight + head * l.nope * l.rank,
               std::min(ROWS_OF_A_HEAD, step.rows - first),
               at(i.out) + first * i.n + head * (l.rank + l.rope), i.n);
    }

    // What they read, [rows, heads, rank + rope] -> values [rows, heads, value]; the weight has the
    // values' rows, head by head.
    void read_piece(const Instruction& i, int64_t piece, float* scratch) const {
        const Latent& l = i.latent;
        int64_t heads = i.attention.heads, head = piece % heads;
        int64_t first = piece / heads * ROWS_OF_A_HEAD;
        Product<T> product{at(i.in) + first * i.k + head * (l.rank + l.rope), (const T*)i.weight,
                           nullptr, at(i.out) + first * i.n,
                           std::min(ROWS_OF_A_HEAD, step.rows - first), l.rank, i.n, PLAIN, 0, i.k};
        linear(product, head * l.value, (head + 1) * l.value, scratch);
    }
};
