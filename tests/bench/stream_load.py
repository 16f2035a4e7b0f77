"""Many concurrent streams against a running mlad: are all complete, and what do they cost?

    build/mlad serve --port 8080 --max-num-seqs 256 &
    python3 tests/bench/stream_load.py --port 8080 --pid $!

Each stream samples with a seed of its own, so that its text is known to be its own: the run is
repeated with --repeat, and every stream must give the same text each time; a few are also compared
with their text alone. Standard library only; the client is one thread, so with the server on the
same machine it takes its share of the CPU.

What is measured. Tokens of a step reach all its streams in a burst, one event each. The next burst
begins after a silence of a quarter of the mean step, or when a stream has its second event. So

    gap      time between two events of a stream: the step, and what the server adds
    fan-out  time from the first event of a step to each of its others, as the client reads them

and, with --pid, CPU times from /proc and steps from /metrics: the engine's thread less its steps
and the loop's thread are what serving costs outside the model.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

WORDS = "one two three four five six seven eight nine ten port model token page batch step".split()


@dataclass
class Stream:
    number: int
    started: float = 0.0
    arrivals: list[float] = field(default_factory=list)  # of events with text
    text: str = ""
    outcome: str = "lost"  # until it is complete


def request(number: int, tokens: int, words: int) -> bytes:
    """A request of the stream's own: another prompt length, another seed."""
    stride = number % 5 + 1
    indices = [(number * 7 + i * stride) % len(WORDS) for i in range(number % words + 1)]
    fields = {
        "prompt": " ".join(WORDS[i] for i in indices),
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 5,
        "seed": number,
        "stream": True,
    }
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: mlad\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client(asyncio.Protocol):
    """Notes when events come; what they say is read when the stream is over."""

    def __init__(self, stream: Stream, message: bytes) -> None:
        self.stream, self.message = stream, message
        self.received = bytearray()
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.stream.started = time.monotonic()
        transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.received += data
        self.stream.arrivals += [now] * data.count(b"data: {")

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result(None)


def read_answer(client: Client) -> None:
    """What came of a stream: its text and whether it is complete."""
    stream = client.stream
    head, _, body = bytes(client.received).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        stream.outcome = head.split(b"\r\n")[0].decode() or "no answer"
        return
    payload = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        payload += rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]
    events = payload.decode().split("\n\n")
    data = [event.removeprefix("data: ") for event in events if event.startswith("data: ")]
    chunks = [json.loads(event) for event in data if event != "[DONE]"]
    stream.text = "".join(c["text"] for chunk in chunks for c in chunk.get("choices", []))
    ended = any(
        c["finish_reason"] == "length" for chunk in chunks[-1:] for c in chunk.get("choices", [])
    )
    complete = data[-1:] == ["[DONE]"] and ended and client.received.endswith(b"0\r\n\r\n")
    stream.outcome = "complete" if complete else "broken"


async def run_streams(args: argparse.Namespace, numbers: Iterable[int]) -> list[Stream]:
    loop = asyncio.get_running_loop()
    clients = []
    for number in numbers:
        client = Client(Stream(number), request(number, args.tokens, args.words))
        await loop.create_connection(lambda client=client: client, "127.0.0.1", args.port)
        clients.append(client)
    await asyncio.gather(*(client.over for client in clients))
    for client in clients:
        read_answer(client)
    return [client.stream for client in clients]


# ---- figures


def percentile(values: list[float], percent: float) -> float:
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * percent / 100))] if values else 0.0


