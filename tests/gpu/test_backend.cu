/* The CUDA backend's operations against the CPU backend's on the same random numbers, at the shapes
 * of DeepSeek-V2-Lite and at those of tiny models. Sampling has a test of its own. */
#include "tests/gpu/backend_pair.cuh"

enum { ROWS = 300, SEQS = 16, PAGES = 256 };

static pair open_pair(enum dtype kv_dtype = DTYPE_BF16, int batch_invariant = 0)
{
    backend_options options = {};

    options.slots = SEQS;
    options.vocab_size = 1024;
    options.limits.max_rows = ROWS;
    options.limits.max_seqs = SEQS;
    options.limits.max_pages = PAGES;
    options.kv_dtype = kv_dtype;
    options.batch_invariant = batch_invariant;
    return pair_open(options);
}

static void test_linear(pair &p, int64_t m, int64_t n, int64_t k)
{
    float scale = 1 / sqrtf((float)k);
    twin x = twin_random(p, 1, m, k), a = twin_out(p, m, n), b = twin_random(p, 2, m, n);
    twin c = twin_out(p, m, n, DTYPE_F32);
    twin w = twin_weight(p, 3, WEIGHT_MATRIX, {n, k}, scale);
    twin v = twin_weight(p, 4, WEIGHT_MATRIX, {n, k}, scale);
    twin bias = twin_weight(p, 5, WEIGHT_EXACT, {n}, 1);
    twin router = twin_weight(p, 6, WEIGHT_EXACT, {n, k}, scale);
    linear_part cpu[] = {{a.cpu, w.cpu, none, none}, {b.cpu, v.cpu, bias.cpu, b.cpu}};
    linear_part gpu[] = {{a.gpu, w.gpu, none, none}, {b.gpu, v.gpu, bias.gpu, b.gpu}};
    linear_part cpu_f32 = {c.cpu, w.cpu, none, none}, gpu_f32 = {c.gpu, w.gpu, none, none};
    linear_part cpu_exact = {c.cpu, router.cpu, none, none};
    linear_part gpu_exact = {c.gpu, router.gpu, none, none};

    p.cpu->ops->linear(p.cpu, x.cpu, cpu, 2);
    p.gpu->ops->linear(p.gpu, x.gpu, gpu, 2);
    double e1 = compare(p, "linear", a, 5e-3), e2 = compare(p, "linear, residual", b, 5e-3);
    p.cpu->ops->linear(p.cpu, x.cpu, &cpu_f32, 1);
    p.gpu->ops->linear(p.gpu, x.gpu, &gpu_f32, 1);
    double e3 = compare(p, "linear to F32", c, 1e-5);
    p.cpu->ops->linear(p.cpu, x.cpu, &cpu_exact, 1);
    p.gpu->ops->linear(p.gpu, x.gpu, &gpu_exact, 1);
    double e4 = compare(p, "router", c, 1e-6);
    p.cpu->ops->gated(p.cpu, a.cpu, x.cpu, w.cpu, v.cpu);
    p.gpu->ops->gated(p.gpu, a.gpu, x.gpu, w.gpu, v.gpu);
    double e5 = compare(p, "gated", a, 5e-3);
    printf("linear (%lld, %lld, %lld): %.1e, residual %.1e, F32 %.1e, router %.1e, gated %.1e\n",
           (long long)m, (long long)n, (long long)k, e1, e2, e3, e4, e5);
    twin_free(p, {&x, &a, &b, &c, &w, &v, &bias, &router});
}

static void test_rmsnorm(pair &p, int64_t rows, int64_t n)
{
    twin x = twin_random(p, 1, rows, n, 3), out = twin_out(p, rows, n);
    twin w = twin_weight(p, 2, WEIGHT_EXACT, {n}, 0.3f, 1);

    p.cpu->ops->rmsnorm(p.cpu, out.cpu, x.cpu, w.cpu, 1e-5f);
    p.gpu->ops->rmsnorm(p.gpu, out.gpu, x.gpu, w.gpu, 1e-5f);
    printf("rmsnorm (%lld, %lld): %.1e\n", (long long)rows, (long long)n,
           compare(p, "rmsnorm", out, 4e-3));
    twin_free(p, {&x, &out, &w});
}

