/* Results of the 64-row decode kernel: finished tiles to the output; parts of a sequence that
 * several blocks share, to the workspace and merged from there. See mla_wide.cuh. */
#pragma once

#include "kernels/cuda/mla_wide_types.cuh"

namespace mla_wide
{

/* ---- results --------------------------------------------------------------------------------- */

/* Set when part k of a unit is in the workspace. The unit is the last one of its first part and the
 * first one of all others. */
template <int CLUSTER>
static __device__ __forceinline__ uint32_t *flag_of(const params &p, const pending &d, int k,
                                                    uint32_t rank)
{
    return p.flags + ((k > 0) * CLUSTER + (int)rank) * p.parts + d.slot + k;
}

/* Row sums of a unit, from the scores' warpgroup. */
static __device__ __forceinline__ void take_sums(shared &sm, const math &t, float (&l)[2],
                                                 int n_units)
{
    int parity = n_units % 2;

    mbar_wait(smem_u32(&sm.l_full[parity]), n_units / 2 % 2);
    l[0] = sm.l[parity][t.row];
    l[1] = sm.l[parity][t.row + 8];
    mbar_arrive(smem_u32(&sm.l_empty[parity]));
}

static __device__ __forceinline__ float lse_of(float m, float l)
{
    return l > 0 ? (m + __log2f(l)) * (float)M_LN2 : INFINITY;
}

/* The finished tile, by way of shared memory (eight boxes), so that rows are stored 512 bytes at a
 * time. */
static __device__ __forceinline__ void write_out(const params &p, uint8_t (*to)[BOX], const math &t,
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
        store_matrices(smem_u32(to[4 * half + j / 4]) + row * 128 +
                           ((j % 4 * 2 + lane / 16) ^ (row & 7)) * 16,
                       v[0], v[1], v[2], v[3]);
    }
    __syncwarp();
    __nv_bfloat16 *out = p.out + d.row * LATENT + half * 256 + lane * 8;
#pragma unroll
    for (int first = 0; first < 16; first += 8) {
        const uint8_t *box = to[4 * half + lane / 8] + (row16 + first) * 128;
        uint4 x[8];
#pragma unroll
        for (int i = 0; i < 8; i++)
            x[i] = *(const uint4 *)(box + i * 128 + (lane % 8 ^ i) * 16);
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (row16 + first + i < d.rows)
                *(uint4 *)(out + (int64_t)(row16 + first + i) * LATENT) = x[i];
    }
    fence_async();
    __syncwarp();
}

/* The result of a tile that sees nothing. Not by the queries' memory, which may be the next tile's.
 */
static __device__ __forceinline__ void write_nothing(const params &p, const pending &d)
{
#pragma unroll 1
    for (int i = threadIdx.x; i < d.rows * (LATENT / 8); i += MATH_THREADS)
        ((uint4 *)(p.out + d.row * LATENT))[i] = make_uint4(0, 0, 0, 0);
    for (int i = threadIdx.x; p.lse && i < d.rows; i += MATH_THREADS)
        p.lse[d.row + i] = INFINITY;
}

static __device__ __forceinline__ float weight_of(float m, float reference)
{
    return m == -INFINITY ? 0 : exp2_fast(m - reference);
}

/* Part k's partial result, by pieces, which keep the shape of the accumulators: a float4 a thread.
 */
template <int CLUSTER> struct partial {
    const params &p;
    int64_t tile;

    __device__ __forceinline__ partial(const params &p, const pending &d, int k, uint32_t rank)
        : p(p), tile((int64_t)(2 * (d.slot + k) + (k == 0)) * CLUSTER + rank)
    {
    }
    __device__ __forceinline__ float4 *o(int piece) const
    {
        return (float4 *)p.partial_o + (tile * PIECES + piece) * 32;
    }
    __device__ __forceinline__ float2 *ml(int row) const
    {
        return (float2 *)p.partial_ml + tile * ROWS + row;
    }
};

/* The first of the 32 pieces, four apart, that this warp's accumulators are. */
static __device__ __forceinline__ int warp_piece()
{
    return threadIdx.x / 128 * (PIECES / 2) + threadIdx.x % 128 / 32;
}

static __device__ __forceinline__ void store_release(uint32_t *to, uint32_t x)
{
    asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}

