"""Reading numbers and final answers out of model text. Every function is linear in its input.

Completions are untrusted: a megabyte of braces or digits, ``1e999999999`` and the like must cost
nothing. Hence the possessive quantifiers, and the bounds on what is turned into an integer.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 300  # of a numerator, a denominator or a power
MAX_LENGTH = 1000  # of a text that is read as one number
MAX_COMPLETION = 200_000  # characters at the end of a completion that are looked at
MAX_MARKERS = 50  # the last ones are looked at

_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|(?<!\.)\.[0-9]++)"
_NUMBER = (
    r"(?:(?P<whole>[0-9]++)[ ]{1,2}(?P<over>[0-9]++)/(?P<under>[0-9]++)(?![0-9/.])"
    rf"|(?P<top>{_DECIMAL})[ ]?/[ ]?(?P<bottom>{_DECIMAL})(?![0-9/])"
    rf"|(?:(?P<factor>{_DECIMAL})[ ]{{0,2}}(?:\\times|\\cdot|[*x\u00d7])[ ]{{0,2}})?"
    r"(?P<base>[0-9]++)[ ]?\^[ ]?(?:\{(?P<power>[+-]?[0-9]++)\}|(?P<digit>[+-]?[0-9]++))"
    rf"|(?P<plain>{_DECIMAL}(?:[eE][+-]?[0-9]++(?![A-Za-z]))?))"
)
_CURRENCY = "$\u20ac\u00a3\u00a5\u20b9"
_WHOLE_TEXT = re.compile(rf"(?P<sign>[+-]?)[ ]*+{_NUMBER}(?P<unit>.*+)", re.DOTALL)
# In running text a number doesn't follow a letter (x2), and isn't an exponent (m^2) or an index.
_IN_TEXT = re.compile(
    rf"(?:(?<![A-Za-z0-9_)\]}}%.^])(?P<sign>[+-])[{_CURRENCY}]?)?"
    rf"(?<!\^)(?<!\^\{{)(?<!_\{{)(?<![A-Za-z0-9_]){_NUMBER}"
)

_PART = r"(?:\{[ ]{0,4}([+-]?[0-9.,]{1,300}+)[ ]{0,4}\}|[ ]{0,4}([0-9]))"
_FRAC = re.compile(rf"\\[dtc]?frac{_PART}{_PART}")
TEXT = re.compile(
    r"\\(?:text(?:bf|rm|it|normal)?|mbox|hbox|mathrm|mathbf|operatorname)[ ]?\{([^{}]{0,200}+)\}"
    r"(?P<exponent>[ ]?\^[ ]?(?:\{[0-9]\}|[0-9]))?"
)
DEGREES = re.compile(r"\^[ ]?(?:\{[ ]?\\circ[ ]?\}|\\circ)|\\degree|\u00b0")
_DROPPED = re.compile(rf"[{_CURRENCY}%]|\\[()\[\]]|\\displaystyle(?![A-Za-z])")
# "x = 1 or x = 2" is no number, though it ends in one.
_SEVERAL = re.compile(r"(?:[,;]|\b(?:or|and)\b)[ ]{0,4}[A-Za-z]\w{0,20}+[ ]{0,4}=[^=]*+$")
_EQUALS = re.compile(r"(?<![<>!])=")
_LAST_WORDS = re.compile(r"(?:(?<=[0-9})])|(?<=\\pi))[ ][A-Za-z][A-Za-z0-9 /^{}-]{0,60}+$")
_UNIT = re.compile(r"[A-Za-z]+(?:[ /-][A-Za-z]+){0,6}[ ]?(?:\^\{?[23]\}?|[\u00b2\u00b3])?")

# A short word after a number is a unit only if it is one of these: "5 xy" is a product.
_SHORT_UNITS = frozenset(
    ["km", "cm", "mm", "kg", "mg", "ml", "lb", "oz", "ft", "in", "mi", "yd", "hr", "am", "pm"]
)
# Words that change the number, or make it one of several.
_NO_UNITS = frozenset(
    [
        *("hundred", "thousand", "million", "billion", "trillion", "dozen", "dozens", "score"),
        *("half", "halves", "and", "or", "to", "not", "plus", "minus", "times", "over", "mod"),
        *("pi", "sqrt", "root", "squared", "cubed", "choose", "factorial", "sin", "cos", "tan"),
        *("log", "exp"),
    ]
)

_BOX = re.compile(r"\\(?:boxed|fbox)[ ]{0,4}\{|\\.|[{}]", re.DOTALL)
_FORMULA = re.compile(
    r"[-+*/^<>]|[0-9] ?[A-Za-z]|\\(?:[dt]?frac|sqrt|sin|cos|tan|cot|sec|csc|log|ln|pi)(?![a-z])"
)
_OPEN_BOX = re.compile(r"\\(?:boxed|fbox)[ ]{0,4}\{")
_BARE_BOX = re.compile(r"\\boxed[ ]++([-+.0-9$\\][^\s{}]*+)")
_MARKER = re.compile(r"(#++)[ \t]*+((?:final[ \t]++)?answer\b[ \t]*+:?)?", re.IGNORECASE)


def boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}`` whose braces are balanced."""
    stack: list[int] = []  # for each open brace where the content starts, or -1 if it is no box
    start, end = -1, -1
    for token in _BOX.finditer(text):
        found = token.group()
        if found[-1] == "{" and len(found) != 2:
            stack.append(token.end() if len(found) > 2 else -1)
        elif found == "}" and stack and (opened := stack.pop()) > start:
            start, end = opened, token.start()
    if start >= 0:
        return text[start:end]
    bare = _last(_BARE_BOX, text)
    return bare[1] if bare else None


