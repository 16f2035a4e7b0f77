/* libmla: Multi-head Latent Attention for NVIDIA Hopper GPUs (sm_90a), over a paged KV cache.
 *
 * A C ABI over device pointers and a CUDA stream; it needs the CUDA runtime and driver and nothing
 * else of this project. Calls queue their work on the stream and return: they allocate nothing,
 * wait for nothing and read no device memory on the host, so each can be captured in a CUDA graph,
 * and lengths, block tables and queries may change between its replays. Every pointer is to device
 * memory unless it is said to be on the host, and stays the caller's.
 *
 * Terms (DeepSeek-V2, section 2.1): a token's cache row is its normalised latent (latent_dim, the
 * kv_lora_rank) and its rotated key part (rope_dim), shared by all heads. A page holds
 * MLA_PAGE_TOKENS rows. Position p of a sequence stands in row p % 64 of page block_table[p / 64].
 *
 * Row layouts, by enum mla_kv_format:
 *   MLA_KV_BF16  latent_dim + rope_dim bf16                                  (512 + 64: 1152 bytes)
 *   MLA_KV_FP8   latent_dim e4m3, then latent_dim / 128 float scales (powers of two), then rope_dim
 *                bf16: value = e4m3 * scale of its 128                        (512 + 64: 656 bytes)
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MLA_PAGE_TOKENS = 64,
    MLA_MAX_HEADS = 128,
};

enum mla_kv_format { MLA_KV_BF16, MLA_KV_FP8 };

enum mla_status {
    MLA_OK = 0,
    MLA_INVALID = -1,     /* an argument is out of its range */
    MLA_UNSUPPORTED = -2, /* no kernel for these dimensions on this GPU */
    MLA_CUDA = -3,        /* a launch failed: cudaGetLastError says why */
};

struct CUstream_st;
typedef struct CUstream_st *mla_stream; /* a cudaStream_t */

/* One layer's cache. Latent and rope sizes: 512 + 64, 256 + 64, 256 + 32. */
struct mla_cache {
    void *pages;         /* 128-byte aligned */
    int64_t page_stride; /* bytes from one page to the next; a multiple of 16 */
    int32_t n_pages;     /* block tables hold 0 .. n_pages - 1 in their used entries */
    int32_t latent_dim;
    int32_t rope_dim;
    int32_t format; /* enum mla_kv_format */
};

/* The sequences of a call. Query rows of a sequence stand together, in order of position; its last
 * query is at position kv_len - 1. Entries of a block table past ceil(kv_len / 64) and rows of the
 * last page past kv_len are never used and may hold anything. */
struct mla_seqs {
    int32_t n_seqs;
    int32_t query_rows;          /* rows of q, out and lse */
    int32_t max_q_len;           /* no q_len is larger */
    const int32_t *q_starts;     /* (n_seqs) first query row; NULL: i * max_q_len */
    const int32_t *q_lens;       /* (n_seqs) 0: the sequence is passed over; NULL: all max_q_len */
    const int32_t *kv_lens;      /* (n_seqs) tokens in the cache, those of the queries included */
    const int32_t *block_tables; /* page numbers of all sequences */
    const int32_t *table_starts; /* (n_seqs) a sequence's first entry; NULL: i * table_stride */
    int32_t table_stride; /* with table_starts: entries of block_tables that may be read, in all; 0
                             when that isn't known, which costs a decode call a wait */
};

/* ---- decode: queries in latent space, all heads share a row ------------------------------------
 *
 * out[r, h] = sum over t of softmax_t(softmax_scale * q[r, h] . row(t)) * latent(t), over
 * t <= position of r when causal, else over all t < kv_len. A query that sees no token gets out = 0
 * and lse = +infinity. Sums are kept in float; the same inputs give the same bits.
 *
 * Kernels queued so that they may start early (programmatic dependent launch) wait for the one
 * ahead before they read what it writes. With `settled` the caller says that much of a call's input
 * was complete before the kernel just ahead in the stream could start: all of `seqs`' arrays, and
 * the cache's rows but each sequence's last q_len (a decode step's own). Then the call reads these
 * while that kernel still runs. q, and those last rows, may be what it writes. Said wrongly,
 * results are wrong, or the call ends in a fault, if it ends.
 *
 * Blocks of a call wait for each other, so one call runs at a time on a GPU: two on two streams
 * might each have a part of the processors, and wait until a fault ends them. */
struct mla_decode_args {
    struct mla_cache cache;
    struct mla_seqs seqs;
    const void *q; /* bf16 (query rows, heads, latent_dim + rope_dim); 16-byte aligned */
    void *out;     /* bf16 (query rows, heads, latent_dim); 16-byte aligned */
    float *lse; /* (query rows, heads) natural log of the sum of exponentials; NULL: not wanted */
    int32_t heads;       /* 1 .. MLA_MAX_HEADS */
    float softmax_scale; /* of the model: (nope + rope)^-0.5 times YaRN's mscale^2 */
    int32_t causal;
    int32_t batch_invariant; /* a sequence's bits depend on nothing but the sequence and its q_len;
                                some slower */
    int32_t settled;         /* see above; 0 is always right */
    int32_t next_late;       /* what is queued next asks for much memory as soon as it may start: it
                                may once this call has asked for its own */
    void *workspace;         /* of mla_decode_workspace bytes, zeroed once before its first use;
                                calls that share one must not run at the same time, and those of
                                the same lengths find each other's plan there; of no use any more
                                after a call that failed */
    size_t workspace_bytes;
};

