#!/usr/bin/env python3
"""Trains the demo model from nothing and writes it as a Hugging Face checkpoint folder.

    python3 scripts/demo/train.py --out model/demo

One pass: train the tokenizer, start workers that write and pack the corpus, train with Muon
(matrices) and AdamW (the rest), then measure held-out items and export. Lists to recall from grow
over the first part of the run, so that the model learns to copy on short ones first. Needs one GPU
for under ten minutes; on a CPU it works too, slowly, for a few steps.
"""

import argparse
import json
import multiprocessing as mp
import os
import random
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers import trainers

import corpus
from network import CONFIG, Network, export, round_weights

VOCAB_TRAINED = 1000  # entries that BPE learns; the added tokens follow
LONGEST = 4096  # tokens of the longest document
MAX_DOCS = 1536  # documents in a batch
BIAS_RATE = 1e-3  # step of the routers' bias, towards an even load

# Share of the tokens of a batch, by task.
SHARES = {
    "recall": 0.26,
    "tools": 0.18,
    "qa": 0.13,
    "extract": 0.13,
    "arithmetic": 0.09,
    "count": 0.04,
    "sort": 0.06,
    "multi": 0.06,
    "chat": 0.03,
    "text": 0.01,
}
# Weight of the loss: of an answer's tokens, and of the tokens that the model only reads.
ANSWER_WEIGHT = {"recall": 4.0, "tools": 2.0, "extract": 1.5, "sort": 2.0, "chat": 1.0}
READ_WEIGHT = {"recall": 0.0, "tools": 0.0, "sort": 0.0, "count": 0.0, "multi": 0.0}

ADDED_TOKENS = [
    corpus.USER,
    corpus.ASSISTANT,
    "<|EOT|>",
    corpus.CALLS_BEGIN,
    corpus.CALLS_END,
    corpus.CALL_BEGIN,
    corpus.CALL_END,
    corpus.OUTPUTS_BEGIN,
    corpus.OUTPUTS_END,
    corpus.OUTPUT_BEGIN,
    corpus.OUTPUT_END,
    corpus.SEP,
    corpus.THINK,
    corpus.THINK_END,
]

# DeepSeek-V3's split, but each digit stands alone.
SPLITS = [
    r"\p{N}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]


# ---- tokenizer ------------------------------------------------------------------------------


def tokenizer_text(seed: int) -> list[str]:
    """What BPE learns from: each task in its share, the words to recall so often that they become
    single tokens, the tool boilerplate so rarely that it doesn't take the whole vocabulary."""
    rng = random.Random(seed)
    out: list[str] = []
    sizes = {"recall": 250, "tools": 700, "qa": 4000, "extract": 2500, "arithmetic": 300}
    sizes |= {"count": 500, "sort": 800, "multi": 600, "chat": 1000, "text": 800}
    for task, size in sizes.items():
        for _ in range(size):
            options = {"lines": 30, "queries": 4} if task == "recall" else {}
            item = corpus.sample(rng, task, **options)
            out += [p.text for p in corpus.pieces_of(item)]
    for words, forms in (
        (corpus.ADJECTIVES, "{w}\n {w}\n"),
        (corpus.NOUNS, "{w}\n {w}\n-{w}\n"),
        (corpus.FRUITS, "{w}\n {w}\n"),
    ):
        out += [forms.format(w=word) for word in words] * 500
    return out


def build_tokenizer(seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in SPLITS]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_TRAINED,
        special_tokens=[corpus.BOS, corpus.EOS, corpus.PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = tokenizer_text(seed)
    for token in ADDED_TOKENS + [corpus.BOS, corpus.EOS]:
        text = [t.replace(token, "\n") for t in text]
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED_TOKENS])
    return tokenizer


# ---- packed batches -------------------------------------------------------------------------


@dataclass
class Batch:
    """One row of packed documents; all arrays have a fixed size."""

    ids: np.ndarray  # (T,) uint16
    targets: np.ndarray  # (T,) uint16, the next token
    weights: np.ndarray  # (T,) float16, of the loss at the target
    positions: np.ndarray  # (T,) uint16, inside the document
    tasks: np.ndarray  # (T,) uint8, index of the task
    docs: np.ndarray  # (T,) uint16, index of the document
    starts: np.ndarray  # (MAX_DOCS + 1,) int32

    def to(self, device: str) -> dict[str, torch.Tensor]:
        def move(array: np.ndarray, kind: type) -> torch.Tensor:
            return torch.from_numpy(array.astype(kind)).to(device, non_blocking=True)

        return {
            "ids": move(self.ids, np.int32),
            "targets": move(self.targets, np.int64),
            "weights": move(self.weights, np.float32),
            "positions": move(self.positions, np.int32),
            "tasks": move(self.tasks, np.int64),
            "docs": move(self.docs, np.int64),
            "starts": move(self.starts, np.int32),
        }


