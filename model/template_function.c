#include "model/template_function.h"

#include "model/template_render.h"

#include <string.h>

const struct tpl_function *tpl_find_in(const struct tpl_function *table, size_t n,
                                       const struct tpl_string *name)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(table[i].name) == name->len && memcmp(table[i].name, name->data, name->len) == 0)
            return &table[i];
    return NULL;
}

/* ---- arguments ----------------------------------------------------------------------------- */

/* Walks over the names of `params`. Returns the next name or NULL at the end. */
static const char *next_param(const char **params, size_t *len, bool *optional, bool *keywords)
{
    const char *name;

    for (; **params == ' ' || **params == '?' || **params == '/'; (*params)++) {
        *optional |= **params == '?';
        *keywords &= **params != '/';
    }
    name = *params;
    *len = strcspn(name, " ");
    *params += *len;
    return *len > 0 ? name : NULL;
}

/* The index of the keyword argument `name`, or n_named. */
static size_t find_named(const struct tpl_args *args, const char *name, size_t len)
{
    size_t i = 0;

    while (i < args->n_named && (args->named[i].name.string->len != len ||
                                 memcmp(args->named[i].name.string->data, name, len) != 0))
        i++;
    return i;
}

/* Puts arguments to parameters; returns how many there are. */
static void bind(struct tpl_heap *h, const struct tpl_function *f, const struct tpl_args *args,
                 struct tpl_value values[TPL_PARAMS_MAX])
{
    const char *params = f->params, *name;
    bool optional = false, keywords = true;
    size_t n = 0, n_used = 0, len;

    while ((name = next_param(&params, &len, &optional, &keywords))) {
        size_t at = keywords ? find_named(args, name, len) : args->n_named;
        values[n] = TPL_NO_VALUE;
        if (n < args->n && at < args->n_named)
            tpl_fail(h, "%s: the argument '%.*s' is given twice", f->name, (int)len, name);
        if (n < args->n) {
            values[n] = args->positional[n];
        } else if (at < args->n_named) {
            values[n] = args->named[at].value;
            n_used++;
        } else if (!optional) {
            tpl_fail(h, "%s: the argument '%.*s' is missing", f->name, (int)len, name);
        }
        n++;
    }
    if (args->n > n)
        tpl_fail(h, "%s: takes at most %zu arguments", f->name, n);
    if (args->n_named > n_used)
        tpl_fail(h, "%s: takes no such argument by name", f->name);
}

struct tpl_value tpl_call_function(struct tpl_render *r, const struct tpl_function *function,
                                   struct tpl_value self, const struct tpl_args *args)
{
    struct tpl_value values[TPL_PARAMS_MAX], result;

    tpl_enter(&r->heap);
    tpl_work(&r->heap, 0);
    if (function->call_any) {
        result = function->call_any(r, self, args);
    } else if (function->call) {
        bind(&r->heap, function, args, values);
        result = function->call(r, self, values);
    } else {
        tpl_fail(&r->heap, "'%s' is not supported", function->name);
    }
    tpl_leave(&r->heap);
    return result;
}

const struct tpl_string *tpl_want_string(struct tpl_render *r, struct tpl_value v, const char *what)
{
    if (v.type == TPL_UNDEFINED)
        tpl_fail_undefined(&r->heap, v);
    if (v.type != TPL_STRING)
        tpl_fail(&r->heap, "%s must be a str, not %s", what, tpl_type_name(v));
    return v.string;
}

int64_t tpl_want_integer(struct tpl_render *r, struct tpl_value v, const char *what)
{
    int64_t integer;

    if (v.type == TPL_UNDEFINED)
        tpl_fail_undefined(&r->heap, v);
    if (!tpl_as_integer(v, &integer))
        tpl_fail(&r->heap, "%s must be an int, not %s", what, tpl_type_name(v));
    return integer;
}

int64_t tpl_integer_or(struct tpl_render *r, struct tpl_value v, int64_t otherwise,
                       const char *what)
{
    return tpl_given(v) ? tpl_want_integer(r, v, what) : otherwise;
}
