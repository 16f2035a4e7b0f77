/* FP8 weights in blocks that share a scale, and those of four bits in groups, to wider floats. */
#pragma once

#include "kernels/tensor.h"

#include <stdint.h>

/* A matrix of E4M3 or I4 values. Each block[0] x block[1] block of it has one scale, of which there
 * are ceil(cols / block[1]) a row. */
struct scaled_matrix {
    const float *scales; /* from the block on that the first row is in */
    enum dtype dtype;
    int64_t cols;
    int64_t block[2];
};

/* out (rows, cols) = in * scale, for the rows from `first_row` on, which stand at `in`. Computed in
 * float; `dtype` of `out` is F32, or BF16, to which it is rounded (nearest, ties to even). */
void dequant_rows(void *out, enum dtype dtype, const uint8_t *in, const struct scaled_matrix *m,
                  int64_t first_row, int64_t rows);
