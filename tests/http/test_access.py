"""Who may use the API: keys, limits for each key, and web pages of other origins."""

import json
import signal
from pathlib import Path

import openai
import pytest
from daemon import COMPLETIONS, Server, wait_until

ASK = {"prompt": "One", "max_tokens": 2}


def with_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("alpha-key team-a\n# a comment\n\nbeta-key\n")
    return file


@pytest.fixture
def server(start, keys: Path) -> Server:
    return start("--api-key-file", str(keys), env={"MLAD_API_KEY": "first,second"})


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions", "/invocations", "/tokenize"])
def test_inference_needs_a_key(server: Server, path: str) -> None:
    wrong = ("wrong", "alpha-ke", "alpha-keyx", "")
    for headers in ({}, {"Authorization": "Basic alpha-key"}, *map(with_key, wrong)):
        reply = server.post(path, ASK, headers)
        assert reply.status == 401
        assert reply.error()["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", ["first", "second", "alpha-key", "beta-key"])
def test_every_key_opens(server: Server, key: str) -> None:
    assert server.post(COMPLETIONS, ASK, with_key(key)).status == 200
    assert server.post("/invocations", ASK, with_key(key)).status == 200


def test_health_and_metrics_need_no_key(server: Server) -> None:
    for path in ("/health", "/ready", "/ping", "/metrics", "/version"):
        assert server.get(path).status == 200


def test_the_openai_client_sends_its_key(server: Server) -> None:
    base = f"http://127.0.0.1:{server.port}/v1"
    client = openai.OpenAI(base_url=base, api_key="alpha-key", max_retries=0)
    assert client.completions.create(model="demo", **ASK).choices[0].text
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=base, api_key="no", max_retries=0).models.list()


def test_a_named_header_may_hold_the_key(start, keys: Path) -> None:
    server = start("--api-key-file", str(keys), "--api-key-header", "x-my-key")
    assert server.post(COMPLETIONS, ASK, {"x-my-key": "beta-key"}).status == 200
    assert server.post(COMPLETIONS, ASK, {"x-my-key": "wrong"}).status == 401
    assert server.post(COMPLETIONS, ASK, with_key("beta-key")).status == 200


def test_sighup_reads_the_keys_again(server: Server, keys: Path) -> None:
    keys.write_text("gamma-key\n")
    server.process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: server.post(COMPLETIONS, ASK, with_key("gamma-key")).status == 200, "the new key"
    )
    assert server.post(COMPLETIONS, ASK, with_key("alpha-key")).status == 401
    keys.unlink()  # a file that can't be read changes nothing
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "keys stay as they were" in server.log(), "the complaint")
    assert server.post(COMPLETIONS, ASK, with_key("gamma-key")).status == 200


def test_a_key_is_never_logged(start, keys: Path) -> None:
    server = start("--api-key-file", str(keys), "--access-log", "--log-level", "debug")
    server.post(COMPLETIONS, ASK, with_key("alpha-key"))
    server.post(COMPLETIONS, ASK, with_key("wrong-key"))
    wait_until(lambda: server.log().count(COMPLETIONS) >= 2, "the access log")
    assert "team-a" in server.log()
    assert "alpha-key" not in server.log() and "wrong-key" not in server.log()


def test_requests_a_minute_are_limited_for_each_key(start, keys: Path) -> None:
    server = start("--api-key-file", str(keys), "--max-requests-per-minute", "3")
    for left in (2, 1, 0):
        reply = server.post(COMPLETIONS, ASK, with_key("alpha-key"))
        assert reply.status == 200
        assert reply.headers["x-ratelimit-limit-requests"] == "3"
        assert reply.headers["x-ratelimit-remaining-requests"] == str(left)
    reply = server.post(COMPLETIONS, ASK, with_key("alpha-key"))
    assert reply.status == 429
    assert reply.error()["code"] == "rate_limit_exceeded"
    assert 1 <= int(reply.headers["Retry-After"]) <= 30
    assert server.metric('mlad_limit_hits_total{limit="key"}') == 1
    assert server.post(COMPLETIONS, ASK, with_key("beta-key")).status == 200


def test_requests_at_once_are_limited_for_each_key(start, keys: Path) -> None:
    server = start("--api-key-file", str(keys), "--max-concurrent-per-key", "1")
    endless = {"prompt": "One", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    sock = server.connect()
    body = json.dumps(endless)
    sock.sendall(
        f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alpha-key\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    wait_until(lambda: server.running() == 1, "the first runs")
    reply = server.post(COMPLETIONS, ASK, with_key("alpha-key"))
    assert reply.status == 429
    assert reply.error()["code"] == "concurrency_limit_exceeded"
    assert server.metric('mlad_limit_hits_total{limit="key"}') == 1
    assert server.post(COMPLETIONS, ASK, with_key("beta-key")).status == 200
    sock.close()
    wait_until(
        lambda: server.post(COMPLETIONS, ASK, with_key("alpha-key")).status == 200, "a free place"
    )


def test_pages_of_the_allowed_origin_may_call(start) -> None:
    server = start("--cors-origin", "https://app.example")
    preflight = server.request("OPTIONS", COMPLETIONS, None, {"Origin": "https://app.example"})
    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://app.example"
    asked = {"Origin": "https://app.example", "Access-Control-Request-Headers": "x-stainless-os"}
    preflight = server.request("OPTIONS", COMPLETIONS, None, asked)
    assert preflight.headers["Access-Control-Allow-Headers"] == "x-stainless-os"
    reply = server.post(COMPLETIONS, ASK, {"Origin": "https://app.example"})
    assert reply.headers["Access-Control-Allow-Origin"] == "https://app.example"
    other = server.post(COMPLETIONS, ASK, {"Origin": "https://evil.example"})
    assert other.headers["Access-Control-Allow-Origin"] is None
