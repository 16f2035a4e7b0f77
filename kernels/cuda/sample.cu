/* Sampler states and the host's side of sampling; the kernels are those of sample.cuh.
 *
 * Parameters live on the host and travel with each step's image. Only what few requests have -
 * bias, held back tokens, counts for penalties - is kept on the device, taken when a slot is opened
 * and given back in the order of the stream when it is closed, so that steps under way still find
 * it. */
#include "kernels/cuda/backend.cuh"

#include <algorithm>
#include <stdlib.h>
#include <string.h>

static int32_t row_chunks(const struct cuda_backend *cu)
{
    return (cu->vocab_size + SAMPLE_CHUNK - 1) / SAMPLE_CHUNK;
}

int cuda_sampler_init(struct cuda_backend *cu, struct error *err)
{
    size_t rows = (size_t)cu->limits.max_logits, vocab = (size_t)cu->vocab_size;
    const char *what = "the sampler";
    uint64_t keep = UINT64_MAX; /* bytes that freed states leave ready for the next ones */
    cudaMemPool_t pool;

    if (vocab % 4 != 0)
        return error_set(err, "a vocabulary of %zu tokens: the CUDA backend needs a multiple of 4",
                         vocab);
    if (CUDA_CHECK(cu, cudaDeviceGetDefaultMemPool(&pool, cu->device)) ||
        CUDA_CHECK(cu, cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep)))
        return cuda_report(cu, err);
    cu->slots = (struct cuda_slot *)mem_zalloc((size_t)cu->n_slots, sizeof(*cu->slots));
    cu->last_tokens =
        (int32_t *)cuda_take(cu, (size_t)cu->n_slots * sizeof(int32_t), true, what, err);
    cu->adjusted = (float *)cuda_take(cu, (size_t)cu->limits.max_seqs * vocab * sizeof(float),
                                      false, what, err);
    cu->chunks = (struct sample_chunk *)cuda_take(
        cu, rows * (size_t)row_chunks(cu) * sizeof(*cu->chunks), false, what, err);
    cu->draws = (struct sample_draw *)cuda_take(cu, rows * sizeof(*cu->draws), false, what, err);
    cu->masks = (uint32_t *)cuda_take(cu, rows * SAMPLING_MASK_WORDS(vocab) * sizeof(uint32_t),
                                      false, what, err);
    return cu->last_tokens && cu->adjusted && cu->chunks && cu->draws && cu->masks ? 0 : -1;
}

void cuda_sampler_free(struct cuda_backend *cu)
{
    for (int32_t i = 0; cu->slots && i < cu->n_slots; i++)
        cuda_sampler_close(&cu->base, i);
    free(cu->slots);
    cudaFree(cu->last_tokens);
    cudaFree(cu->adjusted);
    cudaFree(cu->chunks);
    cudaFree(cu->draws);
    cudaFree(cu->masks);
}

static struct cuda_slot *slot_at(struct cuda_backend *cu, int32_t slot)
{
    ASSERT(slot >= 0 && slot < cu->n_slots);
    return &cu->slots[slot];
}

/* The state as the kernels read it, on the host; its size through `bytes`. */
static struct sample_state *make_state(const struct sampling_params *p, int32_t vocab,
                                       bool penalties, const int32_t *prompt, int32_t n_prompt,
                                       size_t *bytes)
{
    *bytes = sizeof(struct sample_state) + (penalties ? (size_t)vocab * sizeof(int32_t) : 0);
    struct sample_state *state = (struct sample_state *)mem_zalloc(1, *bytes);

    for (int32_t i = 0; i < p->n_bias; i++)
        if (p->bias[i].token >= 0 && p->bias[i].token < vocab)
            state->bias[state->n_bias++] = p->bias[i];
    std::stable_sort(
        state->bias, state->bias + state->n_bias,
        [](const sampling_bias &a, const sampling_bias &b) { return a.token < b.token; });
    for (int32_t i = 0; i < p->n_stop_tokens; i++)
        if (p->stop_tokens[i] >= 0 && p->stop_tokens[i] < vocab)
            state->stop[state->n_stop++] = p->stop_tokens[i];
    state->has_counts = penalties;
    for (int32_t i = 0; penalties && i < n_prompt; i++)
        if (prompt[i] >= 0 && prompt[i] < vocab)
            sample_counts(state)[prompt[i]] = 1;
    return state;
}

/* Device memory in the order of the streams, or when there is none, the host's, which kernels read
 * more slowly. */
static void *take_state(struct cuda_backend *cu, size_t bytes)
{
    void *state = NULL;

    if (cudaMallocAsync(&state, bytes, cu->side_stream) == cudaSuccess)
        return state;
    cudaGetLastError();
    if (CUDA_CHECK(cu, cudaHostAlloc(&state, bytes, cudaHostAllocMapped)))
        return NULL;
    return state;
}

static struct sample_row first_row(const struct cuda_backend *cu, int32_t slot,
                                   const struct sampling_params *p)
{
    struct sample_row row = {};

    row.slot = slot;
    row.temperature = p->temperature;
    row.top_p = p->top_p;
    row.min_p = p->min_p;
    row.top_k = p->top_k;
    row.repetition_penalty = p->repetition_penalty;
    row.presence_penalty = p->presence_penalty;
    row.frequency_penalty = p->frequency_penalty;
    row.n_logprobs = p->n_logprobs;
    row.seed = p->seed;
    if (p->n_logprobs > 0)
        row.flags |= SAMPLE_REPORTS;
    if (p->temperature > 0 &&
        ((p->top_k > 0 && p->top_k < cu->vocab_size) || p->top_p < 1 || p->min_p > 0))
        row.flags |= SAMPLE_FILTERS;
    return row;
}

