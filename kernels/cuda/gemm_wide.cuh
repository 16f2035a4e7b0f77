/* Products of many rows: tiles of 128 weight rows by up to 256 tokens, for the tensor cores' sake.
 *
 * Four roles: two math warpgroups, the copying warp of gemm_tile.cuh, and a storing warp. The math
 * warps leave a tile's results in shared memory, turned around and swizzled, and go on with the
 * next tile; the storing warp writes them out by TMA meanwhile, and, where a residual is to be
 * added, fetches the next tile's before the math warps need it there:
 *
 *   storing warp: (residual ->) memory, `ready` -> wait for `staged` -> TMA store, wait until read
 *   math warps:   products of the tile -> wait for `ready` -> results to memory, `staged`
 *
 * An expert's last tile of a SORTED product may be partial, and the rows after it are another's:
 * the math warps write such a tile themselves. Float results (which have no tile in memory) too. */
#pragma once

#include "kernels/cuda/gemm_tile.cuh"

enum { WIDE_BOX_BYTES = 256 * TOKEN_BYTES }; /* 256 tokens' results in 64 columns */

template <int MODE_, int TA_> struct wide_config {
    enum {
        BN = 256,
        GROUPS = 2,
        STAGES = 3,
        MODE = MODE_,
        TA = TA_,
        MATH = GROUPS * 128,
        THREADS = MATH + 128, /* a whole warpgroup, to hand its registers over; two warps work */
        TABLE_THREADS = MATH + 64,
        BOX_TOKENS = 64,
        A_BYTES = GROUPS * A_BOX_BYTES,
        STAGE_BYTES = A_BYTES + BN * TOKEN_BYTES,
        STAGING_BYTES = GROUPS * WIDE_BOX_BYTES,
        TABLE_BYTES = MODE == TILE_DENSE ? 0 : (int)offsetof(tile_tables, list),
        LAG = 0, /* not ROUTED */
        SHARED_BYTES = 1024 + STAGES * STAGE_BYTES + STAGING_BYTES + 16 * STAGES + 16 + TABLE_BYTES,
    };
};

__device__ __forceinline__ void tma_store_3d(const CUtensorMap *map, uint32_t src, int32_t x,
                                             int32_t y, int32_t z)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
            map),
        "r"(src), "r"(x), "r"(y), "r"(z)
        : "memory");
}

__device__ __forceinline__ void load_matrix(uint32_t at, uint32_t *a, uint32_t *b)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(*a), "=r"(*b)
                 : "r"(at)
                 : "memory");
}

/* Whether the storing warp has nothing to do with a tile's results. */
template <class C> __device__ __forceinline__ bool is_partial(const struct tile &w)
{
    return C::MODE == TILE_SORTED && w.tokens < C::BN;
}

template <class C>
__device__ __forceinline__ int tile_count(const tile_params &p, const tile_memory<C> &mem)
{
    return C::MODE == TILE_DENSE ? dense_tiles<C>(p) : mem.tables->tile_start[p.routing.experts];
}

/* The storing warp: one thread of it. */
template <class C> __device__ void store_tiles(const tile_params &p, const tile_memory<C> &mem)
{
    tile_walk<C> walk(p, mem.tables, tile_count<C>(p, mem));
    int boxes = p.swiglu ? 1 : C::GROUPS;
    uint32_t parity = 0;

    for (; walk.more(); walk.step = walk.end_step, walk.next()) {
        const struct tile &w = walk.w;
        int part = C::MODE == TILE_DENSE ? w.part : 0, z = C::MODE == TILE_DENSE ? w.z : 0;
        int column = w.row_tile * boxes * TILE_ROWS;
        if (p.part[part].out_float)
            continue;
        if (p.part[part].residual) {
            mbar_arrive_expect(mem.ready, boxes * WIDE_BOX_BYTES);
            for (int b = 0; b < boxes; b++)
                tma_load_3d(mem.staging + b * WIDE_BOX_BYTES, &p.residual[part], mem.ready,
                            column + b * TILE_ROWS, z, w.first, TMA_EVICT_NORMAL);
        } else {
            mbar_arrive(mem.ready);
        }
        ring_wait(mem.staged, parity);
        parity ^= 1;
        if (is_partial<C>(w))
            continue;
        for (int b = 0; b < boxes; b++)
            tma_store_3d(&p.out[part], mem.staging + b * WIDE_BOX_BYTES, column + b * TILE_ROWS, z,
                         w.first);
        bulk_commit();
        bulk_wait_read<0>();
    }
    bulk_wait<0>();
}

