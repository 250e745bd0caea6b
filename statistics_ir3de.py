"""Section 3.1, first half: the sums A = X^T X and b = X^T y of each domain, from token counts, in float64.

X has a row for each token, or for each prompt. Its last column is 1, so A holds everything: b is A's last column and
the number of rows its last entry. Beside them, unless its owner keeps that back, a node counts in how many of its
prompts each token occurs. A domain's sums are a union of *contributions*, each named by a hash of its content.
Unions do not care for order and notice repetition, so the same set of contributions is the same router, bit for bit,
however it was put together.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .atomic_save_ir3de import writing_tensors
from .batch_ir3de import MOST_TOKENS, Prompts, batches, prompt_weights, prompts_of, weighted_sums

FORMAT = "ir3de-statistics-1"
KINDS = ("tokens", "prompts")  # of rows
DOCUMENTS = "documents"  # how a file names the number of prompts that each token occurs in
_CHUNK = 8192  # rows of the vocabulary that are hashed at a time
_GRAM_ROWS, _GRAM_COLUMNS = 2048, 160  # of the vocabulary, widened to float64, and of A, that are multiplied at a time
_PROMPT_COLUMNS = 192  # of A over prompts' rows
_BLOCK = 256  # rows and columns of a matrix that are mirrored at a time
_MOST_BYTES = 8 << 30  # of a file
_MOST_HEADER = 1 << 20  # bytes
_MOST_COLUMNS = 1 << 14
_TENSOR = re.compile(r"[0-9a-f]{16}\.(tokens|prompts|documents)")
_TOLERANCE = 1e-9  # of A's trace, by which rounding may make an eigenvalue negative


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


def count_documents(prompts: Prompts, vocab_size: int) -> torch.Tensor:
    """Counts in how many prompts each token occurs, the document frequency of text retrieval.

    Args:
        prompts ([`Prompts`]): any number of them.
        vocab_size (`int`): V.

    Returns:
        `torch.Tensor` of shape `(V,)`, int64: exact, so counts of parts add up in any order.
    """
    token_ids, lengths = prompts
    distinct = (prompts_of(lengths, len(token_ids)) * vocab_size + token_ids).unique()
    return torch.bincount(distinct % vocab_size, minlength=vocab_size)


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
        `torch.Tensor` of shape `(F + 1, F + 1)`, float64: with the column of ones last. The same bit for bit whatever
        the number of threads, each of which multiplies blocks of its own, so that the same counts are the same
        contribution on every node.
    """
    width = features.shape[1] + 1
    A = torch.zeros(width, width, dtype=torch.float64)
    threads = torch.get_num_threads()
    with one_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for ids in counts.nonzero().squeeze(1).split(_GRAM_ROWS):
            X = torch.ones(len(ids), width, dtype=torch.float64)
            X[:, :-1] = features[ids]
            cX = X * counts[ids].unsqueeze(1)
            list(pool.map(partial(_add_block, A, cX, X, _GRAM_COLUMNS), range(0, width, _GRAM_COLUMNS)))
    return _mirrored(A)


@torch.inference_mode()  # which threads do not take over from the one that starts them
def _add_block(A: torch.Tensor, cX: torch.Tensor, X: torch.Tensor, columns: int, start: int) -> None:
    """Adds some rows of cX^T X to A, which is symmetric: what lies left of the diagonal is spared."""
    part = slice(start, start + columns)
    A[part, start:].addmm_(cX[:, part].T, X[:, start:])


