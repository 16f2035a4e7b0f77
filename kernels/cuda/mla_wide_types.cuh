/* What the parts of the 64-row decode kernel share: sizes, shared memory, parameters. See
 * mla_wide.cuh. */
#pragma once

#include "kernels/cuda/mla_internal.h"
#include "kernels/cuda/wgmma.cuh"

#include <math.h>

namespace mla_wide
{

enum {
    ROWS = 64,
    PAGE = MLA_PAGE_TOKENS,
    LATENT = 512,
    WIDTH = 576,
    BOX = 8192,         /* bytes of 64 rows x 64 bf16 */
    MATH_THREADS = 256, /* of the values' warpgroups; then come the scores' and the producer's */
    THREADS = 512,
    WORKS = 4,    /* units that the producer may be ahead */
    FEW = 3,      /* parts of a unit on a LINE that the first of them merges by itself */
    OVERHEAD = 3, /* of a unit, in pages: what starting and ending one costs */
};

static constexpr float LAZY = 8;

/* A unit's work as the producer hands it to the math warps. */
struct work {
    int32_t first, last; /* pages of this part */
    int32_t index, n;    /* which of how many parts of the unit; n 0: no more work */
    int32_t here;        /* a unit of few parts, which the first of them merges */
    int32_t kv_len, q_len;
    int32_t row;  /* first row of the cluster's tiles in its sequence's (q_len x heads) */
    int32_t rows; /* of the sequence */
    int64_t at;   /* the sequence's first row in q, out and lse */
};

/* Shared memory, 229,376 + 1,480 of 232,448 bytes (it begins on a multiple of 1,024):
 *   q       65,536   eight boxes; the ninth (rope) is in registers
 *   kv     147,456   two pages of nine boxes
 *   p       16,384   probabilities of the pages in the two slots
 *   then rows' maxima and sums, barriers, the units under way. */
struct shared {
    uint8_t q[8][BOX];
    uint8_t kv[2][9][BOX];
    uint8_t p[2][BOX];
    float m[2][ROWS]; /* rows' references after the page of a slot */
    float l[2][ROWS]; /* rows' sums of a unit, by its parity */
    uint64_t q_full, q_empty;
    uint64_t kv_full[2][3]; /* by box group */
    uint64_t kv_empty[2][3];
    uint64_t p_full[2], p_empty[2];
    uint64_t l_full[2], l_empty[2];
    uint64_t work_full[WORKS], work_empty[WORKS];
    struct work works[WORKS];
};

enum { LEFT, ROPE, RIGHT }; /* box groups of a page: 0-3, 8, 4-7 */

struct params {
    CUtensorMap q, kv;
    struct mla_seqs seqs;
    __nv_bfloat16 *out;
    float *lse;
    int32_t heads, causal;
    uint64_t heads_inverse; /* ceil(2^32 / heads): row / heads by a multiplication */
    float scale_log2;       /* softmax_scale * log2(e) */
    int32_t parts;          /* clusters of the grid */
    int32_t lanes;          /* see struct plan */
    int32_t invariant;
    float *partial_o;   /* (parts, 2, CLUSTER, 32, 256, 4), see struct partial */
    float *partial_ml;  /* (parts, 2, CLUSTER, 64, 2) */
    uint32_t *counters; /* (parts, CLUSTER, 2): arrivals, departures */
};

/* A thread of the values' warpgroups. It has rows `row` and `row` + 8 of the tile. */
struct math {
    float o[2][64]; /* 64 rows x 256 columns: half of the output, 128 columns an accumulator */
    float m[2];     /* reference of the exponents (base 2) */
    int row;
    uint32_t n_pages; /* as struct scorer has it */

    __device__ __forceinline__ float &at(int i) /* value i % 4 of column block i / 4 */
    {
        return o[i / 64][i % 64];
    }
    __device__ __forceinline__ float at(int i) const
    {
        return o[i / 64][i % 64];
    }
};

/* One arrival for all that a warp did before. */
static __device__ __forceinline__ void arrive_warp(uint64_t *bar)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        mbar_arrive(smem_u32(bar));
}

} // namespace mla_wide
