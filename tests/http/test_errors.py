"""What is wrong with a request is said, by status, type, param and sentence. No other suffers."""

import json
import re
from collections.abc import Callable
from threading import Thread

import openai
import pytest
from daemon import CHAT, COMPLETIONS, Server, wait_until
from prompts import token_ids

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT_BODY = {"messages": MESSAGES, "max_tokens": 1}
COMPLETION_BODY = {"prompt": "Hi", "max_tokens": 1}
ENDLESS = {"prompt": "One", "max_tokens": 8000, "ignore_eos": True}  # until it is cancelled
QUEUE_FULL = 'mlad_limit_hits_total{limit="queue"}'
JSON_TYPE = {"Content-Type": "application/json"}


def check_error(reply, status: int, kind: str, param: str | None, code: str | None = None) -> str:
    """Returns the message of an answer that must be this error."""
    assert reply.status == status, reply.body
    assert reply.headers["Content-Type"].startswith("application/json")
    assert set(reply.json()) == {"error"}
    error = reply.error()
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == (kind, param), error
    assert code is None or error["code"] == code
    assert len(error["message"]) > 10
    return error["message"]


def check_400(reply, param: str | None) -> str:
    return check_error(reply, 400, "invalid_request_error", param)


# ---- fields

BAD_FIELDS = [  # in both APIs
    ("temperature", "hot"),
    ("temperature", -0.1),
    ("temperature", 101),
    ("temperature", [0]),
    ("temperature", True),
    ("top_p", 1.01),
    ("top_p", -1),
    ("min_p", 2),
    ("top_k", -2),
    ("top_k", 1.5),
    ("top_k", "5"),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1),
    ("presence_penalty", 2.1),
    ("presence_penalty", -2.1),
    ("frequency_penalty", 3),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 1.5),
    ("max_tokens", "10"),
    ("max_tokens", 1e12),
    ("min_tokens", -1),
    ("min_tokens", 2),  # more than max_tokens
    ("n", 0),
    ("n", 65),
    ("n", "two"),
    ("stream", "yes"),
    ("stream", 1),
    ("seed", "lucky"),
    ("seed", 1.5),
    ("stop", 5),
    ("stop", ""),
    ("stop", ["a", 5]),
    ("stop", ["x"] * 17),
    ("stop", "x" * 1025),
    ("stop", {"a": 1}),
    ("stop_token_ids", 5),
    ("stop_token_ids", ["a"]),
    ("stop_token_ids", [1024]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [5] * 100),
    ("ignore_eos", "no"),
    ("logit_bias", [1]),
    ("logit_bias", {"1024": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"word": 1}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {"5": "much"}),
    ("skip_special_tokens", "no"),
    ("include_stop_str_in_output", 1),
    ("priority", "high"),
    ("cache_salt", ""),
    ("cache_salt", 5),
    ("timeout", 0),
    ("timeout", -1),
    ("timeout", "long"),
    ("stream_options", {"include_usage": True}),  # without stream
    ("model", 5),
]

BAD_CHAT_FIELDS = [
    ("logprobs", 1),
    ("logprobs", "yes"),
    ("top_logprobs", 2),  # without logprobs
    ("max_completion_tokens", 0),
    ("add_generation_prompt", "yes"),
    ("continue_final_message", "yes"),
    ("tools", [{"type": "function", "function": {"name": "no spaces"}}]),
    ("tools", [{"type": "function"}]),
    ("tools", "all"),
    ("tool_choice", "required"),
    ("tool_choice", "required"),
    ("response_format", {"type": "xml"}),
    ("reasoning_effort", "high"),
    ("chat_template", "{{ messages }}"),
    ("chat_template_kwargs", {"thinking": True}),
    ("audio", {"voice": "x"}),
]

