"""Publishing to a Hub, and loading from it where the package is not installed."""

import json
import os
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

import ir3de
from ir3de import IR3DEConfig, IR3DEModel, IR3DERoutingPipeline

from . import tiny
from .hub_server import OTHER_TOKEN, WRITE_TOKEN, Hub
from .test_second_opinion import second

PROMPTS = ["debug the python function", "the court and a judge", "square root of a prime"]
CODE = {path.name for path in Path(ir3de.__file__).parent.glob("*_ir3de.py")}
COMPLETE = {
    ".gitattributes",
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    *(f"statistics/{name}.safetensors" for name in tiny.DOMAINS),
    *CODE,
}
# Neither the editable installation (-S leaves out .pth files), nor the working folder or PYTHONPATH (-I), nor a package
# among the installed ones gives this process the package.
WITHOUT_PACKAGE = f"""
import json, sys
sys.path += {[*site.getsitepackages(), site.getusersitepackages()]!r}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ir3de":
            raise ModuleNotFoundError("No module named 'ir3de'", name=name)
sys.meta_path.insert(0, Absent())
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline
prompts, repo = {PROMPTS!r}, "user/router"
def tell(result):
    print()  # after the question whether to trust the code
    print(json.dumps(result))
def refused(load):
    try:
        load()
    except ValueError as error:
        return "trust_remote_code" in str(error)
"""


