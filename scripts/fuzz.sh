#!/usr/bin/env bash
# Builds the fuzz targets (libFuzzer with AddressSanitizer and UBSan) and runs each for
# FUZZ_SECONDS (30), from tests/fuzz/seeds and what earlier runs found. A crash, a hang of 20 s or a
# broken assertion fails; its input is left in build/fuzz/.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh tsan # for clang and its runtimes
targets=(tests/fuzz/fuzz_*.c)
targets=("${targets[@]#tests/fuzz/fuzz_}")
targets=("${targets[@]%.c}")
make -s -j"$(nproc)" BUILD=build/fuzz CC=clang SANITIZE=fuzzer-no-link,address,undefined \
    "${targets[@]/#/build/fuzz/bin/}"

failed=0
for target in "${targets[@]}"; do
    corpus=build/fuzz/corpus/$target log=build/fuzz/$target.log
    mkdir -p "$corpus"
    if build/fuzz/bin/"$target" -max_total_time="${FUZZ_SECONDS:-30}" -timeout=20 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="build/fuzz/$target-" \
        "$corpus" "tests/fuzz/seeds/$target" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$log")
        echo "fuzz $target: $runs inputs, none failed"
    else
        cat "$log"
        echo "fuzz $target: FAILED"
        failed=1
    fi
done
rm -rf /dev/shm/mlad-fuzz-*
exit $failed
