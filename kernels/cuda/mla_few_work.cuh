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
 * Lengths are read on the device, so that they may change between replays of a graph. One warp of
 * a block plans: hundreds of warps that read the same few words at once would wait for each other.
 * What it reads of up to 32 sequences comes in one round trip to memory. It plans while the kernels
 * before this one end; unless its input is settled, that is from what they may still write, and it
 * plans anew when holds() says no. */
#pragma once

#include "kernels/cuda/mla_few.h"

namespace mla_few
{

struct piece {
    int32_t table; /* the sequence's first entry in the block tables */
    int32_t q_len, kv_len;
    int32_t row0;       /* first row of the tile within the sequence: query token * heads + head */
    int32_t rows;       /* in the tile */
    int64_t out_row;    /* the tile's first row in q, out and lse */
    int32_t begin, end; /* this block's tokens */
    int32_t tiles;      /* stages of the ring that every block of the cluster uses for them */
    bool scratch;       /* one more stage, the same one in each block, is room for merging */
    bool pair;          /* two tiles that are taken together, see attend_pair() */
    int32_t parts;      /* pieces of the item */
    int32_t part;       /* 0 ..: which one this is */
    int32_t slot0;      /* where the partial results of part 0 and part 1 .. stand */
    int32_t slot1;
    int32_t slot_step;
    int32_t counter; /* of the item's arrivals */
};

/* threadIdx.x for code that runs once a piece: what follows from it is not kept meanwhile, in
 * registers that the products need. */
static __device__ __forceinline__ int thread()
{
    int t;

    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}

static __device__ __forceinline__ int slot_of(const piece &p, int part)
{
    return part == 0 ? p.slot0 : p.slot1 + (part - 1) * p.slot_step;
}

/* A sequence as the line sees it. */
struct extent {
    int32_t q_len, kv_len, tiles, units;
};

template <int N> static __device__ __forceinline__ int tiles_of(const params &p, int q_len)
{
    return (q_len * p.heads + N - 1) / N;
}

template <int N>
static __device__ __forceinline__ extent make_extent(const params &p, int q_len, int kv_len,
                                                     int shift)
{
    extent e;

    e.q_len = q_len;
    e.kv_len = kv_len;
    e.tiles = tiles_of<N>(p, q_len);
    e.units = max((kv_len + (1 << shift) - 1) >> shift, 1);
    return e;
}

/* n / d for n of 0 .. 2^30, 0 < d < 2^24, too large for quotient(). */
static __device__ __noinline__ int quotient_long(int n, int d)
{
    float inverse = __fdividef(1, (float)d);
    int q = (int)((float)n * inverse); /* off by q / 2^21 and 1 at most */

    q += (int)((float)(n - q * d) * inverse); /* off by 1 at most */
    q += n - q * d >= d;
    return q - (n < q * d);
}

/* n / d, n >= 0, d > 0. Divisions are most of a plan's time, so small numbers become floats and
 * come back by way of 2^23's mantissa, in a third of a conversion's time. (n + 1/2) / d is further
 * from the next integer than its error as long as n < 2^21. */
static __device__ __forceinline__ int quotient(int n, int d)
{
    constexpr float TWO_23 = 8388608;
    float inverse;

    if (__builtin_expect((uint32_t)(n | d) >= 1 << 21, 0))
        return quotient_long(n, d);
    float above = __int_as_float(n | __float_as_int(TWO_23)) - (TWO_23 - 0.5f);
    float below = __int_as_float(d | __float_as_int(TWO_23)) - TWO_23;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(below));
    return __float_as_int(__fadd_rz(above * inverse, TWO_23)) & ((1 << 23) - 1);
}

/* a * b / c of a line too long for quotient(). */
static __device__ __noinline__ int scaled_long(int a, int b, int c)
{
    return (int)((int64_t)a * b / c);
}

enum {
    KEPT = 8,        /* sequences of a lane whose lengths are remembered for holds() */
    MERGE_COST = 8,  /* see plan::cost */
    UNEVEN_COST = 6, /* the same */
};

