#include "server/api_prompt.h"

#include "base/memory.h"
#include "model/chat.h"
#include "model/chat_template.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_MESSAGES = 16384, MAX_UNTRUNCATED = 1 << 22 /* tokens */ };

/* Encoding stops at the first token past the context, so the cost of a prompt is bounded; a prompt
 * that is to be truncated may be longer. */
static struct token_list context_list(const struct engine_model *model,
                                      const struct api_params *params)
{
    struct token_list list;
    size_t max = (size_t)model->max_model_len;

    token_list_init(&list, params->truncate_prompt_tokens ? MAX_UNTRUNCATED : max);
    return list;
}

/* Keeps the end of a prompt that is too long. */
static int cut_prompt(struct prompt *prompt, const struct api_params *params,
                      const struct engine_model *model, struct api_fault *fault)
{
    size_t keep = (size_t)params->truncate_prompt_tokens, len = prompt->tokens.len;

    if (params->truncate_prompt_tokens == 0)
        return 0;
    if (params->truncate_prompt_tokens > model->max_model_len)
        return api_fault_set(fault, 400, "truncate_prompt_tokens",
                             "'truncate_prompt_tokens' is more than the context of %d tokens.",
                             model->max_model_len);
    if (params->truncate_prompt_tokens < 0) /* what leaves room for the answer */
        keep = (size_t)(model->max_model_len - (params->max_tokens > 0 ? params->max_tokens : 1));
    if (len <= keep || keep == 0 || keep > (size_t)model->max_model_len)
        return 0;
    memmove(prompt->tokens.ids, prompt->tokens.ids + (len - keep), keep * sizeof(int32_t));
    prompt->tokens.len = keep;
    return 0;
}

/* Why encoding failed: most likely the prompt is too long. */
static int encode_fault(const struct engine_model *model, const struct token_list *list,
                        const char *param, const struct error *err, struct api_fault *fault)
{
    if (list->len < list->max)
        return api_fault_set(fault, 400, param, "%s", err->message);
    api_fault_set(fault, 400, param,
                  "This model's maximum context length is %d tokens, and the "
                  "prompt is longer than that. Please reduce its length.",
                  model->max_model_len);
    fault->code = "context_length_exceeded";
    return -1;
}

/* ---- chat --------------------------------------------------------------------------------- */

/* Text of a message: a string, or a list of {"type": "text", "text": …} joined by newlines. The
 * caller frees it. */
static char *message_text(const struct json *content, struct api_fault *fault)
{
    struct buffer text;
    bool first = true;

    if (!content || json_type(content) == JSON_NULL)
        return mem_strdup("");
    if (json_is(content, JSON_STRING))
        return mem_strdup(json_string(content));
    if (!json_is(content, JSON_ARRAY)) {
        api_fault_set(fault, 400, "messages",
                      "A message's 'content' must be a string or a list of "
                      "parts, not %s.",
                      json_type_name(content));
        return NULL;
    }
    buffer_init(&text, 1u << 31);
    buffer_append_str(&text, "");
    for (const struct json *part = json_first(content); part; part = json_next(part)) {
        const struct json *type = json_get(part, "type"), *value = json_get(part, "text");
        if (!json_is(type, JSON_STRING) || strcmp(json_string(type), "text") != 0 ||
            !json_is(value, JSON_STRING)) {
            buffer_free(&text);
            api_fault_set(fault, 400, "messages",
                          "Parts of a message must be "
                          "{\"type\": \"text\", \"text\": …}: this model reads text only.");
            return NULL;
        }
        buffer_append_str(&text, first ? "" : "\n");
        buffer_append_str(&text, json_string(value));
        first = false;
    }
    return text.data;
}

static int parse_message(const struct json *value, size_t index, struct chat_message *message,
                         struct api_fault *fault)
{
    const struct json *role = json_get(value, "role");

    if (!json_is(value, JSON_OBJECT))
        return api_fault_set(fault, 400, "messages", "messages[%zu] must be an object, not %s.",
                             index, json_type_name(value));
    if (!json_is(role, JSON_STRING))
        return api_fault_set(fault, 400, "messages",
                             "messages[%zu] needs a 'role' that is a "
                             "string.",
                             index);
    const struct json *calls = json_get(value, "tool_calls");
    if (calls && json_type(calls) != JSON_NULL && !json_is(calls, JSON_ARRAY))
        return api_fault_set(fault, 400, "messages", "messages[%zu]: 'tool_calls' must be a list.",
                             index);
    message->tool_calls = json_is(calls, JSON_ARRAY) && json_count(calls) ? calls : NULL;
    message->role = json_string(role);
    message->content = message_text(json_get(value, "content"), fault);
    return message->content ? 0 : -1;
}

