"""Experts come, go and are merged; the router depends on the set of contributions alone."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ir3de import DomainStatistics, IR3DEConfig, IR3DEModel
from ir3de.edits_ir3de import experts_of, pull
from ir3de.token_router_ir3de import FeatureMap, ridge

from . import tiny

PARTS = {
    (name, number): tiny.statistics(tiny.sentences(name, 8 + number, seed=number))
    for name in tiny.DOMAINS
    for number in range(3)
}


def made_of(parts: set[tuple[str, int]], **config: Any) -> IR3DEModel:
    """The router that is fitted on contributions at once."""
    domains: dict[str, DomainStatistics] = {}
    for part in parts:
        domains[part[0]] = domains[part[0]] | PARTS[part] if part[0] in domains else PARTS[part]
    made = IR3DEConfig(experts=[{"name": name} for name in domains], **config)
    return IR3DEModel.from_statistics(made, tiny.embeddings(), domains, tiny.tokenizer())


def state(model: IR3DEModel) -> dict[str, Any]:
    """All that edits may change, in a form that can be compared."""
    return {
        "config": model.config.to_dict(),
        "statistics": experts_of(model).digest,
        "W": {key: value.tolist() for key, value in model.state_dict().items() if key != "embed_tokens.weight"},
        "tables": [model.token_table(variant).rows.tolist() for variant in ("top-k", "prompt")],
    }


def files(model: IR3DEModel, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_added_then_removed_is_never_added_file_for_file(tmp_path: Path) -> None:
    model = made_of({("code", 0), ("math", 0)}, calibration={"temperature": 0.1, "spread": 0.0})
    before = files(model, tmp_path / "before"), state(model)
    model.add_expert({"name": "law", "model": "org/law"}, statistics=PARTS["law", 0])
    assert model.config.expert_names == ["code", "law", "math"]
    assert model.config.measured_on is not None
    assert state(model) != before[1]
    model.remove_expert("law")
    assert model.config.measured_on is None, "it is again the router that was measured"
    assert (files(model, tmp_path / "after"), state(model)) == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6))
def test_any_edits_in_any_order_to_the_same_set_are_the_same_router(seed: int) -> None:
    draw = random.Random(seed)
    here = {("code", 0), ("math", 0)}
    config = {"variant": "prompt", "discriminant": draw.random() < 0.5, "lexical_weight": 0.1}
    model = made_of(here, **config)
    for _ in range(8):
        name, number = draw.choice(sorted(PARTS))
        mine = {part for part in here if part[0] == name}
        if not mine:
            model.add_expert(name, statistics=PARTS[name, number], own=True)
            here.add((name, number))
        elif (name, number) not in here:
            model.merge({name: PARTS[name, number]}, own=True)
            here.add((name, number))
        elif draw.random() < 0.5:
            new = draw.sample(range(3), draw.randint(1, 3))
            model.replace_expert(name, name, statistics=[PARTS[name, number] for number in new], own=True)
            here = here - mine | {(name, number) for number in new}
        elif here != mine:
            model.remove_expert(name)
            here -= mine
    assert state(model) == state(made_of(here, **config))


@pytest.mark.parametrize("features", [FeatureMap(), FeatureMap("unit"), FeatureMap("rff", 24)], ids=lambda f: f.name)
def test_texts_give_the_same_as_their_statistics(features: FeatureMap) -> None:
    model = tiny.router(feature_map=features.name, num_features=24)
    model.remove_expert("law")
    other = copy.deepcopy(model)
    texts = tiny.sentences("law", 20)
    model.add_expert("law", texts=iter(texts))
    other.add_expert("law", statistics=tiny.statistics(texts, features))
    assert state(model) == state(other) == state(tiny.router(feature_map=features.name, num_features=24))


def test_merging_routers_files_and_folders_is_one_union(tmp_path: Path) -> None:
    whole = made_of({("code", 0), ("law", 0), ("law", 1), ("math", 0)})
    other = made_of({("law", 0), ("math", 0)})
    by_router, by_folder, by_file = (made_of({("code", 0), ("law", 1)}) for _ in range(3))
    by_router.merge(other)
    other.save_pretrained(tmp_path / "other")
    by_folder.merge(tmp_path / "other")
    by_file.merge(*(tmp_path / "other/statistics" / f"{name}.safetensors" for name in ("math", "law")))
    assert state(by_router) == state(by_folder) == state(by_file) == state(whole)


def test_a_merge_brings_the_other_routers_specs_but_keeps_its_own() -> None:
    model = tiny.router({"code": {"model": "org/mine"}})
    model.remove_expert("law")
    model.merge(tiny.router({"code": {"model": "org/theirs"}, "law": {"model": "org/law", "revision": "abc"}}))
    assert [expert.get("model") for expert in model.config.experts or []] == ["org/mine", "org/law", None]


def test_an_expert_is_replaced_with_or_without_new_statistics() -> None:
    model = made_of({("code", 0), ("law", 0)})
    model.replace_expert("law", {"name": "law", "model": "org/better-law"})
    assert model.config.experts == [{"name": "code"}, {"name": "law", "model": "org/better-law"}]
    assert model.statistics["law"].contributions.keys() == PARTS["law", 0].contributions.keys()
    model.replace_expert("law", "civil-law")
    model.replace_expert("code", "code", statistics=[PARTS["code", 1], PARTS["code", 2]])
    assert model.config.expert_names == ["civil-law", "code"]
    assert model.statistics["code"].rows("prompts") == 19


def test_edits_outlive_saving_and_say_what_the_measurements_are_of(tmp_path: Path) -> None:
    model = made_of({("code", 0), ("law", 0)}, calibration={"temperature": 0.2, "spread": 0.0})
    measured_on = experts_of(model).digest
    model.merge({"law": PARTS["law", 1]})
    model.save_pretrained(tmp_path)
    loaded = IR3DEModel.from_pretrained(tmp_path)
    assert loaded.config.measured_on == measured_on
    assert loaded.config.calibration, "an old temperature serves better than none"
    loaded.replace_expert("law", "law", statistics=PARTS["law", 0])
    assert loaded.config.measured_on is None
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["measured_on"] is None


def test_a_domains_pull_is_bounded_by_balance_and_shown() -> None:
    many = {"code": tiny.statistics(tiny.sentences("code", 400)), "law": tiny.statistics(tiny.sentences("law", 4))}
    assert pull(many, balance=False)["code"] > 0.95
    assert 0.4 < pull(many, balance=True)["code"] < 0.6
    assert sum(pull(many, balance=True).values()) == pytest.approx(1)


OTHER_SPACE = tiny.statistics(tiny.sentences("law", 5), FeatureMap("unit"))
BAD: dict[str, tuple[Callable[[IR3DEModel], Any], str]] = {
    "an unknown expert": (lambda m: m.remove_expert("art"), "no expert 'art' among"),
    "an unknown expert to replace": (lambda m: m.replace_expert("art", "law"), "no expert 'art' among"),
    "a taken name": (lambda m: m.add_expert("code", statistics=PARTS["law", 0]), "an expert 'code' already"),
    "a name taken but for case": (lambda m: m.add_expert("Code", statistics=PARTS["law", 0]), "'code' already"),
    "an invisible name": (lambda m: m.add_expert("law\u200b", statistics=PARTS["law", 0]), "cannot name an expert"),
    "an unknown key": (lambda m: m.add_expert({"name": "law", "modle": "x"}, statistics=PARTS["law", 0]), "'model'"),
    "no name": (lambda m: m.add_expert({"model": "x"}, statistics=PARTS["law", 0]), "cannot name|name"),
    "no source": (lambda m: m.add_expert("law"), "either `texts`"),
    "both sources": (lambda m: m.add_expert("law", texts=["a"], statistics=PARTS["law", 0]), "either `texts`"),
    "no texts": (lambda m: m.add_expert("law", texts=[]), "no tokens"),
    "empty texts": (lambda m: m.add_expert("law", texts=["", " "]), "no tokens"),
    "no statistics": (lambda m: m.add_expert("law", statistics=[]), "at least one file"),
    "another feature space": (lambda m: m.add_expert("law", statistics=OTHER_SPACE), "feature space"),
    "another feature space in a merge": (lambda m: m.merge({"code": OTHER_SPACE}), "feature space"),
    "another router's feature space": (lambda m: m.merge(tiny.router(feature_map="unit")), "feature space"),
    "nothing new": (lambda m: m.merge({"code": PARTS["code", 0]}), "Nothing to merge"),
    "the same router": (lambda m: m.merge(m), "Nothing to merge"),
    "the same twice": (lambda m: m.merge({"law": PARTS["law", 0]}, {"law": PARTS["law", 0]}), "Nothing to merge"),
    "the same twice in a list": (
        lambda m: m.add_expert("law", statistics=[PARTS["law", 0]] * 2),
        "would count twice",
    ),
    "the same under another name": (lambda m: m.merge({"law": PARTS["code", 0]}), "part of 'code' already"),
    "the same for another expert": (lambda m: m.merge({"code": PARTS["math", 0]}), "part of 'math' already"),
    "a missing file": (lambda m: m.merge("absent/law.safetensors"), "missing"),
    "a missing router": (lambda m: m.merge("absent/router/folder"), "absent/router/folder"),
    "the fallback": (lambda m: m.remove_expert("math"), "fallback_expert"),
    "half good": (lambda m: m.merge({"law": PARTS["law", 0]}, {"art": OTHER_SPACE}), "feature space"),
}


@pytest.mark.parametrize(("edit", "message"), BAD.values(), ids=BAD)
def test_a_bad_edit_changes_nothing(edit: Callable[[IR3DEModel], Any], message: str) -> None:
    model = made_of({("code", 0), ("math", 0)}, fallback_expert="math")
    before = state(model)
    with pytest.raises((ValueError, OSError), match=message):
        edit(model)
    assert state(model) == before


def test_the_last_expert_stays() -> None:
    model = made_of({("code", 0)})
    with pytest.raises(ValueError, match="last expert"):
        model.remove_expert("code")
    assert model.config.expert_names == ["code"]


def test_an_edit_that_cannot_be_solved_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_of({("code", 0), ("math", 0)})
    before = state(model)
    signs = iter([1, -1])  # fails in the second solve
    monkeypatch.setattr("ir3de.modeling_ir3de.ridge", lambda A, *rest, **how: ridge(next(signs) * A, *rest, **how))
    with pytest.raises(ValueError, match="not positive definite"):
        model.add_expert("law", statistics=tiny.statistics(["court"]))
    monkeypatch.undo()
    assert state(model) == before


def test_collecting_needs_the_embeddings_as_they_were(tmp_path: Path) -> None:
    tiny.router().save_pretrained(tmp_path)
    loaded = IR3DEModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16, are not those"):
        loaded.add_expert("art", texts=["show me"])
    loaded.remove_expert("law")
    assert loaded.config.expert_names == ["code", "math"]
