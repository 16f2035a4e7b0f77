/* Cases of mla_decode for the test and the benchmark: random queries and a random paged cache in
 * which everything unused is poison, and a float reference. */
#pragma once

#include "kernels/mla.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#define CHECK_CUDA(call)                                                                           \
    do {                                                                                           \
        cudaError_t error_ = (call);                                                               \
        if (error_ != cudaSuccess) {                                                               \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_));        \
            exit(2);                                                                               \
        }                                                                                          \
    } while (0)

struct mla_case {
    int batch, q_len, kv_len, heads;
    bool varlen; /* kv_len per sequence anywhere in 1 .. kv_len, some 0; q_len 0 .. q_len */
    bool causal, fp8, invariant;
    int latent, rope; /* 0: 512, 64 */
    float steep = 0;  /* what scores are multiplied by; 0: 1 */
};

static inline uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static __device__ inline float noise(uint64_t seed, uint64_t i) /* about normal, deviation 1 */
{
    uint64_t x = seed + i * 0x9e3779b97f4a7c15ull;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    float sum = (float)(x & 0xffff) + (float)(x >> 16 & 0xffff) + (float)(x >> 32 & 0xffff) +
                (float)(x >> 48);
    return (sum / 65536.0f - 2.0f) * 1.7320508f;
}

static inline int row_bytes_of(bool fp8, int latent, int rope)
{
    return fp8 ? latent + latent / 128 * 4 + rope * 2 : (latent + rope) * 2;
}

static __global__ void fill_bf16(__nv_bfloat16 *p, int64_t n, uint64_t seed, float scale)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        p[i] = __float2bfloat16(noise(seed, i) * scale);
}

/* Token rows of the used part of every sequence; all else was poisoned before. A block a token. */
static __global__ void fill_kv(char *pages, int64_t page_stride, const int *tables,
                               const int *starts, const int *kv_lens, bool fp8, int latent,
                               int rope, uint64_t seed)
{
    int seq = blockIdx.y,
        row_bytes = fp8 ? latent + latent / 128 * 4 + rope * 2 : (latent + rope) * 2;

    for (int t = blockIdx.x; t < kv_lens[seq]; t += gridDim.x) {
        char *row = pages + tables[starts[seq] + t / 64] * page_stride + t % 64 * row_bytes;
        uint64_t key = seed + seq * 0x1234567ull + t * 0x9e3779b9ull * 1024;
        /* A tenth of a deviation, as the peer's test has it: bounds of rounding are absolute. */
        for (int i = threadIdx.x; i < latent + rope; i += blockDim.x) {
            float x = noise(key, i) * 0.1f;
            if (!fp8) {
                ((__nv_bfloat16 *)row)[i] = __float2bfloat16(x);
            } else if (i < latent) {
                ((__nv_fp8_e4m3 *)row)[i] = __nv_fp8_e4m3(x * 400);
                if (i % 128 == 0)
                    ((float *)(row + latent))[i / 128] = exp2f((float)((t + i / 128) % 5) - 13);
            } else {
                ((__nv_bfloat16 *)(row + latent + latent / 128 * 4))[i - latent] =
                    __float2bfloat16(x);
            }
        }
    }
}

static __device__ float kv_value(const char *row, bool fp8, int latent, int i)
{
    if (!fp8)
        return __bfloat162float(((const __nv_bfloat16 *)row)[i]);
    if (i >= latent)
        return __bfloat162float(
            ((const __nv_bfloat16 *)(row + latent + latent / 128 * 4))[i - latent]);
    return (float)((const __nv_fp8_e4m3 *)row)[i] * ((const float *)(row + latent))[i / 128];
}

