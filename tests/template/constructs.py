"""The cases of cases.json: expressions that have a value, small templates for each construct, and
templates that fail; with what the expressions and the failing ones are given."""

import json
from pathlib import Path

CASES = json.loads((Path(__file__).parent / "cases.json").read_text(encoding="utf-8"))
EXPRESSIONS, TEMPLATES, ERRORS = CASES["expressions"], CASES["templates"], CASES["errors"]

CONTEXT = {
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
    ],
    "s": "Hello, wörld",
    "padded": "  x y\n",
    "empty": "",
    "n": 7,
    "f": 2.5,
    "one": 1.0,
    "big": 123456789012345678901234567890,
    "tiny": 1e-10,
    "t": True,
    "no": False,
    "none_value": None,
    "words": ["b", "A", "c", "a"],
    "numbers": [3, 1, 2],
    "d": {"b": 1, "a": [1, {"x": None}], "items": 5, "ü": "ß"},
    "people": [
        {"name": "Bob", "age": 30, "tags": ["x"]},
        {"name": "ann", "age": 25, "tags": []},
        {"name": "Cy", "age": 30},
    ],
    "bos_token": "<s>",
}
