"""A little English of some 150 words, and texts in it that follow instructions.

    sentence   [time ,] clause [, and clause] [time] .        time: "at night", "in the morning"
    clause     subject (verb | verb object) [near the river]   subject: a noun, or "it"

`Task` says what a text is to be like, `write` writes one at random, and `is_grammatical` tells
whether any text belongs to the language. Nothing here knows of prompts or rewards. Pure Python.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# No noun is part of another word of the language, since keywords are looked for as text; and no
# word after "a" starts with a vowel.
ANIMALS = _words(
    "bear bird cat cow deer dog duck fox frog goat horse lion monkey mouse pig rabbit sheep snake "
    "tiger turtle whale wolf"
)
THINGS = _words(
    "ball basket bell boat bone book box cake drum feather flower kite lamp leaf nut pear rope "
    "shell stone toy"
)
PLACES = _words(
    "beach bridge castle cave farm field forest garden hill house lake market meadow mountain pond "
    "river road school tower village"
)
LOOKS = _words("big black brown gray nice small white")  # of anything
MOODS = _words("brave clever gentle happy hungry kind lazy proud quiet sad tired wild young")
VERBS = _words(
    "dances dreams hides jumps plays rests runs sings sits sleeps smiles swims waits walks"
)
ACTIONS = _words("carries finds follows hears likes loves meets remembers sees wants watches")
PREPOSITIONS = _words("behind below beside by near")
TIMES = (
    *("after the rain", "all day", "at night", "at noon", "before the storm", "every day"),
    *("in spring", "in summer", "in the evening", "in the morning", "in winter", "under the moon"),
    *("with great joy", "without fear"),
)
NOUNS = (*THINGS, *PLACES)
STARTS = ("the", "a", "it", *dict.fromkeys(time.split()[0] for time in TIMES))  # of sentences
WORDS = sorted(
    {*ANIMALS, *NOUNS, *LOOKS, *MOODS, *VERBS, *ACTIONS, *PREPOSITIONS, *STARTS, "and"}
    | {word for time in TIMES for word in time.split()}
)


@dataclass(frozen=True)
class Task:
    """What a text is about and how it is to be; 0, False and "" stand for no such wish.

    `topic` occurs at least `mentions` times. `words` and `sentences` are exact numbers, `bullets`
    makes each sentence a bullet point. `without` is "the" or "a", `case` "lower" or "upper".
    """

    topic: str
    words: int = 0
    keyword: str = ""
    without: str = ""
    no_commas: bool = False
    case: str = ""
    ending: str = ""
    bullets: int = 0
    sentences: int = 0
    quotes: bool = False
    mentions: int = 0


def write(task: Task, rng: random.Random) -> str:
    """A random text that is as `task` wants it. What isn't wished for is left to chance: about a
    third of the sentences start with a time and a comma, most texts have one sentence or two.
    """
    while True:
        sentences = _sentences(task, rng)
        if not task.words or task.words == sum(len(words.split()) for words in sentences):
            return _typeset(task, sentences)


def _sentences(task: Task, rng: random.Random) -> list[str]:
    count = task.bullets or task.sentences or (1 if task.words or rng.random() < 0.6 else 2)
    count = max(count, task.mentions)
    place_of_keyword = rng.randrange(count)
    sentences = []
    for i in range(count):
        subject = task.topic
        if i >= max(1, task.mentions):
            subject = rng.choice((task.topic, "it", rng.choice(ANIMALS)))
        keyword = task.keyword if i == place_of_keyword else ""
        ending = task.ending if i == count - 1 else ""
        sentences.append(_sentence(task, rng, subject, (keyword, ending)))
    return sentences


def _sentence(task: Task, rng: random.Random, subject: str, wanted: tuple[str, str]) -> str:
    keyword, ending = wanted
    times = [time for time in TIMES if task.without not in time.split()]
    text = _clause(task, rng, subject, keyword)
    if not task.no_commas and rng.random() < 0.35:
        text = f"{rng.choice(times)}, {text}"
    if not task.no_commas and rng.random() < 0.15:
        text = f"{text}, and {_clause(task, rng, rng.choice(ANIMALS), '')}"
    if ending or (not text.startswith(tuple(times)) and rng.random() < 0.3):
        text = f"{text} {ending or rng.choice(times)}"
    return f"{text}."


def _clause(task: Task, rng: random.Random, subject: str, keyword: str) -> str:
    parts = ["it" if subject == "it" else _noun_phrase(task, rng, subject)]
    if keyword in THINGS or rng.random() < 0.4:
        noun = keyword if keyword in THINGS else rng.choice((*ANIMALS, *THINGS))
        parts += [rng.choice(ACTIONS), _noun_phrase(task, rng, noun)]
    else:
        parts.append(rng.choice(VERBS))
    if keyword in PLACES or rng.random() < 0.35:
        noun = keyword if keyword in PLACES else rng.choice(PLACES)
        parts += [rng.choice(PREPOSITIONS), _noun_phrase(task, rng, noun)]
    return " ".join(parts)


def _noun_phrase(task: Task, rng: random.Random, noun: str) -> str:
    article = rng.choice([word for word in ("the", "a") if word != task.without])
    adjectives = (*LOOKS, *MOODS) if noun in ANIMALS else LOOKS
    adjective = f"{rng.choice(adjectives)} " if rng.random() < 0.3 else ""
    return f"{article} {adjective}{noun}"


def _typeset(task: Task, sentences: list[str]) -> str:
    sentences = [sentence[0].upper() + sentence[1:] for sentence in sentences]
    if task.bullets:
        text = "\n".join(f"* {sentence}" for sentence in sentences)
    else:
        text = " ".join(sentences)
    if task.quotes:
        text = f'"{text}"'
    return {"lower": text.lower(), "upper": text.upper()}.get(task.case, text)


def _one_of(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(words)})"


_NOUN = (
    f"(?:the|a)(?:(?: {_one_of(LOOKS)})? {_one_of([*ANIMALS, *NOUNS])}"
    f"|(?: {_one_of(MOODS)})? {_one_of(ANIMALS)})"
)
_CLAUSE = (
    f"(?:it|{_NOUN}) (?:{_one_of(VERBS)}|{_one_of(ACTIONS)} {_NOUN})"
    f"(?: {_one_of(PREPOSITIONS)} {_NOUN})?"
)
_TIME = _one_of(TIMES)
_SENTENCE = re.compile(f"(?:{_TIME}, )?{_CLAUSE}(?:, and {_CLAUSE})?(?: {_TIME})?\\.", re.I)


def is_grammatical(text: str) -> bool:
    """Whether all of a text is sentences of the language, in any case, with or without bullets
    and quotation marks. What they say isn't judged.
    """
    text = text.strip().removeprefix('"').removesuffix('"')
    lines = [re.sub(r"^\* ", "", line) for line in text.split("\n")]
    sentences = re.split(r"(?<=\.) ", " ".join(lines))
    return all(_SENTENCE.fullmatch(sentence) for sentence in sentences)
