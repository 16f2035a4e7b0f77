/* The interpreter of chat templates: what its callers rely on. That it renders as jinja2 does is
 * tests/template's business. */
#include "tests/unit/unit.h"

#include "base/json.h"
#include "model/template.h"

#include <stdio.h>
#include <string.h>

/* What a template makes of the variables in a JSON object, all of them foreign but bos_token: the
 * text, or the message of an error. `mask` (may be NULL) gets an "f" for each foreign byte and a
 * "." for others. */
static const char *render(const char *source, const char *variables,
                          struct template_options options, char *mask)
{
    static char text[4096];
    struct template_variable list[16];
    struct buffer out, foreign;
    struct error err = {""};
    size_t n = 0;
    struct json *root = json_parse(variables, strlen(variables), &err);
    struct template *t = template_compile(source, strlen(source), &err);

    ck_assert_msg(root != NULL, "%s", err.message);
    for (const struct json *m = json_first(root); m; m = json_next(m))
        list[n++] = (struct template_variable){json_key(m), m, strcmp(json_key(m), "bos_token")};
    buffer_init(&out, sizeof(text) - 1);
    buffer_init(&foreign, sizeof(text) - 1);
    if (!t || template_render(t, list, n, &options, &out, &foreign, &err)) {
        ck_assert_uint_eq(out.len, 0);
        snprintf(text, sizeof(text), "%s", err.message);
    } else {
        snprintf(text, sizeof(text), "%s", out.data ? out.data : "");
        ck_assert_uint_eq(foreign.len, out.len);
        for (size_t i = 0; mask && i < out.len; i++)
            mask[i] = foreign.data[i] ? 'f' : '.';
        if (mask)
            mask[out.len] = '\0';
    }
    buffer_free(&out);
    buffer_free(&foreign);
    template_free(t);
    json_free(root);
    return text;
}

static const char *plain(const char *source, const char *variables)
{
    return render(source, variables, template_defaults, NULL);
}

static const char *mask_of(const char *source, const char *variables)
{
    static const char *const marks[] = {"<think>", "</think>", NULL};
    static char mask[4096];
    struct template_options options = template_defaults;

    options.assistant_marks = marks;
    render(source, variables, options, mask);
    return mask;
}

START_TEST(test_a_template_is_rendered_over_its_variables)
{
    ck_assert_str_eq(plain("a {{ x }} {{ y.z }} {{ n }}", "{\"x\":1,\"y\":{\"z\":\"é\"}}"),
                     "a 1 é ");
    ck_assert_str_eq(plain("{{ 'a' if x is defined else 'b' }}", "{}"), "b");
    ck_assert_str_eq(plain("{{ x }}", "{\"x\":null}"), "None");
    ck_assert_str_eq(plain("", "{}"), "");
}
END_TEST

START_TEST(test_numbers_of_json_stay_what_they_are)
{
    ck_assert_str_eq(plain("{{ x }}|{{ x|tojson }}", "{\"x\":[1,1.0,-0,-0.0,1e2,0.1]}"),
                     "[1, 1.0, 0, -0.0, 100.0, 0.1]|[1, 1.0, 0, -0.0, 100.0, 0.1]");
    ck_assert_str_eq(plain("{{ x }}", "{\"x\":123456789012345678901234567890}"),
                     "123456789012345678901234567890");
    ck_assert_str_eq(plain("{{ x + 1 }}", "{\"x\":9007199254740993}"), "9007199254740994");
    ck_assert_str_eq(plain("{{ x is integer }}{{ y is float }}", "{\"x\":1e0,\"y\":1.0}"),
                     "FalseTrue");
}
END_TEST

START_TEST(test_of_equal_keys_the_last_counts)
{
    ck_assert_str_eq(plain("{{ x }}", "{\"x\":{\"a\":1,\"b\":2,\"a\":3}}"), "{'a': 3, 'b': 2}");
}
END_TEST

