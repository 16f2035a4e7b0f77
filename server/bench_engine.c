#include "server/bench_engine.h"

#include "base/clock.h"
#include "base/memory.h"
#include "server/engine.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { EVENTS_AT_ONCE = 256, ALONE_TRIALS = 5, SETTLE_STEPS = 4, MAX_SEQS = 4096 };

struct bench_engine {
    const struct options *options;
    struct engine *engine;
    pthread_mutex_t lock;
    pthread_cond_t woken_up;
    bool woken;
    uint64_t random;

    /* Of the run under way. */
    int live;                  /* sequences that are not over */
    int64_t first_us, last_us; /* of tokens */
    int32_t pure_seqs;         /* steps of just so many generated tokens are wanted */
    int32_t n_pure, max_pure;  /* such steps, after the first SETTLE_STEPS */
    double *step_s, *host_s;   /* (max_pure) */
    struct error failure;      /* of the engine */
    bool ready, failed;
    struct engine_event events[EVENTS_AT_ONCE];
};

/* On the engine's thread. */
static void wake(void *arg)
{
    struct bench_engine *b = arg;

    pthread_mutex_lock(&b->lock);
    b->woken = true;
    pthread_cond_signal(&b->woken_up);
    pthread_mutex_unlock(&b->lock);
}

static void note_step(struct bench_engine *b, const struct engine_step *step)
{
    if (b->pure_seqs == 0 || step->seqs != b->pure_seqs || step->rows != step->seqs ||
        step->prompt_tokens > 0)
        return;
    int32_t at = b->n_pure++ - SETTLE_STEPS;
    if (at < 0 || at >= b->max_pure)
        return;
    b->step_s[at] = (double)step->step_us * 1e-6;
    b->host_s[at] = (double)(step->step_us - step->wait_us) * 1e-6;
}

static void handle(struct bench_engine *b, const struct engine_event *event)
{
    switch (event->type) {
    case ENGINE_READY:
        b->ready = true;
        break;
    case ENGINE_FAILED:
        b->failed = true;
        b->failure = event->error;
        break;
    case ENGINE_TOKEN:
        if (b->first_us == 0)
            b->first_us = event->time_us;
        b->last_us = event->time_us;
        b->live -= event->token.finish != FINISH_NONE;
        break;
    case ENGINE_CANCELLED:
        b->live--;
        break;
    case ENGINE_STEP:
        note_step(b, &event->step);
        break;
    case ENGINE_ADMITTED:
    case ENGINE_SCORE:
        break;
    }
}

/* Waits for events and takes them all. -1 when the engine has failed. */
static int take_events(struct bench_engine *b, struct error *err)
{
    size_t n;

    pthread_mutex_lock(&b->lock);
    while (!b->woken)
        pthread_cond_wait(&b->woken_up, &b->lock);
    b->woken = false;
    pthread_mutex_unlock(&b->lock);
    while ((n = engine_poll(b->engine, b->events, EVENTS_AT_ONCE)) > 0)
        for (size_t i = 0; i < n; i++)
            handle(b, &b->events[i]);
    if (b->failed)
        *err = b->failure;
    return b->failed ? -1 : 0;
}

struct bench_engine *bench_engine_start(const struct options *options, const char *model_path,
                                        struct error *err)
{
    struct bench_engine *b = mem_zalloc(1, sizeof(*b));

    b->options = options;
    b->random = 88172645463325252ull;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->woken_up, NULL);
    b->engine = engine_start(options, model_path, wake, b);
    while (!b->ready) {
        if (take_events(b, err)) {
            bench_engine_stop(b);
            return NULL;
        }
    }
    return b;
}

void bench_engine_stop(struct bench_engine *b)
{
    if (!engine_stop(b->engine))
        return; /* its thread may still use what is here */
    pthread_cond_destroy(&b->woken_up);
    pthread_mutex_destroy(&b->lock);
    free(b->step_s);
    free(b->host_s);
    free(b);
}

int64_t bench_engine_capacity(const struct bench_engine *b)
{
    return (int64_t)engine_model(b->engine)->kv_pages * KV_PAGE_TOKENS;
}

int32_t bench_engine_max_len(const struct bench_engine *b)
{
    return engine_model(b->engine)->max_model_len;
}

const char *bench_engine_backend(const struct bench_engine *b)
{
    return engine_model(b->engine)->backend;
}

