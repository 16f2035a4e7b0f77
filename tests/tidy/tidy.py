#!/usr/bin/env python3
"""The rules of the house that a program can check; `make tidy` runs it over the repository.

    tidy.py [--clang-format PROGRAM] [--write] [ROOT]

Every problem is one line, `path:line: what is wrong`, and any problem makes the exit status 1. The
checks are functions from a path and a text to problems, so that test_tidy.py can show each of them
a bad snippet. --write only lays out the C files anew.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

C_SUFFIXES = {".c", ".h", ".cu", ".cuh"}
SUFFIXES = C_SUFFIXES | {".py", ".sh"}
MAX_COLUMNS = 100
MAX_FUNCTION_LINES = 110
MAX_FILE_LINES = 900
CLANG_FORMAT_VERSION = "14."  # layout differs between versions

# What each part of the product may include of the others. config/options.h is everyone's.
LAYERS = {
    "base": {"base"},
    "config": {"config", "base"},
    "kernels": {"kernels", "base"},
    "model": {"model", "kernels", "base"},
    "server": {"server", "model", "kernels", "base"},
}
EVERYONES_HEADER = "config/options.h"

# (header, files that may include it), all with wildcards
OWNED_HEADERS = [
    ("microhttpd.h", ["server/http*.c"]),
    ("uv.h", ["server/loop.c"]),
    ("*cJSON*.h", ["base/json.c", "server/api*.c"]),
    ("cuda*", ["kernels/cuda/*"]),
    ("cublas*", ["kernels/cuda/*"]),
    ("cub/*", ["kernels/cuda/*"]),
    ("cute/*", ["kernels/cuda/*"]),
    ("cutlass/*", ["kernels/cuda/*"]),
    ("cooperative_groups*", ["kernels/cuda/*"]),
    ("nccl*.h", ["kernels/cuda/*"]),
    ("mma.h", ["kernels/cuda/*"]),
    ("nv*.h", ["kernels/cuda/*"]),
]
GETENV_OWNER = "config/options.c"

INCLUDE = re.compile(r'\s*#\s*include\s*(["<])([^">]+)[">]')
GETENV = re.compile(r"\b(?:secure_)?getenv\b|\benviron\b")
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME)\b")
COMMENT_OR_STRING = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'""", re.DOTALL | re.VERBOSE
)

Problem = tuple[int, str]  # line number, what is wrong


def layer_of(path: str) -> str | None:
    """The part of the product a file belongs to; None for tests and scripts, which are free."""
    first = path.split("/")[0]
    return first if first in LAYERS else None


def without_comments_and_strings(text: str) -> str:
    """The same lines with only code on them."""
    return COMMENT_OR_STRING.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def check_text(path: str, text: str) -> Iterator[Problem]:
    """What holds for every source file."""
    lines = text.split("\n")
    is_c = Path(path).suffix in C_SUFFIXES
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_COLUMNS:
            yield number, f"line of {len(line)} columns, more than {MAX_COLUMNS}"
        if line != line.rstrip():
            yield number, "white space at the end of the line"
        if is_c and "\t" in line:
            yield number, "tab character"
        if UNFINISHED.search(line):
            yield number, "unfinished business: do it, or file an issue"
    if text and not text.endswith("\n"):
        yield len(lines), "no newline at the end of the file"
    n_lines = text.count("\n")
    if is_c and n_lines > MAX_FILE_LINES:
        yield MAX_FILE_LINES + 1, f"file of {n_lines} lines, more than {MAX_FILE_LINES}"


def check_functions(path: str, text: str) -> Iterator[Problem]:
    """Function lengths. A body stands between braces in the first column, as .clang-format says."""
    begin = 0
    for number, line in enumerate(text.split("\n"), 1):
        if line == "{":
            begin = number
        elif line == "}" and begin:
            length = number - begin + 1
            if length > MAX_FUNCTION_LINES:
                yield begin, f"function of {length} lines, more than {MAX_FUNCTION_LINES}"
            begin = 0