/* A partial tile's results from shared memory to its rows. */
template <class C>
__device__ __forceinline__ void store_partial(const tile_params &p, const tile_memory<C> &mem,
                                              const struct tile &w)
{
    const struct tile_part &part = p.part[0];
    int pieces = (p.swiglu ? 1 : C::GROUPS) * 8;

    named_sync(8, C::MATH);
    for (int i = threadIdx.x; i < w.tokens * pieces; i += C::MATH) {
        int token = i / pieces, piece = i - token * pieces;
        int column = (w.row_tile * pieces + piece) * 8;
        const char *from = mem.staging_ptr + piece / 8 * WIDE_BOX_BYTES + token * TOKEN_BYTES +
                           ((piece ^ token) & 7) * 16;
        if (column < part.n)
            *(uint4 *)((__nv_bfloat16 *)part.out + (w.first + token) * part.out_stride + column) =
                *(const uint4 *)from;
    }
}

template <class C, int NT>
__device__ __forceinline__ void stage_results(const float (&acc)[NT / 2], const float (&bias)[2],
                                              const tile_params &p, const tile_memory<C> &mem,
                                              const struct tile &w)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 4;
    int piece = p.swiglu ? warp : warp % 4 * 2 + lane / 8 % 2; /* of the 8 of a token's 128 bytes */
    uint32_t at = mem.staging + (p.swiglu ? 0 : group * WIDE_BOX_BYTES) + lane % 8 * TOKEN_BYTES +
                  (piece ^ lane % 8) * 16;
    bool swapped = p.swapped & 1;
    bool residual = p.part[C::MODE == TILE_DENSE ? w.part : 0].residual != nullptr;

#pragma unroll
    for (int j = 0; j < NT / 2; j += 4, at += 8 * TOKEN_BYTES) {
        if (p.swiglu) {
            float g0 = swapped ? acc[j + 2] : acc[j], g1 = swapped ? acc[j + 3] : acc[j + 1];
            float u0 = swapped ? acc[j] : acc[j + 2], u1 = swapped ? acc[j + 1] : acc[j + 3];
            store_matrix(at, pack_bf16(silu(g0) * u0, silu(g1) * u1));
            continue;
        }
        uint32_t v[2] = {pack_bf16(acc[j] + bias[0], acc[j + 1] + bias[0]),
                         pack_bf16(acc[j + 2] + bias[1], acc[j + 3] + bias[1])};
        if (residual) {
            uint32_t r[2];
            load_matrix(at, &r[0], &r[1]);
            v[0] = add_pair(v[0], r[0]);
            v[1] = add_pair(v[1], r[1]);
        }
        store_matrix(at, v[0], v[1]);
    }
}

/* The math warps' products, for wide_tiles. */
template <class C> struct wide_products {
    const tile_params &p;
    const tile_memory<C> &mem;
    struct ring_place at;

    template <int NT>
    __device__ __forceinline__ void run(float (&acc)[NT / 2], const struct tile &, int group)
    {
        multiply<C, NT>(acc, mem, at, p.k_steps, group);
    }
};

