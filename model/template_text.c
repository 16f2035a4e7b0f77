#include "model/template_text.h"

#include "model/template_function.h"
#include "model/template_number.h"
#include "model/template_unicode.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void add_format(struct tpl_builder *b, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void add_format(struct tpl_builder *b, const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    int len = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    tpl_add(b, text, (size_t)len < sizeof(text) ? (size_t)len : sizeof(text) - 1, false);
}

/* ---- repr ---------------------------------------------------------------------------------- */

static void add_quoted(struct tpl_builder *b, const struct tpl_string *s)
{
    bool single = s->len > 0 && memchr(s->data, '\'', s->len);
    bool both = single && memchr(s->data, '"', s->len);
    const char *quote = single && !both ? "\"" : "'";
    size_t plain = 0, size;

    tpl_add_word(b, s->markup ? "Markup(" : "");
    tpl_add_word(b, quote);
    for (size_t at = 0; at < s->len; at += size) {
        uint32_t c = tpl_decode(s, at, &size);
        if (c != '\\' && c != (uint32_t)*quote && tpl_has_property(c, TPL_PRINTABLE))
            continue;
        tpl_add_part(b, s, plain, at);
        plain = at + size;
        if (c == '\\' || c == (uint32_t)*quote)
            add_format(b, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            tpl_add_word(b, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        else
            add_format(b, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
    }
    tpl_add_part(b, s, plain, s->len);
    tpl_add_word(b, quote);
    tpl_add_word(b, s->markup ? ")" : "");
}

static void add_list(struct tpl_builder *b, const struct tpl_list *list, bool tuple)
{
    tpl_add_word(b, tuple ? "(" : "[");
    for (size_t i = 0; i < list->n; i++) {
        tpl_add_word(b, i > 0 ? ", " : "");
        tpl_add_repr(b, list->items[i]);
    }
    tpl_add_word(b, !tuple ? "]" : list->n == 1 ? ",)" : ")");
}

static void add_dict(struct tpl_builder *b, const struct tpl_dict *dict)
{
    tpl_add_word(b, "{");
    for (size_t i = 0; i < dict->n; i++) {
        tpl_add_word(b, i > 0 ? ", " : "");
        tpl_add_repr(b, dict->entries[i].key);
        tpl_add_word(b, ": ");
        tpl_add_repr(b, dict->entries[i].value);
    }
    tpl_add_word(b, "}");
}

static void add_view(struct tpl_builder *b, const struct tpl_view *view)
{
    static const char *const names[] = {"dict_keys([", "dict_values([", "dict_items(["};

    tpl_add_word(b, names[view->kind]);
    for (size_t i = 0; i < view->dict->n; i++) {
        tpl_add_word(b, i > 0 ? ", " : "");
        tpl_add_repr(b, tpl_entry_of_view(b->heap, view, i));
    }
    tpl_add_word(b, "])");
}

static void add_range(struct tpl_builder *b, const struct tpl_range *r)
{
    add_format(b, "range(%lld, %lld", (long long)r->start, (long long)r->stop);
    if (r->step != 1)
        add_format(b, ", %lld", (long long)r->step);
    tpl_add_word(b, ")");
}

static void add_float(struct tpl_builder *b, double number)
{
    char text[TPL_NUMBER_MAX];

    tpl_add(b, text, tpl_write_float(number, text), false);
}

/* What has no text in Python but an address. */
_Noreturn static void fail_text(struct tpl_heap *h, struct tpl_value v)
{
    tpl_fail(h, "a %s can't be written as text (is a call or a `| list` missing?)",
             tpl_type_name(v));
}

void tpl_add_repr(struct tpl_builder *b, struct tpl_value v)
{
    tpl_enter(b->heap);
    switch (v.type) {
    case TPL_ABSENT:
    case TPL_UNDEFINED:
        tpl_add_word(b, "Undefined");
        break;
    case TPL_NONE:
        tpl_add_word(b, "None");
        break;
    case TPL_BOOL:
        tpl_add_word(b, v.truth ? "True" : "False");
        break;
    case TPL_INT:
        add_format(b, "%lld", (long long)v.integer);
        break;
    case TPL_FLOAT:
        add_float(b, v.number);
        break;
    case TPL_BIG:
        tpl_add_string(b, v.string);
        break;
    case TPL_STRING:
        add_quoted(b, v.string);
        break;
    case TPL_LIST:
    case TPL_TUPLE:
        add_list(b, v.list, v.type == TPL_TUPLE);
        break;
    case TPL_DICT:
        add_dict(b, v.dict);
        break;
    case TPL_NAMESPACE:
        tpl_add_word(b, "<Namespace ");
        add_dict(b, v.dict);
        tpl_add_word(b, ">");
        break;
    case TPL_VIEW:
        add_view(b, v.view);
        break;
    case TPL_RANGE:
        add_range(b, v.range);
        break;
    case TPL_MACRO:
    case TPL_LOOP:
        tpl_add_object(b, v);
        break;
    case TPL_ITERATOR:
    case TPL_FUNCTION:
    case TPL_METHOD:
    case TPL_CYCLER:
    case TPL_JOINER:
        fail_text(b->heap, v);
    }
    tpl_leave(b->heap);
}

void tpl_add_str(struct tpl_builder *b, struct tpl_value v)
{
    if (v.type == TPL_STRING)
        tpl_add_string(b, v.string);
    else if (v.type != TPL_UNDEFINED)
        tpl_add_repr(b, v);
}

struct tpl_value tpl_soft_str(struct tpl_heap *h, struct tpl_value v)
{
    struct tpl_builder b;

    if (v.type == TPL_STRING)
        return v;
    tpl_builder_init(&b, h);
    tpl_add_str(&b, v);
    return tpl_built(&b);
}

struct tpl_value tpl_str(struct tpl_heap *h, struct tpl_value v)
{
    if (v.type != TPL_STRING || !v.string->markup)
        return tpl_soft_str(h, v);
    struct tpl_string *plain = tpl_copy(h, v.string, sizeof(*plain));
    plain->markup = false;
    return (struct tpl_value){.type = TPL_STRING, .string = plain};
}

void tpl_add_escaped(struct tpl_builder *b, struct tpl_value v)
{
    const struct tpl_string *s = tpl_soft_str(b->heap, v).string;
    size_t plain = 0;

    for (size_t at = 0; at < s->len && !s->markup; at++) {
        char c = s->data[at];
        const char *entity = c == '&'    ? "&amp;"
                             : c == '<'  ? "&lt;"
                             : c == '>'  ? "&gt;"
                             : c == '\'' ? "&#39;"
                             : c == '"'  ? "&#34;"
                                         : NULL;
        if (!entity)
            continue;
        tpl_add_part(b, s, plain, at);
        tpl_add_word(b, entity);
        plain = at + 1;
    }
    tpl_add_part(b, s, plain, s->len);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static void add_json_string(struct tpl_builder *b, const struct tpl_string *s, bool ensure_ascii)
{
    size_t plain = 0, size;

    tpl_add_word(b, "\"");
    for (size_t at = 0; at < s->len; at += size) {
        uint32_t c = tpl_decode(s, at, &size);
        const char *escape = c == '"'    ? "\\\""
                             : c == '\\' ? "\\\\"
                             : c == '\n' ? "\\n"
                             : c == '\r' ? "\\r"
                             : c == '\t' ? "\\t"
                             : c == '\b' ? "\\b"
                             : c == '\f' ? "\\f"
                                         : NULL;
        if (!escape && c >= 0x20 && (c < 0x7F || !ensure_ascii))
            continue;
        tpl_add_part(b, s, plain, at);
        plain = at + size;
        if (escape)
            tpl_add_word(b, escape);
        else if (c < 0x10000)
            add_format(b, "\\u%04x", c);
        else
            add_format(b, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
                       0xDC00 + ((c - 0x10000) & 0x3FF));
    }
    tpl_add_part(b, s, plain, s->len);
    tpl_add_word(b, "\"");
}

static void add_line(struct tpl_builder *b, const struct tpl_json_style *style, int level)
{
    if (!style->indent)
        return;
    tpl_add_word(b, "\n");
    for (int i = 0; i < level; i++)
        tpl_add_string(b, style->indent);
}

static void add_json(struct tpl_builder *b, struct tpl_value v, const struct tpl_json_style *style,
                     int level);

/* A key that is no string is written as JSON writes it, between quotes. */
static void add_json_key(struct tpl_builder *b, struct tpl_value key,
                         const struct tpl_json_style *style)
{
    if (key.type == TPL_STRING) {
        add_json_string(b, key.string, style->ensure_ascii);
        return;
    }
    if (!tpl_is_number(key) && key.type != TPL_NONE && key.type != TPL_BIG)
        tpl_fail(b->heap, "a key of JSON can't be a %s", tpl_type_name(key));
    tpl_add_word(b, "\"");
    add_json(b, key, style, 0);
    tpl_add_word(b, "\"");
}

/* The indices of the entries in the order of their keys, by insertion: keys are few. */
static size_t *sorted_entries(struct tpl_heap *h, const struct tpl_dict *dict)
{
    size_t *order = tpl_alloc(h, dict->n * sizeof(*order));

    for (size_t i = 0; i < dict->n; i++) {
        size_t at = i;
        while (at > 0 &&
               tpl_compare(h, dict->entries[i].key, dict->entries[order[at - 1]].key, "<") < 0) {
            tpl_work(h, 0);
            order[at] = order[at - 1];
            at--;
        }
        order[at] = i;
    }
    return order;
}

static void add_json_dict(struct tpl_builder *b, const struct tpl_dict *dict,
                          const struct tpl_json_style *style, int level)
{
    const size_t *order = style->sort_keys ? sorted_entries(b->heap, dict) : NULL;

    tpl_add_word(b, "{");
    for (size_t i = 0; i < dict->n; i++) {
        const struct tpl_entry *entry = &dict->entries[order ? order[i] : i];
        if (i > 0)
            tpl_add_string(b, style->item_separator);
        add_line(b, style, level + 1);
        add_json_key(b, entry->key, style);
        tpl_add_string(b, style->key_separator);
        add_json(b, entry->value, style, level + 1);
    }
    if (dict->n > 0)
        add_line(b, style, level);
    tpl_add_word(b, "}");
}

static void add_json_list(struct tpl_builder *b, const struct tpl_list *list,
                          const struct tpl_json_style *style, int level)
{
    tpl_add_word(b, "[");
    for (size_t i = 0; i < list->n; i++) {
        if (i > 0)
            tpl_add_string(b, style->item_separator);
        add_line(b, style, level + 1);
        add_json(b, list->items[i], style, level + 1);
    }
    if (list->n > 0)
        add_line(b, style, level);
    tpl_add_word(b, "]");
}

static void add_json_float(struct tpl_builder *b, double number)
{
    if (isfinite(number))
        add_float(b, number);
    else
        tpl_add_word(b, isnan(number) ? "NaN" : number < 0 ? "-Infinity" : "Infinity");
}

static void add_json(struct tpl_builder *b, struct tpl_value v, const struct tpl_json_style *style,
                     int level)
{
    tpl_enter(b->heap);
    switch (v.type) {
    case TPL_NONE:
        tpl_add_word(b, "null");
        break;
    case TPL_BOOL:
        tpl_add_word(b, v.truth ? "true" : "false");
        break;
    case TPL_INT:
    case TPL_BIG:
        tpl_add_repr(b, v);
        break;
    case TPL_FLOAT:
        add_json_float(b, v.number);
        break;
    case TPL_STRING:
        add_json_string(b, v.string, style->ensure_ascii);
        break;
    case TPL_LIST:
    case TPL_TUPLE:
        add_json_list(b, v.list, style, level);
        break;
    case TPL_DICT:
        add_json_dict(b, v.dict, style, level);
        break;
    default:
        tpl_fail(b->heap, "a %s can't be written as JSON (is a `| list` missing?)",
                 tpl_type_name(v));
    }
    tpl_leave(b->heap);
}

void tpl_add_json(struct tpl_builder *b, struct tpl_value v, const struct tpl_json_style *style)
{
    add_json(b, v, style, 0);
}
