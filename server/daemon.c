/* States of the daemon, as clients see them (enum service_state):
 *
 *     LOADING --ENGINE_READY--> READY --SIGTERM--> DRAINING --nothing in flight, or time--> exit 0
 *        |                        |
 *        '---- ENGINE_FAILED -----'--> FAILED: open requests fail --> exit 1
 *
 * A signal while loading, or a second one, ends the process without a drain. */
#include "server/daemon.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "server/api.h"
#include "server/api_constraint.h"
#include "server/loop.h"
#include "server/notify.h"
#include "server/served_model.h"
#include "server/tls.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    EVENTS_AT_ONCE = 256,
    MAX_UNSETTLED = 4096,
    TICK_MS = 100,
    FAILED_LINGER_MS = 1000, /* time for error answers to leave before the process ends */
};

struct daemon {
    struct api api;
    struct loop *loop;
    struct loop_wakeup *wakeup;
    struct loop_timer *tick;
    struct tls *tls; /* NULL: plain HTTP */
    char *model_name;
    int64_t started_us, last_tick_us;
    int64_t last_event_us;  /* the engine's latest sign of life */
    int64_t drain_until_us; /* DRAINING */
    int64_t exit_at_us;     /* FAILED */
    int exit_status;
    struct engine_event events[EVENTS_AT_ONCE];

    /* When tokens were sampled that are written but perhaps not sent yet: for HIST_DELIVERY. */
    int64_t sampled_us[MAX_UNSETTLED];
    int n_unsettled;
};

static void on_failed(struct daemon *d, const struct engine_event *event)
{
    struct api_fault fault;

    if (d->api.state == SERVICE_LOADING)
        log_error("can't serve %s", d->api.model_dir);
    d->api.state = SERVICE_FAILED;
    d->exit_status = 1;
    d->exit_at_us = clock_us() + FAILED_LINGER_MS * 1000;
    api_fault_set(&fault, 500, NULL, "The server failed: %s", event->error.message);
    generations_fail_all(d->api.service.generations, &fault);
}

static void on_ready(struct daemon *d)
{
    d->api.state = SERVICE_READY;
    metrics_note_load(d->api.metrics, engine_model(d->api.service.engine)->load_us);
    notify_manager(d->api.options->notify_socket, "READY=1");
    log_info("ready after %lld ms", (long long)(clock_us() - d->started_us) / 1000);
}

/* All that was written is with the sockets. */
static void on_settled(void *arg)
{
    struct daemon *d = arg;
    int64_t now = d->n_unsettled ? clock_us() : 0;

    for (int i = 0; i < d->n_unsettled; i++)
        metrics_observe(d->api.metrics, HIST_DELIVERY, (double)(now - d->sampled_us[i]) * 1e-6);
    d->n_unsettled = 0;
}

static void handle_event(struct daemon *d, const struct engine_event *event)
{
    switch (event->type) {
    case ENGINE_READY:
        on_ready(d);
        break;
    case ENGINE_FAILED:
        on_failed(d, event);
        break;
    case ENGINE_STEP:
        metrics_note_step(d->api.metrics, &event->step);
        break;
    case ENGINE_TOKEN:
        if (d->n_unsettled == MAX_UNSETTLED)
            on_settled(d);
        d->sampled_us[d->n_unsettled++] = event->time_us;
        generations_handle(d->api.service.generations, event);
        break;
    case ENGINE_ADMITTED:
    case ENGINE_SCORE:
    case ENGINE_CANCELLED:
        generations_handle(d->api.service.generations, event);
        break;
    }
}

/* The engine has events. All streams they touch are written first and sent in one go. */
static void on_wake(void *arg)
{
    struct daemon *d = arg;
    size_t n;

    d->last_event_us = clock_us();
    http_batch_begin(d->api.http);
    while ((n = engine_poll(d->api.service.engine, d->events, EVENTS_AT_ONCE)) > 0)
        for (size_t i = 0; i < n; i++)
            handle_event(d, &d->events[i]);
    http_batch_end(d->api.http);
}

