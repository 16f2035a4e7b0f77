/* Narrow floats to 32-bit ones, exactly. */
#pragma once

#include "kernels/tensor.h"

#include <stdint.h>

/* out[i] = in[i] for `n` elements of a float dtype other than F8_E4M3. */
void widen_to_f32(float *out, const void *in, enum dtype dtype, int64_t n);

/* One E4M3 value: 4 bits of exponent, 3 of mantissa, no infinities ("e4m3fn"). */
float e4m3_to_f32(uint8_t bits);
