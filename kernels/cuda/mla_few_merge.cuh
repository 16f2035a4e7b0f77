/* How partial results become one, in the decode kernel for few query rows. A partial
 * result is (m, l, o) of a row over some tokens: it stands for exp2(m) * (l, o). Always merged in
 * the order of the tokens, so that equal inputs give equal bits.
 *
 * A round is 16 columns (query rows); a unit of it is 64 rows of O^T and 8 of these columns: a
 * float4 of each thread of a group, columns 8 j + 2 (lane % 4) + e at [2 i + e]. Of the 16 units
 * (of latent 512) each block of a cluster owns a stretch.
 * Within a cluster: each block tells all others its (m, l), then writes every unit into the shared
 * memory of the block that owns it: a stage of the ring that is passed on for this, once its owner
 * has granted it to everybody. An owner makes weights of what it has heard, waits until all have
 * written, then sums. No block is written to after that, so it may end.
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
                                                int half, int t)
{
    float4 a = *(const float4 *)(w + 8 * half + column(0, t));

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
    int t = thread(), lane = t % 32, col = t / 32 * 2 + lane % 2;
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
static __device__ __forceinline__ void turn_unit(uint8_t *turned, int place, const float (&v)[4],
                                                 int t)
{
    int warp = t % GROUP_THREADS / 32, lane = t % 32;
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
    int first = at.first, own = at.own, t = thread();

    named_sync(MATH_BARRIER, MATH_THREADS);
#pragma unroll 4
    for (int i = t; i < S::ROUNDS * own * 64; i += MATH_THREADS) {
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
static __device__ __forceinline__ float4 *partial_of(const params &p, int slot, int round, int unit,
                                                     int t)
{
    return p.partials + (((int64_t)slot * S::ROUNDS + round) * S::UNITS + unit) * GROUP_THREADS +
           t % GROUP_THREADS;
}

template <class S>
static __device__ __forceinline__ float2 *stats_of(const params &p, int slot, int rank, int round)
{
    return p.stats + ((int64_t)slot * MAX_CLUSTER + rank) * S::N + 16 * round;
}

/* ---- of a block that is a cluster by itself -------------------------------------------------- */

template <class S>
static __device__ __forceinline__ void emit_alone(const params &p, const shared<S> &s,
                                                  const piece &x, const merge_place<S> &at,
                                                  const state<S> &st)
{
    int slot = slot_of(x, x.part), t = thread();
    float scale[S::COLUMNS];

#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++) {
        float l = whole_of<S>(s, column(c, t)).y;
        scale[c] = x.parts > 1 ? 1 : l > 0 ? __fdividef(1, l) : 0;
    }
#pragma unroll
    for (int r = 0; r < S::ROUNDS; r++)
