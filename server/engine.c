#include "server/engine.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/queue.h"
#include "kernels/backend.h"
#include "model/model.h"
#include "server/scheduler.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DEFAULT_BATCHED_TOKENS = 512, COMMANDS_PER_SLOT = 3, MAX_SCORED = 256 };

/* What the KV cache is kept in: the one type the CPU backend has. */
static const enum dtype KV_DTYPE = DTYPE_F32;

/* Commands from the loop. Of a slot there are at most three under way: a cancel that came too late,
 * the next sequence's submit, and its cancel. A queue of COMMANDS_PER_SLOT times the slots is never
 * full. */
struct command {
    uint64_t id;
    struct engine_request *request; /* NULL: cancel */
};

/* The loop's side of a slot. */
struct loop_slot {
    uint32_t generation; /* of the live id, or of the next one */
    bool live, cancelled;
};

/* The engine thread's side of a slot. */
struct engine_seq {
    uint64_t id; /* 0: none */
    struct engine_request *request;
    int32_t n_generated;
    int32_t n_scored; /* prompt positions whose score was sent; a preempted prompt comes again */
    bool admitted;
    struct constraint_state constraint;
};

struct engine {
    /* Set at start, then read by both threads. */
    const struct options *options;
    char *dir;
    int32_t n_slots;
    struct queue *commands, *events;
    void (*wake)(void *arg);
    void *wake_arg;
    pthread_t thread;
    atomic_int stopping;

    /* The loop's. */
    struct loop_slot *loop_slots;
    int32_t *free_slots;
    int32_t n_free_slots;
    bool ready;

    /* Written by the engine's thread before ENGINE_READY, then read by both. */
    struct engine_model model_info;

    /* The engine thread's. */
    struct backend *be;
    struct model *model;
    struct scheduler *sched;
    struct batch *batch;
    struct sampling_result *results; /* of one step */
    uint32_t *masks;                 /* (max_logits, SAMPLING_MASK_WORDS(vocab)) */
    int32_t n_constrained;           /* sequences that have a constraint */
    struct engine_seq *seqs;         /* by slot */
};

/* ---- ids ---------------------------------------------------------------------------------- */

static uint64_t make_id(uint32_t generation, int32_t slot)
{
    return (uint64_t)generation << 32 | (uint32_t)slot;
}

int32_t engine_slot(uint64_t id)
{
    return (int32_t)(id & 0x7fffffff);
}

/* ---- loading (engine thread) -------------------------------------------------------------- */

static int64_t kv_pages_wanted(const struct options *o, const struct model_config *config)
{
    size_t page_bytes = KV_PAGE_TOKENS * model_kv_token_bytes(config, KV_DTYPE);

    if (o->num_kv_pages)
        return o->num_kv_pages;
    return (int64_t)(((uint64_t)o->kv_cache_memory_mib << 20) / page_bytes);
}

/* Settles what depends on both the options and the model. */
static int size_engine(struct engine *e, struct scheduler_config *sc, struct error *err)
{
    const struct options *o = e->options;
    const struct model_config *config = &e->model_info.config;
    int64_t pages = kv_pages_wanted(o, config);
    int64_t rows = o->max_num_batched_tokens;

    if (pages < 1 || pages > INT32_MAX / KV_PAGE_TOKENS)
        return error_set(err,
                         "a KV cache of %lld pages can't be made (--kv-cache-memory-mib, "
                         "--num-kv-pages)",
                         (long long)pages);
    if (o->max_model_len > config->max_positions)
        return error_set(err, "--max-model-len %lld is more than the model's %d positions",
                         (long long)o->max_model_len, config->max_positions);
    if (rows == 0)
        rows = o->max_num_seqs > DEFAULT_BATCHED_TOKENS ? o->max_num_seqs : DEFAULT_BATCHED_TOKENS;
    if (rows < o->max_num_seqs)
        return error_set(err, "--max-num-batched-tokens %lld is less than --max-num-seqs %lld",
                         (long long)rows, (long long)o->max_num_seqs);
    int64_t len = o->max_model_len ? o->max_model_len : config->max_positions;
    if (len > pages * KV_PAGE_TOKENS) {
        if (o->max_model_len)
            return error_set(err,
                             "--max-model-len %lld does not fit in a KV cache of %lld pages "
                             "of %d tokens",
                             (long long)len, (long long)pages, KV_PAGE_TOKENS);
        len = pages * KV_PAGE_TOKENS;
        log_warning("the KV cache of %lld pages limits requests to %lld tokens", (long long)pages,
                    (long long)len);
    }
    *sc = (struct scheduler_config){
        .slots = e->n_slots,
        .max_running = (int32_t)o->max_num_seqs,
        .max_rows = (int32_t)rows,
        .max_scored = MAX_SCORED,
        .max_model_len = (int32_t)len,
        .kv_pages = (int32_t)pages,
        .prefix_caching = o->enable_prefix_caching,
    };
    e->model_info.max_model_len = (int32_t)len;
    e->model_info.kv_pages = (int32_t)pages;
    return 0;
}

