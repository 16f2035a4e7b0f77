/* Numbers of chat templates: Python's arithmetic, reading and writing. Integers have 64 bits; what
 * leaves them fails. */
#pragma once

#include "model/template_value.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tpl_operator { TPL_ADD, TPL_SUB, TPL_MUL, TPL_DIV, TPL_FLOOR_DIV, TPL_MOD, TPL_POW };

const char *tpl_operator_name(enum tpl_operator op);

/* Less than 0, 0, more, or 2 where one is not a number (NaN). */
int tpl_compare_numbers(struct tpl_value a, struct tpl_value b);

struct tpl_value tpl_arithmetic(struct tpl_heap *h, enum tpl_operator op, struct tpl_value a,
                                struct tpl_value b);
struct tpl_value tpl_negated(struct tpl_heap *h, struct tpl_value v);

/* As int() and float() read a text; false when they don't. A base of 0 takes prefixes. */
bool tpl_parse_integer(const char *text, size_t len, int base, int64_t *integer);
bool tpl_parse_float(const char *text, size_t len, double *number);

enum { TPL_NUMBER_MAX = 40 };

/* Writes as repr() does; returns the length. */
size_t tpl_write_float(double number, char out[TPL_NUMBER_MAX]);

/* Rounds half to even, `digits` (also negative) after the point. */
double tpl_round(double number, int64_t digits);
