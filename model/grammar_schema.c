#include "model/grammar_schema.h"

#include "base/memory.h"
#include "model/schema_compiler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VALUES_MAX_BYTES = 1 << 20 };

/* ---- where we are ---- */

size_t schema_enter(struct schema_compiler *c, const char *name)
{
    size_t mark = c->path_len, room = sizeof(c->path) - c->path_len;
    int len = snprintf(c->path + c->path_len, room, "/%s", name);

    c->path_len += len < 0 ? 0 : (size_t)len < room ? (size_t)len : room - 1;
    return mark;
}

void schema_leave(struct schema_compiler *c, size_t mark)
{
    if (c->rules->failed && !c->located) {
        error_prefix(&c->rules->error, "at #%s", c->path);
        c->located = true;
    }
    c->path_len = mark;
    c->path[mark] = '\0';
}

/* ---- references ---- */

static const struct json *resolve(struct schema_compiler *c, const struct json *ref)
{
    const struct json *target = NULL;

    if (!json_is(ref, JSON_STRING))
        rules_fail(c->rules, "\"$ref\" must be a string");
    else if (!(target = schema_resolve(c->root, json_string(ref))))
        rules_fail(c->rules,
                   "the $ref \"%.100s\" leads nowhere: \"#\" and \"#/$defs/NAME\" are "
                   "supported, within the schema",
                   json_string(ref));
    return target;
}

/* A reference to the rule of the schema that `ref` names. New ones are compiled later, by
 * compile_targets. */
static uint32_t reference_node(struct schema_compiler *c, const struct json *ref)
{
    const struct json *target = resolve(c, ref);

    if (!target)
        return NODE_EMPTY;
    for (uint32_t rule = 0; rule < c->rules->roots_n; rule++)
        if (c->targets[rule] == target)
            return rules_reference(c->rules, rule);
    uint32_t rule = rules_declare(c->rules, json_string(ref));
    if (!c->rules->failed)
        c->targets[rule] = target;
    return rules_reference(c->rules, rule);
}

/* Compiles the targets of references, and those that they refer to. */
static void compile_targets(struct schema_compiler *c)
{
    for (uint32_t rule = 0; rule < c->rules->roots_n && !c->rules->failed; rule++) {
        if (!c->targets[rule])
            continue;
        const char *name = c->rules->names[rule];
        size_t mark = schema_enter(c, name[0] == '#' && name[1] ? name + 2 : "");
        rules_define(c->rules, rule, schema_node(c, c->targets[rule]));
        schema_leave(c, mark);
    }
}

/* ---- sets of schemas that hold together ---- */

bool schema_set_add(struct schema_compiler *c, struct schema_set *set, const struct json *schema)
{
    if (json_is(schema, JSON_BOOL) && json_bool(schema))
        return true;
    if (!json_is(schema, JSON_OBJECT)) {
        rules_fail(c->rules, json_is(schema, JSON_BOOL) ? "nothing is valid under the schema false"
                                                        : "a schema must be an object, or true");
        return false;
    }
    if (set->count == SCHEMA_MAX_PARTS) {
        rules_fail(c->rules, "more than %d schemas have to hold together", (int)SCHEMA_MAX_PARTS);
        return false;
    }
    set->parts[set->count++] = (struct schema_part){.schema = schema};
    const struct json *ref = json_get(schema, "$ref"), *all = json_get(schema, "allOf");
    if (ref && !schema_set_add(c, set, resolve(c, ref)))
        return false;
    if (all && !json_is(all, JSON_ARRAY)) {
        rules_fail(c->rules, "\"allOf\" must be an array of schemas");
        return false;
    }
    for (const struct json *s = all ? json_first(all) : NULL; s; s = json_next(s))
        if (!schema_set_add(c, set, s))
            return false;
    return true;
}

const struct json *schema_find(struct schema_compiler *c, const struct schema_set *set,
                               const char *keyword)
{
    const struct json *found = NULL;

    for (size_t i = 0; i < set->count; i++) {
        const struct json *value = json_get(set->parts[i].schema, keyword);
        if (value && found && !json_equal(value, found))
            rules_fail(c->rules,
                       "\"%s\" stands in two schemas that have to hold together, which "
                       "is not supported",
                       keyword);
        if (value)
            found = value;
    }
    return found;
}

