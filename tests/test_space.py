"""A Space: what is published starts by itself, from its own files."""

import importlib.machinery
import json
import os
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from huggingface_hub import HfApi

from ir3de import app
from ir3de.scripts import cli
from ir3de.scripts.publishing.space import requirements, write_space
from ir3de.space import sharing

from . import tiny
from .hub_server import READ_TOKEN, WRITE_TOKEN, used_here
from .live_app import make_site


def test_the_files_of_a_space_start_the_app(tmp_path: Path) -> None:
    tiny.router().save_pretrained(tmp_path / "router")
    (tmp_path / "space").mkdir()
    (tmp_path / "mine.jsonl").write_text('{"text": "court", "domain": "law"}\n')
    write_space(tmp_path / "space", str(tmp_path / "router"), samples=str(tmp_path / "mine.jsonl"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "import ir3de, runpy; print(ir3de.__file__, flush=True); runpy.run_path('app.py', run_name='__main__')"
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(tmp_path / "space")}
    with open(tmp_path / "log", "w") as log:
        started = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path / "space", env=environment, stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + 90
        while True:
            try:
                answer = urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
                break
            except (URLError, OSError):
                assert started.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.3)
        assert b'"ir3de"' in answer
        assert b"IR3DE: which expert" in urlopen(f"http://127.0.0.1:{port}/", timeout=20).read()
    finally:
        started.terminate()
        started.wait(20)
    lines = (tmp_path / "log").read_text().splitlines()
    assert str(tmp_path / "space" / "ir3de" / "__init__.py") in lines


@pytest.fixture
def api(tmp_path: Path) -> Iterator[HfApi]:
    """A running Hub, where this process is not logged in."""
    with used_here(tmp_path / "cache") as hub:
        yield HfApi(endpoint=hub.url, token=WRITE_TOKEN)


