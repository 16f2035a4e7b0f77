#include "model/template_format.h"

#include "model/template_number.h"
#include "model/template_render.h"
#include "model/template_text.h"
#include "model/template_unicode.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { WIDTH_MAX = 100000, PRECISION_MAX = 300, FIELD_MAX = 1024 };

/* How one value is written. */
struct spec {
    char fill[4];
    size_t fill_len;
    char align; /* '<', '>', '^', '=' or 0 */
    char sign;  /* '+', ' ' or 0 */
    bool alternate, zero;
    char group;               /* ',' or '_' between groups of digits, or 0 */
    int64_t width, precision; /* -1: none */
    char type;                /* 0: the value's own */
};

static void add_fill(struct tpl_builder *b, const struct spec *spec, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        tpl_add(b, spec->fill, spec->fill_len, false);
}

/* The text at its place in the width. `sign_len` bytes at its start stay in front of '=' filling.
 */
static void add_aligned(struct tpl_builder *b, const struct spec *spec, struct tpl_value text,
                        size_t sign_len, char align)
{
    const struct tpl_string *s = text.string;
    int64_t pad = spec->width - (int64_t)tpl_chars(b->heap, s);

    if (pad < 0)
        pad = 0;
    tpl_add_part(b, s, 0, align == '=' ? sign_len : 0);
    add_fill(b, spec, align == '>' || align == '=' ? pad : align == '^' ? pad / 2 : 0);
    tpl_add_part(b, s, align == '=' ? sign_len : 0, s->len);
    add_fill(b, spec, align == '<' ? pad : align == '^' ? pad - pad / 2 : 0);
}

/* The digits of an integer in a base, without sign. */
static size_t write_digits(uint64_t magnitude, unsigned base, bool upper, char out[72])
{
    char reversed[72];
    size_t n = 0;

    do {
        reversed[n++] = (upper ? "0123456789ABCDEF" : "0123456789abcdef")[magnitude % base];
        magnitude /= base;
    } while (magnitude > 0);
    for (size_t i = 0; i < n; i++)
        out[i] = reversed[n - 1 - i];
    return n;
}

/* Appends digits with separators between groups of `size`; digits after the first `whole` (the
 * fraction) have none. */
static void add_grouped(struct tpl_builder *b, const char *digits, size_t len, size_t whole,
                        size_t size, char group)
{
    for (size_t i = 0; i < len; i++) {
        if (group && i > 0 && i < whole && (whole - i) % size == 0)
            tpl_add(b, &group, 1, false);
        tpl_add(b, &digits[i], 1, false);
    }
}

static size_t add_sign(struct tpl_builder *b, const struct spec *spec, bool negative)
{
    char sign = negative ? '-' : spec->sign;

    if (sign)
        tpl_add(b, &sign, 1, false);
    return sign != 0;
}

static void add_number(struct tpl_builder *out, const struct spec *spec, struct tpl_builder *text,
                       size_t sign_len)
{
    char align = spec->align ? spec->align : spec->zero ? '=' : '>';

    add_aligned(out, spec, tpl_built(text), sign_len, align);
}

static void add_integer(struct tpl_builder *out, const struct spec *spec, int64_t value,
                        size_t min_digits)
{
    unsigned base = spec->type == 'x' || spec->type == 'X' ? 16
                    : spec->type == 'o'                    ? 8
                    : spec->type == 'b'                    ? 2
                                                           : 10;
    uint64_t magnitude = value < 0 ? -(uint64_t)value : (uint64_t)value;
    char digits[72];
    size_t len = write_digits(magnitude, base, spec->type == 'X', digits);
    struct tpl_builder text;

    tpl_builder_init(&text, out->heap);
    size_t sign_len = add_sign(&text, spec, value < 0);
    if (spec->alternate && base != 10) {
        char prefix[2] = {'0', spec->type};
        tpl_add(&text, prefix, 2, false);
        sign_len += 2;
    }
    for (size_t i = len; i < min_digits; i++)
        tpl_add(&text, "0", 1, false);
    add_grouped(&text, digits, len, len, base == 10 ? 3 : 4, spec->group);
    add_number(out, spec, &text, sign_len);
}

