/* Steps: what begin puts into the step image, and how finish waits. At most BACKEND_MAX_STEPS
 * are under way, each with page-locked memory of its own (struct cuda_flight). */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/indexer.cuh"

#include <stdlib.h>
#include <string.h>

/* Takes `count` elements of an image. */
template <class T> static void part(T **at, char *base, size_t *used, size_t count)
{
    *used = (*used + 15) / 16 * 16;
    *at = (T *)(base + *used);
    *used += count * sizeof(T);
}

struct step_image step_image_at(char *base, struct step_counts n)
{
    struct step_image image;
    size_t used = 0;

    part(&image.n_rows, base, &used, 1);
    part(&image.results, base, &used, 1);
    part(&image.tokens, base, &used, n.rows);
    part(&image.positions, base, &used, n.rows);
    part(&image.cache_slots, base, &used, n.rows);
    part(&image.row_tables, base, &used, n.rows);
    part(&image.q_starts, base, &used, n.spans);
    part(&image.q_lens, base, &used, n.spans);
    part(&image.kv_lens, base, &used, n.spans);
    part(&image.table_starts, base, &used, n.spans);
    part(&image.logit_rows, base, &used, n.logits);
    part(&image.sample_rows, base, &used, n.logits);
    part(&image.filtered, base, &used, n.logits);
    part(&image.reported, base, &used, n.logits);
    part(&image.pages, base, &used, n.pages);
    image.bytes = used;
    return image;
}

/* Spans that a batch of these sizes can have: a sequence is cut where a group ends, or to rows. */
static int32_t most_spans(const struct cuda_backend *cu, int32_t rows, int32_t seqs)
{
    int32_t group = cu->absorb_rows > 0 ? cu->absorb_rows : rows;

    return cu->batch_invariant ? rows : seqs + rows / group + 1;
}

int cuda_steps_open(struct cuda_backend *cu, struct error *err)
{
    const struct batch_limits *l = &cu->limits;
    size_t seqs = (size_t)l->max_seqs, logits = (size_t)l->max_logits;
    /* Before reserve sets absorb_rows, any row may be a span; so is the memory sized. */
    struct step_counts most = {l->max_rows, l->max_seqs + l->max_rows + 1, l->max_logits,
                               l->max_pages};
    size_t bytes = step_image_at(NULL, most).bytes;
    size_t masks = logits * SAMPLING_MASK_WORDS(cu->vocab_size) * sizeof(uint32_t);

    cu->image = (char *)cuda_take(cu, bytes, true, "the step's metadata", err);
    if (!cu->image)
        return -1;
    for (int i = 0; i < BACKEND_MAX_STEPS; i++) {
        struct cuda_flight *f = &cu->flights[i];
        if (CUDA_CHECK(cu, cudaEventCreateWithFlags(&f->done, cudaEventDisableTiming)) ||
            CUDA_CHECK(cu, cudaMallocHost((void **)&f->image, bytes)) ||
            CUDA_CHECK(cu, cudaMallocHost((void **)&f->masks, masks)) ||
            CUDA_CHECK(cu, cudaMallocHost((void **)&f->fetched, logits * sizeof(*f->fetched))))
            return cuda_report(cu, err);
    }
    cu->step.groups =
        (struct decode_group *)mem_zalloc(seqs + l->max_rows + 1, sizeof(*cu->step.groups));
    int32_t *arrays = (int32_t *)mem_zalloc(4 * seqs, sizeof(int32_t));
    cu->step.q_starts = arrays;
    cu->step.q_lens = arrays + seqs;
    cu->step.kv_lens = arrays + 2 * seqs;
    cu->step.table_starts = arrays + 3 * seqs;
    return 0;
}

void cuda_steps_close(struct cuda_backend *cu)
{
    cudaFree(cu->image);
    for (int i = 0; i < BACKEND_MAX_STEPS; i++) {
        struct cuda_flight *f = &cu->flights[i];
        if (f->done)
            cudaEventDestroy(f->done);
        cudaFreeHost(f->image);
        cudaFreeHost(f->masks);
        cudaFreeHost(f->fetched);
    }
    free(cu->step.groups);
    free(cu->step.q_starts);
}

/* Whether the batch is what graphs were recorded for: each sequence has one absorbed row, which is
 * drawn from. */
static bool is_decode(const struct batch *batch)
{
    if (batch->n_rows != batch->n_seqs || batch->n_logits != batch->n_rows)
        return false;
    for (int32_t i = 0; i < batch->n_seqs; i++)
        if (!batch_seqs(batch)[i].absorbed || batch_logits(batch)[i].target >= 0)
            return false;
    return true;
}

