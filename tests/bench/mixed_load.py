"""Mixed load at the connection limit: does anybody lose a request, or get another's bytes?

    build/mlad serve --port 8080 --max-connections 600 --max-num-seqs 64 --read-timeout-s 10 &
    python3 tests/bench/mixed_load.py --port 8080 --pid $! --seconds 60

For the given time there are, on 127.0.0.1 alone:

    streams      clients that stream or ask for a whole answer, one request after another, each of a
                 known text; some leave in the middle
    wrk          keep-alive connections on /v1/models and /tokenize, by Debian's wrk
    slowloris    connections that send a request's head byte by byte
    deaf         clients that ask for much and hardly read
    knocks       connections past the limit, which must be told 503

Every text is compared with what the same request gave when it was alone. After the load the
daemon's gauges must read zero, and its memory must be what it was after a first round of the same
load. Needs wrk; the rest is the standard library.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from stream_load import metrics, percentile

REQUESTS = 40  # of different texts
GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "mlad_exchanges_active",
    "mlad_buffered_bytes",
    "mlad_body_bytes",
)
WRK_SCRIPT = """
local n = 0
request = function()
  n = n + 1
  if n % 2 == 0 then return wrk.format("GET", "/v1/models") end
  local body = '{"prompt": "One two three four five six seven eight ' .. n .. '"}'
  return wrk.format("POST", "/tokenize", {["Content-Type"] = "application/json"}, body)
end
done = function(summary, latency)
  io.write(string.format("wrk %d requests, %d errors of status, %d of the socket, p99 %.1f ms\\n",
    summary.requests, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(99) / 1000))
