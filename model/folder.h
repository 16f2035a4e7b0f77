/* What a user may take for the folder of a model, and why it is none. */
#pragma once

#include "base/error.h"

/* 0 when `dir` is a folder with a config.json or params.json; else -1 and a sentence that says what
 * it is instead, where that can be told. */
int folder_check(const char *dir, struct error *err);

/* What weights a folder has instead of safetensors, such as "GGUF"; NULL: none that is known. */
const char *folder_other_weights(const char *dir);
