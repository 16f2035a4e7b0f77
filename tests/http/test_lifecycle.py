"""From the command line to the exit status: settings, loading, readiness, draining, ending."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import (
    BINARY,
    CHAT,
    COMPLETIONS,
    DEMO_MODEL,
    SANITIZER_REPORT,
    TIMEOUT_S,
    Server,
    environment,
    wait_until,
)

ENDLESS = {"prompt": "One", "max_tokens": 8000, "ignore_eos": True, "n": 4}
LOAD_PHASES = ("backend", "weights", "memory", "cache", "tokenizer", "total")
GET_PATHS = ["/health", "/ready", "/ping", "/metrics", "/version", "/v1/models", "/v1/models/demo"]


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    """mlad with these arguments, which must end by itself."""
    return subprocess.run(
        [str(BINARY), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env=environment(**env),
    )


def check_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """It ended with an error and said why."""
    assert done.returncode in (1, 2), done.stderr
    assert not SANITIZER_REPORT.search(done.stderr), done.stderr
    for word in words:
        assert word in done.stderr
    assert "ready after" not in done.stderr


# ---- settings


def test_help_lists_every_flag_and_version_the_version() -> None:
    done = run("--help")
    assert run("-h").stdout == run("serve", "-h").stdout == done.stdout
    assert done.returncode == 0
    for words in ("--model DIR\n", "--port N\n", "[8080]", "--max-num-seqs", "--no-enable-prefix"):
        assert words in done.stdout
    done = run("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"mlad \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["serve", "--no-such-flag", "1"], "--no-such-flag"),
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--port", "web"], "--port"),
        (["serve", "--port"], "--port"),
        (["serve", "--max-num-seqs=0"], "--max-num-seqs"),
        (["serve", "--log-level", "loud"], "--log-level"),
        (["serve", "--enable-prefix-caching=perhaps"], "--enable-prefix-caching"),
        (["serve", "demo"], "demo"),
        (["serve", "--config", "/no/such/file"], "/no/such/file"),
        (["serve", "--api-key", "secret"], "--api-key is a secret"),
        (["swerve"], "swerve"),
    ],
)
def test_a_bad_command_line_is_refused_in_one_line(arguments: list[str], named: str) -> None:
    done = run(*arguments)
    check_refused(done, named)
    assert done.returncode == 2
    assert done.stderr.startswith("mlad: ") and done.stderr.count("\n") == 1


def test_a_bad_environment_is_refused() -> None:
    check_refused(run("serve", MLAD_PORT="x"), "environment", "--port", '"x"')


def test_several_hosts_are_refused() -> None:
    check_refused(run("serve", LWS_GROUP_SIZE="2"), "LWS_GROUP_SIZE is 2", "not supported")
    assert run("--version", LWS_GROUP_SIZE="1").returncode == 0


@pytest.mark.parametrize("line", ["prot = 1", "port", "port = x", "max-num-seqs = 0"])
def test_a_bad_line_of_the_config_file_is_refused(tmp_path: Path, line: str) -> None:
    config = tmp_path / "mlad.conf"
    config.write_text(f"# settings\n\n{line}\n")
    check_refused(run("serve", "--config", str(config)), f"{config}, line 3")


def test_flags_win_over_environment_and_environment_over_the_file(start, tmp_path: Path) -> None:
    config = tmp_path / "mlad.conf"
    config.write_text(
        "served-model-name = of-the-file\nmax-model-len = 128\n# a comment\nmax-queue = 7\n"
    )
    env = {"MLAD_CONFIG": str(config)}

    def model(server: Server) -> tuple[str, int]:
        [model] = server.get("/v1/models").json()["data"]
        return model["id"], model["max_model_len"]

    assert model(start(env=env)) == ("of-the-file", 128)
    env["MLAD_SERVED_MODEL_NAME"] = "of-the-environment"
    assert model(start(env=env)) == ("of-the-environment", 128)
    server = start("--served-model-name", "of-the-flag", "--max-model-len=64", env=env)
    assert model(server) == ("of-the-flag", 64)


def test_a_models_folder_may_bring_settings(start, checkpoint: Path, tmp_path: Path) -> None:
    settings = checkpoint / "mlad.conf"
    settings.write_text("served-model-name = of-the-folder\nmax-model-len = 128\n")
    config = tmp_path / "mlad.conf"
    config.write_text("max-model-len = 96\n")

    def model(server: Server) -> tuple[str, int]:
        [model] = server.get("/v1/models").json()["data"]
        return model["id"], model["max_model_len"]

    assert model(start(model=checkpoint)) == ("of-the-folder", 128)
    assert model(start("--config", str(config), model=checkpoint)) == ("of-the-folder", 96)
    server = start(model=checkpoint, env={"MLAD_SERVED_MODEL_NAME": "of-the-environment"})
    assert model(server) == ("of-the-environment", 128)
    settings.write_text("no-such-setting = 1\n")
    done = run("serve", "--port", "0", "--model", str(checkpoint))
    check_refused(done, str(settings), "line 1", "no-such-setting")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--max-model-len", "10000"], "--max-model-len"),
        (["--max-model-len", "256", "--num-kv-pages", "3"], "--max-model-len"),
        (["--max-num-batched-tokens", "8", "--max-num-seqs", "9"], "--max-num-batched-tokens"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
    ],
)
def test_settings_that_do_not_fit_are_refused(flags: list[str], named: str) -> None:
    check_refused(run("serve", "--port", "0", "--model", str(DEMO_MODEL), *flags), named)


def test_a_port_that_is_taken_is_refused(server: Server) -> None:
    done = run("serve", "--port", str(server.port), "--model", str(DEMO_MODEL))
    check_refused(done, str(server.port))
    assert server.get("/ready").status == 200


# ---- checkpoints that can't be served


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the demo model to spoil."""
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))


