/* The decode kernel for tiles of 64 query rows (bf16, 512 + 64): see README.md beside this file for
 * the layout, the schedule and what was measured.
 *
 * A block holds 64 query rows (query tokens x heads of one sequence) and walks pages of 64 tokens.
 * Four warpgroups:
 *
 *   values 0, 1   half of the output each (64 x 256 floats, 128 registers a thread): O += P V
 *   scores        S = Q K of page after page, their softmax, and the probabilities P to shared
 * memory producer      one warp: finds the block's work, brings queries and pages with TMA
 *
 * Each goes its own way, held together by mbarriers alone: the products of one page run beside the
 * softmax of the next.
 *
 * CLUSTER 2: two blocks with neighbouring row tiles of one sequence walk the same pages; each
 * brings half of every page and multicasts it to both, which halves the bytes read from L2.
 *
 * The running maximum of a row moves only when it grows by more than LAZY (base 2), so that the
 * accumulators are hardly ever rescaled; sums stay exact, since all use the same reference. */
#pragma once

#include "kernels/cuda/mla_wide_merge.cuh"
#include "kernels/cuda/mla_wide_plan.cuh"
#include "kernels/cuda/mla_wide_types.cuh"

namespace mla_wide
{

/* ---- producer -------------------------------------------------------------------------------- */

/* The box of `map` to the same place in every block of `mask`. */
static __device__ __forceinline__ void load_box(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                                int x, int page, bool multicast)
{
    if (multicast)
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(dst),
                     "l"(map), "r"(bar), "r"(x), "r"(0), "r"(page), "h"((uint16_t)3)
                     : "memory");
    else
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(dst),
                     "l"(map), "r"(bar), "r"(x), "r"(0), "r"(page)
                     : "memory");
}

/* One page into slot s: its boxes group by group as they become free. By a whole warp. */
template <int CLUSTER>
static __device__ __forceinline__ void load_page(const params &p, shared &sm, int s, int page,
                                                 uint32_t phase, uint32_t rank)
{
    static const int first[3] = {0, 8, 4}, count[3] = {4, 1, 4};

#pragma unroll
    for (int g = 0; g < 3; g++) {
        uint32_t full = smem_u32(&sm.kv_full[s][g]);
        mbar_wait(smem_u32(&sm.kv_empty[s][g]), phase ^ 1);
        if (threadIdx.x % 32 == 0) {
            mbar_arrive_expect(full, count[g] * BOX);
            for (int b = first[g]; b < first[g] + count[g]; b++)
                if (CLUSTER == 1 || (b + s) % 2 == (int)rank)
                    load_box(smem_u32(sm.kv[s][b]), &p.kv, full, 64 * b, page, CLUSTER > 1);
        }
        __syncwarp();
    }
}

/* Queries of the block's tile: eight boxes to q, the rope part to p[1], from where the math threads
 * take it to registers before any probabilities are written there. */
static __device__ __forceinline__ void load_queries(const params &p, shared &sm, int row,
                                                    uint32_t phase)
{
    uint32_t full = smem_u32(&sm.q_full);

    mbar_wait(smem_u32(&sm.q_empty), phase ^ 1);
    if (threadIdx.x % 32 == 0) {
        mbar_arrive_expect(full, 9 * BOX);
        for (int b = 0; b < 9; b++)
            tma_load_2d(smem_u32(b < 8 ? sm.q[b] : sm.p[1]), &p.q, full, 64 * b, row,
                        TMA_EVICT_FIRST);
    }
    __syncwarp();
}

/* Tells the math warps of a unit, or with n 0 that there is no more. */
static __device__ __forceinline__ void hand_over(shared &sm, int i, const work &w)
{
    mbar_wait(smem_u32(&sm.work_empty[i % WORKS]), (i / WORKS & 1) ^ 1);
    if (threadIdx.x % 32 == 0) {
        sm.works[i % WORKS] = w;
        mbar_arrive(smem_u32(&sm.work_full[i % WORKS]));
    }
    __syncwarp();
}

