/* The choice of experts for one row in the experts' own launch: part of moe_few.cuh.
 *
 * Every block normalises x for itself, a sixteenth of the columns by each of the warps that
 * multiply, and has up to FEW_OWN rows of the router, whose products with h it gives to the other
 * blocks in the way of hidden values. With all logits each block chooses for itself, while the
 * shared experts' weights come and are multiplied; an expert's weights are asked for as soon as it
 * is known, so the list is in the order of the choice. The first block writes what later kernels
 * may read: h, logits, ids and weights. */
#pragma once

#include "kernels/cuda/moe_few_types.cuh"
#include "kernels/cuda/route.cuh"

enum { FEW_CHUNK = FEW_MATH * 128 }; /* columns that the warps have at once, 4 a lane */

/* The launch's number, which the storing warps wait for. The fetching warp. */
template <class R, class S>
__device__ __forceinline__ void few_begin(const few_params<R, S> &p, const few_memory<R, S> &mem,
                                          int lane)
{
    if (lane == 0) {
        mem.list->launch = 1 + (uint32_t)load_routing((const int32_t *)&p.room->launch);
        mbar_arrive(smem_u32(&mem.bars->begun));
    }
    __syncwarp();
}

static __device__ __forceinline__ float few_sum_warps(const float *of)
{
    float sum = 0;

#pragma unroll
    for (int w = 0; w < FEW_MATH; w++)
        sum += of[w];
    return sum;
}

/* The row, normalised, to shared memory, and this block's logits. The warps that multiply, which
 * wait for the kernels ahead here. */
template <class R, class S>
__device__ __forceinline__ void few_normalise(const few_params<R, S> &p,
                                              const few_memory<R, S> &mem)
{
    enum { CHUNKS = GATE_D / FEW_CHUNK };
    const struct gate_args &a = p.gate;
    struct few_choice *choice = mem.choice;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = threadIdx.x * 4;
    float4 norm[CHUNKS], router[FEW_OWN][CHUNKS];
    uint2 x[CHUNKS];
    float sum = 0, products[FEW_OWN] = {};

#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        int at = i * FEW_CHUNK + first;
        norm[i] = at < a.d ? *(const float4 *)(a.norm + at) : float4{};
#pragma unroll
        for (int o = 0; o < FEW_OWN; o++) {
            int e = blockIdx.x + o * gridDim.x;
            router[o][i] = e < a.config.experts && at < a.d
                               ? *(const float4 *)(a.router + (int64_t)e * a.d + at)
                               : float4{};
        }
    }
    launch_wait();
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        int at = i * FEW_CHUNK + first;
        x[i] = at < a.d ? __ldcg((const uint2 *)(a.x + at)) : uint2{};
    }
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
        sum += sum_squares(make_uint4(x[i].x, x[i].y, 0, 0));
    sum = warp_sum(sum);
    if (lane == 0)
        choice->squares[warp] = sum;
    named_sync(8, FEW_MATH * 32);
    float inverse = 1.0f / sqrtf(few_sum_warps(choice->squares) / (float)a.d + a.eps);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        int at = i * FEW_CHUNK + first;
        if (at >= a.d)
            break;
        uint2 h = {normalise_pair(x[i].x, inverse, norm[i].x, norm[i].y),
                   normalise_pair(x[i].y, inverse, norm[i].z, norm[i].w)};
        *(uint2 *)(mem.tokens + 2 * at) = h;
        if (blockIdx.x == 0)
            *(uint2 *)(a.h + at) = h;
        float2 low = __bfloat1622float2(*(const __nv_bfloat162 *)&h.x);
        float2 high = __bfloat1622float2(*(const __nv_bfloat162 *)&h.y);
#pragma unroll
        for (int o = 0; o < FEW_OWN; o++)
            products[o] += fmaf(low.x, router[o][i].x, low.y * router[o][i].y) +
                           fmaf(high.x, router[o][i].z, high.y * router[o][i].w);
    }
#pragma unroll
    for (int o = 0; o < FEW_OWN; o++) {
        if (blockIdx.x + o * gridDim.x >= a.config.experts)
            break;
        float product = warp_sum(products[o]);
        if (lane == 0)
            choice->products[o][warp] = product;
    }
    __syncwarp();
    if (lane == 0)
        mbar_arrive(smem_u32(&mem.bars->x_there));
}

