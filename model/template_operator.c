/* What templates do with values by signs: a.b, a[b], a[b:c], a + b and so on. */
#include "model/template_format.h"
#include "model/template_number.h"
#include "model/template_render.h"
#include "model/template_text.h"

#include <string.h>

/* ---- attributes and items ------------------------------------------------------------------ */

/* Python's own names (__class__ and the like) are out of bounds. */
static bool is_internal(const struct tpl_string *name)
{
    return name->len >= 2 && memcmp(name->data, "__", 2) == 0;
}

static bool changes(struct tpl_value v, const struct tpl_string *name)
{
    static const char *const names[] = {"append", "clear",   "extend",    "insert",
                                        "pop",    "popitem", "remove",    "reverse",
                                        "sort",   "update",  "setdefault"};
    struct tpl_value word = {.type = TPL_STRING, .string = name};

    if (v.type != TPL_LIST && v.type != TPL_DICT)
        return false;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (tpl_is_word(word, names[i]))
            return true;
    return false;
}

/* What Python's getattr() finds; TPL_ABSENT when it finds nothing. */
static struct tpl_value own_attribute(struct tpl_render *r, struct tpl_value v,
                                      struct tpl_value name)
{
    struct tpl_value *found;

    if (v.type == TPL_NAMESPACE) {
        found = tpl_dict_find(&r->heap, v.dict, name);
        return found ? *found : TPL_NO_VALUE;
    }
    if (v.type == TPL_LOOP)
        return tpl_loop_attribute(r, v, name.string);
    if (v.type == TPL_MACRO && tpl_is_word(name, "name"))
        return tpl_given(v.macro->def->name) ? v.macro->def->name : tpl_word(&r->heap, "caller");
    if (v.type == TPL_CYCLER && tpl_is_word(name, "current"))
        return v.cycler->items->items[v.cycler->at];
    const struct tpl_function *function = tpl_find_method(v, name.string);
    if (!function)
        return TPL_NO_VALUE;
    bool own = v.type == TPL_LIST ? v.list->own : v.type == TPL_DICT && v.dict->own;
    if (changes(v, name.string) && !(r->may_change && own))
        return tpl_undefined_hint(&r->heap, "a template may not change lists and dicts");
    struct tpl_method *method = tpl_alloc(&r->heap, sizeof(*method));
    *method = (struct tpl_method){.function = function, .self = v};
    return (struct tpl_value){.type = TPL_METHOD, .method = method};
}

struct tpl_value tpl_attribute(struct tpl_render *r, struct tpl_value v, struct tpl_value name)
{
    struct tpl_value *found;

    if (v.type == TPL_UNDEFINED)
        tpl_fail_undefined(&r->heap, v);
    if (is_internal(name.string) && name.string->len > 4 &&
        memcmp(name.string->data + name.string->len - 2, "__", 2) == 0)
        return tpl_undefined_hint(&r->heap, "an attribute with '__' may not be used");
    struct tpl_value attribute = own_attribute(r, v, name);
    if (tpl_given(attribute))
        return attribute;
    if (v.type == TPL_DICT && (found = tpl_dict_find(&r->heap, v.dict, name)))
        return *found;
    return tpl_undefined(&r->heap, v, name);
}

/* Where index `i` of a sequence of `n` is; false when it is outside. */
static bool normal_index(int64_t i, size_t n, size_t *at)
{
    if (i < 0)
        i += (int64_t)n;
    *at = (size_t)i;
    return i >= 0 && (size_t)i < n;
}

/* An element of a sequence; TPL_ABSENT when there is none. */
static struct tpl_value element(struct tpl_render *r, struct tpl_value v, int64_t index)
{
    size_t n = 0, at, from, to;

    if (v.type != TPL_STRING && v.type != TPL_LIST && v.type != TPL_TUPLE && v.type != TPL_RANGE)
        return TPL_NO_VALUE;
    tpl_length(&r->heap, v, &n);
    if (!normal_index(index, n, &at))
        return TPL_NO_VALUE;
    if (v.type == TPL_RANGE)
        return tpl_range_at(v.range, (int64_t)at);
    if (v.type != TPL_STRING)
        return v.list->items[at];
    from = tpl_char_at(&r->heap, v.string, at);
    for (to = from + 1; to < v.string->len && ((unsigned char)v.string->data[to] & 0xC0) == 0x80;)
        to++;
    return tpl_part(&r->heap, v.string, from, to);
}

