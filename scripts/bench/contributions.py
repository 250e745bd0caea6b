"""Measures what hostile contributions can do to a router: `python scripts/bench/contributions.py --data ...`."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ir3de.batch_ir3de import Prompts
from ir3de.card_ir3de import markdown_table
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.displacement_ir3de import Lost, displaced
from ir3de.edits_ir3de import check_displaced, prompt_length
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.scripts.data.rows import RowSource, add_data_arguments, by_domain, read_rows
from ir3de.scripts.data.sources import load_quickstart_source, load_source
from ir3de.scripts.metrics.measures import mean_recall
from ir3de.statistics_ir3de import KINDS, DomainStatistics

BOUNDS = (1.0, 2.0, 3.0, 5.0, 10.0, math.inf)  # on the length of rows, times the longest domain's
MUCH = 0.05  # of a domain's prompts
MARKS = (0.01, 0.02, 0.03, 0.05)  # estimates from which on a domain might be marked
SHARES = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.01)  # of a domain, that a contribution to it has
NEW = "newcomer"
Grams = dict[str, torch.Tensor]


class Hostile(NamedTuple):
    """
    A contribution that passes the format's checks.

    Args:
        kind (`str`): how it was made.
        domain (`str`): that it is given to.
        statistics (`DomainStatistics`): its sums.
    """

    kind: str
    domain: str
    statistics: DomainStatistics


class Result(NamedTuple):
    """
    What became of a contribution.

    Args:
        kind (`str`): of the contribution.
        times (`float`): its rows' mean squared length over the longest domain's.
        lost (`dict[str, Lost]`): what each domain was estimated to lose.
        refused (`bool`): by the estimate of what it takes, or as not solvable.
        gone (`dict[str, float]`): recall that each domain lost or would have lost, 0 to 1; empty if not solvable.
    """

    kind: str
    times: float
    lost: dict[str, Lost]
    refused: bool
    gone: dict[str, float]

    @property
    def macro(self) -> float:
        """Honest macro accuracy that was lost."""
        return mean_recall(self.gone) if self.gone else 0.0

    @property
    def most(self) -> float:
        """Recall that the domain which lost most lost."""
        return max(self.gone.values(), default=0.0)


class Maker:
    """
    Makes hostile contributions of a router's own statistics, which any reader of its repository has.

    Args:
        statistics (`Mapping[str, DomainStatistics]`): of each domain.
        seed (`int`): of what is drawn.
    """

    def __init__(self, statistics: Mapping[str, DomainStatistics], seed: int = 0) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.fingerprint = next(iter(statistics.values())).fingerprint
        self.names = sorted(statistics)
        self.means = {name: self.a_row(domain) for name, domain in statistics.items()}
        self.documents = {name: domain.documents for name, domain in statistics.items()}
        self.prompts = {name: domain.rows("prompts") for name, domain in statistics.items()}
        self.ways: dict[str, Callable[[], Grams]] = {
            "near-copy": self.near_copy,
            "long": self.long,
            "scaled": self.scaled,
            "shifted": self.shifted,
            "mixed": self.mixed,
            "one point": self.point,
            "many rows": self.near_copy,
            "into a domain": self.mixed,
        }

    @staticmethod
    def a_row(domain: DomainStatistics) -> Grams:
        """Sums a row, of each kind."""
        rows = {}
        for kind in KINDS:
            gram = domain.gram(kind)
            rows[kind] = gram / gram[-1, -1]
        return rows

    def make(self, number: int) -> Iterator[Hostile]:
        """So many contributions, each way in turn."""
        for index in range(number):
            way = list(self.ways)[index % len(self.ways)]
            grams = self.ways[way]()
            most = 2**50 if way in ("many rows", "into a domain") else 10_000
            prompts = round(self.between(10, most, logarithmic=True))
            counts = {"tokens": 12 * prompts, "prompts": prompts}
            documents = self._documents(prompts) if None not in self.documents.values() else None
            statistics = DomainStatistics.from_grams(
                {kind: grams[kind] * counts[kind] for kind in KINDS}, self.fingerprint, documents
            )
            yield Hostile(way, self.any() if way == "into a domain" else NEW, statistics)

    def near_copy(self) -> Grams:
        """A domain with up to a third of another, a little longer or shorter."""
        share = self.between(0, 0.3)
        return stretched(self._blend({self.any(): 1 - share, self.any(): share}), self.between(0.8, 1.3))

    def long(self) -> Grams:
        """A domain's rows made up to eight times as long."""
        return stretched(self.means[self.any()], self.between(1, 8, logarithmic=True))

    def scaled(self) -> Grams:
        """A domain's rows made up to ten times as short, or half as long again."""
        return stretched(self.means[self.any()], self.between(0.1, 1.5, logarithmic=True))

    def shifted(self) -> Grams:
        """A domain's rows moved along the mean row of another."""
        other = self.means[self.any()]["prompts"][:-1, -1]
        sums = {kind: A.clone() for kind, A in self.means[self.any()].items()}
        move = torch.eye(len(other) + 1, dtype=torch.float64)
        move[-1, :-1] = other * self.between(-3, 3)  # a row x becomes x + other, since its last entry is 1
        sums["prompts"] = move.T @ sums["prompts"] @ move
        return sums

    def mixed(self) -> Grams:
        """Several domains, longer or shorter."""
        chosen = {self.any(): self.between(0.1, 1) for _ in range(int(self.between(2, len(self.names) + 1)))}
        return stretched(self._blend(chosen), self.between(0.7, 2))

    def point(self) -> Grams:
        """Every prompt's row the same: a sum of domains' mean rows."""
        sums = self.mixed()
        row = sums["prompts"][-1].clone()
        row[:-1] *= self.between(0.5, 4)
        return {**sums, "prompts": torch.outer(row, row)}

    def _blend(self, shares: Mapping[str, float]) -> Grams:
        """Rows of several domains, each with its share."""
        total = sum(shares.values())
        parts = {kind: [share / total * self.means[name][kind] for name, share in shares.items()] for kind in KINDS}
        return {kind: torch.stack(each).sum(dim=0) for kind, each in parts.items()}

    def _documents(self, prompts: int) -> torch.Tensor:
        """A domain's numbers of prompts that tokens occur in, as of so many prompts."""
        name = self.any()
        documents = self.documents[name]
        assert documents is not None
        return (documents.double() / self.prompts[name] * prompts).floor().long()

    def any(self) -> str:
        """A domain."""
        return self.names[int(torch.randint(len(self.names), (), generator=self.draw))]

    def between(self, low: float, high: float, logarithmic: bool = False) -> float:
        """A number between two, or one whose logarithm is."""
        share = float(torch.rand((), generator=self.draw))
        return low * (high / low) ** share if logarithmic else low + (high - low) * share


