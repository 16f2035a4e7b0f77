/* How weights get to the backend.
 *
 * Every tensor is first looked up and checked, then takes its memory on the backend. Then threads
 * take pieces of tensors, whole rows of at most STAGE_BYTES, off one list: read a piece into the
 * thread's staging memory (page-locked where that makes copies fast), upload it, take the next one.
 * While one thread's piece is copied the others read. FP8 stays as it is where the backend keeps
 * it; else the thread that read it multiplies it out. Tensors that the graph has no place for (the
 * multi-token prediction layer after the last, rotary inv_freq) are never looked at. */
#include "model/weights.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "kernels/widen.h"
#include "model/dequant.h"
#include "model/safetensors.h"
#include "model/weight_list.h"
#include "model/weight_names.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STAGE_BYTES = 8 << 20, MAX_READERS = 16, SHAPE_TEXT_BYTES = 96 };

/* Rows of a tensor that are read in one go. */
struct piece {
    int32_t item, expert;
    int64_t first_row, rows;
};

struct loader {
    const struct model_config *config;
    struct safetensors *st;
    struct backend *be;
    const atomic_int *cancel;
    struct weight_list list;
    struct weight_names names;
    struct piece *pieces;
    int64_t n_pieces;

    /* The threads'. */
    _Atomic int64_t next;       /* piece to take */
    _Atomic int64_t bytes_read; /* of the files */
    atomic_int failed;
    pthread_mutex_t lock; /* of the error */
    struct error *err;
};

/* One thread's memory. */
struct reader {
    struct loader *l;
    pthread_t thread;
    void *stage; /* STAGE_BYTES */
    void *raw;   /* an FP8 piece as it is stored, or the scales as they are; grows */
    size_t raw_size;
    float *scales;
    size_t scales_size;
};

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

static bool cancelled(const atomic_int *cancel)
{
    return cancel && atomic_load(cancel);
}

/* Looks the tensor up; its shape must be that of `want`. */
static int find_tensor(const struct loader *l, const char *name, const struct tensor *want,
                       struct tensor *info, struct error *err)
{
    char expected[SHAPE_TEXT_BYTES], found[SHAPE_TEXT_BYTES];
    bool same;

    if (safetensors_info(l->st, name, info, err))
        return -1;
    same = info->rank == want->rank;
    for (int i = 0; same && i < want->rank; i++)
        same = info->shape[i] == want->shape[i];
    if (!same)
        return error_set(err, "%s: tensor \"%s\" must have shape %s by config.json, found %s",
                         safetensors_file(l->st, name), name, shape_text(expected, want),
                         shape_text(found, info));
    if (info->dtype == DTYPE_I32 || info->dtype == DTYPE_I64)
        return error_set(err, "%s: tensor \"%s\" holds whole numbers, not floats",
                         safetensors_file(l->st, name), name);
    return 0;
}

/* The number of rows and columns of an FP8 matrix that share a scale. */
static void scale_block(const struct loader *l, const struct tensor *info, int64_t block[2])
{
    bool whole = l->config->quantization == QUANT_FP8_TENSOR;

    block[0] = whole ? info->shape[info->rank - 2] : l->config->quant_block[0];
    block[1] = whole ? info->shape[info->rank - 1] : l->config->quant_block[1];
}

/* The scales of an FP8 matrix: one for each block, or one alone, which has any rank. */
static int find_scales(const struct loader *l, const char *name, const struct tensor *info,
                       char scale_name[WEIGHT_NAME_BYTES + 16], struct tensor *scales,
                       struct error *err)
{
    bool whole = l->config->quantization == QUANT_FP8_TENSOR;
    struct tensor want = {.rank = 2};
    int64_t block[2];

    if (l->config->quantization == QUANT_NONE || info->rank < 2)
        return error_set(
            err, "%s: tensor \"%s\" is F8_E4M3, but %s", safetensors_file(l->st, name), name,
            info->rank < 2 ? "only matrices can be" : "config.json has no quantization_config");
    weight_scale_name(&l->names, name, scale_name);
    scale_block(l, info, block);
    for (int i = 0; i < 2; i++)
        want.shape[i] = (info->shape[i] + block[i] - 1) / block[i];
    if (whole && safetensors_info(l->st, scale_name, &want, err))
        return error_prefix(err, "the scale of an FP8 tensor");
    if (whole && tensor_elements(&want) != (info->rank == 3 ? info->shape[0] : 1))
        return error_set(err, "%s: tensor \"%s\" must hold one number a matrix",
                         safetensors_file(l->st, scale_name), scale_name);
    if (find_tensor(l, scale_name, &want, scales, err))
        return error_prefix(err, "the scales of an FP8 tensor");
    if (scales->dtype == DTYPE_F8_E4M3)
        return error_set(err, "%s: tensor \"%s\" can't be F8_E4M3 itself",
                         safetensors_file(l->st, scale_name), scale_name);
    return 0;
}

