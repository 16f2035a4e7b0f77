/* Results of the 64-row decode kernel: finished tiles to the output; parts of a sequence that
 * several blocks share, to the workspace and merged from there. See mla_wide.cuh. */
#pragma once

#include "kernels/cuda/mla_wide_types.cuh"

namespace mla_wide
{

/* ---- results --------------------------------------------------------------------------------- */

/* A unit that several parts share: what is needed to merge this part's rows of it. */
struct pending {
    int n, index; /* parts of the unit, which of them this is */
    int part0;    /* the first one */
    int64_t row;  /* first row of the tile in (query rows x heads) */
    int rows;     /* of the tile */
};

/* Where part k of a unit keeps its partial result: the unit is the last one of its first part and
 * the first one of all others. */
static __device__ __forceinline__ int partial_slot(const params &p, const pending &d, int k)
{
    return 2 * (d.part0 + k * p.lanes) + (k == 0);
}

/* Row sums of a unit, from the scores' warpgroup. */
static __device__ __forceinline__ void take_sums(shared &sm, const math &t, float (&l)[2],
                                                 int n_units)
{
    int parity = n_units % 2;

    mbar_wait(smem_u32(&sm.l_full[parity]), n_units / 2 % 2);
    l[0] = sm.l[parity][t.row];
    l[1] = sm.l[parity][t.row + 8];
    arrive_warp(&sm.l_empty[parity]);
}

static __device__ __forceinline__ float lse_of(float m, float l)
{
    return l > 0 ? (m + log2f(l)) * (float)M_LN2 : INFINITY;
}

/* The finished tile, by way of the queries' memory, so that rows are stored 512 bytes at a time. */
static __device__ __forceinline__ void write_out(const params &p, shared &sm, const math &t,
                                                 const float (&l)[2], const pending &d, int half)
{
    int lane = threadIdx.x % 32, row16 = threadIdx.x % 128 / 32 * 16, row = row16 + lane % 16;
    const float f[2] = {l[0] > 0 ? 1 / l[0] : 0, l[1] > 0 ? 1 / l[1] : 0};

    if (p.lse && half == 0 && lane % 4 == 0)
        for (int r = 0; r < 2; r++)
            if (t.row + 8 * r < d.rows)
                p.lse[d.row + t.row + 8 * r] = lse_of(t.m[r], l[r]);
#pragma unroll
    for (int j = 0; j < 16; j++) { /* 16 columns */
        uint32_t v[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float o[2] = {t.at(8 * j + 2 * k), t.at(8 * j + 2 * k + 1)};
            __nv_bfloat162 pair = __floats2bfloat162_rn(o[0] * f[k % 2], o[1] * f[k % 2]);
            v[k] = *(uint32_t *)&pair;
        }
        store_matrices(smem_u32(sm.q[4 * half + j / 4]) + row * 128 +
                           ((j % 4 * 2 + lane / 16) ^ (row & 7)) * 16,
                       v[0], v[1], v[2], v[3]);
    }
    __syncwarp();
    __nv_bfloat16 *out = p.out + d.row * LATENT + half * 256 + lane * 8;
    for (int r = row16; r < min(row16 + 16, d.rows); r++)
        *(uint4 *)(out + (int64_t)r * LATENT) =
            *(const uint4 *)(sm.q[4 * half + lane / 8] + r * 128 + ((lane % 8) ^ (r & 7)) * 16);
    fence_async();
    __syncwarp();
}

/* The result of a tile that sees nothing. Not by the queries' memory, which may be the next tile's.
 */
static __device__ __forceinline__ void write_nothing(const params &p, const pending &d)
{
    for (int i = threadIdx.x; i < d.rows * (LATENT / 8); i += MATH_THREADS)
        ((uint4 *)(p.out + d.row * LATENT))[i] = make_uint4(0, 0, 0, 0);
    for (int i = threadIdx.x; p.lse && i < d.rows; i += MATH_THREADS)
        p.lse[d.row + i] = INFINITY;
}

static __device__ __forceinline__ float weight_of(float m, float reference)
{
    return m == -INFINITY ? 0 : exp2_fast(m - reference);
}

/* Partial results keep the shape of the accumulators: value j of a math thread is a float4 at
 * (j, thread), so that warps read and write 512 bytes at once. */
template <int CLUSTER> struct partial {
    const params &p;
    int64_t tile; /* of its slot and block */

    __device__ __forceinline__ partial(const params &p, int slot, uint32_t rank)
        : p(p), tile((int64_t)slot * CLUSTER + rank)
    {
    }
    __device__ __forceinline__ float4 *o(int j, int thread) const
    {
        return (float4 *)p.partial_o + (tile * 32 + j) * MATH_THREADS + thread;
    }
    __device__ __forceinline__ float2 *ml(int row) const
    {
        return (float2 *)p.partial_ml + tile * ROWS + row;
    }
};

/* This part's sums of a shared unit, to the workspace. */
template <int CLUSTER>
static __device__ __forceinline__ void
write_partial(const params &p, const math &t, const float (&l)[2], const pending &d, uint32_t rank)
{
    partial<CLUSTER> to(p, partial_slot(p, d, d.index), rank);

    if (t.row / 16 * 16 < d.rows) {
#pragma unroll
        for (int j = 0; j < 32; j++)
            __stcg(to.o(j, threadIdx.x),
                   make_float4(t.at(4 * j), t.at(4 * j + 1), t.at(4 * j + 2), t.at(4 * j + 3)));
        if (threadIdx.x < 128 && threadIdx.x % 4 == 0) {
            __stcg(to.ml(t.row), make_float2(t.m[0], l[0]));
            __stcg(to.ml(t.row + 8), make_float2(t.m[1], l[1]));
        }
    }
    named_sync(1, MATH_THREADS);
    if (threadIdx.x == 0) {
        __threadfence(); /* for all: the barrier made their writes this thread's */
        atomicAdd(&p.counters[2 * (d.part0 * CLUSTER + (int)rank)], 1);
    }
}

static __device__ __forceinline__ void await_parts(uint32_t *counter, int n)
{
    uint32_t seen;

    if (threadIdx.x == 0)
        do
            asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        while (seen < (uint32_t)n);
    named_sync(1, MATH_THREADS);
}

/* Few parts: the first one, for which the unit is the last thing it does, adds the others' sums to
 * its own in registers. They have the unit first, so they are done before. */
template <int CLUSTER>
static __device__ __forceinline__ void merge_here(const params &p, math &t, float (&l)[2],
                                                  const pending &d, uint32_t rank)
{
    uint32_t *counter = &p.counters[2 * (d.part0 * CLUSTER + (int)rank)];

    await_parts(counter, d.n - 1);
    if (threadIdx.x == 0)
        *counter = 0;
    if (t.row / 16 * 16 >= d.rows)
        return;
    for (int k = 1; k < d.n; k++) {
        partial<CLUSTER> from(p, partial_slot(p, d, k), rank);
        float mine[2], theirs[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float2 ml = __ldcg(from.ml(t.row + 8 * r));
            float m = fmaxf(t.m[r], ml.x);
            mine[r] = weight_of(t.m[r], m);
            theirs[r] = weight_of(ml.x, m);
            l[r] = l[r] * mine[r] + ml.y * theirs[r];
            t.m[r] = m;
        }
#pragma unroll
        for (int j = 0; j < 32; j++) { /* unrolled: o stays in registers */
            float4 x = __ldcg(from.o(j, threadIdx.x));
            if (j % 4 == 3)
                asm volatile("" ::: "memory");
            t.at(4 * j) = t.at(4 * j) * mine[0] + x.x * theirs[0];
            t.at(4 * j + 1) = t.at(4 * j + 1) * mine[0] + x.y * theirs[0];
            t.at(4 * j + 2) = t.at(4 * j + 2) * mine[1] + x.z * theirs[1];
            t.at(4 * j + 3) = t.at(4 * j + 3) * mine[1] + x.w * theirs[1];
        }
    }
}

/* The weights with which the parts of a unit enter its rows, to shared memory (n, 64), by 256
 * threads: four threads a row. The pages' memory is free by now. */
template <int CLUSTER>
static __device__ __forceinline__ void merge_weights(const params &p, shared &sm, const pending &d,
                                                     uint32_t rank)
{
    float *weights = (float *)sm.kv;
    float2 *mls = (float2 *)(weights + d.n * ROWS);
    int row = threadIdx.x / 4, first = threadIdx.x % 4;
    float m = -INFINITY, l = 0;

    for (int i = threadIdx.x; i < d.n * ROWS; i += MATH_THREADS) {
        partial<CLUSTER> part(p, partial_slot(p, d, i / ROWS), rank);
        mls[i] = __ldcg(part.ml(i % ROWS));
    }
    named_sync(1, MATH_THREADS);
    for (int k = first; k < d.n; k += 4)
        m = fmaxf(m, mls[k * ROWS + row].x);
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
    for (int k = first; k < d.n; k += 4) {
        float2 ml = mls[k * ROWS + row];
        l += ml.y * weight_of(ml.x, m);
    }
    l += __shfl_xor_sync(~0u, l, 1);
    l += __shfl_xor_sync(~0u, l, 2);
    float f = l > 0 ? 1 / l : 0;
    for (int k = first; k < d.n; k += 4)
        weights[k * ROWS + row] = f * weight_of(mls[k * ROWS + row].x, m);
    if (p.lse && d.index == 0 && first == 0 && row < d.rows)
        p.lse[d.row + row] = lse_of(m, l);
    named_sync(1, MATH_THREADS);
}

/* Parts from .. to - 1 of piece (j, thread's warp): the thread's values of them, added in order.
 * Loads go out eight parts at a time. */
template <int CLUSTER>
static __device__ __forceinline__ float4 merge_parts(const params &p, const shared &sm,
                                                     const pending &d, uint32_t rank, int j,
                                                     int thread, int from, int to)
{
    enum { BATCH = 8 };
    const float *weights = (const float *)sm.kv + thread % 128 / 32 * 16 + thread % 32 / 4;
    float4 o = make_float4(0, 0, 0, 0);

#pragma unroll 1
    for (int k = from; k < to; k += BATCH) {
        float4 x[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            partial<CLUSTER> part(p, partial_slot(p, d, min(k + i, to - 1)), rank);
            x[i] = __ldcg(part.o(j, thread));
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const float *w = weights + min(k + i, to - 1) * ROWS;
            float f = k + i < to ? w[0] : 0, g = k + i < to ? w[8] : 0;
            if (k + i < to) {
                o.x += f * x[i].x, o.y += f * x[i].y;
                o.z += g * x[i].z, o.w += g * x[i].w;
            }
        }
    }
    return o;
}

static __device__ __forceinline__ void merge_write(const params &p, const pending &d,
                                                   const float4 &o, int j, int thread)
{
    int row = thread % 128 / 32 * 16 + thread % 32 / 4;
    int column = thread / 128 * 256 + 8 * j + thread % 4 * 2;
    __nv_bfloat16 *out = p.out + (d.row + row) * LATENT + column;

    if (row < d.rows)
        *(__nv_bfloat162 *)out = __floats2bfloat162_rn(o.x, o.y);
    if (row + 8 < d.rows)
        *(__nv_bfloat162 *)(out + 8 * LATENT) = __floats2bfloat162_rn(o.z, o.w);
}

/* Many parts: each merges an equal share of the pieces (j, warp) of the accumulators, a warp a
 * piece or, when there are fewer pieces than warps, several warps a piece, each with some of the
 * parts. Waits until all parts are in the workspace: all blocks of the grid run at once and do
 * their own parts first, so the wait ends. The last part to leave resets the counters for the next
 * call. */
template <int CLUSTER>
static __device__ void merge(const params &p, shared &sm, const pending &d, uint32_t rank)
{
    uint32_t *counter = &p.counters[2 * (d.part0 * CLUSTER + (int)rank)];
    int row_warps = (d.rows + 15) / 16, pieces = 32 * 2 * row_warps;
    int first = pieces * d.index / d.n, end = pieces * (d.index + 1) / d.n, n = end - first;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int each = n > 4 ? 1 : n > 2 ? 2 : n > 1 ? 4 : 8;

    await_parts(counter, d.n);
    merge_weights<CLUSTER>(p, sm, d, rank);
    for (int i = first + warp / each; i - warp / each < end; i += 8 / each) {
        int at = min(i, end - 1), w = at % (2 * row_warps), j = at / (2 * row_warps);
        int thread = (w / row_warps * 4 + w % row_warps) * 32 + lane, k = warp % each;
        float4 o =
            merge_parts<CLUSTER>(p, sm, d, rank, j, thread, d.n * k / each, d.n * (k + 1) / each);
        if (each > 1) {
            float4 *all = (float4 *)sm.p;
            all[threadIdx.x] = o;
            named_sync(1, MATH_THREADS);
            for (int other = 1; k == 0 && other < each; other++) {
                float4 x = all[threadIdx.x + 32 * other];
                o.x += x.x, o.y += x.y, o.z += x.z, o.w += x.w;
            }
            named_sync(1, MATH_THREADS);
        }
        if (k == 0 && i < end)
            merge_write(p, d, o, j, thread);
    }
    named_sync(1, MATH_THREADS);
    if (threadIdx.x == 0 && atomicAdd(counter + 1, 1) == (uint32_t)d.n - 1)
        counter[0] = counter[1] = 0;
}

} // namespace mla_wide
