/* What is told of a request when it is over: a line of the access log, a span of its trace. */
#pragma once

#include "server/generation.h"
#include "server/http.h"
#include "server/otlp.h"
#include "server/trace.h"

struct request_record {
    const char *request_id;
    const char *user; /* who asked, as a log may show it */
    const char *model;
    const struct trace_context *trace;
    const struct generation *generation; /* NULL: none */
    enum http_end how;
};

void request_log_access(const struct http_exchange *ex, const struct request_record *record);
void request_log_span(struct otlp *otlp, const struct http_exchange *ex,
                      const struct request_record *record);
