/* How partial results become one, in the decode kernel for few query rows. A partial result is
 * (m, l, o) of a row over some tokens: it stands for exp2(m) * (l, o). Always merged in the order
 * of the tokens, so that equal inputs give equal bits.
 *
 * Within a cluster: each block of threads writes every 64 rows of O^T into the shared memory of the
 * block that owns them: a stage of the ring that is passed on for this, once its owner has granted
 * it to everybody. An owner waits until all have written, then sums.
 * Between clusters (pieces of one item): each owner writes its part to the workspace and counts up;
 * whoever completes the count reads all parts and writes the output, and sets the counter back.
 *
 * The accumulators' order serves on the way: 16 columns (query rows) of a block of 64 rows of O^T
 * are 8 floats a thread, of columns 8 j + 2 (lane % 4) + e at [4 j + 2 i + e]. The output is turned
 * around in the piece's query buffer, which nobody reads any more. */
#pragma once

#include "kernels/cuda/mla_small_fp8.cuh"

namespace mla_small
{

/* Where this block stands. */
struct merge_place {
    int32_t rank, cluster;
    int32_t exchanges; /* done by the cluster, over all pieces */
    uint8_t *turned; /* the output, (N, 64 * BLOCKS / cluster) bf16, chunks of 16 bytes swizzled */
};

/* What the room for merging holds. */
template <class S> struct scratch {
    float4 slots[S::N / 16][S::BLOCKS * 2 * MATH_THREADS]; /* round: sender, block, half */
    float2 stats[S::N / 16][MAX_CLUSTER][16];              /* senders' (m, l) */
};

/* 8 floats of a block += w * part */
static __device__ __forceinline__ void add_part(float (&v)[8], const float4 &low,
                                                const float4 &high, const float2 *w)
{
    float4 a = *(const float4 *)(w + column(0)), b = *(const float4 *)(w + column(2));

    v[0] += a.x * low.x;
    v[1] += a.z * low.y;
    v[2] += a.x * low.z;
    v[3] += a.z * low.w;
    v[4] += b.x * high.x;
    v[5] += b.z * high.y;
    v[6] += b.x * high.z;
    v[7] += b.z * high.w;
}

/* Turns (m, l) of n partial results of 16 columns into their weights (w, -) in the whole, 1 / sum
 * included if `last`. A warp has 4 columns, 8 lanes to each, which share the parts. Returns the
 * whole's (m, l) of column 4 warp + lane % 4. All of the math threads meet before and after. */
static __device__ __forceinline__ float2 weigh(float2 (*stats)[16], int n, bool last)
{
    int lane = threadIdx.x % 32, col = threadIdx.x / 32 * 4 + lane % 4;
    float m = -INFINITY, l = 0;

    for (int i = lane / 4; i < n; i += 8)
        m = fmaxf(m, stats[i][col].x);
#pragma unroll
    for (int step = 4; step < 32; step *= 2)
        m = fmaxf(m, __shfl_xor_sync(~0u, m, step));
    for (int i = lane / 4; i < n; i += 8) {
        float w = m == -INFINITY ? 0 : exp2f(stats[i][col].x - m);
        l += w * stats[i][col].y;
        stats[i][col].x = w;
    }
#pragma unroll
    for (int step = 4; step < 32; step *= 2)
        l += __shfl_xor_sync(~0u, l, step);
    if (last) {
        float scale = l > 0 ? __fdividef(1, l) : 0;
        for (int i = lane / 4; i < n; i += 8)
            stats[i][col].x *= scale;
    }
    named_sync(MATH_BARRIER, MATH_THREADS);
    return make_float2(m, l);
}

/* ---- output ---------------------------------------------------------------------------------- */

/* Block b of this block's, columns 16 round ..: rounded, turned around. */
template <class S>
static __device__ __forceinline__ void turn_block(const merge_place &at, int round, int b,
                                                  const float (&v)[8])
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    /* Lane l names row l % 8 of matrix l / 8 = 2 j + i. */
    int row = 16 * round + lane / 16 * 8 + lane % 8, chunk = 8 * b + 2 * warp + lane / 8 % 2;
    uint32_t to =
        smem_u32(at.turned) + row * (S::BLOCKS / at.cluster * 128) + ((chunk ^ lane % 8) << 4);

    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(pack(v[0], v[1])), "r"(pack(v[2], v[3])), "r"(pack(v[4], v[5])),
                 "r"(pack(v[6], v[7]))
                 : "memory");
}

