/* Arrays and objects of a JSON Schema.
 *
 * The members of an object come in the schema's order, and each that is not required may be left
 * out. What may be written from member i on, and what follows once one before it was written:
 *
 *   rest(i) := member_i tail(i + 1) | rest(i + 1)      the latter unless member_i is required
 *   tail(i) := (',' rest(i))?                          without the ? when one from i on is required
 *   rest(n) := other (',' other)*                      "additionalProperties"
 *   object  := '{' rest(0)? '}'
 *
 * The comma stands before the alternatives, so that few of them are open at a time. Arrays with
 * prefixItems are alike, without choices. */
#include "model/schema_compiler.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 4096 };

/* ---- arrays ---- */

/* The node of items that come after those of "prefixItems"; NODE_NONE when there may be none. */
static uint32_t rest_items(struct schema_compiler *c, const struct schema_set *set)
{
    const struct json *items = schema_find(c, set, "items");

    if (!items)
        return json_form_value(&c->forms);
    if (json_is(items, JSON_ARRAY))
        return rules_fail(c->rules, "\"items\" must be a schema; for a list of them there is "
                                    "\"prefixItems\"");
    if (json_is(items, JSON_BOOL) && !json_bool(items))
        return NODE_NONE;
    size_t mark = schema_enter(c, "items");
    uint32_t node = schema_node(c, items);
    schema_leave(c, mark);
    return node;
}

/* The nodes of "prefixItems"; at most `max` of them count. */
static uint32_t *prefix_items(struct schema_compiler *c, const struct schema_set *set, uint32_t max,
                              uint32_t *count)
{
    const struct json *list = schema_find(c, set, "prefixItems");
    char name[32];

    *count = 0;
    if (list && (!json_is(list, JSON_ARRAY) || json_count(list) > SCHEMA_MAX_PROPERTIES)) {
        rules_fail(c->rules, "\"prefixItems\" must be an array of at most %d schemas",
                   (int)SCHEMA_MAX_PROPERTIES);
        list = NULL;
    }
    uint32_t *nodes = mem_zalloc(list ? json_count(list) + 1 : 1, sizeof(*nodes));
    for (const struct json *i = list ? json_first(list) : NULL; i && *count < max;
         i = json_next(i)) {
        snprintf(name, sizeof(name), "prefixItems/%u", *count);
        size_t mark = schema_enter(c, name);
        nodes[(*count)++] = schema_node(c, i);
        schema_leave(c, mark);
    }
    return nodes;
}

uint32_t schema_array_node(struct schema_compiler *c, const struct schema_set *set)
{
    struct rules *r = c->rules;
    uint32_t min = schema_count(c, set, "minItems", 0);
    uint32_t max = schema_count(c, set, "maxItems", REPEAT_MAX);
    uint32_t prefix_n, *prefix = prefix_items(c, set, max, &prefix_n);
    uint32_t rest = max > prefix_n ? rest_items(c, set) : NODE_NONE, tail = NODE_EMPTY;

    if (rest == NODE_NONE)
        max = prefix_n;
    if (min > max)
        rules_fail(r, "\"minItems\" is more than an array may have");
    if (max > 0 && rest != NODE_NONE) {
        uint32_t done = prefix_n ? prefix_n : 1; /* the first has no comma before it */
        tail = rules_repeat(r, json_form_next(&c->forms, rest), min > done ? min - done : 0,
                            max == REPEAT_MAX ? REPEAT_MAX : max - done);
    }
    for (uint32_t i = prefix_n; i-- > 1;) {
        tail = RULES_SEQUENCE(r, json_form_next(&c->forms, prefix[i]), tail);
        if (i >= min)
            tail = rules_optional(r, tail);
    }
    uint32_t items = NODE_EMPTY;
    if (max > 0)
        items = RULES_SEQUENCE(r, prefix_n ? prefix[0] : rest, tail);
    free(prefix);
    return json_form_brackets(&c->forms, "[", items, "]", min == 0);
}

/* ---- objects ---- */

struct property {
    const char *name;
    struct schema_set schemas; /* that all hold of it; none: anything does */
    const struct json *only;   /* the schema when it is the only one */
    const struct json *list;   /* the "properties" it came from last; NULL: only in "required" */
    bool required;
};

struct object {
    struct property *properties;
    uint32_t count;
    const struct json *other; /* schema of properties that are not listed; NULL: any value */
    bool closed;              /* there may be none */
};

static struct property *find_property(struct object *o, const char *name)
{
    for (uint32_t i = 0; i < o->count; i++)
        if (strcmp(o->properties[i].name, name) == 0)
            return &o->properties[i];
    return NULL;
}

