/* The methods of lists, dicts and the rest. Those that change a value are reached only where the
 * sandbox lets them (see template_operator.c). */
#include "model/template_render.h"

#include <string.h>

#define COUNT(array)  (sizeof(array) / sizeof((array)[0]))
#define NOT_SUPPORTED NULL, NULL, NULL

/* ---- dicts --------------------------------------------------------------------------------- */

static struct tpl_value dict_get(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    const struct tpl_value *found = tpl_dict_find(&r->heap, self.dict, args[0]);

    return found ? *found : tpl_given(args[1]) ? args[1] : TPL_NONE_VALUE;
}

static struct tpl_value view_of(struct tpl_render *r, struct tpl_value self,
                                enum tpl_view_kind kind)
{
    struct tpl_view *view = tpl_alloc(&r->heap, sizeof(*view));

    *view = (struct tpl_view){self.dict, kind};
    return (struct tpl_value){.type = TPL_VIEW, .view = view};
}

static struct tpl_value dict_keys(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    (void)args;
    return view_of(r, self, TPL_KEYS);
}

static struct tpl_value dict_values(struct tpl_render *r, struct tpl_value self,
                                    const struct tpl_value *args)
{
    (void)args;
    return view_of(r, self, TPL_VALUES);
}

static struct tpl_value dict_items(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    (void)args;
    return view_of(r, self, TPL_ITEMS);
}

static struct tpl_value dict_copy(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    struct tpl_value copy = tpl_dict(&r->heap);

    (void)args;
    for (size_t i = 0; i < self.dict->n; i++)
        tpl_dict_set(&r->heap, copy.dict, self.dict->entries[i].key, self.dict->entries[i].value);
    return copy;
}

static struct tpl_value dict_update(struct tpl_render *r, struct tpl_value self,
                                    const struct tpl_args *args)
{
    if (args->n > 1 || (args->n == 1 && args->positional[0].type != TPL_DICT))
        tpl_fail(&r->heap, "update() takes a dict");
    const struct tpl_dict *from = args->n == 1 ? args->positional[0].dict : NULL;
    for (size_t i = 0; from && i < from->n; i++)
        tpl_dict_set(&r->heap, self.dict, from->entries[i].key, from->entries[i].value);
    for (size_t i = 0; i < args->n_named; i++)
        tpl_dict_set(&r->heap, self.dict, args->named[i].name, args->named[i].value);
    return TPL_NONE_VALUE;
}

static struct tpl_value dict_setdefault(struct tpl_render *r, struct tpl_value self,
                                        const struct tpl_value *args)
{
    const struct tpl_value *found = tpl_dict_find(&r->heap, self.dict, args[0]);

    if (found)
        return *found;
    struct tpl_value value = tpl_given(args[1]) ? args[1] : TPL_NONE_VALUE;
    tpl_dict_set(&r->heap, self.dict, args[0], value);
    return value;
}

/* ---- lists --------------------------------------------------------------------------------- */

static struct tpl_value list_count(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    int64_t n = 0;

    for (size_t i = 0; i < self.list->n; i++)
        n += tpl_equal(&r->heap, self.list->items[i], args[0]);
    return tpl_int(n);
}

static struct tpl_value list_index(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    int64_t n = (int64_t)self.list->n, from = tpl_integer_or(r, args[1], 0, "start");
    int64_t to = tpl_integer_or(r, args[2], n, "stop");

    from = from < -n ? 0 : from < 0 ? from + n : from;
    to = to < -n ? 0 : to < 0 ? to + n : to > n ? n : to;
    for (int64_t i = from; i < to; i++)
        if (tpl_equal(&r->heap, self.list->items[i], args[0]))
            return tpl_int(i);
    tpl_fail(&r->heap, "index(): the %s does not hold it", tpl_type_name(self));
}

static struct tpl_value list_copy(struct tpl_render *r, struct tpl_value self,
                                  const struct tpl_value *args)
{
    struct tpl_value copy = tpl_list(&r->heap, self.list->n);

    (void)args;
    for (size_t i = 0; i < self.list->n; i++)
        tpl_push(&r->heap, copy.list, self.list->items[i]);
    return copy;
}

static struct tpl_value list_append(struct tpl_render *r, struct tpl_value self,
                                    const struct tpl_value *args)
{
    tpl_push(&r->heap, self.list, args[0]);
    return TPL_NONE_VALUE;
}

static struct tpl_value list_extend(struct tpl_render *r, struct tpl_value self,
                                    const struct tpl_value *args)
{
    const struct tpl_list *from = tpl_items(&r->heap, args[0]);

    for (size_t i = 0, n = from->n; i < n; i++)
        tpl_push(&r->heap, self.list, from->items[i]);
    return TPL_NONE_VALUE;
}

