#include "server/kv_cache.h"

#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };

struct page {
    int32_t refs;
    int32_t hash_next;    /* next page in its bucket */
    int32_t older, newer; /* neighbours in the LRU list */
    uint64_t serial;      /* names this content for ever; 0: not registered */
    uint64_t parent;      /* serial of the page before it, or a root */
    int32_t tokens[KV_PAGE_TOKENS];
};

struct kv_cache {
    bool prefix_caching;
    int32_t n_pages;
    struct page *pages;
    int32_t *free; /* stack of pages without content */
    int32_t n_free;
    int32_t lru_oldest, lru_newest; /* registered pages without references */
    int32_t n_lru;
    int32_t *buckets; /* hash of (parent, tokens) -> first page */
    uint32_t bucket_mask;
    uint64_t next_serial;
    int64_t queried_tokens, hit_tokens;
};

/* Serials count up from 1; roots have the top bit, so they never meet. */
static uint64_t root_of(uint64_t salt)
{
    return salt | 1ull << 63;
}

struct kv_cache *kv_cache_new(int32_t n_pages, bool prefix_caching)
{
    struct kv_cache *kv = mem_zalloc(1, sizeof(*kv));
    uint32_t buckets = 16;

    ASSERT(n_pages > 0);
    while (buckets < (uint32_t)n_pages * 2)
        buckets *= 2;
    kv->prefix_caching = prefix_caching;
    kv->n_pages = n_pages;
    kv->pages = mem_zalloc((size_t)n_pages, sizeof(*kv->pages));
    kv->free = mem_zalloc((size_t)n_pages, sizeof(*kv->free));
    for (int32_t i = n_pages - 1; i >= 0; i--)
        kv->free[kv->n_free++] = i;
    kv->buckets = mem_zalloc(buckets, sizeof(*kv->buckets));
    for (uint32_t i = 0; i < buckets; i++)
        kv->buckets[i] = NONE;
    kv->bucket_mask = buckets - 1;
    kv->lru_oldest = kv->lru_newest = NONE;
    kv->next_serial = 1;
    return kv;
}

void kv_cache_free(struct kv_cache *kv)
{
    if (!kv)
        return;
    free(kv->buckets);
    free(kv->free);
    free(kv->pages);
    free(kv);
}

void kv_seq_init(struct kv_seq *seq, int32_t max_pages, uint64_t salt)
{
    *seq = (struct kv_seq){.max_pages = max_pages, .chain = root_of(salt)};
    seq->pages = mem_zalloc((size_t)max_pages, sizeof(*seq->pages));
}

void kv_seq_free(struct kv_seq *seq)
{
    ASSERT(seq->n_pages == 0);
    free(seq->pages);
    *seq = (struct kv_seq){0};
}

/* FNV-1a over parent and tokens: only a bucket choice, never an identity. */
static int32_t *bucket_of(const struct kv_cache *kv, uint64_t parent, const int32_t *tokens)
{
    uint64_t hash = 14695981039346656037ull ^ parent;

    hash *= 1099511628211ull;
    for (int i = 0; i < KV_PAGE_TOKENS; i++)
        hash = (hash ^ (uint32_t)tokens[i]) * 1099511628211ull;
    return &kv->buckets[(hash ^ hash >> 32) & kv->bucket_mask];
}

static int32_t lookup(const struct kv_cache *kv, uint64_t parent, const int32_t *tokens)
{
    int32_t at = *bucket_of(kv, parent, tokens);

    while (at != NONE) {
        const struct page *page = &kv->pages[at];
        if (page->parent == parent && memcmp(page->tokens, tokens, sizeof(page->tokens)) == 0)
            return at;
        at = page->hash_next;
    }
    return NONE;
}

static void unregister(struct kv_cache *kv, int32_t number)
{
    struct page *page = &kv->pages[number];
    int32_t *link = bucket_of(kv, page->parent, page->tokens);

    while (*link != number)
        link = &kv->pages[*link].hash_next;
    *link = page->hash_next;
    page->serial = 0;
}

static void lru_append(struct kv_cache *kv, int32_t number)
{
    struct page *page = &kv->pages[number];

    page->older = kv->lru_newest;
    page->newer = NONE;
    if (kv->lru_newest != NONE)
        kv->pages[kv->lru_newest].newer = number;
    else
        kv->lru_oldest = number;
    kv->lru_newest = number;
    kv->n_lru++;
}