template <int N> struct plan {
    int32_t worker, workers, rank, cluster;
    int32_t unit;          /* log2 of a unit's tokens */
    int32_t total, lo, hi; /* the line, and this worker's stretch of it */
    int32_t parts;     /* all items are alike, and each has so many workers; 0: it is otherwise */
    int32_t seq, base; /* the sequence at hand and where it begins on the line */
    int32_t item0;     /* the sequence's first item */
    int32_t tile, cut; /* the next piece: row tile; piece (batch-invariant mode) */
    bool stream;       /* a call of so many pages that they pass through L2 */
    extent e;

    /* Sequences first .. first + 31, one to each lane. */
    int32_t first, q_len, kv_len, q_start, table;
    int32_t seen[KEPT]; /* when a lane counts several: kv_len + (q_len << 25) */

    __device__ void init(const params &p, int worker_, int rank_, int cluster_);
    __device__ bool next(const params &p, piece &out);
    __device__ bool holds(const params &p) const;

  private:
    __device__ void load(const params &p, int from);
    __device__ int choose_workers(const params &p, int pages, int items, bool alike);
    __device__ int cost(const params &p, int n, int pages, int parts, bool even) const;
    __device__ void find_start(const params &p, int per_lane, int tiles, int span);
    __device__ void find_start_alike(const params &p, int whole, int tiles, int units);
    __device__ bool next_free(const params &p, int start, piece &out, int &begin, int &end);
    __device__ bool next_fixed(int start, piece &out, int &begin, int &end);

    /* n / cluster, 0 <= n < 2^27 */
    static __device__ __forceinline__ int by_cluster(const params &p, int n)
    {
        return (int)__umulhi(2 * (uint32_t)n, p.per_block);
    }

    static __device__ __forceinline__ int scaled(int a, int b, int c)
    {
        return a < 1 << 22 ? quotient(a * b, c) : scaled_long(a, b, c);
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

    /* The sequence at hand, from the lane that has it. */
    __device__ void take(const params &p)
    {
        int lane = seq - first;

        e = make_extent<N>(p, __shfl_sync(~0u, q_len, lane), __shfl_sync(~0u, kv_len, lane), unit);
    }
};

/* In this place, so that many reads go together. */
static __device__ __forceinline__ int32_t read_here(const int32_t *at)
{
    int32_t v;

    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(at));
    return v;
}

/* An array's value, or, so that there is no branch, one of kv_lens where there is no array. */
static __device__ __forceinline__ int32_t read_array(const params &p, const int32_t *array, int at)
{
    return read_here((array ? array : p.seqs.kv_lens) + at);
}

static __device__ __forceinline__ void read_lengths(const params &p, int i, int &q_len, int &kv_len)
{
    int at = min(i, p.seqs.n_seqs - 1);

    q_len = read_array(p, p.seqs.q_lens, at);
    kv_len = read_here(p.seqs.kv_lens + at);
}

/* Not outside of what they can be: they may be out of date, or not there yet; 0 for a sequence that
 * there isn't. */
static __device__ __forceinline__ void clamp_lengths(const params &p, int i, int &q_len,
                                                     int &kv_len)
{
    int there = i < p.seqs.n_seqs ? ~0 : 0;

    q_len = (p.seqs.q_lens ? max(min(q_len, p.seqs.max_q_len), 0) : p.seqs.max_q_len) & there;
    kv_len = max(min(kv_len, 1 << 24), 0) & there;
}

template <int N> __device__ void plan<N>::load(const params &p, int from)
{
    int i = from + (int)(thread() % 32), at = min(i, p.seqs.n_seqs - 1);

    first = from;
    read_lengths(p, i, q_len, kv_len);
    q_start = read_array(p, p.seqs.q_starts, at);
    table = read_array(p, p.seqs.table_starts, at);
    clamp_lengths(p, i, q_len, kv_len);
    q_start = p.seqs.q_starts ? q_start : i * p.seqs.max_q_len;
    table = p.seqs.table_starts ? table : i * p.seqs.table_stride;
}

/* What n workers would take, in quarters of the time that a page takes a block: the pages of a
 * block, or the memory's time for all of them; merging of parts; a second piece for some. */
template <int N>
__device__ int plan<N>::cost(const params &p, int n, int pages, int parts, bool even) const
{
    int block = quotient(4 * pages + n * cluster - 1, n * cluster);

    return max(block, pages >> p.page_cost) + (parts > 1 ? MERGE_COST : 0) +
           (even ? 0 : UNEVEN_COST);
}

/* As many workers as there are, unless fewer that get equal shares of equal items are as quick.
 * Every block waits for this: divisions are left out where one sees what they would say. Returns
 * how many whole items each worker has; 0: it is otherwise. */
