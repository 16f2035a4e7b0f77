#include "model/template_value.h"

#include "base/siphash.h"
#include "base/utf8.h"
#include "model/template_number.h"

#include <math.h>
#include <string.h>

enum { SMALL_DICT = 8 };

/* ---- strings ------------------------------------------------------------------------------- */

struct tpl_value tpl_string(struct tpl_heap *h, const char *data, size_t len, bool foreign)
{
    struct tpl_string *s = tpl_alloc(h, sizeof(*s));

    *s = (struct tpl_string){.data = data, .len = len, .foreign = foreign};
    return (struct tpl_value){.type = TPL_STRING, .string = s};
}

struct tpl_value tpl_word(struct tpl_heap *h, const char *text)
{
    return tpl_string(h, text, strlen(text), false);
}

struct tpl_value tpl_part(struct tpl_heap *h, const struct tpl_string *s, size_t from, size_t to)
{
    struct tpl_string *part = tpl_alloc(h, sizeof(*part));

    *part = *s;
    part->data += from;
    part->len = to - from;
    if (part->mask)
        part->mask += from;
    return (struct tpl_value){.type = TPL_STRING, .string = part};
}

size_t tpl_chars(struct tpl_heap *h, const struct tpl_string *s)
{
    size_t n = 0;

    tpl_work(h, s->len);
    for (size_t i = 0; i < s->len; i++)
        n += ((unsigned char)s->data[i] & 0xC0) != 0x80;
    return n;
}

size_t tpl_char_at(struct tpl_heap *h, const struct tpl_string *s, size_t index)
{
    size_t at = 0;

    while (at < s->len) {
        if (((unsigned char)s->data[at] & 0xC0) != 0x80 && index-- == 0)
            break;
        at++;
    }
    tpl_work(h, at);
    return at;
}

/* ---- builder ------------------------------------------------------------------------------- */

void tpl_builder_init(struct tpl_builder *b, struct tpl_heap *h)
{
    *b = (struct tpl_builder){.heap = h};
}

static void *grown(struct tpl_heap *h, const void *old, size_t used, size_t size)
{
    void *block = tpl_alloc(h, size);

    if (used > 0)
        memcpy(block, old, used);
    return block;
}

static void reserve(struct tpl_builder *b, size_t len)
{
    if (b->max > 0 && len > b->max - b->len)
        tpl_fail(b->heap, "the output has more than %zu bytes", b->max);
    if (len <= b->cap - b->len)
        return;
    size_t cap = b->cap < 64 ? 64 : 2 * b->cap;
    while (cap - b->len < len)
        cap *= 2;
    b->data = grown(b->heap, b->data, b->len, cap);
    if (b->mask)
        b->mask = grown(b->heap, b->mask, b->len, cap);
    b->cap = cap;
}

/* From here on the bytes differ in where they are from. */
static void split_mask(struct tpl_builder *b)
{
    if (b->mask)
        return;
    b->mask = tpl_alloc(b->heap, b->cap);
    memset(b->mask, b->foreign, b->len);
}

static void append(struct tpl_builder *b, const char *data, const uint8_t *mask, bool foreign,
                   size_t len)
{
    if (len == 0)
        return;
    tpl_work(b->heap, len);
    reserve(b, len);
    if (b->len == 0 && !mask)
        b->foreign = foreign;
    else if (mask || foreign != b->foreign)
        split_mask(b);
    memcpy(b->data + b->len, data, len);
    if (b->mask && mask)
        memcpy(b->mask + b->len, mask, len);
    else if (b->mask)
        memset(b->mask + b->len, foreign, len);
    b->len += len;
}

void tpl_add(struct tpl_builder *b, const char *data, size_t len, bool foreign)
{
    append(b, data, NULL, foreign, len);
}

void tpl_add_word(struct tpl_builder *b, const char *text)
{
    append(b, text, NULL, false, strlen(text));
}

