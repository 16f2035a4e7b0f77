/* What runs when: budgets, order, chunks, preemption. The tests play engine: they plan a step,
 * pretend it was computed, and hand back a token for every logit row. */
#include "base/memory.h"
#include "server/scheduler.h"
#include "tests/unit/unit.h"

#include <string.h>

enum { P = KV_PAGE_TOKENS, SLOTS = 64 };

static struct scheduler_config small(void)
{
    return (struct scheduler_config){.slots = SLOTS,
                                     .max_running = 4,
                                     .max_rows = 100,
                                     .max_scored = 30,
                                     .max_model_len = 8 * P,
                                     .kv_pages = 64,
                                     .prefix_caching = false};
}

static void add(struct scheduler *s, int32_t slot, int32_t n_tokens, int32_t max_new,
                int32_t priority)
{
    int32_t tokens[16 * P];

    for (int32_t i = 0; i < n_tokens; i++)
        tokens[i] = slot * 10000 + i;
    scheduler_add(s, slot,
                  &(struct scheduler_request){.tokens = tokens,
                                              .n_tokens = n_tokens,
                                              .max_new_tokens = max_new,
                                              .priority = priority});
}

/* Computes the planned step; token `token` comes out for every logit row. */
static void compute(struct scheduler *s, const struct batch *batch, int32_t token)
{
    scheduler_advance(s);
    for (int32_t i = 0; i < batch->n_logits; i++)
        scheduler_append(s, batch_logits(batch)[i].slot, token);
}

static const struct batch_seq *part_of(const struct batch *batch, int32_t slot)
{
    for (int32_t i = 0; i < batch->n_seqs; i++)
        if (batch_seqs(batch)[i].slot == slot)
            return &batch_seqs(batch)[i];
    return NULL;
}

START_TEST(test_a_prompt_then_one_token_a_step)
{
    struct scheduler_config config = small();
    struct scheduler *s = scheduler_new(&config);
    struct batch *batch = batch_new(scheduler_limits(s));

    add(s, 5, 10, 3, 0);
    scheduler_plan(s, batch);
    ck_assert_int_eq(batch->n_rows, 10);
    ck_assert_int_eq(batch->n_logits, 1);
    ck_assert_int_eq(batch_seqs(batch)[0].absorbed, 0);
    ck_assert_int_eq(batch_tokens(batch)[9], 50009);
    ck_assert_int_eq(batch_positions(batch)[9], 9);
    compute(s, batch, 77);

    scheduler_plan(s, batch);
    ck_assert_int_eq(batch->n_rows, 1);
    ck_assert_int_eq(batch_seqs(batch)[0].absorbed, 1);
    ck_assert_int_eq(batch_tokens(batch)[0], 77);
    ck_assert_int_eq(batch_positions(batch)[0], 10);
    ck_assert_int_eq(batch_logits(batch)[0].step, 1);
    compute(s, batch, 78);

    scheduler_remove(s, 5);
    scheduler_plan(s, batch);
    ck_assert_int_eq(batch->n_rows, 0);
    ck_assert_int_eq(scheduler_stats(s).kv.pages_used, 0);
    free(batch);
    scheduler_free(s);
}
END_TEST

START_TEST(test_a_long_prompt_is_cut_in_chunks_and_does_not_hold_others)
{
    struct scheduler_config config = small();
    struct scheduler *s = scheduler_new(&config);
    struct batch *batch = batch_new(scheduler_limits(s));

    add(s, 0, 5, 100, 0);
    scheduler_plan(s, batch);
    compute(s, batch, 1);
    add(s, 1, 250, 10, 0);
    for (int32_t done = 0, chunk; done < 250; done += chunk) {
        scheduler_plan(s, batch);
        ck_assert_int_le(batch->n_rows, 100);
        ck_assert_ptr_nonnull(part_of(batch, 0)); /* the running one gets its token each step */
        chunk = 250 - done < 99 ? 250 - done : 99;
        ck_assert_int_eq(part_of(batch, 1)->n_rows, chunk);
        ck_assert_int_eq(part_of(batch, 1)->wants_logits, done + chunk == 250);
        compute(s, batch, 1);
    }
    free(batch);
    scheduler_free(s);
}
END_TEST

START_TEST(test_arrivals_run_in_order_up_to_max_running)
{
    struct scheduler_config config = small();
    struct scheduler *s = scheduler_new(&config);
    struct batch *batch = batch_new(scheduler_limits(s));

    for (int32_t slot = 6; slot > 0; slot--)
        add(s, slot, 3, 5, 0);
    scheduler_plan(s, batch);
    ck_assert_int_eq(batch->n_seqs, 4);
    for (int32_t i = 0; i < 4; i++)
        ck_assert_int_eq(batch_seqs(batch)[i].slot, 6 - i);
    ck_assert_int_eq(scheduler_stats(s).waiting, 2);
    compute(s, batch, 1);
    scheduler_remove(s, 5);
    scheduler_plan(s, batch);
    ck_assert_ptr_nonnull(part_of(batch, 2));
    ck_assert_ptr_null(part_of(batch, 1));
    free(batch);
    scheduler_free(s);
}
END_TEST

