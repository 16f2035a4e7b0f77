/* Generated text taken apart: what is reasoning, content and calls, in each format; that it does
 * not matter how the text is cut; that nothing is held back without need; and how calls are forced.
 */
#include "tests/unit/folder.h"
#include "tests/unit/unit.h"

#include "base/buffer.h"
#include "model/output.h"

#include <stdio.h>
#include <string.h>

#define CALLS     "<｜tool▁calls▁begin｜>"
#define CALLS_END "<｜tool▁calls▁end｜>"
#define CALL      "<｜tool▁call▁begin｜>"
#define CALL_END  "<｜tool▁call▁end｜>"
#define SEP       "<｜tool▁sep｜>"

static const struct output_options OFF;
static const struct output_options REASONING = {.split_reasoning = true};
static const struct output_options OPEN = {.split_reasoning = true, .open_reasoning = true};
static const struct output_options ALL = {.split_reasoning = true, .parse_calls = true};
static const struct output_options ALL_OPEN = {
    .split_reasoning = true, .open_reasoning = true, .parse_calls = true};

/* What came out, written as R(…) C(…) N0(name) A0(…) E0 without the spaces; pieces of one part that
 * follow each other are one. A name with an id is N0(name=id). */
struct shown {
    struct buffer text;
    int part; /* of the last piece; -1: none */
};

static void show(void *arg, const struct output_piece *piece)
{
    static const char letters[] = {'R', 'C', 'N', 'A', 'E'};
    struct shown *shown = arg;
    bool joins = shown->part == (int)piece->part && piece->part != OUTPUT_CALL_END &&
                 piece->part != OUTPUT_CALL_NAME;

    ck_assert(piece->len > 0 || piece->part == OUTPUT_CALL_END);
    if (joins) {
        buffer_consume(&shown->text, 0);
        shown->text.data[--shown->text.len] = '\0'; /* the parenthesis */
    } else {
        buffer_append(&shown->text, &letters[piece->part], 1);
        if (piece->part >= OUTPUT_CALL_NAME)
            buffer_printf(&shown->text, "%d", piece->call);
    }
    shown->part = (int)piece->part;
    if (piece->part == OUTPUT_CALL_END)
        return;
    if (!joins)
        buffer_append_str(&shown->text, "(");
    buffer_append(&shown->text, piece->text, piece->len);
    if (piece->id)
        buffer_printf(&shown->text, "=%.*s", (int)piece->id_len, piece->id);
    buffer_append_str(&shown->text, ")");
}

static void shown_clear(struct shown *shown)
{
    buffer_clear(&shown->text);
    buffer_append_str(&shown->text, "");
    shown->part = -1;
}

/* The parts of a text that came cut before the bytes `first` and `second`, and if `every` is not 0,
 * in pieces of that many bytes. */
static void parse(struct shown *shown, const char *format, struct output_options options,
                  const char *text, size_t first, size_t second, size_t every)
{
    struct output_parser *p = output_parser_new(output_format_by_name(format), options);
    size_t len = strlen(text), begin = 0;

    shown_clear(shown);
    for (size_t end = 1; end <= len; end++) {
        if (end != first && end != second && end != len && !(every && end % every == 0))
            continue;
        output_parser_push(p, text + begin, end - begin, show, shown);
        begin = end;
    }
    output_parser_finish(p, show, shown);
    output_parser_free(p);
}

/* The text has these parts, whole and cut at every byte, at all bytes, and if it is not long at
 * every pair of bytes. */
static void check(const char *format, struct output_options options, const char *text,
                  const char *expected)
{
    size_t len = strlen(text);
    struct shown shown = {.part = -1};

    buffer_init(&shown.text, 1 << 20);
    for (size_t every = 0; every < 4; every++) {
        parse(&shown, format, options, text, 0, 0, every);
        ck_assert_str_eq(shown.text.data, expected);
    }
    for (size_t first = 1; first < len; first++) {
        size_t last = len <= 250 ? len : first + 1;
        for (size_t second = first + 1; second <= last; second++) {
            parse(&shown, format, options, text, first, second, 0);
            ck_assert_msg(strcmp(shown.text.data, expected) == 0,
                          "cut at %zu and %zu: %s instead of %s", first, second, shown.text.data,
                          expected);
        }
    }
    buffer_free(&shown.text);
}

/* ---- reasoning ------------------------------------------------------------------------------ */

START_TEST(test_plain_text_is_content)
{
    check("plain", ALL, "", "");
    check("plain", ALL, "<think>a</think>b", "C(<think>a</think>b)");
    check("deepseek", OFF, "<think>a</think>b" CALLS, "C(<think>a</think>b" CALLS ")");
    check("deepseek", ALL, "über <b>…</b>\n\n", "C(über <b>…</b>\n\n)");
    check("deepseek", ALL, "ends like a marker <｜tool▁cal", "C(ends like a marker <｜tool▁cal)");
    check("deepseek", ALL, " \n ", "C( \n )");
}
END_TEST

START_TEST(test_reasoning_stands_between_its_tags)
{
    check("deepseek", REASONING, "<think>a\nb</think>c", "R(a\nb)C(c)");
    check("think", REASONING, "<think>\na\n</think>\n\nc\n", "R(\na\n)C(\n\nc\n)");
    check("think", REASONING, "<think></think>c", "C(c)");
    check("think", REASONING, "\n <think>a</think>", "R(\n a)");
    check("mistral", REASONING, "[THINK]a <think> b[/THINK]c", "R(a <think> b)C(c)");
}
END_TEST

