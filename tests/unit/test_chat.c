/* The built-in chat format: where messages and markers go, and what is refused; and that prompts
 * are those of the demo model's template, on the conversations of tests/vectors/chat.json (rendered
 * by make_chat.py beside it). Run from the repository's root. */
#include "tests/unit/folder.h"
#include "tests/unit/unit.h"

#include "base/buffer.h"
#include "base/json.h"
#include "model/chat.h"

#include <stdio.h>
#include <string.h>

/* A tokenizer of single letters with the markers of the format: user and tool markers as given. */
static struct tokenizer *load_letters(const char *user, const char *tool_begin)
{
    const char *const markers[] = {
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        user,
        "<｜Assistant｜>",
        tool_begin,
        "<｜tool▁output▁end｜>",
        "<a>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    };
    static const char *const letters[] = {"a", "b", "c", "Ċ", "<", "/",
                                          "t", "h", "i", "n", "k", ">"};
    char dir[FOLDER_PATH_BYTES];
    struct buffer text;
    struct error err = {""};

    buffer_init(&text, 1 << 16);
    buffer_append_str(&text, "{\"added_tokens\":[");
    for (int i = 0; i < 12; i++)
        buffer_printf(&text, "%s{\"id\":%d,\"content\":\"%s\",\"normalized\":false}", i ? "," : "",
                      i + 1, markers[i]);
    buffer_append_str(&text, "],\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{");
    for (int i = 0; i < 12; i++)
        buffer_printf(&text, "%s\"%s\":%d", i ? "," : "", letters[i], 20 + i);
    buffer_append_str(&text, "}},\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{"
                             "\"type\":\"ByteLevel\",\"add_prefix_space\":false}}");
    folder_make(dir);
    folder_write_text(dir, "tokenizer.json", text.data);
    struct tokenizer *tok = tokenizer_load(dir, &err);
    ck_assert_msg(tok != NULL, "%s", err.message);
    folder_remove(dir);
    buffer_free(&text);
    return tok;
}

static struct tokenizer *load_good(void)
{
    return load_letters("<｜User｜>", "<｜tool▁output▁begin｜>");
}

/* The prompt of messages given as role, content, role, content, ..., NULL: "1 3 20", or the error.
 */
static const char *prompt_of(const struct tokenizer *tok, struct chat_options options,
                             const char *const *texts)
{
    static char written[1024];
    struct chat_message messages[8];
    struct token_list ids;
    struct error err;
    size_t count = 0, at = 0;

    for (; texts[2 * count]; count++)
        messages[count] =
            (struct chat_message){.role = texts[2 * count], .content = texts[2 * count + 1]};
    token_list_init(&ids, 50);
    if (chat_encode(tok, messages, count, options, &ids, &err)) {
        snprintf(written, sizeof(written), "%s", err.message);
    } else {
        for (size_t i = 0; i < ids.len; i++)
            at +=
                (size_t)snprintf(written + at, sizeof(written) - at, i ? " %d" : "%d", ids.ids[i]);
    }
    token_list_free(&ids);
    return written;
}

#define PROMPT(tok, options, ...) prompt_of(tok, options, (const char *const[]){__VA_ARGS__, NULL})

static const struct chat_options PLAIN, REPLY = {.add_generation_prompt = true};
static const struct chat_options RESUME = {.continue_final_message = true};

START_TEST(test_a_question_asks_for_an_answer)
{
    struct tokenizer *tok = load_good();

    ck_assert_str_eq(PROMPT(tok, REPLY, "user", "ab"), "1 3 20 21 4");
    ck_assert_str_eq(PROMPT(tok, PLAIN, "user", "ab"), "1 3 20 21");
    ck_assert_str_eq(PROMPT(tok, PLAIN, "user", ""), "1 3");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_system_texts_stand_in_front_wherever_they_came)
{
    struct tokenizer *tok = load_good();

    ck_assert_str_eq(PROMPT(tok, PLAIN, "system", "a", "user", "b", "developer", "c"),
                     "1 20 23 23 22 3 21");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_answers_end_and_lose_their_reasoning)
{
    struct tokenizer *tok = load_good();

    ck_assert_str_eq(PROMPT(tok, PLAIN, "user", "a", "assistant", "b"), "1 3 20 4 21 2");
    ck_assert_str_eq(PROMPT(tok, PLAIN, "assistant", "aa</think>b</think>c"),
                     "1 4 21 24 25 26 27 28 29 30 31 22 2");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_tool_output_is_enclosed)
{
    struct tokenizer *tok = load_good();

    ck_assert_str_eq(PROMPT(tok, REPLY, "tool", "a"), "1 5 20 6 4");
    tokenizer_free(tok);
}
END_TEST

/* The prompt of one assistant's message with these calls (JSON), under the options. */
static const char *prompt_of_calls(const struct tokenizer *tok, struct chat_options options,
                                   const char *content, const char *calls)
{
    static char written[1024];
    struct error err = {""};
    struct json *value = json_parse(calls, strlen(calls), &err);
    struct chat_message message = {"assistant", content, value};
    struct token_list ids;
    size_t at = 0;

    ck_assert_msg(value != NULL, "%s", err.message);
    token_list_init(&ids, 50);
    if (chat_encode(tok, &message, 1, options, &ids, &err))
        snprintf(written, sizeof(written), "%s", err.message);
    for (size_t i = 0; !err.message[0] && i < ids.len; i++)
        at += (size_t)snprintf(written + at, sizeof(written) - at, i ? " %d" : "%d", ids.ids[i]);
    token_list_free(&ids);
    json_free(value);
    return written;
}

START_TEST(test_calls_stand_between_their_markers)
{
    struct tokenizer *tok = load_good();

    ck_assert_str_eq(
        prompt_of_calls(tok, PLAIN, "a", "[{\"function\":{\"name\":\"b\",\"arguments\":\"c\"}}]"),
        "1 4 20 8 10 21 12 22 11 9 2");
    ck_assert_str_eq(prompt_of_calls(tok, PLAIN, NULL,
                                     "[{\"function\":{\"name\":\"b\",\"arguments\":\"\"}},"
                                     "{\"function\":{\"name\":\"<a>\",\"arguments\":\"c\"}}]"),
                     "1 4 8 10 21 12 11 10 24 20 31 12 22 11 9 2");
    ck_assert_str_eq(prompt_of_calls(tok, PLAIN, "a", "[]"), "1 4 20 2");
    ck_assert_str_eq(prompt_of_calls(tok, PLAIN, "a", "null"), "1 4 20 2");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_calls_that_lack_a_part_are_refused)
{
    static const char *const bad[] = {"[1]", "[{\"function\":{\"arguments\":\"\"}}]",
                                      "[{\"function\":{\"name\":1,\"arguments\":\"\"}}]",
                                      "[{\"function\":{\"name\":\"b\"}}]"};
    struct tokenizer *tok = load_good();

    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        ck_assert_ptr_nonnull(strstr(prompt_of_calls(tok, PLAIN, "a", bad[i]), "\"tool_calls\""));
    ck_assert_ptr_nonnull(strstr(
        prompt_of_calls(tok, RESUME, "a", "[{\"function\":{\"name\":\"b\",\"arguments\":\"\"}}]"),
        "without tool_calls"));
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_tools_that_lack_a_part_are_refused)
{
    static const char *const bad[] = {"[1]", "[{\"name\":\"a\"}]", "[{\"function\":{}}]",
                                      "[{\"function\":{\"name\":\"a\",\"description\":3}}]"};
    struct tokenizer *tok = load_good();
    const char *const texts[] = {"user", "a", NULL};
    struct error err;

    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct json *tools = json_parse(bad[i], strlen(bad[i]), &err);
        struct chat_options options = {.tools = tools};
        ck_assert_ptr_nonnull(strstr(prompt_of(tok, options, texts), "tool"));
        json_free(tools);
    }
    tokenizer_free(tok);
}
END_TEST

