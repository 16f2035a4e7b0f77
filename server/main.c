/* mlad: command line to command. */
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "config/options.h"
#include "server/batch_run.h"
#include "server/bench.h"
#include "server/daemon.h"
#include "server/healthcheck.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Words of the command line: the command, what it works on, and flags. */
struct command {
    const char *name;
    const char *operands; /* as --help shows them */
    int n_operands;
    const char *help;
    int (*run)(const struct options *options, char *const *operands);
};

/* Where SageMaker mounts the model of an endpoint, and the container image expects it. */
static const char *const MOUNTED_MODEL = "/opt/ml/model";

static bool has_model(const char *dir)
{
    char *config = path_join(dir, "config.json"), *params = path_join(dir, "params.json");
    bool found = file_exists(config) || file_exists(params);

    free(config);
    free(params);
    return found;
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
        char *real = has_model(dir) ? realpath(dir, NULL) : NULL;
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

/* The folder of the model: as told, mounted, or the demo model's; NULL: there is none. The caller
 * frees it. */
static char *find_model_dir(const struct options *options)
{
    return *options->model            ? mem_strdup(options->model)
           : has_model(MOUNTED_MODEL) ? mem_strdup(MOUNTED_MODEL)
                                      : demo_model_dir();
}

/* The same for the model to load; NULL after saying that there is none. */
static char *model_dir_of(const struct options *options)
{
    char *dir = find_model_dir(options);

    if (!dir)
        fprintf(stderr,
                "mlad: no --model was given, and the demo model is not beside the binary\n");
    return dir;
}

static int run_serve(const struct options *options, char *const *operands)
{
    char *dir = model_dir_of(options);

    (void)operands;
    int status = dir ? daemon_run(options, dir) : EXIT_FAILURE;
    free(dir);
    return status;
}

static int run_batch(const struct options *options, char *const *operands)
{
    char *dir = model_dir_of(options);
    int status = dir ? (int)batch_run(options, dir, operands[0], operands[1]) : EXIT_FAILURE;

    free(dir);
    return status;
}

static int run_bench(const struct options *options, char *const *operands)
{
    char *dir = model_dir_of(options);

    (void)operands;
    int status = dir ? bench_run(options, dir) : EXIT_FAILURE;
    free(dir);
    return status;
}

static int run_healthcheck(const struct options *options, char *const *operands)
{
    struct error err;

    (void)operands;
    if (healthcheck(options, &err) == 0)
        return EXIT_SUCCESS;
    fprintf(stderr, "mlad: %s\n", err.message);
    return EXIT_FAILURE;
}

static const struct command commands[] = {
    {"serve", "", 0, "answer requests over HTTP (also without a command)", run_serve},
    {"batch", " IN.jsonl OUT.jsonl", 2,
     "answer the lines of an OpenAI batch file (- is standard input or\n"
     "      output). Started again on the same OUT.jsonl it goes on where it stopped. Exit "
     "status:\n"
     "      0 when every line has its answer, 1 when it could not go on, 3 when a signal stopped\n"
     "      it. --request-timeout-s holds only when it stands on the command line",
     run_batch},
    {"bench", "", 0,
     "time the engine without HTTP: prefill by --bench-prompts, decode by --bench-batches and\n"
     "      --bench-contexts, and where a decode step's time goes, each beside what the device's\n"
     "      memory and arithmetic allow. --json prints JSON; --dummy-weights needs no model files",
     run_bench},
    {"healthcheck", "", 0,
     "ask the daemon at --host and --port whether it lives: exit status 0 or 1", run_healthcheck},
};

enum { N_COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static void print_help(void)
{
    printf("mlad %s: inference server for Multi-head Latent Attention models\n\n"
           "usage: mlad [COMMAND] [--flag VALUE]...\n\n",
           MLAD_VERSION);
    for (int i = 0; i < N_COMMANDS; i++)
        printf("  %s%s\n      %s\n", commands[i].name, commands[i].operands, commands[i].help);
    printf(
        "\nEvery flag is also an environment variable (--max-num-seqs: MLAD_MAX_NUM_SEQS) and a\n"
        "line of the --config file (max-num-seqs = 64) or of mlad.conf in the model's folder. The\n"
        "command line wins, then the environment, then --config.\n\n");
    options_print_help(stdout);
}

/* The command that the first word names; serve when it is a flag or there is none. NULL after
 * saying that there is no such command. */
static const struct command *find_command(int argc, char *const *argv)
{
    if (argc < 2 || argv[1][0] == '-')
        return &commands[0];
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return &commands[i];
    fprintf(stderr, "mlad: unknown command \"%s\" (there are:", argv[1]);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(stderr, "%s %s", i ? "," : "", commands[i].name);
    fputs(")\n", stderr);
    return NULL;
}

static bool is_operand(const char *word)
{
    return word[0] != '-' || word[1] == '\0';
}

/* The settings from all sources. A model's folder may bring some along, in mlad.conf, which any
 * other source overrides: the folder is all that SageMaker lets one put beside the image. */
static int load_settings(struct options *options, int n_flags, char *const *flags,
                         struct error *err)
{
    if (options_load(options, n_flags, flags, err))
        return -1;
    char *dir = find_model_dir(options);
    char *file = dir ? path_join(dir, "mlad.conf") : NULL;
    int rc = 0;

    if (file && file_exists(file)) {
        options_free(options);
        rc = options_load_over(options, file, n_flags, flags, err);
    }
    free(file);
    free(dir);
    return rc;
}

/* The settings of the command, from its flags and the other sources. */
static int load_options(struct options *options, const struct command *command, int n_flags,
                        char *const *flags, struct error *err)
{
    if (command->run != run_batch)
        return load_settings(options, n_flags, flags, err);
    /* A limit meant for clients that wait doesn't cut the lines of a batch: of all the sources of
     * this setting only the command line counts, where the last of equal flags wins. */
    char **all = mem_zalloc((size_t)n_flags + 1, sizeof(*all));
    static char no_limit[] = "--request-timeout-s=0";
    all[0] = no_limit;
    for (int i = 0; i < n_flags; i++)
        all[1 + i] = flags[i];
    int rc = load_settings(options, n_flags + 1, all, err);
    free(all);
    return rc;
}

int main(int argc, char **argv)
{
    const struct command *command = find_command(argc, argv);
    struct options options;
    struct error err;
    int at = argc > 1 && argv[1][0] != '-' ? 2 : 1, n_operands = 0;

    if (!command)
        return 2;
    char *const *operands = argv + at;
    while (n_operands < command->n_operands && at < argc && is_operand(argv[at]))
        n_operands++, at++;
    if (load_options(&options, command, argc - at, argv + at, &err)) {
        fprintf(stderr, "mlad: %s\n", err.message);
        return 2;
    }
    log_configure(level_of(options.log_level), strcmp(options.log_format, "json") == 0);
    int status = EXIT_SUCCESS;
    if (options.help) {
        print_help();
    } else if (options.version) {
        printf("mlad %s\n", MLAD_VERSION);
    } else if (n_operands < command->n_operands) {
        fprintf(stderr, "mlad: usage: mlad %s%s [--flag VALUE]...\n", command->name,
                command->operands);
        status = 2;
    } else {
        status = command->run(&options, operands);
    }
    options_free(&options);
    return status;
}
