/* The event loop, over libuv.
 *
 * Each object made on the loop is one block: a libuv handle first, then the callback. libuv wants a
 * handle's memory until its close callback ran, so the stop functions only ask for the closing and
 * the block is freed from the loop, by on_closed. Signals belong to the loop and go with it.
 *
 * libuv leaves its run when nothing is active; the `anchor`, an async handle nobody sends to, keeps
 * it running until loop_stop. */
#include "server/loop.h"

#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>
#include <uv.h>

struct loop_signal {
    uv_signal_t handle;
    void (*call)(void *arg, int signum);
    void *arg;
    struct loop_signal *next;
};

struct loop {
    uv_loop_t uv;
    uv_async_t anchor;
    struct loop_signal *signals;
    int works; /* under way */
};

struct loop_work {
    uv_work_t request;
    struct loop *loop;
    void (*work)(void *arg);
    void (*done)(void *arg);
    void *arg;
};

struct loop_timer {
    uv_timer_t handle;
    void (*call)(void *arg);
    void *arg;
};

struct loop_wakeup {
    uv_async_t handle;
    void (*call)(void *arg);
    void *arg;
};

struct loop_watch {
    uv_poll_t handle;
    void (*call)(void *arg);
    void *arg;
};

struct loop_idle {
    uv_idle_t handle;
    void (*call)(void *arg);
    void *arg;
};

/* For calls that fail only when the process is out of memory or descriptors at its start. */
static void must(int rc)
{
    if (rc < 0)
        PANIC("event loop: %s", uv_strerror(rc));
}

/* The handle is the first member of its block, so its address is the block's. */
static void on_closed(uv_handle_t *handle)
{
    free(handle);
}

static void close_handle(void *handle)
{
    uv_close(handle, on_closed);
}

/* ---- the loop ---- */

struct loop *loop_new(void)
{
    struct loop *loop = mem_zalloc(1, sizeof(*loop));

    must(uv_loop_init(&loop->uv));
    must(uv_async_init(&loop->uv, &loop->anchor, NULL));
    return loop;
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    for (struct loop_signal *signal = loop->signals, *next; signal; signal = next) {
        next = signal->next;
        close_handle(&signal->handle);
    }
    uv_close((uv_handle_t *)&loop->anchor, NULL);
    /* A few rounds run the close callbacks; what is still there then was forgotten by its owner,
     * and uv_loop_close says "resource busy". */
    for (int round = 0; round < 8 && uv_run(&loop->uv, UV_RUN_NOWAIT); round++)
        continue;
    must(uv_loop_close(&loop->uv));
    free(loop);
}

void loop_run(struct loop *loop)
{
    uv_run(&loop->uv, UV_RUN_DEFAULT);
}

void loop_stop(struct loop *loop)
{
    uv_stop(&loop->uv);
}

/* ---- timers ---- */

static void on_timer(uv_timer_t *handle)
{
    struct loop_timer *timer = (struct loop_timer *)handle;

    timer->call(timer->arg);
}

struct loop_timer *loop_timer_start(struct loop *loop, uint64_t first_ms, uint64_t repeat_ms,
                                    void (*call)(void *arg), void *arg)
{
    struct loop_timer *timer = mem_zalloc(1, sizeof(*timer));

    timer->call = call;
    timer->arg = arg;
    must(uv_timer_init(&loop->uv, &timer->handle));
    /* libuv counts from the start of the loop's round, which may be a while ago. */
    uv_update_time(&loop->uv);
    must(uv_timer_start(&timer->handle, on_timer, first_ms, repeat_ms));
    return timer;
}

void loop_timer_stop(struct loop_timer *timer)
{
    if (timer)
        close_handle(&timer->handle);
}

/* ---- wake-ups from other threads ---- */

static void on_wakeup(uv_async_t *handle)
{
    struct loop_wakeup *wakeup = (struct loop_wakeup *)handle;

    wakeup->call(wakeup->arg);
}