/* What was turned, to global memory. */
template <class S>
static __device__ __forceinline__ void write_output(const params &p, const piece &x,
                                                    const merge_place &at)
{
    int chunks = S::BLOCKS / at.cluster * 8, shift = __ffs(chunks) - 1;
    __nv_bfloat16 *out = p.out + x.out_row * S::LATENT + at.rank * (chunks * 8);

    named_sync(MATH_BARRIER, MATH_THREADS);
#pragma unroll 4
    for (int i = threadIdx.x; i < x.rows * chunks; i += MATH_THREADS) {
        int row = i >> shift, chunk = i & (chunks - 1);
        *(uint4 *)(out + (int64_t)row * S::LATENT + chunk * 8) =
            *(uint4 *)(at.turned + row * chunks * 16 + ((chunk ^ row % 8) << 4));
    }
}

/* (m, l) of row `row` of the tile: lse. */
static __device__ __forceinline__ void write_lse(const params &p, const piece &x, int row,
                                                 float2 ml)
{
    if (p.lse && row < x.rows)
        p.lse[x.out_row + row] =
            ml.y > 0 ? (ml.x + __log2f(ml.y)) * 0.693147180559945309f : INFINITY;
}

/* ---- a part's result in the workspace -------------------------------------------------------- */

template <class S>
static __device__ __forceinline__ float4 *partial_of(const params &p, int slot, int round, int b)
{
    return p.partials + (((int64_t)slot * (S::N / 16) + round) * S::BLOCKS + b) * 256 + threadIdx.x;
}

template <class S>
static __device__ __forceinline__ float2 *stats_of(const params &p, int slot, int rank, int round)
{
    return p.stats + ((int64_t)slot * MAX_CLUSTER + rank) * S::N + 16 * round;
}

static __device__ __forceinline__ void store_part(float4 *to, const float *v)
{
    __stcg(to, make_float4(v[0], v[1], v[2], v[3]));
    __stcg(to + 128, make_float4(v[4], v[5], v[6], v[7]));
}

/* ---- of a block that is a cluster by itself -------------------------------------------------- */

template <class S>
static __device__ __forceinline__ void emit_alone(const params &p, const piece &x,
                                                  const merge_place &at, const state<S> &st)
{
    bool stats_here = threadIdx.x < 4;

    if (x.parts == 1) {
        float scale[S::COLUMNS], v[8];
#pragma unroll
        for (int c = 0; c < S::COLUMNS; c++)
            scale[c] = st.l[c] > 0 ? __fdividef(1, st.l[c]) : 0;
#pragma unroll
        for (int r = 0; r < S::N / 16; r++)
#pragma unroll
            for (int b = 0; b < S::BLOCKS; b++) {
#pragma unroll
                for (int i = 0; i < 8; i++)
                    v[i] = st.o[b][8 * r + i] * scale[4 * r + 2 * (i / 4) + i % 2];
                turn_block<S>(at, r, b, v);
            }
    } else {
        int slot = slot_of(x, x.part);
        float4 *to = partial_of<S>(p, slot, 0, 0);
#pragma unroll
        for (int r = 0; r < S::N / 16; r++)
#pragma unroll
            for (int b = 0; b < S::BLOCKS; b++)
                store_part(to + (r * S::BLOCKS + b) * 256, st.o[b] + 8 * r);
    }
    if (stats_here)
#pragma unroll
        for (int c = 0; c < S::COLUMNS; c++) {
            float2 ml = make_float2(st.m[c], st.l[c]);
            if (x.parts == 1)
                write_lse(p, x, column(c), ml);
            else
                __stcg(stats_of<S>(p, slot_of(x, x.part), 0, 0) + column(c), ml);
        }
}

/* ---- within a cluster ------------------------------------------------------------------------ */

/* Floats into a block of the cluster, counted by its barrier `bar`. */
static __device__ __forceinline__ void send_4(uint32_t to, uint32_t bar, const float *v)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
                 "[%0], {%2, %3, %4, %5}, [%1];" ::"r"(to),
                 "r"(bar), "r"(__float_as_uint(v[0])), "r"(__float_as_uint(v[1])),
                 "r"(__float_as_uint(v[2])), "r"(__float_as_uint(v[3]))
                 : "memory");
}

static __device__ __forceinline__ void send_2(uint32_t to, uint32_t bar, float a, float b)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 "
                 "[%0], {%2, %3}, [%1];" ::"r"(to),
                 "r"(bar), "r"(__float_as_uint(a)), "r"(__float_as_uint(b))
                 : "memory");
}

