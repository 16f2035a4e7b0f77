/* What goes through a tensor element by element. */
#include "kernels/cpu/cpu.h"

#include <math.h>

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
