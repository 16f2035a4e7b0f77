#include "server/api.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/memory.h"
#include "server/api_error.h"
#include "server/api_inference.h"
#include "server/api_text.h"
#include "server/page.h"
#include "server/request_log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { PAGE_MAX = 1 << 20 };

struct route {
    const char *path;
    const char *methods; /* as the Allow header shows them */
    void (*handle)(struct api *api, struct http_exchange *ex);
    bool is_public; /* needs no API key: health, metrics */
};

/* ---- inference ---------------------------------------------------------------------------- */

static void chat_completions(struct api *api, struct http_exchange *ex)
{
    inference_generate(api, ex, api_always_chat);
}

static void completions(struct api *api, struct http_exchange *ex)
{
    inference_generate(api, ex, api_always_completion);
}

/* A body of JSON lines. */
static bool is_records(const struct http_exchange *ex)
{
    const char *type = http_header(ex, "Content-Type");

    return type && (strcasestr(type, "jsonlines") || strcasestr(type, "jsonl") ||
                    strcasestr(type, "ndjson"));
}

/* The value of "route=PATH" among attributes that ',' or ';' separate; NULL: none. */
static const char *route_attribute(const char *attributes, size_t *len)
{
    while (attributes && *attributes) {
        attributes += strspn(attributes, ",; ");
        *len = strcspn(attributes, ",; ");
        if (strncmp(attributes, "route=", 6) == 0) {
            *len -= 6;
            return attributes + 6;
        }
        attributes += *len;
    }
    return NULL;
}

/* Whether the request is done with: it was about a session, or it named one that is not open. */
static bool take_session(struct api *api, struct http_exchange *ex)
{
    struct api_fault fault;
    size_t len;
    const char *body = http_body(ex, &len);
    bool concerned = sessions_concern(body, len);
    int rc = concerned ? sessions_answer(api->sessions, ex, &fault)
                       : sessions_check(api->sessions, ex, &fault);

    if (rc && fault.status == 429)
        metrics_count_limit(api->metrics, LIMIT_SESSIONS);
    if (rc)
        inference_refuse(ex, &fault);
    return rc || concerned;
}

/* SageMaker's one path for inference, and for its sessions. Custom attributes come back with the
 * answer; "route=PATH" in them chooses the API, which otherwise the body's fields do. */
static void invocations(struct api *api, struct http_exchange *ex)
{
    static const char chat[] = "/v1/chat/completions", completion[] = "/v1/completions";
    const char *attributes = http_header(ex, "X-Amzn-SageMaker-Custom-Attributes");
    struct api_fault fault;
    size_t len = 0;
    const char *route = route_attribute(attributes, &len);

    if (attributes)
        http_add_header(ex, "X-Amzn-SageMaker-Custom-Attributes", attributes);
    if (take_session(api, ex))
        return;
    if (is_records(ex)) {
        inference_records(api, ex);
    } else if (!route) {
        inference_generate(api, ex, api_by_fields);
    } else if (len == strlen(chat) && strncmp(route, chat, len) == 0) {
        inference_generate(api, ex, api_always_chat);
    } else if (len == strlen(completion) && strncmp(route, completion, len) == 0) {
        inference_generate(api, ex, api_always_completion);
    } else {
        api_fault_set(&fault, 400, NULL, "The attribute 'route' must be %s or %s.", chat,
                      completion);
        inference_refuse(ex, &fault);
    }
}

/* What a batch transform may send. */
static void execution_parameters(struct api *api, struct http_exchange *ex)
{
    char body[128];
    int len = snprintf(body, sizeof(body),
                       "{\"MaxConcurrentTransforms\":%lld,\"BatchStrategy\":\"MULTI_RECORD\","
                       "\"MaxPayloadInMB\":6}",
                       (long long)api->options->max_num_seqs);

    http_respond(ex, 200, "application/json", body, (size_t)len);
}

static void tokenize(struct api *api, struct http_exchange *ex)
{
    inference_answer(api, ex, api_tokenize);
}

static void detokenize(struct api *api, struct http_exchange *ex)
{
    inference_answer(api, ex, api_detokenize);
}

