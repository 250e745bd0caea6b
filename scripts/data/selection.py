"""Which rows of the data are evaluated, and how many are not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ir3de.scripts.data.rows import Row
from ir3de.scripts.data.sampling import sample_per_domain


@dataclass
class Selection:
    """
    Labelled prompts, and what was left of them.

    Args:
        rows (`list[Row]`): of domains that have an expert.
        given (`int`): rows of the data.
        no_expert (`dict[str, int]`): rows of each domain that has no expert, which are dropped.
        no_data (`list[str]`): experts without rows: prompts may be sent to them, but none should be.
        too_short (`int`): texts of fewer than two tokens, which are dropped: nothing in them can be predicted.
        not_sampled (`int`): rows beyond the number that was asked for.
        cut (`int`): rows of which only the beginning is read.
    """

    rows: list[Row]
    given: int
    no_expert: dict[str, int] = field(default_factory=dict)
    no_data: list[str] = field(default_factory=list)
    too_short: int = 0
    not_sampled: int = 0
    cut: int = 0

    def notes(self, no_data: str = "its expert has no figures of its own") -> list[str]:
        """What was dropped, in words; `no_data` says what follows for an expert without rows."""
        notes = [f"{n} rows of {name!r} are dropped: no expert has this name." for name, n in self.no_expert.items()]
        notes += [f"No rows of {name!r}: {no_data}." for name in self.no_data]
        if self.too_short:
            notes.append(f"{self.too_short} texts of fewer than two tokens are dropped.")
        if self.not_sampled:
            notes.append(f"{self.not_sampled} rows are left out of the sample.")
        if self.cut:
            notes.append(f"{self.cut} texts are longer and cut, for routers and experts alike.")
        return notes


def of_experts(rows: Iterable[Row], experts: Sequence[str], name: str = "data") -> Selection:
    """The rows whose domain has an expert.

    Raises:
        ValueError: there are none.
    """
    rows = list(rows)
    kept = [row for row in rows if row.domain in set(experts)]
    unknown = Counter(row.domain for row in rows if row.domain not in set(experts))
    if not kept:
        raise ValueError(
            f"The {name} have {len(rows)} rows, none of a domain with an expert. Domains without one:"
            f" {sorted(unknown)}; experts: {list(experts)}. Check --where, or name the domains as the experts."
        )
    missing = sorted(set(experts) - {row.domain for row in kept})
    return Selection(kept, len(rows), dict(sorted(unknown.items())), missing)


def to_score(selection: Selection, tokenizer: Any, most: int, max_tokens: int) -> Selection:
    """What experts read: a sample of each domain, each text's first tokens.

    Args:
        selection ([`Selection`]): of [`of_experts`].
        tokenizer (`PreTrainedTokenizerBase`): the router's.
        most (`int`): prompts a domain.
        max_tokens (`int`): of a text, at least 2.

    Raises:
        ValueError: no text has two tokens.
    """
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "return_attention_mask": False}
    ends = [[end for _, end in spans] for spans in _offsets(selection.rows, tokenizer, options)]
    long = [i for i, row in enumerate(ends) if len(row) >= 2]
    if not long:
        raise ValueError(f"None of {len(ends)} texts has two tokens, so there is nothing to predict.")
    domains = [selection.rows[i].domain for i in long]
    sample = [long[i] for i in sorted(sample_per_domain(domains, most, seed=0))]
    rows, cut = [], 0
    for i in sample:
        row = selection.rows[i]
        if len(ends[i]) > max_tokens:
            row = row._replace(text=row.text[: ends[i][max_tokens - 1]])
            cut += 1
        rows.append(row)
    given = {*selection.no_data, *(row.domain for row in selection.rows)}
    return Selection(
        rows,
        selection.given,
        selection.no_expert,
        sorted(given - {row.domain for row in rows}),
        too_short=len(ends) - len(long),
        not_sampled=len(long) - len(sample),
        cut=cut,
    )


def _offsets(rows: Sequence[Row], tokenizer: Any, options: dict[str, Any]) -> Any:
    return tokenizer([row.text for row in rows], verbose=False, **options)["offset_mapping"]
