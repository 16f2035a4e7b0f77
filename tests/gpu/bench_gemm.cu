/* Times of the matrix products at the shapes of real models, beside what the memory and the tensor
 * cores of this GPU can do. Usage: bench_gemm [model or operation substring] [rows] */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/moe.h"
#include "tests/gpu/gemm_check.cuh"

#include <math.h>
#include <string.h>

enum { CALLS = 20 };

static double memory_tbs, tensor_tflops; /* measured ceilings */

static __global__ void read_kernel(const uint4 *p, int64_t n, unsigned *out)
{
    unsigned sum = 0;

    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x * 4) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * (int64_t)gridDim.x * blockDim.x;
            if (at < n)
                sum += __ldcs(p + at).x;
        }
    }
    if (sum == 0x12345678)
        *out = sum;
}

/* Weights that are used in turn, so that they come from memory rather than the L2. */
struct pool {
    bf16 *data;
    int64_t each;
    int copies;

    explicit pool(int64_t elements)
    {
        each = (elements + 127) / 128 * 128;
        copies = (int)std::max<int64_t>(1, std::min<int64_t>(CALLS, 150000000 / each + 1));
        data = random_matrix<bf16>(each * copies, 0.02f);
    }

    ~pool()
    {
        CHECK(cudaFree(data));
    }

    bf16 *at(int call) const
    {
        return data + call % copies * each;
    }
};

static void report(const char *model, const char *what, int m, double ms, double bytes, double flop)
{
    double floor = std::max(bytes / memory_tbs, flop / tensor_tflops) * 1e-9;

    printf("%-14s %-14s %6d %9.4f ms %6.2f TB/s %7.1f TFLOP/s %4.0f %%\n", model, what, m, ms,
           bytes / ms * 1e-9, flop / ms * 1e-9, 100 * floor / ms);
    fflush(stdout);
}

static void bench_linear(const char *model, const char *what, int m, int n, int n2, int k)
{
    pool w((int64_t)(n + n2) * k);
    bf16 *x = random_matrix<bf16>((int64_t)m * k, 1.0f);
    bf16 *out = poisoned<bf16>((int64_t)m * (n + n2));
    double ms = time_ms(CALLS, [&](cudaStream_t stream, int call) {
        struct gemm_linear_args a;
        memset(&a, 0, sizeof(a));
        a.x = x;
        a.x_stride = k;
        a.m = m;
        a.k = k;
        a.n_parts = n2 ? 2 : 1;
        a.parts[0] = {w.at(call), nullptr, nullptr, out, n, n, 0};
        a.parts[1] = {
            w.at(call) + (int64_t)n * k, nullptr, nullptr, out + (int64_t)m * n, n2, n2, 0};
        if (gemm_linear(&a, (gemm_stream)stream))
            exit(printf("gemm_linear failed\n"));
    });
    n += n2;
    report(model, what, m, ms, 2.0 * n * k + 2.0 * m * (n + k), 2.0 * m * n * k);
    CHECK(cudaFree(x));
    CHECK(cudaFree(out));
}

static void bench_swiglu(const char *model, int m, int i, int k)
{
    pool w((int64_t)2 * i * k);
    bf16 *x = random_matrix<bf16>((int64_t)m * k, 1.0f);
    bf16 *out = poisoned<bf16>((int64_t)m * i);
    double ms = time_ms(CALLS, [&](cudaStream_t stream, int call) {
        struct gemm_swiglu_args a = {x, w.at(call), w.at(call) + (int64_t)i * k, out, k, i, m, k,
                                     i, 0};
        if (gemm_swiglu(&a, (gemm_stream)stream))
            exit(printf("gemm_swiglu failed\n"));
    });
    report(model, "gate_up dense", m, ms, 4.0 * i * k + 2.0 * m * (i + k), 4.0 * m * i * k);
    CHECK(cudaFree(x));
    CHECK(cudaFree(out));
}