/* Whether the prompt of a conversation is its rendered text encoded as one string. */
static void check_case(const struct tokenizer *tok, const struct json *rendered_case)
{
    const struct json *list = json_get(rendered_case, "messages");
    const char *rendered = json_string(json_get(rendered_case, "rendered"));
    struct chat_options options = {
        .add_generation_prompt = json_bool(json_get(rendered_case, "add_generation_prompt")),
        .tools = json_get(rendered_case, "tools"),
    };
    struct chat_message messages[8];
    struct token_list got, expected;
    struct error err;
    size_t count = 0;

    for (const struct json *m = json_first(list); m; m = json_next(m)) {
        const struct json *content = json_get(m, "content");
        ck_assert_uint_lt(count, 8);
        messages[count++] = (struct chat_message){
            .role = json_string(json_get(m, "role")),
            .content = json_is(content, JSON_STRING) ? json_string(content) : NULL,
            .tool_calls = json_get(m, "tool_calls"),
        };
    }
    token_list_init(&got, 1 << 16);
    token_list_init(&expected, 1 << 16);
    ck_assert_int_eq(
        tokenizer_encode(tok, rendered, strlen(rendered), ENCODE_WITH_SPECIALS, &expected, &err),
        0);
    ck_assert_msg(chat_encode(tok, messages, count, options, &got, &err) == 0, "%s", err.message);
    ck_assert_msg(got.len == expected.len &&
                      memcmp(got.ids, expected.ids, got.len * sizeof(*got.ids)) == 0,
                  "the prompt is not %s", rendered);
    token_list_free(&got);
    token_list_free(&expected);
}