static void render_chat(struct api *api, struct http_exchange *ex)
{
    inference_answer(api, ex, api_render_chat);
}

static void render_completion(struct api *api, struct http_exchange *ex)
{
    inference_answer(api, ex, api_render_completion);
}

/* ---- state -------------------------------------------------------------------------------- */

static void respond_state(struct http_exchange *ex, bool good)
{
    http_respond(ex, good ? 200 : 503, "text/plain", "", 0);
}

/* Liveness: also while loading and draining. */
static void health(struct api *api, struct http_exchange *ex)
{
    respond_state(ex, api->state != SERVICE_FAILED && !api->engine_stuck);
}

/* Readiness; SageMaker's /ping asks the same. */
static void ready(struct api *api, struct http_exchange *ex)
{
    respond_state(ex, api->state == SERVICE_READY);
}

static void write_model(const struct api *api, struct buffer *out)
{
    const struct engine_model *model = engine_model(api->service.engine);

    buffer_append_str(out, "{\"id\":");
    json_write_string(out, api->service.model_name, -1);
    buffer_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"mlad\",\"root\":",
                  (long long)api->started);
    json_write_string(out, api->model_dir, -1);
    if (model)
        buffer_printf(out, ",\"parent\":null,\"max_model_len\":%d}", model->max_model_len);
    else
        buffer_append_str(out, ",\"parent\":null,\"max_model_len\":null}");
}

static void models(struct api *api, struct http_exchange *ex)
{
    struct buffer out;

    buffer_init(&out, PAGE_MAX);
    buffer_append_str(&out, "{\"object\":\"list\",\"data\":[");
    write_model(api, &out);
    buffer_append_str(&out, "]}");
    http_respond(ex, 200, "application/json", out.data, out.len);
    buffer_free(&out);
}

static void model_by_name(struct api *api, struct http_exchange *ex)
{
    const char *name = http_path(ex) + strlen("/v1/models/");
    struct api_fault fault;
    struct buffer out;

    if (strcmp(name, api->service.model_name) != 0) {
        api_fault_set(&fault, 404, "model",
                      "The model '%.200s' does not exist; this server has "
                      "'%s'.",
                      name, api->service.model_name);
        fault.code = "model_not_found";
        inference_refuse(ex, &fault);
        return;
    }
    buffer_init(&out, PAGE_MAX);
    write_model(api, &out);
    http_respond(ex, 200, "application/json", out.data, out.len);
    buffer_free(&out);
}

static void chat_page(struct api *api, struct http_exchange *ex)
{
    size_t len;
    const char *page = page_chat(&len);

    (void)api;
    http_add_header(ex, "Content-Security-Policy",
                    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                    "connect-src 'self'; img-src data:");
    http_respond(ex, 200, "text/html; charset=utf-8", page, len);
}

static void openapi(struct api *api, struct http_exchange *ex)
{
    size_t len;
    const char *page = page_openapi(&len);

    (void)api;
    http_respond(ex, 200, "application/json", page, len);
}

static void version(struct api *api, struct http_exchange *ex)
{
    static const char body[] = "{\"version\":\"" MLAD_VERSION "\"}";

    (void)api;
    http_respond(ex, 200, "application/json", body, sizeof(body) - 1);
}

static void metrics(struct api *api, struct http_exchange *ex)
{
    static const char *const states[] = {[SERVICE_LOADING] = "loading",
                                         [SERVICE_READY] = "ready",
                                         [SERVICE_DRAINING] = "draining",
                                         [SERVICE_FAILED] = "failed"};
    struct metrics_now now = {.state = states[api->state],
                              .sequences = engine_slots(api->service.engine) -
                                           engine_slots_free(api->service.engine),
                              .connections = http_connections(api->http),
                              .exchanges = http_active(api->http) - 1, /* not this one */
                              .buffered_bytes = http_buffered(api->http),
                              .body_bytes = http_body_bytes(api->http),
                              .dropped_clients = http_dropped(api->http),
                              .spans_sent = api->otlp ? otlp_sent(api->otlp) : 0,
                              .spans_dropped = api->otlp ? otlp_dropped(api->otlp) : 0};
    struct buffer page;

    buffer_init(&page, PAGE_MAX);
    metrics_write(api->metrics, &now, &page);
    http_respond(ex, 200, "text/plain; version=0.0.4; charset=utf-8", page.data, page.len);
    buffer_free(&page);
}

