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

/* Records never stream: read_record refuses it. */
static const struct answer_ops record_ops = {.add_header = add_header, .respond = respond};

/* ---- reading ------------------------------------------------------------------------------ */

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

static void read_record(struct api_draft *draft, const struct api_service *service,
                        const char *text, size_t len)
{
    api_draft_read(draft, service, text, len, api_by_fields);
    if (!draft->ok || !draft->params.stream)
        return;
    api_draft_free(draft);
    draft->ok = false;
    api_fault_set(&draft->fault, 400, "stream", "A record can't be streamed.");
}

int records_read(const struct api_service *service, const char *text, size_t len,
                 struct api_draft **drafts, int *n, struct api_fault *fault)
{
    const char *at = text, *end = text + len, *line;
    int count = 0, most = engine_slots(service->engine);
    size_t line_len;

    while (next_line(&at, end, &line_len))
        count++;
    if (count == 0)
        return api_fault_set(fault, 400, NULL, "The body has no records.");
    if (count > most)
        return api_fault_set(fault, 400, NULL, "The body has %d records; the server takes %d.",
                             count, most);
    *drafts = mem_zalloc((size_t)count, sizeof(**drafts));
    *n = count;
    at = text;
    for (int i = 0; (line = next_line(&at, end, &line_len)); i++)
        read_record(&(*drafts)[i], service, line, line_len);
    return 0;
}

/* ---- start and end ------------------------------------------------------------------------ */

static void start_record(struct record *record, const struct api_service *service,
                         struct api_draft *draft)
{
    struct answer answer = {
        .ops = &record_ops, .to = record, .arrival_us = record->records->answer.arrival_us};
    struct api_fault fault;

    record->records->n_open++;
    record->generation = api_draft_start(draft, service, answer, &fault);
    if (!record->generation)
        api_fault_respond(&fault, &answer);
}

struct records *records_start(const struct api_service *service, struct api_draft *drafts, int n,
                              struct answer answer, struct api_fault *fault)
{
    int left = engine_slots_free(service->engine);

    if (n > left) {
        api_fault_set(fault, 429, NULL, "The body has %d records; the server can take %d now.", n,
                      left);
        fault->retry_after_s = 1;
        return NULL;
    }
    struct records *records = mem_zalloc(1, sizeof(*records));
    records->answer = answer;
    records->list = mem_zalloc((size_t)n, sizeof(*records->list));
    records->n = n;
    records->starting = true;
    for (int i = 0; i < n; i++) {
        records->list[i].records = records;
        buffer_init(&records->list[i].line, LINE_MAX_BYTES);
        start_record(&records->list[i], service, &drafts[i]);
        drafts[i].ok = false; /* used up */
    }
    records->starting = false;
    finish_if_done(records);
    return records;
}

void records_drafts_free(struct api_draft *drafts, int n)
{
    for (int i = 0; i < n; i++)
        api_draft_free(&drafts[i]);
    free(drafts);
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
