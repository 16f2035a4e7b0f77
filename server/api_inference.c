/* A task is a body on its way to something that runs:
 *
 *     begin --small body--> read_body, then finish, at once
 *       '----large body---> read_body on another thread (loop_work) --> finish, on the loop
 *
 * A large prompt takes tens of milliseconds to parse and to tokenize, and a schema to compile; on
 * the loop that would be a pause in everyone's stream. When the client leaves meanwhile the task
 * goes on without an exchange, and what it made is thrown away. */
#include "server/api_inference.h"

#include "base/memory.h"
#include "server/api_records.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    LARGE_BODY = 16 * 1024, /* bytes: about two milliseconds' work */
    ANSWER_MAX = 1 << 29,
};

enum task_kind { TASK_GENERATE, TASK_RECORDS, TASK_ANSWER };

struct api_task {
    struct api *api;
    struct http_exchange *ex; /* NULL: the client left */
    enum task_kind kind;
    api_kind_of kind_of; /* TASK_GENERATE */
    inference_make make; /* TASK_ANSWER */
    struct buffer body;

    /* What reading gives. */
    int rc; /* 0, or -1 and the fault */
    struct api_fault fault;
    struct api_draft draft;   /* TASK_GENERATE */
    struct api_draft *drafts; /* TASK_RECORDS */
    int n_drafts;
    struct buffer out; /* TASK_ANSWER */
};

void inference_refuse(struct http_exchange *ex, const struct api_fault *fault)
{
    struct answer answer = answer_to_http(ex);

    api_fault_respond(fault, &answer);
}

/* ---- what may begin ----------------------------------------------------------------------- */

/* Whether requests for the model can be taken now. */
static int check_serving(const struct api *api, struct api_fault *fault)
{
    static const char *const why[] = {
        [SERVICE_LOADING] = "The model is still loading. Please retry shortly.",
        [SERVICE_DRAINING] = "The server is shutting down. Please retry with another one.",
        [SERVICE_FAILED] = "The model can't be served; see the server's log.",
    };

    if (api->state == SERVICE_READY)
        return 0;
    api_fault_set(fault, 503, NULL, "%s", why[api->state]);
    fault->retry_after_s = 1;
    return -1;
}

/* JSON by its content type; none at all is taken for JSON. */
static int check_content_type(const struct http_exchange *ex, struct api_fault *fault)
{
    const char *type = http_header(ex, "Content-Type");

    if (!type || !*type || strncasecmp(type, "application/json", 16) == 0 ||
        strcasestr(type, "+json"))
        return 0;
    return api_fault_set(fault, 415, NULL,
                         "The body must be JSON: send the header "
                         "'Content-Type: application/json' (got '%.100s').",
                         type);
}

/* Whether reading may take long: for the body's length, or for a grammar or a template, whose
 * length tells little. */
static bool is_heavy(const struct buffer *body)
{
    static const char *const words[] = {"\"response_format\"", "\"structured_outputs\"",
                                        "\"guided_", "\"tool_choice\"", "\"chat_template"};

    if (body->len >= LARGE_BODY)
        return true;
    for (size_t i = 0; body->len && i < sizeof(words) / sizeof(words[0]); i++)
        if (memmem(body->data, body->len, words[i], strlen(words[i])))
            return true;
    return false;
}

/* ---- reading: any thread ------------------------------------------------------------------ */

static int read_answer(struct api_task *task, const char *text, size_t len)
{
    struct error err;
    struct json *body = json_parse(text, len, &err);
    int rc = body ? task->make(&task->api->service, body, &task->out, &task->fault)
                  : api_fault_set(&task->fault, 400, NULL, "The body can't be read as JSON: %s.",
                                  err.message);

    json_free(body);
    return rc;
}

static void read_body(void *arg)
{
    struct api_task *task = arg;
    const struct api_service *service = &task->api->service;
    const char *text = task->body.data ? task->body.data : "";
    size_t len = task->body.len;

    switch (task->kind) {
    case TASK_GENERATE:
        api_draft_read(&task->draft, service, text, len, task->kind_of);
        break;
    case TASK_RECORDS:
        task->rc = records_read(service, text, len, &task->drafts, &task->n_drafts, &task->fault);
        break;
    case TASK_ANSWER:
        task->rc = read_answer(task, text, len);
        break;
    }
}

/* ---- what follows: the loop --------------------------------------------------------------- */

/* Gives the exchange what was read for it. */
static void hand_over(struct api_task *task, struct visit *visit)
{
    const struct api_service *service = &task->api->service;
    struct answer answer = answer_to_http(task->ex);

    if (task->api->state == SERVICE_FAILED) /* meanwhile; one that drains goes on */
        task->rc = check_serving(task->api, &task->fault);
    if (task->rc == 0 && task->kind == TASK_GENERATE) {
        visit->generation = api_draft_start(&task->draft, service, answer, &task->fault);
        task->draft.ok = false; /* used up */
        task->rc = visit->generation ? 0 : -1;
    } else if (task->rc == 0 && task->kind == TASK_RECORDS) {
        visit->records = records_start(service, task->drafts, task->n_drafts, answer, &task->fault);
        task->rc = visit->records ? 0 : -1;
        if (task->rc && task->fault.status == 429)
            metrics_count_limit(task->api->metrics, LIMIT_QUEUE);
    } else if (task->rc == 0) {
        http_respond(task->ex, 200, "application/json", task->out.data, task->out.len);
    }
    if (task->rc)
        api_fault_respond(&task->fault, &answer);
}

static void finish(void *arg)
{
    struct api_task *task = arg;

    http_free_body(task->api->http, &task->body);
    if (task->ex) {
        struct visit *visit = http_context(task->ex);
        visit->task = NULL;
        hand_over(task, visit);
    }
    api_draft_free(&task->draft);
    records_drafts_free(task->drafts, task->n_drafts);
    buffer_free(&task->out);
    free(task);
}

static void begin(struct api *api, struct http_exchange *ex, struct api_task what)
{
    struct visit *visit = http_context(ex);
    struct api_fault fault;

    if (check_serving(api, &fault) ||
        (what.kind != TASK_RECORDS && check_content_type(ex, &fault))) {
        inference_refuse(ex, &fault);
        return;
    }
    struct api_task *task = mem_copy(&what, sizeof(what));
    task->api = api;
    task->ex = ex;
    task->body = http_take_body(ex);
    buffer_init(&task->out, ANSWER_MAX);
    if (is_heavy(&task->body)) {
        visit->task = task;
        loop_work(api->loop, read_body, finish, task);
    } else {
        read_body(task);
        finish(task);
    }
}

void inference_generate(struct api *api, struct http_exchange *ex, api_kind_of kind_of)
{
    begin(api, ex, (struct api_task){.kind = TASK_GENERATE, .kind_of = kind_of});
}

void inference_records(struct api *api, struct http_exchange *ex)
{
    begin(api, ex, (struct api_task){.kind = TASK_RECORDS});
}

void inference_answer(struct api *api, struct http_exchange *ex, inference_make make)
{
    begin(api, ex, (struct api_task){.kind = TASK_ANSWER, .make = make});
}

void inference_closed(struct visit *visit)
{
    if (visit->task)
        visit->task->ex = NULL;
    if (visit->generation)
        generation_closed(visit->generation);
    if (visit->records)
        records_closed(visit->records);
}
