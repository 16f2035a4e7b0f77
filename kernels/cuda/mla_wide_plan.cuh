/* How the work of a call is dealt to the blocks of the 64-row decode kernel, found by every block
 * from the lengths on the device. See mla_wide.cuh. */
#pragma once

#include "kernels/cuda/mla_wide_types.cuh"

namespace mla_wide
{

/* x / y by a multiplication with 2^32 / y, rounded up (0 for y 1); x * y < 2^32. Instructions count
 * here: they run once a call and come from far. */
static __device__ __forceinline__ int inverse_product(int x, uint32_t inverse)
{
    return inverse ? (int)__umulhi((uint32_t)x, inverse) : x;
}

static __device__ __forceinline__ place place_of(const params &p, int part)
{
    int index = inverse_product(part, p.lanes_inverse);

    return {part - index * p.lanes, index, p.lane_parts};
}

/* Lengths of a sequence, (q_len, kv_len), within bounds whatever is there. */
static __device__ __forceinline__ int2 bounded(const params &p, int q_len, int kv_len)
{
    return make_int2(min((uint32_t)q_len, (uint32_t)p.seqs.max_q_len), max(kv_len, 0));
}

/* Not by way of L1, which could keep what another kernel is still about to change. */
static __device__ __forceinline__ int2 read_lengths(const params &p, int seq)
{
    int q_len = p.seqs.q_lens ? __ldcg(p.seqs.q_lens + seq) : p.seqs.max_q_len;

    return bounded(p, q_len, __ldcg(p.seqs.kv_lens + seq));
}

/* All that is read of a sequence: (q_len, kv_len, entries of q_starts and of table_starts). */
static __device__ __forceinline__ int4 read_sequence(const params &p, int seq)
{
    int q = p.seqs.q_starts ? __ldcg(p.seqs.q_starts + seq) : 0;
    int table = p.seqs.table_starts ? __ldcg(p.seqs.table_starts + seq) : 0;
    int q_len = p.seqs.q_lens ? __ldcg(p.seqs.q_lens + seq) : p.seqs.max_q_len;

    return make_int4(q_len, __ldcg(p.seqs.kv_lens + seq), q, table);
}

template <int CLUSTER>
static __device__ __forceinline__ void set_unit(const params &p, unit &u, int2 lengths, int lane)
{
    u.q_len = lengths.x;
    u.kv_len = lengths.y;
    u.pages = (u.kv_len + PAGE - 1) / PAGE;
    u.group = lane;
    u.left = 1;
    if (p.lanes > 1 || u.q_len != 1) {
        int groups = (u.q_len * p.heads + ROWS * CLUSTER - 1) / (ROWS * CLUSTER);
        u.left = groups > lane ? inverse_product(groups - lane + p.lanes - 1, p.lanes_inverse) : 0;
    }
}

static __device__ __forceinline__ int unit_cost(const unit &u)
{
    return u.pages + OVERHEAD;
}

/* Moves on to the next unit; false after the last one. */
template <int CLUSTER>
static __device__ __forceinline__ bool unit_next(const params &p, unit &u, int lane)
{
    u.base += unit_cost(u);
    u.number++;
    u.group += p.lanes;
    if (--u.left > 0)
        return true;
    while (++u.seq < p.seqs.n_seqs) {
        set_unit<CLUSTER>(p, u, read_lengths(p, u.seq), lane);
        if (u.left > 0)
            return true;
    }
    return false;
}

/* Cost, number and largest cost of units. */
struct load {
    int32_t cost, units, most;
};

enum {
    HELP = 2, /* mergers for a part, where there are blocks without pages */
};

/* Cycles that plans are compared by, fitted to measured numbers of pieces (README.md): a block's
 * page; what each block that has pages adds to one; for merging at all and for each part of the
 * unit, times CLUSTER; what is won, times its square, where other blocks than those with pages
 * merge, so that these can begin with the next call's; a LINE's uneven ends. FULL: where all blocks
 * have work for long, between whole units and a LINE. */
enum {
    PAGE_CYCLES = 1900,
    PAGE_SHARE = 20,
    MERGE_CYCLES = 1500,
    PART_CYCLES = 40,
    APART_CYCLES = 1000,
    LINE_CYCLES = 6000,
    FULL_PAGE_CYCLES = 3400,
    FULL_PAGE_SHARE = 42,
    FULL_LINE_CYCLES = 26000
};

/* Whether there are as many blocks without pages as with them, which then merge. */
static __device__ __forceinline__ bool merges_apart(int pieces, int group)
{
    return pieces > 1 && 2 * pieces <= group;
}

/* Cycles / 16 of units cut into `pieces`, of `pages` each, of which there are `parts`. */
template <int CLUSTER>
static __device__ __forceinline__ int plan_cycles(int pages, int pieces, int parts, int group)
{
    int merge = pieces == 1
                    ? 0
                    : CLUSTER * (MERGE_CYCLES + pieces * PART_CYCLES) -
                          (merges_apart(pieces, group) ? CLUSTER * CLUSTER * APART_CYCLES : 0);

    return (min(pages, 1 << 14) * max((int)PAGE_CYCLES, PAGE_SHARE * parts) + merge) / 16;
}

/* By a warp; its threads try different numbers of pieces. */
template <int CLUSTER>
static __device__ __forceinline__ plan make_plan(const params &p, int parts, int part,
                                                 const load &all)
{
    int units = max(all.units, 1), most = max(all.most - OVERHEAD, 1), group = parts / units;
    int per_part = inverse_product(units + parts - 1, p.lane_parts_inverse);
    int size = max(inverse_product(all.cost + parts - 1, p.lane_parts_inverse), 1);
    bool even = (int64_t)units * all.most <= all.cost + all.cost / 16;

    /* Whole units leave blocks idle at the end, which costs nothing where memory binds. */
    int memory = min(size, 1 << 14) * FULL_PAGE_SHARE * parts;
    int whole = max(min(per_part * all.most, 1 << 14) * FULL_PAGE_CYCLES, memory);
    int full = max(min(size, 1 << 14) * FULL_PAGE_CYCLES, memory) + FULL_LINE_CYCLES;
    if (even && (p.invariant || (group <= 1 && whole <= full)))
        return {plan::WHOLE, per_part, 1, 0, 0, 0};
    if (p.invariant || group == 0)
        return {plan::LINE, size, 1, 0, 0, 0};
    /* Cycles / 16, and below them the number of pieces; 0: a LINE. */
    uint32_t best = (plan_cycles<CLUSTER>(size, group + 2, parts, 0) + (uint32_t)LINE_CYCLES / 16)
                    << 8;
    int limit = min(min(group, most), (int)MOST_PIECES);
#pragma unroll 1
    for (int first = 1; first <= limit; first += 32) {
        int pieces = first + threadIdx.x % 32;
        int each = __float2int_ru(__fdividef(most, pieces) - 1e-3f);
        if (pieces <= limit)
            best =
                min(best, (uint32_t)plan_cycles<CLUSTER>(each, pieces, pieces * units, group) << 8 |
                              (uint32_t)pieces);
    }
    best = __reduce_min_sync(~0u, best);
    if (best & 255) {
        int unit = part / group;
        int pieces = best & 255;
        return {plan::EVEN, pieces, group, unit, part - unit * group, merges_apart(pieces, group)};
    }
    return {plan::LINE, size, 1, 0, 0, 0};
}

/* Where on the units' line (LINE: cost; else: number) the piece of a part begins. */
static __device__ __forceinline__ int plan_start(const plan &how, int part)
{
    return how.kind == plan::EVEN ? how.unit : part * how.size;
}

static __device__ __forceinline__ int plan_end(const plan &how, int part)
{
    return how.kind == plan::EVEN ? how.unit + 1 : (part + 1) * how.size;
}

/* Where lengths are noted. Not where pages go: the cluster's other block may be ahead and bring
 * some there. */
static __device__ __forceinline__ int4 *seen_in(shared &sm)
{
    static_assert(SEEN * sizeof(int4) <= sizeof(sm.q), "room for what was seen");
    return (int4 *)sm.q;
}

/* By its address: a store to a member makes the compiler keep all addresses in ordinary registers,
 * the descriptors' too. */
static __device__ __forceinline__ void store_shared(uint32_t to, int4 x)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z),
                 "r"(x.w)
                 : "memory");
}

