/* Units of two parts in a paired launch of the 64-row decode kernel: their two blocks, a cluster,
 * merge them by distributed shared memory. See mla_wide.cuh.
 *
 * Each block finishes half of the columns, block i those of its values' warpgroup i, which keeps
 * its sums as floats. The other warpgroup sends its own as f16 to where the other block had its
 * queries, as soon as that has made its last scores. They come by quarters: while one is on its
 * way, the one before is added and stored. Nothing goes through memory, and both blocks end
 * together: neither can before it has what the other one sends. */
#pragma once

#include "kernels/cuda/mla_wide_merge.cuh"

namespace mla_wide
{

/* Pieces of 16 columns that a warp has of a half, and of a quarter of it. */
enum { HALF_PIECES = ROW_PIECES / 2, QUARTER_PIECES = HALF_PIECES / QUARTERS };

/* References and sums of the other block's rows; no part of a pair is sized for the workspace. */
static __device__ __forceinline__ float2 *other_rows(shared &sm)
{
    static_assert(sizeof(sm.size) == ROWS * sizeof(float2), "room for them");
    return (float2 *)sm.size;
}

/* By the producer warp, at its end: lets the other block write. */
static __device__ __forceinline__ void grant(shared &sm, const pending &d)
{
    if (threadIdx.x % 32 == 0) {
        uint32_t bytes = (d.rows + 15) / 16 * QUARTER_PIECES * 512;
        for (int i = 0; i < QUARTERS; i++)
            mbar_arrive_expect(smem_u32(&sm.sent[i]), bytes + (i == 0) * sizeof(sm.size));
        mbar_wait(smem_u32(&sm.q_empty), 0);
        cluster_mbar_arrive(smem_u32(&sm.granted), 1 - d.index);
    }
    __syncwarp();
}

/* By a warpgroup: its sums to the other block, which takes these columns. */
static __device__ __forceinline__ void send_half(shared &sm, const math &t, const float (&l)[2],
                                                 const pending &d)
{
    int thread = thread_anew(), lane = thread % 32, warp = thread % 128 / 32, other = 1 - d.index;
    uint32_t sent = cluster_map(smem_u32(sm.sent), other);
    uint32_t to = cluster_map(smem_u32(sm.q), other) + (warp * HALF_PIECES * 32 + lane) * 16;
    uint32_t rows = cluster_map(smem_u32(other_rows(sm)), other) + t.row * 8;
    float size[2][4] = {}, f[2];

#pragma unroll
    for (int i = 0; i < 128; i++)
        size[i / 2 % 2][i / 4 % 2 * 2 + i % 2] += fabsf(t.at(i));
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float x = size[r][0] + size[r][1] + (size[r][2] + size[r][3]), m = t.m[r];
        x += __shfl_xor_sync(~0u, x, 1);
        x += __shfl_xor_sync(~0u, x, 2);
        f[r] = f16_factor(m, x);
        if (r == 0)
            mbar_wait_cluster(smem_u32(&sm.granted), 0);
        if (lane % 4 == 0)
            send_2(rows + r * 64, sent,
                   make_uint2(__float_as_uint(m), __float_as_uint(l[r] * f[r])));
    }
    if (warp * 16 >= d.rows)
        return;
#pragma unroll
    for (int j = 0; j < HALF_PIECES; j++) {
        uint32_t v[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            v[k] = pack_f16(t.at(8 * j + 2 * k) * f[k % 2], t.at(8 * j + 2 * k + 1) * f[k % 2]);
        send_4(to + j * 512, sent + j / QUARTER_PIECES * 8, make_uint2(v[0], v[1]),
               make_uint2(v[2], v[3]));
    }
}

/* By the other warpgroup, which has half `half` of the columns: what was sent and its own sums to
 * the output. */
static __device__ __forceinline__ void finish_half(const params &p, shared &sm, math &t,
                                                   float (&l)[2], const pending &d, int half)
{
    int thread = thread_anew(), lane = thread % 32, warp = thread % 128 / 32;
    int row = warp * 16 + lane / 8; /* of the output */
    const uint4 *o = (const uint4 *)sm.q + warp * HALF_PIECES * 32 + lane;
    __nv_bfloat16 *out = out_of(p, d, row, lane, half);
    uint8_t *part = sm.q[7] + warp * 1024; /* what is sent takes q[0 .. 3] */
    const float one[2] = {1, 1};
    float ours[2], theirs[2];

    mbar_wait_cluster(smem_u32(&sm.sent[0]), 0);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float2 other = other_rows(sm)[t.row + 8 * r];
        float m = fmaxf(t.m[r], other.x);
        ours[r] = weight_of(t.m[r], m);
        theirs[r] = weight_of(other.x, m);
        l[r] = l[r] * ours[r] + other.y * theirs[r];
        t.m[r] = m;
        float scale = l[r] > 0 ? 1 / l[r] : 0;
        ours[r] *= scale;
        theirs[r] *= scale;
    }
    write_lse(p, t, l, d, lane, half);
#pragma unroll
    for (int i = 0; i < QUARTERS; i++) {
        if (i > 0)
            mbar_wait_cluster(smem_u32(&sm.sent[i]), 0);
#pragma unroll
        for (int j = i * QUARTER_PIECES; j < (i + 1) * QUARTER_PIECES; j++) {
            uint4 four = o[j * 32];
            const uint32_t x[4] = {four.x, four.y, four.z, four.w};
            if (j % 2 == 1) /* no more of them at a time than there are registers for */
                asm volatile("" ::: "memory");
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float &a = t.at(8 * j + 2 * k), &b = t.at(8 * j + 2 * k + 1);
                float2 pair = unpack_f16(x[k]);
                a = a * ours[k % 2] + pair.x * theirs[k % 2];
                b = b * ours[k % 2] + pair.y * theirs[k % 2];
            }
        }
#pragma unroll
        for (int turn = 0; turn < TURNS / QUARTERS; turn++)
            write_turn(t, one, i * (TURNS / QUARTERS) + turn, lane, part, out, d.rows - row);
    }
}

/* By both warpgroups, when their products are done. */
static __device__ __forceinline__ void finish_pair(const params &p, shared &sm, math &t,
                                                   const pending &d, int half)
{
    float l[2];

    take_sums(sm, t, l, 0);
    if (half == d.index)
        finish_half(p, sm, t, l, d, half);
    else
        send_half(sm, t, l, d);
}

} // namespace mla_wide