def change_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1_000_000)


def lie_about_the_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.write((1 << 60).to_bytes(8, "little"))


SPOILERS = {
    "no model.safetensors": lambda f: (f / "model.safetensors").unlink(),
    "truncated model.safetensors": truncate,
    "a lie in model.safetensors": lie_about_the_header,
    "no config.json": lambda f: (f / "config.json").unlink(),
    "config.json is no JSON": lambda f: (f / "config.json").write_text("{"),
    "config.json of another llama": lambda f: change_json(
        f / "config.json", architectures=["LlamaForCausalLM"], model_type="llama"
    ),
    "config.json without heads": lambda f: change_json(f / "config.json", num_attention_heads=0),
    "config.json of another hidden_size": lambda f: change_json(f / "config.json", hidden_size=320),
    "no tokenizer.json": lambda f: (f / "tokenizer.json").unlink(),
    "tokenizer.json is no JSON": lambda f: (f / "tokenizer.json").write_text("[1"),
}


@pytest.mark.parametrize("what", SPOILERS)
def test_a_broken_checkpoint_is_refused_by_the_name_of_its_file(
    checkpoint: Path, what: str
) -> None:
    SPOILERS[what](checkpoint)
    done = run("serve", "--port", "0", "--model", str(checkpoint))
    [named] = re.findall(r"\w+\.(?:json|safetensors)", what)
    check_refused(done, "can't serve")
    assert done.returncode == 1
    [reason] = [line for line in done.stderr.splitlines() if " error " in line][:1]
    assert named in reason or "hidden_size" in what, reason
    assert len(reason) < 400


def test_a_folder_that_is_not_there_is_refused() -> None:
    check_refused(run("serve", "--port", "0", "--model", "/no/such/model"), "/no/such/model")


# ---- loading


@pytest.fixture
def loading(start, checkpoint: Path) -> Iterator[Server]:
    """A daemon that can't get on with loading: its config.json is a pipe nobody writes to yet.

    finish_loading() writes it."""
    os.rename(checkpoint / "config.json", checkpoint / "config.whole")
    os.mkfifo(checkpoint / "config.json")
    server = start("--served-model-name", "demo", model=checkpoint, wait=False)
    yield server
    if server.process.poll() is None and "ready after" not in server.log():
        finish_loading(checkpoint)