def tagged(text: str) -> str | None:
    """What stands in the last ``<answer>...</answer>``; None without one."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end].strip() if start >= 0 else None


def final(text: str) -> str:
    """The end of a completion, where its answer stands; of one that isn't absurdly long, all."""
    return text[-MAX_COMPLETION:]


def unfinished(text: str) -> bool:
    """Whether a completion without a box may not be searched for numbers: it broke off in one
    (of which it may have written half the answer), or is absurdly long."""
    return len(text) > MAX_COMPLETION or _OPEN_BOX.search(text) is not None


def short(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def marked(text: str) -> list[str]:
    """What follows each ``####`` or heading ``# Answer``: the rest of its line or the next one."""
    ends = [m.end() for m in _MARKER.finditer(text) if len(m.group(1)) >= 4 or m.group(2)]
    after = []
    for end in ends[-MAX_MARKERS:]:
        rest = text[end : end + 2 * MAX_LENGTH].lstrip()
        if rest:
            after.append(rest.split("\n", 1)[0].strip())
    return after


def last_number(text: str) -> Fraction | None:
    """The last number of a running text; None if there is none, or it is absurdly large."""
    found = last_number_text(text)
    match = _last(_IN_TEXT, found) if found else None
    return _value(match) if match else None


def last_number_text(text: str) -> str | None:
    """How the last number of a running text is written there."""
    match = _last(_IN_TEXT, _clean(text))
    return match[0] if match else None


def parse(text: str) -> Fraction | None:
    """The value of a text that is one number, with a unit or a currency at most."""
    if len(text) > MAX_LENGTH:
        return None
    text = TEXT.sub(_unit_dropped, _clean(text))
    text = _DROPPED.sub("", DEGREES.sub("", text))
    if _SEVERAL.search(text):
        return None
    text = _EQUALS.split(text)[-1].strip(" \t\r\n*_`").rstrip(".").rstrip()
    match = _WHOLE_TEXT.fullmatch(text)
    if match is None or not _is_unit(match["unit"]):
        return None
    return _value(match)


def parse_gold(text: str) -> Fraction | None:
    """As ``parse``, of a problem's answer: "x + 2y = 0" is no number there, "x = 0" is."""
    sides = _EQUALS.split(TEXT.sub(" ", text), maxsplit=1)
    return parse(text) if len(sides) == 1 or is_name(sides[0]) else None


def is_name(text: str) -> bool:
    """Whether the left side of an equation only names what the right side is: ``f(2)``, ``AB``, or
    has no letters at all."""
    return not _FORMULA.search(text) or not re.search("[A-Za-z]", text)


def without_unit(text: str) -> str:
    """An expression without the unit that may follow it; a time of day keeps its "p.m."."""
    if ":" in text:
        return TEXT.sub(lambda m: m[1], text).strip()
    bare = TEXT.sub(_unit_dropped, text).strip()
    if not bare:
        return TEXT.sub(lambda m: m[1], text).strip()
    words = _LAST_WORDS.search(bare)
    return bare[: words.start()] if words and _is_unit(words[0]) else bare


def plain(text: str) -> str:
    """A text to compare as it is: without white space and what LaTeX can do without."""
    text = text.replace("\u2212", "-").replace("{,}", ",")
    text = re.sub(r"\\\\|\\[!,;: ]|[\s~$]", lambda m: m[0] if m[0] == "\\\\" else "", text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])", "", text)
    text = TEXT.sub(lambda m: m[1] + (m["exponent"] or ""), text)
    text = DEGREES.sub("", re.sub(r"\\[dtc]frac", r"\\frac", text))
    text = re.sub(r"(?<!\\)\{([A-Za-z0-9])\}", r"\1", text.replace("\\%", "").replace("%", ""))
    text = text.rstrip(".")
    # Some data sets kept the braces of a \\text{...} that they took away.
    whole = re.fullmatch(r"\{([^{}]*)\}", text)
    return whole[1] if whole else text


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for found in pattern.finditer(text):
        match = found
    return match


