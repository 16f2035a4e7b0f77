/* Products of very few rows, per head: out[r, h] (n) = weight[h] (n, k) x[r, h] (k) [+ residual],
 * bf16. Internal to gemm.cu, whose conventions hold. */
#pragma once

#include "kernels/cuda/gemm.h"

#include <cuda_runtime.h>

enum { GEMV_ROWS = 2, GEMV_K = 2048 };

struct gemv_args {
    const void *x, *weight;
    const void *residual; /* as `out`; NULL: none */
    void *out;
    int64_t x_stride, x_head_stride;
    int64_t weight_row_stride, weight_head_stride;
    int64_t out_stride, out_head_stride;
    int32_t m, n, k, heads;
};

/* Whether they fit: about 100 KB of weights a multiprocessor. */
static inline bool gemv_serves(const gemv_args &a, int processors)
{
    return a.m <= GEMV_ROWS && a.k <= GEMV_K &&
           (int64_t)a.heads * a.n * a.k <= processors * 50000ll;
}

int gemv(const gemv_args &a, cudaStream_t stream);
