/* Products with bf16 weights, out^T = W x^T, a tile at a time: what the kernels share, and the
 * kernel for tiles of up to 64 rows of x. gemm_wide.cuh has the one for many rows, gemm_stream.cuh
 * that for very few.
 *
 * A tile is 64 rows of the weight for each math warpgroup by up to BN rows of x ("tokens"). The
 * weight is the wide operand of wgmma (its 64 rows), the tokens its narrow one (8 to 256), so that
 * one token costs no more than eight. One warp copies 64-wide steps of k by TMA into a ring of
 * stages; the warpgroups multiply them. Blocks walk over tiles; the ring runs on from tile to tile,
 * so the memory is never idle between two.
 *
 * The weights' part of the first stages is asked for before the kernel ahead is done (see gemm.h).
 *
 * gate and up: one tensor map interleaves 8 rows of gate with 8 of up, which puts a column's two
 * sums into one thread; the tile then has 32 columns of output for each warpgroup.
 *
 * Split k: the blocks of a cluster each sum a range of k of the same tile; then each sums some
 * tokens' partial results over the cluster, in the order of the ranks, and stores them.
 *
 * Tokens of a tile, by mode: DENSE consecutive rows; ROUTED the rows that chose the tile's expert,
 * fetched one by one (a block sorts the batch's pairs by itself: few rows); SORTED consecutive
 * rows of an expert's range. A token's sum does not depend on its place in a tile. */
#pragma once

#include "kernels/cuda/gemm_maps.h"
#include "kernels/cuda/gemm_route.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    TILE_K = 64,        /* of a stage */
    TILE_ROWS = 64,     /* weight rows of a warpgroup */
    A_BOX_BYTES = 8192, /* TILE_ROWS x TILE_K */
    TOKEN_BYTES = 128,  /* one token's part of a stage */
    STAGE_PITCH = 144,  /* bytes of a token in the output's staging memory: 128 + 16 */
    TILE_GROUP = 8,     /* token tiles that share their weights in L2 before the next weights */
};

__device__ __forceinline__ void tma_load_5d(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                            int32_t x, int32_t y, int32_t z, int32_t u, int32_t v,
                                            uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v), "l"(policy)
                 : "memory");
}

__device__ __forceinline__ void tma_load_4d(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                            int32_t x, int32_t y, int32_t z, int32_t u,
                                            uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(u), "l"(policy)
                 : "memory");
}

enum tile_mode { TILE_DENSE, TILE_ROUTED, TILE_SORTED };

struct tile_part {
    void *out;
    const float *bias;
    const void *residual;
    int64_t out_stride;
    int32_t n; /* columns of out */
    int32_t out_float;
    int32_t row_tiles;
};

/* Where weights are: row r of z stands at weight + z * z_stride + r * row_stride (elements). */
struct tile_weights {
    const void *weight;
    const void *up; /* NULL, or `weight` is gate */
    int64_t row_stride, z_stride;
};

/* When the next kernel may start and ask for its weights: at once; once this one waits for nothing
 * (the next may rely on what the kernel ahead of this one wrote); or, gemm_stream.cuh alone, once
 * all weights of this one are asked for: those of the next follow them, and fill the time until it
 * is done. */
enum tile_next { NEXT_AT_ONCE, NEXT_WAITED, NEXT_ASKED };

struct tile_params {
    CUtensorMap a[GEMM_MAX_PARTS];   /* of the parts; with routing: [0] experts, [1] shared ones */
    CUtensorMap b;                   /* (k, head, row) */
    CUtensorMap up[2];               /* gemm_stream.cuh, whose maps of weights are its own */
    CUtensorMap out[GEMM_MAX_PARTS]; /* gemm_wide.cuh: (n, head, row) */
    CUtensorMap residual[GEMM_MAX_PARTS]; /* ... where there is one */
    struct tile_part part[GEMM_MAX_PARTS];
    struct tile_routing routing;
    const void *rows;  /* ROUTED, `norm`: bf16 (rows, k) */
    int64_t row_bytes; /* from row to row */
    const float *norm; /* gemm_stream.cuh: (k) or NULL */
    void *normalised;  /* (m, k) */
    float norm_eps;
    int64_t out_head_stride;
    uint64_t weight_policy;
    int32_t k;
    int32_t m;
    int32_t n_parts;
    int32_t k_steps;
    int32_t split; /* blocks of a cluster; > 1: as many clusters as tiles */
    int32_t heads;
    int32_t next_late; /* an enum tile_next */
    int32_t swiglu;    /* the maps of `a` have rank 5: (k, 8, gate/up, i / 8, z) */
    int32_t swapped;   /* swiglu: bit i is 1 where map i has up before gate */
};

