"""Commands that take outcomes: fit, discover, outcomes and benchmark."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ir3de import IR3DEModel, IR3DERoutingPipeline
from ir3de.scripts import cli
from ir3de.scripts.data.judged import Judged
from ir3de.scripts.fitting.discovery import clusters, discover, named
from ir3de.scripts.fitting.outcomes import JudgedFile
from ir3de.scripts.reports.choices import shown_outcomes
from ir3de.scripts.reports.words import ROOM, width_of

from . import tiny

FAST = ["--variant", "prompt", "--feature-map", "unit"]  # what is chosen is not the question here
GOOD = {"open/general 1": {"law": 0.9, "math": 0.2, "code": 0.2}, "small": {"law": 0.1, "math": 0.9, "code": 0.8}}


def rows(number: int = 40, labelled: bool = True) -> list[dict[str, Any]]:
    """Outcomes of two models, half of them to test on."""
    draw, made = np.random.default_rng(0), []
    for domain in tiny.DOMAINS:
        for index, text in enumerate(tiny.sentences(domain, number, seed=5)):
            scores = {name: float(draw.random() < chance[domain]) for name, chance in GOOD.items()}
            row: dict[str, Any] = {"text": text, "scores": scores, "split": ("train", "test")[index % 2]}
            row["costs"] = {"open/general 1": 4.0, "small": 1.0}
            made.append({**row, "source": f"{domain}/part"} if labelled else row)
    return made


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A file of outcomes."""
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return path


def chosen(folder: Path, domain: str) -> set[str | None]:
    """Who answers a domain's prompts."""
    pipe = IR3DERoutingPipeline(IR3DEModel.from_pretrained(folder), device="cpu", generate=False)
    return {record["expert"] for record in pipe(tiny.sentences(domain, 8, seed=77))}


def test_a_router_is_fitted_from_outcomes_alone(
    source: str, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "router"
    assert cli.main(["fit", *FAST, "--embeddings", source, "--outcomes", str(judged), "--output", str(output)]) == 0
    assert "2 experts and 3 domains" in capsys.readouterr().out
    model = IR3DEModel.from_pretrained(output)
    assert model.config.domain_names == ["code", "law", "math"]
    assert model.config.expert_names == ["open/general 1", "small"]
    assert chosen(output, "law") == {"open/general 1"}
    assert chosen(output, "math") == {"small"}
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "## Outcomes" in card
    assert "| law |" in card


def test_the_table_has_a_legend(source: str, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "router")
    assert cli.main(["fit", *FAST, "--embeddings", source, "--outcomes", str(judged), "--output", output]) == 0
    capsys.readouterr()
    assert cli.main(["outcomes", output]) == 0
    shown = capsys.readouterr().out
    assert "domain" in shown.split("\n")[0]
    assert "in brackets how many outcomes tell of it" in shown


def test_the_table_of_a_span_of_time(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "judged.jsonl"
    days = {0: "2026-03-01", 1: "2026-03-02", 2: None}
    made = [{**row, "day": days[place % 3]} for place, row in enumerate(rows(3))]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in made))
    output = str(tmp_path / "router")
    assert cli.main(["fit", *FAST, "--embeddings", source, "--outcomes", str(path), "--output", output]) == 0
    capsys.readouterr()
    assert cli.main(["outcomes", output, "--since", "2026-03-02"]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"\((\d+), ", shown) == ["1"] * 6, "of three a domain and expert"
    assert "Not counted: 2 contributions that have no day." in shown
    assert cli.main(["outcomes", output, "--since", "2026-03-03"]) == 0
    assert "no outcomes of 2026-03-03 or later" in capsys.readouterr().out
    assert cli.main(["outcomes", output, "--since", "yesterday"]) != 0
    said = capsys.readouterr().err
    assert said.count("such as 2026-11-28") == 1
    assert "--since takes a day such as 2026-11-28, got 'yesterday'" in said
    assert cli.main(["outcomes", output, str(path), "--since", "2026-03-02"]) != 0
    assert "goes with a router alone" in capsys.readouterr().err


