/* Experts for many rows: pairs (row, slot) are sorted by expert, their rows of x copied in that
 * order, and the products run over each expert's range of rows. The order within a range is as the
 * blocks of the sort come; a row's result does not depend on its place. The shared experts are
 * computed as one MLP; their outputs follow those of the pairs in y. */
#include "kernels/cuda/gemm_wide.cuh"
#include "kernels/cuda/moe_internal.h"

#include <string.h>

namespace
{

using sorted = wide_config<TILE_SORTED, 0>;

enum { SORT_THREADS = 256, COPY_ROWS = 4, COMBINE_THREADS = 128 };

__global__ void __launch_bounds__(MOE_MAX_EXPERTS) zero_kernel(int experts, struct moe_layout at)
{
    launch_next();
    launch_wait();
    if ((int)threadIdx.x < experts)
        at.counts[threadIdx.x] = 0;
}

/* Counts a block's pairs by expert and sets aside places in each expert's range for them. */
__global__ void __launch_bounds__(SORT_THREADS)
    count_kernel(const int32_t *ids, int pairs, int experts, struct moe_layout at)
{
    __shared__ int32_t count[MOE_MAX_EXPERTS];
    int first = blockIdx.x * MOE_SORT_PAIRS, end = min(first + (int)MOE_SORT_PAIRS, pairs);

    for (int e = threadIdx.x; e < experts; e += SORT_THREADS)
        count[e] = 0;
    launch_next();
    launch_wait();
    __syncthreads();
    for (int p = first + threadIdx.x; p < end; p += SORT_THREADS)
        if (ids[p] >= 0)
            at.ranks[p] = atomicAdd(&count[ids[p]], 1);
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += SORT_THREADS)
        at.bases[blockIdx.x * experts + e] = count[e] ? atomicAdd(&at.counts[e], count[e]) : 0;
}

/* Exclusive sums of the counts. */
__global__ void __launch_bounds__(32) range_kernel(int experts, struct moe_layout at)
{
    int sum = 0;

    launch_next();
    launch_wait();
    for (int e = 0; e < experts; e += 32) {
        int i = e + threadIdx.x, count = i < experts ? at.counts[i] : 0, up_to = count;
        for (int d = 1; d < 32; d *= 2) {
            int below = __shfl_up_sync(~0u, up_to, d);
            up_to += (int)threadIdx.x >= d ? below : 0;
        }
        if (i < experts)
            at.ranges[i] = sum + up_to - count;
        sum += __shfl_sync(~0u, up_to, 31);
    }
    if (threadIdx.x == 0)
        at.ranges[experts] = sum;
}

/* Copies each pair's row of x to its place. A warp a pair. */
__global__ void __launch_bounds__(SORT_THREADS)
    copy_kernel(const uint4 *x, int64_t x_stride, int d, const int32_t *ids, int pairs, int top_k,
                int experts, struct moe_layout at)
{
    int p = (blockIdx.x * SORT_THREADS + threadIdx.x) / 32, lane = threadIdx.x % 32;

    launch_next();
    launch_wait();
    if (p >= pairs || ids[p] < 0)
        return;
    int place = at.ranges[ids[p]] + at.bases[p / MOE_SORT_PAIRS * experts + ids[p]] + at.ranks[p];
    int row = p / top_k;
    uint4 *to = (uint4 *)at.y + (int64_t)place * (d / 8);
    if (lane == 0)
        at.places[p] = place;
    for (int i = lane; i < d / 8; i += 32)
        to[i] = x[row * (x_stride / 8) + i];
}

/* A thread has 8 columns of a row. */
__global__ void __launch_bounds__(COMBINE_THREADS)
    combine_kernel(struct moe_args a, const uint4 *y, const int32_t *places, int shared)
{
    int column = blockIdx.y * COMBINE_THREADS + threadIdx.x, columns = a.d / 8;
    int64_t row = blockIdx.x, slots = a.top_k + shared;
    float sum[8] = {};

    launch_next();
    launch_wait();
    if (column >= columns)
        return;
    auto add = [&](uint4 raw, float weight) {
        const __nv_bfloat162 *v = (const __nv_bfloat162 *)&raw;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 f = __bfloat1622float2(v[i]);
            sum[2 * i] = fmaf(weight, f.x, sum[2 * i]);
            sum[2 * i + 1] = fmaf(weight, f.y, sum[2 * i + 1]);
        }
    };
#pragma unroll 4
    for (int s = 0; s < slots; s++) {
        bool routed = s < a.top_k;
        int64_t pair = row * a.top_k + s, from = row * slots + s;
        if (routed && a.ids[pair] < 0)
            continue;
        if (places)
            from = routed ? places[pair] : (int64_t)a.m * a.top_k + row;
        add(y[from * columns + column], routed ? a.weights[pair] : 1.0f);
    }
    int64_t at = row * (a.out_stride / 8) + column;
    if (a.residual)
        add(((const uint4 *)a.residual)[at], 1.0f);
    uint4 out;
    __nv_bfloat162 *v = (__nv_bfloat162 *)&out;
    for (int i = 0; i < 4; i++)
        v[i] = __floats2bfloat162_rn(sum[2 * i], sum[2 * i + 1]);
    ((uint4 *)a.out)[at] = out;
}

