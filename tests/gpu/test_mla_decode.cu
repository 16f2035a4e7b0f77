/* mla_decode against a float reference, over the grid of FlashMLA's own test, within its
 * tolerances, and the cases its users asked for. Every kernel that serves a case is tried.
 *
 *   test_mla_decode [race|quick|few] [seed]   race, quick: small cases, a handful of tiny ones and
 *                                             some more, for compute-sanitizer; few: the kernel
 *                                             for few query rows alone
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_few.h"
#include "kernels/cuda/ptx.cuh"
#include "tests/gpu/mla_case.cuh"

#include <algorithm>
#include <string.h>

static int failed, passed;

typedef int (*launch_fn)(const struct mla_decode_args *, cudaStream_t);

static int decode(const struct mla_decode_args *args, cudaStream_t stream)
{
    return mla_decode(args, stream);
}

/* The kernel for few query rows, with clusters of C blocks; 0: as it chooses. */
template <int C> static int decode_few(const struct mla_decode_args *args, cudaStream_t stream)
{
    return mla_few::launch(args, C, mla_few::FULL, stream);
}

/* Its form of half a multiprocessor; another one where there is no such form. */
template <int C> static int decode_lean(const struct mla_decode_args *args, cudaStream_t stream)
{
    int status = mla_few::launch(args, C, mla_few::LEAN, stream);

    return status == MLA_UNSUPPORTED ? mla_few::launch(args, C, mla_few::AS_SUITS, stream) : status;
}

/* Element by element within 8e-4 absolute or 2.01/128 relative, cosine distance below 5e-6; lse
 * within 1e-6 absolute or 8.01/65536 relative: the peer's bounds. Of some seeds a row or two in
 * millions miss the one of lse by a third, where it is so near 0 that the scores' own rounding in
 * the tensor cores is more. */
static bool compare(const std::vector<float> &want, const std::vector<__nv_bfloat16> &got,
                    const std::vector<float> &want_lse, const std::vector<float> &got_lse,
                    char *why)
{
    double dot = 0, a = 0, b = 0, worst = 0;
    size_t bad = 0, first = 0;

    for (size_t i = 0; i < want.size(); i++) {
        double w = want[i], g = __bfloat162float(got[i]), d = fabs(w - g);
        dot += w * g, a += w * w, b += g * g;
        if (!(d <= 8e-4 || d <= 2.01 / 128 * fabs(w))) {
            if (bad++ == 0)
                first = i;
            worst = d > worst ? d : worst;
        }
    }
    double cosine = want.empty() || a + b == 0 ? 0 : 1 - 2 * dot / (a + b);
    if (bad || !(cosine < 5e-6)) {
        sprintf(why, "%zu of %zu out values differ, first at %zu: %g not %g, worst %g, cosine %g",
                bad, want.size(), first, __bfloat162float(got[first]), want[first], worst, cosine);
        return false;
    }
    for (size_t i = 0; i < want_lse.size(); i++) {
        double w = want_lse[i], g = got_lse[i], d = fabs(w - g);
        if (isinf(w) ? w != g : !(d <= 1e-6 || d <= 8.01 / 65536 * fabs(w))) {
            sprintf(why, "lse %zu is %g, not %g", i, g, w);
            return false;
        }
    }
    return true;
}

