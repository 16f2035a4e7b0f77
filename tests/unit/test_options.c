/* The option table's sources and their order. */
#include "config/options.h"
#include "tests/unit/folder.h"
#include "tests/unit/unit.h"

#include <string.h>

static int load(struct options *options, struct error *err, int n, const char **args)
{
    return options_load(options, n, (char *const *)args, err);
}

static void refuse(const char *message, int n, const char **args)
{
    struct options options;
    struct error err;

    ck_assert_int_eq(load(&options, &err, n, args), -1);
    ck_assert_msg(strstr(err.message, message) != NULL, "\"%s\" does not say \"%s\"", err.message,
                  message);
}

START_TEST(test_defaults_stand_in_the_table)
{
    struct options options;
    struct error err;

    ck_assert_int_eq(load(&options, &err, 0, NULL), 0);
    ck_assert_str_eq(options.host, "127.0.0.1");
    ck_assert_int_eq(options.port, 8080);
    ck_assert(options.enable_prefix_caching);
    options_free(&options);
}
END_TEST

START_TEST(test_both_spellings_of_a_flag)
{
    const char *args[] = {"--port", "81", "--host=::1", "--no-enable-prefix-caching", "--help"};
    struct options options;
    struct error err;

    ck_assert_int_eq(load(&options, &err, 5, args), 0);
    ck_assert_int_eq(options.port, 81);
    ck_assert_str_eq(options.host, "::1");
    ck_assert(!options.enable_prefix_caching);
    ck_assert(options.help);
    options_free(&options);
}
END_TEST

START_TEST(test_numbers_may_have_a_fraction_and_a_range)
{
    const char *good[] = {"--gpu-memory-utilization", "0.75"};
    const char *high[] = {"--gpu-memory-utilization=1.01"};
    const char *words[] = {"--gpu-memory-utilization=half"};
    const char *nothing[] = {"--gpu-memory-utilization=nan"};
    struct options options;
    struct error err;

    ck_assert_int_eq(load(&options, &err, 2, good), 0);
    ck_assert_double_eq(options.gpu_memory_utilization, 0.75);
    options_free(&options);
    refuse("--gpu-memory-utilization must be a number from 0 to 1", 1, high);
    refuse("got \"half\"", 1, words);
    refuse("got \"nan\"", 1, nothing);
}
END_TEST

START_TEST(test_command_line_wins_over_environment_over_file_over_default)
{
    char dir[FOLDER_PATH_BYTES], path[FOLDER_PATH_BYTES + 16];
    const char *text = "# a comment\n\nport = 1\nmax-queue = 2\n max-num-seqs=3 \n";
    struct options options;
    struct error err;

    folder_make(dir);
    folder_write(dir, "mlad.conf", text, strlen(text));
    snprintf(path, sizeof(path), "%s/mlad.conf", dir);
    setenv("MLAD_PORT", "10", 1);
    setenv("MLAD_MAX_QUEUE", "20", 1);
    const char *args[] = {"--config", path, "--port=100"};
    ck_assert_msg(load(&options, &err, 3, args) == 0, "%s", err.message);
    ck_assert_int_eq(options.port, 100);
    ck_assert_int_eq(options.max_queue, 20);
    ck_assert_int_eq(options.max_num_seqs, 3);
    ck_assert_int_eq(options.threads, 0);
    options_free(&options);
    unsetenv("MLAD_PORT");
    unsetenv("MLAD_MAX_QUEUE");
    folder_remove(dir);
}
END_TEST

START_TEST(test_sagemaker_says_where_to_listen)
{
    struct options options;
    struct error err;

    setenv("SAGEMAKER_BIND_TO_PORT", "8090", 1);
    ck_assert_int_eq(load(&options, &err, 0, NULL), 0);
    ck_assert_int_eq(options.port, 8090);
    ck_assert_str_eq(options.host, "0.0.0.0");
    options_free(&options);
    unsetenv("SAGEMAKER_BIND_TO_PORT");
}
END_TEST

START_TEST(test_secrets_are_not_for_the_command_line)
{
    struct options options;
    struct error err;

    refuse("--api-key is a secret", 1, (const char *[]){"--api-key=abc"});
    setenv("MLAD_API_KEY", "abc", 1);
    ck_assert_int_eq(load(&options, &err, 0, NULL), 0);
    ck_assert_str_eq(options.api_key, "abc");
    options_free(&options);
    unsetenv("MLAD_API_KEY");
}
END_TEST

START_TEST(test_mistakes_are_named)
{
    refuse("unknown flag --prot", 2, (const char *[]){"--prot", "1"});
    refuse("--port must be a whole number from 0 to 65535, got \"65536\"", 2,
           (const char *[]){"--port", "65536"});
    refuse("got \"8o\"", 2, (const char *[]){"--port", "8o"});
    refuse("--port needs a value", 1, (const char *[]){"--port"});
    refuse("unexpected argument \"x\"", 1, (const char *[]){"x"});
    refuse("--log-level must be one of error|warning|info|debug", 1,
           (const char *[]){"--log-level=loud"});
    refuse("true or false", 1, (const char *[]){"--enable-prefix-caching=maybe"});
    refuse("No such file", 1, (const char *[]){"--config=/nonexistent/mlad.conf"});
}
END_TEST

START_TEST(test_mistakes_in_a_file_name_the_line)
{
    char dir[FOLDER_PATH_BYTES], flag[FOLDER_PATH_BYTES + 32];

    folder_make(dir);
    folder_write(dir, "a.conf", "port = 1\nnonsense\n", 18);
    folder_write(dir, "b.conf", "prot = 1\n", 9);
    snprintf(flag, sizeof(flag), "--config=%s/a.conf", dir);
    refuse("a.conf, line 2: expected `flag = value`", 1, (const char *[]){flag});
    snprintf(flag, sizeof(flag), "--config=%s/b.conf", dir);
    refuse("b.conf, line 1: unknown flag \"prot\"", 1, (const char *[]){flag});
    folder_remove(dir);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_defaults_stand_in_the_table);
    tcase_add_test(tcase, test_both_spellings_of_a_flag);
    tcase_add_test(tcase, test_numbers_may_have_a_fraction_and_a_range);
    tcase_add_test(tcase, test_command_line_wins_over_environment_over_file_over_default);
    tcase_add_test(tcase, test_sagemaker_says_where_to_listen);
    tcase_add_test(tcase, test_secrets_are_not_for_the_command_line);
    tcase_add_test(tcase, test_mistakes_are_named);
    tcase_add_test(tcase, test_mistakes_in_a_file_name_the_line);
}

UNIT_MAIN("options", add_tests)
