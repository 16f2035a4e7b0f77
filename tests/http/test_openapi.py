"""The API's description: it is valid, whole, and what the server does.

schemathesis makes requests from the document, those that fit it and those that don't, and compares
each answer with it: status, content type, headers, body. Nothing is left to chance: the same
requests come each time.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import requests
import schemathesis
from daemon import CHAT, COMPLETIONS, ROOT, Server
from hypothesis import HealthCheck, Phase, settings
from hypothesis.configuration import set_hypothesis_home_dir
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.config import SchemathesisConfig

set_hypothesis_home_dir(ROOT / "build/hypothesis")  # its tables of characters

DOCUMENT = json.loads((ROOT / "server/page/openapi.json").read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]
VOCABULARY = 1024  # of the demo model
STATE = {"/health", "/ready", "/ping", "/version", "/metrics", "/execution-parameters"}
PUBLIC = STATE | {"/", "/openapi.json"}

# A context this short bounds what an answer of any length costs, and a queue this short what
# many answers cost.
FLAGS = ("--max-model-len", "192", "--max-num-seqs", "4", "--max-queue", "28")

# Why a request that fits the document may be refused: what a schema can't say.
REASONS = [
    r"'\w+' needs 'tools'",
    r"'tool_choice' names '.*', which is not among 'tools'",
    r"'tools' are for chats only",
    r"'top_logprobs' needs 'logprobs'",
    r"'stream_options' needs 'stream'",
    r"'min_tokens' \(\d+\) is more than 'max_tokens'",
    r"'best_of' other than 'n'",
    r"'prompt_logprobs' are not available with 'stream'",
    r"'truncate_prompt_tokens' is more than the context",
    r"'continue_final_message' and 'add_generation_prompt' can't both be true",
    r"continue_final_message needs a last message",
    r"'(chat_template|chat_template_kwargs|documents|reasoning_effort)' is not supported by this",
    r"maximum context length is",
    r"asks for \d+ sequences",
    r"ask for different outputs",
    r"is for the text of an answer, and this 'tool_choice' asks",
    r"the parameters of a tool",
    r"To close a session, name it in the header",
    r"stop string must have 1 to 1024 bytes",
    r"'stop_token_ids' may hold at most",
    r"is not a token id \(0 to 1023\)",
    r"not in the vocabulary \(0 to 1023\)",
    r"'prompt' must be one text",
    r"'bad_words' may hold at most 256 words of at most 64 tokens",
    r"the (JSON schema|regular expression|list of choices|grammar)",
]


# ---- the document


def test_the_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_the_server_shows_the_document(server: Server) -> None:
    reply = server.get("/openapi.json")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    assert reply.json() == DOCUMENT
    head = server.request("HEAD", "/openapi.json")
    assert (head.body, head.headers["Content-Length"]) == (b"", str(len(reply.body)))


def test_the_document_has_the_servers_version(server: Server) -> None:
    version = (ROOT / "VERSION").read_text().strip()
    assert DOCUMENT["info"]["version"] == version == server.get("/version").json()["version"]


def documented_methods() -> dict[str, set[str]]:
    return {path: {method.upper() for method in item} for path, item in DOCUMENT["paths"].items()}


def test_every_route_of_the_server_is_documented_and_no_other() -> None:
    table = re.search(r"routes\[\] = \{(.*?)\n\};", (ROOT / "server/api.c").read_text(), re.DOTALL)
    routes = re.findall(r'\{"([^"]+)",\s*"([^"]+)",\s*\w+,\s*(true|false)\}', table[1])
    assert len(routes) == table[1].count("{")
    has_rest = {"/v1/models/": "/v1/models/{model}"}
    methods = {has_rest.get(path, path): set(names.split(", ")) for path, names, _ in routes}
    assert methods == documented_methods()
    assert {path for path, _, public in routes if public == "true"} == PUBLIC


@pytest.mark.parametrize(("path", "methods"), documented_methods().items())
def test_a_documented_path_takes_the_documented_methods(
    server: Server, path: str, methods: set[str]
) -> None:
    path = path.replace("{model}", "demo")
    allowed = server.request("DELETE", path).headers["Allow"]
    assert set(allowed.split(", ")) == methods
    for method in methods:
        assert server.request(method, path).status in (200, 400)


def test_only_documented_paths_without_security_are_public(start) -> None:
    server = start("--max-num-seqs", "1", env={"MLAD_API_KEY": "secret"})
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            is_public = operation.get("security") == []
            assert is_public == (path in PUBLIC)
            status = server.request(method.upper(), path.replace("{model}", "demo")).status
            assert status == (200 if is_public else 401), (method, path)
            assert is_public or "401" in operation["responses"]


def test_every_field_that_the_server_reads_is_documented() -> None:
    source = "".join(path.read_text() for path in sorted((ROOT / "server").glob("api_*.c")))
    names = set(re.findall(r'(?:present|json_get)\(body,\s*"(\w+)"\)', source))
    names |= set(re.findall(r'\{"(\w+)", (?:FIELD_\w+|NULL|"none")[,}]', source))
    names |= set(re.findall(r'API_CHAT \? "(\w+)" : "logprobs"', source))
    names |= set(re.findall(r'"(guided_\w+)"', source))
    assert len(names) > 60  # the patterns still fit the source
    parts = ("Parameters", "Constraints", "ChatFields", "CompletionFields", "DetokenizeRequest")
    documented = {name for part in parts for name in SCHEMAS[part]["properties"]}
    documented |= {name for way in SCHEMAS["CompletionFields"]["anyOf"] for name in way["required"]}
    documented |= set(SCHEMAS["TokenizeRequest"]["properties"])
    assert documented == names


def test_the_bounds_of_fields_are_documented() -> None:
    source = (ROOT / "server/api_params.c").read_text()
    row = r'\{"(\w+)", FIELD_(\w+), FOR_(\w+), AT\(.*?\), ([^}]+), ([^}]+)\}'
    rows = re.findall(row, source)
    assert len(rows) == len(re.findall(r'\{"\w+", FIELD_', source)) > 20
    named = {"INT32_MAX": 2**31 - 1, "INT32_MIN": -(2**31), "API_MAX_CHOICES": 64}
    types = {"FLOAT": "number", "INT": "integer", "BOOL": "boolean"}
    parts = {"BOTH": "Parameters", "CHAT": "ChatFields", "COMPLETION": "CompletionFields"}
    for name, kind, kinds, least, most in rows:
        field = SCHEMAS[parts[kinds]]["properties"][name]
        assert field["type"] == [types[kind], "null"], name
        if kind != "BOOL":
            bounds = [named[text] if text in named else float(text) for text in (least, most)]
            assert [field["minimum"], field["maximum"]] == bounds, name


# ---- the server against it


def closed(schema: Any) -> Any:
    """The schema without room for properties that it does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and "allOf" not in schema:
        copy.setdefault("additionalProperties", False)
    return copy


