/* out = x times weight transposed, plus bias and residual; and two such products gated. */
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

/* One product, or with `up` silu(x weight^T) * (x up^T). */
struct linear {
    float *out;
    const float *x, *bias, *residual;
    const struct tensor *weight, *up;
    int64_t m, n, k;
    int64_t rows, outs; /* of one task */
    int64_t row_tasks;
};

/* `up` of the rows and columns of `gate`, and the gating. */
static void gate_tile(const struct linear *l, const struct cpu_dots *gate, int64_t o)
{
    float up[MAX_ROWS * MAX_OUTS];
    struct cpu_dots job = *gate;

    job.out = up;
    job.out_stride = MAX_OUTS;
    job.w = cpu_weight_rows(l->up, o);
    cpu_dots(&job);
    for (int64_t r = 0; r < job.rows; r++)
        cpu_swiglu_row(gate->out + r * gate->out_stride, up + r * MAX_OUTS, job.outs);
}

static void run(void *context, int64_t first, int64_t end, int thread)
{
    const struct linear *l = context;
    float tile[MAX_ROWS * MAX_OUTS];

    (void)thread;
    for (int64_t task = first; task < end; task++) {
        int64_t row = task % l->row_tasks * l->rows, o = task / l->row_tasks * l->outs;
        struct cpu_dots job = {
            .out = l->residual ? tile : l->out + row * l->n + o,
            .out_stride = l->residual ? MAX_OUTS : (size_t)l->n,
            .x = l->x + row * l->k,
            .x_stride = (size_t)l->k,
            .w = cpu_weight_rows(l->weight, o),
            .rows = clamp(l->m - row, 0, l->rows),
            .outs = clamp(l->n - o, 0, l->outs),
            .k = l->k,
        };
        cpu_dots(&job);
        if (l->up)
            gate_tile(l, &job, o);
        for (int64_t r = 0; l->bias && r < job.rows; r++)
            for (int64_t i = 0; i < job.outs; i++)
                job.out[r * job.out_stride + i] += l->bias[o + i];
        for (int64_t r = 0; l->residual && r < job.rows; r++)
            for (int64_t i = 0, at = (row + r) * l->n + o; i < job.outs; i++, at++)
                l->out[at] = l->residual[at] + tile[r * MAX_OUTS + i];
    }
}

static void product(struct cpu_backend *cpu, struct tensor x, const struct linear_part *part,
                    const struct tensor *up)
{
    int64_t m = x.shape[0], k = cpu_last_dim(&x), n = part->weight.shape[0];
    int64_t share = ceil_div(ceil_div(n, cpu->n_threads), OUTS_STEP) * OUTS_STEP;

    ASSERT(part->out.shape[0] == m && cpu_last_dim(&part->out) == n);
    ASSERT(cpu_last_dim(&part->weight) == k && (!up || tensor_elements(up) == n * k));
    ASSERT(!part->bias.data || tensor_elements(&part->bias) == n);
    ASSERT(!part->residual.data || tensor_elements(&part->residual) == m * n);
    struct linear l = {
        .out = cpu_f32_out(&part->out),
        .x = cpu_f32(&x),
        .bias = part->bias.data ? cpu_f32(&part->bias) : NULL,
        .residual = part->residual.data ? cpu_f32(&part->residual) : NULL,
        .weight = &part->weight,
        .up = up,
        .m = m,
        .n = n,
        .k = k,
        .rows = clamp(ROW_FLOATS / k / 4 * 4, 4, MAX_ROWS),
        .outs = clamp(share, OUTS_STEP, MAX_OUTS),
    };
    l.row_tasks = ceil_div(m, l.rows);
    cpu_parallel(cpu, (up ? 2 : 1) * m * n * k, l.row_tasks * ceil_div(n, l.outs), 1, run, &l);
}

void cpu_linear(struct backend *be, struct tensor x, const struct linear_part *parts, int n_parts)
{
    for (int i = 0; i < n_parts; i++)
        product(cpu_backend(be), x, &parts[i], NULL);
}

void cpu_gated(struct backend *be, struct tensor out, struct tensor x, struct tensor gate,
               struct tensor up)
{
    product(cpu_backend(be), x, &(struct linear_part){.out = out, .weight = gate}, &up);
}
