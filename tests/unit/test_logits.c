/* The forward pass against Hugging Face transformers: logits and greedy tokens of the checkpoints
 * in tests/vectors (see its README). Run from the repository's root. */
#include "base/buffer.h"
#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "kernels/backend.h"
#include "model/model.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { MAX_TOKENS = 1024, MAX_PAGES = MAX_TOKENS / KV_PAGE_TOKENS, MAX_ROWS = 512 };

struct expected {
    int32_t tokens[MAX_TOKENS]; /* prompt, then the greedy continuation */
    int32_t n_prompt, n_greedy;
    int32_t positions[64];
    int32_t n_positions;
    float *logits; /* (n_positions, vocab) */
};

struct runner {
    struct backend *be;
    struct model_config config;
    struct model *model;
    struct batch *batch;
    int32_t pages[MAX_PAGES]; /* a shuffled block table */
};

static int32_t read_ids(const struct json *list, int32_t *out, int32_t max)
{
    int32_t n = 0;

    for (const struct json *v = json_first(list); v; v = json_next(v)) {
        ck_assert_int_lt(n, max);
        out[n++] = (int32_t)json_number(v);
    }
    return n;
}

static struct expected read_expected(const char *dir, int32_t vocab)
{
    struct expected e = {0};
    struct error err;
    char *path = path_join(dir, "expected.json");
    struct json *root = json_parse_file(path, 1 << 20, &err);
    struct buffer values;

    ck_assert_msg(root != NULL, "%s", root ? "" : err.message);
    const struct json *logits = json_get(root, "logits");
    e.n_prompt = read_ids(json_get(root, "prompt"), e.tokens, MAX_TOKENS);
    e.n_greedy = read_ids(json_get(root, "greedy"), e.tokens + e.n_prompt, MAX_TOKENS - e.n_prompt);
    e.n_positions = read_ids(json_get(logits, "positions"), e.positions, 64);
    free(path);

    path = path_join(dir, json_string(json_get(logits, "values")));
    buffer_init(&values, 1 << 24);
    ck_assert_int_eq(file_read(path, &values, &err), 0);
    ck_assert_uint_eq(values.len, (size_t)e.n_positions * (size_t)vocab * sizeof(float));
    e.logits = (float *)values.data;
    free(path);
    json_free(root);
    return e;
}

static struct runner open_model(const char *dir)
{
    struct runner r = {0};
    struct error err;
    atomic_int cancel = 0;
    struct batch_limits limits = {.max_rows = MAX_ROWS, .max_seqs = 4, .max_pages = MAX_PAGES};

    ck_assert_msg(model_config_load(&r.config, dir, &err) == 0, "%s", err.message);
    r.be = backend_cpu_open(&(struct backend_options){
        .threads = 2, .slots = 1, .vocab_size = r.config.vocab_size, .limits = limits});
    r.model = model_load(dir, &r.config, r.be, &cancel, &err);
    ck_assert_msg(r.model != NULL, "%s", r.model ? "" : err.message);
    ck_assert_int_eq(model_reserve(r.model, limits, &err), 0);
    ck_assert_int_eq(model_open_cache(r.model, MAX_PAGES, &err), 0);
    r.batch = batch_new(limits);
    for (int i = 0; i < MAX_PAGES; i++) /* 5 is prime to the number of pages: a permutation */
        r.pages[i] = (i * 5 + 3) % MAX_PAGES;
    return r;
}

static void close_model(struct runner *r)
{
    free(r->batch);
    model_free(r->model);
    r->be->ops->close(r->be);
}

/* Runs tokens [from, to) of a sequence and returns the logits of the last one. */
static const float *run(struct runner *r, const int32_t *tokens, int32_t from, int32_t to,
                        bool absorbed)
{
    struct error err;
    struct batch_seq seq = {
        .n_rows = to - from, .kv_len = to, .absorbed = absorbed, .wants_logits = 1};

    batch_clear(r->batch);
    batch_add(r->batch, seq, tokens + from, r->pages, 0);
    struct tensor logits = model_forward(r->model, r->batch);
    ck_assert_int_eq(r->be->ops->finish(r->be, &err), 0);
    return logits.data;
}

