"""`ir3de second`: gives a router a second opinion, on a sentence encoder, for prompts that it is unsure of."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ir3de.files_ir3de import CONFIG, SECOND_FOLDER
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.route_selector_ir3de import probabilities
from ir3de.scripts.command import command
from ir3de.scripts.data.rows import Row, RowSource, add_data_arguments, read_rows
from ir3de.scripts.data.sampling import sample_per_domain
from ir3de.scripts.data.selection import of_experts
from ir3de.scripts.fitting.calibration import fit_calibration
from ir3de.scripts.metrics.measures import macro_accuracy
from ir3de.scripts.routers.encoders import MINILM, default_encoder
from ir3de.second_opinion_ir3de import BELOW, SecondOpinion, combined
from ir3de.token_router_ir3de import mean_diagonal, ridge

LAMBDAS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # over the mean of A's diagonal
BOUNDS = (0.0, 0.5, 0.7, BELOW, 0.97, 1.0)
OPTIMISTIC = (
    "These are prompts of --data, each left out of the second opinion's own fit. If the router was fitted on them, as"
    " it is on all rows of its training data, it is surer and more often right here than elsewhere, which hides what"
    " the second opinion gains: give other rows with --test-data or --test-where."
)
MOST_TEXTS = 500  # of a domain, that the encoder reads
_AT_ONCE = 256  # texts that are encoded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de second`."""
    parser.add_argument(
        "router", metavar="DIR", help=f"folder of a router; the second opinion goes into {SECOND_FOLDER}/"
    )
    add_data_arguments(parser)
    parser.add_argument("--encoder", help="Hub id or folder of a sentence encoder; default: all-MiniLM-L6-v2")
    parser.add_argument("--encoder-revision", help="revision of the encoder")
    parser.add_argument(
        "--max-train-per-domain",
        type=int,
        default=MOST_TEXTS,
        help=f"prompts that the encoder reads (default: {MOST_TEXTS}; 0: all)",
    )
    parser.add_argument("--test-data", action="append", metavar="FILE_OR_ID", help="as --data, to measure on")
    parser.add_argument(
        "--test-where", action="append", default=[], metavar="KEY=VALUE", help="as --where, to measure on"
    )
    parser.add_argument("--test-split", default="test", help="split of a Hub data set to measure on (default: test)")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for second.md and second.png, what is printed as a plot"
    )


def run(args: argparse.Namespace) -> int:
    """Fits a second opinion, saves it beside the router, and prints what it is worth."""
    if not Path(args.router, CONFIG).is_file():
        raise ValueError(f"{args.router} is no folder of a router: download the router first, and push it afterwards.")
    if args.max_train_per_domain < 0:
        raise ValueError(f"--max-train-per-domain must be at least 0, got {args.max_train_per_domain}.")
    model = IR3DEModel.from_pretrained(args.router)
    names = model.config.expert_names
    train, test = _rows(args, names)
    opinion = SecondOpinion(args.encoder or default_encoder(), args.encoder_revision)
    X, labels = _encoded(opinion, train), _labels(train, names)
    q = choose(opinion, X, labels, names)
    if test:
        q = probabilities(opinion.logits(_encoded(opinion, test), names), **opinion.calibration)
    pipeline = IR3DERoutingPipeline(model, device="cpu")
    rows = test or train
    figures = over_bounds(_scores(pipeline, rows, names), q, _labels(rows, names))
    if not args.encoder:  # a folder of this machine means nothing to others
        opinion.encoder = MINILM
    place = Path(args.router, SECOND_FOLDER)
    opinion.save_pretrained(place)
    report = describe(figures, len(rows)) + ("" if test else f"\n\n{OPTIMISTIC}")
    print(f"{report}\n\nSaved a second opinion to {place} (lambda {opinion.regularization:g} x mean diagonal).")
    print(f'Use it: pipeline("ir3de-routing", model="{args.router}", trust_remote_code=True, second_opinion=True)')
    if args.output:
        Path(args.output).mkdir(parents=True, exist_ok=True)
        Path(args.output, "second.md").write_text(f"{report}\n", encoding="utf-8")
        plot(figures, Path(args.output, "second.png"))
    return 0


