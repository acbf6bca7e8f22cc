"""docs/verifiers.md: a section and a working config for each verifier, and its way to add one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simko_mlx.config_sources import resolve
from simko_mlx.imports import import_function
from simko_mlx.verifiers import FAMILIES, VERIFIERS, options_of, parts_of

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "verifiers.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `?([^`\n]+)`?\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", [*VERIFIERS, *FAMILIES])
def test_each_verifier_has_a_section_with_its_options_and_a_config_that_works(name, tmp_path):
    assert f"(#{name})" in TEXT.split("\n## ")[0], "it is missing in the table at the top"
    (example,) = blocks(SECTIONS[name], "yaml")
    (tmp_path / "example.yaml").write_text(example)
    parts = parts_of(resolve(str(tmp_path / "example.yaml")).config.verifier)
    assert name in {part.name.split(":")[0] for part in parts}
    takes = options_of(import_function(VERIFIERS.get(name) or FAMILIES[name], "verifier.name"))
    for option in takes:
        assert f"`{option}`" in SECTIONS[name]


def test_the_other_configs_work(tmp_path):
    for section in ("Several together", "Your own"):
        (example,) = blocks(SECTIONS[section], "yaml")
        (tmp_path / "example.yaml").write_text(example)
        assert parts_of(resolve(str(tmp_path / "example.yaml")).config.verifier)


PROGRAM = """
import json, sys
from simko_mlx.config import VerifierConfig
from simko_mlx.types import Completion, Problem, RolloutGroup
from simko_mlx.verifiers.pool import VerifierPool

problem = Problem("p", ({"role": "user", "content": "q"},), "-")
texts = ("Auf Wiedersehen, Aurelia!", "hm")
group = RolloutGroup(problem, (0,), tuple(Completion((1,), (0.0,), t, "stop") for t in texts))
combine = [
    {"name": "vowels", "options": {"at_least": 3}},
    {"name": "my_rewards:short", "options": {"limit": 10}, "weight": 0.5, "decides": False},
]
with VerifierPool(VerifierConfig(combine=combine)) as pool:
    (verdicts,) = pool.verify_groups([group])
print(json.dumps([[v.reward, v.correct, v.taken] for v in verdicts]))
"""


def test_a_new_verifier_takes_less_than_fifteen_lines(tmp_path):
    """The ones that the docs describe, added to a copy of the package and used through its pool."""
    reward, builtin, entry = blocks(SECTIONS["Your own"], "python")
    assert len(reward.splitlines()) + 1 < 15 and len(builtin.splitlines()) + 1 < 15
    ignored = shutil.ignore_patterns("assets", "__pycache__", "kernels")
    shutil.copytree(REPOSITORY / "simko_mlx", tmp_path / "simko_mlx", ignore=ignored)
    (tmp_path / "my_rewards.py").write_text(reward)
    package = tmp_path / "simko_mlx" / "verifiers"
    (package / "vowels.py").write_text(builtin)
    table = (package / "__init__.py").read_text(encoding="utf-8")
    start = "VERIFIERS: dict[str, str] = {\n"
    assert start in table
    (package / "__init__.py").write_text(table.replace(start, start + entry), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        [1.0, True, "Auf Wiedersehen, Aurelia!"],
        [0.5, False, "hm"],
    ]
