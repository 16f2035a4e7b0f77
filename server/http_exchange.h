/* One request and its response: the half of http.h that knows no sockets and no libmicrohttpd.
 * Private to http.c and http_exchange.c. The state machine is drawn in http.c. */
#pragma once

#include "base/buffer.h"
#include "server/http.h"
#include "server/http_fields.h"

struct http_connection;

enum http_phase { READING, WAITING, STREAMING, ENDED, ABORTED, OVER };

struct http_exchange {
    struct http_server *server;
    struct http_connection *conn; /* NULL when OVER */
    enum http_phase phase;
    bool parked; /* its connection is suspended in libmicrohttpd */
    bool gone;   /* the client left, or was dropped */

    /* The request. */
    bool headers_read;
    bool bad_target; /* found in the request line, to be refused after the headers */
    char *method, *path;
    struct http_fields fields;
    struct buffer body;
    char peer[64];
    int64_t arrival_us;

    /* The response, from WAITING on. */
    int status;
    bool is_stream;
    struct buffer headers; /* "name\0value\0" ... */
    struct buffer out;     /* the body, or of a stream the bytes that are not taken yet */

    void *context;
    enum http_end end;          /* when OVER */
    struct http_exchange *next; /* in the list of those that are over */
};

struct http_exchange *http_exchange_new(struct http_server *server, struct http_connection *conn,
                                        const struct http_options *options, const char *peer);
void http_exchange_free(struct http_exchange *ex);

/* Moves up to `max` bytes of a stream to `out`; returns how many. */
size_t http_exchange_take(struct http_exchange *ex, char *out, size_t max);

/* What http.c does for an exchange that is not OVER: has libmicrohttpd come back to it after a
 * change, and gets rid of a client that reads too slowly. */
void http_wake(struct http_exchange *ex);

/* What bodies take together has changed by that many bytes. */
void http_count_body(struct http_server *server, ptrdiff_t bytes);

void http_drop(struct http_exchange *ex);
