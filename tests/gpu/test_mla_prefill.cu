/* mla_prefill against a reference in float64 on the same bf16 keys and values; and the properties
 * it promises: the same bits twice, in pieces or whole, alone or in company, in chunks or at once.
 * Whatever must not be read is NaN. */
#include "kernels/mla.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <math.h>
#include <random>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_));                     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

typedef __nv_bfloat16 bf16;

struct model {
    int heads, nope, rope, v, latent, fp8;
};

struct length {
    int q_len, context;
};

static std::mt19937_64 rng;
static int failures;

static float uniform() /* variance 1 */
{
    return ((float)(rng() >> 40) / (float)(1 << 24) - 0.5f) * 3.4641016f;
}

template <typename T> static T *upload(const std::vector<T> &host)
{
    T *device;

    CUDA(cudaMalloc(&device, host.size() * sizeof(T) + 256));
    CUDA(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    return device;
}

static void expect(bool ok, const char *what, int seq, int row, int head, double got, double want)
{
    if (ok || failures++ > 12)
        return;
    printf("  FAIL %s seq %d row %d head %d: got %.9g, want %.9g\n", what, seq, row, head, got,
           want);
}

/* ---- reference --------------------------------------------------------------------------------
 */

/* kv (tokens, outs) = bf16 of latents (tokens, k) times w (outs, k). */
__global__ void reference_expand(bf16 *kv, const float *latents, const bf16 *w, int outs, int k)
{
    const int o = blockIdx.y * blockDim.x + threadIdx.x;
    double sum = 0;

    if (o >= outs)
        return;
    for (int i = 0; i < k; i++)
        sum += (double)latents[(int64_t)blockIdx.x * k + i] *
               (double)__bfloat162float(w[(int64_t)o * k + i]);
    kv[(int64_t)blockIdx.x * outs + o] = __float2bfloat16_rn((float)sum);
}

struct reference {
    const bf16 *q, *kv;
    const float *rope;
    const int32_t *rows; /* sampled query rows of the sequence */
    double *out, *lse;   /* (sampled rows, heads, v), (sampled rows, heads) */
    double *scores;      /* (sampled rows, heads, kv_len) */
    int heads, nope, rope_dim, v, context, kv_len;
    float scale;
};

__global__ void reference_attend(reference p)
{
    __shared__ double part[256];
    const int key = p.nope + p.rope_dim, outs = p.nope + p.v, head = blockIdx.y;
    const int row = p.rows[blockIdx.x], tokens = p.context + row + 1;
    const bf16 *q = p.q + ((int64_t)row * p.heads + head) * key;
    const bf16 *kv = p.kv + head * outs;
    double *scores = p.scores + ((int64_t)blockIdx.x * p.heads + head) * p.kv_len;
    double max = -INFINITY, sum = 0;

    for (int t = threadIdx.x; t < tokens; t += blockDim.x) {
        double s = 0;
        for (int i = 0; i < p.nope; i++)
            s += (double)__bfloat162float(q[i]) *
                 (double)__bfloat162float(kv[(int64_t)t * p.heads * outs + i]);
        for (int i = 0; i < p.rope_dim; i++)
            s += (double)__bfloat162float(q[p.nope + i]) * (double)p.rope[t * p.rope_dim + i];
        scores[t] = s * (double)p.scale;
        max = fmax(max, scores[t]);
    }
    part[threadIdx.x] = max;
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x; i++)
        max = fmax(max, part[i]);
    __syncthreads();
    for (int t = threadIdx.x; t < tokens; t += blockDim.x)
        sum += scores[t] = exp(scores[t] - max);
    part[threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < (int)blockDim.x; i++)
        sum += part[i];
    for (int i = threadIdx.x; i < p.v; i += blockDim.x) {
        double o = 0;
        for (int t = 0; t < tokens; t++)
            o += scores[t] * (double)__bfloat162float(kv[(int64_t)t * p.heads * outs + p.nope + i]);
        p.out[((int64_t)blockIdx.x * p.heads + head) * p.v + i] = o / sum;
    }
    if (threadIdx.x == 0)
        p.lse[blockIdx.x * p.heads + head] = log(sum) + max;
}