static __device__ __forceinline__ bool equal(int4 a, int4 b)
{
    return a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w;
}

/* A thread's part of what the block reads first of all. */
struct glance {
    int4 now, was; /* its first sequence; the one remembered */
    int4 memo;     /* a piece of the memo's beginning */
};

static __device__ __forceinline__ glance look(const params &p)
{
    const memo *before = p.memos + blockIdx.x;
    int piece = (int)threadIdx.x - (THREADS - 32);
    glance g = {};

    if (piece >= 0 && piece < MEMO_PIECES)
        g.memo = __ldcg((const int4 *)before + piece);
    if (threadIdx.x < p.seqs.n_seqs) {
        g.was = __ldcg(before->seqs + threadIdx.x);
        g.now = read_sequence(p, threadIdx.x);
    }
    return g;
}

/* By the whole block: notes in `seen` the sequences as they are now, and in shared memory the
 * course that is remembered. Whether, for all that this thread knows, it is this call's. */
static __device__ __forceinline__ bool note(const params &p, shared &sm, const glance &g)
{
    int4 *seen = seen_in(sm);
    int piece = (int)threadIdx.x - (THREADS - 32);
    bool same = p.seqs.n_seqs <= REMEMBERED && equal(g.now, g.was);

    static_assert(REMEMBERED <= THREADS && MEMO_PIECES <= 32, "one a thread");
    static_assert(offsetof(shared, course) - offsetof(shared, of) == offsetof(memo, course),
                  "a memo's beginning");
    if (threadIdx.x < p.seqs.n_seqs)
        seen[threadIdx.x] = g.now;
#pragma unroll 1
    for (int seq = threadIdx.x + THREADS; seq < min(p.seqs.n_seqs, (int)SEEN); seq += THREADS)
        seen[seq] = read_sequence(p, seq);
    if (piece >= 0 && piece < MEMO_PIECES) {
        store_shared(smem_u32(&sm.of) + piece * 16, g.memo);
        if (piece < (int)(sizeof(call) / 16))
            same = same && equal(g.memo, ((const int4 *)&p.of)[piece]);
    }
    fence_async();
    return same;
}

