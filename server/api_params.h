/* A generation request's fields: from the JSON body to checked, plain values. Unknown fields are
 * ignored; a known field that is of the wrong type, out of range or not supported is a fault that
 * names it. */
#pragma once

#include "base/json.h"
#include "kernels/sampling.h"
#include "model/config.h"
#include "server/api_error.h"
#include "server/text_stream.h"

#include <stdbool.h>
#include <stdint.h>

enum api_kind { API_CHAT, API_COMPLETION };

enum { API_MAX_CHOICES = 64, API_MAX_PROMPTS = 256, API_MAX_TOOLS = 128, API_MAX_TOOL_NAME = 64 };

enum tool_choice {
    TOOL_AUTO,     /* the model decides */
    TOOL_REQUIRED, /* some tool is called */
    TOOL_NAMED,    /* this one is called */
};

struct api_params {
    enum api_kind kind;
    struct sampling_params sampling; /* stop_tokens: what ends the text, end tokens included */
    int32_t n_end_tokens;            /* stop_tokens begins with the model's own */
    struct stop_strings stops;
    int32_t max_tokens; /* -1: the request doesn't say */
    int32_t n;          /* choices for each prompt */
    bool stream;
    bool include_usage;    /* stream_options.include_usage */
    bool continuous_usage; /* stream_options.continuous_usage_stats */
    bool echo;
    bool logprobs; /* of the answer's tokens, with token_logprobs alternatives */
    int32_t token_logprobs;
    int32_t prompt_logprobs; /* alternatives for the prompt's tokens; -1: not asked for */
    bool score_prompt;       /* the prompt's tokens have log-probabilities too */
    bool skip_special_tokens;
    bool return_token_ids;
    int32_t truncate_prompt_tokens; /* keep this many from the end; -1: what fits; 0: all */
    bool add_special_tokens;        /* completions: bos in front */
    bool add_generation_prompt;     /* chat */
    bool continue_final_message;
    struct json *tools; /* the request's, when it may call them; owned; NULL: none */
    enum tool_choice tool_choice;
    char tool_name[API_MAX_TOOL_NAME + 1]; /* TOOL_NAMED */
    bool parallel_tool_calls;
    int32_t priority;
    uint64_t cache_salt;
    int64_t timeout_us; /* 0: the server's own limit */
};

/* Reads the body's fields but the prompt. On a fault nothing is left to free. */
int api_params_parse(struct api_params *params, const struct json *body, enum api_kind kind,
                     const struct model_config *config, struct api_fault *fault);
void api_params_free(struct api_params *params);