def _mirrored(A: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix whose upper triangle this is."""
    return A.triu() + A.triu(1).T


_process = os.getpid()  # whose threads torch computes on


def threads_of_this_process() -> None:
    """Makes torch compute on one thread in a process that was forked: it would wait for ever for its parent's others,
    which a fork does not take along. Costs a fraction of a microsecond elsewhere.
    """
    global _process  # noqa: PLW0603
    if os.getpid() != _process:
        torch.set_num_threads(1)
        _process = os.getpid()


@contextmanager
def one_thread() -> Iterator[None]:
    """Makes torch compute on one thread: how many there are decides the order of a sum and so its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class StatisticsCollector:
    """
    Collects the sums of one domain: counts of its tokens and of the prompts they occur in, and A over prompts' rows.

    Args:
        features (`torch.Tensor` of shape `(V, F)`): of each token, float32, on the CPU.
        fingerprint (`str`): of the feature space.
        device (`str` or `torch.device`): where prompts' rows are summed, the bulk of the work; it must know float64.
            Counting, and A over the token rows, stay on the CPU, so that they are the same on every node.
    """

    def __init__(self, features: torch.Tensor, fingerprint: str, device: str | torch.device = "cpu") -> None:
        self.features = features
        self.fingerprint = fingerprint
        self._placed = features.to(device)
        self.counts = torch.zeros(len(features), dtype=torch.int64)
        self.documents = torch.zeros_like(self.counts)
        width = features.shape[1] + 1
        self._upper = torch.zeros(width, width, dtype=torch.float64, device=device)

    def of_another(self) -> Self:
        """An empty collector of this kind, for another domain: the two share the features, and nothing else."""
        made = copy.copy(self)
        made.counts, made.documents, made._upper = map(torch.zeros_like, (self.counts, self.documents, self._upper))
        return made

    @property
    def prompts(self) -> torch.Tensor:
        """A over prompts' rows, `(F + 1, F + 1)`, float64, on the device where they are summed."""
        return _mirrored(self._upper)

    def add(self, prompts: Prompts) -> None:
        """Adds prompts, each of at least one token.

        Raises:
            ValueError: an id lies outside the vocabulary; nothing has been added.
        """
        self._count(prompts)
        width, device = len(self._upper), self._upper.device
        for part in batches(prompts.to(device)):
            X = torch.ones(len(part.lengths), width, dtype=torch.float64, device=device)
            X[:, :-1] = self._rows(part)
            for start in range(0, width, _PROMPT_COLUMNS):
                _add_block(self._upper, X, X, _PROMPT_COLUMNS, start)

    def _count(self, prompts: Prompts) -> None:
        """Adds to the counts of tokens and of the prompts that they occur in."""
        self.counts += count_tokens(prompts.token_ids, len(self.features))
        self.documents += count_documents(prompts, len(self.features))

    def _rows(self, prompts: Prompts) -> torch.Tensor:
        """Rows of prompts, of shape `(prompts, F)`."""
        return weighted_sums(self._placed, prompts, prompt_weights(prompts))

    @property
    def statistics(self) -> DomainStatistics:
        """The sums so far, as one contribution."""
        grams = {"tokens": gram_from_counts(self.counts, self.features), "prompts": self.prompts.cpu()}
        return DomainStatistics.from_grams(grams, self.fingerprint, self.documents)


class FeatureSpace(NamedTuple):
    """
    What the rows of X lie in; sums add up only within one.

    Args:
        fingerprint (`str`): of a router's tokenizer, embeddings and feature map, or of a second opinion's encoder.
        columns (`int`): width of a row, the column of ones included.
    """

    fingerprint: str
    columns: int

    def check(self, which: str, found: FeatureSpace) -> None:
        """Raises ValueError where statistics are not of this feature space.

        Args:
            which (`str`): which statistics, for the message, such as `"of 'law'"`.
            found ([`FeatureSpace`]): theirs.
        """
        if found != self:
            raise ValueError(
                f"The statistics {which} are of feature space {found.fingerprint} with {found.columns} columns;"
                f" expected {self.fingerprint} with {self.columns}. Collect them again with the router that they are"
                " for, which has the tokenizer, embeddings and feature map, or with the second opinion that they are"
                " for, which has the encoder."
            )


class DomainStatistics:
    """
    The sums of one domain, as a set of contributions.

    Args:
        size (`int`): width of a row of X, the column of ones included.
        fingerprint (`str`): of the feature space that the rows lie in.
        contributions (`dict[str, dict[str, torch.Tensor]]`, *optional*): by id and then by kind of row, `"tokens"` and
            `"prompts"`, the upper triangle of A in row order, float64; and under `"documents"`, where they are told,
            the numbers of prompts that each token of the vocabulary occurs in, int64.
    """

    def __init__(
        self, size: int, fingerprint: str, contributions: dict[str, dict[str, torch.Tensor]] | None = None
    ) -> None:
        self.size = size
        self.fingerprint = fingerprint
        self.contributions = dict(contributions or {})

    @classmethod
    def from_grams(
        cls, grams: Mapping[str, torch.Tensor], fingerprint: str, documents: torch.Tensor | None = None
    ) -> DomainStatistics:
        """Makes the statistics of one contribution from its sums.

        Args:
            grams (`Mapping[str, torch.Tensor]` of shape `(size, size)`): A by kind of row.
            fingerprint (`str`): of the feature space.
            documents (`torch.Tensor` of shape `(V,)`, *optional*): in how many prompts each token occurs.
        """
        size = len(grams[KINDS[0]])
        packed = {kind: grams[kind][_upper(size)] for kind in KINDS}
        if documents is not None:
            packed[DOCUMENTS] = documents
        return cls(size, fingerprint, {content_hash(packed): packed})

    @property
    def space(self) -> FeatureSpace:
        """What the rows lie in."""
        return FeatureSpace(self.fingerprint, self.size)

    def gram(self, kind: str) -> torch.Tensor:
        """A_d of shape `(size, size)`, float64, of a kind of row: the contributions summed in order of their ids."""
        return _unpack(self.packed(kind), self.size)

    def packed(self, kind: str) -> torch.Tensor:
        """The upper triangle of A_d in row order, float64; not to be changed in place."""
        first, *others = (self.contributions[key][kind] for key in sorted(self.contributions))
        return sum(others, first)

    @property
    def documents(self) -> torch.Tensor | None:
        """In how many prompts each token occurs, of shape `(V,)`; None unless every contribution tells."""
        told = [contribution.get(DOCUMENTS) for contribution in self.contributions.values()]
        return None if None in told else torch.stack(told).sum(dim=0)  # type: ignore[arg-type]

    def diagonal(self, kind: str) -> torch.Tensor:
        """The diagonal of A_d, of shape `(size,)`."""
        return self.packed(kind)[_ends(self.size) - torch.arange(self.size - 1, -1, -1)]

    def rows(self, kind: str) -> int:
        """n_d, the number of rows of a kind behind the sums: tokens or prompts."""
        return round(sum(float(contribution[kind][-1]) for contribution in self.contributions.values()))

    def __or__(self, other: DomainStatistics) -> DomainStatistics:
        """The union with another node's contributions to the same domain."""
        self.space.check("that are to be added", other.space)
        return DomainStatistics(self.size, self.fingerprint, {**self.contributions, **other.contributions})

    def only(self, keys: Collection[str]) -> DomainStatistics:
        """The contributions of these ids."""
        chosen = {key: kinds for key, kinds in self.contributions.items() if key in keys}
        return DomainStatistics(self.size, self.fingerprint, chosen)

    def check(self, name: str, longest: Mapping[str, float]) -> None:
        """Checks that every contribution can be what it claims, sums x x^T over rows x: statistics may be a stranger's.

        Args:
            name (`str`): of the domain, for the message.
            longest (`Mapping[str, float]`): by kind, the largest squared length that a row can have, the one left out.

        Raises:
            ValueError: sums are larger than their number of rows allows, or not positive semi-definite.
        """
        for key, kinds in self.contributions.items():
            for kind in KINDS:
                A = _unpack(kinds[kind], self.size)
                trace, n = float(A.diagonal()[:-1].sum()), float(A[-1, -1])
                if not trace <= n * longest[kind] * (1 + 1e-4):
                    raise ValueError(
                        f"Contribution {key} to {name!r}: its {kind} sum to a trace of {trace:.6g}, but {n:.0f} rows of"
                        f" this feature space give at most {n * longest[kind]:.6g}. Have it collected again."
                    )
                A.diagonal().add_(_TOLERANCE * (trace + n))
                if int(torch.linalg.cholesky_ex(A)[1]):
                    raise ValueError(
                        f"Contribution {key} to {name!r}: its {kind} are not positive semi-definite, which sums of"
                        " x x^T are. Have it collected again."
                    )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the contributions to a safetensors file; the same contributions give the same bytes."""
        header = {"format": FORMAT, "fingerprint": self.fingerprint, "size": self.size}
        tensors = {
            f"{key}.{kind}": self.contributions[key][kind]
            for key in sorted(self.contributions)
            for kind in sorted(self.contributions[key])
        }
        # One metadata entry: safetensors does not keep the order of several.
        with writing_tensors(Path(path)):
            save_file(tensors, path, metadata={"ir3de": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], expected: FeatureSpace | None = None) -> DomainStatistics:
        """Reads what [`DomainStatistics.save`] wrote.

        Args:
            path (`str` or `os.PathLike`): of the file.
            expected ([`FeatureSpace`], *optional*): the sums of a file of another one are not read.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is truncated, of another format or feature space, or its sums are not what they should
                be.
        """
        space = read_header(path)
        if expected is not None:
            expected.check(f"in {path}", space)
        contributions: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                key, _, kind = name.partition(".")
                contributions[key][kind] = packed = file.get_tensor(name)
                if kind != DOCUMENTS and not (bool(packed.isfinite().all()) and _is_count(float(packed[-1]))):
                    raise ValueError(
                        f"{path}: {name} holds NaN, infinity, or a last entry that is no number of rows. Collect it"
                        " again."
                    )
        for key, kinds in contributions.items():
            _check_documents(path, key, kinds)
            if content_hash(kinds) != key:
                raise ValueError(
                    f"{path}: the sums of contribution {key} are not those it is named by: fetch it again."
                )
        return cls(space.columns, space.fingerprint, dict(contributions))


def total(domains: Iterable[DomainStatistics], kind: str, balance: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B over all domains, of a kind of row. The triangles are added up as they are, and only the sum is unpacked.

    Args:
        domains (`Iterable[DomainStatistics]`): of one feature space, in the order of B's columns; at least one.
        kind (`str`): `"tokens"` or `"prompts"`.
        balance (`bool`): A = sum_d A_d / n_d and column d of B is b_d / n_d; else the plain sums.

    Returns:
        A, `torch.Tensor` of shape `(size, size)`, and B, of shape `(size, D)`; float64. Labels are one-hot, so b_d is
        the last column of A_d.
    """
    columns: list[torch.Tensor] = []
    A = weighted = torch.empty(0)
    for domain in domains:
        packed = domain.packed(kind)
        if not columns:
            A, weighted = torch.zeros_like(packed), torch.empty_like(packed)
        A += torch.div(packed, packed[-1] if balance else 1, out=weighted)
        columns.append(weighted[_ends(domain.size)])
    return _unpack(A, len(columns[0])), torch.stack(columns, dim=1)


def read_header(path: str | os.PathLike[str]) -> FeatureSpace:
    """Checks the header of a statistics file and what its tensors are, and returns its feature space; no sums are read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, too large or of another format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"The statistics file {path} is missing: copy it from the router's repository again.")
    try:
        _check_bytes(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("ir3de", "{}"))
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            layout = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or not a statistics file ({error}): fetch it again.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"{path} has format {str(found)[:60]!r}; this version reads {FORMAT!r}.")
    _check_layout(path, header, layout)
    return FeatureSpace(header["fingerprint"], header["size"])


def _check_bytes(path: str | os.PathLike[str]) -> None:
    """Raises ValueError where a file or its header is too large to be read at all."""
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > _MOST_HEADER:
        raise ValueError(f"its header would have {header:,} bytes, more than {_MOST_HEADER:,}")
    if os.path.getsize(path) > _MOST_BYTES:
        raise ValueError(f"it has {os.path.getsize(path):,} bytes, more than {_MOST_BYTES:,}")


def _check_layout(
    path: str | os.PathLike[str], header: Mapping[str, Any], layout: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    """Raises ValueError unless the tensors are pairs of packed triangles, and the header says of what size."""
    size, space = header.get("size"), header.get("fingerprint")
    if type(size) is not int or not 1 < size <= _MOST_COLUMNS or not isinstance(space, str) or len(space) > 64:
        raise ValueError(f"{path}: its header has no fingerprint, or no size of 2 to {_MOST_COLUMNS} columns.")
    for name, found in layout.items():
        if not _TENSOR.fullmatch(name):
            raise ValueError(f"{path} holds {name[:80]!r}, which is no sum of a contribution: fetch it again.")
        if name.endswith(DOCUMENTS):
            if len(found[0]) != 1 or not 1 <= found[0][0] <= MOST_TOKENS or found[1] != "I64":
                raise ValueError(
                    f"{path}: {name} has shape {found[0]} and dtype {found[1]}; expected a number for each of at most"
                    f" {MOST_TOKENS} tokens, I64. The file was not written by this library."
                )
        elif found != ((size * (size + 1) // 2,), "F64"):
            raise ValueError(
                f"{path}: {name} has shape {found[0]} and dtype {found[1]}; expected ({size * (size + 1) // 2},) and"
                " F64. The file was not written by this library."
            )
    ids = {name.partition(".")[0] for name in layout}
    if not ids or any(f"{key}.{kind}" not in layout for key in ids for kind in KINDS):
        raise ValueError(f"{path}: expected contributions with sums of {' and '.join(KINDS)}, got {sorted(layout)}.")


def _check_documents(path: str | os.PathLike[str], key: str, kinds: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError where numbers of prompts that tokens occur in cannot be such, or not of so many rows."""
    documents = kinds.get(DOCUMENTS)
    if documents is None:
        return
    low, high = (int(bound) for bound in documents.aminmax())
    tokens, prompts = (float(kinds[kind][-1]) for kind in KINDS)
    if low < 0 or high > prompts or float(documents.double().sum()) > tokens:
        raise ValueError(
            f"{path}: contribution {key} has tokens in {low} to {high} prompts, but {prompts:.0f} prompts of"
            f" {tokens:.0f} tokens in all. Collect it again."
        )


def _is_count(value: float) -> bool:
    """Whether a float64 is a number of rows that is counted exactly."""
    return 1 <= value <= 2**53 and value.is_integer()


def content_hash(packed: Mapping[str, torch.Tensor]) -> str:
    """Names a contribution: 16 hexadecimal digits of a hash over its sums."""
    digest = hashlib.sha256()
    for kind in (*KINDS, DOCUMENTS):
        if kind in packed:
            digest.update(packed[kind].numpy().tobytes())
    return digest.hexdigest()[:16]


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


def _ends(size: int) -> torch.Tensor:
    """Where the rows of a packed upper triangle end: the places of the matrix's last column."""
    return torch.arange(size, 0, -1).cumsum(0) - 1


def _unpack(packed: torch.Tensor, size: int) -> torch.Tensor:
    """The symmetric matrix of shape `(size, size)` whose upper triangle in row order is given."""
    A = torch.zeros(size, size, dtype=torch.float64)
    for i, row in enumerate(packed.split(list(range(size, 0, -1)))):  # far faster than by indices
        A[i, i:] = row
    for start in range(0, size, _BLOCK):  # block by block the transposed copy stays in the processor's cache
        rows, rest = slice(start, start + _BLOCK), slice(start + _BLOCK, size)
        A[rest, rows] = A[rows, rest].T
        A[rows, rows] += A[rows, rows].triu(1).T
    return A
