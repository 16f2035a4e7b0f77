#include "server/generation.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/panic.h"
#include "server/api_reply.h"
#include "server/message.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ANSWER_MAX = 1 << 30,
    TEXT_MAX = 1 << 28, /* bytes of one choice's text */
    MAX_RETRY_AFTER_S = 30,
    DEFAULT_COMPLETION_TOKENS = 16,
};

static const uint64_t SEED_STEP = 0x9e3779b97f4a7c15ull; /* between the choices of one request */

struct choice {
    struct generation *gen;
    int32_t index;
    int prompt;  /* index of its prompt */
    uint64_t id; /* the engine's; 0 once it is over */
    struct text_stream text;
    struct message message;
    struct reply_logprobs logprobs;
    struct buffer token_ids; /* as JSON, when they are asked for */
    struct buffer prompt_logprobs;
    size_t text_chars; /* of all tokens so far */
    int32_t n_tokens;
    int32_t cached_tokens;
    bool role_sent;
    bool prompt_shown;
    const char *finish_reason;
    int32_t stop_token; /* of the request's stop_token_ids; -1: none */
    int64_t admitted_us, first_token_us, last_token_us;
};

struct generation {
    struct generations *all;
    struct generation *next, **link; /* list of all in flight */
    struct answer answer;
    struct api_params params;
    struct prompt *prompts;
    int n_prompts;
    struct choice *choices;
    int n_choices, n_open;
    bool answered; /* whole, failed, or the client is gone */
    char id[48];
    int64_t created;
    int64_t arrival_us, deadline_us; /* deadline 0: none */
    int64_t last_write_us;           /* of a stream */
};

struct generations {
    struct engine *engine;
    struct metrics *metrics;
    const struct options *options;
    const char *model_name;
    struct choice **by_slot; /* which choice an engine slot belongs to */
    struct generation *first;
    int n_active;
    struct buffer scratch;  /* one chunk */
    struct buffer released; /* text on its way from a text_stream to a message */

    /* How far apart sequences end, smoothed: for Retry-After. */
    int64_t last_end_us;
    double end_interval_us;
};

void prompts_free(struct prompt *prompts, int n)
{
    for (int i = 0; i < n; i++) {
        token_list_free(&prompts[i].tokens);
        free(prompts[i].echo);
        free(prompts[i].forced);
    }
    free(prompts);
}

struct generations *generations_new(struct engine *engine, struct metrics *metrics,
                                    const char *model_name, const struct options *options)
{
    struct generations *all = mem_zalloc(1, sizeof(*all));

    all->engine = engine;
    all->metrics = metrics;
    all->options = options;
    all->model_name = model_name;
    all->by_slot = mem_zalloc((size_t)engine_slots(engine), sizeof(struct choice *));
    buffer_init(&all->scratch, ANSWER_MAX);
    buffer_init(&all->released, ANSWER_MAX);
    return all;
}

void generations_free(struct generations *all)
{
    ASSERT(!all->first);
    buffer_free(&all->scratch);
    buffer_free(&all->released);
    free(all->by_slot);
    free(all);
}

int generations_active(const struct generations *all)
{
    return all->n_active;
}

/* ---- choices ------------------------------------------------------------------------------ */

/* The engine's slot is not this choice's any more; `cancel` when the engine still works on it. */
static void choice_detach(struct choice *c, bool cancel)
{
    struct generations *all = c->gen->all;

    if (!c->id)
        return;
    all->by_slot[engine_slot(c->id)] = NULL;
    if (cancel)
        engine_cancel(all->engine, c->id);
    c->id = 0;
    c->gen->n_open--;
}

static void choice_count(struct choice *c, enum request_outcome outcome)
{
    struct metrics *m = c->gen->all->metrics;

    metrics_count_outcome(m, outcome);
    if (outcome != OUTCOME_STOP && outcome != OUTCOME_LENGTH)
        return;
    metrics_observe(m, HIST_E2E, (double)(c->last_token_us - c->gen->arrival_us) * 1e-6);
    metrics_observe(m, HIST_INFERENCE, (double)(c->last_token_us - c->admitted_us) * 1e-6);
    metrics_observe(m, HIST_DECODE, (double)(c->last_token_us - c->first_token_us) * 1e-6);
    metrics_observe(m, HIST_GENERATION_TOKENS, c->n_tokens);
}

