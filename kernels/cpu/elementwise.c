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

struct swiglu {
    float *gate;
    const float *up;
    int64_t n;
};

static void run(void *context, int64_t first, int64_t end, int thread)
{
    const struct swiglu *op = context;

    (void)thread;
    for (int64_t r = first; r < end; r++)
        cpu_swiglu_row(op->gate + r * op->n, op->up + r * op->n, op->n);
}

void cpu_swiglu(struct backend *be, struct tensor gate, struct tensor up)
{
    int64_t rows = gate.shape[0], n = cpu_last_dim(&gate);
    struct swiglu op = {cpu_f32_out(&gate), cpu_f32(&up), n};

    ASSERT(tensor_elements(&up) == rows * n && tensor_elements(&gate) == rows * n);
    cpu_parallel(cpu_backend(be), 8 * rows * n, rows, 16, run, &op);
}
