/* Experts for few rows: two products and a sum. Every block of the products sorts the batch's pairs
 * by expert by itself (gemm_route.cuh), takes its tiles of the experts that are wanted, and fetches
 * their rows one by one; shared experts are like experts that every row chose. Pairs are numbered
 * row * slots + slot, slots = top_k + shared; hidden and y have a row for each pair.
 *
 * More rows go to moe_sorted.cu. */
#include "kernels/cuda/moe.h"

#include "kernels/cuda/moe_down.cuh"
#include "kernels/cuda/moe_internal.h"

#include <string.h>

namespace
{

using few = stream_config<8, 3, TILE_ROUTED>;
using several = stream_config<16, 3, TILE_ROUTED>;
using narrow = tile_config<16, 1, 9, TILE_ROUTED, 0>;
using middle = tile_config<64, 2, 8, TILE_ROUTED, 0>;

/* What is fetched by row: x, or hidden. */
struct tokens {
    const void *x;
    int64_t stride;
    int rows, k;
};

int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* Tiles at most, whatever the routing: a block for each as far as they go. */
template <class C> int run(tile_params &p, int pairs, cudaStream_t stream)
{
    int columns = C::GROUPS * TILE_ROWS / (p.swiglu ? 2 : 1), blocks = gemm_processors();
    int experts = pairs < p.routing.experts ? pairs : p.routing.experts;

    p.part[0].row_tiles = ceil_div(p.part[0].n, columns);
    int tiles =
        p.part[0].row_tiles * (p.routing.shared * ceil_div(p.m, C::BN) + experts + pairs / C::BN);
    return tile_launch<C>(p, tiles < blocks ? tiles : blocks, stream) == cudaSuccess ? GEMM_OK
                                                                                     : GEMM_CUDA;
}

/* The maps that the kernels for at most 16 rows of x read by. */
int map_few(tile_params &p, const tile_weights *w, const tokens &x)
{
    if (stream_map_tokens(&p, x.x, x.stride, x.rows, 1, 0, x.k, 1) ||
        stream_map_weights(&p, 0, w[0], p.part[0].n, x.k, p.routing.experts, 0))
        return -1;
    return p.routing.shared ? stream_map_weights(&p, 1, w[1], p.part[0].n, x.k, p.routing.shared, 0)
                            : 0;
}

int launch_few(tile_params &p, const tile_weights *w, const tokens &x, cudaStream_t stream)
{
    int pairs = p.m * p.routing.top_k;
    int experts = pairs < p.routing.experts ? pairs : p.routing.experts;

    if (map_few(p, w, x))
        return GEMM_INVALID;
    experts += p.routing.shared;
    cudaError_t e = p.m <= 8 ? stream_launch<few>(p, x.k, experts, stream)
                             : stream_launch<several>(p, x.k, experts, stream);
    return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

/* Map `at` of weights (z, n, k). */
int map_weights(tile_params &p, int at, const tile_weights &w, int k, int z)
{
    int n = p.part[0].n;
    struct gemm_map map = {w.weight, k, 2, {n, z}, {w.row_stride, w.z_stride}, {TILE_ROWS, 1}};

    if (w.up)
        return tile_map_pairs(&p, at, w, n, k, z, TILE_ROWS, 0);
    return gemm_map_encode(&p.a[at], &map);
}

/* w: of the experts, of the shared ones. */
int launch(tile_params &p, const tile_weights *w, const tokens &x, bool invariant,
           cudaStream_t stream)
{
    int pairs = p.m * p.routing.top_k;

    p.swiglu = w[0].up != nullptr;
    if (p.m <= 16 && !invariant && x.k % TILE_K == 0)
        return launch_few(p, w, x, stream);
    p.k = x.k;
    p.k_steps = ceil_div(x.k, TILE_K);
    p.rows = x.x;
    p.row_bytes = 2 * x.stride;
    if (map_weights(p, 0, w[0], x.k, p.routing.experts) ||
        (p.routing.shared && map_weights(p, 1, w[1], x.k, p.routing.shared)))
        return GEMM_INVALID;
    return p.m <= 16 ? run<narrow>(p, pairs, stream) : run<middle>(p, pairs, stream);
}

void common_params(tile_params *p, const struct moe_args *a)
{
    memset(p, 0, sizeof(*p));
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
int gate_up(const struct moe_args *a, void *hidden, cudaStream_t stream)
{
    int64_t expert = (int64_t)a->i * a->d;
    struct tile_weights w[2] = {{a->gate, a->up, a->d, expert},
                                {a->shared_gate, a->shared_up, a->d, expert}};
    tile_params p;

    common_params(&p, a);
    p.part[0] = {hidden, nullptr, nullptr, a->i, a->i, 0, 0};
    p.next_late = NEXT_WAITED; /* `down` reads the routing early */
    return launch(p, w, {a->x, a->x_stride, a->m, a->d}, a->batch_invariant, stream);
}

/* Whether one kernel does `down` and the sum over the experts: few rows, and tiles of 16 columns
 * that share out evenly. */
bool sums_in_down(const struct moe_args *a)
{
    int tiles = ceil_div(a->d, 16), blocks = gemm_processors();

    return a->m <= 16 && !a->batch_invariant && a->i % TILE_K == 0 && blocks &&
           10 * tiles >= 9 * ceil_div(tiles, blocks) * blocks;
}

/* out = residual + sum of weights * down hidden. */
int down_sum(const struct moe_args *a, const void *hidden, cudaStream_t stream)
{
    struct tile_weights w[2] = {{a->down, nullptr, a->i, (int64_t)a->i * a->d},
                                {a->shared_down, nullptr, (int64_t)a->shared * a->i, a->i}};
    struct down_params d;

    common_params(&d.p, a);
    d.p.part[0] = {a->out, nullptr, a->residual, a->out_stride, a->d, 0, 0};
    d.p.routing.known = 1;
    d.p.routing.rows_are_pairs = 1;
    d.weights = a->weights;
    d.row_tiles = ceil_div(a->d, 16);
    if (map_few(d.p, w, {hidden, a->i, a->m * (a->top_k + a->shared), a->i}))
        return GEMM_INVALID;
    cudaError_t e =
        a->m <= 8 ? down_launch<few>(d, a->i, stream) : down_launch<several>(d, a->i, stream);
    return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

/* y (pairs, d) = down hidden. The routing is known: it was written before gate_up began. */
int down(const struct moe_args *a, const void *hidden, void *y, cudaStream_t stream)
{
    struct tile_weights w[2] = {{a->down, nullptr, a->i, (int64_t)a->i * a->d},
                                {a->shared_down, nullptr, (int64_t)a->shared * a->i, a->i}};
    int pairs = a->m * (a->top_k + a->shared);
    tile_params p;

    common_params(&p, a);
    p.part[0] = {y, nullptr, nullptr, a->d, a->d, 0, 0};
    p.routing.known = 1;
    p.routing.rows_are_pairs = 1;
    return launch(p, w, {hidden, a->i, pairs, a->i}, a->batch_invariant, stream);
}

} // namespace

size_t moe_workspace(int32_t max_m, int32_t d, int32_t i, int32_t experts, int32_t top_k,
                     int32_t shared)
{
    return moe_layout(nullptr, max_m, d, i, experts, top_k, shared).bytes;
}

int moe_experts(const struct moe_args *a, gemm_stream stream)
{
    if (!moe_valid(a, 8, moe_workspace))
        return GEMM_INVALID;
    if (a->m == 0)
        return GEMM_OK;
    struct moe_layout at =
        moe_layout(a->workspace, a->m, a->d, a->i, a->experts, a->top_k, a->shared);
    if ((int64_t)a->m * a->top_k > MOE_SMALL_PAIRS)
        return moe_sorted(a, &at, (cudaStream_t)stream);
    int status = gate_up(a, at.hidden, (cudaStream_t)stream);
    if (!status && sums_in_down(a))
        return down_sum(a, at.hidden, (cudaStream_t)stream);
    if (!status)
        status = down(a, at.hidden, at.y, (cudaStream_t)stream);
    return status ? status : moe_combine(a, at.y, nullptr, a->shared, (cudaStream_t)stream);
}
