/* Which part of the work is whose, in the decode kernel for few query rows.
 *
 * An item is a row tile (up to N query rows of one sequence) against the sequence's cache. Items
 * stand on a line, each as long as its cache in units (at least 1): pages, or half pages when
 * there are fewer pages than blocks. A worker, one cluster of blocks, takes an equal stretch of the
 * line: the end of an item, whole items, the beginning of another. What it has of one item is a
 * piece; the blocks of the cluster share it evenly. When all items are equally long, the number of
 * workers is chosen so that the cuts fall on the ends of items. In batch-invariant mode an item is
 * always cut at the same places, and a worker takes the pieces that begin in its stretch.
 *
 * Lengths are read on the device, so that they may change between replays of a graph; each warp
 * that needs the plan works it out for itself. */
#pragma once

#include "kernels/cuda/mla_small.h"

namespace mla_small
{

struct piece {
    int32_t seq;
    int32_t q_len, kv_len;
    int32_t row0;       /* first row of the tile within the sequence: query token * heads + head */
    int32_t rows;       /* in the tile */
    int64_t out_row;    /* the tile's first row in q, out and lse */
    int32_t begin, end; /* this block's tokens */
    int32_t tiles;      /* stages of the ring that every block of the cluster uses for them */
    bool scratch;       /* one more stage, the same one in each block, is room for merging */
    int32_t parts;      /* pieces of the item */
    int32_t part;       /* 0 ..: which one this is */
    int32_t slot0;      /* where the partial results of part 0 and part 1 .. stand */
    int32_t slot1;
    int32_t slot_step;
    int32_t counter; /* of the item's arrivals */
};

static __device__ __forceinline__ int slot_of(const piece &p, int part)
{
    return part == 0 ? p.slot0 : p.slot1 + (part - 1) * p.slot_step;
}

/* A sequence as the line sees it. */
struct extent {
    int32_t q_len, kv_len, tiles, units;
};

/* `shift`: log2 of a unit's tokens. */
template <int N>
static __device__ __forceinline__ extent read_extent(const params &p, int seq, int shift)
{
    extent e;

    e.q_len = p.seqs.q_lens ? __ldcg(p.seqs.q_lens + seq) : p.seqs.max_q_len;
    e.kv_len = __ldcg(p.seqs.kv_lens + seq);
    e.tiles = (e.q_len * p.heads + N - 1) / N;
    e.units = max((e.kv_len + (1 << shift) - 1) >> shift, 1);
    return e;
}

/* n / d for n >= 0, d > 0, without the long division where it isn't needed. */
static __device__ __forceinline__ int quotient(int n, int d)
{
    if (n >= 1 << 22)
        return n / d;
    int q = (int)__fdividef((float)n, (float)d); /* off by 1 at most */
    q += n - q * d >= d;
    return q - (n < q * d);
}

enum { KEPT = 4 /* lengths that each lane remembers: of 128 sequences */ };

/* Where a sequence's block table begins. */
static __device__ __forceinline__ int64_t table_of(const params &p, int seq)
{
    return p.seqs.table_starts ? __ldcg(p.seqs.table_starts + seq)
                               : (int64_t)seq * p.seqs.table_stride;
}

template <int N> struct plan {
    int32_t worker, workers, rank, cluster;
    int32_t unit;          /* log2 of a unit's tokens */
    int32_t total, lo, hi; /* the line, and this worker's stretch of it */
    int32_t seq, base;     /* the sequence at hand and where it begins on the line */
    int32_t item0;         /* the sequence's first item */
    int32_t tile, cut;     /* the next piece: row tile; piece (batch-invariant mode) */
    int32_t q_start;       /* of the last piece's sequence */
    extent e;
    int32_t seen_kv[KEPT], seen_q[KEPT]; /* lengths of sequences lane + 32 k, as init() read them */

    __device__ void init(const params &p, int worker_, int rank_, int cluster_);
    __device__ bool next(const params &p, piece &out);
    __device__ bool holds(const params &p, const piece &first, bool any, int64_t table) const;

  private:
    __device__ void choose_workers(const params &p, int pages, int items, bool alike);
    __device__ void find_start(const params &p);
    __device__ void find_alike(const params &p, int len, int first_len);
    __device__ bool next_free(const params &p, int start, piece &out, int &begin, int &end);
    __device__ bool next_fixed(int start, piece &out, int &begin, int &end);

    static __device__ __forceinline__ int scaled(int a, int b, int c)
    {
        return a < 1 << 14 ? quotient(a * b, c) : (int)((int64_t)a * b / c);
    }

    /* Where worker w's stretch begins. */
    __device__ int bound(int w) const
    {
        return scaled(total, w, workers);
    }

    /* Whose stretch a place on the line is in. */
    __device__ int owner(int at) const
    {
        int w = scaled(at, workers, total);

        return bound(w + 1) <= at ? w + 1 : w;
    }
};

template <int N>
__device__ void plan<N>::choose_workers(const params &p, int pages, int items, bool alike)
{
    int least_pages = cluster * (p.least_pages);
    workers = max(min(p.workers, max(items, quotient(pages, least_pages))), 1);
    if (!alike || items == 0)
        return;
    int rounds = quotient(items + workers - 1, workers), even = 0;
    if (rounds == 1)
        even = quotient(workers, items) * items;
    else if (quotient(items, rounds) * rounds == items)
        even = quotient(items, rounds);
    if (4 * even >= 3 * workers)
        workers = even;
}

/* By the 32 lanes of a warp together, as is next(). */
template <int N>
__device__ void plan<N>::init(const params &p, int worker_, int rank_, int cluster_)
{
    int lane = threadIdx.x % 32, items = 0, halves = 0, least = INT32_MAX, most = 0;
    int first_len = 0; /* of this lane's first sequence */

    worker = worker_, rank = rank_, cluster = cluster_;
    unit = TILE_SHIFT;
    total = 0;
    auto count = [&](const extent &x) {
        total += x.tiles * x.units;
        halves += x.tiles * max((x.kv_len + UNIT - 1) / UNIT, 1);
        items += x.tiles;
        least = min(least, x.tiles > 0 ? x.kv_len : INT32_MAX);
        most = max(most, x.tiles > 0 ? x.kv_len : 0);
    };
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        seen_kv[k] = seen_q[k] = 0;
        if (lane + 32 * k >= p.seqs.n_seqs)
            continue;
        extent x = read_extent<N>(p, lane + 32 * k, TILE_SHIFT);
        seen_kv[k] = x.kv_len, seen_q[k] = x.q_len;
        count(x);
    }
#pragma unroll 4
    for (int i = lane + 32 * KEPT; i < p.seqs.n_seqs; i += 32)
        count(read_extent<N>(p, i, TILE_SHIFT));
    first_len = seen_kv[0];
    total = __reduce_add_sync(~0u, total);
    items = __reduce_add_sync(~0u, items);
    least = __reduce_min_sync(~0u, least);
    most = __reduce_max_sync(~0u, most);
    int pages = total;
    if (pages < p.workers * cluster && !p.invariant) {
        unit = TILE_SHIFT - 1;
        total = __reduce_add_sync(~0u, halves);
    }
    bool alike = (least - 1) >> unit == (most - 1) >> unit;
    choose_workers(p, pages, items, alike);
    lo = hi = 0;
    if (worker < workers)
        lo = bound(worker), hi = bound(worker + 1);
    if (lo < hi && alike && !p.seqs.q_lens)
        find_alike(p, most, first_len);
    else if (lo < hi)
        find_start(p);
}

