#include "server/engine.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/queue.h"
#include "model/dummy_tokenizer.h"
#include "server/engine_core.h"
#include "server/event_queue.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { COMMANDS_PER_SLOT = 3 };

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

/* A step that the backend was given and whose results are not read yet. */
struct flight {
    struct batch *batch;
    struct sampling_result *results; /* by logit row */
    uint64_t *ids;                   /* by logit row: whose it is */
    int64_t start_us;
};

struct engine {
    /* Set at start, then read by both threads. */
    const struct options *options;
    char *dir;
    int32_t n_slots;
    struct queue *commands;
    struct event_queue *events;
    void (*wake)(void *arg);
    void *wake_arg;
    pthread_t thread;
    atomic_int stopping, cancel_load;

    /* The loop's. */
    struct loop_slot *loop_slots;
    int32_t *free_slots;
    int32_t n_free_slots;
    bool ready;

    /* Written by the engine's thread before ENGINE_READY, then read by both. */
    struct engine_model model_info;

    /* The engine thread's. */
    struct engine_core core;
    struct scheduler *sched;
    struct flight flights[BACKEND_MAX_STEPS]; /* the oldest first; behind them idle ones */
    int n_flying;
    int64_t landed_us;       /* when the last one landed */
    int64_t n_steps;         /* that landed, ever */
    uint32_t *masks;         /* (max_logits, SAMPLING_MASK_WORDS(vocab)) */
    int32_t n_constrained;   /* sequences that have a constraint */
    struct engine_seq *seqs; /* by slot */
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

static void take_memory(struct engine *e)
{
    struct batch_limits limits = scheduler_limits(e->sched);
    size_t rows = (size_t)limits.max_logits;

    for (int i = 0; i < BACKEND_MAX_STEPS; i++) {
        struct flight *flight = &e->flights[i];
        flight->batch = batch_new(limits);
        flight->results = mem_zalloc(rows, sizeof(*flight->results));
        flight->ids = mem_zalloc(rows, sizeof(*flight->ids));
    }
    e->masks = mem_zalloc(rows * SAMPLING_MASK_WORDS(e->core.config.vocab_size), sizeof(*e->masks));
}

/* A tokenizer with more tokens than the model is used as far as it goes: prompts that hold the
 * others are refused, and the model can't generate them. */
static int check_vocabulary(struct engine_model *info, struct error *err)
{
    int32_t vocab = info->config.vocab_size, eos = tokenizer_eos(info->tokenizer);

    if (tokenizer_size(info->tokenizer) > vocab)
        log_warning("the tokenizer has ids up to %d, but the model's vocabulary ends at %d",
                    tokenizer_size(info->tokenizer) - 1, vocab - 1);
    if (eos >= 0 && eos < vocab && !model_config_add_eos(&info->config, eos))
        return error_set(err, "the tokenizer's eos_token brings the end tokens to more than %d",
                         MODEL_MAX_EOS);
    return 0;
}

/* The text side of the model. */
static int load_tokenizer(struct engine *e, struct error *err)
{
    struct engine_model *info = &e->model_info;
    char *path = path_join(e->dir, "tokenizer.json");
    bool made_up = e->options->dummy_weights && !file_exists(path);

    free(path);
    info->tokenizer =
        made_up ? dummy_tokenizer_new(info->config.vocab_size) : tokenizer_load(e->dir, err);
    if (!info->tokenizer)
        return -1;
    if (check_vocabulary(info, err))
        return -1;
    info->chat_templates =
        chat_templates_load(e->dir, info->config.model_type, e->options->chat_template, err);
    if (!info->chat_templates)
        return -1;
    if (chat_templates_problem(info->chat_templates))
        log_warning("chats are not possible with this model: its chat template is not supported: "
                    "%s",
                    chat_templates_problem(info->chat_templates));
    info->trust_request_chat_template = e->options->trust_request_chat_template;
    info->output_format = output_format_find(info->tokenizer);
    info->n_marker_ids =
        output_format_marker_ids(info->output_format, info->tokenizer, info->marker_ids);
    info->trie = vocabulary_trie_new(info->tokenizer, info->config.vocab_size, info->config.eos,
                                     (size_t)info->config.n_eos, err);
    if (!info->trie)
        log_warning("structured output is not possible with this model: %s", err->message);
    return 0;
}

/* The tokenizer is read by a thread of its own while the weights are. */
struct text_load {
    struct engine *engine;
    struct error err;
    int rc;
    int64_t us;
};

static void *text_main(void *arg)
{
    struct text_load *text = arg;
    int64_t start = clock_us();

    text->rc = load_tokenizer(text->engine, &text->err);
    text->us = clock_us() - start;
    if (text->rc)
        atomic_store(&text->engine->cancel_load, 1);
    return NULL;
}

static int load_parts(struct engine *e, struct text_load *text, struct error *err)
{
    struct engine_core *core = &e->core;
    pthread_t thread;

    text->engine = e;
    if (pthread_create(&thread, NULL, text_main, text))
        PANIC("can't start a thread that reads the tokenizer");
    int rc = engine_core_load(core, e->options, e->dir, e->n_slots, &e->cancel_load, err);
    pthread_join(thread, NULL);
    if (text->rc)
        *err = text->err;
    return rc || text->rc ? -1 : 0;
}

static int load(struct engine *e, struct error *err)
{
    int64_t start = clock_us();
    struct engine_model *info = &e->model_info;
    struct engine_core *core = &e->core;
    struct text_load text = {0};

    if (engine_core_configure(core, e->options, e->dir, err))
        return -1;
    info->config = core->config;
    if (load_parts(e, &text, err))
        return -1;
    info->max_model_len = core->sched.max_model_len;
    info->kv_pages = core->sched.kv_pages;
    info->backend = core->be->ops->name;
    e->sched = scheduler_new(&core->sched);
    take_memory(e);
    memcpy(info->load_us, core->load_us, sizeof(info->load_us));
    info->load_us[LOAD_TOKENIZER] = text.us;
    info->load_us[LOAD_TOTAL] = clock_us() - start;
    log_info("loaded %s (%s) on the %s backend in %lld ms (tokenizer: %lld ms): context %d, KV "
             "cache %d pages of %d tokens, %zu bytes a token",
             e->dir, info->config.model_type, info->backend,
             (long long)info->load_us[LOAD_TOTAL] / 1000, (long long)text.us / 1000,
             info->max_model_len, info->kv_pages, KV_PAGE_TOKENS,
             model_kv_token_bytes(&core->config, core->be->kv_dtype));
    return 0;
}

/* ---- steps (engine thread) ---------------------------------------------------------------- */

/* Events wait for hand_over(). A full event queue makes the engine wake the loop and wait for it; a
 * closed one means that nobody listens. */
static void emit(struct engine *e, struct engine_event *event)
{
    if (event->time_us == 0)
        event->time_us = clock_us();
    event_queue_add(e->events, event, e->wake, e->wake_arg);
}

static void hand_over(struct engine *e)
{
    event_queue_flush(e->events, e->wake, e->wake_arg);
    e->wake(e->wake_arg);
}

static void end_seq(struct engine *e, int32_t slot)
{
    struct engine_seq *seq = &e->seqs[slot];

    if (seq->request->constraint)
        e->n_constrained--;
    constraint_end(&seq->constraint);
    scheduler_remove(e->sched, slot);
    e->core.be->ops->sampler_close(e->core.be, slot);
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
        .needs_tokens = request->constraint != NULL,
    };
    scheduler_add(e->sched, slot, &wanted);
    e->core.be->ops->sampler_open(e->core.be, slot, &request->sampling, request->tokens,
                                  request->n_tokens);
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
            emit(e, &(struct engine_event){.type = ENGINE_CANCELLED, .id = command.id});
        }
    }
    return n;
}