def _rows(args: argparse.Namespace, names: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """The prompts to fit on and those to measure on, of which there may be none.

    Raises:
        ValueError: an expert has fewer than two prompts to fit on.
    """
    source = RowSource.from_args(args)
    selection = of_experts(read_rows(source), names, "--data")
    few = [name for name in names if sum(row.domain == name for row in selection.rows) < 2]
    if few:
        raise ValueError(f"--data has fewer than two prompts for {few}: a second opinion must know every expert.")
    kept = sample_per_domain([row.domain for row in selection.rows], args.max_train_per_domain or None, 0)
    notes, test = selection.notes(), []
    if args.test_data or args.test_where:
        data = tuple(args.test_data or args.data)
        test_source = replace(source, sources=data, where=tuple(args.test_where), split=args.test_split)
        tested = of_experts(read_rows(test_source), names, "--test-data")
        notes, test = (
            [*notes, *(f"To measure on: {note}" for note in tested.notes("nothing of it is measured"))],
            tested.rows,
        )
    for note in notes:
        print(note, file=sys.stderr)
    return [selection.rows[i] for i in kept], test


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
    w = (1 / labels.bincount())[labels].double().unsqueeze(1)
    A = X.T @ (w * X)
    Z = ridge(A, X.T, regularization * mean_diagonal(A)).T  # rows (A + lambda I)^-1 x
    h = (w * X * Z).sum(dim=1, keepdim=True)
    return Y - (Y - X @ (Z.T @ (w * Y))) / (1 - h)


def over_bounds(p: torch.Tensor, q: torch.Tensor, labels: torch.Tensor) -> list[dict[str, float]]:
    """What each bound on the router's score costs and gives.

    Args:
        p (`torch.Tensor` of shape `(N, D)`): the router's probabilities.
        q (`torch.Tensor` of shape `(N, D)`): the second opinion's.
        labels (`torch.Tensor` of shape `(N,)`): indices of the domains.

    Returns:
        `list[dict]`: of each of `BOUNDS` the `bound`, the `share` of prompts that are encoded, and the `accuracy`.
    """
    figures = []
    for bound in BOUNDS:
        unsure = p.amax(dim=1) < bound
        both = torch.where(unsure.unsqueeze(1), combined(p, q), p)
        accuracy = macro_accuracy(labels.numpy(), both.numpy())
        figures.append({"bound": bound, "share": float(unsure.double().mean()), "accuracy": accuracy})
    return figures


def describe(figures: Sequence[dict[str, float]], prompts: int) -> str:
    """The figures as a table in Markdown."""
    lines = ["| second_below | prompts that pay (%) | macro accuracy (%) |", "|---:|---:|---:|"]
    lines += [f"| {row['bound']:g} | {100 * row['share']:.1f} | {100 * row['accuracy']:.2f} |" for row in figures]
    return "\n".join([f"On {prompts:,} prompts:", "", *lines])


def plot(figures: Sequence[dict[str, float]], path: Path) -> None:
    """Draws accuracy over the share of prompts that pay, a point a bound, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(layout="constrained", figsize=(5, 3.5))
    axes = canvas.subplots()
    x, y = ([100 * row[key] for row in figures] for key in ("share", "accuracy"))
    axes.plot(x, y, marker=".", color="tab:blue", label="by second_below")
    places: dict[tuple[float, float], list[str]] = {}
    for place, row in zip(zip(x, y, strict=True), figures, strict=True):
        places.setdefault(place, []).append(f"{row['bound']:g}")
    for place, bounds in places.items():
        axes.annotate(", ".join(bounds), place, xytext=(0, -12), textcoords="offset points", fontsize=8, ha="center")
    axes.margins(0.15)
    axes.legend(fontsize=8, loc="lower right")
    axes.set_xlabel("prompts that the encoder reads (%)")
    axes.set_ylabel("macro accuracy (%)")
    FigureCanvasAgg(canvas)
    canvas.savefig(path, dpi=150, bbox_inches="tight")


def _encoded(opinion: SecondOpinion, rows: Sequence[Row]) -> torch.Tensor:
    texts = [row.text for row in rows]
    parts = []
    with tqdm(total=len(texts), desc="Encoding", unit=" texts", disable=None) as progress:
        for start in range(0, len(texts), _AT_ONCE):
            parts.append(opinion.encode(texts[start : start + _AT_ONCE]))
            progress.update(len(parts[-1]))
    return torch.cat(parts)


def _labels(rows: Sequence[Row], names: Sequence[str]) -> torch.Tensor:
    return torch.tensor([names.index(row.domain) for row in rows])


def _scores(pipeline: Any, rows: Sequence[Row], names: Sequence[str]) -> torch.Tensor:
    """The router's probabilities, `(N, D)`."""
    records = pipeline([row.text for row in rows], generate=False, min_score=0)
    scores = [{entry["expert"]: entry["score"] for entry in record["ranking"]} for record in records]
    return torch.tensor([[row[name] for name in names] for row in scores], dtype=torch.float64)


main = command("second", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
