"""Batch transform: JSON lines in, JSON lines out, in order."""

import json

from daemon import COMPLETIONS, Server, wait_until

LINES = {"Content-Type": "application/jsonlines"}


def lines(*records: object) -> bytes:
    return b"".join(
        (record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n"
        for record in records
    )


def completion(prompt: str, **fields) -> dict:
    return {"prompt": prompt, "max_tokens": 5, "temperature": 0, "ignore_eos": True} | fields


def test_each_record_has_its_line(server: Server) -> None:
    asks = [completion(f"Number {i}", max_tokens=1 + i % 7) for i in range(40)]
    chat = {"messages": [{"role": "user", "content": "What is mlad?"}], "temperature": 0}
    reply = server.post("/invocations", lines(*asks, chat), LINES)
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/jsonlines"
    answers = [json.loads(line) for line in reply.body.decode().splitlines()]
    assert len(answers) == 41
    for ask, answer in zip(asks, answers):
        assert answer["choices"][0]["text"] == server.text(**ask)
    assert answers[-1]["object"] == "chat.completion"


def test_a_bad_record_spoils_no_other(server: Server) -> None:
    good = completion("One")
    bad = [b"{nonsense", {"prompt": "x", "max_tokens": -1}, good | {"stream": True}]
    body = lines(good, *bad, good)
    reply = server.post("/invocations", b"\n" + body + b"\r\n", LINES)
    answers = [json.loads(line) for line in reply.body.decode().splitlines()]
    kinds = ["error" if "error" in answer else "answer" for answer in answers]
    assert kinds == ["answer", "error", "error", "error", "answer"]
    assert answers[2]["error"]["param"] == "max_tokens"
    assert answers[3]["error"]["param"] == "stream"


def test_only_bad_records_are_answered_too(server: Server) -> None:
    reply = server.post("/invocations", lines(b"{", b"["), LINES)
    assert reply.status == 200 and len(reply.body.splitlines()) == 2


def test_no_records_and_too_many_are_refused(start) -> None:
    server = start("--max-num-seqs", "2", "--max-queue", "3")
    assert server.post("/invocations", b"\n\n", LINES).status == 400
    assert server.post("/invocations", lines(*[completion("a")] * 6), LINES).status == 400
    assert server.post("/invocations", lines(*[completion("a")] * 5), LINES).status == 200


def test_records_that_find_no_room_now_are_refused_and_counted(start) -> None:
    server = start("--max-num-seqs", "1", "--max-queue", "1")
    stream = server.stream(COMPLETIONS, **completion("One", max_tokens=8000))
    next(stream.events())
    reply = server.post("/invocations", lines(*[completion("a")] * 2), LINES)
    assert (reply.status, reply.error()["code"]) == (429, "queue_full")
    assert server.metric('mlad_limit_hits_total{limit="queue"}') == 1
    stream.close()


def test_records_of_a_client_that_left_are_cancelled(server: Server) -> None:
    body = lines(*[completion("One", max_tokens=8000)] * 5)
    head = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/jsonlines\r\n"
    sock = server.connect()
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    wait_until(lambda: server.running() == 5, "all run")
    sock.close()
    wait_until(server.is_idle, "all are cancelled")