/* ---- a case -----------------------------------------------------------------------------------
 */

struct test_case {
    model m;
    std::vector<int32_t> q_lens, q_starts, kv_lens, table_starts, tables;
    std::vector<std::vector<float>> latents, ropes; /* per sequence, dequantised */
    std::vector<bf16> q, kv_b;
    int rows, pages;
    mla_prefill_args args; /* device pointers but for the host arrays */
};

/* One cache row into `row`, and its values. */
static void make_token(const model &m, uint8_t *row, float *latent, float *rope)
{
    bf16 *key = (bf16 *)(row + (m.fp8 ? m.latent + m.latent / 128 * 4 : 2 * m.latent));

    for (int i = 0; i < m.latent; i++) {
        if (m.fp8) {
            float scale = exp2f((float)(i / 128 % 3) - 8);
            __nv_fp8_e4m3 code(uniform() / scale);
            row[i] = code.__x;
            ((float *)(row + m.latent))[i / 128] = scale;
            latent[i] = (float)code * scale;
        } else {
            bf16 x = __float2bfloat16(uniform());
            ((bf16 *)row)[i] = x;
            latent[i] = __bfloat162float(x);
        }
    }
    for (int i = 0; i < m.rope; i++) {
        key[i] = __float2bfloat16(uniform());
        rope[i] = __bfloat162float(key[i]);
    }
}

static size_t row_bytes(const model &m)
{
    return m.fp8 ? m.latent + m.latent / 128 * 4 + 2 * m.rope : 2 * (m.latent + m.rope);
}

static void make_cache(test_case &c)
{
    const model &m = c.m;
    const size_t stride = (row_bytes(m) * 64 + 127) / 128 * 128;
    std::vector<uint8_t> cache(c.pages * stride, 0xff); /* NaN in every format */

    for (size_t s = 0; s < c.q_lens.size(); s++) {
        c.latents.emplace_back((size_t)c.kv_lens[s] * m.latent);
        c.ropes.emplace_back((size_t)c.kv_lens[s] * m.rope);
        if (c.q_lens[s] == 0)
            continue;
        for (int t = 0; t < c.kv_lens[s]; t++)
            make_token(
                m, &cache[c.tables[c.table_starts[s] + t / 64] * stride + t % 64 * row_bytes(m)],
                &c.latents[s][(size_t)t * m.latent], &c.ropes[s][(size_t)t * m.rope]);
    }
    c.args.cache = {upload(cache), (int64_t)stride, c.pages,
                    m.latent,      m.rope,          m.fp8 ? MLA_KV_FP8 : MLA_KV_BF16};
}

static test_case make_case(const model &m, const std::vector<length> &lengths)
{
    test_case c = {};
    const bf16 nan = __float2bfloat16(NAN);
    int used = 0;

    c.m = m;
    for (const length &l : lengths) {
        c.q_lens.push_back(l.q_len);
        c.q_starts.push_back(c.rows + 2); /* with rows between that belong to nobody */
        c.kv_lens.push_back(l.q_len + l.context);
        c.table_starts.push_back(used);
        c.rows += l.q_len + 2;
        used += (l.q_len + l.context + 63) / 64 + 1;
    }
    c.pages = used + 3;
    c.tables.resize(c.pages);
    for (int i = 0; i < c.pages; i++)
        c.tables[i] = i;
    std::shuffle(c.tables.begin(), c.tables.end(), rng);
    make_cache(c);
    for (size_t s = 0; s < lengths.size(); s++) /* entries that must not be used */
        c.tables[c.table_starts[s] + (c.kv_lens[s] + 63) / 64] = 0x7fffffff;

    const size_t q_row = (size_t)m.heads * (m.nope + m.rope);
    c.q.assign(c.rows * q_row, nan);
    for (size_t s = 0; s < lengths.size(); s++)
        for (size_t i = 0; i < c.q_lens[s] * q_row; i++)
            c.q[c.q_starts[s] * q_row + i] = __float2bfloat16(uniform() * 1.5f);
    c.kv_b.resize((size_t)m.heads * (m.nope + m.v) * m.latent);
    for (bf16 &x : c.kv_b)
        x = __float2bfloat16(uniform() / sqrtf((float)m.latent));
    c.args.seqs.block_tables = upload(c.tables);
    c.args.q = upload(c.q);
    c.args.kv_b = upload(c.kv_b);
    c.args.heads = m.heads;
    c.args.nope_dim = m.nope;
    c.args.v_dim = m.v;
    c.args.softmax_scale = 1.1f / sqrtf((float)(m.nope + m.rope));
    return c;
}

