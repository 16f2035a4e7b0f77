"""A short round of tests/bench/mixed_load.py, which see: everything at once, at the limit."""

import subprocess
import sys

from daemon import ROOT


def test_nobody_loses_a_request_or_gets_anothers_bytes(start) -> None:
    server = start("--max-connections", "90", "--max-num-seqs", "16", "--read-timeout-s", "3")
    load = [sys.executable, ROOT / "tests/bench/mixed_load.py"]
    load += ["--port", str(server.port), "--pid", str(server.process.pid), "--seconds", "6"]
    load += ["--streams", "40", "--wrk", "20", "--slow", "20", "--deaf", "6", "--knocks", "20"]
    load += ["--slack-mib", "4000"]  # sanitizers keep what was freed
    done = subprocess.run(load, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors of status, 0 of the socket" in done.stdout
    for outcome in ("streamed", "whole", "left", "slow senders ended", "knocks told 503"):
        assert outcome in done.stdout, done.stdout
