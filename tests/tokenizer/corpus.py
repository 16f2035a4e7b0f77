"""Texts that tokenizers disagree about, made deterministically: 5 MB in thousands of documents."""

import random
import unicodedata

WORDS = (
    "the of and to in is was for on with as by it that hello world word wordy thing Don't I'LL"
    " we've you're it's 'S 'Re naïve café straße ſ'ſ fiancée"
    " Ångström ø öäü İstanbul ﬁnal Привет мир как"
    " дела ёлка γλῶσσα καλημέρα שלום עולם שָׁלוֹם مرحبا بالعالم العَرَبِيَّة नमस्ते दुनिया हिन्दी"
    " क्षत्रिय தமிழ் ภาษาไทย ລາວ မြန်မာ ខ្មែរ"
    " ქართული հայերեն አማርኛ ᏣᎳᎩ ⴰⵎⴰⵣⵉⵖ 你好世界 中文分词 漢字仮名交じり文 ひらがな"
    " カタカナ ﾊﾝｶｸ 한국어 안녕하세요 각 𠀀𠮷 𐐀𐐨 𝔸𝕓𝕔 a̐éö̲ Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤"
).split()

EMOJI = "😀 🫨 🫠 👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☃ 1️⃣ ✨ ⚡︎ 🧑‍🤝‍🧑 🫱🏻‍🫲🏿".split(" ")

SPACES = (
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t", "\x0b", "\x0c", "\x85", "\xa0",
    "\u1680", "\u180e", "\u2003", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b",
    "\ufeff", "\x1c", "\x1f", " \n ", "\n \n", " \r\n\t ",
)  # fmt: skip

CONTROLS = "\x00\x01\x07\x08\x1b\x7f\x80\x9f\u200d\u200c\u200e\u202e\u2060\ufffe\ufffd\U000e0001"

DIGITS = "0 7 42 123 1234 12345678 3.14 1,000 ٣٤٥ ४५६ ๗๘๙ ２０２４ ²³ ½ ⅣⅫ ①② 𝟘𝟙 〇 一二三 ௧௨ 𑁦𑁧".split()

PUNCTUATION = (
    "! ? . , ; : - -- --- ... … “quoted” ‘q’ «guillemets» ¿ ¡ 、 。 「」 （） ！ ？ ～ 〜 ※ § ¶ † € £ ¥ ₿"
    " + = < > <= != && || ++ ** // /* */ {} [] () \\ | ~ ` ^ _ __ # @ $ % & * ∑ ∫ ≠ → ⇒ █ ▁ ｜ <|x|>"
).split()

CODE = [
    'int main(void)\n{\n    printf("%d\\n", x[0] & 0xFFu);\n\treturn 0;\n}\n',
    "def f(self, *args, **kwargs):\n        return {k: v for k, v in kwargs.items() if v != 0}\n",
    "SELECT a.b, COUNT(*) FROM t1 AS a WHERE x>='2024-01-01' GROUP BY 1;\r\n",
    '{"key": [1, 2.5e-10, null], "π": "\\u00e9"}',
    "<div class='a--b'>&nbsp;</div><!-- c -->",
    "https://example.org/a_b/c?d=e%20f&g=#h",
    "    if (a<b&&c>d) goto *p;  // todo:::fix\n",
    "$$\\frac{\\alpha}{\\beta}^{2x}$$",
]

MARKUP = (
    "<｜User｜> <｜Assistant｜> <｜end▁of▁sentence｜> <｜begin▁of▁sentence｜> <think> </think> <｜User <｜Us"
    " <<｜User｜>> ｜User｜> <left> <right> <both> <both><both> <left"
).split()

BROKEN = [
    b"\xff", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82A", b"\xf0\x9f\x98", b"\xf0\x9f",
    b"\x80\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xf0\x80\x80",
    b"\xe0\x9f\xbf", b"\xf8\x88", b"\xfe\xff", b"\xe2\xe2\x82\xac", b"\xf1\x80\x80\xc3\xa9",
    b"\xf4\x8f\xbf",
]  # fmt: skip


def fragment(rng: random.Random) -> bytes:
    kind = rng.randrange(100)
    if kind < 45:
        return rng.choice(WORDS).encode()
    if kind < 65:
        return rng.choice(SPACES).encode() * rng.choice((1, 1, 1, 1, 2, 5, 30))
    if kind < 73:
        return rng.choice(PUNCTUATION).encode()
    if kind < 80:
        return rng.choice(DIGITS).encode()
    if kind < 84:
        return rng.choice(EMOJI).encode()
    if kind < 87:
        return rng.choice(CODE).encode()
    if kind < 89:
        return rng.choice(CONTROLS).encode()
    if kind < 91:
        return rng.choice(MARKUP).encode()
    if kind < 93:
        return rng.choice("aA1 \n!é漢ـ̈한🙂").encode() * rng.randrange(2, 300)
    if kind < 96:
        first, end = rng.choice(((0x20, 0xD800), (0x10000, 0x20000)))
        return chr(rng.randrange(first, end)).encode()
    if kind < 97:
        return rng.choice(BROKEN)
    return (rng.choice(WORDS) + " " + rng.choice(WORDS)).encode()


# What Unicode 16 or earlier may have assigned, but for the few of plane 14.
CHARACTERS = "".join(chr(c) for c in range(0x34000) if not 0xD800 <= c < 0xE000)


def every_character() -> list[bytes]:
    """Each character, in turn next to a letter, a digit, a sign and a space."""
    around = ("a{}b", "1{}2", "!{}?", " {} ")
    made = []
    for start in range(0, len(CHARACTERS), 500):
        frame = around[start // 500 % len(around)]
        made.append("".join(map(frame.format, CHARACTERS[start : start + 500])).encode())
    return made


def documents(seed: int = 1, count: int = 5000) -> list[bytes]:
    rng = random.Random(seed)
    made = [b"", b" ", b"\n", b"\x00", b"a" * 20000, b" " * 2000 + b"1", "é".encode() * 5000]
    while len(made) < count:
        size = rng.choice((1, 3, 10, 40, 40, 200))
        glue = rng.choice((b"", b" "))
        text = glue.join(fragment(rng) for _ in range(rng.randrange(1, 2 * size)))
        if rng.randrange(20) == 0:
            text = unicodedata.normalize("NFD", text.decode("utf-8", "replace")).encode()
        made.append(text)
    return made + every_character()


def plain_texts(seed: int = 2, count: int = 300) -> list[str]:
    """Valid text without markup, for training and for the contents of chats."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        parts = (rng.choice(rng.choice((WORDS, PUNCTUATION, DIGITS, CODE))) for _ in range(60))
        made.append(" ".join(part for part in parts if not part.startswith("<")))
    return made