START_TEST(test_what_the_request_brought_is_foreign)
{
    ck_assert_str_eq(mask_of("<s>{{ x }}{{ bos_token }}", "{\"x\":\"ab\",\"bos_token\":\"<s>\"}"),
                     "...ff...");
    ck_assert_str_eq(mask_of("{{ '<' + x + '>' }}", "{\"x\":\"ab\"}"), ".ff.");
    ck_assert_str_eq(mask_of("{{ x ~ 1 ~ x }}", "{\"x\":\"ab\"}"), "ff.ff");
    ck_assert_str_eq(mask_of("{{ ('ab' + x)[1:3] }}", "{\"x\":\"xy\"}"), ".f");
    ck_assert_str_eq(mask_of("{{ (' a' + x + ' ').strip() }}", "{\"x\":\"b \"}"), ".f");
    ck_assert_str_eq(mask_of("{{ ('a-' + x).split('-') | join('+') }}", "{\"x\":\"b-c\"}"),
                     "..f.f");
    ck_assert_str_eq(mask_of("{{ x.replace('b', 'yy') }}", "{\"x\":\"abc\"}"), "f..f");
    ck_assert_str_eq(mask_of("{{ ('a' + x) | upper }}", "{\"x\":\"é\"}"), ".ff");
    ck_assert_str_eq(mask_of("{% set b %}a{{ x }}{% endset %}{{ b }}", "{\"x\":\"b\"}"), ".f");
    ck_assert_str_eq(mask_of("{% macro m(v) %}a{{ v }}{% endmacro %}{{ m(x) }}", "{\"x\":\"b\"}"),
                     ".f");
}
END_TEST

START_TEST(test_json_of_the_request_is_foreign_but_for_its_signs)
{
    ck_assert_str_eq(mask_of("{{ x | tojson }}", "{\"x\":{\"k\":\"v\\n\"}}"), "..f....f....");
    ck_assert_str_eq(mask_of("{{ x }}", "{\"x\":[\"v\"]}"), "..f..");
}
END_TEST

START_TEST(test_a_role_that_is_a_word_may_be_part_of_a_marker)
{
    ck_assert_str_eq(mask_of("<|{{ m.role }}|>", "{\"m\":{\"role\":\"user\"}}"), "........");
    ck_assert_str_eq(mask_of("<|{{ m.role }}|>", "{\"m\":{\"role\":\"a|>b\"}}"), "..ffff..");
}
END_TEST

START_TEST(test_marks_are_not_foreign_in_what_the_assistant_said)
{
    const char *said = "{\"m\":{\"role\":\"assistant\",\"content\":\"a<think>b</think>\"}}";
    const char *asked = "{\"m\":{\"role\":\"user\",\"content\":\"a<think>b</think>\"}}";

    ck_assert_str_eq(mask_of("{{ m.content }}", said), "f.......f........");
    ck_assert_str_eq(mask_of("{{ m.content }}", asked), "fffffffffffffffff");
}
END_TEST

START_TEST(test_errors_name_line_and_cause)
{
    ck_assert_str_eq(plain("\n{{ x.y }}", "{}"), "line 2: 'x' is undefined");
    ck_assert_str_eq(plain("{{ x.y.z }}", "{\"x\":{}}"), "line 1: a dict has no attribute 'y'");
    ck_assert_str_eq(plain("\n\n{% if x %}", "{}"),
                     "line 3: the template ends where the tag 'elif' should stand");
    ck_assert_str_eq(plain("{{ 1 | nope }}", "{}"), "line 1: there is no filter 'nope'");
    ck_assert_str_eq(plain("{% nope %}", "{}"),
                     "line 1: the tag 'nope' is unknown or not supported here");
    ck_assert_str_eq(plain("{{ 1 + 'a' }}", "{}"), "line 1: '+' does not take int and str");
    ck_assert_str_eq(plain("{{ raise_exception('no ' ~ x) }}", "{\"x\":1}"), "line 1: no 1");
    ck_assert_str_eq(plain("\xff", "{}"),
                     "the chat template is not valid UTF-8, or holds the NUL character");
}
END_TEST

START_TEST(test_every_bound_holds)
{
    struct template_options options = template_defaults;

    options.max_steps = 1000;
    ck_assert_str_eq(render("{% for i in range(99999) %}{% endfor %}", "{}", options, NULL),
                     "line 1: the template takes too many steps");
    options = template_defaults;
    options.max_output_bytes = 10;
    ck_assert_str_eq(render("12345678901", "{}", options, NULL),
                     "line 1: the output has more than 10 bytes");
    ck_assert_str_eq(render("1234567890", "{}", options, NULL), "1234567890");
    options = template_defaults;
    options.max_memory_bytes = 100000;
    ck_assert_str_eq(render("{% set x = 'x' * 200000 %}", "{}", options, NULL),
                     "line 1: the template takes too much memory");
    options = template_defaults;
    options.max_depth = 20;
    ck_assert_str_eq(
        render("{{ [[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]] }}", "{}", options, NULL),
        "line 1: the template nests too deeply");
}
END_TEST

