/* A tensor is a value: an address, an element type and a shape. It owns nothing; the backend that
 * allocated its memory frees it. Layout is row-major and contiguous. */
#pragma once

#include "base/panic.h"

#include <stddef.h>
#include <stdint.h>

/* F8_E8M0: powers of two, which are scales. I4: whole numbers from -8 to 7, two in a byte, the
 * first of them in the low half, each plus 8: "pack-quantized" rows of compressed-tensors as they
 * are. */
enum dtype {
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_F16,
    DTYPE_F8_E4M3,
    DTYPE_I32,
    DTYPE_I64,
    DTYPE_F8_E8M0,
    DTYPE_I4
};

enum { TENSOR_MAX_RANK = 4, I4_GROUP = 32 /* columns of an I4 weight that share a scale */ };

struct tensor {
    void *data; /* host or device memory, as the backend decides; NULL: no tensor */
    enum dtype dtype;
    int rank;
    int64_t shape[TENSOR_MAX_RANK];
    float *scales; /* of a F8_E4M3 weight (..., n, k): (..., ceil(n / 128), ceil(k / 128)) floats */
    uint16_t *group_scales; /* of an I4 weight (..., n, k): (..., n, k / I4_GROUP) BF16 */
};

/* Bytes of an element; I4's are half of one. */
static inline size_t dtype_size(enum dtype dtype)
{
    static const unsigned char sizes[] = {4, 2, 2, 1, 4, 8, 1};

    ASSERT(dtype != DTYPE_I4);
    return sizes[dtype];
}

/* Bytes of `n` elements, an even number of them in I4. */
static inline uint64_t dtype_bytes(enum dtype dtype, uint64_t n)
{
    return dtype == DTYPE_I4 ? n / 2 : n * dtype_size(dtype);
}

static inline int64_t tensor_elements(const struct tensor *t)
{
    int64_t n = 1;

    for (int i = 0; i < t->rank; i++)
        n *= t->shape[i];
    return n;
}

static inline size_t tensor_bytes(const struct tensor *t)
{
    return (size_t)dtype_bytes(t->dtype, (uint64_t)tensor_elements(t));
}

/* The first `rows` rows of a tensor whose first dimension is at least that. */
static inline struct tensor tensor_rows(struct tensor t, int64_t rows)
{
    ASSERT(t.rank > 0 && rows <= t.shape[0]);
    t.shape[0] = rows;
    return t;
}
