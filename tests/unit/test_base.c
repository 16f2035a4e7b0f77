/* The helpers below everything: buffers, UTF-8, JSON, queues. */
#include "base/buffer.h"
#include "base/json.h"
#include "base/queue.h"
#include "base/siphash.h"
#include "base/utf8.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

START_TEST(test_buffer_keeps_its_bound)
{
    struct buffer buf;

    buffer_init(&buf, 10);
    ck_assert_int_eq(buffer_append_str(&buf, "12345"), 0);
    ck_assert_int_eq(buffer_printf(&buf, "%d", 67890), 0);
    ck_assert_int_eq(buffer_append_str(&buf, "x"), -1);
    ck_assert(buf.overflowed);
    ck_assert_int_eq(buffer_append_str(&buf, ""), -1); /* until it is cleared */
    ck_assert_str_eq(buf.data, "1234567890");
    buffer_clear(&buf);
    ck_assert_int_eq(buffer_append_str(&buf, "again"), 0);
    buffer_consume(&buf, 2);
    ck_assert_str_eq(buf.data, "ain");
    buffer_free(&buf);
}
END_TEST

START_TEST(test_utf8_is_strict)
{
    ck_assert(utf8_valid("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 10));
    ck_assert(!utf8_valid("\xC0\x80", 2));         /* overlong */
    ck_assert(!utf8_valid("\xED\xA0\x80", 3));     /* surrogate */
    ck_assert(!utf8_valid("\xF4\x90\x80\x80", 4)); /* past U+10FFFF */
    ck_assert(!utf8_valid("\xE2\x82", 2));         /* cut */
    ck_assert(!utf8_valid("\x80", 1));
    ck_assert_uint_eq(utf8_complete_prefix("ab\xE2\x82", 4), 2);
    ck_assert_uint_eq(utf8_complete_prefix("ab\xE2\x82\xAC", 5), 5);
    ck_assert_uint_eq(utf8_complete_prefix("ab\xFF", 3), 3); /* can't become valid: not held */
}
END_TEST

START_TEST(test_utf8_round_trips_every_character)
{
    for (uint32_t c = 0; c <= 0x10FFFF; c++) {
        char bytes[4];
        uint32_t back = 0;
        if (c >= 0xD800 && c <= 0xDFFF)
            continue;
        int len = utf8_encode(c, bytes);
        ck_assert_int_eq(utf8_decode(bytes, (size_t)len, &back), len);
        ck_assert_uint_eq(back, c);
    }
}
END_TEST

static struct json *parse(const char *text)
{
    struct error err;

    return json_parse(text, strlen(text), &err);
}

START_TEST(test_json_values_are_read)
{
    struct json *root = parse(" {\"a\": [1, 2.5, \"x\\u00e9\", null, true], \"a\": {\"b\": 3}} ");
    int64_t n;

    ck_assert_ptr_nonnull(root);
    ck_assert(json_integer(json_get(json_get(root, "a"), "b"), &n)); /* the last of equal keys */
    ck_assert_int_eq(n, 3);
    const struct json *list = json_first(root);
    ck_assert_uint_eq(json_count(list), 5);
    const struct json *second = json_next(json_first(list));
    ck_assert(!json_integer(second, &n));
    ck_assert_str_eq(json_string(json_next(second)), "x\xC3\xA9");
    ck_assert_ptr_null(json_get(root, "none"));
    ck_assert_ptr_null(json_get(NULL, "none"));
    json_free(root);
}
END_TEST

START_TEST(test_json_mistakes_are_refused)
{
    static const char *const bad[] = {
        "", "{", "[1,]", "{\"a\" 1}", "1 2", "\"\xFF\"", "\"\\u0000\"", "nul", "[1] x",
    };
    static const char *const halves[] = {"\"\\ud83d\"", "\"\\uDE00 \"", "\"\\ud83d\\ud83d\\ude00\"",
                                         "[1, \"a\\ud83d\\n\"]", "\"\\ud83d"};
    struct error err;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        ck_assert_msg(parse(bad[i]) == NULL, "%s was accepted", bad[i]);
    for (size_t i = 0; i < sizeof(halves) / sizeof(halves[0]); i++) {
        ck_assert_ptr_null(json_parse(halves[i], strlen(halves[i]), &err));
        ck_assert_msg(strstr(err.message, "one half of a surrogate pair"), "%s", err.message);
    }
    char deep[2000];
    memset(deep, '[', sizeof(deep));
    ck_assert_ptr_null(json_parse(deep, sizeof(deep), &err));
    ck_assert_msg(strstr(err.message, "nested more than"), "%s", err.message);
    struct json *escaped = parse("\"\\\\u0000\""); /* a backslash and text: no NUL */
    ck_assert_ptr_nonnull(escaped);
    json_free(escaped);
}
END_TEST

START_TEST(test_json_strings_are_always_valid)
{
    struct buffer out;

    buffer_init(&out, 1 << 12);
    json_write_string(&out, "a\"\\\n\x01\xC3\xA9\xFF\xE2\x82", -1);
    ck_assert_str_eq(out.data,
                     "\"a\\\"\\\\\\n\\u0001\xC3\xA9\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");
    buffer_clear(&out);
    json_write_number(&out, INFINITY);
    ck_assert_str_eq(out.data, "null");
    buffer_free(&out);
}
END_TEST

START_TEST(test_siphash_gives_the_reference_value)
{
    unsigned char data[15];
    const uint64_t key[2] = {0x0706050403020100ull, 0x0f0e0d0c0b0a0908ull};

    for (int i = 0; i < 15; i++)
        data[i] = (unsigned char)i;
    ck_assert_uint_eq(siphash_keyed(data, 15, key), 0xa129ca6149be45e5ull);
}
END_TEST

START_TEST(test_queue_is_first_in_first_out_and_bounded)
{
    struct queue *q = queue_new(2, sizeof(int));
    bool was_empty;
    int items[4], one = 1, two = 2, three = 3;

    ck_assert(queue_try_push(q, &one, &was_empty) && was_empty);
    ck_assert(queue_try_push(q, &two, &was_empty) && !was_empty);
    ck_assert(!queue_try_push(q, &three, NULL));
    ck_assert_uint_eq(queue_pop(q, items, 1), 1);
    ck_assert(queue_try_push(q, &three, NULL));
    ck_assert_uint_eq(queue_pop(q, items + 1, 4), 2);
    ck_assert(items[0] == 1 && items[1] == 2 && items[2] == 3);
    queue_close(q);
    ck_assert(!queue_push(q, &one, NULL));
    queue_wait(q, -1); /* returns at once: closed */
    queue_free(q);
}
END_TEST

enum { PRODUCERS = 4, EACH = 20000 };

static void *produce(void *arg)
{
    struct queue *q = arg;

    for (int i = 1; i <= EACH; i++)
        ck_assert(queue_push(q, &i, NULL));
    return NULL;
}

START_TEST(test_queue_loses_nothing_between_threads)
{
    struct queue *q = queue_new(16, sizeof(int));
    pthread_t threads[PRODUCERS];
    long sum = 0, n = 0;

    for (int i = 0; i < PRODUCERS; i++)
        pthread_create(&threads[i], NULL, produce, q);
    while (n < PRODUCERS * EACH) {
        int items[8];
        queue_wait(q, 1000000);
        size_t got = queue_pop(q, items, 8);
        for (size_t i = 0; i < got; i++)
            sum += items[i];
        n += (long)got;
    }
    for (int i = 0; i < PRODUCERS; i++)
        pthread_join(threads[i], NULL);
    ck_assert_int_eq(sum, (long)PRODUCERS * EACH * (EACH + 1) / 2);
    ck_assert_uint_eq(queue_length(q), 0);
    queue_free(q);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_buffer_keeps_its_bound);
    tcase_add_test(tcase, test_utf8_is_strict);
    tcase_add_test(tcase, test_utf8_round_trips_every_character);
    tcase_add_test(tcase, test_json_values_are_read);
    tcase_add_test(tcase, test_json_mistakes_are_refused);
    tcase_add_test(tcase, test_json_strings_are_always_valid);
    tcase_add_test(tcase, test_siphash_gives_the_reference_value);
    tcase_add_test(tcase, test_queue_is_first_in_first_out_and_bounded);
    tcase_add_test(tcase, test_queue_loses_nothing_between_threads);
}

UNIT_MAIN("base", add_tests)
