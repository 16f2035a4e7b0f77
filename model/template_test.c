/* Tests: what stands after `is`. */
#include "model/template_render.h"
#include "model/template_string.h"
#include "model/template_text.h"

#include <string.h>

#define TEST(function, holds)                                                                      \
    static struct tpl_value function(struct tpl_render *r, struct tpl_value self,                  \
                                     const struct tpl_value *args)                                 \
    {                                                                                              \
        (void)r;                                                                                   \
        (void)args;                                                                                \
        return tpl_bool(holds);                                                                    \
    }

static bool is_remainder(struct tpl_render *r, struct tpl_value v, int64_t by, int64_t remainder)
{
    struct tpl_value left = tpl_binary(r, TPL_MOD, v, tpl_int(by));

    return tpl_equal(&r->heap, left, tpl_int(remainder));
}

/* By identity; small values are themselves. */
static bool is_same(struct tpl_value a, struct tpl_value b)
{
    if (a.type != b.type)
        return false;
    switch (a.type) {
    case TPL_UNDEFINED:
    case TPL_NONE:
        return true;
    case TPL_BOOL:
        return a.truth == b.truth;
    case TPL_INT:
        return a.integer == b.integer;
    case TPL_FLOAT:
        return a.number == b.number;
    case TPL_STRING:
        return a.string->len == b.string->len &&
               (a.string->len == 0 || memcmp(a.string->data, b.string->data, a.string->len) == 0);
    default:
        return a.list == b.list;
    }
}

static bool is_callable(struct tpl_value v)
{
    return v.type == TPL_MACRO || v.type == TPL_FUNCTION || v.type == TPL_METHOD ||
           v.type == TPL_LOOP || v.type == TPL_JOINER || v.type == TPL_UNDEFINED;
}

static bool is_sequence(struct tpl_value v)
{
    return v.type == TPL_STRING || v.type == TPL_LIST || v.type == TPL_TUPLE ||
           v.type == TPL_DICT || v.type == TPL_RANGE || v.type == TPL_UNDEFINED;
}

static const struct tpl_string *text_of(struct tpl_render *r, struct tpl_value v)
{
    const struct tpl_string *s = tpl_soft_str(&r->heap, v).string;

    tpl_work(&r->heap, 8 * s->len);
    return s;
}

static bool has_name(struct tpl_value v,
                     const struct tpl_function *(*find)(const struct tpl_string *))
{
    return v.type == TPL_STRING && find(v.string) != NULL;
}

TEST(is_defined, self.type != TPL_UNDEFINED)
TEST(is_undefined, self.type == TPL_UNDEFINED)
TEST(is_none, self.type == TPL_NONE)
TEST(is_boolean, self.type == TPL_BOOL)
TEST(is_true, self.type == TPL_BOOL && self.truth)
TEST(is_false, self.type == TPL_BOOL && !self.truth)
TEST(is_integer, self.type == TPL_INT || self.type == TPL_BIG)
TEST(is_float, self.type == TPL_FLOAT)
TEST(is_number, tpl_is_number(self) || self.type == TPL_BIG)
TEST(is_string, self.type == TPL_STRING)
TEST(is_mapping, self.type == TPL_DICT)
TEST(is_iterable, tpl_is_iterable(self))
TEST(test_sequence, is_sequence(self))
TEST(test_callable, is_callable(self))
TEST(is_escaped, self.type == TPL_STRING && self.string->markup)
TEST(is_lower, tpl_is_all_lower(text_of(r, self)))
TEST(is_upper, tpl_is_all_upper(text_of(r, self)))
TEST(is_odd, is_remainder(r, self, 2, 1))
TEST(is_even, is_remainder(r, self, 2, 0))
TEST(is_divisible, tpl_equal(&r->heap, tpl_binary(r, TPL_MOD, self, args[0]), tpl_int(0)))
TEST(test_same, is_same(self, args[0]))
TEST(is_in, tpl_contains(&r->heap, args[0], self))
TEST(is_equal, tpl_equal(&r->heap, self, args[0]))
TEST(is_unequal, !tpl_equal(&r->heap, self, args[0]))
TEST(is_less, tpl_compare(&r->heap, self, args[0], "<") == -1)
TEST(is_greater, tpl_compare(&r->heap, self, args[0], ">") == 1)
TEST(is_at_most, (unsigned)(tpl_compare(&r->heap, self, args[0], "<=") + 1) <= 1)
TEST(is_at_least, (unsigned)tpl_compare(&r->heap, self, args[0], ">=") <= 1)
TEST(is_filter, has_name(self, tpl_find_filter))
TEST(is_test, has_name(self, tpl_find_test))

const struct tpl_function *tpl_find_test(const struct tpl_string *name)
{
    static const struct tpl_function tests[] = {
        {"defined", "", is_defined, NULL},     {"undefined", "", is_undefined, NULL},
        {"none", "", is_none, NULL},           {"boolean", "", is_boolean, NULL},
        {"true", "", is_true, NULL},           {"false", "", is_false, NULL},
        {"integer", "", is_integer, NULL},     {"float", "", is_float, NULL},
        {"number", "", is_number, NULL},       {"string", "", is_string, NULL},
        {"mapping", "", is_mapping, NULL},     {"iterable", "", is_iterable, NULL},
        {"sequence", "", test_sequence, NULL}, {"callable", "", test_callable, NULL},
        {"escaped", "", is_escaped, NULL},     {"lower", "", is_lower, NULL},
        {"upper", "", is_upper, NULL},         {"odd", "", is_odd, NULL},
        {"even", "", is_even, NULL},           {"divisibleby", "num", is_divisible, NULL},
        {"sameas", "other", test_same, NULL},  {"in", "seq", is_in, NULL},
        {"eq", "/other", is_equal, NULL},      {"equalto", "/other", is_equal, NULL},
        {"==", "/other", is_equal, NULL},      {"ne", "/other", is_unequal, NULL},
        {"!=", "/other", is_unequal, NULL},    {"lt", "/other", is_less, NULL},
        {"lessthan", "/other", is_less, NULL}, {"<", "/other", is_less, NULL},
        {"gt", "/other", is_greater, NULL},    {"greaterthan", "/other", is_greater, NULL},
        {">", "/other", is_greater, NULL},     {"le", "/other", is_at_most, NULL},
        {"<=", "/other", is_at_most, NULL},    {"ge", "/other", is_at_least, NULL},
        {">=", "/other", is_at_least, NULL},   {"filter", "", is_filter, NULL},
        {"test", "", is_test, NULL},
    };

    return tpl_find_in(tests, sizeof(tests) / sizeof(tests[0]), name);
}