/* The sequence that holds place `lo` when all have the same part of the line. */
template <int N> __device__ void plan<N>::find_alike(const params &p, int len, int first_len)
{
    e.q_len = p.seqs.max_q_len;
    e.tiles = (e.q_len * p.heads + N - 1) / N;
    e.units = max((len + (1 << unit) - 1) >> unit, 1);
    seq = max(min(quotient(lo, e.tiles * e.units), p.seqs.n_seqs - 1), 0);
    base = seq * e.tiles * e.units;
    item0 = seq * e.tiles;
    tile = e.tiles == 1 ? 0 : quotient(lo - base, e.units);
    cut = 0;
    if (p.seqs.n_seqs <= 32)
        e.kv_len = __shfl_sync(~0u, first_len, seq % 32);
    else
        e.kv_len = __ldcg(p.seqs.kv_lens + seq);
}

/* The sequence that holds place `lo`. */
template <int N> __device__ void plan<N>::find_start(const params &p)
{
    int lane = threadIdx.x % 32;

    seq = base = item0 = 0;
    cut = 0;
    for (int first = 0; first < p.seqs.n_seqs; first += 32) {
        extent x = {};
        if (first + lane < p.seqs.n_seqs)
            x = read_extent<N>(p, first + lane, unit);
        int span = x.tiles * x.units, end = span, items = x.tiles;
        int spans = __reduce_add_sync(~0u, span);
        if (base + spans <= lo) {
            base += spans;
            item0 += __reduce_add_sync(~0u, items);
            continue;
        }
        for (int step = 1; step < 32; step *= 2) {
            int a = __shfl_up_sync(~0u, end, step), b = __shfl_up_sync(~0u, items, step);
            if (lane >= step)
                end += a, items += b;
        }
        int at = max(__ffs(__ballot_sync(~0u, base + end > lo)) - 1, 0);
        base += __shfl_sync(~0u, end - span, at);
        item0 += __shfl_sync(~0u, items - x.tiles, at);
        seq = first + at;
        break;
    }
    e = read_extent<N>(p, seq, unit);
    tile = quotient(lo - base, e.units);
}