#pragma unroll
        for (int u = 0; u < 2 * S::MINE; u++) {
            int unit = t / GROUP_THREADS * (2 * S::MINE) + u, c = 4 * r + u % 2 * 2;
            const float *o = st.o[u / 2] + 8 * r + u % 2 * 4;
            float v[4] = {o[0] * scale[c], o[1] * scale[c + 1], o[2] * scale[c],
                          o[3] * scale[c + 1]};
            if (x.parts == 1)
                turn_unit<S>(at.turned, r * S::UNITS + unit, v, t);
            else
                __stcg(partial_of<S>(p, slot, r, unit, t), make_float4(v[0], v[1], v[2], v[3]));
        }
    if (t < S::N) {
        float2 ml = whole_of<S>(s, t);
        if (x.parts == 1)
            write_lse(p, x, t, ml);
        else
            __stcg(stats_of<S>(p, slot, 0, 0) + t, ml);
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

/* Sends this block's maxima and sums to every block of the cluster, once it may: ahead of the
 * output, so that weights are known when that is there. Warp w tells blocks w and w + 8. */
template <class S>
static __device__ __forceinline__ void tell(shared<S> &s, const merge_place<S> &at)
{
    int t = thread(), col = t % 16, to = t / 32 + t % 32 / 16 * 8;

    mbar_wait_cluster(smem_u32(&s.granted), at.exchanges & 1);
    if (to < at.cluster)
#pragma unroll
        for (int r = 0; r < S::ROUNDS; r++) {
            float2 ml = whole_of<S>(s, 16 * r + col);
            send_2(cluster_map(smem_u32(&s.stats[r][at.rank][col]), to),
                   cluster_map(smem_u32(&s.heard), to), ml.x, ml.y);
        }
    __syncwarp();
}

template <class S>
static __device__ __forceinline__ void send(shared<S> &s, const ring<S::STAGES> &tiles,
                                            const state<S> &st, const merge_place<S> &at)
{
    int t = thread();
    uint32_t received = smem_u32(&s.received), rooms[S::ROUNDS];

#pragma unroll
    for (int r = 0; r < S::ROUNDS; r++)
        rooms[r] = smem_u32(room_of<S>(s, tiles, r) + t % GROUP_THREADS);
#pragma unroll
    for (int u = 0; u < 2 * S::MINE; u++) {
        uint2 route = s.routes[t / GROUP_THREADS * (2 * S::MINE) + u];
#pragma unroll
        for (int r = 0; r < S::ROUNDS; r++)
            send_4(rooms[r] + route.x + route.y, received + route.x,
                   st.o[u / 2] + 8 * r + u % 2 * 4);
    }
}

/* Weights of what the cluster's blocks send of columns 16 round .. . */
template <class S>
static __device__ __forceinline__ void weigh_cluster(const params &p, shared<S> &s, const piece &x,
                                                     const merge_place<S> &at, int round)
{
    int t = thread(), lane = t % 32, col = t / 32 * 2 + lane % 2;
    float2 ml = weigh(s.stats[round], at.cluster, x.parts == 1);

    if (lane < 2 && x.parts > 1)
        __stcg(stats_of<S>(p, slot_of(x, x.part), at.rank, round) + col, ml);
    if (lane < 2 && x.parts == 1 && at.rank == 0)
        write_lse(p, x, 16 * round + col, ml);
}

enum { BATCH = 8 }; /* parts that are read at a time */

/* Sums what the cluster sent of columns 16 round .. . The groups take turns. */
template <class S>
static __device__ __forceinline__ void gather(const params &p, shared<S> &s, const float4 *room,
                                              const piece &x, const merge_place<S> &at, int round)
{
    int own = at.own, first = at.first, slot = slot_of(x, x.part), t = thread();

#pragma unroll 1
    for (int i = t / GROUP_THREADS ^ round; i < own; i += 2) {
        const float4 *from = room + i * GROUP_THREADS + t % GROUP_THREADS;
        float v[4] = {};
#pragma unroll 1
        for (int begin = 0; begin < at.cluster; begin += BATCH) {
            float4 part[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; k++)
                part[k] = from[min(begin + k, at.cluster - 1) * own * GROUP_THREADS];
#pragma unroll
            for (int k = 0; k < BATCH; k++)
                if (begin + k < at.cluster)
                    add_part(v, part[k], s.stats[round][begin + k], (first + i) % 2, t);
        }
        if (x.parts == 1)
            turn_unit<S>(at.turned, round * own + i, v, t);
        else
            __stcg(partial_of<S>(p, slot, round, first + i, t),
                   make_float4(v[0], v[1], v[2], v[3]));
    }
}

template <class S>
static __device__ __forceinline__ void exchange(const params &p, shared<S> &s,
                                                const ring<S::STAGES> &tiles, const piece &x,
                                                merge_place<S> &at, const state<S> &st)
{
    if (threadIdx.x == 0) {
        mbar_arrive_expect(smem_u32(&s.heard), S::ROUNDS * at.cluster * 16 * 8);
        mbar_arrive_expect(smem_u32(&s.received), S::ROUNDS * at.cluster * at.own * 2048);
    }
    send<S>(s, tiles, st, at);
    mbar_wait_cluster(smem_u32(&s.heard), at.exchanges & 1);
#pragma unroll 1
    for (int r = 0; r < S::ROUNDS; r++)
        weigh_cluster<S>(p, s, x, at, r);
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

/* Columns 16 round .. of all parts, this block's units. `stats`: room for (parts, 16). */
template <class S>
static __device__ __forceinline__ void merge_parts(const params &p, float2 (*stats)[16],
                                                   const piece &x, const merge_place<S> &at,
                                                   int round)
{
    int own = at.own, first = at.first, t = thread(), lane = t % 32;
    int col = t / 32 * 2 + lane % 2;
    float4 part[BATCH];
    auto read = [&](int i, int begin) {
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            part[k] = __ldcg(
                partial_of<S>(p, slot_of(x, min(begin + k, x.parts - 1)), round, first + i, t));
    };

    for (int i = lane / 2; i < x.parts; i += 16)
        stats[i][col] = __ldcg(stats_of<S>(p, slot_of(x, i), at.rank, round) + col);
    int i = t / GROUP_THREADS ^ round & 1;
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
                    add_part(v, part[k], stats[begin + k], (first + i) % 2, t);
        }
        turn_unit<S>(at.turned, round * own + i, v, t);
    }
    named_sync(MATH_BARRIER, MATH_THREADS);
}

