/* One step's work, as plain data: what the scheduler decides, what every rank's forward pass reads.
 *
 * A batch is one block of memory without pointers inside, so it can be copied to a device or sent
 * to another host as it is. Rows are query tokens; the rows of a sequence stand together, and
 * sequences stand in the order of `seqs`. Arrays are reached through the functions below. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { KV_PAGE_TOKENS = 64 }; /* tokens of one KV cache page */

struct batch_limits {
    int32_t max_rows;   /* query tokens of one step: the token budget */
    int32_t max_seqs;   /* sequences of one step */
    int32_t max_pages;  /* block-table entries of all its sequences */
    int32_t max_logits; /* rows whose logits are computed; 0: max_seqs */
};

/* One sequence's part of a step. Its KV cache holds `kv_len` tokens once this step's rows are
 * written; row r of it stands at position kv_len - n_rows + r and attends to positions 0..itself.
 *
 * `absorbed` chooses the form of attention: 0 for prompt tokens (expanded heads), 1 for generated
 * tokens (latent space), also when they are recomputed. The form follows from the token's place in
 * the sequence alone, never from the batch: that keeps results the same bits however steps are cut.
 */
struct batch_seq {
    int32_t slot;      /* which sampler state and which request: index below the engine's slots */
    int32_t first_row; /* of its rows in the batch */
    int32_t n_rows;
    int32_t kv_len;
    int32_t first_page; /* its block table: batch_pages()[first_page .. + n_pages) */
    int32_t n_pages;    /* ceil(kv_len / KV_PAGE_TOKENS) */
    int32_t absorbed;
    int32_t wants_logits; /* 1: its last row's logits are sampled this step */
    int32_t score_end;    /* rows whose next position is below it are scored: the logits say how
                             likely the next token, which is known, was; 0: none */
};

/* A row whose logits are computed, to draw a token or to score the one that follows. */
struct batch_logit {
    int32_t row;    /* in the batch */
    int32_t slot;   /* sampler state */
    int32_t step;   /* how many tokens the sequence has generated before: the random counter */
    int32_t target; /* the token to score; -1: one is drawn */
};

struct batch {
    struct batch_limits limits;
    int32_t n_rows, n_seqs, n_pages, n_logits;
    int32_t draft; /* 1: rows of a layer of multi-token prediction; the caller sets it once rows are
                      in */
    /* Byte offsets from the start of the struct. */
    uint32_t tokens_at, positions_at, seqs_at, logits_at, pages_at;
    uint32_t bytes;
};

/* A batch with room for `limits`, empty. Free with free(). */
struct batch *batch_new(struct batch_limits limits);

/* Empties the batch. */
void batch_clear(struct batch *batch);

/* Appends a sequence: `tokens` are its `seq.n_rows` query tokens (and, up to score_end, those that
 * follow), `pages` its block table. The caller gives slot, n_rows, kv_len, absorbed, wants_logits
 * and score_end; the rest is filled in here. `step` is for the logit row. The limits must hold
 * (asserted). */
void batch_add(struct batch *batch, struct batch_seq seq, const int32_t *tokens,
               const int32_t *pages, int32_t step);

static inline int32_t *batch_tokens(const struct batch *b) /* (n_rows) */
{
    return (int32_t *)((char *)b + b->tokens_at);
}

static inline int32_t *batch_positions(const struct batch *b) /* (n_rows) */
{
    return (int32_t *)((char *)b + b->positions_at);
}

static inline struct batch_seq *batch_seqs(const struct batch *b) /* (n_seqs) */
{
    return (struct batch_seq *)((char *)b + b->seqs_at);
}

static inline struct batch_logit *batch_logits(const struct batch *b) /* (n_logits) */
{
    return (struct batch_logit *)((char *)b + b->logits_at);
}

static inline int32_t *batch_pages(const struct batch *b) /* (n_pages) */
{
    return (int32_t *)((char *)b + b->pages_at);
}
