#include "server/healthcheck.h"

#include "base/clock.h"
#include "base/panic.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <netdb.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TIME_LIMIT_MS = 2500, ANSWER_MAX = 512 };

/* A connection that is tried, and its end of time. */
struct check {
    const char *host;
    int port;
    int fd;
    int64_t until_us;
    gnutls_session_t tls; /* NULL: plain text */
};

static int late(const struct check *check, struct error *err)
{
    return error_set(err, "%s:%d did not answer within %g seconds", check->host, check->port,
                     TIME_LIMIT_MS * 1e-3);
}

static int broken(const struct check *check, struct error *err)
{
    return error_set(err, "can't reach %s:%d: %s", check->host, check->port, strerror(errno));
}

/* Waits until the socket can be read or written (POLLIN, POLLOUT). */
static int await(const struct check *check, short events, struct error *err)
{
    struct pollfd socket = {.fd = check->fd, .events = events};
    int64_t left_us;

    while ((left_us = check->until_us - clock_us()) > 0) {
        int n = poll(&socket, 1, (int)(left_us / 1000) + 1);
        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return broken(check, err);
    }
    return late(check, err);
}

static int connect_to(struct check *check, const struct addrinfo *address, struct error *err)
{
    int failure = 0;
    socklen_t len = sizeof(failure);

    check->fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (check->fd < 0)
        return broken(check, err);
    if (connect(check->fd, address->ai_addr, address->ai_addrlen) == 0)
        return 0;
    if (errno != EINPROGRESS)
        return broken(check, err);
    if (await(check, POLLOUT, err))
        return -1;
    getsockopt(check->fd, SOL_SOCKET, SO_ERROR, &failure, &len);
    errno = failure;
    return failure ? broken(check, err) : 0;
}

/* ---- TLS, or not -------------------------------------------------------------------------- */

static int no_tls(const struct check *check, int rc, struct error *err)
{
    return error_set(err, "can't speak TLS with %s:%d: %s", check->host, check->port,
                     gnutls_strerror(rc));
}

static bool is_pause(int rc)
{
    return rc == GNUTLS_E_AGAIN || rc == GNUTLS_E_INTERRUPTED;
}

/* The certificate is not verified: it names the server's public name, and who answers on this
 * host's own port is not in question. `credentials` outlive the session. */
static int begin_tls(struct check *check, gnutls_certificate_credentials_t credentials,
                     struct error *err)
{
    int rc = gnutls_init(&check->tls, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);

    if (rc < 0)
        return no_tls(check, rc, err);
    gnutls_set_default_priority(check->tls);
    gnutls_credentials_set(check->tls, GNUTLS_CRD_CERTIFICATE, credentials);
    gnutls_transport_set_int(check->tls, check->fd);
    while (is_pause(rc = gnutls_handshake(check->tls)))
        if (await(check, gnutls_record_get_direction(check->tls) ? POLLOUT : POLLIN, err))
            return -1;
    return rc < 0 ? no_tls(check, rc, err) : 0;
}

/* The request fits in the buffer of a socket just made, so one send takes it. */
static int send_request(const struct check *check, struct error *err)
{
    static const char request[] = "GET /health HTTP/1.1\r\nHost: localhost\r\n"
                                  "Connection: close\r\n\r\n";
    ssize_t n = check->tls ? gnutls_record_send(check->tls, request, sizeof(request) - 1)
                           : send(check->fd, request, sizeof(request) - 1, MSG_NOSIGNAL);

    return n == (ssize_t)sizeof(request) - 1 ? 0 : broken(check, err);
}

/* Reads what has come: the bytes, 0 at the end or, with errno set to EAGAIN, -1. */
static ssize_t receive(const struct check *check, char *out, size_t max)
{
    if (!check->tls)
        return recv(check->fd, out, max, 0);
    ssize_t n = gnutls_record_recv(check->tls, out, max);
    if (n < 0)
        errno = is_pause((int)n) ? EAGAIN : ECONNRESET;
    return n < 0 ? -1 : n;
}

/* Reads the status line. */
static int read_status(const struct check *check, struct error *err)
{
    char answer[ANSWER_MAX + 1] = "";
    size_t len = 0;
    int status = 0;

    while (len < ANSWER_MAX && !memchr(answer, '\n', len)) {
        ssize_t n = receive(check, answer + len, ANSWER_MAX - len);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            if (await(check, POLLIN, err))
                return -1;
            continue;
        }
        if (n < 0)
            return broken(check, err);
        if (n == 0)
            break;
        len += (size_t)n;
    }
    if (sscanf(answer, "HTTP/1.%*1[01] %3d", &status) != 1 || status < 100)
        return error_set(err, "%s:%d does not speak HTTP", check->host, check->port);
    if (status != 200)
        return error_set(err, "%s:%d is not healthy: it answers %d", check->host, check->port,
                         status);
    return 0;
}

static int ask(struct check *check, const struct addrinfo *address,
               gnutls_certificate_credentials_t credentials, struct error *err)
{
    int rc = connect_to(check, address, err) ||
             (credentials && begin_tls(check, credentials, err)) || send_request(check, err) ||
             read_status(check, err);

    if (check->tls)
        gnutls_deinit(check->tls);
    check->tls = NULL;
    if (check->fd >= 0)
        close(check->fd);
    return rc ? -1 : 0;
}

/* A daemon that listens on all addresses is asked on the loopback. */
static const char *reachable(const char *host)
{
    if (!*host || strcmp(host, "0.0.0.0") == 0)
        return "127.0.0.1";
    return strcmp(host, "::") == 0 ? "::1" : host;
}

int healthcheck(const struct options *options, struct error *err)
{
    struct check check = {.host = reachable(options->host),
                          .port = (int)options->port,
                          .until_us = clock_us() + TIME_LIMIT_MS * 1000};
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *addresses;
    gnutls_certificate_credentials_t credentials = NULL;
    char port[16];
    int rc = -1;

    if (check.port == 0)
        return error_set(err, "healthcheck needs the --port that the daemon listens on");
    snprintf(port, sizeof(port), "%d", check.port);
    int failure = getaddrinfo(check.host, port, &hints, &addresses);
    if (failure && strcmp(check.host, "localhost") == 0) /* a container may lack /etc/hosts */
        failure = getaddrinfo("127.0.0.1", port, &hints, &addresses);
    if (failure)
        return error_set(err, "can't find %s: %s", check.host, gai_strerror(failure));
    if (*options->tls_cert && gnutls_certificate_allocate_credentials(&credentials) < 0)
        PANIC("out of host memory");
    for (const struct addrinfo *at = addresses; at && rc; at = at->ai_next)
        rc = ask(&check, at, credentials, err);
    if (credentials)
        gnutls_certificate_free_credentials(credentials);
    freeaddrinfo(addresses);
    return rc;
}
