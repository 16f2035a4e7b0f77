/* Experts with INT4 weights, the shared ones beside them bf16, against their exact values in
 * double: odd sizes, skewed routing, padding rows, all row counts at which another kernel serves;
 * the same bits again, and alone. */
#include "kernels/cuda/moe_int4.h"
#include "tests/gpu/moe_check.cuh"

static int failures;

/* Weights (z, n, k). */
struct int4_matrix {
    int64_t z, n, k;
    uint8_t *data; /* reordered: what is multiplied */
    bf16 *scales;  /* (z, n, k / 32), a factor of 16 apart */
    float *exact;
};

static __global__ void fill_kernel(struct int4_matrix m, uint64_t seed, float scale)
{
    int64_t total = m.z * m.n * m.k, step = (int64_t)gridDim.x * blockDim.x;
    int64_t first = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;

    for (int64_t i = first; i < total / 2; i += step)
        m.data[i] = (uint8_t)(int)(fabsf(hash_normal(seed, (uint64_t)i)) * 1e5f);
    for (int64_t i = first; i < total / INT4_GROUP; i += step)
        m.scales[i] = (bf16)(scale / 8 * exp2f(hash_normal(seed + 1, (uint64_t)i)));
}

static __global__ void exact_kernel(struct int4_matrix m)
{
    int64_t total = m.z * m.n * m.k, step = (int64_t)gridDim.x * blockDim.x;

    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < total; i += step) {
        int number = m.data[i / 2] >> i % 2 * 4 & 15;
        m.exact[i] = (float)(number - 8) * (float)m.scales[i / INT4_GROUP];
    }
}

static struct int4_matrix random_int4(int64_t z, int64_t n, int64_t k, float scale)
{
    struct int4_matrix m = {z, n, k, nullptr, nullptr, nullptr};
    int64_t total = z * n * k;

    CHECK(cudaMalloc(&m.data, (size_t)total / 2 + INT4_SLACK));
    CHECK(cudaMalloc(&m.scales, (size_t)total / INT4_GROUP * sizeof(bf16)));
    CHECK(cudaMalloc(&m.exact, (size_t)total * sizeof(float)));
    fill_kernel<<<1024, 256>>>(m, next_seed()++, scale);
    next_seed()++;
    exact_kernel<<<1024, 256>>>(m);
    CHECK(cudaGetLastError());
    if (int4_reorder(m.data, total, nullptr))
        exit(printf("int4_reorder failed\n"));
    CHECK(cudaDeviceSynchronize());
    return m;
}

struct plain_matrix {
    bf16 *data;
    float *exact;
};

static struct plain_matrix random_plain(int64_t n, float scale)
{
    bf16 *data = random_matrix<bf16>(n ? n : 1, scale);

    return {data, widen(data, n)};
}

struct layer {
    int d, i, experts, top_k, shared;
    struct int4_matrix gate, up, down;
    struct plain_matrix shared_gate, shared_up, shared_down;
};

static struct layer new_layer(int d, int i, int experts, int top_k, int shared)
{
    struct layer l = {d, i, experts, top_k, shared, {}, {}, {}, {}, {}, {}};
    float in = 1 / sqrtf((float)d), back = 1 / sqrtf((float)i);

    l.up = random_int4(experts, i, d, in);
    l.gate = random_int4(experts, i, d, in);
    l.down = random_int4(experts, d, i, back);
    l.shared_gate = random_plain((int64_t)shared * i * d, in);
    l.shared_up = random_plain((int64_t)shared * i * d, in);
    l.shared_down = random_plain((int64_t)shared * i * d, back);
    return l;
}

static struct moe_exact exact(const struct layer &l)
{
    return {l.d,
            l.i,
            l.experts,
            l.top_k,
            l.shared,
            l.gate.exact,
            l.up.exact,
            l.down.exact,
            l.shared_gate.exact,
            l.shared_up.exact,
            l.shared_down.exact};
}

static void free_layer(struct layer *l)
{
    for (struct int4_matrix *m : {&l->gate, &l->up, &l->down})
        for (void *p : {(void *)m->data, (void *)m->scales, (void *)m->exact})
            CHECK(cudaFree(p));
    for (struct plain_matrix *m : {&l->shared_gate, &l->shared_up, &l->shared_down})
        for (void *p : {(void *)m->data, (void *)m->exact})
            CHECK(cudaFree(p));
}

static void test_moe(const struct layer &l, int m, enum routing how, bool with_residual,
                     int invariant)
{
    size_t bytes = moe_int4_workspace(m, l.d, l.i, l.experts, l.top_k, l.shared);
    struct moe_case c = new_case(exact(l), m, how, with_residual, invariant, bytes, MOE_FEW_ROOM);
    struct moe_int4_args a;

    a.gate_scales = (const uint16_t *)l.gate.scales;
    a.up_scales = (const uint16_t *)l.up.scales;
    a.down_scales = (const uint16_t *)l.down.scales;
    c.args.gate = l.gate.data;
    c.args.up = l.up.data;
    c.args.down = l.down.data;
    c.args.shared_gate = l.shared_gate.data;
    c.args.shared_up = l.shared_up.data;
    c.args.shared_down = l.shared_down.data;
    failures += check_case(
        exact(l), &c, 7e-3, m <= 4 || invariant,
        [&] {
            a.moe = c.args;
            return succeeded(c.what, moe_int4_experts(&a, nullptr));
        },
        [](const bf16 *p, int rows, int n) { return widen(p, (int64_t)rows * n); });
    free_case(&c);
}

/* An argument: only what a sanitizer can do in a short time. */
int main(int argc, char **argv)
{
    bool quick = argc > 1;
    const int shapes[][5] = {
        {128, 128, 4, 2, 0}, {256, 384, 8, 3, 1}, {640, 256, 16, 4, 2}, {4224, 128, 6, 2, 1}};

    (void)argv;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (auto &s : shapes) {
        struct layer l = new_layer(s[0], s[1], s[2], s[3], s[4]);
        for (int m : {1, 2, 3, 4, 5, 8, 16, 17, 33, 64, 65, 130, 256, 900, 1500})
            for (enum routing how : {EVEN, ONE_EXPERT, PADDED})
                if (!quick || (how == PADDED && (m == 3 || m == 16 || m == 65)))
                    test_moe(l, m, how, m % 2, m / 2 % 2);
        free_layer(&l);
    }
    printf("small experts: %d failures\n", failures);
    if (!quick) {
        struct layer l = new_layer(2048, 1408, 64, 6, 2);
        for (int m : {1, 2, 4, 5, 16, 32, 100, 256})
            test_moe(l, m, m == 100 ? ONE_EXPERT : m == 4 ? PADDED : EVEN, m != 1, m == 256);
        free_layer(&l);
        printf("DeepSeek-V2-Lite: %d failures\n", failures);
    }
    printf("%s\n", failures ? "FAILED" : "ok");
    return failures != 0;
}
