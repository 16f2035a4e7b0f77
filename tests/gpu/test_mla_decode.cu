/* mla_decode against a float reference, over the grid of the peer's own test (see kernels.md's
 * tolerances) and the cases its users asked for. Every kernel that serves a case is tried.
 *
 *   test_mla_decode [quick|few] [seed]   quick: a handful of small cases, for compute-sanitizer;
 *                                        few: the kernels for few query rows alone
 */
#include "kernels/cuda/mla_few.h"
#include "kernels/cuda/mla_small.h"
#include "tests/gpu/mla_case.cuh"

#include <string.h>

static int failed, passed;

typedef int (*launch_fn)(const struct mla_decode_args *, cudaStream_t);

static int decode(const struct mla_decode_args *args, cudaStream_t stream)
{
    return mla_decode(args, stream);
}

/* The kernels for few query rows, with clusters of C blocks; 0: as they choose. */
template <int C> static int decode_few(const struct mla_decode_args *args, cudaStream_t stream)
{
    return mla_few::launch(args, C, stream);
}

template <int C> static int decode_small(const struct mla_decode_args *args, cudaStream_t stream)
{
    return mla_small::launch(args, C, stream);
}

/* Element by element within 8e-4 absolute or 2.01/128 relative, cosine distance below 5e-6; lse
 * within 1e-6 absolute or 8.01/65536 relative. */
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
        const char *kernel;
        launch_fn launch;
        int cluster;
    } kernels[] = {
        {"few", decode_few<0>, 0},     {"few", decode_few<1>, 1},     {"few", decode_few<2>, 2},
        {"few", decode_few<3>, 3},     {"few", decode_few<4>, 4},     {"few", decode_few<6>, 6},
        {"few", decode_few<8>, 8},     {"few", decode_few<16>, 16},   {"small", decode_small<0>, 0},
        {"small", decode_small<1>, 1}, {"small", decode_small<2>, 2}, {"small", decode_small<4>, 4},
        {"small", decode_small<8>, 8}};

    for (auto &k : kernels)
        check_cluster(k.kernel, k.launch, k.cluster, quick, seed += 1000);
}

/* Lengths change between replays of one captured graph. */
static void check_graph(int heads)
{
    mla_case c = {8, 1, 2000, heads, false, true, false, false, 0, 0};
    mla_setup s(c, 5);
    size_t n = s.query_rows * heads * 512;
    std::vector<int> lens(8, 700);
    std::vector<uint16_t> replayed(n), direct(n);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;

    CHECK_CUDA(cudaStreamCreate(&stream));
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    int status = mla_decode(&s.args, stream);
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    lens[3] = 0, lens[5] = 1999, lens[6] = 65;
    CHECK_CUDA(cudaMemcpy((void *)s.args.seqs.kv_lens, lens.data(), 32, cudaMemcpyHostToDevice));
    for (int i = 0; i < 3; i++)
        CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    CHECK_CUDA(cudaMemcpy(replayed.data(), s.args.out, n * 2, cudaMemcpyDeviceToHost));
    s.poison();
    status |= mla_decode(&s.args, 0);
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_CUDA(cudaMemcpy(direct.data(), s.args.out, n * 2, cudaMemcpyDeviceToHost));
    bool ok = status == MLA_OK && replayed == direct;
    ok ? passed++ : failed++;
    if (!ok)
        printf("FAIL graph: H %d\n", heads);
}

int main(int argc, char **argv)
{
    bool quick = argc > 1 && !strcmp(argv[1], "quick"), few = argc > 1 && !strcmp(argv[1], "few");
    static const int batches[] = {1, 2, 6, 64}, q_lens[] = {1, 2, 4}, kv_lens[] = {20, 140, 4096},
                     heads[] = {1, 3, 9, 16, 63, 64, 126, 128};
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

    check_clusters(quick, seed);
    for (int fp8 = 0; fp8 < 2 && !quick; fp8++)
        for (int q : {1, 2}) {
            for (int h : {5, 16})
                check_invariant("few", decode_few<0>, fp8, h, q);
            for (int h : {5, 16, 32})
                check_invariant("small", decode_small<0>, fp8, h, q);
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
    check("decode", decode, {300, 1, 300, 16, true, true, false, false, 0, 0}, seed++);
    check("decode", decode, {3, 100, 2000, 16, true, true, false, false, 0, 0}, seed++);
    for (int h : {16, 64, 128})
        check_graph(h);
out:
    printf("mla_decode: %d passed, %d failed\n", passed, failed);
    return failed != 0;
}
