/* out = x times weight transposed, plus bias. */
#include "kernels/cpu/cpu.h"

enum {
    MAX_ROWS = 64,          /* rows of one task, */
    ROW_FLOATS = 64 * 1024, /* fewer when they are long: 256 KiB, about a core's cache */
    MAX_OUTS = 192,         /* outputs of one task; a multiple of the tile's 3 and 4 */
    OUTS_STEP = 12,
};

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

struct linear {
    float *out;
    const float *x, *bias;
    const struct tensor *weight;
    int64_t m, n, k;
    int64_t rows, outs; /* of one task */
    int64_t row_tasks;
};

static void run(void *context, int64_t first, int64_t end, int thread)
{
    const struct linear *l = context;

    (void)thread;
    for (int64_t task = first; task < end; task++) {
        int64_t row = task % l->row_tasks * l->rows, o = task / l->row_tasks * l->outs;
        struct cpu_dots job = {
            .out = l->out + row * l->n + o,
            .out_stride = (size_t)l->n,
            .x = l->x + row * l->k,
            .x_stride = (size_t)l->k,
            .w = cpu_weight_rows(l->weight, o),
            .rows = clamp(l->m - row, 0, l->rows),
            .outs = clamp(l->n - o, 0, l->outs),
            .k = l->k,
        };
        cpu_dots(&job);
        for (int64_t r = 0; l->bias && r < job.rows; r++)
            for (int64_t i = 0; i < job.outs; i++)
                job.out[r * l->n + i] += l->bias[o + i];
    }
}

void cpu_linear(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                struct tensor bias)
{
    struct cpu_backend *cpu = cpu_backend(be);
    int64_t m = x.shape[0], k = cpu_last_dim(&x), n = weight.shape[0];
    int64_t share = ceil_div(ceil_div(n, cpu->n_threads), OUTS_STEP) * OUTS_STEP;

    ASSERT(out.shape[0] == m && cpu_last_dim(&out) == n && cpu_last_dim(&weight) == k);
    ASSERT(!bias.data || tensor_elements(&bias) == n);
    struct linear l = {
        .out = cpu_f32_out(&out),
        .x = cpu_f32(&x),
        .bias = bias.data ? cpu_f32(&bias) : NULL,
        .weight = &weight,
        .m = m,
        .n = n,
        .k = k,
        .rows = clamp(ROW_FLOATS / k / 4 * 4, 4, MAX_ROWS),
        .outs = clamp(share, OUTS_STEP, MAX_OUTS),
    };
    l.row_tasks = ceil_div(m, l.rows);
    cpu_parallel(cpu, m * n * k, l.row_tasks * ceil_div(n, l.outs), 1, run, &l);
}