void cuda_sampler_open(struct backend *be, int32_t slot, const struct sampling_params *params,
                       const int32_t *prompt, int32_t n_prompt)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct cuda_slot *s = slot_at(cu, slot);
    bool penalties = params->repetition_penalty != 1 || params->presence_penalty != 0 ||
                     params->frequency_penalty != 0;
    size_t bytes;

    ASSERT(params->n_bias <= SAMPLING_MAX_BIAS && params->n_logprobs <= SAMPLING_MAX_LOGPROBS);
    ASSERT(params->n_stop_tokens <= SAMPLING_MAX_STOP_TOKENS);
    cuda_sampler_close(be, slot);
    s->is_open = 1;
    s->min_tokens = params->min_tokens;
    s->row = first_row(cu, slot, params);
    if (!penalties && params->n_bias == 0 && params->min_tokens <= 0)
        return;
    struct sample_state *host =
        make_state(params, cu->vocab_size, penalties, prompt, n_prompt, &bytes);
    s->row.state = (struct sample_state *)take_state(cu, bytes);
    if (s->row.state) {
        s->row.flags |= SAMPLE_ADJUSTS;
        CUDA_CHECK(cu,
                   cudaMemcpyAsync(s->row.state, host, bytes, cudaMemcpyDefault, cu->side_stream));
        CUDA_CHECK(cu, cudaStreamSynchronize(cu->side_stream));
    }
    free(host);
}

void cuda_sampler_close(struct backend *be, int32_t slot)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct cuda_slot *s = slot_at(cu, slot);
    struct cudaPointerAttributes where;

    if (s->row.state) {
        if (CUDA_CHECK(cu, cudaPointerGetAttributes(&where, s->row.state)))
            where.type = cudaMemoryTypeDevice;
        if (where.type == cudaMemoryTypeHost) {
            CUDA_CHECK(cu, cudaStreamSynchronize(cu->stream));
            CUDA_CHECK(cu, cudaFreeHost(s->row.state));
        } else {
            CUDA_CHECK(cu, cudaFreeAsync(s->row.state, cu->stream));
        }
    }
    s->row.state = NULL;
    s->is_open = 0;
}

struct sample_row cuda_sample_row(const struct cuda_backend *cu, const struct batch_logit *logit)
{
    ASSERT(logit->slot >= 0 && logit->slot < cu->n_slots);
    const struct cuda_slot *s = &cu->slots[logit->slot];
    struct sample_row row = s->row;

    row.slot = logit->slot;
    row.step = logit->step;
    row.target = logit->target;
    row.holds_stops = row.state && logit->step < s->min_tokens;
    if (logit->target >= 0)
        row.flags = SAMPLE_REPORTS;
    return row;
}

/* The arguments that a step and its graph have in common. */
static struct sample_args common_args(const struct cuda_backend *cu, const struct tensor *logits)
{
    const struct cuda_step *step = &cu->step;
    struct sample_args args = {};

    ASSERT(logits->shape[0] == step->logits && cuda_last_dim(logits) == cu->vocab_size);
    args.logits = cuda_f32(logits);
    args.adjusted = cu->adjusted;
    args.rows = step->image.sample_rows;
    args.filtered = step->image.filtered;
    args.reported = step->image.reported;
    args.chunks = cu->chunks;
    args.draws = cu->draws;
    args.last_tokens = cu->last_tokens;
    args.n_rows = step->logits;
    args.vocab = cu->vocab_size;
    args.n_chunks = row_chunks(cu);
    return args;
}

/* Into a graph: what every row needs, as long as it needs no more. */
static void record_sampling(struct cuda_backend *cu, const struct tensor *logits)
{
    struct sample_args args = common_args(cu, logits);

    args.live_rows = cu->step.image.n_rows;
    args.live_results = cu->step.image.results;
    CUDA_CHECK(cu, sample_launch(&args, cu->stream));
}

void cuda_sample(struct backend *be, struct tensor logits, const uint32_t *masks,
                 struct sampling_result *results)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct cuda_step *step = &cu->step;

    cuda_settle(cu);
    if (cu->capturing) {
        record_sampling(cu, &logits);
        return;
    }
    struct cuda_flight *flight = cuda_newest_flight(cu);
    struct sample_args args = common_args(cu, &logits);
    int32_t n = args.n_rows;
    ASSERT(!flight->queued);
    flight->results = results;
    flight->n_results = n;
    if (masks && n > 0) {
        size_t bytes = (size_t)n * SAMPLING_MASK_WORDS(cu->vocab_size) * sizeof(uint32_t);
        memcpy(flight->masks, masks, bytes);
        CUDA_CHECK(cu, cudaMemcpyAsync(cu->masks, flight->masks, bytes, cudaMemcpyHostToDevice,
                                       cu->stream));
        args.masks = cu->masks;
    }
    args.results = flight->fetched;
    args.n_filtered = step->n_filtered;
    args.n_reported = step->n_reported;
    /* With masks a graph's draws are made again: nothing but the rows' tokens came of them. */
    if (n > 0 && (masks || !step->sampled))
        CUDA_CHECK(cu, sample_launch(&args, cu->stream));
    cuda_flight_queued(cu, flight);
}
