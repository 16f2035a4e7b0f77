/* mla_decode without tensor cores: readable, for any latent and rope size up to 512 + 128 and any
 * GPU from compute capability 8.0. What the fast kernels are compared with, and what serves the
 * shapes they do not.
 *
 * A block has one query row and HEADS of its heads, a warp each. Cache rows are staged in shared
 * memory TOKENS at a time as floats; a warp takes the dot products of its head's query, kept in
 * registers, with each row, and folds the row into its online softmax. One block reads the whole
 * sequence, so a result never depends on the batch. */
#include "kernels/cuda/mla_internal.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <math.h>

enum { HEADS = 8, TOKENS = 16, THREADS = 32 * HEADS, MAX_ROW = 640, MAX_LATENT = 512 };

/* Element `i` of the cache row at `row`, as a float. */
static __device__ float cache_value(const struct mla_cache &c, const char *row, int i)
{
    if (c.format == MLA_KV_BF16)
        return __bfloat162float(((const __nv_bfloat16 *)row)[i]);
    const float *scales = (const float *)(row + c.latent_dim);
    if (i >= c.latent_dim)
        return __bfloat162float(
            ((const __nv_bfloat16 *)(scales + c.latent_dim / 128))[i - c.latent_dim]);
    __nv_fp8_e4m3 value;
    value.__x = (unsigned char)row[i];
    return (float)value * scales[i / 128];
}

static __device__ int row_bytes(const struct mla_cache &c)
{
    if (c.format == MLA_KV_BF16)
        return 2 * (c.latent_dim + c.rope_dim);
    return c.latent_dim + 4 * (c.latent_dim / 128) + 2 * c.rope_dim;
}

/* The online softmax of one head, a warp's: the sum so far is exp(m) * (l, o). */
struct head_state {
    float q[MAX_ROW / 32];    /* element 32 i + lane */
    float o[MAX_LATENT / 32]; /* likewise */
    float m, l;
};

static __device__ void fold(struct head_state &s, const float *row, int width, int latent,
                            float scale)
{
    int lane = threadIdx.x % 32;
    float dot = 0;

#pragma unroll
    for (int i = 0; i < MAX_ROW / 32; i++)
        if (32 * i + lane < width)
            dot += s.q[i] * row[32 * i + lane];
    for (int step = 16; step > 0; step /= 2)
        dot += __shfl_xor_sync(0xffffffff, dot, step);
    dot *= scale;

    float m = fmaxf(s.m, dot), keep = expf(s.m - m), p = expf(dot - m);
    s.l = s.l * keep + p;
    s.m = m;
#pragma unroll
    for (int i = 0; i < MAX_LATENT / 32; i++)
        if (32 * i + lane < latent)
            s.o[i] = s.o[i] * keep + p * row[32 * i + lane];
}

static __global__ void __launch_bounds__(THREADS) decode(struct mla_decode_args a)
{
    __shared__ float rows[TOKENS][MAX_ROW];
    int seq = blockIdx.x, j = blockIdx.y, head = blockIdx.z * HEADS + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    int latent = a.cache.latent_dim, width = latent + a.cache.rope_dim;
    int q_len = a.seqs.q_lens ? a.seqs.q_lens[seq] : a.seqs.max_q_len;

    if (j >= q_len)
        return;
    int64_t q_row = (a.seqs.q_starts ? a.seqs.q_starts[seq] : seq * a.seqs.max_q_len) + j;
    int64_t table =
        a.seqs.table_starts ? a.seqs.table_starts[seq] : (int64_t)seq * a.seqs.table_stride;
    int kv_len = a.seqs.kv_lens[seq];
    int visible = a.causal ? kv_len - q_len + j + 1 : kv_len;
    int64_t at = q_row * a.heads + head;
    struct head_state s;

    s.m = -INFINITY;
    s.l = 0;
#pragma unroll
    for (int i = 0; i < MAX_ROW / 32; i++)
        s.q[i] = head < a.heads && 32 * i + lane < width
                     ? __bfloat162float(((const __nv_bfloat16 *)a.q)[at * width + 32 * i + lane])
                     : 0;
#pragma unroll
    for (int i = 0; i < MAX_LATENT / 32; i++)
        s.o[i] = 0;

    for (int t0 = 0; t0 < visible; t0 += TOKENS) {
        int page = a.seqs.block_tables[table + t0 / MLA_PAGE_TOKENS];
        const char *first = (const char *)a.cache.pages + page * a.cache.page_stride +
                            t0 % MLA_PAGE_TOKENS * row_bytes(a.cache);
        int n = min(TOKENS, visible - t0);
        __syncthreads();
        for (int i = threadIdx.x; i < n * width; i += THREADS)
            rows[i / width][i % width] =
                cache_value(a.cache, first + i / width * row_bytes(a.cache), i % width);
        __syncthreads();
        for (int t = 0; t < n; t++)
            fold(s, rows[t], width, latent, a.softmax_scale);
    }

    if (head >= a.heads)
        return;
#pragma unroll
    for (int i = 0; i < MAX_LATENT / 32; i++)
        if (32 * i + lane < latent)
            ((__nv_bfloat16 *)a.out)[at * latent + 32 * i + lane] =
                __float2bfloat16(visible > 0 ? s.o[i] / s.l : 0);
    if (a.lse && lane == 0)
        a.lse[at] = visible > 0 ? s.m + logf(s.l) : INFINITY;
}

int mla_baseline_launch(const struct mla_decode_args *args, cudaStream_t stream)
{
    if (args->cache.latent_dim > MAX_LATENT ||
        args->cache.latent_dim + args->cache.rope_dim > MAX_ROW)
        return MLA_UNSUPPORTED;
    dim3 grid((unsigned)args->seqs.n_seqs, (unsigned)args->seqs.max_q_len,
              (unsigned)(args->heads + HEADS - 1) / HEADS);
    decode<<<grid, THREADS, 0, stream>>>(*args);
    return cudaGetLastError() == cudaSuccess ? MLA_OK : MLA_CUDA;
}
