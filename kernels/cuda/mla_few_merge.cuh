/* How partial results become one, in the decode kernel for up to 16 query rows a tile. A partial
 * result is (m, l, o) of a row over some tokens: it stands for exp2(m) * (l, o). Always merged in
 * the order of the tokens, so that equal inputs give equal bits.
 *
 * A round is 16 columns (query rows); a unit of it is 64 rows of O^T and 8 of these columns: a
 * float4 of each thread of a group, columns 8 j + 2 (lane % 4) + e at [2 i + e]. Of the 16 units
 * (of latent 512) each block of a cluster owns a stretch.
 * Within a cluster: each block writes every unit into the shared memory of the block that owns it:
 * a stage of the ring that is passed on for this, once its owner has granted it to everybody. An
 * owner waits until all have written, then sums. No block is written to after that, so it may end.
 * Between clusters (pieces of one item): each owner writes its part to the workspace and counts up;
 * whoever completes the count reads all parts and writes the output, and sets the counter back.
 *
 * The output is turned around in the piece's query buffer, which nobody reads any more. */
#pragma once

#include "kernels/cuda/mla_few_fp8.cuh"

namespace mla_few
{

/* Where this block stands. */
template <class S> struct merge_place {
    int32_t rank, cluster;
    int32_t first, own; /* units of this block */
    int32_t exchanges;  /* done by the cluster, over all pieces */
    uint8_t *turned;    /* the output: (own units of all rounds) 8 rows of 128 bytes, swizzled */
};

/* The first unit that block `rank` of a cluster owns. */
template <class S> static __device__ __forceinline__ int first_unit(int rank, int cluster)
{
    return (rank * S::UNITS + cluster - 1) / cluster;
}

/* Of every unit: the distance from an address in this block to that in its owner's, and the place
 * in the owner's room where this block's part goes. */
template <class S>
static __device__ __forceinline__ void make_routes(shared<S> &s, int rank, int cluster)
{
    int unit = threadIdx.x;

    if (unit >= S::UNITS || cluster == 1)
        return;
    int to = unit * cluster / S::UNITS, first = first_unit<S>(to, cluster);
    int own = first_unit<S>(to + 1, cluster) - first;
    uint32_t here = smem_u32(&s);
    s.routes[unit] = make_uint2(cluster_map(here, to) - here, (rank * own + unit - first) * 2048);
}

/* Merging's room of a round: float4 (sender, unit, thread). */
template <class S>
static __device__ __forceinline__ float4 *room_of(shared<S> &s, const ring<S::STAGES> &at,
                                                  int round)
{
    if (S::ROOMS == 1)
        return (float4 *)(s.tiles[at.stage] + round * S::ROUND_BYTES);
    return (float4 *)s.tiles[at.next(round).stage];
}

/* 4 floats of a unit += w * part */
static __device__ __forceinline__ void add_part(float (&v)[4], const float4 &part, const float2 *w,
                                                int half)
{
    float4 a = *(const float4 *)(w + 8 * half + column(0));

    v[0] += a.x * part.x;
    v[1] += a.z * part.y;
    v[2] += a.x * part.z;
    v[3] += a.z * part.w;
}

/* Turns (m, l) of n partial results of 16 columns into their weights (w, -) in the whole, 1 / sum
 * included if `last`. A warp has 2 columns, 16 lanes to each, which share the parts. Returns the
 * whole's (m, l) of column 2 warp + lane % 2. All of the math threads meet after. */
static __device__ __forceinline__ float2 weigh(float2 (*stats)[16], int n, bool last)
{
    int lane = threadIdx.x % 32, col = threadIdx.x / 32 * 2 + lane % 2;
    float m = -INFINITY, l = 0;

    for (int i = lane / 2; i < n; i += 16)
        m = fmaxf(m, stats[i][col].x);
#pragma unroll
    for (int step = 2; step < 32; step *= 2)
        m = fmaxf(m, __shfl_xor_sync(~0u, m, step));
    for (int i = lane / 2; i < n; i += 16) {
        float w = m == -INFINITY ? 0 : exp2_fast(stats[i][col].x - m);
        l += w * stats[i][col].y;
        stats[i][col].x = w;
    }
#pragma unroll
    for (int step = 2; step < 32; step *= 2)
        l += __shfl_xor_sync(~0u, l, step);
    if (last) {
        float scale = l > 0 ? __fdividef(1, l) : 0;
        for (int i = lane / 2; i < n; i += 16)
            stats[i][col].x *= scale;
    }
    named_sync(MATH_BARRIER, MATH_THREADS);
    return make_float2(m, l);
}

/* ---- output ---------------------------------------------------------------------------------- */

/* A unit, the place-th of this block's: rounded, turned around. FP8's rows stand otherwise: see
 * mla_few_fp8.cuh. */
template <class S>
static __device__ __forceinline__ void turn_unit(uint8_t *turned, int place, const float (&v)[4])
{
    int warp = threadIdx.x % GROUP_THREADS / 32, lane = threadIdx.x % 32;
    uint8_t *to = turned + place * 1024;

    if constexpr (S::FP8) {
        int chunk = 2 * warp + lane / 16, word = lane / 4 % 4 * 4;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = lane % 4 * 2 + e;
            *(uint32_t *)(to + row * 128 + ((chunk ^ row) << 4) + word) = pack(v[e], v[2 + e]);
        }
    } else {
        /* Lane l names row l % 8 of matrix l / 8: rows 8 i .. of O^T. */
        int row = lane % 8, chunk = 2 * warp + lane / 8 % 2;
        asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(
                         smem_u32(to) + row * 128 + ((chunk ^ row) << 4)),
                     "r"(pack(v[0], v[1])), "r"(pack(v[2], v[3]))
                     : "memory");
    }
}

