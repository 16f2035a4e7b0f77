/* What a sampler is asked for and what it answers: plain data, the same for every backend.
 *
 * The order of operations on a row of logits: logit_bias; repetition, presence and frequency
 * penalties; tokens banned until min_tokens, or by a mask; temperature; top_k; top_p; min_p; then
 * one draw. temperature 0 takes the largest logit (the lowest id among equals).
 *
 * The draw is arg max of logit/temperature + gumbel(seed, step, token) over the tokens that are
 * kept, the noise from a counter-based generator (Philox4x32-10, Salmon et al. 2011). It depends on
 * nothing but the row, so neither the batch nor the order of summation can change a result. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum {
    SAMPLING_MAX_BIAS = 1024,      /* entries of logit_bias */
    SAMPLING_MAX_STOP_TOKENS = 64, /* tokens held back until min_tokens */
    SAMPLING_MAX_LOGPROBS = 20,    /* alternatives reported per token */
};

/* 32-bit words of a mask over `vocab` tokens: token t is bit t % 32 of word t / 32. */
#define SAMPLING_MASK_WORDS(vocab) (((size_t)(vocab) + 31) / 32)

struct sampling_bias {
    int32_t token;
    float bias;
};

struct sampling_params {
    float temperature;        /* >= 0 */
    float top_p;              /* (0, 1] */
    float min_p;              /* [0, 1] */
    int32_t top_k;            /* 0: all */
    float repetition_penalty; /* > 0; prompt and output tokens; 1: none */
    float presence_penalty;   /* output tokens */
    float frequency_penalty;  /* output tokens */
    uint64_t seed;
    int32_t n_logprobs; /* alternatives to report, 0..SAMPLING_MAX_LOGPROBS */
    int32_t min_tokens; /* before that many, `stop_tokens` can't be drawn */
    int32_t n_stop_tokens;
    int32_t n_bias;
    int32_t stop_tokens[SAMPLING_MAX_STOP_TOKENS];
    struct sampling_bias bias[SAMPLING_MAX_BIAS];
};

/* Log-probabilities are of the model's own distribution: log softmax of the logits before any of
 * the operations above. Alternatives come in falling order. */
struct sampling_result {
    int32_t token;
    float logprob;
    int32_t rank; /* of the token by the model's own distribution: 1 is the likeliest;
                     0 where no alternatives were asked for */
    int32_t n_top;
    int32_t top_token[SAMPLING_MAX_LOGPROBS];
    float top_logprob[SAMPLING_MAX_LOGPROBS];
};
