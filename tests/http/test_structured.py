"""Structured output: whatever the model would like to say, the answer fits."""

import json
import random
import re

import jsonschema
import openai
import pytest
from daemon import CHAT, COMPLETIONS, Server, in_parallel

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TELL = {"messages": [{"role": "user", "content": "Tell me about a person."}], "max_tokens": 400}


def content(server: Server, **fields) -> str:
    reply = server.post(CHAT, TELL | fields)
    assert reply.status == 200, reply.body
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


def schema_format(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


@pytest.mark.parametrize("seed", range(8))
def test_a_schema_holds_at_any_temperature(server: Server, seed: int) -> None:
    text = content(server, response_format=schema_format(PERSON), temperature=1.5, seed=seed)
    jsonschema.validate(json.loads(text), PERSON)


def random_schema(rng: random.Random, depth: int = 0) -> dict:
    """Schemas whose documents are short, so that no token limit cuts them."""
    kinds = ["integer", "boolean", "enum", "string", "const"]
    kind = rng.choice(kinds + ["object", "array"] * (depth < 2))
    if kind == "object":
        names = rng.sample(["id", "name", "kind", "size", "note"], rng.randint(1, 3))
        return {
            "type": "object",
            "properties": {name: random_schema(rng, depth + 1) for name in names},
            "required": names[: rng.randint(0, len(names))],
            "additionalProperties": False,
        }
    if kind == "array":
        low = rng.randint(0, 2)
        items = random_schema(rng, depth + 1)
        return {"type": "array", "items": items, "minItems": low, "maxItems": low + 1}
    if kind == "integer":
        low = rng.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)}
    if kind == "string":
        return {"type": "string", "minLength": rng.randint(0, 3), "maxLength": rng.randint(3, 8)}
    if kind == "enum":
        return {"enum": rng.sample(["red", "green", 7, None, True, "ü€"], rng.randint(1, 4))}
    return {"const": rng.choice(["fixed", 12, False])} if kind == "const" else {"type": kind}


def test_generated_schemas_are_always_met(server: Server) -> None:
    schemas = [random_schema(random.Random(seed)) for seed in range(60)]

    def answer(schema: dict) -> str:
        return content(server, response_format=schema_format(schema), temperature=1, seed=1)

    for schema, text in zip(schemas, in_parallel(answer, schemas)):
        jsonschema.validate(json.loads(text), schema)


def test_an_object_is_an_object(server: Server) -> None:
    text = content(server, response_format={"type": "json_object"}, temperature=0)
    assert isinstance(json.loads(text), dict)


def test_a_choice_is_one_of_them(server: Server) -> None:
    words = ["yes", "no", "not sure"]
    said = {
        content(server, structured_outputs={"choice": words}, temperature=1.5, seed=seed)
        for seed in range(6)
    }
    assert said <= set(words)
    assert content(server, guided_choice=["only this"]) == "only this"


def test_an_expression_matches_all_of_the_text(server: Server) -> None:
    expression = r"[A-Z]{3}-[0-9]{4}(, ok)?"
    for seed in range(4):
        text = content(server, structured_outputs={"regex": expression}, temperature=1, seed=seed)
        assert re.fullmatch(expression, text)


def test_rules_hold(server: Server) -> None:
    rules = 'root ::= "sum " digits ("+" digits){1,2}\ndigits ::= [0-9]{1,3}\n'
    text = content(server, structured_outputs={"grammar": rules}, temperature=1, seed=2)
    assert re.fullmatch(r"sum \d{1,3}(\+\d{1,3}){1,2}", text)


def test_streamed_and_whole_are_the_same(server: Server) -> None:
    fields = TELL | {"response_format": schema_format(PERSON), "temperature": 1, "seed": 5}
    whole = server.post(CHAT, fields).json()["choices"][0]["message"]["content"]
    assert server.stream(CHAT, **fields).text() == whole


def test_others_in_the_batch_are_not_touched(server: Server) -> None:
    free = {"prompt": "mlad is", "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    alone = server.text(**free)
    bound = TELL | {"response_format": schema_format(PERSON), "temperature": 1}
    jobs = [(COMPLETIONS, free) if i % 2 else (CHAT, bound) for i in range(24)]
    replies = in_parallel(lambda job: server.post(*job).json(), jobs)
    texts = {reply["choices"][0]["text"] for reply in replies[1::2]}
    assert texts == {alone}


def test_the_openai_client_parses_the_answer(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="demo", messages=TELL["messages"], response_format=schema_format(PERSON)
    )
    jsonschema.validate(json.loads(done.choices[0].message.content), PERSON)


def test_a_named_tool_gets_valid_arguments(server: Server) -> None:
    function = {"name": "save_person", "description": "Save a person.", "parameters": PERSON}
    tool = {"type": "function", "function": function}
    fields = TELL | {"tools": [tool], "temperature": 1.5, "seed": 1}
    fields["tool_choice"] = {"type": "function", "function": {"name": "save_person"}}
    (choice,) = server.post(CHAT, fields).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), PERSON)
    assert choice["finish_reason"] == "tool_calls"


def test_only_the_allowed_tokens_come(server: Server) -> None:
    text = server.text(
        prompt="One", allowed_token_ids=[70, 71], max_tokens=20, temperature=1, ignore_eos=True
    )
    assert len(set(text)) <= 2 and len(text) == 20


def test_bad_words_do_not_come(server: Server) -> None:
    ask = {"messages": [{"role": "user", "content": "What is mlad?"}], "temperature": 0}
    plain = server.post(CHAT, ask).json()["choices"][0]["message"]["content"]
    assert "server" in plain
    censored = server.post(CHAT, ask | {"bad_words": ["server"]}).json()
    assert "server" not in censored["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": schema_format({"type": "object", "not": {}})},
        {"structured_outputs": {"regex": "(a"}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {"grammar": "root ::= missing"}},
        {"structured_outputs": {"choice": []}},
        {"guided_regex": "(a{1000}){1000}{1000}"},
    ],
)
def test_what_can_not_be_met_is_refused(server: Server, fields: dict) -> None:
    reply = server.post(CHAT, TELL | fields)
    assert reply.status == 400
    assert reply.error()["param"].split("_")[0] == next(iter(fields)).split("_")[0]
