/* Filters over what can be gone through. Where Jinja gives a generator, here is an iterator: its
 * items are made at once, but it can be gone through once only, and has no length. */
#include "model/template_render.h"
#include "model/template_string.h"
#include "model/template_text.h"

#include <string.h>

/* ---- keys ---------------------------------------------------------------------------------- */

/* An item's attribute by a path: "a.b.0" or an index. */
static struct tpl_value attribute_of(struct tpl_render *r, struct tpl_value item,
                                     struct tpl_value path)
{
    struct tpl_heap *h = &r->heap;
    size_t at = 0, end;
    int64_t index;

    if (path.type != TPL_STRING)
        return tpl_item(r, item, path);
    const struct tpl_string *s = path.string;
    do {
        for (end = at; end < s->len && s->data[end] != '.';)
            end++;
        struct tpl_value part = tpl_part(h, s, at, end);
        if (end > at && strspn(s->data + at, "0123456789") >= end - at &&
            tpl_parse_integer(s->data + at, end - at, 10, &index))
            part = tpl_int(index);
        item = tpl_item(r, item, part);
        at = end + 1;
    } while (end < s->len);
    return item;
}

static bool is_given(struct tpl_value v)
{
    return tpl_given(v) && v.type != TPL_NONE;
}

/* What an item is compared by: an attribute (when asked for), in lower case (unless asked not to).
 */
static struct tpl_value key_of(struct tpl_render *r, struct tpl_value item, struct tpl_value path,
                               struct tpl_value otherwise, bool case_sensitive)
{
    if (is_given(path))
        item = attribute_of(r, item, path);
    if (item.type == TPL_UNDEFINED && is_given(otherwise))
        item = otherwise;
    if (item.type == TPL_STRING && !case_sensitive)
        item = tpl_lower(&r->heap, item.string);
    return item;
}

/* The keys of an item by a list of paths, "a,b". */
static struct tpl_value keys_of(struct tpl_render *r, struct tpl_value item, struct tpl_value paths,
                                bool case_sensitive)
{
    struct tpl_value keys = tpl_list(&r->heap, 1);
    size_t at = 0, end;

    if (paths.type != TPL_STRING) {
        tpl_push(&r->heap, keys.list, key_of(r, item, paths, TPL_NO_VALUE, case_sensitive));
        return keys;
    }
    do {
        for (end = at; end < paths.string->len && paths.string->data[end] != ',';)
            end++;
        struct tpl_value path = tpl_part(&r->heap, paths.string, at, end);
        tpl_push(&r->heap, keys.list, key_of(r, item, path, TPL_NO_VALUE, case_sensitive));
        at = end + 1;
    } while (end < paths.string->len);
    return keys;
}

/* ---- sorting ------------------------------------------------------------------------------- */

struct keyed {
    struct tpl_value key, item;
};

/* Merges the sorted halves of `from` into `to`; of equal ones the earlier comes first. */
static void merge(struct tpl_heap *h, const struct keyed *from, size_t middle, size_t n,
                  struct keyed *to, bool reverse)
{
    size_t a = 0, b = middle;

    for (size_t i = 0; i < n; i++) {
        bool take_b = a == middle;
        if (!take_b && b < n)
            take_b = reverse ? tpl_compare(h, from[a].key, from[b].key, "<") == -1
                             : tpl_compare(h, from[b].key, from[a].key, "<") == -1;
        to[i] = take_b ? from[b++] : from[a++];
    }
}

static void sort_keyed(struct tpl_heap *h, struct keyed *items, struct keyed *scratch, size_t n,
                       bool reverse)
{
    size_t middle = n / 2;

    if (n < 2)
        return;
    sort_keyed(h, items, scratch, middle, reverse);
    sort_keyed(h, items + middle, scratch, n - middle, reverse);
    memcpy(scratch, items, n * sizeof(*items));
    merge(h, scratch, middle, n, items, reverse);
}

static struct keyed *keyed_items(struct tpl_heap *h, size_t n)
{
    if (n > h->bytes_left / (2 * sizeof(struct keyed)))
        tpl_fail(h, "the template takes too much memory");
    return tpl_alloc(h, n * sizeof(struct keyed));
}

