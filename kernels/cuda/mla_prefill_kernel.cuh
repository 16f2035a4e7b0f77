/* Prefill attention for one head size: persistent blocks of two consumer warpgroups and a producer
 * warp.
 *
 * A work item is a tile of 128 query rows of one head. The producer takes items from a counter,
 * longest first, and brings Q (128 rows) and, block by block of BN tokens, K = [K-nope, rope key]
 * and V into shared memory; K is put together there and nowhere else. It runs ahead into the next
 * item, so that items follow each other without a gap. A consumer warpgroup owns 64 rows: while
 * the tensor cores add P V of block j - 1 to the result, it has S of block j computed and its
 * softmax taken; P stays in registers.
 *
 * Blocks are aligned to positions and visited in their order, and a row's arithmetic involves no
 * other row: a row gets the same bits whatever its tile, piece, or neighbours. Between pieces the
 * unfinished row maxima, sums and results rest in `state`, in the threads' own layout.
 *
 * Shared memory, bytes (QK 192, V 128, BN 128 | QK 256, V 256, BN 64):
 *   Q  128 * QK * 2           49152 |  65536
 *   K  2 stages * BN * QK * 2 98304 |  65536
 *   V  2 stages * BN * V * 2  65536 |  65536
 *   sum                      212992 | 196608, plus barriers; 232448 are there. */
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_fragment.cuh"
#include "kernels/cuda/mla_prefill.h"
#include "kernels/cuda/wgmma.cuh"

namespace
{

enum {
    CONSUMER_WARPS = 8,
    BLOCK_THREADS = 384, /* warpgroup 0 produces, 1 and 2 consume */
    STAGES = 2,
};

struct prefill_barriers {
    uint64_t q_full, q_empty;
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    uint64_t work_full[2], work_empty[2];
    int32_t work[2]; /* item numbers, handed from the producer to the consumers */
};

/* Tiles in shared memory are 64 columns (128 bytes, swizzled) wide, one after the other. */
template <int NOPE, int V, int BN> struct prefill_shape {
    static constexpr int ROPE = 64, QK = NOPE + ROPE;
    static constexpr int Q_BYTES = PREFILL_ROWS * QK * 2, K_BYTES = BN * QK * 2,
                         V_BYTES = BN * V * 2;
    static constexpr int Q_AT = 0, K_AT = Q_BYTES, V_AT = K_AT + STAGES * K_BYTES,
                         BARRIERS_AT = V_AT + STAGES * V_BYTES;
    static constexpr int SHARED = BARRIERS_AT + sizeof(prefill_barriers) + 1024 /* alignment */;
};

struct prefill_item {
    const prefill_tile *tile;
    int head; /* in the group */
};

/* Sections of heads, in each every tile (longest first), for each the section's heads. */
__device__ __forceinline__ prefill_item find_item(const prefill_attend &p, int work)
{
    const int per_section = p.n_tiles * p.section, section = work / per_section;
    const int rest = work - section * per_section, first = section * p.section;
    const int heads = min(p.section, p.group - first);

    return {p.tiles + rest / heads, first + rest % heads};
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- producer ---------------------------------------------------------------------------------
 */

template <int NOPE, int V, int BN>
__device__ void produce(const prefill_attend &p, uint32_t shared, prefill_barriers *bars)
{
    typedef prefill_shape<NOPE, V, BN> shape;
    const uint32_t q_full = smem_u32(&bars->q_full), q_empty = smem_u32(&bars->q_empty);
    int n = 0; /* blocks brought so far */

    for (int i = 0;; i++) {
        const int work = atomicAdd(p.counter, 1);
        mbar_wait(smem_u32(&bars->work_empty[i % 2]), (i / 2 % 2) ^ 1);
        bars->work[i % 2] = work;
        mbar_arrive(smem_u32(&bars->work_full[i % 2]));
        if (work >= p.n_tiles * p.group)
            return;

        const prefill_item item = find_item(p, work);
        const prefill_tile tile = *item.tile;
        const int q_x = (p.first_head + item.head) * shape::QK, kv_x = item.head * (NOPE + V);
        mbar_wait(q_empty, (i % 2) ^ 1);
        mbar_arrive_expect(q_full, shape::Q_BYTES);
        for (int c = 0; c < shape::QK / 64; c++)
            tma_load_2d(shared + shape::Q_AT + c * PREFILL_ROWS * 128, &p.q_map, q_full,
                        q_x + 64 * c, tile.row, TMA_EVICT_FIRST);

        const int blocks = (tile.kv_tokens + BN - 1) / BN;
        for (int j = 0; j < blocks; j++, n++) {
            const int stage = n % STAGES, parity = (n / STAGES % 2) ^ 1;
            const int row = tile.kv_row + j * BN;
            uint32_t full = smem_u32(&bars->k_full[stage]);
            uint32_t to = shared + shape::K_AT + stage * shape::K_BYTES;

            mbar_wait(smem_u32(&bars->k_empty[stage]), parity);
            mbar_arrive_expect(full, shape::K_BYTES);
            for (int c = 0; c < NOPE / 64; c++, to += BN * 128)
                tma_load_2d(to, &p.kv_map, full, kv_x + 64 * c, row, TMA_EVICT_LAST);
            tma_load_2d(to, &p.rope_map, full, 0, row, TMA_EVICT_LAST);

            full = smem_u32(&bars->v_full[stage]);
            to = shared + shape::V_AT + stage * shape::V_BYTES;
            mbar_wait(smem_u32(&bars->v_empty[stage]), parity);
            mbar_arrive_expect(full, shape::V_BYTES);
            for (int c = 0; c < V / 64; c++, to += BN * 128)
                tma_load_2d(to, &p.kv_map, full, kv_x + NOPE + 64 * c, row, TMA_EVICT_LAST);
        }
    }
}

/* ---- consumers --------------------------------------------------------------------------------
 */

/* A thread's part of 64 rows: rows lane / 4 and lane / 4 + 8 of its warp's 16 (see wgmma in
 * ptx.cuh). */
template <int V> struct prefill_rows {
    float o[V / 2];
    float max[2]; /* of the scores so far, unscaled */
    float sum[2]; /* of this thread's columns */
};

/* S = Q K^T of a block, queued. */
template <int QK, int BN>
__device__ __forceinline__ void queue_scores(float (&s)[BN / 2], uint64_t q, uint64_t k)
{
    wgmma_hold(s);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < QK / 16; c++)
        wgmma<BN>::template ss<0, 0>(s, q + (c / 4 * PREFILL_ROWS * 128 + c % 4 * 32) / 16,
                                     k + (c / 4 * BN * 128 + c % 4 * 32) / 16, c > 0);
    wgmma_commit();
}

/* O += P V of a block, queued. */
template <int V, int BN>
__device__ __forceinline__ void queue_values(float (&o)[V / 2], const uint32_t (&p)[BN / 16][4],
                                             uint64_t v)
{
    wgmma_hold(o);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < BN / 16; c++)
        wgmma<V>::template rs<1>(o, p[c], v + c * 16 * 128 / 16, 1);
    wgmma_commit();
}

