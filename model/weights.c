/* How weights get to the backend.
 *
 * Every tensor is first looked up and checked, then takes its memory on the backend. Then threads
 * take pieces of tensors, whole rows of at most STAGE_BYTES, off one list: read a piece into the
 * thread's staging memory (page-locked where that makes copies fast), upload it, take the next one.
 * While one thread's piece is copied the others read. FP8 and INT4 stay as they are where the
 * backend keeps them; else the thread that read them multiplies them out. Tensors that the graph
 * has no place for (layers of multi-token prediction that aren't asked for, rotary inv_freq) are
 * never looked at. */
#include "model/weights.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "kernels/widen.h"
#include "model/weight_list.h"
#include "model/weight_source.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STAGE_BYTES = 8 << 20, MAX_READERS = 16 };

/* Rows of a tensor that are read in one go. */
struct piece {
    int32_t item, expert;
    int64_t first_row, rows;
};

struct loader {
    const struct model_config *config;
    struct checkpoint files;
    struct backend *be;
    const atomic_int *cancel;
    struct weight_list list;
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
    struct weight_scratch scratch;
};

/* ---- looking tensors up ------------------------------------------------------------------- */

static bool cancelled(const atomic_int *cancel)
{
    return cancel && atomic_load(cancel);
}

/* Whether what is stored can be uploaded as it is. FP8 must begin with a block; INT4 have groups
 * that I4_GROUP divides and BF16 scales. */
static bool whole_blocks(const struct loader *l, const struct weight_source *s, int64_t first_row)
{
    if (s->info.dtype == DTYPE_I4)
        return s->scales.dtype == DTYPE_BF16 && s->block[1] % I4_GROUP == 0;
    return l->config->quantization == QUANT_FP8_BLOCK && first_row % s->block[0] == 0;
}

/* Checks the item's tensors. `*dtype`: theirs, or F32 for experts that differ. */
static int check_item(const struct loader *l, const struct weight_item *item, enum dtype *dtype,
                      struct error *err)
{
    struct weight_source source;

    for (int32_t e = 0; e == 0 || e < item->experts; e++) {
        struct weight_place place = weight_place(&l->files.names, item, e);
        if (weight_source_find(&l->files, &place, &source, err))
            return -1;
        bool widened = weight_source_scaled(&source) && !whole_blocks(l, &source, place.first_row);
        enum dtype found = widened ? DTYPE_F32 : source.info.dtype;
        *dtype = e == 0 || *dtype == found ? found : DTYPE_F32;
    }
    return 0;
}

/* ---- reading (any thread) ----------------------------------------------------------------- */

/* Leaves a vector in the stage as floats times its scale. */
static void scale_vector(struct reader *r, struct tensor *host, float scale)
{
    int64_t n = tensor_elements(host);
    void *raw = weight_scratch_raw(&r->scratch, tensor_bytes(host));
    float *out = r->stage;

    memcpy(raw, r->stage, tensor_bytes(host));
    widen_to_f32(out, raw, host->dtype, n);
    for (int64_t i = 0; i < n; i++)
        out[i] *= scale;
    host->dtype = DTYPE_F32;
}

/* Where a piece begins among all rows of its item. */
static int64_t first_row_on_backend(const struct weight_item *item, const struct piece *p)
{
    return p->expert * item->rows + p->first_row;
}

/* The scales of an item, or of its expert, that stays FP8. */
static int upload_scales(struct reader *r, const struct weight_item *item, int32_t expert,
                         const struct weight_source *source, int64_t first_row, struct error *err)
{
    const int64_t *block = source->block;
    int64_t n = (item->rows + block[0] - 1) / block[0] * (item->cols / block[1]);
    struct tensor dst = {.data = item->dst->scales,
                         .dtype = DTYPE_F32,
                         .rank = 1,
                         .shape = {n * (item->experts ? item->experts : 1)}};
    struct tensor host = {.dtype = DTYPE_F32, .rank = 1, .shape = {n}};

    if (weight_source_read_scales(&r->l->files, source, first_row, item->rows, &r->scratch, err))
        return -1;
    host.data = r->scratch.scales;
    return r->l->be->ops->upload(r->l->be, &dst, expert * n, &host, err);
}

/* The scales of rows that stay INT4, as BF16, which they come as: those of wider groups repeated.
 */
