/* The decode kernel for tiles of 64 query rows (bf16, 512 + 64): see README.md beside this file for
 * the layout, the schedule and what was measured.
 *
 * A block holds 64 query rows (query tokens x heads of one sequence) and walks pages of 64 tokens.
 * Four warpgroups:
 *
 *   values 0, 1   half of the output each (64 x 256 floats, 128 registers a thread): O += P V
 *   scores        S = Q K of page after page, their softmax, and P to shared memory
 *   producers     a warp that finds the block's work and brings pages, one that brings queries, two
 *                 that bring pages
 *
 * Each goes its own way, held together by mbarriers alone: the products of one page run beside the
 * softmax of the next.
 *
 * CLUSTER 2: two blocks with neighbouring row tiles of one sequence walk the same pages; each
 * brings half of every page and multicasts it to both, which halves the bytes read from L2.
 *
 * PAIRED, of CLUSTER 1: blocks stand in clusters of two all the same, for calls in which nearly
 * every sequence has two blocks; these merge by distributed shared memory (mla_wide_pair.cuh).
 *
 * The running maximum of a row moves only when it has been outgrown by far, so that the
 * accumulators are hardly ever rescaled; sums stay exact, since all use the same reference. */
#pragma once

#include "kernels/cuda/mla_wide_merge.cuh"
#include "kernels/cuda/mla_wide_pair.cuh"
#include "kernels/cuda/mla_wide_plan.cuh"
#include "kernels/cuda/mla_wide_types.cuh"

namespace mla_wide
{

/* ---- producer -------------------------------------------------------------------------------- */

/* The box of `map` to the same place in every block of `mask`. */
static __device__ __forceinline__ void load_box(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                                int x, int page, bool multicast, uint64_t policy)
{
    if (multicast)
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
            ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::"r"(dst),
            "l"(map), "r"(bar), "r"(x), "r"(0), "r"(page), "h"((uint16_t)3), "l"(policy)
            : "memory");
    else
        tma_load_3d(dst, map, bar, x, 0, page, policy);
}

/* Which block of the cluster brings a group of boxes. */
static __device__ __forceinline__ uint32_t group_owner(int slot, int g)
{
    return (g + slot) & 1;
}

/* What each of three warps loads of a page, group by group as they become free in both blocks: they
 * become free close together, and one warp would take most of a thousand cycles to ask for them. */
enum { LOADERS = 3 };

static __device__ constexpr int group_loader(int g)
{
    return g == group_of(0, 0) || g == ROPE ? 0 : g == group_of(1, 1) ? 2 : 1;
}

/* A loader's part of a page into slot s. By a whole warp. The block that brings a group is told
 * when it can; the other one's barrier has to be ready for the next bytes: its last ones have come.
 * With the boxes of a unit's `first` page come those of its queries that go with them. */
template <int CLUSTER>
static __device__ __forceinline__ void load_page(const params &p, shared &sm, int s, int page,
                                                 uint32_t phase, uint32_t rank, int loader,
                                                 bool first)
{
    /* Read once: what else is in L2 matters more. */
    uint64_t policy = p.lanes > 1 ? TMA_EVICT_NORMAL : TMA_EVICT_FIRST;

#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        if (group_loader(g) != loader)
            continue;
        uint32_t full = smem_u32(&sm.kv_full[s][g]), empty = smem_u32(&sm.kv_empty[s][g]);
        bool mine = CLUSTER == 1 || group_owner(s, g) == rank;
        mbar_wait(mine ? empty : full, phase ^ 1);
        if (threadIdx.x % 32 == 0) {
            mbar_arrive_expect(full, group_size(g) * BOX * (first && g != ROPE ? 2 : 1));
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (mine && i < group_size(g))
                    load_box(smem_u32(sm.kv[s][group_box(g) + i]), &p.kv, full,
                             64 * (group_box(g) + i), page, CLUSTER > 1, policy);
        }
        __syncwarp();
    }
}

/* This block's share of a page to L2. In lines as they are in memory: the boxes' promotion to 256
 * bytes would do with TMA_EVICT_FIRST that lines are gone before their turn comes. */
template <int CLUSTER>
static __device__ __forceinline__ void fetch_ahead(const params &p, int page, uint32_t rank,
                                                   bool turn)
{
    uint32_t bytes = PAGE * WIDTH * 2 / CLUSTER;

    if (turn && threadIdx.x % 32 == 0)
        bulk_prefetch(p.pages + page * p.page_stride + rank * bytes, bytes);
    __syncwarp();
}

