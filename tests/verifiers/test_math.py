"""The math verifier: tables of pairs, rules over answers of MATH, what is taken as an answer."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from simko_mlx.types import UserError
from simko_mlx.verifiers.math import verify
from simko_mlx.verifiers.math_forms import EQUATION, LEAF, LIST, TUPLE, read
from tests.verifiers.math_cases import NEAR_MISSES, REWRITINGS, cases

REPOSITORY = Path(__file__).parents[2]
FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "math_answers.json").read_text("utf-8"))

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None,
    reason="math-verify, of the extra 'math', is not installed",
)

EQUAL = [
    # numbers
    ("1/2", r"\frac12"),
    (r"{1 \over 2}", "0.5"),
    ("2^{-1}", "1/2"),
    (r"1\frac{3}{4}", "1.75"),
    (r"-(-5)", "5"),
    ("(-1)(3)", "-3"),
    ("2(3)", "6"),
    (r"10{,}000\pi", r"10000\pi"),
    ("5 = x", "5"),
    ("x = 1/2 = 0.5", r"\frac{1}{2}"),
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    ("0.5", r"50\%"),
    (r"\frac12", r"50\%"),
    (r"30 \text{ degrees}", r"30^\circ"),
    (r"\frac{25\pi}{2} \text{ square units}", r"12.5\pi"),
    ("6:2", "3:1"),
    (r"0.\overline{3}", r"\frac13"),
    (r"\frac{7}{6}", r"1.1\overline{6}"),
    (r"9.8 \mathrm{m/s^2}", "9.8"),
    (r"\sin 30^\circ", r"\frac12"),
    (r"\cos(60°)", r"\frac12"),
    ("18\u202f000", "18000"),
    ("1011", "1011_2"),
    (r"1061_{9}", "1061_9"),
    # expressions
    ("2√3", r"\sqrt{12}"),
    ("2sqrt(3)", r"2\sqrt3"),
    (r"\frac{10}{\sqrt3}", r"\frac{10\sqrt{3}}{3}"),
    (r"\frac{-1-\sqrt5}{-2}", r"\frac{1 + \sqrt{5}}{2}"),
    (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
    ("4^{2475}", "2^{4950}"),
    ("2i+1", "1+2i"),
    (r"\frac{\sqrt3+i}{2}", r"\frac{\sqrt{3}}{2}+\frac12 i"),
    ("(a+b)^{-3}", r"\frac{1}{(a + b)^3}"),
    ("2.5x^2", r"\dfrac{5x^2}{2}"),
    ("3(x-2)(x+2)", "3x^2-12"),
    (r"30\sqrt{p^3}", r"30p \sqrt{p}"),
    (r"\cos x \cdot 2\sin 5x", r"2 \sin 5x \cos x"),
    (r"\tan(x/2)", r"\tan \frac{x}{2}"),
    (r"2^n/2", "2^{n - 1}"),
    (r"\sqrt{2}-\sqrt{2}", "0"),
    # lists and sets
    ("1, -1", "-1,1"),
    (r"x = \pm 1", "-1,1"),
    (r"\{-1, 1\}", "-1,1"),
    (r"x=2 \text{ or } x=3", "2,3"),
    (r"x \in \{3, 2\}", "2,3"),
    (r"3 \pm \sqrt{2}", r"3 + \sqrt{2}, 3 - \sqrt{2}"),
    (r"(2,15) \text{ and } (-4,27)", "(-4, 27);(2, 15)"),
    (r"\text{B and A}", r"\text{A, B}"),
    ("101,100", "100, 101"),
    # tuples and intervals
    (r"\left(3,\,1.5\right)", r"(3,\frac32)"),
    ("(x,y)=(3,4)", "(3,4)"),
    ("(6, 235)", r"(6,235^\circ)"),
    ("2{,}223, 4{,}510", "2223,4510"),
    (r"x<3 \text{ or } x>3", r"(-\infty, 3) \cup (3, \infty)"),
    (r"x \ne 3", r"(-\infty, 3) \cup (3, \infty)"),
    (r"\mathbb{R} \setminus \{3\}", r"(-\infty, 3) \cup (3, \infty)"),
    (r"\{x \mid x > 3\}", r"(3,\infty)"),
    (r"2 \ge x \ge -1", "[-1,2]"),
    (r"(-\infty,+\infty)", r"\mathbb{R}"),
    # matrices
    (r"\begin{bmatrix}0.5\\2/4\end{bmatrix}", r"\begin{pmatrix} 1/2 \\ \frac12 \end{pmatrix}"),
    (r"-\begin{pmatrix}3\\-4\end{pmatrix}", r"\begin{pmatrix} -3 \\ 4 \end{pmatrix}"),
    (r"\left[\begin{array}{c}1\\2\end{array}\right]", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    # equations
    ("2x-13", "y=2x-13"),
    ("y-2x=-13", "y=2x-13"),
    ("2y = 4x - 26", "y=2x-13"),
    (r"8r^2 \ge s^2", r"s^2 \le 8r^2"),
    # words
    ("C", r"\text{(C)}"),
    ("monday", r"\text{Monday}"),
    (r"\mathrm{odd}", "odd"),
]

DIFFERENT = [
    ("0.33", "1/3"),
    ("0.707107", r"\frac{\sqrt2}{2}"),
    (r"5\%", "0.5"),
    (r"0.5\%", r"50\%"),
    (r"5 \text{ or more}", "5"),
    (r"0.\overline{36}", r"0.3\overline{6}"),
    (r"\sin 60^\circ", r"\frac12"),
    (r"\frac{1}{2^{88}}", r"\frac{1}{2^{98}}"),
    ("2^{2008}+1", "2^{2008}"),
    (r"\frac{1}{0}", r"\infty"),
    (r"||\ln(7+\infty)||", r"\frac{\pi}{3}"),
    ("2", "2s"),
    ("2xy", "2x"),
    ("1-2i", "1+2i"),
    ("1011_3", "1011_2"),
    ("1:3", "3:1"),
    ("8:34 a.m.", r"8\!:\!34 \text{ p.m.}"),
    (r"\text{DBAC}", r"\text{CBAD}"),
    ("QLSX", "LQSX"),
    ("odd, even", r"\text{odd}"),
    ("2 or 3", "3"),
    ("x=2 or x=3", "3"),
    ("1", "-1,1"),
    ("1,2,1", "1,2"),
    ("(-1,1)", "-1,1"),
    ("3,4", "(3,4)"),
    (r"\{3,4\}", "(3,4)"),
    ("(4,3)", "(3,4)"),
    ("[3,4)", "(3,4)"),
    (r"x \ge 3", r"(3,\infty)"),
    (r"x \ne 4", r"(-\infty, 3) \cup (3, \infty)"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\begin{vmatrix} 1 \\ 2 \end{vmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("x=2x-13", "y=2x-13"),
    ("y=2x+13", "y=2x-13"),
    ("0", "x + 2y - 2z - 9 = 0"),
    (r"s^2 < 8r^2", r"s^2 \le 8r^2"),
    (r"s^2 \ge 8r^2", r"s^2 \le 8r^2"),
    ("9^{9^{9^9}}", "7"),
]


@needs_library
@pytest.mark.parametrize(("given", "answer"), EQUAL)
def test_equal(given, answer):
    verdict = verify(rf"so it is $\boxed{{{given}}}$.", answer, {})
    assert verdict.reward == 1.0 and verdict.correct


@needs_library
@pytest.mark.parametrize(("given", "answer"), DIFFERENT)
def test_different(given, answer):
    verdict = verify(rf"so it is $\boxed{{{given}}}$.", answer, {})
    assert verdict.reward == 0.0 and not verdict.correct
    assert verdict.taken == given and len(verdict.detail) < 200


@needs_library
def test_rewritings_are_accepted_and_near_misses_refused():
    """As benchmarks/verifiers.py does with all answers of MATH."""
    for rules, correct in ((REWRITINGS, True), (NEAR_MISSES, False)):
        found = cases(rules, FIXTURE["answers"], 150)
        assert {rule for rule, _, _ in found} == {rule.__name__ for rule in rules}
        wrong = [c for c in found if verify(rf"\boxed{{{c[2]}}}", c[1], {}).correct != correct]
        assert wrong == []


@needs_library
def test_reference_solutions_are_accepted():
    for solution in FIXTURE["solutions"]:
        assert verify(solution, solution, {}).correct, solution


@needs_library
@pytest.mark.parametrize(
    ("completion", "answer", "taken"),
    [
        (r"\boxed{x^2} no, \boxed{x^3}", "x^3", "x^3"),
        ("x^2\n#### x^3", "x^3", "x^3"),
        ("Answer: x^3\nas I said", "x^3", "x^3"),
        ("Answer: there are 3 of them.", "3", "3"),
        ("<think>It is 2, no.</think>\n<answer>x^3</answer>", "x^3", "x^3"),
        ("<think>$x$ is so.</think><answer>It is $x^3$.</answer>", "x^3", "x^3"),
        (r"<think>\boxed{x^3}</think><answer>1</answer>", "x^3", "x^3"),
        ("Answer: 12 square feet", "12", "12 square feet"),
        ("**Final Answer:** $x^3$", "x^3", "x^3"),
        ("The final answer is: $x^3$. I hope it is correct.", "x^3", "x^3"),
        (r"we have $x$, so \(x^3\).", "x^3", "x^3"),
        ("x^3", "x^3", "x^3"),
        ("there are 3 of them", "3", "3"),
    ],
)
def test_what_is_taken_as_the_answer(completion, answer, taken):
    verdict = verify(completion, answer, {})
    assert verdict.correct and verdict.taken == taken


@needs_library
def test_what_has_no_answer():
    assert verify("no idea at all", "3", {}).reward == 0.0
    assert verify(r"half of it: \boxed{3", "3", {}).reward == 0.0
    assert verify("3", r"there are $\boxed{}$ of them", {}).reward is None


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'simko-mlx\[math\]'"):
        verify("3", "3", {})


@needs_library
def test_plain_numbers_import_no_sympy():
    code = (
        "import sys; from simko_mlx.verifiers.math import verify\n"
        r"assert verify(r'\boxed{\frac12}', '0.5', {}).correct" + "\n"
        "assert not verify('it is 4', '0.5', {}).correct\n"
        "sys.exit(', '.join({'sympy', 'math_verify'} & set(sys.modules)) or 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@needs_library
def test_random_text_never_raises():
    rng = random.Random(0)
    pieces = [
        r"\frac",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ",",
        "^",
        "_",
        r"\sqrt",
        "x",
        "1",
        "0",
        r"\pm",
        "=",
        "<",
        r"\cup",
        r"\text{ or }",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        "&",
        r"\\",
        "%",
        "|",
        "!",
        r"\infty",
        "-",
        ".",
        ":",
        " ",
        "\ud800",
        r"\in",
        r"\ne",
        r"\setminus",
        r"\{",
        r"\}",
        r"\approx",
        "/",
        r"\over",
    ]
    for _ in range(400):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 20)))
        answer = rng.choice([*FIXTURE["answers"], text[: rng.randrange(1, 20)]])
        assert verify(rf"\boxed{{{text}}}", answer, {}).reward in (0.0, 1.0, None), text


def test_forms():
    def kind(text):
        return read(text)[0].kind, read(text)[0].text

    assert kind("(1,2]") == (TUPLE, "(]")
    assert kind(r"\langle 1, 2 \rangle") == (TUPLE, "()")
    assert kind(r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}") == (TUPLE, "matrix")
    assert kind("((x+1))") == (LEAF, "x+1")
    assert kind("y = 2x")[0] == EQUATION
    assert kind("1, 2")[0] == LIST
    assert [form.kind for form in read("1,234")] == [LIST, LEAF]
