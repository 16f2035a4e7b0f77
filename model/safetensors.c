/* A file is: 8 bytes of header length (little-endian), the header as JSON, then the data. The
 * header maps each tensor's name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets in
 * the data; tensors cover the data without holes or overlaps. "__metadata__" is not a tensor.
 *
 * All tensors of all shards stand in one array, sorted by name and searched by bisection: the
 * 91,000 tensors of a DeepSeek-V3 checkpoint are found without a walk over JSON. */
#include "model/safetensors.h"

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "model/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a folder's file, or the index of its files, is called: by transformers, by Mistral. */
static const struct {
    const char *single, *index;
} file_names[] = {
    {"model.safetensors", "model.safetensors.index.json"},
    {"consolidated.safetensors", "consolidated.safetensors.index.json"},
};

enum {
    MAX_HEADER_BYTES = 100000000, /* the format's own limit */
    MAX_SHARDS = 4096,
    LENGTH_BYTES = 8,
};

struct shard {
    const char *name; /* the last part of `path` */
    char *path;
    int fd;
    uint64_t data_at, data_len; /* where the data begins in the file, and its size */
};

struct entry {
    char *name;
    size_t shard;
    struct tensor info;
    char unknown[16];    /* the file's dtype when it is none of ours, else "" */
    uint64_t begin, end; /* in the shard's data */
};

struct safetensors {
    char *dir;
    struct shard *shards;
    size_t n_shards;
    struct entry *entries; /* sorted by name once open */
    size_t n_entries, cap_entries;
};

static const struct {
    const char *name;
    enum dtype dtype;
} dtypes[] = {
    {"F32", DTYPE_F32}, {"F16", DTYPE_F16}, {"BF16", DTYPE_BF16},       {"F8_E4M3", DTYPE_F8_E4M3},
    {"I32", DTYPE_I32}, {"I64", DTYPE_I64}, {"F8_E8M0", DTYPE_F8_E8M0},
};

/* ---- one tensor's description -------------------------------------------------------------- */

static int parse_dtype(struct entry *e, const struct json *value)
{
    if (!json_is(value, JSON_STRING))
        return -1;
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(*dtypes); i++) {
        if (strcmp(json_string(value), dtypes[i].name) == 0) {
            e->info.dtype = dtypes[i].dtype;
            return 0;
        }
    }
    snprintf(e->unknown, sizeof(e->unknown), "%s", json_string(value));
    return e->unknown[0] ? 0 : -1;
}

static int parse_shape(struct entry *e, const struct json *value, uint64_t *elements)
{
    int64_t dim;

    *elements = 1;
    if (!json_is(value, JSON_ARRAY))
        return -1;
    for (const struct json *d = json_first(value); d; d = json_next(d)) {
        if (e->info.rank == TENSOR_MAX_RANK || !json_integer(d, &dim) || dim < 0 ||
            __builtin_mul_overflow(*elements, (uint64_t)dim, elements))
            return -1;
        e->info.shape[e->info.rank++] = dim;
    }
    return 0;
}

static int parse_offsets(struct entry *e, const struct json *value)
{
    const struct json *first = json_is(value, JSON_ARRAY) ? json_first(value) : NULL;
    const struct json *second = first ? json_next(first) : NULL;
    int64_t begin, end;

    if (!second || json_next(second) || !json_integer(first, &begin) ||
        !json_integer(second, &end) || begin < 0 || end < begin)
        return -1;
    e->begin = (uint64_t)begin;
    e->end = (uint64_t)end;
    return 0;
}

/* Fills `e` but for its name and shard. `path` and `name` are for messages. */
static int parse_entry(struct entry *e, const struct json *value, const char *path,
                       const char *name, struct error *err)
{
    uint64_t elements, bytes;

    if (!json_is(value, JSON_OBJECT))
        return error_set(err, "%s: tensor \"%.128s\" must be described by an object", path, name);
    if (parse_dtype(e, json_get(value, "dtype")))
        return error_set(err, "%s: tensor \"%.128s\" has no dtype", path, name);
    if (parse_shape(e, json_get(value, "shape"), &elements))
        return error_set(err, "%s: tensor \"%.128s\" must have a shape of at most %d sizes", path,
                         name, TENSOR_MAX_RANK);
    if (parse_offsets(e, json_get(value, "data_offsets")))
        return error_set(err, "%s: tensor \"%.128s\" must have data_offsets [begin, end]", path,
                         name);
    if (e->unknown[0])
        return 0;
    if (__builtin_mul_overflow(elements, dtype_size(e->info.dtype), &bytes) ||
        bytes != e->end - e->begin)
        return error_set(err,
                         "%s: tensor \"%.128s\" has data_offsets of %llu bytes, which is not the "
                         "size of its shape",
                         path, name, (unsigned long long)(e->end - e->begin));
    return 0;
}