/* The property of that name, which may be new; NULL after a failure. */
static struct property *add_property(struct schema_compiler *c, struct object *o, const char *name)
{
    struct property *p = find_property(o, name);

    if (p)
        return p;
    if (o->count == SCHEMA_MAX_PROPERTIES || strlen(name) > NAME_MAX_BYTES) {
        rules_fail(c->rules, "an object may have %d properties, with names of at most %d bytes",
                   (int)SCHEMA_MAX_PROPERTIES, (int)NAME_MAX_BYTES);
        return NULL;
    }
    p = &o->properties[o->count++];
    *p = (struct property){.name = name};
    return p;
}

static void add_properties(struct schema_compiler *c, struct object *o, const struct json *list)
{
    if (list && !json_is(list, JSON_OBJECT))
        rules_fail(c->rules, "\"properties\" must be an object");
    for (const struct json *m = json_is(list, JSON_OBJECT) ? json_first(list) : NULL;
         m && !c->rules->failed; m = json_next(m)) {
        struct property *p = add_property(c, o, json_key(m));
        if (!p)
            return;
        if (p->list && p->list != list) { /* from two parts: both hold */
            if (p->only)
                schema_set_add(c, &p->schemas, p->only);
            p->only = NULL;
            schema_set_add(c, &p->schemas, json_get(list, json_key(m)));
        } else {
            p->only = json_get(list, json_key(m)); /* of equal names the last one counts */
        }
        p->list = list;
    }
}

static void add_required(struct schema_compiler *c, struct object *o, const struct json *list)
{
    if (list && !json_is(list, JSON_ARRAY))
        rules_fail(c->rules, "\"required\" must be an array of strings");
    for (const struct json *name = json_is(list, JSON_ARRAY) ? json_first(list) : NULL;
         name && !c->rules->failed; name = json_next(name)) {
        if (!json_is(name, JSON_STRING)) {
            rules_fail(c->rules, "\"required\" must be an array of strings");
            return;
        }
        struct property *p = add_property(c, o, json_string(name));
        if (!p)
            return;
        p->required = true;
        if (!p->list && o->closed)
            rules_fail(c->rules, "\"%.100s\" is required, and \"additionalProperties\" forbids it",
                       p->name);
        else if (!p->list)
            p->only = o->other;
    }
}

/* "additionalProperties" of one part: it looks at the properties of that part alone, so those of
 * the others must be there too. */
static void add_additional(struct schema_compiler *c, struct object *o, const struct json *part)
{
    const struct json *other = json_get(part, "additionalProperties");

    if (!other || (json_is(other, JSON_BOOL) && json_bool(other)))
        return;
    for (uint32_t i = 0; i < o->count; i++)
        if (!json_get(json_get(part, "properties"), o->properties[i].name))
            rules_fail(c->rules, "\"additionalProperties\" stands beside schemas with other "
                                 "properties, which is not supported");
    if (o->other || (o->closed && !json_is(other, JSON_BOOL)))
        rules_fail(c->rules, "\"additionalProperties\" stands in more than one part");
    if (json_is(other, JSON_BOOL))
        o->closed = true;
    else
        o->other = other;
}

static uint32_t value_node(struct schema_compiler *c, const struct property *p)
{
    uint32_t value;

    size_t mark = schema_enter(c, "properties");
    schema_enter(c, p->name);
    if (p->schemas.count > 0)
        value = schema_set_node(c, &p->schemas);
    else
        value = p->only ? schema_node(c, p->only) : json_form_value(&c->forms);
    schema_leave(c, mark);
    return value;
}

static uint32_t property_node(struct schema_compiler *c, const struct property *p)
{
    struct buffer key;

    buffer_init(&key, 8 * NAME_MAX_BYTES);
    json_write_string(&key, p->name, -1);
    uint32_t name = rules_bytes(c->rules, key.data, key.len);
    buffer_free(&key);
    return json_form_member(&c->forms, name, value_node(c, p));
}

/* A member whose name is not in the schema. */
static uint32_t other_node(struct schema_compiler *c, const struct object *o)
{
    struct rules_string *names = mem_zalloc(o->count + 1U, sizeof(*names));

    for (uint32_t i = 0; i < o->count; i++)
        names[i] = (struct rules_string){o->properties[i].name, strlen(o->properties[i].name)};
    uint32_t name =
        o->count == 0 ? json_form_string(&c->forms)
                      : json_form_quoted(&c->forms, rules_other_strings(c->rules, names, o->count));
    free(names);
    size_t mark = schema_enter(c, "additionalProperties");
    uint32_t value = o->other ? schema_node(c, o->other) : json_form_value(&c->forms);
    schema_leave(c, mark);
    return json_form_member(&c->forms, name, value);
}

