/* Strings and numbers of a JSON Schema. */
#include "model/grammar_number.h"
#include "model/grammar_regex.h"
#include "model/schema_compiler.h"

#include <math.h>
#include <string.h>

/* ---- strings ---- */

#define DAY_1_TO_28 "(0[1-9]|1\\d|2[0-8])"
#define DATE                                                                                       \
    "([1-9]\\d{3}-((0[1-9]|1[0-2])-" DAY_1_TO_28 "|(0[13-9]|1[0-2])-(29|30)|"                      \
    "(0[13578]|1[02])-31)|"                                                                        \
    "([1-9]\\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29)"
#define TIME   "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)"
#define LABEL  "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#define BYTE   "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define GROUP  "[0-9A-Fa-f]{1,4}"
#define ATEXT  "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
#define AMOUNT "(0|[1-9]\\d{0,8})"
#define IN_DAY "T(" AMOUNT "H(" AMOUNT "M(" AMOUNT "S)?)?|" AMOUNT "M(" AMOUNT "S)?|" AMOUNT "S)"

/* The formats, as expressions that all of the string has to match. Years are from 1000 to 9999, and
 * there are no leap seconds. */
static const struct {
    const char *name, *expression;
} formats[] = {
    {"date", DATE},
    {"time", TIME},
    {"date-time", DATE "T" TIME},
    {"duration", "P(" AMOUNT "W|" IN_DAY "|(" AMOUNT "Y(" AMOUNT "M(" AMOUNT "D)?)?|" AMOUNT
                 "M(" AMOUNT "D)?|" AMOUNT "D)(" IN_DAY ")?)"},
    {"email", ATEXT "{1,32}(\\." ATEXT "{1,30})?@(" LABEL "\\.){1,3}[A-Za-z]{2,12}"},
    {"hostname", "(" LABEL "\\.){0,3}[A-Za-z]([A-Za-z0-9-]{0,60}[A-Za-z0-9])?"},
    {"ipv4", "(" BYTE "\\.){3}" BYTE},
    {"ipv6",
     "(" GROUP ":){7}" GROUP "|(" GROUP ":){1,7}:|(" GROUP ":){1,6}:" GROUP "|(" GROUP
     ":){1,5}(:" GROUP "){2}|(" GROUP ":){1,4}(:" GROUP "){3}|(" GROUP ":){1,3}(:" GROUP
     "){4}|(" GROUP ":){1,2}(:" GROUP "){5}|" GROUP ":(:" GROUP "){6}|:((:" GROUP "){1,7}|:)"},
    {"uuid", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"},
};

static struct regex_piece compile_format(struct schema_compiler *c, const char *name,
                                         enum text_form form)
{
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
        if (strcmp(formats[i].name, name) == 0)
            return regex_compile(c->rules, formats[i].expression, strlen(formats[i].expression),
                                 REGEX_WHOLE, form);
    rules_fail(c->rules, "the format \"%.60s\" is not supported", name);
    return (struct regex_piece){.unit = NODE_NONE};
}

/* The part of what an expression matches that has from `min` to `max` characters. */
static uint32_t fit_length(struct schema_compiler *c, struct regex_piece piece, uint32_t min,
                           uint32_t max)
{
    if (min <= piece.least && max >= piece.most)
        return piece.node;
    if (piece.unit == NODE_NONE)
        return rules_fail(c->rules, "\"minLength\" and \"maxLength\" can't be combined with this "
                                    "\"pattern\" or \"format\"");
    min = min > piece.least ? min : piece.least;
    max = max < piece.most ? max : piece.most;
    if (min > max)
        return rules_fail(c->rules, "no string is as long as \"pattern\", \"minLength\" and "
                                    "\"maxLength\" ask for");
    return rules_repeat(c->rules, piece.unit, min, max);
}

uint32_t schema_string_node(struct schema_compiler *c, const struct schema_set *set)
{
    const struct json *pattern = schema_find(c, set, "pattern");
    const struct json *format = schema_find(c, set, "format");
    uint32_t min = schema_count(c, set, "minLength", 0);
    uint32_t max = schema_count(c, set, "maxLength", REPEAT_MAX);
    enum text_form form = c->text ? TEXT_PLAIN : TEXT_IN_JSON;
    struct regex_piece piece;

    if (min > max)
        return rules_fail(c->rules, "\"minLength\" is more than \"maxLength\"");
    if (!pattern && !format && c->text)
        return min == 0 && max == REPEAT_MAX ? c->text->text
                                             : rules_repeat(c->rules, c->text->character, min, max);
    if (!pattern && !format)
        return json_form_quoted(&c->forms,
                                rules_repeat(c->rules, json_form_character(&c->forms), min, max));
    if (pattern && format)
        return rules_fail(c->rules, "\"pattern\" can't be combined with \"format\"");
    if (!json_is(pattern ? pattern : format, JSON_STRING))
        return rules_fail(c->rules, "\"pattern\" and \"format\" must be strings");
    if (pattern) {
        const char *text = json_string(pattern);
        piece = regex_compile(c->rules, text, strlen(text), REGEX_SEARCH, form);
    } else {
        piece = compile_format(c, json_string(format), form);
    }
    uint32_t node = fit_length(c, piece, min, max);
    return c->text ? node : json_form_quoted(&c->forms, node);
}

/* ---- numbers ---- */

/* The narrower of a bound and its exclusive form. `sign`: 1 for a lower one, -1 for an upper one.
 */
static struct number_bound find_bound(struct schema_compiler *c, const struct schema_set *set,
                                      const char *keyword, const char *exclusive_keyword, int sign)
{
    const struct json *values[2] = {schema_find(c, set, keyword),
                                    schema_find(c, set, exclusive_keyword)};
    struct number_bound bound = {.there = false}, other;

    for (int i = 0; i < 2; i++) {
        if (!values[i])
            continue;
        if (!json_is(values[i], JSON_NUMBER)) {
            rules_fail(c->rules, "\"%s\" must be a number", i ? exclusive_keyword : keyword);
            continue;
        }
        double value = json_number(values[i]);
        if (value * sign <= -NUMBER_LIMIT) /* beyond all numbers that are made */
            continue;
        if (number_bound_set(&other, value, i == 1))
            rules_fail(c->rules, "\"%s\" is too large, or has too many digits",
                       i ? exclusive_keyword : keyword);
        else if (!bound.there || other.value * sign >= bound.value * sign)
            bound = other;
    }
    return bound;
}

uint32_t schema_number_node(struct schema_compiler *c, const struct schema_set *set, bool integer)
{
    static const char *const bounds[] = {"minimum", "exclusiveMinimum", "maximum",
                                         "exclusiveMaximum"};
    struct number_bound low = find_bound(c, set, "minimum", "exclusiveMinimum", 1);
    struct number_bound high = find_bound(c, set, "maximum", "exclusiveMaximum", -1);
    const struct json *divisor = schema_find(c, set, "multipleOf");
    bool bounded = false;

    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++)
        bounded |= schema_find(c, set, bounds[i]) != NULL;
    if (c->rules->failed)
        return NODE_EMPTY;
    if (divisor) {
        double value = json_is(divisor, JSON_NUMBER) ? json_number(divisor) : 0;
        if (!(value >= 1 && value < 1e15 && value == floor(value)))
            return rules_fail(c->rules, "\"multipleOf\" is supported for positive whole numbers");
        return rules_multiple(c->rules, &low, &high, (int64_t)value);
    }
    if (bounded)
        return rules_number(c->rules, &low, &high, integer);
    return integer ? json_form_integer(&c->forms) : json_form_number(&c->forms);
}
