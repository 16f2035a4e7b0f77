/* What the parts of the 64-row decode kernel share: sizes, shared memory, parameters. See
 * mla_wide.cuh. */
#pragma once

#include "kernels/cuda/mla_internal.h"
#include "kernels/cuda/wgmma.cuh"

#include <math.h>
#include <stddef.h>

namespace mla_wide
{

enum {
    ROWS = 64,
    PAGE = MLA_PAGE_TOKENS,
    LATENT = 512,
    WIDTH = 576,
    ROW_PIECES = LATENT / 16, /* of a tile's output, 16 columns each, in 16 of its rows */
    PIECES = ROW_PIECES * ROWS / 16,
    BOX = 8192,         /* bytes of 64 rows x 64 bf16 */
    MATH_THREADS = 256, /* of the values' warpgroups; then come the scores' and the producer's */
    THREADS = 512,
    MOST_PIECES = 128,  /* of a unit in even pieces; a line may give one to all blocks */
    MOST_MERGERS = 64,  /* of a unit: 128 would all ask for all flags */
    WORKS = 4,          /* units that the producer may be ahead */
    SEEN = 4096,        /* sequences whose lengths are compared with what they were before */
    REMEMBERED = 512,   /* sequences of a call that is remembered */
    FEW = 3,            /* parts of a unit on a LINE that the first of them merges by itself */
    REGISTER_BOXES = 1, /* of the queries that scores have in registers, beside the rope part */
    OVERHEAD = 3,       /* of a unit, in pages: what starting and ending one costs */
    TURNS = 8,          /* in which a warp stores its part of a tile */
    QUARTERS = 4,       /* of what a pair's block is sent: 64 columns each */
};

/* A reference that there is not yet: any score has outgrown it, and a masked one stays 0. */
static constexpr float NO_REFERENCE = -1e38f;

static constexpr float MOST_SUM = 256; /* of a thread's 16 probabilities of a row */

/* Boxes of a page by twos, in the order in which they are asked for, multiplied with the queries
 * and freed: first and second quarter of the output's columns of either values' warpgroup. */
enum { GROUPS = 5, ROPE = 2 };

static __device__ constexpr int group_box(int g)
{
    return g == ROPE ? 8 : g < ROPE ? 4 * g : 4 * (g - 3) + 2;
}

static __device__ constexpr int group_size(int g)
{
    return g == ROPE ? 1 : 2;
}

static __device__ constexpr int group_of(int half, int quarter)
{
    return 3 * quarter + half;
}

/* a / b of small numbers (below 2^16), rounded down. */
static __device__ __forceinline__ int quotient(int a, int b)
{
    return __float2int_rd(__fdividef(a + 0.5f, b));
}

/* Where a unit's result goes: what is needed to store it, or to merge this block's share of it. */
struct pending {
    int32_t n, index; /* parts of the unit, which of them this is */
    int32_t mergers;  /* blocks that merge the parts */
    int32_t merger;   /* which of them this one is; -1: none */
    int32_t only;     /* the block has no other unit */
    int32_t slot;     /* part of the grid, within its rank, that has the unit's first part */
    int64_t row;  /* first row of the tile in (query rows x heads), as q, out and lse have them */
    int32_t rows; /* of the tile */

