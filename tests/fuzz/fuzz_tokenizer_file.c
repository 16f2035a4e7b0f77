/* tokenizer.json files of any content: loaded or refused, and what is loaded encodes. */
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err;

    fuzz_write("tokenizer.json", data, size);
    struct tokenizer *tok = tokenizer_load(fuzz_folder(), &err);
    if (!tok)
        return 0;
    fuzz_encode(tok);
    tokenizer_free(tok);
    return 0;
}
