/* What the fuzz targets share: files for parsers that read folders, and the demo tokenizer. */
#pragma once

#include "base/panic.h"
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
