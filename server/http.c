/* HTTP/1.1 server: libmicrohttpd (MHD) driven from the event loop.
 *
 * How the two meet. MHD runs without a thread of its own. Its epoll descriptor is watched by the
 * loop; pump() is the only place where MHD works (but for http_stop), and it is called from the
 * loop alone, never from a function of http.h. Those functions only change an exchange and ask for
 * a pump in the loop's next round, so many writes cost one pump, and no callback ever runs while
 * its owner is in the middle of something. MHD keeps ready work in a list of its own (its sockets
 * are edge-triggered): as long as it has some, an idle callback pumps in every round.
 *
 * An exchange, with the function of each transition:
 *
 *      on_request_line
 *            |
 *         READING --- refuse, or the client left ---> freed; nobody has heard of it
 *            |  read_body, with the last byte: calls `request`
 *         WAITING ---------- http_stream_start ----> STREAMING
 *            |  http_respond                             |  http_stream_end: ENDED
 *            |                                           |  http_stream_abort: ABORTED
 *         ENDED                                    ENDED or ABORTED
 *            |  on_completed: sent, or                   |
 *            |  the client is gone                       |
 *            +-----------------> OVER <------------------+
 *                                 |  deliver_closed, at the end of a pump: calls `closed`
 *                               freed
 *
 * Parking. An exchange that has nothing to send is parked: its connection is suspended in MHD
 * (park) until there is something (http_wake). MHD takes a suspended socket out of its epoll set
 * and would not see the client leave; so from the first parking on, the loop watches each
 * connection for a hang-up itself (on_hangup). A client that closes only its sending side counts as
 * gone, as it cannot be told from one that closed both; further requests in the pipeline are no
 * hang-up.
 *
 * Getting rid of a connection that is MHD's: disconnect() shuts the socket down and unparks it; MHD
 * finds it dead and closes it in the next pump.
 *
 * Refusals. MHD can answer only before a body or after it, so 400, 408, 413, 429 and 503 are
 * written to the socket directly (nothing else of this exchange was), and the connection is closed
 * gently (http_linger.h), so that a client in mid-upload still reads the answer. What MHD itself
 * finds malformed (request line, field syntax, chunk sizes, fields too large: 400, 414, 431, 505)
 * it answers with a page of its own, or closes without a word. (Version 0.9.75 writes the head of
 * that page twice when a Content-Length is no number.)
 *
 * TLS. The sessions are MHD's, inside its own input and output; a client's handshake counts as
 * reading, and what is refused past MHD goes through its session (tls.h). A connection that does
 * not speak TLS is closed without an answer.
 *
 * Limits. max_connections is counted here and MHD's own limit is higher: at its limit MHD stops
 * accepting, and clients would hang without an answer. Time limits are a walk over all connections
 * twice a second (sweep), as MHD's timeout starts again with each byte. */
#include "server/http.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/panic.h"
#include "server/http_exchange.h"
#include "server/http_linger.h"
#include "server/http_socket.h"
#include "server/tls.h"

#include <microhttpd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTION_POOL = 64 * 1024, /* MHD's memory of one connection: bounds the header fields */
    STREAM_BLOCK = 4096,         /* unit of a stream to an HTTP/1.0 client */
    REFUSAL_BODY_MAX = 2048,
    SPARE_CONNECTIONS = 64, /* + 1/8: past max_connections, to be told 503 */
    SPARE_FILES = 512,      /* of the rest of the process, and of lingering sockets */
    SWEEP_MS = 500,
    SMALL_BODY = 64 * 1024, /* never refused for what others send */
    SURPLUS_S = 5,          /* a connection past the limit may be silent so long */
};

struct http_connection {
    struct http_server *server;
    struct MHD_Connection *mhd;
    struct http_exchange *exchange; /* the current one, or NULL */
    int fd;
    struct tls_peer tls;
    struct loop_watch *hangup;
    bool surplus; /* past max_connections: its request is refused */
    bool dead;    /* disconnect() was called */
    bool linger;  /* the client may still be sending: close gently */
    bool idle_measured;
    uint64_t idle_received;   /* http_socket_received when it became idle */
    int64_t idle_since_us;    /* without an exchange */
    int64_t reading_since_us; /* first sign of the request being read; 0: none */
    char peer[64];
    struct http_connection *prev, *next;
};

