/* The JSON of answers to generation requests: whole ones and stream chunks, chat and completion. */
#pragma once

#include "base/buffer.h"
#include "kernels/sampling.h"
#include "model/tokenizer.h"
#include "server/api_params.h"

#include <stdbool.h>
#include <stdint.h>

/* What is the same in every chunk of an answer. */
struct reply_head {
    enum api_kind kind;
    const char *id;    /* "chatcmpl-…" or "cmpl-…" */
    const char *model; /* as the client knows it */
    int64_t created;   /* unix seconds */
};

struct reply_usage {
    int32_t prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens;
};

/* Log-probabilities of tokens, kept as the JSON they will be sent as. */
struct reply_logprobs {
    int n;
    struct buffer content;                       /* chat: content[] */
    struct buffer tokens, values, tops, offsets; /* completions: the four parallel lists */
};

void reply_logprobs_init(struct reply_logprobs *lp);
void reply_logprobs_free(struct reply_logprobs *lp);
void reply_logprobs_clear(struct reply_logprobs *lp);

/* Adds one token with at most `n_top` alternatives. `text_offset` is where its text begins in the
 * choice's text, in characters. */
void reply_logprobs_add(struct reply_logprobs *lp, enum api_kind kind, const struct tokenizer *tok,
                        const struct sampling_result *result, int32_t n_top, size_t text_offset);

/* Adds the first token of a text that is echoed: nothing comes before it, so it has no value. */
void reply_logprobs_add_first(struct reply_logprobs *lp, const struct tokenizer *tok,
                              int32_t token);

/* Appends an element of "prompt_logprobs", with a comma before it unless it is the first: for the
 * prompt's first token (`result` NULL) null, then alternatives by id, the token itself included. */
void reply_add_prompt_logprob(struct buffer *out, const struct tokenizer *tok,
                              const struct sampling_result *result, int32_t n_top);

/* One choice of an answer, or of a chunk. */
struct reply_choice {
    int32_t index;
    const char *text;
    size_t text_len;
    const char *reasoning; /* chat: what the model thought */
    size_t reasoning_len;
    const char *calls; /* chat: entries of "tool_calls", as JSON without brackets */
    size_t calls_len;
    bool with_role;                       /* chat stream: the first delta */
    const struct reply_logprobs *lp;      /* NULL: null */
    const char *finish_reason;            /* NULL: null */
    const char *stop_string;              /* "stop_reason" is this, */
    int32_t stop_token;                   /* or this; NULL and -1: null */
    const struct buffer *token_ids;       /* ids with commas between; NULL: not asked for */
    const struct token_list *prompt_ids;  /* NULL: not asked for, or sent before */
    const struct buffer *prompt_logprobs; /* see reply_add_prompt_logprob; NULL: not asked for */
};

/* A stream chunk as one SSE event ("data: …\n\n"). `usage` NULL with `usage_wanted`: "usage":null.
 */
void reply_write_chunk(struct buffer *out, const struct reply_head *head,
                       const struct reply_choice *choice, const struct reply_usage *usage,
                       bool usage_wanted);

/* The chunk that carries nothing but usage. */
void reply_write_usage_chunk(struct buffer *out, const struct reply_head *head,
                             const struct reply_usage *usage);

/* A whole answer: begin, each choice in order, end. */
void reply_begin(struct buffer *out, const struct reply_head *head);
void reply_add_choice(struct buffer *out, const struct reply_head *head,
                      const struct reply_choice *choice, bool first);
void reply_end(struct buffer *out, const struct reply_usage *usage,
               const struct reply_choice *first); /* of a chat: its prompt's parts; or NULL */
