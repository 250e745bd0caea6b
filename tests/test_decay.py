"""Outcomes of days: what they weigh with a half-life, that what is kept stays exact, and that nothing else changes."""

import json
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ir3de import IR3DEConfig, IR3DEModel
from ir3de.outcome_rows_ir3de import Outcome, read_outcomes
from ir3de.outcomes_ir3de import Ledger, OutcomesCollector, expected, whole
from ir3de.scripts import cli

from . import tiny
from .test_outcomes import DOMAINS, EXPERTS, outcomes_of

NONE_SERVE = np.zeros((3, 2), dtype=bool)

days = st.dates(date(2025, 1, 1), date(2025, 3, 1)).map(date.isoformat)
outcomes = outcomes_of(st.sampled_from(DOMAINS), days, most=100)


def ledger(rows: list[Outcome]) -> Ledger:
    collector = OutcomesCollector(DOMAINS)
    collector.add(rows, whole([DOMAINS.index(str(row.domain)) for row in rows], 3))
    return collector.ledger


def told(day: str | None, score: float, number: int = 1, expert: str = "big") -> list[Outcome]:
    """So many outcomes of one day in law."""
    return [Outcome(f"{day} {i} {score}", expert, score, domain="law", day=day) for i in range(number)]


def n(made: Ledger, half_life: float | None, expert: str = "big") -> float:
    """How many outcomes of an expert count in law."""
    return float(made.sums(["law"], [expert], half_life)[0, 0, 0] / 2**20)


def test_outcomes_count_half_after_a_half_life_and_those_without_a_day_are_as_old_as_the_oldest() -> None:
    made = ledger([*told("2025-01-31", 1.0, 4), *told("2025-01-01", 0.0, 8), *told(None, 0.0, 16)])
    assert n(made, None) == 28
    assert n(made, 30) == 4 + 4 + 8
    assert n(made, 15) == 4 + 2 + 4
    assert n(ledger(told("2025-01-31", 1.0, 4)), 1) == 4, "a router that is left alone does not forget"
    assert n(ledger(told(None, 1.0, 4)), 1) == 4, "without any day nothing is older than anything"
    both = ledger([*told("2025-01-31", 1.0), *told("2025-01-01", 1.0, 8, "small")])
    assert n(both, 30, "small") == 4, "the newest day is that of the ledger, not of the expert"


def test_one_day_far_in_the_past_does_not_make_what_has_no_day_fade() -> None:
    rows = [*told("2025-01-31", 1.0, 10), *told("2025-01-01", 0.0, 10), *told(None, 0.0, 16)]
    before = n(ledger(rows), 30)
    assert before == 10 + 5 + 8
    assert abs(n(ledger([*rows, *told("1970-01-01", 1.0)]), 30) - before) < 1e-6, "it has faded itself, and no other"
    few = [*told("2025-01-31", 1.0, 4), *told(None, 0.0, 16)]
    assert abs(n(ledger([*few, *told("1970-01-01", 1.0)]), 30) - 20) < 1e-6, "nor where few have a day"
    assert n(ledger([*few[1:], *told("2025-01-01", 1.0, 2)]), 30) == 3 + 1 + 8, "two are no slip of a clock"
    many = ledger([*rows, *told("1970-01-01", 1.0, 3)])
    assert n(many, 30) < 15.1, "where more than a tenth is that old, that is how old things are"


