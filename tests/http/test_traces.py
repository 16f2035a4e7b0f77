"""Traces over OTLP, and log lines that machines read."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from daemon import CHAT, COMPLETIONS, DEMO_MODEL, Server, wait_until
from test_lifecycle import check_refused, run

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
ASK = {"prompt": "One", "max_tokens": 5, "ignore_eos": True, "temperature": 0.5, "seed": 1}


class Collector(ThreadingHTTPServer):
    """Takes OTLP requests; answers as `status` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.delay_s = 0.0
        self.requests: list[tuple[dict, dict]] = []  # headers, body
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    def spans(self) -> list[dict]:
        """Spans that were taken, with their attributes as a dict."""
        spans = []
        for _, body in list(self.requests):
            for resource in body["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    spans += [span | {"attributes": plain(span)} for span in scope["spans"]]
        return spans

    def span(self) -> dict:
        wait_until(self.spans, "a span")
        (span,) = self.spans()
        return span


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.delay_s)
        if self.server.status == 200:
            self.server.requests.append((dict(self.headers), body | {"path": self.path}))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def plain(holder: dict) -> dict:
    def value(typed: dict):
        ((kind, content),) = typed.items()
        if kind == "arrayValue":
            return [value(item) for item in content["values"]]
        return int(content) if kind == "intValue" else content

    return {item["key"]: value(item["value"]) for item in holder["attributes"]}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


@pytest.fixture
def traced(start: Callable[..., Server], collector: Collector) -> Server:
    return start("--otlp-traces-endpoint", collector.url)


def test_a_request_is_a_span_of_its_clients_trace(traced: Server, collector: Collector) -> None:
    headers = {"traceparent": TRACEPARENT, "x-request-id": "my-request"}
    before = time.time_ns()
    reply = traced.post(COMPLETIONS, ASK, headers)
    span = collector.span()
    assert (span["traceId"], span["parentSpanId"]) == (TRACE_ID, PARENT_ID)
    assert len(span["spanId"]) == 16 and span["spanId"] != PARENT_ID
    assert span["name"] == "text_completion demo" and span["kind"] == 2 and "status" not in span
    begin, end = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
    assert before - 10**9 < begin < end < time.time_ns() + 10**9
    assert span["attributes"].items() >= {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "mlad",
        "gen_ai.request.model": "demo",
        "gen_ai.response.id": reply.json()["id"],
        "gen_ai.request.id": "my-request",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.usage.input_tokens": reply.json()["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ["length"],
        "http.request.method": "POST",
        "url.path": COMPLETIONS,
        "http.response.status_code": 200,
    }.items()
    for name in ("time_in_queue", "time_to_first_token", "e2e"):
        assert 0 <= span["attributes"][f"gen_ai.latency.{name}"] < 120


def test_the_service_names_itself(start, collector: Collector) -> None:
    env = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=se%20cret, x-team=blue",
        "OTEL_SERVICE_NAME": "my-service",
    }
    server = start(env=env)
    server.post(COMPLETIONS, ASK)
    wait_until(lambda: collector.requests, "the spans")
    headers, body = collector.requests[0]
    assert headers["Content-Type"] == "application/json" and body["path"] == "/v1/traces"
    assert (headers["x-api-key"], headers["x-team"]) == ("se cret", "blue")
    (resource,) = body["resourceSpans"]
    assert plain(resource["resource"]).items() >= {
        "service.name": "my-service",
        "service.version": server.get("/version").json()["version"],
    }.items()
    assert "se cret" not in server.log()


@pytest.mark.parametrize(
    "header",
    [
        None,
        "nonsense",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID.upper()}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-01-more",
    ],
)
def test_without_a_good_traceparent_a_trace_begins(
    traced: Server, collector: Collector, header: str | None
) -> None:
    traced.post(COMPLETIONS, ASK, {"traceparent": header} if header else {})
    span = collector.span()
    assert "parentSpanId" not in span
    assert len(span["traceId"]) == 32 and span["traceId"] != TRACE_ID
    assert int(span["traceId"], 16) != 0


def test_a_trace_that_its_client_does_not_record_is_left_alone(
    traced: Server, collector: Collector
) -> None:
    traced.post(COMPLETIONS, ASK, {"traceparent": TRACEPARENT[:-2] + "00"})
    later = f"cc-{TRACE_ID}-{PARENT_ID}-01-of-a-later-version"
    traced.post(COMPLETIONS, ASK, {"traceparent": later})
    assert collector.span()["traceId"] == TRACE_ID


