#!/usr/bin/env python3
"""Writes config/mlad.conf, every setting with its default, from `mlad --help`.

    scripts/mlad_conf.py [build/mlad] >config/mlad.conf
"""

import re
import subprocess
import sys

HEAD = """\
# mlad.conf: every setting with its default, as `mlad --help` lists them. For `mlad serve --config
# FILE`, or as mlad.conf in the model's folder. The environment (MLAD_MAX_NUM_SEQS=64) and the
# command line win over a file. Made by scripts/mlad_conf.py.
"""


def reference(binary: str) -> str:
    lines = [HEAD]
    done = subprocess.run([binary, "--help"], capture_output=True, text=True, check=True)
    _, _, options = done.stdout.partition("--config.\n\n")
    for block in re.split(r"\n(?=\S|  --)", options):
        flag = re.match(r"\s*--([a-z-]+)[^\n]*\n(.*)", block, re.DOTALL)
        if not flag:
            lines.append(f"\n# ---- {block.strip()}\n")
            continue
        name, text = flag[1], " ".join(flag[2].split())
        default = re.search(r" \[([^]]*)\]$", text)
        if name in ("config", "help", "version", "fail-at-step"):
            continue
        value = default[1] if default else ""
        if value.startswith("on;"):
            value = "true"
        elif not default and flag[0].split("\n")[0].strip() == f"--{name}":
            value = "false"
        text = text[: default.start()] if default else text
        lines.append("\n" + "".join(f"# {line}\n" for line in wrap(text)))
        lines.append(f"#{name} = {value}".rstrip() + "\n")
    return "".join(lines).replace("\n# ---- This program\n", "")


def wrap(text: str, width: int = 96) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


if __name__ == "__main__":
    sys.stdout.write(reference(sys.argv[1] if len(sys.argv) > 1 else "build/mlad"))
