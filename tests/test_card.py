"""The card states measured facts, marks what is not pinned, and keeps a history of edits."""

import re
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub import EvalResult, ModelCard

from ir3de import IR3DEConfig, IR3DEModel
from ir3de.card_ir3de import (
    BEGIN,
    CARD_NAME,
    END,
    FRONTIER_NAME,
    PLOT_NAME,
    STATE_KEY,
    as_names,
    plot_confusion,
    state,
    update_card,
)
from ir3de.familiarity_ir3de import PARTS, FamiliarityScale
from ir3de.outlook_ir3de import Outlook, Point, plot_frontier
from ir3de.samples_ir3de import Sample
from ir3de.scripts import cli

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


def test_what_the_router_does_where_it_is_unsure_is_said(tmp_path: Path) -> None:
    plain = card(tiny.router(), tmp_path).text
    assert "Every prompt goes to the expert of the best score, however low" in plain
    assert "second opinion" not in plain
    scale = FamiliarityScale.measured(np.random.default_rng(0).normal(size=(99, PARTS))).as_config()
    made = tiny.router(min_score=0.2, familiarity=scale, min_familiarity=0.03, fallback_expert="law")
    said = card(made, tmp_path).text
    assert "best score lies below `min_score=0.2`, or whose familiarity lies below `min_familiarity=0.03`, goes" in said
    assert "goes to the fallback law." in said
    update_card(tmp_path / CARD_NAME, made.config, made.statistics, encoder="org/encoder")
    assert (
        "on the sentence encoder [`org/encoder`](https://huggingface.co/org/encoder)"
        in (tmp_path / CARD_NAME).read_text()
    )


def test_the_prompt_that_is_shown_is_one_of_the_routers_own_and_the_example_runs(tmp_path: Path) -> None:
    router = tiny.router()
    router.save_pretrained(tmp_path)
    assert 'prompt = "a prompt of yours"' in (tmp_path / CARD_NAME).read_text()
    router.samples = [
        Sample("``` <!-- ir3de", "law"),
        Sample("court\nand judge", "law"),
        Sample('court and judge "ä"', "law"),
    ]
    router.save_pretrained(tmp_path)
    text = (tmp_path / CARD_NAME).read_text(encoding="utf-8")
    assert 'prompt = "court and judge \\"ä\\""' in text
    lines = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0].splitlines()
    alone = lines[lines.index("# The model alone, without experts: one score for each domain.") + 1 :]
    assert alone.pop(0).startswith("model = AutoModel")
    names: dict[str, Any] = {"model": router, "prompt": 'court and judge "ä"'}
    exec("\n".join(alone[:-1]), names)
    assert eval(alone[-1], names) == "law"


def test_a_router_that_only_routes_promises_no_answer(tmp_path: Path) -> None:
    promise = 'adds "generated_text", by the chosen expert'
    mute = card(tiny.router(), tmp_path).text
    assert promise not in mute
    assert "# No expert has a model to answer with: this router only routes." in mute
    said = card(tiny.router({"law": {"model": "org/law"}}), tmp_path).text
    assert promise in said
    assert "only routes." not in said


def test_the_names_of_a_table_are_shown_in_one_way() -> None:
    assert as_names(["law", "art & craft"]) == {"law": "`law`", "art & craft": "`art & craft`"}
    assert as_names(["law", "my art"]) == {"law": "law", "my art": "my art"}


ODD = ("a | b", "`x` ``y``", "<b>x</b> <!-- ir3de -->", "*it* [a](b) &amp; \\| www.a.org", "law")


def test_odd_names_are_read_in_the_card_as_they_are(tmp_path: Path) -> None:
    texts = {name: tiny.sentences(domain, 9) for name, domain in zip(ODD, (*tiny.DOMAINS, *tiny.DOMAINS), strict=False)}
    config = IR3DEConfig(experts=[{"name": name} for name in ODD], variant="prompt")
    statistics = {name: tiny.statistics(lines, config.features) for name, lines in texts.items()}
    model = IR3DEModel.from_statistics(config, tiny.embeddings(), statistics, tiny.tokenizer())
    ledger = model.add_outcomes([{"text": "court", "domain": name, "scores": dict.fromkeys(ODD, 0.5)} for name in ODD])
    update_card(tmp_path / CARD_NAME, model.config, model.statistics, outcomes=ledger)
    text = (tmp_path / CARD_NAME).read_text(encoding="utf-8")
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(text)
    cells = [seen(token) for before, token in pairwise(tokens) if before.type in ("td_open", "th_open")]
    for name in ODD:  # of the table of experts, and a row and a column of that of outcomes
        assert cells.count(name) == 3, name