def fan_outs(streams: list[Stream], step_s: float) -> list[float]:
    """Delays of events after the first one of their step."""
    delays, began, last, seen = [], 0.0, 0.0, set()
    for at, number in sorted((at, s.number) for s in streams for at in s.arrivals):
        if number in seen or at - last > step_s / 4:
            began, seen = at, set()
        seen.add(number)
        delays.append(at - began)
        last = at
    return delays


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        text = page.read().decode()
    samples = re.findall(r"^(\S+?)\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in samples if not name.endswith("_bucket")}


def thread_cpu_s(pid: int) -> tuple[float, float]:
    """CPU seconds of the loop's thread, and of all others (engine and backend)."""
    loop = others = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rsplit(") ", 1)[1].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if int(task.name) == pid:
            loop += seconds
        else:
            others += seconds
    return loop, others


def peak_rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def milliseconds(values: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": round(percentile(values, p) * 1000, 2) for p in (50, 99)}


def measure(args: argparse.Namespace) -> tuple[list[Stream], dict]:
    port, pid = args.port, args.pid
    before, cpu_before = metrics(port), thread_cpu_s(pid) if pid else (0, 0)
    client_cpu, began = time.process_time(), time.monotonic()
    streams = asyncio.run(run_streams(args, range(args.streams)))
    wall_s = max((s.arrivals[-1] for s in streams if s.arrivals), default=began) - began
    client_cpu = time.process_time() - client_cpu
    after, cpu_after = metrics(port), thread_cpu_s(pid) if pid else (0, 0)

    events = sum(len(s.arrivals) for s in streams)
    gaps = [b - a for s in streams for a, b in zip(s.arrivals, s.arrivals[1:])]
    grown = {name: after[name] - before.get(name, 0) for name in after}
    made = int(grown["vllm:generation_tokens_total"])
    step_s, steps = grown["mlad_step_seconds_sum"], int(grown["mlad_step_seconds_count"])
    figures = {
        "streams": args.streams,
        "complete": sum(s.outcome == "complete" for s in streams),
        "tokens": made,
        "events": events,
        "wall_s": round(wall_s, 2),
        "events_per_s": round(events / wall_s) if wall_s else 0,
        "steps": steps,
        "step_mean_ms": round(step_s / max(steps, 1) * 1000, 2),
        "first_event": milliseconds([s.arrivals[0] - s.started for s in streams if s.arrivals]),
        "gap": milliseconds(gaps),
        "fan_out": milliseconds(fan_outs(streams, step_s / max(steps, 1))),
        "client_cpu_s": round(client_cpu, 2),
    }
    if pid:
        loop_s, engine_s = (b - a for a, b in zip(cpu_before, cpu_after))
        per_token = 1e6 / max(made, 1)
        figures |= {
            "loop_cpu_us_per_token": round(loop_s * per_token, 1),
            "engine_cpu_us_per_token": round(engine_s * per_token, 1),
            "step_wall_us_per_token": round(step_s * per_token, 1),
            "cpu_s": round(loop_s + engine_s, 2),
            "peak_rss_mib": round(peak_rss_mib(pid), 1),
        }
    return streams, figures


def check(streams: list[Stream], known: dict[int, str]) -> list[str]:
    """What is wrong: streams that were lost, and texts that are not what they were before."""
    problems = [f"stream {s.number}: {s.outcome}" for s in streams if s.outcome != "complete"]
    mixed = [s for s in streams if known.setdefault(s.number, s.text) != s.text]
    return problems + [f"stream {s.number}: another text than before" for s in mixed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--pid", type=int, help="of the server: also measure its CPU and memory")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--words", type=int, default=30, help="of the longest prompt")
    parser.add_argument("--alone", type=int, default=20, help="streams first run by themselves")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object a run")
    args = parser.parse_args()

    known, problems = {}, []
    for number in range(0, args.streams, max(1, args.streams // max(args.alone, 1))):
        problems += check(asyncio.run(run_streams(args, [number])), known)
    for _ in range(args.repeat):
        streams, figures = measure(args)
        problems += check(streams, known)
        if args.json:
            print(json.dumps(figures))
        else:
            print("\n".join(f"{name:24} {value}" for name, value in figures.items()), end="\n\n")
    distinct = len(set(known.values()))
    if distinct < 0.95 * len(known):
        problems.append(f"only {distinct} of {len(known)} texts differ: mixing could go unseen")
    for problem in problems[:20]:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
