/* States of a run (enum run_state). The model loads beside the scan.
 *
 *     SCANNING --scan: output read, input counted--> LOADING --on_ready--> RUNNING
 *                                                                            |   |
 *              .--settle: input ended, nothing in flight---------------------'   |
 *              v                                                                 | on_signal
 *            ENDED <--settle: nothing in flight; on_tick: time is up-- DRAINING <'
 *
 * and to ENDED from everywhere: stop_failed (a file, the model, the device), a signal before
 * RUNNING, a second signal.
 *
 * A line of the input goes
 *
 *     feed_one --> take_line --> submit --> in flight --respond--> written --reap--> freed
 *                     |             |  ^
 *                     |             |  '-- held: the engine has too few free slots now
 *                     |             '----> written: a fault of the request
 *                     '------------------> written: an error; or passed over: done before, repeated
 *
 * Everything runs on the loop's thread. Reading and writing files may block it for a moment: the
 * engine has its queue of sequences meanwhile. */
#include "server/batch_run.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/panic.h"
#include "server/api_constraint.h"
#include "server/api_generate.h"
#include "server/batch_output.h"
#include "server/batch_progress.h"
#include "server/id_set.h"
#include "server/line_reader.h"
#include "server/loop.h"
#include "server/served_model.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    EVENTS_AT_ONCE = 256,
    LINES_AT_ONCE = 32, /* of a round of the loop */
    COUNTS_AT_ONCE = 8,
    TICK_MS = 100,
    QUEUED_BATCHES = 1, /* sequences that wait in the engine, in batches of max-num-seqs */
    REPEATS_TOLD = 10,
};

enum run_state { SCANNING, LOADING, RUNNING, DRAINING, ENDED };

/* A valid line. */
struct batch_request {
    struct json *root; /* NULL: none */
    const struct json *body;
    const char *custom_id; /* in `root` */
    api_kind_of kind_of;
};

/* A line in flight, or one whose answer was just written. */
struct batch_item {
    struct batch_run *run;
    struct generation *generation;
    char *custom_id;
    struct batch_item *next, **link; /* in run->in_flight or run->answered */
};

struct batch_run {
    const struct options *options;
    enum run_state state;
    enum batch_status status;
    struct api_service service;
    struct metrics *metrics;
    struct loop *loop;
    struct loop_wakeup *wakeup;
    struct loop_timer *tick;
    struct loop_idle *work; /* on while there is something to scan or to take */
    int64_t drain_until_us;

    const char *input_path;
    int input_fd;
    struct line_reader *input;
    bool input_regular, input_ended;
    struct line_counter counter;
    bool output_scanned;
    struct batch_output *output;
    struct id_set *ids;

    struct batch_request held; /* waits for free slots */
    int32_t held_slots;        /* as many free ones make it worth another try */
    struct batch_item *in_flight, *answered;
    struct batch_counts counts;
    struct batch_progress progress;
    struct engine_event events[EVENTS_AT_ONCE];
};

/* ---- ends --------------------------------------------------------------------------------- */

static void end(struct batch_run *run, enum batch_status status)
{
    if (run->state == ENDED)
        return;
    run->state = ENDED;
    run->status = status;
    loop_stop(run->loop);
}

static void stop_failed(struct batch_run *run, const struct error *err)
{
    if (run->state == ENDED)
        return;
    batch_progress_clear(&run->progress);
    log_error("%s", err->message);
    end(run, BATCH_FAILED);
}

/* Takes the outcome of writing a line's answer or error. */
static void count_written(struct batch_run *run, bool answered, int rc, const struct error *err)
{
    if (rc) {
        stop_failed(run, err);
        return;
    }
    run->counts.done++;
    *(answered ? &run->counts.answered : &run->counts.failed) += 1;
}

/* ---- lines in flight ---------------------------------------------------------------------- */

static void item_link(struct batch_item *item, struct batch_item **list)
{
    item->next = *list;
    item->link = list;
    if (*list)
        (*list)->link = &item->next;
    *list = item;
}

static void item_unlink(struct batch_item *item)
{
    *item->link = item->next;
    if (item->next)
        item->next->link = item->link;
}

static struct batch_item *item_new(struct batch_run *run, const char *custom_id)
{
    struct batch_item *item = mem_zalloc(1, sizeof(*item));

