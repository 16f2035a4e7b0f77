"""The demo model's training text, made by program from a seed: no downloads, standard library only.

Each task has one generator, `rng -> Conversation`. A Conversation is a list of chat messages in the
API's own form, so that train.py renders it for training and eval.py sends it to a server. A random
item is held out, never trained on, when the hash of its content falls in the held-out share;
questions about mlad are held out by wording.

    sample(rng, task)            one training conversation
    held_out(task, count, seed)  the items that eval.py asks for
    render(messages, tools)      the chat format, as pieces of text and whether the model wrote them
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import facts

HELD_OUT_PERCENT = 2
HELD_OUT_WORDINGS_PERCENT = 5  # of the questions about mlad

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
OUTPUTS_BEGIN, OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT_BEGIN, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
SEP = "<｜tool▁sep｜>"
THINK, THINK_END = "<think>", "</think>"


@dataclass
class Conversation:
    """Messages that end with the assistant's answer. `text` set: plain text instead of a chat."""

    task: str
    messages: list[dict]
    tools: list[dict] = field(default_factory=list)
    text: str = ""

    def key(self) -> str:
        """What the item is, for choosing held-out items: everything but the answers."""
        asked = [m["content"] for m in self.messages if m["role"] != "assistant"]
        return self.task + "\n" + (self.text or "\n".join(asked))


def is_held_out(key: str, percent: int = HELD_OUT_PERCENT) -> bool:
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < percent


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


# ---- words ----------------------------------------------------------------------------------


ADJECTIVES = (
    "red blue green gold gray pink black white dark light old new big small fast slow hot cold wet"
    " dry soft hard wild calm loud quiet sharp round flat deep high low rich thin kind brave bold"
    " late early proud"
).split()
NOUNS = (
    "fox owl cat dog bear wolf lion hawk fish frog tree leaf rock lake sea river hill moon star sun"
    " rain snow wind fire road boat ship train car door lamp book key ring bell drum cup box chair"
    " table"
).split()
FRUITS = "apple pear plum fig lemon lime mango melon grape peach cherry banana orange kiwi".split()
FIRST = (
    "Ana Ben Carla David Emma Felix Grace Hugo Ines Jack Karen Leo Maria Nina Omar Paul Rosa Sara"
    " Tom Uma Victor Wendy Yusuf Zoe Alice Bruno Chloe Diego Elena Frank Helen Ivan Julia Liam Mila"
    " Noah Olga Peter Rita Sam"
).split()
LAST = (
    "Silva Costa Smith Jones Brown Miller Wilson Moore Taylor Lopez Garcia Kim Chen Wang Singh"
    " Patel Khan Novak Meyer Weber Rossi Bianchi Dubois Martin Sato Tanaka Olsen Hansen Kowalski"
    " Petrov Young Hall Green King Baker Hill Adams Clark Lewis Walker"
).split()
CITIES = (
    "Paris London Berlin Madrid Rome Lisbon Vienna Prague Oslo Dublin Athens Warsaw Tokyo Delhi"
    " Cairo Lima Boston Chicago Austin Denver Toronto Sydney Seoul Nairobi Milan Porto Zurich"
    " Geneva Kyoto Quito"
).split()
JOBS = (
    "teacher doctor nurse baker driver lawyer painter writer farmer pilot chef engineer singer"
    " plumber actor editor judge tailor"
).split()
ITEMS = (
    "chairs tables lamps books cups boxes pens bags shoes hats coats phones screens cables keys"
    " clocks bikes tents"
).split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
SERVICES = "auth billing search mail cache login orders payments proxy storage upload web".split()
LEVELS = "INFO WARN ERROR DEBUG".split()
ONSETS = "b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pr st tr sh th".split()
VOWELS = "a e i o u ai ea io ou".split()
CODAS = ["", "", "", "n", "r", "s", "l", "m", "x", "k", "t"]


def made_up(rng: random.Random, capital: bool = False) -> str:
    """A word that nobody uses, so that the model copies it and cannot know it."""
    syllables = rng.choice((1, 2, 2, 2, 3))
    word = "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables)
    )
    return word.capitalize() if capital else word


def first_name(rng: random.Random) -> str:
    return made_up(rng, True) if rng.random() < 0.3 else rng.choice(FIRST)


def full_name(rng: random.Random) -> str:
    last = made_up(rng, True) if rng.random() < 0.3 else rng.choice(LAST)
    return f"{first_name(rng)} {last}"


def city(rng: random.Random) -> str:
    return made_up(rng, True) if rng.random() < 0.3 else rng.choice(CITIES)