template <int BN_, int GROUPS_, int STAGES_, int MODE_, int TA_> struct tile_config {
    enum {
        BN = BN_,
        GROUPS = GROUPS_, /* math warpgroups */
        STAGES = STAGES_,
        MODE = MODE_,
        TA = TA_, /* 1: the weight is (k, n) */
        MATH = GROUPS * 128,
        THREADS = MATH + 32,
        TABLE_THREADS = THREADS, /* that wait for the tables */
        BOX_TOKENS = 16,         /* rows of a box of map b */
        A_BYTES = GROUPS * A_BOX_BYTES,
        STAGE_BYTES = A_BYTES + BN * TOKEN_BYTES,
        CHUNK = BN < 32 ? BN : 32, /* tokens staged at a time */
        CHUNK_BYTES = CHUNK * STAGE_PITCH,
        STAGING_BYTES = GROUPS * CHUNK_BYTES,
        TABLE_BYTES = MODE == TILE_DENSE ? 0 : (int)sizeof(tile_tables),
        LAG = BN == 16 ? 7 : 5, /* ROUTED: stages whose tokens are on the way before the oldest is
                                   waited for */
        SHARED_BYTES = 1024 + STAGES * STAGE_BYTES + STAGING_BYTES + 16 * STAGES + 16 + TABLE_BYTES,
    };
};

/* A block's view of its shared memory. */
template <class C> struct tile_memory {
    uint32_t ring, staging, full, empty, ready, staged;
    char *staging_ptr;
    struct tile_tables *tables;

    __device__ explicit tile_memory(char *raw)
    {
        char *base = raw + ((1024 - (smem_u32(raw) & 1023)) & 1023);

        ring = smem_u32(base);
        staging_ptr = base + C::STAGES * C::STAGE_BYTES;
        staging = smem_u32(staging_ptr);
        full = staging + C::STAGING_BYTES;
        empty = full + 8 * C::STAGES;
        ready = empty + 8 * C::STAGES; /* gemm_wide.cuh */
        staged = ready + 8;
        tables = (struct tile_tables *)(staging_ptr + C::STAGING_BYTES + 16 * C::STAGES + 16);
    }
};

struct ring_place {
    uint32_t stage, parity;

