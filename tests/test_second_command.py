"""`ir3de second`: chooses on prompts left out in turn, fits on all, measures on others, and saves beside the router."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ir3de import IR3DEModel, IR3DERoutingPipeline, SecondOpinion
from ir3de.app import load
from ir3de.gateway.server import Service, make_application
from ir3de.route_selector_ir3de import probabilities
from ir3de.scripts.cli import main
from ir3de.scripts.data.rows import read_file
from ir3de.scripts.fitting import second as fitting
from ir3de.scripts.reports.second import describe_offer
from ir3de.scripts.routers.encoders import MINILM
from ir3de.scripts.second import OPTIMISTIC
from ir3de.second_opinion_ir3de import PROBE
from ir3de.second_opinion_ir3de import SecondOpinion as Class
from ir3de.space import views
from ir3de.space.palette import Palette

from . import tiny
from .test_second_opinion import NAMES, UNSURE, WordEncoder


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> WordEncoder:
    """What is loaded as the sentence encoder, whichever is named."""
    made = WordEncoder()
    monkeypatch.setattr("ir3de.second_opinion_ir3de._load_encoder", lambda name, revision: made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / 'a "router"'  # as its path may be, and is to be printed
    tiny.router(variant="prompt", calibration={"temperature": 0.3, "spread": 0.0}).save_pretrained(place)
    return place


def run(*arguments: Any) -> int:
    return main(["second", *map(str, arguments)])


def test_it_is_fitted_measured_and_saved(
    folder: Path, json_lines: Path, encoder: WordEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    where = ["--where", "source=a", "--test-where", "source=b"]
    assert run(folder, "--data", json_lines, *where, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    opinion = SecondOpinion.from_pretrained(folder, "second", encode=encoder)
    assert {name: domain.rows("prompts") for name, domain in opinion.statistics.items()} == dict.fromkeys(NAMES, 20)
    assert opinion.encoder == MINILM
    assert opinion.regularization in fitting.LAMBDAS
    assert opinion.calibration.keys() == {"temperature", "spread"}

    rows = [row for row in read_file(json_lines) if row.source == "b"]
    router = IR3DEModel.from_pretrained(folder)
    router.second_opinion = opinion
    pipe = IR3DERoutingPipeline(router, device="cpu", second_opinion=True)
    table = {}
    for line in printed.splitlines():
        if line.startswith("| ") and "second_below" not in line:
            bound, share, accuracy = (float(cell) for cell in line.strip("| ").split("|"))
            table[bound] = (share, accuracy)
    assert list(table) == [0, 0.5, 0.7, 0.9, 0.97, 1]
    for bound, (share, accuracy) in table.items():  # what is printed is what the pipeline does
        records = pipe([row.text for row in rows], generate=False, second_below=bound)
        assert share == pytest.approx(100 * np.mean(["second_opinion" in record for record in records]), abs=0.06)
        right = [record["expert"] == row.domain for record, row in zip(records, rows, strict=True)]
        recalls = [np.mean([r for r, row in zip(right, rows, strict=True) if row.domain == name]) for name in NAMES]
        assert accuracy == pytest.approx(100 * np.mean(recalls), abs=0.006)
    assert 0 < table[0.9][0] < 100
    assert (tmp_path / "out" / "second.md").read_text().strip() in printed
    assert OPTIMISTIC not in printed
    assert (tmp_path / "out" / "second.png").stat().st_size > 5000


def test_every_prompt_is_left_out_in_turn_without_fitting_again() -> None:
    texts = [text for name in NAMES for text in tiny.sentences(name, 10)][5:]  # of one domain fewer
    labels = torch.arange(3).repeat_interleave(10)[5:]
    X = Class("words", encode=WordEncoder()).encode(texts)
    rows = torch.cat([X, torch.ones(25, 1)], dim=1)
    found = fitting.left_out(rows, labels, 3, 0.1)
    w = torch.tensor([1 / 5] * 5 + [1 / 10] * 20).double()
    penalty = 0.1 * (w @ rows.square())[:-1].mean() * torch.eye(rows.shape[1])
    for i in range(25):  # by fitting again
        kept = torch.arange(25) != i
        weighted = rows[kept].T * w[kept]
        W = torch.linalg.solve(weighted @ rows[kept] + penalty, weighted @ torch.eye(3).double()[labels[kept]])
        torch.testing.assert_close(found[i], rows[i] @ W, atol=1e-9, rtol=0)


def test_the_choice_sees_prompts_left_out_and_the_fit_sees_all() -> None:
    texts = [text for name in NAMES for text in tiny.sentences(name, 10)]
    labels = torch.arange(3).repeat_interleave(10)
    opinion = Class("words", encode=WordEncoder())
    X = opinion.encode(texts)
    q = fitting.choose(opinion, X, labels, NAMES)
    rows = opinion.rows(X)
    right = {
        value: (fitting.left_out(rows, labels, 3, value).argmax(dim=1) == labels).sum() for value in fitting.LAMBDAS
    }
    assert right[opinion.regularization] == max(right.values())
    logits = fitting.left_out(rows, labels, 3, opinion.regularization)
    torch.testing.assert_close(q, probabilities(logits, **opinion.calibration))
    alone = Class("words", encode=WordEncoder(), regularization=opinion.regularization)
    for i, name in enumerate(NAMES):
        alone.add_expert(name, [text for text, label in zip(texts, labels.tolist(), strict=True) if label == i])
    torch.testing.assert_close(alone.logits(X, NAMES), opinion.logits(X, NAMES), atol=1e-12, rtol=0)


def test_without_other_rows_it_says_that_they_are_the_routers_own(
    folder: Path, json_lines: Path, encoder: WordEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--data", json_lines, "--max-train-per-domain", 10, "--encoder", "org/words") == 0
    printed = capsys.readouterr().out
    assert "On 30 prompts" in printed
    assert OPTIMISTIC in printed
    pasted = printed[printed.index("pipeline(") :].splitlines()[0]
    assert ast.literal_eval(ast.parse(pasted, mode="eval").body.keywords[0].value) == str(folder)
    assert SecondOpinion.from_pretrained(folder, "second").encoder == "org/words"
    assert len(encoder.texts) == 30 + 3  # and the probe, to take it down and to compare, and one to see that it works


def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    folder: Path, json_lines: Path, encoder: WordEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"text": "court", "domain": "law"}) + "\n")
    refused = {
        "no folder of a router": ["org/router", "--data", json_lines],
        "at least 0": [folder, "--data", json_lines, "--max-train-per-domain", -1],
        "fewer than two prompts": [folder, "--data", one],
        "--test-data": [folder, "--data", json_lines, "--test-where", "source=c"],
    }
    for message, arguments in refused.items():
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    assert set(encoder.texts) <= {PROBE, "a prompt"}
    assert not (folder / "second").exists()


def test_a_missing_encoder_is_said_before_anything_is_read(
    folder: Path, json_lines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ir3de.second_opinion_ir3de._load_encoder", _missing)
    monkeypatch.setattr("ir3de.scripts.second.read_rows", lambda _: pytest.fail("read"))
    assert run(folder, "--data", json_lines) == 2
    assert "no sentence-transformers" in capsys.readouterr().err


def test_without_matplotlib_there_is_a_report_and_no_plot(
    folder: Path,
    json_lines: Path,
    encoder: WordEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(sys.modules, "ir3de.scripts.reports.second_plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(folder, "--data", json_lines, "--output", tmp_path / "out") == 0
    assert "No plots: they need matplotlib" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["second.md"]


# `ir3de add` and `remove` where there is one.


def test_an_expert_that_joins_with_text_joins_the_second_opinion_too(
    folder: Path, json_lines: Path, encoder: WordEncoder, tmp_path: Path
) -> None:
    assert run(folder, "--data", json_lines) == 0
    art = tmp_path / "art.jsonl"
    art.write_text("".join(json.dumps({"text": f"root of contract {i} python"}) + "\n" for i in range(8)))
    assert main(["add", str(folder), "art", "--data", str(art)]) == 0
    opinion = IR3DEModel.from_pretrained(folder).second_opinion
    assert sorted(opinion.statistics) == ["art", *NAMES]
    assert opinion.statistics["art"].rows("prompts") == 8
    assert main(["remove", str(folder), "law"]) == 0
    assert sorted(path.stem for path in (folder / "second/statistics").iterdir()) == ["art", "code", "math"]


def test_without_the_encoder_an_expert_joins_the_router_alone(
    folder: Path, json_lines: Path, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run(folder, "--data", json_lines) == 0
    monkeypatch.setattr("ir3de.second_opinion_ir3de._load_encoder", _missing)
    with pytest.warns(UserWarning, match=r"knows nothing of \['art'\]"):
        assert main(["add", str(folder), "art", "--data", str(json_lines), "--where", "domain=law"]) == 0
    assert "Not added to the second opinion: no sentence-transformers" in capsys.readouterr().err
    model = IR3DEModel.from_pretrained(folder)
    assert "art" in model.config.expert_names
    assert sorted(model.second_opinion.statistics) == NAMES


def test_the_commands_ask_where_they_are_told_to(
    folder: Path, json_lines: Path, encoder: WordEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--data", json_lines) == 0
    encoder.texts = []
    assert main(["route", str(folder), UNSURE[0]]) == 0
    assert encoder.texts == []
    assert main(["route", str(folder), UNSURE[0], "--second-opinion"]) == 0
    assert encoder.texts[-1] == UNSURE[0]
    assert capsys.readouterr().out.count("(with the second opinion)") == 1
    router = load(str(folder), second_opinion=True).router
    record = router(UNSURE[0], generate=False)
    assert "with the second opinion" in views.route(record, Palette().having(NAMES))
    assert "second opinion" not in views.route(
        router(UNSURE[0], generate=False, second_below=0), Palette().having(NAMES)
    )


def test_a_server_that_is_to_ask_it_starts_only_with_its_encoder(
    folder: Path, json_lines: Path, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(folder, "--data", json_lines) == 0
    assert make_application(Service(str(folder), second_opinion=True, log=False))
    monkeypatch.setattr("ir3de.second_opinion_ir3de._load_encoder", _missing)
    assert make_application(Service(str(folder), log=False))
    with pytest.raises(ImportError, match="no sentence-transformers"):
        make_application(Service(str(folder), second_opinion=True, log=False))


def _missing(name: str, revision: str | None) -> Any:
    raise ImportError("no sentence-transformers")


def test_a_fit_makes_one_too_and_says_what_it_gives(
    source: str, json_lines: Path, encoder: WordEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "--data", str(json_lines), "--embeddings", source, "--variant", "prompt", "--feature-map", "unit"]
    assert main([*fit, "--output", str(tmp_path / "alone")]) == 0
    assert "With few rows try --second" in capsys.readouterr().out
    assert main([*fit, "--output", str(tmp_path / "both"), "--second"]) == 0
    printed = capsys.readouterr().out
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    alone = float(next(line for line in printed.splitlines() if line.startswith("| 0 |")).split("|")[3])
    assert "On 120 prompts:" in printed
    assert alone == pytest.approx(100 * config["evaluation"]["macro_accuracy"], abs=0.006), "on the same held-out rows"
    assert "With few rows" not in printed
    opinion = SecondOpinion.from_pretrained(tmp_path / "both", "second", encode=encoder)
    assert {name: domain.rows("prompts") for name, domain in opinion.statistics.items()} == dict.fromkeys(NAMES, 40)
    assert opinion.encoder == MINILM
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("alone", "both")]
    assert weights[0] == weights[1]


def test_a_fit_to_few_rows_says_what_a_second_opinion_would_give(
    source: str,
    json_lines: Path,
    encoder: WordEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ir3de.scripts.routers.encoders.encoder_at_hand", lambda: "at hand")
    fit = ["fit", "--data", str(json_lines), "--embeddings", source, "--variant", "all", "--num-votes", "1"]
    assert main([*fit, "--output", str(tmp_path / "alone")]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert main([*fit, "--output", str(tmp_path / "both"), "--second"]) == 0
    table = {
        line.split("|")[1].strip(): line.split("|")[3] for line in capsys.readouterr().out.splitlines() if "|" in line
    }
    said = f"macro accuracy {float(table['0.9']):.1f} % instead of {float(table['0']):.1f} %"
    assert f"on 120 held-out rows {said}" in last
    assert not (tmp_path / "alone" / "second").exists(), "it is only offered"


@pytest.mark.parametrize(
    ("gain", "said"), [(0.1, "Try `ir3de second r --data"), (0.005, "does not give more for sure")]
)
def test_a_second_opinion_is_offered_where_it_gives_more_for_sure(gain: float, said: str) -> None:
    without, with_it = fitting.AtBound(0, 0, 0.7), fitting.AtBound(0.9, 0.5, 0.7 + gain)
    assert said in describe_offer(without, with_it, 100, 0.02, "r")


@pytest.mark.parametrize("broken", [True, False])
def test_without_an_encoder_or_with_much_text_a_fit_only_points_to_it(
    broken: bool,
    source: str,
    json_lines: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ir3de.second_opinion_ir3de._load_encoder", _missing)
    monkeypatch.setattr("ir3de.scripts.routers.encoders.encoder_at_hand", lambda: "broken")
    if not broken:
        monkeypatch.setattr("ir3de.scripts.fit.OFFER_MOST_CHARACTERS", 100)
        monkeypatch.setattr("ir3de.scripts.fitting.second.worth_a_try", lambda *_: pytest.fail("tried"))
    fit = ["fit", "--data", str(json_lines), "--embeddings", source, "--variant", "all"]
    assert main([*fit, "--output", str(tmp_path / "router")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("With few rows try --second")


def test_an_encoder_that_cannot_be_had_is_said_before_a_fit(
    source: str, json_lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str, revision: str | None) -> Any:
        raise OSError("no such encoder")

    monkeypatch.setattr("ir3de.second_opinion_ir3de._load_encoder", absent)
    monkeypatch.setattr("ir3de.scripts.fitting.fit.fit_router", lambda *_: pytest.fail("fitted"))
    fit = ["fit", "--data", str(json_lines), "--embeddings", source, "--output", str(tmp_path / "both"), "--second"]
    assert main(fit) == 2
    assert "no such encoder" in capsys.readouterr().err
    assert main([*fit[:1], *fit[3:], "--outcomes", "x.jsonl"]) == 2
    assert "--second takes the rows of --data alone" in capsys.readouterr().err