def stretched(sums: Grams, times: float) -> Grams:
    """Sums of prompts' rows that are so many times as long."""
    scale = torch.full((len(sums["prompts"]),), times, dtype=torch.float64)
    scale[-1] = 1
    return {**sums, "prompts": sums["prompts"] * scale * scale.unsqueeze(1)}


def recalls(model: IR3DEModel, prompts: Mapping[str, Prompts]) -> dict[str, float]:
    """How many of each domain's prompts the router recognises."""
    names = model.config.domain_names
    found = {name: model.route(*of_domain).argmax(dim=1) for name, of_domain in prompts.items()}
    return {name: float((columns == names.index(name)).double().mean()) for name, columns in found.items()}


def try_all(model: IR3DEModel, hostile: Iterator[Hostile], prompts: Mapping[str, Prompts]) -> list[Result]:
    """Gives each contribution to a copy of the router, with the bound on the length of rows lifted, and measures it.

    Args:
        model ([`IR3DEModel`]): the router.
        hostile (`Iterator[Hostile]`): contributions.
        prompts (`Mapping[str, Prompts]`): honest prompts of each domain.
    """
    before, scorer, results = recalls(model, prompts), model.scorer, []
    longest = max(map(prompt_length, model.statistics.values()))
    for part in hostile:
        router, times = model.copy(), prompt_length(part.statistics) / longest
        try:
            router.merge({part.domain: part.statistics}, own=True)  # whatever it takes, and however long it is
        except ValueError:
            results.append(Result(part.kind, times, {}, True, {}))
            continue
        lost = displaced(model.statistics, scorer, router.scorer)
        after = recalls(router, prompts)
        gone = {name: before[name] - after[name] for name in prompts}
        results.append(Result(part.kind, times, lost, _refused(lost, scorer.way), gone))
    return results


