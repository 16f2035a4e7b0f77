"""SageMaker's stateful sessions on /invocations."""

import re
import time
from datetime import datetime, timezone

from daemon import COMPLETIONS, Server

ID = "X-Amzn-SageMaker-Session-Id"
NEW, CLOSE = {"requestType": "NEW_SESSION"}, {"requestType": "CLOSE"}
ASK = {"prompt": "One", "max_tokens": 2, "ignore_eos": True}


def open_session(server: Server) -> str:
    reply = server.post("/invocations", NEW, {ID: "NEW_SESSION"})
    assert reply.status == 200, reply.body
    match = re.fullmatch(
        r"([a-zA-Z0-9](?:-*[a-zA-Z0-9])*); Expires=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)",
        reply.headers["X-Amzn-SageMaker-New-Session-Id"],
    )
    assert len(match[1]) <= 256
    ends = datetime.strptime(match[2], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    assert ends > datetime.now(timezone.utc).replace(microsecond=0)
    return match[1]


def check_unknown(reply) -> None:
    assert (reply.status, reply.error()["code"]) == (400, "session_not_found")


def test_a_session_opens_serves_and_closes(server: Server) -> None:
    first, second = open_session(server), open_session(server)
    assert first != second
    for _ in range(2):
        assert server.post("/invocations", ASK, {ID: first}).status == 200
    reply = server.post("/invocations", CLOSE, {ID: first})
    assert reply.status == 200
    assert reply.headers["X-Amzn-SageMaker-Closed-Session-Id"] == first
    check_unknown(server.post("/invocations", ASK, {ID: first}))
    check_unknown(server.post("/invocations", CLOSE, {ID: first}))
    assert server.post("/invocations", ASK, {ID: second}).status == 200


def test_requests_need_no_session(server: Server) -> None:
    assert server.post("/invocations", ASK).status == 200
    check_unknown(server.post("/invocations", ASK, {ID: "never-opened"}))
    assert server.post(COMPLETIONS, ASK, {ID: "never-opened"}).status == 200  # not SageMaker's path


def test_malformed_requests_about_sessions_are_refused(server: Server) -> None:
    for body in ({"requestType": "OPEN"}, {"requestType": 1}, b'{"requestType": '):
        reply = server.post("/invocations", body)
        assert reply.status == 400 and reply.error()["type"] == "invalid_request_error"
    reply = server.post("/invocations", CLOSE)
    assert (reply.status, reply.error()["param"]) == (400, ID)


def test_the_word_in_a_prompt_or_a_tool_is_no_request_about_a_session(server: Server) -> None:
    properties = {"requestType": {"type": "string"}}
    parameters = {"type": "object", "properties": properties}
    tool = {"type": "function", "function": {"name": "book", "parameters": parameters}}
    chat = {"messages": [{"role": "user", "content": "Hi"}], "tools": [tool], "max_tokens": 2}
    for body in (ASK | {"prompt": "requestType"}, chat):
        reply = server.post("/invocations", body)
        assert reply.status == 200 and reply.json()["choices"]


def test_a_session_ends_by_itself(start) -> None:
    server = start(env={"SAGEMAKER_SESSIONS_EXPIRATION": "1"})
    session = open_session(server)
    time.sleep(1.2)
    check_unknown(server.post("/invocations", ASK, {ID: session}))


def test_sessions_are_bounded_and_their_places_used_again(start) -> None:
    server = start("--max-sessions", "2")
    first, _ = open_session(server), open_session(server)
    reply = server.post("/invocations", NEW)
    assert (reply.status, reply.error()["code"]) == (429, "too_many_sessions")
    assert int(reply.headers["Retry-After"]) <= 30
    assert server.metric('mlad_limit_hits_total{limit="sessions"}') == 1
    assert server.post("/invocations", CLOSE, {ID: first}).status == 200
    open_session(server)


def test_sessions_need_the_key_too(start) -> None:
    server = start(env={"MLAD_API_KEY": "secret"})
    assert server.post("/invocations", NEW).status == 401
