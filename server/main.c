/* mlad: command line to command. */
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "config/options.h"
#include "server/daemon.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void print_help(void)
{
    printf("mlad %s: inference server for Multi-head Latent Attention models\n\n"
           "usage: mlad [serve] [--flag VALUE]...\n\n"
           "Every flag is also an environment variable (--max-num-seqs: MLAD_MAX_NUM_SEQS) and a\n"
           "line of the --config file (max-num-seqs = 64). The command line wins.\n\n",
           MLAD_VERSION);
    options_print_help(stdout);
}

/* Where the demo model lies: beside an installed binary (PREFIX/bin/mlad) or one in a build tree
 * (build/mlad, build/asan/mlad). NULL when there is none. The caller frees it. */
static char *demo_model_dir(void)
{
    static const char *const places[] = {"../share/mlad/model/demo", "../model/demo",
                                         "../../model/demo"};
    char exe[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

    if (len < 0)
        return NULL;
    exe[len] = '\0';
    *strrchr(exe, '/') = '\0';
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        char *dir = path_join(exe, places[i]);
        char *config = path_join(dir, "config.json");
        bool found = file_exists(config);
        free(config);
        char *real = found ? realpath(dir, NULL) : NULL;
        free(dir);
        if (real)
            return real;
    }
    return NULL;
}

static enum log_level level_of(const char *name)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    enum log_level level = LOG_ERROR;

    while (strcmp(names[level], name) != 0)
        level++;
    return level;
}

static int serve(const struct options *options)
{
    char *dir = *options->model ? mem_strdup(options->model) : demo_model_dir();

    log_configure(level_of(options->log_level), strcmp(options->log_format, "json") == 0);
    if (!dir) {
        fprintf(stderr,
                "mlad: no --model was given, and the demo model is not beside the binary\n");
        return EXIT_FAILURE;
    }
    int status = daemon_run(options, dir);
    free(dir);
    return status;
}

int main(int argc, char **argv)
{
    struct options options;
    struct error err;
    int first = argc > 1 && strcmp(argv[1], "serve") == 0 ? 2 : 1;

    if (argc > 1 && argv[1][0] != '-' && first == 1) {
        fprintf(stderr, "mlad: unknown command \"%s\" (there is: serve)\n", argv[1]);
        return 2;
    }
    if (options_load(&options, argc - first, argv + first, &err)) {
        fprintf(stderr, "mlad: %s\n", err.message);
        return 2;
    }
    int status = EXIT_SUCCESS;
    if (options.help)
        print_help();
    else if (options.version)
        printf("mlad %s\n", MLAD_VERSION);
    else
        status = serve(&options);
    options_free(&options);
    return status;
}
