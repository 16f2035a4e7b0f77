#include "model/bpe.h"

#include "base/memory.h"
#include "base/panic.h"
#include "base/utf8.h"
#include "model/hash_map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ID_MAX = 1 << 24,           /* ids are below; bounds the tables */
    SPELLING_MAX = 64 * 1024,   /* bytes of one token */
    BYTE_CODE_POINTS = 256 + 68 /* code points that spell bytes are below */
};

/* A token as the file spells it (NUL-terminated) and the bytes that are meant. */
struct token {
    uint32_t spelling, bytes; /* offsets in the text pool */
    uint32_t bytes_len;
    int32_t id;
};

struct bpe {
    struct token *tokens; /* in the order of the file */
    size_t tokens_n;
    struct buffer pool;
    struct hash_map by_spelling; /* hash (see find_spelling) -> id << 32 | offset of spelling */
    int32_t *by_id;              /* index in `tokens`; -1: none */
    int32_t size;                /* of by_id */
    struct hash_map merges;      /* left id << 32 | right id -> rank */
    int32_t *merged;             /* by rank: the token that comes out */
    size_t merges_n;
    bool ignore_merges;                /* a word that is a token is that token, merges or not */
    bool byte_level;                   /* spellings are of bytes, not of characters */
    bool byte_fallback;                /* a missing character becomes tokens of its bytes */
    int32_t unknown;                   /* what it becomes otherwise; -1: nothing */
    bool fuse_unknown;                 /* one for all in a row */
    size_t longest;                    /* bytes of the longest spelling */
    int32_t byte_token[256];           /* "Ġ", or "<0x20>" if not byte_level; -1: none */
    int16_t byte_of[BYTE_CODE_POINTS]; /* code point -> byte it spells, or -1 */
    char byte_spelling[256][3];        /* byte -> its spelling, NUL-terminated */
};

/* ---- the byte alphabet ---- */

/* The printable bytes of Latin-1 spell themselves; the others take the code points from 256 on. */
static void make_alphabet(struct bpe *bpe)
{
    uint32_t next = 256;

    memset(bpe->byte_of, -1, sizeof(bpe->byte_of));
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
        uint32_t code = printable ? (uint32_t)byte : next++;
        char utf8[4];
        int len = utf8_encode(code, utf8);
        memcpy(bpe->byte_spelling[byte], utf8, (size_t)len); /* 1 or 2 bytes */
        bpe->byte_of[code] = (int16_t)byte;
    }
}

/* Writes the bytes that a spelling stands for; false when it holds other characters. */
static bool spelled_bytes(const struct bpe *bpe, const char *spelling, size_t len,
                          struct buffer *out)
{
    for (size_t at = 0; at < len;) {
        uint32_t code;
        int size = utf8_decode(spelling + at, len - at, &code);
        ASSERT(size > 0); /* the JSON parser checked */
        if (code >= BYTE_CODE_POINTS || bpe->byte_of[code] < 0)
            return false;
        char byte = (char)bpe->byte_of[code];
        buffer_append(out, &byte, 1);
        at += (size_t)size;
    }
    return true;
}

/* ---- the vocabulary ---- */

static bool is_spelled(const struct bpe *bpe, uint32_t offset, const char *spelling, size_t len)
{
    const char *text = bpe->pool.data + offset;

    return strncmp(text, spelling, len) == 0 && text[len] == '\0';
}

/* The id of a spelling, or -1 and in `*free_hash` the key under which to add it. Where two
 * spellings share a hash, the second is under the hash of the next seed. */
static int32_t find_spelling(const struct bpe *bpe, const char *spelling, size_t len,
                             uint64_t *free_hash)
{
    for (uint64_t seed = 0;; seed++) {
        uint64_t hash = hash_bytes(spelling, len, seed), found;
        if (!hash_map_get(&bpe->by_spelling, hash, &found)) {
            *free_hash = hash;
            return -1;
        }
        if (is_spelled(bpe, (uint32_t)found, spelling, len))
            return (int32_t)(found >> 32);
    }
}

int32_t bpe_find(const struct bpe *bpe, const char *spelling, size_t len)
{
    uint64_t hash;

    return find_spelling(bpe, spelling, len, &hash);
}

