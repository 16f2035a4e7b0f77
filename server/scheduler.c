#include "server/scheduler.h"

#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>
#include <string.h>

enum { PENDING = -1 };

enum seq_state { SEQ_NONE, SEQ_WAITING, SEQ_RUNNING };

struct seq {
    enum seq_state state;
    int32_t priority;
    uint64_t arrival;
    uint64_t cache_salt;
    bool score_prompt;
    bool needs_tokens;
    int32_t *tokens; /* prompt, then generated; room for max_tokens */
    int32_t max_tokens;
    int32_t n_prompt;
    int32_t n_tokens;        /* pending ones included */
    int32_t n_pending;       /* the last ones: drawn by steps under way, not known yet, PENDING */
    int32_t n_computed;      /* tokens whose KV is in the cache once the steps under way are done */
    uint64_t run;            /* names the time from admission to preemption or end */
    int32_t n_cached_prompt; /* of the first admission; -1 before */
    struct kv_seq kv;
};

/* Slots in the order they are served: by priority, then arrival. */
struct order {
    int32_t *slots;
    int32_t n;
};

/* What a step under way leaves in the cache. */
struct step {
    struct part {
        uint64_t run;
        int32_t slot, kv_len;
    } * parts; /* (max_running) */
    int32_t n_parts;
};

struct scheduler {
    struct scheduler_config config;
    struct kv_cache *kv;
    struct seq *seqs; /* by slot */
    struct order waiting, running;
    struct step steps[SCHEDULER_MAX_STEPS]; /* those under way, the oldest first */
    int n_steps;
    uint64_t next_arrival, next_run;
    int64_t preemptions;
};