static void check(const char *kernel, launch_fn launch, const mla_case &c, uint64_t seed)
{
    mla_setup s(c, seed);
    size_t rows = s.query_rows * c.heads, n = rows * s.args.cache.latent_dim;
    std::vector<float> want(n), want_lse(rows), got_lse(rows);
    std::vector<__nv_bfloat16> got(n), again(n);
    float *ref, *ref_lse, *work;
    char why[256] = "";

    CHECK_CUDA(cudaMalloc(&ref, n * 4 + 256));
    CHECK_CUDA(cudaMalloc(&ref_lse, rows * 4 + 256));
    CHECK_CUDA(cudaMalloc(&work, rows * (size_t)(s.max_kv + 1) * 4));
    reference<<<dim3(c.batch * c.q_len, c.heads), 256>>>(s.args, ref, ref_lse, work, s.max_kv + 1);
    CHECK_CUDA(cudaDeviceSynchronize());
    for (int run = 0; run < 2; run++) {
        s.poison();
        int status = launch(&s.args, 0);
        if (status != MLA_OK) {
            printf("FAIL %s: %s\n", kernel, mla_status_text(status));
            failed++;
            return;
        }
        CHECK_CUDA(cudaDeviceSynchronize());
        CHECK_CUDA(
            cudaMemcpy((run ? again : got).data(), s.args.out, n * 2, cudaMemcpyDeviceToHost));
    }
    CHECK_CUDA(cudaMemcpy(want.data(), ref, n * 4, cudaMemcpyDeviceToHost));
    CHECK_CUDA(cudaMemcpy(want_lse.data(), ref_lse, rows * 4, cudaMemcpyDeviceToHost));
    CHECK_CUDA(cudaMemcpy(got_lse.data(), s.args.lse, rows * 4, cudaMemcpyDeviceToHost));
    bool ok = compare(want, got, want_lse, got_lse, why);
    if (ok && memcmp(got.data(), again.data(), n * 2)) {
        ok = false;
        strcpy(why, "two runs of the same inputs differ in bits");
    }
    ok ? passed++ : failed++;
    if (!ok && failed <= 40)
        printf("FAIL %s b %d q_len %d kv_len %d H %d varlen %d causal %d fp8 %d invariant %d dims "
               "%d+%d: %s\n",
               kernel, c.batch, c.q_len, c.kv_len, c.heads, c.varlen, c.causal, c.fp8, c.invariant,
               s.args.cache.latent_dim, s.args.cache.rope_dim, why);
    cudaFree(ref), cudaFree(ref_lse), cudaFree(work);
}

/* A sequence's bits are the same alone and inside a batch. */
static void check_invariant(const char *kernel, launch_fn launch, bool fp8, int heads, int q_len)
{
    mla_case c = {24, q_len, 9000, heads, true, true, fp8, true, 0, 0};
    mla_setup s(c, 77 + heads);
    size_t row = (size_t)heads * 512;
    std::vector<uint16_t> all(s.query_rows * row), one(s.query_rows * row);
    bool same = launch(&s.args, 0) == MLA_OK;

    CHECK_CUDA(cudaMemcpy(all.data(), s.args.out, all.size() * 2, cudaMemcpyDeviceToHost));
    s.poison();
    for (int i = 0; i < c.batch; i++) {
        mla_decode_args a = s.args;
        a.seqs.n_seqs = 1;
        a.seqs.q_starts += i, a.seqs.q_lens += i, a.seqs.kv_lens += i, a.seqs.table_starts += i;
        same = launch(&a, 0) == MLA_OK && same;
    }
    CHECK_CUDA(cudaMemcpy(one.data(), s.args.out, one.size() * 2, cudaMemcpyDeviceToHost));
    same = same && one == all;
    same ? passed++ : failed++;
    if (!same)
        printf(
            "FAIL batch-invariant mode: %s H %d q_len %d fp8 %d: a sequence's bits depend on the "
            "batch\n",
            kernel, heads, q_len, fp8);
}

/* A sequence's last q_len rows become NaN. */
static __global__ void poison_last(mla_decode_args a, int row_bytes)
{
    int seq = blockIdx.x, q_len = a.seqs.q_lens[seq], kv_len = a.seqs.kv_lens[seq];

    for (int t = max(kv_len - q_len, 0); t < kv_len; t++) {
        int page = a.seqs.block_tables[a.seqs.table_starts[seq] + t / MLA_PAGE_TOKENS];
        for (int i = threadIdx.x; i < row_bytes; i += blockDim.x)
            ((char *)
                 a.cache.pages)[page * a.cache.page_stride + t % MLA_PAGE_TOKENS * row_bytes + i] =
                (char)0xff;
    }
}