void tpl_add_string(struct tpl_builder *b, const struct tpl_string *s)
{
    append(b, s->data, s->mask, s->foreign, s->len);
}

void tpl_add_part(struct tpl_builder *b, const struct tpl_string *s, size_t from, size_t to)
{
    append(b, s->data + from, s->mask ? s->mask + from : NULL, s->foreign, to - from);
}

struct tpl_value tpl_built(struct tpl_builder *b)
{
    struct tpl_string *s = tpl_alloc(b->heap, sizeof(*s));

    *s = (struct tpl_string){.data = b->data ? b->data : "",
                             .len = b->len,
                             .mask = b->mask,
                             .foreign = b->foreign,
                             .markup = b->markup};
    return (struct tpl_value){.type = TPL_STRING, .string = s};
}

/* ---- lists --------------------------------------------------------------------------------- */

struct tpl_value tpl_list(struct tpl_heap *h, size_t cap)
{
    struct tpl_list *list = tpl_alloc(h, sizeof(*list));

    if (cap > h->bytes_left / sizeof(struct tpl_value))
        tpl_fail(h, "the template takes too much memory");
    *list = (struct tpl_list){.cap = cap, .own = true};
    list->items = tpl_alloc(h, cap * sizeof(*list->items));
    return (struct tpl_value){.type = TPL_LIST, .list = list};
}

struct tpl_value tpl_tuple(struct tpl_heap *h, size_t n)
{
    struct tpl_value tuple = tpl_list(h, n);

    tuple.type = TPL_TUPLE;
    tuple.list->n = n;
    return tuple;
}

struct tpl_value tpl_pair(struct tpl_heap *h, struct tpl_value a, struct tpl_value b)
{
    struct tpl_value pair = tpl_tuple(h, 2);

    pair.list->items[0] = a;
    pair.list->items[1] = b;
    return pair;
}

void tpl_push(struct tpl_heap *h, struct tpl_list *list, struct tpl_value item)
{
    tpl_work(h, 0);
    if (list->n == list->cap) {
        size_t cap = list->cap < 8 ? 8 : 2 * list->cap, size = sizeof(*list->items);
        list->items = grown(h, list->items, list->n * size, cap * size);
        list->cap = cap;
    }
    list->items[list->n++] = item;
}

struct tpl_value tpl_iterator(struct tpl_heap *h, struct tpl_value list)
{
    struct tpl_iterator *iterator = tpl_alloc(h, sizeof(*iterator));

    *iterator = (struct tpl_iterator){.items = list.list};
    return (struct tpl_value){.type = TPL_ITERATOR, .iterator = iterator};
}

/* ---- dicts --------------------------------------------------------------------------------- */

struct tpl_value tpl_dict(struct tpl_heap *h)
{
    struct tpl_dict *dict = tpl_alloc(h, sizeof(*dict));

    *dict = (struct tpl_dict){.own = true};
    return (struct tpl_value){.type = TPL_DICT, .dict = dict};
}

/* Equal keys have equal hashes: 1, 1.0 and true are the same key. */
static uint64_t hash_of(struct tpl_heap *h, struct tpl_value key)
{
    double number;
    uint64_t hash = 14695981039346656037u;

    switch (key.type) {
    case TPL_STRING:
    case TPL_BIG:
        tpl_work(h, key.string->len);
        return siphash(key.string->data, key.string->len);
    case TPL_BOOL:
    case TPL_INT:
    case TPL_FLOAT:
        number = tpl_as_double(key) + 0.0;
        return siphash((const char *)&number, sizeof(number));
    case TPL_TUPLE:
        tpl_enter(h);
        for (size_t i = 0; i < key.list->n; i++)
            hash = (hash ^ hash_of(h, key.list->items[i])) * 1099511628211u;
        tpl_leave(h);
        return hash;
    case TPL_LIST:
    case TPL_DICT:
    case TPL_VIEW:
        tpl_fail(h, "a %s can't be a key of a dict", tpl_type_name(key));
    default:
        return (uint64_t)key.type;
    }
}

