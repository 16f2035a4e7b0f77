/* Linear layers, gate and up, products per head and router logits against plain float products. */
#include "kernels/cuda/gemm.h"
#include "tests/gpu/gemm_check.cuh"

#include <math.h>
#include <string.h>

static int failures;

static void expect(bool ok)
{
    failures += !ok;
}

/* Two weights of one input: n and n2 columns (0: one weight, which then gets a residual). */
static void test_linear(int m, int n, int k, int n2, int out_float, int invariant)
{
    int64_t x_stride = k + 8, out_stride = n + 16;
    bf16 *x = random_matrix<bf16>((m - 1) * x_stride + k, 1.0f);
    bf16 *w = random_matrix<bf16>((int64_t)n * k, 1.0f / sqrtf((float)k));
    bf16 *w2 = random_matrix<bf16>((int64_t)n2 * k, 1.0f / sqrtf((float)k));
    float *bias = random_matrix<float>(n, 0.5f);
    float *want = poisoned<float>((int64_t)m * n), *want2 = poisoned<float>((int64_t)m * (n2 + 1));
    bf16 *residual = random_matrix<bf16>(m * out_stride, 0.5f);
    bool with_residual = !n2 && !out_float;
    bf16 *out = poisoned<bf16>(m * out_stride * 2), *out2 = poisoned<bf16>((int64_t)m * (n2 + 1));
    struct gemm_linear_args a;
    char what[128];

    memset(&a, 0, sizeof(a));
    a.x = x;
    a.x_stride = x_stride;
    a.m = m;
    a.k = k;
    a.n_parts = n2 ? 2 : 1;
    a.batch_invariant = invariant;
    a.parts[0] = {w,
                  out_float ? nullptr : bias,
                  with_residual ? residual : nullptr,
                  out,
                  out_stride,
                  n,
                  out_float};
    a.parts[1] = {w2, nullptr, nullptr, out2, n2, n2, 0};
    snprintf(what, sizeof(what), "linear m %d n %d k %d n2 %d float %d invariant %d", m, n, k, n2,
             out_float, invariant);
    int status = gemm_linear(&a, nullptr);
    if (status) {
        printf("FAIL %s: status %d %s\n", what, status, cudaGetErrorString(cudaGetLastError()));
        failures++;
    }
    CHECK(cudaDeviceSynchronize());
    reference_product({x, w, want, x_stride, k, 1, n, m, n, k});
    if (n2)
        reference_product({x, w2, want2, x_stride, k, 1, n2, m, n2, k});
    if (!out_float) {
        auto r = to_host(residual, m * out_stride);
        auto h = to_host(want, (int64_t)m * n), b = to_host(bias, n);
        for (int64_t i = 0; i < (int64_t)m * n; i++)
            h[(size_t)i] += b[(size_t)(i % n)] +
                            (with_residual ? r[(size_t)(i / n * out_stride + i % n)] : 0.0f);
        CHECK(cudaMemcpy(want, h.data(), h.size() * 4, cudaMemcpyHostToDevice));
        expect(compare(what, out, want, m, n, out_stride, 3e-3));
    } else {
        expect(compare(what, (float *)out, want, m, n, out_stride, 1e-5));
    }
    if (n2)
        expect(compare(what, out2, want2, m, n2, n2, 3e-3));
    for (void *p : {(void *)x, (void *)w, (void *)w2, (void *)bias, (void *)want, (void *)want2,
                    (void *)out, (void *)out2, (void *)residual})
        CHECK(cudaFree(p));
}