struct http_server {
    struct loop *loop;
    struct http_options options;
    struct http_callbacks callbacks;
    struct MHD_Daemon *daemon;
    struct loop_watch *mhd_events;
    struct loop_idle *idle;
    struct loop_timer *sweeper;
    struct http_linger *linger;
    int port;
    bool draining, stopping;
    bool pumping; /* in pump: `request` and `closed` are called from there alone */
    bool wanted;  /* another pump, right after this one */
    bool batching;
    struct http_connection *connections;
    int connection_count, surplus_count;
    int active;
    uint64_t dropped;
    size_t body_bytes;
    struct http_exchange *over_first, **over_last;
};

/* ---- the pump ---- */

static void deliver_closed(struct http_server *server)
{
    while (server->over_first) {
        struct http_exchange *ex = server->over_first;
        server->over_first = ex->next;
        if (!server->over_first)
            server->over_last = &server->over_first;
        server->active--;
        server->callbacks.closed(server->callbacks.arg, ex, ex->end);
        http_exchange_free(ex);
    }
}

/* Has pump() run in the loop's next round, which is before the loop sleeps. */
static void want_pump(struct http_server *server)
{
    if (server->batching)
        return;
    server->wanted = true;
    if (!server->pumping)
        loop_idle_set(server->idle, true);
}

static void pump(void *arg)
{
    struct http_server *server = arg;
    MHD_UNSIGNED_LONG_LONG timeout_ms;

    ASSERT(!server->pumping);
    server->pumping = true;
    server->wanted = false;
    MHD_run(server->daemon);
    deliver_closed(server);
    server->pumping = false;
    /* MHD has no timeouts of its own here (see sweep): it either has work at hand or waits. */
    bool ready = MHD_get_timeout(server->daemon, &timeout_ms) == MHD_YES && timeout_ms == 0;
    loop_idle_set(server->idle, ready || server->wanted);
    if (!ready && !server->wanted && server->callbacks.settled)
        server->callbacks.settled(server->callbacks.settled_arg);
}

static void on_hangup(void *arg);

static void park(struct http_exchange *ex)
{
    struct http_connection *conn = ex->conn;

    MHD_suspend_connection(conn->mhd);
    ex->parked = true;
    if (conn->hangup)
        return;
    conn->hangup = loop_watch_start(ex->server->loop, conn->fd, LOOP_HANGUP, on_hangup, conn);
    if (!conn->hangup) /* then a failing write tells */
        log_warning("cannot watch the connection of %s: the system is out of resources",
                    conn->peer);
}

void http_wake(struct http_exchange *ex)
{
    if (!ex->parked)
        return;
    ex->parked = false;
    MHD_resume_connection(ex->conn->mhd);
    want_pump(ex->server);
}

static void disconnect(struct http_connection *conn)
{
    if (!conn->dead)
        shutdown(conn->fd, SHUT_RDWR);
    conn->dead = true;
    if (conn->exchange)
        http_wake(conn->exchange);
    want_pump(conn->server);
}

static void lose_client(struct http_exchange *ex)
{
    ex->gone = true;
    disconnect(ex->conn);
}

void http_drop(struct http_exchange *ex)
{
    log_debug("http: %s reads too slowly and is dropped", ex->peer);
    ex->server->dropped++;
    http_socket_reset_on_close(ex->conn->fd);
    lose_client(ex);
}

static void on_hangup(void *arg)
{
    struct http_connection *conn = arg;

    loop_watch_stop(conn->hangup);
    conn->hangup = NULL;
    /* MHD reads from connections in all other phases and finds out for itself. */
    if (conn->exchange && conn->exchange->phase != READING)
        lose_client(conn->exchange);
}

/* ---- refusing ---- */

/* Writes a whole response, past MHD, and shuts the sending side. Returns what makes MHD close. */
static enum MHD_Result refuse(struct http_connection *conn, int status)
{
    const struct http_callbacks *callbacks = &conn->server->callbacks;
    const struct http_exchange *ex = conn->exchange;
    char body[REFUSAL_BODY_MAX] = "", date[64], response[REFUSAL_BODY_MAX + 512];
    time_t now = time(NULL);
    struct tm parts;