    item->run = run;
    item->custom_id = mem_strdup(custom_id);
    item_link(item, &run->in_flight);
    return item;
}

static void item_free(struct batch_item *item)
{
    item_unlink(item);
    if (item->generation)
        generation_closed(item->generation);
    free(item->custom_id);
    free(item);
}

static void write_answer(struct batch_run *run, const char *custom_id, int status, const void *body,
                         size_t len)
{
    struct error err;
    int rc = batch_output_answer(run->output, custom_id, status, body, len, &err);

    count_written(run, status == 200, rc, &err);
}

static void answer_header(void *to, const char *name, const char *value)
{
    (void)to, (void)name, (void)value;
}

/* In the midst of the generation's work: it is closed later, by reap. */
static void answer_respond(void *to, int status, const char *content_type, const void *body,
                           size_t len)
{
    struct batch_item *item = to;

    (void)content_type;
    item_unlink(item);
    item_link(item, &item->run->answered);
    if (item->run->state != ENDED)
        write_answer(item->run, item->custom_id, status, body, len);
}

static void answer_start(void *to, int status, const char *content_type)
{
    (void)to, (void)status, (void)content_type;
    PANIC("a line of a batch streams");
}

static int answer_write(void *to, const void *data, size_t len)
{
    (void)to, (void)data, (void)len;
    PANIC("a line of a batch streams");
}

static void answer_end(void *to)
{
    (void)to;
    PANIC("a line of a batch streams");
}

static const struct answer_ops answer_ops = {.add_header = answer_header,
                                             .respond = answer_respond,
                                             .stream_start = answer_start,
                                             .stream_write = answer_write,
                                             .stream_end = answer_end,
                                             .stream_abort = answer_end};

static void reap(struct batch_run *run)
{
    struct generation_summary summary;

    while (run->answered) {
        struct batch_item *item = run->answered;
        generation_summarize(item->generation, &summary);
        run->counts.tokens_in += summary.prompt_tokens;
        run->counts.tokens_out += summary.completion_tokens;
        item_free(item);
    }
}

/* Frees what is answered, and ends the run when nothing is left to wait for. */
static void settle(struct batch_run *run)
{
    reap(run);
    if (run->in_flight)
        return;
    if (run->input_ended && !run->held.root)
        end(run, BATCH_DONE);
    else if (run->state == DRAINING)
        end(run, BATCH_STOPPED);
}

/* ---- from line to generation -------------------------------------------------------------- */

static int32_t slots_used(const struct batch_run *run)
{
    return engine_slots(run->service.engine) - engine_slots_free(run->service.engine);
}

/* Enough for the engine never to run dry, and not more: what is in flight is lost by a kill. */
static bool has_room(const struct batch_run *run)
{
    int64_t wanted = run->options->max_num_seqs * (1 + QUEUED_BATCHES);

    if (engine_slots_free(run->service.engine) < (run->held.root ? run->held_slots : 1))
        return false;
    return slots_used(run) < wanted;
}

/* The request needs more slots than are free. It is tried again when twice as many are, so a
 * request of many sequences is not tokenized over and over. */
static void hold(struct batch_run *run, struct batch_request *request)
{
    int32_t slots = engine_slots(run->service.engine);
    int32_t wanted = 2 * engine_slots_free(run->service.engine) + 1;

    run->held = *request;
    run->held_slots = wanted < slots ? wanted : slots;
}

/* Takes the request over. */
static void submit(struct batch_run *run, struct batch_request *request)
{
    struct batch_item *item = item_new(run, request->custom_id);
    struct answer answer = {.ops = &answer_ops, .to = item, .arrival_us = clock_us()};
    struct api_fault fault;
    struct buffer body;

    item->generation = api_generate(&run->service, request->body, request->kind_of, answer, &fault);
    if (!item->generation) {
        item_free(item);
        if (fault.status == 429 && slots_used(run) > 0) {
            hold(run, request);
            return;
        }
        buffer_init(&body, 1 << 20);
        api_fault_write(&fault, &body);
        write_answer(run, request->custom_id, fault.status, body.data, body.len);
        buffer_free(&body);
    }
    json_free(request->root);
}

