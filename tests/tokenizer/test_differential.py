"""The C tokenizer against the Python packages `tokenizers`, `tiktoken`, `mistral-common` and
`sentencepiece`: id for id, byte for byte.

Extra tokenizers, of models as they are downloaded: MLAD_TEST_TOKENIZERS names their folders (with a
tokenizer.json, a tiktoken.model and its tokenizer_config.json, or a tekken.json), separated by
colons. To run those alone:

    MLAD_TEST_TOKENIZERS=/models/DeepSeek-V3:/models/Moonlight pytest tests/tokenizer -k extra
"""

import os
import random
import struct
import subprocess
from pathlib import Path

import corpus
import families
import pytest
from oracles import open_oracle

ROOT = Path(__file__).resolve().parents[2]
CLI = Path(os.environ.get("MLAD_TOKENIZE_CLI", ROOT / "build" / "tests" / "tokenize_cli"))
EXTRA = [Path(p) for p in os.environ.get("MLAD_TEST_TOKENIZERS", "").split(":") if p]
NAMES = ["demo", *families.FAMILIES, *families.OTHERS, *(f"extra-{i}" for i in range(len(EXTRA)))]

DOCUMENTS = corpus.documents()
TEXTS = [document.decode("utf-8", "replace") for document in DOCUMENTS]
SOME = 700  # documents, where all of them would take too long

# What is repeated in texts that patterns, markers and merges could take quadratic time for.
HOSTILE = [" ", "\n", " \n", "\r\n", "\u3000", "a", "aA", "7", "!", "'s", "漢", "é", "\u0301", "▁"]
HOSTILE += ["<", "<think>", "  a", "\0", "\u200b"]
HOSTILE_BYTES = 1 << 17
HOSTILE_MS = 30_000  # for all of them; quadratic time would be several times more for one