def names_in(value: Any, within: str = "", inside: bool = False) -> set[str]:
    """The schemas that are referred to, at any distance, below keys named `within`."""
    found: set[str] = set()
    if isinstance(value, list):
        return found.union(*(names_in(part, within, inside) for part in value))
    if not isinstance(value, dict):
        return found
    for key, part in value.items():
        if key == "$ref" and inside and part.startswith("#/components/schemas/"):
            name = part.rsplit("/", 1)[1]
            found |= {name} | names_in(SCHEMAS[name], within, True)
        else:
            found |= names_in(part, within, inside or key == within)
    return found


def strict_document() -> dict:
    """The document with no room in its answers for what it does not name; clients get the open
    one, so that later servers may add to answers."""
    requested = names_in(DOCUMENT["paths"], "requestBody")
    schemas = {k: v if k in requested else closed(v) for k, v in SCHEMAS.items()}
    return DOCUMENT | {"components": DOCUMENT["components"] | {"schemas": schemas}}


def validator(document: dict, reference: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(document | {"$ref": reference})


STRICT = strict_document()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False  # no proxies
        yield session


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    server = Server(*FLAGS)
    try:
        yield server
        server.stop()
    finally:
        server.kill()


# Their bodies are those of CHAT and COMPLETIONS, read by the same code: every bound of every field
# is tried there, which takes thousands of requests; here random requests must do. Bodies of JSON
# lines, which have no schema, are left to test_records.py.
SAME_BODIES = ["/invocations", "/tokenize", f"{CHAT}/render", f"{COMPLETIONS}/render"]
CONFIG = {
    "operations": [{"include-path": SAME_BODIES, "phases": {"coverage": {"enabled": False}}}],
    "max-stream-events": 1000,  # all of them
    # A NUL is refused in any JSON, which no schema can say; test_errors.py checks it.
    "generation": {"allow-x00": False, "deterministic": True},
    "checks": {
        # 400 too: only_for_a_reason says when.
        "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "429"]},
        # The server of these tests has no API keys, so any will do:
        # test_only_documented_paths_without_security_are_public has one with keys.
        "ignored_auth": {"enabled": False},
    },
}
API = schemathesis.openapi.from_dict(STRICT, config=SchemathesisConfig.from_dict(CONFIG))


def error_of(response) -> dict:
    return json.loads(response.content)["error"]


def only_for_a_reason(ctx, response, case) -> None:
    """What fits the document is refused only for what a schema can't say."""
    if response.status_code != 400 or not case.meta or not case.meta.generation.mode.is_positive:
        return
    message = error_of(response)["message"]
    assert any(re.search(reason, message) for reason in REASONS), message


def error_names_itself(ctx, response, case) -> None:
    """A refusal's type and code belong to its status."""
    if response.status_code < 400 or case.method == "HEAD":
        return
    error = error_of(response)
    kinds = {429: "rate_limit_error", 408: "timeout_error"}
    assert error["type"] == kinds.get(response.status_code, "invalid_request_error")
    if response.status_code == 404:
        assert error["code"] in ("not_found", "model_not_found")


CHUNKS = {
    "chat.completion.chunk": validator(STRICT, "#/components/schemas/ChatCompletionChunk"),
    "text_completion": validator(STRICT, "#/components/schemas/CompletionChunk"),
}


def events_conform(ctx, response, case) -> None:
    """A stream is chunks and [DONE]; the document has their schema in words only."""
    [kind] = response.headers["content-type"]
    if kind != "text/event-stream":
        return
    blocks = response.content.decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    for block in blocks[:-2]:
        if block.startswith(":"):
            continue
        chunk = json.loads(block.removeprefix("data: "))
        CHUNKS[chunk["object"]].validate(chunk)


OWN_CHECKS = [only_for_a_reason, error_names_itself, events_conform]

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
NAMED = {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}
CONTINUED = [{"role": "assistant", "content": "<think>So"}]
IDS = {"return_token_ids": True}
SHORT = {"max_tokens": 3, "seed": 1}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
GOOD = [
    (CHAT, {"messages": MESSAGES} | SHORT),
    (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "n": 2} | SHORT),
    (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2} | SHORT | STREAM),
    (CHAT, {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"} | SHORT | STREAM),
    (CHAT, {"messages": MESSAGES, "max_tokens": 30} | NAMED),
    (CHAT, {"messages": MESSAGES, "max_tokens": 30} | NAMED | STREAM),
    (CHAT, {"messages": CONTINUED, "continue_final_message": True} | SHORT),
    (CHAT, {"messages": MESSAGES, "prompt_logprobs": 2} | IDS | SHORT),
    (CHAT, {"messages": MESSAGES} | IDS | SHORT | STREAM),
    (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}} | SHORT),
    (COMPLETIONS, {"prompt": "Hi"} | SHORT),
    (COMPLETIONS, {"prompt": ["Hi", [5, 6]], "logprobs": 2} | SHORT),
    (COMPLETIONS, {"prompt": "Hi", "logprobs": 0} | SHORT | STREAM),
    (COMPLETIONS, {"inputs": [5], "echo": True, "stop": ["a"]} | SHORT),
    (COMPLETIONS, {"prompt": "Hi there", "echo": True, "logprobs": 1} | SHORT),
    (COMPLETIONS, {"prompt": ["Hi", "Ho"], "prompt_logprobs": 2} | IDS | SHORT),
    (COMPLETIONS, {"prompt": ["Hi", "Ho"]} | IDS | SHORT | STREAM),
    (COMPLETIONS, {"prompt": "Hi", "guided_choice": ["a", "b"]} | SHORT),
    ("/invocations", {"prompt": "Hi"} | SHORT),
    ("/invocations", {"messages": MESSAGES} | SHORT | STREAM),
    ("/v1/chat/completions/render", {"messages": MESSAGES}),
    ("/v1/completions/render", {"prompt": ["Hi", [5]]} | SHORT),
    ("/tokenize", {"messages": MESSAGES}),
    ("/tokenize", {"prompt": "Hi", "return_token_strs": True}),
    ("/detokenize", {"tokens": [5, 6]}),
]