/* Scores of tokens past the row's own position; `ahead` is the position of the thread's first
 * column less that of its first row. */
template <int BN> __device__ __forceinline__ void hide_later(float (&s)[BN / 2], int ahead)
{
#pragma unroll
    for (int x = 0; x < BN / 2; x++)
        if (ahead + x / 4 * 8 + x % 2 > x % 4 / 2 * 8)
            s[x] = -INFINITY;
}

/* The block's scores become weights relative to the new maxima; `factor` is what older weights and
 * results are to be multiplied with. */
template <int V, int BN>
__device__ __forceinline__ void soften(float (&s)[BN / 2], prefill_rows<V> &rows,
                                       float (&factor)[2], float scale_log2)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float max = rows.max[i], sum = 0;
#pragma unroll
        for (int x = 0; x < BN / 8; x++)
            max = fmaxf(max, fmaxf(s[4 * x + 2 * i], s[4 * x + 2 * i + 1]));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
        factor[i] = exp2_fast((rows.max[i] - max) * scale_log2);
        rows.max[i] = max;
        const float base = max * scale_log2;
#pragma unroll
        for (int x = 0; x < BN / 8; x++) {
            float &a = s[4 * x + 2 * i], &b = s[4 * x + 2 * i + 1];
            a = exp2_fast(fmaf(a, scale_log2, -base));
            b = exp2_fast(fmaf(b, scale_log2, -base));
            sum += a + b;
        }
        rows.sum[i] = rows.sum[i] * factor[i] + sum;
    }
}

template <int BN>
__device__ __forceinline__ void to_bf16(uint32_t (&p)[BN / 16][4], const float (&s)[BN / 2])
{
#pragma unroll
    for (int x = 0; x < BN / 4; x++)
        p[x / 4][x % 4] = pack_bf16(s[2 * x], s[2 * x + 1]);
}

