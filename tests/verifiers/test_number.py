"""The number verifier: a table of cases, hostile input, and every row of a public data set."""

import time

import pytest

from simko_mlx.verifiers.exact import verify as exact
from simko_mlx.verifiers.number import verify
from simko_mlx.verifiers.numbers import boxed, last_number, parse

RIGHT = [
    # plain numbers, and where they stand
    ("18", "18"),
    ("The answer is 18.", "18"),
    ("first 3, then 15, so 18", "18"),
    ("3 + 15 = 18", "18"),
    ("18 apples", "18"),
    ("He pays $18.", "18"),
    ("It is the 18th.", "18"),
    ("\n\n  18  \n", "18"),
    ("**18**", "18"),
    ("thus (18)", "18"),
    ("答案是18。", "18"),
    # spellings of one value
    ("3.50", "3.5"),
    ("3.5", "3.50"),
    (".5", "0.5"),
    ("0.5", "1/2"),
    ("1/2", "0.5"),
    ("2/4", "1/2"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", "1/2"),
    (r"\dfrac{1}{2}", "0.5"),
    (r"\tfrac{3}{4}", "0.75"),
    (r"$-\frac{1}{2}$", "-0.5"),
    (r"\frac{-1}{2}", "-1/2"),
    (r"8\frac{4}{7}", r"\frac{60}{7}"),
    ("8 4/7", r"8\frac47"),
    (r"-8\frac47", "-60/7"),
    ("1,234", "1234"),
    ("1234", "1,234"),
    ("1,234,567.80", "1234567.8"),
    (r"21,\!000", "21000"),
    ("10{,}000", "10000"),
    (r"10\,000", "10000"),
    ("-5", "-5"),
    ("the result is -5.", "-5"),
    ("x = -5", "-5"),
    ("\u22125", "-5"),
    ("+5", "5"),
    ("1e3", "1000"),
    ("2.5E-3", "0.0025"),
    (r"\boxed{1.5 \times 10^{3}}", "1500"),
    (r"\boxed{2^{10}}", "1024"),
    ("10%", "10"),
    (r"10\%", "10"),
    (r"\boxed{10 \%}", r"10\%"),
    (r"\$18", "18"),
    ("$18.00", "18"),
    ("-$5", "-5"),
    ("007", "7"),
    ("0", "0"),
    ("0.0", "0"),
    ("-0", "0"),
    # the box
    (r"We get \boxed{18}, not 19.", "18"),
    (r"\boxed{17} no, \boxed{18}", "18"),
    (r"\boxed{\boxed{18}}", "18"),
    (r"\boxed{18 \text{ dollars}}", "18"),
    (r"\boxed{18\text{ m}^2}", "18"),
    (r"\boxed{\text{18}}", "18"),
    (r"\boxed{18 square feet}", "18"),
    (r"\boxed{18 km}", "18"),
    (r"\boxed{x = 18}", "18"),
    ("18", r"m\angle ABC = 18"),
    (r"\boxed{x+y = 18}", "18"),
    ("17 " * 100_000 + r"\boxed{18}", "18"),
    (r"\boxed{\$18}", "18"),
    (r"\boxed{50^\circ}", r"50^{\circ}"),
    (r"\boxed{50}", r"50^\circ"),
    (r"\boxed{20}", r"20\text{ miles}"),
    (r"\boxed 18", "18"),
    (r"\fbox{18}", "18"),
    (r"\boxed{18} but \boxed{1", "18"),
    (r"Let S = {1, 2. \boxed{18}", "18"),
    # the marker
    ("3 * 6 = 18\n#### 18", "18"),
    ("#### 18 dollars\nThat took 3 steps.", "18"),
    ("####18", "18"),
    ("#### $1,800.00", "1800"),
    ("#### **18**", "18"),
    ("#### Step 3: the total\nIt is 18.", "18"),
    ("# Answer\n\n18\n\nchecked 2 times", "18"),
    ("### Final answer: 18", "18"),
    ("#### 0\nafter 5 steps", "0"),
    # the answer as a solution
    ("18", "3 * 6 = <<3*6=18>>18\n#### 18"),
    ("18", r"so that it is \boxed{18}."),
    ("64", "80 - 16 = 64 square meters, # Answer\n\n64"),
    # text
    (r"\boxed{x^2+1}", "x^2 + 1"),
    (r"\boxed{x^{2} + 1}", "x^2+1"),
    (r"\boxed{\dfrac{\pi}{3}}", r"\frac{\pi}{3}"),
    (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\frac{\pi}{2})"),
    (r"\boxed{even}", r"\text{even}"),
    (r"#### (3, 4)", "(3,4)"),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("5x", "5x"),
    ("1e999999999", "1e999999999"),
    ("9" * 5000, "9" * 5000),
]

WRONG = [
    ("19", "18"),
    ("", "18"),
    ("no idea", "18"),
    ("18, 19", "18"),  # a list of guesses is its last one
    (" ".join(map(str, range(100))), "18"),
    (r"\boxed{17} The answer is 18", "18"),
    (r"\boxed{17, 18}", "18"),
    (r"\boxed{x = 17 \text{ or } x = 18}", "18"),
    (r"\boxed{x = 17, y = 18}", "18"),
    (r"half of it: \boxed{18", "18"),
    ("0", "x + 2y - 9 = 0"),
    (r"\boxed{18}" + "18 " * 100_000, "18"),
    (r"\boxed{17 \text{ or } 18}", "18"),
    (r"\boxed{17} \boxed{}", "17"),
    (r"\boxed{18} \boxed{17}", "18"),
    (r"\boxed{5x}", "5"),
    (r"\boxed{5\pi}", "5"),
    (r"\boxed{5 xy}", "5"),
    (r"\boxed{5 \text{ million}}", "5"),
    (r"\boxed{5 dozen}", "5"),
    (r"\boxed{x \geq 5}", "5"),
    (r"\boxed{\sqrt{5}}", "5"),
    ("#### 17\nor maybe 18", "18"),
    ("x18", "18"),
    ("-18", "18"),
    ("18", "-18"),
    ("0.333", "1/3"),
    ("1/0", "0"),
    ("18.000000000000000000001", "18"),
    ("nan", "18"),
    ("inf", "1e999999999"),
    ("1e999999999", "18"),
    ("the area is 18 m^2", "2"),
    (r"\boxed{x^2}", "x^2+1"),
    ("it is x^2+1 or so", "x^2+1"),
    (r"\boxed{\begin{pmatrix} 1 & 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
]


@pytest.mark.parametrize(("completion", "answer"), RIGHT)
def test_right(completion, answer):
    verdict = verify(completion, answer, {})
    assert verdict.reward == 1.0 and verdict.correct


@pytest.mark.parametrize(("completion", "answer"), WRONG)
def test_wrong(completion, answer):
    verdict = verify(completion, answer, {})
    assert verdict.reward == 0.0 and not verdict.correct
    assert len(verdict.detail) < 200


def test_a_problem_without_answer_is_unscorable():
    assert verify(r"\boxed{}", r"there are $\boxed{}$ of them", {}).reward is None


def test_parts():
    assert boxed(r"\boxed{a{b}\}c}") == r"a{b}\}c"
    assert boxed("}} no box {") is None
    assert parse("18 dollars per hour") == 18
    assert parse("18 3") is None
    assert parse("") is None
    assert last_number("10-5") == 5
    assert last_number("x_1 and y_{2}") is None


MEGABYTE = 1_000_000
HOSTILE = ["{", "}", "\\boxed{", "1", "1 ", "1,", "1,234", "#", "# ", "#### ", "#### 5\n", "1/",
           "1 1/", "\\frac{", "\\frac{1}{", "-", "$", "1^", "1 x ", "1e", "1e9", "\\text{", "\\",
           "^{", "\\boxed ", ".", "=5", "answer", "\0", "\ud800", "\u0661"]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_megabyte_takes_linear_time(piece):
    text = piece * (MEGABYTE // len(piece))
    start = time.process_time()
    for answer in ("7", "x^2+1"):
        assert not verify(text, answer, {}).correct
        assert not verify(text + "\\boxed{8}", answer, {}).correct
    assert time.process_time() - start < 30  # quadratic time would be hours


@pytest.mark.parametrize(
    "text", ["9" * 5000, "1" * MEGABYTE, "1e99999", "9^999999999", "2^{99999}"]
)
def test_huge_numbers_are_never_built(text):
    assert parse(text) is None
    assert last_number(text) is None


def test_every_answer_of_gsm8k_verifies_itself(shared_data):
    duckdb = pytest.importorskip("duckdb", reason="duckdb, of the extra 'data', is not installed")
    query = "SELECT reward_model.ground_truth, target FROM read_parquet(?)"
    rows = duckdb.execute(query, [str(shared_data / "gsm8k_train.parquet")]).fetchall()
    assert len(rows) == 8388
    refused = [
        answer
        for answer, solution in rows
        for text in (answer, solution)
        if not verify(text, answer, {}).correct
    ]
    assert refused == []


def test_every_solution_of_math_verifies_itself(shared_data):
    duckdb = pytest.importorskip("duckdb", reason="duckdb, of the extra 'data', is not installed")
    query = "SELECT reward_model.ground_truth.solution FROM read_parquet(?)"
    rows = duckdb.execute(query, [str(shared_data / "math_train.parquet")]).fetchall()
    verdicts = [verify(solution, solution, {}) for (solution,) in rows]
    assert sum(verdict.correct for verdict in verdicts) == len(rows) - 2
    assert sum(verdict.reward is None for verdict in verdicts) == 2  # their box is empty


def test_exact():
    assert exact(" Paris\n", "Paris", {}).reward == 1.0
    assert exact("paris", "Paris", {}).reward == 0.0