/* Checks the item's tensors. `*dtype`: theirs, or F32 for experts that differ. */
static int check_item(const struct loader *l, const struct weight_item *item, enum dtype *dtype,
                      struct error *err)
{
    struct tensor info, scales;
    char scale_name[WEIGHT_NAME_BYTES + 16];

    for (int32_t e = 0; e == 0 || e < item->experts; e++) {
        struct weight_place place = weight_place(&l->names, item, e);
        if (find_tensor(l, place.name, &place.want, &info, err))
            return -1;
        if (info.dtype == DTYPE_F8_E4M3) {
            if (find_scales(l, place.name, &info, scale_name, &scales, err))
                return -1;
            if (l->config->quantization != QUANT_FP8_BLOCK ||
                place.first_row % l->config->quant_block[0] != 0) /* in the middle of a block */
                info.dtype = DTYPE_F32;
        }
        *dtype = e == 0 || *dtype == info.dtype ? info.dtype : DTYPE_F32;
    }
    return 0;
}

/* ---- reading (any thread) ----------------------------------------------------------------- */

static void *grow(void **block, size_t *size, size_t wanted)
{
    if (*size < wanted) {
        free(*block); /* its contents need not be copied */
        *block = mem_alloc(wanted);
        *size = wanted;
    }
    return *block;
}

/* Reads the block scales of an FP8 matrix as F32. */
static int read_scales(struct reader *r, const char *name, const struct tensor *info,
                       struct error *err)
{
    char scale_name[WEIGHT_NAME_BYTES + 16];
    struct tensor scales;

    if (find_scales(r->l, name, info, scale_name, &scales, err))
        return -1;
    size_t n = (size_t)tensor_elements(&scales);
    float *out = grow((void **)&r->scales, &r->scales_size, n * sizeof(float));
    void *raw = grow(&r->raw, &r->raw_size, tensor_bytes(&scales));
    if (safetensors_read(r->l->st, scale_name, raw, err))
        return -1;
    widen_to_f32(out, raw, scales.dtype, (int64_t)n);
    return 0;
}

/* Reads `rows` rows of an FP8 matrix and leaves them in the stage as `dtype`. */
static int read_fp8(struct reader *r, const char *name, const struct tensor *info,
                    int64_t first_row, int64_t rows, enum dtype dtype, struct error *err)
{
    struct fp8_matrix matrix = {.cols = info->shape[info->rank - 1]};
    size_t bytes = (size_t)(rows * matrix.cols);

    if (read_scales(r, name, info, err))
        return -1;
    scale_block(r->l, info, matrix.block);
    matrix.scales = r->scales;
    uint8_t *raw = grow(&r->raw, &r->raw_size, bytes);
    if (safetensors_read_part(r->l->st, name, (uint64_t)(first_row * matrix.cols), bytes, raw, err))
        return -1;
    dequant_fp8_rows(r->stage, dtype, raw, &matrix, first_row, rows);
    return 0;
}

/* Leaves a vector in the stage as floats times its scale. */
static void scale_vector(struct reader *r, struct tensor *host, float scale)
{
    int64_t n = tensor_elements(host);
    void *raw = grow(&r->raw, &r->raw_size, tensor_bytes(host));
    float *out = r->stage;

    memcpy(raw, r->stage, tensor_bytes(host));
    widen_to_f32(out, raw, host->dtype, n);
    for (int64_t i = 0; i < n; i++)
        out[i] *= scale;
    host->dtype = DTYPE_F32;
}

/* The scales of an item, or of its expert, that stays FP8. */
static int upload_scales(struct reader *r, const struct weight_item *item, int32_t expert,
                         const struct weight_place *place, const struct tensor *info,
                         struct error *err)
{
    const int32_t *block = r->l->config->quant_block;
    int64_t columns = item->cols / block[1], n = (item->rows + block[0] - 1) / block[0] * columns;
    struct tensor dst = {.data = item->dst->scales,
                         .dtype = DTYPE_F32,
                         .rank = 1,
                         .shape = {n * (item->experts ? item->experts : 1)}};
    struct tensor host = {.dtype = DTYPE_F32, .rank = 1, .shape = {n}};

