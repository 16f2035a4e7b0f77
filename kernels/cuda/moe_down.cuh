/* The second product of the experts for at most 16 rows, with the sum over the experts in it: a
 * block takes 16 columns of out and goes through all experts that are wanted, the shared ones
 * first, then in rising order. A row of x is the same column of the products for every expert;
 * where a row did not choose an expert, that column is left out. The ring, the steps of k and the
 * share of each warp are gemm_stream.cuh's. */
#pragma once

#include "kernels/cuda/gemm_stream.cuh"

struct down_params {
    struct tile_params p; /* part[0]: out, its residual, out_stride, n; row_tiles is 1 */
    const float *weights; /* (m, top_k) */
    int32_t row_tiles;    /* of 16 columns */
};

template <class C> struct down_config {
    enum {
        WEIGHTS_BYTES = C::BN * MOE_MAX_SLOTS * 4,
        SHARED_BYTES = C::SHARED_BYTES + WEIGHTS_BYTES,
    };
};

/* A block's column tiles, for each all experts ("turns" of routed_tile), for each the steps of k.
 */
template <class C> struct down_walk {
    const down_params &d;
    const tile_tables &tab;
    struct tile w;
    int tile, turn, turns, step;

    __device__ down_walk(const down_params &params, const tile_tables &tables)
        : d(params), tab(tables), tile(blockIdx.x), turn(0), step(0)
    {
        turns = d.p.routing.shared + tab.tile_start[d.p.routing.experts];
        if (more())
            set();
    }

    __device__ void set()
    {
        w = routed_tile<C>(d.p, tab, turn);
        w.row_tile = tile;
    }

    __device__ bool more() const
    {
        return tile < d.row_tiles && turns;
    }

    /* True when another expert begins. */
    __device__ bool next()
    {
        if (++step < d.p.k_steps)
            return false;
        step = 0;
        if (++turn == turns) {
            turn = 0;
            tile += gridDim.x;
        }
        if (more())
            set();
        return true;
    }
};

template <class C>
__device__ void down_copy(const down_params &d, const stream_memory<C> &mem, int lane)
{
    struct ring_place at = {0, 1};
    int slots = d.p.routing.top_k + d.p.routing.shared, early = 0, pair = 0;

    named_sync(9, C::TABLE_THREADS);
    down_walk<C> ahead(d, *mem.tables);
    for (; early < C::STAGES && ahead.more(); early++, ahead.next())
        if (lane == 0)
            stream_weights<C>(d.p, mem, ahead.w, ahead.step, early);
    launch_wait();

    down_walk<C> walk(d, *mem.tables);
    if (walk.more() && lane < walk.w.tokens)
        pair = tile_pair(d.p, *mem.tables, walk.w, lane);
    for (int i = 0; walk.more(); i++) {
        if (i >= early) {
            ring_wait(mem.empty + 8 * at.stage, at.parity);
            if (lane == 0)
                stream_weights<C>(d.p, mem, walk.w, walk.step, at.stage);
            __syncwarp();
        }
        if (lane < walk.w.tokens)
            tma_load_4d(smem_u32(mem.ring + at.stage * C::STAGE_BYTES + C::A_BYTES +
                                 pair / slots * C::TOKEN_BYTES),
                        &d.p.b, mem.full + 8 * at.stage, 0, pair, walk.step * C::STEP_K / TILE_K, 0,
                        TMA_EVICT_LAST);
        at.template advance<C>();
        if (walk.next() && walk.more() && lane < walk.w.tokens)
            pair = tile_pair(d.p, *mem.tables, walk.w, lane);
    }
    launch_next(); /* as NEXT_ASKED */
}