START_TEST(test_reasoning_without_an_end_is_all_of_the_text)
{
    check("think", REASONING, "<think>a < b </thin", "R(a < b </thin)");
    check("think", OPEN, "a", "R(a)");
    check("think", OPEN, " ", "R( )");
}
END_TEST

START_TEST(test_reasoning_may_be_open_in_the_prompt)
{
    check("think", OPEN, "a</think>b", "R(a)C(b)");
    check("think", OPEN, "</think>b", "C(b)");
    check("think", OPEN, "<think>a</think>b", "R(a)C(b)");
    check("think", OPEN, "a<think>b</think>c", "R(a<think>b)C(c)");
    check("plain", OPEN, "a</think>b", "C(a</think>b)");
}
END_TEST

START_TEST(test_tags_elsewhere_are_content)
{
    check("think", REASONING, "a</think>b", "C(a</think>b)");
    check("think", REASONING, "a<think>b</think>c", "C(a<think>b</think>c)");
    check("think", REASONING, "<think>a</think>b<think>c</think>", "R(a)C(b<think>c</think>)");
    check("think", REASONING, "<thinking>a", "C(<thinking>a)");
    check("think", REASONING, "\n</think>b</think>", "C(b</think>)"); /* nobody opened the first */
    check("think", REASONING, "</thin", "C(</thin)");
}
END_TEST

static bool in_reasoning_after(struct output_options options, const char *text)
{
    struct output_parser *p = output_parser_new(output_format_by_name("think"), options);
    struct shown shown = {.part = -1};

    buffer_init(&shown.text, 1 << 20);
    output_parser_push(p, text, strlen(text), show, &shown);
    bool inside = output_parser_in_reasoning(p);
    output_parser_free(p);
    buffer_free(&shown.text);
    return inside;
}

START_TEST(test_parser_tells_whether_it_is_in_the_reasoning)
{
    ck_assert(in_reasoning_after(OPEN, ""));
    ck_assert(in_reasoning_after(OPEN, "a"));
    ck_assert(in_reasoning_after(REASONING, "<think>"));
    ck_assert(in_reasoning_after(REASONING, "<think>a</think"));
    ck_assert(!in_reasoning_after(REASONING, ""));
    ck_assert(!in_reasoning_after(REASONING, "<think"));
    ck_assert(!in_reasoning_after(REASONING, "<think>a</think>"));
}
END_TEST

/* ---- DeepSeek's calls ----------------------------------------------------------------------- */

START_TEST(test_a_call_has_a_name_and_arguments)
{
    check("deepseek", ALL, CALLS CALL "f" SEP "{\"a\": 1}" CALL_END CALLS_END,
          "N0(f)A0({\"a\": 1})E0");
    check("deepseek", ALL, CALLS CALL " get_time \n" SEP "{}" CALL_END CALLS_END,
          "N0(get_time)A0({})E0");
    check("deepseek", ALL, CALLS CALL "f" SEP CALL_END CALLS_END, "N0(f)E0");
}
END_TEST

START_TEST(test_several_calls_are_counted)
{
    check("deepseek", ALL,
          CALLS CALL "f" SEP "{}" CALL_END CALL "g" SEP "{\"b\":2}" CALL_END CALLS_END,
          "N0(f)A0({})E0N1(g)A1({\"b\":2})E1");
    check("deepseek", ALL,
          CALLS "\n" CALL "f" SEP "{}" CALL_END "\n" CALL "g" SEP "{}" CALL_END "\n" CALLS_END,
          "N0(f)A0({})E0N1(g)A1({})E1");
}
END_TEST

START_TEST(test_text_around_calls_is_content)
{
    check("deepseek", ALL,
          "<think>why</think>Look.\n\n" CALLS CALL "f" SEP "{}" CALL_END CALLS_END "\nDone.",
          "R(why)C(Look.\n\n)N0(f)A0({})E0C(\nDone.)");
    check("deepseek", ALL, CALLS CALL "f" SEP "{}" CALL_END CALLS_END "x" CALLS_END,
          "N0(f)A0({})E0C(x" CALLS_END ")");
    check("deepseek", ALL,
          CALLS CALL "f" SEP "1" CALL_END " and " CALL "g" SEP "2" CALL_END CALLS_END,
          "N0(f)A0(1)E0C( and )N1(g)A1(2)E1");
}
END_TEST

START_TEST(test_older_calls_are_in_a_fence)
{
    check("deepseek", ALL,
          CALLS CALL "function" SEP "f\n```json\n{\"a\":\n1}\n```" CALL_END "\n" CALL "function" SEP
                     "g\n```json\n{}\n```" CALL_END CALLS_END,
          "N0(f)A0({\"a\":\n1})E0N1(g)A1({})E1");
    check("deepseek", ALL, CALLS CALL "function" SEP "f\n```json\n{}" CALL_END CALLS_END,
          "N0(f)A0({})E0");
    check("deepseek", ALL, CALLS CALL "functions" SEP "{}" CALL_END CALLS_END,
          "N0(functions)A0({})E0");
    check("deepseek", ALL, CALLS CALL "function" SEP "{}" CALL_END CALLS_END,
          "C(" CALLS CALL "function" SEP "{}" CALL_END CALLS_END ")");
}
END_TEST

START_TEST(test_calls_are_text_when_they_are_not_asked_for)
{
    check("deepseek", REASONING, "<think>a</think>" CALLS CALL "f" SEP "{}" CALL_END CALLS_END,
          "R(a)C(" CALLS CALL "f" SEP "{}" CALL_END CALLS_END ")");
    check("deepseek", ALL_OPEN, CALLS CALL "f" SEP "{}" CALL_END "</think>",
          "R(" CALLS CALL "f" SEP "{}" CALL_END ")");
}
END_TEST