/* This part's sums of a shared unit, to the workspace. */
template <int CLUSTER>
static __device__ __forceinline__ void write_partial(const params &p, shared &sm, const math &t,
                                                     const float (&l)[2], const pending &d,
                                                     uint32_t rank)
{
    const partial<CLUSTER> to(p, d, d.index, rank);
    float4 *o = to.o(warp_piece());

    if (d.keeps_half() && (int)threadIdx.x / 128 == d.index)
        o = (float4 *)sm.q + threadIdx.x % 128 / 32 * 32;
    o += threadIdx.x % 32;
    if (t.row / 16 * 16 < d.rows) {
#pragma unroll
        for (int j = 0; j < 32; j++)
            o[j * 4 * 32] =
                make_float4(t.at(4 * j), t.at(4 * j + 1), t.at(4 * j + 2), t.at(4 * j + 3));
        if (threadIdx.x < 128 && threadIdx.x % 4 == 0) {
            __stcg(to.ml(t.row), make_float2(t.m[0], l[0]));
            __stcg(to.ml(t.row + 8), make_float2(t.m[1], l[1]));
        }
    }
    named_sync(1, MATH_THREADS);
    if (threadIdx.x == 0) /* for all: the barrier made their writes this thread's */
        store_release(flag_of<CLUSTER>(p, d, d.index, rank), 1);
}

/* Between what other blocks wrote and the copy engine's reads of it. Without `.global` it would be
 * a fence of the whole GPU as well, about a microsecond. */
