"""The ledger: exact sums, names of contributions, files as a stranger's, and what a pair is expected to score."""

import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ir3de.outcome_rows_ir3de import Outcome, read_outcomes
from ir3de.outcomes_ir3de import (
    COLUMNS,
    ONE,
    STRENGTH,
    Ledger,
    OutcomesCollector,
    expected,
    shared,
    whole,
)

DOMAINS = ["code", "law", "math"]
EXPERTS = ["big", "small"]


def outcomes_of(
    domains: st.SearchStrategy[str | None], days: st.SearchStrategy[str], most: int
) -> st.SearchStrategy[Outcome]:
    """Outcomes of two experts, some without a day, whose cost, seconds and tokens are at most a number or not told."""
    return st.builds(
        Outcome,
        text=st.text(min_size=1, max_size=5).filter(str.strip),
        expert=st.sampled_from(EXPERTS),
        score=st.floats(0, 1),
        cost=st.none() | st.floats(0, most),
        seconds=st.none() | st.floats(0, most),
        tokens=st.none() | st.integers(0, 100 * most),
        domain=domains,
        day=st.none() | days,
    )


rows = outcomes_of(st.none() | st.sampled_from(DOMAINS), st.sampled_from(["2025-01-30", "2025-02-01"]), 10_000)


def p_of(text: str) -> Any:
    """Some probabilities of the domains that depend on the text alone."""
    return np.random.default_rng(list(text.encode("utf-8", "surrogatepass"))).dirichlet([0.3] * len(DOMAINS))


def counted(outcomes: list[Outcome], at_once: int = 3) -> Ledger:
    """The ledger of outcomes, added a few at a time."""
    collector = OutcomesCollector(DOMAINS)
    for start in range(0, len(outcomes), at_once):
        batch = outcomes[start : start + at_once]
        weights = shared(np.array([p_of(outcome.text) for outcome in batch]))
        for index, outcome in enumerate(batch):
            if outcome.domain is not None:
                weights[index] = whole([DOMAINS.index(outcome.domain)], len(DOMAINS))[0]
        collector.add(batch, weights)
    return collector.ledger


def sums_of(outcomes: list[tuple[str, str, float]]) -> Any:
    """Sums of `(domain, expert, score)`."""
    return counted([Outcome(f"{i}", e, s, domain=d) for i, (d, e, s) in enumerate(outcomes)]).sums(DOMAINS, EXPERTS)


@settings(deadline=None, max_examples=60)
@given(st.lists(rows, min_size=1, max_size=14), st.integers(1, 7), st.randoms(use_true_random=False))
def test_totals_are_the_same_from_any_number_of_files_in_any_order(
    outcomes: list[Outcome], files: int, draw: random.Random
) -> None:
    outcomes = [row._replace(text=f"{number} {row.text}") for number, row in enumerate(outcomes)]
    alone = counted(outcomes)
    mixed = list(outcomes)
    draw.shuffle(mixed)
    parts = [counted(mixed[start::files], at_once=2) for start in range(files)]
    draw.shuffle(parts)
    together = Ledger()
    for part in parts:
        together = together.with_new(part)
    assert together == alone
    assert together.sums(DOMAINS, EXPERTS).tobytes() == alone.sums(DOMAINS, EXPERTS).tobytes()


@settings(deadline=None, max_examples=40)
@given(st.lists(rows, min_size=1, max_size=8), st.lists(rows, min_size=1, max_size=8))
def test_added_and_removed_is_never_added(first: list[Outcome], second: list[Outcome]) -> None:
    here, new = counted(first), counted([row._replace(text=f"new {row.text}") for row in second])
    assert here.with_new(new).without(new).contributions.keys() == here.contributions.keys()
    assert here.with_new(new).without(new) == here
    with pytest.raises(ValueError, match="count twice"):
        here.with_new(new).with_new(new)
    with pytest.raises(ValueError, match="were not added as they are"):
        here.without(new)


