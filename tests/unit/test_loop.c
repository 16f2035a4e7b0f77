/* The event loop: timers, wake-ups from threads, signals, descriptors, idle work. */
#include "server/loop.h"

#include "base/panic.h"
#include "tests/unit/unit.h"

#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

struct probe {
    struct loop *loop;
    int calls, stop_after;
    struct loop_timer *timer;
    struct loop_wakeup *wakeup;
    struct loop_watch *watch;
    struct loop_idle *idle;
    int fds[2];
    int signum;
};

static void count(void *arg)
{
    struct probe *probe = arg;

    if (++probe->calls == probe->stop_after)
        loop_stop(probe->loop);
}

START_TEST(test_single_timer_calls_once)
{
    struct probe probe = {.loop = loop_new(), .stop_after = 99};
    struct probe end = {.loop = probe.loop, .stop_after = 1};
    struct loop_timer *once = loop_timer_start(probe.loop, 1, 0, count, &probe);
    struct loop_timer *last = loop_timer_start(probe.loop, 60, 0, count, &end);

    loop_run(probe.loop);
    ck_assert_int_eq(probe.calls, 1);
    loop_timer_stop(once);
    loop_timer_stop(last);
    loop_free(probe.loop);
}
END_TEST

static void count_and_stop_timer(void *arg)
{
    struct probe *probe = arg;

    if (++probe->calls == 3)
        loop_timer_stop(probe->timer);
}

START_TEST(test_repeating_timer_can_stop_itself)
{
    struct probe probe = {.loop = loop_new()};
    struct probe end = {.loop = probe.loop, .stop_after = 1};

    probe.timer = loop_timer_start(probe.loop, 1, 1, count_and_stop_timer, &probe);
    struct loop_timer *last = loop_timer_start(probe.loop, 100, 0, count, &end);
    loop_run(probe.loop);
    ck_assert_int_eq(probe.calls, 3);
    loop_timer_stop(last);
    loop_free(probe.loop);
}
END_TEST

static void *wake_often(void *arg)
{
    struct probe *probe = arg;

    for (int i = 0; i < 1000; i++)
        loop_wake(probe->wakeup);
    return NULL;
}

START_TEST(test_wakes_from_a_thread_reach_the_loop)
{
    struct probe probe = {.loop = loop_new(), .stop_after = 1};
    pthread_t thread;

    probe.wakeup = loop_wakeup_new(probe.loop, count, &probe);
    pthread_create(&thread, NULL, wake_often, &probe);
    loop_run(probe.loop);
    pthread_join(thread, NULL);
    ck_assert_int_ge(probe.calls, 1);
    ck_assert_int_le(probe.calls, 1000);
    loop_wakeup_free(probe.wakeup);
    loop_free(probe.loop);
}
END_TEST

START_TEST(test_loop_without_work_runs_until_it_is_stopped)
{
    struct loop *loop = loop_new();

    loop_stop(loop);
    loop_run(loop);
    loop_free(loop);
}
END_TEST

static void take_signal(void *arg, int signum)
{
    struct probe *probe = arg;

    probe->signum = signum;
    loop_stop(probe->loop);
}

START_TEST(test_signal_is_delivered_on_the_loop)
{
    struct probe probe = {.loop = loop_new()};

    loop_on_signal(probe.loop, SIGUSR1, take_signal, &probe);
    loop_on_signal(probe.loop, SIGUSR2, take_signal, &probe);
    raise(SIGUSR2);
    loop_run(probe.loop);
    ck_assert_int_eq(probe.signum, SIGUSR2);
    loop_free(probe.loop);
}
END_TEST

static void read_one(void *arg)
{
    struct probe *probe = arg;
    char byte;

    ck_assert_int_eq(read(probe->fds[0], &byte, 1), 1);
    if (++probe->calls == 2) {
        loop_watch_stop(probe->watch);
        loop_stop(probe->loop);
    }
}

START_TEST(test_watch_calls_while_there_is_something_to_read)
{
    struct probe probe = {.loop = loop_new()};

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, probe.fds), 0);
    probe.watch = loop_watch_start(probe.loop, probe.fds[0], LOOP_READABLE, read_one, &probe);
    ck_assert_int_eq(write(probe.fds[1], "ab", 2), 2);
    loop_run(probe.loop);
    ck_assert_int_eq(probe.calls, 2);
    close(probe.fds[0]);
    close(probe.fds[1]);
    loop_free(probe.loop);
}
END_TEST

