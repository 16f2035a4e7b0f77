/* Products and experts with FP8 weights against products with their exact values in double: odd
 * sizes, skewed routing, padding rows, all row counts at which another kernel serves, biases,
 * residuals, float results; the same bits again, and alone. Where activations are quantised, the
 * reference quantises them likewise. */
#include "kernels/cuda/moe_fp8.h"
#include "tests/gpu/fp8_check.cuh"
#include "tests/gpu/moe_check.cuh"

static int failures;

/* out[r][j] = sum over k of x[r][k] * w[j][k]; rows of w `row` apart. */
static __global__ void product_kernel(const float *x, int64_t x_stride, const float *w, int64_t row,
                                      double *out, int m, int n, int k)
{
    int j = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 8 + threadIdx.y;
    double sum = 0;

    if (j >= n || r >= m)
        return;
    for (int i = 0; i < k; i++)
        sum += (double)x[r * x_stride + i] * w[(int64_t)j * row + i];
    out[(int64_t)r * n + j] = sum;
}

static void product(const float *x, int64_t x_stride, const float *w, int64_t row, double *out,
                    int m, int n, int k)
{
    product_kernel<<<dim3((n + 31) / 32, (m + 7) / 8), dim3(32, 8)>>>(x, x_stride, w, row, out, m,
                                                                      n, k);
    CHECK(cudaGetLastError());
}

/* x as the products see it: as it is, or quantised by 128 values of a row. */
static __global__ void seen_kernel(const bf16 *x, int64_t stride, float *out, int k, bool quantised,
                                   bool ue8m0)
{
    int64_t r = blockIdx.x;
    int at = blockIdx.y * 128 + threadIdx.x;
    __shared__ float largest[128];
    float v = (float)x[r * stride + at];

    largest[threadIdx.x] = fabsf(v);
    __syncthreads();
    for (int d = 64; d; d /= 2) {
        if ((int)threadIdx.x < d)
            largest[threadIdx.x] = fmaxf(largest[threadIdx.x], largest[threadIdx.x + d]);
        __syncthreads();
    }
    float scale = fmaxf(largest[0], 1e-4f) / 448.0f;
    if (ue8m0)
        scale = exp2f(ceilf(log2f(scale)));
    out[r * k + at] = quantised ? (float)(fp8)(v / scale) * scale : v;
}

static float *seen(const bf16 *x, int64_t stride, int m, int k, bool quantised, bool ue8m0)
{
    float *out;

    CHECK(cudaMalloc(&out, (size_t)m * k * sizeof(float)));
    seen_kernel<<<dim3(m, k / 128), 128>>>(x, stride, out, k, quantised, ue8m0);
    CHECK(cudaGetLastError());
    return out;
}

template <class T> T *device_zero(int64_t n)
{
    T *p;

    CHECK(cudaMalloc(&p, (size_t)n * sizeof(T)));
    CHECK(cudaMemset(p, 0, (size_t)n * sizeof(T)));
    return p;
}

/* Rounding to bf16 is 2^-9 at most, 1.7e-3 on average. */
static const double TOLERANCE = 3.5e-3;

static bool synchronize(const char *what, int status)
{
    bool ok = succeeded(what, status);

    failures += !ok;
    return ok;
}

struct linear_case {
    int k, n[3], n_parts;
    bool bias, residual, out_float, invariant, ue8m0;
};

