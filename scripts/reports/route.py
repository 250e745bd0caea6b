"""A route in words: where a prompt goes, and what decided it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .words import harmless


def describe(prompt: str, record: Mapping[str, Any]) -> str:
    """A route in words: the prompt, the ranking, and the tokens that decided."""
    ranking = "  ".join(f"{expert['expert']} {expert['score']:.2f}" for expert in record["ranking"])
    second = "  (with the second opinion)" if "second_opinion" in record else ""
    lines = [f"{harmless(prompt)}\n  -> {ranking}{second}", f"     decided by: {deciding_tokens(record)}"]
    if "familiarity" in record:
        share = f"{100 * record['familiarity']:.0f} % of held-out prompts were less familiar"
        lines.append(f"     familiarity: {share}{_unknown(record)}")
    if record.get("fallback"):
        lines.append(f"     below the minimum: {record['expert'] or 'nobody'} answers")
    return "\n".join(lines)


def deciding_tokens(record: Mapping[str, Any], most: int = 6) -> str:
    """The tokens that spoke most for the chosen expert, the strongest first."""
    strongest = sorted(record["tokens"], key=lambda token: -token["contribution"])[:most]
    return _words(token for token in strongest if token["contribution"] > 0)


def _unknown(record: Mapping[str, Any], most: int = 6) -> str:
    """Which tokens the router was never fitted on, the first of them, as the end of a sentence."""
    unknown = [token for token in record["tokens"] if not token.get("known", True)]
    more = ", ..." if len(unknown) > most else ""
    return f"; never seen before: {_words(unknown[:most])}{more}" if unknown else ""


def _words(tokens: Iterable[Mapping[str, Any]]) -> str:
    """The text of tokens, each once."""
    return " ".join(dict.fromkeys(harmless(token["token"].strip()) or repr(token["token"]) for token in tokens))
