#include "model/tokenizer_decoder.h"

#include "base/memory.h"
#include "model/json_text.h"

#include <stdlib.h>
#include <string.h>

/* ---- loading ---- */

static int add_replacement(struct token_decoder *decoder, const char *from, const char *to,
                           struct error *err)
{
    if (!from || !*from || !to)
        return error_set(err, "only the replacement of one string by another is supported");
    if (decoder->replacements_n == DECODER_MAX_REPLACEMENTS)
        return error_set(err, "there are more than %d replacements", DECODER_MAX_REPLACEMENTS);
    decoder->replacements[decoder->replacements_n].from = mem_strdup(from);
    decoder->replacements[decoder->replacements_n++].to = mem_strdup(to);
    return 0;
}

static int load_metaspace(struct token_decoder *decoder, const struct json *object,
                          struct error *err)
{
    const char *scheme = json_text(object, "prepend_scheme");
    const struct json *add = json_get(object, "add_prefix_space");

    if (scheme ? strcmp(scheme, "never") != 0 : !json_is(add, JSON_BOOL) || json_bool(add))
        decoder->first_has_spaces = false;
    return add_replacement(decoder, json_text(object, "replacement"), " ", err);
}

/* Spaces at the beginning of the text, which must be whole by then. */
static int load_strip(struct token_decoder *decoder, const struct json *object, bool fused,
                      struct error *err)
{
    const char *content = json_text(object, "content");
    int64_t start, stop;

    if (!fused || !content || strcmp(content, " ") != 0 ||
        !json_integer(json_get(object, "start"), &start) ||
        !json_integer(json_get(object, "stop"), &stop) || start < 0 || start > 1000 || stop != 0)
        return error_set(err, "only a Strip of spaces at the start and after Fuse is supported");
    decoder->leading_spaces += (int)start;
    return 0;
}

static int load_step(struct token_decoder *decoder, const struct json *object, bool *fused,
                     struct error *err)
{
    const char *type = json_text(object, "type");

    if (!type)
        return error_set(err, "a step must be an object with a \"type\"");
    if (strcmp(type, "Strip") == 0)
        return load_strip(decoder, object, *fused, err);
    if (strcmp(type, "Fuse") == 0) {
        *fused = true;
        return 0;
    }
    if (*fused || decoder->byte_level)
        return error_set(err, "%.100s can't be where it is", type);
    if (strcmp(type, "Replace") == 0)
        return add_replacement(decoder, json_text(json_get(object, "pattern"), "String"),
                               json_text(object, "content"), err);
    if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(decoder, object, err);
    if (strcmp(type, "ByteFallback") == 0) {
        decoder->byte_fallback = true;
        return 0;
    }
    if (strcmp(type, "ByteLevel") == 0 && decoder->replacements_n == 0 && !decoder->byte_fallback) {
        decoder->byte_level = true;
        return 0;
    }
    return error_set(err, "the step %.100s is not supported", type);
}

int token_decoder_load(struct token_decoder *decoder, const struct json *object, struct error *err)
{
    const char *type = json_text(object, "type");
    const struct json *list = json_get(object, "decoders");
    bool fused = false;

    *decoder = (struct token_decoder){.first_has_spaces = true};
    if (!type || strcmp(type, "Sequence") != 0)
        return load_step(decoder, object, &fused, err) ? error_prefix(err, "decoder") : 0;
    if (!json_is(list, JSON_ARRAY))
        return error_set(err, "decoder: \"decoders\" must be an array");
    for (const struct json *o = json_first(list); o; o = json_next(o))
        if (load_step(decoder, o, &fused, err))
            return error_prefix(err, "decoder");
    return 0;
}

void token_decoder_free(struct token_decoder *decoder)
{
    for (size_t i = 0; i < decoder->replacements_n; i++) {
        free(decoder->replacements[i].from);
        free(decoder->replacements[i].to);
    }
    decoder->replacements_n = 0;
}

/* ---- decoding ---- */

/* The byte that "<0xE2>" stands for, or -1. */
static int fallback_byte(const char *spelling, size_t len)
{
    static const char digits[] = "0123456789ABCDEFabcdef";
    char hex[3] = "";

    if (len != 6 || memcmp(spelling, "<0x", 3) != 0 || spelling[5] != '>')
        return -1;
    memcpy(hex, spelling + 3, 2);
    return strspn(hex, digits) == 2 ? (int)strtol(hex, NULL, 16) : -1;
}

static void append_replaced(const char *text, size_t len, const char *from, const char *to,
                            struct buffer *out)
{
    const char *found;

    while (len > 0 && (found = memmem(text, len, from, strlen(from)))) {
        size_t before = (size_t)(found - text);
        buffer_append(out, text, before);
        buffer_append_str(out, to);
        text += before + strlen(from);
        len -= before + strlen(from);
    }
    buffer_append(out, text, len);
}

void token_decoder_append(const struct token_decoder *decoder, const char *spelling, size_t len,
                          struct buffer *out)
{
    char *text = mem_copy(spelling, len);

    for (size_t i = 0; i < decoder->replacements_n; i++) {
        struct buffer next;
        buffer_init(&next, (size_t)1 << 30);
        append_replaced(text, len, decoder->replacements[i].from, decoder->replacements[i].to,
                        &next);
        free(text);
        text = mem_copy(next.data ? next.data : "", next.len);
        len = next.len;
        buffer_free(&next);
    }
    int code = decoder->byte_fallback ? fallback_byte(text, len) : -1;
    char byte = (char)code;
    buffer_append(out, code < 0 ? text : &byte, code < 0 ? len : 1);
    free(text);
}
