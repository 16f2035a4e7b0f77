/* Times of prefill: the attention kernel alone, mla_prefill with gather and expansion, mla_write.
 * Each figure is the median of 7 replays of a CUDA graph of several calls, divided by their number;
 * FLOPs are those of the causal half. */
#include "kernels/cuda/mla_internal.h"
#include "kernels/cuda/mla_prefill.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_));                     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define MLA(call)                                                                                  \
    do {                                                                                           \
        int s_ = (call);                                                                           \
        if (s_ != MLA_OK) {                                                                        \
            printf("%s:%d: status %d, %s\n", __FILE__, __LINE__, s_,                               \
                   cudaGetErrorString(cudaGetLastError()));                                        \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

typedef __nv_bfloat16 bf16;

static cudaStream_t stream;

/* Uniform values of variance `scale` squared. */
__global__ void fill(bf16 *x, int64_t n, uint32_t seed, float scale)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ z >> 27) * 0x94D049BB133111EBull;
        x[i] = __float2bfloat16(((float)(z >> 40) / (float)(1 << 24) - 0.5f) * 3.4641f * scale);
    }
}

static bf16 *random_bf16(int64_t n, float scale)
{
    static uint32_t seed;
    bf16 *x;

    CUDA(cudaMalloc(&x, n * sizeof(bf16)));
    fill<<<1024, 256>>>(x, n, seed++, scale);
    CUDA(cudaGetLastError());
    return x;
}

/* Milliseconds of one call. */
static double time_ms(int calls, const std::function<void()> &call)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    std::vector<float> ms(7);

    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < calls; i++)
        call();
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    CUDA(cudaGraphLaunch(exec, stream));
    for (float &x : ms) {
        CUDA(cudaEventRecord(begin, stream));
        CUDA(cudaGraphLaunch(exec, stream));
        CUDA(cudaEventRecord(end, stream));
        CUDA(cudaEventSynchronize(end));
        CUDA(cudaEventElapsedTime(&x, begin, end));
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(begin));
    CUDA(cudaEventDestroy(end));
    std::sort(ms.begin(), ms.end());
    return ms[3] / calls;
}

struct size {
    int heads, nope, v, queries, context;
};

static double flops(const struct size &s)
{
    return 2.0 * s.heads * (s.nope + 64 + s.v) * s.queries * (s.context + s.queries / 2.0);
}

static void map(CUtensorMap *m, const void *data, uint64_t columns, uint64_t rows,
                uint32_t box_rows)
{
    const uint64_t sizes[] = {columns, rows}, strides[] = {columns * 2};
    const uint32_t box[] = {64, box_rows};

    MLA(mla_tensor_map(m, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, data, sizes, strides, box));
}

/* One sequence in one piece, all heads in one launch. */
static void time_kernel(const struct size &s)
{
    const int64_t tokens = s.context + s.queries, key = s.nope + 64, per_head = s.nope + s.v;
    const int n_tiles = s.queries / PREFILL_ROWS;
    bf16 *q = random_bf16(s.queries * s.heads * key, 1.5f);
    bf16 *kv = random_bf16(tokens * s.heads * per_head, 1);
    bf16 *rope = random_bf16(tokens * 64, 1);
    std::vector<prefill_tile> tiles(n_tiles);
    prefill_tile *list;
    prefill_attend p = {};

    for (int i = 0; i < n_tiles; i++) {
        const int row = (n_tiles - 1 - i) * PREFILL_ROWS;
        tiles[i] = {row, PREFILL_ROWS, s.context + row, 0, 0, s.context + row + PREFILL_ROWS, -1,
                    1};
    }
    CUDA(cudaMalloc(&list, n_tiles * sizeof(prefill_tile)));
    CUDA(cudaMemcpy(list, tiles.data(), n_tiles * sizeof(prefill_tile), cudaMemcpyHostToDevice));
    CUDA(cudaMalloc(&p.out, (size_t)s.queries * s.heads * s.v * 2));
    CUDA(cudaMalloc(&p.counter, 4));
    const int block = s.v == 128 ? PREFILL_KV_128 : PREFILL_KV_256;
    map(&p.q_map, q, s.heads * key, s.queries, PREFILL_ROWS);
    map(&p.kv_map, kv, s.heads * per_head, tokens, block);
    map(&p.rope_map, rope, 64, tokens, block);
    p.tiles = list;
    p.n_tiles = n_tiles;
    p.heads = p.group = s.heads;
    p.scale_log2 = 1.44269504f / sqrtf((float)key);
    p.section = prefill_section(n_tiles, s.heads, tokens * per_head * 2, mla_device()->sms);
    double ms = time_ms(s.heads * tokens > 300000 ? 4 : 20, [&] {
        CUDA(cudaMemsetAsync(p.counter, 0, 4, stream));
        MLA(s.v == 128 ? prefill_attend_128(&p, mla_device()->sms, stream)
                       : prefill_attend_256(&p, mla_device()->sms, stream));
    });
    printf("kernel      H %3d  %d/%d  q %d context %5d: %8.4f ms  %5.0f TFLOP/s\n", s.heads,
           s.nope + 64, s.v, s.queries, s.context, ms, flops(s) / ms * 1e-9);
    void *all[] = {q, kv, rope, list, p.out, p.counter};
    for (void *x : all)
        CUDA(cudaFree(x));
}

