#include "server/event_queue.h"

#include "base/memory.h"
#include "base/panic.h"
#include "base/queue.h"

#include <stdlib.h>
#include <string.h>

enum { AT_ONCE = 64 };

/* A token or a score without its alternatives. */
struct packed_token {
    int32_t token;
    float logprob;
    int32_t rank, n_top;
    enum finish_reason finish;
};

struct packed {
    uint64_t id;
    int64_t time_us;
    enum engine_event_type type;
    union {
        int32_t cached_tokens;
        struct packed_token token;
        struct engine_step step;
    };
};

struct alternatives {
    int32_t token[SAMPLING_MAX_LOGPROBS];
    float logprob[SAMPLING_MAX_LOGPROBS];
};

struct event_queue {
    struct queue *events;       /* of struct packed */
    struct queue *alternatives; /* in the order of the events that have some; pushed before them */
    struct error failure;       /* of the one ENGINE_FAILED; written before it is pushed */

    /* The engine's side. */
    struct packed *added; /* (AT_ONCE) not yet in `events` */
    size_t n_added;
};

struct event_queue *event_queue_new(size_t capacity)
{
    struct event_queue *q = mem_zalloc(1, sizeof(*q));

    q->events = queue_new(capacity, sizeof(struct packed));
    q->added = mem_zalloc(AT_ONCE, sizeof(*q->added));
    q->alternatives = queue_new(capacity + 2 * AT_ONCE, sizeof(struct alternatives));
    return q;
}

void event_queue_free(struct event_queue *q)
{
    queue_free(q->events);
    queue_free(q->alternatives);
    free(q->added);
    free(q);
}

static struct packed_token pack_token(const struct sampling_result *r, enum finish_reason finish)
{
    return (struct packed_token){r->token, r->logprob, r->rank, r->n_top, finish};
}

static struct packed pack(struct event_queue *q, const struct engine_event *event)
{
    struct packed p = {.id = event->id, .time_us = event->time_us, .type = event->type};

    switch (event->type) {
    case ENGINE_ADMITTED:
        p.cached_tokens = event->cached_tokens;
        break;
    case ENGINE_SCORE:
        p.token = pack_token(&event->score, FINISH_NONE);
        break;
    case ENGINE_TOKEN:
        p.token = pack_token(&event->token.result, event->token.finish);
        break;
    case ENGINE_STEP:
        p.step = event->step;
        break;
    case ENGINE_FAILED:
        q->failure = event->error;
        break;
    case ENGINE_READY:
    case ENGINE_CANCELLED:
        break;
    }
    return p;
}

/* The result that the event carries, or NULL. */
static const struct sampling_result *result_of(const struct engine_event *event)
{
    return event->type == ENGINE_TOKEN   ? &event->token.result
           : event->type == ENGINE_SCORE ? &event->score
                                         : NULL;
}

/* There is always room: each event in the queue has at most one of them, so has each that was just
 * popped, and each that waits to be pushed. */
static void push_alternatives(struct event_queue *q, const struct sampling_result *result)
{
    struct alternatives a;
    size_t n = (size_t)result->n_top;

    memcpy(a.token, result->top_token, n * sizeof(*a.token));
    memcpy(a.logprob, result->top_logprob, n * sizeof(*a.logprob));
    queue_push(q->alternatives, &a, NULL);
}

void event_queue_add(struct event_queue *q, const struct engine_event *event,
                     void (*wake)(void *arg), void *arg)
{
    const struct sampling_result *result = result_of(event);

    if (result && result->n_top > 0)
        push_alternatives(q, result);
    q->added[q->n_added++] = pack(q, event);
    if (q->n_added == AT_ONCE)
        event_queue_flush(q, wake, arg);
}

void event_queue_flush(struct event_queue *q, void (*wake)(void *arg), void *arg)
{
    size_t n = queue_try_push_all(q->events, q->added, q->n_added);

    if (n < q->n_added)
        wake(arg);
    for (; n < q->n_added; n++)
        queue_push(q->events, &q->added[n], NULL);
    q->n_added = 0;
}

static void unpack_token(struct event_queue *q, const struct packed_token *p,
                         struct sampling_result *result)
{
    struct alternatives a;

    *result = (struct sampling_result){
        .token = p->token, .logprob = p->logprob, .rank = p->rank, .n_top = p->n_top};
    if (p->n_top == 0)
        return;
    size_t n = (size_t)p->n_top, found = queue_pop(q->alternatives, &a, 1);
    ASSERT(found == 1);
    memcpy(result->top_token, a.token, n * sizeof(*a.token));
    memcpy(result->top_logprob, a.logprob, n * sizeof(*a.logprob));
}

static void unpack(struct event_queue *q, const struct packed *p, struct engine_event *event)
{
    event->type = p->type;
    event->id = p->id;
    event->time_us = p->time_us;
    switch (p->type) {
    case ENGINE_ADMITTED:
        event->cached_tokens = p->cached_tokens;
        break;
    case ENGINE_SCORE:
        unpack_token(q, &p->token, &event->score);
        break;
    case ENGINE_TOKEN:
        unpack_token(q, &p->token, &event->token.result);
        event->token.finish = p->token.finish;
        break;
    case ENGINE_STEP:
        event->step = p->step;
        break;
    case ENGINE_FAILED:
        event->error = q->failure;
        break;
    case ENGINE_READY:
    case ENGINE_CANCELLED:
        break;
    }
}

size_t event_queue_pop(struct event_queue *q, struct engine_event *events, size_t max)
{
    struct packed some[AT_ONCE];
    size_t n = 0, got;

    do {
        got = queue_pop(q->events, some, max - n < AT_ONCE ? max - n : AT_ONCE);
        for (size_t i = 0; i < got; i++)
            unpack(q, &some[i], &events[n + i]);
        n += got;
    } while (got == AT_ONCE && n < max);
    return n;
}

void event_queue_close(struct event_queue *q)
{
    queue_close(q->events);
    queue_close(q->alternatives);
}