/* The case's lengths, where they stand now (the struct may have moved). */
static mla_prefill_args arguments(const test_case &c)
{
    mla_prefill_args a = c.args;

    a.seqs.n_seqs = (int32_t)c.q_lens.size();
    a.seqs.query_rows = c.rows;
    a.seqs.q_starts = c.q_starts.data();
    a.seqs.q_lens = c.q_lens.data();
    a.seqs.kv_lens = c.kv_lens.data();
    a.seqs.table_starts = c.table_starts.data();
    return a;
}

static void free_case(test_case &c)
{
    CUDA(cudaFree(c.args.cache.pages));
    CUDA(cudaFree((void *)c.args.seqs.block_tables));
    CUDA(cudaFree((void *)c.args.q));
    CUDA(cudaFree((void *)c.args.kv_b));
}

struct result {
    std::vector<uint16_t> out; /* bf16 bits (rows, heads, v) */
    std::vector<float> lse;
};

/* Runs with a poisoned workspace and poisoned outputs. */
static result run(const test_case &c, mla_prefill_args a, size_t workspace_bytes)
{
    const size_t n = (size_t)c.rows * c.m.heads;
    result r = {std::vector<uint16_t>(n * c.m.v, 0xffff), std::vector<float>(n, NAN)};
    const size_t pad = 4096;

    a.out = upload(r.out);
    a.lse = upload(r.lse);
    a.workspace_bytes = workspace_bytes;
    CUDA(cudaMalloc(&a.workspace, workspace_bytes + pad));
    CUDA(cudaMemset(a.workspace, 0xff, workspace_bytes + pad));
    int status = mla_prefill(&a, 0);
    expect(status == MLA_OK, "status", 0, 0, 0, status, 0);
    CUDA(cudaDeviceSynchronize());
    std::vector<uint8_t> tail(pad);
    CUDA(cudaMemcpy(tail.data(), (char *)a.workspace + workspace_bytes, pad,
                    cudaMemcpyDeviceToHost));
    for (uint8_t b : tail)
        expect(b == 0xff, "past the workspace", 0, 0, 0, b, 0xff);
    CUDA(cudaMemcpy(r.out.data(), a.out, r.out.size() * 2, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(r.lse.data(), a.lse, r.lse.size() * 4, cudaMemcpyDeviceToHost));
    CUDA(cudaFree(a.out));
    CUDA(cudaFree(a.lse));
    CUDA(cudaFree(a.workspace));
    return r;
}

static double value(uint16_t bits)
{
    uint32_t word = (uint32_t)bits << 16;
    float f;

    memcpy(&f, &word, 4);
    return f;
}

struct error_sums {
    double wrong, right, dot, got;
    double lse;
};

/* Sequence s of the result against the reference, for at most 48 of its rows. */
static void check_seq(const test_case &c, const result &r, size_t s, error_sums &e)
{
    const model &m = c.m;
    const int kv_len = c.kv_lens[s], q_len = c.q_lens[s], outs = m.heads * (m.nope + m.v);
    std::vector<int32_t> rows(q_len);
    reference p = {};

    for (int i = 0; i < q_len; i++)
        rows[i] = i;
    std::shuffle(rows.begin() + (q_len > 1), rows.end() - (q_len > 2), rng);
    if (q_len > 48) {
        rows[47] = q_len - 1;
        rows.resize(48);
    }
    float *latents = upload(c.latents[s]);
    bf16 *kv;
    CUDA(cudaMalloc(&kv, (size_t)kv_len * outs * sizeof(bf16)));
    reference_expand<<<dim3(kv_len, (outs + 255) / 256), 256>>>(
        kv, latents, (const bf16 *)c.args.kv_b, outs, m.latent);
    const size_t n = rows.size() * m.heads;
    std::vector<double> out(n * m.v), lse(n);
    p.q = (const bf16 *)c.args.q + (size_t)c.q_starts[s] * m.heads * (m.nope + m.rope);
    p.kv = kv;
    p.rope = upload(c.ropes[s]);
    p.rows = upload(rows);
    p.out = upload(out);
    p.lse = upload(lse);
    CUDA(cudaMalloc(&p.scores, n * kv_len * sizeof(double)));
    p.heads = m.heads;
    p.nope = m.nope;
    p.rope_dim = m.rope;
    p.v = m.v;
    p.context = kv_len - q_len;
    p.kv_len = kv_len;
    p.scale = c.args.softmax_scale;
    reference_attend<<<dim3((int)rows.size(), m.heads), 256>>>(p);
    CUDA(cudaGetLastError());
    CUDA(cudaMemcpy(out.data(), p.out, out.size() * 8, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(lse.data(), p.lse, lse.size() * 8, cudaMemcpyDeviceToHost));
    const void *all[] = {latents, kv, p.rope, p.rows, p.out, p.lse, p.scores};
    for (const void *x : all)
        CUDA(cudaFree((void *)x));

    for (size_t i = 0; i < n; i++) {
        const int row = rows[i / m.heads], h = (int)(i % m.heads);
        const size_t at = (size_t)(c.q_starts[s] + row) * m.heads + h;
        for (int x = 0; x < m.v; x++) {
            double got = value(r.out[at * m.v + x]), want = out[i * m.v + x];
            expect(fabs(got - want) <= 6e-3 + fabs(want) / 64, "out", (int)s, row, h, got, want);
            e.wrong += (got - want) * (got - want);
            e.right += want * want;
            e.dot += got * want;
            e.got += got * got;
        }
        expect(fabs(r.lse[at] - lse[i]) <= 5e-3, "lse", (int)s, row, h, r.lse[at], lse[i]);
        e.lse = fmax(e.lse, fabs(r.lse[at] - lse[i]));
    }
}

static void expect_same(const result &a, const result &b, const char *what)
{
    size_t x = 0;

    while (x < a.out.size() && a.out[x] == b.out[x])
        x++;
    expect(x == a.out.size(), what, -1, (int)x, 0, x < a.out.size() ? value(a.out[x]) : 0,
           x < a.out.size() ? value(b.out[x]) : 0);
    expect(memcmp(a.lse.data(), b.lse.data(), a.lse.size() * 4) == 0, what, -2, 0, 0, 0, 0);
}

/* Rows that belong to no sequence keep their poison. */
static void check_untouched(const test_case &c, const result &r)
{
    std::vector<char> used(c.rows);

    for (size_t s = 0; s < c.q_lens.size(); s++)
        for (int i = 0; i < c.q_lens[s]; i++)
            used[c.q_starts[s] + i] = 1;
    const size_t row = (size_t)c.m.heads * c.m.v;
    for (int i = 0; i < c.rows; i++)
        for (size_t x = 0; x < row && !used[i]; x++)
            expect(r.out[i * row + x] == 0xffff, "row of nobody", 0, i, 0, r.out[i * row + x], 0);
}

/* Each sequence by itself, and its last rows as a chunk of their own. */
static void check_alone(const test_case &c, const result &r, size_t workspace)
{
    for (size_t s = 0; s < c.q_lens.size(); s++) {
        for (int chunk = 0; chunk < 2 && c.q_lens[s] > chunk; chunk++) {
            const int skip = chunk ? (int)(rng() % c.q_lens[s]) : 0;
            const int32_t start = c.q_starts[s] + skip, rows = c.q_lens[s] - skip;
            mla_prefill_args a = arguments(c);
            a.seqs.n_seqs = 1;
            a.seqs.q_starts = &start;
            a.seqs.q_lens = &rows;
            a.seqs.kv_lens = &c.kv_lens[s];
            a.seqs.table_starts = &c.table_starts[s];
            result alone = run(c, a, workspace);
            const size_t at = (size_t)start * c.m.heads * c.m.v,
                         n = (size_t)rows * c.m.heads * c.m.v;
            expect(memcmp(&alone.out[at], &r.out[at], n * 2) == 0,
                   chunk ? "bits as a chunk" : "bits alone", (int)s, skip, 0, 0, 0);
        }
    }
}

static void test(const char *name, const model &m, const std::vector<length> &lengths)
{
    const int before = failures;
    test_case c = make_case(m, lengths);
    int tokens = 0;
    error_sums e = {};

    for (size_t s = 0; s < lengths.size(); s++)
        tokens += lengths[s].q_len ? c.kv_lens[s] : 0;
    const size_t whole = mla_prefill_workspace(&c.args, (int)lengths.size(), c.rows, tokens);
    const size_t least = mla_prefill_workspace(&c.args, (int)lengths.size(), c.rows, 1);
    result r = run(c, arguments(c), whole);
    check_untouched(c, r);
    for (size_t s = 0; s < lengths.size(); s++)
        if (c.q_lens[s])
            check_seq(c, r, s, e);
    const double norm = sqrt(e.wrong / e.right), angle = 1 - 2 * e.dot / (e.got + e.right);
    expect(norm < 5e-3, "norm of the error", 0, 0, 0, norm, 0);
    expect(angle < 1.2e-5, "angle", 0, 0, 0, angle, 0);
    expect_same(r, run(c, arguments(c), whole), "bits, again");
    expect_same(r, run(c, arguments(c), least), "bits, in the smallest pieces");
    expect_same(r, run(c, arguments(c), least + whole / 5), "bits, in pieces");
    expect_same(r, run(c, arguments(c), whole * 3 + (64 << 20)), "bits, roomy");
    check_alone(c, r, whole);
    free_case(c);
    printf("%s %-28s error %.2e angle %.1e lse %.1e\n", failures == before ? "ok  " : "FAIL", name,
           norm, angle, e.lse);
    fflush(stdout);
}

/* `small`: only what a sanitizer can run in seconds. */
int main(int argc, char **argv)
{
    const bool small = argc > 1 && strcmp(argv[1], "small") == 0;
    const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : std::random_device{}();
    const std::vector<length> ragged = {{1, 0},   {63, 0},  {64, 1},    {65, 100}, {0, 77},
                                        {127, 0}, {129, 3}, {128, 128}, {1, 300},  {257, 515}};

    rng.seed(seed);
    printf("seed %llu\n", (unsigned long long)seed);
    test("small, H 2", {2, 128, 64, 128, 512, 0}, {{70, 90}, {0, 10}, {129, 0}});
    test("small FP8, H 1", {1, 128, 64, 128, 512, 1}, {{3, 130}, {64, 64}});
    test("small 256, H 1", {1, 192, 64, 256, 512, 0}, {{70, 90}, {1, 0}});
    test("tiny model", {4, 16, 16, 16, 32, 0}, {{5, 0}, {40, 200}, {0, 3}, {1, 1}});
    if (!small) {
        test("odd sizes", {3, 24, 8, 40, 64, 0}, {{130, 129}, {1, 0}});
        test("odd sizes, FP8", {3, 200, 32, 256, 256, 1}, {{33, 300}, {64, 0}});
        test("latent 256, H 5", {5, 128, 64, 128, 256, 0}, {{200, 500}, {65, 0}});
        test("ragged, H 1", {1, 128, 64, 128, 512, 0}, ragged);
        test("ragged, H 3, FP8", {3, 128, 64, 128, 512, 1}, ragged);
        test("ragged, H 16", {16, 128, 64, 128, 512, 0}, ragged);
        test("ragged, H 128", {128, 128, 64, 128, 512, 0}, ragged);
        test("ragged 256, H 20", {20, 192, 64, 256, 512, 0}, ragged);
        test("8k, H 16", {16, 128, 64, 128, 512, 0}, {{8192, 0}});
        test("8k 256, H 4", {4, 192, 64, 256, 512, 0}, {{8192, 0}});
        test("32k of context, H 3", {3, 128, 64, 128, 512, 0}, {{300, 32768}, {65, 0}});
        test("32k of context, FP8", {16, 128, 64, 128, 512, 1}, {{200, 32700}});
        test("100k of context, FP8, H 1", {1, 128, 64, 128, 512, 1}, {{17, 100000}});
    }
    printf(failures ? "FAILED\n" : "all passed\n");
    return failures != 0;
}
