"""Runs grammar_cli: random texts from grammars, and whether texts fit them."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLI = Path(os.environ.get("MLAD_GRAMMAR_CLI", ROOT / "build" / "tests" / "grammar_cli"))
TOKENIZER = Path(os.environ.get("MLAD_GRAMMAR_TOKENIZER", ROOT / "model" / "demo"))


def ask(cases: list[dict], tokenizer: Path = TOKENIZER) -> list[dict]:
    """One answer a case: see grammar_cli.c."""
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run(
        [CLI, tokenizer], input=lines.encode(), capture_output=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases)
    return answers


def ask_one(kind: str, source, tries: list[str] = (), seeds: list[int] = ()) -> dict:
    return ask([{"kind": kind, "source": source, "tries": list(tries), "seeds": list(seeds)}])[0]
