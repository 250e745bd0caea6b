"""A router that is edited while others use it: each record belongs wholly to one state, and no edit is lost."""

import os
import pickle
import threading
from typing import Any

import pytest
import torch

from ir3de import DomainStatistics, IR3DEModel, IR3DERoutingPipeline

from . import tiny
from .live_app import make_site

THREADS, EDITS = 16, int(os.environ.get("IR3DE_EDITS", "60"))  # the full proof: `make prove`
PROMPTS = ["the court and a judge", "debug my python loop", "the sum of two numbers"]
ART = tiny.statistics(tiny.sentences("law", 9, seed=9))


def pipe(**config: Any) -> IR3DERoutingPipeline:
    return IR3DERoutingPipeline(tiny.router(**config), device="cpu")


def states(router: IR3DERoutingPipeline) -> list[Any]:
    """The records of both states, one after the other; the router is left in the first."""
    before = router(PROMPTS, generate=False)
    swap(router.model, True)
    after = router(PROMPTS, generate=False)
    swap(router.model, False)
    return [before, after]


def swap(model: IR3DEModel, there: bool) -> None:
    """As many experts before as after, so that nothing but the state itself tells them apart."""
    if there:
        model.replace_expert("law", "art", statistics=ART)
    else:
        model.replace_expert("art", "law", statistics=tiny.statistics(tiny.sentences("law", 20)))


@pytest.mark.parametrize("variant", ["prompt", "top-k"])
def test_each_record_belongs_to_one_state(variant: str) -> None:
    router = pipe(variant=variant, lexical_weight=1.0)
    known = states(router)
    assert known[0] != known[1]
    over, wrong = threading.Event(), []

    def use() -> None:
        routed = 0
        while not over.is_set() or routed < 5:
            try:
                records = router(PROMPTS, generate=False)
                if records not in known:
                    wrong.append(records)
            except Exception as error:
                wrong.append(error)
            routed += 1

    threads = [threading.Thread(target=use) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for number in range(EDITS):
        swap(router.model, number % 2 == 0)
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert router(PROMPTS, generate=False) == known[0]


def test_an_expert_that_leaves_still_answers_who_was_sent_to_it(expert_specs: dict[str, dict[str, Any]]) -> None:
    router = IR3DERoutingPipeline(tiny.router(expert_specs), device="cpu")
    events = router.stream(PROMPTS[0], max_new_tokens=2, on_error="raise")
    assert next(events)["expert"] == "law"
    router.model.remove_expert("law")
    assert list(events)[-1]["expert"] == "law"
    assert router(PROMPTS[0], generate=False)["expert"] != "law"


def test_edits_by_several_threads_are_all_there() -> None:
    model = tiny.router()
    texts = [tiny.statistics(tiny.sentences("law", 4, seed=seed)) for seed in range(20, 28)]
    threads = [
        threading.Thread(target=model.add_expert, args=(f"art{number}",), kwargs={"statistics": part, "own": True})
        for number, part in enumerate(texts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(model.config.expert_names) == {*tiny.DOMAINS, *(f"art{number}" for number in range(8))}
    assert set(model.statistics) == set(model.config.expert_names)


def test_the_router_of_a_moment_stays_as_it_was_and_shares_its_memory() -> None:
    model = tiny.router()
    now = model.as_it_is_now()
    weights = {key: value.clone() for key, value in now.state_dict().items()}
    swap(model, True)
    model.add_expert("more", statistics=tiny.statistics(tiny.sentences("code", 5, seed=8)), own=True)
    assert now.config.expert_names == tiny.DOMAINS or now.config.expert_names == sorted(tiny.DOMAINS)
    assert all(torch.equal(weights[key], value) for key, value in now.state_dict().items())
    assert now.embed_tokens is model.embed_tokens
    assert pickle.loads(pickle.dumps(model.config)).expert_names == model.config.expert_names


def test_a_visitors_former_routers_hold_no_tables(expert_specs: dict[str, dict[str, Any]]) -> None:
    site = make_site(expert_specs)
    site.router("the court", generate=False)
    visitor = None
    for number in range(4):
        part = tiny.statistics(tiny.sentences("law", 4, seed=30 + number))

        def add(model: IR3DEModel, name: str = f"art{number}", part: DomainStatistics = part) -> None:
            model.add_expert(name, statistics=part, own=True)

        visitor = site.edited(visitor, add)
        visitor.router("the court", generate=False)
    tables = {"prompt", "votes"}
    assert [bool(tables & set(router.model._derived)) for router in visitor.before] == [True, False, False, False]
    assert visitor.before[0] is site.router, "which serves everybody"
    back = site.undone(visitor)
    assert back is not None
    names = back.router.model.config.expert_names
    assert names == [*[f"art{number}" for number in range(3)], *sorted(tiny.DOMAINS)]
    assert back.router("the court", generate=False)["expert"] in names
    shared = site.router.model.statistics["code"]
    assert all(router.model.statistics["code"] is shared for router in [*visitor.before, visitor.router])
