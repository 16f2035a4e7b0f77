"""What the platforms around a container ask for, line by line."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import (
    BINARY,
    CHAT,
    COMPLETIONS,
    DEMO_MODEL,
    ROOT,
    TIMEOUT_S,
    Server,
    environment,
    wait_until,
)
from test_large_bodies import HEAVY
from test_lifecycle import check_refused, run

NOBODY = 65534
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
HELLO = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def get(port: int, path: str, host: str = "127.0.0.1") -> int:
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=TIMEOUT_S) as reply:
        return reply.status


def is_ready(port: int) -> bool:
    try:
        return get(port, "/ping") == 200
    except OSError:
        return False


def listening(pid: int) -> set[str]:
    """ADDRESS:PORT, in hexadecimal, of the process's listening sockets."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if match := re.match(r"socket:\[(\d+)\]", os.readlink(fd)):
            inodes.add(match[1])
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and fields[3] in ("0A", "07"):
                found.add(fields[1])
    return found


# ---- SageMaker


@pytest.fixture
def container() -> Iterator[tuple[int, int]]:
    """`mlad serve` with the environment that SageMaker gives it: the port and the process id."""
    port = free_port()
    env = environment(
        MLAD_MODEL=str(DEMO_MODEL),
        MLAD_THREADS="1",
        SAGEMAKER_BIND_TO_PORT=str(port),
        SAGEMAKER_SAFE_PORT_RANGE="20000-21000",
        SAGEMAKER_BATCH="true",
        SAGEMAKER_MAX_PAYLOAD_IN_MB="6",
        SAGEMAKER_BATCH_STRATEGY="MULTI_RECORD",
        SAGEMAKER_MAX_CONCURRENT_TRANSFORMS="4",
    )
    process = subprocess.Popen([str(BINARY), "serve"], env=env)
    try:
        wait_until(lambda: is_ready(port), "the container is ready")
        yield port, process.pid
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()


def test_the_port_that_sagemaker_names_is_bound_and_no_other(container) -> None:
    port, pid = container
    assert listening(pid) == {f"00000000:{port:04X}"}  # on all addresses
    assert get(port, "/metrics") == get(port, "/execution-parameters") == 200


def test_ping_answers_in_time_whatever_goes_on(start) -> None:
    server = start("--max-num-seqs", "64", "--max-queue", "8")
    streams = [
        server.send(COMPLETIONS, prompt="One", max_tokens=8000, ignore_eos=True) for _ in range(70)
    ]
    heavy = [server.send(COMPLETIONS, **HEAVY) for _ in range(2)]
    slowest_connect = slowest = 0.0
    for _ in range(20):
        begin = time.monotonic()
        sock = server.connect()
        slowest_connect = max(slowest_connect, time.monotonic() - begin)
        sock.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        slowest = max(slowest, time.monotonic() - begin)
        sock.close()
    assert slowest_connect < 0.25 and slowest < 2
    for sock in (*streams, *heavy):
        sock.close()


@pytest.mark.parametrize("model", [{}, {"model": ""}, {"model": None}, {"model": "demo"}])
def test_the_model_need_not_be_named(server: Server, model: dict) -> None:
    for path in (CHAT, "/invocations"):
        assert server.post(path, HELLO | model).json()["model"] == "demo"


def test_custom_attributes_come_back_whole_and_strange_headers_do_no_harm(server: Server) -> None:
    attributes = "".join(chr(0x21 + i % 94) for i in range(1024))
    headers = {ATTRIBUTES: attributes, "X-Amzn-SageMaker-Something-New": "1", "X-Amzn-Y": "2"}
    reply = server.post("/invocations", HELLO, headers)
    assert (reply.status, reply.headers[ATTRIBUTES]) == (200, attributes)
    stream = server.post("/invocations", HELLO | {"stream": True}, {ATTRIBUTES: "a=b"})
    assert stream.headers[ATTRIBUTES] == "a=b" and b"[DONE]" in stream.body


