/* Results of the 64-row decode kernel: finished tiles to the output; parts of a sequence that
 * several blocks share, to the workspace and merged from there. See mla_wide.cuh. */
#pragma once

#include "kernels/cuda/mla_partial.cuh"
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

/* 64 columns of eight of the warp's rows of a finished tile (times `f`), to `out`, by way of `part`
 * (1,024 bytes), so that 128 bytes of a row are stored at once. `rows`: from the thread's first. */
static __device__ __forceinline__ void write_turn(const math &t, const float (&f)[2], int turn,
                                                  int lane, uint8_t *part, __nv_bfloat16 *out,
                                                  int rows)
{
    int r = turn % 2, column = turn / 2 * 64;

#pragma unroll
    for (int j = 0; j < 8; j += 4) { /* blocks of eight columns */
        uint32_t v[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int at = (column / 8 + j + k) * 4 + 2 * r;
            __nv_bfloat162 pair = __floats2bfloat162_rn(t.at(at) * f[r], t.at(at + 1) * f[r]);
            v[k] = *(uint32_t *)&pair;
        }
        store_matrices(smem_u32(part) + lane % 8 * 128 + ((j + lane / 8) ^ lane % 8) * 16, v[0],
                       v[1], v[2], v[3]);
    }
    __syncwarp();
    const uint8_t *from = part + lane / 8 * 128;
    uint4 x = *(const uint4 *)(from + (lane % 8 ^ lane / 8) * 16);
    uint4 y = *(const uint4 *)(from + 512 + (lane % 8 ^ (lane / 8 + 4)) * 16);
    if (rows > 8 * r)
        *(uint4 *)(out + 8 * r * LATENT + column) = x;
    if (rows > 8 * r + 4)
        *(uint4 *)(out + (8 * r + 4) * LATENT + column) = y;
    __syncwarp();
}

/* Where a thread's first row of a warpgroup's half goes in write_turn(). */
static __device__ __forceinline__ __nv_bfloat16 *out_of(const params &p, const pending &d, int row,
                                                        int lane, int half)
{
    return p.out + (d.row + row) * LATENT + half * 256 + lane % 8 * 8;
}

static __device__ __forceinline__ void
write_lse(const params &p, const math &t, const float (&l)[2], const pending &d, int lane, int half)
{
    if (p.lse && half == 0 && lane % 4 == 0)
        for (int r = 0; r < 2; r++)
            if (t.row + 8 * r < d.rows)
                p.lse[d.row + t.row + 8 * r] = lse_of(t.m[r], l[r]);
}

/* The finished tile, by way of `place` (a box, of which each warp has a part). */
static __device__ __forceinline__ void write_out(const params &p, uint8_t *place, const math &t,
                                                 const float (&l)[2], const pending &d, int half)
{
    int thread = thread_anew(), lane = thread % 32, row = thread % 128 / 32 * 16 + lane / 8;
    uint8_t *part = place + thread / 32 * 1024;
    const float f[2] = {l[0] > 0 ? 1 / l[0] : 0, l[1] > 0 ? 1 / l[1] : 0};

    write_lse(p, t, l, d, lane, half);
    __nv_bfloat16 *out = out_of(p, d, row, lane, half);
    int rows = d.rows - row;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++)
        write_turn(t, f, turn, lane, part, out, rows);
    fence_async();
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

/* Part k's partial result, by pieces, which keep the shape of the accumulators: eight f16 a thread,
 * columns c and c + 1 of rows r and r + 8, then columns c + 8 and c + 9. */
template <int CLUSTER> struct partial {
    const params &p;
    int64_t tile;

    __device__ __forceinline__ partial(const params &p, const pending &d, int k, uint32_t rank)
        : p(p), tile((int64_t)(2 * (d.slot + k) + (k == 0)) * CLUSTER + rank)
    {
    }
    __device__ __forceinline__ uint4 *o(int piece) const
    {
        return p.partial_o + (tile * PIECES + piece) * 32;
    }
    __device__ __forceinline__ float2 *ml(int row) const
    {
        return (float2 *)p.partial_ml + tile * ROWS + row;
    }
};

