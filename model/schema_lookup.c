#include "model/schema_lookup.h"

#include "base/buffer.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_REFERENCES = 16,
    MAX_DEPTH = 8,
    MAX_PAIRS = 1024, /* of values that are compared to see that they differ */
    TEXT_MAX = 1 << 20,
};

struct keyword {
    const char *name;
    enum schema_keyword_kind kind;
    unsigned type;
};

static const struct keyword keywords[] = {
    {"$ref", KEYWORD_ASSERTION, 0},
    {"allOf", KEYWORD_ASSERTION, 0},
    {"anyOf", KEYWORD_ASSERTION, 0},
    {"const", KEYWORD_ASSERTION, 0},
    {"enum", KEYWORD_ASSERTION, 0},
    {"oneOf", KEYWORD_ASSERTION, 0},
    {"type", KEYWORD_ASSERTION, 0},
    {"format", KEYWORD_ASSERTION, SCHEMA_STRING},
    {"maxLength", KEYWORD_ASSERTION, SCHEMA_STRING},
    {"minLength", KEYWORD_ASSERTION, SCHEMA_STRING},
    {"pattern", KEYWORD_ASSERTION, SCHEMA_STRING},
    {"exclusiveMaximum", KEYWORD_ASSERTION, SCHEMA_NUMBER},
    {"exclusiveMinimum", KEYWORD_ASSERTION, SCHEMA_NUMBER},
    {"maximum", KEYWORD_ASSERTION, SCHEMA_NUMBER},
    {"minimum", KEYWORD_ASSERTION, SCHEMA_NUMBER},
    {"multipleOf", KEYWORD_ASSERTION, SCHEMA_NUMBER},
    {"items", KEYWORD_ASSERTION, SCHEMA_ARRAY},
    {"maxItems", KEYWORD_ASSERTION, SCHEMA_ARRAY},
    {"minItems", KEYWORD_ASSERTION, SCHEMA_ARRAY},
    {"prefixItems", KEYWORD_ASSERTION, SCHEMA_ARRAY},
    {"additionalProperties", KEYWORD_ASSERTION, SCHEMA_OBJECT},
    {"properties", KEYWORD_ASSERTION, SCHEMA_OBJECT},
    {"required", KEYWORD_ASSERTION, SCHEMA_OBJECT},
    {"$dynamicRef", KEYWORD_UNSUPPORTED, 0},
    {"$recursiveRef", KEYWORD_UNSUPPORTED, 0},
    {"additionalItems", KEYWORD_UNSUPPORTED, 0},
    {"contains", KEYWORD_UNSUPPORTED, 0},
    {"dependencies", KEYWORD_UNSUPPORTED, 0},
    {"dependentRequired", KEYWORD_UNSUPPORTED, 0},
    {"dependentSchemas", KEYWORD_UNSUPPORTED, 0},
    {"disallow", KEYWORD_UNSUPPORTED, 0},
    {"else", KEYWORD_UNSUPPORTED, 0},
    {"extends", KEYWORD_UNSUPPORTED, 0},
    {"if", KEYWORD_UNSUPPORTED, 0},
    {"maxContains", KEYWORD_UNSUPPORTED, 0},
    {"maxProperties", KEYWORD_UNSUPPORTED, 0},
    {"minContains", KEYWORD_UNSUPPORTED, 0},
    {"minProperties", KEYWORD_UNSUPPORTED, 0},
    {"not", KEYWORD_UNSUPPORTED, 0},
    {"patternProperties", KEYWORD_UNSUPPORTED, 0},
    {"propertyNames", KEYWORD_UNSUPPORTED, 0},
    {"then", KEYWORD_UNSUPPORTED, 0},
    {"unevaluatedItems", KEYWORD_UNSUPPORTED, 0},
    {"unevaluatedProperties", KEYWORD_UNSUPPORTED, 0},
    {"uniqueItems", KEYWORD_UNSUPPORTED, 0},
};

