#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: the Check programs of tests/unit, then the
# Python tests against the daemon. The last line is the total: `N passed, N failed[, N skipped]`.
#
#   test.sh          build/
#   test.sh asan     build/asan, by gcc with AddressSanitizer and UndefinedBehaviorSanitizer
#   test.sh tsan     build/tsan, by clang with ThreadSanitizer
#
# A failure never keeps a later part from running. A report of a sanitizer is a failure, in whatever
# process it came up: the reports go to files, which are counted at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

variant=${1:-plain}
build=build/$variant needs=(test) settings=()
case $variant in
plain) build=build ;;
asan) settings=('SANITIZE=address,undefined') ;;
tsan)
    settings=(SANITIZE=thread CC=clang)
    needs+=(tsan)
    ;;
*)
    echo "usage: test.sh [asan|tsan]" >&2
    exit 2
    ;;
esac

passed=0 failed=0 skipped=0
reports=$PWD/$build/reports results=$build/results

# fail SENTENCE: counts a failure that no test counts for itself.
fail() {
    echo "FAILED: $1"
    failed=$((failed + 1))
}

CHECK_SUMMARY='^[0-9]+%: Checks: ([0-9]+), Failures: ([0-9]+), Errors: ([0-9]+)$'
# A program whose child processes crash is counted by Check; one that dies itself has no summary.
run_unit_program() {
    local program=$1 log=$results/${1##*/}.log status=0 summary checks failures errors
    if [ ! -x "$program" ]; then
        fail "$program was not built"
        return
    fi
    timeout 600 "$program" >"$log" 2>&1 || status=$?
    summary=$(sed -nE "s/$CHECK_SUMMARY/\1 \2 \3/p" "$log")
    if [ $status -ne 0 ]; then
        cat "$log"
    fi
    if [ -z "$summary" ]; then
        fail "$program ended with status $status and no summary"
        return
    fi
    read -r checks failures errors <<<"$summary"
    passed=$((passed + checks - failures - errors))
    failed=$((failed + failures + errors))
    echo "$program: $checks checks, $((failures + errors)) failed"
    if [ $status -ne 0 ] && [ $((failures + errors)) -eq 0 ]; then
        fail "$program ended with status $status"
    fi
}

run_python_tests() {
    local status=0 n_passed n_failed n_skipped
    build/venv/bin/python -m pytest tests -q -p no:cacheprovider --timeout 300 \
        --junitxml "$results/pytest.xml" || status=$?
    if [ ! -s "$results/pytest.xml" ]; then
        fail "pytest ended with status $status and no results"
        return
    fi
    read -r n_passed n_failed n_skipped < <(build/venv/bin/python - "$results/pytest.xml" <<'EOF'
import sys
from xml.etree import ElementTree

suites = list(ElementTree.parse(sys.argv[1]).iter("testsuite"))
tests, failures, errors, skipped = (
    sum(int(suite.get(key)) for suite in suites)
    for key in ("tests", "failures", "errors", "skipped")
)
print(tests - failures - errors - skipped, failures + errors, skipped)
EOF
    )
    passed=$((passed + n_passed)) failed=$((failed + n_failed)) skipped=$((skipped + n_skipped))
    if [ $status -ne 0 ] && [ "$n_failed" -eq 0 ]; then
        fail "pytest ended with status $status"
    fi
}

scripts/setup.sh "${needs[@]}"
rm -rf "$results" "$reports"
mkdir -p "$results" "$reports"

shopt -s nullglob
targets=("$build/load")
for source in tests/unit/test_*.c tests/tokenizer/*.c tests/grammar/*.c \
    tests/template/*.c; do
    name=${source##*/}
    targets+=("$build/tests/${name%.c}")
done
# -k: what does build is tested.
make -s -k -j"$(nproc)" BUILD="$build" "${settings[@]}" "$build/mlad" "${targets[@]}" ||
    fail "the build"

common=log_path=$reports/report:exitcode=66
export MLAD_BINARY=$PWD/$build/mlad MLAD_TOKENIZE_CLI=$PWD/$build/tests/tokenize_cli
export MLAD_GRAMMAR_CLI=$PWD/$build/tests/grammar_cli
export MLAD_TEMPLATE_CLI=$PWD/$build/tests/template_cli
export CK_VERBOSITY=normal
if [ "$variant" != plain ]; then
    export CK_TIMEOUT_MULTIPLIER=5
    export ASAN_OPTIONS=$common:detect_leaks=1:detect_stack_use_after_return=1
    export UBSAN_OPTIONS=$common:print_stacktrace=1:halt_on_error=1
    # Only our code is instrumented.
    export TSAN_OPTIONS=$common:halt_on_error=1:ignore_noninstrumented_modules=1
fi

for target in "${targets[@]}"; do # the others are driven by Python tests
    [[ $target != */test_* ]] || run_unit_program "$target"
done
run_python_tests

for report in "$reports"/*; do
    cat "$report"
    fail "a sanitizer report, above ($report)"
done

total="$passed passed, $failed failed"
[ $skipped -eq 0 ] || total+=", $skipped skipped"
[ $((passed + failed)) -gt 0 ] || echo "no test ran"
echo "$total"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
