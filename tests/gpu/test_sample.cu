/* Sampling on the GPU against the CPU's, on equal logits: the same token for every seed and set of
 * parameters, the same alternatives and ranks. Then its speed. */
#include "tests/gpu/backend_pair.cuh"

#include <cuda_runtime.h>
#include <string>

enum { MAX_ROWS = 256, SLOTS = MAX_ROWS };

struct rig {
    pair p;
    int32_t vocab;
    batch *b;
    tensor cpu_logits, gpu_logits;
    std::vector<float> logits;
    std::vector<sampling_result> cpu, gpu;
};

static rig rig_open(int32_t vocab, int32_t rows)
{
    backend_options options = {};
    int64_t shape[] = {rows, vocab};
    rig g = {};

    options.slots = SLOTS;
    options.vocab_size = vocab;
    options.limits = {rows, rows, rows, 2 * rows};
    options.kv_dtype = DTYPE_BF16;
    g.p = pair_open(options);
    g.vocab = vocab;
    g.b = batch_new(options.limits);
    must(g.p.cpu->ops->alloc(g.p.cpu, &g.cpu_logits, DTYPE_F32, 2, shape, &g.p.err), g.p);
    must(g.p.gpu->ops->alloc(g.p.gpu, &g.gpu_logits, DTYPE_F32, 2, shape, &g.p.err), g.p);
    g.logits.resize((size_t)rows * vocab);
    g.cpu.resize(rows);
    g.gpu.resize(rows);
    return g;
}

static void rig_close(rig *g)
{
    g->p.cpu->ops->release(g->p.cpu, &g->cpu_logits);
    g->p.gpu->ops->release(g->p.gpu, &g->gpu_logits);
    pair_close(&g->p);
    free(g->b);
}

static sampling_params plain(float temperature, uint64_t seed)
{
    sampling_params p = {};

    p.temperature = temperature;
    p.top_p = p.repetition_penalty = 1;
    p.seed = seed;
    return p;
}

static void open_slot(rig *g, int32_t slot, const sampling_params &params)
{
    std::vector<int32_t> prompt;

    for (int i = 0; i < 50; i++)
        prompt.push_back((slot * 31 + i * 17) % g->vocab);
    for (backend *be : {g->p.cpu, g->p.gpu})
        be->ops->sampler_open(be, slot, &params, prompt.data(), (int32_t)prompt.size());
}

/* Draws for every row on both, at `step`; rows of slots 0 ... n - 1. */
static void draw(rig *g, int32_t n, int32_t step, const uint32_t *masks, int32_t target = -1)
{
    int32_t tokens[] = {1, target}, page = 0;

    batch_clear(g->b);
    for (int32_t i = 0; i < n; i++) {
        batch_seq seq = {};
        seq.slot = i;
        seq.n_rows = seq.kv_len = 1;
        seq.wants_logits = target < 0;
        seq.score_end = target < 0 ? 0 : 2;
        batch_add(g->b, seq, tokens, &page, step);
    }
    memcpy(g->cpu_logits.data, g->logits.data(), (size_t)n * g->vocab * sizeof(float));
    tensor host = g->cpu_logits;
    host.shape[0] = n;
    must(g->p.gpu->ops->upload(g->p.gpu, &g->gpu_logits, 0, &host, &g->p.err), g->p);
    for (backend *be : {g->p.cpu, g->p.gpu}) {
        tensor logits = be == g->p.gpu ? g->gpu_logits : g->cpu_logits;
        logits.shape[0] = n;
        be->ops->begin(be, g->b);
        be->ops->sample(be, logits, masks, be == g->p.gpu ? g->gpu.data() : g->cpu.data());
        must(be->ops->finish(be, &g->p.err), g->p);
    }
}

static bool near(float a, float b)
{
    return a == b || fabsf(a - b) <= 2e-6f * fmaxf(1, fabsf(b));
}

static void compare_rows(rig *g, int32_t n, const char *what)
{
    int tokens = 0, scores = 0, tops = 0;

    for (int32_t i = 0; i < n; i++) {
        const sampling_result &a = g->gpu[i], &b = g->cpu[i];
        bool top = a.n_top == b.n_top;
        for (int j = 0; top && j < b.n_top; j++)
            top = near(a.top_logprob[j], b.top_logprob[j]) && a.top_token[j] == b.top_token[j];
        if ((a.token != b.token || !top || a.rank != b.rank) && tokens + tops < 3)
            printf(
                "  %s, row %d: token %d rank %d logprob %.9g n_top %d, on the CPU %d %d %.9g %d\n",
                what, i, a.token, a.rank, a.logprob, a.n_top, b.token, b.rank, b.logprob, b.n_top);
        tokens += a.token != b.token;
        scores += !near(a.logprob, b.logprob) || a.rank != b.rank;
        tops += !top;
    }
    CHECK(tokens + scores + tops == 0, "%s: of %d rows differ %d tokens, %d scores, %d tops", what,
          n, tokens, scores, tops);
}