static int parse_messages(const struct json *body, struct chat_message **messages, size_t *n,
                          struct api_fault *fault)
{
    const struct json *list = json_get(body, "messages");
    size_t count = json_is(list, JSON_ARRAY) ? json_count(list) : 0;

    *n = 0;
    *messages = NULL;
    if (count == 0)
        return api_fault_set(fault, 400, "messages",
                             "'messages' must be a list with at least one "
                             "message.");
    if (count > MAX_MESSAGES)
        return api_fault_set(fault, 400, "messages", "'messages' may hold at most %d messages.",
                             MAX_MESSAGES);
    *messages = mem_zalloc(count, sizeof(**messages));
    for (const struct json *v = json_first(list); v; v = json_next(v)) {
        if (parse_message(v, *n, &(*messages)[*n], fault))
            return -1;
        (*n)++;
    }
    return 0;
}

/* Whether a message that is continued stopped while thinking. */
static bool is_open_reasoning(const char *content)
{
    return strncmp(content, "<think>", 7) == 0 && !strstr(content, "</think>");
}

/* A call that must come is begun in the prompt. */
static int force_call(const struct api_params *params, const struct engine_model *model,
                      struct prompt *prompt, struct api_fault *fault)
{
    const char *name = params->tool_choice == TOOL_NAMED ? params->tool_name : NULL;
    struct buffer text;
    struct error err;

    buffer_init(&text, 1 << 16);
    if (prompt->open_reasoning && chat_close_reasoning(model->output_format, model->tokenizer,
                                                       &prompt->tokens, &text, &err)) {
        buffer_free(&text);
        return encode_fault(model, &prompt->tokens, "tool_choice", &err, fault);
    }
    if (output_force_call(model->output_format, model->tokenizer, name, &prompt->tokens, &text,
                          &err)) {
        buffer_free(&text);
        return encode_fault(model, &prompt->tokens, "tool_choice", &err, fault);
    }
    prompt->forced = text.data;
    return 0;
}

/* ---- chats by templates ---- */

/* A field of the request that is of this type and says something; NULL otherwise. */
static int optional(const struct json *body, const char *name, enum json_type type,
                    const char *expected, const struct json **value, struct api_fault *fault)
{
    *value = json_get(body, name);
    if (!*value || json_type(*value) == JSON_NULL)
        *value = NULL;
    else if (json_type(*value) != type)
        return api_fault_set(fault, 400, name, "'%s' must be %s, not %s.", name, expected,
                             json_type_name(*value));
    return 0;
}

static bool are_objects(const struct json *list)
{
    for (const struct json *v = list ? json_first(list) : NULL; v; v = json_next(v))
        if (!json_is(v, JSON_OBJECT))
            return false;
    return true;
}

/* What a template takes of the request besides the messages. */
static int template_request(const struct json *body, const struct api_params *params,
                            const struct engine_model *model, struct chat_template_request *request,
                            struct api_fault *fault)
{
    const struct json *template, *effort;

    *request = (struct chat_template_request){
        .messages = json_get(body, "messages"),
        .tools = params->tools,
        .add_generation_prompt = params->add_generation_prompt,
        .continue_final_message = params->continue_final_message,
    };
    if (optional(body, "chat_template", JSON_STRING, "a string", &template, fault) ||
        optional(body, "reasoning_effort", JSON_STRING, "a string", &effort, fault) ||
        optional(body, "chat_template_kwargs", JSON_OBJECT, "an object", &request->kwargs, fault) ||
        optional(body, "documents", JSON_ARRAY, "a list of objects", &request->documents, fault))
        return -1;
    if (!are_objects(request->documents))
        return api_fault_set(fault, 400, "documents", "'documents' must be a list of objects.");
    if (template && *json_string(template)) {
        if (!model->trust_request_chat_template)
            return api_fault_set(fault, 400, "chat_template",
                                 "'chat_template' is not supported by this server: it was started "
                                 "without --trust-request-chat-template.");
        request->own_template = json_string(template);
    }
    request->reasoning_effort = effort ? json_string(effort) : NULL;
    return 0;
}