/* The whole of mla_prefill over a bf16 cache. */
static void time_prefill(const struct size &s)
{
    const int latent = 512, pages = (s.context + s.queries) / 64;
    const int32_t start = 0, queries = s.queries, kv_len = s.context + s.queries;
    std::vector<int32_t> table(pages);
    mla_prefill_args a = {};
    int32_t *tables;

    for (int i = 0; i < pages; i++)
        table[i] = (int)((int64_t)i * 7919 % pages);
    CUDA(cudaMalloc(&tables, pages * 4));
    CUDA(cudaMemcpy(tables, table.data(), pages * 4, cudaMemcpyHostToDevice));
    a.cache = {
        random_bf16((int64_t)pages * 64 * 576, 1), 64 * 576 * 2, pages, latent, 64, MLA_KV_BF16};
    a.seqs.n_seqs = 1;
    a.seqs.query_rows = queries;
    a.seqs.q_starts = &start;
    a.seqs.q_lens = &queries;
    a.seqs.kv_lens = &kv_len;
    a.seqs.block_tables = tables;
    a.q = random_bf16((int64_t)s.queries * s.heads * (s.nope + 64), 1.5f);
    a.kv_b = random_bf16((int64_t)s.heads * (s.nope + s.v) * latent, 0.044f);
    a.heads = s.heads;
    a.nope_dim = s.nope;
    a.v_dim = s.v;
    a.softmax_scale = 1 / sqrtf((float)(s.nope + 64));
    CUDA(cudaMalloc(&a.out, (size_t)s.queries * s.heads * s.v * 2));
    a.workspace_bytes = mla_prefill_workspace(&a, 1, s.queries, 16384);
    CUDA(cudaMalloc(&a.workspace, a.workspace_bytes));
    double ms = time_ms(2, [&] { MLA(mla_prefill(&a, stream)); });
    printf(
        "mla_prefill H %3d  %d/%d  q %d context %5d  workspace %4zu MiB: %8.4f ms  %5.0f TFLOP/s\n",
        s.heads, s.nope + 64, s.v, s.queries, s.context, a.workspace_bytes >> 20, ms,
        flops(s) / ms * 1e-9);
    const void *all[] = {tables, a.cache.pages, a.q, a.kv_b, a.out, a.workspace};
    for (const void *x : all)
        CUDA(cudaFree((void *)x));
}

static void time_expand(int rows, int columns)
{
    const int k = 512;
    bf16 *x = random_bf16((int64_t)rows * k, 1), *w = random_bf16((int64_t)columns * k, 0.044f);
    bf16 *out = random_bf16((int64_t)rows * columns, 1);
    double ms = time_ms(
        20, [&] { MLA(prefill_expand(out, x, w, rows, columns, k, mla_device()->sms, stream)); });

    printf("expand      rows %5d  columns %5d: %8.4f ms  %5.0f TFLOP/s\n", rows, columns, ms,
           2e-9 * rows * columns * k / ms);
    CUDA(cudaFree(x));
    CUDA(cudaFree(w));
    CUDA(cudaFree(out));
}

static void time_write(int rows, int heads, int fp8)
{
    std::vector<int32_t> positions(rows);
    std::vector<int64_t> slots(rows);
    std::vector<float> norm(512, 1.0f);
    mla_write_args a = {};
    int32_t *p;
    int64_t *s;
    float *w;

    for (int i = 0; i < rows; i++) {
        positions[i] = i * 3;
        slots[i] = (int64_t)i * 7919 % rows;
    }
    CUDA(cudaMalloc(&p, rows * 4));
    CUDA(cudaMalloc(&s, rows * 8));
    CUDA(cudaMalloc(&w, 2048));
    CUDA(cudaMemcpy(p, positions.data(), rows * 4, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(s, slots.data(), rows * 8, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(w, norm.data(), 2048, cudaMemcpyHostToDevice));
    a.cache = {random_bf16((rows + 64) * 576, 1), 64 * (fp8 ? 656 : 1152), rows / 64 + 1, 512, 64,
               fp8 ? MLA_KV_FP8 : MLA_KV_BF16};
    a.rows = rows;
    a.positions = p;
    a.slots = s;
    a.kv = random_bf16((int64_t)rows * 576, 1);
    a.kv_stride = 576;
    a.norm = w;
    a.eps = 1e-6f;
    a.q = random_bf16((int64_t)rows * heads * 192, 1);
    a.heads = heads;
    a.nope_dim = 128;
    a.rope.magnitude = 1;
    for (int i = 0; i < 32; i++)
        a.rope.inv_freq[i] = powf(10000, -i / 32.0f);
    double ms = time_ms(20, [&] { MLA(mla_write(&a, stream)); });
    double bytes = rows * (heads * 256.0 + 1152 + (fp8 ? 656 : 1152));
    printf("mla_write   H %3d  rows %4d  %s: %7.2f us  %5.0f GB/s\n", heads, rows,
           fp8 ? "FP8 " : "bf16", ms * 1e3, bytes / ms * 1e-6);
    const void *all[] = {p, s, w, a.cache.pages, a.kv, a.q};
    for (const void *x : all)
        CUDA(cudaFree((void *)x));
}

int main(void)
{
    static const struct size sizes[] = {
        {16, 128, 128, 2048, 0},     {16, 128, 128, 8192, 0},     {128, 128, 128, 8192, 0},
        {16, 128, 128, 8192, 32768}, {16, 128, 128, 2048, 14336}, {20, 192, 256, 8192, 0},
    };

    CUDA(cudaStreamCreate(&stream));
    for (int rows : {1, 64, 8192})
        for (int heads : {16, 128})
            time_write(rows, heads, rows == 64);
    for (const struct size &s : sizes)
        time_kernel(s);
    for (const struct size &s : sizes)
        time_prefill(s);
    time_expand(2048, 16 * 256);
    time_expand(8192, 16 * 256);
    time_expand(8192, 43 * 256);
    time_expand(8192, 20 * 448);
    return 0;
}
