/* Prefill attention without tensor cores: readable, for any sizes up to 256. Serves the shapes that
 * the fast kernels do not.
 *
 * A block has one tile and head; a warp takes one query row after the other. 32 tokens at a time, a
 * lane takes the score of its token, the warp folds them into the row's online softmax, and each
 * lane adds up its columns of the result. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_prefill.h"
#include "kernels/cuda/ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>

namespace
{

enum { WARPS = PREFILL_THREADS / 32, MAX_V = 256 };

/* A row's softmax so far, a warp's: the sum is exp(max) * (sum, o). */
struct row_state {
    float max, sum;
    float o[MAX_V / 32]; /* element 32 i + lane */
};

__device__ float dot(const __nv_bfloat16 *a, const __nv_bfloat16 *b, int n)
{
    float sum = 0;

    for (int i = 0; i < n; i++)
        sum += __bfloat162float(a[i]) * __bfloat162float(b[i]);
    return sum;
}

/* Folds `tokens` tokens from row kv_row of the piece on into the state of the row with query q. */
__device__ void fold(const prefill_attend &p, const __nv_bfloat16 *q, int head, int kv_row,
                     int tokens, row_state &row)
{
    const int lane = threadIdx.x % 32;
    const int64_t stride = (int64_t)p.group * (p.nope_dim + p.v_dim);
    const __nv_bfloat16 *kv =
        (const __nv_bfloat16 *)p.kv + kv_row * stride + (int64_t)head * (p.nope_dim + p.v_dim);
    const __nv_bfloat16 *rope = (const __nv_bfloat16 *)p.rope + (int64_t)kv_row * p.rope_dim;

    for (int first = 0; first < tokens; first += 32) {
        const int t = first + lane;
        float score = -INFINITY, max, weight, factor, sum;

        if (t < tokens)
            score = p.scale_log2 * (dot(q, kv + t * stride, p.nope_dim) +
                                    dot(q + p.nope_dim, rope + t * p.rope_dim, p.rope_dim));
        max = fmaxf(row.max, score);
        for (int d = 16; d; d /= 2)
            max = fmaxf(max, __shfl_xor_sync(~0u, max, d));
        factor = exp2f(row.max - max);
        sum = weight = exp2f(score - max);
        for (int d = 16; d; d /= 2)
            sum += __shfl_xor_sync(~0u, sum, d);
        row.max = max;
        row.sum = row.sum * factor + sum;
        for (int i = 0; i < MAX_V / 32; i++)
            row.o[i] *= factor;
        for (int k = 0; k < 32 && first + k < tokens; k++) {
            const float w = __shfl_sync(~0u, weight, k);
            const __nv_bfloat16 *v = kv + (first + k) * stride + p.nope_dim;
            for (int i = 0; i * 32 + lane < p.v_dim; i++)
                row.o[i] += w * __bfloat162float(v[i * 32 + lane]);
        }
    }
}

__global__ void __launch_bounds__(PREFILL_THREADS)
    plain_kernel(const __grid_constant__ prefill_attend p)
{
    launch_wait();
    launch_next();
    const prefill_tile tile = p.tiles[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x % 32, v_dim = p.v_dim;
    float *state = p.state + ((int64_t)tile.state * p.group + head) * prefill_state_floats(v_dim);
    float *maxima = state + PREFILL_ROWS * v_dim, *sums = maxima + PREFILL_ROWS;

    for (int r = threadIdx.x / 32; r < tile.rows; r += WARPS) {
        const int64_t at = (int64_t)(tile.row + r) * p.heads + p.first_head + head;
        const int tokens = min(tile.kv_tokens, tile.position + r + 1 - tile.kv_first);
        row_state row = {-INFINITY, 0, {}};

        if (tile.kv_first > 0) {
            row.max = maxima[r];
            row.sum = sums[r];
            for (int i = 0; i * 32 + lane < v_dim; i++)
                row.o[i] = state[r * v_dim + i * 32 + lane];
        }
        fold(p, (const __nv_bfloat16 *)p.q + at * (p.nope_dim + p.rope_dim), head, tile.kv_row,
             tokens, row);
        if (!tile.last) {
            maxima[r] = row.max;
            sums[r] = row.sum;
        }
        for (int i = 0; i * 32 + lane < v_dim; i++) {
            if (tile.last)
                ((__nv_bfloat16 *)p.out)[at * v_dim + i * 32 + lane] =
                    __float2bfloat16_rn(row.o[i] / row.sum);
            else
                state[r * v_dim + i * 32 + lane] = row.o[i];
        }
        if (tile.last && p.lse && lane == 0)
            p.lse[at] = (row.max + log2f(row.sum)) * 0.69314718056f;
    }
}

} // namespace

int prefill_attend_plain(const struct prefill_attend *p, mla_stream stream)
{
    return launch_early(plain_kernel, dim3(p->n_tiles, p->group), PREFILL_THREADS, 0, stream, *p) ==
                   cudaSuccess
               ? MLA_OK
               : MLA_CUDA;
}
