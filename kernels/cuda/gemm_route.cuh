/* Which tokens go to which expert, as a block of the product kernel keeps it in shared memory. */
#pragma once

#include "kernels/cuda/moe.h"
#include "kernels/cuda/ptx.cuh"

struct tile_routing {
    const int32_t *ids;    /* (m, top_k); ROUTED */
    const int32_t *ranges; /* (experts + 1) where an expert's rows begin; SORTED */
    int32_t experts, top_k, shared;
    int32_t known;          /* ids or ranges were written before the kernel ahead of this one */
    int32_t rows_are_pairs; /* ROUTED: x has a row for each pair rather than for each token */
};

enum { TABLE_WARPS = 8 };

struct tile_tables {
    int32_t tile_start[MOE_MAX_EXPERTS + 1]; /* tiles of the experts before; last: of all */
    int32_t first[MOE_MAX_EXPERTS + 1];      /* places of the experts before; last: of all */
    uint16_t list[MOE_SMALL_PAIRS];          /* ROUTED: pairs sorted by expert */
    uint16_t base[TABLE_WARPS][MOE_MAX_EXPERTS];
};

/* The expert of tile t: the last with tile_start[e] <= t among those that have tiles. */
__device__ __forceinline__ int tables_expert(const tile_tables &tab, int experts, int t)
{
    int low = 0, high = experts;

    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (tab.tile_start[middle] <= t)
            low = middle;
        else
            high = middle;
    }
    return low;
}

__device__ __forceinline__ int load_routing(const int32_t *p)
{
    int v;

    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

/* tile_start and first from the counts in first[0 .. experts - 1]; one warp. */
__device__ __forceinline__ void scan_counts(tile_tables &tab, int experts, int row_tiles, int bn,
                                            int lane)
{
    int places = 0, tiles = 0;

    for (int e = 0; e < experts; e += 32) {
        int count = e + lane < experts ? tab.first[e + lane] : 0;
        int n = (count + bn - 1) / bn * row_tiles, sum = count, tile_sum = n;
        for (int d = 1; d < 32; d *= 2) {
            int a = __shfl_up_sync(~0u, sum, d), b = __shfl_up_sync(~0u, tile_sum, d);
            sum += lane >= d ? a : 0;
            tile_sum += lane >= d ? b : 0;
        }
        if (e + lane < experts) {
            tab.first[e + lane] = places + sum - count;
            tab.tile_start[e + lane] = tiles + tile_sum - n;
        }
        places += __shfl_sync(~0u, sum, 31);
        tiles += __shfl_sync(~0u, tile_sum, 31);
    }
    if (lane == 0) {
        tab.first[experts] = places;
        tab.tile_start[experts] = tiles;
    }
}

/* One pass over this warp's share of the pairs: with `list`, writes each to its place; else only
 * counts. base[e] runs along. Stable, so every block gets the same order. */
__device__ __forceinline__ void pass_pairs(tile_tables &tab, uint16_t *base, const tile_routing &r,
                                           int first, int end, int lane, bool list)
{
    int slots = r.top_k + r.shared;

    for (int p = first; p < end; p += 32) {
        int pair = p + lane, e = pair < end ? load_routing(r.ids + pair) : -1;
        unsigned same = __match_any_sync(~0u, e), before = same & ((1u << lane) - 1);
        int at = e >= 0 ? base[e] + __popc(before) : 0;
        __syncwarp();
        if (e >= 0 && list)
            tab.list[at] = (uint16_t)(pair / r.top_k * slots + pair % r.top_k);
        if (e >= 0 && !before)
            base[e] += (uint16_t)__popc(same);
        __syncwarp();
    }
}

/* The tables of at most 32 pairs, of which no expert has more than fill a tile: a thread waits for
 * nothing but the ids. */
template <int N>
__device__ __forceinline__ void tables_of_few(tile_tables &tab, const tile_routing &r, int pairs,
                                              int row_tiles)
{
    int tid = threadIdx.x, lane = tid % 32, slots = r.top_k + r.shared, place = 0;
    int mine = lane < pairs ? load_routing(r.ids + lane) : -1;
    unsigned same = __match_any_sync(~0u, mine);
    unsigned firsts = __ballot_sync(~0u, mine >= 0 && !(same & ((1u << lane) - 1)));

    for (int base = 0; base <= r.experts; base += N) {
        int e = base + tid, places = 0, tiles = 0;
        for (int p = 0; p < pairs; p++) {
            int id = __shfl_sync(~0u, mine, p);
            places += id >= 0 && id < e;
            tiles += (firsts >> p & 1) && id < e;
            place += base == 0 && id >= 0 && (id < mine || (id == mine && p < lane));
        }
        if (e <= r.experts) {
            tab.first[e] = places;
            tab.tile_start[e] = tiles * row_tiles;
        }
    }
    if (tid < 32 && mine >= 0)
        tab.list[place] = (uint16_t)(lane / r.top_k * slots + lane % r.top_k);
}

/* Sorts the batch's pairs by expert: all N math threads. m * top_k <= MOE_SMALL_PAIRS. */
template <int N>
__device__ __forceinline__ void tables_from_ids(tile_tables &tab, const tile_routing &r, int m,
                                                int row_tiles, int bn)
{
    enum { WARPS = N / 32 };
    static_assert((int)WARPS <= (int)TABLE_WARPS, "a counter row for each warp");
    int tid = threadIdx.x, warp = tid / 32, pairs = m * r.top_k;
    int share = (pairs + N - 1) / N * 32;
    int first = min(warp * share, pairs), end = min(first + share, pairs);

    if (pairs <= 32 && m <= bn) {
        tables_of_few<N>(tab, r, pairs, row_tiles);
        return;
    }
    for (int i = tid; i < WARPS * MOE_MAX_EXPERTS; i += N)
        tab.base[i / MOE_MAX_EXPERTS][i % MOE_MAX_EXPERTS] = 0;
    named_sync(8, N);
    pass_pairs(tab, tab.base[warp], r, first, end, tid % 32, false);
    named_sync(8, N);
    for (int e = tid; e < r.experts; e += N) {
        int sum = 0;
        for (int w = 0; w < WARPS; w++) {
            int count = tab.base[w][e];
            tab.base[w][e] = (uint16_t)sum;
            sum += count;
        }
        tab.first[e] = sum;
    }
    named_sync(8, N);
    if (warp == 0)
        scan_counts(tab, r.experts, row_tiles, bn, tid);
    named_sync(8, N);
    for (int i = tid; i < WARPS * r.experts; i += N)
        tab.base[i / r.experts][i % r.experts] += (uint16_t)tab.first[i % r.experts];
    named_sync(8, N);
    pass_pairs(tab, tab.base[warp], r, first, end, tid % 32, true);
}

/* The same tables, but for the list, of rows that are sorted in memory. */
template <int N>
__device__ __forceinline__ void tables_from_ranges(tile_tables &tab, const tile_routing &r,
                                                   int row_tiles, int bn)
{
    int tid = threadIdx.x;

    for (int e = tid; e < r.experts; e += N)
        tab.first[e] = load_routing(r.ranges + e + 1) - load_routing(r.ranges + e);
    named_sync(8, N);
    if (tid >= 32)
        return;
    scan_counts(tab, r.experts, row_tiles, bn, tid);
    __syncwarp();
    for (int e = tid, base = load_routing(r.ranges); e <= r.experts; e += 32)
        tab.first[e] += base;
}
