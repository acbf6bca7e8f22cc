"""Settings of rotary embeddings that mlx-lm overlooks.

transformers 5 writes ``rope_theta`` and the scaling into ``rope_parameters`` of config.json. mlx-lm
looks for them there in some families only; in the others (qwen2 and llama among them) it takes its
own defaults, so that the model would be another than the one that was saved.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_lm.utils import _get_classes

NESTED = "rope_parameters"


def overlooked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys to add to a config.json so that mlx-lm reads what is in ``rope_parameters``; empty where
    there is nothing to add."""
    nested = config.get(NESTED)
    if not isinstance(nested, dict):
        return {}
    try:
        _, args_class = _get_classes(dict(config))
    except ValueError:  # a family that mlx-lm doesn't know is told when it is loaded
        return {}
    known = {field.name for field in dataclasses.fields(args_class)}
    if NESTED in known:
        return {}
    found = {
        key: nested[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if key in nested and key in known and config.get(key) is None
    }
    scaled = nested.get("rope_type", "default") != "default"
    if scaled and "rope_scaling" in known and not config.get("rope_scaling"):
        found["rope_scaling"] = dict(nested)
    return found


def rope_notes(path: Path) -> list[str]:
    """A sentence where mlx-lm's own commands would take other settings than ``load_files`` does."""
    config = json.loads((path / "config.json").read_bytes())
    found = overlooked(config)
    if not found:
        return []
    _, args_class = _get_classes(config)
    fields = {field.name: field for field in dataclasses.fields(args_class)}
    differing = [key for key, value in found.items() if fields[key].default != value]
    if not differing:
        return []
    added = json.dumps({key: found[key] for key in differing})
    return [
        f"mlx-lm overlooks {NESTED} in {path / 'config.json'}. They are passed on to it here, but "
        f"mlx_lm's own commands would run another model: write {added[1:-1]} there, beside "
        f"{NESTED}, for them."
    ]