static void test_linear(const struct linear_case &c, int m)
{
    struct gemm_fp8_linear_args a;
    struct fp8_matrix w[3];
    int64_t x_stride = c.k + 64;
    bf16 *x = random_matrix<bf16>(m * x_stride, 1.0f);
    bool quantised = m > FP8_EXACT_ROWS && !c.invariant && !c.out_float;
    float *values = seen(x, x_stride, m, c.k, quantised, c.ue8m0);
    size_t bytes = gemm_fp8_workspace(m, c.k);
    char *workspace = poisoned<char>((int64_t)bytes), what[200];

    memset(&a, 0, sizeof(a));
    a.linear.x = x;
    a.linear.x_stride = x_stride;
    a.linear.m = m;
    a.linear.k = c.k;
    a.linear.n_parts = c.n_parts;
    a.linear.batch_invariant = c.invariant;
    a.ue8m0 = c.ue8m0;
    a.workspace = workspace;
    a.workspace_bytes = bytes;
    for (int i = 0; i < c.n_parts; i++) {
        struct gemm_part *part = &a.linear.parts[i];
        int stride = c.n[i] + 8;
        w[i] = random_fp8(1, c.n[i], c.k, 1 / sqrtf((float)c.k), true);
        part->weight = w[i].data;
        a.scales[i].scales = w[i].scales;
        part->n = c.n[i];
        part->out_stride = stride;
        part->out_float = c.out_float;
        part->out = c.out_float ? (void *)poisoned<float>((int64_t)m * stride)
                                : (void *)poisoned<bf16>((int64_t)m * stride);
        part->bias = c.bias ? random_matrix<float>(c.n[i], 1.0f) : nullptr;
        part->residual = c.residual ? random_matrix<bf16>((int64_t)m * stride, 1.0f) : nullptr;
    }
    snprintf(what, sizeof(what), "linear k %d n %d parts %d m %d bias %d residual %d invariant %d",
             c.k, c.n[0], c.n_parts, m, c.bias, c.residual, c.invariant);
    int status = gemm_fp8_linear(&a, nullptr);
    for (int i = 0; synchronize(what, status) && i < c.n_parts; i++) {
        const struct gemm_part *part = &a.linear.parts[i];
        int n = c.n[i], stride = n + 8;
        double *sums = device_zero<double>((int64_t)m * n);
        product(values, c.k, w[i].exact, c.k, sums, m, n, c.k);
        auto product_of = std::vector<double>((size_t)m * n);
        CHECK(cudaMemcpy(product_of.data(), sums, product_of.size() * 8, cudaMemcpyDeviceToHost));
        auto bias = c.bias ? to_host(part->bias, n) : std::vector<float>((size_t)n);
        auto residual = c.residual ? to_host((const bf16 *)part->residual, (int64_t)m * stride)
                                   : std::vector<float>((size_t)m * stride);
        std::vector<float> want((size_t)m * n);
        for (int64_t r = 0; r < m; r++)
            for (int j = 0; j < n; j++) {
                float v = (float)(product_of[r * n + j] + bias[j]);
                if (c.residual)
                    v = (float)(bf16)v + residual[r * stride + j];
                want[r * n + j] = v;
            }
        float *expected = device_zero<float>((int64_t)m * n);
        CHECK(cudaMemcpy(expected, want.data(), want.size() * 4, cudaMemcpyHostToDevice));
        if (c.out_float)
            failures += !compare(what, (const float *)part->out, expected, m, n, stride, 2e-5);
        else
            failures += !compare(what, (const bf16 *)part->out, expected, m, n, stride, TOLERANCE);
        CHECK(cudaFree(expected));
        CHECK(cudaFree(sums));
    }
    if (c.invariant && m > 1 && !c.residual && !c.out_float) { /* the last row alone */
        int stride = c.n[0] + 8;
        auto all = to_host((const bf16 *)a.linear.parts[0].out + (m - 1) * (int64_t)stride, c.n[0]);
        a.linear.x = x + (m - 1) * x_stride;
        a.linear.m = 1;
        status = gemm_fp8_linear(&a, nullptr);
        synchronize(what, status);
        if (all != to_host((const bf16 *)a.linear.parts[0].out, c.n[0])) {
            printf("FAIL %s: the last row alone has other bits\n", what);
            failures++;
        }
    }
    for (int i = 0; i < c.n_parts; i++) {
        free_fp8(&w[i]);
        CHECK(cudaFree(a.linear.parts[i].out));
        CHECK(cudaFree((void *)a.linear.parts[i].bias));
        CHECK(cudaFree((void *)a.linear.parts[i].residual));
    }
    CHECK(cudaFree(values));
    CHECK(cudaFree(x));
    CHECK(cudaFree(workspace));
}

