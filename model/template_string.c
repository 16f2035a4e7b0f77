/* The methods of str. Parts of a string stay views of it; what changes is built anew. */
#include "model/template_string.h"

#include "model/template_format.h"
#include "model/template_render.h"
#include "model/template_text.h"
#include "model/template_unicode.h"

#include <string.h>

#define NOT_SUPPORTED NULL, NULL, NULL

/* Where `part` begins in bytes `from` up to `to`; -1: nowhere. */
static int64_t find(struct tpl_heap *h, const struct tpl_string *s, size_t from, size_t to,
                    const struct tpl_string *part)
{
    tpl_work(h, to - from);
    if (part->len == 0)
        return (int64_t)from;
    if (from >= to)
        return -1;
    const char *found = memmem(s->data + from, to - from, part->data, part->len);
    return found ? found - s->data : -1;
}

static int64_t find_last(struct tpl_heap *h, const struct tpl_string *s, size_t from, size_t to,
                         const struct tpl_string *part)
{
    if (part->len > to - from)
        return -1;
    for (size_t at = to - part->len + 1; at-- > from;) {
        tpl_work(h, part->len);
        if (part->len == 0 || memcmp(s->data + at, part->data, part->len) == 0)
            return (int64_t)at;
    }
    return -1;
}

static bool has_char(const struct tpl_string *chars, uint32_t c)
{
    size_t size;

    for (size_t at = 0; at < chars->len; at += size)
        if (tpl_decode(chars, at, &size) == c)
            return true;
    return false;
}

struct tpl_value tpl_stripped(struct tpl_heap *h, const struct tpl_string *s,
                              const struct tpl_string *chars, enum tpl_sides sides)
{
    size_t from = 0, to = s->len, size;
    uint32_t c;

    while (sides & TPL_LEFT && from < to) {
        tpl_work(h, chars ? chars->len : 0);
        c = tpl_decode(s, from, &size);
        if (chars ? !has_char(chars, c) : !tpl_is_space(c))
            break;
        from += size;
    }
    while (sides & TPL_RIGHT && from < to) {
        tpl_work(h, chars ? chars->len : 0);
        c = tpl_decode_before(s, to, &size);
        if (chars ? !has_char(chars, c) : !tpl_is_space(c))
            break;
        to -= size;
    }
    return tpl_part(h, s, from, to);
}

struct tpl_value tpl_replaced(struct tpl_heap *h, const struct tpl_string *s,
                              const struct tpl_string *old, const struct tpl_string *by,
                              int64_t count)
{
    struct tpl_builder b;
    size_t at = 0, size;

    tpl_builder_init(&b, h);
    b.markup = s->markup;
    if (old->len == 0) { /* before every character, and at the end */
        for (; count != 0 && at < s->len; at += size, count--) {
            tpl_decode(s, at, &size);
            tpl_add_string(&b, by);
            tpl_add_part(&b, s, at, at + size);
        }
        if (count != 0 && at == s->len)
            tpl_add_string(&b, by);
    }
    while (old->len > 0 && count != 0) {
        int64_t found = find(h, s, at, s->len, old);
        if (found < 0)
            break;
        tpl_add_part(&b, s, at, (size_t)found);
        tpl_add_string(&b, by);
        at = (size_t)found + old->len;
        count--;
    }
    tpl_add_part(&b, s, at, s->len);
    return tpl_built(&b);
}

/* ---- case ---------------------------------------------------------------------------------- */

/* A sigma at the end of a word has a form of its own. */
static bool is_final_sigma(const struct tpl_string *s, size_t at)
{
    size_t size, next = at + 2;

    if (at == 0 || !tpl_has_property(tpl_decode_before(s, at, &size), TPL_ALPHA))
        return false;
    return next >= s->len || !tpl_has_property(tpl_decode(s, next, &size), TPL_ALPHA);
}