    template <class C> __device__ void advance()
    {
        if (++stage == C::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

/* mbar_wait that turns a hang of some seconds into a fault. */
__device__ __forceinline__ void ring_wait(uint32_t bar, uint32_t parity)
{
    if (mbar_try_wait(bar, parity))
        return;
    long long start = clock64();
    while (!mbar_try_wait(bar, parity))
        if (clock64() - start > 8000000000ll)
            __trap();
}

struct tile {
    int32_t part;
    int32_t row_tile; /* of the part: GROUPS * TILE_ROWS weight rows each */
    int32_t z;        /* head or expert */
    int32_t first;    /* first token: a row, or a place in the sorted order */
    int32_t tokens;
};

template <class C> __device__ __forceinline__ int dense_tiles(const tile_params &p)
{
    int row_tiles = 0;

    for (int i = 0; i < p.n_parts; i++)
        row_tiles += p.part[i].row_tiles;
    return row_tiles * ((p.m + C::BN - 1) / C::BN) * p.heads;
}

template <class C> __device__ __forceinline__ struct tile dense_tile(const tile_params &p, int t)
{
    int token_tiles = (p.m + C::BN - 1) / C::BN, row_tiles = 0;
    struct tile w = {};

    for (int i = 0; i < p.n_parts; i++)
        row_tiles += p.part[i].row_tiles;
    w.z = t / (row_tiles * token_tiles);
    t -= w.z * row_tiles * token_tiles;

    int group = t / (TILE_GROUP * row_tiles), in_group = t - group * TILE_GROUP * row_tiles;
    int wide = min((int)TILE_GROUP, token_tiles - group * TILE_GROUP);
    w.row_tile = in_group / wide;
    w.first = (group * TILE_GROUP + in_group - w.row_tile * wide) * C::BN;
    w.tokens = min((int)C::BN, p.m - w.first);
    while (w.row_tile >= p.part[w.part].row_tiles)
        w.row_tile -= p.part[w.part++].row_tiles;
    return w;
}

template <class C>
__device__ __forceinline__ struct tile routed_tile(const tile_params &p, const tile_tables &tab,
                                                   int t)
{
    const struct tile_routing &r = p.routing;
    int row_tiles = p.part[0].row_tiles, chunks = (p.m + C::BN - 1) / C::BN;
    struct tile w = {};

    if (t < r.shared * row_tiles * chunks) {
        w.part = 1;
        w.z = t / (row_tiles * chunks);
        t -= w.z * row_tiles * chunks;
        w.row_tile = t / chunks;
        w.first = (t - w.row_tile * chunks) * C::BN;
        w.tokens = min((int)C::BN, p.m - w.first);
        return w;
    }
    t -= r.shared * row_tiles * chunks;
    w.z = tables_expert(tab, r.experts, t);
    t -= tab.tile_start[w.z];
    int count = tab.first[w.z + 1] - tab.first[w.z];
    chunks = (count + C::BN - 1) / C::BN;
    w.row_tile = t / chunks;
    w.first = (t - w.row_tile * chunks) * C::BN;
    w.tokens = min((int)C::BN, count - w.first);
    w.first += tab.first[w.z];
    return w;
}

template <class C>
__device__ __forceinline__ struct tile get_tile(const tile_params &p, const tile_tables *tab, int t)
{
    if (C::MODE == TILE_DENSE)
        return dense_tile<C>(p, t);
    return routed_tile<C>(p, *tab, t);
}

/* Tiles whose weights are known before the routing is. */
template <class C> __device__ __forceinline__ int shared_tiles(const tile_params &p)
{
    return p.routing.shared * p.part[0].row_tiles * ((p.m + C::BN - 1) / C::BN);
}

/* The pair (row * slots + slot) of a routed tile's token. */
__device__ __forceinline__ int tile_pair(const tile_params &p, const tile_tables &tab,
                                         const struct tile &w, int token)
{
    const struct tile_routing &r = p.routing;

    if (w.part)
        return (w.first + token) * (r.top_k + r.shared) + r.top_k + w.z;
    return tab.list[w.first + token];
}

/* ---- the copying warp ------------------------------------------------------------------------ */

template <class C>
__device__ __forceinline__ void load_weights(const tile_params &p, const tile_memory<C> &mem,
                                             const struct tile &w, int k, uint32_t stage)
{
    uint32_t dst = mem.ring + stage * C::STAGE_BYTES, bar = mem.full + 8 * stage;
    const CUtensorMap *map = &p.a[w.part];
    int row = w.row_tile * C::GROUPS * TILE_ROWS;

    for (int g = 0; g < C::GROUPS; g++, row += TILE_ROWS, dst += A_BOX_BYTES) {
        if (C::TA)
            tma_load_3d(dst, map, bar, row, k, w.z, p.weight_policy);
        else if (p.swiglu)
            tma_load_5d(dst, map, bar, k, 0, 0, row / 16, w.z, p.weight_policy);
        else
            tma_load_3d(dst, map, bar, k, row, w.z, p.weight_policy);
    }
}

/* Bytes that a stage's barrier expects: whole boxes, also where they reach outside. */
template <class C> __device__ __forceinline__ uint32_t stage_bytes(const struct tile &w)
{
    int boxes = (w.tokens + C::BOX_TOKENS - 1) / C::BOX_TOKENS;

    return C::A_BYTES + (C::MODE == TILE_ROUTED ? 0 : boxes * C::BOX_TOKENS * TOKEN_BYTES);
}

/* Consecutive tokens: a box a lane. */
template <class C>
__device__ __forceinline__ void load_tokens(const tile_params &p, const tile_memory<C> &mem,
                                            const struct tile &w, int k, uint32_t stage, int lane)
{
    uint32_t dst = mem.ring + stage * C::STAGE_BYTES + C::A_BYTES;

    if (lane * C::BOX_TOKENS < w.tokens)
        tma_load_3d(dst + lane * C::BOX_TOKENS * TOKEN_BYTES, &p.b, mem.full + 8 * stage, k,
                    C::MODE == TILE_DENSE ? w.z : 0, w.first + lane * C::BOX_TOKENS,
                    TMA_EVICT_NORMAL);
}

/* Tokens from anywhere, 16 bytes a lane, laid out as TMA swizzles (small TMA boxes are slow).
 * `rows`: those of tokens lane and lane + 32. */
template <class C>
__device__ __forceinline__ void gather_tokens(const tile_params &p, const tile_memory<C> &mem,
                                              const struct tile &w, const int (&rows)[2], int k,
                                              uint32_t stage, int lane)
{
    uint32_t dst = mem.ring + stage * C::STAGE_BYTES + C::A_BYTES, piece = lane % 8;
    int bytes = k + 8 * (int)piece < p.k ? 16 : 0; /* 0: zeros are written */
    const char *column = (const char *)p.rows + (bytes ? 2 * k + 16 * piece : 0);

    for (int first = 0; first < w.tokens; first += 4) {
        int token = first + lane / 8;
        int row = __shfl_sync(~0u, rows[0], token % 32),
            high = __shfl_sync(~0u, rows[1], token % 32);
        row = token < 32 ? row : high;
        if (token < w.tokens)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                             dst + token * TOKEN_BYTES + ((piece ^ (token & 7)) << 4)),
                         "l"(column + row * p.row_bytes), "r"(bytes)
                         : "memory");
    }
}

/* Reports the tokens of a stage that was asked for N stages ago. */
template <int N> __device__ __forceinline__ void gathered(uint32_t full, int lane)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
    fence_async();
    __syncwarp();
    if (lane == 0)
        mbar_arrive(full);
}

