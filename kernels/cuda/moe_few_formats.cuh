/* Formats of weights for moe_few.cuh. */
#pragma once

#include "kernels/cuda/gemm_fp8.cuh"
#include "kernels/cuda/gemm_int4.cuh"
#include "kernels/cuda/moe_few.cuh"

struct few_bf16 {
    enum { STEP_K = 512, WARP_K = STEP_K / FEW_WARPS, SCALE_BYTES = 0, CHOOSES = 0 };

    struct scales {
    };

    static __device__ __forceinline__ void fetch_scales(char *, const struct scales *, bool, int,
                                                        int, int, int)
    {
    }

    /* k in gemm_stream.cuh's order: a thread reads its parts of two products at once. */
    static __device__ __forceinline__ int token_row(int lane)
    {
        return lane / 4;
    }

    static __device__ __forceinline__ int token_bytes(int lane)
    {
        return lane % 4 * 32;
    }

    static __device__ __forceinline__ void multiply(float (&sum)[4], const char *ring, const char *,
                                                    uint32_t tokens, int, bool gated)
    {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % FEW_WARPS, r = lane / 4,
            q = lane % 4;
        const char *a = ring + warp * (gated ? 1024 : 2048) + r * 128;
        int second = gated ? FEW_STEP_BYTES / 2 : 1024;

#pragma unroll
        for (int piece = 0; piece < 2; piece++) {
            uint4 low = *(const uint4 *)(a + ((2 * q + piece) ^ r) * 16);
            uint4 high = *(const uint4 *)(a + second + ((2 * q + piece) ^ r) * 16), x;
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                         : "r"(tokens + 16 * piece)
                         : "memory");
            mma_16816(sum, low.x, high.x, low.y, high.y, x.x, x.y);
            mma_16816(sum, low.z, high.z, low.w, high.w, x.z, x.w);
        }
    }
};

/* E4M3, a scale for each 128 x 128 block; k in the order of fp8_reorder. */
struct few_fp8 {
    enum {
        STEP_K = 1024,
        WARP_K = STEP_K / FEW_WARPS,
        SCALE_BYTES = 2 * FEW_WARPS * 4,
        CHOOSES = 1,
    };

    struct scales {
        const float *first;
        int64_t z_stride;           /* of an expert */
        int32_t row_stride, blocks; /* of 128 rows; of k */
    };

    /* Those of gate or down, then of up. */
    static __device__ __forceinline__ void
    fetch_scales(char *to, const struct scales *of, bool gated, int z, int row, int block, int lane)
    {
        const struct scales &from = of[!gated ? FEW_DOWN : lane < FEW_WARPS ? FEW_GATE : FEW_UP];
        const float *at = from.first + z * from.z_stride + row / FP8_BLOCK * from.row_stride;

        block += lane % FEW_WARPS;
        bool inside = block < from.blocks;
        if (lane < (gated ? 2 : 1) * FEW_WARPS)
            fp8_copy_scale(smem_u32(to + 4 * lane), at + (inside ? block : 0), inside);
    }

    static __device__ __forceinline__ int token_row(int lane)
    {
        return lane % 8;
    }

    static __device__ __forceinline__ int token_bytes(int lane)
    {
        return lane / 8 * 16;
    }

    static __device__ __forceinline__ void multiply(float (&sum)[4], const char *ring,
                                                    const char *scales, uint32_t tokens, int,
                                                    bool gated)
    {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % FEW_WARPS, r = lane / 4,
            q = lane % 4;
        const char *a = ring + warp * (gated ? 1024 : 2048) + r * 128;
        int second = gated ? FEW_STEP_BYTES / 2 : 1024;
        float low_scale = ((const float *)scales)[warp];
        float high_scale = gated ? ((const float *)scales)[FEW_WARPS + warp] : low_scale;
        float part[2][4] = {}; /* of 64 k each: two chains of products */

#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint4 low = *(const uint4 *)(a + ((2 * q + half) ^ r) * 16);
            uint4 high = *(const uint4 *)(a + second + ((2 * q + half) ^ r) * 16);
            const uint32_t l[4] = {low.x, low.y, low.z, low.w};
            const uint32_t h[4] = {high.x, high.y, high.z, high.w};
            uint32_t b[2][4]; /* 32 k each */
            load_matrices(tokens + 128 * half, b[0]);
            load_matrices(tokens + 128 * half + 64, b[1]);
#pragma unroll
            for (int j = 0; j < 4; j++)
                mma_16816(part[half], fp8_widen_even(l[j]), fp8_widen_even(h[j]),
                          fp8_widen_odd(l[j]), fp8_widen_odd(h[j]), b[j / 2][j % 2 * 2],
                          b[j / 2][j % 2 * 2 + 1]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum[i] = fmaf(part[0][i] + part[1][i], i < 2 ? low_scale : high_scale, sum[i]);
    }
};

/* Whole numbers of four bits, 8 more than they are, with a bf16 scale for each 32 k of a row; k in
 * the order of int4_reorder. */
struct few_int4 {
    enum {
        STEP_K = 2048,
        WARP_K = STEP_K / FEW_WARPS,
        GROUP = 32,
        ROW_SCALES = WARP_K / GROUP * 2, /* bytes of a row's */
        SCALE_BYTES = FEW_WARPS * 16 * ROW_SCALES,
        CHOOSES = 0,
    };

