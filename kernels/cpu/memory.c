/* Tensors in host memory. Matrices keep the dtype they come in, F32 or BF16: reading half the bytes
 * is worth more than the shift that widens them. Everything else becomes F32: F16 matrices, because
 * few processors convert it cheaply, and vectors (norms, biases), because they are small. */
#include "kernels/cpu/cpu.h"

#include "kernels/random_fill.h"
#include "kernels/widen.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void cpu_memory(struct backend *be, size_t *free_bytes, size_t *total_bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    (void)be;
    *free_bytes = (size_t)sysconf(_SC_AVPHYS_PAGES) * page;
    *total_bytes = (size_t)sysconf(_SC_PHYS_PAGES) * page;
}

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

int cpu_alloc_weight(struct backend *be, struct tensor *dst, enum weight_use use,
                     enum dtype file_dtype, int rank, const int64_t *shape, struct error *err)
{
    bool narrow = file_dtype == DTYPE_BF16 && use != WEIGHT_EXACT && rank > 1;

    if (file_dtype != DTYPE_F32 && file_dtype != DTYPE_BF16 && file_dtype != DTYPE_F16)
        return error_set(err, "the CPU backend takes weights in F32, BF16 or F16 only");
    return cpu_alloc(be, dst, narrow ? DTYPE_BF16 : DTYPE_F32, rank, shape, err);
}

int cpu_upload(struct backend *be, struct tensor *dst, int64_t first, const struct tensor *host,
               struct error *err)
{
    char *out = (char *)dst->data + (size_t)first * dtype_size(dst->dtype);

    (void)be;
    ASSERT(first >= 0 && first + tensor_elements(host) <= tensor_elements(dst));
    if (host->dtype == dst->dtype)
        memcpy(out, host->data, tensor_bytes(host));
    else if (dst->dtype == DTYPE_F32)
        widen_to_f32((float *)out, host->data, host->dtype, tensor_elements(host));
    else
        return error_set(err, "the CPU backend does not narrow weights");
    return 0;
}

int cpu_fill_random(struct backend *be, struct tensor *dst, uint64_t seed, float scale,
                    struct error *err)
{
    (void)be;
    (void)err;
    for (int64_t i = 0; i < tensor_elements(dst); i++) {
        float value = random_fill_at(seed, (uint64_t)i) * scale;
        uint32_t bits;
        memcpy(&bits, &value, sizeof(bits));
        if (dst->dtype == DTYPE_F32)
            ((float *)dst->data)[i] = value;
        else
            ((uint16_t *)dst->data)[i] = (uint16_t)(bits >> 16);
    }
    return 0;
}

void *cpu_stage_alloc(struct backend *be, size_t bytes)
{
    (void)be;
    return malloc(bytes);
}

void cpu_stage_free(struct backend *be, void *stage)
{
    (void)be;
    free(stage);
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
