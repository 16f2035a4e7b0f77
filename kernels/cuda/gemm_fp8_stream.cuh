/* Products of at most 16 tokens with FP8 weights, where nothing counts but reading the weights.
 * gemm_stream.cuh's design with steps twice as long: 16 rows by 1024 k are 16 KB. Each of the 8
 * warps multiplies a block of 128 k of a step, which has one scale.
 *
 * A tile has few steps, so its end would cost as much as they: four more warps add up what the
 * eight have summed, and store it, while those go on with the next tile. */
#pragma once

#include "kernels/cuda/gemm_fp8.cuh"
#include "kernels/cuda/gemm_stream.cuh"

/* SLOTS: tokens that a stage has room for, at most BN. Where there are few, stages are small enough
 * for two blocks on a multiprocessor: the next kernel's are there, and have asked for their first
 * weights, when this one ends. */
template <int BN_, int SLOTS_, int STAGES_, int MODE_, int HOLDS_ = 0> struct fp8_stream_config {
    enum {
        BN = BN_, /* 8 or 16 */
        SLOTS = SLOTS_,
        STAGES = STAGES_,
        MODE = MODE_,
        HOLDS = HOLDS_ > 0, /* the math warps fetch all tokens, SLOTS at most, first of all */
        NORM_K = HOLDS_,    /* k is at most this then */
        ROWS = 16,
        WARPS = 8,
        MATH = WARPS * 32,
        STORE = 128, /* threads that store */
        THREADS = MATH + STORE + 32,
        TABLE_THREADS = THREADS,
        STEP_K = 1024,
        A_BYTES = ROWS * STEP_K,
        STEP_BYTES = STEP_K * 2, /* of a token */
        /* A routed token is a box of its own; 128 bytes on, the swizzle differs. */
        TOKEN_BYTES = MODE == TILE_DENSE ? STEP_BYTES : STEP_BYTES + 128,
        STAGE_BYTES = (A_BYTES + (HOLDS ? 0 : SLOTS * TOKEN_BYTES) + 1023) / 1024 * 1024,
        TOKEN_PITCH = ROWS + 4, /* floats of a token's sums; + 4: no bank conflicts */
        SUMS = WARPS * BN * TOKEN_PITCH,
        TABLE_BYTES = MODE == TILE_DENSE ? 0 : (int)sizeof(tile_tables),
        STAGE_SCALES = 16, /* 8 blocks of k; of up, 8 more */
        SHARED_BYTES = 1024 + STAGES * STAGE_BYTES + SUMS * 4 + 16 * STAGES + TABLE_BYTES +
                       STAGES * STAGE_SCALES * 4 + SUMS * 4 + 32,
        HELD_BYTES = HOLDS ? SLOTS * (2 * NORM_K + 16) : 0,
        BLOCKS = SHARED_BYTES + HELD_BYTES <= 113 * 1024 ? 2 : 1, /* of a multiprocessor */
    };
};

template <class C> struct fp8_stream_memory : stream_memory<C> {
    float *scales;         /* (STAGES, STAGE_SCALES) */
    float *second;         /* another `sums`: tiles have them in turn */
    uint32_t summed, read; /* barriers of the two */

    __device__ explicit fp8_stream_memory(char *raw) : stream_memory<C>(raw)
    {
        scales = (float *)((char *)this->tables + C::TABLE_BYTES);
        second = scales + C::STAGES * C::STAGE_SCALES;
        summed = smem_u32(second + C::SUMS);
        read = summed + 16;
        this->tokens = (char *)second + C::SUMS * 4 + 32;
    }
};

