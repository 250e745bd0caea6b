"""Choosing a router on held-out prompts: every candidate is a closed form, so all of them are simply tried."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch

from ir3de.batch_ir3de import Prompts, batches
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.route_selector_ir3de import TokenTable, select
from ir3de.scripts.metrics.measures import mean_recall, standard_error_of
from ir3de.scripts.reports.progress import progress
from ir3de.statistics_ir3de import StatisticsCollector, count_tokens, gram_from_counts
from ir3de.token_router_ir3de import discriminant, log_odds, mean_diagonal, ridge, sums

NUM_VOTES = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # the paper's grid
TOKEN_LAMBDAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # relative to the mean diagonal of A
PROMPT_LAMBDAS = (1e-3, 1e-2, 1e-1, 1.0)
TOKEN_NOISES = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
LEXICAL_SHARES = (0.0, 0.25, 0.5, 1.0, 2.0)  # spread of naive Bayes over that of the other scores


class Grids(NamedTuple):
    """
    What is tried instead of the default values; None leaves these.

    Args:
        num_votes (`Sequence[int]`, *optional*): k of top-k.
        lambdas (`Sequence[float]`, *optional*): absolute.
        token_noises (`Sequence[float]`, *optional*): rho of prompt rows.
        lexical_weights (`Sequence[float]`, *optional*): of naive Bayes in prompt rows.
        lexical_shares (`Sequence[float]`): these weights, where they are not given, as its spread over that of the
            other scores.
        discriminants (`Sequence[bool]`, *optional*): whether prompt rows are fitted by discriminant analysis; by
            default what the config says.
    """

    num_votes: Sequence[int] | None = None
    lambdas: Sequence[float] | None = None
    token_noises: Sequence[float] | None = None
    lexical_weights: Sequence[float] | None = None
    lexical_shares: Sequence[float] = LEXICAL_SHARES
    discriminants: Sequence[bool] | None = None


class Split(NamedTuple):
    """
    Prompts of each domain.

    Args:
        sample (`Mapping[str, Prompts]`): to fit on.
        held_out (`Mapping[str, Prompts]`): to measure on; none of the sample.
    """

    sample: Mapping[str, Prompts]
    held_out: Mapping[str, Prompts]


@dataclass
class Candidate:
    """
    One way to route, and how it did on the held-out prompts.

    Args:
        config (`dict`): fields of [`IR3DEConfig`] that it sets.
        scores (`dict[str, torch.Tensor]`): what W says, by domain, of shape `(held-out prompts, D)`; float32 or 64.
        bayes (`dict[str, torch.Tensor]`, *optional*): what naive Bayes says, which many candidates share.

    It notes which prompts it has `right`, by domain of shape `(held-out prompts,)`.
    """

    config: dict[str, Any]
    scores: dict[str, torch.Tensor] = field(repr=False)
    bayes: dict[str, torch.Tensor] | None = field(repr=False, default=None)
    right: dict[str, torch.Tensor] = field(repr=False, init=False)

    def __post_init__(self) -> None:
        self.right = {name: rows.argmax(dim=1) == i for i, (name, rows) in enumerate(self.logits.items())}

    @classmethod
    def joined(cls, parts: Sequence[Candidate]) -> Candidate:
        """One candidate on several splits: the first's config, and the held-out prompts of all."""

        def together(field: str) -> Any:
            """The scores of all parts, or None where the first has none."""
            given = [getattr(part, field) for part in parts]
            if given[0] is None:
                return None
            return {name: torch.cat([scores[name] for scores in given]) for name in given[0]}

        return cls(parts[0].config, together("scores"), together("bayes"))

    def with_bayes(self, grids: Grids) -> list[Candidate]:
        """One candidate for each weight of naive Bayes, by default in proportion to what the other scores spread."""
        if self.bayes is None:
            return [self]
        relative = _spread(self.scores) / max(_spread(self.bayes), 1e-12)
        weights = grids.lexical_weights or [relative * share for share in grids.lexical_shares]
        return [Candidate({**self.config, "lexical_weight": weight}, self.scores, self.bayes) for weight in weights]

    @property
    def grids(self) -> Grids:
        """What it was tried with, and nothing else."""
        penalty = "prompt_regularization" if self.config["variant"] == "prompt" else "regularization"

        def alone(field: str) -> list[Any] | None:
            """The value of a field, if it has one."""
            return [self.config[field]] if field in self.config else None

        return Grids(alone("num_votes"), alone(penalty), alone("token_noise"), alone("lexical_weight"))

    @property
    def logits(self) -> dict[str, torch.Tensor]:
        """By domain, of shape `(held-out prompts, D)`."""
        if self.bayes is None:
            return self.scores
        weight = self.config["lexical_weight"]
        return {name: rows.double() + weight * self.bayes[name].double() for name, rows in self.scores.items()}

    @property
    def recalls(self) -> dict[str, float]:
        """By domain, 0 to 1."""
        return {name: float(right.double().mean()) for name, right in self.right.items()}

    @cached_property
    def macro_accuracy(self) -> float:
        """Mean recall of the domains, 0 to 1."""
        return mean_recall(self.recalls)

    @property
    def standard_error(self) -> float:
        """Of the macro accuracy, from the binomial variance of each recall."""
        return standard_error_of(self.recalls, {name: len(right) for name, right in self.right.items()})

    def standard_error_to(self, other: Candidate) -> float:
        """Of the difference to another's macro accuracy on the same prompts: those count that one alone has right."""
        differ = ((self.right[name] != other.right[name]).double() for name in self.right)
        return math.sqrt(sum(float(d.mean()) / len(d) for d in differ)) / len(self.right)

    @property
    def simplicity(self) -> tuple[float, bool, bool, float, float, int, float]:
        """Larger is simpler: fewer features, ridge regression, no naive Bayes, more noise, less of naive Bayes, fewer
        voters, a larger lambda. Of several orders, the one that chose best for sources left out of training rows.
        """
        prompt = self.config["variant"] == "prompt"
        features = {"identity": 1, "unit": 2, "rff": 0}[self.config["feature_map"]] * (1 if prompt else 0.5)
        penalty = self.config["prompt_regularization" if prompt else "regularization"]
        noise, lexical = self.config.get("token_noise", 0.0), self.config.get("lexical_weight", 0.0)
        by_ridge = not self.config.get("discriminant", False)
        return features, by_ridge, not lexical, noise, -lexical, -self.config.get("num_votes", 0), penalty  # type: ignore[return-value]


