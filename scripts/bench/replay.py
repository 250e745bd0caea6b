"""`python scripts/bench/replay.py FILE... --output DIR`: what is learned from traffic, on prompts that several experts
were judged on: exploring, forgetting, what to judge next, and budgets.

Each file has rows with `text`, `scores`, `source`, `split` and maybe `costs`, as those of `ir3de benchmark --outcomes`.
Training prompts come in random order, and only the score of the expert that was chosen is seen. Domains are recognised
by a router that was fitted on the labels of other prompts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ir3de.card_ir3de import markdown_table
from ir3de.outcomes_ir3de import Pairs, expected
from ir3de.scripts.data.judged import Judged, JudgedData, read_judged
from ir3de.scripts.data.sources import load_quickstart_source
from ir3de.scripts.fitting.discovery import prompt_rows
from ir3de.scripts.fitting.options import FitOptions
from ir3de.scripts.metrics.frontier import chosen, macro_mean
from ir3de.scripts.metrics.measures import Array, Integers
from ir3de.scripts.routers.by_outcomes import FOLDS, DomainsByOutcomes, folds, sums_of
from ir3de.scripts.routers.encoders import Encoder, default_encoder
from ir3de.scripts.routers.learners import (
    Epsilon,
    Learner,
    LinUCB,
    NearestOnline,
    Pairwise,
    Stream,
    replayed,
)
from ir3de.traffic.budget import Budget, Spending

SIZE = 64  # of prompt rows, by their principal components
LOSSES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
WIDTHS = (0.1, 0.3, 1.0)
JUDGING_SEEDS = 8
DAY = 86_400.0
SHARES = (0.03, 0.05, 0.1, 0.3, 0.6)  # of what the best choices cost, that a budget is
VOLUMES = (0.5, 1.0, 2.0)  # of the requests that were expected
Makers = Mapping[str, Callable[[Stream], Learner]]


class Replay(NamedTuple):
    """
    A data set as routers see it.

    Args:
        data ([`JudgedData`]): scores and costs.
        train, test ([`Stream`]): the same prompts.
        pairs ([`Pairs`]): what all outcomes of the training prompts let expect.
    """

    data: JudgedData
    train: Stream
    test: Stream
    pairs: Pairs

    def final(self, scores: Array) -> float:
        """Macro mean score on test, in percent, of the experts that are expected to score most."""
        test = self.data.test
        return 100 * macro_mean(chosen(test.scores, scores.argmax(axis=1)), test.groups)


def prepare(path: str, folder: Path) -> Replay:
    """Reads a data set, and recognises its domains; what takes long is kept in the folder."""
    data = read_judged(path)
    kept = folder / f"{data.name}.npz"
    if not kept.exists():
        np.savez(kept, **_features(data))
    with np.load(kept) as found:
        features = {name: found[name] for name in found.files}
    number = len(data.train.texts)
    rows = _shortened(features["rows"], number)
    train = Stream(features["p_train"], rows[:number], features["mini"][:number], len(data.experts))
    test = Stream(features["p_test"], rows[number:], features["mini"][number:], len(data.experts))
    sums = sums_of(data.train, data.train.groups, features["names"].tolist())
    return Replay(data, train, test, expected(sums, np.zeros(sums.shape[:2], dtype=bool)))


def _features(data: JudgedData) -> dict[str, Any]:
    """Probabilities of domains, of training prompts by routers fitted on the other folds; prompt rows, and vectors."""
    tokenizer, embeddings = load_quickstart_source()
    make = partial(DomainsByOutcomes, tokenizer, embeddings)
    ours = make(options=FitOptions(variant="prompt", feature_map="unit")).fit(data.train)
    names, config = ours.recogniser.domains, ours.recogniser.pipeline.model.config
    fixed = FitOptions(
        variant="prompt",
        feature_map="unit",
        regularization=config.prompt_regularization,
        token_noise=float(config.token_noise),
        lexical_weight=float(config.lexical_weight),
    )
    fold, p_train = folds(len(data.train.texts)), np.zeros((len(data.train.texts), len(names)))
    for held in range(FOLDS):
        away = np.flatnonzero(fold == held)
        part = make(options=fixed).fit(data.train.take(np.flatnonzero(fold != held))).recogniser
        columns = np.array([names.index(name) for name in part.domains])
        p_train[away[:, None], columns] = part.scores(data.train.take(away).texts)
    texts = data.train.texts + data.test.texts
    return {
        "names": names,
        "p_train": p_train,
        "p_test": ours.recogniser.scores(data.test.texts),
        "rows": prompt_rows(texts, tokenizer, embeddings, 1024),
        "mini": Encoder(default_encoder()).cached(texts),
    }


def _shortened(rows: Array, number: int) -> Array:
    """Unit rows along the principal components of the first so many."""
    axes = np.linalg.svd(rows[: min(number, 2000)], full_matrices=False)[2][:SIZE]
    short: Array = rows @ axes.T
    short /= np.linalg.norm(short, axis=1, keepdims=True)
    return short


# Exploring.


def learners(stream: Stream) -> Makers:
    """Makers of the routers that learn, by name."""
    experts = stream.experts
    makers: dict[str, Callable[[Stream], Learner]] = {
        "greedy, each asked 5 times first": lambda s: Pairwise(s, first=5),
        "greedy, each asked 20 times first": lambda s: Pairwise(s, first=20),
        "epsilon 0.05": lambda s: Epsilon(Pairwise(s, first=5), 0.05, experts),
        "kNN on the encoder": NearestOnline,
        "kNN on the encoder, epsilon 0.05": lambda s: Epsilon(NearestOnline(s), 0.05, experts),
    }
    makers |= {f"Thompson, explore_loss {loss:g}": lambda s, loss=loss: Pairwise(s, loss) for loss in LOSSES}  # type: ignore[misc]
    makers |= {f"LinUCB on prompt rows, {w:g}": lambda s, w=w: LinUCB(s, lambda each: each.rows, w) for w in WIDTHS}  # type: ignore[misc]
    return makers


def explore(replay: Replay, seeds: int, judged: int = 0) -> dict[str, tuple[float, float]]:
    """Mean score while learning, and the score on test afterwards, in percent, of each learner.

    Args:
        replay ([`Replay`]): the data set.
        seeds (`int`): orders of the prompts.
        judged (`int`): prompts on which all experts were judged before, which ours begin with.
    """
    found: dict[str, tuple[float, float]] = {}
    scores, number = replay.data.train.scores, len(replay.data.train.texts)
    for name, make in learners(replay.train).items():
        if judged and not name.startswith(("greedy, each asked 5", "Thompson")):
            continue
        online, final = [], []
        for seed in range(seeds):
            draw = np.random.default_rng(seed)
            order, learner = draw.permutation(number), make(replay.train)
            for expert in range(scores.shape[1] if judged else 0):
                learner.learn(order[:judged], np.full(judged, expert), scores[order[:judged], expert])
            if judged and isinstance(learner, Pairwise):
                learner.first = 0
            got, _ = replayed(learner, scores, order[judged:], draw)
            online.append(100 * got.mean())
            final.append(replay.final(learner.expected(replay.test)))
        found[name] = float(np.mean(online)), float(np.mean(final))
    return found


def tell_exploring(replays: Sequence[Replay], seeds: int) -> str:
    """The tables of learners."""
    lines = []
    for judged in (0, 50):
        figures = [explore(each, seeds, judged) for each in replays]
        rows = [[name, *(f"{value:.2f}" for each in figures for value in each[name])] for name in figures[0]]
        if not judged:
            singles = [_single(each) for each in replays]
            rows.insert(0, ["best single expert in hindsight", *(f"{value:.2f}" for each in singles for value in each)])
            all_told = [f"{each.final(each.test.p @ each.pairs.score):.2f}" for each in replays]
            rows.append(["all outcomes", *(cell for value in all_told for cell in ("", value))])
        heads = [f"{each.data.name}, {what}" for each in replays for what in ("online", "test")]
        lines += [
            f"From {judged} prompts that all experts were judged on:",
            markdown_table(["", *heads], rows, len(heads)),
        ]
    return "\n\n".join(lines)


def _single(replay: Replay) -> tuple[float, float]:
    train = replay.data.train.scores.mean(axis=0)
    return 100 * float(train.max()), replay.final(np.tile(train, (len(replay.test.p), 1)))


# Forgetting.


def tell_drift(replays: Sequence[Replay], seeds: int) -> str:
    """The share of the expert that is asked most, whose score falls by half in the middle, before and after."""
    rows = []
    for replay in replays:
        number = len(replay.data.train.texts)
        for parts in (None, 40, 20, 10):
            shares = np.mean([_fallen(replay, number, parts, seed) for seed in range(seeds)], axis=0)
            name = "none" if parts is None else f"{number // parts:,} prompts"
            rows.append([replay.data.name, name, *(f"{100 * share:.0f} %" for share in shares[:4]), f"{shares[4]:.2f}"])
    heads = [
        "data",
        "half-life",
        "before",
        "within one part",
        "in the part after",
        "in the last quarter",
        "score after",
    ]
    return markdown_table(heads, rows, 5)


def _fallen(replay: Replay, number: int, parts: int | None, seed: int) -> tuple[float, ...]:
    draw = np.random.default_rng(seed)
    order, half, part = draw.permutation(number), number // 2, number // (parts or 20)
    learner = Pairwise(replay.train, 0.2, fades=1.0 if parts is None else 0.5 ** (8 / part))
    scores = replay.data.train.scores.copy()
    _, before = replayed(learner, scores, order[:half], draw)
    most = int(np.bincount(before[half // 2 :]).argmax())
    scores[:, most] /= 2
    got, after = replayed(learner, scores, order[half:], draw)
    is_most = after == most
    return (
        float((before[half // 2 :] == most).mean()),
        float(is_most[:part].mean()),
        float(is_most[part : 2 * part].mean()),
        float(is_most[-number // 4 :].mean()),
        100 * float(got.mean()),
    )


# Budgets.


def tell_budgets(replay: Replay, seeds: int) -> str:
    """Scores and spending of days with bursts, beside a fixed weight of costs that was chosen on training prompts."""
    train, test = replay.data.train, replay.data.test
    q, c = replay.test.p @ replay.pairs.score, replay.test.p @ replay.pairs.cost
    free = chosen(train.costs, (replay.train.p @ replay.pairs.score).argmax(axis=1)).mean()
    rows = []
    for share in SHARES:
        weight = _fixed_weight(replay, share * free)
        for volume in VOLUMES:
            days = [
                _days(q, c, test, share * free * len(q), int(volume * len(q)), weight, seed) for seed in range(seeds)
            ]
            means, most = np.mean(days, axis=0), np.max(days, axis=0)
            cells = [f"{100 * means[i, 0]:.2f} at {100 * means[i, 1]:.0f} % ({100 * most[i, 1]:.1f})" for i in range(3)]
            rows.append([f"{100 * share:g} %", f"{volume:g}", *cells])
    return markdown_table(["budget", "requests", "fixed weight", "price, first day", "price, second day"], rows, 4)


def _fixed_weight(replay: Replay, mean_cost: float) -> float:
    """The least weight of costs at which the training prompts would have cost no more in the mean."""
    q, c = replay.train.p @ replay.pairs.score, replay.train.p @ replay.pairs.cost
    costs = replay.data.train.costs
    for weight in (0.0, *(np.geomspace(1e-6, 1e5, 3000) / costs.mean())):
        if chosen(costs, (q - weight * c).argmax(axis=1)).mean() <= mean_cost:
            return float(weight)
    raise ValueError(f"No weight makes a request cost {mean_cost:.3g} or less.")


def _days(q: Array, c: Array, test: Judged, budget: float, number: int, weight: float, seed: int) -> list[list[float]]:
    """Mean score, and spending as a share of the budget: of a fixed weight, and of two days with a price."""
    draw, now = np.random.default_rng(seed), [0.0]
    spending = Spending(Budget(budget, "day"), clock=lambda: now[0])
    rows = []
    for day in range(2):
        order = np.resize(draw.permutation(len(q)), number)
        score = 0.0
        for at, row in zip(_moments(number, draw) + day * DAY, order.tolist(), strict=True):
            now[0] = at
            spending.saw(q[row], c[row])
            expert = int((q[row] - spending.price * c[row]).argmax())
            if c[row, expert] > spending.left:
                expert = int(c[row].argmin())
            spending.settle(0.0, float(test.costs[row, expert]))
            score += float(test.scores[row, expert])
        rows.append([score / number, spending.spent / budget])
    spent = score = 0.0
    for row in order.tolist():
        expert = int(c[row].argmin()) if spent >= budget else int((q[row] - weight * c[row]).argmax())
        spent += float(test.costs[row, expert])
        score += float(test.scores[row, expert])
    return [[score / number, spent / budget], *rows]


def _moments(number: int, draw: np.random.Generator) -> Array:
    """When requests come: half as people work, half in five bursts of ten minutes."""
    hours = np.exp(-0.5 * ((np.arange(24) - 14) / 4) ** 2) + 0.05
    even = 3600 * (draw.choice(24, number - number // 2, p=hours / hours.sum()) + draw.random(number - number // 2))
    starts = draw.random(5) * (DAY - 600)
    moments: Array = np.sort(np.concatenate([even, draw.choice(starts, number // 2) + 600 * draw.random(number // 2)]))
    return moments


# What to judge next.


def tell_judging(replays: Sequence[Replay]) -> str:
    """Scores on test after N more answers were judged: of any pairs of prompt and expert, and of unsettled ones."""
    rows = []
    for replay in replays:
        for start in (5, 20):
            for number in (200, 500):
                cells = []
                for unsettled in (False, True):
                    found = [_after_judging(replay, start, number, unsettled, seed) for seed in range(JUDGING_SEEDS)]
                    cells.append(f"{np.mean(found):.2f} ± {np.std(found) / JUDGING_SEEDS**0.5:.2f}")
                rows.append([replay.data.name, str(start), str(number), *cells])
    return markdown_table(["", "start", "N", "at random", "least settled"], rows, 4)


def _after_judging(replay: Replay, start: int, number: int, unsettled: bool, seed: int) -> float:
    """The score on test after so many answers an expert at random, and then so many more."""
    draw, scores, p = np.random.default_rng(seed), replay.data.train.scores, replay.train.p
    learner, known = Pairwise(replay.train), np.zeros(scores.size, dtype=bool)

    def ask(jobs: Integers) -> None:
        """Has these pairs of prompt and expert judged."""
        rows, experts = np.divmod(jobs, scores.shape[1])
        known[jobs] = True
        learner.learn(rows, experts, scores[rows, experts])

    ask(draw.permutation(scores.size)[: start * scores.shape[1]])
    weights = np.ones(scores.size)
    if unsettled:
        worth, error = p @ learner.pairs.score, np.sqrt(p**2 @ learner.error**2)
        best = (worth[:, None] + error[:, None] * draw.standard_normal((len(p), 32, scores.shape[1]))).argmax(axis=2)
        probability = np.stack([(best == expert).mean(axis=1) for expert in range(scores.shape[1])], axis=1)
        weights = np.minimum(probability, 1 - probability).ravel() + 1e-9
    weights[known] = 0
    ask(draw.choice(scores.size, number, replace=False, p=weights / weights.sum()))
    return replay.final(learner.expected(replay.test))


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--output", required=True, type=Path, help="folder that keeps what takes long")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--part", action="append", choices=("exploring", "forgetting", "judging", "budgets"), help="default: all"
    )
    args = parser.parse_intermixed_args()
    args.output.mkdir(parents=True, exist_ok=True)
    replays = [prepare(path, args.output) for path in args.files]
    priced = [each for each in replays if each.data.train.has_costs and each.data.test.has_costs]
    parts: dict[str, Callable[[], str]] = {
        "exploring": lambda: tell_exploring(replays, args.seeds),
        "forgetting": lambda: tell_drift(replays, args.seeds),
        "judging": lambda: tell_judging(replays),
        "budgets": lambda: "\n\n".join(f"{each.data.name}:\n\n{tell_budgets(each, args.seeds)}" for each in priced),
    }
    for name in args.part or parts:
        print(f"## {name.capitalize()}\n\n{parts[name]()}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
