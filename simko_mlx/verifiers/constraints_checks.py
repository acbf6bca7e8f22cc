"""The checks of IFEval (arXiv:2311.07911) by the names in its column ``instruction_id_list``.

A check is a function ``f(text, *, ...) -> bool`` whose keyword parameters are IFEval's own
``kwargs``. Every one is linear in the text. They decide as Google's evaluation code does, with
these departures:

1. Keywords, starts of sections and postscripts are text, not regular expressions.
2. Sentences end at ``. ! ?`` before white space, common abbreviations and initials aside; IFEval
   asks NLTK's punkt, which needs a download. Words in capitals are found likewise without NLTK.
3. ``change_case`` looks at the case alone; IFEval also wants the language detected as English.
4. A text whose language can't be detected doesn't meet ``language:response_language``; in IFEval
   it does, and a policy would find that out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable

from simko_mlx.types import UserError, require

_DETECTED_CHARS = 10_000  # of the text, to tell its language
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATIONS = frozenset(
    [
        *("mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "inc", "ltd", "co", "corp", "gen"),
        *("capt", "lt", "rev", "hon", "vs", "e.g", "i.e", "cf", "fig", "no", "vol", "approx"),
    ]
)
_SENTENCE_END = re.compile(r"[.!?\u2026]++[\"'\u201d\u2019)\]*_]*+|[\u3002\uff01\uff1f]++")
_WIDE_ENDS = "\u3002\uff01\uff1f"  # of Chinese and Japanese, which don't put spaces
_LAST_WORD = re.compile(r"[^\s\"'(\[]*\Z")
_WORD_WITH_HYPHENS = re.compile(r"[^\W_]++(?:[-'\u2019.&][^\W_]++)*+")


def keywords_existence(text: str, *, keywords: list[str]) -> bool:
    lower = text.lower()
    return all(keyword.lower() in lower for keyword in keywords)


def keywords_frequency(text: str, *, keyword: str, frequency: float, relation: str) -> bool:
    return _compare(text.lower().count(keyword.strip().lower()), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    """Whole words: "art" doesn't forbid "party"."""
    return not any(
        re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words
    )


def letter_frequency(text: str, *, letter: str, let_frequency: float, let_relation: str) -> bool:
    return _compare(Counter(text.lower())[letter.strip().lower()], let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    """``language`` is an ISO 639-1 code."""
    try:
        import langdetect  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "The constraint language:response_language needs the extra: pip install "
            "'simko-mlx[constraints]'."
        ) from error
    langdetect.DetectorFactory.seed = 0  # it samples, and would answer differently each time
    try:
        found = langdetect.detect(text[:_DETECTED_CHARS].encode("utf-8", "replace").decode())
    except langdetect.LangDetectException:  # a text without letters
        return False
    return found == language


def number_sentences(text: str, *, num_sentences: float, relation: str) -> bool:
    return _compare(count_sentences(text), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: float) -> bool:
    """Paragraphs stand between ``***``; one before the first or after the last may be empty."""
    paragraphs = [part.strip() for part in text.split("***")]
    if not all(paragraphs[1:-1]):
        return False
    return sum(map(bool, paragraphs)) == num_paragraphs


def number_words(text: str, *, num_words: float, relation: str) -> bool:
    return _compare(count_words(text), relation, num_words)


def nth_paragraph_first_word(
    text: str, *, num_paragraphs: float, nth_paragraph: float, first_word: str
) -> bool:
    """Paragraphs stand between blank lines; the nth is counted with empty ones, from 1."""
    paragraphs = [part.strip() for part in text.split("\n\n")]
    filled = sum(map(bool, paragraphs))
    place = int(nth_paragraph)
    if filled != num_paragraphs or not 1 <= place <= filled or not paragraphs[place - 1]:
        return False
    word = paragraphs[place - 1].split(None, 1)[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


def number_placeholders(text: str, *, num_placeholders: float) -> bool:
    """At least so many ``[address]``, each within one line."""
    count = 0
    for line in text.split("\n"):
        end = 0
        while (start := line.find("[", end)) >= 0 and (end := line.find("]", start) + 1) > 0:
            count += 1
    return count >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    pattern = patterns.get(marker, re.escape(marker.lower()))
    return re.search(pattern, text.lower()) is not None


def number_bullet_lists(text: str, *, num_bullets: float) -> bool:
    """Exactly so many lines that start with ``* `` (not ``**``) or ``-``."""
    starts = [line.lstrip()[:2] for line in text.split("\n")]
    bullets = [s for s in starts if s[:1] == "-" or (s[:1] == "*" and s not in ("*", "**"))]
    return len(bullets) == num_bullets


def constrained_response(text: str) -> bool:
    return any(option in text for option in _CONSTRAINED)


def number_highlighted_sections(text: str, *, num_highlights: float) -> bool:
    """At least so many ``*parts*`` or ``**parts**``, each within one line."""
    single = re.findall(r"\*([^\n*]*+)\*", text)
    double = re.findall(r"\*\*([^\n*]*+)\*\*", text)
    return sum(1 for part in single + double if part.strip()) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: float) -> bool:
    """At least so many headings such as "Section 1"."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d++", text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole text is JSON, with or without one pair of code fences."""
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """A title within ``<<`` and ``>>`` on one line."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def two_responses(text: str) -> bool:
    """Two different answers with ``******`` between them."""
    parts = [part.strip() for part in text.split("******")]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(text: str, *, capital_frequency: float, capital_relation: str) -> bool:
    """Words with hyphens count once."""
    capital = sum(1 for word in _WORD_WITH_HYPHENS.finditer(text) if word.group().isupper())
    return _compare(capital, capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    return text.isupper()


def english_lowercase(text: str) -> bool:
    return text.islower()


def no_comma(text: str) -> bool:
    return "," not in text


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": keywords_existence,
    "keywords:frequency": keywords_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}


def count_words(text: str) -> int:
    return sum(1 for _ in re.finditer(r"\w++", text))


def count_sentences(text: str) -> int:
    """What follows the last end of a sentence is one, too."""
    text = text.strip()
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        following = text[end.end() : end.end() + 1]
        if following and not following.isspace() and end.group()[0] not in _WIDE_ENDS:
            continue
        if end.group() == ".":
            before = _LAST_WORD.search(text[max(start, end.start() - 20) : end.start()])
            word = before.group() if before else ""
            if word.lower() in _ABBREVIATIONS or (
                len(word) == 1 and word.isupper() and word != "I"
            ):
                continue
        count += bool(text[start : end.end()].strip(" \n\t\r.!?"))
        start = end.end()
    return count + bool(text[start:].strip())


def _compare(count: int, relation: str, threshold: float) -> bool:
    require(
        relation in ("at least", "less than"),
        f"A row's kwargs have the relation {relation!r}: write 'at least' or 'less than'.",
    )
    return count >= threshold if relation == "at least" else count < threshold
