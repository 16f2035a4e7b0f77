"""What grammars let through, against other implementations: jsonschema, re, json."""

import datetime
import json
import random
import re

import pytest
from grammar_client import ask, ask_one
from jsonschema import Draft202012Validator, FormatChecker
from schemas import Generator

SCHEMAS = 640  # random ones
CHUNK = 80

checker = FormatChecker(formats=())


def iso(parse):
    """A check by a function of the standard library, which knows a final Z from Python 3.11 on."""

    def check(text) -> bool:
        if isinstance(text, str):
            parse(text.replace("Z", "+00:00"))
        return True

    return check


checker.checks("date", raises=ValueError)(iso(datetime.date.fromisoformat))
checker.checks("time", raises=ValueError)(iso(datetime.time.fromisoformat))
checker.checks("date-time", raises=ValueError)(iso(datetime.datetime.fromisoformat))
for name in ("email", "ipv4", "ipv6", "uuid"):
    checker.checkers[name] = FormatChecker.checkers[name]


@checker.checks("hostname")
def is_hostname(text) -> bool:
    label = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
    return not isinstance(text, str) or bool(re.fullmatch(rf"{label}(\.{label})*", text))


@checker.checks("duration")
def is_duration(text) -> bool:
    day = r"(\d+D)?"
    return not isinstance(text, str) or bool(
        re.fullmatch(rf"P(?!$)(\d+W|(\d+Y)?(\d+M)?{day}(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)", text)
    )


def validate(schema, text: str) -> None:
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False).encode()  # no lone surrogates
    errors = list(Draft202012Validator(schema, format_checker=checker).iter_errors(value))
    assert not errors, f"{json.dumps(schema)}\n{text}\n{errors[0].message}"


@pytest.mark.parametrize("first", range(0, SCHEMAS, CHUNK))
def test_documents_of_random_schemas_are_valid(first: int):
    schemas = [Generator(seed).document() for seed in range(first, first + CHUNK)]
    cases = [
        {"kind": "schema", "source": s, "seeds": [1, 2, 3, 4], "steps": 15 * (i % 6)}
        for i, s in enumerate(schemas)
    ]
    for schema, answer in zip(schemas, ask(cases), strict=True):
        Draft202012Validator.check_schema(schema)
        assert "error" not in answer, f"{json.dumps(schema)}\n{answer['error']}"
        for text in answer["texts"]:
            validate(schema, text)


def test_documents_of_a_model_fit():
    """What json.dumps writes of a valid value is let through: compact, with spaces, indented."""
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "tags": {"type": "array", "items": {"enum": ["x", "y"]}},
            "more": {"type": "object"},
        },
        "required": ["name"],
        "additionalProperties": False,
    }
    values = [
        {"name": 'J "Q" \\ né\n'},
        {"name": "", "score": 0.25, "tags": ["x", "y", "x"], "more": {"a": [1, {"b": None}]}},
        {"name": "x", "more": {}},
    ]
    for options in ({}, {"separators": (",", ":")}, {"indent": 2}, {"indent": "\t"}):
        for ascii_only in (True, False):
            texts = [json.dumps(v, ensure_ascii=ascii_only, **options) for v in values]
            assert ask_one("schema", schema, texts)["fits"] == [True] * len(texts), texts


def test_documents_that_are_not_valid_do_not_fit():
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": -12, "maximum": 305}},
        "required": ["n"],
        "additionalProperties": False,
    }
    numbers = [-13, -12, -1, 0, 7, 99, 300, 305, 306, 1000]
    texts = [json.dumps({"n": n}) for n in numbers]
    texts += ['{"n":-0}', '{"n":01}', '{"n":1.5}', "{}", '{"n":1,"m":2}', '{"n":1}x', '{"n":1}\n']
    wanted = [-12 <= n <= 305 for n in numbers] + [False] * 7
    assert ask_one("schema", schema, texts)["fits"] == wanted


@pytest.mark.parametrize("seed", range(6))
def test_bounds_of_numbers_are_exact(seed: int):
    rng = random.Random(seed)
    cases, values = [], []
    for _ in range(40):
        low, high = sorted(round(rng.uniform(-120, 120), rng.randrange(3)) for _ in range(2))
        high = round(high + 2, 2)
        schema = {"type": rng.choice(["number", "integer"])}
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = high
        near = [low, high, low + 0.01, high - 0.01, low - 0.01, high + 0.01, 0, 1, -1]
        tries = [round(v + d, 2) for v in near for d in (0, 0, 1, -1)]
        tries = [int(t) if t == int(t) else t for t in tries]
        cases.append({"kind": "schema", "source": schema, "tries": [json.dumps(t) for t in tries]})
        values.append(tries)
    for case, tries, answer in zip(cases, values, ask(cases), strict=True):
        valid = [Draft202012Validator(case["source"]).is_valid(t) for t in tries]
        assert answer["fits"] == valid, (case["source"], tries)


