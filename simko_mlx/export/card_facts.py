"""What a model card is written from, and how things are called in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from simko_mlx.config import Config
from simko_mlx.data import FAMILIES
from simko_mlx.export.base import Base, is_id
from simko_mlx.export.markdown import code, link, plain
from simko_mlx.export.measured import Measured, read_measured
from simko_mlx.export.peft import OTHER_NAMES
from simko_mlx.export.public import public_config, public_json
from simko_mlx.export.source import Source
from simko_mlx.hub import looks_like_id
from simko_mlx.model_files import EMBEDDED
from simko_mlx.verifiers import family as verifier_family

OBJECTIVES = {
    "simko": ("SimKO", "https://arxiv.org/abs/2510.14807"),
    "grpo": ("GRPO", "https://arxiv.org/abs/2402.03300"),
}
# Verifiers whose answer is right or wrong by itself; others look at a part of what makes a text
# good, and a model can learn to please them alone.
EXACT = ("countdown", "number", "math", "exact", "choice")
MLX_LAYOUT = "mlx-layout"  # among kinds: the fused model is laid out as only mlx-lm knows it


@dataclass(frozen=True)
class Facts:
    """``config`` is the run's, fit to be shown; ``kinds`` lie beside the card ("mlx", "peft",
    "fused"); ``environment`` is what the run's env.json says, empty where there is none."""

    source: Source
    base: Base
    config: Config
    measured: Measured
    kinds: tuple[str, ...]
    repo: str | None
    environment: dict[str, Any]

    @property
    def place(self) -> str:
        """What stands in commands for where the files are."""
        return self.repo or "FOLDER"

    @property
    def mlx_folder(self) -> str:
        """Where mlx-lm's files are: under mlx/ beside PEFT's, and in a repository always, which
        PEFT's may be pushed to another time."""
        return "FOLDER/mlx" if "peft" in self.kinds or self.repo else "FOLDER"

    @property
    def base_short(self) -> str:
        """The last part of the base's name, as it was given."""
        if self.base.path == EMBEDDED:
            return "countdown-tiny"
        return PurePath(self.base.hub_id or self.config.model).name

    @property
    def base_link(self) -> str:
        """The base, in Markdown."""
        if self.base.hub_id:
            return link(self.base.hub_id, f"https://huggingface.co/{self.base.hub_id}")
        if self.base.path == EMBEDDED:
            return "simko-mlx's embedded model (countdown-tiny)"
        return f"{code(self.base_short)} (a folder of the author's, not a repository on the Hub)"

    @property
    def base_name(self) -> str:
        """The base in Markdown, without what the summary says of it."""
        return self.base_link if self.base.hub_id else code(self.base_short)

    @property
    def model(self) -> str:
        """What stands for the base model in commands of mlx-lm."""
        return self.base.hub_id or "MODEL"

    @property
    def objective(self) -> str:
        name = self.config.loss.name
        return OBJECTIVES[name][0] if name in OBJECTIVES else name.rpartition(":")[2]

    @property
    def objective_link(self) -> str:
        name = self.config.loss.name
        if name in OBJECTIVES:
            return link(*OBJECTIVES[name])
        return f"an objective of the author's own, {code(name)}"

    @property
    def title(self) -> str:
        """The repository's name, or one made of base and objective."""
        if self.repo:
            return self.repo.rpartition("/")[2]
        return f"{self.base_short}-{self.objective.lower()}"

    @property
    def effect(self) -> str:
        """What the scale multiplies."""
        if self.source.is_lora:
            return "the adapter's effect"
        return "the change of the weights by training"

    @property
    def original_id(self) -> str | None:
        """The Hub's id of what a quantised base was made from."""
        name = self.base.made_from
        return name if name and is_id(name) and not Path(name).exists() else None

    @property
    def start_id(self) -> str | None:
        """The Hub's id of the adapter that the run started from."""
        name = self.source.config.policy.adapter_path
        on_hub = name is not None and looks_like_id(name) and not Path(name).exists()
        return name if on_hub else None

    @property
    def is_finetune(self) -> bool:
        """Whether whole weights lie beside the card, not an adapter."""
        return "fused" in self.kinds or not self.source.is_lora

    @property
    def in_transformers(self) -> bool:
        """Whether transformers can load the files, as far as names of layers tell."""
        fused = "fused" in self.kinds and MLX_LAYOUT not in self.kinds
        return "peft" in self.kinds or (fused and self.base.type not in OTHER_NAMES)

    @property
    def held_out(self) -> bool:
        """Whether there are problems that the run did not train on."""
        data = self.config.data
        split = data.eval_split is not None and data.source == "hf"
        return split or data.eval_path is not None or data.heldout > 0

    @property
    def temperature(self) -> float:
        """That of the figures."""
        trained = self.measured.trained
        return self.config.eval.temperature if trained is None else trained.temperature

    @property
    def rank(self) -> int:
        return int(self.source.settings["lora_parameters"]["rank"])

    @cached_property
    def uses_chat(self) -> bool:
        """Whether prompts went through the tokenizer's chat template."""
        chat = self.config.prompt.chat
        return chat == "always" or (chat == "auto" and bool(self.chat_template))

    @cached_property
    def chat_template(self) -> str:
        """That of the tokenizer, empty where there is none; several stand as one text."""
        return _chat_template(self.base)

    @property
    def task(self) -> str:
        """The problems, in Markdown, after "trained on"."""
        data = self.config.data
        prefix, colon, rest = data.source.partition(":")
        if data.source == "countdown":
            return "Strategy-Countdown (generated arithmetic problems)"
        if data.source == "instructions":
            return "generated writing tasks with constraints"
        if data.source == "hf" and data.path:
            return f"problems of {link(data.path, f'https://huggingface.co/datasets/{data.path}')}"
        if colon and prefix == "gym":
            return f"reasoning-gym's {code(rest)}"
        if colon and prefix == "environment":
            return f"the environment {code(rest)}"
        if colon:
            return f"problems of the function {code(data.source)}"
        return f"problems of the file {code(PurePath(data.path or 'unknown').name)}"

    @property
    def verifiers(self) -> list[str]:
        """Names of all verifiers that judged."""
        verifier = self.config.verifier
        return [str(v.get("name")) for v in verifier.combine or [{"name": verifier.name}]]

    @property
    def may_be_pleased(self) -> list[str]:
        """Verifiers that a completion can satisfy without being good."""
        return [v for v in self.verifiers if v not in EXACT]

    @property
    def has_own_verifier(self) -> bool:
        return any(v in self.own_code for v in self.verifiers)

    @property
    def own_code(self) -> list[str]:
        """Import paths of functions of the author's that the run used."""
        data, loss = self.config.data.source, self.config.loss.name
        known = data.partition(":")[0] in FAMILIES
        sources = [data] if ":" in data and not known else []
        verifiers = [v for v in self.verifiers if ":" in v and verifier_family(v) is None]
        return list(dict.fromkeys([*sources, *verifiers, *([loss] if ":" in loss else [])]))

    def env(self, key: str) -> str | None:
        """An entry of env.json, in Markdown."""
        value = self.environment.get(key)
        return plain(str(value)) if isinstance(value, (str, int, float)) else None


def gather(source: Source, base: Base, kinds: tuple[str, ...], repo: str | None) -> Facts:
    """Reads what a card needs; files of the run that are missing or damaged count as not there."""
    try:
        environment = json.loads((source.run_dir / "env.json").read_bytes())
    except (OSError, ValueError):
        environment = {}
    environment = environment if isinstance(environment, dict) else {}
    return Facts(
        source=source,
        base=base,
        config=public_config(source.config),
        measured=read_measured(source),
        kinds=kinds,
        repo=repo,
        environment=public_json(environment),
    )


def _chat_template(base: Base) -> str:
    for path in (base.path / f"chat_template.{ext}" for ext in ("jinja", "json")):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
    try:
        settings = json.loads((base.path / "tokenizer_config.json").read_bytes())
        template = settings.get("chat_template")
    except (OSError, ValueError, AttributeError):
        return ""
    return template if isinstance(template, str) else json.dumps(template) if template else ""
