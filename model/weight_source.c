#include "model/weight_source.h"

#include "base/memory.h"
#include "kernels/widen.h"
#include "model/dequant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHAPE_TEXT_BYTES = 96, PER_WORD = 8 /* values in a word of packed ones */ };

/* ---- looking tensors up ------------------------------------------------------------------- */

static const char *shape_text(char out[SHAPE_TEXT_BYTES], const struct tensor *t)
{
    int used = snprintf(out, SHAPE_TEXT_BYTES, "(");

    for (int i = 0; i < t->rank; i++)
        used += snprintf(out + used, (size_t)(SHAPE_TEXT_BYTES - used), "%s%lld", i ? ", " : "",
                         (long long)t->shape[i]);
    snprintf(out + used, (size_t)(SHAPE_TEXT_BYTES - used), ")");
    return out;
}

/* Looks the tensor up; its shape must be that of `want`. */
static int find_shaped(const struct checkpoint *files, const char *name, const struct tensor *want,
                       struct tensor *info, struct error *err)
{
    char expected[SHAPE_TEXT_BYTES], found[SHAPE_TEXT_BYTES];
    bool same;

    if (safetensors_info(files->st, name, info, err))
        return -1;
    same = info->rank == want->rank;
    for (int i = 0; same && i < want->rank; i++)
        same = info->shape[i] == want->shape[i];
    if (same)
        return 0;
    return error_set(err, "%s: tensor \"%s\" must have shape %s by config.json, found %s",
                     safetensors_file(files->st, name), name, shape_text(expected, want),
                     shape_text(found, info));
}

static int find_floats(const struct checkpoint *files, const char *name, const struct tensor *want,
                       struct tensor *info, struct error *err)
{
    if (find_shaped(files, name, want, info, err))
        return -1;
    if (info->dtype == DTYPE_I32 || info->dtype == DTYPE_I64)
        return error_set(err, "%s: tensor \"%s\" holds whole numbers, not floats",
                         safetensors_file(files->st, name), name);
    return 0;
}

/* Eight values a word, rows padded to whole words, which these must not need. */
static int find_packed(const struct checkpoint *files, const struct tensor *want,
                       struct weight_source *s, struct error *err)
{
    struct tensor words = *want;
    const char *file = safetensors_file(files->st, s->name);

    if (want->rank != 2 || want->shape[1] % PER_WORD)
        return error_set(err, "%s: tensor \"%s\": only rows of a multiple of 8 can be packed", file,
                         s->name);
    words.shape[1] /= PER_WORD;
    if (find_shaped(files, s->name, &words, &s->info, err))
        return -1;
    if (s->info.dtype != DTYPE_I32)
        return error_set(err, "%s: tensor \"%s\" must be I32", file, s->name);
    s->info = *want;
    s->info.dtype = DTYPE_I4;
    return 0;
}

/* The scales: one for each block; or one alone for a matrix, which has any rank. */
static int find_scales(const struct checkpoint *files, const char *name, struct weight_source *s,
                       struct error *err)
{
    const struct model_config *c = files->config;
    const int64_t *rows_cols = &s->info.shape[s->info.rank - 2];
    bool one = c->quantization == QUANT_FP8_TENSOR;
    const char *what = s->info.dtype == DTYPE_I4 ? "a packed tensor" : "an FP8 tensor";
    struct tensor want = {.rank = 2};

    weight_scale_name(&files->names, name, s->scale_name);
    for (int i = 0; i < 2; i++) {
        s->block[i] = c->quant_block[i] ? c->quant_block[i] : rows_cols[i];
        want.shape[i] = (rows_cols[i] + s->block[i] - 1) / s->block[i];
    }
    if (one && safetensors_info(files->st, s->scale_name, &want, err))
        return error_prefix(err, "the scale of %s", what);
    if (one && tensor_elements(&want) != (s->info.rank == 3 ? s->info.shape[0] : 1))
        return error_set(err, "%s: tensor \"%s\" must hold one number a matrix",
                         safetensors_file(files->st, s->scale_name), s->scale_name);
    if (find_floats(files, s->scale_name, &want, &s->scales, err))
        return error_prefix(err, "the scales of %s", what);
    if (s->scales.dtype == DTYPE_F8_E4M3)
        return error_set(err, "%s: tensor \"%s\" can't be F8_E4M3 itself",
                         safetensors_file(files->st, s->scale_name), s->scale_name);
    return 0;
}

int weight_source_find(const struct checkpoint *files, const struct weight_place *place,
                       struct weight_source *s, struct error *err)
{
    enum quantization quantization = files->config->quantization;