/* A loader's part of n pages of `table`, of which `ids` has the first. n_pages: before these. As
 * many as there is room for, and of them the `settled` first, are asked for while the kernels
 * before may still run, and then one more to L2. In clusters, where products bind as well as
 * memory, the first loader always fetches the page ahead for which there is no room yet: every
 * other one, from page `turn` on, where another cluster walks the same pages and fetches those
 * between. */
template <int CLUSTER>
static __device__ __forceinline__ void load_pages(const params &p, shared &sm, const int32_t *table,
                                                  int n, int settled, int ids, uint32_t &n_pages,
                                                  bool &waited, uint32_t rank, int loader, int turn)
{
    auto mine = [&](int i) { return p.lanes == 1 || (i + turn) % 2 == 0; };
    bool ahead = CLUSTER > 1 && loader == 0, fetched = false;

    for (int i = 0; i < n; i++) {
        int page = __shfl_sync(~0u, ids, i % 32);
        bool early = !waited && loader == 0 && i < settled;
        if (n_pages >= 2 && (early || (ahead && waited && !fetched)))
            fetch_ahead<CLUSTER>(p, page, rank, mine(i));
        if (!waited && (i >= settled || n_pages >= 2)) {
            launch_wait();
            waited = true;
        }
        load_page<CLUSTER>(p, sm, n_pages % 2, page, n_pages / 2 % 2, rank, loader, i == 0);
        n_pages++;
        if (i % 32 == 31)
            ids = page_ids(table, i + 1, n);
        fetched = ahead && waited && i + 1 < n;
        if (fetched)
            fetch_ahead<CLUSTER>(p, __shfl_sync(~0u, ids, (i + 1) % 32), rank, mine(i + 1));
    }
}

/* Waits until what this loader brought of the last of n_pages pages is free. A block of a cluster
 * may end then: the other one's arrivals have come, and pages from it were all waited for. */
template <int CLUSTER>
static __device__ __forceinline__ void await_empty(shared &sm, uint32_t n_pages, uint32_t rank,
                                                   int loader)
{
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
            if (CLUSTER > 1 && group_loader(g) == loader && group_owner(s, g) == rank)
                mbar_wait(smem_u32(&sm.kv_empty[s][g]), ((n_pages + 1 - s) / 2 & 1) ^ 1);
}

/* Pages of a unit from `first` on that no kernel still writes (see mla.h). */
static __device__ __forceinline__ int settled_pages(int kv_len, int q_len, int first)
{
    return max(kv_len - q_len, 0) / PAGE - first;
}

/* Queries of the block's tile, whose first page is the block's page n_pages: eight boxes to q, by
 * groups with that page's; the rope part to its place in P as soon as that is free, from where the
 * scores' warpgroup takes it to registers before it writes any probabilities. */