static void announce_admissions(struct engine *e, const struct batch *batch)
{
    for (int32_t i = 0; i < batch->n_seqs; i++) {
        int32_t slot = batch_seqs(batch)[i].slot;
        struct engine_seq *seq = &e->seqs[slot];
        if (seq->admitted)
            continue;
        seq->admitted = true;
        emit(e, &(struct engine_event){.type = ENGINE_ADMITTED,
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
static void deliver_score(struct engine *e, const struct batch *batch,
                          const struct batch_logit *row, const struct sampling_result *result)
{
    struct engine_seq *seq = &e->seqs[row->slot];
    int32_t position = batch_positions(batch)[row->row] + 1;

    if (position <= seq->n_scored)
        return;
    seq->n_scored = position;
    emit(e, &(struct engine_event){
                .type = ENGINE_SCORE, .id = seq->id, .time_us = e->landed_us, .score = *result});
}

/* A drawn token goes to the scheduler and to the loop. */
static void deliver_token(struct engine *e, int32_t slot, const struct sampling_result *result)
{
    struct engine_seq *seq = &e->seqs[slot];
    struct engine_event event; /* large: only what counts is set */

    event.type = ENGINE_TOKEN;
    event.id = seq->id;
    event.time_us = e->landed_us;
    seq->n_generated++;
    event.token.result = *result;
    event.token.finish = finish_of(seq, result->token);
    if (event.token.finish == FINISH_NONE)
        scheduler_append(e->sched, slot, result->token);
    else
        end_seq(e, slot);
    emit(e, &event);
}

/* What a step says of a sequence that ended after it was planned is dropped. */
static void deliver_results(struct engine *e, const struct flight *flight)
{
    for (int32_t i = 0; i < flight->batch->n_logits; i++) {
        const struct batch_logit *row = &batch_logits(flight->batch)[i];
        if (e->seqs[row->slot].id != flight->ids[i])
            continue;
        if (row->target >= 0)
            deliver_score(e, flight->batch, row, &flight->results[i]);
        else
            deliver_token(e, row->slot, &flight->results[i]);
    }
}

/* The state after the step of `batch`; NULL: after commands alone. */
static void emit_step(struct engine *e, const struct batch *batch, int64_t step_us, int64_t wait_us)
{
    struct scheduler_stats stats = scheduler_stats(e->sched);
    struct engine_step step = {
        .rows = batch ? batch->n_rows : 0,
        .seqs = batch ? batch->n_seqs : 0,
        .running = stats.running,
        .waiting = stats.waiting,
        .pages = stats.kv.pages,
        .pages_used = stats.kv.pages_used,
        .preemptions = stats.preemptions,
        .prefix_queries_tokens = stats.kv.queried_tokens,
        .prefix_hits_tokens = stats.kv.hit_tokens,
        .step_us = step_us,
        .wait_us = wait_us,
    };

    for (int32_t i = 0; i < step.seqs; i++)
        if (!batch_seqs(batch)[i].absorbed)
            step.prompt_tokens += batch_seqs(batch)[i].n_rows;
    emit(e, &(struct engine_event){.type = ENGINE_STEP, .step = step});
}

/* The masks of the step's logit rows; NULL when none of its sequences has a constraint. */
static const uint32_t *make_masks(struct engine *e, const struct batch *batch)
{
    int32_t vocab = e->core.config.vocab_size;
    bool any = false;

    for (int32_t i = 0; e->n_constrained > 0 && i < batch->n_seqs; i++)
        any |= e->seqs[batch_seqs(batch)[i].slot].request->constraint != NULL;
    for (int32_t i = 0; any && i < batch->n_logits; i++) {
        int32_t slot = batch_logits(batch)[i].slot, n;
        const int32_t *generated = scheduler_generated(e->sched, slot, &n);
        constraint_mask(&e->seqs[slot].constraint, generated, n, vocab,
                        e->masks + (size_t)i * SAMPLING_MASK_WORDS(vocab));
    }
    return any ? e->masks : NULL;
}

/* Plans a step and gives it to the backend. False when there is nothing to run now. */
static bool launch(struct engine *e)
{
    struct flight *flight = &e->flights[e->n_flying];
    struct backend *be = e->core.be;

    flight->start_us = clock_us();
    scheduler_plan(e->sched, flight->batch);
    if (flight->batch->n_rows == 0)
        return false;
    announce_admissions(e, flight->batch);
    for (int32_t i = 0; i < flight->batch->n_logits; i++)
        flight->ids[i] = e->seqs[batch_logits(flight->batch)[i].slot].id;
    struct tensor logits = model_forward(e->core.model, flight->batch);
    be->ops->sample(be, logits, make_masks(e, flight->batch), flight->results);
    e->n_flying++;
    return true;
}

/* Waits for the oldest step and hands out what it gave. -1 when the device failed. */
static int land(struct engine *e, struct error *err)
{
    struct flight flight = e->flights[0];
    int64_t before = clock_us();

    if (e->core.be->ops->finish(e->core.be, err))
        return -1;
    if (e->options->fail_at_step && ++e->n_steps == e->options->fail_at_step)
        return error_set(err, "step %lld failed, as --fail-at-step says", (long long)e->n_steps);
    int64_t start = flight.start_us > e->landed_us ? flight.start_us : e->landed_us;
    e->landed_us = clock_us();
    e->n_flying--;
    for (int i = 0; i < e->n_flying; i++)
        e->flights[i] = e->flights[i + 1];
    e->flights[e->n_flying] = flight;
    scheduler_advance(e->sched);
    deliver_results(e, &flight);
    emit_step(e, flight.batch, e->landed_us - start, e->landed_us - before);
    return 0;
}

static void fail(struct engine *e, const struct error *err)
{
    if (!atomic_load(&e->stopping))
        log_error("%s", err->message);
    emit(e, &(struct engine_event){.type = ENGINE_FAILED, .error = *err});
    hand_over(e);
}

/* Steps until the engine is stopped. With look-ahead a step is launched while the one before it is
 * still under way, so that the device never waits for the host between two steps. */
static int run(struct engine *e, struct error *err)
{
    int most_flying = e->core.look_ahead ? BACKEND_MAX_STEPS : 1;

    while (!atomic_load(&e->stopping)) {
        int n_commands = take_commands(e);
        bool launched = e->n_flying < most_flying && launch(e);
        if (e->n_flying == most_flying || (e->n_flying > 0 && !launched)) {
            if (land(e, err))
                return -1;
            hand_over(e);
        } else if (n_commands > 0) {
            emit_step(e, NULL, 0, 0);
            hand_over(e);
        } else if (!launched) {
            queue_wait(e->commands, -1);
        }
    }
    return 0;
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
    emit(e, &(struct engine_event){.type = ENGINE_READY});
    emit_step(e, NULL, 0, 0);
    hand_over(e);
    if (run(e, &err))
        fail(e, &err);
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
    e->events = event_queue_new((size_t)options->max_num_seqs * 4 + 64);
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
    atomic_store(&e->cancel_load, 1);
    queue_close(e->commands);
    event_queue_close(e->events);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ENGINE_STOP_S;
    if (pthread_timedjoin_np(e->thread, NULL, &until) != 0)
        return false;

    while (queue_pop(e->commands, &command, 1))
        engine_request_free(command.request);
    for (int32_t slot = 0; slot < e->n_slots; slot++)
        if (e->seqs[slot].id)
            end_seq(e, slot);
    engine_core_close(&e->core);
    scheduler_free(e->sched);
    if (e->model_info.trie)
        vocabulary_trie_free(e->model_info.trie);
    tokenizer_free(e->model_info.tokenizer);
    chat_templates_free(e->model_info.chat_templates);
    queue_free(e->commands);
    event_queue_free(e->events);
    for (int i = 0; i < BACKEND_MAX_STEPS; i++) {
        free(e->flights[i].batch);
        free(e->flights[i].results);
        free(e->flights[i].ids);
    }
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
    size_t n = event_queue_pop(e->events, events, max);

    for (size_t i = 0; i < n; i++)
        note_event(e, &events[i]);
    return n;
}