/* ---- dispatch ----------------------------------------------------------------------------- */

static const struct route routes[] = {
    {"/v1/chat/completions", "POST", chat_completions, false},
    {"/v1/completions", "POST", completions, false},
    {"/v1/chat/completions/render", "POST", render_chat, false},
    {"/v1/completions/render", "POST", render_completion, false},
    {"/tokenize", "POST", tokenize, false},
    {"/detokenize", "POST", detokenize, false},
    {"/invocations", "POST", invocations, false},
    {"/execution-parameters", "GET, HEAD", execution_parameters, true},
    {"/v1/models", "GET, HEAD", models, false},
    {"/v1/models/", "GET, HEAD", model_by_name, false}, /* and what follows */
    {"/", "GET, HEAD", chat_page, true},
    {"/health", "GET, HEAD", health, true},
    {"/ready", "GET, HEAD", ready, true},
    {"/ping", "GET, HEAD, POST", ready, true},
    {"/version", "GET, HEAD", version, true},
    {"/openapi.json", "GET, HEAD", openapi, true},
    {"/metrics", "GET, HEAD", metrics, true},
};

static const struct route *find_route(const char *path)
{
    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++) {
        size_t len = strlen(routes[i].path);
        bool prefix = len > 1 && routes[i].path[len - 1] == '/';
        if (prefix ? strncmp(path, routes[i].path, len) == 0 && path[len]
                   : strcmp(path, routes[i].path) == 0)
            return &routes[i];
    }
    return NULL;
}

static bool allows(const struct route *route, const char *method)
{
    size_t len = strlen(method);
    const char *at = route->methods;

    while ((at = strstr(at, method)) != NULL) {
        bool starts = at == route->methods || at[-1] == ' ';
        if (starts && (at[len] == ',' || at[len] == '\0'))
            return true;
        at += len;
    }
    return false;
}

/* Every answer names its request: the client's own id when it is a decent one, else a new one. */
static void add_request_id(struct http_exchange *ex, struct visit *visit)
{
    const char *given = http_header(ex, "x-request-id");
    size_t len = given ? strlen(given) : 0;
    bool decent = len > 0 && len <= REQUEST_ID_MAX;

    for (size_t i = 0; decent && i < len; i++)
        decent = given[i] > 0x20 && given[i] < 0x7f;
    if (decent)
        memcpy(visit->request_id, given, len);
    else
        snprintf(visit->request_id, sizeof(visit->request_id), "req-%016llx",
                 (unsigned long long)clock_entropy());
    http_add_header(ex, "x-request-id", visit->request_id);
}

/* Lets pages of the allowed origin call the API. True when that was all the request wanted. */
static bool answer_cors(const struct api *api, struct http_exchange *ex)
{
    const char *allowed = api->options->cors_origin, *origin = http_header(ex, "Origin");
    /* Whatever the page wants to send: SDKs add fields of their own. */
    const char *fields = http_header(ex, "Access-Control-Request-Headers");

    if (!*allowed || !origin || (strcmp(allowed, "*") != 0 && strcmp(allowed, origin) != 0))
        return false;
    http_add_header(ex, "Access-Control-Allow-Origin", allowed);
    http_add_header(ex, "Vary", "Origin");
    if (strcmp(http_method(ex), "OPTIONS") != 0)
        return false;
    http_add_header(ex, "Access-Control-Allow-Methods", "GET, POST");
    http_add_header(ex, "Access-Control-Allow-Headers",
                    fields ? fields : "Authorization, Content-Type, x-request-id");
    http_add_header(ex, "Access-Control-Max-Age", "86400");
    http_respond(ex, 204, "text/plain", "", 0);
    return true;
}

/* The route for the request, once it may be taken; a fault otherwise. */
static const struct route *admit(struct api *api, struct http_exchange *ex, struct visit *visit,
                                 struct api_fault *fault)
{
    const struct route *route = find_route(http_path(ex));

