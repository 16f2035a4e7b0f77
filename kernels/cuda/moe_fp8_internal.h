/* What the parts of moe_fp8_experts share. */
#pragma once

#include "kernels/cuda/gemm_fp8_internal.h"
#include "kernels/cuda/moe_fp8.h"
#include "kernels/cuda/moe_internal.h"

/* Places in the workspace: those of moe_internal.h, and rows of FP8. Many rows have x sorted by
 * expert in y's place until `down` writes it. */
struct moe_fp8_layout {
    struct moe_layout moe;
    struct fp8_rows x;      /* (m, d) */
    struct fp8_rows sorted; /* (m * top_k, d) */
    struct fp8_rows hidden; /* (m * top_k, i) */
    struct fp8_rows wide;   /* (m, shared * i) */
    size_t bytes;
};

static inline struct moe_fp8_layout moe_fp8_layout(void *workspace, int32_t m, int32_t d, int32_t i,
                                                   int32_t experts, int32_t top_k, int32_t shared)
{
    struct moe_fp8_layout at = {};

    at.moe = moe_layout((char *)workspace + MOE_FEW_ROOM, m, d, i, experts, top_k, shared);
    at.bytes = MOE_FEW_ROOM + at.moe.bytes;
    auto take = [&](int32_t rows, int32_t k) {
        struct fp8_rows r = fp8_rows_at((char *)workspace + at.bytes, rows, k);
        at.bytes += fp8_rows_bytes(rows, k);
        return r;
    };
    at.sorted = fp8_rows_at(at.moe.y, m * top_k, d);
    at.x = take(m, d);
    at.hidden = take(m * top_k, i);
    at.wide = take(m, shared * i);
    return at;
}

/* moe_fp8_experts for a few rows, where moe_few.cuh serves. */
int moe_fp8_few(const struct moe_fp8_args *args, cudaStream_t stream);

/* moe_fp8_experts for many rows. */
int moe_fp8_sorted(const struct moe_fp8_args *args, cudaStream_t stream);