static struct tpl_value cased(struct tpl_heap *h, const struct tpl_string *s, enum tpl_case first,
                              enum tpl_case rest)
{
    struct tpl_builder b;
    size_t size;

    tpl_builder_init(&b, h);
    b.markup = s->markup;
    for (size_t at = 0; at < s->len; at += size) {
        uint32_t c = tpl_decode(s, at, &size);
        enum tpl_case to = at == 0 ? first : rest;
        bool foreign = s->mask ? s->mask[at] : s->foreign;
        if (to == TPL_LOWER && c == 0x3A3 && is_final_sigma(s, at))
            tpl_add(&b, "\xCF\x82", 2, foreign);
        else
            tpl_add_cased(&b, c, to, foreign);
    }
    return tpl_built(&b);
}

struct tpl_value tpl_upper(struct tpl_heap *h, const struct tpl_string *s)
{
    return cased(h, s, TPL_UPPER, TPL_UPPER);
}

struct tpl_value tpl_lower(struct tpl_heap *h, const struct tpl_string *s)
{
    return cased(h, s, TPL_LOWER, TPL_LOWER);
}

struct tpl_value tpl_capitalized(struct tpl_heap *h, const struct tpl_string *s)
{
    return cased(h, s, TPL_TITLE, TPL_LOWER);
}

/* Words begin in title case, by characters that have cases (`title`); or each changes to the other
 * case (`swapcase`). */
static struct tpl_value by_character(struct tpl_heap *h, const struct tpl_string *s, bool title)
{
    struct tpl_builder b;
    size_t size;
    bool in_word = false;

    tpl_builder_init(&b, h);
    b.markup = s->markup;
    for (size_t at = 0; at < s->len; at += size) {
        uint32_t c = tpl_decode(s, at, &size);
        bool foreign = s->mask ? s->mask[at] : s->foreign;
        bool upper = tpl_is_upper(c), has_case = upper || tpl_is_lower(c);
        if (!has_case)
            tpl_add_part(&b, s, at, at + size);
        else if (title)
            tpl_add_cased(&b, c, in_word ? TPL_LOWER : TPL_TITLE, foreign);
        else
            tpl_add_cased(&b, c, upper ? TPL_LOWER : TPL_UPPER, foreign);
        in_word = has_case;
    }
    return tpl_built(&b);
}

/* Whether all characters with cases have this one, and there are some. */
static bool is_all(const struct tpl_string *s, bool upper)
{
    bool any = false;
    size_t size;

    for (size_t at = 0; at < s->len; at += size) {
        uint32_t c = tpl_decode(s, at, &size);
        bool is_upper = tpl_is_upper(c), is_lower = !is_upper && tpl_is_lower(c);
        if (upper ? is_lower : is_upper)
            return false;
        any |= is_upper || is_lower;
    }
    return any;
}

bool tpl_is_all_upper(const struct tpl_string *s)
{
    return is_all(s, true);
}

bool tpl_is_all_lower(const struct tpl_string *s)
{
    return is_all(s, false);
}

/* ---- width --------------------------------------------------------------------------------- */

struct tpl_value tpl_justified(struct tpl_heap *h, const struct tpl_string *s, int64_t width,
                               const struct tpl_string *fill, bool left, bool right)
{
    int64_t pad = width - (int64_t)tpl_chars(h, s), before;
    struct tpl_builder b;

    if (fill && tpl_chars(h, fill) != 1)
        tpl_fail(h, "what fills a width must be one character");
    tpl_builder_init(&b, h);
    b.markup = s->markup;
    if (pad < 0)
        pad = 0;
    before = left && right ? pad / 2 + (pad & width & 1) : left ? pad : 0;
    for (int64_t i = 0; i < pad; i++) {
        if (i == before)
            tpl_add_string(&b, s);
        if (fill)
            tpl_add_string(&b, fill);
        else
            tpl_add(&b, " ", 1, s->foreign);
    }
    if (before == pad)
        tpl_add_string(&b, s);
    return tpl_built(&b);
}