START_TEST(test_a_call_cut_short_keeps_its_arguments)
{
    check("deepseek", ALL, CALLS CALL "f" SEP "{\"a\": \"x", "N0(f)A0({\"a\": \"x)E0");
    check("deepseek", ALL, CALLS CALL "f" SEP, "N0(f)E0");
    check("deepseek", ALL, CALLS CALL "f" SEP "{}" CALL_END CALL "g", "N0(f)A0({})E0C(" CALL "g)");
    check("deepseek", ALL, CALLS CALL "f" SEP "{}<｜tool", "N0(f)A0({}<｜tool)E0");
    check("deepseek", ALL, CALLS CALL "f" SEP "{}" CALL_END "\n", "N0(f)A0({})E0");
}
END_TEST

START_TEST(test_a_call_without_an_end_ends_with_the_next_marker)
{
    check("deepseek", ALL, CALLS CALL "f" SEP "{}" CALLS_END "x", "N0(f)A0({})E0C(x)");
    check("deepseek", ALL, CALLS CALL "f" SEP "{}" CALL "g" SEP "[]" CALL_END CALLS_END,
          "N0(f)A0({})E0N1(g)A1([])E1");
}
END_TEST

START_TEST(test_arguments_are_not_looked_at)
{
    check("deepseek", ALL, CALLS CALL "f" SEP " not <JSON> \n" CALL_END CALLS_END,
          "N0(f)A0( not <JSON> \n)E0");
    check("deepseek", ALL, CALLS CALL "f" SEP "{" SEP "}" CALL_END CALLS_END,
          "N0(f)A0({" SEP "})E0");
}
END_TEST

START_TEST(test_what_is_no_call_is_content)
{
    static const char *const texts[] = {
        CALLS CALL "f" CALL_END CALLS_END,             /* no separator */
        CALLS CALL SEP "{}" CALL_END CALLS_END,        /* no name */
        CALLS CALL "a\nb" SEP "{}" CALL_END CALLS_END, /* no name either */
        CALLS CALL "f",
        CALLS CALL,
        CALLS,
        CALLS " \n",
        CALLS CALLS_END,
        CALLS "text" CALLS_END,
        CALLS CALLS CALL,
        CALL_END SEP CALLS_END,
        CALL "f" CALLS_END,
    };
    struct buffer expected;

    buffer_init(&expected, 1 << 10);
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        buffer_clear(&expected);
        buffer_printf(&expected, "C(%s)", texts[i]);
        check("deepseek", ALL, texts[i], expected.data);
    }
    buffer_free(&expected);
}
END_TEST

START_TEST(test_calls_after_what_is_none_are_found)
{
    check("deepseek", ALL, CALLS CALL "f" CALL "g" SEP "{}" CALL_END CALLS_END,
          "C(" CALLS CALL "f)N0(g)A0({})E0");
    check("deepseek", ALL, CALL "f" SEP "{}" CALL_END "x", "N0(f)A0({})E0C(x)");
    check("deepseek", ALL, CALL "f" SEP "{}" CALL_END CALLS_END "x", "N0(f)A0({})E0C(x)");
    check("deepseek", ALL, CALLS "x" CALLS_END CALLS CALL "f" SEP "{}" CALL_END CALLS_END,
          "C(" CALLS "x" CALLS_END ")N0(f)A0({})E0");
}
END_TEST

/* A text that repeats a byte between two others. */
static void check_long(const char *before, char byte, size_t count, const char *after, bool call)
{
    struct buffer text, expected;

    buffer_init(&text, 1 << 12);
    buffer_init(&expected, 1 << 12);
    buffer_append_str(&text, before);
    for (size_t i = 0; i < count; i++)
        buffer_append(&text, &byte, 1);
    buffer_append_str(&text, after);
    buffer_printf(&expected, "C(%s)", text.data);
    struct shown shown = {.part = -1};
    buffer_init(&shown.text, 1 << 12);
    for (size_t every = 0; every < 3; every++) {
        parse(&shown, "deepseek", ALL, text.data, 0, 0, every);
        ck_assert_int_eq(strcmp(shown.text.data, expected.data) != 0, call);
    }
    buffer_free(&shown.text);
    buffer_free(&expected);
    buffer_free(&text);
}

START_TEST(test_what_could_become_a_call_is_not_held_for_ever)
{
    check_long(CALLS CALL, 'f', 256, SEP "{}" CALL_END, true);
    check_long(CALLS CALL, 'f', 257, SEP "{}" CALL_END, false);
    check_long(CALLS, ' ', 64, CALL "f" SEP "{}", true);
    check_long("", ' ', 64, "<think>a", true);
    check_long("", ' ', 65, "<think>a", false);
}
END_TEST

/* ---- other formats -------------------------------------------------------------------------- */

#define KIMI_CALL "<|tool_call_begin|>"
#define KIMI_ARGS "<|tool_call_argument_begin|>"
#define KIMI_END  "<|tool_call_end|>"

