/* The assistant's message as it grows: ids of calls are the model's own, or made as its family's
 * templates want to see them again. */
#include "tests/unit/unit.h"

#include "base/json.h"
#include "server/message.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* The id of the only call of a text in this format. */
static void read_id(const char *format, const char *text, bool stream, char id[64])
{
    struct output_options options = {.parse_calls = true};
    struct message message;
    struct error err;

    message_init(&message, output_format_by_name(format), options, stream);
    message_push(&message, text, strlen(text), 1);
    message_finish(&message);
    ck_assert_int_eq(message.n_calls, 1);
    /* Of a stream the first entry has the id, those after it the arguments. */
    const char *end = strstr(message.calls.data, "}}") + 2;
    struct json *call = json_parse(message.calls.data, (size_t)(end - message.calls.data), &err);
    ck_assert_ptr_nonnull(call);
    snprintf(id, 64, "%s", json_string(json_get(call, "id")));
    json_free(call);
    message_free(&message);
}

static void check_id(const char *id, const char *prefix, size_t more)
{
    ck_assert_int_eq(strncmp(id, prefix, strlen(prefix)), 0);
    ck_assert_uint_eq(strlen(id), strlen(prefix) + more);
    for (id += strlen(prefix); *id; id++)
        ck_assert(isalnum((unsigned char)*id));
}

START_TEST(test_ids_of_calls)
{
    const char *const mistral = "[TOOL_CALLS]f[ARGS]{}";
    const char *const with_id = "[TOOL_CALLS]f[CALL_ID]a1B2c3D4e[ARGS]{}";
    char id[64], other[64];

    read_id("longcat", "<longcat_tool_call>{\"name\": \"f\"}</longcat_tool_call>", _i, id);
    check_id(id, "call_", 16);
    read_id("mistral", mistral, _i, id);
    check_id(id, "", 9);
    read_id("mistral", mistral, _i, other);
    ck_assert_str_ne(id, other);
    read_id("mistral", with_id, _i, id);
    ck_assert_str_eq(id, "a1B2c3D4e");
}
END_TEST

/* Whether the arguments of the text's call are still open, with the text in pieces of one byte. */
static bool leaves_call_open(const char *format, const char *text, bool stream)
{
    struct output_options options = {.parse_calls = true};
    struct message message;

    message_init(&message, output_format_by_name(format), options, stream);
    for (; *text; text++)
        message_push(&message, text, 1, 1);
    ck_assert_int_eq(message.n_calls, 1);
    bool open = message.call_open;
    message_finish(&message);
    ck_assert(!message.call_open);
    message_free(&message);
    return open;
}

START_TEST(test_a_call_is_open_until_its_arguments_end)
{
    ck_assert(leaves_call_open("mistral", "[TOOL_CALLS]f[ARGS]", _i));
    ck_assert(leaves_call_open("mistral", "[TOOL_CALLS]f[ARGS] {\"a\": {\"b\": \"}\"", _i));
    ck_assert(!leaves_call_open("mistral", "[TOOL_CALLS]f[ARGS] {\"a\": {\"b\": \"}\"}}", _i));
}
END_TEST

static void add_tests(TCase *t)
{
    tcase_add_loop_test(t, test_a_call_is_open_until_its_arguments_end, false, true + 1);
    tcase_add_loop_test(t, test_ids_of_calls, false, true + 1);
}

UNIT_MAIN("message", add_tests)