/* ---- splitting ----------------------------------------------------------------------------- */

struct tpl_value tpl_lines(struct tpl_heap *h, const struct tpl_string *s, bool keep_ends)
{
    struct tpl_value list = tpl_list(h, 0);
    size_t begin = 0, size;

    for (size_t at = 0; at < s->len;) {
        uint32_t c = tpl_decode(s, at, &size);
        size_t next = at + size;
        if (tpl_is_line_end(c)) {
            if (c == '\r' && next < s->len && s->data[next] == '\n')
                next++;
            tpl_push(h, list.list, tpl_part(h, s, begin, keep_ends ? next : at));
            begin = next;
        }
        at = next;
    }
    if (begin < s->len)
        tpl_push(h, list.list, tpl_part(h, s, begin, s->len));
    return list;
}

static void split_at_space(struct tpl_heap *h, const struct tpl_string *s, int64_t max,
                           struct tpl_list *list)
{
    size_t at = 0, begin, size;

    for (;;) {
        while (at < s->len && tpl_is_space(tpl_decode(s, at, &size)))
            at += size;
        if (at == s->len)
            return;
        if (max-- == 0)
            break;
        for (begin = at; at < s->len && !tpl_is_space(tpl_decode(s, at, &size));)
            at += size;
        tpl_push(h, list, tpl_part(h, s, begin, at));
    }
    tpl_push(h, list, tpl_part(h, s, at, s->len)); /* the rest keeps its white space */
}

static struct tpl_value split(struct tpl_heap *h, const struct tpl_string *s,
                              const struct tpl_string *separator, int64_t max)
{
    struct tpl_value list = tpl_list(h, 0);
    size_t at = 0;
    int64_t found;

    if (!separator) {
        split_at_space(h, s, max, list.list);
        return list;
    }
    if (separator->len == 0)
        tpl_fail(h, "a separator must not be empty");
    while (max-- != 0 && (found = find(h, s, at, s->len, separator)) >= 0) {
        tpl_push(h, list.list, tpl_part(h, s, at, (size_t)found));
        at = (size_t)found + separator->len;
    }
    tpl_push(h, list.list, tpl_part(h, s, at, s->len));
    return list;
}

static void rsplit_at_space(struct tpl_heap *h, const struct tpl_string *s, int64_t max,
                            struct tpl_list *list)
{
    size_t to = s->len, end, size;

    for (;;) {
        while (to > 0 && tpl_is_space(tpl_decode_before(s, to, &size)))
            to -= size;
        if (to == 0)
            return;
        if (max-- == 0)
            break;
        for (end = to; to > 0 && !tpl_is_space(tpl_decode_before(s, to, &size));)
            to -= size;
        tpl_push(h, list, tpl_part(h, s, to, end));
    }
    tpl_push(h, list, tpl_part(h, s, 0, to));
}

struct tpl_value tpl_rsplit(struct tpl_heap *h, const struct tpl_string *s,
                            const struct tpl_string *separator, int64_t max)
{
    struct tpl_value list = tpl_list(h, 0), reversed;
    size_t to = s->len;
    int64_t found;

    if (!separator) {
        rsplit_at_space(h, s, max, list.list);
    } else {
        if (separator->len == 0)
            tpl_fail(h, "a separator must not be empty");
        while (max-- != 0 && (found = find_last(h, s, 0, to, separator)) >= 0) {
            tpl_push(h, list.list, tpl_part(h, s, (size_t)found + separator->len, to));
            to = (size_t)found;
        }
        tpl_push(h, list.list, tpl_part(h, s, 0, to));
    }
    reversed = tpl_list(h, list.list->n);
    for (size_t i = list.list->n; i-- > 0;)
        tpl_push(h, reversed.list, list.list->items[i]);
    return reversed;
}