TASKS = list(SHARES)


@dataclass
class Document:
    task: str
    ids: list[int]
    learn: list[bool]  # whether the model wrote the token


def encode(tokenizer: Tokenizer, item: corpus.Conversation, task: str = "") -> Document:
    pieces = corpus.pieces_of(item)
    ids: list[int] = []
    learn: list[bool] = []
    for piece, code in zip(pieces, tokenizer.encode_batch_fast([p.text for p in pieces])):
        ids += code.ids
        learn += [piece.learn] * len(code.ids)
    return Document(task or item.task, ids, learn)


def pack(documents: list[Document], tokens: int, answers_only: bool = False) -> Batch:
    """Lays documents one after the other; what is left becomes one document of padding."""
    ids = np.full(tokens, 2, np.uint16)
    targets = np.full(tokens, 2, np.uint16)
    weights = np.zeros(tokens, np.float16)
    positions = np.zeros(tokens, np.uint16)
    tasks = np.zeros(tokens, np.uint8)
    docs = np.full(tokens, len(documents), np.uint16)
    starts = np.full(MAX_DOCS + 1, tokens, np.int32)
    at = 0
    for i, doc in enumerate(documents):
        end = at + len(doc.ids)
        ids[at:end] = doc.ids
        targets[at : end - 1] = doc.ids[1:]
        read = 0.0 if answers_only else READ_WEIGHT.get(doc.task, 0.05)
        weight = np.where(doc.learn[1:], ANSWER_WEIGHT.get(doc.task, 1.0), read)
        weights[at : end - 1] = weight
        positions[at:end] = np.arange(len(doc.ids))
        tasks[at:end] = TASKS.index(doc.task) if doc.task in SHARES else 0
        docs[at:end] = i
        starts[i] = at
        at = end
    starts[len(documents)] = at
    positions[at:] = np.minimum(np.arange(tokens - at), LONGEST - 1)
    return Batch(ids, targets, weights, positions, tasks, docs, starts)


def recall_lines(rng: random.Random, progress: float) -> int:
    """How long a list to recall from is: short at first, to about 4,000 tokens from half way."""
    longest = 4.0 + 5.3 * min(1.0, progress / 0.4)
    return int(2 ** rng.uniform(1.6, longest))


def make_batch(tokenizer: Tokenizer, seed: int, index: int, progress: float, tokens: int) -> Batch:
    """Batch number `index`: each task gets its share of the tokens."""
    rng = random.Random(f"{seed}-{index}")
    used = dict.fromkeys(TASKS, 0)
    documents: list[Document] = []
    left, misses = tokens, 0
    while misses < 8 and len(documents) < MAX_DOCS - 1:
        task = min(TASKS, key=lambda t: used[t] / SHARES[t])
        if misses:
            task = rng.choice(("qa", "arithmetic", "sort", "chat"))
        options = {"lines": recall_lines(rng, progress)} if task == "recall" else {}
        doc = encode(tokenizer, corpus.sample(rng, task, **options), task)
        if len(doc.ids) > min(left, LONGEST):
            misses += len(doc.ids) > left
            continue
        documents.append(doc)
        used[task] += len(doc.ids)
        left -= len(doc.ids)
    return pack(documents, tokens)


