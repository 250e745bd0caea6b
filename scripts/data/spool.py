"""Tokenized prompts on disk, by domain: tokenized once, read as often as a fit needs, whatever the corpus' size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ir3de.batch_ir3de import Prompts
from ir3de.prompts_ir3de import token_ids_of
from ir3de.scripts.data.groups import Groups
from ir3de.scripts.data.rows import Row
from ir3de.scripts.reports.progress import Steps

_ROWS = 1024  # rows that are tokenized at a time
_TOKENS = 1 << 20  # tokens that are read back at a time


class Spool:
    """
    Tokenized prompts in a folder: a file of token ids and one of lengths for each domain.

    Args:
        folder (`Path`): an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.skipped = 0
        self._numbers: dict[str, int] = {}
        self._groups: dict[str, list[int]] = {}
        self._sources: dict[str, list[int]] = {}
        self._source_numbers: dict[str, int] = {}

    def fill(self, rows: Iterable[Row], tokenizer: Any, max_length: int, groups: Groups | None = None) -> None:
        """Tokenizes rows in a stream; rows without a token are counted in `skipped`.

        Args:
            rows (`Iterable[Row]`): labelled prompts.
            tokenizer (`PreTrainedTokenizerBase`): of the router.
            max_length (`int`): tokens of a prompt that count.
            groups ([`Groups`], *optional*): say which rows must be held out together; by default each is alone.
        """
        groups = groups or Groups()
        rows = iter(rows)
        with Steps("Tokenizing", "rows") as steps:
            while batch := list(itertools.islice(rows, _ROWS)):
                self._add(batch, token_ids_of(tokenizer, [row.text for row in batch], max_length), groups)
                steps.update(len(batch))

    def _add(self, rows: Sequence[Row], encoded: Sequence[list[int]], groups: Groups) -> None:
        shares: dict[str, list[list[int]]] = {}
        together: dict[str, list[int]] = {}
        sources: dict[str, list[int]] = {}
        for row, ids in zip(rows, encoded, strict=True):
            if ids:
                shares.setdefault(row.domain, []).append(ids)
                together.setdefault(row.domain, []).append(groups.of(row))
                source = self._source_numbers.setdefault(row.source, len(self._source_numbers))
                sources.setdefault(row.domain, []).append(source)
            else:
                self.skipped += 1
        for domain, prompts in shares.items():
            self._append(domain, prompts)
            self._groups.setdefault(domain, []).extend(together[domain])
            self._sources.setdefault(domain, []).extend(sources[domain])

    def _append(self, domain: str, prompts: Sequence[list[int]]) -> None:
        number = self._numbers.setdefault(domain, len(self._numbers))
        with open(self.folder / f"{number}.ids", "ab") as file:
            np.fromiter(itertools.chain.from_iterable(prompts), dtype=np.int32).tofile(file)
        with open(self.folder / f"{number}.lengths", "ab") as file:
            np.fromiter(map(len, prompts), dtype=np.int32).tofile(file)

    @property
    def domains(self) -> list[str]:
        """The domains in order of their names."""
        return sorted(self._numbers)

    def lengths(self, domain: str) -> torch.Tensor:
        """Tokens of each prompt of a domain."""
        return torch.from_numpy(np.fromfile(self.folder / f"{self._numbers[domain]}.lengths", dtype=np.int32)).long()

    def groups(self, domain: str) -> torch.Tensor:
        """The group of each prompt of a domain, numbered from 0 in the order in which they begin; where there is only
        one, each prompt is a group.
        """
        groups = torch.tensor(self._groups.get(domain) or range(len(self.lengths(domain))))
        if not bool((groups != groups[0]).any()):
            return torch.arange(len(groups))
        ranks: torch.Tensor = groups.unique(return_inverse=True)[1]
        return ranks

    def sources(self, domain: str) -> torch.Tensor:
        """The source of each prompt of a domain, as a number; 0 for all where none is known."""
        return torch.tensor(self._sources.get(domain) or [0] * len(self.lengths(domain)))

    def take(self, domain: str, rows: torch.Tensor) -> Prompts:
        """The prompts of a domain with the given row numbers."""
        lengths = self.lengths(domain)
        starts = (lengths.cumsum(0) - lengths)[rows].tolist()
        parts = [self._ids(domain, *part) for part in zip(starts, lengths[rows].tolist(), strict=True)]
        return Prompts(torch.cat([torch.empty(0, dtype=torch.int64), *parts]), lengths[rows])

    def parts(self, domain: str) -> Iterator[Prompts]:
        """All prompts of a domain, part by part."""
        lengths = self.lengths(domain)
        parts = lengths.cumsum(0) // _TOKENS
        start = 0
        for part in lengths.split(parts.unique(return_counts=True)[1].tolist()):
            size = int(part.sum())
            yield Prompts(self._ids(domain, start, size), part)
            start += size

    def _ids(self, domain: str, start: int, size: int) -> torch.Tensor:
        path = self.folder / f"{self._numbers[domain]}.ids"
        offset = start * np.dtype(np.int32).itemsize
        return torch.from_numpy(np.fromfile(path, dtype=np.int32, count=size, offset=offset)).long()
