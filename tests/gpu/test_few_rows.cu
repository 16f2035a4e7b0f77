/* Operations that the CUDA backend does in one kernel where there are few rows (struct
 * cuda_pending): a normalisation with the product after it, and with the choice of experts, against
 * the CPU backend's, which does them one by one; and all of that with the experts themselves. */
#include "tests/gpu/backend_pair.cuh"

enum { ROWS = 16 };

static const float EPS = 1e-5f;

static pair open_pair(void)
{
    backend_options options = {};

    options.slots = ROWS;
    options.vocab_size = 1024;
    options.limits.max_rows = ROWS;
    options.limits.max_seqs = ROWS;
    options.limits.max_pages = ROWS;
    options.kv_dtype = DTYPE_BF16;
    return pair_open(options);
}

static void test_norm_and_linear(pair &p, int64_t rows, int64_t k, int64_t n)
{
    float scale = 1 / sqrtf((float)k);
    twin x = twin_random(p, 1, rows, k, 3), h = twin_out(p, rows, k);
    twin a = twin_out(p, rows, n), b = twin_out(p, rows, 64), c = twin_out(p, rows, n, DTYPE_F32);
    twin norm = twin_weight(p, 2, WEIGHT_EXACT, {k}, 0.3f, 1);
    twin w = twin_weight(p, 3, WEIGHT_MATRIX, {n, k}, scale);
    twin v = twin_weight(p, 4, WEIGHT_MATRIX, {64, k}, scale);

    for (backend *be : {p.cpu, p.gpu}) {
        bool gpu = be == p.gpu;
        tensor normalised = gpu ? h.gpu : h.cpu, weight = gpu ? norm.gpu : norm.cpu;
        linear_part two[] = {{gpu ? a.gpu : a.cpu, gpu ? w.gpu : w.cpu, none, none},
                             {gpu ? b.gpu : b.cpu, gpu ? v.gpu : v.cpu, none, none}};
        linear_part wide = {gpu ? c.gpu : c.cpu, gpu ? w.gpu : w.cpu, none, none};
        be->ops->rmsnorm(be, normalised, gpu ? x.gpu : x.cpu, weight, EPS);
        be->ops->linear(be, normalised, two, 2);
        be->ops->rmsnorm(be, normalised, gpu ? x.gpu : x.cpu, weight, EPS);
        be->ops->linear(be, normalised, &wide, 1);
    }
    double e1 = compare(p, "normalised", h, 4e-3), e2 = compare(p, "first product", a, 6e-3);
    double e3 = compare(p, "second product", b, 6e-3), e4 = compare(p, "F32 product", c, 6e-3);
    printf("norm and linear (%lld, %lld, %lld): norm %.1e, products %.1e %.1e, F32 %.1e\n",
           (long long)rows, (long long)n, (long long)k, e1, e2, e3, e4);
    twin_free(p, {&x, &h, &a, &b, &c, &norm, &w, &v});
}

/* One product alone, with and without what is added to it. */
static void test_product(pair &p, int64_t rows, int64_t k, int64_t n)
{
    twin x = twin_random(p, 1, rows, k), a = twin_out(p, rows, n), b = twin_random(p, 2, rows, n);
    twin w = twin_weight(p, 3, WEIGHT_MATRIX, {n, k}, 1 / sqrtf((float)k));

    for (backend *be : {p.cpu, p.gpu}) {
        bool gpu = be == p.gpu;
        linear_part plain = {gpu ? a.gpu : a.cpu, gpu ? w.gpu : w.cpu, none, none};
        linear_part sum = {gpu ? b.gpu : b.cpu, plain.weight, none, gpu ? b.gpu : b.cpu};
        be->ops->linear(be, gpu ? x.gpu : x.cpu, &plain, 1);
        be->ops->linear(be, gpu ? x.gpu : x.cpu, &sum, 1);
    }
    double e1 = compare(p, "product", a, 4e-3), e2 = compare(p, "with residual", b, 4e-3);
    printf("product (%lld, %lld, %lld): %.1e, residual %.1e\n", (long long)rows, (long long)n,
           (long long)k, e1, e2);
    twin_free(p, {&x, &a, &b, &w});
}