START_TEST(test_prompts_equal_the_rendered_template)
{
    struct error err;
    struct tokenizer *tok = tokenizer_load("model/demo", &err);
    struct json *cases = json_parse_file("tests/vectors/chat.json", 1 << 24, &err);

    ck_assert_msg(tok && cases, "%s", err.message);
    ck_assert_uint_ge(json_count(cases), 200);
    for (const struct json *c = json_first(cases); c; c = json_next(c))
        check_case(tok, c);
    json_free(cases);
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_function_without_parameters_has_an_empty_schema)
{
    static const char brief[] = "[{\"function\":{\"name\":\"a\"}}]";
    static const char full[] = "[{\"function\":{\"name\":\"a\",\"description\":null,"
                               "\"parameters\":{}}}]";
    struct error err;
    struct tokenizer *tok = tokenizer_load("model/demo", &err);
    struct json *tools[] = {json_parse(brief, strlen(brief), &err),
                            json_parse(full, strlen(full), &err)};
    struct token_list ids[2];

    for (int i = 0; i < 2; i++) {
        struct chat_options options = {.tools = tools[i]};
        token_list_init(&ids[i], 1 << 16);
        ck_assert_int_eq(chat_encode(tok, NULL, 0, options, &ids[i], &err), 0);
    }
    ck_assert_uint_gt(ids[0].len, 50);
    ck_assert_uint_eq(ids[0].len, ids[1].len);
    ck_assert_mem_eq(ids[0].ids, ids[1].ids, ids[0].len * sizeof(int32_t));
    for (int i = 0; i < 2; i++) {
        token_list_free(&ids[i]);
        json_free(tools[i]);
    }
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_json_is_written_as_python_does)
{
    static const char text[] = "{\"b\":[1,2.50,-0,1e-5,1e21,0.1,123456789012345],\"a\":{},"
                               "\"\\u00e9\":[true,null,\"\\b\\f\\u0001\\u007f/\"],\"c\":[]}";
    struct error err;
    struct json *value = json_parse(text, strlen(text), &err);
    struct buffer out;

    buffer_init(&out, 1 << 10);
    json_write_python(&out, value);
    ck_assert_str_eq(out.data,
                     "{\"b\": [1, 2.5, 0, 1e-05, 1e+21, 0.1, 123456789012345], \"a\": {}, "
                     "\"é\": [true, null, \"\\b\\f\\u0001\x7f/\"], \"c\": []}");
    buffer_free(&out);
    json_free(value);
}
END_TEST

