/* Stateful sessions as SageMaker has them. A request with a session's id comes to the instance that
 * made it, so that a conversation finds its pages in this prefix cache; nothing else is kept of a
 * session than its id and the time it ends. Loop thread only. */
#pragma once

#include "base/json.h"
#include "server/api_error.h"
#include "server/http.h"

struct sessions;

/* At most `max` at once, each for `lifetime_s`. */
struct sessions *sessions_new(int max, int64_t lifetime_s);
void sessions_free(struct sessions *sessions);

/* Whether a body is {"requestType": …}, a request about a session. */
bool sessions_concern(const char *text, size_t len);

/* Answers such a request: "NEW_SESSION" or "CLOSE". -1 and a fault when it can't be. */
int sessions_answer(struct sessions *sessions, struct http_exchange *ex, struct api_fault *fault);

/* A request that names a session must name one that is open. */
int sessions_check(const struct sessions *sessions, const struct http_exchange *ex,
                   struct api_fault *fault);

int sessions_open(const struct sessions *sessions);