    callbacks->refusal(callbacks->arg, status, body, sizeof(body));
    strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&now, &parts));
    bool head = ex && ex->method && strcmp(ex->method, "HEAD") == 0;
    int len = snprintf(response, sizeof(response),
                       "HTTP/1.1 %d %s\r\nDate: %s\r\nConnection: close\r\n%s"
                       "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                       status, MHD_get_reason_phrase_for((unsigned)status), date,
                       status == 503 || status == 429 ? "Retry-After: 1\r\n" : "", strlen(body),
                       head ? "" : body);
    ASSERT(len > 0 && (size_t)len < sizeof(response));
    /* The socket's buffer is empty but for earlier responses that the client did not read. */
    if (conn->tls.tls)
        tls_send_last(&conn->tls, response, (size_t)len);
    else
        (void)send(conn->fd, response, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(conn->fd, SHUT_WR);
    conn->linger = true;
    return MHD_NO;
}

/* ---- what MHD calls: connections ---- */

/* What was read so far was the handshake, not a request. */
static void on_established(void *arg)
{
    struct http_connection *conn = arg;

    conn->idle_since_us = clock_us();
    conn->idle_measured = false;
    conn->reading_since_us = 0;
}

static struct http_connection *connection_open(struct http_server *server,
                                               struct MHD_Connection *mhd)
{
    struct http_connection *conn = mem_zalloc(1, sizeof(*conn));

    conn->server = server;
    conn->mhd = mhd;
    conn->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    conn->surplus =
        server->connection_count - server->surplus_count >= server->options.max_connections;
    conn->idle_since_us = clock_us();
    conn->idle_measured = true; /* nothing arrived yet */
    if (server->options.tls)
        tls_attach(&conn->tls, server->options.tls,
                   MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION)->tls_session,
                   on_established, conn);
    http_socket_name(MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS)->client_addr,
                     conn->peer, sizeof(conn->peer));
    conn->next = server->connections;
    if (conn->next)
        conn->next->prev = conn;
    server->connections = conn;
    server->connection_count++;
    server->surplus_count += conn->surplus;
    return conn;
}

static void exchange_over(struct http_exchange *ex, bool sent);

/* MHD is about to close the socket. A duplicate of the descriptor keeps it open to linger on. */
static void connection_close(struct http_connection *conn)
{
    struct http_server *server = conn->server;

    if (conn->exchange) /* MHD does not tell when it runs out of epoll entries */
        exchange_over(conn->exchange, false);
    loop_watch_stop(conn->hangup);
    tls_detach(&conn->tls);
    if (!server->stopping && (conn->linger || (!conn->dead && http_socket_unread(conn->fd) > 0))) {
        int copy = dup(conn->fd);
        if (copy >= 0)
            http_linger_add(server->linger, copy, clock_us());
    }
    if (conn->next)
        conn->next->prev = conn->prev;
    if (conn->prev)
        conn->prev->next = conn->next;
    else
        server->connections = conn->next;
    server->connection_count--;
    server->surplus_count -= conn->surplus;
    free(conn);
}

static void on_connection(void *arg, struct MHD_Connection *mhd, void **slot,
                          enum MHD_ConnectionNotificationCode what)
{
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        *slot = connection_open(arg, mhd);
    } else if (*slot) {
        connection_close(*slot);
        *slot = NULL;
    }
}

/* ---- what MHD calls: exchanges ---- */

/* The request line was read. What is returned comes back to on_access and on_completed. */
static void *on_request_line(void *arg, const char *target, struct MHD_Connection *mhd)
{
    struct http_server *server = arg;
    struct http_connection *conn =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    struct http_exchange *ex = http_exchange_new(server, conn, &server->options, conn->peer);
    const char *nul = target ? strstr(target, "%00") : NULL;

    ASSERT(!conn->exchange);
    conn->exchange = ex;
    if (conn->reading_since_us == 0)
        conn->reading_since_us = clock_us();
    ex->bad_target = !target || strchr(target, ' ') || (nul && nul < strchrnul(target, '?'));
    server->active++;
    return ex;
}

static enum MHD_Result copy_field(void *arg, enum MHD_ValueKind kind, const char *name,
                                  const char *value)
{
    struct http_exchange *ex = arg;

    if (!value)
        value = "";
    if (kind == MHD_HEADER_KIND)
        http_fields_add_header(&ex->fields, name, value);
    else
        http_fields_add_argument(&ex->fields, name, value);
    return MHD_YES;
}

/* The path of a request's target, which may be a whole URL: what comes from a proxy. */
static const char *target_path(const char *target)
{
    const char *host = strncasecmp(target, "http://", 7) == 0    ? target + 7
                       : strncasecmp(target, "https://", 8) == 0 ? target + 8
                                                                 : NULL;
    const char *path = host ? strchr(host, '/') : target;

    return path ? path : "/";
}