static int upload_group_scales(struct reader *r, const struct weight_item *item,
                               const struct piece *p, const struct weight_source *source,
                               struct error *err)
{
    int64_t row = item->cols / I4_GROUP, n = p->rows * row, repeats = source->block[1] / I4_GROUP;
    int64_t theirs = (item->cols + source->block[1] - 1) / source->block[1];
    struct tensor dst = {.data = item->dst->group_scales,
                         .dtype = DTYPE_BF16,
                         .rank = 1,
                         .shape = {item->rows * row * (item->experts ? item->experts : 1)}};
    struct tensor host = {.dtype = DTYPE_BF16, .rank = 1, .shape = {n}};

    if (weight_source_read_scales(&r->l->files, source, p->first_row, p->rows, &r->scratch, err))
        return -1;
    uint16_t *scales = weight_scratch_raw(&r->scratch, (size_t)n * sizeof(*scales));
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &r->scratch.scales[i / row * theirs + i % row / repeats], sizeof(bits));
        scales[i] = (uint16_t)(bits >> 16);
    }
    host.data = scales;
    return r->l->be->ops->upload(r->l->be, &dst, first_row_on_backend(item, p) * row, &host, err);
}

static int load_piece(struct reader *r, const struct piece *p, struct error *err)
{
    const struct weight_item *item = &r->l->list.items[p->item];
    const struct checkpoint *files = &r->l->files;
    struct weight_place place = weight_place(&files->names, item, p->expert);
    int64_t row_elements = weight_row_elements(item), row = place.first_row + p->first_row;
    struct tensor host = {.data = r->stage, .rank = 1, .shape = {p->rows * row_elements}};
    struct weight_source source;
    int rc;

    if (weight_source_find(files, &place, &source, err))
        return -1;
    host.dtype = source.info.dtype;
    atomic_fetch_add(&r->l->bytes_read, (int64_t)tensor_bytes(&host));
    if (weight_source_scaled(&source) && item->dst->dtype != source.info.dtype) {
        host.dtype = item->dst->dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
        rc = weight_source_widen(files, &source, row, p->rows, host.dtype, r->stage, &r->scratch,
                                 err);
    } else {
        rc = weight_source_read(files, &source, row, p->rows, r->stage, err);
    }
    if (rc)
        return -1;
    if (item->scale != 1)
        scale_vector(r, &host, item->scale);
    if (item->dst->dtype == DTYPE_F8_E4M3 && p->first_row == 0 &&
        upload_scales(r, item, p->expert, &source, place.first_row, err))
        return -1;
    if (item->dst->dtype == DTYPE_I4 && upload_group_scales(r, item, p, &source, err))
        return -1;
    int64_t at = first_row_on_backend(item, p) * row_elements;
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

/* Whether the backend can keep an item that comes as `dtype` as it is. */
static bool can_keep(const struct loader *l, const struct weight_item *item, enum dtype dtype)
{
    const struct model_config *c = l->config;

    if (item->use != WEIGHT_MATRIX || item->rows % 8 || item->cols == 0 || item->cols % 128)
        return false;
    if (dtype == DTYPE_I4)
        return item->experts > 0 && l->be->keeps_int4;
    return dtype == DTYPE_F8_E4M3 && l->be->keeps_fp8 && c->quantization == QUANT_FP8_BLOCK &&
           c->quant_block[0] == 128 && c->quant_block[1] == 128;
}

/* Whether two items have to stay narrow together. INT4 experts may have wide shared ones beside. */
static bool go_together(const struct loader *l, const struct weight_item *a,
                        const struct weight_item *b)
{
    if (l->config->quantization == QUANT_INT4 && (a->experts > 0) != (b->experts > 0))
        return false;
    return a->together != 0 && a->together == b->together;
}

/* FP8 and INT4 items that the backend can't keep, with those that go with them, will be multiplied
 * out. */
static void choose_narrow(const struct loader *l, enum dtype *dtypes)
{
    const struct weight_item *items = l->list.items;
    int last = l->list.n;

    for (int i = 0; i < l->list.n; i = last) {
        bool keep = true;
        for (last = i; last < l->list.n && (last == i || go_together(l, &items[i], &items[last]));
             last++)
            keep &= can_keep(l, &items[last], dtypes[last]) && dtypes[last] == dtypes[i];
        for (int j = i; j < last; j++)
            if (!keep && (dtypes[j] == DTYPE_F8_E4M3 || dtypes[j] == DTYPE_I4))
                dtypes[j] = DTYPE_F32;
    }
}

/* The place of what stands in for an item. */
static struct weight_place stand_in_place(const struct loader *l, const struct weight_item *item)
{
    const struct weight_list *list = &l->list;
    int i = 0;

    while (list->items[i].dst != item->stand_in)
        i++;
    ASSERT(i < list->n + list->n_left_out);
    if (i >= list->n) /* left out itself */
        return stand_in_place(l, &list->items[i]);
    return weight_place(&l->files.names, &list->items[i], 0);
}

/* Leaves out what the checkpoint doesn't have of its own. */
static int leave_out_shared(struct loader *l)
{
    for (int i = 0; i < l->list.n; i++) {
        const struct weight_item *item = &l->list.items[i];
        int same = 1;
        if (!item->stand_in)
            continue;
        if (weight_is_stored(&l->files.names, l->files.st, item)) {
            struct weight_place own = weight_place(&l->files.names, item, 0);
            struct weight_place other = stand_in_place(l, item);
            same = weight_source_same(&l->files, &own, &other, l->err);
        }
        if (same < 0)
            return -1;
        if (same)
            weight_list_leave_out(&l->list, i--);
    }
    return 0;
}

/* Checks every tensor, then takes memory for all of them and cuts them in pieces. */
static int prepare(struct loader *l)
{
    int64_t shape[TENSOR_MAX_RANK], capacity = 0;
    enum dtype *dtypes = mem_zalloc((size_t)l->list.n, sizeof(*dtypes));
    int rc = 0;

    for (int i = 0; i < l->list.n && rc == 0; i++)
        rc = check_item(l, &l->list.items[i], &dtypes[i], l->err);
    choose_narrow(l, dtypes);
    for (int i = 0; i < l->list.n && rc == 0; i++) {
        struct weight_item *item = &l->list.items[i];
        int rank = weight_shape(item, shape);
        if (cancelled(l->cancel))
            rc = error_set(l->err, "loading the model was cancelled");
        else if (l->be->ops->alloc_weight(l->be, item->dst, item->use, dtypes[i], rank, shape,
                                          l->err))
            rc = error_prefix(l->err, "%s", weight_place(&l->files.names, item, 0).name);
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
        weight_scratch_free(&readers[i].scratch);
    }
    if (atomic_load(&l->failed))
        return -1;
    double seconds = (double)(clock_us() - start) * 1e-6, gb = (double)l->bytes_read * 1e-9;
    log_info("read %.2f GB of weights in %.2f s (%.1f GB/s) with %d threads", gb, seconds,
             gb / (seconds > 0 ? seconds : 1e-6), n);
    return 0;
}

static void begin(struct loader *l, struct model_weights *weights)
{
    size_t layers = (size_t)model_config_all_layers(l->config);

    memset(weights, 0, sizeof(*weights));
    weights->layers = mem_zalloc(layers, sizeof(*weights->layers));
    weights->mtp = mem_zalloc((size_t)l->config->mtp_layers, sizeof(*weights->mtp));
    l->list = weight_list_new(weights, l->config);
}

/* What `begin` took, of weights that were never there. */
static void free_lists(struct loader *l, struct model_weights *weights)
{
    weight_list_free(&l->list);
    free(weights->layers);
    free(weights->mtp);
}

/* Without a checkpoint there is nothing that need not be. */
static void leave_out_all(struct loader *l)
{
    for (int i = 0; i < l->list.n; i++)
        if (l->list.items[i].stand_in)
            weight_list_leave_out(&l->list, i--);
}

static int end(struct loader *l, struct model_weights *weights, int rc)
{
    if (rc)
        weights_free(weights, l->config, l->be);
    else
        weight_list_bind(&l->list);
    weight_list_free(&l->list);
    free(l->pieces);
    return rc;
}

int weights_load(struct model_weights *weights, const struct model_config *config, const char *dir,
                 struct backend *be, const atomic_int *cancel, struct error *err)
{
    struct loader l = {.config = config, .be = be, .cancel = cancel, .err = err};
    struct checkpoint *files = &l.files;

    *files = (struct checkpoint){.config = config, .st = safetensors_open(dir, err)};
    if (!files->st)
        return -1;
    files->names = weight_names_find(config, files->st);
    pthread_mutex_init(&l.lock, NULL);
    begin(&l, weights);
    int rc = leave_out_shared(&l) || prepare(&l) || read_all(&l) ? -1 : 0;
    pthread_mutex_destroy(&l.lock);
    safetensors_close(files->st);
    return end(&l, weights, rc);
}

int weights_count_mtp(const struct model_config *config, const char *dir, int32_t *count,
                      struct error *err)
{
    struct model_config all = *config;
    struct loader l = {.config = &all};
    struct model_weights weights;

    *count = 0;
    all.mtp_layers = config->mtp_declared;
    l.files.st = safetensors_open(dir, err);
    if (!l.files.st)
        return -1;
    l.files.names = weight_names_find(&all, l.files.st);
    begin(&l, &weights);
    for (int i = 0; i < l.list.n; i++) {
        const struct weight_item *item = &l.list.items[i];
        int32_t after = item->layer - config->layers + 1;
        if (after > *count && weight_is_stored(&l.files.names, l.files.st, item))
            *count = after;
    }
    safetensors_close(l.files.st);
    free_lists(&l, &weights);
    return 0;
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

static bool is_quantized(const struct model_config *config, const struct weight_item *item)
{
    if (item->use == WEIGHT_EXACT || item->layer < 0)
        return item->use == WEIGHT_MATRIX && config->quantized.head;
    if (item->experts)
        return config->quantized.experts;
    if (strstr(item->part, "shared_experts"))
        return config->quantized.shared;
    return strstr(item->part, "mlp.") ? config->quantized.dense : config->quantized.attention;
}

/* What the items of such a checkpoint would come to the backend as. */
static enum dtype *random_dtypes(const struct loader *l)
{
    enum dtype *dtypes = mem_zalloc((size_t)l->list.n, sizeof(*dtypes));
    enum quantization quantization = l->config->quantization;
    enum dtype narrow = quantization == QUANT_INT4        ? DTYPE_I4
                        : quantization == QUANT_FP8_BLOCK ? DTYPE_F8_E4M3
                                                          : DTYPE_BF16;

    for (int i = 0; i < l->list.n; i++)
        dtypes[i] = is_quantized(l->config, &l->list.items[i]) ? narrow : DTYPE_BF16;
    choose_narrow(l, dtypes);
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

    begin(&l, weights);
    leave_out_all(&l);
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
    return end(&l, weights, rc);
}

uint64_t weights_bytes(const struct model_config *config, size_t matrix_bytes,
                       const struct backend *be)
{
    struct model_weights weights;
    struct backend keeps = be ? *be : (struct backend){0};
    struct loader l = {.config = config, .be = &keeps};
    uint64_t bytes = 0;

    begin(&l, &weights);
    leave_out_all(&l);
    enum dtype *dtypes = random_dtypes(&l);
    for (int i = 0; i < l.list.n; i++) {
        const struct weight_item *item = &l.list.items[i];
        uint64_t n =
            (uint64_t)weight_elements(item) * (uint64_t)(item->experts ? item->experts : 1);
        if (dtypes[i] == DTYPE_F8_E4M3)
            bytes += n + n / (128 * 128) * sizeof(float);
        else if (dtypes[i] == DTYPE_I4)
            bytes += n / 2 + n / I4_GROUP * sizeof(uint16_t);
        else
            bytes += n * (item->use == WEIGHT_EXACT ? sizeof(float) : matrix_bytes);
    }
    free(dtypes);
    free_lists(&l, &weights);
    return bytes;
}

/* ---- freeing ------------------------------------------------------------------------------ */

static void release(struct backend *be, struct tensor *t)
{
    if (t->data)
        be->ops->release(be, t);
    t->data = NULL;
}

/* A struct of tensors and nothing else. */
static void release_all(struct backend *be, void *tensors, size_t bytes)
{
    struct tensor *all = tensors;

    ASSERT(bytes % sizeof(*all) == 0);
    for (size_t i = 0; i < bytes / sizeof(*all); i++)
        release(be, &all[i]);
}

void weights_free(struct model_weights *weights, const struct model_config *config,
                  struct backend *be)
{
    /* What is shared is one memory, freed once. */
    for (int i = 0; weights->mtp && i < config->mtp_layers; i++) {
        struct mtp_weights *m = &weights->mtp[i];
        if (m->embed.data == weights->embed.data)
            m->embed.data = NULL;
        if (m->lm_head.data == weights->lm_head.data)
            m->lm_head.data = NULL;
        release_all(be, m, sizeof(*m));
    }
    if (weights->lm_head.data == weights->embed.data)
        weights->lm_head.data = NULL;
    release(be, &weights->embed);
    release(be, &weights->final_norm);
    release(be, &weights->lm_head);
    for (int n = 0; weights->layers && n < model_config_all_layers(config); n++)
        release_all(be, &weights->layers[n], sizeof(weights->layers[n]));
    free(weights->layers);
    free(weights->mtp);
    weights->layers = NULL;
    weights->mtp = NULL;
}