static void bench_batched(const char *model, int m, int heads, int nope, int v, int lora)
{
    int64_t per_head = (int64_t)(nope + v) * lora;
    pool w(heads * per_head);
    bf16 *q = random_matrix<bf16>((int64_t)m * heads * lora, 1.0f);
    bf16 *out = poisoned<bf16>((int64_t)m * heads * lora);
    for (int kn = 1; kn >= 0; kn--) {
        int n = kn ? lora : v, k = kn ? nope : lora;
        double ms = time_ms(CALLS, [&](cudaStream_t stream, int call) {
            struct gemm_batched_args a = {q,        w.at(call) + (kn ? 0 : (int64_t)nope * lora),
                                          out,      (int64_t)heads * k,
                                          k,        lora,
                                          per_head, (int64_t)heads * n,
                                          n,        m,
                                          n,        k,
                                          heads,    kn,
                                          0};
            if (gemm_batched(&a, (gemm_stream)stream))
                exit(printf("gemm_batched failed\n"));
        });
        report(model, kn ? "W_UK" : "W_UV", m, ms, 2.0 * heads * n * k + 2.0 * m * heads * (n + k),
               2.0 * m * heads * n * k);
    }
    CHECK(cudaFree(q));
    CHECK(cudaFree(out));
}

static void bench_router(const char *model, int m, int n, int k)
{
    pool w((int64_t)n * k * 2);
    bf16 *x = random_matrix<bf16>((int64_t)m * k, 1.0f);
    float *out = poisoned<float>((int64_t)m * n);
    double ms = time_ms(CALLS, [&](cudaStream_t stream, int call) {
        struct gemm_router_args a = {x, (const float *)w.at(call), out, k, m, n, k};
        if (gemm_router(&a, (gemm_stream)stream))
            exit(printf("gemm_router failed\n"));
    });
    report(model, "router", m, ms, 4.0 * n * k + 2.0 * m * k + 4.0 * m * n, 2.0 * m * n * k);
    CHECK(cudaFree(x));
    CHECK(cudaFree(out));
}

struct moe_shape {
    int d, i, experts, top_k, shared;
};

/* Weights of one layer's experts, made once for all row counts. */
struct moe_layer {
    moe_shape s;
    bf16 *gate, *up, *down, *shared_gate, *shared_up, *shared_down;

    explicit moe_layer(const moe_shape &shape) : s(shape)
    {
        int64_t n = (int64_t)s.experts * s.d * s.i, ns = (int64_t)s.shared * s.d * s.i;
        for (bf16 **p : {&gate, &up, &down})
            *p = random_matrix<bf16>(n, 0.02f);
        for (bf16 **p : {&shared_gate, &shared_up, &shared_down})
            *p = random_matrix<bf16>(ns, 0.02f);
    }

    ~moe_layer()
    {
        for (bf16 *p : {gate, up, down, shared_gate, shared_up, shared_down})
            CHECK(cudaFree(p));
    }
};

/* What a layer's experts are called with: random routing, `sets` of it. */
struct moe_call {
    struct moe_args args;
    int sets;
    double experts_hit; /* on average, without the shared ones */
    int *ids;
    char *workspace;
    bf16 *x, *out;
    float *weights;

    moe_call(const moe_layer &l, int m);
    ~moe_call();

    void run(cudaStream_t stream, int call)
    {
        args.ids = ids + (int64_t)(call % sets) * m() * args.top_k;
        if (moe_experts(&args, (gemm_stream)stream))
            exit(printf("moe_experts failed\n"));
    }

    int m() const
    {
        return args.m;
    }
};