/* Whether the line is to be run or refused: once for each custom_id, whatever became of it. */
static bool is_new(struct batch_run *run, const char *custom_id, int64_t number)
{
    enum id_state before = batch_output_mark(run->ids, custom_id, number, ID_TAKEN);

    if (before == ID_UNKNOWN)
        return true;
    run->counts.done++;
    if (before == ID_DONE) {
        run->counts.skipped++;
    } else if (run->counts.repeated++ < REPEATS_TOLD) {
        batch_progress_clear(&run->progress);
        log_warning("line %lld is not run: its custom_id \"%.200s\" came before", (long long)number,
                    custom_id);
    }
    return false;
}

static void refuse(struct batch_run *run, const char *custom_id, int64_t number, const char *code,
                   const char *message)
{
    struct error err;

    if (!is_new(run, custom_id, number))
        return;
    int rc = batch_output_error(run->output, custom_id, number, code, message, &err);
    count_written(run, false, rc, &err);
}

static const char *string_member(const struct json *object, const char *key)
{
    const struct json *value = json_get(object, key);

    return json_is(value, JSON_STRING) ? json_string(value) : NULL;
}

/* The code of what is wrong with a line, and a sentence; NULL when it is a request. */
static const char *check_request(struct batch_request *request, struct error *why)
{
    const char *method = string_member(request->root, "method");
    const char *url = string_member(request->root, "url");
    const struct json *stream;

    request->body = json_get(request->root, "body");
    if (!method || strcmp(method, "POST") != 0) {
        error_set(why, "'method' must be \"POST\".");
        return "invalid_method";
    }
    if (url && strcmp(url, "/v1/chat/completions") == 0) {
        request->kind_of = api_always_chat;
    } else if (url && strcmp(url, "/v1/completions") == 0) {
        request->kind_of = api_always_completion;
    } else {
        error_set(why, "'url' must be \"/v1/chat/completions\" or \"/v1/completions\".");
        return "invalid_url";
    }
    if (!json_is(request->body, JSON_OBJECT)) {
        error_set(why, "'body' must be an object: the request.");
        return "invalid_body";
    }
    stream = json_get(request->body, "stream");
    if (json_is(stream, JSON_BOOL) && json_bool(stream)) {
        error_set(why, "A batch has no streams: leave 'stream' out.");
        return "invalid_body";
    }
    return NULL;
}

static void take_line(struct batch_run *run, const struct line *line)
{
    struct batch_request request = {0};
    struct error why;
    const char *code;

    if (line_is_blank(line->text, line->len))
        return;
    request.root = json_parse(line->text, line->len, &why);
    if (!request.root) {
        error_prefix(&why, "The line is not valid JSON");
        refuse(run, NULL, line->number, "invalid_json_line", why.message);
        return;
    }
    request.custom_id = string_member(request.root, "custom_id");
    if (!request.custom_id || !*request.custom_id) {
        refuse(run, NULL, line->number, "invalid_custom_id",
               "The line must be an object with a 'custom_id', a string that is not empty.");
    } else if ((code = check_request(&request, &why)) != NULL) {
        refuse(run, request.custom_id, line->number, code, why.message);
    } else if (is_new(run, request.custom_id, line->number)) {
        submit(run, &request);
        return;
    }
    json_free(request.root);
}

static void refuse_long_line(struct batch_run *run, const struct line *line)
{
    struct error why;

    error_set(&why, "The line is longer than the limit of %lld MiB (--max-body-mib).",
              (long long)run->options->max_body_mib);
    refuse(run, NULL, line->number, "line_too_long", why.message);
}

/* Takes the next line, if one can be taken now. */
static bool feed_one(struct batch_run *run)
{
    struct batch_request held = run->held;
    struct line line;
    struct error err;

    if (run->state != RUNNING || !has_room(run))
        return false;
    if (held.root) {
        run->held = (struct batch_request){0};
        submit(run, &held);
        return true;
    }
    if (run->input_ended)
        return false;
    switch (line_reader_next(run->input, &line)) {
    case LINE_READ:
        take_line(run, &line);
        return true;
    case LINE_TOO_LONG:
        refuse_long_line(run, &line);
        return true;
    case LINE_WAIT:
        return false;
    case LINE_END:
        run->input_ended = true;
        return false;
    case LINE_FAILED:
        break;
    }
    error_set(&err, "can't read %s: %s", run->input_path, strerror(errno));
    stop_failed(run, &err);
    return false;
}

