#include "model/output_pairs.h"

#include "base/utf8.h"
#include "model/output_scan.h"

#include <string.h>

static const char KEY_BEGIN[] = "<arg_key>", KEY_END[] = "</arg_key>";
static const char VALUE_BEGIN[] = "<arg_value>", VALUE_END[] = "</arg_value>";
static const char CALL_END[] = "</tool_call>";

enum { VALUE_MAX = 1 << 28 };

void pairs_init(struct pairs *pairs, const struct json *parameters)
{
    *pairs = (struct pairs){.state = PAIRS_OUTSIDE, .parameters = parameters};
}

/* Writes text as the inside of a JSON string. */
static void write_inside(struct buffer *out, const char *text, size_t len)
{
    struct buffer quoted;

    buffer_init(&quoted, VALUE_MAX);
    json_write_string(&quoted, text, (long)len);
    buffer_append(out, quoted.data + 1, quoted.len - 2);
    buffer_free(&quoted);
}

static bool is_string(const struct pairs *pairs, const char *key)
{
    const struct json *property = json_get(json_get(pairs->parameters, "properties"), key);
    const struct json *type = json_get(property, "type");

    return json_is(type, JSON_STRING) && strcmp(json_string(type), "string") == 0;
}

/* Between pairs. */
static size_t read_outside(struct pairs *pairs, const char *text, size_t len, bool final,
                           struct buffer *out, bool *ended)
{
    const char *const markers[] = {KEY_BEGIN, CALL_END};
    size_t space = space_prefix(text, len);
    int found;

    if (space > 0)
        return space;
    size_t plain = marker_scan(text, len, markers, 2, final, &found);
    buffer_append(out, text, plain);
    if (found < 0)
        return plain;
    if (found == 0) {
        pairs->state = PAIRS_KEY;
    } else {
        buffer_append_str(out, pairs->any ? "}" : "{}");
        *ended = true;
    }
    return plain + strlen(markers[found]);
}

static size_t read_key(struct pairs *pairs, const char *text, size_t len, bool final,
                       struct buffer *out)
{
    const char *const markers[] = {KEY_END};
    struct buffer key;
    int found;
    size_t size = marker_scan(text, len, markers, 1, final, &found);

    if (found < 0 && !final)
        return 0;
    buffer_append_str(out, pairs->any ? ", \"" : "{\"");
    write_inside(out, text, size);
    pairs->any = true;
    if (found < 0)
        return size;
    buffer_append_str(out, "\": ");
    buffer_init(&key, VALUE_MAX);
    buffer_append(&key, text, size);
    buffer_append_str(&key, ""); /* terminates an empty one */
    pairs->is_string = is_string(pairs, key.data);
    buffer_free(&key);
    pairs->state = PAIRS_BEFORE_VALUE;
    return size + strlen(KEY_END);
}

/* Between a key and its value. */
static size_t read_before_value(struct pairs *pairs, const char *text, size_t len, bool final,
                                struct buffer *out)
{
    const char *const markers[] = {VALUE_BEGIN, CALL_END};
    size_t space = space_prefix(text, len);
    int found;

    if (space > 0)
        return space;
    size_t plain = marker_scan(text, len, markers, 2, final, &found);
    buffer_append(out, text, plain);
    if (found == 0) {
        if (pairs->is_string)
            buffer_append_str(out, "\"");
        pairs->state = PAIRS_VALUE;
        return plain + strlen(VALUE_BEGIN);
    }
    if (found == 1) { /* no value */
        buffer_append_str(out, "null");
        pairs->state = PAIRS_OUTSIDE;
    }
    return plain;
}

/* Writes a whole value of no known type. */
static void write_value(struct buffer *out, const char *text, size_t len)
{
    struct error err;
    struct json *value = json_parse(text, len, &err);

    if (value)
        buffer_append(out, text, len);
    else
        json_write_string(out, text, (long)len);
    json_free(value);
}

static size_t read_value(struct pairs *pairs, const char *text, size_t len, bool final,
                         struct buffer *out)
{
    const char *const markers[] = {VALUE_END};
    int found;
    size_t size = marker_scan(text, len, markers, 1, final, &found);

    if (pairs->is_string) {
        if (found < 0 && !final)
            size = utf8_complete_prefix(text, size);
        write_inside(out, text, size);
        if (found >= 0)
            buffer_append_str(out, "\"");
    } else if (found >= 0) {
        write_value(out, text, size);
    } else if (final) {
        buffer_append(out, text, size);
    } else {
        return 0;
    }
    if (found < 0)
        return size;
    pairs->state = PAIRS_OUTSIDE;
    return size + strlen(VALUE_END);
}

size_t pairs_read(struct pairs *pairs, const char *text, size_t len, bool final,
                  struct buffer *out, bool *ended)
{
    size_t at = 0, used = 1;

    *ended = false;
    while (at < len && used > 0 && !*ended) {
        switch (pairs->state) {
        case PAIRS_OUTSIDE:
            used = read_outside(pairs, text + at, len - at, final, out, ended);
            break;
        case PAIRS_KEY:
            used = read_key(pairs, text + at, len - at, final, out);
            break;
        case PAIRS_BEFORE_VALUE:
            used = read_before_value(pairs, text + at, len - at, final, out);
            break;
        case PAIRS_VALUE:
            used = read_value(pairs, text + at, len - at, final, out);
            break;
        }
        at += used;
    }
    return at;
}
