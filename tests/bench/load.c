/* A client for many streams at once, light enough not to be what is measured: one thread, epoll,
 * and as much of HTTP as mlad answers with.
 *
 *     load --port 8080 --streams 128 --prompt 1024 --tokens 256
 *
 * Every stream sends a completion request with random prompt tokens, reads its events to the end,
 * and sends the next one on the same connection. Printed are the time to the first event (TTFT),
 * the time between events of a stream (ITL) and tokens a second: over all of the run, and while
 * all streams were generating ("steady": from the last first event to the first last one; there
 * events are counted, so a token without text is not). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 16, LINE_BYTES = 1 << 12, MAX_STREAMS = 1 << 16 };

static struct {
    const char *host, *port, *key;
    long streams, requests, prompt, tokens, vocab, timeout_s;
    bool json;
} opt = {.host = "127.0.0.1",
         .port = "8080",
         .key = "",
         .streams = 1,
         .requests = 1,
         .prompt = 128,
         .tokens = 128,
         .vocab = 1000,
         .timeout_s = 600};

struct stream {
    int fd;
    long sent, done;         /* requests */
    double sent_at, last_at; /* of the request under way; of its latest event, 0: none */
    double first_at;         /* its first event */
    bool failed, finished;   /* the stream; the answer's last event came */
    size_t line_len;         /* of the line that is being read */
    char line[LINE_BYTES];   /* its beginning */
    char tail[8];            /* the last bytes read, to see the end of a chunked body */
};

struct samples {
    double *at, *value;
    size_t n, cap;
};

static struct stream *streams;
static struct samples ttft, itl; /* when they were taken, and seconds */
static long total_tokens, failures;
static double first_sent = 1e300, last_event, steady_from, steady_to = 1e300;
static uint64_t random_state = 88172645463325252ull;

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void add(struct samples *s, double at, double value)
{
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 65536;
        s->at = realloc(s->at, s->cap * sizeof(double));
        s->value = realloc(s->value, s->cap * sizeof(double));
        if (!s->at || !s->value)
            die("memory");
    }
    s->at[s->n] = at;
    s->value[s->n++] = value;
}

static void fail(struct stream *s, const char *what)
{
    if (!s->failed && failures++ < 5)
        fprintf(stderr, "load: a stream failed: %s\n", what);
    s->failed = true;
}

/* ---- requests ------------------------------------------------------------------------------ */

static char *make_request(size_t *len)
{
    size_t cap = (size_t)opt.prompt * 12 + 512 + strlen(opt.key), used = 0;
    char *body = malloc(cap), *request = malloc(cap + 512);

    if (!body || !request)
        die("memory");
    used += (size_t)sprintf(body,
                            "{\"max_tokens\":%ld,\"ignore_eos\":true,\"temperature\":0,"
                            "\"stream\":true,\"stream_options\":{\"include_usage\":true},"
                            "\"prompt\":[",
                            opt.tokens);
    for (long i = 0; i < opt.prompt; i++) {
        random_state ^= random_state << 13;
        random_state ^= random_state >> 7;
        random_state ^= random_state << 17;
        used += (size_t)sprintf(body + used, "%s%d", i ? "," : "",
                                (int)((random_state >> 16) % (uint64_t)opt.vocab));
    }
    used += (size_t)sprintf(body + used, "]}");
    int head =
        sprintf(request,
                "POST /v1/completions HTTP/1.1\r\nHost: load\r\n%s%s%sContent-Type: "
                "application/json\r\nContent-Length: %zu\r\n\r\n",
                *opt.key ? "Authorization: Bearer " : "", opt.key, *opt.key ? "\r\n" : "", used);
    memcpy(request + head, body, used);
    *len = (size_t)head + used;
    free(body);
    return request;
}

/* A request is small beside a socket's buffer, or else blocks for a moment. */
static void send_request(struct stream *s)
{
    size_t len, done = 0;
    char *request = make_request(&len);

    s->sent_at = now();
    s->last_at = s->first_at = 0;
    s->finished = false;
    s->line_len = 0;
    memset(s->tail, 0, sizeof(s->tail));
    if (s->sent_at < first_sent)
        first_sent = s->sent_at;
    while (done < len) {
        ssize_t n = send(s->fd, request + done, len - done, MSG_NOSIGNAL);
        if (n < 0) {
            fail(s, strerror(errno));
            break;
        }
        done += (size_t)n;
    }
    s->sent++;
    free(request);
}

