/* libcurl is loaded when traces are asked for: it and what it needs would double the time and the
 * libraries that every other start takes. */
#include "server/otlp.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/queue.h"

#include <ctype.h>
#include <curl/curl.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum {
    QUEUE_SPANS = 4096,
    BATCH_SPANS = 512,
    BATCH_DELAY_US = 500 * 1000, /* a span waits so long for others */
    BODY_MAX = 16 * 1024 * 1024, /* of a request */
    CONNECT_TIMEOUT_MS = 3000,
    REQUEST_TIMEOUT_MS = 10000,
    TRIES = 4,                      /* of a request */
    FIRST_RETRY_US = 500 * 1000,    /* doubles */
    PAUSE_US = 20 * 1000,           /* how often a wait looks whether it is over */
    COMPLAINT_US = 60 * 1000 * 1000 /* between log lines about a collector */
};

/* The functions of libcurl that are used. */
static struct {
    typeof(curl_easy_init) *easy_init;
    typeof(curl_easy_setopt) *easy_setopt;
    typeof(curl_easy_perform) *easy_perform;
    typeof(curl_easy_getinfo) *easy_getinfo;
    typeof(curl_easy_cleanup) *easy_cleanup;
    typeof(curl_easy_strerror) *easy_strerror;
    typeof(curl_slist_append) *slist_append;
    typeof(curl_slist_free_all) *slist_free_all;
} lib;

struct otlp {
    const char *endpoint;
    struct curl_slist *headers;
    struct buffer body;
    size_t head_len; /* of the body: what comes before the spans */
    CURL *curl;
    struct queue *queue; /* of char *, each a span */
    pthread_t thread;
    int64_t complained_us;
    atomic_int_least64_t stop_at_us; /* 0: not yet */
    atomic_uint_least64_t sent, dropped;
};

/* ---- settings ----------------------------------------------------------------------------- */

static int load_library(struct error *err)
{
    static const char *const names[] = {"libcurl-gnutls.so.4", "libcurl.so.4"};
    const struct {
        const char *name;
        void *to;
    } functions[] = {
        {"curl_easy_init", &lib.easy_init},       {"curl_easy_setopt", &lib.easy_setopt},
        {"curl_easy_perform", &lib.easy_perform}, {"curl_easy_getinfo", &lib.easy_getinfo},
        {"curl_easy_cleanup", &lib.easy_cleanup}, {"curl_easy_strerror", &lib.easy_strerror},
        {"curl_slist_append", &lib.slist_append}, {"curl_slist_free_all", &lib.slist_free_all},
    };
    void *library = NULL;

    for (size_t i = 0; !library && i < sizeof(names) / sizeof(names[0]); i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return error_set(err, "--otlp-traces-endpoint needs libcurl, which is not installed");
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        void *function = dlsym(library, functions[i].name);
        if (!function)
            return error_set(err, "the libcurl that is installed has no %s", functions[i].name);
        memcpy(functions[i].to, &function, sizeof(function));
    }
    return 0;
}

/* Decodes %XX in place. */
static void percent_decode(char *text)
{
    char *out = text;

    for (; *text; text++) {
        if (text[0] == '%' && isxdigit((unsigned char)text[1]) &&
            isxdigit((unsigned char)text[2])) {
            char digits[3] = {text[1], text[2], '\0'};
            *out++ = (char)strtol(digits, NULL, 16);
            text += 2;
        } else {
            *out++ = *text;
        }
    }
    *out = '\0';
}

static int add_header(struct otlp *otlp, char *pair, struct error *err)
{
    char *equals = strchr(pair, '='), *value = equals ? equals + 1 : NULL;
    struct buffer line;

    if (equals)
        *equals = '\0';
    pair += strspn(pair, " \t");
    pair[strcspn(pair, " \t")] = '\0';
    if (!value || !*pair)
        return error_set(err, "--otlp-headers must be NAME=VALUE,NAME=VALUE");
    value += strspn(value, " \t");
    percent_decode(value);
    for (const char *c = value; *c; c++)
        if ((unsigned char)*c < ' ')
            return error_set(err, "--otlp-headers: the value of %s holds a control character",
                             pair);
    buffer_init(&line, 1 << 16);
    buffer_printf(&line, "%s: %s", pair, value);
    otlp->headers = lib.slist_append(otlp->headers, line.data);
    buffer_free(&line);
    return 0;
}

