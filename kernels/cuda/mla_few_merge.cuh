/* How partial results become one, in the decode kernel for few query rows. A partial
 * result is (m, l, o) of a row over some tokens: it stands for exp2(m) * (l, o). Always merged in
 * the order of the tokens, so that equal inputs give equal bits.
 *
 * A round is 16 columns (query rows); a unit of it is 64 rows of O^T and 8 of these columns: a
 * float4 of each thread of a group, columns 8 j + 2 (lane % 4) + e at [2 i + e]. Of the 16 units
 * (of latent 512) each block of a cluster owns a stretch.
 *
 * Within a cluster: each block tells all others its (m, l), then writes every unit, as halves times
 * a power of two of each warp's, into the shared memory of the block that owns it: a stage of the
 * ring that is passed on for this, once its owner has granted it to everybody (LEAN: the rope part
 * and the queries, a pair of tiles: the queries, which have been multiplied by then). An owner
 * makes weights of what it has heard, waits until all have written, then sums. No block is written
 * to after that, so it may end.
 *
 * Between clusters (pieces of one item): each owner leaves its part in the workspace. That of the
 * first part, which is its worker's last piece, takes them all as they arrive and writes the
 * output: the others' parts are their workers' first pieces, so nobody waits for long. In
 * batch-invariant mode, where a worker may have several parts of an item, each counts up, and
 * whoever completes the count merges and sets the counter back.
 *
 * The output is turned around in the piece's query buffer, which nobody reads any more, or, where
 * that is merging's room, in the tile. */
#pragma once

#include "kernels/cuda/mla_few_fp8.cuh"
#include "kernels/cuda/mla_partial.cuh"

namespace mla_few
{

/* Where this block stands. */
template <class S> struct merge_place {
    int32_t rank, cluster;
    int32_t first, own; /* units of this block */
    int32_t exchanges;  /* done by the cluster, over all pieces */
    uint8_t *turned;    /* the output: (own units of all rounds) 8 rows of 128 bytes, swizzled */
    uint8_t *queries;   /* of the piece */
    uint8_t *room;      /* (sender, unit, thread, round) four halves */
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
    s.routes[unit] =
        make_uint2(cluster_map(here, to) - here, (rank * own + unit - first) * S::UNIT_BYTES);
}

/* 4 floats of a unit += w * part */
static __device__ __forceinline__ void add_part(float (&v)[4], const float4 &part, const float2 &w)
{
    v[0] += w.x * part.x;
    v[1] += w.y * part.y;
    v[2] += w.x * part.z;
    v[3] += w.y * part.w;
}

/* Turns (m, l) of n partial results of 16 columns into their weights (w, -) in the whole, 1 / sum
 * included if `last`. Of COLUMNS of them by each warp, `col` that of this lane and 32 / COLUMNS - 1
 * others, who share the parts. Returns the whole's (m, l) of the column. */
template <int COLUMNS>
static __device__ __forceinline__ float2 weigh(float2 (*stats)[16], int n, bool last, int col)
{
    constexpr int STEP = 32 / COLUMNS;
    int from = thread() % 32 / COLUMNS;
    float m = -INFINITY, l = 0;

    for (int i = from; i < n; i += STEP)
        m = fmaxf(m, stats[i][col].x);
#pragma unroll
    for (int step = COLUMNS; step < 32; step *= 2)
        m = fmaxf(m, __shfl_xor_sync(~0u, m, step));
    for (int i = from; i < n; i += STEP) {
        float w = m == -INFINITY ? 0 : exp2_fast(stats[i][col].x - m);
        l += w * stats[i][col].y;
        stats[i][col].x = w;
    }
#pragma unroll
    for (int step = COLUMNS; step < 32; step *= 2)
        l += __shfl_xor_sync(~0u, l, step);
    if (last) {
        float scale = l > 0 ? __fdividef(1, l) : 0;
        for (int i = from; i < n; i += STEP)
            stats[i][col].x *= scale;
    }
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

    sync_math<S>();
#pragma unroll 4
    for (int i = t; i < S::ROUNDS * own * 64; i += S::MATH) {
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

/* Words of it are never 0, so that who merges it sees what has arrived; what was read is 0 again.
 */
static __device__ __forceinline__ uint32_t never_zero(float v)
{
    uint32_t bits = __float_as_uint(v);

    return bits ? bits : 0x80000000;
}

static __device__ __forceinline__ void leave_4(float4 *to, const float (&v)[4])
{
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to),
                 "r"(never_zero(v[0])), "r"(never_zero(v[1])), "r"(never_zero(v[2])),
                 "r"(never_zero(v[3]))
                 : "memory");
}

static __device__ __forceinline__ void leave_2(float2 *to, float2 v)
{
    asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(never_zero(v.x)),
                 "r"(never_zero(v.y))
                 : "memory");
}