/* ---- the end of a piece ---------------------------------------------------------------------- */

template <class S>
static __device__ __forceinline__ void finish(const params &p, shared<S> &s, const piece &in_shared,
                                              ring<S::STAGES> &tiles, merge_place<S> &at,
                                              state<S> &st)
{
    const piece x = in_shared;
    bool whole = x.parts == 1;

    static_assert(S::ROUND_BYTES <= S::STAGE_BYTES &&
                      MAX_SMS * 16 * sizeof(float2) <= S::STAGE_BYTES,
                  "a stage holds what merging needs");
    if (x.scratch)
        for (int i = 0; i < S::ROOMS; i++) {
            ring<S::STAGES> room = tiles.next(i);
            mbar_wait(smem_u32(&s.tile_full[room.stage]), room.phase);
        }
    if (at.cluster == 1)
        emit_alone<S>(p, s, x, at, st);
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

/* This block's part of a piece. `ahead` is called before the last tile is waited for, `tell` once
 * whole_of() is known. */
template <class S, class Ahead, class Tell>
static __device__ __forceinline__ void attend(const params &p, shared<S> &s, const piece &x,
                                              uint32_t q, ring<S::STAGES> &at, int cluster,
                                              state<S> &st, Ahead ahead, Tell tell)
{
    float d[S::SCORED / 2];
    constexpr bool EARLY = !S::FP8; /* told before the last values: FP8's loop would be slower */
    bool told = false;
    const int begin = x.begin, end = x.end, n_tiles = x.tiles;
    int all_see = p.causal ? x.kv_len - x.q_len + 1 : x.kv_len; /* tokens before it: every row */

#pragma unroll
    for (int b = 0; b < S::MINE; b++)
#pragma unroll
        for (int i = 0; i < S::N / 2; i++)
            st.o[b][i] = 0;
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++)
        st.m[c] = -INFINITY, st.l[c] = 0;

#pragma unroll 1
    for (int i = 0; i < n_tiles; i++) {
        int token = begin + i * TILE, valid = min(end - token, (int)TILE);
        uint8_t *tile = s.tiles[at.stage];
        float scale[S::FP8 ? S::GROUPS : 1][2];

        if (i == n_tiles - 1)
            ahead();
        mbar_wait(smem_u32(&s.tile_full[at.stage]), at.phase);
        if (i == n_tiles - 1)
            grant<S>(s, at.next(), cluster);
        if (valid > 0) {
            if constexpr (S::FP8) {
                read_scales<S>(scale, tile, valid);
                half_scores_fp8<S>(d, tile, s, scale);
            } else {
                if (valid < TILE)
                    clear_rows<S>(tile, valid);
                if constexpr (S::BY_COLUMNS)
                    column_scores<S>(d, smem_u32(tile), q, p.scale_log2);
                else
                    half_scores<S>(d, smem_u32(tile), q);
            }
            if constexpr (!S::BY_COLUMNS)
                add_halves<S>(d, s, i % 2, p.scale_log2);
            if (valid < TILE || token + TILE > all_see)
                mask<S>(d, s, token);
            softmax<S>(d, st, s);
            if (EARLY && i == n_tiles - 1)
                sum_columns<S>(s, st);
            uint8_t *probabilities = s.p[S::BY_COLUMNS ? 0 : group()][0];
#pragma unroll
            for (int g = 0; g < S::P_TILES; g++)
                store_p<S>(d,
                           smem_u32(probabilities + g * S::N * 128) +
                               (S::BY_COLUMNS ? group() * S::SCORED * 128 : 0),
                           S::FP8 ? scale[g][0] * 0x1p60f : 1, S::FP8 ? scale[g][1] * 0x1p60f : 1);
            if constexpr (!S::FP8)
                fence_async();
            if constexpr (S::BY_COLUMNS) {
                named_sync(MATH_BARRIER, MATH_THREADS);
                follow_maxima<S>(st, s);
            } else {
                sync_group();
            }
            if (EARLY && i == n_tiles - 1) {
                tell();
                told = true;
            }
            if constexpr (S::FP8)
                values_fp8<S>(st, smem_u32(tile), smem_u32(probabilities));
            else
                values<S>(st, smem_u32(tile), smem_u32(probabilities));
        }
        release<S>(s, at);
    }
    if (n_tiles == 0) {
        ahead();
        grant<S>(s, at, cluster);
    }
    if (!told) { /* or nothing of the last tile is this block's */
        sum_columns<S>(s, st);
        named_sync(MATH_BARRIER, MATH_THREADS);
        tell();
    }
    if constexpr (S::FP8)
        finish_values<S>(st);
}

