#include "server/api_params.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/siphash.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum field_type { FIELD_FLOAT, FIELD_INT, FIELD_BOOL };
enum { FOR_CHAT = 1, FOR_COMPLETION = 2, FOR_BOTH = 3 };

/* Fields that are one number or one truth value. */
struct field {
    const char *name;
    enum field_type type;
    int kinds;
    size_t at; /* offset in struct api_params */
    double min, max;
};

#define AT(member) offsetof(struct api_params, member)

static const struct field fields[] = {
    {"temperature", FIELD_FLOAT, FOR_BOTH, AT(sampling.temperature), 0, 100},
    {"top_p", FIELD_FLOAT, FOR_BOTH, AT(sampling.top_p), 0, 1},
    {"min_p", FIELD_FLOAT, FOR_BOTH, AT(sampling.min_p), 0, 1},
    {"top_k", FIELD_INT, FOR_BOTH, AT(sampling.top_k), -1, INT32_MAX},
    {"repetition_penalty", FIELD_FLOAT, FOR_BOTH, AT(sampling.repetition_penalty), 0.01, 100},
    {"presence_penalty", FIELD_FLOAT, FOR_BOTH, AT(sampling.presence_penalty), -2, 2},
    {"frequency_penalty", FIELD_FLOAT, FOR_BOTH, AT(sampling.frequency_penalty), -2, 2},
    {"max_tokens", FIELD_INT, FOR_BOTH, AT(max_tokens), 1, INT32_MAX},
    {"max_completion_tokens", FIELD_INT, FOR_CHAT, AT(max_tokens), 1, INT32_MAX},
    {"min_tokens", FIELD_INT, FOR_BOTH, AT(sampling.min_tokens), 0, INT32_MAX},
    {"n", FIELD_INT, FOR_BOTH, AT(n), 1, API_MAX_CHOICES},
    {"priority", FIELD_INT, FOR_BOTH, AT(priority), INT32_MIN, INT32_MAX},
    {"truncate_prompt_tokens", FIELD_INT, FOR_BOTH, AT(truncate_prompt_tokens), -1, INT32_MAX},
    {"stream", FIELD_BOOL, FOR_BOTH, AT(stream), 0, 0},
    {"return_token_ids", FIELD_BOOL, FOR_BOTH, AT(return_token_ids), 0, 0},
    {"echo", FIELD_BOOL, FOR_COMPLETION, AT(echo), 0, 0},
    {"skip_special_tokens", FIELD_BOOL, FOR_BOTH, AT(skip_special_tokens), 0, 0},
    {"add_special_tokens", FIELD_BOOL, FOR_COMPLETION, AT(add_special_tokens), 0, 0},
    {"add_generation_prompt", FIELD_BOOL, FOR_CHAT, AT(add_generation_prompt), 0, 0},
    {"continue_final_message", FIELD_BOOL, FOR_CHAT, AT(continue_final_message), 0, 0},
    {"include_stop_str_in_output", FIELD_BOOL, FOR_BOTH, AT(stops.include), 0, 0},
    {"logprobs", FIELD_BOOL, FOR_CHAT, AT(logprobs), 0, 0},
    {"parallel_tool_calls", FIELD_BOOL, FOR_CHAT, AT(parallel_tool_calls), 0, 0},
};

/* Fields that clients know from other servers and that mlad does not have yet. A value that asks
 * for nothing (null, false, 0, "", [], {}) is fine, and so is the one in `neutral`. */
static const struct {
    const char *name, *neutral;
    bool in_chats; /* there it is, with what the chat template takes: see api_prompt.c */
} unsupported[] = {
    {"functions", NULL, false},
    {"function_call", "none", false},
    {"chat_template", NULL, true},
    {"chat_template_kwargs", NULL, true},
    {"documents", NULL, true},
    {"reasoning_effort", "none", true},
    {"suffix", NULL, false},
    {"parameters", NULL, false}, /* where other SageMaker servers have max_new_tokens and such */
    {"use_beam_search", NULL, false},
    {"return_tokens_as_token_ids", NULL, false},
    {"lora_path", NULL, false},
    {"regex", NULL, false}, /* and the two below: "structured_outputs" as others have it */
    {"ebnf", NULL, false},
    {"json_schema", NULL, false},
    {"logits_processors", NULL, false},
    {"audio", NULL, false},
    {"prediction", NULL, false},
    {"web_search_options", NULL, false},
};