/* Experts chosen, and their weights; where choices differ, the scores must be all but equal. */
static void test_route(pair &p, router_config c, bool biased)
{
    enum { N = 200 };
    const int64_t shape[] = {N, c.top_k}, choices = c.experts + c.identity;
    twin logits = twin_random(p, 7, N, choices, 2, DTYPE_F32);
    twin bias = twin_weight(p, 8, WEIGHT_EXACT, {choices}, 0.3f);
    twin weights = twin_out(p, N, c.top_k, DTYPE_F32), ids;
    int differing = 0;

    must(p.cpu->ops->alloc(p.cpu, &ids.cpu, DTYPE_I32, 2, shape, &p.err), p);
    must(p.gpu->ops->alloc(p.gpu, &ids.gpu, DTYPE_I32, 2, shape, &p.err), p);
    p.cpu->ops->route(p.cpu, ids.cpu, weights.cpu, logits.cpu, biased ? bias.cpu : none, &c);
    p.gpu->ops->route(p.gpu, ids.gpu, weights.gpu, logits.gpu, biased ? bias.gpu : none, &c);
    std::vector<int32_t> got(N * c.top_k);
    p.gpu->ops->download(p.gpu, got.data(), &ids.gpu);
    for (int i = 0; i < N * c.top_k; i++)
        differing += got[i] != ((int32_t *)ids.cpu.data)[i];
    CHECK(differing == 0, "route: %d choices differ", differing);
    printf("route %s, %d of %d, %d groups%s: %d differ, weights %.1e\n",
           c.scoring == ROUTER_SOFTMAX ? "softmax" : "sigmoid", c.top_k, (int)choices, c.groups,
           biased ? ", bias" : "", differing, compare(p, "route weights", weights, 1e-5));
    twin_free(p, {&logits, &bias, &weights, &ids});
}

/* Identity experts give their input back and take themselves out of ids. */
static void test_identity_experts(pair &p, int64_t rows, int64_t d)
{
    const int32_t experts = 5, k = 4;
    const int64_t shape[] = {rows, k};
    twin x = twin_random(p, 1, rows, d), out = twin_random(p, 2, rows, d), ids;
    twin weights = twin_random(p, 3, rows, k, 0.5f, DTYPE_F32);
    int differing = 0;

    must(p.cpu->ops->alloc(p.cpu, &ids.cpu, DTYPE_I32, 2, shape, &p.err), p);
    must(p.gpu->ops->alloc(p.gpu, &ids.gpu, DTYPE_I32, 2, shape, &p.err), p);
    for (int64_t i = 0; i < rows * k; i++)
        ((int32_t *)ids.cpu.data)[i] = (int32_t)(i * i % 11) - 1;
    cudaMemcpy(ids.gpu.data, ids.cpu.data, tensor_bytes(&ids.cpu), cudaMemcpyHostToDevice);
    p.cpu->ops->identity_experts(p.cpu, out.cpu, x.cpu, ids.cpu, weights.cpu, experts);
    p.gpu->ops->identity_experts(p.gpu, out.gpu, x.gpu, ids.gpu, weights.gpu, experts);
    std::vector<int32_t> got(rows * k);
    p.gpu->ops->download(p.gpu, got.data(), &ids.gpu);
    for (int64_t i = 0; i < rows * k; i++)
        differing += got[i] != ((int32_t *)ids.cpu.data)[i] || got[i] >= experts;
    CHECK(differing == 0, "identity_experts: %d ids differ", differing);
    printf("identity_experts (%lld, %lld): %d ids differ, %.1e\n", (long long)rows, (long long)d,
           differing, compare(p, "identity_experts", out, 4e-3));
    twin_free(p, {&x, &out, &ids, &weights});
}

static void test_add(pair &p, int64_t rows, int64_t n)
{
    twin sum = twin_random(p, 1, rows, n), x = twin_random(p, 2, rows, n);

    p.cpu->ops->add(p.cpu, sum.cpu, x.cpu);
    p.gpu->ops->add(p.gpu, sum.gpu, x.gpu);
    printf("add (%lld, %lld): %.1e\n", (long long)rows, (long long)n, compare(p, "add", sum, 4e-3));
    twin_free(p, {&sum, &x});
}

