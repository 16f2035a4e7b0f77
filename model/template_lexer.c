/* Follows jinja2/lexer.py rule by rule; what it does by regular expressions stands here by hand. */
#include "model/template_lexer.h"

#include "base/utf8.h"
#include "model/template_number.h"
#include "model/template_unicode.h"

#include <string.h>

enum { BRACES_MAX = 256 };

struct lexer {
    struct tpl_heap *heap;
    const char *at, *end;
    const char *counted; /* up to here lines are counted */
    bool line_starting;  /* what was read last ended a line */
    char braces[BRACES_MAX];
    int n_braces;
    struct tpl_token *tokens;
    size_t n, cap;
};

static bool looking_at(const struct lexer *lx, const char *at, const char *text)
{
    size_t len = strlen(text);

    return (size_t)(lx->end - at) >= len && memcmp(at, text, len) == 0;
}

static bool is_digit(const struct lexer *lx, const char *at)
{
    return at < lx->end && *at >= '0' && *at <= '9';
}

/* Past the white space at `at`. */
static const char *skip_space(const struct lexer *lx, const char *at)
{
    struct tpl_string rest = {.data = at, .len = (size_t)(lx->end - at)};
    size_t used = 0, size;

    while (used < rest.len && tpl_is_space(tpl_decode(&rest, used, &size)))
        used += size;
    return at + used;
}

/* The line of `at`, which never goes back. */
static int line_of(struct lexer *lx, const char *at)
{
    for (; lx->counted < at; lx->counted++)
        lx->heap->line += *lx->counted == '\n';
    return lx->heap->line;
}

static struct tpl_token *push(struct lexer *lx, enum tpl_token_kind kind, const char *text,
                              size_t len)
{
    tpl_work(lx->heap, len);
    if (lx->n == lx->cap) {
        size_t cap = lx->cap ? 2 * lx->cap : 256;
        struct tpl_token *tokens = tpl_alloc(lx->heap, cap * sizeof(*tokens));
        if (lx->n > 0)
            memcpy(tokens, lx->tokens, lx->n * sizeof(*tokens));
        lx->tokens = tokens;
        lx->cap = cap;
    }
    lx->tokens[lx->n] =
        (struct tpl_token){.kind = kind, .line = lx->heap->line, .text = text, .len = len};
    return &lx->tokens[lx->n++];
}

/* ---- between tags -------------------------------------------------------------------------- */

/* Data up to a tag, less the white space that the tag takes. */
static void push_data(struct lexer *lx, const char *from, const char *to, char sign, bool lstrip)
{
    struct tpl_string text = {.data = from, .len = (size_t)(to - from)};
    size_t size;

    line_of(lx, from);
    if (sign == '-') {
        while (text.len > 0 && tpl_is_space(tpl_decode_before(&text, text.len, &size)))
            text.len -= size;
    } else if (sign != '+' && lstrip) {
        size_t blank = text.len;
        while (blank > 0 && text.data[blank - 1] != '\n' &&
               tpl_is_space(tpl_decode_before(&text, blank, &size)))
            blank -= size;
        if (blank > 0 ? text.data[blank - 1] == '\n' : lx->line_starting)
            text.len = blank;
    }
    if (text.len > 0)
        push(lx, TOKEN_DATA, text.data, text.len);
}

/* Past the end of a tag that stands at `at`: "%}", "-%}" or "+%}"; NULL when there is none. */
static const char *tag_end(const struct lexer *lx, const char *at, const char *end, bool trim)
{
    char sign = at < lx->end ? *at : '\0';

    if (looking_at(lx, at, end)) {
        at += 2;
        return at + (trim && at < lx->end && *at == '\n');
    }
    if ((sign == '-' || (sign == '+' && trim)) && looking_at(lx, at + 1, end))
        return sign == '-' ? skip_space(lx, at + 3) : at + 3;
    return NULL;
}

static void go_on_at(struct lexer *lx, const char *at)
{
    lx->line_starting = at > lx->at && at[-1] == '\n';
    lx->at = at;
}