/* What was turned, to global memory. */
template <class S>
static __device__ __forceinline__ void write_output(const params &p, const piece &x,
                                                    const merge_place<S> &at)
{
    int first = at.first, own = at.own;

    named_sync(MATH_BARRIER, MATH_THREADS);
#pragma unroll 4
    for (int i = threadIdx.x; i < S::ROUNDS * own * 64; i += MATH_THREADS) {
        int place = i / 64, round = S::ROUNDS == 1 ? 0 : place >= own;
        int unit = first + place - round * own, in_unit = i / 8 % 8, chunk = i % 8;
        int row = 16 * round + unit % 2 * 8 + in_unit;
        if (row < x.rows)
            *(uint4 *)(p.out + (x.out_row + row) * S::LATENT + unit / 2 * 64 + chunk * 8) =
                *(uint4 *)(at.turned + place * 1024 + in_unit * 128 + ((chunk ^ in_unit) << 4));
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
static __device__ __forceinline__ float4 *partial_of(const params &p, int slot, int round, int unit)
{
    return p.partials + (((int64_t)slot * S::ROUNDS + round) * S::UNITS + unit) * GROUP_THREADS +
           threadIdx.x % GROUP_THREADS;
}

template <class S>
static __device__ __forceinline__ float2 *stats_of(const params &p, int slot, int rank, int round)
{
    return p.stats + ((int64_t)slot * MAX_CLUSTER + rank) * S::N + 16 * round;
}

/* ---- of a block that is a cluster by itself -------------------------------------------------- */

template <class S>
static __device__ __forceinline__ void emit_alone(const params &p, const piece &x,
                                                  const merge_place<S> &at, const state<S> &st)
{
    int slot = slot_of(x, x.part);
    float scale[S::COLUMNS];

#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++)
        scale[c] = x.parts > 1 ? 1 : st.l[c] > 0 ? __fdividef(1, st.l[c]) : 0;
#pragma unroll
    for (int r = 0; r < S::ROUNDS; r++)
#pragma unroll
        for (int u = 0; u < 2 * S::MINE; u++) {
            int unit = group() * (2 * S::MINE) + u, c = 4 * r + u % 2 * 2;
            const float *o = st.o[u / 2] + 8 * r + u % 2 * 4;
            float v[4] = {o[0] * scale[c], o[1] * scale[c + 1], o[2] * scale[c],
                          o[3] * scale[c + 1]};
            if (x.parts == 1)
                turn_unit<S>(at.turned, r * S::UNITS + unit, v);
            else
                __stcg(partial_of<S>(p, slot, r, unit), make_float4(v[0], v[1], v[2], v[3]));
        }
    if (threadIdx.x < 4)
#pragma unroll
        for (int c = 0; c < S::COLUMNS; c++) {
            float2 ml = make_float2(st.m[c], st.l[c]);
            if (x.parts == 1)
                write_lse(p, x, column(c), ml);
            else
                __stcg(stats_of<S>(p, slot, 0, 0) + column(c), ml);
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
static __device__ __forceinline__ void send(shared<S> &s, const ring<S::STAGES> &tiles,
                                            const state<S> &st, const merge_place<S> &at)
{
    int warp = threadIdx.x / 32, thread = threadIdx.x % GROUP_THREADS;
    uint32_t received = smem_u32(&s.received), rooms[S::ROUNDS];

#pragma unroll
    for (int r = 0; r < S::ROUNDS; r++)
        rooms[r] = smem_u32(room_of<S>(s, tiles, r) + thread);
    /* Four lanes of a warp know the sums of all columns: warp w tells blocks w and w + 8. */
    if (threadIdx.x % 32 < 4)
        for (int to = warp; to < at.cluster; to += MATH_THREADS / 32)
#pragma unroll
            for (int c = 0; c < S::COLUMNS; c++)
                send_2(cluster_map(smem_u32(&s.stats[c / 4][at.rank][column(c % 4)]), to),
                       cluster_map(received, to), st.m[c], st.l[c]);
#pragma unroll
    for (int u = 0; u < 2 * S::MINE; u++) {
        uint2 route = s.routes[group() * (2 * S::MINE) + u];
#pragma unroll
        for (int r = 0; r < S::ROUNDS; r++)
            send_4(rooms[r] + route.x + route.y, received + route.x,
                   st.o[u / 2] + 8 * r + u % 2 * 4);
    }
}

/* Sums what the cluster sent of columns 16 round .. . The groups take turns. */
template <class S>
static __device__ __forceinline__ void gather(const params &p, shared<S> &s, const float4 *room,
                                              const piece &x, const merge_place<S> &at, int round)
{
    int own = at.own, first = at.first, slot = slot_of(x, x.part);
    int lane = threadIdx.x % 32, col = threadIdx.x / 32 * 2 + lane % 2;
    float2 ml = weigh(s.stats[round], at.cluster, x.parts == 1);

    if (lane < 2 && x.parts > 1)
        __stcg(stats_of<S>(p, slot, at.rank, round) + col, ml);
    if (lane < 2 && x.parts == 1 && at.rank == 0)
        write_lse(p, x, 16 * round + col, ml);
#pragma unroll 1
    for (int i = group() ^ round; i < own; i += 2) {
        const float4 *from = room + i * GROUP_THREADS + threadIdx.x % GROUP_THREADS;
        float v[4] = {};
#pragma unroll 4
        for (int k = 0; k < at.cluster; k++)
            add_part(v, from[k * own * GROUP_THREADS], s.stats[round][k], (first + i) % 2);
        if (x.parts == 1)
            turn_unit<S>(at.turned, round * own + i, v);
        else
            __stcg(partial_of<S>(p, slot, round, first + i), make_float4(v[0], v[1], v[2], v[3]));
    }
}

template <class S>
static __device__ __forceinline__ void exchange(const params &p, shared<S> &s,
                                                const ring<S::STAGES> &tiles, const piece &x,
                                                merge_place<S> &at, const state<S> &st)
{
    if (threadIdx.x == 0)
        mbar_arrive_expect(smem_u32(&s.received),
                           S::ROUNDS * at.cluster * (at.own * 2048 + 16 * 8));
    mbar_wait_cluster(smem_u32(&s.granted), at.exchanges & 1);
    send<S>(s, tiles, st, at);
    mbar_wait_cluster(smem_u32(&s.received), at.exchanges & 1);
    at.exchanges++;
#pragma unroll 1
    for (int r = 0; r < S::ROUNDS; r++)
        gather<S>(p, s, room_of<S>(s, tiles, r), x, at, r);
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

/* Columns 16 round .. of all parts, this block's units. `stats`: room for (parts, 16). */
template <class S>
static __device__ __forceinline__ void merge_parts(const params &p, float2 (*stats)[16],
                                                   const piece &x, const merge_place<S> &at,
                                                   int round)
{
    int own = at.own, first = at.first, lane = threadIdx.x % 32;
    int col = threadIdx.x / 32 * 2 + lane % 2;
    float4 part[BATCH];
    auto read = [&](int i, int begin) {
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            part[k] =
                __ldcg(partial_of<S>(p, slot_of(x, min(begin + k, x.parts - 1)), round, first + i));
    };

    for (int i = lane / 2; i < x.parts; i += 16)
        stats[i][col] = __ldcg(stats_of<S>(p, slot_of(x, i), at.rank, round) + col);
    int i = group() ^ round & 1;
    if (i < own)
        read(i, 0);
    float2 ml = weigh(stats, x.parts, true);
    if (lane < 2 && at.rank == 0)
        write_lse(p, x, 16 * round + col, ml);
#pragma unroll 1
    for (; i < own; i += 2) {
        float v[4] = {};
#pragma unroll 1
        for (int begin = 0; begin < x.parts; begin += BATCH) {
            if (begin > 0 || i >= 2)
                read(i, begin);
#pragma unroll
            for (int k = 0; k < BATCH; k++)
                if (begin + k < x.parts)
                    add_part(v, part[k], stats[begin + k], (first + i) % 2);
        }
        turn_unit<S>(at.turned, round * own + i, v);
    }
    named_sync(MATH_BARRIER, MATH_THREADS);
}

/* ---- the end of a piece ---------------------------------------------------------------------- */

/* Sums over a column of what its threads have. */
template <class S> static __device__ __forceinline__ void sum_columns(shared<S> &s, state<S> &st)
{
    float(*by_warp)[S::N] = s.by_warp[group()];

#pragma unroll
    for (int step = 4; step < 32; step *= 2)
#pragma unroll
        for (int c = 0; c < S::COLUMNS; c++)
            st.l[c] += __shfl_xor_sync(~0u, st.l[c], step);
    sync_group(); /* the maxima were read */
    if (threadIdx.x % 32 < 4)
#pragma unroll
        for (int c = 0; c < S::COLUMNS; c++)
            by_warp[threadIdx.x % GROUP_THREADS / 32][column(c)] = st.l[c];
    sync_group();
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++) {
        const float *at = &by_warp[0][column(c)];
        st.l[c] = at[0] + at[S::N] + at[2 * S::N] + at[3 * S::N];
    }
    sync_group();
}

template <class S>
static __device__ __forceinline__ void finish(const params &p, shared<S> &s, const piece &x,
                                              ring<S::STAGES> &tiles, merge_place<S> &at,
                                              state<S> &st)
{
    bool whole = x.parts == 1;

    static_assert(S::ROUND_BYTES <= S::STAGE_BYTES &&
                      MAX_SMS * 16 * sizeof(float2) <= S::STAGE_BYTES,
                  "a stage holds what merging needs");
    sum_columns<S>(s, st);
    if (x.scratch)
        for (int i = 0; i < S::ROOMS; i++) {
            ring<S::STAGES> room = tiles.next(i);
            mbar_wait(smem_u32(&s.tile_full[room.stage]), room.phase);
        }
    if (at.cluster == 1)
        emit_alone<S>(p, x, at, st);
    else
        exchange<S>(p, s, tiles, x, at, st);
    if (!whole && arrived_last<S>(p, s, x, at.rank)) {
#pragma unroll 1
        for (int r = 0; r < S::ROUNDS; r++)
            merge_parts<S>(p, (float2(*)[16])s.tiles[tiles.stage], x, at, r);
        whole = true;
    }
    if (whole)
        write_output<S>(p, x, at);
    if (x.scratch) {
        fence_async();
        for (int i = 0; i < S::ROOMS; i++)
            release<S>(s, tiles);
    }
}

/* ---- the kernel ------------------------------------------------------------------------------ */

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
    for (int b = 0; b < S::MINE; b++)
#pragma unroll
        for (int i = 0; i < S::N / 2; i++)
            st.o[b][i] = 0;
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++)
        st.m[c] = -INFINITY, st.l[c] = 0;

    find_limits<S>(p, x, limits);
#pragma unroll 1
    for (int i = 0; i < x.tiles; i++) {
        int token = x.begin + i * TILE, valid = min(x.end - token, (int)TILE);
        uint8_t *tile = s.tiles[at.stage];
        float scale[S::FP8 ? S::GROUPS : 1][2];

        mbar_wait(smem_u32(&s.tile_full[at.stage]), at.phase);
        if (i == x.tiles - 1)
            grant<S>(s, at.next(), cluster);
        if (valid > 0) {
            if constexpr (S::FP8) {
                read_scales<S>(scale, tile, valid);
                half_scores_fp8<S>(d, tile, s, scale);
            } else {
                if (valid < TILE)
                    clear_rows<S>(tile, valid);
                half_scores<S>(d, smem_u32(tile), q);
            }
            add_halves<S>(d, s, i % 2, p.scale_log2);
            if (valid < TILE || token + TILE > all_see)
                mask<S>(d, limits, token);
            softmax<S>(d, st, s);
#pragma unroll
            for (int g = 0; g < S::P_TILES; g++)
                store_p<S>(d, smem_u32(s.p[group()][g]), S::FP8 ? scale[g][0] * 0x1p60f : 1,
                           S::FP8 ? scale[g][1] * 0x1p60f : 1);
            if constexpr (!S::FP8)
                fence_async();
            sync_group();
            if constexpr (S::FP8)
                values_fp8<S>(st, smem_u32(tile), smem_u32(s.p[group()][0]));
            else
                values<S>(st, smem_u32(tile), smem_u32(s.p[group()][0]));
        }
        release<S>(s, at);
    }
    if (x.tiles == 0)
        grant<S>(s, at, cluster);
    if constexpr (S::FP8)
        finish_values<S>(st);
}

template <class S> static __device__ __forceinline__ piece next_piece(shared<S> &s, ring<2> &works)
{
    mbar_wait(smem_u32(&s.work_full[works.stage]), works.phase);
    piece x = s.work[works.stage];
    __syncwarp();
    return x;
}

template <class S>
static __device__ __forceinline__ void decode_pieces(const params &p, shared<S> &s, int rank,
                                                     int cluster)
{
    ring<S::STAGES> tiles;
    ring<2> works;
    merge_place<S> at = {rank, cluster, first_unit<S>(rank, cluster), 0, 0, NULL};
    state<S> st;

    at.own = first_unit<S>(rank + 1, cluster) - at.first;
    if (cluster > 1) /* the others' barriers are there */
        cluster_wait();
    launch_wait();
    piece x = next_piece<S>(s, works);
    if (!S::FP8 && x.rows > 0)
        ask_queries<S>(p, s.q[0], x);
    if (!S::FP8)
        took_piece<S>(s, works);
#pragma unroll 1
    for (int n = 0; x.rows > 0; n++) {
        uint8_t *q = s.q[n & S::Q_STAGES - 1];
        if constexpr (S::FP8) {
            store_queries<S>(p, s, x, works);
        } else {
            if (n > 0 && S::Q_STAGES == 1)
                ask_queries<S>(p, q, x);
            await_queries();
        }
        attend<S>(p, s, x, smem_u32(q), tiles, cluster, st);
        piece after = next_piece<S>(s, works);
        if constexpr (!S::FP8) {
            took_piece<S>(s, works);
            if (S::Q_STAGES > 1 && after.rows > 0)
                ask_queries<S>(p, s.q[n + 1 & S::Q_STAGES - 1], after);
        }
        at.turned = q;
        finish<S>(p, s, x, tiles, at, st);
        named_sync(MATH_BARRIER, MATH_THREADS); /* what was turned has been read */
        x = after;
    }
}

template <class S> static __device__ void init_barriers(shared<S> &s, int cluster)
{
    for (int i = 0; i < S::STAGES; i++) {
        mbar_init(smem_u32(&s.tile_full[i]), S::FP8 && S::RAW_ROW != S::ROW_BYTES ? 32 : 1);
        mbar_init(smem_u32(&s.tile_empty[i]), MATH_THREADS / 32);
    }
    for (int i = 0; i < 2; i++) {
        mbar_init(smem_u32(&s.work_full[i]), 1);
        mbar_init(smem_u32(&s.work_empty[i]), MATH_THREADS / 32);
    }
    mbar_init(smem_u32(&s.granted), cluster);
    mbar_init(smem_u32(&s.received), 1);
    mbar_init_fence();
}

template <class S>
__global__ void __launch_bounds__(THREADS, 1) decode(const __grid_constant__ params p)
{
    extern __shared__ __align__(1024) uint8_t memory[]; /* begins where the window does: aligned */
    shared<S> &s = *(shared<S> *)memory;
    int rank = (int)cluster_rank(), cluster = (int)cluster_size();

    launch_next();
    if (threadIdx.x == MATH_THREADS) {
        init_barriers<S>(s, cluster);
        if (!S::FP8)
            tma_prefetch_map(p.ragged ? &p.half : &p.page);
        if (smem_u32(memory) % 1024 != 0)
            __trap();
    }
    make_routes<S>(s, rank, cluster);
    __syncthreads();
    if (cluster > 1)
        cluster_arrive();
    if (threadIdx.x >= MATH_THREADS) {
        bring_cache<S>(p, s, rank, cluster);
        if (cluster > 1)
            cluster_wait();
    } else {
        decode_pieces<S>(p, s, rank, cluster);
    }
}

template <int N, int LATENT, int ROPE, int FORMAT> static variant make_variant()
{
    typedef shape<N, LATENT, ROPE, FORMAT> S;
    static_assert(sizeof(shared<S>) <= 232448, "shared memory of a block");

    return {decode<S>, THREADS, sizeof(shared<S>)};
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

} // namespace mla_few
