"""The sums of any number of domains in one router's feature space: made from text, kept in a file, added up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ir3de.atomic_save_ir3de import writing_tensors
from ir3de.batch_ir3de import Prompts
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.prompts_ir3de import token_ids_of
from ir3de.scripts.fitting.private import SHARE, PrivateCollector, release
from ir3de.statistics_ir3de import DomainStatistics, StatisticsCollector, gram_from_counts, one_thread

FORMAT = "ir3de-sums-1"
_TOKENS, _PROMPTS = 1 << 16, 1 << 12  # of a domain that are summed at a time


class Privacy(NamedTuple):
    """
    The promise of (epsilon, delta)-differential privacy for each prompt.

    Args:
        epsilon (`float`): above 0.
        delta (`float`): between 0 and 1.
    """

    epsilon: float
    delta: float


class Sums(NamedTuple):
    """
    What a domain's prompts add up to.

    Args:
        counts (`torch.Tensor` of shape `(V,)`): of its tokens, int64; of a private collection, in shares of a prompt.
        documents (`torch.Tensor` of shape `(V,)`): in how many prompts each token occurs, int64.
        prompts (`torch.Tensor` of shape `(F + 1, F + 1)`): A over the rows of prompts, float64.
    """

    counts: torch.Tensor
    documents: torch.Tensor
    prompts: torch.Tensor

    def __add__(self, other: Sums) -> Sums:  # type: ignore[override]
        return Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def statistics(self, features: torch.Tensor, fingerprint: str, privacy: Privacy | None) -> DomainStatistics:
        """The statistics, as one contribution; of a private collection with the noise that hides each prompt.

        Args:
            features (`torch.Tensor` of shape `(V, F)`): of each token.
            fingerprint (`str`): of the feature space.
            privacy ([`Privacy`], *optional*): what was promised.
        """
        tokens = gram_from_counts(self.counts, features)
        if privacy is not None:
            return release(tokens / SHARE, self.prompts, fingerprint, *privacy)
        grams = {"tokens": tokens, "prompts": self.prompts}
        return DomainStatistics.from_grams(grams, fingerprint, self.documents)


@dataclass
class _Domain:
    """The sums of a domain, and prompts that wait to be added."""

    collector: StatisticsCollector
    waiting: list[list[int]] = field(default_factory=list)
    tokens: int = 0

    def add(self, ids: list[int]) -> None:
        """Adds a prompt. Which others it is summed with is up to its own domain, whatever domains there are beside."""
        if self.tokens + len(ids) > _TOKENS or len(self.waiting) == _PROMPTS:
            self.flush()
        self.waiting.append(ids)
        self.tokens += len(ids)

    def flush(self) -> None:
        """Adds the prompts that wait."""
        if self.waiting:
            self.collector.add(Prompts.of(self.waiting))
            self.waiting, self.tokens = [], 0


class Collecting:
    """
    Turns labelled texts into the sums of their domains.

    Args:
        model ([`IR3DEModel`]): the router.
        device (`str`): where the rows of prompts are summed; one that knows float64.
        private (`bool`): bound what a prompt adds.
    """

    def __init__(self, model: IR3DEModel, device: str = "cpu", private: bool = False) -> None:
        self.model = model
        first = model.collector(device)
        self._first = PrivateCollector(first.features, first.fingerprint, device) if private else first
        self._domains: dict[str, _Domain] = {}

    def add(self, domains: Iterable[str], texts: Iterable[str]) -> None:
        """Adds texts, each of its domain; what has no token is left out."""
        encoded = token_ids_of(self.model.tokenizer, list(texts), self.model.config.max_length)
        with one_thread():  # the number of threads decides a sum's last bits
            for domain, ids in zip(domains, encoded, strict=True):
                if ids:
                    self._of(domain).add(ids)

    def _of(self, domain: str) -> _Domain:
        if domain not in self._domains:
            self._domains[domain] = _Domain(self._first.of_another())
        return self._domains[domain]

    def sums(self) -> dict[str, Sums]:
        """The sums by domain, in order of the domains' names."""
        with one_thread():
            for domain in self._domains.values():
                domain.flush()
        made = {name: self._domains[name].collector for name in sorted(self._domains)}
        return {name: Sums(of.counts, of.documents, of.prompts.cpu()) for name, of in made.items()}

    @property
    def fingerprint(self) -> str:
        """Of the feature space."""
        return self._first.fingerprint


def save_sums(path: Path, sums: Mapping[str, Sums], fingerprint: str, notes: Mapping[str, Any]) -> None:
    """Writes the sums of domains to a file, which is there whole or not at all.

    Args:
        path (`Path`): of the file.
        sums (`Mapping[str, Sums]`): by domain.
        fingerprint (`str`): of the feature space.
        notes (`Mapping[str, Any]`): what was noticed while reading, as JSON.
    """
    header = {"format": FORMAT, "fingerprint": fingerprint, "domains": list(sums), "notes": notes}
    tensors = {f"{i}.{key}": value for i, of in enumerate(sums.values()) for key, value in of._asdict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with writing_tensors(partial):
        save_file(tensors or {"none": torch.zeros(0)}, partial, metadata={"ir3de": json.dumps(header, sort_keys=True)})
    os.replace(partial, path)


def read_notes(path: Path, fingerprint: str) -> tuple[list[str], dict[str, Any]]:
    """The domains that a file has sums of, and what was noticed while reading.

    Args:
        path (`Path`): of the file.
        fingerprint (`str`): of the feature space that the sums must lie in.

    Raises:
        ValueError: the file is damaged, or of another feature space.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("ir3de", "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and run the same command again.") from error
    if header.get("format") != FORMAT or header.get("fingerprint") != fingerprint:
        raise ValueError(
            f"{path} has sums of format {header.get('format')!r} in feature space {header.get('fingerprint')}; expected"
            f" {FORMAT!r} in {fingerprint}: they were made with another router. Remove them, and collect again."
        )
    return list(header["domains"]), dict(header["notes"])


def read_sums(path: Path, number: int) -> Sums:
    """The sums of one domain of a file, which is found by its number."""
    with safe_open(path, framework="pt") as file:
        return Sums(*(file.get_tensor(f"{number}.{key}") for key in Sums._fields))