def check_includes(path: str, text: str) -> Iterator[Problem]:
    """The direction of includes, and headers of libraries that few files may see."""
    layer = layer_of(path)
    if layer is None:
        return
    for number, line in enumerate(text.split("\n"), 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        quote, header = found.groups()
        owners = next((owners for name, owners in OWNED_HEADERS if fnmatch(header, name)), ["*"])
        if not any(fnmatch(path, owner) for owner in owners):
            yield number, f"{header} is for {' and '.join(owners)} only"
        elif quote == '"' and header != EVERYONES_HEADER:
            target = layer_of(header)
            if target is None or ".." in header:
                yield number, f'"{header}" is not written from the root of the repository'
            elif target not in LAYERS[layer]:
                yield number, f"{layer}/ must not know {target}/"


def check_getenv(path: str, text: str) -> Iterator[Problem]:
    """Settings come from the option table; nothing else reads the environment."""
    if layer_of(path) is None or path == GETENV_OWNER:
        return
    for number, line in enumerate(without_comments_and_strings(text).split("\n"), 1):
        if GETENV.search(line):
            yield number, f"only {GETENV_OWNER} reads the environment"


def check_python(path: str, text: str) -> Iterator[Problem]:
    try:
        compile(text, path, "exec")
    except SyntaxError as error:
        yield error.lineno or 1, f"Python: {error.msg}"


def check_file(path: str, text: str) -> list[str]:
    """All problems of one file, given by its path from the root."""
    checks = [check_text]
    if Path(path).suffix in C_SUFFIXES:
        checks += [check_functions, check_includes, check_getenv]
    if Path(path).suffix == ".py":
        checks += [check_python]
    return [
        f"{path}:{number}: {what}"
        for check in checks
        for number, what in sorted(check(path, text))
    ]


def source_files(root: Path) -> list[str]:
    """Paths from the root: all sources but those in build/ and hidden folders other than .ci/."""
    paths = []
    for folder, subfolders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        subfolders[:] = [
            name
            for name in subfolders
            if name == ".ci" or not (name.startswith(".") or (here / name) == Path("build"))
        ]
        for name in names:
            path = here / name
            if path.suffix in SUFFIXES or path == Path(".ci/run"):
                paths.append(path.as_posix())
    return sorted(paths)


def check_with_program(root: Path, command: list[str], paths: list[str]) -> list[str]:
    """The output of a checking program, when it fails."""
    if not paths:
        return []
    done = subprocess.run([*command, *paths], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    return [done.stdout + done.stderr]


def clang_format_problem(program: str) -> str | None:
    """Why the program can't be used; None if it can."""
    if not shutil.which(program):
        return f"{program} is not installed"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if f"version {CLANG_FORMAT_VERSION}" not in said:
        return f"{program} is not version {CLANG_FORMAT_VERSION}x: {said.strip()}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", nargs="?", default=Path(__file__).parents[2], type=Path)
    parser.add_argument("--clang-format", default="clang-format")
    parser.add_argument("--write", action="store_true", help="format the C files; check nothing")
    args = parser.parse_args()

    paths = source_files(args.root)
    c_paths = [path for path in paths if Path(path).suffix in C_SUFFIXES]
    shell_paths = [path for path in paths if path.endswith(".sh") or path == ".ci/run"]
    if trouble := clang_format_problem(args.clang_format):
        print(f"tidy: {trouble}")
        return 1
    if args.write:
        subprocess.run([args.clang_format, "-i", *c_paths], cwd=args.root, check=True)
        return 0

    problems = []
    for path in paths:
        try:
            problems += check_file(path, (args.root / path).read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            problems.append(f"{path}:1: not UTF-8")
    layout = [args.clang_format, "--dry-run", "-Werror", "--ferror-limit=3"]
    problems += check_with_program(args.root, layout, c_paths)
    if shutil.which("shellcheck"):
        problems += check_with_program(args.root, ["shellcheck", "--format=gcc"], shell_paths)
    else:
        print("tidy: shellcheck is not installed; shell scripts were not checked by it")
    for problem in problems:
        print(problem.rstrip())
    print(f"tidy: {len(paths)} files, {'not tidy' if problems else 'tidy'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
