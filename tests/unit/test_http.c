/* The HTTP server, seen by raw-socket clients. The server's loop runs in a thread of its own; a
 * test is the client, and has functions run on the loop's thread (on_loop) to answer when it wants.
 * Deadlines are generous: tests tell what happens, not how fast. */
#include "server/http.h"

#include "base/buffer.h"
#include "base/clock.h"
#include "base/memory.h"
#include "unit.h"

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

enum { PATIENCE_S = 60, MAX_BODY = 1024 * 1024, MAX_BUFFERED = 256 * 1024, TICKING_MAX = 256 };

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

static void changed(struct app *app, int *counter)
{
    pthread_mutex_lock(&app->lock);
    (*counter)++;
    pthread_cond_broadcast(&app->changed);
    pthread_mutex_unlock(&app->lock);
}

static void start_ticking(struct app *app, struct http_exchange *ex)
{
    int i = 0;

    while (i < app->ticking_count && app->ticking[i])
        i++;
    ck_assert_int_lt(i, TICKING_MAX);
    app->ticking_count += i == app->ticking_count;
    app->ticking[i] = ex;
    app->ticks[i] = 0;
}

static void on_request(void *arg, struct http_exchange *ex)
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

static void on_closed(void *arg, struct http_exchange *ex, enum http_end how)
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

static void on_refusal(void *arg, int status, char *body, size_t size)
{
    struct app *app = arg;

    snprintf(body, size, "{\"refused\":%d}", status);
    changed(app, &app->refused);
}

static void on_wakeup(void *arg)
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

static void *run_loop(void *arg)
{
    struct app *app = arg;

    loop_run(app->loop);
    return NULL;
}

static struct app *app_start(const struct http_options *options)
{
    struct app *app = mem_zalloc(1, sizeof(*app));
    struct http_callbacks callbacks = {app, on_request, on_closed, on_refusal};
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

static struct http_options default_options(void)
{
    return (struct http_options){.host = "127.0.0.1",
                                 .max_connections = 1000,
                                 .max_body = MAX_BODY,
                                 .max_buffered = MAX_BUFFERED,
                                 .idle_timeout_s = 75,
                                 .read_timeout_s = 30};
}

static struct app *app_new(void)
{
    struct http_options options = default_options();

