/* It is written as a tokenizer.json and read as one, so that nothing else knows of it. */
#include "model/dummy_tokenizer.h"

#include "base/json.h"
#include "base/panic.h"
#include "base/utf8.h"

enum { N_BYTES = 256, ENTRY_MAX_BYTES = 48, REST_BYTES = 4096 };

/* The character that spells a byte in byte-level BPE: itself when it is printable in Latin-1, or
 * else one of those from 256 on, in order. */
static void write_byte(struct buffer *out, int byte, uint32_t *next)
{
    bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    char utf8[4];

    json_write_string(out, utf8, utf8_encode(printable ? (uint32_t)byte : (*next)++, utf8));
}

struct tokenizer *dummy_tokenizer_new(int32_t vocab_size)
{
    struct buffer text;
    struct error err;
    uint32_t next = N_BYTES;

    buffer_init(&text, (size_t)vocab_size * ENTRY_MAX_BYTES + REST_BYTES);
    buffer_append_str(&text, "{\"added_tokens\": [], \"decoder\": {\"type\": \"ByteLevel\"},"
                             "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"use_regex\": true,"
                             "\"add_prefix_space\": false}, \"model\": {\"type\": \"BPE\","
                             "\"merges\": [], \"vocab\": {");
    for (int32_t id = 0; id < vocab_size; id++) {
        if (id > 0)
            buffer_append_str(&text, ",");
        if (id < N_BYTES)
            write_byte(&text, id, &next);
        else
            buffer_printf(&text, "\"\u0120w%d\"", id); /* U+0120 spells the space */
        buffer_printf(&text, ": %d", id);
    }
    buffer_append_str(&text, "}}}");
    struct tokenizer *tok = text.overflowed ? NULL : tokenizer_parse(text.data, text.len, &err);
    if (!tok)
        PANIC("a dummy tokenizer of %d ids can't be made", vocab_size);
    buffer_free(&text);
    return tok;
}
