/* Which sequences run in the next step, and with how many tokens. Pure host code: it knows tokens,
 * pages and priorities; nothing of HTTP, text or devices.
 *
 *      add                    plan: admitted               sampled token needs no more
 *    ------> WAITING -------------------------> RUNNING ---------------------------> (remove)
 *               ^                                  |
 *               '----------------------------------'
 *                 plan: preempted (pages released; what was computed is computed again)
 *
 * Each step spends a budget of query tokens: sequences that generate come first, one token each;
 * then chunks of prompts, by priority and arrival. A prompt gets all its pages when it is admitted;
 * a sequence that generates takes a page when it crosses into one, and when none is left the
 * running sequence that is last in (priority, arrival) gives its pages back.
 *
 * Look-ahead: a step may be planned before the tokens of the one before it are known. Such a token
 * is pending; in the next batch it stands as -1, which the backend takes from its own memory. A
 * sequence that ends, or is preempted, while a step that writes its pages is under way gives them
 * back at once all the same: steps run in order, so whoever gets a page writes it after that. */
#pragma once

#include "kernels/batch.h"
#include "server/kv_cache.h"

#include <stdbool.h>
#include <stdint.h>

struct scheduler;

enum { SCHEDULER_MAX_STEPS = 2 }; /* planned and not yet advanced */

struct scheduler_config {
    int32_t slots;         /* sequences it can hold, waiting ones included */
    int32_t max_running;   /* sequences of one step */
    int32_t max_rows;      /* query tokens of one step; >= max_running */
    int32_t max_scored;    /* rows of one step that may be scored; > 0 */
    int32_t max_model_len; /* tokens of one sequence; its pages fit in the cache */
    int32_t kv_pages;
    bool prefix_caching;
};

struct scheduler *scheduler_new(const struct scheduler_config *config);
void scheduler_free(struct scheduler *sched);

/* The limits of the batches it plans, which its configuration decides (but for kv_pages). */
struct batch_limits scheduler_limits(const struct scheduler *sched);
struct batch_limits scheduler_config_limits(const struct scheduler_config *config);

struct scheduler_request {
    const int32_t *tokens; /* the prompt */
    int32_t n_tokens;
    int32_t max_new_tokens;
    int32_t priority;
    uint64_t cache_salt;
    bool score_prompt; /* the logits of its prompt's rows are wanted: nothing comes from the cache
                        */
    bool needs_tokens; /* no step of it is planned before its last token is known */
};

/* Adds a waiting sequence in the free slot `slot`. The tokens are copied. A smaller priority runs
 * earlier; equal ones in order of arrival. max_new_tokens bounds what scheduler_append adds; prompt
 * and new tokens together fit in max_model_len (asserted). */
void scheduler_add(struct scheduler *sched, int32_t slot, const struct scheduler_request *request);

/* Takes a sequence out, whatever its state, and releases its pages. */
void scheduler_remove(struct scheduler *sched, int32_t slot);

/* Plans the next step into `batch` (cleared first), with fewer than SCHEDULER_MAX_STEPS under way.
 * The batch is empty when nothing can run: when no sequence is there, or all wait for tokens of the
 * steps under way. */
void scheduler_plan(struct scheduler *sched, struct batch *batch);

/* The oldest step under way was computed: its rows are in the cache. Before scheduler_append. */
void scheduler_advance(struct scheduler *sched);

/* The token sampled for a sequence whose logits the step gave: its oldest pending one. */
void scheduler_append(struct scheduler *sched, int32_t slot, int32_t token);

/* The tokens a sequence has generated and that are known, valid until the next call; `*n` of them.
 */
const int32_t *scheduler_generated(const struct scheduler *sched, int32_t slot, int32_t *n);

/* Prompt tokens that were found in the cache when the sequence was first admitted; -1 before. */
int32_t scheduler_cached_tokens(const struct scheduler *sched, int32_t slot);

struct scheduler_stats {
    int32_t running, waiting;
    int64_t preemptions; /* ever */
    struct kv_cache_stats kv;
};

struct scheduler_stats scheduler_stats(const struct scheduler *sched);
