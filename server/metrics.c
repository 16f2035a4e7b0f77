#include "server/metrics.h"

#include "base/json.h"
#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_BUCKETS = 24 };

struct histogram_def {
    const char *name, *help;
    double bounds[MAX_BUCKETS]; /* ascending, ends at 0; +Inf is implied */
};

#define LATENCY_BOUNDS                                                                             \
    {                                                                                              \
        .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680  \
    }
#define TOKEN_BOUNDS                                                                               \
    {                                                                                              \
        1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000  \
    }

/* Bounds are vLLM's, so that its dashboards and alerts work as they are. */
static const struct histogram_def histogram_defs[N_HISTOGRAMS] = {
    [HIST_TTFT] = {"vllm:time_to_first_token_seconds",
                   "Time to the first token of a request.",
                   {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                    1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560}},
    [HIST_ITL] = {"vllm:inter_token_latency_seconds",
                  "Time between two tokens of a sequence.",
                  {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40,
                   80}},
    [HIST_E2E] = {"vllm:e2e_request_latency_seconds", "Time from a request to its last token.",
                  LATENCY_BOUNDS},
    [HIST_QUEUE] = {"vllm:request_queue_time_seconds", "Time a sequence waited to run.",
                    LATENCY_BOUNDS},
    [HIST_INFERENCE] = {"vllm:request_inference_time_seconds",
                        "Time from a sequence's first step to its last token.", LATENCY_BOUNDS},
    [HIST_PREFILL] = {"vllm:request_prefill_time_seconds",
                      "Time from a sequence's first step to its first token.", LATENCY_BOUNDS},
    [HIST_DECODE] = {"vllm:request_decode_time_seconds",
                     "Time from a sequence's first token to its last.", LATENCY_BOUNDS},
    [HIST_PROMPT_TOKENS] = {"vllm:request_prompt_tokens", "Prompt tokens of a request.",
                            TOKEN_BOUNDS},
    [HIST_GENERATION_TOKENS] = {"vllm:request_generation_tokens", "Tokens generated for a request.",
                                TOKEN_BOUNDS},
    [HIST_ITERATION_TOKENS] = {"vllm:iteration_tokens_total",
                               "Query tokens of an engine step.",
                               {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}},
    [HIST_LOOP_LAG] = {"mlad_event_loop_lag_seconds",
                       "Delay of the event loop's timer: how long clients can be kept waiting.",
                       {.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}},
    [HIST_DELIVERY] = {"mlad_token_delivery_seconds",
                       "Time from the engine's sampling of a token to its bytes in the socket.",
                       {.00005, .0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .25, .5,
                        1}},
    [HIST_STEP] = {"mlad_step_seconds",
                   "Host time of an engine step.",
                   {.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}},
};

static const char *const outcome_names[N_OUTCOMES] = {"stop", "length", "abort", "timeout",
                                                      "error"};
static const char *const state_names[] = {"loading", "ready", "draining", "failed"};
static const char *const phase_names[N_LOAD_PHASES] = {"backend", "weights",   "memory",
                                                       "cache",   "tokenizer", "total"};
static const char *const limit_names[N_LIMITS] = {"queue",      "connections", "body",
                                                  "uploads",    "read_time",   "queue_time",
                                                  "total_time", "key",         "sessions"};

struct histogram {
    int64_t counts[MAX_BUCKETS + 1]; /* not cumulative; the last is +Inf */
    double sum;
};

struct metrics {
    char *labels; /* engine="0",model_name="..." */
    struct histogram histograms[N_HISTOGRAMS];
    int64_t outcomes[N_OUTCOMES], limits[N_LIMITS];
    int64_t prompt_tokens, generation_tokens;
    struct engine_step step; /* the latest */
    int64_t load_us[N_LOAD_PHASES];
};

struct metrics *metrics_new(const char *model_name)
{
    struct metrics *m = mem_zalloc(1, sizeof(*m));
    struct buffer labels;

    buffer_init(&labels, 1 << 16);
    buffer_append_str(&labels, "engine=\"0\",model_name=");
    json_write_string(&labels, model_name, -1); /* the same escapes as label values have */
    m->labels = labels.data;
    return m;
}

