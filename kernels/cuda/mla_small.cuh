/* The decode kernel for few query rows, up to N (16 or 32) a tile, where the cache's bytes are all
 * that counts. See README.md beside this file for what was tried and measured.
 *
 * The products have the cache on the left, so that nothing is padded to 64 query rows:
 *   S^T (64 tokens x N) = K (64 x 576) Q^T       K: a tile as it lies, Q^T: the query rows
 *   O^T (512 x N)      += V^T (512 x 64) P^T     V^T: the same tile with M contiguous
 * Tokens run down the accumulators' rows, query rows across their columns: a thread has the same
 * columns of S^T and O^T, so the running maximum and sum of a query row need no exchange but the
 * maximum over the tile.
 *
 * Roles of a block, one to each multiprocessor:
 *   warps 0-3  products, softmax, merging (the accumulators: 4 N + N / 4 registers a thread)
 *   warp 4     brings the cache, by TMA, STAGES tiles ahead
 *   warps 5-7  bring the query rows of the piece after, zero rows past the tile's end
 * Every role walks the same pieces (mla_small_work.cuh).
 *
 * Barriers (full: the data is there; empty: its readers are done): one pair for each tile and
 * each query buffer. Merging is in mla_small_merge.cuh. */
#pragma once

#include "kernels/cuda/mla_small_work.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <math.h>

namespace mla_small
{

template <int N_, int LATENT_, int ROPE_, int FORMAT> struct shape {
    static constexpr int N = N_, LATENT = LATENT_, ROPE = ROPE_;
    static constexpr bool FP8 = FORMAT == MLA_KV_FP8;
    static constexpr int BOXES = (LATENT + ROPE + 63) / 64; /* of 64 columns: 128 bytes a row */
    static constexpr int BLOCKS = LATENT / 64;              /* of O^T's rows */
    static constexpr int STEPS = (LATENT + ROPE) / 16;
    static constexpr int STAGES = LATENT == 512 ? 2 : 4;
    static constexpr int Q_STAGES = N == 16 && !FP8 ? 2 : 1;
    static constexpr int COLUMNS = N / 4; /* of a thread: 8 j + 2 (lane % 4) + e */
    static constexpr int THREADS = FP8 ? 512 : 256;
    /* FP8: rows as they stand in the cache, RAW_TOKENS a stage. */
    static constexpr int ROW_BYTES = LATENT + LATENT / 32 + 2 * ROPE;
    static constexpr int RAW_BYTES = RAW_TOKENS * ROW_BYTES;
    static constexpr int RAW_ROOM =
        232448 - 800 - STAGES * BOXES * TILE * 128 - Q_STAGES * BOXES * N * 128 - N * 128;
    static constexpr int RAW_STAGES = !FP8                       ? 1
                                      : RAW_ROOM / RAW_BYTES < 8 ? RAW_ROOM / RAW_BYTES
                                                                 : 8;
};

/* Shared memory of 512 + 64, N = 16 and 32, of 232,448 bytes:
 *   tiles  147,456  147,456
 *   q       36,864   36,864
 *   p        2,048    4,096
 *   the rest under 1 KB */
template <class S> struct shared {
    uint8_t tiles[S::STAGES][S::BOXES][TILE * 128];
    uint8_t q[S::Q_STAGES][S::BOXES][S::N * 128];
    uint8_t p[S::N * 128];
    alignas(16) uint8_t raw[S::FP8 ? S::RAW_STAGES * S::RAW_BYTES : 16];
    alignas(16) float by_warp[4][S::N];
    uint64_t tile_full[S::STAGES], tile_empty[S::STAGES];
    uint64_t raw_full[S::RAW_STAGES], raw_empty[S::RAW_STAGES];
    uint64_t q_full[S::Q_STAGES], q_empty[S::Q_STAGES];
    uint64_t granted, received; /* see mla_small_merge.cuh */
    uint32_t last;
};

enum { MATH_THREADS = 128, QUERY_THREADS = 96, FIRST_QUERY_THREAD = 160, MATH_BARRIER = 1 };

/* A place in a ring of stages and the parity of its current phase. */
template <int STAGES> struct ring {
    int stage = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ ring next() const
    {
        ring r = *this;
        r.advance();
        return r;
    }

    __device__ __forceinline__ void advance()
    {
        if (++stage == STAGES)
            stage = 0, phase ^= 1;
    }
};

/* ---- warp 4: the cache ----------------------------------------------------------------------- */

static __device__ __forceinline__ void load_page(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                                 int32_t page)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %3, %3, %4}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(0), "r"(page)
                 : "memory");
}

