/* Sockets that are closed gently: a client that is still sending when the server has already
 * answered and closed would get a reset, and with it lose the answer. So the sending side is shut
 * and what comes in is thrown away, until the client closes or a bound is reached. */
#pragma once

#include "server/loop.h"

#include <stdint.h>

struct http_linger;

struct http_linger *http_linger_new(struct loop *loop);
void http_linger_free(struct http_linger *linger); /* closes all at once */

/* Takes the socket over. */
void http_linger_add(struct http_linger *linger, int fd, int64_t now_us);

/* Closes those whose time is up. */
void http_linger_sweep(struct http_linger *linger, int64_t now_us);