static int add_token(struct bpe *bpe, const char *spelling, int32_t id, struct error *err)
{
    size_t len = strlen(spelling);
    uint64_t hash;
    struct token *token = &bpe->tokens[bpe->tokens_n];

    if (len > SPELLING_MAX)
        return error_set(err, "the token with id %d is longer than %d bytes", id, SPELLING_MAX);
    if (find_spelling(bpe, spelling, len, &hash) >= 0)
        return error_set(err, "\"vocab\" has the token \"%.100s\" twice", spelling);
    *token = (struct token){.spelling = (uint32_t)bpe->pool.len, .id = id};
    buffer_append(&bpe->pool, spelling, len + 1);
    token->bytes = (uint32_t)bpe->pool.len;
    if (bpe->byte_level && spelled_bytes(bpe, spelling, len, &bpe->pool)) {
        token->bytes_len = (uint32_t)(bpe->pool.len - token->bytes);
    } else { /* what was written of the bytes is left over */
        token->bytes = token->spelling;
        token->bytes_len = (uint32_t)len;
    }
    if (bpe->pool.overflowed)
        return error_set(err, "the tokens of the vocabulary are too long");
    hash_map_set(&bpe->by_spelling, hash, (uint64_t)id << 32 | token->spelling);
    bpe->tokens_n++;
    bpe->longest = len > bpe->longest ? len : bpe->longest;
    return 0;
}

/* Fills what is looked up by id and by byte, once all tokens are known. */
static void index_tokens(struct bpe *bpe)
{
    for (size_t i = 0; i < bpe->tokens_n; i++)
        if (bpe->tokens[i].id >= bpe->size)
            bpe->size = bpe->tokens[i].id + 1;
    bpe->by_id = mem_alloc((size_t)bpe->size * sizeof(*bpe->by_id));
    memset(bpe->by_id, -1, (size_t)bpe->size * sizeof(*bpe->by_id));
    for (size_t i = 0; i < bpe->tokens_n; i++)
        bpe->by_id[bpe->tokens[i].id] = (int32_t)i;
    for (int byte = 0; byte < 256; byte++) {
        char code[8];
        snprintf(code, sizeof(code), "<0x%02X>", (unsigned)byte);
        const char *spelling = bpe->byte_level ? bpe->byte_spelling[byte] : code;
        bpe->byte_token[byte] = bpe_find(bpe, spelling, strlen(spelling));
    }
}

static int load_vocab(struct bpe *bpe, const struct json *vocab, struct error *err)
{
    if (!json_is(vocab, JSON_OBJECT) || json_count(vocab) == 0)
        return error_set(err, "\"vocab\" must be an object of tokens and their ids");
    size_t count = json_count(vocab);
    bpe->tokens = mem_zalloc(count, sizeof(*bpe->tokens));
    hash_map_init(&bpe->by_spelling, count);
    for (const struct json *m = json_first(vocab); m; m = json_next(m)) {
        int64_t id;
        if (!json_integer(m, &id) || id < 0 || id >= ID_MAX)
            return error_set(err, "\"vocab\": the id of \"%.100s\" must be an integer from 0 to %d",
                             json_key(m), ID_MAX - 1);
        if (add_token(bpe, json_key(m), (int32_t)id, err))
            return -1;
    }
    index_tokens(bpe);
    return 0;
}

/* ---- the merges ---- */

/* The two sides of a merge, written "a b" or ["a", "b"]. */
static int merge_sides(const struct json *merge, const char *side[2], size_t len[2])
{
    if (json_is(merge, JSON_STRING)) {
        side[0] = json_string(merge);
        const char *space = strchr(side[0], ' ');
        if (!space || strchr(space + 1, ' '))
            return -1;
        side[1] = space + 1;
        len[0] = (size_t)(space - side[0]);
        len[1] = strlen(side[1]);
        return 0;
    }
    if (!json_is(merge, JSON_ARRAY) || json_count(merge) != 2)
        return -1;
    const struct json *item = json_first(merge);
    for (int i = 0; i < 2; i++, item = json_next(item)) {
        if (!json_is(item, JSON_STRING))
            return -1;
        side[i] = json_string(item);
        len[i] = strlen(side[i]);
    }
    return 0;
}

/* The id of the token that a merge makes, or -1. Vocabularies list tokens in the order of the
 * merges that make them, so the one after the last merge's is tried before the slow look-up. */