def seen(token: Any) -> str:
    """What a reader sees of a cell of Markdown."""
    parts = [child.content for child in token.children if child.content not in ("<code>", "</code>")]
    return "".join(parts)


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
    model.add_expert("art", statistics=LAW, own=True)
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


def test_names_in_letters_that_the_font_lacks_are_drawn_without_a_word(tmp_path: Path) -> None:
    name, point = "\u6cd5\u5f8b", [Point(1.0, 0.5)]
    outlook: Any = SimpleNamespace(unpriced=[], frontier=lambda: point, singles=lambda: point, experts=[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot_confusion(tmp_path / PLOT_NAME, {name: {name: 3}})
        assert plot_frontier(tmp_path / FRONTIER_NAME, outlook)
    assert (tmp_path / PLOT_NAME).exists()
    assert (tmp_path / FRONTIER_NAME).exists()


def test_the_card_shows_what_weighing_costs_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.router()
    costs = dict(zip(tiny.DOMAINS, (1.0, 2.0, 3.0), strict=True))
    rows = [
        {"text": f"{d} {e} {i}", "domain": d, "expert": e, "score": float(d == e), "cost": costs[e]}
        for d in tiny.DOMAINS
        for e in tiny.DOMAINS
        for i in range(20)
    ]
    added = model.add_outcomes(rows)
    model.save_pretrained(tmp_path / "router")
    assert f"]({FRONTIER_NAME})" in (tmp_path / "router" / CARD_NAME).read_text(encoding="utf-8")
    picture = (tmp_path / "router" / FRONTIER_NAME).read_bytes()
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / FRONTIER_NAME).read_bytes() == picture, "the same outcomes are the same bytes"
    outlook = Outlook.of(model.panel, model.outcomes)
    assert outlook is not None
    line = outlook.frontier()
    assert line[0] == outlook.singles()[0] == min(outlook.singles()), "the cheapest alone is where it begins"
    assert line[-1] == outlook.point(0)
    assert line == sorted(line)
    assert line[-1].cost == pytest.approx(2, abs=0.2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model.save_pretrained(tmp_path / "router")
    assert FRONTIER_NAME not in (tmp_path / "router" / CARD_NAME).read_text(encoding="utf-8")
    monkeypatch.undo()
    model.remove_outcomes(added)
    model.save_pretrained(tmp_path / "router")
    assert not (tmp_path / "router" / "outcomes").exists(), "nothing is left of them"
    assert not (tmp_path / "router" / FRONTIER_NAME).exists()


def test_the_history_has_a_line_for_each_change_of_the_experts(tmp_path: Path) -> None:
    model = tiny.router()
    assert "History" not in card(model, tmp_path).text, "what is not published has none"
    card(model, tmp_path, "Upload")
    card(model, tmp_path, "Upload again")
    model.add_expert("art", statistics=LAW, own=True)
    card(model, tmp_path, "Add art | `x`\n<script>")
    model.remove_expert("art")
    text = card(model, tmp_path, "Remove art").text
    changes = history(text)
    assert [title for title, _ in changes] == ["Upload", "Add art x script", "Remove art"]
    assert changes[0][1] == changes[2][1] != changes[1][1], "added and removed again is the same state"
    assert "THIS_REPOSITORY" not in text
    assert "--router org/router" in text
    assert history(card(model, tmp_path).text) == changes, "saving keeps it"


def test_outcomes_have_a_history_of_their_own(tmp_path: Path) -> None:
    def made(change: str | None) -> Any:
        about = change and ("org/router", change)
        update_card(tmp_path / CARD_NAME, model.config, model.statistics, about, model.outcomes)
        return ModelCard.load(tmp_path / CARD_NAME)

    def lines(text: str) -> list[tuple[str, ...]]:
        return re.findall(r"^\| [0-9-]{10} \| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE)

    model = tiny.router()
    assert "History of outcomes" not in made("Upload").text
    first = model.add_outcomes([{"text": f"case {n}", "expert": "law", "score": 1.0} for n in range(1200)])
    made("Add outcomes of a file | `x`")
    more = model.add_outcomes([{"text": "a proof", "expert": "math", "score": 0.0}])
    made("Add outcomes of traffic")
    made("Something else")
    model.remove_outcomes(more)
    text = made("Remove outcomes of a file").text
    found = lines(text)
    assert [line[1:] for line in found] == [
        ("Add outcomes of a file x", "+1,200", "1,200"),
        ("Add outcomes of traffic", "+1", "1,201"),
        ("Remove outcomes of a file", "-1", "1,200"),
    ]
    assert found[0][0] == found[2][0] != found[1][0], "added and taken back again is the same state"
    assert [title for title, _ in history(text)] == ["Upload"], "the experts are as they were"
    assert lines(made(None).text) == found, "saving keeps it"
    model.remove_outcomes(first)
    assert lines(made("Remove all").text)[-1][2:] == ("-1,200", "0")


# A card is text.

INJECTED = [
    "org/x<!-- ir3de: generated up to here -->\n# Free money",
    "a | b | c |\n|---|---|\n",
    "`</code><script>alert(1)</script>`",
    "x](javascript:alert(1)) [y",
    "org/x\u202egnp.exe\u200b\x1b[31m\r\nSet-Cookie: a",
    "<!-- ir3de: generated from here on, edits are overwritten -->",
    "  \t ",
    "a" * 5000,
]


@pytest.mark.parametrize("text", INJECTED)
@pytest.mark.parametrize("key", ["model", "adapter", "revision", "embedding_model", "domain of a figure"])
def test_what_a_config_says_stays_text_in_one_line_and_leaves_with_it(key: str, text: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"embedding_model": text} if key == "embedding_model" else {}
    if key.startswith("domain"):
        config = {"evaluation": {**EVALUATION, "domains": {text: {"recall": 1.0, "prompts": 1}}, "confusion": None}}
    expert = {"model": "org/x", key: text} if key in ("model", "adapter", "revision") else {}
    (tmp_path / CARD_NAME).write_text("---\n{}\n---\n# Mine\n\nMy words.\n")
    clean = card(tiny.router(), tmp_path).content
    made = card(tiny.router({"law": expert}, **config), tmp_path)
    assert made.content.count(BEGIN) == made.content.count(END) == 1
    assert made.content.rstrip().endswith(END)
    assert not set(made.text) & set("\u202e\u200b\x1b\r\t")
    for bad in ("<script", "\n# Free", "](javascript", "`</code"):
        assert bad not in made.text.replace("`x](javascript:alert(1)) [y`", "")
    rows = [line for line in made.text.splitlines() if line.startswith(("| law", "| code", "| math"))]
    assert {line.count("|") for line in rows[:3]} == {7}
    assert max(map(len, made.text.splitlines())) < 1000
    assert card(tiny.router(), tmp_path).content == clean, "what was removed is gone"


@pytest.mark.parametrize("head", ["a: [1", "a: b: c", "- a", "a: *b", "\ttab: 1"])
def test_a_card_whose_head_is_broken_is_named_before_anything_is_written(head: str, tmp_path: Path) -> None:
    tiny.router().save_pretrained(tmp_path)
    (tmp_path / CARD_NAME).write_text(f"---\nlicense: mit\n{head}\n---\n# Mine\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / CARD_NAME))}: .*no YAML mapping") as caught:
        tiny.router().save_pretrained(tmp_path)
    assert "line 3" in str(caught.value) or head in ("- a", "a: *b")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_command_names_the_broken_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.router().save_pretrained(tmp_path)
    (tmp_path / CARD_NAME).write_text("---\nlicense: [mit\n---\n# Mine\n")
    assert cli.main(["remove", str(tmp_path), "law"]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / CARD_NAME) in error
    assert "Traceback" not in error
    (tmp_path / CARD_NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        tiny.router().save_pretrained(tmp_path)