static int wrong_type(struct api_fault *fault, const char *name, const char *expected,
                      const struct json *value)
{
    return api_fault_set(fault, 400, name, "'%s' must be %s, not %s.", name, expected,
                         json_type_name(value));
}

/* A member that is there and not null. */
static const struct json *present(const struct json *body, const char *name)
{
    const struct json *value = json_get(body, name);

    return value && json_type(value) != JSON_NULL ? value : NULL;
}

static int parse_field(struct api_params *params, const struct field *f, const struct json *value,
                       struct api_fault *fault)
{
    char *at = (char *)params + f->at;
    int64_t integer = 0;

    if (f->type == FIELD_BOOL) {
        if (!json_is(value, JSON_BOOL))
            return wrong_type(fault, f->name, "true or false", value);
        *(bool *)at = json_bool(value);
        return 0;
    }
    if (!json_is(value, JSON_NUMBER))
        return wrong_type(fault, f->name, "a number", value);
    double number = json_number(value);
    if (!(number >= f->min && number <= f->max))
        return api_fault_set(fault, 400, f->name, "'%s' must be from %.10g to %.10g, got %.10g.",
                             f->name, f->min, f->max, number);
    if (f->type == FIELD_FLOAT) {
        *(float *)at = (float)number;
        return 0;
    }
    if (!json_integer(value, &integer))
        return api_fault_set(fault, 400, f->name, "'%s' must be a whole number, got %.10g.",
                             f->name, number);
    *(int32_t *)at = (int32_t)integer;
    return 0;
}

static int parse_fields(struct api_params *params, const struct json *body, struct api_fault *fault)
{
    int kind = params->kind == API_CHAT ? FOR_CHAT : FOR_COMPLETION;

    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        const struct json *value = present(body, fields[i].name);
        if (value && (fields[i].kinds & kind) && parse_field(params, &fields[i], value, fault))
            return -1;
    }
    return 0;
}

/* Whether the value asks for nothing, or for the neutral choice ({"type": neutral} included). */
static bool asks_nothing(const struct json *value, const char *neutral)
{
    const struct json *type = json_get(value, "type");

    switch (json_type(value)) {
    case JSON_NULL:
        return true;
    case JSON_BOOL:
        return !json_bool(value);
    case JSON_NUMBER:
        return json_number(value) == 0;
    case JSON_STRING:
        return !*json_string(value) || (neutral && strcmp(json_string(value), neutral) == 0);
    case JSON_ARRAY:
        return json_count(value) == 0;
    case JSON_OBJECT:
        return json_count(value) == 0 ||
               (neutral && json_is(type, JSON_STRING) && strcmp(json_string(type), neutral) == 0);
    }
    return false;
}

static int refuse_unsupported(const struct json *body, enum api_kind kind, struct api_fault *fault)
{
    for (size_t i = 0; i < sizeof(unsupported) / sizeof(unsupported[0]); i++) {
        const char *name = unsupported[i].name;
        const struct json *value = json_get(body, name);
        if (kind == API_CHAT && unsupported[i].in_chats)
            continue;
        if (value && !asks_nothing(value, unsupported[i].neutral))
            return api_fault_set(fault, 400, name, "'%s' is not supported by this server.", name);
    }
    return 0;
}

/* The name of {"type": "function", "function": {"name": …}}, or NULL. */
static const char *function_name(const struct json *value)
{
    const struct json *type = json_get(value, "type");
    const struct json *name = json_get(json_get(value, "function"), "name");

    if (!json_is(type, JSON_STRING) || strcmp(json_string(type), "function") != 0 ||
        !json_is(name, JSON_STRING))
        return NULL;
    return json_string(name);
}