/* By a warp, at its end: remembers this call. The next one may start only then: it looks at once.
 */
static __device__ __forceinline__ void remember(const params &p, const shared &sm)
{
    memo *to = p.memos + blockIdx.x;
    int lane = threadIdx.x % 32;

#pragma unroll 1
    for (int seq = lane; seq < p.seqs.n_seqs; seq += 32)
        to->seqs[seq] = read_sequence(p, seq);
    if (lane < MEMO_PIECES)
        ((int4 *)to)[lane] = lane < (int)(sizeof(call) / 16) ? ((const int4 *)&p.of)[lane]
                                                             : ((const int4 *)&sm.of)[lane];
    __threadfence();
    __syncwarp();
    launch_next();
}

/* By a warp: the plan of a lane, and the unit in which the piece of its part `at.index` begins;
 * u.seq is n_seqs when there is none. Each thread looks at an equal share of the sequences. Safe
 * while the lengths are being written. */
template <int CLUSTER>
static __device__ __forceinline__ plan find_piece(const params &p, const int4 *seen,
                                                  const place &at, unit &u)
{
    int thread = threadIdx.x % 32, each = (p.seqs.n_seqs + 31) / 32;
    load mine = {0, 0, 0};

    auto lengths_of = [&](int seq) {
        return seq < SEEN ? bounded(p, seen[seq].x, seen[seq].y) : read_lengths(p, seq);
    };

#pragma unroll 1
    for (int i = 0; i < each; i++) {
        u.seq = thread * each + i;
        if (u.seq < p.seqs.n_seqs) {
            set_unit<CLUSTER>(p, u, lengths_of(u.seq), at.lane);
            mine.cost += u.left * unit_cost(u);
            mine.units += u.left;
            mine.most = max(mine.most, u.left > 0 ? unit_cost(u) : 0);
        }
    }
    __syncwarp();
    load end = mine;
    for (int step = 1; step < 32; step *= 2) {
        int cost = __shfl_up_sync(~0u, end.cost, step),
            units = __shfl_up_sync(~0u, end.units, step);
        if (thread >= step)
            end.cost += cost, end.units += units;
    }
    plan how = make_plan<CLUSTER>(p, at.count, at.index,
                                  {__shfl_sync(~0u, end.cost, 31), __shfl_sync(~0u, end.units, 31),
                                   __reduce_max_sync(~0u, mine.most)});
    bool by_cost = how.kind == plan::LINE;
    int start = plan_start(how, at.index);
    bool here = start >= (by_cost ? end.cost - mine.cost : end.units - mine.units) &&
                start < (by_cost ? end.cost : end.units);
    uint32_t owner = __ballot_sync(~0u, here);
    u.seq = p.seqs.n_seqs;
    if (owner == 0)
        return how;
    int from = __ffs(owner) - 1;
    u.seq = from * each;
    u.base = __shfl_sync(~0u, end.cost - mine.cost, from);
    u.number = __shfl_sync(~0u, end.units - mine.units, from);
    set_unit<CLUSTER>(p, u, lengths_of(u.seq), at.lane);
    while ((by_cost ? u.base + u.left * unit_cost(u) : u.number + u.left) <= start &&
           u.seq + 1 < p.seqs.n_seqs) {
        u.base += u.left * unit_cost(u);
        u.number += u.left;
        u.seq++;
        set_unit<CLUSTER>(p, u, lengths_of(u.seq), at.lane);
    }
    int skip = u.left == 1 ? 0 : by_cost ? (start - u.base) / unit_cost(u) : start - u.number;
    u.group += skip * p.lanes;
    u.left -= skip;
    u.base += skip * unit_cost(u);
    u.number += skip;
    return how;
}