/* xorshift64: prompts that share no beginning. */
static int32_t random_token(struct bench_engine *b)
{
    b->random ^= b->random << 13;
    b->random ^= b->random >> 7;
    b->random ^= b->random << 17;
    return (int32_t)(b->random >> 16) & INT32_MAX;
}

/* Submits a prompt of random tokens. The engine has a slot for it. */
static uint64_t submit(struct bench_engine *b, int32_t length, int32_t max_tokens)
{
    struct engine_request *request = mem_zalloc(1, sizeof(*request));
    int32_t vocab = engine_model(b->engine)->config.vocab_size;

    request->tokens = mem_zalloc((size_t)length, sizeof(int32_t));
    request->n_tokens = length;
    request->max_tokens = max_tokens;
    request->sampling.top_p = 1;
    request->sampling.repetition_penalty = 1;
    for (int32_t i = 0; i < length; i++)
        request->tokens[i] = random_token(b) % vocab;
    uint64_t id = engine_submit(b->engine, request);
    ASSERT(id != 0);
    b->live++;
    return id;
}

static void begin_run(struct bench_engine *b)
{
    b->first_us = b->last_us = 0;
    b->pure_seqs = b->n_pure = b->max_pure = 0;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Seconds from the submission of `n` prompts to the last first token; negative on failure. */
static double time_prompts(struct bench_engine *b, int32_t n, int32_t length, struct error *err)
{
    int64_t start = clock_us();

    begin_run(b);
    for (int32_t i = 0; i < n; i++)
        submit(b, length, 1);
    while (b->live > 0)
        if (take_events(b, err))
            return -1;
    return (double)(b->last_us - start) * 1e-6;
}

int bench_engine_prefill(struct bench_engine *b, struct bench_prefill *point, struct error *err)
{
    double alone[ALONE_TRIALS];

    for (int i = 0; i < ALONE_TRIALS; i++) {
        alone[i] = time_prompts(b, 1, point->length, err);
        if (alone[i] < 0)
            return -1;
    }
    qsort(alone, ALONE_TRIALS, sizeof(*alone), compare_doubles);
    point->alone_ms = alone[ALONE_TRIALS / 2] * 1e3;
    double seconds = time_prompts(b, point->prompts, point->length, err);
    if (seconds < 0)
        return -1;
    point->tokens_per_s = (double)point->prompts * point->length / seconds;
    return 0;
}

static double percentile(const double *sorted, int32_t n, double share)
{
    return sorted[(int32_t)((double)(n - 1) * share)];
}

static void sum_up(struct bench_engine *b, struct bench_decode *point)
{
    int32_t n = b->max_pure;
    double step = 0;

    for (int32_t i = 0; i < n; i++)
        step += b->step_s[i];
    qsort(b->step_s, (size_t)n, sizeof(*b->step_s), compare_doubles);
    qsort(b->host_s, (size_t)n, sizeof(*b->host_s), compare_doubles);
    point->step = step / n;
    point->step_p50 = percentile(b->step_s, n, 0.5);
    point->step_p99 = percentile(b->step_s, n, 0.99);
    point->host = percentile(b->host_s, n, 0.5);
    point->host_p99 = percentile(b->host_s, n, 0.99);
    point->tokens_per_s = point->seqs / point->step;
}

int bench_engine_decode(struct bench_engine *b, int32_t steps, struct bench_decode *point,
                        struct error *err)
{
    uint64_t ids[MAX_SEQS];
    int32_t length = point->context - steps / 2, max_len = bench_engine_max_len(b);

    ASSERT(point->seqs <= MAX_SEQS);
    if (length < 1)
        length = 1;
    begin_run(b);
    b->pure_seqs = point->seqs;
    b->max_pure = steps;
    b->step_s = mem_resize(b->step_s, (size_t)steps, sizeof(*b->step_s));
    b->host_s = mem_resize(b->host_s, (size_t)steps, sizeof(*b->host_s));
    /* The first ones generate while the last prompts are computed; all go on until enough is seen.
     */
    for (int32_t i = 0; i < point->seqs; i++)
        ids[i] = submit(b, length, max_len - length);
    while (b->n_pure < steps + SETTLE_STEPS && b->live == point->seqs)
        if (take_events(b, err))
            return -1;
    bool enough = b->n_pure >= steps + SETTLE_STEPS;
    for (int32_t i = 0; i < point->seqs; i++)
        engine_cancel(b->engine, ids[i]);
    while (b->live > 0)
        if (take_events(b, err))
            return -1;
    if (enough)
        sum_up(b, point);
    else
        point->skipped = "the sequences ended before enough steps were seen";
    return 0;
}
