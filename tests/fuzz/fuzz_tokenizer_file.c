/* tokenizer.json files of any content: loaded or refused, and what is loaded encodes. */
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello, w\xC3\xB6rld 123 <think>  \n";
    struct token_list ids;
    struct error err;

    fuzz_write("tokenizer.json", data, size);
    struct tokenizer *tok = tokenizer_load(fuzz_folder(), &err);
    if (!tok)
        return 0;
    token_list_init(&ids, 4096);
    tokenizer_encode(tok, text, sizeof(text) - 1, ENCODE_WITH_SPECIALS, &ids, &err);
    token_list_free(&ids);
    tokenizer_free(tok);
    return 0;
}
