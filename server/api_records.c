#include "server/api_records.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { LINE_MAX_BYTES = 1 << 28, ANSWER_MAX = 1 << 30 };

struct record {
    struct records *records;
    struct generation *generation; /* NULL: refused at once */
    struct buffer line;            /* its answer */
};

struct records {
    struct answer answer;
    struct record *list;
    int n, n_open;
    bool starting; /* records are still being started: the answer waits */
};

/* ---- where a record's answer goes --------------------------------------------------------- */

static void finish_if_done(struct records *records)
{
    struct buffer out;

    if (records->n_open > 0 || records->starting)
        return;
    buffer_init(&out, ANSWER_MAX);
    for (int i = 0; i < records->n; i++) {
        buffer_append(&out, records->list[i].line.data, records->list[i].line.len);
        buffer_append(&out, "\n", 1);
    }
    records->answer.ops->respond(records->answer.to, 200, "application/jsonlines", out.data,
                                 out.len);
    buffer_free(&out);
}

static void add_header(void *to, const char *name, const char *value)
{
    (void)to, (void)name, (void)value; /* lines have no headers */
}

static void respond(void *to, int status, const char *content_type, const void *body, size_t len)
{
    struct record *record = to;

    (void)status, (void)content_type;
    buffer_append(&record->line, body, len);
    record->records->n_open--;
    finish_if_done(record->records);
}

/* Records never stream: start_record refuses it. */
static const struct answer_ops record_ops = {.add_header = add_header, .respond = respond};

/* ---- start and end ------------------------------------------------------------------------ */

static void start_record(struct record *record, const struct api_service *service, const char *text,
                         size_t len)
{
    struct answer answer = {
        .ops = &record_ops, .to = record, .arrival_us = record->records->answer.arrival_us};
    struct api_fault fault;
    struct error err;
    struct json *body = json_parse(text, len, &err);
    const struct json *stream = json_get(body, "stream");

    record->records->n_open++;
    if (!body)
        api_fault_set(&fault, 400, NULL, "The record is not valid JSON: %s.", err.message);
    else if (json_is(stream, JSON_BOOL) && json_bool(stream))
        api_fault_set(&fault, 400, "stream", "A record can't be streamed.");
    else
        record->generation = api_generate(service, body, api_by_fields, answer, &fault);
    if (!record->generation)
        api_fault_respond(&fault, &answer);
    json_free(body);
}

/* The next line that is not empty; NULL at the end. `*at` moves behind it. */
static const char *next_line(const char **at, const char *end, size_t *len)
{
    while (*at < end) {
        const char *line = *at, *newline = memchr(line, '\n', (size_t)(end - line));
        *at = newline ? newline + 1 : end;
        *len = (size_t)((newline ? newline : end) - line);
        if (*len && line[*len - 1] == '\r')
            --*len;
        if (*len)
            return line;
    }
    return NULL;
}

struct records *records_start(const struct api_service *service, const char *text, size_t len,
                              struct answer answer, struct api_fault *fault)
{
    const char *at = text, *end = text + len, *line;
    int n = 0, left = engine_slots_free(service->engine);
    size_t line_len;

    while (next_line(&at, end, &line_len))
        n++;
    if (n == 0) {
        api_fault_set(fault, 400, NULL, "The body has no records.");
        return NULL;
    }
    if (n > left) {
        bool ever = n <= engine_slots(service->engine);
        api_fault_set(fault, ever ? 429 : 400, NULL,
                      "The body has %d records; the server can take %d now.", n, left);
        fault->retry_after_s = ever;
        return NULL;
    }
    struct records *records = mem_zalloc(1, sizeof(*records));
    records->answer = answer;
    records->list = mem_zalloc((size_t)n, sizeof(*records->list));
    records->n = n;
    records->starting = true;
    at = text;
    for (int i = 0; (line = next_line(&at, end, &line_len)); i++) {
        records->list[i].records = records;
        buffer_init(&records->list[i].line, LINE_MAX_BYTES);
        start_record(&records->list[i], service, line, line_len);
    }
    records->starting = false;
    finish_if_done(records);
    return records;
}

void records_closed(struct records *records)
{
    for (int i = 0; i < records->n; i++) {
        if (records->list[i].generation)
            generation_closed(records->list[i].generation);
        buffer_free(&records->list[i].line);
    }
    free(records->list);
    free(records);
}