static const struct keyword *find_keyword(const char *name)
{
    for (size_t i = 0; i < sizeof(keywords) / sizeof(keywords[0]); i++)
        if (strcmp(keywords[i].name, name) == 0)
            return &keywords[i];
    return NULL;
}

enum schema_keyword_kind schema_keyword_kind(const char *name)
{
    const struct keyword *k = find_keyword(name);

    return k ? k->kind : KEYWORD_IGNORED;
}

unsigned schema_keyword_type(const char *name)
{
    const struct keyword *k = find_keyword(name);

    return k ? k->type : 0;
}

unsigned schema_type(const char *name)
{
    static const char *const names[] = {"null",   "boolean", "string", "integer",
                                        "number", "array",   "object"};

    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(names[i], name) == 0)
            return 1U << i;
    return 0;
}

unsigned schema_type_of(const struct json *value)
{
    double number = json_is(value, JSON_NUMBER) ? json_number(value) : 0.5;

    if (number > -1e300 && number < 1e300 && number == __builtin_floor(number))
        return SCHEMA_INTEGER | SCHEMA_NUMBER;
    return schema_type(json_type_name(value));
}

bool schema_has_only(const struct json *schema, const char *keyword)
{
    bool there = false;

    if (!json_is(schema, JSON_OBJECT))
        return false;
    for (const struct json *m = json_first(schema); m; m = json_next(m)) {
        bool same = strcmp(json_key(m), keyword) == 0;
        there |= same;
        if (!same && schema_keyword_kind(json_key(m)) != KEYWORD_IGNORED)
            return false;
    }
    return there;
}

/* ---- references ---- */

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Takes one part of a JSON pointer from `*at`, up to the next slash: %xx, ~0 and ~1 are decoded.
 * -1 when it is too long. */
static int take_pointer_part(const char **at, char *out, size_t room)
{
    size_t n = 0;
    const char *s = *at;

    for (; *s && *s != '/' && n + 1 < room; n++) {
        char c = *s++;
        if (c == '%' && hex_value(s[0]) >= 0 && hex_value(s[1]) >= 0) {
            c = (char)(hex_value(s[0]) << 4 | hex_value(s[1]));
            s += 2;
        }
        if (c == '~' && (*s == '0' || *s == '1'))
            c = *s++ == '0' ? '~' : '/';
        out[n] = c;
    }
    out[n] = '\0';
    *at = s;
    return *s && *s != '/' ? -1 : 0;
}

const struct json *schema_resolve(const struct json *root, const char *ref)
{
    char part[256];

    if (*ref++ != '#')
        return NULL;
    while (root && *ref) {
        if (*ref++ != '/' || take_pointer_part(&ref, part, sizeof(part)))
            return NULL;
        if (json_is(root, JSON_ARRAY)) {
            char *end;
            unsigned long index = strtoul(part, &end, 10);
            root = *end || !*part ? NULL : json_first(root);
            for (; root && index > 0; index--)
                root = json_next(root);
        } else {
            root = json_get(root, part);
        }
    }
    return root;
}

/* ---- values ---- */

bool json_equal(const struct json *a, const struct json *b)
{
    struct buffer x, y;

    if (json_type(a) != json_type(b))
        return false;
    buffer_init(&x, TEXT_MAX);
    buffer_init(&y, TEXT_MAX);
    json_write_value(&x, a);
    json_write_value(&y, b);
    bool equal = x.len == y.len && !x.overflowed && memcmp(x.data, y.data, x.len) == 0;
    buffer_free(&x);
    buffer_free(&y);
    return equal;
}

/* The values that a schema lists: its "const" alone, or the members of its "enum". */
static const struct json *first_value(const struct json *schema)
{
    const struct json *constant = json_get(schema, "const"), *list = json_get(schema, "enum");

    return constant ? constant : json_is(list, JSON_ARRAY) ? json_first(list) : NULL;
}

static const struct json *next_value(const struct json *schema, const struct json *value)
{
    return json_get(schema, "const") ? NULL : json_next(value);
}

