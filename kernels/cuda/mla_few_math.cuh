/* The products and the softmax of the decode kernel for few query rows (see mla_few.cuh): of bf16,
 * and what the FP8 cache has in common with it. */
#pragma once

#include "kernels/cuda/mla_few.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <math.h>

namespace mla_few
{

/* ---- products and softmax -------------------------------------------------------------------- */

/* The result of a piece, or of several: exp2(m) * (l, o), o transposed. */
template <class S> struct state {
    float o[S::MINE][S::N / 2];
    float m[S::COLUMNS];
    float l[S::COLUMNS]; /* this thread's part of the sum until merging */
};

/* Columns of a thread. */
static __device__ __forceinline__ int column(int c, int t = threadIdx.x)
{
    return 8 * (c / 2) + 2 * (t % 4) + c % 2;
}

/* Rows of a tile that hold nothing: what is there may be NaN, which times 0 is NaN. The groups meet
 * once more before values() reads them. */
template <class S> static __device__ void clear_rows(uint8_t *tile, int valid)
{
    for (int i = threadIdx.x; i < (TILE - valid) * 8; i += S::MATH)
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

/* d = the sum of STEPS products; operands(k, a, b) gives the descriptors. */
template <int COLUMNS, int STEPS, class Operands>
static __device__ __forceinline__ void sum_products(float (&d)[COLUMNS / 2], Operands operands)
{
    float part[CHAINS - 1][COLUMNS / 2] = {};

#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++)
        d[i] = 0;
    wgmma_hold(d);
#pragma unroll
    for (int c = 0; c < CHAINS - 1; c++)
        wgmma_hold(part[c]);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        uint64_t a, b;
        operands(k, a, b);
        if (k % CHAINS == 0)
            wgmma<COLUMNS>::template ss<0, 0>(d, a, b, 1);
        else
            wgmma<COLUMNS>::template ss<0, 0>(part[k % CHAINS - 1], a, b, 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(d);
#pragma unroll
    for (int c = 0; c < CHAINS - 1; c++)
        wgmma_hold(part[c]);
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++)
#pragma unroll
        for (int c = 0; c < CHAINS - 1; c++)
            d[i] += part[c][i];
}

/* bf16: d = K Q^T over this group's half of the row; of the rope part every other 16 columns. */
template <class S>
static __device__ __forceinline__ void half_scores(float (&d)[S::N / 2], uint32_t tile, uint32_t q)
{
    constexpr int ROPE_STEPS = S::ROPE / 32;
    uint64_t a0 = wgmma_desc(tile + group<S>() * (S::MINE * TILE * 128), 0, 1024, SWIZZLE_128);
    uint64_t b0 = wgmma_desc(q + group<S>() * (S::MINE * S::N * 128), 0, 1024, SWIZZLE_128);
    uint64_t a1 = wgmma_desc(tile + S::BLOCKS * TILE * 128 + group<S>() * 32, 0, 1024, SWIZZLE_128);
    uint64_t b1 = wgmma_desc(q + S::BLOCKS * S::N * 128 + group<S>() * 32, 0, 1024, SWIZZLE_128);

    sum_products<S::N, S::MINE * 4 + ROPE_STEPS>(d, [&](int k, uint64_t &a, uint64_t &b) {
        int rope = k - S::MINE * 4;
        a = rope < 0 ? desc_at(a0, k / 4 * TILE * 128 + k % 4 * 32) : desc_at(a1, rope * 64);
        b = rope < 0 ? desc_at(b0, k / 4 * S::N * 128 + k % 4 * 32) : desc_at(b1, rope * 64);
    });
}

/* LEAN: d = K Q^T; in units of log2. */
template <class S>
static __device__ __forceinline__ void whole_scores(float (&d)[S::N / 2], uint32_t tile, uint32_t q,
                                                    float scale)
{
    uint64_t a = wgmma_desc(tile, 0, 1024, SWIZZLE_128);
    uint64_t b = wgmma_desc(q, 0, 1024, SWIZZLE_128);

    sum_products<S::N, (S::LATENT + S::ROPE) / 16>(d, [&](int k, uint64_t &left, uint64_t &right) {
        left = desc_at(a, k / 4 * TILE * 128 + k % 4 * 32);
        right = desc_at(b, k / 4 * S::N * 128 + k % 4 * 32);
    });
#pragma unroll
    for (int i = 0; i < S::N / 2; i++)
        d[i] *= scale;
}

/* The same of two tiles, whose sums are formed side by side. */
template <class S>
static __device__ __forceinline__ void half_scores(float (&d)[2][S::N / 2],
                                                   const uint32_t (&tile)[2], uint32_t q)
{
    constexpr int ROPE_STEPS = S::ROPE / 32;
    constexpr int ROPE_AT = S::BLOCKS * TILE * 128;
    uint64_t b0 = wgmma_desc(q + group<S>() * (S::MINE * S::N * 128), 0, 1024, SWIZZLE_128);
    uint64_t b1 = wgmma_desc(q + S::BLOCKS * S::N * 128 + group<S>() * 32, 0, 1024, SWIZZLE_128);
    uint64_t a0[2], a1[2];

#pragma unroll
    for (int t = 0; t < 2; t++) {
        a0[t] = wgmma_desc(tile[t] + group<S>() * (S::MINE * TILE * 128), 0, 1024, SWIZZLE_128);
        a1[t] = wgmma_desc(tile[t] + ROPE_AT + group<S>() * 32, 0, 1024, SWIZZLE_128);
#pragma unroll
        for (int i = 0; i < S::N / 2; i++)
            d[t][i] = 0;
        wgmma_hold(d[t]);
    }
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < S::MINE * 4; k++)
#pragma unroll
        for (int t = 0; t < 2; t++)
            wgmma<S::N>::template ss<0, 0>(d[t], desc_at(a0[t], k / 4 * TILE * 128 + k % 4 * 32),
                                           desc_at(b0, k / 4 * S::N * 128 + k % 4 * 32), 1);
#pragma unroll
    for (int k = 0; k < ROPE_STEPS; k++)
#pragma unroll
        for (int t = 0; t < 2; t++)
            wgmma<S::N>::template ss<0, 0>(d[t], desc_at(a1[t], k * 64), desc_at(b1, k * 64), 1);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(d[0]);
    wgmma_hold(d[1]);
}

/* BY_COLUMNS: where this thread's i-th message of group `from`'s sums to the other is. In the
 * tile's rope part, if it can be: of that a warp overwrites only what it alone has read, 16 rows of
 * the columns that its group multiplies. */
template <class S>
static __device__ __forceinline__ float4 *message_of(shared<S> &s, uint8_t *tile, int from, int i)
{
    int t = thread() % GROUP_THREADS, row = t / 32 * 16 + t % 16, upper = t / 16 % 2;

    if constexpr (!S::BY_TILE)
        return &s.sums[0][from][i][t];
    else if constexpr (S::FP8)
        return (float4 *)(tile + row * S::RAW_ROW + S::ROPE_AT) + 4 * from + 2 * upper + i;
    else
        return (float4 *)(tile + S::BLOCKS * TILE * 128 + row * 128) +
               (4 * upper + 2 * from + i ^ row % 8);
}

/* BY_COLUMNS: gives the other group what it needs of this group's sums over its half of the row. */
template <class S>
static __device__ __forceinline__ void give_half(const float (&half)[S::N / 2], shared<S> &s,
                                                 uint8_t *tile)
{
    constexpr int MINE = S::SCORED / 2; /* of the accumulators */
    bool upper = group<S>() == 1;

    static_assert(MINE == 8, "two messages");
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float *v = half + 4 * i;
        *message_of<S>(s, tile, upper, i) =
            make_float4(upper ? v[0] : v[MINE], upper ? v[1] : v[MINE + 1],
                        upper ? v[2] : v[MINE + 2], upper ? v[3] : v[MINE + 3]);
    }
}

