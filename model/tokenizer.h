/* Text to token ids and back, from a checkpoint's tokenizer.json, tiktoken.model or tekken.json:
 * added tokens, split patterns (PCRE2 with JIT), BPE of bytes, or of characters as SentencePiece
 * has it. Equal to the Python packages `tokenizers`, `tiktoken` and `mistral-common`, id for id.
 *
 * A tokenizer is immutable after it is loaded; one thread may encode while others decode (encode
 * uses scratch memory of its own call). */
#pragma once

#include "base/buffer.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* Reads the first that is there of tokenizer.json, tiktoken.model and tekken.json in `dir`, and
 * what tokenizer_config.json says. NULL and a sentence naming the file and the part that is wrong
 * or not supported (a model that is not BPE, an unknown pre-tokenizer, ...). */
struct tokenizer *tokenizer_load(const char *dir, struct error *err);

/* The same from the text of a tokenizer.json alone. */
struct tokenizer *tokenizer_parse(const char *json, size_t len, struct error *err);
void tokenizer_free(struct tokenizer *tok);

/* Number of ids: one past the largest. */
int32_t tokenizer_size(const struct tokenizer *tok);

/* A growing list of token ids with a bound. */
struct token_list {
    int32_t *ids;
    size_t len, cap;
    size_t max;
};

void token_list_init(struct token_list *list, size_t max);
void token_list_free(struct token_list *list);
int token_list_push(struct token_list *list, int32_t id); /* -1 past the bound */

enum encode_mode {
    ENCODE_TEXT_ONLY,     /* nothing in the text becomes an added special token: user text */
    ENCODE_WITH_SPECIALS, /* added tokens are recognised: rendered templates, raw prompts */
};

/* Appends the ids of `text` (any bytes; those that are not UTF-8 are encoded as U+FFFD, as Python's
 * errors="replace" makes of them). -1 with a message when the list's bound or the pattern matcher's
 * limit is passed. In ENCODE_TEXT_ONLY mode all tokens that a chat format may use as markers stay
 * text: every added token that is special, not `normalized`, or in <angle> or [square] brackets. */
int tokenizer_encode(const struct tokenizer *tok, const char *text, size_t len,
                     enum encode_mode mode, struct token_list *out, struct error *err);

/* The same with ENCODE_WITH_SPECIALS, but that no marker is recognised where one of its bytes is
 * `foreign` (a byte for each of the text, which must be UTF-8; 0: not). */
int tokenizer_encode_marked(const struct tokenizer *tok, const char *text, size_t len,
                            const uint8_t *foreign, struct token_list *out, struct error *err);

/* The id of an added token by its content, or else of an ordinary one as the file spells it
 * ("Ġthe"); -1 when there is none. */
int32_t tokenizer_id(const struct tokenizer *tok, const char *content);

/* Whether the id is an added token with "special": true (left out of text by default). */
bool tokenizer_is_special(const struct tokenizer *tok, int32_t id);

/* The bytes of one token, as they are (possibly part of a character). An id without a token has
 * none: NULL and a length of 0. The memory is the tokenizer's. */
const char *tokenizer_bytes(const struct tokenizer *tok, int32_t id, size_t *len);

/* The tokens that post-processing puts in front of a text: by tokenizer_config.json's add_bos_token
 * its bos_token alone or none, or else those of tokenizer.json's post_processor; tekken.json's
 * always. */
const int32_t *tokenizer_front(const struct tokenizer *tok, int *n);

/* The eos_token of tokenizer_config.json; -1: none, or it is not in the vocabulary. */
int32_t tokenizer_eos(const struct tokenizer *tok);

/* Incremental decoding: bytes come out only as whole characters; bytes that can't become one come
 * out as U+FFFD, like Python's errors="replace". */
struct detokenizer {
    char pending[8]; /* bytes of an unfinished character */
    size_t pending_len;
    bool at_start; /* of a text: nothing has come out */
    int stripped;  /* spaces left out there */
};

/* For tokens that follow others, such as generated ones. */
void detokenizer_init(struct detokenizer *detok);

/* For the tokens of a whole text. Tokenizers of SentencePiece's kind put a space in front when they
 * encode, which they leave out again. */
void detokenizer_init_whole(struct detokenizer *detok);

/* Appends to `out` the text that token `id` completes. Special tokens give nothing when
 * `skip_special`. */
void detokenizer_push(struct detokenizer *detok, const struct tokenizer *tok, int32_t id,
                      bool skip_special, struct buffer *out);

/* Appends what an unfinished character becomes at the end of the text (U+FFFD), if one is there. */
void detokenizer_finish(struct detokenizer *detok, struct buffer *out);