def creep(model: IR3DEModel, prompts: Mapping[str, Prompts], steps: int) -> str:
    """Gives the router many contributions, each the largest that it takes: a domain's own rows, for another one.

    Args:
        model ([`IR3DEModel`]): the router.
        prompts (`Mapping[str, Prompts]`): honest prompts of each domain.
        steps (`int`): contributions at most.

    Returns:
        `str`: a line a contribution of the attack that takes most of a domain with all of them.
    """
    before = recalls(model, prompts)
    lines: dict[tuple[str, str], list[str]] = {}
    most: dict[tuple[str, str], float] = {}
    for victim in sorted(prompts):
        taker = _rival(model, prompts[victim], victim)
        router = model.copy()
        said: list[str] = []
        while len(said) < steps and (share := _largest(router, model.statistics[victim], taker)):
            fitted = displaced(model.statistics, model.scorer, router.scorer)[victim]
            lost = before[victim] - recalls(router, prompts)[victim]
            said.append(
                f"{share:.2f} of {taker}'s prompts: {lost:.1%} lost, {fitted.unseen:.1%} estimated of all together"
            )
        if said:
            lines[victim, taker], most[victim, taker] = said, lost
    victim, taker = max(most, key=most.__getitem__)
    return "\n".join([f"from {victim} to {taker}, one contribution after another", *lines[victim, taker]])


def _rival(model: IR3DEModel, prompts: Prompts, own: str) -> str:
    """The domain that scores most with the prompts of another one."""
    names = model.config.domain_names
    scores = model.route(*prompts).double().softmax(dim=1).sum(dim=0)
    scores[names.index(own)] = 0
    return names[int(scores.argmax())]


def _largest(router: IR3DEModel, victim: DomainStatistics, taker: str) -> float:
    """Merges the largest share of a domain's prompts, of as many as another has, that the router takes; returns it."""
    for share in SHARES:
        number = max(1, round(share * router.statistics[taker].rows("prompts")))
        means = Maker.a_row(victim)
        counts = {"tokens": 12 * number, "prompts": number}
        part = DomainStatistics.from_grams({kind: means[kind] * counts[kind] for kind in KINDS}, victim.fingerprint)
        try:
            router.merge({taker: part})
        except ValueError:
            continue
        return share
    return 0.0


def _refused(lost: Mapping[str, Lost], way: str) -> bool:
    try:
        check_displaced(lost, way)
    except ValueError:
        return True
    return False


def honest(model: IR3DEModel, prompts: Mapping[str, Prompts]) -> list[Result]:
    """Leaves each domain out and lets it join as a stranger's."""
    results = []
    for name, domain in model.statistics.items():
        router = model.copy()
        router.remove_expert(name)
        others = {other: of_domain for other, of_domain in prompts.items() if other != name}
        results += try_all(router, iter([Hostile("honest", name, domain)]), others)
    return results


def table(results: Sequence[Result]) -> str:
    """By the bound on the length of rows: how many are taken, and what they take at most."""
    rows: list[list[str]] = []
    for bound in BOUNDS:
        taken = [result for result in results if not result.refused and result.times <= bound]
        macro = max((result.macro for result in taken), default=0.0)
        most = max((result.most for result in taken), default=0.0)
        beyond = sum(result.macro > 0.02 for result in taken)
        rows.append(
            [
                f"{bound:g}",
                str(len(results) - len(taken)),
                str(len(taken)),
                f"{100 * macro:.1f}",
                f"{100 * most:.1f}",
                str(beyond),
            ]
        )
    head = [
        "rows' length at most",
        "refused",
        "taken",
        "macro accuracy lost",
        "recall of one domain lost",
        "beyond 2 points",
    ]
    return markdown_table(head, rows, numbers=len(head) - 1)


def largest(results: Sequence[Result]) -> str:
    """The largest estimates of what one domain and all in the mean lose."""
    lines = []
    for field in ("seen", "unseen"):
        shares = [[getattr(lost, field) for lost in result.lost.values()] for result in results if result.lost]
        most = max((max(each) for each in shares), default=0.0)
        mean = max((sum(each) / len(each) for each in shares), default=0.0)
        lines.append(f"estimated of {field} prompts: at most {most:.1%} of one domain, {mean:.1%} in the mean")
    return "\n".join(lines)


