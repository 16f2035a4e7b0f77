/* Oniguruma to PCRE2: what differs, and what is done about it.
 *
 * - `^` and `$` match at line ends, lines end at \n only:  PCRE2_MULTILINE and NEWLINE_LF.
 * - `\s` does not hold U+180E:                             written out as a class.
 * - `\v` is one character, VT:                             \x0B.
 * - `\p{..}` follows Unicode 16, scripts are exact:        unicode_recent.h and \p{sc:..}.
 * - `[A&&[B]]` is an intersection:                         a lookahead for B in front of [A].
 * - `\h`, `\w`, `\b`, `\R`, (?m..), {,n}, {n}+, [a[b]], (*..), ...: refused.
 *
 * Two differences stay: Oniguruma's (?i:ss) also matches "ß" (one character for two), and
 * characters newer than Unicode 16 are what the installed PCRE2 says. */
#define PCRE2_CODE_UNIT_WIDTH 8

#include "model/pattern.h"

#include "base/buffer.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/utf8.h"
#include "model/unicode_recent.h"

#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SOURCE_MAX = 64 * 1024,       /* bytes of a pattern */
    TRANSLATED_MAX = 1024 * 1024, /* bytes of its translation */
    /* Backtracking steps from one starting point. The patterns in use need about two for each
     * character of the longest run of one kind, so this is out of reach of honest texts. */
    MATCH_LIMIT = 100 * 1000 * 1000,
    JIT_STACK_MIN = 32 * 1024,
    JIT_STACK_MAX = 64 * 1024 * 1024, /* reserved address space; used only as matches need it */
};

struct pattern {
    pcre2_code *code;
};