REFUSED = [
    ({"type": "string", "not": {"const": "x"}}, '"not"'),
    ({"type": "object", "patternProperties": {}}, '"patternProperties"'),
    ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
    ({"if": {}}, '"if"'),
    ({"type": "string", "format": "uri"}, 'format "uri"'),
    ({"type": "text"}, '"type" must be'),
    ({"$ref": "#/$defs/none"}, "leads nowhere"),
    ({"$ref": "http://example.com/schema"}, "leads nowhere"),
    ({"$ref": "#"}, "begin with itself"),
    ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "needs itself without end"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, '"oneOf"'),
    ({"oneOf": [{"type": "object"}, {"type": "object"}]}, '"oneOf"'),
    ({"enum": []}, "no value"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no number"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, '"minLength"'),
    ({"type": "string", "pattern": "(?=a)"}, "look-around"),
    ({"type": "string", "pattern": "(a"}, "no closing parenthesis"),
    ({"type": "object", "required": ["a"], "additionalProperties": False}, '"a" is required'),
    ({"properties": {"a": {"items": {"type": "x"}}}}, "#/properties/a/items"),
    (False, "false"),
    (7, "must be an object"),
]


@pytest.mark.parametrize(("schema", "words"), REFUSED)
def test_schemas_are_refused_with_a_sentence(schema, words: str):
    answer = ask_one("schema", schema)
    assert words in answer.get("error", ""), answer


REGEXES = [
    r"[a-z]+\d{2,3}",
    r"(foo|bar|)baz?",
    r"^\w+\s\w+$",
    r"[^\W\d]+|\D\S\W",
    r"(\+\d{1,3} ?)?\(?\d{3}\)?[- ]\d{4}",
    r"é[à-ÿ]*\u03A9?",
    r"[\]\-\\^]{1,4}",
    r"(?:a|b(?:c|d)){2,}?e*?",
    r"\x41\.\t?\$",
    r"(?P<year>\d{4})-(?P<month>0[1-9]|1[0-2])",
    r"((a{2}){3}b?){1,2}",
    r"a{,3}|x{|}",
    r".{3}",
    r"(a*)*b(c?)+",
    r"[\s\S]{0,20}",
    "日本[語国]+",
]


@pytest.mark.parametrize("expression", REGEXES)
def test_texts_of_regular_expressions_match(expression: str):
    answer = ask(
        [{"kind": "regex", "source": expression, "seeds": list(range(40)), "steps": 12}]
    )[0]
    literal = expression.replace("a{,3}", r"a\{,3\}")  # ECMA-262 has no {,n}
    for text in answer["texts"]:
        assert re.fullmatch(literal, text, re.ASCII), text


@pytest.mark.parametrize("seed", range(4))
def test_regular_expressions_agree_with_re(seed: int):
    """Random expressions over a small alphabet, on all short texts and some longer ones."""
    rng = random.Random(seed)

    def expression(depth: int) -> str:
        kind = rng.randrange(7) if depth else rng.randrange(2)
        if kind < 2:
            return rng.choice(["a", "b", "[ab]", "[^a]", "c", ".", r"\w"])
        if kind < 4:
            return expression(depth - 1) + expression(depth - 1)
        if kind == 4:
            return f"(?:{expression(depth - 1)}|{expression(depth - 1)})"
        quantifier = rng.choice(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?"])
        return f"({expression(depth - 1)}){quantifier}"

    texts = [""] + [a + b + c for a in "abc" for b in ("", *"abc") for c in ("", *"abc")]
    texts += ["".join(rng.choices("abc", k=rng.randrange(4, 8))) for _ in range(30)]
    expressions = [expression(4) for _ in range(60)]
    answers = ask([{"kind": "regex", "source": e, "tries": texts} for e in expressions])
    for e, answer in zip(expressions, answers, strict=True):
        assert answer["fits"] == [bool(re.fullmatch(e, t)) for t in texts], e


def test_choices_are_the_strings_of_the_list():
    choices = ["yes", "no", "yesterday", "né", "", "日本"]
    answer = ask_one("choice", choices, [*choices, "ye", "yester", "nee"], range(60))
    assert answer["fits"] == [True] * len(choices) + [False] * 3
    assert set(answer["texts"]) == set(choices)


def test_large_enums_are_compiled():
    words = [f"word-{i * i}" for i in range(8000)]
    answer = ask_one("schema", {"enum": words}, ['"word-49"', '"word-50"'], [1, 2, 3])
    assert answer["fits"] == [True, False]
    assert all(json.loads(text) in words for text in answer["texts"])


ARITHMETIC = r"""
root   ::= sum
sum    ::= term (("+" | "-") term)*   # no left recursion
term   ::= factor ("*" factor){0,3}
factor ::= [0-9]+ | "(" sum ")" | name
name   ::= [a-z_] [a-z0-9_]*
"""


def test_grammars_in_ebnf():
    good = ["1+2*x", "((a))", "12-(3*(4+y_1))"]
    bad = ["1+", "()", "1++2", "(1", "2*2*2*2*2", "X"]
    answer = ask_one("ebnf", ARITHMETIC, good + bad, range(20))
    assert answer["fits"] == [True] * len(good) + [False] * len(bad)
    assert all(text.count("(") == text.count(")") for text in answer["texts"])


def test_any_object_is_an_object():
    answer = ask_one("object", None, ["{}", "[]", '{"a":[{}]}', '{"a":1,}', ""], range(40))
    assert answer["fits"] == [True, False, True, False, False]
    assert all(isinstance(json.loads(text), dict) for text in answer["texts"])