    return app_start(&options);
}

static void wait_done(struct app *app)
{
    struct timespec deadline;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += PATIENCE_S;
    ck_assert_int_eq(pthread_cond_timedwait(&app->changed, &app->lock, &deadline), 0);
}

/* Runs `job` on the loop's thread and waits for it. */
static void on_loop(struct app *app, void (*job)(struct app *app))
{
    pthread_mutex_lock(&app->lock);
    app->job = job;
    loop_wake(app->wakeup);
    while (app->job)
        wait_done(app);
    pthread_mutex_unlock(&app->lock);
}

static void wait_count(struct app *app, const int *counter, int count)
{
    pthread_mutex_lock(&app->lock);
    while (*counter < count)
        wait_done(app);
    ck_assert_int_eq(*counter, count);
    pthread_mutex_unlock(&app->lock);
}

static void wait_held(struct app *app)
{
    pthread_mutex_lock(&app->lock);
    while (!app->held)
        wait_done(app);
    pthread_mutex_unlock(&app->lock);
}

static void stop_loop(struct app *app)
{
    if (app->ticker)
        loop_timer_stop(app->ticker);
    app->ticker = NULL;
    loop_stop(app->loop);
}

/* Each exchange that was handed out must have been closed exactly once. */
static void app_free(struct app *app)
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

static void answer_held(struct app *app)
{
    HTTP_CALL(app, http_respond(app->held, 200, "text/plain", "late\n", 5));
    app->held = NULL;
}

static void start_held(struct app *app)
{
    HTTP_CALL(app, http_stream_start(app->held, 200, "text/event-stream"));
}

static void write_a(struct app *app)
{
    HTTP_CALL(app, ck_assert_int_eq(http_stream_write(app->held, "aaa", 3), 0));
}

static void write_b(struct app *app)
{
    HTTP_CALL(app, ck_assert_int_eq(http_stream_write(app->held, "bb", 2), 0));
}

static void end_held(struct app *app)
{
    HTTP_CALL(app, http_stream_end(app->held));
}

static void abort_held(struct app *app)
{
    HTTP_CALL(app, http_stream_abort(app->held));
}

static void look(struct app *app)
{
    app->seen.active = http_active(app->server);
    app->seen.connections = http_connections(app->server);
    app->seen.buffered = http_buffered(app->server);
    app->seen.dropped = http_dropped(app->server);
}

static void drain(struct app *app)
{
    HTTP_CALL(app, http_drain(app->server));
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

static int try_connect(int port, int receive_buffer)
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

static struct client client_open(struct app *app)
{
    struct client client = {.fd = try_connect(http_port(app->server), 0)};

    ck_assert_int_ge(client.fd, 0);
    buffer_init(&client.in, SIZE_MAX / 2);
    return client;
}

static void client_close(struct client *client)
{
    buffer_free(&client->in);
    close(client->fd);
}

static void client_send(struct client *client, const void *data, size_t len)
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

static void client_say(struct client *client, const char *text)
{
    client_send(client, text, strlen(text));
}

/* Receives more; false at the end of the connection. */
static bool client_receive(struct client *client)
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

static bool client_need(struct client *client, size_t len)
{
    while (client->in.len < len)
        if (!client_receive(client))
            return false;
    return true;
}

static bool take_line(struct client *client, char *line, size_t size)
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
static bool take_chunk(struct client *client, struct buffer *body, size_t *len)
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

static bool take_head(struct client *client, struct reply *reply)
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
static void take_reply(struct client *client, struct reply *reply, bool head)
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

static void expect_reply(struct client *client, int status, const char *body)
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
static void expect_end(struct client *client)
{
    ck_assert(!client_receive(client));
    ck_assert_uint_eq(client->in.len, 0);
}

static void expect_nothing_more(struct client *client)
{
    struct pollfd ready = {.fd = client->fd, .events = POLLIN};

    ck_assert_uint_eq(client->in.len, 0);
    ck_assert_int_eq(poll(&ready, 1, 100), 0);
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\n\r\n"

/* ---- answers ---- */

START_TEST(test_plain_answer_with_headers)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;

    client_say(&client, GET("/plain"));
    take_reply(&client, &reply, false);
    ck_assert_int_eq(reply.status, 200);
    ck_assert_str_eq(reply.body.data, "hello\n");
    ck_assert_ptr_nonnull(strstr(reply.headers, "X-One: 1\n"));
    ck_assert_ptr_nonnull(strstr(reply.headers, "Content-Type: text/plain\n"));
    ck_assert_ptr_nonnull(strstr(reply.headers, "Date: "));
    ck_assert_ptr_null(strstr(reply.headers, "Injected"));
    wait_count(app, &app->completed, 1);
    buffer_free(&reply.body);
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_request_parts_are_readable)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "PUT /%66acts?a=b%20c&d HTTP/1.1\r\nHost: x\r\nX-Thing:  some \r\n\r\n");
    expect_reply(&client, 201, "PUT|some|b c|1");
    client_say(&client, GET("/facts"));
    expect_reply(&client, 201, "GET|(none)|(none)|1");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_connection_is_kept_for_more_requests)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    for (int i = 0; i < 50; i++) {
        client_say(&client, i % 2 ? GET("/plain") : GET("/stream"));
        expect_reply(&client, 200, i % 2 ? "hello\n" : "one");
    }
    wait_count(app, &app->completed, 50);
    on_loop(app, look);
    ck_assert_int_eq(app->seen.connections, 1);
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_connection_close_is_honoured)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "GET /plain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    expect_reply(&client, 200, "hello\n");
    expect_end(&client);
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_late_answer)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    for (int i = 0; i < 3; i++) {
        client_say(&client, GET("/hold"));
        wait_held(app);
        expect_nothing_more(&client);
        on_loop(app, answer_held);
        expect_reply(&client, 200, "late\n");
    }
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_head_has_the_headers_and_no_body)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;

    client_say(&client, "HEAD /plain HTTP/1.1\r\nHost: x\r\n\r\n");
    take_reply(&client, &reply, true);
    ck_assert_int_eq(reply.status, 200);
    ck_assert_ptr_nonnull(strcasestr(reply.headers, "Content-Length: 6\n"));
    client_say(&client, "HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    take_reply(&client, &reply, true);
    ck_assert_int_eq(reply.status, 200);
    expect_nothing_more(&client);
    client_say(&client, GET("/plain"));
    expect_reply(&client, 200, "hello\n");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_pipelined_requests_are_answered_in_order)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/plain") GET("/stream") GET("/facts") GET("/plain"));
    expect_reply(&client, 200, "hello\n");
    expect_reply(&client, 200, "one");
    expect_reply(&client, 201, NULL);
    expect_reply(&client, 200, "hello\n");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_pipelined_request_is_no_disconnect)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    wait_held(app);
    client_say(&client, GET("/plain"));
    expect_nothing_more(&client);
    on_loop(app, answer_held);
    expect_reply(&client, 200, "late\n");
    expect_reply(&client, 200, "hello\n");
    client_close(&client);
    app_free(app);
}
END_TEST

