#include "model/chat.h"

#include "base/buffer.h"
#include "model/markers.h"

#include <string.h>

#define SYSTEM_JOIN "\n\n"

enum { TEXT_MAX = 256 * 1024 * 1024 }; /* bytes between two markers */

/* The prompt under construction. Texts gather until a marker ends them, because two texts side by
 * side are split into tokens as one. */
struct prompt {
    const struct tokenizer *tok;
    struct token_list *out;
    struct error *err;
    struct buffer text;
};

static void add_text(struct prompt *prompt, const char *text)
{
    buffer_append_str(&prompt->text, text);
}

static int end_text(struct prompt *prompt)
{
    struct buffer *text = &prompt->text;
    int rc = 0;

    if (text->overflowed)
        return error_set(prompt->err, "a message has more than %d bytes", TEXT_MAX);
    if (text->len > 0)
        rc = tokenizer_encode(prompt->tok, text->data, text->len, ENCODE_TEXT_ONLY, prompt->out,
                              prompt->err);
    buffer_clear(text);
    return rc;
}

static int add_marker(struct prompt *prompt, const char *marker)
{
    int32_t id = tokenizer_id(prompt->tok, marker);

    if (end_text(prompt))
        return -1;
    if (id < 0)
        return error_set(prompt->err, "the model's vocabulary has no token %s", marker);
    if (token_list_push(prompt->out, id))
        return error_set(prompt->err, "the prompt has more than %zu tokens", prompt->out->max);
    return 0;
}

bool chat_supported(const struct tokenizer *tok)
{
    return tokenizer_id(tok, MARKER_BOS) >= 0 && tokenizer_id(tok, MARKER_EOS) >= 0 &&
           tokenizer_id(tok, MARKER_USER) >= 0 && tokenizer_id(tok, MARKER_ASSISTANT) >= 0;
}

static bool has_role(const struct chat_message *message, const char *role)
{
    return strcmp(message->role, role) == 0;
}

static bool is_system(const struct chat_message *message)
{
    return has_role(message, "system") || has_role(message, "developer");
}

static const char *content_of(const struct chat_message *message)
{
    return message->content ? message->content : "";
}

/* All system texts are one text in front, wherever they stand. */
static void add_system(struct prompt *prompt, const struct chat_message *messages, size_t count)
{
    size_t systems = 0;

    for (size_t i = 0; i < count; i++) {
        if (!is_system(&messages[i]))
            continue;
        if (systems++ > 0)
            add_text(prompt, SYSTEM_JOIN);
        add_text(prompt, content_of(&messages[i]));
    }
}

/* ---- tools -------------------------------------------------------------------------------- */

static int add_tool(struct prompt *prompt, const struct json *tool)
{
    const struct json *function = json_get(tool, "function");
    const struct json *name = json_get(function, "name");
    const struct json *description = json_get(function, "description");
    const struct json *parameters = json_get(function, "parameters");

    if (!json_is(name, JSON_STRING))
        return error_set(prompt->err, "a tool needs a \"function\" with a \"name\"");
    if (description && !json_is(description, JSON_STRING) && !json_is(description, JSON_NULL))
        return error_set(prompt->err, "the \"description\" of the tool %.100s is %s, not a string",
                         json_string(name), json_type_name(description));
    add_text(prompt, "\n### ");
    add_text(prompt, json_string(name));
    add_text(prompt, "\nDescription: ");
    if (json_is(description, JSON_STRING))
        add_text(prompt, json_string(description));
    add_text(prompt, "\n\nParameters: ");
    if (parameters)
        json_write_python(&prompt->text, parameters);
    else
        add_text(prompt, "{}");
    add_text(prompt, "\n");
    return 0;
}

/* The tools stand at the end of the system text, with an example of a call in real markers. */
static int add_tools(struct prompt *prompt, const struct json *tools)
{
    if (!json_is(tools, JSON_ARRAY) || !json_first(tools))
        return 0;
    add_text(prompt, "\n\n## Tools\nYou have access to the following tools:\n");
    for (const struct json *tool = json_first(tools); tool; tool = json_next(tool))
        if (add_tool(prompt, tool))
            return -1;
    add_text(prompt, "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n");
    if (add_marker(prompt, MARKER_CALLS_BEGIN) || add_marker(prompt, MARKER_CALL_BEGIN))
        return -1;
    add_text(prompt, "tool_call_name");
    if (add_marker(prompt, MARKER_CALL_SEP))
        return -1;
    add_text(prompt, "tool_call_arguments");
    if (add_marker(prompt, MARKER_CALL_END))
        return -1;
    add_text(prompt, "{{additional_tool_calls}}");
    if (add_marker(prompt, MARKER_CALLS_END))
        return -1;
    add_text(prompt,
             "\n\nWhere:\n\n"
             "- `tool_call_name` must be an exact match to one of the available tools\n"
             "- `tool_call_arguments` must be valid JSON that strictly follows the tool's "
             "Parameters Schema\n"
             "- For multiple tool calls, chain them directly without separators or spaces\n");
    return 0;
}