static int load(struct engine *e, struct error *err)
{
    int64_t start = clock_us();
    struct engine_model *info = &e->model_info;
    struct scheduler_config sc;

    if (model_config_load(&info->config, e->dir, err))
        return -1;
    info->tokenizer = tokenizer_load(e->dir, err);
    if (!info->tokenizer)
        return -1;
    info->output_format = output_format_find(info->tokenizer);
    info->n_marker_ids =
        output_format_marker_ids(info->output_format, info->tokenizer, info->marker_ids);
    if (size_engine(e, &sc, err))
        return -1;
    e->sched = scheduler_new(&sc);
    e->batch = batch_new(scheduler_limits(e->sched));
    e->be = backend_cpu_open(&(struct backend_options){
        .threads = (int32_t)e->options->threads,
        .slots = e->n_slots,
        .vocab_size = info->config.vocab_size,
        .limits = scheduler_limits(e->sched),
        .kv_dtype = KV_DTYPE,
    });
    info->backend = e->be->ops->name;
    size_t logit_rows = (size_t)scheduler_limits(e->sched).max_logits;
    e->results = mem_zalloc(logit_rows, sizeof(*e->results));
    e->masks =
        mem_zalloc(logit_rows * SAMPLING_MASK_WORDS(info->config.vocab_size), sizeof(*e->masks));
    info->trie = vocabulary_trie_new(info->tokenizer, info->config.vocab_size, info->config.eos,
                                     (size_t)info->config.n_eos, err);
    if (!info->trie)
        log_warning("structured output is not possible with this model: %s", err->message);
    e->model = model_load(e->dir, &info->config, e->be, &e->stopping, err);
    if (!e->model || model_reserve(e->model, scheduler_limits(e->sched), sc.kv_pages, err))
        return -1;
    log_info("loaded %s (%s) on the %s backend in %lld ms: context %d, KV cache %d pages of %d "
             "tokens, %zu bytes a token",
             e->dir, info->config.model_type, info->backend, (long long)(clock_us() - start) / 1000,
             info->max_model_len, info->kv_pages, KV_PAGE_TOKENS,
             model_kv_token_bytes(&info->config, KV_DTYPE));
    return 0;
}

/* ---- steps (engine thread) ---------------------------------------------------------------- */

/* A full event queue makes the engine wake the loop and wait for it; a closed one means that nobody
 * listens. */
static void emit(struct engine *e, struct engine_event event)
{
    event.time_us = clock_us();
    if (queue_try_push(e->events, &event, NULL))
        return;
    e->wake(e->wake_arg);
    queue_push(e->events, &event, NULL);
}

static void end_seq(struct engine *e, int32_t slot)
{
    struct engine_seq *seq = &e->seqs[slot];

    if (seq->request->constraint)
        e->n_constrained--;
    constraint_end(&seq->constraint);
    scheduler_remove(e->sched, slot);
    e->be->ops->sampler_close(e->be, slot);
    engine_request_free(seq->request);
    *seq = (struct engine_seq){0};
}

