"""mlad healthcheck: the exit status is the state of the daemon."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from daemon import (
    BINARY,
    COMPLETIONS,
    DEMO_MODEL,
    SANITIZER_REPORT,
    TIMEOUT_S,
    Server,
    environment,
    wait_until,
)


def check(port: int, *flags: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(BINARY), "healthcheck", "--port", str(port), *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env=environment(**env),
    )


def assert_live(done: subprocess.CompletedProcess) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def assert_not_live(done: subprocess.CompletedProcess, said: str) -> None:
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.startswith("mlad: ") and done.stderr.count("\n") == 1
    assert not SANITIZER_REPORT.search(done.stderr)


def test_a_ready_daemon_is_live(server: Server) -> None:
    for _ in range(3):
        assert_live(check(server.port))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
def test_the_daemon_is_found_by_its_own_settings(server: Server, host: str) -> None:
    assert_live(check(server.port, "--host", host))
    done = subprocess.run(
        [str(BINARY), "healthcheck"],
        env=environment(MLAD_HOST=host, MLAD_PORT=str(server.port)),
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0


def test_api_keys_are_not_needed(start: Callable[..., Server]) -> None:
    server = start(env={"MLAD_API_KEY": "secret"})
    assert_live(check(server.port))


def test_a_daemon_on_all_addresses_is_found(start: Callable[..., Server]) -> None:
    server = start("--host", "0.0.0.0")
    assert_live(check(server.port, "--host", "0.0.0.0"))


def test_a_loading_daemon_is_live(start: Callable[..., Server], tmp_path: Path) -> None:
    """Its config.json is a pipe that nobody writes to yet."""
    model = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))
    config = (model / "config.json").read_bytes()
    os.unlink(model / "config.json")
    os.mkfifo(model / "config.json")
    server = start(model=model, wait=False)
    assert server.get("/ready").status == 503
    assert_live(check(server.port))
    (model / "config.json").write_bytes(config)
    wait_until(lambda: server.get("/ready").status == 200, "the model is loaded")
    assert_live(check(server.port))


def test_a_busy_daemon_is_live(start: Callable[..., Server]) -> None:
    server = start("--max-num-seqs", "4", "--max-queue", "4")
    stream = server.stream(COMPLETIONS, prompt="One", max_tokens=8000, ignore_eos=True, n=8)
    next(stream.events())
    assert server.post(COMPLETIONS, {"prompt": "One"}).status == 429
    assert_live(check(server.port))
    stream.close()


def test_a_daemon_that_drains_or_ended_is_not_live(start: Callable[..., Server]) -> None:
    """It takes no more connections, so it is no place for requests."""
    server = start("--drain-timeout-s", "3600")
    stream = server.stream(COMPLETIONS, prompt="One", max_tokens=8000, ignore_eos=True, n=8)
    next(stream.events())
    server.signal()
    wait_until(lambda: "got signal" in server.log(), "the signal was seen")
    assert_not_live(check(server.port), "Connection refused")
    stream.close()
    assert server.wait() == 0
    assert_not_live(check(server.port), "Connection refused")


# ---- others in the daemon's place


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def answer_with(listener: socket.socket, answer: bytes) -> int:
    """Answers one connection so; returns the port."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "answers 503"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "answers 404"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"x" * 4000, "does not speak HTTP"),
        (b"HTTP/1.1 2", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
    ],
)
def test_other_answers_are_not_live(listener: socket.socket, answer: bytes, said: str) -> None:
    assert_not_live(check(answer_with(listener, answer)), said)


def test_a_daemon_that_says_nothing_is_given_up(listener: socket.socket) -> None:
    start = time.monotonic()
    assert_not_live(check(listener.getsockname()[1]), "did not answer within 2.5 seconds")
    assert time.monotonic() - start > 2.4


def test_a_port_nobody_listens_on(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    assert_not_live(check(port), f"127.0.0.1:{port}")


def test_settings_that_name_no_daemon() -> None:
    assert_not_live(check(0), "--port")
    assert_not_live(check(1, "--host", "no.such.host.invalid"), "no.such.host.invalid")
    assert check(70000).returncode == 2
