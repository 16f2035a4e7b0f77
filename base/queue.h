/* A bounded queue of fixed-size values between threads. It is how threads talk: values are copied
 * in and out, nothing inside is shared. Any number of producers and consumers. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct queue;

/* A queue of at most `capacity` items of `item_size` bytes each; all memory is taken here. */
struct queue *queue_new(size_t capacity, size_t item_size);
void queue_free(struct queue *q);

/* Copies `item` in. False when the queue is full or closed. `*was_empty`, when not NULL, tells
 * whether the other side needs waking. */
bool queue_try_push(struct queue *q, const void *item, bool *was_empty);

/* Copies as many of `n` items in as there is room for, in one go; returns how many. */
size_t queue_try_push_all(struct queue *q, const void *items, size_t n);

/* As queue_try_push, but waits for room. False only when the queue is closed. */
bool queue_push(struct queue *q, const void *item, bool *was_empty);

/* Moves up to `max` items to `items`; returns how many (0 when empty). */
size_t queue_pop(struct queue *q, void *items, size_t max);

/* Waits until an item is there, the queue is closed, or `timeout_us` passed (negative: no limit).
 */
void queue_wait(struct queue *q, int64_t timeout_us);

/* No more items are accepted; all waiters return. Items that are in can still be popped. */
void queue_close(struct queue *q);

size_t queue_length(struct queue *q);
