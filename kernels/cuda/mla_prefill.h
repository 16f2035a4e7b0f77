/* What the parts of mla_prefill share (mla_prefill.cu says how they fit together). */
#pragma once

#include "kernels/mla.h"

#include <cuda.h>
#include <stdint.h>

enum {
    PREFILL_ROWS = 128,  /* query rows of a tile */
    PREFILL_BLOCK = 128, /* tokens: where pieces may end, and what segments are padded to */
    PREFILL_THREADS = 256,
};

/* Up to PREFILL_ROWS query rows of a sequence, and what they see of the sequence in one piece. */
struct prefill_tile {
    int32_t row;       /* of its first query */
    int32_t rows;      /* 1 .. PREFILL_ROWS */
    int32_t position;  /* of its first query */
    int32_t kv_row;    /* in the piece: the sequence's first token there */
    int32_t kv_first;  /* position of that token; a multiple of PREFILL_BLOCK */
    int32_t kv_tokens; /* from there on, what the last query sees of the piece */
    int32_t state;     /* index of its unfinished softmax, if it isn't done in one piece */
    int32_t last;      /* 1: the result is finished in this piece; starts in it: kv_first is 0 */
};

/* PREFILL_BLOCK rows of a piece: tokens of one sequence, the rest 0. */
struct prefill_block {
    int32_t position; /* of the first; a multiple of PREFILL_BLOCK */
    int32_t tokens;   /* 1 .. PREFILL_BLOCK */
    int32_t table;    /* first entry of the sequence's block table */
    int32_t unused;
};

/* One launch: every tile of a piece, times a group of heads. */
struct prefill_attend {
    CUtensorMap q_map;    /* (query rows, heads * (nope + rope)); box 64 x PREFILL_ROWS */
    CUtensorMap kv_map;   /* (piece rows, group * (nope + v)); box 64 x the kernel's KV block */
    CUtensorMap rope_map; /* (piece rows, rope); the same box */
    const struct prefill_tile *tiles;
    int32_t n_tiles;
    int32_t heads;      /* of q and out */
    int32_t first_head; /* of the group */
    int32_t group;      /* heads of it */
    int32_t section;    /* heads that are worked on together, so that their K and V stay in L2 */
    float scale_log2;   /* softmax scale times log2(e) */
    int32_t *counter;   /* next work item; 0 at launch */
    void *out;          /* bf16 (query rows, heads, v) */
    float *lse;         /* (query rows, heads) or NULL */
    float *state; /* per tile and head of the group, as prefill_state_floats; kernels' own order */

    /* Only for the plain kernel, which uses no maps. */
    const void *q, *kv, *rope;
    int32_t nope_dim, rope_dim, v_dim;
};

/* Floats of the unfinished softmax of a tile and head. */
constexpr int64_t prefill_state_floats(int32_t v_dim)
{
    return (int64_t)PREFILL_THREADS * ((v_dim + 1) / 2 + 4);
}

/* Attention kernels; each returns an enum mla_status. The first two serve heads of 128 + 64 / 128
 * and of 192 + 64 / 256, with KV blocks (boxes of kv_map and rope_map) of that many tokens. */
enum { PREFILL_KV_128 = 128, PREFILL_KV_256 = 64 };

int prefill_attend_128(const struct prefill_attend *p, int sms, mla_stream stream);
int prefill_attend_256(const struct prefill_attend *p, int sms, mla_stream stream);
int prefill_attend_plain(const struct prefill_attend *p, mla_stream stream);

/* Cache rows of a piece's blocks into latent (rows, latent_dim) and rope (rows, rope_dim), bf16. */
int prefill_gather(const struct mla_cache *cache, const int32_t *block_tables,
                   const struct prefill_block *blocks, int n_blocks, void *latent, void *rope,
                   mla_stream stream);

/* out (rows, columns) = latent (rows, k) times kv_b (columns, k) transposed, on Hopper;
 * MLA_UNSUPPORTED unless k is 256 or 512. */
int prefill_expand(void *out, const void *latent, const void *kv_b, int32_t rows, int32_t columns,
                   int32_t k, int sms, mla_stream stream);

/* How many heads are worked on together: as many as L2 holds, but all where there are so few items
 * that only longest-first over all of them balances the multiprocessors. */
int32_t prefill_section(int32_t tiles, int32_t heads, int64_t head_bytes, int sms);