/* The tile that begins at `token`: a page, or two half pages (the second only if `two`). */
template <class S>
static __device__ void bring_tile(const params &p, shared<S> &s, const ring<S::STAGES> &at,
                                  int token, bool two, int page0, int page1)
{
    uint32_t bar = smem_u32(&s.tile_full[at.stage]), dst = smem_u32(s.tiles[at.stage]);
    int row = token % MLA_PAGE_TOKENS;

    mbar_arrive_expect(bar, S::BOXES * UNIT * 128 * (two ? 2 : 1));
    if (two && row == 0 && !p.ragged) {
        load_page(dst, &p.page, bar, page0);
        return;
    }
    for (int box = 0; box < S::BOXES; box++) {
        uint32_t to = dst + box * TILE * 128;
        tma_load_3d(to, &p.half, bar, 64 * box, row, page0, TMA_EVICT_NORMAL);
        if (two)
            tma_load_3d(to + UNIT * 128, &p.half, bar, 64 * box, UNIT - row, page1,
                        TMA_EVICT_NORMAL);
    }
}

/* Hands on a stage that brings nothing. */
template <class S> static __device__ void pass_stage(shared<S> &s, ring<S::STAGES> &at)
{
    mbar_wait(smem_u32(&s.tile_empty[at.stage]), at.phase ^ 1);
    if (threadIdx.x % 32 == 0)
        mbar_arrive(smem_u32(&s.tile_full[at.stage]));
    at.advance();
}

/* Entries of a block table, one a lane: of pages first .. */
struct entries {
    int64_t table; /* where the table begins */
    int32_t entry;
    bool read; /* else entry is still to be read */
};

/* `known`: of the first piece. */
template <class S>
static __device__ void bring_cache(const params &p, shared<S> &s, plan<S::N> &w, piece x, bool more,
                                   entries known)
{
    int lane = threadIdx.x % 32;
    ring<S::STAGES> at;

    for (; more; more = w.next(p, x), known.table = table_of(p, x.seq), known.read = false) {
        int first = x.begin / MLA_PAGE_TOKENS;
        int pages = (x.end + MLA_PAGE_TOKENS - 1) / MLA_PAGE_TOKENS;

        for (int i = 0; i < x.tiles; i++) {
            int token = x.begin + i * TILE, page = token / MLA_PAGE_TOKENS;
            if (token >= x.end) {
                pass_stage<S>(s, at);
                continue;
            }
            /* The warp holds 32 entries of the block table. */
            int next = (token + UNIT) / MLA_PAGE_TOKENS;
            if (!known.read || next - first >= 32) {
                first = page;
                known.entry =
                    first + lane < pages ? p.seqs.block_tables[known.table + first + lane] : 0;
                known.read = true;
            }
            int page0 = __shfl_sync(~0u, known.entry, page - first);
            int page1 = __shfl_sync(~0u, known.entry, next - first);
            mbar_wait(smem_u32(&s.tile_empty[at.stage]), at.phase ^ 1);
            if (lane == 0)
                bring_tile<S>(p, s, at, token, token + UNIT < x.end, page0, page1);
            at.advance();
        }
        if (x.scratch)
            pass_stage<S>(s, at);
    }
}

/* ---- warps 5-7: the queries ------------------------------------------------------------------ */

