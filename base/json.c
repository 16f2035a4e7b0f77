#include "base/json.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/utf8.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* `struct json` is never defined: a value is a cJSON node seen through this module only. */
static const cJSON *node(const struct json *value)
{
    return (const cJSON *)value;
}

/* Whether the text holds the escape \u0000, which a C string can't carry. */
static bool has_nul_escape(const char *text, size_t len)
{
    const char *at = text, *end = text + len;

    while ((at = memchr(at, '\\', (size_t)(end - at))) != NULL) {
        if (end - at >= 6 && memcmp(at, "\\u0000", 6) == 0)
            return true;
        at += end - at >= 2 ? 2 : 1; /* skip the escaped character: "\\u0000" is no NUL */
    }
    return false;
}

/* The code unit of an escape \uXXXX, or -1: something else stands at `at`. */
static long escaped_unit(const char *at, const char *end)
{
    char digits[5] = "";

    if (end - at < 6 || at[0] != '\\' || at[1] != 'u')
        return -1;
    memcpy(digits, at + 2, 4);
    return strspn(digits, "0123456789abcdefABCDEF") == 4 ? strtol(digits, NULL, 16) : -1;
}

/* Whether there is one half of a pair of escapes alone: of a text that was cut inside of it. */
static bool has_half_escape(const char *text, size_t len)
{
    const char *at = text, *end = text + len;

    while ((at = memchr(at, '\\', (size_t)(end - at))) != NULL) {
        long unit = escaped_unit(at, end), low;
        at += end - at >= 2 ? 2 : 1;
        if (unit < 0xD800 || unit > 0xDFFF)
            continue;
        at += 4;
        low = escaped_unit(at, end);
        if (unit > 0xDBFF || low < 0xDC00 || low > 0xDFFF)
            return true;
        at += 6;
    }
    return false;
}

/* The next value in the order of the text, or NULL after the last one below `root`. `parents` is a
 * stack of `*depth` values. */
static cJSON *next_in_text(cJSON *at, cJSON **parents, int *depth)
{
    if (at->child) {
        parents[(*depth)++] = at;
        return at->child;
    }
    while (!at->next && *depth > 0)
        at = parents[--*depth];
    return *depth > 0 ? at->next : NULL;
}

/* Past the string that begins at `at`. */
static const char *skip_string(const char *at)
{
    for (at++; *at != '"'; at++)
        at += *at == '\\';
    return at + 1;
}

/* cJSON keeps a number as a double only. The text of those that say more is put where a string
 * would be, which cJSON copies and frees with the value: numbers of the tree and of the (valid)
 * text come in the same order. */
static void keep_literals(cJSON *root, const char *text, const char *end)
{
    static const char digits[] = "+-.0123456789eE";
    cJSON *parents[CJSON_NESTING_LIMIT + 1], *value = root;
    int depth = 0;

    for (const char *at = text; at < end;) {
        if (*at == '"') {
            at = skip_string(at);
        } else if (*at == '-' || (*at >= '0' && *at <= '9')) {
            size_t len = 0;
            bool plain = true;
            while (at + len < end && strchr(digits, at[len]))
                plain &= !strchr(".eE", at[len++]);
            while (!cJSON_IsNumber(value))
                value = next_in_text(value, parents, &depth);
            if (!plain || len > 15) {
                value->valuestring = cJSON_malloc(len + 1);
                ASSERT(value->valuestring);
                memcpy(value->valuestring, at, len);
                value->valuestring[len] = '\0';
            }
            at += len;
            if (at < end)
                value = next_in_text(value, parents, &depth);
        } else {
            at++;
        }
        if (!value)
            break;
    }
}

enum { VALUES_MAX = 1 << 22 };

/* Whether the text has more than VALUES_MAX values, which are as many as commas outside of strings
 * and brackets that open. */
static bool has_too_many_values(const char *text, size_t len)
{
    size_t values = 1;

    if (len < VALUES_MAX)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (text[i] == ',' || text[i] == '[' || text[i] == '{')
            values++;
        if (text[i] != '"')
            continue;
        for (i++; i < len && text[i] != '"'; i++)
            i += text[i] == '\\';
    }
    return values > VALUES_MAX;
}