/* One step of a tile's weights and scales. The whole warp. */
template <class C>
__device__ __forceinline__ void
fp8_stream_weights(const fp8_params &f, const fp8_stream_memory<C> &mem, const struct tile &w,
                   int step, uint32_t stage, int lane)
{
    const tile_params &p = f.tile;
    const struct fp8_scale_map &map = f.scales[w.part];
    uint32_t dst = smem_u32(mem.ring + stage * C::STAGE_BYTES), bar = mem.full + 8 * stage;
    int first = step * C::STEP_K / FP8_BLOCK, row = w.row_tile * (p.swiglu ? 8 : 16);
    int block = first + lane % 8;

    if (lane == 0) {
        int tokens = C::HOLDS ? 0 : C::MODE == TILE_DENSE ? C::SLOTS : w.tokens;
        mbar_arrive_expect(bar, C::A_BYTES + tokens * C::STEP_BYTES);
        tma_load_4d(dst, &p.a[w.part], bar, 0, row, first, w.z, TMA_EVICT_FIRST);
        if (p.swiglu)
            tma_load_4d(dst + C::A_BYTES / 2, &p.up[w.part], bar, 0, row, first, w.z,
                        TMA_EVICT_FIRST);
    }
    if (lane < (p.swiglu ? 16 : 8)) {
        const float *from = fp8_scale_row(lane < 8 ? map.scales : map.up_scales, map, w.z, row);
        bool inside = block < f.k_blocks;
        fp8_copy_scale(smem_u32(mem.scales + stage * C::STAGE_SCALES + lane),
                       from + (inside ? block : 0), inside);
    }
    fp8_copies_arrive(bar);
}

template <class C>
__device__ void fp8_stream_copy(const fp8_params &f, const fp8_stream_memory<C> &mem, int lane)
{
    const tile_params &p = f.tile;
    bool known = C::MODE == TILE_DENSE || p.routing.known;
    struct ring_place at = {0, 1};
    int early = 0;

    if (p.next_late == NEXT_AT_ONCE)
        launch_next();
    if (C::MODE != TILE_DENSE && known)
        named_sync(9, C::TABLE_THREADS); /* the tables */
    int tiles = C::MODE == TILE_DENSE ? dense_tiles<C>(p)
                : known ? shared_tiles<C>(p) + mem.tables->tile_start[p.routing.experts]
                        : shared_tiles<C>(p);
    tile_walk<C> ahead(p, mem.tables, tiles);
    for (; early < C::STAGES && ahead.more(); early++, ahead.next())
        fp8_stream_weights<C>(f, mem, ahead.w, ahead.step, early, lane);
    launch_wait();
    if (p.next_late == NEXT_WAITED)
        launch_next();
    if (C::MODE != TILE_DENSE && !known) {
        named_sync(9, C::TABLE_THREADS);
        tiles += mem.tables->tile_start[p.routing.experts];
    }

    tile_walk<C> walk(p, mem.tables, tiles);
    int row = walk.more() ? stream_row<C>(p, mem.tables, walk.w, lane) : 0;
    for (int i = 0; walk.more(); i++) {
        if (i >= early) {
            ring_wait(mem.empty + 8 * at.stage, at.parity);
            fp8_stream_weights<C>(f, mem, walk.w, walk.step, at.stage, lane);
            __syncwarp();
        }
        if (!C::HOLDS && lane < (C::MODE == TILE_DENSE ? 1 : walk.w.tokens))
            tma_load_4d(
                smem_u32(mem.ring + at.stage * C::STAGE_BYTES + C::A_BYTES + lane * C::TOKEN_BYTES),
                &p.b, mem.full + 8 * at.stage, 0, row, walk.step * C::STEP_K / TILE_K,
                C::MODE == TILE_DENSE ? walk.w.z : 0, TMA_EVICT_LAST);
        at.template advance<C>();
        if (walk.next() && walk.more())
            row = stream_row<C>(p, mem.tables, walk.w, lane);
    }
}

