/* The values of a chat template: Python's, as far as templates use them.
 *
 * Values are small and passed by value; what they refer to lies in the heap and does not change,
 * but for namespaces, the state of loops and iterators, and lists and dicts that the template made
 * itself (where it is allowed to). Strings are UTF-8 and may hold NUL. */
#pragma once

#include "base/json.h"
#include "model/template_heap.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tpl_type {
    TPL_ABSENT, /* no value: an argument that was not given */
    TPL_UNDEFINED,
    TPL_NONE,
    TPL_BOOL,
    TPL_INT,
    TPL_BIG, /* an integer of JSON past 64 bits: `string` has its digits */
    TPL_FLOAT,
    TPL_STRING,
    TPL_LIST,
    TPL_TUPLE,
    TPL_DICT,
    TPL_VIEW, /* of a dict's keys, values or items */
    TPL_RANGE,
    TPL_ITERATOR, /* gone through once; what most filters over lists give */
    TPL_NAMESPACE,
    TPL_MACRO,
    TPL_FUNCTION, /* of the environment: range, namespace, ... */
    TPL_METHOD,   /* of a value */
    TPL_LOOP,
    TPL_CYCLER,
    TPL_JOINER,
};

/* Bytes that came from the request are "foreign": they never become a marker of the chat format.
 * Every string knows which of its bytes are, through all operations. */
struct tpl_string {
    const char *data;
    size_t len;
    const uint8_t *mask; /* for each byte whether it is foreign; NULL: all are as `foreign` */
    bool foreign;
    bool markup; /* "safe": what is added to it is escaped */
};

struct tpl_value {
    enum tpl_type type;
    union {
        bool truth;
        int64_t integer;
        double number;
        const struct tpl_string *string;
        struct tpl_list *list; /* of a tuple too */
        struct tpl_dict *dict; /* of a namespace too */
        const struct tpl_view *view;
        const struct tpl_range *range;
        struct tpl_iterator *iterator;
        const struct tpl_macro *macro;
        const struct tpl_function *function;
        const struct tpl_method *method;
        struct tpl_loop *loop;
        struct tpl_cycler *cycler;
        const struct tpl_missing *missing;
    };
};

struct tpl_list {
    struct tpl_value *items;
    size_t n, cap;
    bool own; /* the template made it */
};

struct tpl_entry {
    struct tpl_value key, value;
};

struct tpl_dict {
    struct tpl_entry *entries; /* in the order of insertion */
    size_t n, cap;
    uint32_t *slots; /* an open hash table of indices + 1; NULL while the dict is small */
    size_t n_slots;
    bool own;
};

enum tpl_view_kind { TPL_KEYS, TPL_VALUES, TPL_ITEMS };

struct tpl_view {
    struct tpl_dict *dict;
    enum tpl_view_kind kind;
};

struct tpl_range {
    int64_t start, stop, step, n;
};

struct tpl_iterator {
    struct tpl_list *items;
    size_t at;
};

struct tpl_cycler {
    struct tpl_list *items;
    size_t at;
};

/* Why a value is undefined: `name` is, or `owner` has no attribute `name`, or `hint`. */
struct tpl_missing {
    struct tpl_value name, owner; /* owner: TPL_ABSENT for a variable */
    const char *hint;             /* or NULL */
};

static const struct tpl_value TPL_NO_VALUE = {.type = TPL_ABSENT};
static const struct tpl_value TPL_NONE_VALUE = {.type = TPL_NONE};

static inline struct tpl_value tpl_bool(bool truth)
{
    return (struct tpl_value){.type = TPL_BOOL, .truth = truth};
}

static inline struct tpl_value tpl_int(int64_t integer)
{
    return (struct tpl_value){.type = TPL_INT, .integer = integer};
}

static inline struct tpl_value tpl_float(double number)
{
    return (struct tpl_value){.type = TPL_FLOAT, .number = number};
}

static inline bool tpl_given(struct tpl_value v)
{
    return v.type != TPL_ABSENT;
}

/* ---- making values ---- */

/* A string over memory that stays. */
struct tpl_value tpl_string(struct tpl_heap *h, const char *data, size_t len, bool foreign);
struct tpl_value tpl_word(struct tpl_heap *h, const char *text); /* a constant of ours */
/* Bytes `from` up to `to` of a string; nothing is copied. */
struct tpl_value tpl_part(struct tpl_heap *h, const struct tpl_string *s, size_t from, size_t to);

