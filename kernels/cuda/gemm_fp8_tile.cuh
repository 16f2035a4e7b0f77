/* Products of up to 64 tokens a tile with FP8 or INT4 weights and bf16 tokens: gemm_tile.cuh's
 * kernel with steps of 128 k, for which a block of FP8 weights has one scale. The math warpgroups
 * read their rows of the weight into registers and widen them there: the left operand of wgmma. The
 * sums of a step are scaled and added to the tile's by ordinary instructions, so they stay exact in
 * float.
 *
 * The next step's weights are widened while a step's products are in the tensor cores; up to 32
 * rows, two blocks share a multiprocessor instead (gemm_fp8_stream.cuh says why).
 *
 * INT4 weights (gemm_int4_tile.cuh) come 256 k at a time, as many bytes, with their groups' scales,
 * which they are multiplied with as they are widened. */
#pragma once

#include "kernels/cuda/gemm_fp8.cuh"

enum { FP8_STEP_BYTES = 128, FP8_SLICES = 8 /* of 16 k, of 128 */ };

template <int BN_, int STAGES_, int MODE_, int INT4_ = 0> struct fp8_tile_config {
    enum {
        BN = BN_, /* 32 or 64 */
        INT4 = INT4_,
        STEP_K = INT4 ? 256 : 128,
        GROUPS = 2,
        STAGES = STAGES_,
        MODE = MODE_,
        TA = 0,
        MATH = GROUPS * 128,
        THREADS = MATH + 32,
        TABLE_THREADS = THREADS,
        BOX_TOKENS = 16,
        A_BYTES = GROUPS * A_BOX_BYTES,
        HALF_BYTES = BN * TOKEN_BYTES, /* 64 k of the tokens */
        SCALES_AT = A_BYTES + STEP_K / TILE_K * HALF_BYTES,
        SCALE_BYTES = INT4 ? GROUPS * TILE_ROWS * 16 : 0, /* 8 of a row */
        STAGE_BYTES = SCALES_AT + SCALE_BYTES,
        CHUNK = 32,
        CHUNK_BYTES = CHUNK * STAGE_PITCH,
        STAGING_BYTES = GROUPS * CHUNK_BYTES,
        TABLE_BYTES = MODE == TILE_DENSE ? 0 : (int)sizeof(tile_tables),
        /* ROUTED: stages on the way before the oldest is waited for. The math warps ask for a stage
         * before they free the one ahead: hence at most STAGES - 2. */
        LAG = INT4 ? 1 : 2,
        SHARED_BYTES = 1024 + STAGES * STAGE_BYTES + STAGING_BYTES + 16 * STAGES + 16 + TABLE_BYTES,
        BLOCKS = SHARED_BYTES <= 113 * 1024 && BN == 32 ? 2 : 1, /* of a multiprocessor */
        AHEAD = BLOCKS == 1, /* whether there are registers for the next step's weights */
    };
};

/* ---- the copying warp ------------------------------------------------------------------------ */

/* The weights of a step. One lane. */
template <class C>
__device__ __forceinline__ void fp8_load_weights(const fp8_params &f, const tile_memory<C> &mem,
                                                 const struct tile &w, int step, uint32_t stage)
{
    const tile_params &p = f.tile;
    const CUtensorMap *weights = &p.a[w.part];
    uint32_t dst = mem.ring + stage * C::STAGE_BYTES, bar = mem.full + 8 * stage;
    int row = w.row_tile * C::GROUPS * TILE_ROWS, at = step * FP8_STEP_BYTES;

    mbar_arrive_expect(bar,
                       C::A_BYTES + (C::MODE == TILE_ROUTED ? 0 : 2 * f.box_tokens * TOKEN_BYTES));
    if (p.swiglu)
        tma_load_5d(dst, weights, bar, at, 0, 0, row / 16, w.z, p.weight_policy);
    else
        tma_load_3d(dst, weights, bar, at, row, w.z, p.weight_policy);
}

/* Consecutive tokens: two boxes of 64 k. One lane. */
template <class C>
__device__ __forceinline__ void fp8_load_tokens(const fp8_params &f, const tile_memory<C> &mem,
                                                const struct tile &w, int step, uint32_t stage)
{
    uint32_t dst = mem.ring + stage * C::STAGE_BYTES + C::A_BYTES;

    for (int half = 0; half < 2; half++)
        tma_load_3d(dst + half * C::HALF_BYTES, &f.tile.b, mem.full + 8 * stage,
                    step * C::STEP_K + half * TILE_K, 0, w.first, TMA_EVICT_NORMAL);
}