/* What is there so far, BYTES from `from` on, if there is to be anything: without a branch. */
template <int BYTES>
static __device__ __forceinline__ void find_4(float4 &v, const float4 *from, bool wanted)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n"
                 "@p ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4 + %6];\n}"
                 : "+f"(v.x), "+f"(v.y), "+f"(v.z), "+f"(v.w)
                 : "l"(from), "r"((int)wanted), "n"(BYTES)
                 : "memory");
}

/* 0 unless all of it is there. A number, not a bool: for want of predicates the compiler would test
 * each part before it reads the next. */
static __device__ __forceinline__ uint32_t least_word(const float4 &v)
{
    return min(min(__float_as_uint(v.x), __float_as_uint(v.y)),
               min(__float_as_uint(v.z), __float_as_uint(v.w)));
}

static __device__ __forceinline__ bool find_2(float2 &v, const float2 *from)
{
    uint2 w;

    asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];"
                 : "=r"(w.x), "=r"(w.y)
                 : "l"(from)
                 : "memory");
    v = make_float2(__uint_as_float(w.x), __uint_as_float(w.y));
    return w.x && w.y;
}

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

    if (S::LEAN) /* the output is turned where others may still read values */
        sync_math<S>();
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++) {
        float l = whole_of<S>(s, column(c, t), group<S>()).y;
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
                leave_4(partial_of<S>(p, slot, r, unit, t), v);
        }
    if (t < S::N) {
        float2 ml = whole_of<S>(s, t, 0);
        if (x.parts == 1)
            write_lse(p, x, t, ml);
        else
            leave_2(stats_of<S>(p, slot, 0, 0) + t, ml);
    }
}

/* ---- within a cluster ------------------------------------------------------------------------ */

/* Once the stages from `at` on are this block's room for merging: tells the cluster that it may be
 * written. */
template <class S>
static __device__ __forceinline__ void grant(shared<S> &s, const ring<S::STAGES> &at, int cluster,
                                             int rooms = S::ROOMS)
{
    if (cluster > 1 && threadIdx.x < cluster) {
        for (int i = 0; i < rooms; i++) {
            ring<S::STAGES> room = at.next(i);
            mbar_wait(smem_u32(&s.tile_full[room.stage]), room.phase);
        }
        cluster_mbar_arrive(smem_u32(&s.granted), threadIdx.x);
    }
    __syncwarp();
}

/* 4 floats of a unit, times `factor`. */
static __device__ __forceinline__ uint2 pack_unit(const float *v, float factor)
{
    return make_uint2(pack_f16(v[0] * factor, v[1] * factor),
                      pack_f16(v[2] * factor, v[3] * factor));
}

/* This block's output to the owners of its units, as halves of which each warp has brought its own
 * near the top of their range; that it tells all blocks. */