uint32_t schema_count(struct schema_compiler *c, const struct schema_set *set, const char *keyword,
                      uint32_t fallback)
{
    const struct json *value = schema_find(c, set, keyword);

    if (!value)
        return fallback;
    double count = json_is(value, JSON_NUMBER) ? json_number(value) : -1;
    if (!(count >= 0) || (count < 1e9 && count != (double)(int64_t)count)) {
        rules_fail(c->rules, "\"%s\" must be a whole number that is not negative", keyword);
        return 0;
    }
    if (count < COUNT_LIMIT)
        return (uint32_t)count;
    if (keyword[1] == 'i') /* min... */
        rules_fail(c->rules, "\"%s\" is too large", keyword);
    return REPEAT_MAX;
}

/* Refuses what would matter and is not supported. */
static void check_keywords(struct schema_compiler *c, const struct json *schema)
{
    for (const struct json *m = json_first(schema); m; m = json_next(m)) {
        const char *name = json_key(m);
        bool off = json_is(m, JSON_BOOL) && !json_bool(m) && strcmp(name, "uniqueItems") == 0;
        if (schema_keyword_kind(name) == KEYWORD_UNSUPPORTED && !off) {
            rules_fail(c->rules, "the keyword \"%s\" is not supported", name);
            return;
        }
    }
}

/* ---- listed values ---- */

static bool is_listed(const struct json *list, const struct json *value)
{
    for (const struct json *v = json_first(list); v; v = json_next(v))
        if (json_equal(v, value))
            return true;
    return false;
}

/* The strings of some values, as JSON; all in `text`. */
struct value_list {
    struct buffer text;
    size_t *starts; /* in `text`, by value */
    size_t count;
};

/* In text, all values are strings. */
static void add_value(struct schema_compiler *c, struct value_list *list, const struct json *value)
{
    if (list->count == SCHEMA_MAX_VALUES) {
        rules_fail(c->rules, "\"enum\" has more than %d values", (int)SCHEMA_MAX_VALUES);
        return;
    }
    list->starts[list->count++] = list->text.len;
    if (c->text)
        buffer_append_str(&list->text, json_string(value));
    else
        json_write_value(&list->text, value);
    if (list->text.overflowed)
        rules_fail(c->rules, "the values of \"enum\" are longer than %d bytes", VALUES_MAX_BYTES);
}

static uint32_t value_list_node(struct schema_compiler *c, struct value_list *list)
{
    struct rules_string *strings = mem_zalloc(list->count + 1, sizeof(*strings));
    uint32_t node = NODE_EMPTY;

    list->starts[list->count] = list->text.len;
    for (size_t i = 0; i < list->count; i++)
        strings[i] = (struct rules_string){list->text.data + list->starts[i],
                                           list->starts[i + 1] - list->starts[i]};
    if (list->count == 0)
        rules_fail(c->rules, "no value of \"enum\" or \"const\" is valid");
    else if (!c->rules->failed)
        node = rules_strings(c->rules, strings, list->count);
    free(strings);
    return node;
}

/* The values of "enum" or "const" that are of these types, and in both where there are both. */
static uint32_t enum_node(struct schema_compiler *c, const struct schema_set *set, unsigned types)
{
    const struct json *list = schema_find(c, set, "enum"), *constant = schema_find(c, set, "const");
    struct value_list values = {.starts = mem_zalloc(SCHEMA_MAX_VALUES + 1, sizeof(size_t))};

    for (size_t i = 0; i < set->count; i++)
        for (const struct json *m = json_first(set->parts[i].schema); m; m = json_next(m))
            if (schema_keyword_type(json_key(m)))
                rules_fail(c->rules, "\"%s\" can't be combined with \"enum\" or \"const\"",
                           json_key(m));
    buffer_init(&values.text, VALUES_MAX_BYTES);
    if (list && !json_is(list, JSON_ARRAY))
        rules_fail(c->rules, "\"enum\" must be an array");
    else if (constant && (!list || is_listed(list, constant)) && (schema_type_of(constant) & types))
        add_value(c, &values, constant);
    else if (!constant && list)
        for (const struct json *v = json_first(list); v && !c->rules->failed; v = json_next(v))
            if (schema_type_of(v) & types)
                add_value(c, &values, v);
    uint32_t node = value_list_node(c, &values);
    buffer_free(&values.text);
    free(values.starts);
    return node;
}

