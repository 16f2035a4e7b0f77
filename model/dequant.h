/* Stored weights to 32-bit floats: BF16, F16, and FP8 in blocks that share a scale. */
#pragma once

#include "kernels/tensor.h"

#include <stdint.h>

/* out[i] = in[i] for `n` elements of a float dtype other than F8_E4M3. */
void widen_to_f32(float *out, const void *in, enum dtype dtype, int64_t n);

/* One E4M3 value: 4 bits of exponent, 3 of mantissa, no infinities ("e4m3fn"). */
float e4m3_to_f32(uint8_t bits);

/* out (rows, cols) = in * scale of its block, computed in float. Each `block_rows` x `block_cols`
 * block has one scale; scales (ceil(rows / block_rows), ceil(cols / block_cols)). */
void dequant_fp8_blocks(float *out, const uint8_t *in, const float *scales, int64_t rows,
                        int64_t cols, const int32_t block[2]);