def search(
    config: IR3DEConfig,
    embeddings: torch.Tensor,
    splits: Iterable[Split],
    variants: Sequence[str],
    num_features: int | None = None,
    grids: Grids = Grids(),  # noqa: B008 (a tuple, which cannot change)
    kind: str = "split",
) -> list[Candidate]:
    """Tries variants on the config's feature map.

    Args:
        config ([`IR3DEConfig`]): gives the feature map, balance, bias and normalization.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        splits (`Iterable[Split]`): prompts to fit on and to measure on, once or several times.
        variants (`Sequence[str]`): to try.
        num_features (`int`, *optional*): random features to try with, where fewer than the config's will do; the
            lambdas, given and found, are those for the config's number.
        grids ([`Grids`], *optional*): values to try.
        kind (`str`): what the splits are called where progress is told.
    """
    features = config.features._replace(size=num_features or config.num_features)
    phi = features.table(embeddings)
    # A row of random features has length one whatever their number, so A's diagonal and lambda go with its inverse.
    scale = config.features.width(embeddings.shape[1]) / phi.shape[1]
    splits = iter(splits)
    first = next(splits)
    tokens_A = _token_gram(first.sample, phi) if "prompt" in variants else None
    tried = []
    for number, split in enumerate(itertools.chain([first], splits), start=1):
        of_what = f"({config.feature_map}, {phi.shape[1]:,} features, {kind} {number})"
        tried.append([*_token_candidates(config, phi, scale, split, variants, grids, of_what)])
        if "prompt" in variants:
            tried[-1] += _prompt_candidates(config, phi, scale, split, tokens_A, grids, of_what)
    return [each for candidate in _joined(tried) for each in candidate.with_bayes(grids)]


