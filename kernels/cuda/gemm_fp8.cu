/* Linear layers, gate and up with FP8 weights: arguments to tiles. See gemm_fp8.h. */
#include "kernels/cuda/gemm_fp8.h"

#include "kernels/cuda/gemm_fp8_internal.h"
#include "kernels/cuda/gemm_fp8_stream.cuh"
#include "kernels/cuda/gemm_fp8_tile.cuh"

#include <string.h>

namespace
{

using two = fp8_stream_config<8, 2, 4, TILE_DENSE>;
using eight = fp8_stream_config<8, 8, 3, TILE_DENSE>;
using sixteen = fp8_stream_config<16, 16, 4, TILE_DENSE>;
using two_held = fp8_stream_config<8, 2, 4, TILE_DENSE, 2048>;
using eight_held = fp8_stream_config<8, 8, 4, TILE_DENSE, 8192>;
using small = fp8_tile_config<32, 4, TILE_DENSE>;
using middle = fp8_tile_config<64, 6, TILE_DENSE>;

enum { REORDER_THREADS = 256 };

int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

bool aligned(const void *p, int64_t stride)
{
    return p && (uintptr_t)p % 16 == 0 && stride % 8 == 0;
}

struct tokens {
    const void *x;
    int64_t stride;
    int k;
};

int run_stream(fp8_params &f, const tile_weights *w, const tokens &x, cudaStream_t stream)
{
    tile_params &p = f.tile;
    int slots = p.m <= 2 ? 2 : p.m <= 8 ? 8 : 16;
    int bad = fp8_stream_map_tokens(&p, x.x, x.stride, p.m, x.k, slots);

    for (int i = 0; i < p.n_parts; i++)
        bad |= stream_map_weights(&p, i, w[i], p.part[i].n, x.k, 1, 1);
    if (bad)
        return GEMM_INVALID;
    bool held = slots == 2 && x.k <= two_held::NORM_K;
    cudaError_t e = held         ? fp8_stream_launch<two_held>(f, 0, stream)
                    : p.norm     ? fp8_stream_launch<eight_held>(f, 0, stream)
                    : slots == 2 ? fp8_stream_launch<two>(f, 0, stream)
                    : slots == 8 ? fp8_stream_launch<eight>(f, 0, stream)
                                 : fp8_stream_launch<sixteen>(f, 0, stream);
    return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

/* Where there are too few tiles for the GPU, k is split over the blocks of clusters. */
template <class C>
int run_tiles(fp8_params &f, const tile_weights *w, const tokens &x, bool may_split,
              cudaStream_t stream)
{
    tile_params &p = f.tile;
    int box = p.m <= 8 ? 8 : p.m <= 16 ? 16 : p.m <= 32 ? 32 : 64;
    struct gemm_map map = {x.x, x.k, 2, {1, p.m}, {x.stride, x.stride}, {1, box}};
    int bad = gemm_map_encode(&p.b, &map), tiles = 0, blocks = gemm_processors();
    int columns = C::GROUPS * TILE_ROWS / (w[0].up ? 2 : 1);

    for (int i = 0; i < p.n_parts; i++) {
        bad |= fp8_tile_map_weights(&p, i, w[i], p.part[i].n, x.k, 1);
        p.part[i].row_tiles = ceil_div(p.part[i].n, columns);
        tiles += p.part[i].row_tiles * ceil_div(p.m, C::BN);
    }
    if (bad)
        return GEMM_INVALID;
    f.box_tokens = box;
    p.k_steps = f.k_blocks;
    p.split = 1;
    while (may_split && p.split < 8 && 2 * p.split * tiles <= blocks && p.k_steps >= 4 * p.split)
        p.split *= 2;
    p.weight_policy = p.m <= C::BN ? TMA_EVICT_FIRST : TMA_EVICT_NORMAL;
    blocks = p.split > 1 ? tiles * p.split : tiles < blocks ? tiles : blocks;
    return fp8_tile_launch<C>(f, blocks, stream) == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

/* Where tokens are quantised to, and how. */
struct quantiser {
    void *workspace;
    size_t bytes;
    bool ue8m0;
    bool done; /* they are there */
};

/* As many rows at a time as the workspace has room for. */
int run_wide(const fp8_params &all, const tile_weights *w, const tokens &x,
             const struct quantiser &quantiser, cudaStream_t stream)
{
    int rows = all.tile.m, most = rows;

    while (most > 0 && fp8_rows_bytes(most, x.k) > quantiser.bytes)
        most = most > FP8_BLOCK ? (most / 2 + FP8_BLOCK - 1) / FP8_BLOCK * FP8_BLOCK : 0;
    if (most == 0 || (uintptr_t)quantiser.workspace % 256 || (quantiser.done && most < rows))
        return GEMM_INVALID;
    for (int first = 0, status; first < rows; first += most) {
        fp8_params f = all;
        int n = rows - first < most ? rows - first : most;
        struct fp8_rows quantised = fp8_rows_at(quantiser.workspace, n, x.k);
        f.tile.m = n;
        for (int i = 0; i < f.tile.n_parts; i++) {
            struct tile_part *part = &f.tile.part[i];
            int64_t bytes = (int64_t)first * part->out_stride * 2;
            part->out = (char *)part->out + bytes;
            if (part->residual)
                part->residual = (const char *)part->residual + bytes;
        }
        const char *from = (const char *)x.x + (int64_t)first * x.stride * 2;
        status = quantiser.done ? GEMM_OK
                                : fp8_quantize(&quantised, from, x.stride, quantiser.ue8m0, stream);
        if (!status)
            status = fp8_wide(f, w, quantised, nullptr, false, stream);
        if (status)
            return status;
    }
    return GEMM_OK;
}

/* Runs what `f` says with weights w[part] and tokens x. */
int run_product(fp8_params &f, const tile_weights *w, const tokens &x, bool invariant,
                const struct quantiser &quantiser, cudaStream_t stream)
{
    tile_params &p = f.tile;
    bool wide = p.m > FP8_EXACT_ROWS && !invariant;

    p.heads = 1;
    p.rows = x.x;
    p.row_bytes = 2 * x.stride;
    p.k = x.k;
    f.k_blocks = x.k / FP8_BLOCK;
    for (int i = 0; i < p.n_parts; i++) {
        f.scales[i].row_stride = f.k_blocks;
        if (!aligned(w[i].weight, 0) || !f.scales[i].scales || (w[i].up && !f.scales[i].up_scales))
            return GEMM_INVALID;
        wide &= !p.part[i].out_float;
    }
    if (wide)
        return run_wide(f, w, x, quantiser, stream);
    if (p.m <= 16 && !invariant)
        return run_stream(f, w, x, stream);
    bool may_split = !invariant && !w[0].up;
    int row_tiles = 0;
    for (int i = 0; i < p.n_parts; i++)
        row_tiles += ceil_div(p.part[i].n, 2 * TILE_ROWS);
    /* Small blocks where most of the time is a kernel's beginning and its end. */
    if (p.m <= small::BN && 8 * row_tiles <= gemm_processors())
        return run_tiles<small>(f, w, x, may_split, stream);
    return run_tiles<middle>(f, w, x, may_split, stream);
}

__global__ void __launch_bounds__(REORDER_THREADS) reorder_kernel(uint32_t *words, int64_t n)
{
    int64_t at = blockIdx.x * (int64_t)REORDER_THREADS + threadIdx.x;
    int lane = threadIdx.x % 32, q = lane / 8, j = lane % 8; /* of the word to write */
    uint32_t word = at < n ? words[at] : 0;
    uint32_t low = __shfl_sync(~0u, word, 4 * j + q / 2);      /* holds k = 16 j + 2 q, + 1 */
    uint32_t high = __shfl_sync(~0u, word, 4 * j + 2 + q / 2); /* ... + 8, + 9 */

    if (q % 2) {
        low >>= 16;
        high >>= 16;
    }
    /* (2 q, 2 q + 8, 2 q + 1, 2 q + 9) */
    if (at < n)
        words[at] = __byte_perm(low, high, 0x5140);
}

} // namespace

int fp8_reorder(void *weights, int64_t n, gemm_stream stream)
{
    int64_t blocks = (n / 4 + REORDER_THREADS - 1) / REORDER_THREADS;

    if (n % FP8_BLOCK || blocks > INT32_MAX)
        return GEMM_INVALID;
    if (n == 0)
        return GEMM_OK;
    reorder_kernel<<<(unsigned)blocks, REORDER_THREADS, 0, (cudaStream_t)stream>>>(
        (uint32_t *)weights, n / 4);
    return cudaGetLastError() == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

size_t gemm_fp8_workspace(int32_t max_m, int32_t max_k)
{
    return fp8_rows_bytes(max_m, max_k);
}

int gemm_fp8_linear(const struct gemm_fp8_linear_args *args, gemm_stream stream)
{
    const struct gemm_linear_args *a = &args->linear;
    struct tile_weights w[GEMM_MAX_PARTS];
    fp8_params f;

    if (a->m == 0)
        return GEMM_OK;
    if (a->m < 0 || a->k < FP8_BLOCK || a->k % FP8_BLOCK || a->n_parts < 1 ||
        a->n_parts > GEMM_MAX_PARTS || !aligned(a->x, a->x_stride) || a->x_stride < a->k)
        return GEMM_INVALID;
    memset(&f, 0, sizeof(f));
    f.tile.m = a->m;
    f.tile.n_parts = a->n_parts;
    for (int i = 0; i < a->n_parts; i++) {
        const struct gemm_part *part = &a->parts[i];
        if (part->n < 8 || part->n % 8 || !aligned(part->out, part->out_stride) ||
            part->out_stride < part->n ||
            (part->residual && (part->out_float || !aligned(part->residual, 0))))
            return GEMM_INVALID;
        f.tile.part[i] = {part->out,       part->bias, part->residual, part->out_stride, part->n,
                          part->out_float, 0};
        f.scales[i].scales = args->scales[i].scales;
        w[i] = {part->weight, nullptr, a->k, 0};
    }
    if (a->norm) {
        if (!gemm_linear_norms(a->m, a->k, a->batch_invariant) || !aligned(a->norm, 0) ||
            !aligned(a->normalised, 0))
            return GEMM_INVALID;
        f.tile.norm = a->norm;
        f.tile.normalised = a->normalised;
        f.tile.norm_eps = a->eps;
    }
    return run_product(
        f, w, {a->x, a->x_stride, a->k}, a->batch_invariant,
        {args->workspace, args->workspace_bytes, args->ue8m0 != 0, args->quantised != 0},
        (cudaStream_t)stream);
}

int gemm_fp8_swiglu(const struct gemm_fp8_swiglu_args *args, gemm_stream stream)
{
    const struct gemm_swiglu_args *a = &args->swiglu;
    struct tile_weights w = {a->gate, a->up, a->k, 0};
    fp8_params f;

    if (a->m == 0)
        return GEMM_OK;
    if (a->m < 0 || a->k < FP8_BLOCK || a->k % FP8_BLOCK || a->i < 8 || a->i % 8 ||
        !aligned(a->x, a->x_stride) || !aligned(a->out, a->out_stride) || !aligned(a->up, 0) ||
        a->x_stride < a->k || a->out_stride < a->i)
        return GEMM_INVALID;
    memset(&f, 0, sizeof(f));
    f.tile.m = a->m;
    f.tile.n_parts = 1;
    f.tile.part[0] = {a->out, nullptr, nullptr, a->out_stride, a->i, 0, 0};
    f.scales[0].scales = args->scales.scales;
    f.scales[0].up_scales = args->scales.up_scales;
    return run_product(
        f, &w, {a->x, a->x_stride, a->k}, a->batch_invariant,
        {args->workspace, args->workspace_bytes, args->ue8m0 != 0, args->quantised != 0},
        (cudaStream_t)stream);
}
