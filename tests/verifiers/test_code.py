"""The verifier code without any sandbox: what it takes, how it reads tests, what it believes."""

from __future__ import annotations

import json
import math

import pytest

from simko_mlx.config import VerifierConfig
from simko_mlx.sandbox import run as runs
from simko_mlx.sandbox.backend import Backend
from simko_mlx.sandbox.run import Call, Outcome
from simko_mlx.sandbox.values import encode
from simko_mlx.types import UserError, Verdict
from simko_mlx.verifiers import code, parts_of
from simko_mlx.verifiers.code import extract, prints, verify
from simko_mlx.verifiers.code_asserts import read
from simko_mlx.verifiers.code_checks import Check, Unscorable
from simko_mlx.verifiers.code_tests import Calls, Scripts, find, parse

ONE = {"tests": ["assert f(1) == 2"]}
_DEEP: list = [1]
for _ in range(150):
    _DEEP = [_DEEP]


@pytest.fixture
def sandbox(monkeypatch):
    """A sandbox that answers what the test tells it to; it notes what it was given."""

    class Fake:
        answers: list[Outcome]
        jobs: list[runs.Job]
        limits: list

        def says(self, *answers):
            self.answers, self.jobs, self.limits = list(answers), [], []

    fake = Fake()

    def run(job, backend, limits):
        fake.jobs.append(job)
        fake.limits.append(limits)
        return fake.answers.pop(0)

    backend = Backend("linux", "", "", "")
    monkeypatch.setattr(code, "choose", lambda section: backend)
    monkeypatch.setattr(code, "_working", lambda backend: backend)
    monkeypatch.setattr(code.sandboxes, "run", run)
    return fake


def gave(*values) -> Outcome:
    return Outcome("ok", records=[{"value": encode(value)} for value in values])


# what is taken


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1"),
        ("a\n```python\nx = 1\n```\nb\n```python\ny\n```\nc", "y"),
        ("```py\nx\n```", "x"), ("```Python3\nx\n```", "x"), ("``` python \nx\n```", "x"),
        ("```python\nx\n```\n```\noutput\n```", "x"),
        ("```\nx\n```", "x"),
        ("```python\nx\n```\n```bash\nls\n```", "x"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("```python\nx = 1", "x = 1"),  # cut off
        ("```python\nx\n```\n```python\ny", "y"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("1. So:\n   ```python\n   def f():\n       return 1\n\n   ```",
         "def f():\n    return 1\n"),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1\r"),
        ("```python\n```", ""), ("", ""),
        ("```python\ndef f(): ...\n```\n```python\nf()\n```", "f()"),
        ("x = '```'", "x = '```'"),
    ],
)  # fmt: skip
def test_the_code_of_a_completion(text, taken):
    assert extract(text) == taken


@pytest.mark.parametrize(
    ("first", "last", "taken"),
    [
        ("def f(n): ...", "f(1)", "first"), ("f = g", "print(f == g)", "first"),
        ("class Solution:\n  def f(n): ...", "Solution().f(1)", "first"),
        ("def f(n): ...", "def f(n): return 1", "last"), ("def ff(n): ...", "f(1)", "last"),
        ("def f(n): ...", "assert (\nf == g)\ng(\n  f=1)", "first"), ("x = 1", "y", "last"),
    ],
)  # fmt: skip
def test_an_example_of_its_use_may_follow_the_code(first, last, taken):
    text = f"```python\n{first}\n```\nSo:\n```python\n{last}\n```"
    assert extract(text, ("g(", "f")) == {"first": first, "last": last}[taken]


@pytest.mark.parametrize("inner", [" " * 300_000, "a" * 300_000, "`" * 9 + " " * 300_000])
def test_no_line_is_too_much(inner):
    text = f"```{inner}`"
    assert extract(text) == text  # takes some minutes, if it goes back for each character


