"""What a push takes along, and what of this machine alone it names first."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from ir3de import IR3DEModel, IR3DERoutingPipeline
from ir3de.portable_ir3de import is_internal, private_parts
from ir3de.scripts.cli import main

from . import tiny
from .hub_server import Hub
from .test_experts import adapter
from .test_second_opinion import second

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


@pytest.mark.parametrize(
    ("endpoint", "internal"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1:8000/v1", True),
        ("https://10.1.2.3/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://[fd00::1]/v1", True),
        ("http://llm-server:8000/v1", True),
        ("https://llm.corp/v1", True),
        ("https://api.example.com/v1", False),
        ("https://8.8.8.8/v1", False),
    ],
)
def test_addresses_of_private_networks_are_known_without_dns(endpoint: str, internal: bool) -> None:
    assert is_internal(endpoint) == internal


def test_each_private_part_is_named(tmp_path: Path, expert_specs: dict[str, dict[str, Any]]) -> None:
    local = adapter(expert_specs["code"]["model"], tmp_path / "adapter", seed=1)
    specs: list[Any] = [
        {"name": "a", "model": "org/public"},
        {"name": "b", "model": "/models/own"},
        {"name": "c", "model": "served", "endpoint": "http://gpu-box:8000/v1"},
        {"name": "d", "adapter": local},
        {"name": "e", "model": "/models/name-at-the-server", "endpoint": "https://api.example.com/v1"},
        {"name": "f"},
    ]
    parts = private_parts(specs, "/encoders/own")
    assert [part.split(" in ")[0].split(" at ")[0] for part in parts] == [
        "expert 'b' has its model",
        "expert 'c' answers",
        "the adapter of expert 'd' has its base",
        "the second opinion has its encoder",
    ]
    assert private_parts(specs[:1], "sentence-transformers/all-MiniLM-L6-v2") == []


def test_a_push_names_what_is_private_before_anything_is_sent(hub: Hub) -> None:
    made = tiny.router({"law": {"model": "served", "endpoint": "http://10.0.0.5:8000/v1"}})
    with pytest.raises(ValueError, match="expert 'law' answers at http"):
        made.push_to_hub("user/private")
    assert not HfApi().repo_exists("user/private")
    made.push_to_hub("user/private", allow_private=True)
    loaded = IR3DEModel.from_pretrained("user/private")
    assert loaded.config.specs == made.config.specs
    made = tiny.router()
    made.second_opinion = second()
    made.second_opinion.encoder = "/home/me/encoder"
    with pytest.raises(ValueError, match="encoder in /home/me/encoder"):
        made.push_to_hub("user/private")


def test_adapters_in_folders_travel_and_answer_from_the_hub(
    hub: Hub,
    expert_specs: dict[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = expert_specs["code"]["model"]
    spec = {"model": base, "adapter": adapter(base, tmp_path / "law-adapter", seed=1)}
    here = IR3DERoutingPipeline(tiny.router({"law": spec}), device="cpu")
    here.save_pretrained(tmp_path / "router")
    assert main(["publish", str(tmp_path / "router"), "--router", "user/adapted"]) == 2
    assert f"expert 'law' has its model in {base}" in capsys.readouterr().err
    assert main(["publish", str(tmp_path / "router"), "--router", "user/adapted", "--allow-private"]) == 0
    assert here.model.config.specs[1] == {"name": "law", **spec}, "the router here is as it was"
    loaded = IR3DERoutingPipeline(IR3DEModel.from_pretrained("user/adapted"), device="cpu")
    law = loaded.model.config.specs[1]
    assert (law["adapter"], law["adapter_subfolder"]) == ("user/adapted", "adapters/law")
    assert loaded("the court", **GREEDY)["generated_text"] == here("the court", **GREEDY)["generated_text"]
    card = Path(HfApi().hf_hub_download("user/adapted", "README.md")).read_text()
    assert str(tmp_path) not in card
    assert "user/adapted" in card
    loaded.model.push_to_hub("user/copy", allow_private=True)
    config = json.loads(Path(HfApi().hf_hub_download("user/copy", "config.json")).read_text())
    assert config["experts"][1] == law, "an adapter on the Hub stays where it is"


def test_what_the_hub_names_already_asks_nobody_again(hub: Hub, tmp_path: Path) -> None:
    private = {"model": "served", "endpoint": "http://10.0.0.5:8000/v1"}
    tiny.router({"law": private}).push_to_hub("user/known", allow_private=True)
    assert main(["experts", "user/known", "--set", "math", "model=org/math"]) == 0
    pairs = ["model=served", "endpoint=http://10.0.0.6:8000/v1"]
    assert main(["experts", "user/known", "--set", "code", *pairs]) == 2
    assert main(["experts", "user/known", "--set", "code", *pairs, "--allow-private"]) == 0


def test_on_a_terminal_a_person_is_asked(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny.router({"law": {"model": "served", "endpoint": "http://gpu-box/v1"}}).save_pretrained(tmp_path / "router")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    answers = iter(["n", "yes"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    publish = ["publish", str(tmp_path / "router"), "--router", "user/asked"]
    assert main(publish) == 2
    assert "expert 'law' answers at http://gpu-box/v1" in capsys.readouterr().err
    assert not HfApi().repo_exists("user/asked")
    assert main(publish) == 0
    assert HfApi().repo_exists("user/asked")
