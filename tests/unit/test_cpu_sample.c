/* The CPU sampler, by what it draws. */
#include "kernels/philox.h"
#include "tests/unit/test_cpu.h"

enum { N = TEST_VOCAB };

static const struct sampling_params plain = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 42};

struct rig {
    struct backend *be;
    struct batch *batch;
    struct tensor logits;
    float *row;            /* the logits of row 0, for the test to fill */
    const uint32_t *masks; /* NULL at first */
};

static struct rig rig_open(void)
{
    struct rig g = {.be = open_cpu(2)};

    g.batch = batch_new((struct batch_limits){TEST_ROWS, TEST_SEQS, TEST_PAGES, 0});
    g.logits = new_tensor(g.be, DTYPE_F32, 8, N);
    g.row = g.logits.data;
    for (int i = 0; i < N; i++)
        g.row[i] = 3 * random_at((uint64_t)i);
    return g;
}

static void rig_close(struct rig *g)
{
    g->be->ops->release(g->be, &g->logits);
    g->be->ops->close(g->be);
    free(g->batch);
}

/* Samples row i for slot i, rows 0 .. n - 1. */
static void sample_rows(struct rig *g, int n, int32_t step, struct sampling_result *results)
{
    int32_t token = 0, page = 0;

    batch_clear(g->batch);
    for (int32_t slot = 0; slot < n; slot++)
        batch_add(g->batch,
                  (struct batch_seq){.slot = slot, .n_rows = 1, .kv_len = 1, .wants_logits = 1},
                  &token, &page, step);
    g->be->ops->begin(g->be, g->batch);
    g->be->ops->sample(g->be, tensor_rows(g->logits, n), g->masks, results);
    ck_assert_int_eq(g->be->ops->finish(g->be, &test_error), 0);
}

static struct sampling_result sample_step(struct rig *g, int32_t step)
{
    struct sampling_result result;

    sample_rows(g, 1, step, &result);
    return result;
}

static void open_slot(struct rig *g, const struct sampling_params *params)
{
    g->be->ops->sampler_open(g->be, 0, params, NULL, 0);
}

/* Marks every token that `draws` steps draw. */
static void seen_tokens(struct rig *g, const struct sampling_params *params, int draws,
                        unsigned char seen[N])
{
    memset(seen, 0, N);
    open_slot(g, params);
    for (int32_t step = 0; step < draws; step++)
        seen[sample_step(g, step).token] = 1;
}

static int count_seen(const unsigned char seen[N])
{
    int n = 0;

    for (int i = 0; i < N; i++)
        n += seen[i];
    return n;
}