/* The first of the 16 pieces that this warp's accumulators are. */
static __device__ __forceinline__ int warp_piece(int thread)
{
    return thread % 128 / 32 * ROW_PIECES + thread / 128 * (ROW_PIECES / 2);
}

static __device__ __forceinline__ void store_release(uint32_t *to, uint32_t x)
{
    asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}

/* To shared memory (`here`) or to the workspace, without a branch: as the compiler has it,
 * addresses are made and waited for at every store. */
static __device__ __forceinline__ void store_either(bool here, uint32_t shared_to, uint4 *to,
                                                    const uint32_t (&v)[4])
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n"
                 "@p st.shared.v4.b32 [%1], {%3, %4, %5, %6};\n"
                 "@!p st.global.v4.b32 [%2], {%3, %4, %5, %6};\n}" ::"r"((int)here),
                 "r"(shared_to), "l"(to), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}

/* Brings the reference of the thread's rows to where their sums fit f16: `m` and `l` become what
 * goes with these, `f` what they have to be multiplied by. By both warpgroups. */
static __device__ __forceinline__ void fit_f16(shared &sm, const math &t, int thread, int row,
                                               float (&f)[2], float (&m)[2], float (&l)[2])
{
    float size[2] = {};

#pragma unroll
    for (int i = 0; i < 128; i++)
        size[i / 2 % 2] += fabsf(t.at(i));
#pragma unroll
    for (int r = 0; r < 2; r++) {
        size[r] += __shfl_xor_sync(~0u, size[r], 1);
        size[r] += __shfl_xor_sync(~0u, size[r], 2);
        if (thread % 4 == 0)
            sm.size[thread / 128][row + 8 * r] = size[r];
    }
    named_sync(1, MATH_THREADS);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        m[r] = t.m[r];
        f[r] = f16_factor(m[r], sm.size[0][row + 8 * r] + sm.size[1][row + 8 * r]);
        l[r] *= f[r];
    }
}

/* This part's sums of a shared unit, to the workspace. */
template <int CLUSTER>
static __device__ __forceinline__ void write_partial(const params &p, shared &sm, const math &t,
                                                     float (&l)[2], const pending &d, uint32_t rank)
{
    int thread = thread_anew(), lane = thread % 32, row = thread % 128 / 32 * 16 + lane / 4;
    float f[2], m[2];

    fit_f16(sm, t, thread, row, f, m, l);
    const partial<CLUSTER> to(p, d, d.index, rank);
    uint4 *o = to.o(warp_piece(thread)) + lane;
    int own = d.first_piece(d.merger),
        n_own = d.keeps_own() ? d.first_piece(d.merger + 1) - own : 0;
    int at = warp_piece(thread) - own; /* among its own */
    uint32_t kept = smem_u32(sm.q) + at * 512 + lane * 16;
    if (row / 16 * 16 < d.rows) {
#pragma unroll
        for (int j = 0; j < 16; j++) {
            uint32_t v[4];
#pragma unroll
            for (int k = 0; k < 4; k++)
                v[k] = pack_f16(t.at(8 * j + 2 * k) * f[k % 2], t.at(8 * j + 2 * k + 1) * f[k % 2]);
            store_either((uint32_t)(at + j) < (uint32_t)n_own, kept + j * 512, o + j * 32, v);
        }
        if (thread < 128 && thread % 4 == 0) {
            __stcg(to.ml(row), make_float2(m[0], l[0]));
            __stcg(to.ml(row + 8), make_float2(m[1], l[1]));
        }
    }
    named_sync(1, MATH_THREADS);
    if (thread == 0) /* for all: the barrier made their writes this thread's */
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
            uint32_t *flag = flag_of<CLUSTER>(p, d, k, rank), looks = 0;
            while (load_acquire(flag) == 0)
                look_again(looks);
            *flag = 0;
        }
    named_sync(1, MATH_THREADS);
    if (t.row / 16 * 16 >= d.rows)
        return;
    for (int k = 1; k < d.n; k++) {
        const partial<CLUSTER> from(p, d, k, rank);
        const uint4 *o = from.o(warp_piece(threadIdx.x)) + threadIdx.x % 32;
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
        for (int j = 0; j < 16; j++) { /* unrolled: o stays in registers */
            uint4 four = __ldcg(o + j * 32);
            const uint32_t x[4] = {four.x, four.y, four.z, four.w};
            if (j % 4 == 3)
                asm volatile("" ::: "memory");
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float2 pair = unpack_f16(x[k]);
                float &a = t.at(8 * j + 2 * k), &b = t.at(8 * j + 2 * k + 1);
                a = a * ours[k % 2] + pair.x * theirs[k % 2];
                b = b * ours[k % 2] + pair.y * theirs[k % 2];
            }
        }
    }
}

