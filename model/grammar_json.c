#include "model/grammar_json.h"

#include <string.h>

void json_forms_init(struct json_forms *f, struct rules *rules)
{
    memset(f, 0xFF, sizeof(*f)); /* NODE_NONE */
    f->rules = rules;
    f->in_tags = false;
}

static uint32_t class_of(struct rules *r, const char *bytes)
{
    struct byte_set set = {{0}};

    for (; *bytes; bytes++)
        byte_set_add(&set, (uint8_t)*bytes, (uint8_t)*bytes);
    return rules_class(r, &set);
}

static uint32_t digits(struct rules *r, uint32_t min, uint32_t max)
{
    return rules_repeat(r, class_of(r, "0123456789"), min, max);
}

uint32_t json_form_gap(struct json_forms *f)
{
    struct rules *r = f->rules;

    if (f->gap == NODE_NONE) {
        uint32_t indent =
            RULES_CHOICE(r, rules_repeat(r, rules_text(r, " "), 0, JSON_MAX_INDENT),
                         rules_repeat(r, rules_text(r, "\t"), 1, JSON_MAX_INDENT / 4));
        uint32_t line = RULES_SEQUENCE(r, rules_text(r, "\n"), indent);
        f->gap = rules_optional(r, RULES_CHOICE(r, rules_text(r, " "), line));
        f->space_after_colon = rules_optional(r, rules_text(r, " "));
    }
    return f->gap;
}

/* ---- strings ---- */

/* What stands behind \u: a character of the basic plane but NUL, or the two halves of another. */
static uint32_t unicode_escape(struct rules *r)
{
    uint32_t hex = class_of(r, "0123456789abcdefABCDEF");
    uint32_t nonzero = class_of(r, "123456789abcdefABCDEF");
    uint32_t zero = rules_text(r, "0"), d = class_of(r, "dD");
    uint32_t high = RULES_SEQUENCE(r, class_of(r, "123456789abcefABCEF"), hex, hex, hex);
    uint32_t below_surrogates = RULES_SEQUENCE(r, d, class_of(r, "01234567"), hex, hex);
    uint32_t low = RULES_SEQUENCE(r, zero,
                                  RULES_CHOICE(r, RULES_SEQUENCE(r, nonzero, hex, hex),
                                               RULES_SEQUENCE(r, zero, nonzero, hex),
                                               RULES_SEQUENCE(r, zero, zero, nonzero)));
    uint32_t pair = RULES_SEQUENCE(r, d, class_of(r, "89abAB"), hex, hex, rules_text(r, "\\u"), d,
                                   class_of(r, "cdefCDEF"), hex, hex);

    return RULES_SEQUENCE(r, rules_text(r, "u"),
                          RULES_CHOICE(r, high, below_surrogates, low, pair));
}

uint32_t json_form_character(struct json_forms *f)
{
    struct rules *r = f->rules;
    struct codepoint_set raw = {.count = 0};

    if (f->character == NODE_NONE) {
        codepoint_set_add(&raw, '"', '"');
        codepoint_set_add(&raw, '\\', '\\');
        codepoint_set_add(&raw, 0, 0x1F);
        if (f->in_tags)
            codepoint_set_add(&raw, '<', '<');
        codepoint_set_invert(&raw);
        uint32_t escape = RULES_SEQUENCE(
            r, rules_text(r, "\\"), RULES_CHOICE(r, class_of(r, "\"\\/bfnrt"), unicode_escape(r)));
        uint32_t plain = rules_codepoints(r, raw, TEXT_PLAIN);
        f->character = RULES_CHOICE(r, plain, escape);
        if (!r->failed) /* all but quotes and backslashes, which are not plain */
            r->nodes[f->character].any_plain = !f->in_tags;
    }
    return f->character;
}