static __device__ __forceinline__ void fence_async_global()
{
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

static __device__ __forceinline__ uint32_t load_acquire(const uint32_t *from)
{
    uint32_t x;

    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
    return x;
}

/* Few parts: the first one, for which the unit is the last thing it does, adds the others' sums to
 * its own in registers. They have the unit first, so they are done before. */
template <int CLUSTER>
static __device__ __forceinline__ void merge_here(const params &p, math &t, float (&l)[2],
                                                  const pending &d, uint32_t rank)
{
    if (threadIdx.x == 0)
        for (int k = 1; k < d.n; k++) {
            uint32_t *flag = flag_of<CLUSTER>(p, d, k, rank);
            while (load_acquire(flag) == 0) {
            }
            *flag = 0;
        }
    named_sync(1, MATH_THREADS);
    if (t.row / 16 * 16 >= d.rows)
        return;
    for (int k = 1; k < d.n; k++) {
        const partial<CLUSTER> from(p, d, k, rank);
        const float4 *o = from.o(warp_piece()) + threadIdx.x % 32;
        float ours[2], theirs[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float2 ml = __ldcg(from.ml(t.row + 8 * r));
            float m = fmaxf(t.m[r], ml.x);
            ours[r] = weight_of(t.m[r], m);
            theirs[r] = weight_of(ml.x, m);
            l[r] = l[r] * ours[r] + ml.y * theirs[r];
            t.m[r] = m;
        }
#pragma unroll
        for (int j = 0; j < 32; j++) { /* unrolled: o stays in registers */
            float4 x = __ldcg(o + j * 4 * 32);
            if (j % 4 == 3)
                asm volatile("" ::: "memory");
            t.at(4 * j) = t.at(4 * j) * ours[0] + x.x * theirs[0];
            t.at(4 * j + 1) = t.at(4 * j + 1) * ours[0] + x.y * theirs[0];
            t.at(4 * j + 2) = t.at(4 * j + 2) * ours[1] + x.z * theirs[1];
            t.at(4 * j + 3) = t.at(4 * j + 3) * ours[1] + x.w * theirs[1];
        }
    }
}

/* What a block merges in one go: pieces first .. first + n - 1 of all parts, side by side in the
 * memory of the pages and P, and after them maxima and sums of the rows. */
struct batch {
    enum { ROOM = sizeof(((shared *)0)->kv) + sizeof(((shared *)0)->p) };
    int first, n;
    float4 *o;          /* (parts, n, 32) */
    float2 *ml;         /* (parts, ROWS); later the parts' weights */
    int own;            /* the part that stayed here; -1: none */
    const float4 *kept; /* its pieces: (n, 32) */
};

/* The next batch of pieces first .. end - 1. */
static __device__ __forceinline__ batch next_batch(shared &sm, const pending &d, int first, int end)
{
    int n = min(end - first, quotient(batch::ROOM / 512, d.n) - 1);
    float4 *o = (float4 *)sm.kv;

    return {first,
            n,
            o,
            (float2 *)(o + d.n * n * 32),
            d.keeps_half() ? d.index : -1,
            (const float4 *)sm.q + (first - d.first_piece(d.merger)) * 32};
}

/* Asks for a batch: each part as soon as it is in the workspace. All blocks of the grid run at once
 * and do their own parts first, so the wait ends. A warp looks at flags that stand together. */
template <int CLUSTER>
static __device__ __forceinline__ void fetch_parts(const params &p, shared &sm, const pending &d,
                                                   uint32_t rank, const batch &b)
{
    enum { WARPS = MATH_THREADS / 32 };
    uint32_t full = smem_u32(&sm.merge_full), rows = smem_u32(&sm.rows_full);
    int each = (d.n + WARPS - 1) / WARPS;

    static_assert(MOST_PIECES <= MATH_THREADS, "a thread a part");
    if (threadIdx.x == 0) {
        mbar_arrive_expect(rows, d.n * ROWS * (int)sizeof(float2));
        mbar_arrive_expect(full, (d.n - (b.own >= 0)) * b.n * 512);
    }
    int k = (int)threadIdx.x / 32 * each + (int)threadIdx.x % 32;
    bool missing = (int)threadIdx.x % 32 < each && k < d.n;
    while (__any_sync(~0u, missing)) {
        if (!missing || load_acquire(flag_of<CLUSTER>(p, d, k, rank)) == 0)
            continue;
        const partial<CLUSTER> from(p, d, k, rank);
        fence_async_global();
        bulk_load(smem_u32(b.ml + k * ROWS), from.ml(0), ROWS * sizeof(float2), rows);
        if (k != b.own)
            bulk_load(smem_u32(b.o + k * b.n * 32), from.o(b.first), b.n * 512, full);
        missing = false;
    }
}

/* Maxima of the parts become the weights with which they enter a row's result, four threads a row;
 * 1 / sum to `scale`. */
static __device__ __forceinline__ void weigh(const params &p, const pending &d, const batch &b,
                                             float *scale)
{
    int row = threadIdx.x / 4;
    float2 *ml = b.ml + row;
    float m = -INFINITY, l = 0;

#pragma unroll 2
    for (int k = threadIdx.x % 4; k < d.n; k += 4)
        m = fmaxf(m, ml[k * ROWS].x);
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
#pragma unroll 2
    for (int k = threadIdx.x % 4; k < d.n; k += 4) {
        float w = weight_of(ml[k * ROWS].x, m);
        l += ml[k * ROWS].y * w;
        ml[k * ROWS].x = w;
    }
    l += __shfl_xor_sync(~0u, l, 1);
    l += __shfl_xor_sync(~0u, l, 2);
    if (threadIdx.x % 4 == 0) {
        scale[row] = l > 0 ? __fdividef(1, l) : 0;
        if (p.lse && d.merger == 0 && b.first == 0 && row < d.rows)
            p.lse[d.row + row] = lse_of(m, l);
    }
    named_sync(1, MATH_THREADS);
}

/* Piece i of a batch, by a warp: the sum of parts from .. to - 1, in order. */
static __device__ __forceinline__ float4 add_parts(const batch &b, int i, int from, int to)
{
    int lane = threadIdx.x % 32;
    const float4 *o = b.o + i * 32 + lane;
    const float2 *weights = b.ml + (b.first + i) % 4 * 16 + lane / 4;
    float4 sum = make_float4(0, 0, 0, 0);

#pragma unroll 2
    for (int k = from; k < to; k++) {
        float4 x = *(k == b.own ? b.kept + i * 32 + lane : o + k * b.n * 32);
        float f = weights[k * ROWS].x, g = weights[k * ROWS + 8].x;
        sum.x += f * x.x, sum.y += f * x.y;
        sum.z += g * x.z, sum.w += g * x.w;
    }
    return sum;
}

/* A finished piece, by a warp. */
static __device__ __forceinline__ void merge_write(const params &p, const pending &d,
                                                   const float *scale, int piece, const float4 &o)
{
    int lane = threadIdx.x % 32, row = piece % 4 * 16 + lane / 4;
    float f = scale[row], g = scale[row + 8];
    __nv_bfloat16 *out = p.out + (d.row + row) * LATENT + piece / 4 * 8 + lane % 4 * 2;

    if (row < d.rows)
        *(__nv_bfloat162 *)out = __floats2bfloat162_rn(o.x * f, o.y * f);
    if (row + 8 < d.rows)
        *(__nv_bfloat162 *)(out + 8 * LATENT) = __floats2bfloat162_rn(o.z * g, o.w * g);
}

/* The finished pieces `piece` and `piece` + 4, the columns beside it, by a warp: 32 bytes a row. */
static __device__ __forceinline__ void merge_write_two(const params &p, const pending &d,
                                                       const float *scale, int piece, bool two,
                                                       const float4 &a, const float4 &b)
{
    int lane = threadIdx.x % 32, quarter = lane % 4, from = lane / 4 * 4 + quarter % 2 * 2;
    __nv_bfloat16 *out = p.out + d.row * LATENT + (piece / 4 + quarter / 2) * 8 + quarter % 2 * 4;

#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = piece % 4 * 16 + lane / 4 + 8 * r;
        float f = scale[row];
        __nv_bfloat162 x =
            r ? __floats2bfloat162_rn(a.z * f, a.w * f) : __floats2bfloat162_rn(a.x * f, a.y * f);
        __nv_bfloat162 y =
            r ? __floats2bfloat162_rn(b.z * f, b.w * f) : __floats2bfloat162_rn(b.x * f, b.y * f);
        uint32_t x0 = __shfl_sync(~0u, *(uint32_t *)&x, from);
        uint32_t x1 = __shfl_sync(~0u, *(uint32_t *)&x, from + 1);
        uint32_t y0 = __shfl_sync(~0u, *(uint32_t *)&y, from);
        uint32_t y1 = __shfl_sync(~0u, *(uint32_t *)&y, from + 1);
        if (row < d.rows && (two || quarter < 2))
            *(uint2 *)(out + (int64_t)row * LATENT) =
                quarter < 2 ? make_uint2(x0, x1) : make_uint2(y0, y1);
    }
}