end
"""


def fields_of(number: int) -> dict:
    return {
        "prompt": f"Number {number}: " + "one two three " * (number % 13),
        "max_tokens": 8 + number % 40,
        "ignore_eos": True,
        "temperature": 3,
        "seed": number,
    }


def message(fields: dict) -> bytes:
    body = json.dumps(fields).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Load:
    def __init__(self, port: int, seconds: float) -> None:
        self.port, self.until = port, time.monotonic() + seconds
        self.counts: Counter = Counter()
        self.problems: list[str] = []
        self.texts: dict[int, str] = {}
        self.first_s: list[float] = []

    def running(self) -> bool:
        return time.monotonic() < self.until

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def head(self, reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value for name, value in pairs}

    async def chunks(self, reader: asyncio.StreamReader):
        while size := int(await reader.readline(), 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)

    async def ask(self, reader, writer, number: int, stream: bool, leave: bool) -> str | None:
        """The text of an answer; None when the client left in its middle."""
        began = time.monotonic()
        writer.write(message(fields_of(number) | {"stream": stream}))
        status, headers = await self.head(reader)
        if status in (429, 503):  # the queue is full; a new connection is one too many
            await reader.readexactly(int(headers["content-length"]))
            self.counts[f"told {status}"] += 1
            writer.close()
            await asyncio.sleep(int(headers["retry-after"]))
            return None
        assert status == 200, f"status {status}"
        if not stream:
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            return body["choices"][0]["text"]
        text, rest, done = "", b"", False
        async for chunk in self.chunks(reader):
            rest += chunk
            *events, rest = rest.split(b"\n\n")
            for event in events:
                if event.startswith(b":"):
                    continue
                data = event.removeprefix(b"data: ")
                done = data == b"[DONE]"
                text += "" if done else json.loads(data)["choices"][0]["text"]
            if text and began:
                self.first_s.append(time.monotonic() - began)
                began = 0
            if leave and text:
                return None
        assert done, "no [DONE]"
        return text

    async def client(self, identity: int) -> None:
        """Asks again and again on one connection, until it leaves one."""
        dice = random.Random(identity)
        reader = writer = None
        while self.running():
            number, stream = dice.randrange(REQUESTS), dice.random() < 0.8
            leave = stream and dice.random() < 0.1
            try:
                if not writer or writer.is_closing():
                    reader, writer = await self.connect()
                text = await self.ask(reader, writer, number, stream, leave)
            except Exception as failure:  # noqa: BLE001: whatever it is, a request was lost
                self.problems.append(f"request {number} lost: {failure!r}")
                self.counts["lost"] += 1
                writer = None
                continue
            if leave:
                writer.transport.abort()
                writer = None
                self.counts["left"] += 1
            elif text is not None:
                self.counts["streamed" if stream else "whole"] += 1
                if text != self.texts[number]:
                    self.counts["mixed"] += 1
                    self.problems.append(f"request {number}: {text!r}, not {self.texts[number]!r}")
        if writer:
            writer.close()

    async def slowloris(self) -> None:
        while self.running():
            reader, writer = await self.connect()
            try:
                for byte in b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 1000:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.5)
                    if not self.running() or reader.at_eof() or writer.is_closing():
                        break
            except OSError:
                pass
            self.counts["slow senders ended"] += 1
            writer.close()

    async def deaf(self, number: int) -> None:
        loud = fields_of(number) | {"max_tokens": 4000, "logprobs": 20, "stream": True}
        while self.running():
            reader, writer = await self.connect()
            writer.transport.pause_reading()
            writer.write(message(loud))
            await asyncio.sleep(10)
            self.counts["deaf clients"] += 1
            writer.transport.abort()

    async def knock(self) -> None:
        """Short visits past the limit."""
        while self.running():
            try:
                reader, writer = await self.connect()
                writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                status, _ = await self.head(reader)
                self.counts[f"knocks told {status}"] += 1
                writer.close()
            except Exception as failure:  # noqa: BLE001
                self.problems.append(f"a knock got no answer: {failure!r}")
            await asyncio.sleep(0.2)

    async def learn(self) -> None:
        """The texts of all requests, each alone."""
        for number in range(REQUESTS):
            reader, writer = await self.connect()
            self.texts[number] = await self.ask(reader, writer, number, False, False)
            writer.close()

    async def run(self, args: argparse.Namespace) -> str:
        script = tempfile.NamedTemporaryFile("w", suffix=".lua")
        script.write(WRK_SCRIPT)
        script.flush()
        seconds = round(self.until - time.monotonic())
        wrk = await asyncio.create_subprocess_exec(
            "wrk", "-t1", f"-c{args.wrk}", f"-d{seconds}s", "-s", script.name, "--latency",
            f"http://127.0.0.1:{args.port}", stdout=subprocess.PIPE,
        )
        jobs = [self.client(i) for i in range(args.streams)]
        jobs += [self.slowloris() for _ in range(args.slow)]
        jobs += [self.deaf(i) for i in range(args.deaf)]
        jobs += [self.knock() for _ in range(args.knocks)]
        await asyncio.gather(*jobs)
        output, _ = await wrk.communicate()
        return next(line for line in output.decode().splitlines() if line.startswith("wrk "))


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def settle(port: int) -> list[str]:
    """Waits for the gauges to read zero; those that do not in 30 s."""
    left: list[str] = []
    for _ in range(300):
        now = metrics(port)
        # The page that asks is a connection itself.
        left = [name for name in GAUGES if now[name] != 0]
        left += ["mlad_connections"] if now["mlad_connections"] > 1 else []
        if not left:
            break
        time.sleep(0.1)
    return [f"{name} is {metrics(port)[name]}, not 0" for name in left]


def one_round(args: argparse.Namespace, seconds: float) -> tuple[Load, str]:
    load = Load(args.port, 1e9)
    asyncio.run(load.learn())
    load.until = time.monotonic() + seconds
    line = asyncio.run(load.run(args))
    load.problems += settle(args.port)
    return load, line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--streams", type=int, default=350)
    parser.add_argument("--wrk", type=int, default=100)
    parser.add_argument("--slow", type=int, default=100)
    parser.add_argument("--deaf", type=int, default=30)
    parser.add_argument("--knocks", type=int, default=60)
    parser.add_argument("--slack-mib", type=float, default=8, help="memory may grow by a tenth and")
    args = parser.parse_args()

    one_round(args, min(args.seconds, 15))
    warm = rss_mib(args.pid)
    before = metrics(args.port)
    load, wrk = one_round(args, args.seconds)
    after = metrics(args.port)
    rss = rss_mib(args.pid)
    tokens = after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"]
    for name, count in sorted(load.counts.items()):
        print(f"{name:24} {count}")
    print(wrk)
    print(f"{'tokens per second':24} {tokens / args.seconds:.0f}")
    first = [percentile(load.first_s, p) * 1000 for p in (50, 99)]
    print(f"{'first text p50, p99 ms':24} {first[0]:.0f}, {first[1]:.0f}")
    dropped = "mlad_slow_clients_dropped_total"
    print(f"{'deaf clients dropped':24} {after[dropped] - before[dropped]:.0f}")
    print(f"{'memory before, after MiB':24} {warm:.1f}, {rss:.1f}")
    if rss > 1.1 * warm + args.slack_mib:
        load.problems.append(f"memory grew from {warm:.1f} to {rss:.1f} MiB")
    for problem in load.problems[:20]:
        print(problem, file=sys.stderr)
    return 1 if load.problems else 0


if __name__ == "__main__":
    sys.exit(main())