/* This block's logits to the others. */
template <class R, class S>
__device__ __forceinline__ void few_give_logits(const few_params<R, S> &p,
                                                const few_memory<R, S> &mem, int lane)
{
    int e = blockIdx.x + lane * gridDim.x;

    if (lane < FEW_OWN && e < p.gate.config.experts)
        few_store_word(&p.room->logits[e], mem.list->launch,
                       __float_as_uint(few_sum_warps(mem.choice->products[lane])));
}

/* All logits to shared memory, as soon as they are there. A warp. */
static __device__ __forceinline__ void few_take_logits(float *to, const uint64_t *from, int experts,
                                                       uint32_t launch, int lane)
{
    enum { EACH = GATE_EXPERTS / 64 };
    uint64_t v[EACH][2];
    long long start = clock64();
    bool all;

    do {
        all = true;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int e = 64 * i + 2 * lane;
            if (e < experts)
                all &= few_load_pairs(v[i], from + e, launch) ||
                       (e + 1 == experts && (uint32_t)(v[i][0] >> 32) == launch);
        }
        if (clock64() - start > 8000000000ll)
            __trap();
    } while (!__all_sync(~0u, all));
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int e = 64 * i + 2 * lane;
        if (e < experts)
            *(float2 *)(to + e) =
                make_float2(__uint_as_float((uint32_t)v[i][0]), __uint_as_float((uint32_t)v[i][1]));
    }
    __syncwarp();
}

/* Waits until more experts than the n - shared so far are in the list: n grows by them. Whether
 * they are all. */
template <class R, class S>
__device__ __forceinline__ bool few_picked(const few_params<R, S> &p, const struct few_list *list,
                                           int &n)
{
    long long start = clock64();
    int picked, so_far = n - p.shared;

    do {
        asm volatile("ld.acquire.cta.shared.s32 %0, [%1];"
                     : "=r"(picked)
                     : "r"(smem_u32(&list->picked))
                     : "memory");
        if (clock64() - start > 8000000000ll)
            __trap();
    } while (picked >= 0 && picked <= so_far);
    n = p.shared + (picked < 0 ? 0 : picked);
    return picked < 0 || picked == p.top_k;
}

static __device__ __forceinline__ void few_tell_picked(struct few_list *list, int picked)
{
    asm volatile("st.release.cta.shared.s32 [%0], %1;" ::"r"(smem_u32(&list->picked)), "r"(picked)
                 : "memory");
}

/* Makes the choice and the list. The fetching warp, which waits for the kernels ahead here. */
template <class R, class S>
__device__ __forceinline__ void few_choose(const few_params<R, S> &p, const few_memory<R, S> &mem,
                                           int lane)
{
    const struct gate_args &a = p.gate;
    const struct router_config &c = a.config;
    struct few_list *list = mem.list;
    struct few_choice *choice = mem.choice;
    const float *bias = a.bias ? choice->bias : nullptr;
    auto picked = [&](int n, int expert) {
        if (lane == 0) {
            list->expert[p.shared + n] = expert;
            few_tell_picked(list, n + 1);
        }
    };

    for (int e = lane; a.bias && e < c.experts; e += 32)
        choice->bias[e] = a.bias[e];
    launch_wait();
    bool there = !a.n_rows || load_routing(a.n_rows) > 0;
    few_begin(p, mem, lane);
    ring_wait(smem_u32(&mem.bars->x_there), 0);
    few_give_logits(p, mem, lane);
    few_take_logits(choice->logits, p.room->logits, c.experts, list->launch, lane);
    struct chosen of =
        c.experts <= 64
            ? choose<2>(choice->logits, bias, choice->room, there, c, picked)
            : choose<GATE_EXPERTS / 32>(choice->logits, bias, choice->room, there, c, picked);
    if (lane < c.top_k) {
        if (there) {
            list->place[p.shared + lane][0] = (int16_t)(p.shared + lane);
            list->weight[p.shared + lane][0] = of.weight;
        }
        if (blockIdx.x == 0) {
            a.ids[lane] = of.id;
            a.weights[lane] = of.weight;
        }
    }
    if (lane == 0) {
        list->n = p.shared + (there ? c.top_k : 0);
        if (!there)
            few_tell_picked(list, -1);
    }
    __syncwarp();
    if (lane == 0)
        mbar_arrive(smem_u32(&mem.bars->listed));
    for (int e = lane; blockIdx.x == 0 && e < c.experts; e += 32)
        a.logits[e] = choice->logits[e];
}
