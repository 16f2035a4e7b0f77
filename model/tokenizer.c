/* The parts of a tokenizer and how a text goes through them:
 *
 *   any bytes --utf8_replace--> UTF-8 --tiktoken_slice--> slices
 *             --added_tokens--> text between added tokens --normalizer, added_tokens--> and of
 * those
 *             --pretokenizer--> words --bpe--> ids
 *
 * Here are the choice of the file, the walk through the parts, and what is known of each id. */
#include "model/tokenizer.h"

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/utf8.h"
#include "model/tiktoken.h"
#include "model/tokenizer_parts.h"
#include "model/utf8_replace.h"

#include <stdlib.h>
#include <string.h>

enum { FILE_MAX = 256 * 1024 * 1024, TEXT_MAX = 1 << 30 };

static const size_t decoded_max = (size_t)1 << 31; /* bytes of all tokens */

/* What an id stands for. */
struct id_entry {
    const char *bytes; /* NULL: no token */
    size_t len;
    bool special;
};

struct tokenizer {
    struct tokenizer_parts parts;
    struct buffer decoded; /* the bytes of the tokens, where a decoder made them */
    struct id_entry *ids;
    int32_t ids_n;
    int32_t front[FRONT_MAX]; /* that go in front of a text */
    int n_front;
    int32_t eos; /* -1: none */
};

/* ---- loading ---- */

/* Has the decoder make the bytes of all ids from their spellings. */
static int decode_ids(struct tokenizer *tok, struct error *err)
{
    size_t *starts = mem_zalloc((size_t)tok->ids_n + 1, sizeof(*starts));

    for (int32_t id = 0; id < tok->ids_n; id++) {
        starts[id] = tok->decoded.len;
        if (tok->ids[id].bytes)
            token_decoder_append(&tok->parts.decoder, tok->ids[id].bytes, tok->ids[id].len,
                                 &tok->decoded);
    }
    starts[tok->ids_n] = tok->decoded.len;
    for (int32_t id = 0; id < tok->ids_n; id++) {
        if (tok->ids[id].bytes)
            tok->ids[id].bytes = tok->decoded.data + starts[id];
        tok->ids[id].len = starts[id + 1] - starts[id];
    }
    free(starts);
    return tok->decoded.overflowed ? error_set(err, "the tokens are too long") : 0;
}

/* Makes the table of ids; added tokens come before ordinary ones of the same id. */
static int index_ids(struct tokenizer *tok, struct error *err)
{
    size_t count;
    const struct added_token *added = added_tokens_all(tok->parts.added, &count);

    tok->ids_n = bpe_size(tok->parts.bpe);
    for (size_t i = 0; i < count; i++)
        if (added[i].id >= tok->ids_n)
            tok->ids_n = added[i].id + 1;
    tok->ids = mem_zalloc((size_t)tok->ids_n, sizeof(*tok->ids));
    for (int32_t id = 0; id < tok->ids_n; id++)
        tok->ids[id].bytes = bpe_bytes(tok->parts.bpe, id, &tok->ids[id].len);
    for (size_t i = 0; i < count; i++) {
        int32_t other = bpe_find(tok->parts.bpe, added[i].content, added[i].len);
        if (other >= 0 && other != added[i].id)
            return error_set(err,
                             "added_tokens: \"%.100s\" has the id %d, but %d in the vocabulary",
                             added[i].content, added[i].id, other);
        tok->ids[added[i].id] =
            (struct id_entry){added[i].match, added[i].match_len, added[i].special};
    }
    buffer_init(&tok->decoded, decoded_max);
    return tok->parts.decoder.byte_level ? 0 : decode_ids(tok, err);
}

/* A token that tokenizer_config.json names, as a string or an object; NULL: none. */
static const struct json *named_token(const struct json *config, const char *key)
{
    const struct json *token = json_get(config, key);

    return json_is(token, JSON_OBJECT) ? json_get(token, "content") : token;
}

/* Sets `front` from tokenizer_config.json, or where that is silent from the tokenizer's file; `eos`
 * from the first alone. */
