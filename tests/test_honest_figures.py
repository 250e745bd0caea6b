"""What `ir3de fit` prints of held-out rows is what other rows will see."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ir3de.scripts.cli import main
from ir3de.scripts.data.groups import Groups
from ir3de.scripts.data.rows import Row
from ir3de.scripts.data.spool import Spool
from ir3de.scripts.fitting.holding_out import held_out_prompts, source_splits, splits

from . import tiny

FAST = ("--variant", "prompt", "--feature-map", "unit")


@pytest.fixture
def fit(source: str, tmp_path: Path) -> Callable[..., int]:
    """Fits a router to these rows; returns the exit code."""

    def run(rows: list[dict[str, Any]], *options: str) -> int:
        path = write(tmp_path / "train.jsonl", rows)
        output = str(tmp_path / "router")
        return main(["fit", "--data", path, "--embeddings", source, "--output", output, *FAST, *options])

    return run


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labelled(number: int, seed: int = 0) -> list[dict[str, Any]]:
    return [{"text": text, "domain": name} for name in tiny.DOMAINS for text in tiny.sentences(name, number, seed)]


# Groups


def test_templates_and_near_duplicates_are_one_group() -> None:
    groups = Groups()
    texts = [
        "Where is my order 1234, it should have been here on Monday the 5th?",
        "where is my order 98, it should have been here on monday the 17th",
        "Hello, where is my order 7, it should have been here on Monday the 2nd?",
        "I want to send a lamp back.",
        "I want my money back for a chair.",
    ]
    assert [groups.of(Row(text, "shop")) for text in texts] == [0, 0, 0, 1, 2]
    assert groups.of(Row(texts[0], "other")) == 0, "groups are of one domain"
    assert groups.alike == 2
    assert groups.notes() == ["2 of 6 rows are nearly equal to others, and are held out with them."]


def test_named_groups_are_taken_as_they_are() -> None:
    groups = Groups()
    named = [groups.of(Row("the same text", "shop", group=name)) for name in ("ann", "bob", "ann", "cy")]
    assert named == [0, 1, 0, 2]
    assert groups.alike == 0


def test_a_group_is_held_out_as_a_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    rows = [
        Row(text, name, group=str(i % 7)) for name in tiny.DOMAINS for i, text in enumerate(tiny.sentences(name, 70))
    ]
    spool.fill(iter(rows), tiny.tokenizer(), 100)
    groups = spool.groups("law")
    assert groups[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    held = 0
    for split in splits(spool):
        number = len(split.held_out["law"].lengths)
        assert number % 10 == 0
        held += number
    assert held == 70, "every group has been held out once"


def test_what_is_held_out_is_the_same_without_the_sample(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.fill((Row(text, name) for name in tiny.DOMAINS for text in tiny.sentences(name, 70)), tiny.tokenizer(), 100)
    alone = list(held_out_prompts(spool))
    assert len(alone) == 5
    for split, held in zip(splits(spool), alone, strict=True):
        for name in tiny.DOMAINS:
            assert torch.equal(split.held_out[name].token_ids, held[name].token_ids)
            assert torch.equal(split.held_out[name].lengths, held[name].lengths)


def test_rows_that_are_all_different_are_held_out_as_before(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    texts = [f"{a} {b} {c}" for a in tiny.DOMAINS["law"] for b in tiny.SHARED[:3] for c in tiny.DOMAINS["math"][:2]]
    spool.fill((Row(text, name) for name in ("law", "math") for text in texts), tiny.tokenizer(), 100)
    assert torch.equal(spool.groups("law"), torch.arange(len(texts)))


def test_a_fit_to_templates_no_longer_promises_what_it_cannot_hold(
    fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Labels without a pattern: only who has seen a template knows its domain.
    words, names = [word for words in tiny.DOMAINS.values() for word in words], list(tiny.DOMAINS)
    rows = [
        {"text": f"{word} {word} {number}", "domain": names[i % 3], "who": word}
        for number in range(4)
        for i, word in enumerate(words)
    ]
    assert fit(rows) == 0
    config = json.loads((tmp_path / "router" / "config.json").read_text())
    assert config["evaluation"]["macro_accuracy"] < 0.6
    assert "are nearly equal to others, and are held out with them" in capsys.readouterr().err
    assert fit(rows, "--group-column", "who") == 0
    grouped = json.loads((tmp_path / "router" / "config.json").read_text())
    assert grouped["evaluation"]["macro_accuracy"] == pytest.approx(config["evaluation"]["macro_accuracy"], abs=0.15)


# Validation


def test_validation_is_measured_and_told(
    fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = labelled(40)
    validation = write(
        tmp_path / "other.jsonl", [*labelled(15, seed=8), {**train[0], "text": train[0]["text"].upper()}]
    )
    assert fit(train, "--validation", validation) == 0
    captured = capsys.readouterr()
    assert "On 45 prompts of --validation: macro accuracy" in captured.out
    assert "1 rows of --validation are among the training rows" in captured.err
    config = json.loads((tmp_path / "router" / "config.json").read_text())
    measured = config["evaluation"]["validation"]
    assert measured["prompts"] == 45
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "router"),
                "--data",
                write(tmp_path / "b.jsonl", labelled(15, seed=8)),
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["macro_accuracy"] == pytest.approx(measured["macro_accuracy"])
    card = (tmp_path / "router" / "README.md").read_text()
    assert (
        f"On 45 other prompts, on which nothing was chosen: macro accuracy **{100 * measured['macro_accuracy']:.1f} %**"
        in card
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "paint", "domain": "art"}, {"text": "court", "domain": "law"}], "--validation has rows of ['art']"),
        ("training", "All rows of --validation are among the training rows"),
    ],
)
def test_a_validation_file_that_fits_not_is_refused(
    rows: Any,
    message: str,
    fit: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Spool, "fill", lambda *_: pytest.fail("long work began"))
    train = labelled(10)
    path = write(tmp_path / "other.jsonl", train[:3] if rows == "training" else rows)
    assert fit(train, "--validation", path) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "router").exists()


# Other sources


def of_two_sources(number: int = 40) -> list[dict[str, Any]]:
    """Rows of two sources each, which say the same domain in other words; math is of one."""
    rows = []
    for name, words in tiny.DOMAINS.items():
        for i, text in enumerate(tiny.sentences(name, number)):
            source = "b" if i % 2 and name != "math" else "a"
            kept = words[::2] if source == "a" else words[1::2]
            own = [word if word in tiny.SHARED else kept[len(word) % len(kept)] for word in text.split()]
            rows.append({"text": " ".join(own), "domain": name, "source": source})
    return rows


def test_a_source_is_left_out_wherever_its_domain_has_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    rows = [Row(f"{row['text']} {i}", row["domain"], row["source"]) for i, row in enumerate(of_two_sources())]
    spool.fill(iter(rows), tiny.tokenizer(), 100)
    for split, left in zip(source_splits(spool), (0, 1), strict=True):
        for name in ("code", "law"):
            held, sources = split.held_out[name], spool.sources(name)
            assert held.token_ids.tolist() == spool.take(name, (sources == left).nonzero()[:, 0]).token_ids.tolist()
            kept = spool.take(name, (sources != left).nonzero()[:, 0])
            assert set(split.sample[name].token_ids.tolist()) <= set(kept.token_ids.tolist())
        assert len(split.held_out["math"].lengths) == 0, "it has one source"
        assert len(split.sample["math"].lengths) == 40


def test_many_sources_are_left_out_in_five_folds_and_near_copies_with_them(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    rows = [Row(text, name, str(i % 12)) for name in tiny.DOMAINS for i, text in enumerate(tiny.sentences(name, 60))]
    copies = [Row(row.text, row.domain, "copy") for row in rows[:3]]
    spool.fill(iter([*rows, *copies]), tiny.tokenizer(), 100)
    made = source_splits(spool)
    assert len(made) == 5
    held = sum(len(split.held_out["law"].lengths) for split in made)
    assert held == 60
    for split in made:
        seen = {
            tuple(ids.tolist()) for ids in split.sample["code"].token_ids.split(split.sample["code"].lengths.tolist())
        }
        for ids in split.held_out["code"].token_ids.split(split.held_out["code"].lengths.tolist()):
            assert tuple(ids.tolist()) not in seen


def test_what_other_sources_give_is_measured_and_said(
    fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(of_two_sources()) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("On prompts of other sources")]
    assert "in the 2 domains that have several" in line
    measured = json.loads((tmp_path / "router" / "config.json").read_text())["evaluation"]["elsewhere"]
    assert measured["prompts"] == 80
    assert (
        f"macro accuracy is {100 * measured['macro_accuracy']:.2f} % +- {100 * measured['standard_error']:.2f}" in line
    )
    assert "of the 2 with several sources was **" in (tmp_path / "router" / "README.md").read_text()


def test_several_data_are_several_sources(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / f"{i}.jsonl", labelled(15, seed=i)) for i in range(2)]
    data = [option for file in files for option in ("--data", file)]
    assert main(["fit", *data, "--embeddings", source, "--output", str(tmp_path / "router"), *FAST]) == 0
    shown = capsys.readouterr()
    assert "On prompts of other sources expect less: with each source left out in turn, macro accuracy" in shown.out
    assert "are of one source" not in shown.err


def test_what_would_take_long_is_left_out_and_said(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ir3de.scripts.fitting.elsewhere.MOST_OPERATIONS", 1)
    assert fit(of_two_sources()) == 0
    shown = capsys.readouterr().out
    assert "What to expect of other sources was not measured, since that would take long" in shown
    assert "On prompts of other sources" not in shown


def test_of_named_groups_the_figures_are_of_others_anyway(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit([{**row, "who": str(i % 9)} for i, row in enumerate(labelled(20))], "--group-column", "who") == 0
    assert "The held-out rows are of other values of --group-column" in capsys.readouterr().err


# What is said of the data


def test_few_rows_single_sources_and_contradictions_are_said(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "source": "ab"[i % 2]} for i, row in enumerate(labelled(12)) if row["domain"] != "law"]
    rows += [{"text": text, "domain": "law", "source": "a"} for text in tiny.sentences("law", 30)]
    rows.append({**rows[0], "domain": "law", "source": "a"})
    assert fit(rows) == 0
    said = capsys.readouterr().err
    assert "Few rows: 'code' 12, 'math' 12." in said
    assert "The rows of 'law' are of one source" in said
    assert "1 text is in both 'code' and 'law'" in said


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["one"] * 60, "--group-column names a single group for all rows of 'code', 'law', 'math'"),
        ([None] * 60, "line 1: no group under 'who'"),
    ],
)
def test_groups_that_cannot_be_held_out_are_refused(
    groups: list[str | None], message: str, fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "who": group} for row, group in zip(labelled(20), groups, strict=True)]
    assert fit(rows, "--group-column", "who") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "router").exists()