/* Logits carry the rounding of what was normalised; the choice is that of the CPU for the same
 * logits. */
static void test_norm_and_route(pair &p, int64_t rows, int64_t d, router_config c, bool biased)
{
    int64_t ids_shape[] = {rows, c.top_k};
    twin x = twin_random(p, 1, rows, d, 3), h = twin_out(p, rows, d);
    twin norm = twin_weight(p, 2, WEIGHT_EXACT, {d}, 0.3f, 1);
    twin router = twin_weight(p, 3, WEIGHT_EXACT, {c.experts, d}, 2 / sqrtf((float)d));
    twin bias = twin_weight(p, 4, WEIGHT_EXACT, {c.experts}, 0.3f);
    twin logits = twin_out(p, rows, c.experts, DTYPE_F32);
    twin weights = twin_out(p, rows, c.top_k, DTYPE_F32), ids;
    linear_part cpu = {logits.cpu, router.cpu, none, none};
    linear_part gpu = {logits.gpu, router.gpu, none, none};
    int differing = 0;

    must(p.cpu->ops->alloc(p.cpu, &ids.cpu, DTYPE_I32, 2, ids_shape, &p.err), p);
    must(p.gpu->ops->alloc(p.gpu, &ids.gpu, DTYPE_I32, 2, ids_shape, &p.err), p);
    p.cpu->ops->rmsnorm(p.cpu, h.cpu, x.cpu, norm.cpu, EPS);
    p.cpu->ops->linear(p.cpu, h.cpu, &cpu, 1);
    p.gpu->ops->rmsnorm(p.gpu, h.gpu, x.gpu, norm.gpu, EPS);
    p.gpu->ops->linear(p.gpu, h.gpu, &gpu, 1);
    p.gpu->ops->route(p.gpu, ids.gpu, weights.gpu, logits.gpu, biased ? bias.gpu : none, &c);
    double e1 = compare(p, "normalised", h, 4e-3), e2 = compare(p, "logits", logits, 6e-3);
    p.gpu->ops->download(p.gpu, logits.cpu.data, &logits.gpu);
    p.cpu->ops->route(p.cpu, ids.cpu, weights.cpu, logits.cpu, biased ? bias.cpu : none, &c);
    std::vector<int32_t> got(rows * c.top_k);
    p.gpu->ops->download(p.gpu, got.data(), &ids.gpu);
    for (int64_t i = 0; i < rows * c.top_k; i++)
        differing += got[i] != ((int32_t *)ids.cpu.data)[i];
    CHECK(differing == 0, "route: %d choices differ", differing);
    printf("norm and route, %lld rows of %lld, %d of %d: norm %.1e, logits %.1e, %d differ, "
           "weights %.1e\n",
           (long long)rows, (long long)d, c.top_k, c.experts, e1, e2, differing,
           compare(p, "weights", weights, 1e-5));
    twin_free(p, {&x, &h, &norm, &router, &bias, &logits, &weights, &ids});
}

static tensor random_experts(pair &p, uint64_t seed, enum dtype dtype, std::vector<int64_t> shape)
{
    tensor t = {};

    must(p.gpu->ops->alloc_weight(p.gpu, &t, WEIGHT_MATRIX, dtype, (int)shape.size(), shape.data(),
                                  &p.err),
         p);
    must(p.gpu->ops->fill_random(p.gpu, &t, seed, 2 / sqrtf((float)shape.back()), &p.err), p);
    return t;
}

/* Norm, router, choice and experts, whose sum goes where x was: the first three as above, and the
 * sum is what the experts alone make of them, but for one row's order of adding up. */
