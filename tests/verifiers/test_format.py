"""Tags: each once, in order, with nothing outside."""

from __future__ import annotations

import pytest

from simko_mlx.types import UserError
from simko_mlx.verifiers.exact import verify as exact
from simko_mlx.verifiers.format import verify
from tests.verifiers.hostile import HOSTILE


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("<think>hm</think><answer>4</answer>", None),
        ("\n<think>a < b\n</think>\n\n<answer> 4 </answer>\n", None),
        ("<think>hm</think><answer>4</answer> ok", "text after the last tag"),
        ("So <think>hm</think><answer>4</answer>", "text before <think>"),
        ("<think>hm</think> so <answer>4</answer>", "text before <answer>"),
        ("<answer>4</answer><think>hm</think>", "text before <think>"),
        ("<think>hm<answer>4</answer></think>", "<answer> is out of order"),
        ("</think>hm<think><answer>4</answer>", "<think> is out of order"),
        ("<think>hm</think><answer>4", "</answer> occurs 0 times"),
        ("<think>hm</think><answer>4</answer><answer>5</answer>", "<answer> occurs 2 times"),
        ("<think><think>hm</think><answer>4</answer>", "<think> occurs 2 times"),
        ("<think> </think><answer>4</answer>", "<think> is empty"),
        ("<Think>hm</Think><answer>4</answer>", "<think> occurs 0 times"),
        ("4", "<think> occurs 0 times"),
    ],
)
def test_the_usual_template(text, detail):
    verdict = verify(text, "", {})
    assert (verdict.correct, verdict.detail) == (detail is None, detail or "")
    assert verdict.reward == float(verdict.correct)
    assert verdict.taken == "4" or not verdict.correct


def test_another_template():
    template = "<plan>...</plan>\n<code> ... </code>"
    assert verify("<plan>p</plan><code>c</code>", "", {}, template=template).taken == "c"
    assert not verify("<think>p</think><answer>c</answer>", "", {}, template=template).correct


@pytest.mark.parametrize("template", ["", "think", "<a>...</b>", "<a></a>", "<a>...</a> end",
                                      "<a>...</a><a>...</a>"])  # fmt: skip
def test_what_is_no_template(template):
    with pytest.raises(UserError, match="different tags"):
        verify("x", "", {}, template=template)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(name):
    text = HOSTILE[name]
    assert not verify(text, "", {}).correct
    assert not verify(f"<think>{text}</think><answer>{text}", "", {}).correct
    assert not exact(text, "4", {}).correct


def test_exact_says_what_it_took():
    assert exact(" 4\n", "4 ", {}).taken == "4"
    assert not exact("4.0", "4", {}).correct