static void add_double(struct tpl_builder *out, const struct spec *spec, double value)
{
    char format[8] = "%#.*f", digits[800];
    int precision = spec->precision < 0 ? 6 : (int)spec->precision;
    char type = spec->type == '%' ? 'f' : spec->type;
    double magnitude = value < 0 || (value == 0 && 1 / value < 0) ? -value : value;
    struct tpl_builder text;
    int len;

    tpl_builder_init(&text, out->heap);
    size_t sign_len = add_sign(&text, spec, magnitude != value || (value == 0 && 1 / value < 0));
    if (spec->type == 0 && spec->precision < 0) {
        len = (int)tpl_write_float(magnitude, digits);
    } else {
        snprintf(format, sizeof(format), spec->alternate ? "%%#.*%c" : "%%.*%c", type ? type : 'g');
        if (spec->type == '%')
            magnitude *= 100;
        if (type == 'n')
            format[strlen(format) - 1] = 'g';
        len = snprintf(digits, sizeof(digits), format, precision, magnitude);
    }
    size_t whole = strspn(digits, "0123456789");
    add_grouped(&text, digits, (size_t)len, whole, 3, spec->group);
    if (spec->type == '%')
        tpl_add(&text, "%", 1, false);
    add_number(out, spec, &text, sign_len);
}

/* Appends a text, cut to the precision. */
static void add_text(struct tpl_builder *out, const struct spec *spec, struct tpl_value text)
{
    if (spec->precision >= 0)
        text = tpl_part(out->heap, text.string, 0,
                        tpl_char_at(out->heap, text.string, (size_t)spec->precision));
    add_aligned(out, spec, text, 0, spec->align ? spec->align : '<');
}

/* ---- % ------------------------------------------------------------------------------------- */

/* What is left of a % format and of its values. */
struct percent {
    struct tpl_render *r;
    const struct tpl_string *format;
    size_t at;
    struct tpl_value values;
    size_t next; /* value, of a tuple; of others 0 or 1 */
};

static char format_byte(struct percent *p)
{
    if (p->at >= p->format->len)
        tpl_fail(&p->r->heap, "a format with '%%' is cut short");
    return p->format->data[p->at];
}

static struct tpl_value next_value(struct percent *p)
{
    size_t n = p->values.type == TPL_TUPLE ? p->values.list->n : 1;

    if (p->next >= n)
        tpl_fail(&p->r->heap, "a format with '%%' has more places than values");
    p->next++;
    return p->values.type == TPL_TUPLE ? p->values.list->items[p->next - 1] : p->values;
}

static int64_t read_number(struct percent *p, int64_t max)
{
    int64_t number = 0;

    if (format_byte(p) == '*') {
        p->at++;
        number = tpl_want_integer(p->r, next_value(p), "a width");
        if (number < -max || number > max)
            tpl_fail(&p->r->heap, "a width in a format is too large");
        return number;
    }
    while (format_byte(p) >= '0' && format_byte(p) <= '9') {
        number = number * 10 + (p->format->data[p->at++] - '0');
        if (number > max)
            tpl_fail(&p->r->heap, "a width in a format is too large");
    }
    return number;
}

/* The value of "%(name)s". */
static struct tpl_value mapped_value(struct percent *p)
{
    size_t begin = ++p->at, depth = 1;

    while (depth > 0) {
        char c = format_byte(p);
        depth += c == '(';
        depth -= c == ')';
        p->at++;
    }
    if (p->values.type != TPL_DICT)
        tpl_fail(&p->r->heap, "a format with names needs a dict");
    const struct tpl_value *found = tpl_dict_find(
        &p->r->heap, p->values.dict, tpl_part(&p->r->heap, p->format, begin, p->at - 1));
    if (!found)
        tpl_fail(&p->r->heap, "a format names a value that is not there");
    return *found;
}

static struct spec read_flags(struct percent *p)
{
    struct spec spec = {.fill = " ", .fill_len = 1, .align = '>', .precision = -1};

