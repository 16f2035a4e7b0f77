/* tekken.json, the tokenizer file of Mistral: a list of tokens by rank, their bytes in base64, and
 * special tokens, whose ids come first. Facts: mistral_common/tokens/tokenizers/tekken.py. */
#include "base/file.h"
#include "base/memory.h"
#include "model/json_text.h"
#include "model/tiktoken.h"
#include "model/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEKKEN_FILE_MAX = 256 * 1024 * 1024, SPECIAL_MAX = 1 << 16 };

/* Files of versions up to 7 may leave their special tokens out, which are these. */
static const char *const default_special[] = {
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
};

/* Reads the file. The text of a token ("token_str") may be the character NUL, which the JSON parser
 * refuses; it isn't used, so that another can stand there. */
static struct json *read_file(const char *path, struct error *err)
{
    struct buffer text;
    struct json *root;

    buffer_init(&text, TEKKEN_FILE_MAX);
    if (file_read(path, &text, err))
        return NULL;
    for (size_t i = 0; i + 5 < text.len; i++) {
        if (text.data[i] != '\\')
            continue;
        if (memcmp(text.data + i, "\\u0000", 6) == 0)
            text.data[i + 5] = '1';
        i++; /* what is escaped, a backslash perhaps */
    }
    root = json_parse(text.data ? text.data : "", text.len, err);
    if (!root)
        error_prefix(err, "%s", path);
    buffer_free(&text);
    return root;
}

/* A whole number of "config" from `min` to `max`. */
static int read_number(const struct json *config, const char *name, int64_t min, int64_t max,
                       int32_t *out, struct error *err)
{
    int64_t value;

    if (!json_integer(json_get(config, name), &value) || value < min || value > max)
        return error_set(err, "config: \"%s\" must be an integer from %lld to %lld", name,
                         (long long)min, (long long)max);
    *out = (int32_t)value;
    return 0;
}

/* The first `count` tokens of "vocab"; ids are ranks after `first`. */
static struct bpe *load_vocab(const struct json *vocab, int32_t count, int32_t first,
                              struct error *err)
{
    struct ranked_token *tokens = mem_zalloc((size_t)count, sizeof(*tokens));
    struct buffer bytes;
    struct bpe *bpe = NULL;
    int32_t n = 0;

    buffer_init(&bytes, TEKKEN_FILE_MAX);
    for (const struct json *o = json_first(vocab); o && n < count; o = json_next(o), n++) {
        const char *text = json_text(o, "token_bytes");
        size_t before = bytes.len;
        int64_t rank;
        if (!text || tiktoken_base64(text, strlen(text), &bytes) ||
            !json_integer(json_get(o, "rank"), &rank) || rank != n) {
            error_set(err, "vocab: number %d must have its \"rank\" and its \"token_bytes\"", n);
            goto done;
        }
        tokens[n] = (struct ranked_token){.len = bytes.len - before, .id = first + n};
    }
    const char *at = bytes.data;
    for (int32_t i = 0; i < n; i++) {
        tokens[i].bytes = at;
        at += tokens[i].len;
    }
    bpe = bpe_from_ranks(tokens, (size_t)n, err);
    if (!bpe)
        error_prefix(err, "vocab");
done:
    buffer_free(&bytes);
    free(tokens);
    return bpe;
}

/* One special token, from its object, or where the list is missing or too short by its number. */
static int read_special(const struct json *object, bool is_listed, int32_t id,
                        struct added_token *token, struct error *err)
{
    const char *content = json_text(object, "token_str");
    const struct json *control = json_get(object, "is_control");
    char filler[32];
    int64_t rank = id;

    snprintf(filler, sizeof(filler), "<SPECIAL_%d>", id);
    if (object &&
        (!content || !*content || !json_integer(json_get(object, "rank"), &rank) || rank != id))
        return error_set(err, "special_tokens: number %d must have its \"rank\" and \"token_str\"",
                         id);
    if (!object)
        content = !is_listed && id < (int32_t)(sizeof(default_special) / sizeof(default_special[0]))
                      ? default_special[id]
                      : filler;
    *token = (struct added_token){.content = mem_strdup(content),
                                  .len = strlen(content),
                                  .id = id,
                                  .special = !json_is(control, JSON_BOOL) || json_bool(control)};
    return 0;
}

static struct added_tokens *load_special(const struct json *list, int32_t count,
                                         const struct normalizer *none, struct error *err)
{
    struct added_token *tokens = mem_zalloc((size_t)count + 1, sizeof(*tokens));
    const struct json *object = json_is(list, JSON_ARRAY) ? json_first(list) : NULL;
    int32_t n = 0;

    for (; n < count; n++) {
        if (read_special(object, json_is(list, JSON_ARRAY), n, &tokens[n], err)) {
            while (n-- > 0)
                free(tokens[n].content);
            free(tokens);
            return NULL;
        }
        object = object ? json_next(object) : NULL;
    }
    return added_tokens_from(tokens, (size_t)count, none, err);
}

static int load_parts(struct tokenizer_parts *parts, const struct json *root, struct error *err)
{
    const struct json *config = json_get(root, "config"), *vocab = json_get(root, "vocab");
    const char *pattern = json_text(config, "pattern");
    int32_t size, special;

    if (!json_is(vocab, JSON_ARRAY) || !pattern)
        return error_set(err, "it must have a \"vocab\" and the \"pattern\" of its \"config\"");
    if (read_number(config, "default_num_special_tokens", 0, SPECIAL_MAX, &special, err) ||
        read_number(config, "default_vocab_size", special + 256,
                    special + (int64_t)json_count(vocab), &size, err))
        return -1;
    parts->normalizer = normalizer_load(NULL, err);
    parts->decoder = (struct token_decoder){.byte_level = true, .first_has_spaces = true};
    parts->pre = pretokenizer_from_pattern(pattern, err);
    if (!parts->pre)
        return error_prefix(err, "config");
    parts->bpe = load_vocab(vocab, size - special, special, err);
    if (!parts->bpe)
        return -1;
    parts->added = load_special(json_get(root, "special_tokens"), special, parts->normalizer, err);
    parts->front[0] = mem_strdup("<s>"); /* mistral-common puts it there, whatever the version */
    return parts->added ? 0 : -1;
}

int tokenizer_parts_from_tekken(struct tokenizer_parts *parts, const char *path, struct error *err)
{
    struct json *root = read_file(path, err);
    int rc = root ? 0 : -1;

    if (!rc && load_parts(parts, root, err))
        rc = error_prefix(err, "%s", path);
    json_free(root);
    return rc;
}
