/* Characters as Python's str methods see them. */
#pragma once

#include "model/template_value.h"

#include <stdbool.h>
#include <stdint.h>

enum tpl_property { TPL_PRINTABLE, TPL_ALPHA, TPL_DECIMAL, TPL_DIGIT, TPL_NUMERIC };
enum tpl_case { TPL_UPPER, TPL_LOWER, TPL_TITLE };

bool tpl_has_property(uint32_t c, enum tpl_property property);
bool tpl_is_space(uint32_t c);
bool tpl_is_line_end(uint32_t c); /* as str.splitlines sees it; of "\r\n" both */
bool tpl_is_upper(uint32_t c);    /* there is a lower form */
bool tpl_is_lower(uint32_t c);    /* there is an upper form */

/* Appends the character in the case. */
void tpl_add_cased(struct tpl_builder *b, uint32_t c, enum tpl_case to, bool foreign);

/* The character at a byte of a string, and its size. */
uint32_t tpl_decode(const struct tpl_string *s, size_t at, size_t *size);
/* The same for the character that ends at `at`, which is not 0. */
uint32_t tpl_decode_before(const struct tpl_string *s, size_t at, size_t *size);
