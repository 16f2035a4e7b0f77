/* Requests that need the model: reading their bodies, on another thread where that takes long, and
 * starting what they ask for. Loop thread only. */
#pragma once

#include "server/api.h"
#include "server/trace.h"

enum { REQUEST_ID_MAX = 128 };

struct api_task;

/* What an exchange carries (http_context). */
struct visit {
    struct api_task *task;         /* its body is being read; NULL: no more, or not at all */
    struct generation *generation; /* NULL: none */
    struct records *records;       /* NULL: none */
    access_ticket ticket;
    bool entered; /* the ticket is valid */
    bool is_use;  /* of a path for users, not for monitors */
    struct trace_context trace;
    char request_id[REQUEST_ID_MAX + 1];
};

/* Answers with a fault. */
void inference_refuse(struct http_exchange *ex, const struct api_fault *fault);

/* The body is one request to generate, or JSON lines of such. */
void inference_generate(struct api *api, struct http_exchange *ex, api_kind_of kind_of);
void inference_records(struct api *api, struct http_exchange *ex);

/* The answer follows from the body alone; `make` runs on any thread. */
typedef int (*inference_make)(const struct api_service *service, const struct json *body,
                              struct buffer *out, struct api_fault *fault);
void inference_answer(struct api *api, struct http_exchange *ex, inference_make make);

/* The exchange is over: what runs for it is cancelled. */
void inference_closed(struct visit *visit);
