/* Tensors in device memory, and how weights get there. Threads that upload copy on their own
 * streams, so that several can at once, and wait for their copy. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/gemm_fp8.h"
#include "kernels/cuda/moe_int4.h"
#include "kernels/random_fill.h"
extern "C" {
#include "kernels/widen.h"
}

#include <algorithm>
#include <cuda_fp8.h>
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

/* Scales of an FP8 weight: of all matrices together. */
static int64_t count_scales(const struct tensor *t)
{
    int64_t rows = t->shape[t->rank - 2], columns = t->shape[t->rank - 1];
    int64_t matrices = tensor_elements(t) / (rows * columns);

    return matrices * ((rows + FP8_BLOCK - 1) / FP8_BLOCK) * (columns / FP8_BLOCK);
}

static int alloc_fp8(struct cuda_backend *cu, struct tensor *dst, struct tensor t,
                     struct error *err)
{
    ASSERT(t.rank >= 2 && t.shape[t.rank - 1] % FP8_BLOCK == 0 && t.shape[t.rank - 2] % 8 == 0);
    t.scales = (float *)cuda_take(cu, (size_t)count_scales(&t) * sizeof(float), false,
                                  "a tensor's scales", err);
    if (!t.scales)
        return -1;
    if (take(cu, dst, t, false, err)) {
        cudaFree(t.scales);
        return -1;
    }
    cu->has_fp8 = 1;
    return 0;
}

static int64_t count_groups(const struct tensor *t)
{
    return tensor_elements(t) / I4_GROUP;
}

static int alloc_int4(struct cuda_backend *cu, struct tensor *dst, struct tensor t,
                      struct error *err)
{
    static_assert((int)I4_GROUP == (int)INT4_GROUP, "the kernels' groups are the tensors'");
    ASSERT(t.rank == 3 && t.shape[2] % 128 == 0 && t.shape[1] % 8 == 0);
    t.group_scales = (uint16_t *)cuda_take(cu, (size_t)count_groups(&t) * sizeof(uint16_t), false,
                                           "a tensor's scales", err);
    if (!t.group_scales)
        return -1;
    t.data = cuda_take(cu, tensor_bytes(&t) + INT4_SLACK, false, "a tensor", err);
    if (!t.data) {
        cudaFree(t.group_scales);
        return -1;
    }
    *dst = t;
    cu->has_int4 = 1;
    return 0;
}

int cuda_alloc_weight(struct backend *be, struct tensor *dst, enum weight_use use,
                      enum dtype file_dtype, int rank, const int64_t *shape, struct error *err)
{
    if (file_dtype == DTYPE_F8_E4M3)
        return alloc_fp8(cuda_backend(be), dst, shaped(DTYPE_F8_E4M3, rank, shape), err);
    if (file_dtype == DTYPE_I4)
        return alloc_int4(cuda_backend(be), dst, shaped(DTYPE_I4, rank, shape), err);
    if (file_dtype != DTYPE_F32 && file_dtype != DTYPE_BF16 && file_dtype != DTYPE_F16)
        return error_set(err,
                         "the CUDA backend takes weights in F32, BF16, F16, F8_E4M3 or I4 only");
    return take(cuda_backend(be), dst,
                shaped(use == WEIGHT_EXACT ? DTYPE_F32 : DTYPE_BF16, rank, shape), false, err);
}

void cuda_download(struct backend *be, void *host, const struct tensor *src)
{
    struct cuda_backend *cu = cuda_backend(be);

    cuda_settle(cu);
    CUDA_CHECK(cu, cudaStreamSynchronize(cu->stream));
    CUDA_CHECK(cu, cudaMemcpy(host, src->data, tensor_bytes(src), cudaMemcpyDeviceToHost));
}

