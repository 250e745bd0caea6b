"""`ir3de train-experts`: adapters that are best in their own domain, the same again, resumed where they stopped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ir3de import IR3DERoutingPipeline
from ir3de.names_ir3de import file_name
from ir3de.scripts import cli
from ir3de.scripts.fitting import adapters

from . import tiny


def train(source: str, data: Path, output: Path, *more: str) -> int:
    """Trains adapters of the tiny world."""
    options = ["--data", str(data), "--model", source, "--base-name", "org/base", "--output", str(output)]
    sizes = ["--block", "16", "--tokens", "256", "--held-out-tokens", "48", "--rank", "4", "--epochs", "4"]
    return cli.main(["train-experts", *options, *sizes, "--learning-rate", "0.05", *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A base, labelled text, and adapters trained on it."""
    base = tiny.expert(tmp_path_factory.mktemp("base"), seed=5, chat=False)
    folder = tmp_path_factory.mktemp("training")
    data, output = folder / "train.jsonl", folder / "experts"
    rows = [{"text": text, "domain": domain} for domain in tiny.DOMAINS for text in tiny.sentences(domain, 60)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert train(base, data, output) == 0
    return base, data, output


def test_each_adapter_is_best_in_its_own_domain(trained: tuple[str, Path, Path]) -> None:
    table = json.loads((trained[2] / adapters.PERPLEXITY).read_text())
    assert list(table) == ["base", *tiny.DOMAINS]
    for domain in tiny.DOMAINS:
        column = {name: row[domain] for name, row in table.items()}
        assert min(column, key=column.__getitem__) == domain
        assert column[domain] < 0.92 * column["base"]
    assert "| law |" in adapters.describe(table)


def test_an_adapter_is_small_names_its_base_and_answers(trained: tuple[str, Path, Path]) -> None:
    base, _, output = trained
    for domain in tiny.DOMAINS:
        weights = load_file(output / domain / "adapter_model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.float16}
        config = json.loads((output / domain / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "org/base"
        assert base not in json.dumps(config)
    assert not (output / ".checkpoints").exists()
    specs: dict[str, dict[str, Any]] = {
        domain: {"model": base, "adapter": str(output / domain)} for domain in tiny.DOMAINS
    }
    pipe = IR3DERoutingPipeline(tiny.router(specs), device="cpu")
    assert pipe("the court and a judge", on_error="raise", max_new_tokens=4)["generated_text"]


def test_what_is_there_is_kept_and_what_is_missing_is_trained_the_same(
    trained: tuple[str, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, data, output = trained
    file = output / "math" / "adapter_model.safetensors"
    before = load_file(file)
    (output / "math" / "adapter_config.json").unlink()
    assert train(base, data, output) == 0
    assert "law: trained before" in capsys.readouterr().out
    after = load_file(file)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_run_that_was_cut_off_goes_on_from_its_checkpoint(
    trained: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data, output = trained
    steps: list[int] = []
    step = adapters.Trainer.training_step

    def cut_off(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        if len(steps) == 13:
            raise OSError("the power is out")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(adapters.Trainer, "training_step", cut_off)
    assert train(base, data, tmp_path / "out") == 2
    assert not (tmp_path / "out" / "code" / "adapter_config.json").exists()
    assert train(base, data, tmp_path / "out") == 0
    assert len(steps) == 13 + 3 * 16 - 10, "it went on from step 10"
    before, after = (load_file(folder / "code" / "adapter_model.safetensors") for folder in (output, tmp_path / "out"))
    assert all(torch.allclose(before[key], after[key], atol=1e-3) for key in before)


def test_other_options_for_the_same_folder_are_refused(
    trained: tuple[str, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, data, output = trained
    assert train(base, data, output, "--seed", "1") == 2
    assert "trained with other options (seed differ)" in capsys.readouterr().err


def test_a_domain_with_too_little_text_is_named(
    trained: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, data, _ = trained
    assert train(base, data, tmp_path / "none", "--block", "4096") == 2
    assert "The training text of 'code' has fewer than 4096 tokens" in capsys.readouterr().err


NAMES = {"code": "Refund not showing up?", "law": "a.b", "math": "keys", "base": "../法律 & co"}


def test_domains_are_named_as_people_write_them(
    trained: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data, output = trained[0], tmp_path / "train.jsonl", tmp_path / "out" / "experts"
    rows = [json.loads(line) for line in trained[1].read_text().splitlines()]
    named = [{**row, "domain": NAMES[row["domain"]]} for row in rows]
    named += [{**row, "domain": NAMES["base"]} for row in rows if row["domain"] == "law"]
    data.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "save_adapter", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        assert train(base, data, output, "--epochs", "3") == 2, "checkpoints were made"
    assert train(base, data, output, "--epochs", "3") == 0
    assert [path.name for path in output.parent.iterdir()] == ["experts"], "nothing was written elsewhere"
    folders = {name: output / file_name(name) for name in NAMES.values()}
    assert {path.name for path in output.iterdir() if path.is_dir()} == {path.name for path in folders.values()}
    table = json.loads((output / adapters.PERPLEXITY).read_text(encoding="utf-8"))
    for name in (NAMES["code"], NAMES["math"]):
        column = {other: row[name] for other, row in table.items()}
        assert min(column, key=column.__getitem__) == name
    for key in ("code", "law", "math"):
        again = load_file(folders[NAMES[key]] / "adapter_model.safetensors")
        assert again.keys() == load_file(trained[2] / key / "adapter_model.safetensors").keys(), "whatever the name"
    specs = {name: {"model": base, "adapter": str(folders[NAMES[name]])} for name in tiny.DOMAINS}
    made = tiny.router(specs)
    pipe = IR3DERoutingPipeline(made, device="cpu")
    for text in ("the court and a judge", "loop over a list", "the cube of a root"):
        assert pipe(text, on_error="raise", max_new_tokens=4)["generated_text"]


def test_held_out_rows_may_be_named(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in trained[1].read_text().splitlines()]
    for index, row in enumerate(rows):
        row["split"] = "test" if index % 5 == 0 else "train"
    data = tmp_path / "split.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    more = ["--where", "split=train", "--held-out-where", "split=test", "--epochs", "1"]
    assert train(trained[0], data, tmp_path / "out", *more) == 0