/* The products of 64 k, whose weights are `low` and `high` of rows r and r + 8. */
template <class C>
__device__ __forceinline__ void fp8_stream_half(float (&part)[C::BN / 8][4], const uint4 &low,
                                                const uint4 &high, uint32_t tokens, int turn)
{
    const uint32_t l[4] = {low.x, low.y, low.z, low.w}, h[4] = {high.x, high.y, high.z, high.w};
    int pitch = C::MODE == TILE_DENSE ? 128 : C::TOKEN_BYTES, lane = threadIdx.x % 32;
    uint32_t b[C::BN / 8][2][4];

#pragma unroll
    for (int t = 0; t < C::BN / 8; t++)
#pragma unroll
        for (int i = 0; i < 2; i++) /* 32 k each */
            load_matrices(C::HOLDS ? tokens + (4 * i + lane / 8) * 16
                                   : tokens + 8 * t * pitch + (((4 * i + lane / 8) ^ turn) << 4),
                          b[t][i]);
#pragma unroll
    for (int j = 0; j < 4; j++) { /* 16 k each */
        uint32_t a0 = fp8_widen_even(l[j]), a1 = fp8_widen_even(h[j]);
        uint32_t a2 = fp8_widen_odd(l[j]), a3 = fp8_widen_odd(h[j]);
#pragma unroll
        for (int t = 0; t < C::BN / 8; t++)
            mma_16816(part[t], a0, a1, a2, a3, b[t][j / 2][j % 2 * 2], b[t][j / 2][j % 2 * 2 + 1]);
    }
}

/* This warp's block of a step. */
template <class C>
__device__ __forceinline__ void fp8_stream_block(float (&sum)[C::BN / 8][4], const tile_params &p,
                                                 const fp8_stream_memory<C> &mem, uint32_t stage,
                                                 int block_of_k)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4, q = lane % 4;
    int block = p.swiglu ? 1024 : 2048, second = p.swiglu ? C::A_BYTES / 2 : 1024;
    int token = lane % 8 < C::SLOTS ? lane % 8 : 0; /* of a slot that isn't there: any */
    const char *a = mem.ring + stage * C::STAGE_BYTES + warp * block + r * 128;
    uint32_t x = smem_u32(mem.ring + stage * C::STAGE_BYTES + C::A_BYTES);
    const float *scales = mem.scales + stage * C::STAGE_SCALES + warp;
    float low_scale = scales[0], high_scale = scales[p.swiglu ? 8 : 0];
    float part[2][C::BN / 8][4] = {}; /* of 64 k each: two chains of products */

#pragma unroll
    for (int half = 0; half < 2; half++) { /* one box row of the tokens */
        int row = 2 * warp + half;
        uint4 low = *(const uint4 *)(a + ((2 * q + half) ^ r) * 16);
        uint4 high = *(const uint4 *)(a + second + ((2 * q + half) ^ r) * 16);
        if (C::HOLDS)
            fp8_stream_half<C>(part[half], low, high,
                               smem_u32(mem.tokens) +
                                   (lane % 8 < p.m ? lane % 8 : 0) * stream_pitch(p.k) +
                                   (2 * block_of_k + half) * 128,
                               0);
        else if (C::MODE == TILE_DENSE)
            fp8_stream_half<C>(part[half], low, high, x + (row * C::SLOTS + token) * 128,
                               (row * C::SLOTS + token) & 7);
        else
            fp8_stream_half<C>(part[half], low, high, x + token * C::TOKEN_BYTES + row * 128,
                               (token + row) & 7);
    }
#pragma unroll
    for (int t = 0; t < C::BN / 8; t++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum[t][i] =
                fmaf(part[0][t][i] + part[1][t][i], i < 2 ? low_scale : high_scale, sum[t][i]);
}

/* The sums of a tile's 16 rows and BN tokens over this warp's blocks of k. */
template <class C>
__device__ __forceinline__ void fp8_stream_multiply(float (&sum)[C::BN / 8][4], const fp8_params &f,
                                                    const fp8_stream_memory<C> &mem,
                                                    struct ring_place &at, int steps)
{
    int block = threadIdx.x / 32;

