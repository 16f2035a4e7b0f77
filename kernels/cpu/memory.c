/* Tensors in host memory. Matrices keep the dtype they come in, F32 or BF16: reading half the bytes
 * is worth more than the shift that widens them. Everything else becomes F32: F16 matrices, because
 * few processors convert it cheaply, and vectors (norms, biases), because they are small. */
#include "kernels/cpu/cpu.h"

#include "kernels/widen.h"

#include <stdlib.h>
#include <string.h>

int cpu_alloc(struct backend *be, struct tensor *dst, enum dtype dtype, int rank,
              const int64_t *shape, struct error *err)
{
    struct tensor t = {.dtype = dtype, .rank = rank};

    (void)be;
    ASSERT(rank > 0 && rank <= TENSOR_MAX_RANK);
    for (int i = 0; i < rank; i++)
        t.shape[i] = shape[i];
    size_t bytes = tensor_bytes(&t);
    /* calloc itself: a KV cache larger than the machine is the user's to hear of, not a panic. */
    t.data = calloc(1, bytes ? bytes : 1);
    if (!t.data)
        return error_set(err, "not enough host memory for a tensor of %zu MiB", bytes >> 20);
    *dst = t;
    return 0;
}

int cpu_upload(struct backend *be, struct tensor *dst, const struct tensor *host, struct error *err)
{
    enum dtype dtype = host->dtype == DTYPE_BF16 && host->rank > 1 ? DTYPE_BF16 : DTYPE_F32;

    if (host->dtype != DTYPE_F32 && host->dtype != DTYPE_BF16 && host->dtype != DTYPE_F16)
        return error_set(err, "the CPU backend takes weights in F32, BF16 or F16 only");
    if (cpu_alloc(be, dst, dtype, host->rank, host->shape, err))
        return -1;
    if (dtype == host->dtype)
        memcpy(dst->data, host->data, tensor_bytes(host));
    else
        widen_to_f32(dst->data, host->data, host->dtype, tensor_elements(host));
    return 0;
}

void cpu_download(struct backend *be, void *host, const struct tensor *src)
{
    (void)be;
    memcpy(host, src->data, tensor_bytes(src));
}

void cpu_release(struct backend *be, struct tensor *t)
{
    (void)be;
    free(t->data);
    t->data = NULL;
}
