"""HTTPS: the same daemon behind a certificate, which can change while it runs."""

import json
import socket
import ssl
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest
from daemon import BINARY, CHAT, COMPLETIONS, DEMO_MODEL, TIMEOUT_S, Server, environment, wait_until
from test_lifecycle import check_refused, run

REQUEST = {"prompt": "One", "max_tokens": 20, "ignore_eos": True, "temperature": 0}


def make_certificate(folder: Path, name: str, key_type: str = "ec") -> None:
    """A self-signed certificate for 127.0.0.1 and its key: cert.pem, key.pem."""
    kind = {
        "ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
        "rsa": ["-newkey", "rsa:2048"],
    }[key_type]
    command = ["openssl", "req", "-x509", *kind, "-nodes", "-days", "30", "-subj", f"/CN={name}"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)


def trust(folder: Path) -> ssl.SSLContext:
    """What a client needs that trusts this certificate alone."""
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_certificate(tmp_path, "first")
    return tmp_path


def flags(folder: Path) -> list[str]:
    return ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]


@pytest.fixture
def secure(start: Callable[..., Server], folder: Path) -> Callable[..., Server]:
    """Starts daemons that show the certificate."""

    def start_one(*more: str) -> Server:
        return start(*flags(folder), *more, tls=trust(folder))

    return start_one