/* Whether both list values, and have none in common. */
static bool values_disjoint(const struct json *a, const struct json *b)
{
    if (!first_value(a) || !first_value(b))
        return false;
    if (json_count(json_get(a, "enum") ? json_get(a, "enum") : a) *
            json_count(json_get(b, "enum") ? json_get(b, "enum") : b) >
        MAX_PAIRS)
        return false;
    for (const struct json *x = first_value(a); x; x = next_value(a, x))
        for (const struct json *y = first_value(b); y; y = next_value(b, y))
            if (json_equal(x, y) || (json_type(x) == json_type(y) && json_type(x) >= JSON_ARRAY))
                return false; /* of arrays and objects it is not worked out */
    return true;
}

static const struct json *follow(const struct json *root, const struct json *schema)
{
    for (int i = 0; i < MAX_REFERENCES && schema_has_only(schema, "$ref"); i++) {
        const struct json *ref = json_get(schema, "$ref");
        schema = json_is(ref, JSON_STRING) ? schema_resolve(root, json_string(ref)) : NULL;
    }
    return schema;
}

/* The types that a schema admits, as far as "type" and the values it lists tell. */
static unsigned types_of(const struct json *schema)
{
    const struct json *type = json_get(schema, "type"), *value = first_value(schema);
    unsigned types = 0;

    if (json_is(type, JSON_STRING))
        types = schema_type(json_string(type));
    else if (json_is(type, JSON_ARRAY))
        for (const struct json *t = json_first(type); t; t = json_next(t))
            types |= json_is(t, JSON_STRING) ? schema_type(json_string(t)) : 0;
    else if (value)
        for (; value; value = next_value(schema, value))
            types |= schema_type_of(value);
    else
        types = SCHEMA_ALL;
    return types & SCHEMA_NUMBER ? types | SCHEMA_INTEGER : types;
}

static unsigned types_at_depth(const struct json *root, const struct json *schema, int depth)
{
    static const char *const unions[] = {"anyOf", "oneOf"};

    schema = follow(root, schema);
    if (!json_is(schema, JSON_OBJECT) || depth == MAX_DEPTH)
        return SCHEMA_ALL;
    unsigned types = types_of(schema);
    for (size_t i = 0; i < 2; i++) {
        const struct json *list = json_get(schema, unions[i]);
        unsigned any = json_is(list, JSON_ARRAY) ? 0 : SCHEMA_ALL;
        for (const struct json *s = any ? NULL : json_first(list); s; s = json_next(s))
            any |= types_at_depth(root, s, depth + 1);
        types &= any;
    }
    return types;
}

unsigned schema_types(const struct json *root, const struct json *schema)
{
    return types_at_depth(root, schema, 0);
}

static bool requires(const struct json *schema, const char *name)
{
    const struct json *required = json_get(schema, "required");

    if (json_is(required, JSON_ARRAY))
        for (const struct json *r = json_first(required); r; r = json_next(r))
            if (json_is(r, JSON_STRING) && strcmp(json_string(r), name) == 0)
                return true;
    return false;
}

bool schema_disjoint(const struct json *root, const struct json *a, const struct json *b)
{
    a = follow(root, a);
    b = follow(root, b);
    if (!json_is(a, JSON_OBJECT) || !json_is(b, JSON_OBJECT))
        return false;
    if (!(types_of(a) & types_of(b)) || values_disjoint(a, b))
        return true;
    const struct json *properties = json_get(a, "properties");
    bool objects = types_of(a) == SCHEMA_OBJECT && types_of(b) == SCHEMA_OBJECT;
    if (!objects || !json_is(properties, JSON_OBJECT))
        return false;
    for (const struct json *p = json_first(properties); p; p = json_next(p)) {
        const struct json *other = json_get(json_get(b, "properties"), json_key(p));
        if (other && requires(a, json_key(p)) && requires(b, json_key(p)) &&
            values_disjoint(follow(root, p), follow(root, other)))
            return true;
    }
    return false;
}
