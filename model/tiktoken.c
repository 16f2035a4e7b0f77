#include "model/tiktoken.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/utf8.h"
#include "model/json_text.h"
#include "model/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TIKTOKEN_FILE_MAX = 64 * 1024 * 1024,
    TOKENS_MAX = 1 << 22,
    RESERVED = 256, /* ids after those of the file, for special tokens */
    SLICE_MAX = 400 * 1000,
    RUN_MAX = 25 * 1000,
};

/* What TikTokenTokenizer in tokenization_kimi.py splits by. */
static const char kimi_pattern[] =
    "[\\p{Han}]+"
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*"
    "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+"
    "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* ---- the file ---- */

static int base64_value(char c)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *found = c ? strchr(alphabet, c) : NULL;

    return found ? (int)(found - alphabet) : -1;
}

int tiktoken_base64(const char *text, size_t len, struct buffer *out)
{
    size_t padding = 0;

    while (padding < 2 && len > padding && text[len - 1 - padding] == '=')
        padding++;
    if (len % 4 != 0)
        return -1;
    for (size_t at = 0; at < len; at += 4) {
        size_t bytes = at + 4 == len ? 3 - padding : 3;
        uint32_t bits = 0;
        for (size_t i = 0; i < 4; i++) {
            int value = i <= bytes ? base64_value(text[at + i]) : 0;
            if (value < 0)
                return -1;
            bits = bits << 6 | (uint32_t)value;
        }
        char three[3] = {(char)(bits >> 16), (char)(bits >> 8), (char)bits};
        buffer_append(out, three, bytes);
    }
    return out->overflowed ? -1 : 0;
}

/* The tokens of a file; their bytes are in `bytes`, one behind the other. */
struct lines {
    struct ranked_token *tokens;
    size_t count, cap;
    struct buffer bytes;
};

/* "aGk= 42" */
static int read_line(struct lines *lines, const char *line, size_t len)
{
    const char *space = memchr(line, ' ', len);
    size_t before = lines->bytes.len;
    char *end;

    if (!space || tiktoken_base64(line, (size_t)(space - line), &lines->bytes))
        return -1;
    long rank = strtol(space + 1, &end, 10);
    if (end == space + 1 || end != line + len || rank < 0 || rank >= TOKENS_MAX)
        return -1;
    if (lines->count == lines->cap) {
        lines->cap = lines->cap ? 2 * lines->cap : 1024;
        lines->tokens = mem_resize(lines->tokens, lines->cap, sizeof(*lines->tokens));
    }
    lines->tokens[lines->count++] =
        (struct ranked_token){.len = lines->bytes.len - before, .id = (int32_t)rank};
    return 0;
}

static int read_lines(struct lines *lines, const struct buffer *file, struct error *err)
{
    const char *at = file->data, *end = file->data + file->len;

    for (size_t number = 1; at < end; number++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *stop = newline ? newline : end;
        size_t len = (size_t)(stop - at);
        if (len > 0 && at[len - 1] == '\r')
            len--;
        if (len > 0 && read_line(lines, at, len))
            return error_set(err, "line %zu is not a token in base64, a space and its rank",
                             number);
        at = stop + 1;
    }
    buffer_append_str(&lines->bytes, ""); /* there is memory, also when all tokens are empty */
    const char *bytes = lines->bytes.data;
    for (size_t i = 0; i < lines->count; i++) {
        lines->tokens[i].bytes = bytes;
        bytes += lines->tokens[i].len;
    }
    return 0;
}

static struct bpe *load_bpe(const char *path, struct error *err)
{
    struct buffer file;
    struct lines lines = {0};
    struct bpe *bpe = NULL;

    buffer_init(&file, TIKTOKEN_FILE_MAX);
    buffer_init(&lines.bytes, TIKTOKEN_FILE_MAX);
    if (file_read(path, &file, err))
        return NULL;
    if (!read_lines(&lines, &file, err))
        bpe = bpe_from_ranks(lines.tokens, lines.count, err);
    if (!bpe)
        error_prefix(err, "%s", path);
    free(lines.tokens);
    buffer_free(&lines.bytes);
    buffer_free(&file);
    return bpe;
}

/* ---- special tokens ---- */

/* The RESERVED ids after the file's: as "added_tokens_decoder" names them, or by their number. */
static struct added_tokens *load_special(const struct json *config, int32_t first,
                                         const struct normalizer *none, struct error *err)
{
    struct added_token *tokens = mem_zalloc(RESERVED, sizeof(*tokens));
    const struct json *named = json_get(config, "added_tokens_decoder");
    int rc = 0;

    for (int32_t i = 0; i < RESERVED; i++) {
        char content[48], key[16];
        struct added_token *token = &tokens[i];
        token->id = first + i;
        snprintf(key, sizeof(key), "%d", token->id);
        const struct json *object = json_get(named, key);
        if (object && !rc) {
            rc = added_token_read(object, token, err);
            token->normalized = false; /* the pattern of special tokens comes before all else */
            continue;
        }
        snprintf(content, sizeof(content), "<|reserved_token_%d|>", token->id);
        token->content = mem_strdup(content);
        token->len = strlen(content);
        token->special = true;
    }
    if (rc) {
        for (int i = 0; i < RESERVED; i++)
            free(tokens[i].content);
        free(tokens);
        return NULL;
    }
    return added_tokens_from(tokens, RESERVED, none, err);
}

int tokenizer_parts_from_tiktoken(struct tokenizer_parts *parts, const char *path,
                                  const struct json *config, struct error *err)
{
    const char *class = json_text(config, "tokenizer_class");

    if (class && strcmp(class, "TikTokenTokenizer") != 0)
        return error_set(err,
                         "%s: the tokenizer_class %.100s is not supported; TikTokenTokenizer is",
                         path, class);
    parts->normalizer = normalizer_load(NULL, err);
    parts->decoder = (struct token_decoder){.byte_level = true, .first_has_spaces = true};
    parts->in_slices = true;
    parts->pre = pretokenizer_from_pattern(kimi_pattern, err);
    if (!parts->pre)
        return -1;
    parts->bpe = load_bpe(path, err);
    if (!parts->bpe)
        return -1;
    parts->added = load_special(config, bpe_size(parts->bpe), parts->normalizer, err);
    return parts->added ? 0 : error_prefix(err, "tokenizer_config.json: added_tokens_decoder");
}

/* ---- slices ---- */

/* What Python's str.isspace() says. */
static bool is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

size_t tiktoken_slice(struct tiktoken_slices *walk)
{
    size_t start = walk->at, run = 0;
    bool in_space = false;

    while (walk->at < walk->len && walk->characters < SLICE_MAX) {
        uint32_t c;
        int size = utf8_decode(walk->text + walk->at, walk->len - walk->at, &c);
        run = run > 0 && is_space(c) == in_space ? run + 1 : 1;
        in_space = is_space(c);
        if (run > RUN_MAX)
            return walk->at - start;
        walk->at += (size_t)size;
        walk->characters++;
    }
    walk->characters = 0;
    return walk->at - start;
}