    if (read_scales(r, place->name, info, err))
        return -1;
    host.data = r->scales + place->first_row / block[0] * columns;
    return r->l->be->ops->upload(r->l->be, &dst, expert * n, &host, err);
}

static int load_piece(struct reader *r, const struct piece *p, struct error *err)
{
    const struct weight_item *item = &r->l->list.items[p->item];
    struct weight_place place = weight_place(&r->l->names, item, p->expert);
    int64_t row_elements = weight_row_elements(item), row = place.first_row + p->first_row;
    struct tensor host = {.data = r->stage, .rank = 1, .shape = {p->rows * row_elements}};
    struct tensor info;

    if (safetensors_info(r->l->st, place.name, &info, err))
        return -1;
    host.dtype = info.dtype;
    atomic_fetch_add(&r->l->bytes_read, (int64_t)tensor_bytes(&host));
    if (info.dtype == DTYPE_F8_E4M3 && item->dst->dtype != DTYPE_F8_E4M3) {
        host.dtype = item->dst->dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
        if (read_fp8(r, place.name, &info, row, p->rows, host.dtype, err))
            return -1;
    } else {
        uint64_t first = (uint64_t)(row * row_elements) * dtype_size(info.dtype);
        if (safetensors_read_part(r->l->st, place.name, first, tensor_bytes(&host), r->stage, err))
            return -1;
    }
    if (item->scale != 1)
        scale_vector(r, &host, item->scale);
    if (item->dst->dtype == DTYPE_F8_E4M3 && p->first_row == 0 &&
        upload_scales(r, item, p->expert, &place, &info, err))
        return -1;
    int64_t at = p->expert * weight_elements(item) + p->first_row * row_elements;
    if (r->l->be->ops->upload(r->l->be, item->dst, at, &host, err))
        return error_prefix(err, "%s", place.name);
    return 0;
}

/* The first error of all threads is the one that is told. */
static void note_failure(struct loader *l, const struct error *err)
{
    pthread_mutex_lock(&l->lock);
    if (!atomic_exchange(&l->failed, 1))
        *l->err = *err;
    pthread_mutex_unlock(&l->lock);
}

static void *reader_main(void *arg)
{
    struct reader *r = arg;
    struct loader *l = r->l;
    struct error err;
    int64_t at;

    while (!atomic_load(&l->failed) && (at = atomic_fetch_add(&l->next, 1)) < l->n_pieces) {
        int rc = cancelled(l->cancel) ? error_set(&err, "loading the model was cancelled")
                                      : load_piece(r, &l->pieces[at], &err);
        if (rc)
            note_failure(l, &err);
    }
    return NULL;
}

/* ---- the whole ---------------------------------------------------------------------------- */

static void add_pieces(struct loader *l, int32_t index, int64_t *capacity)
{
    const struct weight_item *item = &l->list.items[index];
    /* The widest form a row has in the stage is F32. */
    int64_t most = STAGE_BYTES / (weight_row_elements(item) * (int64_t)sizeof(float));

    ASSERT(most > 0);
    for (int32_t e = 0; e == 0 || e < item->experts; e++) {
        for (int64_t row = 0; row < item->rows; row += most) {
            if (l->n_pieces == *capacity) {
                *capacity = *capacity ? 2 * *capacity : 4096;
                l->pieces = mem_resize(l->pieces, (size_t)*capacity, sizeof(*l->pieces));
            }
            l->pieces[l->n_pieces++] =
                (struct piece){index, e, row, item->rows - row < most ? item->rows - row : most};
        }
    }
}

/* Whether the backend can keep an item of FP8 as it is. */
static bool can_keep_fp8(const struct loader *l, const struct weight_item *item)
{
    const struct model_config *c = l->config;

    return l->be->keeps_fp8 && item->use == WEIGHT_MATRIX && c->quantization == QUANT_FP8_BLOCK &&
           c->quant_block[0] == 128 && c->quant_block[1] == 128 && item->rows % 8 == 0 &&
           item->cols > 0 && item->cols % 128 == 0;
}

/* FP8 items that the backend can't keep, with those that go with them, will be multiplied out. */
static void choose_fp8(const struct loader *l, enum dtype *dtypes)
{
    const struct weight_item *items = l->list.items;
    int last = l->list.n;

    for (int i = 0; i < l->list.n; i = last) {
        bool keep = true;
        for (last = i;
             last < l->list.n &&
             (last == i || (items[i].together != 0 && items[last].together == items[i].together));
             last++)
            keep &= items[last].use != WEIGHT_MATRIX ||
                    (dtypes[last] == DTYPE_F8_E4M3 && can_keep_fp8(l, &items[last]));
        for (int j = i; j < last; j++)
            if (dtypes[j] == DTYPE_F8_E4M3 && (!keep || items[j].use != WEIGHT_MATRIX))
                dtypes[j] = DTYPE_F32;
    }
}