/* The slot of the key, or the empty one where it would go. */
static uint32_t *slot_of(struct tpl_heap *h, const struct tpl_dict *dict, struct tpl_value key)
{
    size_t at = hash_of(h, key) & (dict->n_slots - 1);

    while (dict->slots[at] && !tpl_equal(h, dict->entries[dict->slots[at] - 1].key, key)) {
        tpl_work(h, 0);
        at = (at + 1) & (dict->n_slots - 1);
    }
    return &dict->slots[at];
}

static void make_slots(struct tpl_heap *h, struct tpl_dict *dict, size_t n_slots)
{
    dict->n_slots = n_slots;
    dict->slots = tpl_alloc(h, n_slots * sizeof(*dict->slots));
    memset(dict->slots, 0, n_slots * sizeof(*dict->slots));
    for (size_t i = 0; i < dict->n; i++)
        *slot_of(h, dict, dict->entries[i].key) = (uint32_t)i + 1;
}

struct tpl_value *tpl_dict_find(struct tpl_heap *h, const struct tpl_dict *dict,
                                struct tpl_value key)
{
    if (dict->slots) {
        uint32_t found = *slot_of(h, dict, key);
        return found ? &dict->entries[found - 1].value : NULL;
    }
    if (key.type != TPL_STRING)
        hash_of(h, key); /* fails where it can't be a key */
    for (size_t i = 0; i < dict->n; i++)
        if (tpl_equal(h, dict->entries[i].key, key))
            return &dict->entries[i].value;
    return NULL;
}

struct tpl_value *tpl_dict_word(struct tpl_heap *h, const struct tpl_dict *dict, const char *key)
{
    struct tpl_string s = {.data = key, .len = strlen(key)};

    return tpl_dict_find(h, dict, (struct tpl_value){.type = TPL_STRING, .string = &s});
}

void tpl_dict_set(struct tpl_heap *h, struct tpl_dict *dict, struct tpl_value key,
                  struct tpl_value value)
{
    struct tpl_value *found = tpl_dict_find(h, dict, key);

    if (found) {
        *found = value;
        return;
    }
    if (dict->n == dict->cap) {
        size_t cap = dict->cap < 4 ? 4 : 2 * dict->cap, size = sizeof(*dict->entries);
        dict->entries = grown(h, dict->entries, dict->n * size, cap * size);
        dict->cap = cap;
    }
    dict->entries[dict->n++] = (struct tpl_entry){key, value};
    if (dict->slots && 4 * dict->n <= 3 * dict->n_slots)
        *slot_of(h, dict, key) = (uint32_t)dict->n;
    else if (dict->n > SMALL_DICT)
        make_slots(h, dict, dict->slots ? 2 * dict->n_slots : 4 * SMALL_DICT);
}

struct tpl_value tpl_range_at(const struct tpl_range *range, int64_t i)
{
    return tpl_int((int64_t)((uint64_t)range->start + (uint64_t)i * (uint64_t)range->step));
}

struct tpl_value tpl_entry_of_view(struct tpl_heap *h, const struct tpl_view *view, size_t i)
{
    const struct tpl_entry *entry = &view->dict->entries[i];

    return view->kind == TPL_KEYS     ? entry->key
           : view->kind == TPL_VALUES ? entry->value
                                      : tpl_pair(h, entry->key, entry->value);
}

/* ---- undefined ----------------------------------------------------------------------------- */

struct tpl_value tpl_undefined(struct tpl_heap *h, struct tpl_value owner, struct tpl_value name)
{
    struct tpl_missing *missing = tpl_alloc(h, sizeof(*missing));

    *missing = (struct tpl_missing){.name = name, .owner = owner};
    return (struct tpl_value){.type = TPL_UNDEFINED, .missing = missing};
}

struct tpl_value tpl_undefined_hint(struct tpl_heap *h, const char *hint)
{
    struct tpl_missing *missing = tpl_alloc(h, sizeof(*missing));

