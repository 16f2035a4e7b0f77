/* The FP8 cache in the decode kernel for few query rows: tiles are rows as they stand
 * in the cache, widened in registers on the way into the products (mma.sync, and wgmma for
 * the scores of 32 rows: shared memory would have to hold a second tile otherwise, and warps to
 * fill it).
 *
 * Scores: e4m3 to half, exactly. Queries are halves too, those of 128 columns of a row times the
 * power of two that brings them near the top of half's range; the scores of 128 columns are
 * multiplied by the token's scale and divided by that power in float. The rope part is bf16.
 * Values: e4m3's bits as those of a bf16 are its value times 2^-120, subnormal ones too. The
 * tokens' scales go into the probabilities, with 2^60 to stay inside float's range; finish_values()
 * takes the other 2^60.
 *
 * Which columns stand in which place of a product is free as long as both operands agree; it is
 * chosen so that a thread gets 16 bytes at a time. Product `step` of 128 columns has at its place
 * 2 q + 8 h + e (q: lane % 4) the column 32 q + 4 step + 2 h + e. Rows of O^T: 16 w + r of a block
 * is its column 16 w + 2 (r % 8) + r / 8. */
#pragma once

#include "kernels/cuda/mla_few_math.cuh"

#include <cuda_fp16.h>

namespace mla_few
{

static __device__ __forceinline__ void mma_f16(float *d, const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void mma_bf16(float *d, const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void wgmma_f16(float (&d)[16], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, "
                 "%6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "{%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

static __device__ __forceinline__ void load_turned(uint32_t addr, uint32_t *a)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(addr)
                 : "memory");
}

/* In this place: all reads at once would take too many registers. */
static __device__ __forceinline__ uint4 read_16(uint32_t addr)
{
    uint4 v;

    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(addr)
                 : "memory");
    return v;
}

/* The lower, the upper two of four e4m3 values, as halves. */
static __device__ __forceinline__ uint32_t widen_low(uint32_t four)
{
    uint32_t r;

    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f16x2.e4m3x2 %0, low;\n}"
        : "=r"(r)
        : "r"(four));
    return r;
}

static __device__ __forceinline__ uint32_t widen_high(uint32_t four)
{
    uint32_t r;

    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f16x2.e4m3x2 %0, high;\n}"
        : "=r"(r)
        : "r"(four));
    return r;
}

/* ---- queries ---------------------------------------------------------------------------------
 *
 * The right operands of a group's products (steps): 8 GROUPS of latent, then ROPE / 32 of rope. For
 * wgmma they stand in boxes of N rows of 128 bytes, swizzled, as the bf16 ones do; for mma.sync as
 * the lanes need them, 16 bytes each: two words for each block of 8 columns. */

template <class S> struct q_words {
    static constexpr int ROPE_STEPS = S::ROPE / 32, LATENT_STEPS = 8 * S::GROUPS;

    uint4 at[2][LATENT_STEPS + ROPE_STEPS][32]; /* [group][step][lane] */
};

/* Puts this lane's words 0 and 1 of product `step` of group `half`, query rows 8 j .., there. */
template <class S>
static __device__ __forceinline__ void put_words(shared<S> &s, int half, int step, int j,
                                                 uint32_t word0, uint32_t word1)
{
    constexpr int LATENT_STEPS = q_words<S>::LATENT_STEPS, ROPE_STEPS = q_words<S>::ROPE_STEPS;
    int lane = threadIdx.x % 32, row = lane / 4, rope = step - LATENT_STEPS;

    if constexpr (S::BY_COLUMNS) {
        int box = rope < 0 ? (half * LATENT_STEPS + step) / 4 : S::BLOCKS;
        int chunk = 2 * (rope < 0 ? step % 4 : half * ROPE_STEPS + rope);
        uint8_t *line = s.q[0] + box * (S::N * 128) + (8 * j + row) * 128 + lane % 4 * 4;
        *(uint32_t *)(line + ((chunk ^ row) << 4)) = word0;
        *(uint32_t *)(line + ((chunk + 1 ^ row) << 4)) = word1;
    } else {
        uint32_t *to = (uint32_t *)&((q_words<S> *)s.q[0])->at[half][step][lane];
        *(uint2 *)(to + j * 2) = make_uint2(word0, word1);
    }
}

