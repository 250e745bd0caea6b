"""A second opinion's fit: lambda and calibration chosen on prompts left out in turn, and what a bound on it gives."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ir3de.familiarity_ir3de import LEVELS
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.prompts_ir3de import token_ids_of
from ir3de.route_selector_ir3de import probabilities
from ir3de.scripts.command import check_hub
from ir3de.scripts.data.rows import Row
from ir3de.scripts.data.sampling import sample_per_domain
from ir3de.scripts.data.selection import Selection, of_experts
from ir3de.scripts.fitting.calibration import fit_calibration
from ir3de.scripts.fitting.fit import Fitted
from ir3de.scripts.fitting.holding_out import HELD_OUT_LEAST
from ir3de.scripts.fitting.options import MOST_TEXTS
from ir3de.scripts.metrics.measures import macro_accuracy
from ir3de.scripts.reports.progress import Steps
from ir3de.scripts.routers.encoders import MINILM, default_encoder
from ir3de.second_opinion_ir3de import BELOW, SecondOpinion, combined
from ir3de.token_router_ir3de import mean_diagonal, ridge

LAMBDAS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # over the mean of A's diagonal
BOUNDS = (0.0, 0.5, 0.7, BELOW, 0.97, 1.0)
_AT_ONCE = 256  # texts that are encoded


@dataclass(frozen=True)
class AtBound:
    """
    What a bound on the router's score costs and gives.

    Args:
        bound (`float`): a probability, below which the second opinion is asked.
        share (`float`): of the prompts, that are encoded.
        accuracy (`float`): macro accuracy, 0 to 1.
    """

    bound: float
    share: float
    accuracy: float


def rows_to_fit(rows: Iterable[Row], names: Sequence[str], most: int | None) -> Selection:
    """The prompts that an encoder reads: a sample of each expert's.

    Args:
        rows (`Iterable[Row]`): labelled prompts.
        names (`Sequence[str]`): of the experts.
        most (`int`, *optional*): prompts of each; by default all.

    Raises:
        ValueError: an expert has fewer than two prompts.
    """
    selection = of_experts(rows, names, "--data")
    domains = [row.domain for row in selection.rows]
    few = [name for name in names if domains.count(name) < 2]
    if few:
        raise ValueError(f"--data has fewer than two prompts for {few}: a second opinion must know every expert.")
    kept = [selection.rows[i] for i in sample_per_domain(domains, most, 0)]
    return replace(selection, rows=kept)


def choose(opinion: SecondOpinion, X: torch.Tensor, labels: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Chooses lambda and calibration on every prompt in turn, each left out of the fit, and fits on all.

    Args:
        opinion ([`SecondOpinion`]): that is fitted.
        X (`torch.Tensor` of shape `(N, dim)`): vectors of the prompts.
        labels (`torch.Tensor` of shape `(N,)`): indices of their domains.
        names (`Sequence[str]`): of the D domains.

    Returns:
        `torch.Tensor` of shape `(N, D)`: probabilities of each prompt, by the fit without it.
    """
    rows = opinion.rows(X)
    logits = {value: left_out(rows, labels, len(names), value) for value in LAMBDAS}
    best = max(LAMBDAS, key=lambda value: macro_accuracy(labels.numpy(), logits[value].numpy()))
    opinion.regularization, opinion.calibration = best, fit_calibration(logits[best], labels)
    opinion.fit({name: opinion.summed(X[labels == i]) for i, name in enumerate(names)})
    opinion.scale = None if len(X) < HELD_OUT_LEAST else familiarity_scale(rows, labels, best)
    return probabilities(logits[best], **opinion.calibration)