/* ---- types ---- */

/* The bits of a "type" keyword. */
static unsigned types_named(struct schema_compiler *c, const struct json *type)
{
    const struct json *one = json_is(type, JSON_ARRAY) ? json_first(type) : type;
    unsigned types = 0;

    for (; one; one = one == type ? NULL : json_next(one)) {
        unsigned bit = json_is(one, JSON_STRING) ? schema_type(json_string(one)) : 0;
        if (!bit)
            rules_fail(c->rules, "\"type\" must be one or a list of \"null\", \"boolean\", "
                                 "\"string\", \"integer\", \"number\", \"array\", \"object\"");
        types |= bit;
    }
    return types & SCHEMA_NUMBER ? types | SCHEMA_INTEGER : types;
}

/* The types that are left by all parts of the set; where none names any, those that its keywords
 * are about. */
static unsigned types_left(struct schema_compiler *c, const struct schema_set *set)
{
    unsigned types = SCHEMA_ALL, implied = 0;

    for (size_t i = 0; i < set->count; i++) {
        const struct json *type = json_get(set->parts[i].schema, "type");
        if (type)
            types &= types_named(c, type);
        for (const struct json *m = json_first(set->parts[i].schema); m; m = json_next(m))
            implied |= schema_keyword_type(json_key(m));
    }
    if (types == SCHEMA_ALL && implied)
        types = implied & SCHEMA_NUMBER ? implied | SCHEMA_INTEGER : implied;
    if (!types)
        rules_fail(c->rules, "no type is left");
    return types;
}

static uint32_t types_node(struct schema_compiler *c, const struct schema_set *set, unsigned types)
{
    struct rules *r = c->rules;
    uint32_t nodes[8], n = 0;

    if (types & SCHEMA_OBJECT)
        nodes[n++] = schema_object_node(c, set);
    if (types & SCHEMA_ARRAY)
        nodes[n++] = schema_array_node(c, set);
    if (types & SCHEMA_STRING)
        nodes[n++] = schema_string_node(c, set);
    if (types & (SCHEMA_NUMBER | SCHEMA_INTEGER))
        nodes[n++] = schema_number_node(c, set, !(types & SCHEMA_NUMBER));
    if (types & SCHEMA_BOOLEAN)
        nodes[n++] = RULES_CHOICE(r, rules_text(r, "true"), rules_text(r, "false"));
    if (types & SCHEMA_NULL)
        nodes[n++] = rules_text(r, "null");
    return rules_choice(r, nodes, n);
}

/* ---- choices ---- */

static bool all_disjoint(const struct schema_compiler *c, const struct json *list)
{
    for (const struct json *a = json_first(list); a; a = json_next(a))
        for (const struct json *b = json_next(a); b; b = json_next(b))
            if (!schema_disjoint(c->root, a, b))
                return false;
    return true;
}

/* The alternatives of "anyOf" or "oneOf", each together with the rest of the set; without a rest
 * (`set` NULL), each alone. */
static uint32_t choice_node(struct schema_compiler *c, const char *keyword, const struct json *list,
                            const struct schema_set *set)
{
    char name[32];
    uint32_t count = 0;

    if (!json_is(list, JSON_ARRAY) || !json_first(list) || json_count(list) > SCHEMA_MAX_PROPERTIES)
        return rules_fail(c->rules, "\"%s\" must be an array of 1 to %d schemas", keyword,
                          (int)SCHEMA_MAX_PROPERTIES);
    if (keyword[0] == 'o' && (json_count(list) > SCHEMA_MAX_ONE_OF || !all_disjoint(c, list)))
        return rules_fail(c->rules, "\"oneOf\" is supported where its schemas are seen to exclude "
                                    "each other, by their types or by different values of a "
                                    "required property; \"anyOf\" may do");
    uint32_t *nodes = mem_zalloc(json_count(list), sizeof(*nodes));
    for (const struct json *s = json_first(list); s && !c->rules->failed; s = json_next(s)) {
        snprintf(name, sizeof(name), "%s/%u", keyword, count);
        size_t mark = schema_enter(c, name);
        if (set) {
            struct schema_set both = *set;
            if (schema_set_add(c, &both, s))
                nodes[count++] = schema_set_node(c, &both);
        } else {
            nodes[count++] = schema_node(c, s);
        }
        schema_leave(c, mark);
    }
    uint32_t node = c->rules->failed ? NODE_EMPTY : rules_choice(c->rules, nodes, count);
    free(nodes);
    return node;
}