static int set_front_and_eos(struct tokenizer *tok, const struct json *config, struct error *err)
{
    const struct json *add = json_get(config, "add_bos_token");
    const struct json *token = named_token(config, "bos_token");
    const struct json *eos = named_token(config, "eos_token");
    bool said = json_is(add, JSON_BOOL);

    tok->eos = json_is(eos, JSON_STRING) ? tokenizer_id(tok, json_string(eos)) : -1;
    if (said && json_bool(add) && json_is(token, JSON_STRING)) {
        tok->front[0] = tokenizer_id(tok, json_string(token));
        tok->n_front = 1;
        if (tok->front[0] < 0)
            return error_set(err,
                             "tokenizer_config.json: the bos_token \"%.100s\" is not in the "
                             "vocabulary",
                             json_string(token));
        return 0;
    }
    for (int i = 0; i < FRONT_MAX && tok->parts.front[i] && !(said && !json_bool(add)); i++) {
        int32_t id = tokenizer_id(tok, tok->parts.front[i]);
        if (id >= 0)
            tok->front[tok->n_front++] = id;
    }
    return 0;
}

static int load_json(struct tokenizer *tok, const char *path, struct error *err)
{
    struct json *root = json_parse_file(path, FILE_MAX, err);
    int rc = root ? 0 : -1;

    if (!rc && (tokenizer_parts_from_json(&tok->parts, root, err) || index_ids(tok, err)))
        rc = error_prefix(err, "%s", path);
    json_free(root);
    return rc;
}

/* Reads the file of the tokenizer, whichever is there. */
static int load_file(struct tokenizer *tok, const char *dir, const struct json *config,
                     struct error *err)
{
    char *json = path_join(dir, "tokenizer.json");
    char *tiktoken = path_join(dir, "tiktoken.model"), *tekken = path_join(dir, "tekken.json");
    int rc;

    if (!file_exists(json) && file_exists(tiktoken))
        rc =
            tokenizer_parts_from_tiktoken(&tok->parts, tiktoken, config, err) || index_ids(tok, err)
                ? -1
                : 0;
    else if (!file_exists(json) && file_exists(tekken))
        rc = tokenizer_parts_from_tekken(&tok->parts, tekken, err) || index_ids(tok, err) ? -1 : 0;
    else if (!file_exists(json))
        rc = error_set(err, "%s: holds no tokenizer.json, tiktoken.model or tekken.json", dir);
    else
        rc = load_json(tok, json, err);
    free(json);
    free(tiktoken);
    free(tekken);
    return rc;
}

struct tokenizer *tokenizer_load(const char *dir, struct error *err)
{
    char *path = path_join(dir, "tokenizer_config.json");
    struct tokenizer *tok = mem_zalloc(1, sizeof(*tok));
    struct json *config = NULL;
    int rc = 0;

    if (file_exists(path)) {
        config = json_parse_file(path, FILE_MAX, err);
        if (!config)
            rc = -1;
        else if (!json_is(config, JSON_OBJECT))
            rc = error_set(err, "%s: must hold a JSON object", path);
    }
    if (!rc)
        rc = load_file(tok, dir, config, err);
    if (!rc && set_front_and_eos(tok, config, err))
        rc = error_prefix(err, "%s", dir);
    json_free(config);
    free(path);
    if (rc) {
        tokenizer_free(tok);
        return NULL;
    }
    return tok;
}

struct tokenizer *tokenizer_parse(const char *json, size_t len, struct error *err)
{
    struct tokenizer *tok = mem_zalloc(1, sizeof(*tok));
    struct json *root = json_parse(json, len, err);
    int rc =
        root && tokenizer_parts_from_json(&tok->parts, root, err) == 0 ? index_ids(tok, err) : -1;

    json_free(root);
    if (rc || set_front_and_eos(tok, NULL, err)) {
        tokenizer_free(tok);
        return NULL;
    }
    return tok;
}

void tokenizer_free(struct tokenizer *tok)
{
    if (!tok)
        return;
    free(tok->ids);
    buffer_free(&tok->decoded);
    tokenizer_parts_free(&tok->parts);
    free(tok);
}

/* ---- lists of tokens ---- */

void token_list_init(struct token_list *list, size_t max)
{
    *list = (struct token_list){.max = max};
}

void token_list_free(struct token_list *list)
{
    free(list->ids);
    token_list_init(list, list->max);
}

int token_list_push(struct token_list *list, int32_t id)
{
    if (list->len == list->max)
        return -1;
    if (list->len == list->cap) {
        list->cap = list->cap ? 2 * list->cap : 64;
        list->ids = mem_resize(list->ids, list->cap, sizeof(*list->ids));
    }
    list->ids[list->len++] = id;
    return 0;
}

/* ---- encoding ---- */

/* One call of tokenizer_encode. */
struct encoding {
    const struct tokenizer_parts *parts;
    struct pattern_scratch *pattern_scratch;
    struct bpe_scratch *bpe_scratch;
    struct token_list *out;
    struct error *err;
};