def _clean(text: str) -> str:
    """One spelling of minus, thousands, spaces and fractions."""
    text = text.replace("\u2212", "-").replace("{,}", ",").replace("\\!", "")
    text = text.replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"(?<=[0-9])(?:\\,|[\u2009\u202f](?=[0-9]{3}(?![0-9])))(?=[0-9])", "", text)
    text = re.sub(r"\\[,;: ]|[~\u00a0\u202f]", " ", text)
    return _FRAC.sub(_ratio, text)


def _ratio(match: re.Match[str]) -> str:
    """``8\\frac{4}{7}`` becomes "8 4/7"; a sign stays next to its fraction."""
    top, bottom = match[1] or match[2], match[3] or match[4]
    space = "" if match.string[match.start() - 1 : match.start()] in ("-", "+") else " "
    return f"{space}{top.rstrip('.,')}/{bottom.rstrip('.,')} "


def _unit_dropped(match: re.Match[str]) -> str:
    inner = match[1]
    # The comma is what "or" in a text has become: "5 \\text{ or more}" isn't 5.
    words = re.sub(r"(?<=[A-Za-z])\^(?:[23]|\{[23]\})", "", inner)  # m/s^2
    harmless = not re.search("[0-9,]", words) and _NO_UNITS.isdisjoint(words.lower().split())
    return " " if harmless else inner


def _is_unit(text: str) -> bool:
    """Whether what follows a number may be ignored: nothing, or words after a space."""
    words = text.strip()
    if not words:
        return True
    if not text[0].isspace() or not _UNIT.fullmatch(words):
        return False
    names = re.findall("[A-Za-z]+", words.lower())
    first = names[0]
    return _NO_UNITS.isdisjoint(names) and (len(first) >= 3 or first in _SHORT_UNITS)


def _value(match: re.Match[str]) -> Fraction | None:
    """The number that was matched; None if it is a division by zero or beyond the bounds."""
    try:
        if match["whole"]:
            value = _decimal(match["whole"]) + _decimal(match["over"]) / _decimal(match["under"])
        elif match["top"]:
            value = _decimal(match["top"]) / _decimal(match["bottom"])
        elif match["base"]:
            value = _decimal(match["factor"] or "1")
            value *= _power(_decimal(match["base"]), match["power"] or match["digit"])
        else:
            value = _decimal(match["plain"])
    except (ValueError, ZeroDivisionError):
        return None
    return -value if match["sign"] == "-" else value


def _decimal(text: str) -> Fraction:
    """Raises ValueError for what would need more than MAX_DIGITS digits."""
    digits, _, exponent = text.replace(",", "").lower().partition("e")
    if len(digits) > MAX_DIGITS:
        raise ValueError("too many digits")
    value = Fraction(digits)
    return value * _power(Fraction(10), exponent) if exponent else value


def _power(base: Fraction, exponent: str) -> Fraction:
    sign, digits = exponent[0] == "-", exponent.lstrip("+-").lstrip("0") or "0"
    if len(digits) > 3 or len(str(base.numerator)) * int(digits) > 2 * MAX_DIGITS:
        raise ValueError("too large a power")
    return base ** (-int(digits) if sign else int(digits))
