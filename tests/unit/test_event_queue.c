/* Events come out as they went in, in order, whatever goes beside them and however slowly they are
 * taken. */
#include "server/event_queue.h"
#include "tests/unit/unit.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { CAPACITY = 10, EVENTS = 20000 };

static atomic_int wakes;

static void wake(void *arg)
{
    (void)arg;
    wakes++;
}

/* The i-th event: of every type in turn, with some number of alternatives. */
static struct engine_event event_at(int i)
{
    static const enum engine_event_type types[] = {ENGINE_TOKEN, ENGINE_SCORE, ENGINE_ADMITTED,
                                                   ENGINE_STEP, ENGINE_CANCELLED};
    struct engine_event event = {.type = types[i % 5], .id = (uint64_t)i + 1, .time_us = 1000 + i};
    struct sampling_result result = {
        .token = i, .logprob = (float)-i, .rank = i % 7, .n_top = i / 5 % 21};

    for (int k = 0; k < result.n_top; k++) {
        result.top_token[k] = i + k;
        result.top_logprob[k] = (float)(i - k);
    }
    if (event.type == ENGINE_TOKEN) {
        event.token.result = result;
        event.token.finish = i % 2 ? FINISH_LENGTH : FINISH_NONE;
    } else if (event.type == ENGINE_SCORE) {
        event.score = result;
    } else if (event.type == ENGINE_ADMITTED) {
        event.cached_tokens = i;
    } else if (event.type == ENGINE_STEP) {
        event.step = (struct engine_step){.rows = i, .wait_us = i + 1};
    }
    return event;
}

static void assert_result(const struct sampling_result *got, const struct sampling_result *want)
{
    size_t n = (size_t)want->n_top;

    ck_assert_int_eq(got->token, want->token);
    ck_assert_float_eq(got->logprob, want->logprob);
    ck_assert_int_eq(got->rank, want->rank);
    ck_assert_int_eq(got->n_top, want->n_top);
    ck_assert_mem_eq(got->top_token, want->top_token, n * sizeof(int32_t));
    ck_assert_mem_eq(got->top_logprob, want->top_logprob, n * sizeof(float));
}

static void assert_event(const struct engine_event *got, int i)
{
    struct engine_event want = event_at(i);

    ck_assert_int_eq(got->type, want.type);
    ck_assert_uint_eq(got->id, want.id);
    ck_assert_int_eq(got->time_us, want.time_us);
    if (want.type == ENGINE_TOKEN) {
        assert_result(&got->token.result, &want.token.result);
        ck_assert_int_eq(got->token.finish, want.token.finish);
    } else if (want.type == ENGINE_SCORE) {
        assert_result(&got->score, &want.score);
    } else if (want.type == ENGINE_ADMITTED) {
        ck_assert_int_eq(got->cached_tokens, want.cached_tokens);
    } else if (want.type == ENGINE_STEP) {
        ck_assert_mem_eq(&got->step, &want.step, sizeof(want.step));
    }
}

static void *push_all(void *arg)
{
    for (int i = 0; i < EVENTS; i++) {
        struct engine_event event = event_at(i);
        event_queue_add(arg, &event, wake, NULL);
    }
    event_queue_flush(arg, wake, NULL);
    return NULL;
}

START_TEST(test_a_full_queue_wakes_and_waits_and_loses_nothing)
{
    struct event_queue *q = event_queue_new(CAPACITY);
    struct engine_event events[7];
    pthread_t thread;
    int seen = 0;

    wakes = 0;
    ck_assert_int_eq(pthread_create(&thread, NULL, push_all, q), 0);
    while (wakes == 0) /* nobody takes any: it fills */
        ;
    while (seen < EVENTS) {
        size_t n = event_queue_pop(q, events, 7);
        for (size_t i = 0; i < n; i++)
            assert_event(&events[i], seen++);
    }
    pthread_join(thread, NULL);
    ck_assert_uint_eq(event_queue_pop(q, events, 7), 0);
    event_queue_free(q);
}
END_TEST

START_TEST(test_a_failure_keeps_its_message)
{
    struct event_queue *q = event_queue_new(CAPACITY);
    struct engine_event event = {.type = ENGINE_FAILED};

    snprintf(event.error.message, sizeof(event.error.message), "the GPU fell off the bus");
    event_queue_add(q, &event, wake, NULL);
    ck_assert_uint_eq(event_queue_pop(q, &(struct engine_event){0}, 1), 0);
    event_queue_flush(q, wake, NULL);
    memset(&event, 0, sizeof(event));
    ck_assert_uint_eq(event_queue_pop(q, &event, 1), 1);
    ck_assert_int_eq(event.type, ENGINE_FAILED);
    ck_assert_str_eq(event.error.message, "the GPU fell off the bus");
    event_queue_free(q);
}
END_TEST

START_TEST(test_a_closed_queue_keeps_nobody_waiting)
{
    struct event_queue *q = event_queue_new(CAPACITY);

    event_queue_close(q);
    push_all(q);
    event_queue_free(q);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_a_full_queue_wakes_and_waits_and_loses_nothing);
    tcase_add_test(tcase, test_a_failure_keeps_its_message);
    tcase_add_test(tcase, test_a_closed_queue_keeps_nobody_waiting);
}

UNIT_MAIN("event_queue", add_tests)