def marks(results: Sequence[Result]) -> str:
    """How far the estimate tells which domains lose much, refused contributions too."""
    each = [
        (result.lost[name].unseen, gone)
        for result in results
        for name, gone in result.gone.items()
        if name in result.lost
    ]
    much = [estimate for estimate, gone in each if gone > MUCH]
    lines = [f"of {len(each)} domains that met a contribution {len(much)} lost more than {MUCH:.0%}"]
    for least in MARKS:
        marked = [gone for estimate, gone in each if not estimate <= least]
        found, right = sum(not estimate <= least for estimate in much), sum(gone > 0.02 for gone in marked)
        lines.append(
            f"estimated above {least:.0%}: {found} of these, {len(marked)} in all, of which {right} lost more than 2%"
        )
    return "\n".join(lines)


class Made(NamedTuple):
    """
    The router that is tried.

    Args:
        embeddings (`str`, *optional*): Hub id or folder of a causal LM; by default SmolLM2-135M-Instruct.
        variant (`str`): one of `VARIANTS`.
        lexical_weight (`float`): of naive Bayes in prompt rows.
        discriminant (`bool`): whether prompt rows are fitted by discriminant analysis.
    """

    embeddings: str | None
    variant: str
    lexical_weight: float
    discriminant: bool


class Most(NamedTuple):
    """
    How many prompts of a domain are used at most.

    Args:
        train (`int`, *optional*): to fit the router.
        test (`int`): to measure it.
    """

    train: int | None
    test: int


def build(
    made: Made, train_source: RowSource, test_source: RowSource, most: Most
) -> tuple[IR3DEModel, dict[str, Prompts]]:
    """The router, and honest prompts that it was not fitted on."""
    tokenizer, E = load_quickstart_source() if made.embeddings is None else load_source(made.embeddings)
    train, test = by_domain(read_rows(train_source)), by_domain(read_rows(test_source))
    config = IR3DEConfig(
        experts=[{"name": name} for name in sorted(train)],
        variant=made.variant,
        feature_map="unit",
        token_noise=0.3,
        lexical_weight=made.lexical_weight,
        discriminant=made.discriminant,
    )
    model = IR3DEModel.from_embeddings(config, E, tokenizer)
    statistics = {}
    for name, texts in train.items():
        collector = model.collector()
        collector.add(model.tokenize(texts[: most.train]))
        statistics[name] = collector.statistics
    model.fit(statistics)
    return model, {name: model.tokenize(test[name][: most.test]) for name in train}


def main() -> int:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_arguments(parser)
    parser.add_argument("--test-where", action="append", required=True, metavar="KEY=VALUE", help="rows to test on")
    parser.add_argument("--most", type=int, default=450, help="prompts to test each domain on (default: 450)")
    parser.add_argument("--train-most", type=int, help="prompts to fit each domain on (default: all)")
    parser.add_argument("--embeddings", help="Hub id or folder of a causal LM; default: SmolLM2-135M-Instruct")
    parser.add_argument("--variant", default="prompt")
    parser.add_argument("--lexical-weight", type=float, default=0.0)
    parser.add_argument("--discriminant", action="store_true", help="fit prompt rows by discriminant analysis")
    parser.add_argument("--number", type=int, default=500, help="hostile ones to try (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="instead: contributions, one after another")
    args = parser.parse_args()
    source = RowSource.of(**vars(args))
    test_source = replace(source, where=tuple(args.test_where))
    made = Made(args.embeddings, args.variant, args.lexical_weight, args.discriminant)
    most = Most(args.train_most, args.most)
    model, prompts = build(made, source, test_source, most)
    print(f"macro accuracy {mean_recall(recalls(model, prompts)):.2%} of {len(prompts)} domains", flush=True)
    if args.steps:
        print(creep(model, prompts, args.steps))
        return 0
    joined = honest(model, prompts)
    print(f"{len(joined)} honest domains that join\n{table(joined)}\n{largest(joined)}\n{marks(joined)}", flush=True)
    if not args.number:
        return 0
    results = try_all(model, Maker(model.statistics, args.seed).make(args.number), prompts)
    print(f"hostile contributions\n{table(results)}\n{marks(results)}")
    taken = Counter(result.kind for result in results if not result.refused)
    worst = {kind: max(r.macro for r in results if r.kind == kind and not r.refused) for kind in taken}
    print(", ".join(f"{kind}: {taken[kind]} taken, {100 * worst[kind]:.1f} points lost" for kind in sorted(taken)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
