/* Widening INT4 weights. See moe_int4.h. */
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

/* Numbers `i` and `i` + 4 of eight (0 to 15) less 8, as bf16, exactly: put into the last bits of
 * 128, and 136 taken away. */
__device__ __forceinline__ __nv_bfloat162 int4_widen(uint32_t eight, int i)
{
    uint32_t bits = (eight >> 4 * i & 0x000f000fu) | 0x43004300u;
    __nv_bfloat162 more =
        __halves2bfloat162(__ushort_as_bfloat16(0x4308), __ushort_as_bfloat16(0x4308));

    return __hsub2(*(__nv_bfloat162 *)&bits, more);
}

__device__ __forceinline__ uint32_t int4_bits(__nv_bfloat162 v)
{
    return *(uint32_t *)&v;
}
