/* The router's logits: bf16 rows times float weights, by float FMA.
 *
 * A warp sums k across its lanes, 4 values of each 128 a lane, then over the lanes: an order that
 * is the same for every shape of the warp's block of ROWS x OUTS results. */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

enum { WARPS = 4 };

template <int ROWS, int OUTS>
static __global__ void __launch_bounds__(32 * WARPS) router_kernel(struct gemm_router_args a)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int first_out = (blockIdx.x * WARPS + warp) * OUTS, first_row = blockIdx.y * ROWS;
    const __nv_bfloat16 *x = (const __nv_bfloat16 *)a.x;
    float sum[ROWS][OUTS] = {};

    launch_next();
    launch_wait();
#pragma unroll(ROWS *OUTS < 8 ? 4 : 1)
    for (int k = 4 * lane; k < a.k; k += 128) {
        float4 w[OUTS];
#pragma unroll
        for (int o = 0; o < OUTS; o++) {
            int out = min(first_out + o, a.n - 1);
            w[o] = *(const float4 *)(a.weight + (int64_t)out * a.k + k);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int row = min(first_row + r, a.m - 1);
            uint2 raw = *(const uint2 *)(x + row * a.x_stride + k);
            float2 low = __bfloat1622float2(*(__nv_bfloat162 *)&raw.x);
            float2 high = __bfloat1622float2(*(__nv_bfloat162 *)&raw.y);
#pragma unroll
            for (int o = 0; o < OUTS; o++) {
                sum[r][o] = fmaf(low.x, w[o].x, sum[r][o]);
                sum[r][o] = fmaf(low.y, w[o].y, sum[r][o]);
                sum[r][o] = fmaf(high.x, w[o].z, sum[r][o]);
                sum[r][o] = fmaf(high.y, w[o].w, sum[r][o]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int o = 0; o < OUTS; o++) {
            for (int d = 16; d > 0; d /= 2)
                sum[r][o] += __shfl_xor_sync(~0u, sum[r][o], d);
            if (lane == 0 && first_row + r < a.m && first_out + o < a.n)
                a.out[(int64_t)(first_row + r) * a.n + first_out + o] = sum[r][o];
        }
}

template <int ROWS, int OUTS> static int run(const struct gemm_router_args *a, cudaStream_t stream)
{
    int columns = WARPS * OUTS;
    dim3 grid((unsigned)((a->n + columns - 1) / columns), (unsigned)((a->m + ROWS - 1) / ROWS));

    return launch_early(router_kernel<ROWS, OUTS>, grid, 32 * WARPS, 0, stream, *a) == cudaSuccess
               ? GEMM_OK
               : GEMM_CUDA;
}

int gemm_router(const struct gemm_router_args *a, gemm_stream stream)
{
    if (a->m == 0)
        return GEMM_OK;
    if (a->m < 0 || a->n < 1 || a->k < 4 || a->k % 4 || a->x_stride % 4 || (uintptr_t)a->x % 8 ||
        (uintptr_t)a->weight % 16)
        return GEMM_INVALID;
    if (a->m <= 4)
        return run<1, 1>(a, (cudaStream_t)stream);
    if (a->m <= 64)
        return run<4, 1>(a, (cudaStream_t)stream);
    if (a->m <= 512)
        return run<4, 2>(a, (cudaStream_t)stream);
    return run<8, 4>(a, (cudaStream_t)stream);
}