/* A product that normalises its input: the rows as they should be, and then the product's bits. */
static void test_norm(int m, int k, int n, bool residual)
{
    struct gemm_fp8_linear_args a;
    struct fp8_matrix w = random_fp8(1, n, k, 1 / sqrtf((float)k), false);
    int64_t stride = k + 8;
    bf16 *x = random_matrix<bf16>(m * stride, 3.0f), *rows = poisoned<bf16>((int64_t)m * k);
    bf16 *out = poisoned<bf16>((int64_t)m * n), *add = random_matrix<bf16>((int64_t)m * n, 1.0f);
    float *norm = random_matrix<float>(k, 1.0f);
    char what[160];

    memset(&a, 0, sizeof(a));
    a.linear.x = x;
    a.linear.x_stride = stride;
    a.linear.m = m;
    a.linear.k = k;
    a.linear.n_parts = 1;
    a.linear.parts[0] = {w.data, nullptr, residual ? add : nullptr, out, n, n, 0};
    a.linear.norm = norm;
    a.linear.normalised = rows;
    a.linear.eps = 1e-5f;
    a.scales[0].scales = w.scales;
    snprintf(what, sizeof(what), "norm and linear m %d k %d n %d", m, k, n);
    if (!synchronize(what, gemm_fp8_linear(&a, nullptr)))
        return;
    auto in = to_host(x, m * stride);
    auto factor = to_host(norm, k), got = to_host(rows, (int64_t)m * k);
    auto with = to_host(out, (int64_t)m * n);
    for (int r = 0; r < m; r++) {
        double sum = 0, error = 0, all = 0;
        for (int i = 0; i < k; i++)
            sum += (double)in[r * stride + i] * in[r * stride + i];
        for (int i = 0; i < k; i++) {
            double want = in[r * stride + i] / sqrt(sum / k + 1e-5) * factor[i];
            error += pow(got[(int64_t)r * k + i] - want, 2);
            all += want * want;
        }
        if (!(sqrt(error / all) < TOLERANCE)) {
            printf("FAIL %s: row %d is off by %.2e\n", what, r, sqrt(error / all));
            failures++;
        }
    }
    CHECK(cudaMemset(out, 0xff, (size_t)m * n * 2));
    a.linear.x = rows;
    a.linear.x_stride = k;
    a.linear.norm = nullptr;
    synchronize(what, gemm_fp8_linear(&a, nullptr));
    if (with != to_host(out, (int64_t)m * n)) {
        printf("FAIL %s: other bits than with the rows normalised before\n", what);
        failures++;
    }
    free_fp8(&w);
    for (void *p : {(void *)x, (void *)rows, (void *)out, (void *)add, (void *)norm})
        CHECK(cudaFree(p));
}

static __global__ void gate_kernel(const double *gate, const double *up, float *out, int64_t n)
{
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;

    if (i < n)
        out[i] = (float)(gate[i] / (1 + exp(-gate[i])) * up[i]);
}

static void test_swiglu(int m, int i, int k, bool invariant, bool swapped)
{
    struct gemm_fp8_swiglu_args a;
    struct fp8_matrix one = random_fp8(1, i, k, 1 / sqrtf((float)k), true);
    struct fp8_matrix two = random_fp8(1, i, k, 1 / sqrtf((float)k), true);
    struct fp8_matrix gate = (one.data < two.data) != swapped ? one : two;
    struct fp8_matrix up = gate.data == one.data ? two : one;
    bf16 *x = random_matrix<bf16>((int64_t)m * k, 1.0f), *out = poisoned<bf16>((int64_t)m * i);
    float *values = seen(x, k, m, k, m > FP8_EXACT_ROWS && !invariant, false);
    double *g = device_zero<double>((int64_t)m * i), *u = device_zero<double>((int64_t)m * i);
    float *want = device_zero<float>((int64_t)m * i);
    size_t bytes = gemm_fp8_workspace(m, k);
    char *workspace = poisoned<char>((int64_t)bytes), what[160];

    memset(&a, 0, sizeof(a));
    a.swiglu = {x, gate.data, up.data, out, k, i, m, k, i, invariant};
    a.scales = {gate.scales, up.scales};
    a.workspace = workspace;
    a.workspace_bytes = bytes;
    snprintf(what, sizeof(what), "swiglu m %d i %d k %d invariant %d swapped %d", m, i, k,
             invariant, swapped);
    if (synchronize(what, gemm_fp8_swiglu(&a, nullptr))) {
        product(values, k, gate.exact, k, g, m, i, k);
        product(values, k, up.exact, k, u, m, i, k);
        gate_kernel<<<(unsigned)((int64_t)m * i / 128 + 1), 128>>>(g, u, want, (int64_t)m * i);
        failures += !compare(what, out, want, m, i, i, TOLERANCE);
    }
    free_fp8(&one);
    free_fp8(&two);
    for (void *p : {(void *)x, (void *)out, (void *)values, (void *)g, (void *)u, (void *)want,
                    (void *)workspace})
        CHECK(cudaFree(p));
}

/* ---- experts --------------------------------------------------------------------------------- */

struct layer {
    int d, i, experts, top_k, shared;
    struct fp8_matrix gate, up, down, shared_gate, shared_up, shared_down;
};

static struct layer new_layer(int d, int i, int experts, int top_k, int shared)
{
    struct layer l = {d, i, experts, top_k, shared, {}, {}, {}, {}, {}, {}};
    float in = 1 / sqrtf((float)d), back = 1 / sqrtf((float)i);