/* 16 bytes of global into shared memory, or zeros. */
static __device__ __forceinline__ void copy_16(uint32_t dst, const void *src, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src),
                 "r"(there ? 16 : 0)
                 : "memory");
}

template <class S>
static __device__ void bring_queries(const params &p, shared<S> &s, plan<S::N> &w, piece x,
                                     bool more)
{
    constexpr int CHUNKS = (S::LATENT + S::ROPE) / 8; /* of 16 bytes, in a row */
    ring<S::Q_STAGES> at;

    for (; more; more = w.next(p, x)) {
        const __nv_bfloat16 *from = p.q + x.out_row * (S::LATENT + S::ROPE);
        uint32_t to = smem_u32(s.q[at.stage]);

        mbar_wait(smem_u32(&s.q_empty[at.stage]), at.phase ^ 1);
        for (int i = threadIdx.x - FIRST_QUERY_THREAD; i < S::N * CHUNKS; i += QUERY_THREADS) {
            int row = i / CHUNKS, chunk = i % CHUNKS, swizzled = chunk % 8 ^ row % 8;
            bool there = row < x.rows;
            copy_16(to + chunk / 8 * (S::N * 128) + row * 128 + swizzled * 16,
                    there ? from + (int64_t)i * 8 : p.q, there);
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
        fence_async();
        mbar_arrive(smem_u32(&s.q_full[at.stage]));
        at.advance();
    }
}

/* ---- warps 0-3: products and softmax --------------------------------------------------------- */

/* The result of a piece, or of several: exp2(m) * (l, o), o transposed. */
template <class S> struct state {
    float o[S::BLOCKS][S::N / 2];
    float m[S::COLUMNS];
    float l[S::COLUMNS]; /* this thread's part of the sum until merging */
};

/* Columns of a thread. */
static __device__ __forceinline__ int column(int c)
{
    return 8 * (c / 2) + 2 * (threadIdx.x % 4) + c % 2;
}

/* Rows of a tile that hold nothing: what is there may be NaN, which times 0 is NaN. */
template <class S> static __device__ void clear_rows(uint8_t *tile, int valid)
{
    for (int i = threadIdx.x; i < (TILE - valid) * 8; i += MATH_THREADS)
#pragma unroll
        for (int b = 0; b < S::BLOCKS; b++)
            *(uint4 *)(tile + b * TILE * 128 + valid * 128 + i * 16) = make_uint4(0, 0, 0, 0);
    fence_async();
}

/* The descriptor `bytes` further on. The address field can't overflow, so half the word will do. */
static __device__ __forceinline__ uint64_t desc_at(uint64_t desc, uint32_t bytes)
{
    return desc & 0xffffffff00000000 | (uint32_t)((uint32_t)desc + (bytes >> 4));
}

template <class S, int STEPS>
static __device__ __forceinline__ void score_box(float (&d)[S::N / 2], float (&odd)[S::N / 2],
                                                 uint64_t a0, uint64_t b0, int accumulate)
{
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        uint64_t a = desc_at(a0, k * 32), b = desc_at(b0, k * 32);
        if (S::N == 32)
            wgmma<S::N>::template ss<0, 0>(d, a, b, k > 0 ? 1 : accumulate);
        else if (k % 2 == 0)
            wgmma<S::N>::template ss<0, 0>(d, a, b, k > 1 ? 1 : accumulate);
        else
            wgmma<S::N>::template ss<0, 0>(odd, a, b, k > 1 ? 1 : accumulate);
    }
}

/* Scores of a tile in units of log2: d = K Q^T * scale. Two chains of products, so that one can
 * start while the other's sum is on its way. */
