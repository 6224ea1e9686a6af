// A step of a model as a list of instructions, run by a team of threads in one call.
//
// Each instruction is cut into pieces that any thread may take (shares.h); the next one begins when
// all pieces are done. A thread that the system holds up is not waited for unless it holds a piece,
// and no lock is taken. Values are rows of one workspace: value v of row r stands at v + r * width.
#pragma once
#include <thread>

#include "largest.h"
#include "pieces.h"
#include "shares.h"

constexpr int64_t SPINS = 2000;  // looks at a piece that another thread holds, before yielding

template <typename T>
struct Machine : Pieces<T> {
    using Pieces<T>::step;
    std::vector<std::atomic<int64_t>> done, known;
    Shares shares;
    std::atomic<int> arrived{0};

    explicit Machine(const Step& s)
        : Pieces<T>(s), done(s.length), known(s.length), shares(s.threads) {}

    // The pieces of instruction `p`, as the first thread at it found them: for one that comes late
    // the others may be layers ahead, where experts are grouped anew.
    int64_t pieces_of(int64_t p) {
        int64_t found = known[p].load(std::memory_order_acquire);
        if (found) return found - 1;
        int64_t count = this->pieces(step.program[p]);
        return known[p].compare_exchange_strong(found, count + 1) ? count : found - 1;
    }

    // What a thread is to take first of the next product, after the pieces that there are of `p`.
    // Which experts come is not known before.
    NextPiece product_after(int64_t p, int64_t thread) const {
        for (int64_t next = p + 1; next < step.length; ++next) {
            const Instruction& i = step.program[next];
            if (i.opcode == EXPERT_LINEAR) break;
            if (i.opcode == LINEAR) return {&i, shares.first_of(this->pieces(i), thread)};
        }
        return {};
    }

    void run() {
        int thread = arrived++;
        Worker worker{step.scratch + thread * step.scratch_size};
        for (int64_t p = 0; p < step.length; p += step.program[p].chain) {
            const Instruction& i = step.program[p];
            int64_t count = pieces_of(p), finished = 0;
            bool product = i.opcode == LINEAR || i.opcode == EXPERT_LINEAR;
            NextPiece later = product ? product_after(p, thread) : NextPiece{};
            for (Piece piece; (piece = shares.take(p, count, thread)).number >= 0; ++finished)
                this->execute(i, piece.number, piece.next < 0 ? later : NextPiece{&i, piece.next},
                              worker);
            if (finished) done[p].fetch_add(finished, std::memory_order_release);
            for (int64_t spin = 0; done[p].load(std::memory_order_acquire) < count; ++spin)
                if (spin > SPINS) std::this_thread::yield();
        }
    }
};

typedef void (*Team)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel

template <typename T>
static void run_machine(void* machine) {
    ((Machine<T>*)machine)->run();
}

// function(data) in each of so many threads.
static void run_threads(void (*function)(void*), void* data, int64_t threads, Team team) {
    if (threads == 1) return function(data);
    if (team) return team(function, data, (unsigned)threads, 0);
    std::vector<std::thread> others;
    for (int64_t t = 1; t < threads; ++t) others.emplace_back(function, data);
    function(data);
    for (std::thread& other : others) other.join();
}

template <typename T>
static void run_step(const Step& step, Team team) {
    Machine<T> machine(step);
    run_threads(run_machine<T>, &machine, step.threads, team);
}

template <typename T>
static void run_largest(const T* values, int64_t rows, int64_t n, int64_t* columns,
                        int64_t threads, Team team) {
    LargestColumns<T> all{values, rows, n, columns};
    // All of a team or one: of a smaller one OpenMP would end the other threads. To start some takes
    // as long as a row.
    run_threads(LargestColumns<T>::run, &all, rows == 1 || !team ? 1 : threads, team);
}