def _joined(tried: list[list[Candidate]]) -> Iterator[Candidate]:
    """The candidates of all splits, in their order; the scores of single splits are let go on the way."""
    for of_split in tried:
        of_split.reverse()
    while tried[0]:
        yield Candidate.joined([of_split.pop() for of_split in tried])


def _token_gram(sample: Mapping[str, Prompts], phi: torch.Tensor) -> torch.Tensor:
    """The balanced A over the token rows, for token noise: it knows no labels, so one serves all splits."""
    counts = [count_tokens(prompts.token_ids, len(phi)) for prompts in sample.values()]
    return gram_from_counts(sum(c / c.sum() for c in counts), phi)  # type: ignore[arg-type]


def _token_candidates(
    config: IR3DEConfig,
    phi: torch.Tensor,
    scale: float,
    split: Split,
    variants: Sequence[str],
    grids: Grids,
    of_what: str,
) -> Iterator[Candidate]:
    """Those of the token rows, in the same order on every split, whose progress is told with `of_what`."""
    if set(variants) <= {"prompt"}:
        return
    used, held_out = _renumbered(split.held_out)
    used_phi = phi[used]
    counts = (count_tokens(prompts.token_ids, len(phi)) for prompts in split.sample.values())
    A, B = sums((gram_from_counts(c, phi) for c in counts), config.balance)
    lambdas = grids.lambdas or [mean_diagonal(A) / scale * relative for relative in TOKEN_LAMBDAS]
    for value in progress(lambdas, f"Trying {of_what}", "lambdas", keep=False):
        logits = _scored(used_phi, ridge(A, B, value * scale, config.bias, config.normalize_columns))
        for variant in variants:
            if variant == "prompt":
                continue
            fields = {"variant": variant, "feature_map": config.feature_map, "regularization": value}
            table = TokenTable.of(logits, variant)
            for k in grids.num_votes or NUM_VOTES if variant == "top-k" else [1]:
                votes = {"num_votes": k} if variant == "top-k" else {}
                yield Candidate({**fields, **votes}, _logits(table, held_out, variant, k))


def _prompt_candidates(
    config: IR3DEConfig, phi: torch.Tensor, scale: float, split: Split, tokens_A: Any, grids: Grids, of_what: str
) -> Iterator[Candidate]:
    """Those of the prompt rows, in the same order on every split, before naive Bayes has a weight."""
    used, held_out = _renumbered(split.held_out)
    used_phi = phi[used]
    collectors = [StatisticsCollector(phi, "sample") for _ in split.sample]
    rows = list(zip(collectors, split.sample.values(), strict=True))
    for collector, prompts in progress(rows, f"Summing {of_what}", "domains", keep=False):
        collector.add(prompts)
    A, B = sums(collector.prompts for collector in collectors)
    lexicon = log_odds([collector.documents for collector in collectors], config.lexical_smoothing)[used].float()
    bayes = _sums(TokenTable.of(lexicon, "prompt"), held_out)
    lambdas = grids.lambdas or [mean_diagonal(A) / scale * relative for relative in PROMPT_LAMBDAS]
    noises = grids.token_noises or TOKEN_NOISES
    for noise in progress(noises, f"Trying {of_what}", "token noises", keep=False):
        noisy = A + noise * tokens_A
        for value, by_discriminant in itertools.product(lambdas, grids.discriminants or [config.discriminant]):
            solve = discriminant if by_discriminant else functools.partial(ridge, bias=False)
            W = solve(noisy, B, value * scale).float()
            constants = W[-1] if by_discriminant else None
            table = TokenTable.of(used_phi @ W[: phi.shape[1]], "prompt", constants)
            fields = {"variant": "prompt", "feature_map": config.feature_map, "prompt_regularization": value}
            fields |= {"discriminant": by_discriminant, "token_noise": noise, "lexical_weight": 0.0}
            yield Candidate(fields, _sums(table, held_out), bayes)


