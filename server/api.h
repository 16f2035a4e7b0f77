/* The HTTP API: which path does what, from a request to its answer. See api_params.h for the fields
 * of generation requests and generation.h for their life. Loop thread only. */
#pragma once

#include "config/options.h"
#include "server/access.h"
#include "server/api_generate.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/otlp.h"
#include "server/sessions.h"

/* What the daemon can do for clients now. */
enum service_state {
    SERVICE_LOADING, /* 503 to generation requests, /ready and /ping */
    SERVICE_READY,
    SERVICE_DRAINING, /* requests in flight finish; new ones get 503 */
    SERVICE_FAILED,   /* /health is 503 too */
};

struct api {
    const struct options *options;
    const char *model_dir;
    struct api_service service;
    struct metrics *metrics;
    struct access *access;
    struct loop *loop;
    struct http_server *http;
    struct sessions *sessions;
    struct otlp *otlp; /* NULL: no traces are sent */
    enum service_state state;
    bool engine_stuck; /* it has work and makes no steps: /health is 503 */
    int64_t started;   /* unix seconds */
};

/* The callbacks of http_start; their `arg` is the api. */
struct http_callbacks api_callbacks(struct api *api);
