"""What service managers and monitors see."""

import socket
from pathlib import Path

from daemon import COMPLETIONS, TIMEOUT_S, Server, wait_until
from prompts import token_ids


def test_the_service_manager_hears_of_readiness_and_stopping(start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        server = start(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(64) == b"READY=1"
        server.stop()
        assert manager.recv(64) == b"STOPPING=1"


def test_health_tells_of_an_engine_that_makes_no_steps(start) -> None:
    # A step over long prompts takes seconds: to the watchdog, an engine that is stuck.
    server = start("--watchdog-s", "1", "--max-num-batched-tokens", "12000", "--threads", "1")
    assert server.get("/health").status == 200
    prompts = [token_ids(4000, seed) for seed in range(2)]
    sock = server.send(COMPLETIONS, prompt=prompts, max_tokens=2, ignore_eos=True)
    wait_until(lambda: server.get("/health").status == 503, "the watchdog's bark")
    assert "made no step for 1 seconds" in server.log()
    wait_until(lambda: server.get("/health").status == 200, "the next step")
    wait_until(server.is_idle, "the end", 2 * TIMEOUT_S)
    sock.close()
    # Nothing to do is not stuck.
    wait_until(lambda: server.get("/health").status == 200, "health")


def test_metrics_are_well_formed(server: Server) -> None:
    page = server.get("/metrics").body.decode()
    described = set()
    for line in page.splitlines():
        if line.startswith("# "):
            described.add(line.split()[2])
            continue
        name, value = line.rsplit(" ", 1)
        float(value)
        family = name.split("{")[0]
        for suffix in ("_bucket", "_sum", "_count"):
            if family.removesuffix(suffix) in described:
                family = family.removesuffix(suffix)
        assert family in described, line