/* A walk over a block's tiles and their steps of k. */
template <class C> struct tile_walk {
    const tile_params &p;
    const tile_tables *tab;
    struct tile w;
    int t, stride, n_tiles, step, first_step, end_step;

    __device__ tile_walk(const tile_params &params, const tile_tables *tables, int tiles)
        : p(params), tab(tables), n_tiles(tiles)
    {
        int rank = p.split > 1 ? (int)blockIdx.x % p.split : 0;

        t = (int)blockIdx.x / p.split;
        stride = (int)gridDim.x / p.split;
        first_step = p.k_steps * rank / p.split;
        end_step = p.k_steps * (rank + 1) / p.split;
        step = first_step;
        if (more())
            w = get_tile<C>(p, tab, t);
    }

    __device__ bool more() const
    {
        return t < n_tiles;
    }

    /* True when a new tile begins. */
    __device__ bool next()
    {
        if (++step < end_step)
            return false;
        step = first_step;
        t += stride;
        if (more())
            w = get_tile<C>(p, tab, t);
        return true;
    }
};

template <class C>
__device__ __forceinline__ void token_rows(const tile_params &p, const tile_tables *tab,
                                           const struct tile &w, int (&rows)[2], int lane)
{
    if (C::MODE != TILE_ROUTED)
        return;
    int slots = p.routing.top_k + p.routing.shared;
    for (int i = 0; i < 2; i++) {
        int pair = lane + 32 * i < w.tokens ? tile_pair(p, *tab, w, lane + 32 * i) : 0;
        rows[i] = p.routing.rows_are_pairs ? pair : pair / slots;
    }
}

/* The whole warp. First the weights of as many stages as there are, then, once the kernel ahead is
 * done, their tokens, then stages as they become free. */
