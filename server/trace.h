/* Traces: where a request stands in its client's trace (W3C Trace Context), and a span of it as
 * OTLP writes it in JSON. Plain values; sending is otlp.h's. */
#pragma once

#include "base/buffer.h"

#include <stdbool.h>
#include <stdint.h>

/* Ids are lower-case hexadecimal. */
struct trace_context {
    char trace_id[33];
    char span_id[17];   /* of the request here */
    char parent_id[17]; /* of the client's span; empty: there is none */
    bool sampled;       /* false: the client records nothing of this trace */
};

/* Goes on with the trace that a "traceparent" header names; without one, or with one that is
 * malformed, a new trace begins. Returns whether the header was taken. */
bool trace_context_begin(struct trace_context *context, const char *traceparent);

/* A span as JSON: begin, attributes, end. Times are microseconds since the unix epoch. */
void span_begin(struct buffer *out, const struct trace_context *context, const char *name,
                int64_t start_us, int64_t end_us);
void span_add_text(struct buffer *out, const char *key, const char *value); /* NULL: left out */
void span_add_texts(struct buffer *out, const char *key, const char *const *values, int n);
void span_add_integer(struct buffer *out, const char *key, int64_t value);
void span_add_number(struct buffer *out, const char *key, double value);
void span_add_bool(struct buffer *out, const char *key, bool value);

/* `error` NULL: the status is left unset, which is what success has. */
void span_end(struct buffer *out, const char *error);