    *missing = (struct tpl_missing){.hint = hint};
    return (struct tpl_value){.type = TPL_UNDEFINED, .missing = missing};
}

void tpl_fail_undefined(struct tpl_heap *h, struct tpl_value v)
{
    const struct tpl_missing *m = v.missing;
    const struct tpl_string *name = m->name.type == TPL_STRING ? m->name.string : NULL;

    if (m->hint)
        tpl_fail(h, "%s", m->hint);
    if (!name)
        tpl_fail(h, "a %s has no such element", tpl_type_name(m->owner));
    if (m->owner.type == TPL_ABSENT)
        tpl_fail(h, "'%.*s' is undefined", (int)(name->len < 100 ? name->len : 100), name->data);
    tpl_fail(h, "a %s has no attribute '%.*s'", tpl_type_name(m->owner),
             (int)(name->len < 100 ? name->len : 100), name->data);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

/* The string with the places where a mark stands not foreign. */
static struct tpl_value marked(struct tpl_heap *h, const char *text, const char *const *marks)
{
    size_t len = strlen(text);
    uint8_t *mask = NULL;

    for (; *marks; marks++) {
        size_t size = strlen(*marks);
        for (const char *at = strstr(text, *marks); at; at = strstr(at + size, *marks)) {
            if (!mask) {
                mask = tpl_alloc(h, len);
                memset(mask, true, len);
            }
            memset(mask + (at - text), false, size);
        }
    }
    struct tpl_string *s = tpl_alloc(h, sizeof(*s));
    *s = (struct tpl_string){.data = text, .len = len, .mask = mask, .foreign = true};
    return (struct tpl_value){.type = TPL_STRING, .string = s};
}

static bool is_plain_word(const char *text)
{
    size_t len = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_- ");

    return text[len] == '\0' && len <= 64;
}

static struct tpl_value number_from_json(struct tpl_heap *h, const struct json *json)
{
    const char *literal = json_literal(json);
    int64_t integer;

    if (literal && literal[strcspn(literal, ".eE")])
        return tpl_float(json_number(json));
    if (literal && !tpl_parse_integer(literal, strlen(literal), 10, &integer)) {
        struct tpl_value digits = tpl_word(h, literal);
        digits.type = TPL_BIG;
        return digits;
    }
    return tpl_int(literal ? integer : (int64_t)json_number(json));
}

static struct tpl_value object_from_json(struct tpl_heap *h, const struct json *json, bool foreign,
                                         const char *const *marks)
{
    struct tpl_value dict = tpl_dict(h);
    const struct json *role = foreign ? json_get(json, "role") : NULL;
    bool assistant = json_is(role, JSON_STRING) && strcmp(json_string(role), "assistant") == 0;

    for (const struct json *m = json_first(json); m; m = json_next(m)) {
        struct tpl_value key = tpl_string(h, json_key(m), strlen(json_key(m)), foreign), value;
        if (json_is(m, JSON_STRING) && foreign && strcmp(json_key(m), "role") == 0)
            value = tpl_string(h, json_string(m), strlen(json_string(m)),
                               !is_plain_word(json_string(m)));
        else if (json_is(m, JSON_STRING) && marks && assistant &&
                 strcmp(json_key(m), "content") == 0)
            value = marked(h, json_string(m), marks);
        else
            value = tpl_from_json(h, m, foreign, marks);
        tpl_dict_set(h, dict.dict, key, value);
    }
    dict.dict->own = false;
    return dict;
}

struct tpl_value tpl_from_json(struct tpl_heap *h, const struct json *json, bool foreign,
                               const char *const *marks)
{
    struct tpl_value value = TPL_NONE_VALUE;

    tpl_enter(h);
    switch (json_type(json)) {
    case JSON_NULL:
        break;
    case JSON_BOOL:
        value = tpl_bool(json_bool(json));
        break;
    case JSON_NUMBER:
        value = number_from_json(h, json);
        break;
    case JSON_STRING:
        value = tpl_string(h, json_string(json), strlen(json_string(json)), foreign);
        break;
    case JSON_ARRAY:
        value = tpl_list(h, json_count(json));
        for (const struct json *c = json_first(json); c; c = json_next(c))
            tpl_push(h, value.list, tpl_from_json(h, c, foreign, marks));
        value.list->own = false;
        break;
    case JSON_OBJECT:
        value = object_from_json(h, json, foreign, marks);
        break;
    }
    tpl_leave(h);
    return value;
}

/* ---- reading ------------------------------------------------------------------------------- */

const char *tpl_type_name(struct tpl_value v)
{
    static const char *const names[] = {
        [TPL_ABSENT] = "nothing",
        [TPL_UNDEFINED] = "Undefined",
        [TPL_NONE] = "NoneType",
        [TPL_BOOL] = "bool",
        [TPL_INT] = "int",
        [TPL_BIG] = "int",
        [TPL_FLOAT] = "float",
        [TPL_STRING] = "str",
        [TPL_LIST] = "list",
        [TPL_TUPLE] = "tuple",
        [TPL_DICT] = "dict",
        [TPL_VIEW] = "dict view",
        [TPL_RANGE] = "range",
        [TPL_ITERATOR] = "generator",
        [TPL_NAMESPACE] = "Namespace",
        [TPL_MACRO] = "macro",
        [TPL_FUNCTION] = "function",
        [TPL_METHOD] = "method",
        [TPL_LOOP] = "loop",
        [TPL_CYCLER] = "Cycler",
        [TPL_JOINER] = "Joiner",
    };

    return names[v.type];
}

bool tpl_truth(struct tpl_value v)
{
    switch (v.type) {
    case TPL_ABSENT:
    case TPL_UNDEFINED:
    case TPL_NONE:
        return false;
    case TPL_BOOL:
        return v.truth;
    case TPL_INT:
        return v.integer != 0;
    case TPL_FLOAT:
        return v.number != 0;
    case TPL_STRING:
        return v.string->len > 0;
    case TPL_LIST:
    case TPL_TUPLE:
        return v.list->n > 0;
    case TPL_DICT:
        return v.dict->n > 0;
    case TPL_VIEW:
        return v.view->dict->n > 0;
    case TPL_RANGE:
        return v.range->n > 0;
    default:
        return true;
    }
}

bool tpl_is_number(struct tpl_value v)
{
    return v.type == TPL_BOOL || v.type == TPL_INT || v.type == TPL_FLOAT;
}

bool tpl_as_integer(struct tpl_value v, int64_t *integer)
{
    if (v.type != TPL_BOOL && v.type != TPL_INT)
        return false;
    *integer = v.type == TPL_BOOL ? v.truth : v.integer;
    return true;
}

double tpl_as_double(struct tpl_value v)
{
    return v.type == TPL_FLOAT ? v.number : v.type == TPL_INT ? (double)v.integer : (double)v.truth;
}

bool tpl_is_word(struct tpl_value v, const char *text)
{
    return v.type == TPL_STRING && v.string->len == strlen(text) &&
           memcmp(v.string->data, text, v.string->len) == 0;
}

/* ---- comparing ----------------------------------------------------------------------------- */

static bool equal_strings(struct tpl_heap *h, const struct tpl_string *a,
                          const struct tpl_string *b)
{
    if (a->len != b->len)
        return false;
    tpl_work(h, a->len);
    return a->len == 0 || memcmp(a->data, b->data, a->len) == 0;
}

static bool equal_lists(struct tpl_heap *h, const struct tpl_list *a, const struct tpl_list *b)
{
    if (a == b)
        return true;
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!tpl_equal(h, a->items[i], b->items[i]))
            return false;
    return true;
}

