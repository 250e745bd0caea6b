"""Choosing a router's variant, k and lambda on held-out prompts: closed form, so every candidate is simply tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.route_selector_ir3de import mean_logits, most_certain, vote_logits

NUM_VOTES = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # the paper's grid
RELATIVE_LAMBDAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the mean of A's diagonal


class Candidate(NamedTuple):
    """
    A choice, and how often each domain's held-out prompts went where they belong with it.

    Args:
        variant (`str`): of the selector.
        num_votes (`int`): k.
        regularization (`float`): lambda.
        recalls (`dict[str, float]`): by domain, 0 to 1.
    """

    variant: str
    num_votes: int
    regularization: float
    recalls: dict[str, float]

    @property
    def macro_accuracy(self) -> float:
        """Mean recall of the domains, 0 to 1."""
        return sum(self.recalls.values()) / len(self.recalls)


def choose(
    model: IR3DEModel,
    held_out: Mapping[str, Sequence[list[int]]],
    variants: Sequence[str],
    num_votes: Sequence[int],
    lambdas: Sequence[float],
) -> list[Candidate]:
    """Tries every candidate and leaves the best in the model's config; W is as solved last.

    Args:
        model ([`IR3DEModel`]): fitted without the held-out prompts.
        held_out (`Mapping[str, Sequence[list[int]]]`): token ids of each domain's held-out prompts.
        variants (`Sequence[str]`): to try.
        num_votes (`Sequence[int]`): values of k to try where the variant is `"top-k"`.
        lambdas (`Sequence[float]`): values of lambda to try.

    Returns:
        `list[Candidate]`: best first; of equals the one with fewer voters and a larger lambda.
    """
    candidates = []
    for value in tqdm(lambdas, desc="Choosing", unit=" lambdas", disable=None, leave=False):
        model.config.regularization = value
        model.fit()
        routes = routes_of_variants(model, held_out, variants, num_votes)
        for (variant, k), by_domain in routes.items():
            label = model.config.label2id
            recalls = {name: float((chosen == label[name]).double().mean()) for name, chosen in by_domain.items()}
            candidates.append(Candidate(variant, k, value, recalls))
    candidates.sort(key=lambda c: (-c.macro_accuracy, c.num_votes, -c.regularization))
    best = candidates[0]
    model.config.variant, model.config.num_votes, model.config.regularization = best[:3]
    return candidates


def routes_of_variants(
    model: IR3DEModel, prompts: Mapping[str, Sequence[list[int]]], variants: Sequence[str], num_votes: Sequence[int]
) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    """Routes prompts by several variants and many k, sorting their tokens by entropy only once.

    Returns:
        by variant and k, and then by domain, the `torch.Tensor` of shape `(prompts,)` of the chosen experts' indices.
    """
    choices = [(variant, model.config.num_votes) for variant in variants if variant != "top-k"]
    choices += [("top-k", k) for k in num_votes if "top-k" in variants]
    routes: dict[tuple[str, int], dict[str, torch.Tensor]] = {choice: {} for choice in choices}
    for domain, token_ids in prompts.items():
        flat = torch.tensor(list(chain.from_iterable(token_ids)))
        lengths = torch.tensor([len(ids) for ids in token_ids])
        chosen = {choice: torch.empty(len(lengths), dtype=torch.int64) for choice in choices}
        for indices, ids, mask in model.passes(flat, lengths):
            for choice, logits in _all_logits(model, ids, mask, choices):
                chosen[choice][indices] = logits.argmax(dim=1)
        for choice in choices:
            routes[choice][domain] = chosen[choice]
    return routes


def _all_logits(
    model: IR3DEModel, ids: torch.Tensor, mask: torch.Tensor, choices: Iterable[tuple[str, int]]
) -> Iterable[tuple[tuple[str, int], torch.Tensor]]:
    table = model.token_table
    order, real = most_certain(table.entropies[ids], mask, ids.shape[1])
    token_logits = table.logits[ids.gather(1, order)]
    for variant, k in choices:
        if variant == "avg":
            yield (variant, k), mean_logits(token_logits, real)
        else:
            top = k if variant == "top-k" else ids.shape[1]
            yield (variant, k), vote_logits(token_logits[:, :top], real[:, :top])


def describe(candidates: Sequence[Candidate], most: int = 8) -> str:
    """A table of the best candidates."""
    lines = ["variant   k    lambda    macro accuracy"]
    for c in candidates[:most]:
        k: Any = c.num_votes if c.variant == "top-k" else "-"
        lines.append(f"{c.variant:8} {k!s:>3}  {c.regularization:8.2g}  {100 * c.macro_accuracy:8.2f} %")
    return "\n".join(lines)