    for (bool more = true; more; p->at += more) {
        char c = format_byte(p);
        more = true;
        if (c == '-')
            spec.align = '<';
        else if (c == '+' || (c == ' ' && spec.sign != '+'))
            spec.sign = c;
        else if (c == '#')
            spec.alternate = true;
        else if (c == '0')
            spec.zero = true;
        else
            more = c == ' ';
    }
    spec.width = read_number(p, WIDTH_MAX);
    if (spec.width < 0) {
        spec.align = '<';
        spec.width = -spec.width;
    }
    if (format_byte(p) == '.') {
        p->at++;
        spec.precision = read_number(p, PRECISION_MAX);
        spec.precision = spec.precision < 0 ? 0 : spec.precision;
    }
    while (strchr("hlL", format_byte(p)))
        p->at++;
    spec.type = format_byte(p);
    p->at++;
    return spec;
}

static struct tpl_value integer_of(struct percent *p, struct tpl_value v)
{
    int64_t integer;

    if (v.type == TPL_FLOAT && (v.number > -9.2e18 && v.number < 9.2e18))
        return tpl_int((int64_t)v.number);
    if (!tpl_as_integer(v, &integer))
        tpl_fail(&p->r->heap, "a format with a number got a %s", tpl_type_name(v));
    return tpl_int(integer);
}

static void add_percent_number(struct percent *p, struct tpl_builder *out, struct spec *spec,
                               struct tpl_value v)
{
    if (v.type == TPL_UNDEFINED)
        tpl_fail_undefined(&p->r->heap, v);
    if (spec->zero && spec->align != '<') {
        spec->fill[0] = '0';
        spec->align = '=';
    }
    if (strchr("diuxXo", spec->type)) {
        if (v.type == TPL_FLOAT && strchr("xXo", spec->type))
            tpl_fail(&p->r->heap, "a format with an integer got a float");
        v = integer_of(p, v);
        add_integer(out, spec, v.integer, spec->precision > 0 ? (size_t)spec->precision : 0);
        return;
    }
    if (!tpl_is_number(v))
        tpl_fail(&p->r->heap, "a format with a number got a %s", tpl_type_name(v));
    add_double(out, spec, tpl_as_double(v));
}

/* One place; p->at is past the percent sign. */
static void add_place(struct percent *p, struct tpl_builder *out)
{
    struct tpl_heap *h = &p->r->heap;
    struct tpl_builder text;
    struct tpl_value v = TPL_NO_VALUE;

    if (format_byte(p) == '(')
        v = mapped_value(p);
    struct spec spec = read_flags(p);
    if (spec.type == '%') {
        tpl_add(out, "%", 1, false);
        return;
    }
    if (!strchr("diuxXofFeEgGsra", spec.type))
        tpl_fail(h, "a format has the unknown type '%%%c'", spec.type);
    if (!tpl_given(v))
        v = next_value(p);
    if (!strchr("sra", spec.type)) {
        add_percent_number(p, out, &spec, v);
        return;
    }
    if (spec.type == 'a')
        tpl_fail(h, "a format with '%%a' is not supported");
    tpl_builder_init(&text, h);
    if (spec.type == 's' && !p->format->markup)
        tpl_add_str(&text, v);
    else if (spec.type == 's')
        tpl_add_escaped(&text, v);
    else
        tpl_add_repr(&text, v);
    add_text(out, &spec, tpl_built(&text));
}

struct tpl_value tpl_format_percent(struct tpl_render *r, const struct tpl_string *format,
                                    struct tpl_value values)
{
    struct percent p = {.r = r, .format = format, .values = values};
    struct tpl_builder out;

    tpl_builder_init(&out, &r->heap);
    out.markup = format->markup;
    while (p.at < format->len) {
        const char *begin = format->data + p.at;
        const char *sign = memchr(begin, '%', format->len - p.at);
        size_t to = sign ? (size_t)(sign - format->data) : format->len;
        tpl_add_part(&out, format, p.at, to);
        p.at = to;
        if (sign) {
            p.at++;
            add_place(&p, &out);
        }
    }
    bool plain = values.type != TPL_TUPLE && values.type != TPL_DICT && values.type != TPL_LIST;
    if (values.type == TPL_TUPLE ? p.next < values.list->n : plain && p.next == 0)
        tpl_fail(&r->heap, "a format with '%%' has fewer places than values");
    return tpl_built(&out);
}

/* ---- str.format ---------------------------------------------------------------------------- */

/* "[[fill]align][sign][#][0][width][,][.precision][type]" */
static struct spec parse_spec(struct tpl_heap *h, const struct tpl_string *text)
{
    struct spec spec = {.fill = " ", .fill_len = 1, .precision = -1};
    char word[64];
    size_t size = 1, at = 0;