template <class C>
__device__ void copy_tiles(const tile_params &p, const tile_memory<C> &mem, int lane)
{
    bool known = C::MODE == TILE_DENSE || p.routing.known;

    if (!p.next_late)
        launch_next();
    int early = 0, rows[2] = {};
    struct ring_place at = {0, 1};

    if (C::MODE != TILE_DENSE && known)
        named_sync(9, C::TABLE_THREADS); /* the tables */
    int tiles = C::MODE == TILE_DENSE ? dense_tiles<C>(p)
                : known ? shared_tiles<C>(p) + mem.tables->tile_start[p.routing.experts]
                        : shared_tiles<C>(p);
    tile_walk<C> ahead(p, mem.tables, tiles);
    for (; early < C::STAGES && ahead.more(); early++, ahead.next())
        if (lane == 0) {
            mbar_arrive_expect(mem.full + 8 * early, stage_bytes<C>(ahead.w));
            load_weights<C>(p, mem, ahead.w, ahead.step * TILE_K, early);
        }
    launch_wait();
    if (p.next_late)
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
            if (lane == 0) {
                mbar_arrive_expect(mem.full + 8 * at.stage, stage_bytes<C>(walk.w));
                load_weights<C>(p, mem, walk.w, walk.step * TILE_K, at.stage);
            }
            __syncwarp();
        }
        if (C::MODE == TILE_ROUTED) {
            gather_tokens<C>(p, mem, walk.w, rows, walk.step * TILE_K, at.stage, lane);
            asm volatile("cp.async.commit_group;" ::: "memory");
            if (asked >= C::LAG)
                gathered<C::LAG>(mem.full + 8 * (reported++ % C::STAGES), lane);
        } else {
            load_tokens<C>(p, mem, walk.w, walk.step * TILE_K, at.stage, lane);
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

/* acc += the tile's product over its steps of k. */
template <class C, int NT>
__device__ __forceinline__ void multiply(float (&acc)[NT / 2], const tile_memory<C> &mem,
                                         struct ring_place &at, int steps, int group)
{
    uint32_t freed = 0;

    for (int s = 0; s < steps; s++) {
        uint32_t base = mem.ring + at.stage * C::STAGE_BYTES;
        uint64_t a = wgmma_desc(base + group * A_BOX_BYTES, C::TA ? 8192 : 16, 1024, SWIZZLE_128);
        uint64_t b = wgmma_desc(base + C::A_BYTES, 16, 1024, SWIZZLE_128);

        ring_wait(mem.full + 8 * at.stage, at.parity);
        wgmma_hold(acc);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < TILE_K / 16; k++)
            wgmma<NT>::template ss<C::TA, 0>(acc, a + k * (C::TA ? 2048 >> 4 : 32 >> 4),
                                             b + k * (32 >> 4), 1);
        wgmma_commit();
        if (s) {
            wgmma_wait<1>();
            if (threadIdx.x % 32 == 0)
                mbar_arrive(mem.empty + 8 * freed);
        }
        freed = at.stage;
        at.template advance<C>();
    }
    wgmma_wait<0>();
    wgmma_hold(acc);
    if (threadIdx.x % 32 == 0)
        mbar_arrive(mem.empty + 8 * freed);
}

/* Sums the partial results of a cluster's blocks for tokens 8 * first .. 8 * end - 1, which are
 * this block's to store. The ring is idle then: a cluster has one tile. */
template <class C, int NT>
__device__ __forceinline__ void reduce_split(float (&acc)[NT / 2], const tile_params &p,
                                             const tile_memory<C> &mem, int *first, int *end)
{
    int rank = (int)cluster_rank(), tid = threadIdx.x;

    named_sync(8, C::MATH);
    for (int j = 0; j < NT / 8; j++) {
        uint32_t at = mem.ring + (j * C::MATH + tid) * 16;
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(acc[4 * j]),
                     "f"(acc[4 * j + 1]), "f"(acc[4 * j + 2]), "f"(acc[4 * j + 3])
                     : "memory");
    }
    cluster_arrive();
    cluster_wait();
    *first = NT / 8 * rank / p.split;
    *end = NT / 8 * (rank + 1) / p.split;