START_TEST(test_philox_known_answers)
{
    uint32_t out[4];

    philox4x32_10(out, (uint32_t[4]){0, 0, 0, 0}, (uint32_t[2]){0, 0});
    ck_assert_uint_eq(out[0], 0x6627e8d5);
    ck_assert_uint_eq(out[1], 0xe169c58d);
    ck_assert_uint_eq(out[2], 0xbc57ac4c);
    ck_assert_uint_eq(out[3], 0x9b00dbd8);
    philox4x32_10(out, (uint32_t[4]){0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                  (uint32_t[2]){0xa4093822, 0x299f31d0});
    ck_assert_uint_eq(out[0], 0xd16cfe09);
    ck_assert_uint_eq(out[1], 0x94fdcceb);
    ck_assert_uint_eq(out[2], 0x5001e420);
    ck_assert_uint_eq(out[3], 0x24126ea1);
}
END_TEST

START_TEST(test_temperature_0_takes_the_largest_and_lowest_id)
{
    struct rig g = rig_open();
    struct sampling_params p = plain;

    p.temperature = 0;
    g.row[17] = g.row[31] = 9;
    open_slot(&g, &p);
    for (int32_t step = 0; step < 20; step++)
        ck_assert_int_eq(sample_step(&g, step).token, 17);
    rig_close(&g);
}
END_TEST

START_TEST(test_a_seed_gives_the_same_tokens_whatever_the_batch)
{
    struct rig g = rig_open();
    struct sampling_params p = plain;
    struct sampling_result rows[8];
    int32_t alone[50];
    int differ = 0;

    open_slot(&g, &p);
    for (int32_t step = 0; step < 50; step++)
        alone[step] = sample_step(&g, step).token;
    for (int32_t slot = 0; slot < 8; slot++) {
        p.seed = slot < 7 ? 1000 + (uint64_t)slot : 42 + (1ull << 32);
        if (slot)
            g.be->ops->sampler_open(g.be, slot, &p, NULL, 0);
        memcpy(g.row + slot * N, g.row, N * sizeof(float));
    }
    for (int32_t step = 0; step < 50; step++) {
        sample_rows(&g, 8, step, rows);
        ck_assert_int_eq(rows[0].token, alone[step]);
        differ += rows[7].token != alone[step]; /* the seed's upper half counts */
    }
    ck_assert_int_gt(differ, 20);
    rig_close(&g);
}
END_TEST

/* Chi-square of 20,000 draws at `temperature` over the tokens of `kept`. */
static double chi_square(struct rig *g, const struct sampling_params *p, const unsigned char *kept)
{
    enum { DRAWS = 20000 };
    int count[N] = {0};
    double sum = 0, chi = 0;

    open_slot(g, p);
    for (int32_t step = 0; step < DRAWS; step++)
        count[sample_step(g, step).token]++;
    for (int i = 0; i < N; i++)
        sum += kept[i] ? exp(g->row[i] / (double)p->temperature) : 0;
    for (int i = 0; i < N; i++) {
        double expected = kept[i] ? DRAWS * exp(g->row[i] / (double)p->temperature) / sum : 0;
        if (kept[i])
            chi += pow(count[i] - expected, 2) / expected;
        else
            ck_assert_int_eq(count[i], 0);
    }
    return chi;
}

START_TEST(test_draws_follow_the_softmax)
{
    struct rig g = rig_open();
    struct sampling_params p = plain;
    unsigned char all[N], some[N];

    memset(all, 1, N);
    p.temperature = 1.7f;
    ck_assert_double_lt(chi_square(&g, &p, all), 85.4); /* 49 degrees of freedom, p = 0.001 */
    p.temperature = 1;
    p.top_k = 10;
    seen_tokens(&g, &p, 3000, some);
    ck_assert_int_eq(count_seen(some), 10);
    ck_assert_double_lt(chi_square(&g, &p, some), 27.9); /* 9 degrees */
    rig_close(&g);
}
END_TEST

/* Rank of a token: how many come before it. */
static int rank_of(const float *logits, int token)
{
    int rank = 0;

    for (int i = 0; i < N; i++)
        rank += logits[i] > logits[token] || (logits[i] == logits[token] && i < token);
    return rank;
}

START_TEST(test_filters_keep_exactly_their_tokens)
{
    struct rig g = rig_open();
    unsigned char seen[N];
    double sum = 0, max = -INFINITY;

    g.row[5] = g.row[6] = g.row[7]; /* ties inside the sets */
    for (int i = 0; i < N; i++) {
        sum += exp(g.row[i]);
        max = fmax(max, g.row[i]);
    }
    for (int form = 0; form < 4; form++) {
        struct sampling_params p = plain;
        p.top_k = form == 0 || form == 3 ? 7 : 0;
        p.top_p = form == 1 ? 0.6f : 1;
        p.min_p = form == 2 || form == 3 ? 0.5f : 0;
        seen_tokens(&g, &p, 4000, seen);
        for (int i = 0; i < N; i++) {
            double before = 0; /* probability of the tokens before this one */
            for (int j = 0; j < N; j++)
                before += rank_of(g.row, j) < rank_of(g.row, i) ? exp(g.row[j]) / sum : 0;
            int kept = (!p.top_k || rank_of(g.row, i) < p.top_k) && before < (double)p.top_p &&
                       exp(g.row[i] - max) >= (double)p.min_p;
            ck_assert_msg(seen[i] == kept, "form %d, token %d: drawn %d, kept %d", form, i, seen[i],
                          kept);
        }
    }
    rig_close(&g);
}
END_TEST

START_TEST(test_top_p_counts_what_top_k_left)
{
    struct rig g = rig_open();
    struct sampling_params p = plain;
    unsigned char seen[N];

    for (int i = 0; i < N; i++)
        g.row[i] = i < 4 ? 1 : 0.9f; /* equal ones: the lower ids come first */
    p.top_k = 4;
    p.top_p = 0.5f; /* of 4 equal tokens: 2; of all 50 it would be 24 */
    seen_tokens(&g, &p, 500, seen);
    ck_assert_int_eq(count_seen(seen), 2);
    ck_assert(seen[0] && seen[1]);
    p.top_p = 1e-6f;
    seen_tokens(&g, &p, 100, seen);
    ck_assert(seen[0] && count_seen(seen) == 1);
    rig_close(&g);
}
END_TEST

START_TEST(test_penalties)
{
    struct rig g = rig_open();
    struct sampling_params p = plain;
    int32_t prompt[] = {3, 4};

    p.temperature = 0;
    for (int i = 0; i < N; i++)
        g.row[i] = -10;
    g.row[3] = 6; /* in the prompt: divided */
    g.row[7] = 4;
    g.row[4] = -0.5f; /* in the prompt and negative: multiplied */
    p.repetition_penalty = 2;
    g.be->ops->sampler_open(g.be, 0, &p, prompt, 2);
    ck_assert_int_eq(sample_step(&g, 0).token, 7); /* 4 > 6 / 2 */
    ck_assert_int_eq(sample_step(&g, 1).token, 3); /* 3 > 4 / 2, now that 7 was drawn */
    g.row[3] = g.row[7] = -10;
    g.row[8] = -0.9f;
    ck_assert_int_eq(sample_step(&g, 2).token, 8); /* -0.9 > -0.5 * 2 */
    g.be->ops->sampler_close(g.be, 0);

    p.repetition_penalty = 1;
    p.frequency_penalty = 0.4f;
    p.presence_penalty = 0.5f;
    for (int i = 0; i < N; i++)
        g.row[i] = -10;
    g.row[3] = 2;
    g.row[9] = 0.5f;
    g.be->ops->sampler_open(g.be, 0, &p, prompt, 2);
    int32_t expected[] = {3, 3, 3, 9}; /* 3 falls to 1.1, 0.7, 0.3; the prompt does not count */
    for (int32_t step = 0; step < 4; step++)
        ck_assert_int_eq(sample_step(&g, step).token, expected[step]);
    g.be->ops->sampler_open(g.be, 0, &p, prompt, 2); /* opened again: counts start anew */
    ck_assert_int_eq(sample_step(&g, 0).token, 3);
    rig_close(&g);
}
END_TEST

START_TEST(test_bias_and_min_tokens)
{
    struct rig g = rig_open();
    struct sampling_params p = plain;

    p.temperature = 0;
    p.n_bias = 2;
    p.bias[0] = (struct sampling_bias){12, 100};
    p.bias[1] = (struct sampling_bias){N + 5, 100}; /* outside the vocabulary: no effect */
    p.n_stop_tokens = 1;
    p.stop_tokens[0] = 12;
    p.min_tokens = 2;
    open_slot(&g, &p);
    ck_assert_int_ne(sample_step(&g, 0).token, 12);
    ck_assert_int_ne(sample_step(&g, 1).token, 12);
    ck_assert_int_eq(sample_step(&g, 2).token, 12);
    rig_close(&g);
}
END_TEST

START_TEST(test_a_mask_leaves_only_its_tokens)
{
    struct rig g = rig_open();
    uint32_t masks[2 * SAMPLING_MASK_WORDS(N)] = {0}, *second = masks + SAMPLING_MASK_WORDS(N);
    struct sampling_params params = plain, greedy = plain;
    struct sampling_result results[2];
    unsigned char seen[N];

    for (int32_t t = 5; t < N; t += 40)
        masks[t / 32] |= 1u << t % 32;
    second[(N - 1) / 32] |= 1u << (N - 1) % 32; /* of another row: a single token */
    g.masks = masks;
    params.top_p = 0.9f;
    for (int filtered = 0; filtered < 2; filtered++) {
        seen_tokens(&g, filtered ? &params : &plain, 2000, seen);
        for (int32_t t = 0; t < N; t++)
            ck_assert(!seen[t] || t % 40 == 5);
        ck_assert_int_gt(count_seen(seen), 1);
    }
    greedy.temperature = 0;
    for (int32_t slot = 0; slot < 2; slot++)
        g.be->ops->sampler_open(g.be, slot, &greedy, NULL, 0);
    sample_rows(&g, 2, 0, results);
    ck_assert_int_eq(results[0].token % 40, 5);
    ck_assert_int_eq(results[1].token, N - 1);
    rig_close(&g);
}
END_TEST

START_TEST(test_logprobs_are_the_models_own)
{
    struct rig g = rig_open();
    struct sampling_params p = plain;
    double sum = 0;

    p.n_logprobs = 5;
    p.temperature = 0.2f;
    p.top_k = 3;
    p.n_bias = 1;
    p.bias[0] = (struct sampling_bias){20, 100};
    g.row[2] = g.row[1]; /* a tie among the alternatives' candidates */
    for (int i = 0; i < N; i++)
        sum += exp(g.row[i]);
    open_slot(&g, &p);
    struct sampling_result r = sample_step(&g, 0);
    ck_assert_int_eq(r.token, 20);
    assert_near(r.logprob, g.row[20] - log(sum), 1e-6);
    ck_assert_int_eq(r.n_top, 5);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(rank_of(g.row, r.top_token[i]), i);
        assert_near(r.top_logprob[i], g.row[r.top_token[i]] - log(sum), 1e-6);
    }
    rig_close(&g);
}
END_TEST