    /* The first of the tile's pieces (16 columns of 16 rows) that merger k merges. */
    __device__ __forceinline__ int first_piece(int k) const
    {
        return quotient(PIECES * k, mergers);
    }
    /* Whether this block merges some of its own part's pieces: these stay in the block, in the
     * queries' memory. */
    __device__ __forceinline__ bool keeps_own() const
    {
        return only && merger == index && index < n;
    }
    /* In a paired launch: whether the two blocks of the cluster have all of the unit between them,
     * and nothing else (mla_wide_pair.cuh). */
    __device__ __forceinline__ bool in_pair() const
    {
        return only && n == 2 && merger == index && slot % 2 == 0;
    }
};

/* A unit's work as the producer hands it to the math warps. */
struct work {
    struct pending d;    /* d.n 0: no more work */
    int32_t first, last; /* pages of this part */
    int32_t kv_len, q_len;
    int32_t tile;         /* first row of the block's tile in its sequence's (q_len x heads) */
    const int32_t *table; /* the pages from `first` on */
};

/* A unit of work: the row tiles of one cluster in one sequence. */
struct unit {
    int32_t seq, group; /* tiles group * CLUSTER .. of the sequence */
    int32_t left;       /* units of this lane in the sequence from this one on */
    int32_t number;     /* units before it */
    int32_t base;       /* their cost, in pages */
    int32_t kv_len, q_len, pages;
};

/* Where a part of the grid stands. Parts are in lanes; a lane has the groups that leave its number
 * as a remainder, so that the tiles of a sequence are worked on at the same time by neighbours, and
 * its pages come from memory once. */
struct place {
    int32_t lane;
    int32_t index, count; /* which of the lane's parts; how many there are */
};

/* How units are dealt to the parts of a lane; every part finds the same from the lengths.
 * WHOLE    `size` units a part
 * EVEN     every unit is cut into `size` equal pieces, a piece a part, of `group` parts that it
 *          could have
 * LINE     units stand on a line, each as long as its cost; a part takes `size` of the line, so
 *          that all end together whatever the lengths; it cuts at most its first and last unit
 * The first two are for lengths that are about the same: they cut less, so there is less to merge.
 */
struct plan {
    enum { WHOLE, EVEN, LINE } kind;
    int32_t size, group;
    int32_t unit, index; /* EVEN: the part has the unit of this number, its piece `index` */
    int32_t apart;       /* EVEN: only blocks that have no pages merge */
};

/* This part's pages of a unit, and how the unit is divided. */
struct share {
    int32_t first, last; /* pages first .. last - 1 */
    int32_t index, n;    /* as in struct pending */
    int32_t mergers, merger;
};

/* Where a unit's queries and pages begin. */
struct starts {
    int32_t q;
    const int32_t *table;
};

/* What the producer warp does: a lane's plan, and the part's share of unit after unit. */
struct alignas(16) course {
    place at;
    plan how;
    int32_t end; /* of the part, on the units' line */
    unit u;
    share sh;
    bool more;
    starts from;
};

/* What a plan follows from, beside the sequences. */
struct alignas(16) call {
    const int32_t *tables;
    int32_t n_seqs, max_q_len, heads, table_stride;
    int32_t flags; /* of arrays that there are, and invariant */
    int32_t none;  /* 0: whole 16 bytes are compared */
};

/* What a block keeps of a call in the workspace. Calls follow each other with the same lengths, a
 * model's layers above all, and then have no need to plan. */
struct memo {
    struct call of;
    struct course course;  /* at its beginning */
    int4 seqs[REMEMBERED]; /* as read_sequence() has them */
};

enum { MEMO_PIECES = offsetof(memo, seqs) / 16 };

/* Shared memory, 229,376 + 2,456 of 232,448 bytes (it begins on a multiple of 1,024):
 *   q       65,536   eight boxes; the ninth (rope) is in registers, as is a copy of the first
 *   kv     147,456   two pages of nine boxes
 *   p       16,384   probabilities of the pages in the two slots
 *   then rows' maxima, sums and sizes, barriers, the units under way and those to be merged. */
struct shared {
    uint8_t q[8][BOX];
    uint8_t kv[2][9][BOX];
    uint8_t p[2][BOX];
    float m[2][ROWS];    /* rows' references after the page of a slot */
    float l[2][ROWS];    /* rows' sums of a unit, by its parity */
    float size[2][ROWS]; /* of either half of a row, in sum, before it is stored as f16 */
    /* Barriers, in the order of their arrivals (init_barriers). */
    uint64_t q_full;                /* the rope part; the others come with the first page */
    uint64_t merge_full, rows_full; /* the parts of a unit to be merged; their rows' sums */
    uint64_t work_full[WORKS];
    uint64_t kv_full[2][GROUPS]; /* by box group */
    uint64_t q_empty;
    uint64_t s_queued[2]; /* the last products of the scores of the page in a slot */
    uint64_t kv_empty[2][GROUPS];
    uint64_t p_full[2], l_full[2];
    uint64_t p_empty[2], l_empty[2];
    uint64_t work_empty[WORKS];
    struct work works[WORKS];
    struct call of; /* and `course`: a memo's beginning */
    struct course course;
    int32_t unknown;          /* this call is to be remembered */
    struct pending merges[2]; /* at most the first and the last unit of a part */
    /* Of a pair: the other block's queries have been multiplied; what it sends has come, by
     * quarters. */
    uint64_t granted, sent[QUARTERS];
};

struct params {
    CUtensorMap q, kv;
    alignas(64) struct mla_seqs seqs; /* a line of the arguments: all others are far from it */
    struct memo *memos;               /* (blocks); with what its line has, all for the plan */
    struct call of;
    int32_t settled;                            /* see mla.h */
    int32_t lanes;                              /* see struct plan */
    uint32_t lanes_inverse, lane_parts_inverse; /* 2^32 / these, rounded up; 0 for 1 */
    int32_t lane_parts;                         /* parts of a lane */
    int32_t heads, causal;
    int32_t invariant;
    const char *pages; /* of the cache, for what is brought to L2 ahead */
    int64_t page_stride;
    __nv_bfloat16 *out;
    float *lse;
    uint64_t heads_inverse; /* ceil(2^32 / heads): row / heads by a multiplication */
    float scale_log2;       /* softmax_scale * log2(e) */
    int32_t parts;          /* clusters of the grid */
    uint4 *partial_o;       /* (parts, 2, CLUSTER, PIECES, 32) of eight f16, see struct partial */
    float *partial_ml;      /* (parts, 2, CLUSTER, 64, 2) */
    uint32_t *flags;        /* (2, CLUSTER, parts): a part's partial result is there */
    uint32_t *left;         /* (CLUSTER, parts): mergers that have seen all parts of their unit */
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

/* Of this thread's warp, in a way that tells the compiler that all its threads have the same: what
 * follows from it, descriptors above all, stays in uniform registers. */
static __device__ __forceinline__ int warp_index()
{
    return __shfl_sync(~0u, (int)threadIdx.x / 32, 0);
}

/* threadIdx.x, asked for anew: what follows from it is not kept in registers from before. */
static __device__ __forceinline__ int thread_anew()
{
    int t;

    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}

/* One arrival for all that a warp did before. */
static __device__ __forceinline__ void arrive_warp(uint64_t *bar)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        mbar_arrive(smem_u32(bar));
}

} // namespace mla_wide