static void test_swiglu(int m, int i, int k, int invariant)
{
    bf16 *x = random_matrix<bf16>((int64_t)m * k, 1.0f);
    bf16 *gate = random_matrix<bf16>((int64_t)i * k, 1.0f / sqrtf((float)k));
    bf16 *up = random_matrix<bf16>((int64_t)i * k, 1.0f / sqrtf((float)k));
    float *g = poisoned<float>((int64_t)m * i), *u = poisoned<float>((int64_t)m * i);
    bf16 *out = poisoned<bf16>((int64_t)m * i);
    char what[128];

    reference_product({x, gate, g, k, k, 1, i, m, i, k});
    reference_product({x, up, u, k, k, 1, i, m, i, k});
    for (int swap = 0; swap < 2; swap++) {
        struct gemm_swiglu_args a = {x, swap ? up : gate, swap ? gate : up, out, k, i, m, k,
                                     i, invariant};
        snprintf(what, sizeof(what), "swiglu m %d i %d k %d swapped %d", m, i, k, swap);
        CHECK(cudaMemset(out, 0xff, (size_t)m * i * 2));
        int status = gemm_swiglu(&a, nullptr);
        if (status) {
            printf("FAIL %s: status %d\n", what, status);
            failures++;
        }
        CHECK(cudaDeviceSynchronize());
        auto hg = to_host(swap ? u : g, (int64_t)m * i), hu = to_host(swap ? g : u, (int64_t)m * i);
        for (size_t j = 0; j < hg.size(); j++)
            hg[j] = hg[j] / (1 + expf(-hg[j])) * hu[j];
        float *want = poisoned<float>((int64_t)m * i);
        CHECK(cudaMemcpy(want, hg.data(), hg.size() * 4, cudaMemcpyHostToDevice));
        expect(compare(what, out, want, m, i, i, 4e-3));
        CHECK(cudaFree(want));
    }
    for (void *p : {(void *)x, (void *)gate, (void *)up, (void *)g, (void *)u, (void *)out})
        CHECK(cudaFree(p));
}

/* kv_b of `heads` heads: W_UK (nope, lora) is used as (k, n), W_UV (v, lora) as (n, k). */
static void test_batched(int m, int heads, int nope, int v, int lora, int invariant)
{
    int64_t per_head = (int64_t)(nope + v) * lora;
    bf16 *kv_b = random_matrix<bf16>(heads * per_head, 1.0f / sqrtf((float)lora));
    bf16 *q = random_matrix<bf16>((int64_t)m * heads * (nope + 64), 1.0f);
    bf16 *q_out = poisoned<bf16>((int64_t)m * heads * (lora + 64));
    bf16 *o = random_matrix<bf16>((int64_t)m * heads * lora, 1.0f);
    bf16 *o_out = poisoned<bf16>((int64_t)m * heads * v);
    float *want = poisoned<float>((int64_t)m * heads * lora);
    struct gemm_batched_args a = {q,         kv_b, q_out,    (int64_t)heads * (nope + 64),
                                  nope + 64, lora, per_head, (int64_t)heads * (lora + 64),
                                  lora + 64, m,    lora,     nope,
                                  heads,     1,    invariant};
    char what[128];

    snprintf(what, sizeof(what), "batched W_UK m %d heads %d nope %d lora %d", m, heads, nope,
             lora);
    int status = gemm_batched(&a, nullptr);
    CHECK(cudaDeviceSynchronize());
    for (int h = 0; h < heads; h++)
        reference_product({q + h * (nope + 64), kv_b + h * per_head, want + h * lora,
                           (int64_t)heads * (nope + 64), 1, lora, (int64_t)heads * lora, m, lora,
                           nope});
    expect(!status && compare(what, q_out, want, (int64_t)m * heads, lora, lora + 64, 3e-3));

    a = {o,        kv_b + (int64_t)nope * lora,
         o_out,    (int64_t)heads * lora,
         lora,     lora,
         per_head, (int64_t)heads * v,
         v,        m,
         v,        lora,
         heads,    0,
         invariant};
    snprintf(what, sizeof(what), "batched W_UV m %d heads %d v %d lora %d", m, heads, v, lora);
    status = gemm_batched(&a, nullptr);
    CHECK(cudaDeviceSynchronize());
    for (int h = 0; h < heads; h++)
        reference_product({o + h * lora, kv_b + h * per_head + (int64_t)nope * lora, want + h * v,
                           (int64_t)heads * lora, lora, 1, (int64_t)heads * v, m, v, lora});
    expect(!status && compare(what, o_out, want, m, (int64_t)heads * v, (int64_t)heads * v, 3e-3));
    for (void *p : {(void *)kv_b, (void *)q, (void *)q_out, (void *)o, (void *)o_out, (void *)want})
        CHECK(cudaFree(p));
}