@pytest.mark.parametrize(("path", "body"), GOOD)
def test_a_good_request_and_its_answer_fit_the_document(
    small: Server, path: str, body: dict
) -> None:
    request = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    validator(DOCUMENT, request["schema"]["$ref"]).validate(body)
    case = API[path]["POST"].Case(body=body, media_type="application/json")
    response = case.call(base_url=small.url)
    assert response.status_code == 200, response.content
    case.validate_response(response, additional_checks=OWN_CHECKS)


def test_a_model_and_a_missing_one_fit_the_document(small: Server) -> None:
    for name, status in (("demo", 200), ("other", 404)):
        case = API["/v1/models/{model}"]["GET"].Case(path_parameters={"model": name})
        response = case.call(base_url=small.url)
        assert response.status_code == status
        case.validate_response(response)


def tame(value: Any) -> Any:
    """The body with values that get past the checks of this very model: they still fit."""
    changes = {
        "model": lambda _: "demo",
        "max_tokens": lambda n: 1 + int(n) % 8,
        "max_completion_tokens": lambda n: 1 + int(n) % 8,
        "min_tokens": lambda _: 0,
        "n": lambda n: 1 + int(n) % 3,
        "best_of": lambda _: None,
        "stop_token_ids": lambda ids: [int(i) % VOCABULARY for i in ids[:40]],
        "allowed_token_ids": lambda ids: [int(i) % VOCABULARY for i in ids],
        "logit_bias": lambda bias: {str(int(k) % VOCABULARY): v for k, v in bias.items()},
        "tokens": lambda ids: [int(i) % VOCABULARY for i in ids],
    }
    known = {k: v for k, v in value.items() if k in changes and v is not None}
    return value | {k: changes[k](v) for k, v in known.items()}


@API.parametrize()
@settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_server_does_what_the_document_says(
    case, small: Server, session: requests.Session
) -> None:
    is_random = case.meta.phase.name.value == "fuzzing"
    if is_random and case.meta.generation.mode.is_positive and isinstance(case.body, dict):
        case.body = tame(case.body)
    if isinstance(case.body, dict) and isinstance(case.body.get("timeout"), float):
        # The least time that is allowed is rightly answered with 408.
        case.body["timeout"] = max(case.body["timeout"], 60.0) if case.body["timeout"] > 0 else -1
    case.call_and_validate(
        base_url=small.url, session=session, additional_checks=OWN_CHECKS
    )