template <class S>
static __device__ __forceinline__ void scores(float (&d)[S::N / 2], uint32_t tile, uint32_t q,
                                              float scale)
{
    float odd[S::N / 2];
    constexpr int CHAINS = S::N == 16 ? 2 : 1;
    uint64_t a0 = wgmma_desc(tile, 0, 1024, SWIZZLE_128), b0 = wgmma_desc(q, 0, 1024, SWIZZLE_128);

#pragma unroll 1
    for (int box = 0; box < S::STEPS / 4; box++) {
        wgmma_fence();
        score_box<S, 4>(d, odd, a0, b0, box > 0);
        a0 = desc_at(a0, TILE * 128);
        b0 = desc_at(b0, S::N * 128);
    }
    if constexpr (S::STEPS % 4 != 0)
        score_box<S, S::STEPS % 4>(d, odd, a0, b0, 1);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(d);
    if constexpr (CHAINS == 2)
        wgmma_hold(odd);
#pragma unroll
    for (int i = 0; i < S::N / 2; i++)
        d[i] = (CHAINS == 2 ? d[i] + odd[i] : d[i]) * scale;
}

/* Of each of a thread's columns: the first token that its row doesn't see. */
template <class S>
static __device__ __forceinline__ void find_limits(const params &p, const piece &x,
                                                   int (&limits)[S::COLUMNS])
{
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++) {
        limits[c] = x.end;
        if (p.causal && x.q_len > 1) {
            int query = min((x.row0 + column(c)) / p.heads, x.q_len - 1);
            limits[c] = min(x.end, x.kv_len - x.q_len + query + 1);
        }
    }
}

/* d[] of tokens that a row doesn't see becomes -infinity. `token` is that of the tile's row 0. */
template <class S>
static __device__ __forceinline__ void mask(float (&d)[S::N / 2], const int (&limits)[S::COLUMNS],
                                            int token)
{
    token += threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (token + 8 * i >= limits[c])
                d[4 * (c / 2) + 2 * i + c % 2] = -INFINITY;
}

/* Probabilities in place of scores, and the state brought to the new maximum. */
template <class S>
static __device__ __forceinline__ void softmax(float (&d)[S::N / 2], state<S> &st, shared<S> &s)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float high[S::COLUMNS], keep[S::COLUMNS];
    bool moved = false;

#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++) {
        int at = 4 * (c / 2) + c % 2;
        high[c] = fmaxf(d[at], d[at + 2]);
#pragma unroll
        for (int step = 4; step < 32; step *= 2)
            high[c] = fmaxf(high[c], __shfl_xor_sync(~0u, high[c], step));
        if (lane < 4)
            s.by_warp[warp][column(c)] = high[c];
    }
    named_sync(MATH_BARRIER, MATH_THREADS);
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c += 2) {
        high[c] = st.m[c], high[c + 1] = st.m[c + 1];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 two = *(float2 *)&s.by_warp[i][column(c)];
            high[c] = fmaxf(high[c], two.x);
            high[c + 1] = fmaxf(high[c + 1], two.y);
        }
    }
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++) {
        int at = 4 * (c / 2) + c % 2;
        float m = high[c];
        float zero = m == -INFINITY ? 0 : m;
        keep[c] = exp2f(st.m[c] - zero);
        moved |= m != st.m[c];
        st.m[c] = m;
        d[at] = exp2f(d[at] - zero);
        d[at + 2] = exp2f(d[at + 2] - zero);
        st.l[c] = st.l[c] * keep[c] + d[at] + d[at + 2];
    }
    if (__any_sync(~0u, moved)) {
#pragma unroll
        for (int b = 0; b < S::BLOCKS; b++)
#pragma unroll
            for (int i = 0; i < S::N / 2; i++)
                st.o[b][i] *= keep[2 * (i / 4) + i % 2];
    }
}

