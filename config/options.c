#include "config/options.h"

#include "base/buffer.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/panic.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum option_type { OPT_STRING, OPT_SECRET, OPT_INT, OPT_NUMBER, OPT_BOOL, OPT_CHOICE };

struct option {
    const char *name; /* as after "--"; MLAD_NAME in the environment with '-' as '_' */
    enum option_type type;
    size_t field; /* offset in struct options */
    int64_t min, max;
    const char *value; /* default, in the words a user would write */
    const char *metavar;
    const char *help;
    const char *choices; /* OPT_CHOICE: words separated by '|' */
};

#define TEXT(field, name, value, metavar, help)                                                    \
    {                                                                                              \
        name, OPT_STRING, offsetof(struct options, field), 0, 0, value, metavar, help, NULL        \
    }
#define SECRET(field, name, metavar, help)                                                         \
    {                                                                                              \
        name, OPT_SECRET, offsetof(struct options, field), 0, 0, "", metavar, help, NULL           \
    }
#define INTEGER(field, name, min, max, value, metavar, help)                                       \
    {                                                                                              \
        name, OPT_INT, offsetof(struct options, field), min, max, value, metavar, help, NULL       \
    }
#define NUMBER(field, name, min, max, value, metavar, help)                                        \
    {                                                                                              \
        name, OPT_NUMBER, offsetof(struct options, field), min, max, value, metavar, help, NULL    \
    }
#define SWITCH(field, name, value, help)                                                           \
    {                                                                                              \
        name, OPT_BOOL, offsetof(struct options, field), 0, 0, value, "", help, NULL               \
    }
#define CHOICE(field, name, choices, value, help)                                                  \
    {                                                                                              \
        name, OPT_CHOICE, offsetof(struct options, field), 0, 0, value, choices, help, choices     \
    }

