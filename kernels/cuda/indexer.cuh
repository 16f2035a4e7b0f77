/* Attention to chosen tokens, as the backend's other files see it. */
#pragma once

#include "kernels/cuda/backend.cuh"

struct mla_decode_args;

struct cuda_index {
    struct index_shape shape;
    int32_t score_rows, gather_rows; /* rows of scores, of gathered */
    int64_t score_stride;            /* tokens that a row of scores has room for */
    int32_t row_pages;               /* of a row's chosen tokens */
    int64_t row_bytes;               /* of a cache row */

    float *scores;     /* (score_rows, score_stride) */
    int32_t *chosen;   /* (max_rows, top_k) positions in increasing order */
    char *gathered;    /* (gather_rows * row_pages, KV_PAGE_TOKENS) cache rows */
    int32_t *numbers;  /* 0, 1, 2, ...: query rows, and the pages of `gathered` */
    int32_t *kv_lens;  /* (max_rows) tokens that the row sees; 0: it only pads a graph */
    int32_t *n_dense;  /* (max_rows) 1: the row attends to all it sees */
    int32_t *n_sparse; /* (max_rows) 1: to chosen tokens */
    int32_t *top_ks;   /* (gather_rows) top_k */
};

/* Takes the memory that cu->shapes.index asks for; without an indexer none. */
int cuda_index_reserve(struct cuda_backend *cu, struct error *err);
void cuda_index_free(struct cuda_backend *cu);

/* From which position on rows attend to chosen tokens; INT32_MAX without an indexer. */
int32_t cuda_index_limit(const struct cuda_backend *cu);

/* mla_decode of a group's rows: `args` has all but the sequences, which are the rows here. */
void cuda_index_decode(struct cuda_backend *cu, const struct mla_decode_args *args,
                       const struct decode_group *group);
