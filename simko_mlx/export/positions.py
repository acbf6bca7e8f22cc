"""Whether mlx-lm places tokens as transformers does: the settings of rotary embeddings."""

from __future__ import annotations

import dataclasses

from mlx_lm.utils import _get_classes

from simko_mlx.export.base import Base


def unread_positions(base: Base) -> list[str]:
    """A warning where mlx-lm overlooks what config.json says of rotary embeddings.

    transformers 5 writes ``rope_theta`` and the scaling into ``rope_parameters``, where mlx-lm
    doesn't look for them in all families: it takes its own default, and so what was trained on is
    another model than the one that transformers loads.
    """
    config = base.config
    nested = config.get("rope_parameters")
    if not isinstance(nested, dict) or "rope_theta" in config:
        return []
    _, args_class = _get_classes(config)
    if "rope_parameters" in {field.name for field in dataclasses.fields(args_class)}:
        return []
    theta = nested.get("rope_theta")
    taken = getattr(args_class.from_dict(config), "rope_theta", theta)
    scaled = nested.get("rope_type", "default") != "default" and not config.get("rope_scaling")
    if theta in (None, taken) and not scaled:
        return []
    return [
        f"mlx-lm overlooks rope_parameters in the base's config.json (it takes a rope_theta of "
        f"{taken:g} without scaling), so the run was trained on another model than transformers "
        "loads: this export answers differently there. Write rope_theta and rope_scaling into "
        "config.json, as transformers 4 did, and train again."
    ]
