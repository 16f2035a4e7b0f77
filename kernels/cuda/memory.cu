/* Tensors in device memory, and how weights get there. Threads that upload copy on their own
 * streams, so that several can at once, and wait for their copy. */
#include "kernels/cuda/backend.cuh"
#include "kernels/random_fill.h"
extern "C" {
#include "kernels/widen.h"
}

#include <algorithm>
#include <stdlib.h>
#include <string.h>

enum { FILL_THREADS = 256, NARROW_ELEMENTS = 1 << 20 };

void cuda_memory(struct backend *be, size_t *free_bytes, size_t *total_bytes)
{
    *free_bytes = *total_bytes = 0;
    CUDA_CHECK(cuda_backend(be), cudaMemGetInfo(free_bytes, total_bytes));
}

static struct tensor shaped(enum dtype dtype, int rank, const int64_t *shape)
{
    struct tensor t = {};

    ASSERT(rank > 0 && rank <= TENSOR_MAX_RANK);
    t.dtype = dtype;
    t.rank = rank;
    for (int i = 0; i < rank; i++)
        t.shape[i] = shape[i];
    return t;
}

static int take(struct cuda_backend *cu, struct tensor *dst, struct tensor t, bool zero,
                struct error *err)
{
    t.data = cuda_take(cu, tensor_bytes(&t), zero, "a tensor", err);
    if (!t.data)
        return -1;
    *dst = t;
    return 0;
}

int cuda_alloc(struct backend *be, struct tensor *dst, enum dtype dtype, int rank,
               const int64_t *shape, struct error *err)
{
    return take(cuda_backend(be), dst, shaped(dtype, rank, shape), true, err);
}

int cuda_alloc_weight(struct backend *be, struct tensor *dst, enum weight_use use,
                      enum dtype file_dtype, int rank, const int64_t *shape, struct error *err)
{
    if (file_dtype != DTYPE_F32 && file_dtype != DTYPE_BF16 && file_dtype != DTYPE_F16)
        return error_set(err, "the CUDA backend takes weights in F32, BF16 or F16 only");
    return take(cuda_backend(be), dst,
                shaped(use == WEIGHT_MATRIX ? DTYPE_BF16 : DTYPE_F32, rank, shape), false, err);
}

void cuda_download(struct backend *be, void *host, const struct tensor *src)
{
    struct cuda_backend *cu = cuda_backend(be);

    CUDA_CHECK(cu, cudaStreamSynchronize(cu->stream));
    CUDA_CHECK(cu, cudaMemcpy(host, src->data, tensor_bytes(src), cudaMemcpyDeviceToHost));
}

void cuda_release(struct backend *be, struct tensor *t)
{
    if (t->data)
        CUDA_CHECK(cuda_backend(be), cudaFree(t->data));
    t->data = NULL;
}

static int copy_in(struct cuda_backend *cu, void *dst, const void *src, size_t bytes,
                   struct error *err)
{
    if (CUDA_CHECK(cu, cudaSetDevice(cu->device)) ||
        CUDA_CHECK(cu,
                   cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, cudaStreamPerThread)) ||
        CUDA_CHECK(cu, cudaStreamSynchronize(cudaStreamPerThread)))
        return cuda_report(cu, err);
    return 0;
}

/* To the nearest bf16, to even when two are equally near. */
static uint16_t narrow(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    if (value != value)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Host elements of any float dtype, converted on the host, a block at a time. */
static int upload_converted(struct cuda_backend *cu, struct tensor *dst, int64_t first,
                            const struct tensor *host, struct error *err)
{
    const size_t from = dtype_size(host->dtype), to = dtype_size(dst->dtype);
    float *wide = (float *)mem_alloc(NARROW_ELEMENTS * sizeof(float));
    uint16_t *narrowed = (uint16_t *)mem_alloc(NARROW_ELEMENTS * sizeof(uint16_t));
    int64_t total = tensor_elements(host);
    int rc = 0;

    for (int64_t at = 0; at < total && rc == 0; at += NARROW_ELEMENTS) {
        int64_t n = std::min<int64_t>(total - at, NARROW_ELEMENTS);
        widen_to_f32(wide, (const char *)host->data + (size_t)at * from, host->dtype, n);
        for (int64_t i = 0; dst->dtype == DTYPE_BF16 && i < n; i++)
            narrowed[i] = narrow(wide[i]);
        rc = copy_in(cu, (char *)dst->data + (size_t)(first + at) * to,
                     dst->dtype == DTYPE_BF16 ? (void *)narrowed : (void *)wide, (size_t)n * to,
                     err);
    }
    free(wide);
    free(narrowed);
    return rc;
}

int cuda_upload(struct backend *be, struct tensor *dst, int64_t first, const struct tensor *host,
                struct error *err)
{
    struct cuda_backend *cu = cuda_backend(be);

    ASSERT(first >= 0 && first + tensor_elements(host) <= tensor_elements(dst));
    ASSERT(dst->dtype == DTYPE_BF16 || dst->dtype == DTYPE_F32);
    if (host->dtype == dst->dtype)
        return copy_in(cu, (char *)dst->data + (size_t)first * dtype_size(dst->dtype), host->data,
                       tensor_bytes(host), err);
    return upload_converted(cu, dst, first, host, err);
}

template <class T> __global__ void fill(T *out, int64_t n, uint64_t seed, float scale)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        out[i] = (T)(random_fill_at(seed, (uint64_t)i) * scale);
}

int cuda_fill_random(struct backend *be, struct tensor *dst, uint64_t seed, float scale,
                     struct error *err)
{
    struct cuda_backend *cu = cuda_backend(be);
    int64_t n = tensor_elements(dst), blocks = (n + FILL_THREADS - 1) / FILL_THREADS;
    unsigned grid = (unsigned)(blocks < cu->sms * 8 ? blocks : cu->sms * 8);

    if (dst->dtype == DTYPE_BF16)
        fill<<<grid, FILL_THREADS, 0, cu->stream>>>(cuda_bf16(dst), n, seed, scale);
    else
        fill<<<grid, FILL_THREADS, 0, cu->stream>>>(cuda_f32(dst), n, seed, scale);
    if (CUDA_CHECK(cu, cudaGetLastError()))
        return cuda_report(cu, err);
    return 0;
}

void *cuda_stage_alloc(struct backend *be, size_t bytes)
{
    void *stage = NULL;

    if (cudaSetDevice(cuda_backend(be)->device) == cudaSuccess &&
        cudaHostAlloc(&stage, bytes, cudaHostAllocDefault) == cudaSuccess)
        return stage;
    cudaGetLastError();
    return NULL;
}

void cuda_stage_free(struct backend *be, void *stage)
{
    CUDA_CHECK(cuda_backend(be), cudaFreeHost(stage));
}
