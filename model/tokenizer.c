/* The parts of a tokenizer and how a text goes through them:
 *
 *   any bytes --utf8_replace--> UTF-8 --added_tokens--> text between added tokens
 *             --pretokenizer--> words --bpe--> ids
 *
 * Here are the loading of the files, the walk through the parts, and what is known of each id. */
#include "model/tokenizer.h"

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/utf8.h"
#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/pretokenizer.h"
#include "model/utf8_replace.h"

#include <stdlib.h>
#include <string.h>

enum { FILE_MAX = 256 * 1024 * 1024, TEXT_MAX = 1 << 30 };

/* What an id stands for. */
struct id_entry {
    const char *bytes; /* NULL: no token */
    size_t len;
    bool special;
};

struct tokenizer {
    struct added_tokens *added;
    struct pretokenizer *pre;
    struct bpe *bpe;
    struct id_entry *ids;
    int32_t ids_n;
    int32_t bos; /* -1: none */
};

/* ---- loading ---- */

static bool is_type(const struct json *object, const char *name)
{
    const struct json *type = json_get(object, "type");

    return json_is(type, JSON_STRING) && strcmp(json_string(type), name) == 0;
}

/* A normalizer would change the text: only none, or an empty sequence, is supported. */
static int check_normalizer(const struct json *object, struct error *err)
{
    const struct json *type = json_get(object, "type");
    const struct json *list = json_get(object, "normalizers");

    if (!object || json_is(object, JSON_NULL))
        return 0;
    if (is_type(object, "Sequence") && json_is(list, JSON_ARRAY)) {
        if (json_count(list) == 0)
            return 0;
        type = json_get(json_first(list), "type");
    }
    return error_set(err, "the normalizer %.100s is not supported",
                     json_is(type, JSON_STRING) ? json_string(type) : "without a type");
}

static int check_decoder(const struct json *object, struct error *err)
{
    const struct json *list = json_get(object, "decoders");

    if (is_type(object, "Sequence") && json_is(list, JSON_ARRAY) && json_count(list) == 1)
        object = json_first(list);
    return is_type(object, "ByteLevel") ? 0
                                        : error_set(err, "only the decoder ByteLevel is supported");
}

/* Makes the table of ids; added tokens come before ordinary ones of the same id. */
static int index_ids(struct tokenizer *tok, struct error *err)
{
    size_t count;
    const struct added_token *added = added_tokens_all(tok->added, &count);

    tok->ids_n = bpe_size(tok->bpe);
    for (size_t i = 0; i < count; i++)
        if (added[i].id >= tok->ids_n)
            tok->ids_n = added[i].id + 1;
    tok->ids = mem_zalloc((size_t)tok->ids_n, sizeof(*tok->ids));
    for (int32_t id = 0; id < tok->ids_n; id++)
        tok->ids[id].bytes = bpe_bytes(tok->bpe, id, &tok->ids[id].len);
    for (size_t i = 0; i < count; i++) {
        int32_t other = bpe_find(tok->bpe, added[i].content, added[i].len);
        if (other >= 0 && other != added[i].id)
            return error_set(err,
                             "added_tokens: \"%.100s\" has the id %d, but %d in the vocabulary",
                             added[i].content, added[i].id, other);
        tok->ids[added[i].id] = (struct id_entry){added[i].content, added[i].len, added[i].special};
    }
    return 0;
}

/* The token that a TemplateProcessing puts in front of a text, as tokenizer.json's post_processor
 * says; -1 when it puts none. */
static int32_t template_bos(const struct tokenizer *tok, const struct json *processor)
{
    const struct json *list = json_get(processor, "processors");

    if (is_type(processor, "Sequence") && json_is(list, JSON_ARRAY)) {
        for (const struct json *o = json_first(list); o; o = json_next(o))
            if (is_type(o, "TemplateProcessing"))
                return template_bos(tok, o);
        return -1;
    }
    const struct json *single = json_get(processor, "single");
    if (!is_type(processor, "TemplateProcessing") || !json_is(single, JSON_ARRAY) ||
        json_count(single) == 0)
        return -1;
    const struct json *token = json_get(json_first(single), "SpecialToken");
    const struct json *content = json_get(token, "id");
    return json_is(content, JSON_STRING) ? tokenizer_id(tok, json_string(content)) : -1;
}

/* Sets `bos` from tokenizer_config.json, or where that is silent from the post-processor. */
static int load_bos(struct tokenizer *tok, const char *dir, const struct json *processor,
                    struct error *err)
{
    char *path = path_join(dir, "tokenizer_config.json");
    struct json *config = NULL;
    int rc = 0;

