/* The output of a batch: one line of JSON for each line of the input, appended as they finish.
 *
 * A regular file is resumed: what it holds already is read first (batch_output_scan), and a last
 * line that a killed run left unfinished is cut off. It is locked, so that two runs can't write it
 * at once. Other files (a pipe, a terminal; "-" is standard output) are only written. */
#pragma once

#include "base/error.h"
#include "server/id_set.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

struct batch_output;

struct batch_output *batch_output_open(const char *path, struct error *err);

/* Makes sure that all is written. The output is gone, whatever is returned. */
int batch_output_close(struct batch_output *out, struct error *err);

/* Reads the next piece of what is there and marks its lines as ID_DONE. Returns 1 when there is
 * more, 0 when all was read, -1 and a message when the file can't be resumed. */
int batch_output_scan(struct batch_output *out, struct id_set *ids, struct error *err);

/* The state of an input line's id in the set: by its custom_id, or by its number where it has none
 * (NULL). Sets the new state, returns the one before. */
enum id_state batch_output_mark(struct id_set *ids, const char *custom_id, int64_t line_number,
                                enum id_state state);

/* Whether the file is the same as the one of `info`. */
bool batch_output_is(const struct batch_output *out, const struct stat *info);

/* Append a line by one write: an answer (`body` is JSON), or the reason why there is none. */
int batch_output_answer(struct batch_output *out, const char *custom_id, int status,
                        const void *body, size_t len, struct error *err);
int batch_output_error(struct batch_output *out, const char *custom_id, int64_t line_number,
                       const char *code, const char *message, struct error *err);