/* ---- one file ------------------------------------------------------------------------------ */

static int compare_offsets(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* Tensors must cover the shard's data exactly. Sorts them by offset. */
static int check_layout(const struct shard *shard, struct entry *entries, size_t n,
                        struct error *err)
{
    uint64_t at = 0;

    if (n > 0)
        qsort(entries, n, sizeof(*entries), compare_offsets);
    for (size_t i = 0; i < n; i++) {
        if (entries[i].begin != at)
            return error_set(err, "%s: tensor \"%.128s\" %s in the data", shard->path,
                             entries[i].name,
                             entries[i].begin < at ? "overlaps another" : "follows a hole");
        at = entries[i].end;
    }
    if (at > shard->data_len)
        return error_set(err, "%s: the file is cut short: %llu bytes of tensor data are missing",
                         shard->path, (unsigned long long)(at - shard->data_len));
    if (at < shard->data_len)
        return error_set(err, "%s: %llu bytes at the end of the file belong to no tensor",
                         shard->path, (unsigned long long)(shard->data_len - at));
    return 0;
}

static struct entry *add_entry(struct safetensors *st, const char *name)
{
    struct entry *e;

    if (st->n_entries == st->cap_entries) {
        st->cap_entries = st->cap_entries ? 2 * st->cap_entries : 1024;
        st->entries = mem_resize(st->entries, st->cap_entries, sizeof(*st->entries));
    }
    e = &st->entries[st->n_entries++];
    memset(e, 0, sizeof(*e));
    e->name = mem_strdup(name);
    return e;
}

static int parse_header(struct safetensors *st, size_t index, const struct json *root,
                        struct error *err)
{
    const struct shard *shard = &st->shards[index];
    size_t first = st->n_entries;

    if (!json_is(root, JSON_OBJECT))
        return error_set(err, "%s: the header must be a JSON object", shard->path);
    for (const struct json *m = json_first(root); m; m = json_next(m)) {
        if (strcmp(json_key(m), "__metadata__") == 0)
            continue;
        struct entry *e = add_entry(st, json_key(m));
        e->shard = index;
        if (parse_entry(e, m, shard->path, e->name, err))
            return -1;
    }
    /* add_entry may have moved the array: it is addressed anew. */
    return check_layout(shard, st->entries + first, st->n_entries - first, err);
}

/* Opens the file and finds how long its header is, by the file's own word. */
static int open_file(struct shard *shard, uint64_t *header_len, struct error *err)
{
    unsigned char length[LENGTH_BYTES];
    struct stat info;

    shard->fd = open(shard->path, O_RDONLY | O_CLOEXEC);
    if (shard->fd < 0 || fstat(shard->fd, &info))
        return error_set(err, "%s: %s", shard->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return error_set(err, "%s: not a regular file", shard->path);
    if (info.st_size < LENGTH_BYTES)
        return error_set(err, "%s: %lld bytes are too few for a safetensors file", shard->path,
                         (long long)info.st_size);
    if (file_pread(shard->fd, shard->path, length, sizeof(length), 0, err))
        return -1;
    if (memcmp(length, "version ", sizeof(length)) == 0)
        return error_set(err, "%s: is a Git LFS pointer, not the file itself: run git lfs pull",
                         shard->path);
    *header_len = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        *header_len = *header_len << 8 | length[i];
    if (*header_len > MAX_HEADER_BYTES || *header_len > (uint64_t)info.st_size - LENGTH_BYTES)
        return error_set(err,
                         "%s: no safetensors file, or cut short: the header would be %llu bytes of "
                         "the file's %lld",
                         shard->path, (unsigned long long)*header_len, (long long)info.st_size);
    shard->data_at = LENGTH_BYTES + *header_len;
    shard->data_len = (uint64_t)info.st_size - shard->data_at;
    return 0;
}

/* Opens shards[index], whose name is set, and adds its tensors. */
static int open_shard(struct safetensors *st, size_t index, struct error *err)
{
    struct shard *shard = &st->shards[index];
    struct json *root = NULL;
    uint64_t len = 0;
    char *text;
    int rc = -1;

    if (open_file(shard, &len, err))
        return -1;
    text = mem_alloc(len);
    if (file_pread(shard->fd, shard->path, text, len, LENGTH_BYTES, err) == 0) {
        root = json_parse(text, len, err);
        rc = root ? parse_header(st, index, root, err)
                  : error_prefix(err, "%s: the header", shard->path);
    }
    json_free(root);
    free(text);
    return rc;
}

/* ---- the folder ---------------------------------------------------------------------------- */

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static const struct entry *find(const struct safetensors *st, const char *name)
{
    struct entry key = {.name = (char *)name};

    if (st->n_entries == 0)
        return NULL;
    return bsearch(&key, st->entries, st->n_entries, sizeof(key), compare_names);
}

static void add_shard(struct safetensors *st, const char *name)
{
    struct shard *shard = &st->shards[st->n_shards++];

    shard->fd = -1;
    shard->path = path_join(st->dir, name);
    shard->name = shard->path + strlen(shard->path) - strlen(name);
}

/* Opens all shards and puts their tensors in order. */
static int open_shards(struct safetensors *st, struct error *err)
{
    for (size_t i = 0; i < st->n_shards; i++)
        if (open_shard(st, i, err))
            return -1;
    if (st->n_entries > 0)
        qsort(st->entries, st->n_entries, sizeof(*st->entries), compare_names);
    for (size_t i = 1; i < st->n_entries; i++) {
        const struct entry *a = &st->entries[i - 1], *b = &st->entries[i];
        if (strcmp(a->name, b->name) == 0)
            return error_set(err, "%s: tensor \"%.128s\" is there twice, also in %s",
                             st->shards[b->shard].path, b->name, st->shards[a->shard].name);
    }
    return 0;
}

/* The file name must stay inside the folder. */
static int check_shard_name(const char *index_path, const struct json *member, struct error *err)
{
    const char *name = json_is(member, JSON_STRING) ? json_string(member) : "";

    if (name[0] && name[0] != '.' && !strchr(name, '/'))
        return 0;
    return error_set(err, "%s: tensor \"%.128s\" must be mapped to a plain file name", index_path,
                     json_key(member));
}

/* Adds the distinct files of the index's weight map as shards, in order of name. */
static int list_shards(struct safetensors *st, const char *index_path, const struct json *map,
                       struct error *err)
{
    size_t n = 0, n_distinct = 0;
    const char **names = mem_zalloc(json_count(map), sizeof(*names));
    int rc = 0;

    for (const struct json *m = json_first(map); m && rc == 0; m = json_next(m)) {
        rc = check_shard_name(index_path, m, err);
        if (rc == 0)
            names[n++] = json_string(m);
    }
    qsort(names, n, sizeof(*names), compare_strings);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(names[i], names[i - 1]) != 0)
            names[n_distinct++] = names[i];
    if (rc == 0 && n_distinct > MAX_SHARDS)
        rc = error_set(err, "%s: names more than %d files", index_path, MAX_SHARDS);
    if (rc == 0) {
        st->shards = mem_zalloc(n_distinct, sizeof(*st->shards));
        for (size_t i = 0; i < n_distinct; i++)
            add_shard(st, names[i]);
    }
    free(names);
    return rc;
}

/* Every tensor of the index must be in the file that the index says. */
static int check_index(const struct safetensors *st, const char *index_path, const struct json *map,
                       struct error *err)
{
    for (const struct json *m = json_first(map); m; m = json_next(m)) {
        const struct entry *e = find(st, json_key(m));
        if (!e || strcmp(st->shards[e->shard].name, json_string(m)) != 0)
            return error_set(err, "%s: tensor \"%.128s\" is not in %s", index_path, json_key(m),
                             json_string(m));
    }
    return 0;
}

static int open_index(struct safetensors *st, const char *index_path, struct error *err)
{
    struct json *root = json_parse_file(index_path, MAX_HEADER_BYTES, err);
    const struct json *map = json_get(root, "weight_map");
    int rc = -1;

    if (!root)
        return -1;
    if (!json_is(map, JSON_OBJECT) || !json_first(map))
        error_set(err, "%s: must have a \"weight_map\" of tensors to files", index_path);
    else if (list_shards(st, index_path, map, err) == 0 && open_shards(st, err) == 0)
        rc = check_index(st, index_path, map, err);
    json_free(root);
    return rc;
}

/* Opens the files that have these names; 1 when there are none. */
static int open_named(struct safetensors *st, const char *single, const char *index,
                      struct error *err)
{
    char *single_path = path_join(st->dir, single), *index_path = path_join(st->dir, index);
    int rc = 1;

    if (file_exists(single_path)) {
        st->shards = mem_zalloc(1, sizeof(*st->shards));
        add_shard(st, single);
        rc = open_shards(st, err);
    } else if (file_exists(index_path)) {
        rc = open_index(st, index_path, err);
    }
    free(single_path);
    free(index_path);
    return rc;
}

struct safetensors *safetensors_open(const char *dir, struct error *err)
{
    struct safetensors *st = mem_zalloc(1, sizeof(*st));
    int rc = 1;

    st->dir = mem_strdup(dir);
    for (size_t i = 0; i < sizeof(file_names) / sizeof(file_names[0]) && rc == 1; i++)
        rc = open_named(st, file_names[i].single, file_names[i].index, err);
    if (rc == 1) {
        const char *other = folder_other_weights(dir);
        error_set(err, "%s: holds neither %s nor %s%s%s%s", dir, file_names[0].single,
                  file_names[0].index, other ? "; its weights are " : "", other ? other : "",
                  other ? ", which is not supported" : "");
    }
    if (rc) {
        safetensors_close(st);
        return NULL;
    }
    return st;
}

void safetensors_close(struct safetensors *st)
{
    if (!st)
        return;
    for (size_t i = 0; i < st->n_shards; i++) {
        if (st->shards[i].fd >= 0)
            close(st->shards[i].fd);
        free(st->shards[i].path);
    }
    for (size_t i = 0; i < st->n_entries; i++)
        free(st->entries[i].name);
    free(st->entries);
    free(st->shards);
    free(st->dir);
    free(st);
}

/* ---- reading ------------------------------------------------------------------------------- */

bool safetensors_has(const struct safetensors *st, const char *name)
{
    return find(st, name) != NULL;
}

const char *safetensors_file(const struct safetensors *st, const char *name)
{
    const struct entry *e = find(st, name);

    return e ? st->shards[e->shard].path : NULL;
}

/* The tensor of that name, if its dtype is known; NULL and a message if not. */
static const struct entry *find_readable(const struct safetensors *st, const char *name,
                                         struct error *err)
{
    const struct entry *e = find(st, name);

    if (!e) {
        error_set(err, "%s: tensor \"%s\" is missing",
                  st->n_shards == 1 ? st->shards[0].path : st->dir, name);
        return NULL;
    }
    if (e->unknown[0]) {
        error_set(err, "%s: tensor \"%s\" has dtype %s, which is not supported",
                  st->shards[e->shard].path, name, e->unknown);
        return NULL;
    }
    return e;
}

int safetensors_info(const struct safetensors *st, const char *name, struct tensor *info,
                     struct error *err)
{
    const struct entry *e = find_readable(st, name, err);

    if (!e)
        return -1;
    *info = e->info;
    return 0;
}

int safetensors_read_part(const struct safetensors *st, const char *name, uint64_t first,
                          size_t len, void *out, struct error *err)
{
    const struct entry *e = find_readable(st, name, err);

    if (!e)
        return -1;
    ASSERT(first <= e->end - e->begin && len <= e->end - e->begin - first);
    const struct shard *shard = &st->shards[e->shard];
    return file_pread(shard->fd, shard->path, out, len, shard->data_at + e->begin + first, err);
}

int safetensors_read(const struct safetensors *st, const char *name, void *out, struct error *err)
{
    const struct entry *e = find_readable(st, name, err);

    return e ? safetensors_read_part(st, name, 0, e->end - e->begin, out, err) : -1;
}
