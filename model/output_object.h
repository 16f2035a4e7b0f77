/* Calls written as one JSON object, {"name": NAME, "arguments": ARGUMENTS}, as LongCat-Flash and
 * GigaChat 3 write them. White space may stand between its parts. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum call_reading {
    CALL_READ,     /* done */
    CALL_NEEDS,    /* more text */
    CALL_IS_OTHER, /* the text is no such call */
};

/* What stands before the arguments: `used` bytes, and where in them the name is. */
struct call_head {
    size_t used;
    const char *name;
    size_t name_len;
    bool no_arguments; /* the object ended with the name */
};

enum call_reading object_call_head(const char *text, size_t len, struct call_head *head);

/* Where in the arguments, any JSON value, the text is; zero: before them. */
struct json_extent {
    int depth;
    bool begun, is_plain, in_string, escaped;
};

/* How many of the bytes belong to the value; `*ended` tells that it ends there. */
size_t json_extent_read(struct json_extent *extent, const char *text, size_t len, bool *ended);

/* What follows the arguments: white space and the brace that closes the call. Needs more text
 * while there might be more of it. */
enum call_reading object_call_tail(const char *text, size_t len, size_t *used);