static int add_call(struct prompt *prompt, const struct json *call)
{
    const struct json *function = json_get(call, "function");
    const struct json *name = json_get(function, "name");
    const struct json *arguments = json_get(function, "arguments");

    if (!json_is(name, JSON_STRING) || !arguments)
        return error_set(prompt->err, "an element of \"tool_calls\" needs a \"function\" with a "
                                      "\"name\" and \"arguments\"");
    if (add_marker(prompt, MARKER_CALL_BEGIN))
        return -1;
    add_text(prompt, json_string(name));
    if (add_marker(prompt, MARKER_CALL_SEP))
        return -1;
    if (json_is(arguments, JSON_STRING))
        add_text(prompt, json_string(arguments));
    else
        json_write_python(&prompt->text, arguments);
    return add_marker(prompt, MARKER_CALL_END);
}

static bool has_calls(const struct chat_message *message)
{
    return json_is(message->tool_calls, JSON_ARRAY) && json_first(message->tool_calls);
}

static int add_calls(struct prompt *prompt, const struct chat_message *message)
{
    if (!has_calls(message))
        return 0;
    if (add_marker(prompt, MARKER_CALLS_BEGIN))
        return -1;
    for (const struct json *c = json_first(message->tool_calls); c; c = json_next(c))
        if (add_call(prompt, c))
            return -1;
    return add_marker(prompt, MARKER_CALLS_END);
}

/* ---- messages ----------------------------------------------------------------------------- */

/* An assistant's turn; an open one has no end and keeps its reasoning. */
static int add_assistant(struct prompt *prompt, const struct chat_message *message, bool open)
{
    const char *content = content_of(message);
    const char *think_end = open ? NULL : strstr(content, MARKER_THINK_END);

    if (add_marker(prompt, MARKER_ASSISTANT))
        return -1;
    add_text(prompt, think_end ? think_end + strlen(MARKER_THINK_END) : content);
    if (add_calls(prompt, message))
        return -1;
    return open ? 0 : add_marker(prompt, MARKER_EOS);
}

static int add_message(struct prompt *prompt, const struct chat_message *message, bool open)
{
    if (is_system(message))
        return 0; /* add_system did */
    if (has_role(message, "assistant"))
        return add_assistant(prompt, message, open);
    if (has_role(message, "user")) {
        if (add_marker(prompt, MARKER_USER))
            return -1;
        add_text(prompt, content_of(message));
        return 0;
    }
    if (!has_role(message, "tool"))
        return error_set(prompt->err,
                         "the role \"%.100s\" is unknown; it must be system, developer, user, "
                         "assistant or tool",
                         message->role);
    if (add_marker(prompt, MARKER_TOOL_OUTPUT_BEGIN))
        return -1;
    add_text(prompt, content_of(message));
    return add_marker(prompt, MARKER_TOOL_OUTPUT_END);
}

static int check_options(const struct chat_message *messages, size_t count,
                         struct chat_options options, struct error *err)
{
    if (!options.continue_final_message)
        return 0;
    if (options.add_generation_prompt)
        return error_set(err,
                         "continue_final_message and add_generation_prompt exclude each other");
    if (count == 0 || !has_role(&messages[count - 1], "assistant"))
        return error_set(err, "continue_final_message needs a last message with the role "
                              "\"assistant\"");
    if (has_calls(&messages[count - 1]))
        return error_set(err, "continue_final_message needs a last message without tool_calls");
    return 0;
}

static int add_all(struct prompt *prompt, const struct chat_message *messages, size_t count,
                   struct chat_options options)
{
    if (add_marker(prompt, MARKER_BOS))
        return -1;
    add_system(prompt, messages, count);
    if (add_tools(prompt, options.tools))
        return -1;
    for (size_t i = 0; i < count; i++) {
        bool open = options.continue_final_message && i + 1 == count;
        if (add_message(prompt, &messages[i], open))
            return -1;
    }
    if (options.add_generation_prompt && add_marker(prompt, MARKER_ASSISTANT))
        return -1;
    return end_text(prompt);
}

int chat_encode(const struct tokenizer *tok, const struct chat_message *messages, size_t count,
                struct chat_options options, struct token_list *out, struct error *err)
{
    struct prompt prompt = {.tok = tok, .out = out, .err = err};
    int rc = check_options(messages, count, options, err);

    if (rc == 0) {
        buffer_init(&prompt.text, TEXT_MAX);
        rc = add_all(&prompt, messages, count, options);
        buffer_free(&prompt.text);
    }
    return rc;
}
