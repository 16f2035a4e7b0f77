/* A tensor is a value: an address, an element type and a shape. It owns nothing; the backend that
 * allocated its memory frees it. Layout is row-major and contiguous. */
#pragma once

#include "base/panic.h"

#include <stddef.h>
#include <stdint.h>

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_F8_E4M3, DTYPE_I32, DTYPE_I64 };

enum { TENSOR_MAX_RANK = 4 };

struct tensor {
    void *data; /* host or device memory, as the backend decides; NULL: no tensor */
    enum dtype dtype;
    int rank;
    int64_t shape[TENSOR_MAX_RANK];
    float *scales; /* of a F8_E4M3 weight (..., n, k): (..., ceil(n / 128), ceil(k / 128)) floats */
};

static inline size_t dtype_size(enum dtype dtype)
{
    static const unsigned char sizes[] = {4, 2, 2, 1, 4, 8};

    return sizes[dtype];
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
    return (size_t)tensor_elements(t) * dtype_size(t->dtype);
}

/* The first `rows` rows of a tensor whose first dimension is at least that. */
static inline struct tensor tensor_rows(struct tensor t, int64_t rows)
{
    ASSERT(t.rank > 0 && rows <= t.shape[0]);
    t.shape[0] = rows;
    return t;
}