void metrics_free(struct metrics *m)
{
    free(m->labels);
    free(m);
}

static int bucket_count(const struct histogram_def *def)
{
    int n = 0;

    while (n < MAX_BUCKETS && def->bounds[n] > 0)
        n++;
    return n;
}

void metrics_observe(struct metrics *m, enum metrics_histogram which, double value)
{
    const struct histogram_def *def = &histogram_defs[which];
    struct histogram *h = &m->histograms[which];
    int n = bucket_count(def), at = 0;

    while (at < n && value > def->bounds[at])
        at++;
    h->counts[at]++;
    h->sum += value;
}

void metrics_count_outcome(struct metrics *m, enum request_outcome outcome)
{
    m->outcomes[outcome]++;
}

void metrics_count_limit(struct metrics *m, enum request_limit limit)
{
    m->limits[limit]++;
}

void metrics_count_generated(struct metrics *m, int64_t tokens)
{
    m->generation_tokens += tokens;
}

void metrics_count_prompt(struct metrics *m, int64_t tokens)
{
    m->prompt_tokens += tokens;
}

void metrics_note_step(struct metrics *m, const struct engine_step *step)
{
    m->step = *step;
    if (step->rows == 0)
        return;
    metrics_observe(m, HIST_ITERATION_TOKENS, step->rows);
    metrics_observe(m, HIST_STEP, (double)step->step_us * 1e-6);
}

void metrics_note_load(struct metrics *m, const int64_t load_us[N_LOAD_PHASES])
{
    memcpy(m->load_us, load_us, sizeof(m->load_us));
}

