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

void log_write(enum log_level level, const char *format, ...)
{
    char message[LOG_LINE_MAX], time_text[40];
    struct buffer line;
    va_list args;

    if (level > threshold)
        return;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    for (char *c = message; *c; c++) /* what clients send can't begin a line of its own */
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    timestamp(time_text);

    buffer_init(&line, 8 * LOG_LINE_MAX);
    if (as_json) {
        buffer_printf(&line, "{\"time\":\"%s\",\"level\":\"%s\",\"message\":", time_text,
                      level_names[level]);
        json_write_string(&line, message, -1);
        buffer_append_str(&line, "}\n");
    } else {
        buffer_printf(&line, "%s %-7s %s\n", time_text, level_names[level], message);
    }
    /* One write per line: lines of several threads never mix. A closed stderr is not our error. */
    if (write(STDERR_FILENO, line.data, line.len) < 0)
        (void)0;
    buffer_free(&line);
}