/* What a block merges in one go: pieces first .. first + n - 1 of all parts, side by side in the
 * memory of the pages and P, and after them maxima and sums of the rows that they are of. */
struct batch {
    enum { ROOM = sizeof(((shared *)0)->kv) + sizeof(((shared *)0)->p) };
    int first, n;
    int row, rows, stride; /* of them; the stride of parts keeps them in different banks */
    uint4 *o;              /* (parts, n, 32) */
    float2 *ml;            /* (parts, stride); later the parts' weights */
    int own;               /* the part that stayed here; -1: none */
    const uint4 *kept;     /* its pieces: (n, 32) */
};

/* The next batch of pieces first .. end - 1. */
static __device__ __forceinline__ batch next_batch(shared &sm, const pending &d, int first, int end)
{
    bool same_rows = first / ROW_PIECES == (end - 1) / ROW_PIECES;
    int row = first / ROW_PIECES * 16, stride = (same_rows ? 16 : (int)ROWS) + 2;
    int n = min(end - first, (quotient(batch::ROOM / 16, d.n) - stride / 2) / 32);
    uint4 *o = (uint4 *)sm.kv;

    return {first,
            n,
            row,
            (first + n - 1) / ROW_PIECES * 16 + 16 - row,
            stride,
            o,
            (float2 *)(o + d.n * n * 32),
            d.keeps_own() ? d.index : -1,
            (const uint4 *)sm.q + (first - d.first_piece(d.merger)) * 32};
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
        mbar_arrive_expect(rows, d.n * b.rows * (int)sizeof(float2));
        mbar_arrive_expect(full, (d.n - (b.own >= 0)) * b.n * 512);
    }
    int k = (int)threadIdx.x / 32 * each + (int)threadIdx.x % 32;
    bool missing = (int)threadIdx.x % 32 < each && k < d.n;
    uint32_t looks = 0;
    while (__any_sync(~0u, missing)) {
        look_again(looks);
        if (!missing || load_acquire(flag_of<CLUSTER>(p, d, k, rank)) == 0)
            continue;
        const partial<CLUSTER> from(p, d, k, rank);
        fence_async_global();
        bulk_load(smem_u32(b.ml + k * b.stride), from.ml(b.row), b.rows * sizeof(float2), rows);
        if (k != b.own)
            bulk_load(smem_u32(b.o + k * b.n * 32), from.o(b.first), b.n * 512, full);
        missing = false;
    }
}

/* Maxima of the parts become the weights with which they enter a row's result, EACH threads a row;
 * 1 / sum to `scale`. */