static void feed(struct batch_run *run)
{
    int taken = 0;

    while (taken < LINES_AT_ONCE && feed_one(run))
        taken++;
    loop_idle_set(run->work, taken == LINES_AT_ONCE);
    if (run->state == RUNNING)
        settle(run);
}

/* ---- start -------------------------------------------------------------------------------- */

static void start_running(struct batch_run *run)
{
    run->state = RUNNING;
    run->counts.started_us = clock_us();
    loop_idle_set(run->work, true);
}

static void scanned(struct batch_run *run)
{
    run->counts.to_skip = id_set_count(run->ids);
    run->counts.total = run->input_regular ? run->counter.lines : -1;
    if (run->counts.to_skip)
        log_info("the output holds %lld results already; going on behind them",
                 (long long)run->counts.to_skip);
    run->state = LOADING;
    loop_idle_set(run->work, false);
    if (engine_model(run->service.engine))
        start_running(run);
}

/* A piece of the output, then a piece of the input. */
static void scan(struct batch_run *run)
{
    struct error err;
    int more = 1;

    if (!run->output_scanned) {
        more = batch_output_scan(run->output, run->ids, &err);
        if (more < 0)
            stop_failed(run, &err);
        run->output_scanned = more == 0;
        return;
    }
    for (int i = 0; i < COUNTS_AT_ONCE && more > 0; i++)
        more = run->input_regular ? line_counter_step(&run->counter, run->input_fd) : 0;
    if (more < 0) {
        error_set(&err, "can't read %s: %s", run->input_path, strerror(errno));
        stop_failed(run, &err);
    } else if (more == 0) {
        scanned(run);
    }
}

static void on_work(void *arg)
{
    struct batch_run *run = arg;

    if (run->state == SCANNING)
        scan(run);
    else
        feed(run);
}

static void on_ready(struct batch_run *run)
{
    if (run->state == LOADING)
        start_running(run);
}

/* ---- events ------------------------------------------------------------------------------- */

static void handle_event(struct batch_run *run, const struct engine_event *event)
{
    struct error err;

    switch (event->type) {
    case ENGINE_READY:
        on_ready(run);
        break;
    case ENGINE_FAILED: /* the engine logged why */
        error_set(&err, engine_model(run->service.engine)
                            ? "the engine failed; what was in flight is not in the output"
                            : "the model can't be used");
        stop_failed(run, &err);
        break;
    case ENGINE_STEP:
        metrics_note_step(run->metrics, &event->step);
        run->counts.steps += event->step.seqs > 0;
        run->counts.step_seqs += event->step.seqs;
        break;
    case ENGINE_TOKEN:
        run->counts.tokens_now++;
        generations_handle(run->service.generations, event);
        break;
    case ENGINE_ADMITTED:
    case ENGINE_SCORE:
    case ENGINE_CANCELLED:
        generations_handle(run->service.generations, event);
        break;
    }
}

/* The engine has events. New lines go to it at once, so that its next step is full. */
static void on_wake(void *arg)
{
    struct batch_run *run = arg;
    size_t n;

    while ((n = engine_poll(run->service.engine, run->events, EVENTS_AT_ONCE)) > 0)
        for (size_t i = 0; i < n; i++)
            handle_event(run, &run->events[i]);
    if (run->state == RUNNING)
        feed(run);
    else if (run->state == DRAINING)
        settle(run);
}

/* On the engine's thread. */
static void wake(void *arg)
{
    loop_wake(((struct batch_run *)arg)->wakeup);
}

static void on_signal(void *arg, int signum)
{
    struct batch_run *run = arg;
    bool drain = run->state == RUNNING;

    batch_progress_clear(&run->progress);
    log_info("got signal %d: %s", signum, drain ? "finishing the lines in flight" : "stopping");
    if (!drain) {
        end(run, BATCH_STOPPED);
        return;
    }
    run->state = DRAINING;
    run->drain_until_us = clock_us() + run->options->drain_timeout_s * 1000000;
    settle(run);
}

static void on_tick(void *arg)
{
    struct batch_run *run = arg;

    generations_tick(run->service.generations);
    if (run->state == RUNNING)
        feed(run); /* a pipe may have lines */
    else if (run->state == DRAINING)
        settle(run);
    if (run->state == DRAINING && clock_us() >= run->drain_until_us) {
        batch_progress_clear(&run->progress);
        log_warning("%d lines did not finish within the drain time: they are not in the output",
                    generations_active(run->service.generations));
        end(run, BATCH_STOPPED);
    }
    if (run->state == RUNNING || run->state == DRAINING)
        batch_progress_tick(&run->progress, &run->counts);
}

