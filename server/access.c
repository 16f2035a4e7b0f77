#include "server/access.h"

#include "base/buffer.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/memory.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MAX_USERS = 4096, MAX_KEY = 512, MAX_NAME = 64, FILE_MAX = 1 << 22, MINUTE_US = 60000000 };

struct user {
    char key[MAX_KEY]; /* zero-padded; empty: the anonymous user */
    char name[MAX_NAME];
    uint64_t id; /* never used again, so that a ticket of a removed user hits nobody */
    int64_t under_way;
    double allowance; /* requests that may come now: a bucket that a minute fills */
    int64_t refilled_us;
};

struct access {
    const struct options *options;
    struct user *users;
    int n_users;
    bool open; /* no keys: everyone is the anonymous user */
    uint64_t next_id;
};

/* A list of users while it is read. */
struct user_list {
    struct user *users;
    int n;
};

static int add_user(struct user_list *list, const char *key, size_t key_len, const char *name,
                    struct error *err)
{
    if (key_len >= MAX_KEY)
        return error_set(err, "an API key has more than %d characters", MAX_KEY - 1);
    for (size_t i = 0; i < key_len; i++)
        if (key[i] <= ' ' || key[i] > '~')
            return error_set(err, "an API key holds a character that no header can carry");
    if (list->n == MAX_USERS)
        return error_set(err, "more than %d API keys", MAX_USERS);
    struct user *user = &list->users[list->n++];
    *user = (struct user){0};
    memcpy(user->key, key, key_len);
    if (*name)
        snprintf(user->name, sizeof(user->name), "%s", name);
    else
        snprintf(user->name, sizeof(user->name), "key %d", list->n);
    return 0;
}

/* MLAD_API_KEY: keys separated by commas. */
static int add_from_option(struct user_list *list, const char *keys, struct error *err)
{
    while (*keys) {
        size_t len = strcspn(keys, ",");
        if (len > 0 && add_user(list, keys, len, "", err))
            return error_prefix(err, "MLAD_API_KEY");
        keys += len + (keys[len] == ',');
    }
    return 0;
}

/* A line "KEY [NAME]"; empty ones and those that begin with # are skipped. */
static int add_line(struct user_list *list, char *line, struct error *err)
{
    char *end = line + strlen(line);

    while (end > line && isspace((unsigned char)end[-1]))
        *--end = '\0';
    line += strspn(line, " \t");
    if (!*line || *line == '#')
        return 0;
    size_t key_len = strcspn(line, " \t");
    const char *name = line + key_len;
    return add_user(list, line, key_len, name + strspn(name, " \t"), err);
}

static int add_from_file(struct user_list *list, const char *path, struct error *err)
{
    struct buffer text;
    int number = 0, rc = 0;

    if (!*path)
        return 0;
    buffer_init(&text, FILE_MAX);
    if (file_read(path, &text, err))
        return -1;
    for (char *line = text.data, *next; line && rc == 0; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        number++;
        rc = add_line(list, line, err);
    }
    explicit_bzero(text.data, text.len);
    buffer_free(&text);
    return rc ? error_prefix(err, "%s, line %d", path, number) : 0;
}

/* Whether the keys are equal, in a time that does not tell where they differ. */
static bool same_key(const char a[MAX_KEY], const char b[MAX_KEY])
{
    unsigned char different = 0;

    for (int i = 0; i < MAX_KEY; i++)
        different |= (unsigned char)(a[i] ^ b[i]);
    return different == 0;
}

static struct user *find_key(const struct access *access, const char key[MAX_KEY])
{
    struct user *found = NULL;

    for (int i = 0; i < access->n_users; i++)
        if (same_key(access->users[i].key, key))
            found = &access->users[i];
    return found;
}

/* Counts of a user that was there before, or those of a new one. */
static void start_counts(struct access *access, struct user *user)
{
    const struct user *before = find_key(access, user->key);

    user->id = before ? before->id : ++access->next_id;
    user->under_way = before ? before->under_way : 0;
    user->allowance = before ? before->allowance : (double)access->options->max_requests_per_minute;
    user->refilled_us = before ? before->refilled_us : clock_us();
}

static void forget(struct user *users, int n)
{
    if (users)
        explicit_bzero(users, (size_t)n * sizeof(*users));
    free(users);
}

int access_reload(struct access *access, struct error *err)
{
    struct user_list list = {.users = mem_zalloc(MAX_USERS, sizeof(struct user))};

    if (add_from_option(&list, access->options->api_key, err) ||
        add_from_file(&list, access->options->api_key_file, err)) {
        forget(list.users, list.n);
        return -1;
    }
    bool open = !*access->options->api_key && !*access->options->api_key_file;
    if (open)
        add_user(&list, "", 0, "-", err);
    for (int i = 0; i < list.n; i++)
        start_counts(access, &list.users[i]);
    forget(access->users, access->n_users);
    access->users = list.users;
    access->n_users = list.n;
    access->open = open;
    return 0;
}

