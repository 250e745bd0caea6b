"""Experts and their specs as text, each key with what it means."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.scripts.measuring.experts import Checked
from ir3de.specs_ir3de import EXPERT_KEYS, BaseSpec, ExpertSpec, has_source, is_remote, served

_ARGUMENT = re.compile(r"^ {8}(\w+) \((.+?)\): (.+(?:\n {12}.+)*)", re.MULTILINE)
_MOST = 160  # characters of an answer that are shown
_LONGEST = 400  # of a value, such as a system prompt
_WIDE = 60  # of values that stand in a column; longer ones push what follows them aside


def key_help() -> dict[str, tuple[str, str]]:
    """The kind of each key of a spec and what it means, from the docstrings that declare them."""
    found = {}
    for kind in (ExpertSpec, BaseSpec):
        for key, of, text in _ARGUMENT.findall(kind.__doc__ or ""):
            found[key] = (of.replace("`", "").replace("*", "").removesuffix(", optional"), " ".join(text.split()))
    return {key: found[key] for key in sorted(EXPERT_KEYS, key=list(found).index)}


def describe_keys() -> str:
    """What a spec may say, a line a key."""
    known = key_help()
    width = max(map(len, known))
    return "\n".join(f"{key:{width}}  {kind}: {text}" for key, (kind, text) in known.items())


def describe(config: IR3DEConfig, checked: Sequence[Checked] = ()) -> str:
    """The experts of a router: who they are, what their specs say and means, and what was found of them.

    Args:
        config ([`IR3DEConfig`]): of the router.
        checked (`Sequence[Checked]`): of those that were tried.
    """
    found = {one.name: one for one in checked}
    specs = [spec for spec in config.specs if not checked or spec["name"] in found]
    return "\n\n".join(_expert(spec, config, found.get(spec["name"])) for spec in specs)


def _expert(spec: ExpertSpec, config: IR3DEConfig, found: Checked | None) -> str:
    """One expert."""
    domains = [name for name in served(spec) if name in config.domain_names]
    fallback = ", the fallback" if spec["name"] == config.fallback_expert else ""
    lines = [f"{spec['name']}: {_kind(spec)}{fallback}; serves {', '.join(domains) or 'no domain of its own'}"]
    known = key_help()
    rows = {key: _short(value) for key, value in spec.items() if key != "name"}
    narrow = [len(value) for value in rows.values() if len(value) <= _WIDE]
    widths = max(map(len, rows), default=0), max(narrow, default=0)
    for key, value in rows.items():
        lines.append(f"  {key:{widths[0]}}  {value:{widths[1]}}  {known[key][1]}")
    return "\n".join([*lines, *(_found(found) if found else [])])


def _kind(spec: ExpertSpec) -> str:
    """Where its answers come from, in words."""
    if not has_source(spec):
        return "routes only"
    if is_remote(spec):
        return "answers elsewhere"
    return "an adapter on this machine" if "adapter" in spec else "a model on this machine"


def _found(one: Checked) -> list[str]:
    """What was found of an expert, a line each."""
    lines = [f"  - {note}" for note in one.notes]
    if one.can:
        lines.append("  - can: " + ", ".join(f"{key} {_short(value)}" for key, value in one.can.items()))
    if one.problem:
        lines.append(f"  ! does not answer: {one.problem}")
    elif one.answer is not None:
        lines.append(f"  - answered in {one.seconds:.1f} s: {_short(' '.join(one.answer.split()), _MOST)}")
    return lines


def _short(value: Any, most: int = _LONGEST) -> str:
    """A value as it is typed, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[: most - 3]}..."
