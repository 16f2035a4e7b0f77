#include "server/trace.h"

#include "base/clock.h"
#include "base/json.h"

#include <stdio.h>
#include <string.h>

enum { TRACE_ID_HEX = 32, SPAN_ID_HEX = 16, SPAN_KIND_SERVER = 2, STATUS_ERROR = 2 };

/* ---- context ------------------------------------------------------------------------------ */

static bool is_hex(const char *text, size_t len)
{
    return strspn(text, "0123456789abcdef") >= len;
}

static bool is_zero(const char *text, size_t len)
{
    return strspn(text, "0") >= len;
}

/* "00-" TRACE-ID "-" PARENT-ID "-" FLAGS; later versions may have more behind another "-". */
static bool parse_traceparent(struct trace_context *context, const char *text)
{
    enum { TRACE_AT = 3, PARENT_AT = 36, FLAGS_AT = 53, LENGTH = 55 };
    size_t len = text ? strlen(text) : 0;

    if (len < LENGTH || text[2] != '-' || text[PARENT_AT - 1] != '-' || text[FLAGS_AT - 1] != '-')
        return false;
    bool first_version = strncmp(text, "00", 2) == 0;
    if (!is_hex(text, 2) || strncmp(text, "ff", 2) == 0)
        return false;
    if (len > LENGTH && (first_version || text[LENGTH] != '-'))
        return false;
    if (!is_hex(text + TRACE_AT, TRACE_ID_HEX) || is_zero(text + TRACE_AT, TRACE_ID_HEX) ||
        !is_hex(text + PARENT_AT, SPAN_ID_HEX) || is_zero(text + PARENT_AT, SPAN_ID_HEX) ||
        !is_hex(text + FLAGS_AT, 2))
        return false;
    memcpy(context->trace_id, text + TRACE_AT, TRACE_ID_HEX);
    memcpy(context->parent_id, text + PARENT_AT, SPAN_ID_HEX);
    char flags = text[FLAGS_AT + 1];
    context->sampled = (flags <= '9' ? flags - '0' : flags - 'a' + 10) & 1;
    return true;
}

/* Ids of zeros only mean "none". */
static void make_id(char out[SPAN_ID_HEX + 1])
{
    uint64_t id = clock_entropy();

    snprintf(out, SPAN_ID_HEX + 1, "%016llx", (unsigned long long)(id ? id : 1));
}

bool trace_context_begin(struct trace_context *context, const char *traceparent)
{
    *context = (struct trace_context){.sampled = true};
    make_id(context->span_id);
    if (parse_traceparent(context, traceparent))
        return true;
    make_id(context->trace_id);
    make_id(context->trace_id + SPAN_ID_HEX);
    return false;
}

/* ---- spans -------------------------------------------------------------------------------- */

void span_begin(struct buffer *out, const struct trace_context *context, const char *name,
                int64_t start_us, int64_t end_us)
{
    buffer_printf(out, "{\"traceId\":\"%s\",\"spanId\":\"%s\",", context->trace_id,
                  context->span_id);
    if (*context->parent_id)
        buffer_printf(out, "\"parentSpanId\":\"%s\",", context->parent_id);
    buffer_append_str(out, "\"name\":");
    json_write_string(out, name, -1);
    /* OTLP's JSON has 64-bit integers as strings. */
    buffer_printf(out,
                  ",\"kind\":%d,\"startTimeUnixNano\":\"%lld000\",\"endTimeUnixNano\":\"%lld000\","
                  "\"attributes\":[",
                  SPAN_KIND_SERVER, (long long)start_us, (long long)end_us);
}

static void write_key(struct buffer *out, const char *key)
{
    bool first = out->len && out->data[out->len - 1] == '[';

    buffer_printf(out, "%s{\"key\":\"%s\",\"value\":", first ? "" : ",", key);
}

static void write_text(struct buffer *out, const char *value)
{
    buffer_append_str(out, "{\"stringValue\":");
    json_write_string(out, value, -1);
    buffer_append_str(out, "}");
}

void span_add_text(struct buffer *out, const char *key, const char *value)
{
    if (!value)
        return;
    write_key(out, key);
    write_text(out, value);
    buffer_append_str(out, "}");
}

void span_add_texts(struct buffer *out, const char *key, const char *const *values, int n)
{
    write_key(out, key);
    buffer_append_str(out, "{\"arrayValue\":{\"values\":[");
    for (int i = 0; i < n; i++) {
        buffer_append_str(out, i ? "," : "");
        write_text(out, values[i]);
    }
    buffer_append_str(out, "]}}}");
}

void span_add_integer(struct buffer *out, const char *key, int64_t value)
{
    write_key(out, key);
    buffer_printf(out, "{\"intValue\":\"%lld\"}}", (long long)value);
}

void span_add_number(struct buffer *out, const char *key, double value)
{
    write_key(out, key);
    buffer_append_str(out, "{\"doubleValue\":");
    json_write_number(out, value);
    buffer_append_str(out, "}}");
}

void span_add_bool(struct buffer *out, const char *key, bool value)
{
    write_key(out, key);
    buffer_printf(out, "{\"boolValue\":%s}}", value ? "true" : "false");
}

void span_end(struct buffer *out, const char *error)
{
    buffer_append_str(out, "]");
    if (error) {
        buffer_printf(out, ",\"status\":{\"code\":%d,\"message\":", STATUS_ERROR);
        json_write_string(out, error, -1);
        buffer_append_str(out, "}");
    }
    buffer_append_str(out, "}");
}
