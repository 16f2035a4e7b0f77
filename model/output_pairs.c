#include "model/output_pairs.h"

#include "base/utf8.h"
#include "model/output_scan.h"
#include "model/schema_lookup.h"

#include <string.h>

const struct pair_tags pair_tags_glm = {
    .key_begin = "<arg_key>",
    .key_end = "</arg_key>",
    .value_begin = "<arg_value>",
    .value_end = "</arg_value>",
    .call_end = "</tool_call>",
};

const struct pair_tags pair_tags_dsml = {
    .key_begin = "<｜DSML｜parameter name=\"",
    .key_end = "\" string=\"",
    .value_begin = "true\">",
    .json_begin = "false\">",
    .value_end = "</｜DSML｜parameter>",
    .call_end = "</｜DSML｜invoke>",
};

enum { HELD_MAX = 1 << 28 }; /* bytes of a key or a value */

void pairs_init(struct pairs *pairs)
{
    *pairs = (struct pairs){0};
    buffer_init(&pairs->held, HELD_MAX);
}

void pairs_free(struct pairs *pairs)
{
    buffer_free(&pairs->held);
}

void pairs_begin(struct pairs *pairs, const struct pair_tags *tags, const struct json *parameters)
{
    pairs->tags = tags;
    pairs->state = PAIRS_OUTSIDE;
    pairs->parameters = parameters;
    pairs->any = false;
    buffer_clear(&pairs->held);
}

/* Writes text as the inside of a JSON string. */
static void write_inside(struct buffer *out, const char *text, size_t len)
{
    struct buffer quoted;

    buffer_init(&quoted, 6 * (size_t)HELD_MAX + 2);
    json_write_string(&quoted, text, (long)len);
    buffer_append(out, quoted.data + 1, quoted.len - 2);
    buffer_free(&quoted);
}

static void write_without_space(struct buffer *out, const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (space_prefix(text + i, 1) == 0)
            buffer_append(out, text + i, 1);
}

static const char *held_text(struct pairs *pairs)
{
    buffer_append_str(&pairs->held, ""); /* terminates an empty one */
    return pairs->held.data;
}

/* A value whose schema has the type "string" alone comes out as it comes in. Of others is kept
 * which types they may have. */
static void look_up_key(struct pairs *pairs)
{
    const struct json *properties = json_get(pairs->parameters, "properties");
    const struct json *schema = json_get(properties, held_text(pairs));
    const struct json *type = json_get(schema, "type");

    pairs->is_string = json_is(type, JSON_STRING) && strcmp(json_string(type), "string") == 0;
    pairs->types = schema ? schema_types(pairs->parameters, schema) : SCHEMA_ALL;
}

static void write_key(struct pairs *pairs, struct buffer *out)
{
    buffer_append_str(out, pairs->any ? ", \"" : "{\"");
    write_inside(out, held_text(pairs), pairs->held.len);
    pairs->any = true;
}

/* Writes a whole value that may be of several types: what reads as JSON of none of them is text,
 * where text may stand (12345 for "anyOf": [string, null]). */
static void write_value(struct pairs *pairs, struct buffer *out)
{
    struct error err;
    struct json *value = json_parse(held_text(pairs), pairs->held.len, &err);
    bool fits = value && (schema_type_of(value) & pairs->types);

    if (value && (fits || !(pairs->types & SCHEMA_STRING)))
        buffer_append(out, pairs->held.data, pairs->held.len);
    else
        json_write_string(out, pairs->held.data, (long)pairs->held.len);
    json_free(value);
}

/* ---- states: each uses up some of the text, or waits for more (0) --------------------------- */

static size_t read_outside(struct pairs *pairs, const char *text, size_t len, bool final,
                           struct buffer *out, bool *ended)
{
    const char *const markers[] = {pairs->tags->key_begin, pairs->tags->call_end};
    int found;
    size_t plain = marker_scan(text, len, markers, 2, final, &found);

    write_without_space(out, text, plain);
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
    const char *const markers[] = {pairs->tags->key_end};
    int found;
    size_t plain = marker_scan(text, len, markers, 1, final, &found);

    buffer_append(&pairs->held, text, plain);
    if (found < 0)
        return plain;
    write_key(pairs, out);
    buffer_append_str(out, "\": ");
    pairs->is_string = false;
    pairs->types = SCHEMA_ALL;
    if (!pairs->tags->json_begin)
        look_up_key(pairs);
    buffer_clear(&pairs->held);
    pairs->state = PAIRS_BEFORE_VALUE;
    return plain + strlen(markers[0]);
}

static size_t read_before_value(struct pairs *pairs, const char *text, size_t len, bool final,
                                struct buffer *out)
{
    const struct pair_tags *tags = pairs->tags;
    const char *const markers[] = {tags->value_begin, tags->call_end, tags->json_begin};
    int found;
    size_t plain = marker_scan(text, len, markers, 3, final, &found);

    write_without_space(out, text, plain);
    if (found == 0 || found == 2) {
        pairs->is_string |= found == 0 && tags->json_begin;
        if (pairs->is_string)
            buffer_append_str(out, "\"");
        pairs->state = PAIRS_VALUE;
        return plain + strlen(markers[found]);
    }
    if (found == 1) { /* a key without a value, and the end */
        buffer_append_str(out, "null");
        pairs->state = PAIRS_OUTSIDE;
    }
    return plain;
}

static size_t read_value(struct pairs *pairs, const char *text, size_t len, bool final,
                         struct buffer *out)
{
    const char *const markers[] = {pairs->tags->value_end};
    int found;
    size_t plain = marker_scan(text, len, markers, 1, final, &found);

    if (found < 0 && pairs->is_string && !final)
        plain = utf8_complete_prefix(text, plain);
    if (pairs->is_string)
        write_inside(out, text, plain);
    else
        buffer_append(&pairs->held, text, plain);
    if (found < 0)
        return plain;
    if (pairs->is_string)
        buffer_append_str(out, "\"");
    else
        write_value(pairs, out);
    buffer_clear(&pairs->held);
    pairs->state = PAIRS_OUTSIDE;
    return plain + strlen(markers[0]);
}

size_t pairs_read(struct pairs *pairs, const char *text, size_t len, bool final, struct buffer *out,
                  bool *ended)
{
    size_t at = 0;

    *ended = false;
    while (at < len && !*ended) {
        const char *rest = text + at;
        size_t left = len - at, used = 0;
        int before = (int)pairs->state;

        switch (pairs->state) {
        case PAIRS_OUTSIDE:
            used = read_outside(pairs, rest, left, final, out, ended);
            break;
        case PAIRS_KEY:
            used = read_key(pairs, rest, left, final, out);
            break;
        case PAIRS_BEFORE_VALUE:
            used = read_before_value(pairs, rest, left, final, out);
            break;
        case PAIRS_VALUE:
            used = read_value(pairs, rest, left, final, out);
            break;
        }
        if (used == 0 && before == (int)pairs->state)
            break;
        at += used;
    }
    return at;
}

void pairs_cut(struct pairs *pairs, struct buffer *out)
{
    if (pairs->state == PAIRS_KEY)
        write_key(pairs, out);
    else if (pairs->state == PAIRS_VALUE && !pairs->is_string)
        buffer_append(out, held_text(pairs), pairs->held.len);
}
