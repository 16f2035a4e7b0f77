#include "server/api_reply.h"

#include "base/json.h"

enum { LOGPROBS_MAX = 1 << 28 }; /* bytes of one choice's log-probabilities */

void reply_logprobs_init(struct reply_logprobs *lp)
{
    lp->n = 0;
    buffer_init(&lp->content, LOGPROBS_MAX);
    buffer_init(&lp->tokens, LOGPROBS_MAX);
    buffer_init(&lp->values, LOGPROBS_MAX);
    buffer_init(&lp->tops, LOGPROBS_MAX);
    buffer_init(&lp->offsets, LOGPROBS_MAX);
}

void reply_logprobs_free(struct reply_logprobs *lp)
{
    buffer_free(&lp->content);
    buffer_free(&lp->tokens);
    buffer_free(&lp->values);
    buffer_free(&lp->tops);
    buffer_free(&lp->offsets);
}

void reply_logprobs_clear(struct reply_logprobs *lp)
{
    lp->n = 0;
    buffer_clear(&lp->content);
    buffer_clear(&lp->tokens);
    buffer_clear(&lp->values);
    buffer_clear(&lp->tops);
    buffer_clear(&lp->offsets);
}

/* JSON has no infinity: a token that can't be drawn gets vLLM's floor. */
static void write_logprob(struct buffer *out, float logprob)
{
    json_write_number(out, logprob > -9999.0f ? logprob : -9999.0f);
}

static void write_token_text(struct buffer *out, const struct tokenizer *tok, int32_t token)
{
    size_t len;
    const char *bytes = tokenizer_bytes(tok, token, &len);

    json_write_string(out, bytes, (long)len);
}

/* "token":…,"logprob":…,"bytes":[…] */
static void write_chat_token(struct buffer *out, const struct tokenizer *tok, int32_t token,
                             float logprob)
{
    size_t len;
    const char *bytes = tokenizer_bytes(tok, token, &len);

    buffer_append_str(out, "\"token\":");
    json_write_string(out, bytes, (long)len);
    buffer_append_str(out, ",\"logprob\":");
    write_logprob(out, logprob);
    buffer_append_str(out, ",\"bytes\":[");
    for (size_t i = 0; i < len; i++)
        buffer_printf(out, "%s%d", i ? "," : "", (unsigned char)bytes[i]);
    buffer_append_str(out, "]");
}

static void add_chat(struct reply_logprobs *lp, const struct tokenizer *tok,
                     const struct sampling_result *r, int32_t n_top)
{
    struct buffer *out = &lp->content;

    buffer_append_str(out, lp->n ? ",{" : "{");
    write_chat_token(out, tok, r->token, r->logprob);
    buffer_append_str(out, ",\"top_logprobs\":[");
    for (int32_t i = 0; i < n_top; i++) {
        buffer_append_str(out, i ? ",{" : "{");
        write_chat_token(out, tok, r->top_token[i], r->top_logprob[i]);
        buffer_append_str(out, "}");
    }
    buffer_append_str(out, "]}");
}

/* The alternatives as an object; the sampled token is always among them. */
static void write_completion_tops(struct buffer *out, const struct tokenizer *tok,
                                  const struct sampling_result *r, int32_t n_top)
{
    bool sampled = false;

    buffer_append_str(out, "{");
    for (int32_t i = 0; i < n_top; i++) {
        buffer_append_str(out, i ? "," : "");
        write_token_text(out, tok, r->top_token[i]);
        buffer_append_str(out, ":");
        write_logprob(out, r->top_logprob[i]);
        sampled = sampled || r->top_token[i] == r->token;
    }
    if (!sampled) {
        buffer_append_str(out, n_top ? "," : "");
        write_token_text(out, tok, r->token);
        buffer_append_str(out, ":");
        write_logprob(out, r->logprob);
    }
    buffer_append_str(out, "}");
}

static void add_completion(struct reply_logprobs *lp, const struct tokenizer *tok,
                           const struct sampling_result *r, int32_t n_top, size_t text_offset)
{
    const char *comma = lp->n ? "," : "";

    buffer_append_str(&lp->tokens, comma);
    write_token_text(&lp->tokens, tok, r->token);
    buffer_append_str(&lp->values, comma);
    write_logprob(&lp->values, r->logprob);
    buffer_append_str(&lp->tops, comma);
    write_completion_tops(&lp->tops, tok, r, n_top);
    buffer_printf(&lp->offsets, "%s%zu", comma, text_offset);
}

void reply_logprobs_add(struct reply_logprobs *lp, enum api_kind kind, const struct tokenizer *tok,
                        const struct sampling_result *result, int32_t n_top, size_t text_offset)
{
    if (n_top > result->n_top)
        n_top = result->n_top;
    if (kind == API_CHAT)
        add_chat(lp, tok, result, n_top);
    else
        add_completion(lp, tok, result, n_top, text_offset);
    lp->n++;
}