static int32_t largest(const float *logits, int32_t n)
{
    int32_t best = 0;

    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* Largest difference as a share of the range of the expected logits. */
static double difference(const float *got, const float *want, int32_t n)
{
    double worst = 0, low = want[0], high = want[0];

    for (int32_t i = 0; i < n; i++) {
        double diff = fabs((double)got[i] - want[i]);
        worst = diff > worst || isnan(diff) ? diff : worst;
        low = want[i] < low ? want[i] : low;
        high = want[i] > high ? want[i] : high;
    }
    return worst / (high - low);
}

/* Prompt logits, with the prompt in one chunk and in uneven ones; then greedy tokens. */
static void check_checkpoint(const char *checkpoint, const char *vectors)
{
    struct runner r = open_model(checkpoint);
    struct expected e = read_expected(vectors, r.config.vocab_size);
    int32_t vocab = r.config.vocab_size;
    double worst = 0;

    for (int32_t i = 0; i < e.n_positions; i++) {
        int32_t end = e.positions[i] + 1, middle = end * 2 / 3;
        double whole = difference(run(&r, e.tokens, 0, end, false), e.logits + i * vocab, vocab);
        if (middle > 0)
            run(&r, e.tokens, 0, middle, false);
        double cut = difference(run(&r, e.tokens, middle, end, false), e.logits + i * vocab, vocab);
        ck_assert_double_eq(whole, cut); /* the same bits */
        worst = whole > worst || isnan(whole) ? whole : worst;
    }
    ck_assert_msg(worst <= 1e-4, "%s: logits differ by %g of their range", vectors, worst);

    const float *logits = run(&r, e.tokens, 0, e.n_prompt, false);
    for (int32_t i = 0; i < e.n_greedy; i++) {
        int32_t at = e.n_prompt + i;
        ck_assert_msg(largest(logits, vocab) == e.tokens[at], "%s: greedy token %d differs",
                      vectors, i);
        logits = run(&r, e.tokens, at, at + 1, true);
    }
    printf("  %-44s %d logit rows within %.1e of the range, %d greedy tokens equal\n", vectors,
           e.n_positions, worst, e.n_greedy);
    free(e.logits);
    close_model(&r);
}

static const char *const tiny[] = {
    "v2_lite",
    "v2_group_yarn_bf16",
    "v2_all_moe",
    "v3_group_yarn",
    "v3_moonlight_f16",
    "v3_fp8",
    "v3_bias_tied",
    "v3_dense_long",
    "v3_yarn_ratio",
    "glm4_moe_lite",
    "youtu",
    "v32",
    "glm_moe_dsa",
    "glm_moe_dsa_short",
    "mistral4",
    "mistral4_fp8",
    "mistral_large_3",
    "minicpm3",
    "minicpm3_scaled",
    "longcat_flash",
    "longcat_flash_wide",
    "axk1",
    "axk1_deep",
    "sarvam_mla",
    "sarvam_mla_one_group",
    "kimi_k25",
    "kimi_k2_int4",
    "kimi_k25_int4",
    "v3_int4_channel",
    "v3_int4_g128",
    "v3_fp8_channel",
    "v32_fp8",
    "glm_moe_dsa_fp8",
};

START_TEST(test_tiny_checkpoint_equals_transformers)
{
    char *dir = path_join("tests/vectors/tiny", tiny[_i]);

    check_checkpoint(dir, dir);
    free(dir);
}
END_TEST

START_TEST(test_demo_model_equals_transformers)
{
    check_checkpoint("model/demo", "tests/vectors/demo");
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_loop_test(tcase, test_tiny_checkpoint_equals_transformers, 0,
                        sizeof(tiny) / sizeof(tiny[0]));
    tcase_add_test(tcase, test_demo_model_equals_transformers);
}

UNIT_MAIN("logits", add_tests)