@pytest.mark.parametrize(
    "text", ["`" * 1_000_000, "```\n" * 300_000, "```python\n" * 100_000, "\ud800\0" * 500_000]
)
def test_no_text_is_too_much(text):
    assert extract(text) in text


def test_taken_is_shortened(sandbox):
    sandbox.says(gave(2))
    verdict = verify("```python\n" + "x = 1\n" * 1000 + "```", "", ONE)
    assert verdict.taken is not None and len(verdict.taken) == 600
    assert verdict.taken.endswith("...")


# how tests are read


@pytest.mark.parametrize(
    ("text", "call", "expected"),
    [
        ("assert f(1, [2, 'x'], b={'k': (1,)}) == None",
         Call("f", (1, [2, "x"]), {"b": {"k": (1,)}}), None),
        ("assert 3 == f()", Call("f"), 3),
        ("assert f(-1.5, +2) == -3j, 'message'", Call("f", (-1.5, 2)), -3j),
        ("assert f({1, 2}, set(), set([1])) == frozenset((1,))",
         Call("f", ({1, 2}, set(), {1})), frozenset({1})),
        ("assert f(10**9 + 7, [0] * 3, 'ab' * 2) == 1 / 2",
         Call("f", (10**9 + 7, [0, 0, 0], "abab")), 0.5),
        ("assert f(float('inf'), math.pi) == (1, (2,))",
         Call("f", (math.inf, math.pi)), (1, (2,))),
        ("assert f(list(range(3))) == True", Call("f", ([0, 1, 2],)), True),
        ("assert f(1) is None", Call("f", (1,)), None),
        ("assert Solution().f(1) == 2", Call("f", (1,)), 2),
        ("assert set([1]) == f(2)", Call("f", (2,)), {1}),
        ("assert sum(10, 15) == 6", Call("sum", (10, 15)), 6),
        ("assert 6 == max([1, 2])", Call("max", ([1, 2],)), 6),
        ("import math\n'''doc'''\nx = [1, 2]\nassert f(x) == x", Call("f", ([1, 2],)), [1, 2]),
        ("assert (f(1) == \"it's\")", Call("f", (1,)), "it's"),
        ("assert f(b'\\x00') == b'a'", Call("f", (b"\0",)), b"a"),
    ],
)  # fmt: skip
def test_asserts(text, call, expected):
    assert read(text) == [Check(call, expected)]


def test_a_text_holds_several_asserts():
    checks = read("assert f(1) == 2\nassert f(2) == 3 and g(1) == 1\n# end")
    assert [(check.call.function, check.expected) for check in checks] == [
        ("f", 2), ("f", 3), ("g", 1),
    ]  # fmt: skip


def test_asserts_about_truth_and_what_stands_around():
    truthy, falsy, around = read("assert f(1)\nassert not f(2)\nassert set(f(3)) == set([1])")
    assert (truthy.how, falsy.how) == ("truthy", "falsy")
    assert truthy.call.wanted == falsy.call.wanted == "bool"
    assert truthy.holds([1]) and not truthy.holds([]) and falsy.holds(0) and not falsy.holds("x")
    assert around.wrappers == ("set",) and around.call.wanted == "list"
    assert around.holds([1, 1]) and not around.holds([1, 2]) and not around.holds(5)
    (length,) = read("assert len(sorted(f(3))) == 2")
    assert length.wrappers == ("len", "sorted") and length.holds([2, 1]) and not length.holds([1])


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("assert abs(f(1) - 0.5) < 1e-6", [0.5, 0.5000001], [0.6, True, "0.5", None, math.nan, 1j]),
        ("assert abs(0.5 - f(1)) <= 0.5", [0, 1, 1.0], [1.1, -0.1, math.inf, 10**400]),
        ("assert math.isclose(f(1), 100, rel_tol=0.01)", [99.5, 100], [98, [100], math.nan]),
        ("assert isclose(1e-9, f(1), abs_tol=1e-8)", [0, 1e-9], [1e-7]),
    ],
)
def test_asserts_about_nearness(text, near, far):
    (check,) = read(text)
    assert all(check.holds(value) for value in near)
    assert not any(check.holds(value) for value in far)


