/* The backend's threads: a loop over independent ranges, shared out.
 *
 * Not OpenMP, for one reason: its loops end when every thread has arrived, also one that the system
 * has not run yet. On a shared or quota-limited machine each operation would wait for a time slice.
 * Here ranges are claimed one by one, the caller works too, and it waits only for ranges that
 * somebody has begun.
 *
 * `ticket` holds the loop's number (high half) and the next unclaimed range (low half). A worker
 * copies the loop's description under the lock, then claims ranges by compare-and-swap; a claim
 * fails once the number has moved on, and a successful one keeps the loop alive until it is done.
 * Whoever waits polls for a moment, since a step's operations follow each other closely, and then
 * sleeps: workers on `wake`, the caller on `finished`. */
#include "kernels/cpu/cpu.h"

#include "base/memory.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { POLLS = 4000 }; /* before sleeping: some tens of microseconds */

struct loop {
    uint32_t number;
    uint32_t ranges;
    int64_t n, grain;
    cpu_range_fn run;
    void *context;
};

struct worker {
    struct cpu_threads *threads;
    int index; /* 1.. ; the caller of cpu_parallel is 0 */
    pthread_t id;
};

struct cpu_threads {
    int n_workers;
    struct worker *workers;
    pthread_mutex_t lock; /* guards what follows, but for the atomics */
    pthread_cond_t wake, finished;
    int sleeping;
    struct loop loop;
    atomic_uint_fast64_t ticket;
    atomic_uint done; /* ranges of the loop that are finished */
    atomic_bool stop;
};

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static uint64_t ticket_of(uint32_t number, uint32_t range)
{
    return (uint64_t)number << 32 | range;
}

/* Runs ranges of `loop` until none is left to claim. */
static void run_ranges(struct cpu_threads *threads, const struct loop *loop, int index)
{
    uint64_t ticket = atomic_load(&threads->ticket);

    while (ticket >> 32 == loop->number && (uint32_t)ticket < loop->ranges) {
        if (!atomic_compare_exchange_weak(&threads->ticket, &ticket, ticket + 1))
            continue;
        int64_t first = (int64_t)(uint32_t)ticket * loop->grain, end = first + loop->grain;
        loop->run(loop->context, first, end < loop->n ? end : loop->n, index);
        if (atomic_fetch_add(&threads->done, 1) + 1 == loop->ranges) {
            pthread_mutex_lock(&threads->lock);
            pthread_cond_signal(&threads->finished);
            pthread_mutex_unlock(&threads->lock);
        }
        ticket = atomic_load(&threads->ticket);
    }
}

/* Waits for a loop after number `seen`; false when the threads are to end. */
static bool next_loop(struct cpu_threads *threads, uint32_t seen, struct loop *loop)
{
    for (int i = 0; i < POLLS; i++) {
        if (atomic_load(&threads->ticket) >> 32 != seen || atomic_load(&threads->stop))
            break;
        pause_briefly();
    }
    pthread_mutex_lock(&threads->lock);
    while (threads->loop.number == seen && !atomic_load(&threads->stop)) {
        threads->sleeping++;
        pthread_cond_wait(&threads->wake, &threads->lock);
        threads->sleeping--;
    }
    *loop = threads->loop;
    pthread_mutex_unlock(&threads->lock);
    return !atomic_load(&threads->stop);
}

static void *worker_main(void *argument)
{
    struct worker *self = argument;
    struct loop loop = {.number = 0};

    while (next_loop(self->threads, loop.number, &loop))
        run_ranges(self->threads, &loop, self->index);
    return NULL;
}

struct cpu_threads *cpu_threads_new(int count)
{
    struct cpu_threads *threads = mem_zalloc(1, sizeof(*threads));

    threads->workers = mem_zalloc((size_t)count, sizeof(*threads->workers));
    pthread_mutex_init(&threads->lock, NULL);
    pthread_cond_init(&threads->wake, NULL);
    pthread_cond_init(&threads->finished, NULL);
    for (int i = 0; i < count - 1; i++) {
        struct worker *w = &threads->workers[i];
        w->threads = threads;
        w->index = i + 1;
        if (pthread_create(&w->id, NULL, worker_main, w) != 0)
            break; /* fewer threads: slower, the results are the same */
        threads->n_workers++;
    }
    return threads;
}

void cpu_threads_free(struct cpu_threads *threads)
{
    pthread_mutex_lock(&threads->lock);
    atomic_store(&threads->stop, true);
    pthread_cond_broadcast(&threads->wake);
    pthread_mutex_unlock(&threads->lock);
    for (int i = 0; i < threads->n_workers; i++)
        pthread_join(threads->workers[i].id, NULL);
    pthread_cond_destroy(&threads->wake);
    pthread_cond_destroy(&threads->finished);
    pthread_mutex_destroy(&threads->lock);
    free(threads->workers);
    free(threads);
}

void cpu_parallel(struct cpu_backend *cpu, int64_t work, int64_t n, int64_t grain, cpu_range_fn run,
                  void *context)
{
    struct cpu_threads *threads = cpu->threads;
    int64_t ranges = (n + grain - 1) / grain;

    if (ranges <= 1 || work < CPU_PARALLEL_WORK || threads->n_workers == 0) {
        if (n > 0)
            run(context, 0, n, 0);
        return;
    }
    ASSERT(ranges < UINT32_MAX);
    pthread_mutex_lock(&threads->lock);
    threads->loop = (struct loop){.number = threads->loop.number + 1,
                                  .ranges = (uint32_t)ranges,
                                  .n = n,
                                  .grain = grain,
                                  .run = run,
                                  .context = context};
    struct loop loop = threads->loop;
    atomic_store(&threads->done, 0);
    atomic_store(&threads->ticket, ticket_of(loop.number, 0));
    if (threads->sleeping)
        pthread_cond_broadcast(&threads->wake);
    pthread_mutex_unlock(&threads->lock);

    run_ranges(threads, &loop, 0);
    for (int i = 0; i < POLLS && atomic_load(&threads->done) < loop.ranges; i++)
        pause_briefly();
    pthread_mutex_lock(&threads->lock);
    while (atomic_load(&threads->done) < loop.ranges)
        pthread_cond_wait(&threads->finished, &threads->lock);
    pthread_mutex_unlock(&threads->lock);
}