template <class S>
static __device__ __forceinline__ void send(shared<S> &s, scratch<S> &room, const state<S> &st,
                                            const merge_place &at)
{
    int owned = S::BLOCKS / at.cluster, shift = __ffs(owned) - 1, thread = threadIdx.x;
    uint32_t mine = smem_u32(&room.slots[0][at.rank * owned * 256 + thread]);
    uint32_t received = smem_u32(&s.received);

#pragma unroll
    for (int b = 0; b < S::BLOCKS; b++) {
        int to = b >> shift;
        uint32_t dst = cluster_map(mine + (b & owned - 1) * 4096, to);
        uint32_t bar = cluster_map(received, to);
#pragma unroll
        for (int r = 0; r < S::N / 16; r++) {
            send_4(dst + r * sizeof(room.slots[0]), bar, st.o[b] + 8 * r);
            send_4(dst + r * sizeof(room.slots[0]) + 2048, bar, st.o[b] + 8 * r + 4);
        }
    }
    /* Four lanes know the sums of all columns: warp w tells blocks w and w + 4. */
    if (thread % 32 < 4)
        for (int to = thread / 32; to < at.cluster; to += 4)
#pragma unroll
            for (int c = 0; c < S::COLUMNS; c++)
                send_2(cluster_map(smem_u32(&room.stats[c / 4][at.rank][column(c % 4)]), to),
                       cluster_map(received, to), st.m[c], st.l[c]);
}

/* Sums what the cluster sent of columns 16 round .. . */
template <class S>
static __device__ __forceinline__ void gather(const params &p, scratch<S> &room, const piece &x,
                                              const merge_place &at, int round)
{
    int owned = S::BLOCKS / at.cluster, slot = slot_of(x, x.part), lane = threadIdx.x % 32;
    int col = threadIdx.x / 32 * 4 + lane % 4;
    float2 ml = weigh(room.stats[round], at.cluster, x.parts == 1);

    if (lane < 4 && x.parts > 1)
        __stcg(stats_of<S>(p, slot, at.rank, round) + col, ml);
    if (lane < 4 && x.parts == 1 && at.rank == 0)
        write_lse(p, x, 16 * round + col, ml);
#pragma unroll 1
    for (int b = 0; b < owned; b++) {
        const float4 *from = room.slots[round] + b * 256 + threadIdx.x;
        float v[8] = {};
#pragma unroll 2
        for (int i = 0; i < at.cluster; i++)
            add_part(v, from[i * owned * 256], from[i * owned * 256 + 128], room.stats[round][i]);
        if (x.parts == 1)
            turn_block<S>(at, round, b, v);
        else
            store_part(partial_of<S>(p, slot, round, at.rank * owned + b), v);
    }
}

template <class S>
static __device__ __forceinline__ void exchange(const params &p, shared<S> &s, scratch<S> &room,
                                                const piece &x, merge_place &at, const state<S> &st)
{
    if (threadIdx.x == 0)
        mbar_arrive_expect(smem_u32(&s.received),
                           S::N / 16 * (S::BLOCKS * 2 * MATH_THREADS * 16 + at.cluster * 16 * 8));
    mbar_wait_cluster(smem_u32(&s.granted), at.exchanges & 1);
    send<S>(s, room, st, at);
    mbar_wait_cluster(smem_u32(&s.received), at.exchanges & 1);
    at.exchanges++;
#pragma unroll 1
    for (int r = 0; r < S::N / 16; r++)
        gather<S>(p, room, x, at, r);
}

/* ---- between clusters ------------------------------------------------------------------------ */

/* Whether this block is the last of the item's to have written its part. */
template <class S>
static __device__ __forceinline__ bool arrived_last(const params &p, shared<S> &s, const piece &x,
                                                    int rank)
{
    uint32_t *counter = p.counters + x.counter * MAX_CLUSTER + rank;

    named_sync(MATH_BARRIER, MATH_THREADS);
    if (threadIdx.x == 0) {
        __threadfence(); /* for all that the barrier ordered before it */
        s.last = atomicAdd(counter, 1) == (uint32_t)x.parts - 1;
        if (s.last)
            *counter = 0;
        __threadfence();
    }
    named_sync(MATH_BARRIER, MATH_THREADS);
    return s.last;
}

enum { BATCH = 8 }; /* parts that are read at a time */