/* Whether brackets stand in each other deeper than cJSON reads. */
static bool is_too_deep(const char *text, size_t len)
{
    int depth = 0, deepest = 0;

    for (size_t i = 0; i < len; i++) {
        if (text[i] == '[' || text[i] == '{')
            deepest = ++depth > deepest ? depth : deepest;
        else if (text[i] == ']' || text[i] == '}')
            depth--;
        if (text[i] != '"')
            continue;
        for (i++; i < len && text[i] != '"'; i++)
            i += text[i] == '\\';
    }
    return deepest > CJSON_NESTING_LIMIT;
}

struct json *json_parse(const char *text, size_t len, struct error *err)
{
    const char *end = NULL;

    if (!utf8_valid(text, len)) {
        error_set(err, "the JSON text is not valid UTF-8");
        return NULL;
    }
    if (memchr(text, '\0', len) || has_nul_escape(text, len)) {
        error_set(err, "the JSON text holds the NUL character (\\u0000), which is not supported");
        return NULL;
    }
    if (has_too_many_values(text, len)) {
        error_set(err, "the JSON text holds more than %d values", (int)VALUES_MAX);
        return NULL;
    }
    cJSON *root = cJSON_ParseWithLengthOpts(text, len, &end, 0);
    if (!root) {
        size_t at = end ? (size_t)(end - text) : 0;
        if (has_half_escape(text, len))
            error_set(err, "the JSON text holds one half of a surrogate pair (\\ud800 to \\udfff) "
                           "without the other");
        else if (is_too_deep(text, at + 1 < len ? at + 1 : len))
            error_set(err, "the JSON text is nested more than %d deep", CJSON_NESTING_LIMIT);
        else
            error_set(err, "the JSON text has a syntax error near byte %zu", at);
        return NULL;
    }
    while (end < text + len && strchr(" \t\r\n", *end))
        end++;
    if (end < text + len) {
        cJSON_Delete(root);
        error_set(err, "the JSON text goes on after its end at byte %zu", (size_t)(end - text));
        return NULL;
    }
    keep_literals(root, text, text + len);
    return (struct json *)root;
}

struct json *json_parse_file(const char *path, size_t max_bytes, struct error *err)
{
    struct buffer text;

    buffer_init(&text, max_bytes);
    if (file_read(path, &text, err))
        return NULL;
    struct json *root = json_parse(text.data, text.len, err);
    if (!root)
        error_prefix(err, "%s", path);
    buffer_free(&text);
    return root;
}

void json_free(struct json *root)
{
    cJSON_Delete((cJSON *)root);
}

struct json *json_copy(const struct json *value)
{
    cJSON *copy = value ? cJSON_Duplicate(node(value), 1) : NULL;

    ASSERT(copy || !value);
    return (struct json *)copy;
}

enum json_type json_type(const struct json *value)
{
    const cJSON *v = node(value);

    if (cJSON_IsBool(v))
        return JSON_BOOL;
    if (cJSON_IsNumber(v))
        return JSON_NUMBER;
    if (cJSON_IsString(v))
        return JSON_STRING;
    if (cJSON_IsArray(v))
        return JSON_ARRAY;
    if (cJSON_IsObject(v))
        return JSON_OBJECT;
    return JSON_NULL;
}

const char *json_type_name(const struct json *value)
{
    static const char *const names[] = {"null", "boolean", "number", "string", "array", "object"};

    return names[json_type(value)];
}

const struct json *json_get(const struct json *object, const char *key)
{
    const struct json *found = NULL;

    if (!json_is(object, JSON_OBJECT))
        return NULL;
    for (const struct json *m = json_first(object); m; m = json_next(m))
        if (strcmp(json_key(m), key) == 0)
            found = m;
    return found;
}

const struct json *json_first(const struct json *value)
{
    return (const struct json *)node(value)->child;
}

const struct json *json_next(const struct json *value)
{
    return (const struct json *)node(value)->next;
}

const char *json_key(const struct json *member)
{
    return node(member)->string;
}

size_t json_count(const struct json *value)
{
    size_t n = 0;

    for (const struct json *c = json_first(value); c; c = json_next(c))
        n++;
    return n;
}

bool json_is(const struct json *value, enum json_type type)
{
    return value && json_type(value) == type;
}

const char *json_string(const struct json *value)
{
    ASSERT(json_is(value, JSON_STRING));
    return node(value)->valuestring;
}

double json_number(const struct json *value)
{
    ASSERT(json_is(value, JSON_NUMBER));
    return node(value)->valuedouble;
}

bool json_bool(const struct json *value)
{
    ASSERT(json_is(value, JSON_BOOL));
    return cJSON_IsTrue(node(value));
}