template <int EACH>
static __device__ __forceinline__ void weigh_rows(const params &p, const pending &d, const batch &b,
                                                  float *scale)
{
    int at = (int)threadIdx.x / EACH, row = b.row + at, step = EACH * b.stride;
    float2 *begin = b.ml + (int)threadIdx.x % EACH * b.stride + at, *end = b.ml + d.n * b.stride;
    float m = -INFINITY, l = 0;

    if (at >= b.rows) /* the same in a warp */
        return;
#pragma unroll 1
    for (float2 *ml = begin; ml < end; ml += step)
        m = fmaxf(m, ml->x);
#pragma unroll
    for (int i = 1; i < EACH; i *= 2)
        m = fmaxf(m, __shfl_xor_sync(~0u, m, i));
#pragma unroll 1
    for (float2 *ml = begin; ml < end; ml += step) {
        float w = weight_of(ml->x, m);
        l += ml->y * w;
        ml->x = w;
    }
#pragma unroll
    for (int i = 1; i < EACH; i *= 2)
        l += __shfl_xor_sync(~0u, l, i);
    if (threadIdx.x % EACH == 0) {
        int first = row / 16 * ROW_PIECES; /* who has this piece writes lse */
        scale[row] = l > 0 ? __fdividef(1, l) : 0;
        if (p.lse && row < d.rows && first >= b.first && first < b.first + b.n)
            p.lse[d.row + row] = lse_of(m, l);
    }
}

static __device__ __forceinline__ void weigh(const params &p, const pending &d, const batch &b,
                                             float *scale)
{
    if (b.rows == 16)
        weigh_rows<16>(p, d, b, scale);
    else
        weigh_rows<4>(p, d, b, scale);
    named_sync(1, MATH_THREADS);
}

/* A thread's eight values of a piece, in the order of struct partial. */
struct values8 {
    float x[8];
};

/* N pieces of a batch from i on, of the same rows, by a warp: the sums of parts from .. to - 1, in
 * order. */
template <int N>
static __device__ __forceinline__ void add_parts(const batch &b, int i, int from, int to,
                                                 values8 (&sum)[N])
{
    int lane = threadIdx.x % 32;
    const uint4 *o = b.o + (from * b.n + i) * 32 + lane;
    const float2 *weights =
        b.ml + from * b.stride + (b.first + i) / ROW_PIECES * 16 - b.row + lane / 4;

#pragma unroll
    for (int p = 0; p < N; p++)
        sum[p] = {};
#pragma unroll 4
    for (int k = from; k < to; k++, o += b.n * 32, weights += b.stride) {
        const float f[2] = {weights[0].x, weights[8].x};
        const uint4 *at = k == b.own ? b.kept + i * 32 + lane : o;
#pragma unroll
        for (int p = 0; p < N; p++) {
            uint4 four = at[32 * p];
            const uint32_t x[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 pair = unpack_f16(x[j]);
                sum[p].x[2 * j] += f[j % 2] * pair.x;
                sum[p].x[2 * j + 1] += f[j % 2] * pair.y;
            }
        }
    }
}

/* A finished piece, by a warp: 32 bytes a row. */
static __device__ __forceinline__ void merge_write(const params &p, const pending &d,
                                                   const float *scale, int piece, const values8 &o)
{
    int lane = threadIdx.x % 32, quarter = lane % 4, from = lane / 4 * 4 + quarter % 2 * 2;
    __nv_bfloat16 *out =
        p.out + d.row * LATENT + piece % ROW_PIECES * 16 + quarter / 2 * 8 + quarter % 2 * 4;

#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = piece / ROW_PIECES * 16 + lane / 4 + 8 * r;
        float f = scale[row];
        __nv_bfloat162 x = __floats2bfloat162_rn(o.x[2 * r] * f, o.x[2 * r + 1] * f);
        __nv_bfloat162 y = __floats2bfloat162_rn(o.x[4 + 2 * r] * f, o.x[5 + 2 * r] * f);
        uint32_t x0 = __shfl_sync(~0u, *(uint32_t *)&x, from);
        uint32_t x1 = __shfl_sync(~0u, *(uint32_t *)&x, from + 1);
        uint32_t y0 = __shfl_sync(~0u, *(uint32_t *)&y, from);
        uint32_t y1 = __shfl_sync(~0u, *(uint32_t *)&y, from + 1);
        if (row < d.rows)
            *(uint2 *)(out + (int64_t)row * LATENT) =
                quarter < 2 ? make_uint2(x0, x1) : make_uint2(y0, y1);
    }
}