static void test_concat(pair &p, int64_t rows, int64_t m, int64_t n)
{
    twin a = twin_random(p, 1, rows, m), b = twin_random(p, 2, rows, n);
    twin out = twin_out(p, rows, m + n);

    p.cpu->ops->concat(p.cpu, out.cpu, a.cpu, b.cpu);
    p.gpu->ops->concat(p.gpu, out.gpu, a.gpu, b.gpu);
    printf("concat (%lld, %lld + %lld): %.1e\n", (long long)rows, (long long)m, (long long)n,
           compare(p, "concat", out, 0));
    twin_free(p, {&a, &b, &out});
}

static void test_moe(int64_t rows, backend_shapes shapes)
{
    pair p = open_pair();
    int64_t d = shapes.hidden_size, i = shapes.moe_intermediate, s = shapes.shared_intermediate;
    int32_t experts = shapes.router.experts, k = shapes.router.top_k;
    int64_t ids_shape[] = {rows, k};
    float in = 1 / sqrtf((float)d), back = 2 / sqrtf((float)i);

    must(p.cpu->ops->reserve(p.cpu, &shapes, &p.err), p);
    must(p.gpu->ops->reserve(p.gpu, &shapes, &p.err), p);
    twin gate = twin_weight(p, 1, WEIGHT_MATRIX, {experts, i, d}, in);
    twin up = twin_weight(p, 2, WEIGHT_MATRIX, {experts, i, d}, in);
    twin down = twin_weight(p, 3, WEIGHT_MATRIX, {experts, d, i}, back);
    twin sg = twin_weight(p, 4, WEIGHT_MATRIX, {s, d}, in);
    twin su = twin_weight(p, 5, WEIGHT_MATRIX, {s, d}, in);
    twin sd = twin_weight(p, 6, WEIGHT_MATRIX, {d, s}, back);
    twin x = twin_random(p, 7, rows, d), out = twin_random(p, 8, rows, d), ids;
    twin weights = twin_random(p, 9, rows, k, 0.5f, DTYPE_F32);

    must(p.cpu->ops->alloc(p.cpu, &ids.cpu, DTYPE_I32, 2, ids_shape, &p.err), p);
    for (int64_t r = 0; r < rows; r++)
        for (int32_t j = 0; j < k; j++) /* distinct in a row, uneven over the experts */
            ((int32_t *)ids.cpu.data)[r * k + j] = (int32_t)((r * r % 7 + j * 3 + 1) % experts);
    must(p.gpu->ops->alloc(p.gpu, &ids.gpu, DTYPE_I32, 2, ids_shape, &p.err), p);
    cudaMemcpy(ids.gpu.data, ids.cpu.data, tensor_bytes(&ids.cpu), cudaMemcpyHostToDevice);
    moe_weights cpu = {gate.cpu, up.cpu, down.cpu}, gpu = {gate.gpu, up.gpu, down.gpu};
    ffn_weights cpu_shared = {sg.cpu, su.cpu, sd.cpu}, gpu_shared = {sg.gpu, su.gpu, sd.gpu};
    twin alone = twin_out(p, rows, d);
    for (backend *be : {p.cpu, p.gpu}) {
        bool g = be == p.gpu;
        ffn_weights *shared = s == 0 ? NULL : g ? &gpu_shared : &cpu_shared;
        tensor in = g ? x.gpu : x.cpu, sum = g ? out.gpu : out.cpu, to = g ? alone.gpu : alone.cpu;
        tensor chosen = g ? ids.gpu : ids.cpu, w = g ? weights.gpu : weights.cpu;
        be->ops->moe(be, to, none, in, chosen, w, g ? &gpu : &cpu, shared);
        be->ops->moe(be, sum, sum, in, chosen, w, g ? &gpu : &cpu, shared);
    }
    printf("moe %lld rows, %d of %d, d %lld, i %lld, shared %lld: %.1e, added %.1e\n",
           (long long)rows, k, experts, (long long)d, (long long)i, (long long)s,
           compare(p, "moe", alone, 8e-3), compare(p, "moe added", out, 8e-3));
    twin_free(p, {&gate, &up, &down, &x, &out, &alone, &ids, &weights});
    twin_free(p, {&sg, &su, &sd});
    pair_close(&p);
}