struct loop_wakeup *loop_wakeup_new(struct loop *loop, void (*call)(void *arg), void *arg)
{
    struct loop_wakeup *wakeup = mem_zalloc(1, sizeof(*wakeup));

    wakeup->call = call;
    wakeup->arg = arg;
    must(uv_async_init(&loop->uv, &wakeup->handle, on_wakeup));
    return wakeup;
}

void loop_wakeup_free(struct loop_wakeup *wakeup)
{
    if (wakeup)
        close_handle(&wakeup->handle);
}

void loop_wake(struct loop_wakeup *wakeup)
{
    must(uv_async_send(&wakeup->handle));
}

/* ---- signals ---- */

static void on_signal(uv_signal_t *handle, int signum)
{
    struct loop_signal *signal = (struct loop_signal *)handle;

    signal->call(signal->arg, signum);
}

void loop_on_signal(struct loop *loop, int signum, void (*call)(void *arg, int signum), void *arg)
{
    struct loop_signal *signal = mem_zalloc(1, sizeof(*signal));

    signal->call = call;
    signal->arg = arg;
    signal->next = loop->signals;
    loop->signals = signal;
    must(uv_signal_init(&loop->uv, &signal->handle));
    must(uv_signal_start(&signal->handle, on_signal, signum));
}

/* ---- descriptors ---- */

static void on_poll(uv_poll_t *handle, int status, int events)
{
    struct loop_watch *watch = (struct loop_watch *)handle;

    (void)status; /* an error is for the owner to find when it uses the descriptor */
    (void)events;
    watch->call(watch->arg);
}

struct loop_watch *loop_watch_start(struct loop *loop, int fd, enum loop_event event,
                                    void (*call)(void *arg), void *arg)
{
    struct loop_watch *watch = mem_zalloc(1, sizeof(*watch));

    watch->call = call;
    watch->arg = arg;
    if (uv_poll_init(&loop->uv, &watch->handle, fd)) {
        free(watch);
        return NULL;
    }
    must(uv_poll_start(&watch->handle, event == LOOP_READABLE ? UV_READABLE : UV_DISCONNECT,
                       on_poll));
    return watch;
}

void loop_watch_stop(struct loop_watch *watch)
{
    if (watch)
        close_handle(&watch->handle);
}

/* ---- other threads' work ---- */

static void on_work(uv_work_t *request)
{
    struct loop_work *work = (struct loop_work *)request;

    work->work(work->arg);
}

static void on_work_done(uv_work_t *request, int status)
{
    struct loop_work *work = (struct loop_work *)request;

    (void)status; /* it is never cancelled */
    work->loop->works--;
    work->done(work->arg);
    free(work);
}

void loop_work(struct loop *loop, void (*call)(void *arg), void (*done)(void *arg), void *arg)
{
    struct loop_work *work = mem_zalloc(1, sizeof(*work));

    work->loop = loop;
    work->work = call;
    work->done = done;
    work->arg = arg;
    loop->works++;
    must(uv_queue_work(&loop->uv, &work->request, on_work, on_work_done));
}

void loop_finish_work(struct loop *loop)
{
    while (loop->works > 0)
        uv_run(&loop->uv, UV_RUN_ONCE);
}

/* ---- idle work ---- */

static void on_idle(uv_idle_t *handle)
{
    struct loop_idle *idle = (struct loop_idle *)handle;

    idle->call(idle->arg);
}

struct loop_idle *loop_idle_new(struct loop *loop, void (*call)(void *arg), void *arg)
{
    struct loop_idle *idle = mem_zalloc(1, sizeof(*idle));

    idle->call = call;
    idle->arg = arg;
    must(uv_idle_init(&loop->uv, &idle->handle));
    return idle;
}

void loop_idle_set(struct loop_idle *idle, bool on)
{
    if (on)
        must(uv_idle_start(&idle->handle, on_idle));
    else
        must(uv_idle_stop(&idle->handle));
}

void loop_idle_free(struct loop_idle *idle)
{
    if (idle)
        close_handle(&idle->handle);
}
