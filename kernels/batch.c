#include "kernels/batch.h"

#include "base/memory.h"
#include "base/panic.h"

#include <stdbool.h>
#include <string.h>

struct batch *batch_new(struct batch_limits limits)
{
    size_t at = sizeof(struct batch);
    size_t rows = (size_t)limits.max_rows, seqs = (size_t)limits.max_seqs;

    if (limits.max_logits == 0)
        limits.max_logits = limits.max_seqs;
    size_t logits = (size_t)limits.max_logits;

    ASSERT(limits.max_rows > 0 && limits.max_seqs > 0 && limits.max_pages > 0);
    size_t tokens_at = at;
    size_t positions_at = tokens_at + rows * sizeof(int32_t);
    size_t seqs_at = positions_at + rows * sizeof(int32_t);
    size_t logits_at = seqs_at + seqs * sizeof(struct batch_seq);
    size_t pages_at = logits_at + logits * sizeof(struct batch_logit);
    size_t bytes = pages_at + (size_t)limits.max_pages * sizeof(int32_t);
    ASSERT(bytes <= UINT32_MAX);

    struct batch *batch = mem_zalloc(1, bytes);
    batch->limits = limits;
    batch->tokens_at = (uint32_t)tokens_at;
    batch->positions_at = (uint32_t)positions_at;
    batch->seqs_at = (uint32_t)seqs_at;
    batch->logits_at = (uint32_t)logits_at;
    batch->pages_at = (uint32_t)pages_at;
    batch->bytes = (uint32_t)bytes;
    return batch;
}

void batch_clear(struct batch *batch)
{
    batch->n_rows = batch->n_seqs = batch->n_pages = batch->n_logits = batch->draft = 0;
}

/* The rows of the sequence that are scored, and the one that is drawn from. */
static void add_logits(struct batch *batch, const struct batch_seq *seq, const int32_t *tokens,
                       int32_t step)
{
    for (int32_t i = 0; i < seq->n_rows; i++) {
        int32_t next = seq->kv_len - seq->n_rows + i + 1; /* position */
        bool scored = next < seq->score_end;
        if (!scored && (i < seq->n_rows - 1 || !seq->wants_logits))
            continue;
        ASSERT(batch->n_logits < batch->limits.max_logits);
        batch_logits(batch)[batch->n_logits++] =
            (struct batch_logit){.row = seq->first_row + i,
                                 .slot = seq->slot,
                                 .step = step,
                                 .target = scored ? tokens[i + 1] : -1};
    }
}

void batch_add(struct batch *batch, struct batch_seq seq, const int32_t *tokens,
               const int32_t *pages, int32_t step)
{
    seq.first_row = batch->n_rows;
    seq.first_page = batch->n_pages;
    seq.n_pages = (seq.kv_len + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    ASSERT(seq.n_rows > 0 && seq.kv_len >= seq.n_rows);
    ASSERT(batch->n_rows + seq.n_rows <= batch->limits.max_rows);
    ASSERT(batch->n_seqs < batch->limits.max_seqs);
    ASSERT(batch->n_pages + seq.n_pages <= batch->limits.max_pages);

    for (int32_t i = 0; i < seq.n_rows; i++) {
        batch_tokens(batch)[seq.first_row + i] = tokens[i];
        batch_positions(batch)[seq.first_row + i] = seq.kv_len - seq.n_rows + i;
    }
    memcpy(batch_pages(batch) + seq.first_page, pages, (size_t)seq.n_pages * sizeof(*pages));
    add_logits(batch, &seq, tokens, step);
    batch_seqs(batch)[batch->n_seqs++] = seq;
    batch->n_rows += seq.n_rows;
    batch->n_pages += seq.n_pages;
}