static void skip_comment(struct lexer *lx)
{
    for (const char *at = lx->at; at < lx->end; at++) {
        const char *end = tag_end(lx, at, "#}", true);
        if (end) {
            go_on_at(lx, end);
            return;
        }
    }
    tpl_fail(lx->heap, "a comment has no end");
}

/* Past a word at `at` with white space around it, or NULL. */
static const char *skip_word(const struct lexer *lx, const char *at, const char *word)
{
    at = skip_space(lx, at);
    return looking_at(lx, at, word) ? skip_space(lx, at + strlen(word)) : NULL;
}

/* Past "{% raw %}" at `at`, or NULL. `at` is after the sign. */
static const char *raw_begin(const struct lexer *lx, const char *at)
{
    at = skip_word(lx, at, "raw");
    if (!at)
        return NULL;
    return looking_at(lx, at, "%}") ? at + 2 : tag_end(lx, at, "%}", false);
}

static void read_raw(struct lexer *lx)
{
    for (const char *at = lx->at; at < lx->end; at++) {
        if (!looking_at(lx, at, "{%"))
            continue;
        char sign = at + 2 < lx->end && strchr("-+", at[2]) ? at[2] : '\0';
        const char *end = skip_word(lx, at + 2 + (sign != '\0'), "endraw");
        /* The white space before the end's own sign was skipped; the sign was not. */
        end = end ? tag_end(lx, end, "%}", true) : NULL;
        if (!end)
            continue;
        push_data(lx, lx->at, at, sign, true);
        go_on_at(lx, end);
        return;
    }
    tpl_fail(lx->heap, "a raw block has no end");
}

/* ---- inside a tag -------------------------------------------------------------------------- */

/* Digits with '_' between them from `at`, or NULL. */
static const char *skip_digits(const struct lexer *lx, const char *at)
{
    if (!is_digit(lx, at))
        return NULL;
    while (is_digit(lx, at) || (at < lx->end && *at == '_' && is_digit(lx, at + 1)))
        at++;
    return at;
}

/* The end of the fraction and the exponent of a number whose whole part ends at `at`; `at` itself
 * when there is neither. */
static const char *skip_fraction(const struct lexer *lx, const char *at)
{
    const char *end = at, *digits;

    if (at < lx->end && *at == '.' && (digits = skip_digits(lx, at + 1)))
        end = digits;
    if (end < lx->end && (*end == 'e' || *end == 'E')) {
        const char *sign = end + 1 + (end + 1 < lx->end && (end[1] == '+' || end[1] == '-'));
        if ((digits = skip_digits(lx, sign)))
            end = digits;
    }
    return end;
}

static const char *skip_based(const struct lexer *lx, const char *at, const char *digits)
{
    const char *end = at;

    for (;;) {
        const char *next = end + (end < lx->end && *end == '_');
        if (next >= lx->end || !*next || !strchr(digits, *next))
            return end;
        end = next + 1;
    }
}

static const char *skip_integer(const struct lexer *lx, const char *at)
{
    char kind = at + 1 < lx->end ? at[1] : '\0';
    const char *digits = kind == 'x' || kind == 'X'   ? "0123456789abcdefABCDEF"
                         : kind == 'o' || kind == 'O' ? "01234567"
                         : kind == 'b' || kind == 'B' ? "01"
                                                      : NULL;

    if (*at != '0')
        return skip_based(lx, at, "0123456789");
    if (digits && skip_based(lx, at + 2, digits) > at + 2)
        return skip_based(lx, at + 2, digits);
    return skip_based(lx, at, "0");
}

static void read_number(struct lexer *lx)
{
    const char *whole = skip_digits(lx, lx->at), *end = whole;
    int64_t integer;
    double number;

    if (lx->at[-1] != '.') /* `x.0.1` is no number of 0.1 */
        end = skip_fraction(lx, whole);
    if (end > whole) {
        struct tpl_token *token = push(lx, TOKEN_FLOAT, lx->at, (size_t)(end - lx->at));
        if (!tpl_parse_float(token->text, token->len, &number))
            tpl_fail(lx->heap, "a number is too long");
        token->value = tpl_float(number);
    } else {
        end = skip_integer(lx, lx->at);
        struct tpl_token *token = push(lx, TOKEN_INTEGER, lx->at, (size_t)(end - lx->at));
        if (!tpl_parse_integer(token->text, token->len, 0, &integer))
            tpl_fail(lx->heap, "an integer is too large");
        token->value = tpl_int(integer);
    }
    go_on_at(lx, end);
}