def _renumbered(held_out: Mapping[str, Prompts]) -> tuple[torch.Tensor, dict[str, Prompts]]:
    """The tokens that occur, and the prompts with the places of their tokens among these."""
    used = torch.cat([prompts.token_ids for prompts in held_out.values()]).unique()
    return used, {name: Prompts(torch.searchsorted(used, p.token_ids), p.lengths) for name, p in held_out.items()}


def _scored(phi: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    """What tokens say of each domain: `(tokens, F)` to `(tokens, D)`."""
    W = W.float()
    logits = phi @ W[: phi.shape[1]]
    return logits + W[-1] if len(W) > phi.shape[1] else logits


def _logits(table: TokenTable, held_out: Mapping[str, Prompts], variant: str, k: int = 1) -> dict[str, torch.Tensor]:
    """Scores of the held-out prompts, by domain of shape `(prompts, D)`."""
    none = torch.zeros(0, table.rows.shape[1], dtype=table.rows.dtype)
    return {
        name: torch.cat([none, *(select(table, part, variant, k) for part in batches(prompts))])
        for name, prompts in held_out.items()
    }


def _sums(table: TokenTable, held_out: Mapping[str, Prompts]) -> dict[str, torch.Tensor]:
    """The scores of prompts by sums of rows, as float32, which the rows are: there may be many of many domains."""
    return {name: rows.float() for name, rows in _logits(table, held_out, "prompt").items()}


def _spread(logits: Mapping[str, torch.Tensor]) -> float:
    """How far apart the scores of one prompt lie: the standard deviation about their mean."""
    rows = torch.cat(list(logits.values())).double()
    return float((rows - rows.mean(dim=1, keepdim=True)).square().mean().sqrt())


def best_of(candidates: Sequence[Candidate], standard_errors: float = 1.0) -> Candidate:
    """The simplest candidate that is behind the most accurate one by at most so many standard errors of the difference:
    unseen sources reward it.
    """
    top = max(candidates, key=lambda c: c.macro_accuracy)

    def level(c: Candidate) -> bool:
        """Whether its distance to the best may be chance."""
        behind = top.macro_accuracy - c.macro_accuracy
        return behind <= standard_errors * c.standard_error_to(top) + 1e-12  # by a single prompt is by one exactly

    return max(filter(level, candidates), key=lambda c: (c.simplicity, c.macro_accuracy))


def describe(candidates: Sequence[Candidate], chosen: Candidate) -> str:
    """A table: the best candidate of each variant and feature map, and the one chosen."""
    best: dict[tuple[str, str, bool], Candidate] = {}
    for c in candidates:
        key = c.config["feature_map"], c.config["variant"], c.config.get("discriminant", False)
        if key not in best or c.macro_accuracy > best[key].macro_accuracy:
            best[key] = c
    rows = sorted(best.values(), key=lambda c: -c.macro_accuracy)
    if all(c is not chosen for c in rows):
        rows.append(chosen)
    lines = ["  features  variant         k   lambda  noise  lexical   macro accuracy"]
    for c in rows:
        f = c.config
        k, noise = f.get("num_votes", "-"), f.get("token_noise", "-")
        lexical = f"{f['lexical_weight']:.3f}" if "lexical_weight" in f else "-"
        value = f["prompt_regularization" if f["variant"] == "prompt" else "regularization"]
        variant = f"{f['variant']} (LDA)" if f.get("discriminant") else f["variant"]
        mark, accuracy = ">" if c is chosen else " ", 100 * c.macro_accuracy
        lines.append(
            f"{mark} {f['feature_map']:8}  {variant:12} {k!s:>5} {value:8.1e} {noise!s:>6} {lexical:>8}  "
            f" {accuracy:6.2f} % +- {100 * c.standard_error:.2f}"
        )
    return "\n".join(lines)
