"""The command line: fit, route and evaluate."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ir3de import IR3DEModel
from ir3de.configuration_ir3de import VARIANTS, IR3DEConfig
from ir3de.scripts.cli import main
from ir3de.scripts.data.rows import Row
from ir3de.scripts.data.spool import Spool
from ir3de.scripts.fitting.holding_out import splits
from ir3de.scripts.fitting.search import Candidate, best_of, search

from . import tiny

Fit = Callable[..., Path]
FAST = ("--variant", "all", "--regularization", "0.01")  # nothing is left to choose


@pytest.fixture
def fit(source: str, json_lines: Path, tmp_path: Path) -> Fit:
    """Fits a router with these options, which must succeed, and returns its folder."""

    def run(*options: str, data: Path = json_lines, output: str = "router") -> Path:
        folder = tmp_path / output
        arguments = ["--data", str(data), "--embeddings", source, "--output", str(folder), "--num-features", "16"]
        assert main(["fit", *arguments, *options]) == 0
        return folder

    return run


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def failure(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """What a command says that must fail: one line, exit code 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ir3de ")]
    return line


# fit


def test_it_says_whose_experts_only_route_and_how_to_let_them_answer(
    fit: Fit, source: str, json_lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "named.jsonl"
    data.write_text(json_lines.read_text().replace('"code"', '"a code"'))
    folder = fit(*FAST, data=data)
    said = f"Its experts only route. To let one answer: ir3de experts {folder} --set 'a code' model=ORG/LLM"
    assert said in capsys.readouterr().out.splitlines()
    assert main(["experts", str(folder), "--set", "a code", f"model={source}"]) == 0
    experts = tmp_path / "experts.yaml"
    specs = [{"name": name, "model": source} for name in tiny.DOMAINS]
    experts.write_text(json.dumps([{"name": "code"}, *specs[1:]]))
    fit(*FAST, "--experts", str(experts))
    assert "1 of its experts only route. To let one answer: ir3de experts" in capsys.readouterr().out
    experts.write_text(json.dumps(specs))
    samples = tmp_path / "sample.jsonl"
    samples.write_text(json.dumps({"text": "a prompt", "domain": "law"}))
    fit(*FAST, "--experts", str(experts), "--samples", str(samples))
    said = capsys.readouterr().out
    assert "only route" not in said
    assert "holds the text of 1 prompt, which" in said


def test_a_fitted_router_routes(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit("--variant", "top-k", "--num-votes", "2")
    assert "ir3de route" in capsys.readouterr().out
    assert main(["route", str(folder), "debug the python function", "the court and a judge"]) == 0
    shown = capsys.readouterr().out
    assert "debug the python function\n  -> code" in shown
    assert "the court and a judge\n  -> law" in shown


def test_the_saved_router_is_fitted_on_all_rows(fit: Fit, json_lines: Path) -> None:
    folder = fit(*FAST)
    rows = [json.loads(line) for line in json_lines.read_text().splitlines()]
    tokens = {name: sum(len(r["text"].split()) for r in rows if r["domain"] == name) for name in tiny.DOMAINS}
    model = IR3DEModel.from_pretrained(folder)
    assert {name: domain.rows("tokens") for name, domain in model.statistics.items()} == tokens
    by_hand = {name: tiny.statistics(r["text"] for r in rows if r["domain"] == name) for name in tiny.DOMAINS}
    W = model.token_router.weight.clone()
    model.fit(by_hand)
    torch.testing.assert_close(model.token_router.weight, W, rtol=1e-6, atol=1e-7)


def test_gzip_gives_the_same_router(fit: Fit, json_lines: Path, tmp_path: Path) -> None:
    zipped = tmp_path / "train.jsonl.gz"
    zipped.write_bytes(gzip.compress(json_lines.read_bytes()))
    assert weights(fit(*FAST)) == weights(fit(*FAST, data=zipped, output="zipped"))


def test_the_choice_is_made_on_held_out_rows_and_written_down(fit: Fit) -> None:
    folder = fit()
    chosen = config(folder)
    evaluation = chosen["evaluation"]
    assert chosen["variant"] in VARIANTS
    assert {name: domain["prompts"] for name, domain in evaluation["domains"].items()} == dict.fromkeys(
        tiny.DOMAINS, 40
    )
    assert evaluation["prompts"] == 120
    recalls = [domain["recall"] for domain in evaluation["domains"].values()]
    assert evaluation["macro_accuracy"] == pytest.approx(sum(recalls) / 3)
    assert evaluation["macro_accuracy"] > 0.9
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"variant `{chosen['variant']}`" in card
    assert f"Macro accuracy: **{100 * evaluation['macro_accuracy']:.1f} %**" in card
    assert evaluation["scripts"] == {"latin": 1.0}
    assert "Scripts of the training prompts: latin 100 %." in card


@pytest.mark.parametrize(
    ("rows", "folds", "each"), [(2, 2, 1), (7, 5, 1), (300, 4, 60), (1000, 1, 200), (4000, 1, 400)]
)
def test_few_prompts_are_held_out_in_turn(rows: int, folds: int, each: int, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for domain in ("law", "math"):
        spool._append(domain, [[number] for number in range(rows)])
    made = list(splits(spool))
    assert len(made) == folds
    for split in made:
        for sample, held_out in zip(split.sample.values(), split.held_out.values(), strict=True):
            assert not set(sample.token_ids.tolist()) & set(held_out.token_ids.tolist())
            assert len(sample.lengths) == min(rows - len(held_out.lengths), 1600) or rows == 4000
    held_out = torch.cat([split.held_out["law"].token_ids for split in made])
    assert len(held_out.unique()) == len(held_out), "no prompt is held out twice"
    assert len(held_out) >= folds * each


def test_where_domains_are_many_discriminant_analysis_is_tried(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ir3de.scripts.fitting.fit.RFF_MOST_BYTES", 3 * 8 * 16**2 - 1)
    tried: list[Candidate] = []

    def best(candidates: list[Candidate], *_: Any) -> Candidate:
        tried.extend(candidates)
        return max(candidates, key=lambda c: (c.config["discriminant"], c.macro_accuracy))

    monkeypatch.setattr("ir3de.scripts.fitting.fit.best_of", best)
    folder = fit()
    assert {(c.config["feature_map"], c.config["variant"]) for c in tried} == {("unit", "prompt")}
    assert {c.config["discriminant"] for c in tried} == {False, True}
    assert min(tried, key=lambda c: c.simplicity).config["discriminant"], "ridge regression is simpler"
    chosen = config(folder)
    assert (chosen["discriminant"], chosen["lexical_smoothing"]) == (True, 0.03)
    assert chosen["evaluation"]["macro_accuracy"] > 0.9
    text = tiny.sentences("law", 1, seed=9)
    model = IR3DEModel.from_pretrained(folder)
    assert model.prompt_router.bias is not None
    assert model.config.domain_names[int(model.recognise(text).argmax())] == "law"


@pytest.mark.parametrize("most", [0, 4 << 30], ids=["many", "few"])
@pytest.mark.parametrize("option", ["--discriminant", "--no-discriminant"])
def test_discriminant_analysis_is_taken_or_left_by_hand(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, option: str, most: int
) -> None:
    monkeypatch.setattr("ir3de.scripts.fitting.fit.RFF_MOST_BYTES", most)
    folder = fit(option, *([] if most == 0 else ["--variant", "prompt", "--feature-map", "unit"]))
    assert config(folder)["discriminant"] is (option == "--discriminant")
    model = IR3DEModel.from_pretrained(folder)
    assert (model.prompt_router.bias is not None) == (option == "--discriminant")
    assert model.config.evaluation["macro_accuracy"] > 0.9


def candidate(right: str, noise: float) -> Candidate:
    """One that has the prompts of one domain right that are marked 1."""
    scores = torch.tensor([[float(mark), 0.5] for mark in right])
    fields = {"variant": "prompt", "feature_map": "unit", "prompt_regularization": 0.1, "token_noise": noise}
    return Candidate(fields, {"law": scores, "math": torch.tensor([[0.0, 1.0]])})


def test_a_simpler_choice_is_level_by_the_prompts_that_one_alone_has_right() -> None:
    best, simpler = candidate("11111111" + "00", 0), candidate("11111110" + "00", 1)
    swapped = candidate("00011111" + "11", 1)
    assert best_of([best, simpler]) is simpler, "one prompt may be chance"
    assert best_of([best, simpler], 0) is best
    assert best_of([best, candidate("11111000" + "00", 1)]) is best, "three that it alone has are not"
    assert best_of([candidate("11111111" + "10", 0), swapped]) is swapped, "as many each way may be"


def test_no_naive_bayes_is_simpler_than_some_and_much_noise_than_little() -> None:
    made = [candidate("1", noise) for noise in (0, 3, 30)]
    made += [Candidate({**each.config, "lexical_weight": 0.1}, each.scores, each.scores) for each in made]
    made.append(Candidate({**made[2].config, "feature_map": "rff"}, made[2].scores))
    order = sorted(range(7), key=lambda i: made[i].simplicity)
    assert order == [6, 3, 4, 5, 0, 1, 2]


def test_what_half_of_the_random_features_chose_is_measured_with_all(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def spy(*arguments: Any, **grids: Any) -> list[Candidate]:
        tried.append((arguments[4:], grids, search(*arguments, **grids)))
        return tried[-1][2]

    monkeypatch.setattr("ir3de.scripts.fitting.fit.search", spy)
    chosen = config(fit("--variant", "prompt", "--feature-map", "rff"))
    (half, _, candidates), (all_of_them, grids, (measured,)) = tried
    assert (half, all_of_them) == ((8,), ())
    assert measured.config in [each.config for each in candidates]
    assert grids["grids"].lambdas == [chosen["prompt_regularization"]]
    assert chosen["evaluation"]["macro_accuracy"] == measured.macro_accuracy
    assert chosen["num_features"] == 16


def test_lambda_means_the_same_for_any_number_of_random_features(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.fill(((Row(t, d)) for d in tiny.DOMAINS for t in tiny.sentences(d, 20)), tiny.tokenizer(), 100)
    made = IR3DEConfig(experts=[{"name": d} for d in tiny.DOMAINS], feature_map="rff", num_features=1024)
    by_number = [search(made, tiny.embeddings(), splits(spool), ["prompt"], number) for number in (None, 128)]
    found, few = ([each.config["prompt_regularization"] for each in candidates] for candidates in by_number)
    assert few == pytest.approx(found, rel=0.05)


def test_what_is_set_by_hand_is_not_chosen(fit: Fit, source: str) -> None:
    options = ["--variant", "top-k", "--num-votes", "3", "--regularization", "0.25", "--max-length", "7"]
    chosen = config(fit(*options, "--no-balance", "--no-bias", "--normalize-columns"))
    expected = {"variant": "top-k", "num_votes": 3, "regularization": 0.25, "max_length": 7}
    assert {key: chosen[key] for key in expected} == expected
    assert chosen["embedding_model"] == Path(source).name, "where a folder was on this machine is nobody's business"
    assert (chosen["balance"], chosen["bias"], chosen["normalize_columns"]) == (False, False, True)
    chosen = config(fit("--variant", "all", output="other"))
    assert chosen["variant"] == "all"


def test_experts_come_from_a_list(fit: Fit, tmp_path: Path) -> None:
    path = tmp_path / "experts.yaml"
    path.write_text("- name: math\n  model: org/math\n  generation: {max_new_tokens: 9}\n- name: code\n- name: law\n")
    experts = config(fit(*FAST, "--experts", str(path)))["experts"]
    assert experts == [
        {"name": "code"},
        {"name": "law"},
        {"name": "math", "model": "org/math", "generation": {"max_new_tokens": 9}},
    ]


def test_where_keeps_some_rows(fit: Fit, json_lines: Path, tmp_path: Path) -> None:
    rows = json_lines.read_text().splitlines(keepends=True)
    only = tmp_path / "only.jsonl"
    only.write_text("".join(row for row in rows if '"source": "a"' in row))
    assert weights(fit(*FAST, "--where", "source=a")) == weights(fit(*FAST, data=only, output="only"))
    assert weights(fit(*FAST, "--where", "source!=b", output="not")) == weights(fit(*FAST, data=only, output="only"))
    names = [expert["name"] for expert in config(fit(*FAST, "--where", "domain!=law", output="two"))["experts"]]
    assert names == ["code", "math"]


def test_columns_may_have_other_names_and_files_may_be_several(fit: Fit, json_lines: Path, tmp_path: Path) -> None:
    rows = json_lines.read_text().replace('"text"', '"prompt"').replace('"domain"', '"label"').splitlines(True)
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("".join(rows[:50]) + "\n")
    second.write_text("".join(rows[50:]))
    columns = ["--text-column", "prompt", "--domain-column", "label"]
    assert weights(fit(*FAST)) == weights(fit(*FAST, "--data", str(second), *columns, data=first, output="several"))


# Bad input to fit

BAD_ROWS = {
    "broken JSON": ('{"text": "a", ', "not JSON"),
    "no object": ('["a", "law"]', "expected an object"),
    "no text": ('{"domain": "law"}', "expected text under 'text'"),
    "no domain": ('{"text": "a"}', "expected text under 'domain'"),
    "empty text": ('{"text": " ", "domain": "law"}', "expected text under 'text'"),
    "text not a string": ('{"text": 3, "domain": "law"}', "expected text under 'text', but it is 3"),
    "domain not a string": ('{"text": "a", "domain": null}', "expected text under 'domain', but it is None"),
    "not UTF-8": (b"\xff\xfe", "UTF-8"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_bad_row_is_named_by_file_and_line(
    row: str | bytes, message: str, suffix: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = b'{"text": "court", "domain": "law"}\n\n' + (row if isinstance(row, bytes) else row.encode()) + b"\n"
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    line = failure(capsys, "fit", "--data", path, "--embeddings", source, "--output", tmp_path / "router")
    assert f"{path}, line 3" in line
    assert message in line
    assert not (tmp_path / "router").exists()


LAW, MATH = '{"text": "court jury", "domain": "law"}\n', '{"text": "cube", "domain": "math"}\n'
BAD_DATA = {
    "no rows": ("", "There is no row in bad.jsonl"),
    "one domain": (LAW * 5, r"at least two domains.*'law'"),
    "swapped columns": (LAW + MATH, "2 of 2 domains have one: are the columns swapped?"),
    "a domain with one row": (LAW * 5 + MATH, "Domain 'math' has a single row"),
    "names that do not print": (
        (LAW + MATH.replace("math", "a\\u0007b") + MATH.replace("math", "c" * 101)) * 5,
        r"character 2 is a control character .* it has 101 characters",
    ),
    "names that differ in case": ((LAW + LAW.replace("law", "Law")) * 5, "Two domains are named"),
}


@pytest.mark.parametrize(("text", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_data_that_make_no_router_are_refused(
    text: str, message: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    line = failure(capsys, "fit", "--data", path, "--embeddings", source, "--output", tmp_path / "router")
    assert re.search(message, line)


BAD_OPTIONS = {
    "k": (["--num-votes", "0"], "`num_votes`"),
    "lambda": (["--regularization", "0"], "`regularization`"),
    "length": (["--max-length", "0"], "`max_length`"),
    "no file": (["--data", "absent.jsonl"], "no file absent.jsonl"),
    "condition": (["--where", "source"], "KEY=VALUE"),
    "nothing left": (["--where", "source=z"], "at least two domains"),
    "no folder": (["--embeddings", "./absent"], "There is no folder ./absent"),
    "no embeddings": (["--embeddings", "absent/llm"], "no folder absent/llm, and it cannot be loaded from the Hub"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_end_with_one_line(
    options: list[str],
    message: str,
    source: str,
    json_lines: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "router"
    line = failure(capsys, "fit", "--data", json_lines, "--embeddings", source, "--output", output, *options)
    assert message in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ("- name: law\n- name: math\n", "No expert is named after ['code']. Each domain needs one expert"),
        ("- name: law\n- name: law\n", "Two experts are named"),
        ("name: law\n", "expected a list of experts"),
        ("- {name: law, modle: org/law}\n", "Did you mean 'model'"),
        ("- name: [law\n", "experts.yaml"),
    ],
)
def test_a_bad_list_of_experts_is_refused(
    experts: str, message: str, source: str, json_lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "experts.yaml"
    path.write_text(experts)
    fit = ["fit", "--data", json_lines, "--embeddings", source, "--output", tmp_path / "router", "--experts", path]
    assert message in failure(capsys, *fit)


def test_a_truncated_gzip_is_refused(
    source: str, json_lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines.read_bytes())[:-40])
    line = failure(capsys, "fit", "--data", path, "--embeddings", source, "--output", tmp_path / "router")
    assert str(path) in line


def test_an_unknown_variant_is_refused(fit: Fit) -> None:
    with pytest.raises(SystemExit) as caught:
        fit("--variant", "some")
    assert caught.value.code == 2


# route and evaluate


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny.router(num_votes=2).save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_route_prints_records_as_json(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", folder, "--json", "--variant", "all", "court", "prime root"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["prompt"], record["expert"]) for record in records] == [("court", "law"), ("prime root", "math")]
    assert all(token["counted"] for token in records[1]["tokens"])


def test_route_tells_what_decided(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", folder, "the court and judge"]) == 0
    assert {"court", "judge"} == set(capsys.readouterr().out.split("decided by: ")[1].split())


def test_route_refuses_bad_input(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Prompt 1 is empty" in failure(capsys, "route", folder, "court", "")
    assert "`num_votes`" in failure(capsys, "route", folder, "court", "--num-votes", "0")
    assert "There is no folder absent/router" in failure(capsys, "route", "absent/router", "court")
    assert "There is no folder" not in failure(capsys, "route", folder, "court", "--num-votes", "0")
    near = failure(capsys, "route", f"{folder}s", "court")
    assert f"There is no folder {folder}s (did you mean {folder}?), and no router of this name" in near


def test_evaluate_counts_routes(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "test.jsonl"
    rows = [("court", "law"), ("judge", "law"), ("prime", "law"), ("loop", "code")]
    path.write_text("".join(json.dumps({"text": text, "domain": domain}) + "\n" for text, domain in rows))
    assert main(["evaluate", folder, "--data", str(path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["confusion"] == {
        "code": {"code": 1, "law": 0, "math": 0},
        "law": {"code": 0, "law": 2, "math": 1},
    }
    assert figures["macro_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["micro_accuracy"] == 0.75
    assert figures["domains"]["law"] == {"recall": pytest.approx(2 / 3), "prompts": 3}
    assert main(["evaluate", folder, "--data", str(path)]) == 0
    assert "4 prompts: macro accuracy 83.33 %, micro 75.00 %" in capsys.readouterr().out


def test_evaluate_refuses_a_domain_without_an_expert(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"text": "paint", "domain": "art"}\n')
    assert "'art'" in failure(capsys, "evaluate", folder, "--data", path)
    path.write_text("")
    assert "There is no row" in failure(capsys, "evaluate", folder, "--data", path)


def test_an_expert_without_a_domain_is_refused_before_rows_are_tokenized(
    json_lines: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Spool, "fill", lambda *_: pytest.fail("long work began"))
    listed = tmp_path / "experts.yaml"
    listed.write_text(json.dumps([{"name": name} for name in ("art", *tiny.DOMAINS)]))
    fit = ["--data", str(json_lines), "--embeddings", source, "--output", str(tmp_path / "made")]
    line = failure(capsys, "fit", *fit, "--experts", str(listed))
    assert "No domain is named as the experts ['art']" in line
    listed.write_text('[{"name": "law"}]')
    line = failure(capsys, "fit", *fit, "--experts", str(listed))
    assert "No expert is named after ['code', 'math']. Each domain needs one expert of its name" in line
