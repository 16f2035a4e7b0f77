/* What the parts of moe_experts share. */
#pragma once

#include "kernels/cuda/moe.h"

#include <cuda_runtime.h>

enum { MOE_SORT_PAIRS = 1024 }; /* pairs that a block sorts */

static inline bool moe_aligned(const void *p, int64_t stride)
{
    return p && (uintptr_t)p % 16 == 0 && stride % 8 == 0;
}

/* Whether arguments are as moe.h asks, where d and i are multiples of `multiple` and a call needs
 * workspace(m, d, i, experts, top_k, shared) bytes. */
static inline bool moe_valid(const struct moe_args *a, int multiple,
                             size_t (*workspace)(int32_t, int32_t, int32_t, int32_t, int32_t,
                                                 int32_t))
{
    if (a->m < 0 || a->d < multiple || a->d % multiple || a->i < multiple || a->i % multiple ||
        a->experts < 1 || a->experts > MOE_MAX_EXPERTS || a->top_k < 1 || a->top_k > a->experts ||
        a->shared < 0 || a->top_k + a->shared > MOE_MAX_SLOTS)
        return false;
    if (a->shared && (!moe_aligned(a->shared_gate, 0) || !moe_aligned(a->shared_up, 0) ||
                      !moe_aligned(a->shared_down, 0)))
        return false;
    return moe_aligned(a->x, a->x_stride) && moe_aligned(a->gate, 0) && moe_aligned(a->up, 0) &&
           moe_aligned(a->down, 0) && moe_aligned(a->out, a->out_stride) && a->ids && a->weights &&
           (!a->residual || moe_aligned(a->residual, 0)) && (uintptr_t)a->workspace % 256 == 0 &&
           a->workspace_bytes >= workspace(a->m, a->d, a->i, a->experts, a->top_k, a->shared);
}

/* The arguments for `rows` rows from `first` on, or for as many as there are. */
static inline struct moe_args moe_rows(const struct moe_args *a, int first, int rows)
{
    struct moe_args part = *a;

    part.m = a->m - first < rows ? a->m - first : rows;
    part.x = (const char *)a->x + 2 * a->x_stride * first;
    part.ids = a->ids + (int64_t)first * a->top_k;
    part.weights = a->weights + (int64_t)first * a->top_k;
    part.out = (char *)a->out + 2 * a->out_stride * first;
    if (a->residual)
        part.residual = (const char *)a->residual + 2 * a->out_stride * first;
    return part;
}

/* Places in the workspace. Few rows need hidden and y alone, with a row for each pair, shared
 * experts' pairs among them. Many rows have their shared experts computed as one wide MLP. */
struct moe_layout {
    void *y;           /* bf16 (m * slots, d): experts' outputs; many rows: x in that order first */
    void *hidden;      /* bf16 (m * slots, i) */
    void *wide_hidden; /* bf16 (m, shared * i) */
    int32_t *counts;   /* (experts) */
    int32_t *ranges;   /* (experts + 1) */
    int32_t *bases;    /* (blocks of the sort, experts) */
    int32_t *ranks;    /* (pairs) a pair's place among those of its block and expert */
    int32_t *places;   /* (pairs) its place in the whole order */
    size_t bytes;
};

static inline struct moe_layout moe_layout(void *workspace, int64_t m, int64_t d, int64_t i,
                                           int64_t experts, int64_t top_k, int64_t shared)
{
    int64_t slots = top_k + shared, blocks = (m * top_k + MOE_SORT_PAIRS - 1) / MOE_SORT_PAIRS;
    struct moe_layout at = {};
    char *p = (char *)workspace;

    auto take = [&](int64_t bytes) {
        void *place = p + at.bytes;
        at.bytes += (size_t)(bytes + 255) / 256 * 256;
        return place;
    };
    at.y = take(m * slots * d * 2);
    at.hidden = take(m * slots * i * 2);
    at.wide_hidden = take(m * shared * i * 2);
    at.counts = (int32_t *)take(experts * 4);
    at.ranges = (int32_t *)take((experts + 1) * 4);
    at.bases = (int32_t *)take(blocks * experts * 4);
    at.ranks = (int32_t *)take(m * top_k * 4);
    at.places = (int32_t *)take(m * top_k * 4);
    return at;
}

/* out = sums of rows of y. places NULL: y is (m, top_k + shared, d). Else the row of a pair is its
 * place, and after all pairs' come m rows of the shared experts together, if `shared`. */
int moe_combine(const struct moe_args *a, const void *y, const int32_t *places, int shared,
                cudaStream_t stream);

/* Sorts pairs by expert: counts, ranges, bases and ranks. The place of a pair with an expert is
 * then ranges[expert] + bases[pair / MOE_SORT_PAIRS][expert] + ranks[pair]. */
int moe_sort(const struct moe_args *a, const struct moe_layout *at, cudaStream_t stream);

/* The products of many rows over the sorted pairs, where the experts' weights are not bf16: hidden
 * = silu(gate y) * (up y), y = down hidden. */
struct moe_products {
    const void *of;
    int (*gate_up)(const void *of, const struct moe_layout *at, cudaStream_t stream);
    int (*down)(const void *of, const struct moe_layout *at, cudaStream_t stream);
};

/* moe_experts for many rows, with these products. */
int moe_sorted_with(const struct moe_args *a, const struct moe_layout *at,
                    const struct moe_products *products, cudaStream_t stream);
int moe_sorted(const struct moe_args *a, const struct moe_layout *at, cudaStream_t stream);

/* The parameters of one such product by the tiles of gemm_wide.cuh: rows (pairs, k); p->part[0] and
 * swiglu are set, the weights' map is the caller's. Not 0: they can't be. */
struct tile_params;
int moe_sorted_params(struct tile_params *p, const struct moe_args *a, const struct moe_layout *at,
                      const void *rows, int k);
