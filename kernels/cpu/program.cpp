// A step of a model as a list of instructions, run by a team of threads in one call.
//
// Each instruction is cut into pieces that any thread may take; the next one begins when all pieces
// are done. A thread that the system holds up is not waited for unless it holds a piece, and no
// lock is taken. Values are rows of one workspace: value v of row r stands at v + r * width.
#include <atomic>
#include <thread>
#include <vector>

#include "attention.h"
#include "linear.h"

enum Opcode {
    EMBED, LINEAR, RMS_NORM, LAYER_NORM, ADD, SCALE, SOFTCAP, ACTIVATE, GATE, HEADS, ATTEND, ROWS
};

constexpr int64_t SPINS = 2000;  // looks at a piece that another thread holds, before yielding
constexpr int64_t NORM_OVER_ALL = 1;  // kind of HEADS: one norm over all of them
// The kind of LINEAR is an `Epilogue`, its offset the activation.

// Mirrored by `Instruction` in cpu_program.py.
struct Instruction {
    int64_t opcode;
    int64_t in, in2, out, out2;   // offsets into the workspace; -1: the logits, -2: none
    const void *weight, *bias;    // what the opcode says
    const void *weight2;
    void *keys, *values;          // caches
    int64_t k, n;                 // widths of input and output
    int64_t sampled;              // 1: of the rows whose logits are wanted
    int64_t table;                // which rotary tables; -1: none
    int64_t rotary_dim, interleaved, kind, offset;
    float scalar, eps;
    Attention attention;
};

// What differs from step to step; mirrored by `Step` in cpu_program.py.
struct Step {
    const Instruction* program;
    int64_t length;
    char* workspace;
    void* logits;
    float* scratch;               // [threads, scratch_size], see `scratch_size` below
    int64_t scratch_size;
    int64_t rows, logit_rows, page_table_width, threads;
    const int64_t *tokens, *positions, *slots, *wanted;
    const int32_t *page_table, *sequence_of;
    const void *const *cosines, *const *sines;
};

// Neighbouring rows that are tokens of one sequence.
struct Run {
    int64_t row;
    int count;
};

template <typename T>
struct Machine {
    const Step& step;
    std::vector<std::atomic<int64_t>> next, done;
    std::vector<Run> runs, sampled_runs;
    std::atomic<int> arrived{0};

    explicit Machine(const Step& s)
        : step(s), next(s.length), done(s.length), runs(find_runs(false)),
          sampled_runs(find_runs(true)) {}

    int64_t token_of(bool sampled, int64_t r) const { return sampled ? step.wanted[r] : r; }

    std::vector<Run> find_runs(bool sampled) const {
        std::vector<Run> found;
        int64_t rows = sampled ? step.logit_rows : step.rows;
        for (int64_t r = 0, last = -1; r < rows; ++r) {
            int64_t sequence = step.sequence_of[token_of(sampled, r)];
            if (sequence != last || found.back().count == QUERY_TOKENS) found.push_back({r, 0});
            ++found.back().count;
            last = sequence;
        }
        return found;
    }

    T* at(int64_t value) const {
        return value == -1 ? (T*)step.logits : (T*)step.workspace + value;
    }

    int64_t rows_of(const Instruction& i) const { return i.sampled ? step.logit_rows : step.rows; }

    int64_t features_at_once(const Instruction& i) const {
        int64_t share = i.n / (step.threads * 8), panel = features_of_panel((int)i.kind);
        return std::min<int64_t>(256, std::max<int64_t>(panel, share / panel * panel));
    }
    const std::vector<Run>& runs_of(const Instruction& i) const {
        return i.sampled ? sampled_runs : runs;
    }
    bool by_head(const Instruction& i) const {
        return (int64_t)runs_of(i).size() < 4 * step.threads;
    }

    int64_t pieces(const Instruction& i) const {
        if (i.opcode == LINEAR) {
            int64_t size = features_at_once(i);
            return (i.n + size - 1) / size;
        }
        if (i.opcode == ATTEND)
            return runs_of(i).size() * (by_head(i) ? i.attention.kv_heads : 1);
        int64_t size = rows_at_once(i);
        return (rows_of(i) + size - 1) / size;
    }
    int64_t rows_at_once(const Instruction& i) const {
        return std::min<int64_t>(16, rows_of(i) / (step.threads * 8) + 1);
    }

    void run() {
        int thread = arrived++;
        float* scratch = step.scratch + thread * step.scratch_size;
        for (int64_t p = 0; p < step.length; ++p) {
            const Instruction& i = step.program[p];
            int64_t count = pieces(i), piece;
            while ((piece = next[p].fetch_add(1, std::memory_order_relaxed)) < count) {
                execute(i, piece, scratch);
                done[p].fetch_add(1, std::memory_order_release);
            }
            for (int64_t spin = 0; done[p].load(std::memory_order_acquire) < count; ++spin)
                if (spin > SPINS) std::this_thread::yield();
        }
    }

    void execute(const Instruction& i, int64_t piece, float* scratch) const {
        if (i.opcode == LINEAR) {
            int64_t size = features_at_once(i), first = piece * size;
            Product<T> product{at(i.in), (const T*)i.weight, (const T*)i.bias, at(i.out),
                               rows_of(i), i.k, i.n, (int)i.kind, (int)i.offset};
            linear(product, first, std::min(i.n, first + size), scratch);
        } else if (i.opcode == ATTEND) {
            attend_piece(i, piece, scratch);
        } else {
            int64_t size = rows_at_once(i), last = std::min(rows_of(i), (piece + 1) * size);
            for (int64_t r = piece * size; r < last; ++r) row(i, r);
        }
    }