int status_of(cudaError_t e)
{
    return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

int sort_rows(const struct moe_args *a, const struct moe_layout *at, cudaStream_t stream)
{
    int pairs = a->m * a->top_k, status = moe_sort(a, at, stream);
    dim3 copies((unsigned)((pairs + SORT_THREADS / 32 - 1) / (SORT_THREADS / 32)));

    if (status)
        return status;
    return status_of(launch_early(copy_kernel, copies, SORT_THREADS, 0, stream, (const uint4 *)a->x,
                                  a->x_stride, a->d, a->ids, pairs, a->top_k, a->experts, *at));
}

/* One product over the sorted rows; p->a[0], part[0] and swiglu are set. */
int product(tile_params *p, const struct moe_args *a, const struct moe_layout *at, const void *rows,
            int k, cudaStream_t stream)
{
    if (moe_sorted_params(p, a, at, rows, k))
        return GEMM_INVALID;
    return status_of(wide_launch<sorted>(*p, gemm_processors(), stream));
}

int gate_up(const void *of, const struct moe_layout *at, cudaStream_t stream)
{
    const struct moe_args *a = (const struct moe_args *)of;
    struct tile_weights w = {a->gate, a->up, a->d, (int64_t)a->i * a->d};
    tile_params p;

    memset(&p, 0, sizeof(p));
    p.part[0] = {at->hidden, nullptr, nullptr, a->i, a->i, 0, 0};
    if (tile_map_pairs(&p, 0, w, a->i, a->d, a->experts, TILE_ROWS, 0))
        return GEMM_INVALID;
    return product(&p, a, at, at->y, a->d, stream);
}

int down(const void *of, const struct moe_layout *at, cudaStream_t stream)
{
    const struct moe_args *a = (const struct moe_args *)of;
    struct gemm_map map = {a->down,       a->i, 2, {a->d, a->experts}, {a->i, (int64_t)a->i * a->d},
                           {TILE_ROWS, 1}};
    tile_params p;

    memset(&p, 0, sizeof(p));
    p.part[0] = {at->y, nullptr, nullptr, a->d, a->d, 0, 0};
    p.routing.known = 1;
    if (gemm_map_encode(&p.a[0], &map))
        return GEMM_INVALID;
    return product(&p, a, at, at->hidden, a->i, stream);
}

int shared_experts(const struct moe_args *a, const struct moe_layout *at, cudaStream_t stream)
{
    int wide = a->shared * a->i;
    struct gemm_swiglu_args up = {
        a->x, a->shared_gate, a->shared_up, at->wide_hidden, a->x_stride, wide, a->m, a->d, wide,
        1};
    struct gemm_linear_args down;
    int status = gemm_swiglu(&up, (gemm_stream)stream);

    memset(&down, 0, sizeof(down));
    down.x = at->wide_hidden;
    down.x_stride = wide;
    down.m = a->m;
    down.k = wide;
    down.n_parts = 1;
    down.batch_invariant = 1;
    down.parts[0] = {
        a->shared_down, nullptr, nullptr, (char *)at->y + (int64_t)a->m * a->top_k * a->d * 2,
        a->d,           a->d,    0};
    return status ? status : gemm_linear(&down, (gemm_stream)stream);
}

} // namespace

int moe_sort(const struct moe_args *a, const struct moe_layout *at, cudaStream_t stream)
{
    int pairs = a->m * a->top_k;
    dim3 blocks((unsigned)((pairs + MOE_SORT_PAIRS - 1) / MOE_SORT_PAIRS));
    cudaError_t e = launch_early(zero_kernel, 1, MOE_MAX_EXPERTS, 0, stream, a->experts, *at);

    if (e == cudaSuccess)
        e = launch_early(count_kernel, blocks, SORT_THREADS, 0, stream, a->ids, pairs, a->experts,
                         *at);
    if (e == cudaSuccess)
        e = launch_early(range_kernel, 1, 32, 0, stream, a->experts, *at);
    return status_of(e);
}

int moe_combine(const struct moe_args *a, const void *y, const int32_t *places, int shared,
                cudaStream_t stream)
{
    dim3 grid((unsigned)a->m, (unsigned)((a->d / 8 + COMBINE_THREADS - 1) / COMBINE_THREADS));

    return status_of(launch_early(combine_kernel, grid, COMBINE_THREADS, 0, stream, *a,
                                  (const uint4 *)y, places, shared));
}

int moe_sorted_params(tile_params *p, const struct moe_args *a, const struct moe_layout *at,
                      const void *rows, int k)
{
    int pairs = a->m * a->top_k, columns = sorted::GROUPS * TILE_ROWS / (p->swiglu ? 2 : 1);
    struct gemm_map map = {rows, k, 2, {1, pairs}, {k, k}, {1, sorted::BOX_TOKENS}};

    p->m = a->m;
    p->n_parts = 1;
    p->heads = 1;
    p->split = 1;
    p->k_steps = (k + TILE_K - 1) / TILE_K;
    p->weight_policy = TMA_EVICT_NORMAL;
    p->part[0].row_tiles = (p->part[0].n + columns - 1) / columns;
    p->routing.ranges = at->ranges;
    p->routing.experts = a->experts;
    p->routing.top_k = a->top_k;
    return gemm_map_encode(&p->b, &map) |
           wide_map(&p->out[0], p->part[0].out, p->part[0].n, 1, pairs, p->part[0].out_stride, 0);
}

int moe_sorted_with(const struct moe_args *a, const struct moe_layout *at,
                    const struct moe_products *products, cudaStream_t stream)
{
    int status = sort_rows(a, at, stream);

    if (!status)
        status = products->gate_up(products->of, at, stream);
    if (!status)
        status = products->down(products->of, at, stream);
    if (!status && a->shared)
        status = shared_experts(a, at, stream);
    return status ? status : moe_combine(a, at->y, at->places, a->shared > 0, stream);
}

int moe_sorted(const struct moe_args *a, const struct moe_layout *at, cudaStream_t stream)
{
    struct moe_products products = {a, gate_up, down};

    return moe_sorted_with(a, at, &products, stream);
}