@pytest.mark.parametrize(
    "text",
    [
        "assert f(x) == 1", "assert f(g(1)) == 1", "assert f(1) == g(1)", "assert f(1) != 2",
        "assert f(1) > 0", "assert 1 < f(1) < 3", "assert f(1) in (1, 2)", "assert f(*[1]) == 1",
        "assert f(**{}) == 1", "assert all(f(i) == i for i in range(3))", "assert f(1).x == 2",
        "assert f(1)[0] == 2", "assert obj.f(1) == 2", "assert f(1) == 2 or f(1) == 3",
        "for i in range(3):\n    assert f(i) == i", "x, y = 1, 2", "print(f(1))", "del f",
        "def f(n): return 1\nassert f(1) == 1", "assert f(10 ** 10 ** 10) == 1",
        "assert f('a' * 10 ** 9) == 1", "assert f(list(range(10 ** 9))) == 1",
        "assert f(1 << 10 ** 9) == 1", "assert f('%9999999999d' % 1) == 1", "assert f(...) == 1",
        "assert f(bytes(10 ** 9)) == b''", "assert f(1 / 0) == 1", "assert f([] + 1) == 1",
        "assert f(open('x')) == 1", "assert f(__import__('os')) == 1", "assert f(1) is 5",
        "assert abs(f(1) - 2) > 1", "assert False", "assert f(f'{1}') == 1",
        "import math\nassert math.isclose(f(1), 1, rel_tol=-1)", "with x: pass",
        "assert (f(1) == 1, 'always true')",
    ],
)  # fmt: skip
def test_asserts_of_another_form_judge_nothing(text):
    with pytest.raises(Unscorable, match="can't be read as"):
        read(text)


@pytest.mark.parametrize("text", ["assert f(1) ==", "\0", "assert " + "(" * 500, "x" + "+x" * 9999])
def test_what_is_no_python_judges_nothing(text):
    with pytest.raises(Unscorable):
        read(text)


def test_humaneval_names_its_candidate():
    text = "METADATA = {'a': x}\ndef check(candidate):\n    assert candidate(1) == 2\ncheck(g)\n"
    assert read(text, "g") == [Check(Call("g", (1,)), 2)]
    with pytest.raises(Unscorable, match="entry_point"):
        read(text)
    assert isinstance(parse(text, "g"), Calls)


def test_cases_of_standard_input():
    wanted = Scripts((("1\n", "2"), ("a\nb", "3\n4")))
    cases = [{"input": "1\n", "output": "2"}, {"input": ["a", "b"], "output": [3, 4]}]
    pairs = {"inputs": ["1\n", ["a", "b"]], "outputs": ["2", [3, 4]]}
    for value in (cases, pairs, json.dumps(cases), json.dumps(pairs), f" \n{json.dumps(pairs)}"):
        assert parse(value) == wanted
    assert parse({**pairs, "fn_name": None}) == wanted
    assert parse({"input": "x", "output": "y"}) == Scripts((("x", "y"),))


def test_calls_in_json():
    tests = parse({"fn_name": "f", "inputs": [[1, [2]], [[]]], "outputs": [3, None]})
    assert isinstance(tests, Calls) and len(tests.readings) == 1
    assert tests.calls == (Call("f", (1, [2])), Call("f", ([],)))
    as_text = parse({"fn_name": "f", "inputs": ['1\n"x"'], "outputs": ["[1]"]})
    assert isinstance(as_text, Calls) and as_text.calls == (Call("f", (1, "x")),)
    wrapped, text, bare = as_text.readings
    assert (wrapped[0].expected, text[0].expected, bare[0].expected) == ([1], "[1]", 1)


