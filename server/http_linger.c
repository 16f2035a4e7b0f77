/* Lingering close: a list of sockets, each watched for input; see http_linger.h. */
#include "server/http_linger.h"

#include "base/memory.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    SOCKETS_MAX = 256,                /* past it sockets are closed the hard way */
    LINGER_US = 10 * 1000000,         /* for each socket, */
    LINGER_BYTES = 256 * 1024 * 1024, /* and at most so many bytes of it */
    READS_PER_EVENT = 16,             /* so that one fast sender does not hold up the loop */
};

struct socket {
    struct http_linger *linger;
    int fd;
    struct loop_watch *watch;
    int64_t deadline_us;
    size_t bytes_left;
    struct socket *prev, *next;
};

struct http_linger {
    struct loop *loop;
    struct socket *sockets;
    int count;
};

struct http_linger *http_linger_new(struct loop *loop)
{
    struct http_linger *linger = mem_zalloc(1, sizeof(*linger));

    linger->loop = loop;
    return linger;
}

static void discard(struct socket *sock)
{
    struct http_linger *linger = sock->linger;

    loop_watch_stop(sock->watch);
    close(sock->fd);
    if (sock->next)
        sock->next->prev = sock->prev;
    if (sock->prev)
        sock->prev->next = sock->next;
    else
        linger->sockets = sock->next;
    linger->count--;
    free(sock);
}

void http_linger_free(struct http_linger *linger)
{
    if (!linger)
        return;
    while (linger->sockets)
        discard(linger->sockets);
    free(linger);
}

static void on_readable(void *arg)
{
    struct socket *sock = arg;
    char scrap[16 * 1024];

    for (int reads = 0; reads < READS_PER_EVENT; reads++) {
        ssize_t got = recv(sock->fd, scrap, sizeof(scrap), MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0 || (size_t)got >= sock->bytes_left) {
            discard(sock);
            return;
        }
        sock->bytes_left -= (size_t)got;
    }
}

void http_linger_add(struct http_linger *linger, int fd, int64_t now_us)
{
    struct loop_watch *watch = NULL;

    shutdown(fd, SHUT_WR);
    struct socket *sock = mem_zalloc(1, sizeof(*sock));
    if (linger->count < SOCKETS_MAX)
        watch = loop_watch_start(linger->loop, fd, LOOP_READABLE, on_readable, sock);
    if (!watch) {
        close(fd);
        free(sock);
        return;
    }
    *sock = (struct socket){.linger = linger,
                            .fd = fd,
                            .watch = watch,
                            .deadline_us = now_us + LINGER_US,
                            .bytes_left = LINGER_BYTES,
                            .next = linger->sockets};
    if (linger->sockets)
        linger->sockets->prev = sock;
    linger->sockets = sock;
    linger->count++;
}

void http_linger_sweep(struct http_linger *linger, int64_t now_us)
{
    for (struct socket *sock = linger->sockets, *next; sock; sock = next) {
        next = sock->next;
        if (now_us >= sock->deadline_us)
            discard(sock);
    }
}