def test_a_file_is_read_as_often_as_it_is_needed(judged: Path) -> None:
    file = JudgedFile.read(judged, "train")
    assert file.experts == ("open/general 1", "small")
    assert [row[0].text for row in file.rows()] == [row[0].text for row in file.rows()]
    assert {row[0].domain for row in file.rows()} == set(tiny.DOMAINS)
    assert {row[0].domain for row in replace(file, tells_domains=False).rows()} == {None}
    with pytest.raises(ValueError, match="no outcomes whose split is 'dev'"):
        JudgedFile.read(judged, "dev")


def test_domains_of_labelled_text_and_experts_of_outcomes(
    source: str, judged: Path, json_lines: Path, tmp_path: Path
) -> None:
    output = tmp_path / "router"
    options = ["--embeddings", source, "--output", str(output), "--outcomes", str(judged), "--outcomes-split", "train"]
    assert cli.main(["fit", *FAST, *options, "--data", str(json_lines)]) == 0
    model = IR3DEModel.from_pretrained(output)
    sums = model.outcomes.sums(model.config.domain_names, model.config.expert_names)
    assert (sums[..., 0] == 20 << 20).all()
    assert chosen(output, "law") == {"open/general 1"}


def test_domains_are_discovered_where_there_are_no_labels(source: str, tmp_path: Path) -> None:
    path, output = tmp_path / "judged.jsonl", tmp_path / "router"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(60, labelled=False)), encoding="utf-8")
    assert cli.main(["fit", "--embeddings", source, "--outcomes", str(path), "--output", str(output)]) == 2
    options = ["--embeddings", source, "--outcomes", str(path), "--output", str(output)]
    assert cli.main(["fit", *FAST, *options, "--discover", "3"]) == 0
    model = IR3DEModel.from_pretrained(output)
    assert len(model.config.domain_names) in (2, 3)
    words = {word for words in tiny.DOMAINS.values() for word in words}
    assert {part for name in model.config.domain_names for part in name.split("-")} & words
    assert "small" in chosen(output, "math")


def test_the_number_of_domains_is_chosen_by_outcomes(source: str) -> None:
    from ir3de.scripts.data.sources import load_source

    tokenizer, embeddings = load_source(source)
    made = rows(80, labelled=False)
    scores = np.array([[row["scores"][name] for name in GOOD] for row in made])
    data = Judged([row["text"] for row in made], [""] * len(made), scores, np.full_like(scores, np.nan))
    labels, tried = discover(data, tokenizer, embeddings)
    assert [each.number for each in tried] == [8, 16]
    assert 2 <= len(set(labels)) <= 16
    assert labels == discover(data, tokenizer, embeddings)[0]
    with pytest.raises(ValueError, match="at least 20 prompts"):
        discover(data.take(range(19)), tokenizer, embeddings, 2)


def test_clusters_that_are_small_join_the_nearest_and_names_are_told_apart() -> None:
    draw = np.random.default_rng(1)
    rows = np.concatenate([draw.normal(place, 0.01, (number, 2)) for place, number in ((0, 30), (1, 30), (0.9, 3))])
    labels = clusters(rows, 3)
    assert len(set(labels.tolist())) == 2
    assert len(set(labels[30:].tolist())) == 1
    names = named(["prove a prime"] * 30 + ["judge a court"] * 33, labels)
    assert names[0] == "prime-prove"
    assert names[-1] == "court-judge"
    assert len(set(named(["same words"] * 63, labels))) == 2