#pragma unroll
    for (int j = 0; j < NT / 8; j++) {
        if (j < *first || j >= *end)
            continue;
        float4 sum = {};
        for (int r = 0; r < p.split; r++) {
            float4 v = cluster_load_v4(cluster_map(mem.ring + (j * C::MATH + tid) * 16, r));
            sum.x += v.x;
            sum.y += v.y;
            sum.z += v.z;
            sum.w += v.w;
        }
        acc[4 * j] = sum.x;
        acc[4 * j + 1] = sum.y;
        acc[4 * j + 2] = sum.z;
        acc[4 * j + 3] = sum.w;
    }
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);

    return *(uint32_t *)&v;
}

__device__ __forceinline__ void store_matrix(uint32_t at, uint32_t a)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(at), "r"(a)
                 : "memory");
}

__device__ __forceinline__ void store_matrix(uint32_t at, uint32_t a, uint32_t b)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(at), "r"(a),
                 "r"(b)
                 : "memory");
}

__device__ __forceinline__ float silu(float x)
{
    return __fdividef(x, 1.0f + __expf(-x));
}

__device__ __forceinline__ uint32_t add_pair(uint32_t a, uint32_t b)
{
    float2 u = __bfloat1622float2(*(__nv_bfloat162 *)&a);
    float2 v = __bfloat1622float2(*(__nv_bfloat162 *)&b);

    return pack_bf16(u.x + v.x, u.y + v.y);
}

__device__ __forceinline__ uint4 add_bf16(uint4 a, uint4 b)
{
    return make_uint4(add_pair(a.x, b.x), add_pair(a.y, b.y), add_pair(a.z, b.z),
                      add_pair(a.w, b.w));
}

/* The row of `out` that a token's result goes to. */
template <class C>
__device__ __forceinline__ int64_t out_row(const tile_params &p, const tile_memory<C> &mem,
                                           const struct tile &w, int token)
{
    if (C::MODE == TILE_ROUTED)
        return tile_pair(p, *mem.tables, w, token);
    return w.first + token;
}

/* Float results go straight to memory: 8 lanes write 32 bytes of a row. */
template <class C, int NT>
__device__ __forceinline__ void store_float(const float (&acc)[NT / 2], const float (&bias)[2],
                                            const tile_params &p, const tile_memory<C> &mem,
                                            const struct tile &w, int column, int first, int end)
{
    const struct tile_part &part = p.part[C::MODE == TILE_DENSE ? w.part : 0];
    float *out = (float *)part.out + w.z * p.out_head_stride;
    int lane = threadIdx.x % 32, row = column + threadIdx.x % 128 / 32 * 16 + lane / 4;

#pragma unroll
    for (int j = 0; j < NT / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int token = 8 * j + lane % 4 * 2 + e;
            if (j < first || j >= end || token >= w.tokens)
                continue;
            float *to = out + out_row<C>(p, mem, w, token) * part.out_stride;
            if (row < part.n)
                to[row] = acc[4 * j + e] + bias[0];
            if (row + 8 < part.n)
                to[row + 8] = acc[4 * j + 2 + e] + bias[1];
        }
}

/* Copies tokens first .. first + n - 1 of a warpgroup, staged at `staged`, to memory. */
template <class C>
__device__ __forceinline__ void store_staged(const tile_params &p, const tile_memory<C> &mem,
                                             const struct tile &w, const char *staged, int column,
                                             int columns, int first, int n)
{
    const struct tile_part &part = p.part[C::MODE == TILE_DENSE ? w.part : 0];
    int64_t head = C::MODE == TILE_DENSE ? w.z * p.out_head_stride : 0;
    int pieces = columns / 8;

    for (int i = threadIdx.x % 128; i < n * pieces; i += 128) {
        int token = i / pieces, piece = i - token * pieces, at = column + 8 * piece;
        if (first + token >= w.tokens || at >= part.n)
            continue;
        int64_t to = head + out_row<C>(p, mem, w, first + token) * part.out_stride + at;
        uint4 v = *(const uint4 *)(staged + token * STAGE_PITCH + 16 * piece);
        if (part.residual)
            v = add_bf16(v, *(const uint4 *)((const __nv_bfloat16 *)part.residual + to));
        *(uint4 *)((__nv_bfloat16 *)part.out + to) = v;
    }
}