struct pattern_scratch {
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

/* ---- translation ---- */

/* The characters of \s (Unicode's White_Space), and all others, as the inside of a class. */
#define SPACE_RANGES "\\p{Z}\\x09-\\x0D\\x85"
#define NOT_SPACE_RANGES                                                                           \
    "\\x00-\\x08\\x0E-\\x1F\\x21-\\x84\\x86-\\x9F\\xA1-\\x{167F}\\x{1681}-\\x{1FFF}"               \
    "\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}"                 \
    "\\x{3001}-\\x{10FFFF}"

struct translator {
    const char *at; /* the rest of the source */
    struct error *err;
};

static int refuse(struct translator *t, const char *what)
{
    return error_set(t->err, "the pattern uses %s, which is not supported", what);
}

/* Appends the ranges of recent characters that belong to a property: a general category of one or
 * two letters, or the script Han, whose recent characters are the Lo from U+2B739 to U+323AF. */
static void append_recent(struct buffer *out, const char *name, bool han)
{
    uint32_t first = 0, last = 0;

    for (int i = 0; i < RECENT_RANGES; i++) {
        const struct recent_range *r = &recent_ranges[i];
        if (han ? r->first < 0x2B739 || r->last > 0x323AF
                : strncmp(r->category, name, strlen(name)) != 0)
            continue;
        if (last && last + 1 == r->first) { /* joins the range before */
            last = r->last;
            continue;
        }
        if (last)
            buffer_printf(out, "\\x{%X}-\\x{%X}", first, last);
        first = r->first;
        last = r->last;
    }
    if (last)
        buffer_printf(out, "\\x{%X}-\\x{%X}", first, last);
}

/* Appends a set of characters: `ranges` and the recent ones of `property` (NULL: none). Negation is
 * possible only outside of a class. */
static int append_set(struct translator *t, struct buffer *out, const char *ranges,
                      const char *property, bool han, bool negated, bool in_class)
{
    if (negated && in_class)
        return refuse(t, "a negated property inside of a class");
    if (!in_class)
        buffer_append_str(out, negated ? "[^" : "[");
    buffer_append_str(out, ranges);
    if (property)
        append_recent(out, property, han);
    if (!in_class)
        buffer_append_str(out, "]");
    return 0;
}

/* `\p{Name}`, `\P{Name}`, `\p{^Name}`, from the letter p on. */
static int translate_property(struct translator *t, struct buffer *out, bool in_class)
{
    static const char *const categories =
        " L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp ";
    bool negated = *t->at++ == 'P';
    char name[16], spaced[20], ranges[32];

    if (*t->at++ != '{')
        return refuse(t, "\\p without braces");
    if (*t->at == '^') {
        negated = !negated;
        t->at++;
    }
    size_t len = strcspn(t->at, "}");
    if (len >= sizeof(name) || t->at[len] != '}')
        return refuse(t, "an unknown property");
    memcpy(name, t->at, len);
    name[len] = '\0';
    t->at += len + 1;

    bool han = strcmp(name, "Han") == 0;
    snprintf(spaced, sizeof(spaced), " %s ", name);
    if (!han && (strchr(name, ' ') || !strstr(categories, spaced)))
        return error_set(t->err, "the pattern uses the property \\p{%s}, which is not supported",
                         name);
    snprintf(ranges, sizeof(ranges), "\\p{%s%s}", han ? "sc:" : "", name);
    return append_set(t, out, ranges, name, han, negated, in_class);
}

/* `\xHH`, `\x{H..}` or `\uHHHH`, from the letter on. */
static int translate_code_point(struct translator *t, struct buffer *out)
{
    bool four = *t->at++ == 'u', braces = !four && *t->at == '{';
    size_t max = four ? 4 : braces ? 6 : 2, n;
    char digits[8] = "";

    t->at += braces;
    n = strspn(t->at, "0123456789abcdefABCDEF");
    n = n > max ? max : n;
    memcpy(digits, t->at, n);
    t->at += n;
    if (n == 0 || (four && n != 4) || (braces && *t->at != '}'))
        return refuse(t, "a malformed \\x or \\u");
    t->at += braces;
    unsigned long code = strtoul(digits, NULL, 16);
    if (!four && !braces && code >= 0x80)
        return refuse(t, "\\x with a byte that is not a character");
    buffer_printf(out, "\\x{%lX}", code);
    return 0;
}

/* An escape, from the backslash on. */
static int translate_escape(struct translator *t, struct buffer *out, bool in_class)
{
    char what[] = {'\\', t->at[1], '\0'};

    t->at++;
    switch (*t->at) {
    case 'p':
    case 'P':
        return translate_property(t, out, in_class);
    case 'x':
    case 'u':
        return translate_code_point(t, out);
    case 's':
    case 'S':
        if (in_class)
            buffer_append_str(out, *t->at == 's' ? SPACE_RANGES : NOT_SPACE_RANGES);
        else
            buffer_append_str(out, *t->at == 's' ? "[" SPACE_RANGES "]" : "[^" SPACE_RANGES "]");
        t->at++;
        return 0;
    case 'd':
    case 'D':
        return append_set(t, out, "\\p{Nd}", "Nd", false, *t->at++ == 'D', in_class);
    case 'v':
        t->at++;
        return buffer_append_str(out, "\\x0B");
    case '\0':
        return refuse(t, "a backslash at its end");
    default:
        break;
    }
    bool alphanumeric = strspn(t->at, "0123456789abcdefghijklmnopqrstuvwxyz"
                                      "ABCDEFGHIJKLMNOPQRSTUVWXYZ") > 0;
    if (alphanumeric && !strchr(in_class ? "nrtfae" : "nrtfaeAzZ", *t->at))
        return refuse(t, what);
    what[1] = *t->at++;
    return buffer_append(out, what, 2);
}

/* A class, from the bracket on; `[A&&[B]]` becomes `(?:(?=[B])[A])`. `nested`: it is such a B. */
static int translate_class(struct translator *t, struct buffer *out, bool nested)
{
    struct buffer inside, other;
    int rc = -1;

    buffer_init(&inside, TRANSLATED_MAX);
    buffer_init(&other, TRANSLATED_MAX);
    bool negated = *++t->at == '^';
    t->at += negated;
    if (*t->at == ']') {
        refuse(t, "an empty class");
        goto done;
    }
    while (*t->at && *t->at != ']') {
        if (strncmp(t->at, "&&[", 3) == 0 && !negated && !nested && inside.len) {
            t->at += 2;
            if (translate_class(t, &other, true))
                goto done;
            if (*t->at != ']') {
                refuse(t, "an intersection of more than two classes");
                goto done;
            }
        } else if (*t->at == '[' || strncmp(t->at, "&&", 2) == 0) {
            refuse(t, "a class inside of a class");
            goto done;
        } else if (*t->at == '\\') {
            if (translate_escape(t, &inside, true))
                goto done;
        } else {
            buffer_append(&inside, t->at++, 1);
        }
    }
    if (*t->at++ != ']') {
        t->at--;
        refuse(t, "a class without an end");
        goto done;
    }
    if (other.len)
        buffer_printf(out, "(?:(?=%s)", other.data);
    buffer_append_str(out, negated ? "[^" : "[");
    buffer_append(out, inside.data, inside.len);
    buffer_append_str(out, other.len ? "])" : "]");
    rc = 0;
done:
    if (inside.overflowed || other.overflowed)
        rc = refuse(t, "too many characters");
    buffer_free(&inside);
    buffer_free(&other);
    return rc;
}

/* What follows an opening parenthesis, which is at `t->at`. */
static int translate_group(struct translator *t, struct buffer *out)
{
    static const char *const heads[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};

    if (t->at[1] == '*')
        return refuse(t, "(*");
    if (t->at[1] != '?')
        return buffer_append(out, t->at++, 1);
    for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
        size_t len = strlen(heads[i]);
        if (strncmp(t->at, heads[i], len) == 0) {
            t->at += len;
            return buffer_append(out, heads[i], len);
        }
    }
    return refuse(t, "an unknown kind of group, (?");
}