def test_outcomes_are_added_shown_and_taken_back(
    source: str, judged: Path, json_lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = tmp_path / "router"
    assert cli.main(["fit", *FAST, "--data", str(json_lines), "--embeddings", source, "--output", str(router)]) == 0
    assert cli.main(["outcomes", str(router), str(judged)]) == 2
    assert "no expert 'open/general 1'" in capsys.readouterr().err
    path = tmp_path / "named.jsonl"
    known = [{"text": t, "expert": "code", "score": 1.0, "cost": 2} for t in tiny.sentences("law", 60, seed=3)]
    known += [{**row, "expert": "law", "score": 0.1} for row in known]
    path.write_text("".join(json.dumps(row) + "\n" for row in known), encoding="utf-8")
    assert cli.main(["outcomes", str(router)]) == 0
    assert "no outcomes" in capsys.readouterr().out
    assert cli.main(["outcomes", str(router), str(path)]) == 0
    said = capsys.readouterr().out
    assert "\nlaw  " in said
    assert "law -> code" in said
    assert "## Outcomes" in (router / "README.md").read_text(encoding="utf-8")
    assert chosen(router, "law") == {"code"}
    assert cli.main(["outcomes", str(router), str(path)]) == 2
    assert "count twice" in capsys.readouterr().err
    assert cli.main(["outcomes", str(router), str(path), "--remove"]) == 0
    assert "No outcomes are left" in capsys.readouterr().out
    assert not list((router / "outcomes").glob("*.safetensors"))
    assert chosen(router, "law") == {"law"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give labelled text with --data, or outcomes"),
        (["--outcomes", "FILE", "--discover", "1"], "--discover takes"),
        (["--data", "DATA", "--discover", "auto"], "--discover makes domains of the prompts of --outcomes"),
        (["--outcomes", "FILE", "--outcomes-split", "dev"], "no outcomes whose split is 'dev'"),
        (["--outcomes", "FILE", "--experts", "EXPERTS"], "'open/general 1' was judged, but --experts lists"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    source: str,
    judged: Path,
    json_lines: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    experts = tmp_path / "experts.yaml"
    experts.write_text("- name: small\n  domains: [math]\n", encoding="utf-8")
    places = {"FILE": str(judged), "DATA": str(json_lines), "EXPERTS": str(experts)}
    given = [places.get(option, option) for option in options]
    assert cli.main(["fit", "--embeddings", source, "--output", str(tmp_path / "router"), *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "router").exists()


def test_experts_of_a_list_serve_domains_of_the_data(source: str, json_lines: Path, tmp_path: Path) -> None:
    experts, output = tmp_path / "experts.yaml", tmp_path / "router"
    experts.write_text("- name: words\n  domains: [law]\n- name: rest\n  domains: [code, math]\n", encoding="utf-8")
    options = ["--embeddings", source, "--output", str(output), "--experts", str(experts)]
    assert cli.main(["fit", *FAST, "--data", str(json_lines), *options]) == 0
    assert IR3DEModel.from_pretrained(output).config.domain_names == ["code", "law", "math"]
    assert chosen(output, "law") == {"words"}
    assert chosen(output, "math") == {"rest"}


def test_a_file_that_is_given_twice_is_told_as_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.router().save_pretrained(tmp_path / "router")
    file = tmp_path / "judged.jsonl"
    file.write_text(json.dumps({"text": "a court", "domain": "law", "scores": {"law": 1.0}}), encoding="utf-8")
    twice = [str(file), str(tmp_path / "router" / ".." / "judged.jsonl")]
    assert cli.main(["outcomes", str(tmp_path / "router"), *twice]) == 2
    assert f"{file} is given twice" in capsys.readouterr().err


def test_the_table_of_long_names_fits_a_terminal() -> None:
    names = [f"{kind} and everything else that people may ask of it" for kind in "ABCDEFGH"]
    model = tiny.router()
    for name in names:
        model.add_expert({"name": name, "domains": ["law"]})
    model.add_outcomes([{"text": "the court", "domain": "law", "scores": dict.fromkeys(names, 0.5)}])
    lines = shown_outcomes(model).splitlines()
    legend = lines.pop()
    assert legend.startswith("An expert's expected score")
    assert max(map(width_of, lines)) <= ROOM
    assert [line for line in lines if line.endswith(f"= {names[3]}")]
    assert len([line for line in lines if line.split()[1:2] == ["law"]]) > 1, "blocks follow each other"
