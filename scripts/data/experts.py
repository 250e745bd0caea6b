"""A list of experts, as a person writes it."""

from __future__ import annotations

from pathlib import Path

import yaml

from ir3de.specs_ir3de import ExpertSpec, check_expert


def read_experts(path: str | Path) -> list[ExpertSpec]:
    """Reads a list of expert specs.

    Raises:
        ValueError: the file is not YAML or no list, or a spec is malformed.
    """
    try:
        experts = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error}).") from error
    if not isinstance(experts, list):
        raise ValueError(f"{path}: expected a list of experts, each a mapping with a `name`; got {experts!r}.")
    return [check_expert(expert) for expert in experts]
