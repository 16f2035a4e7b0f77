/* Steps that are planned before the tokens of the step before are known give every sequence the
 * tokens it would have had alone. The device here is a simulation: a cache of tokens by page, and a
 * "model" whose next token is a hash of all that the sequence's block table leads to. So a page
 * that was given away too early, a wrong position or a wrong pending token changes a text. */
#include "base/memory.h"
#include "server/scheduler.h"
#include "tests/unit/unit.h"

#include <string.h>

enum { P = KV_PAGE_TOKENS, SLOTS = 24, PAGES = 12, MAX_LEN = 5 * P, STOP_EVERY = 199 };

/* ---- the simulated device ------------------------------------------------------------------- */

static struct {
    int32_t cache[PAGES][P];
    int32_t last[SLOTS]; /* token drawn for the slot */
} device;

struct flight {
    struct batch *batch;
    uint64_t ids[SLOTS]; /* by the batch's sequences: who was in the slot */
    int32_t drawn[64];   /* by logit row */
};

static int32_t next_token(const int32_t *tokens, int32_t n)
{
    uint64_t hash = 14695981039346656037ull;

    for (int32_t i = 0; i < n; i++)
        hash = (hash ^ (uint32_t)tokens[i]) * 1099511628211ull;
    return (int32_t)(hash >> 40 & 0xffff);
}

/* Runs a step: writes its rows, then draws for each row that wants a token. */
static void device_run(struct flight *flight)
{
    const struct batch *b = flight->batch;
    int32_t context[MAX_LEN];

    for (int32_t s = 0; s < b->n_seqs; s++) {
        const struct batch_seq *seq = &batch_seqs(b)[s];
        const int32_t *pages = batch_pages(b) + seq->first_page;
        for (int32_t r = seq->first_row; r < seq->first_row + seq->n_rows; r++) {
            int32_t token = batch_tokens(b)[r], at = batch_positions(b)[r];
            device.cache[pages[at / P]][at % P] = token >= 0 ? token : device.last[seq->slot];
        }
    }
    for (int32_t i = 0; i < b->n_logits; i++) {
        const struct batch_logit *logit = &batch_logits(b)[i];
        const struct batch_seq *seq = batch_seqs(b);
        while (logit->row >= seq->first_row + seq->n_rows)
            seq++;
        for (int32_t at = 0; at < seq->kv_len; at++)
            context[at] = device.cache[batch_pages(b)[seq->first_page + at / P]][at % P];
        flight->drawn[i] = device.last[logit->slot] = next_token(context, seq->kv_len);
    }
}

/* ---- an engine ------------------------------------------------------------------------------ */

static struct {
    uint64_t id; /* 0: none */
    int32_t tokens[MAX_LEN], n_prompt, n, max;
    bool needs_tokens;
} live[SLOTS];

static struct scheduler_config config_of(bool prefix_caching)
{
    return (struct scheduler_config){.slots = SLOTS,
                                     .max_running = 6,
                                     .max_rows = 100,
                                     .max_scored = 10,
                                     .max_model_len = MAX_LEN,
                                     .kv_pages = PAGES,
                                     .prefix_caching = prefix_caching};
}

/* A prompt that begins as many others do. */
static void start(struct scheduler *s, int32_t slot, uint64_t id)
{
    int32_t family = rand() % 3;

    live[slot].id = id;
    live[slot].n = live[slot].n_prompt = 1 + rand() % (2 * P);
    live[slot].max = 1 + rand() % (3 * P);
    live[slot].needs_tokens = rand() % 4 == 0;
    for (int32_t i = 0; i < live[slot].n; i++)
        live[slot].tokens[i] = i < P + P / 2 ? family * 1000 + i : rand() % 1000;
    scheduler_add(s, slot,
                  &(struct scheduler_request){.tokens = live[slot].tokens,
                                              .n_tokens = live[slot].n_prompt,
                                              .max_new_tokens = live[slot].max,
                                              .priority = rand() % 3,
                                              .needs_tokens = live[slot].needs_tokens});
}

static void end(struct scheduler *s, int32_t slot)
{
    scheduler_remove(s, slot);
    live[slot].id = 0;
}

