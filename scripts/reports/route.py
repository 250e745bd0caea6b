"""A route in words: where a prompt goes, and what decided it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe(prompt: str, record: Mapping[str, Any]) -> str:
    """A route in words: the prompt, the ranking, and the tokens that decided."""
    ranking = "  ".join(f"{expert['expert']} {expert['score']:.2f}" for expert in record["ranking"])
    second = "  (with the second opinion)" if "second_opinion" in record else ""
    lines = [f"{prompt}\n  -> {ranking}{second}", f"     decided by: {deciding_tokens(record)}"]
    if "familiarity" in record:
        lines.append(f"     familiarity: {100 * record['familiarity']:.0f} % of held-out prompts were less familiar")
    if record.get("fallback"):
        lines.append(f"     below the minimum: {record['expert'] or 'nobody'} answers")
    return "\n".join(lines)


def deciding_tokens(record: Mapping[str, Any], most: int = 6) -> str:
    """The tokens that spoke most for the chosen expert, the strongest first."""
    strongest = sorted(record["tokens"], key=lambda token: -token["contribution"])[:most]
    words = [token["token"].strip() or repr(token["token"]) for token in strongest if token["contribution"] > 0]
    return " ".join(dict.fromkeys(words))