/* Whether rows attend to chosen tokens: a sequence's last one does when any does. */
static bool is_sparse(const struct cuda_backend *cu, const struct batch *batch)
{
    for (int32_t i = 0; i < batch->n_seqs; i++)
        if (batch_seqs(batch)[i].kv_len > cuda_index_limit(cu))
            return true;
    return false;
}

/* Tokens, positions and cache slots of a sequence's rows. */
static void put_rows(struct step_image *image, const struct batch *batch,
                     const struct batch_seq *seq)
{
    const int32_t *pages = batch_pages(batch) + seq->first_page;

    for (int32_t r = seq->first_row; r < seq->first_row + seq->n_rows; r++) {
        int32_t token = batch_tokens(batch)[r], position = batch_positions(batch)[r];
        image->tokens[r] = token >= 0 ? token : -1 - seq->slot;
        image->positions[r] = position;
        image->cache_slots[r] =
            (int64_t)pages[position / KV_PAGE_TOKENS] * KV_PAGE_TOKENS + position % KV_PAGE_TOKENS;
        image->row_tables[r] = seq->first_page;
    }
}

/* The absorbed rows of a sequence as spans, in the last group while they follow it and fit, then in
 * new ones. In batch-invariant mode each row is one, as when it was generated: how mla_decode cuts
 * the context and fills tiles depends on the rows of a span. Returns the number of spans so far. */
static int32_t put_spans(struct cuda_backend *cu, struct step_image *image,
                         const struct batch_seq *seq, int32_t n_spans)
{
    struct cuda_step *step = &cu->step;
    int32_t room = cu->absorb_rows > 0 ? cu->absorb_rows : cu->limits.max_rows;

    step->settled &= seq->n_rows == 1;
    for (int32_t row = 0; row < seq->n_rows;) {
        struct decode_group *g = step->n_groups ? &step->groups[step->n_groups - 1] : NULL;
        int32_t at = seq->first_row + row;
        if (!g || g->first_row + g->rows != at || g->rows == room) {
            g = &step->groups[step->n_groups++];
            *g = {at, 0, n_spans, 0, 0};
        }
        int32_t left = seq->n_rows - row, n = left < room - g->rows ? left : room - g->rows;
        if (cu->batch_invariant)
            n = 1;
        image->q_starts[n_spans] = g->rows;
        image->q_lens[n_spans] = n;
        image->kv_lens[n_spans] = seq->kv_len - (seq->n_rows - row - n);
        image->table_starts[n_spans] = seq->first_page;
        n_spans++;
        g->spans++;
        g->rows += n;
        g->max_q_len = n > g->max_q_len ? n : g->max_q_len;
        row += n;
    }
    return n_spans;
}

static void put_prefill(struct cuda_step *step, const struct batch_seq *seq)
{
    int32_t i = step->n_prefill++;

    step->q_starts[i] = seq->first_row;
    step->q_lens[i] = seq->n_rows;
    step->kv_lens[i] = seq->kv_len;
    step->table_starts[i] = seq->first_page;
    if (seq->n_rows > step->prefill_max_q_len)
        step->prefill_max_q_len = seq->n_rows;
}

/* The rows of a sequence by how they attend: prompt tokens in mla_prefill as far as they see all
 * that is before them, the others in mla_decode. Returns the number of spans so far. */
static int32_t put_seq(struct cuda_backend *cu, struct step_image *image,
                       const struct batch_seq *seq, int32_t n_spans)
{
    struct cuda_step *step = &cu->step;
    int32_t limit = cuda_index_limit(cu), first = seq->kv_len - seq->n_rows;
    int32_t dense = seq->kv_len <= limit ? seq->n_rows : limit > first ? limit - first : 0;
    struct batch_seq head = *seq, rest = *seq;

    if (seq->absorbed)
        return put_spans(cu, image, seq, n_spans);
    step->sparse_prompt |= dense < seq->n_rows;
    head.n_rows = dense;
    head.kv_len = first + dense;
    rest.first_row += dense;
    rest.n_rows -= dense;
    if (head.n_rows > 0)
        put_prefill(step, &head);
    return put_spans(cu, image, &rest, n_spans);
}

/* Returns whether a graph's sampling is enough: rows without filters, reports and state. */
static bool put_logits(struct cuda_backend *cu, struct step_image *image, const struct batch *batch)
{
    struct cuda_step *step = &cu->step;
    bool plain = true;
    int32_t n_drawn = 0;

    step->n_filtered = step->n_reported = 0;
    for (int32_t i = 0; i < batch->n_logits; i++) {
        const struct batch_logit *logit = &batch_logits(batch)[i];
        struct sample_row row = cuda_sample_row(cu, logit);
        row.place = logit->target < 0 ? n_drawn++ : 0;
        plain &= !row.flags && !row.state;
        ASSERT(n_drawn <= cu->limits.max_seqs);
        image->logit_rows[i] = logit->row;
        image->sample_rows[i] = row;
        if (row.flags & SAMPLE_FILTERS)
            image->filtered[step->n_filtered++] = i;
        if (row.flags & SAMPLE_REPORTS)
            image->reported[step->n_reported++] = i;
    }
    return plain;
}

