#include "model/folder.h"

#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_FILES = 65536 }; /* looked at */

static bool has(const char *dir, const char *name)
{
    char *path = path_join(dir, name);
    bool there = file_exists(path);

    free(path);
    return there;
}

static bool ends_with(const char *text, const char *end)
{
    size_t len = strlen(text), end_len = strlen(end);

    return len > end_len && strcmp(text + len - end_len, end) == 0;
}

const char *folder_other_weights(const char *dir)
{
    static const struct {
        const char *ending, *kind;
    } kinds[] = {{".gguf", "GGUF"},           {"adapter_model.safetensors", "a LoRA adapter"},
                 {".bin", "PyTorch pickles"}, {".pth", "PyTorch"},
                 {".pt", "PyTorch pickles"},  {".onnx", "ONNX"}};
    const char *kind = NULL;
    const struct dirent *file;
    DIR *list = opendir(dir);

    for (int n = 0; list && !kind && n < MAX_FILES && (file = readdir(list)) != NULL; n++)
        for (size_t i = 0; !kind && i < sizeof(kinds) / sizeof(kinds[0]); i++)
            kind = ends_with(file->d_name, kinds[i].ending) ? kinds[i].kind : NULL;
    if (list)
        closedir(list);
    return kind;
}

int folder_check(const char *dir, struct error *err)
{
    const char *other;
    struct stat info;

    if (stat(dir, &info) && errno == ENOENT)
        return error_set(err, "%s: there is no such folder; models are not downloaded", dir);
    if (stat(dir, &info))
        return error_set(err, "%s: %s", dir, strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return error_set(err, "%s: is %s, not the folder of a Hugging Face checkpoint", dir,
                         ends_with(dir, ".gguf") ? "a GGUF file" : "a file");
    if (has(dir, "config.json") || has(dir, "params.json"))
        return 0;
    if (has(dir, "adapter_config.json"))
        return error_set(
            err, "%s: is a LoRA adapter, which is not supported: merge it into its model", dir);
    if (has(dir, "snapshots"))
        return error_set(err,
                         "%s: is a folder of the Hugging Face cache: the model is one of the "
                         "folders in its \"snapshots\"",
                         dir);
    other = folder_other_weights(dir);
    return error_set(err, "%s: holds no config.json%s%s%s", dir, other ? "; its weights are " : "",
                     other ? other : "", other ? ", which is not supported" : "");
}
