"""What the Python packages make of a tokenizer's folder: ids of texts, bytes of ids."""

import base64
import json
import os
import re
from functools import cached_property
from pathlib import Path

import families

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import sentencepiece  # noqa: E402
import tiktoken  # noqa: E402
from mistral_common.tokens.tokenizers.tekken import Tekkenizer  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402  (reads the environment)


class Oracle:
    """A folder, with what every kind of file says: `added` tokens as tokenizer.json writes them."""

    added: list[dict]

    def expected(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts whose markers are recognised."""
        raise NotImplementedError

    def text_only(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts of a user, which have no markers."""
        raise NotImplementedError

    def token_bytes(self) -> dict[int, bytes]:
        """What each id stands for."""
        raise NotImplementedError

    @cached_property
    def table(self) -> dict[int, bytes]:
        return self.token_bytes()

    def joined(self, ids: list[int]) -> bytes:
        return b"".join(self.table.get(i, b"") for i in ids)

    def decoded(self, ids: list[int]) -> str | None:
        """The package's own decoding, where it is exact for the ids of valid text."""
        return None


class JsonOracle(Oracle):
    """tokenizer.json by the package `tokenizers`."""

    def __init__(self, folder: Path):
        self.spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.added = self.spec["added_tokens"]
        self.byte_level = "ByteLevel" in json.dumps(self.spec["decoder"])

    def encode(self, tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def expected(self, texts: list[str]) -> list[list[int]]:
        return self.encode(self.tokenizer, texts)

    def text_only(self, texts: list[str]) -> list[list[int]]:
        """Every token that may be a marker is renamed to what no text holds."""
        spec = json.loads(json.dumps(self.spec))
        for i, token in enumerate(spec["added_tokens"]):
            bracketed = token["content"][0] + token["content"][-1] in ("<>", "[]")
            if token["special"] or not token["normalized"] or bracketed:
                renamed = f"\U0010fffd{i}\U0010fffd"
                if token["content"] in spec["model"]["vocab"]:
                    vocab = spec["model"]["vocab"]
                    vocab[renamed] = vocab.pop(token["content"])
                if token["content"] == spec["model"].get("unk_token"):
                    spec["model"]["unk_token"] = renamed
                token["content"] = renamed
        return self.encode(Tokenizer.from_str(json.dumps(spec)), texts)

    def token_bytes(self) -> dict[int, bytes]:
        if not self.byte_level:
            tokens = {i: spelling for spelling, i in self.spec["model"]["vocab"].items()}
            ids = [token["id"] for token in self.added]  # the package shows them normalized
            tokens |= {i: self.tokenizer.id_to_token(i) for i in ids}
            return {i: character_bytes(spelling) for i, spelling in tokens.items()}
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        rest = [byte for byte in range(256) if byte not in printable]
        byte_of = {chr(byte): byte for byte in printable}
        byte_of |= {chr(256 + i): byte for i, byte in enumerate(rest)}
        table = {}
        for spelling, token_id in self.spec["model"]["vocab"].items():
            spelled = all(c in byte_of for c in spelling)
            table[token_id] = (
                bytes(byte_of[c] for c in spelling) if spelled else spelling.encode()
            )
        return table | {token["id"]: token["content"].encode() for token in self.added}

    def joined(self, ids: list[int]) -> bytes:
        decoder = json.dumps(self.spec["decoder"])
        if '"Metaspace"' in decoder:
            known = [i for i in ids if i in self.table]
            first = self.table[known[0]].replace(b" ", b"") if known else b""
            return first + b"".join(self.table[i] for i in known[1:])
        whole = super().joined(ids)
        return whole.removeprefix(b" ") if '"Strip"' in decoder else whole

    def decoded(self, ids: list[int]) -> str | None:
        return None if self.byte_level else self.tokenizer.decode(ids, skip_special_tokens=False)


def character_bytes(spelling: str) -> bytes:
    if re.fullmatch("<0x[0-9A-F]{2}>", spelling):
        return bytes([int(spelling[3:5], 16)])
    return spelling.replace("▁", " ").encode()


class TiktokenOracle(Oracle):
    """tiktoken.model by the package `tiktoken`, in the slices that Kimi's own class makes."""

    def __init__(self, folder: Path):
        lines = (folder / "tiktoken.model").read_text().splitlines()
        ranks = {base64.b64decode(t): int(rank) for t, rank in map(str.split, lines)}
        config = json.loads((folder / "tokenizer_config.json").read_text())
        named = {int(i): t for i, t in config["added_tokens_decoder"].items()}
        self.added = [
            {"id": i, "special": True, "content": f"<|reserved_token_{i}|>"} | named.get(i, {})
            for i in range(len(ranks), len(ranks) + 256)
        ]
        special = {token["content"]: token["id"] for token in self.added}
        self.encoding = tiktoken.Encoding(
            "kimi", pat_str=families.KIMI_WORDS, mergeable_ranks=ranks, special_tokens=special
        )

    def slices(self, text: str) -> list[str]:
        made = []
        for chunk in (text[i : i + 400_000] for i in range(0, len(text), 400_000)):
            start = run = 0
            for i, c in enumerate(chunk):
                run = run + 1 if i > 0 and c.isspace() == chunk[i - 1].isspace() else 1
                if run > 25_000:
                    made.append(chunk[start:i])
                    start, run = i, 1
            made.append(chunk[start:])
        return made

    def encode(self, texts: list[str], **options) -> list[list[int]]:
        return [
            [i for s in self.slices(text) for i in self.encoding.encode(s, **options)]
            for text in texts
        ]

    def expected(self, texts: list[str]) -> list[list[int]]:
        return self.encode(texts, allowed_special="all")

    def text_only(self, texts: list[str]) -> list[list[int]]:
        return self.encode(texts, disallowed_special=())

    def token_bytes(self) -> dict[int, bytes]:
        count = self.encoding.n_vocab
        return {i: self.encoding.decode_single_token_bytes(i) for i in range(count)}

    def decoded(self, ids: list[int]) -> str | None:
        return self.encoding.decode(ids)


class TekkenOracle(Oracle):
    """tekken.json by mistral-common. It reads no special tokens in a text: those are cut here."""

    def __init__(self, folder: Path):
        self.tokenizer = Tekkenizer.from_file(folder / "tekken.json")
        self.added = [
            {"id": t["rank"], "content": t["token_str"], "special": t["is_control"]}
            for t in self.tokenizer._all_special_tokens
        ]
        longest_first = sorted((t["content"] for t in self.added), key=len, reverse=True)
        self.special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def expected(self, texts: list[str]) -> list[list[int]]:
        ids = []
        for text in texts:
            parts = self.special.split(text)
            ids.append([])
            for i, part in enumerate(parts):
                one = [self.tokenizer.get_special_token(part)] if i % 2 else None
                ids[-1] += one or self.tokenizer.encode(part, bos=False, eos=False)
        return ids

    def text_only(self, texts: list[str]) -> list[list[int]]:
        return [self.tokenizer.encode(text, bos=False, eos=False) for text in texts]

    def token_bytes(self) -> dict[int, bytes]:
        special = {token["id"]: token["content"].encode() for token in self.added}
        ordinary = range(len(special), self.tokenizer.n_words)
        return special | {i: self.tokenizer.id_to_byte_piece(i) for i in ordinary}


class SentencePieceOracle(JsonOracle):
    """A converted tokenizer.json by the model it was made from."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))

    def expected(self, texts: list[str]) -> list[list[int]]:
        return [self.model.encode(text) for text in texts]

    def text_only(self, texts: list[str]) -> list[list[int]]:
        return self.expected(texts)

    def decoded(self, ids: list[int]) -> str | None:
        return self.model.decode(ids)


def open_oracle(folder: Path) -> Oracle:
    if (folder / "tokenizer.model").exists() and folder.name == "sentencepiece":
        return SentencePieceOracle(folder)
    if (folder / "tokenizer.json").exists():
        return JsonOracle(folder)
    if (folder / "tiktoken.model").exists():
        return TiktokenOracle(folder)
    return TekkenOracle(folder)
