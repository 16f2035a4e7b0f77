/* Times the indexer and sparse attention of one layer at DeepSeek-V3.2's shape: microseconds of
 * index_tokens and of mla_decode, beside mla_decode over the whole context. Warm, one stream. */
#include "kernels/cuda/indexer.cuh"
#include "kernels/random_fill.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

enum { MAX_LEN = 131072, LAYERS = 1, CALLS = 10, REPEATS = 5 };

static struct error err;
static struct cuda_backend *cu;
static const mla_shape MLA = {128, 512, 128, 64, 128, 0.1f};
static const index_shape INDEX = {2048, 64, 128, MAX_LEN};

static void must(int rc)
{
    if (rc) {
        printf("failed: %s\n", err.message);
        exit(1);
    }
}

static tensor filled(enum dtype dtype, std::vector<int64_t> shape, uint64_t seed)
{
    tensor t;

    must(cu->base.ops->alloc(&cu->base, &t, dtype, (int)shape.size(), shape.data(), &err));
    must(cu->base.ops->fill_random(&cu->base, &t, seed, 0.5f, &err));
    return t;
}

static void open_backend(bool sparse, int rows, int pages)
{
    backend_options options = {};
    backend_shapes shapes = {};

    options.slots = options.limits.max_seqs = 64;
    options.limits.max_rows = rows;
    options.limits.max_pages = pages;
    options.vocab_size = 1024;
    options.kv_dtype = DTYPE_BF16;
    cu = (struct cuda_backend *)backend_cuda_open(&options, &err);
    must(!cu);
    shapes.mla = MLA;
    if (sparse)
        shapes.index = INDEX;
    must(cu->base.ops->reserve(&cu->base, &shapes, &err));
}

/* Median microseconds of a call. */
template <class F> static double timed(F call)
{
    std::vector<double> times;
    cudaEvent_t from, to;
    float ms;

    cudaEventCreate(&from);
    cudaEventCreate(&to);
    for (int i = 0; i < REPEATS + 1; i++) {
        cudaEventRecord(from, cu->stream);
        for (int j = 0; j < CALLS; j++)
            call();
        cudaEventRecord(to, cu->stream);
        cudaEventSynchronize(to);
        cudaEventElapsedTime(&ms, from, to);
        if (i > 0)
            times.push_back(ms * 1000 / CALLS);
    }
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

static void bench(bool sparse, int seqs, int n_rows, int len)
{
    int rows = seqs * n_rows, seq_pages = (len + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    int pages = seqs * seq_pages;

    open_backend(sparse, rows, pages);
    backend *be = &cu->base;
    batch *b = batch_new({rows, 64, pages, 0});
    std::vector<int32_t> tokens(rows, 1), table(seq_pages);
    for (int s = 0; s < seqs; s++) {
        batch_seq seq = {};
        for (int i = 0; i < seq_pages; i++)
            table[i] = (int32_t)((s + (int64_t)i * seqs) * 7 % pages);
        seq.slot = s;
        seq.n_rows = n_rows;
        seq.kv_len = len;
        seq.absorbed = n_rows == 1;
        batch_add(b, seq, tokens.data(), table.data(), 0);
    }
    tensor kv = filled(DTYPE_BF16, {pages, KV_PAGE_TOKENS, 576}, 1);
    tensor keys = filled(DTYPE_BF16, {pages, KV_PAGE_TOKENS, INDEX.dim}, 2);
    tensor kv_b = filled(DTYPE_BF16, {128 * 256, 512}, 3),
           q = filled(DTYPE_BF16, {rows, 128 * 192}, 4);
    tensor iq = filled(DTYPE_BF16, {rows, INDEX.heads * INDEX.dim}, 5);
    tensor ik = filled(DTYPE_BF16, {rows, INDEX.dim}, 6),
           iw = filled(DTYPE_F32, {rows, INDEX.heads}, 7);
    tensor norm = filled(DTYPE_F32, {INDEX.dim}, 8), out = filled(DTYPE_BF16, {rows, 128 * 128}, 9);
    rope_config rope = {64, 1, 1, {}};
    mla_layer layer = {};
    index_layer index = {};
    double choosing = 0, attention;
    layer.shape = MLA;
    layer.kv_b = kv_b;
    layer.kv_cache = kv;
    index.shape = INDEX;
    index.norm = index.norm_bias = norm;
    index.key_cache = keys;
    be->ops->begin(be, b);
    if (sparse)
        choosing = timed([&] { be->ops->index_tokens(be, iq, ik, iw, &index, &rope); });
    attention = timed([&] {
        be->ops->mla_prefill(be, out, q, &layer);
        be->ops->mla_decode(be, out, q, &layer);
    });
    must(be->ops->finish(be, &err));
    printf("%s %2d x %4d rows, context %6d: index_tokens %8.1f us, attention %8.1f us\n",
           sparse ? "sparse" : "dense ", seqs, n_rows, len, choosing, attention);
    for (tensor *t : {&kv, &keys, &kv_b, &q, &iq, &ik, &iw, &norm, &out})
        be->ops->release(be, t);
    free(b);
    be->ops->close(be);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int seqs : {1, 8, 32})
        for (int len : {1024, 4096, 32768, (int)MAX_LEN}) {
            if ((int64_t)seqs * len > 8 * MAX_LEN)
                continue;
            bench(false, seqs, 1, len);
            bench(true, seqs, 1, len);
        }
    for (int len : {2048, 8192, 32768}) {
        bench(false, 1, 2048, len);
        bench(true, 1, 2048, len);
    }
    return 0;
}