static __device__ __forceinline__ void load_queries(const params &p, shared &sm, int row,
                                                    uint32_t phase, uint32_t n_pages)
{
    auto load = [&](int b, uint8_t *to, uint64_t *full) {
        tma_load_2d(smem_u32(to), &p.q, smem_u32(full), 64 * b, row, TMA_EVICT_NORMAL);
    };
    int slot = n_pages % 2;

    mbar_wait(smem_u32(&sm.q_empty), phase ^ 1);
    if (threadIdx.x % 32 == 0) {
        mbar_arrive_expect(smem_u32(&sm.q_full), BOX);
        if (n_pages < 2)
            load(8, sm.p[slot], &sm.q_full);
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
            for (int b = group_box(g); g != ROPE && b < group_box(g) + 2; b++)
                load(b, sm.q[b], &sm.kv_full[slot][g]);
        if (n_pages >= 2) {
            mbar_wait(smem_u32(&sm.p_empty[slot]), (n_pages / 2 & 1) ^ 1);
            load(8, sm.p[slot], &sm.q_full);
        }
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

/* First query row of this block's tile of the unit that a course is at. */
template <int CLUSTER>
static __device__ __forceinline__ int64_t tile_row(const params &p, const course &c, uint32_t rank)
{
    return (int64_t)c.from.q * p.heads + (c.u.group * CLUSTER + (int)rank) * ROWS;
}

/* The producer warp: finds the part's units, tells the other warps of each and is the first
 * of those that bring its pages. */
template <int CLUSTER, bool PAIRED>
static __device__ __forceinline__ void produce(const params &p, shared &sm, uint32_t rank, int ids)
{
    uint32_t n_pages = 0;
    int n_works = 0;
    bool waited = !p.settled;
    course c = sm.course;

    if (!waited && c.how.apart && c.how.size >= MOST_MERGERS) {
        launch_wait(); /* the call ahead ends with a merging that pages would hold up */
        waited = true;
    }
    while (c.more) {
        const unit &u = c.u;
        const share &sh = c.sh;
        const int32_t *table = c.from.table + sh.first;
        int n = sh.last - sh.first;
        int tile = (u.group * CLUSTER + (int)rank) * ROWS;
        pending d = {sh.n,
                     sh.index,
                     sh.mergers,
                     sh.merger,
                     c.how.kind == plan::EVEN,
                     c.at.lane * c.at.count + c.at.index - sh.index,
                     tile_row<CLUSTER>(p, c, rank),
                     min(max(u.q_len * p.heads - tile, 0), (int)ROWS)};
        hand_over(sm, n_works++, {d, sh.first, sh.last, u.kv_len, u.q_len, tile, table});
        load_pages<CLUSTER>(p, sm, table, n, settled_pages(u.kv_len, u.q_len, sh.first), ids,
                            n_pages, waited, rank, 0, sh.first + u.group);
        c.more = unit_next<CLUSTER>(p, c.u, c.at.lane);
        find_share<CLUSTER>(p, c);
        if (c.more)
            c.from = read_starts(p, u.seq);
        ids = first_pages(c);
    }
    hand_over(sm, n_works, work{});
    if (sm.unknown)
        remember(p, sm);
    if (PAIRED && n_works > 0 && sm.works[0].d.in_pair()) /* the only unit */
        grant(sm, sm.works[0].d);
    await_empty<CLUSTER>(sm, n_pages, rank, 0);
}

/* The other warps that bring pages. */
template <int CLUSTER>
static __device__ __forceinline__ void produce_pages(const params &p, shared &sm, uint32_t rank,
                                                     int loader)
{
    uint32_t n_pages = 0;
    bool waited = !p.settled;

    if (waited)
        launch_wait();
    for (int i = 0;; i++) {
        mbar_wait(smem_u32(&sm.work_full[i % WORKS]), i / WORKS & 1);
        const work &w = sm.works[i % WORKS];
        const int32_t *table = w.table;
        int parts = w.d.n, n = w.last - w.first,
            settled = settled_pages(w.kv_len, w.q_len, w.first);
        arrive_warp(&sm.work_empty[i % WORKS]);
        if (parts == 0)
            break;
        load_pages<CLUSTER>(p, sm, table, n, settled, page_ids(table, 0, n), n_pages, waited, rank,
                            loader, 0);
    }
    await_empty<CLUSTER>(sm, n_pages, rank, loader);
}

/* Queries whose place is still taken come to L2 meanwhile. */
static __device__ __forceinline__ void prefetch_queries(const params &p, int row)
{
    if (threadIdx.x % 32 == 0)
        for (int b = 0; b < 9; b++)
            tma_prefetch_2d(&p.q, 64 * b, row);
    __syncwarp();
}

/* The first unit's queries where the course is known, ahead of all that is handed over. */
template <int CLUSTER>
static __device__ __forceinline__ void ask_known(const params &p, shared &sm, uint32_t rank)
{
    const course &c = sm.course;

    if (!c.more || c.sh.first == c.sh.last)
        return;
    launch_wait();
    load_queries(p, sm, (int)tile_row<CLUSTER>(p, c, rank), 0, 0);
}

/* The warp that brings the units' queries. `asked`: the first unit's have been asked for. */
static __device__ __forceinline__ void produce_queries(const params &p, shared &sm, bool asked)
{
    uint32_t phase = 0, all_pages = 0;

    for (int i = 0;; i++) {
        mbar_wait(smem_u32(&sm.work_full[i % WORKS]), i / WORKS & 1);
        const work &w = sm.works[i % WORKS];
        int n = w.d.n, n_pages = w.last - w.first, row = (int)w.d.row;
        arrive_warp(&sm.work_empty[i % WORKS]);
        if (n == 0)
            break;
        if (i == 0)
            launch_wait();
        if (n_pages > 0) {
            if (i > 0)
                prefetch_queries(p, row);
            if (i > 0 || !asked)
                load_queries(p, sm, row, phase, all_pages);
            all_pages += n_pages;
            phase ^= 1;
        }
    }
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* A thread of the scores' warpgroup. It has rows `row` and `row` + 8 of the tile. */
struct scorer {
    uint32_t q_rope[4][4], q_first[4 * REGISTER_BOXES][4]; /* the first boxes' */
    float m[2], l[2]; /* reference of the exponents (base 2), sum over the pages so far */
    int row;
    int limit[2];     /* tokens, from the start of the sequence, that the rows see */
    int mask_from;    /* pages from this one on need the mask */
    uint32_t n_pages; /* so far: slot n_pages % 2, phase n_pages / 2 % 2 */
};

/* The upper half of desc_k(). By way of an address' upper bits, which are zeros: ptxas makes a half
 * that it knows anew for each product. */
static __device__ __forceinline__ uint32_t desc_high(uint32_t addr)
{
    return (uint32_t)(wgmma_desc(0, 16, 1024, SWIZZLE_128) >> 32) + (addr >> 29);
}

static __device__ __forceinline__ uint64_t desc_of(uint32_t low, uint32_t high)
{
    uint64_t d;

    asm volatile("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low), "r"(high));
    return d;
}

static __device__ __forceinline__ uint64_t desc_k(const void *box)
{
    return wgmma_desc(smem_u32(box), 16, 1024, SWIZZLE_128);
}

static __device__ __forceinline__ uint64_t desc_v(const void *box)
{
    return wgmma_desc(smem_u32(box), BOX, 1024, SWIZZLE_128);
}

/* Box groups FROM .. TO - 1 of s (64 x 64) = Q K^T of the page in slot; queued, not waited for. */
template <int CLUSTER, int FROM, int TO>
static __device__ __forceinline__ void scores(float (&s)[32], const scorer &t, shared &sm, int slot,
                                              uint32_t phase, bool there)
{
    uint32_t high = desc_high(smem_u32(&sm)), q = (uint32_t)desc_k(sm.q[0]),
             k = (uint32_t)desc_k(sm.kv[slot][0]);

    /* Else all copies' descriptors are kept, and spilled. */
    asm volatile("" : "+r"(q), "+r"(k), "+r"(high));
#pragma unroll
    for (int g = FROM; g < TO; g++) {
        if (there)
            mbar_wait(smem_u32(&sm.kv_full[slot][g]), phase);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int at = ((group_box(g) + i / 4) * BOX + i % 4 * 32) / 16;
            if (g == 0 && i < 4 * REGISTER_BOXES)
                wgmma<64>::rs<0>(s, t.q_first[i], desc_of(k + at, high), i > 0);
            else if (g != ROPE)
                wgmma<64>::ss<0, 0>(s, desc_of(q + at, high), desc_of(k + at, high), g + i > 0);
            else if (i < 4)
                wgmma<64>::rs<0>(s, t.q_rope[i], desc_of(k + at, high), 1);
        }
    }
    wgmma_commit();
}

/* The first group of the page after those so far. Also where there is none, of what the slot has,
 * and then not used: products that are under way across a branch would be waited for before it. */
template <int CLUSTER, int SLOT>
static __device__ __forceinline__ void begin_scores(float (&s)[32], const scorer &t, shared &sm,
                                                    bool there)
{
#pragma unroll
    for (int i = 0; i < 32; i++) /* what they were is not kept */
        asm volatile("" : "=f"(s[i]));
    scores<CLUSTER, 0, 1>(s, t, sm, SLOT, t.n_pages / 2 % 2, there);
}

/* Moves references of rows up to their largest score where that has outgrown them; a row's own
 * threads alone decide. */
static __device__ __forceinline__ void raise_references(const float (&s)[32], scorer &t,
                                                        float scale_log2, bool (&outgrown)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = outgrown[r] ? INFINITY : -INFINITY;
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        bool raise = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) > 0;
        top = s[2 * r];
#pragma unroll
        for (int i = 0; i < 16; i++)
            top = fmaxf(top, s[i / 2 * 4 + 2 * r + i % 2]);
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * scale_log2;
        if (raise && top > t.m[r]) {
            t.l[r] *= exp2_fast(t.m[r] - top);
            t.m[r] = top;
        }
    }
}

/* Probabilities by the references that there are to shared memory, as bf16 in the swizzled layout
 * of a left operand, and a thread's sums of them. */
static __device__ __forceinline__ void exponentials(const float (&s)[32], float (&sum)[2],
                                                    const scorer &t, float scale_log2, uint8_t *box)
{
    int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
    uint32_t base = smem_u32(box) + row * 128, pr[4];
    float sums[2][2] = {};

#pragma unroll
    for (int i = 0; i < 16; i++) {
        int r = i % 2;
        float x = exp2_fast(fmaf(s[2 * i], scale_log2, -t.m[r]));
        float y = exp2_fast(fmaf(s[2 * i + 1], scale_log2, -t.m[r]));
        sums[r][0] += x, sums[r][1] += y;
        __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
        pr[i % 4] = *(uint32_t *)&pair;
        if (i % 4 == 3)
            store_matrices(base + ((i / 4 * 2 + lane / 16) ^ (row & 7)) * 16, pr[0], pr[1], pr[2],
                           pr[3]);
    }
    sum[0] = sums[0][0] + sums[0][1];
    sum[1] = sums[1][0] + sums[1][1];
}

/* Scores become probabilities, which go to the place of `slot` with the references. Updates these
 * and sums. The references nearly always stay what they are, so that nothing waits for maxima:
 * whether a score has outgrown them shows in a thread's sum, and then it is done again; `first` of
 * its unit: there are none yet. limit[r]: tokens of this page that row r sees. `next`: the next
 * page's first boxes are there, as far as was seen. */
static __device__ __forceinline__ void softmax(float (&s)[32], scorer &t, float scale_log2,
                                               bool first, bool mask, const int (&limit)[2],
                                               shared &sm, int slot, bool &next)
{
    int column = threadIdx.x % 4 * 2;
    float sum[2];

    if (mask) {
#pragma unroll
        for (int i = 0; i < 32; i++)
            if (i / 4 * 8 + i % 2 >= limit[i / 2 % 2] - column)
                s[i] = -INFINITY;
    }
    bool outgrown[2] = {true, true};
#pragma unroll 1
    for (bool again = first;; again = true) {
        if (again)
            raise_references(s, t, scale_log2, outgrown);
        if (threadIdx.x % 4 == 0) {
#pragma unroll
            for (int r = 0; r < 2; r++)
                sm.m[slot][t.row + 8 * r] = t.m[r] == NO_REFERENCE ? -INFINITY : t.m[r];
        }
        exponentials(s, sum, t, scale_log2, sm.p[slot]);
        next = mbar_test(smem_u32(&sm.kv_full[slot ^ 1][0]), (t.n_pages + 1) / 2 % 2);
        fence_async(); /* beside the vote */
        outgrown[0] = sum[0] > MOST_SUM;
        outgrown[1] = sum[1] > MOST_SUM;
        if (again || !__any_sync(~0u, outgrown[0] || outgrown[1]))
            break;
    }
    t.l[0] += sum[0];
    t.l[1] += sum[1];
}

/* A lane of each warp tells the block that brings a group of boxes that it can be overwritten. */
template <int CLUSTER>
static __device__ __forceinline__ void release_boxes(shared &sm, int slot, int g)
{
    uint32_t bar = smem_u32(&sm.kv_empty[slot][g]);

    __syncwarp();
    if (threadIdx.x % 32 != 0)
        return;
    if (CLUSTER == 1)
        mbar_arrive(bar);
    else
        cluster_mbar_arrive(bar, group_owner(slot, g));
}

static __device__ __forceinline__ int row_limit(const params &p, const work &w, int row)
{
    if (!p.causal || w.q_len == 1)
        return w.kv_len;
    return min(w.kv_len - w.q_len + (int)(row * p.heads_inverse >> 32) + 1, w.kv_len);
}

/* What a thread keeps of the queries to its registers, as left operands: the rope part, from its
 * place, and the first boxes, which come with those of the first page. */
static __device__ __forceinline__ void read_queries(shared &sm, scorer &t)
{
    int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
    int slot = t.n_pages % 2;
    uint32_t base = smem_u32(sm.p[slot]) + row * 128, first = smem_u32(sm.q[0]) + row * 128;

#pragma unroll
    for (int i = 0; i < 4; i++)
        load_matrices(base + ((2 * i + lane / 16) ^ (row & 7)) * 16, t.q_rope[i]);
    mbar_wait(smem_u32(&sm.kv_full[slot][0]), t.n_pages / 2 % 2);
#pragma unroll
    for (int i = 0; i < 4 * REGISTER_BOXES; i++)
        load_matrices(first + i / 4 * BOX + ((2 * (i % 4) + lane / 16) ^ (row & 7)) * 16,
                      t.q_first[i]);
}

/* One page, whose scores have been begun: the rest of them, and its probabilities to the values'
 * warpgroups. */
template <int CLUSTER, int SLOT>
static __device__ __forceinline__ void score_page(const params &p, shared &sm, scorer &t, int page,
                                                  bool first, bool last, float (&s)[32], bool &next)
{
    const int limit[2] = {t.limit[0] - page * PAGE, t.limit[1] - page * PAGE};
    uint32_t phase = t.n_pages / 2 % 2;

    scores<CLUSTER, 1, GROUPS>(s, t, sm, SLOT, phase, true);
    if (CLUSTER > 1) /* nearly done: a warp stands still until its last products begin */
        arrive_warp(&sm.s_queued[SLOT]);
    mbar_wait(smem_u32(&sm.p_empty[SLOT]), phase ^ 1);
    wgmma_wait<0>();
    wgmma_hold(s);
    release_boxes<CLUSTER>(sm, SLOT, ROPE);
    if (last && threadIdx.x % 32 == 0)
        mbar_arrive(smem_u32(&sm.q_empty));
    softmax(s, t, p.scale_log2, first, page >= t.mask_from, limit, sm, SLOT, next);
    __syncwarp();
    if (threadIdx.x % 4 == 0) /* those who wrote references */
        mbar_arrive(smem_u32(&sm.p_full[SLOT]));
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
    if (threadIdx.x % 4 == 0)
        mbar_arrive(smem_u32(&sm.l_full[parity]));
}

/* Pages first .. last - 1. The next page's first products are queued as soon as a page's
 * probabilities are handed over, before anything else is done, and sums take turns with the slots,
 * so that the tensor cores have them early. */
template <int CLUSTER>
static __device__ __forceinline__ void score_pages(const params &p, shared &sm, scorer &t,
                                                   int first, int last)
{
    int page = first;
    float s[2][32];
    bool next; /* the next page's first boxes are known to be there */

    if (t.n_pages % 2 == 1) {
        begin_scores<CLUSTER, 1>(s[1], t, sm, true);
        score_page<CLUSTER, 1>(p, sm, t, page, true, page + 1 == last, s[1], next);
        if (++page == last)
            return;
    }
    begin_scores<CLUSTER, 0>(s[0], t, sm, true);
    for (;;) {
        score_page<CLUSTER, 0>(p, sm, t, page, page == first, page + 1 == last, s[0], next);
        begin_scores<CLUSTER, 1>(s[1], t, sm, page + 1 < last && !next);
        if (++page == last)
            break;
        score_page<CLUSTER, 1>(p, sm, t, page, false, page + 1 == last, s[1], next);
        begin_scores<CLUSTER, 0>(s[0], t, sm, page + 1 < last && !next);
        if (++page == last)
            break;
    }
    wgmma_wait<0>();
}

/* The scores' warpgroup through the block's units. */
template <int CLUSTER> static __device__ __forceinline__ void score(const params &p, shared &sm)
{
    int n_units = 0;
    scorer t;

    t.row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    t.n_pages = 0;
    for (int i = 0;; i++) {
        mbar_wait(smem_u32(&sm.work_full[i % WORKS]), i / WORKS & 1);
        const work w = sm.works[i % WORKS];
        arrive_warp(&sm.work_empty[i % WORKS]);
        if (w.d.n == 0)
            break;
        if (w.first == w.last)
            continue;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            t.limit[r] = row_limit(p, w, w.tile + t.row + 8 * r);
            t.m[r] = NO_REFERENCE;
            t.l[r] = 0;
        }
        t.mask_from = max(row_limit(p, w, w.tile), 0) / PAGE;
        mbar_wait(smem_u32(&sm.q_full), n_units % 2);
        read_queries(sm, t);
        score_pages<CLUSTER>(p, sm, t, w.first, w.last);
        hand_sums(sm, t, n_units++);
    }
}

