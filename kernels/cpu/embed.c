/* Rows of the embedding table by the batch's tokens. */
#include "kernels/cpu/cpu.h"

#include <string.h>

static void embed_row(float *out, const struct tensor *table, int64_t token, float scale, int64_t d)
{
    if (table->dtype == DTYPE_F32) {
        const float *row = (const float *)table->data + token * d;
        for (int64_t i = 0; i < d; i++)
            out[i] = row[i] * scale;
        return;
    }
    const uint16_t *row = (const uint16_t *)table->data + token * d;
    for (int64_t i = 0; i < d; i++) {
        uint32_t bits = (uint32_t)row[i] << 16;
        memcpy(&out[i], &bits, sizeof(bits));
        out[i] *= scale;
    }
}

void cpu_embed(struct backend *be, struct tensor out, struct tensor table, float scale)
{
    const struct cpu_backend *cpu = cpu_backend(be);
    const struct batch *batch = cpu->batch;
    int64_t d = cpu_last_dim(&table);

    ASSERT(cpu_last_dim(&out) == d && out.shape[0] == batch->n_rows);
    ASSERT(table.dtype == DTYPE_F32 || table.dtype == DTYPE_BF16);
    for (int64_t r = 0; r < batch->n_rows; r++) {
        int64_t token = batch_tokens(batch)[r];
        if (token < 0)
            token = cpu_last_token(cpu, batch_seqs(batch)[cpu->row_seq[r]].slot);
        ASSERT(token >= 0 && token < table.shape[0]);
        embed_row(cpu_f32_out(&out) + r * d, &table, token, scale, d);
    }
}
