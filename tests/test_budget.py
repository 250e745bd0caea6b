"""Budgets: a price that makes them last, periods that turn over, clocks that jump, restarts, and a gateway with one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from ir3de import IR3DEConfig
from ir3de.gateway.errors import GatewayError
from ir3de.gateway.feedback import Keeping
from ir3de.gateway.purse import Purse, expected_costs
from ir3de.gateway.server import Service
from ir3de.scripts.bench.stand_in import Received
from ir3de.traffic.budget import Budget, Spending
from ir3de.traffic.store import Store

from .gateway_world import CODE, HASTY, LAW, World, world

DAY = 86_400.0


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def day_of(spending: Spending, clock: Clock, times: Any, scores: Any, costs: Any, true: Any) -> tuple[float, float]:
    """Mean score and total cost of a day of requests."""
    score = cost = 0.0
    for at, q, c, truth in zip(times, scores, costs, true, strict=True):
        clock.now = at
        spending.saw(q, c)
        best = int((q - spending.price * c).argmax())
        expert = best if c[best] <= spending.left else int(c.argmin())
        spending.reserve(c[expert])
        spending.settle(c[expert], c[expert] * truth)
        score += q[expert]
        cost += c[expert] * truth
    return score / len(times), cost


def requests(number: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """What two dear experts and a cheap one are expected to score and to cost, and how far costs turn out otherwise."""
    draw = np.random.default_rng(seed)
    scores = np.clip(np.array([0.5, 0.7, 0.8]) + 0.15 * draw.standard_normal((number, 3)), 0, 1)
    costs = np.array([0.1, 1.0, 5.0]) * draw.lognormal(0, 0.3, (number, 1))
    return scores, costs, draw.lognormal(0, 0.5, number)


def bursts(number: int, seed: int = 0) -> Any:
    """Moments of a day, half of them in four bursts of ten minutes."""
    draw = np.random.default_rng(seed)
    even = draw.random(number - number // 2) * DAY
    starts = draw.integers(0, int(DAY) - 600, 4)
    return np.sort(np.concatenate([even, draw.choice(starts, number // 2) + 600 * draw.random(number // 2)]))


@pytest.mark.parametrize("seed", range(3))
def test_a_day_with_bursts_is_spent_and_not_overspent(seed: int) -> None:
    clock, number = Clock(), 1500
    scores, costs, true = requests(number, seed)
    everything = float(costs[np.arange(number), scores.argmax(axis=1)].sum())
    spending = Spending(Budget(0.3 * everything, "day"), clock=clock)
    for day in range(2):  # the second knows how the first was spread
        score, cost = day_of(spending, clock, bursts(number, seed) + day * DAY, scores, costs, true)
        assert cost <= 1.02 * spending.most
    assert cost >= 0.9 * spending.most
    cheapest = scores[:, 0].mean()
    assert score > cheapest + 0.6 * (scores.max(axis=1).mean() - cheapest)


def test_the_price_falls_where_less_comes_and_rises_where_more_comes() -> None:
    clock = Clock()
    scores, costs, _ = requests(400)
    spending = Spending(Budget(400.0, "day"), clock=clock)
    for index in range(100):  # one every 864 seconds: 100 a day
        clock.now = index * 864.0
        spending.saw(scores[index], costs[index])
        spending.settle(0.0, 0.5)
    slow = spending.price
    spending = Spending(Budget(400.0, "day"), clock=clock)
    clock.now = DAY
    for index in range(400):
        clock.now = DAY + index * 10.0
        spending.saw(scores[index], costs[index])
        spending.settle(0.0, 0.5)
    assert spending.price > slow


def test_what_is_reserved_counts_and_what_it_did_cost_takes_its_place() -> None:
    spending = Spending(Budget(10.0, "day"), clock=Clock(5.0))
    spending.reserve(4.0)
    assert (spending.spent, spending.left) == (4.0, 6.0)
    spending.settle(4.0, 1.0)
    assert (spending.spent, spending.left) == (1.0, 9.0)
    spending.settle(0.0, 20.0)
    assert spending.left == 0.0


@pytest.mark.parametrize(
    ("per", "begins", "ends"),
    [
        ("hour", "2024-02-29T23:00", "2024-03-01T00:00"),
        ("day", "2024-02-29T00:00", "2024-03-01T00:00"),
        ("month", "2024-02-01T00:00", "2024-03-01T00:00"),
    ],
)
def test_periods_are_those_of_the_calendar(per: str, begins: str, ends: str) -> None:
    now = np.datetime64("2024-02-29T23:30").astype("datetime64[s]").astype(float)
    found = [np.datetime64(int(moment), "s") for moment in Budget(1.0, per).period(float(now))]
    assert found == [np.datetime64(begins, "s"), np.datetime64(ends, "s")]


def test_a_new_period_begins_with_the_whole_budget_and_a_clock_that_goes_back_brings_none() -> None:
    clock = Clock(10 * DAY + 5)
    spending = Spending(Budget(10.0, "day"), clock=clock)
    spending.settle(0.0, 8.0)
    clock.now += DAY
    assert spending.left == 10.0
    spending.settle(0.0, 7.0)
    clock.now -= 2 * DAY
    assert spending.left == 3.0, "what was spent stays spent"
    clock.now += DAY
    assert spending.left == 2.0, "and what was spent on a day is known when it comes again"
    clock.now += 1000 * DAY
    assert spending.left == 10.0
    clock.now -= 1000 * DAY
    assert spending.left == 2.0
    clock.now += 2 * DAY
    assert spending.left == 10.0, "a clock that was wrong by years does not stop the days"


def test_the_first_requests_tell_no_pace() -> None:
    clock = Clock(10 * DAY + 40_000)
    spending = Spending(Budget(20.0, "day"), clock=clock)
    for _ in range(20):  # one in five seconds, of which the budget pays 600
        spending.saw(np.array([0.9, 0.1]), np.array([0.03, 0.001]))
        spending.settle(0.0, 0.03)
        clock.now += 5
        assert spending.price == 0.0


def test_after_a_restart_a_store_knows_what_was_spent() -> None:
    clock, asked = Clock(10 * DAY + 500), []

    def before(since: float) -> float:
        asked.append(since)
        return 6.0

    spending = Spending(Budget(20.0, "day"), before, share=2, clock=clock)
    assert (spending.spent, spending.left) == (3.0, 7.0), "each of two workers has half"
    assert asked == [10 * DAY]


@pytest.mark.parametrize("text", ["20", "20/week", "/day", "0/day", "-3/day", "inf/day", "nan/day", "20/day/day", ""])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="as in 20/day"):
        Budget.read(text)
    with pytest.raises(ValueError, match="as in 20/day"):
        Service("router", budget=text).spending()


def test_a_budget_is_read() -> None:
    assert Budget.read(" 2.5/hour ", "refuse") == Budget(2.5, "hour", "refuse")
    with pytest.raises(ValueError, match="cheapest and refuse"):
        Budget.read("20/day", "stop")


def test_requests_that_few_experts_can_answer_are_priced_with_the_others() -> None:
    spending = Spending(Budget(1.0, "day"), clock=Clock(5.0))
    spending.saw([0.9, 0.5], [2.0, 0.1])
    spending.saw([0.9], [2.0])
    spending.saw([0.9, 0.5, 0.4], [2.0, 0.1, 0.05])
    assert np.isfinite(spending.price)
    assert spending.price > 0


# A gateway.

COSTS: dict[str, dict[str, Any]] = {"code": {"cost": 1.0}, "law": {"cost": 4.0}, "math": {"cost": 0.5}}


def held(end: str = "cheapest", cost: float = 10.0, **specs: Any) -> Any:
    """A gateway with a budget."""
    spending = Spending(Budget(cost, "day", end), clock=Clock(20 * DAY + DAY / 2))
    return world(specs={**COSTS, **specs}, settings=HASTY, spending=spending)


def metric(three: World, name: str) -> float:
    lines = three.send("GET", "/metrics").body.decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def test_at_its_end_the_cheapest_answers_and_who_is_asked_by_name_is_refused() -> None:
    with held() as three:
        purse = three.gateway.purse
        assert purse is not None
        assert three.ask(messages=LAW).expert == "law", "the price is none yet"
        purse.spending.settle(0.0, 9.0)
        cheap = three.ask(messages=LAW)
        assert (cheap.status, cheap.expert) == (200, "math")
        named = three.ask(model="law", messages=LAW)
        assert (named.status, named.code) == (429, "budget_spent")
        assert int(named.headers["retry-after"]) <= DAY
        assert three.ask(model="math", messages=LAW).status == 200
        assert metric(three, "ir3de_budget_left") == 0
        assert metric(three, "ir3de_budget_spent") > 10


def test_a_price_leaves_nobody_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spending, "price", 1e9)
    with held(cost=1e6) as three:
        assert three.ask(messages=LAW).expert == "math"
        with_minimum = three.ask(messages=LAW, ir3de={"min_score": 0.39})
        assert (with_minimum.status, with_minimum.expert) == (200, "law")


def test_a_single_candidate_answers_at_the_end_too() -> None:
    with held() as three:
        assert three.gateway.purse is not None
        three.gateway.purse.spending.settle(0.0, 100.0)
        assert three.ask(messages=LAW, ir3de={"min_score": 0.39}).expert == "law"


def test_who_stands_in_is_paid_from_what_is_left_or_not_asked() -> None:
    async def broken(request: web.Request, received: Received) -> web.StreamResponse:
        return web.Response(status=500)

    spending = Spending(Budget(1.0, "day", "refuse"), clock=Clock(20 * DAY + DAY / 2))
    specs = {"code": {"cost": 0.5}, "law": {"cost": 4.0}, "math": {"cost": 4.0}}
    with world(specs=specs, settings=HASTY, responds={"code": broken}, spending=spending) as three:
        assert three.ask(messages=CODE).status >= 500
        three.wait(lambda: spending.spent == 0.0, "nothing was answered")


def test_a_measured_cost_that_is_off_in_its_last_digits_fits() -> None:
    purse = Purse(Spending(Budget(1.0, "day", "refuse"), clock=Clock(5.0)))
    measured = {"code": 0.2, "law": 1.0000000000322884, "math": 1.001}
    assert purse.afford(["law", "math"], measured) == ["law"]
    assert purse.afford(["code", "law"], measured) == ["code", "law"], (
        "who stands in for one that is down is affordable"
    )
    with pytest.raises(GatewayError, match="is spent"):
        purse.afford(["math"], measured)


@pytest.mark.parametrize("end", ["cheapest", "refuse"])
def test_the_cheapest_that_is_down_does_not_take_the_service_with_it(end: str) -> None:
    async def broken(request: web.Request, received: Received) -> web.StreamResponse:
        return web.Response(status=500)

    spending = Spending(Budget(10.0, "day", end), clock=Clock(20 * DAY + DAY / 2))
    specs = {"code": {"cost": 1.0}, "law": {"cost": 1.0}, "math": {"cost": 0.2}}
    with world(specs=specs, settings=HASTY, responds={"math": broken}, spending=spending) as three:
        for _ in range(8):  # more than open the breaker
            assert three.ask(messages=LAW, ir3de={"cost_weight": 100}).status == 200
        three.wait(lambda: spending.spent == 8.0, "who stood in is paid, not who was to answer")


def test_an_answer_is_paid_as_it_was_expected_to_cost() -> None:
    with held() as three:
        rows = [{"text": "the court and a judge", "expert": "law", "score": 1.0, "cost": 0.25}]
        three.gateway.serving.router.model.add_outcomes(rows)
        assert three.gateway.purse is not None
        spending = three.gateway.purse.spending
        assert three.ask(model="law", messages=LAW).status == 200
        three.wait(lambda: spending._reserved == 0 and spending.spent > 0, "it is paid")
        assert spending.spent == pytest.approx(0.25), "as measured, and not the 4 of the spec"


def test_what_a_server_refuses_costs_nothing() -> None:
    async def refuse(request: web.Request, received: Received) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=400)

    spending = Spending(Budget(10.0, "day"), clock=Clock(20 * DAY + DAY / 2))
    with world(specs=COSTS, settings=HASTY, responds={"law": refuse}, spending=spending) as three:
        assert three.ask(messages=LAW).status == 400
        three.wait(lambda: spending.spent == 0.0, "nothing was answered")


def test_at_its_end_nobody_answers_where_that_was_chosen() -> None:
    with held("refuse") as three:
        assert three.ask(messages=CODE).status == 200
        assert three.gateway.purse is not None
        three.gateway.purse.spending.settle(0.0, 100.0)
        refused = three.ask(messages=CODE)
        assert (refused.status, refused.code) == (429, "budget_spent")
        assert "cheapest" not in refused.body.decode()


def test_answers_are_paid_by_the_tokens_that_they_took() -> None:
    async def reply(request: web.Request, received: Received) -> web.StreamResponse:
        body = {"id": "1", "choices": [], "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 500_000}}
        return web.json_response(body)

    prices = {"law": {"cost": 4.0, "price": {"input": 1.0, "output": 4.0}}}
    spending = Spending(Budget(10.0, "day"), clock=Clock(20 * DAY + DAY / 2))
    with world(specs={**COSTS, **prices}, settings=HASTY, responds={"law": reply}, spending=spending) as three:
        assert three.ask(messages=LAW).expert == "law"
        three.wait(lambda: spending.spent == 3.0, "one dollar read, two written")


@pytest.mark.parametrize("tokens", [-5, 10**13, 10**19, True])
def test_a_number_of_tokens_that_cannot_be_is_not_believed(tokens: Any, tmp_path: Path) -> None:
    async def reply(request: web.Request, received: Received) -> web.StreamResponse:
        return web.json_response({"id": "1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}})

    prices = {"law": {"cost": 4.0, "price": {"input": 1e6, "output": 1e6}}}
    spending = Spending(Budget(10.0, "day"), clock=Clock(20 * DAY + DAY / 2))
    store = Store(str(tmp_path / "store.sqlite"))
    options: Any = {"specs": {**COSTS, **prices}, "spending": spending, "keeping": Keeping(store)}
    with world(settings=HASTY, responds={"law": reply}, **options) as three:
        assert three.ask(messages=LAW).expert == "law"
        three.wait(lambda: spending.spent == 3.0, "the tokens that were read alone are paid, and nothing is reserved")
        three.wait(lambda: store.counts["answers"] == 1, "the answer is kept")
        assert three.gateway.traffic is not None
        three.gateway.traffic.close()


def test_where_a_request_cannot_be_counted_it_is_paid_and_kept_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("no such label")

    with held() as three:
        assert three.gateway.purse is not None
        monkeypatch.setattr(three.gateway.metrics, "went_out", fails)
        assert three.ask(messages=LAW).expert == "law"
        spending = three.gateway.purse.spending
        three.wait(lambda: spending.spent > 0 and spending._reserved == 0, "it is paid")


def test_a_price_moves_requests_to_cheaper_experts_and_a_request_may_ask_for_more() -> None:
    with held(cost=1e6) as three:
        purse = three.gateway.purse
        assert purse is not None
        panel = three.gateway.serving.router.model.panel
        assert purse.priced({}, panel)["cost_weight"] == purse.spending.price
        assert purse.priced({"cost_weight": 7.0}, panel)["cost_weight"] == 7.0
        assert purse.priced({"cost_weight": "x"}, panel) == {"cost_weight": "x"}
        assert three.ask(messages=LAW, ir3de={"cost_weight": "x"}).status == 400
        assert three.ask(messages=LAW, ir3de={"cost_weight": 10}).expert == "math"
        purse.spending.budget = purse.spending.budget._replace(cost=1e-3)
        purse.spending.most = 5.0
        for _ in range(30):
            last = three.ask(messages=LAW)
        assert last.expert == "math"


def test_a_request_that_nobody_answered_costs_nothing() -> None:
    async def broken(request: web.Request, received: Received) -> web.StreamResponse:
        return web.Response(status=500)

    with world(specs=COSTS, settings=HASTY, responds=dict.fromkeys(COSTS, broken)) as three:
        three.gateway.purse = three.gateway.chooser._purse = Purse(Spending(Budget(10.0, "day")))
        assert three.ask(messages=LAW).status >= 500
        three.wait(lambda: three.gateway.purse.spending.spent == 0.0, "nothing is reserved any more")


def test_expected_costs_are_those_of_the_record_or_of_the_specs() -> None:
    with world(specs=COSTS) as three:
        panel = three.gateway.serving.router.model.panel
        record = {"ranking": [{"expert": "law", "score": 1.0, "cost": 9.0}, {"expert": "code", "score": 0.0}]}
        assert expected_costs(record, panel) == {"law": 9.0, "code": 1.0, "math": 0.5}


def test_an_expert_that_only_routes_needs_no_cost_for_a_budget() -> None:
    specs = {"code": {"cost": 5.0, "domains": ["code", "law", "math"]}, "math": {"cost": 0.5}}
    spending = Spending(Budget(10.0, "day"), clock=Clock(20 * DAY + DAY / 2))
    with world(specs=specs, names=("code", "math"), spending=spending) as three:
        assert three.ask(messages=LAW).expert == "code"
        spending.settle(0.0, 20.0)
        assert three.ask(messages=LAW).expert == "math", "the cheapest of those that answer"
        assert three.ask(model="math", messages=LAW).status == 200
        assert three.ask(model="code", messages=LAW).code == "budget_spent"


def test_a_router_whose_experts_have_no_cost_cannot_have_a_budget(tmp_path: Path) -> None:
    from ir3de.gateway.server import make_application

    from . import tiny

    tiny.router({name: {} for name in tiny.DOMAINS}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="A budget needs a `cost`"):
        make_application(Service(str(tmp_path), budget="20/day", log=False))


def test_the_routers_own_budget_holds_unless_another_is_asked_for(tmp_path: Path) -> None:
    from ir3de.gateway.server import make_application

    from . import tiny

    own = {"cost": 20, "per": "day"}
    asked = {
        None: Budget(20, "day"),
        "3/hour": Budget(3.0, "hour"),
    }
    for text, budget in asked.items():
        spending = Service("router", budget=text).spending(None, own)
        assert spending is not None
        assert spending.budget == budget
    assert Service("router", budget="none").spending(None, own) is None
    assert Service("router").spending(None, None) is None
    refusing = Service("router", budget_end="refuse").spending(None, own)
    assert refusing is not None
    assert refusing.budget == Budget(20.0, "day", "refuse")
    kept = Service("router", budget="1e-3/day").spending(None, {**own, "end": "refuse"})
    assert kept is not None
    assert kept.budget == Budget(1e-3, "day"), "an end belongs to its budget"

    model = tiny.router({name: {} for name in tiny.DOMAINS})
    assert "budget" not in model.config.to_dict()
    model.config.budget = own
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="A budget needs a `cost`"):
        make_application(Service(str(tmp_path), log=False))
    assert make_application(Service(str(tmp_path), budget="none", log=False))


@pytest.mark.parametrize(
    "budget",
    [
        20,
        {},
        {"cost": 20},
        {"cost": 0, "per": "day"},
        {"cost": True, "per": "day"},
        {"cost": float("nan"), "per": "day"},
        {"cost": "20", "per": "day"},
        {"cost": 20, "per": "week"},
        {"cost": 20, "per": ["day"]},
        {"cost": 20, "per": "day", "end": "stop"},
        {"cost": 20, "per": "day", "until": "night"},
    ],
)
def test_a_config_with_a_budget_that_is_none_is_refused(budget: Any) -> None:
    with pytest.raises(ValueError, match="`budget` must have a `cost` above 0"):
        IR3DEConfig(budget=budget)
    assert IR3DEConfig(budget={"cost": 2.5, "per": "month", "end": "refuse"}).budget


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--budget", "20/week"), "as in 20/day"),
        (("--budget", "-1/day"), "as in 20/day"),
        (("--every", "-5m"), "such as 90s"),
        (("--replica", "one"), "need a `--store`"),
        (("--store", "{store}", "--implicit", "2"), "`--implicit`"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_makes_no_sense_is_said_before_serving_is(
    option: tuple[str, ...], said: str, workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ir3de.scripts import serve

    options = [each.format(store=tmp_path / "store") for each in option]
    with pytest.raises(ValueError, match=said):
        serve.main([str(tmp_path), "--workers", workers, *options])
    assert "Serving" not in capsys.readouterr().out