/* What fills a graph up to its size. */
static void put_padding(struct step_image *image, int32_t from, int32_t to)
{
    for (int32_t i = from; i < to; i++) {
        image->tokens[i] = 0;
        image->positions[i] = 0;
        image->cache_slots[i] = -1;
        image->row_tables[i] = 0;
        image->q_starts[i] = i;
        image->q_lens[i] = 1;
        image->kv_lens[i] = 0;
        image->table_starts[i] = 0;
        image->logit_rows[i] = i;
    }
}

static size_t put_batch(struct cuda_backend *cu, const struct cuda_flight *flight,
                        const struct batch *batch, struct step_counts counts, bool recorded)
{
    struct step_image image = step_image_at(flight->image, counts);
    struct cuda_step *step = &cu->step;
    int32_t n_spans = 0;

    step->n_groups = step->n_prefill = step->prefill_max_q_len = 0;
    step->sparse_prompt = 0;
    step->settled = 1;
    *image.n_rows = batch->n_rows;
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const struct batch_seq *seq = &batch_seqs(batch)[s];
        put_rows(&image, batch, seq);
        n_spans = put_seq(cu, &image, seq, n_spans);
    }
    ASSERT(n_spans <= counts.spans);
    step->sampled = put_logits(cu, &image, batch) && recorded;
    *image.results = step->sampled ? flight->fetched : NULL;
    if (counts.rows > batch->n_rows)
        put_padding(&image, batch->n_rows, counts.rows);
    memcpy(image.pages, batch_pages(batch), (size_t)batch->n_pages * sizeof(int32_t));
    return image.bytes;
}

struct cuda_flight *cuda_newest_flight(struct cuda_backend *cu)
{
    ASSERT(cu->n_flights > 0);
    return &cu->flights[(cu->oldest_flight + cu->n_flights - 1) % BACKEND_MAX_STEPS];
}

int cuda_begin(struct backend *be, const struct batch *batch)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct cuda_step *step = &cu->step;
    const struct cuda_graph *graph = NULL;
    struct step_counts counts = {batch->n_rows, most_spans(cu, batch->n_rows, batch->n_seqs),
                                 batch->n_logits, batch->n_pages};

    ASSERT(batch->n_rows > 0 && batch->n_rows <= cu->limits.max_rows && !cu->capturing);
    ASSERT(cu->n_flights < BACKEND_MAX_STEPS);
    step->sparse = is_sparse(cu, batch);
    if (is_decode(batch) && !batch->draft)
        graph = cuda_graph_for(cu, batch->n_rows, step->sparse);
    if (graph)
        counts = {graph->rows, graph->rows, graph->rows, batch->n_pages};
    cu->n_flights++;
    struct cuda_flight *flight = cuda_newest_flight(cu);
    flight->queued = 0;
    flight->n_results = 0;
    size_t bytes = put_batch(cu, flight, batch, counts, graph != NULL);
    step->image = step_image_at(cu->image, counts);
    step->rows = batch->n_rows;
    step->logits = batch->n_logits;
    CUDA_CHECK(
        cu, cudaMemcpyAsync(cu->image, flight->image, bytes, cudaMemcpyHostToDevice, cu->stream));
    if (!graph)
        return 0;
    CUDA_CHECK(cu, cudaGraphLaunch(graph->exec, cu->stream));
    return 1;
}

void cuda_flight_queued(struct cuda_backend *cu, struct cuda_flight *flight)
{
    CUDA_CHECK(cu, cudaEventRecord(flight->done, cu->stream));
    flight->queued = 1;
}

int cuda_finish(struct backend *be, struct error *err)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct cuda_flight *flight = &cu->flights[cu->oldest_flight];

    ASSERT(cu->n_flights > 0);
    cuda_settle(cu);
    if (!flight->queued) /* a step without sample */
        cuda_flight_queued(cu, flight);
    CUDA_CHECK(cu, cudaEventSynchronize(flight->done));
    cu->oldest_flight = (cu->oldest_flight + 1) % BACKEND_MAX_STEPS;
    cu->n_flights--;
    if (cuda_report(cu, err))
        return -1;
    if (flight->n_results > 0)
        memcpy(flight->results, flight->fetched,
               (size_t)flight->n_results * sizeof(*flight->results));
    return 0;
}