/* ---- values ---------------------------------------------------------------------------------- */

/* A quarter of the output's columns += P V; queued, not waited for. */
static __device__ __forceinline__ void values(math &t, shared &sm, int slot, int half, int quarter)
{
    uint64_t v = desc_v(sm.kv[slot][4 * half + 2 * quarter]), pr = desc_k(sm.p[slot]);

    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++)
        wgmma<128>::ss<0, 1>(t.o[quarter], pr + i * 32 / 16, v + i * 2048 / 16, 1);
    wgmma_commit();
}

/* Brings the thread's sums to the references `m`. */
static __device__ __forceinline__ void rescale(math &t, const float (&m)[2])
{
    bool changed = false;

#pragma unroll
    for (int r = 0; r < 2; r++)
        if (t.m[r] == -INFINITY) /* nothing yet */
            t.m[r] = m[r];
        else
            changed = changed || m[r] != t.m[r];
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
    int thread = thread_anew() % 128; /* else addresses are made for every page */
#pragma unroll 1
    for (int b = 4 * half; b < 4 * half + 4; b++)
#pragma unroll 1
        for (int at = valid * 128 + thread * 16; at < BOX; at += 128 * 16)
            *(uint4 *)(sm.kv[slot][b] + at) = make_uint4(0, 0, 0, 0);
    fence_async();
    named_sync(2 + half, 128);
}