struct tpl_value tpl_item(struct tpl_render *r, struct tpl_value v, struct tpl_value index)
{
    struct tpl_value found = TPL_NO_VALUE;
    int64_t integer;

    if (v.type == TPL_UNDEFINED)
        tpl_fail_undefined(&r->heap, v);
    bool is_key = index.type != TPL_LIST && index.type != TPL_DICT && index.type != TPL_VIEW;
    if (v.type == TPL_DICT && is_key) {
        const struct tpl_value *value = tpl_dict_find(&r->heap, v.dict, index);
        if (value)
            return *value;
    } else if (tpl_as_integer(index, &integer)) {
        found = element(r, v, integer);
    }
    if (!tpl_given(found) && index.type == TPL_STRING && !is_internal(index.string))
        found = own_attribute(r, v, index);
    return tpl_given(found) ? found : tpl_undefined(&r->heap, v, index);
}

/* ---- slices -------------------------------------------------------------------------------- */

/* A bound of a slice, as Python adjusts it to `n` elements. */
static int64_t bound(struct tpl_render *r, struct tpl_value v, int64_t n, bool backwards,
                     int64_t otherwise)
{
    int64_t low = backwards ? -1 : 0, high = backwards ? n - 1 : n;

    if (v.type == TPL_NONE)
        return otherwise;
    int64_t at = tpl_want_integer(r, v, "a bound of a slice");
    if (at < 0)
        at = at < -n ? -1 - n : at;
    at = at < 0 ? at + n : at;
    return at < low ? low : at > high ? high : at;
}

/* Characters `from` up to `to` of a string, without copying. */
static struct tpl_value substring(struct tpl_render *r, const struct tpl_string *s, int64_t from,
                                  int64_t to)
{
    size_t begin = tpl_char_at(&r->heap, s, (size_t)from), length = (size_t)(to - from);
    struct tpl_string rest = *s;

    rest.data += begin;
    rest.len -= begin;
    return tpl_part(&r->heap, s, begin, begin + tpl_char_at(&r->heap, &rest, length));
}

static struct tpl_value slice_range(struct tpl_render *r, const struct tpl_range *of, int64_t from,
                                    int64_t by, int64_t count)
{
    struct tpl_range *range = tpl_alloc(&r->heap, sizeof(*range));

    const int64_t max = (int64_t)1 << 40, most = 1 << 17; /* a range has fewer numbers than this */

    if (of->step > max || of->step < -max || of->start > max || of->start < -max)
        tpl_fail(&r->heap, "the numbers of a slice are too large");
    by = by > most ? most : by < -most ? -most : by; /* either way it leads past the end */
    *range = (struct tpl_range){of->start + from * of->step, 0, of->step * by, count};
    range->stop = range->start + count * range->step;
    return (struct tpl_value){.type = TPL_RANGE, .range = range};
}

struct tpl_value tpl_slice(struct tpl_render *r, struct tpl_value v, struct tpl_value start,
                           struct tpl_value stop, struct tpl_value step)
{
    struct tpl_heap *h = &r->heap;
    struct tpl_builder b;
    size_t n = 0;