static enum MHD_Result read_headers(struct http_exchange *ex, const char *path, const char *method,
                                    const char *version)
{
    struct http_server *server = ex->server;
    struct http_connection *conn = ex->conn;

    ex->headers_read = true;
    ex->arrival_us = clock_us();
    ex->method = mem_strdup(method);
    ex->path = mem_strdup(target_path(path));
    MHD_get_connection_values(conn->mhd, MHD_HEADER_KIND, copy_field, ex);
    MHD_get_connection_values(conn->mhd, MHD_GET_ARGUMENT_KIND, copy_field, ex);
    if (conn->surplus)
        return refuse(conn, 503);
    int status = ex->bad_target ? 400
                                : http_fields_judge(&ex->fields, strcmp(version, "HTTP/1.0") == 0,
                                                    server->options.max_body);
    return status ? refuse(conn, status) : MHD_YES;
}

/* Takes a piece of the body; without one, the body is complete and the request is handed out. */
static enum MHD_Result read_body(struct http_exchange *ex, const char *piece, size_t *len)
{
    struct http_server *server = ex->server;
    const struct http_callbacks *callbacks = &server->callbacks;

    if (*len) {
        if (ex->body.len + *len > SMALL_BODY &&
            server->body_bytes + *len > server->options.max_bodies)
            return refuse(ex->conn, 429);
        if (buffer_append(&ex->body, piece, *len))
            return refuse(ex->conn, 413);
        http_count_body(server, (ptrdiff_t)*len);
        *len = 0;
        return MHD_YES;
    }
    ex->conn->reading_since_us = 0;
    ex->phase = WAITING;
    callbacks->request(callbacks->arg, ex);
    return MHD_YES;
}

/* The content reader of a stream. */
static ssize_t on_read(void *arg, uint64_t position, char *out, size_t max)
{
    struct http_exchange *ex = arg;

    (void)position;
    if (ex->gone)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t len = http_exchange_take(ex, out, max);
    if (len)
        return (ssize_t)len;
    if (ex->phase == ENDED)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (ex->phase == ABORTED)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    park(ex);
    return 0;
}

static struct MHD_Response *make_response(struct http_exchange *ex)
{
    struct MHD_Response *response;
    const char *at = ex->headers.data;

    if (ex->is_stream && strcmp(ex->method, "HEAD") == 0) {
        /* MHD would send the last chunk of the body that must not be there. */
        response = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    } else if (ex->is_stream) {
        response =
            MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, on_read, ex, NULL);
    } else {
        response =
            MHD_create_response_from_buffer(ex->out.len, ex->out.data, MHD_RESPMEM_MUST_FREE);
        ex->out.data = NULL; /* the response's */
        buffer_free(&ex->out);
    }
    if (!response)
        PANIC("out of host memory");
    while (at && at < ex->headers.data + ex->headers.len) {
        const char *value = at + strlen(at) + 1;
        if (MHD_add_response_header(response, at, value) != MHD_YES)
            log_debug("http: response header %s is not sent: it is malformed", at);
        at = value + strlen(value) + 1;
    }
    if (ex->server->draining)
        MHD_add_response_header(response, "Connection", "close");
    return response;
}

/* Gives MHD the response, or parks the exchange until there is one. */
static enum MHD_Result answer(struct http_exchange *ex)
{
    if (ex->phase == WAITING) {
        park(ex);
        return MHD_YES;
    }
    struct MHD_Response *response = make_response(ex);
    enum MHD_Result rc = MHD_queue_response(ex->conn->mhd, (unsigned)ex->status, response);
    MHD_destroy_response(response); /* our reference */
    return rc;
}

static enum MHD_Result on_access(void *arg, struct MHD_Connection *mhd, const char *path,
                                 const char *method, const char *version, const char *piece,
                                 size_t *piece_len, void **slot)
{
    struct http_exchange *ex = *slot;
    enum MHD_Result rc = MHD_YES;

    (void)arg;
    (void)mhd;
    if (ex->conn->dead || ex->server->stopping)
        return MHD_NO;
    if (!ex->headers_read)
        return read_headers(ex, path, method, version);
    if (ex->phase == READING)
        rc = read_body(ex, piece, piece_len);
    return rc == MHD_YES && ex->phase != READING ? answer(ex) : rc;
}