static tensor random_fp8(pair &p, uint64_t seed, std::vector<int64_t> shape)
{
    tensor t = {};

    must(p.gpu->ops->alloc_weight(p.gpu, &t, WEIGHT_MATRIX, DTYPE_F8_E4M3, (int)shape.size(),
                                  shape.data(), &p.err),
         p);
    must(p.gpu->ops->fill_random(p.gpu, &t, seed, 1 / sqrtf((float)shape.back()), &p.err), p);
    return t;
}

/* Rows that a normalisation has quantised on the way give the same bits as rows that a product or
 * the experts quantise; and not those of a normalisation long past. */
static void test_quantised(int64_t d, int64_t i)
{
    pair p = open_pair();
    backend_shapes shapes = {(int32_t)d,
                             {16, 512, 128, 64, 128, 1},
                             {ROUTER_SOFTMAX, 16, 10, 1, 1, 0, 1, 0},
                             (int32_t)i,
                             0,
                             {},
                             0};
    int64_t n = 576, k = 10, ids_shape[] = {ROWS, k};
    const struct backend_ops *op = p.gpu->ops;

    tensor w = random_fp8(p, 1, {n, d}), v = random_fp8(p, 2, {n, d}), ids;
    tensor gate = random_fp8(p, 3, {16, i, d}), up = random_fp8(p, 4, {16, i, d});
    tensor down = random_fp8(p, 5, {16, d, i});
    must(op->reserve(p.gpu, &shapes, &p.err), p);
    twin x = twin_random(p, 6, ROWS, d, 3), h = twin_out(p, ROWS, d);
    twin norm = twin_weight(p, 7, WEIGHT_EXACT, {d}, 0.3f, 1);
    twin weights = twin_random(p, 8, ROWS, k, 0.5f, DTYPE_F32);
    must(op->alloc(p.gpu, &ids, DTYPE_I32, 2, ids_shape, &p.err), p);
    std::vector<int32_t> chosen(ROWS * k);
    for (int64_t c = 0; c < ROWS * k; c++)
        chosen[c] = (int32_t)((c / k * 7 + c % k) % 16);
    cudaMemcpy(ids.data, chosen.data(), tensor_bytes(&ids), cudaMemcpyHostToDevice);
    std::vector<float> results[3][3];

    op->rmsnorm(p.gpu, h.gpu, x.gpu, norm.gpu, 1e-5f);
    twin copy = twin_of(p, gpu_values(p, h.gpu), ROWS, d);
    for (int turn = 0; turn < 3; turn++) { /* quantised; a copy; no more */
        tensor in = turn == 1 ? copy.gpu : h.gpu;
        twin a = twin_out(p, ROWS, n), b = twin_out(p, ROWS, n), c = twin_out(p, ROWS, d);
        linear_part part = {a.gpu, w, none, none};
        moe_weights experts = {gate, up, down};
        op->linear(p.gpu, in, &part, 1);
        op->gated(p.gpu, b.gpu, in, w, v);
        op->moe(p.gpu, c.gpu, none, in, ids, weights.gpu, &experts, NULL);
        results[turn][0] = gpu_values(p, a.gpu);
        results[turn][1] = gpu_values(p, b.gpu);
        results[turn][2] = gpu_values(p, c.gpu);
        twin_free(p, {&a, &b, &c});
    }
    for (int turn = 1; turn < 3; turn++)
        for (int what = 0; what < 3; what++)
            CHECK(results[turn][what] == results[0][what], "quantised (%lld): turn %d, result %d",
                  (long long)d, turn, what);
    for (tensor *t : {&w, &v, &gate, &up, &down, &ids})
        op->release(p.gpu, t);
    twin_free(p, {&x, &h, &norm, &weights, &copy});
    pair_close(&p);
}

/* ---- the batch ------------------------------------------------------------------------------ */

