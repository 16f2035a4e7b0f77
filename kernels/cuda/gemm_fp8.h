/* Products with weights that stay FP8: E4M3 values with a float scale for each 128 x 128 block, as
 * DeepSeek-V3's checkpoints have them (X.weight, X.weight_scale_inv). Conventions are gemm.h's
 * (launch order, status, strides); what differs is said here.
 *
 * Two arithmetics. Up to FP8_EXACT_ROWS rows (always with `batch_invariant` or a float result; of
 * experts, up to MOE_SMALL_PAIRS pairs), bf16 rows of x
 * are multiplied with the weights' values, which bf16 holds exactly; sums of 128 products of k are
 * taken in float, times the block's scale, and added up in float. That is more exact than what the
 * checkpoints were trained for, and reads half the bytes of bf16 weights. Beyond it, where the
 * tensor cores are the limit, x is quantised to E4M3 too: 128 values of a row share a scale,
 * max(|x|, 1e-4) / 448, rounded up to a power of two with `ue8m0`. A row's bits change where m
 * passes FP8_EXACT_ROWS, and, but for `batch_invariant`, at m = 16.
 *
 * Weights have been through fp8_reorder. k is a multiple of 128, n of 8. */
#pragma once

#include "kernels/cuda/gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { FP8_BLOCK = 128, FP8_EXACT_ROWS = 256 };

/* Scales (ceil(n / 128), k / 128) of weights (n, k); of experts, one such matrix after another. */
struct fp8_scales {
    const float *scales;
    const float *up_scales; /* of `up`, where the weights are gate and up */
};

struct gemm_fp8_linear_args {
    struct gemm_linear_args linear; /* weights are E4M3 */
    struct fp8_scales scales[GEMM_MAX_PARTS];
    int32_t ue8m0;
    void *workspace; /* 256-byte aligned, of gemm_fp8_workspace bytes; calls that share one must be
                        on one stream */
    size_t workspace_bytes;
    int32_t quantised; /* 1: the workspace has x in FP8 already (gemm_fp8_internal.h: fp8_rows_at),
                          should this call want it */
};
int gemm_fp8_linear(const struct gemm_fp8_linear_args *args, gemm_stream stream);

struct gemm_fp8_swiglu_args {
    struct gemm_swiglu_args swiglu;
    struct fp8_scales scales;
    int32_t ue8m0;
    void *workspace;
    size_t workspace_bytes;
    int32_t quantised;
};
int gemm_fp8_swiglu(const struct gemm_fp8_swiglu_args *args, gemm_stream stream);

/* Bytes of workspace for calls with at most max_m rows of at most max_k values. */
size_t gemm_fp8_workspace(int32_t max_m, int32_t max_k);

/* Puts `n` bytes (a multiple of 128: whole blocks of a row) in the order that the products read:
 * byte 32 q + 4 j + b of 128 is that of k = 16 j + 2 q + (0, 8, 1, 9)[b], so that a thread finds
 * its parts of eight matrix operations side by side. */
int fp8_reorder(void *weights, int64_t n, gemm_stream stream);

#ifdef __cplusplus
}
#endif
