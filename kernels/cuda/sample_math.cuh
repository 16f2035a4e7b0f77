/* What the sampling kernels share: order of logits, noise, reductions over a block. */
#pragma once

#include "kernels/cuda/sample.cuh"
#include "kernels/philox.h"

#include <float.h>

#define SAMPLE_INFINITY __int_as_float(0x7f800000)

/* A logit that is not a number counts as -infinity, and +infinity as the largest float. */
static __device__ __forceinline__ float sample_clean(float logit)
{
    return isnan(logit) ? -SAMPLE_INFINITY : fminf(logit, FLT_MAX);
}

/* Unsigned integers in the order of the floats; -0 and 0 are one. */
static __device__ __forceinline__ uint32_t sample_ordered(float x)
{
    uint32_t bits = __float_as_uint(x + 0.0f);

    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

/* The larger logit, then the lower id, has the larger key. */
static __device__ __forceinline__ uint64_t sample_key(float logit, int32_t token)
{
    return (uint64_t)sample_ordered(logit) << 32 | (uint32_t)~token;
}

static __device__ __forceinline__ int32_t sample_key_token(uint64_t key)
{
    return (int32_t) ~(uint32_t)key;
}

struct sample_max {
    template <class T> __device__ T operator()(T a, T b) const
    {
        return a > b ? a : b;
    }
};

struct sample_sum {
    template <class T> __device__ T operator()(T a, T b) const
    {
        return a + b;
    }
};

template <class T, class Op> static __device__ T sample_warp(T x, Op op)
{
    for (int d = 16; d; d /= 2)
        x = op(x, __shfl_xor_sync(~0u, x, d));
    return x;
}

/* Of all threads of the block, for each of them; `scratch` has 32 entries. */
template <class T, class Op> static __device__ T sample_block(T x, Op op, T *scratch)
{
    const int warps = blockDim.x / 32;

    x = sample_warp(x, op);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = scratch[0];
    for (int w = 1; w < warps; w++)
        x = op(x, scratch[w]);
    return x;
}

/* gumbel(bits) to within 1e-4, at a tenth of the cost. With u near 1 the distance to 1 counts. */
static __device__ __forceinline__ float sample_noise(uint64_t bits)
{
    const uint32_t high = (uint32_t)(bits >> 20), edge = 1 << 16;
    float u = ((float)high + 0.5f) * 0x1p-32f, w = ((float)~high + 0.5f) * 0x1p-32f; /* 1 - u */

    if (high + edge < 2 * edge) { /* the other bits count: u is nearly 0 or 1 */
        u = ((float)bits + 0.5f) * 0x1p-52f;
        w = ((float)(((uint64_t)1 << 52) - 1 - bits) + 0.5f) * 0x1p-52f;
    }
    float log_u = w > 0.0625f ? -__logf(u)
                              : w * (1.0f + w * (0.5f + w * (1.0f / 3 + w * (0.25f + w * 0.2f))));
    return -__logf(log_u);
}

/* Calls visit(logit, token) for a row's clean logits, each on one thread of the block. Two loads
 * are under way at a time; one block has a processor to itself, so latency is what counts. */
template <class F>
static __device__ __forceinline__ void sample_each(const float *logits, int vocab, F visit)
{
    const int stride = 4 * blockDim.x;

    for (int i = 4 * threadIdx.x; i < vocab; i += 2 * stride) {
        const int second = i + stride;
        const float4 a = *(const float4 *)(logits + i);
        const float4 b =
            second < vocab ? *(const float4 *)(logits + second) : make_float4(0, 0, 0, 0);
        const float l[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (j < 4 || second < vocab)
                visit(sample_clean(l[j]), j < 4 ? i + j : second + j - 4);
    }
}

/* A draw: the token with the largest logit / temperature + noise, the lowest id among equals. */
struct sample_best {
    double score;
    int32_t token; /* -1: none */
};

static __device__ __forceinline__ sample_best sample_better(sample_best a, sample_best b)
{
    bool second = b.token >= 0 &&
                  (a.token < 0 || b.score > a.score || (b.score == a.score && b.token < a.token));

    return second ? b : a;
}

static __device__ __forceinline__ sample_best sample_best_of_warp(sample_best best)
{
    for (int d = 16; d; d /= 2) {
        sample_best other;
        other.score = __shfl_xor_sync(~0u, best.score, d);
        other.token = __shfl_xor_sync(~0u, best.token, d);
        best = sample_better(best, other);
    }
    return best;
}

static __device__ sample_best sample_best_of_block(sample_best best, sample_best *scratch)
{
    best = sample_best_of_warp(best);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = best;
    __syncthreads();
    best = scratch[0];
    for (int w = 1; w < (int)blockDim.x / 32; w++)
        best = sample_better(best, scratch[w]);
    return best;
}

static __device__ __forceinline__ float sample_rough_score(float logit, uint64_t bits,
                                                           const sample_row &row)
{
    return __fdividef(logit, row.temperature) + sample_noise(bits);
}

/* What a rough score must reach, when the best is `best`, for the exact one to be perhaps the best.
 * Not a number where floats overflow; then nothing is below it. */
static __device__ __forceinline__ float sample_rough_bar(float best)
{
    return best - (0.01f + 1e-6f * fabsf(best));
}

static __device__ __forceinline__ sample_best sample_exact(float logit, int32_t token,
                                                           const sample_row &row)
{
    double score = (double)logit / (double)row.temperature;

    return {score + gumbel(sampling_bits(row.seed, row.step, token)), token};
}

static __device__ __forceinline__ bool sample_adjusts(const sample_args &a, const sample_row &row)
{
    return row.target < 0 && ((row.flags & SAMPLE_ADJUSTS) || a.masks);
}

static __device__ __forceinline__ float *sample_adjusted(const sample_args &a,
                                                         const sample_row &row)
{
    return a.adjusted + (int64_t)row.place * a.vocab;
}

/* The logits that a row is drawn from. */
static __device__ __forceinline__ const float *sample_logits(const sample_args &a, int r)
{
    const sample_row &row = a.rows[r];

    return sample_adjusts(a, row) ? sample_adjusted(a, row) : a.logits + (int64_t)r * a.vocab;
}
