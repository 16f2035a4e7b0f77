/* Products of at most 16 tokens, where nothing counts but reading the weights: tiles of 16 weight
 * rows, by mma.sync. k must be a multiple of 64.
 *
 * One warp copies steps of 512 k into a ring, 16 KB of weights by one TMA box (64 k, 16 rows, 8
 * blocks of k; two boxes of 8 rows for gate and up); 8 warps multiply, each a block of 64 k of a
 * step, and their sums are added up in the order of the warps. Tiles this small share out evenly
 * over the blocks, and the ring holds most of a small layer's weights before the kernel ahead is
 * done. The copy engine takes some 80 cycles for a copy of any size: hence large boxes.
 *
 * k is taken in another order than the matrix operation has it: of a block of 64, thread q of a row
 * has pieces 2q and 2q + 1 of 16 bytes, each its parts of two products, for the weight and for the
 * tokens alike. So both are read 16 bytes at a time, and without bank conflicts. */
#pragma once

#include "kernels/cuda/gemm_tile.cuh"

template <int BN_, int STAGES_, int MODE_, int NORM_ = 0> struct stream_config {
    enum {
        BN = BN_, /* 8 or 16 */
        STAGES = STAGES_,
        MODE = MODE_,
        NORM = NORM_,  /* 1: the math warps fetch all tokens and normalise them: p.norm */
        NORM_K = 8192, /* then k is at most this */
        ROWS = 16,
        WARPS = 8,
        MATH = WARPS * 32,
        THREADS = MATH + 32,
        TABLE_THREADS = THREADS,
        STEP_K = 512,
        STEP_BYTES = STEP_K * 2, /* of a row */
        A_BYTES = ROWS * STEP_BYTES,
        /* A routed token is a box of its own; 128 bytes on, the swizzle differs. */
        TOKEN_BYTES = MODE == TILE_DENSE ? STEP_BYTES : STEP_BYTES + 128,
        STAGE_BYTES = A_BYTES + (NORM ? 0 : BN * TOKEN_BYTES),
        TOKEN_PITCH = ROWS + 4, /* floats of a token's sums; + 4: no bank conflicts */
        SUMS = WARPS * BN * TOKEN_PITCH,
        TABLE_BYTES = MODE == TILE_DENSE ? 0 : (int)sizeof(tile_tables),
        SHARED_BYTES = 1024 + STAGES * STAGE_BYTES + SUMS * 4 + 16 * STAGES + TABLE_BYTES,
    };
};

template <class C> struct stream_memory {
    char *ring;
    float *sums;
    uint32_t full, empty;
    struct tile_tables *tables;
    char *tokens; /* NORM: (m) of stream_pitch */

    __device__ explicit stream_memory(char *raw)
    {
        ring = raw + ((1024 - (smem_u32(raw) & 1023)) & 1023);
        sums = (float *)(ring + C::STAGES * C::STAGE_BYTES);
        full = smem_u32(sums + C::SUMS);
        empty = full + 8 * C::STAGES;
        tables = (struct tile_tables *)((char *)(sums + C::SUMS) + 16 * C::STAGES);
        tokens = (char *)tables; /* which it has not */
    }
};

/* One step of a tile's weights; the barrier expects the tokens too. One thread. */
template <class C>
__device__ __forceinline__ void stream_weights(const tile_params &p, const stream_memory<C> &mem,
                                               const struct tile &w, int step, uint32_t stage)
{
    uint32_t dst = smem_u32(mem.ring + stage * C::STAGE_BYTES), bar = mem.full + 8 * stage;
    int block = step * C::STEP_K / TILE_K, row = w.row_tile * (p.swiglu ? 8 : 16);

    int tokens = C::NORM ? 0 : C::MODE == TILE_DENSE ? C::BN : w.tokens;
    mbar_arrive_expect(bar, C::A_BYTES + tokens * C::STEP_BYTES);
    tma_load_4d(dst, &p.a[w.part], bar, 0, row, block, w.z, TMA_EVICT_FIRST);
    if (p.swiglu)
        tma_load_4d(dst + C::A_BYTES / 2, &p.up[w.part], bar, 0, row, block, w.z, TMA_EVICT_FIRST);
}