/* ---- streams ---- */

START_TEST(test_stream_headers_and_each_write_arrive_by_themselves)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;
    size_t len;

    client_say(&client, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    ck_assert(take_head(&client, &reply)); /* before anything was written */
    ck_assert_ptr_nonnull(strcasestr(reply.headers, "Transfer-Encoding: chunked"));
    for (int i = 0; i < 20; i++) {
        expect_nothing_more(&client);
        on_loop(app, i % 2 ? write_b : write_a);
        ck_assert(take_chunk(&client, &reply.body, &len));
        ck_assert_uint_eq(len, i % 2 ? 2 : 3);
    }
    on_loop(app, end_held);
    ck_assert(take_chunk(&client, &reply.body, &len));
    ck_assert_uint_eq(len, 0);
    wait_count(app, &app->completed, 1);
    client_say(&client, GET("/plain"));
    expect_reply(&client, 200, "hello\n");
    buffer_free(&reply.body);
    client_close(&client);
    app_free(app);
}
END_TEST

static void write_batch(struct app *app)
{
    HTTP_CALL(app, {
        http_batch_begin(app->server);
        http_stream_write(app->held, "aaa", 3);
        http_stream_write(app->held, "bb", 2);
        http_stream_end(app->held);
        http_batch_end(app->server);
    });
}

START_TEST(test_batch_of_writes_arrives_whole)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    on_loop(app, write_batch);
    expect_reply(&client, 200, "aaabb");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_aborted_stream_has_its_bytes_but_no_end)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;

    client_say(&client, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    on_loop(app, write_a);
    on_loop(app, abort_held);
    take_reply(&client, &reply, false);
    ck_assert(!reply.complete);
    ck_assert_str_eq(reply.body.data, "aaa");
    wait_count(app, &app->completed, 1);
    buffer_free(&reply.body);
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_stream_to_http_1_0_ends_with_the_connection)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "GET /stream HTTP/1.0\r\n\r\n");
    while (client_receive(&client))
        continue;
    ck_assert_ptr_null(strstr(client.in.data, "chunked"));
    ck_assert_str_eq(strstr(client.in.data, "\r\n\r\n"), "\r\n\r\none");
    client_close(&client);
    app_free(app);
}
END_TEST

enum { STREAMS = 200, TICKS = 20 };