/* By a warp: 32 of 128 latent columns (`part` of the row's) of query row `row`, for each lane. */
template <class S>
static __device__ __forceinline__ void load_latent_part(uint32_t (&v)[16], const params &p,
                                                        const piece &x, int part, int row)
{
    const uint4 *from = (const uint4 *)(p.q + (x.out_row + row) * (S::LATENT + S::ROPE) +
                                        128 * part + 32 * (threadIdx.x % 4));

#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint4 w = row < x.rows ? __ldcg(from + i) : make_uint4(0, 0, 0, 0);
        v[4 * i] = w.x, v[4 * i + 1] = w.y, v[4 * i + 2] = w.z, v[4 * i + 3] = w.w;
    }
}

template <class S>
static __device__ __forceinline__ void store_latent_part(const uint32_t (&v)[16], shared<S> &s,
                                                         int part, int j)
{
    int lane = threadIdx.x % 32, row = 8 * j + lane / 4, half = part / S::GROUPS;
    uint32_t most = 0;

#pragma unroll
    for (int i = 0; i < 16; i++)
        most = max(most, max(v[i] << 1 & 0xffff0000, v[i] << 17));
    most = max(most, __shfl_xor_sync(~0u, most, 1));
    most = max(most, __shfl_xor_sync(~0u, most, 2));
    /* The largest becomes 2^14 .. 2^15. An exponent near either end has nothing to be exact for. */
    int shift = most == 0 ? 0 : min(max(14 + 127 - (int)(most >> 24), -100), 100);
    float factor = __uint_as_float((uint32_t)(127 + shift) << 23);
    if (lane % 4 == 0)
        s.q_factor[half][part % S::GROUPS][row] = __uint_as_float((uint32_t)(127 - shift) << 23);
#pragma unroll
    for (int step = 0; step < 8; step++) {
        uint32_t b[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2 f = __bfloat1622float2(*(const __nv_bfloat162 *)&v[2 * step + h]);
            __half2 two = __floats2half2_rn(f.x * factor, f.y * factor);
            b[h] = *(uint32_t *)&two;
        }
        put_words<S>(s, half, part % S::GROUPS * 8 + step, j, b[0], b[1]);
    }
}

/* The rope columns of query rows 8 j .., of steps `half`. */
template <class S>
static __device__ __forceinline__ void store_rope_part(const params &p, shared<S> &s,
                                                       const piece &x, int half, int j)
{
    constexpr int STEPS = q_words<S>::ROPE_STEPS;
    int lane = threadIdx.x % 32, row = 8 * j + lane / 4;
    const uint32_t *from = (const uint32_t *)(p.q + (x.out_row + row) * (S::LATENT + S::ROPE) +
                                              S::LATENT + 16 * STEPS * half + 2 * (lane % 4));

#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        uint32_t b0 = row < x.rows ? __ldcg(from + 8 * step) : 0;
        uint32_t b1 = row < x.rows ? __ldcg(from + 8 * step + 4) : 0;
        put_words<S>(s, half, 8 * S::GROUPS + step, j, b0, b1);
    }
}

/* A piece's query rows in shared memory. */
template <class S>
static __device__ __forceinline__ void store_queries(const params &p, shared<S> &s, const piece &x)
{
    static_assert(S::BY_COLUMNS || sizeof(q_words<S>) <= S::Q_BYTES, "queries");
    constexpr int JOBS = 2 * S::GROUPS * (S::N / 8), WARPS = S::MATH / 32;
    static_assert(2 * (S::N / 8) <= WARPS, "a part for each warp");
    int warp = thread() / 32;

    if (warp < 2 * (S::N / 8))
        store_rope_part<S>(p, s, x, warp % 2, warp / 2);
#pragma unroll 1
    for (int job = warp; job < JOBS; job += WARPS) {
        uint32_t v[16];
        load_latent_part<S>(v, p, x, job % (2 * S::GROUPS),
                            8 * (job / (2 * S::GROUPS)) + threadIdx.x % 32 / 4);
        store_latent_part<S>(v, s, job % (2 * S::GROUPS), job / (2 * S::GROUPS));
    }
    if (S::BY_COLUMNS)
        fence_async();
    sync_math<S>();
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* The scales of this thread's tokens for COUNT times 128 columns from the `first` on; 0 for a token
 * past the tile's `valid`. */
template <class S, int COUNT>
static __device__ __forceinline__ void read_scales(float (&scale)[COUNT][2], const uint8_t *tile,
                                                   int valid, int first)
{
    int t = thread();

#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = t % GROUP_THREADS / 32 * 16 + t % 32 / 4 + 8 * i;
        const float *from = (const float *)(tile + row * S::RAW_ROW + S::LATENT) + first;
#pragma unroll
        for (int g = 0; g < COUNT; g++)
            scale[g][i] = row < valid ? from[g] : 0;
    }
}