/* Function names are what the OpenAI API allows. */
static bool is_tool_name(const char *name)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    size_t len = name ? strlen(name) : 0;

    return len > 0 && len <= API_MAX_TOOL_NAME && strspn(name, letters) == len;
}

static int check_tools(const struct json *tools, struct api_fault *fault)
{
    if (!json_is(tools, JSON_ARRAY))
        return wrong_type(fault, "tools", "a list of tools", tools);
    if (json_count(tools) > API_MAX_TOOLS)
        return api_fault_set(fault, 400, "tools", "'tools' may hold at most %d tools.",
                             API_MAX_TOOLS);
    for (const struct json *tool = json_first(tools); tool; tool = json_next(tool))
        if (!is_tool_name(function_name(tool)))
            return api_fault_set(
                fault, 400, "tools",
                "Each of 'tools' must be {\"type\": "
                "\"function\", \"function\": {\"name\": …}}, with a name of at most "
                "%d letters, digits, '_', '-' and '.'.",
                API_MAX_TOOL_NAME);
    return 0;
}

/* "none" is left to the caller: it takes the tools away. */
static int parse_tool_choice(struct api_params *params, const struct json *choice,
                             struct api_fault *fault)
{
    const char *word = json_is(choice, JSON_STRING) ? json_string(choice) : NULL;
    const char *name = json_is(choice, JSON_OBJECT) ? function_name(choice) : NULL;

    params->tool_choice = TOOL_AUTO;
    if (!choice || (word && (strcmp(word, "auto") == 0 || strcmp(word, "none") == 0)))
        return 0;
    if (word && strcmp(word, "required") == 0) {
        params->tool_choice = TOOL_REQUIRED;
        if (json_count(params->tools) == 1) /* then it is clear which */
            name = function_name(json_first(params->tools));
        else
            return 0;
    }
    for (const struct json *t = name ? json_first(params->tools) : NULL; t; t = json_next(t))
        if (strcmp(function_name(t), name) == 0) {
            params->tool_choice = TOOL_NAMED;
            snprintf(params->tool_name, sizeof(params->tool_name), "%s", name);
            return 0;
        }
    if (name)
        return api_fault_set(fault, 400, "tool_choice",
                             "'tool_choice' names '%.64s', which is not "
                             "among 'tools'.",
                             name);
    return api_fault_set(fault, 400, "tool_choice",
                         "'tool_choice' must be \"auto\", \"none\", "
                         "\"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}.");
}

static int parse_tools(struct api_params *params, const struct json *body, struct api_fault *fault)
{
    const struct json *tools = present(body, "tools");
    const struct json *choice = present(body, "tool_choice");
    bool none = json_is(choice, JSON_STRING) && strcmp(json_string(choice), "none") == 0;

    if (tools && check_tools(tools, fault))
        return -1;
    if (!tools || json_count(tools) == 0) {
        bool idle = !choice || none ||
                    (json_is(choice, JSON_STRING) && strcmp(json_string(choice), "auto") == 0);
        if (idle)
            return 0;
        return api_fault_set(fault, 400, "tool_choice", "'tool_choice' needs 'tools'.");
    }
    if (params->kind != API_CHAT)
        return api_fault_set(fault, 400, "tools", "'tools' are for chats only.");
    params->tools = none ? NULL : json_copy(tools);
    return none ? 0 : parse_tool_choice(params, choice, fault);
}

static int add_stop(struct api_params *params, const struct json *value, struct api_fault *fault)
{
    struct stop_strings *stops = &params->stops;

    if (!json_is(value, JSON_STRING))
        return wrong_type(fault, "stop", "a string or a list of strings", value);
    size_t len = strlen(json_string(value));
    if (len == 0 || len > TEXT_MAX_STOP_BYTES)
        return api_fault_set(fault, 400, "stop", "a stop string must have 1 to %d bytes, got %zu.",
                             TEXT_MAX_STOP_BYTES, len);
    if (stops->n == TEXT_MAX_STOPS)
        return api_fault_set(fault, 400, "stop", "'stop' may hold at most %d strings.",
                             TEXT_MAX_STOPS);
    stops->text[stops->n++] = mem_strdup(json_string(value));
    return 0;
}