static uint32_t set_node(struct schema_compiler *c, const struct schema_set *set)
{
    struct schema_set rest = *set;

    for (size_t i = 0; i < set->count && !c->rules->failed; i++) {
        struct schema_part *part = &rest.parts[i];
        const struct json *any = json_get(part->schema, "anyOf");
        const struct json *one = json_get(part->schema, "oneOf");
        check_keywords(c, part->schema);
        if (any && !part->any_of_done) {
            part->any_of_done = true;
            return choice_node(c, "anyOf", any, &rest);
        }
        if (one && !part->one_of_done) {
            part->one_of_done = true;
            return choice_node(c, "oneOf", one, &rest);
        }
    }
    unsigned types = types_left(c, set);
    bool listed = schema_find(c, set, "enum") || schema_find(c, set, "const");
    if (c->pairs && (listed || !(types & SCHEMA_OBJECT)))
        rules_fail(c->rules, "arguments must be an object, and not a listed one");
    if (c->rules->failed)
        return NODE_EMPTY;
    if (c->pairs)
        return schema_object_node(c, set);
    if (listed)
        return enum_node(c, set, types);
    bool anything = types == SCHEMA_ALL;
    for (size_t i = 0; i < set->count; i++)
        for (const struct json *m = json_first(set->parts[i].schema); m; m = json_next(m))
            anything &= !schema_keyword_type(json_key(m));
    return anything ? json_form_value(&c->forms) : types_node(c, set, types);
}

uint32_t schema_set_node(struct schema_compiler *c, const struct schema_set *set)
{
    uint32_t node = NODE_EMPTY;

    if (++c->depth > SCHEMA_MAX_DEPTH)
        rules_fail(c->rules, "schemas are nested more than %d deep", (int)SCHEMA_MAX_DEPTH);
    if (!c->rules->failed)
        node = set_node(c, set);
    c->depth--;
    return node;
}

uint32_t schema_node(struct schema_compiler *c, const struct json *schema)
{
    struct schema_set set = {.count = 0};
    uint32_t node = NODE_EMPTY;

    if (++c->depth > SCHEMA_MAX_DEPTH) {
        rules_fail(c->rules, "schemas are nested more than %d deep", (int)SCHEMA_MAX_DEPTH);
    } else if (c->rules->failed) {
        node = NODE_EMPTY;
    } else if (schema_has_only(schema, "$ref")) {
        node = reference_node(c, json_get(schema, "$ref"));
    } else if (schema_has_only(schema, "anyOf")) {
        node = choice_node(c, "anyOf", json_get(schema, "anyOf"), NULL);
    } else if (schema_has_only(schema, "oneOf")) {
        node = choice_node(c, "oneOf", json_get(schema, "oneOf"), NULL);
    } else if (schema_has_only(schema, "allOf") && json_is(json_get(schema, "allOf"), JSON_ARRAY) &&
               json_count(json_get(schema, "allOf")) == 1) {
        node = schema_node(c, json_first(json_get(schema, "allOf")));
    } else if (schema_set_add(c, &set, schema)) {
        node = schema_set_node(c, &set);
    }
    c->depth--;
    return node;
}

uint32_t schema_compile(struct rules *rules, const struct json *schema)
{
    struct schema_compiler *c = mem_zalloc(1, sizeof(*c));

    c->rules = rules;
    c->root = schema;
    json_forms_init(&c->forms, rules);
    uint32_t node = schema_node(c, schema);
    compile_targets(c);
    schema_leave(c, 0);
    free(c);
    return node;
}

uint32_t schema_compile_pairs(struct rules *rules, const struct json *schema,
                              const struct pair_syntax *syntax)
{
    struct schema_compiler *c = mem_zalloc(1, sizeof(*c));
    struct schema_set set = {.count = 0};
    uint32_t node = NODE_EMPTY;

    c->rules = rules;
    c->root = schema;
    c->pairs = syntax;
    json_forms_init(&c->forms, rules);
    c->forms.in_tags = true;
    if (!schema || schema_set_add(c, &set, schema))
        node = schema_set_node(c, &set);
    c->pairs = NULL;
    compile_targets(c);
    schema_leave(c, 0);
    free(c);
    return node;
}
