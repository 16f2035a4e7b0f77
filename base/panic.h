/* Broken invariants: the process stops with file and line, because going on could corrupt what
 * clients get. Operating errors (files, devices, clients) are never handled here: see error.h. */
#pragma once

/* Prints "file:line: message" to stderr and aborts. */
void panic_at(const char *file, int line, const char *format, ...)
    __attribute__((noreturn, format(printf, 3, 4)));

#define PANIC(...) panic_at(__FILE__, __LINE__, __VA_ARGS__)

#define ASSERT(condition)                                                                          \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0))                                                     \
            panic_at(__FILE__, __LINE__, "assertion failed: %s", #condition);                      \
    } while (0)