static void hung_up(void *arg)
{
    struct probe *probe = arg;

    probe->calls++;
    loop_watch_stop(probe->watch);
    loop_stop(probe->loop);
}

static void close_other_end(void *arg)
{
    struct probe *probe = arg;

    ck_assert_int_eq(probe->calls, 0); /* unread data alone is no hang-up */
    close(probe->fds[1]);
}

START_TEST(test_hangup_watch_ignores_data_and_sees_the_close)
{
    struct probe probe = {.loop = loop_new()};

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, probe.fds), 0);
    probe.watch = loop_watch_start(probe.loop, probe.fds[0], LOOP_HANGUP, hung_up, &probe);
    ck_assert_int_eq(write(probe.fds[1], "ab", 2), 2);
    struct loop_timer *timer = loop_timer_start(probe.loop, 20, 0, close_other_end, &probe);
    loop_run(probe.loop);
    ck_assert_int_eq(probe.calls, 1);
    loop_timer_stop(timer);
    close(probe.fds[0]);
    loop_free(probe.loop);
}
END_TEST

static void idle_five(void *arg)
{
    struct probe *probe = arg;

    if (++probe->calls == 5)
        loop_idle_set(probe->idle, false);
}

START_TEST(test_idle_calls_each_round_while_it_is_on)
{
    struct probe probe = {.loop = loop_new()};
    struct probe end = {.loop = probe.loop, .stop_after = 1};

    probe.idle = loop_idle_new(probe.loop, idle_five, &probe);
    loop_idle_set(probe.idle, true);
    struct loop_timer *last = loop_timer_start(probe.loop, 50, 0, count, &end);
    loop_run(probe.loop);
    ck_assert_int_eq(probe.calls, 5);
    loop_timer_stop(last);
    loop_idle_free(probe.idle);
    loop_free(probe.loop);
}
END_TEST

struct job {
    struct loop *loop;
    pthread_t made_by, finished_by;
    int *left; /* jobs; the last one stops the loop */
};

static void make(void *arg)
{
    ((struct job *)arg)->made_by = pthread_self();
}

static void finish(void *arg)
{
    struct job *job = arg;

    job->finished_by = pthread_self();
    if (--*job->left == 0)
        loop_stop(job->loop);
}

START_TEST(test_work_runs_on_another_thread_and_ends_on_the_loops)
{
    enum { JOBS = 20 };
    struct loop *loop = loop_new();
    struct job jobs[JOBS];
    int left = JOBS;

    for (int i = 0; i < JOBS; i++) {
        jobs[i] = (struct job){.loop = loop, .left = &left};
        loop_work(loop, make, finish, &jobs[i]);
    }
    ck_assert_int_eq(left, JOBS); /* never at once */
    loop_run(loop);
    ck_assert_int_eq(left, 0);
    for (int i = 0; i < JOBS; i++) {
        ck_assert(!pthread_equal(jobs[i].made_by, pthread_self()));
        ck_assert(pthread_equal(jobs[i].finished_by, pthread_self()));
    }
    loop_free(loop);
}
END_TEST

START_TEST(test_work_can_be_waited_for_after_the_loop_stopped)
{
    struct loop *loop = loop_new();
    int left = 2;
    struct job jobs[2] = {{.loop = loop, .left = &left}, {.loop = loop, .left = &left}};

    loop_stop(loop);
    loop_work(loop, make, finish, &jobs[0]);
    loop_work(loop, make, finish, &jobs[1]);
    loop_finish_work(loop);
    ck_assert_int_eq(left, 0);
    loop_finish_work(loop); /* with nothing to do */
    loop_free(loop);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_work_runs_on_another_thread_and_ends_on_the_loops);
    tcase_add_test(tcase, test_work_can_be_waited_for_after_the_loop_stopped);
    tcase_add_test(tcase, test_single_timer_calls_once);
    tcase_add_test(tcase, test_repeating_timer_can_stop_itself);
    tcase_add_test(tcase, test_wakes_from_a_thread_reach_the_loop);
    tcase_add_test(tcase, test_loop_without_work_runs_until_it_is_stopped);
    tcase_add_test(tcase, test_signal_is_delivered_on_the_loop);
    tcase_add_test(tcase, test_watch_calls_while_there_is_something_to_read);
    tcase_add_test(tcase, test_hangup_watch_ignores_data_and_sees_the_close);
    tcase_add_test(tcase, test_idle_calls_each_round_while_it_is_on);
}

UNIT_MAIN("loop", add_tests)