static const struct option table[] = {
    TEXT(model, "model", "", "DIR",
         "Hugging Face checkpoint folder to serve (empty: /opt/ml/model if there is one, or the "
         "demo "
         "model that ships)"),
    TEXT(served_model_name, "served-model-name", "", "NAME",
         "name clients use for the model (empty: the folder's name)"),
    TEXT(chat_template, "chat-template", "auto", "FILE",
         "chat template to use (auto: the model's own, or else a built-in format; builtin: never "
         "the model's own)"),
    SWITCH(trust_request_chat_template, "trust-request-chat-template", "false",
           "allow requests to bring a chat template of their own"),
    INTEGER(max_model_len, "max-model-len", 0, 1 << 24, "0", "TOKENS",
            "longest context of a request, prompt and answer (0: what model and cache allow)"),
    INTEGER(max_num_seqs, "max-num-seqs", 1, 4096, "256", "N", "sequences that run in one batch"),
    INTEGER(max_num_batched_tokens, "max-num-batched-tokens", 0, 1 << 20, "0", "TOKENS",
            "token budget of one step; longer prompts are cut in chunks (0: 8192 on a GPU, 512 on "
            "a CPU, or max-num-seqs when that is more)"),
    CHOICE(device, "device", "auto|cpu|cuda", "auto",
           "what computes; auto is a GPU when there is one that mlad can run on"),
    SWITCH(dummy_weights, "dummy-weights", "false",
           "make random weights of the model's shapes, to try and time it without its files; "
           "--model may then be a config.json"),
    SWITCH(load_mtp, "load-mtp", "false",
           "load the layers of multi-token prediction too, where the model has them, which takes "
           "their memory and their part of the KV cache; no request uses them yet"),
    CHOICE(kv_dtype, "kv-dtype", "auto|f32|bf16|fp8", "auto",
           "type of the KV cache: bf16 (auto) or fp8 on a GPU, f32 on a CPU"),
    NUMBER(gpu_memory_utilization, "gpu-memory-utilization", 0, 1, "0.9", "SHARE",
           "share of the GPU's memory to use for weights, working memory and KV cache"),
    INTEGER(num_kv_pages, "num-kv-pages", 0, 1 << 26, "0", "N",
            "pages of the KV cache, 64 tokens each (0: from kv-cache-memory-mib)"),
    INTEGER(kv_cache_memory_mib, "kv-cache-memory-mib", 0, 1 << 24, "0", "MIB",
            "memory for the KV cache (0: 1024 on a CPU, what gpu-memory-utilization leaves on a "
            "GPU)"),
    CHOICE(look_ahead, "look-ahead", "auto|on|off", "auto",
           "plan a step before the tokens of the one before are read; auto is on with a GPU"),
    SWITCH(batch_invariant, "batch-invariant", "false",
           "on a GPU too, compute the same bits whatever else is in the batch; somewhat slower"),
    INTEGER(fail_at_step, "fail-at-step", 0, INT32_MAX, "0", "N",
            "behave as if the device failed at this step, to test what happens then (0: never)"),
    TEXT(bench_prompts, "bench-prompts", "128,1024,8192", "TOKENS,...",
         "mlad bench: lengths of prompts to compute"),
    TEXT(bench_batches, "bench-batches", "1,8,32,64,128,256", "N,...",
         "mlad bench: numbers of sequences that generate at once"),
    TEXT(bench_contexts, "bench-contexts", "1024", "TOKENS,...",
         "mlad bench: how long their contexts are"),
    INTEGER(bench_steps, "bench-steps", 8, 1 << 20, "64", "N",
            "mlad bench: steps of generation to measure"),
    SWITCH(json, "json", "false", "mlad bench: print JSON instead of tables"),
    SWITCH(enable_prefix_caching, "enable-prefix-caching", "true",
           "reuse the KV pages of prompts that begin alike"),
    INTEGER(threads, "threads", 0, 1024, "0", "N",
            "threads of the CPU backend (0: one for each core)"),
    TEXT(host, "host", "127.0.0.1", "ADDRESS", "address to listen on; 0.0.0.0 for all"),
    INTEGER(port, "port", 0, 65535, "8080", "N", "port to listen on; 0 for any free one"),
    INTEGER(max_queue, "max-queue", 0, 1 << 20, "1024", "N",
            "requests that may wait for their turn; past it clients get 429"),
    INTEGER(queue_timeout_s, "queue-timeout-s", 0, 1 << 24, "0", "SECONDS",
            "time a request may wait for its turn; past it 503 (0: only --request-timeout-s)"),
    INTEGER(max_answer_tokens, "max-answer-tokens", 0, 1 << 24, "0", "TOKENS",
            "longest answer: a request that asks for more gets 400, one that does not say gets at "
            "most so many (0: what the context allows)"),
    INTEGER(max_connections, "max-connections", 1, 1 << 20, "4096", "N",
            "open connections; past it clients get 503"),
    INTEGER(max_body_mib, "max-body-mib", 1, 1024, "32", "MIB",
            "size of a request body; past it clients get 413"),
    INTEGER(max_uploads_mib, "max-uploads-mib", 1, 1 << 20, "512", "MIB",
            "memory for the bodies of all requests; past it those above 64 KiB get 429"),
    INTEGER(max_stream_buffer_kib, "max-stream-buffer-kib", 16, 1 << 20, "1024", "KIB",
            "text that may wait for a client that reads slowly; past it the client is dropped"),
    INTEGER(request_timeout_s, "request-timeout-s", 0, 1 << 24, "600", "SECONDS",
            "time a request may take in all, queue included (0: no limit)"),
    INTEGER(read_timeout_s, "read-timeout-s", 1, 1 << 20, "30", "SECONDS",
            "time a client may take to send a request"),
    INTEGER(idle_timeout_s, "idle-timeout-s", 1, 1 << 20, "90", "SECONDS",
            "how long a connection without a request is kept"),
    INTEGER(keep_alive_interval_s, "keep-alive-interval-s", 1, 1 << 20, "15", "SECONDS",
            "a silent stream sends a comment this often, so that proxies keep it"),
    INTEGER(drain_timeout_s, "drain-timeout-s", 0, 1 << 20, "25", "SECONDS",
            "time for requests in flight to finish after SIGTERM"),
    TEXT(tls_cert, "tls-cert", "", "FILE",
         "PEM file of the certificate, and those above it, to serve HTTPS with; read again at "
         "SIGHUP"),
    TEXT(tls_key, "tls-key", "", "FILE",
         "PEM file of its key (empty: the key is in the file of --tls-cert)"),
    SECRET(api_key, "api-key", "KEYS",
           "keys that clients must send, separated by commas; only as MLAD_API_KEY or in a file"),
    TEXT(api_key_file, "api-key-file", "", "FILE",
         "file of such keys, one a line, perhaps followed by a name; read again at SIGHUP"),
    TEXT(api_key_header, "api-key-header", "", "NAME",
         "header that may hold the key, besides Authorization: Bearer"),
    INTEGER(max_requests_per_minute, "max-requests-per-minute", 0, 1 << 24, "0", "N",
            "inference requests of one key in a minute; past it 429 (0: no limit)"),
    INTEGER(max_concurrent_per_key, "max-concurrent-per-key", 0, 1 << 20, "0", "N",
            "inference requests of one key at once; past it 429 (0: no limit)"),
    TEXT(cors_origin, "cors-origin", "", "ORIGIN",
         "web origin whose pages may call the API; * for all"),
    INTEGER(max_sessions, "max-sessions", 1, 1 << 20, "4096", "N",
            "SageMaker sessions that may be open at once; past it 429"),
    INTEGER(session_lifetime_s, "session-lifetime-s", 1, 1 << 24, "1200", "SECONDS",
            "how long a SageMaker session is open"),
    INTEGER(watchdog_s, "watchdog-s", 0, 1 << 20, "120", "SECONDS",
            "/health is 503 when the engine has work and makes no step for so long (0: never)"),
    TEXT(notify_socket, "notify-socket", "", "PATH",
         "socket of a service manager to tell of readiness (systemd's NOTIFY_SOCKET)"),
    TEXT(otlp_traces_endpoint, "otlp-traces-endpoint", "", "URL",
         "OpenTelemetry collector to send a span of each request to, as OTLP over HTTP in JSON; "
         "http://HOST:4318/v1/traces, say"),
    SECRET(otlp_headers, "otlp-headers", "NAME=VALUE,...",
           "headers for the collector; only as MLAD_OTLP_HEADERS or in a file"),
    TEXT(otlp_service_name, "otlp-service-name", "mlad", "NAME",
         "what the collector calls this service"),
    SWITCH(access_log, "access-log", "false", "log a line for each request"),
    CHOICE(log_level, "log-level", "error|warning|info|debug", "info",
           "least level that is logged"),
    CHOICE(log_format, "log-format", "text|json", "text", "form of the log lines on stderr"),
    TEXT(config, "config", "", "FILE", "file of `flag = value` lines to read first"),
    SWITCH(help, "help", "false", "show this list"),
    SWITCH(version, "version", "false", "show the version"),
};

