/* An identity (chain and key) is counted: by the tls while it is the current one, and by each peer
 * whose handshake used it, as GnuTLS does not copy what tls_show_certificate hands it. */
#include "server/tls.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>
#include <string.h>

enum { PEM_MAX = 1 << 20, CHAIN_MAX = 16, EXPIRY_WARNING_S = 7 * 86400 };

struct tls_identity {
    gnutls_pcert_st chain[CHAIN_MAX];
    unsigned n_chain;
    gnutls_privkey_t key;
    int references;
};

struct tls {
    const char *cert_path, *key_path;
    struct tls_identity *current;
};

static void release(struct tls_identity *identity)
{
    if (!identity || --identity->references > 0)
        return;
    for (unsigned i = 0; i < identity->n_chain; i++)
        gnutls_pcert_deinit(&identity->chain[i]);
    if (identity->key)
        gnutls_privkey_deinit(identity->key);
    free(identity);
}

/* ---- reading ------------------------------------------------------------------------------ */

/* Whether the key is the certificate's: GnuTLS looks when both go into credentials. */
static int check_pair(const gnutls_datum_t *cert, const gnutls_datum_t *key)
{
    gnutls_certificate_credentials_t credentials;
    int rc = gnutls_certificate_allocate_credentials(&credentials);

    if (rc < 0)
        return rc;
    rc = gnutls_certificate_set_x509_key_mem2(credentials, cert, key, GNUTLS_X509_FMT_PEM, NULL, 0);
    gnutls_certificate_free_credentials(credentials);
    return rc;
}

static int import(struct tls_identity *identity, const gnutls_datum_t *cert,
                  const gnutls_datum_t *key)
{
    unsigned n = CHAIN_MAX;
    int rc = gnutls_pcert_list_import_x509_raw(identity->chain, &n, cert, GNUTLS_X509_FMT_PEM, 0);

    if (rc < 0)
        return rc;
    identity->n_chain = n;
    rc = gnutls_privkey_init(&identity->key);
    return rc < 0
               ? rc
               : gnutls_privkey_import_x509_raw(identity->key, key, GNUTLS_X509_FMT_PEM, NULL, 0);
}

static void warn_of_expiry(const struct tls *tls, struct tls_identity *identity)
{
    gnutls_x509_crt_t cert;

    if (gnutls_pcert_export_x509(&identity->chain[0], &cert) < 0)
        return;
    int64_t left_s = (int64_t)gnutls_x509_crt_get_expiration_time(cert) - clock_unix_s();
    gnutls_x509_crt_deinit(cert);
    if (left_s < 0)
        log_warning("the certificate in %s has expired", tls->cert_path);
    else if (left_s < EXPIRY_WARNING_S)
        log_warning("the certificate in %s expires in %lld hours", tls->cert_path,
                    (long long)left_s / 3600);
}

static struct tls_identity *read_identity(const struct tls *tls, struct error *err)
{
    struct buffer cert, key;

    buffer_init(&cert, PEM_MAX);
    buffer_init(&key, PEM_MAX);
    struct tls_identity *identity = mem_zalloc(1, sizeof(*identity));
    identity->references = 1;
    bool ok =
        file_read(tls->cert_path, &cert, err) == 0 && file_read(tls->key_path, &key, err) == 0;
    if (ok) {
        gnutls_datum_t cert_pem = {(void *)cert.data, (unsigned)cert.len};
        gnutls_datum_t key_pem = {(void *)key.data, (unsigned)key.len};
        int rc = import(identity, &cert_pem, &key_pem);
        if (rc >= 0)
            rc = check_pair(&cert_pem, &key_pem);
        ok = rc >= 0;
        if (!ok)
            error_set(err, "can't use the certificate %s with the key %s: %s", tls->cert_path,
                      tls->key_path, gnutls_strerror(rc));
        explicit_bzero(key.data, key.len);
    }
    buffer_free(&cert);
    buffer_free(&key);
    if (ok) {
        warn_of_expiry(tls, identity);
        return identity;
    }
    release(identity);
    return NULL;
}

struct tls *tls_new(const char *cert_path, const char *key_path, struct error *err)
{
    struct tls *tls = mem_zalloc(1, sizeof(*tls));

    tls->cert_path = cert_path;
    tls->key_path = key_path;
    if (tls_reload(tls, err) == 0)
        return tls;
    free(tls);
    return NULL;
}

int tls_reload(struct tls *tls, struct error *err)
{
    struct tls_identity *identity = read_identity(tls, err);

    if (!identity)
        return -1;
    release(tls->current);
    tls->current = identity;
    return 0;
}

void tls_free(struct tls *tls)
{
    if (!tls)
        return;
    ASSERT(tls->current->references == 1);
    release(tls->current);
    free(tls);
}

/* ---- connections -------------------------------------------------------------------------- */

/* Called before and after each handshake message; the client's last one is its Finished. */
static int on_handshake_message(gnutls_session_t session, unsigned type, unsigned when,
                                unsigned incoming, const gnutls_datum_t *message)
{
    struct tls_peer *peer = gnutls_session_get_ptr(session);

    (void)type, (void)when, (void)message;
    if (incoming && !peer->established) {
        peer->established = true;
        peer->on_established(peer->arg);
    }
    return 0;
}

void tls_attach(struct tls_peer *peer, struct tls *tls, gnutls_session_t session,
                void (*on_established)(void *arg), void *arg)
{
    *peer = (struct tls_peer){
        .tls = tls, .session = session, .on_established = on_established, .arg = arg};
    /* libmicrohttpd keeps a pointer there for pre-shared keys, which are not used here. */
    gnutls_session_set_ptr(session, peer);
    gnutls_handshake_set_hook_function(session, GNUTLS_HANDSHAKE_FINISHED, GNUTLS_HOOK_POST,
                                       on_handshake_message);
}

void tls_detach(struct tls_peer *peer)
{
    release(peer->identity);
    *peer = (struct tls_peer){0};
}

void tls_send_last(struct tls_peer *peer, const void *data, size_t len)
{
    if (!peer->established)
        return;
    if (gnutls_record_send(peer->session, data, len) > 0)
        gnutls_bye(peer->session, GNUTLS_SHUT_WR);
}

int tls_show_certificate(gnutls_session_t session, const gnutls_datum_t *authorities,
                         int n_authorities, const gnutls_pk_algorithm_t *algorithms,
                         int n_algorithms, gnutls_pcert_st **chain, unsigned *n_chain,
                         gnutls_privkey_t *key)
{
    struct tls_peer *peer = gnutls_session_get_ptr(session);

    (void)authorities, (void)n_authorities, (void)algorithms, (void)n_algorithms;
    if (!peer->identity) {
        peer->identity = peer->tls->current;
        peer->identity->references++;
    }
    *chain = peer->identity->chain;
    *n_chain = peer->identity->n_chain;
    *key = peer->identity->key;
    return 0;
}
