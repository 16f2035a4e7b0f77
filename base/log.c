#include "base/log.h"

#include "base/buffer.h"
#include "base/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { LOG_LINE_MAX = 4096 };

static enum log_level threshold = LOG_INFO;
static int as_json;

static const char *const level_names[] = {"error", "warning", "info", "debug"};

void log_configure(enum log_level level, int json_lines)
{
    threshold = level;
    as_json = json_lines;
}

static void timestamp(char out[40])
{
    struct timeval now;
    struct tm parts;
    char date[24];

    gettimeofday(&now, NULL);
    gmtime_r(&now.tv_sec, &parts);
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(out, 40, "%s.%03dZ", date, (int)(now.tv_usec / 1000));
}

static void write_json(struct buffer *line, enum log_level level, const char *message,
                       const struct log_field *fields, int n_fields)
{
    char time_text[40];

    timestamp(time_text);
    buffer_printf(line, "{\"time\":\"%s\",\"level\":\"%s\",\"message\":", time_text,
                  level_names[level]);
    json_write_string(line, message, -1);
    for (int i = 0; i < n_fields; i++) {
        buffer_printf(line, ",\"%s\":", fields[i].name);
        if (fields[i].text)
            json_write_string(line, fields[i].text, -1);
        else
            json_write_number(line, fields[i].number);
    }
    buffer_append_str(line, "}\n");
}

__attribute__((format(printf, 4, 0))) static void write_record(enum log_level level,
                                                               const struct log_field *fields,
                                                               int n_fields, const char *format,
                                                               va_list args)
{
    char message[LOG_LINE_MAX], time_text[40];
    struct buffer line;

    vsnprintf(message, sizeof(message), format, args);
    for (char *c = message; *c; c++) /* what clients send can't begin a line of its own */
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    buffer_init(&line, 16 * LOG_LINE_MAX);
    if (as_json) {
        write_json(&line, level, message, fields, n_fields);
    } else {
        timestamp(time_text);
        buffer_printf(&line, "%s %-7s %s\n", time_text, level_names[level], message);
    }
    /* One write per line: lines of several threads never mix. A closed stderr is not our error. */
    if (write(STDERR_FILENO, line.data, line.len) < 0)
        (void)0;
    buffer_free(&line);
}

void log_write(enum log_level level, const char *format, ...)
{
    va_list args;

    if (level > threshold)
        return;
    va_start(args, format);
    write_record(level, NULL, 0, format, args);
    va_end(args);
}

void log_record(enum log_level level, const struct log_field *fields, int n_fields,
                const char *format, ...)
{
    va_list args;

    if (level > threshold)
        return;
    va_start(args, format);
    write_record(level, fields, n_fields, format, args);
    va_end(args);
}