static void lru_remove(struct kv_cache *kv, int32_t number)
{
    struct page *page = &kv->pages[number];

    if (page->older != NONE)
        kv->pages[page->older].newer = page->newer;
    else
        kv->lru_oldest = page->newer;
    if (page->newer != NONE)
        kv->pages[page->newer].older = page->older;
    else
        kv->lru_newest = page->older;
    kv->n_lru--;
}

int32_t kv_cache_match(struct kv_cache *kv, struct kv_seq *seq, const int32_t *tokens,
                       int32_t n_tokens)
{
    ASSERT(seq->n_pages == 0);
    if (!kv->prefix_caching)
        return 0;
    while ((seq->n_pages + 1) * KV_PAGE_TOKENS < n_tokens && seq->n_pages < seq->max_pages) {
        int32_t found = lookup(kv, seq->chain, tokens + seq->n_pages * KV_PAGE_TOKENS);
        if (found == NONE)
            break;
        if (kv->pages[found].refs++ == 0)
            lru_remove(kv, found);
        seq->pages[seq->n_pages++] = found;
        seq->chain = kv->pages[found].serial;
    }
    seq->n_committed = seq->n_pages;
    return seq->n_pages * KV_PAGE_TOKENS;
}

void kv_cache_count_match(struct kv_cache *kv, int32_t n_tokens, int32_t n_found)
{
    if (!kv->prefix_caching)
        return;
    kv->queried_tokens += n_tokens;
    kv->hit_tokens += n_found;
}

int32_t kv_cache_available(const struct kv_cache *kv)
{
    return kv->n_free + kv->n_lru;
}

/* A page without content: a free one, or the one that has been unused for longest. */
static int32_t take_page(struct kv_cache *kv)
{
    if (kv->n_free > 0)
        return kv->free[--kv->n_free];
    int32_t oldest = kv->lru_oldest;
    lru_remove(kv, oldest);
    unregister(kv, oldest);
    return oldest;
}

bool kv_cache_grow(struct kv_cache *kv, struct kv_seq *seq, int32_t n_tokens)
{
    int32_t want = (n_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;

    ASSERT(want <= seq->max_pages);
    if (want - seq->n_pages > kv_cache_available(kv))
        return false;
    while (seq->n_pages < want) {
        int32_t number = take_page(kv);
        kv->pages[number].refs = 1;
        seq->pages[seq->n_pages++] = number;
    }
    return true;
}

/* Registers the sequence's next page, unless the same content is registered already (two sequences
 * computed it side by side): then the chain goes on from that one and this page stays private. */
static void commit_page(struct kv_cache *kv, struct kv_seq *seq, const int32_t *tokens)
{
    int32_t number = seq->pages[seq->n_committed];
    struct page *page = &kv->pages[number];
    int32_t twin = lookup(kv, seq->chain, tokens);

    if (twin == NONE) {
        int32_t *bucket = bucket_of(kv, seq->chain, tokens);
        page->parent = seq->chain;
        page->serial = kv->next_serial++;
        memcpy(page->tokens, tokens, sizeof(page->tokens));
        page->hash_next = *bucket;
        *bucket = number;
        twin = number;
    }
    seq->chain = kv->pages[twin].serial;
    seq->n_committed++;
}

void kv_cache_commit(struct kv_cache *kv, struct kv_seq *seq, const int32_t *tokens,
                     int32_t n_written)
{
    ASSERT(n_written <= seq->n_pages * KV_PAGE_TOKENS);
    if (!kv->prefix_caching)
        return;
    while ((seq->n_committed + 1) * KV_PAGE_TOKENS <= n_written)
        commit_page(kv, seq, tokens + seq->n_committed * KV_PAGE_TOKENS);
}

void kv_cache_release(struct kv_cache *kv, struct kv_seq *seq, uint64_t salt)
{
    /* Last pages first: when space is short the ends of chains go before their beginnings. */
    while (seq->n_pages > 0) {
        int32_t number = seq->pages[--seq->n_pages];
        struct page *page = &kv->pages[number];
        ASSERT(page->refs > 0);
        if (--page->refs > 0)
            continue;
        if (page->serial)
            lru_append(kv, number);
        else
            kv->free[kv->n_free++] = number;
    }
    seq->n_committed = 0;
    seq->chain = root_of(salt);
}

struct kv_cache_stats kv_cache_stats(const struct kv_cache *kv)
{
    return (struct kv_cache_stats){
        .pages = kv->n_pages,
        .pages_used = kv->n_pages - kv_cache_available(kv),
        .queried_tokens = kv->queried_tokens,
        .hit_tokens = kv->hit_tokens,
    };
}
