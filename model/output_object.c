#include "model/output_object.h"

#include "model/output_scan.h"

#include <string.h>

/* Bytes that the text holds at `at` of white space and then `word`; 0: `*reading` says why not. */
static size_t skip_word(const char *text, size_t len, size_t at, const char *word,
                        enum call_reading *reading)
{
    at += space_prefix(text + at, len - at);
    switch (marker_at(text + at, len - at, word)) {
    case MATCH_FULL:
        *reading = CALL_READ;
        return at + strlen(word);
    case MATCH_PARTIAL:
        *reading = CALL_NEEDS;
        return 0;
    case MATCH_NONE:
        break;
    }
    *reading = at < len ? CALL_IS_OTHER : CALL_NEEDS;
    return 0;
}

enum call_reading object_call_head(const char *text, size_t len, struct call_head *head)
{
    static const char *const before[] = {"{", "\"name\"", ":", "\""};
    static const char *const after[] = {",", "\"arguments\"", ":"};
    enum call_reading reading;
    size_t at = 0;

    *head = (struct call_head){0};
    for (int i = 0; i < 4; i++)
        if (!(at = skip_word(text, len, at, before[i], &reading)))
            return reading;
    head->name = text + at;
    while (at < len && text[at] != '"') /* no escape is part of a function's name */
        if (text[at] == '\\' || (unsigned char)text[at++] < 0x20)
            return CALL_IS_OTHER;
    if (at == len)
        return CALL_NEEDS;
    head->name_len = (size_t)(text + at - head->name);
    head->used = at + 1;
    size_t close = skip_word(text, len, head->used, "}", &reading);
    if (close) {
        head->used = close;
        head->no_arguments = true;
        return CALL_READ;
    }
    for (int i = 0; i < 3; i++)
        if (!(head->used = skip_word(text, len, head->used, after[i], &reading)))
            return reading;
    return CALL_READ;
}

/* One byte; whether the value ends with it. */
static bool take(struct json_extent *e, char c)
{
    if (e->in_string) {
        if (e->escaped)
            e->escaped = false;
        else if (c == '\\')
            e->escaped = true;
        else if (c == '"')
            e->in_string = false;
        return !e->in_string && e->depth == 0;
    }
    e->in_string = c == '"';
    e->depth += c == '{' || c == '[';
    e->depth -= c == '}' || c == ']';
    return !e->in_string && e->depth == 0;
}

size_t json_extent_read(struct json_extent *e, const char *text, size_t len, bool *ended)
{
    *ended = false;
    if (len > 0 && !e->begun) {
        e->begun = true;
        e->is_plain = !memchr("{[\"", text[0], 3);
    }
    for (size_t i = 0; i < len; i++) {
        *ended = e->is_plain ? memchr(",}] \t\r\n", text[i], 7) != NULL : take(e, text[i]);
        if (*ended)
            return e->is_plain ? i : i + 1;
    }
    return len;
}

enum call_reading object_call_tail(const char *text, size_t len, size_t *used)
{
    size_t at = space_prefix(text, len);

    *used = at;
    if (at == len)
        return CALL_NEEDS;
    if (text[at] != '}')
        return CALL_IS_OTHER;
    at++;
    *used = at + space_prefix(text + at, len - at);
    return *used < len ? CALL_READ : CALL_NEEDS;
}