static void tick_all(void *arg)
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

static void start_ticker(struct app *app)
{
    app->ticker = loop_timer_start(app->loop, 1, 2, tick_all, app);
}

START_TEST(test_many_streams_get_the_right_bytes)
{
    struct app *app = app_new();
    static struct client clients[STREAMS];
    char text[4096];

    for (int i = 0; i < STREAMS; i++) {
        clients[i] = client_open(app);
        snprintf(text, sizeof(text), GET("/ticks?n=%d"), i);
        client_say(&clients[i], text);
        if (i == STREAMS / 2)
            on_loop(app, start_ticker);
    }
    for (int i = 0; i < STREAMS; i++) {
        size_t len = 0;
        for (int k = 0; k < TICKS; k++)
            len += (size_t)snprintf(text + len, sizeof(text) - len, "%d:%d;", i, k);
        expect_reply(&clients[i], 200, text);
    }
    wait_count(app, &app->completed, STREAMS);
    for (int i = 0; i < STREAMS; i++)
        client_close(&clients[i]);
    app_free(app);
}
END_TEST

/* ---- bodies ---- */

START_TEST(test_big_body_in_pieces)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    size_t len = MAX_BODY;
    char *body = mem_alloc(len + 1), head[128];

    for (size_t i = 0; i < len; i++)
        body[i] = (char)('a' + i % 23);
    body[len] = '\0';
    snprintf(head, sizeof(head), "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n",
             len);
    client_say(&client, head);
    for (size_t at = 0; at < len; at += 100000)
        client_send(&client, body + at, len - at < 100000 ? len - at : 100000);
    expect_reply(&client, 200, body);
    free(body);
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_chunked_body)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                        "4\r\nwiki\r\n5\r\npedia\r\n");
    client_say(&client, "0\r\n\r\n");
    expect_reply(&client, 200, "wikipedia");
    client_say(&client, GET("/plain"));
    expect_reply(&client, 200, "hello\n");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_expect_continue)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;

    client_say(&client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
                        "Expect: 100-continue\r\n\r\n");
    ck_assert(take_head(&client, &reply));
    ck_assert_int_eq(reply.status, 100);
    client_say(&client, "ok");
    expect_reply(&client, 200, "ok");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_too_long_body_is_refused_before_it_is_sent)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;

    client_say(&client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n"
                        "Expect: 100-continue\r\n\r\n");
    take_reply(&client, &reply, false);
    ck_assert_int_eq(reply.status, 413);
    ck_assert_str_eq(reply.body.data, "{\"refused\":413}");
    ck_assert_ptr_nonnull(strstr(reply.headers, "Connection: close\n"));
    ck_assert_ptr_nonnull(strstr(reply.headers, "Content-Type: application/json\n"));
    expect_end(&client);
    buffer_free(&reply.body);
    client_close(&client);
    ck_assert_int_eq(app->requests, 0);
    app_free(app);
}
END_TEST

/* A client that sends all it has before it reads still gets its answer. */
static void send_too_much(const char *head, const char *chunk_head, const char *chunk_tail)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    static char piece[0x10000];

    memset(piece, 'x', sizeof(piece));
    client_say(&client, head);
    for (int i = 0; i < 256; i++) { /* 16 MB; the limit is 1 MB */
        client_say(&client, chunk_head);
        client_send(&client, piece, sizeof(piece));
        client_say(&client, chunk_tail);
    }
    expect_reply(&client, 413, "{\"refused\":413}");
    expect_end(&client);
    client_close(&client);
    ck_assert_int_eq(app->requests, 0);
    app_free(app);
}

START_TEST(test_too_long_body_with_content_length)
{
    send_too_much("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 16777216\r\n\r\n", "", "");
}
END_TEST

START_TEST(test_too_long_chunked_body)
{
    send_too_much("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
                  "10000\r\n", "\r\n");
}
END_TEST

/* ---- malformed requests ---- */

