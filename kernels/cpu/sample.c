/* Sampling: sampling.h gives the order of operations and says why a draw depends on its row alone.
 *
 * A logit that is not a number counts as -infinity, and +infinity as the largest float. When bias
 * and bans leave no token at all, the model's own favourite is taken (token 0 if it has none), so
 * that a hostile request gets text, not a crash. */
#include "kernels/cpu/cpu.h"

#include "base/memory.h"
#include "kernels/philox.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct slot {
    int is_open;
    int32_t last_token;
    struct sampling_params params;
    /* (vocab_size) each, NULL without penalties. */
    unsigned char *in_prompt;
    int32_t *drawn; /* how often a token was drawn */
};

/* One thread's working memory. */
struct work {
    float *logits;  /* (vocab_size) of the row, as they are changed step by step */
    int32_t *order; /* (vocab_size) candidates, see keep() */
};

struct cpu_sampler {
    int32_t n_slots, vocab_size;
    int n_works;
    struct slot *slots;
    struct work *works;
};

struct cpu_sampler *cpu_sampler_new(int32_t slots, int32_t vocab_size, int threads)
{
    struct cpu_sampler *s = mem_zalloc(1, sizeof(*s));

    s->n_slots = slots;
    s->vocab_size = vocab_size;
    s->n_works = threads;
    s->slots = mem_zalloc((size_t)slots, sizeof(*s->slots));
    s->works = mem_zalloc((size_t)threads, sizeof(*s->works));
    for (int t = 0; t < threads; t++) {
        s->works[t].logits = mem_zalloc((size_t)vocab_size, sizeof(float));
        s->works[t].order = mem_zalloc((size_t)vocab_size, sizeof(int32_t));
    }
    return s;
}

static void slot_clear(struct slot *slot)
{
    free(slot->in_prompt);
    free(slot->drawn);
    slot->in_prompt = NULL;
    slot->drawn = NULL;
    slot->is_open = 0;
}

void cpu_sampler_free(struct cpu_sampler *sampler)
{
    if (!sampler)
        return;
    for (int32_t i = 0; i < sampler->n_slots; i++)
        slot_clear(&sampler->slots[i]);
    for (int t = 0; t < sampler->n_works; t++) {
        free(sampler->works[t].logits);
        free(sampler->works[t].order);
    }
    free(sampler->slots);
    free(sampler->works);
    free(sampler);
}

static struct slot *slot_at(struct backend *be, int32_t index)
{
    struct cpu_sampler *sampler = cpu_backend(be)->sampler;

    ASSERT(index >= 0 && index < sampler->n_slots);
    return &sampler->slots[index];
}

void cpu_sampler_open(struct backend *be, int32_t slot, const struct sampling_params *params,
                      const int32_t *prompt, int32_t n_prompt)
{
    struct slot *s = slot_at(be, slot);
    int32_t vocab = cpu_backend(be)->sampler->vocab_size;

    ASSERT(params->n_bias <= SAMPLING_MAX_BIAS && params->n_logprobs <= SAMPLING_MAX_LOGPROBS);
    ASSERT(params->n_stop_tokens <= SAMPLING_MAX_STOP_TOKENS);
    slot_clear(s);
    s->params = *params;
    s->is_open = 1;
    if (params->repetition_penalty == 1 && params->presence_penalty == 0 &&
        params->frequency_penalty == 0)
        return;
    s->in_prompt = mem_zalloc((size_t)vocab, sizeof(*s->in_prompt));
    s->drawn = mem_zalloc((size_t)vocab, sizeof(*s->drawn));
    for (int32_t i = 0; i < n_prompt; i++)
        if (prompt[i] >= 0 && prompt[i] < vocab)
            s->in_prompt[prompt[i]] = 1;
}

void cpu_sampler_close(struct backend *be, int32_t slot)
{
    slot_clear(slot_at(be, slot));
}

static float clean(float logit)
{
    return isnan(logit) ? -INFINITY : logit > FLT_MAX ? FLT_MAX : logit;
}