/* Takes the exchange off its connection. `sent`: MHD sent all of the response. */
static void exchange_over(struct http_exchange *ex, bool sent)
{
    struct http_server *server = ex->server;
    struct http_connection *conn = ex->conn;
    bool aborted = ex->phase == ABORTED && !ex->gone && ex->out.len == 0;

    conn->exchange = NULL;
    conn->idle_since_us = clock_us();
    conn->idle_measured = false;
    conn->reading_since_us = 0;
    if (ex->phase == READING) {
        server->active--;
        http_exchange_free(ex);
        return;
    }
    ex->conn = NULL;
    ex->parked = false;
    ex->phase = OVER;
    ex->end = sent || aborted ? HTTP_COMPLETED : HTTP_CLIENT_GONE;
    buffer_free(&ex->out);
    ex->next = NULL;
    *server->over_last = ex;
    server->over_last = &ex->next;
}

static void on_completed(void *arg, struct MHD_Connection *mhd, void **slot,
                         enum MHD_RequestTerminationCode why)
{
    struct http_exchange *ex = *slot;

    (void)arg;
    (void)mhd;
    *slot = NULL;
    if (!ex)
        return;
    /* MHD found the request malformed and answered: the client may still be sending it. */
    if (ex->phase == READING && why == MHD_REQUEST_TERMINATED_WITH_ERROR && !ex->conn->dead)
        ex->conn->linger = true;
    exchange_over(ex, why == MHD_REQUEST_TERMINATED_COMPLETED_OK);
}

__attribute__((format(printf, 2, 0))) static void on_mhd_log(void *arg, const char *format,
                                                             va_list args)
{
    char message[512];

    (void)arg;
    vsnprintf(message, sizeof(message), format, args);
    message[strcspn(message, "\r\n")] = '\0';
    log_debug("http: %s", message);
}

/* ---- time limits ---- */

static void sweep_connection(struct http_connection *conn, int64_t now_us)
{
    const struct http_options *options = &conn->server->options;
    int idle_s = conn->surplus ? SURPLUS_S : options->idle_timeout_s;

    if (conn->dead || (conn->exchange && conn->exchange->phase != READING))
        return;
    if (conn->reading_since_us == 0) {
        /* MHD does not tell of a request line in pieces: the kernel's count of bytes does. */
        uint64_t received = http_socket_received(conn->fd);
        if (conn->idle_measured && received > conn->idle_received)
            conn->reading_since_us = now_us;
        else if (conn->server->draining ? http_socket_unread(conn->fd) == 0
                                        : now_us - conn->idle_since_us > idle_s * 1000000ll)
            disconnect(conn);
        conn->idle_received = received;
        conn->idle_measured = true;
    } else if (now_us - conn->reading_since_us > options->read_timeout_s * 1000000ll) {
        refuse(conn, 408);
        disconnect(conn);
    }
}

static void sweep(void *arg)
{
    struct http_server *server = arg;
    int64_t now_us = clock_us();

    for (struct http_connection *conn = server->connections; conn; conn = conn->next)
        sweep_connection(conn, now_us);
    http_linger_sweep(server->linger, now_us);
}

/* ---- start, drain, stop ---- */

/* Returns MHD's connection limit; lowers max_connections to what the system allows. */
static int limit_connections(struct http_server *server)
{
    int wanted = server->options.max_connections;
    int files = http_socket_allow(wanted + wanted / 8 + SPARE_CONNECTIONS + SPARE_FILES);
    int limit = files - SPARE_FILES;

    if (limit < wanted + wanted / 8 + SPARE_CONNECTIONS) {
        int possible = (limit - SPARE_CONNECTIONS) * 8 / 9;
        server->options.max_connections = possible > 1 ? possible : 1;
        log_warning("the limit of open files (%d) allows %d connections, not %d", files,
                    server->options.max_connections, wanted);
    }
    return server->options.max_connections + server->options.max_connections / 8 +
           SPARE_CONNECTIONS;
}

