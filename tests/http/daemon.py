"""The daemon under test, and what the openai client hides: raw answers and raw streams.

MLAD_BINARY names the binary (default: build/mlad), so the same tests run against every build.
Sanitizers make it several times slower: nothing here or in the tests depends on its speed.
"""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("MLAD_BINARY") or ROOT / "build/mlad").resolve()
DEMO_MODEL = ROOT / "model/demo"
TIMEOUT_S = 120
SANITIZER_REPORT = re.compile(r"Sanitizer|runtime error:|mlad: panic")

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GREEDY = {"temperature": 0, "ignore_eos": True}  # with max_tokens: a text of known length


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of mlad but those given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MLAD_")}
    return inherited | settings


def wait_until(holds: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def in_parallel(call: Callable[[Any], Any], items: list) -> list:
    """The results of call(item), all of them under way at once."""
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(call, items))


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> dict:
        return self.json()["error"]


class Server:
    """A running daemon. stop() checks that it ends as it should."""

    def __init__(
        self,
        *flags: str,
        model: Path = DEMO_MODEL,
        env: dict[str, str] | None = None,
        wait: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.tls = tls  # the daemon speaks TLS, and this is how to speak with it
        command = [str(BINARY), "serve", "--port", "0", "--threads", "1"]
        command += ["--model", str(model), *flags]
        self.log_file = tempfile.TemporaryFile("w+", prefix="mlad-log-")
        self.process = subprocess.Popen(
            command, stderr=self.log_file, stdout=self.log_file, env=environment(**(env or {}))
        )
        try:
            wait_until(self._listens, "the daemon listens")
            scheme = "https" if tls else "http"
            self.port = int(re.search(rf"listens on {scheme}://[^ ]*:(\d+)", self.log())[1])
            self.url = f"{scheme}://127.0.0.1:{self.port}"
            state = "/ready" if wait else "/health"
            wait_until(lambda: self._is(state), "the daemon answers")
        except BaseException:
            self.kill()
            raise

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"the daemon ended:\n{self.log()}"
        return "listens on" in self.log()

    def _is(self, state: str) -> bool:
        try:
            return self.get(state).status == 200
        except OSError:
            raise AssertionError(f"the daemon does not answer:\n{self.log()}") from None

    def log(self) -> str:
        file = self.log_file.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    # ---- ending

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)

    def stop(self) -> None:
        """Ends the daemon by SIGTERM, unless it was sent before, and checks how it ended."""
        if self.process.poll() is None:
            self.signal()
        status = self.wait()
        assert status == 0, f"the daemon ended with status {status}:\n{self.log()}"
        assert not SANITIZER_REPORT.search(self.log()), self.log()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    # ---- asking

    def client(self) -> openai.OpenAI:
        base_url = f"{self.url}/v1"
        return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=TIMEOUT_S)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | dict | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        headers = dict(headers or {})
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        connection.sock = self.connect()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def post(self, path: str, body: bytes | dict, headers: dict[str, str] | None = None) -> Reply:
        return self.request("POST", path, body, headers)

    def complete(self, **fields: Any) -> dict:
        """A completion that must succeed."""
        reply = self.post(COMPLETIONS, fields)
        assert reply.status == 200, reply.body
        return reply.json()

    def text(self, **fields: Any) -> str:
        return self.complete(**fields)["choices"][0]["text"]

    def stream(self, path: str, **fields: Any) -> "Stream":
        return Stream(self.connect(), path, fields | {"stream": True})

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        """A connection on which nothing was sent yet."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(TIMEOUT_S)
        sock.connect(("127.0.0.1", self.port))
        return self.tls.wrap_socket(sock, server_hostname="127.0.0.1") if self.tls else sock

    def send(self, path: str, **fields: Any) -> socket.socket:
        """A connection with a request under way whose answer nobody reads yet."""
        sock = self.connect()
        sock.sendall(request_bytes(path, fields))
        return sock

    # ---- metrics

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels, less those that all have."""
        values = {}
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith("#"):
                continue
            name, value = line.rsplit(" ", 1)
            name = re.sub(r'engine="0",model_name="[^"]*",?', "", name).removesuffix("{}")
            values[name] = float(value)
        return values

    def metric(self, name: str) -> float:
        return self.metrics()[name]

    def running(self) -> int:
        return int(self.metric("vllm:num_requests_running"))

    def waiting(self) -> int:
        return int(self.metric("vllm:num_requests_waiting"))

    def is_idle(self) -> bool:
        """Nothing runs or waits, and no page is held."""
        now = self.metrics()
        gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return all(now[f"vllm:{gauge}"] == 0 for gauge in gauges)

    def steps(self) -> int:
        return int(self.metric("vllm:iteration_tokens_total_count"))

    def generated(self) -> int:
        return int(self.metric("vllm:generation_tokens_total"))


def request_bytes(path: str, fields: dict) -> bytes:
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: mlad\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Stream:
    """A streamed answer as it comes off the wire: HTTP chunks, in them server-sent events."""

    def __init__(self, connection: socket.socket, path: str, fields: dict) -> None:
        self.socket = connection
        self.socket.sendall(request_bytes(path, fields))
        self.file = self.socket.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        self.headers = http.client.parse_headers(self.file)
        self.complete = False  # the last HTTP chunk came
        self.read = b""

    def chunks(self) -> Iterator[bytes]:
        """The HTTP chunks; they just end when the connection does."""
        while size_line := self.file.readline():
            size = int(size_line, 16)
            chunk = self.file.read(size)
            ended = self.file.read(2)
            if len(chunk) < size or ended != b"\r\n":
                return
            if size == 0:
                self.complete = True
                return
            yield chunk

    def blocks(self) -> Iterator[str]:
        """The events and comments, each without the empty line that ends it."""
        for chunk in self.chunks():
            self.read += chunk
            while b"\n\n" in self.read:
                block, self.read = self.read.split(b"\n\n", 1)
                yield block.decode()

    def events(self) -> Iterator[dict]:
        """The events' JSON, up to [DONE]."""
        for block in self.blocks():
            if block.startswith(":"):
                continue
            assert block.startswith("data: ")
            if block == "data: [DONE]":
                continue
            yield json.loads(block.removeprefix("data: "))

    def text(self) -> str:
        """The whole text of a stream with one choice."""
        return "".join(text_of(event) for event in self.events())

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def text_of(event: dict) -> str:
    """What a chunk adds to the text."""
    assert "error" not in event, event
    text = ""
    for choice in event["choices"]:
        text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
    return text