struct tpl_value tpl_joined(struct tpl_heap *h, const struct tpl_string *between,
                            const struct tpl_list *parts)
{
    struct tpl_builder b;

    tpl_builder_init(&b, h);
    b.markup = between->markup;
    for (size_t i = 0; i < parts->n; i++) {
        if (parts->items[i].type != TPL_STRING && !between->markup)
            tpl_fail(h, "join() takes strings, not %s", tpl_type_name(parts->items[i]));
        if (i > 0)
            tpl_add_string(&b, between);
        if (between->markup)
            tpl_add_escaped(&b, parts->items[i]);
        else
            tpl_add_string(&b, parts->items[i].string);
    }
    return tpl_built(&b);
}

/* ---- methods ------------------------------------------------------------------------------- */

/* A string argument that may be None or missing: NULL then. */
static const struct tpl_string *string_or_null(struct tpl_render *r, struct tpl_value v,
                                               const char *what)
{
    return tpl_given(v) && v.type != TPL_NONE ? tpl_want_string(r, v, what) : NULL;
}

static struct tpl_value strip(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    return tpl_stripped(&r->heap, self.string, string_or_null(r, args[0], "strip()"), TPL_BOTH);
}

static struct tpl_value lstrip(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    return tpl_stripped(&r->heap, self.string, string_or_null(r, args[0], "lstrip()"), TPL_LEFT);
}

static struct tpl_value rstrip(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    return tpl_stripped(&r->heap, self.string, string_or_null(r, args[0], "rstrip()"), TPL_RIGHT);
}

static struct tpl_value str_split(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    return split(&r->heap, self.string, string_or_null(r, args[0], "a separator"),
                 tpl_integer_or(r, args[1], -1, "maxsplit"));
}

static struct tpl_value str_rsplit(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    return tpl_rsplit(&r->heap, self.string, string_or_null(r, args[0], "a separator"),
                      tpl_integer_or(r, args[1], -1, "maxsplit"));
}

static struct tpl_value splitlines(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    return tpl_lines(&r->heap, self.string, tpl_integer_or(r, args[0], 0, "keepends") != 0);
}

/* The parts before, at and after a separator; `last`: its last place. */
static struct tpl_value cut(struct tpl_render *r, struct tpl_value self, struct tpl_value arg,
                            bool last)
{
    const struct tpl_string *s = self.string, *separator = tpl_want_string(r, arg, "a separator");
    struct tpl_value parts = tpl_tuple(&r->heap, 3), empty = tpl_part(&r->heap, s, 0, 0);

    if (separator->len == 0)
        tpl_fail(&r->heap, "a separator must not be empty");
    int64_t found = last ? find_last(&r->heap, s, 0, s->len, separator)
                         : find(&r->heap, s, 0, s->len, separator);
    for (int i = 0; i < 3; i++)
        parts.list->items[i] = empty;
    if (found < 0) {
        parts.list->items[last ? 2 : 0] = self;
        return parts;
    }
    size_t end = (size_t)found + separator->len;
    parts.list->items[0] = tpl_part(&r->heap, s, 0, (size_t)found);
    parts.list->items[1] = tpl_part(&r->heap, s, (size_t)found, end);
    parts.list->items[2] = tpl_part(&r->heap, s, end, s->len);
    return parts;
}

static struct tpl_value partition(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    return cut(r, self, args[0], false);
}

static struct tpl_value rpartition(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    return cut(r, self, args[0], true);
}

static struct tpl_value replace(struct tpl_render *r, struct tpl_value self,
                                const struct tpl_value *args)
{
    return tpl_replaced(&r->heap, self.string, tpl_want_string(r, args[0], "replace()"),
                        tpl_want_string(r, args[1], "replace()"),
                        tpl_integer_or(r, args[2], -1, "a count"));
}

static struct tpl_value join(struct tpl_render *r, struct tpl_value self,
                             const struct tpl_value *args)
{
    return tpl_joined(&r->heap, self.string, tpl_items(&r->heap, args[0]));
}