uint32_t json_form_quoted(struct json_forms *f, uint32_t contents)
{
    uint32_t quote = rules_text(f->rules, "\"");

    return RULES_SEQUENCE(f->rules, quote, contents, quote);
}

uint32_t json_form_string(struct json_forms *f)
{
    if (f->string == NODE_NONE)
        f->string =
            json_form_quoted(f, rules_repeat(f->rules, json_form_character(f), 0, REPEAT_MAX));
    return f->string;
}

/* ---- numbers ---- */

uint32_t json_form_integer(struct json_forms *f)
{
    struct rules *r = f->rules;

    if (f->integer == NODE_NONE) {
        uint32_t positive =
            RULES_SEQUENCE(r, class_of(r, "123456789"), digits(r, 0, JSON_INTEGER_DIGITS - 1));
        f->integer = RULES_SEQUENCE(r, rules_optional(r, rules_text(r, "-")),
                                    RULES_CHOICE(r, rules_text(r, "0"), positive));
    }
    return f->integer;
}

uint32_t json_form_number(struct json_forms *f)
{
    struct rules *r = f->rules;

    if (f->number == NODE_NONE) {
        uint32_t fraction =
            RULES_SEQUENCE(r, rules_text(r, "."), digits(r, 1, JSON_FRACTION_DIGITS));
        uint32_t exponent = RULES_SEQUENCE(r, class_of(r, "eE"),
                                           rules_optional(r, class_of(r, "+-")), digits(r, 1, 2));
        f->number = RULES_SEQUENCE(r, json_form_integer(f), rules_optional(r, fraction),
                                   rules_optional(r, exponent));
    }
    return f->number;
}

/* ---- objects, arrays, and any value ---- */

uint32_t json_form_member(struct json_forms *f, uint32_t key, uint32_t value)
{
    json_form_gap(f);
    return RULES_SEQUENCE(f->rules, key, rules_text(f->rules, ":"), f->space_after_colon, value);
}

uint32_t json_form_next(struct json_forms *f, uint32_t item)
{
    return RULES_SEQUENCE(f->rules, rules_text(f->rules, ","), json_form_gap(f), item);
}

uint32_t json_form_brackets(struct json_forms *f, const char *open, uint32_t items,
                            const char *close, bool may_be_empty)
{
    struct rules *r = f->rules;
    uint32_t inside = RULES_SEQUENCE(r, json_form_gap(f), items, json_form_gap(f));

    if (items == NODE_EMPTY)
        inside = NODE_EMPTY;
    else if (may_be_empty)
        inside = rules_optional(r, inside);
    return RULES_SEQUENCE(r, rules_text(r, open), inside, rules_text(r, close));
}

/* Any number of items, with commas. */
static uint32_t list_of(struct json_forms *f, uint32_t item)
{
    return RULES_SEQUENCE(f->rules, item,
                          rules_repeat(f->rules, json_form_next(f, item), 0, REPEAT_MAX));
}

uint32_t json_form_object(struct json_forms *f)
{
    if (f->object == NODE_NONE)
        f->object = json_form_brackets(
            f, "{", list_of(f, json_form_member(f, json_form_string(f), json_form_value(f))), "}",
            true);
    return f->object;
}

uint32_t json_form_array(struct json_forms *f)
{
    if (f->array == NODE_NONE)
        f->array = json_form_brackets(f, "[", list_of(f, json_form_value(f)), "]", true);
    return f->array;
}

uint32_t json_form_value(struct json_forms *f)
{
    struct rules *r = f->rules;

    if (f->value == NODE_NONE) {
        uint32_t rule = rules_declare(r, "value");
        f->value = rules_reference(r, rule); /* objects and arrays refer to it */
        rules_define(r, rule,
                     RULES_CHOICE(r, json_form_object(f), json_form_array(f), json_form_string(f),
                                  json_form_number(f), rules_text(r, "true"),
                                  rules_text(r, "false"), rules_text(r, "null")));
    }
    return f->value;
}