@settings(deadline=None, max_examples=60)
@given(st.lists(outcomes, min_size=1, max_size=14), st.integers(1, 5), st.randoms(use_true_random=False))
def test_with_a_half_life_too_any_order_and_any_files_give_the_same_bits(
    rows: list[Outcome], files: int, draw: random.Random
) -> None:
    rows = [row._replace(text=f"{number} {row.text}") for number, row in enumerate(rows)]
    alone, mixed = ledger(rows), list(rows)
    draw.shuffle(mixed)
    together = Ledger()
    for start in range(files):
        if part := mixed[start::files]:
            together = together.with_new(ledger(part))
    assert together == alone
    for half_life in (None, 0.5, 7, 1000):
        sums = alone.sums(DOMAINS, EXPERTS, half_life)
        assert together.sums(DOMAINS, EXPERTS, half_life).tobytes() == sums.tobytes()
        pairs = expected(sums, NONE_SERVE)
        assert np.isfinite(pairs.score).all()
        assert (pairs.score >= 0).all()
        assert (pairs.score <= 1 + 1e-12).all()
    whole_sums = alone.sums(DOMAINS, EXPERTS)
    assert whole_sums.dtype == np.int64
    assert (alone.sums(DOMAINS, EXPERTS, 7) <= whole_sums).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(outcomes, min_size=1, max_size=8), st.lists(outcomes, min_size=1, max_size=8))
def test_what_is_removed_leaves_no_trace_with_a_half_life_either(first: list[Outcome], second: list[Outcome]) -> None:
    here, new = ledger(first), ledger([row._replace(text=f"new {row.text}") for row in second])
    left = here.with_new(new).without(new)
    assert left == here
    assert left.sums(DOMAINS, EXPERTS, 3).tobytes() == here.sums(DOMAINS, EXPERTS, 3).tobytes()


def test_the_same_answer_on_two_days_is_two_outcomes_and_on_one_day_it_is_refused() -> None:
    first, second = ledger(told("2025-01-01", 1.0)), ledger([told("2025-01-01", 1.0)[0]._replace(day="2025-01-02")])
    assert n(first.with_new(second), None) == 2
    with pytest.raises(ValueError, match="count twice"):
        first.with_new(first)


# Files.


def test_a_file_keeps_days_and_without_any_it_is_what_it_was(tmp_path: Path) -> None:
    made = ledger([*told("2025-01-31", 1.0), *told("2025-01-01", 0.5), *told(None, 0.0)])
    made.save(tmp_path)
    again = Ledger.load([tmp_path / "big.safetensors"])
    assert again == made
    assert again.sums(DOMAINS, EXPERTS, 3).tobytes() == made.sums(DOMAINS, EXPERTS, 3).tobytes()
    plain = ledger(told(None, 0.5, 3))
    plain.save(tmp_path)
    with safe_open(tmp_path / "big.safetensors", framework="numpy") as file:
        header = json.loads(file.metadata()["ir3de"])
    assert header.keys() == {"format", "domains"}


@pytest.mark.parametrize(
    "days", [{"0" * 32: "2025-01-01"}, {"key": "2025-13-01"}, {"key": 3}, {"key": "20250101"}, ["2025-01-01"]]
)
def test_a_file_whose_days_are_none_is_refused(days: Any, tmp_path: Path) -> None:
    made = ledger(told("2025-01-31", 1.0))
    made.save(tmp_path)
    path = tmp_path / "big.safetensors"
    (key,) = made.contributions["big"]
    if isinstance(days, dict):
        days = {key if name == "key" else name: day for name, day in days.items()}
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["ir3de"])
    save_file(load_file(path), path, metadata={"ir3de": json.dumps({**header, "days": days})})
    with pytest.raises(ValueError, match=r"big\.safetensors.*(fetch|Fetch)"):
        Ledger.load([path])


@pytest.mark.parametrize(
    ("day", "means"),
    [
        ("2025-01-31", "2025-01-31"),
        ("2025-01-31T23:30:00", "2025-01-31"),
        ("2025-01-31T23:30:00-02:00", "2025-02-01"),
        ("2025-01-31T23:30:00Z", "2025-01-31"),
        (None, None),
    ],
)
def test_a_row_says_its_day(day: str | None, means: str | None) -> None:
    ((one,),) = read_outcomes([{"text": "x", "expert": "big", "score": 1, "day": day}])
    assert one.day == means
    ((first, second),) = read_outcomes([{"text": "x", "scores": {"big": 1, "small": 0}, "day": day}])
    assert first.day == second.day == means


