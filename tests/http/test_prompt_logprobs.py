"""Log-probabilities of the prompt's own tokens: what evaluation harnesses ask for."""

import json
import math
import struct

import pytest
from daemon import CHAT, COMPLETIONS, ROOT, Server, in_parallel
from prompts import token_ids

VECTORS = ROOT / "tests/vectors/demo"


def ask(server: Server, path: str = COMPLETIONS, **fields) -> dict:
    reply = server.post(path, {"temperature": 0, "max_tokens": 1} | fields)
    assert reply.status == 200, reply.body
    return reply.json()


def test_they_are_those_of_transformers(server: Server) -> None:
    expected = json.loads((VECTORS / "expected.json").read_text())
    prompt, positions = expected["prompt"], expected["logits"]["positions"]
    raw = (VECTORS / expected["logits"]["values"]).read_bytes()
    vocab = len(raw) // 4 // len(positions)
    (choice,) = ask(server, prompt=prompt, prompt_logprobs=3)["choices"]
    assert len(choice["prompt_logprobs"]) == len(prompt)
    assert choice["prompt_logprobs"][0] is None
    checked = 0
    for i, position in enumerate(positions):
        if position + 1 == len(prompt):
            continue
        logits = struct.unpack_from(f"<{vocab}f", raw, 4 * i * vocab)
        top = max(logits)
        total = top + math.log(sum(math.exp(x - top) for x in logits))
        target = prompt[position + 1]
        entry = choice["prompt_logprobs"][position + 1]
        assert entry[str(target)]["logprob"] == pytest.approx(logits[target] - total, abs=2e-3)
        rank = 1 + sum(x > logits[target] for x in logits)
        assert entry[str(target)]["rank"] == rank
        assert entry[str(logits.index(top))]["rank"] == 1
        checked += 1
    assert checked >= 3


def test_echo_with_logprobs_begins_with_the_prompt(server: Server) -> None:
    prompt = "What does 429 mean?"
    (choice,) = ask(server, prompt=prompt, echo=True, logprobs=2, max_tokens=3)["choices"]
    logprobs = choice["logprobs"]
    plain = ask(server, prompt=prompt, logprobs=2, max_tokens=3)["choices"][0]
    n = len(logprobs["tokens"]) - 3
    assert choice["text"] == prompt + plain["text"]
    assert logprobs["tokens"][n:] == plain["logprobs"]["tokens"]
    assert logprobs["token_logprobs"][n:] == plain["logprobs"]["token_logprobs"]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    for token, offset in list(zip(logprobs["tokens"], logprobs["text_offset"]))[1:]:
        assert choice["text"][offset : offset + len(token)] == token


def test_streamed_echo_has_the_same(server: Server) -> None:
    fields = {"prompt": "One two", "echo": True, "logprobs": 1, "max_tokens": 4, "temperature": 0}
    (whole,) = ask(server, **fields)["choices"]
    values = []
    for event in server.stream(COMPLETIONS, **fields).events():
        if event["choices"][0]["logprobs"]:
            values += event["choices"][0]["logprobs"]["token_logprobs"]
    assert values == whole["logprobs"]["token_logprobs"]


def test_chats_have_them_at_the_top(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = ask(server, CHAT, messages=messages, prompt_logprobs=0)
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert all(len(entry) == 1 for entry in answer["prompt_logprobs"][1:])


def test_neither_chunks_nor_company_nor_the_cache_change_them(start) -> None:
    """A prompt longer than what one step scores, alone and among others, first and again."""
    server = start("--max-num-batched-tokens", "300", "--max-num-seqs", "8")
    prompt = token_ids(900, 3)
    fields = {"prompt": prompt, "prompt_logprobs": 1}
    alone = ask(server, **fields)
    others = [{"prompt": token_ids(200, i), "max_tokens": 20} for i in range(6)]
    crowd = in_parallel(lambda body: ask(server, **body), [fields, *others, fields])
    for answer in (crowd[0], crowd[-1]):
        assert answer["choices"][0]["prompt_logprobs"] == alone["choices"][0]["prompt_logprobs"]
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_preemption_repeats_no_score(start) -> None:
    server = start("--num-kv-pages", "11", "--max-model-len", "700", "--max-num-seqs", "4")
    bodies = [
        {"prompt": token_ids(200, i), "prompt_logprobs": 0, "max_tokens": 150, "ignore_eos": True}
        for i in range(6)
    ]
    alone = [ask(server, **body)["choices"][0] for body in bodies]
    crowd = in_parallel(lambda body: ask(server, **body)["choices"][0], bodies)
    assert server.metric("vllm:num_preemptions_total") > 0
    for one, other in zip(alone, crowd):
        assert other["prompt_logprobs"] == one["prompt_logprobs"]
        assert other["text"] == one["text"]


def test_they_are_not_streamed(server: Server) -> None:
    reply = server.post(COMPLETIONS, {"prompt": "a", "prompt_logprobs": 1, "stream": True})
    assert (reply.status, reply.error()["param"]) == (400, "prompt_logprobs")
