/* The experts of a mixture-of-experts layer on Hopper GPUs: routed and shared ones in one call.
 * Conventions as in gemm.h (alignment, launch order, status, determinism).
 *
 * out[r] = residual[r] + sum over s of weights[r, s] * expert(ids[r, s])(x[r])
 *          + sum over shared experts of expert(x[r]),    expert(x) = down(silu(gate x) * (up x)).
 * An expert's output is rounded to bf16 before it is weighted (m <= 16: it may not be); the sum is
 * in float, in an order that is the row's own, and is rounded once. A row's bits never depend on
 * the other rows' values; with the number of rows m the order of the sums changes at m = 16 (not
 * with `batch_invariant`) and where m * top_k passes MOE_SMALL_PAIRS.
 *
 * ids may hold anything in -1 .. experts - 1; slots with -1 give nothing (rows that pad a batch).
 * Routing is read on the device: it may change between replays of a captured graph. */
#pragma once

#include "kernels/cuda/gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MOE_MAX_EXPERTS = 512,
    MOE_MAX_SLOTS = 16,     /* top_k + shared */
    MOE_SMALL_PAIRS = 2560, /* up to here the decode kernels serve: 256 rows of 10 slots */
};

struct moe_args {
    const void *x; /* (m, d) */
    int64_t x_stride;
    const int32_t *ids;   /* (m, top_k) */
    const float *weights; /* (m, top_k) */
    const void *gate;     /* (experts, i, d) */
    const void *up;       /* (experts, i, d) */
    const void *down;     /* (experts, d, i) */

    /* Shared experts: one MLP of intermediate size shared * i. NULL where shared is 0. */
    const void *shared_gate; /* (shared * i, d) */
    const void *shared_up;   /* (shared * i, d) */
    const void *shared_down; /* (d, shared * i) */

    const void *residual; /* bf16 (m, d), rows out_stride apart; may be `out`; NULL: none */
    void *out;            /* bf16 (m, d) */
    int64_t out_stride;
    int32_t m, d, i; /* d, i multiples of 8 */
    int32_t experts, top_k, shared;
    int32_t batch_invariant;
    void *workspace; /* of moe_workspace bytes, 256-byte aligned; calls that share one must be on
                        one stream */
    size_t workspace_bytes;
};
int moe_experts(const struct moe_args *args, gemm_stream stream);

/* Bytes of workspace for every call with at most max_m rows. For DeepSeek-V2-Lite about 45 KB a row
 * (0.37 GB at 8192). */
size_t moe_workspace(int32_t max_m, int32_t d, int32_t i, int32_t experts, int32_t top_k,
                     int32_t shared);

/* Bytes at the beginning of the workspaces of moe_fp8_experts and moe_int4_experts: zero before the
 * first call, then theirs alone. */
enum { MOE_FEW_ROOM = 256 * 1024 };

#ifdef __cplusplus
}
#endif