void reply_logprobs_add_first(struct reply_logprobs *lp, const struct tokenizer *tok, int32_t token)
{
    write_token_text(&lp->tokens, tok, token);
    buffer_append_str(&lp->values, "null");
    buffer_append_str(&lp->tops, "null");
    buffer_append_str(&lp->offsets, "0");
    lp->n++;
}

/* "ID":{"logprob":…,"rank":…,"decoded_token":…} */
static void write_ranked(struct buffer *out, const struct tokenizer *tok, int32_t token,
                         float logprob, int32_t rank)
{
    buffer_printf(out, "\"%d\":{\"logprob\":", token);
    write_logprob(out, logprob);
    buffer_printf(out, ",\"rank\":%d,\"decoded_token\":", rank);
    write_token_text(out, tok, token);
    buffer_append_str(out, "}");
}

void reply_add_prompt_logprob(struct buffer *out, const struct tokenizer *tok,
                              const struct sampling_result *result, int32_t n_top)
{
    if (!result) {
        buffer_append_str(out, "null");
        return;
    }
    buffer_append_str(out, ",{");
    write_ranked(out, tok, result->token, result->logprob, result->rank);
    for (int32_t i = 0; i < n_top && i < result->n_top; i++) {
        if (result->top_token[i] == result->token)
            continue;
        buffer_append_str(out, ",");
        write_ranked(out, tok, result->top_token[i], result->top_logprob[i], i + 1);
    }
    buffer_append_str(out, "}");
}

static void append_part(struct buffer *out, const struct buffer *part)
{
    buffer_append(out, part->data ? part->data : "", part->len);
}

static void write_logprobs(struct buffer *out, enum api_kind kind, const struct reply_logprobs *lp)
{
    buffer_append_str(out, ",\"logprobs\":");
    if (!lp) {
        buffer_append_str(out, "null");
    } else if (kind == API_CHAT) {
        buffer_append_str(out, "{\"content\":[");
        append_part(out, &lp->content);
        buffer_append_str(out, "],\"refusal\":null}");
    } else {
        buffer_append_str(out, "{\"tokens\":[");
        append_part(out, &lp->tokens);
        buffer_append_str(out, "],\"token_logprobs\":[");
        append_part(out, &lp->values);
        buffer_append_str(out, "],\"top_logprobs\":[");
        append_part(out, &lp->tops);
        buffer_append_str(out, "],\"text_offset\":[");
        append_part(out, &lp->offsets);
        buffer_append_str(out, "]}");
    }
}

/* "stop_reason", which vLLM has, tells which of the request's stops it was. */
static void write_finish(struct buffer *out, const struct reply_choice *choice)
{
    if (!choice->finish_reason) {
        buffer_append_str(out, ",\"finish_reason\":null");
        return;
    }
    buffer_printf(out, ",\"finish_reason\":\"%s\",\"stop_reason\":", choice->finish_reason);
    if (choice->stop_string)
        json_write_string(out, choice->stop_string, -1);
    else if (choice->stop_token >= 0)
        buffer_printf(out, "%d", choice->stop_token);
    else
        buffer_append_str(out, "null");
}

static void write_usage(struct buffer *out, const struct reply_usage *usage)
{
    buffer_printf(out,
                  "{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":%d},"
                  "\"completion_tokens_details\":{\"reasoning_tokens\":%d}}",
                  usage->prompt_tokens, usage->completion_tokens,
                  usage->prompt_tokens + usage->completion_tokens, usage->cached_tokens,
                  usage->reasoning_tokens);
}

static void write_prompt_ids(struct buffer *out, const struct token_list *ids)
{
    if (!ids)
        return;
    buffer_append_str(out, ",\"prompt_token_ids\":[");
    for (size_t i = 0; i < ids->len; i++)
        buffer_printf(out, "%s%d", i ? "," : "", ids->ids[i]);
    buffer_append_str(out, "]");
}

/* What was asked of the prompt: its ids, its log-probabilities. */
static void write_prompt_parts(struct buffer *out, const struct reply_choice *choice)
{
    write_prompt_ids(out, choice->prompt_ids);
    if (!choice->prompt_logprobs)
        return;
    buffer_append_str(out, ",\"prompt_logprobs\":[");
    append_part(out, choice->prompt_logprobs);
    buffer_append_str(out, "]");
}

/* Token ids of a choice; a completion has its prompt's parts beside them, a chat's answer has them
 * at its top. */
static void write_token_ids(struct buffer *out, enum api_kind kind,
                            const struct reply_choice *choice)
{
    if (kind == API_COMPLETION)
        write_prompt_parts(out, choice);
    if (!choice->token_ids)
        return;
    buffer_append_str(out, ",\"token_ids\":[");
    append_part(out, choice->token_ids);
    buffer_append_str(out, "]");
}