/* What a step's own kernels write, late: queries, and the last q_len rows of each sequence. The
 * next kernel is let on at once. A block a query row. */
static __global__ void write_late(mla_decode_args a, int row_bytes, const char *pages,
                                  const uint16_t *q)
{
    launch_next();
    launch_wait();
    for (int64_t begin = clock64(); clock64() - begin < 40000;) { /* about 20 us */
    }
    int seq = blockIdx.x / a.seqs.max_q_len, row = blockIdx.x % a.seqs.max_q_len;
    int q_len = a.seqs.q_lens[seq], token = a.seqs.kv_lens[seq] - q_len + row;
    if (row >= q_len)
        return;
    int width = a.heads * (a.cache.latent_dim + a.cache.rope_dim);
    int64_t at = (int64_t)(a.seqs.q_starts[seq] + row) * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        ((uint16_t *)a.q)[at + i] = q[at + i];
    if (token < 0)
        return;
    int page = a.seqs.block_tables[a.seqs.table_starts[seq] + token / MLA_PAGE_TOKENS];
    int64_t from = page * a.cache.page_stride + token % MLA_PAGE_TOKENS * row_bytes;
    for (int i = threadIdx.x; i < row_bytes; i += blockDim.x)
        ((char *)a.cache.pages)[from + i] = pages[from + i];
}

/* With `settled`: the kernel ahead writes what it may, while the call has long begun; the bits are
 * those of a call that waits. The step is queued twice, so that calls meet each other too. */
static void check_settled(const char *kernel, launch_fn launch, const mla_case &c, uint64_t seed)
{
    mla_setup s(c, seed);
    size_t n = s.query_rows * c.heads * s.args.cache.latent_dim;
    size_t page_bytes = s.args.cache.n_pages * s.args.cache.page_stride;
    size_t q_bytes = s.query_rows * c.heads * (s.args.cache.latent_dim + s.args.cache.rope_dim) * 2;
    int row_bytes = row_bytes_of(c.fp8, s.args.cache.latent_dim, s.args.cache.rope_dim);
    std::vector<uint16_t> want(n), got(n);
    char *pages;
    uint16_t *q;

    CHECK_CUDA(cudaMalloc(&pages, page_bytes));
    CHECK_CUDA(cudaMalloc(&q, q_bytes + 256));
    CHECK_CUDA(cudaMemcpy(pages, s.args.cache.pages, page_bytes, cudaMemcpyDeviceToDevice));
    CHECK_CUDA(cudaMemcpy(q, s.args.q, q_bytes, cudaMemcpyDeviceToDevice));
    int status = launch(&s.args, 0);
    CHECK_CUDA(cudaMemcpy(want.data(), s.args.out, n * 2, cudaMemcpyDeviceToHost));
    s.poison();
    CHECK_CUDA(cudaMemset((void *)s.args.q, 0xff, q_bytes));
    poison_last<<<c.batch, 128>>>(s.args, row_bytes);
    s.args.settled = 1;
    for (int i = 0; i < 2; i++) {
        CHECK_CUDA(launch_early(write_late, dim3(c.batch * c.q_len), dim3(128), 0, 0, s.args,
                                row_bytes, pages, q));
        status |= launch(&s.args, 0);
    }
    CHECK_CUDA(cudaMemcpy(got.data(), s.args.out, n * 2, cudaMemcpyDeviceToHost));
    bool ok = status == MLA_OK && got == want;
    ok ? passed++ : failed++;
    if (!ok)
        printf("FAIL %s settled: b %d q_len %d kv_len %d H %d fp8 %d varlen %d\n", kernel, c.batch,
               c.q_len, c.kv_len, c.heads, c.fp8, c.varlen);
    cudaFree(pages), cudaFree(q);
}