static struct tpl_value sorted(struct tpl_heap *h, struct keyed *items, size_t n, bool reverse)
{
    struct tpl_value list = tpl_list(h, n);

    sort_keyed(h, items, keyed_items(h, n), n, reverse);
    for (size_t i = 0; i < n; i++)
        tpl_push(h, list.list, items[i].item);
    return list;
}

/* sort(reverse=false, case_sensitive=false, attribute=none) */
static struct tpl_value sort(struct tpl_render *r, struct tpl_value self,
                             const struct tpl_value *args)
{
    const struct tpl_list *items = tpl_items(&r->heap, self);
    struct keyed *keyed = keyed_items(&r->heap, items->n);

    for (size_t i = 0; i < items->n; i++)
        keyed[i] = (struct keyed){keys_of(r, items->items[i], args[2], tpl_truth(args[1])),
                                  items->items[i]};
    return sorted(&r->heap, keyed, items->n, tpl_truth(args[0]));
}

/* dictsort(case_sensitive=false, by="key", reverse=false) */
static struct tpl_value dictsort(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    bool by_value = tpl_given(args[1]) && tpl_is_word(args[1], "value");

    if (tpl_given(args[1]) && !by_value && !tpl_is_word(args[1], "key"))
        tpl_fail(&r->heap, "dictsort: sorts by \"key\" or \"value\"");
    if (self.type != TPL_DICT)
        tpl_fail(&r->heap, "dictsort: takes a dict, not %s", tpl_type_name(self));
    struct keyed *keyed = keyed_items(&r->heap, self.dict->n);
    for (size_t i = 0; i < self.dict->n; i++) {
        const struct tpl_entry *e = &self.dict->entries[i];
        keyed[i].item = tpl_pair(&r->heap, e->key, e->value);
        keyed[i].key =
            key_of(r, by_value ? e->value : e->key, TPL_NO_VALUE, TPL_NO_VALUE, tpl_truth(args[0]));
    }
    return sorted(&r->heap, keyed, self.dict->n, tpl_truth(args[2]));
}

/* groupby(attribute, default=none, case_sensitive=false) */
static struct tpl_value groupby(struct tpl_render *r, struct tpl_value self,
                                const struct tpl_value *args)
{
    struct tpl_heap *h = &r->heap;
    const struct tpl_list *items = tpl_items(h, self);
    struct keyed *keyed = keyed_items(h, items->n);
    struct tpl_value groups = tpl_list(h, 0), group = TPL_NO_VALUE;
    bool case_sensitive = tpl_truth(args[2]);

    for (size_t i = 0; i < items->n; i++)
        keyed[i] = (struct keyed){key_of(r, items->items[i], args[0], args[1], case_sensitive),
                                  items->items[i]};
    sort_keyed(h, keyed, keyed_items(h, items->n), items->n, false);
    for (size_t i = 0; i < items->n; i++) {
        if (i == 0 || !tpl_equal(h, keyed[i].key, keyed[i - 1].key)) {
            group = tpl_list(h, 0);
            tpl_push(h, groups.list,
                     tpl_pair(h, key_of(r, keyed[i].item, args[0], args[1], true), group));
        }
        tpl_push(h, group.list, keyed[i].item);
    }
    return groups;
}

static struct tpl_value unique(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    const struct tpl_list *items = tpl_items(&r->heap, self);
    struct tpl_value kept = tpl_list(&r->heap, 0), seen = tpl_dict(&r->heap);

    for (size_t i = 0; i < items->n; i++) {
        struct tpl_value key =
            key_of(r, items->items[i], args[1], TPL_NO_VALUE, tpl_truth(args[0]));
        if (tpl_dict_find(&r->heap, seen.dict, key))
            continue;
        tpl_dict_set(&r->heap, seen.dict, key, TPL_NONE_VALUE);
        tpl_push(&r->heap, kept.list, items->items[i]);
    }
    return tpl_iterator(&r->heap, kept);
}