START_TEST(test_kimi_names_calls_by_ids)
{
    check("kimi", ALL,
          "Hm.<|tool_calls_section_begin|>" KIMI_CALL "functions.f:0" KIMI_ARGS "{}" KIMI_END
          "<|tool_calls_section_end|>",
          "C(Hm.)N0(f=functions.f:0)A0({})E0");
    check("kimi", ALL,
          "<|tool_calls_section_begin|>" KIMI_CALL "functions.a.b:12" KIMI_ARGS
          "{}" KIMI_END KIMI_CALL " g " KIMI_ARGS "{}" KIMI_END "<|tool_calls_section_end|>",
          "N0(a.b=functions.a.b:12)A0({})E0N1(g=g)A1({})E1");
    check("kimi", ALL, KIMI_CALL "functions.f:x" KIMI_ARGS "{}", "N0(f:x=functions.f:x)A0({})E0");
    check("kimi", ALL, KIMI_CALL "functions." KIMI_ARGS "{}",
          "C(" KIMI_CALL "functions." KIMI_ARGS "{})");
}
END_TEST

START_TEST(test_kimi_goes_from_reasoning_to_calls)
{
    const char *text = "a<|tool_calls_section_begin|>" KIMI_CALL "functions.f:0" KIMI_ARGS
                       "{}" KIMI_END "<|tool_calls_section_end|>";

    check("kimi", ALL_OPEN, text, "R(a)N0(f=functions.f:0)A0({})E0");
    check("kimi", OPEN, "a<|tool_calls_section_begin|>", "R(a<|tool_calls_section_begin|>)");
}
END_TEST

START_TEST(test_mistral_calls_end_with_the_next_or_the_text)
{
    check("mistral", ALL, "a[TOOL_CALLS]f[ARGS]{\"b\": [1]}[TOOL_CALLS]g[ARGS]{}",
          "C(a)N0(f)A0({\"b\": [1]})E0N1(g)A1({})E1");
    check("mistral", ALL, "[TOOL_CALLS] [{\"name\": \"f\"}]",
          "C([TOOL_CALLS] [{\"name\": \"f\"}])");
}
END_TEST

START_TEST(test_mistral_calls_may_have_ids)
{
    check("mistral", ALL, "[TOOL_CALLS]f[CALL_ID]a1B2c3D4e[ARGS]{}[TOOL_CALLS]g[CALL_ID][ARGS]{}",
          "N0(f=a1B2c3D4e)A0({})E0N1(g)A1({})E1");
    check("mistral", ALL, "[TOOL_CALLS][CALL_ID]a1B2c3D4e[ARGS]{}",
          "C([TOOL_CALLS][CALL_ID]a1B2c3D4e[ARGS]{})");
}
END_TEST

#define LONGCAT(call) "<longcat_tool_call>" call "</longcat_tool_call>"