/* ---- answers ------------------------------------------------------------------------------- */

static void note_usage(const char *line)
{
    const char *at = strstr(line, "\"completion_tokens\":");

    if (at)
        total_tokens += atol(at + strlen("\"completion_tokens\":"));
}

static void note_event(struct stream *s, double at)
{
    if (s->last_at == 0) {
        s->first_at = at;
        add(&ttft, at, at - s->sent_at);
        if (at > steady_from)
            steady_from = at;
    } else {
        add(&itl, at, at - s->last_at);
    }
    s->last_at = last_event = at;
}

/* One line of the answer; only its beginning is kept when it is long. */
static void handle_line(struct stream *s, double at)
{
    s->line[s->line_len < LINE_BYTES ? s->line_len : LINE_BYTES - 1] = '\0';
    if (strncmp(s->line, "HTTP/1.1 ", 9) == 0 && strncmp(s->line + 9, "200", 3) != 0)
        fail(s, s->line);
    if (strncmp(s->line, "data: ", 6) != 0)
        return;
    if (strncmp(s->line + 6, "[DONE]", 6) == 0) {
        s->finished = true;
        if (s->last_at < steady_to)
            steady_to = s->last_at;
    } else if (strstr(s->line, "\"error\"")) {
        fail(s, s->line);
    } else if (strstr(s->line, "\"choices\":[]")) {
        note_usage(s->line);
    } else {
        note_event(s, at);
    }
}

/* True when the answer is complete. */
static bool handle_bytes(struct stream *s, const char *data, size_t n, double at)
{
    for (size_t i = 0; i < n; i++) {
        if (data[i] == '\n') {
            handle_line(s, at);
            s->line_len = 0;
        } else if (s->line_len++ < LINE_BYTES) {
            s->line[s->line_len - 1] = data[i];
        }
    }
    for (size_t i = n > 8 ? n - 8 : 0; i < n; i++) {
        memmove(s->tail, s->tail + 1, 7);
        s->tail[7] = data[i];
    }
    return s->finished && memcmp(s->tail + 3, "0\r\n\r\n", 5) == 0;
}

/* Reads what is there. True when the stream has nothing more to do. */
static bool serve(struct stream *s)
{
    static char data[READ_BYTES];
    ssize_t n = recv(s->fd, data, sizeof(data), MSG_DONTWAIT);

    if (n < 0 && errno == EAGAIN)
        return false;
    if (n <= 0)
        fail(s, n == 0 ? "the connection was closed" : strerror(errno));
    else if (!handle_bytes(s, data, (size_t)n, now()))
        return s->failed;
    else if (++s->done < opt.requests)
        send_request(s);
    return s->failed || s->done == opt.requests;
}

static int connect_to(const struct addrinfo *address)
{
    int one = 1, fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || connect(fd, address->ai_addr, address->ai_addrlen))
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

static void run(void)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *address;
    struct epoll_event events[256];
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    long left = opt.streams;
    double deadline = now() + (double)opt.timeout_s;

    if (getaddrinfo(opt.host, opt.port, &hints, &address))
        die(opt.host);
    for (long i = 0; i < opt.streams; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &streams[i]};
        streams[i].fd = connect_to(address);
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, streams[i].fd, &event))
            die("epoll");
    }
    freeaddrinfo(address);
    for (long i = 0; i < opt.streams; i++)
        send_request(&streams[i]);
    while (left > 0 && now() < deadline) {
        int n = epoll_wait(epoll, events, 256, 1000);
        for (int i = 0; i < n; i++) {
            struct stream *s = events[i].data.ptr;
            if (serve(s)) {
                close(s->fd);
                left--;
            }
        }
    }
    if (left > 0)
        fprintf(stderr, "load: %ld streams did not end in time\n", left);
    failures += left;
}

/* ---- report -------------------------------------------------------------------------------- */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The samples that began and ended in [from, to], sorted, in ms. */
static struct samples between(const struct samples *all, double from, double to)
{
    struct samples some = {0};

