/* The decode kernel for few query rows itself: its pieces one after the other, by the math warps;
 * the warp beside them that tells and weighs; which warp does what (see mla_few.cuh). */
#pragma once

#include "kernels/cuda/mla_few_merge.cuh"

namespace mla_few
{

/* ---- the kernel ------------------------------------------------------------------------------ */

template <class S> static __device__ __forceinline__ void clear(state<S> &st)
{
#pragma unroll
    for (int b = 0; b < S::MINE; b++)
#pragma unroll
        for (int i = 0; i < S::N / 2; i++)
            st.o[b][i] = 0;
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++)
        st.m[c] = -INFINITY, st.l[c] = 0;
}

/* This block's part of a piece. `ahead` is called before the last tile is waited for, `tell` once
 * sum_columns() has been. */
template <class S, class Ahead, class Tell>
static __device__ __forceinline__ void attend(const params &p, shared<S> &s, const piece &x,
                                              uint32_t q, ring<S::STAGES> &at, int cluster,
                                              state<S> &st, Ahead ahead, Tell tell)
{
    float one[1][S::SCORED / 2], (&d)[S::SCORED / 2] = one[0];
    constexpr bool EARLY = !S::FP8; /* told before the last values: FP8's loop would be slower */
    bool told = false;
    const int begin = x.begin, end = x.end, n_tiles = x.tiles;
    int all_see = p.causal ? x.kv_len - x.q_len + 1 : x.kv_len; /* tokens before it: every row */

#pragma unroll 1
    for (int i = 0; i < n_tiles; i++) {
        int token = begin + i * TILE, valid = min(end - token, (int)TILE);
        uint8_t *tile = s.tiles[at.stage];
        float halves[1][S::N / 2], (&half)[S::N / 2] = halves[0];

        const bool last = i == n_tiles - 1;
        if (last)
            ahead();
        mbar_wait(smem_u32(&s.tile_full[at.stage]), at.phase);
        if (last && !S::LEAN)
            grant<S>(s, at.next(), cluster);
        if (valid > 0) {
            if constexpr (S::FP8) {
                half_scores_fp8<S>(half, tile, s, valid);
            } else {
                if (valid < TILE)
                    clear_rows<S>(tile, valid);
                if constexpr (S::LEAN)
                    whole_scores<S>(d, smem_u32(tile), q, p.scale_log2);
                else
                    half_scores<S>(half, smem_u32(tile), q);
            }
            if constexpr (!S::LEAN)
                exchange_halves<S, 1>(one, halves, s, {tile}, i % 2, p.scale_log2);
            if (valid < TILE || token + TILE > all_see)
                mask<S>(d, s, token);
            auto publish_p = [&] {
                float exps[S::SCORED / 2];
                bool grown = softmax<S>(exps, d, st);
                if (EARLY && last)
                    sum_columns<S>(s, st);
                float scale[S::P_TILES][2] = {1, 1};
                if constexpr (S::FP8)
                    read_scales<S>(scale, tile, valid, S::BY_COLUMNS ? 0 : group<S>() * S::GROUPS);
#pragma unroll
                for (int g = 0; g < S::P_TILES; g++)
                    store_p<S>(
                        exps,
                        smem_u32(s.p[S::P_COPIES == 1 ? 0 : group<S>()][0] + g * S::N * 128) +
                            (S::BY_COLUMNS ? group<S>() * S::SCORED * 128 : 0),
                        S::FP8 ? scale[g][0] * 0x1p60f : 1, S::FP8 ? scale[g][1] * 0x1p60f : 1);
                if constexpr (!S::FP8 || S::BY_TILE)
                    fence_async();
                return meet<S>(grown);
            };
            uint8_t *probabilities = s.p[S::P_COPIES == 1 ? 0 : group<S>()][0];
            float before[S::SEEN];
#pragma unroll
            for (int c = 0; c < S::SEEN; c++)
                before[c] = st.l[c];
            if (!S::LAGS)
                raise_references<S, false>(one, st, s);
            else if (i == 0)
                raise_references<S, true>(one, st, s);
            if (last && S::LEAN)
                grant<S>(s, at, cluster);
            if (publish_p()) {
#pragma unroll
                for (int c = 0; c < S::SEEN; c++)
                    st.l[c] = before[c];
                raise_references<S, false>(one, st, s);
                publish_p();
                if (S::BY_COLUMNS)
                    follow_references<S>(st, s);
            }
            if (EARLY && last) {
                tell();
                told = true;
            }
            if constexpr (S::FP8)
                values_fp8<S>(st, smem_u32(tile),
                              smem_u32(probabilities) +
                                  (S::BY_COLUMNS ? group<S>() * S::GROUPS * S::N * 128 : 0));
            else
                values<S, 1>(st, {smem_u32(tile)}, {smem_u32(probabilities)});
        }
        if (!S::LEAN || !last) /* the last one is then finish()'s */
            release<S>(s, at);
    }
    if (n_tiles == 0) {
        ahead();
        grant<S>(s, at, cluster);
    }
    if (!told) { /* or nothing of the last tile is this block's */
        if (S::LEAN)
            grant<S>(s, at, cluster);
        sum_columns<S>(s, st);
        tell();
        sync_math<S>();
    }
    if constexpr (S::FP8)
        finish_values<S>(st);
}

