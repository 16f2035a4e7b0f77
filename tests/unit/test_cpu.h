/* What the tests of the CPU backend share: a backend, random tensors, and comparisons. */
#pragma once

#include "kernels/backend.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <string.h>

enum { TEST_ROWS = 300, TEST_SEQS = 16, TEST_PAGES = 128, TEST_VOCAB = 50, TEST_SLOTS = 16 };

static struct error test_error;

static inline struct backend *open_cpu(int threads)
{
    return backend_cpu_open(&(struct backend_options){
        .threads = threads,
        .slots = TEST_SLOTS,
        .vocab_size = TEST_VOCAB,
        .limits = {.max_rows = TEST_ROWS, .max_seqs = TEST_SEQS, .max_pages = TEST_PAGES}});
}

/* Numbers in [-1, 1) that depend on `seed` alone. */
static inline float random_at(uint64_t seed)
{
    uint64_t z = seed * 0x9E3779B97F4A7C15u + 0x1234567;

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (float)(int32_t)(z >> 32) * 0x1p-31f;
}

static inline struct tensor new_tensor(struct backend *be, enum dtype dtype, int64_t rows,
                                       int64_t columns)
{
    struct tensor t;
    int rc = be->ops->alloc(be, &t, dtype, 2, (int64_t[]){rows, columns}, &test_error);

    ck_assert_int_eq(rc, 0);
    return t;
}

static inline struct tensor random_tensor(struct backend *be, uint64_t seed, int64_t rows,
                                          int64_t columns)
{
    struct tensor t = new_tensor(be, DTYPE_F32, rows, columns);

    for (int64_t i = 0; i < rows * columns; i++)
        ((float *)t.data)[i] = random_at(seed * 1000003 + (uint64_t)i);
    return t;
}

/* Element i of an F32 or BF16 tensor. */
static inline float f32_of(const struct tensor *t, int64_t i)
{
    uint32_t bits;
    float value;

    if (t->dtype == DTYPE_F32)
        return ((const float *)t->data)[i];
    bits = (uint32_t)((const uint16_t *)t->data)[i] << 16;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* An uploaded weight of random values, as F32 or cut to BF16. */
static inline struct tensor random_weight(struct backend *be, uint64_t seed, enum dtype dtype,
                                          int rank, const int64_t *shape)
{
    struct tensor host = {.dtype = dtype, .rank = rank}, t;

    memcpy(host.shape, shape, (size_t)rank * sizeof(*shape));
    host.data = malloc(tensor_bytes(&host));
    for (int64_t i = 0; i < tensor_elements(&host); i++) {
        float value = random_at(seed * 1000003 + (uint64_t)i);
        uint32_t bits;
        memcpy(&bits, &value, sizeof(bits));
        if (dtype == DTYPE_BF16)
            ((uint16_t *)host.data)[i] = (uint16_t)(bits >> 16);
        else
            ((float *)host.data)[i] = value;
    }
    ck_assert_int_eq(backend_upload(be, &t, WEIGHT_MATRIX, &host, &test_error), 0);
    free(host.data);
    return t;
}

#define RANDOM_WEIGHT(be, seed, dtype, ...)                                                        \
    random_weight(be, seed, dtype, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),      \
                  (int64_t[]){__VA_ARGS__})

#define RELEASE(be, ...)                                                                           \
    do {                                                                                           \
        struct tensor *tensors[] = {__VA_ARGS__};                                                  \
        for (size_t i_ = 0; i_ < sizeof(tensors) / sizeof(tensors[0]); i_++)                       \
            (be)->ops->release(be, tensors[i_]);                                                   \
    } while (0)

/* Within `tolerance` of `expected`, relative to the larger of its size and 1. */
static inline void assert_near(double actual, double expected, double tolerance)
{
    double size = fabs(expected) > 1 ? fabs(expected) : 1;

    if (!(fabs(actual - expected) <= tolerance * size)) /* Check's own write to a file */
        ck_abort_msg("%.9g is not %.9g", actual, expected);
}

static inline void assert_same_bits(const void *a, const void *b, size_t bytes)
{
    ck_assert_msg(memcmp(a, b, bytes) == 0, "results differ in bits");
}