@settings(deadline=None, max_examples=60)
@given(st.lists(rows, min_size=1, max_size=10))
def test_sums_are_within_the_stated_error_of_exact_ones(outcomes: list[Outcome]) -> None:
    totals = counted(outcomes).sums(DOMAINS, EXPERTS)
    for column, expert in enumerate(EXPERTS):
        mine = [row for row in outcomes if row.expert == expert]
        assert totals[:, column, 0].sum() == len(mine) * ONE
        exact = sum((Fraction(row.score) for row in mine), Fraction(0))
        assert abs(Fraction(int(totals[:, column, 1].sum()), ONE) - exact) <= Fraction(
            len(DOMAINS) * len(mine), 2 * ONE
        )
        priced = [row.cost for row in mine if row.cost is not None]
        assert totals[:, column, COLUMNS.index("n_cost")].sum() == len(priced) * ONE
        found = Fraction(int(totals[:, column, COLUMNS.index("cost")].sum()), 1 << 32)
        bound = Fraction(len(DOMAINS) * len(priced), 1 << 33) + Fraction(sum(priced)) / (1 << 50)
        assert abs(found - sum(map(Fraction, priced), Fraction(0))) <= bound


@given(st.lists(st.floats(1e-12, 1), min_size=1, max_size=200))
def test_shared_weights_add_up_to_one_outcome(values: list[float]) -> None:
    p = np.array([values]) / sum(values)
    weights = shared(p)
    assert weights.sum() == ONE
    assert weights.min() >= 0
    assert np.abs(weights - p * ONE).max() <= 1


def test_outcomes_count_where_their_domain_is_known_and_else_by_probability() -> None:
    known = counted([Outcome("x", "big", 0.5, domain="law")]).sums(DOMAINS, EXPERTS)
    assert known[:, 0, 0].tolist() == [0, ONE, 0]
    assert known[:, 0, 1].tolist() == [0, ONE // 2, 0]
    guessed = counted([Outcome("x", "big", 0.5)]).sums(DOMAINS, EXPERTS)
    assert guessed[:, 0, 0].tolist() == shared(p_of("x")[None])[0].tolist()


def test_the_same_outcomes_have_the_same_name_whatever_their_order_and_domain() -> None:
    outcomes = [Outcome("a", "big", 1.0), Outcome("b", "big", 0.0, cost=2.0), Outcome("c", "big", 0.25, domain="law")]
    name = counted(outcomes).digest["big"]
    assert counted([row._replace(domain="math") for row in reversed(outcomes)]).digest["big"] == name
    for changed in ({"score": 0.3}, {"text": "d"}, {"cost": 0.0}, {"seconds": 1.0}, {"tokens": 1}):
        assert counted([*outcomes[:2], outcomes[2]._replace(**changed)]).digest["big"] != name


def test_unions_do_not_care_for_order_where_routers_weighed_the_same_outcomes_differently() -> None:
    one = counted([Outcome("a", "big", 1.0, domain="law")])
    other = counted([Outcome("a", "big", 1.0, domain="math")])
    assert one | other == other | one
    assert (one | other).sums(DOMAINS, EXPERTS)[..., 0].sum() == ONE


@pytest.mark.parametrize(
    ("field", "value"),
    [("score", v) for v in (-0.1, 1.1, float("nan"), float("inf"), True, "1", None)]
    + [("cost", v) for v in (-1, float("nan"), "2", 1e300, 10**400)]
    + [("seconds", -1), ("tokens", float("inf")), ("text", " "), ("text", None), ("expert", "")],
)
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field if field not in ("text", "expert") else "needs"):
        Outcome("a", "big", 0.5)._replace(**{field: value}).check()


def test_sums_that_would_overflow_are_refused() -> None:
    dear = [Outcome(f"{i}", "big", 1.0, cost=1e9, domain="law") for i in range(3)]
    with pytest.raises(OverflowError, match="larger unit"):
        counted(dear, at_once=3)
    with pytest.raises(OverflowError, match="larger unit"):
        counted(dear, at_once=1)
    collector = OutcomesCollector(DOMAINS)
    collector.add(dear[:1], whole([1], 3))
    other = OutcomesCollector(DOMAINS)
    other.add(dear[1:2], whole([1], 3))
    with pytest.raises(OverflowError, match="larger unit"):
        (collector.ledger | other.ledger).sums(DOMAINS, EXPERTS)


