#include "model/vocabulary_trie.h"

#include "base/memory.h"
#include "base/utf8.h"
#include "model/output_format.h"

#include <stdlib.h>
#include <string.h>

enum { TOKEN_MAX_BYTES = 1024 }; /* longer tokens are never allowed */

/* Bytes of the markers of calls, by their index. */
static const char marker_bytes[CALL_MARKERS_MAX] = {'\xF8', '\xF9', '\xFA', '\xFB',
                                                    '\xFC', '\xFD', '\xFE', '\xFF'};

/* One token while the trie is built. */
struct entry {
    const char *bytes;
    size_t len;
    int32_t id;
    uint8_t plain; /* characters of a plain token, or NOT_PLAIN */
};

static int compare_entries(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->len < y->len ? x->len : y->len);

    if (order == 0)
        order = (x->len > y->len) - (x->len < y->len);
    return order ? order : (x->id > y->id) - (x->id < y->id);
}

bool vocabulary_is_plain(uint32_t c)
{
    return c >= 0x20 && c != '"' && c != '\\' && c != 0x2028 && c != 0x2029;
}

/* The number of characters of a plain token, or NOT_PLAIN. */
static uint8_t plain_length(const struct entry *e)
{
    uint32_t codepoint;
    uint8_t characters = 0;

    for (size_t at = 0; at < e->len; characters++) {
        int size = utf8_decode(e->bytes + at, e->len - at, &codepoint);
        if (size <= 0 || !vocabulary_is_plain(codepoint) || characters == PLAIN_MAX_CHARACTERS)
            return NOT_PLAIN;
        at += (size_t)size;
    }
    return characters;
}

/* Whether the tokenizer takes the token's own text for a marker: as user text it becomes something
 * else. */
static bool is_marker(const struct tokenizer *tok, const struct entry *e)
{
    char first = e->bytes[0], last = e->bytes[e->len - 1];
    struct token_list ids;
    struct error err;
    bool found[2] = {false, false};

    if (!(first == '<' && last == '>') && !(first == '[' && last == ']'))
        return false;
    for (int as_text = 0; as_text < 2; as_text++) {
        token_list_init(&ids, TOKEN_MAX_BYTES);
        enum encode_mode mode = as_text ? ENCODE_TEXT_ONLY : ENCODE_WITH_SPECIALS;
        if (tokenizer_encode(tok, e->bytes, e->len, mode, &ids, &err) == 0)
            found[as_text] = ids.len == 1 && ids.ids[0] == e->id;
        token_list_free(&ids);
    }
    return found[0] && !found[1];
}

static bool has_strange_byte(const struct entry *e)
{
    for (size_t i = 0; i < e->len; i++)
        if ((uint8_t)e->bytes[i] >= 0xF8)
            return true;
    return false;
}

/* ---- markers of calls ---- */

/* The index of the marker with this id, or -1. */
static int marker_of(const struct vocabulary_trie *trie, int32_t id)
{
    for (int i = 0; i < trie->markers_n; i++)
        if (trie->markers[i].id == id)
            return i;
    return -1;
}

/* Adds the markers of the format that a part of its calls (NULL: none) holds. False when the
 * vocabulary lacks one. */
static bool add_markers(struct vocabulary_trie *trie, const struct output_format *format,
                        const char *part)
{
    for (int i = 0; part && i < OUTPUT_MAX_MARKERS && format->tokens[i]; i++) {
        int32_t id = tokenizer_id(trie->tok, format->tokens[i]);
        if (!strstr(part, format->tokens[i]) || (id >= 0 && marker_of(trie, id) >= 0))
            continue;
        if (id < 0 || id >= trie->size || trie->markers_n == CALL_MARKERS_MAX)
            return false;
        trie->markers[trie->markers_n++] = (struct call_marker){format->tokens[i], id};
    }
    return true;
}

