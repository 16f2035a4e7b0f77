/* Experts with FP8 weights for few rows: moe.cu's two products and sum, by the FP8 kernels. */
#include "kernels/cuda/moe_fp8.h"

#include "kernels/cuda/gemm_fp8_stream.cuh"
#include "kernels/cuda/gemm_fp8_tile.cuh"
#include "kernels/cuda/moe_few.cuh"
#include "kernels/cuda/moe_fp8_internal.h"

#include <string.h>

namespace
{

using two = fp8_stream_config<8, 2, 4, TILE_ROUTED>;
using eight = fp8_stream_config<8, 8, 6, TILE_ROUTED>;
using sixteen = fp8_stream_config<16, 16, 3, TILE_ROUTED>;
using small = fp8_tile_config<32, 8, TILE_ROUTED>;
using middle = fp8_tile_config<64, 6, TILE_ROUTED>;

int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

bool valid(const struct moe_fp8_args *args)
{
    if (!moe_valid(&args->moe, FP8_BLOCK, moe_fp8_workspace) || !args->gate_up.scales ||
        !args->gate_up.up_scales || !args->down.scales)
        return false;
    return !args->moe.shared || (args->shared_gate_up.scales && args->shared_gate_up.up_scales &&
                                 args->shared_down.scales);
}

/* What is fetched by row: x, or hidden. */
struct tokens {
    const void *x;
    int64_t stride;
    int rows, k;
};

/* The kernel for few rows of x. */
int launch_few(fp8_params &f, const tile_weights *w, const tokens &x, int experts,
               cudaStream_t stream)
{
    tile_params &p = f.tile;
    int bad = fp8_stream_map_tokens(&p, x.x, x.stride, x.rows, x.k, 1) |
              stream_map_weights(&p, 0, w[0], p.part[0].n, x.k, p.routing.experts, 1);

    if (p.routing.shared)
        bad |= stream_map_weights(&p, 1, w[1], p.part[0].n, x.k, p.routing.shared, 1);
    if (bad)
        return GEMM_INVALID;
    cudaError_t e = p.m <= 2   ? fp8_stream_launch<two>(f, experts, stream)
                    : p.m <= 8 ? fp8_stream_launch<eight>(f, experts, stream)
                               : fp8_stream_launch<sixteen>(f, experts, stream);
    return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

template <class C>
int launch_tiles(fp8_params &f, const tile_weights *w, const tokens &x, int experts,
                 cudaStream_t stream)
{
    tile_params &p = f.tile;
    int columns = C::GROUPS * TILE_ROWS / (w[0].up ? 2 : 1), blocks = gemm_processors();

    p.k = x.k;
    p.k_steps = f.k_blocks;
    p.rows = x.x;
    p.row_bytes = 2 * x.stride;
    if (fp8_tile_map_weights(&p, 0, w[0], p.part[0].n, x.k, p.routing.experts) ||
        (p.routing.shared && fp8_tile_map_weights(&p, 1, w[1], p.part[0].n, x.k, p.routing.shared)))
        return GEMM_INVALID;
    p.part[0].row_tiles = ceil_div(p.part[0].n, columns);
    int tiles = (experts + p.m * p.routing.top_k / C::BN) * p.part[0].row_tiles;
    cudaError_t e = fp8_tile_launch<C>(f, tiles < blocks ? tiles : blocks, stream);
    return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

/* w: of the experts, of the shared ones. */
int launch(fp8_params &f, const tile_weights *w, const tokens &x, bool invariant,
           cudaStream_t stream)
{
    tile_params &p = f.tile;
    int pairs = p.m * p.routing.top_k;
    int experts = (pairs < p.routing.experts ? pairs : p.routing.experts) + p.routing.shared;

    p.swiglu = w[0].up != nullptr;
    f.k_blocks = x.k / FP8_BLOCK;
    if (p.m <= 16 && !invariant)
        return launch_few(f, w, x, experts, stream);
    return p.m <= small::BN ? launch_tiles<small>(f, w, x, experts, stream)
                            : launch_tiles<middle>(f, w, x, experts, stream);
}

void common_params(fp8_params *f, const struct moe_args *a)
{
    tile_params *p = &f->tile;

    memset(f, 0, sizeof(*f));
    p->m = a->m;
    p->n_parts = 1;
    p->heads = 1;
    p->split = 1;
    p->weight_policy = TMA_EVICT_FIRST;
    p->routing.ids = a->ids;
    p->routing.experts = a->experts;
    p->routing.top_k = a->top_k;
    p->routing.shared = a->shared;
}

/* hidden (pairs, i) = silu(gate x) * (up x). */
int gate_up(const struct moe_fp8_args *args, void *hidden, cudaStream_t stream)
{
    const struct moe_args *a = &args->moe;
    int64_t expert = (int64_t)a->i * a->d, blocks = expert / (FP8_BLOCK * FP8_BLOCK);
    struct tile_weights w[2] = {{a->gate, a->up, a->d, expert},
                                {a->shared_gate, a->shared_up, a->d, expert}};
    fp8_params f;

    common_params(&f, a);
    f.tile.part[0] = {hidden, nullptr, nullptr, a->i, a->i, 0, 0};
    f.tile.next_late = NEXT_WAITED; /* `down` reads the routing early */
    f.scales[0] = {args->gate_up.scales, args->gate_up.up_scales, blocks, a->d / FP8_BLOCK};
    f.scales[1] = {args->shared_gate_up.scales, args->shared_gate_up.up_scales, blocks,
                   a->d / FP8_BLOCK};
    return launch(f, w, {a->x, a->x_stride, a->m, a->d}, a->batch_invariant, stream);
}

/* y (pairs, d) = down hidden. The routing is known: it was written before gate_up began. */
int down(const struct moe_fp8_args *args, const void *hidden, void *y, cudaStream_t stream)
{
    const struct moe_args *a = &args->moe;
    int64_t expert = (int64_t)a->i * a->d, blocks = expert / (FP8_BLOCK * FP8_BLOCK);
    struct tile_weights w[2] = {{a->down, nullptr, a->i, expert},
                                {a->shared_down, nullptr, (int64_t)a->shared * a->i, a->i}};
    int pairs = a->m * (a->top_k + a->shared);
    fp8_params f;

    common_params(&f, a);
    f.tile.part[0] = {y, nullptr, nullptr, a->d, a->d, 0, 0};
    f.tile.routing.known = 1;
    f.tile.routing.rows_are_pairs = 1;
    f.scales[0] = {args->down.scales, nullptr, blocks, a->i / FP8_BLOCK};
    f.scales[1] = {args->shared_down.scales, nullptr, a->i / FP8_BLOCK,
                   a->shared * a->i / FP8_BLOCK};
    return launch(f, w, {hidden, a->i, pairs, a->i}, a->batch_invariant, stream);
}

int few_rows(const struct moe_fp8_args *args, cudaStream_t stream)
{
    const struct moe_args *a = &args->moe;
    struct moe_fp8_layout at =
        moe_fp8_layout(a->workspace, a->m, a->d, a->i, a->experts, a->top_k, a->shared);

    if (few_serves(a))
        return moe_fp8_few(args, stream);
    int status = gate_up(args, at.moe.hidden, stream);
    if (!status)
        status = down(args, at.moe.hidden, at.moe.y, stream);
    return status ? status : moe_combine(a, at.moe.y, nullptr, a->shared, stream);
}

} // namespace

size_t moe_fp8_workspace(int32_t max_m, int32_t d, int32_t i, int32_t experts, int32_t top_k,
                         int32_t shared)
{
    return moe_fp8_layout(nullptr, max_m, d, i, experts, top_k, shared).bytes;
}

int moe_fp8_experts(const struct moe_fp8_args *args, gemm_stream stream)
{
    struct moe_fp8_args part = *args;

    if (!valid(args))
        return GEMM_INVALID;
    int most = MOE_SMALL_PAIRS / args->moe.top_k;
    if (args->moe.m > most && !args->moe.batch_invariant)
        return moe_fp8_sorted(args, (cudaStream_t)stream);
    for (int row = 0; row < args->moe.m; row += most) {
        part.moe = moe_rows(&args->moe, row, most);
        int status = few_rows(&part, (cudaStream_t)stream);
        if (status)
            return status;
    }
    return GEMM_OK;
}