static int32_t find_merged(const struct bpe *bpe, const char *joined, size_t len)
{
    int32_t last = bpe->merges_n > 0 ? bpe->merged[bpe->merges_n - 1] : -1;
    size_t next = last < 0 ? 0 : (size_t)bpe->by_id[last] + 1;

    if (next < bpe->tokens_n && is_spelled(bpe, bpe->tokens[next].spelling, joined, len))
        return bpe->tokens[next].id;
    return bpe_find(bpe, joined, len);
}

static int add_merge(struct bpe *bpe, const struct json *merge, struct error *err)
{
    char joined[2 * SPELLING_MAX];
    const char *side[2];
    size_t len[2];
    int32_t left, right, both = -1;

    if (merge_sides(merge, side, len))
        return error_set(err, "\"merges\": number %zu must be \"a b\" or [\"a\", \"b\"]",
                         bpe->merges_n + 1);
    left = bpe_find(bpe, side[0], len[0]);
    right = bpe_find(bpe, side[1], len[1]);
    if (left >= 0 && right >= 0) { /* so neither is longer than SPELLING_MAX */
        memcpy(joined, side[0], len[0]);
        memcpy(joined + len[0], side[1], len[1]);
        both = find_merged(bpe, joined, len[0] + len[1]);
    }
    if (both < 0)
        return error_set(err,
                         "\"merges\": number %zu (\"%.100s\") needs a token that \"vocab\" "
                         "does not have",
                         bpe->merges_n + 1, side[0]);
    /* A pair that comes again takes the later rank, as in `tokenizers`. */
    hash_map_set(&bpe->merges, (uint64_t)left << 32 | (uint32_t)right, bpe->merges_n);
    bpe->merged[bpe->merges_n++] = both;
    return 0;
}

static int load_merges(struct bpe *bpe, const struct json *merges, struct error *err)
{
    if (!json_is(merges, JSON_ARRAY))
        return error_set(err, "\"merges\" must be an array");
    size_t count = json_count(merges);
    bpe->merged = mem_zalloc(count + 1, sizeof(*bpe->merged));
    hash_map_init(&bpe->merges, count);
    for (const struct json *m = json_first(merges); m; m = json_next(m)) {
        if (json_is(m, JSON_STRING) && strncmp(json_string(m), "#version", 8) == 0)
            continue; /* the head line of an old merges.txt */
        if (add_merge(bpe, m, err))
            return -1;
    }
    return 0;
}

/* ---- merges by rank ---- */

/* Makes the merges of a vocabulary that has none: every way to cut a token into two tokens merges
 * to it, and its id is the rank. */
static void rank_merges(struct bpe *bpe)
{
    bpe->merged = mem_zalloc((size_t)bpe->size, sizeof(*bpe->merged));
    hash_map_init(&bpe->merges, 2 * bpe->tokens_n);
    for (size_t i = 0; i < bpe->tokens_n; i++) {
        const struct token *token = &bpe->tokens[i];
        const char *spelling = bpe->pool.data + token->spelling, *at = spelling;
        size_t len = strlen(spelling);
        bpe->merged[token->id] = token->id;
        for (;;) {
            at += utf8_decode(at, len - (size_t)(at - spelling), NULL);
            size_t left_len = (size_t)(at - spelling);
            if (left_len == len)
                break;
            int32_t left = bpe_find(bpe, spelling, left_len);
            int32_t right = left < 0 ? -1 : bpe_find(bpe, at, len - left_len);
            if (right >= 0)
                hash_map_set(&bpe->merges, (uint64_t)left << 32 | (uint32_t)right,
                             (uint64_t)token->id);
        }
    }
    bpe->merges_n = (size_t)bpe->size;
}

static int load_ranks(struct bpe *bpe, const struct ranked_token *tokens, size_t count,
                      struct error *err)
{
    struct buffer spelling;
    int rc = 0;

