"""Tokenizers to compare with: one for each way that models of the supported families split a text,
in each kind of file that they ship.

Each is trained here, in seconds, by the packages `tokenizers` and `sentencepiece` themselves; what
matters is how texts are split and merged, not how well. Those of Mistral's models are real ones,
which the package mistral-common brings along.
"""

import base64
import io
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

MARKERS = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<think>",
    "</think>",
]

# The letters of DeepSeek V2's pattern.
V2_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    "\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-"
    "\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
    "\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

V3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GLM_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
KIMI_WORDS = (
    r"[\p{Han}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}&&[^\p{{Han}}]]*[{LOWER}&&[^\p{{Han}}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}&&[^\p{{Han}}]]+[{LOWER}&&[^\p{{Han}}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str, behavior: str = "isolated", invert: bool = False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(**options: bool):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False} | options)


def deepseek_v3() -> list:
    return [split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), split(V3_WORDS), byte_level()]


def deepseek_v2() -> list:
    return [
        split("[\r\n]"),
        split(rf"\s?[{V2_LETTERS}]+"),
        split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
        split(r"\s+$"),
        split("[一-龥ࠀ-一가-퟿]+"),
        pre_tokenizers.Digits(individual_digits=True),
        byte_level(),
    ]


def glm() -> list:
    return [split(GLM_WORDS), byte_level()]


def kimi() -> list:
    return [split(KIMI_WORDS), byte_level()]


def tekken() -> list:
    return [split(TEKKEN_WORDS), byte_level()]


def gpt2() -> list:
    return [byte_level(add_prefix_space=True, use_regex=True)]


def all_behaviors() -> list:
    """Not a model's: every behavior of Split, inverted and not, strings, empty matches."""
    return [
        split(r"[aeiou]", "merged_with_previous"),
        split(r"[\S]+|\n", "merged_with_next", invert=True),
        split(r"[\s\d]", "contiguous"),
        split(r"x*", "isolated"),
        pre_tokenizers.Split("--", "removed", False),
        split(r"[^\S\n]|\v|\u3000", "merged_with_next"),
        split(r"^.|.$", "merged_with_previous", invert=True),
        pre_tokenizers.Digits(individual_digits=False),
        byte_level(),
    ]


# Classes that patterns use; which characters are in them differs between regex engines.
CLASSES = [
    *(rf"\p{{{name}}}" for name in "L Lu Ll Lt Lm Lo M N Nd P S Sc So Z Han ^L".split()),
    *(r"\P{N}", r"\s", r"\S", r"\d", r"\v", r".", r"[\S\n]", r"[^\s\p{L}\p{N}]"),
    *(r"[\p{L}&&[^\p{Han}]]", r"(?i:[k-s])", r"(?i:É|σ)"),
]