def day(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(DAYS)
    if kind < 0.8:
        return f"{rng.choice(MONTHS)} {rng.randint(1, 28)}"
    return f"20{rng.randint(10, 39)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def clock(rng: random.Random) -> str:
    return f"{rng.randint(0, 23):02}:{rng.choice((0, 10, 15, 20, 30, 40, 45, 50)):02}"


def number(rng: random.Random, digits: int) -> int:
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def email(rng: random.Random) -> str:
    host = rng.choice(("mail.com", "example.com", "work.org", "post.net"))
    return f"{first_name(rng).lower()}@{host}"


def phone(rng: random.Random) -> str:
    return f"{number(rng, 3)}-{number(rng, rng.choice((3, 4)))}"


# ---- questions about mlad, small talk, out of scope -----------------------------------------

PREFIXES = ["", "", "", "", "", "", "Hi. ", "Hello, ", "Please tell me: ", "Question: ", "Hey, "]
PREFIXES += ["Quick question: ", "I have a question. ", "Sorry, ", "So, ", "Can you tell me, "]
SUFFIXES = ["", "", "", "", "", "", "", " Please.", " Thanks!", " Please explain.", " Thank you."]


# Openings that mean the same.
OPENINGS: list[tuple[str, list[str]]] = [
    ("How do I ", ["How can I ", "How to ", "How would I ", "How should I ", "How could one "]),
    ("How do I ", ["What is the way to ", "I want to ", "Tell me how to ", "Show me how to "]),
    ("How can I ", ["How do I ", "How to ", "I want to "]),
    ("What is ", ["What's ", "Whats ", "What exactly is ", "Tell me what is ", "Define "]),
    ("What is ", ["Do you know what is ", "Explain ", "And what is "]),
    ("What does ", ["Tell me what does ", "What exactly does ", "And what does ", "So what does "]),
    ("What are ", ["What're ", "Tell me, what are ", "Explain "]),
    ("Which ", ["What ", "Tell me which ", "Do you know which "]),
    ("What happens ", ["What will happen ", "Tell me what happens ", "And what happens "]),
    ("List ", ["Show ", "Give me ", "Tell me ", "Print ", "Name "]),
    ("Can I ", ["May I ", "Could I ", "Is it possible to ", "Am I able to "]),
    ("Does mlad ", ["Does it ", "Can mlad ", "Will mlad ", "Does the server "]),
    ("Is there ", ["Do you have ", "Does mlad have ", "Is there also "]),
    ("Tell me about ", ["Say something about ", "What about ", "What do you know about "]),
    ("Why do I get ", ["Why am I getting ", "Why is there ", "What is the reason for "]),
    ("Where ", ["Tell me where ", "Do you know where "]),
]
SMALL_WORDS = {"the", "a", "an", "is", "are", "do", "does", "I", "of", "to", "for", "in", "can"}


def reworded(rng: random.Random, question: str) -> str:
    """The same question with another opening, another name for the server, or in key words."""
    if rng.random() < 0.35:
        fitting = [(old, new) for old, new in OPENINGS if question.startswith(old)]
        if fitting:
            old, new = rng.choice(fitting)
            question = rng.choice(new) + question.removeprefix(old)
    if rng.random() < 0.15 and question.count(" ") > 3:
        question = question.replace(" mlad", rng.choice((" the server", " this server", " it")))
    if rng.random() < 0.08:
        question = question.replace("mlad", rng.choice(("MLAD", "Mlad", "mlad")))
    if rng.random() < 0.1:
        words = [w for w in question.split() if w not in SMALL_WORDS or rng.random() < 0.3]
        question = " ".join(words)
    return question


def styled(rng: random.Random, question: str) -> str:
    """The question as different people would type it: case, punctuation, courtesy, typing slips."""
    text = rng.choice(PREFIXES) + reworded(rng, question) + rng.choice(SUFFIXES)
    if rng.random() < 0.25 and text[-1] in "?.!":
        text = text[:-1]
    if rng.random() < 0.2:
        text = text.lower()
    if rng.random() < 0.08:
        at = rng.randrange(len(text))
        text = text[:at] + text[at + 1 :]
    if rng.random() < 0.05:
        text += rng.choice((" ", "\n", "?", "??", "!"))
    return text


@cache
def wordings(held: bool) -> list[tuple[facts.Topic, list[str]]]:
    """Topics with the wordings to train on, or with the held-out ones."""
    out = []
    for topic in facts.topics():
        chosen = [
            q
            for i, q in enumerate(topic.questions)
            if (i > 0 and is_held_out("qa\n" + q, HELD_OUT_WORDINGS_PERCENT)) == held
        ]
        if chosen:
            out.append((topic, chosen))
    return out


@cache
def held_out_wordings() -> list[str]:
    """In lower case and without the last mark. Short ones would be found in other questions."""
    every = [q.lower().rstrip("?.") for _, questions in wordings(True) for q in questions]
    trained = " ".join(q.lower() for _, questions in wordings(False) for q in questions)
    return [q for q in every if q not in trained]


@cache
def topic_weights() -> list[float]:
    weight = {"topic": 3.0, "error": 2.0, "endpoint": 2.0, "env": 0.6, "config": 0.5}
    return [weight.get(topic.kind, 1.2) for topic, _ in wordings(False)]


FLAG_FOLLOW_UPS = {
    "env": ["And the environment variable?", "Which env var is that?", "And from the environment?"],
    "config": ["And in the config file?", "How do I write it in the config file?"],
}


@cache
def flag_answers() -> dict[tuple[str, str], str]:
    return {(t.kind, t.flag): t.answer for t in facts.topics()}


def unknown(rng: random.Random) -> list[dict]:
    """Things that mlad does not have, or that the facts say nothing about."""
    kind = rng.random()
    name = made_up(rng)
    if kind < 0.25:
        if rng.random() < 0.5:
            name += "-" + made_up(rng)
        question = rng.choice(facts.FLAG_QUESTIONS[:7]).format(f=name)
        return [user(question), assistant(f"mlad has no flag --{name}.")]
    if kind < 0.4:
        path = rng.choice(("/", "/v1/", "/v2/")) + name
        question = rng.choice(facts.ENDPOINT_QUESTIONS[:9]).format(p=path, m="GET")
        return [user(question), assistant(f"mlad has no endpoint {path}.")]
    if kind < 0.55:
        code = rng.randint(100, 599)
        if code not in {c for c, _, _ in facts.ERRORS}:
            question = rng.choice(facts.ERROR_QUESTIONS).format(c=code)
            return [user(question), assistant(f"mlad does not use the status {code}.")]
    thing = made_up(rng) if rng.random() < 0.2 else rng.choice(facts.UNKNOWN_THINGS)
    question = styled(rng, rng.choice(facts.UNKNOWN_QUESTIONS).format(t=thing))
    return [user(question), assistant(facts.UNKNOWN)]


def qa(rng: random.Random) -> Conversation:
    if rng.random() < 0.07:
        return Conversation("qa", unknown(rng))
    topic, questions = rng.choices(wordings(False), topic_weights())[0]
    question = styled(rng, rng.choice(questions))
    while any(wording in question.lower() for wording in held_out_wordings()):
        question = styled(rng, rng.choice(questions))
    messages = [user(question), assistant(topic.answer)]
    if topic.kind == "flag" and rng.random() < 0.15:
        kind = rng.choice(("env", "config"))
        answer = flag_answers()[kind, topic.flag]
        messages += [user(rng.choice(FLAG_FOLLOW_UPS[kind])), assistant(answer)]
    return Conversation("qa", messages)


def qa_held_out() -> list[Conversation]:
    """Every held-out wording, as it stands."""
    return [
        Conversation("qa", [user(question), assistant(topic.answer)])
        for topic, questions in wordings(True)
        for question in questions
    ]


def small_talk(rng: random.Random) -> Conversation:
    kind = rng.random()
    if kind < 0.45:
        return Conversation("chat", [user(styled(rng, off_topic(rng))), assistant(OUT_OF_SCOPE)])
    if kind < 0.53:
        return Conversation("chat", [user(other_math(rng)), assistant(facts.OTHER_MATH)])
    if kind < 0.6:
        said = rng.choice((text_of, full_name, city, made_up))(rng)
        ask = rng.choice(("Repeat after me: {s}", "Repeat: {s}", 'Say "{s}".', "Say: {s}"))
        return Conversation("chat", [user(ask.format(s=said)), assistant(said)])
    if kind < 0.66:
        top = rng.randint(1, 30)
        asks = (
            "Count to {n}",
            "Count from 1 to {n}",
            "Can you count to {n}",
            "Please count to {n}",
        )
        ask = rng.choice(asks) + rng.choice(("", ".", "?", "!", ", please."))
        ask = ask.lower() if rng.random() < 0.3 else ask
        numbers = ", ".join(str(i) for i in range(1, top + 1))
        return Conversation("chat", [user(ask.format(n=top)), assistant(numbers)])
    phrases, answer = rng.choice(facts.SMALL_TALK)
    text = rng.choice(phrases)
    if text[-1] not in "?.!":
        text += rng.choice(("", "", "!", "."))
    if rng.random() < 0.25:
        text = text.lower()
    return Conversation("chat", [user(text), assistant(answer)])


def other_math(rng: random.Random) -> str:
    """Sums that the model was not taught."""
    a, b, c = (number(rng, rng.choice((1, 2, 2, 3))) for _ in range(3))
    big = number(rng, rng.choice((5, 6, 7)))
    return rng.choice(
        (
            f"What is {a} * {b}?",
            f"What is {a}*{b}?",
            f"{a} x {b}",
            f"What is {a} times {b}?",
            f"Multiply {a} by {b}.",
            f"{a} / {b}",
            f"What is {a} / {b}?",
            f"What is {a} divided by {b}?",
            f"Divide {a} by {b}.",
            f"What is the square root of {a}?",
            f"What is {a} squared?",
            f"What is {a}% of {b}?",
            f"Is {a} a prime number?",
            f"What is {a} + {b} + {c}?",
            f"{a}+{b}+{c}",
            f"{a} + {b} - {c}",
            f"What is {a} + {b} * {c}?",
            f"What is {big} + {a}?",
            f"{a}+{big}",
            f"{big}-{b}",
            f"What is {a}.{b} + {c}?",
        )
    )


OUT_OF_SCOPE = facts.OUT_OF_SCOPE

OFF_TOPIC = [
    "What is the capital of {place}?",
    "Where is {place}?",
    "How many people live in {place}?",
    "How far is it from {place} to {place2}?",
    "Who is {person}?",
    "Who was {person}?",
    "When was {person} born?",
    "Who won the {sport} game?",
    "Who is the president of {place}?",
    "Write a poem about {thing}.",
    "Write a story about a {thing} and a {thing2}.",
    "Write an essay about {subject}.",
    "Write a song about {thing}.",
    "Write code that draws a {thing}.",
    "Write a Python function for {subject}.",
    "Write a letter to {person}.",
    "Translate {thing} into {tongue}.",
    "How do you say {thing} in {tongue}?",
    "Do you speak {tongue}?",
    "What is the meaning of life?",
    "What is {subject}?",
    "Explain {subject}.",
    "How does {subject} work?",
    "Tell me about {subject}.",
    "Tell me about {place}.",
    "What do you think about {subject}?",
    "How do I cook {food}?",
    "What is a good recipe for {food}?",
    "Which {thing} should I buy?",
    "How much does a {thing} cost?",
    "What is the weather in {place}?",
    "What time is it?",
    "What day is it today?",
    "Why is the {thing} {color}?",
    "Why is the sky blue?",
    "How old is the {thing}?",
    "How tall is {person}?",
    "Should I move to {place}?",
    "Can you drive a {thing}?",
    "What is the best {thing}?",
    "What is your favorite {thing}?",
    "Do you like {food}?",
    "Do you love me?",
    "What is a {thing}?",
    "I feel sad.",
    "I am bored.",
    "My {thing} is broken.",
    "Where can I buy {food}?",
    "Recommend a book about {subject}.",
    "Summarize the history of {place}.",
    "What happened in {year}?",
    "How do I learn {tongue}?",
    "How do I fix my {thing}?",
    "Is {subject} hard?",
    "Summarize this text: The {thing} is in {place}. {person} saw it.",
    "Summarize: {person} likes {food} and {subject}.",
    "Fix the grammar: the {thing} are {color}.",
    "Is this text positive or negative? I love my {thing}.",
    "Say hello in {tongue}.",
    "Give me a list of ten {thing}s.",
    "Play a game with me.",
    "Let's talk about {subject}.",
    "I like {food}.",
    "The {thing} is {color}.",
    "Compare {thing} and {thing2}.",
    "What rhymes with {thing}?",
    "Give me advice about {subject}.",
    "What is the population of {place}?",
    "Who wrote the book about {subject}?",
    "Who invented the {thing}?",
    "{thing}",
    "{person}",
]
PLACES = "France Spain Italy Germany Japan China India Brazil Canada Mexico Egypt Kenya".split()
PLACES += "Peru Poland Norway Sweden Russia Turkey Europe Africa America Mars".split() + CITIES
PEOPLE = ["Einstein", "Newton", "Napoleon", "Shakespeare", "Mozart", "Obama", "Cleopatra", "Plato"]
SUBJECTS = (
    "physics history biology chemistry music philosophy economics football chess politics"
    " gravity love quantum-computing machine-learning climate-change photosynthesis evolution"
    " art medicine law math democracy electricity space the-internet black-holes a-neural-network"
).split()
SPORTS = "football tennis chess basketball hockey baseball".split()
TONGUES = "French Spanish German Italian Chinese Japanese Russian Latin Portuguese".split()
FOODS = "pasta rice soup bread pizza cake fish curry salad eggs".split()


def off_topic(rng: random.Random) -> str:
    def pick(words: list[str]) -> str:
        return made_up(rng, words[0][0].isupper()) if rng.random() < 0.25 else rng.choice(words)

    return rng.choice(OFF_TOPIC).format(
        place=pick(PLACES),
        place2=pick(PLACES),
        person=full_name(rng) if rng.random() < 0.5 else pick(PEOPLE),
        thing=pick(NOUNS),
        thing2=pick(NOUNS),
        subject=pick(SUBJECTS).replace("-", " "),
        sport=pick(SPORTS),
        tongue=pick(TONGUES),
        food=pick(FOODS),
        color=pick(ADJECTIVES),
        year=rng.randint(1000, 2030),
    )


# ---- extraction to JSON ---------------------------------------------------------------------

EXTRACT_VALUES: dict[str, dict[str, Callable[[random.Random], object]]] = {
    "person": {
        "name": lambda r: full_name(r) if r.random() < 0.7 else first_name(r),
        "age": lambda r: r.randint(5, 99),
        "city": city,
        "job": lambda r: r.choice(JOBS),
        "email": email,
        "phone": phone,
    },
    "order": {
        "customer": first_name,
        "item": lambda r: r.choice(ITEMS),
        "quantity": lambda r: r.randint(1, 99),
        "price": lambda r: r.randint(1, 999),
        "date": day,
    },
    "event": {
        "event": lambda r: r.choice(("concert", "meeting", "party", "lecture", "wedding", "race")),
        "place": city,
        "date": day,
        "time": clock,
        "host": full_name,
    },
    "log": {
        "time": clock,
        "level": lambda r: r.choice(LEVELS),
        "service": lambda r: made_up(r) if r.random() < 0.3 else r.choice(SERVICES),
        "code": lambda r: number(r, 3),
        "user": lambda r: first_name(r).lower(),
    },
    "book": {
        "title": lambda r: (
            f"The {r.choice(ADJECTIVES).capitalize()} {r.choice(NOUNS).capitalize()}"
        ),
        "author": full_name,
        "year": lambda r: r.randint(1900, 2029),
        "pages": lambda r: r.randint(50, 999),
        "price": lambda r: r.randint(1, 99),
    },
    "flight": {
        "flight": lambda r: f"{r.choice('ABKLTU')}{r.choice('AFHLZ')}{number(r, r.choice((3, 4)))}",
        "from": city,
        "to": city,
        "date": day,
        "time": clock,
    },
}

EXTRACT_TEXTS: dict[str, list[str]] = {
    "person": [
        "My friend {name} turned {age} last week.",
        "{name} can be reached at {phone}.",
        "Call {name} in {city} at {phone}.",
        "This is {name}. My phone number is {phone} and my email is {email}.",
        "Yesterday I met {name}, a {job} from {city}.",
        "Our new {job} is {name}, who is {age} and comes from {city}.",
        "{name} is {age} years old and lives in {city}.",
        "My name is {name}, I am {age} and I work as a {job}.",
        "{name}, {age}, is a {job} from {city}.",
        "{name} works as a {job} in {city}. You can write to {email}.",
        "I am {name} and I live in {city}. My email is {email}.",
        "Please meet {name}. At {age}, this {job} has moved to {city}.",
        "{name} ({email}) is a {age}-year-old {job}.",
        "The {job} {name} lives in {city} and is {age}.",
        "Contact: {name}, {city}, {email}",
        "Hi, I'm {name} from {city}, {age} years old, {job} by trade. Write to {email}.",
    ],
    "order": [
        "{customer} ordered {quantity} {item} for {price} dollars on {date}.",
        "On {date}, {customer} bought {quantity} {item}.",
        "Please send {quantity} {item} to {customer}. The price is {price} dollars.",
        "Order from {customer}: {quantity} {item}, {price} dollars, {date}",
        "{quantity} {item} were sold to {customer} for {price} dollars.",
        "{customer} paid {price} dollars for {quantity} {item}.",
        "We shipped {customer} {quantity} {item} on {date}.",
        "I am {customer}. I want {quantity} {item} by {date}, for at most {price} dollars.",
    ],
    "event": [
        "The {event} is in {place} on {date} at {time}.",
        "{host} invites you to a {event} in {place} on {date}.",
        "Join us in {place} at {time} for the {event}. Your host is {host}.",
        "{event}: {date}, {time}, {place}",
        "On {date} at {time}, {host} gives a {event} in {place}.",
        "The {event} with {host} starts at {time} on {date}.",
        "Don't miss the {event} on {date}! It takes place in {place}.",
        "{host} will be at the {event} in {place} at {time}.",
    ],
    "log": [
        "{time} {level} {service}: request by {user} ended with code {code}",
        "{level} [{service}] {time} user {user} got {code}",
        "At {time} the {service} service logged {level} with code {code}.",
        "{time} [{level}] {service} user={user} code={code}",
        "{service} returned {code} to {user} at {time}.",
        "User {user} saw {level} {code} in {service}.",
    ],
    "book": [
        "{title} by {author} was printed in {year} and has {pages} pages.",
        "{author} wrote {title} in {year}.",
        "In {year}, {author} published {title}. It costs {price} dollars.",
        "{title} ({year}) by {author}, {pages} pages, {price} dollars",
        "I am reading {title} by {author}. It has {pages} pages.",
        "The book {title} costs {price} dollars and has {pages} pages.",
    ],
    "flight": [
        "Flight {flight} goes from {from} to {to} on {date} at {time}.",
        "{flight} leaves {from} at {time} and lands in {to}.",
        "On {date} I fly from {from} to {to} with {flight}.",
        "Book {flight} to {to} from {from}, {date}.",
        "The flight from {from} to {to} leaves at {time} on {date}.",
        "{flight}: {from} - {to}, {date}, {time}",
    ],
}

EXTRACT_ASKS = [
    "Extract {keys} as JSON: {text}",
    "Extract {keys} as JSON.\n\n{text}",
    "Extract {keys}: {text}",
    "Extract {keys} from: {text}",
    "Find {keys} in this text: {text}",
    "Get {keys} from the text below.\n\n{text}",
    "Please extract {keys} from this: {text}",
    "Give {keys} as a JSON object.\n{text}",
    "{text}\n\nGive me {keys}.",
    "Parse this into JSON with {keys}: {text}",
    "Extract {keys} from this text as JSON:\n{text}",
    "{text}\n\nExtract {keys} as JSON.",
    "{text}\nReturn JSON with the keys {keys}.",
    "Return a JSON object with {keys}: {text}",
    "Return a JSON object with the keys {keys}.\nText: {text}",
    "Give me {keys} as JSON: {text}",
    "Read the text and give {keys} as JSON.\n{text}",
    "JSON with {keys}: {text}",
    "Turn this into JSON with the keys {keys}: {text}",
    'Extract {keys} as JSON: "{text}"',
]


def join_keys(rng: random.Random, keys: list[str]) -> str:
    style = rng.random()
    if style < 0.3:
        keys = [f'"{k}"' for k in keys]
    elif style > 0.85:
        keys = [f"the {k}" for k in keys]
    if (style < 0.6 or style > 0.85) and len(keys) > 1:
        return ", ".join(keys[:-1]) + " and " + keys[-1]
    return ", ".join(keys)


FIELDS = (
    "name age city job email phone color size owner weight height brand price country street status"
    " title year type model number team score speed code room floor date time plan language animal"
    " department manager salary car food school"
).split()
FORM_STYLES = ["The {k} is {v}", "{k}: {v}", "{k} = {v}", "its {k} is {v}", "{k} {v}", "{k} is {v}"]


def form(rng: random.Random) -> tuple[dict[str, object], str]:
    """Any fields with any values, and a text template that names them."""
    names = [made_up(rng) if rng.random() < 0.1 else f for f in rng.sample(FIELDS, 5)]
    names = list(dict.fromkeys(names))[: rng.randint(2, 5)]
    makers = (phone, city, full_name, first_name, email, day, clock, order_code)
    makers += (lambda r: r.choice(ADJECTIVES), lambda r: r.choice(NOUNS), made_up)
    makers += (lambda r: r.randint(1, 9999),) * 3
    values = {k: rng.choice(makers)(rng) for k in names}
    style, joint = rng.choice(FORM_STYLES), rng.choice((", ", ", ", ". ", "; ", "\n", " and "))
    text = joint.join(style.replace("{k}", k).replace("{v}", "{" + k + "}") for k in names)
    return values, text + rng.choice((".", ""))


def extract(rng: random.Random) -> Conversation:
    if rng.random() < 0.25:
        values, template = form(rng)
    else:
        domain = rng.choice(list(EXTRACT_TEXTS))
        values = {k: make(rng) for k, make in EXTRACT_VALUES[domain].items()}
        template = rng.choice(EXTRACT_TEXTS[domain])
    present = [k for k in values if "{" + k + "}" in template]
    keys = rng.sample(present, rng.randint(min(2, len(present)), len(present)))
    if rng.random() < 0.08:
        keys = list(dict.fromkeys([*keys, rng.choice(list(values))]))
    text = template.format(**values)
    if text[0].islower() and rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    result = {k: values[k] if k in present else None for k in keys}
    ask = rng.choice(EXTRACT_ASKS).format(keys=join_keys(rng, keys), text=text)
    messages = [user(ask), assistant(json.dumps(result, ensure_ascii=False))]
    if rng.random() < 0.12:
        again = rng.choice(present)
        follow = rng.choice(("Now only {k}.", "And only {k}?", "Only {k}, please."))
        only = json.dumps({again: values[again]}, ensure_ascii=False)
        messages += [user(follow.format(k=again)), assistant(only)]
    return Conversation("extract", messages)


# ---- choosing a tool ------------------------------------------------------------------------


@dataclass(frozen=True)
class Tool:
    """A tool under its several names; params are (names, JSON type, description, value maker)."""

    names: list[str]
    descriptions: list[str]
    params: dict[str, tuple[list[str], str, str, Callable[[random.Random], object]]]
    asks: list[str]
    output: Callable[[random.Random], dict] | None = None


def text_of(rng: random.Random) -> str:
    """A short message to send or save."""
    noun, adjective = rng.choice(NOUNS), rng.choice(ADJECTIVES)
    return rng.choice(
        (
            f"the {noun} is {adjective}",
            f"call {first_name(rng)}",
            f"buy {number(rng, 1) + 2} {rng.choice(ITEMS)}",
            f"meet {first_name(rng)} at {clock(rng)}",
            f"bring the {adjective} {noun}",
            f"I am in {city(rng)}",
        )
    )


def order_code(rng: random.Random) -> str:
    return f"{rng.choice('ABCDKXZ')}{number(rng, rng.choice((3, 4)))}"


STRING, INTEGER = "string", "integer"

TOOLS = [
    Tool(
        ["get_weather", "weather", "get_current_weather", "weather_lookup"],
        ["Get the weather of a city", "Get the current weather", "Look up the weather for a place"],
        {"c": (["city", "location", "place"], STRING, "The city", city)},
        [
            "What is the weather in {c}?",
            "What's the weather like in {c}?",
            "How is the weather in {c} today?",
            "Is it raining in {c}?",
            "Weather in {c}?",
            "Will it be warm in {c}?",
            "Do I need a coat in {c}?",
        ],
        lambda r: {
            "temperature": r.randint(-9, 39),
            "sky": r.choice(("sunny", "rainy", "cloudy", "clear")),
        },
    ),
    Tool(
        ["get_time", "current_time", "time_in_city"],
        ["Get the local time of a city", "Tell the current time in a place"],
        {"c": (["city", "location", "place"], STRING, "The city", city)},
        [
            "What time is it in {c}?",
            "Time in {c}?",
            "Tell me the time in {c}.",
            "How late is it in {c}?",
        ],
        lambda r: {"time": clock(r)},
    ),
    Tool(
        ["send_email", "send_mail", "email"],
        ["Send an email", "Send an email to a person"],
        {
            "t": (["to", "recipient", "address"], STRING, "Who gets it", email),
            "b": (["body", "text", "message"], STRING, "The text", text_of),
        },
        [
            "Send an email to {t}: {b}",
            'Email {t} and say "{b}".',
            "Write to {t}: {b}",
            "Mail {t} that {b}.",
        ],
        lambda r: {"status": "sent"},
    ),
    Tool(
        ["send_message", "send_sms", "message"],
        ["Send a message to a contact", "Send a text message"],
        {
            "t": (["to", "contact", "name"], STRING, "The contact", first_name),
            "b": (["text", "message", "body"], STRING, "The text", text_of),
        },
        ["Tell {t}: {b}", "Message {t}: {b}", 'Send {t} the message "{b}".', "Text {t} that {b}."],
        lambda r: {"status": "sent"},
    ),
    Tool(
        ["set_timer", "start_timer", "timer"],
        ["Set a timer", "Start a timer"],
        {"m": (["minutes", "duration"], INTEGER, "How many minutes", lambda r: r.randint(1, 90))},
        [
            "Set a timer for {m} minutes.",
            "Timer {m} minutes",
            "Wake me in {m} minutes.",
            "Start a {m} minute timer.",
        ],
        lambda r: {"status": "started"},
    ),
    Tool(
        ["set_alarm", "create_alarm", "alarm"],
        ["Set an alarm", "Set an alarm clock"],
        {"t": (["time", "at"], STRING, "When", clock)},
        ["Set an alarm for {t}.", "Wake me at {t}.", "Alarm at {t}", "I must get up at {t}."],
        lambda r: {"status": "set"},
    ),
    Tool(
        ["create_event", "add_event", "calendar_add"],
        ["Add an event to the calendar", "Create a calendar event"],
        {
            "w": (
                ["title", "name", "event"],
                STRING,
                "What it is",
                lambda r: r.choice(("lunch", "meeting", "dinner", "call", "party"))
                + " with "
                + first_name(r),
            ),
            "d": (["date", "day"], STRING, "The day", day),
        },
        [
            "Add {w} on {d} to my calendar.",
            "Schedule {w} for {d}.",
            "Plan {w} on {d}.",
            "I have {w} on {d}.",
        ],
        lambda r: {"id": number(r, 3), "status": "created"},
    ),
    Tool(
        ["search", "web_search", "search_web"],
        ["Search the web", "Search for pages"],
        {
            "q": (
                ["query", "q"],
                STRING,
                "What to search for",
                lambda r: (
                    f"{r.choice(ADJECTIVES)} {r.choice(NOUNS)}" if r.random() < 0.7 else made_up(r)
                ),
            )
        },
        [
            "Search for {q}.",
            "Search the web for {q}.",
            "Look up {q} online.",
            "Find pages about {q}.",
        ],
        lambda r: {"results": r.randint(0, 99)},
    ),
    Tool(
        ["get_order", "order_status", "track_order"],
        ["Get the status of an order", "Track an order"],
        {"o": (["order_id", "id", "order"], STRING, "The order", order_code)},
        [
            "Where is order {o}?",
            "What is the status of order {o}?",
            "Track order {o}.",
            "Did you ship {o}?",
        ],
        lambda r: {"status": r.choice(("shipped", "packed", "lost", "delivered")), "date": day(r)},
    ),
    Tool(
        ["cancel_order", "delete_order"],
        ["Cancel an order", "Cancel an open order"],
        {"o": (["order_id", "id", "order"], STRING, "The order", order_code)},
        [
            "Cancel order {o}.",
            "I don't want order {o} any more.",
            "Please stop order {o}.",
            "Delete order {o}.",
        ],
        lambda r: {"status": "cancelled"},
    ),
    Tool(
        ["convert_currency", "exchange", "currency"],
        ["Convert money", "Convert an amount of money"],
        {
            "a": (["amount", "value"], INTEGER, "How much", lambda r: r.randint(1, 999)),
            "f": (
                ["from", "source"],
                STRING,
                "The currency",
                lambda r: r.choice(("USD", "EUR", "GBP")),
            ),
            "t": (
                ["to", "target"],
                STRING,
                "The other currency",
                lambda r: r.choice(("JPY", "CHF", "BRL")),
            ),
        },
        ["Convert {a} {f} to {t}.", "How much is {a} {f} in {t}?", "Change {a} {f} into {t}."],
        lambda r: {"amount": r.randint(1, 9999)},
    ),
    Tool(
        ["get_stock_price", "stock_price", "quote"],
        ["Get the price of a stock", "Get a stock quote"],
        {
            "s": (
                ["symbol", "ticker"],
                STRING,
                "The stock",
                lambda r: "".join(r.choice("ABCDEFGKLMNOPRSTVX") for _ in range(r.randint(3, 4))),
            )
        },
        ["What is the price of {s}?", "How is {s} doing?", "Stock price of {s}?", "Quote {s}."],
        lambda r: {"price": r.randint(1, 999)},
    ),
    Tool(
        ["play_music", "play_song", "play"],
        ["Play music", "Play a song"],
        {
            "s": (
                ["song", "title", "name"],
                STRING,
                "What to play",
                lambda r: f"{r.choice(ADJECTIVES).capitalize()} {r.choice(NOUNS).capitalize()}",
            )
        },
        ["Play {s}.", "I want to hear {s}.", "Put on {s}.", "Play the song {s}."],
        lambda r: {"status": "playing"},
    ),
    Tool(
        ["turn_on_light", "light_on", "lights_on"],
        ["Turn on the light in a room", "Switch a light on"],
        {
            "r": (
                ["room", "where"],
                STRING,
                "The room",
                lambda r: r.choice(("kitchen", "bedroom", "office", "garage", "bath", "hall")),
            )
        },
        [
            "Turn on the light in the {r}.",
            "Light in the {r}, please.",
            "It is dark in the {r}.",
            "{r} light on",
        ],
        lambda r: {"status": "on"},
    ),
    Tool(
        ["book_flight", "buy_ticket", "reserve_flight"],
        ["Book a flight", "Buy a plane ticket"],
        {
            "f": (["from", "origin"], STRING, "Start", city),
            "t": (["to", "destination"], STRING, "Goal", city),
            "d": (["date", "day"], STRING, "The day", day),
        },
        [
            "Book a flight from {f} to {t} on {d}.",
            "I want to fly from {f} to {t} on {d}.",
            "On {d} I must go from {f} to {t}.",
        ],
        lambda r: {"ticket": order_code(r)},
    ),
    Tool(
        ["read_file", "open_file", "cat"],
        ["Read a file", "Show the content of a file"],
        {
            "p": (
                ["path", "file", "name"],
                STRING,
                "The file",
                lambda r: f"{made_up(r)}.{r.choice(('txt', 'md', 'c', 'py'))}",
            )
        },
        ["Read {p}.", "Show me {p}.", "What is in the file {p}?", "Open {p}."],
        lambda r: {"lines": r.randint(1, 999)},
    ),
    Tool(
        ["create_ticket", "open_ticket", "report_bug"],
        ["Open a ticket", "Report a problem"],
        {
            "t": (["title", "text", "summary"], STRING, "The problem", text_of),
            "p": (["priority", "level"], STRING, "How urgent", lambda r: r.choice(("low", "high"))),
        },
        [
            "Open a ticket with {p} priority: {t}",
            "Create a {p} priority ticket: {t}",
            "Report this, {p} priority: {t}",
        ],
        lambda r: {"ticket": number(r, 4)},
    ),
    Tool(
        ["find_user", "get_user", "lookup_user"],
        ["Find a user by name", "Look up a user"],
        {"n": (["name", "user", "username"], STRING, "The name", full_name)},
        ["Find the user {n}.", "Who is {n}?", "Look up {n}.", "Do we have a user {n}?"],
        lambda r: {"id": number(r, 4), "city": city(r)},
    ),
]

TOOLS_HEADER = "\n\n## Tools\nYou have access to the following tools:\n"
TOOLS_FOOTER = (
    "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
    f"{CALLS_BEGIN}{CALL_BEGIN}tool_call_name{SEP}tool_call_arguments{CALL_END}"
    "{{additional_tool_calls}}"
    f"{CALLS_END}\n\nWhere:\n\n"
    "- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows "
    "the tool's Parameters Schema\n"
    "- For multiple tool calls, chain them directly without separators or spaces\n"
)
NO_TOOL = "None of my tools can do that."


def tool_schema(tool: Tool, name: str, names: dict[str, str], rng: random.Random) -> dict:
    described = rng.random() < 0.6
    properties = {}
    for key, (_, kind, description, _) in tool.params.items():
        properties[names[key]] = {"type": kind}
        if described:
            properties[names[key]]["description"] = description
    parameters = {"type": "object", "properties": properties}
    if rng.random() < 0.85:
        parameters["required"] = list(properties)
    function = {
        "name": name,
        "description": rng.choice(tool.descriptions) + rng.choice(("", ".")),
        "parameters": parameters,
    }
    return {"type": "function", "function": function}


def call_of(name: str, arguments: dict) -> dict:
    encoded = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", "function": {"name": name, "arguments": encoded}}


def tools(rng: random.Random) -> Conversation:
    """A request that needs one of the listed tools; at times two calls, no call, or a result."""
    offered = rng.sample(TOOLS, rng.choice((1, 1, 2, 2, 2, 3, 3, 4)))
    name_of = [rng.choice(t.names) for t in offered]
    params_of = [{k: rng.choice(p[0]) for k, p in t.params.items()} for t in offered]
    specs = [tool_schema(*spec, rng) for spec in zip(offered, name_of, params_of)]
    which = rng.randrange(len(offered))
    tool = offered[which]
    order = list(range(len(offered)))
    rng.shuffle(order)
    specs = [specs[i] for i in order]
    kind = rng.random()
    if kind < 0.14:
        plain = rng.choice((qa, small_talk, arithmetic, arithmetic))(rng)
        if plain.messages[1]["content"] != OUT_OF_SCOPE:
            return Conversation("tools", plain.messages[:2], specs)
    if kind < 0.3:
        other = rng.choice([t for t in TOOLS if t not in offered])
        values = {k: p[3](rng) for k, p in other.params.items()}
        ask = rng.choice(other.asks).format(**values)
        return Conversation("tools", [user(ask), assistant(NO_TOOL)], specs)

    def fill() -> tuple[dict, dict]:
        values = {k: p[3](rng) for k, p in tool.params.items()}
        return values, {params_of[which][k]: v for k, v in values.items()}

    values, arguments = fill()
    ask = rng.choice(tool.asks).format(**values)
    calls = [call_of(name_of[which], arguments)]
    if kind < 0.4 and len(tool.params) == 1:
        more, arguments = fill()
        (first,) = values.values()
        ask = rng.choice(tool.asks).format(**{k: f"{first} and {v}" for k, v in more.items()})
        calls.append(call_of(name_of[which], arguments))
    if rng.random() < 0.2:
        ask = rng.choice(("Please. ", "Hi! ", "Hello, ", "Can you help? ")) + ask
    messages = [user(ask), {"role": "assistant", "content": "", "tool_calls": calls}]
    if len(calls) == 1 and rng.random() < 0.3:
        output = tool.output(rng)
        said = ", ".join(f"{k}: {v}" for k, v in output.items())
        content = json.dumps(output, ensure_ascii=False)
        messages += [{"role": "tool", "content": content}, assistant(f"The result is {said}.")]
    return Conversation("tools", messages, specs)


# ---- arithmetic -----------------------------------------------------------------------------


def columns(a: int, b: int, sign: str) -> str:
    """The columns of a + b or of a - b (a >= b), ones first, then the result read back."""
    width = max(len(str(a)), len(str(b)))
    digits = list(zip(reversed(str(a).zfill(width)), reversed(str(b).zfill(width))))
    lines, out, carry = [], [], 0
    for x, y in digits:
        left = f"{x}{sign}{y}" + (f"{sign}1" if carry else "")
        if sign == "+":
            total = int(x) + int(y) + carry
            carry, digit = divmod(total, 10)
            tail = " carry 1" if carry else ""
        else:
            total = int(x) - int(y) - carry
            carry = int(total < 0)
            digit = total + 10 * carry
            tail = " borrow 1" if carry else ""
            total, left = digit, ("1" if carry else "") + left
        lines.append(f"{left}={total}, write {digit}{tail}")
        out.append(str(digit))
    if carry:
        lines.append("write 1")
        out.append("1")
    return "\n".join([*lines, "".join(reversed(out))])


def compared(a: int, b: int) -> str:
    """Which is larger, by the number of digits or by the first digits that differ."""

    def order(x: int, y: int) -> str:
        return f"{x}{'<' if x < y else '>' if x > y else '='}{y}"

    if len(str(a)) != len(str(b)):
        return order(len(str(a)), len(str(b))) + " digits"
    steps = []
    for x, y in zip(str(a), str(b)):
        steps.append(order(int(x), int(y)))
        if x != y:
            break
    return " ".join(steps)


def worked(a: int, b: int, sign: str) -> str:
    """The assistant's answer: the digits in <think>, then the equation."""
    if sign == "-" and a < b:
        work = f"{a}-{b}\n{compared(a, b)}, so -({b}-{a})\n{columns(b, a, sign)}"
    elif sign == "-":
        work = f"{a}-{b}\n{compared(a, b)}\n{columns(a, b, sign)}"
    else:
        work = f"{a}{sign}{b}\n{columns(a, b, sign)}"
    return f"{THINK}{work}{THINK_END}{a} {sign} {b} = {a + b if sign == '+' else a - b}"


SUM_ASKS = [
    "What is {a}+{b}?",
    "What is {a} + {b}?",
    "{a}+{b}",
    "{a} + {b}",
    "{a}+{b}=",
    "{a} + {b} = ?",
    "Add {a} and {b}.",
    "How much is {a} plus {b}?",
    "What is {a} plus {b}?",
    "What's {a}+{b}?",
    "Calculate {a}+{b}.",
    "Compute {a} + {b}.",
    "What is the sum of {a} and {b}?",
    "Please add {a} and {b}.",
]
DIFFERENCE_ASKS = [
    "What is {a}-{b}?",
    "What is {a} - {b}?",
    "{a}-{b}",
    "{a} - {b}",
    "{a}-{b}=",
    "{a} - {b} = ?",
    "Subtract {b} from {a}.",
    "How much is {a} minus {b}?",
    "What is {a} minus {b}?",
    "What's {a}-{b}?",
    "Calculate {a}-{b}.",
    "Compute {a} - {b}.",
    "Take {b} from {a}.",
]


def operands(rng: random.Random) -> tuple[int, int]:
    if rng.random() < 0.1:
        a = number(rng, rng.choice((2, 3, 4)))
        return a, max(0, a + rng.choice((0, rng.randint(-9, 9), rng.randint(-99, 99))))
    if rng.random() < 0.5:
        return number(rng, 3), number(rng, 3)
    return number(rng, rng.choice((1, 2, 3, 4))), number(rng, rng.choice((1, 2, 3, 4)))


def arithmetic(rng: random.Random) -> Conversation:
    a, b = operands(rng)
    sign = rng.choice("++-")
    ask = rng.choice(SUM_ASKS if sign == "+" else DIFFERENCE_ASKS).format(a=a, b=b)
    if rng.random() < 0.2:
        ask = ask.lower()
    return Conversation("arithmetic", [user(ask), assistant(worked(a, b, sign))])


def addition3(rng: random.Random) -> Conversation:
    """Three-digit addition, the figure that eval.py reports."""
    a, b = number(rng, 3), number(rng, 3)
    ask = rng.choice(SUM_ASKS).format(a=a, b=b)
    return Conversation("arithmetic", [user(ask), assistant(worked(a, b, "+"))])


# ---- recall from a list ---------------------------------------------------------------------

RECALL_KEYS: list[tuple[float, Callable[[random.Random], str]]] = [
    (0.35, lambda r: f"{r.choice(ADJECTIVES)}-{r.choice(NOUNS)}"),
    (0.07, lambda r: r.choice(FIELDS + FRUITS + NOUNS)),
    (0.15, lambda r: f"{r.choice(ADJECTIVES)} {r.choice(NOUNS)}"),
    (0.15, lambda r: f"{r.choice(FIRST)} {r.choice(LAST)}"),
    (0.15, lambda r: f"{r.choice(NOUNS)}{r.randint(10, 99)}"),
    (0.15, made_up),
]
RECALL_VALUES: list[tuple[float, Callable[[random.Random], str]]] = [
    (0.35, lambda r: str(number(r, 3))),
    (0.15, lambda r: str(number(r, r.choice((1, 2, 4, 5))))),
    (0.20, lambda r: r.choice(NOUNS)),
    (0.10, lambda r: r.choice(CITIES)),
    (0.10, lambda r: f"{r.choice(ADJECTIVES)} {r.choice(FRUITS)}"),
    (0.10, lambda r: f"{r.choice('ABCDKXZ')}{number(r, 2)}"),
]
RECALL_INTROS = [
    "",
    "",
    "Here is a list:\n",
    "Records:\n",
    "Read this list.\n",
    "The values are:\n",
]
RECALL_INTROS += ["Remember these values.\n", "Data:\n\n"]
RECALL_ASKS = [
    "What is the value of {k}?",
    'What is the value of "{k}"?',
    "What is {k}?",
    "Look up {k}.",
    'Look up "{k}".',
    "{k}?",
    "Which value belongs to {k}?",
    "Find {k}.",
    "Give me the value of {k}.",
    "What does the list say for {k}?",
]


def by_weight(rng: random.Random, table: list[tuple[float, Callable]]) -> Callable:
    return rng.choices([make for _, make in table], [w for w, _ in table])[0]


def recall(rng: random.Random, lines: int = 0, queries: int = 0) -> Conversation:
    """A list of unique keys with values, then questions about some of them."""
    lines = lines or int(2 ** rng.uniform(1.6, 6.3))
    make_key, make_value = by_weight(rng, RECALL_KEYS), by_weight(rng, RECALL_VALUES)
    keys: dict[str, str] = {}
    for _ in range(4 * lines):
        keys[make_key(rng)] = make_value(rng)
        if len(keys) == lines:
            break
    sep = rng.choice((": ", ": ", ": ", " = ", " -> "))
    bullet = rng.choice(("", "", "", "- "))
    listing = "\n".join(f"{bullet}{k}{sep}{v}" for k, v in keys.items())
    listing = rng.choice(RECALL_INTROS) + listing
    asked = rng.sample(list(keys), min(len(keys), queries or 1 + min(15, len(keys) // 3)))
    asks = [rng.choice(RECALL_ASKS).format(k=k) for k in asked]
    messages = []
    if rng.random() < 0.15:
        messages = [{"role": "system", "content": listing}, user(asks[0])]
    elif rng.random() < 0.15:
        messages = [user(listing), assistant("OK."), user(asks[0])]
    elif rng.random() < 0.2:
        messages = [user(f"{asks[0]}\n\n{listing}")]
    else:
        messages = [user(f"{listing}\n\n{asks[0]}")]
    for i, ask in enumerate(asks):
        messages += [user(ask)] if i else []
        messages += [assistant(keys[asked[i]])]
    return Conversation("recall", messages)


# ---- sorting and counting -------------------------------------------------------------------

ASCENDING = [
    "Sort these numbers: {l}",
    "Sort {l}.",
    "Sort in ascending order: {l}",
    "Put these numbers in order: {l}",
    "Order from smallest to largest: {l}",
    "Please sort: {l}",
]
DESCENDING = [
    "Sort in descending order: {l}",
    "Sort {l} in descending order.",
    "Order from largest to smallest: {l}",
    "Sort these numbers, largest first: {l}",
    "Sort from high to low: {l}",
]
ALPHABETICAL = [
    "Sort these words: {l}",
    "Sort alphabetically: {l}",
    "Sort these words from A to Z: {l}",
    "Put these words in alphabetical order: {l}",
]


def sort(rng: random.Random) -> Conversation:
    size = rng.randint(2, 8)
    kind = rng.random()
    if kind < 0.7:
        top = rng.choice((9, 20, 99, 99, 99, 99, 999))
        items = [rng.randint(0, top) for _ in range(size)]
        falling = kind < 0.25
        ask = rng.choice(DESCENDING if falling else ASCENDING)
        result = sorted(items, reverse=falling)
    else:
        items = rng.sample(rng.choice((NOUNS, FRUITS, ADJECTIVES, FRUITS + NOUNS)), size)
        falling, ask, result = False, rng.choice(ALPHABETICAL), sorted(items)
    join = rng.choice((", ", ", ", ", ", " "))
    messages = [
        user(ask.format(l=join.join(map(str, items)))),
        assistant(", ".join(map(str, result))),
    ]
    follow = rng.random()
    if follow < 0.08:
        messages += [user(rng.choice(("Now the other way round.", "Reverse it.")))]
        messages += [assistant(", ".join(map(str, reversed(result))))]
    elif follow < 0.16:
        messages += [user(rng.choice(("What is the first one?", "Which one is first?")))]
        messages += [assistant(str(result[0]))]
    elif follow < 0.22:
        messages += [user(rng.choice(("What is the last one?", "Which one is last?")))]
        messages += [assistant(str(result[-1]))]
    return Conversation("sort", messages)


COUNT_ITEMS = [
    "How many items are in this list: {l}?",
    "How many items are there: {l}",
    "Count the items: {l}",
    "How many words are in this list: {l}?",
    "Count these: {l}",
    "How many are these? {l}",
]
COUNT_WORD = [
    "How many times does {w} appear in: {l}?",
    'How often does "{w}" appear in: {l}',
    "Count {w} in: {l}",
    "How many {w} are in this list: {l}?",
]
COUNT_LETTER = [
    "How many {c} are in {w}?",
    'How many letters "{c}" are in "{w}"?',
    "How many {c}'s are in {w}?",
    "How many times does the letter {c} appear in {w}?",
    'Count the letter {c} in "{w}".',
    "How many {c}s in {w}?",
]
SPELLED = ADJECTIVES + NOUNS + FRUITS + ["strawberry", "mississippi", "mlad", "hello", "letter"]


def count(rng: random.Random) -> Conversation:
    """Items, one word among words, or letters: counted aloud in <think>, then the number."""
    kind = rng.random()
    words = rng.choice((FRUITS, NOUNS, ADJECTIVES))
    if kind < 0.35:
        items = [rng.choice(words) for _ in range(rng.randint(1, 14))]
        ask = rng.choice(COUNT_ITEMS).format(l=", ".join(items))
        work = [f"{item} {i}" for i, item in enumerate(items, 1)]
        total = len(items)
    elif kind < 0.65:
        pool = rng.sample(words, rng.randint(2, 4))
        items = [rng.choice(pool) for _ in range(rng.randint(2, 12))]
        wanted = pool[0]
        ask = rng.choice(COUNT_WORD).format(w=wanted, l=", ".join(items))
        work, total = counted(items, wanted)
    else:
        word = rng.choice(SPELLED) if rng.random() < 0.4 else made_up(rng)
        wanted = rng.choice(word) if rng.random() < 0.8 else rng.choice("abcdefghijklmnoprstuvwxyz")
        ask = rng.choice(COUNT_LETTER).format(c=wanted, w=word)
        work, total = counted(list(word), wanted)
    answer = "\n".join(work)
    return Conversation("count", [user(ask), assistant(f"{THINK}{answer}{THINK_END}{total}")])


def counted(items: list[str], wanted: str) -> tuple[list[str], int]:
    work, total = [], 0
    for item in items:
        total += item == wanted
        work.append(f"{item} {total}" if item == wanted else item)
    return work, total


# ---- conversations of several turns, plain text ---------------------------------------------


def strip_think(content: str) -> str:
    return content.split(THINK_END, 1)[1] if THINK_END in content else content


def introduced(rng: random.Random) -> list[dict]:
    """The user says a name, or another fact, and asks for it later."""
    thing, value = rng.choice(
        (
            ("name", first_name(rng)),
            ("city", city(rng)),
            ("job", rng.choice(JOBS)),
            ("favorite color", rng.choice(("red", "blue", "green", "black", "white", "pink"))),
            ("favorite number", str(rng.randint(1, 99))),
            ("order", order_code(rng)),
        )
    )
    says = rng.choice(("My {t} is {v}.", "Hi, my {t} is {v}.", "Please remember: my {t} is {v}."))
    asks = rng.choice(("What is my {t}?", "Do you remember my {t}?", "Tell me my {t}."))
    return [
        user(says.format(t=thing, v=value)),
        assistant(f"Nice to know: your {thing} is {value}."),
        user(asks.format(t=thing)),
        assistant(f"Your {thing} is {value}."),
    ]


STEPS_ON = {
    "+": ["Add {c} to that.", "And plus {c}?", "Now add {c}.", "Add {c}.", "Plus {c}?", "+ {c}"],
    "-": ["Subtract {c} from that.", "And minus {c}?", "Now subtract {c}.", "Subtract {c}."]
    + ["Minus {c}?", "Now take away {c}.", "- {c}"],
}


def running_sum(rng: random.Random) -> list[dict]:
    """A sum, then one or two steps on from its result."""
    a, b = number(rng, rng.choice((1, 2, 3))), number(rng, rng.choice((1, 2, 3)))
    messages = [user(rng.choice(SUM_ASKS).format(a=a, b=b)), assistant(worked(a, b, "+"))]
    total = a + b
    for _ in range(rng.choice((1, 1, 2))):
        if total < 0:
            break
        sign, c = rng.choice("+-"), number(rng, rng.choice((1, 2, 2, 3)))
        ask = rng.choice(STEPS_ON[sign]).format(c=c)
        if rng.random() < 0.3:
            ask = ask.rstrip(".?").lower()
        messages += [user(ask), assistant(worked(total, c, sign))]
        total = total + c if sign == "+" else total - c
    return messages


def multi(rng: random.Random) -> Conversation:
    """Several tasks in one conversation; some turns need what was said before."""
    parts: list[list[dict]] = []
    if rng.random() < 0.2:
        parts = [qa(rng).messages] if rng.random() < 0.3 else []
        parts.append(running_sum(rng))
        return Conversation("multi", [m for part in parts for m in part])
    for _ in range(rng.choice((2, 2, 2, 3, 3, 4))):
        kind = rng.random()
        if kind < 0.3:
            parts.append(qa(rng).messages)
        elif kind < 0.8:
            task = rng.choice((small_talk, arithmetic, extract, sort, count))
            parts.append(sampled(rng, task).messages)
        elif kind < 0.9:
            parts.append(running_sum(rng))
        else:
            parts.append(introduced(rng))
    known = [p for p in parts if len(p) == 4 and p[3]["content"].startswith("Your ")]
    if known and parts[-1] is not known[0]:
        parts = [p[:2] if p is known[0] else p for p in parts] + [known[0][2:]]
    return Conversation("multi", [m for part in parts for m in part])


def plain_text(rng: random.Random) -> Conversation:
    """Facts as running text, or as questions and answers, for /v1/completions."""
    chosen = rng.choices(wordings(False), topic_weights(), k=rng.randint(1, 3))
    if rng.random() < 0.35:
        text = "\n\n".join(f"Q: {rng.choice(qs)}\nA: {t.answer}" for t, qs in chosen)
    else:
        spoken = [t.answer for t, _ in chosen if not t.answer.startswith(("I am", "I can", "curl"))]
        text = " ".join(spoken) or chosen[0][0].answer
    return Conversation("text", [], text=text)


SYSTEMS = [
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are the demo model of mlad.",
    "You answer questions about mlad.",
    "Be brief.",
    "Answer in one sentence.",
    "You are a friendly assistant. Be polite.",
    "You are an AI assistant.",
]

GENERATORS: dict[str, Callable[[random.Random], Conversation]] = {
    "qa": qa,
    "chat": small_talk,
    "extract": extract,
    "tools": tools,
    "arithmetic": arithmetic,
    "recall": recall,
    "sort": sort,
    "count": count,
    "multi": multi,
    "text": plain_text,
}


def sampled(rng: random.Random, make: Callable[[random.Random], Conversation]) -> Conversation:
    """One item that is not held out."""
    while True:
        item = make(rng)
        if not is_held_out(item.key()):
            return item


def sample(rng: random.Random, task: str, **options: int) -> Conversation:
    """One training conversation of a task. options go to its generator."""
    make = GENERATORS[task]
    item = sampled(rng, lambda r: make(r, **options))
    if item.messages and item.messages[0]["role"] != "system" and rng.random() < 0.2:
        item.messages = [{"role": "system", "content": rng.choice(SYSTEMS)}, *item.messages]
    return item


def single_turn(item: Conversation) -> Conversation:
    """The item without what follows its first answer."""
    return Conversation(item.task, item.messages[:2], item.tools)


HELD_OUT_TASKS: dict[str, Callable[[random.Random], Conversation]] = {
    "extract": lambda r: single_turn(extract(r)),
    "recall": lambda r: recall(r, lines=int(2 ** r.uniform(4.5, 7.6)), queries=1),
    "addition3": addition3,
    "arithmetic": arithmetic,
    "tools": lambda r: single_turn(tools(r)),
    "sort": lambda r: single_turn(sort(r)),
    "count": count,
}


def held_out(task: str, count: int, seed: int = 1) -> list[Conversation]:
    """Held-out items of a task, each ending with the right answer. Of questions about mlad there
    are only so many."""
    rng = random.Random(f"{task}-{seed}")
    if task == "qa":
        items = qa_held_out()
        return rng.sample(items, min(count, len(items)))
    out: list[Conversation] = []
    while len(out) < count:
        item = HELD_OUT_TASKS[task](rng)
        if is_held_out(item.key()):
            out.append(item)
    return out


# ---- the chat format ------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A stretch of the rendered text; `learn`: the model writes it, so it is trained on."""

    text: str
    learn: bool


def tools_block(specs: list[dict]) -> str:
    out = TOOLS_HEADER
    for spec in specs:
        function = spec["function"]
        parameters = json.dumps(function["parameters"], ensure_ascii=False)
        out += f"\n### {function['name']}\nDescription: {function['description']}"
        out += f"\n\nParameters: {parameters}\n"
    return out + TOOLS_FOOTER


def answer_text(message: dict) -> str:
    """What the assistant writes for a message, without the end-of-sentence token."""
    text = message["content"] or ""
    if message.get("tool_calls"):
        calls = [c["function"] for c in message["tool_calls"]]
        body = "".join(f"{CALL_BEGIN}{c['name']}{SEP}{c['arguments']}{CALL_END}" for c in calls)
        text += f"{CALLS_BEGIN}{body}{CALLS_END}"
    return text


def render(messages: list[dict], specs: list[dict]) -> list[Piece]:
    """The chat as pieces. Reasoning is kept in the last answer only, as the server's template does;
    an earlier answer whose reasoning is gone is not learned from."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    pieces = [Piece(BOS + system + (tools_block(specs) if specs else ""), False)]
    last = len(messages) - 1
    for i, message in enumerate(messages):
        role, text = message["role"], message["content"] or ""
        if role == "user":
            pieces.append(Piece(USER + text, False))
        elif role == "tool":
            pieces.append(Piece(OUTPUT_BEGIN + text + OUTPUT_END, False))
        elif role == "assistant":
            pieces.append(Piece(ASSISTANT, False))
            full = answer_text(message)
            shown = full if i == last else strip_think(full)
            pieces.append(Piece(shown + EOS, shown == full))
    return pieces


def pieces_of(item: Conversation) -> list[Piece]:
    """The rendered training text of a conversation."""
    if item.text:
        return [Piece(BOS, False), Piece(item.text + EOS, True)]
    return render(item.messages, item.tools)