/* attend() for a piece of two tiles (`pair`), which takes both together: they are there at about
 * the same time, and one after the other would wait for most of its steps. What stands where: the
 * second tile's probabilities in the first one's rope part, and merging's room in the queries, as
 * both have been multiplied by then. The tiles stay this block's until finish(). */
template <class S, class Ahead, class Tell>
static __device__ __forceinline__ void
attend_pair(const params &p, shared<S> &s, const piece &x, uint32_t q, const ring<S::STAGES> &at,
            int cluster, state<S> &st, Ahead ahead, Tell tell)
{
    uint8_t *const tile[2] = {s.tiles[at.stage], s.tiles[at.next().stage]};
    const uint32_t from[2] = {smem_u32(tile[0]), smem_u32(tile[1])};
    const int copy = S::P_COPIES == 1 ? 0 : group<S>(); /* of the probabilities */
    const uint32_t probabilities[2] = {smem_u32(s.p[copy]),
                                       from[0] + S::BLOCKS * TILE * 128 + copy * (S::N * 128)};
    int all_see = p.causal ? x.kv_len - x.q_len + 1 : x.kv_len;
    float half[2][S::N / 2], d[2][S::SCORED / 2];

#pragma unroll 1
    for (int i = 0; i < 2; i++) {
        ring<S::STAGES> place = at.next(i);
        mbar_wait(smem_u32(&s.tile_full[place.stage]), place.phase);
        if (x.begin + (i + 1) * TILE > x.end)
            clear_rows<S>(s.tiles[place.stage], max(x.end - x.begin - i * TILE, 0));
    }
    half_scores<S>(half, from, q);
    ahead();
    exchange_halves<S, 2>(d, half, s, tile, 0, p.scale_log2);
    grant<S>(s, at, cluster, 0);
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (x.begin + (i + 1) * TILE > min(x.end, all_see))
            mask<S>(d[i], s, x.begin + i * TILE);
    raise_references<S, true, 2>(d, st, s);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float exps[S::SCORED / 2];
        softmax<S>(exps, d[i], st);
        store_p<S>(exps, probabilities[i] + (S::BY_COLUMNS ? group<S>() * S::SCORED * 128 : 0), 1,
                   1);
    }
    sum_columns<S>(s, st);
    fence_async();
    sync_math<S>();
    tell();
    values<S, 2>(st, from, probabilities);
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

    for (int i = thread() * 128; i < bytes; i += S::MATH * 128)
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
    merge_place<S> at = {rank, cluster, first_unit<S>(rank, cluster)};
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
            clear<S>(st);
        } else {
            if (S::Q_STAGES == 1 && n > 0)
                ask_queries<S>(route_queries<S>(p, q, x));
            clear<S>(st);
            await_queries<S>();
        }
        auto ahead = [&] { look_ahead<S>(p, s, works.next(), s.q[n + 1 & S::Q_STAGES - 1]); };
        auto tell = [&] {
            if (cluster > 1)
                named_arrive(TOLD_BARRIER, S::TOLD);
        };
        bool together = S::TWO && x.pair;
        if constexpr (S::TWO)
            if (together)
                attend_pair<S>(p, s, x, smem_u32(q), tiles, cluster, st, ahead, tell);
        if (!together)
            attend<S>(p, s, x, smem_u32(q), tiles, cluster, st, ahead, tell);
        bool held = S::LEAN || together; /* the last tile */
        at.queries = q;
        at.turned = held ? s.tiles[tiles.stage] + S::STATS_BYTES : q;
        at.room = S::LEAN ? s.tiles[0] + S::BLOCKS * TILE * 128 : held ? q : s.tiles[tiles.stage];
        finish<S>(p, s, x, tiles, at, st);
        sync_math<S>(); /* what was turned has been read */
        arrive_warp(s.work_empty[works.stage]);
        works.advance();
    }
}

