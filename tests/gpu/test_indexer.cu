/* The indexer on the GPU: keys and scores against float64, the choice against a sort of the same
 * scores, and attention to the chosen tokens against the CPU backend's to the same ones. Caches are
 * filled with random numbers, so that few rows reach long contexts. */
#include "kernels/cuda/indexer.cuh"
#include "tests/gpu/backend_pair.cuh"

#include <algorithm>

extern "C" const int32_t *cpu_index_chosen(const struct cpu_backend *cpu, int64_t row);

enum { ROWS = 320, SEQS = 8, SEQ_PAGES = 128, PAGES = SEQS * SEQ_PAGES };

struct rig {
    pair p;
    mla_shape mla;
    index_shape shape;
    rope_config rope, index_rope;
    twin kv_b, norm, key_norm, key_bias, key_cache, kv_cache;
    batch *b;
    std::vector<int32_t> pages[SEQS];
};

struct piece {
    int32_t seq, from, to, absorbed;
};

/* Sequence `seq` up to `length` through the operation that writes the cache. */
static void write_context(rig *g, int seq, int length)
{
    pair &p = g->p;
    std::vector<int32_t> tokens(ROWS, 1);
    mla_layer layer = {};

    layer.shape = g->mla;
    for (int from = 0; from < length; from += ROWS) {
        batch_seq one = {};
        one.slot = seq;
        one.kv_len = std::min(from + ROWS, length);
        one.n_rows = one.kv_len - from;
        batch_clear(g->b);
        batch_add(g->b, one, tokens.data(), g->pages[seq].data(), 0);
        twin q = twin_out(p, one.n_rows, g->mla.heads * (g->mla.nope_dim + g->mla.rope_dim));
        twin kv = twin_random(p, 7000 + seq * length + from, one.n_rows,
                              g->mla.kv_lora_rank + g->mla.rope_dim);
        for (backend *be : {p.gpu, p.cpu}) {
            bool gpu = be == p.gpu;
            layer.kv_cache = gpu ? g->kv_cache.gpu : g->kv_cache.cpu;
            be->ops->begin(be, g->b);
            be->ops->rope_kv_write(be, gpu ? q.gpu : q.cpu, gpu ? kv.gpu : kv.cpu, &layer,
                                   gpu ? g->norm.gpu : g->norm.cpu, 1e-6f, &g->rope);
            must(be->ops->finish(be, &p.err), p);
        }
        twin_free(p, {&q, &kv});
    }
}

/* In FP8, whose rows aren't random numbers, the contexts are written. */
static void open_fp8_cache(rig *g)
{
    int64_t cpu[] = {PAGES, KV_PAGE_TOKENS, kv_row_elements(&g->mla, DTYPE_F32)};
    int64_t gpu[] = {PAGES, KV_PAGE_TOKENS, kv_row_elements(&g->mla, DTYPE_F8_E4M3)};
    pair &p = g->p;

    must(p.cpu->ops->alloc(p.cpu, &g->kv_cache.cpu, DTYPE_F32, 3, cpu, &p.err), p);
    must(p.gpu->ops->alloc(p.gpu, &g->kv_cache.gpu, DTYPE_F8_E4M3, 3, gpu, &p.err), p);
    for (int s = 0; s < SEQS; s++)
        write_context(g, s, g->shape.max_positions);
}

static void shape_cache(tensor *t)
{
    t->rank = 3;
    t->shape[2] = t->shape[1];
    t->shape[1] = KV_PAGE_TOKENS;
    t->shape[0] = PAGES;
}

