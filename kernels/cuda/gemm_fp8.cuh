/* What the kernels for FP8 weights share: parameters, scales, widening. See gemm_fp8.h. */
#pragma once

#include "kernels/cuda/gemm_fp8.h"
#include "kernels/cuda/gemm_tile.cuh"

#include <cuda_fp8.h>

/* Where the scale of a block of weight rows and of k is. */
struct fp8_scale_map {
    const float *scales, *up_scales; /* up NULL: not gate and up */
    int64_t z_stride;                /* of an expert */
    int32_t row_stride;              /* of 128 rows */
};

/* Where the scales of an INT4 weight's groups of 32 k are (moe_int4.h). */
struct int4_scale_map {
    const uint16_t *scales, *up_scales; /* up NULL: not gate and up */
    int64_t z_stride;                   /* of an expert */
    int32_t row_stride;
};

struct fp8_params {
    tile_params tile;
    struct fp8_scale_map scales[GEMM_MAX_PARTS]; /* of the parts; with routing: experts, shared */
    struct int4_scale_map groups;                /* INT4: the experts' */
    int32_t k_blocks;                            /* k / 128 */
    int32_t box_tokens;                          /* gemm_fp8_tile.cuh, dense: rows of a box of x */
};

/* The scales of weight row `row` of z, for rising blocks of k. */
__device__ __forceinline__ const float *
fp8_scale_row(const float *scales, const struct fp8_scale_map &map, int z, int row)
{
    return scales + z * map.z_stride + row / FP8_BLOCK * map.row_stride;
}

/* Four bytes of E4M3 from memory to shared memory, or zero. */
__device__ __forceinline__ void fp8_copy_scale(uint32_t dst, const float *src, bool inside)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src),
                 "r"(inside ? 4 : 0)
                 : "memory");
}

/* One arrival at `bar` when this thread's copies so far are done; counted when it was set up. */
__device__ __forceinline__ void fp8_copies_arrive(uint32_t bar)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

/* The scale of 128 values of a token, of which this is the largest. */
__device__ __forceinline__ float fp8_scale_of(float largest, bool ue8m0)
{
    float scale = fmaxf(largest, 1e-4f) / 448.0f;

    if (ue8m0) /* up to the next power of two */
        scale = __uint_as_float((__float_as_uint(scale) + 0x7fffffu) & 0x7f800000u);
    return scale;
}

__device__ __forceinline__ uint32_t fp8_pack(float a, float b, float c, float d)
{
    return __nv_fp8x4_e4m3(make_float4(a, b, c, d)).__x;
}

/* E4M3 bytes 0 and 2 (1 and 3) as a pair of bf16. Sign and the seven other bits are put where bf16
 * has them; its exponent counts from 127, not 7: hence the factor 2^120, exact also for the least
 * values (subnormal on both sides of it). */
__device__ __forceinline__ uint32_t fp8_rebias(uint32_t bits)
{
    __nv_bfloat162 v = *(__nv_bfloat162 *)&bits;
    __nv_bfloat162 factor =
        __halves2bfloat162(__ushort_as_bfloat16(0x7b80), __ushort_as_bfloat16(0x7b80)); /* 2^120 */

    v = __hmul2(v, factor);
    return *(uint32_t *)&v;
}

__device__ __forceinline__ uint32_t fp8_widen_even(uint32_t four)
{
    return fp8_rebias((four << 8 & 0x80008000u) | (four << 4 & 0x07f007f0u));
}

__device__ __forceinline__ uint32_t fp8_widen_odd(uint32_t four)
{
    return fp8_rebias((four & 0x80008000u) | (four >> 4 & 0x07f007f0u));
}
