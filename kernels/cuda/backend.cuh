/* Inside the CUDA backend: its state, and what its operations share.
 *
 * One stream takes all work of the engine's thread. What a step's kernels read besides activations
 * (tokens, positions, cache slots, lengths, block tables, sampling parameters) is put together in
 * page-locked memory by begin (step.cu) and reaches the device in one copy, the step image; its
 * layout follows from four counts, so a captured graph finds its parts where they were when it was
 * recorded. Activations are bf16.
 *
 * Return codes of CUDA calls and of the kernel libraries go through cuda_check: the first failure
 * is kept, and finish reports it. */
#pragma once

extern "C" {
#include "base/memory.h"
#include "base/panic.h"
}
#include "kernels/backend.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/sample.cuh"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <mutex>

typedef __nv_bfloat16 bf16;

enum { CUDA_MAX_GRAPHS = 48 };

/* How much of everything a step image has room for. */
struct step_counts {
    int32_t rows, spans, logits, pages;
};

/* Addresses of an image's parts, all on the host or all on the device. A span is a run of absorbed
 * rows of one sequence: one sequence of a call of mla_decode. */
struct step_image {
    int32_t *tokens;                  /* (rows) or -1 - slot: the token last drawn for the slot */
    int32_t *positions;               /* (rows) */
    int64_t *cache_slots;             /* (rows) page * KV_PAGE_TOKENS + offset; -1: not stored */
    int32_t *row_tables;              /* (rows) the first of `pages` of the row's sequence */
    int32_t *q_starts;                /* (spans) first row, counted from the first of its group */
    int32_t *q_lens;                  /* (spans) */
    int32_t *kv_lens;                 /* (spans) */
    int32_t *table_starts;            /* (spans) */
    int32_t *logit_rows;              /* (logits) */
    struct sample_row *sample_rows;   /* (logits) */
    int32_t *filtered;                /* (logits) rows that sample_filter draws for */
    int32_t *reported;                /* (logits) rows that sample_report answers for */
    int32_t *n_rows;                  /* (1) rows that are not there only to pad a graph */
    struct sampling_result **results; /* (1) where the graph's own sampling puts results; NULL: the
                                         step is sampled after it */
    int32_t *pages; /* (pages) block tables, last: their number varies between replays */
    size_t bytes;
};

/* Absorbed rows that go through mla_decode in one call: they stand together. */
struct decode_group {
    int32_t first_row, rows, first_span, spans, max_q_len;
};

/* The current step, as its operations see it. */
struct cuda_step {
    struct step_image image; /* on the device */
    int32_t rows, logits;
    int32_t n_filtered, n_reported; /* see struct step_image */
    int sampled;                    /* the step's graph samples too, unless there are masks */
    int32_t absorbed;               /* q_latent is complete: see attention.cu */
    int32_t settled; /* earlier steps wrote all that mla_decode's spans see but their own rows */
    int32_t n_groups;
    struct decode_group *groups; /* (max_seqs + max_rows / absorb_rows) */
    int sparse;                  /* rows attend to chosen tokens (indexer.cu), */
    int sparse_prompt;           /* rows of prompts among them */

    /* Sequences of mla_prefill, on the host. */
    int32_t n_prefill, prefill_max_q_len;
    int32_t *q_starts, *q_lens, *kv_lens, *table_starts; /* (max_seqs) */
};

/* Operations that are not queued yet: a normalisation of few rows waits for the product that reads
 * it, the router's product then for the choice of experts, and the choice for FP8 experts that make
 * it themselves (moe_few.cuh), so that one kernel can do them all. Every operation that takes none
 * of them along begins with cuda_settle, which queues them. */
struct cuda_pending {
    int32_t norm, router, choice; /* 1: waits; `choice`: with the two before it */
    struct tensor h, x, weight;
    float eps;
    struct linear_part product; /* of h */
    struct gate_args gate;      /* of the choice */
};

/* A step that was begun and is not finished. */
struct cuda_flight {
    cudaEvent_t done;
    int queued;                      /* `done` is recorded */
    char *image;                     /* page-locked: the host's side of the step image */
    uint32_t *masks;                 /* page-locked, (max_logits, SAMPLING_MASK_WORDS) */
    struct sampling_result *fetched; /* page-locked, (max_logits): kernels write it */
    struct sampling_result *results; /* the caller's */
    int32_t n_results;
};

struct cuda_graph {
    int32_t rows;
    int sparse; /* rows may attend to chosen tokens */
    cudaGraphExec_t exec;
};