def shown_name(server: Server) -> str:
    """The name in the certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as sock,
        context.wrap_socket(sock) as tls,
    ):
        der = tls.getpeercert(binary_form=True)
    return next(name for name in ("first", "second") if name.encode() in der)


def test_the_openai_client_speaks_https(secure, folder: Path) -> None:
    server = secure()
    http_client = httpx.Client(verify=trust(folder))
    client = openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=http_client
    )
    whole = client.completions.create(model="demo", prompt="One", max_tokens=20, temperature=0)
    chunks = client.completions.create(
        model="demo", prompt="One", max_tokens=20, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("key_type", ["ec", "rsa"])
def test_streams_and_keep_alive_over_each_version(
    start, tmp_path: Path, version: str, key_type: str
) -> None:
    make_certificate(tmp_path, "first", key_type)
    context = trust(tmp_path)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    server = start(*flags(tmp_path), tls=context)
    alone = server.text(**REQUEST)
    stream = server.stream(COMPLETIONS, **REQUEST)
    assert stream.socket.version() == version.replace("_", ".")
    assert stream.text() == alone and stream.complete
    connection = httpx.Client(verify=context)
    for _ in range(3):
        reply = connection.post(server.url + COMPLETIONS, json=REQUEST)
        assert reply.json()["choices"][0]["text"] == alone
    connection.close()


def test_old_protocols_are_refused(secure, folder: Path) -> None:
    server = secure()
    context = trust(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as sock:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            context.wrap_socket(sock, server_hostname="127.0.0.1")


def test_large_bodies_and_answers_arrive_whole(secure) -> None:
    server = secure()
    reply = server.post(COMPLETIONS, REQUEST | {"max_tokens": 300, "logprobs": 20})
    assert len(reply.body) > 100_000  # of many TLS records
    assert len(reply.json()["choices"][0]["logprobs"]["tokens"]) == 300
    reply = server.post(COMPLETIONS, {"prompt": "word " * 1_000_000})
    assert reply.error()["code"] == "context_length_exceeded"


def test_the_certificate_changes_with_sighup(secure, folder: Path) -> None:
    server = secure()
    stream = server.stream(COMPLETIONS, **(REQUEST | {"max_tokens": 8000, "n": 4}))
    next(stream.events())
    assert shown_name(server) == "first"
    make_certificate(folder, "second")
    server.tls = trust(folder)
    server.signal(1)
    wait_until(lambda: "read the certificate again" in server.log(), "the new certificate")
    assert shown_name(server) == "second"
    assert server.get("/health").status == 200
    next(stream.events())  # goes on with what it began with
    stream.close()
    (folder / "key.pem").write_text("nonsense")
    server.signal(1)
    wait_until(lambda: "certificate stays as it was" in server.log(), "the complaint")
    assert shown_name(server) == "second"


def test_a_key_that_is_not_the_certificates_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_certificate(other, "other")
    cert, key = str(folder / "cert.pem"), str(other / "key.pem")
    serve = ("serve", "--port", "0", "--model", str(DEMO_MODEL))
    check_refused(run(*serve, "--tls-cert", cert, "--tls-key", key), cert, key)
    check_refused(run(*serve, "--tls-cert", "/no/such/file"), "/no/such/file")
    check_refused(run(*serve, "--tls-key", key), "--tls-cert")


def test_names_of_other_servers_and_one_file_for_both(start, folder: Path) -> None:
    both = folder / "both.pem"
    both.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    assert start("--ssl-certfile", str(both), tls=trust(folder)).get("/health").status == 200
    config = folder / "mlad.conf"
    config.write_text(f"ssl-certfile = {folder}/cert.pem\nssl-keyfile = {folder}/key.pem\n")
    assert start("--config", str(config), tls=trust(folder)).get("/health").status == 200


def test_refusals_past_the_parser_are_readable(secure) -> None:
    """413 and 408 are written to the connection by the server itself."""
    server = secure("--max-body-mib", "1", "--read-timeout-s", "1")
    sock = server.connect()
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    answer = b""
    while piece := sock.recv(65536):
        answer += piece
    assert answer.startswith(b"HTTP/1.1 413 ") and answer.endswith(b"}")
    sock.close()
    sock = server.connect()
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    assert sock.recv(65536).startswith(b"HTTP/1.1 408 ")
    sock.close()


def test_a_handshake_is_not_a_request_that_takes_too_long(secure) -> None:
    server = secure("--read-timeout-s", "1", "--idle-timeout-s", "60")
    early = server.connect()  # as pools do, ahead of time
    time.sleep(2.5)
    early.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
    assert early.recv(65536).startswith(b"HTTP/1.1 200 ")
    early.close()


def test_strange_clients_on_the_port_are_closed_and_harm_nobody(secure, folder: Path) -> None:
    server = secure("--read-timeout-s", "1", "--idle-timeout-s", "2")
    alone = server.text(**REQUEST)
    plain = [socket.create_connection(("127.0.0.1", server.port), 60) for _ in range(20)]
    for number, sock in enumerate(plain):
        if number % 3 == 0:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        elif number % 3 == 1:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # half of a hello
    stream = server.stream(COMPLETIONS, **REQUEST)
    assert stream.text() == alone and stream.complete
    stream.close()
    for sock in plain:
        try:
            while piece := sock.recv(4096):
                assert not piece.startswith(b"HTTP/")  # nothing in plain text
        except ConnectionResetError:
            pass
        sock.close()
    wait_until(lambda: server.metric("mlad_connections") == 1, "only the one that asks")
    wait_until(server.is_idle, "nothing runs")


def test_a_client_that_leaves_is_noticed(secure) -> None:
    server = secure()
    stream = server.stream(COMPLETIONS, **(REQUEST | {"max_tokens": 8000}))
    next(stream.events())
    wait_until(lambda: server.running() == 1, "it runs")
    stream.close()
    whole = server.send(COMPLETIONS, **(REQUEST | {"max_tokens": 8000}))
    wait_until(lambda: server.running() == 1, "the second runs")
    whole.close()
    wait_until(server.is_idle, "nothing runs")


def test_a_client_that_does_not_read_is_dropped(secure) -> None:
    server = secure("--max-stream-buffer-kib", "64")
    deaf = server.connect(receive_buffer=4096)
    loud = {"prompt": "One", "max_tokens": 8000, "ignore_eos": True, "logprobs": 20}
    body = json.dumps(loud | {"stream": True}).encode()
    deaf.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    wait_until(lambda: server.metric("mlad_slow_clients_dropped_total") == 1, "it is dropped")
    wait_until(server.is_idle, "its work is cancelled")
    deaf.close()


def test_sigterm_lets_streams_finish(secure) -> None:
    server = secure()
    request = REQUEST | {"max_tokens": 150}
    alone = server.text(**request)
    stream = server.stream(CHAT, messages=[{"role": "user", "content": "Hi"}], max_tokens=50)
    completion = server.stream(COMPLETIONS, **request)
    server.signal()
    assert completion.text() == alone and completion.complete
    list(stream.events())
    assert stream.complete
    assert server.wait() == 0


def test_healthcheck_speaks_tls(secure, folder: Path) -> None:
    server = secure()

    def check(**env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(BINARY), "healthcheck", "--port", str(server.port)],
            env=environment(**env),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )

    good = check(MLAD_TLS_CERT=str(folder / "cert.pem"))
    assert (good.returncode, good.stderr) == (0, "")
    assert check().returncode == 1  # in plain text: not what the daemon speaks
    server.stop()
    assert check(MLAD_TLS_CERT=str(folder / "cert.pem")).returncode == 1


def test_healthcheck_gives_up_on_a_silent_listener(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        begin = time.monotonic()
        done = run("healthcheck", "--port", str(port), MLAD_TLS_CERT=str(folder / "cert.pem"))
        assert done.returncode == 1 and "did not answer within 2.5 seconds" in done.stderr
        assert time.monotonic() - begin < 20
