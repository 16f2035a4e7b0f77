"""Calls that a model has to make, in every format: whatever it draws, they parse to arguments that
fit the schema of the tool."""

import json
from pathlib import Path

import pytest
from grammar_client import TOKENIZER, ask
from schemas import NAMES, Generator
from test_grammar import validate

# Markers of each format, in the place of those of the demo model.
KIMI = "<|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|>"
KIMI += " <|tool_call_end|> <|tool_call_argument_begin|>"
GLM = "<tool_call> </tool_call> <arg_key> </arg_key> <arg_value> </arg_value>"
FORMATS = {
    "deepseek": "",
    "deepseek_v32": "｜DSML｜",
    "kimi": KIMI,
    "glm": GLM,
    "mistral": "[TOOL_CALLS] [ARGS] [CALL_ID]",
    "longcat": "<longcat_tool_call> </longcat_tool_call>",
    "gigachat3": "<|role_sep|> <|message_sep|>",
    "minicpm3": "<|tool_call_start|> <|tool_call_end|> <|thought_start|> <|thought_end|>",
}
PAIRS = {"glm", "deepseek_v32", "minicpm3"}
DEMO_MARKERS = range(1003, 1012)


@pytest.fixture(params=FORMATS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The name of a format, and a tokenizer that has it."""
    markers = FORMATS[request.param].split()
    if not markers:
        return request.param, TOKENIZER
    spec = json.loads((TOKENIZER / "tokenizer.json").read_text())
    places = [token for token in spec["added_tokens"] if token["id"] in DEMO_MARKERS]
    if request.param == "deepseek_v32":  # its vocabulary has those of V3.1 too
        places = [token for token in places if "outputs" in token["content"]][:1]
    for i, token in enumerate(places):
        token["content"] = markers[i] if i < len(markers) else f"<unused {i}>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    return request.param, tmp_path


def tool(name: str, parameters: dict | None) -> dict:
    function = {"name": name} | ({"parameters": parameters} if parameters is not None else {})
    return {"type": "function", "function": function}


def calls(form: str, tools: list[dict], named: str | None, **case) -> dict:
    """A case of calls of one of the tools, as the server asks for them."""
    source = []
    for function in (t["function"] for t in tools):
        entry = {} if named else {"name": function["name"]}
        if form == "kimi" and not named:
            entry["name"] = f"functions.{function['name']}:0"
        if "parameters" in function:
            entry["arguments"] = function["parameters"]
        source.append(entry)
    case |= {"named": named} if named else {}
    return {"kind": "calls", "source": source, "tools": tools} | case


def objects(form: str, count: int) -> list[dict]:
    """Random schemas of objects."""
    made = []
    for seed in range(count):
        generator = Generator(seed)
        kinds = [generator.object, generator.object, generator.all_of]
        schema = kinds[seed % 3](2)
        text = json.dumps(schema)
        strange = any(json.dumps(name)[1:-1] in text for name in NAMES if {*name} & {*'"\\\t'})
        if not (form in PAIRS and strange):
            made.append(schema)
    assert len(made) > count / 6
    return made


def test_arguments_fit_any_schema(model: tuple[str, Path]) -> None:
    form, folder = model
    cases, schemas = [], objects(form, 240)
    for i, schema in enumerate(schemas):
        tools = [tool("first", schema), tool("second_tool", None)]
        named = "first" if i % 2 else None
        chosen = tools[:1] if named else tools
        cases.append(calls(form, chosen, named, seeds=[1, 2, 3, 4, 5], steps=25 * (i % 7)))
    for case, schema, answer in zip(cases, schemas, ask(cases, folder), strict=True):
        assert "error" not in answer, f"{json.dumps(schema)}\n{answer['error']}"
        for text in answer["texts"]:
            name, arguments = text.split("\n", 1)
            assert name in ("first", "second_tool"), text
            if name == "first":
                validate(schema, arguments)
            else:
                assert isinstance(json.loads(arguments), dict)