def finish_loading(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_bytes((checkpoint / "config.whole").read_bytes())


def test_the_port_answers_while_the_model_loads(loading: Server, checkpoint: Path) -> None:
    server = loading
    status = {path: server.get(path).status for path in GET_PATHS}
    assert [path for path, code in status.items() if code != 200] == ["/ready", "/ping"]
    assert status["/ready"] == status["/ping"] == 503
    assert server.request("POST", "/ping").status == 503
    for path in (CHAT, COMPLETIONS, "/invocations"):
        reply = server.post(path, {"prompt": "One"})
        assert (reply.status, reply.error()["type"]) == (503, "service_unavailable_error")
        assert int(reply.headers["Retry-After"]) <= 30
    metrics = server.metrics()
    assert metrics['mlad_state{state="loading"}'] == 1
    assert metrics['mlad_state{state="ready"}'] == 0
    assert not any(name.startswith("mlad_load_seconds") for name in metrics)

    finish_loading(checkpoint)
    wait_until(lambda: server.get("/ready").status == 200, "the model is loaded")
    ping = server.get("/ping")
    assert (ping.status, ping.body) == (200, b"") and server.post("/ping", b"").body == b""
    metrics = server.metrics()
    assert metrics['mlad_state{state="ready"}'] == 1
    took = {p: metrics[f'mlad_load_seconds{{phase="{p}"}}'] for p in LOAD_PHASES}
    assert 0 < took["weights"] < took["total"] and took["tokenizer"] > 0
    assert server.text(prompt="One", max_tokens=2, ignore_eos=True)


def test_a_signal_while_loading_ends_the_daemon(loading: Server, checkpoint: Path) -> None:
    loading.signal()
    wait_until(lambda: "got signal" in loading.log(), "the signal was seen")
    finish_loading(checkpoint)
    assert loading.wait() == 0
    assert "ready after" not in loading.log()


def test_a_checkpoint_that_turns_out_broken_ends_the_daemon(loading, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{}")
    assert loading.wait() == 1
    assert "config.json" in loading.log()
    loading.stop = lambda: None  # its status is as it should be


# ---- ready


def test_the_state_is_told_on_its_paths(server: Server) -> None:
    assert {path: server.get(path).status for path in GET_PATHS} == dict.fromkeys(GET_PATHS, 200)
    for method, path in (("GET", "/ping"), ("POST", "/ping"), ("GET", "/health")):
        assert server.request(method, path).body == b""
    assert re.fullmatch(r"\d+\.\d+\.\d+", server.get("/version").json()["version"])


def test_the_model_is_listed(server: Server, client) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "mlad")
    assert server.get("/v1/models/demo").json() == server.get("/v1/models").json()["data"][0]
    assert client.models.retrieve("demo") == model
    assert model.max_model_len == 8192


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    head, get = server.request("HEAD", path), server.get(path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    if path != "/metrics":
        assert head.headers["Content-Length"] == str(len(get.body))


def test_metrics_follow_prometheus_text_format(server: Server) -> None:
    server.text(prompt="One", max_tokens=5, ignore_eos=True)
    reply = server.get("/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    kinds, helped = {}, set()
    for line in reply.body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name in helped and name not in kinds
            kinds[name] = kind
        elif line.startswith("# HELP "):
            helped.add(line.split(" ")[2])
        else:
            name, labels = re.match(r"([a-z_:0-9]+)\{(.*)\} [-+.e\d]+$", line).groups()
            assert 'model_name="demo"' in labels and 'engine="0"' in labels
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            assert kinds.get(name) in ("gauge", "counter") or kinds[family] == "histogram"
    wanted = (
        "num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info "
        "prompt_tokens_total generation_tokens_total request_success_total "
        "num_preemptions_total prefix_cache_queries_total prefix_cache_hits_total "
        "time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds "
        "request_queue_time_seconds request_prompt_tokens request_generation_tokens "
        "iteration_tokens_total spec_decode_num_drafts_total "
        "spec_decode_num_draft_tokens_total spec_decode_num_accepted_tokens_total"
    )
    assert {f"vllm:{name}" for name in wanted.split()} <= set(kinds)


LATENCIES = ".3 .5 .8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
BOUNDS = {
    "time_to_first_token_seconds": ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 "
    "40 80 160 640 2560",
    "inter_token_latency_seconds": ".01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5 7.5 10 20 40 "
    "80",
    "e2e_request_latency_seconds": LATENCIES,
    "request_queue_time_seconds": LATENCIES,
    "request_inference_time_seconds": LATENCIES,
    "request_prefill_time_seconds": LATENCIES,
    "request_decode_time_seconds": LATENCIES,
}


@pytest.mark.parametrize("name", BOUNDS)
def test_histograms_have_the_bounds_that_dashboards_know(server: Server, name: str) -> None:
    found = re.findall(
        rf'^vllm:{name}_bucket\{{.*le="([^"]+)"', server.get("/metrics").body.decode(), re.MULTILINE
    )
    assert [float(bound) for bound in found[:-1]] == [float(b) for b in BOUNDS[name].split()]
    assert found[-1] == "+Inf"


def test_the_cache_is_described(server: Server) -> None:
    (info,) = [name for name in server.metrics() if name.startswith("vllm:cache_config_info")]
    labels = dict(re.findall(r'(\w+)="([^"]*)"', info))
    assert labels["block_size"] == "64" and int(labels["num_gpu_blocks"]) > 0
    assert server.metrics()[info] == 1


def test_histograms_count_what_happened(server: Server) -> None:
    before = server.metrics()
    server.complete(prompt=[5] * 7, max_tokens=5, n=2, ignore_eos=True)
    after = server.metrics()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["vllm:generation_tokens_total"] == 10
    assert grown['vllm:request_success_total{finished_reason="length"}'] == 2
    assert grown["vllm:request_generation_tokens_sum"] == 10
    assert grown["vllm:time_to_first_token_seconds_count"] == 2
    assert grown["vllm:inter_token_latency_seconds_count"] == 8
    assert grown["vllm:e2e_request_latency_seconds_count"] == 2
    for name in after:
        if match := re.match(r'(.*)_bucket\{le="\+Inf"\}', name):
            assert after[name] == after[f"{match[1]}_count"]


# ---- ending


def test_sigterm_lets_streams_finish(start) -> None:
    server = start()
    request = {"prompt": "One", "max_tokens": 150, "ignore_eos": True, "temperature": 0}
    alone = server.text(**request)
    stream = server.stream(COMPLETIONS, **request)
    events = stream.events()
    text = next(events)["choices"][0]["text"]
    whole = server.send(COMPLETIONS, prompt="Two", max_tokens=150, ignore_eos=True)
    wait_until(lambda: server.running() == 2, "both run")
    idle = server.connect()

    server.signal()
    wait_until(lambda: "got signal" in server.log(), "the signal was seen")
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    assert idle.recv(100) == b""
    text += "".join(event["choices"][0]["text"] for event in events)
    assert text == alone and stream.complete
    answer = b""
    while piece := whole.recv(65536):
        answer += piece
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"finish_reason":"length"' in answer
    assert b"Connection: close" in answer
    assert server.wait() == 0


def test_a_request_that_arrives_while_draining_is_told_503(start) -> None:
    server = start()
    late = server.connect()
    body = b'{"prompt": "One", "max_tokens": 1}'
    late.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: mlad\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    stream = server.stream(COMPLETIONS, **ENDLESS)
    next(stream.events())
    server.signal()
    wait_until(lambda: "got signal" in server.log(), "the signal was seen")
    late.sendall(body)
    answer = late.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"service_unavailable_error" in answer
    assert b"Connection: close" in answer
    stream.close()
    late.close()
    assert server.wait() == 0


def test_past_the_drain_time_streams_end_with_an_error(start) -> None:
    server = start("--drain-timeout-s", "1")
    stream = server.stream(COMPLETIONS, **ENDLESS)
    events = stream.blocks()
    next(events)
    server.signal()
    *_, last = events
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "service_unavailable_error"
    assert not stream.complete
    assert server.wait() == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(start, first: signal.Signals) -> None:
    server = start("--drain-timeout-s", "3600")
    stream = server.stream(COMPLETIONS, **ENDLESS)
    events = stream.blocks()
    next(events)
    server.signal(first)
    wait_until(lambda: "got signal" in server.log(), "the signal was seen")
    next(events)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "data: [DONE]" not in list(events)
    assert not stream.complete


def test_an_idle_daemon_ends_at_once(start) -> None:
    server = start("--drain-timeout-s", "3600")
    server.signal(signal.SIGINT)
    assert server.wait() == 0
    assert "bye" in server.log()


def test_sigterm_ends_a_load_that_hangs(loading: Server) -> None:
    loading.signal()
    assert loading.wait() == 0  # nobody finishes the load: config.json stays silent


def test_sigterm_counts_as_soon_as_the_port_is_open(start) -> None:
    server = start(wait=False)
    server.signal()
    assert server.wait() == 0
