#include "server/batch_output.h"

#include "base/buffer.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/panic.h"
#include "server/line_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum {
    LINE_MAX_BYTES = (1 << 30) + (1 << 28), /* the longest answer and the longest custom_id */
    LINES_A_SCAN = 256,
};

/* How each line begins: a torn last line is only cut off when it is one of ours. */
static const char LINE_BEGIN[] = "{\"id\":\"batch_req_";

struct batch_output {
    const char *path; /* for messages */
    int fd;
    bool regular;
    uint64_t size; /* bytes of whole lines, of a regular file */
    struct line_reader *scan;
    struct buffer line;
};

static int failed(const struct batch_output *out, const char *what, struct error *err)
{
    return error_set(err, "can't %s %s: %s", what, out->path, strerror(errno));
}

static int open_file(struct batch_output *out, struct error *err)
{
    struct stat info;
    bool special = stat(out->path, &info) == 0 && !S_ISREG(info.st_mode);
    int how = special ? O_WRONLY : O_RDWR | O_CREAT | O_APPEND;

    out->fd = open(out->path, how | O_CLOEXEC, 0666);
    if (out->fd < 0 || fstat(out->fd, &info))
        return failed(out, "write", err);
    out->regular = S_ISREG(info.st_mode);
    /* A file system without locks is used without. */
    if (out->regular && flock(out->fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        return error_set(err, "another mlad batch is writing %s", out->path);
    return 0;
}

struct batch_output *batch_output_open(const char *path, struct error *err)
{
    struct batch_output *out = mem_zalloc(1, sizeof(*out));
    bool to_stdout = strcmp(path, "-") == 0;

    out->path = to_stdout ? "standard output" : path;
    out->fd = STDOUT_FILENO;
    buffer_init(&out->line, LINE_MAX_BYTES);
    if (!to_stdout && open_file(out, err)) {
        if (out->fd >= 0)
            close(out->fd);
        free(out);
        return NULL;
    }
    if (out->regular)
        out->scan = line_reader_new(out->fd, LINE_MAX_BYTES);
    return out;
}

int batch_output_close(struct batch_output *out, struct error *err)
{
    int rc = 0;

    if (out->regular && fsync(out->fd) && errno != EINVAL && errno != ENOTSUP)
        rc = failed(out, "write", err);
    if (close(out->fd) && rc == 0)
        rc = failed(out, "write", err);
    line_reader_free(out->scan);
    buffer_free(&out->line);
    free(out);
    return rc;
}

bool batch_output_is(const struct batch_output *out, const struct stat *info)
{
    struct stat own;

    return out->regular && fstat(out->fd, &own) == 0 && own.st_dev == info->st_dev &&
           own.st_ino == info->st_ino;
}

/* ---- what is there ------------------------------------------------------------------------ */

enum id_state batch_output_mark(struct id_set *ids, const char *custom_id, int64_t line_number,
                                enum id_state state)
{
    char key[32];

    if (custom_id)
        return id_set_put(ids, custom_id, strlen(custom_id), state);
    /* The NUL in front makes it no custom_id. */
    int len = snprintf(key, sizeof(key), "%c%lld", '\0', (long long)line_number);
    return id_set_put(ids, key, (size_t)len, state);
}

/* Marks a line of the file as done; false when it is no result of a batch. */
static bool mark_done(struct id_set *ids, const struct json *result)
{
    const struct json *custom_id = json_get(result, "custom_id");
    const struct json *error = json_get(result, "error");
    int64_t number = 0;

    if (!custom_id || !error || !json_get(result, "response"))
        return false;
    if (json_is(custom_id, JSON_STRING))
        batch_output_mark(ids, json_string(custom_id), 0, ID_DONE);
    else if (json_type(custom_id) == JSON_NULL && json_integer(json_get(error, "line"), &number))
        batch_output_mark(ids, NULL, number, ID_DONE);
    return true;
}

static int scan_line(struct batch_output *out, const struct line *line, struct id_set *ids,
                     struct error *err)
{
    struct error why;
    struct json *result;
    bool good;

    if (!line->whole) {
        size_t len = line->len < strlen(LINE_BEGIN) ? line->len : strlen(LINE_BEGIN);
        if (memcmp(line->text, LINE_BEGIN, len) != 0)
            return error_set(err,
                             "%s ends in the middle of a line that mlad batch did not write; "
                             "is it the right file?",
                             out->path);
        return ftruncate(out->fd, (off_t)out->size) ? failed(out, "write", err) : 0;
    }
    out->size = line->offset + line->len + 1;
    if (line_is_blank(line->text, line->len))
        return 0;
    result = json_parse(line->text, line->len, &why);
    good = result && mark_done(ids, result);
    json_free(result);
    if (!good)
        return error_set(err,
                         "%s has contents that are no results of a batch (line %lld), so nothing "
                         "is added to it; is it the right file?",
                         out->path, (long long)line->number);
    return 0;
}

int batch_output_scan(struct batch_output *out, struct id_set *ids, struct error *err)
{
    struct line line;

    for (int i = 0; out->regular && i < LINES_A_SCAN; i++) {
        enum line_result result = line_reader_next(out->scan, &line);
        if (result == LINE_END)
            return 0;
        if (result == LINE_FAILED)
            return failed(out, "read", err);
        if (result != LINE_READ)
            return error_set(err, "%s, line %lld is too long for the result of a batch", out->path,
                             (long long)line.number);
        if (scan_line(out, &line, ids, err))
            return -1;
    }
    return out->regular;
}

/* ---- new lines ---------------------------------------------------------------------------- */

/* {"id":"batch_req_…","custom_id":… */
static void begin_line(struct batch_output *out, const char *custom_id)
{
    buffer_clear(&out->line);
    buffer_printf(&out->line, "%s%016llx%016llx\",\"custom_id\":", LINE_BEGIN,
                  (unsigned long long)clock_entropy(), (unsigned long long)clock_entropy());
    if (custom_id)
        json_write_string(&out->line, custom_id, -1);
    else
        buffer_append_str(&out->line, "null");
}

static int write_line(struct batch_output *out, struct error *err)
{
    size_t done = 0;

    buffer_append_str(&out->line, "\n");
    ASSERT(!out->line.overflowed);
    while (done < out->line.len) {
        ssize_t n = write(out->fd, out->line.data + done, out->line.len - done);
        if (n >= 0) {
            done += (size_t)n;
        } else if (errno != EINTR) {
            return failed(out, "write", err); /* a torn line is cut off by the next run */
        }
    }
    out->size += done;
    return 0;
}

int batch_output_answer(struct batch_output *out, const char *custom_id, int status,
                        const void *body, size_t len, struct error *err)
{
    ASSERT(!memchr(body, '\n', len));
    begin_line(out, custom_id);
    buffer_printf(&out->line,
                  ",\"response\":{\"status_code\":%d,\"request_id\":\"req-%016llx\",\"body\":",
                  status, (unsigned long long)clock_entropy());
    buffer_append(&out->line, body, len);
    buffer_append_str(&out->line, "},\"error\":null}");
    return write_line(out, err);
}

int batch_output_error(struct batch_output *out, const char *custom_id, int64_t line_number,
                       const char *code, const char *message, struct error *err)
{
    begin_line(out, custom_id);
    buffer_printf(&out->line, ",\"response\":null,\"error\":{\"code\":\"%s\",\"message\":", code);
    json_write_string(&out->line, message, -1);
    buffer_printf(&out->line, ",\"line\":%lld}}", (long long)line_number);
    return write_line(out, err);
}