template <int N>
__device__ int plan<N>::choose_workers(const params &p, int pages, int items, bool alike)
{
    workers = max(min(p.workers, max(items, by_cluster(p, pages))), 1);
    parts = 0;
    if (!alike || items == 0)
        return 0;
    if (items <= workers) {
        int n = quotient(workers, items), blocks = items * cluster;
        if (n > 1) { /* no more than it takes for a block to have as few whole pages */
            int most = quotient(pages + blocks * n - 1, blocks * n);
            n = quotient(pages + blocks * most - 1, blocks * most);
        }
        int even = n * items, least = (pages >> p.page_cost) + UNEVEN_COST + MERGE_COST;
        /* Others cost `least` or more. */
        if (even == workers ||
            4 * (int64_t)pages <= (int64_t)(least - (n > 1 ? MERGE_COST : 0)) * (even * cluster) ||
            cost(p, even, pages, n, true) <= cost(p, workers, pages, 2, false))
            parts = n, workers = even;
        return parts == 1;
    } else {
        int rounds = quotient(items + workers - 1, workers), even = quotient(items, rounds);
        if (even * rounds == items && 4 * even >= 3 * workers)
            parts = 1, workers = even;
        return parts * rounds;
    }
}

/* By the 32 lanes of a warp together, as is next(). A lane counts consecutive sequences. */
template <int N>
__device__ void plan<N>::init(const params &p, int worker_, int rank_, int cluster_)
{
    int lane = thread() % 32, n = p.seqs.n_seqs, per_lane = (n + 31) / 32;
    int tiles = 0, pages = 0, halves = 0, least = INT32_MAX, most = 0;

    worker = worker_, rank = rank_, cluster = cluster_;
    unit = TILE_SHIFT;
    first = -1;
    auto count = [&](int queries, int tokens) {
        extent x = make_extent<N>(p, queries, tokens, TILE_SHIFT);
        tiles += x.tiles;
        pages += x.tiles * x.units;
        halves += x.tiles * max((x.kv_len + UNIT - 1) / UNIT, 1);
        least = min(least, x.tiles > 0 ? x.kv_len : INT32_MAX);
        most = max(most, x.tiles > 0 ? x.kv_len : 0);
    };
    if (per_lane == 1) {
        load(p, 0);
        count(q_len, kv_len);
    } else {
        /* Sequences alike would give this worker these: read now, what find_start() asks for. */
        int even = n <= p.workers ? quotient(p.workers, n) * n
                                  : quotient(n, quotient(n + p.workers - 1, p.workers));
        int likely = quotient(max(even - 1 - worker, 0) * n, even);
        load(p, quotient(likely, per_lane) * per_lane);
        int queries[KEPT], tokens[KEPT];
#pragma unroll
        for (int k = 0; k < KEPT; k++)
            read_lengths(p, k < per_lane ? lane * per_lane + k : n, queries[k], tokens[k]);
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            clamp_lengths(p, k < per_lane ? lane * per_lane + k : n, queries[k], tokens[k]);
            count(queries[k], tokens[k]);
            seen[k] = tokens[k] + (queries[k] << 25);
        }
        for (int k = KEPT; k < per_lane && lane * per_lane + k < n; k++) {
            int more_queries, more_tokens;
            read_lengths(p, lane * per_lane + k, more_queries, more_tokens);
            clamp_lengths(p, lane * per_lane + k, more_queries, more_tokens);
            count(more_queries, more_tokens);
        }
    }
    int all_pages = total = __reduce_add_sync(~0u, pages);
    int items = __reduce_add_sync(~0u, tiles), span = pages;
    least = __reduce_min_sync(~0u, least);
    most = __reduce_max_sync(~0u, most);
    if (all_pages < p.workers * cluster && !p.invariant) {
        unit = TILE_SHIFT - 1;
        total = __reduce_add_sync(~0u, halves);
        span = halves;
    }
    stream = all_pages <= p.stream_pages;
    int units = max((most + (1 << unit) - 1) >> unit, 1),
        all_tiles = tiles_of<N>(p, p.seqs.max_q_len);
    bool alike = (least - 1) >> unit == (most - 1) >> unit;
    int whole = choose_workers(p, all_pages, items, alike);
    lo = hi = 0;
    worker = workers - 1 - worker; /* who waits for others waits for blocks that came before it */
    if (worker >= 0 && whole > 0)
        lo = whole * units * worker, hi = lo + whole * units;
    else if (worker >= 0)
        lo = bound(worker), hi = bound(worker + 1);
    if (lo >= hi)
        return;
    base = item0 = cut = 0;
    if (alike && items == n * all_tiles) /* none has fewer */
        find_start_alike(p, whole, all_tiles, units);
    else
        find_start(p, per_lane, tiles, span);
}

/* find_start() when all sequences have so many tiles of so many units. */
template <int N>
__device__ void plan<N>::find_start_alike(const params &p, int whole, int tiles, int units)
{
    int item = whole > 0 ? whole * worker : quotient(lo, units);

    seq = tiles == 1 ? item : quotient(item, tiles);
    if ((uint32_t)(seq - first) >= 32)
        load(p, seq);
    item0 = seq * tiles;
    base = item0 * units;
    tile = item - item0;
    take(p);
}

