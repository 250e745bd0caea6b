"""`ir3de evaluate`: perplexity and its ratios by hand, the rows of the table, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from ir3de import IR3DEModel, IR3DERoutingPipeline
from ir3de.scripts import cli
from ir3de.scripts.cli import main
from ir3de.scripts.data.rows import Row
from ir3de.scripts.evaluate import LEAST, QUICK, _sizes
from ir3de.scripts.fitting.search import NUM_VOTES
from ir3de.scripts.metrics import accuracy, perplexity
from ir3de.scripts.metrics.accuracy import expected_accuracy, one_hot, routing_accuracy, second_accuracy
from ir3de.scripts.metrics.normalised import Losses, normalised, normalised_scores
from ir3de.scripts.reports.route import describe as describe_route
from ir3de.scripts.reports.rows import AVERAGE, Routes, describe_routes, fixed_rows
from ir3de.scripts.reports.words import ROOM, Labels, table, to_left, to_right, width_of
from ir3de.scripts.routers.average import average_experts

from . import tiny
from .test_second_opinion import WordEncoder, second

NAMES = list(tiny.DOMAINS)


class Table(torch.nn.Module):
    """A language model whose probability of a token depends on the token before it, written down as a table."""

    device = torch.device("cpu")
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.4, 0.4]])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.p.log()[input_ids])


def test_negative_log_likelihoods_by_hand() -> None:
    losses = perplexity.negative_log_likelihoods(Table(), [[0, 1, 2], [2, 1]])
    assert losses == pytest.approx([-math.log(0.25 * 0.8), -math.log(0.4)])


def test_padding_and_company_change_nothing() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config()).eval()
    texts = [[5, 9, 3, 7, 8], [4, 6], [10, 11, 12]]
    alone = [perplexity.negative_log_likelihoods(model, [text])[0] for text in texts]
    assert perplexity.negative_log_likelihoods(model, texts) == pytest.approx(alone, rel=1e-5)
    loss = model(input_ids=torch.tensor([texts[0]]), labels=torch.tensor([texts[0]])).loss
    assert alone[0] == pytest.approx(4 * loss.item(), rel=1e-5)


def tiny_config() -> Any:
    from transformers import LlamaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(vocab_size=32, **sizes)


def losses() -> Losses:
    """Two domains of two prompts; the expert of a reads a's prompts at 1 nat a token, b's at 2, and so on."""
    nats = np.array([[10.0, 15.0], [30.0, 33.0], [20.0, 10.0], [80.0, 20.0]])
    return Losses(["a", "a", "b", "b"], ["a", "b"], nats, np.array([[10, 10], [20, 20], [10, 10], [20, 20]]))


def test_normalised_performance_by_hand() -> None:
    p = one_hot(["a", "b"], ["a", "b", "b", "b"])  # the second prompt goes astray: 10 + 33 nats instead of 10 + 30
    figures = normalised(losses(), p)
    assert figures["domains"]["a"]["perplexity"] == pytest.approx(math.exp(43 / 30))
    assert figures["domains"]["a"]["normalised"] == pytest.approx(100 * math.exp(40 / 30) / math.exp(43 / 30))
    assert figures["domains"]["b"] == {"perplexity": pytest.approx(math.e), "normalised": pytest.approx(100)}
    assert figures["normalised"] == pytest.approx((100 * math.exp(-0.1) + 100) / 2)
    low, high = figures["interval"]
    assert low == pytest.approx((100 * math.exp(-3 / 20) + 100) / 2)  # the second prompt drawn twice
    assert high == pytest.approx(100)


def test_random_routing_is_exact() -> None:
    random = fixed_rows(Losses([*"aabb"], ["a", "b", AVERAGE], np.ones((4, 3)), np.ones((4, 3))), ["a", "b"])["random"]
    assert random.tolist() == [[0.5, 0.5, 0]] * 4
    figures = normalised(losses(), random[:, :2])
    assert figures["domains"]["a"]["perplexity"] == pytest.approx(math.exp((12.5 + 31.5) / 30))
    draws = np.random.default_rng(0).integers(2, size=(4000, 4))
    nats = losses().nats[np.arange(4), draws].mean(axis=0)
    assert nats == pytest.approx(losses().routed(random[:, :2]), rel=0.02)


def test_seeds_are_averaged_and_listed() -> None:
    routes = Routes([["a", "a", "b", "b"], ["b", "b", "b", "b"]], choice="k 1")
    row = describe_routes("router", losses(), routes)
    assert row["accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert [seed["accuracy"] for seed in row["seeds"]] == [1, 0.5]
    assert row["seeds"][0]["normalised"] == pytest.approx(100)
    assert row["domains"]["a"]["perplexity"] == pytest.approx(math.exp((12.5 + 31.5) / 30))
    assert row["choice"] == "k 1"
    assert describe_routes("router", losses(), Routes(error="no")) == {"row": "router", "error": "no"}


def test_a_missing_expert_leaves_only_rows_without_it() -> None:
    broken = losses()
    broken.nats[:, 1] = np.nan
    astray = normalised(broken, one_hot(["a", "b"], ["a", "a", "a", "a"]))
    assert astray["domains"]["a"]["normalised"] == pytest.approx(100)
    assert math.isnan(astray["domains"]["b"]["normalised"])
    assert math.isnan(astray["normalised"])


def test_hindsight_is_never_worse_than_the_own_expert() -> None:
    nats = np.array([[10.0, 9.0, 5.0], [20.0, 30.0, 5.0], [9.0, 8.0, 5.0]])
    scores = Losses(["a", "a", "b"], ["a", "b", AVERAGE], nats, np.full((3, 3), 10))
    rows = fixed_rows(scores, ["a", "b"])
    assert rows["best in hindsight"].argmax(axis=1).tolist() == [1, 0, 1]
    assert normalised(scores, rows["best in hindsight"])["normalised"] > 100
    assert normalised(scores, rows["own expert"])["normalised"] == pytest.approx(100)
    assert expected_accuracy(scores.domains, scores.experts, rows["only a"]) == 0.5


def test_scores_of_tasks_are_normalised_by_domain() -> None:
    figures = normalised_scores({"math": 0.45, "law": 0.6, "code": 0.1}, {"math": 0.5, "law": 0.5, "code": 0.0})
    assert figures["domains"]["math"]["normalised"] == pytest.approx(90)
    assert math.isnan(figures["domains"]["code"]["normalised"])
    assert figures["normalised"] == pytest.approx((90 + 120) / 2)


# the command


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Specs of small language models."""
    folder = tmp_path_factory.mktemp("experts")
    return {name: {"model": tiny.expert(folder / name, seed, chat=False)} for seed, name in enumerate(NAMES)}


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled(number: int, seed: int, split: str) -> list[dict[str, str]]:
    return [
        {"text": text, "domain": name, "split": split} for name in NAMES for text in tiny.sentences(name, number, seed)
    ]