const char *json_literal(const struct json *value)
{
    ASSERT(json_is(value, JSON_NUMBER));
    return node(value)->valuestring;
}

bool json_integer(const struct json *value, int64_t *out)
{
    if (!json_is(value, JSON_NUMBER))
        return false;
    double number = json_number(value);
    if (number != floor(number) || fabs(number) > 9007199254740992.0) /* 2^53 */
        return false;
    *out = (int64_t)number;
    return true;
}

void json_write_value(struct buffer *out, const struct json *value)
{
    char *text = cJSON_PrintUnformatted(node(value));

    ASSERT(text);
    buffer_append_str(out, text);
    cJSON_free(text);
}

/* Writes one character that needs an escape. */
static void write_escaped(struct buffer *out, unsigned char c)
{
    const char *short_form = c == '"'    ? "\\\""
                             : c == '\\' ? "\\\\"
                             : c == '\b' ? "\\b"
                             : c == '\f' ? "\\f"
                             : c == '\n' ? "\\n"
                             : c == '\r' ? "\\r"
                             : c == '\t' ? "\\t"
                                         : NULL;
    if (short_form)
        buffer_append_str(out, short_form);
    else
        buffer_printf(out, "\\u%04x", c);
}

void json_write_string(struct buffer *out, const char *text, long len)
{
    size_t n = len < 0 ? strlen(text) : (size_t)len, plain = 0, at = 0;

    buffer_append(out, "\"", 1);
    while (at < n) {
        unsigned char c = (unsigned char)text[at];
        int size = utf8_decode(text + at, n - at, NULL);
        if (size > 0 && c >= 0x20 && c != '"' && c != '\\') {
            at += (size_t)size;
            continue;
        }
        buffer_append(out, text + plain, at - plain);
        if (size > 0)
            write_escaped(out, c);
        else
            buffer_append_str(out, "\xEF\xBF\xBD");
        plain = ++at;
    }
    buffer_append(out, text + plain, at - plain);
    buffer_append(out, "\"", 1);
}

void json_write_number(struct buffer *out, double number)
{
    if (!isfinite(number))
        buffer_append_str(out, "null");
    else
        buffer_printf(out, "%.9g", number);
}

/* repr() of a float: the shortest digits that read back as the same number. */
static void write_python_float(struct buffer *out, double number)
{
    char text[40];
    int digits = 1;

    if (!isfinite(number)) {
        buffer_append_str(out, isnan(number) ? "NaN" : number < 0 ? "-Infinity" : "Infinity");
        return;
    }
    for (; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*e", digits - 1, number);
        if (strtod(text, NULL) == number)
            break;
    }
    int exponent = atoi(strchr(text, 'e') + 1);
    if (exponent < -4 || exponent >= 16) { /* printf drops a fraction of 0, as Python does */
        snprintf(text, sizeof(text), "%.*g", digits, number);
    } else {
        int places = digits - 1 - exponent;
        snprintf(text, sizeof(text), "%.*f", places > 1 ? places : 1, number);
    }
    buffer_append_str(out, text);
}

static void write_python_number(struct buffer *out, const struct json *value)
{
    const char *literal = json_literal(value);

    if (literal && literal[strcspn(literal, ".eE")])
        write_python_float(out, json_number(value));
    else if (literal)
        buffer_append_str(out, literal);
    else
        buffer_printf(out, "%.0f", json_number(value) + 0.0); /* + 0.0: no "-0" */
}

static void write_python_children(struct buffer *out, const struct json *value)
{
    bool object = json_is(value, JSON_OBJECT);

    buffer_append_str(out, object ? "{" : "[");
    for (const struct json *c = json_first(value); c; c = json_next(c)) {
        if (c != json_first(value))
            buffer_append_str(out, ", ");
        if (object) {
            json_write_string(out, json_key(c), -1);
            buffer_append_str(out, ": ");
        }
        json_write_python(out, c);
    }
    buffer_append_str(out, object ? "}" : "]");
}

void json_write_python(struct buffer *out, const struct json *value)
{
    switch (json_type(value)) {
    case JSON_NULL:
        buffer_append_str(out, "null");
        break;
    case JSON_BOOL:
        buffer_append_str(out, json_bool(value) ? "true" : "false");
        break;
    case JSON_NUMBER:
        write_python_number(out, value);
        break;
    case JSON_STRING:
        json_write_string(out, json_string(value), -1);
        break;
    case JSON_ARRAY:
    case JSON_OBJECT:
        write_python_children(out, value);
        break;
    }
}