moe_call::moe_call(const moe_layer &l, int m) : args(), sets(m <= 32 ? CALLS : 1), experts_hit(0)
{
    const moe_shape &s = l.s;
    std::vector<int> host((size_t)sets * m * s.top_k), order(s.experts);
    std::vector<char> hit(s.experts);
    size_t bytes = moe_workspace(m, s.d, s.i, s.experts, s.top_k, s.shared);

    for (int set = 0; set < sets; set++) {
        std::fill(hit.begin(), hit.end(), 0);
        for (int r = 0; r < m; r++) {
            for (int e = 0; e < s.experts; e++)
                order[e] = e;
            for (int j = 0; j < s.top_k; j++) {
                std::swap(order[j], order[j + rand() % (s.experts - j)]);
                host[((size_t)set * m + r) * s.top_k + j] = order[j];
                hit[order[j]] = 1;
            }
        }
        experts_hit += (double)std::count(hit.begin(), hit.end(), 1) / sets;
    }
    CHECK(cudaMalloc(&ids, host.size() * 4));
    CHECK(cudaMemcpy(ids, host.data(), host.size() * 4, cudaMemcpyHostToDevice));
    x = random_matrix<bf16>((int64_t)m * s.d, 1.0f);
    out = poisoned<bf16>((int64_t)m * s.d);
    weights = random_matrix<float>((int64_t)m * s.top_k, 0.3f);
    workspace = poisoned<char>((int64_t)bytes);
    args.x = x;
    args.x_stride = s.d;
    args.weights = weights;
    args.gate = l.gate;
    args.up = l.up;
    args.down = l.down;
    args.shared_gate = l.shared_gate;
    args.shared_up = l.shared_up;
    args.shared_down = l.shared_down;
    args.out = out;
    args.out_stride = s.d;
    args.m = m;
    args.d = s.d;
    args.i = s.i;
    args.experts = s.experts;
    args.top_k = s.top_k;
    args.shared = s.shared;
    args.workspace = workspace;
    args.workspace_bytes = bytes;
}

moe_call::~moe_call()
{
    for (void *p : {(void *)x, (void *)out, (void *)weights, (void *)workspace, (void *)ids})
        CHECK(cudaFree(p));
}

static void bench_moe(const char *model, const moe_layer &l, int m)
{
    const moe_shape &s = l.s;
    moe_call c(l, m);
    double pairs = (double)m * (s.top_k + s.shared);
    double ms =
        time_ms(m > 512 ? 5 : CALLS, [&](cudaStream_t stream, int call) { c.run(stream, call); });
    double per_expert = 3.0 * s.d * s.i;
    report(model, "experts", m, ms, 2 * per_expert * (c.experts_hit + s.shared) + 4.0 * m * s.d,
           2 * per_expert * pairs);
}

struct model {
    const char *name;
    int d, heads, nope, v, lora, q, kv_a, dense, vocab;
    moe_shape moe;
};

/* All products of a layer with experts, one after the other. */
static void bench_layer(const model &s, const moe_layer &layer, int m)
{
    int64_t heads = s.heads, qkv = (int64_t)(s.q + s.kv_a) * s.d, o = heads * s.v * s.d;
    int64_t kv_b = heads * (s.nope + s.v) * s.lora, router = (int64_t)s.moe.experts * s.d * 2;
    pool w(qkv + o + kv_b + router);
    bf16 *x = random_matrix<bf16>((int64_t)m * std::max<int64_t>(s.q, heads * s.lora), 1.0f);
    bf16 *y = poisoned<bf16>((int64_t)m * std::max<int64_t>(s.q + s.kv_a, heads * s.lora));
    float *logits = poisoned<float>((int64_t)m * s.moe.experts);
    moe_call c(layer, m);
    double ms = time_ms(CALLS, [&](cudaStream_t stream, int call) {
        bf16 *at = w.at(call);
        struct gemm_linear_args a = {};
        a = {x, s.d, m, s.d, 2, 0, {}, nullptr, nullptr, 0};
        a.parts[0] = {at, nullptr, nullptr, y, s.q, s.q, 0};
        a.parts[1] = {
            at + (int64_t)s.q * s.d, nullptr, nullptr, y + (int64_t)m * s.q, s.kv_a, s.kv_a, 0};
        int bad = gemm_linear(&a, (gemm_stream)stream);
        at += qkv;
        struct gemm_batched_args b = {x,
                                      at,
                                      y,
                                      heads * s.nope,
                                      s.nope,
                                      s.lora,
                                      (int64_t)(s.nope + s.v) * s.lora,
                                      heads * s.lora,
                                      s.lora,
                                      m,
                                      s.lora,
                                      s.nope,
                                      s.heads,
                                      1,
                                      0};
        bad |= gemm_batched(&b, (gemm_stream)stream);
        b = {x,
             at + (int64_t)s.nope * s.lora,
             y,
             heads * s.lora,
             s.lora,
             s.lora,
             (int64_t)(s.nope + s.v) * s.lora,
             heads * s.v,
             s.v,
             m,
             s.v,
             s.lora,
             s.heads,
             0,
             0};
        bad |= gemm_batched(&b, (gemm_stream)stream);
        at += kv_b;
        a = {x, heads * s.v, m, (int)heads * s.v, 1, 0, {}, nullptr, nullptr, 0};
        a.parts[0] = {at, nullptr, nullptr, y, s.d, s.d, 0};
        bad |= gemm_linear(&a, (gemm_stream)stream);
        struct gemm_router_args r = {x, (const float *)(at + o), logits, s.d,
                                     m, s.moe.experts,           s.d};
        bad |= gemm_router(&r, (gemm_stream)stream);
        if (bad)
            exit(printf("a product of the layer failed\n"));
        c.run(stream, call);
    });
    double experts = 3.0 * s.moe.d * s.moe.i, pairs = (double)m * (s.moe.top_k + s.moe.shared);
    double dense = (double)(qkv + o + kv_b);
    report(s.name, "layer", m, ms, 2 * (dense + router + experts * (c.experts_hit + s.moe.shared)),
           2 * (m * dense + pairs * experts));
    CHECK(cudaFree(x));
    CHECK(cudaFree(y));
    CHECK(cudaFree(logits));
}

