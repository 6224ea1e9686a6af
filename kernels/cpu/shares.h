// Who takes which pieces of an instruction: a thread those of its share in order, and then what the
// others have left of theirs.
//
// A share is a run of neighbouring pieces. So a thread knows what it reads next and can call for it
// before; it takes from the front, and whoever is done with its own takes from the back.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

struct Piece {
    int64_t number;  // -1: none is left
    int64_t next;    // the one that the thread is to take after it; -1: not known
};

class Shares {
    // What is gone of the share of one thread: the instruction, then how many from the back and from
    // the front. What it says of an earlier instruction is old: nothing is gone of a later one's.
    // It has a line of the cache to itself, for mostly one thread writes it.
    struct alignas(64) Gone {
        std::atomic<uint64_t> word{0};
    };
    static constexpr int COUNT_BITS = 20;
    static constexpr uint64_t COUNT = (1ull << COUNT_BITS) - 1;

    std::vector<Gone> gone;

   public:
    explicit Shares(int64_t threads) : gone(threads) {}

    int64_t first_of(int64_t count, int64_t thread) const {
        return count * thread / (int64_t)gone.size();
    }

    // One of the `count` pieces of instruction number `p`.
    Piece take(int64_t p, int64_t count, int64_t thread) {
        Piece piece = take_of(p, count, thread, true);
        for (size_t i = 1; piece.number < 0 && i < gone.size(); ++i)
            piece = take_of(p, count, (thread + i) % gone.size(), false);
        return piece;
    }

   private:
    Piece take_of(int64_t p, int64_t count, int64_t owner, bool own) {
        int64_t first = first_of(count, owner), last = first_of(count, owner + 1);
        std::atomic<uint64_t>& word = gone[owner].word;
        uint64_t seen = word.load(std::memory_order_relaxed);
        for (;;) {
            uint64_t of = seen >> 2 * COUNT_BITS, counts = of == (uint64_t)p ? seen : 0;
            int64_t front = first + (int64_t)(counts & COUNT);
            int64_t back = last - (int64_t)(counts >> COUNT_BITS & COUNT);
            // A later instruction: all of this one was done before that began.
            if (of > (uint64_t)p || front >= back) return {-1, -1};
            uint64_t then = (uint64_t)p << 2 * COUNT_BITS | (counts & COUNT << COUNT_BITS) |
                            (counts & COUNT);
            then += own ? 1 : 1ull << COUNT_BITS;
            if (!word.compare_exchange_weak(seen, then, std::memory_order_relaxed)) continue;
            if (!own) return {back - 1, -1};
            return {front, front + 1 < back ? front + 1 : -1};
        }
    }
};
