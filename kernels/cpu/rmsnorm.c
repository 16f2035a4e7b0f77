/* Root-mean-square normalisation (Zhang and Sennrich 2019). */
#include "kernels/cpu/cpu.h"

#include <math.h>

void cpu_rmsnorm_row(float *out, const float *x, const float *weight, float eps, int64_t n)
{
    float inverse = 1.0f / sqrtf(cpu_sum_squares(x, n) / (float)n + eps);

    for (int64_t i = 0; i < n; i++)
        out[i] = weight[i] * (x[i] * inverse);
}

struct rmsnorm {
    float *out;
    const float *x, *weight;
    float eps;
    int64_t n;
};

static void run(void *context, int64_t first, int64_t end, int thread)
{
    const struct rmsnorm *op = context;

    (void)thread;
    for (int64_t r = first; r < end; r++)
        cpu_rmsnorm_row(op->out + r * op->n, op->x + r * op->n, op->weight, op->eps, op->n);
}

void cpu_rmsnorm(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                 float eps)
{
    int64_t rows = x.shape[0], n = cpu_last_dim(&x);
    struct rmsnorm op = {cpu_f32_out(&out), cpu_f32(&x), cpu_f32(&weight), eps, n};

    ASSERT(out.shape[0] == rows && cpu_last_dim(&out) == n && tensor_elements(&weight) == n);
    cpu_parallel(cpu_backend(be), 2 * rows * n, rows, 16, run, &op);
}