/* Times and counts of a token, before its text is looked at. */
static void choice_note_token(struct choice *c, int64_t time_us)
{
    struct generation *gen = c->gen;
    struct metrics *m = gen->all->metrics;
    size_t prompt_tokens = gen->prompts[c->prompt].tokens.len;

    if (c->n_tokens++ == 0) {
        c->first_token_us = time_us;
        metrics_observe(m, HIST_TTFT, (double)(time_us - gen->arrival_us) * 1e-6);
        metrics_observe(m, HIST_PREFILL, (double)(time_us - c->admitted_us) * 1e-6);
        metrics_observe(m, HIST_PROMPT_TOKENS, (double)prompt_tokens);
        metrics_count_prompt(m, (int64_t)prompt_tokens);
    } else {
        metrics_observe(m, HIST_ITL, (double)(time_us - c->last_token_us) * 1e-6);
    }
    c->last_token_us = time_us;
    metrics_count_generated(m, 1);
}

static size_t count_chars(const char *bytes, size_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)bytes[i] & 0xC0) != 0x80;
    return n;
}

static size_t text_chars_of(const struct choice *c, int32_t token)
{
    size_t len;
    const char *bytes = tokenizer_bytes(c->text.tok, token, &len);

    return c->text.skip_special && tokenizer_is_special(c->text.tok, token)
               ? 0
               : count_chars(bytes, len);
}

/* Adds the token to the choice's text; true when it completed a stop string. */
static bool choice_add_text(struct choice *c, const struct sampling_result *result)
{
    const struct api_params *params = &c->gen->params;
    struct buffer *released = &c->gen->all->released;

    if (params->logprobs)
        reply_logprobs_add(&c->logprobs, params->kind, c->text.tok, result, params->token_logprobs,
                           c->text_chars);
    c->text_chars += text_chars_of(c, result->token);
    buffer_clear(released);
    bool stopped = text_stream_push(&c->text, result->token, released);
    message_push(&c->message, released->data ? released->data : "", released->len, 1);
    return stopped;
}

/* The prompt's first token has no log-probability. */
static void choice_add_first(struct choice *c, int32_t token)
{
    const struct api_params *params = &c->gen->params;

    if (params->prompt_logprobs >= 0)
        reply_add_prompt_logprob(&c->prompt_logprobs, c->text.tok, NULL, 0);
    if (params->echo && params->logprobs)
        reply_logprobs_add_first(&c->logprobs, c->text.tok, token);
    c->text_chars += params->echo ? text_chars_of(c, token) : 0;
}

static void choice_add_score(struct choice *c, const struct sampling_result *score)
{
    const struct api_params *params = &c->gen->params;

    if (params->prompt_logprobs >= 0)
        reply_add_prompt_logprob(&c->prompt_logprobs, c->text.tok, score, params->prompt_logprobs);
    if (!params->echo)
        return;
    if (params->logprobs)
        reply_logprobs_add(&c->logprobs, params->kind, c->text.tok, score, params->token_logprobs,
                           c->text_chars);
    c->text_chars += text_chars_of(c, score->token);
}

static void choice_init(struct choice *c, struct generation *gen, int index)
{
    const struct engine_model *model = engine_model(gen->all->engine);
    const struct api_params *params = &gen->params;
    bool chat = params->kind == API_CHAT;
    struct output_options options = {
        .split_reasoning = true,
        .open_reasoning = gen->prompts[index / params->n].open_reasoning,
        .parse_calls = params->tools != NULL,
        .tools = params->tools,
    };

    *c = (struct choice){.gen = gen, .index = index, .prompt = index / params->n, .stop_token = -1};
    const struct prompt *prompt = &gen->prompts[c->prompt];
    text_stream_init(&c->text, model->tokenizer, &params->stops, params->skip_special_tokens);
    c->text.min_tokens = params->sampling.min_tokens;
    if (chat) {
        c->text.shown = model->marker_ids;
        c->text.n_shown = model->n_marker_ids;
    }
    message_init(&c->message, chat ? model->output_format : output_format_by_name("plain"), options,
                 params->stream);
    reply_logprobs_init(&c->logprobs);
    buffer_init(&c->token_ids, TEXT_MAX);
    buffer_init(&c->prompt_logprobs, TEXT_MAX);
    if (params->score_prompt)
        choice_add_first(c, prompt->tokens.ids[0]);
    if (params->echo && prompt->echo)
        message_push(&c->message, prompt->echo, strlen(prompt->echo), 0);
    if (prompt->forced)
        message_push(&c->message, prompt->forced, strlen(prompt->forced), 0);
}