struct tpl_value tpl_list(struct tpl_heap *h, size_t cap); /* empty, the template's own */
struct tpl_value tpl_tuple(struct tpl_heap *h, size_t n);  /* filled by the caller */
struct tpl_value tpl_pair(struct tpl_heap *h, struct tpl_value a, struct tpl_value b);
void tpl_push(struct tpl_heap *h, struct tpl_list *list, struct tpl_value item);
struct tpl_value tpl_iterator(struct tpl_heap *h, struct tpl_value list);

struct tpl_value tpl_dict(struct tpl_heap *h);
/* Fails where the key can't be one. */
void tpl_dict_set(struct tpl_heap *h, struct tpl_dict *dict, struct tpl_value key,
                  struct tpl_value value);
/* NULL when there is none. */
struct tpl_value *tpl_dict_find(struct tpl_heap *h, const struct tpl_dict *dict,
                                struct tpl_value key);
struct tpl_value *tpl_dict_word(struct tpl_heap *h, const struct tpl_dict *dict, const char *key);

struct tpl_value tpl_undefined(struct tpl_heap *h, struct tpl_value owner, struct tpl_value name);
struct tpl_value tpl_undefined_hint(struct tpl_heap *h, const char *hint);
/* Fails as the use of an undefined value does. */
_Noreturn void tpl_fail_undefined(struct tpl_heap *h, struct tpl_value v);

/* The value of a JSON document, which must stay. Its strings are as `foreign` says, but for the
 * role of a message when it is a plain word, and `marks` (NULL-terminated) in the content of a
 * message with the role "assistant". */
struct tpl_value tpl_from_json(struct tpl_heap *h, const struct json *json, bool foreign,
                               const char *const *marks);

/* ---- reading values ---- */

/* As Python calls it: "str", "int", "list", ... */
const char *tpl_type_name(struct tpl_value v);
bool tpl_truth(struct tpl_value v);
bool tpl_is_number(struct tpl_value v); /* bool, int or float */
/* A bool or an int as integer. */
bool tpl_as_integer(struct tpl_value v, int64_t *integer);
double tpl_as_double(struct tpl_value v); /* only of numbers */
bool tpl_is_word(struct tpl_value v, const char *text);

bool tpl_equal(struct tpl_heap *h, struct tpl_value a, struct tpl_value b);
/* Less than 0, 0 or more; 2 when not ordered (NaN). Fails where Python has no order; `op` is for
 * the message. */
int tpl_compare(struct tpl_heap *h, struct tpl_value a, struct tpl_value b, const char *op);
bool tpl_contains(struct tpl_heap *h, struct tpl_value container, struct tpl_value item);

/* Of strings in characters. False when the value has none. */
bool tpl_length(struct tpl_heap *h, struct tpl_value v, size_t *len);
bool tpl_is_iterable(struct tpl_value v);
/* What a loop over the value goes through, as a list that must not be changed (of a list, itself).
 * Fails when it is not iterable; empties an iterator. */
struct tpl_list *tpl_items(struct tpl_heap *h, struct tpl_value v);
struct tpl_value tpl_range_at(const struct tpl_range *range, int64_t i);
struct tpl_value tpl_entry_of_view(struct tpl_heap *h, const struct tpl_view *view, size_t i);

/* ---- characters of strings ---- */

size_t tpl_chars(struct tpl_heap *h, const struct tpl_string *s);
/* The byte where character `index` begins, or `len`. */
size_t tpl_char_at(struct tpl_heap *h, const struct tpl_string *s, size_t index);

/* ---- building strings ---- */

struct tpl_builder {
    struct tpl_heap *heap;
    char *data;
    uint8_t *mask; /* NULL while all bytes are alike */
    size_t len, cap;
    size_t max; /* 0: only the heap's bound */
    bool foreign, markup;
};

void tpl_builder_init(struct tpl_builder *b, struct tpl_heap *h);
void tpl_add(struct tpl_builder *b, const char *data, size_t len, bool foreign);
void tpl_add_word(struct tpl_builder *b, const char *text);
void tpl_add_string(struct tpl_builder *b, const struct tpl_string *s);
void tpl_add_part(struct tpl_builder *b, const struct tpl_string *s, size_t from, size_t to);
struct tpl_value tpl_built(struct tpl_builder *b);
