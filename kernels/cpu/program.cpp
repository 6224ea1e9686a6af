// What Python asks about programs. The kernels for each type of numbers are compiled apart
// (float32.cpp, bfloat16.cpp), at the same time.
#include "pieces.h"

extern "C" {

// Floats of scratch that each thread needs for steps of up to `rows` rows.
int64_t scratch_size(const Instruction* program, int64_t length, int64_t rows) {
    int64_t size = linear_scratch(rows);
    for (const Instruction* i = program; i < program + length; ++i) {
        if (i->opcode == LINEAR) {
            size = std::max(size, linear_scratch(FEW_ROWS) + spread_rows_scratch(i->k));
            size = std::max(size, PACKED_ROWS_SCRATCH + packed_rows(i->k));
        }
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
