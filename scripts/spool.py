"""Tokenized prompts on disk, by domain: tokenized once, read as often as a fit needs, whatever the corpus' size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ir3de.scripts.data import Row

_ROWS = 1024  # rows that are tokenized at a time
_TOKENS = 1 << 20  # tokens that are read back at a time


class Prompts(NamedTuple):
    """
    Tokenized prompts of any lengths.

    Args:
        token_ids (`torch.Tensor` of shape `(sum of lengths,)`): one prompt after another, int64.
        lengths (`torch.Tensor` of shape `(prompts,)`): tokens of each, at least 1, int64.
    """

    token_ids: torch.Tensor
    lengths: torch.Tensor


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

    def fill(self, rows: Iterable[Row], tokenizer: Any, max_length: int) -> None:
        """Tokenizes rows in a stream; rows without a token are counted in `skipped`."""
        progress = tqdm(desc="Tokenizing", unit=" rows", disable=None)
        rows = iter(rows)
        while batch := list(itertools.islice(rows, _ROWS)):
            texts = [row.text for row in batch]
            encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            shares: dict[str, list[list[int]]] = {}
            for row, ids in zip(batch, encoded["input_ids"], strict=True):
                if ids:
                    shares.setdefault(row.domain, []).append(ids[:max_length])
                else:
                    self.skipped += 1
            for domain, prompts in shares.items():
                self._append(domain, prompts)
            progress.update(len(batch))
        progress.close()

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

    def take(self, domain: str, rows: torch.Tensor) -> Prompts:
        """The prompts of a domain with the given row numbers."""
        ids, lengths = self._ids(domain), self.lengths(domain)
        ends = lengths.cumsum(0)
        parts = [ids[ends[row] - lengths[row] : ends[row]] for row in rows.tolist()]
        flat = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
        return Prompts(torch.from_numpy(flat).long(), lengths[rows])

    def parts(self, domain: str) -> Iterator[Prompts]:
        """All prompts of a domain, part by part."""
        ids, lengths = self._ids(domain), self.lengths(domain)
        parts = lengths.cumsum(0) // _TOKENS
        end = 0
        for part in lengths.split(parts.unique(return_counts=True)[1].tolist()):
            start, end = end, end + int(part.sum())
            yield Prompts(torch.from_numpy(ids[start:end].astype(np.int64)), part)

    def _ids(self, domain: str) -> Any:
        return np.memmap(self.folder / f"{self._numbers[domain]}.ids", dtype=np.int32, mode="r")