/* Tokens from anywhere, 16 bytes a lane, laid out as TMA swizzles. `rows`: those of tokens lane and
 * lane + 32. */
template <class C>
__device__ __forceinline__ void fp8_gather_tokens(const fp8_params &f, const tile_memory<C> &mem,
                                                  const struct tile &w, const int (&rows)[2],
                                                  int step, uint32_t stage, int lane)
{
    enum { PIECES = C::STEP_K / 8 }; /* of a token */
    uint32_t piece = lane % PIECES;
    uint32_t dst = mem.ring + stage * C::STAGE_BYTES + C::A_BYTES + piece / 8 * C::HALF_BYTES;
    int k = step * C::STEP_K + 8 * (int)piece, bytes = k < f.tile.k ? 16 : 0; /* 0: zeros */
    const char *column = (const char *)f.tile.rows + (bytes ? 2 * k : 0);

    for (int first = 0; first < w.tokens; first += 32 / PIECES) {
        int token = first + lane / PIECES;
        int row = __shfl_sync(~0u, rows[0], token % 32),
            high = __shfl_sync(~0u, rows[1], token % 32);
        row = token < 32 ? row : high;
        if (token < w.tokens)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                             dst + token * TOKEN_BYTES + (((piece ^ token) & 7) << 4)),
                         "l"(column + row * f.tile.row_bytes), "r"(bytes)
                         : "memory");
    }
}

/* The scales of a step of INT4 weights, 4 of a row a lane: (rows, 8 groups of 32 k). They arrive
 * with the tokens that are asked for after them. */
template <class C>
__device__ __forceinline__ void int4_load_scales(const fp8_params &f, const tile_memory<C> &mem,
                                                 const struct tile &w, int step, uint32_t stage,
                                                 int lane)
{
    const struct int4_scale_map &map = f.groups;
    uint32_t dst = mem.ring + stage * C::STAGE_BYTES + C::SCALES_AT;
    int group = 8 * step + lane % 2 * 4, n = f.tile.part[0].n;

#pragma unroll
    for (int first = 0; first < C::GROUPS * TILE_ROWS; first += 16) {
        int r = first + lane / 2, row = w.row_tile * C::GROUPS * TILE_ROWS + r;
        const uint16_t *from = map.scales;
        if (f.tile.swiglu) { /* 8 rows of gate, 8 of up, ... */
            from = (r / 8 % 2 != 0) != (f.tile.swapped & 1) ? map.up_scales : map.scales;
            row = row / 16 * 8 + row % 8;
        }
        int bytes = row < n && group < map.row_stride ? 8 : 0;
        from += bytes ? w.z * map.z_stride + (int64_t)row * map.row_stride + group : 0;
        asm volatile(
            "cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(dst + r * 16 + lane % 2 * 8),
            "l"(from), "r"(bytes)
            : "memory");
    }
}

/* As copy_tiles of gemm_tile.cuh. */
template <class C>
__device__ void fp8_copy_tiles(const fp8_params &f, const tile_memory<C> &mem, int lane)
{
    const tile_params &p = f.tile;
    bool known = C::MODE == TILE_DENSE || p.routing.known;
    int early = 0, rows[2] = {};
    struct ring_place at = {0, 1};

    if (p.next_late == NEXT_AT_ONCE)
        launch_next();
    if (C::MODE != TILE_DENSE && known)
        named_sync(9, C::TABLE_THREADS); /* the tables */
    int tiles = C::MODE == TILE_DENSE ? dense_tiles<C>(p)
                : known ? shared_tiles<C>(p) + mem.tables->tile_start[p.routing.experts]
                        : shared_tiles<C>(p);
    tile_walk<C> ahead(p, mem.tables, tiles);
    for (; early < C::STAGES && ahead.more(); early++, ahead.next()) {
        if (lane == 0)
            fp8_load_weights<C>(f, mem, ahead.w, ahead.step, early);
        if constexpr (C::INT4)
            int4_load_scales<C>(f, mem, ahead.w, ahead.step, early, lane);
    }
    launch_wait();
    if (p.next_late == NEXT_WAITED)
        launch_next();
    if (C::MODE != TILE_DENSE && !known) {
        named_sync(9, C::TABLE_THREADS);
        tiles += mem.tables->tile_start[p.routing.experts];
    }

    tile_walk<C> walk(p, mem.tables, tiles);
    int asked = 0, reported = 0;
    if (walk.more())
        token_rows<C>(p, mem.tables, walk.w, rows, lane);
    for (; walk.more(); asked++) {
        if (asked >= early) {
            ring_wait(mem.empty + 8 * at.stage, at.parity);
            if (lane == 0)
                fp8_load_weights<C>(f, mem, walk.w, walk.step, at.stage);
            if constexpr (C::INT4)
                int4_load_scales<C>(f, mem, walk.w, walk.step, at.stage, lane);
            __syncwarp();
        }
        if (C::MODE == TILE_ROUTED) {
            fp8_gather_tokens<C>(f, mem, walk.w, rows, walk.step, at.stage, lane);
            asm volatile("cp.async.commit_group;" ::: "memory");
            if (asked >= C::LAG)
                gathered<C::LAG>(mem.full + 8 * (reported++ % C::STAGES), lane);
        } else if (lane == 0) {
            fp8_load_tokens<C>(f, mem, walk.w, walk.step, at.stage);
        }
        at.template advance<C>();
        if (walk.next() && walk.more())
            token_rows<C>(p, mem.tables, walk.w, rows, lane);
    }
    if (C::MODE == TILE_ROUTED)
        while (reported < asked)
            gathered<0>(mem.full + 8 * (reported++ % C::STAGES), lane);
}