/* Columns 16 round .. of all parts, those of this block's rows. `stats`: room for (parts, 16). */
template <class S>
static __device__ __forceinline__ void merge_parts(const params &p, float2 (*stats)[16],
                                                   const piece &x, const merge_place &at, int round)
{
    int owned = S::BLOCKS / at.cluster, lane = threadIdx.x % 32;
    int col = threadIdx.x / 32 * 4 + lane % 4;
    float4 part[BATCH][2];

    for (int i = lane / 4; i < x.parts; i += 8)
        stats[i][col] = __ldcg(stats_of<S>(p, slot_of(x, i), at.rank, round) + col);
#pragma unroll 1
    for (int b = 0; b < owned; b++) {
        float v[8] = {};
#pragma unroll 1
        for (int first = 0; first < x.parts; first += BATCH) {
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const float4 *from = partial_of<S>(p, slot_of(x, min(first + i, x.parts - 1)),
                                                   round, at.rank * owned + b);
                part[i][0] = __ldcg(from);
                part[i][1] = __ldcg(from + 128);
            }
            if (b == 0 && first == 0) {
                float2 ml = weigh(stats, x.parts, true);
                if (lane < 4 && at.rank == 0)
                    write_lse(p, x, 16 * round + col, ml);
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (first + i < x.parts)
                    add_part(v, part[i][0], part[i][1], stats[first + i]);
        }
        turn_block<S>(at, round, b, v);
    }
    named_sync(MATH_BARRIER, MATH_THREADS);
}

/* ---- the end of a piece ---------------------------------------------------------------------- */

/* Sums over a column of what its threads have. */
template <class S> static __device__ __forceinline__ void sum_columns(shared<S> &s, state<S> &st)
{
#pragma unroll
    for (int step = 4; step < 32; step *= 2)
#pragma unroll
        for (int c = 0; c < S::COLUMNS; c++)
            st.l[c] += __shfl_xor_sync(~0u, st.l[c], step);
    if (threadIdx.x % 32 < 4)
#pragma unroll
        for (int c = 0; c < S::COLUMNS; c++)
            s.by_warp[threadIdx.x / 32][column(c)] = st.l[c];
    named_sync(MATH_BARRIER, MATH_THREADS);
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++) {
        const float *at = &s.by_warp[0][column(c)];
        st.l[c] = at[0] + at[S::N] + at[2 * S::N] + at[3 * S::N];
    }
    named_sync(MATH_BARRIER, MATH_THREADS);
}

template <class S>
static __device__ __forceinline__ void finish(const params &p, shared<S> &s, const piece &x,
                                              ring<S::STAGES> &tiles, merge_place &at, state<S> &st)
{
    scratch<S> &room = *(scratch<S> *)s.tiles[tiles.stage];
    bool whole = x.parts == 1;

    static_assert(sizeof(scratch<S>) <= sizeof(s.tiles[0]) &&
                      MAX_SMS * 16 * sizeof(float2) <= sizeof(s.tiles[0]),
                  "a stage holds what merging needs");
    sum_columns<S>(s, st);
    if (x.scratch)
        mbar_wait(smem_u32(&s.tile_full[tiles.stage]), tiles.phase);
    if (at.cluster == 1)
        emit_alone<S>(p, x, at, st);
    else
        exchange<S>(p, s, room, x, at, st);
    if (!whole && arrived_last<S>(p, s, x, at.rank)) {
#pragma unroll 1
        for (int r = 0; r < S::N / 16; r++)
            merge_parts<S>(p, (float2(*)[16])s.tiles[tiles.stage], x, at, r);
        whole = true;
    }
    if (whole)
        write_output<S>(p, x, at);
    if (x.scratch) {
        fence_async();
        __syncwarp();
        release<S>(s, tiles);
    }
}

/* ---- the kernel ------------------------------------------------------------------------------ */

template <class S> static __device__ void init_barriers(shared<S> &s, int cluster)
{
    for (int i = 0; i < S::STAGES; i++) {
        mbar_init(smem_u32(&s.tile_full[i]), S::FP8 ? WIDEN_WARPS : 1);
        mbar_init(smem_u32(&s.tile_empty[i]), MATH_THREADS / 32);
    }
    for (int i = 0; i < S::RAW_STAGES; i++) {
        mbar_init(smem_u32(&s.raw_full[i]), 1);
        mbar_init(smem_u32(&s.raw_empty[i]), WIDEN_WARPS);
    }
    for (int i = 0; i < S::Q_STAGES; i++) {
        mbar_init(smem_u32(&s.q_full[i]), QUERY_THREADS);
        mbar_init(smem_u32(&s.q_empty[i]), MATH_THREADS / 32);
    }
    mbar_init(smem_u32(&s.granted), cluster);
    mbar_init(smem_u32(&s.received), 1);
    mbar_init_fence();
}

