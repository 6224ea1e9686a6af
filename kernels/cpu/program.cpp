// A step of a model as a list of instructions, run by a team of threads in one call.
//
// Each instruction is cut into pieces that any thread may take; the next one begins when all pieces
// are done. A thread that the system holds up is not waited for unless it holds a piece, and no
// lock is taken. Values are rows of one workspace: value v of row r stands at v + r * width.
#include <atomic>
#include <thread>
#include <vector>

#include "rows.h"

constexpr int64_t SPINS = 2000;  // looks at a piece that another thread holds, before yielding
constexpr int64_t ROWS_OF_A_HEAD = 64;  // that a piece takes of latent attention's projections
constexpr int64_t LATENT_HEADS = 4;     // heads of a piece where rows are few

template <typename T>
struct Machine {
    const Step& step;
    const Rows<T> rows;
    std::vector<std::atomic<int64_t>> next, done;
    std::atomic<int> arrived{0};

    explicit Machine(const Step& s) : step(s), rows{s}, next(s.length), done(s.length) {}

    T* at(int64_t value) const { return rows.at(value); }

    // Features of a product that a piece takes; `parts` products of the same kind run at once.
    int64_t features_at_once(const Instruction& i, int64_t parts = 1) const {
        int64_t share = i.n * parts / (step.threads * 8);
        return std::min<int64_t>(256, std::max<int64_t>(16, share / 8 * 8));
    }
    bool by_head() const { return step.rows < 4 * step.threads; }
    int64_t latent_heads(const Instruction& i) const {
        return by_head() ? LATENT_HEADS : i.attention.heads;
    }
    int64_t rows_at_once(const Instruction& i) const {
        return std::min<int64_t>(16, rows.count(i) / (step.threads * 8) + 1);
    }
    static int64_t cuts(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

    int64_t pieces(const Instruction& i) const {
        switch (i.opcode) {
            case LINEAR: case SCORE_EXPERTS: return cuts(i.n, features_at_once(i));
            case ATTEND: return step.rows * (by_head() ? i.attention.heads : 1);
            case GROUP_BY_EXPERT: return 1;
            case EXPERT_LINEAR: {
                int64_t active = *rows.groups(i).count;
                return active * cuts(i.n, features_at_once(i, active));
            }
            case ABSORB: case READ_LATENT:
                return i.attention.heads * cuts(step.rows, ROWS_OF_A_HEAD);
            case ATTEND_LATENT: return step.rows * cuts(i.attention.heads, latent_heads(i));
            default: return cuts(rows.count(i), rows_at_once(i));
        }
    }

    void run() {
        int thread = arrived++;
        float* scratch = step.scratch + thread * step.scratch_size;
        for (int64_t p = 0; p < step.length; p += step.program[p].chain) {
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
        switch (i.opcode) {
            case LINEAR: case SCORE_EXPERTS: return product(i, piece * features_at_once(i));
            case ATTEND: return attend_piece(i, piece, scratch);
            case GROUP_BY_EXPERT:
                return group_by_expert(i.routing, (const float*)at(i.in), step.rows,
                                       rows.groups(i));
            case EXPERT_LINEAR: return expert_piece(i, piece);
            case ABSORB: return absorb_piece(i, piece);
            case ATTEND_LATENT: return attend_latent_piece(i, piece, scratch);
            case READ_LATENT: return read_piece(i, piece);
        }
        int64_t size = rows_at_once(i), last = std::min(rows.count(i), (piece + 1) * size);
        for (int64_t r = piece * size; r < last; ++r)
            for (int64_t c = 0; c < i.chain; ++c) rows.run((&i)[c], r);
    }

    void product(const Instruction& i, int64_t first) const {
        int64_t last = std::min(i.n, first + features_at_once(i));
        const T *x = at(i.in), *weight = (const T*)i.weight, *bias = (const T*)i.bias;
        if (i.opcode == LINEAR)
            linear<T>(x, weight, bias, at(i.out), rows.count(i), i.k, i.n, first, last);
        else
            score_experts<T>(x, weight, bias, i.kind == 1, (float*)at(i.out), 2 * i.n,
                             rows.count(i), i.k, first, last);
    }

    // Some features of one of the experts that have tokens.
    void expert_piece(const Instruction& i, int64_t piece) const {
        Groups groups = rows.groups(i);
        int64_t size = features_at_once(i, *groups.count), each = cuts(i.n, size);
        int64_t expert = groups.active[piece / each], first = piece % each * size;
        int64_t start = groups.starts[expert], count = groups.starts[expert + 1] - start;
        const T* bias = i.bias ? (const T*)i.bias + expert * i.n : nullptr;
        linear<T>(at(i.in) + start * i.k, (const T*)i.weight + expert * i.n * i.k, bias,
                  at(i.out) + start * i.n, count, i.k, i.n, first, std::min(i.n, first + size));
    }

    void attend_piece(const Instruction& i, int64_t piece, float* scratch) const {
        const Attention& a = i.attention;
        int64_t count = by_head() ? 1 : a.heads, groups = a.heads / count;
        int64_t r = piece / groups, head = piece % groups * count;
        const int32_t* pages = step.page_table + step.sequence_of[r] * step.page_table_width;
        attend<T>(a, at(i.in) + r * i.k + head * a.head_dim, (const T*)i.keys, (const T*)i.values,
                  pages, step.positions[r], head, count, at(i.out) + r * i.n + head * a.head_dim,
                  scratch, step.max_context);
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

    // Those queries -> what they read, [heads, rows, rank].
    void attend_latent_piece(const Instruction& i, int64_t piece, float* scratch) const {
        const Attention& a = i.attention;
        int64_t size = latent_heads(i), groups = cuts(a.heads, size), rank = i.latent.rank;
        int64_t r = piece / groups, head = piece % groups * size;
        const int32_t* pages = step.page_table + step.sequence_of[r] * step.page_table_width;
        attend_latent<T>(a, rank, at(i.in) + r * i.k + head * a.head_dim, (const T*)i.keys, pages,
                         step.positions[r], std::min(size, a.heads - head),
                         at(i.out) + (head * step.rows + r) * rank, step.rows * rank, scratch,
                         step.max_context);
    }

    // That -> values [rows, heads, value]; the weight has the values' rows, head by head.
    void read_piece(const Instruction& i, int64_t piece) const {
        const Latent& l = i.latent;
        int64_t heads = i.attention.heads, head = piece % heads;
        int64_t first = piece / heads * ROWS_OF_A_HEAD;
        linear<T>(at(i.in) + (head * step.rows + first) * l.rank, (const T*)i.weight, nullptr,
                  at(i.out) + first * i.n, std::min(ROWS_OF_A_HEAD, step.rows - first), l.rank, i.n,
                  head * l.value, (head + 1) * l.value);
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

int64_t size_of_instruction() { return sizeof(Instruction); }
int64_t size_of_step() { return sizeof(Step); }

}
