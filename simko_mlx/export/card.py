"""The model card of an export, made from what the run's folder says.

The same run and arguments give the same bytes. Nothing is claimed that the run did not measure,
and neither secrets nor places on this machine get in, see ``public.py``.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePath
from typing import Any

from simko_mlx.evaluate import Evaluation
from simko_mlx.export import pictures
from simko_mlx.export.base import Base
from simko_mlx.export.card_facts import Facts, gather
from simko_mlx.export.card_results import NAMES, concentration, results
from simko_mlx.export.card_training import (
    base_remark,
    licence,
    limits,
    reproduction,
    training,
)
from simko_mlx.export.card_usage import prompt_format, usage
from simko_mlx.export.markdown import code, listed, one_line, plain
from simko_mlx.export.measured import START, at_k
from simko_mlx.export.public import config_file, public_json, public_text
from simko_mlx.export.source import Source
from simko_mlx.metrics import Interval

COLOURS = {"base": pictures.BEFORE, START: pictures.START}


def card_files(
    source: Source, base: Base, kinds: tuple[str, ...], repo: str | None = None
) -> dict[str, bytes]:
    """README.md with what belongs to it, file name -> content.

    ``kinds`` are what lies beside it: "peft", "mlx" (under mlx/ where both are), "fused". Beside
    README.md there are training/config.yaml, and as far as the run measured them
    training/evaluation.json, training.svg and pass_at_k.svg.
    """
    facts = gather(source, base, kinds, repo)
    files = {"training/config.yaml": config_file(facts.config)}
    trained, log = facts.measured.trained, facts.measured.log
    if any(reward is not None for _, reward in log.rewards):
        files["training.svg"] = pictures.training(log.rewards, log.points).encode()
    if trained is not None:
        files["pass_at_k.svg"] = pictures.pass_at_k(_series(facts, trained)).encode()
        files["training/evaluation.json"] = _evaluation_file(facts, trained)
    text = f"---\n{_metadata(facts)}\n---\n\n{_text(facts, set(files))}"
    # Once more, over all of it: names of groups and notes, say, come from data.
    return {"README.md": public_text(text).encode("utf-8", "backslashreplace"), **files}


def _text(facts: Facts, files: set[str]) -> str:
    shown = []
    if "pass_at_k.svg" in files:
        shown.append("![pass@k against k](pass_at_k.svg)")
    if "training.svg" in files:
        shown += ["![mean reward of the training steps](training.svg)", *_caption(facts)]
    how_sure = concentration(facts)
    parts = [
        f"# {plain(facts.title)}",
        _summary(facts),
        "## Results",
        *results(facts),
        *shown,
        *(["## Concentration", *how_sure] if how_sure else []),
        "## How to use it",
        *usage(facts),
        "## Prompt format",
        *prompt_format(facts),
        "## Training",
        *training(facts),
        "## Limits",
        *limits(facts),
        "## Licence",
        *licence(facts),
        "## How to reproduce it",
        *reproduction(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(facts: Facts) -> str:
    if not facts.source.is_lora:
        what = f"{facts.base_link} with all weights trained"
    elif "fused" in facts.kinds:
        what = f"{facts.base_link} with a LoRA adapter merged into it, trained"
    else:
        what = f"A LoRA adapter for {facts.base_link}, trained"
    what = what[0].upper() + what[1:]
    judges = list(dict.fromkeys(code(name) for name in facts.verifiers))
    version = facts.env("simko-mlx")
    with_what = f"simko-mlx {version}" if version else "simko-mlx"
    own = "the author's own " if facts.has_own_verifier and len(judges) == 1 else "the "
    own += "verifiers " if len(judges) > 1 else "verifier "
    told = [
        f"{what} by reinforcement learning with verifiable rewards (RLVR) on {facts.task}, with "
        f"{own}{listed(judges)}.",
        f"The objective was {facts.objective_link}, for {facts.source.step:,} steps, with "
        f"{with_what} on MLX.",
        base_remark(facts),
    ]
    if facts.source.scale != 1:
        told.append(f"{facts.effect[0].upper()}{facts.effect[1:]} is multiplied by "
                    f"{facts.source.scale:g}.")  # fmt: skip
    return " ".join(part for part in told if part)


def _caption(facts: Facts) -> list[str]:
    log = facts.measured.log
    if not log.points or log.point_settings is None:
        return []
    problems, n = log.point_settings
    whole = "" if facts.source.scale == 1 else f", with {facts.effect} unscaled"
    return [f"Points: pass@1 on {problems} held-out problems with {n} completions each{whole}."]


# --- metadata -------------------------------------------------------------------------------


def _metadata(facts: Facts) -> str:
    """The YAML at the head of the card, by huggingface_hub's own classes."""
    from huggingface_hub import ModelCardData

    base, config = facts.base, facts.config
    relation = "finetune" if facts.is_finetune else "adapter"
    tags = ["lora"] if facts.source.is_lora else []
    objective = config.loss.name if ":" not in config.loss.name else "custom-objective"
    tags += ["mlx", "rlvr", objective, "simko-mlx"]
    if base.hub_id:
        tags.append(f"base_model:{relation}:{base.hub_id}")
    on_hub = config.data.source == "hf" and config.data.path
    measured = _eval_results(facts)
    data = ModelCardData(
        base_model=base.hub_id,
        base_model_relation=relation if base.hub_id else None,
        library_name="peft" if "peft" in facts.kinds else "mlx",
        license=_licence_id(base.licence),
        license_name=base.licence_name,
        license_link=base.licence_link,
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(tags)),
        datasets=[str(config.data.path)] if on_hub else None,
        model_name=one_line(facts.title) if measured else None,
        eval_results=measured or None,
    )
    return data.to_yaml()


