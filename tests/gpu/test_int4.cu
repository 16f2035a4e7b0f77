/* Experts with INT4 weights, the shared ones beside them bf16, against their exact values in
 * double: odd sizes, skewed routing, padding rows, all row counts at which another kernel serves;
 * the same bits again, and alone. */
#include "kernels/cuda/moe_int4.h"
#include "tests/gpu/moe_check.cuh"

#include <string.h>

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

static __global__ void widen_kernel(const bf16 *in, float *out, int64_t n)
{
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;

    if (i < n)
        out[i] = (float)in[i];
}

static float *widen(const bf16 *in, int64_t n)
{
    float *out;

    CHECK(cudaMalloc(&out, (size_t)(n ? n : 1) * sizeof(float)));
    widen_kernel<<<(unsigned)(n / 256 + 1), 256>>>(in, out, n);
    CHECK(cudaGetLastError());
    return out;
}

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

static bool run(const char *what, const struct moe_int4_args &a)
{
    int status = moe_int4_experts(&a, nullptr);
    cudaError_t e = cudaDeviceSynchronize();

    if (!status && e == cudaSuccess)
        return true;
    printf("FAIL %s: status %d %s\n", what, status, cudaGetErrorString(e));
    failures++;
    if (e != cudaSuccess)
        exit(1);
    return false;
}

static void test_moe(const struct layer &l, int m, enum routing how, bool with_residual,
                     int invariant)
{
    int slots = l.top_k + l.shared;
    bf16 *x = random_matrix<bf16>((int64_t)m * l.d, 1.0f), *out = poisoned<bf16>((int64_t)m * l.d);
    bf16 *residual = random_matrix<bf16>((int64_t)m * l.d, 0.5f);
    bf16 *hidden = poisoned<bf16>((int64_t)m * slots * l.i);
    float *want = poisoned<float>((int64_t)m * l.d), *values = widen(x, (int64_t)m * l.d);
    float *weights = random_matrix<float>((int64_t)m * l.top_k, 0.4f);
    auto ids = random_ids(m, exact(l), how);
    size_t bytes = moe_int4_workspace(m, l.d, l.i, l.experts, l.top_k, l.shared);
    char *workspace = poisoned<char>((int64_t)bytes), what[160];
    int *device_ids;
    struct moe_int4_args a;

    CHECK(cudaMemset(workspace, 0, MOE_FEW_ROOM));
    CHECK(cudaMalloc(&device_ids, ids.size() * 4));
    CHECK(cudaMemcpy(device_ids, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
    a.moe = {x,
             l.d,
             device_ids,
             weights,
             l.gate.data,
             l.up.data,
             l.down.data,
             l.shared_gate.data,
             l.shared_up.data,
             l.shared_down.data,
             with_residual ? residual : nullptr,
             out,
             l.d,
             m,
             l.d,
             l.i,
             l.experts,
             l.top_k,
             l.shared,
             invariant,
             workspace,
             bytes};
    a.gate_scales = (const uint16_t *)l.gate.scales;
    a.up_scales = (const uint16_t *)l.up.scales;
    a.down_scales = (const uint16_t *)l.down.scales;
    snprintf(what, sizeof(what),
             "moe d %d i %d experts %d top %d shared %d m %d routing %d invariant %d", l.d, l.i,
             l.experts, l.top_k, l.shared, m, how, invariant);
    if (!run(what, a))
        return;
    reference_hidden<<<dim3(m * slots, (l.i + 127) / 128), 128>>>(exact(l), values, device_ids,
                                                                  hidden);
    CHECK(cudaGetLastError());
    float *seen = widen(hidden, (int64_t)m * slots * l.i);
    reference_out<<<dim3(m, (l.d + 127) / 128), 128>>>(exact(l), seen, device_ids, weights,
                                                       with_residual ? residual : nullptr, want);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    failures += !compare(what, out, want, m, l.d, l.d, 7e-3);

    auto first = to_host(out, (int64_t)m * l.d);
    CHECK(cudaMemset(out, 0xff, (size_t)m * l.d * 2));
    run(what, a);
    if (first != to_host(out, (int64_t)m * l.d)) {
        printf("FAIL %s: other bits the second time\n", what);
        failures++;
    }
    if (m > 1 && (m <= 4 || invariant)) { /* the first row alone */
        a.moe.m = 1;
        run(what, a);
        if (memcmp(first.data(), to_host(out, l.d).data(), (size_t)l.d * 4)) {
            printf("FAIL %s: row 0 alone has other bits\n", what);
            failures++;
        }
    }
    for (void *p :
         {(void *)x, (void *)out, (void *)residual, (void *)hidden, (void *)want, (void *)weights,
          (void *)workspace, (void *)device_ids, (void *)values, (void *)seen})
        CHECK(cudaFree(p));
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
