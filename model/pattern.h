/* The regular expressions of a tokenizer.json, run by PCRE2.
 *
 * The files write Oniguruma's Ruby syntax. It is translated to PCRE2's; where the two languages
 * give the same construct another meaning, or where it could not be made equal, the pattern is
 * refused by name. A compiled pattern is immutable: any number of threads may search with it, each
 * with its own scratch. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

struct pattern;

/* Compiles a pattern, with JIT where the machine has it. NULL and a message when it is malformed or
 * uses something unsupported. */
struct pattern *pattern_compile(const char *source, struct error *err);

/* A pattern that matches exactly `text`. */
struct pattern *pattern_compile_literal(const char *text, struct error *err);

void pattern_free(struct pattern *pattern);

/* Working memory of searches, for one thread at a time and any number of patterns. */
struct pattern_scratch;

struct pattern_scratch *pattern_scratch_new(void);
void pattern_scratch_free(struct pattern_scratch *scratch);

/* Finds the first match that starts at `from` or later in `text`, which must be valid UTF-8. The
 * pattern sees all of `text` and nothing beyond. Returns 1 and the match, 0 when there is none, or
 * -1 with a message when the matcher's limits (backtracking, stack) are passed. */
int pattern_find(const struct pattern *pattern, struct pattern_scratch *scratch, const char *text,
                 size_t len, size_t from, size_t *start, size_t *end, struct error *err);