/* Tokens 8 * J and on of the accumulators, a chunk at a time, through the staging memory, where
 * they are turned around: out has a token's columns side by side. A recursion, since loops as long
 * as this are not always unrolled, and then the accumulators would be in memory. */
template <class C, int NT, int J>
__device__ __forceinline__ void store_bf16(const float (&acc)[NT / 2], const float (&bias)[2],
                                           const tile_params &p, const tile_memory<C> &mem,
                                           const struct tile &w, int group, int first, int end)
{
    constexpr int N = (C::CHUNK < NT ? C::CHUNK : NT) / 8;
    int columns = p.swiglu ? TILE_ROWS / 2 : TILE_ROWS, warp = threadIdx.x % 128 / 32;
    int lane = threadIdx.x % 32, from = max(J, first), to = min(J + N, end);

    if (from < to && 8 * J < w.tokens) {
        uint32_t at = mem.staging + group * C::CHUNK_BYTES + lane % 8 * STAGE_PITCH;
        named_sync(1 + group, 128);
#pragma unroll
        for (int j = 4 * J; j < 4 * (J + N); j += 4, at += 8 * STAGE_PITCH) {
            if (p.swiglu && p.swapped >> w.part & 1)
                store_matrix(at + warp * 16,
                             pack_bf16(silu(acc[j + 2]) * acc[j], silu(acc[j + 3]) * acc[j + 1]));
            else if (p.swiglu)
                store_matrix(at + warp * 16,
                             pack_bf16(silu(acc[j]) * acc[j + 2], silu(acc[j + 1]) * acc[j + 3]));
            else
                store_matrix(at + warp * 32 + lane / 8 % 2 * 16,
                             pack_bf16(acc[j] + bias[0], acc[j + 1] + bias[0]),
                             pack_bf16(acc[j + 2] + bias[1], acc[j + 3] + bias[1]));
        }
        named_sync(1 + group, 128);
        const char *staged = mem.staging_ptr + group * C::CHUNK_BYTES;
        store_staged<C>(p, mem, w, staged + (from - J) * 8 * STAGE_PITCH,
                        (w.row_tile * C::GROUPS + group) * columns, columns, 8 * from,
                        8 * (to - from));
    }
    if constexpr (J + N < NT / 8)
        store_bf16<C, NT, J + N>(acc, bias, p, mem, w, group, first, end);
}

/* What a math warpgroup has of one tile: sums, its first row (of the weights), biases. */
template <class C, int NT> struct tile_sums {
    float acc[NT / 2], bias[2];
    int group, column;

    __device__ __forceinline__ tile_sums(const tile_params &p, const struct tile &w)
    {
        const struct tile_part &part = p.part[C::MODE == TILE_DENSE ? w.part : 0];

        group = threadIdx.x / 128;
        column = (w.row_tile * C::GROUPS + group) * TILE_ROWS; /* where there is a bias */
        int row = column + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
        bias[0] = bias[1] = 0.0f;
        /* Undefined, they would be live from before, beside those of the other widths. */
#pragma unroll
        for (int i = 0; i < NT / 2; i++)
            acc[i] = 0.0f;
        if (C::MODE == TILE_DENSE && part.bias) {
            bias[0] = row < part.n ? part.bias[row] : 0.0f;
            bias[1] = row + 8 < part.n ? part.bias[row + 8] : 0.0f;
        }
    }

    __device__ __forceinline__ void store(const tile_params &p, const tile_memory<C> &mem,
                                          const struct tile &w)
    {
        int first = 0, end = NT / 8;

        if (C::MODE == TILE_DENSE && p.split > 1)
            reduce_split<C, NT>(acc, p, mem, &first, &end);
        if (C::MODE == TILE_DENSE && p.part[w.part].out_float)
            store_float<C, NT>(acc, bias, p, mem, w, column, first, end);
        else
            store_bf16<C, NT, 0>(acc, bias, p, mem, w, group, first, end);
    }
};

template <class C, int NT>
__device__ __forceinline__ void do_tile(const tile_params &p, const tile_memory<C> &mem,
                                        const struct tile &w, struct ring_place &at, int steps)
{
    tile_sums<C, NT> sums(p, w);

    multiply<C, NT>(sums.acc, mem, at, steps, sums.group);
    sums.store(p, mem, w);
}