/* The row of x of routed token `lane`. */
template <class C>
__device__ __forceinline__ int stream_row(const tile_params &p, const tile_tables *tab,
                                          const struct tile &w, int lane)
{
    if (C::MODE == TILE_DENSE || lane >= w.tokens)
        return 0;
    int pair = tile_pair(p, *tab, w, lane);
    return p.routing.rows_are_pairs ? pair : pair / (p.routing.top_k + p.routing.shared);
}

template <class C>
__device__ void stream_copy(const tile_params &p, const stream_memory<C> &mem, int lane)
{
    bool known = C::MODE == TILE_DENSE || p.routing.known;
    struct ring_place at = {0, 1};
    int early = 0;

    if (p.next_late == NEXT_AT_ONCE)
        launch_next();
    if (C::MODE != TILE_DENSE && known)
        named_sync(9, C::MATH + 32); /* the tables */
    int tiles = C::MODE == TILE_DENSE ? dense_tiles<C>(p)
                : known ? shared_tiles<C>(p) + mem.tables->tile_start[p.routing.experts]
                        : shared_tiles<C>(p);
    tile_walk<C> ahead(p, mem.tables, tiles);
    for (; early < C::STAGES && ahead.more(); early++, ahead.next())
        if (lane == 0)
            stream_weights<C>(p, mem, ahead.w, ahead.step, early);
    launch_wait();
    if (p.next_late == NEXT_WAITED)
        launch_next();
    if (C::MODE != TILE_DENSE && !known) {
        named_sync(9, C::MATH + 32);
        tiles += mem.tables->tile_start[p.routing.experts];
    }

    tile_walk<C> walk(p, mem.tables, tiles);
    int row = walk.more() ? stream_row<C>(p, mem.tables, walk.w, lane) : 0;
    for (int i = 0; walk.more(); i++) {
        if (i >= early) {
            ring_wait(mem.empty + 8 * at.stage, at.parity);
            if (lane == 0)
                stream_weights<C>(p, mem, walk.w, walk.step, at.stage);
            __syncwarp();
        }
        if (!C::NORM && lane < (C::MODE == TILE_DENSE ? 1 : walk.w.tokens))
            tma_load_4d(
                smem_u32(mem.ring + at.stage * C::STAGE_BYTES + C::A_BYTES + lane * C::TOKEN_BYTES),
                &p.b, mem.full + 8 * at.stage, 0, row, walk.step * C::STEP_K / TILE_K,
                C::MODE == TILE_DENSE ? walk.w.z : 0, TMA_EVICT_LAST);
        at.template advance<C>();
        if (walk.next() && walk.more())
            row = stream_row<C>(p, mem.tables, walk.w, lane);
    }
    if (p.next_late == NEXT_ASKED)
        launch_next();
}

__device__ __forceinline__ void mma_16816(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                          uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Bytes of a normalised token in shared memory; 16 more than a multiple of 128: no bank conflicts.
 */
__host__ __device__ __forceinline__ int stream_pitch(int k)
{
    return 2 * k + 16;
}

__device__ __forceinline__ uint32_t normalise_pair(uint32_t x, float inverse, float low, float high)
{
    float2 v = __bfloat1622float2(*(__nv_bfloat162 *)&x);

    return pack_bf16(low * (v.x * inverse), high * (v.y * inverse));
}

__device__ __forceinline__ float sum_squares(uint4 v)
{
    const __nv_bfloat162 *two = (const __nv_bfloat162 *)&v;
    float sum = 0;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __bfloat1622float2(two[i]);
        sum = fmaf(f.x, f.x, fmaf(f.y, f.y, sum));
    }
    return sum;
}

