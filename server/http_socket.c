/* Sockets of the HTTP server.
 *
 * Linux copies a listening socket's options to the sockets accepted from it, so every option of a
 * connection is set here, once, and accepting costs no further system call. */
#include "server/http_socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h> /* not netinet/tcp.h, whose struct tcp_info is older than the kernel's */
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    BACKLOG = 4096,          /* connections the kernel accepts ahead of us */
    USER_TIMEOUT_MS = 60000, /* sent bytes not acknowledged, or a closed window, for this long */
    KEEPALIVE_IDLE_S = 30,   /* a silent peer is probed after this long, */
    KEEPALIVE_INTERVAL_S = 10,
    KEEPALIVE_PROBES = 3,    /* and lost after so many probes without an answer */
    UNSENT_MAX = 128 * 1024, /* bytes the kernel takes ahead of what the peer's window allows */
};

static void set_int(int fd, int level, int option, int value)
{
    /* Options are improvements: one that the kernel lacks is no reason not to serve. */
    (void)setsockopt(fd, level, option, &value, sizeof(value));
}

static void set_options(int fd, int family)
{
    set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS);
    set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
    set_int(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_MAX);
    if (family == AF_INET6)
        set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
}

/* -1 with errno set on failure. */
static int listen_on(const struct addrinfo *address)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    set_options(fd, address->ai_family);
    if (bind(fd, address->ai_addr, address->ai_addrlen) || listen(fd, BACKLOG)) {
        int reason = errno;
        close(fd);
        errno = reason;
        return -1;
    }
    return fd;
}

static int port_of(int fd)
{
    struct sockaddr_in6 name; /* big enough for IPv4 too, and the port is at the same place */
    socklen_t size = sizeof(name);

    memset(&name, 0, sizeof(name));
    getsockname(fd, (struct sockaddr *)&name, &size);
    return ntohs(name.sin6_port);
}

int http_socket_listen(const char *host, int port, int *bound_port, struct error *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list;
    char service[16];
    int fd = -1, reason = 0;

    snprintf(service, sizeof(service), "%d", port);
    int rc = getaddrinfo(host, service, &hints, &list);
    if (rc)
        return error_set(err, "cannot listen on host %s: %s", host, gai_strerror(rc));
    for (struct addrinfo *address = list; address && fd < 0; address = address->ai_next) {
        fd = listen_on(address);
        if (fd < 0)
            reason = errno;
    }
    freeaddrinfo(list);
    if (fd < 0)
        return error_set(err, "cannot listen on %s port %d: %s", host, port, strerror(reason));
    *bound_port = port_of(fd);
    return fd;
}

int http_socket_allow(int wanted)
{
    struct rlimit limit;
    rlim_t want = (rlim_t)wanted;

    if (getrlimit(RLIMIT_NOFILE, &limit))
        return wanted;
    if (limit.rlim_cur < want) {
        struct rlimit raised = limit;
        raised.rlim_cur = want < limit.rlim_max ? want : limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
            limit = raised;
    }
    return limit.rlim_cur < want ? (int)limit.rlim_cur : wanted;
}

uint64_t http_socket_received(int fd)
{
    struct tcp_info info;
    socklen_t size = sizeof(info);

    memset(&info, 0, sizeof(info)); /* an older kernel fills in less */
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size))
        return 0;
    return info.tcpi_bytes_received;
}

int http_socket_unread(int fd)
{
    int bytes = 0;

    return ioctl(fd, FIONREAD, &bytes) ? 0 : bytes;
}

void http_socket_reset_on_close(int fd)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};

    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

void http_socket_name(const struct sockaddr *address, char *out, size_t size)
{
    const struct sockaddr_in *four = (const struct sockaddr_in *)address;
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)address;
    char text[INET6_ADDRSTRLEN] = "";

    out[0] = '\0';
    if (address->sa_family == AF_INET) {
        inet_ntop(AF_INET, &four->sin_addr, text, sizeof(text));
        snprintf(out, size, "%s:%d", text, ntohs(four->sin_port));
    } else if (address->sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {
        inet_ntop(AF_INET, &six->sin6_addr.s6_addr[12], text, sizeof(text));
        snprintf(out, size, "%s:%d", text, ntohs(six->sin6_port));
    } else if (address->sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &six->sin6_addr, text, sizeof(text));
        snprintf(out, size, "[%s]:%d", text, ntohs(six->sin6_port));
    }
}
