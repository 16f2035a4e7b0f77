"""mlad batch: lines in, lines out, each custom_id once, whatever happens in between."""

import json
import os
import pty
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import (
    BINARY,
    CHAT,
    COMPLETIONS,
    DEMO_MODEL,
    GREEDY,
    SANITIZER_REPORT,
    TIMEOUT_S,
    Server,
    environment,
    wait_until,
)
from prompts import some_requests, token_ids

DONE, FAILED, STOPPED = 0, 1, 3


def line(custom_id: str, body: dict, url: str = COMPLETIONS, **fields: Any) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **fields}


def short_lines(count: int, longest_prompt: int = 20, longest_answer: int = 8) -> list[dict]:
    """Greedy completions whose texts differ."""
    requests = some_requests(count, longest_prompt, longest_answer)
    return [line(f"line-{i}", request | GREEDY) for i, request in enumerate(requests)]


class Batch:
    """A folder with an input and an output, and runs of mlad batch on them."""

    def __init__(self, folder: Path) -> None:
        self.input = folder / "in.jsonl"
        self.output = folder / "out.jsonl"
        self.log_path = folder / "log"
        self.log_path.touch()
        self.process: subprocess.Popen | None = None

    def write(self, *lines: dict | str | bytes) -> None:
        """One line each: JSON of a dict, the rest as it is."""
        with self.input.open("wb") as file:
            for one in lines:
                raw = json.dumps(one) if isinstance(one, dict) else one
                file.write((raw.encode() if isinstance(raw, str) else raw) + b"\n")

    def command(self, *flags: str, files: tuple[str, str] | None = None) -> list[str]:
        files = files or (str(self.input), str(self.output))
        fixed = ["--model", str(DEMO_MODEL), "--threads", "1"]
        return [str(BINARY), "batch", *files, *fixed, *flags]

    def start(self, *flags: str, **env: str) -> subprocess.Popen:
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                self.command(*flags), stderr=log, env=environment(**env)
            )
        return self.process

    def run(self, *flags: str, status: int = DONE, **env: str) -> None:
        assert self.start(*flags, **env).wait(TIMEOUT_S) == status, self.log()
        assert not SANITIZER_REPORT.search(self.log()), self.log()

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def size(self) -> int:
        return self.output.stat().st_size if self.output.exists() else 0

    def results(self) -> list[dict]:
        """The output's lines, each of which must be whole and of the right shape."""
        raw = self.output.read_bytes()
        assert not raw or raw.endswith(b"\n")
        results = [json.loads(one) for one in raw.splitlines()]
        for result in results:
            assert list(result) == ["id", "custom_id", "response", "error"]
            assert (result["response"] is None) != (result["error"] is None)
        assert len({result["id"] for result in results}) == len(results)
        return results

    def by_id(self) -> dict[str, dict]:
        """The results by custom_id, of which none may come twice."""
        results = self.results()
        found = {result["custom_id"]: result for result in results}
        assert len(found) == len(results)
        return found

    def texts(self) -> dict[str, str]:
        return {custom_id: text_of(result) for custom_id, result in self.by_id().items()}

    def only(self) -> dict:
        [result] = self.results()
        return result

    def sums(self) -> dict[str, float]:
        """The numbers of the summary."""
        pattern = (
            r"(\d+) lines: (\d+) answered, (\d+) failed, (\d+) skipped .*, (\d+) with a custom_id"
        )
        lines = re.search(pattern, self.log()).groups()
        pattern = r"(\d+) tokens in, (\d+) tokens out .*; (\d+) steps of ([\d.]+) sequences"
        work = re.search(pattern, self.log()).groups()
        names = "lines answered failed skipped repeated tokens_in tokens_out steps seqs".split()
        return dict(zip(names, map(float, lines + work), strict=True))


def text_of(result: dict) -> str:
    assert result["response"]["status_code"] == 200, result
    [choice] = result["response"]["body"]["choices"]
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batch]:
    batch = Batch(tmp_path)
    yield batch
    batch.kill()


# ---- answers


