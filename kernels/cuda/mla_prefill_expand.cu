/* Keys and values of a piece: latent (rows, K) times kv_b (columns, K) transposed, K 256 or 512.
 *
 * K is so short that a block keeps all of K for 128 columns of kv_b in shared memory and streams
 * rows past it, 128 at a time in steps of 64 along K: half the traffic of a square tile. Blocks
 * share the (column slice, row tile) pairs out in equal runs, slice after slice. Two consumer
 * warpgroups have 64 rows each; while the tensor cores work on a tile, the tile before, packed in
 * registers, goes out to memory, a part a step. Sums run along K in rising
 * order whatever the number of rows.
 *
 * Shared memory: kv_b 128 * 512 * 2 = 131072, rows 6 stages * 128 * 64 * 2 = 98304; 229376 in all.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_fragment.cuh"
#include "kernels/cuda/mla_internal.h"
#include "kernels/cuda/mla_prefill.h"
#include "kernels/cuda/wgmma.cuh"

namespace
{

enum {
    TILE = 128, /* rows and columns */
    STEP_BYTES = TILE * 64 * 2,
    STAGES = 6,
    MAX_STEPS = 8,
    CONSUMER_WARPS = 8,
    THREADS = 384, /* warpgroup 0 produces */
    SHARED = (MAX_STEPS + STAGES) * STEP_BYTES + 1024 /* alignment */,
};

struct expand_params {
    CUtensorMap x_map; /* (rows, K), box 64 x TILE */
    CUtensorMap w_map; /* (columns, K), box 64 x TILE */
    __nv_bfloat16 *out;
    int32_t rows, columns;
    int32_t row_tiles, tiles; /* tiles: row_tiles * column slices */
};

struct expand_barriers {
    uint64_t x_full[STAGES], x_empty[STAGES];
    uint64_t w_full[MAX_STEPS], w_empty[MAX_STEPS];
};

/* Which stage comes next, and the parity of its barriers. */
struct ring {
    int stage, parity;