    bpe->tokens = mem_zalloc(count + 1, sizeof(*bpe->tokens));
    hash_map_init(&bpe->by_spelling, count);
    buffer_init(&spelling, SPELLING_MAX);
    for (size_t i = 0; i < count && !rc; i++) {
        buffer_clear(&spelling);
        for (size_t j = 0; j < tokens[i].len; j++)
            buffer_append_str(&spelling, bpe->byte_spelling[(unsigned char)tokens[i].bytes[j]]);
        if (spelling.len == 0 || spelling.overflowed)
            rc = error_set(err, "the token with id %d must have 1 to %d bytes", tokens[i].id,
                           SPELLING_MAX / 2);
        else if (tokens[i].id < 0 || tokens[i].id >= ID_MAX)
            rc = error_set(err, "the rank of a token must be from 0 to %d", ID_MAX - 1);
        else
            rc = add_token(bpe, spelling.data, tokens[i].id, err);
    }
    buffer_free(&spelling);
    if (rc)
        return -1;
    index_tokens(bpe);
    for (int byte = 0; byte < 256; byte++)
        if (bpe->byte_token[byte] < 0)
            return error_set(err, "there is no token for the byte 0x%02X", (unsigned)byte);
    rank_merges(bpe);
    return 0;
}

/* ---- loading ---- */

/* Whether a setting is missing, null, false, 0 or "". */
static bool is_off(const struct json *value)
{
    return !value || json_is(value, JSON_NULL) ||
           (json_is(value, JSON_BOOL) && !json_bool(value)) ||
           (json_is(value, JSON_NUMBER) && json_number(value) == 0) ||
           (json_is(value, JSON_STRING) && json_string(value)[0] == '\0');
}

/* Settings that change what a word becomes must be off, but that a vocabulary of characters may
 * have byte_fallback and an unknown token. */
static int check_settings(const struct bpe *bpe, const struct json *model, struct error *err)
{
    static const char *const names[] = {"dropout", "continuing_subword_prefix",
                                        "end_of_word_suffix", "unk_token", "byte_fallback"};
    size_t count = sizeof(names) / sizeof(names[0]) - (bpe->byte_level ? 0 : 2);
    const struct json *type = json_get(model, "type");

    if (!json_is(model, JSON_OBJECT))
        return error_set(err, "it must be an object");
    if (type && (!json_is(type, JSON_STRING) || strcmp(json_string(type), "BPE") != 0))
        return error_set(err, "the type \"%s\" is not supported; BPE is",
                         json_is(type, JSON_STRING) ? json_string(type) : json_type_name(type));
    for (size_t i = 0; i < count; i++)
        if (!is_off(json_get(model, names[i])))
            return error_set(err, "\"%s\" is set, which is not supported%s", names[i],
                             i < 3 ? "" : " in byte-level BPE");
    return 0;
}

/* What becomes of characters that are not in the vocabulary. */
static int load_unknown(struct bpe *bpe, const struct json *model, struct error *err)
{
    const struct json *unknown = json_get(model, "unk_token");

    bpe->byte_fallback = !is_off(json_get(model, "byte_fallback"));
    bpe->fuse_unknown = !is_off(json_get(model, "fuse_unk"));
    bpe->unknown = -1;
    if (is_off(unknown))
        return 0;
    if (!json_is(unknown, JSON_STRING))
        return error_set(err, "\"unk_token\" must be a string");
    bpe->unknown = bpe_find(bpe, json_string(unknown), strlen(json_string(unknown)));
    return bpe->unknown >= 0 ? 0
                             : error_set(err, "the unk_token \"%.100s\" is not in \"vocab\"",
                                         json_string(unknown));
}

static struct bpe *bpe_new(bool byte_level)
{
    struct bpe *bpe = mem_zalloc(1, sizeof(*bpe));

    make_alphabet(bpe);
    buffer_init(&bpe->pool, (size_t)1 << 30);
    bpe->byte_level = byte_level;
    return bpe;
}

struct bpe *bpe_load(const struct json *model, bool byte_level, struct error *err)
{
    struct bpe *bpe = bpe_new(byte_level);

    bpe->ignore_merges = !is_off(json_get(model, "ignore_merges"));
    if (check_settings(bpe, model, err) || load_vocab(bpe, json_get(model, "vocab"), err) ||
        load_merges(bpe, json_get(model, "merges"), err) || load_unknown(bpe, model, err)) {
        error_prefix(err, "model");
        bpe_free(bpe);
        return NULL;
    }
    return bpe;
}

struct bpe *bpe_from_ranks(const struct ranked_token *tokens, size_t count, struct error *err)
{
    struct bpe *bpe = bpe_new(true);