/* One page's probabilities times its values, a quarter after the other. `more`: the unit has a page
 * after it.
 *
 * CLUSTER 2 is bound by products: the second quarter waits for the scores of the next page, and
 * keeps the tensor cores busy while the scores' warpgroup takes their softmax. */
template <int CLUSTER, int SLOT>
static __device__ __forceinline__ void add_page(shared &sm, math &t, int half, int valid, bool more)
{
    uint32_t phase = t.n_pages / 2 % 2;

    mbar_wait(smem_u32(&sm.kv_full[SLOT][group_of(half, 0)]), phase);
    mbar_wait(smem_u32(&sm.kv_full[SLOT][group_of(half, 1)]), phase);
    mbar_wait(smem_u32(&sm.p_full[SLOT]), phase);
    const float m[2] = {sm.m[SLOT][t.row], sm.m[SLOT][t.row + 8]};
    rescale(t, m);
    clear_tail(sm, valid, SLOT, half);
    t.n_pages++;
    values(t, sm, SLOT, half, 0);
    if (CLUSTER == 1) {
        values(t, sm, SLOT, half, 1);
        wgmma_wait<1>();
    } else {
        wgmma_wait<0>();
    }
    wgmma_hold(t.o[0]);
    release_boxes<CLUSTER>(sm, SLOT, group_of(half, 0));
    if (CLUSTER > 1) {
        if (more)
            mbar_wait(smem_u32(&sm.s_queued[SLOT ^ 1]), t.n_pages / 2 % 2);
        values(t, sm, SLOT, half, 1);
    }
    wgmma_wait<0>();
    wgmma_hold(t.o[1]);
    release_boxes<CLUSTER>(sm, SLOT, group_of(half, 1));
    if (more) /* else the result goes by way of it */
        mbar_arrive(smem_u32(&sm.p_empty[SLOT]));
}

