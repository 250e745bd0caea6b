"""The routed pipeline under lm-eval: the same answers as the pipeline called directly, the same likelihoods."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ir3de import IR3DERoutingPipeline
from ir3de.outcome_rows_ir3de import read_outcomes
from ir3de.scripts import cli
from ir3de.scripts.judging.tasks import tasks_of
from ir3de.scripts.metrics.perplexity import negative_log_likelihoods
from ir3de.scripts.metrics.tasks import score

from . import tiny

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ir3de.scripts.routers.harness import RoutedLM, generation_options

NAMES = list(tiny.DOMAINS)
TEXTS = {name: tiny.sentences(name, 3, seed=4) for name in NAMES}
PROMPTS = [text for texts in TEXTS.values() for text in texts]
GENERATE = {
    "output_type": "generate_until",
    "doc_to_target": "{{label}}",
    "generation_kwargs": {"until": [], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "bypass"}],
}
CHOOSE = {
    "output_type": "multiple_choice",
    "doc_to_choice": ["court", "prime", "loop"],
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}


def write_task(folder: Path, name: str, kind: dict[str, Any], prompts: list[str]) -> None:
    """A task file of lm-eval and its items; JSON is YAML."""
    items = [{"text": text, "label": i % 3} for i, text in enumerate(prompts)]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    task = {"task": name, **source, "doc_to_text": "{{text}}", **kind}
    (folder / f"{name}.yaml").write_text(json.dumps(task))


def router(folder: Path) -> IR3DERoutingPipeline:
    """A router whose experts are small language models of random weights."""
    experts = {name: {"model": tiny.expert(folder / name, seed, chat=False)} for seed, name in enumerate(NAMES)}
    return IR3DERoutingPipeline(tiny.router(experts, num_votes=2), device="cpu")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> IR3DERoutingPipeline:
    return router(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files, and the items of the tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "local_generate", GENERATE, PROMPTS)
    write_task(folder, "local_choose", CHOOSE, PROMPTS)
    return folder


def responses(model: RoutedLM, task: str, folder: Path) -> list[Any]:
    """What lm-eval got of the model, in the order of the items."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0)
    return [sample["resps"] for sample in sorted(found["samples"][task], key=lambda sample: sample["doc_id"])]


def test_generation_is_the_pipeline_s(pipe: IR3DERoutingPipeline, folder: Path) -> None:
    records = pipe(PROMPTS, max_new_tokens=6, do_sample=False)
    assert {record["expert"] for record in records} == set(NAMES)
    direct = [record["generated_text"] for record in records]
    assert [answer for [[answer]] in responses(RoutedLM(pipe, batch_size=4), "local_generate", folder)] == direct
    fixed = pipe(PROMPTS, max_new_tokens=6, do_sample=False, experts=["law"])
    direct_law = [record["generated_text"] for record in fixed]
    answers = responses(RoutedLM(pipe, "law"), "local_generate", folder)
    assert [answer for [[answer]] in answers] == direct_law != direct


def test_likelihoods_are_the_chosen_expert_s(pipe: IR3DERoutingPipeline, folder: Path) -> None:
    routed = responses(RoutedLM(pipe), "local_choose", folder)
    for i, text in enumerate(PROMPTS):
        expert = pipe(text, generate=False)["expert"]
        local = pipe.experts.load(expert)
        for choice, [[value, _]] in zip(("court", "prime", "loop"), routed[i], strict=True):
            context, whole = (local.pipe.tokenizer(t)["input_ids"] for t in (text, f"{text} {choice}"))
            pair = negative_log_likelihoods(local.model, [whole, context])
            assert float(value) == pytest.approx(pair[1] - pair[0], abs=1e-3)


def test_perplexity_agrees_with_the_harness(pipe: IR3DERoutingPipeline) -> None:
    local = pipe.experts.load("math")
    tokenizer: Any = local.pipe.tokenizer
    harness = HFLM(local.model, tokenizer=tokenizer, batch_size=2)
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS["math"]]
    theirs = harness.loglikelihood_rolling(requests, disable_tqdm=True)
    # The harness puts a token before each text, so that the first is predicted too.
    ids = [[harness.prefix_token_id, *tokenizer(text)["input_ids"]] for text in TEXTS["math"]]
    ours, tokens = negative_log_likelihoods(local.model, ids), sum(len(row) - 1 for row in ids)
    assert math.exp(sum(ours) / tokens) == pytest.approx(math.exp(-sum(theirs) / tokens), rel=1e-3)
    rolled = RoutedLM(pipe, "math").loglikelihood_rolling(requests)
    assert rolled == pytest.approx(theirs, rel=1e-6)