BAD_COMPLETION_FIELDS = [
    ("logprobs", 21),
    ("logprobs", -1),
    ("logprobs", "all"),
    ("echo", "yes"),
    ("best_of", 3),
    ("suffix", "end"),
    ("parameters", {"max_new_tokens": 5}),
    ("regex", "[0-9]+"),
    ("return_tokens_as_token_ids", True),
    ("structured_outputs", {"structural_tag": {"type": "structural_tag"}}),
    ("add_special_tokens", 1),
    ("prompt_logprobs", 21),
    ("truncate_prompt_tokens", -2),
    ("structured_outputs", {"regex": "(a"}),
    ("guided_json", {"type": "object", "not": {}}),
    ("allowed_token_ids", [1, 99999]),
    ("bad_words", ["ok", 7]),
    ("return_token_ids", "yes"),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
@pytest.mark.parametrize(("path", "body"), [(CHAT, CHAT_BODY), (COMPLETIONS, COMPLETION_BODY)])
def test_a_bad_field_is_named(server: Server, path: str, body: dict, field: str, value) -> None:
    check_400(server.post(path, body | {field: value}), field)


@pytest.mark.parametrize(("field", "value"), BAD_CHAT_FIELDS)
def test_a_bad_field_of_a_chat_is_named(server: Server, field: str, value) -> None:
    check_400(server.post(CHAT, CHAT_BODY | {field: value}), field)


@pytest.mark.parametrize(("field", "value"), BAD_COMPLETION_FIELDS)
def test_a_bad_field_of_a_completion_is_named(server: Server, field: str, value) -> None:
    check_400(server.post(COMPLETIONS, COMPLETION_BODY | {field: value}), field)


@pytest.mark.parametrize("options", [5, {"include_usage": 1}, {"continuous_usage_stats": "x"}])
def test_bad_stream_options_are_named(server: Server, options) -> None:
    body = CHAT_BODY | {"stream": True, "stream_options": options}
    check_400(server.post(CHAT, body), "stream_options")


NOTHING = [
    {"tools": []},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"response_format": {"type": "text"}},
    {"logit_bias": None, "stop": None, "seed": None, "temperature": None, "max_tokens": None},
    {"logprobs": False, "top_logprobs": None, "stream_options": None},
    {"logprobs": False, "top_logprobs": 0, "stop": [], "logit_bias": {}},
    {"reasoning_effort": "none"},
    {"user": "someone", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
    {"a_field_from_the_future": {"x": [1, 2]}},
]


@pytest.mark.parametrize("fields", NOTHING)
def test_fields_that_ask_for_nothing_are_no_error(server: Server, fields: dict) -> None:
    reply = server.post(CHAT, CHAT_BODY | {"max_completion_tokens": 1} | fields)
    assert reply.status == 200, reply.body


# ---- messages and prompts


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "Hi",
        {"role": "user", "content": "Hi"},
        ["Hi"],
        [{"content": "Hi"}],
        [{"role": 5, "content": "Hi"}],
        [{"role": "alien", "content": "Hi"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": {"text": "Hi"}}],
        [{"role": "user", "content": ["Hi"]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    ],
)
def test_bad_messages_are_named(server: Server, messages) -> None:
    check_400(server.post(CHAT, {"messages": messages}), "messages")


def test_a_chat_needs_messages(server: Server) -> None:
    check_400(server.post(CHAT, {"prompt": "Hi"}), "messages")


@pytest.mark.parametrize(
    "prompt",
    [None, 5, {}, [], [[]], [5, "Hi"], ["Hi", 5], [1024], [-1], [1.5], [[5], [2000]], True],
)
def test_a_bad_prompt_is_named(server: Server, prompt) -> None:
    check_400(server.post(COMPLETIONS, {"prompt": prompt}), "prompt")


def test_a_completion_needs_a_prompt(server: Server) -> None:
    check_400(server.post(COMPLETIONS, {"messages": MESSAGES}), "prompt")


def test_continuing_a_users_message_is_refused(server: Server) -> None:
    check_400(server.post(CHAT, CHAT_BODY | {"continue_final_message": True}), "messages")


def test_a_prompt_longer_than_the_context_is_refused(server: Server) -> None:
    long = {"prompt": token_ids(9000, 1)}, {"prompt": token_ids(8000, 1), "max_tokens": 500}
    for body in long:
        reply = server.post(COMPLETIONS, body)
        code = "context_length_exceeded"
        message = check_error(reply, 400, "invalid_request_error", "prompt", code)
        assert "8192" in message
    messages = [{"role": "user", "content": "word " * 20000}]
    reply = server.post(CHAT, {"messages": messages})
    check_error(reply, 400, "invalid_request_error", "messages", "context_length_exceeded")


def test_a_prompt_that_just_fits_is_served(server: Server) -> None:
    body = {"prompt": token_ids(192, 1), "max_tokens": 8000, "logit_bias": {"1": 100}}
    assert server.post(COMPLETIONS, body).status == 200
    body["max_tokens"] += 1
    assert server.post(COMPLETIONS, body).status == 400


def test_more_sequences_than_the_server_holds_are_refused(start) -> None:
    server = start("--max-num-seqs", "2", "--max-queue", "2")
    check_400(server.post(COMPLETIONS, COMPLETION_BODY | {"n": 5}), "n")


# ---- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b"[]",
        b'"text"',
        b"5",
        b"null",
        b'{"messages": [}',
        b"{'messages': []}",
        b'{"a": 1} {"b": 2}',
        b'{"a": NaN}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "half \xe2\x82"}',
        b'{"prompt": "a\\u0000b"}',
        b'{"prompt": "a\x00b"}',
        b'{"prompt": "\\ud800"}',
        b'{"a":' * 5000,
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_json_object_is_refused(server: Server, body: bytes) -> None:
    check_400(server.post(COMPLETIONS, body, JSON_TYPE), None)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "image/png"])
def test_a_body_of_another_type_is_refused(server: Server, kind: str) -> None:
    reply = server.post(CHAT, json.dumps(CHAT_BODY).encode(), {"Content-Type": kind})
    check_error(reply, 415, "invalid_request_error", None)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", ""])
def test_a_body_of_json_by_any_writing_is_taken(server: Server, kind: str) -> None:
    reply = server.post(CHAT, json.dumps(CHAT_BODY).encode(), {"Content-Type": kind})
    assert reply.status == 200


def test_a_body_past_the_limit_is_refused(start) -> None:
    server = start("--max-body-mib", "1")
    padding = "x" * (2 << 20)
    reply = server.post(CHAT, CHAT_BODY | {"padding": padding})
    check_error(reply, 413, "invalid_request_error", None)
    assert server.metric('mlad_limit_hits_total{limit="body"}') == 1
    assert server.post(CHAT, CHAT_BODY).status == 200


def test_a_chunked_body_past_the_limit_is_refused(start) -> None:
    server = start("--max-body-mib", "1")
    sock = server.connect()
    sock.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: mlad\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    try:
        for _ in range(32):
            sock.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
    except OSError:
        pass  # refused in mid-upload
    assert sock.recv(1000).startswith(b"HTTP/1.1 413 ")
    sock.close()


# ---- paths, methods, models


def test_another_model_is_not_found(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-7", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    reply = server.get("/v1/models/gpt-7")
    check_error(reply, 404, "invalid_request_error", "model", "model_not_found")


@pytest.mark.parametrize("path", ["/v1", "/v1/chat", "/v1/completions/", "/v1/modelss", "/x"])
def test_another_path_is_not_found(server: Server, path: str) -> None:
    for method in ("GET", "POST"):
        check_error(server.request(method, path), 404, "invalid_request_error", None)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, {"POST"}),
        ("DELETE", COMPLETIONS, {"POST"}),
        ("PUT", "/invocations", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("POST", "/metrics", {"GET", "HEAD"}),
        ("DELETE", "/ping", {"GET", "HEAD", "POST"}),
        ("HEA", "/health", {"GET", "HEAD"}),
    ],
)
def test_another_method_is_not_allowed(
    server: Server, method: str, path: str, allowed: set[str]
) -> None:
    reply = server.request(method, path)
    check_error(reply, 405, "invalid_request_error", None)
    assert set(reply.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://any.host/version", 200),
        ("https://any.host", 200),
        ("HTTP://any.host/nowhere", 404),
        ("ftp://any.host/version", 404),
    ],
)
def test_a_target_may_be_a_whole_url(server: Server, target: str, status: int) -> None:
    sock = server.connect()
    sock.sendall(f"GET {target} HTTP/1.1\r\nHost: mlad\r\n\r\n".encode())
    assert sock.recv(1000).startswith(f"HTTP/1.1 {status} ".encode())
    sock.close()


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63 - 1, -(2**63), 2**62 + 12345])
def test_seeds_of_64_bits_draw_the_same(server: Server, seed: int) -> None:
    body = {"prompt": "One", "max_tokens": 20, "temperature": 2, "seed": seed}
    assert server.text(**body) == server.text(**body)
    check_400(server.post(COMPLETIONS, body | {"seed": 2**64}), "seed")


