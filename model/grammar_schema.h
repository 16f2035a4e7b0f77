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
