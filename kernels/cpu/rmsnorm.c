/* Root-mean-square normalisation (Zhang and Sennrich 2019). */
#include "kernels/cpu/cpu.h"

#include <math.h>

void cpu_rmsnorm_row(float *out, const float *x, const float *weight, float eps, int64_t n)
{
    float inverse = 1.0f / sqrtf(cpu_sum_squares(x, n) / (float)n + eps);

    for (int64_t i = 0; i < n; i++)
        out[i] = weight[i] * (x[i] * inverse);
}

void cpu_rmsnorm(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                 float eps)
{
    struct cpu_backend *cpu = cpu_backend(be);
    int64_t rows = x.shape[0], n = cpu_last_dim(&x);
    const float *w = cpu_f32(&weight), *in = cpu_f32(&x);
    float *result = cpu_f32_out(&out);

    ASSERT(out.shape[0] == rows && cpu_last_dim(&out) == n && tensor_elements(&weight) == n);
#pragma omp parallel for num_threads(cpu->threads)                                                 \
    schedule(static) if (rows * n > CPU_PARALLEL_WORK)
    for (int64_t r = 0; r < rows; r++)
        cpu_rmsnorm_row(result + r * n, in + r * n, w, eps, n);
}