/* The producer warp: finds the part's units, tells the math warps of each and brings its data. */
template <int CLUSTER>
static __device__ __forceinline__ void produce(const params &p, shared &sm, int part, uint32_t rank)
{
    uint32_t q_phase = 0, n_pages = 0;
    int n_works = 0, thread = threadIdx.x % 32, lane = part % p.lanes;
    unit u;

    part /= p.lanes;
    plan how = find_piece<CLUSTER>(p, lane, part, u);
    int end = how.kind == plan::EVEN ? plan_start(how, part) + 1 : plan_start(how, part + 1);
    if (u.seq < p.seqs.n_seqs)
        do {
            if ((how.kind == plan::LINE ? u.base : u.number) >= end)
                break;
            share sh = unit_share(p, how, u, part);
            if (sh.n == 0)
                continue;
            int start = p.seqs.q_starts ? p.seqs.q_starts[u.seq] : u.seq * p.seqs.max_q_len;
            const int32_t *table = p.seqs.block_tables + sh.first +
                                   (p.seqs.table_starts ? p.seqs.table_starts[u.seq]
                                                        : (int64_t)u.seq * p.seqs.table_stride);
            int n = sh.last - sh.first, ids = thread < n ? table[thread] : 0;
            bool here = how.kind == plan::LINE && sh.n <= FEW;
            work w = {sh.first,
                      sh.last,
                      sh.index,
                      sh.n,
                      here,
                      u.kv_len,
                      u.q_len,
                      u.group * CLUSTER * ROWS,
                      u.q_len * p.heads,
                      (int64_t)start * p.heads};
            hand_over(sm, n_works++, w);
            if (n > 0) {
                load_queries(p, sm, start * p.heads + w.row + (int)rank * ROWS, q_phase);
                q_phase ^= 1;
            }
            for (int i = 0; i < n; i++) {
                if (i % 32 == 0 && i > 0) /* threads hold the next 32 page numbers */
                    ids = i + thread < n ? table[i + thread] : 0;
                load_page<CLUSTER>(p, sm, n_pages % 2, __shfl_sync(~0u, ids, i % 32),
                                   n_pages / 2 % 2, rank);
                n_pages++;
            }
        } while (unit_next<CLUSTER>(p, u, lane));
    hand_over(sm, n_works, work{});
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* A thread of the scores' warpgroup. It has rows `row` and `row` + 8 of the tile. */
struct scorer {
    uint32_t q_rope[4][4];
    float m[2], l[2]; /* reference of the exponents (base 2), sum over the pages so far */
    int row;
    int limit[2];     /* tokens, from the start of the sequence, that the rows see */
    int mask_from;    /* pages from this one on need the mask */
    uint32_t n_pages; /* so far: slot n_pages % 2, phase n_pages / 2 % 2 */
};

static __device__ __forceinline__ uint64_t desc_k(const void *box)
{
    return wgmma_desc(smem_u32(box), 16, 1024, SWIZZLE_128);
}

static __device__ __forceinline__ uint64_t desc_v(const void *box)
{
    return wgmma_desc(smem_u32(box), BOX, 1024, SWIZZLE_128);
}

/* s (64 x 64) = Q K^T of the page in slot; queued, not waited for. */
static __device__ __forceinline__ void scores(float (&s)[32], const scorer &t, shared &sm, int slot,
                                              uint32_t phase)
{
    uint64_t q = desc_k(sm.q[0]), k = desc_k(sm.kv[slot][0]);

    mbar_wait(smem_u32(&sm.kv_full[slot][LEFT]), phase);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 16; i++)
        wgmma<64>::ss<0, 0>(s, q + (i / 4 * BOX + i % 4 * 32) / 16,
                            k + (i / 4 * BOX + i % 4 * 32) / 16, i > 0);
    mbar_wait(smem_u32(&sm.kv_full[slot][ROPE]), phase);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++)
        wgmma<64>::rs<0>(s, t.q_rope[i], k + (8 * BOX + i * 32) / 16, 1);
    mbar_wait(smem_u32(&sm.kv_full[slot][RIGHT]), phase);
    wgmma_fence();
#pragma unroll
    for (int i = 16; i < 32; i++)
        wgmma<64>::ss<0, 0>(s, q + (i / 4 * BOX + i % 4 * 32) / 16,
                            k + (i / 4 * BOX + i % 4 * 32) / 16, 1);
    wgmma_commit();
}

/* Scores become probabilities: s to pr (bf16 pairs as a left operand has them). Updates references
 * and sums. limit[r]: tokens of this page that row r sees. */