static __device__ __forceinline__ uint32_t pack(float low, float high)
{
    uint32_t r;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

/* P^T to shared memory: N rows of 64 tokens, swizzled. */
template <class S>
static __device__ __forceinline__ void store_p(const float (&d)[S::N / 2], uint32_t to)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

#pragma unroll
    for (int j = 0; j < S::N / 8; j += 2) {
        /* Lane l names row l % 8 of matrix l / 8; matrix 2 jj + i has tokens 8 i .. of the warp's.
         */
        int row = 8 * (j + lane / 16) + lane % 8, chunk = 2 * warp + lane / 8 % 2;
        const float *v = d + 4 * j;
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                         to + row * 128 + ((chunk ^ row % 8) << 4)),
                     "r"(pack(v[0], v[1])), "r"(pack(v[2], v[3])), "r"(pack(v[4], v[5])),
                     "r"(pack(v[6], v[7]))
                     : "memory");
    }
}

/* o += V^T P^T */
template <class S>
static __device__ __forceinline__ void values(state<S> &st, uint32_t tile, uint32_t probabilities)
{
    uint64_t a0 = wgmma_desc(tile, 0, 1024, SWIZZLE_128);
    uint64_t b0 = wgmma_desc(probabilities, 0, 1024, SWIZZLE_128);

#pragma unroll 1
    for (int k = 0; k < TILE / 16; k++) {
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < S::BLOCKS; i++)
            wgmma<S::N>::template ss<1, 0>(st.o[i], desc_at(a0, i * TILE * 128), b0, 1);
        a0 = desc_at(a0, 2048);
        b0 = desc_at(b0, 32);
    }
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < S::BLOCKS; i++)
        wgmma_hold(st.o[i]);
}

template <class S> static __device__ __forceinline__ void release(shared<S> &s, ring<S::STAGES> &at)
{
    if (threadIdx.x % 32 == 0)
        mbar_arrive(smem_u32(&s.tile_empty[at.stage]));
    at.advance();
}

/* Once the stage `at` is this block's scratch room: tells the cluster that it may be written. */
template <class S>
static __device__ __forceinline__ void grant(shared<S> &s, const ring<S::STAGES> &at, int cluster)
{
    if (cluster > 1 && threadIdx.x < cluster) {
        mbar_wait(smem_u32(&s.tile_full[at.stage]), at.phase);
        cluster_mbar_arrive(smem_u32(&s.granted), threadIdx.x);
    }
    __syncwarp();
}

/* This block's part of a piece. */
template <class S>
static __device__ __forceinline__ void attend(const params &p, shared<S> &s, const piece &x,
                                              uint32_t q, ring<S::STAGES> &at, int cluster,
                                              state<S> &st)
{
    float d[S::N / 2];
    int limits[S::COLUMNS];
    int all_see = p.causal ? x.kv_len - x.q_len + 1 : x.kv_len; /* tokens before it: every row */

#pragma unroll
    for (int b = 0; b < S::BLOCKS; b++)
#pragma unroll
        for (int i = 0; i < S::N / 2; i++)
            st.o[b][i] = 0;
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++)
        st.m[c] = -INFINITY, st.l[c] = 0;

    find_limits<S>(p, x, limits);
    for (int i = 0; i < x.tiles; i++) {
        int token = x.begin + i * TILE, valid = min(x.end - token, (int)TILE);
        uint8_t *tile = s.tiles[at.stage][0];
        uint32_t tile_at = smem_u32(tile);

        mbar_wait(smem_u32(&s.tile_full[at.stage]), at.phase);
        if (i == x.tiles - 1)
            grant<S>(s, at.next(), cluster);
        if (valid > 0) {
            if (valid < TILE)
                clear_rows<S>(tile, valid);
            scores<S>(d, tile_at, q, p.scale_log2);
            if (valid < TILE || token + TILE > all_see)
                mask<S>(d, limits, token);
            softmax<S>(d, st, s);
            store_p<S>(d, smem_u32(s.p));
            fence_async();
            named_sync(MATH_BARRIER, MATH_THREADS);
            values<S>(st, tile_at, smem_u32(s.p));
        }
        release<S>(s, at);
    }
    if (x.tiles == 0)
        grant<S>(s, at, cluster);
}

} // namespace mla_small