/* The host's side of a sampler state: what each of its rows begins with. Small, since a step reads
 * those of all its sequences. */
struct cuda_slot {
    int32_t is_open, min_tokens;
    struct sample_row row; /* step and target not set; flags of a row that is drawn from */
};

struct cuda_backend {
    struct backend base;
    struct batch_limits limits; /* max_logits filled in */
    int32_t n_slots, vocab_size;
    int device, sms, batch_invariant;
    cudaStream_t stream;      /* the engine's thread */
    cudaStream_t side_stream; /* sampler_open's copies, which must not wait for the steps */

    std::mutex *fault_lock; /* uploads come from several threads */
    cudaError_t fault;      /* the first failure; cudaSuccess: none */
    char fault_text[256];

    /* Steps. */
    char *image; /* on the device */
    struct cuda_flight flights[BACKEND_MAX_STEPS];
    int32_t oldest_flight, n_flights;
    struct cuda_step step;
    struct cuda_pending pending;
    struct cuda_graph graphs[CUDA_MAX_GRAPHS];
    int32_t n_graphs, capturing; /* capturing: rows of the graph being recorded, or 0 */

    /* Working memory, by reserve. */
    struct backend_shapes shapes;
    int32_t has_fp8;     /* there are FP8 weights */
    int32_t has_int4;    /* there are experts with INT4 weights */
    int32_t absorb_rows; /* rows of the two that follow */
    bf16 *q_latent;      /* (absorb_rows, H, kv_lora_rank + rope) absorbed queries */
    bf16 *o_latent;      /* (absorb_rows, H, kv_lora_rank) */
    /* Of indexer.cu; NULL: the model has none. */
    struct cuda_index *index;
    void *decode_work, *prefill_work, *moe_work, *fp8_work;
    size_t decode_work_bytes, prefill_work_bytes, moe_work_bytes, fp8_work_bytes;
    struct tensor quantised; /* whose rows fp8_work has in FP8: the last normalisation's, or none */

    /* Sampling (sample.cu). */
    struct cuda_slot *slots;     /* (n_slots) */
    int32_t *last_tokens;        /* device, (n_slots) drawn last */
    float *adjusted;             /* device, (max_seqs, V) */
    struct sample_chunk *chunks; /* device, (max_logits, chunks of a row) */
    struct sample_draw *draws;   /* device, (max_logits) */
    uint32_t *masks;             /* device, (max_logits, words) */
};

static inline struct cuda_backend *cuda_backend(struct backend *be)
{
    return (struct cuda_backend *)be;
}

/* Notes a failure, with what was being done; returns whether `rc` is one. */
bool cuda_failed(struct cuda_backend *cu, cudaError_t rc, const char *what);

#define CUDA_CHECK(cu, call) cuda_failed(cu, call, #call)

/* Notes a failed call of a kernel library: `rc` not 0. */
void cuda_check_launch(struct cuda_backend *cu, int rc, const char *what);

/* The failure in words, or no failure: 0. */
int cuda_report(struct cuda_backend *cu, struct error *err);

/* Device memory, zeroed when `zero`; NULL and a message when there is not enough. */
void *cuda_take(struct cuda_backend *cu, size_t bytes, bool zero, const char *what,
                struct error *err);

/* Whether fp8_work has the rows of x. */
static inline bool cuda_is_quantised(const struct cuda_backend *cu, const struct tensor *x)
{
    return cu->quantised.data && cu->quantised.data == x->data &&
           cu->quantised.shape[0] == x->shape[0];
}

static inline int64_t cuda_last_dim(const struct tensor *t)
{
    return t->shape[t->rank - 1];
}

static inline bf16 *cuda_bf16(const struct tensor *t)
{
    ASSERT(t->dtype == DTYPE_BF16);
    return (bf16 *)t->data;
}

static inline float *cuda_f32(const struct tensor *t)
{
    ASSERT(t->dtype == DTYPE_F32);
    return (float *)t->data;
}

/* --- memory.cu --- */
void cuda_memory(struct backend *be, size_t *free_bytes, size_t *total_bytes);
int cuda_alloc(struct backend *be, struct tensor *dst, enum dtype dtype, int rank,
               const int64_t *shape, struct error *err);
void cuda_download(struct backend *be, void *host, const struct tensor *src);
void cuda_release(struct backend *be, struct tensor *t);
int cuda_alloc_weight(struct backend *be, struct tensor *dst, enum weight_use use,
                      enum dtype file_dtype, int rank, const int64_t *shape, struct error *err);