    tok->bos = template_bos(tok, processor);
    if (file_exists(path)) {
        config = json_parse_file(path, FILE_MAX, err);
        rc = config ? 0 : -1;
    }
    const struct json *add = json_get(config, "add_bos_token");
    const struct json *token = json_get(config, "bos_token");
    if (json_is(token, JSON_OBJECT))
        token = json_get(token, "content");
    if (json_is(add, JSON_BOOL) && !json_bool(add)) {
        tok->bos = -1;
    } else if (json_is(add, JSON_BOOL) && json_is(token, JSON_STRING)) {
        tok->bos = tokenizer_id(tok, json_string(token));
        if (tok->bos < 0)
            rc = error_set(err, "%s: the bos_token \"%.100s\" is not in the vocabulary", path,
                           json_string(token));
    }
    json_free(config);
    free(path);
    return rc;
}

/* Fills `tok` from the parsed tokenizer.json. */
static int load_parts(struct tokenizer *tok, const struct json *root, struct error *err)
{
    if (!json_is(root, JSON_OBJECT))
        return error_set(err, "it must be an object");
    if (check_normalizer(json_get(root, "normalizer"), err) ||
        check_decoder(json_get(root, "decoder"), err))
        return -1;
    tok->pre = pretokenizer_load(json_get(root, "pre_tokenizer"), err);
    if (!tok->pre)
        return -1;
    tok->bpe = bpe_load(json_get(root, "model"), err);
    if (!tok->bpe)
        return -1;
    tok->added = added_tokens_load(json_get(root, "added_tokens"), err);
    if (!tok->added)
        return -1;
    return index_ids(tok, err);
}

struct tokenizer *tokenizer_load(const char *dir, struct error *err)
{
    char *path = path_join(dir, "tokenizer.json");
    struct tokenizer *tok = mem_zalloc(1, sizeof(*tok));
    struct json *root = json_parse_file(path, FILE_MAX, err);
    int rc = root ? 0 : -1;

    if (!rc && load_parts(tok, root, err))
        rc = error_prefix(err, "%s", path);
    if (!rc)
        rc = load_bos(tok, dir, json_get(root, "post_processor"), err);
    json_free(root);
    free(path);
    if (rc) {
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
    added_tokens_free(tok->added);
    bpe_free(tok->bpe);
    pretokenizer_free(tok->pre);
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
    const struct tokenizer *tok;
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

    return bpe_encode(e->tok->bpe, e->bpe_scratch, word, len, e->out) ? list_full(e) : 0;
}

/* Encodes a text in which the added tokens of `kind`, and then of those after it, are recognised.
 */
static int encode_text(struct encoding *e, const char *text, size_t len, enum added_kind kind)
{
    struct added_match match = {0};
    size_t done = 0;
    int found;

    do {
        found =
            added_tokens_next(e->tok->added, kind, e->pattern_scratch, text, len, &match, e->err);
        size_t start = found ? match.start : len;
        if (found < 0)
            return -1;
        if (start > done) {
            int rc = kind == ADDED_RAW
                         ? encode_text(e, text + done, start - done, ADDED_NORMALIZED)
                         : pretokenizer_split(e->tok->pre, e->pattern_scratch, text + done,
                                              start - done, encode_word, e, e->err);
            if (rc)
                return rc;
        }
        if (found && token_list_push(e->out, match.token->id))
            return list_full(e);
        done = match.end;
    } while (found);
    return 0;
}

int tokenizer_encode(const struct tokenizer *tok, const char *text, size_t len,
                     enum encode_mode mode, struct token_list *out, struct error *err)
{
    struct encoding e = {tok, NULL, NULL, out, err};
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
    e.pattern_scratch = pattern_scratch_new();
    e.bpe_scratch = bpe_scratch_new();
    int rc = encode_text(&e, text, len, mode == ENCODE_TEXT_ONLY ? ADDED_PLAIN : ADDED_RAW);
    bpe_scratch_free(e.bpe_scratch);
    pattern_scratch_free(e.pattern_scratch);
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
    const struct added_token *added = added_tokens_get(tok->added, content, len);

    return added ? added->id : bpe_find(tok->bpe, content, len);
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

int32_t tokenizer_bos(const struct tokenizer *tok)
{
    return tok->bos;
}

/* ---- decoding ---- */

void detokenizer_init(struct detokenizer *detok)
{
    *detok = (struct detokenizer){0};
}

/* Decodes what is pending, which keeps what is unfinished. Returns how many bytes were used. */
static size_t flush_pending(struct detokenizer *detok, struct buffer *out)
{
    size_t used = utf8_replace(detok->pending, detok->pending_len, false, out);

    detok->pending_len -= used;
    memmove(detok->pending, detok->pending + used, detok->pending_len);
    return used;
}

void detokenizer_push(struct detokenizer *detok, const struct tokenizer *tok, int32_t id,
                      bool skip_special, struct buffer *out)
{
    size_t len, old = detok->pending_len;
    const char *bytes = tokenizer_bytes(tok, id, &len);

    if (len == 0 || (skip_special && tokenizer_is_special(tok, id)))
        return;
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

void detokenizer_finish(struct detokenizer *detok, struct buffer *out)
{
    utf8_replace(detok->pending, detok->pending_len, true, out);
    detok->pending_len = 0;
}