static batch *new_batch(void)
{
    return batch_new({ROWS, SEQS, PAGES, 0});
}

static void test_embed_and_gather(pair &p)
{
    enum { D = 256, V = 1024 };
    batch *b = new_batch();
    int32_t tokens[] = {7, 1023, 0, 512}, page = 0;
    batch_seq three = {}, one = {};
    twin table = twin_weight(p, 1, WEIGHT_MATRIX, {V, D}, 1);
    twin x = twin_out(p, 4, D), last = twin_out(p, 2, D);

    three.n_rows = three.kv_len = 3;
    one.n_rows = one.kv_len = 1;
    three.wants_logits = one.wants_logits = 1;
    batch_add(b, three, tokens, &page, 0);
    batch_add(b, one, tokens + 3, &page, 0);
    for (backend *be : {p.cpu, p.gpu}) {
        bool gpu = be == p.gpu;
        be->ops->begin(be, b);
        be->ops->embed(be, gpu ? x.gpu : x.cpu, gpu ? table.gpu : table.cpu, 1);
        be->ops->gather_logit_rows(be, gpu ? last.gpu : last.cpu, gpu ? x.gpu : x.cpu);
        must(be->ops->finish(be, &p.err), p);
    }
    printf("embed %.1e, gather %.1e\n", compare(p, "embed", x, 0), compare(p, "gather", last, 0));
    twin_free(p, {&table, &x, &last});
    free(b);
}

/* Positions 0, 5 .. 7 and 37: times 0, 1 and 9. */
static void test_scale_by_position(pair &p)
{
    enum { N = 192 };
    batch *b = new_batch();
    int32_t tokens[3] = {}, page = 0;
    batch_seq first = {}, three = {}, late = {};
    twin x = twin_random(p, 1, 5, N);

    first.n_rows = first.kv_len = 1;
    three.n_rows = 3;
    three.kv_len = 8;
    late.n_rows = 1;
    late.kv_len = 38;
    for (batch_seq seq : {first, three, late})
        batch_add(b, seq, tokens, &page, 0);
    for (backend *be : {p.cpu, p.gpu}) {
        be->ops->begin(be, b);
        be->ops->scale_by_position(be, be == p.gpu ? x.gpu : x.cpu, 0.1f, 4);
        must(be->ops->finish(be, &p.err), p);
    }
    printf("scale_by_position %.1e\n", compare(p, "scale_by_position", x, 4e-3));
    twin_free(p, {&x});
    free(b);
}

/* ---- attention ------------------------------------------------------------------------------ */

struct attention_rig {
    pair p;
    mla_shape shape;
    rope_config rope;
    twin kv_b, norm;
    tensor cpu_cache, gpu_cache;
    batch *b;
    int32_t pages[SEQS][PAGES / SEQS];
};

struct piece {
    int32_t seq, from, to, absorbed;
};

static attention_rig *rig_open(mla_shape shape, int half_split, enum dtype kv_dtype,
                               int batch_invariant = 0)
{
    attention_rig *g = (attention_rig *)mem_zalloc(1, sizeof(*g));
    backend_shapes shapes = {};
    int64_t cache[] = {PAGES, KV_PAGE_TOKENS, 0};
    int32_t head = shape.nope_dim + shape.v_dim;

    g->p = open_pair(kv_dtype, batch_invariant);
    g->shape = shapes.mla = shape;
    must(g->p.cpu->ops->reserve(g->p.cpu, &shapes, &g->p.err), g->p);
    must(g->p.gpu->ops->reserve(g->p.gpu, &shapes, &g->p.err), g->p);
    g->rope.dim = shape.rope_dim;
    g->rope.half_split = half_split;
    g->rope.magnitude = 1.1f;
    for (int i = 0; i < shape.rope_dim / 2; i++)
        g->rope.inv_freq[i] = powf(10000, -2.0f * (float)i / (float)shape.rope_dim);
    g->kv_b = twin_weight(g->p, 1, WEIGHT_MATRIX, {shape.heads * head, shape.kv_lora_rank},
                          1 / sqrtf((float)shape.kv_lora_rank));
    g->norm = twin_weight(g->p, 2, WEIGHT_EXACT, {shape.kv_lora_rank}, 0.2f, 1);
    cache[2] = kv_row_elements(&shape, DTYPE_F32);
    must(g->p.cpu->ops->alloc(g->p.cpu, &g->cpu_cache, DTYPE_F32, 3, cache, &g->p.err), g->p);
    cache[2] = kv_row_elements(&shape, kv_dtype);
    must(g->p.gpu->ops->alloc(g->p.gpu, &g->gpu_cache, kv_dtype, 3, cache, &g->p.err), g->p);
    g->b = new_batch();
    for (int s = 0; s < SEQS; s++)
        for (int i = 0; i < PAGES / SEQS; i++)
            g->pages[s][i] = (s + i * SEQS) * 5 % PAGES;
    return g;
}

