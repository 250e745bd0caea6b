"""`ir3de benchmark`: its measures against hand-computed ones, and a run of tiny routers."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ir3de.configuration_ir3de import VARIANTS
from ir3de.scripts import cli
from ir3de.scripts.metrics import measures

WORDS = {"cooking": ["oven", "salt"], "law": ["court", "judge"], "music": ["violin", "tempo"]}
FILLER = ["the", "a", "please", "find", "name"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A causal LM with one token a word."""
    folder = tmp_path_factory.mktemp("lm")
    words = ["[UNK]", *FILLER, *(word for words in WORDS.values() for word in words)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def rows(split, n, domains=tuple(WORDS), source="web"):
    rng = np.random.default_rng(n)
    words = {**WORDS, "oos": ["the", "a"], "sport": ["tempo"]}
    for i in range(n):
        domain = domains[i % len(domains)]
        text = " ".join([*rng.choice(FILLER, 3), str(rng.choice(words[domain]))])
        yield {"text": text, "domain": domain, "split": split, "source": source}


def write(path, *parts):
    path.write_text("".join(json.dumps(row) + "\n" for part in parts for row in part))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    main = write(
        folder / "main.jsonl",
        rows("train", 90),
        rows("test", 30),
        rows("test", 6, ["oos"]),
        rows("train_dup", 30, ["sport"]),
    )
    shift = write(folder / "shift.jsonl", rows("test_shift", 9, source="book"), rows("test_shift", 2, ["sport"]))
    return main, shift


def run(*arguments):
    return cli.main(["benchmark", *map(str, arguments)])


@pytest.fixture(scope="module")
def results(source, files, tmp_path_factory):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    output = tmp_path_factory.mktemp("benchmark") / "new"
    arguments = ("--embeddings", source, "--routers", "ir3de-top-k,ir3de-prompt,random,tfidf", "--few-shot", "12")
    arguments += ("--max-train", 25)
    code = run("--data", f"tiny={files[0]},{files[1]}", *arguments, "--seeds", 2, "--output", output)
    assert code == 0
    return output, json.loads((output / "results.json").read_text())


def by_router(results):
    return {run["router"]: run for run in results["runs"]}


def test_run_measures_every_router_on_every_split(results):
    runs = by_router(results[1])
    assert list(runs) == ["ir3de-top-k", "ir3de-prompt", "random", "tfidf"]
    for name, figures in runs.items():
        assert set(figures["splits"]) == {"test", "test_shift"}
        assert figures["latency"]["single"]["routing"] > 0
        assert figures["latency"]["batch"]["tokenizing"] > 0
        if name != "random":
            assert figures["splits"]["test"]["macro_accuracy"] == 1
            assert figures["bytes"] > 0
            assert figures["choice"]
    assert "out_of_scope_auroc" in runs["tfidf"]["splits"]["test"]
    assert "out_of_scope_auroc" not in runs["tfidf"]["splits"]["test_shift"]
    assert runs["tfidf"]["splits"]["test_shift"]["sources"]["law/book"] == {"accuracy": 1.0, "prompts": 3}


def test_every_router_is_given_as_many_training_prompts_as_allowed(results):
    output, figures = results
    assert figures["data"][0]["train"] == 25 * len(WORDS) < 90
    assert "Every router was given at most 25 a domain." in (output / "results.md").read_text()


def test_rows_without_a_trained_domain_are_counted(results):
    splits = results[1]["data"][0]["splits"]
    assert splits["test_shift"] == {"prompts": 9, "outside": 0, "left_out": {"sport": 2}}
    assert splits["test"] == {"prompts": 30, "outside": 6, "left_out": {}}


def test_few_shot_runs_each_number_and_seed(results):
    keys = {(run["router"], run["shots"], run["seed"]) for run in results[1]["few_shot"]}
    assert len(keys) == 4 * 1 * 2
    assert all(set(run["macro_accuracy"]) == {"test", "test_shift"} for run in results[1]["few_shot"])


def test_report_shows_figures_and_plots(results):
    folder, _ = results
    text = (folder / "results.md").read_text()
    for heading in (
        "Macro accuracy",
        "Expected calibration",
        "Out-of-scope",
        "Cost",
        "Few training",
        "tiny shift: acc",
    ):
        assert heading in text
    assert "2 rows of sport left out" in text
    assert "| tfidf | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 |" in text
    for name in ("accuracy.png", "latency.png", "reliability.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert name in text


def test_every_variant_is_known(capsys, files, source, tmp_path):
    code = run("--data", f"a={files[0]}", "--embeddings", source, "--routers", "nearest", "--output", tmp_path)
    assert code == 2
    message = capsys.readouterr().err
    for name in ("nearest", "ir3de,", *(f"ir3de-{variant}" for variant in VARIANTS), "modem"):
        assert name in message


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ("tiny", [], "NAME=FILE"),
        ("tiny=", [], "NAME=FILE"),
        ("tiny=nowhere.jsonl", [], "no file nowhere.jsonl"),
        ("tiny={main}", ["--few-shot", "20,few"], "whole numbers"),
        ("tiny={main}", ["--few-shot", "1"], "at least 2"),
        ("tiny={main}", ["--data", "tiny={shift}"], "at least two domains"),
        ("tiny={main}", ["--data", "tiny={main}"], "same name"),
        ("tiny={train}", [], "whose domain has training rows"),
    ],
)
def test_bad_input_is_told(data, more, message, files, source, tmp_path, capsys):
    names = {"main": files[0], "shift": files[1], "train": write(tmp_path / "train.jsonl", rows("train", 9))}
    arguments = [data.format(**names), *(text.format(**names) for text in more)]
    assert run("--data", *arguments, "--embeddings", source, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_accuracies_by_hand():
    labels = np.array([0, 0, 0, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    assert measures.recalls(labels, p) == pytest.approx({0: 2 / 3, 1: 1.0})
    assert measures.macro_accuracy(labels, p) == pytest.approx(5 / 6)
    assert measures.standard_error(labels, p) == pytest.approx((2 / 9 / 3) ** 0.5 / 2)
    assert measures.macro_accuracy(labels[:0], p[:0]) == 0


def test_calibration_error_by_hand():
    labels = np.array([0, 0, 0, 1, 1])
    p = np.array([[0.95, 0.05]] * 4 + [[0.45, 0.55]])
    bins = measures.reliability(p.max(axis=1), p.argmax(axis=1) == labels)
    assert [b["prompts"] for b in bins] == [0.2, 0.8]
    assert measures.calibration_error(bins) == pytest.approx(0.2 * 0.45 + 0.8 * 0.2)


def test_certain_and_right_is_calibrated():
    assert measures.calibration_error(measures.reliability(np.ones(2), np.array([True, True]))) == 0


def test_the_error_of_a_difference_of_aurocs_is_what_drawing_again_gives():
    draw = np.random.default_rng(0)
    inside, outside = draw.normal(1, 1, 120), draw.normal(0, 1, 90)
    one = inside + draw.normal(0, 0.6, 120), outside + draw.normal(0, 0.6, 90)
    difference, error = measures.auroc_difference((inside, outside), one)
    assert difference == pytest.approx(measures.auroc(inside, outside) - measures.auroc(*one))
    assert measures.auroc_difference(one, one) == (0.0, 0.0)
    again = []
    for _ in range(600):
        i, o = draw.integers(120, size=120), draw.integers(90, size=90)
        again.append(measures.auroc(inside[i], outside[o]) - measures.auroc(one[0][i], one[1][o]))
    assert error == pytest.approx(float(np.std(again)), rel=0.15)


def test_auroc_counts_pairs():
    inside, outside = np.array([0.9, 0.5, 0.5]), np.array([0.5, 0.1])
    pairs = [float(i > o) + 0.5 * float(i == o) for i in inside for o in outside]
    assert measures.auroc(inside, outside) == pytest.approx(np.mean(pairs))


def test_latency_is_a_prompt_s_share():
    routes = {"slow": lambda texts: time.sleep(0.002 * len(texts)), "fast": lambda texts: None}
    seconds = measures.latency(routes, ["x"] * 70)
    for way in ("single", "batch"):
        assert 0.002 <= seconds[way]["slow"] < 0.02
        assert seconds[way]["fast"] < 0.001