template <class S>
static __device__ __forceinline__ void send(shared<S> &s, const state<S> &st,
                                            const merge_place<S> &at)
{
    int t = thread(), lane = t % 32;
    uint32_t received = smem_u32(&s.received);
    uint32_t room = smem_u32(at.room) + t % GROUP_THREADS * (8 * S::ROUNDS);
    float sizes[4] = {}, reference = 0;

#pragma unroll
    for (int b = 0; b < S::MINE; b++)
#pragma unroll
        for (int i = 0; i < S::N / 2; i++)
            sizes[i % 4] += fabsf(st.o[b][i]);
    float size = sizes[0] + sizes[1] + (sizes[2] + sizes[3]);
#pragma unroll
    for (int step = 1; step < 32; step *= 2)
        size += __shfl_xor_sync(~0u, size, step);
    /* A row that is not finite leaves the others as they are. */
    float factor = f16_factor(reference, size < INFINITY ? size : 0x1p14f);
    if (lane < at.cluster)
        send_1(cluster_map(smem_u32(&s.factors[t / 32][at.rank]), lane),
               cluster_map(received, lane), __int_as_float((127 + (int)reference) << 23));
#pragma unroll
    for (int u = 0; u < 2 * S::MINE; u++) {
        uint2 route = s.routes[t / GROUP_THREADS * (2 * S::MINE) + u];
        uint32_t to = room + route.x + route.y;
        const float *o = st.o[u / 2] + u % 2 * 4;
        if constexpr (S::ROUNDS == 1)
            send_2(to, received + route.x, pack_unit(o, factor));
        else
            send_4(to, received + route.x, pack_unit(o, factor), pack_unit(o + 8, factor));
    }
}

enum { BATCH = 8 }; /* parts that are read at a time */

/* A cluster's weights of a column of a round, one for each block: where its maxima and sums were.
 */
template <class S>
static __device__ __forceinline__ float *weights_of(shared<S> &s, int round, int col)
{
    return (float *)s.stats[round] + col * WEIGHTS_STEP;
}

static __device__ __forceinline__ void read_batch(float (&v)[BATCH], const float *from)
{
#pragma unroll
    for (int k = 0; k < BATCH; k += 4)
        *(float4 *)(v + k) = *(const float4 *)(from + k);
}

/* Of a block's units, the first that is this group's. The groups take turns. */
template <class S> static __device__ __forceinline__ int first_own()
{
    return S::MATH_GROUPS == 1 ? 0 : thread() / GROUP_THREADS;
}

/* A unit that the cluster has summed: to the output, or to the workspace. */
template <class S>
static __device__ __forceinline__ void hand_on(const params &p, const piece &x,
                                               const merge_place<S> &at, int round, int i,
                                               const float (&v)[4], int t)
{
    if (x.parts == 1)
        turn_unit<S>(at.turned, round * at.own + i, v, t);
    else
        leave_4(partial_of<S>(p, slot_of(x, x.part), round, at.first + i, t), v);
}

/* Sums what the cluster sent, of all rounds together. */
template <class S>
static __device__ __forceinline__ void gather(const params &p, shared<S> &s, const piece &x,
                                              const merge_place<S> &at)
{
    struct alignas(8 * S::ROUNDS) message {
        uint2 of[S::ROUNDS];
    };
    int own = at.own, t = thread();
    const message *mine = (const message *)at.room + t % GROUP_THREADS;

#pragma unroll 1
    for (int i = first_own<S>(); i < own; i += S::MATH_GROUPS) {
        const message *from = mine + i * GROUP_THREADS;
        int unit = at.first + i, col = unit % 2 * 8 + column(0, t);
        const float *factors = s.factors[unit / (2 * S::MINE) * 4 + t % GROUP_THREADS / 32];
        float v[S::ROUNDS][4] = {};
#pragma unroll 1
        for (int begin = 0; begin < at.cluster; begin += BATCH) {
            message part[BATCH];
            float factor[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; k++)
                part[k] = from[min(begin + k, at.cluster - 1) * own * GROUP_THREADS];
            read_batch(factor, factors + begin);
#pragma unroll
            for (int r = 0; r < S::ROUNDS; r++) {
                float even[BATCH], odd[BATCH];
                read_batch(even, weights_of<S>(s, r, col) + begin);
                read_batch(odd, weights_of<S>(s, r, col + 1) + begin);
#pragma unroll
                for (int k = 0; k < BATCH; k++) {
                    float2 a = unpack_f16(part[k].of[r].x), b = unpack_f16(part[k].of[r].y);
                    float by = begin + k < at.cluster ? factor[k] : 0; /* there may be anything */
                    add_part(v[r], make_float4(a.x, a.y, b.x, b.y),
                             make_float2(even[k] * by, odd[k] * by));
                }
            }
        }
#pragma unroll
        for (int r = 0; r < S::ROUNDS; r++)
            hand_on<S>(p, x, at, r, i, v[r], t);
    }
}

