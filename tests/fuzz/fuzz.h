/* What the fuzz targets share: files for parsers that read folders, and the demo tokenizer. */
#pragma once

#include "base/panic.h"
#include "base/utf8.h"
#include "model/tokenizer.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A folder of this process's own in memory, made at the first call. */
static inline const char *fuzz_folder(void)
{
    static char path[64];

    if (!path[0]) {
        snprintf(path, sizeof(path), "/dev/shm/mlad-fuzz-XXXXXX");
        ASSERT(mkdtemp(path));
    }
    return path;
}

static inline void fuzz_write(const char *name, const void *data, size_t size)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/%s", fuzz_folder(), name);
    FILE *file = fopen(path, "wb");
    ASSERT(file && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

/* The demo model's tokenizer; run from the repository's root. */
static inline const struct tokenizer *fuzz_tokenizer(void)
{
    static struct tokenizer *tok;
    struct error err;

    if (!tok)
        tok = tokenizer_load("model/demo", &err);
    ASSERT(tok);
    return tok;
}

/* What was loaded encodes, to ids that it has, which decode to valid text. */
static inline void fuzz_encode(const struct tokenizer *tok)
{
    static const char text[] = "Hello, w\xC3\xB6rld 123 \xE6\xBC\xA2 <think>  \r\n";
    struct token_list ids;
    struct detokenizer detok;
    struct buffer decoded;
    struct error err;

    token_list_init(&ids, 4096);
    buffer_init(&decoded, 1 << 24);
    detokenizer_init(&detok);
    if (tokenizer_encode(tok, text, sizeof(text) - 1, ENCODE_WITH_SPECIALS, &ids, &err) == 0)
        for (size_t i = 0; i < ids.len; i++) {
            ASSERT(ids.ids[i] >= 0 && ids.ids[i] < tokenizer_size(tok));
            detokenizer_push(&detok, tok, ids.ids[i], false, &decoded);
        }
    detokenizer_finish(&detok, &decoded);
    ASSERT(decoded.overflowed || utf8_valid(decoded.data ? decoded.data : "", decoded.len));
    buffer_free(&decoded);
    token_list_free(&ids);
}