static const struct {
    const char *request;
    int status;
} malformed[] = {
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
     "0\r\n\r\n",
     400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3x\r\n\r\nabc", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3,3\r\n\r\nabc", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999999999999999\r\n\r\n", 413},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
     "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
     400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400},
    {"POST /echo HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n", 400},
    {"GET /plain%00x HTTP/1.1\r\nHost: x\r\n\r\n", 400},
    {"GET /plain HTTP/1.1\r\nHost: x\r\nBroken\r\n\r\n", 400},
    {"GET /plain HTTP/1.1\r\n\r\n", 400}, /* no Host */
    {"GET /plain HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
    {"GET /pl ain HTTP/1.1\r\nHost: x\r\n\r\n", 400},
};

START_TEST(test_malformed_request_is_refused_and_closed)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, malformed[_i].request);
    client_say(&client, GET("/plain")); /* smuggled, if it were answered */
    expect_reply(&client, malformed[_i].status, NULL);
    while (client_receive(&client)) /* until it is closed */
        continue;
    client_close(&client);
    ck_assert_int_eq(app->requests, 0);
    app_free(app);
}
END_TEST

START_TEST(test_garbage_closes_the_connection)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "\x16\x03\x01 nonsense\r\n\r\n");
    while (client_receive(&client))
        continue;
    client_close(&client);
    ck_assert_int_eq(app->requests, 0);
    app_free(app);
}
END_TEST

START_TEST(test_too_large_headers_are_refused)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    char line[1100];

    memset(line, 'h', sizeof(line));
    memcpy(line, "X-Long: ", 8);
    memcpy(line + 1024, "\r\n", 3);
    client_say(&client, "GET /plain HTTP/1.1\r\nHost: x\r\n");
    for (int i = 0; i < 200; i++)
        client_say(&client, line);
    client_say(&client, "\r\n");
    expect_reply(&client, 431, NULL);
    client_close(&client);
    app_free(app);
}
END_TEST

/* ---- clients that vanish ---- */

static void wait_active(struct app *app, int count)
{
    for (int i = 0; i < PATIENCE_S * 100; i++) {
        on_loop(app, look);
        if (app->seen.active == count)
            return;
        usleep(10000);
    }
    ck_abort_msg("%d exchanges are active, not %d", app->seen.active, count);
}

START_TEST(test_client_vanishes_in_its_upload)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc");
    wait_active(app, 1);
    client_close(&client);
    wait_active(app, 0);
    ck_assert_int_eq(app->requests + app->gone, 0); /* nobody has heard of it */
    app_free(app);
}
END_TEST

START_TEST(test_client_vanishes_while_it_waits)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    wait_held(app);
    client_close(&client);
    wait_count(app, &app->gone, 1);
    wait_active(app, 0);
    app_free(app);
}
END_TEST

START_TEST(test_client_resets_while_it_waits)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct linger reset = {1, 0};

    client_say(&client, GET("/hold"));
    wait_held(app);
    setsockopt(client.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    client_close(&client);
    wait_count(app, &app->gone, 1);
    app_free(app);
}
END_TEST

START_TEST(test_client_vanishes_behind_a_pipelined_request)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold") GET("/hold"));
    wait_held(app);
    client_close(&client);
    wait_count(app, &app->gone, 1);
    ck_assert_int_eq(app->requests, 1);
    app_free(app);
}
END_TEST

START_TEST(test_client_vanishes_in_a_stream)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;
    size_t len;

    client_say(&client, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    on_loop(app, write_a);
    ck_assert(take_head(&client, &reply));
    ck_assert(take_chunk(&client, &reply.body, &len));
    client_close(&client);
    wait_count(app, &app->gone, 1);
    buffer_free(&reply.body);
    app_free(app);
}
END_TEST

static void flood_held(struct app *app)
{
    static char piece[16 * 1024];

    /* Called often, fills the kernel's buffers and then ours, half of it at a time. */
    for (int i = 0; i < 8; i++)
        HTTP_CALL(app, http_stream_write(app->held, piece, sizeof(piece)));
}

