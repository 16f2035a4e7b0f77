/* Header fields and query arguments.
 *
 * libmicrohttpd keeps them in memory that goes with the connection, while an exchange lives until
 * its owner has heard of the end; hence the copies. They are looked up by walking, which for the
 * dozen of fields of a request is as fast as anything.
 *
 * libmicrohttpd is generous where being generous is dangerous behind a proxy (RFC 9112, 6.3 and
 * 11.2): it prefers Transfer-Encoding to Content-Length when both are there, takes the first of
 * several lengths, ignores codings it does not know, keeps a blank before the colon as part of the
 * name, and glues a folded line to the name of its field. http_fields_judge refuses all these. */
#include "server/http_fields.h"

#include <string.h>
#include <strings.h>

enum {
    FIELDS_MAX = 128 * 1024, /* bytes; above what a connection's memory pool can hold */
    LENGTH_DIGITS_MAX = 18,  /* of a Content-Length: fits an int64_t */
};

void http_fields_init(struct http_fields *fields)
{
    memset(fields, 0, sizeof(*fields));
    buffer_init(&fields->headers, FIELDS_MAX);
    buffer_init(&fields->arguments, FIELDS_MAX);
}

void http_fields_free(struct http_fields *fields)
{
    buffer_free(&fields->headers);
    buffer_free(&fields->arguments);
}

static void add(struct buffer *to, const char *name, const char *value, size_t value_len)
{
    buffer_append(to, name, strlen(name) + 1);
    buffer_append(to, value, value_len);
    buffer_append(to, "", 1);
}

static bool is_token(const char *name)
{
    static const char special[] = "!#$%&'*+-.^_`|~";

    if (!*name)
        return false;
    for (; *name; name++) {
        char lower = (char)(*name | 0x20);
        bool alnum = (lower >= 'a' && lower <= 'z') || (*name >= '0' && *name <= '9');
        if (!alnum && !strchr(special, *name))
            return false;
    }
    return true;
}

static bool has_control(const char *value)
{
    for (; *value; value++)
        if (((unsigned char)*value < 0x20 && *value != '\t') || *value == 0x7f)
            return true;
    return false;
}

/* How many fields called `expected` this one counts as. A name that only begins like it is what is
 * left of a folded line, and makes the request malformed. */
static int count_framing(struct http_fields *fields, const char *name, const char *expected)
{
    size_t len = strlen(expected);

    if (strncasecmp(name, expected, len) != 0)
        return 0;
    if (name[len])
        fields->malformed = true;
    return 1;
}

void http_fields_add_header(struct http_fields *fields, const char *name, const char *value)
{
    size_t len = strlen(value);

    while (len && (value[len - 1] == ' ' || value[len - 1] == '\t'))
        len--;
    add(&fields->headers, name, value, len);
    if (!is_token(name) || has_control(value))
        fields->malformed = true;
    if (strcasecmp(name, "Transfer-Encoding") == 0 && strcasecmp(value, "chunked") != 0)
        fields->malformed = true;
    fields->hosts += strcasecmp(name, "Host") == 0;
    fields->content_lengths += count_framing(fields, name, "Content-Length");
    fields->transfer_encodings += count_framing(fields, name, "Transfer-Encoding");
}

void http_fields_add_argument(struct http_fields *fields, const char *name, const char *value)
{
    add(&fields->arguments, name, value, strlen(value));
}

static const char *find(const struct buffer *in, const char *name,
                        int (*compare)(const char *, const char *))
{
    const char *at = in->data, *end = in->data + in->len;

    while (at && at < end) {
        const char *value = at + strlen(at) + 1;
        if (compare(at, name) == 0)
            return value;
        at = value + strlen(value) + 1;
    }
    return NULL;
}

const char *http_fields_header(const struct http_fields *fields, const char *name)
{
    return find(&fields->headers, name, strcasecmp);
}

const char *http_fields_argument(const struct http_fields *fields, const char *name)
{
    return find(&fields->arguments, name, strcmp);
}

static int judge_length(const char *digits, size_t max_body)
{
    uint64_t length = 0;
    size_t count = strspn(digits, "0123456789");

    if (count == 0 || digits[count])
        return 400;
    if (count > LENGTH_DIGITS_MAX)
        return 413;
    for (; *digits; digits++)
        length = length * 10 + (uint64_t)(*digits - '0');
    return length > max_body ? 413 : 0;
}

int http_fields_judge(const struct http_fields *fields, bool http_1_0, size_t max_body)
{
    const char *length = http_fields_header(fields, "Content-Length");

    if (fields->malformed || fields->headers.overflowed || fields->arguments.overflowed)
        return 400;
    if (fields->content_lengths + fields->transfer_encodings > 1)
        return 400;
    if (http_1_0 ? fields->transfer_encodings > 0 : fields->hosts != 1)
        return 400;
    return length ? judge_length(length, max_body) : 0;
}