def left_out(X: torch.Tensor, labels: torch.Tensor, number: int, regularization: float) -> torch.Tensor:
    """What each prompt would score if the fit had not seen it, without fitting again: Allen's PRESS (1974).

    If W minimises sum_i w_i |x_i W - y_i|^2 + lambda |W|^2, a fit without row i leaves the residual (y_i - x_i W) /
    (1 - h_i) there, where h_i = w_i x_i (A + lambda I)^-1 x_i^T. The weights, 1 over the domain's prompts, stay.

    Args:
        X (`torch.Tensor` of shape `(N, F + 1)`): rows of the prompts.
        labels (`torch.Tensor` of shape `(N,)`): indices of their domains.
        number (`int`): D, of domains.
        regularization (`float`): lambda over the mean of A's diagonal.

    Returns:
        `torch.Tensor` of shape `(N, D)`, float64.
    """
    Y = F.one_hot(labels, number).double()
    w, Z = _influence(X, labels, regularization)
    h = (w * X * Z).sum(dim=1, keepdim=True)
    return Y - (Y - X @ (Z.T @ (w * Y))) / (1 - h)


def familiarity_scale(X: torch.Tensor, labels: torch.Tensor, regularization: float) -> list[float]:
    """The quantiles of how close prompts are to those that are left: of each the leverage if it were left out, which is
    g / (1 - w g) where g = x (A + lambda I)^-1 x^T has it in A with weight w (Sherman and Morrison 1950).

    Args:
        X, labels, regularization: of [`left_out`].

    Returns:
        `list[float]`: ascending, at 0, 1, ... and 100 %; see [`SecondOpinion.closeness`].
    """
    w, Z = _influence(X, labels, regularization)
    g = (X * Z).sum(dim=1, keepdim=True)
    closeness = -(g / (1 - w * g)).log()
    return [float(value) for value in np.quantile(closeness.numpy(), np.linspace(0, 1, LEVELS))]


