/* How the work of a call is dealt to the blocks of the 64-row decode kernel, found by every block
 * from the lengths on the device. See mla_wide.cuh. */
#pragma once

#include "kernels/cuda/mla_wide_types.cuh"

namespace mla_wide
{

/* A unit of work: the row tiles of one cluster in one sequence. */
struct unit {
    int32_t seq, group; /* tiles group * CLUSTER .. of the sequence */
    int32_t left;       /* units of this lane in the sequence from this one on */
    int32_t number;     /* of units before it */
    int32_t base;       /* their cost, in pages */
    int32_t kv_len, q_len, pages;
};

/* How units are dealt to the parts of the grid; every part finds the same from the lengths. Parts
 * are in lanes: part % lanes; a lane has the groups that leave that remainder, so that the tiles of
 * a sequence are worked on at the same time by neighbours, and its pages come from memory once.
 * Within a lane: WHOLE    `size` units a part EVEN     every unit is cut into `size` equal pieces,
 * a piece a part LINE     units stand on a line, each as long as its cost; a part takes `size` of
 * the line, so that all end together whatever the lengths; it cuts at most its first and last unit
 * The first two are for lengths that are about the same: they cut less, so there is less to merge.
 */
struct plan {
    enum { WHOLE, EVEN, LINE } kind;
    int32_t size;
};

template <int CLUSTER>
static __device__ __forceinline__ void unit_read(const params &p, unit &u, int lane)
{
    u.q_len = p.seqs.q_lens ? p.seqs.q_lens[u.seq] : p.seqs.max_q_len;
    u.kv_len = p.seqs.kv_lens[u.seq];
    u.pages = (u.kv_len + PAGE - 1) / PAGE;
    u.group = lane;
    u.left = 1;
    if (p.lanes > 1 || u.q_len != 1) {
        int groups = (u.q_len * p.heads + ROWS * CLUSTER - 1) / (ROWS * CLUSTER);
        u.left = groups > lane ? (groups - lane + p.lanes - 1) / p.lanes : 0;
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
        unit_read<CLUSTER>(p, u, lane);
        if (u.left > 0)
            return true;
    }
    return false;
}

/* Cost, number and largest cost of units. */
struct load {
    int32_t cost, units, most;
};

static __device__ __forceinline__ plan make_plan(const params &p, const load &all)
{
    int parts = p.parts / p.lanes;
    int per_part = (all.units + parts - 1) / parts, pieces = parts / max(all.units, 1);
    int size = max((all.cost + parts - 1) / parts, 1);
    bool even = (int64_t)all.units * all.most <= all.cost + all.cost / 16;

    if (even && (p.invariant || per_part * all.most <= size + size / 8))
        return {plan::WHOLE, max(per_part, 1)};
    if (even && pieces > 0 && pieces * all.units * 8 >= parts * 7)
        return {plan::EVEN, pieces};
    return {plan::LINE, size};
}

/* Where on the units' line (LINE: cost; else: number) the piece of a part begins. */
static __device__ __forceinline__ int plan_start(const plan &how, int part)
{
    return how.kind == plan::EVEN ? part / how.size : part * how.size;
}

/* By a warp: the plan of a lane, and the unit in which the piece of its part `part` begins; u.seq
 * is n_seqs when there is none. Each thread looks at an equal share of the sequences. */
template <int CLUSTER>
static __device__ __forceinline__ plan find_piece(const params &p, int lane, int part, unit &u)
{
    int thread = threadIdx.x % 32, each = (p.seqs.n_seqs + 31) / 32;
    load mine = {0, 0, 0};

#pragma unroll 4
    for (int i = 0; i < each; i++) {
        u.seq = thread * each + i;
        if (u.seq < p.seqs.n_seqs) {
            unit_read<CLUSTER>(p, u, lane);
            mine.cost += u.left * unit_cost(u);
            mine.units += u.left;
            mine.most = max(mine.most, u.left > 0 ? unit_cost(u) : 0);
        }
    }
    load end = mine;
    for (int step = 1; step < 32; step *= 2) {
        int cost = __shfl_up_sync(~0u, end.cost, step),
            units = __shfl_up_sync(~0u, end.units, step);
        end.most = max(end.most, __shfl_xor_sync(~0u, end.most, step));
        if (thread >= step)
            end.cost += cost, end.units += units;
    }
    plan how =
        make_plan(p, {__shfl_sync(~0u, end.cost, 31), __shfl_sync(~0u, end.units, 31), end.most});
    bool by_cost = how.kind == plan::LINE;
    int start = plan_start(how, part);
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
    unit_read<CLUSTER>(p, u, lane);
    while ((by_cost ? u.base + u.left * unit_cost(u) : u.number + u.left) <= start) {
        u.base += u.left * unit_cost(u);
        u.number += u.left;
        u.seq++;
        unit_read<CLUSTER>(p, u, lane);
    }
    int skip = u.left == 1 ? 0 : by_cost ? (start - u.base) / unit_cost(u) : start - u.number;
    u.group += skip * p.lanes;
    u.left -= skip;
    u.base += skip * unit_cost(u);
    u.number += skip;
    return how;
}

/* This part's pages of a unit, and how the unit is divided. */
struct share {
    int32_t first, last; /* pages first .. last - 1 */
    int32_t index, n;    /* which of how many parts work on the unit; n 0: not this one */
};

static __device__ __forceinline__ share unit_share(const params &p, const plan &how, const unit &u,
                                                   int part)
{
    int size = how.size, line = u.base + OVERHEAD;

    if (how.kind == plan::WHOLE)
        return {0, u.pages, 0, 1};
    if (p.invariant) { /* whole units, by where they begin */
        bool mine = u.base / size == part;
        return {0, mine ? u.pages : 0, 0, mine};
    }
    if (how.kind == plan::EVEN) {
        int n = max(min(size, u.pages), 1), index = part % size;
        if (index >= n)
            return {0, 0, 0, 0};
        return {u.pages * index / n, u.pages * (index + 1) / n, index, n};
    }
    if (u.pages == 0) /* nothing to see: one part writes zeros */
        return {0, 0, 0, (line - 1) / size == part};
    int first = min(max(part * size - line, 0), u.pages);
    int last = min(max((part + 1) * size - line, 0), u.pages), first_part = line / size;
    return {first, last, part - first_part,
            first < last ? (line + u.pages - 1) / size - first_part + 1 : 0};
}

} // namespace mla_wide
