/* Matrix products with a model's weights on Hopper GPUs: linear layers, gate and up with SwiGLU,
 * products per head, the router's logits.
 *
 * A C ABI over device pointers and a CUDA stream. Calls queue their work and return: they allocate
 * nothing and wait for nothing, so each can be captured in a CUDA graph. Matrices are bf16 unless
 * said otherwise, sums are kept in float.
 *
 * Alignment: pointers 16 bytes; k, n and every stride (in elements) a multiple of 8.
 *
 * Launch order: every kernel here is launched with programmatic stream serialization. It may start
 * while the kernel before it still runs, lets the next one start early too, and touches nothing but
 * weights until the one before it is done (griddepcontrol.wait). A kernel that follows may do the
 * same (launch.cuh) or be an ordinary one. So weights must not be written by the kernels right
 * before a product.
 *
 * Determinism: the same call gives the same bits. A row's bits never depend on the other rows'
 * values, but with the number of rows m the order of a sum over k may change: m <= 2 and m <= 16
 * have orders of their own, and above that k may be split over blocks where there would be fewer
 * tiles of 128 x 64 than multiprocessors. `batch_invariant` turns both off: then a row's sum runs
 * over k in rising order whatever m is (slower where m <= 16 and the weight is a few MB or less).
 * gemm_router is always invariant. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { GEMM_MAX_PARTS = 3 };

enum gemm_status {
    GEMM_OK = 0,
    GEMM_INVALID = -1, /* a size, stride or pointer is out of its range */
    GEMM_CUDA = -2,    /* a launch failed: cudaGetLastError says why */
};

struct CUstream_st;
typedef struct CUstream_st *gemm_stream; /* a cudaStream_t */

/* One output of a linear layer. */
struct gemm_part {
    const void *weight;   /* (n, k) */
    const float *bias;    /* (n) or NULL */
    const void *residual; /* bf16 (m, n), rows out_stride apart, added after rounding the product to
                             bf16; may be `out`; NULL: none. Not with a float output. */
    void *out;            /* (m, n) bf16 or float */
    int64_t out_stride;   /* elements between rows */
    int32_t n;
    int32_t out_float; /* 1: float, else bf16 */
};

/* out_i (m, n_i) = x (m, k) weight_i^T [+ bias_i] [+ residual_i], i < n_parts: weights that share
 * an input go in one launch (q and kv_a). */
struct gemm_linear_args {
    const void *x;
    int64_t x_stride; /* >= k */
    int32_t m;        /* any; 0: nothing is done */
    int32_t k;
    int32_t n_parts;
    int32_t batch_invariant;
    struct gemm_part parts[GEMM_MAX_PARTS];

    /* With norm (k), 16-byte aligned, x stands for its rows divided by their root mean square
     * (mean + eps) and times norm, rounded to bf16, which are also written to `normalised` (m, k).
     * For what gemm_linear_norms says. NULL: it doesn't. */
    const float *norm;
    void *normalised;
    float eps;
};
int gemm_linear(const struct gemm_linear_args *args, gemm_stream stream);

/* Whether a product can normalise its input. */
static inline int gemm_linear_norms(int32_t m, int32_t k, int32_t batch_invariant)
{
    return m <= 8 && k % 64 == 0 && k <= 8192 && !batch_invariant;
}

/* out (m, i) = silu(x gate^T) * (x up^T), rounded once. gate and up: (i, k). */
struct gemm_swiglu_args {
    const void *x;
    const void *gate;
    const void *up;
    void *out;          /* bf16 */
    int64_t x_stride;   /* >= k */
    int64_t out_stride; /* >= i */
    int32_t m;
    int32_t k;
    int32_t i;
    int32_t batch_invariant;
};
int gemm_swiglu(const struct gemm_swiglu_args *args, gemm_stream stream);

/* Per head h: out[r, h, :] (n) = x[r, h, :] (k) times weight h.
 * weight_is_kn 0: weight h is (n, k); 1: (k, n). Row j of weight h stands at
 * weight + h * weight_head_stride + j * weight_row_stride.
 * x[r, h] stands at x + r * x_stride + h * x_head_stride; out likewise.
 * W_UK of DeepSeek's kv_b (H * (nope + v), 512): k = nope, n = 512, weight_is_kn = 1, weight =
 * kv_b, weight_row_stride = 512, weight_head_stride = (nope + v) * 512. W_UV: k = 512, n = v,
 * weight_is_kn = 0, weight = kv_b + nope * 512, the same strides. */
struct gemm_batched_args {
    const void *x;
    const void *weight;
    void *out; /* bf16 */
    int64_t x_stride, x_head_stride;
    int64_t weight_row_stride, weight_head_stride;
    int64_t out_stride, out_head_stride;
    int32_t m, n, k, heads;
    int32_t weight_is_kn;
    int32_t batch_invariant;
};
int gemm_batched(const struct gemm_batched_args *args, gemm_stream stream);

/* out (m, n) float = x (m, k) bf16 times weight (n, k) FLOAT transposed, exact float FMA in an
 * order that does not depend on m: the router's logits. Any n; k a multiple of 4. */
struct gemm_router_args {
    const void *x;
    const float *weight;
    float *out;       /* rows n apart */
    int64_t x_stride; /* >= k, a multiple of 4 */
    int32_t m, n, k;
};
int gemm_router(const struct gemm_router_args *args, gemm_stream stream);

#ifdef __cplusplus
}
#endif
