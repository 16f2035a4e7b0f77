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

static void linear_task(const struct cpu_dots *job, const float *bias)
{
    cpu_dots(job);
    for (int64_t r = 0; bias && r < job->rows; r++)
        for (int64_t o = 0; o < job->outs; o++)
            job->out[(size_t)r * job->out_stride + (size_t)o] += bias[o];
}

void cpu_linear(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                struct tensor bias)
{
    struct cpu_backend *cpu = cpu_backend(be);
    int64_t m = x.shape[0], k = cpu_last_dim(&x), n = weight.shape[0];

    ASSERT(out.shape[0] == m && cpu_last_dim(&out) == n && cpu_last_dim(&weight) == k);
    ASSERT(!bias.data || (bias.dtype == DTYPE_F32 && tensor_elements(&bias) == n));
    int64_t rows = clamp(ROW_FLOATS / k / 4 * 4, 4, MAX_ROWS);
    int64_t outs = clamp(ceil_div(ceil_div(n, cpu->threads), OUTS_STEP) * OUTS_STEP, 1, MAX_OUTS);
    int64_t row_tasks = ceil_div(m, rows), tasks = row_tasks * ceil_div(n, outs);

#pragma omp parallel for num_threads(cpu->threads)                                                 \
    schedule(static) if (m * n * k > CPU_PARALLEL_WORK)
    for (int64_t task = 0; task < tasks; task++) {
        int64_t row = task % row_tasks * rows, o = task / row_tasks * outs;
        struct cpu_dots job = {
            .out = cpu_f32_out(&out) + row * n + o,
            .out_stride = (size_t)n,
            .x = cpu_f32(&x) + row * k,
            .x_stride = (size_t)k,
            .w = cpu_weight_rows(&weight, o),
            .rows = clamp(m - row, 0, rows),
            .outs = clamp(n - o, 0, outs),
            .k = k,
        };
        linear_task(&job, bias.data ? (const float *)bias.data + o : NULL);
    }
}