int mla_decode(const struct mla_decode_args *args, mla_stream stream);

/* Bytes of workspace that serve every call on the current device with at most so many sequences and
 * rows, and with these heads. 0 when the device can't be read. */
size_t mla_decode_workspace(int32_t n_seqs, int32_t query_rows, int32_t heads, int32_t latent_dim);

/* ---- cache write: where a token enters the cache ------------------------------------------------
 *
 * For each row: the latent of kv divided by its root mean square and times norm, the rope part
 * rotated to the row's position, both stored at the row's slot; and the rope part of each head of q
 * rotated in place. Computed in float, rounded once. */

enum { MLA_MAX_ROPE = 128, MLA_ABSORB_ROWS = 8 };

/* Rotary embedding. Angle of pair i at position p: p * inv_freq[i], a float product. */
struct mla_rope {
    int32_t half_split; /* 0: pairs (2i, 2i + 1); 1: pairs (i, i + rope_dim / 2) */
    float magnitude;    /* factor on cos and sin (YaRN's mscale ratio; 1 otherwise) */
    float inv_freq[MLA_MAX_ROPE / 2];
};

struct mla_write_args {
    struct mla_cache cache; /* latent_dim to 1024 that 4 (FP8: 128) divides, even rope_dim */
    int32_t rows;
    const int32_t *positions; /* (rows) */
    const int64_t *slots;     /* (rows) page * 64 + offset; -1: the row is not stored */
    const void *kv;           /* bf16 (rows, latent_dim + rope_dim); 8-byte aligned; NULL: none */
    int64_t kv_stride;        /* elements from one row of kv to the next; a multiple of 4 */
    const float *norm;        /* (latent_dim); 16-byte aligned */
    float eps;
    void *q; /* bf16 (rows, heads, nope_dim + rope_dim); NULL: none */
    int32_t heads;
    int32_t nope_dim;
    struct mla_rope rope;

    /* Of the first absorbed_rows rows (0: none) the rotated part is not put back into q but to the
     * end of the heads' rows for mla_decode: bf16 (absorbed_rows, heads, latent_dim + rope_dim). */
    void *q_absorbed;
    int32_t absorbed_rows;

    /* With kv_b (as mla_prefill has it), the rest of the heads' rows in q_absorbed is written too:
     * W_UK^T q_nope. For at most MLA_ABSORB_ROWS rows, all of them absorbed ones; nope_dim a
     * multiple of 8 to 256, latent_dim of 64, rope_dim of 16. NULL: it isn't. */
    const void *kv_b;
    int32_t v_dim;

    /* With kv_b: sequences whose rows of the cache are brought to L2 while the kernel ahead still
     * runs, since mla_decode reads them next: these arrays were complete before that one could
     * start. n_seqs 0: none. */
    struct mla_seqs seqs;

    int32_t settled; /* with kv_b: the positions were complete before the kernel just ahead in the
                        stream could start (see mla_decode_args); 0 is always right */
};

int mla_write(const struct mla_write_args *args, mla_stream stream);

/* ---- prefill: queries against keys and values of each head --------------------------------------
 *
 * K(t) = [W_UK latent(t), rope key(t)], V(t) = W_UV latent(t), rounded to bf16;
 * out[r, h] = sum over t <= position of r of softmax_t(softmax_scale * q[r, h] . K(t)) * V(t).
 * The chunk's own tokens are read from the cache too: mla_write comes first. The context is cut in
 * pieces that fit the workspace; where they end changes no bit of the result, and neither do the
 * other sequences of the call or how a prompt was cut in chunks. Fast for nope + rope / v of
 * 128 + 64 / 128 and 192 + 64 / 256 with a bf16 or FP8 cache; any sizes to 256 work.
 *
 * The arrays of `seqs` other than block_tables are on the HOST here, and are read before the call
 * returns (max_q_len and table_stride serve as elsewhere); a graph keeps the lengths that it was
 * captured with. A query row that no sequence has is not written. nope + v and rope_dim are
 * multiples of 8, latent_dim of 8 (FP8: 128). */
struct mla_prefill_args {
    struct mla_cache cache;
    struct mla_seqs seqs;
    const void *q;    /* bf16 (query rows, heads, nope_dim + rope_dim); 16-byte aligned */
    const void *kv_b; /* bf16 (heads * (nope_dim + v_dim), latent_dim), per head W_UK then W_UV */
    void *out;        /* bf16 (query rows, heads, v_dim); 16-byte aligned */
    float *lse;       /* (query rows, heads) as in mla_decode; NULL: not wanted */
    int32_t heads;    /* 1 .. MLA_MAX_HEADS */
    int32_t nope_dim;
    int32_t v_dim;
    float softmax_scale;
    void *workspace; /* 256-byte aligned; calls that share one must not run at the same time */
    size_t workspace_bytes;
};

int mla_prefill(const struct mla_prefill_args *args, mla_stream stream);

/* Bytes of workspace that serve every call of up to n_seqs sequences whose q_lens sum to at most
 * query_rows, with pieces of about kv_tokens of 16 heads (16384 is plenty; 1 works, slowly). Of
 * `shape`, the sizes are used: heads, nope_dim, v_dim, and those of the cache. */
size_t mla_prefill_workspace(const struct mla_prefill_args *shape, int32_t n_seqs,
                             int32_t query_rows, int32_t kv_tokens);

/* A sentence about a status. */
const char *mla_status_text(int status);

#ifdef __cplusplus
}
#endif
