/* What the HTTP server asks of the system about sockets: the listening one, the descriptors that
 * connections need, and the few questions that libmicrohttpd does not answer. */
#pragma once

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* Binds and listens on `host` (an address or a name; NULL or "": all addresses) and `port` (0:
 * any). Connections inherit what is set on this socket: no delay of small writes, and limits on how
 * long a dead or stalled peer is waited for. Returns the descriptor, not blocking, which the caller
 * closes, and the port in `*bound_port`; or -1 and a message. */
int http_socket_listen(const char *host, int port, int *bound_port, struct error *err);

/* Raises the process's limit of open files to `wanted` when it is lower and that is allowed.
 * Returns the limit in force, at most `wanted`. */
int http_socket_allow(int wanted);

/* Bytes that ever arrived on a connection; 0 where the kernel does not count them. */
uint64_t http_socket_received(int fd);

/* Bytes that arrived and were not read yet. */
int http_socket_unread(int fd);

/* Makes close() drop what is not sent yet and reset the connection. */
void http_socket_reset_on_close(int fd);

/* Writes "127.0.0.1:4711" or "[::1]:4711"; IPv4 addresses in IPv6 form are written as IPv4. */
void http_socket_name(const struct sockaddr *address, char *out, size_t size);
