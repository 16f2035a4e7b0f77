/* What the tests of the CUDA backend share: both backends side by side, tensors of the same values
 * on both (rounded to bf16, so that both compute with the same numbers), and comparisons. */
#pragma once

extern "C" {
#include "base/memory.h"
}
#include "kernels/backend.h"
#include "kernels/random_fill.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

static int pair_failures;
static const struct tensor none = {};

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            pair_failures++;                                                                       \
            printf("%s:%d: ", __FILE__, __LINE__);                                                 \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)

struct pair {
    struct backend *cpu, *gpu;
    struct error err;
};

/* One tensor on both backends. */
struct twin {
    struct tensor cpu, gpu;
};

static inline pair pair_open(backend_options options)
{
    pair p = {};

    p.gpu = backend_cuda_open(&options, &p.err);
    if (!p.gpu) {
        printf("%s\n", p.err.message);
        exit(1);
    }
    options.kv_dtype = DTYPE_F32;
    p.cpu = backend_cpu_open(&options);
    return p;
}

static inline void pair_close(pair *p)
{
    p->gpu->ops->close(p->gpu);
    p->cpu->ops->close(p->cpu);
}

static inline void must(int rc, const pair &p)
{
    if (rc) {
        printf("failed: %s\n", p.err.message);
        exit(1);
    }
}

static inline float round_bf16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static inline tensor host_tensor(std::vector<float> &values, int64_t rows, int64_t columns)
{
    tensor t = {};

    t.data = values.data();
    t.dtype = DTYPE_F32;
    t.rank = columns ? 2 : 1;
    t.shape[0] = rows;
    t.shape[1] = columns;
    return t;
}

/* Values of an activation on both: F32 on the CPU, `gpu_dtype` on the GPU. */
static inline twin twin_of(pair &p, std::vector<float> values, int64_t rows, int64_t columns,
                           enum dtype gpu_dtype = DTYPE_BF16)
{
    int64_t shape[] = {rows, columns};
    twin t;

    if (gpu_dtype == DTYPE_BF16)
        for (float &x : values)
            x = round_bf16(x);
    tensor host = host_tensor(values, rows, columns);
    must(p.cpu->ops->alloc(p.cpu, &t.cpu, DTYPE_F32, 2, shape, &p.err), p);
    must(p.gpu->ops->alloc(p.gpu, &t.gpu, gpu_dtype, 2, shape, &p.err), p);
    memcpy(t.cpu.data, values.data(), tensor_bytes(&t.cpu));
    must(p.gpu->ops->upload(p.gpu, &t.gpu, 0, &host, &p.err), p);
    return t;
}

static inline std::vector<float> random_values(uint64_t seed, int64_t n, float scale)
{
    std::vector<float> values(n);

    for (int64_t i = 0; i < n; i++)
        values[i] = random_fill_at(seed, i) * scale;
    return values;
}

static inline twin twin_random(pair &p, uint64_t seed, int64_t rows, int64_t columns,
                               float scale = 1, enum dtype gpu_dtype = DTYPE_BF16)
{
    return twin_of(p, random_values(seed, rows * columns, scale), rows, columns, gpu_dtype);
}

/* An output, which holds no numbers before it is written. */
static inline twin twin_out(pair &p, int64_t rows, int64_t columns,
                            enum dtype gpu_dtype = DTYPE_BF16)
{
    return twin_of(p, std::vector<float>(rows * columns, NAN), rows, columns, gpu_dtype);
}

/* A weight of either use; rows 0: a vector. */
static inline twin twin_weight(pair &p, uint64_t seed, enum weight_use use,
                               std::vector<int64_t> shape, float scale, float offset = 0)
{
    int64_t n = 1;
    tensor host = {};
    twin t;

    for (size_t i = 0; i < shape.size(); i++) {
        host.shape[i] = shape[i];
        n *= shape[i];
    }
    std::vector<float> values = random_values(seed, n, scale);
    for (float &x : values)
        x = use == WEIGHT_MATRIX ? round_bf16(x + offset) : x + offset;
    host.data = values.data();
    host.dtype = DTYPE_F32;
    host.rank = (int)shape.size();
    must(backend_upload(p.cpu, &t.cpu, use, &host, &p.err), p);
    must(backend_upload(p.gpu, &t.gpu, use, &host, &p.err), p);
    return t;
}

static inline void twin_free(pair &p, std::vector<twin *> twins)
{
    for (twin *t : twins) {
        p.cpu->ops->release(p.cpu, &t->cpu);
        p.gpu->ops->release(p.gpu, &t->gpu);
    }
}

static inline std::vector<float> gpu_values(pair &p, const tensor &t)
{
    int64_t n = tensor_elements(&t);
    std::vector<float> values(n);
    std::vector<uint16_t> narrow(n);

    if (t.dtype != DTYPE_BF16) {
        p.gpu->ops->download(p.gpu, values.data(), &t);
        return values;
    }
    p.gpu->ops->download(p.gpu, narrow.data(), &t);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)narrow[i] << 16;
        memcpy(&values[i], &bits, sizeof(bits));
    }
    return values;
}

/* |gpu - cpu| / |cpu|, and that it is at most `limit`. */
static inline double compare(pair &p, const char *what, const twin &t, double limit)
{
    std::vector<float> got = gpu_values(p, t.gpu);
    const float *want = (const float *)t.cpu.data;
    double error = 0, norm = 0;
    int64_t bad = -1;

    for (size_t i = 0; i < got.size(); i++) {
        double diff = (double)got[i] - want[i];
        if (!(fabs(diff) < 1e30) && bad < 0)
            bad = (int64_t)i;
        error += diff * diff;
        norm += (double)want[i] * want[i];
    }
    double ratio = sqrt(error / (norm > 0 ? norm : 1));
    CHECK(ratio <= limit, "%s: relative error %.3g, at most %.3g; first unwritten element %lld",
          what, ratio, limit, (long long)bad);
    return ratio;
}
