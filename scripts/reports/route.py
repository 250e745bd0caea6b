"""A route in words: where a prompt goes, and what decided it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .words import ROOM, harmless, number_of, width_of

_SHOWS = 0.005  # the least score that two decimals show


def describe(prompt: str, record: Mapping[str, Any]) -> str:
    """A route in words: the prompt, the ranking, and the tokens that decided."""
    second = "  (with the second opinion)" if "second_opinion" in record else ""
    lines = [
        f"{harmless(prompt)}\n  -> {_ranked(record['ranking'])}{second}",
        f"     decided by: {deciding_tokens(record)}",
    ]
    if "familiarity" in record:
        share = f"{100 * record['familiarity']:.0f} % of held-out prompts were less familiar"
        lines.append(f"     familiarity: {share}{_unknown(record)}")
    if record.get("fallback"):
        lines.append(f"     below the minimum: {record['expert'] or 'nobody'} answers")
    return "\n".join(lines)


def _ranked(ranking: Sequence[Mapping[str, Any]], least: int = 3) -> str:
    """The experts with their scores, on one line where there is room and else on one each; without those at the end
    whose score shows as nothing, as most do where experts are many.
    """
    shown = [place for place, expert in enumerate(ranking) if place < least or abs(expert["score"]) >= _SHOWS]
    told = [f"{expert['expert']} {expert['score']:.2f}" for expert in ranking[: max(shown, default=-1) + 1]]
    if rest := len(ranking) - len(told):
        told.append(f"({number_of(rest, 'other', 'others')} 0.00)")
    line = "  ".join(told)
    return line if width_of(line) <= ROOM else "\n     ".join(told)


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
