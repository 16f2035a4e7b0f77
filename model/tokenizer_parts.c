/* The reader of tokenizer.json. */
#include "model/tokenizer_parts.h"

#include "base/memory.h"
#include "model/json_text.h"

#include <stdlib.h>
#include <string.h>

static bool is_type(const struct json *object, const char *name)
{
    const char *type = json_text(object, "type");

    return type && strcmp(type, name) == 0;
}

/* The tokens that a TemplateProcessing puts in front of a text ("[gMASK]<sop>"). Those that it puts
 * behind are left out: the text is to go on. */
static int read_front(struct tokenizer_parts *parts, const struct json *processor,
                      struct error *err)
{
    const struct json *list = json_get(processor, "processors");
    const struct json *single = json_get(processor, "single");
    int n = 0;

    if (is_type(processor, "Sequence") && json_is(list, JSON_ARRAY))
        for (const struct json *o = json_first(list); o; o = json_next(o))
            if (is_type(o, "TemplateProcessing"))
                return read_front(parts, o, err);
    if (!is_type(processor, "TemplateProcessing") || !json_is(single, JSON_ARRAY))
        return 0;
    for (const struct json *o = json_first(single); o; o = json_next(o)) {
        const char *content = json_text(json_get(o, "SpecialToken"), "id");
        if (!content)
            break;
        if (n == FRONT_MAX)
            return error_set(err, "post_processor: more than %d tokens in front of a text",
                             FRONT_MAX);
        parts->front[n++] = mem_strdup(content);
    }
    return 0;
}

int tokenizer_parts_from_json(struct tokenizer_parts *parts, const struct json *root,
                              struct error *err)
{
    if (!json_is(root, JSON_OBJECT))
        return error_set(err, "it must be an object");
    parts->normalizer = normalizer_load(json_get(root, "normalizer"), err);
    if (!parts->normalizer)
        return -1;
    if (token_decoder_load(&parts->decoder, json_get(root, "decoder"), err))
        return -1;
    parts->pre = pretokenizer_load(json_get(root, "pre_tokenizer"), err);
    if (!parts->pre)
        return -1;
    bool byte_level = pretokenizer_is_byte_level(parts->pre);
    if (byte_level != parts->decoder.byte_level)
        return error_set(err, "the %s has a ByteLevel step, but the %s has none",
                         byte_level ? "pre_tokenizer" : "decoder",
                         byte_level ? "decoder" : "pre_tokenizer");
    parts->bpe = bpe_load(json_get(root, "model"), byte_level, err);
    if (!parts->bpe)
        return -1;
    parts->added = added_tokens_load(json_get(root, "added_tokens"), parts->normalizer, err);
    if (!parts->added)
        return -1;
    return read_front(parts, json_get(root, "post_processor"), err);
}

void tokenizer_parts_free(struct tokenizer_parts *parts)
{
    added_tokens_free(parts->added);
    bpe_free(parts->bpe);
    pretokenizer_free(parts->pre);
    normalizer_free(parts->normalizer);
    token_decoder_free(&parts->decoder);
    for (int i = 0; i < FRONT_MAX; i++)
        free(parts->front[i]);
}