def test_a_driver_that_is_too_old_is_told(tmp_path: Path) -> None:
    """A driver for CUDA 12.4, which says so and can do nothing else."""
    if b"libcuda.so.1" not in BINARY.read_bytes():
        done = run("serve", "--device", "cuda", "--port", "0", "--model", str(DEMO_MODEL))
        check_refused(done, "this build has the CPU backend only")
        return
    source = tmp_path / "driver.c"
    source.write_text("int cuDriverGetVersion(int *v) { *v = 12040; return 0; }\n")
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    done = run("serve", "--port", "0", "--model", str(DEMO_MODEL), LD_LIBRARY_PATH=str(tmp_path))
    check_refused(done, "the NVIDIA driver is too old", "580")


# ---- the image


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of the Dockerfile by the names of its stages, with those they begin from."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"FROM (\S+) AS (\w+)$", line):
            name = match[2]
            found[name] = list(found.get(match[1], []))
        elif line and not line.startswith("#"):
            word, rest = line.split(" ", 1)
            found[name].append((word, rest))
    return found


def test_the_image_is_what_the_platforms_run() -> None:
    images = stages()
    *_, default = images  # what `docker build` makes without --target
    for name in ("sagemaker", default):
        parts = dict(images[name])
        assert json.loads(parts["ENTRYPOINT"]) == ["/opt/mlad/bin/mlad"]  # no shell, no init
        assert json.loads(parts["CMD"]) == ["serve"]
        assert json.loads(parts["HEALTHCHECK"].split("CMD ")[1])[1:] == ["healthcheck"]
        assert parts["EXPOSE"] == "8080"
        words = [word for key, value in images[name] if key == "ENV" for word in value.split()]
        assert "MLAD_HOST=0.0.0.0" in words and "NVIDIA_VISIBLE_DEVICES=all" in words
        assert "RUN" not in [key for key, _ in images[name]]  # nothing is installed
    assert "USER" not in dict(images["sagemaker"])  # root, as SageMaker wants it
    assert int(dict(images[default])["USER"].split(":")[0]) > 0
    steps = [value for key, value in images["build"] if key == "RUN"]
    assert [step.split()[0] for step in steps] == ["scripts/cuda.sh", "scripts/dist.sh"]


# ---- Kubernetes, ECS


def test_weights_are_read_and_not_mapped(server: Server) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "safetensors" not in maps



def run_restricted() -> None:
    """No file of more than 0 bytes can be written, and, where that can be had, no rights."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # ThreadSanitizer tries to write one
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def test_any_user_on_a_read_only_system_will_do() -> None:
    folder = Path(tempfile.mkdtemp(prefix="mlad-"))
    try:
        shutil.copy(BINARY, folder / "mlad")
        shutil.copytree(DEMO_MODEL, folder / "model")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() or path.name == "mlad" else 0o444)
        port = free_port()
        command = [str(folder / "mlad"), "serve", "--model", str(folder / "model")]
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env={"PATH": "/nowhere"},
            cwd="/",
            preexec_fn=run_restricted,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(lambda: process.poll() is not None or is_ready(port), "it is ready")
            body = json.dumps({"prompt": "One", "max_tokens": 3}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{COMPLETIONS}", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                assert json.load(reply)["choices"][0]["text"]
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
            process.stdout.close()
    finally:
        for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_defaults_fit_a_load_balancer() -> None:
    text = (ROOT / "config/mlad.conf").read_text()
    default = dict(re.findall(r"^#([a-z-]+) = (\d+)$", text, re.MULTILINE))
    assert int(default["idle-timeout-s"]) >= 75
    assert int(default["keep-alive-interval-s"]) <= 15
    assert int(default["drain-timeout-s"]) < 30


# ---- Databricks


def test_relative_paths_from_the_artifact_folder(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(BINARY, tmp_path / "bin/mlad")
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    port = free_port()
    command = ["bin/mlad", "serve", "--model", "model", "--host", "0.0.0.0", "--port", str(port)]
    process = subprocess.Popen(command, env=environment(), cwd=tmp_path)
    try:
        wait_until(lambda: is_ready(port), "it is ready")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=60) as reply:
            assert json.load(reply)["data"][0]["id"] == "model"
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
