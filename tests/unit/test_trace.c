/* Traces: which traceparent headers are taken, and that spans are the JSON that OTLP wants. */
#include "base/json.h"
#include "server/trace.h"
#include "tests/unit/unit.h"

#include <string.h>

#define TRACE  "4bf92f3577b34da6a3ce929d0e0e4736"
#define PARENT "00f067aa0ba902b7"

static const struct {
    const char *header;
    bool taken, sampled;
} headers[] = {
    {"00-" TRACE "-" PARENT "-01", true, true},
    {"00-" TRACE "-" PARENT "-00", true, false},
    {"00-" TRACE "-" PARENT "-03", true, true},
    {"00-" TRACE "-" PARENT "-fb", true, true},
    {"00-" TRACE "-" PARENT "-fe", true, false},
    {"cc-" TRACE "-" PARENT "-01", true, true},
    {"cc-" TRACE "-" PARENT "-01-what-the-future-brings", true, true},
    {NULL, false, true},
    {"", false, true},
    {"00", false, true},
    {"00-" TRACE "-" PARENT "-0", false, true},
    {"00-" TRACE "-" PARENT "-01-", false, true},
    {"cc-" TRACE "-" PARENT "-01.", false, true},
    {"ff-" TRACE "-" PARENT "-01", false, true},
    {"0g-" TRACE "-" PARENT "-01", false, true},
    {"00-" TRACE "-" PARENT "-0x", false, true},
    {"00-4BF92F3577B34DA6A3CE929D0E0E4736-" PARENT "-01", false, true},
    {"00-00000000000000000000000000000000-" PARENT "-01", false, true},
    {"00-" TRACE "-0000000000000000-01", false, true},
    {"00-" TRACE "_" PARENT "-01", false, true},
    {"00 " TRACE "-" PARENT "-01", false, true},
};

START_TEST(test_a_good_header_is_taken_and_no_other)
{
    struct trace_context context;

    ck_assert_int_eq(trace_context_begin(&context, headers[_i].header), headers[_i].taken);
    ck_assert_int_eq(context.sampled, headers[_i].sampled);
    ck_assert_uint_eq(strlen(context.trace_id), 32);
    ck_assert_uint_eq(strlen(context.span_id), 16);
    ck_assert_int_eq(strcmp(context.trace_id, TRACE) == 0, headers[_i].taken);
    ck_assert_str_eq(context.parent_id, headers[_i].taken ? PARENT : "");
    ck_assert_str_ne(context.span_id, PARENT);
}
END_TEST

START_TEST(test_ids_are_new_each_time)
{
    struct trace_context one, other;

    trace_context_begin(&one, NULL);
    trace_context_begin(&other, NULL);
    ck_assert_str_ne(one.trace_id, other.trace_id);
    ck_assert_str_ne(one.span_id, other.span_id);
}
END_TEST

static const struct json *attribute(const struct json *span, const char *key)
{
    for (const struct json *a = json_first(json_get(span, "attributes")); a; a = json_next(a))
        if (strcmp(json_string(json_get(a, "key")), key) == 0)
            return json_get(a, "value");
    ck_abort_msg("no attribute %s", key);
}

static struct json *span_with(const struct trace_context *context, const char *error)
{
    const char *reasons[] = {"stop", "length"};
    struct buffer out;
    struct error err;

    buffer_init(&out, 1 << 16);
    span_begin(&out, context, "a \"name\"", 1700000000000001, 1700000000000002);
    span_add_text(&out, "text", "line\nbreak [");
    span_add_text(&out, "nothing", NULL);
    span_add_texts(&out, "texts", reasons, 2);
    span_add_texts(&out, "none", reasons, 0);
    span_add_integer(&out, "integer", INT64_MIN);
    span_add_number(&out, "number", 0.25);
    span_add_bool(&out, "bool", true);
    span_end(&out, error);
    struct json *span = json_parse(out.data, out.len, &err);
    ck_assert_msg(span != NULL, "%s: %s", span ? "" : err.message, out.data);
    buffer_free(&out);
    return span;
}

START_TEST(test_a_span_is_json_as_otlp_has_it)
{
    struct trace_context context;

    trace_context_begin(&context, "00-" TRACE "-" PARENT "-01");
    struct json *span = span_with(&context, NULL);
    ck_assert_str_eq(json_string(json_get(span, "traceId")), TRACE);
    ck_assert_str_eq(json_string(json_get(span, "parentSpanId")), PARENT);
    ck_assert_str_eq(json_string(json_get(span, "name")), "a \"name\"");
    ck_assert_str_eq(json_string(json_get(span, "startTimeUnixNano")), "1700000000000001000");
    ck_assert_uint_eq(json_count(json_get(span, "attributes")), 6);
    ck_assert_str_eq(json_string(json_get(attribute(span, "text"), "stringValue")),
                     "line\nbreak [");
    ck_assert_str_eq(json_string(json_get(attribute(span, "integer"), "intValue")),
                     "-9223372036854775808");
    ck_assert(json_number(json_get(attribute(span, "number"), "doubleValue")) == 0.25);
    ck_assert(json_bool(json_get(attribute(span, "bool"), "boolValue")));
    const struct json *texts = json_get(attribute(span, "texts"), "arrayValue");
    ck_assert_uint_eq(json_count(json_get(texts, "values")), 2);
    ck_assert(!json_get(span, "status"));
    json_free(span);
}
END_TEST

START_TEST(test_a_failed_span_says_so_and_a_root_has_no_parent)
{
    struct trace_context context;
    int64_t code;

    trace_context_begin(&context, NULL);
    struct json *span = span_with(&context, "500");
    ck_assert(json_integer(json_get(json_get(span, "status"), "code"), &code));
    ck_assert_int_eq(code, 2);
    ck_assert(!json_get(span, "parentSpanId"));
    json_free(span);
}
END_TEST

static void add_cases(TCase *tcase)
{
    tcase_add_loop_test(tcase, test_a_good_header_is_taken_and_no_other, 0,
                        sizeof(headers) / sizeof(headers[0]));
    tcase_add_test(tcase, test_ids_are_new_each_time);
    tcase_add_test(tcase, test_a_span_is_json_as_otlp_has_it);
    tcase_add_test(tcase, test_a_failed_span_says_so_and_a_root_has_no_parent);
}

UNIT_MAIN("trace", add_cases)