/* How many tokens to generate where `room` fit. A completion that doesn't say gets 16, as the
 * OpenAI API has it; a chat what fits. */
static int32_t answer_tokens(const struct api_params *params, int64_t limit, int32_t room)
{
    int32_t wanted = params->max_tokens;

    if (wanted < 0)
        wanted = params->kind == API_COMPLETION ? DEFAULT_COMPLETION_TOKENS : room;
    if (limit && wanted > limit)
        wanted = (int32_t)limit;
    return wanted < room ? wanted : room;
}

static struct engine_request *choice_request(const struct choice *c)
{
    const struct generation *gen = c->gen;
    const struct token_list *tokens = &gen->prompts[c->prompt].tokens;
    struct engine_request *request = mem_zalloc(1, sizeof(*request));
    int32_t room = engine_model(gen->all->engine)->max_model_len - (int32_t)tokens->len;

    request->tokens = mem_copy(tokens->ids, tokens->len * sizeof(*tokens->ids));
    request->n_tokens = (int32_t)tokens->len;
    request->max_tokens = answer_tokens(&gen->params, gen->all->options->max_answer_tokens, room);
    request->priority = gen->params.priority;
    request->cache_salt = gen->params.cache_salt;
    request->score_prompt = gen->params.score_prompt;
    request->sampling = gen->params.sampling;
    request->sampling.seed += SEED_STEP * (uint64_t)(c->index % gen->params.n);
    return request;
}

/* ---- answers ------------------------------------------------------------------------------ */

static struct reply_head head_of(const struct generation *gen)
{
    return (struct reply_head){.kind = gen->params.kind,
                               .id = gen->id,
                               .model = gen->all->model_name,
                               .created = gen->created};
}

/* Tokens of the request so far. Cached tokens are those of each prompt's first choice: the others
 * share its pages anyway. */
static struct reply_usage usage_of(const struct generation *gen)
{
    struct reply_usage usage = {0};

    for (int i = 0; i < gen->n_prompts; i++)
        usage.prompt_tokens += (int32_t)gen->prompts[i].tokens.len;
    for (int i = 0; i < gen->n_choices; i++) {
        usage.completion_tokens += gen->choices[i].n_tokens;
        usage.reasoning_tokens += gen->choices[i].message.reasoning_tokens;
        if (i % gen->params.n == 0)
            usage.cached_tokens += gen->choices[i].cached_tokens;
    }
    return usage;
}

/* The prompt's ids; a stream shows them once. */
static const struct token_list *prompt_ids_of(const struct choice *c)
{
    return c->gen->params.return_token_ids && !c->prompt_shown ? &c->gen->prompts[c->prompt].tokens
                                                               : NULL;
}

static struct reply_choice reply_of(const struct choice *c)
{
    const struct message *m = &c->message;

    return (struct reply_choice){
        .index = c->index,
        .text = m->content.data ? m->content.data : "",
        .text_len = m->content.len,
        .reasoning = m->reasoning.data,
        .reasoning_len = m->reasoning.len,
        .calls = m->calls.data,
        .calls_len = m->calls.len,
        .lp = c->gen->params.logprobs ? &c->logprobs : NULL,
        .finish_reason = c->finish_reason,
        .stop_string = c->text.stopped,
        .stop_token = c->stop_token,
        .token_ids = c->gen->params.return_token_ids ? &c->token_ids : NULL,
        .prompt_ids = prompt_ids_of(c),
        .prompt_logprobs = c->gen->params.prompt_logprobs >= 0 ? &c->prompt_logprobs : NULL,
    };
}

static void stream_scratch(struct generation *gen)
{
    struct buffer *scratch = &gen->all->scratch;

    if (scratch->len == 0) /* a token that shows nothing: the stream is silent */
        return;
    gen->last_write_us = clock_us();
    gen->answer.ops->stream_write(gen->answer.to, scratch->data, scratch->len);
}

