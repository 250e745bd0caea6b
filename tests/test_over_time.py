"""Outcomes day by day, as the app shows them."""

import numpy as np
import pytest

from ir3de import IR3DEModel
from ir3de.outcomes_ir3de import COLUMNS, COST_ONE, ONE
from ir3de.space.over_time import Days, _means, over_time
from ir3de.space.palette import Palette

from . import tiny


def judged(router: IR3DEModel, *rows: dict[str, object]) -> IR3DEModel:
    router.add_outcomes([{"text": f"case {place}", "domain": "law", **row} for place, row in enumerate(rows)])
    return router


def test_days_have_means_numbers_and_errors(router: IR3DEModel) -> None:
    judged(
        router,
        {"expert": "law", "score": 1.0, "cost": 2.0, "day": "2026-03-01"},
        {"expert": "law", "score": 0.0, "day": "2026-03-01", "domain": "math"},
        {"expert": "law", "score": 1.0, "day": "2026-03-04"},
        {"expert": "code", "score": 0.5, "day": "2026-03-04", "cost": 0.25},
        {"expert": "code", "score": 0.0},
    )
    told = Days.of(router.outcomes, router.config.expert_names)
    assert told is not None
    assert told.days == ["2026-03-01", "2026-03-04"]
    assert told.experts == ["code", "law"], "math was not judged"
    assert told.n.tolist() == [[0, 2], [1, 1]], "what has no day is not here"
    np.testing.assert_allclose(told.score, [[np.nan, 0.5], [0.5, 1.0]])
    spread = np.sqrt(2 / 3 - (2 / 3) ** 2)
    np.testing.assert_allclose(told.error[:, 1], [spread / np.sqrt(2), spread])
    np.testing.assert_allclose(told.cost, [[np.nan, 2.0], [0.25, np.nan]])
    assert np.isnan(told.cost_error).all(), "a day or two do not tell how much days differ"


def test_the_interval_of_a_cost_holds_the_true_one_as_often_as_it_says() -> None:
    """Though sums do not tell how much answers' costs differ, many days do."""
    draw = np.random.default_rng(0)
    sums = np.zeros((40, 200, 9))  # days, and experts that are all alike
    number = draw.integers(1, 30, (40, 200))
    place = COLUMNS.index("n_cost"), COLUMNS.index("cost")
    sums[..., place[0]] = number * ONE
    sums[..., place[1]] = draw.gamma(4 * number, 0.5 / 4) * COST_ONE  # of values with mean 0.5 and deviation 0.25
    _, _, _, cost, error = _means(sums)
    within = np.abs(cost - 0.5) < 1.96 * error
    assert 0.93 < within.mean() < 0.97
    np.testing.assert_allclose(np.median(error * np.sqrt(number)), 0.25, rtol=0.05)


def test_a_page_has_pictures_and_the_numbers(router: IR3DEModel) -> None:
    judged(
        router,
        {"expert": "law", "score": 1.0, "cost": 2.0, "day": "2026-03-01"},
        {"expert": "law", "score": 0.0, "cost": 1.0, "day": "2026-03-01"},
        {"expert": "code", "score": 0.5, "day": "2026-03-04"},
    )
    names = router.config.expert_names
    page = over_time(router.outcomes, names, Palette().having(names))
    assert page.count("<svg") == 2
    assert page.count("<circle") == 3
    assert page.count('class="ir-span"') == 2
    assert "<b>0.50</b><small>0.00 to 1.00</small><small>2 judged</small><small>costs 1.5</small>" in page
    assert page.index('scope="row">2026-03-04') < page.index('scope="row">2026-03-01'), "the latest first"


@pytest.mark.parametrize("day", [None, "2026-03-01"])
def test_one_day_is_shown_and_none_is_not(router: IR3DEModel, day: str | None) -> None:
    judged(router, {"expert": "law", "score": 1.0, "cost": 0.0, **({"day": day} if day else {})})
    page = over_time(router.outcomes, router.config.expert_names, Palette())
    assert bool(page) == (day is not None)
    assert "nan" not in page


def test_many_days_and_experts_are_cut_to_the_newest_and_the_most_judged() -> None:
    specs = {f"expert-{place:02d}": {} for place in range(12)}
    router = tiny.router()
    for name in specs:
        router.add_expert({"name": name, "model": "org/x", "domains": ["law"]})
    rows = [
        {"expert": f"expert-{place:02d}", "score": 1.0, "day": f"2026-{month:02d}-{day:02d}"}
        for month in range(1, 5)
        for day in range(1, 29)
        for place in range(12)
        if day <= 28 - place
    ]
    told = Days.of(judged(router, *rows).outcomes, router.config.expert_names)
    assert told is not None
    assert (len(told.days), told.days[-1]) == (90, "2026-04-28")
    assert told.experts == [f"expert-{place:02d}" for place in range(8)]
