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

/* Those of a layer of multi-token prediction: see tests/vectors/make_mtp.py. */
struct drafts {
    int32_t positions[64], chain[16];
    int32_t n_positions, n_chain, chain_after;
    float *logits; /* (n_positions + n_chain, vocab) */
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

static struct json *read_json(const char *dir, const char *name)
{
    struct error err;
    char *path = path_join(dir, name);
    struct json *root = json_parse_file(path, 1 << 20, &err);

    ck_assert_msg(root != NULL, "%s", root ? "" : err.message);
    free(path);
    return root;
}

/* (rows, vocab) of the file that `name` names. */
static float *read_values(const char *dir, const struct json *name, int32_t rows, int32_t vocab)
{
    struct error err;
    struct buffer values;
    char *path = path_join(dir, json_string(name));

    buffer_init(&values, 1 << 24);
    ck_assert_int_eq(file_read(path, &values, &err), 0);
    ck_assert_uint_eq(values.len, (size_t)rows * (size_t)vocab * sizeof(float));
    free(path);
    return (float *)values.data;
}

static struct expected read_expected(const char *dir, int32_t vocab)
{
    struct expected e = {0};
    struct json *root = read_json(dir, "expected.json");

    const struct json *logits = json_get(root, "logits");
    e.n_prompt = read_ids(json_get(root, "prompt"), e.tokens, MAX_TOKENS);
    e.n_greedy = read_ids(json_get(root, "greedy"), e.tokens + e.n_prompt, MAX_TOKENS - e.n_prompt);
    e.n_positions = read_ids(json_get(logits, "positions"), e.positions, 64);
    e.logits = read_values(dir, json_get(logits, "values"), e.n_positions, vocab);
    json_free(root);
    return e;
}

static struct drafts read_drafts(const char *dir, int32_t vocab)
{
    struct drafts d = {0};
    struct json *root = read_json(dir, "drafts.json");
    const struct json *chain = json_get(root, "chain");

    d.n_positions = read_ids(json_get(root, "positions"), d.positions, 64);
    d.n_chain = read_ids(json_get(chain, "tokens"), d.chain, 16);
    d.chain_after = (int32_t)json_number(json_get(chain, "after"));
    d.logits = read_values(dir, json_get(root, "values"), d.n_positions + d.n_chain, vocab);
    json_free(root);
    return d;
}

static struct runner open_model(const char *dir, bool mtp)
{
    struct runner r = {0};
    struct error err;
    atomic_int cancel = 0;
    struct batch_limits limits = {.max_rows = MAX_ROWS, .max_seqs = 4, .max_pages = MAX_PAGES};

    ck_assert_msg(model_config_load(&r.config, dir, &err) == 0, "%s", err.message);
    ck_assert_int_eq(mtp ? model_want_mtp(&r.config, dir, &err) : 0, 0);
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
    struct runner r = open_model(checkpoint, false);
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

/* Runs rows of a layer of multi-token prediction at positions [from, to) after those of the model,
 * or of the layer: row i of the pass before, or its logit row. Returns the logits of the last. */
static const float *draft(struct runner *r, const int32_t *next_tokens, int32_t from, int32_t to,
                          bool absorbed)
{
    struct error err;
    struct model_hidden before = model_hidden(r->model, r->batch);
    struct batch_seq seq = {
        .n_rows = to - from, .kv_len = to, .absorbed = absorbed, .wants_logits = 1};

    batch_clear(r->batch);
    batch_add(r->batch, seq, next_tokens, r->pages, 0);
    r->batch->draft = 1;
    struct tensor logits =
        model_draft(r->model, r->batch, 0, to - from == 1 ? before.logit_rows : before.rows);
    ck_assert_int_eq(r->be->ops->finish(r->be, &err), 0);
    return logits.data;
}

/* The layer's own guesses after position d->chain_after, each from the one before. */
static double check_chain(struct runner *r, const struct drafts *d, const float *logits)
{
    int32_t vocab = r->config.vocab_size;
    double worst = 0;

    for (int32_t i = 0; i < d->n_chain; i++) {
        int32_t at = d->chain_after + 1 + i;
        ck_assert_int_eq(largest(logits, vocab), d->chain[i]);
        logits = draft(r, &d->chain[i], at, at + 1, true);
        double off = difference(logits, d->logits + (d->n_positions + i) * vocab, vocab);
        worst = off > worst || isnan(off) ? off : worst;
    }
    return worst;
}

/* The prompt in two chunks, each through model and layer, then token by token. What the chain
 * leaves in the cache is overwritten. */
static void check_drafts(const char *dir)
{
    struct runner r = open_model(dir, true);
    struct expected e = read_expected(dir, r.config.vocab_size);
    struct drafts d = read_drafts(dir, r.config.vocab_size);
    int32_t vocab = r.config.vocab_size, next = 0;
    double worst = 0, worst_chain = 0;

    ck_assert_int_eq(r.config.mtp_layers, 1);
    for (int32_t from = 0, to; from + 1 < e.n_prompt + e.n_greedy; from = to) {
        bool decode = from >= e.n_prompt;
        to = decode || next == d.n_positions || d.positions[next] >= e.n_prompt
                 ? from + 1
                 : d.positions[next] + 1;
        run(&r, e.tokens, from, to, decode);
        const float *logits = draft(&r, e.tokens + from + 1, from, to, decode);
        if (next < d.n_positions && to == d.positions[next] + 1) {
            double off = difference(logits, d.logits + next++ * vocab, vocab);
            worst = off > worst || isnan(off) ? off : worst;
        }
        if (to == d.chain_after + 1)
            worst_chain = check_chain(&r, &d, logits);
    }
    ck_assert_int_eq(next, d.n_positions);
    ck_assert_msg(worst <= 1e-4 && worst_chain <= 1e-4, "%s: drafts differ by %g, chained by %g",
                  dir, worst, worst_chain);
    printf("  %-44s %d rows of drafts within %.1e of the range, %d chained within %.1e\n", dir,
           d.n_positions, worst, d.n_chain, worst_chain);
    free(e.logits);
    free(d.logits);
    close_model(&r);
}

static const char *const with_mtp[] = {
    "mtp_v3", "mtp_v3_fp8", "mtp_glm4_moe_lite", "mtp_v32", "mtp_longcat",
};

/* The model is the same with the layer left out, and the layer's guesses are those of the oracle.
 */
START_TEST(test_multi_token_prediction_equals_transformers_layers)
{
    char *dir = path_join("tests/vectors/tiny", with_mtp[_i]);

    check_checkpoint(dir, dir);
    check_drafts(dir);
    free(dir);
}
END_TEST

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
    "longcat_flash_fp8",
    "glm4_moe_lite_fp8",
    "youtu_llm",
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
    tcase_add_loop_test(tcase, test_multi_token_prediction_equals_transformers_layers, 0,
                        sizeof(with_mtp) / sizeof(with_mtp[0]));
    tcase_add_test(tcase, test_demo_model_equals_transformers);
}

UNIT_MAIN("logits", add_tests)
