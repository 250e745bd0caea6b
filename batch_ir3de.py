"""A batch of prompts as token ids, without padding, and the weights with which a prompt's tokens count."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

MOST_TOKENS = 1 << 20  # of a vocabulary
_BATCH_TOKENS, _BATCH_PROMPTS = 1 << 16, 1 << 12  # that are worked on at a time


class Prompts(NamedTuple):
    """
    Tokenized prompts of any lengths.

    Args:
        token_ids (`torch.Tensor` of shape `(sum of lengths,)`): of one prompt after another, int64.
        lengths (`torch.Tensor` of shape `(prompts,)`): tokens of each prompt, at least 1, int64.
    """

    token_ids: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, encoded: Sequence[Sequence[int]]) -> Prompts:
        """The prompts whose token ids are given one by one."""
        lengths = [len(ids) for ids in encoded]
        # NumPy reads from an iterator faster than torch from a list (`short_cuts` of scripts/bench/scale.py).
        flat = np.fromiter(chain.from_iterable(encoded), np.int64, sum(lengths))
        return cls(torch.from_numpy(flat), torch.tensor(lengths, dtype=torch.int64))

    def to(self, device: torch.device | str) -> Prompts:
        """These prompts on a device."""
        return Prompts(self.token_ids.to(device), self.lengths.to(device))


def batches(prompts: Prompts) -> Iterator[Prompts]:
    """Splits prompts into parts of bounded size, each at least one prompt."""
    token_ids, lengths = prompts
    while token_ids.numel() > _BATCH_TOKENS or lengths.numel() > _BATCH_PROMPTS:
        ends = lengths[:_BATCH_PROMPTS].cumsum(0)
        count = max(1, int((ends <= _BATCH_TOKENS).sum()))
        if count == len(lengths):
            break
        tokens = int(ends[count - 1])
        yield Prompts(token_ids[:tokens], lengths[:count])
        token_ids, lengths = token_ids[tokens:], lengths[count:]
    yield Prompts(token_ids, lengths)


def prompts_of(lengths: torch.Tensor, tokens: int) -> torch.Tensor:
    """The index of each token's prompt.

    Args:
        lengths (`torch.Tensor` of shape `(prompts,)`): tokens of each prompt.
        tokens (`int`): the sum of the lengths; given, because a device would have to be waited for to tell it.

    Returns:
        `torch.Tensor` of shape `(tokens,)`, int64.
    """
    if lengths.numel() == 1:  # no need to count
        return torch.zeros(tokens, dtype=torch.int64, device=lengths.device)
    prompts = torch.arange(len(lengths), device=lengths.device)
    return prompts.repeat_interleave(lengths, output_size=tokens)


def mean_weights(prompts: Prompts) -> torch.Tensor:
    """Weights of prompts' tokens whose weighted sums are their means; shapes as in `prompt_weights`."""
    token_ids, lengths = prompts
    return lengths.float().reciprocal().repeat_interleave(lengths, output_size=len(token_ids))


def prompt_weights(prompts: Prompts) -> torch.Tensor:
    """Weights of prompts' tokens whose weighted sums are their rows: sum_v w_v phi_v / sqrt(sum_v w_v^2).

    v runs over a prompt's distinct tokens and w_v = 1 + ln(count of v), so that repetition counts, but less and less.
    The norm needs the weights alone; it is the length that the row has if its tokens are orthogonal and of length one.

    Args:
        prompts ([`Prompts`]): each of at least one token.

    Returns:
        `torch.Tensor` of shape `(sum of lengths,)`, float32: occurrences of one token in a prompt share its weight.
    """
    token_ids, lengths = prompts
    if lengths.numel() == 1:
        # The bookkeeping of many prompts would take a single one longer than its route (`short_cuts` of
        # scripts/bench/scale.py).
        return torch.tensor(_weights_of_one(token_ids.tolist()), dtype=torch.float32, device=token_ids.device)
    keys = prompts_of(lengths, token_ids.numel()) * MOST_TOKENS + token_ids
    keys, places, counts = keys.unique(return_inverse=True, return_counts=True)
    w = 1 + counts.double().log()
    owners = keys.div(MOST_TOKENS, rounding_mode="floor")
    norms = w.new_zeros(len(lengths)).index_add_(0, owners, w * w).sqrt()[owners]
    return (w / counts / norms).float()[places]  # type: ignore[no-any-return]


def _weights_of_one(token_ids: list[int]) -> list[float]:
    """The weights of a single prompt's tokens, by the same sums in the same order."""
    counts = Counter(token_ids)
    if len(counts) == len(token_ids):
        return [len(token_ids) ** -0.5] * len(token_ids)
    w = {token: _weight_of_count(count) for token, count in counts.items()}
    squares = 0.0
    for token in sorted(w):
        squares += w[token] * w[token]
    norm = math.sqrt(squares)
    weights = {token: w[token] / count / norm for token, count in counts.items()}
    return [weights[token] for token in token_ids]


@cache
def _weight_of_count(count: int) -> float:
    """1 + ln(count), as torch rounds it."""
    return 1 + float(torch.tensor(count, dtype=torch.float64).log())


def weighted_sums(table: torch.Tensor, prompts: Prompts, weights: torch.Tensor) -> torch.Tensor:
    """For each prompt the weighted sum of its tokens' rows of a table: of shape `(V, D)` to `(prompts, D)`."""
    token_ids, lengths = prompts
    return F.embedding_bag(token_ids, table, lengths.cumsum(0) - lengths, mode="sum", per_sample_weights=weights)
