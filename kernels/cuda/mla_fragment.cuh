/* From the accumulators of wgmma to bf16 rows in memory, and one arrival a warp. */
#pragma once

#include "kernels/cuda/ptx.cuh"

__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    uint32_t r;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

/* The warp has read what the barrier guards. */
__device__ __forceinline__ void release(uint64_t *bar)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        mbar_arrive(smem_u32(bar));
}

/* Lane k of each four gets the k-th word of all four. */
__device__ __forceinline__ void transpose4(uint32_t (&w)[4])
{
    const int lane = threadIdx.x;

#pragma unroll
    for (int d = 1; d < 4; d *= 2) {
#pragma unroll
        for (int a = 0; a < 4; a++) {
            if (a & d)
                continue;
            uint32_t mine = lane & d ? w[a] : w[a + d];
            uint32_t theirs = __shfl_xor_sync(~0u, mine, d);
            if (lane & d)
                w[a] = theirs;
            else
                w[a + d] = theirs;
        }
    }
}

/* Of one row, columns 8 x .. 8 x + 31 stand in the four threads of a quad, two of each eight in
 * each thread: those at d[0], d[1], d[4], d[5], ... Thread k of the quad gets columns 8 (x + k) ..
 * + 7, times `factor`, as bf16. */
__device__ __forceinline__ uint4 row_of_eight(const float *d, float factor)
{
    uint32_t w[4];

#pragma unroll
    for (int a = 0; a < 4; a++)
        w[a] = pack_bf16(d[4 * a] * factor, d[4 * a + 1] * factor);
    transpose4(w);
    return make_uint4(w[0], w[1], w[2], w[3]);
}
