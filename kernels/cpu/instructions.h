// What a program consists of: instructions, and what differs from step to step.
#pragma once
#include "attention.h"
#include "experts.h"
#include "latent.h"

enum Opcode {
    EMBED, LINEAR, RMS_NORM, LAYER_NORM, ADD, MULTIPLY, SCALE, SOFTCAP, ACTIVATE, XIELU, GATE, CLIP,
    TURN, STORE, ATTEND, ROWS, POSITIONS, TABLE, SCORE_EXPERTS, CHOOSE_EXPERTS, GROUP_BY_EXPERT,
    GATHER, EXPERT_LINEAR, COMBINE, ABSORB, READ_LATENT
};

// Some of a row: `count` units of `width` numbers, `stride` apart, the first of them at `first`.
struct Span {
    int64_t first, count, stride, width;
};

// Mirrored by `Instruction` in cpu_program.py. The kind of products is an `Epilogue`, their offset
// the activation.
struct Instruction {
    int64_t opcode;
    int64_t chain;                // this one and those after it that run row by row with it
    int64_t in, in2, out, out2;   // offsets into the workspace; -1: the logits, -2: none
    const void *weight, *bias;    // what the opcode says
    void *keys, *values;          // caches
    int64_t k, n;                 // widths of input and output
    int64_t sampled;              // 1: of the rows whose logits are wanted
    int64_t times;                // rows of it for each token: 1, or the experts of a token
    int64_t table, by_position;   // which table of the step; 1: its rows are positions
    int64_t interleaved, kind, offset;
    int64_t weight_step;          // from the weight of a unit to that of the next
    int64_t shared;               // numbers of a row that one factor multiplies
    float scalar, eps, limit, up_offset;
    Span span;
    Attention attention;
    Routing routing;
    Latent latent;
};

// What differs from step to step; mirrored by `Step` in cpu_program.py.
struct Step {
    const Instruction* program;
    int64_t length;
    char* workspace;
    void* logits;
    float* scratch;               // [threads, scratch_size], see `scratch_size` of program.cpp
    int64_t scratch_size;
    int64_t rows, logit_rows, page_table_width, threads;
    const int64_t *tokens, *positions, *slots, *wanted;
    const int32_t *page_table, *sequence_of;
    const void* const* tables;    // each [rows or positions, width], of the weights' dtype
};