/* The sequence that holds place `lo`. `tiles` and `span`: of this lane's per_lane sequences. */
template <int N>
__device__ void plan<N>::find_start(const params &p, int per_lane, int tiles, int span)
{
    int lane = thread() % 32, from = 0;

    for (;;) {
        int end = span, items = tiles;
        for (int step = 1; step < 32; step *= 2) {
            int a = __shfl_up_sync(~0u, end, step), b = __shfl_up_sync(~0u, items, step);
            if (lane >= step)
                end += a, items += b;
        }
        uint32_t past = __ballot_sync(~0u, base + end > lo);
        if (past) {
            int at = __ffs(past) - 1;
            base += __shfl_sync(~0u, end - span, at);
            item0 += __shfl_sync(~0u, items - tiles, at);
            if (per_lane == 1) {
                seq = from + at;
                break;
            }
            from += at * per_lane;
            per_lane = 1;
        } else {
            base += __shfl_sync(~0u, end, 31);
            item0 += __shfl_sync(~0u, items, 31);
            from += 32;
            if (from >= p.seqs.n_seqs) { /* lengths changed meanwhile: this plan won't hold */
                seq = p.seqs.n_seqs - 1;
                load(p, seq);
                break;
            }
        }
        if (from != first)
            load(p, from);
        extent x = make_extent<N>(p, q_len, kv_len, unit);
        tiles = from + lane < p.seqs.n_seqs ? x.tiles : 0;
        span = tiles * x.units;
    }
    take(p);
    tile = quotient(lo - base, e.units);
}

/* The part of the item at `start` that is in this worker's stretch. */
template <int N>
__device__ bool plan<N>::next_free(const params &p, int start, piece &out, int &begin, int &end)
{
    int first = worker, last = worker, end_of = start + e.units;

    (void)p;
    if (parts > 0) {
        first = parts == 1 ? worker : (item0 + tile) * parts;
        last = first + parts - 1;
    } else {
        first = start >= lo ? worker : owner(start);
        last = end_of <= hi ? worker : owner(end_of - 1);
    }
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
            if (++seq - first >= 32)
                load(p, seq);
            take(p);
        }
        int start = base + tile * e.units, begin, end;
        if (start >= hi)
            return false;
        out.table = __shfl_sync(~0u, table, seq - first);
        out.q_len = e.q_len;
        out.kv_len = e.kv_len;
        out.row0 = tile * N;
        out.rows = min(e.q_len * p.heads - out.row0, N);
        bool mine =
            p.invariant ? next_fixed(start, out, begin, end) : next_free(p, start, out, begin, end);
        if (!mine)
            continue;
        out.out_row = (int64_t)__shfl_sync(~0u, q_start, seq - first) * p.heads + out.row0;
        if (e.kv_len <= 0)
            begin = end = 0;
        int share = by_cluster(p, end - begin + cluster - 1);
        out.begin = begin + by_cluster(p, (end - begin) * rank) << unit;
        out.end = min(begin + by_cluster(p, (end - begin) * (rank + 1)) << unit, e.kv_len);
        out.tiles = ((share << unit) + TILE - 1) / TILE;
        out.scratch = cluster > 1 || out.parts > 1;
        out.pair = false;
        return true;
    }
}

/* Whether all that the plan and its first piece rest on still stands in memory. */
template <int N> __device__ bool plan<N>::holds(const params &p) const
{
    int lane = thread() % 32, n = p.seqs.n_seqs, per_lane = (n + 31) / 32, i = first + lane;
    int queries, tokens;
    bool same = per_lane <= KEPT && p.seqs.max_q_len < 128;

    if (first >= 0 && i < n) {
        read_lengths(p, i, queries, tokens);
        clamp_lengths(p, i, queries, tokens);
        same &= queries == q_len & tokens == kv_len;
        if (p.seqs.q_starts)
            same &= __ldcg(p.seqs.q_starts + i) == q_start;
        if (p.seqs.table_starts)
            same &= __ldcg(p.seqs.table_starts + i) == table;
    }
    if (per_lane > 1) {
#pragma unroll
        for (int k = 0; k < KEPT; k++)
            if (k < per_lane && lane * per_lane + k < n) {
                read_lengths(p, lane * per_lane + k, queries, tokens);
                clamp_lengths(p, lane * per_lane + k, queries, tokens);
                same &= tokens + (queries << 25) == seen[k];
            }
    }
    return __all_sync(~0u, same);
}

} // namespace mla_few
