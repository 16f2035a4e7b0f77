/* TLS of the HTTP server, over GnuTLS: the certificate and key that it shows, which may change
 * while it runs, and what libmicrohttpd (whose sessions these are) has no function for.
 *
 * A connection keeps the certificate that its handshake began with; later ones get the new one.
 * Loop thread only. */
#pragma once

#include "base/error.h"

#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <stdbool.h>
#include <stddef.h>

/* Protocols and ciphers: TLS 1.2 and 1.3. */
#define TLS_PRIORITIES "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:%SERVER_PRECEDENCE"

struct tls;

/* Reads a chain of certificates (the server's own first) and its key, both PEM; one file may hold
 * both. NULL and a message when they can't be read or don't belong together. The paths are
 * borrowed. */
struct tls *tls_new(const char *cert_path, const char *key_path, struct error *err);
void tls_free(struct tls *tls); /* no peer may be attached */

/* Reads the files again; on error the certificate stays as it was. */
int tls_reload(struct tls *tls, struct error *err);

/* A client's connection. */
struct tls_peer {
    struct tls *tls; /* NULL: not attached, plain text */
    gnutls_session_t session;
    struct tls_identity *identity; /* what it was shown; a reference */
    bool established;              /* the handshake is over, application data may flow */
    void (*on_established)(void *arg);
    void *arg;
};

/* Before the handshake. `peer` has to stay where it is until tls_detach. */
void tls_attach(struct tls_peer *peer, struct tls *tls, gnutls_session_t session,
                void (*on_established)(void *arg), void *arg);
void tls_detach(struct tls_peer *peer);

/* Sends the last bytes of a connection, as far as the socket takes them at once, and says that no
 * more will come. Nothing is sent before the handshake is over. */
void tls_send_last(struct tls_peer *peer, const void *data, size_t len);

/* A gnutls_certificate_retrieve_function2 for sessions with a tls_peer. */
int tls_show_certificate(gnutls_session_t session, const gnutls_datum_t *authorities,
                         int n_authorities, const gnutls_pk_algorithm_t *algorithms,
                         int n_algorithms, gnutls_pcert_st **chain, unsigned *n_chain,
                         gnutls_privkey_t *key);