    // The last runs first: in a prefill they take longest. A token alone reads all heads of a key
    // together, as they lie; of several tokens one head at a time, which stays in the first cache.
    void attend_piece(const Instruction& i, int64_t piece, float* scratch) const {
        const Attention& a = i.attention;
        int64_t parts = by_head(i) ? a.kv_heads : 1, all = runs_of(i).size();
        const Run& run = runs_of(i)[all - 1 - piece / parts];
        int64_t token = token_of(i.sampled, run.row);
        Queries<T> queries{at(i.in) + run.row * i.k, at(i.out) + run.row * i.n, i.k, i.n,
                           step.page_table + step.sequence_of[token] * step.page_table_width,
                           run.count};
        for (int t = 0; t < run.count; ++t)
            queries.positions[t] = step.positions[token_of(i.sampled, run.row + t)];
        const T *keys = (const T*)i.keys, *values = (const T*)i.values;
        if (parts > 1 || run.count == 1)
            return attend(a, queries, keys, values, piece % parts, a.kv_heads / parts, scratch);
        for (int64_t kv = 0; kv < a.kv_heads; ++kv)
            attend(a, queries, keys, values, kv, 1, scratch);
    }

    void row(const Instruction& i, int64_t r) const {
        T* out = at(i.out) + r * i.n;
        const T* in = i.opcode == EMBED ? nullptr : at(i.in) + r * i.k;
        const T *weight = (const T*)i.weight, *bias = (const T*)i.bias;
        switch (i.opcode) {
            case EMBED: memcpy(out, weight + step.tokens[r] * i.n, i.n * sizeof(T)); break;
            case ROWS: memcpy(out, at(i.in) + step.wanted[r] * i.k, i.n * sizeof(T)); break;
            case ADD: add_row(in, at(i.in2) + r * i.k, out, i.n); break;
            case SCALE: scale_row(in, i.scalar, i.kind == 1, out, i.n); break;
            case SOFTCAP: softcap(in, i.scalar, out, i.n); break;
            case ACTIVATE: activate_row(in, out, i.n, i.kind); break;
            case GATE: gate_row(in, out, i.n, i.kind); break;
            case HEADS: heads(i, r); break;
            default: norm(i, in, r, weight, bias, out);
        }
    }

    static void softcap(const T* x, float cap, T* y, int64_t width) {
        by_lanes(width, [&](int64_t i, int n) {
            vec inner = rounded<T>(hyperbolic_tangent(rounded<T>(take(x + i, n) / cap)));
            give(y + i, inner * cap, n);
        });
    }

    void norm(const Instruction& i, const T* x, int64_t r, const T* weight, const T* bias,
              T* out) const {
        if (i.in2 >= 0) {  // the sum first, which others read too
            T* sum = at(i.out2) + r * i.k;
            add_row(at(i.in2) + r * i.k, x, sum, i.k);
            x = sum;
        }
        if (i.opcode == RMS_NORM)
            rms_norm_row(x, weight, out, i.k, i.eps, (int)i.offset);
        else
            layer_norm_row(x, weight, bias, out, i.k, i.eps);
    }

    // Norm and turn a token's queries and keys in place; store its keys and values.
    void heads(const Instruction& i, int64_t r) const {
        const Attention& a = i.attention;
        T* row = at(i.in) + r * i.k;
        const T *cosine = nullptr, *sine = nullptr;
        if (i.table >= 0) {
            cosine = (const T*)step.cosines[i.table] + r * i.rotary_dim;
            sine = (const T*)step.sines[i.table] + r * i.rotary_dim;
        }
        const T *q_weight = (const T*)i.weight, *k_weight = (const T*)i.weight2;
        if (i.kind == NORM_OVER_ALL) {
            int64_t queries = a.heads * a.head_dim, keys = a.kv_heads * a.head_dim;
            rms_norm_row(row, q_weight, row, queries, i.eps, (int)i.offset);
            rms_norm_row(row + queries, k_weight, row + queries, keys, i.eps, (int)i.offset);
            q_weight = k_weight = nullptr;
        }
        for (int64_t h = 0; h < a.heads + a.kv_heads; ++h) {
            T* head = row + h * a.head_dim;
            const T* weight = h < a.heads ? q_weight : k_weight;
            if (weight) rms_norm_row(head, weight, head, a.head_dim, i.eps, (int)i.offset);
            if (cosine) rotate_head(head, cosine, sine, (int)i.rotary_dim, i.interleaved != 0);
        }
        int64_t slot = step.slots[r], size = a.kv_heads * a.head_dim;
        if (slot < 0) return;
        const T* key = row + a.heads * a.head_dim;
        memcpy((T*)i.keys + slot * size, key, size * sizeof(T));
        memcpy((T*)i.values + slot * size, key + size, size * sizeof(T));
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
    for (const Instruction* i = program; i < program + length; ++i)
        if (i->opcode == ATTEND) size = std::max(size, attention_scratch(i->attention));
    return (size + LANES - 1) / LANES * LANES;
}

int64_t size_of_instruction() { return sizeof(Instruction); }
int64_t size_of_step() { return sizeof(Step); }

}