/* The tokens, divided by their root mean square and times p.norm, to shared memory; the first block
 * writes them to p.normalised too. By all math threads, which wait for the kernel ahead here. */
template <class C>
__device__ __forceinline__ void stream_norm(const tile_params &p, const stream_memory<C> &mem)
{
    enum { EACH = C::NORM_K / (8 * C::MATH) };
    int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, pitch = stream_pitch(p.k);
    float4 norm[EACH][2];

#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int at = (i * C::MATH + tid) * 8;
        norm[i][0] = at < p.k ? *(const float4 *)(p.norm + at) : float4{};
        norm[i][1] = at < p.k ? *(const float4 *)(p.norm + at + 4) : float4{};
    }
    launch_wait();
    for (int row = 0; row < p.m; row++) {
        const char *x = (const char *)p.rows + row * p.row_bytes;
        uint4 in[EACH];
        float sum = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int at = (i * C::MATH + tid) * 8;
            in[i] = at < p.k ? __ldcg((const uint4 *)(x + 2 * at)) : uint4{};
        }
#pragma unroll
        for (int i = 0; i < EACH; i++)
            sum += sum_squares(in[i]);
        for (int d = 16; d; d /= 2)
            sum += __shfl_xor_sync(~0u, sum, d);
        float *partial = mem.sums + row * C::WARPS; /* not in use yet */
        if (lane == 0)
            partial[warp] = sum;
        named_sync(8, C::MATH);
        sum = 0;
#pragma unroll
        for (int w = 0; w < C::WARPS; w++)
            sum += partial[w];
        float inverse = 1.0f / sqrtf(sum / (float)p.k + p.norm_eps);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int at = (i * C::MATH + tid) * 8;
            if (at >= p.k)
                continue;
            float4 a = norm[i][0], b = norm[i][1];
            uint4 v = make_uint4(normalise_pair(in[i].x, inverse, a.x, a.y),
                                 normalise_pair(in[i].y, inverse, a.z, a.w),
                                 normalise_pair(in[i].z, inverse, b.x, b.y),
                                 normalise_pair(in[i].w, inverse, b.z, b.w));
            *(uint4 *)(mem.tokens + row * pitch + 2 * at) = v;
            if (blockIdx.x == 0)
                *(uint4 *)((char *)p.normalised + 2 * ((int64_t)row * p.k + at)) = v;
        }
    }
    named_sync(8, C::MATH);
}

/* The sums of a tile's 16 rows and BN tokens over this warp's blocks of k. */
template <class C>
__device__ __forceinline__ void stream_multiply(float (&sum)[C::BN / 8][4], const tile_params &p,
                                                const stream_memory<C> &mem, struct ring_place &at,
                                                int steps)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4, q = lane % 4;
    int block = p.swiglu ? 1024 : 2048, second = p.swiglu ? C::A_BYTES / 2 : 1024;
    int token = C::MODE == TILE_DENSE ? 128 : C::TOKEN_BYTES;
    int turn = C::MODE == TILE_DENSE ? r : (r + warp) & 7;

    for (int s = 0; s < steps; s++) {
        const char *a = mem.ring + at.stage * C::STAGE_BYTES + warp * block + r * 128;
        const char *x = mem.ring + at.stage * C::STAGE_BYTES + C::A_BYTES + r * token +
                        warp * (C::MODE == TILE_DENSE ? C::BN * 128 : 128);
        int k = s * C::STEP_K + warp * TILE_K;
        ring_wait(mem.full + 8 * at.stage, at.parity);
#pragma unroll
        for (int piece = 0; piece < 2; piece++) {
            uint4 low = *(const uint4 *)(a + ((2 * q + piece) ^ r) * 16);
            uint4 high = *(const uint4 *)(a + second + ((2 * q + piece) ^ r) * 16);
#pragma unroll
            for (int t = 0; t < C::BN / 8; t++) {
                uint4 v = {};
                if (C::NORM && r < p.m && k < p.k)
                    v = *(const uint4 *)(mem.tokens + r * stream_pitch(p.k) + 2 * k +
                                         (2 * q + piece) * 16);
                if (!C::NORM)
                    v = *(const uint4 *)(x + 8 * t * token + ((2 * q + piece) ^ turn) * 16);
                mma_16816(sum[t], low.x, high.x, low.y, high.y, v.x, v.y);
                mma_16816(sum[t], low.z, high.z, low.w, high.w, v.z, v.w);
            }
        }
        __syncwarp();
        if (lane == 0)
            mbar_arrive(mem.empty + 8 * at.stage);
        at.template advance<C>();
    }
}