/* Plans and runs a step. False when there was nothing to run. */
static bool launch(struct scheduler *s, struct flight *flight)
{
    scheduler_plan(s, flight->batch);
    for (int32_t i = 0; i < flight->batch->n_seqs; i++) {
        const struct batch_seq *seq = &batch_seqs(flight->batch)[i];
        flight->ids[i] = live[seq->slot].id;
        if (live[seq->slot].needs_tokens)
            for (int32_t r = 0; r < seq->n_rows; r++)
                ck_assert_int_ge(batch_tokens(flight->batch)[seq->first_row + r], 0);
    }
    device_run(flight);
    return flight->batch->n_rows > 0;
}

/* The results of a step; those of sequences that are over are dropped. Returns how many ended. */
static int land(struct scheduler *s, const struct flight *flight)
{
    int ended = 0;

    scheduler_advance(s);
    for (int32_t i = 0; i < flight->batch->n_logits; i++) {
        const struct batch_logit *logit = &batch_logits(flight->batch)[i];
        int32_t slot = logit->slot, k = 0, token = flight->drawn[i];
        while (batch_seqs(flight->batch)[k].slot != slot)
            k++;
        if (live[slot].id != flight->ids[k])
            continue;
        ck_assert_int_eq(logit->step, live[slot].n - live[slot].n_prompt);
        ck_assert_int_eq(token, next_token(live[slot].tokens, live[slot].n));
        live[slot].tokens[live[slot].n++] = token;
        if (token % STOP_EVERY == 0 || live[slot].n == live[slot].n_prompt + live[slot].max) {
            end(s, slot);
            ended++;
        } else {
            scheduler_append(s, slot, token);
            int32_t n;
            const int32_t *generated = scheduler_generated(s, slot, &n);
            ck_assert_int_eq(n, live[slot].n - live[slot].n_prompt);
            ck_assert_int_eq(generated[n - 1], token);
        }
    }
    return ended;
}

static struct flight *flight_new(struct scheduler *s)
{
    struct flight *flight = mem_zalloc(1, sizeof(*flight));

    flight->batch = batch_new(scheduler_limits(s));
    return flight;
}

static void flight_free(struct flight *flight)
{
    free(flight->batch);
    free(flight);
}

/* ---- tests ---------------------------------------------------------------------------------- */

/* In a pool that is too small, with ends and cancels at any time. */
START_TEST(test_every_sequence_has_the_tokens_it_would_have_alone)
{
    struct scheduler_config config = config_of(_i & 1);
    struct scheduler *s = scheduler_new(&config);
    struct flight *flights[2] = {flight_new(s), flight_new(s)};
    int depth = _i & 2 ? 2 : 1, n_flying = 0, ended = 0;
    uint64_t started = 0;

    srand(5);
    memset(live, 0, sizeof(live));
    while (ended < 1500) {
        int32_t slot = rand() % SLOTS;
        if (live[slot].id == 0) {
            start(s, slot, ++started);
        } else if (rand() % 200 == 0) {
            end(s, slot);
            ended++;
        }
        if (n_flying < depth && launch(s, flights[n_flying]))
            n_flying++;
        else if (n_flying == 0)
            continue;
        if (n_flying == depth || rand() % 3 == 0) {
            ended += land(s, flights[0]);
            struct flight *landed = flights[0];
            flights[0] = flights[1];
            flights[1] = landed;
            n_flying--;
        }
    }
    ck_assert_int_gt(scheduler_stats(s).preemptions, 10);
    for (int32_t slot = 0; slot < SLOTS; slot++)
        if (live[slot].id)
            end(s, slot);
    ck_assert_int_eq(scheduler_stats(s).kv.pages_used, 0);
    flight_free(flights[0]);
    flight_free(flights[1]);
    scheduler_free(s);
}
END_TEST

static void add(struct scheduler *s, int32_t slot, int32_t n, int32_t max_new, bool needs_tokens)
{
    int32_t tokens[MAX_LEN] = {0};

    scheduler_add(s, slot,
                  &(struct scheduler_request){.tokens = tokens,
                                              .n_tokens = n,
                                              .max_new_tokens = max_new,
                                              .needs_tokens = needs_tokens});
}

