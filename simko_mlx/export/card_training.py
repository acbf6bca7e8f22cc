"""The parts of a model card that tell how the model was made, its limits, and how to repeat it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from simko_mlx.config import leaves
from simko_mlx.data import SOURCES
from simko_mlx.export.card_facts import Facts
from simko_mlx.export.card_results import eval_command
from simko_mlx.export.markdown import block, code, link, listed, plain, table

SIMKO_ONLY = ("alpha", "simko_k", "entropy_quantile", "rank1_penalty")
VERSIONS = ("simko-mlx", "mlx", "mlx-lm", "transformers", "numpy", "python")
GENERATORS = ("countdown", "instructions", "gym")


def training(facts: Facts) -> list[str]:
    """Data, verifier, objective, rollouts, what was trained, machine and time."""
    parts = [
        ("Data", _data(facts)),
        ("Verifier", _verifier(facts)),
        ("Rollouts", _rollouts(facts)),
        ("Trained", _trained(facts)),
        ("Machine", _machine(facts)),
        ("Time and memory", _time(facts)),
    ]
    lines = "\n".join(f"- **{name}**: {' '.join(told)}" for name, told in parts if told)
    settings = table(["setting", "value"], _settings(facts), numbers=False)
    return [
        lines,
        f"The objective, {facts.objective_link}, with all its settings (the rest is in "
        "`training/config.yaml`):",
        settings,
    ]


def _data(facts: Facts) -> list[str]:
    data = facts.config.data
    told = [f"{facts.task}."]
    generator = data.source.partition(":")[0] in GENERATORS
    if data.revision:
        told.append(f"Revision {code(data.revision)}.")
    if data.source == "hf":
        subset = f"subset {code(data.subset)}, " if data.subset else ""
        told.append(f"Trained on {subset}split {code(data.split)}.")
    if generator:
        told.append(f"{data.size:,} problems, generated with seed {data.seed}.")
    elif isinstance(facts.environment.get("problems"), int):
        told.append(f"{facts.environment['problems']:,} problems to train on.")
    told.append(_held_out(facts))
    filters = []
    if data.limit is not None:
        filters.append(f"only the first {data.limit:,} rows were read")
    if data.min_pass_rate is not None or data.max_pass_rate is not None:
        low, high = data.min_pass_rate or 0.0, data.max_pass_rate
        high = 1.0 if high is None else high
        filters.append(f"only problems with a measured pass rate from {low:g} to {high:g}")
    if data.deduplicate and not generator:
        filters.append("only one row of each prompt")
    if data.bad_rows == "drop":
        filters.append("rows that could not be read were dropped")
    if facts.config.prompt.too_long == "drop":
        filters.append("prompts that were too long were dropped")
    if filters:
        told.append(f"Filters: {'; '.join(filters)}.")
    told.append(f"Order: {data.order}.")
    return told


def _held_out(facts: Facts) -> str:
    data = facts.config.data
    if data.eval_split is not None and data.source == "hf":
        return f"Held out: split {code(data.eval_split)}."
    if data.eval_path is not None:
        return f"Held out: the file {code(PurePath(data.eval_path).name)}."
    if not facts.held_out:
        return "Nothing was held out."
    if data.source not in SOURCES:
        return f"Held out: up to {data.heldout:,} problems, as the source divides them."
    return f"Held out: {data.heldout:,} problems of the same source, never trained on."


def _verifier(facts: Facts) -> list[str]:
    verifier = facts.config.verifier
    if verifier.combine is None:
        told = [f"{code(verifier.name)}{_options(verifier.options)}."]
    else:
        parts = [_part(entry) for entry in verifier.combine]
        told = [f"the weighted sum of {', '.join(parts)}."]
    if facts.has_own_verifier:
        told.append(f"A reward from {verifier.correct_at:g} on counts as correct.")
    return told


def _part(entry: dict[str, Any]) -> str:
    decides = "" if entry.get("decides", True) else ", which does not decide what is correct"
    weight = entry.get("weight", 1.0)
    shown = f"{weight:g}" if isinstance(weight, (int, float)) else code(str(weight))
    return f"{shown} x {code(str(entry.get('name')))}{_options(entry.get('options'))}{decides}"


def _options(options: Any) -> str:
    return f" with {code(_json(options))}" if options else ""


def _rollouts(facts: Facts) -> list[str]:
    rollout = facts.config.rollout
    told = [
        f"{rollout.problems_per_step} problems a step with {rollout.group_size} completions each, "
        f"of at most {rollout.max_completion_length:,} tokens, at temperature "
        f"{rollout.temperature:g}."
    ]
    if rollout.top_p < 1 or rollout.top_k:
        told.append(
            f"Sampling was restricted (top_p {rollout.top_p:g}, top_k {rollout.top_k}), while the "
            "loss scores the whole distribution."
        )
    return told


def _trained(facts: Facts) -> list[str]:
    source, config = facts.source, facts.config
    told = [f"{source.step:,} steps with seed {config.seed}."]
    if source.step != config.steps:
        told.append(f"The run was set to {config.steps:,} steps; this is the one after step "
                    f"{source.step:,}.")  # fmt: skip
    if config.policy.adapter_path:
        path = config.policy.adapter_path
        name = code(PurePath(path).name if path.startswith("~") else path)
        if facts.start_id:
            name = link(facts.start_id, f"https://huggingface.co/{facts.start_id}")
        at = config.policy.adapter_revision
        revision = f" at revision {code(at)}" if at else ""
        told.append(f"Training started from the adapter {name}{revision}, not from the base alone.")
    if not source.is_lora:
        return [*told, "All weights of the model were trained.", *_scaled(facts)]
    lora = source.settings.get("lora_parameters") or {}
    layers = source.settings.get("num_layers")
    some = isinstance(layers, int) and layers > 0
    keys = lora.get("keys")
    where = ", ".join(code(str(key)) for key in keys) if keys else "all linear layers"
    told.append(
        f"LoRA of rank {lora.get('rank')} and scale {lora.get('scale'):g} (which multiplies "
        f"directly, alpha / rank in PEFT's words), dropout {lora.get('dropout', 0.0):g}, on "
        f"{where} of {f'the last {layers} blocks' if some else 'all blocks'}."
    )
    return [*told, *_scaled(facts)]


def _scaled(facts: Facts) -> list[str]:
    scale = facts.source.scale
    told = f"After training {facts.effect} was multiplied by {scale:g}: 0 is the base, 1 the model"
    return [] if scale == 1 else [f"{told} as it was trained."]


def _machine(facts: Facts) -> list[str]:
    if not facts.environment:
        return ["not recorded."]
    info = facts.environment.get("device_info")
    info = info if isinstance(info, dict) else {}
    name = plain(str(info.get("device_name") or "unknown device"))
    memory = info.get("memory_size")
    size = f", {int(str(memory)) / 2**30:.0f} GiB" if str(memory).isdecimal() else ""
    kind = re.match(r"Device\((\w+)", str(facts.environment.get("device")))
    device, system = kind[1].upper() if kind else "unknown", facts.env("platform")
    versions = [f"{v} {facts.env(v)}" for v in VERSIONS if facts.env(v)]
    return [f"{name}{size} ({device}), {system}; {', '.join(versions)}."]


def _time(facts: Facts) -> list[str]:
    log = facts.measured.log
    told = []
    if log.step_seconds is not None:
        told.append(f"{duration(log.step_seconds)} in training steps.")
    if log.evaluation_seconds is not None:
        told.append(f"{duration(log.evaluation_seconds)} in evaluations.")
    if log.peak_gb is not None:
        size = f"{log.peak_gb:.1f} GB" if log.peak_gb >= 1 else f"{1000 * log.peak_gb:.0f} MB"
        told.append(f"MLX held at most {size} in a step.")
    missing = facts.source.step - len(log.rewards)
    if not log.rewards:
        told.append("The run's log of steps is missing.")
    elif missing > 0:
        told.append(f"The run's log lacks {missing:,} of the steps, which these figures leave out.")
    return told


def duration(seconds: float) -> str:
    """4.2 s, 42 s, 3 min 5 s, 2 h 3 min."""
    total = round(seconds)
    if total < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{total} s"
    minutes, rest = divmod(total, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _settings(facts: Facts) -> list[list[str]]:
    """The keys of the sections advantage, loss and optim that decide what is computed."""
    rows = []
    for key, item, value in leaves(facts.config):
        section, _, name = key.partition(".")
        unused = facts.config.loss.name == "grpo" and section == "loss" and name in SIMKO_ONLY
        if section in ("advantage", "loss", "optim") and not item.metadata and not unused:
            rows.append([code(key), code(_json(value), cell=True)])
    return rows


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def limits(facts: Facts) -> list[str]:
    """What the figures do not say."""
    told = []
    trained, config = facts.measured.trained, facts.config
    if trained is None:
        told.append("How well it solves held-out problems was not measured.")
    else:
        told.append(
            f"The figures are of one run (seed {config.seed}). The intervals are over problems; "
            "how much other seeds would differ was not measured."
        )
        if config.data.eval_path is None and config.data.eval_split is None:
            told.append(
                "The held-out problems come from the same source as those that were trained on."
            )
    best = facts.measured.best
    if trained is not None and best is not None and facts.source.step != config.steps:
        told.append(
            f"This checkpoint was the best of the run's small evaluations ({plain(best['metric'])} "
            f"on {best['problems']} problems), which are among the held-out ones: the figures "
            "are a little too good for that."
        )
    told.append("Other tasks, and what training on this one did to other abilities, were not "
                "measured; neither was safety.")  # fmt: skip
    if facts.may_be_pleased:
        names = list(dict.fromkeys(code(name) for name in facts.may_be_pleased))
        what, checks = listed(names), "checks" if len(names) == 1 else "check"
        some = "Part of the reward" if len(names) < len(set(facts.verifiers)) else "The reward"
        told.append(
            f"{some} is what {what} {checks} and nothing else: a model can learn to satisfy that "
            "with text that is not good otherwise, which these figures would not show."
        )
    if trained is not None and "fused" in facts.kinds and facts.source.is_lora:
        told.append(
            "The figures were measured with the adapter beside its base, not with these merged "
            "weights, which are rounded to their type."
        )
    if facts.source.is_lora and facts.base.quantization is not None:
        bits = facts.base.quantization.get("bits")
        told.append(f"The adapter was trained, and measured, on a base of {bits} bits.")
    told.append("The commands under *How to use it* are as these programs document them; this card "
                "does not claim that they were run.")  # fmt: skip
    return ["\n".join(f"- {line}" for line in told)]


def licence(facts: Facts) -> list[str]:
    """What the base allows; the author of the card may only add to it."""
    base = facts.base_name
    if facts.base.licence is None:
        return [
            f"The licence of the base model, {base}, was not found in its files. Look it up before "
            "you use or share this: what is made from a model is bound by its licence."
        ]
    name = f" ({plain(facts.base.licence_name)})" if facts.base.licence_name else ""
    where = facts.base.licence_link
    read = f" Its text: {link(where, where)}." if where and where.startswith("https://") else ""
    return [
        f"The base model, {base}, has the licence {code(facts.base.licence)}{name}, as its own "
        f"card says, and what is made from it is bound by that.{read}"
    ]


def reproduction(facts: Facts) -> list[str]:
    """Commands that make the run again."""
    config = facts.config
    steps = f" --steps {facts.source.step}" if facts.source.step != config.steps else ""
    versions = [f"{v} {facts.env(v)}" for v in ("simko-mlx", "mlx", "mlx-lm") if facts.env(v)]
    needed = f"With {', '.join(versions)}:" if versions else "With simko-mlx:"
    commands = [f"simko-mlx train -c training/config.yaml{steps}"]
    told = []
    if facts.held_out:
        commands.append(eval_command(facts))
        told.append("`RUN` is the folder that the first command prints.")
    told.append(
        f"The seed is {config.seed}; other machines and versions round differently, and soon "
        "sample other tokens."
    )
    yours = [f"`{key}`" for key in _local_files(facts)]
    if yours:
        told.append(f"Name your own copies of the files in {', '.join(yours)} first.")
    if "REDACTED" in json.dumps(_options_of(facts)):
        told.append("Secrets were taken out of the file, and say `REDACTED` there.")
    if facts.own_code:
        names = ", ".join(code(name) for name in facts.own_code)
        told.append(f"The run used code of its author's that is not here: {names}.")
    return [needed, block("\n".join(commands), "sh"), " ".join(told)]


def _options_of(facts: Facts) -> list[Any]:
    return [str(value) for _, _, value in leaves(facts.config)]


def _local_files(facts: Facts) -> Sequence[str]:
    config = facts.config
    values = {
        "model": facts.base.hub_id is None and config.model != "embedded",
        "policy.adapter_path": config.policy.adapter_path and not facts.start_id,
        "prompt.few_shot_path": config.prompt.few_shot_path,
        "data.path": config.data.path and config.data.source != "hf",
        "data.eval_path": config.data.eval_path,
        "data.pass_rates": config.data.pass_rates,
    }
    return [key for key, value in values.items() if value]


def base_remark(facts: Facts) -> str:
    """Where a quantised base comes from, and which commit was used."""
    base, told = facts.base, []
    if base.revision:
        told.append(f"The base was at commit {code(base.revision)}.")
    if base.quantization is not None:
        bits = base.quantization.get("bits")
        made = "whose original its card does not name"
        if facts.original_id:
            address = f"https://huggingface.co/{facts.original_id}"
            made = f"made from {link(facts.original_id, address)}"
        elif base.made_from:
            made = f"made from {code(PurePath(base.made_from).name)}"
        told.append(f"It is a model of {bits} bits, {made}.")
        if "fused" in facts.kinds:
            told.append("These files hold its weights dequantised.")
    return " ".join(told)
