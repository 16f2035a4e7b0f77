/* Which pages of the KV cache belong to which sequence: reference counts, reuse of prompts that
 * begin alike, eviction. Pure host bookkeeping over page numbers; the memory is the model's.
 *
 * A page holds KV_PAGE_TOKENS tokens. Once all of them are written the page is committed: it is
 * registered under (the page before it, its tokens), so a later sequence that begins with the same
 * tokens finds it. The tokens themselves are compared, never only a hash: a collision can't show
 * one client another's text. Committed pages that no sequence uses stay, oldest use first to go.
 *
 *              grow                 commit                  release
 *     free ------------> in use ------------> in use,  ------------> unused, registered (LRU)
 *      ^                   |  release         registered <-----------        |
 *      |<------------------'                                match            |
 *      '<--------------------------------------------------------------------' evicted by grow */
#pragma once

#include "kernels/batch.h"

#include <stdbool.h>
#include <stdint.h>

struct kv_cache;

/* A sequence's place in the cache. Made empty by kv_seq_init. */
struct kv_seq {
    int32_t *pages; /* block table; the first n_pages entries count */
    int32_t n_pages;
    int32_t max_pages;
    int32_t n_committed; /* pages, from the first */
    uint64_t chain;      /* what the next page to commit is registered under */
};

struct kv_cache *kv_cache_new(int32_t n_pages, bool prefix_caching);
void kv_cache_free(struct kv_cache *kv);

/* `salt` keeps the pages of tenants apart: sequences share pages only when theirs are equal. */
void kv_seq_init(struct kv_seq *seq, int32_t max_pages, uint64_t salt);
void kv_seq_free(struct kv_seq *seq); /* must hold no pages */

/* Gives an empty sequence the longest registered beginning of `tokens`, in whole pages, leaving at
 * least one token to compute. Returns the number of tokens covered. */
int32_t kv_cache_match(struct kv_cache *kv, struct kv_seq *seq, const int32_t *tokens,
                       int32_t n_tokens);

/* Counts a match that led to something: one that is tried again until there are pages, or after a
 * preemption, is counted once. */
void kv_cache_count_match(struct kv_cache *kv, int32_t n_tokens, int32_t n_found);

/* Adds pages so that the sequence has room for `n_tokens`. False, with nothing changed, when there
 * are not enough. */
bool kv_cache_grow(struct kv_cache *kv, struct kv_seq *seq, int32_t n_tokens);

/* The first `n_written` tokens of the sequence are in its pages now: registers the full ones. */
void kv_cache_commit(struct kv_cache *kv, struct kv_seq *seq, const int32_t *tokens,
                     int32_t n_written);

/* Takes all pages from the sequence; it is as after kv_seq_init, with `salt`. */
void kv_cache_release(struct kv_cache *kv, struct kv_seq *seq, uint64_t salt);

struct kv_cache_stats {
    int32_t pages;
    int32_t pages_used;     /* by sequences now */
    int64_t queried_tokens; /* looked up, as kv_cache_count_match was told */
    int64_t hit_tokens;     /* of these, found */
};

struct kv_cache_stats kv_cache_stats(const struct kv_cache *kv);

/* Pages that kv_cache_grow can still hand out. */
int32_t kv_cache_available(const struct kv_cache *kv);