/* A kernel for few query rows with clusters of one size: whole and cut sequences, one and several
 * row tiles, every latent and rope size. */
static void check_cluster(const char *kernel, launch_fn launch, int cluster, bool quick,
                          uint64_t seed)
{
    char name[32];

    sprintf(name, "%s, cluster %d", kernel, cluster);
    for (int fp8 = 0; fp8 < 2; fp8++) {
        auto go = [&](int b, int q, int kv, int h, bool varlen, bool causal, int latent, int rope) {
            if (latent != 256 || cluster <= 4)
                check(name, launch, {b, q, kv, h, varlen, causal, (bool)fp8, false, latent, rope},
                      seed++);
        };
        for (int h : {5, 16, 32}) {
            go(2, 1, 900, h, true, true, 0, 0);
            if (quick)
                continue;
            go(1, 1, 20, h, false, true, 0, 0);
            go(1, 1, 64, h, false, true, 0, 0);
            go(3, 1, 1024, h, false, true, 0, 0);
            go(9, 3, 700, h, true, true, 0, 0);
            go(40, 2, 1500, h, true, false, 0, 0);
            go(1, 1, 30000, h, false, true, 0, 0);
            go(300, 1, 300, h, true, true, 0, 0);
            for (int rope : {32, 64})
                go(7, 2, 2000, h, true, true, 256, rope);
        }
    }
}

static void check_clusters(bool quick, uint64_t seed)
{
    static const struct {
        launch_fn launch, lean;
        int cluster;
    } kernels[] = {{decode_few<0>, decode_lean<0>, 0}, {decode_few<1>, decode_lean<1>, 1},
                   {decode_few<2>, decode_lean<2>, 2}, {decode_few<3>, decode_lean<3>, 3},
                   {decode_few<4>, decode_lean<4>, 4}, {decode_few<6>, decode_lean<6>, 6},
                   {decode_few<8>, decode_lean<8>, 8}, {decode_few<16>, decode_lean<16>, 16}};

    for (auto &k : kernels) {
        check_cluster("few", k.launch, k.cluster, quick, seed += 1000);
        check_cluster("lean", k.lean, k.cluster, quick, seed += 1000);
    }
}

/* Maxima that rise by much from page to page, so that references which lag behind must follow. */
static void check_steep(const char *kernel, launch_fn launch, bool wide, uint64_t seed)
{
    for (int fp8 = 0; fp8 < 2 - wide; fp8++)
        for (int heads : {5, 16, 32, 64, 128})
            if (wide == (heads > 32))
                for (float steep : {3.0f, 10.0f, 40.0f}) {
                    check(kernel, launch,
                          {1, 1, 8192, heads, false, true, (bool)fp8, false, 0, 0, steep}, seed++);
                    check(kernel, launch,
                          {40, 2, 1500, heads, true, true, (bool)fp8, false, 0, 0, steep}, seed++);
                }
}

static void check_settled_cases(const char *kernel, launch_fn launch, bool wide, uint64_t seed)
{
    static const struct {
        int batch, q_len, kv_len, heads;
        bool varlen;
    } cases[] = {{1, 1, 1, 16, false},    {1, 1, 64, 16, false},   {1, 1, 65, 5, false},
                 {1, 2, 8192, 16, false}, {3, 4, 200, 16, true},   {16, 1, 4096, 16, false},
                 {40, 2, 1500, 16, true}, {128, 1, 700, 5, false}, {300, 1, 300, 16, true},
                 {600, 1, 90, 16, true}};

    for (auto &c : cases)
        for (int fp8 = 0; fp8 < 2 - wide; fp8++)
            for (int invariant = 0; invariant < 2; invariant++) {
                int heads = !wide ? c.heads : c.heads == 5 ? 128 : 64;
                check_settled(kernel, launch,
                              {c.batch, c.q_len, c.kv_len, heads, c.varlen, true, (bool)fp8,
                               (bool)invariant, 0, 0},
                              seed++);
            }
}