static void rig_close(attention_rig *g)
{
    twin_free(g->p, {&g->kv_b, &g->norm});
    g->p.cpu->ops->release(g->p.cpu, &g->cpu_cache);
    g->p.gpu->ops->release(g->p.gpu, &g->gpu_cache);
    pair_close(&g->p);
    free(g->b);
    free(g);
}

/* The batch of these pieces, in their order. */
static void rig_batch(attention_rig *g, const std::vector<piece> &pieces)
{
    std::vector<int32_t> tokens(ROWS, 1);

    batch_clear(g->b);
    for (const piece &one : pieces) {
        batch_seq seq = {};
        seq.slot = one.seq;
        seq.n_rows = one.to - one.from;
        seq.kv_len = one.to;
        seq.absorbed = one.absorbed;
        batch_add(g->b, seq, tokens.data(), g->pages[one.seq], 0);
    }
}

static int64_t q_columns(const attention_rig *g)
{
    return g->shape.heads * (g->shape.nope_dim + g->shape.rope_dim);
}

static int64_t kv_columns(const attention_rig *g)
{
    return g->shape.kv_lora_rank + g->shape.rope_dim;
}

/* A step of the batch on one of the backends. */
static void rig_run(attention_rig *g, backend *be, twin &q, twin &kv, twin &out)
{
    bool gpu = be == g->p.gpu;
    mla_layer layer = {g->shape, gpu ? g->kv_b.gpu : g->kv_b.cpu,
                       gpu ? g->gpu_cache : g->cpu_cache};

    be->ops->begin(be, g->b);
    be->ops->rope_kv_write(be, gpu ? q.gpu : q.cpu, gpu ? kv.gpu : kv.cpu, &layer,
                           gpu ? g->norm.gpu : g->norm.cpu, 1e-6f, &g->rope);
    be->ops->mla_prefill(be, gpu ? out.gpu : out.cpu, gpu ? q.gpu : q.cpu, &layer);
    be->ops->mla_decode(be, gpu ? out.gpu : out.cpu, gpu ? q.gpu : q.cpu, &layer);
    must(be->ops->finish(be, &g->p.err), g->p);
}

/* One step with these pieces, in their order; returns the relative error. */
static double rig_step(attention_rig *g, std::vector<piece> pieces, double limit)
{
    pair &p = g->p;
    static uint64_t seed = 100;

    rig_batch(g, pieces);
    twin q = twin_random(p, seed++, g->b->n_rows, q_columns(g));
    twin kv = twin_random(p, seed++, g->b->n_rows, kv_columns(g));
    twin out = twin_out(p, g->b->n_rows, g->shape.heads * g->shape.v_dim);
    for (backend *be : {p.cpu, p.gpu})
        rig_run(g, be, q, kv, out);
    double error = compare(p, "attention", out, limit);
    twin_free(p, {&q, &kv, &out});
    return error;
}

