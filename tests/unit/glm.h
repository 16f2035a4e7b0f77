/* A tokenizer with GLM's markers of tool calls: the demo model's, where they stand in the place of
 * DeepSeek's. */
#pragma once

#include "base/file.h"
#include "base/panic.h"
#include "model/tokenizer.h"

#include <string.h>

/* The caller frees it. Run from the repository's root. */
static inline struct tokenizer *glm_tokenizer(void)
{
    static const char *const renamed[][2] = {
        {"<｜tool▁calls▁begin｜>", "<tool_call>"},   {"<｜tool▁calls▁end｜>", "</tool_call>"},
        {"<｜tool▁call▁begin｜>", "<arg_key>"},      {"<｜tool▁call▁end｜>", "</arg_key>"},
        {"<｜tool▁outputs▁begin｜>", "<arg_value>"}, {"<｜tool▁outputs▁end｜>", "</arg_value>"},
    };
    struct buffer file, changed;
    struct error err;

    buffer_init(&file, 1 << 24);
    buffer_init(&changed, 1 << 24);
    ASSERT(file_read("model/demo/tokenizer.json", &file, &err) == 0);
    buffer_append(&file, "", 1);
    for (const char *at = file.data; *at;) {
        const char *const *found = NULL;
        for (size_t i = 0; i < sizeof(renamed) / sizeof(*renamed) && !found; i++)
            if (strncmp(at, renamed[i][0], strlen(renamed[i][0])) == 0)
                found = renamed[i];
        buffer_append(&changed, found ? found[1] : at, found ? strlen(found[1]) : 1);
        at += found ? strlen(found[0]) : 1;
    }
    struct tokenizer *tok = tokenizer_parse(changed.data, changed.len, &err);
    ASSERT(tok);
    buffer_free(&changed);
    buffer_free(&file);
    return tok;
}
