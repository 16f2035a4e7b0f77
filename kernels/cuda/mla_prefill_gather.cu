/* Cache rows, out of their pages and dequantised, into the contiguous rows that the product with
 * kv_b reads. A block of threads copies ROWS rows, a warp one after the other. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_prefill.h"
#include "kernels/cuda/ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

namespace
{

enum { ROWS = 32, WARPS = 8 };

/* 8 bf16 values from memory that is 8-byte aligned. */
__device__ uint4 load8(const uint8_t *src)
{
    uint2 low = ((const uint2 *)src)[0], high = ((const uint2 *)src)[1];

    return make_uint4(low.x, low.y, high.x, high.y);
}

/* 8 e4m3 values times scale; exact, since a scale is a power of two. */
__device__ uint4 load8_fp8(const uint8_t *src, float scale)
{
    uint2 codes = *(const uint2 *)src;
    uint4 out;
    uint32_t *words = &out.x;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        __nv_fp8x2_e4m3 pair;
        pair.__x = (__nv_fp8x2_storage_t)((i < 2 ? codes.x : codes.y) >> i % 2 * 16);
        float2 v = (float2)pair;
        __nv_bfloat162 r = __floats2bfloat162_rn(v.x * scale, v.y * scale);
        words[i] = *(uint32_t *)&r;
    }
    return out;
}

__global__ void __launch_bounds__(WARPS * 32)
    gather_kernel(const __grid_constant__ mla_cache cache, const int32_t *block_tables,
                  const prefill_block *blocks, __nv_bfloat16 *latent, __nv_bfloat16 *rope)
{
    launch_wait();
    launch_next();
    const prefill_block block = blocks[blockIdx.x / (PREFILL_BLOCK / ROWS)];
    const int fp8 = cache.format == MLA_KV_FP8, lane = threadIdx.x % 32;
    const int latent_bytes =
        fp8 ? cache.latent_dim + cache.latent_dim / 128 * 4 : 2 * cache.latent_dim;
    const int64_t row_bytes = latent_bytes + 2 * cache.rope_dim;

    for (int i = threadIdx.x / 32; i < ROWS; i += WARPS) {
        const int64_t to = (int64_t)blockIdx.x * ROWS + i;
        const int j = to % PREFILL_BLOCK, position = block.position + j;
        const bool there = j < block.tokens;
        const int64_t page = there ? block_tables[block.table + position / MLA_PAGE_TOKENS] : 0;
        const uint8_t *row = (const uint8_t *)cache.pages + page * cache.page_stride +
                             position % MLA_PAGE_TOKENS * row_bytes;
        for (int x = lane * 8; x < cache.latent_dim; x += 256) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (there && fp8)
                v = load8_fp8(row + x, ((const float *)(row + cache.latent_dim))[x / 128]);
            else if (there)
                v = load8(row + 2 * x);
            *(uint4 *)(latent + to * cache.latent_dim + x) = v;
        }
        for (int x = lane * 8; x < cache.rope_dim; x += 256)
            *(uint4 *)(rope + to * cache.rope_dim + x) =
                there ? load8(row + latent_bytes + 2 * x) : make_uint4(0, 0, 0, 0);
    }
}

} // namespace

int prefill_gather(const struct mla_cache *cache, const int32_t *block_tables,
                   const struct prefill_block *blocks, int n_blocks, void *latent, void *rope,
                   mla_stream stream)
{
    return launch_early(gather_kernel, dim3(n_blocks * (PREFILL_BLOCK / ROWS)), WARPS * 32, 0,
                        stream, *cache, block_tables, blocks, (__nv_bfloat16 *)latent,
                        (__nv_bfloat16 *)rope) == cudaSuccess
               ? MLA_OK
               : MLA_CUDA;
}