/* Checks every tensor, then takes memory for all of them and cuts them in pieces. */
static int prepare(struct loader *l)
{
    int64_t shape[TENSOR_MAX_RANK], capacity = 0;
    enum dtype *dtypes = mem_zalloc((size_t)l->list.n, sizeof(*dtypes));
    int rc = 0;

    for (int i = 0; i < l->list.n && rc == 0; i++)
        rc = check_item(l, &l->list.items[i], &dtypes[i], l->err);
    choose_fp8(l, dtypes);
    for (int i = 0; i < l->list.n && rc == 0; i++) {
        struct weight_item *item = &l->list.items[i];
        int rank = weight_shape(item, shape);
        if (cancelled(l->cancel))
            rc = error_set(l->err, "loading the model was cancelled");
        else if (l->be->ops->alloc_weight(l->be, item->dst, item->use, dtypes[i], rank, shape,
                                          l->err))
            rc = error_prefix(l->err, "%s", weight_place(&l->names, item, 0).name);
        else
            add_pieces(l, i, &capacity);
    }
    free(dtypes);
    return rc;
}

static int reader_count(const struct loader *l)
{
    int64_t cores = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t n = cores < MAX_READERS ? cores : MAX_READERS;

    return (int)(n > l->n_pieces ? l->n_pieces : n > 0 ? n : 1);
}

static int read_all(struct loader *l)
{
    const struct backend_ops *op = l->be->ops;
    struct reader readers[MAX_READERS] = {0};
    int n = reader_count(l), started = 0;
    int64_t start = clock_us();

    for (; started < n && !atomic_load(&l->failed); started++) {
        struct reader *r = &readers[started];
        r->l = l;
        r->stage = op->stage_alloc(l->be, STAGE_BYTES);
        if (!r->stage) {
            struct error err;
            error_set(&err, "no memory to read the model's files into");
            note_failure(l, &err);
            break;
        }
        if (pthread_create(&r->thread, NULL, reader_main, r))
            PANIC("can't start a thread that reads weights");
    }
    for (int i = 0; i < started; i++) {
        pthread_join(readers[i].thread, NULL);
        op->stage_free(l->be, readers[i].stage);
        free(readers[i].raw);
        free(readers[i].scales);
    }
    if (atomic_load(&l->failed))
        return -1;
    double seconds = (double)(clock_us() - start) * 1e-6, gb = (double)l->bytes_read * 1e-9;
    log_info("read %.2f GB of weights in %.2f s (%.1f GB/s) with %d threads", gb, seconds,
             gb / (seconds > 0 ? seconds : 1e-6), n);
    return 0;
}

/* What the list and the layers are for; `own_head`: see weight_list_new. */
static void begin(struct loader *l, struct model_weights *weights, bool own_head)
{
    memset(weights, 0, sizeof(*weights));
    weights->layers = mem_zalloc((size_t)l->config->layers, sizeof(*weights->layers));
    l->list = weight_list_new(weights, l->config, own_head);
}

static int end(struct loader *l, struct model_weights *weights, bool own_head, int rc)
{
    if (rc)
        weights_free(weights, l->config, l->be);
    else if (!own_head)
        weights->lm_head = weights->embed;
    weight_list_free(&l->list);
    free(l->pieces);
    return rc;
}

int weights_load(struct model_weights *weights, const struct model_config *config, const char *dir,
                 struct backend *be, const atomic_int *cancel, struct error *err)
{
    struct loader l = {.config = config, .be = be, .cancel = cancel, .err = err};

    l.st = safetensors_open(dir, err);
    if (!l.st)
        return -1;
    /* A head of its own counts even in a tied model, as in transformers. */
    l.names = weight_names_find(config, l.st);
    bool own_head = !config->tie_embeddings || weight_names_have_head(&l.names, l.st);
    pthread_mutex_init(&l.lock, NULL);
    begin(&l, weights, own_head);
    int rc = prepare(&l) || read_all(&l) ? -1 : 0;
    pthread_mutex_destroy(&l.lock);
    safetensors_close(l.st);
    return end(&l, weights, own_head, rc);
}

/* ---- without a checkpoint ----------------------------------------------------------------- */

/* Norms are 1, or what they are scaled with; a matrix keeps the size of what it multiplies; biases
 * are small. */