class Subject:
    """One tokenizer: its folder, and a package's reading of it."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.folder = folder
        self.oracle = open_oracle(folder)

    def run(self, mode: str, frames: list[bytes]) -> list[bytes]:
        """The frames that the C program answers with."""
        packed = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
        done = subprocess.run(
            [CLI, self.folder, mode], input=packed, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        print(f"{self.name} {mode}: {done.stderr.decode().strip()}")
        self.times = dict(item.split("=") for item in done.stderr.decode().split())
        answers, at = [], 0
        while at < len(done.stdout):
            (size,) = struct.unpack_from("<I", done.stdout, at)
            answers.append(done.stdout[at + 4 : at + 4 + size])
            at += 4 + size
        return answers

    def encode(self, mode: str, frames: list[bytes]) -> list[tuple[list[int], str]]:
        """Ids, and the text that decoding them one by one gives."""
        answers = self.run(mode, frames)
        ids = [list(struct.unpack(f"<{len(a) // 4}i", a)) for a in answers[::2]]
        return list(zip(ids, [a.decode("utf-8") for a in answers[1::2]], strict=True))


@pytest.fixture(scope="module", params=NAMES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    name = request.param
    if name == "demo":
        folder = ROOT / "model" / "demo"
    elif name.startswith("extra-"):
        folder = EXTRA[int(name.removeprefix("extra-"))]
    else:
        folder = families.make(name, corpus.plain_texts(), tmp_path_factory.mktemp("tokenizers"))
    return Subject(name, folder)


def assert_same_ids(got: list[list[int]], expected: list[list[int]]) -> None:
    assert len(got) == len(expected)
    different = [i for i in range(len(got)) if got[i] != expected[i]]
    if different:
        i = min(different, key=lambda i: len(DOCUMENTS[i]))
        pytest.fail(
            f"{len(different)} of {len(got)} documents differ; the shortest is {DOCUMENTS[i]!r}:\n"
            f"got      {got[i]}\nexpected {expected[i]}"
        )


def test_corpus_is_large_enough():
    assert sum(map(len, DOCUMENTS)) >= 5_000_000
    assert len(DOCUMENTS) >= 2500


def test_ids_and_text_equal_the_oracles(subject: Subject):
    count = SOME if subject.name in families.BRIEF else len(DOCUMENTS)
    answers = subject.encode("encode", DOCUMENTS[:count])
    assert_same_ids([ids for ids, _ in answers], subject.oracle.expected(TEXTS[:count]))
    trained = subject.name in families.FAMILIES
    if subject.name in families.LOSSLESS or not trained and subject.oracle.decoded([]) is None:
        assert [text for _, text in answers] == TEXTS[:count]
    for ids, text in answers:
        assert subject.oracle.decoded(ids) in (None, text)


@pytest.mark.parametrize("pattern", families.CLASSES)
def test_classes_hold_the_same_characters(pattern: str, tmp_path: Path):
    remover = Subject(pattern, families.make_class_remover(pattern, tmp_path))
    ((_, left),) = remover.encode("encode", [corpus.CHARACTERS.encode()])
    (ids,) = remover.oracle.expected([corpus.CHARACTERS])
    expected = remover.oracle.tokenizer.decode(ids)
    different = set(left) ^ set(expected)
    assert not different, [f"U+{ord(c):04X}" for c in sorted(different)][:50]


def test_hostile_texts_take_linear_time(subject: Subject):
    """Repetitions, and with an end that no longer fits."""
    texts = [unit * (HOSTILE_BYTES // len(unit.encode())) for unit in HOSTILE]
    frames = [text.encode() for text in texts] + [(text + "x").encode() for text in texts]
    assert len(subject.run("encode", frames)) == 2 * len(frames)
    assert float(subject.times["encode_ms"]) < HOSTILE_MS


def test_text_only_recognises_no_markers(subject: Subject):
    answers = subject.encode("text", DOCUMENTS[:SOME])
    assert_same_ids([ids for ids, _ in answers], subject.oracle.text_only(TEXTS[:SOME]))
    special = [token for token in subject.oracle.added if token["special"]]
    markers = {token["id"] for token in special if token["content"] != "<unk>"}
    assert not any(markers.intersection(ids) for ids, _ in answers)


def test_decoding_token_by_token_equals_decoding_all_bytes(subject: Subject):
    table = subject.oracle.table
    rng = random.Random(3)
    every = [*table, max(table) + 5]  # and an id without a token
    short = [i for i in table if len(table[i]) < 4 and not table[i].isascii()]
    lists = []
    for _ in range(3000):
        source = rng.choice((every, short))
        lists.append([rng.choice(source) for _ in range(rng.randrange(1, 30))])
    answers = subject.run("decode", [struct.pack(f"<{len(ids)}i", *ids) for ids in lists])
    whole = [subject.oracle.joined(ids) for ids in lists]
    assert [answer.decode("utf-8") for answer in answers] == [
        data.decode("utf-8", "replace") for data in whole
    ]


@pytest.mark.parametrize("subject", families.TIKTOKEN, indirect=True)
def test_long_texts_are_cut_as_kimi_does(subject: Subject):
    texts = ["漢字" * 40_000, "ab " * 150_000 + " " * 60_000 + "<think>" * 9_000]
    answers = subject.encode("encode", [text.encode() for text in texts])
    assert [ids for ids, _ in answers] == subject.oracle.expected(texts)
    assert [text for _, text in answers] == texts


def render(messages: list[tuple[str, str]], add_generation_prompt: bool, leave_open: bool) -> str:
    systems = [text for role, text in messages if role in ("system", "developer")]
    prompt = "<｜begin▁of▁sentence｜>" + "\n\n".join(systems)
    for role, text in messages:
        if role == "user":
            prompt += f"<｜User｜>{text}"
        elif role == "assistant":
            prompt += f"<｜Assistant｜>{text}<｜end▁of▁sentence｜>"
        elif role == "tool":
            prompt += f"<｜tool▁output▁begin｜>{text}<｜tool▁output▁end｜>"
    if leave_open:
        prompt = prompt.removesuffix("<｜end▁of▁sentence｜>")
    return prompt + ("<｜Assistant｜>" if add_generation_prompt else "")


# Not those whose markers take white space, nor a slow one, nor those that may have none.
CHATS = ["demo", *(name for name in families.FAMILIES if name not in ("flags", "behaviors"))]


@pytest.mark.parametrize("subject", CHATS, indirect=True)
def test_chat_equals_the_rendered_prompt_encoded_whole(subject: Subject):
    contents = {token["content"] for token in subject.oracle.added}
    assert contents.issuperset(families.MARKERS[:6])
    rng = random.Random(4)
    texts = [text.replace("\0", "") for text in corpus.plain_texts(seed=5)] + ["", " ", "\n x \n"]
    roles = ("system", "developer", "user", "user", "assistant", "tool")
    frames, prompts = [], []
    for _ in range(100):
        messages = [(rng.choice(roles), rng.choice(texts)) for _ in range(rng.randrange(1, 9))]
        leave_open = messages[-1][0] == "assistant" and rng.random() < 0.5
        add_prompt = not leave_open and rng.random() < 0.5
        flags = bytes([add_prompt | 2 * leave_open])
        frames.append(flags + b"".join(f"{r}\0{t}\0".encode() for r, t in messages))
        prompts.append(render(messages, add_prompt, leave_open))
    answers = subject.encode("chat", frames)
    assert [ids for ids, _ in answers] == subject.oracle.expected(prompts)
