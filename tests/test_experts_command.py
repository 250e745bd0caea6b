"""`ir3de experts`: showing, checking and setting who answers, before anybody is served."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from ir3de import IR3DEModel
from ir3de.outcomes_ir3de import Ledger
from ir3de.scripts.cli import main
from ir3de.scripts.data.experts import read_experts
from ir3de.scripts.reports.experts import key_help
from ir3de.specs_ir3de import EXPERT_KEYS

from . import tiny
from .test_remote_experts import Server, completion, send, serve, without_system


@pytest.fixture
def folder(expert_specs: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    """A saved router: one expert with a chat template, one without, one that only routes."""
    specs = {"code": expert_specs["code"], "law": {**expert_specs["law"], "cost": 2.5}}
    tiny.router(specs).save_pretrained(tmp_path / "router")
    return tmp_path / "router"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that answers everything with a greeting."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serve(lambda handler, _: send(handler, 200, completion("Hello there."))) as running:
        yield running


def specs_of(folder: Path) -> dict[str, Any]:
    return {spec["name"]: spec for spec in json.loads((folder / "config.json").read_text())["experts"]}


def test_every_key_has_its_help_from_where_it_is_declared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(key_help()) == set(EXPERT_KEYS)
    assert all(kind and text.endswith(".") for kind, text in key_help().values())
    for router in ([str(folder)], []):
        assert main(["experts", *router, "--keys"]) == 0
        assert "quantization       dict: transformers' `quantization_config`" in capsys.readouterr().out
    assert main(["experts"]) == 2
    assert "Name the folder or Hub id of a router" in capsys.readouterr().err


def test_experts_are_shown_with_what_their_specs_mean(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experts", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "law: a model on this machine; serves law" in shown
    assert "math: routes only; serves math" in shown
    [line] = [line for line in shown.splitlines() if line.strip().startswith("cost")]
    assert " ".join(line.split()) == "cost 2.5 of an answer, in any unit that all experts share."
    assert main(["experts", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == list(specs_of(folder).values())


def test_each_expert_is_loaded_and_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experts", str(folder), "--check", "--prompt", "the judge", "--json"]) == 0
    code, law, math = json.loads(capsys.readouterr().out)
    assert code["answer"].strip()
    assert law["can"]["context"] == 512
    assert "no chat template: it is given plain text" in law["notes"]
    assert math["notes"] == ["only routes: its spec names no model, adapter or endpoint"]
    assert [one["problem"] for one in (code, law, math)] == [None] * 3


def test_an_expert_that_cannot_answer_is_named_and_the_others_are_asked_all_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experts", str(folder), "--set", "code", f"model={tmp_path / 'absent'}"]) == 0
    capsys.readouterr()
    assert main(["experts", str(folder), "--check", "--only", "code,law"]) == 1
    shown = capsys.readouterr().out
    assert "! does not answer:" in shown.split("law:")[0]
    assert "answered in" in shown.split("law:")[1]
    assert "math" not in shown
    assert main(["experts", str(folder), "--check", "--only", "laws"]) == 2
    assert "no experts ['laws']" in capsys.readouterr().err


def test_a_template_without_system_messages_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(tiny.expert(tmp_path / "without", seed=4, chat=True))
    made = tiny.tokenizer(chat=True)
    made.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + tiny.TEMPLATE
    )
    made.save_pretrained(place)
    assert main(["experts", str(folder), "--set", "code", f"model={place}"]) == 0
    assert main(["experts", str(folder), "--check", "--only", "code"]) == 0
    shown = capsys.readouterr().out
    assert "its chat template refuses or drops a system message, whose text goes into" in shown


def test_a_server_is_asked_and_told_where_it_is(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ["model=served", f"endpoint={server.url}", "tools=true", "system_prompt=", "timeout=20"]
    assert main(["experts", str(folder), "--set", "code", *pairs]) == 0
    assert main(["experts", str(folder), "--check", "--only", "code"]) == 0
    shown = capsys.readouterr().out
    assert "prompts go to 127.0.0.1, an address of a private network" in shown
    assert "can: tools true" in shown
    assert "s: Hello there." in shown


def test_a_server_that_refuses_system_messages_is_told_before_anybody_asks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serve(without_system([])) as server:
        pairs = ["model=served", f"endpoint={server.url}", "system_prompt=Be brief."]
        assert main(["experts", str(folder), "--set", "code", *pairs]) == 0
        assert main(["experts", str(folder), "--check", "--only", "code"]) == 0
    assert "its server refuses system messages" in capsys.readouterr().out


def test_what_is_set_is_kept_with_outcomes_and_routes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = IR3DEModel.from_pretrained(folder)
    row = {"text": "the judge", "domain": "law", "scores": {"law": 0.5, "code": 1.0}}
    model.add_outcomes([row])
    model.save_pretrained(folder)
    before = model.recognise(["court", "python"])
    assert (
        main(["experts", str(folder), "--set", "law", "revision=1e5", "cost=", 'generation={"max_new_tokens": 7}']) == 0
    )
    assert "Set law" in capsys.readouterr().err
    law = specs_of(folder)["law"]
    assert law["revision"] == "1e5", "text is taken as it is typed"
    assert law["generation"] == {"max_new_tokens": 7}
    assert "cost" not in law
    again = IR3DEModel.from_pretrained(folder)
    assert again.outcomes == model.outcomes != Ledger()
    assert (again.recognise(["court", "python"]) == before).all()


def test_an_expert_joins_for_domains_that_are_here(folder: Path) -> None:
    assert main(["experts", str(folder), "--add", "generalist", "model=org/big", "domains=[law, math]"]) == 0
    assert specs_of(folder)["generalist"] == {"name": "generalist", "model": "org/big", "domains": ["law", "math"]}
    assert IR3DEModel.from_pretrained(folder).config.domain_names == sorted(tiny.DOMAINS)


def test_folders_are_kept_with_their_whole_path_and_shown_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder.parent / ("long-name-" * 8) / "llm"
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    monkeypatch.chdir(place.parent)
    assert (
        main(["experts", str(folder), "--set", "law", "model=llm", "--set", "math", "model=llm", "adapter=./llm"]) == 0
    )
    assert capsys.readouterr().out.count(f"{place}  ") == 3
    assert specs_of(folder)["law"]["model"] == str(place)
    assert specs_of(folder)["math"] == {"name": "math", "model": str(place), "adapter": str(place)}
    (place.parent / "experts.yaml").write_text(
        "- {name: law, model: ./llm}\n- {name: far, model: llm, endpoint: https://a.b}"
    )
    here, far = read_experts("experts.yaml")
    assert (here["model"], far["model"]) == (str(place), "llm"), "at a server it is a name there"


def test_a_model_that_is_a_gguf_file_alone_needs_no_further_word(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder.parent / "weights"
    place.mkdir()
    (place / "tiny.gguf").touch()
    assert main(["experts", str(folder), "--set", "law", f"model={place}"]) == 0
    assert specs_of(folder)["law"]["gguf_file"] == "tiny.gguf"
    (place / "other.gguf").touch()
    capsys.readouterr()
    assert main(["experts", str(folder), "--set", "math", f"model={place}"]) == 2
    assert "name one of other.gguf, tiny.gguf with gguf_file of expert 'math'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "law", "modle=x"], "unknown key 'modle'. Did you mean 'model'?"),
        (["--set", "law", "cost=cheap"], "`cost` of expert 'law' must be a number"),
        (["--set", "laww", "cost=1"], "no expert 'laww' among ['code', 'law', 'math']. Did you mean 'law'?"),
        (["--set", "law"], "Give what to set of 'law'"),
        (["--set", "law", "cost"], "Expected KEY=VALUE to set of 'law', got 'cost'"),
        (["--set", "law", "name=court"], "An expert keeps its name"),
        (["--set", "law", "generation={"], "The value of generation is not YAML"),
        (["--set", "law", "endpoint=https://a.b/v1", "quantization={load_in_4bit: true}"], "has two sources"),
        (
            ["--set", "law", "adapter=org/a", "adapter_subfolder=../b"],
            "`adapter_subfolder` of expert 'law' must be names",
        ),
        (["--add", "law", "model=org/x", "domains=[]"], "`ir3de add --replace`"),
        (["--add", "new", "model=org/x"], "`ir3de experts --add` takes domains=[...]"),
        (["--set", "code", "cost=1", "--set", "law", "cost=x"], "`cost` of expert 'law'"),
    ],
)
def test_what_no_spec_may_say_is_refused_and_nothing_is_changed(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert main(["experts", str(folder), *options]) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