static int fill(struct loader *l, const struct weight_item *item, uint64_t seed)
{
    bool is_norm = item->cols == 0 && strstr(item->part, "norm");

    if (!is_norm) {
        float scale = item->cols ? 1 / sqrtf((float)item->cols) : 0.02f;
        return l->be->ops->fill_random(l->be, item->dst, seed, scale, l->err);
    }
    struct tensor ones = {.dtype = DTYPE_F32, .rank = 1, .shape = {item->rows}};
    float *values = mem_alloc((size_t)item->rows * sizeof(float));
    for (int64_t i = 0; i < item->rows; i++)
        values[i] = item->scale;
    ones.data = values;
    int rc = l->be->ops->upload(l->be, item->dst, 0, &ones, l->err);
    free(values);
    return rc;
}

/* What the items of such a checkpoint would come to the backend as: the head is never FP8. */
static enum dtype *random_dtypes(const struct loader *l)
{
    enum dtype *dtypes = mem_zalloc((size_t)l->list.n, sizeof(*dtypes));

    for (int i = 0; i < l->list.n; i++)
        dtypes[i] = l->config->quantization == QUANT_FP8_BLOCK && l->list.items[i].layer >= 0
                        ? DTYPE_F8_E4M3
                        : DTYPE_BF16;
    choose_fp8(l, dtypes);
    for (int i = 0; i < l->list.n; i++)
        dtypes[i] = dtypes[i] == DTYPE_F32 ? DTYPE_BF16 : dtypes[i];
    return dtypes;
}

int weights_random(struct model_weights *weights, const struct model_config *config,
                   struct backend *be, const atomic_int *cancel, struct error *err)
{
    struct loader l = {.config = config, .be = be, .cancel = cancel, .err = err};
    int64_t shape[TENSOR_MAX_RANK];
    int rc = 0;

    begin(&l, weights, !config->tie_embeddings);
    enum dtype *dtypes = random_dtypes(&l);
    for (int i = 0; i < l.list.n && rc == 0; i++) {
        struct weight_item *item = &l.list.items[i];
        int rank = weight_shape(item, shape);
        rc = be->ops->alloc_weight(be, item->dst, item->use, dtypes[i], rank, shape, err);
        if (rc == 0)
            rc = fill(&l, item, (uint64_t)i + 1);
        if (rc == 0 && cancelled(cancel))
            rc = error_set(err, "loading the model was cancelled");
    }
    free(dtypes);
    return end(&l, weights, !config->tie_embeddings, rc);
}

uint64_t weights_bytes(const struct model_config *config, size_t matrix_bytes, bool keeps_fp8)
{
    struct model_weights weights;
    struct backend be = {.keeps_fp8 = keeps_fp8};
    struct loader l = {.config = config, .be = &be};
    uint64_t bytes = 0;

    begin(&l, &weights, !config->tie_embeddings);
    enum dtype *dtypes = random_dtypes(&l);
    for (int i = 0; i < l.list.n; i++) {
        const struct weight_item *item = &l.list.items[i];
        uint64_t n =
            (uint64_t)weight_elements(item) * (uint64_t)(item->experts ? item->experts : 1);
        if (dtypes[i] == DTYPE_F8_E4M3)
            bytes += n + n / (128 * 128) * sizeof(float);
        else
            bytes += n * (item->use == WEIGHT_EXACT ? sizeof(float) : matrix_bytes);
    }
    free(dtypes);
    weight_list_free(&l.list);
    free(weights.layers);
    return bytes;
}

/* ---- freeing ------------------------------------------------------------------------------ */

static void release(struct backend *be, struct tensor *t)
{
    if (t->data)
        be->ops->release(be, t);
    t->data = NULL;
}

/* The weights of a layer are tensors and nothing else. */
static void free_layer(struct layer_weights *w, struct backend *be)
{
    struct tensor *all = (struct tensor *)w;

    _Static_assert(sizeof(*w) % sizeof(*all) == 0, "no other member");
    for (size_t i = 0; i < sizeof(*w) / sizeof(*all); i++)
        release(be, &all[i]);
}

void weights_free(struct model_weights *weights, const struct model_config *config,
                  struct backend *be)
{
    if (weights->lm_head.data == weights->embed.data) /* tied: one memory, freed once */
        weights->lm_head.data = NULL;
    release(be, &weights->embed);
    release(be, &weights->final_norm);
    release(be, &weights->lm_head);
    for (int n = 0; weights->layers && n < config->layers; n++)
        free_layer(&weights->layers[n], be);
    free(weights->layers);
    weights->layers = NULL;
}
