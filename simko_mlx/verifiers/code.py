"""Runs the completion's Python in a sandbox against the problem's tests.

The code is that of the last fence marked ``python`` (the last one that defines a function that the
tests call, so that an example of its use may follow), or of the last unmarked one, or the whole
text. ``code_tests.py`` says what forms tests may have. Expected values stay out here: the program
gets arguments or standard input only, and what it sends back is compared with them as plain data,
True apart from 1. No output, exit code or comparison of its own can give it credit.

Off unless ``verifier.sandbox.enabled`` is true; docs/sandbox.md says what the sandbox promises.
Reward 1.0 where all tests pass, else 0.0, loops, bombs and crashes included; None where the tests
can't be read; a fault where the sandbox failed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from typing import Any

from simko_mlx.sandbox import run as sandboxes
from simko_mlx.sandbox.backend import Backend, choose
from simko_mlx.sandbox.limits import MEGABYTE, Limits
from simko_mlx.sandbox.run import Job, Outcome
from simko_mlx.sandbox.values import NotPlain, decode, encode
from simko_mlx.types import UserError, Verdict
from simko_mlx.verifiers import code_tests
from simko_mlx.verifiers.code_checks import Check, Unscorable
from simko_mlx.verifiers.code_tests import Calls, Scripts

_PYTHON = ("python", "python3", "py")
# Possessive: a line of 100,000 spaces would otherwise take minutes.
_FENCE = re.compile(r"[ \t]*+(`{3,}+)[ \t]*+([\w+-]*+)[^`]*+$")
_DECIMAL = re.compile(r"[+-]?\d{1,300}(\.\d{1,300})?([eE][+-]?\d{1,3})?", re.ASCII)
_TAKEN = 600


def verify(
    completion: str,
    answer: str,
    columns: Mapping[str, Any],
    *,
    tests: str | None = None,
    entry_point: str = "entry_point",
    wall_seconds: float = 5.0,
    cpu_seconds: float = 4.0,
    total_seconds: float = 9.0,
    memory_mb: int = 512,
    sandbox: Mapping[str, Any] | None = None,
) -> Verdict:
    """Judge one completion.

    Args:
        tests: dotted path of the column that holds the tests; None: the first of tests, test_list,
            test, input_output and test_cases that there is, else the answer.
        entry_point: the column with the name of the function that ``check(candidate)`` tests.
        wall_seconds: for one run: all calls of a function, or one case of standard input.
        cpu_seconds: of processor time for one run.
        total_seconds: for all runs together; keep it below verifier.timeout.
        memory_mb: for one run.
        sandbox: the config section verifier.sandbox.

    Raises:
        UserError: there is no sandbox, or it isn't enabled; an option makes no sense.
    """
    limits = _limits(wall_seconds, cpu_seconds, total_seconds, memory_mb)
    backend = _working(choose(sandbox))
    named = columns.get(entry_point)
    try:
        parsed = code_tests.parse(
            code_tests.find(columns, answer, tests), named if isinstance(named, str) else None
        )
    except Unscorable as error:
        return Verdict(None, False, str(error), _taken(extract(completion)))
    called = parsed.functions if isinstance(parsed, Calls) else ()
    code = extract(completion, called)
    taken = _taken(code)
    if not code.strip():
        return Verdict(0.0, False, "no code", taken)
    if isinstance(parsed, Scripts):
        return _judge_scripts(code, taken, parsed, backend, (limits, total_seconds))
    return _judge_calls(code, taken, parsed, backend, limits)


def _limits(wall: Any, cpu: Any, total: Any, memory: Any) -> Limits:
    given = {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "total_seconds": total,
        "memory_mb": memory,
    }
    for name, value in given.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        low = 64 if name == "memory_mb" else 0
        if not number or not low < value < 1e6:
            raise UserError(
                f"verifier.options.{name} is {value!r}: give a number greater than {low}."
            )
    return Limits(wall=wall, cpu=cpu, memory=int(memory * MEGABYTE))


@lru_cache(maxsize=8)
def _working(backend: Backend) -> Backend:
    """The backend, once a program has run in it."""
    sandboxes.check_works(backend)
    return backend


def extract(completion: str, functions: Sequence[str] = ()) -> str:
    """The code of a completion; ``functions`` are those that the tests call."""
    found: dict[bool, list[str]] = {True: [], False: []}  # by whether it is marked as Python
    fence, marked, lines = "", False, []
    for line in completion.split("\n"):
        match = _FENCE.match(line.rstrip("\r")) if "```" in line else None
        if not fence and match:
            fence, language, lines = match[1], match[2].lower(), []
            marked, other = language in _PYTHON, bool(language) and language not in _PYTHON
        elif fence and match and not match[2] and len(match[1]) >= len(fence):
            if not other:
                found[marked].append("\n".join(lines))
            fence = ""
        elif fence:
            lines.append(line)
    if fence and not other:  # cut off before its end
        found[marked].append("\n".join(lines))
    fences = found[True] or found[False] or [completion]
    return _defining([_dedent(code.removeprefix("\ufeff")) for code in fences], functions)


def _defining(fences: Sequence[str], functions: Sequence[str]) -> str:
    """The last of them that defines one of the functions, or else the last."""
    if len(fences) > 1 and functions:
        names = "|".join(map(re.escape, functions))
        definition = re.compile(
            rf"^(?:[ \t]*+(?:def|class)[ \t]++(?:{names})\b|(?:{names})[ \t]*+=(?!=))", re.M
        )
        return next((code for code in reversed(fences) if definition.search(code)), fences[-1])
    return fences[-1]


def _taken(code: str) -> str:
    return code if len(code) <= _TAKEN else code[: _TAKEN - 3] + "..."


def _dedent(code: str) -> str:
    """Code of a fence within a list is indented as a whole."""
    first = next((line for line in code.split("\n") if line.strip()), "")
    margin = first[: len(first) - len(first.lstrip(" \t"))]
    lines = code.split("\n")
    if not margin or not all(line.startswith(margin) or not line.strip() for line in lines):
        return code
    return "\n".join(line.removeprefix(margin) for line in lines)


def _judge_scripts(
    code: str, taken: str, tests: Scripts, backend: Backend, limits: tuple[Limits, float]
) -> Verdict:
    each, total = limits
    deadline = time.monotonic() + total
    spent = 0.0  # by the program itself; the rest is what it takes to start it
    for number, (given, expected) in enumerate(tests.cases, 1):
        if len(given.encode("utf-8", "surrogatepass")) > each.file_size:
            return Verdict(None, False, f"the input of case {number} is too large", taken)
        left = deadline - time.monotonic()
        if left <= 0:
            return _late(spent, (number - 1, len(tests.cases)), total, taken)
        run_limits = replace(
            each, wall=min(each.wall, left), output=each.output + 2 * len(expected)
        )
        outcome = sandboxes.run(Job(code, stdin=given), backend, run_limits)
        spent += outcome.seconds
        if outcome.status == sandboxes.TIMEOUT and left < each.wall:
            return _late(spent, (number - 1, len(tests.cases)), total, taken)
        if outcome.status != sandboxes.OK:
            return _failed(_controlled(outcome, backend), taken, f"case {number}")
        printed = outcome.stdout.decode("utf-8", "replace")
        if not prints(printed, expected):
            detail = f"wrong: case {number} printed {_short(printed)}, not {_short(expected)}"
            return Verdict(0.0, False, detail, taken)
    return Verdict(1.0, True, "", taken)


def _late(spent: float, cases: tuple[int, int], total: float, taken: str) -> Verdict:
    """All cases together took too long: that is the program's doing only if most of it was its."""
    if spent >= total / 2:
        return Verdict(0.0, False, f"timeout: more than {total:g} s for all cases", taken)
    done, count = cases
    detail = (
        f"only {done} of {count} cases could be run in {total:g} s, most of it spent on starting "
        "the program: raise verifier.options.total_seconds, and verifier.timeout above it"
    )
    return Verdict(None, False, detail, taken)