    if (!route) {
        api_fault_set(fault, 404, NULL,
                      "There is no '%.200s' here. See /v1/chat/completions, /v1/completions, "
                      "/v1/models, /health, /ready, /metrics.",
                      http_path(ex));
        return NULL;
    }
    if (!allows(route, http_method(ex))) {
        api_fault_set(fault, 405, NULL, "%s takes %s, not %.20s.", http_path(ex), route->methods,
                      http_method(ex));
        http_add_header(ex, "Allow", route->methods);
        return NULL;
    }
    visit->is_use = !route->is_public;
    if (!route->is_public) {
        if (access_enter(api->access, ex, &visit->ticket, fault)) {
            if (fault->status == 429)
                metrics_count_limit(api->metrics, LIMIT_KEY);
            return NULL;
        }
        visit->entered = true;
    }
    return route;
}

static void on_request(void *arg, struct http_exchange *ex)
{
    struct api *api = arg;
    struct visit *visit = mem_zalloc(1, sizeof(*visit));
    struct api_fault fault;

    http_set_context(ex, visit);
    add_request_id(ex, visit);
    trace_context_begin(&visit->trace, http_header(ex, "traceparent"));
    if (answer_cors(api, ex))
        return;
    const struct route *route = admit(api, ex, visit, &fault);
    if (route)
        route->handle(api, ex);
    else
        inference_refuse(ex, &fault);
}

/* Tells logs and traces how the request went; monitors' visits are no news to the collector. */
static void report(const struct api *api, const struct http_exchange *ex, const struct visit *visit,
                   enum http_end how)
{
    const struct request_record record = {
        .request_id = visit->request_id,
        .user = visit->entered ? access_name(api->access, visit->ticket) : "-",
        .model = api->service.model_name,
        .trace = &visit->trace,
        .generation = visit->generation,
        .how = how,
    };

    if (api->options->access_log)
        request_log_access(ex, &record);
    if (api->otlp && visit->is_use)
        request_log_span(api->otlp, ex, &record);
}

static void on_closed(void *arg, struct http_exchange *ex, enum http_end how)
{
    struct api *api = arg;
    struct visit *visit = http_context(ex);

    report(api, ex, visit, how);
    inference_closed(visit);
    if (visit->entered)
        access_leave(api->access, visit->ticket);
    free(visit);
}

/* What http.c refuses by itself, in the API's words. */
static void on_refusal(void *arg, int status, char *body, size_t size)
{
    struct api *api = arg;
    struct api_fault fault;
    struct buffer out;

    switch (status) {
    case 413:
        metrics_count_limit(api->metrics, LIMIT_BODY);
        api_fault_set(&fault, status, NULL, "The body is larger than the limit of %lld MiB.",
                      (long long)api->options->max_body_mib);
        break;
    case 429:
        metrics_count_limit(api->metrics, LIMIT_UPLOADS);
        api_fault_set(&fault, status, NULL,
                      "The server holds as many request bodies as it takes (%lld MiB). Please "
                      "retry.",
                      (long long)api->options->max_uploads_mib);
        fault.code = "uploads_full";
        break;
    case 408:
        metrics_count_limit(api->metrics, LIMIT_READ_TIME);
        api_fault_set(&fault, status, NULL, "The request did not arrive within %lld seconds.",
                      (long long)api->options->read_timeout_s);
        break;
    case 503:
        metrics_count_limit(api->metrics, LIMIT_CONNECTIONS);
        api_fault_set(&fault, status, NULL,
                      "The server has as many connections as it takes (%lld).",
                      (long long)api->options->max_connections);
        break;
    default:
        api_fault_set(&fault, status, NULL, "The request is not valid HTTP/1.1.");
    }
    buffer_init(&out, PAGE_MAX);
    api_fault_write(&fault, &out);
    snprintf(body, size, "%s", out.data);
    buffer_free(&out);
}

struct http_callbacks api_callbacks(struct api *api)
{
    return (struct http_callbacks){
        .arg = api, .request = on_request, .closed = on_closed, .refusal = on_refusal};
}
