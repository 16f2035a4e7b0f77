/* JSON Schema (draft 2020-12) as rules over the text of a document.
 *
 *   any type    type (one or a list), enum, const, anyOf, oneOf, allOf, $ref, true, {}
 *   string      minLength, maxLength, pattern, format (date, time, date-time, duration, email,
 *               hostname, ipv4, ipv6, uuid)
 *   number      minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf (integers)
 *   array       items, prefixItems, minItems, maxItems
 *   object      properties, required, additionalProperties
 *
 * Every document is valid; not every valid document can come: properties stand in the order of the
 * schema, white space is bounded (grammar_json.h), strings under a pattern are escaped in one way
 * only. Where "type" is missing, keywords of one type ask for that type. oneOf is compiled where
 * its alternatives are seen to exclude each other. Keywords that would matter and are not supported
 * are refused by name; those that only describe are ignored. */
#pragma once

#include "base/json.h"
#include "model/grammar_rules.h"

/* The node of a document; an error goes to `rules`, with the place in the schema. */
uint32_t schema_compile(struct rules *rules, const struct json *schema);

/* How an object is written whose members stand between tags, as nodes. A value is text, as it is,
 * where the schema's own "properties" have the type "string" for it; any other is JSON, whose free
 * strings hold a '<' only as an escape, so that nothing in them looks like a tag. */
struct pair_syntax {
    uint32_t key_begin, key_end;
    uint32_t text_begin, json_begin; /* of a value, of either kind */
    uint32_t value_end;
    uint32_t after_key, after_value; /* what may stand between the tags */
    uint32_t key;                    /* any key, where the schema names none */
    uint32_t text;                   /* any text that a value may be; NODE_NONE: all are JSON */
    uint32_t character;              /* of a text whose length has bounds */
};

/* The node of such an object's members (NULL: any). Members that the schema does not name come only
 * where it names none. */
uint32_t schema_compile_pairs(struct rules *rules, const struct json *schema,
                              const struct pair_syntax *syntax);