struct access *access_new(const struct options *options, struct error *err)
{
    struct access *access = mem_zalloc(1, sizeof(*access));

    access->options = options;
    if (access_reload(access, err)) {
        access_free(access);
        return NULL;
    }
    return access;
}

void access_free(struct access *access)
{
    forget(access->users, access->n_users);
    free(access);
}

/* The key that the request carries, zero-padded into `key`; false when it has none. */
static bool sent_key(const struct access *access, const struct http_exchange *ex, char key[MAX_KEY])
{
    const char *header = access->options->api_key_header;
    const char *value = *header ? http_header(ex, header) : NULL;

    if (!value) {
        value = http_header(ex, "Authorization");
        if (!value || strncasecmp(value, "Bearer ", 7) != 0)
            return false;
        value += 7;
    }
    value += strspn(value, " ");
    memset(key, 0, MAX_KEY);
    if (!*value || strlen(value) >= MAX_KEY)
        return false;
    memcpy(key, value, strlen(value));
    return true;
}

static int identify(struct access *access, const struct http_exchange *ex, struct user **user,
                    struct api_fault *fault)
{
    char key[MAX_KEY];

    *user = &access->users[0];
    if (access->open)
        return 0;
    if (!sent_key(access, ex, key))
        return api_fault_set(fault, 401, NULL,
                             "No API key was sent. Send the header "
                             "'Authorization: Bearer KEY'.");
    *user = find_key(access, key);
    explicit_bzero(key, sizeof(key));
    if (!*user)
        return api_fault_set(fault, 401, NULL, "Incorrect API key provided.");
    return 0;
}

/* Fills the user's bucket for the time that passed. */
static void refill(struct user *user, int64_t per_minute)
{
    int64_t now = clock_us();

    user->allowance += (double)(now - user->refilled_us) * (double)per_minute / MINUTE_US;
    if (user->allowance > (double)per_minute)
        user->allowance = (double)per_minute;
    user->refilled_us = now;
}

static void add_rate_headers(struct http_exchange *ex, const struct user *user, int64_t per_minute)
{
    char text[32];

    snprintf(text, sizeof(text), "%lld", (long long)per_minute);
    http_add_header(ex, "x-ratelimit-limit-requests", text);
    snprintf(text, sizeof(text), "%lld", (long long)user->allowance);
    http_add_header(ex, "x-ratelimit-remaining-requests", text);
    snprintf(text, sizeof(text), "%.0fs",
             ((double)per_minute - user->allowance) * 60 / (double)per_minute);
    http_add_header(ex, "x-ratelimit-reset-requests", text);
}

static int check_rate(struct user *user, struct http_exchange *ex, int64_t per_minute,
                      struct api_fault *fault)
{
    if (per_minute == 0)
        return 0;
    refill(user, per_minute);
    bool allowed = user->allowance >= 1;
    if (allowed)
        user->allowance -= 1;
    add_rate_headers(ex, user, per_minute);
    if (allowed)
        return 0;
    api_fault_set(fault, 429, NULL, "This key may send %lld requests a minute.",
                  (long long)per_minute);
    fault->code = "rate_limit_exceeded";
    fault->retry_after_s = 1 + (int)((1 - user->allowance) * 60 / (double)per_minute);
    if (fault->retry_after_s > 30)
        fault->retry_after_s = 30;
    return -1;
}

int access_enter(struct access *access, struct http_exchange *ex, access_ticket *ticket,
                 struct api_fault *fault)
{
    int64_t most = access->options->max_concurrent_per_key;
    struct user *user;

    if (identify(access, ex, &user, fault))
        return -1;
    if (most && user->under_way >= most) {
        api_fault_set(fault, 429, NULL, "This key may have %lld requests at once.",
                      (long long)most);
        fault->code = "concurrency_limit_exceeded";
        fault->retry_after_s = 1;
        return -1;
    }
    if (check_rate(user, ex, access->options->max_requests_per_minute, fault))
        return -1;
    user->under_way++;
    *ticket = user->id;
    return 0;
}

static struct user *user_of(const struct access *access, access_ticket ticket)
{
    for (int i = 0; i < access->n_users; i++)
        if (access->users[i].id == ticket)
            return &access->users[i];
    return NULL; /* its key was taken out meanwhile */
}

void access_leave(struct access *access, access_ticket ticket)
{
    struct user *user = user_of(access, ticket);

    if (user)
        user->under_way--;
}

const char *access_name(const struct access *access, access_ticket ticket)
{
    const struct user *user = user_of(access, ticket);

    return user ? user->name : "-";
}
