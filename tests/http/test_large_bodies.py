"""Large bodies: read beside the loop, so that nobody waits for them, and bounded in all."""

import json
import select
import socket
import time

import pytest
from daemon import CHAT, COMPLETIONS, Server, request_bytes, wait_until

# Tokenized from end to end before it is cut, which takes a second and more.
HEAVY = {"prompt": "word " * 1_200_000, "truncate_prompt_tokens": 100, "max_tokens": 2}
PIECE = b" " * 65536


def answer_of(sock: socket.socket) -> tuple[int, dict]:
    file = sock.makefile("rb")
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return status, json.loads(file.read(length))


def send_heavy(server: Server) -> socket.socket:
    """Sends the request; returns when the daemon has all of it."""
    sock = server.connect()
    sock.sendall(request_bytes(COMPLETIONS, HEAVY))
    wait_until(lambda: server.metric("mlad_body_bytes") > 5_900_000, "the body is there")
    return sock


def test_others_are_answered_while_a_large_body_is_read(server: Server) -> None:
    sock = send_heavy(server)
    answered = 0
    while not select.select([sock], [], [], 0)[0]:
        assert server.get("/version").status == 200
        answered += 1
    status, body = answer_of(sock)
    assert (status, body["usage"]["prompt_tokens"]) == (200, 100)
    assert answered > 20
    sock.close()
    wait_until(lambda: server.metric("mlad_body_bytes") == 0, "the body is gone")


def test_a_client_may_leave_while_its_body_is_read(server: Server) -> None:
    for _ in range(3):
        send_heavy(server).close()
        wait_until(lambda: server.metric("mlad_body_bytes") == 0, "the body is gone")
    wait_until(server.is_idle, "nothing runs")
    assert server.metric("mlad_exchanges_active") == 0


def test_a_large_body_that_is_being_read_is_answered_before_the_end(start) -> None:
    server = start("--drain-timeout-s", "120")
    sock = send_heavy(server)
    server.signal()
    assert answer_of(sock)[0] == 200
    sock.close()
    assert server.wait() == 0


def test_a_second_signal_does_not_wait_for_answers(start) -> None:
    server = start("--drain-timeout-s", "3600")
    sock = send_heavy(server)
    server.signal()
    wait_until(lambda: "got signal" in server.log(), "the signal was seen")
    server.signal()
    assert server.wait() == 0
    sock.close()


@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions/render", "/invocations"])
def test_every_path_reads_large_bodies(server: Server, path: str) -> None:
    text = "word " * 1500
    fields = {"prompt": text, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    padding = {"ignored": "x" * 100_000}
    small, large = server.post(path, fields), server.post(path, fields | padding)
    assert small.status == large.status == 200

    def counted(reply) -> object:
        body = reply.json()
        return body.get("count") or body.get("token_ids") or body.get("usage")

    if path != "/invocations":  # there the cache makes a difference
        assert counted(small) == counted(large)


def test_errors_in_large_bodies_are_told(server: Server) -> None:
    padding = "x" * 100_000
    for fields, param in (({"n": 0}, "n"), ({"stop": 5}, "stop"), ({"model": "no"}, "model")):
        reply = server.post(COMPLETIONS, {"prompt": "One", "ignored": padding} | fields)
        assert reply.status in (400, 404) and reply.error()["param"] == param
    assert server.post(COMPLETIONS, b'{"prompt": "' + padding.encode()).status == 400


def test_a_body_of_very_many_values_is_refused(server: Server) -> None:
    reply = server.post(CHAT, b'{"messages": [' + b"[]," * 5_000_000 + b"[]]}")
    assert reply.status == 400 and "values" in reply.error()["message"]
    commas = server.post("/tokenize", {"prompt": ",[{" * 2_000_000})  # text is no value
    assert commas.error()["code"] == "context_length_exceeded"


def test_what_all_upload_together_is_bounded(start) -> None:
    server = start("--max-uploads-mib", "2", "--max-body-mib", "2")
    head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % 1_500_000
    first, second = server.connect(), server.connect()
    for sock in (first, second):
        sock.sendall(head)
    for _ in range(20):
        first.sendall(PIECE)
    wait_until(lambda: server.metric("mlad_body_bytes") > 1_000_000, "the first")
    try:
        for _ in range(20):
            second.sendall(PIECE)
            time.sleep(0.01)
    except (BrokenPipeError, ConnectionResetError):
        pass
    status, body = answer_of(second)
    assert (status, body["error"]["code"]) == (429, "uploads_full")
    assert server.text(prompt="One", max_tokens=2, ignore_eos=True)  # small ones go on
    assert server.metric('mlad_limit_hits_total{limit="uploads"}') == 1
    assert server.metric("mlad_body_bytes") < 2_100_000
    first.sendall(b" " * (1_500_000 - 20 * len(PIECE)))
    assert answer_of(first)[0] == 400  # white space is no JSON
    first.close()
    second.close()
    wait_until(lambda: server.metric("mlad_body_bytes") == 0, "nothing is left")


def test_a_schema_is_compiled_beside_the_loop(server: Server) -> None:
    """The answer is as ever; and many different ones at once don't get mixed up."""
    for number in range(12):
        schema = {"type": "object", "properties": {f"k{number}": {"const": number}}}
        schema |= {"required": [f"k{number}"], "additionalProperties": False}
        fields = {"prompt": "One", "max_tokens": 60, "structured_outputs": {"json": schema}}
        text = server.text(**fields)
        assert json.loads(text) == {f"k{number}": number}