static int parse_stop(struct api_params *params, const struct json *body, struct api_fault *fault)
{
    const struct json *stop = present(body, "stop");

    if (!stop)
        return 0;
    if (!json_is(stop, JSON_ARRAY))
        return add_stop(params, stop, fault);
    for (const struct json *s = json_first(stop); s; s = json_next(s))
        if (add_stop(params, s, fault))
            return -1;
    return 0;
}

static void add_stop_token(struct sampling_params *sampling, int32_t token)
{
    ASSERT(sampling->n_stop_tokens < SAMPLING_MAX_STOP_TOKENS);
    sampling->stop_tokens[sampling->n_stop_tokens++] = token;
}

/* Reads one token id of the vocabulary. */
static int parse_token(const struct json *value, const char *name, int32_t vocab_size,
                       int32_t *token, struct api_fault *fault)
{
    int64_t id;

    if (!json_integer(value, &id))
        return wrong_type(fault, name, "a list of token ids", value);
    if (id < 0 || id >= vocab_size)
        return api_fault_set(fault, 400, name,
                             "token id %lld in '%s' is not in the vocabulary "
                             "(0 to %d).",
                             (long long)id, name, vocab_size - 1);
    *token = (int32_t)id;
    return 0;
}

/* End tokens of the model (unless ignore_eos) and stop_token_ids. */
static int parse_stop_tokens(struct api_params *params, const struct json *body,
                             const struct model_config *config, struct api_fault *fault)
{
    const struct json *ids = present(body, "stop_token_ids");
    const struct json *ignore = present(body, "ignore_eos");
    struct sampling_params *sampling = &params->sampling;

    if (ignore && !json_is(ignore, JSON_BOOL))
        return wrong_type(fault, "ignore_eos", "true or false", ignore);
    if (!ignore || !json_bool(ignore))
        for (int32_t i = 0; i < config->n_eos; i++)
            add_stop_token(sampling, config->eos[i]);
    params->n_end_tokens = sampling->n_stop_tokens;
    if (!ids)
        return 0;
    if (!json_is(ids, JSON_ARRAY))
        return wrong_type(fault, "stop_token_ids", "a list of token ids", ids);
    for (const struct json *v = json_first(ids); v; v = json_next(v)) {
        int32_t token = 0;
        if (parse_token(v, "stop_token_ids", config->vocab_size, &token, fault))
            return -1;
        if (sampling->n_stop_tokens == SAMPLING_MAX_STOP_TOKENS)
            return api_fault_set(fault, 400, "stop_token_ids",
                                 "'stop_token_ids' may hold at most "
                                 "%d ids.",
                                 SAMPLING_MAX_STOP_TOKENS - config->n_eos);
        add_stop_token(sampling, token);
    }
    return 0;
}

static int parse_logit_bias(struct api_params *params, const struct json *body,
                            const struct model_config *config, struct api_fault *fault)
{
    const struct json *bias = present(body, "logit_bias");
    struct sampling_params *sampling = &params->sampling;

    if (!bias)
        return 0;
    if (!json_is(bias, JSON_OBJECT))
        return wrong_type(fault, "logit_bias", "an object of token ids and numbers", bias);
    for (const struct json *v = json_first(bias); v; v = json_next(v)) {
        char *end;
        long id = strtol(json_key(v), &end, 10);
        if (strspn(json_key(v), "0123456789") == 0 || *end || id < 0 || id >= config->vocab_size)
            return api_fault_set(fault, 400, "logit_bias",
                                 "'%s' in 'logit_bias' is not a token id "
                                 "(0 to %d).",
                                 json_key(v), config->vocab_size - 1);
        if (!json_is(v, JSON_NUMBER) || fabs(json_number(v)) > 100)
            return api_fault_set(fault, 400, "logit_bias",
                                 "the bias of token %ld must be a number "
                                 "from -100 to 100.",
                                 id);
        if (sampling->n_bias == SAMPLING_MAX_BIAS)
            return api_fault_set(fault, 400, "logit_bias",
                                 "'logit_bias' may hold at most %d "
                                 "tokens.",
                                 SAMPLING_MAX_BIAS);
        sampling->bias[sampling->n_bias++] =
            (struct sampling_bias){.token = (int32_t)id, .bias = (float)json_number(v)};
    }
    return 0;
}

