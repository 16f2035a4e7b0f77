/* Texts with places for values: Python's % operator, str.format() and strftime. */
#pragma once

#include "model/template_function.h"

#include <stdint.h>

struct tpl_value tpl_format_percent(struct tpl_render *r, const struct tpl_string *format,
                                    struct tpl_value values);
struct tpl_value tpl_format_braces(struct tpl_render *r, const struct tpl_string *format,
                                   const struct tpl_args *args);

/* The local time at a moment. */
struct tpl_value tpl_format_time(struct tpl_render *r, const struct tpl_string *format,
                                 int64_t unix_s);