static void start_seq(struct engine *e, uint64_t id, struct engine_request *request)
{
    int32_t slot = engine_slot(id);

    ASSERT(e->seqs[slot].id == 0);
    e->seqs[slot] = (struct engine_seq){.id = id, .request = request};
    constraint_begin(&e->seqs[slot].constraint, request->constraint);
    if (request->constraint)
        e->n_constrained++;
    struct scheduler_request wanted = {
        .tokens = request->tokens,
        .n_tokens = request->n_tokens,
        .max_new_tokens = request->max_tokens,
        .priority = request->priority,
        .cache_salt = request->cache_salt,
        .score_prompt = request->score_prompt,
    };
    scheduler_add(e->sched, slot, &wanted);
    e->be->ops->sampler_open(e->be, slot, &request->sampling, request->tokens, request->n_tokens);
}

/* Returns how many commands were carried out. */
static int take_commands(struct engine *e)
{
    struct command command;
    int n = 0;

    for (; queue_pop(e->commands, &command, 1); n++) {
        int32_t slot = engine_slot(command.id);
        if (command.request) {
            start_seq(e, command.id, command.request);
        } else if (e->seqs[slot].id == command.id) {
            end_seq(e, slot);
            emit(e, (struct engine_event){.type = ENGINE_CANCELLED, .id = command.id});
        }
    }
    return n;
}

static void announce_admissions(struct engine *e)
{
    for (int32_t i = 0; i < e->batch->n_seqs; i++) {
        int32_t slot = batch_seqs(e->batch)[i].slot;
        struct engine_seq *seq = &e->seqs[slot];
        if (seq->admitted)
            continue;
        seq->admitted = true;
        emit(e, (struct engine_event){.type = ENGINE_ADMITTED,
                                      .id = seq->id,
                                      .cached_tokens = scheduler_cached_tokens(e->sched, slot)});
    }
}

static enum finish_reason finish_of(struct engine_seq *seq, int32_t token)
{
    const struct sampling_params *sampling = &seq->request->sampling;

    for (int32_t i = 0; i < sampling->n_stop_tokens; i++)
        if (sampling->stop_tokens[i] == token && seq->n_generated > sampling->min_tokens)
            return FINISH_STOP;
    if (constraint_accept(&seq->constraint, token))
        return FINISH_COMPLETE;
    return seq->n_generated == seq->request->max_tokens ? FINISH_LENGTH : FINISH_NONE;
}

/* A score goes to the loop once. */
static void deliver_score(struct engine *e, const struct batch_logit *row,
                          const struct sampling_result *result)
{
    struct engine_seq *seq = &e->seqs[row->slot];
    int32_t position = batch_positions(e->batch)[row->row] + 1;

    if (position <= seq->n_scored)
        return;
    seq->n_scored = position;
    emit(e, (struct engine_event){.type = ENGINE_SCORE, .id = seq->id, .score = *result});
}

/* A drawn token goes to the scheduler and to the loop. */
static void deliver_token(struct engine *e, int32_t slot, const struct sampling_result *result)
{
    struct engine_seq *seq = &e->seqs[slot];
    struct engine_event event = {.type = ENGINE_TOKEN, .id = seq->id};

    seq->n_generated++;
    event.token.result = *result;
    event.token.finish = finish_of(seq, result->token);
    if (event.token.finish == FINISH_NONE)
        scheduler_append(e->sched, slot, result->token);
    else
        end_seq(e, slot);
    emit(e, event);
}

static void deliver_results(struct engine *e)
{
    for (int32_t i = 0; i < e->batch->n_logits; i++) {
        const struct batch_logit *row = &batch_logits(e->batch)[i];
        if (row->target >= 0)
            deliver_score(e, row, &e->results[i]);
        else
            deliver_token(e, row->slot, &e->results[i]);
    }
}