    for (size_t i = 0; i < all->n; i++)
        if (all->at[i] - all->value[i] >= from && all->at[i] <= to)
            add(&some, all->at[i], all->value[i] * 1e3);
    if (some.n > 0)
        qsort(some.value, some.n, sizeof(double), compare_doubles);
    return some;
}

static double percentile(const struct samples *sorted, double p)
{
    return sorted->n ? sorted->value[(size_t)(p * (double)(sorted->n - 1))] : 0;
}

static void print_samples(const char *name, struct samples s)
{
    if (opt.json)
        printf(",\"%s_ms\":{\"p50\":%.3f,\"p99\":%.3f,\"max\":%.3f,\"n\":%zu}", name,
               percentile(&s, 0.5), percentile(&s, 0.99), percentile(&s, 1), s.n);
    else
        printf("%-12s p50 %9.3f   p99 %9.3f   max %9.3f   ms of %zu\n", name, percentile(&s, 0.5),
               percentile(&s, 0.99), percentile(&s, 1), s.n);
    free(s.at);
    free(s.value);
}

static void report(void)
{
    double seconds = last_event - first_sent;
    double steady = failures ? 0 : steady_to - steady_from; /* one that failed had no end */
    size_t in_steady = 0;

    for (size_t i = 0; i < itl.n; i++)
        in_steady += itl.at[i] > steady_from && itl.at[i] <= steady_to;
    double rate = (double)total_tokens / (seconds > 0 ? seconds : 1);
    double steady_rate = steady > 0 ? (double)in_steady / steady : 0;
    if (opt.json)
        printf("{\"streams\":%ld,\"failures\":%ld,\"tokens\":%ld,\"seconds\":%.4f,"
               "\"tokens_per_s\":%.1f,\"steady_seconds\":%.4f,\"steady_tokens_per_s\":%.1f",
               opt.streams, failures, total_tokens, seconds, rate, steady > 0 ? steady : 0,
               steady_rate);
    else
        printf("%ld streams, %ld failed: %ld tokens in %.3f s, %.1f tokens/s; steady for %.3f s, "
               "%.1f tokens/s\n",
               opt.streams, failures, total_tokens, seconds, rate, steady > 0 ? steady : 0,
               steady_rate);
    print_samples("ttft", between(&ttft, 0, 1e300));
    print_samples("itl", between(&itl, 0, 1e300));
    print_samples("steady_itl", between(&itl, steady_from, steady_to));
    if (opt.json)
        printf("}\n");
}

static void read_options(int argc, char **argv)
{
    const struct {
        const char *name;
        long *number;
        const char **text;
    } flags[] = {{"--host", NULL, &opt.host},         {"--port", NULL, &opt.port},
                 {"--api-key", NULL, &opt.key},       {"--streams", &opt.streams, NULL},
                 {"--requests", &opt.requests, NULL}, {"--prompt", &opt.prompt, NULL},
                 {"--tokens", &opt.tokens, NULL},     {"--vocab", &opt.vocab, NULL},
                 {"--timeout", &opt.timeout_s, NULL}};
    size_t n = sizeof(flags) / sizeof(flags[0]), f;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            opt.json = true;
            continue;
        }
        for (f = 0; f < n && strcmp(flags[f].name, argv[i]) != 0; f++)
            ;
        if (f == n || i + 1 == argc) {
            fprintf(stderr,
                    "usage: load [--host H] [--port P] [--api-key K] [--streams N] [--requests N] "
                    "[--prompt TOKENS] [--tokens N] [--vocab N] [--timeout S] [--json]\n");
            exit(2);
        }
        i++;
        if (flags[f].text)
            *flags[f].text = argv[i];
        else
            *flags[f].number = atol(argv[i]);
    }
    if (opt.streams < 1 || opt.streams > MAX_STREAMS || opt.requests < 1 || opt.prompt < 1 ||
        opt.tokens < 1 || opt.vocab < 1) {
        fprintf(stderr, "load: a number is out of range\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    streams = calloc((size_t)opt.streams, sizeof(*streams));
    if (!streams)
        die("memory");
    run();
    report();
    free(streams);
    return failures ? 1 : 0;
}