template <class S>
static __device__ __forceinline__ void decode_pieces(const params &p, shared<S> &s, plan<S::N> &w,
                                                     piece x, bool more)
{
    ring<S::STAGES> tiles;
    ring<S::Q_STAGES> queries;
    merge_place at = {w.rank, w.cluster, 0, NULL};
    state<S> st;

    for (; more; more = w.next(p, x)) {
        mbar_wait(smem_u32(&s.q_full[queries.stage]), queries.phase);
        attend<S>(p, s, x, smem_u32(s.q[queries.stage]), tiles, w.cluster, st);
        at.turned = s.q[queries.stage][0];
        finish<S>(p, s, x, tiles, at, st);
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            mbar_arrive(smem_u32(&s.q_empty[queries.stage]));
        queries.advance();
    }
}

/* The cache warp's: the entries of the piece's first pages, if the table's size is known, so that
 * no lengths out of date lead past its end. */
static __device__ __forceinline__ void read_entries(const params &p, const piece &x, bool any,
                                                    entries &known)
{
    int at = x.begin / MLA_PAGE_TOKENS + threadIdx.x % 32;
    int64_t entry = known.table + at;
    int64_t size = (int64_t)p.seqs.table_stride * (p.seqs.table_starts ? 1 : p.seqs.n_seqs);

    known.read = any && size > 0 && threadIdx.x / 32 == MATH_THREADS / 32;
    if (!known.read)
        return;
    bool there = x.begin >= 0 && at < (x.end + MLA_PAGE_TOKENS - 1) / MLA_PAGE_TOKENS &&
                 entry >= 0 && entry < size;
    known.entry = there ? __ldcg(p.seqs.block_tables + entry) : 0;
}

/* What each warp does; FP8: with the registers that it needs. */
template <class S>
static __device__ __forceinline__ void play_role(const params &p, shared<S> &s, plan<S::N> &w,
                                                 const piece &first, bool any, const entries &known)
{
    int warp = threadIdx.x / 32;

    if (warp < 4) {
        if constexpr (S::FP8)
            registers_raise<232>();
        decode_pieces<S>(p, s, w, first, any);
    } else if (warp < 8) {
        if constexpr (S::FP8)
            registers_lower<80>();
        if (warp > 4)
            bring_queries<S>(p, s, w, first, any);
        else if constexpr (S::FP8)
            bring_raw<S>(p, s, w, first, any);
        else
            bring_cache<S>(p, s, w, first, any, known);
    } else if constexpr (S::FP8) {
        registers_lower<96>();
        widen<S>(p, s, w, first, any);
    }
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1) decode(const __grid_constant__ params p)
{
    extern __shared__ __align__(1024) uint8_t memory[]; /* begins where the window does: aligned */
    shared<S> &s = *(shared<S> *)memory;
    int rank = (int)cluster_rank(), cluster = (int)cluster_size();
    plan<S::N> w;
    piece first;
    bool any = false;
    entries known = {};

    if (threadIdx.x == 0) {
        init_barriers<S>(s, cluster);
        if (!S::FP8)
            tma_prefetch_map(&p.page);
        if (smem_u32(memory) % 1024 != 0)
            __trap();
    }
    __syncthreads();
    if (cluster > 1) {
        cluster_arrive();
        cluster_wait();
    }
    /* The plan is made while the kernel before this one ends, from lengths that it may not have
     * written yet. Where they turn out to be others, or too many to remember, it is made anew. */
#pragma unroll 1
    for (int pass = 0;; pass++) {
        w.init(p, blockIdx.x / cluster, rank, cluster);
        any = w.next(p, first);
        known.table = any ? table_of(p, first.seq) : 0;
        if (pass == 0) {
            launch_wait();
            launch_next();
        }
        read_entries(p, first, any, known);
        if (pass == 1 || w.holds(p, first, any, known.table))
            break;
    }
    play_role<S>(p, s, w, first, any, known);
    if (cluster > 1) { /* no block ends while others may still write into it */
        __syncwarp();
        cluster_arrive();
        cluster_wait();
    }
}

template <int N, int LATENT, int ROPE, int FORMAT> static variant make_variant()
{
    typedef shape<N, LATENT, ROPE, FORMAT> S;
    static_assert(sizeof(shared<S>) <= 232448, "shared memory of a block");

    return {decode<S>, S::THREADS, sizeof(shared<S>)};
}

template <int N, int FORMAT> static variant find(int latent_dim, int rope_dim)
{
    if (latent_dim == 512 && rope_dim == 64)
        return make_variant<N, 512, 64, FORMAT>();
    if (latent_dim == 256 && rope_dim == 64)
        return make_variant<N, 256, 64, FORMAT>();
    if (latent_dim == 256 && rope_dim == 32)
        return make_variant<N, 256, 32, FORMAT>();
    return {};
}

} // namespace mla_small
