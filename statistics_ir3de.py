"""Section 3.1, first half: the sums A = X^T X and b = X^T y of each domain, from token counts, in float64.

X has a row for each token, or for each prompt. Its last column is 1, so A holds everything: b is A's last column and
the number of rows its last entry. A domain's sums are a union of *contributions*, each named by a hash of its content.
Unions do not care for order and notice repetition, so the same set of contributions is the same router, bit for bit,
however it was put together.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "ir3de-statistics-1"
KINDS = ("tokens", "prompts")  # of rows
_PADDED_TOKENS = 1 << 18  # of a batch, padding included
_CHUNK = 8192  # rows of the vocabulary that are widened to float64 at a time


def count_tokens(token_ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Counts how often each token occurs: c_d(v) of domain d.

    Args:
        token_ids (`torch.Tensor` of shape `(N,)`): ids of all tokens, without padding.
        vocab_size (`int`): V.

    Returns:
        `torch.Tensor` of shape `(V,)`, int64: exact, so counts of parts add up in any order.

    Raises:
        ValueError: an id lies outside the vocabulary, as with a tokenizer that does not fit the embeddings.
    """
    check_token_ids(token_ids, vocab_size)
    return torch.bincount(token_ids, minlength=vocab_size)


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


def gram_from_counts(counts: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """A_d = X^T diag(c_d) X, the sum over all tokens of a domain in one weighted product over the vocabulary.

    Args:
        counts (`torch.Tensor` of shape `(V,)`): c_d, whole numbers.
        features (`torch.Tensor` of shape `(V, F)`): of each token; in the paper its embedding.

    Returns:
        `torch.Tensor` of shape `(F + 1, F + 1)`, float64: with the column of ones last.
    """
    width = features.shape[1] + 1
    A = torch.zeros(width, width, dtype=torch.float64)
    for ids in counts.nonzero().squeeze(1).split(_CHUNK):
        X = torch.ones(len(ids), width, dtype=torch.float64)
        X[:, :-1] = features[ids]
        A.addmm_((X * counts[ids].unsqueeze(1)).T, X)
    return A


def mean_weights(mask: torch.Tensor) -> torch.Tensor:
    """Weights of a prompt's tokens whose weighted sum is their mean; `mask` and result are of shape `(B, T)`."""
    return mask / mask.sum(dim=1, keepdim=True)


def prompt_weights(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Weights of a prompt's tokens whose weighted sum is its row: sum_v w_v phi_v / sqrt(sum_v w_v^2).

    v runs over the prompt's distinct tokens and w_v = 1 + ln(count of v), so that repetition counts, but less and less.
    The norm needs the weights alone; it is the length that the row has if its tokens are orthogonal and of length one.

    Args:
        input_ids (`torch.Tensor` of shape `(B, T)`): token ids.
        mask (`torch.Tensor` of shape `(B, T)`): true where there is a token; at least one a prompt.

    Returns:
        `torch.Tensor` of shape `(B, T)`, float32: occurrences of one token share its weight, padding has none.
    """
    ids = input_ids.masked_fill(~mask, -1)
    ordered = ids.sort(dim=1).values
    counts = torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
    w = (1 + torch.arange(input_ids.shape[1] + 1, device=ids.device).double().log())[counts] * mask
    norms = (w.square() / counts).sum(dim=1, keepdim=True).sqrt()
    return (w / counts / norms).float()


def padded_batches(
    token_ids: torch.Tensor, lengths: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Splits prompts of any lengths into as few padded batches as memory allows, like lengths together.

    Args:
        token_ids (`torch.Tensor` of shape `(sum of lengths,)`): the prompts' token ids one after another.
        lengths (`torch.Tensor` of shape `(prompts,)`): tokens of each prompt, at least 1.

    Yields:
        indices of the prompts in a batch, its `input_ids` and its `mask`, padded on the right.
    """
    starts = lengths.cumsum(0) - lengths
    rest = lengths.argsort(descending=True)
    while len(rest):
        longest = int(lengths[rest[0]])
        prompts, rest = rest.tensor_split([max(1, _PADDED_TOKENS // longest)])
        positions = torch.arange(longest, device=lengths.device)
        mask = positions < lengths[prompts, None]
        yield prompts, token_ids[(starts[prompts, None] + positions).clamp(max=len(token_ids) - 1)], mask


def weighted_sums(table: torch.Tensor, input_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums of a table's rows: `(V, D)` by ids and weights of shape `(B, T)` to `(B, D)`."""
    return F.embedding_bag(input_ids, table, per_sample_weights=weights, mode="sum")


class StatisticsCollector:
    """
    Collects the sums of one domain: counts of its tokens, and A over its prompts' rows.

    Args:
        features (`torch.Tensor` of shape `(V, F)`): of each token, float32.
        fingerprint (`str`): of the feature space.
    """

    def __init__(self, features: torch.Tensor, fingerprint: str) -> None:
        self.features = features
        self.fingerprint = fingerprint
        self.counts = torch.zeros(len(features), dtype=torch.int64)
        width = features.shape[1] + 1
        self.prompts = torch.zeros(width, width, dtype=torch.float64)

    def add(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> None:
        """Adds prompts.

        Args:
            token_ids (`torch.Tensor` of shape `(sum of lengths,)`): the prompts' token ids one after another.
            lengths (`torch.Tensor` of shape `(prompts,)`): tokens of each prompt, at least 1.

        Raises:
            ValueError: an id lies outside the vocabulary; nothing has been added.
        """
        self.counts += count_tokens(token_ids, len(self.features))
        for _, input_ids, mask in padded_batches(token_ids, lengths):
            X = torch.ones(len(input_ids), len(self.prompts), dtype=torch.float64)
            X[:, :-1] = weighted_sums(self.features, input_ids, prompt_weights(input_ids, mask))
            self.prompts.addmm_(X.T, X)

    @property
    def statistics(self) -> DomainStatistics:
        """The sums so far, as one contribution."""
        grams = {"tokens": gram_from_counts(self.counts, self.features), "prompts": self.prompts}
        return DomainStatistics.from_grams(grams, self.fingerprint)


class DomainStatistics:
    """
    The sums of one domain, as a set of contributions.

    Args:
        size (`int`): width of a row of X, the column of ones included.
        fingerprint (`str`): of the feature space that the rows lie in.
        contributions (`dict[str, dict[str, torch.Tensor]]`, *optional*): by id and then by kind of row, `"tokens"` and
            `"prompts"`, the upper triangle of A in row order, float64.
    """

    def __init__(
        self, size: int, fingerprint: str, contributions: dict[str, dict[str, torch.Tensor]] | None = None
    ) -> None:
        self.size = size
        self.fingerprint = fingerprint
        self.contributions = dict(contributions or {})

    @classmethod
    def from_grams(cls, grams: Mapping[str, torch.Tensor], fingerprint: str) -> DomainStatistics:
        """Makes the statistics of one contribution from its sums A, of shape `(size, size)`, by kind of row."""
        size = len(grams[KINDS[0]])
        packed = {kind: grams[kind][_upper(size)] for kind in KINDS}
        digest = hashlib.sha256()
        for kind in KINDS:
            digest.update(packed[kind].numpy().tobytes())
        return cls(size, fingerprint, {digest.hexdigest()[:16]: packed})

    def gram(self, kind: str) -> torch.Tensor:
        """A_d of shape `(size, size)`, float64, of a kind of row: the contributions summed in order of their ids."""
        packed = torch.zeros(self.size * (self.size + 1) // 2, dtype=torch.float64)
        for key in sorted(self.contributions):
            packed += self.contributions[key][kind]
        A = torch.zeros(self.size, self.size, dtype=torch.float64)
        rows, columns = _upper(self.size)
        A[rows, columns] = packed
        A[columns, rows] = packed
        return A

    def rows(self, kind: str) -> int:
        """n_d, the number of rows of a kind behind the sums: tokens or prompts."""
        return round(sum(float(contribution[kind][-1]) for contribution in self.contributions.values()))

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
        tensors = {
            f"{key}.{kind}": self.contributions[key][kind] for key in sorted(self.contributions) for kind in KINDS
        }
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
        size = int(header["size"])
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        contributions: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, packed in tensors.items():
            if packed.shape != (size * (size + 1) // 2,) or packed.dtype != torch.float64:
                raise ValueError(
                    f"{path}: {name} has shape {tuple(packed.shape)} and dtype {packed.dtype}; expected"
                    f" ({size * (size + 1) // 2},) and float64. The file was not written by this library."
                )
            if not bool(packed.isfinite().all()) or float(packed[-1]) < 1:
                raise ValueError(f"{path}: {name} holds NaN, infinity or no rows. Collect it again.")
            key, _, kind = name.partition(".")
            contributions[key][kind] = packed
        for key, kinds in contributions.items():
            if set(kinds) != set(KINDS):
                raise ValueError(f"{path}: contribution {key} holds {sorted(kinds)}; expected {sorted(KINDS)}.")
        return cls(size, str(header["fingerprint"]), dict(contributions))


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
            empty = not file.keys()
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is truncated or not a statistics file ({error}): fetch it again.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"{path} has format {found!r}; this version reads {FORMAT!r}.")
    if not isinstance(header.get("size"), int) or not isinstance(header.get("fingerprint"), str) or empty:
        raise ValueError(f"{path} has no size, no fingerprint or no sums in it: it was not written by this library.")
    return dict(header)


def fingerprint(vocabulary: Mapping[str, int], probe: list[int], embeddings: torch.Tensor, feature_map: str) -> str:
    """Names a feature space: 16 hexadecimal digits of a hash over tokenizer, embeddings and feature map.

    Args:
        vocabulary (`Mapping[str, int]`): the tokenizer's tokens and ids.
        probe (`list[int]`): ids of a fixed text, which tell apart tokenizers that share a vocabulary.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        feature_map (`str`): description of the feature map.
    """
    digest = hashlib.sha256(json.dumps([sorted(vocabulary.items()), probe, feature_map]).encode())
    digest.update(str(tuple(embeddings.shape)).encode())
    for rows in embeddings.detach().cpu().split(_CHUNK):
        digest.update(rows.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _upper(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the upper triangle of a square matrix, the diagonal included, in row order."""
    rows, columns = torch.triu_indices(size, size)
    return rows, columns
