"""A router in other processes and in other precisions: forked, spawned, pickled, cast."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

from ir3de import IR3DEConfig, IR3DEModel, IR3DERoutingPipeline, experts_ir3de
from ir3de.local_experts_ir3de import LocalModel
from ir3de.local_sources_ir3de import LocalSource

from . import tiny
from .test_saves_at_once import end_well, started

CODE, LAW, MATH = "debug the python function", "the court and a judge", "find the square root of this prime"
PROMPTS = [CODE, LAW, MATH]
KINDS: list[dict[str, Any]] = [
    {},
    {"variant": "prompt", "feature_map": "unit", "lexical_weight": 1.0},
    {"variant": "avg", "feature_map": "rff", "num_features": 32},
]
# Torch's other threads have worked when the process forks, so that a child would wait for them.
FORKS = """
import multiprocessing, sys
import torch
from ir3de import IR3DEModel, IR3DERoutingPipeline

pipe = IR3DERoutingPipeline(IR3DEModel.from_pretrained(sys.argv[1]), device="cpu")
torch.set_num_threads(4)
bool(torch.randn(2000, 600).exp().isfinite().all())

def route(row):
    record = pipe(row["text"], generate=False)
    bool(torch.randn(2000, 600).exp().isfinite().all())  # what an expert would do
    return {"expert": record["expert"]}

if __name__ == "__main__":
    prompts = ["debug the python function", "the court and a judge"] * 4
    rows = [{"text": text} for text in prompts]
    experts = {}
    for way, processes in (("fork", 2), ("spawn", 1)):  # a spawned one imports everything again
        with multiprocessing.get_context(way).Pool(processes) as pool:
            experts[way] = [row["expert"] for row in pool.map(route, rows)]
    from datasets import Dataset, disable_progress_bars
    disable_progress_bars()
    experts["datasets"] = Dataset.from_dict({"text": prompts}).map(route, num_proc=2)["expert"][:]
    print(experts)
"""


def test_other_processes_route(tmp_path: Path) -> None:
    tiny.router(variant="prompt").save_pretrained(tmp_path / "router")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FORKS))
    command = [sys.executable, str(script), str(tmp_path / "router")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    expected = {way: ["code", "law"] * 4 for way in ("fork", "spawn", "datasets")}
    assert done.stdout.endswith(f"{expected}\n"), done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_model_and_pipeline_pickle_before_and_after_a_route(kind: dict[str, Any]) -> None:
    pipe = IR3DERoutingPipeline(tiny.router(**kind), device="cpu")
    fresh, fresh_model = pickle.dumps(pipe), pickle.dumps(pipe.model)
    expected = pipe(PROMPTS, generate=False, explain=True)
    for pickled in (fresh, pickle.dumps(pipe)):
        assert pickle.loads(pickled)(PROMPTS, generate=False, explain=True) == expected
    for pickled in (fresh_model, pickle.dumps(pipe.model)):
        made = IR3DERoutingPipeline(pickle.loads(pickled), device="cpu")
        assert made(PROMPTS, generate=False, explain=True) == expected
    if "lexical_weight" not in kind:  # a copy has a lexicon of its own
        assert pipe.model.copy().token_table().rows is pipe.model.token_table().rows, "a copy still shares tables"


def test_a_pipeline_pickles_with_experts_in_memory_and_loads_them_again(pipe: IR3DERoutingPipeline) -> None:
    expected = pipe(PROMPTS, do_sample=False, max_new_tokens=4)
    assert pipe.loaded_experts
    made = pickle.loads(pickle.dumps(pipe))
    assert not made.loaded_experts
    assert made(PROMPTS, do_sample=False, max_new_tokens=4) == expected


def test_a_process_that_is_forked_while_experts_load_answers(
    pipe: IR3DERoutingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on, make = threading.Event(), threading.Event(), experts_ir3de.LocalModel

    def slowly(source: LocalSource) -> LocalModel:
        loading.set()
        assert go_on.wait(60)
        return make(source)

    def answer() -> None:
        signal.alarm(60)  # the loading thread is not here, so that waiting for it would never end
        go_on.set()
        [record] = pipe([LAW], do_sample=False, max_new_tokens=2)
        assert record["generated_text"] is not None, record

    monkeypatch.setattr(experts_ir3de, "LocalModel", slowly)
    pipe.experts.unload()
    thread = pipe.experts.preload(["law"])
    assert loading.wait(60)
    child = started(answer)
    go_on.set()
    thread.join()
    assert end_well([child])


# With the code that travels in the repository, which the other process must find.
OF_THE_HUB = """
import multiprocessing, pickle, sys
from transformers import pipeline

def route(pickled, queue):
    queue.put([pipe("the court and a judge", generate=False)["expert"] for pipe in map(pickle.loads, pickled)])

if __name__ == "__main__":
    pipe = pipeline("ir3de-routing", model=sys.argv[1], trust_remote_code=True, device="cpu")
    assert type(pipe).__module__.startswith("transformers_modules."), type(pipe)
    fresh = pickle.dumps(pipe)
    expected = pipe("the court and a judge", generate=False)["expert"]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=route, args=([fresh, pickle.dumps(pipe)], queue))
    process.start()
    print(queue.get(timeout=100) == [expected] * 2)
    process.join()
"""


def test_a_pipeline_of_the_hub_with_its_own_code_goes_into_a_spawned_process(repo: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(OF_THE_HUB)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, str(script), repo]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.endswith("True\n"), done.stderr


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_router_that_was_cast_routes_like_one_that_was_loaded_so(
    kind: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny.router(**kind)
    model.save_pretrained(tmp_path)
    expected = IR3DERoutingPipeline(model, device="cpu")(PROMPTS, generate=False)
    loaded = IR3DERoutingPipeline(IR3DEModel.from_pretrained(tmp_path, dtype=dtype), device="cpu")
    name = {torch.float16: "half", torch.bfloat16: "bfloat16", torch.float64: "double"}[dtype]
    for cast in (model.copy().to(dtype), getattr(model.copy(), name)()):
        records = IR3DERoutingPipeline(cast, device="cpu")(PROMPTS, generate=False)
        assert records == loaded(PROMPTS, generate=False)
        assert [record["expert"] for record in records] == [record["expert"] for record in expected]
        assert cast.embed_tokens.weight.dtype == dtype
    if dtype == torch.float64:
        assert records == expected


def test_a_callers_lower_precision_does_not_reach_the_tables() -> None:
    pipe = IR3DERoutingPipeline(tiny.router(), device="cpu")
    expected = pipe(PROMPTS, generate=False)
    again = IR3DERoutingPipeline(tiny.router(), device="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert again(PROMPTS, generate=False) == expected
    assert again(PROMPTS, generate=False) == expected


def test_a_tokenizer_without_a_fast_version_routes_and_explains_without_spans() -> None:
    config = IR3DEConfig(experts=[{"name": "code"}, {"name": "law"}])
    E = torch.randn(384, 8, generator=torch.Generator().manual_seed(0))
    model = IR3DEModel.from_embeddings(config, E, ByT5Tokenizer())
    statistics = {}
    for name in config.expert_names:
        collector = model.collector()
        collector.add(model.tokenize(tiny.sentences(name, 20)))
        statistics[name] = collector.statistics
    model.fit(statistics)
    record, other = IR3DERoutingPipeline(model, device="cpu")([LAW, CODE], generate=False, explain=True)
    assert [token["token"] for token in record["tokens"]] == list(LAW)
    assert len(other["tokens"]) == len(CODE)
