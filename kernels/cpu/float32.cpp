// What Python calls of programs over float32.
#include "program.h"

extern "C" {

// `team` is the GOMP_parallel of the OpenMP runtime that the process uses already, whose threads
// are there and awake; null: threads are started.
void run_step_float32(const Step* step, void* team) { run_step<float>(*step, (Team)team); }

// The column [rows] of the largest number of each row of values [rows, n], see `largest_column`.
void largest_float32(const float* values, int64_t rows, int64_t n, int64_t* columns, int64_t threads,
                     void* team) {
    run_largest(values, rows, n, columns, threads, (Team)team);
}

}
