#include "model/output_python.h"

#include "base/utf8.h"
#include "model/output_scan.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_NESTING = 64 };

static const char FENCE[] = "```";

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* ---- around the arguments ------------------------------------------------------------------- */

enum call_reading python_call_head(const char *text, size_t len, struct call_head *head)
{
    size_t at = space_prefix(text, len), name;
    enum match fence = marker_at(text + at, len - at, FENCE);

    *head = (struct call_head){0};
    if (at == len || fence == MATCH_PARTIAL)
        return CALL_NEEDS;
    if (fence == MATCH_FULL) {
        for (at += strlen(FENCE); at < len && is_letter(text[at]); at++)
            ; /* "python" */
        at += space_prefix(text + at, len - at);
    }
    for (name = at; at < len && (is_letter(text[at]) || strchr("-.0123456789", text[at])); at++)
        if (text[at] == '\0')
            return CALL_IS_OTHER;
    if (at == len)
        return CALL_NEEDS;
    if (text[at] != '(' || at == name)
        return CALL_IS_OTHER;
    head->name = text + name;
    head->name_len = at - name;
    head->used = at + 1;
    return CALL_READ;
}

enum call_reading python_calls_end(const char *text, size_t len, const char *end, size_t *used)
{
    size_t at = space_prefix(text, len);
    enum match match = marker_at(text + at, len - at, FENCE);

    if (match == MATCH_FULL) {
        at += strlen(FENCE);
        at += space_prefix(text + at, len - at);
    }
    if (at < len && match != MATCH_PARTIAL)
        match = marker_at(text + at, len - at, end);
    else
        match = MATCH_PARTIAL;
    *used = match == MATCH_FULL ? at + strlen(end) : 0;
    return match == MATCH_FULL ? CALL_READ : match == MATCH_PARTIAL ? CALL_NEEDS : CALL_IS_OTHER;
}

/* ---- literals ------------------------------------------------------------------------------- */

struct literal {
    const char *at, *end;
    struct buffer *out;
};

static void skip_space(struct literal *l)
{
    l->at += space_prefix(l->at, (size_t)(l->end - l->at));
}

static bool skip(struct literal *l, const char *word)
{
    size_t len = strlen(word);

    if ((size_t)(l->end - l->at) < len || memcmp(l->at, word, len) != 0)
        return false;
    l->at += len;
    return true;
}

/* The number of `digits` hexadecimal digits; -1: there are not so many. */
static int64_t hex(struct literal *l, int digits)
{
    char text[9] = "", *end;

    if (l->end - l->at < digits)
        return -1;
    memcpy(text, l->at, (size_t)digits);
    int64_t value = (int64_t)strtoul(text, &end, 16);
    if (end != text + digits || !strchr("0123456789abcdefABCDEF", text[0]))
        return -1;
    l->at += digits;
    return value;
}

static void put_codepoint(struct buffer *text, uint32_t codepoint)
{
    char bytes[4];
    int len = utf8_encode(codepoint, bytes);

    buffer_append(text, bytes, (size_t)len);
}

/* \x41, \u00e9, \U0001F642; two of \u may be halves of one character, as JSON writes it. What is
 * none of these stays as it is. */
static void escaped_number(struct literal *l, char kind, struct buffer *text)
{
    const char *begin = l->at;
    int64_t value = hex(l, kind == 'x' ? 2 : kind == 'u' ? 4 : 8);

    if (kind == 'u' && value >= 0xD800 && value < 0xDC00 && skip(l, "\\u")) {
        int64_t low = hex(l, 4);
        value =
            low >= 0xDC00 && low < 0xE000 ? 0x10000 + ((value - 0xD800) << 10) + low - 0xDC00 : -1;
    }
    if (value >= 0 && value <= 0x10FFFF && (value < 0xD800 || value >= 0xE000)) {
        put_codepoint(text, (uint32_t)value);
        return;
    }
    l->at = begin;
    buffer_append(text, (char[]){'\\', kind}, 2);
}

static void escape(struct literal *l, struct buffer *text)
{
    static const char from[] = "ntrbfav\\'\"/", to[] = "\n\t\r\b\f\a\v\\'\"/";
    char c = *l->at++;
    const char *found = c ? strchr(from, c) : NULL;

    if (c == 'x' || c == 'u' || c == 'U')
        escaped_number(l, c, text);
    else if (found)
        buffer_append(text, &to[found - from], 1);
    else if (c != '\n') /* which continues the line */
        buffer_append(text, (char[]){'\\', c}, 2);
}

/* Appends what the quoted string stands for. */
static bool read_string(struct literal *l, struct buffer *text)
{
    char quote[4] = {l->at[0], '\0'};

    if (l->end - l->at >= 3 && l->at[1] == quote[0] && l->at[2] == quote[0])
        quote[1] = quote[2] = quote[0];
    l->at += strlen(quote);
    while (l->at < l->end) {
        if (skip(l, quote))
            return true;
        if (*l->at == '\\' && l->end - l->at > 1) {
            l->at++;
            escape(l, text);
        } else {
            buffer_append(text, l->at++, 1);
        }
    }
    return false;
}

static bool put_string(struct literal *l)
{
    struct buffer text;

    buffer_init(&text, 1 << 28);
    bool good = read_string(l, &text);
    if (good)
        json_write_string(l->out, text.len ? text.data : "", (long)text.len);
    buffer_free(&text);
    return good;
}

static bool digits(struct literal *l)
{
    const char *begin = l->at;

    while (l->at < l->end && is_digit(*l->at))
        l->at++;
    return l->at > begin;
}

