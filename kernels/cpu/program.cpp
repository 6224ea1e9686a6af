// A step of a model as a list of instructions, run by a team of threads in one call.
//
// Each instruction is cut into pieces that any thread may take; the next one begins when all pieces
// are done. A thread that the system holds up is not waited for unless it holds a piece, and no
// lock is taken. Values are rows of one workspace: value v of row r stands at v + r * width.
#include <atomic>
#include <thread>
#include <vector>

#include "linear.h"
#include "rows.h"

constexpr int64_t SPINS = 2000;  // looks at a piece that another thread holds, before yielding
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

template <typename T>
struct Machine {
    const Step& step;
    const Rows<T> rows;
    std::vector<std::atomic<int64_t>> next, done, known;
    std::vector<Run> runs, sampled_runs;
    std::atomic<int> arrived{0};

    explicit Machine(const Step& s)
        : step(s), rows{s}, next(s.length), done(s.length), known(s.length), runs(find_runs(false)),
          sampled_runs(find_runs(true)) {}

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

    // The pieces of instruction `p`, as the first thread at it found them: for one that comes late
    // the others may be layers ahead, where experts are grouped anew.
    int64_t pieces_of(int64_t p) {
        int64_t found = known[p].load(std::memory_order_acquire);
        if (found) return found - 1;
        int64_t count = pieces(step.program[p]);
        return known[p].compare_exchange_strong(found, count + 1) ? count : found - 1;
    }

    void run() {
        int thread = arrived++;
        float* scratch = step.scratch + thread * step.scratch_size;
        for (int64_t p = 0; p < step.length; p += step.program[p].chain) {
            const Instruction& i = step.program[p];
            int64_t count = pieces_of(p), piece;
            while ((piece = next[p].fetch_add(1, std::memory_order_relaxed)) < count) {
                execute(i, piece, scratch);
                done[p].fetch_add(1, std::memory_order_release);
            }
            for (int64_t spin = 0; done[p].load(std::memory_order_acquire) < count; ++spin)
                if (spin > SPINS) std::this_thread::yield();
        }
    }

    void execute(const Instruction& i, int64_t piece, float* scratch) const {
        switch (i.opcode) {
            case LINEAR: case SCORE_EXPERTS: return product(i, piece, scratch);
            case ATTEND: return attend_piece(i, piece, scratch);
            case GROUP_BY_EXPERT:
                return group_by_expert(i.routing, (const float*)at(i.in), rows.tokens(i),
                                       rows.groups(i));
            case EXPERT_LINEAR: return expert_piece(i, piece, scratch);
            case ABSORB: return absorb_piece(i, piece);
            case READ_LATENT: return read_piece(i, piece, scratch);
        }
        int64_t size = rows_at_once(i), last = std::min(rows.count(i), (piece + 1) * size);
        for (int64_t r = piece * size; r < last; ++r)
            for (int64_t c = 0; c < i.chain; ++c) rows.run((&i)[c], r);
    }

    void product(const Instruction& i, int64_t piece, float* scratch) const {
        int64_t size = features_at_once(i), first = piece * size, last = std::min(i.n, first + size);
        const T *x = at(i.in), *weight = (const T*)i.weight, *bias = (const T*)i.bias;
        if (i.opcode == LINEAR) {
            Product<T> product{x, weight, bias, at(i.out), rows.count(i), i.k, i.n,
                               (int)i.kind, (int)i.offset};
            linear(product, first, last, scratch);
        } else {
            score_experts(x, weight, bias, i.kind == 1, (float*)at(i.out), 2 * i.n, rows.count(i),
                          i.k, first, last);
        }
    }

    // Some features of one of the experts that have tokens.
    void expert_piece(const Instruction& i, int64_t piece, float* scratch) const {
        Groups groups = rows.groups(i);
        int64_t size = features_at_once(i, *groups.count), each = cuts(i.n, size);
        int64_t expert = groups.active[piece / each], first = piece % each * size;
        int64_t start = groups.starts[expert], count = groups.starts[expert + 1] - start;
        int64_t features = i.kind == GATED ? 2 * i.n : i.n;
        const T* bias = i.bias ? (const T*)i.bias + expert * features : nullptr;
        Product<T> product{at(i.in) + start * i.k, (const T*)i.weight + expert * features * i.k,
                           bias, at(i.out) + start * i.n, count, i.k, i.n, (int)i.kind,
                           (int)i.offset};
        linear(product, first, std::min(i.n, first + size), scratch);
    }

    // The last runs first: in a prefill they take longest. A token alone reads all heads of a key
    // together, as they lie; of several tokens one head at a time, which stays in the first cache.
    void attend_piece(const Instruction& i, int64_t piece, float* scratch) const {
        int64_t parts = parts_of_heads(i), all = runs_of(i).size(), part = piece % parts;
        const Run& run = runs_of(i)[all - 1 - piece / parts];
        Attention a = i.attention;
        int64_t first = a.kv_heads == 1 ? part * cuts(a.heads, parts) * a.head_dim : 0;
        if (a.kv_heads == 1) a = some_heads(a, part * cuts(a.heads, parts), cuts(a.heads, parts));
        int64_t token = token_of(i.sampled, run.row);
        Queries<T> queries{at(i.in) + run.row * i.k + first, at(i.out) + run.row * i.n + first, i.k,
                           i.n,
                           step.page_table + step.sequence_of[token] * step.page_table_width,
                           run.count};
        for (int t = 0; t < run.count; ++t)
            queries.positions[t] = step.positions[token_of(i.sampled, run.row + t)];
        const T *keys = (const T*)i.keys, *values = (const T*)i.values;
        if (a.kv_heads == 1) return attend(a, queries, keys, values, 0, 1, scratch);
        if (parts > 1 || run.count == 1)
            return attend(a, queries, keys, values, part, a.kv_heads / parts, scratch);
        for (int64_t kv = 0; kv < a.kv_heads; ++kv)
            attend(a, queries, keys, values, kv, 1, scratch);
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

typedef void (*Team)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel

template <typename T>
static void run_machine(void* machine) {
    ((Machine<T>*)machine)->run();
}

template <typename T>
static void run_step(const Step& step, Team team) {
    Machine<T> machine(step);
    if (step.threads == 1) return machine.run();
    if (team) return team(run_machine<T>, &machine, (unsigned)step.threads, 0);
    std::vector<std::thread> others;
    for (int64_t t = 1; t < step.threads; ++t) others.emplace_back(run_machine<T>, &machine);
    machine.run();
    for (std::thread& other : others) other.join();
}

extern "C" {

// `team` is the GOMP_parallel of the OpenMP runtime that the process uses already, whose threads
// are there and awake; null: threads are started.
void run_step_float32(const Step* step, void* team) { run_step<float>(*step, (Team)team); }
void run_step_bfloat16(const Step* step, void* team) { run_step<bf16>(*step, (Team)team); }

// Floats of scratch that each thread needs for steps of up to `rows` rows.
int64_t scratch_size(const Instruction* program, int64_t length, int64_t rows) {
    int64_t size = linear_scratch(rows);
    for (const Instruction* i = program; i < program + length; ++i) {
        if (i->opcode != ATTEND) continue;
        Attention a = i->attention;
        if (a.kv_heads == 1) a = some_heads(a, 0, HEADS_OF_ONE_KEY);
        size = std::max(size, attention_scratch(a));
    }
    return (size + LANES - 1) / LANES * LANES;
}

int64_t size_of_instruction() { return sizeof(Instruction); }
int64_t size_of_step() { return sizeof(Step); }

}