def test_a_space_is_published_and_pins_its_router(
    api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    api.create_repo("user/router")
    for _ in range(2):  # anew, and renewed
        assert cli.main(["publish", "--space", "user/demo", "--router", "user/router"]) == 0
    files = set(api.list_repo_files("user/demo", repo_type="space"))
    assert {"app.py", "README.md", "requirements.txt", "ir3de/app.py", "ir3de/space/style.css"} <= files
    assert not any("__pycache__" in name for name in files)
    read = {
        name: Path(api.hf_hub_download("user/demo", name, repo_type="space", local_dir=tmp_path)).read_text()
        for name in ("app.py", "README.md")
    }
    sha = api.model_info("user/router").sha
    assert sha in read["app.py"]
    assert "'user/router'" in read["app.py"]
    front = yaml.safe_load(read["README.md"].split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["models"] == ["user/router"]
    assert len(front["short_description"]) <= 60
    assert cli.main(["publish", "--space", "user/demo", "--router", str(tmp_path)]) == 2
    assert "push it there first" in capsys.readouterr().err


def test_a_visitor_pushes_with_a_token_of_their_own(api: HfApi, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.router()
    done, said = sharing.push(model, "user/mine", WRITE_TOKEN, False)
    assert done
    assert "user/mine" in said
    assert "config.json" in api.list_repo_files("user/mine")
    done, said = sharing.push(model, "user/mine", READ_TOKEN, False)
    assert not done
    assert READ_TOKEN not in said + caplog.text
    assert WRITE_TOKEN not in caplog.text


def test_experts_of_a_router_on_the_hub_join_unless_they_answer_from_elsewhere(api: HfApi) -> None:
    router = tiny.router({"law": {"model": "org/law"}})
    router.push_to_hub("user/good", token=WRITE_TOKEN)
    tiny.router({"law": {"model": "law", "endpoint": "http://127.0.0.1/v1"}}).push_to_hub(
        "user/bad", token=WRITE_TOKEN, allow_private=True
    )
    tiny.router({"law": {"model": "/etc"}}).push_to_hub("user/worse", token=WRITE_TOKEN, allow_private=True)
    mine = tiny.router()
    mine.remove_expert("law")
    mine.merge(router)
    assert mine.config.expert_names == sharing.stranger("user/good").config.expert_names
    for repo in ("user/bad", "user/worse"):
        with pytest.raises(ValueError, match=r"elsewhere|id of a repository"):
            sharing.stranger(repo)
    with pytest.raises(OSError, match="user/absent"):
        sharing.stranger("user/absent")


def test_answers_are_made_on_lent_hardware_where_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    lent = types.ModuleType("spaces")
    lent.GPU = lambda function: lambda *args: ["lent", *function(*args)]
    lent.__spec__ = importlib.machinery.ModuleSpec("spaces", None)
    assert app._on_lent_hardware(list)("ab") == ["a", "b"]
    monkeypatch.setitem(sys.modules, "spaces", lent)
    assert app._on_lent_hardware(list)("ab") == ["lent", "a", "b"]


def test_a_space_installs_what_the_package_needs_and_nothing_else() -> None:
    names = {line.split("=")[0].split(">")[0] for line in requirements()}
    assert {"torch", "transformers", "peft", "gguf"} <= names
    assert not names & {"gradio", "pytest", "ir3de", "scikit-learn"}


def test_publish_takes_statistics_or_a_space(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["x.safetensors"], ["x.safetensors", "--space", "a/b", "--router", "c/d"]):
        assert cli.main(["publish", *arguments]) == 2
        assert "Give a statistics file" in capsys.readouterr().err


def test_a_visitors_expert_is_fetched_without_the_owners_login(
    api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    folder = tiny.expert(tmp_path / "model", seed=1, chat=True)
    for repo, private in (("user/secret", True), ("user/open", False)):
        api.create_repo(repo, private=private)
        api.upload_folder(repo_id=repo, folder_path=folder)
    site = make_site({name: {"model": "user/secret"} for name in tiny.DOMAINS})
    site.router("the court", max_new_tokens=1, on_error="raise")
    for model, works in (("user/open", True), ("user/secret", False)):
        spec = {"name": "art", "model": model}
        visitor = site.edited(None, lambda router, spec=spec: router.add_expert(spec, texts=["python court"]))
        visitor.router("the court", max_new_tokens=1, experts=["law"], on_error="raise")  # the owner's own still answer
        record = visitor.router("the court", max_new_tokens=1, experts=["art"])
        assert (record["generated_text"] is not None) == works
        assert ("failures" in record) != works


def test_a_strangers_expert_sends_nothing_elsewhere_and_reads_no_folder(
    api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    base = tiny.expert(tmp_path / "base", seed=1, chat=True)
    api.create_repo("user/adapter")
    adapter = json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}).encode()
    api.upload_file(repo_id="user/adapter", path_or_fileobj=adapter, path_in_repo="adapter_config.json")
    pool = make_site({name: {"model": base} for name in tiny.DOMAINS}).router.copy()
    pool.experts = pool.experts.for_strangers()
    for spec, reason in (
        ({"endpoint": "https://93.184.216.34/v1"}, "sends prompts elsewhere"),
        ({"provider": "auto", "model": "org/a"}, "sends prompts elsewhere"),
        ({"model": base}, "must be the id of a repository"),
        ({"adapter": base}, "must be the id of a repository"),
        ({"model": "user/x", "trust_remote_code": True}, "runs code"),
        ({"adapter": "user/adapter"}, "The base of the adapter user/adapter must be the id"),
    ):
        pool.model.replace_expert("math", {"name": "math", **spec})
        [answer] = pool.experts.generate("math", ["the court"], 1, max_new_tokens=1)
        assert isinstance(answer, ValueError), answer
        assert reason in str(answer)
        with pytest.raises(ValueError, match=reason):
            list(pool.experts.stream("math", "the court", max_new_tokens=1))


def test_the_app_gives_experts_no_more_than_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"model": tiny.expert(tmp_path / "base", seed=1, chat=False)}
    tiny.router({"law": spec}).save_pretrained(tmp_path / "router")
    assert app.load(str(tmp_path / "router")).router.experts._budget > 2**20
    monkeypatch.setenv("IR3DE_MAX_MEMORY", "100")
    record = app.load(str(tmp_path / "router")).router("the court", max_new_tokens=1)
    assert "max_memory is 100" in record["failures"][0]["error"]


def test_the_app_sends_prompts_into_no_private_network_for_a_router_of_the_hub(
    api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = tiny.router({"law": {"endpoint": "http://127.0.0.1:9/v1"}})
    router.push_to_hub("user/inside", token=WRITE_TOKEN, allow_private=True)
    with pytest.raises(ValueError, match=r"127\.0\.0\.1.*not public.*IR3DE_ALLOW_HOSTS"):
        app.load("user/inside")
    monkeypatch.setenv("IR3DE_ALLOW_HOSTS", "10.0.0.1, 127.0.0.1")
    loaded = app.load("user/inside").router
    assert loaded("the court", generate=False)["expert"] == "law"
    assert "public" not in loaded.experts.spec("law")
    elsewhere = {"law": {"endpoint": "https://1.1.1.1/v1"}}
    tiny.router(elsewhere).push_to_hub("user/outside", token=WRITE_TOKEN)
    assert app.load("user/outside").router.experts.spec("law")["public"], "each connection is looked at"