/* ---- the warp that tells and weighs ---------------------------------------------------------- */

/* Sends this block's maxima and sums of a round to every block of the cluster: ahead of the output,
 * so that weights are known when that is there. */
template <class S>
static __device__ __forceinline__ void tell_cluster(shared<S> &s, int rank, int cluster, int round)
{
    int lane = thread() % 32, col = lane % 16;
    uint32_t heard = smem_u32(&s.heard);
    float2 ml = whole_of<S>(s, 16 * round + col, 0);
    uint32_t place = smem_u32(&s.stats[round][rank][col]);

#pragma unroll 4
    for (int to = lane / 16; to < cluster; to += 2)
        send_2(cluster_map(place, to), cluster_map(heard, to),
               make_uint2(__float_as_uint(ml.x), __float_as_uint(ml.y)));
}

enum { SHARE = MAX_CLUSTER / 2 /* partial results of a column that a lane has of 16 */ };

/* As weigh(), of at most 16 results, by one warp: v[] those of column lane % 16 that are first +
 * 2 k, or (-infinity, 0). */
static __device__ __forceinline__ float2 weigh_few(float2 (&v)[SHARE], bool last)
{
    float m = -INFINITY, l = 0;

#pragma unroll
    for (int k = 0; k < SHARE; k++)
        m = fmaxf(m, v[k].x);
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 16));
#pragma unroll
    for (int k = 0; k < SHARE; k++) {
        v[k].x = m == -INFINITY ? 0 : exp2_fast(v[k].x - m);
        l += v[k].x * v[k].y;
    }
    l += __shfl_xor_sync(~0u, l, 16);
    float scale = !last ? 1 : l > 0 ? __fdividef(1, l) : 0;
#pragma unroll
    for (int k = 0; k < SHARE; k++)
        v[k].x *= scale;
    return make_float2(m, l);
}

/* Weights of what the cluster's blocks send of columns 16 round .., for weights_of(). */
template <class S>
static __device__ __forceinline__ void weigh_cluster(const params &p, shared<S> &s, const piece &x,
                                                     int rank, int cluster, int round)
{
    int lane = thread() % 32, col = lane % 16, first = lane / 16;
    float2 v[SHARE];

#pragma unroll
    for (int k = 0; k < SHARE; k++)
        v[k] = first + 2 * k < cluster ? s.stats[round][first + 2 * k][col]
                                       : make_float2(-INFINITY, 0);
    float2 ml = weigh_few(v, x.parts == 1);
    __syncwarp(); /* all has been read */
#pragma unroll
    for (int k = 0; k < SHARE; k++)
        weights_of<S>(s, round, col)[first + 2 * k] = v[k].x;
    if (lane < 16 && x.parts > 1)
        leave_2(stats_of<S>(p, slot_of(x, x.part), rank, round) + col, ml);
    if (lane < 16 && x.parts == 1 && rank == 0)
        write_lse(p, x, 16 * round + col, ml);
}

/* Weights of an item's parts, as they become known. */
template <class S>
static __device__ __forceinline__ void weigh_parts(const params &p, uint8_t *q, const piece &x,
                                                   int rank, int round)
{
    int lane = thread() % 32, col = lane % 16, first = lane / 16;
    float2 v[SHARE];
    uint32_t looks = 0;
    bool there;

    do {
        look_again(looks);
        there = true;
#pragma unroll
        for (int k = 0; k < SHARE; k++)
            there &= find_2(
                v[k],
                stats_of<S>(p, slot_of(x, min(first + 2 * k, x.parts - 1)), rank, round) + col);
    } while (!there);
#pragma unroll
    for (int k = 0; k < SHARE; k++)
        if (first + 2 * k >= x.parts)
            v[k] = make_float2(-INFINITY, 0);
    float2 ml = weigh_few(v, true);
#pragma unroll
    for (int k = 0; k < SHARE; k++)
        part_weights<S>(q, round, col)[first + 2 * k] = v[k].x;
    if (lane < 16 && rank == 0)
        write_lse(p, x, 16 * round + col, ml);
    __syncwarp(); /* all has been read */
#pragma unroll
    for (int k = 0; k < SHARE; k++)
        if (first + 2 * k < x.parts)
            __stcg(stats_of<S>(p, slot_of(x, first + 2 * k), rank, round) + col, make_float2(0, 0));
}