static __device__ __forceinline__ void softmax(float (&s)[32], uint32_t (&pr)[16], scorer &t,
                                               float scale_log2, bool mask, const int (&limit)[2])
{
    int column = threadIdx.x % 4 * 2;

    if (mask) {
#pragma unroll
        for (int i = 0; i < 32; i++)
            if (i / 4 * 8 + column + i % 2 >= limit[i / 2 % 2])
                s[i] = -INFINITY;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = s[2 * r];
#pragma unroll
        for (int i = 0; i < 16; i++)
            top = fmaxf(top, s[i / 2 * 4 + 2 * r + i % 2]);
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * scale_log2;
        if (top > t.m[r] + LAZY) {
            t.l[r] *= exp2_fast(t.m[r] - top);
            t.m[r] = top;
        }
        float zero = t.m[r] == -INFINITY ? 0 : t.m[r];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float &x = s[i / 2 * 4 + 2 * r + i % 2];
            x = exp2_fast(fmaf(x, scale_log2, -zero));
            t.l[r] += x;
        }
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(s[2 * i], s[2 * i + 1]);
        pr[i] = *(uint32_t *)&pair;
    }
}

/* The probabilities to shared memory, in the swizzled layout of a left operand. */
static __device__ __forceinline__ void write_p(const uint32_t (&pr)[16], uint8_t *box)
{
    int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
    uint32_t base = smem_u32(box) + row * 128;

#pragma unroll
    for (int j = 0; j < 8; j += 2)
        store_matrices(base + ((j + lane / 16) ^ (row & 7)) * 16, pr[2 * j], pr[2 * j + 1],
                       pr[2 * j + 2], pr[2 * j + 3]);
}

/* A lane of each warp tells the blocks of the cluster that a group of boxes can be overwritten. */
template <int CLUSTER> static __device__ __forceinline__ void release_boxes(uint64_t *bar)
{
    __syncwarp();
    if (threadIdx.x % 32 != 0)
        return;
    if (CLUSTER == 1) {
        mbar_arrive(smem_u32(bar));
    } else {
        cluster_mbar_arrive(smem_u32(bar), 0);
        cluster_mbar_arrive(smem_u32(bar), 1);
    }
}

static __device__ __forceinline__ int row_limit(const params &p, const work &w, int row)
{
    if (!p.causal || w.q_len == 1)
        return w.kv_len;
    return min(w.kv_len - w.q_len + (int)(row * p.heads_inverse >> 32) + 1, w.kv_len);
}

/* The rope part of the queries from p[1] to registers, as left operands. */
static __device__ __forceinline__ void read_rope(const shared &sm, scorer &t)
{
    int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
    uint32_t base = smem_u32(sm.p[1]) + row * 128;

#pragma unroll
    for (int i = 0; i < 4; i++)
        load_matrices(base + ((2 * i + lane / 16) ^ (row & 7)) * 16, t.q_rope[i]);
}

/* One page: its scores, and its probabilities to the values' warpgroups. */
template <int CLUSTER, int SLOT>
static __device__ __forceinline__ void score_page(const params &p, shared &sm, scorer &t, int page)
{
    const int limit[2] = {t.limit[0] - page * PAGE, t.limit[1] - page * PAGE};
    uint32_t phase = t.n_pages / 2 % 2, pr[16];
    float s[32];

    scores(s, t, sm, SLOT, phase);
    wgmma_wait<0>();
    wgmma_hold(s);
    release_boxes<CLUSTER>(&sm.kv_empty[SLOT][ROPE]);
    softmax(s, pr, t, p.scale_log2, page >= t.mask_from, limit);
    mbar_wait(smem_u32(&sm.p_empty[SLOT]), phase ^ 1);
    if (threadIdx.x % 4 == 0)
        sm.m[SLOT][t.row] = t.m[0], sm.m[SLOT][t.row + 8] = t.m[1];
    write_p(pr, sm.p[SLOT]);
    fence_async();
    arrive_warp(&sm.p_full[SLOT]);
    t.n_pages++;
}

/* Row sums of a finished unit to the values' warpgroups. */
static __device__ __forceinline__ void hand_sums(shared &sm, const scorer &t, int n_units)
{
    int parity = n_units % 2;

    mbar_wait(smem_u32(&sm.l_empty[parity]), (n_units / 2 % 2) ^ 1);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float x = t.l[r];
        x += __shfl_xor_sync(~0u, x, 1);
        x += __shfl_xor_sync(~0u, x, 2);
        if (threadIdx.x % 4 == 0)
            sm.l[parity][t.row + 8 * r] = x;
    }
    arrive_warp(&sm.l_full[parity]);
}

