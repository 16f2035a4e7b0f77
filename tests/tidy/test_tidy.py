"""The tidy checks catch what they are for, and let pass what they should."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tidy

CLANG_FORMAT = Path(sys.executable).parent / "clang-format"
BODY = "    step();\n"


def function(n_lines: int) -> str:
    """A C function whose body, braces included, has that many lines."""
    return "int f(void)\n{\n" + BODY * (n_lines - 2) + "}\n"


BAD = [
    # the direction of includes
    ("base/log.c", '#include "kernels/tensor.h"\n', "base/ must not know kernels/"),
    ("base/log.c", '#include "config/table.h"\n', "base/ must not know config/"),
    ("config/options.c", '#include "server/api.h"\n', "config/ must not know server/"),
    ("kernels/cpu/mla.c", '#include "model/config.h"\n', "kernels/ must not know model/"),
    ("model/model.c", '  #  include "server/loop.h"\n', "model/ must not know server/"),
    ("model/model.c", '#include "../server/loop.h"\n', "not written from the root"),
    ("model/model.c", '#include "model/../server/loop.h"\n', "not written from the root"),
    ("model/model.c", '#include "weights.h"\n', "not written from the root"),
    # headers that few may see
    ("server/loop.c", "#include <microhttpd.h>\n", "microhttpd.h is for server/http*.c only"),
    ("server/http.h", "#include <microhttpd.h>\n", "is for server/http*.c only"),
    ("server/engine.c", "#include <uv.h>\n", "is for server/loop.c only"),
    ("server/engine.c", '#include "uv.h"\n', "is for server/loop.c only"),
    ("model/config.c", "#include <cjson/cJSON.h>\n", "is for base/json.c and server/api*.c only"),
    ("model/model.c", "#include <cuda_runtime.h>\n", "is for kernels/cuda/* only"),
    ("kernels/mla.h", "#include <cuda.h>\n", "is for kernels/cuda/* only"),
    ("kernels/cpu/mla.c", "#include <nccl.h>\n", "is for kernels/cuda/* only"),
    # the environment
    ("server/main.c", 'const char *home = getenv("HOME");\n', "reads the environment"),
    ("kernels/cuda/mla.cu", 'if (secure_getenv("X"))\n', "reads the environment"),
    ("base/log.c", "extern char **environ;\n", "reads the environment"),
    # sizes
    ("base/log.c", "int x; /* " + "x" * 88 + " */\n", "line of 101 columns"),
    ("tests/http/test_x.py", "x = 1  # " + "x" * 92 + "\n", "line of 101 columns"),
    ("base/log.c", function(111), "function of 111 lines"),
    ("kernels/cuda/mla.cu", "namespace\n{\n" + function(111) + "}\n", "function of 111 lines"),
    ("base/log.c", "int x;\n" * 901, "file of 901 lines"),
    # the text
    ("base/log.c", "int x; \n", "white space at the end"),
    ("scripts/x.sh", "true \n", "white space at the end"),
    ("base/log.c", "\tint x;\n", "tab character"),
    ("base/log.c", "int x;", "no newline at the end"),
    ("base/log.c", "/* TO" + "DO: later */\n", "unfinished business"),
    ("scripts/x.py", "# FIX" + "ME\n", "unfinished business"),
    ("scripts/x.py", "def f(:\n", "Python: "),
]

GOOD = [
    ("server/http.c", "#include <microhttpd.h>\n"),
    ("server/http_stream.c", "#include <microhttpd.h>\n"),
    ("server/loop.c", '#include <uv.h>\n#include "server/loop.h"\n'),
    ("server/api_chat.c", '#include <cjson/cJSON.h>\n#include "model/tokenizer.h"\n'),
    ("base/json.c", "#include <cjson/cJSON.h>\n"),
    ("base/log.c", '#include "config/options.h"\n#include <string.h>\n'),
    ("kernels/cuda/mla.cu", '#include <cuda_bf16.h>\n#include "kernels/tensor.h"\n'),
    ("config/options.c", '#include "base/error.h"\nconst char *x = getenv("X");\n'),
    ("server/main.c", 'const char *text = "getenv"; // no getenv here\n'),
    ("server/main.c", "/* getenv stands\n * in no comment: getenv */\n"),
    ("tests/unit/test_loop.c", '#include <uv.h>\n#include "unit.h"\n#include "server/loop.h"\n'),
    ("base/log.c", function(110) + function(110)),
    ("base/log.c", "int x; /* " + "é" * 87 + " */\n"),
    ("base/log.c", "int x;\n" * 900),
    ("scripts/x.py", "x = 1\n" * 901),
    ("base/empty.h", ""),
]


@pytest.mark.parametrize(("path", "text", "problem"), BAD)
def test_a_bad_snippet_is_reported_with_its_place(path: str, text: str, problem: str) -> None:
    reports = tidy.check_file(path, text)
    assert len(reports) == 1
    assert problem in reports[0]
    assert reports[0].startswith(f"{path}:")


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_a_good_snippet_is_not_reported(path: str, text: str) -> None:
    assert tidy.check_file(path, text) == []


def test_a_report_names_the_line() -> None:
    text = "int a;\n\n" + '#include "server/loop.h"\n'
    assert tidy.check_file("model/x.c", text) == ["model/x.c:3: model/ must not know server/"]


def run_tidy(root: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, tidy.__file__, *options, str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository of one tidy file, with files that are nobody's source."""
    for path in ("base/log.c", "build/x.c", ".git/x.c", "tests/.cache/x.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("int x;\n" if path.startswith("base") else "bad \n")
    shutil.copy(Path(tidy.__file__).parents[2] / ".clang-format", tmp_path)
    return tmp_path


def test_a_tidy_tree_passes_and_build_and_hidden_folders_are_not_read(tree: Path) -> None:
    done = run_tidy(tree, "--clang-format", str(CLANG_FORMAT))
    assert (done.returncode, "1 files, tidy" in done.stdout) == (0, True), done.stdout


def test_a_problem_fails_the_run(tree: Path) -> None:
    (tree / "base/log.c").write_text('#include "server/loop.h"\n')
    done = run_tidy(tree, "--clang-format", str(CLANG_FORMAT))
    assert done.returncode == 1
    assert "base/log.c:1: base/ must not know server/" in done.stdout


def test_layout_is_checked_and_repaired_by_clang_format(tree: Path) -> None:
    options = ["--clang-format", str(CLANG_FORMAT)]
    (tree / "base/log.c").write_text("int  f( void ){return 1;}\n")
    done = run_tidy(tree, *options)
    assert done.returncode == 1
    assert "base/log.c:1:" in done.stdout and "clang-format" in done.stdout
    assert run_tidy(tree, "--write", *options).returncode == 0
    assert (tree / "base/log.c").read_text() == "int f(void)\n{\n    return 1;\n}\n"
    assert run_tidy(tree, *options).returncode == 0


def test_without_clang_format_nothing_passes(tree: Path) -> None:
    done = run_tidy(tree, "--clang-format", "no-such-program")
    assert done.returncode == 1
    assert "no-such-program is not installed" in done.stdout


def test_shell_scripts_are_checked(tree: Path) -> None:
    (tree / "x.sh").write_text("#!/bin/bash\nrm $1\n")
    done = run_tidy(tree, "--clang-format", str(CLANG_FORMAT))
    assert done.returncode == 1
    assert "x.sh:2:" in done.stdout and "SC2086" in done.stdout


def test_this_repository_is_source() -> None:
    """The walk finds what it should check: a check of nothing would always pass."""
    paths = tidy.source_files(Path(tidy.__file__).parents[2])
    assert {"base/log.c", "server/http.h", "tests/tidy/tidy.py", ".ci/run"} <= set(paths)