def make_class_remover(pattern: str, folder: Path) -> Path:
    """A tokenizer without merges that drops what the class matches: ids show what is in it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split(pattern, "removed"), byte_level()])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def train(steps: list, texts: list[str], whole_alphabet: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=MARKERS[:2],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if whole_alphabet else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(m, normalized=False) for m in MARKERS[2:]])
    return tokenizer


def add_flagged_tokens(tokenizer: Tokenizer) -> None:
    """Added tokens with every flag, some of them beginnings of others, some without brackets."""
    tokenizer.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=True),
            AddedToken("word", single_word=True, normalized=True),
            AddedToken("Don't", single_word=True, normalized=False),
            AddedToken("ø", normalized=True),
            AddedToken("wordy thing", normalized=True),
            AddedToken("   ", normalized=True),
            AddedToken("\n\n", rstrip=True, normalized=False),
            AddedToken("<｜User", normalized=True),
            AddedToken("é", single_word=True, normalized=True),
        ]
    )


def with_merges_as_strings(spec: dict) -> dict:
    spec["model"]["merges"] = [" ".join(merge) for merge in spec["model"]["merges"]]
    return spec


def with_ignore_merges(spec: dict) -> dict:
    """Without every third merge, so that many tokens can be reached only as whole words."""
    merges = spec["model"]["merges"]
    spec["model"]["merges"] = [merge for i, merge in enumerate(merges) if i % 3]
    spec["model"]["ignore_merges"] = True
    return spec


def unchanged(spec: dict) -> dict:
    return spec


FAMILIES: dict[str, tuple[Callable[[], list], Callable[[dict], dict]]] = {
    "deepseek-v3": (deepseek_v3, unchanged),
    "deepseek-v3-strings": (deepseek_v3, with_merges_as_strings),
    "deepseek-v2": (deepseek_v2, unchanged),
    "glm": (glm, with_ignore_merges),
    "kimi": (kimi, unchanged),
    "mistral": (tekken, unchanged),
    "gpt2": (gpt2, unchanged),
    "behaviors": (all_behaviors, unchanged),
    "partial-alphabet": (deepseek_v3, unchanged),
    "flags": (glm, unchanged),
}

# Kinds of files other than byte-level tokenizer.json.
TIKTOKEN = ["kimi-tiktoken"]
TEKKEN = ["tekken", "tekken-v3"]
CHARACTERS = ["minicpm3", "metaspace-first", "metaspace-split", "unknown", "characters-flags"]
SENTENCEPIECE = ["sentencepiece"]
REAL = {
    "mistral-tekken-v3": "tekken_240718.json",
    "mistral-tekken-v7": "tekken_240911.json",
    "mistral-v3": "mistral_instruct_tokenizer_240323.model.v3",
}
OTHERS = TIKTOKEN + TEKKEN + CHARACTERS + SENTENCEPIECE + list(REAL)

# Those that lose no bytes of a text.
LOSSLESS = {
    *("deepseek-v3", "deepseek-v3-strings", "deepseek-v2", "glm", "kimi", "mistral"),
    *TIKTOKEN,
    *TEKKEN,
    *("mistral-tekken-v3", "mistral-tekken-v7"),
}

# Those for which a part of the corpus is enough, or all of it would take long.
BRIEF = {"deepseek-v3-strings", "behaviors", "partial-alphabet"}


# ---- tiktoken.model and tekken.json ----

KIMI_NAMES = "[BOS] [EOS] <|im_end|> <|im_user|> <|tool_call_begin|> <think> </think>".split()
TEKKEN_NAMES = "<unk> <s> </s> [INST] [/INST] [TOOL_CALLS] [THINK]".split()


def ranked(tokenizer: Tokenizer) -> list[bytes]:
    """The tokens of a byte-level BPE as ranks: first the bytes, then the tokens in their order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + i): byte for i, byte in enumerate(rest)}
    spellings = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda i: i[1])
    tokens = [bytes(byte_of[c] for c in s) for s, _ in spellings if all(c in byte_of for c in s)]
    return [bytes([i]) for i in range(256)] + [token for token in tokens if len(token) > 1]


def make_tiktoken(texts: list[str], target: Path) -> None:
    tokens = ranked(train([split(KIMI_WORDS), byte_level()], texts))
    lines = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens))
    (target / "tiktoken.model").write_text("".join(lines))
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    added = {
        str(len(tokens) + i): {"content": name, **flags, "special": "tool" not in name}
        for i, name in enumerate(KIMI_NAMES)
    }
    config = {"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": added}
    (target / "tokenizer_config.json").write_text(json.dumps(config))


def make_tekken(texts: list[str], target: Path, version: str) -> None:
    tokens = ranked(train([split(TEKKEN_WORDS), byte_level()], texts))
    spec = {
        "config": {
            "pattern": TEKKEN_WORDS,
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) - 100 + 64,  # the last 100 are left out
            "default_num_special_tokens": 64,
            "version": version,
        },
        "vocab": [
            {
                "rank": i,
                "token_bytes": base64.b64encode(token).decode(),
                "token_str": token.decode("utf-8", "replace") if b"\xff" not in token else None,
            }
            for i, token in enumerate(tokens)
        ],
    }
    if version != "v3":
        spec["special_tokens"] = [
            {"rank": i, "token_str": name, "is_control": True}
            for i, name in enumerate(TEKKEN_NAMES)
        ]
    (target / "tekken.json").write_text(json.dumps(spec))


