#!/usr/bin/env python3
"""Measures the demo model on held-out items, through the daemon's HTTP API.

    python3 scripts/demo/eval.py --url http://127.0.0.1:8080 --items 200

Greedy chats; one line per task; exit 1 if a required figure is missed. `--local DIR` asks the
checkpoint through Hugging Face transformers instead, on this machine's CPU.
"""

import argparse
import json
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import corpus

# Task -> the least percentage; None: reported only.
TASKS: dict[str, float | None] = {
    "extract": 95.0,
    "recall": 95.0,
    "addition3": 90.0,
    "arithmetic": None,
    "qa": None,
    "tools": None,
    "sort": None,
    "count": None,
}
MAX_TOKENS = 256
TIMEOUT_S = 600

Answer = Callable[[corpus.Conversation], dict]


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return json.load(response)


def through_http(url: str) -> Answer:
    """Answers by POST /v1/chat/completions, greedily, from the first model served."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=TIMEOUT_S) as response:
        model = json.load(response)["data"][0]["id"]

    def answer(item: corpus.Conversation) -> dict:
        body = {"model": model, "messages": item.messages[:-1], "temperature": 0}
        body["max_tokens"] = MAX_TOKENS
        if item.tools:
            body["tools"] = item.tools
        return post(f"{url}/v1/chat/completions", body)["choices"][0]["message"]

    return answer


def through_transformers(folder: str) -> Answer:
    """Answers by generate() of the checkpoint, as it stands in the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stop = tokenizer.eos_token_id

    def answer(item: corpus.Conversation) -> dict:
        prompt = tokenizer.apply_chat_template(
            item.messages[:-1],
            tools=item.tools or None,
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=stop)
        return parse(tokenizer.decode(out[0, ids.shape[1] :]).removesuffix(corpus.EOS))

    return answer


def parse(text: str) -> dict:
    """The model's text as a message: reasoning dropped, tool calls taken apart."""
    content = corpus.strip_think(text)
    content, _, calls = content.partition(corpus.CALLS_BEGIN)
    message: dict = {"role": "assistant", "content": content}
    for call in calls.split(corpus.CALL_BEGIN)[1:]:
        name, _, arguments = call.partition(corpus.SEP)
        function = {"name": name, "arguments": arguments.partition(corpus.CALL_END)[0]}
        message.setdefault("tool_calls", []).append({"type": "function", "function": function})
    return message


def decoded(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def meaning(message: dict) -> tuple:
    """What is compared: the answer without reasoning, and the calls with their arguments."""
    content = corpus.strip_think(message.get("content") or "").strip()
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return content, [(call["name"], decoded(call["arguments"])) for call in calls]


def is_exact(task: str, got: dict, wanted: dict) -> bool:
    (content, calls), (right, right_calls) = meaning(got), meaning(wanted)
    if task == "extract":
        return decoded(content) == decoded(right)
    return (content, calls) == (right, right_calls)


def measure(task: str, answer: Answer, args: argparse.Namespace) -> float:
    """Asks a task's items, prints its line, and returns the percentage of exact answers."""
    items = corpus.held_out(task, args.items)
    began = time.monotonic()
    with ThreadPoolExecutor(args.threads) as pool:
        answers = list(pool.map(answer, items))
    exact = 0
    for item, got in zip(items, answers):
        good = is_exact(task, got, item.messages[-1])
        exact += good
        if args.show and not good:
            print(f"  asked {item.messages[-2]['content'][-300:]!r}")
            print(f"    right {meaning(item.messages[-1])}\n    got   {meaning(got)}")
    percent = 100 * exact / len(items)
    least, seconds = TASKS[task], time.monotonic() - began
    need = f"  (at least {least:g})" if least else ""
    print(
        f"{task:11} n {len(items):4}  exact {exact:4}  {percent:6.2f} %{need}  {seconds:.1f} s",
        flush=True,
    )
    return percent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--items", type=int, default=200, help="items of each task")
    parser.add_argument("--threads", type=int, default=8, help="requests at a time")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--local", metavar="DIR", help="a checkpoint folder instead of a server")
    parser.add_argument("--show", action="store_true", help="print the wrong answers")
    args = parser.parse_args()
    if args.local:
        args.threads = 1
        answer = through_transformers(args.local)
    else:
        answer = through_http(args.url.rstrip("/"))
    failed = False
    for task in args.tasks:
        percent = measure(task, answer, args)
        failed |= percent < (TASKS[task] or 0)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