static void ceilings()
{
    int64_t n = (int64_t)2 << 30;
    bf16 *data = random_matrix<bf16>(n, 1.0f);
    unsigned *out = poisoned<unsigned>(1);
    double ms = time_ms(3, [&](cudaStream_t stream, int) {
        read_kernel<<<132 * 8, 512, 0, stream>>>((const uint4 *)data, n / 8, out);
    });
    memory_tbs = 2.0 * n / ms * 1e-9;
    CHECK(cudaFree(data));
    CHECK(cudaFree(out));
    tensor_tflops = 783; /* bf16 8192^3 by the vendor's library on an H100 */
    printf("reads run at %.2f TB/s; the tensor cores' figure is %.0f TFLOP/s\n", memory_tbs,
           tensor_tflops);
}

int main(int argc, char **argv)
{
    const model models[] = {
        {"V2-Lite", 2048, 16, 128, 128, 512, 3072, 576, 10944, 102400, {2048, 1408, 64, 6, 2}},
        {"GLM-4.7-Flash", 2048, 20, 192, 256, 512, 768, 576, 10240, 154880, {2048, 1536, 64, 4, 1}},
        {"V3", 7168, 128, 128, 128, 512, 1536, 576, 18432, 129280, {7168, 2048, 256, 8, 1}},
    };
    const char *want = argc > 1 ? argv[1] : "";
    int only = argc > 2 ? atoi(argv[2]) : 0;

    ceilings();
    bench_linear("cube", "linear", 8192, 8192, 0, 8192);
    for (const model &s : models) {
        if (!strstr(s.name, want))
            continue;
        moe_layer layer(s.moe);
        for (int m : {1, 8, 32, 64, 128, 256, 2048, 8192}) {
            if (only && m != only)
                continue;
            bench_linear(s.name, "q + kv_a", m, s.q, s.kv_a, s.d);
            bench_linear(s.name, "o", m, s.d, 0, s.heads * s.v);
            if (m <= 256)
                bench_batched(s.name, m, s.heads, s.nope, s.v, s.lora);
            bench_swiglu(s.name, m, s.dense, s.d);
            bench_linear(s.name, "down dense", m, s.d, 0, s.dense);
            bench_router(s.name, m, s.moe.experts, s.d);
            bench_moe(s.name, layer, m);
            if (m <= 256)
                bench_layer(s, layer, m);
            if (m <= 256)
                bench_linear(s.name, "lm_head", m, s.vocab, 0, s.d);
        }
    }
    return 0;
}