    for (int s = 0; s < steps; s++, block += 8) {
        ring_wait(mem.full + 8 * at.stage, at.parity);
        if (block < f.k_blocks)
            fp8_stream_block<C>(sum, f.tile, mem, at.stage, block);
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            mbar_arrive(mem.empty + 8 * at.stage);
        at.template advance<C>();
    }
}

/* The math warps: a tile's sums go to one of two places in turn. */
template <class C>
__device__ __forceinline__ void fp8_stream_math(const fp8_params &f,
                                                const fp8_stream_memory<C> &mem, int tiles)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    struct ring_place at = {0, 0};
    uint32_t place = 0, parity = 1;
    int steps = f.tile.k_steps;

    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
        float sum[C::BN / 8][4] = {}, *sums = place ? mem.second : mem.sums;
        fp8_stream_multiply<C>(sum, f, mem, at, steps);
        ring_wait(mem.read + 8 * place, parity);
#pragma unroll
        for (int t8 = 0; t8 < C::BN / 8; t8++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[(warp * C::BN + 8 * t8 + lane % 4 * 2 + i % 2) * C::TOKEN_PITCH + lane / 4 +
                     i / 2 * 8] = sum[t8][i];
        __syncwarp();
        if (lane == 0)
            mbar_arrive(mem.summed + 8 * place);
        parity ^= place;
        place ^= 1;
    }
}

template <class C>
__device__ __forceinline__ void
fp8_stream_result(const tile_params &p, const fp8_stream_memory<C> &mem, const struct tile &w,
                  const float *sums, int r, int t, float residual)
{
    const struct tile_part &part = p.part[C::MODE == TILE_DENSE ? w.part : 0];
    int column = w.row_tile * (p.swiglu ? 8 : 16) + r;

    if (t >= w.tokens || column >= part.n)
        return;
    float v = stream_sum<C>(sums, r, t);
    if (p.swiglu)
        v = silu(v) * stream_sum<C>(sums, r + 8, t);
    if (part.bias)
        v += part.bias[column];
    int64_t row = C::MODE == TILE_ROUTED ? tile_pair(p, *mem.tables, w, t) : w.first + t;
    int64_t at = row * part.out_stride + column;
    if (part.out_float) {
        ((float *)part.out)[at] = v;
        return;
    }
    __nv_bfloat16 rounded = __float2bfloat16(v);
    if (part.residual)
        rounded = __float2bfloat16(__bfloat162float(rounded) + residual);
    ((__nv_bfloat16 *)part.out)[at] = rounded;
}

/* What is added to that result, fetched before the products are there. */
template <class C>
__device__ __forceinline__ float fp8_stream_residual(const tile_params &p, const struct tile &w,
                                                     int r, int t)
{
    const struct tile_part &part = p.part[w.part];
    int column = w.row_tile * 16 + r;

    if (C::MODE != TILE_DENSE || !part.residual || t >= w.tokens || column >= part.n)
        return 0;
    return __bfloat162float(
        ((const __nv_bfloat16 *)part.residual)[(w.first + t) * part.out_stride + column]);
}

/* The storing warps. */
template <class C>
__device__ __forceinline__ void fp8_stream_store(const tile_params &p,
                                                 const fp8_stream_memory<C> &mem, int tiles)
{
    enum { EACH = C::BN * 16 / C::STORE }; /* results of a thread, at most */
    int half = p.swiglu ? 8 : 16, tid = threadIdx.x - C::MATH;
    uint32_t place = 0, parity = 0;

    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
        struct tile w = get_tile<C>(p, mem.tables, t);
        float residual[EACH];
#pragma unroll
        for (int j = 0; j < EACH; j++)
            residual[j] = fp8_stream_residual<C>(p, w, (tid + j * C::STORE) % half,
                                                 (tid + j * C::STORE) / half);
        ring_wait(mem.summed + 8 * place, parity);
#pragma unroll
        for (int j = 0; j < EACH; j++)
            fp8_stream_result<C>(p, mem, w, place ? mem.second : mem.sums,
                                 (tid + j * C::STORE) % half, (tid + j * C::STORE) / half,
                                 residual[j]);
        __syncwarp();
        if (tid % 32 == 0)
            mbar_arrive(mem.read + 8 * place);
        parity ^= place;
        place ^= 1;
    }
}