/* On the engine's thread. */
static void wake(void *arg)
{
    loop_wake(((struct daemon *)arg)->wakeup);
}

static void on_signal(void *arg, int signum)
{
    struct daemon *d = arg;
    bool drain = d->api.state == SERVICE_READY;

    log_info("got signal %d: %s", signum, drain ? "finishing requests in flight" : "stopping");
    if (!drain) {
        loop_stop(d->loop);
        return;
    }
    d->api.state = SERVICE_DRAINING;
    notify_manager(d->api.options->notify_socket, "STOPPING=1");
    d->drain_until_us = clock_us() + d->api.options->drain_timeout_s * 1000000;
    http_drain(d->api.http);
}

/* Keys and the certificate can change without a restart. */
static void on_hangup_signal(void *arg, int signum)
{
    struct daemon *d = arg;
    struct error err;

    (void)signum;
    if (access_reload(d->api.access, &err))
        log_error("the API keys stay as they were: %s", err.message);
    else
        log_info("read the API keys again");
    if (d->tls && tls_reload(d->tls, &err))
        log_error("the certificate stays as it was: %s", err.message);
    else if (d->tls)
        log_info("read the certificate again");
}

static void check_drained(struct daemon *d, int64_t now)
{
    struct api_fault fault;

    if (http_active(d->api.http) == 0) {
        loop_stop(d->loop);
    } else if (now >= d->drain_until_us) {
        log_warning("%d requests did not finish within the drain time",
                    generations_active(d->api.service.generations));
        api_fault_set(&fault, 503, NULL, "The server shut down before the request was finished.");
        generations_fail_all(d->api.service.generations, &fault);
        d->api.state = SERVICE_FAILED;
        d->exit_at_us = now + FAILED_LINGER_MS * 1000;
    }
}

/* Steps come as long as there is work; when none comes the engine is stuck. */
static void watch_engine(struct daemon *d, int64_t now)
{
    const struct engine *engine = d->api.service.engine;
    int64_t limit_us = d->api.options->watchdog_s * 1000000;
    bool busy = engine_slots_free(engine) < engine_slots(engine);
    bool stuck = limit_us && busy && now - d->last_event_us > limit_us;

    if (!busy)
        d->last_event_us = now;
    if (stuck && !d->api.engine_stuck)
        log_error("the engine has work and made no step for %lld seconds",
                  (long long)d->api.options->watchdog_s);
    d->api.engine_stuck = stuck;
}

static void on_tick(void *arg)
{
    struct daemon *d = arg;
    int64_t now = clock_us(), late = now - d->last_tick_us - TICK_MS * 1000;

    d->last_tick_us = now;
    metrics_observe(d->api.metrics, HIST_LOOP_LAG, late > 0 ? (double)late * 1e-6 : 0);
    http_batch_begin(d->api.http);
    generations_tick(d->api.service.generations);
    http_batch_end(d->api.http);
    watch_engine(d, now);
    if (d->api.state == SERVICE_DRAINING)
        check_drained(d, now);
    if (d->api.state == SERVICE_FAILED && (now >= d->exit_at_us || http_active(d->api.http) == 0))
        loop_stop(d->loop);
}

static struct http_server *listen_on(struct daemon *d)
{
    const struct options *o = d->api.options;
    struct http_callbacks callbacks = api_callbacks(&d->api);
    struct http_options options = {
        .host = o->host,
        .port = (int)o->port,
        .max_connections = (int)o->max_connections,
        .max_body = (size_t)o->max_body_mib << 20,
        .max_bodies = (size_t)o->max_uploads_mib << 20,
        .max_buffered = (size_t)o->max_stream_buffer_kib << 10,
        .idle_timeout_s = (int)o->idle_timeout_s,
        .read_timeout_s = (int)o->read_timeout_s,
        .tls = d->tls,
    };
    struct error err;