    struct scales {
        const uint16_t *first;
        int64_t z_stride;   /* of an expert */
        int32_t row_stride; /* k / 32 */
    };

    /* (warp, row, group); of gate the first 8 rows, of up the others. 4 groups at a time. */
    static __device__ __forceinline__ void
    fetch_scales(char *to, const struct scales *of, bool gated, int z, int row, int block, int lane)
    {
        int four = lane % 16; /* of a row's 8 blocks of 8 groups */
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int r = 2 * i + lane / 16;
            const struct scales &from = of[!gated ? FEW_DOWN : r < 8 ? FEW_GATE : FEW_UP];
            int at = block * 8 + four * 4;
            const uint16_t *src = from.first + z * from.z_stride +
                                  (int64_t)(row + (gated ? r % 8 : r)) * from.row_stride + at;
            if (at < from.row_stride)
                asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(
                                 smem_u32(to + (four / 2 * 16 + r) * ROW_SCALES + four % 2 * 8)),
                             "l"(src)
                             : "memory");
        }
    }

    static __device__ __forceinline__ int token_row(int lane)
    {
        return lane % 8;
    }

    static __device__ __forceinline__ int token_bytes(int lane)
    {
        return lane / 8 * 16;
    }

    static __device__ __forceinline__ float scale_of(const uint4 &eight, int group)
    {
        const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};

        return __uint_as_float(group % 2 ? words[group / 2] & 0xffff0000u : words[group / 2] << 16);
    }

    static __device__ __forceinline__ void multiply(float (&sum)[4], const char *ring,
                                                    const char *scales, uint32_t tokens, int left,
                                                    bool gated)
    {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % FEW_WARPS, r = lane / 4,
            q = lane % 4;
        const char *a = ring + warp * (gated ? 1024 : 2048) + r * 128;
        const char *scale = scales + (warp * 16 + r) * ROW_SCALES;
        int second = gated ? FEW_STEP_BYTES / 2 : 1024;
        uint4 low_scales = *(const uint4 *)scale;
        uint4 high_scales = *(const uint4 *)(scale + 8 * ROW_SCALES);

#pragma unroll
        for (int half = 0; half < 2; half++) { /* 128 k each */
            if (128 * half >= left)
                break;
            uint4 low = *(const uint4 *)(a + ((4 * half + q) ^ r) * 16);
            uint4 high = *(const uint4 *)(a + second + ((4 * half + q) ^ r) * 16);
            const uint32_t l[4] = {low.x, low.y, low.z, low.w};
            const uint32_t h[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
            for (int j = 0; j < 4; j++) { /* a group */
                float part[4] = {}, low_scale = scale_of(low_scales, 4 * half + j);
                float high_scale = scale_of(high_scales, 4 * half + j);
                uint32_t b[4];
                load_matrices(tokens + 256 * half + 64 * j, b);
                mma_16816(part, int4_bits(int4_widen(l[j], 0)), int4_bits(int4_widen(h[j], 0)),
                          int4_bits(int4_widen(l[j], 1)), int4_bits(int4_widen(h[j], 1)), b[0],
                          b[1]);
                mma_16816(part, int4_bits(int4_widen(l[j], 2)), int4_bits(int4_widen(h[j], 2)),
                          int4_bits(int4_widen(l[j], 3)), int4_bits(int4_widen(h[j], 3)), b[2],
                          b[3]);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sum[i] = fmaf(part[i], i < 2 ? low_scale : high_scale, sum[i]);
            }
        }
    }
};