def test_the_character_nul_is_refused_by_its_name(server: Server) -> None:
    message = check_400(server.post(COMPLETIONS, b'{"prompt": "a\\u0000b"}', JSON_TYPE), None)
    assert "NUL" in message and "not supported" in message


# ---- the server's limits


def test_a_full_queue_answers_429(start: Callable[..., Server]) -> None:
    server = start("--max-num-seqs", "1", "--max-queue", "2")
    running = server.stream(COMPLETIONS, **ENDLESS)
    next(running.events())
    queued = [server.send(COMPLETIONS, prompt="Two", max_tokens=3) for _ in range(2)]
    wait_until(lambda: server.waiting() == 2, "two requests wait")

    reply = server.post(COMPLETIONS, COMPLETION_BODY)
    check_error(reply, 429, "rate_limit_error", None)
    assert 1 <= int(reply.headers["Retry-After"]) <= 30
    with pytest.raises(openai.RateLimitError):
        server.client().chat.completions.create(model="demo", messages=MESSAGES)
    streamed = server.stream(COMPLETIONS, **COMPLETION_BODY)
    assert streamed.status == 429
    assert server.metric(QUEUE_FULL) == 3
    # A request that is wrong is told so, full or not.
    check_400(server.post(COMPLETIONS, COMPLETION_BODY | {"n": 0}), "n")

    running.close()
    for sock in queued:
        assert sock.recv(12) == b"HTTP/1.1 200"
        sock.close()
    wait_until(server.is_idle, "all is done")
    assert server.post(COMPLETIONS, COMPLETION_BODY).status == 200