/* Without a template, what only a template could take is refused. */
static int check_built_in(const struct chat_template_request *request,
                          const struct engine_model *model, struct api_fault *fault)
{
    const char *effort = request->reasoning_effort, *field = NULL;

    if (chat_templates_problem(model->chat_templates))
        return api_fault_set(fault, 400, "messages",
                             "This model's chat template is not supported: %s.",
                             chat_templates_problem(model->chat_templates));
    if (!chat_supported(model->tokenizer))
        return api_fault_set(fault, 400, "messages",
                             "This model has no chat format that the server "
                             "knows; use /v1/completions.");
    if (request->kwargs && json_count(request->kwargs) > 0)
        field = "chat_template_kwargs";
    else if (request->documents && json_count(request->documents) > 0)
        field = "documents";
    else if (effort && *effort && strcmp(effort, "none") != 0)
        field = "reasoning_effort";
    if (!field)
        return 0;
    return api_fault_set(fault, 400, field,
                         "'%s' is not supported by this server: the model has no chat template.",
                         field);
}

static int by_template(const struct chat_template_request *request,
                       const struct engine_model *model, struct prompt *prompt,
                       struct api_fault *fault)
{
    struct error err;

    switch (chat_templates_encode(model->chat_templates, model->tokenizer, model->output_format,
                                  request, &prompt->tokens, &prompt->open_reasoning, &err)) {
    case CHAT_FAULT_NONE:
        return 0;
    case CHAT_FAULT_TEMPLATE:
        return api_fault_set(fault, 400, "chat_template", "'chat_template': %s.", err.message);
    case CHAT_FAULT_KWARGS:
        return api_fault_set(fault, 400, "chat_template_kwargs", "'chat_template_kwargs': %s.",
                             err.message);
    case CHAT_FAULT_EFFORT:
        return api_fault_set(fault, 400, "reasoning_effort",
                             "'reasoning_effort' is not supported: %s.", err.message);
    case CHAT_FAULT_TOOLS:
        return api_fault_set(fault, 400, "tools", "'tools' are not supported: %s.", err.message);
    case CHAT_FAULT_MESSAGES:
    case CHAT_FAULT_LENGTH:
        break;
    }
    return encode_fault(model, &prompt->tokens, "messages", &err, fault);
}

static int built_in(const struct chat_message *messages, size_t n, const struct api_params *params,
                    const struct engine_model *model, struct prompt *prompt,
                    struct api_fault *fault)
{
    struct chat_options options = {
        .add_generation_prompt = params->add_generation_prompt,
        .continue_final_message = params->continue_final_message,
        .tools = params->tools,
    };
    struct error err;

    if (chat_encode(model->tokenizer, messages, n, options, &prompt->tokens, &err))
        return encode_fault(model, &prompt->tokens, "messages", &err, fault);
    if (params->continue_final_message)
        prompt->open_reasoning = is_open_reasoning(messages[n - 1].content);
    return 0;
}

static int chat_prompt(const struct json *body, const struct api_params *params,
                       const struct engine_model *model, struct prompt *prompt,
                       struct api_fault *fault)
{
    struct chat_template_request request;
    struct chat_message *messages = NULL;
    size_t n = 0;
    int rc = parse_messages(body, &messages, &n, fault);

    if (rc == 0)
        rc = template_request(body, params, model, &request, fault);
    if (rc == 0 && (chat_templates_any(model->chat_templates) || request.own_template))
        rc = by_template(&request, model, prompt, fault);
    else if (rc == 0)
        rc = check_built_in(&request, model, fault) ||
                     built_in(messages, n, params, model, prompt, fault)
                 ? -1
                 : 0;
    if (rc == 0 && params->tools && params->tool_choice != TOOL_AUTO)
        rc = force_call(params, model, prompt, fault);
    for (size_t i = 0; i < n; i++)
        free((char *)messages[i].content);
    free(messages);
    return rc;
}

/* ---- completions -------------------------------------------------------------------------- */

static int text_prompt(const char *text, const struct api_params *params,
                       const struct engine_model *model, struct prompt *prompt,
                       struct api_fault *fault)
{
    struct error err;
    int n;
    const int32_t *front = tokenizer_front(model->tokenizer, &n);

    for (int i = 0; params->add_special_tokens && i < n; i++)
        token_list_push(&prompt->tokens, front[i]);
    if (tokenizer_encode(model->tokenizer, text, strlen(text), ENCODE_WITH_SPECIALS,
                         &prompt->tokens, &err))
        return encode_fault(model, &prompt->tokens, "prompt", &err, fault);
    if (prompt->tokens.len == 0)
        return api_fault_set(fault, 400, "prompt", "'prompt' must not be empty.");
    prompt->echo = mem_strdup(text);
    return 0;
}