@settings(deadline=None, max_examples=20)
@given(st.lists(rows, min_size=1, max_size=10))
def test_files_bring_back_the_same_and_are_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, outcomes: list[Outcome]
) -> None:
    folder, again = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    ledger = counted(outcomes)
    ledger.save(folder)
    loaded = Ledger.load(sorted(folder.iterdir()))
    assert loaded == ledger
    assert loaded.digest == ledger.digest
    loaded.save(again)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def changed(tmp_path: Path, edit: Any, header: Any = None) -> Path:
    """A file of one expert whose tensors or header were changed."""
    counted([Outcome("a", "big", 0.5, cost=1.0), Outcome("b", "big", 1.0, domain="law")]).save(tmp_path)
    path = tmp_path / "big.safetensors"
    tensors = load_file(path)
    (key, sums), *_ = tensors.items()
    known = {"format": "ir3de-outcomes-1", "domains": {key: DOMAINS}}
    if edit is not None:
        tensors[key] = edit(sums.copy())
    save_file(tensors, path, metadata={"ir3de": json.dumps(known if header is None else header(known, key))})
    return path


def at(column: int, value: int) -> Any:
    """An edit that sets a column of the first domain."""

    def edit(sums: Any) -> Any:
        sums[0, column] = value
        return sums

    return edit


