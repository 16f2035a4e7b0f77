/* Who may use the API, and how much: API keys and per-key limits. Loop thread only.
 *
 * Keys come from MLAD_API_KEY and from a file that SIGHUP reads again. They are kept and compared
 * as they are, in constant time, and never logged: log lines show a key's name from the file, or
 * its place in the list. Without any key everyone may use the API, as one anonymous user. */
#pragma once

#include "base/error.h"
#include "config/options.h"
#include "server/api_error.h"
#include "server/http.h"

struct access;

/* Reads the keys. NULL and a message when the file can't be read or holds nonsense. */
struct access *access_new(const struct options *options, struct error *err);
void access_free(struct access *access);

/* Reads the file again. On error the keys stay as they were. Users whose key stays keep their
 * counts; requests in flight go on. */
int access_reload(struct access *access, struct error *err);

/* A user's place in the counts; handed back by access_leave. */
typedef uint64_t access_ticket;

/* Lets a request in: checks its key (401) and its user's limits (429), and adds the x-ratelimit
 * headers. On success the request counts as under way until access_leave. */
int access_enter(struct access *access, struct http_exchange *ex, access_ticket *ticket,
                 struct api_fault *fault);
void access_leave(struct access *access, access_ticket ticket);

/* What to call the user in a log: a name, "key 3", or "-". */
const char *access_name(const struct access *access, access_ticket ticket);