static rig *rig_open(mla_shape mla, index_shape shape, int half_split, enum dtype kv_dtype)
{
    rig *g = new rig();
    backend_options options = {};
    backend_shapes shapes = {};
    int64_t kv_width = mla.kv_lora_rank + mla.rope_dim;

    options.slots = SEQS;
    options.vocab_size = 1024;
    options.limits = {ROWS, SEQS, PAGES, 0};
    options.kv_dtype = kv_dtype;
    g->p = pair_open(options);
    g->mla = shapes.mla = mla;
    g->shape = shapes.index = shape;
    must(g->p.cpu->ops->reserve(g->p.cpu, &shapes, &g->p.err), g->p);
    must(g->p.gpu->ops->reserve(g->p.gpu, &shapes, &g->p.err), g->p);
    g->rope.dim = mla.rope_dim;
    g->rope.magnitude = 1.1f;
    for (int i = 0; i < mla.rope_dim / 2; i++)
        g->rope.inv_freq[i] = powf(10000, -2.0f * (float)i / (float)mla.rope_dim);
    g->index_rope = g->rope;
    g->index_rope.half_split = half_split;
    g->kv_b = twin_weight(g->p, 1, WEIGHT_MATRIX,
                          {mla.heads * (mla.nope_dim + mla.v_dim), mla.kv_lora_rank},
                          1 / sqrtf((float)mla.kv_lora_rank));
    g->norm = twin_weight(g->p, 2, WEIGHT_EXACT, {mla.kv_lora_rank}, 0.2f, 1);
    g->key_norm = twin_weight(g->p, 3, WEIGHT_EXACT, {shape.dim}, 0.2f, 1);
    g->key_bias = twin_weight(g->p, 4, WEIGHT_EXACT, {shape.dim}, 0.3f);
    g->key_cache = twin_random(g->p, 5, PAGES * KV_PAGE_TOKENS, shape.dim);
    shape_cache(&g->key_cache.cpu);
    shape_cache(&g->key_cache.gpu);
    g->b = batch_new(options.limits);
    for (int s = 0; s < SEQS; s++)
        for (int i = 0; i < SEQ_PAGES; i++)
            g->pages[s].push_back((s + i * SEQS) * 5 % PAGES);
    if (kv_dtype == DTYPE_F8_E4M3) {
        open_fp8_cache(g);
        return g;
    }
    g->kv_cache = twin_random(g->p, 6, PAGES * KV_PAGE_TOKENS, kv_width);
    shape_cache(&g->kv_cache.cpu);
    shape_cache(&g->kv_cache.gpu);
    return g;
}

static void rig_close(rig *g)
{
    twin_free(g->p, {&g->kv_b, &g->norm, &g->key_norm, &g->key_bias, &g->key_cache, &g->kv_cache});
    pair_close(&g->p);
    free(g->b);
    delete g;
}

template <class T> static std::vector<T> fetch(const T *from, size_t n)
{
    std::vector<T> out(n);

    if (cudaMemcpy(out.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost) != cudaSuccess)
        CHECK(false, "a copy from the GPU failed: %s", cudaGetErrorString(cudaGetLastError()));
    return out;
}

/* Where the caches keep a row's token at `position`. */
static int64_t slot(const rig *g, const batch_seq *seq, int position)
{
    return (int64_t)g->pages[seq->slot][position / KV_PAGE_TOKENS] * KV_PAGE_TOKENS +
           position % KV_PAGE_TOKENS;
}

/* A row's scores in float64 from the GPU's own keys and rotated queries; returns the worst error
 * as a part of their range. */
static double check_scores(rig *g, const batch_seq *seq, int row, int seen, const float *got,
                           const std::vector<float> &keys, const std::vector<float> &q,
                           const float *w)
{
    const int heads = g->shape.heads, dim = g->shape.dim;
    double worst = 0, low = INFINITY, high = -INFINITY;

    for (int t = 0; t < seen; t++) {
        double score = 0;
        const float *key = &keys[slot(g, seq, t) * dim];
        for (int h = 0; h < heads; h++) {
            double product = 0;
            for (int i = 0; i < dim; i++)
                product += (double)q[((int64_t)row * heads + h) * dim + i] * key[i];
            score += w[row * heads + h] * std::max(product, 0.0);
        }
        worst = std::max(worst, fabs(score - got[t]) <= INFINITY ? fabs(score - got[t]) : INFINITY);
        low = std::min(low, score);
        high = std::max(high, score);
    }
    return worst / (high - low);
}

/* The positions of the k largest, the earlier of equal ones, in increasing order. */
static std::vector<int32_t> largest(const float *scores, int n, int k)
{
    std::vector<int32_t> order(n);

    for (int i = 0; i < n; i++)
        order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return scores[a] > scores[b]; });
    order.resize(k);
    std::sort(order.begin(), order.end());
    return order;
}

/* What index_tokens left on the GPU for a batch. */
struct outcome {
    std::vector<float> scores, keys, queries, weights;
    std::vector<int32_t> chosen;
    int n_sparse, swapped; /* rows; tokens of theirs that the CPU chose otherwise */
    double worst;          /* error of a score, as a part of their range */
};

/* The choice must be that of a sort of the scores, which are those of the last group's rows alone.
 * The CPU backend is given the same choice. */
