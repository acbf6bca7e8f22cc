from __future__ import annotations

from pathlib import Path

import pytest

from simko_mlx.config import Config, leaves, semantic
from simko_mlx.config_sources import (
    ELSEWHERE,
    dump,
    from_run,
    recipe_path,
    resolve,
    resume_config,
)
from simko_mlx.types import UserError

RECIPES = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.yaml"))
KEYS = {key for key, _, _ in leaves(Config())}


def written(folder: Path, text: str) -> str:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as error:
        resolve(written(folder, text), environ={})
    return str(error.value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_says_what_was_not_measured(name):
    resolved = resolve(name, environ={})
    assert resolved.recipe == name
    header = recipe_path(name).read_text(encoding="utf-8").split("model:")[0]
    assert "PREDICTED, NOT MEASURED" in header or "measured" in header.lower()


def test_no_config_means_the_embedded_model():
    config = resolve(None, environ={}).config
    assert (config.model, config.data.source, config.loss.name) == (
        "embedded", "countdown", "simko",
    )  # fmt: skip


def test_a_recipe_is_found_by_name_with_and_without_ending():
    assert recipe_path("countdown-tiny") == recipe_path("countdown-tiny.yaml")
    with pytest.raises(UserError, match="countdown-tiny"):
        recipe_path("nosuch")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("group_sise: 4", "the nearest is rollout.group_size"),
        ("rollout:\n  group_sise: 4", "the nearest is rollout.group_size"),
        ("learning_rate: 1", "the nearest is optim.learning_rate"),
        ("num_generations: 4", "rollout.group_size"),
        ("beta: 0.1", "loss.kl_coef"),
        ("epsilon: 0.2", "loss.clip_low"),
        ("iters: 10", "it is called steps"),
        ("loss:\n  tau: 0.8", "loss.entropy_quantile"),
        ("zzzzzz: 1", "--dry-run"),
    ],
)
def test_an_unknown_key_is_answered_with_the_known_one(tmp_path, text, words):
    assert words in refused(tmp_path, text)


def test_all_names_from_elsewhere_lead_to_keys_that_exist():
    assert set(ELSEWHERE.values()) <= KEYS
    assert not set(ELSEWHERE) & KEYS


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("steps: many", "a whole number"),
        ("steps: 1.5", "a whole number"),
        ("steps: true", "a whole number"),
        ("steps: null", "a whole number"),
        ("steps: 2026-01-01", "a whole number"),
        ("steps: .inf", "a whole number"),
        ("prompt: {thinking: 1}", "true or false"),
        ("optim: {learning_rate: fast}", "a number"),
        ("optim: {learning_rate: .nan}", "a number"),
        ("optim: {betas: 0.9}", "two numbers"),
        ("optim: {lr_schedule: cosine}", "a mapping"),
        ("eval: {k: {a: 1}}", "a list"),
        ("eval: 3", "is a section"),
        ("policy: {fine_tune_type: dora}", "choose one of lora, full"),
        ("model: [a]", "text"),
        ("model: !!python/object:os.system {}", "YAML"),
        ("prompt: {date: 2026-13-45}", "YAML"),
    ],
)
def test_a_wrong_value_is_told_with_file_and_line(tmp_path, line, words):
    message = refused(tmp_path, f"seed: 3\n\n{line}\n")
    assert words in message
    assert "my.yaml:3" in message or "two numbers" in message


def test_a_key_given_twice_is_refused(tmp_path):
    assert "my.yaml:2: seed is given twice" in refused(tmp_path, "seed: 1\nseed: 2")
    twice = "rollout.group_size: 4\nrollout:\n  group_size: 8"
    assert "my.yaml:3: rollout.group_size is given twice" in refused(tmp_path, twice)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "seed: 1\n\tsteps: 2", "\x00"])
def test_what_is_not_a_mapping_in_yaml_is_refused(tmp_path, text):
    assert "my.yaml" in refused(tmp_path, text)


def test_numbers_as_people_write_them(tmp_path):
    path = written(
        tmp_path,
        "steps: 1e2\nseed: 9007199254740993\n"
        "optim:\n  learning_rate: 1e-4\n  lr_schedule: {name: x, arguments: [1e-5, 3, a-1e-5]}\n"
        "eval:\n  k: 1,2\n  metric: pass@2\nprompt:\n  date: 2026-01-31\n",
    )
    config = resolve(path, environ={}).config
    assert config.steps == 100
    assert config.seed == 9007199254740993
    assert config.optim.learning_rate == 1e-4
    assert config.optim.lr_schedule == {"name": "x", "arguments": [1e-5, 3, "a-1e-5"]}
    assert config.eval.k == [1, 2]
    assert config.prompt.date == "2026-01-31"


