#include "server/served_model.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

char *served_model_name(const struct options *options, const char *dir)
{
    if (*options->served_model_name)
        return mem_strdup(options->served_model_name);
    char *path = mem_strdup(dir);
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/')
        path[--len] = '\0';
    const char *slash = strrchr(path, '/');
    char *name = mem_strdup(slash && slash[1] ? slash + 1 : path);
    free(path);
    return name;
}