/* What --help writes above the option of that name. */
static const struct {
    const char *first, *title;
} groups[] = {
    {"model", "The model, and the machine it runs on"},
    {"host", "Clients: where they come in, and how much of everything they may have"},
    {"tls-cert", "Who may come in"},
    {"max-sessions", "For the platform around"},
    {"otlp-traces-endpoint", "Logs and traces"},
    {"config", "This program"},
};

enum { HELP_WIDTH = 80 };
enum { N_OPTIONS = sizeof(table) / sizeof(table[0]), NAME_MAX_LEN = 64, CONFIG_MAX = 1 << 20 };

static char **string_field(struct options *options, const struct option *opt)
{
    return (char **)((char *)options + opt->field);
}

/* Names that users of other servers know. */
static const struct {
    const char *alias, *name;
} aliases[] = {{"ssl-certfile", "tls-cert"}, {"ssl-keyfile", "tls-key"}};

static bool is_word(const char *word, const char *text, size_t len)
{
    return strlen(word) == len && strncmp(word, text, len) == 0;
}

static const struct option *find(const char *name, size_t len)
{
    for (size_t i = 0; i < sizeof(aliases) / sizeof(aliases[0]); i++)
        if (is_word(aliases[i].alias, name, len))
            return find(aliases[i].name, strlen(aliases[i].name));
    for (int i = 0; i < N_OPTIONS; i++)
        if (is_word(table[i].name, name, len))
            return &table[i];
    return NULL;
}

static bool in_choices(const char *choices, const char *value)
{
    size_t len = strlen(value);

    for (const char *at = choices; len > 0 && at; at = strchr(at, '|')) {
        at += *at == '|';
        if (strncmp(at, value, len) == 0 && (at[len] == '|' || at[len] == '\0'))
            return true;
    }
    return false;
}

static int set_integer(struct options *options, const struct option *opt, const char *value,
                       struct error *err)
{
    char *end = NULL;

    errno = 0;
    long long number = strtoll(value, &end, 10);
    if (errno || end == value || *end || number < opt->min || number > opt->max)
        return error_set(err, "--%s must be a whole number from %lld to %lld, got \"%s\"",
                         opt->name, (long long)opt->min, (long long)opt->max, value);
    *(int64_t *)((char *)options + opt->field) = number;
    return 0;
}

static int set_number(struct options *options, const struct option *opt, const char *value,
                      struct error *err)
{
    char *end = NULL;
    double number = strtod(value, &end);

    if (end == value || *end || !(number >= (double)opt->min && number <= (double)opt->max))
        return error_set(err, "--%s must be a number from %lld to %lld, got \"%s\"", opt->name,
                         (long long)opt->min, (long long)opt->max, value);
    *(double *)((char *)options + opt->field) = number;
    return 0;
}