    if (v.type == TPL_UNDEFINED)
        tpl_fail_undefined(h, v);
    if (v.type != TPL_STRING && v.type != TPL_LIST && v.type != TPL_TUPLE && v.type != TPL_RANGE)
        tpl_fail(h, "a %s can't be sliced", tpl_type_name(v));
    int64_t by = step.type == TPL_NONE ? 1 : tpl_want_integer(r, step, "the step of a slice");
    if (by == 0)
        tpl_fail(h, "the step of a slice can't be 0");
    tpl_length(h, v, &n);
    int64_t length = (int64_t)n, from = bound(r, start, length, by < 0, by < 0 ? length - 1 : 0);
    int64_t to = bound(r, stop, length, by < 0, by < 0 ? -1 : length);
    int64_t count =
        by > 0 ? (to > from ? (to - from - 1) / by + 1 : 0)
               : (from > to ? (int64_t)((uint64_t)(from - to - 1) / -(uint64_t)by) + 1 : 0);
    if (v.type == TPL_RANGE)
        return slice_range(r, v.range, from, by, count);
    if (v.type == TPL_STRING && (by == 1 || count == 0))
        return substring(r, v.string, from, count == 0 ? from : to);
    const struct tpl_list *items = tpl_items(h, v);
    if (v.type == TPL_STRING) {
        tpl_builder_init(&b, h);
        b.markup = v.string->markup;
        for (int64_t i = 0; i < count; i++)
            tpl_add_string(&b, items->items[from + i * by].string);
        return tpl_built(&b);
    }
    struct tpl_value list = tpl_list(h, (size_t)count);
    for (int64_t i = 0; i < count; i++)
        tpl_push(h, list.list, items->items[from + i * by]);
    list.type = v.type;
    return list;
}

/* ---- operators ----------------------------------------------------------------------------- */

static struct tpl_value add_strings(struct tpl_heap *h, struct tpl_value a, struct tpl_value b)
{
    struct tpl_builder sum;

    tpl_builder_init(&sum, h);
    sum.markup = a.string->markup || b.string->markup;
    if (sum.markup) {
        tpl_add_escaped(&sum, a);
        tpl_add_escaped(&sum, b);
    } else {
        tpl_add_string(&sum, a.string);
        tpl_add_string(&sum, b.string);
    }
    return tpl_built(&sum);
}

static struct tpl_value add_lists(struct tpl_heap *h, struct tpl_value a, struct tpl_value b)
{
    struct tpl_value sum = tpl_list(h, a.list->n + b.list->n);

    for (size_t i = 0; i < a.list->n; i++)
        tpl_push(h, sum.list, a.list->items[i]);
    for (size_t i = 0; i < b.list->n; i++)
        tpl_push(h, sum.list, b.list->items[i]);
    sum.type = a.type;
    return sum;
}

static bool is_sequence(struct tpl_value v)
{
    return v.type == TPL_STRING || v.type == TPL_LIST || v.type == TPL_TUPLE;
}

static struct tpl_value repeat(struct tpl_heap *h, struct tpl_value v, int64_t times)
{
    struct tpl_builder b;

    tpl_builder_init(&b, h);
    if (v.type == TPL_STRING) {
        b.markup = v.string->markup;
        for (int64_t i = 0; i < times && v.string->len > 0; i++)
            tpl_add_string(&b, v.string);
        return tpl_built(&b);
    }
    struct tpl_value list = tpl_list(h, 0);
    for (int64_t i = 0; i < times && v.list->n > 0; i++)
        for (size_t j = 0, n = v.list->n; j < n; j++)
            tpl_push(h, list.list, v.list->items[j]);
    list.type = v.type;
    return list;
}

struct tpl_value tpl_binary(struct tpl_render *r, enum tpl_operator op, struct tpl_value a,
                            struct tpl_value b)
{
    struct tpl_heap *h = &r->heap;
    int64_t times;

    if (tpl_is_number(a) && tpl_is_number(b))
        return tpl_arithmetic(h, op, a, b);
    if (op == TPL_MOD && a.type == TPL_STRING)
        return tpl_format_percent(r, a.string, b);
    if (a.type == TPL_UNDEFINED)
        tpl_fail_undefined(h, a);
    if (b.type == TPL_UNDEFINED)
        tpl_fail_undefined(h, b);
    if (op == TPL_ADD && a.type == b.type && is_sequence(a))
        return a.type == TPL_STRING ? add_strings(h, a, b) : add_lists(h, a, b);
    if (op == TPL_MUL && is_sequence(a) && tpl_as_integer(b, &times))
        return repeat(h, a, times);
    if (op == TPL_MUL && is_sequence(b) && tpl_as_integer(a, &times))
        return repeat(h, b, times);
    if (a.type == TPL_BIG || b.type == TPL_BIG)
        tpl_fail(h, "'%s' does not take integers of more than 64 bits", tpl_operator_name(op));
    tpl_fail(h, "'%s' does not take %s and %s", tpl_operator_name(op), tpl_type_name(a),
             tpl_type_name(b));
}