static const char *skip_name(const struct lexer *lx, const char *at)
{
    struct tpl_string rest = {.data = at, .len = (size_t)(lx->end - at)};
    size_t used = 0, size;

    for (; used < rest.len; used += size) {
        uint32_t c = tpl_decode(&rest, used, &size);
        bool letter = c == '_' || tpl_has_property(c, TPL_ALPHA);
        if (!letter && (used == 0 || !tpl_has_property(c, TPL_DECIMAL)))
            break;
    }
    return at + used;
}

/* Reads `n` hexadecimal digits of an escape. */
static uint32_t read_hex(struct lexer *lx, const char *at, const char *end, int n)
{
    uint32_t c = 0;

    for (int i = 0; i < n; i++) {
        const char *hex = "0123456789abcdef0123456789ABCDEF";
        const char *digit = at + i < end && at[i] ? strchr(hex, at[i]) : NULL;
        if (!digit)
            tpl_fail(lx->heap, "an escape in a string is cut short");
        c = c * 16 + (uint32_t)((digit - hex) % 16);
    }
    if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000))
        tpl_fail(lx->heap, "an escape in a string is no character");
    return c;
}

/* Appends what stands after a backslash at `at`; returns where it ends. */
static const char *unescape(struct lexer *lx, struct tpl_builder *b, const char *at,
                            const char *end)
{
    static const char plain[] = "\\'\"abfnrtv", meaning[] = "\\'\"\a\b\f\n\r\t\v";
    const char *known = *at ? strchr(plain, *at) : NULL;
    char bytes[4];
    uint32_t c = 0;

    if (*at == '\n')
        return at + 1;
    if (known) {
        tpl_add(b, &meaning[known - plain], 1, false);
        return at + 1;
    }
    if (*at == 'x' || *at == 'u' || *at == 'U') {
        int n = *at == 'x' ? 2 : *at == 'u' ? 4 : 8;
        c = read_hex(lx, at + 1, end, n);
        at += 1 + n;
    } else if (*at >= '0' && *at <= '7') {
        for (int i = 0; i < 3 && at < end && *at >= '0' && *at <= '7'; i++)
            c = c * 8 + (uint32_t)(*at++ - '0');
    } else if (*at == 'N') {
        tpl_fail(lx->heap, "escapes by name (\\N) are not supported");
    } else {
        tpl_add(b, "\\", 1, false);
        return at;
    }
    tpl_add(b, bytes, (size_t)utf8_encode(c, bytes), false);
    return at;
}

static void read_string(struct lexer *lx)
{
    const char quote = *lx->at, *begin = lx->at + 1, *end = begin;
    struct tpl_builder b;

    while (end < lx->end && *end != quote)
        end += *end == '\\' && end + 1 < lx->end ? 2 : 1;
    if (end >= lx->end)
        tpl_fail(lx->heap, "a string has no end");
    tpl_builder_init(&b, lx->heap);
    for (const char *at = begin; at < end;) {
        const char *slash = memchr(at, '\\', (size_t)(end - at));
        tpl_add(&b, at, (size_t)((slash ? slash : end) - at), false);
        at = slash ? unescape(lx, &b, slash + 1, end) : end;
    }
    push(lx, TOKEN_STRING, b.data ? b.data : "", b.len);
    go_on_at(lx, end + 1);
}