/* Sends what the choice has gathered since its last chunk. */
static void stream_choice(struct choice *c)
{
    struct generation *gen = c->gen;
    struct reply_head head = head_of(gen);
    struct reply_usage usage = usage_of(gen);
    struct reply_choice reply = reply_of(c);

    buffer_clear(&gen->all->scratch);
    if (gen->params.kind == API_CHAT && !c->role_sent) {
        struct reply_choice role = {.index = c->index, .text = "", .with_role = true};
        reply_write_chunk(&gen->all->scratch, &head, &role,
                          gen->params.continuous_usage ? &usage : NULL, gen->params.include_usage);
        c->role_sent = true;
    }
    if (message_has_delta(&c->message) || reply.finish_reason || c->logprobs.n ||
        c->token_ids.len) {
        if (!c->logprobs.n)
            reply.lp = NULL;
        reply_write_chunk(&gen->all->scratch, &head, &reply,
                          gen->params.continuous_usage ? &usage : NULL, gen->params.include_usage);
        message_clear_delta(&c->message);
        reply_logprobs_clear(&c->logprobs);
        buffer_clear(&c->token_ids);
        c->prompt_shown = true;
    }
    stream_scratch(gen);
}

static void complete_stream(struct generation *gen)
{
    struct reply_head head = head_of(gen);
    struct reply_usage usage = usage_of(gen);

    buffer_clear(&gen->all->scratch);
    if (gen->params.include_usage)
        reply_write_usage_chunk(&gen->all->scratch, &head, &usage);
    buffer_append_str(&gen->all->scratch, "data: [DONE]\n\n");
    stream_scratch(gen);
    gen->answer.ops->stream_end(gen->answer.to);
}

static void complete_whole(struct generation *gen)
{
    struct reply_head head = head_of(gen);
    struct reply_usage usage = usage_of(gen);
    struct buffer *out = &gen->all->scratch;
    char elapsed_ms[24];

    buffer_clear(out);
    reply_begin(out, &head);
    for (int i = 0; i < gen->n_choices; i++) {
        struct reply_choice reply = reply_of(&gen->choices[i]);
        reply_add_choice(out, &head, &reply, i == 0);
    }
    struct reply_choice first = reply_of(&gen->choices[0]);
    reply_end(out, &usage, gen->params.kind == API_CHAT ? &first : NULL);
    snprintf(elapsed_ms, sizeof(elapsed_ms), "%lld",
             (long long)(clock_us() - gen->arrival_us) / 1000);
    gen->answer.ops->add_header(gen->answer.to, "openai-processing-ms", elapsed_ms);
    gen->answer.ops->respond(gen->answer.to, 200, "application/json", out->data, out->len);
}

static void complete(struct generation *gen)
{
    gen->answered = true;
    if (gen->params.stream)
        complete_stream(gen);
    else
        complete_whole(gen);
}

/* Ends an open generation with an error: the SDKs take a stream that just ends for a success, so
 * after the error event the chunked body is aborted. */
static void fail(struct generation *gen, const struct api_fault *fault,
                 enum request_outcome outcome)
{
    struct buffer *out = &gen->all->scratch;

    ASSERT(!gen->answered);
    for (int i = 0; i < gen->n_choices; i++) {
        if (gen->choices[i].id)
            choice_count(&gen->choices[i], outcome);
        choice_detach(&gen->choices[i], true);
    }
    gen->answered = true;
    if (!gen->params.stream) {
        api_fault_respond(fault, &gen->answer);
        return;
    }
    buffer_clear(out);
    buffer_append_str(out, "data: ");
    api_fault_write(fault, out);
    buffer_append_str(out, "\n\n");
    stream_scratch(gen);
    gen->answer.ops->stream_abort(gen->answer.to);
}

/* ---- start and end ------------------------------------------------------------------------ */

static void generation_link(struct generations *all, struct generation *gen)
{
    gen->next = all->first;
    gen->link = &all->first;
    if (all->first)
        all->first->link = &gen->next;
    all->first = gen;
    all->n_active++;
}

static void generation_free(struct generation *gen)
{
    *gen->link = gen->next;
    if (gen->next)
        gen->next->link = gen->link;
    gen->all->n_active--;
    for (int i = 0; i < gen->n_choices; i++) {
        text_stream_free(&gen->choices[i].text);
        message_free(&gen->choices[i].message);
        reply_logprobs_free(&gen->choices[i].logprobs);
        buffer_free(&gen->choices[i].token_ids);
        buffer_free(&gen->choices[i].prompt_logprobs);
    }
    free(gen->choices);
    prompts_free(gen->prompts, gen->n_prompts);
    api_params_free(&gen->params);
    free(gen);
}

