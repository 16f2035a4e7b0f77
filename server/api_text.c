#include "server/api_text.h"

#include "base/clock.h"
#include "server/api_prompt.h"

#include <string.h>

enum { TEXT_MAX = 1 << 28 };

static void write_ids(struct buffer *out, const struct token_list *tokens)
{
    buffer_append_str(out, "[");
    for (size_t i = 0; i < tokens->len; i++)
        buffer_printf(out, "%s%d", i ? "," : "", tokens->ids[i]);
    buffer_append_str(out, "]");
}

/* Parameters and prompts of a body, as a generation would have them. */
struct parsed {
    struct api_params params;
    struct prompt *prompts;
    int n;
};

static int parse(const struct api_service *service, const struct json *body, enum api_kind kind,
                 struct parsed *parsed, struct api_fault *fault)
{
    const struct engine_model *model = engine_model(service->engine);

    if (api_check_model(service, body, fault) ||
        api_params_parse(&parsed->params, body, kind, &model->config, fault))
        return -1;
    if (api_prompts_parse(body, &parsed->params, model, &parsed->prompts, &parsed->n, fault)) {
        api_params_free(&parsed->params);
        return -1;
    }
    return 0;
}

static void parsed_free(struct parsed *parsed)
{
    prompts_free(parsed->prompts, parsed->n);
    api_params_free(&parsed->params);
}

/* Each token's text; bytes that are no character alone become U+FFFD. */
static void write_token_strs(struct buffer *out, const struct tokenizer *tok,
                             const struct token_list *tokens)
{
    buffer_append_str(out, "[");
    for (size_t i = 0; i < tokens->len; i++) {
        size_t len;
        const char *bytes = tokenizer_bytes(tok, tokens->ids[i], &len);
        buffer_append_str(out, i ? "," : "");
        json_write_string(out, bytes, (long)len);
    }
    buffer_append_str(out, "]");
}

int api_tokenize(const struct api_service *service, const struct json *body, struct buffer *out,
                 struct api_fault *fault)
{
    const struct engine_model *model = engine_model(service->engine);
    const struct json *strs = json_get(body, "return_token_strs");
    struct parsed parsed;

    if (strs && json_type(strs) != JSON_NULL && !json_is(strs, JSON_BOOL))
        return api_fault_set(fault, 400, "return_token_strs",
                             "'return_token_strs' must be true or false.");
    if (parse(service, body, api_by_fields(body), &parsed, fault))
        return -1;
    if (parsed.n != 1) {
        parsed_free(&parsed);
        return api_fault_set(fault, 400, "prompt", "'prompt' must be one text.");
    }
    const struct token_list *tokens = &parsed.prompts[0].tokens;
    buffer_printf(out, "{\"count\":%zu,\"max_model_len\":%d,\"tokens\":", tokens->len,
                  model->max_model_len);
    write_ids(out, tokens);
    buffer_append_str(out, ",\"token_strs\":");
    if (json_is(strs, JSON_BOOL) && json_bool(strs))
        write_token_strs(out, model->tokenizer, tokens);
    else
        buffer_append_str(out, "null");
    buffer_append_str(out, "}");
    parsed_free(&parsed);
    return 0;
}

int api_detokenize(const struct api_service *service, const struct json *body, struct buffer *out,
                   struct api_fault *fault)
{
    const struct engine_model *model = engine_model(service->engine);
    const struct json *tokens = json_get(body, "tokens");
    struct detokenizer detok;
    struct buffer text;

    if (api_check_model(service, body, fault))
        return -1;
    if (!json_is(tokens, JSON_ARRAY))
        return api_fault_set(fault, 400, "tokens", "'tokens' must be a list of token ids.");
    detokenizer_init_whole(&detok);
    buffer_init(&text, TEXT_MAX);
    buffer_append_str(&text, "");
    for (const struct json *v = json_first(tokens); v; v = json_next(v)) {
        int64_t id;
        if (!json_integer(v, &id) || id < 0 || id >= model->config.vocab_size) {
            buffer_free(&text);
            return api_fault_set(fault, 400, "tokens",
                                 "'tokens' holds something that is not a "
                                 "token id (0 to %d).",
                                 model->config.vocab_size - 1);
        }
        detokenizer_push(&detok, model->tokenizer, (int32_t)id, false, &text);
    }
    detokenizer_finish(&detok, &text);
    buffer_append_str(out, "{\"prompt\":");
    json_write_string(out, text.data, (long)text.len);
    buffer_append_str(out, "}");
    buffer_free(&text);
    return 0;
}

/* One prompt as a request of ids. */
static void write_rendered(struct buffer *out, const struct api_service *service,
                           const struct parsed *parsed, int index)
{
    const struct sampling_params *s = &parsed->params.sampling;

    buffer_printf(
        out, "{\"request_id\":\"render-%016llx\",\"model\":", (unsigned long long)clock_entropy());
    json_write_string(out, service->model_name, -1);
    buffer_append_str(out, ",\"token_ids\":");
    write_ids(out, &parsed->prompts[index].tokens);
    buffer_printf(out,
                  ",\"sampling_params\":{\"n\":%d,\"temperature\":%g,\"top_p\":%g,\"top_k\":%d",
                  parsed->params.n, (double)s->temperature, (double)s->top_p, s->top_k);
    if (parsed->params.max_tokens >= 0)
        buffer_printf(out, ",\"max_tokens\":%d", parsed->params.max_tokens);
    buffer_printf(out, "},\"stream\":%s}", parsed->params.stream ? "true" : "false");
}

int api_render_chat(const struct api_service *service, const struct json *body, struct buffer *out,
                    struct api_fault *fault)
{
    struct parsed parsed;

    if (parse(service, body, API_CHAT, &parsed, fault))
        return -1;
    write_rendered(out, service, &parsed, 0);
    parsed_free(&parsed);
    return 0;
}

int api_render_completion(const struct api_service *service, const struct json *body,
                          struct buffer *out, struct api_fault *fault)
{
    struct parsed parsed;

    if (parse(service, body, API_COMPLETION, &parsed, fault))
        return -1;
    buffer_append_str(out, "[");
    for (int i = 0; i < parsed.n; i++) {
        buffer_append_str(out, i ? "," : "");
        write_rendered(out, service, &parsed, i);
    }
    buffer_append_str(out, "]");
    parsed_free(&parsed);
    return 0;
}