static void read_operator(struct lexer *lx)
{
    static const char *const operators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                            "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                            ">",  "<",  "=",  ".",  ":",  "|",  ",", ";", NULL};
    static const char opening[] = "([{", closing[] = ")]}";
    const char *const *op = operators, *brace;

    while (*op && !looking_at(lx, lx->at, *op))
        op++;
    if (!*op)
        tpl_fail(lx->heap, "unexpected character '%.*s'",
                 (unsigned char)*lx->at < 0x80 ? 1 : (int)(skip_name(lx, lx->at) - lx->at), lx->at);
    if ((brace = strchr(opening, **op))) {
        if (lx->n_braces == BRACES_MAX)
            tpl_fail(lx->heap, "brackets are nested more than %d deep", BRACES_MAX);
        lx->braces[lx->n_braces++] = closing[brace - opening];
    } else if (strchr(closing, **op)) {
        if (lx->n_braces == 0 || lx->braces[--lx->n_braces] != **op)
            tpl_fail(lx->heap, "unexpected '%s'", *op);
    }
    push(lx, TOKEN_OPERATOR, *op, strlen(*op));
    go_on_at(lx, lx->at + strlen(*op));
}

/* One token in a tag; false at the tag's end. */
static bool read_in_tag(struct lexer *lx, bool block)
{
    const char *end = lx->n_braces > 0 ? NULL : tag_end(lx, lx->at, block ? "%}" : "}}", block);

    line_of(lx, lx->at);
    if (end) {
        push(lx, block ? TOKEN_BLOCK_END : TOKEN_VARIABLE_END, lx->at, 2);
        go_on_at(lx, end);
        return false;
    }
    if (lx->at == lx->end)
        tpl_fail(lx->heap, "a tag has no end");
    if ((end = skip_space(lx, lx->at)) > lx->at) {
        go_on_at(lx, end);
    } else if (is_digit(lx, lx->at)) {
        read_number(lx);
    } else if ((end = skip_name(lx, lx->at)) > lx->at) {
        push(lx, TOKEN_NAME, lx->at, (size_t)(end - lx->at));
        go_on_at(lx, end);
    } else if (*lx->at == '\'' || *lx->at == '"') {
        read_string(lx);
    } else {
        read_operator(lx);
    }
    return true;
}

/* Reads the data up to the next tag, and the tag. */
static void read_tag(struct lexer *lx)
{
    const char *tag = lx->at;

    while (tag < lx->end && !(*tag == '{' && tag + 1 < lx->end && strchr("{%#", tag[1])))
        tag++;
    if (tag == lx->end) {
        push_data(lx, lx->at, tag, '+', false);
        lx->at = tag;
        return;
    }
    char kind = tag[1], sign = tag + 2 < lx->end && strchr("-+", tag[2]) ? tag[2] : '\0';
    const char *inside = tag + 2 + (sign != '\0'),
               *raw = kind == '%' ? raw_begin(lx, inside) : NULL;
    push_data(lx, lx->at, tag, sign, kind != '{');
    line_of(lx, tag);
    go_on_at(lx, raw ? raw : inside);
    if (kind == '#') {
        skip_comment(lx);
    } else if (raw) {
        read_raw(lx);
    } else {
        push(lx, kind == '%' ? TOKEN_BLOCK_BEGIN : TOKEN_VARIABLE_BEGIN, tag, 2);
        while (read_in_tag(lx, kind == '%'))
            ;
    }
}

struct tpl_token *tpl_tokenize(struct tpl_heap *h, const char *source, size_t len)
{
    char *clean = tpl_alloc(h, len + 1); /* NUL: every look at `*end` is in bounds */
    size_t n = 0;

    for (size_t i = 0; i < len; i++) { /* all kinds of newline become one */
        if (source[i] == '\r' && i + 1 < len && source[i + 1] == '\n')
            continue;
        clean[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    n -= n > 0 && clean[n - 1] == '\n'; /* the last one is not part of the template */
    clean[n] = '\0';
    struct lexer lx = {.heap = h, .at = clean, .end = clean + n, .counted = clean};
    lx.line_starting = true;
    h->line = 1;
    while (lx.at < lx.end)
        read_tag(&lx);
    push(&lx, TOKEN_EOF, lx.end, 0);
    h->line = 1;
    return lx.tokens;
}
