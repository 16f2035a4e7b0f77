#include "server/request_log.h"

#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPAN_MAX = 16 * 1024, PATH_SHOWN = 200, STATUS_GONE = 499 };

static struct generation_summary summary_of(const struct request_record *record)
{
    struct generation_summary summary = {0};

    if (record->generation)
        generation_summarize(record->generation, &summary);
    return summary;
}

/* One line for each request: who, what, how it ended, how long it took, tokens in and out. */
void request_log_access(const struct http_exchange *ex, const struct request_record *record)
{
    const struct generation_summary summary = summary_of(record);
    const char *trace = http_header(ex, "traceparent");
    const char *amazon = http_header(ex, "X-Amzn-Trace-Id");
    bool gone = record->how == HTTP_CLIENT_GONE;
    double ms = (double)(clock_us() - http_arrival_us(ex)) * 1e-3;
    char path[PATH_SHOWN + 1];

    snprintf(path, sizeof(path), "%s", http_path(ex));
    const struct log_field fields[] = {
        {"request_id", record->request_id, 0},
        {"trace_id", record->trace->trace_id, 0},
        {"span_id", record->trace->span_id, 0},
        {"peer", http_peer(ex), 0},
        {"user", record->user, 0},
        {"method", http_method(ex), 0},
        {"path", path, 0},
        {"status", NULL, http_status(ex)},
        {"client_gone", NULL, gone},
        {"duration_ms", NULL, ms},
        {"prompt_tokens", NULL, summary.prompt_tokens},
        {"completion_tokens", NULL, summary.completion_tokens},
        {"amzn_trace_id", amazon, 0},
    };
    int n = (int)(sizeof(fields) / sizeof(fields[0])) - !amazon;

    trace = trace ? trace : amazon ? amazon : "-";
    log_record(LOG_INFO, fields, n,
               "%s %s \"%s %s\" %d%s %.1f ms, %d+%d tokens, id %s, trace %.200s", http_peer(ex),
               record->user, http_method(ex), path, http_status(ex), gone ? " (client gone)" : "",
               ms, summary.prompt_tokens, summary.completion_tokens, record->request_id, trace);
}

/* Names of OpenTelemetry's conventions for generative AI, and vLLM's where those have none. */
static void add_generation(struct buffer *span, const struct generation_summary *summary)
{
    span_add_text(span, "gen_ai.response.id", summary->id);
    span_add_bool(span, "gen_ai.request.stream", summary->stream);
    span_add_integer(span, "gen_ai.request.choice.count", summary->n);
    span_add_number(span, "gen_ai.request.temperature", summary->temperature);
    span_add_number(span, "gen_ai.request.top_p", summary->top_p);
    if (summary->max_tokens >= 0)
        span_add_integer(span, "gen_ai.request.max_tokens", summary->max_tokens);
    span_add_integer(span, "gen_ai.usage.input_tokens", summary->prompt_tokens);
    span_add_integer(span, "gen_ai.usage.output_tokens", summary->completion_tokens);
    span_add_integer(span, "gen_ai.usage.cache_read.input_tokens", summary->cached_tokens);
    span_add_integer(span, "gen_ai.usage.reasoning.output_tokens", summary->reasoning_tokens);
    span_add_texts(span, "gen_ai.response.finish_reasons", summary->finish_reasons,
                   summary->n_finish_reasons);
    if (summary->queue_us >= 0)
        span_add_number(span, "gen_ai.latency.time_in_queue", (double)summary->queue_us * 1e-6);
    if (summary->first_token_us >= 0)
        span_add_number(span, "gen_ai.latency.time_to_first_token",
                        (double)summary->first_token_us * 1e-6);
}

void request_log_span(struct otlp *otlp, const struct http_exchange *ex,
                      const struct request_record *record)
{
    const struct generation_summary summary = summary_of(record);
    const char *operation = summary.kind == API_CHAT ? "chat" : "text_completion";
    int64_t end_us = clock_unix_us(), start_us = end_us - (clock_us() - http_arrival_us(ex));
    bool gone = record->how == HTTP_CLIENT_GONE;
    int status = gone && http_status(ex) == 0 ? STATUS_GONE : http_status(ex);
    char name[256], code[16];
    struct buffer span;

    if (!record->trace->sampled)
        return;
    if (record->generation)
        snprintf(name, sizeof(name), "%s %s", operation, record->model);
    else
        snprintf(name, sizeof(name), "%s %s", http_method(ex), http_path(ex));
    snprintf(code, sizeof(code), "%d", status);
    const char *error = gone ? "client_gone" : status >= 400 ? code : NULL;

    buffer_init(&span, SPAN_MAX);
    span_begin(&span, record->trace, name, start_us, end_us);
    span_add_text(&span, "http.request.method", http_method(ex));
    span_add_text(&span, "url.path", http_path(ex));
    span_add_integer(&span, "http.response.status_code", status);
    span_add_text(&span, "client.address", http_peer(ex));
    span_add_text(&span, "gen_ai.request.id", record->request_id);
    span_add_text(&span, "error.type", error);
    if (record->generation) {
        span_add_text(&span, "gen_ai.operation.name", operation);
        span_add_text(&span, "gen_ai.provider.name", "mlad");
        span_add_text(&span, "gen_ai.request.model", record->model);
        span_add_text(&span, "gen_ai.response.model", record->model);
        add_generation(&span, &summary);
        span_add_number(&span, "gen_ai.latency.e2e", (double)(end_us - start_us) * 1e-6);
    }
    /* By convention a client's mistake is no failure of the server's. */
    span_end(&span, status >= 500 ? code : NULL);
    otlp_submit(otlp, &span);
    buffer_free(&span);
}