/* Where a unit's result goes when its pages are done. */
template <int CLUSTER>
static __device__ __forceinline__ void finish(const params &p, shared &sm, math &t, const work &w,
                                              uint32_t rank, int half, int &n_units, int &n_pending)
{
    const pending &d = w.d;            /* stays in shared memory: registers are for the sums */
    bool here = !d.only && d.n <= FEW; /* the first part merges */
    bool merges = d.n == 1 || (here && d.index == 0);

    if (w.first == w.last) {
        if (d.n == 1)
            write_nothing(p, d);
    } else {
        int slot = (t.n_pages + 1) % 2; /* of the last page */
        float l[2];
        take_sums(sm, t, l, n_units++);
        if (merges && d.n > 1)
            merge_here<CLUSTER>(p, t, l, d, rank);
        if (merges) {
            named_sync(1, MATH_THREADS); /* all have multiplied what is there */
            write_out(p, sm.p[slot], t, l, d, half);
        }
        mbar_arrive(smem_u32(&sm.p_empty[slot]));
        if (!merges)
            write_partial<CLUSTER>(p, sm, t, l, d, rank);
    }
    if (d.n > 1 && !here && d.merger >= 0) {
        if (threadIdx.x == 0)
            sm.merges[n_pending] = d;
        n_pending++;
    }
}