/* Every prompt with the answer asked for must fit in the context. */
static int check_lengths(const struct generations *all, const struct api_params *params,
                         const struct prompt *prompts, int n_prompts, struct api_fault *fault)
{
    int64_t max = engine_model(all->engine)->max_model_len;
    int64_t longest = all->options->max_answer_tokens;

    if (longest && params->max_tokens > longest)
        return api_fault_set(fault, 400, "max_tokens",
                             "This server's answers have at most %lld tokens, and the request asks "
                             "for %d.",
                             (long long)longest, params->max_tokens);
    for (int i = 0; i < n_prompts; i++) {
        int64_t prompt = (int64_t)prompts[i].tokens.len;
        int64_t answer = params->max_tokens < 0 ? 1 : params->max_tokens;
        if (prompt + answer <= max)
            continue;
        api_fault_set(fault, 400, params->kind == API_CHAT ? "messages" : "prompt",
                      "This model's maximum context length is %lld tokens. However, you requested "
                      "%lld tokens (%lld in the prompt, %lld in the completion). Please reduce the "
                      "length of the prompt or of the completion.",
                      (long long)max, (long long)(prompt + answer), (long long)prompt,
                      (long long)answer);
        fault->code = "context_length_exceeded";
        return -1;
    }
    return 0;
}

/* Seconds until so many sequences have ended, as fast as they lately did. */
static int retry_after(const struct generations *all, int wanted)
{
    double seconds = all->end_interval_us * 1e-6 * wanted;

    return seconds < 1 ? 1 : seconds > MAX_RETRY_AFTER_S ? MAX_RETRY_AFTER_S : (int)ceil(seconds);
}

static int check_queue(struct generations *all, int wanted, struct api_fault *fault)
{
    int slots = engine_slots(all->engine), left = engine_slots_free(all->engine);

    if (wanted > slots)
        return api_fault_set(fault, 400, "n",
                             "The request asks for %d sequences; this server can "
                             "hold %d.",
                             wanted, slots);
    if (wanted <= left)
        return 0;
    metrics_count_limit(all->metrics, LIMIT_QUEUE);
    api_fault_set(fault, 429, NULL,
                  "The server is busy: %d sequences run or wait, which is as many "
                  "as it takes. Please retry after the time in the Retry-After header.",
                  slots - left);
    fault->retry_after_s = retry_after(all, wanted);
    return -1;
}

static void generation_submit(struct generation *gen, const struct constraint *constraint)
{
    struct generations *all = gen->all;

    for (int i = 0; i < gen->n_choices; i++) {
        struct choice *c = &gen->choices[i];
        choice_init(c, gen, i);
        struct engine_request *request = choice_request(c);
        request->constraint =
            constraint_copy(constraint, engine_model(all->engine)->config.vocab_size);
        c->id = engine_submit(all->engine, request);
        ASSERT(c->id); /* check_queue counted the slots */
        all->by_slot[engine_slot(c->id)] = c;
        gen->n_open++;
    }
}

struct generation *generations_start(struct generations *all, struct answer answer,
                                     struct api_params *params, struct prompt *prompts,
                                     int n_prompts, const struct constraint *constraint,
                                     struct api_fault *fault)
{
    int64_t limit_us = all->options->request_timeout_s * 1000000;

    if (check_lengths(all, params, prompts, n_prompts, fault) ||
        check_queue(all, n_prompts * params->n, fault))
        return NULL;
    struct generation *gen = mem_zalloc(1, sizeof(*gen));
    gen->all = all;
    gen->answer = answer;
    gen->params = *params;
    gen->prompts = prompts;
    gen->n_prompts = n_prompts;
    gen->n_choices = n_prompts * params->n;
    gen->choices = mem_zalloc((size_t)gen->n_choices, sizeof(*gen->choices));
    gen->created = clock_unix_s();
    gen->arrival_us = answer.arrival_us;
    gen->last_write_us = clock_us();
    if (params->timeout_us && (!limit_us || params->timeout_us < limit_us))
        limit_us = params->timeout_us;
    gen->deadline_us = limit_us ? gen->arrival_us + limit_us : 0;
    snprintf(gen->id, sizeof(gen->id), "%s-%016llx%016llx",
             params->kind == API_CHAT ? "chatcmpl" : "cmpl", (unsigned long long)clock_entropy(),
             (unsigned long long)clock_entropy());
    generation_link(all, gen);
    generation_submit(gen, constraint);
    if (params->stream) {
        answer.ops->add_header(answer.to, "Cache-Control", "no-cache");
        answer.ops->add_header(answer.to, "X-Accel-Buffering", "no");
        answer.ops->stream_start(answer.to, 200, "text/event-stream");
    }
    return gen;
}