def test_the_client_library_retries_a_429_until_there_is_room(start) -> None:
    server = start("--max-num-seqs", "1", "--max-queue", "31")
    running = server.stream(COMPLETIONS, **ENDLESS)
    next(running.events())

    def make_room() -> None:
        wait_until(lambda: server.metric(QUEUE_FULL) == 1, "a request was refused")
        running.close()

    freer = Thread(target=make_room)
    freer.start()
    client = server.client().with_options(max_retries=5)
    done = client.completions.create(model="demo", prompt="Two", max_tokens=2, n=32)
    freer.join()
    assert len(done.choices) == 32


def test_a_request_past_its_time_limit_ends_with_408(start) -> None:
    server = start("--max-num-seqs", "1")
    running = server.stream(COMPLETIONS, **ENDLESS)
    next(running.events())
    reply = server.post(COMPLETIONS, COMPLETION_BODY | {"timeout": 0.2})
    check_error(reply, 408, "timeout_error", None)
    late = server.stream(COMPLETIONS, **COMPLETION_BODY, timeout=0.2)
    [event] = [block for block in late.blocks() if block.startswith("data")]
    assert json.loads(event.removeprefix("data: "))["error"]["type"] == "timeout_error"
    assert not late.complete  # no clean end: a client must not take it for an answer
    running.close()
    wait_until(server.is_idle, "all is done")
    assert server.metric('mlad_limit_hits_total{limit="total_time"}') == 2


def test_a_stream_that_fails_raises_in_the_client_library(start) -> None:
    server = start("--max-num-seqs", "1")
    running = server.stream(COMPLETIONS, **ENDLESS)
    next(running.events())
    fields = {"model": "demo", "messages": MESSAGES, "extra_body": {"timeout": 0.2}}
    with pytest.raises(openai.APIError) as caught:
        list(server.client().chat.completions.create(stream=True, **fields))
    assert "time limit" in str(caught.value)
    running.close()


def test_a_connection_too_many_is_told_so(start) -> None:
    server = start("--max-connections", "2")
    held = []

    def hold_one() -> bool:
        sock = server.connect()
        sock.sendall(b"GET /version HTTP/1.1\r\nHost: mlad\r\n\r\n")
        served = sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        held.append(sock) if served else sock.close()
        return len(held) == 2

    wait_until(hold_one, "two connections are held")
    reply = server.get("/version")
    check_error(reply, 503, "service_unavailable_error", None)
    assert reply.headers["Retry-After"]
    held[0].close()
    wait_until(lambda: server.get("/version").status == 200, "a connection is free")
    held[1].close()


# ---- the client library's exceptions, and names of requests


def test_errors_become_the_client_librarys_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=MESSAGES, temperature=500)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id.startswith("req-")
    with pytest.raises(openai.BadRequestError) as caught:
        fields = {"model": "demo", "messages": MESSAGES, "stream": True}
        client.chat.completions.create(temperature=500, **fields)
    assert caught.value.param == "temperature"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/version"), ("POST", CHAT), ("GET", "/nowhere")]
)
def test_every_answer_names_its_request(server: Server, method: str, path: str) -> None:
    made = {server.request(method, path).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3 and all(re.fullmatch(r"req-[0-9a-f]{16}", name) for name in made)
    given = server.request(method, path, headers={"x-request-id": "trace/42"})
    assert given.headers["x-request-id"] == "trace/42"


@pytest.mark.parametrize("name", ["", "x" * 129, "two words", "grün"])
def test_a_clients_name_that_would_not_do_is_replaced(server: Server, name: str) -> None:
    headers = {"x-request-id": name.encode("latin-1")}
    reply = server.request("GET", "/version", headers=headers)
    assert reply.headers["x-request-id"].startswith("req-")


def test_errors_do_not_disturb_a_running_stream(server: Server) -> None:
    request = {"prompt": "One", "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    alone = server.text(**request)
    stream = server.stream(COMPLETIONS, **request)
    events = stream.events()
    text = next(events)["choices"][0]["text"]
    for body in (b"{", b'{"prompt": 5}', b'{"prompt": "x", "n": 0}', b"\xff"):
        assert server.post(COMPLETIONS, body, JSON_TYPE).status == 400
        text += next(events)["choices"][0]["text"]
    assert server.get("/nowhere").status == 404
    text += "".join(event["choices"][0]["text"] for event in events)
    assert text == alone and stream.complete
