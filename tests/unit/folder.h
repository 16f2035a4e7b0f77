/* A folder of its own for a test: made empty, filled with files, removed with them. */
#pragma once

#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FOLDER_PATH_BYTES = 64 };

static inline void folder_make(char path[FOLDER_PATH_BYTES])
{
    snprintf(path, FOLDER_PATH_BYTES, "/tmp/mlad-unit-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(path));
}

static inline void folder_write(const char *dir, const char *name, const void *data, size_t len)
{
    char path[FOLDER_PATH_BYTES + 128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, len, file), len);
    ck_assert_int_eq(fclose(file), 0);
}

static inline void folder_write_text(const char *dir, const char *name, const char *text)
{
    folder_write(dir, name, text, strlen(text));
}

static inline void folder_remove(const char *dir)
{
    char path[FOLDER_PATH_BYTES + 300];
    struct dirent *entry;
    DIR *open_dir = opendir(dir);

    ck_assert_ptr_nonnull(open_dir);
    while ((entry = readdir(open_dir)) != NULL) {
        snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
        unlink(path); /* fails for "." and "..", as it should */
    }
    closedir(open_dir);
    ck_assert_int_eq(rmdir(dir), 0);
}
