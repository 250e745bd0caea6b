"""From probabilities of domains to a choice: today's records where nothing is new, and what outcomes change."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ir3de.outcome_rows_ir3de import Outcome
from ir3de.outcomes_ir3de import Ledger, OutcomesCollector, shared, whole
from ir3de.outlook_ir3de import Outlook
from ir3de.policy_ir3de import Measured, Panel, Policy, to_six_digits

DOMAINS = ["code", "law", "math"]


def panel(specs: list[dict[str, Any]], outcomes: list[tuple[str, str, float, float | None, float | None]]) -> Panel:
    """A panel of experts with outcomes `(domain, expert, score, cost, seconds)`."""
    rows = [Outcome(f"{i}", e, s, cost, seconds) for i, (_, e, s, cost, seconds) in enumerate(outcomes)]
    collector = OutcomesCollector(DOMAINS)
    if rows:
        collector.add(rows, whole([DOMAINS.index(outcome[0]) for outcome in outcomes], 3))
    return Panel.of(specs, DOMAINS, collector.ledger if rows else Ledger())  # type: ignore[arg-type]


def former(p: torch.Tensor, names: list[str], costs: list[float], policy: Policy) -> list[dict[str, Any]]:
    """Records as they were before there were outcomes, by the book."""
    if policy.experts is not None:
        columns = torch.tensor([index for index, name in enumerate(names) if name in policy.experts])
        p, names, costs = p[:, columns], [names[i] for i in columns], [costs[i] for i in columns]
        p = p / p.sum(dim=1, keepdim=True)
    worth = p - policy.cost_weight * torch.tensor(costs, dtype=p.dtype) if policy.cost_weight else p
    records = []
    for row, value in zip(p.tolist(), worth.tolist(), strict=True):
        ranks = sorted(range(len(names)), key=lambda i: -value[i])[: policy.top_n]
        ranking = [{"expert": names[i], "score": row[i]} for i in ranks]
        record: dict[str, Any] = {"expert": ranking[0]["expert"], "score": ranking[0]["score"], "ranking": ranking}
        if record["score"] < policy.min_score:
            record |= {"expert": policy.fallback_expert, "fallback": True}
        records.append(record)
    return records


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 7),
    st.floats(0, 3),
    st.floats(0, 1),
    st.none() | st.integers(1, 8),
    st.booleans(),
)
def test_without_outcomes_and_with_one_expert_a_domain_all_is_as_it_was(
    seed: int, number: int, cost_weight: float, min_score: float, top_n: int | None, subset: bool
) -> None:
    draw = np.random.default_rng(seed)
    names = [f"expert-{i}" for i in range(number)]
    specs: Any = [{"name": name, "cost": float(draw.random())} for name in names]
    p = torch.from_numpy(draw.dirichlet([0.5] * number, 5))
    allowed = names[: number - 1] if subset else None
    policy = Policy(allowed, cost_weight, min_score=min_score, fallback_expert=names[0], top_n=top_n)
    plain = Panel.of(specs, names, Ledger())
    assert plain.scores is None
    found = policy.decide(p, plain, [1] * 5)
    assert found == former(p, names, [spec["cost"] for spec in specs], policy)
    explained = policy.decide(p, plain, [1] * 5, explain=True)
    assert [{key: record[key] for key in record if key != "domains"} for record in explained] == found
    assert all("domains" in record and "pairs" not in record for record in explained)


def test_experts_that_serve_several_domains_are_as_likely_as_these_together() -> None:
    specs = [{"name": "all", "domains": DOMAINS}, {"name": "law"}, {"name": "none", "domains": []}]
    p = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    (record,) = Policy().decide(p, panel(specs, []), [1])
    assert [(entry["expert"], round(entry["score"], 6)) for entry in record["ranking"]] == [
        ("all", 1.0),
        ("law", 0.5),
        ("none", 0.0),
    ]
    assert record["domains"] == [
        {"domain": "law", "score": 0.5},
        {"domain": "math", "score": 0.3},
        {"domain": "code", "score": 0.2},
    ]


def test_equal_experts_the_cheaper_is_taken_then_by_name() -> None:
    p = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    specs: Any = [{"name": name, "domains": ["math"]} for name in ("a", "b", "c")]
    assert Policy().decide(p, panel(specs, []), [1])[0]["expert"] == "a"
    specs[0]["cost"], specs[1]["cost"], specs[2]["cost"] = 2, 1, 1
    assert [e["expert"] for e in Policy().decide(p, panel(specs, []), [1])[0]["ranking"]] == ["b", "c", "a"]


def test_a_domain_that_nobody_serves_keeps_its_probability() -> None:
    specs: Any = [{"name": "code"}, {"name": "math"}]
    p = torch.tensor([[0.1, 0.7, 0.2]], dtype=torch.float64)
    for experts in (None, ["code", "math"]):
        (record,) = Policy(experts, min_score=0.5).decide(p, panel(specs, []), [1])
        assert record["expert"] is None
        assert record["score"] == pytest.approx(0.2)
    (record,) = Policy(["code"]).decide(p, panel(specs, []), [1])
    assert record["score"] == pytest.approx(0.1 / 0.8)


MANY = [
    *[("law", "big", s, 10.0, 2.0) for s in (1, 1, 1, 0.8)] * 50,
    *[("math", "big", s, 10.0, 2.0) for s in (1, 0.6)] * 100,
    *[("law", "small", s, 1.0, 0.5) for s in (0, 0.4)] * 100,
    *[("math", "small", s, 1.0, 0.5) for s in (1, 0.6)] * 100,
]
BOTH: Any = [{"name": "big", "domains": []}, {"name": "small", "domains": []}]


def test_the_best_expert_of_the_recognised_domain_answers_for_what_it_costs() -> None:
    p = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    made = panel(BOTH, MANY)
    law, math = Policy().decide(p, made, [1, 1])
    assert law["expert"] == "big"
    assert law["score"] == pytest.approx(0.95, abs=0.02)
    assert law["ranking"][0]["cost"] == pytest.approx(10, rel=0.01)
    assert law["ranking"][0]["seconds"] == pytest.approx(2, rel=0.01)
    law, math = Policy(cost_weight=0.01).decide(p, made, [1, 1])
    assert (law["expert"], math["expert"]) == ("big", "small")
    law, math = Policy(latency_weight=0.1).decide(p, made, [1, 1])
    assert (law["expert"], math["expert"]) == ("big", "small")
    assert Policy(cost_weight=1).decide(p, made, [1, 1])[0]["expert"] == "small"


def test_what_was_measured_as_one_reads_one() -> None:
    draw = np.random.default_rng(0)
    weights = shared(draw.dirichlet([0.3] * 3, 400))
    costs = {"always one": 1.0, "a tenth": 0.1, "small": 3e-6, "free": 0.0}  # some, in units of a sum, are others
    rows = [Outcome(f"{i}", name, 0.5, cost, cost) for i, (name, cost) in enumerate(list(costs.items()) * 100)]
    collector = OutcomesCollector(DOMAINS)
    collector.add(rows, weights)
    made = Panel.of([{"name": name, "domains": []} for name in costs], DOMAINS, collector.ledger)
    for record in Policy().decide(torch.from_numpy(draw.dirichlet([0.3] * 3, 50)), made, [1] * 50):
        found = {entry["expert"]: entry for entry in record["ranking"]}
        assert found["always one"]["cost"] == found["always one"]["seconds"] == 1
        assert found["a tenth"]["cost"] == 0.1
        assert found["small"]["cost"] == pytest.approx(3e-6, rel=0.02)
        assert found["free"]["cost"] == 0


@pytest.mark.parametrize(("domains", "experts"), [(3, 2), (17, 9), (60, 12)])
def test_a_prompt_alone_and_among_others_has_the_same_costs_and_seconds(domains: int, experts: int) -> None:
    draw = np.random.default_rng(0)
    tables = [draw.random((domains, experts)) for _ in range(2)]
    tables[0][:, 0] = np.nan
    told = Measured.of(*tables)
    p = draw.dirichlet([0.3] * domains, 200)
    found = told.expected(p)
    assert np.isnan(found[:, 0, 0]).all()
    np.testing.assert_allclose(found, np.stack([p @ table for table in tables], axis=1), rtol=1e-12)
    for row, of_many in zip(p, found, strict=True):
        np.testing.assert_array_equal(told.expected(row.copy()[None])[0], of_many)
    some = told.among(np.array([1, 0]))
    np.testing.assert_allclose(some.expected(p), found[..., [1, 0]], rtol=1e-12)


@pytest.mark.parametrize("value", [0.999999999998, 0.1 + 1.6e-11, 123456.7, 2.5e-7, 1e300, 0.0])
def test_numbers_to_six_digits_are_those_that_are_printed(value: float) -> None:
    assert to_six_digits(np.array([value, np.nan]))[0] == float(f"{value:.6g}")
    assert np.isnan(to_six_digits(np.array([value, np.nan]))[1])


def test_expected_scores_are_means_over_the_domains() -> None:
    p = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64)
    made = panel(BOTH, MANY)
    (record,) = Policy().decide(p, made, [1], explain=True)
    assert made.scores is not None
    column = list(made.experts).index(str(record["expert"]))
    assert record["score"] == pytest.approx(float((p[0] * made.scores[:, column]).sum()))
    assert sum(pair["share"] for pair in record["pairs"]) == pytest.approx(record["score"])
    assert {pair["domain"]: pair["outcomes"] for pair in record["pairs"]} == {"law": 200, "math": 200, "code": 0}
    assert [pair["share"] for pair in record["pairs"]] == sorted((x["share"] for x in record["pairs"]), reverse=True)


def test_experts_that_may_not_be_chosen_take_no_domain_away_where_there_are_outcomes() -> None:
    p = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    (record,) = Policy(["small"]).decide(p, panel(BOTH, MANY), [1])
    assert record["expert"] == "small"
    assert record["score"] == pytest.approx(0.2, abs=0.03)
    assert [entry["expert"] for entry in record["ranking"]] == ["small"]


def test_below_the_minimum_the_fallback_answers() -> None:
    p = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    policy = Policy(min_score=0.9, fallback_expert="small")
    law, math = policy.decide(p, panel(BOTH, MANY), [1, 1])
    assert law["expert"] == "big"
    assert "fallback" not in law
    assert (math["expert"], math["fallback"]) == ("small", True)


def test_a_conversation_leaves_its_expert_only_for_one_that_leads() -> None:
    p = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.3, 0.7]], dtype=torch.float64)
    made = panel(BOTH, [*MANY, *[("math", "small", 1.0, 1.0, 0.5)] * 20])
    assert Policy().decide(p[:1], made, [1])[0]["expert"] == "small"
    assert Policy().decide(p[1:], made, [1])[0]["expert"] == "big"
    assert Policy(stickiness=0.9).decide(p, made, [2])[0]["expert"] == "small"
    assert Policy(stickiness=0.01).decide(p, made, [2])[0]["expert"] == "big"


def test_weights_need_figures_of_all_that_may_be_chosen() -> None:
    some = [(*row[:3], None, None) if row[1] == "small" else row for row in MANY]
    made = panel(BOTH, some)
    p = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    for field in ("cost_weight", "latency_weight"):
        with pytest.raises(ValueError, match=rf"`{field}` needs .*\['small'\]"):
            Policy(**{field: 1.0}).decide(p, made, [1])
        assert Policy(["big"], **{field: 1.0}).decide(p, made, [1])[0]["expert"] == "big"
        with pytest.raises(ValueError, match="at least 0"):
            Policy(**{field: float("nan")}).decide(p, made, [1])
    ranking = Policy().decide(p, made, [1])[0]["ranking"]
    assert [sorted(entry) for entry in ranking] == [["cost", "expert", "score", "seconds"], ["expert", "score"]]
    priced = panel([BOTH[0], {**BOTH[1], "cost": 3.0}], some)
    assert Policy(cost_weight=0.2).decide(p, priced, [1])[0]["expert"] == "small"


SILENT = [  # two that answer everything, and of the three domains' own experts one that does
    *(
        {"name": name, "model": "org/llm", "domains": DOMAINS, "cost": cost}
        for name, cost in (("big", 5.0), ("low", 1.0))
    ),
    {"name": "code"},
    {"name": "law"},
    {"name": "math", "model": "org/llm", "cost": 2.0},
]


@pytest.mark.parametrize("judged", [False, True])
def test_experts_that_only_route_do_not_keep_costs_and_seconds_from_being_weighed(judged: bool) -> None:
    rows = [("law", name, score, None, seconds) for name, score, seconds in (("big", 1.0, 4.0), ("low", 0.9, 1.0))]
    made = panel(SILENT, [*rows, ("math", "math", 1.0, None, 1.0)] * 20 if judged else [])
    p = torch.tensor([[0.1, 0.8, 0.1]], dtype=torch.float64)
    weights = ("cost_weight", "latency_weight") if judged else ("cost_weight",)
    for weighed in ({name: 0.2} for name in weights):
        for more in ({}, {"top_n": 4}):
            record = Policy(**weighed, **more).decide(p, made, [1])[0]
            ranks = [entry["expert"] for entry in record["ranking"]]
            assert record["expert"] == ranks[0] == "low"
            assert {"code", "law"}.isdisjoint(ranks[:3]), "who cannot answer comes after who can"
        turns = Policy(**weighed, stickiness=0.1).decide(p.repeat(2, 1), made, [2])
        assert turns[0]["expert"] == "low"
        with pytest.raises(ValueError, match=r"of every expert.*\['code', 'law'\]"):
            Policy(["law", "code"], **weighed).decide(p, made, [1])
    own = panel(SILENT[2:], [])
    assert Policy(cost_weight=0.1).decide(p, own, [1])[0]["expert"] == "math"
    assert Policy().decide(p, own, [1])[0]["expert"] == "law", "without weights all is as it was"


def test_an_outlook_has_who_answers_or_was_judged() -> None:
    outcomes = [("law", "big", 1.0, 5.0, None), ("law", "low", 0.8, 1.0, None), ("law", "code", 0.5, 0.1, None)]
    rows = [Outcome(f"{i}", e, s, cost) for i, (_, e, s, cost, _) in enumerate(outcomes)]
    collector = OutcomesCollector(DOMAINS)
    collector.add(rows, whole([1] * 3, 3))
    outlook = Outlook.of(Panel.of(SILENT, DOMAINS, collector.ledger), collector.ledger)  # type: ignore[arg-type]
    assert outlook is not None
    assert outlook.experts == ["code", "low", "math", "big"]
    assert outlook.score.shape == outlook.cost.shape == (3, 4)
    assert outlook.unpriced == []
    assert outlook.turns()


def test_the_embedded_router_routes_as_it_did(quickstart: Any) -> None:
    model = quickstart.model
    texts = ["Prove that 3x + 5 = 20 has one root.", "Sort a list in Python.", "Why did Rome fall?", "hi"]
    assert model.panel.scores is None
    assert model.config.domain_names == model.config.expert_names
    p = model.recognise(texts)
    names, costs = model.config.expert_names, [spec.get("cost", float("nan")) for spec in model.config.specs]
    for experts in (None, names[:3]):
        policy = Policy(experts, min_score=model.config.min_score)
        asked = {} if experts is None else {"experts": experts}
        records = [
            {key: value for key, value in record.items() if key in ("expert", "score", "ranking", "fallback")}
            for record in quickstart(texts, generate=False, **asked)
        ]
        assert records == former(p, names, costs, policy)
