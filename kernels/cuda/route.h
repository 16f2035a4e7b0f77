/* What a choice of experts for few rows begins with: h = rmsnorm of x, its products with the
 * router, the choice itself. Internal to the backend. */
#pragma once

extern "C" {
#include "kernels/backend.h"
}

#include <cuda_bf16.h>
#include <stdint.h>

enum { GATE_ROWS = 8, GATE_EXPERTS = 256, GATE_D = 4096 }; /* at most */

struct gate_args {
    __nv_bfloat16 *h;       /* (rows, d) */
    const __nv_bfloat16 *x; /* (rows, d) */
    const float *norm;      /* (d) */
    const float *router;    /* (experts, d) */
    const float *bias;      /* (experts) or NULL */
    float *logits;          /* (rows, experts) */
    int32_t *ids;           /* (rows, top_k) */
    float *weights;         /* (rows, top_k) */
    const int32_t *n_rows;  /* rows from *n_rows on pad a graph; NULL: none do */
    float eps;
    int rows, d; /* d a multiple of 8 */
    struct router_config config;
};
