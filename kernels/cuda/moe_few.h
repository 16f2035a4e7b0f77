/* Where moe_few.cuh serves. */
#pragma once

#include "kernels/cuda/gemm_maps.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/route.h"

enum {
    FEW_ROWS = 4,                 /* of x */
    FEW_PAIRS = 32,               /* of a row and an expert */
    FEW_OWN = 2,                  /* experts whose logits are a block's */
    FEW_TOKEN_BYTES = 112 * 1024, /* at most */
};

/* Shared memory for x and hidden. */
static inline int few_token_bytes(const struct moe_args *a)
{
    int x = a->m * (2 * a->d + 16), hidden = a->m * (a->top_k + a->shared) * (2 * a->i + 16);

    return (x + hidden + 127) / 128 * 128;
}

/* Whether it serves: few rows, and tiles of 16 columns of out that share out evenly, or so little
 * work that it does not matter. */
static inline bool few_serves(const struct moe_args *a)
{
    int tiles = a->d / 16, blocks = gemm_processors();
    int64_t work = (int64_t)a->m * (a->top_k + a->shared) * a->d * a->i;

    return a->m <= FEW_ROWS && a->m * a->top_k <= FEW_PAIRS && !a->batch_invariant && blocks > 0 &&
           a->d % 16 == 0 && a->i % 8 == 0 && few_token_bytes(a) <= FEW_TOKEN_BYTES &&
           (work < 4 << 20 || 5 * tiles >= 4 * ((tiles + blocks - 1) / blocks * blocks));
}

/* Whether it makes this choice too, where it serves: of one row. With more, the choice takes longer
 * than a kernel of its own. */
static inline bool few_chooses(const struct gate_args *gate)
{
    return gate->rows == 1 && gate->d <= GATE_D && gate->config.experts <= GATE_EXPERTS &&
           gate->config.experts <= FEW_OWN * gemm_processors();
}
