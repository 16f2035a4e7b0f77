/* Operations that the CUDA backend does in one kernel where there are few rows (struct
 * cuda_pending): a normalisation with the product after it, and with the choice of experts, against
 * the CPU backend's, which does them one by one. */
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

int main(void)
{
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
    printf(pair_failures ? "%d FAILED\n" : "all as on the CPU\n", pair_failures);
    return pair_failures != 0;
}