static struct tpl_value extreme(struct tpl_render *r, struct tpl_value self,
                                const struct tpl_value *args, bool max)
{
    const struct tpl_list *items = tpl_items(&r->heap, self);
    struct tpl_value best = TPL_NO_VALUE, best_key = TPL_NO_VALUE;

    for (size_t i = 0; i < items->n; i++) {
        struct tpl_value key =
            key_of(r, items->items[i], args[1], TPL_NO_VALUE, tpl_truth(args[0]));
        if (i > 0 && tpl_compare(&r->heap, key, best_key, max ? ">" : "<") != (max ? 1 : -1))
            continue;
        best = items->items[i];
        best_key = key;
    }
    return items->n > 0 ? best : tpl_undefined_hint(&r->heap, "the sequence was empty");
}

static struct tpl_value filter_min(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    return extreme(r, self, args, false);
}

static struct tpl_value filter_max(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_value *args)
{
    return extreme(r, self, args, true);
}

/* ---- parts --------------------------------------------------------------------------------- */

static struct tpl_value first(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    (void)args;
    if (self.type == TPL_ITERATOR && self.iterator->at < self.iterator->items->n)
        return self.iterator->items->items[self.iterator->at++];
    const struct tpl_list *items = tpl_items(&r->heap, self);
    return items->n > 0 ? items->items[0] : tpl_undefined_hint(&r->heap, "the sequence was empty");
}

static struct tpl_value last(struct tpl_render *r, struct tpl_value self,
                             const struct tpl_value *args)
{
    (void)args;
    if (self.type == TPL_ITERATOR)
        tpl_fail(&r->heap, "last: a generator has no last item (is a `| list` missing?)");
    const struct tpl_list *items = tpl_items(&r->heap, self);
    return items->n > 0 ? items->items[items->n - 1]
                        : tpl_undefined_hint(&r->heap, "the sequence was empty");
}

static struct tpl_value length(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    size_t n;

    (void)args;
    if (self.type == TPL_LOOP)
        return tpl_int((int64_t)self.loop->items->n);
    if (!tpl_length(&r->heap, self, &n))
        tpl_fail(&r->heap, "length: a %s has none", tpl_type_name(self));
    return tpl_int((int64_t)n);
}

static struct tpl_value list(struct tpl_render *r, struct tpl_value self,
                             const struct tpl_value *args)
{
    const struct tpl_list *items = tpl_items(&r->heap, self);
    struct tpl_value copy = tpl_list(&r->heap, items->n);

    (void)args;
    for (size_t i = 0; i < items->n; i++)
        tpl_push(&r->heap, copy.list, items->items[i]);
    return copy;
}

static struct tpl_value items_of(struct tpl_render *r, struct tpl_value self,
                                 const struct tpl_value *args)
{
    struct tpl_value list_of_pairs = tpl_list(&r->heap, 0);

    (void)args;
    if (self.type != TPL_DICT && self.type != TPL_UNDEFINED)
        tpl_fail(&r->heap, "items: takes a dict, not %s", tpl_type_name(self));
    for (size_t i = 0; self.type == TPL_DICT && i < self.dict->n; i++)
        tpl_push(&r->heap, list_of_pairs.list,
                 tpl_pair(&r->heap, self.dict->entries[i].key, self.dict->entries[i].value));
    return tpl_iterator(&r->heap, list_of_pairs);
}

static struct tpl_value reverse(struct tpl_render *r, struct tpl_value self,
                                const struct tpl_value *args)
{
    (void)args;
    if (self.type == TPL_STRING)
        return tpl_slice(r, self, TPL_NONE_VALUE, TPL_NONE_VALUE, tpl_int(-1));
    const struct tpl_list *items = tpl_items(&r->heap, self);
    struct tpl_value reversed = tpl_list(&r->heap, items->n);
    for (size_t i = items->n; i-- > 0;)
        tpl_push(&r->heap, reversed.list, items->items[i]);
    return self.type == TPL_ITERATOR ? reversed : tpl_iterator(&r->heap, reversed);
}