    bpe->ignore_merges = true;
    if (load_ranks(bpe, tokens, count, err)) {
        bpe_free(bpe);
        return NULL;
    }
    return bpe;
}

void bpe_free(struct bpe *bpe)
{
    if (!bpe)
        return;
    free(bpe->tokens);
    buffer_free(&bpe->pool);
    hash_map_free(&bpe->by_spelling);
    free(bpe->by_id);
    hash_map_free(&bpe->merges);
    free(bpe->merged);
    free(bpe);
}

int32_t bpe_size(const struct bpe *bpe)
{
    return bpe->size;
}

const char *bpe_bytes(const struct bpe *bpe, int32_t id, size_t *len)
{
    if (id < 0 || id >= bpe->size || bpe->by_id[id] < 0)
        return NULL;
    const struct token *token = &bpe->tokens[bpe->by_id[id]];
    *len = token->bytes_len;
    return bpe->pool.data + token->bytes;
}

/* ---- encoding a word ---- */

/* The word is a doubly linked list of symbols in an array; a joined symbol stays at the index of
 * its left part, and the right part is marked dead. The heap holds the candidate merges as rank <<
 * 32 | index of the left symbol, so the smallest is the next to do; entries that later merges made
 * stale are recognised when they come up. */
struct symbol {
    int32_t id; /* -1: dead */
    uint32_t previous, next;
};

enum { NO_SYMBOL = UINT32_MAX };

struct bpe_scratch {
    struct symbol *symbols;
    size_t symbols_cap;
    uint64_t *heap;
    size_t heap_len, heap_cap;
    struct buffer spelling;
};

struct bpe_scratch *bpe_scratch_new(void)
{
    struct bpe_scratch *scratch = mem_zalloc(1, sizeof(*scratch));

    buffer_init(&scratch->spelling, 2 * SPELLING_MAX);
    return scratch;
}

void bpe_scratch_free(struct bpe_scratch *scratch)
{
    if (!scratch)
        return;
    free(scratch->symbols);
    free(scratch->heap);
    buffer_free(&scratch->spelling);
    free(scratch);
}

static void heap_push(struct bpe_scratch *s, uint64_t entry)
{
    if (s->heap_len == s->heap_cap) {
        s->heap_cap = s->heap_cap ? 2 * s->heap_cap : 64;
        s->heap = mem_resize(s->heap, s->heap_cap, sizeof(*s->heap));
    }
    size_t at = s->heap_len++;
    while (at > 0 && s->heap[(at - 1) / 2] > entry) {
        s->heap[at] = s->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    s->heap[at] = entry;
}

static uint64_t heap_pop(struct bpe_scratch *s)
{
    uint64_t top = s->heap[0], last = s->heap[--s->heap_len];
    size_t at = 0;

    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < s->heap_len && s->heap[child + 1] < s->heap[child])
            child++;
        if (child >= s->heap_len || s->heap[child] >= last)
            break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = last;
    return top;
}

/* Rank of the merge of the symbol at `left` with the next one; false when there is none. */
static bool merge_rank(const struct bpe *bpe, const struct bpe_scratch *s, uint32_t left,
                       uint64_t *rank)
{
    const struct symbol *symbol = &s->symbols[left];

    if (symbol->next == NO_SYMBOL)
        return false;
    uint64_t pair = (uint64_t)symbol->id << 32 | (uint32_t)s->symbols[symbol->next].id;
    return hash_map_get(&bpe->merges, pair, rank);
}

static void push_merge(const struct bpe *bpe, struct bpe_scratch *s, uint32_t left)
{
    uint64_t rank;

    if (left != NO_SYMBOL && merge_rank(bpe, s, left, &rank))
        heap_push(s, rank << 32 | left);
}

static uint32_t add_symbol(struct bpe_scratch *s, uint32_t n, int32_t id)
{
    s->symbols[n] = (struct symbol){id, n - 1, n + 1}; /* 0 - 1 is NO_SYMBOL */
    return n + 1;
}

/* One symbol a byte. Returns how many there are. */
static uint32_t start_bytes(const struct bpe *bpe, struct bpe_scratch *s, const char *word,
                            size_t len)
{
    uint32_t n = 0;

    for (size_t i = 0; i < len; i++) {
        int32_t id = bpe->byte_token[(unsigned char)word[i]];
        if (id >= 0)
            n = add_symbol(s, n, id);
    }
    return n;
}

