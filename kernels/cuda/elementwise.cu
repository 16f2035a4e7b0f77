/* What goes through rows element by element: sums, rows put side by side, queries scaled by
 * position, and the experts that give their input back. 8 values a thread and turn. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

enum { THREADS = 128, VECTOR = 8 };

struct alignas(16) values {
    bf16 v[VECTOR];
};

/* sum += weight * x, for one `values`. */
static __device__ __forceinline__ void add_to(bf16 *sum, const bf16 *x, float weight)
{
    values a = *(const values *)sum, b = *(const values *)x;

    for (int j = 0; j < VECTOR; j++)
        a.v[j] =
            __float2bfloat16_rn(fmaf(weight, __bfloat162float(b.v[j]), __bfloat162float(a.v[j])));
    *(values *)sum = a;
}

static __global__ void __launch_bounds__(THREADS) add_kernel(bf16 *sum, const bf16 *x, int64_t n)
{
    int64_t i = (blockIdx.x * (int64_t)THREADS + threadIdx.x) * VECTOR;

    launch_wait();
    launch_next();
    if (i < n)
        add_to(sum + i, x + i, 1);
}

/* out (T, m + n), a (T, m), b (T, n): a block a row. */
static __global__ void __launch_bounds__(THREADS)
    concat_kernel(bf16 *out, const bf16 *a, const bf16 *b, int m, int n)
{
    const int64_t row = blockIdx.x;

    launch_wait();
    launch_next();
    for (int i = threadIdx.x * VECTOR; i < m + n; i += THREADS * VECTOR)
        *(values *)(out + row * (m + n) + i) =
            *(const values *)(i < m ? a + row * m + i : b + row * n + i - m);
}

/* x (T, n): a block a row. */
static __global__ void __launch_bounds__(THREADS)
    scale_kernel(bf16 *x, const int32_t *positions, float beta, int32_t every, int n)
{
    launch_wait();
    launch_next();
    const int32_t times = positions[blockIdx.x] / every;
    const float scale = 1 + beta * logf(1 + (float)times);
    bf16 *row = x + (int64_t)blockIdx.x * n;

    if (times <= 0)
        return;
    for (int i = threadIdx.x * VECTOR; i < n; i += THREADS * VECTOR) {
        values v = *(const values *)(row + i);
        for (int j = 0; j < VECTOR; j++)
            v.v[j] = __float2bfloat16_rn(__bfloat162float(v.v[j]) * scale);
        *(values *)(row + i) = v;
    }
}

/* out, x (T, d); ids, weights (T, top_k), top_k at most 32: a block a row. */
static __global__ void __launch_bounds__(THREADS)
    identity_kernel(bf16 *out, const bf16 *x, int32_t *ids, const float *weights, int experts,
                    int top_k, int d)
{
    __shared__ float shared;
    const int64_t row = blockIdx.x;

    launch_wait();
    launch_next();
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int64_t i = row * top_k; i < (row + 1) * top_k; i++) {
            if (ids[i] < experts)
                continue;
            sum += weights[i];
            ids[i] = -1;
        }
        shared = sum;
    }
    __syncthreads();
    const float weight = shared;
    for (int i = threadIdx.x * VECTOR; i < d && weight != 0; i += THREADS * VECTOR)
        add_to(out + row * d + i, x + row * d + i, weight);
}

void cuda_add(struct backend *be, struct tensor sum, struct tensor x)
{
    struct cuda_backend *cu = cuda_backend(be);
    int64_t n = tensor_elements(&x), blocks = (n / VECTOR + THREADS - 1) / THREADS;

    cuda_settle(cu);
    ASSERT(tensor_elements(&sum) == n && n % VECTOR == 0);
    if (n > 0)
        CUDA_CHECK(cu, launch_early(add_kernel, dim3((unsigned)blocks), dim3(THREADS), 0,
                                    cu->stream, cuda_bf16(&sum), cuda_bf16(&x), n));
}

void cuda_concat(struct backend *be, struct tensor out, struct tensor a, struct tensor b)
{
    struct cuda_backend *cu = cuda_backend(be);
    int rows = (int)a.shape[0], m = (int)cuda_last_dim(&a), n = (int)cuda_last_dim(&b);

    cuda_settle(cu);
    ASSERT(b.shape[0] == rows && out.shape[0] == rows && cuda_last_dim(&out) == m + n);
    ASSERT(m % VECTOR == 0 && n % VECTOR == 0);
    if (rows > 0)
        CUDA_CHECK(cu, launch_early(concat_kernel, dim3(rows), dim3(THREADS), 0, cu->stream,
                                    cuda_bf16(&out), cuda_bf16(&a), cuda_bf16(&b), m, n));
}

void cuda_scale_by_position(struct backend *be, struct tensor x, float beta, int32_t every)
{
    struct cuda_backend *cu = cuda_backend(be);
    int n = (int)cuda_last_dim(&x), rows = cu->step.rows;

    cuda_settle(cu);
    ASSERT(x.shape[0] == rows && n % VECTOR == 0 && every > 0);
    if (rows > 0)
        CUDA_CHECK(cu, launch_early(scale_kernel, dim3(rows), dim3(THREADS), 0, cu->stream,
                                    cuda_bf16(&x), cu->step.image.positions, beta, every, n));
}

void cuda_identity_experts(struct backend *be, struct tensor out, struct tensor x,
                           struct tensor ids, struct tensor weights, int32_t experts)
{
    struct cuda_backend *cu = cuda_backend(be);
    int rows = (int)x.shape[0], d = (int)cuda_last_dim(&x), top_k = (int)cuda_last_dim(&ids);

    cuda_settle(cu);
    ASSERT(ids.dtype == DTYPE_I32 && ids.shape[0] == rows && d % VECTOR == 0);
    ASSERT(tensor_elements(&out) == tensor_elements(&x) && cuda_last_dim(&weights) == top_k);
    if (rows > 0)
        CUDA_CHECK(cu, launch_early(identity_kernel, dim3(rows), dim3(THREADS), 0, cu->stream,
                                    cuda_bf16(&out), cuda_bf16(&x), (int32_t *)ids.data,
                                    cuda_f32(&weights), experts, top_k, d));
}
