"""Prompts whose answers differ from each other, whatever the model has learnt."""

import json
import random

from daemon import DEMO_MODEL

TOKENIZER = json.loads((DEMO_MODEL / "tokenizer.json").read_text(encoding="utf-8"))
SPECIAL = {token["content"]: token["id"] for token in TOKENIZER["added_tokens"]}
EOS = SPECIAL["<｜end▁of▁sentence｜>"]
# Tokens of plain ASCII text: each is a text of its own.
PLAIN = {
    id: text
    for text, id in TOKENIZER["model"]["vocab"].items()
    if text.isascii() and text.isalpha() and id not in SPECIAL.values()
}


def token_ids(count: int, seed: int) -> list[int]:
    """A prompt of exactly so many tokens."""
    return random.Random(seed).choices(sorted(PLAIN), k=count)


def some_requests(count: int, longest_prompt: int, longest_answer: int) -> list[dict]:
    """Completion requests of mixed lengths."""
    rng = random.Random(count)
    return [
        {
            "prompt": token_ids(rng.randint(1, longest_prompt), seed),
            "max_tokens": rng.randint(1, longest_answer),
            "ignore_eos": True,
        }
        for seed in range(count)
    ]