static bool equal_dicts(struct tpl_heap *h, const struct tpl_dict *a, const struct tpl_dict *b)
{
    if (a == b)
        return true;
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        const struct tpl_value *other = tpl_dict_find(h, b, a->entries[i].key);
        if (!other || !tpl_equal(h, a->entries[i].value, *other))
            return false;
    }
    return true;
}

static bool equal_ranges(const struct tpl_range *a, const struct tpl_range *b)
{
    return a->n == b->n && (a->n == 0 || a->start == b->start) && (a->n < 2 || a->step == b->step);
}

/* Views of keys compare as sets; views of values only with themselves. */
static bool equal_views(struct tpl_heap *h, const struct tpl_view *a, const struct tpl_view *b)
{
    if (a == b)
        return true;
    if (a->kind == TPL_VALUES || a->kind != b->kind || a->dict->n != b->dict->n)
        return false;
    for (size_t i = 0; i < a->dict->n; i++) {
        const struct tpl_value *other = tpl_dict_find(h, b->dict, a->dict->entries[i].key);
        if (!other || (a->kind == TPL_ITEMS && !tpl_equal(h, a->dict->entries[i].value, *other)))
            return false;
    }
    return true;
}

bool tpl_equal(struct tpl_heap *h, struct tpl_value a, struct tpl_value b)
{
    bool equal;

    tpl_work(h, 0);
    if (tpl_is_number(a) && tpl_is_number(b))
        return tpl_compare_numbers(a, b) == 0;
    if (a.type != b.type)
        return false;
    tpl_enter(h);
    switch (a.type) {
    case TPL_UNDEFINED:
    case TPL_NONE:
        equal = true;
        break;
    case TPL_STRING:
    case TPL_BIG:
        equal = equal_strings(h, a.string, b.string);
        break;
    case TPL_LIST:
    case TPL_TUPLE:
        equal = equal_lists(h, a.list, b.list);
        break;
    case TPL_DICT:
        equal = equal_dicts(h, a.dict, b.dict);
        break;
    case TPL_RANGE:
        equal = equal_ranges(a.range, b.range);
        break;
    case TPL_VIEW:
        equal = equal_views(h, a.view, b.view);
        break;
    default: /* by identity */
        equal = a.list == b.list;
        break;
    }
    tpl_leave(h);
    return equal;
}