START_TEST(test_hostile_rows_give_a_token)
{
    struct rig g = rig_open();
    struct sampling_params p = plain;

    /* Everything banned: the model's own favourite. */
    g.row[33] = 9;
    p.n_bias = N;
    for (int i = 0; i < N; i++)
        p.bias[i] = (struct sampling_bias){i, -INFINITY};
    open_slot(&g, &p);
    ck_assert_int_eq(sample_step(&g, 0).token, 33);
    for (int i = 0; i < N; i++)
        p.bias[i].bias = i == 8 ? INFINITY : -100;
    open_slot(&g, &p);
    ck_assert_int_eq(sample_step(&g, 0).token, 8);

    for (int form = 0; form < 3; form++) {
        p = plain;
        p.n_logprobs = 20;
        p.top_p = form == 1 ? 0.5f : 1;
        p.temperature = form == 2 ? 0 : 1;
        for (int i = 0; i < N; i++)
            g.row[i] = NAN;
        open_slot(&g, &p);
        ck_assert_int_eq(sample_step(&g, 0).token, 0);
        ck_assert_int_eq(sample_step(&g, 0).n_top, 0);
        g.row[5] = 1;
        ck_assert_int_eq(sample_step(&g, 1).token, 5);
        g.row[6] = INFINITY;
        ck_assert_int_eq(sample_step(&g, 2).token, 6);
    }
    rig_close(&g);
}
END_TEST

static void add(TCase *t)
{
    tcase_add_test(t, test_philox_known_answers);
    tcase_add_test(t, test_temperature_0_takes_the_largest_and_lowest_id);
    tcase_add_test(t, test_a_seed_gives_the_same_tokens_whatever_the_batch);
    tcase_add_test(t, test_draws_follow_the_softmax);
    tcase_add_test(t, test_filters_keep_exactly_their_tokens);
    tcase_add_test(t, test_top_p_counts_what_top_k_left);
    tcase_add_test(t, test_penalties);
    tcase_add_test(t, test_bias_and_min_tokens);
    tcase_add_test(t, test_a_mask_leaves_only_its_tokens);
    tcase_add_test(t, test_logprobs_are_the_models_own);
    tcase_add_test(t, test_hostile_rows_give_a_token);
}

UNIT_MAIN("cpu_sample", add)