START_TEST(test_final_message_can_be_left_open)
{
    struct tokenizer *tok = load_good();

    ck_assert_str_eq(PROMPT(tok, RESUME, "assistant", "a", "assistant", "b"), "1 4 20 2 4 21");
    ck_assert_ptr_nonnull(strstr(PROMPT(tok, RESUME, "user", "a"), "\"assistant\""));
    ck_assert_ptr_nonnull(
        strstr(PROMPT(tok, RESUME, "assistant", "a", "user", "b"), "\"assistant\""));
    struct chat_options both = {.add_generation_prompt = true, .continue_final_message = true};
    const char *const texts[] = {"assistant", "a", NULL};
    ck_assert_ptr_nonnull(strstr(prompt_of(tok, both, texts), "exclude each other"));
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_markers_in_contents_stay_text)
{
    struct tokenizer *tok = load_good();

    ck_assert_int_eq(tokenizer_id(tok, "<a>"), 7);
    ck_assert_str_eq(PROMPT(tok, PLAIN, "user", "<a>"), "1 3 24 20 31");
    ck_assert_str_eq(PROMPT(tok, PLAIN, "system", "<a>"), "1 24 20 31");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_unknown_role_is_named)
{
    struct tokenizer *tok = load_good();

    ck_assert_ptr_nonnull(strstr(PROMPT(tok, PLAIN, "user", "a", "critic", "b"), "\"critic\""));
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_bound_of_the_prompt)
{
    struct tokenizer *tok = load_good();

    ck_assert_ptr_nonnull(strstr(
        PROMPT(tok, PLAIN, "user", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        "more than 50 tokens"));
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_format_needs_its_markers)
{
    struct tokenizer *tok = load_good();
    struct tokenizer *without = load_letters("<user>", "<｜tool▁output▁begin｜>");
    struct tokenizer *no_tools = load_letters("<｜User｜>", "<tool>");

    ck_assert(chat_supported(tok));
    ck_assert(!chat_supported(without));
    ck_assert(chat_supported(no_tools));
    ck_assert_ptr_nonnull(
        strstr(PROMPT(no_tools, PLAIN, "tool", "a"), "no token <｜tool▁output▁begin｜>"));
    tokenizer_free(no_tools);
    tokenizer_free(without);
    tokenizer_free(tok);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_a_question_asks_for_an_answer);
    tcase_add_test(tcase, test_system_texts_stand_in_front_wherever_they_came);
    tcase_add_test(tcase, test_answers_end_and_lose_their_reasoning);
    tcase_add_test(tcase, test_tool_output_is_enclosed);
    tcase_add_test(tcase, test_calls_stand_between_their_markers);
    tcase_add_test(tcase, test_calls_that_lack_a_part_are_refused);
    tcase_add_test(tcase, test_tools_that_lack_a_part_are_refused);
    tcase_add_test(tcase, test_prompts_equal_the_rendered_template);
    tcase_add_test(tcase, test_function_without_parameters_has_an_empty_schema);
    tcase_add_test(tcase, test_json_is_written_as_python_does);
    tcase_add_test(tcase, test_final_message_can_be_left_open);
    tcase_add_test(tcase, test_markers_in_contents_stay_text);
    tcase_add_test(tcase, test_unknown_role_is_named);
    tcase_add_test(tcase, test_bound_of_the_prompt);
    tcase_add_test(tcase, test_format_needs_its_markers);
}

UNIT_MAIN("chat", add_tests)
