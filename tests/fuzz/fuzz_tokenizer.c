/* Any bytes through the tokenizer: ids are in range, and decoding gives valid UTF-8, the same
 * whether it is done token by token or at once. */
#include "base/utf8.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

static void decode(const struct token_list *ids, struct buffer *out)
{
    struct detokenizer detok;

    detokenizer_init(&detok);
    for (size_t i = 0; i < ids->len; i++) {
        ASSERT(ids->ids[i] >= 0 && ids->ids[i] < tokenizer_size(fuzz_tokenizer()));
        detokenizer_push(&detok, fuzz_tokenizer(), ids->ids[i], false, out);
        ASSERT(utf8_valid(out->data ? out->data : "", out->len));
    }
    detokenizer_finish(&detok, out);
    ASSERT(utf8_valid(out->data ? out->data : "", out->len));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum encode_mode mode = size && data[0] & 1 ? ENCODE_WITH_SPECIALS : ENCODE_TEXT_ONLY;
    struct token_list ids;
    struct buffer text;
    struct error err;

    token_list_init(&ids, 1 << 16);
    buffer_init(&text, 1 << 24);
    if (tokenizer_encode(fuzz_tokenizer(), (const char *)data, size, mode, &ids, &err) == 0) {
        decode(&ids, &text);
        if (utf8_valid((const char *)data, size)) /* nothing is lost */
            ASSERT(text.len == size && (size == 0 || memcmp(text.data, data, size) == 0));
    }
    buffer_free(&text);
    token_list_free(&ids);
    return 0;
}