void generation_closed(struct generation *gen)
{
    for (int i = 0; i < gen->n_choices; i++) {
        if (gen->choices[i].id)
            choice_count(&gen->choices[i], OUTCOME_ABORT);
        choice_detach(&gen->choices[i], true);
    }
    generation_free(gen);
}

void generation_summarize(const struct generation *gen, struct generation_summary *summary)
{
    struct reply_usage usage = usage_of(gen);

    *summary = (struct generation_summary){
        .id = gen->id,
        .kind = gen->params.kind,
        .stream = gen->params.stream,
        .n = gen->params.n,
        .max_tokens = gen->params.max_tokens,
        .temperature = gen->params.sampling.temperature,
        .top_p = gen->params.sampling.top_p,
        .prompt_tokens = usage.prompt_tokens,
        .cached_tokens = usage.cached_tokens,
        .completion_tokens = usage.completion_tokens,
        .reasoning_tokens = usage.reasoning_tokens,
        .queue_us = -1,
        .first_token_us = -1,
    };
    for (int i = 0; i < gen->n_choices; i++) {
        const struct choice *c = &gen->choices[i];
        int64_t queued = c->admitted_us ? c->admitted_us - gen->arrival_us : -1;
        int64_t first = c->first_token_us ? c->first_token_us - gen->arrival_us : -1;
        if (queued > summary->queue_us)
            summary->queue_us = queued;
        if (first >= 0 && (summary->first_token_us < 0 || first < summary->first_token_us))
            summary->first_token_us = first;
        if (c->finish_reason && summary->n_finish_reasons < API_MAX_CHOICES)
            summary->finish_reasons[summary->n_finish_reasons++] = c->finish_reason;
    }
}

/* ---- events ------------------------------------------------------------------------------- */

static void note_end(struct generations *all)
{
    const double weight = 0.1; /* of the newest interval */
    int64_t now = clock_us();

    if (all->last_end_us)
        all->end_interval_us += weight * ((double)(now - all->last_end_us) - all->end_interval_us);
    all->last_end_us = now;
}

/* Whether one of the request's own stops came in the middle of a call, whose arguments then are no
 * JSON that a client could use. */
static bool is_call_cut(const struct choice *c)
{
    return (c->text.stopped || c->stop_token >= 0) && c->message.call_open;
}

/* The choice is over: what was held back comes out, and the last one completes the answer. */
static void choice_finish(struct choice *c, const char *reason, enum request_outcome outcome,
                          bool cancel)
{
    struct generation *gen = c->gen;

    struct buffer *released = &gen->all->released;

    buffer_clear(released);
    text_stream_finish(&c->text, released);
    message_push(&c->message, released->data ? released->data : "", released->len, 0);
    bool cut = is_call_cut(c);
    message_finish(&c->message);
    note_end(gen->all);
    c->finish_reason =
        outcome == OUTCOME_STOP && c->message.n_calls && !cut ? "tool_calls" : reason;
    choice_count(c, outcome);
    choice_detach(c, cancel);
    if (gen->params.stream)
        stream_choice(c);
    if (gen->n_open == 0)
        complete(gen);
}

/* Whether the token is of the request's stop_token_ids, not one of the model's own. */
static bool is_own_stop(const struct api_params *params, int32_t token)
{
    for (int32_t i = 0; i < params->sampling.n_stop_tokens; i++)
        if (params->sampling.stop_tokens[i] == token)
            return i >= params->n_end_tokens;
    return false;
}