template <int V>
__device__ __forceinline__ void rescale(float (&o)[V / 2], const float (&factor)[2])
{
#pragma unroll
    for (int x = 0; x < V / 2; x++)
        o[x] *= factor[x % 4 / 2];
}

/* Every block of an item. `n` counts the blocks of all items. */
template <int NOPE, int V, int BN>
__device__ __forceinline__ void attend(const prefill_attend &p, uint32_t shared,
                                       prefill_barriers *bars, const prefill_tile &tile, int item,
                                       prefill_rows<V> &rows, int &n)
{
    typedef prefill_shape<NOPE, V, BN> shape;
    const int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
    const int first_row = group * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
    const int blocks = (tile.kv_tokens + BN - 1) / BN;
    const int clear = (tile.position + 1 - tile.kv_first) / BN; /* blocks that all rows see */
    const int ahead = tile.kv_first + lane % 4 * 2 - tile.position - first_row;
    const uint64_t q = wgmma_desc(shared + shape::Q_AT + group * 64 * 128, 0, 1024, SWIZZLE_128);
    const uint64_t k = wgmma_desc(shared + shape::K_AT, 0, 1024, SWIZZLE_128);
    const uint64_t v = wgmma_desc(shared + shape::V_AT, BN * 128, 1024, SWIZZLE_128);
    float s[BN / 2], factor[2];
    uint32_t weights[BN / 16][4];

    mbar_wait(smem_u32(&bars->q_full), item % 2);
    mbar_wait(smem_u32(&bars->k_full[n % STAGES]), n / STAGES % 2);
    queue_scores<shape::QK, BN>(s, q, k + n % STAGES * shape::K_BYTES / 16);
    wgmma_wait<0>();
    wgmma_hold(s);
    release(&bars->k_empty[n % STAGES]);
    if (clear < 1)
        hide_later<BN>(s, ahead);
    soften<V, BN>(s, rows, factor, p.scale_log2);
    rescale<V>(rows.o, factor);
    to_bf16<BN>(weights, s);

    for (int j = 1; j < blocks; j++, n++) {
        const int stage = n % STAGES, next = (n + 1) % STAGES;
        mbar_wait(smem_u32(&bars->k_full[next]), (n + 1) / STAGES % 2);
        queue_scores<shape::QK, BN>(s, q, k + next * shape::K_BYTES / 16);
        mbar_wait(smem_u32(&bars->v_full[stage]), n / STAGES % 2);
        queue_values<V, BN>(rows.o, weights, v + stage * shape::V_BYTES / 16);
        wgmma_wait<1>();
        wgmma_hold(s);
        release(&bars->k_empty[next]);
        if (j >= clear)
            hide_later<BN>(s, ahead + j * BN);
        soften<V, BN>(s, rows, factor, p.scale_log2);
        wgmma_wait<0>();
        wgmma_hold(rows.o);
        release(&bars->v_empty[stage]);
        rescale<V>(rows.o, factor);
        to_bf16<BN>(weights, s);
    }
    release(&bars->q_empty);
    mbar_wait(smem_u32(&bars->v_full[n % STAGES]), n / STAGES % 2);
    queue_values<V, BN>(rows.o, weights, v + n % STAGES * shape::V_BYTES / 16);
    wgmma_wait<0>();
    wgmma_hold(rows.o);
    release(&bars->v_empty[n % STAGES]);
    n++;
}

template <int V>
__device__ __forceinline__ void write_out(const prefill_attend &p, const prefill_tile &tile,
                                          int head, const prefill_rows<V> &rows)
{
    const int lane = threadIdx.x % 32;
    const int first_row = (threadIdx.x / 128 - 1) * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = first_row + 8 * i;
        const int64_t at = (int64_t)(tile.row + row) * p.heads + p.first_head + head;
        float sum = rows.sum[i];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float inverse = 1.0f / sum;
#pragma unroll
        for (int x = 0; x < V / 8; x += 4) {
            const uint4 eight = row_of_eight(&rows.o[4 * x + 2 * i], inverse);
            if (row < tile.rows)
                *(uint4 *)((__nv_bfloat16 *)p.out + at * V + (x + lane % 4) * 8) = eight;
        }
        if (p.lse && row < tile.rows && lane % 4 == 0)
            p.lse[at] = (rows.max[i] * p.scale_log2 + log2f(sum)) * 0.69314718056f;
    }
}

