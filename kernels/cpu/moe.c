/* The experts of a mixture-of-experts layer, also those that give their input back.
 *
 * (row, expert) pairs are sorted by expert, so that an expert's weights are read once for all its
 * rows. First every pair's hidden values silu(gate x) * up x are computed, then out += weight *
 * down(hidden). Threads share out the columns, which stays even however the rows fall on experts,
 * and no two threads add to one element. A row's experts are added in rising order of their index,
 * an order that is the row's own; then comes what the shared experts make of it. Rows go through
 * in groups of CPU_MOE_ROWS to bound the memory. */
#include "kernels/cpu/cpu.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 12 }; /* computed at a time; a multiple of the tile's 3 and 4 */

struct cpu_moe {
    int32_t experts, top_k, intermediate;
    int32_t *first;    /* (experts + 1) where an expert's pairs start in the sorted order */
    int32_t *pair_row; /* (CPU_MOE_ROWS * top_k) row of a pair */
    float *pair_weight;
    float *hidden;        /* (CPU_MOE_ROWS * top_k, intermediate) */
    float *routed;        /* (CPU_MOE_ROWS, d) sum of a row's experts */
    float *shared;        /* (CPU_MOE_ROWS, d) likewise, shared */
    float *shared_hidden; /* (CPU_MOE_ROWS, shared intermediate) */
};

struct cpu_moe *cpu_moe_new(const struct backend_shapes *shapes)
{
    const struct router_config *router = &shapes->router;
    struct cpu_moe *moe = mem_zalloc(1, sizeof(*moe));
    size_t pairs = (size_t)CPU_MOE_ROWS * (size_t)router->top_k;
    size_t intermediate = (size_t)shapes->moe_intermediate, d = (size_t)shapes->hidden_size;

    moe->experts = router->experts;
    moe->top_k = router->top_k;
    moe->intermediate = shapes->moe_intermediate;
    moe->first = mem_zalloc((size_t)router->experts + 1, sizeof(*moe->first));
    moe->pair_row = mem_zalloc(pairs, sizeof(*moe->pair_row));
    moe->pair_weight = mem_zalloc(pairs, sizeof(*moe->pair_weight));
    moe->hidden = mem_zalloc(pairs * intermediate, sizeof(float));
    moe->routed = mem_zalloc(CPU_MOE_ROWS * d, sizeof(float));
    moe->shared = mem_zalloc(CPU_MOE_ROWS * d, sizeof(float));
    moe->shared_hidden =
        mem_zalloc(CPU_MOE_ROWS * (size_t)shapes->shared_intermediate, sizeof(float));
    return moe;
}

void cpu_moe_free(struct cpu_moe *moe)
{
    if (!moe)
        return;
    free(moe->first);
    free(moe->pair_row);
    free(moe->pair_weight);
    free(moe->hidden);
    free(moe->routed);
    free(moe->shared);
    free(moe->shared_hidden);
    free(moe);
}

/* Counting sort of the pairs of `rows` rows by expert. */
static void sort_pairs(struct cpu_moe *moe, const int32_t *ids, const float *weights, int64_t rows)
{
    int32_t next[CPU_MAX_EXPERTS];
    int64_t pairs = rows * moe->top_k;

    memset(moe->first, 0, ((size_t)moe->experts + 1) * sizeof(*moe->first));
    for (int64_t p = 0; p < pairs; p++) {
        ASSERT(ids[p] >= -1 && ids[p] < moe->experts);
        if (ids[p] >= 0)
            moe->first[ids[p] + 1]++;
    }
    for (int32_t e = 0; e < moe->experts; e++) {
        moe->first[e + 1] += moe->first[e];
        next[e] = moe->first[e];
    }
    for (int64_t p = 0; p < pairs; p++) {
        if (ids[p] < 0)
            continue;
        int32_t at = next[ids[p]]++;
        moe->pair_row[at] = (int32_t)(p / moe->top_k);
        moe->pair_weight[at] = weights[p];
    }
}

/* hidden[pair][i] of all pairs, for columns first .. first + n - 1. */
static void hidden_columns(struct cpu_moe *moe, const float *x, const struct moe_weights *w,
                           int64_t first, int64_t n)
{
    int64_t d = cpu_last_dim(&w->gate), width = moe->intermediate;
    float up[CPU_MOE_ROWS * COLUMNS];

    for (int32_t e = 0; e < moe->experts; e++) {
        int64_t pairs = moe->first[e + 1] - moe->first[e];
        if (!pairs)
            continue;
        float *hidden = moe->hidden + moe->first[e] * width + first;
        struct cpu_dots job = {.out = hidden,
                               .out_stride = (size_t)width,
                               .x = x,
                               .x_stride = (size_t)d,
                               .x_index = moe->pair_row + moe->first[e],
                               .w = cpu_weight_rows(&w->gate, e * width + first),
                               .rows = pairs,
                               .outs = n,
                               .k = d};
        cpu_dots(&job);
        job.out = up;
        job.out_stride = COLUMNS;
        job.w = cpu_weight_rows(&w->up, e * width + first);
        cpu_dots(&job);
        for (int64_t p = 0; p < pairs; p++)
            cpu_swiglu_row(hidden + p * width, up + p * COLUMNS, n);
    }
}