def test_errors_and_clients_that_leave_are_told(traced: Server, collector: Collector) -> None:
    traced.post(CHAT, {"messages": []})
    span = collector.span()
    assert span["name"] == f"POST {CHAT}" and "status" not in span
    assert span["attributes"]["error.type"] == "400"
    collector.requests.clear()
    stream = traced.stream(COMPLETIONS, **(ASK | {"max_tokens": 8000}))
    next(stream.events())
    stream.close()
    assert collector.span()["attributes"]["error.type"] == "client_gone"


def test_monitors_leave_no_spans(traced: Server, collector: Collector) -> None:
    for path in ("/health", "/ready", "/metrics", "/ping"):
        traced.get(path)
    traced.post(COMPLETIONS, ASK)
    assert collector.span()["attributes"]["url.path"] == COMPLETIONS


def test_spans_travel_together_and_the_last_ones_at_the_end(start, collector: Collector) -> None:
    server = start("--otlp-traces-endpoint", collector.url)
    for _ in range(50):
        server.post("/tokenize", {"prompt": "One"})
    server.stop()
    assert len(collector.spans()) == 50
    assert len(collector.requests) < 20


def test_a_collector_that_asks_to_wait_is_asked_again(
    traced: Server, collector: Collector
) -> None:
    collector.status = 503
    traced.post(COMPLETIONS, ASK)
    time.sleep(1.2)
    collector.status = 200
    collector.span()
    wait_until(lambda: traced.metric("mlad_trace_spans_sent_total") == 1, "it is counted")
    assert traced.metric("mlad_trace_spans_dropped_total") == 0


def test_what_a_collector_refuses_is_dropped_and_counted(
    traced: Server, collector: Collector
) -> None:
    collector.status = 400
    for _ in range(3):
        traced.post(COMPLETIONS, ASK)
    wait_until(lambda: traced.metric("mlad_trace_spans_dropped_total") == 3, "it is counted")
    assert "collector answers 400" in traced.log()
    assert traced.metric("mlad_trace_spans_sent_total") == 0


def test_a_collector_that_hangs_costs_requests_and_the_end_nothing(
    start, collector: Collector
) -> None:
    collector.delay_s = 60
    server = start("--otlp-traces-endpoint", collector.url)
    server.text(**ASK)
    time.sleep(1)  # now the collector has the first span, and keeps it
    for _ in range(4200):  # the queue holds 4096
        server.request("GET", "/v1/models")
    assert server.metric("mlad_trace_spans_dropped_total") > 50
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < 20


def test_a_collector_that_is_not_there_harms_nothing(start) -> None:
    server = start("--otlp-traces-endpoint", "http://127.0.0.1:1/v1/traces")
    server.post(COMPLETIONS, ASK)
    wait_until(lambda: server.metric("mlad_trace_spans_dropped_total") == 1, "it is counted")
    assert "can't reach the trace collector" in server.log()
    assert server.text(**ASK)


def test_settings_that_make_no_sense_are_refused() -> None:
    serve = ("serve", "--port", "0", "--model", str(DEMO_MODEL))
    check_refused(run(*serve, "--otlp-traces-endpoint", "localhost:4318"), "http://")
    check_refused(run(*serve, "--otlp-headers", "x=y"), "--otlp-headers")
    endpoint = ("--otlp-traces-endpoint", "http://127.0.0.1:1")
    check_refused(run(*serve, *endpoint, MLAD_OTLP_HEADERS="nonsense"), "NAME=VALUE")


def test_json_lines_have_the_ids_as_fields(start) -> None:
    server = start("--log-format", "json", "--access-log")
    headers = {"traceparent": TRACEPARENT, "x-request-id": 'my"id', "X-Amzn-Trace-Id": "Root=1"}
    server.post(COMPLETIONS, ASK, headers)
    server.post(COMPLETIONS, ASK)
    wait_until(lambda: server.log().count(f'"path":"{COMPLETIONS}"') == 2, "the access log")
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    first, second = (line for line in lines if line.get("path") == COMPLETIONS)
    assert first.items() >= {
        "request_id": 'my"id',
        "trace_id": TRACE_ID,
        "amzn_trace_id": "Root=1",
        "method": "POST",
        "status": 200,
        "client_gone": 0,
        "completion_tokens": 5,
    }.items()
    assert len(first["span_id"]) == 16 and first["duration_ms"] > 0
    assert second["trace_id"] not in (TRACE_ID, "") and "amzn_trace_id" not in second