/* The unfinished rows of an item, kept from one piece to the next. */
template <int V> __device__ __forceinline__ void load_state(prefill_rows<V> &rows, const float *s)
{
#pragma unroll
    for (int x = 0; x < V / 2; x++)
        rows.o[x] = s[x * PREFILL_THREADS];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        rows.max[i] = s[(V / 2 + i) * PREFILL_THREADS];
        rows.sum[i] = s[(V / 2 + 2 + i) * PREFILL_THREADS];
    }
}

template <int V> __device__ __forceinline__ void store_state(const prefill_rows<V> &rows, float *s)
{
#pragma unroll
    for (int x = 0; x < V / 2; x++)
        s[x * PREFILL_THREADS] = rows.o[x];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        s[(V / 2 + i) * PREFILL_THREADS] = rows.max[i];
        s[(V / 2 + 2 + i) * PREFILL_THREADS] = rows.sum[i];
    }
}

template <int NOPE, int V, int BN>
__device__ void consume(const prefill_attend &p, uint32_t shared, prefill_barriers *bars)
{
    prefill_rows<V> rows;
    int n = 0;

    for (int i = 0;; i++) {
        mbar_wait(smem_u32(&bars->work_full[i % 2]), i / 2 % 2);
        const int work = bars->work[i % 2];
        release(&bars->work_empty[i % 2]);
        if (work >= p.n_tiles * p.group)
            return;

        const prefill_item item = find_item(p, work);
        const prefill_tile tile = *item.tile;
        float *state = p.state +
                       ((int64_t)tile.state * p.group + item.head) * prefill_state_floats(V) +
                       threadIdx.x - 128;
        if (tile.kv_first == 0) {
#pragma unroll
            for (int x = 0; x < V / 2; x++)
                rows.o[x] = 0;
            rows.max[0] = rows.max[1] = -INFINITY;
            rows.sum[0] = rows.sum[1] = 0;
        } else {
            load_state<V>(rows, state);
        }
        attend<NOPE, V, BN>(p, shared, bars, tile, i, rows, n);
        if (tile.last)
            write_out<V>(p, tile, item.head, rows);
        else
            store_state<V>(rows, state);
    }
}

template <int NOPE, int V, int BN>
__global__ void __launch_bounds__(BLOCK_THREADS, 1)
    prefill_kernel(const __grid_constant__ prefill_attend p)
{
    typedef prefill_shape<NOPE, V, BN> shape;
    extern __shared__ uint8_t raw[];
    const uint32_t shared = (smem_u32(raw) + 1023) & ~1023u;
    prefill_barriers *bars =
        (prefill_barriers *)(raw + (shared - smem_u32(raw)) + shape::BARRIERS_AT);

    if (threadIdx.x == 0) {
        tma_prefetch_map(&p.q_map);
        tma_prefetch_map(&p.kv_map);
        tma_prefetch_map(&p.rope_map);
        mbar_init(smem_u32(&bars->q_full), 1);
        mbar_init(smem_u32(&bars->q_empty), CONSUMER_WARPS);
        for (int i = 0; i < STAGES; i++) {
            mbar_init(smem_u32(&bars->k_full[i]), 1);
            mbar_init(smem_u32(&bars->v_full[i]), 1);
            mbar_init(smem_u32(&bars->k_empty[i]), CONSUMER_WARPS);
            mbar_init(smem_u32(&bars->v_empty[i]), CONSUMER_WARPS);
        }
        for (int i = 0; i < 2; i++) {
            mbar_init(smem_u32(&bars->work_full[i]), 1);
            mbar_init(smem_u32(&bars->work_empty[i]), CONSUMER_WARPS);
        }
        mbar_init_fence();
    }
    __syncthreads();
    launch_wait();
    launch_next();
    if (threadIdx.x < 128) {
        registers_lower<24>();
        if (threadIdx.x == 0)
            produce<NOPE, V, BN>(p, shared, bars);
    } else {
        registers_raise<240>();
        consume<NOPE, V, BN>(p, shared, bars);
    }
}

template <int NOPE, int V, int BN>
int launch_prefill(const prefill_attend *p, int sms, mla_stream stream)
{
    const int shared = prefill_shape<NOPE, V, BN>::SHARED, items = p->n_tiles * p->group;

    if (cudaFuncSetAttribute(prefill_kernel<NOPE, V, BN>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, shared) != cudaSuccess)
        return MLA_CUDA;
    return launch_early(prefill_kernel<NOPE, V, BN>, dim3(items < sms ? items : sms), BLOCK_THREADS,
                        shared, stream, *p) == cudaSuccess
               ? MLA_OK
               : MLA_CUDA;
}

} // namespace