/* NAME=VALUE,NAME=VALUE; values may hold %XX, as OTEL_EXPORTER_OTLP_HEADERS has it. */
static int add_headers(struct otlp *otlp, const char *list, struct error *err)
{
    char *copy = mem_strdup(list);
    int rc = 0;

    otlp->headers = lib.slist_append(NULL, "Content-Type: application/json");
    otlp->headers = lib.slist_append(otlp->headers, "Expect:");
    for (char *at = copy, *next; at && *at && rc == 0; at = next) {
        next = strchr(at, ',');
        if (next)
            *next++ = '\0';
        rc = add_header(otlp, at, err);
    }
    explicit_bzero(copy, strlen(copy));
    free(copy);
    return rc;
}

static void write_head(struct otlp *otlp, const char *service, const char *model)
{
    struct buffer *out = &otlp->body;
    char host[256] = "";

    gethostname(host, sizeof(host) - 1);
    buffer_append_str(out, "{\"resourceSpans\":[{\"resource\":{\"attributes\":[");
    const char *const attributes[][2] = {{"service.name", service},
                                         {"service.version", MLAD_VERSION},
                                         {"host.name", host},
                                         {"mlad.model", model}};
    for (size_t i = 0; i < sizeof(attributes) / sizeof(attributes[0]); i++) {
        buffer_printf(out, "%s{\"key\":\"%s\",\"value\":{\"stringValue\":", i ? "," : "",
                      attributes[i][0]);
        json_write_string(out, attributes[i][1], -1);
        buffer_append_str(out, "}}");
    }
    buffer_append_str(out,
                      "]},\"scopeSpans\":[{\"scope\":{\"name\":\"mlad\",\"version\":\"" MLAD_VERSION
                      "\"},\"spans\":[");
    otlp->head_len = out->len;
}

/* ---- the thread --------------------------------------------------------------------------- */

static bool is_over(const struct otlp *otlp)
{
    int64_t stop_at_us = atomic_load(&otlp->stop_at_us);

    return stop_at_us && clock_us() >= stop_at_us;
}

/* Waits, unless it is told to stop: then there is no time to lose. */
static void pause_for(const struct otlp *otlp, int64_t us)
{
    int64_t until_us = clock_us() + us;

    while (!atomic_load(&otlp->stop_at_us) && clock_us() < until_us)
        usleep(PAUSE_US);
}

static int on_progress(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)a, (void)b, (void)c, (void)d;
    return is_over(arg);
}

static size_t on_answer(char *data, size_t size, size_t count, void *arg)
{
    (void)data, (void)arg;
    return size * count; /* of no interest */
}

static void complain(struct otlp *otlp, int spans, CURLcode rc, long status)
{
    int64_t now = clock_us();

    if (otlp->complained_us && now - otlp->complained_us < COMPLAINT_US)
        return;
    otlp->complained_us = now;
    if (rc == CURLE_OK)
        log_warning("the trace collector answers %ld: %d spans are dropped", status, spans);
    else
        log_warning("can't reach the trace collector (%s): %d spans are dropped",
                    lib.easy_strerror(rc), spans);
}

/* Posts the body until the collector takes it, or it is no use to try again. */
static void deliver(struct otlp *otlp, int spans)
{
    long status = 0;
    CURLcode rc = CURLE_OPERATION_TIMEDOUT;

    lib.easy_setopt(otlp->curl, CURLOPT_POSTFIELDS, otlp->body.data);
    lib.easy_setopt(otlp->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)otlp->body.len);
    for (int i = 0; i < TRIES && !is_over(otlp); i++) {
        status = 0;
        if (i)
            pause_for(otlp, FIRST_RETRY_US << (i - 1));
        rc = lib.easy_perform(otlp->curl);
        lib.easy_getinfo(otlp->curl, CURLINFO_RESPONSE_CODE, &status);
        if (rc == CURLE_OK && status / 100 == 2) {
            atomic_fetch_add(&otlp->sent, (uint64_t)spans);
            return;
        }
        if (rc == CURLE_OK && status != 429 && status != 502 && status != 503 && status != 504)
            break;
    }
    atomic_fetch_add(&otlp->dropped, (uint64_t)spans);
    complain(otlp, spans, rc, status);
}