/* A values' warpgroup through the block's units. */
template <int CLUSTER, bool PAIRED>
static __device__ __forceinline__ void consume(const params &p, shared &sm, uint32_t rank, int half)
{
    int n_pending = 0, n_units = 0;
    math t;

    t.row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    t.n_pages = 0;
    for (int i = 0;; i++) {
        mbar_wait(smem_u32(&sm.work_full[i % WORKS]), i / WORKS & 1);
        const work &w = sm.works[i % WORKS];
        if (w.d.n == 0)
            break;
        int end = w.last, kv_len = w.kv_len;
        t.m[0] = t.m[1] = -INFINITY;
#pragma unroll
        for (int j = 0; j < 128; j++)
            t.at(j) = 0;
        for (int page = w.first; page < end; page++) {
            if (t.n_pages % 2 == 0)
                add_page<CLUSTER, 0>(sm, t, half, kv_len - page * PAGE, page + 1 < end);
            else
                add_page<CLUSTER, 1>(sm, t, half, kv_len - page * PAGE, page + 1 < end);
        }
        if (PAIRED && w.d.in_pair()) { /* the only unit */
            finish_pair(p, sm, t, w.d, half);
            return;
        }
        finish<CLUSTER>(p, sm, t, w, rank, half, n_units, n_pending);
        arrive_warp(&sm.work_empty[i % WORKS]);
    }
    named_sync(1, MATH_THREADS);
    uint32_t phase = 0;
    for (int i = 0; i < n_pending; i++) {
        const pending d = sm.merges[i];
        if (i > 0) /* there the merge before has read */
            fence_async();
        merge<CLUSTER>(p, sm, d, rank, phase);
    }
}

