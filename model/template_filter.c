/* Filters over texts, numbers and single values; those over lists are in template_filter_list.c. */
#include "base/memory.h"
#include "model/template_format.h"
#include "model/template_number.h"
#include "model/template_render.h"
#include "model/template_string.h"
#include "model/template_text.h"
#include "model/template_unicode.h"

#include <math.h>
#include <string.h>

#define NOT_SUPPORTED NULL, NULL, NULL

static const struct tpl_string *text_of(struct tpl_render *r, struct tpl_value v)
{
    return tpl_soft_str(&r->heap, v).string;
}

/* ---- texts --------------------------------------------------------------------------------- */

static struct tpl_value upper(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    (void)args;
    return tpl_upper(&r->heap, text_of(r, self));
}

static struct tpl_value lower(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    (void)args;
    return tpl_lower(&r->heap, text_of(r, self));
}

static struct tpl_value capitalize(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    (void)args;
    return tpl_capitalized(&r->heap, text_of(r, self));
}

/* Whether a word ends before this character. */
static bool ends_word(uint32_t c)
{
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || tpl_is_space(c);
}

static struct tpl_value title(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    const struct tpl_string *s = text_of(r, self);
    struct tpl_builder b;
    size_t size;
    bool first = true; /* character of a word, or of what is between words */

    (void)args;
    tpl_builder_init(&b, &r->heap);
    for (size_t at = 0; at < s->len; at += size) {
        uint32_t c = tpl_decode(s, at, &size);
        tpl_add_cased(&b, c, first ? TPL_UPPER : TPL_LOWER, s->mask ? s->mask[at] : s->foreign);
        first = ends_word(c);
    }
    return tpl_built(&b);
}

static struct tpl_value trim(struct tpl_render *r, struct tpl_value self,
                             const struct tpl_value *args)
{
    bool given = tpl_given(args[0]) && args[0].type != TPL_NONE;

    return tpl_stripped(&r->heap, text_of(r, self),
                        given ? tpl_want_string(r, args[0], "trim") : NULL, TPL_BOTH);
}

static struct tpl_value replace(struct tpl_render *r, struct tpl_value self,
                                const struct tpl_value *args)
{
    bool counted = tpl_given(args[2]) && args[2].type != TPL_NONE;

    return tpl_replaced(&r->heap, tpl_str(&r->heap, self).string, tpl_str(&r->heap, args[0]).string,
                        tpl_str(&r->heap, args[1]).string,
                        counted ? tpl_want_integer(r, args[2], "a count") : -1);
}

static struct tpl_value center(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    return tpl_justified(&r->heap, text_of(r, self), tpl_integer_or(r, args[0], 80, "a width"),
                         NULL, true, true);
}

/* indent(width=4, first=false, blank=false); the width may be a text. */
static struct tpl_value indent(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    struct tpl_heap *h = &r->heap;
    const struct tpl_string *s = tpl_want_string(r, self, "what is indented");
    struct tpl_builder b, with_newline;
    int64_t width = 0;

    if (args[0].type != TPL_STRING)
        width = tpl_integer_or(r, args[0], 4, "a width");
    tpl_builder_init(&b, h);
    for (int64_t i = 0; i < width; i++)
        tpl_add(&b, " ", 1, false);
    const struct tpl_string *by =
        args[0].type == TPL_STRING ? args[0].string : tpl_built(&b).string;
    tpl_builder_init(&with_newline, h);
    tpl_add_string(&with_newline, s);
    tpl_add(&with_newline, "\n", 1, false);
    const struct tpl_list *lines = tpl_lines(h, tpl_built(&with_newline).string, false).list;
    tpl_builder_init(&b, h);
    b.markup = s->markup;
    for (size_t i = 0; i < lines->n; i++) {
        const struct tpl_string *line = lines->items[i].string;
        if (i > 0)
            tpl_add(&b, "\n", 1, false);
        if (i == 0 ? tpl_truth(args[1]) : line->len > 0 || tpl_truth(args[2]))
            tpl_add_string(&b, by);
        tpl_add_string(&b, line);
    }
    return tpl_built(&b);
}

