"""A list of experts, as a person writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from ir3de.scripts.data.sources import gguf_of
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
    return [check_expert(of_this_machine(expert)) for expert in experts]


def of_this_machine(spec: Any) -> Any:
    """A spec as a person writes it: a folder gets its whole path, as a router is used from other folders too, and a
    model that is one GGUF file alone gets the file's name.

    Raises:
        ValueError: a folder has several GGUF files.
    """
    if not isinstance(spec, dict) or "endpoint" in spec or "provider" in spec:
        return spec  # a `model` elsewhere is a name there
    spec = dict(spec)
    for key in ("model", "adapter"):
        place = spec.get(key)
        if isinstance(place, str) and os.path.isdir(os.path.expanduser(place)):
            spec[key] = os.path.abspath(os.path.expanduser(place))
    if isinstance(spec.get("model"), str) and "gguf_file" not in spec:
        file = gguf_of(spec["model"], f"gguf_file of expert {spec.get('name')!r}")
        spec |= {"gguf_file": file} if file else {}
    return spec