/* Byte positions of the characters `start` up to `stop`, arguments that may be missing. */
static bool byte_range(struct tpl_render *r, const struct tpl_string *s, struct tpl_value start,
                       struct tpl_value stop, size_t *from, size_t *to)
{
    int64_t n = (int64_t)tpl_chars(&r->heap, s);
    int64_t a =
        tpl_given(start) && start.type != TPL_NONE ? tpl_want_integer(r, start, "start") : 0;
    int64_t b = tpl_given(stop) && stop.type != TPL_NONE ? tpl_want_integer(r, stop, "end") : n;

    a = a < -n ? 0 : a < 0 ? a + n : a;
    b = b < -n ? 0 : b < 0 ? b + n : b > n ? n : b;
    if (a > n || a > b)
        return false;
    *from = tpl_char_at(&r->heap, s, (size_t)a);
    *to = tpl_char_at(&r->heap, s, (size_t)b);
    return true;
}

/* Whether the string begins (or ends) with one of `what`: a string or a tuple of them. */
static struct tpl_value has_affix(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args, bool end)
{
    const struct tpl_string *s = self.string;
    struct tpl_list one = {.items = (struct tpl_value *)&args[0], .n = 1};
    const struct tpl_list *list = args[0].type == TPL_TUPLE ? args[0].list : &one;
    size_t from, to;
    bool inside = byte_range(r, s, args[1], args[2], &from, &to);

    for (size_t i = 0; i < list->n; i++) {
        const struct tpl_string *a = tpl_want_string(r, list->items[i], "a prefix or suffix");
        if (inside && a->len <= to - from &&
            (a->len == 0 || memcmp(s->data + (end ? to - a->len : from), a->data, a->len) == 0))
            return tpl_bool(true);
    }
    return tpl_bool(false);
}

static struct tpl_value startswith(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    return has_affix(r, self, args, false);
}

static struct tpl_value endswith(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    return has_affix(r, self, args, true);
}

static struct tpl_value removeprefix(struct tpl_render *r, struct tpl_value self,
                                     const struct tpl_value *args)
{
    const struct tpl_string *s = self.string, *p = tpl_want_string(r, args[0], "a prefix");
    bool has = p->len <= s->len && p->len > 0 && memcmp(s->data, p->data, p->len) == 0;

    return has ? tpl_part(&r->heap, s, p->len, s->len) : self;
}

static struct tpl_value removesuffix(struct tpl_render *r, struct tpl_value self,
                                     const struct tpl_value *args)
{
    const struct tpl_string *s = self.string, *p = tpl_want_string(r, args[0], "a suffix");
    bool has =
        p->len <= s->len && p->len > 0 && memcmp(s->data + s->len - p->len, p->data, p->len) == 0;

    return has ? tpl_part(&r->heap, s, 0, s->len - p->len) : self;
}

/* The character where a part is; -1: nowhere. */
static int64_t position(struct tpl_render *r, struct tpl_value self, const struct tpl_value *args,
                        bool last)
{
    const struct tpl_string *part = tpl_want_string(r, args[0], "what is looked for");
    size_t from, to;

    if (!byte_range(r, self.string, args[1], args[2], &from, &to))
        return -1;
    int64_t at = last ? find_last(&r->heap, self.string, from, to, part)
                      : find(&r->heap, self.string, from, to, part);
    if (at < 0)
        return -1;
    struct tpl_string before = {.data = self.string->data, .len = (size_t)at};
    return (int64_t)tpl_chars(&r->heap, &before);
}

static struct tpl_value str_find(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    return tpl_int(position(r, self, args, false));
}

static struct tpl_value str_rfind(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    return tpl_int(position(r, self, args, true));
}

static struct tpl_value known_position(struct tpl_render *r, int64_t at)
{
    if (at < 0)
        tpl_fail(&r->heap, "index(): the string does not hold it");
    return tpl_int(at);
}

