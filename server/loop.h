/* The event loop of the daemon's one I/O thread: a thin layer over libuv, so that only this file's
 * implementation and http.c know it. All functions but loop_wake are for the loop's thread. */
#pragma once

#include <stdint.h>

struct loop;
struct loop_timer;
struct loop_wakeup;

struct loop *loop_new(void);
void loop_free(struct loop *loop); /* everything made on it must be gone */

/* Runs until loop_stop is called. */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

/* Calls `call(arg)` after `first_ms` and then every `repeat_ms` (0: once). */
struct loop_timer *loop_timer_start(struct loop *loop, uint64_t first_ms, uint64_t repeat_ms,
                                    void (*call)(void *arg), void *arg);
void loop_timer_stop(struct loop_timer *timer);

/* A way for other threads to have `call(arg)` run on the loop's thread. Several wakes before the
 * loop gets to it may be merged into one call. */
struct loop_wakeup *loop_wakeup_new(struct loop *loop, void (*call)(void *arg), void *arg);
void loop_wakeup_free(struct loop_wakeup *wakeup);
void loop_wake(struct loop_wakeup *wakeup); /* from any thread */

/* Calls `call(arg, signum)` on the loop's thread when the process gets the signal. */
void loop_on_signal(struct loop *loop, int signum, void (*call)(void *arg, int signum), void *arg);

/* The libuv loop, for http.c alone. */
void *loop_native(struct loop *loop);