START_TEST(test_client_vanishes_while_bytes_wait_for_it)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    do { /* until the client's window is closed */
        on_loop(app, flood_held);
        usleep(20000);
        on_loop(app, look);
    } while (app->seen.buffered == 0);
    client_close(&client);
    wait_count(app, &app->gone, 1);
    on_loop(app, look);
    ck_assert_uint_eq(app->seen.buffered, 0);
    app_free(app);
}
END_TEST

START_TEST(test_half_closed_client_counts_as_gone)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    shutdown(client.fd, SHUT_WR);
    wait_count(app, &app->gone, 1);
    client_close(&client);
    app_free(app);
}
END_TEST

/* Clients of all kinds, which leave at any moment, politely or not, while streams go on. */
START_TEST(test_clients_come_and_go_at_random)
{
    static const char *const requests[] = {
        GET("/plain"),
        GET("/ticks?n=1"),
        GET("/hold") GET("/plain"),
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nx",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\nabc",
    };
    struct app *app = app_new();
    struct linger reset = {1, 0};
    struct client open[16] = {0};

    srand(1);
    on_loop(app, start_ticker);
    for (int i = 0; i < 3000; i++) {
        struct client *client = &open[rand() % 16];
        if (client->fd) {
            if (rand() % 2)
                setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
            client_close(client);
        }
        *client = client_open(app);
        const char *request = requests[rand() % 6];
        size_t len = strlen(request);
        client_send(client, request, rand() % 3 ? len : (size_t)rand() % len);
        if (rand() % 4 == 0)
            recv(client->fd, (char[99]){0}, 99, MSG_DONTWAIT);
    }
    for (int i = 0; i < 16; i++)
        if (open[i].fd)
            client_close(&open[i]);
    wait_active(app, 0);
    app_free(app);
}
END_TEST

/* ---- limits ---- */