/* truncate(length=255, killwords=false, end="...", leeway=5) */
static struct tpl_value truncate(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    struct tpl_heap *h = &r->heap;
    struct tpl_value end = tpl_given(args[2]) ? args[2] : tpl_word(h, "...");
    bool has_leeway = tpl_given(args[3]) && args[3].type != TPL_NONE;
    int64_t length = tpl_integer_or(r, args[0], 255, "a length");
    int64_t leeway = has_leeway ? tpl_want_integer(r, args[3], "a leeway") : 5;
    int64_t end_length = (int64_t)tpl_chars(h, tpl_want_string(r, end, "an end"));
    struct tpl_string blank = {.data = " ", .len = 1};
    size_t n;

    if (length < end_length || leeway < 0 || length > INT32_MAX || leeway > INT32_MAX)
        tpl_fail(h, "truncate: the length or the leeway is wrong");
    if (tpl_length(h, self, &n) && (int64_t)n <= length + leeway)
        return self; /* lists too */
    const struct tpl_string *s = tpl_want_string(r, self, "what is truncated");
    struct tpl_value kept = tpl_part(h, s, 0, tpl_char_at(h, s, (size_t)(length - end_length)));
    if (!tpl_truth(args[1]))
        kept = tpl_rsplit(h, kept.string, &blank, 1).list->items[0];
    return tpl_binary(r, TPL_ADD, kept, end);
}

static struct tpl_value wordcount(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    const struct tpl_string *s = text_of(r, self);
    int64_t n = 0;
    bool in_word = false;
    size_t size;

    (void)args;
    tpl_work(&r->heap, 8 * s->len);
    for (size_t at = 0; at < s->len; at += size) {
        uint32_t c = tpl_decode(s, at, &size);
        bool letter =
            c == '_' || tpl_has_property(c, TPL_ALPHA) || tpl_has_property(c, TPL_NUMERIC);
        n += letter && !in_word;
        in_word = letter;
    }
    return tpl_int(n);
}

static struct tpl_value string(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    (void)args;
    return tpl_soft_str(&r->heap, self);
}

static struct tpl_value format(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_args *args)
{
    struct tpl_value values;

    if (args->n > 0 && args->n_named > 0)
        tpl_fail(&r->heap, "format: takes values either by place or by name");
    if (args->n_named > 0) {
        values = tpl_dict(&r->heap);
        for (size_t i = 0; i < args->n_named; i++)
            tpl_dict_set(&r->heap, values.dict, args->named[i].name, args->named[i].value);
    } else {
        values = tpl_tuple(&r->heap, args->n);
        for (size_t i = 0; i < args->n; i++)
            values.list->items[i] = args->positional[i];
    }
    return tpl_format_percent(r, text_of(r, self), values);
}

/* ---- HTML ---------------------------------------------------------------------------------- */

static struct tpl_value safe(struct tpl_render *r, struct tpl_value self,
                             const struct tpl_value *args)
{
    struct tpl_value text = tpl_soft_str(&r->heap, self);
    struct tpl_string *s = tpl_copy(&r->heap, text.string, sizeof(*s));

    (void)args;
    s->markup = true;
    return (struct tpl_value){.type = TPL_STRING, .string = s};
}

static struct tpl_value escaped(struct tpl_render *r, struct tpl_value v)
{
    struct tpl_builder b;

    tpl_builder_init(&b, &r->heap);
    b.markup = true;
    tpl_add_escaped(&b, v);
    return tpl_built(&b);
}

static struct tpl_value escape(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    (void)args;
    return escaped(r, self);
}

static struct tpl_value forceescape(struct tpl_render *r, struct tpl_value self,
                                    const struct tpl_value *args)
{
    (void)args;
    return escaped(r, tpl_str(&r->heap, self));
}

