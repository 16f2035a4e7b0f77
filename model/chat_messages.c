#include "model/chat_messages.h"

#include <string.h>

/* Begins a member of an object. */
static void write_key(struct buffer *out, const char *key, bool *first)
{
    buffer_append_str(out, *first ? "" : ",");
    json_write_string(out, key, -1);
    buffer_append_str(out, ":");
    *first = false;
}

/* A call's arguments: text that is a JSON object becomes that object. */
static void write_arguments(struct buffer *out, const struct json *arguments)
{
    const char *text = json_is(arguments, JSON_STRING) ? json_string(arguments) : NULL;
    struct error ignored;

    if (!text || strspn(text, " \t\r\n") == strlen(text)) {
        if (text || !arguments || json_is(arguments, JSON_NULL))
            buffer_append_str(out, "{}");
        else
            json_write_python(out, arguments);
        return;
    }
    struct json *parsed = json_parse(text, strlen(text), &ignored);
    if (json_is(parsed, JSON_OBJECT))
        buffer_append_str(out, text);
    else
        json_write_string(out, text, -1);
    json_free(parsed);
}

static void write_function(struct buffer *out, const struct json *function)
{
    bool first = true;

    if (!json_is(function, JSON_OBJECT)) {
        json_write_python(out, function);
        return;
    }
    buffer_append_str(out, "{");
    for (const struct json *m = json_first(function); m; m = json_next(m)) {
        bool arguments = strcmp(json_key(m), "arguments") == 0;
        if (json_is(m, JSON_NULL) && !arguments)
            continue;
        write_key(out, json_key(m), &first);
        if (arguments)
            write_arguments(out, m);
        else
            json_write_python(out, m);
    }
    if (!json_get(function, "arguments")) {
        write_key(out, "arguments", &first);
        buffer_append_str(out, "{}");
    }
    buffer_append_str(out, "}");
}

static void write_call(struct buffer *out, const struct json *call)
{
    bool first = true;

    if (!json_is(call, JSON_OBJECT)) {
        json_write_python(out, call);
        return;
    }
    buffer_append_str(out, "{");
    for (const struct json *m = json_first(call); m; m = json_next(m)) {
        if (json_is(m, JSON_NULL))
            continue;
        write_key(out, json_key(m), &first);
        if (strcmp(json_key(m), "function") == 0)
            write_function(out, m);
        else
            json_write_python(out, m);
    }
    buffer_append_str(out, "}");
}

static void write_calls(struct buffer *out, const struct json *calls)
{
    buffer_append_str(out, "[");
    for (const struct json *c = json_first(calls); c; c = json_next(c)) {
        buffer_append_str(out, c == json_first(calls) ? "" : ",");
        write_call(out, c);
    }
    buffer_append_str(out, "]");
}

/* The last part of a content that is text, or NULL. */
static const struct json *last_text(const struct json *content)
{
    const struct json *last = NULL;

    for (const struct json *part = json_first(content); part; part = json_next(part))
        if (json_is(json_get(part, "text"), JSON_STRING))
            last = part;
    return last;
}

static void write_text(struct buffer *out, const char *text, size_t len, const char *tag)
{
    struct buffer whole;

    if (!*tag) {
        json_write_string(out, text, (long)len);
        return;
    }
    buffer_init(&whole, out->max);
    buffer_append(&whole, text, len);
    buffer_append_str(&whole, tag);
    json_write_string(out, whole.data ? whole.data : "", (long)whole.len);
    buffer_free(&whole);
}

/* Content in parts as it is, with the tag behind the last text. */
static void write_parts(struct buffer *out, const struct json *content, const char *tag)
{
    const struct json *tagged = *tag ? last_text(content) : NULL;

    buffer_append_str(out, "[");
    for (const struct json *part = json_first(content); part; part = json_next(part)) {
        buffer_append_str(out, part == json_first(content) ? "" : ",");
        if (part == tagged) {
            const char *text = json_string(json_get(part, "text"));
            buffer_append_str(out, "{\"type\":\"text\",\"text\":");
            write_text(out, text, strlen(text), tag);
            buffer_append_str(out, "}");
        } else {
            json_write_python(out, part);
        }
    }
    buffer_append_str(out, "]");
}