static void check_row(rig *g, outcome &o, const batch_seq *seq, int row, int seen)
{
    const cuda_step *on_gpu = &cuda_backend(g->p.gpu)->step;
    const decode_group *group = &on_gpu->groups[on_gpu->n_groups - 1];
    const int k = g->shape.top_k;
    const int32_t *got = &o.chosen[(int64_t)row * k];
    int32_t *cpu = (int32_t *)cpu_index_chosen((struct cpu_backend *)g->p.cpu, row);

    if (row >= group->first_row && row < group->first_row + group->rows) {
        const int64_t stride = cuda_backend(g->p.gpu)->index->score_stride;
        const float *scores = &o.scores[(row - group->first_row) * stride];
        if (row % 7 == 0 || seq->n_rows == 1)
            o.worst = std::max(o.worst, check_scores(g, seq, row, seen, scores, o.keys, o.queries,
                                                     o.weights.data()));
        std::vector<int32_t> want = largest(scores, seen, k);
        const int same = (int)(std::mismatch(want.begin(), want.end(), got).first - want.begin());
        CHECK(same == k, "row %d, %d tokens: chosen %d is %d, not %d", row, seen, same, got[same],
              want[same]);
    }
    for (int i = 0, j = 0; i < k; i++) {
        while (j < k && cpu[j] < got[i])
            j++;
        o.swapped += j == k || cpu[j] != got[i];
    }
    memcpy(cpu, got, k * sizeof(int32_t));
    o.n_sparse++;
}

static outcome check_choice(rig *g, const twin &q, const twin &w)
{
    const cuda_index *x = cuda_backend(g->p.gpu)->index;
    const float *weights = (const float *)w.cpu.data;
    outcome o = {};

    if (!cuda_backend(g->p.gpu)->step.sparse)
        return o;
    o.scores = fetch(x->scores, x->score_rows * x->score_stride);
    o.chosen = fetch(x->chosen, (size_t)g->b->n_rows * g->shape.top_k);
    o.keys = gpu_values(g->p, g->key_cache.gpu);
    o.queries = gpu_values(g->p, q.gpu);
    o.weights.assign(weights, weights + tensor_elements(&w.cpu));
    for (int s = 0; s < g->b->n_seqs; s++) {
        const batch_seq *seq = &batch_seqs(g->b)[s];
        for (int row = seq->first_row; row < seq->first_row + seq->n_rows; row++)
            if (batch_positions(g->b)[row] >= g->shape.top_k)
                check_row(g, o, seq, row, batch_positions(g->b)[row] + 1);
    }
    CHECK(o.swapped <= 0.02 * o.n_sparse * g->shape.top_k, "%d tokens of %d rows chosen otherwise",
          o.swapped, o.n_sparse);
    return o;
}

