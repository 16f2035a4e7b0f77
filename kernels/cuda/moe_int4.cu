/* Experts with INT4 weights: moe_few.cuh for a few rows, gemm_fp8_tile.cuh for more,
 * gemm_int4_wide.cuh for many. */
#include "kernels/cuda/moe_int4.h"

#include "kernels/cuda/gemm_int4_tile.cuh"
#include "kernels/cuda/gemm_int4_wide.cuh"
#include "kernels/cuda/moe_few_formats.cuh"
#include "kernels/cuda/moe_internal.h"

#include <string.h>

namespace
{

using small = fp8_tile_config<32, 5, TILE_ROUTED, 1>;
using middle = fp8_tile_config<64, 3, TILE_ROUTED, 1>;

enum { REORDER_THREADS = 256 };

bool valid(const struct moe_int4_args *args)
{
    return moe_valid(&args->moe, 128, moe_int4_workspace) && moe_aligned(args->gate_scales, 0) &&
           moe_aligned(args->up_scales, 0) && moe_aligned(args->down_scales, 0);
}

/* ---- few rows -------------------------------------------------------------------------------- */

int few_rows(const struct moe_int4_args *args, cudaStream_t stream)
{
    const struct moe_args *a = &args->moe;
    int64_t expert = (int64_t)a->i * a->d, groups = expert / INT4_GROUP, wide = 2ll * a->i;
    few_params<few_int4, few_bf16> p;
    CUtensorMap *to = p.matrices[0];
    int bad;

    memset(&p, 0, sizeof(p));
    bad = few_map(&to[FEW_GATE], a->gate, a->d / 2, a->d / 2, expert / 2, a->i, a->experts, 8) |
          few_map(&to[FEW_UP], a->up, a->d / 2, a->d / 2, expert / 2, a->i, a->experts, 8) |
          few_map(&to[FEW_DOWN], a->down, a->i / 2, a->i / 2, expert / 2, a->d, a->experts, 16);
    p.routed[FEW_GATE] = {args->gate_scales, groups, a->d / INT4_GROUP};
    p.routed[FEW_UP] = {args->up_scales, groups, a->d / INT4_GROUP};
    p.routed[FEW_DOWN] = {args->down_scales, groups, a->i / INT4_GROUP};
    if (a->shared) {
        to = p.matrices[1];
        bad |=
            few_map(&to[FEW_GATE], a->shared_gate, 2 * a->d, 2 * a->d, 2 * expert, a->i, a->shared,
                    8) |
            few_map(&to[FEW_UP], a->shared_up, 2 * a->d, 2 * a->d, 2 * expert, a->i, a->shared, 8) |
            few_map(&to[FEW_DOWN], a->shared_down, wide, a->shared * wide, wide, a->d, a->shared,
                    16);
    }
    if (bad)
        return GEMM_INVALID;
    return few_launch(p, a, nullptr, stream) == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

/* ---- more ------------------------------------------------------------------------------------ */

/* One product of the routed experts: x (rows, k), weights with n rows, up NULL for `down`. */
struct product {
    const void *x;
    int64_t x_stride;
    int k, n;
    const void *weight, *up;
    const uint16_t *scales, *up_scales;
    void *out;
};

template <class C>
int launch(const struct moe_args *a, const struct product &w, cudaStream_t stream)
{
    int64_t expert = (int64_t)a->i * a->d;
    int columns = C::GROUPS * TILE_ROWS / (w.up ? 2 : 1), blocks = gemm_processors();
    int pairs = a->m * a->top_k, experts = pairs < a->experts ? pairs : a->experts;
    fp8_params f;

    memset(&f, 0, sizeof(f));
    f.tile.m = a->m;
    f.tile.n_parts = f.tile.heads = f.tile.split = 1;
    f.tile.weight_policy = TMA_EVICT_FIRST;
    f.tile.routing = {a->ids, nullptr, a->experts, a->top_k, 0, !w.up, !w.up};
    f.tile.next_late = w.up ? NEXT_WAITED : NEXT_AT_ONCE; /* `down` reads the routing early */
    f.tile.part[0] = {w.out, nullptr, nullptr, w.n, w.n, 0, (w.n + columns - 1) / columns};
    f.tile.k = w.k;
    f.tile.k_steps = (w.k + C::STEP_K - 1) / C::STEP_K;
    f.tile.rows = w.x;
    f.tile.row_bytes = 2 * w.x_stride;
    f.groups = {w.scales, w.up_scales, expert / INT4_GROUP, w.k / INT4_GROUP};
    if (fp8_tile_map_weights(&f.tile, 0, {w.weight, w.up, w.k / 2, expert / 2}, w.n, w.k / 2,
                             a->experts))
        return GEMM_INVALID;
    int tiles = (experts + pairs / C::BN) * f.tile.part[0].row_tiles;
    cudaError_t e = fp8_tile_launch<C>(f, tiles < blocks ? tiles : blocks, stream);
    return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

int run(const struct moe_args *a, const struct product &w, cudaStream_t stream)
{
    return a->m <= small::BN ? launch<small>(a, w, stream) : launch<middle>(a, w, stream);
}

/* out = residual + the shared experts of x. */
int shared_experts(const struct moe_args *a, void *hidden, cudaStream_t stream)
{
    int wide = a->shared * a->i;
    struct gemm_swiglu_args gate_up = {
        a->x, a->shared_gate, a->shared_up, hidden, a->x_stride,
        wide, a->m,           a->d,         wide,   a->batch_invariant};
    struct gemm_linear_args down;

    memset(&down, 0, sizeof(down));
    down.x = hidden;
    down.x_stride = down.k = wide;
    down.m = a->m;
    down.n_parts = 1;
    down.batch_invariant = a->batch_invariant;
    down.parts[0] = {a->shared_down, nullptr, a->residual, a->out, a->out_stride, a->d, 0};
    int status = gemm_swiglu(&gate_up, stream);
    return status ? status : gemm_linear(&down, stream);
}

int more_rows(const struct moe_int4_args *args, const struct moe_layout *at, cudaStream_t stream)
{
    struct moe_args a = args->moe;
    int status = a.shared ? shared_experts(&a, at->wide_hidden, stream) : GEMM_OK;

    if (a.shared)
        a.residual = a.out;
    if (!status)
        status = run(&a,
                     {a.x, a.x_stride, a.d, a.i, a.gate, a.up, args->gate_scales, args->up_scales,
                      at->hidden},
                     stream);
    if (!status)
        status =
            run(&a, {at->hidden, a.i, a.i, a.d, a.down, nullptr, args->down_scales, nullptr, at->y},
                stream);
    return status ? status : moe_combine(&a, at->y, nullptr, 0, stream);
}

/* ---- many ------------------------------------------------------------------------------------ */

/* One product over the pairs sorted by expert. */
int launch_wide(const struct moe_args *a, const struct moe_layout *at, const struct product &w,
                bool known, cudaStream_t stream)
{
    int64_t expert = (int64_t)a->i * a->d;
    int4_wide_params f;

    memset(&f, 0, sizeof(f));
    f.tile.part[0] = {w.out, nullptr, nullptr, w.n, w.n, 0, 0};
    f.tile.routing.known = known;
    f.scales = {w.scales, w.up_scales, expert / INT4_GROUP, w.k / INT4_GROUP};
    if (fp8_tile_map_weights(&f.tile, 0, {w.weight, w.up, w.k / 2, expert / 2}, w.n, w.k / 2,
                             a->experts) ||
        moe_sorted_params(&f.tile, a, at, w.x, w.k))
        return GEMM_INVALID;
    cudaError_t e = int4_wide_launch<int4_wide_config>(f, gemm_processors(), stream);
    return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

int wide_gate_up(const void *of, const struct moe_layout *at, cudaStream_t stream)
{
    const struct moe_int4_args *args = (const struct moe_int4_args *)of;
    const struct moe_args *a = &args->moe;

    return launch_wide(
        a, at,
        {at->y, a->d, a->d, a->i, a->gate, a->up, args->gate_scales, args->up_scales, at->hidden},
        false, stream);
}

int wide_down(const void *of, const struct moe_layout *at, cudaStream_t stream)
{
    const struct moe_int4_args *args = (const struct moe_int4_args *)of;
    const struct moe_args *a = &args->moe;

    return launch_wide(
        a, at, {at->hidden, a->i, a->i, a->d, a->down, nullptr, args->down_scales, nullptr, at->y},
        true, stream);
}

int many_rows(const struct moe_int4_args *args, const struct moe_layout *at, cudaStream_t stream)
{
    struct moe_products products = {args, wide_gate_up, wide_down};

    return moe_sorted_with(&args->moe, at, &products, stream);
}

__global__ void __launch_bounds__(REORDER_THREADS) reorder_kernel(uint32_t *words, int64_t n)
{
    int64_t at = blockIdx.x * (int64_t)REORDER_THREADS + threadIdx.x;
    int lane = threadIdx.x % 32, q = lane % 16 / 4, j = lane % 4; /* of the word to write */
    uint32_t word = at < n ? words[at] : 0, out = 0;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t two = __shfl_sync(~0u, word, lane / 16 * 16 + 4 * j + i) >> 8 * q & 0xff;
        out |= (two & 15) << 4 * i | two >> 4 << (16 + 4 * i);
    }
    if (at < n)
        words[at] = out;
}

} // namespace

int int4_reorder(void *weights, int64_t n, gemm_stream stream)
{
    int64_t blocks = (n / 8 + REORDER_THREADS - 1) / REORDER_THREADS;

    if (n % 128 || blocks > INT32_MAX)
        return GEMM_INVALID;
    if (n == 0)
        return GEMM_OK;
    reorder_kernel<<<(unsigned)blocks, REORDER_THREADS, 0, (cudaStream_t)stream>>>(
        (uint32_t *)weights, n / 8);
    return cudaGetLastError() == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

size_t moe_int4_workspace(int32_t max_m, int32_t d, int32_t i, int32_t experts, int32_t top_k,
                          int32_t shared)
{
    return MOE_FEW_ROOM + moe_layout(nullptr, max_m, d, i, experts, top_k, shared).bytes;
}

int moe_int4_experts(const struct moe_int4_args *args, gemm_stream stream)
{
    struct moe_int4_args part = *args;
    const struct moe_args *a = &part.moe;

    if (!valid(args))
        return GEMM_INVALID;
    int most = MOE_SMALL_PAIRS / a->top_k, step = a->batch_invariant || a->m <= most ? most : a->m;
    for (int row = 0; row < args->moe.m; row += step) {
        part.moe = moe_rows(&args->moe, row, step);
        struct moe_layout at = moe_layout((char *)a->workspace + MOE_FEW_ROOM, a->m, a->d, a->i,
                                          a->experts, a->top_k, a->shared);
        int status = a->m > most     ? many_rows(&part, &at, (cudaStream_t)stream)
                     : few_serves(a) ? few_rows(&part, (cudaStream_t)stream)
                                     : more_rows(&part, &at, (cudaStream_t)stream);
        if (status)
            return status;
    }
    return GEMM_OK;
}
