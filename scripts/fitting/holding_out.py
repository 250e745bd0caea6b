"""Which prompts a choice is made on: a part of each domain's, left out of what candidates are fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ir3de.batch_ir3de import Prompts
from ir3de.scripts.data.spool import Spool
from ir3de.scripts.fitting.search import Split

FOLDS = 5  # of each domain's prompts, one of which is held out at a time
HELD_OUT_WANTED, HELD_OUT_MOST = 200, 400  # prompts of each domain: of all folds, and of one
SAMPLE_MOST = 1600  # prompts of each domain that candidates are fitted on
HELD_OUT_LEAST = 30  # prompts in all, below which a choice would be noise


def splits(spool: Spool) -> Iterator[Split]:
    """Prompts to try candidates on, and held-out ones to measure them: a fifth, spread evenly, of a group all or none.
    Where a fifth of the smallest domain is little, one fifth after another, if need be until every prompt has been held
    out once.
    """
    yield from (_split(spool, fold) for fold in range(_number_of_folds(spool)))


def held_out_prompts(spool: Spool) -> Iterator[dict[str, Prompts]]:
    """Those that are held out in each of the splits, by domain."""
    for fold in range(_number_of_folds(spool)):
        yield {domain: spool.take(domain, _rows_of(spool, domain, fold)[1]) for domain in spool.domains}


def held_out_rows(spool: Spool) -> dict[str, torch.Tensor]:
    """The row numbers of each domain's held-out prompts, of one split after another."""
    folds = range(_number_of_folds(spool))
    return {domain: torch.cat([_rows_of(spool, domain, fold)[1] for fold in folds]) for domain in spool.domains}


def _number_of_folds(spool: Spool) -> int:
    fewest = min(len(spool.lengths(domain)) for domain in spool.domains)
    groups = min(int(spool.groups(domain).max()) + 1 for domain in spool.domains)
    return min(FOLDS, groups, math.ceil(HELD_OUT_WANTED * FOLDS / fewest))


def _split(spool: Spool, fold: int) -> Split:
    """Holds out every fifth group of prompts of each domain."""
    sample, held_out = {}, {}
    for domain in spool.domains:
        kept, held = _rows_of(spool, domain, fold)
        sample[domain], held_out[domain] = spool.take(domain, kept), spool.take(domain, held)
    return Split(sample, held_out)


def _rows_of(spool: Spool, domain: str, fold: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of a domain's rows to try candidates on, and of those that are held out."""
    rows = torch.arange(len(spool.lengths(domain)))
    held = (spool.groups(domain) + fold) % FOLDS == 1
    return _spread(rows[~held], SAMPLE_MOST), _spread(rows[held], HELD_OUT_MOST)


def _spread(rows: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of the rows, evenly spaced."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]


def source_splits(spool: Spool) -> list[Split]:
    """Every source left out in turn, or of many a fifth: wherever a domain has others, and with it what says nearly the
    same. A domain whose rows stay has none that are held out.
    """
    sources = sorted({source for domain in spool.domains for source in spool.sources(domain).unique().tolist()})
    folds = {source: place % FOLDS for place, source in enumerate(sources)}
    made = [_without_sources(spool, {s for s in sources if folds[s] == fold}) for fold in range(FOLDS)]
    return [split for split in made if any(len(prompts.lengths) for prompts in split.held_out.values())]


def _without_sources(spool: Spool, left_out: set[int]) -> Split:
    """Holds out the prompts of some sources."""
    sample, held_out = {}, {}
    for domain in spool.domains:
        groups, rows = spool.groups(domain), torch.arange(len(spool.lengths(domain)))
        held = torch.isin(spool.sources(domain), torch.tensor(sorted(left_out), dtype=torch.int64))
        kept = ~held & ~torch.isin(groups, groups[held])
        if not bool(kept.any()):
            held, kept = torch.zeros_like(held), torch.ones_like(held)
        sample[domain] = spool.take(domain, _spread(rows[kept], SAMPLE_MOST))
        held_out[domain] = spool.take(domain, _spread(rows[held], HELD_OUT_MOST))
    return Split(sample, held_out)