static int list_full(const struct encoding *e)
{
    return error_set(e->err, "the text has more than %zu tokens", e->out->max);
}

/* A word_function. */
static int encode_word(void *context, const char *word, size_t len)
{
    struct encoding *e = context;

    return bpe_encode(e->parts->bpe, e->bpe_scratch, word, len, e->out) ? list_full(e) : 0;
}

/* Whether a match is a marker that has a foreign byte: one that is marked in the text. */
static bool is_foreign(const struct marked_text *text, const struct added_match *match)
{
    size_t len = match->token->match_len;

    if (!text->marks || !added_token_is_marker(match->token))
        return false;
    return memchr(text->marks + match->search - len, 1, len) != NULL;
}

static int encode_text(struct encoding *e, struct marked_text text, bool is_first,
                       enum added_kind kind);

/* Normalizes a text that has no raw added tokens, and encodes it with those of `kind`. */
static int encode_normalized(struct encoding *e, struct marked_text text, bool is_first,
                             enum added_kind kind)
{
    struct normalized memory;

    if (normalizer_is_empty(e->parts->normalizer))
        return encode_text(e, text, is_first, kind);
    normalized_init(&memory);
    int rc = normalizer_apply(e->parts->normalizer, e->pattern_scratch, &text, &memory, e->err);
    if (!rc)
        rc = encode_text(e, text, is_first, kind);
    normalized_free(&memory);
    return rc;
}

/* Encodes a text in which the added tokens of `kind`, and then of those after it, are recognised.
 * `is_first`: it is the beginning of the whole text. */
static int encode_text(struct encoding *e, struct marked_text text, bool is_first,
                       enum added_kind kind)
{
    struct added_match match = {0};
    size_t done = 0;
    int found;

    do {
        found = added_tokens_next(e->parts->added, kind, e->pattern_scratch, text.text, text.len,
                                  &match, e->err);
        size_t start = found ? match.start : text.len;
        if (found < 0)
            return -1;
        if (found && is_foreign(&text, &match)) { /* text like any other */
            match.search -= match.token->match_len - 1;
            match.end = done;
            continue;
        }
        if (start > done) {
            struct marked_text part = {text.text + done, text.marks ? text.marks + done : NULL,
                                       start - done};
            bool first = is_first && done == 0;
            int rc = kind == ADDED_RAW
                         ? encode_normalized(e, part, first, ADDED_NORMALIZED)
                         : pretokenizer_split(e->parts->pre, e->pattern_scratch, part.text,
                                              part.len, first, encode_word, e, e->err);
            if (rc)
                return rc;
        }
        if (found && token_list_push(e->out, match.token->id))
            return list_full(e);
        done = match.end;
    } while (found);
    return 0;
}

/* Encodes a whole text of valid UTF-8, slice by slice. */
static int encode_slices(const struct tokenizer *tok, struct marked_text text, enum added_kind kind,
                         struct token_list *out, struct error *err)
{
    struct encoding e = {.parts = &tok->parts, .out = out, .err = err};
    struct tiktoken_slices walk = {.text = text.text, .len = text.len};
    int rc = 0;

    e.pattern_scratch = pattern_scratch_new();
    e.bpe_scratch = bpe_scratch_new();
    for (size_t at = 0, len; !rc && at < text.len; at += len) {
        len = tok->parts.in_slices ? tiktoken_slice(&walk) : text.len;
        struct marked_text slice = {text.text + at, text.marks ? text.marks + at : NULL, len};
        rc = kind == ADDED_RAW ? encode_text(&e, slice, at == 0, kind)
                               : encode_normalized(&e, slice, at == 0, kind);
    }
    bpe_scratch_free(e.bpe_scratch);
    pattern_scratch_free(e.pattern_scratch);
    return rc;
}

int tokenizer_encode_marked(const struct tokenizer *tok, const char *text, size_t len,
                            const uint8_t *foreign, struct token_list *out, struct error *err)
{
    ASSERT(utf8_valid(text, len));
    if (len > TEXT_MAX)
        return error_set(err, "the text is longer than %d bytes", (int)TEXT_MAX);
    return encode_slices(tok, (struct marked_text){text, foreign, len}, ADDED_RAW, out, err);
}

int tokenizer_encode(const struct tokenizer *tok, const char *text, size_t len,
                     enum encode_mode mode, struct token_list *out, struct error *err)
{
    struct buffer clean;

