"""Streams on the wire: framing of server-sent events, arrival one by one, many at once."""

import json
import subprocess
import sys

import pytest
from daemon import CHAT, COMPLETIONS, ROOT, Server, in_parallel
from prompts import PLAIN, token_ids

QUESTION = [{"role": "user", "content": "What is mlad?"}]
USAGE = {"stream_options": {"include_usage": True}}
N_STREAMS = 100


def test_a_stream_is_server_sent_events(server: Server) -> None:
    stream = server.stream(CHAT, messages=QUESTION, max_tokens=12, ignore_eos=True)
    assert stream.status == 200
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    assert stream.headers["Transfer-Encoding"] == "chunked"
    assert stream.headers["Cache-Control"] == "no-cache"
    assert stream.headers["x-request-id"]
    *events, done = stream.blocks()
    assert done == "data: [DONE]"
    assert stream.complete and stream.read == b""
    for event in events:
        assert event.startswith("data: {") and "\n" not in event
        json.loads(event.removeprefix("data: "))


@pytest.mark.parametrize("n", [1, 3])
def test_each_choice_begins_with_its_role_and_ends_with_its_reason(server: Server, n: int) -> None:
    stream = server.stream(CHAT, messages=QUESTION, max_tokens=5, ignore_eos=True, n=n)
    by_choice = [[] for _ in range(n)]
    for event in stream.events():
        assert set(event) == {"id", "object", "created", "model", "choices"}
        [choice] = event["choices"]
        told = {"stop_reason"} if choice["finish_reason"] else set()
        assert set(choice) == {"index", "delta", "logprobs", "finish_reason"} | told
        by_choice[choice["index"]].append(choice)
    for first, *others in by_choice:
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in choice["delta"] for choice in others)
        assert [choice["finish_reason"] for choice in (first, *others)][-2:] == [None, "length"]


def test_usage_is_null_but_in_the_last_event(server: Server) -> None:
    stream = server.stream(CHAT, messages=QUESTION, max_tokens=5, **USAGE)
    *events, last = stream.events()
    assert [event["usage"] for event in events] == [None] * len(events)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 5
    assert all(event["choices"] for event in events)


def test_tokens_arrive_while_the_rest_is_still_being_made(server: Server) -> None:
    before = server.generated()
    stream = server.stream(COMPLETIONS, prompt="One", max_tokens=4000, ignore_eos=True)
    events = stream.events()
    for _ in range(5):
        next(events)
    assert server.generated() - before < 4000
    assert server.running() == 1
    stream.close()


def test_each_token_is_a_chunk_of_its_own(server: Server) -> None:
    token = next(iter(PLAIN))
    fields = {"logit_bias": {str(token): 100}, "max_tokens": 50, "ignore_eos": True}
    stream = server.stream(COMPLETIONS, prompt="One", **fields)
    texts = [event["choices"][0]["text"] for event in stream.events()]
    assert texts == [PLAIN[token]] * 50


def test_characters_are_never_torn(server: Server) -> None:
    """A hot model writes any bytes; every event is still valid UTF-8, and all add up."""
    fields = {"prompt": token_ids(3, 1), "max_tokens": 120, "ignore_eos": True}
    sampled = fields | {"temperature": 20, "seed": 5}
    assert server.stream(COMPLETIONS, **sampled).text() == server.text(**sampled)


def test_a_hundred_streams_are_not_mixed(server: Server) -> None:
    requests = [
        {
            "prompt": token_ids(1 + seed % 20, seed),
            "max_tokens": 8 + seed % 7,
            "ignore_eos": True,
            "temperature": 5,
            "seed": seed,
        }
        for seed in range(N_STREAMS)
    ]
    alone = [server.text(**request) for request in requests]
    assert len(set(alone)) == N_STREAMS

    def read(request: dict) -> tuple[str, bool]:
        stream = server.stream(COMPLETIONS, **request)
        return stream.text(), stream.complete

    steps = server.steps()
    together = in_parallel(read, requests)
    assert [text for text, _ in together] == alone
    assert all(complete for _, complete in together)
    tokens = sum(request["max_tokens"] for request in requests)
    assert server.steps() - steps < tokens / 2


def test_a_thousand_streams_are_all_complete(server: Server) -> None:
    load = [ROOT / "tests/bench/stream_load.py", "--port", str(server.port)]
    size = ["--streams", "1000", "--tokens", "4", "--words", "3", "--alone", "5", "--repeat", "1"]
    done = subprocess.run(
        [sys.executable, *load, *size, "--json"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert (figures["streams"], figures["complete"]) == (1000, 1000)
    assert server.is_idle()


def test_a_connection_carries_on_after_a_stream(server: Server) -> None:
    stream = server.stream(COMPLETIONS, prompt="One", max_tokens=3)
    assert stream.text()
    stream.socket.sendall(b"GET /version HTTP/1.1\r\nHost: mlad\r\n\r\n")
    assert stream.file.readline() == b"HTTP/1.1 200 OK\r\n"
    stream.close()