/* Puts the members together, as is drawn above. */
static uint32_t members_node(struct schema_compiler *c, const struct object *o)
{
    struct rules *r = c->rules;
    uint32_t rest = NODE_NONE, tail = NODE_EMPTY;
    bool any_required = false; /* from i on */

    if (!o->closed) {
        uint32_t other = other_node(c, o);
        tail = rules_repeat(r, json_form_next(&c->forms, other), 0, REPEAT_MAX);
        rest = RULES_SEQUENCE(r, other, tail);
    }
    for (uint32_t i = o->count; i-- > 0 && !r->failed;) {
        uint32_t member = RULES_SEQUENCE(r, property_node(c, &o->properties[i]), tail);
        bool skipped = !o->properties[i].required && rest != NODE_NONE;
        rest = skipped ? RULES_CHOICE(r, member, rest) : member;
        any_required |= o->properties[i].required;
        tail = json_form_next(&c->forms, rest);
        if (!any_required)
            tail = rules_optional(r, tail);
    }
    return json_form_brackets(&c->forms, "{", rest == NODE_NONE ? NODE_EMPTY : rest, "}",
                              !any_required);
}

/* ---- objects between tags ---- */

/* Whether the reader of such an object takes the member for text: see output_pairs.c. */
static bool is_text(const struct schema_compiler *c, const struct property *p)
{
    const struct json *type = json_get(json_get(json_get(c->root, "properties"), p->name), "type");

    return json_is(type, JSON_STRING) && strcmp(json_string(type), "string") == 0;
}

static uint32_t pair_node(struct schema_compiler *c, const struct pair_syntax *s, uint32_t key,
                          uint32_t begin, uint32_t value)
{
    return RULES_SEQUENCE(c->rules, s->key_begin, key, s->key_end, s->after_key, begin, value,
                          s->value_end, s->after_value);
}

/* The members in the schema's order; any others where it names none. */
static uint32_t pairs_node(struct schema_compiler *c, const struct object *o)
{
    const struct pair_syntax *s = c->pairs;
    uint32_t *nodes = mem_zalloc(o->count + 1UL, sizeof(*nodes)), n = 0;

    c->pairs = NULL;
    for (; n < o->count && !c->rules->failed; n++) {
        const struct property *p = &o->properties[n];
        c->text = s->text != NODE_NONE && is_text(c, p) ? s : NULL;
        nodes[n] = pair_node(c, s, rules_text(c->rules, p->name),
                             c->text ? s->text_begin : s->json_begin, value_node(c, p));
        if (!p->required)
            nodes[n] = rules_optional(c->rules, nodes[n]);
        c->text = NULL;
    }
    if (n == 0 && !o->closed) {
        uint32_t value = o->other ? schema_node(c, o->other) : json_form_value(&c->forms);
        uint32_t any = pair_node(c, s, s->key, s->json_begin, value);
        nodes[n++] = rules_repeat(c->rules, any, 0, REPEAT_MAX);
    }
    uint32_t node = c->rules->failed ? NODE_EMPTY : rules_sequence(c->rules, nodes, n);
    free(nodes);
    c->pairs = s;
    return node;
}

uint32_t schema_object_node(struct schema_compiler *c, const struct schema_set *set)
{
    struct object o = {.count = 0};
    size_t most = 1;

    for (size_t i = 0; i < set->count; i++) {
        const struct json *listed = json_get(set->parts[i].schema, "properties");
        const struct json *required = json_get(set->parts[i].schema, "required");
        most += (listed ? json_count(listed) : 0) + (required ? json_count(required) : 0);
    }
    most = most < SCHEMA_MAX_PROPERTIES ? most : SCHEMA_MAX_PROPERTIES;
    o.properties = mem_zalloc(most, sizeof(*o.properties));
    for (size_t i = 0; i < set->count; i++)
        add_properties(c, &o, json_get(set->parts[i].schema, "properties"));
    for (size_t i = 0; i < set->count; i++)
        add_additional(c, &o, set->parts[i].schema);
    for (size_t i = 0; i < set->count; i++)
        add_required(c, &o, json_get(set->parts[i].schema, "required"));
    uint32_t node = NODE_EMPTY;
    if (!c->rules->failed && c->pairs)
        node = pairs_node(c, &o);
    else if (!c->rules->failed)
        node = o.count == 0 && !o.closed && !o.other ? json_form_object(&c->forms)
                                                     : members_node(c, &o);
    free(o.properties);
    return node;
}
