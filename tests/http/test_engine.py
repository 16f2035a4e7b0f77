"""The engine behind the API: steps that are planned ahead, made-up weights, a device that fails,
and the two programs that time it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon import (
    BINARY,
    CHAT,
    COMPLETIONS,
    DEMO_MODEL,
    GREEDY,
    Server,
    environment,
    in_parallel,
    text_of,
    wait_until,
)
from prompts import some_requests, token_ids

Start = Callable[..., Server]

SMALL = {
    "model_type": "deepseek_v3",
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 512,
}


def mixed_requests() -> list[dict]:
    """Requests that end by length and by a stop, sampled, penalised and constrained ones."""
    requests = [request | {"temperature": 2, "seed": 3} for request in some_requests(24, 90, 24)]
    for number, request in enumerate(requests):
        if number % 4 == 1:
            request |= {"ignore_eos": False, "temperature": 0, "max_tokens": 60}
        elif number % 4 == 2:
            request |= {"guided_regex": "[a-f]{3,9}(, [a-f]{3,9})*"}
        elif number % 4 == 3:
            request |= {"frequency_penalty": 1, "bad_words": [" the"], "logprobs": 2}
    return requests


def answers(server: Server) -> list:
    requests = mixed_requests()
    return [done["choices"] for done in in_parallel(lambda r: server.complete(**r), requests)]


@pytest.mark.parametrize(
    "flags",
    [(), ("--max-model-len", "256", "--num-kv-pages", "12"), ("--max-num-batched-tokens", "40")],
    ids=["roomy", "few pages", "short steps"],
)
def test_looking_ahead_changes_no_answer(start: Start, flags: tuple[str, ...]) -> None:
    flags += ("--max-num-seqs", "24", "--no-enable-prefix-caching")
    plain = start("--look-ahead", "off", *flags)
    expected = answers(plain)
    ahead = start("--look-ahead", "on", *flags)
    assert answers(ahead) == expected
    assert ahead.is_idle()


def test_cancels_while_looking_ahead_leave_nothing_behind(start: Start) -> None:
    server = start("--look-ahead", "on", "--max-num-seqs", "8")
    request = {"prompt": token_ids(70, 1), "max_tokens": 20, **GREEDY}
    expected = server.text(**request)
    for _ in range(5):
        streams = [
            server.stream(COMPLETIONS, prompt=token_ids(70, seed), max_tokens=4000, ignore_eos=True)
            for seed in range(8)
        ]
        for stream in streams:
            next(stream.events())
        for stream in streams:
            stream.close()
        assert server.text(**request) == expected
    wait_until(server.is_idle, "nothing runs")


def test_a_shape_alone_is_served_with_made_up_weights(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    first, second = (start("--dummy-weights", model=path) for _ in range(2))
    request = {"prompt": "Grüße", "max_tokens": 20, **GREEDY}
    assert first.complete(**request)["usage"]["prompt_tokens"] == 7  # bytes
    assert first.text(**request) == second.text(**request)
    assert first.text(prompt=[1, 2, 599], max_tokens=3)
    assert first.post(CHAT, {"messages": [{"role": "user", "content": "?"}]}).status == 400


def test_multi_token_prediction_is_loaded_when_asked_for_and_changes_no_answer(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL | {"num_nextn_predict_layers": 1}))
    without, with_it = (start("--dummy-weights", *f, model=path) for f in ([], ["--load-mtp"]))
    request = {"prompt": "Grüße", "max_tokens": 20, **GREEDY}
    assert with_it.text(**request) == without.text(**request)
    row = 4 * (SMALL["kv_lora_rank"] + SMALL["qk_rope_head_dim"])
    for server, layers in ((without, 3), (with_it, 4)):
        assert f"{layers * row} bytes" in server.log()
        assert "multi-token" not in server.log()
    assert "no layers of multi-token prediction" in start("--load-mtp").log()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--kv-dtype", "bf16", "--device", "cpu"], "--kv-dtype bf16 is not for the CPU"),
        (["--max-num-batched-tokens", "8", "--max-num-seqs", "9"], "--max-num-batched-tokens 8"),
        (["--max-model-len", "9999"], "--max-model-len 9999"),
        (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization must be a number"),
        (["--model", str(DEMO_MODEL / "config.json")], "only with --dummy-weights"),
    ],
)
def test_what_cannot_be_is_refused_in_words(flags: list[str], words: str) -> None:
    command = [BINARY, "serve", "--port", "0", "--model", DEMO_MODEL, *flags]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert words in done.stderr


def test_a_model_larger_than_the_machine_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    path.write_text(json.dumps(SMALL | {"hidden_size": 1 << 19, "intermediate_size": 1 << 20}))
    command = [BINARY, "serve", "--port", "0", "--dummy-weights", "--model", path]
    command += ["--device", "cpu"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "the model does not fit: its weights take" in done.stderr


def test_a_device_that_fails_ends_every_request_and_the_process(start: Start) -> None:
    server = Server("--fail-at-step", "40", "--look-ahead", "on")
    try:
        streams = [
            server.stream(COMPLETIONS, prompt=token_ids(10, seed), max_tokens=500, ignore_eos=True)
            for seed in range(6)
        ]
        for stream in streams:
            events = list(stream.events())
            assert "step 40 failed" in events[-1]["error"]["message"]
            assert all(text_of(event) is not None for event in events[:-1])
        assert server.wait() == 1
    finally:
        server.kill()


def test_health_is_503_once_the_device_failed(start: Start) -> None:
    server = Server("--fail-at-step", "3")
    try:
        held = server.connect()  # keeps the process for the second that is left for answers
        held.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: mlad\r\nContent-Length: 9\r\n\r\n{")
        reply = server.post(COMPLETIONS, {"prompt": "One", "max_tokens": 50, "ignore_eos": True})
        assert reply.status == 500
        assert server.get("/health").status == 503
        held.close()
        assert server.wait() == 1
    finally:
        server.kill()


# ---- programs that time


def test_bench_prints_every_point_beside_its_roofline() -> None:
    command = [BINARY, "bench", "--model", DEMO_MODEL, "--device", "cpu", "--threads", "1"]
    command += ["--bench-prompts", "32,100", "--bench-batches", "1,3", "--bench-contexts", "70"]
    command += ["--bench-steps", "8", "--kv-cache-memory-mib", "64", "--max-num-seqs", "8"]
    runs = [
        subprocess.run(command + more, env=environment(), capture_output=True, text=True)
        for more in ([], ["--json"])
    ]
    assert [run.returncode for run in runs] == [0, 0]
    assert "where a decode step goes" in runs[0].stdout
    found = json.loads(runs[1].stdout)
    assert [point["prompt_tokens"] for point in found["prefill"]] == [32, 100]
    assert [point["seqs"] for point in found["decode"]] == [1, 3]
    for point in found["prefill"]:
        assert 0 < point["tokens_per_s"] < point["roofline_tokens_per_s"]
    for point in found["decode"]:
        assert point["tokens_per_s"] == pytest.approx(point["seqs"] / point["step_ms"] * 1e3)
        assert point["step_p50_ms"] <= point["step_p99_ms"]
        parts = [point[f"{part}_ms"] for part in ("attention", "experts", "linear")]
        # Found by subtraction: on a busy machine one of them may vanish.
        assert all(part >= 0 for part in parts) and sum(parts) > 0


def test_bench_says_why_it_skips_a_point() -> None:
    command = [BINARY, "bench", "--model", DEMO_MODEL, "--device", "cpu", "--bench-prompts", "8"]
    command += ["--bench-batches", "2,9", "--bench-contexts", "60,9000", "--max-num-seqs", "8"]
    command += ["--bench-steps", "8", "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    skipped = [point.get("skipped", "") for point in json.loads(done.stdout)["decode"]]
    assert skipped[0] == ""
    assert "--max-num-seqs" in skipped[1]
    assert "context" in skipped[2]


def test_load_client_counts_what_the_server_counts(server: Server) -> None:
    command = [BINARY.parent / "load", "--port", str(server.port), "--streams", "5"]
    command += ["--requests", "2", "--prompt", "20", "--tokens", "16", "--vocab", "1000", "--json"]
    before = server.generated()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["failures"] == 0
    assert found["tokens"] == 5 * 2 * 16 == server.generated() - before
    assert found["ttft_ms"]["n"] == 10
    assert 0 < found["ttft_ms"]["p50"] <= found["ttft_ms"]["p99"] <= found["ttft_ms"]["max"]