/* A batch whose parts are there: a warp two pieces at a time or, when there are few pieces, several
 * warps one, each with some of the parts. */
static __device__ __forceinline__ void merge_batch(const params &p, shared &sm, const pending &d,
                                                   const batch &b, const float *scale)
{
    int warp = threadIdx.x / 32;

    if (b.n > 4) {
#pragma unroll 1
        for (int i = warp / 4 * 8 + warp % 4; i < b.n; i += 16) {
            bool two = i + 4 < b.n;
            float4 x, y = make_float4(0, 0, 0, 0);
#pragma unroll 1
            for (int j = i; j <= i + 4; j += 4) { /* code that runs once is what takes time */
                x = y;
                y = add_parts(b, min(j, b.n - 1), 0, d.n);
            }
            merge_write_two(p, d, scale, b.first + i, two, x, y);
        }
        return;
    }
    int shift = b.n > 2 ? 1 : b.n > 1 ? 2 : 3, each = 1 << shift; /* warps a piece */
    int i = warp >> shift, k = warp & (each - 1);
    float4 *all = (float4 *)sm.q[7] + threadIdx.x;
    float4 sum = add_parts(b, min(i, b.n - 1), (d.n * k) >> shift, (d.n * (k + 1)) >> shift);
    *all = sum;
    named_sync(1, MATH_THREADS);
    if (k > 0 || i >= b.n)
        return;
#pragma unroll 1
    for (int other = 1; other < each; other++) {
        float4 x = all[32 * other];
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    merge_write(p, d, scale, b.first + i, sum);
}

/* A unit that several parts share: each finishes an equal share of the pieces. The last to leave
 * resets the flags for the next call. `phase`: of merge_full. */
template <int CLUSTER>
static __device__ __forceinline__ void merge(const params &p, shared &sm, const pending &d,
                                             uint32_t rank, uint32_t &phase)
{
    int end = d.first_piece(d.merger + 1), last = 0;
    float *scale = sm.m[0];

#pragma unroll 1
    for (int first = d.first_piece(d.merger); first < end;) {
        const batch b = next_batch(sm, d, first, end);
        fence_async();
        named_sync(1, MATH_THREADS);
        fetch_parts<CLUSTER>(p, sm, d, rank, b);
        mbar_wait(smem_u32(&sm.rows_full), phase);
        weigh(p, d, b, scale);
        mbar_wait(smem_u32(&sm.merge_full), phase);
        phase ^= 1;
        merge_batch(p, sm, d, b, scale);
        first += b.n;
    }
    named_sync(1, MATH_THREADS);
    if (threadIdx.x >= 32)
        return;
    uint32_t *left = p.left + (int)rank * p.parts + d.slot;
    if (threadIdx.x == 0)
        last = atomicAdd(left, 1) == (uint32_t)d.mergers - 1;
    if (__shfl_sync(~0u, last, 0)) {
        for (int k = threadIdx.x; k < d.n; k += 32)
            *flag_of<CLUSTER>(p, d, k, rank) = 0;
        *left = 0;
    }
}

} // namespace mla_wide