/* All tokens to shared memory, normalised with p.norm. By all math threads, which wait for the
 * kernel ahead here. */
template <class C>
__device__ __forceinline__ void fp8_stream_hold(const tile_params &p, const stream_memory<C> &mem)
{
    if (p.norm) {
        stream_norm<C>(p, mem);
        return;
    }
    launch_wait();
    for (int row = 0; row < p.m; row++)
        for (int at = threadIdx.x * 16; at < 2 * p.k; at += C::MATH * 16)
            *(uint4 *)(mem.tokens + row * stream_pitch(p.k) + at) =
                __ldcg((const uint4 *)((const char *)p.rows + row * p.row_bytes + at));
    named_sync(8, C::MATH);
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, C::BLOCKS)
    fp8_stream_kernel(const __grid_constant__ fp8_params f)
{
    extern __shared__ char raw[];
    fp8_stream_memory<C> mem(raw);
    const tile_params &p = f.tile;
    int tid = threadIdx.x;

    if (tid == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            mbar_init(mem.full + 8 * i, 1 + 32);
            mbar_init(mem.empty + 8 * i, C::WARPS);
        }
        for (int i = 0; i < 2; i++) {
            mbar_init(mem.summed + 8 * i, C::WARPS);
            mbar_init(mem.read + 8 * i, C::STORE / 32);
        }
        mbar_init_fence();
    }
    __syncthreads();
    if (tid >= C::MATH + C::STORE) {
        fp8_stream_copy<C>(f, mem, tid % 32);
        return;
    }
    if ((!C::HOLDS && C::MODE == TILE_DENSE) || (C::MODE != TILE_DENSE && !p.routing.known))
        launch_wait();
    if (C::MODE == TILE_ROUTED) {
        if (tid < C::MATH)
            tables_from_ids<C::MATH>(*mem.tables, p.routing, p.m, p.part[0].row_tiles, C::BN);
        named_sync(9, C::TABLE_THREADS);
        launch_wait();
    }
    int tiles = C::MODE == TILE_DENSE
                    ? dense_tiles<C>(p)
                    : shared_tiles<C>(p) + mem.tables->tile_start[p.routing.experts];
    if (tid < C::MATH) {
        if constexpr (C::HOLDS)
            fp8_stream_hold<C>(p, mem);
        fp8_stream_math<C>(f, mem, tiles);
    } else {
        if (C::HOLDS)
            launch_wait();
        fp8_stream_store<C>(p, mem, tiles);
    }
}

/* The map of x: (k, row, block of k, 1); `box` rows at a time. */
static inline int fp8_stream_map_tokens(tile_params *p, const void *x, int64_t stride, int rows,
                                        int k, int box)
{
    struct gemm_map map = {x,           TILE_K, 3, {rows, k / TILE_K, 1}, {stride, TILE_K, stride},
                           {box, 16, 1}};

    return gemm_map_encode(&p->b, &map);
}

/* f.tile.k_steps and the parts' row_tiles are set here. */
template <class C>
static cudaError_t fp8_stream_launch(fp8_params &f, int max_experts, cudaStream_t stream)
{
    tile_params &p = f.tile;
    int experts = (int)C::MODE == TILE_DENSE ? 1 : max_experts;
    int blocks = stream_blocks<C>(p, f.k_blocks * FP8_BLOCK, experts);
    cudaError_t e = launch_room<fp8_stream_kernel<C>>(C::SHARED_BYTES + C::HELD_BYTES);

    return e != cudaSuccess
               ? e
               : launch_early(fp8_stream_kernel<C>, blocks, C::THREADS,
                              C::SHARED_BYTES + (C::HOLDS ? p.m * stream_pitch(p.k) : 0), stream,
                              f);
}