static int set_switch(struct options *options, const struct option *opt, const char *value,
                      struct error *err)
{
    bool on = strcmp(value, "true") == 0 || strcmp(value, "1") == 0;

    if (!on && strcmp(value, "false") != 0 && strcmp(value, "0") != 0)
        return error_set(err, "--%s must be true or false, got \"%s\"", opt->name, value);
    *(bool *)((char *)options + opt->field) = on;
    return 0;
}

static int set(struct options *options, const struct option *opt, const char *value,
               struct error *err)
{
    switch (opt->type) {
    case OPT_INT:
        return set_integer(options, opt, value, err);
    case OPT_NUMBER:
        return set_number(options, opt, value, err);
    case OPT_BOOL:
        return set_switch(options, opt, value, err);
    case OPT_CHOICE:
        if (!in_choices(opt->choices, value))
            return error_set(err, "--%s must be one of %s, got \"%s\"", opt->name, opt->choices,
                             value);
        break;
    case OPT_STRING:
    case OPT_SECRET:
        break;
    }
    free(*string_field(options, opt));
    *string_field(options, opt) = mem_strdup(value);
    return 0;
}

/* MLAD_MAX_NUM_SEQS for max-num-seqs. */
static const char *from_environment(const struct option *opt)
{
    char name[NAME_MAX_LEN + 8] = "MLAD_";
    size_t at = strlen(name);

    for (const char *c = opt->name; *c; c++)
        name[at++] = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    name[at] = '\0';
    return getenv(name);
}

/* What a platform's own variables mean; MLAD_* wins over them. */
static const struct {
    const char *variable, *option;
    const char *value; /* NULL: the variable's */
} platform[] = {
    {"SAGEMAKER_BIND_TO_PORT", "port", NULL},
    {"SAGEMAKER_BIND_TO_PORT", "host", "0.0.0.0"},
    {"SAGEMAKER_SESSIONS_EXPIRATION", "session-lifetime-s", NULL},
    {"NOTIFY_SOCKET", "notify-socket", NULL},
    {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "otlp-traces-endpoint", NULL},
    {"OTEL_EXPORTER_OTLP_HEADERS", "otlp-headers", NULL},
    {"OTEL_SERVICE_NAME", "otlp-service-name", NULL},
};

/* A group of hosts, as LeaderWorkerSet makes them, is not to run one copy each unnoticed. */
static int check_hosts(struct error *err)
{
    const char *size = getenv("LWS_GROUP_SIZE");

    if (!size || strcmp(size, "1") == 0)
        return 0;
    return error_set(err,
                     "LWS_GROUP_SIZE is %s, and one model over several hosts is not supported: "
                     "give the LeaderWorkerSet a size of 1",
                     size);
}

static int load_platform(struct options *options, struct error *err)
{
    if (check_hosts(err))
        return -1;
    for (size_t i = 0; i < sizeof(platform) / sizeof(platform[0]); i++) {
        const char *value = getenv(platform[i].variable);
        if (value && platform[i].value)
            value = platform[i].value;
        if (value && set(options, find(platform[i].option, strlen(platform[i].option)), value, err))
            return error_prefix(err, "%s", platform[i].variable);
    }
    return 0;
}

static int load_environment(struct options *options, struct error *err)
{
    if (load_platform(options, err))
        return -1;
    for (int i = 0; i < N_OPTIONS; i++) {
        const char *value = from_environment(&table[i]);
        if (value && set(options, &table[i], value, err))
            return error_prefix(err, "environment");
    }
    return 0;
}

/* Cuts white space at both ends, in place. */
static char *trim(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    char *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1]))
        end--;
    *end = '\0';
    return text;
}

static int load_line(struct options *options, char *line, struct error *err)
{
    char *equals = strchr(line, '=');

    line = trim(line);
    if (*line == '\0' || *line == '#')
        return 0;
    if (!equals)
        return error_set(err, "expected `flag = value`, got \"%s\"", line);
    *equals = '\0';
    char *name = trim(line);
    const struct option *opt = find(name, strlen(name));
    if (!opt)
        return error_set(err, "unknown flag \"%s\"", name);
    return set(options, opt, trim(equals + 1), err);
}

static int load_file(struct options *options, const char *path, struct error *err)
{
    struct buffer text;
    int line_number = 0, rc = 0;

    buffer_init(&text, CONFIG_MAX);
    if (file_read(path, &text, err))
        return -1;
    for (char *line = text.data, *next; line && rc == 0; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        line_number++;
        rc = load_line(options, line, err);
    }
    buffer_free(&text);
    return rc ? error_prefix(err, "%s, line %d", path, line_number) : 0;
}

