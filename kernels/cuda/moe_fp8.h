/* moe.h's experts with weights that stay FP8: see gemm_fp8.h for their form and the two
 * arithmetics. d and i are multiples of 128. A row's bits change, besides where moe.h says, where m
 * passes 4, or less where moe_few.cuh has no room for so many. */
#pragma once

#include "kernels/cuda/gemm_fp8.h"
#include "kernels/cuda/moe.h"

struct gate_args; /* route.h */

#ifdef __cplusplus
extern "C" {
#endif

struct moe_fp8_args {
    struct moe_args moe;             /* weights are E4M3 */
    struct fp8_scales gate_up, down; /* (experts, ceil(rows / 128), columns / 128) */
    struct fp8_scales shared_gate_up, shared_down;
    int32_t ue8m0;
    const void *quantised; /* x in FP8 already (gemm_fp8_internal.h: fp8_rows_at), or NULL */
    /* A choice that is still to be made, where few_serves and few_chooses (moe_few.h) say so: x,
     * ids and weights are its results, and the experts are added up in the order of the choice.
     * Else NULL. */
    const struct gate_args *gate;
};
int moe_fp8_experts(const struct moe_fp8_args *args, gemm_stream stream);

/* Bytes of workspace for every call with at most max_m rows; it begins with MOE_FEW_ROOM. */
size_t moe_fp8_workspace(int32_t max_m, int32_t d, int32_t i, int32_t experts, int32_t top_k,
                         int32_t shared);

#ifdef __cplusplus
}
#endif
