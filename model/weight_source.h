/* Weights as a checkpoint's files hold them: plain floats, FP8 in blocks that share a scale, or
 * whole numbers of four bits in groups that do. */
#pragma once

#include "base/error.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "model/weight_names.h"

struct checkpoint {
    const struct model_config *config;
    struct safetensors *st;
    struct weight_names names;
};

/* A tensor that was looked up and checked. */
struct weight_source {
    char name[WEIGHT_NAME_BYTES + 16], scale_name[WEIGHT_NAME_BYTES + 16];
    struct tensor info;   /* dtype and shape of its values; I4 where they are packed */
    struct tensor scales; /* those of its scales; rank 0 and name "" where it has none */
    int64_t block[2];     /* rows and columns that share one */
};

/* Looks up what is stored for a place, whose shape it must have. */
int weight_source_find(const struct checkpoint *files, const struct weight_place *place,
                       struct weight_source *source, struct error *err);

/* Whether two places hold the same, byte for byte: 1 or 0, or -1 and a message. Reads them. */
int weight_source_same(const struct checkpoint *files, const struct weight_place *a,
                       const struct weight_place *b, struct error *err);

/* Whether its values are to be multiplied with scales. */
static inline bool weight_source_scaled(const struct weight_source *s)
{
    return s->info.dtype == DTYPE_F8_E4M3 || s->info.dtype == DTYPE_I4;
}

/* One thread's memory for reading; grows. */
struct weight_scratch {
    void *raw;
    size_t raw_size;
    float *scales;
    size_t scales_size;
};

void *weight_scratch_raw(struct weight_scratch *scratch, size_t bytes);
void weight_scratch_free(struct weight_scratch *scratch);

/* Reads `rows` rows from `first_row` on as they are stored. */
int weight_source_read(const struct checkpoint *files, const struct weight_source *s,
                       int64_t first_row, int64_t rows, void *out, struct error *err);

/* Leaves the scales of those rows in scratch->scales, from the block on that `first_row` is in. */
int weight_source_read_scales(const struct checkpoint *files, const struct weight_source *s,
                              int64_t first_row, int64_t rows, struct weight_scratch *scratch,
                              struct error *err);

/* Reads rows of a scaled source multiplied out, as `dtype`, F32 or BF16. */
int weight_source_widen(const struct checkpoint *files, const struct weight_source *s,
                        int64_t first_row, int64_t rows, enum dtype dtype, void *out,
                        struct weight_scratch *scratch, struct error *err);