    if (len > TEXT_MAX)
        return error_set(err, "the text is longer than %d bytes", (int)TEXT_MAX);
    if (len == 0)
        return 0;
    buffer_init(&clean, 3 * (size_t)TEXT_MAX); /* U+FFFD has 3 bytes */
    if (!utf8_valid(text, len)) {
        utf8_replace(text, len, true, &clean);
        text = clean.data;
        len = clean.len;
    }
    int rc = encode_slices(tok, (struct marked_text){text, NULL, len},
                           mode == ENCODE_TEXT_ONLY ? ADDED_PLAIN : ADDED_RAW, out, err);
    buffer_free(&clean);
    return rc;
}

/* ---- ids ---- */

int32_t tokenizer_size(const struct tokenizer *tok)
{
    return tok->ids_n;
}

int32_t tokenizer_id(const struct tokenizer *tok, const char *content)
{
    size_t len = strlen(content);
    const struct added_token *added = added_tokens_get(tok->parts.added, content, len);

    return added ? added->id : bpe_find(tok->parts.bpe, content, len);
}

bool tokenizer_is_special(const struct tokenizer *tok, int32_t id)
{
    return id >= 0 && id < tok->ids_n && tok->ids[id].special;
}

const char *tokenizer_bytes(const struct tokenizer *tok, int32_t id, size_t *len)
{
    bool known = id >= 0 && id < tok->ids_n && tok->ids[id].bytes;

    *len = known ? tok->ids[id].len : 0;
    return known ? tok->ids[id].bytes : NULL;
}

const int32_t *tokenizer_front(const struct tokenizer *tok, int *n)
{
    *n = tok->n_front;
    return tok->front;
}

int32_t tokenizer_eos(const struct tokenizer *tok)
{
    return tok->eos;
}

/* ---- decoding ---- */

void detokenizer_init(struct detokenizer *detok)
{
    *detok = (struct detokenizer){0};
}

void detokenizer_init_whole(struct detokenizer *detok)
{
    *detok = (struct detokenizer){.at_start = true};
}

/* Decodes what is pending, which keeps what is unfinished. Returns how many bytes were used. */
static size_t flush_pending(struct detokenizer *detok, struct buffer *out)
{
    size_t used = utf8_replace(detok->pending, detok->pending_len, false, out);

    detok->pending_len -= used;
    memmove(detok->pending, detok->pending + used, detok->pending_len);
    return used;
}

static void push_bytes(struct detokenizer *detok, const char *bytes, size_t len, struct buffer *out)
{
    size_t old = detok->pending_len;

    ASSERT(old < 4); /* an unfinished character */
    if (old > 0) {
        /* Enough of the new bytes to complete it: then the rest goes on at a whole character. */
        size_t taken = len < sizeof(detok->pending) - old ? len : sizeof(detok->pending) - old;
        memcpy(detok->pending + old, bytes, taken);
        detok->pending_len += taken;
        size_t used = flush_pending(detok, out);
        if (used < old)
            return; /* still unfinished with all of the token */
        bytes += used - old;
        len -= used - old;
    }
    size_t used = utf8_replace(bytes, len, false, out);
    detok->pending_len = len - used;
    memcpy(detok->pending, bytes + used, detok->pending_len);
}

/* Tokens at the start of a text, without the spaces that the decoder leaves out: as many as it says
 * at the very beginning, or (Metaspace) all those of the first token. */
static void push_at_start(struct detokenizer *detok, const struct token_decoder *decoder,
                          const char *bytes, size_t len, struct buffer *out)
{
    size_t at = 0;

    detok->at_start = false;
    if (!decoder->first_has_spaces) {
        for (size_t i = 0; i < len; i++)
            if (bytes[i] != ' ')
                push_bytes(detok, bytes + i, 1, out);
        return;
    }
    while (at < len && bytes[at] == ' ' && detok->stripped < decoder->leading_spaces) {
        detok->stripped++;
        at++;
    }
    detok->at_start = at == len && detok->stripped < decoder->leading_spaces;
    if (at < len)
        push_bytes(detok, bytes + at, len - at, out);
}

void detokenizer_push(struct detokenizer *detok, const struct tokenizer *tok, int32_t id,
                      bool skip_special, struct buffer *out)
{
    size_t len;
    const char *bytes = tokenizer_bytes(tok, id, &len);

    if (len == 0 || (skip_special && tokenizer_is_special(tok, id)))
        return;
    if (detok->at_start)
        push_at_start(detok, &tok->parts.decoder, bytes, len, out);
    else
        push_bytes(detok, bytes, len, out);
}

void detokenizer_finish(struct detokenizer *detok, struct buffer *out)
{
    utf8_replace(detok->pending, detok->pending_len, true, out);
    detok->pending_len = 0;
}