/* ---- the math warpgroups --------------------------------------------------------------------- */

/* This thread's parts of the left operands of a step, widened. */
template <class C>
__device__ __forceinline__ void fp8_left(uint32_t (&a)[FP8_SLICES][4], uint32_t at, int group)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, r = lane / 4, q = lane % 4;
    uint32_t row = at + group * A_BOX_BYTES + (16 * warp + r) * FP8_STEP_BYTES;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t piece = row + (((2 * q + half) ^ r) << 4), low[4], high[4];
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(low[0]), "=r"(low[1]), "=r"(low[2]), "=r"(low[3])
                     : "r"(piece)
                     : "memory");
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(high[0]), "=r"(high[1]), "=r"(high[2]), "=r"(high[3])
                     : "r"(piece + 8 * FP8_STEP_BYTES)
                     : "memory");
#pragma unroll
        for (int j = 0; j < 4; j++) {
            a[4 * half + j][0] = fp8_widen_even(low[j]);
            a[4 * half + j][1] = fp8_widen_even(high[j]);
            a[4 * half + j][2] = fp8_widen_odd(low[j]);
            a[4 * half + j][3] = fp8_widen_odd(high[j]);
        }
    }
}

/* acc += the tile's product over its steps of k. */
template <class C, int NT>
__device__ __forceinline__ void fp8_multiply(float (&acc)[NT / 2], const tile_memory<C> &mem,
                                             struct ring_place &at, int steps, int group,
                                             const float *low, const float *high)
{
    uint32_t a[FP8_SLICES][4];
    float part[NT / 2];

    if (C::AHEAD) {
        ring_wait(mem.full + 8 * at.stage, at.parity);
        fp8_left<C>(a, mem.ring + at.stage * C::STAGE_BYTES, group);
    }
    for (int s = 0; s < steps; s++) {
        uint64_t b =
            wgmma_desc(mem.ring + at.stage * C::STAGE_BYTES + C::A_BYTES, 16, 1024, SWIZZLE_128);
        uint32_t stage = at.stage, next[FP8_SLICES][4];

        if (!C::AHEAD) {
            ring_wait(mem.full + 8 * at.stage, at.parity);
            fp8_left<C>(a, mem.ring + at.stage * C::STAGE_BYTES, group);
        }
        wgmma_hold(part);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < FP8_SLICES; j++)
            wgmma<NT>::template rs<0>(part, a[j], b + (j / 4 * C::HALF_BYTES + j % 4 * 32 >> 4),
                                      j > 0);
        wgmma_commit();
        float low_scale = low[s], high_scale = high[s]; /* of rows r and r + 8 */
        at.template advance<C>();
        if (C::AHEAD && s + 1 < steps) {
            ring_wait(mem.full + 8 * at.stage, at.parity);
            fp8_left<C>(next, mem.ring + at.stage * C::STAGE_BYTES, group);
        }
        wgmma_wait<0>();
        wgmma_hold(part);
        if (threadIdx.x % 32 == 0)
            mbar_arrive(mem.empty + 8 * stage);
#pragma unroll
        for (int i = 0; i < NT / 2; i++)
            acc[i] = fmaf(part[i], i & 2 ? high_scale : low_scale, acc[i]);
#pragma unroll
        for (int j = 0; j < (C::AHEAD ? (int)FP8_SLICES : 0); j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[j][i] = next[j][i];
    }
}