START_TEST(test_priority_goes_before_arrival)
{
    struct scheduler_config config = small();
    config.max_running = 1;
    struct scheduler *s = scheduler_new(&config);
    struct batch *batch = batch_new(scheduler_limits(s));

    add(s, 1, 3, 5, 0);
    add(s, 2, 3, 5, -1);
    add(s, 3, 3, 5, 1);
    int32_t order[] = {2, 1, 3};
    for (int i = 0; i < 3; i++) {
        scheduler_plan(s, batch);
        ck_assert_int_eq(batch_seqs(batch)[0].slot, order[i]);
        compute(s, batch, 1);
        scheduler_remove(s, order[i]);
    }
    free(batch);
    scheduler_free(s);
}
END_TEST

START_TEST(test_the_latest_is_preempted_and_computed_again)
{
    struct scheduler_config config = small();
    config.kv_pages = 4;
    config.max_model_len = 4 * P;
    struct scheduler *s = scheduler_new(&config);
    struct batch *batch = batch_new(scheduler_limits(s));

    add(s, 0, P - 2, 2 * P, 0);
    scheduler_plan(s, batch);
    compute(s, batch, 1);
    add(s, 1, P - 2, 2 * P, 0);
    while (scheduler_stats(s).preemptions == 0) {
        scheduler_plan(s, batch);
        compute(s, batch, 2);
    }
    ck_assert_ptr_nonnull(part_of(batch, 0));
    ck_assert_ptr_null(part_of(batch, 1));
    ck_assert_int_eq(scheduler_stats(s).waiting, 1);
    scheduler_remove(s, 0);

    scheduler_plan(s, batch); /* its prompt again: nothing to sample, its tokens are known */
    const struct batch_seq *part = part_of(batch, 1);
    ck_assert_ptr_nonnull(part);
    ck_assert_int_eq(part->n_rows, P - 2);
    ck_assert_int_eq(part->absorbed, 0);
    ck_assert_int_eq(part->wants_logits, 0);
    compute(s, batch, 2);
    scheduler_plan(s, batch); /* then what it had generated, in the form it was generated in */
    part = part_of(batch, 1);
    ck_assert_int_gt(part->n_rows, 1);
    ck_assert_int_eq(part->absorbed, 1);
    ck_assert_int_eq(part->wants_logits, 1);
    ck_assert_int_eq(batch_tokens(batch)[0], 2);
    ck_assert_int_eq(batch_logits(batch)[0].step, part->n_rows);
    free(batch);
    scheduler_free(s);
}
END_TEST

START_TEST(test_a_cached_prompt_starts_behind_its_shared_pages)
{
    struct scheduler_config config = small();
    config.prefix_caching = true;
    config.max_rows = 4 * P;
    struct scheduler *s = scheduler_new(&config);
    struct batch *batch = batch_new(scheduler_limits(s));
    int32_t tokens[3 * P + 7] = {0};

    for (int32_t slot = 0; slot < 2; slot++) {
        scheduler_add(s, slot,
                      &(struct scheduler_request){
                          .tokens = tokens, .n_tokens = 3 * P + 7, .max_new_tokens = 5});
        ck_assert_int_eq(scheduler_cached_tokens(s, slot), -1);
        scheduler_plan(s, batch);
        ck_assert_int_eq(scheduler_cached_tokens(s, slot), slot ? 3 * P : 0);
        ck_assert_int_eq(part_of(batch, slot)->n_rows, slot ? 7 : 3 * P + 7);
        compute(s, batch, 1);
    }
    free(batch);
    scheduler_free(s);
}
END_TEST

START_TEST(test_a_prompt_that_waits_for_pages_is_looked_up_once_in_the_counts)
{
    struct scheduler_config config = small();
    config.prefix_caching = true;
    config.max_rows = 8 * P;
    config.kv_pages = 8;
    struct scheduler *s = scheduler_new(&config);
    struct batch *batch = batch_new(scheduler_limits(s));

    add(s, 0, 5 * P, 30, 0);
    add(s, 1, 4 * P, 30, 0);
    for (int step = 0; step < 20; step++) { /* the second waits */
        scheduler_plan(s, batch);
        ck_assert_ptr_null(part_of(batch, 1));
        compute(s, batch, 1);
    }
    ck_assert_int_eq(scheduler_stats(s).kv.queried_tokens, 5 * P);
    scheduler_remove(s, 0);
    scheduler_plan(s, batch);
    ck_assert_int_eq(scheduler_stats(s).kv.queried_tokens, 9 * P);
    ck_assert_int_eq(scheduler_stats(s).kv.hit_tokens, 0);
    free(batch);
    scheduler_free(s);
}
END_TEST