    __device__ void next()
    {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

__device__ int first_tile(const expand_params &p, int block)
{
    return (int)((int64_t)p.tiles * block / gridDim.x);
}

template <int STEPS>
__device__ void produce(const expand_params &p, uint32_t x, uint32_t w, expand_barriers *bars)
{
    const int begin = first_tile(p, blockIdx.x), end = first_tile(p, blockIdx.x + 1);
    ring at = {0, 1};
    int slices = 0;

    for (int t = begin; t < end; t++) {
        const int slice = t / p.row_tiles, row = (t - slice * p.row_tiles) * TILE;
        const bool new_slice = t == begin || row == 0;
        for (int k = 0; k < STEPS; k++, at.next()) {
            if (new_slice) {
                mbar_wait(smem_u32(&bars->w_empty[k]), (slices % 2) ^ 1);
                mbar_arrive_expect(smem_u32(&bars->w_full[k]), STEP_BYTES);
                tma_load_2d(w + k * STEP_BYTES, &p.w_map, smem_u32(&bars->w_full[k]), k * 64,
                            slice * TILE, TMA_EVICT_LAST);
            }
            mbar_wait(smem_u32(&bars->x_empty[at.stage]), at.parity);
            mbar_arrive_expect(smem_u32(&bars->x_full[at.stage]), STEP_BYTES);
            tma_load_2d(x + at.stage * STEP_BYTES, &p.x_map, smem_u32(&bars->x_full[at.stage]),
                        k * 64, row, TMA_EVICT_LAST);
        }
        slices += new_slice;
    }
}

/* A finished tile, in the accumulators' order: word 2 j + i is columns 8 j + 2 (lane % 4) and the
 * next, of row lane / 4 + 8 i. */
struct finished {
    uint32_t word[32];
    int32_t row, column; /* of the thread's first row and of the tile */
    int32_t rows;        /* 0: there is no tile */
};

/* Part `k` of 8. */
__device__ __forceinline__ void store_part(const expand_params &p, const finished &f, int k)
{
    const int i = k % 2, j = k / 2 * 4;
    const int row = f.row + 8 * i, column = f.column + (j + threadIdx.x % 4) * 8;
    uint32_t w[4] = {f.word[2 * j + i], f.word[2 * j + 2 + i], f.word[2 * j + 4 + i],
                     f.word[2 * j + 6 + i]};

    transpose4(w);
    if (row < f.rows && column < p.columns)
        *(uint4 *)(p.out + (int64_t)row * p.columns + column) = make_uint4(w[0], w[1], w[2], w[3]);
}

template <int STEPS>
__device__ void consume(const expand_params &p, uint32_t x, uint32_t w, expand_barriers *bars)
{
    const int begin = first_tile(p, blockIdx.x), end = first_tile(p, blockIdx.x + 1);
    const uint64_t my_x = wgmma_desc(x + (threadIdx.x / 128 - 1) * 64 * 128, 0, 1024, SWIZZLE_128);
    const uint64_t my_w = wgmma_desc(w, 0, 1024, SWIZZLE_128);
    ring at = {0, 0};
    int slices = 0;
    finished f = {};
    float d[64];

    for (int t = begin; t < end; t++) {
        const int slice = t / p.row_tiles, row_tile = t - slice * p.row_tiles;
        const bool new_slice = t == begin || row_tile == 0;
        int before = 0;

        wgmma_hold(d);
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            if (new_slice)
                mbar_wait(smem_u32(&bars->w_full[k]), slices % 2);
            mbar_wait(smem_u32(&bars->x_full[at.stage]), at.parity);
            wgmma_fence();
#pragma unroll
            for (int c = 0; c < 4; c++)
                wgmma<TILE>::ss<0, 0>(d, my_x + (at.stage * STEP_BYTES + c * 32) / 16,
                                      my_w + (k * STEP_BYTES + c * 32) / 16, k + c > 0);
            wgmma_commit();
#pragma unroll
            for (int part = k * 8 / STEPS; part < (k + 1) * 8 / STEPS; part++)
                store_part(p, f, part);
            if (k > 0) {
                wgmma_wait<1>();
                release(&bars->x_empty[before]);
            }
            before = at.stage;
            at.next();
        }
        wgmma_wait<0>();
        wgmma_hold(d);
        release(&bars->x_empty[before]);
        if (row_tile == p.row_tiles - 1)
            for (int k = 0; k < STEPS; k++)
                release(&bars->w_empty[k]);
        slices += new_slice;
#pragma unroll
        for (int i = 0; i < 32; i++)
            f.word[i] = pack_bf16(d[2 * i], d[2 * i + 1]);
        f.row = row_tile * TILE + (threadIdx.x - 128) / 32 * 16 + threadIdx.x % 32 / 4;
        f.column = slice * TILE;
        f.rows = p.rows;
    }
#pragma unroll
    for (int part = 0; part < 8; part++)
        store_part(p, f, part);
}

template <int STEPS>
__global__ void __launch_bounds__(THREADS, 1) expand_kernel(const __grid_constant__ expand_params p)
{
    extern __shared__ uint8_t raw[];
    __shared__ expand_barriers bars;
    const uint32_t w = (smem_u32(raw) + 1023) & ~1023u, x = w + STEPS * STEP_BYTES;

    if (threadIdx.x == 0) {
        tma_prefetch_map(&p.x_map);
        tma_prefetch_map(&p.w_map);
        for (int i = 0; i < STAGES; i++) {
            mbar_init(smem_u32(&bars.x_full[i]), 1);
            mbar_init(smem_u32(&bars.x_empty[i]), CONSUMER_WARPS);
        }
        for (int i = 0; i < STEPS; i++) {
            mbar_init(smem_u32(&bars.w_full[i]), 1);
            mbar_init(smem_u32(&bars.w_empty[i]), CONSUMER_WARPS);
        }
        mbar_init_fence();
    }
    __syncthreads();
    launch_wait();
    launch_next();
    if (threadIdx.x >= 128)
        consume<STEPS>(p, x, w, &bars);
    else if (threadIdx.x == 0)
        produce<STEPS>(p, x, w, &bars);
}

template <int STEPS> int launch(const expand_params &p, int sms, mla_stream stream)
{
    if (cudaFuncSetAttribute(expand_kernel<STEPS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             SHARED) != cudaSuccess ||
        launch_early(expand_kernel<STEPS>, dim3(p.tiles < sms ? p.tiles : sms), THREADS, SHARED,
                     stream, p) != cudaSuccess)
        return MLA_CUDA;
    return MLA_OK;
}

int map_2d(CUtensorMap *map, const void *data, uint64_t columns, uint64_t rows)
{
    const uint64_t sizes[] = {columns, rows}, strides[] = {columns * 2};
    const uint32_t box[] = {64, TILE};

    return mla_tensor_map(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, data, sizes, strides, box);
}

} // namespace

int prefill_expand(void *out, const void *latent, const void *kv_b, int32_t rows, int32_t columns,
                   int32_t k, int sms, mla_stream stream)
{
    expand_params p = {};

    if ((k != 512 && k != 256) || columns % 8 != 0)
        return MLA_UNSUPPORTED;
    if (map_2d(&p.x_map, latent, k, rows) != 0 || map_2d(&p.w_map, kv_b, k, columns) != 0)
        return MLA_CUDA;
    p.out = (__nv_bfloat16 *)out;
    p.rows = rows;
    p.columns = columns;
    p.row_tiles = (rows + TILE - 1) / TILE;
    p.tiles = p.row_tiles * ((columns + TILE - 1) / TILE);
    return k == 512 ? launch<8>(p, sms, stream) : launch<4>(p, sms, stream);
}
