"""boto3's sagemaker-runtime against the daemon: what a caller of a SageMaker endpoint sees.

Between the two stands what SageMaker puts there, as little of it as the contract needs: paths and
headers are mapped, a streamed answer is cut into event-stream messages, and errors are wrapped.
"""

import http.client
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError
from daemon import GREEDY, TIMEOUT_S, Server, text_of, wait_until

NAME = "demo-endpoint"
WHAT = [{"role": "user", "content": "What is mlad?"}]
CHAT_BODY = {"messages": WHAT, "temperature": 0, "max_tokens": 200}
PROMPT_BODY = {"prompt": "mlad is", "temperature": 0, "max_tokens": 12}
ENDLESS = GREEDY | {"prompt": "mlad is", "max_tokens": 8000}
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
SESSIONS = ("X-Amzn-SageMaker-New-Session-Id", "X-Amzn-SageMaker-Closed-Session-Id")


def event_message(headers: dict[str, str], payload: bytes) -> bytes:
    """A message of application/vnd.amazon.eventstream; every header is a string, type 7."""
    block = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value
        for name, value in ((name, value.encode()) for name, value in headers.items())
    )
    # Both lengths and their checksum stand before the headers, a checksum of all comes last.
    prelude = struct.pack("!II", 12 + len(block) + len(payload) + 4, len(block))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + block + payload
    return message + struct.pack("!I", zlib.crc32(message))


class Front(BaseHTTPRequestHandler):
    """SageMaker's side of POST /endpoints/NAME/invocations[-response-stream]."""

    daemon_port: int

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, _, name, operation = self.path.split("/")
        if name != NAME:
            self.answer_error(400, "ValidationError", {"Message": f"Endpoint {name} not found."})
            return
        # The caller's signature ends here; the container sees these headers alone.
        kept = ("content-type", "accept", "x-amzn-sagemaker-")
        headers = {k: v for k, v in self.headers.items() if k.lower().startswith(kept)}
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon_port, timeout=TIMEOUT_S)
        with closing(connection):
            connection.request("POST", "/invocations", body, headers)
            response = connection.getresponse()
            if response.status != 200:
                self.answer_model_error(response.status, response.read().decode())
            elif operation == "invocations-response-stream":
                self.answer_stream(response)
            else:
                self.answer(200, self.model_headers(response, "Content-Type"), response.read())

    def model_headers(self, response: http.client.HTTPResponse, type_name: str) -> dict[str, str]:
        headers = {type_name: response.headers["Content-Type"]}
        for name in (ATTRIBUTES, *SESSIONS):
            if name in response.headers:
                headers[name] = response.headers[name]
        return headers

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def answer_error(self, status: int, kind: str, fields: dict) -> None:
        headers = {"Content-Type": "application/json", "x-amzn-errortype": kind}
        self.answer(status, headers, json.dumps(fields).encode())

    def answer_model_error(self, status: int, text: str) -> None:
        side = "client" if status < 500 else "server"
        message = f'Received {side} error ({status}) from primary with message "{text}".'
        original = {"OriginalStatusCode": status, "OriginalMessage": text}
        self.answer_error(424, "ModelError", {"Message": message} | original)

    def answer_stream(self, response: http.client.HTTPResponse) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.amazon.eventstream")
        for name, value in self.model_headers(response, "X-Amzn-SageMaker-Content-Type").items():
            self.send_header(name, value)
        self.end_headers()
        part = {":message-type": "event", ":event-type": "PayloadPart"}
        try:
            while data := response.read1(4096):
                self.wfile.write(event_message(part, data))
        except http.client.IncompleteRead:
            broken = {":message-type": "exception", ":exception-type": "ModelStreamError"}
            fields = {"ErrorCode": "StreamBroken", "Message": "The stream broke."}
            self.wfile.write(event_message(broken, json.dumps(fields).encode()))
        except OSError:
            pass  # the caller left, and the daemon's connection closes behind it


@contextmanager
def runtime(server: Server) -> Iterator:
    """A client whose endpoint is the daemon. The credentials sign, but nobody checks them."""
    handler = type("FrontOfThis", (Front,), {"daemon_port": server.port})
    front = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=f"http://127.0.0.1:{front.server_port}",
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=TIMEOUT_S, proxies={}),
    )
    try:
        yield client
    finally:
        client.close()
        front.shutdown()
        front.server_close()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator:
    with runtime(server) as client:
        yield client


def request(body: dict | bytes, **fields: str) -> dict:
    data = body if isinstance(body, bytes) else json.dumps(body)
    return {"EndpointName": NAME, "ContentType": "application/json", "Body": data} | fields


def invoke(client, body: dict | bytes, **fields: str) -> dict:
    return json.load(client.invoke_endpoint(**request(body, **fields))["Body"])


def stream(client, body: dict, **fields: str) -> dict:
    body = body | {"stream": True}
    return client.invoke_endpoint_with_response_stream(**request(body, **fields))


def payload(answer: dict) -> Iterator[bytes]:
    return (part["PayloadPart"]["Bytes"] for part in answer["Body"])