/* Logits like a language model's: most are low, a few stand out; or flat, or equal, or odd. */
static void fill_logits(rig *g, int32_t n, int kind, uint64_t seed)
{
    for (int32_t r = 0; r < n; r++) {
        for (int32_t t = 0; t < g->vocab; t++) {
            uint64_t at = (uint64_t)r * g->vocab + t;
            float x = random_fill_at(seed, at);
            float peak = random_fill_at(seed + 1, at);
            float value = kind == 0   ? 3 * x + (peak > 3 ? 6 * peak : 0)
                          : kind == 1 ? x
                          : kind == 2 ? 0.25f * roundf(4 * x) /* many ties */
                          : kind == 3 ? 1.5f
                                      : x * 1e4f;
            g->logits[at] = value;
        }
        if (kind == 4) {
            float *row = &g->logits[(size_t)r * g->vocab];
            row[3] = NAN;
            row[5] = -INFINITY;
            row[(r * 7 + 9) % g->vocab] = r % 3 ? INFINITY : -INFINITY;
            for (int32_t t = 0; r == 8 && t < g->vocab; t++)
                row[t] = t % 2 ? NAN : -INFINITY;
        }
    }
}

/* A set of parameters for every row. */
static sampling_params mix(int32_t i, uint64_t seed)
{
    static const float temperatures[] = {0, 0.3f, 0.6f, 1, 1.5f, 0.01f};
    static const float top_ps[] = {1, 0.95f, 0.5f, 0.999f, 0.01f};
    static const int32_t top_ks[] = {0, 1, 5, 50, 0, 2000000, 400};
    static const float min_ps[] = {0, 0, 0.05f, 0.5f, 0, 1, 0.001f, 0, 0, 0, 0};
    sampling_params p = plain(temperatures[i % 6], seed * 1000003 + (uint64_t)i * 7919);

    p.top_p = top_ps[i % 5];
    p.top_k = top_ks[i % 7];
    p.min_p = min_ps[i % 11];
    if (i % 4 == 1) {
        p.repetition_penalty = i % 8 == 1 ? 1.3f : 0.8f;
        p.presence_penalty = 0.4f;
        p.frequency_penalty = i % 3 ? 0.7f : -0.2f;
    }
    if (i % 6 == 2)
        for (; p.n_bias < 40; p.n_bias++)
            p.bias[p.n_bias] = {(p.n_bias * 37 + i) % 997, p.n_bias % 2 ? 5.0f : -100.0f};
    if (i % 9 == 3) /* one token twice, and two that don't exist */
        for (int32_t token : {11, 5, 11, -4, 1 << 30})
            p.bias[p.n_bias++] = {token, 0.1f * (float)token};
    if (i % 5 == 4) {
        p.min_tokens = 3;
        for (int32_t token : {0, 9, 700, -1, 1 << 30})
            p.stop_tokens[p.n_stop_tokens++] = token;
    }
    p.n_logprobs = i % 3 == 0 ? 20 : i % 3 == 1 ? 0 : 1;
    return p;
}

static void test_equality(int32_t vocab, int32_t rows, int rounds)
{
    rig g = rig_open(vocab, rows);
    size_t words = SAMPLING_MASK_WORDS(vocab);
    std::vector<uint32_t> masks(words * rows);
    int drawn = 0;

    for (int round = 0; round < rounds; round++) {
        char what[64];
        int kind = round % 5;
        for (int32_t i = 0; i < rows; i++)
            open_slot(&g, i, mix(i + round, (uint64_t)round + 1));
        fill_logits(&g, rows, kind, (uint64_t)round * 2 + 10);
        for (int32_t step = 0; step < 5; step++) { /* counts grow, min_tokens passes */
            bool masked = step == 2;
            for (size_t w = 0; masked && w < masks.size(); w++)
                masks[w] = w / words % 7 == 0 ? 0 : (uint32_t)(random_fill_at(3, w) * 1e9f);
            snprintf(what, sizeof(what), "vocab %d, round %d, kind %d, step %d", vocab, round, kind,
                     step);
            draw(&g, rows, step, masked ? masks.data() : NULL);
            compare_rows(&g, rows, what);
            drawn += rows;
        }
        draw(&g, rows, 5, NULL, 9 + round);
        compare_rows(&g, rows, "scores");
        for (int32_t i = 0; i < rows; i++)
            for (backend *be : {g.p.cpu, g.p.gpu})
                be->ops->sampler_close(be, i);
    }
    printf("vocab %d: %d draws compared\n", vocab, drawn);
    rig_close(&g);
}