template <class C, int NT, class P>
__device__ __forceinline__ void wide_tile(const tile_params &p, const tile_memory<C> &mem,
                                          const struct tile &w, P &products, uint32_t &parity)
{
    tile_sums<C, NT> sums(p, w);

    products.template run<NT>(sums.acc, w, sums.group);
    if (C::MODE == TILE_DENSE && p.part[w.part].out_float) {
        store_float<C, NT>(sums.acc, sums.bias, p, mem, w, sums.column, 0, NT / 8);
        return;
    }
    ring_wait(mem.ready, parity);
    parity ^= 1;
    stage_results<C, NT>(sums.acc, sums.bias, p, mem, w);
    if (is_partial<C>(w))
        store_partial<C>(p, mem, w);
    fence_async();
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        mbar_arrive(mem.staged);
}

template <class C, class P>
__device__ void wide_tiles(const tile_params &p, const tile_memory<C> &mem, P products)
{
    tile_walk<C> walk(p, mem.tables, tile_count<C>(p, mem));
    uint32_t parity = 0;

    for (; walk.more(); walk.step = walk.end_step, walk.next()) {
        const struct tile &w = walk.w;
        if (w.tokens <= 64)
            wide_tile<C, 64>(p, mem, w, products, parity);
        else if (w.tokens <= 128)
            wide_tile<C, 128>(p, mem, w, products, parity);
        else if (w.tokens <= 192)
            wide_tile<C, 192>(p, mem, w, products, parity);
        else
            wide_tile<C, 256>(p, mem, w, products, parity);
    }
}

/* Sets up the barriers. */
template <class C> __device__ __forceinline__ void wide_init(const tile_memory<C> &mem)
{
    for (int i = 0; i < C::STAGES; i++) {
        mbar_init(mem.full + 8 * i, 1);
        mbar_init(mem.empty + 8 * i, C::MATH / 32);
    }
    mbar_init(mem.ready, 1);
    mbar_init(mem.staged, C::MATH / 32);
    mbar_init_fence();
}

template <class C>
__device__ __forceinline__ void wide_store_warp(const tile_params &p, const tile_memory<C> &mem)
{
    if (C::MODE != TILE_DENSE)
        named_sync(9, C::TABLE_THREADS);
    launch_wait();
    if (threadIdx.x % 32 == 0)
        store_tiles<C>(p, mem);
}

/* What the math warps do first. */
template <class C>
__device__ __forceinline__ void wide_begin(const tile_params &p, const tile_memory<C> &mem)
{
    if (C::MODE == TILE_DENSE || !p.routing.known)
        launch_wait();
    if (C::MODE != TILE_DENSE) {
        tables_from_ranges<C::MATH>(*mem.tables, p.routing, p.part[0].row_tiles, C::BN);
        named_sync(9, C::TABLE_THREADS);
        launch_wait();
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) wide_kernel(const __grid_constant__ tile_params p)
{
    extern __shared__ char raw[];
    tile_memory<C> mem(raw);
    int tid = threadIdx.x;

    if (tid == 0)
        wide_init<C>(mem);
    __syncthreads();
    if (tid >= C::MATH) {
        registers_lower<56>();
        if (tid < C::MATH + 32)
            copy_tiles<C>(p, mem, tid % 32);
        else if (tid < C::MATH + 64)
            wide_store_warp<C>(p, mem);
    } else {
        registers_raise<224>();
        wide_begin<C>(p, mem);
        wide_tiles<C>(p, mem, wide_products<C>{p, mem, {0, 0}});
    }
}

/* The map of results: boxes of 256 rows by 64 columns. */
static inline int wide_map(CUtensorMap *out, const void *data, int n, int heads, int rows,
                           int64_t stride, int64_t head_stride)
{
    struct gemm_map map = {data,    n, 2, {heads, rows}, {heads > 1 ? head_stride : stride, stride},
                           {1, 256}};

    return gemm_map_encode(out, &map);
}

template <class C>
static cudaError_t wide_launch(const tile_params &p, int blocks, cudaStream_t stream)
{
    cudaError_t e = launch_room<wide_kernel<C>>(C::SHARED_BYTES);

    return e != cudaSuccess
               ? e
               : launch_early(wide_kernel<C>, blocks, C::THREADS, C::SHARED_BYTES, stream, p);
}
