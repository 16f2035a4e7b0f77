/* Experts with FP8 weights for many rows, as moe_sorted.cu: pairs sorted by expert. x is quantised
 * once a row and copied to its pairs' places; what lies between the two products is quantised
 * where it is made. The shared experts are one MLP, whose outputs follow those of the pairs in y.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_fp8_internal.h"

#include <string.h>

namespace
{

enum { COPY_THREADS = 256 };

/* Copies the row of each pair to its place; a warp a pair. */
__global__ void __launch_bounds__(COPY_THREADS)
    place_kernel(struct fp8_rows x, struct fp8_rows sorted, const int32_t *ids, int pairs,
                 int top_k, int experts, struct moe_layout at)
{
    int p = (blockIdx.x * COPY_THREADS + threadIdx.x) / 32, lane = threadIdx.x % 32;

    launch_wait();
    launch_next();
    if (p >= pairs || ids[p] < 0)
        return;
    int place = at.ranges[ids[p]] + at.bases[p / MOE_SORT_PAIRS * experts + ids[p]] + at.ranks[p];
    int64_t row = p / top_k;
    const uint4 *from = (const uint4 *)(x.values + row * x.k);
    uint4 *to = (uint4 *)(sorted.values + (int64_t)place * x.k);
    if (lane == 0)
        at.places[p] = place;
    for (int i = lane; i < x.k / 16; i += 32)
        to[i] = from[i];
    int blocks = x.k / FP8_BLOCK;
    for (int i = lane; i < blocks; i += 32)
        sorted.scales[(int64_t)place * blocks + i] = x.scales[row * blocks + i];
}

void common_params(fp8_params *f, const struct moe_args *a, const struct moe_layout *at)
{
    tile_params *p = &f->tile;

    memset(f, 0, sizeof(*f));
    p->m = a->m * a->top_k;
    p->n_parts = 1;
    p->routing.ranges = at->ranges;
    p->routing.experts = a->experts;
    p->routing.top_k = a->top_k;
}

int routed_experts(const struct moe_fp8_args *args, const struct moe_fp8_layout *at,
                   cudaStream_t stream)
{
    const struct moe_args *a = &args->moe;
    int64_t expert = (int64_t)a->i * a->d, blocks = expert / (FP8_BLOCK * FP8_BLOCK);
    struct tile_weights gate_up = {a->gate, a->up, a->d, expert};
    struct tile_weights down = {a->down, nullptr, a->i, expert};
    fp8_params f;

    common_params(&f, a, &at->moe);
    f.tile.part[0].n = a->i;
    f.scales[0] = {args->gate_up.scales, args->gate_up.up_scales, blocks, a->d / FP8_BLOCK};
    int status = fp8_wide(f, &gate_up, at->sorted, &at->hidden, args->ue8m0, stream);
    if (status)
        return status;
    common_params(&f, a, &at->moe);
    f.tile.part[0] = {at->moe.y, nullptr, nullptr, a->d, a->d, 0, 0};
    f.scales[0] = {args->down.scales, nullptr, blocks, a->i / FP8_BLOCK};
    return fp8_wide(f, &down, at->hidden, nullptr, false, stream);
}

int shared_experts(const struct moe_fp8_args *args, const struct moe_fp8_layout *at,
                   cudaStream_t stream)
{
    const struct moe_args *a = &args->moe;
    int wide = a->shared * a->i;
    struct tile_weights gate_up = {a->shared_gate, a->shared_up, a->d, 0};
    struct tile_weights down = {a->shared_down, nullptr, wide, 0};
    void *out = (char *)at->moe.y + (int64_t)a->m * a->top_k * a->d * 2;
    fp8_params f;

    memset(&f, 0, sizeof(f));
    f.tile.m = a->m;
    f.tile.n_parts = 1;
    f.tile.part[0].n = wide;
    f.scales[0] = {args->shared_gate_up.scales, args->shared_gate_up.up_scales, 0,
                   a->d / FP8_BLOCK};
    int status = fp8_wide(f, &gate_up, at->x, &at->wide, args->ue8m0, stream);
    if (status)
        return status;
    memset(&f, 0, sizeof(f));
    f.tile.m = a->m;
    f.tile.n_parts = 1;
    f.tile.part[0] = {out, nullptr, nullptr, a->d, a->d, 0, 0};
    f.scales[0] = {args->shared_down.scales, nullptr, 0, wide / FP8_BLOCK};
    return fp8_wide(f, &down, at->wide, nullptr, false, stream);
}

} // namespace

int moe_fp8_sorted(const struct moe_fp8_args *args, cudaStream_t stream)
{
    const struct moe_args *a = &args->moe;
    struct moe_fp8_layout at =
        moe_fp8_layout(a->workspace, a->m, a->d, a->i, a->experts, a->top_k, a->shared);
    int pairs = a->m * a->top_k;
    unsigned copies = (unsigned)((pairs + COPY_THREADS / 32 - 1) / (COPY_THREADS / 32));
    int status = moe_sort(a, &at.moe, stream);

    if (args->quantised)
        at.x = fp8_rows_at((void *)args->quantised, a->m, a->d);
    else if (!status)
        status = fp8_quantize(&at.x, a->x, a->x_stride, args->ue8m0, stream);
    if (status)
        return status;
    if (launch_early(place_kernel, copies, COPY_THREADS, 0, stream, at.x, at.sorted, a->ids, pairs,
                     a->top_k, a->experts, at.moe) != cudaSuccess)
        return GEMM_CUDA;
    status = routed_experts(args, &at, stream);
    if (!status && a->shared)
        status = shared_experts(args, &at, stream);
    return status ? status : moe_combine(a, at.moe.y, at.moe.places, a->shared > 0, stream);
}