/* Many seeds of one row against the probabilities: the draw is right, not only equal. */
static void test_distribution(void)
{
    enum { V = 8, ROWS = 256, STEPS = 200 };
    rig g = rig_open(V, ROWS);
    const float logits[V] = {0, 1, -1, 2, 0.5f, -3, 1.5f, 0.1f};
    double sum = 0, chi = 0;
    int counts[V] = {};

    for (int32_t r = 0; r < ROWS; r++) {
        memcpy(&g.logits[(size_t)r * V], logits, sizeof(logits));
        open_slot(&g, r, plain(1, 77 + (uint64_t)r));
    }
    for (int32_t step = 0; step < STEPS; step++) {
        draw(&g, ROWS, step, NULL);
        for (int32_t r = 0; r < ROWS; r++)
            counts[g.gpu[r].token]++;
    }
    for (float l : logits)
        sum += exp(l);
    for (int t = 0; t < V; t++) {
        double want = ROWS * STEPS * exp(logits[t]) / sum;
        chi += (counts[t] - want) * (counts[t] - want) / want;
    }
    CHECK(chi < 30, "chi-square %.1f of 7 degrees of freedom", chi); /* p < 1e-4 */
    printf("distribution of %d draws: chi-square %.1f\n", ROWS * STEPS, chi);
    rig_close(&g);
}

static void time_sampling(int32_t vocab, int32_t rows, const char *what, sampling_params params)
{
    static const int REPEATS = 20;
    rig g = rig_open(vocab, rows);
    cudaEvent_t from, to;
    float ms;

    fill_logits(&g, rows, 0, 5);
    for (int32_t i = 0; i < rows; i++) {
        params.seed = (uint64_t)i;
        open_slot(&g, i, params);
    }
    draw(&g, rows, 0, NULL);
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    backend *be = g.p.gpu;
    std::vector<float> times;
    for (int i = 0; i < REPEATS; i++) {
        be->ops->begin(be, g.b);
        cudaDeviceSynchronize();
        cudaEventRecord(from, cudaStreamLegacy);
        cudaEventSynchronize(from);
        be->ops->sample(be, g.gpu_logits, NULL, g.gpu.data());
        cudaDeviceSynchronize();
        cudaEventRecord(to, cudaStreamLegacy);
        cudaEventSynchronize(to);
        cudaEventElapsedTime(&ms, from, to);
        times.push_back(ms);
        must(be->ops->finish(be, &g.p.err), g.p);
    }
    std::vector<float> sorted = times;
    for (size_t i = 0; i < sorted.size(); i++)
        for (size_t j = i + 1; j < sorted.size(); j++)
            if (sorted[j] < sorted[i])
                std::swap(sorted[i], sorted[j]);
    printf("%-34s vocab %6d, %3d rows: %7.1f us (with a launch and a wait)\n", what, vocab, rows,
           1000 * sorted[REPEATS / 2]);
    rig_close(&g);
}

int main(void)
{
    sampling_params filtered = plain(0.6f, 1), top_k = plain(1, 1), logprobs = plain(1, 1);

    setvbuf(stdout, NULL, _IOLBF, 0);
    test_distribution();
    test_equality(1024, 128, 20);
    test_equality(102400, 40, 6);
    test_equality(154880, 12, 5);
    filtered.top_p = 0.95f;
    top_k.top_k = 50;
    logprobs.n_logprobs = 20;
    for (int32_t rows : {1, 64, 256}) {
        time_sampling(102400, rows, "greedy", plain(0, 1));
        time_sampling(102400, rows, "temperature 1", plain(1, 1));
        time_sampling(102400, rows, "temperature 0.6, top_p 0.95", filtered);
        time_sampling(102400, rows, "top_k 50", top_k);
        time_sampling(102400, rows, "20 logprobs", logprobs);
    }
    printf(pair_failures ? "%d FAILED\n" : "all as on the CPU\n", pair_failures);
    return pair_failures != 0;
}