/* Sets `call` and `markers`. */
static void find_markers(struct vocabulary_trie *trie)
{
    const struct output_format *format = output_format_find(trie->tok);
    const struct call_syntax *call = &format->calls[0];
    const struct pair_tags none = {0}, *tags = call->tags ? call->tags : &none;
    const char *const parts[] = {call->name_end,    tags->key_begin,  tags->key_end,
                                 tags->value_begin, tags->json_begin, tags->value_end,
                                 tags->call_end};
    bool complete = output_format_has_calls(format);

    for (size_t i = 0; complete && i < sizeof(parts) / sizeof(*parts); i++)
        complete = add_markers(trie, format, parts[i]);
    if (complete)
        trie->call = call;
    else
        trie->markers_n = 0;
}

void vocabulary_trie_syntax(const struct vocabulary_trie *trie, const char *part,
                            struct buffer *out)
{
    while (*part) {
        size_t len = 1;
        const char *bytes = part;
        for (int i = 0; i < trie->markers_n; i++) {
            const char *text = trie->markers[i].text;
            if (strncmp(part, text, strlen(text)) == 0) {
                len = strlen(text);
                bytes = &marker_bytes[i];
            }
        }
        buffer_append(out, bytes, 1);
        part += len;
    }
}

/* ---- building ---- */

/* The ordinary tokens, and the markers, in ascending order of their bytes; `*count` of them. */
static struct entry *collect_entries(const struct vocabulary_trie *trie, size_t *count)
{
    int32_t known = tokenizer_size(trie->tok);
    struct entry *entries = mem_zalloc((size_t)known + CALL_MARKERS_MAX, sizeof(*entries));

    *count = 0;
    for (int32_t id = 0; id < known && id < trie->size; id++) {
        struct entry e = {.id = id};
        e.bytes = tokenizer_bytes(trie->tok, id, &e.len);
        if (e.len == 0 || e.len > TOKEN_MAX_BYTES || tokenizer_is_special(trie->tok, id) ||
            vocabulary_trie_is_end(trie, id) || has_strange_byte(&e) || is_marker(trie->tok, &e) ||
            marker_of(trie, id) >= 0)
            continue;
        e.plain = plain_length(&e);
        trie->ordinary[id] = true;
        entries[(*count)++] = e;
    }
    for (int i = 0; i < trie->markers_n; i++) {
        trie->ordinary[trie->markers[i].id] = true;
        entries[(*count)++] = (struct entry){&marker_bytes[i], 1, trie->markers[i].id, NOT_PLAIN};
    }
    qsort(entries, *count, sizeof(*entries), compare_entries);
    return entries;
}

/* Makes the nodes of sorted entries. */
static void build_nodes(struct vocabulary_trie *trie, const struct entry *entries, size_t count)
{
    uint32_t path[TOKEN_MAX_BYTES + 1] = {0}; /* the node of each depth on the way to the last */
    const struct entry *last = NULL;
    size_t cap = 0;

    for (size_t i = 0; i < count; i++) {
        const struct entry *e = &entries[i];
        size_t shared = 0;
        while (last && shared < last->len && shared < e->len &&
               last->bytes[shared] == e->bytes[shared])
            shared++;
        if (last && shared == e->len) { /* sorted: then the two are equal */
            trie->same[last->id] = e->id;
            last = e;
            continue;
        }
        for (size_t d = shared + 1; last && d <= last->len; d++)
            trie->nodes[path[d]].skip = trie->count;
        for (size_t d = shared + 1; d <= e->len; d++) {
            if (trie->count == cap) {
                cap = cap ? 2 * cap : 1024;
                trie->nodes = mem_resize(trie->nodes, cap, sizeof(*trie->nodes));
            }
            path[d] = trie->count;
            trie->nodes[trie->count++] = (struct trie_node){
                .token = -1, .depth = (uint16_t)d, .byte = (uint8_t)e->bytes[d - 1]};
        }
        trie->nodes[path[e->len]].token = e->id;
        trie->nodes[path[e->len]].plain = e->plain;
        trie->depth = e->len > trie->depth ? (uint32_t)e->len : trie->depth;
        last = e;
    }
    for (size_t d = 1; last && d <= last->len; d++)
        trie->nodes[path[d]].skip = trie->count;
}

