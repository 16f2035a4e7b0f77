"""The C interpreter of chat templates against jinja2, set up as transformers does it: for every
template and conversation the same text, or both an error.

Extra templates: folders with *.jinja files, separated by colons, in MLAD_TEST_TEMPLATES.
"""

import json
import os
import random
import struct
import subprocess
from pathlib import Path

import constructs
import conversations
import environment
import jinja2
import pytest

ROOT = Path(__file__).resolve().parents[2]
CLI = Path(os.environ.get("MLAD_TEMPLATE_CLI", ROOT / "build" / "tests" / "template_cli"))
FOLDERS = [
    ROOT / "model" / "demo",
    *(Path(p) for p in os.environ.get("MLAD_TEST_TEMPLATES", "").split(":") if p),
]
FILES = sorted(path for folder in FOLDERS for path in folder.glob("*.jinja"))
CONVERSATIONS = conversations.conversations(300)

Answer = tuple[str, str]  # "=" and a text, or "!" and why there is none


def rendered(pairs: list[tuple[str, list[dict]]], mode: str = "") -> list[Answer]:
    """What the C program makes of templates and their contexts, in order."""
    frames = []
    for source, contexts in pairs:
        frames += [source.encode(), json.dumps(contexts).encode()]
    packed = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
    done = subprocess.run(
        [CLI, *([mode] if mode else [])], input=packed, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    answers, at = [], 0
    while at < len(done.stdout):
        (size,) = struct.unpack_from("<I", done.stdout, at)
        answer = done.stdout[at + 4 : at + 4 + size].decode("utf-8")
        answers.append((answer[0], answer[1:]))
        at += 4 + size
    return answers


def expected(source: str, contexts: list[dict], immutable: bool = True) -> list[Answer]:
    try:
        template = environment.make(immutable).from_string(source)
    except Exception as error:
        return [("!", repr(error))] * len(contexts)
    answers = []
    for context in contexts:
        try:
            answers.append(("=", template.render(**context)))
        except Exception as error:  # of Python too: a template can raise anything
            answers.append(("!", repr(error)))
    return answers


def differences(got: list[Answer], want: list[Answer], contexts: list[dict]) -> list[str]:
    assert len(got) == len(want) == len(contexts)
    return [
        f"got      {g}\nexpected {w}\nof {json.dumps(c)}"
        for g, w, c in zip(got, want, contexts, strict=True)
        if g != w and not (g[0] == w[0] == "!")
    ]


def check(source: str, contexts: list[dict], own: bool = False) -> int:
    """Fails on a difference; returns how many contexts gave a text."""
    got = rendered([(source, contexts)], "own" if own else "")
    want = expected(source, contexts, immutable=not own)
    different = differences(got, want, contexts)
    if different:
        shortest = min(different, key=len)
        pytest.fail(f"{len(different)} of {len(contexts)} differ; the shortest:\n{shortest}")
    return sum(kind == "=" for kind, _ in got)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_templates_of_checkpoints(path: Path):
    """Also a sandbox in which lists may be changed, which is how the server renders."""
    source = path.read_text(encoding="utf-8")
    contexts = [dict(c) for c in CONVERSATIONS]
    assert check(source, contexts) >= 20
    assert check(source, contexts, own=True) >= 20


def test_templates_of_constructs():
    """Every small template over the conversations."""
    contexts = CONVERSATIONS[:200]
    got = rendered([(source, contexts) for source in constructs.TEMPLATES])
    for i, source in enumerate(constructs.TEMPLATES):
        part = got[i * len(contexts) : (i + 1) * len(contexts)]
        different = differences(part, expected(source, contexts), contexts)
        assert not different, f"{source!r}: {min(different, key=len)}"
        assert any(kind == "=" for kind, _ in part), f"{source!r} never gives a text: {part[0]}"


def test_expressions():
    """Every expression that has a value has the same one."""
    context = constructs.CONTEXT
    sources = [f"{{{{ {e} }}}}" for e in constructs.EXPRESSIONS]
    got = rendered([(source, [context]) for source in sources])
    wrong = []
    for source, answer in zip(sources, got, strict=True):
        wrong += differences([answer], expected(source, [context]), [{"source": source}])
        if answer[0] == "!":
            wrong.append(f"{source} has no value: {answer[1]}")
    assert not wrong, "\n".join(wrong)


def test_what_fails_fails_here_too():
    context = constructs.CONTEXT
    for source in constructs.ERRORS:
        (want,) = expected(source, [context])
        assert want[0] == "!", f"{source!r} is no error"
    got = rendered([(source, [context]) for source in constructs.ERRORS])
    wrong = [s for s, a in zip(constructs.ERRORS, got, strict=True) if a[0] != "!"]
    assert not wrong
    assert all(message.startswith("line ") for _, message in got)


def test_white_space():
    """Tags, signs and newlines in all orders."""
    parts = ["a", " ", "\n", "  \n", "{{ 1 }}", "{{- 1 -}}", "{% if 1 %}", "{%- if 1 -%}",
             "{%+ if 1 +%}", "{# c #}", "{#- c -#}", "{#+ c +#}", "{% raw %} {{ {% endraw %}",
             "{%- raw -%} x {%- endraw -%}", "{%+ raw %}\n y\n {%+ endraw +%}"]  # fmt: skip
    rng = random.Random(5)
    sources = []
    for _ in range(3000):
        chosen = [rng.choice(parts) for _ in range(rng.randrange(1, 10))]
        for i, part in reversed(list(enumerate(chosen))):
            if "if 1" in part:
                chosen.append(rng.choice([" ", "\n", ""]) + part.replace("if 1", "endif"))
        sources.append("".join(chosen))
    got = rendered([(source, [{}]) for source in sources])
    for source, answer in zip(sources, got, strict=True):
        different = differences([answer], expected(source, [{}]), [{}])
        assert not different, f"{source!r}: {different[0]}"


def test_errors_name_the_line():
    got = rendered(
        [
            ("one\ntwo {{ x.y }}", [{}]),
            ("one\n\n{% if %}", [{}]),
            ("{% for m in [1] %}\n  {{ m.a.b }}\n{% endfor %}", [{}]),
            ("{{ raise_exception('roles must alternate') }}", [{}]),
            ("\n\n{# never ends", [{}]),
        ]
    )
    assert got == [
        ("!", "line 2: 'x' is undefined"),
        ("!", "line 3: the tag ends where an expression should stand"),
        ("!", "line 2: a int has no attribute 'a'"),
        ("!", "line 1: roles must alternate"),
        ("!", "line 3: a comment has no end"),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}"
        "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ 'x' * 9999999999 }}",
        "{{ [0] * 9999999999 }}",
        "{{ '%99999999d' % 1 }}",
        "{{ 'x'.center(9999999999) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "not " * 5000 + "1 }}",
        "{{ " + "-" * 5000 + "1 }}",
        "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
        "{{ 1" + "|string" * 5000 + " }}",
        "{{ " + "1 if 1 else " * 5000 + "2 }}",
        "{{ range(1000000) }}",
        "{{ 'x'|indent(9999999999) }}",
        "{{ [1]|batch(9999999999, 0)|list }}",
        "{{ [1]|slice(9999999999)|list }}",
    ],
)
def test_hostile_templates_end_soon(source: str):
    ((kind, message),) = rendered([(source, [{}])])
    assert kind == "!"
    assert any(word in message for word in ("too", "more than", "deeply")), message


def test_time_is_the_local_time():
    form = "%d %b %Y %A %B %m %y %j %H %-d %%"
    source = "{{ strftime_now('" + form + "') }}"
    before = environment.make().from_string(source).render()
    ((kind, text),) = rendered([(source, [{}])])
    after = environment.make().from_string(source).render()
    assert kind == "=" and text in (before, after)


def test_extends_and_include_are_refused():
    for source in ("{% extends 'x' %}", "{% include 'x' %}", "{% import 'x' as y %}"):
        ((kind, message),) = rendered([(source, [{}])])
        assert kind == "!" and "not supported" in message
    with pytest.raises((TypeError, jinja2.TemplateError)):
        environment.make().from_string("{% include 'x' %}").render()
