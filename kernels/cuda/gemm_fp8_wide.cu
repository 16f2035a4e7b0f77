/* Products with FP8 tokens, and how tokens become FP8. See gemm_fp8_wide.cuh. */
#include "kernels/cuda/gemm_fp8_wide.cuh"

namespace
{

enum { QUANTIZE_THREADS = 256, QUANTIZE_BLOCKS = 4 };

/* A warp has up to QUANTIZE_BLOCKS blocks of 128 values of a row, all asked for at once. Lane 8 q +
 * j writes the word that holds k = 16 j + 2 q + (0, 8, 1, 9). */
__global__ void __launch_bounds__(QUANTIZE_THREADS)
    quantize_kernel(struct fp8_rows to, const __nv_bfloat16 *x, int64_t stride, bool ue8m0)
{
    int blocks = to.k / FP8_BLOCK, lane = threadIdx.x % 32, q = lane / 8, j = lane % 8;
    int64_t first =
        (blockIdx.x * (int64_t)(QUANTIZE_THREADS / 32) + threadIdx.x / 32) * QUANTIZE_BLOCKS;
    int64_t n = (int64_t)to.rows * blocks;
    float2 low[QUANTIZE_BLOCKS], high[QUANTIZE_BLOCKS];

    launch_wait();
    launch_next();
#pragma unroll
    for (int i = 0; i < QUANTIZE_BLOCKS; i++) {
        int64_t at = first + i < n ? first + i : n - 1, row = at / blocks;
        const __nv_bfloat162 *from =
            (const __nv_bfloat162 *)(x + row * stride + (at - row * blocks) * FP8_BLOCK + 16 * j +
                                     2 * q);
        low[i] = __bfloat1622float2(from[0]);
        high[i] = __bfloat1622float2(from[4]);
    }
#pragma unroll
    for (int i = 0; i < QUANTIZE_BLOCKS; i++) {
        float largest = fmaxf(fmaxf(fabsf(low[i].x), fabsf(low[i].y)),
                              fmaxf(fabsf(high[i].x), fabsf(high[i].y)));
#pragma unroll
        for (int d = 16; d; d /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
        float scale = fp8_scale_of(largest, ue8m0), by = 1.0f / scale;
        uint32_t word = fp8_pack(low[i].x * by, high[i].x * by, low[i].y * by, high[i].y * by);
        if (first + i >= n)
            return;
        ((uint32_t *)to.values)[(first + i) * (FP8_BLOCK / 4) + lane] = word;
        if (lane == 0)
            to.scales[first + i] = scale;
    }
}

/* Weights (z, n, k) in boxes of 128 rows; of gate and up, 8 of the one and 8 of the other in turn.
 */
int map_weights(tile_params *p, int at, const tile_weights &w, int n, int k, int z)
{
    int64_t apart = (const char *)w.up - (const char *)w.weight;
    struct gemm_map map = {
        w.weight,      k, 2, {n, z}, {w.row_stride, z > 1 ? w.z_stride : w.row_stride},
        {FP8_WIDE, 1}, 1};

    if (w.up) {
        p->swiglu = 1;
        p->swapped |= (apart < 0) << at;
        map = {apart < 0 ? w.up : w.weight,
               k,
               4,
               {8, 2, n / 8, z},
               {w.row_stride, apart < 0 ? -apart : apart, 8 * w.row_stride,
                z > 1 ? w.z_stride : 8 * w.row_stride},
               {8, 2, FP8_WIDE / 16, 1},
               1};
    }
    return gemm_map_encode(&p->a[at], &map);
}

/* Results leave in boxes of 64 rows by 64 columns. */
int map_results(CUtensorMap *to, const void *data, int n, int rows, int64_t stride)
{
    struct gemm_map map = {data, n, 2, {1, rows}, {stride, stride}, {1, 64}};

    return gemm_map_encode(to, &map);
}

template <int HALVES, bool GATED>
cudaError_t launch(const fp8_wide_params &p, bool sorted, cudaStream_t stream)
{
    return sorted ? fp8_wide_launch<fp8_wide_config<TILE_SORTED, HALVES, GATED>>(p, stream)
                  : fp8_wide_launch<fp8_wide_config<TILE_DENSE, HALVES, GATED>>(p, stream);
}

} // namespace

int fp8_quantize(const struct fp8_rows *to, const void *x, int64_t stride, bool ue8m0,
                 cudaStream_t stream)
{
    int64_t warps =
        ((int64_t)to->rows * (to->k / FP8_BLOCK) + QUANTIZE_BLOCKS - 1) / QUANTIZE_BLOCKS;
    unsigned blocks = (unsigned)((warps + QUANTIZE_THREADS / 32 - 1) / (QUANTIZE_THREADS / 32));
    cudaError_t e = launch_early(quantize_kernel, blocks, QUANTIZE_THREADS, 0, stream, *to,
                                 (const __nv_bfloat16 *)x, stride, ue8m0);

    return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}

int fp8_wide(fp8_params &f, const tile_weights *w, const struct fp8_rows &x,
             const struct fp8_rows *out, bool ue8m0, cudaStream_t stream)
{
    tile_params &p = f.tile;
    bool sorted = p.routing.ranges != nullptr;
    struct gemm_map map = {x.values, x.k, 2, {1, x.rows}, {x.k, x.k}, {1, FP8_WIDE}, 1};
    int bad = gemm_map_encode(&p.b, &map), tiles = 0;
    int per_row = w[0].up ? 2 : 1;

    f.k_blocks = p.k_steps = x.k / FP8_BLOCK;
    p.heads = p.split = 1;
    p.weight_policy = TMA_EVICT_NORMAL;
    for (int i = 0; i < p.n_parts; i++) {
        bad |= map_weights(&p, i, w[i], p.part[i].n, x.k, sorted ? p.routing.experts : 1);
        tiles += (per_row * p.part[i].n + 2 * FP8_WIDE - 1) / (2 * FP8_WIDE);
    }
    tiles *= (p.m + FP8_WIDE - 1) / FP8_WIDE;
    int rows = tiles < gemm_processors() && !out ? FP8_WIDE : 2 * FP8_WIDE;
    for (int i = 0; i < p.n_parts; i++) {
        const struct tile_part &part = p.part[i];
        p.part[i].row_tiles = (per_row * part.n + rows - 1) / rows;
        if (!out)
            bad |= map_results(&p.out[i], part.out, part.n, p.m, part.out_stride);
        if (part.residual)
            bad |= map_results(&p.residual[i], part.residual, part.n, p.m, part.out_stride);
    }
    if (bad)
        return GEMM_INVALID;
    fp8_wide_params wide = {f, x.scales, x.rows, out ? *out : fp8_rows{}, ue8m0};
    cudaError_t e = out                ? launch<2, true>(wide, sorted, stream)
                    : rows == FP8_WIDE ? launch<1, false>(wide, sorted, stream)
                                       : launch<2, false>(wide, sorted, stream);
    return e == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}
