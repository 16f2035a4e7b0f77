/* What every unit test program shares: one Check suite, run and counted by main(). */
#pragma once

#include <check.h>
#include <stdlib.h>

/* Defines main() for a file whose cases are added by `add` (a function on a TCase *). */
#define UNIT_MAIN(name, add)                                                                       \
    int main(void)                                                                                 \
    {                                                                                              \
        Suite *suite = suite_create(name);                                                         \
        TCase *tcase = tcase_create(name);                                                         \
        tcase_set_timeout(tcase, 120);                                                             \
        add(tcase);                                                                                \
        suite_add_tcase(suite, tcase);                                                             \
        SRunner *runner = srunner_create(suite);                                                   \
        srunner_run_all(runner, CK_ENV);                                                           \
        int failed = srunner_ntests_failed(runner);                                                \
        srunner_free(runner);                                                                      \
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;                                               \
    }