/* Moves queued spans into the body; returns how many there are now. */
static int gather(struct otlp *otlp, int spans)
{
    char *span;

    while (spans < BATCH_SPANS && otlp->body.len < BODY_MAX / 2 &&
           queue_pop(otlp->queue, &span, 1)) {
        buffer_append_str(&otlp->body, spans ? "," : "");
        buffer_append_str(&otlp->body, span);
        free(span);
        spans++;
    }
    return spans;
}

static void *otlp_main(void *arg)
{
    struct otlp *otlp = arg;

    while (!atomic_load(&otlp->stop_at_us) || queue_length(otlp->queue) > 0) {
        queue_wait(otlp->queue, -1);
        if (queue_length(otlp->queue) < BATCH_SPANS)
            pause_for(otlp, BATCH_DELAY_US);
        otlp->body.len = otlp->head_len;
        int spans = gather(otlp, 0);
        if (spans == 0)
            continue;
        buffer_append_str(&otlp->body, "]}]}]}");
        deliver(otlp, spans);
    }
    return NULL;
}

/* ---- start and stop ----------------------------------------------------------------------- */

static void free_all(struct otlp *otlp)
{
    if (otlp->curl)
        lib.easy_cleanup(otlp->curl);
    if (otlp->headers)
        lib.slist_free_all(otlp->headers);
    buffer_free(&otlp->body);
    queue_free(otlp->queue);
    free(otlp);
}

static int set_up(struct otlp *otlp, const struct options *options, struct error *err)
{
    if (strncasecmp(otlp->endpoint, "http://", 7) != 0 &&
        strncasecmp(otlp->endpoint, "https://", 8) != 0)
        return error_set(err, "--otlp-traces-endpoint must begin with http:// or https://, got %s",
                         otlp->endpoint);
    if (load_library(err) || add_headers(otlp, options->otlp_headers, err))
        return -1;
    otlp->curl = lib.easy_init();
    if (!otlp->curl)
        return error_set(err, "libcurl can't be used");
    lib.easy_setopt(otlp->curl, CURLOPT_URL, otlp->endpoint);
    lib.easy_setopt(otlp->curl, CURLOPT_HTTPHEADER, otlp->headers);
    lib.easy_setopt(otlp->curl, CURLOPT_USERAGENT, "mlad/" MLAD_VERSION);
    lib.easy_setopt(otlp->curl, CURLOPT_NOSIGNAL, 1L);
    lib.easy_setopt(otlp->curl, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_TIMEOUT_MS);
    lib.easy_setopt(otlp->curl, CURLOPT_TIMEOUT_MS, (long)REQUEST_TIMEOUT_MS);
    lib.easy_setopt(otlp->curl, CURLOPT_WRITEFUNCTION, on_answer);
    lib.easy_setopt(otlp->curl, CURLOPT_NOPROGRESS, 0L);
    lib.easy_setopt(otlp->curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    lib.easy_setopt(otlp->curl, CURLOPT_XFERINFODATA, otlp);
    return 0;
}

struct otlp *otlp_new(const struct options *options, const char *model_name, struct error *err)
{
    struct otlp *otlp = mem_zalloc(1, sizeof(*otlp));

    otlp->endpoint = options->otlp_traces_endpoint;
    otlp->queue = queue_new(QUEUE_SPANS, sizeof(char *));
    buffer_init(&otlp->body, BODY_MAX);
    if (set_up(otlp, options, err)) {
        free_all(otlp);
        return NULL;
    }
    write_head(otlp, options->otlp_service_name, model_name);
    if (pthread_create(&otlp->thread, NULL, otlp_main, otlp))
        PANIC("can't start the thread that sends traces");
    return otlp;
}

void otlp_free(struct otlp *otlp)
{
    char *span;

    if (!otlp)
        return;
    atomic_store(&otlp->stop_at_us, clock_us() + OTLP_STOP_MS * 1000);
    queue_close(otlp->queue);
    pthread_join(otlp->thread, NULL);
    while (queue_pop(otlp->queue, &span, 1))
        free(span);
    free_all(otlp);
}

void otlp_submit(struct otlp *otlp, const struct buffer *span)
{
    char *copy = mem_strdup(span->data);

    if (span->overflowed || !queue_try_push(otlp->queue, &copy, NULL)) {
        free(copy);
        atomic_fetch_add(&otlp->dropped, 1);
    }
}

uint64_t otlp_sent(const struct otlp *otlp)
{
    return atomic_load(&otlp->sent);
}

uint64_t otlp_dropped(const struct otlp *otlp)
{
    return atomic_load(&otlp->dropped);
}