/* Beside the math warps, for each piece: they would wait for one step after the other. A warp for
 * each round. */
template <class S>
static __device__ __forceinline__ void herald(const params &p, shared<S> &s, int rank, int cluster)
{
    ring<WORKS> works;
    int round = S::ROUNDS == 1 ? 0 : (int)threadIdx.x / 32 - (S::MATH / 32 + 1);

    named_sync(READY_BARRIER, S::READY);
    if (cluster > 1) /* the others' barriers are there */
        cluster_wait();
#pragma unroll 1
    for (int n = 0; await_piece<S>(s, works).rows > 0; n++) {
        const piece &x = s.work[works.stage];
        if (cluster > 1) {
            named_sync(TOLD_BARRIER, S::TOLD);
            if (n > 0) /* at first everybody is ready for it */
                mbar_wait_cluster(smem_u32(&s.granted), n & 1);
            tell_cluster<S>(s, rank, cluster, round);
            if (threadIdx.x % 32 == 0 && round == 0)
                mbar_arrive_expect(smem_u32(&s.heard), S::ROUNDS * cluster * 16 * 8);
            mbar_wait_cluster(smem_u32(&s.heard), n & 1);
            weigh_cluster<S>(p, s, x, rank, cluster, round);
            named_arrive(WEIGHED_BARRIER, S::TOLD);
            if (early_parts<S>(p, x, cluster)) {
                weigh_parts<S>(p, s.q[n & S::Q_STAGES - 1], x, rank, round);
                named_arrive(PARTS_BARRIER, S::TOLD);
            }
        }
        arrive_warp(s.work_empty[works.stage]);
        works.advance();
    }
}

template <class S> static __device__ void init_barriers(shared<S> &s, int cluster)
{
    for (int i = 0; i < S::STAGES; i++) {
        mbar_init(smem_u32(&s.tile_full[i]), S::FP8 && S::RAW_ROW != S::ROW_BYTES ? 32 : 1);
        mbar_init(smem_u32(&s.tile_empty[i]), S::MATH / 32);
    }
    mbar_init(smem_u32(&s.asked), S::MATH / 32);
    for (int i = 0; i < WORKS; i++) {
        mbar_init(smem_u32(&s.work_full[i]), 1);
        mbar_init(smem_u32(&s.work_empty[i]), S::TOLD / 32);
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
__global__ void __launch_bounds__(S::THREADS, S::LEAN ? 2 : 1)
    decode(const __grid_constant__ params p)
{
    extern __shared__ __align__(1024) uint8_t memory[]; /* begins where the window does: aligned */
    shared<S> &s = *(shared<S> *)memory;
    int rank = (int)cluster_rank(), cluster = (int)cluster_size();

    if (!p.next_late)
        launch_next();
    if (threadIdx.x >= S::MATH) {
        if (cluster > 1) /* says nothing: the barriers are thread 0's */
            cluster_arrive_relaxed();
        if constexpr (S::UNEVEN)
            registers_lower<104>();
        if (threadIdx.x >= S::MATH + 32 && threadIdx.x < S::READY) {
            herald<S>(p, s, rank, cluster);
            return;
        }
        if (threadIdx.x < S::MATH + 32)
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
        named_arrive(READY_BARRIER, S::READY);
        sync_math<S>();
        if constexpr (S::UNEVEN)
            registers_raise<200>();
        decode_pieces<S>(p, s, rank, cluster);
    }
}

template <class S> static variant make_variant()
{
    static_assert(sizeof(shared<S>) <= S::SHARED_BYTES, "shared memory of a block");

    return {decode<S>, S::THREADS, sizeof(shared<S>)};
}

template <int N, int FORMAT> static variant find(int latent_dim, int rope_dim)
{
    if (latent_dim == 512 && rope_dim == 64)
        return make_variant<shape<N, 512, 64, FORMAT>>();
    if (latent_dim == 256 && rope_dim == 64)
        return make_variant<shape<N, 256, 64, FORMAT>>();
    if (latent_dim == 256 && rope_dim == 32)
        return make_variant<shape<N, 256, 32, FORMAT>>();
    return {};
}

} // namespace mla_few
