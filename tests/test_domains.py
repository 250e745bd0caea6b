"""Domains, experts and outcomes of a router, each edited alone; its files; and routes that follow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ir3de import IR3DEConfig, IR3DEModel, IR3DERoutingPipeline
from ir3de.outcomes_ir3de import Ledger

from . import tiny

MATH, LAW = (tiny.sentences(domain, 1, seed=50)[0] for domain in ("math", "law"))
GENERALIST: Any = {"name": "big", "domains": [], "cost": 5.0}


def judged(number: int = 30, seed: int = 0) -> list[dict[str, Any]]:
    """Outcomes without domains: the generalist is good at law, and the others each at their own."""
    draw = np.random.default_rng(seed)
    rows = []
    for domain in tiny.DOMAINS:
        for text in tiny.sentences(domain, number, seed=100 + seed):
            good = {"big": 0.9 if domain == "law" else 0.3}
            good |= {expert: 0.8 if expert == domain and domain != "law" else 0.2 for expert in tiny.DOMAINS}
            scores = {expert: float(draw.random() < chance) for expert, chance in good.items()}
            rows.append({"text": text, "scores": scores, "costs": dict.fromkeys(scores, 1.0) | {"big": 9.0}})
    return rows


@pytest.fixture
def several() -> IR3DEModel:
    """A router of three domains and their experts, and a generalist."""
    made = tiny.router()
    made.add_expert(GENERALIST)
    return made


def pipe(model: IR3DEModel) -> IR3DERoutingPipeline:
    """A pipeline that only routes."""
    return IR3DERoutingPipeline(model, device="cpu", generate=False)


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds but for its card, whose history tells of edits, and what transformers notes of a load."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("README.md", "tokenizer_config.json")
    }


def saved(model: IR3DEModel, folder: Path) -> dict[str, bytes]:
    """The files of a router."""
    model.save_pretrained(folder)
    return files(folder)


def test_a_router_of_the_present_format_is_saved_and_routes_as_before(router: IR3DEModel, tmp_path: Path) -> None:
    router.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert not {"domains", "judged"} & config.keys()
    assert not (tmp_path / "outcomes").exists()
    assert set(pipe(router)(LAW)) == {"expert", "score", "ranking"}
    assert set(pipe(router)(LAW, explain=True)) == {"expert", "score", "ranking", "domains", "tokens", "support"}


def test_an_expert_comes_and_goes_without_its_domain(router: IR3DEModel, tmp_path: Path) -> None:
    before, W = saved(router, tmp_path / "before"), router.token_router.weight.clone()
    router.add_expert({"name": "qwen-math", "domains": ["math"], "cost": 1})
    assert router.config.domain_names == ["code", "law", "math"]
    assert router.config.id2label == {0: "code", 1: "law", 2: "math"}
    assert torch.equal(router.token_router.weight, W)
    record = pipe(router)(MATH)
    assert {"math", "qwen-math"} == {entry["expert"] for entry in record["ranking"][:2]}
    assert record["expert"] == "qwen-math"  # as good for all that is known, and its cost is known
    assert record["domains"][0]["domain"] == "math"
    router.remove_expert("qwen-math")
    assert saved(router, tmp_path / "after") == before


def test_a_domain_comes_and_goes_without_an_expert(router: IR3DEModel, tmp_path: Path) -> None:
    before = saved(router, tmp_path / "before")
    router.add_domain("other", texts=tiny.sentences("law", 5, seed=9))
    assert router.config.expert_names == ["code", "law", "math"]
    assert router.config.domain_names == ["code", "law", "math", "other"]
    assert router.token_router.weight.shape[0] == 4
    assert {entry["expert"] for entry in pipe(router)(LAW)["ranking"]} == {"code", "law", "math"}
    again = IR3DEModel.from_pretrained(saved_in(router, tmp_path / "other"))
    assert pipe(again)(LAW) == pipe(router)(LAW)
    router.remove_domain("other")
    assert saved(router, tmp_path / "after") == before


def saved_in(model: IR3DEModel, folder: Path) -> Path:
    """The folder that a router was saved in."""
    model.save_pretrained(folder)
    return folder


def test_the_words_of_domains_count_whoever_serves_them(tmp_path: Path) -> None:
    model = tiny.router(variant="prompt", feature_map="unit", lexical_weight=0.5)
    model.add_expert(GENERALIST)
    model.add_domain("other", texts=tiny.sentences("law", 5, seed=9))
    assert model.lexicon is not None
    assert model.lexicon.weight.shape[1] == 4
    again = IR3DEModel.from_pretrained(saved_in(model, tmp_path))
    assert pipe(again)([LAW, MATH]) == pipe(model)([LAW, MATH])


def test_a_domain_leaves_the_lists_of_who_served_it(router: IR3DEModel) -> None:
    router.add_expert({"name": "both", "domains": ["law", "math"]})
    router.remove_domain("law")
    assert [spec.get("domains") for spec in router.config.specs] == [["math"], None, None, None]
    router.remove_domain("code")
    with pytest.raises(ValueError, match="last domain"):
        router.remove_domain("math")
    with pytest.raises(ValueError, match="no domain 'law'"):
        router.remove_domain("law")


def test_the_domain_of_an_expert_stays_where_it_concerns_others(several: IR3DEModel) -> None:
    several.add_expert({"name": "clerk", "domains": ["law"]})
    several.remove_expert("law")
    assert several.config.domain_names == ["code", "law", "math"]
    several.add_outcomes([{"text": "x", "expert": "big", "score": 1, "domain": "math"}])
    several.remove_expert("math")
    assert several.config.domain_names == ["code", "law", "math"]
    several.remove_expert("code")
    assert several.config.domain_names == ["law", "math"]


def test_who_takes_an_experts_place_serves_what_it_served(several: IR3DEModel) -> None:
    several.add_expert({"name": "clerk", "domains": ["law"]})
    several.replace_expert("clerk", "jurist")
    assert next(spec for spec in several.config.specs if spec["name"] == "jurist")["domains"] == ["law"]
    several.replace_expert("law", "lawyer")
    assert several.config.domain_names == ["code", "law", "math"]
    assert next(spec for spec in several.config.specs if spec["name"] == "lawyer")["domains"] == ["law"]


def test_outcomes_decide_who_answers_and_leave_as_if_never_there(several: IR3DEModel, tmp_path: Path) -> None:
    before, routed = saved(several, tmp_path / "before"), pipe(several)([LAW, MATH])
    assert [record["expert"] for record in routed] == ["law", "math"]
    added = several.add_outcomes(judged())
    assert [record["expert"] for record in pipe(several)([LAW, MATH])] == ["big", "math"]
    record = pipe(several)(LAW, explain=True)
    assert record["pairs"][0]["domain"] == "law"
    assert record["ranking"][0]["cost"] == pytest.approx(9, rel=0.05)
    assert sum(pair["share"] for pair in record["pairs"]) == pytest.approx(record["score"])
    assert pipe(several)(LAW, cost_weight=0.2)["expert"] != "big"
    with pytest.raises(ValueError, match="count twice"):
        several.add_outcomes(judged())
    again = IR3DEModel.from_pretrained(saved_in(several, tmp_path / "with"))
    assert sorted(path.name for path in (tmp_path / "with" / "outcomes").iterdir()) == [
        f"{name}.safetensors" for name in ("big", "code", "law", "math")
    ]
    assert pipe(again)([LAW, MATH]) == pipe(several)([LAW, MATH])
    assert again.outcomes == several.outcomes
    again.remove_outcomes(judged())
    several.remove_outcomes(added)
    assert saved(again, tmp_path / "with") == saved(several, tmp_path / "after") == before
    assert pipe(several)([LAW, MATH]) == routed


def test_one_file_or_seven_make_the_same_ledger(several: IR3DEModel, tmp_path: Path) -> None:
    rows, other = judged(), several.copy()
    several.add_outcomes(rows)
    for start in (3, 0, 6, 1, 5, 2, 4):
        path = tmp_path / f"{start}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[start::7]), encoding="utf-8")
        other.add_outcomes(path)
    assert other.outcomes == several.outcomes
    assert pipe(other)([LAW, MATH]) == pipe(several)([LAW, MATH])


def test_prompts_are_recognised_alike_one_by_one_and_together(several: IR3DEModel) -> None:
    """What outcomes count for must not depend on those that came beside them."""
    texts = [text for domain in tiny.DOMAINS for text in tiny.sentences(domain, 40, seed=3)]
    together = several.recognise(texts)
    assert torch.equal(together, torch.cat([several.recognise([text]) for text in texts]))
    assert torch.equal(together[17:50], several.recognise(texts[17:50]))


def test_routers_are_merged_with_their_outcomes_in_any_order(tmp_path: Path) -> None:
    one, other, third = tiny.router(), tiny.router(), tiny.router()
    one.add_outcomes([{"text": "x", "expert": "law", "score": 0.5, "domain": "law"}])
    other.add_expert(GENERALIST)
    other.add_outcomes([{"text": "x", "expert": "big", "score": 1, "domain": "law"}])
    third.add_outcomes([{"text": "y", "expert": "law", "score": 0.25, "domain": "math"}])
    first, last = one.copy(), third.copy()
    first.merge(other, third)
    last.merge(saved_in(other, tmp_path / "other"), one)
    assert first.outcomes == last.outcomes
    assert first.config.expert_names == last.config.expert_names == ["big", "code", "law", "math"]
    assert saved(first, tmp_path / "first") == saved(last, tmp_path / "last")
    with pytest.raises(ValueError, match="Nothing to merge"):
        first.merge(third)


def test_outcomes_rest_while_their_domain_is_gone(several: IR3DEModel) -> None:
    several.add_outcomes([{"text": "x", "expert": "big", "score": 1, "domain": "law"}])
    routed, statistics = pipe(several)([LAW, MATH]), several.statistics["law"]
    several.remove_domain("law")
    assert "outcomes" not in str(pipe(several)(LAW))
    with pytest.raises(ValueError, match=r"no domain 'law'.* are .*'code', 'math'"):
        several.add_outcomes([{"text": "z", "expert": "big", "score": 1, "domain": "law"}])
    several.add_domain("law", statistics=statistics)
    assert pipe(several)([LAW, MATH]) == routed


def test_outcomes_leave_with_their_expert(several: IR3DEModel) -> None:
    several.add_outcomes([{"text": "x", "expert": "big", "score": 1, "domain": "law"}])
    several.remove_expert("big")
    assert several.outcomes == Ledger()
    assert several.config.judged is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x", "expert": "bog", "score": 1}], "no expert 'bog'.*Did you mean 'big'"),
        ([{"text": "x", "expert": "big", "score": 1, "domain": "low"}], "no domain 'low'.*Did you mean 'law'"),
        ([{"text": "x", "expert": "big", "score": 1}, {"text": "y", "expert": "big", "score": 3}], "row 1: the score"),
        ([{"text": "x"}], "row 0: a row needs"),
        ([], "no outcomes"),
        (Ledger({"none": {"0" * 32: None}}), "no experts"),  # type: ignore[dict-item]
    ],
)
def test_bad_outcomes_leave_the_router_as_it_was(several: IR3DEModel, rows: Any, message: str) -> None:
    before = pipe(several)(LAW)
    with pytest.raises(ValueError, match=message):
        several.add_outcomes(rows)
    assert several.outcomes == Ledger()
    assert pipe(several)(LAW) == before


def test_experts_name_domains_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"'lw', which is no domain of this router.*Did you mean 'law'"):
        tiny.router({"math": {"domains": ["math", "lw"]}})
    with pytest.raises(ValueError, match="must be a list of names"):
        tiny.router({"math": {"domains": "law"}})
    with pytest.raises(
        ValueError, match=r"needs `texts` of its domain, or `statistics` of it, or in its spec `domains`"
    ):
        tiny.router().add_expert({"name": "big"})
    with pytest.raises(ValueError, match="`judged` names"):
        IR3DEConfig(experts=[{"name": "law"}], judged=["math"])
    with pytest.raises(ValueError, match="Two domains are named"):
        IR3DEConfig(experts=[{"name": "law"}], domains=["law", "LAW"])
    with pytest.raises(ValueError, match=r"`price` of expert 'a' must have `input` and `output`"):
        IR3DEConfig(experts=[{"name": "a", "price": {"input": 1}}])


def test_outcomes_that_are_damaged_are_refused_when_they_are_read(several: IR3DEModel, tmp_path: Path) -> None:
    several.add_outcomes(judged())
    several.save_pretrained(tmp_path)
    (tmp_path / "outcomes" / "big.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"big\.safetensors"):
        pipe(IR3DEModel.from_pretrained(tmp_path))(LAW)
    (tmp_path / "outcomes" / "big.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"big\.safetensors"):
        pipe(IR3DEModel.from_pretrained(tmp_path))(LAW)