/* Lists of `n` items each, the last one filled up. */
static struct tpl_value batch(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    const struct tpl_list *items = tpl_items(&r->heap, self);
    int64_t n = tpl_want_integer(r, args[0], "batch");
    struct tpl_value rows = tpl_list(&r->heap, 0), row = TPL_NO_VALUE;

    for (size_t i = 0; i < items->n; i++) {
        if (!tpl_given(row) || (int64_t)row.list->n == n) {
            row = tpl_list(&r->heap, 0);
            tpl_push(&r->heap, rows.list, row);
        }
        tpl_push(&r->heap, row.list, items->items[i]);
    }
    while (is_given(args[1]) && tpl_given(row) && (int64_t)row.list->n < n)
        tpl_push(&r->heap, row.list, args[1]);
    return tpl_iterator(&r->heap, rows);
}

/* `n` lists, of about the same size. */
static struct tpl_value slice(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    const struct tpl_list *items = tpl_items(&r->heap, self);
    int64_t n = tpl_want_integer(r, args[0], "slice");
    struct tpl_value slices = tpl_list(&r->heap, 0);
    size_t at = 0;

    if (n == 0)
        tpl_fail(&r->heap, "division by zero");
    for (int64_t i = 0; i < n; i++) {
        bool longer = i < (int64_t)items->n % n;
        size_t end = at + items->n / (size_t)n + longer;
        struct tpl_value part = tpl_list(&r->heap, end - at);
        for (; at < end; at++)
            tpl_push(&r->heap, part.list, items->items[at]);
        if (is_given(args[1]) && !longer)
            tpl_push(&r->heap, part.list, args[1]);
        tpl_push(&r->heap, slices.list, part);
    }
    return tpl_iterator(&r->heap, slices);
}

/* join(d="", attribute=none) */
static struct tpl_value join(struct tpl_render *r, struct tpl_value self,
                             const struct tpl_value *args)
{
    const struct tpl_list *items = tpl_items(&r->heap, self);
    struct tpl_value texts = tpl_list(&r->heap, items->n);
    struct tpl_value between =
        tpl_given(args[0]) ? tpl_str(&r->heap, args[0]) : tpl_word(&r->heap, "");

    for (size_t i = 0; i < items->n; i++) {
        struct tpl_value item =
            is_given(args[1]) ? attribute_of(r, items->items[i], args[1]) : items->items[i];
        tpl_push(&r->heap, texts.list, tpl_str(&r->heap, item));
    }
    return tpl_joined(&r->heap, between.string, texts.list);
}

/* sum(attribute=none, start=0) */
static struct tpl_value sum(struct tpl_render *r, struct tpl_value self,
                            const struct tpl_value *args)
{
    const struct tpl_list *items = tpl_items(&r->heap, self);
    struct tpl_value total = tpl_given(args[1]) ? args[1] : tpl_int(0);

    if (total.type == TPL_STRING)
        tpl_fail(&r->heap, "sum: can't add up texts");
    for (size_t i = 0; i < items->n; i++)
        total = tpl_binary(r, TPL_ADD, total,
                           is_given(args[0]) ? attribute_of(r, items->items[i], args[0])
                                             : items->items[i]);
    return total;
}

/* ---- by other filters and tests ------------------------------------------------------------ */

/* The arguments without the first `n`. */
static struct tpl_args rest_of(const struct tpl_args *args, size_t n)
{
    struct tpl_args rest = *args;

    rest.positional += n;
    rest.n -= n;
    return rest;
}

static struct tpl_value map_attribute(struct tpl_render *r, const struct tpl_list *items,
                                      const struct tpl_args *args)
{
    struct tpl_value path = TPL_NO_VALUE, otherwise = TPL_NO_VALUE, mapped = tpl_list(&r->heap, 0);

    for (size_t i = 0; i < args->n_named; i++)
        if (tpl_is_word(args->named[i].name, "attribute"))
            path = args->named[i].value;
        else if (tpl_is_word(args->named[i].name, "default"))
            otherwise = args->named[i].value;
        else
            tpl_fail(&r->heap, "map: takes no such argument by name");
    if (!tpl_given(path))
        tpl_fail(&r->heap, "map: needs the name of a filter, or attribute=");
    for (size_t i = 0; i < items->n; i++) {
        struct tpl_value item =
            is_given(path) ? attribute_of(r, items->items[i], path) : items->items[i];
        if (item.type == TPL_UNDEFINED && is_given(otherwise))
            item = otherwise;
        tpl_push(&r->heap, mapped.list, item);
    }
    return tpl_iterator(&r->heap, mapped);
}