/* One word of the command line, perhaps with the next one as its value; `*used` says how many. */
static int load_argument(struct options *options, int n_args, char *const *args, int *used,
                         struct error *err)
{
    const char *word = strcmp(args[0], "-h") == 0 ? "--help" : args[0];
    const char *equals = strchr(word, '=');

    if (strncmp(word, "--", 2) != 0)
        return error_set(err, "unexpected argument \"%s\" (flags begin with --)", word);
    size_t len = equals ? (size_t)(equals - word - 2) : strlen(word) - 2;
    const struct option *opt = find(word + 2, len);
    *used = 1;
    if (!opt && !equals && strncmp(word, "--no-", 5) == 0) {
        opt = find(word + 5, len - 3);
        if (opt && opt->type == OPT_BOOL)
            return set(options, opt, "false", err);
    }
    if (!opt)
        return error_set(err, "unknown flag %.*s (see --help)", (int)len + 2, word);
    if (opt->type == OPT_SECRET)
        return error_set(err,
                         "--%s is a secret, and command lines are public: set it in the "
                         "environment or a file",
                         opt->name);
    if (equals)
        return set(options, opt, equals + 1, err);
    if (opt->type == OPT_BOOL)
        return set(options, opt, "true", err);
    if (n_args < 2)
        return error_set(err, "--%s needs a value", opt->name);
    *used = 2;
    return set(options, opt, args[1], err);
}

static int load_arguments(struct options *options, int n_args, char *const *args, struct error *err)
{
    for (int i = 0, used; i < n_args; i += used)
        if (load_argument(options, n_args - i, args + i, &used, err))
            return -1;
    return 0;
}

/* Defaults, the file of the lowest rank, what the environment and the command line say. */
static int load_all(struct options *options, const char *defaults, int n_args, char *const *args,
                    struct error *err)
{
    *options = (struct options){0};
    for (int i = 0; i < N_OPTIONS; i++)
        if (set(options, &table[i], table[i].value, err))
            PANIC("default of --%s: %s", table[i].name, err->message);

    if (defaults && load_file(options, defaults, err))
        return -1;
    /* The file's name may come from the environment or the command line, so both are read first to
     * find it, and again to override what the file says. */
    if (load_environment(options, err) || load_arguments(options, n_args, args, err))
        return -1;
    if (!*options->config)
        return 0;
    char *path = mem_strdup(options->config);
    int rc = load_file(options, path, err);
    free(path);
    return rc || load_environment(options, err) || load_arguments(options, n_args, args, err) ? -1
                                                                                              : 0;
}

int options_load_over(struct options *options, const char *defaults, int n_args, char *const *args,
                      struct error *err)
{
    if (load_all(options, defaults, n_args, args, err) == 0)
        return 0;
    options_free(options);
    return -1;
}

int options_load(struct options *options, int n_args, char *const *args, struct error *err)
{
    return options_load_over(options, NULL, n_args, args, err);
}

void options_free(struct options *options)
{
    for (int i = 0; i < N_OPTIONS; i++)
        if (table[i].type != OPT_INT && table[i].type != OPT_NUMBER && table[i].type != OPT_BOOL)
            free(*string_field(options, &table[i]));
    *options = (struct options){0};
}

/* Writes words, on lines of at most HELP_WIDTH columns. */
static void print_wrapped(FILE *out, const char *text)
{
    int column = 0;

    while (*text) {
        int len = (int)strcspn(text, " ");
        if (column && column + 1 + len > HELP_WIDTH)
            column = 0, fputc('\n', out);
        column += fprintf(out, column ? " %.*s" : "      %.*s", len, text);
        text += len + strspn(text + len, " ");
    }
    fputc('\n', out);
}

void options_print_help(FILE *out)
{
    char text[1024];

    for (int i = 0; i < N_OPTIONS; i++) {
        const struct option *opt = &table[i];
        bool on = opt->type == OPT_BOOL && strcmp(opt->value, "true") == 0;
        for (size_t g = 0; g < sizeof(groups) / sizeof(groups[0]); g++)
            if (strcmp(groups[g].first, opt->name) == 0)
                fprintf(out, "%s%s\n\n", i ? "\n" : "", groups[g].title);
        fprintf(out, "  --%s%s%s\n", opt->name, *opt->metavar ? " " : "", opt->metavar);
        if (on)
            snprintf(text, sizeof(text), "%s [on; --no-%s]", opt->help, opt->name);
        else if (*opt->value && opt->type != OPT_BOOL)
            snprintf(text, sizeof(text), "%s [%s]", opt->help, opt->value);
        else
            snprintf(text, sizeof(text), "%s", opt->help);
        print_wrapped(out, text);
    }
}
