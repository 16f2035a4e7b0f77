/* What the programs that test and time FP8 products share: random weights in blocks, as they are
 * stored and as the products read them, and their exact values. */
#pragma once

#include "kernels/cuda/gemm_fp8.h"
#include "tests/gpu/gemm_check.cuh"

#include <cuda_fp8.h>
#include <math.h>

typedef __nv_fp8_e4m3 fp8;

/* Weights (z, n, k) with scales (z, ceil(n / 128), k / 128). */
struct fp8_matrix {
    int64_t z, n, k, scale_rows, scale_cols;
    fp8 *data;     /* reordered: what is multiplied */
    float *scales; /* of both signs of size, a factor of 16 apart */
    float *exact;  /* value times scale; NULL when not wanted */
};

static __global__ void fp8_fill_kernel(fp8 *data, int64_t n, uint64_t seed)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        float v = hash_normal(seed, (uint64_t)i);
        /* Every code but NaN appears, subnormal ones and the largest among them. */
        uint32_t r = (uint32_t)(hash_normal(seed + 77, (uint64_t)i) * 1e6f);
        data[i] = (fp8)(v * (r % 16 == 0 ? 0.01f : r % 16 == 1 ? 100.0f : 64.0f));
    }
}

static __global__ void fp8_scale_kernel(float *scales, int64_t n, uint64_t seed, float scale)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        scales[i] = scale / 64 * exp2f(hash_normal(seed, (uint64_t)i));
}

static __global__ void fp8_exact_kernel(struct fp8_matrix m)
{
    int64_t total = m.z * m.n * m.k;

    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < total;
         i += (int64_t)gridDim.x * blockDim.x) {
        int64_t z = i / (m.n * m.k), r = i / m.k % m.n, k = i % m.k;
        m.exact[i] =
            (float)m.data[i] * m.scales[(z * m.scale_rows + r / 128) * m.scale_cols + k / 128];
    }
}

static inline struct fp8_matrix random_fp8(int64_t z, int64_t n, int64_t k, float scale,
                                           bool with_exact)
{
    struct fp8_matrix m = {z, n, k, (n + 127) / 128, k / 128, nullptr, nullptr, nullptr};
    int64_t total = z * n * k, scales = z * m.scale_rows * m.scale_cols;

    if (total == 0)
        return m;
    CHECK(cudaMalloc(&m.data, (size_t)total));
    CHECK(cudaMalloc(&m.scales, (size_t)scales * sizeof(float)));
    fp8_fill_kernel<<<1024, 256>>>(m.data, total, next_seed()++);
    fp8_scale_kernel<<<64, 256>>>(m.scales, scales, next_seed()++, scale);
    if (with_exact) {
        CHECK(cudaMalloc(&m.exact, (size_t)total * sizeof(float)));
        fp8_exact_kernel<<<1024, 256>>>(m);
    }
    CHECK(cudaGetLastError());
    if (fp8_reorder(m.data, total, nullptr))
        exit(printf("fp8_reorder failed\n"));
    CHECK(cudaDeviceSynchronize());
    return m;
}

static inline void free_fp8(struct fp8_matrix *m)
{
    CHECK(cudaFree(m->data));
    CHECK(cudaFree(m->scales));
    CHECK(cudaFree(m->exact));
}