@pytest.fixture(scope="module")
def fresh(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs a script in a process without the package and returns what it prints as JSON in its last line."""
    home, elsewhere = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("elsewhere")

    def run(script: str, **environment: str) -> Any:
        hub_settings = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITE_TOKEN, "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", WITHOUT_PACKAGE + script],
            env={**os.environ, **hub_settings, "HF_HUB_DISABLE_XET": "1", **environment},
            cwd=elsewhere,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "to instantiate a model of type" not in done.stderr, "which says nothing true of a router"
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


def two_experts() -> IR3DEModel:
    """A router that law has left."""
    domains = tiny.domain_statistics()
    del domains["law"]
    config = IR3DEConfig(experts=[{"name": name} for name in domains])
    return IR3DEModel.from_statistics(config, tiny.embeddings(), domains, tiny.tokenizer())


def test_model_and_pipeline_publish_the_same_complete_repository(hub: Hub, router: IR3DEModel) -> None:
    router.push_to_hub("user/from-model", commit_message="First")
    IR3DERoutingPipeline(router, device="cpu").push_to_hub("user/from-pipeline", private=True)
    files = hub.files("user/from-model")
    assert files.keys() == COMPLETE
    again = hub.files("user/from-pipeline")
    card = (
        again["README.md"].replace(b"user/from-pipeline", b"user/from-model").replace(b"Upload IR3DE router", b"First")
    )
    assert {**again, "README.md": card} == files
    assert HfApi().list_repo_commits("user/from-model")[0].title == "First"
    assert HfApi().repo_info("user/from-pipeline").private
    info = HfApi().model_info("user/from-model")
    assert (info.library_name, info.pipeline_tag) == ("transformers", "text-generation")
    assert {"ir3de", "custom_code"} <= set(info.tags or [])


def test_saving_can_push_too(hub: Hub, router: IR3DEModel, tmp_path: Path) -> None:
    router.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="user/saved")
    assert hub.files("user/saved").keys() == COMPLETE


def test_a_stranger_without_the_package_loads_routes_and_publishes(
    hub: Hub, router: IR3DEModel, fresh: Callable[..., Any]
) -> None:
    router.push_to_hub("user/router")
    two_experts().push_to_hub("user/router", create_pr=True)
    before = IR3DERoutingPipeline(router, device="cpu")(PROMPTS, generate=False, explain=True)
    seen = fresh(
        """
never = [
    refused(lambda: AutoConfig.from_pretrained(repo)),
    refused(lambda: AutoModel.from_pretrained(repo)),
    refused(lambda: pipeline("ir3de-routing", model=repo)),
]
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(repo, **trust)
tokenizer = AutoTokenizer.from_pretrained(repo, **trust)
model = AutoModel.from_pretrained(repo, **trust)
batch = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
router = pipeline("ir3de-routing", model=repo, **trust)
proposed = AutoModel.from_pretrained(repo, revision="refs/pr/1", **trust)
first = {
    "refused": never,
    "experts": config.expert_names,
    "routes": [config.id2label[i] for i in model(**batch).logits.argmax(dim=1).tolist()],
    "records": router(prompts, generate=False, explain=True),
    "modules": [type(part).__module__.partition(".")[0] for part in (config, model, router)],
    "proposed": proposed.config.expert_names,
    "proposed in a pipeline": pipeline("ir3de-routing", model=repo, revision="refs/pr/1", **trust)(
        prompts[1], generate=False
    )["expert"],
}
model.push_to_hub("user/model-again")
router.push_to_hub("user/pipeline-again")
proposed.push_to_hub("user/proposed-again")
tell(first)
"""
    )
    assert seen["refused"] == [True, True, True]
    assert seen["experts"] == list(tiny.DOMAINS)
    assert seen["routes"] == list(tiny.DOMAINS)
    assert seen["records"] == before
    assert seen["modules"] == ["transformers_modules"] * 3
    assert seen["proposed"] == ["code", "math"]
    assert seen["proposed in a pipeline"] in ["code", "math"]

    first = hub.files("user/router")
    assert first.keys() == COMPLETE, "the pull request is still open"
    for again in ("user/model-again", "user/pipeline-again"):
        files = hub.files(again)
        assert files.keys() == first.keys()
        changed = {name for name in first if files[name] != first[name]}
        assert changed <= {"README.md", "config.json", "tokenizer_config.json"}
        configs = [json.loads(each["config.json"]) for each in (first, files)]
        for field in ("auto_map", "custom_pipelines"):
            assert configs[0][field] == configs[1][field], f"{field} must not point at the first repository"
    assert hub.files("user/proposed-again").keys() == COMPLETE - {"statistics/law.safetensors"}

    offline = fresh(
        """
trust = {"trust_remote_code": True}
router = pipeline("ir3de-routing", model=repo, **trust)
router.save_pretrained("folder")
from_folder = pipeline("ir3de-routing", model="folder", **trust)
model = AutoModel.from_pretrained("folder", **trust)
model.fit()
model.save_pretrained("folder")
tell([each(prompts, generate=False, explain=True) for each in (router, from_folder)])
""",
        HF_HUB_OFFLINE="1",
    )
    assert offline == [before, before]


def test_what_people_wrote_in_the_card_survives_a_push(hub: Hub, router: IR3DEModel) -> None:
    router.push_to_hub("user/card")
    card = hub.files("user/card")["README.md"].decode()
    mine = card.replace("tags:", "license: mit\ntags:\n- mine", 1).replace(
        "# An IR3DE router", "# My router\n\nBefore."
    )
    HfApi().upload_file(path_or_fileobj=f"{mine}\nAfter.\n".encode(), path_in_repo="README.md", repo_id="user/card")
    two_experts().push_to_hub("user/card")
    card = hub.files("user/card")["README.md"].decode()
    assert "license: mit" in card
    assert "# My router\n\nBefore." in card
    assert card.rstrip().endswith("After.")
    assert "Routes a prompt to one of 2 domain experts" in card
    assert card.count("Routes a prompt to one of") == 1
    two_experts().push_to_hub("user/card")
    assert hub.files("user/card")["README.md"].decode() == card


def test_a_push_removes_the_statistics_of_an_expert_that_left(hub: Hub, router: IR3DEModel) -> None:
    router.push_to_hub("user/leaving")
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="user/leaving")
    two_experts().push_to_hub("user/leaving")
    assert hub.files("user/leaving").keys() == COMPLETE - {"statistics/law.safetensors"} | {"notes.txt"}


def test_a_push_to_a_new_branch_makes_it(hub: Hub, router: IR3DEModel) -> None:
    router.push_to_hub("user/branches")
    two_experts().push_to_hub("user/branches", revision="next")
    assert "statistics/law.safetensors" in hub.files("user/branches")
    assert "statistics/law.safetensors" not in hub.files("user/branches", revision="next")


def test_a_stranger_proposes_without_the_right_to_write(hub: Hub, router: IR3DEModel) -> None:
    router.push_to_hub("user/guarded")
    before = hub.files("user/guarded")
    info = two_experts().push_to_hub("user/guarded", token=OTHER_TOKEN, create_pr=True)
    assert info.pr_url.endswith("/user/guarded/discussions/1")
    assert hub.files("user/guarded") == before
    assert "statistics/law.safetensors" not in hub.files("user/guarded", revision="refs/pr/1")


def test_an_unknown_repository_is_an_error_that_names_it(hub: Hub) -> None:
    with pytest.raises(OSError, match="user/absent"):
        IR3DEModel.from_pretrained("user/absent")


def test_a_second_opinion_travels_with_the_router(hub: Hub, router: IR3DEModel, fresh: Callable[..., Any]) -> None:
    opinion, own = second(), {"config.json", *(f"statistics/{name}.safetensors" for name in tiny.DOMAINS)}
    both = IR3DERoutingPipeline(router, device="cpu", second_opinion=opinion, second_below=1)
    both.push_to_hub("user/two")
    complete = COMPLETE | {f"second/{name}" for name in own}
    assert hub.files("user/two").keys() == complete
    expected = opinion.probabilities(PROMPTS, list(tiny.DOMAINS)).tolist()
    seen = fresh(
        f"""
vectors = dict(zip(prompts, {opinion.encode(PROMPTS).tolist()!r}))
probe = {opinion.probe.tolist()!r}
router = pipeline("ir3de-routing", model="user/two", trust_remote_code=True, second_opinion=True, second_below=1)
router.second_opinion._encoder = lambda texts: [vectors.get(text, probe) for text in texts]
records = router(prompts, generate=False)
model = AutoModel.from_pretrained("user/two", trust_remote_code=True)
model.push_to_hub("user/two-again")
p = router.second_opinion.probabilities(prompts, router.model.config.expert_names).tolist()
tell([records, p, type(router.second_opinion).__module__.partition(".")[0]])
"""
    )
    for record, before in zip(seen[0], both(PROMPTS, generate=False), strict=True):
        assert record["second_opinion"]
        assert record["score"] == pytest.approx(before["score"], abs=1e-9)
    assert seen[1] == [pytest.approx(row, abs=1e-9) for row in expected]
    assert seen[2] == "transformers_modules"
    assert hub.files("user/two-again").keys() == complete

    two_experts().push_to_hub("user/two")  # a router that has none leaves it; one that has replaces it
    assert hub.files("user/two").keys() == complete - {"statistics/law.safetensors"}
    opinion.remove_expert("law")
    both.push_to_hub("user/two")
    assert hub.files("user/two").keys() == complete - {"second/statistics/law.safetensors"}
