"""The card states measured facts, marks what is not pinned, and keeps a history of edits."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard

from ir3de import IR3DEModel
from ir3de.card_ir3de import CARD_NAME, PLOT_NAME, STATE_KEY, state, update_card

from . import tiny

EVALUATION = {
    "macro_accuracy": 0.9,
    "standard_error": 0.01,
    "calibration_error": 0.02,
    "prompts": 30,
    "domains": {name: {"recall": 0.9, "prompts": 10} for name in tiny.DOMAINS},
    "confusion": {name: {other: 9 if other == name else 1 for other in tiny.DOMAINS} for name in tiny.DOMAINS},
}
LAW = tiny.statistics(tiny.sentences("law", 9, seed=9))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def card(model: IR3DEModel, folder: Path, change: str | None = None) -> Any:
    update_card(folder / CARD_NAME, model.config, model.statistics, change and ("org/router", change))
    return ModelCard.load(folder / CARD_NAME)


def history(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^\| [0-9-]{10} \| (.*) \| `(\w+)` \|$", text, re.MULTILINE)


def test_experts_are_linked_and_what_is_not_pinned_is_marked(tmp_path: Path) -> None:
    experts = {
        "code": {"model": "org/code", "revision": COMMIT, "adapter": "org/lora"},
        "law": {"model": "org/law", "revision": "main"},
        "math": {"model": str(tmp_path)},
    }
    made = card(tiny.router(experts, embedding_model="org/base", datasets=["org/data"]), tmp_path)
    assert made.data.base_model == ["org/base", "org/code", "org/law", "org/lora"]
    assert made.data.datasets == ["org/data"]
    assert (
        f"https://huggingface.co/org/code) with adapter [`org/lora`](https://huggingface.co/org/lora) | `{COMMIT}`,"
        in (made.text)
    )
    rows = {line.split(" | ")[0]: line for line in made.text.splitlines()}
    assert "**not pinned**" in rows["| code"]
    assert "`main`, **a branch or tag: not pinned**" in rows["| law"]
    assert "a folder" in rows["| math"]
    assert str(tmp_path) not in made.content, "no path of this machine"
    tokens = sum(len(text.split()) for text in tiny.sentences("law", 20))
    assert rows["| law"].endswith(f"| 20 | {tokens} | 1 |")


def test_measurements_are_a_model_index_until_edits_change_the_router(tmp_path: Path) -> None:
    model = tiny.router(evaluation=EVALUATION)
    made = card(model, tmp_path)
    assert [(r.metric_type, r.metric_value) for r in made.data.eval_results] == [("accuracy", 90.0), ("ece", 0.02)]
    assert f"]({PLOT_NAME})" in made.text
    first = (tmp_path / CARD_NAME).read_bytes(), (tmp_path / PLOT_NAME).read_bytes()
    other = EvalResult("text-generation", "theirs", "theirs", "accuracy", 80.0)
    made.data.eval_results.append(other)
    made.save(tmp_path / CARD_NAME)
    model.add_expert("art", statistics=LAW)
    made = card(model, tmp_path)
    assert made.data.eval_results == [other], "what others measured is theirs to mend"
    assert "has been edited" in made.text
    made.data.eval_results = None
    made.save(tmp_path / CARD_NAME)
    model.remove_expert("art")
    card(model, tmp_path)
    assert ((tmp_path / CARD_NAME).read_bytes(), (tmp_path / PLOT_NAME).read_bytes()) == first


def test_results_that_name_a_state_leave_with_it(tmp_path: Path) -> None:
    model = tiny.router()
    made = card(model, tmp_path)
    now = state(model.config, model.statistics)
    given = [
        EvalResult("text-generation", name, name, "accuracy", 80.0, dataset_args=args)
        for name, args in {"of now": {STATE_KEY: now}, "old": {STATE_KEY: "0" * 12}, "theirs": "n=5"}.items()
    ]
    made.data.model_name, made.data.eval_results = "router", given
    made.save(tmp_path / CARD_NAME)
    assert [r.dataset_name for r in card(model, tmp_path).data.eval_results] == ["of now", "theirs"]
    model.replace_expert("law", {"name": "law", "model": "org/other"})
    assert [r.dataset_name for r in card(model, tmp_path).data.eval_results] == ["theirs"]


def test_no_plot_without_a_confusion_matrix_or_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PLOT_NAME not in card(tiny.router(evaluation={**EVALUATION, "confusion": None}), tmp_path).text
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert PLOT_NAME not in card(tiny.router(evaluation=EVALUATION), tmp_path).text
    assert not (tmp_path / PLOT_NAME).exists()


def test_the_history_has_a_line_for_each_change_of_the_experts(tmp_path: Path) -> None:
    model = tiny.router()
    assert "History" not in card(model, tmp_path).text, "what is not published has none"
    card(model, tmp_path, "Upload")
    card(model, tmp_path, "Upload again")
    model.add_expert("art", statistics=LAW)
    card(model, tmp_path, "Add art | `x`\n<script>")
    model.remove_expert("art")
    text = card(model, tmp_path, "Remove art").text
    changes = history(text)
    assert [title for title, _ in changes] == ["Upload", "Add art x script", "Remove art"]
    assert changes[0][1] == changes[2][1] != changes[1][1], "added and removed again is the same state"
    assert "THIS_REPOSITORY" not in text
    assert "--router org/router" in text
    assert history(card(model, tmp_path).text) == changes, "saving keeps it"
