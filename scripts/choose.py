"""Choosing a router on held-out prompts: every candidate is a closed form, so all of them are simply tried."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.route_selector_ir3de import TokenTable, select
from ir3de.scripts.spool import Prompts
from ir3de.statistics_ir3de import StatisticsCollector, count_tokens, gram_from_counts, padded_batches
from ir3de.token_router_ir3de import entropy, log_odds, mean_diagonal, solve

NUM_VOTES = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # the paper's grid
TOKEN_LAMBDAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # relative to the mean diagonal of A
PROMPT_LAMBDAS = (1e-3, 1e-2)
TOKEN_NOISES = (0.0, 0.3, 1.0, 3.0, 10.0)
LEXICAL_SHARES = (0.0, 0.25, 0.5, 1.0, 2.0)  # spread of naive Bayes over that of the other scores


@dataclass
class Candidate:
    """
    One way to route, and how it did on the held-out prompts.

    Args:
        config (`dict`): fields of [`IR3DEConfig`] that it sets.
        scores (`dict[str, torch.Tensor]`): what W says, by domain, of shape `(held-out prompts, D)`.
        bayes (`dict[str, torch.Tensor]`, *optional*): what naive Bayes says, which many candidates share.
        recalls (`dict[str, float]`): by domain, 0 to 1.
    """

    config: dict[str, Any]
    scores: dict[str, torch.Tensor] = field(repr=False)
    bayes: dict[str, torch.Tensor] | None = field(repr=False)
    recalls: dict[str, float]

    @classmethod
    def of(
        cls, scores: dict[str, torch.Tensor], config: dict[str, Any], bayes: dict[str, torch.Tensor] | None = None
    ) -> Candidate:
        """A candidate with the recalls that its logits have."""
        self = cls(config, scores, bayes, {})
        for index, (name, rows) in enumerate(self.logits.items()):
            self.recalls[name] = float((rows.argmax(dim=1) == index).double().mean())
        return self

    @property
    def logits(self) -> dict[str, torch.Tensor]:
        """By domain, of shape `(held-out prompts, D)`."""
        if self.bayes is None:
            return self.scores
        return {name: rows + self.config["lexical_weight"] * self.bayes[name] for name, rows in self.scores.items()}

    @property
    def macro_accuracy(self) -> float:
        """Mean recall of the domains, 0 to 1."""
        return sum(self.recalls.values()) / len(self.recalls)

    @property
    def standard_error(self) -> float:
        """Of the macro accuracy, from the binomial variance of each recall."""
        variances = (r * (1 - r) / len(self.scores[name]) for name, r in self.recalls.items())
        return math.sqrt(sum(variances)) / len(self.recalls)

    @property
    def simplicity(self) -> tuple[float, float, float, int, float]:
        """Larger is simpler: no or little naive Bayes, fewer features, more noise, fewer voters, a larger lambda."""
        prompt = self.config["variant"] == "prompt"
        features = {"identity": 1, "unit": 2, "rff": 0}[self.config["feature_map"]] * (1 if prompt else 0.5)
        penalty = self.config["prompt_regularization" if prompt else "regularization"]
        lexical, noise = self.config.get("lexical_weight", 0.0), self.config.get("token_noise", 0.0)
        return -lexical, features, noise, -self.config.get("num_votes", 0), penalty  # type: ignore[return-value]


def search(
    config: IR3DEConfig,
    embeddings: torch.Tensor,
    sample: Mapping[str, Prompts],
    held_out: Mapping[str, Prompts],
    variants: Sequence[str],
    **grids: Sequence[float] | None,
) -> Iterator[Candidate]:
    """Tries variants on the config's feature map.

    Args:
        config ([`IR3DEConfig`]): gives the feature map, balance, bias and normalization.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        sample (`Mapping[str, Prompts]`): prompts of each domain to fit on.
        held_out (`Mapping[str, Prompts]`): prompts of each domain to measure on.
        variants (`Sequence[str]`): to try.
        grids (*optional*): `num_votes`, `lambdas` (absolute), `token_noises` and `lexical_weights` to try instead of
            the default ones.
    """
    phi = config.features.table(embeddings)
    counts = [count_tokens(prompts.token_ids, len(phi)) for prompts in sample.values()]
    used = torch.cat([prompts.token_ids for prompts in held_out.values()]).unique()
    held_out = {name: Prompts(torch.searchsorted(used, p.token_ids), p.lengths) for name, p in held_out.items()}
    if any(variant != "prompt" for variant in variants):
        tokens_A = [gram_from_counts(c, phi) for c in counts]
        scale = mean_diagonal(tokens_A, config.balance)
        for value in grids.get("lambdas") or [scale * relative for relative in TOKEN_LAMBDAS]:
            W = solve(tokens_A, value, config.balance, config.bias, config.normalize_columns)
            table = _table(phi[used], W)
            for variant, k in _token_choices(variants, grids.get("num_votes") or NUM_VOTES):
                fields = {
                    "variant": variant,
                    "regularization": value,
                    **({"num_votes": k} if variant == "top-k" else {}),
                }
                fields["feature_map"] = config.feature_map
                yield Candidate.of(_logits(table, held_out, variant, k), fields)
    if "prompt" in variants:
        collectors = [StatisticsCollector(phi, "sample") for _ in sample]
        rows = zip(collectors, sample.values(), strict=True)
        for collector, prompts in tqdm(rows, f"Summing ({config.feature_map})", len(sample), leave=False, disable=None):
            collector.add(*prompts)
        prompts_A = [collector.prompts for collector in collectors]
        mixed = gram_from_counts(sum(c / c.sum() for c in counts), phi)  # type: ignore[arg-type]
        scale = mean_diagonal(prompts_A)
        lexicon = log_odds([collector.documents for collector in collectors])[used].float()
        bayes = _logits(TokenTable(lexicon, entropy(lexicon)), held_out, "prompt")
        for noise in grids.get("token_noises") or TOKEN_NOISES:
            for value in grids.get("lambdas") or [scale * relative for relative in PROMPT_LAMBDAS]:
                W = solve(prompts_A, value, bias=False, noise=noise * mixed)
                fields = {"variant": "prompt", "prompt_regularization": value, "token_noise": noise}
                fields["feature_map"] = config.feature_map
                logits = _logits(_table(phi[used], W), held_out, "prompt")
                relative = _spread(logits) / max(_spread(bayes), 1e-12)
                for weight in grids.get("lexical_weights") or [relative * share for share in LEXICAL_SHARES]:
                    yield Candidate.of(logits, {**fields, "lexical_weight": weight}, bayes)


def _table(phi: torch.Tensor, W: torch.Tensor) -> TokenTable:
    W = W.float()
    logits = phi @ W[: phi.shape[1]]
    if len(W) > phi.shape[1]:
        logits = logits + W[-1]
    return TokenTable(logits, entropy(logits))


def _token_choices(variants: Sequence[str], num_votes: Sequence[float]) -> Iterator[tuple[str, int]]:
    for variant in variants:
        if variant == "top-k":
            yield from ((variant, int(k)) for k in num_votes)
        elif variant != "prompt":
            yield variant, 1


def _logits(table: TokenTable, held_out: Mapping[str, Prompts], variant: str, k: int = 1) -> dict[str, torch.Tensor]:
    """Scores of the held-out prompts, by domain of shape `(prompts, D)`."""
    logits = {}
    for name, prompts in held_out.items():
        logits[name] = torch.empty(len(prompts.lengths), table.logits.shape[1], dtype=torch.float64)
        for batch, ids, mask in padded_batches(*prompts):
            logits[name][batch] = select(table, ids, mask, variant, k).logits
    return logits


def _spread(logits: Mapping[str, torch.Tensor]) -> float:
    """How far apart the scores of one prompt lie: the standard deviation about their mean."""
    rows = torch.cat(list(logits.values()))
    return float((rows - rows.mean(dim=1, keepdim=True)).square().mean().sqrt())


def best_of(candidates: Sequence[Candidate], standard_errors: float = 1.0) -> Candidate:
    """The simplest candidate within so many standard errors of the most accurate one: unseen sources reward it."""
    top = max(candidates, key=lambda c: c.macro_accuracy)
    bound = top.macro_accuracy - standard_errors * top.standard_error
    return max((c for c in candidates if c.macro_accuracy >= bound), key=lambda c: (c.simplicity, c.macro_accuracy))


def describe(candidates: Sequence[Candidate], chosen: Candidate) -> str:
    """A table: the best candidate of each variant and feature map, and the one chosen."""
    best: dict[tuple[str, str], Candidate] = {}
    for c in candidates:
        key = c.config["feature_map"], c.config["variant"]
        if key not in best or c.macro_accuracy > best[key].macro_accuracy:
            best[key] = c
    rows = sorted(best.values(), key=lambda c: -c.macro_accuracy)
    if all(c is not chosen for c in rows):
        rows.append(chosen)
    lines = ["  features  variant     k   lambda  noise  lexical   macro accuracy"]
    for c in rows:
        f = c.config
        k, noise = f.get("num_votes", "-"), f.get("token_noise", "-")
        lexical = f"{f['lexical_weight']:.3f}" if "lexical_weight" in f else "-"
        value = f["prompt_regularization" if f["variant"] == "prompt" else "regularization"]
        mark, accuracy = ">" if c is chosen else " ", 100 * c.macro_accuracy
        lines.append(
            f"{mark} {f['feature_map']:8}  {f['variant']:7} {k!s:>5} {value:8.1e} {noise!s:>6} {lexical:>8}  "
            f" {accuracy:6.2f} % +- {100 * c.standard_error:.2f}"
        )
    return "\n".join(lines)
