/* A tokenizer for weights that are made up, where a checkpoint folder would have one. */
#pragma once

#include "model/tokenizer.h"

/* The ids below 256 are the bytes, so any text can be encoded; each other id below `vocab_size` is
 * a word of its own (" w1234"), so every id that is drawn gives text. */
struct tokenizer *dummy_tokenizer_new(int32_t vocab_size);