def test_precedence_and_origins(tmp_path):
    path = written(tmp_path, "seed: 1\nsteps: 1\nmodel: file\noutput_dir: file\n")
    environ = {"SIMKO_MLX__STEPS": "2", "SIMKO_MLX__MODEL": "env", "SIMKO_MLX__OUTPUT_DIR": "env"}
    resolved = resolve(
        path,
        environ={**environ, "OTHER": "x"},
        flags={"model": "flag", "output_dir": "flag", "steps": None},
        sets=["output_dir=set"],
    )
    config, origins = resolved.config, resolved.origins
    assert (config.seed, config.steps, config.model, config.output_dir) == (1, 2, "flag", "set")
    assert origins["seed"].endswith("my.yaml:1")
    assert origins["steps"] == "environment SIMKO_MLX__STEPS"
    assert origins["model"] == "flag --model"
    assert origins["output_dir"] == "--set output_dir=set"
    assert origins["loss.alpha"] == "default"
    assert set(origins) == KEYS


@pytest.mark.parametrize(
    ("item", "key", "value"),
    [
        ("loss.alpha=1e-2", "loss.alpha", 0.01),
        (" seed = 5", "seed", 5),
        ("eval.k=[1, 2]", "eval.k", [1, 2]),
        ("eval.k=1,2", "eval.k", [1, 2]),
        ("data.path=a=b.jsonl", "data.path", "a=b.jsonl"),
        ("optim.max_grad_norm=null", "optim.max_grad_norm", None),
        ("prompt.system=", "prompt.system", None),
        ("prompt.thinking=true", "prompt.thinking", True),
    ],
)
def test_set(item, key, value):
    sets = [item, "eval.metric=pass@1"]
    config = resolve(None, environ={}, sets=sets).config
    assert {name: found for name, _, found in leaves(config)}[key] == value


def test_set_takes_a_whole_section():
    config = resolve(None, environ={}, sets=["loss={name: grpo, clip_high: 0.28}"]).config
    assert (config.loss.name, config.loss.clip_high) == ("grpo", 0.28)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("seed", "key=value"),
        ("seeds=1", "the nearest is seed"),
        ("seed=[", "quote it"),
        ("eval.n=16", "pass@16 needs n >= 32"),
        ("rollout.group_size=1", "at least 2"),
        ("data.source=jsonl", "data.path"),
    ],
)
def test_a_wrong_set_is_refused(item, words):
    with pytest.raises(UserError, match=words):
        resolve(None, environ={}, sets=[item])


def test_what_a_run_writes_is_what_it_reads(tmp_path):
    config = resolve("math-qwen2.5-math-1.5b-4bit", environ={}).config
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert from_run(tmp_path / "config.yaml") == config


def test_resume_takes_the_run_and_changes_on_top(tmp_path):
    run = tmp_path / "my-run"
    run.mkdir()
    config = resolve(None, environ={}, sets=["seed=3", "steps=5"]).config
    (run / "config.yaml").write_text(dump(config), encoding="utf-8")
    resumed = resume_config(run, flags={"steps": 9, "seed": None}, sets=["eval.n=64"], environ={})
    assert (resumed.config.seed, resumed.config.steps, resumed.config.eval.n) == (3, 9, 64)
    assert resumed.recipe == "my-run"
    assert resumed.origins["steps"] == "flag --steps"
    assert "config.yaml:" in resumed.origins["seed"]
    assert semantic(resumed.config) == semantic(config)
    with pytest.raises(UserError, match="not a run directory"):
        resume_config(tmp_path, environ={})


def test_semantic_keys_cover_what_is_computed_and_nothing_else():
    base = Config()
    assert semantic(base) == semantic(Config(steps=7, output_dir="x"))
    assert semantic(base) != semantic(Config(seed=1))


COSINE = {"name": "cosine_decay", "arguments": [1.0e-3, 60, 1.0e-4]}