/* The sum over the warps of row r and token t of the tile. */
template <class C> __device__ __forceinline__ float stream_sum(const float *sums, int r, int t)
{
    float sum = 0;

#pragma unroll
    for (int w = 0; w < C::WARPS; w++)
        sum += sums[(w * C::BN + t) * C::TOKEN_PITCH + r];
    return sum;
}

/* What this thread adds to its result, fetched before the products. */
template <class C>
__device__ __forceinline__ float stream_residual(const tile_params &p, const struct tile &w)
{
    const struct tile_part &part = p.part[C::MODE == TILE_DENSE ? w.part : 0];
    int column = w.row_tile * 16 + threadIdx.x % 16, t = threadIdx.x / 16;

    if (C::MODE != TILE_DENSE || !part.residual || t >= w.tokens || column >= part.n)
        return 0;
    return __bfloat162float(
        ((const __nv_bfloat16 *)
             part.residual)[(w.first + t) * part.out_stride + w.z * p.out_head_stride + column]);
}

template <class C>
__device__ __forceinline__ void stream_store(const tile_params &p, const stream_memory<C> &mem,
                                             const struct tile &w, float residual)
{
    const struct tile_part &part = p.part[C::MODE == TILE_DENSE ? w.part : 0];
    int half = p.swiglu ? 8 : 16, r = threadIdx.x % half, t = threadIdx.x / half;
    int column = w.row_tile * half + r;

    if (t >= w.tokens || column >= part.n)
        return;
    float v = stream_sum<C>(mem.sums, r, t);
    if (p.swiglu)
        v = silu(v) * stream_sum<C>(mem.sums, r + 8, t);
    if (part.bias)
        v += part.bias[column];
    int64_t row = C::MODE == TILE_ROUTED ? tile_pair(p, *mem.tables, w, t) : w.first + t;
    int64_t at = row * part.out_stride + column;
    if (C::MODE == TILE_DENSE)
        at += w.z * p.out_head_stride;
    if (part.out_float) {
        ((float *)part.out)[at] = v;
        return;
    }
    __nv_bfloat16 rounded = __float2bfloat16(v);
    if (part.residual)
        rounded = __float2bfloat16(__bfloat162float(rounded) + residual);
    ((__nv_bfloat16 *)part.out)[at] = rounded;
}

/* Puts each warp's sums where stream_sum finds them. */
template <class C>
__device__ __forceinline__ void stream_share(const float (&sum)[C::BN / 8][4],
                                             const stream_memory<C> &mem)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    named_sync(8, C::MATH); /* the last tile's sums have been read */
#pragma unroll
    for (int t = 0; t < C::BN / 8; t++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            mem.sums[(warp * C::BN + 8 * t + lane % 4 * 2 + i % 2) * C::TOKEN_PITCH + lane / 4 +
                     i / 2 * 8] = sum[t][i];
    named_sync(8, C::MATH);
}

