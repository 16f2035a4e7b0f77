/* Linear layers, gate and up, products per head: arguments to tiles. The kernel is gemm_tile.cuh's.
 *
 * One or two rows, where the weights fit all registers: gemm_vector.cu. Up to 16: gemm_stream.cuh,
 * which can normalise its input too. Up to 64: tiles of 64 (128) weight rows by 16 (64) tokens;
 * where that makes fewer tiles than multiprocessors, k is split over clusters. Many rows: tiles of
 * 128 by 256. */
#include "kernels/cuda/gemm.h"

#include "kernels/cuda/gemm_stream.cuh"
#include "kernels/cuda/gemm_vector.h"
#include "kernels/cuda/gemm_wide.cuh"

#include <string.h>

namespace
{

using few = stream_config<8, 4, TILE_DENSE>;
using few_norm = stream_config<8, 5, TILE_DENSE, 1>;
using several = stream_config<16, 3, TILE_DENSE>;
template <int TA> using narrow = tile_config<16, 1, 9, TILE_DENSE, TA>;
template <int TA> using middle = tile_config<64, 2, 4, TILE_DENSE, TA>;
template <int TA> using wide = wide_config<TILE_DENSE, TA>;

int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

bool aligned(const void *p, int64_t a, int64_t b)
{
    return p && (uintptr_t)p % 16 == 0 && a % 8 == 0 && b % 8 == 0;
}

/* Tiles of a kernel of this shape. */
int count_tiles(const tile_params &p, int columns, int tokens)
{
    int rows = 0;

    for (int i = 0; i < p.n_parts; i++)
        rows += ceil_div(p.part[i].n, columns);
    return rows * ceil_div(p.m, tokens) * p.heads;
}

template <class C> int run(tile_params &p, bool may_split, cudaStream_t stream)
{
    int columns = C::GROUPS * TILE_ROWS / (p.swiglu ? 2 : 1), blocks = gemm_processors();
    int tiles = count_tiles(p, columns, C::BN);

    for (int i = 0; i < p.n_parts; i++)
        p.part[i].row_tiles = ceil_div(p.part[i].n, columns);
    p.split = 1;
    while (may_split && p.split < 8 && 2 * p.split * tiles <= blocks && p.k_steps >= 8 * p.split)
        p.split *= 2;
    p.weight_policy = p.m <= C::BN ? TMA_EVICT_FIRST : TMA_EVICT_NORMAL;
    blocks = p.split > 1 ? tiles * p.split : tiles < blocks ? tiles : blocks;
    return tile_launch<C>(p, blocks, stream) == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

template <int TA> int run_wide(tile_params &p, cudaStream_t stream)
{
    int columns = wide<TA>::GROUPS * TILE_ROWS / (p.swiglu ? 2 : 1), blocks = gemm_processors();
    int tiles = count_tiles(p, columns, wide<TA>::BN);

    p.split = 1;
    p.weight_policy = TMA_EVICT_NORMAL;
    for (int i = 0; i < p.n_parts; i++) {
        struct tile_part *part = &p.part[i];
        part->row_tiles = ceil_div(part->n, columns);
        if (!part->out_float && wide_map(&p.out[i], part->out, part->n, p.heads, p.m,
                                         part->out_stride, p.out_head_stride))
            return GEMM_INVALID;
        if (part->residual && wide_map(&p.residual[i], part->residual, part->n, p.heads, p.m,
                                       part->out_stride, p.out_head_stride))
            return GEMM_INVALID;
    }
    return wide_launch<wide<TA>>(p, tiles < blocks ? tiles : blocks, stream) == cudaSuccess
               ? GEMM_OK
               : GEMM_CUDA;
}

enum shape { STREAM, NARROW, MIDDLE, WIDE };

/* What kernel serves p.m rows: the wide one only where it fills most of the GPU. */
enum shape pick(const tile_params &p, bool may_stream)
{
    if (p.m <= 16)
        return may_stream ? STREAM : NARROW;
    int columns = 2 * TILE_ROWS / (p.swiglu ? 2 : 1);
    if (p.m <= 64 || 4 * count_tiles(p, columns, 256) < 3 * gemm_processors())
        return MIDDLE;
    return WIDE;
}

/* What x is, for all kernels. */
struct tokens {
    const void *x;
    int64_t stride, head_stride;
    int k;
};

/* The map of x: (k, head, row), boxes of as many rows as the kernel takes at once. */
bool map_tokens(tile_params &p, enum shape shape, const tokens &x)
{
    struct gemm_map map = {};

    map.data = x.x;
    map.inner = x.k;
    map.rank = 2;
    map.dims[0] = p.heads;
    map.dims[1] = p.m;
    map.strides[0] = p.heads > 1 ? x.head_stride : x.stride;
    map.strides[1] = x.stride;
    map.box[0] = 1;
    map.box[1] = shape == WIDE ? (int)wide<0>::BOX_TOKENS : (int)narrow<0>::BOX_TOKENS;
    return gemm_map_encode(&p.b, &map) == 0;
}

/* The map of a part's weights, of all heads. */
int map_weights(tile_params &p, enum shape shape, int at, const tile_weights &w, int k, int kn)
{
    int n = p.part[at].n;
    struct gemm_map map = {w.weight,
                           kn ? n : k,
                           2,
                           {kn ? k : n, p.heads},
                           {w.row_stride, p.heads > 1 ? w.z_stride : w.row_stride},
                           {TILE_ROWS, 1}};

    if (shape == STREAM)
        return stream_map_weights(&p, at, w, n, k, p.heads, 0);
    if (w.up)
        return tile_map_pairs(&p, at, w, n, k, 1, TILE_ROWS, 0);
    return gemm_map_encode(&p.a[at], &map);
}

/* Runs what `p` says with weights w[part] and tokens x. TA: the weights are (k, n). */
template <int TA>
int run_product(tile_params &p, const tile_weights *w, const tokens &x, bool invariant,
                bool may_split, cudaStream_t stream)
{
    p.swiglu = w[0].up != nullptr;
    p.k_steps = ceil_div(x.k, TILE_K);
    enum shape shape = pick(p, !TA && !invariant && x.k % TILE_K == 0);
    for (int i = 0; i < p.n_parts; i++)
        if (map_weights(p, shape, i, w[i], x.k, TA))
            return GEMM_INVALID;
    if (shape == STREAM) {
        if (stream_map_tokens(&p, x.x, x.stride, p.m, p.heads, x.head_stride, x.k,
                              p.m <= 8 ? 8 : 16))
            return GEMM_INVALID;
        p.next_late = p.norm ? NEXT_AT_ONCE : NEXT_ASKED; /* as measured */
        cudaError_t e = p.norm     ? stream_launch<few_norm>(p, x.k, 0, stream)
                        : p.m <= 8 ? stream_launch<few>(p, x.k, 0, stream)
                                   : stream_launch<several>(p, x.k, 0, stream);
        return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
    }
    if (!map_tokens(p, shape, x))
        return GEMM_INVALID;
    may_split &= !invariant;
    switch (shape) {
    case NARROW:
        return run<narrow<TA>>(p, may_split, stream);
    case MIDDLE:
        return run<middle<TA>>(p, may_split, stream);
    default:
        return run_wide<TA>(p, stream);
    }
}

} // namespace

int gemm_linear(const struct gemm_linear_args *a, gemm_stream stream)
{
    struct tile_weights w[GEMM_MAX_PARTS];
    tile_params p;

    if (a->m == 0)
        return GEMM_OK;
    if (a->m < 0 || a->k < 8 || a->n_parts < 1 || a->n_parts > GEMM_MAX_PARTS ||
        !aligned(a->x, a->x_stride, a->k) || a->x_stride < a->k)
        return GEMM_INVALID;
    memset(&p, 0, sizeof(p));
    p.m = a->m;
    p.n_parts = a->n_parts;
    p.heads = 1;
    for (int i = 0; i < a->n_parts; i++) {
        const struct gemm_part *part = &a->parts[i];
        if (part->n < 8 || !aligned(part->weight, part->n, part->out_stride) ||
            !aligned(part->out, 0, 0) || part->out_stride < part->n ||
            (part->residual && (part->out_float || !aligned(part->residual, 0, 0))))
            return GEMM_INVALID;
        p.part[i] = {part->out,       part->bias, part->residual, part->out_stride, part->n,
                     part->out_float, 0};
        w[i] = {part->weight, nullptr, a->k, 0};
    }
    const struct gemm_part *one = &a->parts[0];
    gemv_args few = {
        a->x, one->weight, one->residual, one->out, a->x_stride, 0, a->k, 0, one->out_stride, 0,
        a->m, one->n,      a->k,          1};
    if (a->n_parts == 1 && !a->norm && !one->bias && !one->out_float && !a->batch_invariant &&
        gemv_serves(few, gemm_processors()))
        return gemv(few, (cudaStream_t)stream);
    if (a->norm) {
        if (!gemm_linear_norms(a->m, a->k, a->batch_invariant) || !aligned(a->norm, 0, 0) ||
            !aligned(a->normalised, 0, 0))
            return GEMM_INVALID;
        p.norm = a->norm;
        p.normalised = a->normalised;
        p.norm_eps = a->eps;
        p.rows = a->x;
        p.row_bytes = 2 * a->x_stride;
        p.k = a->k;
    }
    return run_product<0>(p, w, {a->x, a->x_stride, 0, a->k}, a->batch_invariant, true,
                          (cudaStream_t)stream);
}

int gemm_swiglu(const struct gemm_swiglu_args *a, gemm_stream stream)
{
    tile_params p;

    if (a->m == 0)
        return GEMM_OK;
    if (a->m < 0 || a->k < 8 || a->i < 8 || !aligned(a->x, a->x_stride, a->k) ||
        !aligned(a->out, a->out_stride, a->i) || a->x_stride < a->k || a->out_stride < a->i)
        return GEMM_INVALID;
    memset(&p, 0, sizeof(p));
    p.m = a->m;
    p.n_parts = 1;
    p.heads = 1;
    p.part[0] = {a->out, nullptr, nullptr, a->out_stride, a->i, 0, 0};
    struct tile_weights w = {a->gate, a->up, a->k, 0};
    return run_product<0>(p, &w, {a->x, a->x_stride, 0, a->k}, a->batch_invariant, false,
                          (cudaStream_t)stream);
}

int gemm_batched(const struct gemm_batched_args *a, gemm_stream stream)
{
    gemv_args few = {};
    tile_params p;

    if (a->m == 0)
        return GEMM_OK;
    if (a->m < 0 || a->k < 8 || a->n < 8 || a->heads < 1 ||
        !aligned(a->x, a->x_stride, a->x_head_stride) || !aligned(a->weight, a->k, a->n) ||
        !aligned(a->weight, a->weight_row_stride, a->weight_head_stride) ||
        !aligned(a->out, a->out_stride, a->out_head_stride))
        return GEMM_INVALID;
    few = {a->x,
           a->weight,
           nullptr,
           a->out,
           a->x_stride,
           a->x_head_stride,
           a->weight_row_stride,
           a->weight_head_stride,
           a->out_stride,
           a->out_head_stride,
           a->m,
           a->n,
           a->k,
           a->heads};
    if (!a->weight_is_kn && !a->batch_invariant && gemv_serves(few, gemm_processors()))
        return gemv(few, (cudaStream_t)stream);
    memset(&p, 0, sizeof(p));
    p.m = a->m;
    p.n_parts = 1;
    p.heads = a->heads;
    p.out_head_stride = a->out_head_stride;
    p.part[0] = {a->out, nullptr, nullptr, a->out_stride, a->n, 0, 0};
    struct tile_weights w = {a->weight, nullptr, a->weight_row_stride, a->weight_head_stride};
    tokens x = {a->x, a->x_stride, a->x_head_stride, a->k};
    return a->weight_is_kn
               ? run_product<1>(p, &w, x, a->batch_invariant, false, (cudaStream_t)stream)
               : run_product<0>(p, &w, x, a->batch_invariant, false, (cudaStream_t)stream);
}