static void emit_step(struct engine *e, int64_t step_us)
{
    struct scheduler_stats stats = scheduler_stats(e->sched);
    struct engine_step step = {
        .rows = e->batch->n_rows,
        .seqs = e->batch->n_seqs,
        .running = stats.running,
        .waiting = stats.waiting,
        .pages = stats.kv.pages,
        .pages_used = stats.kv.pages_used,
        .preemptions = stats.preemptions,
        .prefix_queries_tokens = stats.kv.queried_tokens,
        .prefix_hits_tokens = stats.kv.hit_tokens,
        .step_us = step_us,
    };

    for (int32_t i = 0; i < e->batch->n_seqs; i++)
        if (!batch_seqs(e->batch)[i].absorbed)
            step.prompt_tokens += batch_seqs(e->batch)[i].n_rows;
    emit(e, (struct engine_event){.type = ENGINE_STEP, .step = step});
}

/* The masks of the step's logit rows; NULL when no sequence has a constraint. */
static const uint32_t *make_masks(struct engine *e)
{
    int32_t vocab = e->model_info.config.vocab_size;

    if (e->n_constrained == 0)
        return NULL;
    for (int32_t i = 0; i < e->batch->n_logits; i++) {
        int32_t slot = batch_logits(e->batch)[i].slot, n;
        const int32_t *generated = scheduler_generated(e->sched, slot, &n);
        constraint_mask(&e->seqs[slot].constraint, generated, n, vocab,
                        e->masks + (size_t)i * SAMPLING_MASK_WORDS(vocab));
    }
    return e->masks;
}

/* One step, if there is anything to run. -1 when the device failed. */
static int run_step(struct engine *e, struct error *err)
{
    const struct backend_ops *op = e->be->ops;
    int64_t start = clock_us();

    scheduler_plan(e->sched, e->batch);
    if (e->batch->n_rows == 0)
        return 0;
    announce_admissions(e);
    struct tensor logits = model_forward(e->model, e->batch);
    op->sample(e->be, logits, make_masks(e), e->results);
    if (op->finish(e->be, err))
        return -1;
    scheduler_advance(e->sched, e->batch);
    deliver_results(e);
    emit_step(e, clock_us() - start);
    return 0;
}

static void fail(struct engine *e, const struct error *err)
{
    if (!atomic_load(&e->stopping))
        log_error("%s", err->message);
    emit(e, (struct engine_event){.type = ENGINE_FAILED, .error = *err});
    e->wake(e->wake_arg);
}

static void *engine_main(void *arg)
{
    struct engine *e = arg;
    struct error err;

    pthread_setname_np(pthread_self(), "mlad-engine");
    if (load(e, &err)) {
        fail(e, &err);
        return NULL;
    }
    emit(e, (struct engine_event){.type = ENGINE_READY});
    batch_clear(e->batch);
    emit_step(e, 0);
    e->wake(e->wake_arg);
    while (!atomic_load(&e->stopping)) {
        int n_commands = take_commands(e);
        if (run_step(e, &err)) {
            fail(e, &err);
            return NULL;
        }
        if (e->batch->n_rows == 0 && n_commands > 0)
            emit_step(e, 0);
        if (e->batch->n_rows == 0 && n_commands == 0)
            queue_wait(e->commands, -1);
        else
            e->wake(e->wake_arg);
    }
    return NULL;
}

/* ---- the loop's side ---------------------------------------------------------------------- */

