#include "server/answer.h"

static void add_header(void *to, const char *name, const char *value)
{
    http_add_header(to, name, value);
}

static void respond(void *to, int status, const char *content_type, const void *body, size_t len)
{
    http_respond(to, status, content_type, body, len);
}

static void stream_start(void *to, int status, const char *content_type)
{
    http_stream_start(to, status, content_type);
}

static int stream_write(void *to, const void *data, size_t len)
{
    return http_stream_write(to, data, len);
}

static void stream_end(void *to)
{
    http_stream_end(to);
}

static void stream_abort(void *to)
{
    http_stream_abort(to);
}

struct answer answer_to_http(struct http_exchange *ex)
{
    static const struct answer_ops ops = {add_header,   respond,    stream_start,
                                          stream_write, stream_end, stream_abort};

    return (struct answer){.ops = &ops, .to = ex, .arrival_us = http_arrival_us(ex)};
}