/* And, once both have: d = the sums over the row of this group's columns, in units of log2. */
template <class S>
static __device__ __forceinline__ void take_half(float (&d)[S::SCORED / 2],
                                                 const float (&half)[S::N / 2], shared<S> &s,
                                                 uint8_t *tile, float scale)
{
    constexpr int MINE = S::SCORED / 2;
    bool upper = group<S>() == 1;

#pragma unroll
    for (int i = 0; i < 2; i++) {
        float4 v = *message_of<S>(s, tile, !upper, i);
        const float *mine = half + 4 * i;
        d[4 * i] = ((upper ? mine[MINE] : mine[0]) + v.x) * scale;
        d[4 * i + 1] = ((upper ? mine[MINE + 1] : mine[1]) + v.y) * scale;
        d[4 * i + 2] = ((upper ? mine[MINE + 2] : mine[2]) + v.z) * scale;
        d[4 * i + 3] = ((upper ? mine[MINE + 3] : mine[3]) + v.w) * scale;
    }
}

/* The same where each group has the scores of all columns: the sums over its half, */
template <class S>
static __device__ __forceinline__ void give_all(const float (&half)[S::N / 2], shared<S> &s,
                                                int which)
{
    int t = threadIdx.x % GROUP_THREADS;

#pragma unroll
    for (int i = 0; i < S::N / 8; i++)
        s.sums[which][group<S>()][i][t] =
            make_float4(half[4 * i], half[4 * i + 1], half[4 * i + 2], half[4 * i + 3]);
}

