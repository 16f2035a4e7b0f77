/* The event loop of the daemon's one I/O thread: a thin layer over libuv, so that no other file
 * knows it. All functions but loop_wake are for the loop's thread.
 *
 * Everything made on a loop is given back with its own stop or free function, which may be called
 * from within its callback; no callback comes after it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct loop_timer;
struct loop_wakeup;
struct loop_watch;
struct loop_idle;

struct loop *loop_new(void);
void loop_free(struct loop *loop); /* everything made on it must be gone */

/* Runs until loop_stop is called. */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

/* Calls `call(arg)` after `first_ms` and then every `repeat_ms` (0: once; it is stopped by its
 * owner all the same). */
struct loop_timer *loop_timer_start(struct loop *loop, uint64_t first_ms, uint64_t repeat_ms,
                                    void (*call)(void *arg), void *arg);
void loop_timer_stop(struct loop_timer *timer);

/* A way for other threads to have `call(arg)` run on the loop's thread. Several wakes before the
 * loop gets to it may be merged into one call. */
struct loop_wakeup *loop_wakeup_new(struct loop *loop, void (*call)(void *arg), void *arg);
void loop_wakeup_free(struct loop_wakeup *wakeup); /* when no thread can call loop_wake any more */
void loop_wake(struct loop_wakeup *wakeup);        /* from any thread */

/* Calls `call(arg, signum)` on the loop's thread when the process gets the signal. */
void loop_on_signal(struct loop *loop, int signum, void (*call)(void *arg, int signum), void *arg);

/* Calls `call(arg)` as long as the descriptor is readable (LOOP_READABLE), or once its peer has
 * closed or reset the connection (LOOP_HANGUP, which does not mind unread data). Errors of the
 * descriptor count as both. Level-triggered: stop the watch, or it calls again. Stop it before the
 * descriptor is closed; one watch a descriptor. NULL when the system refuses. */
enum loop_event { LOOP_READABLE, LOOP_HANGUP };
struct loop_watch *loop_watch_start(struct loop *loop, int fd, enum loop_event event,
                                    void (*call)(void *arg), void *arg);
void loop_watch_stop(struct loop_watch *watch);

/* Runs `work(arg)` on a thread of a small pool, and then `done(arg)` on the loop's. */
void loop_work(struct loop *loop, void (*work)(void *arg), void (*done)(void *arg), void *arg);

/* Runs the loop until nothing is under way of loop_work. Not from a callback. */
void loop_finish_work(struct loop *loop);

/* Calls `call(arg)` in every round of the loop while it is on; the loop does not sleep meanwhile.
 * Off at first. */
struct loop_idle *loop_idle_new(struct loop *loop, void (*call)(void *arg), void *arg);
void loop_idle_set(struct loop_idle *idle, bool on);
void loop_idle_free(struct loop_idle *idle);