static void test_router(int m, int n, int k)
{
    bf16 *x = random_matrix<bf16>((int64_t)m * k, 1.0f);
    float *w = random_matrix<float>((int64_t)n * k, 1.0f), *out = poisoned<float>((int64_t)m * n);
    auto hx = to_host(x, (int64_t)m * k), hw = to_host(w, (int64_t)n * k);
    std::vector<float> want((size_t)m * n);
    struct gemm_router_args a = {x, w, out, k, m, n, k};
    char what[128];

    int status = gemm_router(&a, nullptr);
    CHECK(cudaDeviceSynchronize());
    for (int r = 0; r < m; r++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int i = 0; i < k; i++)
                sum += (double)hx[(size_t)r * k + i] * hw[(size_t)j * k + i];
            want[(size_t)r * n + j] = (float)sum;
        }
    float *device_want = poisoned<float>((int64_t)m * n);
    CHECK(cudaMemcpy(device_want, want.data(), want.size() * 4, cudaMemcpyHostToDevice));
    snprintf(what, sizeof(what), "router m %d n %d k %d", m, n, k);
    expect(!status && compare(what, out, device_want, m, n, n, 1e-6));
    for (void *p : {(void *)x, (void *)w, (void *)out, (void *)device_want})
        CHECK(cudaFree(p));
}

/* With batch_invariant a row's bits are the same in every batch. */
static void test_invariance()
{
    enum { N = 4608, K = 1024, M = 700 }; /* the last m goes to the kernel for many rows */
    bf16 *x = random_matrix<bf16>((int64_t)M * K, 1.0f);
    bf16 *w = random_matrix<bf16>((int64_t)N * K, 0.02f);
    std::vector<std::vector<float>> rows;
    float *out = poisoned<float>((int64_t)M * N);

    for (int m : {1, 5, 16, 17, 40, 64, 65, 130, 256, 300, 700}) {
        struct gemm_linear_args a;
        memset(&a, 0, sizeof(a));
        a.x = x;
        a.x_stride = K;
        a.m = m;
        a.k = K;
        a.n_parts = 1;
        a.batch_invariant = 1;
        a.parts[0] = {w, nullptr, nullptr, out, N, N, 1};
        expect(!gemm_linear(&a, nullptr));
        CHECK(cudaDeviceSynchronize());
        auto h = to_host(out, (int64_t)m * N);
        rows.push_back(h);
        if (memcmp(h.data(), rows[0].data(), N * 4)) {
            printf("FAIL invariance: m %d gives row 0 other bits\n", m);
            failures++;
        }
    }
    CHECK(cudaFree(x));
    CHECK(cudaFree(w));
    CHECK(cudaFree(out));
}

/* An argument: only what a sanitizer can do in a short time. */
int main(int argc, char **argv)
{
    bool quick = argc > 1;

    (void)argv;
    for (int m : {1, 2, 3, 7, 8, 9, 14, 16, 17, 31, 33, 64, 65, 100, 128, 200, 256, 300, 513}) {
        if (quick && m != 3 && m != 16 && m != 65 && m != 300)
            continue;
        test_linear(m, 64, 64, 0, 0, 0);
        test_linear(m, 200, 136, 72, 0, 0);
        test_linear(m, 1024, 512, 576, 0, m % 2);
        test_linear(m, 520, 1000, 0, 1, 0);
        test_linear(m, 72, 1032, 40, 0, 0);
        test_swiglu(m, 32, 64, m % 2);
        test_swiglu(m, 328, 264, m % 2);
        test_batched(m, 4, 16, 24, 32, m % 2);
        test_batched(m, 3, 128, 128, 512, m % 2);
    }
    printf("odd sizes: %d failures\n", failures);
    if (quick)
        return failures != 0;
    for (int m : {1, 32, 256, 2048}) {
        test_linear(m, 3072, 2048, 576, 0, 0);
        test_linear(m, 2048, 2048, 0, 0, 0);
        test_linear(m, 10240, 2048, 0, 1, 0);
        test_swiglu(m, 10944, 2048, 0);
        test_batched(m, 16, 128, 128, 512, 0);
        test_linear(m, 2048, 10944, 0, 0, 0);
    }
    for (int m : {1000, 1025}) { /* the kernel for many rows, at odd sizes */
        test_linear(m, 4104, 520, 0, 0, 0);
        test_linear(m, 4104, 520, 136, 1, 0);
        test_swiglu(m, 2056, 264, 0);
        test_batched(m, 24, 128, 72, 264, 0);
    }
    printf("real sizes: %d failures\n", failures);
    for (int m : {1, 4, 5, 33, 64, 65, 130}) {
        test_router(m, 64, 2048);
        test_router(m, 5, 100);
        test_router(m, 256, 512);
    }
    test_invariance();
    printf("%s\n", failures ? "FAILED" : "ok");
    return failures != 0;
}