template <class S>
static __device__ __forceinline__ void exchange(const params &p, shared<S> &s, const piece &x,
                                                merge_place<S> &at, const state<S> &st)
{
    if (threadIdx.x == 0)
        mbar_arrive_expect(smem_u32(&s.received),
                           at.cluster * (at.own * S::UNIT_BYTES + S::MATH / 8));
    mbar_wait_cluster(smem_u32(&s.granted), at.exchanges & 1);
    send<S>(s, st, at);
    named_sync(WEIGHED_BARRIER, S::TOLD);
    mbar_wait_cluster(smem_u32(&s.received), at.exchanges & 1);
    at.exchanges++;
    gather<S>(p, s, x, at);
}

/* ---- between clusters ------------------------------------------------------------------------ */

/* Whether this block is the last of the item's to have written its part. */
template <class S>
static __device__ __forceinline__ bool arrived_last(const params &p, shared<S> &s, const piece &x,
                                                    int rank)
{
    uint32_t *counter = p.counters + x.counter * MAX_CLUSTER + rank;

    sync_math<S>();
    if (threadIdx.x == 0) {
        __threadfence(); /* for all that the barrier ordered before it */
        s.last = atomicAdd(counter, 1) == (uint32_t)x.parts - 1;
        if (s.last)
            *counter = 0;
        __threadfence();
    }
    sync_math<S>();
    return s.last;
}

/* Whether the parts of the item are merged by this block, with weights that it has early. */
template <class S>
static __device__ __forceinline__ bool early_parts(const params &p, const piece &x, int cluster)
{
    return cluster > 1 && x.parts > 1 && x.parts <= MAX_CLUSTER && x.part == 0 && !p.invariant;
}

/* Where these weights of a column of a round stand, one for each part, 0 past the last one: in the
 * queries, which have been multiplied. */
template <class S>
static __device__ __forceinline__ float *part_weights(uint8_t *q, int round, int col)
{
    return (float *)(q + S::Q_BYTES - S::WEIGHTS_BYTES) + (16 * round + col) * WEIGHTS_STEP;
}

/* Their weights, and what follows from them at once. `stats`: room for (parts, 16). */
template <class S>
static __device__ __forceinline__ void find_weights(const params &p, float2 (*stats)[16],
                                                    const piece &x, const merge_place<S> &at,
                                                    int round)
{
    constexpr int PER_WARP = 512 / S::MATH; /* columns */
    int t = thread(), lane = t % 32, col = t / 32 * PER_WARP + t % PER_WARP;

    sync_math<S>(); /* what stood there has been read */
    for (int i = lane / PER_WARP; i < x.parts; i += 32 / PER_WARP) {
        float2 *from = stats_of<S>(p, slot_of(x, i), at.rank, round) + col;
        uint32_t looks = 0;
        while (!find_2(stats[i][col], from))
            look_again(looks);
        __stcg(from, make_float2(0, 0));
    }
    float2 ml = weigh<PER_WARP>(stats, x.parts, true, col);
    if (lane < PER_WARP && at.rank == 0)
        write_lse(p, x, 16 * round + col, ml);
    sync_math<S>();
}

/* Columns 16 round .. of all parts, of R rounds, this block's units, as they arrive.
 * read_weights(even, odd, r, col, begin) has the weights of BATCH of them, 0 past the last, of
 * column `col` of round round + r and the next one, once `weighed`: until then PARTS_BARRIER is
 * waited for, but only when the first parts are there. */
template <class S, int R, class Weights>
static __device__ __forceinline__ void merge_parts(const params &p, const piece &x,
                                                   const merge_place<S> &at, int round,
                                                   bool weighed, Weights read_weights)
{
    int t = thread();
    float4 part[R][BATCH];
    auto place = [&](int r, int i, int part) {
        return partial_of<S>(p, slot_of(x, part), round + r, at.first + i, t);
    };
    auto read = [&](int i, int begin) {
        uint32_t looks = 0, least;
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int k = 0; k < BATCH; k++)
                part[r][k] = make_float4(1, 1, 1, 1); /* where there is none */
        do {
            look_again(looks);
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                const float4 *from = place(0, i, begin + k);
                bool wanted = k == 0 || begin + k < x.parts;
                find_4<0>(part[0][k], from, wanted);
                if constexpr (R > 1)
                    find_4<S::UNITS * GROUP_THREADS * 16>(part[1][k], from, wanted);
            }
            least = ~0u;
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int k = 0; k < BATCH; k++)
                    least = min(least, least_word(part[r][k]));
        } while (least == 0);
    };

