#include "base/queue.h"

#include "base/memory.h"
#include "base/panic.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t not_empty;
    pthread_cond_t not_full;
    size_t capacity, item_size;
    size_t first, count; /* a ring: items first .. first + count - 1, modulo capacity */
    bool closed;
    unsigned char *items;
};

struct queue *queue_new(size_t capacity, size_t item_size)
{
    struct queue *q = mem_zalloc(1, sizeof(*q));
    pthread_condattr_t monotonic;

    ASSERT(capacity > 0 && item_size > 0);
    pthread_mutex_init(&q->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&q->not_empty, &monotonic);
    pthread_cond_init(&q->not_full, &monotonic);
    pthread_condattr_destroy(&monotonic);
    q->capacity = capacity;
    q->item_size = item_size;
    q->items = mem_zalloc(capacity, item_size);
    return q;
}

void queue_free(struct queue *q)
{
    if (!q)
        return;
    pthread_cond_destroy(&q->not_full);
    pthread_cond_destroy(&q->not_empty);
    pthread_mutex_destroy(&q->lock);
    free(q->items);
    free(q);
}

/* With the lock held and room in the ring. */
static void append_locked(struct queue *q, const void *item, bool *was_empty)
{
    size_t at = (q->first + q->count) % q->capacity;

    memcpy(q->items + at * q->item_size, item, q->item_size);
    if (was_empty)
        *was_empty = q->count == 0;
    q->count++;
    pthread_cond_signal(&q->not_empty);
}

bool queue_try_push(struct queue *q, const void *item, bool *was_empty)
{
    pthread_mutex_lock(&q->lock);
    bool accepted = !q->closed && q->count < q->capacity;
    if (accepted)
        append_locked(q, item, was_empty);
    pthread_mutex_unlock(&q->lock);
    return accepted;
}

size_t queue_try_push_all(struct queue *q, const void *items, size_t n)
{
    const unsigned char *from = items;

    pthread_mutex_lock(&q->lock);
    if (q->closed)
        n = 0;
    if (n > q->capacity - q->count)
        n = q->capacity - q->count;
    for (size_t i = 0; i < n; i++)
        append_locked(q, from + i * q->item_size, NULL);
    pthread_mutex_unlock(&q->lock);
    return n;
}

bool queue_push(struct queue *q, const void *item, bool *was_empty)
{
    pthread_mutex_lock(&q->lock);
    while (!q->closed && q->count == q->capacity)
        pthread_cond_wait(&q->not_full, &q->lock);
    bool accepted = !q->closed;
    if (accepted)
        append_locked(q, item, was_empty);
    pthread_mutex_unlock(&q->lock);
    return accepted;
}

size_t queue_pop(struct queue *q, void *items, size_t max)
{
    unsigned char *out = items;

    pthread_mutex_lock(&q->lock);
    size_t n = q->count < max ? q->count : max;
    for (size_t i = 0; i < n; i++) {
        memcpy(out + i * q->item_size, q->items + q->first * q->item_size, q->item_size);
        q->first = (q->first + 1) % q->capacity;
    }
    q->count -= n;
    if (n)
        pthread_cond_broadcast(&q->not_full);
    pthread_mutex_unlock(&q->lock);
    return n;
}

static struct timespec deadline_after(int64_t timeout_us)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += timeout_us / 1000000;
    at.tv_nsec += (timeout_us % 1000000) * 1000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000;
    }
    return at;
}

void queue_wait(struct queue *q, int64_t timeout_us)
{
    struct timespec until = deadline_after(timeout_us < 0 ? 0 : timeout_us);
    int rc = 0;

    pthread_mutex_lock(&q->lock);
    while (q->count == 0 && !q->closed && rc == 0) {
        if (timeout_us < 0)
            rc = pthread_cond_wait(&q->not_empty, &q->lock);
        else
            rc = pthread_cond_timedwait(&q->not_empty, &q->lock, &until);
    }
    pthread_mutex_unlock(&q->lock);
}

void queue_close(struct queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->not_empty);
    pthread_cond_broadcast(&q->not_full);
    pthread_mutex_unlock(&q->lock);
}

size_t queue_length(struct queue *q)
{
    pthread_mutex_lock(&q->lock);
    size_t count = q->count;
    pthread_mutex_unlock(&q->lock);
    return count;
}