static struct MHD_Daemon *start_daemon(struct http_server *server, int listen_fd)
{
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_TURBO | MHD_USE_ERROR_LOG;
    struct MHD_OptionItem tls_items[] = {
        {MHD_OPTION_HTTPS_PRIORITIES, 0, TLS_PRIORITIES},
        {MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)tls_show_certificate},
        {MHD_OPTION_END, 0, NULL},
    };

    if (server->options.tls)
        flags |= MHD_USE_TLS;
    return MHD_start_daemon(
        flags, 0, NULL, NULL, on_access, server, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_NOTIFY_CONNECTION, on_connection, server,
        MHD_OPTION_URI_LOG_CALLBACK, on_request_line, server, MHD_OPTION_NOTIFY_COMPLETED,
        on_completed, server, MHD_OPTION_CONNECTION_LIMIT, (unsigned)limit_connections(server),
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_POOL, MHD_OPTION_CONNECTION_TIMEOUT,
        0u, MHD_OPTION_ARRAY, server->options.tls ? tls_items : &tls_items[2],
#if MHD_VERSION >= 0x00097701
        MHD_OPTION_CLIENT_DISCIPLINE_LVL, 1,
#else
        MHD_OPTION_STRICT_FOR_CLIENT, 0, /* 1 would send heads twice; we are strict ourselves */
#endif
        MHD_OPTION_END);
}

struct http_server *http_start(struct loop *loop, const struct http_options *options,
                               const struct http_callbacks *callbacks, struct error *err)
{
    int port;
    int listen_fd = http_socket_listen(options->host, options->port, &port, err);

    if (listen_fd < 0)
        return NULL;
    struct http_server *server = mem_zalloc(1, sizeof(*server));
    server->loop = loop;
    server->options = *options;
    server->options.host = NULL; /* the caller's string */
    server->callbacks = *callbacks;
    server->port = port;
    server->over_last = &server->over_first;
    server->daemon = start_daemon(server, listen_fd); /* takes listen_fd over */
    if (!server->daemon) { /* where it failed decides whether listen_fd is closed: leave it */
        error_set(err, "cannot start the HTTP server: the system is out of memory or descriptors");
        free(server);
        return NULL;
    }
    int epoll_fd = MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    server->mhd_events = loop_watch_start(loop, epoll_fd, LOOP_READABLE, pump, server);
    if (!server->mhd_events) {
        error_set(err, "cannot start the HTTP server: its sockets cannot be watched");
        MHD_stop_daemon(server->daemon);
        free(server);
        return NULL;
    }
    server->linger = http_linger_new(loop);
    server->idle = loop_idle_new(loop, pump, server);
    server->sweeper = loop_timer_start(loop, SWEEP_MS, SWEEP_MS, sweep, server);
    want_pump(server); /* MHD begins to listen in its first run */
    return server;
}

void http_drain(struct http_server *server)
{
    if (server->draining)
        return;
    server->draining = true;
    close(MHD_quiesce_daemon(server->daemon));
    sweep(server); /* closes the idle connections; later sweeps those that become idle */
}

void http_stop(struct http_server *server)
{
    if (!server)
        return;
    ASSERT(!server->pumping); /* not from a callback */
    server->stopping = true;
    for (struct http_connection *conn = server->connections; conn; conn = conn->next)
        if (conn->exchange)
            http_wake(conn->exchange); /* MHD aborts the process over a suspended connection */
    loop_watch_stop(server->mhd_events);
    loop_timer_stop(server->sweeper);
    MHD_stop_daemon(server->daemon);
    deliver_closed(server);
    ASSERT(server->connection_count == 0 && server->active == 0);
    loop_idle_free(server->idle);
    http_linger_free(server->linger);
    free(server);
}

int http_port(const struct http_server *server)
{
    return server->port;
}

int http_active(const struct http_server *server)
{
    return server->active;
}

int http_connections(const struct http_server *server)
{
    return server->connection_count;
}

size_t http_buffered(const struct http_server *server)
{
    size_t bytes = 0;

    for (const struct http_connection *conn = server->connections; conn; conn = conn->next)
        if (conn->exchange)
            bytes += conn->exchange->out.len;
    return bytes;
}

size_t http_body_bytes(const struct http_server *server)
{
    return server->body_bytes;
}

void http_count_body(struct http_server *server, ptrdiff_t bytes)
{
    server->body_bytes += (size_t)bytes;
}

uint64_t http_dropped(const struct http_server *server)
{
    return server->dropped;
}

void http_batch_begin(struct http_server *server)
{
    ASSERT(!server->batching);
    server->batching = true;
}

void http_batch_end(struct http_server *server)
{
    ASSERT(server->batching);
    server->batching = false;
    want_pump(server);
}