START_TEST(test_slow_reader_is_dropped_and_others_flow)
{
    struct app *app = app_new();
    struct client fast = client_open(app);
    struct client slow = {.fd = try_connect(http_port(app->server), 4096)};

    client_say(&slow, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    for (int i = 0; app->seen.dropped == 0; i++) {
        ck_assert_int_lt(i, 10000);
        on_loop(app, flood_held);
        client_say(&fast, GET("/stream"));
        expect_reply(&fast, 200, "one");
        on_loop(app, look);
        ck_assert_uint_le(app->seen.buffered, MAX_BUFFERED);
    }
    wait_count(app, &app->gone, 1);
    close(slow.fd);
    client_close(&fast);
    app_free(app);
}
END_TEST

START_TEST(test_connection_past_the_limit_is_told_503)
{
    struct http_options options = default_options();
    options.max_connections = 2;
    struct app *app = app_start(&options);
    struct client one = client_open(app), two = client_open(app);

    client_say(&one, GET("/plain"));
    client_say(&two, GET("/plain"));
    expect_reply(&one, 200, "hello\n");
    expect_reply(&two, 200, "hello\n");
    struct client three = client_open(app);
    client_say(&three, GET("/plain"));
    expect_reply(&three, 503, "{\"refused\":503}");
    expect_end(&three);
    client_say(&one, GET("/plain")); /* undisturbed */
    expect_reply(&one, 200, "hello\n");
    client_close(&two);
    client_close(&three);
    for (int status = 0; status != 200;) { /* room again, once the server has seen the close */
        struct client four = client_open(app);
        struct reply reply;
        client_say(&four, GET("/plain"));
        take_reply(&four, &reply, false);
        status = reply.status;
        buffer_free(&reply.body);
        client_close(&four);
    }
    client_close(&one);
    app_free(app);
}
END_TEST

static struct app *impatient_app(void)
{
    struct http_options options = default_options();
    options.read_timeout_s = 1;
    return app_start(&options);
}

/* Sends a byte now and then, until the server has enough of it. */
static void trickle(struct app *app, const char *start, const char *byte)
{
    struct client client = client_open(app);
    struct pollfd ready = {.fd = client.fd, .events = POLLIN};
    int64_t begin_us = clock_us();

    client_say(&client, start);
    while (poll(&ready, 1, 100) == 0) {
        ck_assert(clock_us() - begin_us < PATIENCE_S * 1000000ll);
        client_say(&client, byte);
    }
    ck_assert_int_ge((int)(clock_us() - begin_us), 900000);
    expect_reply(&client, 408, "{\"refused\":408}");
    client_close(&client);
    wait_active(app, 0);
    ck_assert_int_eq(app->requests, 0);
    app_free(app);
}

START_TEST(test_trickled_request_line_times_out)
{
    trickle(impatient_app(), "GE", "T");
}
END_TEST

START_TEST(test_trickled_headers_time_out)
{
    trickle(impatient_app(), "GET /plain HTTP/1.1\r\nHost: x\r\nX-Long: ", "y");
}
END_TEST

START_TEST(test_trickled_body_times_out)
{
    trickle(impatient_app(), "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n", "z");
}
END_TEST

START_TEST(test_pending_answer_does_not_time_out)
{
    struct http_options options = default_options();
    options.read_timeout_s = options.idle_timeout_s = 1;
    struct app *app = app_start(&options);
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    wait_held(app);
    sleep(3);
    on_loop(app, answer_held);
    expect_reply(&client, 200, "late\n");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_idle_connections_are_closed_in_time)
{
    struct http_options options = default_options();
    options.idle_timeout_s = 1;
    struct app *app = app_start(&options);
    struct client used = client_open(app), fresh = client_open(app);

    client_say(&used, GET("/plain"));
    expect_reply(&used, 200, "hello\n");
    expect_end(&used);
    expect_end(&fresh);
    client_close(&used);
    client_close(&fresh);
    app_free(app);
}
END_TEST

/* ---- the end ---- */

START_TEST(test_drain_finishes_what_is_in_flight)
{
    struct app *app = app_new();
    struct client streaming = client_open(app), waiting = client_open(app);
    struct client idle = client_open(app);
    struct reply reply;

    client_say(&idle, GET("/plain"));
    expect_reply(&idle, 200, "hello\n");
    client_say(&waiting, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n");
    client_say(&streaming, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    wait_active(app, 2);
    on_loop(app, drain);
    ck_assert_int_eq(try_connect(http_port(app->server), 0), -1);
    expect_end(&idle);
    on_loop(app, write_a);
    on_loop(app, end_held);
    expect_reply(&streaming, 200, "aaa");
    expect_end(&streaming);
    client_say(&waiting, "abc");
    take_reply(&waiting, &reply, false);
    ck_assert_int_eq(reply.status, 200);
    ck_assert_str_eq(reply.body.data, "abc");
    ck_assert_ptr_nonnull(strcasestr(reply.headers, "Connection: close"));
    expect_end(&waiting);
    wait_active(app, 0);
    buffer_free(&reply.body);
    client_close(&streaming);
    client_close(&waiting);
    client_close(&idle);
    app_free(app);
}
END_TEST

START_TEST(test_stop_closes_whatever_is_open)
{
    struct app *app = app_new();
    struct client waiting = client_open(app), streaming = client_open(app);
    struct client uploading = client_open(app), idle = client_open(app);

    client_say(&uploading, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n");
    client_say(&waiting, GET("/hold"));
    client_say(&streaming, GET("/ticks"));
    wait_count(app, &app->requests, 2);
    wait_active(app, 3);
    app_free(app); /* counts the closed ones */
    ck_assert(!client_receive(&waiting));
    ck_assert(!client_receive(&uploading));
    client_close(&waiting);
    client_close(&streaming);
    client_close(&uploading);
    client_close(&idle);
}
END_TEST

START_TEST(test_port_in_use_is_an_error)
{
    struct app *app = app_new();
    struct http_options options = default_options();
    struct http_callbacks callbacks = {app, on_request, on_closed, on_refusal};
    struct error err;
    struct loop *loop = loop_new();

    options.port = http_port(app->server);
    ck_assert_ptr_null(http_start(loop, &options, &callbacks, &err));
    ck_assert_ptr_nonnull(strstr(err.message, "in use"));
    options.host = "no.such.host.invalid";
    ck_assert_ptr_null(http_start(loop, &options, &callbacks, &err));
    ck_assert_ptr_nonnull(strstr(err.message, "no.such.host.invalid"));
    loop_free(loop);
    app_free(app);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_plain_answer_with_headers);
    tcase_add_test(tcase, test_request_parts_are_readable);
    tcase_add_test(tcase, test_connection_is_kept_for_more_requests);
    tcase_add_test(tcase, test_connection_close_is_honoured);
    tcase_add_test(tcase, test_late_answer);
    tcase_add_test(tcase, test_head_has_the_headers_and_no_body);
    tcase_add_test(tcase, test_pipelined_requests_are_answered_in_order);
    tcase_add_test(tcase, test_pipelined_request_is_no_disconnect);
    tcase_add_test(tcase, test_stream_headers_and_each_write_arrive_by_themselves);
    tcase_add_test(tcase, test_batch_of_writes_arrives_whole);
    tcase_add_test(tcase, test_aborted_stream_has_its_bytes_but_no_end);
    tcase_add_test(tcase, test_stream_to_http_1_0_ends_with_the_connection);
    tcase_add_test(tcase, test_many_streams_get_the_right_bytes);
    tcase_add_test(tcase, test_big_body_in_pieces);
    tcase_add_test(tcase, test_chunked_body);
    tcase_add_test(tcase, test_expect_continue);
    tcase_add_test(tcase, test_too_long_body_is_refused_before_it_is_sent);
    tcase_add_test(tcase, test_too_long_body_with_content_length);
    tcase_add_test(tcase, test_too_long_chunked_body);
    tcase_add_loop_test(tcase, test_malformed_request_is_refused_and_closed, 0,
                        sizeof(malformed) / sizeof(malformed[0]));
    tcase_add_test(tcase, test_garbage_closes_the_connection);
    tcase_add_test(tcase, test_too_large_headers_are_refused);
    tcase_add_test(tcase, test_client_vanishes_in_its_upload);
    tcase_add_test(tcase, test_client_vanishes_while_it_waits);
    tcase_add_test(tcase, test_client_resets_while_it_waits);
    tcase_add_test(tcase, test_client_vanishes_behind_a_pipelined_request);
    tcase_add_test(tcase, test_client_vanishes_in_a_stream);
    tcase_add_test(tcase, test_client_vanishes_while_bytes_wait_for_it);
    tcase_add_test(tcase, test_half_closed_client_counts_as_gone);
    tcase_add_test(tcase, test_clients_come_and_go_at_random);
    tcase_add_test(tcase, test_slow_reader_is_dropped_and_others_flow);
    tcase_add_test(tcase, test_connection_past_the_limit_is_told_503);
    tcase_add_test(tcase, test_trickled_request_line_times_out);
    tcase_add_test(tcase, test_trickled_headers_time_out);
    tcase_add_test(tcase, test_trickled_body_times_out);
    tcase_add_test(tcase, test_pending_answer_does_not_time_out);
    tcase_add_test(tcase, test_idle_connections_are_closed_in_time);
    tcase_add_test(tcase, test_drain_finishes_what_is_in_flight);
    tcase_add_test(tcase, test_stop_closes_whatever_is_open);
    tcase_add_test(tcase, test_port_in_use_is_an_error);
}

UNIT_MAIN("http", add_tests)