/* A batch whose parts are there: a warp two pieces at a time, one or, when there are few, several
 * warps one, each with some of the parts. */
static __device__ __forceinline__ void merge_batch(const params &p, shared &sm, const pending &d,
                                                   const batch &b, const float *scale)
{
    enum { WARPS = MATH_THREADS / 32 };
    int warp = threadIdx.x / 32;

    if ((b.first | b.n) % 2 == 0 && b.n >= 2 * WARPS) { /* two beside each other */
#pragma unroll 1
        for (int i = 2 * warp; i < b.n; i += 2 * WARPS) {
            values8 two[2];
            add_parts(b, i, 0, d.n, two);
            merge_write(p, d, scale, b.first + i, two[0]);
            merge_write(p, d, scale, b.first + i + 1, two[1]);
        }
        return;
    }
    int shift = b.n > 4 ? 0 : b.n > 2 ? 1 : b.n > 1 ? 2 : 3, each = 1 << shift; /* warps a piece */
#pragma unroll 1
    for (int i = warp >> shift; i < (shift ? WARPS >> shift : b.n); i += WARPS) {
        int k = warp & (each - 1);
        values8 one[1];
        add_parts(b, min(i, b.n - 1), (d.n * k) >> shift, (d.n * (k + 1)) >> shift, one);
        if (shift) {
            float4 *all = (float4 *)sm.q[7] + 2 * threadIdx.x;
            float(&x)[8] = one[0].x;
            all[0] = make_float4(x[0], x[1], x[2], x[3]);
            all[1] = make_float4(x[4], x[5], x[6], x[7]);
            named_sync(1, MATH_THREADS);
#pragma unroll 1
            for (int other = 1; other < each && k == 0; other++) {
                const float *y = (const float *)(all + 2 * 32 * other);
#pragma unroll
                for (int j = 0; j < 8; j++)
                    x[j] += y[j];
            }
        }
        if (k == 0 && i < b.n)
            merge_write(p, d, scale, b.first + i, one[0]);
    }
}

/* A unit that several parts share: each finishes an equal share of the pieces. The last to have
 * seen all parts resets the flags for the next call. `phase`: of merge_full. */
template <int CLUSTER>
static __device__ __forceinline__ void merge(const params &p, shared &sm, const pending &d,
                                             uint32_t rank, uint32_t &phase)
{
    uint32_t *left = p.left + (int)rank * p.parts + d.slot;
    int end = d.first_piece(d.merger + 1), before = 0;
    float *scale = sm.m[0];

#pragma unroll 1
    for (int begin = d.first_piece(d.merger), first = begin; first < end;) {
        const batch b = next_batch(sm, d, first, end);
        /* What is there at first was fenced by who wrote it, and a fence waits for all stores. */
        if (first > begin)
            fence_async();
        named_sync(1, MATH_THREADS);
        fetch_parts<CLUSTER>(p, sm, d, rank, b);
        mbar_wait(smem_u32(&sm.rows_full), phase);
        if (threadIdx.x == 0 && first + b.n == end)
            before = atomicAdd(left, 1);
        weigh(p, d, b, scale);
        mbar_wait(smem_u32(&sm.merge_full), phase);
        phase ^= 1;
        merge_batch(p, sm, d, b, scale);
        first += b.n;
    }
    if (threadIdx.x < 32 && __shfl_sync(~0u, before, 0) == d.mergers - 1) {
        for (int k = threadIdx.x; k < d.n; k += 32)
            *flag_of<CLUSTER>(p, d, k, rank) = 0;
        *left = 0;
    }
}

} // namespace mla_wide
