/* Rows of the embedding table by the batch's tokens, and the rows that want logits closed up. Both
 * copy whole rows: a block a row. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

enum { THREADS = 128, VECTOR = 8 };

struct alignas(16) values {
    bf16 v[VECTOR];
};

/* out (T, d). A token below 0 is the one last drawn for slot -1 - token. */
static __global__ void embed_kernel(bf16 *out, const bf16 *table, const int32_t *tokens,
                                    const int32_t *last_tokens, float scale, int d)
{
    launch_next();
    launch_wait();
    const int32_t given = tokens[blockIdx.x];
    const int64_t token = given < 0 ? last_tokens[-1 - given] : given;

    for (int i = threadIdx.x * VECTOR; i < d; i += THREADS * VECTOR) {
        values row = *(const values *)(table + token * d + i);
        for (int j = 0; j < VECTOR; j++)
            row.v[j] = __float2bfloat16_rn(__bfloat162float(row.v[j]) * scale);
        *(values *)(out + (int64_t)blockIdx.x * d + i) = row;
    }
}

/* out (R, d) = x (T, d) at `rows`. */
static __global__ void gather_kernel(bf16 *out, const bf16 *x, const int32_t *rows, int d)
{
    launch_next();
    launch_wait();
    const bf16 *row = x + (int64_t)rows[blockIdx.x] * d;

    for (int i = threadIdx.x * VECTOR; i < d; i += THREADS * VECTOR)
        *(values *)(out + (int64_t)blockIdx.x * d + i) = *(const values *)(row + i);
}

void cuda_embed(struct backend *be, struct tensor out, struct tensor table, float scale)
{
    struct cuda_backend *cu = cuda_backend(be);
    int d = (int)cuda_last_dim(&table);

    cuda_settle(cu);
    ASSERT(cuda_last_dim(&out) == d && out.shape[0] == cu->step.rows && d % VECTOR == 0);
    CUDA_CHECK(cu, launch_early(embed_kernel, dim3(cu->step.rows), dim3(THREADS), 0, cu->stream,
                                cuda_bf16(&out), cuda_bf16(&table), cu->step.image.tokens,
                                cu->last_tokens, scale, d));
}

void cuda_gather_logit_rows(struct backend *be, struct tensor out, struct tensor x)
{
    struct cuda_backend *cu = cuda_backend(be);
    int d = (int)cuda_last_dim(&x);

    cuda_settle(cu);
    ASSERT(out.shape[0] == cu->step.logits && cuda_last_dim(&out) == d && d % VECTOR == 0);
    if (cu->step.logits > 0)
        CUDA_CHECK(cu,
                   launch_early(gather_kernel, dim3(cu->step.logits), dim3(THREADS), 0, cu->stream,
                                cuda_bf16(&out), cuda_bf16(&x), cu->step.image.logit_rows, d));
}
