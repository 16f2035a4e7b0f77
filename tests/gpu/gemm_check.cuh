/* What the programs that test and time matrix products share: random matrices on the device, plain
 * float reference products, comparison, timing by graph. */
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

typedef __nv_bfloat16 bf16;

#define CHECK(call)                                                                                \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

__device__ inline float hash_normal(uint64_t seed, uint64_t i)
{
    float sum = 0;

    for (int r = 0; r < 4; r++) { /* four uniforms: near enough to normal, variance 1 */
        uint64_t z = (i * 4 + r + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        sum += (float)((z ^ (z >> 31)) >> 40) / 16777216.0f - 0.5f;
    }
    return sum * 1.7320508f;
}

template <class T> __global__ void fill_kernel(T *p, int64_t n, uint64_t seed, float scale)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        p[i] = (T)(hash_normal(seed, (uint64_t)i) * scale);
}

inline uint64_t &next_seed()
{
    static uint64_t seed = 1;
    return seed;
}

/* Random values; memory of exactly that size, so a sanitizer sees what reaches outside. */
template <class T> T *random_matrix(int64_t n, float scale)
{
    T *p;

    CHECK(cudaMalloc(&p, (size_t)std::max<int64_t>(n, 1) * sizeof(T)));
    fill_kernel<<<1024, 256>>>(p, n, next_seed()++, scale);
    CHECK(cudaGetLastError());
    return p;
}

template <class T> T *poisoned(int64_t n)
{
    T *p;

    CHECK(cudaMalloc(&p, (size_t)n * sizeof(T)));
    CHECK(cudaMemset(p, 0xff, (size_t)n * sizeof(T))); /* NaN in both types */
    return p;
}

/* out[r * out_stride + j] = sum over k of x[r * x_stride + k] * w[j * w_row + k * w_col]. */
struct reference {
    const bf16 *x;
    const bf16 *w;
    float *out;
    int64_t x_stride, w_row, w_col, out_stride;
    int m, n, k;
};

static __global__ void reference_kernel(reference a)
{
    int j = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 8 + threadIdx.y;
    float sum = 0;

    if (j >= a.n || r >= a.m)
        return;
    for (int k = 0; k < a.k; k++)
        sum += (float)a.x[r * a.x_stride + k] * (float)a.w[j * a.w_row + k * a.w_col];
    a.out[r * a.out_stride + j] = sum;
}

inline void reference_product(const reference &a)
{
    reference_kernel<<<dim3((a.n + 31) / 32, (a.m + 7) / 8), dim3(32, 8)>>>(a);
    CHECK(cudaGetLastError());
}

template <class T> std::vector<float> to_host(const T *p, int64_t n)
{
    std::vector<T> raw((size_t)n);
    std::vector<float> out((size_t)n);

    CHECK(cudaMemcpy(raw.data(), p, (size_t)n * sizeof(T), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < (size_t)n; i++)
        out[i] = (float)raw[i];
    return out;
}

/* Norm of the difference over the norm of the reference; prints the first elements that are NaN or
 * far off. Gaps: columns n .. stride - 1 must still be poison. */
template <class T>
bool compare(const char *what, const T *got, const float *want, int64_t rows, int64_t n,
             int64_t stride, double tolerance)
{
    auto g = to_host(got, (rows - 1) * stride + n);
    auto w = to_host(want, rows * n);
    double diff = 0, norm = 0;
    int shown = 0, bad = 0;

    for (int64_t r = 0; r < rows; r++) {
        for (int64_t j = 0; j < n; j++) {
            double a = g[r * stride + j], b = w[r * n + j];
            diff += (a - b) * (a - b);
            norm += b * b;
        }
        for (int64_t j = n; j < stride && r + 1 < rows; j++)
            bad += g[r * stride + j] == g[r * stride + j];
    }
    double error = sqrt(diff) / (sqrt(norm) + 1e-30);
    bool ok = error < tolerance && !bad;
    if (!ok) {
        printf("FAIL %s: error %.3e, %d gaps overwritten\n", what, error, bad);
        double scale = sqrt(norm / (double)(rows * n));
        for (int64_t r = 0; r < rows && shown < 8; r++)
            for (int64_t j = 0; j < n && shown < 8; j++)
                if (!(fabs(g[r * stride + j] - w[r * n + j]) < 0.05 * scale)) {
                    printf("   row %ld column %ld: %g, want %g\n", (long)r, (long)j,
                           g[r * stride + j], w[r * n + j]);
                    shown++;
                }
    }
    return ok;
}

/* Whether a call, whose status this is, was done; what runs after a fault would tell nothing. */
static inline bool succeeded(const char *what, int status)
{
    cudaError_t e = cudaDeviceSynchronize();

    if (!status && e == cudaSuccess)
        return true;
    printf("FAIL %s: status %d %s\n", what, status, cudaGetErrorString(e));
    if (e != cudaSuccess)
        exit(1);
    return false;
}

/* Milliseconds of one call: a graph of `calls`, median of 7 replays after 5. */
template <class F> double time_ms(int calls, F &&call)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t from, to;
    std::vector<float> times;

    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    call(stream, 0); /* module load, attributes */
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < calls; i++)
        call(stream, i);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < 12; i++) {
        float ms;
        CHECK(cudaEventRecord(from, stream));
        CHECK(cudaGraphLaunch(exec, stream));
        CHECK(cudaEventRecord(to, stream));
        CHECK(cudaStreamSynchronize(stream));
        CHECK(cudaEventElapsedTime(&ms, from, to));
        if (i >= 5)
            times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    CHECK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphDestroy(graph));
    CHECK(cudaEventDestroy(from));
    CHECK(cudaEventDestroy(to));
    CHECK(cudaStreamDestroy(stream));
    return times[times.size() / 2] / calls;
}