def _influence(X: torch.Tensor, labels: torch.Tensor, regularization: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight of each prompt, `(N, 1)`, and the rows (A + lambda I)^-1 x, `(N, F + 1)`."""
    w = (1 / labels.bincount().double())[labels].unsqueeze(1)
    A = X.T @ (w * X)
    return w, ridge(A, X.T, regularization * mean_diagonal(A)).T


def over_bounds(p: torch.Tensor, q: torch.Tensor, labels: torch.Tensor) -> list[AtBound]:
    """What each bound on the router's score costs and gives.

    Args:
        p (`torch.Tensor` of shape `(N, D)`): the router's probabilities.
        q (`torch.Tensor` of shape `(N, D)`): the second opinion's.
        labels (`torch.Tensor` of shape `(N,)`): indices of the domains.

    Returns:
        `list[AtBound]`: one for each of `BOUNDS`.
    """
    figures = []
    for bound in BOUNDS:
        unsure = p.amax(dim=1) < bound
        both = torch.where(unsure.unsqueeze(1), combined(p, q), p)
        accuracy = macro_accuracy(labels.numpy(), both.numpy())
        figures.append(AtBound(bound, float(unsure.double().mean()), accuracy))
    return figures


def encoded(opinion: SecondOpinion, texts: Sequence[str]) -> torch.Tensor:
    """The vectors of texts, `(N, dim)`, part by part, saying how far it is."""
    parts = []
    with Steps("Encoding", "texts", len(texts)) as steps:
        for start in range(0, len(texts), _AT_ONCE):
            parts.append(opinion.encode(texts[start : start + _AT_ONCE]))
            steps.update(len(parts[-1]))
    return torch.cat(parts)


def introduce(opinion: SecondOpinion, name: str, texts: Sequence[str]) -> None:
    """Adds an expert to a second opinion, with a sample of its text; without the encoder it stays unknown there."""
    sample = [texts[i] for i in sample_per_domain([name] * len(texts), MOST_TEXTS, 0)]
    try:
        opinion.add_expert(name, sample)
    except (ImportError, OSError) as error:
        print(f"Not added to the second opinion: {error}", file=sys.stderr)


def ready(encoder: str | None = None, revision: str | None = None) -> SecondOpinion:
    """A second opinion whose encoder is at hand, before long work.

    Args:
        encoder (`str`, *optional*): Hub id or folder of the encoder; by default all-MiniLM-L6-v2.
        revision (`str`, *optional*): of the encoder.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: the encoder cannot be loaded.
    """
    check_hub(encoder or default_encoder(), "modules.json", revision)
    opinion = SecondOpinion(encoder or default_encoder(), revision)
    opinion.encode(["a prompt"])
    return opinion


def fit_beside(opinion: SecondOpinion, fitted: Fitted, rows: Sequence[Row]) -> tuple[list[AtBound], int]:
    """Fits a second opinion to the rows that a router was fitted to.

    Args:
        opinion ([`SecondOpinion`]): that is fitted.
        fitted ([`Fitted`]): the router, with what it scored on held-out rows.
        rows (`Sequence[Row]`): that it was fitted to.

    Returns:
        what bounds on the router's score cost and give, on rows that were held out from the router and left out of the
        second opinion's fit; and how many these are.
    """
    model, config = fitted.model, fitted.model.config
    encoded_ids = token_ids_of(model.tokenizer, [row.text for row in rows], config.max_length)
    by_domain: dict[str, list[Row]] = {name: [] for name in config.domain_names}
    for row, ids in zip(rows, encoded_ids, strict=True):
        if ids:  # the others were no part of the fit
            by_domain[row.domain].append(row)
    places: list[tuple[str, int]] = []  # a domain and the number of a row of it
    for name, of_domain in by_domain.items():
        places += [(name, number) for number in range(len(of_domain))]
    sample = [places[i] for i in sample_per_domain([name for name, _ in places], MOST_TEXTS, 0)]
    labels = torch.tensor([config.domain_names.index(name) for name, _ in sample])
    X = encoded(opinion, [by_domain[name][number].text for name, number in sample])
    q = choose(opinion, X, labels, config.domain_names)
    logits_of: dict[tuple[str, int], torch.Tensor] = {}
    for name, numbers in fitted.held_out.items():
        for number, row in zip(numbers.tolist(), fitted.chosen.logits[name], strict=True):
            logits_of[name, number] = row
    both = [i for i, place in enumerate(sample) if place in logits_of]
    logits = [logits_of[sample[i]] for i in both]
    p = probabilities(torch.stack(logits), **(config.calibration or {}))
    opinion.encoder = MINILM  # a folder of this machine means nothing to others
    return over_bounds(p, q[both], labels[both]), len(both)


def worth_a_try(fitted: Fitted, rows: Sequence[Row], encoder: str) -> tuple[AtBound, AtBound, int]:
    """What a second opinion would give a router that has none.

    Args:
        fitted ([`Fitted`]): the router, with what it scored on held-out rows.
        rows (`Sequence[Row]`): that it was fitted to.
        encoder (`str`): folder of a sentence encoder.

    Returns:
        figures without and with it, at the usual bound, and of how many held-out rows.

    Raises:
        OSError: the encoder cannot be loaded.
    """
    figures, number = fit_beside(SecondOpinion(encoder), fitted, rows)
    by_bound = {each.bound: each for each in figures}
    return by_bound[0.0], by_bound[BELOW], number


def labels_of(rows: Sequence[Row], names: Sequence[str]) -> torch.Tensor:
    """The index of each prompt's expert, `(N,)`."""
    return torch.tensor([names.index(row.domain) for row in rows])


def router_scores(model: IR3DEModel, rows: Sequence[Row]) -> torch.Tensor:
    """The router's probabilities, `(N, D)`, without the second opinion."""
    pipe = IR3DERoutingPipeline(model, device="cpu")
    records = pipe([row.text for row in rows], generate=False, on_error="raise", min_score=0)
    scores = [{entry["expert"]: entry["score"] for entry in record["ranking"]} for record in records]
    names = model.config.expert_names
    return torch.tensor([[of_prompt[name] for name in names] for of_prompt in scores], dtype=torch.float64)
