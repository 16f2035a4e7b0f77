#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int error_set(struct error *err, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    return -1;
}

int error_prefix(struct error *err, const char *format, ...)
{
    char message[sizeof(err->message)];
    va_list args;

    memcpy(message, err->message, sizeof(message));
    va_start(args, format);
    int used = vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    if (used >= 0 && (size_t)used + 2 < sizeof(err->message)) {
        size_t room = sizeof(err->message) - (size_t)used;
        snprintf(err->message + used, room, ": %.*s", (int)(room - 3), message);
    }
    return -1;
}
