"""Exploring: nothing changes where it is off, no choice is expected to lose more than was allowed, and it is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ir3de import IR3DEConfig, IR3DEModel, IR3DERoutingPipeline
from ir3de.gateway.loading import Origin
from ir3de.outcome_rows_ir3de import Outcome
from ir3de.outcomes_ir3de import Ledger, OutcomesCollector, whole
from ir3de.policy_ir3de import Panel, Policy, explored
from ir3de.scripts import serve
from ir3de.scripts.routers.learners import Epsilon, LinUCB, NearestOnline, Pairwise, Stream, replayed

from . import tiny

DOMAINS = ["code", "law", "math"]
SPECS: list[dict[str, Any]] = [{"name": "good"}, {"name": "near"}, {"name": "poor"}]


def panel(specs: list[dict[str, Any]] = SPECS, number: int = 10) -> Panel:
    """Experts that were right eight, seven and one times of ten everywhere, by so many outcomes of the second."""
    rows = [
        Outcome(f"{name} {domain} {i}", name, float(i % 10 < right), domain=domain)
        for name, right, count in (("good", 8, 4 * number), ("near", 7, number), ("poor", 1, 4 * number))
        for domain in DOMAINS
        for i in range(count)
    ]
    collector = OutcomesCollector(DOMAINS)
    collector.add(rows, whole([DOMAINS.index(str(row.domain)) for row in rows], 3))
    return Panel.of([{"domains": [], **spec} for spec in specs], DOMAINS, collector.ledger)  # type: ignore[misc]


def p(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([0.5] * 3, rows))


def test_without_a_loss_records_are_what_they_were_to_the_last_bit() -> None:
    draw = np.random.default_rng(0)
    assert Policy().decide(p(50), panel(), [1] * 50, True, draw) == Policy().decide(p(50), panel(), [1] * 50, True)
    assert draw.random() == np.random.default_rng(0).random(), "nothing was drawn"


def test_others_are_chosen_only_within_the_loss_and_their_records_say_so() -> None:
    policy = Policy(explore_loss=0.3)
    best = Policy().decide(p(300), panel(), [1] * 300)
    records = policy.decide(p(300), panel(), [1] * 300, True, np.random.default_rng(1))
    others = [record for record in records if "explored" in record]
    assert 5 < len(others) < 150
    for before, record in zip(best, records, strict=True):
        assert record["ranking"] == before["ranking"]
        score = {entry["expert"]: entry["score"] for entry in record["ranking"]}
        assert record["expert"] == (before["expert"] if "explored" not in record else "near")
        assert record["score"] == pytest.approx(score[str(record["expert"])])
        assert sum(pair["share"] for pair in record["pairs"]) == pytest.approx(record["score"])
    assert all(record["explored"] is True for record in others)
    lead = max(before["score"] - record["score"] for before, record in zip(best, records, strict=True))
    assert 0 < lead <= 0.3
    less = Policy(explore_loss=lead / 2).decide(p(300), panel(), [1] * 300, draw=np.random.default_rng(1))
    assert all(b["score"] - r["score"] <= lead / 2 for b, r in zip(best, less, strict=True))


def test_what_is_known_better_is_explored_less() -> None:
    def share(number: int) -> float:
        records = Policy(explore_loss=1).decide(p(400), panel(number=number), [1] * 400, draw=np.random.default_rng(2))
        return sum(record["expert"] != "good" for record in records) / 400

    assert share(600) < share(10) / 3


def test_costs_count_in_what_is_lost() -> None:
    worth, error = np.array([[0.8, 0.75]]), np.full((1, 2), 10.0)
    draw = np.random.default_rng(0)
    everyone = np.ones(2, dtype=bool)
    assert {int(explored(worth, error, 0.1, everyone, draw)[0]) for _ in range(50)} == {0, 1}
    assert {int(explored(worth, error, 0.01, everyone, draw)[0]) for _ in range(50)} == {0}
    assert {int(explored(worth, error, 0.1, np.array([True, False]), draw)[0]) for _ in range(50)} == {0}
    assert {int(explored(worth, error, 0.1, ~everyone, draw)[0]) for _ in range(50)} == {0}, "somebody must answer"


def test_who_only_routes_is_not_explored_where_others_answer() -> None:
    specs = [{"name": "good", "model": "a/b"}, {"name": "near"}, {"name": "poor", "model": "a/c"}]
    records = Policy(explore_loss=0.3).decide(p(300), panel(specs), [1] * 300, draw=np.random.default_rng(1))
    assert {record["expert"] for record in records} == {"good"}


def test_prompts_of_the_fallback_and_turns_that_count_are_not_explored() -> None:
    draw = np.random.default_rng(0)
    low = Policy(explore_loss=1, min_score=0.99, fallback_expert="poor").decide(p(50), panel(), [1] * 50, draw=draw)
    assert all(record["expert"] == "poor" and "explored" not in record for record in low)
    least = Policy(explore_loss=1, min_score=0.5).decide(p(300), panel(), [1] * 300, draw=draw)
    assert {record["expert"] for record in least} == {"good", "near"}, "nobody below the minimum"
    turns = Policy(explore_loss=1, stickiness=0.1).decide(p(50), panel(), [2] * 25, draw=draw)
    assert not any("explored" in record for record in turns)


def test_without_outcomes_there_is_nothing_to_explore() -> None:
    plain = Panel.of([{"name": name} for name in DOMAINS], DOMAINS, Ledger())
    policy, draw = Policy(explore_loss=1), np.random.default_rng(0)
    assert policy.decide(p(50), plain, [1] * 50, draw=draw) == Policy().decide(p(50), plain, [1] * 50)


@pytest.mark.parametrize("loss", [-0.1, 1.1, float("nan"), "0.1"])
def test_a_loss_that_is_no_score_is_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match="`explore_loss`"):
        Policy(explore_loss=loss).check(panel())
    with pytest.raises(ValueError, match="`explore_loss`"):
        IR3DEConfig(experts=[{"name": "a"}], explore_loss=loss)


def test_a_router_explores_by_its_config_or_a_call_and_with_a_seed_the_same(tmp_path: Any) -> None:
    model = tiny.router({name: {} for name in DOMAINS})
    texts = tiny.sentences("law", 60, seed=3)
    scores = [{"code": i % 2, "math": (i + 1) % 2, "law": i % 3 // 2} for i in range(len(texts))]
    rows = zip(texts, scores, strict=True)
    model.add_outcomes([{"text": text, "scores": of_text, "domain": "law"} for text, of_text in rows])
    model.config.explore_loss = 1.0
    model.save_pretrained(tmp_path)
    pipe = IR3DERoutingPipeline(IR3DEModel.from_pretrained(tmp_path), device="cpu", generate=False)
    pipe.draw = np.random.default_rng(5)
    first = pipe(texts)
    pipe.draw = np.random.default_rng(5)
    assert pipe(texts) == first
    assert any("explored" in record for record in first)
    assert not any("explored" in record for record in pipe(texts, explore_loss=0))


# Small replays.


def world(number: int = 900, seed: int = 0) -> tuple[Stream, Any]:
    """Two domains; one expert is good in each, a third is middling in both."""
    draw = np.random.default_rng(seed)
    domain = draw.integers(2, size=number)
    rows = np.eye(2)[domain] * 0.9 + 0.05
    scores = (draw.random((number, 3)) < np.array([[0.9, 0.2, 0.6], [0.2, 0.9, 0.6]])[domain]).astype(float)
    return Stream(rows, rows, rows / np.linalg.norm(rows, axis=1, keepdims=True), 3), scores


@pytest.mark.parametrize("name", ["greedy", "thompson", "epsilon", "linucb", "neighbours"])
def test_every_learner_finds_who_is_good_where_from_its_own_choices_alone(name: str) -> None:
    stream, scores = world()
    makers: dict[str, Any] = {
        "greedy": lambda: Pairwise(stream, first=5),
        "thompson": lambda: Pairwise(stream, 0.1, first=5),
        "epsilon": lambda: Epsilon(Pairwise(stream, first=5), 0.05, 3),
        "linucb": lambda: LinUCB(stream, lambda each: each.rows, 0.5),
        "neighbours": lambda: NearestOnline(stream),
    }
    draw = np.random.default_rng(1)
    learner = makers[name]()
    got, choices = replayed(learner, scores, draw.permutation(len(scores)), draw)
    assert got[300:].mean() > 0.8, "the middling expert has 0.6"
    best = learner.expected(stream).argmax(axis=1)
    assert (best == stream.p.argmax(axis=1)).mean() > 0.95
    assert len(got) == len(choices) == len(scores)


def test_an_expert_that_was_unlucky_at_first_is_found_again_by_exploring_alone() -> None:
    number = 2000
    rows = np.ones((number, 1))
    scores = np.random.default_rng(3).random((number, 2)) < np.array([0.6, 0.7])
    scores = scores.astype(float)
    scores[:8, 1] = 0  # its first answers, by ill luck
    stream = Stream(rows, rows, rows, 2)
    order, shares = np.arange(number), {}
    for loss in (0.0, 0.3):
        _, choices = replayed(Pairwise(stream, loss, first=8), scores, order, np.random.default_rng(0))
        shares[loss] = (choices[1000:] == 1).mean()
    assert shares[0.0] < 0.05
    assert shares[0.3] > 0.5


@pytest.mark.parametrize("half_life", [300, None])
def test_an_expert_that_falls_loses_its_share_within_a_half_life_or_when_its_mean_has_fallen(
    half_life: int | None,
) -> None:
    before, number = 1200, 3600
    rows = np.ones((number, 1))
    chances = np.tile([0.8, 0.65], (number, 1))
    chances[before:, 0] = 0.4  # falls by half, while the other stays
    scores = (np.random.default_rng(5).random((number, 2)) < chances).astype(float)
    stream = Stream(rows, rows, rows, 2)
    fades = 1.0 if half_life is None else 0.5 ** (8 / half_life)
    _, choices = replayed(Pairwise(stream, 0.3, fades=fades), scores, np.arange(number), np.random.default_rng(0))
    is_first = choices == 0
    asked = int(is_first[:before].sum())
    assert asked > 0.7 * before
    # Until its mean is that of the other: n (0.8 - 0.65) = k (0.65 - 0.4); a half-life takes n and k together.
    after = is_first[before:]
    k = 0.6 * asked * 1.25  # its outcomes differ by chance, and what is near is explored
    until = int(np.searchsorted(after.cumsum(), k)) if half_life is None else half_life
    assert after[: until // 3].mean() > 0.5, "it is not left at once"
    assert until + 200 <= len(after)
    assert after[until : until + 200].mean() < 0.4


def test_a_gateway_explores_where_it_is_told_to(tmp_path: Path) -> None:
    tiny.router().save_pretrained(tmp_path)
    assert Origin(str(tmp_path)).load().policy({}).explore_loss == 0
    router = Origin(str(tmp_path), explore_loss=0.3).load()
    assert router.policy({}).explore_loss == 0.3
    assert router.policy({"explore_loss": 0.1}).explore_loss == 0.1, "a request may ask for less"
    with pytest.raises(ValueError, match="`explore_loss`"):
        serve.main([str(tmp_path), "--explore-loss", "2"])