/* The part of the item at `start` that is in this worker's stretch. */
template <int N>
__device__ bool plan<N>::next_free(const params &p, int start, piece &out, int &begin, int &end)
{
    int first = owner(start), last = owner(start + e.units - 1);

    (void)p;
    begin = max(lo - start, 0);
    end = min(hi - start, e.units);
    out.parts = last - first + 1;
    out.part = worker - first;
    out.slot0 = 2 * first + 1;
    out.slot1 = 2 * (first + 1);
    out.slot_step = 2;
    out.counter = first; /* no other item that begins there goes on to the next worker */
    tile++;
    return true;
}

/* The next of the item's fixed pieces; false when it begins outside this worker's stretch. */
template <int N> __device__ bool plan<N>::next_fixed(int start, piece &out, int &begin, int &end)
{
    int pieces = min((e.units + PIECE_PAGES - 1) / PIECE_PAGES, (int)MAX_PIECES);

    begin = quotient(cut * e.units, pieces); /* at most 16 * 16384 */
    end = quotient((cut + 1) * e.units, pieces);
    out.parts = pieces;
    out.part = cut;
    out.slot0 = (item0 + tile) * MAX_PIECES;
    out.slot1 = out.slot0 + 1;
    out.slot_step = 1;
    out.counter = item0 + tile;
    bool mine = start + begin >= lo && start + begin < hi;
    if (++cut == pieces)
        cut = 0, tile++;
    return mine;
}

/* This block's part of the worker's next piece; false when there is none. Every block of a cluster
 * gets the same pieces, some perhaps with no units. */
template <int N> __device__ bool plan<N>::next(const params &p, piece &out)
{
    for (;;) {
        if (lo >= hi)
            return false;
        while (tile >= e.tiles) {
            base += e.tiles * e.units;
            item0 += e.tiles;
            tile = 0;
            if (base >= hi || seq + 1 >= p.seqs.n_seqs)
                return false;
            e = read_extent<N>(p, ++seq, unit);
        }
        int start = base + tile * e.units, begin, end;
        if (start >= hi)
            return false;
        out.seq = seq;
        out.q_len = e.q_len;
        out.kv_len = e.kv_len;
        out.row0 = tile * N;
        out.rows = min(e.q_len * p.heads - out.row0, N);
        bool mine =
            p.invariant ? next_fixed(start, out, begin, end) : next_free(p, start, out, begin, end);
        if (!mine)
            continue;
        q_start = p.seqs.q_starts ? __ldcg(p.seqs.q_starts + seq) : seq * p.seqs.max_q_len;
        out.out_row = (int64_t)q_start * p.heads + out.row0;
        if (e.kv_len <= 0)
            begin = end = 0;
        int shift = __ffs(cluster) - 1, share = (end - begin + cluster - 1) >> shift;
        out.begin = begin + ((end - begin) * rank >> shift) << unit;
        out.end = min(begin + ((end - begin) * (rank + 1) >> shift) << unit, e.kv_len);
        out.tiles = ((share << unit) + TILE - 1) / TILE;
        out.scratch = cluster > 1 || out.parts > 1;
        return true;
    }
}

/* Whether all that the plan and its first piece rest on still stands in memory: for a plan that was
 * made while the kernel before this one may still have been writing it. */
template <int N>
__device__ bool plan<N>::holds(const params &p, const piece &first, bool any, int64_t table) const
{
    int lane = threadIdx.x % 32;
    bool same = true;

#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        int i = lane + 32 * k;
        if (i >= p.seqs.n_seqs)
            continue;
        same &= __ldcg(p.seqs.kv_lens + i) == seen_kv[k];
        if (p.seqs.q_lens)
            same &= __ldcg(p.seqs.q_lens + i) == seen_q[k];
    }
    if (any && p.seqs.q_starts)
        same &= __ldcg(p.seqs.q_starts + first.seq) == q_start;
    if (any)
        same &= table_of(p, first.seq) == table;
    return p.seqs.n_seqs <= 32 * KEPT && __all_sync(~0u, same);
}

} // namespace mla_small