/* By the same warp: whether the lengths are still what they were seen to be; notes what they are.
 */
static __device__ __forceinline__ bool lengths_stand(const params &p, int4 *seen)
{
    bool same = p.seqs.n_seqs <= SEEN;

#pragma unroll 4
    for (int seq = threadIdx.x % 32; seq < min(p.seqs.n_seqs, (int)SEEN); seq += 32) {
        int4 was = seen[seq], now = read_sequence(p, seq);
        same = same && equal(was, now);
        seen[seq] = now;
    }
    return __all_sync(~0u, same);
}

/* Blocks that merge a unit of n parts, of `most` that could. Whole fours have pieces of the same 16
 * rows alone. */
static __device__ __forceinline__ int mergers_of(int n, int most)
{
    int mergers = min(most, min(HELP * n, (int)MOST_MERGERS));

    return mergers < 4 ? mergers : mergers / 4 * 4;
}

static __device__ __forceinline__ share even_share(const plan &how, const unit &u)
{
    int n = max(min(how.size, u.pages), 1), index = how.index;
    bool apart = how.apart && n > 1 && n < how.group;
    int mergers = n <= 2 && !apart ? n : mergers_of(n, apart ? how.group - n : how.group);
    int merger = apart ? index - n : index;

    if (merger >= mergers)
        merger = -1;
    if (index >= n) /* blocks that would have nothing to do help */
        return {0, 0, index, merger >= 0 ? n : 0, mergers, merger};
    int each = u.pages / n, longer = u.pages - each * n; /* so many have a page more */
    int first = index * each + min(index, longer), last = first + each + (index < longer);
    return {first, last, index, n, mergers, max(merger, -1)};
}