/* A repeat count, from the brace on: {n}, {n,} and {n,m} are equal in both, unless more follows. */
static int translate_count(struct translator *t, struct buffer *out)
{
    static const char digits[] = "0123456789";
    const char *end = t->at + 1;
    size_t n = strspn(end, digits);

    end += n;
    if (n > 0 && *end == ',') {
        end++;
        end += strspn(end, digits);
    }
    if (n == 0 || *end != '}' || end[1] == '+' || end[1] == '?')
        return refuse(t, "a brace that is not {n}, {n,} or {n,m}");
    end++;
    buffer_append(out, t->at, (size_t)(end - t->at));
    t->at = end;
    return 0;
}

/* Writes `source` in PCRE2's language. */
static int translate(const char *source, struct buffer *out, struct error *err)
{
    struct translator t = {source, err};

    /* `\s+$` on a long run of spaces before something else would start anew from each of them, to
     * no avail: a match, if there is one, starts at the first. */
    if (strcmp(source, "\\s+$") == 0)
        buffer_append_str(out, "(?<![" SPACE_RANGES "])");
    while (*t.at) {
        int rc = *t.at == '\\'  ? translate_escape(&t, out, false)
                 : *t.at == '[' ? translate_class(&t, out, false)
                 : *t.at == '(' ? translate_group(&t, out)
                 : *t.at == '{' ? translate_count(&t, out)
                                : buffer_append(out, t.at++, 1);
        if (out->overflowed)
            return refuse(&t, "too many characters");
        if (rc)
            return -1;
    }
    return 0;
}

/* ---- compiling and searching ---- */

static struct pattern *compile(const char *translated, size_t len, uint32_t options,
                               struct error *err)
{
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    PCRE2_SIZE at;
    PCRE2_UCHAR reason[128];
    int code;

    ASSERT(context);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_code *compiled =
        pcre2_compile((PCRE2_SPTR)translated, len, options | PCRE2_UTF, &code, &at, context);
    pcre2_compile_context_free(context);
    if (!compiled) {
        pcre2_get_error_message(code, reason, sizeof(reason));
        error_set(err, "the pattern is malformed: %s", (const char *)reason);
        return NULL;
    }
    pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE); /* on failure it is interpreted */
    struct pattern *pattern = mem_zalloc(1, sizeof(*pattern));
    pattern->code = compiled;
    return pattern;
}

struct pattern *pattern_compile(const char *source, struct error *err)
{
    struct buffer translated;
    struct pattern *pattern = NULL;

    if (strlen(source) > SOURCE_MAX) {
        error_set(err, "the pattern is longer than %d bytes", (int)SOURCE_MAX);
        return NULL;
    }
    buffer_init(&translated, TRANSLATED_MAX);
    if (translate(source, &translated, err) == 0)
        pattern = compile(translated.len ? translated.data : "", translated.len,
                          PCRE2_UCP | PCRE2_MULTILINE, err);
    buffer_free(&translated);
    return pattern;
}

struct pattern *pattern_compile_literal(const char *text, struct error *err)
{
    return compile(text, strlen(text), PCRE2_LITERAL, err);
}

void pattern_free(struct pattern *pattern)
{
    if (!pattern)
        return;
    pcre2_code_free(pattern->code);
    free(pattern);
}

struct pattern_scratch *pattern_scratch_new(void)
{
    struct pattern_scratch *scratch = mem_zalloc(1, sizeof(*scratch));

    scratch->match = pcre2_match_data_create(1, NULL);
    scratch->context = pcre2_match_context_create(NULL);
    ASSERT(scratch->match && scratch->context);
    pcre2_set_match_limit(scratch->context, MATCH_LIMIT);
    scratch->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    if (scratch->stack) /* NULL without JIT */
        pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
    return scratch;
}

void pattern_scratch_free(struct pattern_scratch *scratch)
{
    if (!scratch)
        return;
    pcre2_match_data_free(scratch->match);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->stack);
    free(scratch);
}

int pattern_find(const struct pattern *pattern, struct pattern_scratch *scratch, const char *text,
                 size_t len, size_t from, size_t *start, size_t *end, struct error *err)
{
    PCRE2_UCHAR reason[128];
    int rc = pcre2_match(pattern->code, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK,
                         scratch->match, scratch->context);

    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0) {
        pcre2_get_error_message(rc, reason, sizeof(reason));
        return error_set(err, "the text is too complex for the tokenizer's split pattern (%s)",
                         (const char *)reason);
    }
    PCRE2_SIZE *match = pcre2_get_ovector_pointer(scratch->match);
    *start = match[0];
    *end = match[1];
    return 1;
}