def prints(found: str, expected: str) -> bool:
    """Whether these are the same words on the same lines; where a decimal fraction is expected,
    any way to write the same number will do."""
    mine, wanted = found.strip().split("\n"), expected.strip().split("\n")
    if len(mine) != len(wanted):
        return False
    for line, other in zip(mine, wanted, strict=True):
        words, others = line.split(), other.split()
        if len(words) != len(others):
            return False
        if not all(_same_word(*pair) for pair in zip(words, others, strict=True)):
            return False
    return True


def _same_word(word: str, wanted: str) -> bool:
    if word == wanted:
        return True
    fraction = _DECIMAL.fullmatch(wanted) and not wanted.lstrip("+-").isdigit()
    return bool(fraction and _DECIMAL.fullmatch(word) and Decimal(word) == Decimal(wanted))


def _judge_calls(code: str, taken: str, tests: Calls, backend: Backend, limits: Limits) -> Verdict:
    try:
        expected = json.dumps([encode(check.expected) for check in tests.readings[0]])
    except RecursionError:
        return Verdict(None, False, "the tests are nested too deeply", taken)
    limits = replace(limits, output=limits.output + 2 * len(expected))
    job = Job(code, calls=tests.calls, typing=True)
    outcome = sandboxes.run(job, backend, limits)
    if outcome.status != sandboxes.OK:
        return _failed(_controlled(outcome, backend), taken)
    reason = ""
    for checks in tests.readings:
        reason = compare(outcome.records, checks)
        if not reason:
            return Verdict(1.0, True, "", taken)
    return Verdict(0.0, False, reason, taken)