static void test_choice_and_experts(int64_t rows, int64_t d, int64_t i, int64_t shared,
                                    router_config c, enum dtype dtype)
{
    enum { TURNS = 8 };
    pair p = open_pair();
    backend_shapes shapes = {
        (int32_t)d, {16, 512, 128, 64, 128, 1}, c, (int32_t)i, (int32_t)(shared * i), {}, 0};
    enum dtype shared_dtype = dtype == DTYPE_I4 ? DTYPE_BF16 : dtype;
    int64_t ids_shape[] = {rows, c.top_k}, wide = shared ? shared * i : i;
    const struct backend_ops *op = p.gpu->ops;
    int differing = 0;
    double worst = 0, off = 0;

    tensor gate = random_experts(p, 1, dtype, {c.experts, i, d});
    tensor up = random_experts(p, 2, dtype, {c.experts, i, d});
    tensor down = random_experts(p, 3, dtype, {c.experts, d, i});
    tensor shared_gate = random_experts(p, 4, shared_dtype, {wide, d});
    tensor shared_up = random_experts(p, 5, shared_dtype, {wide, d});
    tensor shared_down = random_experts(p, 6, shared_dtype, {d, wide});
    moe_weights experts = {gate, up, down};
    ffn_weights always = {shared_gate, shared_up, shared_down};
    must(op->reserve(p.gpu, &shapes, &p.err), p);
    twin norm = twin_weight(p, 7, WEIGHT_EXACT, {d}, 0.3f, 1);
    twin router = twin_weight(p, 8, WEIGHT_EXACT, {c.experts, d}, 2 / sqrtf((float)d));
    twin bias = twin_weight(p, 9, WEIGHT_EXACT, {c.experts}, 0.3f), ids;
    bool biased = c.scoring == ROUTER_SIGMOID;
    must(p.cpu->ops->alloc(p.cpu, &ids.cpu, DTYPE_I32, 2, ids_shape, &p.err), p);
    must(op->alloc(p.gpu, &ids.gpu, DTYPE_I32, 2, ids_shape, &p.err), p);
    for (int turn = 0; turn < TURNS; turn++) {
        twin x = twin_random(p, 10 + turn, rows, d, 3),
             copy = twin_random(p, 10 + turn, rows, d, 3);
        twin h = twin_out(p, rows, d), logits = twin_out(p, rows, c.experts, DTYPE_F32);
        twin weights = twin_out(p, rows, c.top_k, DTYPE_F32);
        linear_part cpu = {logits.cpu, router.cpu, none, none};
        linear_part gpu = {logits.gpu, router.gpu, none, none};
        p.cpu->ops->rmsnorm(p.cpu, h.cpu, x.cpu, norm.cpu, EPS);
        p.cpu->ops->linear(p.cpu, h.cpu, &cpu, 1);
        op->rmsnorm(p.gpu, h.gpu, x.gpu, norm.gpu, EPS);
        op->linear(p.gpu, h.gpu, &gpu, 1);
        op->route(p.gpu, ids.gpu, weights.gpu, logits.gpu, biased ? bias.gpu : none, &c);
        op->moe(p.gpu, x.gpu, x.gpu, h.gpu, ids.gpu, weights.gpu, &experts,
                shared ? &always : NULL);
        op->moe(p.gpu, copy.gpu, copy.gpu, h.gpu, ids.gpu, weights.gpu, &experts,
                shared ? &always : NULL);
        worst = fmax(worst, compare(p, "normalised", h, 4e-3));
        worst = fmax(worst, compare(p, "logits", logits, 6e-3));
        op->download(p.gpu, logits.cpu.data, &logits.gpu);
        p.cpu->ops->route(p.cpu, ids.cpu, weights.cpu, logits.cpu, biased ? bias.cpu : none, &c);
        compare(p, "weights", weights, 1e-5);
        std::vector<int32_t> got(rows * c.top_k);
        op->download(p.gpu, got.data(), &ids.gpu);
        for (int64_t j = 0; j < rows * c.top_k; j++)
            differing += got[j] != ((int32_t *)ids.cpu.data)[j];
        std::vector<float> sum = gpu_values(p, x.gpu), again = gpu_values(p, copy.gpu);
        double difference = 0, norm_of = 0;
        for (int64_t j = 0; j < rows * d; j++) {
            difference += pow(sum[j] - again[j], 2);
            norm_of += pow(again[j], 2);
        }
        CHECK(norm_of > 0 &&
                  sqrt(difference / norm_of) <= (rows == 1 && dtype == DTYPE_F8_E4M3 ? 3e-3 : 0),
              "experts: sums differ by %.3g", sqrt(difference / norm_of));
        off = fmax(off, sqrt(difference / norm_of));
        twin_free(p, {&x, &copy, &h, &logits, &weights});
    }
    CHECK(differing == 0, "route: %d choices differ", differing);
    printf("norm, route and %s experts, %lld rows of %lld, %d of %d, i %lld, shared %lld: %.1e, "
           "sums %.1e\n",
           dtype == DTYPE_I4 ? "INT4" : "FP8", (long long)rows, (long long)d, c.top_k, c.experts,
           (long long)i, (long long)shared, worst, off);
    for (tensor *t : {&gate, &up, &down, &shared_gate, &shared_up, &shared_down})
        op->release(p.gpu, t);
    twin_free(p, {&norm, &router, &bias, &ids});
    pair_close(&p);
}