def test_digits_in_a_text_are_a_text_or_a_number():
    tests = parse({"fn_name": "f", "inputs": [[1], [2]], "outputs": ["12", "a"]})
    assert isinstance(tests, Calls)
    assert [[c.expected for c in checks] for checks in tests.readings] == [[12, "a"], ["12", "a"]]


@pytest.mark.parametrize("name", ["Solution().f", "Solution.f", "f"])
def test_a_method_is_found_by_its_name(name):
    (check,) = read("def check(candidate):\n    print\n    assert candidate(1) == 2", name)
    assert check == Check(Call("f", (1,)), 2)


@pytest.mark.parametrize(
    "value",
    [
        "assert f(range(3)) == 3", "assert f(3) == range(3)", "assert f([range(3)]) == 1",
        "assert f(a=range(2)) == 1", {"fn_name": "f", "inputs": [[_DEEP]], "outputs": [1]},
        {"fn_name": "f", "inputs": [[1]], "outputs": [_DEEP]},
    ],
)  # fmt: skip
def test_values_that_cannot_be_carried_judge_nothing(value):
    with pytest.raises(Unscorable, match=r"a value in the tests is a .*no plain data"):
        parse(value)


@pytest.mark.parametrize(
    "value",
    [
        "", "[]", "{}", [], {}, None, 5, "{not json", "[" * 100_000, [1], ["assert f(1) == 1", 2],
        {"inputs": [], "outputs": []}, {"inputs": [1], "outputs": []}, {"inputs": 1, "outputs": 2},
        {"fn_name": "f", "inputs": [5], "outputs": [1]}, [{"input": "x"}], ["import math"],
        {"fn_name": "f", "inputs": ["no json"], "outputs": [1]},
        [{"input": "x", "output": {"a": 1}}],
        [{"input": "1", "output": "1", "testtype": "functional"}],
    ],
)  # fmt: skip
def test_tests_of_no_known_form_judge_nothing(value, sandbox):
    with pytest.raises(Unscorable):
        parse(value)
    verdict = verify("x", "answer", {"tests": value or ["import math"]})
    assert (verdict.reward, verdict.correct, verdict.fault) == (None, False, False)
    assert verdict.detail


def test_where_tests_are_found():
    assert find({"test_list": ["a"], "x": 1}, "answer", None) == ["a"]
    assert find({"tests": []}, "answer", None) == "answer"
    assert find({"a": {"b": [0, "t"]}}, "", "a.b.1") == "t"
    assert find({"a.b": "t"}, "", "a.b") == "t"
    for path in ("z", "a.z", "a.b.9", "a.b.x"):
        with pytest.raises(UserError, match=r"verifier\.options\.tests"):
            find({"a": {"b": [1]}}, "", path)


# what is believed


def test_right_and_wrong(sandbox):
    sandbox.says(gave(2))
    assert verify("x = 1", "", ONE) == Verdict(1.0, True, "", "x = 1")
    for value in (3, "2", [2], None, True, 2j, math.nan):
        sandbox.says(gave(value))
        verdict = verify("x = 1", "", ONE)
        assert (verdict.reward, verdict.correct) == (0.0, False)
        assert verdict.detail.startswith("wrong: case 1 gave")


@pytest.mark.parametrize(
    "records",
    [
        [], [{"value": 2}] * 2, [{}], [{"value": 2, "correct": True}], [{"error": "x"}],
        [{"value": {"x": "Liar"}}], [{"value": {"no": 1}}], [{"value": [[[2]]]}],
        [{"error": ["x"] * 1000}], [{"value": {"i": "2"}, "error": 1}], [{"error": None}],
        [{"reward": 1}],
    ],
)  # fmt: skip
def test_records_that_are_not_one_right_value_each(sandbox, records):
    sandbox.says(Outcome("ok", records=records))
    verdict = verify("x", "", ONE)
    assert (verdict.reward, verdict.correct, verdict.fault) == (0.0, False, False)
    assert len(verdict.detail) < 400