/* The scores' warpgroup through the block's units. */
template <int CLUSTER>
static __device__ __forceinline__ void score(const params &p, shared &sm, uint32_t rank)
{
    int n_units = 0;
    scorer t;

    t.row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    t.n_pages = 0;
    for (int i = 0;; i++) {
        mbar_wait(smem_u32(&sm.work_full[i % WORKS]), i / WORKS & 1);
        const work w = sm.works[i % WORKS];
        arrive_warp(&sm.work_empty[i % WORKS]);
        if (w.n == 0)
            break;
        if (w.first == w.last)
            continue;
        int tile_row = w.row + (int)rank * ROWS;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            t.limit[r] = row_limit(p, w, tile_row + t.row + 8 * r);
            t.m[r] = -INFINITY;
            t.l[r] = 0;
        }
        t.mask_from = max(row_limit(p, w, tile_row), 0) / PAGE;
        mbar_wait(smem_u32(&sm.q_full), n_units % 2);
        read_rope(sm, t);
        for (int page = w.first; page < w.last; page++) {
            if (t.n_pages % 2 == 0)
                score_page<CLUSTER, 0>(p, sm, t, page);
            else
                score_page<CLUSTER, 1>(p, sm, t, page);
        }
        arrive_warp(&sm.q_empty);
        hand_sums(sm, t, n_units++);
    }
}

/* ---- values ---------------------------------------------------------------------------------- */

/* o += P V of this warpgroup's half; queued, not waited for. */
static __device__ __forceinline__ void values(math &t, shared &sm, int slot, int half)
{
    uint64_t v = desc_v(sm.kv[slot][4 * half]), pr = desc_k(sm.p[slot]);

    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        wgmma<128>::ss<0, 1>(t.o[0], pr + i * 32 / 16, v + i * 2048 / 16, 1);
        wgmma<128>::ss<0, 1>(t.o[1], pr + i * 32 / 16, v + (2 * BOX + i * 2048) / 16, 1);
    }
    wgmma_commit();
}

static __device__ __forceinline__ void values_done(math &t)
{
    wgmma_wait<0>();
    wgmma_hold(t.o[0]);
    wgmma_hold(t.o[1]);
}

/* Brings the thread's sums to the references `m`. */
static __device__ __forceinline__ void rescale(math &t, const float (&m)[2])
{
    bool changed = m[0] != t.m[0] || m[1] != t.m[1];

    if (!__any_sync(~0u, changed))
        return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float f = m[r] == t.m[r] ? 1 : exp2_fast(t.m[r] - m[r]);
        t.m[r] = m[r];
#pragma unroll
        for (int i = 0; i < 64; i++)
            t.at(i / 2 * 4 + 2 * r + i % 2) *= f;
    }
}

/* The tokens past the end of a sequence's last page hold anything: their values become zeros, for a
 * probability of zero does not silence a NaN. Only this warpgroup's half of the columns. */
static __device__ __forceinline__ void clear_tail(shared &sm, int valid, int slot, int half)
{
    if (valid >= PAGE)
        return;
    for (int b = 4 * half; b < 4 * half + 4; b++)
        for (int at = valid * 128 + threadIdx.x % 128 * 16; at < BOX; at += 128 * 16)
            *(uint4 *)(sm.kv[slot][b] + at) = make_uint4(0, 0, 0, 0);
    fence_async();
    named_sync(2 + half, 128);
}

/* One page's probabilities times its values. */
template <int CLUSTER, int SLOT>
static __device__ __forceinline__ void add_page(shared &sm, math &t, int half, int valid)
{
    uint32_t phase = t.n_pages / 2 % 2;

    mbar_wait(smem_u32(&sm.p_full[SLOT]), phase);
    const float m[2] = {sm.m[SLOT][t.row], sm.m[SLOT][t.row + 8]};
    rescale(t, m);
    mbar_wait(smem_u32(&sm.kv_full[SLOT][half ? RIGHT : LEFT]), phase);
    clear_tail(sm, valid, SLOT, half);
    values(t, sm, SLOT, half);
    values_done(t);
    release_boxes<CLUSTER>(&sm.kv_empty[SLOT][half ? RIGHT : LEFT]);
    arrive_warp(&sm.p_empty[SLOT]);
    t.n_pages++;
}