struct engine *engine_start(const struct options *options, const char *dir, void (*wake)(void *arg),
                            void *arg)
{
    struct engine *e = mem_zalloc(1, sizeof(*e));

    e->options = options;
    e->dir = mem_strdup(dir);
    e->wake = wake;
    e->wake_arg = arg;
    e->n_slots = (int32_t)(options->max_num_seqs + options->max_queue);
    e->commands = queue_new((size_t)e->n_slots * COMMANDS_PER_SLOT, sizeof(struct command));
    e->events = queue_new((size_t)options->max_num_seqs * 4 + 64, sizeof(struct engine_event));
    e->seqs = mem_zalloc((size_t)e->n_slots, sizeof(*e->seqs));
    e->loop_slots = mem_zalloc((size_t)e->n_slots, sizeof(*e->loop_slots));
    e->free_slots = mem_zalloc((size_t)e->n_slots, sizeof(*e->free_slots));
    for (int32_t slot = e->n_slots - 1; slot >= 0; slot--) {
        e->loop_slots[slot].generation = 1;
        e->free_slots[e->n_free_slots++] = slot;
    }
    if (pthread_create(&e->thread, NULL, engine_main, e))
        PANIC("can't start the engine thread");
    return e;
}

bool engine_stop(struct engine *e)
{
    struct command command;
    struct timespec until;

    atomic_store(&e->stopping, 1);
    queue_close(e->commands);
    queue_close(e->events);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ENGINE_STOP_S;
    if (pthread_timedjoin_np(e->thread, NULL, &until) != 0)
        return false;

    while (queue_pop(e->commands, &command, 1))
        engine_request_free(command.request);
    for (int32_t slot = 0; slot < e->n_slots; slot++)
        if (e->seqs[slot].id)
            end_seq(e, slot);
    if (e->model)
        model_free(e->model);
    if (e->be)
        e->be->ops->close(e->be);
    scheduler_free(e->sched);
    if (e->model_info.trie)
        vocabulary_trie_free(e->model_info.trie);
    tokenizer_free(e->model_info.tokenizer);
    queue_free(e->commands);
    queue_free(e->events);
    free(e->batch);
    free(e->results);
    free(e->masks);
    free(e->seqs);
    free(e->loop_slots);
    free(e->free_slots);
    free(e->dir);
    free(e);
    return true;
}

const struct engine_model *engine_model(const struct engine *e)
{
    return e->ready ? &e->model_info : NULL;
}

int32_t engine_slots(const struct engine *e)
{
    return e->n_slots;
}

int32_t engine_slots_free(const struct engine *e)
{
    return e->n_free_slots;
}

void engine_request_free(struct engine_request *request)
{
    if (!request)
        return;
    constraint_free(request->constraint);
    free(request->tokens);
    free(request);
}

uint64_t engine_submit(struct engine *e, struct engine_request *request)
{
    if (e->n_free_slots == 0)
        return 0;
    int32_t slot = e->free_slots[--e->n_free_slots];
    struct loop_slot *ls = &e->loop_slots[slot];
    struct command command = {.id = make_id(ls->generation, slot), .request = request};

    ls->live = true;
    ls->cancelled = false;
    if (!queue_try_push(e->commands, &command, NULL))
        PANIC("the command queue is full");
    return command.id;
}

void engine_cancel(struct engine *e, uint64_t id)
{
    struct loop_slot *ls = &e->loop_slots[engine_slot(id)];
    struct command command = {.id = id};

    if (!ls->live || make_id(ls->generation, engine_slot(id)) != id || ls->cancelled)
        return;
    ls->cancelled = true;
    if (!queue_try_push(e->commands, &command, NULL))
        PANIC("the command queue is full");
}

/* A final event frees the slot: the engine's thread is done with it. */
static void note_event(struct engine *e, const struct engine_event *event)
{
    bool final = event->type == ENGINE_CANCELLED ||
                 (event->type == ENGINE_TOKEN && event->token.finish != FINISH_NONE);

    if (event->type == ENGINE_READY)
        e->ready = true;
    if (!final)
        return;
    int32_t slot = engine_slot(event->id);
    struct loop_slot *ls = &e->loop_slots[slot];
    ls->live = false;
    ls->generation = ls->generation == UINT32_MAX ? 1 : ls->generation + 1;
    e->free_slots[e->n_free_slots++] = slot;
}

size_t engine_poll(struct engine *e, struct engine_event *events, size_t max)
{
    size_t n = queue_pop(e->events, events, max);

    for (size_t i = 0; i < n; i++)
        note_event(e, &events[i]);
    return n;
}
