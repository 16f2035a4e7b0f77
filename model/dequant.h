/* FP8 weights that share a scale in blocks, to 32-bit floats. */
#pragma once

#include <stdint.h>

/* out (rows, cols) = in * scale of its block, computed in float. Each `block_rows` x `block_cols`
 * block has one scale; scales (ceil(rows / block_rows), ceil(cols / block_cols)). */
void dequant_fp8_blocks(float *out, const uint8_t *in, const float *scales, int64_t rows,
                        int64_t cols, const int32_t block[2]);