#pragma unroll 1
    for (int i = first_own<S>(); i < at.own; i += S::MATH_GROUPS) {
        float v[R][4] = {};
#pragma unroll 1
        for (int begin = 0; begin < x.parts; begin += BATCH) {
            read(i, begin);
            if (!weighed)
                named_sync(PARTS_BARRIER, S::TOLD);
            weighed = true;
#pragma unroll
            for (int r = 0; r < R; r++) {
                float even[BATCH], odd[BATCH];
                read_weights(even, odd, r, (at.first + i) % 2 * 8 + column(0, t), begin);
#pragma unroll
                for (int k = 0; k < BATCH; k++)
                    add_part(v[r], part[r][k], make_float2(even[k], odd[k]));
            }
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int k = 0; k < BATCH; k++)
                    if (begin + k < x.parts)
                        __stcg(place(r, i, begin + k), make_float4(0, 0, 0, 0));
        }
#pragma unroll
        for (int r = 0; r < R; r++)
            turn_unit<S>(at.turned, (round + r) * at.own + i, v[r], t);
    }
    if (!weighed)
        named_sync(PARTS_BARRIER, S::TOLD);
}

/* ---- the end of a piece ---------------------------------------------------------------------- */

template <class S>
static __device__ __forceinline__ void finish(const params &p, shared<S> &s, const piece &in_shared,
                                              ring<S::STAGES> &tiles, merge_place<S> &at,
                                              state<S> &st)
{
    const piece x = in_shared;
    bool whole = x.parts == 1;

    static_assert(S::ROOM_BYTES <= S::STAGE_BYTES && S::STATS_BYTES <= S::STAGE_BYTES,
                  "a stage holds what merging needs");
    if (x.scratch)
        for (int i = 0; i < S::ROOMS; i++) {
            ring<S::STAGES> room = tiles.next(i);
            mbar_wait(smem_u32(&s.tile_full[room.stage]), room.phase);
        }
    if (at.cluster == 1)
        emit_alone<S>(p, s, x, at, st);
    else
        exchange<S>(p, s, x, at, st);
    if (!whole && (p.invariant ? arrived_last<S>(p, s, x, at.rank) : x.part == 0)) {
        sync_math<S>(); /* what was merged within the cluster has been read */
        if (early_parts<S>(p, x, at.cluster)) {
            auto weights = [&](float(&even)[BATCH], float(&odd)[BATCH], int r, int col, int begin) {
                read_batch(even, part_weights<S>(at.queries, r, col) + begin);
                read_batch(odd, part_weights<S>(at.queries, r, col + 1) + begin);
            };
            merge_parts<S, S::ROUNDS>(p, x, at, 0, false, weights);
        } else {
#pragma unroll 1
            for (int r = 0; r < S::ROUNDS; r++) {
                float2(*stats)[16] = (float2(*)[16])s.tiles[tiles.stage];
                auto weights = [&](float(&even)[BATCH], float(&odd)[BATCH], int, int col,
                                   int begin) {
#pragma unroll
                    for (int k = 0; k < BATCH; k++) {
                        bool there = begin + k < x.parts;
                        float4 w = *(const float4 *)(stats[there ? begin + k : 0] + col);
                        even[k] = there ? w.x : 0;
                        odd[k] = there ? w.z : 0;
                    }
                };
                find_weights<S>(p, stats, x, at, r);
                merge_parts<S, 1>(p, x, at, r, true, weights);
            }
        }
        whole = true;
    }
    if (whole)
        write_output<S>(p, x, at);
    int held = S::LEAN ? 1 : S::TWO && x.pair ? 2 : x.scratch ? S::ROOMS : 0;
    if (held > 0)
        fence_async();
    for (int i = 0; i < held; i++)
        release<S>(s, tiles);
}

} // namespace mla_few