/* {"id":…,"object":…,"created":…,"model":…,"choices":[ */
static void write_head(struct buffer *out, const struct reply_head *head, const char *chat_object)
{
    buffer_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", head->id,
                  head->kind == API_CHAT ? chat_object : "text_completion",
                  (long long)head->created);
    json_write_string(out, head->model, -1);
    buffer_append_str(out, ",\"choices\":[");
}

/* ,"reasoning_content":…,"reasoning":…,"tool_calls":[…]: those that are there. */
static void write_message_parts(struct buffer *out, const struct reply_choice *choice)
{
    static const char *const names[] = {"reasoning_content", "reasoning"};

    for (size_t i = 0; choice->reasoning_len && i < 2; i++) {
        buffer_printf(out, ",\"%s\":", names[i]);
        json_write_string(out, choice->reasoning, (long)choice->reasoning_len);
    }
    if (choice->calls_len) {
        buffer_append_str(out, ",\"tool_calls\":[");
        buffer_append(out, choice->calls, choice->calls_len);
        buffer_append_str(out, "]");
    }
}

static void write_delta(struct buffer *out, const struct reply_choice *choice)
{
    bool parts = choice->reasoning_len || choice->calls_len;
    struct buffer delta;

    buffer_init(&delta, out->max);
    if (choice->with_role)
        buffer_append_str(&delta, ",\"role\":\"assistant\"");
    if (choice->with_role || choice->text_len || (!parts && !choice->finish_reason)) {
        buffer_append_str(&delta, ",\"content\":");
        json_write_string(&delta, choice->text, (long)choice->text_len);
    }
    write_message_parts(&delta, choice);
    buffer_append_str(out, ",\"delta\":{");
    if (delta.len)
        buffer_append(out, delta.data + 1, delta.len - 1); /* without the first comma */
    buffer_append_str(out, "}");
    buffer_free(&delta);
}

void reply_write_chunk(struct buffer *out, const struct reply_head *head,
                       const struct reply_choice *choice, const struct reply_usage *usage,
                       bool usage_wanted)
{
    buffer_append_str(out, "data: ");
    write_head(out, head, "chat.completion.chunk");
    buffer_printf(out, "{\"index\":%d", choice->index);
    if (head->kind == API_CHAT) {
        write_delta(out, choice);
    } else {
        buffer_append_str(out, ",\"text\":");
        json_write_string(out, choice->text, (long)choice->text_len);
    }
    write_logprobs(out, head->kind, choice->lp);
    write_finish(out, choice);
    write_token_ids(out, head->kind, choice);
    buffer_append_str(out, "}]");
    if (head->kind == API_CHAT)
        write_prompt_parts(out, choice);
    if (usage) {
        buffer_append_str(out, ",\"usage\":");
        write_usage(out, usage);
    } else if (usage_wanted) {
        buffer_append_str(out, ",\"usage\":null");
    }
    buffer_append_str(out, "}\n\n");
}

void reply_write_usage_chunk(struct buffer *out, const struct reply_head *head,
                             const struct reply_usage *usage)
{
    buffer_append_str(out, "data: ");
    write_head(out, head, "chat.completion.chunk");
    buffer_append_str(out, "],\"usage\":");
    write_usage(out, usage);
    buffer_append_str(out, "}\n\n");
}

void reply_begin(struct buffer *out, const struct reply_head *head)
{
    write_head(out, head, "chat.completion");
}

void reply_add_choice(struct buffer *out, const struct reply_head *head,
                      const struct reply_choice *choice, bool first)
{
    buffer_printf(out, "%s{\"index\":%d", first ? "" : ",", choice->index);
    if (head->kind == API_CHAT) {
        buffer_append_str(out, ",\"message\":{\"role\":\"assistant\",\"content\":");
        if (choice->text_len || !choice->calls_len)
            json_write_string(out, choice->text, (long)choice->text_len);
        else
            buffer_append_str(out, "null");
        write_message_parts(out, choice);
        buffer_append_str(out, ",\"refusal\":null}");
    } else {
        buffer_append_str(out, ",\"text\":");
        json_write_string(out, choice->text, (long)choice->text_len);
    }
    write_logprobs(out, head->kind, choice->lp);
    write_finish(out, choice);
    write_token_ids(out, head->kind, choice);
    buffer_append_str(out, "}");
}

void reply_end(struct buffer *out, const struct reply_usage *usage,
               const struct reply_choice *first)
{
    buffer_append_str(out, "]");
    if (first)
        write_prompt_parts(out, first);
    buffer_append_str(out, ",\"usage\":");
    write_usage(out, usage);
    buffer_append_str(out, "}");
}