START_TEST(test_a_step_ahead_stands_on_the_pending_token)
{
    struct scheduler_config config = config_of(false);
    struct scheduler *s = scheduler_new(&config);
    struct batch *first = batch_new(scheduler_limits(s)), *second = batch_new(scheduler_limits(s));

    add(s, 3, 10, 8, false);
    scheduler_plan(s, first);
    scheduler_plan(s, second);
    ck_assert_int_eq(second->n_rows, 1);
    ck_assert_int_eq(batch_tokens(second)[0], -1);
    ck_assert_int_eq(batch_positions(second)[0], 10);
    ck_assert_int_eq(batch_seqs(second)[0].absorbed, 1);
    ck_assert_int_eq(batch_logits(second)[0].step, 1);
    scheduler_advance(s);
    scheduler_append(s, 3, 70);
    scheduler_plan(s, first);
    ck_assert_int_eq(batch_tokens(first)[0], -1); /* that of `second` */
    scheduler_advance(s);
    scheduler_append(s, 3, 71);
    scheduler_advance(s);
    scheduler_append(s, 3, 72);
    scheduler_plan(s, first); /* nothing is under way: it is known */
    ck_assert_int_eq(batch_tokens(first)[0], 72);
    ck_assert_int_eq(batch_positions(first)[0], 12);
    free(first);
    free(second);
    scheduler_free(s);
}
END_TEST

START_TEST(test_nothing_is_planned_past_the_last_token)
{
    struct scheduler_config config = config_of(false);
    struct scheduler *s = scheduler_new(&config);
    struct batch *first = batch_new(scheduler_limits(s)), *second = batch_new(scheduler_limits(s));

    add(s, 0, 10, 1, false);
    scheduler_plan(s, first);
    ck_assert_int_eq(first->n_logits, 1);
    scheduler_plan(s, second);
    ck_assert_int_eq(second->n_rows, 0);
    scheduler_advance(s);
    scheduler_remove(s, 0);
    ck_assert_int_eq(scheduler_stats(s).kv.pages_used, 0);
    free(first);
    free(second);
    scheduler_free(s);
}
END_TEST

START_TEST(test_who_needs_its_tokens_waits_and_the_others_go_on)
{
    struct scheduler_config config = config_of(false);
    struct scheduler *s = scheduler_new(&config);
    struct batch *first = batch_new(scheduler_limits(s)), *second = batch_new(scheduler_limits(s));

    add(s, 0, 10, 8, true);
    add(s, 1, 10, 8, false);
    scheduler_plan(s, first);
    ck_assert_int_eq(first->n_seqs, 2);
    scheduler_plan(s, second);
    ck_assert_int_eq(second->n_seqs, 1);
    ck_assert_int_eq(batch_seqs(second)[0].slot, 1);
    scheduler_advance(s);
    scheduler_append(s, 0, 7);
    scheduler_append(s, 1, 8);
    scheduler_plan(s, first);
    ck_assert_int_eq(first->n_seqs, 2);
    ck_assert_int_eq(batch_tokens(first)[0], 7);
    ck_assert_int_eq(batch_tokens(first)[1], -1);
    free(first);
    free(second);
    scheduler_free(s);
}
END_TEST

START_TEST(test_an_end_with_a_step_ahead_frees_slot_and_pages_at_once)
{
    struct scheduler_config config = config_of(false);
    struct scheduler *s = scheduler_new(&config);
    struct batch *first = batch_new(scheduler_limits(s)), *second = batch_new(scheduler_limits(s));

    add(s, 0, P, 8, false);
    scheduler_plan(s, first);
    scheduler_plan(s, second); /* crosses into a second page */
    ck_assert_int_eq(scheduler_stats(s).kv.pages_used, 2);
    scheduler_advance(s);
    scheduler_remove(s, 0); /* its token was a stop token */
    ck_assert_int_eq(scheduler_stats(s).kv.pages_used, 0);
    add(s, 0, P, 8, false);
    scheduler_plan(s, first);
    scheduler_advance(s); /* the step ahead of the one that is over */
    ck_assert_int_eq(first->n_rows, P);
    scheduler_advance(s);
    scheduler_append(s, 0, 5);
    free(first);
    free(second);
    scheduler_free(s);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_loop_test(tcase, test_every_sequence_has_the_tokens_it_would_have_alone, 0, 4);
    tcase_add_test(tcase, test_a_step_ahead_stands_on_the_pending_token);
    tcase_add_test(tcase, test_nothing_is_planned_past_the_last_token);
    tcase_add_test(tcase, test_who_needs_its_tokens_waits_and_the_others_go_on);
    tcase_add_test(tcase, test_an_end_with_a_step_ahead_frees_slot_and_pages_at_once);
}

UNIT_MAIN("look_ahead", add_tests)
