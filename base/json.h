/* JSON: parsed documents as read-only values (over cJSON), and a writer into a buffer.
 *
 * Limits: nesting of 1,000; 4 million values (a value takes 64 bytes, whatever its text takes);
 * text must be UTF-8; the escape \u0000 is refused, because the values are C strings. Of equal keys
 * in an object the last one counts. */
#pragma once

#include "base/buffer.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json; /* one value of a parsed document; lives as long as its root */

enum json_type { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

/* Parses exactly one value in `len` bytes. NULL and a message on error. Free with json_free. */
struct json *json_parse(const char *text, size_t len, struct error *err);

/* Reads and parses a file of at most `max_bytes`. The message names the file. */
struct json *json_parse_file(const char *path, size_t max_bytes, struct error *err);

void json_free(struct json *root);

/* A document of its own with the same value; NULL for NULL. */
struct json *json_copy(const struct json *value);

enum json_type json_type(const struct json *value);
const char *json_type_name(const struct json *value); /* "null", "boolean", "number", ... */

/* Member of an object, or NULL (also when `object` is NULL or no object). */
const struct json *json_get(const struct json *object, const char *key);

/* Children of an array or object in order: for (c = json_first(v); c; c = json_next(c)). */
const struct json *json_first(const struct json *value);
const struct json *json_next(const struct json *value);
const char *json_key(const struct json *member); /* of an object's child */
size_t json_count(const struct json *value);

bool json_is(const struct json *value, enum json_type type); /* false for NULL */
const char *json_string(const struct json *value);           /* only for JSON_STRING */
double json_number(const struct json *value);                /* only for JSON_NUMBER */
bool json_bool(const struct json *value);                    /* only for JSON_BOOL */

/* How the number was written, where its value alone doesn't tell: with a fraction, an exponent or
 * more than 15 characters (1.0 and 1 differ in Python, and integers have no bound there). NULL for
 * other numbers. Lives as long as the value. */
const char *json_literal(const struct json *value); /* only for JSON_NUMBER */

/* True when the number is a whole one that fits; writes it. */
bool json_integer(const struct json *value, int64_t *out);

/* Writes `value` as compact JSON. */
void json_write_value(struct buffer *out, const struct json *value);

/* Writes a quoted, escaped string; `len` -1 means NUL-terminated. Bytes that are not UTF-8 become
 * U+FFFD, so that the output is always valid JSON. */
void json_write_string(struct buffer *out, const char *text, long len);

/* Writes a number that JSON can hold: not finite becomes null. */
void json_write_number(struct buffer *out, double number);

/* Writes `value` as Python's json.dumps(value, ensure_ascii=False) does, which is how chat
 * templates show JSON to a model: ", " and ": " between, keys in their order, integers in full,
 * floats by their shortest form; but equal keys are all written. */
void json_write_python(struct buffer *out, const struct json *value);