static struct tpl_value map(struct tpl_render *r, struct tpl_value self,
                            const struct tpl_args *args)
{
    struct tpl_value mapped = tpl_list(&r->heap, 0);

    if (!tpl_truth(self))
        return tpl_iterator(&r->heap, mapped);
    const struct tpl_list *items = tpl_items(&r->heap, self);
    if (args->n == 0)
        return map_attribute(r, items, args);
    const struct tpl_function *filter =
        tpl_find_filter(tpl_want_string(r, args->positional[0], "the name of a filter"));
    if (!filter)
        tpl_fail(&r->heap, "map: there is no such filter");
    struct tpl_args rest = rest_of(args, 1);
    for (size_t i = 0; i < items->n; i++)
        tpl_push(&r->heap, mapped.list, tpl_call_function(r, filter, items->items[i], &rest));
    return tpl_iterator(&r->heap, mapped);
}

/* The items for which a test holds (or not), of themselves or of an attribute. */
static struct tpl_value choose(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_args *args, bool by_attribute, bool keep)
{
    struct tpl_value kept = tpl_list(&r->heap, 0);
    const struct tpl_function *test = NULL;
    struct tpl_args rest = {NULL, 0, NULL, 0};

    if (!tpl_truth(self))
        return tpl_iterator(&r->heap, kept);
    if (by_attribute && args->n == 0)
        tpl_fail(&r->heap, "the name of an attribute is missing");
    if (args->n > by_attribute) {
        test = tpl_find_test(tpl_want_string(r, args->positional[by_attribute], "a test's name"));
        if (!test)
            tpl_fail(&r->heap, "there is no such test");
        rest = rest_of(args, 1 + (size_t)by_attribute);
    }
    const struct tpl_list *items = tpl_items(&r->heap, self);
    for (size_t i = 0; i < items->n; i++) {
        struct tpl_value v = items->items[i];
        if (by_attribute)
            v = attribute_of(r, v, args->positional[0]);
        if (test)
            v = tpl_call_function(r, test, v, &rest);
        if (tpl_truth(v) == keep)
            tpl_push(&r->heap, kept.list, items->items[i]);
    }
    return tpl_iterator(&r->heap, kept);
}

static struct tpl_value select_items(struct tpl_render *r, struct tpl_value self,
                                     const struct tpl_args *args)
{
    return choose(r, self, args, false, true);
}

static struct tpl_value reject_items(struct tpl_render *r, struct tpl_value self,
                                     const struct tpl_args *args)
{
    return choose(r, self, args, false, false);
}

static struct tpl_value selectattr(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_args *args)
{
    return choose(r, self, args, true, true);
}

static struct tpl_value rejectattr(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_args *args)
{
    return choose(r, self, args, true, false);
}

const struct tpl_function *tpl_find_list_filter(const struct tpl_string *name)
{
    static const struct tpl_function filters[] = {
        {"first", "", first, NULL},
        {"last", "", last, NULL},
        {"length", "", length, NULL},
        {"count", "", length, NULL},
        {"list", "", list, NULL},
        {"items", "", items_of, NULL},
        {"reverse", "", reverse, NULL},
        {"join", "?d attribute", join, NULL},
        {"sum", "?attribute start", sum, NULL},
        {"sort", "?reverse case_sensitive attribute", sort, NULL},
        {"dictsort", "?case_sensitive by reverse", dictsort, NULL},
        {"groupby", "attribute ?default case_sensitive", groupby, NULL},
        {"unique", "?case_sensitive attribute", unique, NULL},
        {"min", "?case_sensitive attribute", filter_min, NULL},
        {"max", "?case_sensitive attribute", filter_max, NULL},
        {"batch", "linecount ?fill_with", batch, NULL},
        {"slice", "slices ?fill_with", slice, NULL},
        {"map", NULL, NULL, map},
        {"select", NULL, NULL, select_items},
        {"reject", NULL, NULL, reject_items},
        {"selectattr", NULL, NULL, selectattr},
        {"rejectattr", NULL, NULL, rejectattr},
    };

    return tpl_find_in(filters, sizeof(filters) / sizeof(filters[0]), name);
}