/* out[row][o] += weight * down(hidden), for columns first .. first + n - 1. */
static void out_columns(const struct cpu_moe *moe, float *out, const struct moe_weights *w,
                        int64_t first, int64_t n)
{
    int64_t d = w->down.shape[1], width = moe->intermediate;
    float down[CPU_MOE_ROWS * COLUMNS];

    for (int32_t e = 0; e < moe->experts; e++) {
        int64_t pairs = moe->first[e + 1] - moe->first[e];
        if (!pairs)
            continue;
        cpu_dots(&(struct cpu_dots){.out = down,
                                    .out_stride = COLUMNS,
                                    .x = moe->hidden + moe->first[e] * width,
                                    .x_stride = (size_t)width,
                                    .w = cpu_weight_rows(&w->down, e * d + first),
                                    .rows = pairs,
                                    .outs = n,
                                    .k = width});
        for (int64_t p = 0; p < pairs; p++) {
            float *row = out + moe->pair_row[moe->first[e] + p] * d + first;
            float weight = moe->pair_weight[moe->first[e] + p];
            for (int64_t i = 0; i < n; i++)
                row[i] += weight * down[p * COLUMNS + i];
        }
    }
}

/* What the threads share: one group of rows. */
struct group {
    struct cpu_moe *moe;
    const struct moe_weights *weights;
    const float *x;
    float *out;
};

static void run_hidden(void *context, int64_t first, int64_t end, int thread)
{
    const struct group *g = context;

    (void)thread;
    for (int64_t i = first; i < end; i += COLUMNS)
        hidden_columns(g->moe, g->x, g->weights, i, end - i < COLUMNS ? end - i : COLUMNS);
}

static void run_out(void *context, int64_t first, int64_t end, int thread)
{
    const struct group *g = context;

    (void)thread;
    for (int64_t i = first; i < end; i += COLUMNS)
        out_columns(g->moe, g->out, g->weights, i, end - i < COLUMNS ? end - i : COLUMNS);
}

/* A (rows, columns) F32 tensor at `data`. */
static struct tensor rows_at(float *data, int64_t rows, int64_t columns)
{
    return (struct tensor){.data = data, .dtype = DTYPE_F32, .rank = 2, .shape = {rows, columns}};
}

/* moe->routed of `n` rows += the shared experts. */
static void add_shared(struct backend *be, const float *x, const struct ffn_weights *w, int64_t n)
{
    struct cpu_moe *moe = cpu_backend(be)->moe;
    int64_t d = cpu_last_dim(&w->gate), width = w->gate.shape[0];
    struct tensor hidden = rows_at(moe->shared_hidden, n, width);
    struct linear_part down = {.out = rows_at(moe->shared, n, d), .weight = w->down};

    cpu_gated(be, hidden, rows_at((float *)x, n, d), w->gate, w->up);
    cpu_linear(be, hidden, &down, 1);
    for (int64_t i = 0; i < n * d; i++)
        moe->routed[i] += moe->shared[i];
}

void cpu_moe(struct backend *be, struct tensor out, struct tensor residual, struct tensor x,
             struct tensor ids, struct tensor weights, const struct moe_weights *experts,
             const struct ffn_weights *shared)
{
    struct cpu_backend *cpu = cpu_backend(be);
    struct cpu_moe *moe = cpu->moe;
    int64_t rows = x.shape[0], d = cpu_last_dim(&x);

    ASSERT(moe && experts->gate.shape[0] == moe->experts && cpu_last_dim(&ids) == moe->top_k);
    ASSERT(cpu_last_dim(&experts->gate) == d && cpu_last_dim(&experts->up) == d);
    ASSERT(cpu_last_dim(&experts->down) == moe->intermediate && experts->down.shape[1] == d);
    ASSERT(ids.dtype == DTYPE_I32 && out.shape[0] == rows && cpu_last_dim(&out) == d);
    for (int64_t r = 0; r < rows; r += CPU_MOE_ROWS) {
        int64_t n = rows - r < CPU_MOE_ROWS ? rows - r : CPU_MOE_ROWS;
        int64_t work = n * moe->top_k * moe->intermediate * d;
        struct group g = {moe, experts, cpu_f32(&x) + r * d, moe->routed};
        float *sum = cpu_f32_out(&out) + r * d;
        const float *base = residual.data ? cpu_f32(&residual) + r * d : NULL;

        memset(moe->routed, 0, (size_t)(n * d) * sizeof(float));
        sort_pairs(moe, (const int32_t *)ids.data + r * moe->top_k,
                   cpu_f32(&weights) + r * moe->top_k, n);
        cpu_parallel(cpu, 2 * work, moe->intermediate, COLUMNS, run_hidden, &g);
        cpu_parallel(cpu, work, d, COLUMNS, run_out, &g);
        if (shared)
            add_shared(be, g.x, shared, n);
        for (int64_t i = 0; i < n * d; i++)
            sum[i] = base ? base[i] + moe->routed[i] : moe->routed[i];
    }
}

void cpu_identity_experts(struct backend *be, struct tensor out, struct tensor x, struct tensor ids,
                          struct tensor weights, int32_t experts)
{
    int64_t rows = x.shape[0], d = cpu_last_dim(&x), top_k = cpu_last_dim(&ids);

    (void)be;
    ASSERT(ids.dtype == DTYPE_I32 && ids.shape[0] == rows && tensor_elements(&out) == rows * d);
    for (int64_t r = 0; r < rows; r++) {
        int32_t *id = (int32_t *)ids.data + r * top_k;
        float weight = 0;
        for (int64_t i = 0; i < top_k; i++) {
            if (id[i] < experts)
                continue;
            weight += cpu_f32(&weights)[r * top_k + i];
            id[i] = -1;
        }
        for (int64_t i = r * d; i < (r + 1) * d && weight != 0; i++)
            cpu_f32_out(&out)[i] += weight * cpu_f32(&x)[i];
    }
}
