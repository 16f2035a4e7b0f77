#include "model/chat.h"

#include "base/buffer.h"

#include <string.h>

#define BOS         "<｜begin▁of▁sentence｜>"
#define EOS         "<｜end▁of▁sentence｜>"
#define USER        "<｜User｜>"
#define ASSISTANT   "<｜Assistant｜>"
#define TOOL_BEGIN  "<｜tool▁output▁begin｜>"
#define TOOL_END    "<｜tool▁output▁end｜>"
#define THINK_END   "</think>"
#define SYSTEM_JOIN "\n\n"

enum { SYSTEM_MAX = 256 * 1024 * 1024 }; /* bytes of all system texts */

/* The prompt under construction. */
struct prompt {
    const struct tokenizer *tok;
    struct token_list *out;
    struct error *err;
};

static int add_marker(const struct prompt *prompt, const char *content)
{
    int32_t id = tokenizer_id(prompt->tok, content);

    if (id < 0)
        return error_set(prompt->err, "the model's vocabulary has no token %s", content);
    if (token_list_push(prompt->out, id))
        return error_set(prompt->err, "the prompt has more than %zu tokens", prompt->out->max);
    return 0;
}

static int add_text(const struct prompt *prompt, const char *text)
{
    return tokenizer_encode(prompt->tok, text, strlen(text), ENCODE_TEXT_ONLY, prompt->out,
                            prompt->err);
}

bool chat_supported(const struct tokenizer *tok)
{
    return tokenizer_id(tok, BOS) >= 0 && tokenizer_id(tok, EOS) >= 0 &&
           tokenizer_id(tok, USER) >= 0 && tokenizer_id(tok, ASSISTANT) >= 0;
}

static bool has_role(const struct chat_message *message, const char *role)
{
    return strcmp(message->role, role) == 0;
}

static bool is_system(const struct chat_message *message)
{
    return has_role(message, "system") || has_role(message, "developer");
}

/* All system texts are one text in front, wherever they stand. */
static int add_system(const struct prompt *prompt, const struct chat_message *messages,
                      size_t count)
{
    struct buffer text;
    size_t systems = 0;
    int rc = 0;

    buffer_init(&text, SYSTEM_MAX);
    for (size_t i = 0; i < count; i++) {
        if (!is_system(&messages[i]))
            continue;
        if (systems++ > 0)
            buffer_append_str(&text, SYSTEM_JOIN);
        buffer_append_str(&text, messages[i].content);
    }
    if (text.overflowed)
        rc = error_set(prompt->err, "the system messages are longer than %d bytes", SYSTEM_MAX);
    else if (text.len > 0)
        rc = add_text(prompt, text.data);
    buffer_free(&text);
    return rc;
}

/* An assistant's turn; an open one has no end and keeps its reasoning. */
static int add_assistant(const struct prompt *prompt, const char *content, bool open)
{
    const char *think_end = open ? NULL : strstr(content, THINK_END);

    if (think_end)
        content = think_end + strlen(THINK_END);
    if (add_marker(prompt, ASSISTANT) || add_text(prompt, content))
        return -1;
    return open ? 0 : add_marker(prompt, EOS);
}

static int add_message(const struct prompt *prompt, const struct chat_message *message, bool open)
{
    if (is_system(message))
        return 0; /* add_system did */
    if (has_role(message, "assistant"))
        return add_assistant(prompt, message->content, open);
    if (has_role(message, "user"))
        return add_marker(prompt, USER) ? -1 : add_text(prompt, message->content);
    if (!has_role(message, "tool"))
        return error_set(prompt->err,
                         "the role \"%.100s\" is unknown; it must be system, developer, user, "
                         "assistant or tool",
                         message->role);
    if (add_marker(prompt, TOOL_BEGIN) || add_text(prompt, message->content))
        return -1;
    return add_marker(prompt, TOOL_END);
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
    return 0;
}

int chat_encode(const struct tokenizer *tok, const struct chat_message *messages, size_t count,
                struct chat_options options, struct token_list *out, struct error *err)
{
    struct prompt prompt = {tok, out, err};

    if (check_options(messages, count, options, err) || add_marker(&prompt, BOS) ||
        add_system(&prompt, messages, count))
        return -1;
    for (size_t i = 0; i < count; i++) {
        bool open = options.continue_final_message && i + 1 == count;
        if (add_message(&prompt, &messages[i], open))
            return -1;
    }
    return options.add_generation_prompt ? add_marker(&prompt, ASSISTANT) : 0;
}