def compare(records: list[dict[str, Any]], checks: tuple[Check, ...]) -> str:
    """Why these records, one for each check in order, don't pass; empty if they do."""
    for number, (record, check) in enumerate(zip(records, checks, strict=False), 1):
        if "error" in record:
            error = record["error"]
            error = error[:200] if isinstance(error, str) else "malformed"
            kind = "memory" if error.startswith("MemoryError") else "crashed"
            return f"{kind}: case {number}: {error}"
        if set(record) != {"value"}:
            return f"crashed: case {number}: malformed result"
        try:
            value = decode(record["value"])
        except (NotPlain, RecursionError) as error:
            return f"wrong: case {number} gave {str(error) or 'a deep structure'}"
        if not check.holds(value):
            return f"wrong: case {number} gave {_short(value)}, not {_wanted(check)}"
    if len(records) != len(checks):
        return f"crashed: {len(records)} results for {len(checks)} tests"
    return ""


def _wanted(check: Check) -> str:
    if check.how in ("truthy", "falsy"):
        return f"something {check.how}"
    return _short(check.expected) if check.how == "equal" else f"nearly {_short(check.expected)}"


def _controlled(outcome: Outcome, backend: Backend) -> Outcome:
    """A time-out is the machine's fault where a program that does nothing doesn't end well now."""
    if outcome.status == sandboxes.TIMEOUT:
        control = sandboxes.run(sandboxes.CONTROL, backend, Limits(wall=2.0))
        if control.status != sandboxes.OK:
            detail = f"not even an empty program ended well: {control.detail}"
            return Outcome(sandboxes.INFRA, detail)
    return outcome


def _failed(outcome: Outcome, taken: str, where: str = "") -> Verdict:
    """Of a run that didn't end well: the program's fault, or the sandbox's."""
    detail = ": ".join(part for part in (outcome.status, where, outcome.detail) if part)
    if outcome.status == sandboxes.INFRA:
        return Verdict(None, False, detail, taken, fault=True)
    return Verdict(0.0, False, detail, taken)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of very many digits
        text = "a very large number"
    return text if len(text) <= 60 else text[:57] + "..."