/* A number that JSON writes in the same way. */
static bool put_number(struct literal *l)
{
    const char *begin = l->at;

    skip(l, "-");
    bool zero = l->at < l->end && *l->at == '0';
    const char *whole = l->at;
    if (!digits(l) || (zero && l->at > whole + 1) || (skip(l, ".") && !digits(l)))
        return false;
    if (skip(l, "e") || skip(l, "E")) {
        if (!skip(l, "+"))
            skip(l, "-");
        if (!digits(l))
            return false;
    }
    buffer_append(l->out, begin, (size_t)(l->at - begin));
    return true;
}

static bool put_value(struct literal *l, int nesting);

/* A list, a tuple, or with keys a dict; its first bracket is behind. */
static bool put_items(struct literal *l, const char *close, bool keys, int nesting)
{
    buffer_append_str(l->out, keys ? "{" : "[");
    for (int n = 0;; n++) {
        skip_space(l);
        if (skip(l, close))
            break;
        if (n > 0)
            buffer_append_str(l->out, ", ");
        if (keys) {
            if (l->at == l->end || !strchr("'\"", *l->at) || !put_string(l))
                return false;
            skip_space(l);
            if (!skip(l, ":"))
                return false;
            buffer_append_str(l->out, ": ");
            skip_space(l);
        }
        if (!put_value(l, nesting + 1))
            return false;
        skip_space(l);
        if (!skip(l, ",")) {
            if (!skip(l, close))
                return false;
            break;
        }
    }
    buffer_append_str(l->out, keys ? "}" : "]");
    return true;
}

static bool put_value(struct literal *l, int nesting)
{
    static const char *const names[][2] = {
        {"True", "true"}, {"False", "false"}, {"None", "null"},
        {"true", "true"}, {"false", "false"}, {"null", "null"},
    };

    if (l->at == l->end || nesting > MAX_NESTING)
        return false;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (skip(l, names[i][0])) {
            buffer_append_str(l->out, names[i][1]);
            return true;
        }
    }
    if (*l->at == '"' || *l->at == '\'')
        return put_string(l);
    if (skip(l, "["))
        return put_items(l, "]", false, nesting);
    if (skip(l, "("))
        return put_items(l, ")", false, nesting);
    if (skip(l, "{"))
        return put_items(l, "}", true, nesting);
    return put_number(l);
}

/* ---- arguments ------------------------------------------------------------------------------ */

/* The name that an argument without one has by its place. */
static void put_place(const struct python_arguments *p, struct buffer *out)
{
    const struct json *names = json_get(p->parameters, "properties");
    const struct json *name = json_is(names, JSON_OBJECT) ? json_first(names) : NULL;

    for (int i = 0; name && i < p->count; i++)
        name = json_next(name);
    if (name)
        json_write_string(out, json_key(name), -1);
    else
        buffer_printf(out, "\"%d\"", p->count);
}

/* One argument, KEY=VALUE or VALUE. */
static void put_argument(struct python_arguments *p, const char *text, size_t len,
                         struct buffer *out)
{
    size_t space = space_prefix(text, len), key = 0;

    text += space;
    len -= space;
    while (len > 0 && space_prefix(text + len - 1, 1))
        len--;
    if (len == 0) /* after the last comma, or none at all */
        return;
    while (key < len && !strchr("=\"'([{", text[key]))
        key++;
    bool named = key > 0 && key < len && text[key] == '=';
    buffer_append_str(out, p->count ? ", " : "{");
    if (named) {
        size_t end = key;
        while (end > 0 && space_prefix(text + end - 1, 1))
            end--;
        json_write_string(out, text, (long)end);
        text += key + 1;
        len -= key + 1;
        space = space_prefix(text, len);
        text += space;
        len -= space;
    } else {
        put_place(p, out);
    }
    buffer_append_str(out, ": ");
    struct literal l = {.at = text, .end = text + len, .out = out};
    size_t before = out->len;
    if (!put_value(&l, 0) || l.at != l.end) {
        out->len = before;
        json_write_string(out, text, (long)len);
    }
    p->count++;
}

/* Whether the byte ends the argument. */
static bool take(struct python_arguments *p, const char *text, size_t at)
{
    char c = text[at];

    if (p->quote == 0) {
        if (p->depth == 0 && (c == ',' || c == ')'))
            return true;
        p->depth += c == '(' || c == '[' || c == '{';
        p->depth -= p->depth > 0 && (c == ')' || c == ']' || c == '}');
        p->quote = c == '"' || c == '\'' ? c : '\0';
        return false;
    }
    if (c == p->quote && !p->escaped)
        p->quote = '\0';
    p->escaped = c == '\\' && !p->escaped;
    return false;
}

size_t python_arguments_read(struct python_arguments *p, const char *text, size_t len, bool final,
                             struct buffer *out, bool *ended)
{
    size_t begin = 0, at = p->scanned;

    *ended = false;
    for (; at < len && !*ended; at++) {
        enum match match = marker_at(text + at, len - at, p->end);
        if (match == MATCH_PARTIAL && !final)
            break;
        if (match == MATCH_FULL) { /* cut: what there is, and nothing is closed */
            buffer_append(out, text + begin, at - begin);
            *ended = true;
            return at;
        }
        if (!take(p, text, at))
            continue;
        put_argument(p, text + begin, at - begin, out);
        *ended = text[at] == ')';
        begin = at + 1;
    }
    if (*ended)
        buffer_append_str(out, p->count ? "}" : "{}");
    if (final && !*ended) {
        buffer_append(out, text + begin, len - begin);
        begin = len;
    }
    p->scanned = at > begin ? at - begin : 0;
    return begin;
}