START_TEST(test_calls_written_as_objects)
{
    check("longcat", ALL, LONGCAT("\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"{\"}}\n") "b",
          "N0(f)A0({\"a\": \"}\\\"{\"})E0C(b)");
    check("longcat", ALL,
          "<longcat_think>a</longcat_think>b<longcat_tool_call>{\"name\":\"f\" ,\n\"arguments\" "
          ":[]\n } </longcat_tool_call>\n<longcat_tool_call>{\"name\": \"g\", \"arguments\": {}}",
          "R(a)C(b)N0(f)A0([])E0N1(g)A1({})E1");
    check("longcat", ALL, LONGCAT("{\"name\": \"f\"}"), "N0(f)A0({})E0");
    check("longcat", ALL, LONGCAT("{\"name\": \"f\", \"arguments\": 12}"), "N0(f)A0(12)E0");
}
END_TEST

START_TEST(test_objects_that_are_cut_or_none)
{
    check("longcat", ALL, "<longcat_tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [",
          "N0(f)A0({\"a\": [)E0");
    check("longcat", ALL,
          LONGCAT("{\"name\": \"f\", \"arguments\": {\"a\": \"b")
              LONGCAT("{\"name\": \"g\", \"arguments\": {}"),
          "N0(f)A0({\"a\": \"b)E0N1(g)A1({})E1");
    check("longcat", ALL, LONGCAT("f{}") "x", "C(" LONGCAT("f{}") "x)");
    check("longcat", ALL, LONGCAT("{\"arguments\": {}}"), "C(" LONGCAT("{\"arguments\": {}}") ")");
    check("longcat", ALL, "<longcat_tool_call>{\"name\": \"f\", \"arg",
          "C(<longcat_tool_call>{\"name\": \"f\", \"arg)");
}
END_TEST

#define MESSAGE_END   "<|message_sep|>"
#define FUNCTION_CALL "function call<|role_sep|>\n"

START_TEST(test_a_call_may_be_a_message_of_its_own)
{
    check("gigachat3", ALL,
          "Hm." MESSAGE_END "\n\n" FUNCTION_CALL
          "{\"name\": \"f\", \"arguments\": {\"a\": 1}}" MESSAGE_END "\n\n",
          "C(Hm.)N0(f)A0({\"a\": 1})E0");
    check("gigachat3", ALL, FUNCTION_CALL "{\"name\": \"f\", \"arguments\": {}}", "N0(f)A0({})E0");
    check("gigachat3", ALL, "a function call. " MESSAGE_END, "C(a function call. )");
    check("gigachat3", OFF, "a" MESSAGE_END "\n\n" FUNCTION_CALL, "C(a\n\n" FUNCTION_CALL ")");
}
END_TEST

#define PYTHON(calls) "<|tool_call_start|>\n```python\n" calls "\n```\n<|tool_call_end|>"

START_TEST(test_calls_written_in_python)
{
    check("minicpm3", ALL,
          "<|thought_start|>\na\n<|thought_end|>\n" PYTHON("f(s=\"x, y)\", n=-1.5)\ng()") "b",
          "R(\na\n)C(\n)N0(f)A0({\"s\": \"x, y)\", \"n\": -1.5})E0N1(g)A1({})E1C(b)");
    check("minicpm3", ALL,
          PYTHON("f(a = ['\\u00e9', 'q\"', (True, None,)], b={'k': {\"l\": False}},)"),
          "N0(f)A0({\"a\": [\"é\", \"q\\\"\", [true, null]], \"b\": {\"k\": {\"l\": false}}})E0");
    check("minicpm3", ALL, PYTHON("f(a=Unit.C, b=07, c='a' 'b')"),
          "N0(f)A0({\"a\": \"Unit.C\", \"b\": \"07\", \"c\": \"'a' 'b'\"})E0");
    check("minicpm3", ALL, "<|tool_call_start|>f(12, x='''a\nso''')<|tool_call_end|>",
          "N0(f)A0({\"0\": 12, \"x\": \"a\\nso\"})E0");
}
END_TEST

START_TEST(test_python_that_is_cut_or_none)
{
    check("minicpm3", ALL, "<|tool_call_start|>```python\nf(a=1, b=[2",
          "N0(f)A0({\"a\": 1 b=[2)E0");
    check("minicpm3", ALL, "<|tool_call_start|>f(a=1, b=[2<|tool_call_end|>c",
          "N0(f)A0({\"a\": 1 b=[2)E0C(c)");
    check("minicpm3", ALL, PYTHON("f()\nNow g."),
          "N0(f)A0({})E0C(\nNow g.\n```\n<|tool_call_end|>)");
    check("minicpm3", ALL, PYTHON("x = 1"), "C(" PYTHON("x = 1") ")");
}
END_TEST

/* Parses GLM's text with a tool f whose parameters have these properties. */
static void check_typed(const char *properties, const char *text, const char *expected)
{
    char tools[1024];
    struct error err;
    struct output_options options = ALL;

    snprintf(tools, sizeof(tools),
             "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":"
             "\"object\",\"properties\":%s}}}]",
             properties);
    options.tools = json_parse(tools, strlen(tools), &err);
    check("glm", options, text, expected);
    json_free((struct json *)options.tools);
}

static void check_glm(const char *text, const char *expected)
{
    check_typed("{\"s\":{\"type\":\"string\"},\"n\":{\"type\":\"number\"}}", text, expected);
}

#define PAIR(key, value) "<arg_key>" key "</arg_key>\n<arg_value>" value "</arg_value>\n"

START_TEST(test_glm_arguments_become_json)
{
    check_glm("<think>a</think>\n<tool_call>f\n" PAIR("s", "x \"y\"\né")
                  PAIR("n", "1.5") "</tool_call>",
              "R(a)C(\n)N0(f)A0({\"s\": \"x \\\"y\\\"\\né\", \"n\": 1.5})E0");
    check_glm("<tool_call>f</tool_call>\n<tool_call>g\n</tool_call>", "N0(f)A0({})E0N1(g)A1({})E1");
    check_glm("<tool_call>f" PAIR("s", "12") PAIR("s", "") "</tool_call>x",
              "N0(f)A0({\"s\": \"12\", \"s\": \"\"})E0C(x)");
}
END_TEST

START_TEST(test_glm_values_without_a_type_are_json_or_text)
{
    check_glm("<tool_call>g" PAIR("a", "12") PAIR("b", "Rome") PAIR("c", "[1, {}]")
                  PAIR("d", "") "</tool_call>",
              "N0(g)A0({\"a\": 12, \"b\": \"Rome\", \"c\": [1, {}], \"d\": \"\"})E0");
}
END_TEST

START_TEST(test_glm_values_of_several_types_are_of_one_of_them)
{
    check_typed("{\"s\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]},"
                "\"r\":{\"$ref\":\"#/properties/s\"},\"e\":{\"enum\":[\"1\",\"2\"]},"
                "\"n\":{\"type\":[\"integer\",\"string\"]},\"i\":{\"type\":\"integer\"}}",
                "<tool_call>f" PAIR("s", "12") PAIR("s", "null") PAIR("s", "x") PAIR("r", "true")
                    PAIR("e", "1") PAIR("n", "1") PAIR("n", "1.5") PAIR("i", "1.5") "</tool_call>",
                "N0(f)A0({\"s\": \"12\", \"s\": null, \"s\": \"x\", \"r\": \"true\", "
                "\"e\": \"1\", \"n\": 1, \"n\": \"1.5\", \"i\": 1.5})E0");
}
END_TEST

#define DSML(name)     "<｜DSML｜" name
#define DSML_END(name) "</｜DSML｜" name ">"
#define PARAMETER(key, is_string, value)                                                           \
    DSML("parameter name=\"") key "\" string=\"" is_string "\">" value DSML_END("parameter") "\n"
#define INVOKE(name, parameters)                                                                   \
    DSML("invoke name=\"") name "\">\n" parameters DSML_END("invoke") "\n"

START_TEST(test_dsml_arguments_become_json)
{
    check("deepseek_v32", ALL,
          "<think>a</think>b\n\n" DSML("function_calls>") "\n" INVOKE(
              "f", PARAMETER("s", "true", "12 \"é\"") PARAMETER("n", "false", "[1, {}]"))
              INVOKE("g", "") DSML_END("function_calls"),
          "R(a)C(b\n\n)N0(f)A0({\"s\": \"12 \\\"é\\\"\", \"n\": [1, {}]})E0N1(g)A1({})E1");
    check("deepseek_v32", ALL,
          DSML("function_calls>") "\n" INVOKE("f", PARAMETER("n", "false", "Rome")) "x",
          "N0(f)A0({\"n\": \"Rome\"})E0C(\nx)");
}
END_TEST

START_TEST(test_dsml_that_is_no_call_is_content)
{
    check("deepseek_v32", ALL, "a " DSML("x") " b", "C(a " DSML("x") " b)");
    check("deepseek_v32", ALL, DSML("function_calls>") " none",
          "C(" DSML("function_calls>") " none)");
    check("deepseek_v32", ALL, DSML("invoke name=\"f"), "C(" DSML("invoke name=\"f") ")");
    check("deepseek_v32", ALL, DSML("invoke name=\"f\">\n") DSML("parameter name=\"k\" str"),
          "N0(f)A0({\"k\\\" str)E0");
    check("deepseek_v32", OFF, INVOKE("f", ""), "C(" INVOKE("f", "") ")");
}
END_TEST

START_TEST(test_glm_calls_cut_short_keep_what_there_is)
{
    check_glm("<tool_call>f<arg_key>s</arg_key><arg_value>Ro", "N0(f)A0({\"s\": \"Ro)E0");
    check_glm("<tool_call>g<arg_key>a</arg_key><arg_value>[1, 2", "N0(g)A0({\"a\": [1, 2)E0");
    check_glm("<tool_call>f<arg_key>s", "N0(f)A0({\"s)E0");
    check_glm("<tool_call>f<arg_key>s</arg_key></tool_call>", "N0(f)A0({\"s\": null})E0");
    check_glm("<tool_call>f stray", "C(<tool_call>f stray)");
    check_glm("<tool_call>f" PAIR("n", "1") "stray text</tool_call>",
              "N0(f)A0({\"n\": 1straytext})E0");
}
END_TEST

/* ---- streaming ------------------------------------------------------------------------------ */

/* What has come out after each of the texts (up to NULL), before the end. */
static void check_stream(struct output_options options, const char *const *steps)
{
    struct output_parser *p = output_parser_new(output_format_by_name("deepseek"), options);
    struct shown shown;

    buffer_init(&shown.text, 1 << 12);
    for (; steps[0]; steps += 2) {
        shown_clear(&shown);
        output_parser_push(p, steps[0], strlen(steps[0]), show, &shown);
        ck_assert_str_eq(shown.text.data, steps[1]);
    }
    output_parser_free(p);
    buffer_free(&shown.text);
}

START_TEST(test_parts_come_out_as_soon_as_they_are_certain)
{
    check_stream(ALL, (const char *const[]){"<thi",    "",           "nk>a",     "R(a)",
                                            " < b",    "R( < b)",    "</th",     "",
                                            "e",       "R(</the)",   "</think>", "",
                                            "\n\n",    "C(\n\n)",    "x<",       "C(x)",
                                            "y",       "C(<y)",      CALLS,      "",
                                            CALL,      "",           "get",      "",
                                            "_it" SEP, "N0(get_it)", "{",        "A0({)",
                                            "\"a<｜",  "A0(\"a)",    "\":1}",    "A0(<｜\":1})",
                                            CALL_END,  "E0",         CALLS_END,  "",
                                            "z",       "C(z)",       NULL});
    check_stream(REASONING,
                 (const char *const[]){"a", "C(a)", CALLS "<｜t", "C(" CALLS "<｜t)", NULL});
    check_stream(OPEN, (const char *const[]){"a", "R(a)", "<think", "R(<think)", NULL});
}
END_TEST

/* What 300 times the byte after the text releases before the end. */
static void check_released(const char *before, const char *bytes, size_t held)
{
    struct output_parser *p = output_parser_new(output_format_by_name("deepseek"), ALL);
    struct shown shown;

    buffer_init(&shown.text, 1 << 12);
    shown_clear(&shown);
    output_parser_push(p, before, strlen(before), show, &shown);
    for (size_t i = 0; i < 300; i++) {
        ck_assert_int_eq(shown.text.len > 0, i > held);
        output_parser_push(p, bytes, 1, show, &shown);
    }
    ck_assert_uint_eq(shown.text.len, 3 + strlen(before) + 300);
    output_parser_free(p);
    buffer_free(&shown.text);
}

START_TEST(test_text_is_released_when_it_is_too_long_for_a_call)
{
    check_released(CALLS CALL, "f", 256);
    check_released(CALLS, " ", 64);
    check_released("", " ", 64);
}
END_TEST

/* ---- vocabularies --------------------------------------------------------------------------- */

/* A tokenizer of these added tokens, with ids from 1, and of the letters of names. */
static struct tokenizer *load_markers(const char *const *markers)
{
    static const char letters[] = "fgunctiosabdeghlmprwxyz.:0";
    char dir[FOLDER_PATH_BYTES];
    struct buffer text;
    struct error err = {""};

    buffer_init(&text, 1 << 16);
    buffer_append_str(&text, "{\"added_tokens\":[");
    for (int i = 0; markers[i]; i++)
        buffer_printf(&text, "%s{\"id\":%d,\"content\":\"%s\",\"normalized\":false}", i ? "," : "",
                      i + 1, markers[i]);
    buffer_append_str(&text, "],\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{");
    for (int i = 0; letters[i]; i++)
        if (strchr(letters, letters[i]) == &letters[i])
            buffer_printf(&text, "%s\"%c\":%d", i ? "," : "", letters[i], 100 + i);
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

#define MARKERS(...) load_markers((const char *const[]){__VA_ARGS__, NULL})

static void check_found(struct tokenizer *tok, const char *name)
{
    ck_assert_str_eq(output_format_name(output_format_find(tok)), name);
    tokenizer_free(tok);
}

START_TEST(test_vocabulary_decides_for_the_format)
{
    check_found(MARKERS(CALLS, CALLS_END, CALL, CALL_END, SEP), "deepseek");
    check_found(MARKERS("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", KIMI_CALL,
                        KIMI_ARGS, KIMI_END),
                "kimi");
    check_found(MARKERS("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>",
                        "</arg_value>", "<think>", "</think>"),
                "glm");
    check_found(MARKERS("[TOOL_CALLS]", "[ARGS]"), "mistral");
    check_found(MARKERS(CALLS, CALLS_END, CALL, CALL_END, SEP, "｜DSML｜"), "deepseek_v32");
    check_found(MARKERS("<longcat_tool_call>", "</longcat_tool_call>"), "longcat");
    check_found(MARKERS("<|role_sep|>", "<|message_sep|>"), "gigachat3");
    check_found(MARKERS("<|tool_call_start|>", "<|tool_call_end|>"), "minicpm3");
    check_found(MARKERS("<tool_call>", "<think>", "</think>"), "think");
    check_found(MARKERS("<tool_call>", "<think>"), "plain");
}
END_TEST

START_TEST(test_formats_say_what_they_have)
{
    ck_assert(output_format_has_calls(output_format_by_name("deepseek")));
    ck_assert(!output_format_has_calls(output_format_by_name("think")));
    ck_assert(output_format_has_reasoning(output_format_by_name("think")));
    ck_assert(!output_format_has_reasoning(output_format_by_name("plain")));
    ck_assert_ptr_null(output_format_by_name("other"));
}
END_TEST

START_TEST(test_markers_are_known_by_their_ids)
{
    struct tokenizer *tok = MARKERS("<x>", "[ARGS]", "[TOOL_CALLS]", "[THINK]");
    int32_t ids[OUTPUT_MAX_MARKERS];

    ck_assert_int_eq(output_format_marker_ids(output_format_by_name("mistral"), tok, ids), 3);
    ck_assert_int_eq(ids[0], 3);
    ck_assert_int_eq(ids[1], 2);
    ck_assert_int_eq(ids[2], 4);
    ck_assert_int_eq(output_format_marker_ids(output_format_by_name("plain"), tok, ids), 0);
    tokenizer_free(tok);
}
END_TEST

/* ---- forced calls --------------------------------------------------------------------------- */

static void check_forced(const char *format, const struct tokenizer *tok, const char *name,
                         const char *expected_text, size_t expected_tokens, const char *expected)
{
    struct token_list tokens;
    struct buffer text, whole;
    struct error err;

    token_list_init(&tokens, 100);
    buffer_init(&text, 1000);
    buffer_init(&whole, 1000);
    ck_assert_int_eq(
        output_force_call(output_format_by_name(format), tok, name, &tokens, &text, &err), 0);
    ck_assert_str_eq(text.data, expected_text);
    ck_assert_uint_eq(tokens.len, expected_tokens);
    for (size_t i = 0; i < tokens.len; i++) {
        size_t len;
        const char *bytes = tokenizer_bytes(tok, tokens.ids[i], &len);
        buffer_append(&whole, bytes, len);
    }
    ck_assert_str_eq(whole.data, expected_text);
    buffer_free(&whole);
    if (expected)
        check(format, ALL, text.data, expected);
    buffer_free(&text);
    token_list_free(&tokens);
}

START_TEST(test_forced_call_begins_as_the_format_has_it)
{
    struct tokenizer *tok = MARKERS(CALLS, CALL, SEP, "<tool_call>", "[TOOL_CALLS]", "[ARGS]",
                                    "<|tool_calls_section_begin|>", KIMI_CALL, KIMI_ARGS);

    check_forced("deepseek", tok, NULL, CALLS CALL, 2, NULL);
    check_forced("deepseek", tok, "fg", CALLS CALL "fg" SEP, 5, "N0(fg)E0");
    check_forced("kimi", tok, "f",
                 "<|tool_calls_section_begin|>" KIMI_CALL "functions.f:0" KIMI_ARGS, 16,
                 "N0(f=functions.f:0)E0");
    check_forced("mistral", tok, "f", "[TOOL_CALLS]f[ARGS]", 3, "N0(f)E0");
    check_forced("glm", tok, "f", "<tool_call>f", 2, NULL);
    tokenizer_free(tok);
}
END_TEST

/* Their beginnings are text that the small vocabulary of these tests has no tokens for. */
START_TEST(test_forced_calls_of_written_formats)
{
    static const struct {
        const char *format, *text;
    } cases[] = {
        {"longcat", "<longcat_tool_call>\n{\"name\": \"f\", \"arguments\": "},
        {"gigachat3", MESSAGE_END "\n\n" FUNCTION_CALL "{\"name\": \"f\", \"arguments\": "},
        {"minicpm3", "<|tool_call_start|>\n```python\nf("},
    };
    struct token_list tokens;
    struct buffer text;
    struct error err;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tokenizer *tok = MARKERS("<x>");
        token_list_init(&tokens, 1000);
        buffer_init(&text, 1000);
        ck_assert_int_eq(output_force_call(output_format_by_name(cases[i].format), tok, "f",
                                           &tokens, &text, &err),
                         0);
        ck_assert_str_eq(text.data, cases[i].text);
        check(cases[i].format, ALL, text.data, "N0(f)E0");
        buffer_free(&text);
        token_list_free(&tokens);
        tokenizer_free(tok);
    }
}
END_TEST

START_TEST(test_forced_dsml_call_has_lines_of_its_own)
{
    const char *expected = DSML("function_calls>") "\n" DSML("invoke name=\"") "f\">";
    struct tokenizer *tok = MARKERS("｜DSML｜");
    struct token_list tokens;
    struct buffer text;
    struct error err;

    token_list_init(&tokens, 100);
    buffer_init(&text, 1000);
    ck_assert_int_eq(
        output_force_call(output_format_by_name("deepseek_v32"), tok, "f", &tokens, &text, &err),
        0);
    ck_assert_str_eq(text.data, expected);
    check("deepseek_v32", ALL, text.data, "N0(f)E0");
    buffer_free(&text);
    token_list_free(&tokens);
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_forced_name_holds_no_markers)
{
    struct tokenizer *tok = MARKERS(CALLS, CALL, SEP, "[f]");
    struct token_list tokens;
    struct buffer text;
    struct error err;

    token_list_init(&tokens, 100);
    buffer_init(&text, 1000);
    ck_assert_int_eq(
        output_force_call(output_format_by_name("deepseek"), tok, "[f]", &tokens, &text, &err), 0);
    for (size_t i = 0; i < tokens.len; i++)
        ck_assert_int_ne(tokens.ids[i], 4);
    buffer_free(&text);
    token_list_free(&tokens);
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_calls_can_not_be_forced_everywhere)
{
    struct tokenizer *tok = MARKERS(CALLS, CALL, SEP);
    struct token_list tokens;
    struct buffer text;
    struct error err;

    token_list_init(&tokens, 1);
    buffer_init(&text, 1000);
    ck_assert_int_eq(
        output_force_call(output_format_by_name("think"), tok, "f", &tokens, &text, &err), -1);
    ck_assert_ptr_nonnull(strstr(err.message, "no format for tool calls"));
    ck_assert_int_eq(
        output_force_call(output_format_by_name("deepseek"), tok, "f", &tokens, &text, &err), -1);
    buffer_free(&text);
    token_list_free(&tokens);
    tokenizer_free(tok);
}
END_TEST

static void add_reasoning_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_plain_text_is_content);
    tcase_add_test(tcase, test_reasoning_stands_between_its_tags);
    tcase_add_test(tcase, test_reasoning_without_an_end_is_all_of_the_text);
    tcase_add_test(tcase, test_reasoning_may_be_open_in_the_prompt);
    tcase_add_test(tcase, test_tags_elsewhere_are_content);
    tcase_add_test(tcase, test_parser_tells_whether_it_is_in_the_reasoning);
}

