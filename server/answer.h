/* Where an answer goes: to an HTTP exchange, a line of a batch file, a part of a larger answer. */
#pragma once

#include "server/http.h"

#include <stddef.h>
#include <stdint.h>

/* The meaning is that of the http_* functions of the same names. */
struct answer_ops {
    void (*add_header)(void *to, const char *name, const char *value);
    void (*respond)(void *to, int status, const char *content_type, const void *body, size_t len);
    void (*stream_start)(void *to, int status, const char *content_type);
    int (*stream_write)(void *to, const void *data, size_t len);
    void (*stream_end)(void *to);
    void (*stream_abort)(void *to);
};

struct answer {
    const struct answer_ops *ops;
    void *to;
    int64_t arrival_us; /* clock_us when the request came */
};

struct answer answer_to_http(struct http_exchange *ex);
