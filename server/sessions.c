#include "server/sessions.h"

#include "base/clock.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ID_LEN = 36, REQUEST_MAX = 4096 /* bytes of a body about a session */ };

static const char HEADER[] = "X-Amzn-SageMaker-Session-Id";
static const char NEW[] = "NEW_SESSION";

struct session {
    char id[ID_LEN + 1]; /* empty: this place is free */
    int64_t ends_us;
};

struct sessions {
    struct session *list;
    int max;
    int64_t lifetime_s;
};

struct sessions *sessions_new(int max, int64_t lifetime_s)
{
    struct sessions *sessions = mem_zalloc(1, sizeof(*sessions));

    sessions->list = mem_zalloc((size_t)max, sizeof(*sessions->list));
    sessions->max = max;
    sessions->lifetime_s = lifetime_s;
    return sessions;
}

void sessions_free(struct sessions *sessions)
{
    if (!sessions)
        return;
    free(sessions->list);
    free(sessions);
}

static bool is_open(const struct session *session, int64_t now_us)
{
    return *session->id && session->ends_us > now_us;
}

static struct session *find(const struct sessions *sessions, const char *id)
{
    int64_t now = clock_us();

    for (int i = 0; id && *id && i < sessions->max; i++)
        if (is_open(&sessions->list[i], now) && strcmp(sessions->list[i].id, id) == 0)
            return &sessions->list[i];
    return NULL;
}

int sessions_open(const struct sessions *sessions)
{
    int64_t now = clock_us();
    int n = 0;

    for (int i = 0; i < sessions->max; i++)
        n += is_open(&sessions->list[i], now);
    return n;
}

/* Letters and digits with single dashes between, as SageMaker wants it: a random UUID. */
static void make_id(char id[ID_LEN + 1])
{
    unsigned long long high = clock_entropy(), low = clock_entropy();

    snprintf(id, ID_LEN + 1, "%08llx-%04llx-4%03llx-%04llx-%012llx", high >> 32,
             high >> 16 & 0xffff, high & 0xfff, (low >> 48 & 0x3fff) | 0x8000,
             low & 0xffffffffffff);
}

static int open_session(struct sessions *sessions, struct http_exchange *ex,
                        struct api_fault *fault)
{
    int64_t now = clock_us();
    time_t ends = (time_t)(clock_unix_s() + sessions->lifetime_s);
    char header[128], date[32], body[160];
    struct tm parts;
    int at = 0;

    while (at < sessions->max && is_open(&sessions->list[at], now))
        at++;
    if (at == sessions->max) {
        api_fault_set(fault, 429, NULL, "There are %d sessions, which is as many as may be open.",
                      sessions->max);
        fault->code = "too_many_sessions";
        fault->retry_after_s = 30;
        return -1;
    }
    struct session *session = &sessions->list[at];
    make_id(session->id);
    session->ends_us = now + sessions->lifetime_s * 1000000;
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&ends, &parts));
    snprintf(header, sizeof(header), "%s; Expires=%s", session->id, date);
    http_add_header(ex, "X-Amzn-SageMaker-New-Session-Id", header);
    int len = snprintf(body, sizeof(body), "{\"session_id\":\"%s\",\"expires\":\"%s\"}",
                       session->id, date);
    http_respond(ex, 200, "application/json", body, (size_t)len);
    return 0;
}

static int unknown(const char *id, struct api_fault *fault)
{
    api_fault_set(fault, 400, HEADER,
                  "The session '%.100s' is not open: it was closed, has ended "
                  "or was never opened.",
                  id);
    fault->code = "session_not_found";
    return -1;
}

static int close_session(struct sessions *sessions, struct http_exchange *ex,
                         struct api_fault *fault)
{
    const char *id = http_header(ex, HEADER);
    struct session *session = find(sessions, id);
    char body[160];

    if (!id)
        return api_fault_set(fault, 400, HEADER, "To close a session, name it in the header '%s'.",
                             HEADER);
    if (!session)
        return unknown(id, fault);
    http_add_header(ex, "X-Amzn-SageMaker-Closed-Session-Id", session->id);
    int len = snprintf(body, sizeof(body), "{\"session_id\":\"%s\",\"closed\":true}", session->id);
    *session = (struct session){0};
    http_respond(ex, 200, "application/json", body, (size_t)len);
    return 0;
}

bool sessions_concern(const char *text, size_t len)
{
    static const char field[] = "requestType";
    struct error err;

    if (len > REQUEST_MAX || !memmem(text, len, field, sizeof(field) - 1))
        return false;
    struct json *body = json_parse(text, len, &err); /* the word may be a prompt's or a tool's */
    bool concerned = json_get(body, field) != NULL;
    json_free(body);
    return concerned;
}

int sessions_answer(struct sessions *sessions, struct http_exchange *ex, struct api_fault *fault)
{
    struct error err;
    size_t len;
    const char *text = http_body(ex, &len);
    struct json *body = json_parse(text, len, &err);
    const struct json *type = json_get(body, "requestType");
    const char *word = json_is(type, JSON_STRING) ? json_string(type) : "";
    int rc;

    if (!body)
        rc = api_fault_set(fault, 400, NULL, "The body can't be read as JSON: %s.", err.message);
    else if (strcmp(word, NEW) == 0)
        rc = open_session(sessions, ex, fault);
    else if (strcmp(word, "CLOSE") == 0)
        rc = close_session(sessions, ex, fault);
    else
        rc = api_fault_set(fault, 400, "requestType",
                           "'requestType' must be \"NEW_SESSION\" or \"CLOSE\".");
    json_free(body);
    return rc;
}

int sessions_check(const struct sessions *sessions, const struct http_exchange *ex,
                   struct api_fault *fault)
{
    const char *id = http_header(ex, HEADER);

    if (!id || !*id || strcmp(id, NEW) == 0 || find(sessions, id))
        return 0;
    return unknown(id, fault);
}