/* One (query row, head): scores in `work` (rows x heads, max_kv), then out float and lse. */
static __global__ void reference(mla_decode_args a, float *out, float *lse, float *work, int max_kv)
{
    int seq = blockIdx.x / a.seqs.max_q_len, j = blockIdx.x % a.seqs.max_q_len, head = blockIdx.y;
    int latent = a.cache.latent_dim, width = latent + a.cache.rope_dim, q_len = a.seqs.q_lens[seq];
    bool fp8 = a.cache.format == MLA_KV_FP8;
    int row_bytes = fp8 ? latent + latent / 128 * 4 + a.cache.rope_dim * 2 : width * 2;
    __shared__ float sum;
    __shared__ float q[640];

    if (j >= q_len)
        return;
    int64_t at = (int64_t)(a.seqs.q_starts[seq] + j) * a.heads + head;
    float *s = work + at * max_kv;
    int kv_len = a.seqs.kv_lens[seq], n = a.causal ? kv_len - q_len + j + 1 : kv_len;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        q[i] = __bfloat162float(((const __nv_bfloat16 *)a.q)[at * width + i]);
    __syncthreads();
    auto row_of = [&](int t) {
        return (const char *)a.cache.pages +
               a.seqs.block_tables[a.seqs.table_starts[seq] + t / 64] * a.cache.page_stride +
               t % 64 * row_bytes;
    };
    /* A warp a token. */
    for (int t = threadIdx.x / 32; t < n; t += blockDim.x / 32) {
        const char *row = row_of(t);
        double dot = 0;
        for (int i = threadIdx.x % 32; i < width; i += 32)
            dot += (double)q[i] * kv_value(row, fp8, latent, i);
        for (int step = 16; step > 0; step /= 2)
            dot += __shfl_xor_sync(~0u, dot, step);
        if (threadIdx.x % 32 == 0)
            s[t] = (float)(dot * a.softmax_scale);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        float most = -INFINITY;
        double total = 0;
        for (int t = threadIdx.x; t < n; t += 32)
            most = fmaxf(most, s[t]);
        for (int step = 16; step > 0; step /= 2)
            most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
        for (int t = threadIdx.x; t < n; t += 32)
            total += s[t] = expf(s[t] - most);
        for (int step = 16; step > 0; step /= 2)
            total += __shfl_xor_sync(~0u, total, step);
        if (threadIdx.x == 0) {
            sum = (float)total;
            lse[at] = n > 0 ? (float)(most + log(total)) : INFINITY;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < latent; i += blockDim.x) {
        float o = 0;
        for (int t = 0; t < n; t++)
            o += s[t] * kv_value(row_of(t), fp8, latent, i);
        out[at * latent + i] = n > 0 ? o / sum : 0;
    }
}

template <class T> static T *to_device(const std::vector<T> &v)
{
    T *p;
    CHECK_CUDA(cudaMalloc(&p, v.size() * sizeof(T) + 256));
    CHECK_CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

/* Device memory of one case. */
struct mla_setup {
    mla_decode_args args;
    int64_t used_tokens = 0, query_rows = 0;
    int max_kv = 0;
    std::vector<void *> memory;
    std::vector<int> kv_lens, q_lens;

    template <class T> T *keep(T *p)
    {
        memory.push_back(p);
        return p;
    }

    explicit mla_setup(const mla_case &c, uint64_t seed)
    {
        int latent = c.latent ? c.latent : 512, rope = c.latent ? c.rope : 64;
        std::vector<int> q_starts, starts, tables;
        int width = latent + rope, max_pages = 0;

        for (int b = 0; b < c.batch; b++) {
            uint64_t r = mix(seed + b);
            int kv = c.kv_len, q = c.q_len;
            if (c.varlen) {
                kv = r % 8 == 0 ? 0 : 1 + (int)(r / 8 % c.kv_len);
                q = c.q_len > 1 ? (int)(r / 65536 % (c.q_len + 1)) : 1;
            }
            kv_lens.push_back(kv);
            q_lens.push_back(q);
            q_starts.push_back((int)query_rows);
            query_rows += q;
            used_tokens += kv;
            max_kv = kv > max_kv ? kv : max_kv;
            starts.push_back((int)tables.size());
            for (int i = 0; i < (kv + 63) / 64 + 3; i++)
                tables.push_back(i < (kv + 63) / 64 ? max_pages++ : -1);
        }
        /* Shuffled pages; unused entries are garbage. */
        std::vector<int> order(max_pages + 1);
        for (int i = 0; i <= max_pages; i++)
            order[i] = i;
        for (int i = max_pages; i > 0; i--) {
            int j = (int)(mix(seed * 7 + i) % (i + 1)), x = order[i];
            order[i] = order[j], order[j] = x;
        }
        for (size_t i = 0; i < tables.size(); i++)
            tables[i] = tables[i] >= 0 ? order[tables[i]] : (int)(mix(i) | 0x40000000) & 0x7fffffff;

        int64_t stride = 64 * row_bytes_of(c.fp8, latent, rope),
                q_elements = query_rows * c.heads * width;
        char *pages;
        __nv_bfloat16 *q, *out;
        float *lse;
        CHECK_CUDA(cudaMalloc(&pages, (max_pages + 1) * stride));
        CHECK_CUDA(
            cudaMemset(pages, 0xff, (max_pages + 1) * stride)); /* NaN in bf16, e4m3, float */
        CHECK_CUDA(cudaMalloc(&q, q_elements * 2 + 256));
        CHECK_CUDA(cudaMalloc(&out, query_rows * c.heads * latent * 2 + 256));
        CHECK_CUDA(cudaMalloc(&lse, query_rows * c.heads * 4 + 256));
        keep(pages), keep(q), keep(out), keep(lse);
        args = mla_decode_args{};
        args.cache = {pages, stride, max_pages + 1, latent, rope, c.fp8 ? MLA_KV_FP8 : MLA_KV_BF16};
        args.seqs.n_seqs = c.batch;
        args.seqs.query_rows = (int)query_rows;
        args.seqs.max_q_len = c.q_len;
        args.seqs.q_starts = keep(to_device(q_starts));
        args.seqs.q_lens = keep(to_device(q_lens));
        args.seqs.kv_lens = keep(to_device(kv_lens));
        args.seqs.block_tables = keep(to_device(tables));
        args.seqs.table_starts = keep(to_device(starts));
        args.seqs.table_stride = (int32_t)tables.size();
        args.q = q, args.out = out, args.lse = lse;
        args.heads = c.heads;
        args.softmax_scale = 0.07216878f * (c.steep > 0 ? c.steep : 1); /* 192^-0.5 */
        args.causal = c.causal;
        args.batch_invariant = c.invariant;
        args.workspace_bytes = mla_decode_workspace(c.batch, (int)query_rows, c.heads, latent);
        CHECK_CUDA(cudaMalloc(&args.workspace, args.workspace_bytes + 256));
        CHECK_CUDA(cudaMemset(args.workspace, 0, args.workspace_bytes));
        keep(args.workspace);
        fill_bf16<<<1024, 256>>>(q, q_elements, mix(seed + 1), 6.0f);
        fill_kv<<<dim3(256, c.batch), 192>>>(pages, stride, args.seqs.block_tables,
                                             args.seqs.table_starts, args.seqs.kv_lens, c.fp8,
                                             latent, rope, mix(seed + 2));
        poison();
        CHECK_CUDA(cudaDeviceSynchronize());
    }

    void poison()
    {
        CHECK_CUDA(cudaMemset(args.out, 0xff, query_rows * args.heads * args.cache.latent_dim * 2));
        CHECK_CUDA(cudaMemset(args.lse, 0xff, query_rows * args.heads * 4));
    }

    ~mla_setup()
    {
        for (void *p : memory)
            cudaFree(p);
    }
};