START_TEST(test_a_scored_prompt_gives_a_logit_row_for_every_token)
{
    struct scheduler_config config = small();
    struct scheduler *s = scheduler_new(&config);
    struct batch *batch = batch_new(scheduler_limits(s));
    int32_t tokens[75], next = 1;

    for (int32_t i = 0; i < 75; i++)
        tokens[i] = 500 + i;
    add(s, 0, 5, 50, 0);
    scheduler_plan(s, batch);
    compute(s, batch, 1);
    scheduler_add(s, 1,
                  &(struct scheduler_request){
                      .tokens = tokens, .n_tokens = 75, .max_new_tokens = 2, .score_prompt = true});
    while (next <= 75) { /* in chunks of what max_scored leaves, beside the running sequence */
        scheduler_plan(s, batch);
        ck_assert_ptr_nonnull(part_of(batch, 0));
        ck_assert_int_le(batch->n_logits, config.max_scored + config.max_running);
        for (int32_t i = 0; i < batch->n_logits; i++) {
            struct batch_logit logit = batch_logits(batch)[i];
            if (logit.slot == 1) {
                ck_assert_int_eq(logit.target, next < 75 ? tokens[next] : -1);
                next++;
            } else {
                ck_assert_int_eq(logit.target, -1);
            }
        }
        scheduler_advance(s);
        for (int32_t i = 0; i < batch->n_logits; i++)
            if (batch_logits(batch)[i].target < 0)
                scheduler_append(s, batch_logits(batch)[i].slot, 1);
    }
    free(batch);
    scheduler_free(s);
}
END_TEST

/* Random requests in a pool that is always too small: each gets exactly the tokens it asked for, in
 * order, no step passes a limit, and all pages come back. */
START_TEST(test_random_load_finishes_every_sequence)
{
    struct scheduler_config config = small();
    config.kv_pages = 10;
    config.max_model_len = 5 * P;
    config.prefix_caching = _i;
    struct scheduler *s = scheduler_new(&config);
    struct batch *batch = batch_new(scheduler_limits(s));
    int32_t wanted[SLOTS] = {0}, got[SLOTS] = {0}, started = 0, finished = 0;

    srand(11);
    while (finished < 500) {
        int32_t slot = rand() % SLOTS;
        if (started < 500 && wanted[slot] == 0) {
            int32_t n = 1 + rand() % (3 * P);
            wanted[slot] = 1 + rand() % (2 * P);
            got[slot] = 0;
            add(s, slot, n, wanted[slot], rand() % 3);
            started++;
        }
        scheduler_plan(s, batch);
        ck_assert_int_le(batch->n_rows, config.max_rows);
        ck_assert_int_le(batch->n_seqs, config.max_running);
        scheduler_advance(s);
        for (int32_t i = 0; i < batch->n_logits; i++) {
            struct batch_logit logit = batch_logits(batch)[i];
            ck_assert_int_eq(logit.step, got[logit.slot]);
            if (++got[logit.slot] < wanted[logit.slot]) {
                scheduler_append(s, logit.slot, 1);
                continue;
            }
            scheduler_remove(s, logit.slot);
            wanted[logit.slot] = 0;
            finished++;
        }
    }
    ck_assert_int_gt(scheduler_stats(s).preemptions, 0);
    ck_assert_int_eq(scheduler_stats(s).kv.pages_used, 0);
    ck_assert_int_eq(scheduler_stats(s).running + scheduler_stats(s).waiting, 0);
    free(batch);
    scheduler_free(s);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_a_prompt_then_one_token_a_step);
    tcase_add_test(tcase, test_a_long_prompt_is_cut_in_chunks_and_does_not_hold_others);
    tcase_add_test(tcase, test_arrivals_run_in_order_up_to_max_running);
    tcase_add_test(tcase, test_priority_goes_before_arrival);
    tcase_add_test(tcase, test_the_latest_is_preempted_and_computed_again);
    tcase_add_test(tcase, test_a_cached_prompt_starts_behind_its_shared_pages);
    tcase_add_test(tcase, test_a_prompt_that_waits_for_pages_is_looked_up_once_in_the_counts);
    tcase_add_test(tcase, test_a_scored_prompt_gives_a_logit_row_for_every_token);
    tcase_add_loop_test(tcase, test_random_load_finishes_every_sequence, 0, 2);
}

UNIT_MAIN("scheduler", add_tests)
