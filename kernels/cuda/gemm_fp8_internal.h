/* What linear layers and experts share of products with FP8 tokens. */
#pragma once

#include "kernels/cuda/gemm_fp8.cuh"

#include <cuda_runtime.h>

/* Rows of E4M3 values in the weights' order (fp8_reorder) and their scales (rows, k / 128). */
struct fp8_rows {
    uint8_t *values;
    float *scales;
    int32_t rows, k;
};

struct fp8_wide_params {
    fp8_params fp8;
    const float *token_scales; /* (rows, k / 128) */
    int32_t rows;              /* of tokens in memory */
    struct fp8_rows out;       /* gated results, in place of fp8.tile.part[0].out; or values NULL */
    bool ue8m0;                /* of out */
};

/* Bytes of `rows` such rows of k values, to be cut by fp8_rows_at; 256-byte aligned. */
static inline size_t fp8_rows_bytes(int64_t rows, int64_t k)
{
    return (size_t)((rows * k + 255) / 256 * 256 + (rows * k / FP8_BLOCK * 4 + 255) / 256 * 256);
}

static inline struct fp8_rows fp8_rows_at(void *memory, int32_t rows, int32_t k)
{
    struct fp8_rows r = {(uint8_t *)memory, nullptr, rows, k};

    r.scales = (float *)(r.values + ((int64_t)rows * k + 255) / 256 * 256);
    return r;
}

/* Quantises x (rows, k) bf16. */
int fp8_quantize(const struct fp8_rows *to, const void *x, int64_t stride, bool ue8m0,
                 cudaStream_t stream);

/* Runs what `f` says (parts, scales, m) over consecutive rows: with weights w[part], or, where
 * f.tile.routing has ranges of rows, with those of that many experts. Gated results go to `out`, if
 * it is not NULL. */
int fp8_wide(fp8_params &f, const tile_weights *w, const struct fp8_rows &x,
             const struct fp8_rows *out, bool ue8m0, cudaStream_t stream);
