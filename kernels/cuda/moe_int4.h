/* moe.h's experts where the routed ones have INT4 weights: whole numbers from -8 to 7 with a bf16
 * scale for each 32 k of a row, as compressed-tensors packs them (pack-quantized, symmetric). The
 * shared experts are bf16. Conventions are moe.h's; d and i are multiples of 128.
 *
 * Few rows (moe_few.cuh): sums of 32 products of bf16 values and the whole numbers themselves are
 * taken in float, times the scale. More: the weights times their scales are rounded to bf16 first.
 * A row's bits change, besides where moe.h says, where m passes 4, or less where moe_few.cuh has no
 * room for so many.
 *
 * Weights have been through int4_reorder. */
#pragma once

#include "kernels/cuda/moe.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    INT4_GROUP = 32,
    INT4_SLACK = 128, /* bytes behind a weight that may be read, and must be there */
};

struct moe_int4_args {
    struct moe_args moe;                                   /* gate, up, down are INT4 */
    const uint16_t *gate_scales, *up_scales, *down_scales; /* (experts, rows, columns / 32) */
};
int moe_int4_experts(const struct moe_int4_args *args, gemm_stream stream);

/* Bytes of workspace for every call with at most max_m rows; it begins with MOE_FEW_ROOM. */
size_t moe_int4_workspace(int32_t max_m, int32_t d, int32_t i, int32_t experts, int32_t top_k,
                          int32_t shared);

/* Puts `n` numbers (a multiple of 128), two a byte, the first of them in the low half, in the order
 * that the products read: number 4 i' of word 4 q + j of 16, with i' = i for i < 4, is that of
 * k = 32 j + 8 i + 2 q, number i + 4 the one after it. */
int int4_reorder(void *weights, int64_t n, gemm_stream stream);

#ifdef __cplusplus
}
#endif