/* INT4: acc += the tile's product over its steps of k. See gemm_int4_tile.cuh. */
template <class C, int NT>
__device__ __forceinline__ void int4_multiply(float (&acc)[NT / 2], const tile_memory<C> &mem,
                                              struct ring_place &at, int steps, int group);

template <class C, int NT>
__device__ __forceinline__ void fp8_do_tile(const fp8_params &f, const tile_memory<C> &mem,
                                            const struct tile &w, struct ring_place &at, int step,
                                            int steps)
{
    const tile_params &p = f.tile;
    const struct fp8_scale_map &map = f.scales[w.part];
    bool swapped = p.swapped >> w.part & 1;
    int scale_row = w.row_tile * C::GROUPS * TILE_ROWS / (p.swiglu ? 2 : 1);
    const float *gate = fp8_scale_row(map.scales, map, w.z, scale_row) + step;
    const float *up = p.swiglu ? fp8_scale_row(map.up_scales, map, w.z, scale_row) + step : gate;
    tile_sums<C, NT> sums(p, w);

    if constexpr (C::INT4)
        int4_multiply<C, NT>(sums.acc, mem, at, steps, sums.group);
    else
        fp8_multiply<C, NT>(sums.acc, mem, at, steps, sums.group, swapped ? up : gate,
                            swapped ? gate : up);
    sums.store(p, mem, w);
}

template <class C> __device__ void fp8_math_tiles(const fp8_params &f, const tile_memory<C> &mem)
{
    const tile_params &p = f.tile;
    struct ring_place at = {0, 0};
    int tiles = C::MODE == TILE_DENSE
                    ? dense_tiles<C>(p)
                    : shared_tiles<C>(p) + mem.tables->tile_start[p.routing.experts];
    tile_walk<C> walk(p, mem.tables, tiles);
    int steps = walk.end_step - walk.first_step;

    for (; walk.more(); walk.step = walk.end_step, walk.next()) {
        const struct tile &w = walk.w;
        if (w.tokens <= 8)
            fp8_do_tile<C, 8>(f, mem, w, at, walk.first_step, steps);
        else if (w.tokens <= 16)
            fp8_do_tile<C, 16>(f, mem, w, at, walk.first_step, steps);
        else if (w.tokens <= 32 || C::BN == 32)
            fp8_do_tile<C, 32>(f, mem, w, at, walk.first_step, steps);
        else
            fp8_do_tile<C, C::BN>(f, mem, w, at, walk.first_step, steps);
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, C::BLOCKS)
    fp8_tile_kernel(const __grid_constant__ fp8_params f)
{
    extern __shared__ char raw[];
    tile_memory<C> mem(raw);

    tile_init<C>(mem);
    if ((int)threadIdx.x >= C::MATH) {
        fp8_copy_tiles<C>(f, mem, threadIdx.x % 32);
        tile_cluster_sync(f.tile); /* the math warps are at this one in reduce_split */
    } else {
        tile_begin<C>(f.tile, mem);
        fp8_math_tiles<C>(f, mem);
    }
    tile_cluster_sync(f.tile); /* no block leaves while another reads its results */
}

/* Map `at` of weights (z, n, k); of gate and up, 8 rows of the one and 8 of the other in turn. */
static inline int fp8_tile_map_weights(tile_params *p, int at, const struct tile_weights &w, int n,
                                       int k, int z)
{
    struct gemm_map map = {
        w.weight,           k, 2, {n, z}, {w.row_stride, z > 1 ? w.z_stride : w.row_stride},
        {2 * TILE_ROWS, 1}, 1};

    return w.up ? tile_map_pairs(p, at, w, n, k, z, 2 * TILE_ROWS, 1)
                : gemm_map_encode(&p->a[at], &map);
}

/* p.k_steps is the number of blocks of k; p.split and the parts' row_tiles are set by the caller.
 */
template <class C>
static cudaError_t fp8_tile_launch(const fp8_params &f, int blocks, cudaStream_t stream)
{
    cudaError_t e = launch_room<fp8_tile_kernel<C>>(C::SHARED_BYTES);

    return e != cudaSuccess ? e
                            : launch_clusters(fp8_tile_kernel<C>, f.tile.split, blocks, C::THREADS,
                                              C::SHARED_BYTES, stream, f);
}
