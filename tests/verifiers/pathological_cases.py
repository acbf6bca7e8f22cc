"""Completions that would hang, blow up or fool a careless verifier; 7 is the answer to none."""

from __future__ import annotations

MEGABYTE = 1_000_000


def boxed(text: str) -> str:
    return rf"so it is \boxed{{{text}}}"


def nested(before: str, inner: str, after: str, depth: int) -> str:
    return before * depth + inner + after * depth


MATRIX = r"\begin{pmatrix}" + r"\\".join("&".join("7" * 100) for _ in range(100)) + r"\end{pmatrix}"

CASES = {
    # towers of powers, and what else is a huge number
    "tower": boxed("9^{9^{9^9}}"),
    "tower of letters": boxed("x^{x^{x^{x^{9^{9^9}}}}}"),
    "power of a power": boxed("((((9^{999})^{999})^{999})^{999})"),
    "power with parentheses": boxed("9^{(9^{(9^{(9)})})}"),
    "exponential tower": boxed("e^{e^{e^{e^{e^{e}}}}}"),
    "exp of exp": boxed(r"\exp(\exp(\exp(\exp(\exp(9)))))"),
    "exponent as a fraction": boxed(r"2^{\frac{10^{12}}{3}}"),
    "tiny": boxed("10^{-99999}"),
    "root of a tower": boxed(r"\sqrt[9^{9^9}]{2^{9^{9^9}}}"),
    "factorial": boxed("999999999!"),
    "factorials of factorials": boxed("((((9!)!)!)!)!"),
    "factorial of factorial": boxed("9!!!!!!!!!"),
    "binomial": boxed(r"\binom{999999999}{499999999}"),
    "sine of a huge number": boxed("\\sin(10^{100000})"),
    "scientific": boxed("1e999999999"),
    "million digits": boxed("7" * MEGABYTE),
    "million digits in text": "it is " + "7" * MEGABYTE,
    "million decimals": boxed("7." + "0" * MEGABYTE + "1"),
    "continued product": boxed(r"\cdot ".join(["9^{999}"] * 40)),
    "sum to infinity": boxed(r"\sum_{k=1}^{10^{100}} \frac{1}{k}"),
    "integral": boxed(r"\int_0^{\infty} e^{-x^x} dx"),
    "limit": boxed(r"\lim_{x\to 0} \frac{\sin(\sin(\sin x))}{x}"),
    # nesting
    "nested fractions": boxed(nested(r"\frac{1}{1+", "7", "}", 1000)),
    "nested roots": boxed(nested(r"\sqrt{", "7", "}", 1000)),
    "parentheses": boxed(nested("(", "7", ")", 100_000)),
    "parentheses in text": nested("(", "8", ")", 100_000),
    "open parentheses": boxed("(" * 100_000),
    "braces": boxed(nested("{", "8", "}", 100_000)),
    "nested sets": boxed(nested(r"\{", "8", r"\}", 10_000)),
    "nested texts": boxed(nested(r"\text{", "8", "}", 10_000)),
    "nested boxes": nested(r"\boxed{", "8", "}", 100_000),
    "absolute values": boxed("|" * 280),
    "minus signs": boxed("-" * 299 + "7"),
    "sines": boxed(r"\sin " * 50 + "x"),
    # length
    "megabytes": "The answer is near. " * (3 * MEGABYTE // 20),
    "commas": boxed("," * MEGABYTE),
    "commas and digits": boxed("1," * 500_000),
    "list of a thousand": boxed(", ".join(f"x={n}" for n in range(200))),
    "matrix of 10,000 cells": boxed(MATRIX),
    "boxes": r"\boxed" * 100_000,
    "full boxes": r"\boxed{8}" * 100_000,
    "unclosed boxes": r"\boxed{7" * 100_000,
    "equations": boxed("x=" * 1000 + "8"),
    "plus and minus": boxed(r"\pm " * 900),
    # characters
    "control characters": boxed("".join(map(chr, range(32))) * 1000),
    "surrogates": boxed("\ud800" * 1000),
    "unicode digits": boxed("\u0667"),  # a seven in another script
    "superscripts": boxed("\u2077"),
    "combining marks": boxed("7" + "\u0301" * 100_000),
    # bait for backtracking
    "dollars": "$" * 100_000,
    "dollars and spaces": "answer is " + "$ $ " * 50_000,
    "spaces": "Answer:" + " " * MEGABYTE + "x",
    "answers": "answer " * 100_000,
    "markers": "####\n" * 100_000,
    "open brackets": r"\[ \( " * 50_000,
    "backslashes": boxed("\\" * 100_001 + " "),
}