void cuda_release(struct backend *be, struct tensor *t)
{
    cuda_settle(cuda_backend(be));
    if (t->data)
        CUDA_CHECK(cuda_backend(be), cudaFree(t->data));
    if (t->scales)
        CUDA_CHECK(cuda_backend(be), cudaFree(t->scales));
    if (t->group_scales)
        CUDA_CHECK(cuda_backend(be), cudaFree(t->group_scales));
    t->data = NULL;
    t->scales = NULL;
    t->group_scales = NULL;
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

/* Whole rows of FP8 or INT4, which are put in the order of the products once they are there. */
static int upload_rows(struct cuda_backend *cu, char *dst, const struct tensor *host,
                       struct error *err)
{
    if (copy_in(cu, dst, host->data, tensor_bytes(host), err))
        return -1;
    cuda_check_launch(cu,
                      (host->dtype == DTYPE_I4 ? int4_reorder : fp8_reorder)(
                          dst, tensor_elements(host), cudaStreamPerThread),
                      "a weight's order");
    CUDA_CHECK(cu, cudaStreamSynchronize(cudaStreamPerThread));
    return cuda_report(cu, err);
}

int cuda_upload(struct backend *be, struct tensor *dst, int64_t first, const struct tensor *host,
                struct error *err)
{
    struct cuda_backend *cu = cuda_backend(be);

    ASSERT(first >= 0 && first + tensor_elements(host) <= tensor_elements(dst));
    ASSERT(dst->dtype == DTYPE_BF16 || dst->dtype == DTYPE_F32 || dst->dtype == host->dtype);
    if (dst->dtype == DTYPE_F8_E4M3 || dst->dtype == DTYPE_I4)
        return upload_rows(cu, (char *)dst->data + dtype_bytes(dst->dtype, (uint64_t)first), host,
                           err);
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

/* Values of deviation 64, which the scale makes `scale`. */
__global__ void fill_fp8(__nv_fp8_e4m3 *out, int64_t n, float *scales, int64_t n_scales,
                         uint64_t seed, float scale)
{
    int64_t first = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;

    for (int64_t i = first; i < n; i += (int64_t)gridDim.x * blockDim.x)
        out[i] = (__nv_fp8_e4m3)(random_fill_at(seed, (uint64_t)i) * 64);
    for (int64_t i = first; i < n_scales; i += (int64_t)gridDim.x * blockDim.x)
        scales[i] = scale / 64;
}

/* Numbers of deviation 2.7, which the scale makes `scale`. */
__global__ void fill_int4(uint8_t *out, int64_t bytes, bf16 *scales, int64_t n_scales,
                          uint64_t seed, float scale)
{
    int64_t first = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    int64_t step = (int64_t)gridDim.x * blockDim.x;

    for (int64_t i = first; i < bytes; i += step) {
        int low = __float2int_rn(random_fill_at(seed, 2 * (uint64_t)i) * 2.7f);
        int high = __float2int_rn(random_fill_at(seed, 2 * (uint64_t)i + 1) * 2.7f);
        out[i] = (uint8_t)(min(max(low, -8), 7) + 8 + (min(max(high, -8), 7) + 8) * 16);
    }
    for (int64_t i = first; i < n_scales; i += step)
        scales[i] = (bf16)(scale / 2.7f);
}

int cuda_fill_random(struct backend *be, struct tensor *dst, uint64_t seed, float scale,
                     struct error *err)
{
    struct cuda_backend *cu = cuda_backend(be);
    int64_t n = tensor_elements(dst), blocks = (n + FILL_THREADS - 1) / FILL_THREADS;
    unsigned grid = (unsigned)(blocks < cu->sms * 8 ? blocks : cu->sms * 8);

    if (dst->dtype == DTYPE_BF16)
        fill<<<grid, FILL_THREADS, 0, cu->stream>>>(cuda_bf16(dst), n, seed, scale);
    else if (dst->dtype == DTYPE_F8_E4M3)
        fill_fp8<<<grid, FILL_THREADS, 0, cu->stream>>>((__nv_fp8_e4m3 *)dst->data, n, dst->scales,
                                                        count_scales(dst), seed, scale);
    else if (dst->dtype == DTYPE_I4)
        fill_int4<<<grid, FILL_THREADS, 0, cu->stream>>>(
            (uint8_t *)dst->data, n / 2, (bf16 *)dst->group_scales, count_groups(dst), seed, scale);
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