static struct tpl_value str_index(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    return known_position(r, position(r, self, args, false));
}

static struct tpl_value str_rindex(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    return known_position(r, position(r, self, args, true));
}

static struct tpl_value str_count(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    const struct tpl_string *part = tpl_want_string(r, args[0], "what is counted");
    size_t from, to;
    int64_t n = 0, at;

    if (!byte_range(r, self.string, args[1], args[2], &from, &to))
        return tpl_int(0);
    struct tpl_string inside = {.data = self.string->data + from, .len = to - from};
    if (part->len == 0)
        return tpl_int((int64_t)tpl_chars(&r->heap, &inside) + 1);
    for (; (at = find(&r->heap, self.string, from, to, part)) >= 0; n++)
        from = (size_t)at + part->len;
    return tpl_int(n);
}

static struct tpl_value upper(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    (void)args;
    return tpl_upper(&r->heap, self.string);
}

static struct tpl_value lower(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    (void)args;
    return tpl_lower(&r->heap, self.string);
}

static struct tpl_value capitalize(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    (void)args;
    return tpl_capitalized(&r->heap, self.string);
}

static struct tpl_value title(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    (void)args;
    return by_character(&r->heap, self.string, true);
}

static struct tpl_value swapcase(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    (void)args;
    return by_character(&r->heap, self.string, false);
}

static struct tpl_value center(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    return tpl_justified(&r->heap, self.string, tpl_want_integer(r, args[0], "a width"),
                         string_or_null(r, args[1], "what fills"), true, true);
}

static struct tpl_value ljust(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    return tpl_justified(&r->heap, self.string, tpl_want_integer(r, args[0], "a width"),
                         string_or_null(r, args[1], "what fills"), false, true);
}

static struct tpl_value rjust(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    return tpl_justified(&r->heap, self.string, tpl_want_integer(r, args[0], "a width"),
                         string_or_null(r, args[1], "what fills"), true, false);
}

static struct tpl_value zfill(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    const struct tpl_string *s = self.string;
    int64_t pad = tpl_want_integer(r, args[0], "a width") - (int64_t)tpl_chars(&r->heap, s);
    size_t sign = s->len > 0 && (s->data[0] == '+' || s->data[0] == '-');
    struct tpl_builder b;

    tpl_builder_init(&b, &r->heap);
    tpl_add_part(&b, s, 0, sign);
    for (; pad > 0; pad--)
        tpl_add(&b, "0", 1, false);
    tpl_add_part(&b, s, sign, s->len);
    return tpl_built(&b);
}

/* Whether every character has one of the properties, and there are some. */
static struct tpl_value every(struct tpl_value self, unsigned properties)
{
    const struct tpl_string *s = self.string;
    size_t size;

    for (size_t at = 0; at < s->len; at += size) {
        uint32_t c = tpl_decode(s, at, &size);
        bool has = false;
        for (unsigned p = TPL_PRINTABLE; p <= TPL_NUMERIC; p++)
            has |= (properties >> p & 1) && tpl_has_property(c, (enum tpl_property)p);
        if (!has)
            return tpl_bool(false);
    }
    return tpl_bool(s->len > 0 || properties == 1u << TPL_PRINTABLE);
}

#define PROPERTY_METHOD(function, properties)                                                      \
    static struct tpl_value function(struct tpl_render *r, struct tpl_value self,                  \
                                     const struct tpl_value *args)                                 \
    {                                                                                              \
        (void)args;                                                                                \
        tpl_work(&r->heap, 8 * self.string->len);                                                  \
        return every(self, properties);                                                            \
    }
PROPERTY_METHOD(is_alpha, 1u << TPL_ALPHA)
PROPERTY_METHOD(is_decimal, 1u << TPL_DECIMAL)
PROPERTY_METHOD(is_digit, 1u << TPL_DIGIT)
PROPERTY_METHOD(is_numeric, 1u << TPL_NUMERIC)
PROPERTY_METHOD(is_printable, 1u << TPL_PRINTABLE)
PROPERTY_METHOD(is_alnum, 1u << TPL_ALPHA | 1u << TPL_NUMERIC | 1u << TPL_DIGIT | 1u << TPL_DECIMAL)