/* The whole block: sets up the ring's barriers. */
template <class C> __device__ __forceinline__ void stream_init(const stream_memory<C> &mem)
{
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            mbar_init(mem.full + 8 * i, 1);
            mbar_init(mem.empty + 8 * i, C::WARPS);
        }
        mbar_init_fence();
    }
    __syncthreads();
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1)
    stream_kernel(const __grid_constant__ tile_params p)
{
    extern __shared__ char raw[];
    stream_memory<C> mem(raw);
    int tid = threadIdx.x;

    stream_init<C>(mem);
    if (tid >= C::MATH) {
        stream_copy<C>(p, mem, tid % 32);
        return;
    }
    if (!C::NORM && (C::MODE == TILE_DENSE || !p.routing.known))
        launch_wait();
    if (C::MODE == TILE_ROUTED) {
        tables_from_ids<C::MATH>(*mem.tables, p.routing, p.m, p.part[0].row_tiles, C::BN);
        named_sync(9, C::MATH + 32);
        launch_wait();
    }
    if constexpr (C::NORM)
        stream_norm<C>(p, mem);
    struct ring_place at = {0, 0};
    int tiles = C::MODE == TILE_DENSE
                    ? dense_tiles<C>(p)
                    : shared_tiles<C>(p) + mem.tables->tile_start[p.routing.experts];
    tile_walk<C> walk(p, mem.tables, tiles);
    for (; walk.more(); walk.step = walk.end_step, walk.next()) {
        float sum[C::BN / 8][4] = {}, residual = stream_residual<C>(p, walk.w);
        stream_multiply<C>(sum, p, mem, at, walk.end_step);
        stream_share<C>(sum, mem);
        stream_store<C>(p, mem, walk.w, residual);
    }
}

/* Maps of a part's weights (z, n, k), bf16 or bytes. up NULL: not gate and up. */
static inline int stream_map_weights(tile_params *p, int at, const struct tile_weights &w, int n,
                                     int k, int z, int bytes)
{
    int inner = bytes ? 2 * TILE_K : TILE_K;
    struct gemm_map map = {w.weight,
                           inner,
                           3,
                           {n, k / inner, z},
                           {w.row_stride, inner, z > 1 ? w.z_stride : w.row_stride},
                           {w.up ? 8 : 16, 8, 1},
                           bytes};
    int bad = gemm_map_encode(&p->a[at], &map);

    if (w.up) {
        p->swiglu = 1;
        map.data = w.up;
        bad |= gemm_map_encode(&p->up[at], &map);
    }
    return bad;
}

/* The map of x: (k, row, block of k, head); `box` rows at a time. */
static inline int stream_map_tokens(tile_params *p, const void *x, int64_t stride, int rows,
                                    int heads, int64_t head_stride, int k, int box)
{
    struct gemm_map map = {x,
                           TILE_K,
                           3,
                           {rows, k / TILE_K, heads},
                           {stride, TILE_K, heads > 1 ? head_stride : stride},
                           {box, 8, 1}};

    return gemm_map_encode(&p->b, &map);
}

/* Sets p.k_steps, p.split and the parts' row_tiles, which are the stream kernels' own; returns how
 * many blocks have work: a tile for each `of` heads or experts. */
template <class C> static int stream_blocks(tile_params &p, int k, int of)
{
    int half = p.swiglu ? 8 : 16, tiles = 0, blocks = gemm_processors();

    p.k_steps = (k + C::STEP_K - 1) / C::STEP_K;
    p.split = 1;
    for (int i = 0; i < p.n_parts; i++) {
        p.part[i].row_tiles = (p.part[i].n + half - 1) / half;
        tiles += p.part[i].row_tiles;
    }
    return tiles * of < blocks ? tiles * of : blocks;
}

template <class C>
static cudaError_t stream_launch(tile_params &p, int k, int max_experts, cudaStream_t stream)
{
    int blocks = stream_blocks<C>(p, k, (int)C::MODE == TILE_DENSE ? p.heads : max_experts);
    int norm = C::NORM ? C::BN * stream_pitch(C::NORM_K) : 0; /* at most */
    cudaError_t e = launch_room<stream_kernel<C>>(C::SHARED_BYTES + norm);

    return e != cudaSuccess
               ? e
               : launch_early(stream_kernel<C>, blocks, C::THREADS,
                              C::SHARED_BYTES + (C::NORM ? p.m * stream_pitch(k) : 0), stream, p);
}
