/* Products of one or two rows whose weights fit the registers of all multiprocessors: a warp has
 * ROWS rows of the weight, loaded before the kernel ahead is done; what is left then is to read x,
 * and sums over a warp. */
#include "kernels/cuda/gemm_vector.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

enum { WARPS = 4 };

static __device__ __forceinline__ float dot_8(uint4 a, uint4 b, float sum)
{
    const __nv_bfloat162 *u = (const __nv_bfloat162 *)&a, *v = (const __nv_bfloat162 *)&b;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 p = __bfloat1622float2(u[i]), q = __bfloat1622float2(v[i]);
        sum = fmaf(p.x, q.x, sum);
        sum = fmaf(p.y, q.y, sum);
    }
    return sum;
}

/* VECTORS * 256 >= k. A row of x is column i * 256 + lane * 8 .. of a lane. */
template <int VECTORS, int ROWS>
static __global__ void __launch_bounds__(32 * WARPS) gemv_kernel(const gemv_args a)
{
    const int lane = threadIdx.x % 32, groups = (a.n + ROWS - 1) / ROWS;
    const int id = blockIdx.x * WARPS + threadIdx.x / 32, head = id / groups;
    const int first = (id - head * groups) * ROWS;
    const uint4 zero = {};
    uint4 w[ROWS][VECTORS];

    launch_next();
    if (head < a.heads)
#pragma unroll
        for (int j = 0; j < ROWS; j++)
#pragma unroll
            for (int i = 0; i < VECTORS; i++) {
                const int at = (i * 32 + lane) * 8;
                const __nv_bfloat16 *row = (const __nv_bfloat16 *)a.weight +
                                           head * a.weight_head_stride +
                                           (first + j) * a.weight_row_stride;
                w[j][i] = at < a.k && first + j < a.n ? __ldg((const uint4 *)(row + at)) : zero;
            }
    launch_wait();
    if (head >= a.heads)
        return;
    for (int r = 0; r < a.m; r++) {
        const __nv_bfloat16 *x =
            (const __nv_bfloat16 *)a.x + r * a.x_stride + head * a.x_head_stride;
        const int64_t to = r * a.out_stride + head * a.out_head_stride + first + lane;
        const bool mine = lane < ROWS && first + lane < a.n;
        uint4 in[VECTORS];
        float add = 0, sum[ROWS] = {}, result = 0;
#pragma unroll
        for (int i = 0; i < VECTORS; i++)
            in[i] = (i * 32 + lane) * 8 < a.k ? __ldcg((const uint4 *)x + i * 32 + lane) : zero;
        if (a.residual && mine)
            add = __bfloat162float(((const __nv_bfloat16 *)a.residual)[to]);
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
#pragma unroll
            for (int i = 0; i < VECTORS; i++)
                sum[j] = dot_8(w[j][i], in[i], sum[j]);
            for (int d = 16; d; d /= 2)
                sum[j] += __shfl_xor_sync(~0u, sum[j], d);
            result = lane == j ? sum[j] : result;
        }
        if (mine) {
            __nv_bfloat16 rounded = __float2bfloat16(result);
            if (a.residual)
                rounded = __float2bfloat16(__bfloat162float(rounded) + add);
            ((__nv_bfloat16 *)a.out)[to] = rounded;
        }
    }
}

template <int VECTORS, int ROWS> static int run(const gemv_args &a, cudaStream_t stream)
{
    int warps = (a.n + ROWS - 1) / ROWS * a.heads;

    return launch_early(gemv_kernel<VECTORS, ROWS>, (warps + WARPS - 1) / WARPS, 32 * WARPS, 0,
                        stream, a) == cudaSuccess
               ? GEMM_OK
               : GEMM_CUDA;
}

int gemv(const gemv_args &a, cudaStream_t stream)
{
    if (a.k <= 512)
        return run<2, 4>(a, stream);
    if (a.k <= 1024)
        return run<4, 2>(a, stream);
    return run<8, 1>(a, stream);
}
