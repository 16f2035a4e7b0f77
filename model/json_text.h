/* A string member of a JSON object. */
#pragma once

#include "base/json.h"

/* NULL when the member is missing or no string. */
static inline const char *json_text(const struct json *object, const char *name)
{
    const struct json *value = json_get(object, name);

    return json_is(value, JSON_STRING) ? json_string(value) : NULL;
}