int cuda_upload(struct backend *be, struct tensor *dst, int64_t first, const struct tensor *host,
                struct error *err);
int cuda_fill_random(struct backend *be, struct tensor *dst, uint64_t seed, float scale,
                     struct error *err);
void *cuda_stage_alloc(struct backend *be, size_t bytes);
void cuda_stage_free(struct backend *be, void *stage);

/* --- step.cu --- */
int cuda_steps_open(struct cuda_backend *cu, struct error *err);
void cuda_steps_close(struct cuda_backend *cu);
int cuda_begin(struct backend *be, const struct batch *batch);
int cuda_finish(struct backend *be, struct error *err);
struct cuda_flight *cuda_newest_flight(struct cuda_backend *cu);
/* The step's flight is complete: `done` will tell. */
void cuda_flight_queued(struct cuda_backend *cu, struct cuda_flight *flight);
/* The image's parts from `base` on; host or device. */
struct step_image step_image_at(char *base, struct step_counts counts);

/* --- graph.cu --- */
int32_t cuda_capture_begin(struct backend *be, int32_t graph);
int cuda_capture_end(struct backend *be, struct error *err);
void cuda_graphs_close(struct cuda_backend *cu);
/* The smallest graph for so many decode rows, sparse or not; NULL: none. */
const struct cuda_graph *cuda_graph_for(const struct cuda_backend *cu, int32_t rows, int sparse);

/* --- The operations, one a file: backend.h says what they compute. --- */
void cuda_embed(struct backend *be, struct tensor out, struct tensor table, float scale);
void cuda_gather_logit_rows(struct backend *be, struct tensor out, struct tensor x);
void cuda_rmsnorm(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                  float eps);
void cuda_settle(struct cuda_backend *cu);
/* The choice that waits, in a kernel of its own. */
void cuda_gate(struct cuda_backend *cu);
void cuda_router(struct cuda_backend *cu, struct tensor x, const struct linear_part *part);
void cuda_linear(struct backend *be, struct tensor x, const struct linear_part *parts, int n_parts);
void cuda_gated(struct backend *be, struct tensor out, struct tensor x, struct tensor gate,
                struct tensor up);
int cuda_linear_reserve(struct cuda_backend *cu, struct error *err);
int cuda_attention_reserve(struct cuda_backend *cu, struct error *err);
void cuda_rope_kv_write(struct backend *be, struct tensor q, struct tensor kv,
                        const struct mla_layer *layer, struct tensor norm, float eps,
                        const struct rope_config *rope);
void cuda_index_tokens(struct backend *be, struct tensor q, struct tensor k, struct tensor w,
                       const struct index_layer *layer, const struct rope_config *rope);
void cuda_mla_prefill(struct backend *be, struct tensor out, struct tensor q,
                      const struct mla_layer *layer);
void cuda_mla_decode(struct backend *be, struct tensor out, struct tensor q,
                     const struct mla_layer *layer);
void cuda_route(struct backend *be, struct tensor ids, struct tensor weights, struct tensor logits,
                struct tensor bias, const struct router_config *config);
int cuda_moe_reserve(struct cuda_backend *cu, struct error *err);
void cuda_moe(struct backend *be, struct tensor out, struct tensor residual, struct tensor x,
              struct tensor ids, struct tensor weights, const struct moe_weights *experts,
              const struct ffn_weights *shared);
void cuda_scale_by_position(struct backend *be, struct tensor x, float beta, int32_t every);
void cuda_identity_experts(struct backend *be, struct tensor out, struct tensor x,
                           struct tensor ids, struct tensor weights, int32_t experts);
void cuda_add(struct backend *be, struct tensor sum, struct tensor x);
void cuda_concat(struct backend *be, struct tensor out, struct tensor a, struct tensor b);
int cuda_sampler_init(struct cuda_backend *cu, struct error *err);
void cuda_sampler_free(struct cuda_backend *cu);
/* What the sampling kernels read of a logit row; see sample.cuh. */
struct sample_row cuda_sample_row(const struct cuda_backend *cu, const struct batch_logit *logit);
void cuda_sampler_open(struct backend *be, int32_t slot, const struct sampling_params *params,
                       const int32_t *prompt, int32_t n_prompt);
void cuda_sampler_close(struct backend *be, int32_t slot);
void cuda_sample(struct backend *be, struct tensor logits, const uint32_t *masks,
                 struct sampling_result *results);
