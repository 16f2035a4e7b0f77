/* What a chat template can call: filters, tests, methods of values, and functions of the
 * environment. Each is a line of a table in the file that has the code. */
#pragma once

#include "model/template_number.h"
#include "model/template_value.h"

#include <stdbool.h>
#include <stddef.h>

struct tpl_render;

struct tpl_named {
    struct tpl_value name, value;
};

struct tpl_args {
    const struct tpl_value *positional;
    size_t n;
    const struct tpl_named *named;
    size_t n_named;
};

enum { TPL_PARAMS_MAX = 6 };

/* One callable. `self` is what a filter or test stands behind, or whose method it is. */
struct tpl_function {
    const char *name;
    /* Names of the parameters, separated by blanks. After '/' follow those without keywords, after
     * '?' those that may be missing. NULL: any arguments. */
    const char *params;
    struct tpl_value (*call)(struct tpl_render *r, struct tpl_value self,
                             const struct tpl_value *args);
    struct tpl_value (*call_any)(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_args *args);
};

struct tpl_method {
    const struct tpl_function *function; /* its `call`s NULL: it is known, but not supported */
    struct tpl_value self;
};

/* By name; NULL when there is none. */
const struct tpl_function *tpl_find_filter(const struct tpl_string *name);
const struct tpl_function *tpl_find_test(const struct tpl_string *name);
const struct tpl_function *tpl_find_method(struct tpl_value v, const struct tpl_string *name);
const struct tpl_function *tpl_find_list_filter(const struct tpl_string *name);
const struct tpl_function *tpl_find_string_method(const struct tpl_string *name);

/* The functions of the environment. */
extern const struct tpl_function tpl_globals[];
extern const size_t tpl_globals_n;

/* The entry of a table, or NULL. */
const struct tpl_function *tpl_find_in(const struct tpl_function *table, size_t n,
                                       const struct tpl_string *name);

/* Calls with the arguments put to their parameters; fails as Python does where they don't fit. */
struct tpl_value tpl_call_function(struct tpl_render *r, const struct tpl_function *function,
                                   struct tpl_value self, const struct tpl_args *args);

/* v.name and v[index], as Jinja's sandbox has them. */
struct tpl_value tpl_attribute(struct tpl_render *r, struct tpl_value v, struct tpl_value name);
struct tpl_value tpl_item(struct tpl_render *r, struct tpl_value v, struct tpl_value index);
struct tpl_value tpl_slice(struct tpl_render *r, struct tpl_value v, struct tpl_value start,
                           struct tpl_value stop, struct tpl_value step);

/* a op b, of any values. */
struct tpl_value tpl_binary(struct tpl_render *r, enum tpl_operator op, struct tpl_value a,
                            struct tpl_value b);

/* Calls a value. */
struct tpl_value tpl_call(struct tpl_render *r, struct tpl_value callee,
                          const struct tpl_args *args);

/* The text of a macro or of the state of a loop. */
void tpl_add_object(struct tpl_builder *b, struct tpl_value v);

/* ---- arguments ---- */

/* An argument of a type, or a failure that names `what`. */
const struct tpl_string *tpl_want_string(struct tpl_render *r, struct tpl_value v,
                                         const char *what);
int64_t tpl_want_integer(struct tpl_render *r, struct tpl_value v, const char *what);
/* The same with a value for an argument that was not given. */
int64_t tpl_integer_or(struct tpl_render *r, struct tpl_value v, int64_t otherwise,
                       const char *what);
