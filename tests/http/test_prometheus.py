"""Debian's Prometheus scrapes the daemon, and every query of the dashboard finds data."""

import json
import math
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from daemon import ROOT, Server, in_parallel, wait_until

DASHBOARD = json.loads((ROOT / "config/deploy/grafana/mlad.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
# Nothing of the kind happened in this test: present, but a rate of zero, or zero by zero.
QUIET = ("preemptions", "limit_hits", "failed", "dropped")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


class Prometheus:
    def __init__(self, server: Server, folder: Path) -> None:
        config = yaml.safe_load((ROOT / "config/deploy/prometheus/prometheus.yml").read_text())
        config["global"]["scrape_interval"] = "1s"
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        subprocess.run(["promtool", "check", "config", folder / "prometheus.yml"], check=True)
        self.url = f"http://127.0.0.1:{free_port()}"
        command = ["prometheus", f"--config.file={folder}/prometheus.yml"]
        command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={self.url[7:]}"]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def query(self, expression: str) -> list[dict]:
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=60) as reply:
            return json.load(reply)["data"]["result"]

    def value(self, expression: str) -> float | None:
        try:
            result = self.query(expression)
        except OSError:
            return None
        return float(result[0]["value"][1]) if result else None


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory) -> Iterator[Prometheus]:
    prometheus = Prometheus(server, tmp_path_factory.mktemp("prometheus"))
    try:
        wait_until(lambda: prometheus.value('up{job="mlad"}') == 1, "the first scrape")
        request = {"prompt": "One two three " * 30, "max_tokens": 40, "ignore_eos": True}
        for _ in range(3):  # rates need several scrapes
            in_parallel(lambda _: server.text(**request), list(range(8)))
            before = prometheus.value("vllm:generation_tokens_total") or 0
            wait_until(
                lambda: (prometheus.value("vllm:generation_tokens_total") or 0) > before
                or before >= server.generated(),
                "the next scrape",
            )
        yield prometheus
    finally:
        prometheus.process.terminate()
        prometheus.process.wait(60)


def test_promtool_finds_nothing_to_complain_of(server: Server) -> None:
    server.text(prompt="One", max_tokens=3, ignore_eos=True)
    page = server.get("/metrics").body
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True)
    complaints = (done.stdout + done.stderr).decode().splitlines()
    # vLLM's names are what its dashboards ask for: a colon, and a counter's name on a histogram.
    known = ("should not contain ':'", "non-counter metrics should not have \"_total\" suffix")
    odd = [c for c in complaints if not (c.startswith("vllm:") and c.endswith(known))]
    assert odd == [] and done.returncode in (0, 3)


def test_the_scraper_reads_every_sample(server: Server, prometheus: Prometheus) -> None:
    page = [line for line in server.get("/metrics").body.decode().splitlines() if line[0] != "#"]
    assert prometheus.value("scrape_samples_scraped") == len(page)


@pytest.mark.parametrize("expression", QUERIES)
def test_a_query_of_the_dashboard_finds_data(prometheus: Prometheus, expression: str) -> None:
    concrete = expression.replace("$model_name", "demo").replace("$__rate_interval", "5m")
    values = []

    def has_data() -> bool:
        values[:] = [float(series["value"][1]) for series in prometheus.query(concrete)]
        return any(not math.isnan(value) for value in values)

    wait_until(has_data, f"data for {concrete}", 60)
    quiet = any(word in expression for word in QUIET)
    if "rate(" in expression and not quiet and "hits" not in expression:
        assert any(value > 0 for value in values)


def test_the_dashboards_variable_finds_the_model(prometheus: Prometheus) -> None:
    (series,) = prometheus.query("vllm:num_requests_running")
    assert series["metric"]["model_name"] == "demo"
