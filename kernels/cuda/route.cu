/* Which experts a row goes to, and with what weights (DeepSeek-V2 section 2.2, V3 section 2.1.2);
 * kernels/cpu/route.c is the definition. Among equal scores the lowest index wins. A warp a row. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/ptx.cuh"

#include <limits.h>
#include <math.h>

enum { ROWS = 4 }; /* of a block */

namespace
{

/* Unsigned integers in the order of the floats. */
__device__ __forceinline__ uint32_t ordered(float x)
{
    uint32_t bits = __float_as_uint(x + 0.0f); /* -0 and 0 are equal */

    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

__device__ __forceinline__ float unordered(uint32_t key)
{
    return __uint_as_float(key & 0x80000000 ? key & 0x7fffffff : ~key);
}

__device__ __forceinline__ float warp_sum(float x)
{
    for (int d = 16; d; d /= 2)
        x += __shfl_xor_sync(~0u, x, d);
    return x;
}

/* Index of the largest key, the lowest among equals, for every lane; it is taken away. Lane l has
 * those of 32 i + l; 0 stands for none. */
template <int EACH> __device__ __forceinline__ int take_largest(uint32_t (&keys)[EACH])
{
    const int lane = threadIdx.x;
    uint32_t most = 0;
    int index = INT_MAX;

#pragma unroll
    for (int i = 0; i < EACH; i++)
        most = max(most, keys[i]);
    most = __reduce_max_sync(~0u, most);
#pragma unroll
    for (int i = EACH - 1; i >= 0; i--)
        if (keys[i] == most)
            index = 32 * i + lane;
    index = __reduce_min_sync(~0u, index);
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (index == 32 * i + lane)
            keys[i] = 0;
    return index;
}

/* scores[i] of expert 32 i + lane from its logit. */
template <int EACH>
__device__ __forceinline__ void score(float (&scores)[EACH], const float *logits,
                                      const router_config &c)
{
    const int lane = threadIdx.x;
    uint32_t most = 0;
    float sum = 0;

#pragma unroll
    for (int i = 0; i < EACH; i++) {
        scores[i] = 32 * i + lane < c.experts ? logits[32 * i + lane] : -INFINITY;
        most = max(most, ordered(scores[i]));
    }
    const float max = unordered(__reduce_max_sync(~0u, most));
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (c.scoring == ROUTER_SIGMOID) {
            scores[i] = 1.0f / (1.0f + expf(-scores[i]));
        } else {
            scores[i] = expf(scores[i] - max);
            sum += scores[i];
        }
    }
    if (c.scoring == ROUTER_SIGMOID)
        return;
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < EACH; i++)
        scores[i] /= sum;
}

/* How good a group of experts is: by its best one (softmax), or its best two (sigmoid). */
__device__ float group_score(const float *choice, int n, enum router_scoring scoring)
{
    float first = -INFINITY, second = -INFINITY;

    for (int i = 0; i < n; i++) {
        second = fmaxf(second, fminf(first, choice[i]));
        first = fmaxf(first, choice[i]);
    }
    return scoring == ROUTER_SOFTMAX || n == 1 ? first : first + second;
}

/* Masks the experts outside the best groups. `shared`: the row's choice, by expert. */
template <int EACH>
__device__ void limit_to_groups(float (&choice)[EACH], float *shared, const router_config &c)
{
    const int lane = threadIdx.x, size = c.experts / c.groups;
    const float masked = c.scoring == ROUTER_SOFTMAX ? 0.0f : -INFINITY;
    uint32_t keys[EACH], kept[EACH] = {};

#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (32 * i + lane < c.experts)
            shared[32 * i + lane] = choice[i];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int g = 32 * i + lane;
        keys[i] = g < c.groups ? ordered(group_score(shared + g * size, size, c.scoring)) : 0;
    }
    for (int n = 0; n < c.top_groups; n++) {
        int g = take_largest(keys);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            kept[i] |= (32 * i + lane) / size == g;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (!kept[i])
            choice[i] = masked;
}

/* ids, weights (rows, top_k); rows from *n_rows on pad a graph and get no experts. EACH * 32 is at
 * least the number of experts. */
template <int EACH>
__global__ void __launch_bounds__(32 * ROWS)
    route_kernel(int32_t *ids, float *weights, const float *logits, const float *bias,
                 const int32_t *n_rows, int rows, router_config c)
{
    __shared__ float shared[ROWS][32 * EACH];
    const int row = blockIdx.x * ROWS + threadIdx.y, lane = threadIdx.x;
    float scores[EACH], choice[EACH], sum = 0, weight = 0;
    uint32_t keys[EACH];
    int id = -1;

    launch_wait();
    launch_next();
    if (row >= rows)
        return;
    if (row < (n_rows ? *n_rows : rows)) {
        score(scores, logits + (int64_t)row * c.experts, c);
        /* The bias steers the choice only; weights are the scores themselves. */
#pragma unroll
        for (int i = 0; i < EACH; i++)
            choice[i] =
                bias && 32 * i + lane < c.experts ? scores[i] + bias[32 * i + lane] : scores[i];
        if (c.groups > 1)
            limit_to_groups(choice, shared[threadIdx.y], c);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            keys[i] = 32 * i + lane < c.experts ? ordered(choice[i]) : 0;
        for (int n = 0; n < c.top_k; n++) {
            int chosen = take_largest(keys);
            float mine = 0;
#pragma unroll
            for (int i = 0; i < EACH; i++)
                mine = chosen / 32 == i ? scores[i] : mine;
            mine = __shfl_sync(~0u, mine, chosen % 32);
            sum += mine;
            if (n == lane) {
                id = chosen;
                weight = mine;
            }
        }
        weight = (c.normalize ? weight / (sum + 1e-20f) : weight) * c.scale;
    }
    if (lane < c.top_k) {
        ids[(int64_t)row * c.top_k + lane] = id;
        weights[(int64_t)row * c.top_k + lane] = weight;
    }
}

} // namespace

void cuda_route(struct backend *be, struct tensor ids, struct tensor weights, struct tensor logits,
                struct tensor bias, const struct router_config *config)
{
    struct cuda_backend *cu = cuda_backend(be);
    int rows = (int)logits.shape[0], n = config->experts, k = config->top_k;

    ASSERT(n <= MOE_MAX_EXPERTS && k > 0 && k <= n && k <= 32 && cuda_last_dim(&logits) == n);
    ASSERT(config->groups <= 1 ||
           (n % config->groups == 0 && config->top_groups <= config->groups));
    ASSERT(ids.dtype == DTYPE_I32 && cuda_last_dim(&ids) == k && cuda_last_dim(&weights) == k);
    void (*kernel)(int32_t *, float *, const float *, const float *, const int32_t *, int,
                   router_config) = n <= 64    ? route_kernel<2>
                                    : n <= 256 ? route_kernel<8>
                                               : route_kernel<MOE_MAX_EXPERTS / 32>;
    const int32_t *n_rows = cu->capturing ? cu->step.image.n_rows : NULL;
    CUDA_CHECK(cu,
               launch_early(kernel, dim3((rows + ROWS - 1) / ROWS), dim3(32, ROWS), 0, cu->stream,
                            (int32_t *)ids.data, cuda_f32(&weights), cuda_f32(&logits),
                            bias.data ? cuda_f32(&bias) : NULL, n_rows, rows, *config));
}
