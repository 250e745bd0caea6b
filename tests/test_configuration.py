"""The config: what it holds, what it refuses, and that it survives a file."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from ir3de import IR3DEConfig, IR3DEModel
from ir3de.configuration_ir3de import check_choice

EXPERTS = [
    {"name": "math", "model": "org/math", "revision": "v1", "system_prompt": "Be brief.", "cost": 2},
    {"name": "code", "model": "org/code", "generation": {"max_new_tokens": 5, "do_sample": False}},
    {"name": "law"},
]


def config(**changes: Any) -> IR3DEConfig:
    return IR3DEConfig(**{"vocab_size": 10, "hidden_size": 4, "experts": EXPERTS, **changes})


def test_experts_are_sorted_and_give_the_labels() -> None:
    made = config()
    assert made.expert_names == ["code", "law", "math"]
    assert made.id2label == {0: "code", 1: "law", 2: "math"}
    assert made.label2id == {"code": 0, "law": 1, "math": 2}
    assert made.num_labels == 3
    assert made.experts == config(experts=EXPERTS[::-1]).experts


def test_the_callers_list_of_experts_is_not_touched() -> None:
    mine = [{"name": "b", "model": None}, {"name": "a"}]
    made = config(experts=mine)
    made.experts[0]["model"] = "org/changed"
    assert mine == [{"name": "b", "model": None}, {"name": "a"}]


def test_labels_follow_new_experts() -> None:
    made = config()
    made.set_experts([{"name": "zoology"}, {"name": "art"}])
    assert made.id2label == {0: "art", 1: "zoology"}
    assert made.label2id == {"art": 0, "zoology": 1}


def test_refused_experts_leave_the_config_as_it_was() -> None:
    made = config()
    with pytest.raises(ValueError, match="cannot name an expert"):
        made.set_experts([{"name": "art"}, {"name": "art\u200b"}])
    assert made.expert_names == ["code", "law", "math"]


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    choices = {
        "variant": "avg",
        "num_votes": 7,
        "regularization": 1,  # a whole number is a number, too
        "balance": False,
        "bias": False,
        "normalize_columns": True,
        "max_length": 99,
        "embedding_model": "org/llm",
        "embedding_revision": "v2",
        "embedding_gguf_file": "llm.gguf",
        "fingerprint": "0" * 16,
        "evaluation": {"macro_accuracy": 0.5, "prompts": 4, "domains": {"law": {"recall": 0.5, "prompts": 4}}},
    }
    made = config(**choices)
    made.save_pretrained(tmp_path)
    loaded = IR3DEConfig.from_pretrained(tmp_path)
    assert {key: getattr(loaded, key) for key in choices} == choices
    assert loaded.experts == made.experts
    assert loaded.id2label == made.id2label
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("variant", "top_k"),
        ("variant", None),
        ("num_votes", 0),
        ("num_votes", -1),
        ("num_votes", 2.5),
        ("num_votes", True),
        ("max_length", 0),
        ("max_length", "1024"),
        ("regularization", 0),
        ("regularization", -1e-5),
        ("regularization", math.nan),
        ("regularization", math.inf),
        ("regularization", "0.1"),
        ("regularization", True),
        ("regularization", 1e300),  # a W of zeros
        ("regularization", 10**400),
        ("prompt_regularization", -1),
        ("prompt_regularization", math.nan),
        ("length_scale", 1e300),  # the same features for all tokens
        ("token_noise", math.inf),
        ("lexical_weight", -1),
        ("min_score", math.nan),
        ("min_score", 1.1),
        ("num_features", True),
        ("num_votes", 10**30),
        ("feature_seed", 0.5),
        ("feature_seed", 2**63),
        ("balance", "false"),
        ("bias", 0),
        ("normalize_columns", None),
        ("calibration", [0.5]),
        ("calibration", {"temprature": 0.5}),
        ("calibration", {"temperature": 0.5, 0: 1}),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{field}`.*{re.escape(repr(value))}"):
        config(**{field: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", value) for value in (0, -1, math.nan, math.inf, 1e-320, 1e300, None, True, "0.5")]
    + [("spread", value) for value in (-0.5, math.nan, 400)],
)
def test_a_calibration_that_would_decide_by_itself_is_refused_at_load(
    router: IR3DEModel, tmp_path: Path, key: str, value: object
) -> None:
    router.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "calibration": {key: value}}))
    with pytest.raises(ValueError, match=f"`{key}` of a calibration must be a number from"):
        IR3DEModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("calibration", [None, {}, {"temperature": 1}, {"temperature": 1e-6, "spread": 1.0}])
def test_a_calibration_as_it_is_fitted_is_taken(calibration: dict[str, float] | None) -> None:
    assert config(calibration=calibration).calibration == calibration


def test_two_experts_of_one_name_are_refused_even_if_only_case_tells_them_apart() -> None:
    for twin in ("law", "LAW"):
        with pytest.raises(ValueError, match="Two experts are named"):
            config(experts=[{"name": "law"}, {"name": twin}, {"name": "math"}])


@pytest.mark.parametrize(
    "name",
    ["", " law", "law ", "law\n", "a\x00b", "a\u200bb", "\u202eab", "\ud800", "a" * 101, 3, None],
)
def test_a_name_that_does_not_print_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="cannot name an expert"):
        config(experts=[{"name": name}])


@pytest.mark.parametrize("name", ["law", "civil-law", "C_2", "v1.5", "a", "a" * 64, "conlaw"])
def test_an_ordinary_name_is_taken(name: str) -> None:
    assert config(experts=[{"name": name}]).expert_names == [name]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("law", "a mapping with at least a `name`"),
        ({"model": "org/law"}, "a mapping with at least a `name`"),
        ({"name": "law", "modle": "org/law"}, "unknown key 'modle'. Did you mean 'model'"),
        ({"name": "law", "zzz": 1}, "unknown key 'zzz'. Valid keys: name, model"),
        ({"name": "law", "model": 3}, "`model` of expert 'law' must be a string"),
        ({"name": "law", "model": "org/law", "generation": [1]}, "`generation` of expert 'law'"),
        ({"name": "law", "cost": -1}, "`cost` of expert 'law'"),
        ({"name": "law", "cost": "free"}, "`cost` of expert 'law'"),
        ({"name": "law", "revision": "v1"}, "no `model`"),
    ],
)
def test_a_malformed_expert_is_refused(spec: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(experts=[spec])


def test_the_choice_of_a_single_call_is_checked_too() -> None:
    with pytest.raises(ValueError, match="`num_votes`"):
        check_choice("top-k", 0)
    with pytest.raises(ValueError, match="`variant`"):
        check_choice("some", 1)


def test_overrides_at_load_time_are_checked_when_the_model_is_made(router, tmp_path: Path) -> None:
    router.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`num_votes`"):
        type(router).from_pretrained(tmp_path, num_votes=0)