/* Completions: "logprobs": N. Chat: "logprobs": true with "top_logprobs": N. */
static int parse_logprobs(struct api_params *params, const struct json *body,
                          struct api_fault *fault)
{
    const char *name = params->kind == API_CHAT ? "top_logprobs" : "logprobs";
    const struct json *count = present(body, name);
    int64_t n;

    if (!count)
        return 0;
    if (!json_integer(count, &n) || n < 0 || n > SAMPLING_MAX_LOGPROBS)
        return api_fault_set(fault, 400, name, "'%s' must be a whole number from 0 to %d.", name,
                             SAMPLING_MAX_LOGPROBS);
    if (params->kind == API_CHAT && !params->logprobs && n > 0)
        return api_fault_set(fault, 400, name, "'top_logprobs' needs 'logprobs': true.");
    params->logprobs = params->logprobs || params->kind == API_COMPLETION;
    params->sampling.n_logprobs = (int32_t)n;
    return 0;
}

/* "prompt_logprobs": N, and what "echo" with "logprobs" comes to. */
static int parse_prompt_logprobs(struct api_params *params, const struct json *body,
                                 struct api_fault *fault)
{
    const struct json *count = present(body, "prompt_logprobs");
    int64_t n;

    params->prompt_logprobs = -1;
    params->token_logprobs = params->sampling.n_logprobs;
    params->score_prompt = params->echo && params->logprobs;
    if (!count)
        return 0;
    if (!json_integer(count, &n) || n < 0 || n > SAMPLING_MAX_LOGPROBS)
        return api_fault_set(fault, 400, "prompt_logprobs",
                             "'prompt_logprobs' must be a whole number from 0 to %d.",
                             SAMPLING_MAX_LOGPROBS);
    if (params->stream)
        return api_fault_set(fault, 400, "prompt_logprobs",
                             "'prompt_logprobs' are not available with 'stream': true.");
    params->prompt_logprobs = (int32_t)n;
    params->score_prompt = true;
    if (params->sampling.n_logprobs < (int32_t)n)
        params->sampling.n_logprobs = (int32_t)n;
    return 0;
}

static int parse_stream_options(struct api_params *params, const struct json *body,
                                struct api_fault *fault)
{
    const struct json *options = present(body, "stream_options");
    struct {
        const char *name;
        bool *to;
    } flags[] = {{"include_usage", &params->include_usage},
                 {"continuous_usage_stats", &params->continuous_usage}};

    if (!options)
        return 0;
    if (!json_is(options, JSON_OBJECT))
        return wrong_type(fault, "stream_options", "an object", options);
    if (!params->stream)
        return api_fault_set(fault, 400, "stream_options",
                             "'stream_options' needs 'stream': true.");
    for (size_t i = 0; i < 2; i++) {
        const struct json *value = present(options, flags[i].name);
        if (value && !json_is(value, JSON_BOOL))
            return api_fault_set(fault, 400, "stream_options",
                                 "'%s' in 'stream_options' must be true or false, not %s.",
                                 flags[i].name, json_type_name(value));
        *flags[i].to = value && json_bool(value);
    }
    params->continuous_usage = params->continuous_usage && params->include_usage;
    return 0;
}

static int parse_seed(struct api_params *params, const struct json *body, struct api_fault *fault)
{
    const struct json *seed = present(body, "seed");
    double value;

    params->sampling.seed = clock_entropy();
    if (!seed)
        return 0;
    value = json_is(seed, JSON_NUMBER) ? json_number(seed) : 0.5;
    if (value != floor(value) || fabs(value) > 0x1p63)
        return api_fault_set(fault, 400, "seed", "'seed' must be a whole number of 64 bits.");
    /* Past 2^53 the JSON reader has rounded it: the same seed still draws the same. */
    params->sampling.seed = value < 0x1p63 ? (uint64_t)(int64_t)value : (uint64_t)1 << 63;
    return 0;
}