/* d += the sums of 128 columns from the `first` on, times their queries' and tokens' factors. */
template <class S>
static __device__ __forceinline__ void add_scaled(float (&d)[S::N / 2],
                                                  const float (&sum)[S::N / 2], const shared<S> &s,
                                                  int g, const float (&scale)[2])
{
    const float *factor = s.q_factor[group<S>()][g] + 2 * (threadIdx.x % 4);

#pragma unroll
    for (int j = 0; j < S::N / 8; j++) {
        float2 f = *(const float2 *)&factor[8 * j];
#pragma unroll
        for (int i = 0; i < 4; i++)
            d[4 * j + i] += sum[4 * j + i] * (i % 2 ? f.y : f.x) * scale[i / 2];
    }
}

/* 16 rows: d = K Q^T over this group's half of the row. */
template <class S>
static __device__ __forceinline__ void scores_by_mma(float (&d)[8], const uint8_t *tile,
                                                     const shared<S> &s, int valid)
{
    constexpr int ROPE_STEPS = q_words<S>::ROPE_STEPS, G = S::GROUPS;
    int lane = threadIdx.x % 32, warp = threadIdx.x % GROUP_THREADS / 32, half = group<S>();
    const uint4(*words)[32] = ((const q_words<S> *)s.q[0])->at[half];
    const uint8_t *row =
        tile + (16 * warp + lane / 4) * S::RAW_ROW + half * G * 128 + 32 * (lane % 4);
    uint32_t rope = smem_u32(tile) + (16 * warp + lane % 16) * S::RAW_ROW + S::ROPE_AT +
                    half * (32 * ROPE_STEPS) + lane / 16 * 16;
    float scale[G][2], sum[G][8] = {};

    read_scales<S>(scale, tile, valid, half * G);
#pragma unroll
    for (int i = 0; i < 8; i++)
        d[i] = 0;
#pragma unroll
    for (int step = 0; step < ROPE_STEPS; step++) {
        uint32_t a[4];
        load_matrices(rope + 32 * step, a);
        uint4 b = words[8 * G + step][lane];
        mma_bf16(d, a, b.x, b.y);
        mma_bf16(d + 4, a, b.z, b.w);
    }
    /* Groups of columns side by side: a product waits for the one before it of its sum. */
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint4 low[G], high[G];
#pragma unroll
        for (int g = 0; g < G; g++) {
            const uint4 *from = (const uint4 *)(row + g * 128) + k;
            low[g] = from[0], high[g] = from[8 * S::RAW_ROW / 16];
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int g = 0; g < G; g++) {
                uint32_t l = (&low[g].x)[i], h = (&high[g].x)[i];
                uint32_t a[4] = {widen_low(l), widen_low(h), widen_high(l), widen_high(h)};
                uint4 b = words[8 * g + 4 * k + i][lane];
                mma_f16(sum[g], a, b.x, b.y);
                mma_f16(sum[g] + 4, a, b.z, b.w);
            }
    }
#pragma unroll
    for (int g = 0; g < G; g++)
        add_scaled<S>(d, sum[g], s, g, scale[g]);
}

/* The same for 32 rows. A round is 32 columns; its left operands are widened while those of the
 * round before are multiplied. */