static void test_attention(mla_shape shape, int half_split, enum dtype kv_dtype)
{
    attention_rig *g = rig_open(shape, half_split, kv_dtype);
    double limit = kv_dtype == DTYPE_BF16 ? 8e-3 : 6e-2;
    double prompt = rig_step(g, {{0, 0, 200, 0}, {1, 0, 3, 0}, {2, 0, 64, 0}}, limit);
    double chunk = rig_step(g, {{0, 200, 290, 0}, {3, 0, 1, 0}}, limit);
    double decode =
        rig_step(g, {{0, 290, 291, 1}, {1, 3, 4, 1}, {2, 64, 65, 1}, {3, 1, 2, 1}}, limit);
    double mixed = rig_step(
        g, {{0, 291, 292, 1}, {4, 0, 100, 0}, {1, 4, 9, 1}, {2, 65, 66, 1}, {5, 0, 7, 0}}, limit);

    printf("attention %d heads, %d + %d, nope %d, v %d, %s, %s: prompt %.1e, chunk %.1e, decode "
           "%.1e, mixed %.1e\n",
           shape.heads, shape.kv_lora_rank, shape.rope_dim, shape.nope_dim, shape.v_dim,
           half_split ? "halves" : "pairs", kv_dtype == DTYPE_BF16 ? "bf16" : "FP8", prompt, chunk,
           decode, mixed);
    rig_close(g);
}

/* Values that follow from sequence and position alone. */
static twin rows_of(attention_rig *g, uint64_t seed, const std::vector<piece> &pieces,
                    int64_t columns)
{
    std::vector<float> values;

    for (const piece &one : pieces)
        for (int32_t at = one.from; at < one.to; at++) {
            std::vector<float> row =
                random_values(seed + (uint64_t)(one.seq * PAGES * KV_PAGE_TOKENS + at), columns, 1);
            values.insert(values.end(), row.begin(), row.end());
        }
    return twin_of(g->p, values, (int64_t)values.size() / columns, columns);
}

/* A step on the GPU; adds what it gives for the rows of the last piece to `outs`. */
static void rig_add(attention_rig *g, const std::vector<piece> &pieces, std::vector<float> *outs)
{
    rig_batch(g, pieces);
    int64_t columns = g->shape.heads * g->shape.v_dim;
    twin q = rows_of(g, 0, pieces, q_columns(g)), kv = rows_of(g, 1 << 20, pieces, kv_columns(g));
    twin out = twin_out(g->p, g->b->n_rows, columns);
    rig_run(g, g->p.gpu, q, kv, out);
    std::vector<float> values = gpu_values(g->p, out.gpu);
    const piece &last = pieces.back();
    outs->insert(outs->end(), values.end() - (last.to - last.from) * columns, values.end());
    twin_free(g->p, {&q, &kv, &out});
}

/* Batch-invariant: the rows of a sequence that was alone, and the same when it has been preempted
 * and is computed again beside others, in other pages. The first rows see 9 pages, their spans have
 * 10: mla_decode would share those out to its blocks in another way. */
static void test_again(mla_shape shape, enum dtype kv_dtype)
{
    enum { PROMPT = 560, MIDDLE = 585, END = 600 };
    attention_rig *g = rig_open(shape, 0, kv_dtype, 1);
    std::vector<float> alone, again, prompts;
    size_t differing = 0;

    rig_add(g, {{0, 0, ROWS, 0}}, &prompts);
    rig_add(g, {{0, ROWS, PROMPT, 0}}, &prompts);
    for (int32_t i = PROMPT; i < END; i++)
        rig_add(g, {{0, i, i + 1, 1}}, &alone);
    std::swap(g->pages[0], g->pages[SEQS - 1]);
    rig_add(g, {{1, 0, 40, 0}, {2, 0, 9, 0}, {0, 0, 77, 0}}, &prompts);
    rig_add(g, {{1, 40, 41, 1}, {2, 9, 12, 1}, {0, 77, 360, 0}}, &prompts);
    rig_add(g, {{0, 360, PROMPT, 0}}, &prompts);
    rig_add(g, {{1, 41, 42, 1}, {2, 12, 90, 1}, {0, PROMPT, MIDDLE, 1}}, &again);
    rig_add(g, {{0, MIDDLE, END, 1}}, &again);
    for (size_t i = 0; i < alone.size(); i++)
        differing += !(alone[i] == again[i]);
    CHECK(differing == 0, "computed again: %zu of %zu values differ", differing, alone.size());
    printf("again %d heads, %d + %d, %s: %zu values differ\n", shape.heads, shape.kv_lora_rank,
           shape.rope_dim, kv_dtype == DTYPE_BF16 ? "bf16" : "FP8", differing);
    rig_close(g);
}