def test_one_reading_of_expected_values_must_hold_throughout(sandbox):
    columns = {"tests": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2]]}}
    for values, reward in ((([1], [2]), 1.0), ((1, 2), 1.0), (([1], 2), 0.0), ((1, [2]), 0.0)):
        sandbox.says(gave(*values))
        assert verify("x", "", columns).reward == reward


@pytest.mark.parametrize("status", ["timeout", "memory", "output", "crashed"])
def test_what_a_program_causes_is_worth_nothing(sandbox, status):
    for columns in (ONE, {"tests": [{"input": "", "output": "1"}]}):
        # Even if all that it said is right.
        sandbox.says(Outcome(status, "why", b"1", [{"value": 2}]), gave(1))
        verdict = verify("x", "", columns)
        assert (verdict.reward, verdict.correct, verdict.fault) == (0.0, False, False)
        assert verdict.detail.startswith(status) and verdict.detail.endswith("why")


def test_what_the_sandbox_causes_is_no_reward_at_all(sandbox):
    for columns in (ONE, {"tests": [{"input": "", "output": "1"}]}):
        sandbox.says(Outcome("infra", "why", b"1", [{"value": 2}]))
        verdict = verify("x", "", columns)
        assert (verdict.reward, verdict.correct, verdict.fault) == (None, False, True)
        assert "why" in verdict.detail


def test_a_time_out_that_an_empty_program_hits_too_is_the_machines(sandbox):
    for columns in (ONE, {"tests": [{"input": "", "output": "1"}]}):
        for control in ("timeout", "infra", "crashed"):
            sandbox.says(Outcome("timeout", "5 s"), Outcome(control, "busy"))
            verdict = verify("x", "", columns)
            assert (verdict.reward, verdict.correct, verdict.fault) == (None, False, True)
            assert "busy" in verdict.detail


def test_scripts_stop_at_the_first_wrong_case(sandbox):
    columns = {"tests": [{"input": str(i), "output": str(i)} for i in range(4)]}
    sandbox.says(Outcome("ok", stdout=b"0\n"), Outcome("ok", stdout=b"7\n"))
    verdict = verify("x", "", columns)
    assert verdict == Verdict(0.0, False, "wrong: case 2 printed '7\\n', not '1'", "x")
    sandbox.says(*(Outcome("ok", stdout=b"%d" % i) for i in range(4)))
    assert verify("x", "", columns).correct
    assert [job.stdin for job in sandbox.jobs] == ["0", "1", "2", "3"]


def test_the_program_is_told_nothing_of_what_is_expected(sandbox):
    sandbox.says(gave(987654321))
    verify("x", "13572468", {"tests": ["assert f(1) == 987654321"], "secret": 24681357})
    request = json.dumps(sandbox.jobs[0].request())
    assert "[1]" in request
    assert not any(text in request for text in ("987654321", "13572468", "24681357"))
    sandbox.says(Outcome("ok"))
    verify("x", "13572468", {"tests": [{"input": "1", "output": "987654321"}]})
    assert "987654321" not in json.dumps(sandbox.jobs[0].request())


def test_expected_values_make_room_for_results(sandbox):
    wanted = list(range(100_000))
    sandbox.says(gave(wanted))
    columns = {"tests": {"fn_name": "f", "inputs": [[1]], "outputs": [wanted]}}
    assert verify("x", "", columns).correct
    assert sandbox.limits[0].output > 1_000_000


