/* What the tests of the HTTP server share: an application on a loop in a thread of its own (its
 * functions run there through on_loop), and raw-socket clients. Deadlines are generous: tests tell
 * what happens, not how fast. */
#pragma once

#include "server/http.h"

#include "base/buffer.h"
#include "base/clock.h"
#include "base/memory.h"
#include "tests/unit/unit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    PATIENCE_S = 60,
    MAX_BODY = 1024 * 1024,
    MAX_BODIES = 64 * 1024 * 1024,
    MAX_BUFFERED = 256 * 1024,
    TICKING_MAX = 256,
    TICKS = 20
};

/* ---- the server's side ---- */

struct app {
    struct loop *loop;
    struct http_server *server;
    struct loop_wakeup *wakeup;
    struct loop_timer *ticker;
    pthread_t thread;
    bool in_call; /* a function of http.h is running: no callback may come */
    struct http_exchange *ticking[TICKING_MAX]; /* /ticks: streams that tick_all feeds */
    int ticks[TICKING_MAX];
    int ticking_count;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct http_exchange *held; /* the last one that nobody answered */
    int requests, completed, gone, refused;
    void (*job)(struct app *app);

    struct { /* filled by look() */
        int active, connections;
        size_t buffered;
        uint64_t dropped;
    } seen;
};

#define HTTP_CALL(app, call)                                                                       \
    do {                                                                                           \
        (app)->in_call = true;                                                                     \
        call;                                                                                      \
        (app)->in_call = false;                                                                    \
    } while (0)

static inline void changed(struct app *app, int *counter)
{
    pthread_mutex_lock(&app->lock);
    (*counter)++;
    pthread_cond_broadcast(&app->changed);
    pthread_mutex_unlock(&app->lock);
}

static inline void start_ticking(struct app *app, struct http_exchange *ex)
{
    int i = 0;

    while (i < app->ticking_count && app->ticking[i])
        i++;
    ck_assert_int_lt(i, TICKING_MAX);
    app->ticking_count += i == app->ticking_count;
    app->ticking[i] = ex;
    app->ticks[i] = 0;
}

static inline void on_request(void *arg, struct http_exchange *ex)
{
    struct app *app = arg;
    const char *path = http_path(ex);
    char text[128];
    size_t len;

    ck_assert(!app->in_call);
    if (strcmp(path, "/plain") == 0) {
        http_add_header(ex, "X-One", "1");
        http_add_header(ex, "X-Bad", "a\r\nInjected: yes");
        http_respond(ex, 200, "text/plain", "hello\n", 6);
    } else if (strcmp(path, "/echo") == 0) {
        const char *body = http_body(ex, &len);
        http_respond(ex, 200, "text/plain", body, len);
    } else if (strcmp(path, "/facts") == 0) {
        const char *header = http_header(ex, "x-thing"), *query = http_query(ex, "a");
        snprintf(text, sizeof(text), "%s|%s|%s|%d", http_method(ex), header ? header : "(none)",
                 query ? query : "(none)", strncmp(http_peer(ex), "127.0.0.1:", 10) == 0);
        http_respond(ex, 201, "text/plain", text, strlen(text));
    } else if (strcmp(path, "/stream") == 0) {
        http_stream_start(ex, 200, "text/event-stream");
        http_stream_write(ex, "one", 3);
        http_stream_end(ex);
    } else if (strcmp(path, "/ticks") == 0) {
        http_stream_start(ex, 200, "text/event-stream");
        start_ticking(app, ex);
    } else {
        pthread_mutex_lock(&app->lock);
        app->held = ex;
        pthread_mutex_unlock(&app->lock);
    }
    changed(app, &app->requests);
}

static inline void on_closed(void *arg, struct http_exchange *ex, enum http_end how)
{
    struct app *app = arg;

    ck_assert(!app->in_call);
    ck_assert_ptr_nonnull(http_path(ex));
    for (int i = 0; i < app->ticking_count; i++)
        if (app->ticking[i] == ex)
            app->ticking[i] = NULL;
    pthread_mutex_lock(&app->lock);
    if (app->held == ex)
        app->held = NULL;
    pthread_mutex_unlock(&app->lock);
    changed(app, how == HTTP_COMPLETED ? &app->completed : &app->gone);
}

static inline void on_refusal(void *arg, int status, char *body, size_t size)
{
    struct app *app = arg;

    snprintf(body, size, "{\"refused\":%d}", status);
    changed(app, &app->refused);
}

static inline void on_wakeup(void *arg)
{
    struct app *app = arg;

    pthread_mutex_lock(&app->lock);
    void (*job)(struct app *) = app->job;
    pthread_mutex_unlock(&app->lock);
    if (!job)
        return;
    job(app);
    pthread_mutex_lock(&app->lock);
    app->job = NULL;
    pthread_cond_broadcast(&app->changed);
    pthread_mutex_unlock(&app->lock);
}

static inline void *run_loop(void *arg)
{
    struct app *app = arg;

    loop_run(app->loop);
    return NULL;
}

