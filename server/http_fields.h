/* The header fields and query arguments of one request, as copies that outlive the connection, and
 * the judgement on whether they frame a body that every party on the way agrees about. */
#pragma once

#include "base/buffer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct http_fields {
    struct buffer headers;   /* "name\0value\0" ... */
    struct buffer arguments; /* the same, percent-decoded */
    int content_lengths;     /* how many fields of that name there are */
    int transfer_encodings;
    int hosts;
    bool malformed; /* a field that is no field, or a coding other than chunked */
};

void http_fields_init(struct http_fields *fields);
void http_fields_free(struct http_fields *fields);

void http_fields_add_header(struct http_fields *fields, const char *name, const char *value);
void http_fields_add_argument(struct http_fields *fields, const char *name, const char *value);

/* First value of that name, or NULL. Header names are compared without regard to case, and their
 * values have no blanks at the end. */
const char *http_fields_header(const struct http_fields *fields, const char *name);
const char *http_fields_argument(const struct http_fields *fields, const char *name);

/* 0 when the request may be read on, else the status to refuse it with: 400 for what proxies and
 * servers read differently (request smuggling), 413 for a length past `max_body`. */
int http_fields_judge(const struct http_fields *fields, bool http_1_0, size_t max_body);