int main(void)
{
    pair p = open_pair();

    test_linear(p, 1, 3072, 2048);
    test_linear(p, 37, 576, 2048);
    test_linear(p, 300, 512, 1024);
    test_linear(p, 5, 48, 32);
    test_linear(p, 2, 8, 160);
    for (int64_t n : {32, 512, 1536, 2048, 7168})
        test_rmsnorm(p, 37, n);
    test_embed_and_gather(p);
    test_route(p, {ROUTER_SOFTMAX, 64, 6, 1, 1, 0, 1, 0}, false);
    test_route(p, {ROUTER_SIGMOID, 256, 8, 8, 4, 1, 2.5f, 0}, true);
    test_route(p, {ROUTER_SIGMOID, 384, 8, 1, 1, 1, 2.8f, 0}, true);
    test_route(p, {ROUTER_SOFTMAX, 160, 6, 8, 3, 0, 16, 0}, false);
    test_route(p, {ROUTER_SOFTMAX, 6, 3, 1, 1, 1, 1, 0}, false);
    test_route(p, {ROUTER_SIGMOID, 12, 3, 4, 2, 1, 1, 0}, true);
    test_route(p, {ROUTER_SOFTMAX, 512, 12, 1, 1, 0, 6, 256}, true);
    test_route(p, {ROUTER_SOFTMAX, 8, 3, 1, 1, 0, 6, 4}, true);
    test_identity_experts(p, 37, 6144);
    test_identity_experts(p, 3, 48);
    test_add(p, 37, 7168);
    test_add(p, 1, 48);
    test_concat(p, 37, 7168, 7168);
    test_concat(p, 1, 48, 16);
    test_scale_by_position(p);
    pair_close(&p);

    backend_shapes lite = {
        2048, {16, 512, 128, 64, 128, 1}, {ROUTER_SOFTMAX, 16, 6, 1, 1, 0, 1, 0}, 1408, 2816, {},
        0};
    backend_shapes tiny = {
        32, {2, 32, 16, 16, 16, 1}, {ROUTER_SOFTMAX, 6, 3, 1, 1, 0, 1, 0}, 16, 32, {}, 0};
    test_moe(1, lite);
    test_moe(33, lite);
    test_moe(300, lite);
    test_moe(4, tiny);
    tiny.shared_intermediate = 0;
    test_moe(290, tiny);
    test_quantised(2048, 256);
    test_quantised(1408, 384);

    test_attention({16, 512, 128, 64, 128, 0.1f}, 0, DTYPE_BF16);
    test_attention({16, 512, 128, 64, 128, 0.1f}, 1, DTYPE_F8_E4M3);
    test_attention({20, 512, 192, 64, 256, 0.1f}, 0, DTYPE_BF16);
    test_attention({2, 32, 16, 16, 16, 0.2f}, 0, DTYPE_BF16);
    test_attention({3, 32, 32, 16, 32, 0.2f}, 1, DTYPE_BF16);
    test_attention({4, 64, 32, 16, 16, 0.2f}, 0, DTYPE_BF16);
    test_attention({2, 32, 16, 32, 16, 0.2f}, 1, DTYPE_BF16);
    test_attention({40, 256, 64, 32, 64, 0.1f}, 1, DTYPE_BF16);  /* MiniCPM3 */
    test_attention({32, 256, 64, 64, 128, 0.1f}, 0, DTYPE_BF16); /* Mistral Small 4 */
    for (int32_t heads : {16, 20, 64}) {
        test_again({heads, 512, 32, 64, 32, 0.1f}, DTYPE_BF16);
        test_again({heads, 512, 32, 64, 32, 0.1f}, DTYPE_F8_E4M3);
        test_again({heads, 256, 32, 64, 32, 0.1f}, DTYPE_BF16);
    }
    test_again({6, 256, 32, 32, 32, 0.1f}, DTYPE_BF16);
    printf(pair_failures ? "%d FAILED\n" : "all as on the CPU\n", pair_failures);
    return pair_failures != 0;
}