@pytest.fixture(scope="module")
def world(experts: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A router with experts, and labelled text."""
    folder = tmp_path_factory.mktemp("world")
    tiny.router(experts, num_votes=2).save_pretrained(folder / "router")
    rows = [*labelled(30, 7, "train"), *labelled(6, 8, "test")]
    rows += [{"text": "a paint", "domain": "art", "split": "test"}, {"text": "court", "domain": "law", "split": "test"}]
    return folder / "router", write(folder / "data.jsonl", rows)


def evaluate(router: Path, data: str, output: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """Runs the command with experts; returns its exit code and results."""
    options = ["--where", "split=test", "--experts", "--output", str(output), "--max-tokens", "8", "--prompts", "5"]
    code = cli.main(["evaluate", str(router), "--data", data, *options, *more])
    file = output / "results.json"
    return code, json.loads(file.read_text()) if file.is_file() else {}


@pytest.fixture(scope="module")
def evaluated(world: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("sklearn")
    output = tmp_path_factory.mktemp("evaluated") / "new"
    more = ("--train", world[1], "--train-where", "split=train", "--routers", "random,bow-mlp,ir3de-top-k")
    code, results = evaluate(*world, output, *more, "--seeds", "2", "--card")
    assert code == 0
    return output, results


def test_every_row_is_there(evaluated: tuple[Path, dict[str, Any]]) -> None:
    rows = {row["row"]: row for row in evaluated[1]["rows"]}
    fixed = [*(f"only {name}" for name in NAMES), AVERAGE, "random", "best in hindsight", "own expert"]
    assert list(rows)[: len(fixed)] == fixed
    assert list(rows)[-1] == "this router"
    assert rows["own expert"]["normalised"] == pytest.approx(100)
    assert rows["this router"]["accuracy"] == 1
    assert rows["this router"]["normalised"] == pytest.approx(100)
    assert len(rows["bow-mlp"]["seeds"]) == 2
    assert rows["bow-mlp"]["choice"] in ("64", "256")
    assert list(evaluated[1]["over_k"]) == [str(k) for k in NUM_VOTES]


def test_accuracy_over_k_is_the_router_s_own_without_training_data(world: tuple[Path, str], tmp_path: Path) -> None:
    options = ["--where", "split=test", "--output", str(tmp_path), "--json"]
    assert cli.main(["evaluate", str(world[0]), "--data", world[1], *options]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["over_k"]) == {*map(str, NUM_VOTES), "all", "avg", "prompt"}
    assert [row["row"] for row in results["rows"]] == ["this router"]
    assert results["rows"][0]["normalised"] is None
    assert "normalised" not in (tmp_path / "results.md").read_text()


def test_the_router_is_measured_with_outcomes_too(
    world: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {name: [f"{text} {i}" for i, text in enumerate(tiny.sentences(name, 50, 9))] for name in NAMES}
    rows = [{"text": t, "domain": d, "scores": {n: float(n == "law") for n in NAMES}} for d in NAMES for t in texts[d]]
    file = tmp_path / "judged.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, results = evaluate(*world, tmp_path / "out", "--outcomes", str(file))
    measured = {row["row"]: row for row in results["rows"]}
    assert code == 0
    assert list(measured)[-2:] == ["this router", "with outcomes"]
    assert measured["with outcomes"]["normalised"] == measured["only law"]["normalised"]  # outcomes say: always law
    assert measured["with outcomes"]["choice"] == "450 outcomes of 3 experts"
    assert measured["this router"]["accuracy"] == 1
    assert not any("Outcomes:" in note for note in results["notes"])
    file.write_text(json.dumps({"text": "court", "scores": {"nobody": 1}}), encoding="utf-8")
    assert evaluate(*world, tmp_path / "none", "--outcomes", str(file)) == (2, {})
    assert "nobody" in capsys.readouterr().err


def test_what_was_dropped_is_counted(evaluated: tuple[Path, dict[str, Any]]) -> None:
    notes = " ".join(evaluated[1]["notes"])
    assert "1 rows of 'art' are dropped" in notes
    assert "1 texts of fewer than two tokens are dropped" in notes
    assert "3 rows are left out of the sample" in notes
    assert evaluated[1]["routing"]["prompts"] == 15
    assert notes.split(".")[0] in (evaluated[0] / "results.md").read_text()


def test_every_row_says_what_it_took(evaluated: tuple[Path, dict[str, Any]]) -> None:
    seconds = {row["row"]: row["seconds"] for row in evaluated[1]["rows"] if row.get("seconds") is not None}
    costly = [*(f"only {name}" for name in NAMES), AVERAGE, "bow-mlp", "ir3de-top-k", "this router"]
    assert all(seconds[name] > 0 for name in costly)
    assert sum(seconds.values()) <= evaluated[1]["seconds"]
    assert "| routing accuracy | seconds | fitted with |" in (evaluated[0] / "results.md").read_text()


def test_a_domain_without_data_is_told(
    world: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    train = ("--train", world[1], "--train-where", "split=train", "--train-where", "domain!=law")
    data = ["--data", world[1], "--where", "domain!=math", "--where", "split=test"]
    options = [*train, "--routers", "tfidf", "--output", str(tmp_path / "out")]
    assert cli.main(["evaluate", str(world[0]), *data, *options]) == 0
    notes = json.loads((tmp_path / "out" / "results.json").read_text())["notes"]
    assert "No rows of 'math': its expert has no figures of its own." in notes
    assert "Training data: No rows of 'law': the routers that are fitted to these never choose its expert." in notes
    assert all(note in capsys.readouterr().err for note in notes[:1])


def test_report_and_figures(evaluated: tuple[Path, dict[str, Any]]) -> None:
    pytest.importorskip("matplotlib")
    text = (evaluated[0] / "results.md").read_text()
    for part in ("| own expert | 100.00 |", "## Perplexity by routing", "## Macro accuracy (%) over k", "| law |"):
        assert part in text
    for name in ("normalised.png", "accuracy-over-k.png", "confusion.png"):
        assert (evaluated[0] / name).read_bytes().startswith(b"\x89PNG")
        assert name in text


def test_card_gets_a_model_index_until_edits_change_the_router(
    world: tuple[Path, str], evaluated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    own = evaluated[1]["rows"][-1]
    results = {r.metric_type: r for r in ModelCard.load(world[0] / "README.md").data.eval_results or []}
    assert results["accuracy"].metric_value == pytest.approx(100 * own["accuracy"], abs=0.01)
    assert results["normalised-performance"].metric_value == pytest.approx(own["normalised"], abs=0.01)
    assert results["accuracy"].dataset_name == "data"
    copy = Path(shutil.copytree(world[0], tmp_path / "copy"))
    IR3DEModel.from_pretrained(copy).save_pretrained(copy)
    assert len(ModelCard.load(copy / "README.md").data.eval_results or []) == 2
    assert cli.main(["remove", str(copy), "law"]) == 0
    assert not ModelCard.load(copy / "README.md").data.eval_results, "it is not the router that was measured"


def test_a_second_run_reads_what_the_first_kept(
    world: tuple[Path, str], evaluated: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_: Any) -> None:
        raise AssertionError("everything was scored before")

    monkeypatch.setattr(perplexity, "negative_log_likelihoods", no_more)
    code, results = evaluate(*world, evaluated[0])
    assert code == 0
    assert results["rows"][0] == evaluated[1]["rows"][0]


def test_an_interrupted_run_goes_on(world: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score, texts = perplexity.negative_log_likelihoods, []

    def cut_off(model: Any, batch: Any) -> list[float]:
        texts.extend(batch)
        if len(texts) == 8:
            raise KeyboardInterrupt
        return score(model, batch)

    monkeypatch.setattr(perplexity, "negative_log_likelihoods", cut_off)
    monkeypatch.setattr(perplexity, "BATCH_TOKENS", 1)  # a batch a text
    monkeypatch.setattr(perplexity, "SAVE_SECONDS", -1.0)
    assert evaluate(*world, tmp_path / "out")[0] == 130
    assert np.isfinite(load_file(tmp_path / "out" / "scores" / f"{NAMES[0]}.safetensors")["nats"]).sum() == 7
    assert evaluate(*world, tmp_path / "out")[0] == 0
    assert len(texts) == 15 * (len(NAMES) + 1) + 1, "only the text that was being read is read again"


def test_an_expert_that_cannot_be_loaded_is_marked(
    world: tuple[Path, str], experts: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = [{"name": name, **spec} for name, spec in experts.items()]
    specs[0]["model"] = str(tmp_path / "absent")
    listed = tmp_path / "experts.yaml"
    listed.write_text(json.dumps(specs))  # JSON is YAML
    code, results = evaluate(*world, tmp_path / "out", "--experts", str(listed))
    assert code == 1
    assert NAMES[0] in results["failures"]
    rows = {row["row"]: row for row in results["rows"]}
    assert rows["only law"]["domains"]["math"]["normalised"] is not None
    assert rows["only law"]["normalised"] is None
    assert f"{NAMES[0]} failed: " in capsys.readouterr().err
    assert "absent" in rows[AVERAGE]["error"], "there is no average either"
    text = (tmp_path / "out" / "results.md").read_text()
    assert f"**{NAMES[0]} failed" in text
    marked = [line for line in text.splitlines() if line.startswith((f"| only {NAMES[0]} |", f"| {AVERAGE} |"))]
    assert [line.split(" | ")[-1].split(":")[0] for line in marked[:2]] == ["failed", "failed"]


def test_a_package_that_another_router_needs_is_told_before_anything_is_read(
    world: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("ir3de.scripts.measuring.evaluation.read_rows", lambda _: pytest.fail("read"))
    more = ["--train", world[1], "--routers", "tfidf,random", "--output", str(tmp_path / "out")]
    assert main(["evaluate", str(world[0]), "--data", world[1], *more]) == 2
    assert "need scikit-learn, or leave them out of --routers" in capsys.readouterr().err


def test_a_router_that_cannot_be_had_is_marked(world: tuple[Path, str], tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    more = ("--train", world[1], "--train-where", "split=train", "--routers", "knn-1,random", "--encoder", "no/encoder")
    code, results = evaluate(*world, tmp_path / "out", *more)
    rows = {row["row"]: row for row in results["rows"]}
    assert code == 1
    assert "no/encoder cannot be loaded" in rows["knn-1"]["error"]
    assert rows["random"]["normalised"] < 100


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--card"], "--output DIR"),
        (["--card", "--variant", "all", "--output", "out"], "as it is"),
        (["--card", "--quick", "--output", "out"], "--quick is a trial"),
        (["--card", "--quick"], "--quick is a trial"),
        (["--experts", "--max-tokens", "1", "--output", "out"], "--max-tokens must be at least 2"),
        (["--where", "split=none", "--output", "out", "--experts"], "0 rows"),
        (["--train", "DATA", "--train-where", "split=none", "--output", "out"], "training data have 0 rows"),
        (["--train", "DATA", "--routers", "best", "--output", "out"], "does not know best"),
        (["--experts", "YAML", "--output", "out"], "list an expert for each of these names"),
    ],
)
def test_bad_input_is_told(
    more: list[str], message: str, world: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "experts.yaml"
    listed.write_text("[{name: law}]")
    names = {"DATA": world[1], "YAML": str(listed), "out": str(tmp_path / "out")}
    assert cli.main(["evaluate", str(world[0]), "--data", world[1], *(names.get(m, m) for m in more)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_texts_without_two_tokens_are_refused(
    world: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "short.jsonl", [{"text": "court", "domain": "law", "split": "test"}])
    assert evaluate(world[0], data, tmp_path / "out")[0] == 2
    assert "None of 1 texts has two tokens" in capsys.readouterr().err


# the average of the experts' weights


def test_models_are_averaged_weight_by_weight(experts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    specs = [{"name": name, **spec} for name, spec in experts.items()]
    average = average_experts(tmp_path / "average", specs, "mean")
    models = [AutoModelForCausalLM.from_pretrained(spec["model"]) for spec in [*specs, average]]
    *parts, mean = (dict(model.named_parameters()) for model in models)
    for key, weight in mean.items():
        assert torch.allclose(weight, sum(part[key] for part in parts) / len(parts), atol=1e-6)  # type: ignore[arg-type]


def test_adapters_are_averaged_exactly(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = tiny.expert(tmp_path / "base", seed=3, chat=False)
    specs = []
    for seed, rank in enumerate((2, 3)):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=5, target_modules="all-linear", init_lora_weights=False)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        model.save_pretrained(tmp_path / str(seed))
        specs.append({"name": f"e{seed}", "model": base, "adapter": str(tmp_path / str(seed))})
    average = average_experts(tmp_path / "average", specs, "mean")
    merged = []
    for spec in [*specs, average]:
        model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), spec["adapter"])
        merged.append(dict(model.merge_and_unload().named_parameters()))
    for key, weight in merged[2].items():
        assert torch.allclose(weight, (merged[0][key] + merged[1][key]) / 2, atol=1e-5)
    with pytest.raises(ValueError, match="whole models, or adapters on one base"):
        average_experts(tmp_path / "other", [specs[0], {"name": "e2", "model": base}], "mean")


def test_an_option_given_by_hand_holds_in_a_trial_too() -> None:
    given: dict[str, int | None] = dict.fromkeys(LEAST)
    assert _sizes(False, given)["prompts"] == 60
    assert _sizes(True, given)["prompts"] == 10
    assert _sizes(True, given | {"prompts": 25}) == {**QUICK, "prompts": 25}
    with pytest.raises(ValueError, match="--max-tokens must be at least 2, got 1"):
        _sizes(True, given | {"max_tokens": 1})


def test_the_second_opinion_is_measured_beside_the_router() -> None:
    router = tiny.router(variant="prompt", calibration={"temperature": 0.15, "spread": 0.0})
    encoder = WordEncoder()
    router.second_opinion = second(encode=encoder)
    rows = [Row(text, "law") for text in ("contract root of that", "tell me why", "court judge jury trial")]
    pipe = IR3DERoutingPipeline(router, device="cpu", second_opinion=True)
    expected = routing_accuracy(pipe, rows)["macro_accuracy"]
    encoder.texts.clear()
    assert second_accuracy(router, rows) == expected
    assert encoder.texts == ["contract root of that", "tell me why"]


def test_prompts_from_outside_are_measured(
    json_lines: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router, outside = str(tmp_path / "router"), tmp_path / "outside.jsonl"
    outside.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("zebra giraffe", "a lion", "of the elephant"))
    )
    fit = ["fit", "--data", str(json_lines), "--embeddings", source, "--output", router, "--variant", "prompt"]
    assert main([*fit, "--feature-map", "unit", "--min-familiarity", "0.05"]) == 0
    capsys.readouterr()
    assert main(["evaluate", router, "--data", str(json_lines), "--outside", str(outside), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["outside"]
    assert (figures["prompts"], figures["by"]) == (3, "familiarity")
    assert figures["auroc"] > 0.9
    assert figures["noticed"] > 0.6 > figures["lost"]
    assert main(["evaluate", router, "--data", str(json_lines), "--outside", str(outside)]) == 0
    assert "3 prompts from outside: AUROC" in capsys.readouterr().out


def test_columns_stand_below_each_other_whatever_the_letters() -> None:
    names = ["法律", "ＭＡＴＨ", "cafe\u0301", "law"]
    figures: Any = {
        "prompts": 4,
        "macro_accuracy": 1.0,
        "micro_accuracy": 1.0,
        "domains": {name: {"recall": 1.0, "prompts": 1} for name in names},
        "confusion": {name: dict.fromkeys(names, 1) for name in names},
    }
    legend, *lines, _ = accuracy.describe(figures).splitlines()
    assert legend.startswith("Rows: the domain that prompts are of")
    assert len({width_of(line) for line in lines}) == 1
    assert [width_of(name) for name in names] == [4, 8, 4, 3]
    assert (to_left("法", 4) + "|", to_right("法", 4)) == ("法  |", "  法")


LONG_NAMES = [f"{kind} and everything else that people in {place} may ask" for kind in "ABCD" for place in "xyz"]


def test_long_names_leave_a_table_that_fits_a_terminal_with_a_legend() -> None:
    confusion = {name: dict.fromkeys(LONG_NAMES, 10) for name in LONG_NAMES[1:]}
    figures: Any = {
        "prompts": 110,
        "macro_accuracy": 1.0,
        "micro_accuracy": 1.0,
        "domains": {name: {"recall": 1.0, "prompts": 10} for name in LONG_NAMES[1:]},
        "confusion": confusion,
    }
    shown = accuracy.describe(figures).splitlines()
    assert max(map(width_of, shown)) <= ROOM
    assert shown[1].split() == ["domain", "recall", "%", *map(str, range(1, 13))]
    assert shown[2].split()[0] == "2", "a row has the number of its column"
    assert f" 2 = {LONG_NAMES[1]}" in shown
    many = [f"domain-{number}" for number in range(40)]
    assert Labels.of(many).columns == many, "they are short"
    assert accuracy.describe(
        {
            **figures,
            "confusion": {name: dict.fromkeys(many, 1) for name in many},
            "domains": {name: {"recall": 1.0, "prompts": 1} for name in many},
        }
    ).splitlines()[1].split()[3:6] == ["1", "2", "3"]


def test_columns_without_room_follow_below_with_the_first() -> None:
    lines = table(["domain", "one", "two", "three"], [["law", "1", "22", "333"]], room=14)
    assert lines == [
        "domain  one",
        "law       1",
        "",
        "domain  two",
        "law      22",
        "",
        "domain  three",
        "law       333",
    ]
    assert table(["domain", "one"], [["law", "1"]]) == ["domain  one", "law       1"]


def test_a_route_among_many_experts_leaves_out_those_that_score_nothing() -> None:
    ranking = [
        {"expert": name, "score": score} for name, score in zip(LONG_NAMES, [0.9, 0.1, *[0.0] * 10], strict=True)
    ]
    record = {"ranking": ranking, "tokens": []}
    shown = describe_route("a prompt", record)
    assert max(map(width_of, shown.splitlines())) <= ROOM
    assert (
        f"-> {LONG_NAMES[0]} 0.90\n     {LONG_NAMES[1]} 0.10\n     {LONG_NAMES[2]} 0.00\n     (9 others 0.00)" in shown
    )
    assert "-> a 0.60  b 0.40" in describe_route(
        "a", {"ranking": [{"expert": "a", "score": 0.6}, {"expert": "b", "score": 0.4}], "tokens": []}
    )