/* total += weight * sum, for this thread's columns that the expert has. */
template <class C>
__device__ __forceinline__ void
down_add(float (&total)[C::BN / 8][4], const float (&sum)[C::BN / 8][4], const tile_params &p,
         const stream_memory<C> &mem, const float *weights, const struct tile &w)
{
    int slots = p.routing.top_k + p.routing.shared, first = threadIdx.x % 4 * 2;

    for (int token = 0; token < w.tokens; token++) {
        int pair = tile_pair(p, *mem.tables, w, token), row = pair / slots;
        float weight = w.part ? 1.0f : weights[row * p.routing.top_k + pair % slots];
#pragma unroll
        for (int t = 0; t < C::BN / 8; t++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (row == 8 * t + first + i % 2)
                    total[t][i] = fmaf(weight, sum[t][i], total[t][i]);
    }
}

/* What this thread adds to its result, fetched before the products. */
template <class C> __device__ __forceinline__ float down_residual(const tile_params &p, int tile)
{
    const struct tile_part &part = p.part[0];
    int t = threadIdx.x / 16, column = tile * 16 + threadIdx.x % 16;

    if (!part.residual || t >= p.m || column >= part.n)
        return 0;
    return __bfloat162float(((const __nv_bfloat16 *)part.residual)[t * part.out_stride + column]);
}

template <class C>
__device__ __forceinline__ void down_store(float (&total)[C::BN / 8][4], const tile_params &p,
                                           const stream_memory<C> &mem, int tile, float residual)
{
    const struct tile_part &part = p.part[0];
    int r = threadIdx.x % 16, t = threadIdx.x / 16, column = tile * 16 + r;

    stream_share<C>(total, mem);
    if (t >= p.m || column >= part.n)
        return;
    float v = stream_sum<C>(mem.sums, r, t);
    int64_t at = t * part.out_stride + column;
    ((__nv_bfloat16 *)part.out)[at] = __float2bfloat16(v + residual);
}

template <class C>
__device__ void down_multiply(const down_params &d, const stream_memory<C> &mem,
                              const float *weights)
{
    struct ring_place at = {0, 0};
    down_walk<C> walk(d, *mem.tables);
    float total[C::BN / 8][4] = {}, residual = down_residual<C>(d.p, walk.tile);

    while (walk.more()) {
        float sum[C::BN / 8][4] = {};
        int tile = walk.tile;
        stream_multiply<C>(sum, d.p, mem, at, d.p.k_steps);
        down_add<C>(total, sum, d.p, mem, weights, walk.w);
        walk.step = d.p.k_steps;
        walk.next();
        if (walk.tile == tile)
            continue;
        down_store<C>(total, d.p, mem, tile, residual);
        residual = down_residual<C>(d.p, walk.tile);
#pragma unroll
        for (int i = 0; i < C::BN / 2; i++)
            total[i / 4][i % 4] = 0.0f;
    }
    if (walk.turns == 0) /* padding rows alone, and no shared expert */
        for (int tile = blockIdx.x; tile < d.row_tiles; tile += gridDim.x)
            down_store<C>(total, d.p, mem, tile, down_residual<C>(d.p, tile));
}

/* The routing was written before the kernel ahead of this one began, so all is known at once. */
template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) down_kernel(const __grid_constant__ down_params d)
{
    extern __shared__ char raw[];
    stream_memory<C> mem(raw);
    float *weights = (float *)((char *)mem.tables + C::TABLE_BYTES);
    int tid = threadIdx.x;

    stream_init<C>(mem);
    if (tid >= C::MATH) {
        down_copy<C>(d, mem, tid % 32);
        return;
    }
    for (int i = tid; i < d.p.m * d.p.routing.top_k; i += C::MATH)
        weights[i] = __int_as_float(load_routing((const int32_t *)d.weights + i));
    tables_from_ids<C::MATH>(*mem.tables, d.p.routing, d.p.m, 1, C::BN);
    named_sync(9, C::TABLE_THREADS);
    launch_wait();
    down_multiply<C>(d, mem, weights);
}

template <class C> static cudaError_t down_launch(down_params &d, int k, cudaStream_t stream)
{
    int blocks = gemm_processors();
    cudaError_t e = launch_room<down_kernel<C>>(down_config<C>::SHARED_BYTES);

    if (e != cudaSuccess)
        return e;
    d.p.k_steps = (k + C::STEP_K - 1) / C::STEP_K;
    d.p.part[0].row_tiles = 1;
    return launch_early(down_kernel<C>, d.row_tiles < blocks ? d.row_tiles : blocks, C::THREADS,
                        down_config<C>::SHARED_BYTES, stream, d);
}