template <class S>
static __device__ __forceinline__ void scores_by_wgmma(float (&d)[16], const uint8_t *tile,
                                                       const shared<S> &s, int valid)
{
    constexpr int ROPE_STEPS = S::ROPE / 32, G = S::GROUPS;
    int lane = threadIdx.x % 32, warp = threadIdx.x % GROUP_THREADS / 32, half = group<S>();
    uint32_t row =
        smem_u32(tile) + (16 * warp + lane / 4) * S::RAW_ROW + half * G * 128 + 32 * (lane % 4);
    uint32_t rope = smem_u32(tile) + (16 * warp + lane % 16) * S::RAW_ROW + S::ROPE_AT +
                    half * (32 * ROPE_STEPS) + lane / 16 * 16;
    uint32_t q = smem_u32(s.q[0]);
    uint64_t b = wgmma_desc(q + half * (2 * G * S::N * 128), 0, 1024, SWIZZLE_128);
    uint64_t b_rope =
        wgmma_desc(q + S::BLOCKS * S::N * 128 + half * (32 * ROPE_STEPS), 0, 1024, SWIZZLE_128);
    uint32_t a_rope[ROPE_STEPS][4], a[2][2][4];
    float sum[16], scale[G][2];

#pragma unroll
    for (int i = 0; i < 16; i++)
        d[i] = 0;
    wgmma_hold(d);
#pragma unroll
    for (int step = 0; step < ROPE_STEPS; step++)
        load_matrices(rope + 32 * step, a_rope[step]);
#pragma unroll
    for (int g = 0; g < G; g++) {
        uint4 low, high;
#pragma unroll
        for (int i = 0; i < 16; i++)
            sum[i] = 0;
        wgmma_hold(sum);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            uint32_t(&left)[2][4] = a[c % 2];
            if (c % 2 == 0) {
                low = read_16(row + g * 128 + c / 2 * 16);
                high = read_16(row + g * 128 + c / 2 * 16 + 8 * S::RAW_ROW);
            }
            if (c >= 2)
                wgmma_wait<1>();
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t l = (&low.x)[c % 2 * 2 + i], h = (&high.x)[c % 2 * 2 + i];
                left[i][0] = widen_low(l), left[i][1] = widen_low(h);
                left[i][2] = widen_high(l), left[i][3] = widen_high(h);
            }
            wgmma_fence();
            if (g == 0 && c == 0)
#pragma unroll
                for (int step = 0; step < ROPE_STEPS; step++)
                    wgmma<S::N>::template rs<0>(d, a_rope[step], desc_at(b_rope, step * 32), 1);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int step = 2 * c + i;
                wgmma_f16(sum, left[i],
                          desc_at(b, (2 * g + step / 4) * (S::N * 128) + step % 4 * 32));
            }
            wgmma_commit();
        }
        if (g == 0)
            read_scales<S>(scale, tile, valid, half * G);
        wgmma_wait<0>();
        wgmma_hold(d);
        wgmma_hold(sum);
        add_scaled<S>(d, sum, s, g, scale[g]);
    }
}

/* d = K Q^T over this group's half of the row. */
template <class S>
static __device__ __forceinline__ void half_scores_fp8(float (&d)[S::N / 2], const uint8_t *tile,
                                                       const shared<S> &s, int valid)
{
    if constexpr (S::N == 16)
        scores_by_mma<S>(d, tile, s, valid);
    else
        scores_by_wgmma<S>(d, tile, s, valid);
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Of two tokens' two neighbouring columns (bytes: token, column): the first column, the second, as
 * bf16 times 2^-120. */
static __device__ __forceinline__ uint32_t widen_first(uint32_t v)
{
    return (v << 8 & 0x80008000) | (v << 4 & 0x07f007f0);
}

static __device__ __forceinline__ uint32_t widen_second(uint32_t v)
{
    return (v & 0x80008000) | (v >> 4 & 0x07f007f0);
}

/* o += V^T P^T, this group's blocks. p: (GROUPS, N, 64 tokens), swizzled. */
template <class S>
static __device__ __forceinline__ void values_fp8(state<S> &st, uint32_t tile, uint32_t p)
{
    int t = threadIdx.x, lane = t % 32, warp = t % GROUP_THREADS / 32;
    uint32_t from = tile + lane * S::RAW_ROW + t / GROUP_THREADS * (S::LATENT / 2) + 16 * warp;
    /* Lane l names row l % 8 of matrix l / 8: tokens l / 8 % 2 * 8 .. of rows l / 16 * 8 .. . */
    uint32_t p_row = p + (lane / 16 * 8 + lane % 8) * 128;

#pragma unroll
    for (int g = 0; g < S::GROUPS; g++) {
        uint32_t b[4][S::N / 16][4];
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int j = 0; j < S::N / 16; j++)
                load_matrices(p_row + g * (S::N * 128) + j * 2048 +
                                  ((2 * k + lane / 8 % 2 ^ lane % 8) << 4),
                              b[k][j]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float *o = st.o[2 * g + i];
            uint32_t v[8];
            load_turned(from + (2 * g + i) * 64, v);
            load_turned(from + (2 * g + i) * 64 + 32 * S::RAW_ROW, v + 4);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                uint32_t a[4] = {widen_first(v[2 * k]), widen_second(v[2 * k]),
                                 widen_first(v[2 * k + 1]), widen_second(v[2 * k + 1])};
#pragma unroll
                for (int j = 0; j < S::N / 16; j++) {
                    mma_bf16(o + 8 * j, a, b[k][j][0], b[k][j][1]);
                    mma_bf16(o + 8 * j + 4, a, b[k][j][2], b[k][j][3]);
                }
            }
        }
    }
}

template <class S> static __device__ __forceinline__ void finish_values(state<S> &st)
{
#pragma unroll
    for (int b = 0; b < S::MINE; b++)
#pragma unroll
        for (int i = 0; i < S::N / 2; i++)
            st.o[b][i] *= 0x1p60f;
}

} // namespace mla_few
