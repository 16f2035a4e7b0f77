/* FP8 weights that share a scale in blocks, to wider floats. */
#pragma once

#include "kernels/tensor.h"

#include <stdint.h>

/* A matrix of E4M3 values. Each block[0] x block[1] block of it has one scale; scales
 * (ceil(all rows / block[0]), ceil(cols / block[1])). */
struct fp8_matrix {
    const float *scales;
    int64_t cols;
    int64_t block[2];
};

/* out (rows, cols) = in * scale, for the rows from `first_row` on, which stand at `in`. Computed in
 * float; `dtype` of `out` is F32, or BF16, to which it is rounded (nearest, ties to even). */
void dequant_fp8_rows(void *out, enum dtype dtype, const uint8_t *in, const struct fp8_matrix *m,
                      int64_t first_row, int64_t rows);