def test_all_cases_together_have_a_time_limit(sandbox, monkeypatch):
    now, own = [100.0], 4.0
    monkeypatch.setattr(code.time, "monotonic", lambda: now[0])

    def run(job, backend, limits):
        now[0] += 4.0
        sandbox.limits.append(limits)
        return Outcome("ok", stdout=b"1", seconds=own)

    monkeypatch.setattr(code.sandboxes, "run", run)
    sandbox.limits = []
    verdict = verify("x", "", {"tests": [{"input": "", "output": "1"}] * 9})
    assert verdict.reward == 0.0 and verdict.detail.startswith("timeout: more than 9 s")
    assert [limits.wall for limits in sandbox.limits] == [5.0, 5.0, 1.0]
    own = 0.01  # the rest went into starting the program, which is not to blame for it
    verdict = verify("x", "", {"tests": [{"input": "", "output": "1"}] * 9})
    assert (verdict.reward, verdict.correct, verdict.fault) == (None, False, False)
    assert verdict.detail.startswith("only 3 of 9 cases") and "total_seconds" in verdict.detail


@pytest.mark.parametrize(("own", "reward"), [(0.01, None), (3.9, 0.0)])
def test_a_case_cut_short_by_the_limit_for_all(sandbox, monkeypatch, own, reward):
    now = [100.0]
    monkeypatch.setattr(code.time, "monotonic", lambda: now[0])

    def run(job, backend, limits):
        now[0] += 4.0
        return Outcome("ok" if limits.wall == 5.0 else "timeout", stdout=b"1", seconds=own)

    monkeypatch.setattr(code.sandboxes, "run", run)
    verdict = verify("x", "", {"tests": [{"input": "", "output": "1"}] * 9})
    assert (verdict.reward, verdict.fault) == (reward, False)
    assert ("only 2 of 9 cases" in verdict.detail) == (reward is None)


@pytest.mark.parametrize("text", ["", "  \n", "```python\n```", "```python\n\n"])
def test_no_code_runs_nothing(sandbox, text):
    sandbox.says()
    assert verify(text, "", ONE).detail == "no code" and verify(text, "", ONE).reward == 0.0


@pytest.mark.parametrize(
    ("found", "expected", "yes"),
    [
        ("1\n", "1", True), ("1 2\n3", "1  2 \n3\n\n", True), ("\n1", "1", True), ("", "", True),
        ("1\r\n2\r\n", "1\n2", True), ("0.5", "0.50", True), ("5e-1", "0.5", True),
        ("1", "1.0", True), ("1.0", "1", False), ("01", "1", False), ("1 2", "1\n2", False),
        ("1", "2", False), ("", "1", False), ("1\n2", "1", False), ("a", "A", False),
        ("nan", "nan", True), ("inf", "1.0", False), ("0.5000001", "0.5", False),
        ("1e999999999999", "1.5", False), ("٠.٥", "0.5", False), ("12", "1 2", False),
        ("0.1" + "0" * 10_000, "0.1", False), ("yes", "yes\n", True), ("1_0.0", "10.0", False),
    ],
)  # fmt: skip
def test_what_counts_as_the_same_output(found, expected, yes):
    assert prints(found, expected) is yes


# settings


def test_it_is_in_the_table_with_its_options():
    options = {"tests": "t", "entry_point": "e", "wall_seconds": 1, "cpu_seconds": 1}
    options |= {"total_seconds": 1, "memory_mb": 128}
    parts_of(VerifierConfig("code", options))
    with pytest.raises(UserError, match="sandbox"):
        parts_of(VerifierConfig("code", {"sandbox": {"enabled": True}}))


@pytest.mark.parametrize("name", ["wall_seconds", "cpu_seconds", "total_seconds", "memory_mb"])
@pytest.mark.parametrize("value", [0, -1, "5", None, True, math.nan, math.inf])
def test_options_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=rf"verifier\.options\.{name}"):
        verify("x", "", ONE, **{name: value}, sandbox={"enabled": True})


def test_without_consent_nothing_runs(monkeypatch):
    monkeypatch.setattr(code.sandboxes, "start", None)
    for section in (None, {}, {"enabled": False, "uid": 5}):
        with pytest.raises(UserError, match=r"verifier\.sandbox\.enabled: true"):
            verify("print(1)", "", ONE, sandbox=section)