static void step(rig *g, const char *what, std::vector<piece> pieces, bool ties = false)
{
    pair &p = g->p;
    static uint64_t seed = 100;
    std::vector<int32_t> tokens(ROWS, 1);

    batch_clear(g->b);
    for (piece &one : pieces) {
        batch_seq seq = {};
        seq.slot = one.seq;
        seq.n_rows = one.to - one.from;
        seq.kv_len = one.to;
        seq.absorbed = one.absorbed;
        batch_add(g->b, seq, tokens.data(), g->pages[one.seq].data(), 0);
    }
    int64_t rows = g->b->n_rows, heads = g->mla.heads;
    twin q = twin_random(p, seed++, rows, heads * (g->mla.nope_dim + g->mla.rope_dim));
    twin kv = twin_random(p, seed++, rows, g->mla.kv_lora_rank + g->mla.rope_dim);
    twin iq = twin_random(p, seed++, rows, g->shape.heads * g->shape.dim);
    twin ik = twin_random(p, seed++, rows, g->shape.dim, 2);
    twin iw = twin_random(p, seed++, rows, g->shape.heads, ties ? 0 : 1, DTYPE_F32);
    twin out = twin_out(p, rows, heads * g->mla.v_dim);
    mla_layer mla = {};
    index_layer index = {};
    mla.shape = g->mla;
    index.shape = g->shape;
    for (backend *be : {p.gpu, p.cpu}) /* both begin; attention after the choice is the same */
        be->ops->begin(be, g->b);
    for (backend *be : {p.gpu, p.cpu}) {
        bool gpu = be == p.gpu;
        index.norm = gpu ? g->key_norm.gpu : g->key_norm.cpu;
        index.norm_bias = gpu ? g->key_bias.gpu : g->key_bias.cpu;
        index.key_cache = gpu ? g->key_cache.gpu : g->key_cache.cpu;
        be->ops->index_tokens(be, gpu ? iq.gpu : iq.cpu, gpu ? ik.gpu : ik.cpu,
                              gpu ? iw.gpu : iw.cpu, &index, &g->index_rope);
    }
    double entered = compare(p, "keys", g->key_cache, 4e-3);
    double rotated = compare(p, "queries", iq, 4e-3);
    outcome o = check_choice(g, iq, iw);
    CHECK(ties || o.worst < 1e-5, "%s: scores are off by %g of their range", what, o.worst);
    for (backend *be : {p.gpu, p.cpu}) {
        bool gpu = be == p.gpu;
        mla.kv_b = gpu ? g->kv_b.gpu : g->kv_b.cpu;
        mla.kv_cache = gpu ? g->kv_cache.gpu : g->kv_cache.cpu;
        be->ops->rope_kv_write(be, gpu ? q.gpu : q.cpu, gpu ? kv.gpu : kv.cpu, &mla,
                               gpu ? g->norm.gpu : g->norm.cpu, 1e-6f, &g->rope);
        be->ops->mla_prefill(be, gpu ? out.gpu : out.cpu, gpu ? q.gpu : q.cpu, &mla);
        be->ops->mla_decode(be, gpu ? out.gpu : out.cpu, gpu ? q.gpu : q.cpu, &mla);
        must(be->ops->finish(be, &p.err), p);
    }
    double attention = compare(p, what, out, p.gpu->kv_dtype == DTYPE_BF16 ? 8e-3 : 6e-2);
    printf("  %-22s %3d rows, %3d sparse: keys %.1e, queries %.1e, scores %.1e of their range, %d "
           "chosen otherwise in float32, attention %.1e\n",
           what, (int)rows, o.n_sparse, entered, rotated, o.worst, o.swapped, attention);
    twin_free(p, {&q, &kv, &iq, &ik, &iw, &out});
}

static void test(mla_shape mla, index_shape shape, int half_split, enum dtype kv_dtype = DTYPE_BF16)
{
    rig *g = rig_open(mla, shape, half_split, kv_dtype);
    int k = shape.top_k, most = shape.max_positions;

    printf("%d heads of %d choose %d for %d heads, %d + %d, rope of %s, %s\n", shape.heads,
           shape.dim, k, mla.heads, mla.kv_lora_rank, mla.rope_dim, half_split ? "halves" : "pairs",
           kv_dtype == DTYPE_BF16 ? "bf16" : "FP8");
    step(g, "decode",
         {{0, k - 2, k - 1, 1},
          {1, k - 1, k, 1},
          {2, k, k + 1, 1},
          {3, k + 129, k + 130, 1},
          {4, most - 1, most, 1},
          {5, 0, 1, 1}});
    step(g, "dense decode", {{0, k - 1, k, 1}, {1, 3, 4, 1}});
    step(g, "a prompt's chunk", {{6, k - 40, k + 60, 0}});
    step(g, "several, recomputed",
         {{0, k - 3, k + 9, 1},
          {4, most - 5, most, 1},
          {7, 0, 33, 0},
          {1, k - 7, k + 70, 0},
          {2, k + 1, k + 81, 0}});
    step(g, "equal scores", {{3, k + 200, k + 201, 1}, {2, k + 5, k + 9, 0}}, true);
    rig_close(g);
}

/* With an argument, tiny shapes alone (for slow tools). */
int main(int argc, char **argv)
{
    (void)argv;
    setvbuf(stdout, NULL, _IOLBF, 0);
    test({3, 32, 24, 16, 40, 0.2f}, {40, 8, 32, 1000}, 1);
    test({2, 32, 16, 16, 16, 0.2f}, {64, 12, 32, 900}, 0);
    if (argc > 1)
        return pair_failures != 0;
    test({8, 512, 128, 64, 128, 0.1f}, {500, 20, 64, 3001}, 1);
    test({8, 512, 128, 64, 128, 0.1f}, {300, 20, 64, 900}, 1, DTYPE_F8_E4M3);
    test({16, 512, 128, 64, 128, 0.1f}, {2048, 64, 128, 8192}, 1);
    test({20, 512, 192, 64, 256, 0.1f}, {2048, 32, 128, 5000}, 0);
    printf(pair_failures ? "%d FAILED\n" : "all as on the CPU\n", pair_failures);
    return pair_failures != 0;
}
