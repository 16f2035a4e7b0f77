#include "model/keys.h"

#include "base/buffer.h"

#include <stdio.h>
#include <string.h>

enum { VALUE_TEXT_MAX = 60 }; /* longer values are described by their type */

/* What the file calls the key. */
static const char *name_of(const struct keys *keys, const char *key)
{
    for (const struct key_name *n = keys->names; n && n->key; n++)
        if (strcmp(key, n->key) == 0)
            return n->there;
    return key;
}

const struct json *keys_get(const struct keys *keys, const char *key)
{
    const char *name = name_of(keys, key), *dot = strchr(name, '.');
    const struct json *object = keys->object;
    char outer[32];

    if (dot) {
        snprintf(outer, sizeof(outer), "%.*s", (int)(dot - name), name);
        object = json_get(object, outer);
        name = dot + 1;
    }
    return json_get(object, name);
}

bool keys_present(const struct keys *keys, const char *key)
{
    const struct json *value = keys_get(keys, key);

    return value && json_type(value) != JSON_NULL;
}

int keys_refuse(const struct keys *keys, const char *key, const char *expected)
{
    const struct json *value = keys_get(keys, key);
    struct buffer text;

    if (!value)
        return error_set(keys->err, "%s: \"%s%s\" is missing; it must be %s", keys->file,
                         keys->within, name_of(keys, key), expected);
    buffer_init(&text, VALUE_TEXT_MAX);
    json_write_value(&text, value);
    if (text.overflowed) {
        buffer_clear(&text);
        buffer_printf(&text, "a long %s", json_type_name(value));
    }
    error_set(keys->err, "%s: \"%s%s\" must be %s, got %s", keys->file, keys->within,
              name_of(keys, key), expected, text.data);
    buffer_free(&text);
    return -1;
}

int keys_int(const struct keys *keys, const char *key, int32_t min, int32_t max, int32_t *out)
{
    int64_t value;

    if (!json_integer(keys_get(keys, key), &value) || value < min || value > max) {
        char expected[64];
        if (min == max)
            snprintf(expected, sizeof(expected), "%d", min);
        else
            snprintf(expected, sizeof(expected), "a whole number from %d to %d", min, max);
        return keys_refuse(keys, key, expected);
    }
    *out = (int32_t)value;
    return 0;
}

int keys_int_or(const struct keys *keys, const char *key, int32_t fallback, int32_t min,
                int32_t max, int32_t *out)
{
    *out = fallback;
    return keys_present(keys, key) ? keys_int(keys, key, min, max, out) : 0;
}

int keys_count_or(const struct keys *keys, const char *key, int32_t fallback, int32_t max,
                  int32_t *out)
{
    if (keys_present(keys, key))
        return keys_int(keys, key, 0, max, out);
    *out = keys_get(keys, key) ? 0 : fallback;
    return 0;
}

int keys_number(const struct keys *keys, const char *key, double min, double max, double *out)
{
    const struct json *value = keys_get(keys, key);

    if (!json_is(value, JSON_NUMBER) || !(json_number(value) >= min && json_number(value) <= max)) {
        char expected[64];
        snprintf(expected, sizeof(expected), "a number from %g to %g", min, max);
        return keys_refuse(keys, key, expected);
    }
    *out = json_number(value);
    return 0;
}

int keys_number_or(const struct keys *keys, const char *key, double fallback, double min,
                   double max, double *out)
{
    *out = fallback;
    return keys_present(keys, key) ? keys_number(keys, key, min, max, out) : 0;
}

int keys_bool_or(const struct keys *keys, const char *key, bool fallback, bool *out)
{
    const struct json *value = keys_get(keys, key);

    *out = value ? false : fallback;
    if (!keys_present(keys, key))
        return 0;
    if (!json_is(value, JSON_BOOL))
        return keys_refuse(keys, key, "true or false");
    *out = json_bool(value);
    return 0;
}

int keys_choice_or(const struct keys *keys, const char *key, const char *fallback,
                   const char *const *choices, const char **out)
{
    const struct json *value = keys_get(keys, key);
    char expected[128];
    int used = 0;

    *out = fallback;
    if (!keys_present(keys, key))
        return 0;
    for (const char *const *c = choices; *c; c++) {
        if (json_is(value, JSON_STRING) && strcmp(json_string(value), *c) == 0) {
            *out = *c;
            return 0;
        }
        if (used >= 0 && (size_t)used < sizeof(expected))
            used += snprintf(expected + used, sizeof(expected) - (size_t)used, "%s\"%s\"",
                             c == choices ? "" : " or ", *c);
    }
    return keys_refuse(keys, key, expected);
}