    if (text->len > 0)
        tpl_decode(text, 0, &size);
    if (text->len > size && strchr("<>^=", text->data[size])) {
        memcpy(spec.fill, text->data, size);
        spec.fill_len = size;
        spec.align = text->data[size];
        at = size + 1;
    }
    snprintf(word, sizeof(word), "%.*s", (int)(text->len - at < 60 ? text->len - at : 60),
             text->data + at);
    const char *c = word;
    if (!spec.align && *c && strchr("<>^=", *c))
        spec.align = *c++;
    if (*c && strchr("+- ", *c)) {
        spec.sign = *c == '-' ? 0 : *c;
        c++;
    }
    if (*c == '#') {
        spec.alternate = true;
        c++;
    }
    if (*c == '0') {
        spec.zero = true;
        spec.fill[0] = spec.align ? spec.fill[0] : '0';
        c++;
    }
    while (*c >= '0' && *c <= '9' && spec.width <= WIDTH_MAX)
        spec.width = spec.width * 10 + (*c++ - '0');
    if (*c == ',' || *c == '_')
        spec.group = *c++;
    if (*c == '.') {
        spec.precision = 0;
        for (c++; *c >= '0' && *c <= '9' && spec.precision <= PRECISION_MAX; c++)
            spec.precision = spec.precision * 10 + (*c - '0');
    }
    if (*c)
        spec.type = *c++;
    if (*c || spec.width > WIDTH_MAX || spec.precision > PRECISION_MAX)
        tpl_fail(h, "a format of a value is wrong or too large");
    return spec;
}

static void add_by_spec(struct tpl_render *r, struct tpl_builder *out, struct tpl_value v,
                        const struct tpl_string *text)
{
    struct tpl_heap *h = &r->heap;
    struct spec spec = parse_spec(h, text);
    int64_t integer;

    if (text->len == 0) {
        tpl_add_str(out, v);
        return;
    }
    if (v.type == TPL_BOOL && !spec.type)
        v = tpl_soft_str(h, v);
    if (v.type == TPL_STRING && (!spec.type || spec.type == 's') && spec.align != '=') {
        if (spec.zero && !spec.align)
            spec.align = '<';
        add_text(out, &spec, v);
    } else if (tpl_as_integer(v, &integer) && (!spec.type || strchr("dxXobn", spec.type)) &&
               spec.precision < 0) {
        add_integer(out, &spec, integer, 0);
    } else if (tpl_is_number(v) && (!spec.type || strchr("eEfFgGn%", spec.type))) {
        add_double(out, &spec, tpl_as_double(v));
    } else {
        tpl_fail(h, "a format does not fit a %s", tpl_type_name(v));
    }
}

/* The value that a field names: "", "0", "name", "name.attribute[item]". */
static struct tpl_value field_value(struct tpl_render *r, const struct tpl_string *field,
                                    const struct tpl_args *args, int64_t *next)
{
    struct tpl_heap *h = &r->heap;
    size_t at = 0, end;
    int64_t index;

    while (at < field->len && field->data[at] != '.' && field->data[at] != '[')
        at++;
    struct tpl_value name = tpl_part(h, field, 0, at), v = TPL_NO_VALUE;
    if (at == 0 || tpl_parse_integer(field->data, at, 10, &index)) {
        index = at == 0 ? (*next)++ : index;
        if (index < 0 || (size_t)index >= args->n)
            tpl_fail(h, "a format has more places than values");
        v = args->positional[index];
    }
    for (size_t i = 0; at > 0 && !tpl_given(v) && i < args->n_named; i++)
        if (tpl_equal(h, args->named[i].name, name))
            v = args->named[i].value;
    if (!tpl_given(v))
        tpl_fail(h, "a format names a value that is not there");
    for (; at < field->len; at = end) {
        bool item = field->data[at] == '[';
        for (end = at + 1; end < field->len &&
                           (item ? field->data[end] != ']' : !strchr(".[", field->data[end]));)
            end++;
        if (item && end == field->len)
            tpl_fail(h, "a field of a format has no ']'");
        struct tpl_value part = tpl_part(h, field, at + 1, end);
        if (item && tpl_parse_integer(part.string->data, part.string->len, 10, &index))
            part = tpl_int(index);
        v = item ? tpl_item(r, v, part) : tpl_attribute(r, v, part);
        end += item;
    }
    return v;
}

