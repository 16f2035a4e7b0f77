/* What goes through a tensor element by element. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

void cpu_add(struct backend *be, struct tensor sum, struct tensor x)
{
    int64_t n = tensor_elements(&x);
    float *out = cpu_f32_out(&sum);
    const float *in = cpu_f32(&x);

    (void)be;
    ASSERT(tensor_elements(&sum) == n);
    for (int64_t i = 0; i < n; i++)
        out[i] += in[i];
}

void cpu_concat(struct backend *be, struct tensor out, struct tensor a, struct tensor b)
{
    int64_t m = cpu_last_dim(&a), n = cpu_last_dim(&b), rows = a.shape[0];

    (void)be;
    ASSERT(b.shape[0] == rows && out.shape[0] == rows && cpu_last_dim(&out) == m + n);
    for (int64_t r = 0; r < rows; r++) {
        float *row = cpu_f32_out(&out) + r * (m + n);
        memcpy(row, cpu_f32(&a) + r * m, (size_t)m * sizeof(*row));
        memcpy(row + m, cpu_f32(&b) + r * n, (size_t)n * sizeof(*row));
    }
}

void cpu_scale_by_position(struct backend *be, struct tensor x, float beta, int32_t every)
{
    const struct batch *batch = cpu_backend(be)->batch;
    int64_t n = cpu_last_dim(&x);

    ASSERT(x.shape[0] == batch->n_rows && every > 0);
    for (int32_t r = 0; r < batch->n_rows; r++) {
        int32_t times = batch_positions(batch)[r] / every;
        if (times > 0)
            cpu_scale(cpu_f32_out(&x) + r * n, 1 + beta * logf(1 + (float)times), n);
    }
}