@pytest.mark.parametrize(
    ("environ", "flags", "sets", "rate", "arguments"),
    [
        ({}, {}, [], 1e-3, [1e-3, 60, 1e-4]),
        ({}, {}, ["optim.learning_rate=1e-5"], 1e-5, [1e-5, 60, 1e-6]),
        ({"SIMKO_MLX__OPTIM__LEARNING_RATE": "2e-3"}, {}, [], 2e-3, [2e-3, 60, 2e-4]),
        # A schedule from the stronger source stays as it is.
        (
            {"SIMKO_MLX__OPTIM__LEARNING_RATE": "1e-5"},
            {},
            ["optim.lr_schedule={name: linear_schedule, arguments: [0.5, 0.1, 9]}"],
            1e-5,
            [0.5, 0.1, 9],
        ),
        (
            {},
            {},
            [
                "optim.lr_schedule={name: linear_schedule, arguments: [0, 0.5, 9]}",
                "optim.learning_rate=0.25",
            ],
            0.25,
            [0, 0.5, 9],
        ),
    ],
)
def test_a_stronger_learning_rate_sets_the_height_of_the_schedule(
    environ, flags, sets, rate, arguments
):
    resolved = resolve("countdown-tiny", environ=environ, flags=flags, sets=sets)
    schedule = resolved.config.optim.lr_schedule
    assert schedule is not None and resolved.config.optim.learning_rate == rate
    assert schedule["arguments"] == pytest.approx(arguments)


def test_a_schedule_can_be_switched_off():
    resolved = resolve(
        None, environ={}, sets=["optim.lr_schedule=null", "optim.learning_rate=1e-5"]
    )
    assert resolved.config.optim.lr_schedule is None


@pytest.mark.parametrize(
    ("key", "words"),
    [("seed=99999999999999999999999", "at most"), ("verifier.timeout=1e99", "at most")],
)
def test_values_too_large_for_what_they_go_to(key, words):
    with pytest.raises(UserError, match=words):
        resolve(None, environ={}, sets=[key])


def test_every_unknown_key_gets_a_nearest_name():
    with pytest.raises(UserError, match=r"there is no key 'zzz'; the nearest is \w+"):
        resolve(None, environ={}, sets=["zzz=1"])


def test_rescaling_a_schedule_twice_is_rescaling_it_once(tmp_path):
    for i in range(1, 200, 11):
        rate = f"{i}e-6"
        environ = {"SIMKO_MLX__OPTIM__LEARNING_RATE": rate}
        config = resolve(None, environ=environ).config
        folder = tmp_path / rate
        folder.mkdir()
        (folder / "config.yaml").write_text(dump(config))
        assert resume_config(folder, environ=environ).config == config


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("rollout.top_p=0", "rollout.top_p is 0.0: it must be above 0, and at most 1"),
        ("rollout.top_p=-0.5", "rollout.top_p is -0.5: it must be above 0"),
        ("rollout.top_p=1.01", "rollout.top_p is 1.01: it must be above 0, and at most 1"),
        ("rollout.top_k=-1", "rollout.top_k is -1: it must be at least 0"),
        ("optim.microbatch_tokens=-1", "optim.microbatch_tokens is -1: it must be at least 0"),
        ("rollout.top_p=null", "rollout.top_p is None; it must be a number"),
        ("rollout.top_k=2.5", "rollout.top_k is 2.5; it must be a whole number"),
        (
            "optim.microbatch_tokens=many",
            "optim.microbatch_tokens is 'many'; it must be a whole number",
        ),
        ("optim.compile=1", "optim.compile is 1; it must be true or false"),
        ("grad_checkpoint=some", "grad_checkpoint is 'some'; it must be true or false"),
    ],
)
def test_wrong_limits_pieces_and_switches_are_told_with_key_and_fix(item, words):
    with pytest.raises(UserError) as error:
        resolve(None, environ={}, sets=[item])
    assert words in str(error.value)


@pytest.mark.parametrize(
    "item",
    [
        *("rollout.top_p=1", "rollout.top_p=0.001", "rollout.top_k=0", "rollout.top_k=100000"),
        *("optim.microbatch_tokens=0", "optim.microbatch_tokens=null", "optim.compile=false"),
        "grad_checkpoint=true",
    ],
)
def test_limits_pieces_and_switches_that_are_right(item):
    resolve(None, environ={}, sets=[item])


def test_what_is_drawn_is_fixed_for_a_run_but_not_how_it_is_computed():
    base = semantic(resolve(None, environ={}).config)
    for item in ("rollout.top_p=0.9", "rollout.top_k=5"):
        assert semantic(resolve(None, environ={}, sets=[item]).config) != base
    for item in ("optim.microbatch_tokens=5", "optim.compile=false", "grad_checkpoint=true"):
        assert semantic(resolve(None, environ={}, sets=[item]).config) == base