static __device__ __forceinline__ share unit_share(const params &p, const plan &how, const unit &u,
                                                   int part)
{
    int size = how.size, line = u.base + OVERHEAD;

    if (how.kind == plan::WHOLE)
        return {0, u.pages, 0, 1, 1, 0};
    if (p.invariant) { /* whole units, by where they begin */
        bool mine = u.base / size == part;
        return {0, mine ? u.pages : 0, 0, mine, 1, 0};
    }
    if (how.kind == plan::EVEN)
        return even_share(how, u);
    if (u.pages == 0) /* nothing to see: one part writes zeros */
        return {0, 0, 0, (line - 1) / size == part, 1, 0};
    int first = min(max(part * size - line, 0), u.pages);
    int last = min(max((part + 1) * size - line, 0), u.pages), first_part = line / size;
    int n = first < last ? (line + u.pages - 1) / size - first_part + 1 : 0;
    int index = part - first_part, mergers = min(n, (int)MOST_MERGERS);
    return {first, last, index, n, mergers, index < mergers ? index : -1};
}

static __device__ __forceinline__ starts starts_of(const params &p, int seq, int q, int table)
{
    return {p.seqs.q_starts ? q : seq * p.seqs.max_q_len,
            p.seqs.block_tables +
                (p.seqs.table_starts ? table : (int64_t)seq * p.seqs.table_stride)};
}

static __device__ __forceinline__ starts read_starts(const params &p, int seq)
{
    return starts_of(p, seq, p.seqs.q_starts ? __ldcg(p.seqs.q_starts + seq) : 0,
                     p.seqs.table_starts ? __ldcg(p.seqs.table_starts + seq) : 0);
}

/* From unit c.u on, the next one of which the part has a share. */
template <int CLUSTER> static __device__ __forceinline__ void find_share(const params &p, course &c)
{
    for (; c.more; c.more = unit_next<CLUSTER>(p, c.u, c.at.lane)) {
        c.more = (c.how.kind == plan::LINE ? c.u.base : c.u.number) < c.end;
        if (!c.more)
            return;
        c.sh = unit_share(p, c.how, c.u, c.at.index);
        if (c.sh.n > 0)
            return;
    }
}

/* The page number that a thread holds of the 32 from page i on. */
static __device__ __forceinline__ int page_ids(const int32_t *table, int i, int n)
{
    int at = i + (int)threadIdx.x % 32;

    return at < n ? table[at] : 0;
}

static __device__ __forceinline__ int first_pages(const course &c)
{
    return c.more ? page_ids(c.from.table + c.sh.first, 0, c.sh.last - c.sh.first) : 0;
}

/* By the producer warp, while it still has registers: the plan and the first share, where they are
 * not known. Worked out before the kernels that may still be writing the lengths are done, and
 * again when the lengths have changed by then. Returns the first page numbers. */
template <int CLUSTER>
static __device__ __forceinline__ int begin(const params &p, shared &sm, int part, bool known)
{
    int4 *seen = seen_in(sm);
    course c;

    if (threadIdx.x % 32 == 0)
        sm.unknown = !known && p.seqs.n_seqs <= REMEMBERED;
    if (known) {
        bool stands = p.settled;
        if (!stands) {
            launch_wait();
            stands = lengths_stand(p, seen);
        }
        if (stands)
            return first_pages(sm.course);
    }
    c.at = place_of(p, part);
    for (bool waited = known;; waited = true) {
        c.how = find_piece<CLUSTER>(p, seen, c.at, c.u);
        c.end = plan_end(c.how, c.at.index);
        c.more = c.u.seq < p.seqs.n_seqs;
        find_share<CLUSTER>(p, c);
        if (!waited && !p.settled)
            launch_wait();
        int seq = min(c.u.seq, p.seqs.n_seqs - 1);
        int4 at = seq < SEEN ? seen[seq] : read_sequence(p, seq);
        c.from = starts_of(p, seq, at.z, at.w);
        if (waited || p.settled || lengths_stand(p, seen))
            break;
    }
    fence_async();
    if (threadIdx.x % 32 == 0)
        sm.course = c;
    __syncwarp();
    return first_pages(c);
}

} // namespace mla_wide