    *s = (struct weight_source){.scales.rank = 0};
    snprintf(s->name, sizeof(s->name), "%s_packed", place->name);
    if (quantization == QUANT_INT4 && safetensors_has(files->st, s->name))
        return find_packed(files, &place->want, s, err) || find_scales(files, place->name, s, err);
    snprintf(s->name, sizeof(s->name), "%s", place->name);
    if (find_floats(files, s->name, &place->want, &s->info, err))
        return -1;
    if (s->info.dtype == DTYPE_F8_E8M0)
        return error_set(err, "%s: tensor \"%s\" is F8_E8M0, which is for scales alone",
                         safetensors_file(files->st, s->name), s->name);
    if (s->info.dtype != DTYPE_F8_E4M3)
        return 0;
    if (s->info.rank < 2)
        return error_set(err, "%s: tensor \"%s\" is F8_E4M3, but only matrices can be",
                         safetensors_file(files->st, s->name), s->name);
    if (quantization != QUANT_FP8_BLOCK && quantization != QUANT_FP8_TENSOR)
        return error_set(err, "%s: tensor \"%s\" is F8_E4M3, but config.json has no %s",
                         safetensors_file(files->st, s->name), s->name,
                         quantization == QUANT_NONE ? "quantization_config" : "FP8 in it");
    return find_scales(files, s->name, s, err);
}

/* ---- reading ------------------------------------------------------------------------------ */

static void *grow(void **block, size_t *size, size_t wanted)
{
    if (*size < wanted) {
        free(*block); /* its contents need not be copied */
        *block = mem_alloc(wanted);
        *size = wanted;
    }
    return *block;
}

void *weight_scratch_raw(struct weight_scratch *scratch, size_t bytes)
{
    return grow(&scratch->raw, &scratch->raw_size, bytes);
}

void weight_scratch_free(struct weight_scratch *scratch)
{
    free(scratch->raw);
    free(scratch->scales);
    *scratch = (struct weight_scratch){0};
}

int weight_source_read(const struct checkpoint *files, const struct weight_source *s,
                       int64_t first_row, int64_t rows, void *out, struct error *err)
{
    uint64_t row = s->info.rank > 1 ? (uint64_t)s->info.shape[s->info.rank - 1] : 1;
    uint64_t first = dtype_bytes(s->info.dtype, (uint64_t)first_row * row);

    return safetensors_read_part(files->st, s->name, first,
                                 dtype_bytes(s->info.dtype, (uint64_t)rows * row), out, err);
}

int weight_source_read_scales(const struct checkpoint *files, const struct weight_source *s,
                              int64_t first_row, int64_t rows, struct weight_scratch *scratch,
                              struct error *err)
{
    int64_t cols = s->info.shape[s->info.rank - 1];
    int64_t row = (cols + s->block[1] - 1) / s->block[1]; /* scales in one of theirs */
    int64_t first = first_row / s->block[0], last = (first_row + rows - 1) / s->block[0];
    int64_t n = (last - first + 1) * row;
    float *out = grow((void **)&scratch->scales, &scratch->scales_size, (size_t)n * sizeof(*out));
    size_t bytes = dtype_bytes(s->scales.dtype, (uint64_t)n);
    void *raw = weight_scratch_raw(scratch, bytes);

    if (safetensors_read_part(files->st, s->scale_name,
                              dtype_bytes(s->scales.dtype, (uint64_t)(first * row)), bytes, raw,
                              err))
        return -1;
    widen_to_f32(out, raw, s->scales.dtype, n);
    return 0;
}

int weight_source_widen(const struct checkpoint *files, const struct weight_source *s,
                        int64_t first_row, int64_t rows, enum dtype dtype, void *out,
                        struct weight_scratch *scratch, struct error *err)
{
    struct scaled_matrix matrix = {.dtype = s->info.dtype,
                                   .cols = s->info.shape[s->info.rank - 1],
                                   .block = {s->block[0], s->block[1]}};

    if (weight_source_read_scales(files, s, first_row, rows, scratch, err))
        return -1;
    matrix.scales = scratch->scales;
    void *raw =
        weight_scratch_raw(scratch, dtype_bytes(s->info.dtype, (uint64_t)(rows * matrix.cols)));
    if (weight_source_read(files, s, first_row, rows, raw, err))
        return -1;
    dequant_rows(out, dtype, raw, &matrix, first_row, rows);
    return 0;
}

/* ---- comparing ---------------------------------------------------------------------------- */

static int same_bytes(const struct safetensors *st, const char *a, const char *b, uint64_t bytes,
                      struct error *err)
{
    enum { PART = 4 << 20 };
    char *parts = mem_alloc(2 * PART);
    int same = 1;

    for (uint64_t at = 0; at < bytes && same == 1; at += PART) {
        size_t n = bytes - at < PART ? (size_t)(bytes - at) : PART;
        if (safetensors_read_part(st, a, at, n, parts, err) ||
            safetensors_read_part(st, b, at, n, parts + PART, err))
            same = -1;
        else
            same = memcmp(parts, parts + PART, n) == 0;
    }
    free(parts);
    return same;
}

int weight_source_same(const struct checkpoint *files, const struct weight_place *a,
                       const struct weight_place *b, struct error *err)
{
    struct weight_source x, y;
    int same;

    if (weight_source_find(files, a, &x, err) || weight_source_find(files, b, &y, err))
        return -1;
    if (x.info.dtype != y.info.dtype || tensor_elements(&x.info) != tensor_elements(&y.info) ||
        x.scales.dtype != y.scales.dtype)
        return 0;
    same = same_bytes(files->st, x.name, y.name, tensor_bytes(&x.info), err);
    if (same == 1 && weight_source_scaled(&x))
        same = same_bytes(files->st, x.scale_name, y.scale_name, tensor_bytes(&x.scales), err);
    return same;
}