def _licence_id(name: str | None) -> str | None:
    """The licence, where it looks like an id that the Hub knows."""
    return name if name and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name) else None


def _eval_results(facts: Facts) -> list[Any]:
    from huggingface_hub import EvalResult

    trained = facts.measured.trained
    if trained is None:
        return []
    data = facts.config.data
    on_hub = data.source == "hf" and bool(data.path)
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=str(data.path) if on_hub else one_line(data.source),
            dataset_name=one_line(_dataset_name(facts)),
            dataset_config=data.subset if on_hub else None,
            dataset_split=(data.eval_split or data.split) if on_hub else "heldout",
            dataset_revision=data.revision if on_hub else None,
            metric_type=f"pass@{k}",
            metric_name=f"pass@{k}",
            metric_value=found.estimate,
            metric_args=_arguments(facts, trained, found),
        )
        for k, found in sorted(trained.pass_at_k.items())
    ]


def _dataset_name(facts: Facts) -> str:
    data = facts.config.data
    path = data.path if data.eval_path is None else data.eval_path
    name = data.source if path is None else path if data.source == "hf" else PurePath(path).name
    return f"{name}, held-out problems"


def _arguments(facts: Facts, trained: Evaluation, found: Interval) -> dict[str, Any]:
    """What a figure depends on, and its interval."""
    return {
        "low": found.low,
        "high": found.high,
        "confidence": 0.95,
        "problems": trained.problems,
        "n": trained.n,
        "temperature": trained.temperature,
        "max_completion_length": trained.max_completion_length,
        "step": facts.source.step,
        "scale": facts.source.scale,
        "verifier": " + ".join(one_line(name) for name in facts.verifiers),
    }


# --- files beside the card ------------------------------------------------------------------


def _evaluation_file(facts: Facts, trained: Evaluation) -> bytes:
    """The same figures as ``eval --json`` prints."""
    evaluations = [e.to_json() for e in (*facts.measured.before, trained)]
    content = {"evaluations": public_json(json.loads(json.dumps(evaluations)))}
    return json.dumps(content, indent=2, allow_nan=False).encode() + b"\n"


def _series(facts: Facts, trained: Evaluation) -> list[pictures.Series]:
    ks = sorted(trained.pass_at_k)

    def line(name: str, colour: str, evaluation: Evaluation) -> pictures.Series:
        found = {k: at_k(evaluation, k) for k in ks}
        values = {k: each.estimate for k, each in found.items()}
        return pictures.Series(name, colour, values, found)

    before = [line(NAMES[e.label], COLOURS[e.label], e) for e in facts.measured.before]
    series = [line("trained", pictures.TRAINED, trained), *before]
    if trained.chance is not None and set(trained.chance) >= set(ks):
        values = {k: trained.chance[k] for k in ks}
        series.append(pictures.Series("chance", pictures.CHANCE, values, dashed=True))
    return series