@pytest.mark.parametrize(
    ("edit", "header"),
    [
        (at(0, -1), None),
        (at(1, 1 << 40), None),  # a score above the number
        (at(2, 1 << 40), None),  # a square above the score
        (at(3, 1 << 40), None),  # more costs than outcomes
        (at(4, -1), None),
        (at(5, 1 << 40), None),
        (at(6, 7), None),  # seconds of no outcome
        (at(0, (1 << 63) - 1), None),
        (lambda sums: sums.astype(np.float64), None),
        (lambda sums: sums.astype(np.int32), None),
        (lambda sums: sums[:2], None),
        (lambda sums: sums[:, :8].copy(), None),
        (None, lambda known, key: known | {"format": "ir3de-outcomes-9"}),
        (None, lambda known, key: {"format": known["format"]}),
        (None, lambda known, key: known | {"domains": {}}),
        (None, lambda known, key: known | {"domains": {key: ["code", "law", "../x"]}}),
        (None, lambda known, key: known | {"domains": {key: ["math", "law", "code"]}}),
        (None, lambda known, key: known | {"domains": {key: ["code", "law", 3]}}),
        (None, lambda known, key: [known]),
    ],
)
def test_damaged_files_are_refused_with_their_name(tmp_path: Path, edit: Any, header: Any) -> None:
    path = changed(tmp_path, edit, header)
    with pytest.raises(ValueError, match=r"big\.safetensors|cannot name"):
        Ledger.load([path])


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="copy it"):
        Ledger.load([tmp_path / "big.safetensors"])
    for content in (b"", b"x" * 100, b"\xff" * 8 + b"{}", (10).to_bytes(8, "little") + b"{"):
        (tmp_path / "big.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"big\.safetensors"):
            Ledger.load([tmp_path / "big.safetensors"])
    whole_file = changed(tmp_path, None).read_bytes()
    (tmp_path / "big.safetensors").write_bytes(whole_file[:-5])
    with pytest.raises(ValueError, match="truncated"):
        Ledger.load([tmp_path / "big.safetensors"])


def test_a_pair_with_many_outcomes_is_expected_to_go_on_as_it_did() -> None:
    outcomes = [("law", "big", 0.8), ("math", "big", 0.2), ("law", "small", 0.1), ("math", "small", 0.9)] * 500
    pairs = expected(sums_of(outcomes), np.zeros((3, 2), dtype=bool))
    assert np.allclose(pairs.score[1:], [[0.8, 0.1], [0.2, 0.9]], atol=0.02)
    assert pairs.n[1:].tolist() == [[500, 500], [500, 500]]
    assert pairs.error.max() < 0.03 or pairs.error[0].max() < 0.3


def test_without_outcomes_the_specs_alone_speak() -> None:
    serves = np.array([[True, False], [False, True], [True, True]])
    pairs = expected(np.zeros((3, 2, 9), dtype=np.int64), serves)
    assert pairs.score.tolist() == serves.astype(float).tolist()
    assert np.isnan(pairs.error).all()
    assert np.isnan(pairs.cost).all()


def test_specs_alone_speak_in_domains_without_outcomes_and_fade_where_others_were_judged() -> None:
    serves = np.array([[True, False], [False, True], [False, True]])
    for number in (2, 10, 100, 1000):
        pairs = expected(sums_of([("law", "big", 0.5), ("law", "big", 1.0)] * (number // 2)), serves)
        assert pairs.score[[0, 2]].tolist() == [[1, 0], [0, 1]]
        assert (pairs.score[1, 0] > pairs.score[1, 1]) == (number > 10)


def test_without_a_claim_an_expert_without_outcomes_is_expected_to_be_less_than_usual() -> None:
    pairs = expected(sums_of([("law", "big", s) for s in (1, 1, 0.5, 0)] * 30), np.zeros((3, 2), dtype=bool))
    assert 0 < pairs.score[1, 1] < pairs.score[1, 0]
    assert np.isnan(pairs.error[:, 1]).all()


def test_experts_that_were_judged_each_in_its_own_domain_stay_there() -> None:
    """By its own mean alone the expert of an easy domain would take over a hard one where it was never seen."""
    outcomes = [("law", "big", s) for s in (0, 1, 1, 0, 1)] * 10 + [
        ("math", "small", s) for s in (1, 1, 1, 1, 0.5)
    ] * 10
    pairs = expected(sums_of(outcomes), np.zeros((3, 2), dtype=bool))
    assert pairs.score[1].argmax() == 0
    assert pairs.score[2].argmax() == 1


def test_one_lucky_outcome_does_not_make_the_best_expert() -> None:
    outcomes = [("law", "big", s) for s in (1, 1, 1, 0)] * 25 + [("law", "small", 1.0)]
    pairs = expected(sums_of(outcomes), np.zeros((3, 2), dtype=bool))
    assert pairs.score[1, 0] > pairs.score[1, 1]
    assert pairs.error[1, 1] > pairs.error[1, 0]


def test_the_prior_is_the_ridge_regression_that_it_is_said_to_be() -> None:
    draw = np.random.default_rng(3)
    outcomes = [
        (DOMAINS[d], EXPERTS[e], float(draw.random() * (0.4 + 0.2 * d + 0.2 * e)))
        for d in range(3)
        for e in range(2)
        for _ in range(3 + 4 * d * e)
    ]
    sums = sums_of(outcomes)
    n, score = sums[..., 0] / ONE, sums[..., 1] / ONE
    mean = score.sum() / n.sum()
    rows, targets, weights = [], [], []
    for d in range(3):
        for e in range(2):
            rows.append([float(d == j) for j in range(3)] + [float(e == j) for j in range(2)])
            targets.append(score[d, e] / n[d, e] - mean)
            weights.append(n[d, e])
    X, y, w = np.array(rows), np.array(targets), np.array(weights)
    penalty = np.diag([1e-2] * 3 + [STRENGTH] * 2)
    effects = np.linalg.inv(X.T @ (w[:, None] * X) + penalty) @ X.T @ (w * y)
    from ir3de.outcomes_ir3de import _prior

    prior, variance = _prior(n, score, sums[..., 2] / ONE, STRENGTH)
    compared = (n * (1 - n / n.sum(axis=1, keepdims=True))).sum(axis=0)
    wanted = mean + effects[:3, None] + effects[3:] - np.sqrt(variance / (compared + STRENGTH))
    assert np.allclose(prior, wanted.clip(0, 1), atol=1e-6)


def test_costs_are_measured_by_domain_and_guessed_where_they_are_few() -> None:
    outcomes = [
        Outcome(f"{d} {e} {i}", e, 1.0, cost=c * f, seconds=f, domain=d)
        for d, f in (("law", 1.0), ("math", 3.0))
        for e, c in (("big", 10.0), ("small", 1.0))
        for i in range(1000)
        if (d, e) != ("math", "small")
    ]
    pairs = expected(counted(outcomes).sums(DOMAINS, EXPERTS), np.zeros((3, 2), dtype=bool))
    assert np.allclose(pairs.cost[1:, 0], [10, 30], rtol=0.02)
    assert pairs.cost[1, 1] == pytest.approx(1, rel=0.02)
    assert 1.2 < pairs.cost[2, 1] < 3  # never measured, but the domain is dear
    free = [row._replace(cost=0.0 if row.expert == "small" else None, seconds=None) for row in outcomes]
    pairs = expected(counted(free).sums(DOMAINS, EXPERTS), np.zeros((3, 2), dtype=bool))
    assert pairs.cost[:, 1].tolist() == [0, 0, 0]
    assert np.isnan(pairs.cost[:, 0]).all()
    assert np.isnan(pairs.seconds).all()


def test_rows_of_one_answer_and_of_several_experts_are_read(tmp_path: Path) -> None:
    lines = [
        {
            "text": "a",
            "scores": {"big": 1, "small": 0.5, "none": None},
            "costs": {"big": 2},
            "domain": "law",
            "split": "train",
        },
        {"text": "b", "expert": "small", "score": 0, "seconds": 1.5, "tokens": 7, "split": "train"},
        {"text": "c", "expert": "small", "score": 1, "split": "test"},
    ]
    path = tmp_path / "outcomes.jsonl"
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    wanted = [
        [Outcome("a", "big", 1, cost=2, domain="law"), Outcome("a", "small", 0.5, domain="law")],
        [Outcome("b", "small", 0, seconds=1.5, tokens=7)],
    ]
    assert list(read_outcomes(path, {"split": "train"})) == wanted
    assert list(read_outcomes(lines[:2])) == wanted
    assert list(read_outcomes([wanted[1][0]])) == [wanted[1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "needs `expert` and `score`"),
        ({"text": "a", "expert": "big", "score": None}, "needs `expert` and `score`"),
        ({"text": "a", "scores": {}}, "no score"),
        ({"text": "a", "scores": {"big": None}}, "no score"),
        ({"text": "a", "scores": {"big": 2}}, "from 0 to 1"),
        ({"text": "a", "scores": {"big": float("nan")}}, "from 0 to 1"),
        ({"text": "a", "scores": {"big": 1}, "costs": {"big": -1}}, "cost"),
        ({"text": "a", "scores": {"big": 1}, "costs": {"small": 1}}, "'small', which has no score"),
        ({"text": "a", "scores": [1]}, "must map"),
        ({"scores": {"big": 1}}, "text"),
        ({"text": "a", "score": 1}, "name of an expert"),
        ({"text": "a", "scores": {"big": 1}, "domain": 3}, "domain"),
        ([1], "expected an object"),
    ],
)
def test_malformed_rows_are_refused_with_their_line(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "outcomes.jsonl"
    path.write_text(json.dumps({"text": "ok", "expert": "big", "score": 1}) + "\n" + json.dumps(row), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"outcomes\.jsonl, line 2: .*{message}"):
        list(read_outcomes(path))


def test_files_of_outcomes_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        list(read_outcomes(tmp_path / "none.jsonl"))
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
    (tmp_path / "text.jsonl").write_bytes(b"{\xff}")
    for name in ("cut.jsonl.gz", "text.jsonl"):
        with pytest.raises(ValueError, match=name):
            list(read_outcomes(tmp_path / name))
    with pytest.raises(TypeError, match="a file, or rows"):
        list(read_outcomes({"text": "a"}))