static int32_t pages_for(int32_t tokens)
{
    return (tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
}

struct scheduler *scheduler_new(const struct scheduler_config *config)
{
    struct scheduler *sched = mem_zalloc(1, sizeof(*sched));

    ASSERT(config->max_running > 0 && config->max_rows >= config->max_running);
    ASSERT(config->max_model_len > 0 && pages_for(config->max_model_len) <= config->kv_pages);
    sched->config = *config;
    sched->kv = kv_cache_new(config->kv_pages, config->prefix_caching);
    sched->seqs = mem_zalloc((size_t)config->slots, sizeof(*sched->seqs));
    sched->waiting.slots = mem_zalloc((size_t)config->slots, sizeof(int32_t));
    sched->running.slots = mem_zalloc((size_t)config->slots, sizeof(int32_t));
    for (int i = 0; i < SCHEDULER_MAX_STEPS; i++)
        sched->steps[i].parts = mem_zalloc((size_t)config->max_running, sizeof(struct part));
    sched->next_run = 1;
    return sched;
}

void scheduler_free(struct scheduler *sched)
{
    if (!sched)
        return;
    for (int32_t slot = 0; slot < sched->config.slots; slot++)
        if (sched->seqs[slot].state != SEQ_NONE)
            scheduler_remove(sched, slot);
    kv_cache_free(sched->kv);
    for (int i = 0; i < SCHEDULER_MAX_STEPS; i++)
        free(sched->steps[i].parts);
    free(sched->waiting.slots);
    free(sched->running.slots);
    free(sched->seqs);
    free(sched);
}

struct batch_limits scheduler_limits(const struct scheduler *sched)
{
    return scheduler_config_limits(&sched->config);
}

struct batch_limits scheduler_config_limits(const struct scheduler_config *c)
{
    int64_t pages = (int64_t)c->max_running * pages_for(c->max_model_len);

    ASSERT(pages <= INT32_MAX);
    return (struct batch_limits){.max_rows = c->max_rows,
                                 .max_seqs = c->max_running,
                                 .max_pages = (int32_t)pages,
                                 .max_logits = c->max_running + c->max_scored};
}

/* Whether `a` is served before `b`. */
static bool before(const struct seq *a, const struct seq *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
}

static void order_insert(struct scheduler *sched, struct order *order, int32_t slot)
{
    int32_t at = order->n++;

    while (at > 0 && before(&sched->seqs[slot], &sched->seqs[order->slots[at - 1]])) {
        order->slots[at] = order->slots[at - 1];
        at--;
    }
    order->slots[at] = slot;
}

static void order_remove(struct order *order, int32_t slot)
{
    int32_t at = 0;

    while (order->slots[at] != slot)
        ASSERT(++at < order->n);
    order->n--;
    memmove(order->slots + at, order->slots + at + 1,
            (size_t)(order->n - at) * sizeof(*order->slots));
}

static struct seq *live_seq(struct scheduler *sched, int32_t slot)
{
    ASSERT(slot >= 0 && slot < sched->config.slots);
    ASSERT(sched->seqs[slot].state != SEQ_NONE);
    return &sched->seqs[slot];
}

void scheduler_add(struct scheduler *sched, int32_t slot, const struct scheduler_request *request)
{
    int32_t n = request->n_tokens;

    ASSERT(slot >= 0 && slot < sched->config.slots);
    ASSERT(n > 0 && request->max_new_tokens > 0);
    ASSERT(n <= sched->config.max_model_len - request->max_new_tokens);
    struct seq *seq = &sched->seqs[slot];
    ASSERT(seq->state == SEQ_NONE);

    *seq = (struct seq){
        .state = SEQ_WAITING,
        .priority = request->priority,
        .arrival = sched->next_arrival++,
        .cache_salt = request->cache_salt,
        .score_prompt = request->score_prompt,
        .needs_tokens = request->needs_tokens,
        .max_tokens = n + request->max_new_tokens,
        .n_prompt = n,
        .n_tokens = n,
        .n_cached_prompt = -1,
    };
    seq->tokens = mem_alloc((size_t)seq->max_tokens * sizeof(*seq->tokens));
    memcpy(seq->tokens, request->tokens, (size_t)n * sizeof(*seq->tokens));
    kv_seq_init(&seq->kv, pages_for(seq->max_tokens), request->cache_salt);
    order_insert(sched, &sched->waiting, slot);
}

void scheduler_remove(struct scheduler *sched, int32_t slot)
{
    struct seq *seq = live_seq(sched, slot);

    order_remove(seq->state == SEQ_RUNNING ? &sched->running : &sched->waiting, slot);
    kv_cache_release(sched->kv, &seq->kv, seq->cache_salt);
    kv_seq_free(&seq->kv);
    free(seq->tokens);
    *seq = (struct seq){0};
}

static void preempt(struct scheduler *sched, int32_t slot)
{
    struct seq *seq = live_seq(sched, slot);

    order_remove(&sched->running, slot);
    kv_cache_release(sched->kv, &seq->kv, seq->cache_salt);
    seq->n_computed = 0;
    seq->run = 0;
    seq->state = SEQ_WAITING;
    order_insert(sched, &sched->waiting, slot);
    sched->preemptions++;
}

/* Whether all but the newest token are computed, and that one was generated. */
static bool is_generating(const struct seq *seq)
{
    return seq->n_tokens > seq->n_prompt && seq->n_computed == seq->n_tokens - 1;
}

/* Whether nothing can be planned for the sequence before its pending token is known: it may be the
 * last, or the sampler needs to know it. */
static bool waits_for_token(const struct seq *seq)
{
    return seq->n_pending > 0 && (seq->needs_tokens || seq->n_tokens == seq->max_tokens);
}

/* How many rows of a prompt whose logits are wanted still fit: a logit row is kept free for each
 * sequence that may come behind it. */
static int32_t scored_left(const struct scheduler *sched, const struct batch *batch)
{
    int32_t others = sched->config.max_running - batch->n_seqs;

    return batch->limits.max_logits - batch->n_logits - others;
}

/* Puts the sequence's next tokens into the batch: at most `budget`, and never across the end of
 * the prompt, since prompt and generated tokens take different forms of attention. A scored prompt
 * for which no logit rows are left waits for the next step. */
static void plan_rows(struct scheduler *sched, struct batch *batch, int32_t slot, int32_t budget)
{
    struct seq *seq = &sched->seqs[slot];
    bool in_prompt = seq->n_computed < seq->n_prompt;
    bool scored = in_prompt && seq->score_prompt;
    int32_t end = in_prompt ? seq->n_prompt : seq->n_tokens;
    int32_t known = seq->n_tokens - seq->n_pending;

    if (!is_generating(seq) || waits_for_token(seq))
        end = end < known ? end : known; /* preempted with a token still to come */
    if (scored && budget > scored_left(sched, batch))
        budget = scored_left(sched, batch);
    if (end > seq->n_computed + budget)
        end = seq->n_computed + budget;
    if (end <= seq->n_computed)
        return;
    struct batch_seq part = {
        .slot = slot,
        .n_rows = end - seq->n_computed,
        .kv_len = end,
        .absorbed = !in_prompt,
        .wants_logits = end == seq->n_tokens,
        .score_end = scored ? seq->n_prompt : 0,
    };
    batch_add(batch, part, seq->tokens + seq->n_computed, seq->kv.pages,
              seq->n_tokens - seq->n_prompt);

    struct step *step = &sched->steps[sched->n_steps];
    step->parts[step->n_parts++] = (struct part){.run = seq->run, .slot = slot, .kv_len = end};
    seq->n_computed = end;
    if (part.wants_logits) {
        seq->tokens[seq->n_tokens++] = PENDING;
        seq->n_pending++;
    }
}

/* Every generating sequence gets its token, in order; the last ones make room for the first. */
static void plan_generating(struct scheduler *sched, struct batch *batch)
{
    for (int32_t i = 0; i < sched->running.n; i++) {
        int32_t slot = sched->running.slots[i];
        struct seq *seq = &sched->seqs[slot];
        if (!is_generating(seq) || waits_for_token(seq))
            continue;
        while (seq->state == SEQ_RUNNING && !kv_cache_grow(sched->kv, &seq->kv, seq->n_tokens))
            preempt(sched, sched->running.slots[sched->running.n - 1]);
        if (seq->state == SEQ_RUNNING)
            plan_rows(sched, batch, slot, 1);
    }
}

static int32_t budget_left(const struct scheduler *sched, const struct batch *batch)
{
    return sched->config.max_rows - batch->n_rows;
}

/* Running sequences that still have tokens to compute take chunks of what is left. */
static void plan_chunks(struct scheduler *sched, struct batch *batch)
{
    for (int32_t i = 0; i < sched->running.n && budget_left(sched, batch) > 0; i++) {
        int32_t slot = sched->running.slots[i];
        if (!is_generating(&sched->seqs[slot]))
            plan_rows(sched, batch, slot, budget_left(sched, batch));
    }
}

/* Gives the first waiting sequence its pages. Unless it would run alone, it leaves a page for each
 * running sequence, so that admitting it doesn't preempt one in the next steps. */
static bool admit(struct scheduler *sched, int32_t slot)
{
    struct seq *seq = &sched->seqs[slot];
    int32_t cached =
        seq->score_prompt ? 0 : kv_cache_match(sched->kv, &seq->kv, seq->tokens, seq->n_tokens);
    int32_t want = pages_for(seq->n_tokens) - seq->kv.n_pages;
    int32_t reserve = sched->running.n;

    if (kv_cache_available(sched->kv) < want + reserve ||
        !kv_cache_grow(sched->kv, &seq->kv, seq->n_tokens)) {
        kv_cache_release(sched->kv, &seq->kv, seq->cache_salt);
        return false;
    }
    seq->n_computed = cached;
    seq->run = sched->next_run++;
    if (seq->n_cached_prompt < 0) {
        seq->n_cached_prompt = cached;
        if (!seq->score_prompt)
            kv_cache_count_match(sched->kv, seq->n_tokens, cached);
    }
    seq->state = SEQ_RUNNING;
    order_remove(&sched->waiting, slot);
    order_insert(sched, &sched->running, slot);
    return true;
}

static void plan_admissions(struct scheduler *sched, struct batch *batch)
{
    while (sched->waiting.n > 0 && sched->running.n < sched->config.max_running &&
           budget_left(sched, batch) > 0) {
        int32_t slot = sched->waiting.slots[0];
        if (!admit(sched, slot))
            break;
        plan_rows(sched, batch, slot, budget_left(sched, batch));
    }
}

void scheduler_plan(struct scheduler *sched, struct batch *batch)
{
    ASSERT(sched->n_steps < SCHEDULER_MAX_STEPS);
    batch_clear(batch);
    sched->steps[sched->n_steps].n_parts = 0;
    plan_generating(sched, batch);
    plan_chunks(sched, batch);
    plan_admissions(sched, batch);
    ASSERT(batch->n_rows > 0 || sched->n_steps > 0 || sched->running.n + sched->waiting.n == 0);
    if (batch->n_rows > 0)
        sched->n_steps++;
}

void scheduler_advance(struct scheduler *sched)
{
    ASSERT(sched->n_steps > 0);
    struct step done = sched->steps[0];

    for (int32_t i = 0; i < done.n_parts; i++) {
        struct seq *seq = &sched->seqs[done.parts[i].slot];
        if (seq->run == done.parts[i].run)
            kv_cache_commit(sched->kv, &seq->kv, seq->tokens, done.parts[i].kv_len);
    }
    sched->n_steps--;
    for (int i = 0; i < sched->n_steps; i++)
        sched->steps[i] = sched->steps[i + 1];
    sched->steps[sched->n_steps] = done; /* its memory is used again */
}

void scheduler_append(struct scheduler *sched, int32_t slot, int32_t token)
{
    struct seq *seq = live_seq(sched, slot);

    ASSERT(seq->n_pending > 0);
    seq->tokens[seq->n_tokens - seq->n_pending--] = token;
}

const int32_t *scheduler_generated(const struct scheduler *sched, int32_t slot, int32_t *n)
{
    const struct seq *seq = &sched->seqs[slot];

    *n = seq->n_tokens - seq->n_pending - seq->n_prompt;
    return seq->tokens + seq->n_prompt;
}

int32_t scheduler_cached_tokens(const struct scheduler *sched, int32_t slot)
{
    return sched->seqs[slot].n_cached_prompt;
}

struct scheduler_stats scheduler_stats(const struct scheduler *sched)
{
    return (struct scheduler_stats){
        .running = sched->running.n,
        .waiting = sched->waiting.n,
        .preemptions = sched->preemptions,
        .kv = kv_cache_stats(sched->kv),
    };
}
