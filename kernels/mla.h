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
    int32_t max_q_len;           /* no q_len is larger */
    const int32_t *q_starts;     /* (n_seqs) first query row; NULL: i * max_q_len */
    const int32_t *q_lens;       /* (n_seqs) 0: the sequence is passed over; NULL: all max_q_len */
    const int32_t *kv_lens;      /* (n_seqs) tokens in the cache, those of the queries included */
    const int32_t *block_tables; /* page numbers of all sequences */
    const int32_t *table_starts; /* (n_seqs) a sequence's first entry; NULL: i * table_stride */
    int32_t table_stride;
};

/* ---- decode: queries in latent space, all heads share a row ------------------------------------
 *
 * out[r, h] = sum over t of softmax_t(softmax_scale * q[r, h] . row(t)) * latent(t), over
 * t <= position of r when causal, else over all t < kv_len. A query that sees no token gets out = 0
 * and lse = +infinity. Sums are kept in float; the same inputs give the same bits. */
struct mla_decode_args {
    struct mla_cache cache;
    struct mla_seqs seqs;
    const void *q; /* bf16 (query rows, heads, latent_dim + rope_dim); 16-byte aligned */
    void *out;     /* bf16 (query rows, heads, latent_dim); 16-byte aligned */
    float *lse; /* (query rows, heads) natural log of the sum of exponentials; NULL: not wanted */
    int32_t heads;       /* 1 .. MLA_MAX_HEADS */
    float softmax_scale; /* of the model: (nope + rope)^-0.5 times YaRN's mscale^2 */
    int32_t causal;
    int32_t batch_invariant; /* a sequence's bits depend on nothing but the sequence; some slower */
    void *workspace;         /* of mla_decode_workspace bytes, zeroed once before its first use;
                                calls that share one must not run at the same time */
    size_t workspace_bytes;
};

int mla_decode(const struct mla_decode_args *args, mla_stream stream);

/* Bytes of workspace that serve every call on the current device with at most these sizes;
 * query_rows is the sum of q_len. 0 when the device can't be read. */
size_t mla_decode_workspace(int32_t n_seqs, int32_t query_rows, int32_t heads, int32_t latent_dim);

/* A sentence about a status. */
const char *mla_status_text(int status);

#ifdef __cplusplus
}
#endif