static void add_tests(TCase *tcase)
{
    add_reasoning_tests(tcase);
    tcase_add_test(tcase, test_a_call_has_a_name_and_arguments);
    tcase_add_test(tcase, test_several_calls_are_counted);
    tcase_add_test(tcase, test_text_around_calls_is_content);
    tcase_add_test(tcase, test_older_calls_are_in_a_fence);
    tcase_add_test(tcase, test_calls_are_text_when_they_are_not_asked_for);
    tcase_add_test(tcase, test_a_call_cut_short_keeps_its_arguments);
    tcase_add_test(tcase, test_a_call_without_an_end_ends_with_the_next_marker);
    tcase_add_test(tcase, test_arguments_are_not_looked_at);
    tcase_add_test(tcase, test_what_is_no_call_is_content);
    tcase_add_test(tcase, test_calls_after_what_is_none_are_found);
    tcase_add_test(tcase, test_what_could_become_a_call_is_not_held_for_ever);
    tcase_add_test(tcase, test_kimi_names_calls_by_ids);
    tcase_add_test(tcase, test_kimi_goes_from_reasoning_to_calls);
    tcase_add_test(tcase, test_mistral_calls_end_with_the_next_or_the_text);
    tcase_add_test(tcase, test_mistral_calls_may_have_ids);
    tcase_add_test(tcase, test_calls_written_as_objects);
    tcase_add_test(tcase, test_objects_that_are_cut_or_none);
    tcase_add_test(tcase, test_a_call_may_be_a_message_of_its_own);
    tcase_add_test(tcase, test_calls_written_in_python);
    tcase_add_test(tcase, test_python_that_is_cut_or_none);
    tcase_add_test(tcase, test_glm_arguments_become_json);
    tcase_add_test(tcase, test_glm_values_without_a_type_are_json_or_text);
    tcase_add_test(tcase, test_glm_values_of_several_types_are_of_one_of_them);
    tcase_add_test(tcase, test_glm_calls_cut_short_keep_what_there_is);
    tcase_add_test(tcase, test_dsml_arguments_become_json);
    tcase_add_test(tcase, test_dsml_that_is_no_call_is_content);
    tcase_add_test(tcase, test_parts_come_out_as_soon_as_they_are_certain);
    tcase_add_test(tcase, test_text_is_released_when_it_is_too_long_for_a_call);
    tcase_add_test(tcase, test_vocabulary_decides_for_the_format);
    tcase_add_test(tcase, test_formats_say_what_they_have);
    tcase_add_test(tcase, test_markers_are_known_by_their_ids);
    tcase_add_test(tcase, test_forced_call_begins_as_the_format_has_it);
    tcase_add_test(tcase, test_forced_calls_of_written_formats);
    tcase_add_test(tcase, test_forced_dsml_call_has_lines_of_its_own);
    tcase_add_test(tcase, test_forced_name_holds_no_markers);
    tcase_add_test(tcase, test_calls_can_not_be_forced_everywhere);
}

UNIT_MAIN("output", add_tests)
