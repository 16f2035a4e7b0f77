/* Exchanges: what an application reads of a request and writes of a response.
 *
 * Nothing here does input or output: the functions put bytes and states into the exchange and wake
 * it, and http.c carries them out in the loop's next round. When the client is gone they do
 * nothing, so an application may go on until it hears of it. */
#include "server/http_exchange.h"

#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>
#include <string.h>

enum {
    HEADERS_MAX = 16 * 1024, /* bytes of a response's headers */
    KEEP_MAX = 64 * 1024,    /* a stream's emptied buffer is kept up to this size */
};

struct http_exchange *http_exchange_new(struct http_server *server, struct http_connection *conn,
                                        const struct http_options *options, const char *peer)
{
    struct http_exchange *ex = mem_zalloc(1, sizeof(*ex));

    ex->server = server;
    ex->conn = conn;
    strncpy(ex->peer, peer, sizeof(ex->peer) - 1);
    http_fields_init(&ex->fields);
    buffer_init(&ex->body, options->max_body);
    buffer_init(&ex->headers, HEADERS_MAX);
    buffer_init(&ex->out, options->max_buffered);
    return ex;
}

void http_exchange_free(struct http_exchange *ex)
{
    http_fields_free(&ex->fields);
    http_free_body(ex->server, &ex->body);
    buffer_free(&ex->headers);
    buffer_free(&ex->out);
    free(ex->method);
    free(ex->path);
    free(ex);
}

size_t http_exchange_take(struct http_exchange *ex, char *out, size_t max)
{
    size_t len = ex->out.len < max ? ex->out.len : max;

    if (len == 0)
        return 0;
    memcpy(out, ex->out.data, len);
    buffer_consume(&ex->out, len);
    if (ex->out.len == 0 && ex->out.cap > KEEP_MAX)
        buffer_free(&ex->out);
    return len;
}

/* ---- the request ---- */

const char *http_method(const struct http_exchange *ex)
{
    return ex->method;
}

const char *http_path(const struct http_exchange *ex)
{
    return ex->path;
}

const char *http_header(const struct http_exchange *ex, const char *name)
{
    return http_fields_header(&ex->fields, name);
}

const char *http_query(const struct http_exchange *ex, const char *name)
{
    return http_fields_argument(&ex->fields, name);
}

const char *http_body(const struct http_exchange *ex, size_t *len)
{
    if (len)
        *len = ex->body.len;
    return ex->body.data ? ex->body.data : "";
}

struct buffer http_take_body(struct http_exchange *ex)
{
    struct buffer body = ex->body;

    buffer_init(&ex->body, body.max);
    return body;
}

void http_free_body(struct http_server *server, struct buffer *body)
{
    http_count_body(server, -(ptrdiff_t)body->len);
    buffer_free(body);
}

const char *http_peer(const struct http_exchange *ex)
{
    return ex->peer;
}

int64_t http_arrival_us(const struct http_exchange *ex)
{
    return ex->arrival_us;
}

void http_set_context(struct http_exchange *ex, void *context)
{
    ex->context = context;
}

void *http_context(const struct http_exchange *ex)
{
    return ex->context;
}

int http_status(const struct http_exchange *ex)
{
    return ex->status;
}

/* ---- the response ---- */

void http_add_header(struct http_exchange *ex, const char *name, const char *value)
{
    size_t before = ex->headers.len;

    if (ex->phase == OVER || strpbrk(value, "\r\n"))
        return;
    ASSERT(ex->phase == WAITING);
    if (buffer_append(&ex->headers, name, strlen(name) + 1) == 0 &&
        buffer_append(&ex->headers, value, strlen(value) + 1))
        ex->headers.len = before; /* no name without its value */
}

static void begin(struct http_exchange *ex, int status, const char *content_type,
                  enum http_phase phase)
{
    ASSERT(ex->phase == WAITING);
    if (content_type)
        http_add_header(ex, "Content-Type", content_type);
    ex->status = status;
    ex->is_stream = phase == STREAMING;
    ex->phase = phase;
    http_wake(ex);
}

void http_respond(struct http_exchange *ex, int status, const char *content_type, const void *body,
                  size_t len)
{
    if (ex->phase == OVER)
        return;
    ex->out.max = SIZE_MAX / 2; /* the bound is for streams: this body is there anyway */
    buffer_append(&ex->out, body, len);
    begin(ex, status, content_type, ENDED);
}

void http_stream_start(struct http_exchange *ex, int status, const char *content_type)
{
    if (ex->phase == OVER)
        return;
    begin(ex, status, content_type, STREAMING);
}

int http_stream_write(struct http_exchange *ex, const void *data, size_t len)
{
    if (ex->phase == OVER || ex->gone)
        return -1;
    ASSERT(ex->phase == STREAMING);
    if (buffer_append(&ex->out, data, len)) {
        http_drop(ex);
        return -1;
    }
    http_wake(ex);
    return 0;
}

static void finish_stream(struct http_exchange *ex, enum http_phase phase)
{
    if (ex->phase == OVER)
        return;
    ASSERT(ex->phase == STREAMING);
    ex->phase = phase;
    http_wake(ex);
}

void http_stream_end(struct http_exchange *ex)
{
    finish_stream(ex, ENDED);
}

void http_stream_abort(struct http_exchange *ex)
{
    finish_stream(ex, ABORTED);
}