/* "cache_salt" (a string) and "timeout" (seconds). */
static int parse_service(struct api_params *params, const struct json *body,
                         struct api_fault *fault)
{
    const struct json *salt = present(body, "cache_salt");
    const struct json *timeout = present(body, "timeout");

    if (salt && (!json_is(salt, JSON_STRING) || !*json_string(salt)))
        return api_fault_set(fault, 400, "cache_salt",
                             "'cache_salt' must be a string with at "
                             "least one character.");
    if (salt)
        params->cache_salt = siphash(json_string(salt), strlen(json_string(salt)));
    if (!timeout)
        return 0;
    if (!json_is(timeout, JSON_NUMBER) || !(json_number(timeout) > 0) || json_number(timeout) > 1e6)
        return api_fault_set(fault, 400, "timeout",
                             "'timeout' must be a number of seconds above 0 "
                             "and at most 1000000.");
    params->timeout_us = (int64_t)ceil(json_number(timeout) * 1e6);
    return 0;
}

/* What silence means: the checkpoint's generation_config.json, then the API's own defaults. */
static void set_defaults(struct api_params *params, enum api_kind kind,
                         const struct model_config *config)
{
    *params = (struct api_params){
        .kind = kind,
        .sampling = {.temperature = config->default_temperature,
                     .top_p = config->default_top_p,
                     .min_p = config->default_min_p,
                     .top_k = config->default_top_k,
                     .repetition_penalty = config->default_repetition_penalty},
        .max_tokens = -1,
        .n = 1,
        .skip_special_tokens = true,
        .add_special_tokens = true,
        .add_generation_prompt = true,
        .parallel_tool_calls = true,
    };
}

/* Combinations that contradict each other, and values that mean "off". */
static int check_together(struct api_params *params, const struct json *body,
                          struct api_fault *fault)
{
    const struct json *best_of = present(body, "best_of");
    struct sampling_params *sampling = &params->sampling;

    if (best_of && (!json_is(best_of, JSON_NUMBER) || json_number(best_of) != params->n))
        return api_fault_set(fault, 400, "best_of", "'best_of' other than 'n' is not supported.");
    if (params->continue_final_message && params->add_generation_prompt) {
        if (present(body, "add_generation_prompt"))
            return api_fault_set(fault, 400, "continue_final_message",
                                 "'continue_final_message' "
                                 "and 'add_generation_prompt' can't both be true.");
        params->add_generation_prompt = false;
    }
    if (params->max_tokens >= 0 && sampling->min_tokens > params->max_tokens)
        return api_fault_set(fault, 400, "min_tokens",
                             "'min_tokens' (%d) is more than "
                             "'max_tokens' (%d).",
                             sampling->min_tokens, params->max_tokens);
    if (sampling->top_k < 0)
        sampling->top_k = 0;
    if (sampling->top_p == 0) /* OpenAI allows it: only the likeliest token */
        sampling->top_k = 1, sampling->top_p = 1;
    return 0;
}

int api_params_parse(struct api_params *params, const struct json *body, enum api_kind kind,
                     const struct model_config *config, struct api_fault *fault)
{
    set_defaults(params, kind, config);
    if (refuse_unsupported(body, kind, fault) || parse_fields(params, body, fault) ||
        parse_stop(params, body, fault) || parse_stop_tokens(params, body, config, fault) ||
        parse_logit_bias(params, body, config, fault) || parse_logprobs(params, body, fault) ||
        parse_prompt_logprobs(params, body, fault) || parse_stream_options(params, body, fault) ||
        parse_seed(params, body, fault) || parse_service(params, body, fault) ||
        parse_tools(params, body, fault) || check_together(params, body, fault)) {
        api_params_free(params);
        return -1;
    }
    return 0;
}

void api_params_free(struct api_params *params)
{
    for (int i = 0; i < params->stops.n; i++)
        free(params->stops.text[i]);
    params->stops.n = 0;
    json_free(params->tools);
    params->tools = NULL;
}