/* ---- the whole ---------------------------------------------------------------------------- */

static int open_input(struct batch_run *run, const char *path, struct error *err)
{
    bool from_stdin = strcmp(path, "-") == 0;
    struct stat info;

    run->input_path = from_stdin ? "standard input" : path;
    run->input_fd = from_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (run->input_fd < 0 || fstat(run->input_fd, &info))
        return error_set(err, "can't read %s: %s", run->input_path, strerror(errno));
    if (S_ISDIR(info.st_mode))
        return error_set(err, "can't read %s: it is a folder", run->input_path);
    run->input_regular = S_ISREG(info.st_mode);
    run->input = line_reader_new(run->input_fd, (size_t)run->options->max_body_mib << 20);
    return 0;
}

static int open_files(struct batch_run *run, const char *input_path, const char *output_path,
                      struct error *err)
{
    struct stat info;

    if (open_input(run, input_path, err))
        return -1;
    run->output = batch_output_open(output_path, err);
    if (!run->output)
        return -1;
    if (fstat(run->input_fd, &info) == 0 && batch_output_is(run->output, &info))
        return error_set(err, "input and output are the same file, %s", output_path);
    return 0;
}

/* Runs the batch. False when the engine's thread is stuck and can't be ended. */
static bool run_loop(struct batch_run *run, const char *model_dir)
{
    run->loop = loop_new();
    loop_on_signal(run->loop, SIGTERM, on_signal, run);
    loop_on_signal(run->loop, SIGINT, on_signal, run);
    run->wakeup = loop_wakeup_new(run->loop, on_wake, run);
    run->work = loop_idle_new(run->loop, on_work, run);
    run->metrics = metrics_new(run->service.model_name);
    run->service.engine = engine_start(run->options, model_dir, wake, run);
    run->service.grammars = grammar_cache_new();
    run->service.generations =
        generations_new(run->service.engine, run->metrics, run->service.model_name, run->options);
    run->tick = loop_timer_start(run->loop, TICK_MS, TICK_MS, on_tick, run);
    loop_idle_set(run->work, true);

    loop_run(run->loop);

    while (run->answered)
        item_free(run->answered);
    while (run->in_flight)
        item_free(run->in_flight);
    loop_timer_stop(run->tick);
    loop_idle_free(run->work);
    generations_free(run->service.generations);
    grammar_cache_free(run->service.grammars);
    if (!engine_stop(run->service.engine))
        return false;
    metrics_free(run->metrics);
    loop_wakeup_free(run->wakeup);
    loop_free(run->loop);
    return true;
}

static void close_files(struct batch_run *run)
{
    struct error err;

    if (run->output && batch_output_close(run->output, &err)) {
        log_error("%s", err.message);
        run->status = BATCH_FAILED;
    }
    line_reader_free(run->input);
    if (run->input_fd >= 0)
        close(run->input_fd);
    json_free(run->held.root);
}

enum batch_status batch_run(const struct options *options, const char *model_dir,
                            const char *input_path, const char *output_path)
{
    struct batch_run *run = mem_zalloc(1, sizeof(*run));
    char *model_name = served_model_name(options, model_dir);
    struct error err;
    bool ended = true;

    signal(SIGPIPE, SIG_IGN);
    run->options = options;
    run->status = BATCH_FAILED;
    run->service.model_name = model_name;
    run->ids = id_set_new();
    batch_progress_init(&run->progress);
    if (open_files(run, input_path, output_path, &err)) {
        log_error("%s", err.message);
    } else {
        log_info("mlad %s runs the batch %s, model %s", MLAD_VERSION, run->input_path, model_name);
        ended = run_loop(run, model_dir);
    }
    close_files(run);
    batch_progress_clear(&run->progress);
    if (run->counts.started_us)
        batch_progress_summary(&run->counts);
    if (run->status == BATCH_STOPPED)
        log_info("stopped before the end: the same command goes on from here");
    enum batch_status status = run->status;
    if (!ended) {
        log_warning("the engine is stuck (in a read of the model's files?): leaving it behind");
        _exit(status);
    }
    id_set_free(run->ids);
    free(model_name);
    free(run);
    return status;
}