int tpl_compare(struct tpl_heap *h, struct tpl_value a, struct tpl_value b, const char *op)
{
    if ((tpl_is_number(a) || a.type == TPL_BIG) && (tpl_is_number(b) || b.type == TPL_BIG))
        return tpl_compare_numbers(a, b);
    if (a.type == TPL_UNDEFINED)
        tpl_fail_undefined(h, a);
    if (b.type == TPL_UNDEFINED)
        tpl_fail_undefined(h, b);
    if (a.type == TPL_STRING && b.type == TPL_STRING) {
        size_t len = a.string->len < b.string->len ? a.string->len : b.string->len;
        tpl_work(h, len);
        int order = len > 0 ? memcmp(a.string->data, b.string->data, len) : 0;
        if (order == 0)
            order = (a.string->len > b.string->len) - (a.string->len < b.string->len);
        return order < 0 ? -1 : order > 0;
    }
    if (a.type == b.type && (a.type == TPL_LIST || a.type == TPL_TUPLE)) {
        size_t n = a.list->n < b.list->n ? a.list->n : b.list->n;
        tpl_enter(h);
        for (size_t i = 0; i < n; i++)
            if (!tpl_equal(h, a.list->items[i], b.list->items[i])) {
                int order = tpl_compare(h, a.list->items[i], b.list->items[i], op);
                tpl_leave(h);
                return order;
            }
        tpl_leave(h);
        return (a.list->n > b.list->n) - (a.list->n < b.list->n);
    }
    tpl_fail(h, "'%s' is not supported between %s and %s", op, tpl_type_name(a), tpl_type_name(b));
}