template <class C> __device__ void math_tiles(const tile_params &p, const tile_memory<C> &mem)
{
    struct ring_place at = {0, 0};
    int tiles = C::MODE == TILE_DENSE
                    ? dense_tiles<C>(p)
                    : shared_tiles<C>(p) + mem.tables->tile_start[p.routing.experts];
    tile_walk<C> walk(p, mem.tables, tiles);
    int steps = walk.end_step - walk.first_step;

    for (; walk.more(); walk.step = walk.end_step, walk.next()) {
        const struct tile &w = walk.w;
        if (w.tokens <= 8)
            do_tile<C, 8>(p, mem, w, at, steps);
        else if (w.tokens <= 16 || C::BN == 16)
            do_tile<C, 16>(p, mem, w, at, steps);
        else if (w.tokens <= 32)
            do_tile<C, C::BN == 64 ? 32 : 16>(p, mem, w, at, steps);
        else
            do_tile<C, C::BN == 64 ? 64 : 16>(p, mem, w, at, steps);
    }
}

/* The whole block: sets up the ring's barriers. */
template <class C> __device__ __forceinline__ void tile_init(const tile_memory<C> &mem)
{
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            mbar_init(mem.full + 8 * i, C::MODE == TILE_ROUTED ? 2 : 1);
            mbar_init(mem.empty + 8 * i, C::MATH / 32);
        }
        mbar_init_fence();
    }
    __syncthreads();
}

/* What the math warps do first: the tables, and the kernel ahead. */
template <class C>
__device__ __forceinline__ void tile_begin(const tile_params &p, const tile_memory<C> &mem)
{
    if (C::MODE == TILE_DENSE || !p.routing.known)
        launch_wait();
    if (C::MODE != TILE_DENSE) {
        tables_from_ids<C::MATH>(*mem.tables, p.routing, p.m, p.part[0].row_tiles, C::BN);
        named_sync(9, C::TABLE_THREADS);
        launch_wait();
    }
}

/* A barrier of a tile's cluster, where there is one. */
__device__ __forceinline__ void tile_cluster_sync(const tile_params &p)
{
    if (p.split > 1) {
        __syncwarp();
        cluster_arrive();
        cluster_wait();
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) tile_kernel(const __grid_constant__ tile_params p)
{
    extern __shared__ char raw[];
    tile_memory<C> mem(raw);

    tile_init<C>(mem);
    if ((int)threadIdx.x >= C::MATH) {
        copy_tiles<C>(p, mem, threadIdx.x % 32);
        tile_cluster_sync(p); /* the math warps are at this one in reduce_split */
    } else {
        tile_begin<C>(p, mem);
        math_tiles<C>(p, mem);
    }
    tile_cluster_sync(p); /* no block leaves while another reads its results */
}

/* The map of gate and up weights (z, n, k), 8 rows of the one and 8 of the other in turn, `rows` in
 * all; `at`: which of p->a. */
static inline int tile_map_pairs(tile_params *p, int at, const struct tile_weights &w, int n, int k,
                                 int z, int rows, int bytes)
{
    int64_t apart = ((const char *)w.up - (const char *)w.weight) / (bytes ? 1 : 2);
    struct gemm_map map = {apart < 0 ? w.up : w.weight,
                           k,
                           4,
                           {8, 2, n / 8, z},
                           {w.row_stride, apart < 0 ? -apart : apart, 8 * w.row_stride,
                            z > 1 ? w.z_stride : 8 * w.row_stride},
                           {8, 2, rows / 16, 1},
                           bytes};

    p->swiglu = 1;
    p->swapped |= (apart < 0) << at;
    return gemm_map_encode(&p->a[at], &map);
}

template <class C>
static cudaError_t tile_launch(const tile_params &p, int blocks, cudaStream_t stream)
{
    cudaError_t e = launch_room<tile_kernel<C>>(C::SHARED_BYTES);

    return e != cudaSuccess ? e
                            : launch_clusters(tile_kernel<C>, p.split, blocks, C::THREADS,
                                              C::SHARED_BYTES, stream, p);
}