/* and those over the row. The same bits in both groups. */
template <class S>
static __device__ __forceinline__ void take_all(float (&d)[S::N / 2], const float (&half)[S::N / 2],
                                                shared<S> &s, int which, float scale)
{
    int t = threadIdx.x % GROUP_THREADS;

#pragma unroll
    for (int i = 0; i < S::N / 8; i++) {
        float4 v = s.sums[which][group<S>() ^ 1][i][t];
        d[4 * i] = (half[4 * i] + v.x) * scale;
        d[4 * i + 1] = (half[4 * i + 1] + v.y) * scale;
        d[4 * i + 2] = (half[4 * i + 2] + v.z) * scale;
        d[4 * i + 3] = (half[4 * i + 3] + v.w) * scale;
    }
}

/* d = whole scores of TILES tiles, in units of log2, from the sums over this group's half of the
 * row. `which`: 0 and 1 by turns. */
template <class S, int TILES>
static __device__ __forceinline__ void
exchange_halves(float (&d)[TILES][S::SCORED / 2], const float (&half)[TILES][S::N / 2],
                shared<S> &s, uint8_t *const (&tile)[TILES], int which, float scale)
{
#pragma unroll
    for (int i = 0; i < TILES; i++)
        if constexpr (S::BY_COLUMNS)
            give_half<S>(half[i], s, tile[i]);
        else
            give_all<S>(half[i], s, which + i);
    sync_math<S>();
#pragma unroll
    for (int i = 0; i < TILES; i++)
        if constexpr (S::BY_COLUMNS)
            take_half<S>(d[i], half[i], s, tile[i], scale);
        else
            take_all<S>(d[i], half[i], s, which + i, scale);
}

/* Of each row of a piece: the first token that it doesn't see. */
template <class S>
static __device__ __forceinline__ void find_limits(const params &p, shared<S> &s, const piece &x)
{
    int row = thread(), limit = x.end;

    if (row >= S::N)
        return;
    if (p.causal && x.q_len > 1) {
        int query = min((x.row0 + row) / p.heads, x.q_len - 1);
        limit = min(x.end, x.kv_len - x.q_len + query + 1);
    }
    s.limits[row] = limit;
}