static struct tpl_value list_insert(struct tpl_render *r, struct tpl_value self,
                                    const struct tpl_value *args)
{
    struct tpl_list *list = self.list;
    int64_t n = (int64_t)list->n, at = tpl_want_integer(r, args[0], "an index");

    at = at < -n ? 0 : at < 0 ? at + n : at > n ? n : at;
    tpl_push(&r->heap, list, args[1]);
    tpl_work(&r->heap, (size_t)(n - at) * sizeof(*list->items));
    memmove(&list->items[at + 1], &list->items[at], (size_t)(n - at) * sizeof(*list->items));
    list->items[at] = args[1];
    return TPL_NONE_VALUE;
}

static struct tpl_value list_pop(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    struct tpl_list *list = self.list;
    int64_t n = (int64_t)list->n, at = tpl_integer_or(r, args[0], -1, "an index");

    at += at < 0 ? n : 0;
    if (at < 0 || at >= n)
        tpl_fail(&r->heap, "pop(): the list has no such element");
    struct tpl_value popped = list->items[at];
    size_t rest = (size_t)(n - at - 1) * sizeof(*list->items);
    tpl_work(&r->heap, rest);
    memmove(&list->items[at], &list->items[at + 1], rest);
    list->n--;
    return popped;
}

static struct tpl_value list_clear(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    (void)r;
    (void)args;
    self.list->n = 0;
    return TPL_NONE_VALUE;
}

/* ---- the rest ------------------------------------------------------------------------------ */

static struct tpl_value cycler_next(struct tpl_render *r, struct tpl_value self,
                                    const struct tpl_value *args)
{
    struct tpl_cycler *c = self.cycler;
    struct tpl_value item = c->items->items[c->at];

    (void)r;
    (void)args;
    c->at = (c->at + 1) % c->items->n;
    return item;
}

static struct tpl_value cycler_reset(struct tpl_render *r, struct tpl_value self,
                                     const struct tpl_value *args)
{
    (void)r;
    (void)args;
    self.cycler->at = 0;
    return TPL_NONE_VALUE;
}

static struct tpl_value is_integer(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    (void)r;
    (void)args;
    return tpl_bool(self.number >= -9.2e18 && self.number <= 9.2e18 &&
                    self.number == (double)(int64_t)self.number);
}

const struct tpl_function *tpl_find_method(struct tpl_value v, const struct tpl_string *name)
{
    static const struct tpl_function of_dicts[] = {
        {"get", "/key ?default", dict_get, NULL},
        {"keys", "", dict_keys, NULL},
        {"values", "", dict_values, NULL},
        {"items", "", dict_items, NULL},
        {"copy", "", dict_copy, NULL},
        {"update", NULL, NULL, dict_update},
        {"setdefault", "/key ?default", dict_setdefault, NULL},
        {"clear", NOT_SUPPORTED},
        {"fromkeys", NOT_SUPPORTED},
        {"pop", NOT_SUPPORTED},
        {"popitem", NOT_SUPPORTED},
    };
    static const struct tpl_function of_lists[] = {
        {"count", "/value", list_count, NULL},
        {"index", "/value ?start stop", list_index, NULL},
        {"copy", "", list_copy, NULL}, /* here begin those that tuples don't have */
        {"append", "/object", list_append, NULL},
        {"extend", "/iterable", list_extend, NULL},
        {"insert", "/index object", list_insert, NULL},
        {"pop", "/?index", list_pop, NULL},
        {"clear", "", list_clear, NULL},
        {"remove", NOT_SUPPORTED},
        {"reverse", NOT_SUPPORTED},
        {"sort", NOT_SUPPORTED},
    };
    static const struct tpl_function of_cyclers[] = {{"next", "", cycler_next, NULL},
                                                     {"reset", "", cycler_reset, NULL}};
    static const struct tpl_function of_floats[] = {{"is_integer", "", is_integer, NULL}};

    switch (v.type) {
    case TPL_STRING:
        return tpl_find_string_method(name);
    case TPL_DICT:
        return tpl_find_in(of_dicts, COUNT(of_dicts), name);
    case TPL_LIST:
        return tpl_find_in(of_lists, COUNT(of_lists), name);
    case TPL_TUPLE:
        return tpl_find_in(of_lists, 2, name);
    case TPL_CYCLER:
        return tpl_find_in(of_cyclers, COUNT(of_cyclers), name);
    case TPL_FLOAT:
        return tpl_find_in(of_floats, COUNT(of_floats), name);
    default:
        return NULL;
    }
}
