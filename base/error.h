/* Operating errors: a return code (0 or -1) and a sentence a user understands. The function that
 * finds the error writes the message; callers pass it on, adding context where they have some. */
#pragma once

struct error {
    char message[512]; /* NUL-terminated; cut when longer */
};

/* Writes the message; returns -1, so that `return error_set(err, ...)` reads well. */
int error_set(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts context in front of the message that is there: "context: message". Returns -1. */
int error_prefix(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