    callbacks.settled = on_settled;
    callbacks.settled_arg = d;
    struct http_server *http = http_start(d->loop, &options, &callbacks, &err);
    if (!http)
        log_error("%s", err.message);
    else
        log_info("mlad %s listens on %s://%s:%d, model %s", MLAD_VERSION, d->tls ? "https" : "http",
                 o->host, http_port(http), d->model_name);
    return http;
}

/* Reads the secrets: API keys, certificate and its key. */
static int load_secrets(struct daemon *d)
{
    const struct options *o = d->api.options;
    struct error err;

    d->api.access = access_new(o, &err);
    if (!d->api.access)
        goto fail;
    if (*o->tls_cert) {
        d->tls = tls_new(o->tls_cert, *o->tls_key ? o->tls_key : o->tls_cert, &err);
        if (!d->tls)
            goto fail;
    } else if (*o->tls_key) {
        error_set(&err, "--tls-key needs --tls-cert");
        goto fail;
    }
    return 0;
fail:
    log_error("%s", err.message);
    return -1;
}

static int start_traces(struct daemon *d)
{
    struct error err;

    if (!*d->api.options->otlp_traces_endpoint)
        return 0;
    d->api.otlp = otlp_new(d->api.options, d->model_name, &err);
    if (!d->api.otlp)
        log_error("%s", err.message);
    return d->api.otlp ? 0 : -1;
}

static void serve(struct daemon *d)
{
    if (load_secrets(d) || start_traces(d))
        return;
    loop_on_signal(d->loop, SIGTERM, on_signal, d);
    loop_on_signal(d->loop, SIGINT, on_signal, d);
    loop_on_signal(d->loop, SIGHUP, on_hangup_signal, d);
    d->api.http = listen_on(d);
    if (!d->api.http)
        return;
    d->exit_status = 0;
    d->api.service.engine = engine_start(d->api.options, d->api.model_dir, wake, d);
    d->api.service.grammars = grammar_cache_new();
    d->api.service.generations =
        generations_new(d->api.service.engine, d->api.metrics, d->model_name, d->api.options);
    d->last_tick_us = clock_us();
    d->tick = loop_timer_start(d->loop, TICK_MS, TICK_MS, on_tick, d);

    loop_run(d->loop);

    loop_finish_work(d->loop);
    loop_timer_stop(d->tick);
    http_stop(d->api.http);
    generations_free(d->api.service.generations);
    grammar_cache_free(d->api.service.grammars);
    if (!engine_stop(d->api.service.engine)) {
        log_warning("the engine is stuck (in a read of the model's files?): leaving it behind");
        _exit(d->exit_status);
    }
}

int daemon_run(const struct options *options, const char *model_dir)
{
    struct daemon *d = mem_zalloc(1, sizeof(*d));

    signal(SIGPIPE, SIG_IGN);
    d->started_us = clock_us();
    d->exit_status = 1;
    d->model_name = served_model_name(options, model_dir);
    d->api = (struct api){
        .options = options,
        .service.model_name = d->model_name,
        .model_dir = model_dir,
        .metrics = metrics_new(d->model_name),
        .state = SERVICE_LOADING,
        .started = clock_unix_s(),
        .sessions = sessions_new((int)options->max_sessions, options->session_lifetime_s),
    };
    d->api.loop = d->loop = loop_new();
    d->wakeup = loop_wakeup_new(d->loop, on_wake, d);
    serve(d);
    if (d->api.access)
        access_free(d->api.access);
    sessions_free(d->api.sessions);
    tls_free(d->tls);
    otlp_free(d->api.otlp);
    loop_wakeup_free(d->wakeup);
    loop_free(d->loop);
    metrics_free(d->api.metrics);
    free(d->model_name);
    int status = d->exit_status;
    free(d);
    if (status == 0)
        log_info("bye");
    return status;
}
