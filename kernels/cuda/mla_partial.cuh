/* Partial sums of the decode kernels as f16 pairs, half the bytes of floats. */
#pragma once

#include "kernels/cuda/ptx.cuh"

#include <cuda_fp16.h>

/* What a row's partial sums are multiplied by before they become f16, and with them the row's sum
 * of probabilities; `m`, the reference of its exponents (base 2), becomes that of the products, so
 * who merges need not know. `size`: the sums' magnitudes, added up. They then add up to about 2^15,
 * so none overflows, and the error is 2^-12 of a sum, beside the result's own 2^-9, or 2^-40 of
 * `size`. But for the fraction of m it is a power of two, within bounds that keep the sum of 2^27
 * probabilities in float's range. */
static __device__ __forceinline__ float f16_factor(float &m, float size)
{
    int exponent = 14 + 127 - (__float_as_int(size) >> 23);
    float whole = rintf(m), fraction = m == -INFINITY ? -INFINITY : m - whole;

    exponent = min(max(exponent, -113), 96);
    m = whole - (float)exponent;
    return exp2_fast(fraction) * __int_as_float((127 + exponent) << 23);
}

static __device__ __forceinline__ uint32_t pack_f16(float x, float y)
{
    __half2 pair = __floats2half2_rn(x, y);

    return *(uint32_t *)&pair;
}

static __device__ __forceinline__ float2 unpack_f16(uint32_t pair)
{
    return __half22float2(*(__half2 *)&pair);
}