static void write_head(struct buffer *out, const char *name, const char *type, const char *help)
{
    buffer_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void write_value(const struct metrics *m, struct buffer *out, const char *name,
                        const char *type, const char *help, double value)
{
    write_head(out, name, type, help);
    buffer_printf(out, "%s{%s} %.15g\n", name, m->labels, value);
}

static void write_labelled(const struct metrics *m, struct buffer *out, const char *name,
                           const char *label, const char *const *values, const int64_t *counts,
                           int n)
{
    for (int i = 0; i < n; i++)
        buffer_printf(out, "%s{%s,%s=\"%s\"} %lld\n", name, m->labels, label, values[i],
                      (long long)counts[i]);
}

static void write_histogram(const struct metrics *m, struct buffer *out, int which)
{
    const struct histogram_def *def = &histogram_defs[which];
    const struct histogram *h = &m->histograms[which];
    int n = bucket_count(def);
    int64_t total = 0;

    write_head(out, def->name, "histogram", def->help);
    for (int i = 0; i <= n; i++) {
        total += h->counts[i];
        buffer_printf(out, "%s_bucket{%s,le=\"", def->name, m->labels);
        if (i < n)
            buffer_printf(out, "%g\"} %lld\n", def->bounds[i], (long long)total);
        else
            buffer_printf(out, "+Inf\"} %lld\n", (long long)total);
    }
    buffer_printf(out, "%s_sum{%s} %.15g\n%s_count{%s} %lld\n", def->name, m->labels, h->sum,
                  def->name, m->labels, (long long)total);
}

static void write_engine(const struct metrics *m, const struct metrics_now *now, struct buffer *out)
{
    const struct engine_step *s = &m->step;
    /* Also those that the engine has not taken from its queue yet. */
    int32_t waiting = now->sequences > s->running ? now->sequences - s->running : 0;
    double used = s->pages ? (double)s->pages_used / s->pages : 0;

    write_value(m, out, "vllm:num_requests_running", "gauge", "Sequences in the running batch.",
                s->running);
    write_value(m, out, "vllm:num_requests_waiting", "gauge", "Sequences waiting to run.", waiting);
    write_value(m, out, "vllm:kv_cache_usage_perc", "gauge",
                "Share of the KV cache's pages in use, 0 to 1.", used);
    write_head(out, "vllm:cache_config_info", "gauge", "The KV cache's configuration.");
    buffer_printf(out, "vllm:cache_config_info{%s,block_size=\"%d\",num_gpu_blocks=\"%d\"} 1\n",
                  m->labels, KV_PAGE_TOKENS, s->pages);
    write_value(m, out, "vllm:num_preemptions_total", "counter",
                "Times a running sequence gave its pages back.", (double)s->preemptions);
    write_value(m, out, "vllm:prefix_cache_queries_total", "counter",
                "Tokens looked up in the prefix cache.", (double)s->prefix_queries_tokens);
    write_value(m, out, "vllm:prefix_cache_hits_total", "counter",
                "Tokens found in the prefix cache.", (double)s->prefix_hits_tokens);
    write_value(m, out, "vllm:spec_decode_num_drafts_total", "counter", "Drafts that were checked.",
                (double)s->drafts);
    write_value(m, out, "vllm:spec_decode_num_draft_tokens_total", "counter",
                "Tokens of those drafts.", (double)s->draft_tokens);
    write_value(m, out, "vllm:spec_decode_num_accepted_tokens_total", "counter",
                "Tokens of those drafts that were kept.", (double)s->accepted_tokens);
}

/* The state of the process, and what loading took: nothing before it is over. */
static void write_process(const struct metrics *m, const struct metrics_now *now,
                          struct buffer *out)
{
    write_head(out, "mlad_state", "gauge", "1 for the state that the server is in.");
    for (size_t i = 0; i < sizeof(state_names) / sizeof(*state_names); i++)
        buffer_printf(out, "mlad_state{%s,state=\"%s\"} %d\n", m->labels, state_names[i],
                      strcmp(now->state, state_names[i]) == 0);
    if (m->load_us[LOAD_TOTAL] == 0)
        return;
    write_head(out, "mlad_load_seconds", "gauge", "Time that the phases of loading took.");
    for (int i = 0; i < N_LOAD_PHASES; i++)
        buffer_printf(out, "mlad_load_seconds{%s,phase=\"%s\"} %.6f\n", m->labels, phase_names[i],
                      (double)m->load_us[i] * 1e-6);
}

static void write_requests(const struct metrics *m, struct buffer *out)
{
    write_value(m, out, "vllm:prompt_tokens_total", "counter", "Prompt tokens processed.",
                (double)m->prompt_tokens);
    write_value(m, out, "vllm:generation_tokens_total", "counter", "Tokens generated.",
                (double)m->generation_tokens);
    write_head(out, "vllm:request_success_total", "counter", "Sequences that ended, by reason.");
    write_labelled(m, out, "vllm:request_success_total", "finished_reason", outcome_names,
                   m->outcomes, OUTCOME_ABORT + 1);
    write_head(out, "mlad_requests_failed_total", "counter", "Sequences that ended early.");
    write_labelled(m, out, "mlad_requests_failed_total", "reason", outcome_names + OUTCOME_TIMEOUT,
                   m->outcomes + OUTCOME_TIMEOUT, N_OUTCOMES - OUTCOME_TIMEOUT);
    write_head(out, "mlad_limit_hits_total", "counter", "Requests refused by a bound.");
    write_labelled(m, out, "mlad_limit_hits_total", "limit", limit_names, m->limits, N_LIMITS);
}

void metrics_write(const struct metrics *m, const struct metrics_now *now, struct buffer *out)
{
    write_process(m, now, out);
    write_engine(m, now, out);
    write_requests(m, out);
    for (int i = 0; i < N_HISTOGRAMS; i++)
        write_histogram(m, out, i);
    write_value(m, out, "mlad_connections", "gauge", "Open client connections.", now->connections);
    write_value(m, out, "mlad_exchanges_active", "gauge", "HTTP requests not fully answered.",
                now->exchanges);
    write_value(m, out, "mlad_buffered_bytes", "gauge", "Bytes waiting for clients to read.",
                (double)now->buffered_bytes);
    write_value(m, out, "mlad_body_bytes", "gauge", "Bytes of request bodies that are there.",
                (double)now->body_bytes);
    write_value(m, out, "mlad_slow_clients_dropped_total", "counter",
                "Clients dropped because they read too slowly.", (double)now->dropped_clients);
    write_value(m, out, "mlad_trace_spans_sent_total", "counter",
                "Spans that the trace collector took.", (double)now->spans_sent);
    write_value(m, out, "mlad_trace_spans_dropped_total", "counter",
                "Spans that the trace collector did not take in time.", (double)now->spans_dropped);
}