    l.up = random_fp8(experts, i, d, in, true);
    l.gate = random_fp8(experts, i, d, in, true);
    l.down = random_fp8(experts, d, i, back, true);
    l.shared_gate = random_fp8(shared ? 1 : 0, shared * i, d, in, true);
    l.shared_up = random_fp8(shared ? 1 : 0, shared * i, d, in, true);
    l.shared_down = random_fp8(shared ? 1 : 0, d, shared * i, back, true);
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
    for (struct fp8_matrix *m :
         {&l->gate, &l->up, &l->down, &l->shared_gate, &l->shared_up, &l->shared_down})
        free_fp8(m);
}

static void test_moe(const struct layer &l, int m, enum routing how, bool with_residual,
                     int invariant)
{
    bool quantised = m * l.top_k > MOE_SMALL_PAIRS && !invariant;
    size_t bytes = moe_fp8_workspace(m, l.d, l.i, l.experts, l.top_k, l.shared);
    struct moe_case c = new_case(exact(l), m, how, with_residual, invariant, bytes, MOE_FEW_ROOM);
    struct moe_fp8_args a;

    memset(&a, 0, sizeof(a));
    c.args.gate = l.gate.data;
    c.args.up = l.up.data;
    c.args.down = l.down.data;
    c.args.shared_gate = l.shared_gate.data;
    c.args.shared_up = l.shared_up.data;
    c.args.shared_down = l.shared_down.data;
    a.gate_up = {l.gate.scales, l.up.scales};
    a.down = {l.down.scales, nullptr};
    a.shared_gate_up = {l.shared_gate.scales, l.shared_up.scales};
    a.shared_down = {l.shared_down.scales, nullptr};
    failures += check_case(
        exact(l), &c, quantised ? 1.2e-2 : 6e-3, !quantised && (m <= 4 || invariant),
        [&] {
            a.moe = c.args;
            return succeeded(c.what, moe_fp8_experts(&a, nullptr));
        },
        [&](const bf16 *p, int rows, int n) { return seen(p, n, rows, n, quantised, false); });
    free_case(&c);
}

static void test_linears(bool quick)
{
    const struct linear_case cases[] = {
        {128, {8}, 1, false, false, false, false, false},
        {256, {136, 576}, 2, true, false, false, false, false},
        {1408, {200}, 1, false, true, false, false, true},
        {2048, {3072, 576}, 2, false, false, false, false, false},
        {2048, {2048}, 1, true, true, false, true, false},
        {512, {1000}, 1, false, false, true, false, false},
        {1536, {2112, 64, 256}, 3, false, false, false, true, false},
    };

    for (auto &c : cases)
        for (int m : {1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 100, 256, 257, 300, 1000})
            if (!quick || m == 7 || m == 33 || m == 300)
                test_linear(c, m);
    for (int m : {1, 2, 5, 8})
        for (int k : {128, 640, 1536, 2048, 2304, 7168})
            if (!quick || m == 5)
                test_norm(m, k, k == 2048 ? 3648 : 200, m == 2);
    printf("linear: %d failures\n", failures);
    for (int m : {1, 8, 12, 16, 17, 40, 64, 200, 300, 777})
        for (int swapped : {0, 1})
            if (!quick || m == 12 || m == 64 || m == 300) {
                test_swiglu(m, 520, 384, m % 2, swapped);
                test_swiglu(m, 1408, 2048, 0, swapped);
            }
    printf("swiglu: %d failures\n", failures);
}

/* An argument: only what a sanitizer can do in a short time. */
int main(int argc, char **argv)
{
    bool quick = argc > 1;
    const int shapes[][5] = {
        {128, 128, 4, 2, 0}, {256, 128, 8, 3, 1}, {384, 256, 16, 4, 2}, {4224, 128, 6, 2, 1}};

    (void)argv;
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_linears(quick);
    for (auto &s : shapes) {
        struct layer l = new_layer(s[0], s[1], s[2], s[3], s[4]);
        for (int m : {1, 2, 3, 4, 5, 8, 11, 16, 17, 33, 64, 65, 130, 256, 600, 1500})
            for (enum routing how : {EVEN, ONE_EXPERT, PADDED})
                if (!quick || (how == PADDED && (m == 3 || m == 16 || m == 65)))
                    test_moe(l, m, how, m % 2, m / 2 % 2);
        free_layer(&l);
    }
    printf("small experts: %d failures\n", failures);
    if (!quick) {
        struct layer l = new_layer(2048, 1408, 64, 6, 2);
        for (int m : {1, 2, 3, 4, 5, 8, 11, 16, 32, 100, 256, 1000})
            test_moe(l, m, m == 100 ? ONE_EXPERT : m == 3 ? PADDED : EVEN, m != 1, m == 256);
        free_layer(&l);
        printf("DeepSeek-V2-Lite: %d failures\n", failures);
    }
    printf("%s\n", failures ? "FAILED" : "ok");
    return failures != 0;
}