static inline struct app *app_start(const struct http_options *options)
{
    struct app *app = mem_zalloc(1, sizeof(*app));
    struct http_callbacks callbacks = {
        .arg = app, .request = on_request, .closed = on_closed, .refusal = on_refusal};
    struct error err;

    pthread_mutex_init(&app->lock, NULL);
    pthread_cond_init(&app->changed, NULL);
    app->loop = loop_new();
    app->wakeup = loop_wakeup_new(app->loop, on_wakeup, app);
    app->server = http_start(app->loop, options, &callbacks, &err);
    ck_assert_ptr_nonnull(app->server);
    pthread_create(&app->thread, NULL, run_loop, app);
    return app;
}

static inline struct http_options default_options(void)
{
    return (struct http_options){.host = "127.0.0.1",
                                 .max_connections = 1000,
                                 .max_body = MAX_BODY,
                                 .max_bodies = MAX_BODIES,
                                 .max_buffered = MAX_BUFFERED,
                                 .idle_timeout_s = 75,
                                 .read_timeout_s = 30};
}

static inline struct app *app_new(void)
{
    struct http_options options = default_options();

    return app_start(&options);
}

static inline void wait_done(struct app *app)
{
    struct timespec deadline;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += PATIENCE_S;
    ck_assert_int_eq(pthread_cond_timedwait(&app->changed, &app->lock, &deadline), 0);
}

/* Runs `job` on the loop's thread and waits for it. */
static inline void on_loop(struct app *app, void (*job)(struct app *app))
{
    pthread_mutex_lock(&app->lock);
    app->job = job;
    loop_wake(app->wakeup);
    while (app->job)
        wait_done(app);
    pthread_mutex_unlock(&app->lock);
}

static inline void wait_count(struct app *app, const int *counter, int count)
{
    pthread_mutex_lock(&app->lock);
    while (*counter < count)
        wait_done(app);
    ck_assert_int_eq(*counter, count);
    pthread_mutex_unlock(&app->lock);
}

static inline void wait_held(struct app *app)
{
    pthread_mutex_lock(&app->lock);
    while (!app->held)
        wait_done(app);
    pthread_mutex_unlock(&app->lock);
}

static inline void stop_loop(struct app *app)
{
    if (app->ticker)
        loop_timer_stop(app->ticker);
    app->ticker = NULL;
    loop_stop(app->loop);
}

/* Each exchange that was handed out must have been closed exactly once. */
static inline void app_free(struct app *app)
{
    on_loop(app, stop_loop);
    pthread_join(app->thread, NULL);
    http_stop(app->server);
    ck_assert_int_eq(app->completed + app->gone, app->requests);
    loop_wakeup_free(app->wakeup);
    loop_free(app->loop);
    pthread_cond_destroy(&app->changed);
    pthread_mutex_destroy(&app->lock);
    free(app);
}

static inline void answer_held(struct app *app)
{
    HTTP_CALL(app, http_respond(app->held, 200, "text/plain", "late\n", 5));
    app->held = NULL;
}

static inline void start_held(struct app *app)
{
    HTTP_CALL(app, http_stream_start(app->held, 200, "text/event-stream"));
}

static inline void write_a(struct app *app)
{
    HTTP_CALL(app, ck_assert_int_eq(http_stream_write(app->held, "aaa", 3), 0));
}

static inline void write_b(struct app *app)
{
    HTTP_CALL(app, ck_assert_int_eq(http_stream_write(app->held, "bb", 2), 0));
}

static inline void end_held(struct app *app)
{
    HTTP_CALL(app, http_stream_end(app->held));
}

static inline void abort_held(struct app *app)
{
    HTTP_CALL(app, http_stream_abort(app->held));
}

static inline void look(struct app *app)
{
    app->seen.active = http_active(app->server);
    app->seen.connections = http_connections(app->server);
    app->seen.buffered = http_buffered(app->server);
    app->seen.dropped = http_dropped(app->server);
}

static inline void drain(struct app *app)
{
    HTTP_CALL(app, http_drain(app->server));
}

static inline void tick_all(void *arg)
{
    struct app *app = arg;
    char text[64];

    app->in_call = true;
    http_batch_begin(app->server);
    for (int i = 0; i < app->ticking_count; i++) {
        struct http_exchange *ex = app->ticking[i];
        if (!ex)
            continue;
        int len = snprintf(text, sizeof(text), "%s:%d;", http_query(ex, "n"), app->ticks[i]);
        http_stream_write(ex, text, (size_t)len);
        if (++app->ticks[i] == TICKS) {
            http_stream_end(ex);
            app->ticking[i] = NULL;
        }
    }
    http_batch_end(app->server);
    app->in_call = false;
}

static inline void start_ticker(struct app *app)
{
    app->ticker = loop_timer_start(app->loop, 1, 2, tick_all, app);
}

/* ---- the client's side ---- */

struct client {
    int fd;
    struct buffer in; /* received, not consumed */
};