static bool has_string(struct tpl_heap *h, const struct tpl_string *s, struct tpl_value item)
{
    if (item.type != TPL_STRING)
        tpl_fail(h, "'in' a str needs a str on the left, not %s", tpl_type_name(item));
    tpl_work(h, s->len);
    return item.string->len == 0 ||
           (s->len > 0 && memmem(s->data, s->len, item.string->data, item.string->len) != NULL);
}

bool tpl_contains(struct tpl_heap *h, struct tpl_value container, struct tpl_value item)
{
    switch (container.type) {
    case TPL_STRING:
        return has_string(h, container.string, item);
    case TPL_DICT:
        return tpl_dict_find(h, container.dict, item) != NULL;
    case TPL_VIEW:
        if (container.view->kind == TPL_KEYS)
            return tpl_dict_find(h, container.view->dict, item) != NULL;
        break;
    default:
        break;
    }
    if (!tpl_is_iterable(container))
        tpl_fail(h, "'in' needs something to look in, not %s", tpl_type_name(container));
    const struct tpl_list *list = tpl_items(h, container);
    for (size_t i = 0; i < list->n; i++)
        if (tpl_equal(h, list->items[i], item))
            return true;
    return false;
}

/* ---- going through ------------------------------------------------------------------------- */

bool tpl_length(struct tpl_heap *h, struct tpl_value v, size_t *len)
{
    switch (v.type) {
    case TPL_UNDEFINED:
        *len = 0;
        return true;
    case TPL_STRING:
        *len = tpl_chars(h, v.string);
        return true;
    case TPL_LIST:
    case TPL_TUPLE:
        *len = v.list->n;
        return true;
    case TPL_DICT:
        *len = v.dict->n;
        return true;
    case TPL_VIEW:
        *len = v.view->dict->n;
        return true;
    case TPL_RANGE:
        *len = (size_t)v.range->n;
        return true;
    default:
        return false;
    }
}

bool tpl_is_iterable(struct tpl_value v)
{
    return v.type == TPL_UNDEFINED || v.type == TPL_STRING || v.type == TPL_LIST ||
           v.type == TPL_TUPLE || v.type == TPL_DICT || v.type == TPL_VIEW || v.type == TPL_RANGE ||
           v.type == TPL_ITERATOR;
}

static void split_characters(struct tpl_heap *h, const struct tpl_string *of, struct tpl_list *list)
{
    struct tpl_string *s = tpl_copy(h, of, sizeof(*s));

    s->markup = false;
    for (size_t at = 0; at < s->len;) {
        int size = utf8_decode(s->data + at, s->len - at, NULL);
        size_t next = at + (size > 0 ? (size_t)size : 1);
        tpl_push(h, list, tpl_part(h, s, at, next));
        at = next;
    }
}

struct tpl_list *tpl_items(struct tpl_heap *h, struct tpl_value v)
{
    if (v.type == TPL_LIST || v.type == TPL_TUPLE)
        return v.list;
    size_t n = 0;
    if (v.type != TPL_STRING)
        tpl_length(h, v, &n);
    struct tpl_list *list = tpl_list(h, n).list;
    switch (v.type) {
    case TPL_UNDEFINED:
        break;
    case TPL_STRING:
        split_characters(h, v.string, list);
        break;
    case TPL_DICT:
        for (size_t i = 0; i < v.dict->n; i++)
            tpl_push(h, list, v.dict->entries[i].key);
        break;
    case TPL_VIEW:
        for (size_t i = 0; i < v.view->dict->n; i++)
            tpl_push(h, list, tpl_entry_of_view(h, v.view, i));
        break;
    case TPL_RANGE:
        for (int64_t i = 0; i < v.range->n; i++)
            tpl_push(h, list, tpl_range_at(v.range, i));
        break;
    case TPL_ITERATOR:
        while (v.iterator->at < v.iterator->items->n)
            tpl_push(h, list, v.iterator->items->items[v.iterator->at++]);
        break;
    default:
        tpl_fail(h, "a %s can't be gone through", tpl_type_name(v));
    }
    return list;
}
