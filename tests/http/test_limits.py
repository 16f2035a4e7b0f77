"""Limits that an operator sets: time in the queue, length of an answer."""

import json

from daemon import CHAT, COMPLETIONS, Server, wait_until

ENDLESS = {"prompt": "One", "max_tokens": 8000, "ignore_eos": True}


def busy(start) -> tuple[Server, object]:
    """A daemon whose one place is taken."""
    server = start("--max-num-seqs", "1", "--queue-timeout-s", "1")
    running = server.stream(COMPLETIONS, **ENDLESS)
    next(running.events())
    return server, running


def test_a_request_that_waits_too_long_for_its_turn_is_told_503(start) -> None:
    server, running = busy(start)
    reply = server.post(COMPLETIONS, {"prompt": "Two", "max_tokens": 2})
    assert (reply.status, reply.error()["code"]) == (503, "queue_timeout")
    assert reply.error()["type"] == "service_unavailable_error"
    assert 1 <= int(reply.headers["Retry-After"]) <= 30
    assert server.metric('mlad_limit_hits_total{limit="queue_time"}') == 1
    next(running.events())  # one that has its turn keeps it
    running.close()
    wait_until(server.is_idle, "the place is free")
    assert server.text(prompt="Two", max_tokens=2, ignore_eos=True)


def test_a_stream_that_waits_too_long_ends_with_an_error(start) -> None:
    server, running = busy(start)
    stream = server.stream(COMPLETIONS, prompt="Two", max_tokens=2)
    *_, last = stream.blocks()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "queue_timeout"
    assert not stream.complete
    running.close()


def test_answers_are_no_longer_than_the_server_allows(start) -> None:
    server = start("--max-answer-tokens", "5")
    messages = [{"role": "user", "content": "Hi"}]
    for path, fields in ((COMPLETIONS, {"prompt": "One"}), (CHAT, {"messages": messages})):
        reply = server.post(path, fields | {"max_tokens": 6})
        assert (reply.status, reply.error()["param"]) == (400, "max_tokens")
        reply = server.post(path, fields | {"ignore_eos": True})
        assert reply.json()["usage"]["completion_tokens"] == 5
        assert reply.json()["choices"][0]["finish_reason"] == "length"
        assert server.post(path, fields | {"max_tokens": 5}).status == 200