/* d[] of tokens that a row doesn't see becomes -infinity. `token` is that of the tile's row 0. */
template <class S>
static __device__ __forceinline__ void mask(float (&d)[S::SCORED / 2], const shared<S> &s,
                                            int token)
{
    int t = thread(), first = S::BY_COLUMNS ? t / GROUP_THREADS * S::SCORED : 0;

    token += t % GROUP_THREADS / 32 * 16 + t % 32 / 4;
#pragma unroll
    for (int c = 0; c < S::SEEN; c++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (token + 8 * i >= s.limits[first + column(c, t)])
                d[4 * (c / 2) + 2 * i + c % 2] = -INFINITY;
}

/* o times keep, by column. */
template <class S>
static __device__ __forceinline__ void scale_sums(state<S> &st, const float (&keep)[S::COLUMNS])
{
#pragma unroll
    for (int b = 0; b < S::MINE; b++)
#pragma unroll
        for (int i = 0; i < S::N / 2; i++)
            st.o[b][i] *= keep[2 * (i / 4) + i % 2];
}

/* Brings the references to the maxima of all scores so far, and the sums to the references; but o
 * with BY_COLUMNS, see follow_references(). With the FIRST scores of a piece there are no sums. */
template <class S, bool FIRST, int TILES>
static __device__ __forceinline__ void raise_references(const float (&d)[TILES][S::SCORED / 2],
                                                        state<S> &st, shared<S> &s)
{
    int warp = threadIdx.x % GROUP_THREADS / 32, lane = threadIdx.x % 32;
    float high[S::SEEN], keep[S::SEEN];
    bool moved = false;

#pragma unroll
    for (int c = 0; c < S::SEEN; c++) {
        int at = 4 * (c / 2) + c % 2;
        high[c] = fmaxf(d[0][at], d[0][at + 2]);
        if (TILES > 1)
            high[c] = fmaxf(high[c], fmaxf(d[TILES - 1][at], d[TILES - 1][at + 2]));
#pragma unroll
        for (int step = 4; step < 32; step *= 2)
            high[c] = fmaxf(high[c], __shfl_xor_sync(~0u, high[c], step));
    }
    if (lane < 4)
#pragma unroll
        for (int c = 0; c < S::SEEN; c++)
            s.by_warp[group<S>()][warp][column(c)] = high[c];
    if (TILES > 1 && S::BY_COLUMNS) /* what was exchanged has been read, too */
        sync_math<S>();
    else
        sync_group<S>();
#pragma unroll
    for (int c = 0; c < S::SEEN; c += 2) {
        high[c] = st.m[c], high[c + 1] = st.m[c + 1];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 two = *(float2 *)&s.by_warp[group<S>()][i][column(c)];
            high[c] = fmaxf(high[c], two.x);
            high[c + 1] = fmaxf(high[c + 1], two.y);
        }
    }
#pragma unroll
    for (int c = 0; c < S::SEEN; c++) {
        keep[c] = exp2_fast(st.m[c] - (high[c] == -INFINITY ? 0 : high[c]));
        moved |= high[c] != st.m[c];
        st.m[c] = high[c];
        if (!FIRST)
            st.l[c] *= keep[c];
    }
    if constexpr (FIRST)
        return;
    if constexpr (!S::BY_COLUMNS) {
        if (__any_sync(~0u, moved))
            scale_sums<S>(st, keep);
    } else if (warp == 0 && lane < 4) {
#pragma unroll
        for (int c = 0; c < S::SEEN; c++)
            s.keep[group<S>() * S::SCORED + column(c)] = keep[c];
    }
}

/* Probabilities by the references, and their sums. Whether a score of this thread is so far beyond
 * its reference that this has to be raised. */
template <class S>
static __device__ __forceinline__ bool softmax(float (&probabilities)[S::SCORED / 2],
                                               const float (&d)[S::SCORED / 2], state<S> &st)
{
    float most = -INFINITY;

#pragma unroll
    for (int c = 0; c < S::SEEN; c++) {
        int at = 4 * (c / 2) + c % 2;
        float zero = fmaxf(st.m[c], -1e30f); /* from -infinity any score is far */
        float low = d[at] - zero, high = d[at + 2] - zero;
        most = fmaxf(most, fmaxf(low, high));
        probabilities[at] = exp2_fast(low);
        probabilities[at + 2] = exp2_fast(high);
        st.l[c] += probabilities[at] + probabilities[at + 2];
    }
    return most > GROWTH;
}

/* After a piece's last softmax(): maxima, and sums over a warp, for whole_of(). The next barrier
 * makes them seen. */