static int32_t arg_max(const float *logits, int32_t n)
{
    int32_t best = 0;

    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static double log_sum_exp(const float *logits, int32_t n)
{
    double max = logits[arg_max(logits, n)], sum = 0;

    if (max == -INFINITY)
        return max;
    for (int32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - max);
    return max + log(sum);
}

/* The `n` most likely tokens, in falling order, by insertion. */
static void top_logprobs(struct sampling_result *result, const float *logits, int32_t vocab,
                         double total, int32_t n)
{
    for (int32_t token = 0; token < vocab && n > 0; token++) {
        float logprob = (float)((double)logits[token] - total);
        int32_t at = result->n_top;
        if (logits[token] == -INFINITY || (at == n && logprob <= result->top_logprob[n - 1]))
            continue;
        if (at == n)
            at--;
        else
            result->n_top++;
        for (; at > 0 && result->top_logprob[at - 1] < logprob; at--) {
            result->top_token[at] = result->top_token[at - 1];
            result->top_logprob[at] = result->top_logprob[at - 1];
        }
        result->top_token[at] = token;
        result->top_logprob[at] = logprob;
    }
}

/* Bias, penalties and bans, in that order; penalties as vLLM and the papers it follows have them.
 * `mask` may be NULL. */
static void adjust(float *logits, int32_t vocab, const struct slot *slot, int32_t step,
                   const uint32_t *mask)
{
    const struct sampling_params *p = &slot->params;

    for (int32_t i = 0; i < p->n_bias; i++)
        if (p->bias[i].token >= 0 && p->bias[i].token < vocab)
            logits[p->bias[i].token] += p->bias[i].bias;
    for (int32_t t = 0; slot->drawn && t < vocab; t++) {
        if (!slot->drawn[t] && !slot->in_prompt[t])
            continue;
        logits[t] =
            logits[t] > 0 ? logits[t] / p->repetition_penalty : logits[t] * p->repetition_penalty;
        if (slot->drawn[t])
            logits[t] -= p->frequency_penalty * (float)slot->drawn[t] + p->presence_penalty;
    }
    for (int32_t i = 0; step < p->min_tokens && i < p->n_stop_tokens; i++)
        if (p->stop_tokens[i] >= 0 && p->stop_tokens[i] < vocab)
            logits[p->stop_tokens[i]] = -INFINITY;
    for (int32_t t = 0; mask && t < vocab; t++)
        if (!(mask[t / 32] >> t % 32 & 1))
            logits[t] = -INFINITY;
}

/* Whether token a comes before token b: the larger logit, then the lower id. */
static int comes_before(const float *logits, int32_t a, int32_t b)
{
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

/* Restores the heap order[0..n) below `at`. */
static void sift_down(const float *logits, int32_t *order, int32_t at, int32_t n)
{
    int32_t token = order[at];

    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && comes_before(logits, order[child + 1], order[child]))
            child++;
        if (!comes_before(logits, order[child], token))
            break;
        order[at] = order[child];
    }
    order[at] = token;
}

/* Moves the first token of the heap order[0..n) behind it, to order[n - 1]. */
static void pop(const float *logits, int32_t *order, int32_t n)
{
    int32_t token = order[0];

    order[0] = order[n - 1];
    if (n > 1)
        sift_down(logits, order, 0, n - 1);
    order[n - 1] = token;
}

/* top_k, top_p and min_p: each keeps a beginning of the tokens in falling order of probability
 * (equal ones by id). Returns how many stay; the i-th is order[vocab - 1 - i]. The order comes from
 * a heap, so that it is made only as far as it is read. */
static int32_t keep(const struct work *work, int32_t vocab, const struct sampling_params *p)
{
    int32_t limit = p->top_k > 0 && p->top_k < vocab ? p->top_k : vocab;
    int32_t popped = 0, kept = 0;
    double total = 0, cumulative = 0, scale = 1.0 / (double)p->temperature;

    for (int32_t i = 0; i < vocab; i++)
        work->order[i] = i;
    for (int32_t i = vocab / 2 - 1; i >= 0; i--)
        sift_down(work->logits, work->order, i, vocab);
    double max = work->logits[work->order[0]];
    while (limit < vocab && popped < limit)
        pop(work->logits, work->order, vocab - popped++);
    for (int32_t i = limit < vocab ? vocab - limit : 0; p->top_p < 1 && i < vocab; i++)
        total += exp(((double)work->logits[work->order[i]] - max) * scale);

    while (kept < limit) {
        if (kept == popped)
            pop(work->logits, work->order, vocab - popped++);
        int32_t token = work->order[vocab - 1 - kept];
        double relative = exp(((double)work->logits[token] - max) * scale); /* p / p_max */
        if (kept > 0 && relative < (double)p->min_p)
            break;
        kept++;
        cumulative += relative;
        if (p->top_p < 1 && cumulative >= (double)p->top_p * total)
            break;
    }
    return kept;
}

