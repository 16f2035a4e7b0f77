/* HTTP/1.1 server on the event loop (libmicrohttpd inside, see http.c). Knows connections, bodies,
 * headers and byte streams; knows nothing of JSON, tokens or engines.
 *
 * An exchange is one request and its response. The handler is called once, when the whole body is
 * there, and answers at once or later, either with one body (http_respond) or with a stream
 * (http_stream_*). The exchange stays valid until `closed` was called for it: that happens exactly
 * once, after the response is sent or the client is gone. All calls are on the loop's thread. */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "server/loop.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct http_server;
struct http_exchange;
struct tls;

struct http_options {
    const char *host;    /* address or name to bind */
    int port;            /* 0: any free one, see http_port */
    int max_connections; /* past it new connections get 503 and are closed */
    size_t max_body;     /* bytes; past it 413 */
    size_t max_bodies;   /* bytes of all bodies together; past it large ones get 429 */
    size_t max_buffered; /* bytes waiting to be sent on one stream; past it the client is dropped */
    int idle_timeout_s;  /* of a kept-alive connection without a request: >= 75 behind an ALB */
    int read_timeout_s;  /* for a request's headers and body to arrive: 408 */
    struct tls *tls;     /* borrowed; NULL: plain HTTP */
};

/* Why an exchange ended: the response was sent (or aborted, where the application said so), or the
 * client closed or reset the connection or was dropped. A client that shuts down only its sending
 * side counts as gone unless it is answered at once. */
enum http_end { HTTP_COMPLETED, HTTP_CLIENT_GONE };

struct http_callbacks {
    void *arg;
    /* A request with its body is there. */
    void (*request)(void *arg, struct http_exchange *ex);
    /* The exchange is over; `ex` is invalid afterwards. Called also when the client vanished while
     * its response was pending (within milliseconds of the FIN or RST). Never called from inside a
     * function of this header but http_stop, which must not be called from a callback. */
    void (*closed)(void *arg, struct http_exchange *ex, enum http_end how);
    /* The server refuses a request by itself (413, 408, 429, 503, 400): writes the body to send for
     * `status` into `body` (NUL-terminated) and its content type is application/json. */
    void (*refusal)(void *arg, int status, char *body, size_t size);
    /* May be NULL. Everything that was written so far is with the sockets that take it. */
    void (*settled)(void *settled_arg);
    void *settled_arg;
};

/* Binds and starts serving on the loop. NULL and a message on error (port taken, ...). */
struct http_server *http_start(struct loop *loop, const struct http_options *options,
                               const struct http_callbacks *callbacks, struct error *err);

/* The port that is bound. */
int http_port(const struct http_server *server);

/* Stops accepting; open exchanges go on, and their responses carry "Connection: close". Idle
 * kept-alive connections are closed. */
void http_drain(struct http_server *server);

/* Exchanges whose response is not fully sent yet (from the request line on, so uploads count), and
 * open connections. */
int http_active(const struct http_server *server);
int http_connections(const struct http_server *server);

/* For metrics: bytes buffered for all streams, bytes of request bodies, and clients dropped for
 * reading too slowly. */
size_t http_buffered(const struct http_server *server);
size_t http_body_bytes(const struct http_server *server);
uint64_t http_dropped(const struct http_server *server);

/* Aborts what is still open, calls `closed` for each, and frees the server. */
void http_stop(struct http_server *server);

/* Reading a request. Strings live as long as the exchange. */
const char *http_method(const struct http_exchange *ex);
const char *http_path(const struct http_exchange *ex);                     /* without the query */
const char *http_header(const struct http_exchange *ex, const char *name); /* NULL: not there */
const char *http_query(const struct http_exchange *ex, const char *name);  /* NULL: not there */
const char *http_body(const struct http_exchange *ex, size_t *len);        /* "" when empty */

/* Moves the body out, for an application that reads it elsewhere. It goes on counting against
 * max_bodies until http_free_body; one that is not taken goes with its exchange. */
struct buffer http_take_body(struct http_exchange *ex);
void http_free_body(struct http_server *server, struct buffer *body);

const char *http_peer(const struct http_exchange *ex);   /* "127.0.0.1:4711" */
int64_t http_arrival_us(const struct http_exchange *ex); /* clock_us when its headers were read */

/* The application's own pointer on an exchange (NULL at first). */
void http_set_context(struct http_exchange *ex, void *context);
void *http_context(const struct http_exchange *ex);

/* The status it was answered with; 0 before. */
int http_status(const struct http_exchange *ex);

/* Adds a header to the response; before http_respond or http_stream_start. Copied. Values with CR,
 * LF or NUL are dropped. */
void http_add_header(struct http_exchange *ex, const char *name, const char *value);

/* Answers with a whole body (copied). */
void http_respond(struct http_exchange *ex, int status, const char *content_type, const void *body,
                  size_t len);

/* Answers with a chunked stream: start, any number of writes, then end or abort. The headers leave
 * at once. http_stream_write returns -1 when the client is gone or was dropped for reading too
 * slowly (then `closed` follows; more writes are ignored). */
void http_stream_start(struct http_exchange *ex, int status, const char *content_type);
int http_stream_write(struct http_exchange *ex, const void *data, size_t len);
void http_stream_end(struct http_exchange *ex);
void http_stream_abort(struct http_exchange *ex); /* the chunked body ends without its last chunk */

/* Many streams may be written in one go (a step's tokens): between these two calls nothing is sent,
 * and the second sends all at once. */
void http_batch_begin(struct http_server *server);
void http_batch_end(struct http_server *server);
