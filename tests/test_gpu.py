"""What runs on a GPU does what the CPU does: routes, contributions, edits, experts, the second opinion."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ir3de import IR3DEModel, IR3DERoutingPipeline
from ir3de.configuration_ir3de import FEATURE_MAPS, VARIANTS

from . import tiny
from .pictures import FIRST, chat, part_of
from .test_second_opinion import second

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TEXTS = [text for name in tiny.DOMAINS for text in tiny.sentences(name, 30, seed=5)]


def pair(specs: Any = None, **config: Any) -> tuple[IR3DERoutingPipeline, IR3DERoutingPipeline]:
    """The same router here and on the GPU."""
    here, there = (IR3DERoutingPipeline(tiny.router(specs, **config), device=device) for device in ("cpu", "cuda"))
    assert there.model.embed_tokens.weight.is_cuda
    return here, there


def same(records: Any, others: Any) -> None:
    assert [record["expert"] for record in records] == [record["expert"] for record in others]
    scores = [[entry["score"] for entry in record["ranking"]] for record in others]
    for record, expected in zip(records, scores, strict=True):
        assert [entry["score"] for entry in record["ranking"]] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_routes_are_those_of_the_cpu(variant: str, feature_map: str) -> None:
    here, there = pair(feature_map=feature_map, num_features=64, lexical_weight=0.1)
    same(there(TEXTS, generate=False, variant=variant), here(TEXTS, generate=False, variant=variant))
    same([there(TEXTS[0], generate=False, variant=variant)], [here(TEXTS[0], generate=False, variant=variant)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_contributions_add_up_there_too(variant: str) -> None:
    here, there = pair()
    for record, other in zip(
        *(p(TEXTS[:9], generate=False, variant=variant, explain=True) for p in (there, here)), strict=True
    ):
        added = sum(token["contribution"] for token in record["tokens"])
        assert added == pytest.approx(record["support"], abs=1e-5)
        assert record["support"] == pytest.approx(other["support"], abs=1e-4)
        assert [token["counted"] for token in record["tokens"]] == [token["counted"] for token in other["tokens"]]


def test_a_router_is_edited_and_saved_there(tmp_path: Path) -> None:
    here, there = pair(variant="prompt")
    texts = tiny.sentences("law", 20, seed=1)
    for each in (here, there):
        each.model.remove_expert("math")
        each.model.add_expert({"name": "more-law"}, texts=texts)
    assert there.model.prompt_router.weight.is_cuda
    assert torch.equal(there.model.prompt_router.weight.cpu(), here.model.prompt_router.weight)
    same(there(TEXTS, generate=False), here(TEXTS, generate=False))
    there.save_pretrained(tmp_path)
    loaded = IR3DEModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.prompt_router.weight, here.model.prompt_router.weight)


def test_experts_answer_where_the_router_is(expert_specs: dict[str, dict[str, Any]]) -> None:
    here, there = pair(expert_specs)
    greedy = {"do_sample": False, "max_new_tokens": 6}
    records = there(TEXTS[::10], **greedy)
    assert [record["generated_text"] for record in records] == [
        record["generated_text"] for record in here(TEXTS[::10], **greedy)
    ]
    assert {model["device"] for model in there.loaded_experts} == {"cuda:0"}


def test_a_second_opinion_is_asked_beside_a_router_there() -> None:
    here, there = pair(variant="prompt", calibration={"temperature": 3.0, "spread": 0.0})
    for each in (here, there):
        each.second_opinion = second()
    records = there(TEXTS, generate=False)
    assert any("second_opinion" in record for record in records)
    same(records, here(TEXTS, generate=False))


def test_an_expert_that_sees_answers_there_as_here(seeing: str) -> None:
    prompt = chat("debug my python loop", part_of(FIRST))
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    here, there = (made(prompt, **options)["generated_text"] for made in pair({"code": {"model": seeing}}))
    assert there == here
