/* The decode kernel for few query rows: its parameters, and the instantiations that
 * mla_few.cu launches. mla_few.cuh says how the kernel is laid out. */
#pragma once

#include "kernels/cuda/mla_internal.h"

#include <cuda_bf16.h>

namespace mla_few
{

enum {
    MAX_CLUSTER = 16,
    MAX_SMS = 160,
    UNIT = 32, /* tokens: what the cache of a small call is cut in */
    TILE_SHIFT = 6,
    TILE = 64,        /* tokens a product takes at a time: a page, or two halves of pages */
    MAX_PIECES = 16,  /* of a sequence in batch-invariant mode */
    MAX_ITEMS = 4096, /* row tiles of a call in batch-invariant mode */
    PIECE_PAGES = 64, /* a sequence has one piece for each so many pages, up to MAX_PIECES */
};

struct params {
    CUtensorMap half;     /* bf16: (latent + rope, 64, pages), boxes of 64 x 32 */
    CUtensorMap page;     /* bf16: (64, 64, width / 64, pages), a page a box; unless `ragged` */
    int32_t stream_pages; /* of a call, up to which the cache is the first to leave L2 */
    int32_t ragged;       /* latent + rope is no multiple of 64 */
    int32_t settled, next_late; /* as mla.h has them */
    struct mla_seqs seqs;
    const uint8_t *pages;
    int64_t page_stride;
    const __nv_bfloat16 *q;
    __nv_bfloat16 *out;
    float *lse;
    int32_t heads;
    float scale_log2; /* softmax scale * log2(e) */
    int32_t causal;
    int32_t invariant;
    int32_t workers;    /* clusters of the grid */
    uint32_t per_block; /* 2^31 / blocks of a cluster, rounded up */
    int32_t page_cost;  /* see plan::cost */
    uint32_t *counters; /* batch-invariant mode: (MAX_ITEMS, MAX_CLUSTER) arrivals */
    float2 *stats;      /* (slots, MAX_CLUSTER, N) maximum and sum of a partial result's rows */
    float4 *partials;   /* (slots, N * latent / 4) in the order of the accumulators */
};

typedef void (*kernel_fn)(const params);

/* A kernel, its threads and bytes of shared memory. */
struct variant {
    kernel_fn kernel;
    int threads;
    size_t shared_bytes;
};

/* kernel NULL when there is none of these sizes. */
variant find_16_bf16(int latent_dim, int rope_dim);
variant find_lean(int latent_dim, int rope_dim); /* 16 rows, bf16: two blocks to a multiprocessor */
variant find_16_pairs(int latent_dim, int rope_dim); /* two pages at one go */
variant find_32_pairs(int latent_dim, int rope_dim);
variant find_16_fp8(int latent_dim, int rope_dim);
variant find_32_bf16(int latent_dim, int rope_dim);
variant find_32_fp8(int latent_dim, int rope_dim);

/* Of a block: as the call suits; a multiprocessor; half of one (see find_lean). */
enum form { AS_SUITS, FULL, LEAN };

/* mla_few_launch in this form and with clusters of 1, 2, 3, 4, 6, 8 or 16 blocks, for tests; 0: as
 * suits. */
int launch(const struct mla_decode_args *args, int cluster, enum form form, cudaStream_t stream);

} // namespace mla_few