static void handle_token(struct choice *c, const struct engine_event *event)
{
    const struct sampling_result *result = &event->token.result;
    bool stop_token = event->token.finish == FINISH_STOP;

    choice_note_token(c, event->time_us);
    if (stop_token && is_own_stop(&c->gen->params, result->token))
        c->stop_token = result->token;
    if (c->gen->params.return_token_ids)
        buffer_printf(&c->token_ids, "%s%d", c->token_ids.len ? "," : "", result->token);
    bool stopped = (!stop_token || c->gen->params.stops.include) && choice_add_text(c, result);
    if (stopped)
        choice_finish(c, "stop", OUTCOME_STOP, event->token.finish == FINISH_NONE);
    else if (stop_token)
        choice_finish(c, "stop", OUTCOME_STOP, false);
    else if (event->token.finish == FINISH_COMPLETE)
        choice_finish(c, "stop", OUTCOME_STOP, false);
    else if (event->token.finish == FINISH_LENGTH)
        choice_finish(c, "length", OUTCOME_LENGTH, false);
    else if (c->message.n_ended && !c->gen->params.parallel_tool_calls)
        choice_finish(c, "stop", OUTCOME_STOP, true); /* one call was asked for */
    else if (c->gen->params.stream &&
             (message_has_delta(&c->message) || c->logprobs.n || c->token_ids.len || !c->role_sent))
        stream_choice(c);
}

void generations_handle(struct generations *all, const struct engine_event *event)
{
    struct choice *c = all->by_slot[engine_slot(event->id)];

    if (!c || c->id != event->id)
        return; /* over on this side already */
    switch (event->type) {
    case ENGINE_ADMITTED:
        c->admitted_us = event->time_us;
        c->cached_tokens = event->cached_tokens;
        metrics_observe(all->metrics, HIST_QUEUE,
                        (double)(event->time_us - c->gen->arrival_us) * 1e-6);
        break;
    case ENGINE_SCORE:
        choice_add_score(c, &event->score);
        break;
    case ENGINE_TOKEN:
        handle_token(c, event);
        break;
    case ENGINE_CANCELLED: /* only what this side detached is ever cancelled */
    case ENGINE_READY:
    case ENGINE_FAILED:
    case ENGINE_STEP:
        PANIC("engine event %d for a live choice", event->type);
    }
}

/* Whether a sequence of it has waited for its first step too long. */
static bool waits_too_long(const struct generation *gen, int64_t now)
{
    int64_t limit_us = gen->all->options->queue_timeout_s * 1000000;

    if (!limit_us || now - gen->arrival_us < limit_us)
        return false;
    for (int i = 0; i < gen->n_choices; i++)
        if (gen->choices[i].id && !gen->choices[i].admitted_us)
            return true;
    return false;
}

static void tick_one(struct generation *gen, int64_t now)
{
    static const char comment[] = ": keep-alive\n\n";
    struct api_fault fault;

    if (gen->answered)
        return;
    if (gen->deadline_us && now >= gen->deadline_us) {
        metrics_count_limit(gen->all->metrics, LIMIT_TOTAL_TIME);
        api_fault_set(&fault, 408, NULL,
                      "The request was not finished within its time limit of "
                      "%.3g seconds.",
                      (double)(gen->deadline_us - gen->arrival_us) * 1e-6);
        fail(gen, &fault, OUTCOME_TIMEOUT);
        return;
    }
    if (waits_too_long(gen, now)) {
        metrics_count_limit(gen->all->metrics, LIMIT_QUEUE_TIME);
        api_fault_set(&fault, 503, NULL,
                      "The request waited for its turn for %lld seconds, which is as long as it "
                      "may. Please retry.",
                      (long long)gen->all->options->queue_timeout_s);
        fault.code = "queue_timeout";
        fault.retry_after_s = retry_after(gen->all, gen->n_choices);
        fail(gen, &fault, OUTCOME_TIMEOUT);
        return;
    }
    if (gen->params.stream &&
        now - gen->last_write_us >= gen->all->options->keep_alive_interval_s * 1000000) {
        gen->last_write_us = now;
        gen->answer.ops->stream_write(gen->answer.to, comment, sizeof(comment) - 1);
    }
}

void generations_tick(struct generations *all)
{
    int64_t now = clock_us();

    for (struct generation *gen = all->first; gen; gen = gen->next)
        tick_one(gen, now);
}

void generations_fail_all(struct generations *all, const struct api_fault *fault)
{
    for (struct generation *gen = all->first; gen; gen = gen->next)
        if (!gen->answered)
            fail(gen, fault, OUTCOME_ERROR);
}