def sse_events(answer: dict) -> list[dict]:
    """The answer's events, and that [DONE] is the last."""
    lines = b"".join(payload(answer)).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [line for line in lines[:-2] if not line.startswith(":")]
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_messages_are_answered_as_a_chat(client) -> None:
    answer = invoke(client, CHAT_BODY)
    assert answer["object"] == "chat.completion"
    assert "mlad" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("key", ["prompt", "inputs"])
def test_a_prompt_is_answered_as_a_completion(client, server: Server, key: str) -> None:
    answer = invoke(client, {key: PROMPT_BODY["prompt"], "temperature": 0, "max_tokens": 12})
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == server.text(**PROMPT_BODY)


@pytest.mark.parametrize("body", [CHAT_BODY, PROMPT_BODY])
def test_a_streamed_answer_is_the_whole_one(client, body: dict) -> None:
    answer = stream(client, body)
    assert answer["ContentType"].startswith("text/event-stream")
    events = sse_events(answer)
    choice = invoke(client, body)["choices"][0]
    whole = choice["message"]["content"] if "message" in choice else choice["text"]
    assert whole and "".join(text_of(event) for event in events) == whole
    assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]


def test_custom_attributes_come_back(client) -> None:
    trace = "trace=abc;tenant=7"
    answer = client.invoke_endpoint(**request(PROMPT_BODY, CustomAttributes=trace))
    assert answer["CustomAttributes"] == trace
    assert answer["ContentType"].startswith("application/json")
    answer["Body"].read()
    answer = stream(client, PROMPT_BODY, CustomAttributes=trace)
    assert answer["CustomAttributes"] == trace
    assert sse_events(answer)
    assert "CustomAttributes" not in client.invoke_endpoint(**request(PROMPT_BODY))


def test_custom_attributes_choose_the_api(client) -> None:
    both = CHAT_BODY | PROMPT_BODY
    kinds = {"/v1/completions": "text_completion", "/v1/chat/completions": "chat.completion"}
    for route, kind in kinds.items():
        assert invoke(client, both, CustomAttributes=f"route={route}")["object"] == kind


def test_other_parameters_of_the_call_are_harmless(client) -> None:
    answer = invoke(client, CHAT_BODY, Accept="application/json", InferenceId="abc-1")
    assert answer == invoke(client, CHAT_BODY) | {"id": answer["id"], "created": answer["created"]}


@pytest.mark.parametrize("call", ["whole", "stream"])
@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (CHAT_BODY | {"temperature": "hot"}, 400, "temperature"),
        (PROMPT_BODY | {"max_tokens": -1}, 400, "max_tokens"),
        (CHAT_BODY | {"model": "another"}, 404, "model"),
    ],
)
def test_errors_reach_the_caller(client, call: str, body: dict, status: int, param: str) -> None:
    ask: Callable = invoke if call == "whole" else stream
    with pytest.raises(client.exceptions.ModelError) as caught:
        ask(client, body)
    response = caught.value.response
    assert response["OriginalStatusCode"] == status
    error = json.loads(response["OriginalMessage"])["error"]
    assert error["param"] == param and param in error["message"]


def test_a_body_that_is_no_json_is_a_model_error(client) -> None:
    with pytest.raises(client.exceptions.ModelError) as caught:
        invoke(client, b"{")
    error = json.loads(caught.value.response["OriginalMessage"])["error"]
    assert error["type"] == "invalid_request_error"


def test_an_unknown_endpoint_never_reaches_the_daemon(client, server: Server) -> None:
    before = server.generated()
    with pytest.raises(ClientError) as caught:
        invoke(client, CHAT_BODY, EndpointName="another")
    assert caught.value.response["Error"]["Code"] == "ValidationError"
    assert server.generated() == before


def test_a_caller_who_leaves_a_stream_ends_its_work(client, server: Server) -> None:
    before = server.generated()
    answer = stream(client, ENDLESS)
    assert next(payload(answer))
    answer["Body"].close()
    wait_until(server.is_idle, "the abandoned request ends")
    assert server.generated() - before < ENDLESS["max_tokens"]


def test_a_stream_that_breaks_is_an_error(start: Callable[..., Server]) -> None:
    server = start("--drain-timeout-s", "1")
    with runtime(server) as client:
        parts = payload(stream(client, ENDLESS))
        text = next(parts)
        server.signal()
        with pytest.raises(EventStreamError, match="ModelStreamError"):
            for part in parts:
                text += part
    *_, last, nothing = text.decode().split("\n\n")
    assert nothing == ""
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "service_unavailable_error"


def test_a_session_opens_and_closes(client) -> None:
    opened = client.invoke_endpoint(
        **request({"requestType": "NEW_SESSION"}, SessionId="NEW_SESSION")
    )
    session = opened["NewSessionId"].split(";")[0]
    answer = client.invoke_endpoint(**request(PROMPT_BODY, SessionId=session))
    assert json.load(answer["Body"])["choices"][0]["text"]
    closed = client.invoke_endpoint(**request({"requestType": "CLOSE"}, SessionId=session))
    assert closed["ClosedSessionId"] == session
    with pytest.raises(ClientError) as refused:
        client.invoke_endpoint(**request(PROMPT_BODY, SessionId=session))
    assert "session_not_found" in refused.value.response["OriginalMessage"]