/* Content as one text: of parts, their texts on lines of their own. */
static void write_joined(struct buffer *out, const struct json *content, const char *tag)
{
    struct buffer text;

    buffer_init(&text, out->max);
    buffer_append_str(&text, "");
    if (json_is(content, JSON_STRING))
        buffer_append_str(&text, json_string(content));
    for (const struct json *p = json_is(content, JSON_ARRAY) ? json_first(content) : NULL; p;
         p = json_next(p)) {
        const struct json *part = json_get(p, "text");
        buffer_append_str(&text, p == json_first(content) ? "" : "\n");
        buffer_append_str(&text, json_is(part, JSON_STRING) ? json_string(part) : "");
    }
    write_text(out, text.data, text.len, tag);
    buffer_free(&text);
}

static void write_content(struct buffer *out, const struct json *content, bool parts,
                          const char *tag)
{
    if (parts && json_is(content, JSON_ARRAY))
        write_parts(out, content, tag);
    else
        write_joined(out, content, tag);
}

static bool is_empty(const struct json *list)
{
    return json_is(list, JSON_ARRAY) && !json_first(list);
}

static bool is_developer(const struct json *member)
{
    return strcmp(json_key(member), "role") == 0 && json_is(member, JSON_STRING) &&
           strcmp(json_string(member), "developer") == 0;
}

/* One message; members that are null say nothing, and content is never missing. */
static void write_message(struct buffer *out, const struct json *message, struct chat_shape shape,
                          const char *tag)
{
    const struct json *reasoning = json_get(message, "reasoning");
    bool first = true;

    buffer_append_str(out, "{");
    for (const struct json *m = json_first(message); m; m = json_next(m)) {
        const char *key = json_key(m);
        bool calls = strcmp(key, "tool_calls") == 0;
        if (strcmp(key, "content") != 0 && (json_is(m, JSON_NULL) || (calls && is_empty(m))))
            continue;
        write_key(out, key, &first);
        if (strcmp(key, "content") == 0)
            write_content(out, m, shape.parts, tag);
        else if (!shape.developers && is_developer(m))
            buffer_append_str(out, "\"system\"");
        else if (calls && json_is(m, JSON_ARRAY))
            write_calls(out, m);
        else
            json_write_python(out, m);
    }
    if (!json_get(message, "content")) {
        write_key(out, "content", &first);
        write_text(out, "", 0, tag);
    }
    if (json_is(reasoning, JSON_STRING) && !json_get(message, "reasoning_content")) {
        write_key(out, "reasoning_content", &first); /* the name that templates know */
        json_write_python(out, reasoning);
    }
    buffer_append_str(out, "}");
}

static void write_or_null(struct buffer *out, const struct json *value)
{
    if (value)
        json_write_python(out, value);
    else
        buffer_append_str(out, "null");
}

void chat_write_context(struct buffer *out, const struct chat_template_request *request,
                        struct chat_shape shape)
{
    buffer_append_str(out, "{\"messages\":[");
    for (const struct json *m = json_first(request->messages); m; m = json_next(m)) {
        bool last = !json_next(m) && request->continue_final_message;
        buffer_append_str(out, m == json_first(request->messages) ? "" : ",");
        write_message(out, m, shape, last ? CHAT_CONTINUE_TAG : "");
    }
    buffer_append_str(out, "],\"tools\":");
    write_or_null(out, request->tools);
    buffer_append_str(out, ",\"documents\":");
    write_or_null(out, request->documents);
    buffer_printf(out, ",\"add_generation_prompt\":%s",
                  request->add_generation_prompt ? "true" : "false");
    if (request->reasoning_effort) {
        buffer_append_str(out, ",\"reasoning_effort\":");
        json_write_string(out, request->reasoning_effort, -1);
    }
    for (const struct json *m = request->kwargs ? json_first(request->kwargs) : NULL; m;
         m = json_next(m)) {
        bool first = false;
        write_key(out, json_key(m), &first);
        json_write_python(out, m);
    }
    buffer_append_str(out, "}");
}