/* What echo repeats of a prompt that came as ids. */
static char *decode_ids(const struct engine_model *model, const struct token_list *tokens)
{
    struct detokenizer detok;
    struct buffer text;

    detokenizer_init_whole(&detok);
    buffer_init(&text, 1u << 31);
    buffer_append_str(&text, "");
    for (size_t i = 0; i < tokens->len; i++)
        detokenizer_push(&detok, model->tokenizer, tokens->ids[i], true, &text);
    detokenizer_finish(&detok, &text);
    return text.data;
}

static int ids_prompt(const struct json *ids, const struct api_params *params,
                      const struct engine_model *model, struct prompt *prompt,
                      struct api_fault *fault)
{
    struct error none = {""};

    for (const struct json *v = json_first(ids); v; v = json_next(v)) {
        int64_t id;
        if (!json_integer(v, &id) || id < 0 || id >= model->config.vocab_size)
            return api_fault_set(fault, 400, "prompt",
                                 "'prompt' holds something that is not a "
                                 "token id (0 to %d).",
                                 model->config.vocab_size - 1);
        if (token_list_push(&prompt->tokens, (int32_t)id))
            return encode_fault(model, &prompt->tokens, "prompt", &none, fault);
    }
    if (prompt->tokens.len == 0)
        return api_fault_set(fault, 400, "prompt", "'prompt' must not be empty.");
    if (params->echo)
        prompt->echo = decode_ids(model, &prompt->tokens);
    return 0;
}

static int one_prompt(const struct json *value, const struct api_params *params,
                      const struct engine_model *model, struct prompt *prompt,
                      struct api_fault *fault)
{
    if (json_is(value, JSON_STRING))
        return text_prompt(json_string(value), params, model, prompt, fault);
    if (json_is(value, JSON_ARRAY))
        return ids_prompt(value, params, model, prompt, fault);
    return api_fault_set(fault, 400, "prompt",
                         "'prompt' must be a string, a list of strings, a "
                         "list of token ids or a list of such lists.");
}

/* ---- both --------------------------------------------------------------------------------- */

/* Whether the value is several prompts: a list that begins with a string or a list. */
static bool is_many(const struct json *value)
{
    const struct json *first = json_is(value, JSON_ARRAY) ? json_first(value) : NULL;

    return json_is(first, JSON_STRING) || json_is(first, JSON_ARRAY);
}

static int completion_prompts(const struct json *body, const struct api_params *params,
                              const struct engine_model *model, struct prompt *prompts, int *n,
                              struct api_fault *fault)
{
    const struct json *value = json_get(body, "prompt");

    if (!value)
        value = json_get(body, "inputs");
    if (!value)
        return api_fault_set(fault, 400, "prompt", "The request needs a 'prompt'.");
    const struct json *each = is_many(value) ? json_first(value) : value;
    for (; each; each = value == each ? NULL : json_next(each)) {
        if (*n == API_MAX_PROMPTS)
            return api_fault_set(fault, 400, "prompt", "'prompt' may hold at most %d prompts.",
                                 API_MAX_PROMPTS);
        prompts[*n].tokens = context_list(model, params);
        if (one_prompt(each, params, model, &prompts[(*n)++], fault))
            return -1;
    }
    return 0;
}

/* A tokenizer may have tokens that the model has no embedding for. */
static int check_tokens(const struct prompt *prompt, enum api_kind kind,
                        const struct engine_model *model, struct api_fault *fault)
{
    for (size_t i = 0; i < prompt->tokens.len; i++)
        if (prompt->tokens.ids[i] >= model->config.vocab_size)
            return api_fault_set(fault, 400, kind == API_CHAT ? "messages" : "prompt",
                                 "The prompt holds token %d of the tokenizer, which the model "
                                 "doesn't have: its vocabulary ends at %d.",
                                 prompt->tokens.ids[i], model->config.vocab_size - 1);
    return 0;
}

int api_prompts_parse(const struct json *body, const struct api_params *params,
                      const struct engine_model *model, struct prompt **prompts, int *n_prompts,
                      struct api_fault *fault)
{
    struct prompt *list = mem_zalloc(API_MAX_PROMPTS, sizeof(*list));
    int n = 0, rc;

    if (params->kind == API_CHAT) {
        list[n].tokens = context_list(model, params);
        rc = chat_prompt(body, params, model, &list[n++], fault);
    } else {
        rc = completion_prompts(body, params, model, list, &n, fault);
    }
    for (int i = 0; rc == 0 && i < n; i++)
        rc = cut_prompt(&list[i], params, model, fault) ||
                     check_tokens(&list[i], params->kind, model, fault)
                 ? -1
                 : 0;
    if (rc) {
        prompts_free(list, n);
        return -1;
    }
    *prompts = list;
    *n_prompts = n;
    return 0;
}