# ---- SentencePiece's kind of tokenizer.json ----

PIECES = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def spaces_as_text() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def llama_decoder() -> decoders.Decoder:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])


def train_characters(name: str, texts: list[str]) -> Tokenizer:
    fallback = name != "unknown"
    tokenizer = Tokenizer(
        models.BPE(unk_token="<unk>", fuse_unk=name != "metaspace-split", byte_fallback=fallback)
    )
    tokenizer.decoder = llama_decoder()
    if name in ("minicpm3", "unknown", "characters-flags"):
        tokenizer.normalizer = spaces_as_text()
    else:
        metaspace = {"prepend_scheme": name.removeprefix("metaspace-"), "split": False}
        if name == "metaspace-split":
            metaspace = {"prepend_scheme": "always", "split": True}
            tokenizer.decoder = decoders.Sequence(
                [decoders.ByteFallback(), decoders.Metaspace("▁", "always", True), decoders.Fuse()]
            )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", **metaspace)
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=PIECES + (BYTES if fallback else []),
        limit_alphabet=200,
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator((word for t in texts for word in t.split("\n")), trainer)
    return tokenizer


def with_plain_bytes(spec: dict) -> dict:
    """The trainer can add byte tokens only as special ones; in models they are ordinary."""
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    return spec


def make_sentencepiece(texts: list[str], target: Path) -> None:
    """A SentencePiece model, and the tokenizer.json that its conversion gives."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=1300,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    convert_sentencepiece(model.getvalue(), target)


def convert_sentencepiece(model: bytes, target: Path) -> None:
    (target / "tokenizer.model").write_bytes(model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    merges = []
    for piece, i in vocab.items():
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        cuts = [(left, right) for left, right in cuts if left in vocab and right in vocab]
        merges += [(-pieces.get_score(i), vocab[a], vocab[b], (a, b)) for a, b in cuts]
    merges = [merge[3] for merge in sorted(merges)]
    bpe = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = spaces_as_text()
    tokenizer.decoder = llama_decoder()
    tokenizer.save(str(target / "tokenizer.json"))


def make_characters(name: str, texts: list[str], target: Path) -> None:
    tokenizer = train_characters(name, texts)
    tokenizer.add_tokens([AddedToken(m, normalized=False) for m in MARKERS])
    if name == "characters-flags":
        add_flagged_tokens(tokenizer)
    spec = with_plain_bytes(json.loads(tokenizer.to_str()))
    (target / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")


# ---- vocabularies of real models, which mistral-common brings along ----


def make_real(name: str, target: Path) -> None:
    file = Path(str(resources.files("mistral_common"))) / "data" / REAL[name]
    if name == "mistral-v3":
        convert_sentencepiece(file.read_bytes(), target)
    else:
        (target / "tekken.json").symlink_to(file)


# ---- all ----


def make(name: str, texts: list[str], folder: Path) -> Path:
    """Trains the family `name` and writes its files in `folder`/`name`."""
    target = folder / name
    target.mkdir()
    if name in TIKTOKEN:
        make_tiktoken(texts, target)
    elif name in TEKKEN:
        make_tekken(texts, target, "v3" if name.endswith("v3") else "v13")
    elif name in REAL:
        make_real(name, target)
    elif name in SENTENCEPIECE:
        make_sentencepiece(texts, target)
    elif name in CHARACTERS:
        make_characters(name, texts, target)
    else:
        make_byte_level(name, texts, target)
    return target


def make_byte_level(name: str, texts: list[str], target: Path) -> None:
    steps, change = FAMILIES[name]
    tokenizer = train(steps(), texts, whole_alphabet=name != "partial-alphabet")
    if name == "flags":
        add_flagged_tokens(tokenizer)
    spec = change(json.loads(tokenizer.to_str()))
    (target / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
