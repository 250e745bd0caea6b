"""What an edit changes: which prompts of a sample other experts answer afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ir3de.card_ir3de import outcomes_cells
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.outcome_rows_ir3de import read_outcomes
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.reports.words import Labels, table

PROMPTS = 1000  # that are routed before and after
_SHOWN = 10  # pairs of experts


_LEGEND = (
    "An expert's expected score in each domain, 0 to 1, ± 1.96 standard errors; in brackets how many outcomes tell of"
    " it, and what an answer is expected to cost where that was measured."
)


def shown_outcomes(model: IR3DEModel, since: str | None = None) -> str:
    """What outcomes let expect of each pair, with a legend; empty without outcomes.

    Args:
        model ([`IR3DEModel`]): the router.
        since (`str`, *optional*): only outcomes of this day or later, as in 2026-11-28.
    """
    outcomes = model.outcomes if since is None else model.outcomes.since(since)
    cells = outcomes_cells(model.config, outcomes)
    if not cells:
        return ""
    domains, experts = model.config.domain_names, model.config.expert_names
    names = list(dict.fromkeys([*domains, *experts]))
    labels = Labels.of(names)
    label = dict(zip(names, labels.rows, strict=True))
    rows = [[label[name], *of_domain] for name, of_domain in zip(domains, cells, strict=True)]
    lines = table(["domain", *(label[name] for name in experts)], rows)
    return "\n".join([*lines, *labels.legend, "", _LEGEND])


@dataclass(frozen=True)
class Sample:
    """
    Prompts, and who would answer them before an edit.

    Args:
        texts (`list[str]`): the prompts.
        experts (`list[str | None]`): who would answer each.
    """

    texts: list[str]
    experts: list[str | None]

    @classmethod
    def of(cls, files: Sequence[str | Path], where: Mapping[str, str] | None, model: IR3DEModel) -> Sample:
        """The first prompts of files of outcomes, as a router routes them now."""
        rows = (outcomes for file in files for outcomes in read_outcomes(file, where))
        texts = [outcomes[0].text for outcomes in islice(rows, PROMPTS)]
        return cls(texts, _experts(texts, model))

    def changes(self, model: IR3DEModel) -> str:
        """Which of them others answer now, in words."""
        pairs = Counter(
            (before, after)
            for before, after in zip(self.experts, _experts(self.texts, model), strict=True)
            if before != after
        )
        lines = [f"Of the first {len(self.texts):,} prompts {pairs.total():,} go elsewhere now."]
        lines += [f"  {before} -> {after}: {number:,}" for (before, after), number in pairs.most_common(_SHOWN)]
        return "\n".join(lines)


def _experts(texts: list[str], model: IR3DEModel) -> list[str | None]:
    if not texts:
        return []
    pipe = IR3DERoutingPipeline(model, device="cpu", generate=False, top_n=1)
    return [record["expert"] for record in pipe(texts)]
