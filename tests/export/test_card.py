"""The model card of a run: its numbers, what it doesn't claim, and what doesn't get into it."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeGuard

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt

from simko_mlx.config import leaves, set_key
from simko_mlx.config_sources import resolve
from simko_mlx.evaluate import Evaluation, evaluate_run, kept_path
from simko_mlx.export.base import Base, describe_base
from simko_mlx.export.card import card_files
from simko_mlx.export.source import Source, read_source
from simko_mlx.metrics import clustered_interval, paired_difference, pass_at_k
from simko_mlx.model_files import EMBEDDED
from tests.runs import Recorder, run, small_config

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = [
    "Results", "Concentration", "How to use it", "Prompt format", "Training", "Limits", "Licence",
    "How to reproduce it",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A small run, never changed."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run(small_config(eval__every=2, eval__every_problems=3), folder)
    return folder


@pytest.fixture
def again(trained, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "again"))


def changed(source: Source, **keys: Any) -> Source:
    """The source of a run whose config had other values; dots are written as double underscores."""
    config = dataclasses.replace(source.config)
    for name in ("policy", "prompt", "data", "verifier", "loss", "rollout", "eval", "hub"):
        setattr(config, name, dataclasses.replace(getattr(config, name)))
    for key, value in keys.items():
        set_key(config, key.replace("__", "."), value)
    return dataclasses.replace(source, config=config)


def described(source: Source, **fields: Any) -> Base:
    return dataclasses.replace(describe_base(small_config()), **fields)


def make(source: Source, *kinds: str, repo: str | None = None, **base: Any) -> dict[str, bytes]:
    return card_files(source, described(source, **base), kinds or ("peft", "mlx"), repo)


def text_of(files: dict[str, bytes]) -> str:
    return files["README.md"].decode()


def loaded(files: dict[str, bytes], folder: Path) -> ModelCard:
    path = folder / "README.md"
    path.write_bytes(files["README.md"])
    return ModelCard.load(path)


def markup(files: dict[str, bytes]) -> tuple[list[str], set[str]]:
    """The headings of a card, and the kinds of all its tokens, as a Markdown parser sees them."""
    body = text_of(files).split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    kinds = {t.type for t in tokens} | {c.type for t in tokens for c in t.children or []}
    headings = [
        tokens[i + 1].content
        for i, t in enumerate(tokens)
        if t.type == "heading_open" and t.tag in ("h1", "h2")
    ]
    return headings, kinds


def evaluation(label: str, counts: list[int], **fields: Any) -> Evaluation:
    """What an evaluation with 8 completions a problem would be, from its counts."""
    estimate = {k: clustered_interval([pass_at_k(8, c, k) for c in counts]) for k in (1, 2, 4)}
    values: dict[str, Any] = {
        "label": label, "problems": len(counts), "n": 8, "temperature": 1.0,
        "max_completion_length": 12, "pass_at_k": estimate, "chance": None, "entropy": 0.5,
        "rank_probs": (0.7, 0.2, 0.1), "fork_rank_probs": (0.5, 0.3, 0.1), "mean_length": 9.0,
        "truncated": 0.0, "unscorable": 0.0, "groups": {}, "counts": tuple(counts),
        "problem_ids": tuple(f"p{i}" for i in range(len(counts))), "seconds": 1.0, **fields,
    }  # fmt: skip
    return Evaluation(**values)


def keep(folder: Path, *evaluations: Evaluation, scale: float = 1.0, step: int = 4) -> None:
    content = {"evaluations": [e.to_json() for e in evaluations]}
    kept_path(folder, step, scale).write_text(json.dumps(content))


# --- numbers --------------------------------------------------------------------------------


def test_the_numbers_are_those_of_eval_json(again, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cli", "eval", str(again), "--base", "--n", "8", "--k", "1,2,4",
         "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)["evaluations"]
    files = make(read_source(again), repo="someone/some-model", hub_id="owner/base")
    card = loaded(files, tmp_path)
    name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "some-model"
    found = {r.metric_name: (r.metric_value, r.metric_args["low"], r.metric_args["high"])
             for r in results}  # fmt: skip
    assert found == {
        k: (v["estimate"], v["low"], v["high"]) for k, v in printed[1]["pass_at_k"].items()
    }
    assert {r.metric_args["n"] for r in results} == {8}
    assert json.loads(files["training/evaluation.json"])["evaluations"] == printed
    # The table says the same, rounded.
    table = card.text.split("## Results")[1].split("\n\n")[1]
    rows = {row.split("|")[1].strip(): row for row in table.splitlines()}
    for label, raw in (("base", printed[0]), ("**trained**", printed[1])):
        cells = [float(cell.split()[0]) for cell in rows[label].split("|")[2:-1]]
        expected = [100 * v["estimate"] for v in raw["pass_at_k"].values()]
        assert cells == pytest.approx(expected, abs=0.0501)
    before, after = ([c / 8 for c in raw["counts"]] for raw in printed)
    difference = paired_difference(before, after)
    change = rows["change from base"].split("|")[2].replace("\N{MINUS SIGN}", "-")
    expected = [difference.estimate, difference.low, difference.high]
    numbers = [float(x) for x in re.findall(r"[-+]?\d+\.\d", change)]
    assert numbers == pytest.approx([100 * x for x in expected], abs=0.0501)
    # The metadata survives the Hub's own reader.
    assert ModelCard(f"---\n{card.data.to_yaml()}\n---\n").data.to_dict() == card.data.to_dict()


def test_metadata_tells_base_relation_library_and_licence(trained, tmp_path):
    source = changed(
        read_source(trained), data__source="hf", data__path="owner/problems", data__revision="abc",
        data__split="train", data__eval_split="test",
    )  # fmt: skip
    base = {"hub_id": "owner/base", "licence": "apache-2.0", "revision": "f" * 40}
    files = make(source, repo="me/mine", **base)
    for words in ("40 problems to train on", "Revision `abc`", "split `test`", f"`{'f' * 40}`"):
        assert words in text_of(files)
    data = loaded(files, tmp_path).data
    assert data.base_model == "owner/base" and data["base_model_relation"] == "adapter"
    assert (data.library_name, data.license) == ("peft", "apache-2.0")
    assert data.pipeline_tag == "text-generation" and data.datasets == ["owner/problems"]
    assert {"lora", "mlx", "rlvr", "simko", "base_model:adapter:owner/base"} <= set(data.tags)
    result = data.eval_results[0]
    assert (result.dataset_type, result.dataset_split) == ("owner/problems", "test")
    assert result.dataset_revision == "abc"
    fused = loaded(make(source, "fused", **base), tmp_path).data
    assert fused["base_model_relation"] == "finetune" and fused.library_name == "mlx"
    nothing = loaded(make(read_source(trained), licence=None), tmp_path).data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "datasets"} & set(nothing)
    assert "was not found in its files" in text_of(make(read_source(trained), licence=None))


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(trained, again):
    one, other = make(read_source(trained)), make(read_source(again))
    assert one == other == make(read_source(trained))
    assert set(one) == {
        "README.md", "training.svg", "pass_at_k.svg", "training/config.yaml",
        "training/evaluation.json",
    }  # fmt: skip
    headings, kinds = markup(one)
    assert headings[1:] == SECTIONS
    assert not kinds & {"html_block", "html_inline"}


# --- which evaluations ----------------------------------------------------------------------


def test_another_steps_figures_are_never_used(again):
    early = read_source(again, 2)
    files = make(early)
    assert "Not measured" in text_of(files)
    assert "simko-mlx eval RUN --base --step 2" in text_of(files)
    assert "model-index" not in text_of(files)
    assert not {"pass_at_k.svg", "training/evaluation.json"} & set(files)
    assert "The run was set to 4 steps" in text_of(files)
    keep(again, evaluation("step 4", [1, 2]), step=2)  # a file under a wrong name
    assert "Not measured" in text_of(make(early))


def test_what_eval_kept_comes_before_the_runs_own(again):
    keep(again, evaluation("base", [0, 1, 2]), evaluation("step 4", [8, 7, 6]))
    text = text_of(make(read_source(again)))
    assert "**trained** | 87.5 [" in text and "| base | 12.5 [" in text
    assert "Measured by `simko-mlx eval` on 3 held-out problems, 8 completions" in text
    cool = [evaluation(label, [1, 2], temperature=0.25) for label in ("base", "step 4")]
    keep(again, *cool)
    text = text_of(make(read_source(again)))
    assert "at temperature 0.25, of" in text and "make_sampler(temp=0.25)" in text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 16}, "another number of completions"),
        ({"temperature": 0.5}, "another temperature"),
        ({"max_completion_length": 99}, "another limit of tokens"),
        ({"problem_ids": ("a", "b")}, "other problems"),
    ],
)
def test_a_base_measured_otherwise_is_left_out_and_told(again, fields, words):
    for name in ("base.json", "step-4.json"):
        (again / "evaluations" / name).unlink()
    keep(again, evaluation("base", [0, 1], **fields), evaluation("step 4", [8, 7]))
    text = text_of(make(read_source(again)))
    assert f"The base model was measured with {words}" in text
    assert "| base |" not in text and "change from" not in text and "**trained**" in text


def test_a_scale_has_figures_of_its_own(again):
    half = read_source(again, scale=0.5)
    assert "--step 4 --scale 0.5" in text_of(make(half))
    assert "Not measured" in text_of(make(half))
    keep(again, evaluation("step 4, scale 0.5", [4, 4], scale=0.5), scale=0.5)
    text = text_of(make(half))
    assert "**trained** | 50.0 [" in text and "effect is multiplied by 0.5" in text
    assert "**trained** | 50.0 [" not in text_of(make(read_source(again)))


def test_what_can_be_told_from_nothing_is_told(again):
    counts = [3, 3, 4, 5]
    chance = {1: 0.1, 2: 0.2, 4: 0.3}
    worse = evaluation(
        "step 4", counts, chance=chance, unscorable=0.25, truncated=0.125,
        bound={1: 0.75, 2: 0.9, 4: 1.0}, note="4 of 9 problems: a|b",
    )  # fmt: skip
    keep(again, evaluation("base", counts), worse)
    text = text_of(make(read_source(again)))
    assert "For k = 1, 2, 4 the interval of the change from base includes 0" in text
    assert "25.0 % of trained's completions could not be scored" in text
    assert "pass@1 75.0 %, pass@2 90.0 %, pass@4 100.0 %" in text
    assert "cut off at the limit of tokens: base 0.0 %, trained 12.5 %." in text
    assert "| chance | 10.0 | 20.0 | 30.0 |" in text and "a\\|b" in text
    keep(again, evaluation("base", [8] * 40), evaluation("step 4", [0] * 40))
    text = text_of(make(read_source(again)))
    assert "For k = 1, 2, 4 it is worse than base." in text
    assert "| chance |" not in text


def test_evaluate_run_keeps_what_it_measured(again):
    folder = again / "evaluations"
    first = evaluate_run(again, logger=Recorder(), base=True, n=4, ks=[1, 2], problems=3)
    kept = json.loads((folder / "eval-step-000004.json").read_bytes())
    assert [Evaluation.from_json(e) for e in kept["evaluations"]] == first
    (second,) = evaluate_run(again, logger=Recorder(), n=4, ks=[1], problems=2, scale=0.5)
    scaled = json.loads((folder / "eval-step-000004-scale-0.5.json").read_bytes())
    assert Evaluation.from_json(scaled["evaluations"][0]) == second and second.scale == 0.5
    assert json.loads((folder / "eval-step-000004.json").read_bytes()) == kept
    (third,) = evaluate_run(again, logger=Recorder(), n=4, ks=[1], problems=2)
    kept = json.loads((folder / "eval-step-000004.json").read_bytes())["evaluations"]
    assert [Evaluation.from_json(e) for e in kept] == [third]
    old = {k: v for k, v in third.to_json().items() if k != "scale"}
    assert Evaluation.from_json(old) == third  # as versions before this one wrote it


def test_a_folder_that_cannot_be_written_to_costs_no_evaluation(again):
    shutil.rmtree(again / "evaluations")
    (again / "evaluations").write_text("a file")
    recorder = Recorder()
    (found,) = evaluate_run(again, logger=recorder, n=4, ks=[1], problems=2)
    assert found.problems == 2
    assert any("can't be written" in message for message in recorder.messages)


# --- odd runs -------------------------------------------------------------------------------


def test_a_run_without_evaluation_or_log_or_environment(again):
    shutil.rmtree(again / "evaluations")
    (again / "metrics.jsonl").unlink()
    (again / "env.json").write_text("[")
    files = make(read_source(again))
    assert set(files) == {"README.md", "training/config.yaml"}
    text = text_of(files)
    for words in ("Not measured", "log of steps is missing", "**Machine**: not recorded"):
        assert words in text
    assert ".svg" not in text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b'{"evaluations": [{}]}', b'{"evaluations": 3}',
        json.dumps({"evaluations": [evaluation("step 4", [8, 0], n=4).to_json()]}).encode(),
        json.dumps({"evaluations": [evaluation("step 4", [8], problems=2).to_json()]}).encode(),
        json.dumps({"evaluations": [evaluation("step 4", [8], pass_at_k={}).to_json()]}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_evaluation_is_none(again, content):
    kept_path(again, 4).write_bytes(content)
    text = text_of(make(read_source(again)))
    assert "Measured by the training run itself on 6 held-out problems" in text
    (again / "evaluations/base.json").write_bytes(content)
    (again / "evaluations/step-4.json").write_bytes(content)
    assert "Not measured" in text_of(make(read_source(again)))


def test_a_log_that_was_cut_is_told(again):
    path = again / "metrics.jsonl"
    lines = [line for line in path.read_bytes().splitlines() if b'"step": 3' not in line]
    path.write_bytes(b"\n".join(lines) + b'\n{"step": 4, "reward/me')
    text = text_of(make(read_source(again)))
    assert "log lacks 1 of the steps" in text


def test_times_are_sums_of_the_log_up_to_the_step(again):
    rows = [
        {"step": s, "reward/mean": 0.5, "time/step": 100.0, "mem/peak_gb": s} for s in range(1, 10)
    ]
    rows.append({"step": 4, "eval/tier": "small", "eval/pass@1": 0.5, "time/eval": 4000.0})
    (again / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = text_of(make(read_source(again)))
    assert "6 min 40 s in training steps. 1 h 6 min in evaluations. MLX held at most 4.0 GB" in text


def test_full_fine_tuning(tmp_path):
    config = small_config(policy__fine_tune_type="full", optim__learning_rate=1e-4, steps=2)
    run(config, tmp_path / "run")
    files = make(read_source(tmp_path / "run"), "mlx", hub_id="owner/base")
    data = loaded(files, tmp_path).data
    assert data["base_model_relation"] == "finetune" and "lora" not in data.tags
    assert "All weights of the model were trained" in text_of(files)
    assert "LoRA of rank" not in text_of(files)
    half = text_of(make(read_source(tmp_path / "run", scale=0.5), "mlx"))
    assert "The change of the weights by training is multiplied by 0.5." in half
    assert "the adapter's effect" not in half


def test_a_run_that_started_from_an_adapter(again):
    keep(again, evaluation("base", [0, 1, 0]), evaluation("step 4", [4, 5, 6]))
    start = evaluation("start", [3, 3, 3]).to_json()
    (again / "evaluations" / "start.json").write_text(json.dumps(start))
    source = changed(read_source(again), policy__adapter_path="/srv/private/first-adapter")
    text = text_of(make(source))
    for row in ("| base |", "| start |", "change from base", "change from start"):
        assert row in text
    assert "Training started from the adapter `first-adapter`" in text
    assert "/srv/private" not in b"".join(make(source).values()).decode()
    assert "copies of the files in `policy.adapter_path`" in text
    source = changed(source, policy__adapter_path="owner/first", policy__adapter_revision="v2")
    text = text_of(make(source))
    assert "[owner/first](https://huggingface.co/owner/first) at revision `v2`" in text
    assert "copies of the files" not in text


def test_combined_verifiers_own_functions_and_restricted_sampling(trained):
    combine = [
        {"name": "number", "weight": 1.0},
        {"name": "my.rewards:polite", "weight": 0.5, "decides": False, "options": {"a": "|"}},
    ]
    source = changed(
        read_source(trained), verifier__combine=combine, loss__name="my.losses:mine",
        rollout__top_p=0.9,
    )  # fmt: skip
    files = make(source)
    text = text_of(files)
    assert "1 x `number`, 0.5 x `my.rewards:polite` with" in text
    assert "does not decide what is correct" in text
    assert "with the verifiers `number` and `my.rewards:polite`." in text
    assert "Part of the reward is what `my.rewards:polite` checks" in text
    assert "`my.losses:mine`" in text
    assert "custom-objective" in text and "Sampling was restricted" in text
    assert "that is not here: `my.rewards:polite`, `my.losses:mine`." in text
    assert "that is not here" not in text_of(make(read_source(trained)))
    exact = text_of(make(read_source(trained)))
    assert "a model can learn to satisfy" not in exact and "the verifier `countdown`." in exact


def test_the_best_of_several_checkpoints_is_called_that(again):
    state = json.loads((again / "checkpoints/step-000002/state.json").read_bytes())
    assert state["best"]["step"] == 2  # its small evaluation was the first
    assert "the best of the run's small evaluations" not in text_of(make(read_source(again, 2)))
    keep(again, evaluation("step 2", [1, 2, 3]), step=2)
    assert "the best of the run's small evaluations" in text_of(make(read_source(again, 2)))


def test_a_quantised_base_names_its_original(trained, tmp_path):
    config = {"quantization": {"bits": 4, "group_size": 64}}
    base = {"hub_id": "owner/base-4bit", "made_from": "owner/base", "config": config}
    text = text_of(make(read_source(trained), repo="me/mine", **base))
    assert "It is a model of 4 bits, made from [owner/base]" in text
    assert 'AutoModelForCausalLM.from_pretrained("owner/base", dtype="auto")' in text
    assert 'load("owner/base-4bit", adapter_path="FOLDER/mlx")' in text
    assert "--dequantize" in text and "do not hold exactly" in text
    base["made_from"] = str(tmp_path / "converted")
    local = text_of(make(read_source(trained), "peft", **base))
    assert str(tmp_path) not in local and "made from `converted`." in local
    assert 'from_pretrained("ORIGINAL"' in local and "`ORIGINAL` is the model" in local
    fused = text_of(make(read_source(trained), "fused", **base))
    assert "These files hold its weights dequantised." in fused
    assert "not with these merged weights" in fused and "merged weights" not in text


def test_a_folder_of_another_machine_is_no_original(tmp_path):
    shutil.copytree(EMBEDDED, tmp_path / "model")
    for name, known in (("/Users/ann/llama", None), ("~/llama", None), ("a/b.c", "a/b.c")):
        (tmp_path / "model/README.md").write_text(f"---\nbase_model: {name}\n---\n")
        assert describe_base(small_config(model=str(tmp_path / "model"))).made_from == known


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("license: llama3.2", "has the licence `llama3.2`, as its own card"),
        ("license: [mit, apache-2.0]", "has the licence `mit, apache-2.0`, as its own card"),
        (
            "license: other\nlicense_name: own-terms\nlicense_link: https://x.org/LICENSE",
            "`other` (own-terms), as its own card",
        ),
        ("license: other\nlicense_link: LICENSE", "has the licence `other`, as its own card"),
    ],
)
def test_the_licence_is_what_the_bases_card_says(trained, tmp_path, written, shown):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    (folder / "README.md").write_text(f"---\n{written}\n---\n")
    source = changed(read_source(trained), model=str(folder))
    files = card_files(source, describe_base(source.config), ("mlx",))
    assert shown in text_of(files)
    link = "https://x.org/LICENSE"
    assert (f"Its text: [{link}]({link})." in text_of(files)) == (link in written)
    data = loaded(files, tmp_path).data.to_dict()
    known = yaml.safe_load(written)
    if isinstance(known["license"], str):
        assert {k: data.get(k) for k in known} == known


def test_the_code_asks_as_the_run_did(trained, tmp_path):
    """Templates that take a date get the run's, and no setting of the model's own comes between."""
    source = changed(read_source(trained), prompt__date="2026-01-31", prompt__chat="always")
    plain = text_of(make(source, "fused", path=tmp_path, config={"model_type": "llama"}))
    assert "date_string" not in plain and "the date that the template" not in plain
    assert "top_p=1.0, repetition_penalty=1.0)" in plain and '"repetition_penalty": 1.0' in plain
    (tmp_path / "chat_template.jinja").write_text("{{ date_string }}")
    text = text_of(make(source, "fused", path=tmp_path, config={"model_type": "llama"}))
    assert text.count("enable_thinking=False, date_string='31 Jan 2026'") == 2
    assert '"date_string": "31 Jan 2026"' in text
    assert "- the date that the template inserts: `2026-01-31`" in text


def test_a_run_that_held_nothing_out(again):
    for path in (again / "evaluations").iterdir():
        path.unlink()
    source = changed(read_source(again), data__heldout=0)
    text = text_of(make(source))
    assert "Not measured: the run held no problems out." in text and "eval RUN" not in text
    assert "Nothing was held out." in text and "The figures" not in text


def test_a_base_measured_beside_another_checkpoint_counts(again):
    for name in ("base.json", "step-4.json"):
        (again / "evaluations" / name).unlink()
    keep(again, evaluation("base", [0, 1, 2]), evaluation("step 4", [3, 4, 5]))
    keep(again, evaluation("step 4, scale 0.5", [2, 3, 4], scale=0.5), scale=0.5)
    half = text_of(make(read_source(again, scale=0.5)))
    assert "| base |" in half and "change from base" in half
    assert "--step 4 --scale 0.5 --to fused" in text_of(make(read_source(again, scale=0.5), "peft"))


def test_commands_fit_what_lies_beside_the_card(trained):
    source = read_source(trained)
    both = text_of(make(source, "peft", "mlx", repo="me/mine", hub_id="owner/base"))
    assert "vllm serve owner/base --enable-lora --max-lora-rank 8" in both
    assert "hf download me/mine --include 'mlx/*' --local-dir FOLDER" in both
    assert 'PeftModel.from_pretrained(model, "me/mine")' in both
    alone = text_of(make(source, "mlx"))
    assert "vllm" not in alone and "PeftModel" not in alone
    assert 'adapter_path="FOLDER")' in alone
    assert "vllm" not in text_of(make(source, "fused"))  # transformers has no such names
    fused = text_of(make(source, "fused", repo="me/mine", config={"model_type": "llama"}))
    assert "vllm serve me/mine\n" in fused and "--enable-lora" not in fused
    assert 'load("me/mine")' in fused
    for text in (both, alone, fused):
        for code in re.findall(r"```python\n(.*?)\n```", text, re.S):
            compile(code, "card", "exec")


# --- what must not get in -------------------------------------------------------------------

SECRETS = [
    "hf_" + "aBcDeFgHiJ" * 3, "sk-" + "proj-1234567890abcdefghij", "ghp_" + "a1B2" * 9,
    "AKIA" + "ABCDEFGHIJKLMNOP", "correct-horse", "battery-staple", "hunter2", "90210123",
]  # fmt: skip
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7\n-----END RSA PRIVATE KEY-----"


def test_secrets_and_places_of_this_machine_stay_out(trained, tmp_path):
    options = {
        "url": f"https://me:{SECRETS[4]}@example.org/x", "api_key": SECRETS[5],
        "nested": [{"password": SECRETS[6], "PIN_secret": int(SECRETS[7])}], "max_tokens": 77,
        "note": f"use {SECRETS[0]} and {SECRETS[1]}", "key_file": "/srv/private/key.txt",
        "headers": {"Authorization": "Bearer " + SECRETS[2]}, "empty": None,
    }  # fmt: skip
    home = str(Path.home())
    source = changed(
        read_source(trained), model=f"{home}/models/my-model", output_dir=str(trained),
        verifier__options=options, data__path="/srv/private/problems.jsonl", data__source="jsonl",
        data__eval_path="/home/somebody/held out.jsonl", hub__repo="me/private-repo",
        prompt__system=f"Be brief. {SECRETS[3]} {KEY}", prompt__template=f"{{prompt}} {home}/x",
    )  # fmt: skip
    files = card_files(source, described(source, path=Path(home) / "models/my-model"),
                       ("peft", "mlx"), None)  # fmt: skip
    everything = b"".join(files.values()).decode()
    for secret in [*SECRETS, "MIIEow", "/srv/private", "/home/", str(trained), "private-repo"]:
        assert secret not in everything
    assert not re.search(re.escape(home) + r"(/|\b)", everything)
    assert "my-model" in text_of(files) and "say `REDACTED` there" in text_of(files)
    path = tmp_path / "config.yaml"
    path.write_bytes(files["training/config.yaml"])
    config = resolve(str(path), environ={}).config
    assert config.model == "~/models/my-model" and config.output_dir is None
    assert config.data.path == "problems.jsonl"
    assert config.verifier.options is not None
    assert config.verifier.options["max_tokens"] == 77
    assert config.verifier.options["api_key"] == "REDACTED"


def test_the_config_beside_the_card_is_the_runs(trained, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(make(read_source(trained))["training/config.yaml"])
    again = {key: value for key, _, value in leaves(resolve(str(path), environ={}).config)}
    run_config = read_source(trained).config
    assert again == {key: value for key, _, value in leaves(run_config)}
    assert "output_dir" not in path.read_text() and "hub:" not in path.read_text()


HOSTILE = (
    "a|b `c` ```d``` <script>alert(1)</script> [x](y) *e* _f_ \\ \x1b[31m\u202e\x00 &amp;"
    "\n---\n# No\n```\n# No"
)


def test_text_of_others_stays_text(again, tmp_path):
    name = f"{HOSTILE} {SECRETS[0]} {SECRETS[3]}"
    part = evaluation("step 4", [1, 2, 3], groups={name: clustered_interval([0.5, 0.5])})
    keep(again, dataclasses.replace(part, label="base"), dataclasses.replace(part, note=name))
    source = changed(
        read_source(again), data__source="jsonl", data__path=f"{HOSTILE}.jsonl",
        prompt__system=HOSTILE, prompt__template=f"{HOSTILE}{{prompt}}'\"", prompt__chat="always",
        verifier__options={HOSTILE: HOSTILE}, verifier__name="regex", data__revision=HOSTILE,
        data__eval_split=HOSTILE, model=f"models/{HOSTILE}", loss__name=f"x:{HOSTILE}",
        policy__adapter_path=HOSTILE,
    )  # fmt: skip
    (again / "env.json").write_text(json.dumps({"platform": HOSTILE, "device_info": {
        "device_name": HOSTILE}}))  # fmt: skip
    for kinds in (("peft", "mlx"), ("fused",)):
        base = described(source, path=tmp_path / "none", made_from=HOSTILE, licence=HOSTILE)
        files = card_files(source, base, kinds, None)
        headings, found = markup(files)
        assert headings[1:] == SECTIONS
        assert not found & {"html_block", "html_inline"}
        text = text_of(files)
        assert not any(s in text.replace("\\", "") for s in SECRETS)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
        card = loaded(files, tmp_path)
        assert card.data.license is None
        tables = re.findall(r"(?:^\|.*\|\n)+", text, re.M)
        assert len(tables) == 4
        for table in tables:
            cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
            assert len(cells) == 1, table
        for _, code in re.findall(r"^(`{3,})python\n(.*?)\n\1$", text, re.M | re.S):
            asked = next(node for node in ast.parse(code).body if _assigns(node, "messages"))
            system, user = ast.literal_eval(asked.value)
            assert system["content"] == HOSTILE  # to the letter, whatever is in it
            assert user["content"] == f"{HOSTILE}YOUR QUESTION'\""


def _assigns(node: ast.stmt, name: str) -> TypeGuard[ast.Assign]:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
