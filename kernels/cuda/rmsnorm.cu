/* Root-mean-square normalisation (Zhang and Sennrich 2019): a block a row, which stays in
 * registers between the sum and the product. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/gemm_fp8_internal.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, VECTOR = 8, MAX_VECTORS = 8 };

/* 8 values, loaded and stored at once. */
struct alignas(16) values {
    bf16 v[VECTOR];
};

/* Quantises v, the values at and after `at` of all rows; 16 threads have a block of 128. The order
 * is fp8_reorder's: of 16 values, a thread with the first 8 and its neighbour with the others give
 * each other what they need for two words each. */
static __device__ __forceinline__ void quantise(const struct fp8_rows &to, const values &v,
                                                int64_t at, bool inside, bool ue8m0)
{
    bool odd = threadIdx.x % 2;
    float x[VECTOR], largest = 0.0f;

    for (int j = 0; j < VECTOR; j++) {
        x[j] = inside ? __bfloat162float(v.v[j]) : 0.0f;
        largest = fmaxf(largest, fabsf(x[j]));
    }
    for (int d = 8; d; d /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
    float scale = fp8_scale_of(largest, ue8m0), by = 1.0f / scale;
    uint32_t low = fp8_pack(x[0] * by, x[1] * by, x[2] * by, x[3] * by);
    uint32_t high = fp8_pack(x[4] * by, x[5] * by, x[6] * by, x[7] * by);
    uint32_t other = __shfl_xor_sync(~0u, odd ? low : high, 1);
    uint32_t first = odd ? other : low, second = odd ? high : other;
    if (!inside)
        return;
    uint32_t *word = (uint32_t *)(to.values + at / FP8_BLOCK * FP8_BLOCK);
    word += (odd ? 16 : 0) + threadIdx.x % 16 / 2;
    word[0] = __byte_perm(first, second, 0x5140);
    word[8] = __byte_perm(first, second, 0x7362);
    if (threadIdx.x % 16 == 0)
        to.scales[at / FP8_BLOCK] = scale;
}

/* x, out (T, n); weight (n) float; `to`: out's values in FP8 too, or values NULL. VECTORS * THREADS
 * * 8 >= n, a multiple of 8. */
template <int VECTORS>
static __global__ void __launch_bounds__(THREADS)
    rmsnorm_kernel(bf16 *out, const bf16 *x, const float *weight, float eps, int n,
                   struct fp8_rows to, bool ue8m0)
{
    __shared__ float partial[WARPS];
    const int64_t row = (int64_t)blockIdx.x * n;
    values in[VECTORS];
    float4 w[VECTORS][2];
    float sum = 0;

    launch_next();
#pragma unroll
    for (int i = 0; i < VECTORS; i++) { /* while the kernel before this one still runs */
        int at = (i * THREADS + threadIdx.x) * VECTOR;
        if (at < n) {
            w[i][0] = *(const float4 *)(weight + at);
            w[i][1] = *(const float4 *)(weight + at + 4);
        }
    }
    launch_wait();
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        int at = (i * THREADS + threadIdx.x) * VECTOR;
        if (at < n)
            in[i] = *(const values *)(x + row + at);
        for (int j = 0; j < VECTOR; j++) {
            float value = at < n ? __bfloat162float(in[i].v[j]) : 0.0f;
            sum += value * value;
        }
    }
    for (int d = 16; d; d /= 2)
        sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < WARPS; w++)
        sum += partial[w];
    const float inverse = 1.0f / sqrtf(sum / (float)n + eps);

#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        int at = (i * THREADS + threadIdx.x) * VECTOR;
        const float4 a = w[i][0], b = w[i][1];
        const float factors[VECTOR] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        values result;
        for (int j = 0; j < VECTOR; j++)
            result.v[j] =
                __float2bfloat16_rn(factors[j] * (__bfloat162float(in[i].v[j]) * inverse));
        if (at < n)
            *(values *)(out + row + at) = result;
        if (to.values)
            quantise(to, result, row + at, at < n, ue8m0);
    }
}

static void rmsnorm(struct cuda_backend *cu, struct tensor out, struct tensor x,
                    struct tensor weight, float eps)
{
    int rows = (int)x.shape[0], n = (int)cuda_last_dim(&x);
    int vectors = (n + THREADS * VECTOR - 1) / (THREADS * VECTOR);
    void (*kernel)(bf16 *, const bf16 *, const float *, float, int, struct fp8_rows, bool) =
        vectors <= 1   ? rmsnorm_kernel<1>
        : vectors <= 2 ? rmsnorm_kernel<2>
        : vectors <= 4 ? rmsnorm_kernel<4>
                       : rmsnorm_kernel<MAX_VECTORS>;
    struct fp8_rows to = {};

    ASSERT(n % VECTOR == 0 && vectors <= MAX_VECTORS && tensor_elements(&weight) == n);
    ASSERT(out.shape[0] == rows && cuda_last_dim(&out) == n);
    if (rows == 0)
        return;
    if (cu->has_fp8 && rows > FP8_EXACT_ROWS && !cu->batch_invariant && n % FP8_BLOCK == 0 &&
        out.data != x.data && fp8_rows_bytes(rows, n) <= cu->fp8_work_bytes) {
        to = fp8_rows_at(cu->fp8_work, rows, n);
        cu->quantised = out;
    }
    CUDA_CHECK(cu,
               launch_early(kernel, dim3(rows), dim3(THREADS), 0, cu->stream, cuda_bf16(&out),
                            cuda_bf16(&x), cuda_f32(&weight), eps, n, to, cu->shapes.ue8m0 != 0));
}

void cuda_rmsnorm(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                  float eps)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct cuda_pending *wait = &cu->pending;

    cuda_settle(cu);
    cu->quantised = {};
    if (!gemm_linear_norms((int32_t)x.shape[0], (int32_t)cuda_last_dim(&x), cu->batch_invariant)) {
        rmsnorm(cu, out, x, weight, eps);
        return;
    }
    wait->norm = 1;
    wait->h = out;
    wait->x = x;
    wait->weight = weight;
    wait->eps = eps;
}

void cuda_settle(struct cuda_backend *cu)
{
    struct cuda_pending *wait = &cu->pending;
    int32_t router = wait->router;

    if (wait->choice) {
        wait->choice = 0;
        cuda_gate(cu);
        return;
    }
    if (!wait->norm)
        return;
    wait->norm = wait->router = 0;
    rmsnorm(cu, wait->h, wait->x, wait->weight, wait->eps);
    if (router)
        cuda_router(cu, wait->h, &wait->product);
}
