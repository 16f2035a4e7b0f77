/* tiktoken.model files of any content, with what follows a NUL as the tokenizer_config.json beside
 * them: loaded or refused, and what is loaded encodes. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t lines = nul ? (size_t)(nul - data) : size;
    struct error err;

    fuzz_write("tiktoken.model", data, lines);
    fuzz_write("tokenizer_config.json", nul ? nul + 1 : (const uint8_t *)"{}",
               nul ? size - lines - 1 : 2);
    struct tokenizer *tok = tokenizer_load(fuzz_folder(), &err);
    if (tok)
        fuzz_encode(tok);
    tokenizer_free(tok);
    return 0;
}