/* One field, between braces. */
static void add_field(struct tpl_render *r, struct tpl_builder *out, const struct tpl_string *field,
                      const struct tpl_args *args, int64_t *next)
{
    size_t colon = 0, name_end;
    struct tpl_builder text;

    while (colon < field->len && field->data[colon] != ':')
        colon++;
    bool converted = colon >= 2 && field->data[colon - 2] == '!';
    name_end = converted ? colon - 2 : colon;
    struct tpl_value v = field_value(r, tpl_part(&r->heap, field, 0, name_end).string, args, next);
    if (converted) {
        tpl_builder_init(&text, &r->heap);
        if (field->data[colon - 1] == 'r')
            tpl_add_repr(&text, v);
        else if (field->data[colon - 1] == 's')
            tpl_add_str(&text, v);
        else
            tpl_fail(&r->heap, "a format has an unknown conversion");
        v = tpl_built(&text);
    }
    size_t from = colon < field->len ? colon + 1 : colon;
    const struct tpl_string *spec = tpl_part(&r->heap, field, from, field->len).string;
    if (spec->len > 0 && memchr(spec->data, '{', spec->len))
        tpl_fail(&r->heap, "nested fields of a format are not supported");
    if (v.type == TPL_UNDEFINED && spec->len > 0)
        tpl_fail_undefined(&r->heap, v);
    add_by_spec(r, out, v, spec);
}

struct tpl_value tpl_format_braces(struct tpl_render *r, const struct tpl_string *format,
                                   const struct tpl_args *args)
{
    struct tpl_builder out;
    int64_t next = 0;
    size_t at = 0, end;

    if (format->markup)
        tpl_fail(&r->heap, "format() of a safe string is not supported");
    tpl_builder_init(&out, &r->heap);
    while (at < format->len) {
        char c = format->data[at];
        if (c != '{' && c != '}') {
            for (end = at;
                 end < format->len && format->data[end] != '{' && format->data[end] != '}';)
                end++;
            tpl_add_part(&out, format, at, end);
            at = end;
            continue;
        }
        if (at + 1 < format->len && format->data[at + 1] == c) {
            tpl_add_part(&out, format, at, at + 1);
            at += 2;
            continue;
        }
        for (end = at + 1; end < format->len && format->data[end] != '}';)
            end++;
        if (c == '}' || end == format->len)
            tpl_fail(&r->heap, "a format has a single brace");
        add_field(r, &out, tpl_part(&r->heap, format, at + 1, end).string, args, &next);
        at = end + 1;
    }
    return tpl_built(&out);
}

/* ---- time ---------------------------------------------------------------------------------- */

struct tpl_value tpl_format_time(struct tpl_render *r, const struct tpl_string *format,
                                 int64_t unix_s)
{
    static const char known[] = "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%";
    char text[FIELD_MAX], one[4] = "%";
    struct tpl_builder out;
    time_t moment = (time_t)unix_s;
    struct tm local;

    localtime_r(&moment, &local);
    tpl_builder_init(&out, &r->heap);
    for (size_t at = 0; at < format->len; at++) {
        if (format->data[at] != '%') {
            tpl_add_part(&out, format, at, at + 1);
            continue;
        }
        bool dash = at + 2 < format->len && format->data[at + 1] == '-'; /* glibc: no padding */
        char c = at + 1 + dash < format->len ? format->data[at + 1 + dash] : '\0';
        if (c == 'f' && !dash) { /* Python's own: microseconds, which this clock has not */
            tpl_add_word(&out, "000000");
        } else if (c == 'Z' || c == 'z') {
            /* a naive datetime has no zone */
        } else if (c && strchr(known, c)) {
            snprintf(one, sizeof(one), dash ? "%%-%c" : "%%%c", c);
            size_t len = strftime(text, sizeof(text), one, &local);
            tpl_add(&out, text, len, false);
        } else {
            tpl_add_part(&out, format, at, at + 1 + dash + (c != '\0'));
        }
        at += dash + (c != '\0');
    }
    return tpl_built(&out);
}
