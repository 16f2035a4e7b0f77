#!/usr/bin/env bash
# Installs what is missing, and nothing else: what mlad is built with and, for each argument, more.
#
#   setup.sh [test] [tidy] [tsan] [cuda]
#
#   test   Check, shellcheck, a Python environment in build/venv with tests/requirements*.txt
#   tidy   that environment (it holds clang-format) and shellcheck
#   tsan   clang with ThreadSanitizer
#   cuda   what scripts/cuda.sh installs the toolkit with, and nvcc's host compiler
#
# Each need is probed by using it, so that a compiler or Python from elsewhere counts too.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
# need PACKAGE COMMAND...: the Debian package is missing if the command fails.
need() {
    local package=$1
    shift
    [[ " ${missing[*]} " == *" $package "* ]] || "$@" >/dev/null 2>&1 || missing+=("$package")
}

install_packages() {
    local log as_root=()
    if ! command -v apt-get >/dev/null; then
        echo "setup: please install what these Debian packages hold: ${missing[*]}" >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "setup: as root, please run: apt-get install ${missing[*]}" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    echo "setup: installing ${missing[*]}" >&2
    log=$(mktemp)
    # A broken source fails `update`, but matters only if `install` then misses something. `env`
    # hands the variable through sudo, which clears the environment.
    if ! { "${as_root[@]}" apt-get -q update
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install \
            --no-install-recommends -o DPkg::Lock::Timeout=120 "${missing[@]}"; } >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        echo "setup: apt-get could not install ${missing[*]} (its output is above)" >&2
        exit 1
    fi
    rm -f "$log"
}

# build/venv is made anew when the requirements or the version of Python change.
python_environment() {
    local venv=build/venv stamp files=(tests/requirements.txt tests/requirements-clients.txt)
    stamp=$(python3 --version && cat "${files[@]}")
    [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] && return
    echo "setup: making the Python environment build/venv" >&2
    python3 -m venv --clear "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "${files[@]/#/-r}" >&2
    echo "$stamp" >"$venv/stamp"
}

need gcc gcc --version
need libc6-dev gcc -E -x c -include stdio.h /dev/null
need make make --version
need pkg-config pkg-config --version
need libuv1-dev pkg-config --exists libuv
need libmicrohttpd-dev pkg-config --exists libmicrohttpd
need libgnutls28-dev pkg-config --exists gnutls
need libcurl4-gnutls-dev pkg-config --exists libcurl
need libcjson-dev pkg-config --exists libcjson
need libpcre2-dev pkg-config --exists libpcre2-8

python=false
for purpose in "$@"; do
    case $purpose in
    test | tidy)
        python=true
        need python3 python3 --version
        need python3-venv python3 -c 'import ensurepip, venv'
        ;;&
    test)
        need check pkg-config --exists check
        need curl curl --version
        need openssl openssl version
        need prometheus promtool --version
        need wrk command -v wrk
        need shellcheck shellcheck --version
        ;;
    tidy)
        need shellcheck shellcheck --version
        ;;
    tsan)
        need clang clang --version
        probe=(-fsanitize=thread -x c -o /dev/null -)
        need libclang-rt-dev clang "${probe[@]}" <<<'int main(void) { return 0; }'
        ;;
    cuda)
        need g++ g++ --version
        need python3 python3 --version
        need python3-venv python3 -c 'import ensurepip, venv'
        ;;
    *)
        echo "usage: setup.sh [test] [tidy] [tsan] [cuda]" >&2
        exit 2
        ;;
    esac
done

[ ${#missing[@]} -eq 0 ] || install_packages
[ $python = false ] || python_environment
