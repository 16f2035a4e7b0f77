/* Operations on one element at a time: the residual sum and the gated activation. */
#include "kernels/cpu/cpu.h"

void cpu_add(struct backend *be, struct tensor x, struct tensor y)
{
    int64_t n = tensor_elements(&x);
    float *sum = cpu_f32_out(&x);
    const float *term = cpu_f32(&y);

    (void)be; /* bound by memory: threads would not help */
    ASSERT(tensor_elements(&y) == n);
    for (int64_t i = 0; i < n; i++)
        sum[i] += term[i];
}

void cpu_swiglu(struct backend *be, struct tensor gate, struct tensor up)
{
    struct cpu_backend *cpu = cpu_backend(be);
    int64_t rows = gate.shape[0], n = cpu_last_dim(&gate);
    float *g = cpu_f32_out(&gate);
    const float *u = cpu_f32(&up);

    ASSERT(tensor_elements(&up) == rows * n && tensor_elements(&gate) == rows * n);
#pragma omp parallel for num_threads(cpu->threads)                                                 \
    schedule(static) if (rows * n > CPU_PARALLEL_WORK)
    for (int64_t r = 0; r < rows; r++)
        cpu_swiglu_row(g + r * n, u + r * n, n);
}
