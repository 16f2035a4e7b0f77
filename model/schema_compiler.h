/* What the parts of the schema compiler share. grammar_schema.h is its door. */
#pragma once

#include "model/grammar_json.h"
#include "model/grammar_schema.h"
#include "model/schema_lookup.h"

enum {
    SCHEMA_MAX_DEPTH = 64,        /* of schemas within schemas */
    SCHEMA_MAX_PARTS = 16,        /* of a set */
    SCHEMA_MAX_PROPERTIES = 1000, /* of an object */
    SCHEMA_MAX_VALUES = 16384,    /* of an enum */
    SCHEMA_MAX_ONE_OF = 128,      /* schemas of a oneOf, which are compared with each other */
};

/* Schemas that all have to hold of one value: one alone, or those that allOf, $ref with siblings,
 * or a choice within a schema bring together. */
struct schema_part {
    const struct json *schema; /* an object */
    bool any_of_done, one_of_done;
};

struct schema_set {
    struct schema_part parts[SCHEMA_MAX_PARTS];
    size_t count;
};

struct schema_compiler {
    struct rules *rules;
    struct json_forms forms;
    const struct json *root;
    const struct json
        *targets[RULES_MAX];         /* of references, by rule; NULL: a rule of another kind */
    const struct pair_syntax *pairs; /* the next object is written so; NULL: JSON */
    const struct pair_syntax *text;  /* strings are written so; NULL: JSON */
    uint32_t depth;
    char path[256]; /* where in the schema, as a JSON pointer, cut when it is too long */
    size_t path_len;
    bool located; /* the path is in the message already */
};

/* Going down to a part of the schema, and back to where `schema_enter` was called. */
size_t schema_enter(struct schema_compiler *c, const char *name);
void schema_leave(struct schema_compiler *c, size_t mark);

/* The node of a schema that stands alone. */
uint32_t schema_node(struct schema_compiler *c, const struct json *schema);

/* Adds a schema, with those it refers to; false after a failure. */
bool schema_set_add(struct schema_compiler *c, struct schema_set *set, const struct json *schema);
uint32_t schema_set_node(struct schema_compiler *c, const struct schema_set *set);

/* The value of a keyword in the set; NULL when it is not there. Fails when it is there more than
 * once, with different values. */
const struct json *schema_find(struct schema_compiler *c, const struct schema_set *set,
                               const char *keyword);

/* A count: `fallback` when the keyword is not there, REPEAT_MAX when it is too large to matter. */
uint32_t schema_count(struct schema_compiler *c, const struct schema_set *set, const char *keyword,
                      uint32_t fallback);

/* The node of each type. */
uint32_t schema_string_node(struct schema_compiler *c, const struct schema_set *set);
uint32_t schema_number_node(struct schema_compiler *c, const struct schema_set *set, bool integer);
uint32_t schema_array_node(struct schema_compiler *c, const struct schema_set *set);
uint32_t schema_object_node(struct schema_compiler *c, const struct schema_set *set);