static int32_t draw(const struct work *work, int32_t vocab, const struct sampling_params *p,
                    int32_t step)
{
    int filtered = p->top_k > 0 || p->top_p < 1 || p->min_p > 0;
    int32_t n = filtered ? keep(work, vocab, p) : vocab, best = -1;
    double best_score = 0;

    for (int32_t i = 0; i < n; i++) {
        int32_t token = filtered ? work->order[vocab - 1 - i] : i;
        double score = (double)work->logits[token] / (double)p->temperature;
        if (score == -INFINITY || (best >= 0 && score + GUMBEL_MAX < best_score))
            continue;
        score += gumbel(sampling_bits(p->seed, step, token));
        if (best < 0 || score > best_score) {
            best = token;
            best_score = score;
        }
    }
    return best;
}

/* How many tokens are likelier, plus one (equal ones by id). */
static int32_t rank_of(const float *raw, int32_t vocab, int32_t token)
{
    float logit = clean(raw[token]);
    int32_t rank = 1;

    for (int32_t i = 0; i < vocab; i++)
        rank += clean(raw[i]) > logit || (clean(raw[i]) == logit && i < token);
    return rank;
}

/* What the model's own distribution says of `token`. */
static void report(struct sampling_result *result, const float *raw, int32_t vocab, int32_t token,
                   double total, bool with_rank)
{
    float logit = clean(raw[token]);

    result->token = token;
    result->rank = with_rank ? rank_of(raw, vocab, token) : 0;
    result->logprob = logit == -INFINITY ? -INFINITY : (float)((double)logit - total);
}

static void sample_row(struct sampling_result *result, struct slot *slot, const struct work *work,
                       const float *raw, const uint32_t *mask, int32_t vocab,
                       const struct batch_logit *row)
{
    const struct sampling_params *p = &slot->params;

    for (int32_t i = 0; i < vocab; i++)
        work->logits[i] = clean(raw[i]);
    int32_t favourite = arg_max(work->logits, vocab);
    double total = log_sum_exp(work->logits, vocab);
    result->n_top = 0;
    top_logprobs(result, work->logits, vocab, total, p->n_logprobs);
    if (row->target >= 0) {
        report(result, raw, vocab, row->target, total, true);
        return;
    }

    adjust(work->logits, vocab, slot, row->step, mask);
    for (int32_t i = 0; i < vocab; i++) /* an infinite bias, or a penalty past the largest float */
        work->logits[i] = clean(work->logits[i]);
    int32_t best = arg_max(work->logits, vocab);
    if (work->logits[best] == -INFINITY)
        best = favourite;
    else if (p->temperature > 0)
        best = draw(work, vocab, p, row->step);

    report(result, raw, vocab, best, total, p->n_logprobs > 0);
    slot->last_token = best;
    if (slot->drawn)
        slot->drawn[best]++;
}

int32_t cpu_last_token(const struct cpu_backend *cpu, int32_t slot)
{
    ASSERT(slot >= 0 && slot < cpu->sampler->n_slots);
    return cpu->sampler->slots[slot].last_token;
}

struct sample {
    struct backend *be;
    const float *logits;
    const uint32_t *masks;
    struct sampling_result *results;
};

static void run(void *context, int64_t first, int64_t end, int thread)
{
    const struct sample *op = context;
    const struct cpu_backend *cpu = cpu_backend(op->be);
    const struct batch_logit *rows = batch_logits(cpu->batch);
    int32_t vocab = cpu->sampler->vocab_size;

    for (int64_t i = first; i < end; i++) {
        struct slot *slot = slot_at(op->be, rows[i].slot);
        ASSERT(slot->is_open);
        sample_row(&op->results[i], slot, &cpu->sampler->works[thread], op->logits + i * vocab,
                   op->masks ? op->masks + (size_t)i * SAMPLING_MASK_WORDS(vocab) : NULL, vocab,
                   &rows[i]);
    }
}

void cpu_sample(struct backend *be, struct tensor logits, const uint32_t *masks,
                struct sampling_result *results)
{
    struct cpu_backend *cpu = cpu_backend(be);
    struct sample op = {be, cpu_f32(&logits), masks, results};
    int64_t n = cpu->batch->n_logits, vocab = cpu->sampler->vocab_size;

    ASSERT(logits.shape[0] == n && cpu_last_dim(&logits) == vocab);
    cpu_parallel(cpu, 100 * n * vocab, n, 1, run, &op);
}
