/* Text of a sequence as it streams: stop strings and held-back beginnings of them. */
#include "base/memory.h"
#include "server/text_stream.h"
#include "tests/unit/unit.h"

#include <string.h>

static struct tokenizer *tok;

static void load(void)
{
    struct error err;

    tok = tokenizer_load("model/demo", &err);
    ck_assert_msg(tok != NULL, "%s", tok ? "" : err.message);
}

static void unload(void)
{
    tokenizer_free(tok);
}

/* Streams `text` token by token; `out` gets what is released. Returns whether a stop came. After
 * each token, what is out must be a beginning of the final text. */
static bool stream(const char *text, const struct stop_strings *stops, struct buffer *out)
{
    struct token_list ids;
    struct text_stream ts;
    struct error err;
    bool stopped = false;

    buffer_clear(out);
    token_list_init(&ids, 4096);
    ck_assert_int_eq(tokenizer_encode(tok, text, strlen(text), ENCODE_TEXT_ONLY, &ids, &err), 0);
    text_stream_init(&ts, tok, stops, true);
    for (size_t i = 0; i < ids.len && !stopped; i++)
        stopped = text_stream_push(&ts, ids.ids[i], out);
    text_stream_finish(&ts, out);
    text_stream_free(&ts);
    token_list_free(&ids);
    return stopped;
}

static void check(const char *text, const char *stop1, const char *stop2, bool include,
                  bool want_stop, const char *want)
{
    struct stop_strings stops = {
        .text = {(char *)stop1, (char *)stop2}, .n = stop2 ? 2 : 1, .include = include};
    struct buffer out;

    buffer_init(&out, 1 << 16);
    ck_assert_int_eq(stream(text, &stops, &out), want_stop);
    ck_assert_str_eq(out.data ? out.data : "", want);
    buffer_free(&out);
}

START_TEST(test_text_ends_before_the_stop_string)
{
    check("one two three", "two", NULL, false, true, "one ");
    check("one two three", "two", NULL, true, true, "one two");
    check("one two three", "four", NULL, false, false, "one two three");
}
END_TEST

START_TEST(test_the_stop_string_that_ends_first_counts)
{
    check("abcdef", "def", "bc", false, true, "a");
    check("abcdef", "cd", "bcd", false, true, "a"); /* ending together: the longest */
}
END_TEST

START_TEST(test_a_stop_string_across_tokens_is_found)
{
    check("the sum is 579.\n\nNext question", ".\n\nNext q", NULL, false, true, "the sum is 579");
}
END_TEST

START_TEST(test_a_beginning_of_a_stop_string_is_given_back)
{
    check("aaab", "aaaa", NULL, false, false, "aaab");
    check("say STO", "STOP", NULL, false, false, "say STO"); /* held back, released at the end */
    check("aabaabaac", "aabaac", NULL, false, true, "aab");
}
END_TEST

START_TEST(test_a_stop_string_of_many_bytes_per_character)
{
    check("price 5\xE2\x82\xAC and \xF0\x9F\x98\x80 more", "\xF0\x9F\x98\x80", NULL, false, true,
          "price 5\xE2\x82\xAC and ");
}
END_TEST

/* Tokens that come before `min_tokens` end nothing; the text is then as long as it must be. */
START_TEST(test_a_stop_string_counts_from_min_tokens_on)
{
    struct stop_strings stops = {.text = {"a"}, .n = 1};
    struct text_stream ts;
    struct token_list a;
    struct buffer out;
    struct error err;
    int32_t n = 0;

    token_list_init(&a, 4);
    ck_assert_int_eq(tokenizer_encode(tok, "a", 1, ENCODE_TEXT_ONLY, &a, &err), 0);
    buffer_init(&out, 1 << 16);
    text_stream_init(&ts, tok, &stops, true);
    ts.min_tokens = 3;
    do
        n++;
    while (!text_stream_push(&ts, a.ids[0], &out));
    ck_assert_int_eq(n, 4);
    ck_assert_str_eq(out.data, "aaa");
    text_stream_free(&ts);
    token_list_free(&a);
    buffer_free(&out);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_checked_fixture(tcase, load, unload);
    tcase_add_test(tcase, test_text_ends_before_the_stop_string);
    tcase_add_test(tcase, test_the_stop_string_that_ends_first_counts);
    tcase_add_test(tcase, test_a_stop_string_across_tokens_is_found);
    tcase_add_test(tcase, test_a_beginning_of_a_stop_string_is_given_back);
    tcase_add_test(tcase, test_a_stop_string_of_many_bytes_per_character);
    tcase_add_test(tcase, test_a_stop_string_counts_from_min_tokens_on);
}

UNIT_MAIN("text_stream", add_tests)