template <class S>
static __device__ __forceinline__ void sum_columns(shared<S> &s, const state<S> &st)
{
    int t = thread(), warp = t % GROUP_THREADS / 32;
    float l[S::SEEN];

#pragma unroll
    for (int c = 0; c < S::SEEN; c++)
        l[c] = st.l[c];
#pragma unroll
    for (int step = 4; step < 32; step *= 2)
#pragma unroll
        for (int c = 0; c < S::SEEN; c++)
            l[c] += __shfl_xor_sync(~0u, l[c], step);
    if (t % 32 < 4)
#pragma unroll
        for (int c = 0; c < S::SEEN; c++) {
            s.sums_of[group<S>()][warp][column(c, t)] = l[c];
            if (warp == 0)
                s.maxima[group<S>()][column(c, t)] = st.m[c];
        }
}

/* (m, l) of a column of the tile, as group `who` has it. */
template <class S>
static __device__ __forceinline__ float2 whole_of(const shared<S> &s, int col, int who)
{
    int from = S::BY_COLUMNS ? col / S::SCORED : who, c = col % S::SCORED;
    const float(*l)[S::SCORED] = s.sums_of[from];

    return make_float2(s.maxima[from][c], l[0][c] + l[1][c] + l[2][c] + l[3][c]);
}

/* BY_COLUMNS: brings o to the new references once both groups have told what is left. */
template <class S>
static __device__ __forceinline__ void follow_references(state<S> &st, const shared<S> &s)
{
    float keep[S::COLUMNS];

#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++)
        keep[c] = s.keep[column(c)];
    scale_sums<S>(st, keep);
}

static __device__ __forceinline__ uint32_t pack(float low, float high)
{
    uint32_t r;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

/* P^T to shared memory: N rows of 64 tokens, swizzled; times `low` for the first of this thread's
 * tokens, `high` for the second. */
template <class S>
static __device__ __forceinline__ void store_p(const float (&d)[S::SCORED / 2], uint32_t to,
                                               float low, float high)
{
    int warp = threadIdx.x % GROUP_THREADS / 32, lane = threadIdx.x % 32;

#pragma unroll
    for (int j = 0; j < S::SCORED / 8; j += 2) {
        /* Lane l names row l % 8 of matrix l / 8; matrix 2 jj + i has tokens 8 i .. of the warp's.
         */
        int row = 8 * (j + lane / 16) + lane % 8, chunk = 2 * warp + lane / 8 % 2;
        const float *v = d + 4 * j;
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                         to + row * 128 + ((chunk ^ row % 8) << 4)),
                     "r"(pack(v[0] * low, v[1] * low)), "r"(pack(v[2] * high, v[3] * high)),
                     "r"(pack(v[4] * low, v[5] * low)), "r"(pack(v[6] * high, v[7] * high))
                     : "memory");
    }
}

/* bf16: o += V^T P^T over TILES tiles, this group's blocks. */
template <class S, int TILES>
static __device__ __forceinline__ void values(state<S> &st, const uint32_t (&tile)[TILES],
                                              const uint32_t (&probabilities)[TILES])
{
    uint64_t a0[TILES], b0[TILES];

#pragma unroll
    for (int t = 0; t < TILES; t++) {
        a0[t] = wgmma_desc(tile[t] + group<S>() * (S::MINE * TILE * 128), 0, 1024, SWIZZLE_128);
        b0[t] = wgmma_desc(probabilities[t], 0, 1024, SWIZZLE_128);
    }
#pragma unroll
    for (int i = 0; i < S::MINE; i++)
        wgmma_hold(st.o[i]);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < TILES * 4; k++)
#pragma unroll
        for (int i = 0; i < S::MINE; i++)
            wgmma<S::N>::template ss<1, 0>(st.o[i],
                                           desc_at(a0[k / 4], i * TILE * 128 + k % 4 * 2048),
                                           desc_at(b0[k / 4], k % 4 * 32), 1);
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < S::MINE; i++)
        wgmma_hold(st.o[i]);
}

template <class S> static __device__ __forceinline__ void release(shared<S> &s, ring<S::STAGES> &at)
{
    arrive_warp(s.tile_empty[at.stage]);
    at.advance();
}

} // namespace mla_few