/* As urllib's quote(): for a text; "/" stays. */
static struct tpl_value urlencode(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~/";
    struct tpl_builder b;

    (void)args;
    if (self.type != TPL_STRING && tpl_is_iterable(self))
        tpl_fail(&r->heap, "urlencode: only texts are supported");
    const struct tpl_string *s = text_of(r, self);
    tpl_builder_init(&b, &r->heap);
    for (size_t i = 0; i < s->len; i++) {
        unsigned char c = (unsigned char)s->data[i];
        char hex[3] = {'%', "0123456789ABCDEF"[c >> 4], "0123456789ABCDEF"[c & 15]};
        if (c && strchr(plain, c))
            tpl_add_part(&b, s, i, i + 1);
        else
            tpl_add(&b, hex, 3, s->mask ? s->mask[i] : s->foreign);
    }
    return tpl_built(&b);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

/* tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false), transformers' own */
static struct tpl_value tojson(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    struct tpl_heap *h = &r->heap;
    bool has_indent = tpl_given(args[1]) && args[1].type != TPL_NONE;
    struct tpl_json_style style = {
        .item_separator = tpl_word(h, has_indent ? "," : ", ").string,
        .key_separator = tpl_word(h, ": ").string,
        .ensure_ascii = tpl_truth(args[0]),
        .sort_keys = tpl_truth(args[3]),
    };
    struct tpl_builder b, indent_text;

    if (tpl_given(args[2]) && args[2].type != TPL_NONE) {
        const struct tpl_list *pair = tpl_items(h, args[2]);
        if (pair->n != 2)
            tpl_fail(h, "tojson: 'separators' must be two texts");
        style.item_separator = tpl_want_string(r, pair->items[0], "a separator");
        style.key_separator = tpl_want_string(r, pair->items[1], "a separator");
    }
    if (has_indent) {
        tpl_builder_init(&indent_text, h);
        if (args[1].type == TPL_STRING)
            tpl_add_string(&indent_text, args[1].string);
        else
            for (int64_t n = tpl_want_integer(r, args[1], "an indent"); n > 0; n--)
                tpl_add(&indent_text, " ", 1, false);
        style.indent = tpl_built(&indent_text).string;
    }
    tpl_builder_init(&b, h);
    tpl_add_json(&b, self, &style);
    return tpl_built(&b);
}

/* Not in transformers, but some templates expect it of their host. */
static struct tpl_value from_json(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    const struct tpl_string *s = tpl_want_string(r, self, "from_json");
    struct error err;

    (void)args;
    tpl_work(&r->heap, 8 * s->len);
    struct json *root = json_parse(s->data, s->len, &err);
    if (!root)
        tpl_fail(&r->heap, "from_json: %s", err.message);
    r->parsed = mem_resize(r->parsed, r->n_parsed + 1, sizeof(*r->parsed));
    r->parsed[r->n_parsed++] = root; /* it must stay: strings are not copied */
    return tpl_from_json(&r->heap, root, s->foreign || s->mask, NULL);
}

/* ---- numbers ------------------------------------------------------------------------------- */

static struct tpl_value filter_abs(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    int64_t integer;

    (void)args;
    if (self.type == TPL_FLOAT)
        return tpl_float(fabs(self.number));
    integer = tpl_want_integer(r, self, "abs");
    return integer < 0 ? tpl_negated(&r->heap, tpl_int(integer)) : tpl_int(integer);
}

static struct tpl_value truncated(struct tpl_render *r, double number)
{
    if (!(number > -9.2233720368547e18 && number < 9.2233720368547e18))
        tpl_fail(&r->heap, "int: the number is too large");
    return tpl_int((int64_t)number);
}

/* int(default=0, base=10) */
static struct tpl_value filter_int(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    struct tpl_value otherwise = tpl_given(args[0]) ? args[0] : tpl_int(0);
    int64_t base = tpl_integer_or(r, args[1], 10, "a base"), integer;
    double number;

    if (self.type == TPL_UNDEFINED)
        tpl_fail_undefined(&r->heap, self);
    if (self.type == TPL_BIG)
        return self;
    if (self.type == TPL_FLOAT)
        return isnan(self.number) ? otherwise : truncated(r, self.number);
    if (tpl_as_integer(self, &integer))
        return tpl_int(integer);
    if (self.type != TPL_STRING)
        return otherwise;
    if (base != 0 && (base < 2 || base > 36))
        return otherwise;
    if (tpl_parse_integer(self.string->data, self.string->len, (int)base, &integer))
        return tpl_int(integer);
    if (!tpl_parse_float(self.string->data, self.string->len, &number) || !isfinite(number))
        return otherwise;
    return truncated(r, number);
}

static struct tpl_value filter_float(struct tpl_render *r, struct tpl_value self,
                                     const struct tpl_value *args)
{
    double number;

    if (self.type == TPL_UNDEFINED)
        tpl_fail_undefined(&r->heap, self);
    if (tpl_is_number(self))
        return tpl_float(tpl_as_double(self));
    if ((self.type == TPL_STRING || self.type == TPL_BIG) &&
        tpl_parse_float(self.string->data, self.string->len, &number))
        return tpl_float(number);
    return tpl_given(args[0]) ? args[0] : tpl_float(0);
}

/* round(precision=0, method="common") */
static struct tpl_value filter_round(struct tpl_render *r, struct tpl_value self,
                                     const struct tpl_value *args)
{
    int64_t precision = tpl_integer_or(r, args[0], 0, "a precision"), integer;
    struct tpl_value method = tpl_given(args[1]) ? args[1] : tpl_word(&r->heap, "common");
    bool ceiling = tpl_is_word(method, "ceil");

    if (self.type == TPL_UNDEFINED)
        tpl_fail_undefined(&r->heap, self);
    if (self.type == TPL_BIG)
        return self;
    if (!tpl_is_number(self))
        tpl_fail(&r->heap, "round: takes a number, not %s", tpl_type_name(self));
    if (tpl_is_word(method, "common")) {
        if (!tpl_as_integer(self, &integer))
            return tpl_float(tpl_round(self.number, precision));
        if (precision >= 0)
            return tpl_int(integer);
        return tpl_int((int64_t)tpl_round((double)integer, precision));
    }
    if (!ceiling && !tpl_is_word(method, "floor"))
        tpl_fail(&r->heap, "round: the method must be common, ceil or floor");
    double unit = pow(10, (double)precision), scaled = tpl_as_double(self) * unit;
    if (!isfinite(scaled))
        tpl_fail(&r->heap, "round: the number is too large");
    return tpl_float((ceiling ? ceil(scaled) : floor(scaled)) / unit);
}

/* ---- any value ----------------------------------------------------------------------------- */

static struct tpl_value filter_default(struct tpl_render *r, struct tpl_value self,
                                       const struct tpl_value *args)
{
    if (self.type != TPL_UNDEFINED && !(tpl_truth(args[1]) && !tpl_truth(self)))
        return self;
    return tpl_given(args[0]) ? args[0] : tpl_word(&r->heap, "");
}

/* Attributes only, no items. */
static struct tpl_value attr(struct tpl_render *r, struct tpl_value self,
                             const struct tpl_value *args)
{
    tpl_want_string(r, args[0], "the name of an attribute");
    if (self.type == TPL_DICT && !tpl_find_method(self, args[0].string))
        return tpl_undefined(&r->heap, self, args[0]);
    return tpl_attribute(r, self, args[0]);
}

const struct tpl_function *tpl_find_filter(const struct tpl_string *name)
{
    static const struct tpl_function filters[] = {
        {"upper", "", upper, NULL},
        {"lower", "", lower, NULL},
        {"capitalize", "", capitalize, NULL},
        {"title", "", title, NULL},
        {"trim", "?chars", trim, NULL},
        {"replace", "old new ?count", replace, NULL},
        {"center", "?width", center, NULL},
        {"indent", "?width first blank", indent, NULL},
        {"truncate", "?length killwords end leeway", truncate, NULL},
        {"wordcount", "", wordcount, NULL},
        {"string", "", string, NULL},
        {"format", NULL, NULL, format},
        {"safe", "", safe, NULL},
        {"escape", "", escape, NULL},
        {"e", "", escape, NULL},
        {"forceescape", "", forceescape, NULL},
        {"urlencode", "", urlencode, NULL},
        {"tojson", "?ensure_ascii indent separators sort_keys", tojson, NULL},
        {"from_json", "", from_json, NULL},
        {"abs", "", filter_abs, NULL},
        {"int", "?default base", filter_int, NULL},
        {"float", "?default", filter_float, NULL},
        {"round", "?precision method", filter_round, NULL},
        {"default", "?default_value boolean", filter_default, NULL},
        {"d", "?default_value boolean", filter_default, NULL},
        {"attr", "name", attr, NULL},
        {"filesizeformat", NOT_SUPPORTED},
        {"pprint", NOT_SUPPORTED},
        {"random", NOT_SUPPORTED},
        {"striptags", NOT_SUPPORTED},
        {"urlize", NOT_SUPPORTED},
        {"wordwrap", NOT_SUPPORTED},
        {"xmlattr", NOT_SUPPORTED},
    };
    const struct tpl_function *found =
        tpl_find_in(filters, sizeof(filters) / sizeof(filters[0]), name);

    return found ? found : tpl_find_list_filter(name);
}