@pytest.mark.parametrize("day", ["yesterday", "2025-02-30", "2025-1-3", "2025-02-30T10:00:00", 20250131, 3.5, ""])
def test_a_day_that_is_none_is_refused_with_its_place(day: Any) -> None:
    with pytest.raises(ValueError, match="row 0: `day` must be a date such as 2026-11-28"):
        list(read_outcomes([{"text": "x", "expert": "big", "score": 1, "day": day}]))


# A router.


def router(half_life: float | None = None) -> IR3DEModel:
    """Experts of whom one began well and then fell, and one is steady."""
    model = tiny.router({name: {} for name in DOMAINS})
    for day, score in (("2025-01-01", 1.0), ("2025-03-01", 0.0)):
        model.add_outcomes([{**row, "day": day} for row in _judged(score, 0.6)])
    model.set_half_life(half_life)
    return model


def _judged(code: float, math: float) -> list[dict[str, Any]]:
    texts = tiny.sentences("law", 30, seed=9)
    return [{"text": text, "scores": {"code": code, "math": math}, "domain": "law"} for text in texts]


def test_a_router_forgets_what_was_and_its_panel_follows_the_half_life() -> None:
    model = router()
    exact = model.panel
    row, column = exact.domains.index("law"), exact.experts.index("code")
    before = float(exact.scores[row, column])  # type: ignore[index]
    model.set_half_life(10)
    forgetful = model.panel
    assert float(forgetful.scores[row, column]) < before - 0.1  # type: ignore[index]
    model.set_half_life(None)
    assert model.panel.scores.numpy().tobytes() == exact.scores.numpy().tobytes()  # type: ignore[union-attr]


def test_a_half_life_is_saved_shown_and_left_out_where_there_is_none(tmp_path: Path) -> None:
    router(10).save_pretrained(tmp_path / "with")
    again = IR3DEModel.from_pretrained(tmp_path / "with")
    assert again.config.half_life == 10
    card = (tmp_path / "with/README.md").read_text(encoding="utf-8")
    assert "Those that are 10 days older than the newest count half. The newest are of 2025-03-01." in card
    router().save_pretrained(tmp_path / "without")
    assert "half_life" not in (tmp_path / "without/config.json").read_text(encoding="utf-8")
    assert "half" not in (tmp_path / "without/README.md").read_text(encoding="utf-8").split("## Outcomes")[1]


@pytest.mark.parametrize("days", [0, -3, float("nan"), float("inf"), True, "30", 1e9])
def test_a_half_life_that_is_none_is_refused(days: Any) -> None:
    model = router(10)
    with pytest.raises(ValueError, match="`half_life` must be a number of days"):
        model.set_half_life(days)
    assert model.config.half_life == 10
    with pytest.raises(ValueError, match="`half_life`"):
        IR3DEConfig(experts=[{"name": "a"}], half_life=days)


def test_outcomes_of_a_day_to_come_are_refused_since_all_others_would_fade() -> None:
    model, ahead = router(10), (date.today() + timedelta(days=5)).isoformat()
    before = model.outcomes
    with pytest.raises(ValueError, match=f"dated {ahead}, which is yet to come"):
        model.add_outcomes([{**row, "day": ahead} for row in _judged(1, 1)])
    assert model.outcomes == before


def test_the_command_sets_it_shows_it_and_takes_it_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "router"
    router().save_pretrained(folder)
    assert cli.main(["outcomes", str(folder), "--half-life", "10"]) == 0
    assert "half-life" in capsys.readouterr().out
    assert IR3DEModel.from_pretrained(folder).config.half_life == 10
    assert cli.main(["outcomes", str(folder), "--half-life", "none"]) == 0
    assert IR3DEModel.from_pretrained(folder).config.half_life is None
    assert cli.main(["outcomes", str(folder), "--half-life", "soon"]) != 0
    assert "a number of days, or `none`" in capsys.readouterr().err
