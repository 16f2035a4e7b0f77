/* Work on strings that methods and filters share. */
#pragma once

#include "model/template_function.h"

/* Without the characters of `chars` (NULL: white space) at its ends. */
enum tpl_sides { TPL_LEFT = 1, TPL_RIGHT = 2, TPL_BOTH = 3 };
struct tpl_value tpl_stripped(struct tpl_heap *h, const struct tpl_string *s,
                              const struct tpl_string *chars, enum tpl_sides sides);

struct tpl_value tpl_replaced(struct tpl_heap *h, const struct tpl_string *s,
                              const struct tpl_string *old, const struct tpl_string *by,
                              int64_t count);

/* All characters in upper or lower case; capitalized: the first one in title case. */
struct tpl_value tpl_upper(struct tpl_heap *h, const struct tpl_string *s);
struct tpl_value tpl_lower(struct tpl_heap *h, const struct tpl_string *s);
struct tpl_value tpl_capitalized(struct tpl_heap *h, const struct tpl_string *s);

/* In a width of `width` characters: `left` tells whether to fill on the left, `right` on the right;
 * both: in the middle. */
struct tpl_value tpl_justified(struct tpl_heap *h, const struct tpl_string *s, int64_t width,
                               const struct tpl_string *fill, bool left, bool right);

/* The lines, without their ends unless `keep_ends`. */
struct tpl_value tpl_lines(struct tpl_heap *h, const struct tpl_string *s, bool keep_ends);

/* Splits from the right, at most `max` times. */
struct tpl_value tpl_rsplit(struct tpl_heap *h, const struct tpl_string *s,
                            const struct tpl_string *separator, int64_t max);

/* The parts with the string between them; fails when one is no string. */
struct tpl_value tpl_joined(struct tpl_heap *h, const struct tpl_string *between,
                            const struct tpl_list *parts);

bool tpl_is_all_upper(const struct tpl_string *s);
bool tpl_is_all_lower(const struct tpl_string *s);
