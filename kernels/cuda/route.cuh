/* The choice of a row's experts by a warp. */
#pragma once

#include "kernels/cuda/route.h"

#include <limits.h>
#include <math.h>

/* Unsigned integers in the order of the floats. */
static __device__ __forceinline__ uint32_t ordered(float x)
{
    uint32_t bits = __float_as_uint(x + 0.0f); /* -0 and 0 are equal */

    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

static __device__ __forceinline__ float unordered(uint32_t key)
{
    return __uint_as_float(key & 0x80000000 ? key & 0x7fffffff : ~key);
}

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int d = 16; d; d /= 2)
        x += __shfl_xor_sync(~0u, x, d);
    return x;
}

/* Index of the largest key, the lowest among equals, for every lane; it is taken away. Lane l has
 * those of 32 i + l; 0 stands for none. */
template <int EACH> __device__ __forceinline__ int take_largest(uint32_t (&keys)[EACH])
{
    const int lane = threadIdx.x % 32;
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
    const int lane = threadIdx.x % 32;
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
static __device__ float group_score(const float *choice, int n, enum router_scoring scoring)
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
    const int lane = threadIdx.x % 32, size = c.experts / c.groups;
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

/* A lane's part of a row's choice: expert number `lane` of those chosen; id -1: none. */
struct chosen {
    int id;
    float weight;
};

/* A row's choice from its logits (experts). `shared`: room for 32 EACH floats. `there` 0: the row
 * pads a graph and gets no experts. EACH * 32 is at least the number of experts. picked(n, expert)
 * is called with each as soon as it is known. A warp. */
template <int EACH, class Picked>
__device__ struct chosen choose(const float *logits, const float *bias, float *shared, bool there,
                                const router_config &c, Picked picked)
{
    const int lane = threadIdx.x % 32;
    float scores[EACH], choice[EACH], sum = 0, weight = 0;
    uint32_t keys[EACH];
    int id = -1;

    if (there) {
        score(scores, logits, c);
        /* The bias steers the choice only; weights are the scores themselves. */
#pragma unroll
        for (int i = 0; i < EACH; i++)
            choice[i] =
                bias && 32 * i + lane < c.experts ? scores[i] + bias[32 * i + lane] : scores[i];
        if (c.groups > 1)
            limit_to_groups(choice, shared, c);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            keys[i] = 32 * i + lane < c.experts ? ordered(choice[i]) : 0;
        for (int n = 0; n < c.top_k; n++) {
            int chosen = take_largest(keys);
            float mine = 0;
            picked(n, chosen);
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
    return {id, weight};
}

template <int EACH>
__device__ struct chosen choose(const float *logits, const float *bias, float *shared, bool there,
                                const router_config &c)
{
    return choose<EACH>(logits, bias, shared, there, c, [](int, int) {});
}