struct reply {
    int status;
    char headers[4096];
    struct buffer body;
    bool complete; /* the whole body, as its framing has it */
};

static inline int try_connect(int port, int receive_buffer)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (receive_buffer)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    if (connect(fd, (struct sockaddr *)&to, sizeof(to))) {
        close(fd);
        return -1;
    }
    return fd;
}

static inline struct client client_open(struct app *app)
{
    struct client client = {.fd = try_connect(http_port(app->server), 0)};

    ck_assert_int_ge(client.fd, 0);
    buffer_init(&client.in, SIZE_MAX / 2);
    return client;
}

static inline void client_close(struct client *client)
{
    buffer_free(&client->in);
    close(client->fd);
}

static inline void client_send(struct client *client, const void *data, size_t len)
{
    const char *at = data;

    while (len) {
        ssize_t sent = send(client->fd, at, len, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
            return;
        ck_assert_int_gt(sent, 0);
        at += sent;
        len -= (size_t)sent;
    }
}

static inline void client_say(struct client *client, const char *text)
{
    client_send(client, text, strlen(text));
}

/* Receives more; false at the end of the connection. */
static inline bool client_receive(struct client *client)
{
    struct pollfd ready = {.fd = client->fd, .events = POLLIN};
    char piece[65536];

    ck_assert_int_eq(poll(&ready, 1, PATIENCE_S * 1000), 1);
    ssize_t got = recv(client->fd, piece, sizeof(piece), 0);
    if (got <= 0)
        return false;
    buffer_append(&client->in, piece, (size_t)got);
    return true;
}

static inline bool client_need(struct client *client, size_t len)
{
    while (client->in.len < len)
        if (!client_receive(client))
            return false;
    return true;
}

static inline bool take_line(struct client *client, char *line, size_t size)
{
    char *end;

    while (!client->in.data || !(end = strstr(client->in.data, "\r\n")))
        if (!client_receive(client))
            return false;
    snprintf(line, size, "%.*s", (int)(end - client->in.data), client->in.data);
    buffer_consume(&client->in, (size_t)(end - client->in.data) + 2);
    return true;
}

/* One chunk; false when there is no whole one. A chunk of length 0 is the end. */
static inline bool take_chunk(struct client *client, struct buffer *body, size_t *len)
{
    char line[64];

    if (!take_line(client, line, sizeof(line)))
        return false;
    *len = strtoul(line, NULL, 16);
    if (!client_need(client, *len + 2))
        return false;
    buffer_append(body, client->in.data, *len);
    buffer_consume(&client->in, *len + 2);
    return true;
}

static inline bool take_head(struct client *client, struct reply *reply)
{
    char line[1024];

    memset(reply, 0, sizeof(*reply));
    buffer_init(&reply->body, SIZE_MAX / 2);
    if (!take_line(client, line, sizeof(line)))
        return false;
    ck_assert_int_eq(sscanf(line, "HTTP/1.1 %d", &reply->status), 1);
    while (take_line(client, line, sizeof(line)) && *line) {
        strcat(reply->headers, line);
        strcat(reply->headers, "\n");
    }
    return true;
}

/* Reads one response; `head` when it has no body. */
static inline void take_reply(struct client *client, struct reply *reply, bool head)
{
    ck_assert(take_head(client, reply));
    const char *length = strcasestr(reply->headers, "content-length: ");
    size_t len;

    if (head) {
        reply->complete = true;
    } else if (length) {
        len = strtoul(length + 16, NULL, 10);
        reply->complete = client_need(client, len);
        if (reply->complete) {
            buffer_append(&reply->body, client->in.data, len);
            buffer_consume(&client->in, len);
        }
    } else {
        while (take_chunk(client, &reply->body, &len))
            if (len == 0) {
                reply->complete = true;
                break;
            }
    }
}

static inline void expect_reply(struct client *client, int status, const char *body)
{
    struct reply reply;

    take_reply(client, &reply, false);
    ck_assert_int_eq(reply.status, status);
    ck_assert(reply.complete);
    if (body)
        ck_assert_str_eq(reply.body.data ? reply.body.data : "", body);
    buffer_free(&reply.body);
}

/* The server has closed, and sent nothing more. */
static inline void expect_end(struct client *client)
{
    ck_assert(!client_receive(client));
    ck_assert_uint_eq(client->in.len, 0);
}

static inline void expect_nothing_more(struct client *client)
{
    struct pollfd ready = {.fd = client->fd, .events = POLLIN};

    ck_assert_uint_eq(client->in.len, 0);
    ck_assert_int_eq(poll(&ready, 1, 100), 0);
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\n\r\n"

static inline void wait_active(struct app *app, int count)
{
    for (int i = 0; i < PATIENCE_S * 100; i++) {
        on_loop(app, look);
        if (app->seen.active == count)
            return;
        usleep(10000);
    }
    ck_abort_msg("%d exchanges are active, not %d", app->seen.active, count);
}