def test_generation_arguments_become_options() -> None:
    assert generation_options({"until": "\n", "max_gen_toks": 5, "do_sample": False, "temperature": 0.0}) == (
        ["\n"],
        {"do_sample": False, "max_new_tokens": 5, "stop_strings": ["\n"], "truncation": True},
    )
    assert generation_options({"do_sample": True, "temperature": 0.5})[1]["temperature"] == 0.5


def test_the_command_compares_routing_with_the_own_expert(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router(tmp_path / "experts").save_pretrained(tmp_path / "router")
    options = ["--include-path", str(folder), "--output", str(tmp_path / "out"), "--limit", "3"]
    given = ["--task", "law=local_choose", "--task", "math=local_choose", "--metric", "math=f1,none"]
    assert cli.main(["tasks", str(tmp_path / "router"), *given, *options]) == 1
    figures = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(figures["domains"]) == {"law"}
    assert "no metric 'f1,none'" in figures["errors"]["math"]
    for way in ("routed", "own"):
        raw = json.loads((tmp_path / "out" / f"law.{way}.json").read_text())
        assert raw["results"]["local_choose"]["acc,none"] == pytest.approx(figures["domains"]["law"][way])
    assert "A trial with 3 items a task: no results." in capsys.readouterr().out


def test_experts_are_judged_by_a_task(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = router(tmp_path / "experts")
    experts.save_pretrained(tmp_path / "router")
    output = tmp_path / "judged.jsonl"
    options = ["judge", str(tmp_path / "router"), "--output", str(output), "--include-path", str(folder)]
    assert cli.main([*options, "--by", "local_choose", "--limit", "2", "--experts", "law,math"]) == 0
    assert "4 answers were scored; 0 were known" in capsys.readouterr().out
    assert cli.main([*options, "--by", "local_choose"]) == 0
    assert "23 answers were scored; 4 were known" in capsys.readouterr().out
    rows = [outcome for outcomes in read_outcomes(output) for outcome in outcomes]
    assert {row.text for row in rows} == set(PROMPTS)
    alone = simple_evaluate(
        model=RoutedLM(experts, "law"),
        tasks=["local_choose"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    accuracy = alone["results"]["local_choose"]["acc,none"]
    assert sum(row.score for row in rows if row.expert == "law") / len(PROMPTS) == pytest.approx(accuracy)
    tokenizer: Any = experts.experts.load("law").pipe.tokenizer
    words = {row.text: row.tokens for row in rows}
    assert words[PROMPTS[0]] == 3 * (len(tokenizer(PROMPTS[0])["input_ids"]) + 1)  # read with each of three choices
    assert cli.main(["outcomes", str(tmp_path / "router"), str(output)]) == 0
    assert cli.main([*options, "--by", "local_generate", "--limit", "1"]) == 1
    failed = json.loads(Path(f"{output}.failed").read_text().splitlines()[0])
    assert "no score from 0 to 1" in failed["error"]
    with pytest.raises(ValueError, match="nor a task that lm-eval knows"):
        tasks_of("no_such_task", TaskManager(include_path=str(folder), include_defaults=False))


def test_metrics_are_found_by_name() -> None:
    results = {
        "results": {"all": {"acc,none": 9.0}, "a": {"acc,none": 0.5, "acc_norm,none": 0.7, "acc_stderr,none": 0.1}},
        "group_subtasks": {"all": ["a"], "a": []},
    }
    assert score(results, None) == 0.5
    assert score(results, "acc_norm,none") == 0.7
    with pytest.raises(ValueError, match="has no metric 'f1,none', but acc,none, acc_norm,none"):
        score(results, "f1,none")


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--task", "math"], "DOMAIN=NAME"), (["--task", "art=gsm8k"], "without an expert: ['art']")],
)
def test_bad_input_is_told(more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.router().save_pretrained(tmp_path / "router")
    assert cli.main(["tasks", str(tmp_path / "router"), *more, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_real_model_answers_the_harness_as_it_answers_the_pipeline(
    tmp_path: Path, quickstart: IR3DERoutingPipeline
) -> None:
    prompts = ["Write a Python loop.", "What caused the fall of the Roman Empire?"]
    options = {"until": ["the"], "max_gen_toks": 6, "do_sample": False}
    write_task(tmp_path, "local_smollm", {**GENERATE, "generation_kwargs": options}, prompts)
    records = quickstart(prompts, max_new_tokens=6, do_sample=False)
    assert [record["expert"] for record in records] == ["coding", "history"]
    direct = [record["generated_text"].split("the")[0] for record in records]
    answers = responses(RoutedLM(quickstart, batch_size=3), "local_smollm", tmp_path)
    assert [answer for [[answer]] in answers] == direct