START_TEST(test_only_own_lists_change_and_only_where_allowed)
{
    struct template_options own = template_defaults;
    const char *source = "{% set l = [1] %}{% set _ = l.append(2) %}{{ l.pop(0) }}{{ l }}";

    own.may_change_own = true;
    ck_assert_str_eq(render(source, "{}", own, NULL), "1[2]");
    ck_assert_str_eq(plain(source, "{}"), "line 1: a template may not change lists and dicts");
    ck_assert_str_eq(render("{{ x.append(2) }}", "{\"x\":[]}", own, NULL),
                     "line 1: a template may not change lists and dicts");
    ck_assert_str_eq(render("{{ x.y.update({}) }}", "{\"x\":{\"y\":{}}}", own, NULL),
                     "line 1: a template may not change lists and dicts");
}
END_TEST

START_TEST(test_from_json_reads_texts)
{
    ck_assert_str_eq(plain("{{ (x | from_json).a[1] }}", "{\"x\":\"{\\\"a\\\":[1,2.0]}\"}"), "2.0");
    ck_assert_ptr_nonnull(strstr(plain("{{ '{' | from_json }}", "{}"), "line 1: from_json: "));
}
END_TEST

START_TEST(test_a_template_tells_what_it_uses)
{
    static const struct {
        const char *source;
        bool loops;
    } cases[] = {
        {"{% for m in messages %}{{ m.content }}{% endfor %}", false},
        {"{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}", true},
        {"{% for m in messages %}{% for c in m['content'] %}{% endfor %}{% endfor %}", true},
        {"{% macro r(m) %}{% set c = m.get('content') %}{% for p in c %}{% endfor %}{% endmacro %}",
         true},
        {"{% macro text(content) %}{% if 1 %}{% else %}{% for p in content %}{% endfor %}{% endif "
         "%}"
         "{% endmacro %}",
         true},
        {"{% for c in m.tool_calls %}{% endfor %}", false},
    };
    struct error err;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct template *t = template_compile(cases[i].source, strlen(cases[i].source), &err);
        ck_assert_msg(t != NULL, "%s", err.message);
        ck_assert_msg(template_loops_over(t, "content") == cases[i].loops, "%s", cases[i].source);
        ck_assert(!template_uses(t, "documents"));
        ck_assert(!template_uses(t, "content") || strstr(cases[i].source, "text(content)"));
        template_free(t);
    }
}
END_TEST

START_TEST(test_time_is_what_the_caller_says)
{
    struct template_options options = template_defaults;

    options.now_unix_s = 1700000000; /* 14 November 2023 */
    ck_assert_str_eq(render("{{ strftime_now('%Y %b') }}", "{}", options, NULL), "2023 Nov");
}
END_TEST

static void add(TCase *tcase)
{
    tcase_add_test(tcase, test_a_template_is_rendered_over_its_variables);
    tcase_add_test(tcase, test_numbers_of_json_stay_what_they_are);
    tcase_add_test(tcase, test_of_equal_keys_the_last_counts);
    tcase_add_test(tcase, test_what_the_request_brought_is_foreign);
    tcase_add_test(tcase, test_json_of_the_request_is_foreign_but_for_its_signs);
    tcase_add_test(tcase, test_a_role_that_is_a_word_may_be_part_of_a_marker);
    tcase_add_test(tcase, test_marks_are_not_foreign_in_what_the_assistant_said);
    tcase_add_test(tcase, test_errors_name_line_and_cause);
    tcase_add_test(tcase, test_every_bound_holds);
    tcase_add_test(tcase, test_only_own_lists_change_and_only_where_allowed);
    tcase_add_test(tcase, test_from_json_reads_texts);
    tcase_add_test(tcase, test_a_template_tells_what_it_uses);
    tcase_add_test(tcase, test_time_is_what_the_caller_says);
}

UNIT_MAIN("template", add)
