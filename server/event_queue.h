/* The engine's events on their way to the loop: a bounded queue between two threads.
 *
 * A step gives hundreds of events, and each cache line that one processor writes and the other
 * reads costs both of them. So an event travels packed: alternatives of a token, which few requests
 * ask for, go beside it, and the message of a failure, of which there is one, not at all. Events
 * wait on the engine's side until it flushes: then they cross together. */
#pragma once

#include "server/engine.h"

struct event_queue;

struct event_queue *event_queue_new(size_t capacity);
void event_queue_free(struct event_queue *q);

/* Adds an event to those that wait; flushes when they are many. By one thread, as all flushes. */
void event_queue_add(struct event_queue *q, const struct engine_event *event,
                     void (*wake)(void *arg), void *arg);

/* Puts in the events that wait. When there is no room it calls `wake(arg)`, for the other side to
 * make some, and waits for it. On a closed queue they are dropped. */
void event_queue_flush(struct event_queue *q, void (*wake)(void *arg), void *arg);

/* Moves up to `max` events out; returns how many. */
size_t event_queue_pop(struct event_queue *q, struct engine_event *events, size_t max);

/* Nothing is accepted any more, and who waits returns. */
void event_queue_close(struct event_queue *q);