def test_lines_are_answered_as_over_http(batch: Batch, server: Server) -> None:
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0}
    lines = short_lines(20) + [line("chat", chat, CHAT)]
    lines.append(line("empty model", {"model": "", "prompt": "One", "max_tokens": 5} | GREEDY))
    batch.write(*lines)
    batch.run()
    results = batch.by_id()
    assert results.keys() == {one["custom_id"] for one in lines}
    for one in lines:
        response = results[one["custom_id"]]["response"]
        body = response["body"]
        over_http = server.post(one["url"], one["body"]).json()
        assert response["status_code"] == 200 and response["request_id"].startswith("req-")
        assert body["choices"] == over_http["choices"]
        assert body.keys() == over_http.keys()
        for count in ("prompt_tokens", "completion_tokens"):
            assert body["usage"][count] == over_http["usage"][count]
    sums = batch.sums()
    usages = [result["response"]["body"]["usage"] for result in results.values()]
    assert sums["tokens_in"] == sum(usage["prompt_tokens"] for usage in usages)
    assert sums["tokens_out"] == sum(usage["completion_tokens"] for usage in usages)
    assert (sums["lines"], sums["answered"], sums["failed"]) == (len(lines), len(lines), 0)


FAULTS = {
    "temperature": {"prompt": "One", "temperature": -1},
    "no prompt": {"max_tokens": 4},
    "another model": {"prompt": "One", "model": "gpt-4o"},
    "too long": {"prompt": "One", "max_tokens": 1_000_000},
    "type of stream": {"prompt": "One", "stream": "yes"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_at_fault_is_answered_as_over_http(
    batch: Batch, server: Server, fault: str
) -> None:
    batch.write(line("bad", FAULTS[fault]), line("good", {"prompt": "One", "max_tokens": 1}))
    batch.run()
    results = batch.by_id()
    over_http = server.post(COMPLETIONS, FAULTS[fault])
    assert over_http.status >= 400
    assert results["bad"]["response"]["status_code"] == over_http.status
    assert results["bad"]["response"]["body"] == over_http.json()
    assert results["good"]["response"]["status_code"] == 200
    assert batch.sums()["failed"] == 1


GOOD = line("it", {"prompt": "One", "max_tokens": 1})
BAD_LINES = [
    ("{", None, "invalid_json_line"),
    ("no JSON", None, "invalid_json_line"),
    (b'{"custom_id": "it\xff"}', None, "invalid_json_line"),
    (json.dumps(GOOD) + json.dumps(GOOD), None, "invalid_json_line"),
    ("[]", None, "invalid_custom_id"),
    ("7", None, "invalid_custom_id"),
    (GOOD | {"custom_id": 7}, None, "invalid_custom_id"),
    (GOOD | {"custom_id": ""}, None, "invalid_custom_id"),
    ({key: GOOD[key] for key in ("method", "url", "body")}, None, "invalid_custom_id"),
    (GOOD | {"method": "GET"}, "it", "invalid_method"),
    (GOOD | {"method": None}, "it", "invalid_method"),
    (GOOD | {"url": "/v1/embeddings"}, "it", "invalid_url"),
    ({key: GOOD[key] for key in ("custom_id", "method", "body")}, "it", "invalid_url"),
    (GOOD | {"body": "One"}, "it", "invalid_body"),
    ({key: GOOD[key] for key in ("custom_id", "method", "url")}, "it", "invalid_body"),
    (GOOD | {"body": GOOD["body"] | {"stream": True}}, "it", "invalid_body"),
]


def test_bad_lines_become_error_lines(batch: Batch) -> None:
    lines = []
    for number, (bad, _, _) in enumerate(BAD_LINES):
        named = isinstance(bad, dict) and bad.get("custom_id") == "it"
        lines.append(bad | {"custom_id": f"it {number}"} if named else bad)
    batch.write(*lines, line("last", {"prompt": "One", "max_tokens": 1}))
    batch.run()
    results = batch.results()
    assert [result["custom_id"] for result in results if not result["error"]] == ["last"]
    errors = {result["error"]["line"]: result for result in results if result["error"]}
    for number, (bad, custom_id, code) in enumerate(BAD_LINES):
        result = errors[number + 1]
        assert result["error"]["code"] == code, bad
        assert result["custom_id"] == (custom_id and f"{custom_id} {number}"), bad
        assert result["error"]["message"].endswith(".") or code == "invalid_json_line"
    before = batch.output.read_bytes()
    batch.run()  # also bad lines come out once
    assert batch.output.read_bytes() == before
    assert batch.sums()["skipped"] == len(BAD_LINES) + 1


def test_a_line_past_the_limit_is_an_error(batch: Batch) -> None:
    long = {"prompt": "x" * (1 << 20), "max_tokens": 1}
    batch.write(GOOD, line("long", long), line("last", {"prompt": "One", "max_tokens": 1}))
    batch.run("--max-body-mib", "1")
    results = batch.by_id()
    assert results.keys() == {"it", None, "last"}
    assert results[None]["error"]["code"] == "line_too_long"
    assert results[None]["error"]["line"] == 2


def test_empty_lines_and_line_ends_do_not_matter(batch: Batch) -> None:
    one, two, three = (json.dumps(GOOD | {"custom_id": name}) for name in ("1", "2", "3"))
    batch.input.write_text(f"\n{one}\r\n\r\n  \n\n{two}\n\t\n{three}", newline="")
    batch.run()
    assert batch.by_id().keys() == {"1", "2", "3"}
    assert batch.sums()["lines"] == 3


def test_an_empty_input_is_done_at_once(batch: Batch) -> None:
    batch.write()
    batch.run()
    assert batch.results() == []


def test_any_text_is_a_custom_id(batch: Batch) -> None:
    names = ['"', "\\", "\n", "ä", "😀", "x" * 100_000, " ", "1", "\x01", "null"]
    batch.write(*(GOOD | {"custom_id": name} for name in names))
    batch.run()
    assert batch.by_id().keys() == set(names)
    batch.run()
    assert batch.by_id().keys() == set(names)


def test_a_custom_id_that_comes_again_is_told_and_not_run(batch: Batch) -> None:
    lines = short_lines(5)
    again = line("line-2", {"prompt": "Another", "max_tokens": 9})
    bad = line("line-3", {}, url="/v1/embeddings")
    batch.write(*lines, again, bad)
    batch.run()
    texts = batch.texts()
    assert texts.keys() == {one["custom_id"] for one in lines}
    assert 'line 6 is not run: its custom_id "line-2"' in batch.log()
    assert batch.sums()["repeated"] == 2
    batch.run()
    assert batch.texts() == texts
    assert (batch.sums()["skipped"], batch.sums()["repeated"]) == (5, 2)


# ---- the engine is kept full


def test_many_short_lines_keep_the_batch_full(batch: Batch) -> None:
    bodies = [{"prompt": [i + 10] * 3, "max_tokens": 8} | GREEDY for i in range(400)]
    batch.write(*(line(str(i), body) for i, body in enumerate(bodies)))
    batch.run("--max-num-seqs", "16")
    sums = batch.sums()
    assert sums["tokens_out"] == 400 * 8
    assert sums["seqs"] > 0.8 * 16, batch.log()
    assert sums["steps"] < 400 * 8 / 16 * 1.25, batch.log()


def test_lines_wait_for_slots(batch: Batch, start) -> None:
    """Requests of several sequences, which don't all fit, are never told 429."""
    slots = ("--max-num-seqs", "2", "--max-queue", "2")
    lines = [
        line(str(i), {"prompt": "One", "max_tokens": 3, "n": 1 + i % 4} | GREEDY) for i in range(40)
    ]
    batch.write(*lines, line("never", {"prompt": "One", "n": 5}))
    batch.run(*slots)
    results = batch.by_id()
    never = results.pop("never")["response"]
    over_http = start(*slots).post(COMPLETIONS, {"prompt": "One", "n": 5})
    assert (never["status_code"], never["body"]) == (400, over_http.json())
    assert over_http.status == 400
    assert len(results) == 40
    for custom_id, result in results.items():
        assert result["response"]["status_code"] == 200
        assert len(result["response"]["body"]["choices"]) == 1 + int(custom_id) % 4


@pytest.mark.parametrize(
    ("flags", "max_tokens", "status"), [((), 1000, 200), (("--request-timeout-s", "1"), 8000, 408)]
)
def test_no_time_limit_but_that_of_the_command_line(
    batch: Batch, flags: tuple[str, ...], max_tokens: int, status: int
) -> None:
    """Neither the default nor the environment's, which are for clients that wait."""
    batch.write(
        line("short", {"prompt": "One", "max_tokens": 1}),
        line("long", {"prompt": "One", "max_tokens": max_tokens} | GREEDY),
    )
    process = batch.start(*flags, MLAD_REQUEST_TIMEOUT_S="1")
    wait_until(batch.size, "the short line is done")
    process.send_signal(signal.SIGSTOP)  # time passes, however fast the machine is
    time.sleep(1.2)
    process.send_signal(signal.SIGCONT)
    assert process.wait(TIMEOUT_S) == DONE
    long = batch.by_id()["long"]["response"]
    assert long["status_code"] == status
    if status == 408:
        assert long["body"]["error"]["type"] == "timeout_error"


# ---- going on


def test_kills_at_any_moment_lose_and_repeat_nothing(batch: Batch) -> None:
    rng = random.Random(1)
    lines = short_lines(300)
    flags = ("--max-num-seqs", "8")
    batch.write(*lines)
    batch.run(*flags)
    whole = batch.texts()
    assert whole.keys() == {one["custom_id"] for one in lines}
    batch.output.unlink()
    kills = 0
    while True:
        size, process = batch.size(), batch.start(*flags)
        # From the very start to a good piece into the work, whatever the speed.
        more = rng.choice([0, 1, 5000, 20_000, 20_000])
        wait_until(
            lambda s=size + more, p=process: batch.size() >= s or p.poll() is not None, "work"
        )
        time.sleep(rng.random() * 0.05)
        batch.kill()
        if process.returncode == DONE:
            break
        assert process.returncode == -signal.SIGKILL, batch.log()
        kills += 1
    assert kills >= 4
    assert batch.texts() == whole
    batch.run(*flags)
    assert batch.texts() == whole
    assert batch.sums()["skipped"] == 300


def test_a_torn_last_line_is_cut_off(batch: Batch) -> None:
    batch.write(*short_lines(6))
    batch.run()
    texts, raw = batch.texts(), batch.output.read_bytes()
    last = raw[:-1].rfind(b"\n") + 1
    for size in (last + 1, last + 12, last + 100, len(raw) - 1, 5):
        batch.output.write_bytes(raw[:size])
        batch.run()
        assert batch.texts() == texts
        assert batch.sums()["skipped"] == (5 if size > last else 0)
        assert batch.output.read_bytes()[:last] == raw[:last] or size == 5


def test_results_of_lines_that_are_gone_stay(batch: Batch) -> None:
    batch.write(*short_lines(4))
    batch.run()
    batch.write(GOOD)
    batch.run()
    assert len(batch.by_id()) == 5


@pytest.mark.parametrize(
    "content",
    [json.dumps(GOOD) + "\n", "some notes\n", "some notes", '{"id":"chatcmpl-1"', "\0" * 100],
)
def test_a_file_of_another_kind_is_not_touched(batch: Batch, content: str) -> None:
    batch.write(GOOD)
    batch.output.write_text(content)
    batch.run(status=FAILED)
    assert batch.output.read_text() == content
    assert "is it the right file?" in batch.log() and str(batch.output) in batch.log()


def test_two_runs_do_not_write_one_file(batch: Batch) -> None:
    batch.write(line("long", {"prompt": "One", "max_tokens": 8000, "ignore_eos": True, "n": 8}))
    first = batch.start()
    wait_until(lambda: "loaded" in batch.log(), "the first one runs")
    second = subprocess.run(
        batch.command(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert second.returncode == FAILED
    assert "another mlad batch" in second.stderr
    first.kill()


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_flight_and_takes_no_more(
    batch: Batch, number: signal.Signals
) -> None:
    lines = [line(str(i), {"prompt": "One", "max_tokens": 30} | GREEDY) for i in range(100)]
    batch.write(*lines)
    process = batch.start("--max-num-seqs", "4", "--drain-timeout-s", "3600")
    wait_until(batch.size, "a line is done")
    process.send_signal(number)
    assert process.wait(TIMEOUT_S) == STOPPED
    assert "finishing the lines in flight" in batch.log()
    assert "the same command goes on from here" in batch.log()
    some = batch.texts()
    assert 4 < len(some) < 100
    batch.run()
    assert batch.by_id().keys() == {one["custom_id"] for one in lines}
    assert batch.sums()["skipped"] == len(some)
    assert len(set(batch.texts().values())) == 1


@pytest.mark.parametrize("how", ["drain time", "second signal"])
def test_what_can_not_finish_is_left_for_the_next_run(batch: Batch, how: str) -> None:
    drain_s = "0" if how == "drain time" else "3600"
    endless = {"prompt": "One", "max_tokens": 8000, "n": 16} | GREEDY
    batch.write(line("short", {"prompt": "One", "max_tokens": 1}), line("long", endless))
    process = batch.start("--drain-timeout-s", drain_s)
    wait_until(batch.size, "the short line is done")
    process.send_signal(signal.SIGTERM)
    if how == "second signal":
        wait_until(lambda: "got signal" in batch.log(), "the signal was seen")
        process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == STOPPED
    assert batch.by_id().keys() == {"short"}
    assert not SANITIZER_REPORT.search(batch.log())


# ---- what can't be done


def test_a_full_disk_ends_it_with_a_sentence(batch: Batch) -> None:
    batch.write(*short_lines(20))
    done = subprocess.run(
        batch.command(files=(str(batch.input), "/dev/full")),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == FAILED
    [error] = [one for one in done.stderr.splitlines() if " error " in one]
    assert error.endswith("can't write /dev/full: No space left on device")
    assert not SANITIZER_REPORT.search(done.stderr)


@pytest.mark.parametrize(
    ("input_name", "output_name", "said"),
    [
        ("no-such", "out.jsonl", "no-such: No such file"),
        (".", "out.jsonl", "it is a folder"),
        ("in.jsonl", "no/such/out", "no/such/out: No such file"),
        ("in.jsonl", ".", "Is a directory"),
        ("in.jsonl", "in.jsonl", "the same file"),
    ],
)
def test_files_that_can_not_be_used_are_named(
    batch: Batch, input_name: str, output_name: str, said: str
) -> None:
    batch.write(GOOD)
    before = batch.input.read_bytes()
    folder = batch.input.parent
    done = subprocess.run(
        batch.command(files=(str(folder / input_name), str(folder / output_name))),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == FAILED
    assert said in done.stderr
    assert batch.input.read_bytes() == before


def test_a_model_that_can_not_be_loaded_ends_it(batch: Batch) -> None:
    batch.write(GOOD)
    batch.run("--model", "/no/such/model", status=FAILED)
    assert "/no/such/model" in batch.log() and "the model can't be used" in batch.log()
    assert batch.results() == []


@pytest.mark.parametrize("words", [[], ["in"], ["--threads", "1", "in", "out"], ["a", "b", "c"]])
def test_a_wrong_command_line_is_refused(words: list[str]) -> None:
    done = subprocess.run(
        [str(BINARY), "batch", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mlad: ") and done.stderr.count("\n") == 1


# ---- pipes and terminals


def test_a_pipe_is_answered_as_it_comes(batch: Batch) -> None:
    with batch.log_path.open("w") as log:
        process = subprocess.Popen(
            batch.command(files=("-", "-")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    for one in short_lines(3):
        raw = json.dumps(one).encode()
        process.stdin.write(raw[:20])
        process.stdin.flush()
        time.sleep(0.2)
        process.stdin.write(raw[20:] + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["custom_id"] == one["custom_id"]
    process.stdin.write(json.dumps(GOOD).encode())
    process.stdin.close()
    assert json.loads(process.stdout.readline())["custom_id"] == "it"
    assert process.stdout.read() == b""
    assert process.wait(TIMEOUT_S) == DONE


def test_a_reader_that_goes_away_ends_it(batch: Batch) -> None:
    batch.write(*short_lines(50))
    process = subprocess.Popen(
        batch.command(files=(str(batch.input), "-")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert "can't write standard output: Broken pipe" in process.stderr.read()
    assert process.wait(TIMEOUT_S) == FAILED


def test_a_terminal_shows_how_it_comes_along(batch: Batch) -> None:
    batch.write(*short_lines(100, longest_answer=30))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(batch.command("--max-num-seqs", "4"), stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how a terminal says that nobody writes any more
            break
        shown += piece
    os.close(ours)
    assert process.wait(TIMEOUT_S) == DONE
    drawn = re.findall(rb"\033\[K(\d+)/100 lines, \d+ tokens/s(?:, \d+:\d\d left)?\r", shown)
    assert drawn
    counts = [int(count) for count in drawn]
    assert counts == sorted(counts)
    assert b"100 answered" in shown


def test_a_log_has_no_terminal_codes(batch: Batch) -> None:
    batch.write(*short_lines(20), short_lines(1)[0])
    batch.run()
    assert "\033" not in batch.log() and "\r" not in batch.log()


def test_long_prompts_and_answers_share_the_cache(batch: Batch, server: Server) -> None:
    """More lines than the cache has pages for: they are preempted, and say the same."""
    bodies = [{"prompt": token_ids(60, i), "max_tokens": 70} | GREEDY for i in range(12)]
    batch.write(*(line(str(i), body) for i, body in enumerate(bodies)))
    batch.run("--max-model-len", "192", "--num-kv-pages", "5")
    texts = batch.texts()
    assert [texts[str(i)] for i in range(12)] == [server.text(**body) for body in bodies]