static void test_choices_and_experts(int64_t rows, enum dtype dtype)
{
    router_config lite = {ROUTER_SOFTMAX, 64, 6, 1, 1, 0, 1.0f, 0};
    router_config v3 = {ROUTER_SIGMOID, 256, 8, 8, 4, 1, 2.5f, 0};
    router_config odd = {ROUTER_SIGMOID, 132, 4, 1, 1, 1, 1.0f, 0};
    router_config tiny = {ROUTER_SOFTMAX, 7, 3, 1, 1, 0, 1.0f, 0};

    test_choice_and_experts(rows, 2048, 1408, 2, lite, dtype);
    test_choice_and_experts(rows, 2048, 768, 1, v3, dtype);
    test_choice_and_experts(rows, 4096, 256, 0, odd, dtype);
    test_choice_and_experts(rows, 256, 128, 7, tiny, dtype);
}

/* With an argument, one row with FP8 experts alone (for slow tools). */
int main(int argc, char **)
{
    if (argc > 1) {
        test_choices_and_experts(1, DTYPE_F8_E4M3);
        printf(pair_failures ? "%d FAILED\n" : "all as on the CPU\n", pair_failures);
        return pair_failures != 0;
    }
    pair p = open_pair();

    for (int64_t rows : {1, 2, 3}) {
        test_product(p, rows, 2048, 2048);
        test_product(p, rows, 768, 5120);
        test_product(p, rows, 512, 2056);
        test_product(p, rows, 1000, 88);
        test_product(p, rows, 1408, 2048);
        test_product(p, rows, 32, 8);
        test_product(p, rows, 5120, 2048);
    }
    for (int64_t rows : {1, 3, 8, 9}) {
        test_norm_and_linear(p, rows, 2048, 3072);
        test_norm_and_linear(p, rows, 768, 5120);
        test_norm_and_linear(p, rows, 7168, 576);
        test_norm_and_linear(p, rows, 96, 48);
        test_norm_and_route(p, rows, 2048, {ROUTER_SOFTMAX, 64, 6, 1, 1, 0, 1.0f, 0}, false);
        test_norm_and_route(p, rows, 2048, {ROUTER_SIGMOID, 64, 4, 1, 1, 1, 1.8f, 0}, true);
        test_norm_and_route(p, rows, 4096, {ROUTER_SIGMOID, 256, 8, 8, 4, 1, 2.5f, 0}, true);
        test_norm_and_route(p, rows, 2560, {ROUTER_SIGMOID, 160, 8, 1, 1, 1, 1.0f, 0}, true);
        test_norm_and_route(p, rows, 7168, {ROUTER_SIGMOID, 256, 8, 8, 4, 1, 2.5f, 0}, true);
        test_norm_and_route(p, rows, 32, {ROUTER_SOFTMAX, 6, 3, 1, 1, 0, 1.0f, 0}, false);
    }
    pair_close(&p);
    for (enum dtype dtype : {DTYPE_F8_E4M3, DTYPE_I4})
        for (int64_t rows : {1, 2, 3, 4})
            test_choices_and_experts(rows, dtype);
    printf(pair_failures ? "%d FAILED\n" : "all as on the CPU\n", pair_failures);
    return pair_failures != 0;
}
