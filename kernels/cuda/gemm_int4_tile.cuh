/* The math warpgroups' part of gemm_fp8_tile.cuh for INT4 weights: widened to bf16 and multiplied
 * with their group's scale, rounded, as the checkpoints' own tools do, they are wgmma's left
 * operand. */
#pragma once

#include "kernels/cuda/gemm_fp8_tile.cuh"
#include "kernels/cuda/gemm_int4.cuh"

/* This thread's parts of the left operands of a half (128 k) of the step at `at`. */
template <class C>
__device__ __forceinline__ void int4_left(uint32_t (&a)[FP8_SLICES][4], uint32_t at, int group,
                                          int half)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, r = lane / 4, q = lane % 4;
    int row = group * TILE_ROWS + 16 * warp + r;
    uint32_t w[2][4], scales[2][2];

#pragma unroll
    for (int i = 0; i < 2; i++) { /* rows r and r + 8 */
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[i][0]), "=r"(w[i][1]), "=r"(w[i][2]), "=r"(w[i][3])
                     : "r"(at + (row + 8 * i) * FP8_STEP_BYTES + (((4 * half + q) ^ r) << 4))
                     : "memory");
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                     : "=r"(scales[i][0]), "=r"(scales[i][1])
                     : "r"(at + C::SCALES_AT + (row + 8 * i) * 16 + 8 * half)
                     : "memory");
    }
#pragma unroll
    for (int j = 0; j < 4; j++) /* groups */
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t twice = __byte_perm(scales[i][j / 2], 0, j % 2 ? 0x3232 : 0x1010);
            __nv_bfloat162 scale = *(__nv_bfloat162 *)&twice;
#pragma unroll
            for (int s = 0; s < 2; s++) { /* slices */
                a[2 * j + s][i] = int4_bits(__hmul2(int4_widen(w[i][j], 2 * s), scale));
                a[2 * j + s][2 + i] = int4_bits(__hmul2(int4_widen(w[i][j], 2 * s + 1), scale));
            }
        }
}

template <class C, int NT>
__device__ __forceinline__ void int4_multiply(float (&acc)[NT / 2], const tile_memory<C> &mem,
                                              struct ring_place &at, int steps, int group)
{
    uint32_t a[FP8_SLICES][4], next[FP8_SLICES][4];

    ring_wait(mem.full + 8 * at.stage, at.parity);
    int4_left<C>(a, mem.ring + at.stage * C::STAGE_BYTES, group, 0);
    for (int s = 0; s < 2 * steps; s++) {
        uint32_t stage = at.stage, half = s % 2;
        uint64_t b =
            wgmma_desc(mem.ring + stage * C::STAGE_BYTES + C::A_BYTES + half * 2 * C::HALF_BYTES,
                       16, 1024, SWIZZLE_128);
        wgmma_hold(acc);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < FP8_SLICES; j++)
            wgmma<NT>::template rs<0>(acc, a[j], b + (j / 4 * C::HALF_BYTES + j % 4 * 32 >> 4), 1);
        wgmma_commit();
        if (half) {
            at.template advance<C>();
            if (s + 1 < 2 * steps)
                ring_wait(mem.full + 8 * at.stage, at.parity);
        }
        if (s + 1 < 2 * steps)
            int4_left<C>(next, mem.ring + at.stage * C::STAGE_BYTES, group, !half);
        wgmma_wait<0>();
        wgmma_hold(acc);
        if (half && threadIdx.x % 32 == 0)
            mbar_arrive(mem.empty + 8 * stage);
#pragma unroll
        for (int j = 0; j < FP8_SLICES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[j][i] = next[j][i];
    }
}