/* ---- kernel -----------------------------------------------------------------------------------
 */

/* A few barriers a warp. */
template <int CLUSTER, bool PAIRED> static __device__ __forceinline__ void init_barriers(shared &sm)
{
    auto before = [](size_t at) { return (int)((at - offsetof(shared, q_full)) / 8); };

#pragma unroll 1
    for (int i = threadIdx.x / 32; i < before(offsetof(shared, works)); i += THREADS / 32) {
        /* Of work_empty: the values' and scores' warps, the queries', the other loaders. */
        int arrivals = i < before(offsetof(shared, q_empty))      ? 1
                       : i < before(offsetof(shared, kv_empty))   ? 4
                       : i < before(offsetof(shared, p_full))     ? 4 * CLUSTER
                       : i < before(offsetof(shared, p_empty))    ? ROWS / 2
                       : i < before(offsetof(shared, work_empty)) ? MATH_THREADS
                                                                  : MATH_THREADS / 32 + 4 + LOADERS;
        mbar_init(smem_u32(&sm.q_full + i), arrivals);
    }
    if (PAIRED && threadIdx.x / 32 < 1 + QUARTERS)
        mbar_init(smem_u32(&sm.granted + threadIdx.x / 32), 1);
    mbar_init_fence();
}

template <int CLUSTER, bool PAIRED>
static __global__ void __launch_bounds__(THREADS, 1) kernel(const __grid_constant__ params p)
{
    extern __shared__ __align__(1024) uint8_t raw[];
    shared &sm = *(shared *)raw;
    int part = blockIdx.x / CLUSTER, warp = warp_index();
    uint32_t rank = CLUSTER > 1 ? cluster_rank() : 0;

    const glance g = look(p);
    if (threadIdx.x % 32 == 0)
        init_barriers<CLUSTER, PAIRED>(sm);
    __syncwarp();
    if (CLUSTER > 1 || PAIRED) /* no release: init_barriers has made the barriers seen */
        cluster_arrive_relaxed();
    if (threadIdx.x == THREADS - 96) {
        tma_prefetch_map(&p.q);
        tma_prefetch_map(&p.kv);
    }
    bool known = __syncthreads_and(note(p, sm, g));
    if (known || p.seqs.n_seqs > REMEMBERED)
        launch_next();
    int ids = 0;
    if (warp == 13 && known && p.settled)
        ask_known<CLUSTER>(p, sm, rank);
    if (warp == 12)
        ids = begin<CLUSTER>(p, sm, part, known);
    if (CLUSTER > 1 || PAIRED) /* only now: finding the block's work takes as long */
        cluster_wait();

    /* Registers of the block: 2 x 128 x 168 + 128 x 136 + 128 x 40 = 65,536. */
    if (warp < 8) {
        registers_raise<168>();
        launch_wait();
        consume<CLUSTER, PAIRED>(p, sm, rank, warp / 4);
    } else if (warp < 12) {
        registers_raise<136>();
        launch_wait();
        score<CLUSTER>(p, sm);
    } else {
        registers_lower<40>();
        if (warp == 12) {
            produce<CLUSTER, PAIRED>(p, sm, rank, ids);
        } else if (warp == 13)
            produce_queries(p, sm, known && p.settled);
        else
            produce_pages<CLUSTER>(p, sm, rank, warp - 13);
    }
}

} // namespace mla_wide