/* The piece at this place, which stays there until the place is released. */
template <class S>
static __device__ __forceinline__ const piece &await_piece(shared<S> &s, const ring<WORKS> &works)
{
    mbar_wait(smem_u32(&s.work_full[works.stage]), works.phase);
    return s.work[works.stage];
}

/* A piece's query rows on their way to L2. */
template <class S>
static __device__ __forceinline__ void hint_queries(const params &p, const piece &x)
{
    const char *from = (const char *)(p.q + x.out_row * (S::LATENT + S::ROPE));
    int bytes = x.rows * (S::LATENT + S::ROPE) * 2;

    for (int i = thread() * 128; i < bytes; i += MATH_THREADS * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
}

/* The query rows of the piece after are asked for, if there is one and room for them. */
template <class S>
static __device__ __forceinline__ void look_ahead(const params &p, shared<S> &s,
                                                  const ring<WORKS> &works, uint8_t *q)
{
    const piece &x = await_piece<S>(s, works);

    if (x.rows == 0)
        return;
    if constexpr (S::Q_STAGES > 1) {
        ask_queries<S>(route_queries<S>(p, q, x));
    } else {
        hint_queries<S>(p, x);
    }
}

template <class S>
static __device__ __forceinline__ void decode_pieces(const params &p, shared<S> &s, int rank,
                                                     int cluster)
{
    ring<S::STAGES> tiles;
    ring<WORKS> works;
    merge_place<S> at = {rank, cluster, first_unit<S>(rank, cluster), 0, 0, NULL};
    state<S> st;

    at.own = first_unit<S>(rank + 1, cluster) - at.first;
    if (cluster > 1) /* the others' barriers are there */
        cluster_wait();
    int rows = await_piece<S>(s, works).rows;
    query_route route = route_queries<S>(p, s.q[0], s.work[0]);
    if (p.settled && rows > 0)
        hint_queries<S>(p, s.work[0]);
    /* Nothing of this kernel may be left when the ones before aren't done, so one block waits. */
    if (rows > 0 || blockIdx.x == 0)
        launch_wait();
    if (!S::FP8 && rows > 0)
        ask_queries<S>(route);
    arrive_warp(s.asked);
    if (p.next_late)
        launch_next();
#pragma unroll 1
    for (int n = 0; await_piece<S>(s, works).rows > 0; n++) {
        const piece &x = s.work[works.stage];
        uint8_t *q = s.q[n & S::Q_STAGES - 1];
        find_limits<S>(p, s, x);
        if constexpr (S::FP8) {
            store_queries<S>(p, s, x);
        } else {
            await_queries();
        }
        attend<S>(
            p, s, x, smem_u32(q), tiles, cluster, st,
            [&] { look_ahead<S>(p, s, works.next(), s.q[n + 1 & S::Q_STAGES - 1]); },
            [&] {
                if (cluster > 1)
                    tell<S>(s, at);
            });
        at.turned = q;
        finish<S>(p, s, x, tiles, at, st);
        named_sync(MATH_BARRIER, MATH_THREADS); /* what was turned has been read */
        arrive_warp(s.work_empty[works.stage]);
        works.advance();
    }
}

template <class S> static __device__ void init_barriers(shared<S> &s, int cluster)
{
    for (int i = 0; i < S::STAGES; i++) {
        mbar_init(smem_u32(&s.tile_full[i]), S::FP8 && S::RAW_ROW != S::ROW_BYTES ? 32 : 1);
        mbar_init(smem_u32(&s.tile_empty[i]), MATH_THREADS / 32);
    }
    mbar_init(smem_u32(&s.asked), MATH_THREADS / 32);
    for (int i = 0; i < WORKS; i++) {
        mbar_init(smem_u32(&s.work_full[i]), 1);
        mbar_init(smem_u32(&s.work_empty[i]), MATH_THREADS / 32);
    }
    mbar_init(smem_u32(&s.granted), cluster);
    mbar_init(smem_u32(&s.heard), 1);
    mbar_init(smem_u32(&s.received), 1);
    mbar_init_fence();
}

/* Each line of the parameters by a warp of its own: the one that plans would wait for one after the
 * other. */
static __device__ __forceinline__ void touch_params(const params &p)
{
    switch (threadIdx.x / 32) {
    case 1:
        asm volatile("" ::"r"(p.stream_pages), "r"(p.seqs.n_seqs), "l"(p.seqs.q_starts));
        break;
    case 2:
        asm volatile("" ::"l"(p.seqs.block_tables), "l"(p.seqs.table_starts), "l"(p.pages));
        break;
    case 3:
        asm volatile("" ::"l"(p.q), "l"(p.out), "r"(p.heads), "r"(p.causal));
        break;
    case 4:
        asm volatile("" ::"r"(p.workers), "l"(p.counters), "l"(p.partials));
        break;
    }
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1) decode(const __grid_constant__ params p)
{
    extern __shared__ __align__(1024) uint8_t memory[]; /* begins where the window does: aligned */
    shared<S> &s = *(shared<S> *)memory;
    int rank = (int)cluster_rank(), cluster = (int)cluster_size();

    if (!p.next_late)
        launch_next();
    if (threadIdx.x >= MATH_THREADS) {
        if (cluster > 1) /* says nothing: the barriers are thread 0's */
            cluster_arrive_relaxed();
        if constexpr (S::UNEVEN)
            registers_lower<104>();
        if (threadIdx.x < MATH_THREADS + 32)
            bring_cache<S>(p, s, rank, cluster);
        if (cluster > 1)
            cluster_wait();
    } else {
        touch_params(p);
        if (threadIdx.x == 0) {
            init_barriers<S>(s, cluster);
            if (!S::FP8)
                tma_prefetch_map(p.ragged ? &p.half : &p.page);
            if (smem_u32(memory) % 1024 != 0)
                __trap();
        }
        __syncwarp();
        if (cluster > 1)
            cluster_arrive_relaxed();
        make_routes<S>(s, rank, cluster);
        named_arrive(READY_BARRIER, MATH_THREADS + 32);
        named_sync(MATH_BARRIER, MATH_THREADS);
        if constexpr (S::UNEVEN)
            registers_raise<200>();
        decode_pieces<S>(p, s, rank, cluster);
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

} // namespace mla_few
