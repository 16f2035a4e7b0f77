/* Reading JSON Schemas, with no view to what they are compiled to: keywords, references, and
 * whether two schemas can hold of the same value. */
#pragma once

#include "base/json.h"

enum schema_keyword_kind {
    KEYWORD_IGNORED,     /* says nothing about validity, or is not known */
    KEYWORD_ASSERTION,   /* is compiled */
    KEYWORD_UNSUPPORTED, /* would have to be, and is not */
};

enum schema_keyword_kind schema_keyword_kind(const char *name);

/* Types as a set of bits. SCHEMA_NUMBER has all numbers in it, with the integers. */
enum {
    SCHEMA_NULL = 1,
    SCHEMA_BOOLEAN = 2,
    SCHEMA_STRING = 4,
    SCHEMA_INTEGER = 8,
    SCHEMA_NUMBER = 16,
    SCHEMA_ARRAY = 32,
    SCHEMA_OBJECT = 64,
    SCHEMA_ALL = 127,
};

/* The bit of a type's name; 0 when there is no such type. */
unsigned schema_type(const char *name);

/* The bits of a value: an integer is a number as well. */
unsigned schema_type_of(const struct json *value);

/* The types that a schema of the document `root` admits, as far as "type", "anyOf", "oneOf" and the
 * values it lists tell. */
unsigned schema_types(const struct json *root, const struct json *schema);

/* What a keyword says of one type alone ("minLength": SCHEMA_STRING); 0: of none, or of all. */
unsigned schema_keyword_type(const char *name);

/* The schema that a $ref of this document means ("#", "#/$defs/name"); NULL when there is none. */
const struct json *schema_resolve(const struct json *root, const char *ref);

/* Whether the schema has no assertion but that one. */
bool schema_has_only(const struct json *schema, const char *keyword);

bool json_equal(const struct json *a, const struct json *b);

/* Whether no value can be valid under both, as far as it is seen from their types, the values they
 * list, and a required property for which they list different values. */
bool schema_disjoint(const struct json *root, const struct json *a, const struct json *b);