/* A values' warpgroup through the block's units. */
template <int CLUSTER>
static __device__ __forceinline__ void consume(const params &p, shared &sm, int part, uint32_t rank,
                                               int half)
{
    int n_pending = 0, n_units = 0;
    pending split[2];
    math t;

    t.row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    t.n_pages = 0;
    for (int i = 0;; i++) {
        mbar_wait(smem_u32(&sm.work_full[i % WORKS]), i / WORKS & 1);
        const work w = sm.works[i % WORKS];
        arrive_warp(&sm.work_empty[i % WORKS]);
        if (w.n == 0)
            break;
        int tile_row = w.row + (int)rank * ROWS;
        pending d = {w.n, w.index, part - w.index * p.lanes, w.at + tile_row,
                     min(max(w.rows - tile_row, 0), (int)ROWS)};
        float l[2];
        if (w.first == w.last) {
            write_nothing(p, d);
            continue;
        }
        t.m[0] = t.m[1] = -INFINITY;
#pragma unroll
        for (int j = 0; j < 128; j++)
            t.at(j) = 0;
        for (int page = w.first; page < w.last; page++) {
            if (t.n_pages % 2 == 0)
                add_page<CLUSTER, 0>(sm, t, half, w.kv_len - page * PAGE);
            else
                add_page<CLUSTER, 1>(sm, t, half, w.kv_len - page * PAGE);
        }
        take_sums(sm, t, l, n_units++);
        bool merges = w.n == 1 || (w.here && w.index == 0);
        if (!merges)
            write_partial<CLUSTER>(p, t, l, d, rank);
        else if (w.n > 1)
            merge_here<CLUSTER>(p, t, l, d, rank);
        if (merges)
            write_out(p, sm, t, l, d, half);
        arrive_warp(&sm.q_empty);
        if (w.n > 1 && !w.here)
            split[n_pending++] = d;
    }
    for (int i = 0; i < n_pending; i++)
        merge<CLUSTER>(p, sm, split[i], rank);
}

/* ---- kernel -----------------------------------------------------------------------------------
 */

template <int CLUSTER> static __device__ __forceinline__ void init_barriers(shared &sm)
{
    mbar_init(smem_u32(&sm.q_full), 1);
    mbar_init(smem_u32(&sm.q_empty), MATH_THREADS / 32 + 4);
    for (int s = 0; s < 2; s++) {
        for (int g = 0; g < 3; g++) {
            mbar_init(smem_u32(&sm.kv_full[s][g]), 1);
            mbar_init(smem_u32(&sm.kv_empty[s][g]), 4 * CLUSTER);
        }
        mbar_init(smem_u32(&sm.p_full[s]), 4);
        mbar_init(smem_u32(&sm.p_empty[s]), MATH_THREADS / 32);
        mbar_init(smem_u32(&sm.l_full[s]), 4);
        mbar_init(smem_u32(&sm.l_empty[s]), MATH_THREADS / 32);
    }
    for (int i = 0; i < WORKS; i++) {
        mbar_init(smem_u32(&sm.work_full[i]), 1);
        mbar_init(smem_u32(&sm.work_empty[i]), MATH_THREADS / 32 + 4);
    }
    mbar_init_fence();
}

template <int CLUSTER>
static __global__ void __launch_bounds__(THREADS, 1) kernel(const __grid_constant__ params p)
{
    extern __shared__ __align__(1024) uint8_t raw[];
    shared &sm = *(shared *)raw;
    int part = blockIdx.x / CLUSTER, warp = threadIdx.x / 32;
    uint32_t rank = CLUSTER > 1 ? cluster_rank() : 0;

    if (threadIdx.x == 0)
        init_barriers<CLUSTER>(sm);
    if (threadIdx.x == THREADS - 128) {
        tma_prefetch_map(&p.q);
        tma_prefetch_map(&p.kv);
    }
    launch_next();
    __syncthreads();
    if (CLUSTER > 1)
        cluster_arrive(), cluster_wait();
    launch_wait();

    /* Registers of the block: 2 x 128 x 168 + 128 x 152 + 128 x 24 = 65,536. */
    if (warp < 8) {
        registers_raise<168>();
        consume<CLUSTER>(p, sm, part, rank, warp / 4);
    } else if (warp < 12) {
        registers_raise<152>();
        score<CLUSTER>(p, sm, rank);
    } else {
        registers_lower<24>();
        if (warp == 12)
            produce<CLUSTER>(p, sm, part, rank);
    }
    if (CLUSTER > 1)
        cluster_arrive(), cluster_wait();
}

} // namespace mla_wide