/* Spreads `plain` from the nodes of tokens to those above, and makes the masks. */
static void mark_plain(struct vocabulary_trie *trie, const struct entry *entries, size_t count)
{
    uint8_t below[TOKEN_MAX_BYTES + 2] = {0}; /* by depth: the largest since the last node above */

    for (uint32_t i = trie->count; i-- > 0;) { /* those below a node come after it */
        struct trie_node *n = &trie->nodes[i];
        n->plain = below[n->depth + 1] > n->plain ? below[n->depth + 1] : n->plain;
        below[n->depth + 1] = 0;
        below[n->depth] = n->plain > below[n->depth] ? n->plain : below[n->depth];
    }
    for (size_t i = 0; i < count; i++)
        for (size_t room = entries[i].plain; room <= PLAIN_MAX_CHARACTERS; room++)
            trie->plain[room * trie->mask_words + (size_t)entries[i].id / 32] |=
                1U << entries[i].id % 32;
}

/* Every byte that UTF-8 uses needs a token. */
static int check_bytes(const struct entry *entries, size_t count, struct error *err)
{
    bool there[256] = {false};

    for (size_t i = 0; i < count; i++)
        if (entries[i].len == 1)
            there[(uint8_t)entries[i].bytes[0]] = true;
    for (unsigned byte = 0; byte < 0xF5; byte++)
        if (!there[byte] && byte != 0xC0 && byte != 0xC1)
            return error_set(err,
                             "structured output needs a token for every byte, and the vocabulary "
                             "has none for the byte 0x%02X",
                             byte);
    return 0;
}

struct vocabulary_trie *vocabulary_trie_new(const struct tokenizer *tok, int32_t size,
                                            const int32_t *end_tokens, size_t end_tokens_n,
                                            struct error *err)
{
    struct vocabulary_trie *trie = mem_zalloc(1, sizeof(*trie));
    size_t count;

    *trie = (struct vocabulary_trie){.tok = tok,
                                     .size = size,
                                     .mask_words = ((size_t)size + 31) / 32,
                                     .end_tokens_n = end_tokens_n};
    trie->plain =
        mem_zalloc((PLAIN_MAX_CHARACTERS + 1UL) * trie->mask_words + 1, sizeof(*trie->plain));
    trie->same = mem_zalloc((size_t)size + 1, sizeof(*trie->same));
    trie->ordinary = mem_zalloc((size_t)size + 1, sizeof(*trie->ordinary));
    trie->end_tokens = mem_copy(end_tokens, end_tokens_n * sizeof(*end_tokens));
    memset(trie->same, 0xFF, ((size_t)size + 1) * sizeof(*trie->same));
    find_markers(trie);
    int rc = end_tokens_n ? 0 : error_set(err, "structured output needs a token that ends a text");
    for (size_t i = 0; i < end_tokens_n && !rc; i++)
        if (end_tokens[i] < 0 || end_tokens[i] >= size)
            rc = error_set(err, "the end token %d is not below %d", end_tokens[i], size);

    struct entry *entries = collect_entries(trie, &count);
    build_nodes(trie, entries, count);
    mark_plain(trie, entries, count);
    if (!rc)
        rc = check_bytes(entries, count, err);
    free(entries);
    if (!rc)
        return trie;
    vocabulary_trie_free(trie);
    return NULL;
}

void vocabulary_trie_free(struct vocabulary_trie *trie)
{
    if (!trie)
        return;
    free(trie->nodes);
    free(trie->plain);
    free(trie->same);
    free(trie->ordinary);
    free(trie->end_tokens);
    free(trie);
}

const char *vocabulary_trie_bytes(const struct vocabulary_trie *trie, int32_t id, size_t *len)
{
    int marker = marker_of(trie, id);

    if (marker < 0)
        return tokenizer_bytes(trie->tok, id, len);
    *len = 1;
    return &marker_bytes[marker];
}

bool vocabulary_trie_is_end(const struct vocabulary_trie *trie, int32_t id)
{
    for (size_t i = 0; i < trie->end_tokens_n; i++)
        if (trie->end_tokens[i] == id)
            return true;
    return false;
}