static struct tpl_value is_blank(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    const struct tpl_string *s = self.string;

    (void)args;
    return tpl_bool(s->len > 0 && tpl_stripped(&r->heap, s, NULL, TPL_LEFT).string->len == 0);
}

static struct tpl_value is_ascii(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    (void)args;
    return tpl_bool(tpl_chars(&r->heap, self.string) == self.string->len);
}

static struct tpl_value is_upper(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    (void)args;
    tpl_work(&r->heap, 8 * self.string->len);
    return tpl_bool(tpl_is_all_upper(self.string));
}

static struct tpl_value is_lower(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    (void)args;
    tpl_work(&r->heap, 8 * self.string->len);
    return tpl_bool(tpl_is_all_lower(self.string));
}

static struct tpl_value format(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_args *args)
{
    return tpl_format_braces(r, self.string, args);
}

const struct tpl_function *tpl_find_string_method(const struct tpl_string *name)
{
    static const struct tpl_function methods[] = {
        {"strip", "/?chars", strip, NULL},
        {"lstrip", "/?chars", lstrip, NULL},
        {"rstrip", "/?chars", rstrip, NULL},
        {"split", "?sep maxsplit", str_split, NULL},
        {"rsplit", "?sep maxsplit", str_rsplit, NULL},
        {"splitlines", "?keepends", splitlines, NULL},
        {"partition", "/sep", partition, NULL},
        {"rpartition", "/sep", rpartition, NULL},
        {"replace", "/old new ?count", replace, NULL},
        {"join", "/iterable", join, NULL},
        {"startswith", "/prefix ?start end", startswith, NULL},
        {"endswith", "/suffix ?start end", endswith, NULL},
        {"removeprefix", "/prefix", removeprefix, NULL},
        {"removesuffix", "/suffix", removesuffix, NULL},
        {"find", "/sub ?start end", str_find, NULL},
        {"rfind", "/sub ?start end", str_rfind, NULL},
        {"index", "/sub ?start end", str_index, NULL},
        {"rindex", "/sub ?start end", str_rindex, NULL},
        {"count", "/sub ?start end", str_count, NULL},
        {"upper", "", upper, NULL},
        {"lower", "", lower, NULL},
        {"capitalize", "", capitalize, NULL},
        {"title", "", title, NULL},
        {"swapcase", "", swapcase, NULL},
        {"center", "/width ?fillchar", center, NULL},
        {"ljust", "/width ?fillchar", ljust, NULL},
        {"rjust", "/width ?fillchar", rjust, NULL},
        {"zfill", "/width", zfill, NULL},
        {"isalpha", "", is_alpha, NULL},
        {"isalnum", "", is_alnum, NULL},
        {"isdecimal", "", is_decimal, NULL},
        {"isdigit", "", is_digit, NULL},
        {"isnumeric", "", is_numeric, NULL},
        {"isprintable", "", is_printable, NULL},
        {"isspace", "", is_blank, NULL},
        {"isascii", "", is_ascii, NULL},
        {"isupper", "", is_upper, NULL},
        {"islower", "", is_lower, NULL},
        {"format", NULL, NULL, format},
        {"casefold", NOT_SUPPORTED},
        {"encode", NOT_SUPPORTED},
        {"expandtabs", NOT_SUPPORTED},
        {"format_map", NOT_SUPPORTED},
        {"isidentifier", NOT_SUPPORTED},
        {"istitle", NOT_SUPPORTED},
        {"maketrans", NOT_SUPPORTED},
        {"translate", NOT_SUPPORTED},
    };

    return tpl_find_in(methods, sizeof(methods) / sizeof(methods[0]), name);
}