/* The symbols of a character's bytes; `n` as it was when one of them has none. */
static uint32_t add_fallback(const struct bpe *bpe, struct bpe_scratch *s, uint32_t n,
                             const char *character, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (bpe->byte_token[(unsigned char)character[i]] < 0)
            return n;
    for (size_t i = 0; i < size; i++)
        n = add_symbol(s, n, bpe->byte_token[(unsigned char)character[i]]);
    return n;
}

/* One symbol a character, or what stands in for it. An unknown token waits for the next character
 * that has a token of its own, also past those that became bytes, as in `tokenizers`. */
static uint32_t start_characters(const struct bpe *bpe, struct bpe_scratch *s, const char *word,
                                 size_t len)
{
    uint32_t n = 0, before;
    bool waiting = false;

    for (size_t at = 0, size; at < len; at += size) {
        size = (size_t)utf8_decode(word + at, len - at, NULL);
        int32_t id = bpe_find(bpe, word + at, size);
        if (id >= 0) {
            n = waiting ? add_symbol(s, n, bpe->unknown) : n;
            n = add_symbol(s, n, id);
            waiting = false;
            continue;
        }
        before = n;
        if (bpe->byte_fallback)
            n = add_fallback(bpe, s, n, word + at, size);
        if (n > before || bpe->unknown < 0)
            continue;
        if (waiting && !bpe->fuse_unknown)
            n = add_symbol(s, n, bpe->unknown);
        waiting = true;
    }
    return waiting ? add_symbol(s, n, bpe->unknown) : n;
}

/* The symbols before any merge, and the merges of neighbours. Returns how many symbols. */
static uint32_t start_word(const struct bpe *bpe, struct bpe_scratch *s, const char *word,
                           size_t len)
{
    if (len > s->symbols_cap) {
        s->symbols_cap = len;
        s->symbols = mem_resize(s->symbols, len, sizeof(*s->symbols));
    }
    uint32_t n =
        bpe->byte_level ? start_bytes(bpe, s, word, len) : start_characters(bpe, s, word, len);
    if (n > 0)
        s->symbols[n - 1].next = NO_SYMBOL;
    s->heap_len = 0;
    for (uint32_t i = 0; i < n; i++)
        push_merge(bpe, s, i);
    return n;
}

static void merge_all(const struct bpe *bpe, struct bpe_scratch *s)
{
    while (s->heap_len > 0) {
        uint64_t entry = heap_pop(s), rank;
        uint32_t left = (uint32_t)entry;
        int32_t merged = bpe->merged[entry >> 32];
        struct symbol *symbol = &s->symbols[left];

        if (symbol->id < 0 || !merge_rank(bpe, s, left, &rank) || bpe->merged[rank] != merged)
            continue; /* stale */
        struct symbol *right = &s->symbols[symbol->next];
        symbol->id = merged;
        symbol->next = right->next;
        right->id = -1;
        if (symbol->next != NO_SYMBOL)
            s->symbols[symbol->next].previous = left;
        push_merge(bpe, s, symbol->previous);
        push_merge(bpe, s, left);
    }
}

/* The token that spells the whole word, or -1. */
static int32_t find_word(const struct bpe *bpe, struct bpe_scratch *s, const char *word, size_t len)
{
    if (len > bpe->longest) /* a spelling is at least as long as its bytes */
        return -1;
    if (!bpe->byte_level)
        return bpe_find(bpe, word, len);
    buffer_clear(&s->spelling);
    for (size_t i = 0; i < len; i++)
        buffer_append_str(&s->spelling, bpe->byte_spelling[(unsigned char)word[i]]);
    return bpe_find(bpe, s->spelling.data, s->spelling.len);
}

int bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word, size_t len,
               struct token_list *out)
{
    ASSERT(len > 0 && len < NO_SYMBOL);
    if (bpe->ignore_merges) {
        int32_t id = find_word(bpe, scratch, word, len);
        if (id >= 0)
            return token_list_push(out, id);
    }
    if (start_word(bpe, scratch, word, len) == 0)
        return 0;
    merge_all(bpe, scratch);
    for (uint32_t i = 0; i != NO_SYMBOL; i = scratch->symbols[i].next)
        if (token_list_push(out, scratch->symbols[i].id))
            return -1;
    return 0;
}
