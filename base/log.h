/* One log for the process: a line per record on stderr, plain text or JSON. Safe from any thread.
 */
#pragma once

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* Called once before other threads start. Default: LOG_INFO, text. */
void log_configure(enum log_level level, int json_lines);

void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A part of a record that JSON lines have as a member of its own: a text, or, where that is NULL, a
 * number. */
struct log_field {
    const char *name, *text;
    double number;
};

/* A record with fields; plain text lines have the message alone. */
void log_record(enum log_level level, const struct log_field *fields, int n_fields,
                const char *format, ...) __attribute__((format(printf, 4, 5)));

#define log_error(...)   log_write(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_WARNING, __VA_ARGS__)
#define log_info(...)    log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_write(LOG_DEBUG, __VA_ARGS__)