static __global__ void scale_bf16(__nv_bfloat16 *x, int64_t n, float by)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        x[i] = __float2bfloat16(__bfloat162float(x[i]) * by);
}

/* A call's output. */
static std::vector<float> output_of(launch_fn launch, const mla_setup &s, size_t n, int *status)
{
    std::vector<__nv_bfloat16> got(n);
    std::vector<float> values(n);

    *status |= launch(&s.args, 0);
    CHECK_CUDA(cudaMemcpy(got.data(), s.args.out, n * 2, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++)
        values[i] = __bfloat162float(got[i]);
    return values;
}

/* Whatever the values' magnitude, nothing is lost where partial sums are packed: a cache times a
 * power of two, with scores as they were, gives the same results times that. */
static void check_magnitude(const char *kernel, launch_fn launch, const mla_case &c, int exponent,
                            uint64_t seed)
{
    mla_setup s(c, seed);
    float by = ldexpf(1, exponent);
    size_t n = s.query_rows * c.heads * s.args.cache.latent_dim;
    std::vector<__nv_bfloat16> got(n);
    int status = MLA_OK;
    std::vector<float> want = output_of(launch, s, n, &status);
    char why[256] = "";

    s.poison();
    scale_bf16<<<256, 256>>>((__nv_bfloat16 *)s.args.cache.pages,
                             s.args.cache.n_pages * s.args.cache.page_stride / 2, by);
    s.args.softmax_scale /= by;
    status |= launch(&s.args, 0);
    CHECK_CUDA(cudaMemcpy(got.data(), s.args.out, n * 2, cudaMemcpyDeviceToHost));
    for (auto &x : got)
        x = __float2bfloat16(__bfloat162float(x) / by);
    bool ok = status == MLA_OK && compare(want, got, {}, {}, why);
    ok ? passed++ : failed++;
    if (!ok)
        printf("FAIL %s values times 2^%d: b %d q_len %d kv_len %d H %d: %s\n", kernel, exponent,
               c.batch, c.q_len, c.kv_len, c.heads, why);
}

static void check_magnitudes(uint64_t seed)
{
    static const int cases[][4] = {{1, 1, 9000, 16},  {1, 2, 9000, 16}, {1, 1, 1000, 64},
                                   {4, 1, 3000, 64},  {9, 1, 5000, 64}, {1, 1, 9000, 128},
                                   {5, 2, 5000, 128}, {40, 3, 900, 64}};

    for (auto &c : cases)
        for (int exponent : {-60, 40, 60})
            check_magnitude("decode", decode,
                            {c[0], c[1], c[2], c[3], c[0] > 4, true, false, false, 0, 0}, exponent,
                            seed++);
}

/* A head whose queries are not finite has no result, the others of its tile have theirs. */
static void check_nan(const char *kernel, launch_fn launch, const mla_case &c, uint64_t seed)
{
    mla_setup s(c, seed);
    size_t row = (size_t)s.args.cache.latent_dim, n = s.query_rows * c.heads * row;
    size_t width = row + s.args.cache.rope_dim;
    std::vector<__nv_bfloat16> got(n);
    int status = MLA_OK;
    std::vector<float> want = output_of(launch, s, n, &status);
    char why[256] = "";

    s.poison();
    CHECK_CUDA(cudaMemset((char *)s.args.q + width * 2, 0xff, width * 2)); /* row 0, head 1 */
    status |= launch(&s.args, 0);
    CHECK_CUDA(cudaMemcpy(got.data(), s.args.out, n * 2, cudaMemcpyDeviceToHost));
    bool ok = status == MLA_OK;
    for (size_t i = row; i < 2 * row; i++) {
        ok = ok && isnan(__bfloat162float(got[i]));
        got[i] = __float2bfloat16(want[i]);
    }
    ok = ok && compare(want, got, {}, {}, why);
    ok ? passed++ : failed++;
    if (!ok)
        printf("FAIL %s, one head NaN: b %d q_len %d kv_len %d H %d fp8 %d: %s\n", kernel, c.batch,
               c.q_len, c.kv_len, c.heads, c.fp8, why);
}

static void check_nans(uint64_t seed)
{
    for (int heads : {5, 16, 32, 64, 128})
        for (int fp8 = 0; fp8 < 2; fp8++)
            for (int kv : {700, 9000})
                for (int b : {1, 40})
                    check_nan("decode", decode,
                              {b, 1, kv, heads, false, true, (bool)fp8, false, 0, 0}, seed++);
}

/* Lengths change between replays of one captured graph, and stay the same in others. */
static void check_graph(int batch, int heads, bool settled)
{
    mla_case c = {batch, 1, 2000, heads, false, true, false, false, 0, 0};
    mla_setup s(c, 5);
    size_t n = s.query_rows * heads * 512;
    std::vector<int> lens(batch, batch > 8 ? 1900 : 700);
    std::vector<uint16_t> replayed(n), direct(n);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    void *fresh;

    s.args.settled = settled;
    CHECK_CUDA(cudaMalloc(&fresh, s.args.workspace_bytes));
    s.keep(fresh);
    CHECK_CUDA(cudaStreamCreate(&stream));
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    int status = mla_decode(&s.args, stream);
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    bool ok = true;
    for (int change : {1, 2, 3, 3, 1}) {
        lens[3] = change - 1, lens[5] = 2000 - change, lens[6] = 64 + change;
        CHECK_CUDA(cudaMemcpy((void *)s.args.seqs.kv_lens, lens.data(), 4 * batch,
                              cudaMemcpyHostToDevice));
        for (int i = 0; i < change; i++)
            CHECK_CUDA(cudaGraphLaunch(exec, stream));
        CHECK_CUDA(cudaStreamSynchronize(stream));
        CHECK_CUDA(cudaMemcpy(replayed.data(), s.args.out, n * 2, cudaMemcpyDeviceToHost));
        s.poison();
        mla_decode_args anew = s.args; /* nothing is remembered there */
        anew.workspace = fresh;
        CHECK_CUDA(cudaMemset(fresh, 0, s.args.workspace_bytes));
        status |= mla_decode(&anew, 0);
        CHECK_CUDA(cudaDeviceSynchronize());
        CHECK_CUDA(cudaMemcpy(direct.data(), s.args.out, n * 2, cudaMemcpyDeviceToHost));
        ok = ok && replayed == direct;
    }
    ok = ok && status == MLA_OK;
    ok ? passed++ : failed++;
    if (!ok)
        printf("FAIL graph: b %d H %d settled %d\n", batch, heads, settled);
}

/* Lengths and tables of which a block has about two pages. */
static void check_pairs(uint64_t seed)
{
    for (int h : {7, 16, 32})
        for (int q : {1, 2})
            for (int kv : {6400, 7681, 8191, 8192, 9001, 15000})
                for (int v = 0; v < 2; v++)
                    check("few", decode_few<0>, {1, q, kv, h, v > 0, true, false, false, 0, 0},
                          seed++);
    for (int h : {16, 32})
        for (int b : {2, 3, 5})
            for (int kv : {1500, 2500, 4000, 6000}) {
                check("few", decode_few<0>, {b, 1, kv, h, true, true, false, false, 0, 0}, seed++);
                check("few", decode_few<8>, {b, 1, kv, h, false, true, false, false, 0, 0}, seed++);
                check("few", decode_few<2>, {b, 2, kv / 4, h, true, true, false, false, 0, 0},
                      seed++);
            }
}

/* The 64-row kernel with about as many units as make two blocks of each, and lengths of which some
 * give one part, some none. */
static void check_two_parts(uint64_t seed)
{
    for (int kv : {64, 65, 128, 200, 700, 2100})
        for (int v = 0; v < 2; v++) {
            for (int b : {34, 45, 64, 66})
                for (int h : {33, 64})
                    check("wide", mla_wide_launch, {b, 1, kv, h, v > 0, true, false, false, 0, 0},
                          seed++);
            for (int b : {17, 23, 33})
                for (int q : {1, 2})
                    check("wide", mla_wide_launch, {b, q, kv, 128, v > 0, true, false, false, 0, 0},
                          seed++);
            check("wide", mla_wide_launch, {50, 4, kv, 16, v > 0, true, false, false, 0, 0},
                  seed++);
        }
    check("wide", mla_wide_launch, {64, 1, 1500, 64, false, true, false, false, 0, 0, 40}, seed++);
    check("wide", mla_wide_launch, {66, 1, 900, 64, true, true, false, true, 0, 0}, seed++);
}

/* Calls of any shape may share a workspace: one leaves nothing that another takes for its own. */
static void check_shared_workspace(uint64_t seed)
{
    mla_setup wide({4, 2, 9000, 128, false, true, false, false, 0, 0}, seed);
    mla_setup few({3, 2, 300, 16, true, true, false, false, 256, 32}, seed + 1);
    size_t n = few.query_rows * 16 * 256;
    std::vector<uint16_t> want(n), got(n);
    void *shared;

    int status = mla_decode(&few.args, 0);
    CHECK_CUDA(cudaMemcpy(want.data(), few.args.out, n * 2, cudaMemcpyDeviceToHost));
    few.poison();
    size_t bytes = std::max(few.args.workspace_bytes, wide.args.workspace_bytes);
    CHECK_CUDA(cudaMalloc(&shared, bytes));
    CHECK_CUDA(cudaMemset(shared, 0, bytes));
    wide.args.workspace = few.args.workspace = shared;
    wide.args.workspace_bytes = few.args.workspace_bytes = bytes;
    status |= mla_decode(&wide.args, 0);
    status |= mla_decode(&few.args, 0);
    CHECK_CUDA(cudaMemcpy(got.data(), few.args.out, n * 2, cudaMemcpyDeviceToHost));
    bool ok = status == MLA_OK && got == want;
    ok ? passed++ : failed++;
    if (!ok)
        printf("FAIL a workspace shared with calls of another latent\n");
    cudaFree(shared);
}

/* Each kernel once, so small that racecheck is done in seconds; without clusters, on whose exchange
 * through distributed shared memory racecheck (13.0) never ends. */
static void check_race(uint64_t seed)
{
    for (int fp8 = 0; fp8 < 2; fp8++)
        for (int heads : {16, 32})
            check("few", decode_few<1>, {2, 1, 130, heads, true, true, (bool)fp8, false, 0, 0},
                  seed++);
    check("lean", decode_lean<1>, {2, 1, 130, 16, true, true, false, false, 0, 0}, seed++);
    for (int fp8 = 0; fp8 < 2; fp8++)
        check("few", decode_few<1>, {1, 1, 260, 32, false, true, (bool)fp8, false, 0, 0, 40},
              seed++);
    check("wide", mla_wide_launch, {1, 1, 200, 64, false, true, false, false, 0, 0}, seed++);
}

int main(int argc, char **argv)
{
    bool quick = argc > 1 && !strcmp(argv[1], "quick"), few = argc > 1 && !strcmp(argv[1], "few");
    bool race = argc > 1 && !strcmp(argv[1], "race");
    static const int batches[] = {1, 2, 6, 64}, q_lens[] = {1, 2, 4}, kv_lens[] = {20, 140, 4096},
                     heads[] = {1, 3, 9, 16, 63, 64, 126, 128};
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

    if (race) {
        check_race(seed);
        goto out;
    }
    check_clusters(quick, seed);
    for (int fp8 = 0; fp8 < 2 && !quick; fp8++)
        for (int q : {1, 2}) {
            for (int h : {5, 16, 32})
                check_invariant("few", decode_few<0>, fp8, h, q);
        }
    if (!quick) {
        check_settled_cases("few", decode_few<0>, false, seed += 1000);
        check_settled_cases("lean", decode_lean<0>, false, seed + 500);
        check_steep("few", decode_few<0>, false, seed + 250);
        check_pairs(seed + 2000);
        check_steep("lean", decode_lean<0>, false, seed + 750);
        /* Many rows of few sequences, as when one that was preempted is computed again. */
        check("few", decode_few<0>, {9, 600, 2000, 16, true, true, true, true, 0, 0}, seed + 900);
    }
    if (few)
        goto out;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        for (int h : {3, 16, 64, 128}) {
            check("baseline", mla_baseline_launch,
                  {3, 2, 200, h, true, true, (bool)fp8, false, 0, 0}, seed++);
            check("decode", decode, {3, 2, 200, h, true, true, (bool)fp8, false, 0, 0}, seed++);
        }
    }
    check("wide", mla_wide_launch, {60, 1, 130, 64, false, true, false, false, 0, 0}, seed++);
    if (quick)
        goto out;
    check("baseline", mla_baseline_launch, {3, 2, 200, 5, true, true, false, false, 32, 16},
          seed++);
    check("decode", decode, {3, 2, 200, 5, true, true, false, false, 32, 16}, seed++);
    for (int fp8 = 0; fp8 < 2; fp8++)
        for (int b : batches)
            for (int q : q_lens)
                for (int kv : kv_lens)
                    for (int h : heads)
                        for (int v = 0; v < 4; v++) {
                            if ((size_t)b * q * kv * h > 64u * 4 * 4096 * 16 && v != 1)
                                continue;
                            check("decode", decode,
                                  {b, q, kv, h, (v & 1) != 0, (v & 2) == 0, (bool)fp8, false, 0, 0},
                                  seed++);
                        }
    for (int fp8 = 0; fp8 < 2; fp8++) {
        for (int kv : {0, 1, 63, 64, 65, 127, 100000})
            for (int h : {16, 128})
                check("decode", decode, {1, 1, kv, h, false, true, (bool)fp8, false, 0, 0}, seed++);
        for (int h : {1, 16, 32, 64, 128}) {
            check("decode", decode, {40, 8, 1500, h, true, true, (bool)fp8, false, 0, 0}, seed++);
            check("decode", decode, {7, 3, 9000, h, true, true, (bool)fp8, true, 0, 0}, seed++);
        }
        for (int h : {16, 32, 64, 128})
            check_invariant("decode", decode, fp8, h, 1);
        for (int rope : {32, 64})
            for (int h : {16, 64})
                check("decode", decode, {5, 2, 1000, h, true, true, (bool)fp8, false, 256, rope},
                      seed++);
    }
    /* Few pages and many heads: up to where tiles of 16 rows serve them, and past it. */
    for (int h : {33, 48, 64, 100, 128})
        for (int q : {1, 2, 3})
            for (int kv : {64, 500, 1024, 1025, 1700, 2000})
                for (int b : {1, 2, 3})
                    check("decode", decode, {b, q, kv, h, b > 1, true, false, false, 0, 0}, seed++);
    check("decode", decode, {300, 1, 300, 16, true, true, false, false, 0, 0}, seed++);
    check("decode", decode, {3, 100, 2000, 16, true, true, false, false, 0, 0}, seed++);
    check_settled_cases("decode", decode, true, seed += 1000);
    check_steep("decode", decode, true, seed + 700);
    check_magnitudes(seed + 900);
    check_nans(seed + 1800);
    for (int h : {16, 64, 128})
        check_graph(8, h, false), check_graph(8, h, true);
    check_graph(60, 64, false), check_graph(60, 64, true);
    check_graph(30, 128, false), check_graph(30, 128, true);
    check_two_parts(seed + 3600);
    check_shared_workspace(seed + 2700);
out:
    printf("mla_decode: %d passed, %d failed\n", passed, failed);
    return failed != 0;
}