def work(tokenizer_json: str, args: argparse.Namespace, worker: int, count: int, queue) -> None:
    """A worker process: makes every `workers`-th batch, in order."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    for index in range(worker, count, args.workers):
        queue.put(make_batch(tokenizer, args.seed, index, index / count, args.tokens))


class Feed:
    """Batches in a fixed order: a new one every `reuse` steps, in between one seen before."""

    def __init__(self, tokenizer: Tokenizer, args: argparse.Namespace):
        count = -(-args.steps // args.reuse)
        context = mp.get_context("fork")  # before CUDA starts
        self.queues = [context.Queue(maxsize=16) for _ in range(args.workers)]
        self.reuse, self.device, self.waited = args.reuse, args.device, 0.0
        self.rng, self.new, self.seen = random.Random(args.seed), 0, []
        self.workers = [
            context.Process(
                target=work, args=(tokenizer.to_str(), args, i, count, queue), daemon=True
            )
            for i, queue in enumerate(self.queues)
        ]
        for process in self.workers:
            process.start()

    def get(self, step: int) -> dict[str, torch.Tensor]:
        if step % self.reuse and self.seen:
            return self.rng.choice(self.seen)
        began = time.monotonic()
        batch = self.queues[self.new % len(self.queues)].get().to(self.device)
        self.waited += time.monotonic() - began
        self.new += 1
        self.seen = [*self.seen[-511:], batch]
        return batch

    def close(self) -> None:
        for process in self.workers:
            process.terminate()


# ---- optimizer ------------------------------------------------------------------------------


def orthogonalize(g: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz: (B, m, n) -> the nearest semi-orthogonal matrices, roughly."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Momentum, orthogonalized, for matrices and stacks of them; equal shapes go together."""

    def __init__(self, params: list[torch.nn.Parameter], decay: float, momentum: float = 0.95):
        self.groups = defaultdict(list)
        for p in params:
            self.groups[tuple(p.shape[-2:])].append(p)
        self.buffers = {p: torch.zeros_like(p) for p in params}
        self.decay, self.momentum = decay, momentum
        self.orthogonalize = torch.compile(orthogonalize) if params[0].is_cuda else orthogonalize

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for (rows, cols), params in self.groups.items():
            grads = [p.grad for p in params]
            buffers = [self.buffers[p] for p in params]
            torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
            ahead = torch._foreach_lerp(grads, buffers, self.momentum)
            stacked = torch.cat([g.reshape(-1, rows, cols) for g in ahead])
            update = self.orthogonalize(stacked) * max(1.0, rows / cols) ** 0.5
            parts = update.split([p.numel() // (rows * cols) for p in params])
            torch._foreach_mul_(params, 1 - lr * self.decay)
            torch._foreach_add_(params, [u.view_as(p) for u, p in zip(parts, params)], alpha=-lr)


def split_params(network: Network) -> tuple[list, list, list]:
    """Muon's matrices, the rest (embedding, head, norms), and the routers."""
    matrices, rest, routers = [], [], []
    for name, p in network.named_parameters():
        plain = p.ndim < 2 or "embed" in name or "lm_head" in name
        kind = routers if name.endswith("mlp.gate") else rest if plain else matrices
        kind.append(p)
    return matrices, rest, routers


class Optimizer:
    """Muon and AdamW together; one scale of the learning rates for all."""

    def __init__(self, network: Network, args: argparse.Namespace):
        matrices, rest, routers = split_params(network)
        self.params = list(network.parameters())
        self.muon, self.muon_lr = Muon(matrices, args.decay), args.muon_lr
        self.adam_lrs = (args.adam_lr, args.router_lr)
        groups = [{"params": rest}, {"params": routers}]
        fused = args.device == "cuda"
        self.adam = torch.optim.AdamW(
            groups, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=fused
        )

    def step(self, scale: float) -> None:
        self.muon.step(self.muon_lr * scale)
        for group, lr in zip(self.adam.param_groups, self.adam_lrs):
            group["lr"] = lr * scale
        self.adam.step()
        for p in self.params:
            p.grad = None


# ---- evaluation -----------------------------------------------------------------------------

EVAL_TASKS = ["extract", "recall", "addition3", "arithmetic", "qa", "tools", "sort", "count"]


def eval_documents(tokenizer: Tokenizer, count: int, longest: int) -> list[Document]:
    """Held-out items; also lists of up to 4,000 tokens, as `recall4k`."""
    documents = []
    for task in EVAL_TASKS:
        items = corpus.held_out(task, count)
        documents += [encode(tokenizer, item, task) for item in items]
    rng = random.Random(7)
    for _ in range(count // 4):
        item = corpus.recall(rng, lines=330, queries=1)
        documents.append(encode(tokenizer, item, "recall4k"))
    return [d for d in documents if len(d.ids) <= min(LONGEST, longest)]


@torch.no_grad()
def evaluate(network, documents: list[Document], args: argparse.Namespace) -> dict[str, tuple]:
    """Task -> (items, exact). An item is exact when, read with the right answer before it, every
    token of the answer is the most likely one: the same as greedy decoding giving that answer."""
    total, exact = defaultdict(int), defaultdict(int)
    rows: list[list[Document]] = [[]]
    for doc in documents:
        if sum(len(d.ids) for d in rows[-1]) + len(doc.ids) > args.tokens:
            rows.append([])
        rows[-1].append(doc)
    for row in rows:
        batch = pack(row, args.tokens, answers_only=True).to(args.device)
        right = forward(network, batch)[1]
        wrong = (~right & (batch["weights"] > 0)).float()
        missed = torch.zeros(len(row) + 1, device=args.device)
        missed = missed.index_add(0, batch["docs"].clamp(max=len(row)), wrong)
        for doc, misses in zip(row, missed.tolist()):
            total[doc.task] += 1
            exact[doc.task] += misses == 0
    return {task: (total[task], exact[task]) for task in total}


def forward(network, batch: dict[str, torch.Tensor]):
    """Per-token loss, whether greedy was right, the experts' loads, and how uneven they are."""
    return network(batch["ids"], batch["positions"], batch["starts"], batch["targets"], LONGEST)


def show(figures: dict[str, tuple]) -> str:
    return "  ".join(f"{task} {100 * e / n:.1f}" for task, (n, e) in figures.items())


# ---- the checkpoint folder ------------------------------------------------------------------


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": corpus.BOS,
            "eos_token": corpus.EOS,
            "pad_token": corpus.PAD,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONFIG["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    template = Path(__file__).with_name("chat_template.jinja")
    shutil.copy(template, out / "chat_template.jinja")


def save_checkpoint(network: Network, tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    ids = {name: tokenizer.token_to_id(t) for name, t in (("bos", corpus.BOS), ("eos", corpus.EOS))}
    tokens = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"]}
    pad = {"pad_token_id": tokenizer.token_to_id(corpus.PAD)}
    write_json(out / "config.json", CONFIG | tokens | pad)
    write_json(out / "generation_config.json", tokens | pad | {"do_sample": False})
    save_tokenizer(tokenizer, out)
    save_file(export(network), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


# ---- the run --------------------------------------------------------------------------------


class Meter:
    """Mean loss and accuracy on answer tokens, by task, since the last report."""

    def __init__(self, device: str):
        self.sums = torch.zeros(len(TASKS), 3, device=device)

    def add(self, batch: dict[str, torch.Tensor], loss: torch.Tensor, right: torch.Tensor) -> None:
        answer = (batch["weights"] > 0.5).float()
        rows = torch.stack((loss * answer, right * answer, answer), 1)
        self.sums.index_add_(0, batch["tasks"], rows)

    def report(self) -> str:
        out = []
        for task, (loss, right, count) in zip(TASKS, self.sums.tolist()):
            if count:
                out.append(f"{task} {loss / count:.3f}/{100 * right / count:.1f}")
        self.sums.zero_()
        return "  ".join(out)


def rate(progress: float, step: int, warmup: int) -> float:
    """Warm up, hold, then fall to zero over the last 60 %."""
    return min(1.0, (step + 1) / warmup, (1 - progress) / 0.6)


def train_step(network, batch: dict, optimizer: Optimizer, scale: float, balance: float):
    """One update. Returns what the meter reads and the experts' loads."""
    loss, right, loads, uneven = forward(network, batch)
    mean = (loss * batch["weights"]).sum() / batch["weights"].sum()
    (mean + balance * uneven).backward()
    optimizer.step(scale)
    return loss.detach(), right, loads.detach()


def train(args: argparse.Namespace) -> None:
    began = time.monotonic()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    tokenizer = build_tokenizer(args.seed)
    feed = Feed(tokenizer, args)
    network = Network().to(args.device)
    compiled = torch.compile(network, dynamic=False) if args.device == "cuda" else network
    optimizer, meter = Optimizer(network, args), Meter(args.device)
    documents = eval_documents(tokenizer, args.eval_items, args.tokens)
    count = sum(p.numel() for p in network.parameters())
    log(began, f"vocabulary {tokenizer.get_vocab_size()}, {count / 1e6:.2f} M parameters")
    started = reported = time.monotonic()
    for step in range(args.steps):
        elapsed = time.monotonic() - started
        progress = max(step / args.steps, elapsed / (60 * args.max_minutes))
        if progress >= 1:
            break
        batch = feed.get(step)
        scale = rate(progress, step, args.warmup)
        loss, right, loads = train_step(compiled, batch, optimizer, scale, args.balance)
        network.balance(loads, BIAS_RATE if progress < 0.8 else 0.0)
        meter.add(batch, loss, right)
        if (step + 1) % args.report == 0:
            now = time.monotonic()
            speed = args.report * args.tokens / (now - reported) / 1e6
            reported = now
            text = f"step {step + 1}  rate {scale:.2f}  {speed:.2f} Mtok/s"
            log(began, f"{text}  waited {feed.waited:.1f} s  {meter.report()}")
        if (step + 1) % args.save == 0:
            log(began, "held out: " + show(evaluate(compiled, documents, args)))
            save_checkpoint(network, tokenizer, args.out)
    feed.close()
    log(began, f"trained {step + 1} steps in {time.monotonic() - started:.0f} s")
    round_weights(network)
    for task, (n, exact) in evaluate(compiled, documents, args).items():
        log(began, f"held out {task:12} {n:5} items {exact:5} exact {100 * exact / n:6.2f} %")
    save_checkpoint(network, tokenizer, args.out)
    log(began, f"wrote {args.out}")


def log(began: float, text: str) -> None:
    print(f"[{time.monotonic() - began:6.1f}] {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("model/demo"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=12500)
    parser.add_argument("--tokens", type=int, default=65536, help="tokens in a batch")
    parser.add_argument("--reuse", type=int, default=1, help="steps for each new batch")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--max-minutes", type=float, default=9.0)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--router-lr", type=float, default=0.0005)
    parser.add_argument("--balance", type=float, default=0.003, help="weight of the router loss")
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--report", type=int, default=500)
    parser.add_argument("--save", type=int, default=3500)
    parser.add_argument("--eval-items", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    train(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
