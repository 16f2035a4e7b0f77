/* The built-in chat format: where messages and markers go, and what is refused. */
#include "tests/unit/folder.h"
#include "tests/unit/unit.h"

#include "base/buffer.h"
#include "model/chat.h"

#include <stdio.h>
#include <string.h>

/* A tokenizer of single letters with the markers of the format: user and tool markers as given. */
static struct tokenizer *load_letters(const char *user, const char *tool_begin)
{
    const char *const markers[] = {"<｜begin▁of▁sentence｜>",
                                   "<｜end▁of▁sentence｜>",
                                   user,
                                   "<｜Assistant｜>",
                                   tool_begin,
                                   "<｜tool▁output▁end｜>",
                                   "<a>"};
    static const char *const letters[] = {"a", "b", "c", "Ċ", "<", "/",
                                          "t", "h", "i", "n", "k", ">"};
    char dir[FOLDER_PATH_BYTES];
    struct buffer text;
    struct error err = {""};

    buffer_init(&text, 1 << 16);
    buffer_append_str(&text, "{\"added_tokens\":[");
    for (int i = 0; i < 7; i++)
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
        messages[count] = (struct chat_message){texts[2 * count], texts[2 * count + 1]};
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

static const struct chat_options PLAIN = {false, false}, REPLY = {true, false};
static const struct chat_options RESUME = {false, true};

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

START_TEST(test_final_message_can_be_left_open)
{
    struct tokenizer *tok = load_good();

    ck_assert_str_eq(PROMPT(tok, RESUME, "assistant", "a", "assistant", "b"), "1 4 20 2 4 21");
    ck_assert_ptr_nonnull(strstr(PROMPT(tok, RESUME, "user", "a"), "\"assistant\""));
    ck_assert_ptr_nonnull(
        strstr(PROMPT(tok, RESUME, "assistant", "a", "user", "b"), "\"assistant\""));
    struct chat_options both = {true, true};
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
    tcase_add_test(tcase, test_final_message_can_be_left_open);
    tcase_add_test(tcase, test_markers_in_contents_stay_text);
    tcase_add_test(tcase, test_unknown_role_is_named);
    tcase_add_test(tcase, test_bound_of_the_prompt);
    tcase_add_test(tcase, test_format_needs_its_markers);
}

UNIT_MAIN("chat", add_tests)
