"""Section 3.1, first half: the sums A = X^T X and b = X^T y of each domain, from token counts, in float64.

X has a row for each token and its last column is 1, so A holds everything: b is A's last column and the number of rows
its last entry. A domain's sums are a union of *contributions*, each named by a hash of its content. Unions do not care
for order and notice repetition, so the same set of contributions is the same router, bit for bit, however it was put
together.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "ir3de-statistics-1"
_CHUNK = 8192  # rows of the vocabulary that are widened to float64 at a time


def count_tokens(token_ids: Iterable[list[int]], vocab_size: int) -> torch.Tensor:
    """Counts how often each token occurs: c_d(v) of domain d.

    Args:
        token_ids (`Iterable[list[int]]`): token ids of each prompt, without padding.
        vocab_size (`int`): V.

    Returns:
        `torch.Tensor` of shape `(V,)`, int64: exact, so counts of parts add up in any order.

    Raises:
        ValueError: an id lies outside the vocabulary, as with a tokenizer that does not fit the embeddings.
    """
    flat = torch.tensor(list(chain.from_iterable(token_ids)), dtype=torch.int64)
    check_token_ids(flat, vocab_size)
    return torch.bincount(flat, minlength=vocab_size)


def check_token_ids(token_ids: torch.Tensor, vocab_size: int) -> None:
    """Raises ValueError where a token id has no row in the embeddings."""
    if token_ids.numel() == 0:
        return
    low, high = (int(bound) for bound in token_ids.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"The tokenizer gave token id {high if high >= vocab_size else low}, but the embeddings have rows 0 to"
            f" {vocab_size - 1}: tokenizer and embeddings do not belong together. Take both from the same model."
        )


def gram_from_counts(counts: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """A_d = X^T diag(c_d) X, the sum over all tokens of a domain in one weighted product over the vocabulary.

    Args:
        counts (`torch.Tensor` of shape `(V,)`): c_d, whole numbers.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.

    Returns:
        `torch.Tensor` of shape `(h + 1, h + 1)`, float64: with the column of ones last.
    """
    width = embeddings.shape[1] + 1
    A = torch.zeros(width, width, dtype=torch.float64)
    for ids in counts.nonzero().squeeze(1).split(_CHUNK):
        X = torch.ones(len(ids), width, dtype=torch.float64)
        X[:, :-1] = embeddings[ids]
        A += (X * counts[ids].unsqueeze(1)).T @ X
    return A


class DomainStatistics:
    """
    The sums of one domain, as a set of contributions.

    Args:
        size (`int`): width of a row of X, the column of ones included.
        fingerprint (`str`): of the feature space that the rows lie in.
        contributions (`dict[str, torch.Tensor]`, *optional*): by id, the upper triangle of A in row order, float64.
    """

    def __init__(self, size: int, fingerprint: str, contributions: dict[str, torch.Tensor] | None = None) -> None:
        self.size = size
        self.fingerprint = fingerprint
        self.contributions = dict(contributions or {})

    @classmethod
    def from_gram(cls, A: torch.Tensor, fingerprint: str) -> DomainStatistics:
        """Makes the statistics of one contribution from its sums A of shape `(size, size)`."""
        packed = A[_upper(len(A))].contiguous()
        digest = hashlib.sha256(packed.numpy().tobytes()).hexdigest()[:16]
        return cls(len(A), fingerprint, {digest: packed})

    @property
    def gram(self) -> torch.Tensor:
        """A_d of shape `(size, size)`, float64: the contributions summed in the order of their ids."""
        packed = torch.zeros(self.size * (self.size + 1) // 2, dtype=torch.float64)
        for key in sorted(self.contributions):
            packed += self.contributions[key]
        A = torch.zeros(self.size, self.size, dtype=torch.float64)
        rows, columns = _upper(self.size)
        A[rows, columns] = packed
        A[columns, rows] = packed
        return A

    @property
    def rows(self) -> int:
        """n_d, the number of rows (tokens) behind the sums."""
        return round(sum(float(packed[-1]) for packed in self.contributions.values()))

    def __or__(self, other: DomainStatistics) -> DomainStatistics:
        """The union with another node's contributions to the same domain."""
        if (self.fingerprint, self.size) != (other.fingerprint, other.size):
            raise ValueError(
                f"Statistics of feature space {other.fingerprint} ({other.size} columns) cannot be added to those of"
                f" {self.fingerprint} ({self.size} columns). Collect them again with this router's tokenizer and"
                " embeddings."
            )
        return DomainStatistics(self.size, self.fingerprint, {**self.contributions, **other.contributions})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the contributions to a safetensors file; the same contributions give the same bytes."""
        header = {"format": FORMAT, "fingerprint": self.fingerprint, "size": self.size}
        tensors = {key: self.contributions[key] for key in sorted(self.contributions)}
        # One metadata entry: safetensors does not keep the order of several.
        save_file(tensors, path, metadata={"ir3de": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DomainStatistics:
        """Reads what [`DomainStatistics.save`] wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is truncated, of another format, or its sums are not what they should be.
        """
        header = read_header(path)
        with safe_open(path, framework="pt") as file:
            contributions = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        statistics = cls(int(header["size"]), str(header["fingerprint"]), contributions)
        packed_size = statistics.size * (statistics.size + 1) // 2
        for key, packed in contributions.items():
            if packed.shape != (packed_size,) or packed.dtype != torch.float64:
                raise ValueError(
                    f"{path}: contribution {key} has shape {tuple(packed.shape)} and dtype {packed.dtype}; expected"
                    f" ({packed_size},) and float64. The file was not written by this library: fetch it again."
                )
            if not bool(packed.isfinite().all()) or float(packed[-1]) < 1:
                raise ValueError(f"{path}: contribution {key} holds NaN, infinity or no rows. Collect it again.")
        return statistics


def read_header(path: str | os.PathLike[str]) -> dict[str, str | int]:
    """Reads and checks the header of a statistics file without reading its sums.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or of another format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"The statistics file {path} is missing: copy it from the router's repository again.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("ir3de", "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is truncated or not a statistics file ({error}): fetch it again.") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} has format {header.get('format')!r}; this version reads {FORMAT!r}.")
    return dict(header)


def fingerprint(vocabulary: dict[str, int], probe: list[int], embeddings: torch.Tensor) -> str:
    """Names a feature space: 16 hexadecimal digits of a hash over tokenizer and embeddings.

    Args:
        vocabulary (`dict[str, int]`): the tokenizer's tokens and ids.
        probe (`list[int]`): ids of a fixed text, which tell apart tokenizers that share a vocabulary.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
    """
    digest = hashlib.sha256(json.dumps([sorted(vocabulary.items()), probe]).encode())
    digest.update(str(tuple(embeddings.shape)).encode())
    for rows in embeddings.detach().cpu().split(_CHUNK):
        digest.update(rows.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _upper(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the upper triangle of a square matrix, the diagonal included, in row order."""
    rows, columns = torch.triu_indices(size, size)
    return rows, columns
