"""A Hugging Face Space of the app: its files, and their upload."""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import yaml
from huggingface_hub import HfApi

import ir3de

ROOT = Path(ir3de.__file__).resolve().parent
_TITLE = "IR3DE router"
_EXTRAS = ("gguf", "adapters")  # gradio with MCP comes with the Space's SDK
_UNPINNED = "torch"  # the hardware of a Space decides which
_README = """\
# {title}

Which expert should answer a prompt, and why: a linear router over token embeddings
([arXiv 2606.06098](https://arxiv.org/abs/2606.06098)), with {router}.

The same server answers OpenAI's clients at `/v1` and MCP clients at `/gradio_api/mcp/`. Variables of the Space:
`IR3DE_ALLOW_EDIT=1` lets each visitor edit a copy of the router; `IR3DE_ROUTER`, `IR3DE_REVISION` and `IR3DE_SAMPLES`
stand for the router, its revision and a file of labelled sample prompts, `IR3DE_STORE` for where thumbs are kept.
"""
_APP = '''\
"""Starts the Space."""

import os

{settings}
from ir3de.app import main

main()
'''


def write_space(
    folder: Path, router: str | None = None, revision: str | None = None, samples: str | None = None
) -> None:
    """Writes the files of a Space.

    Args:
        folder (`Path`): an empty one.
        router (`str`, *optional*): Hub id; by default the embedded router.
        revision (`str`, *optional*): of the router.
        samples (`str`, *optional*): JSON Lines of labelled prompts, which travel along; by default the app shows those
            that travel with the router.
    """
    package = folder / "ir3de"
    skip = shutil.ignore_patterns("__pycache__")
    for part in ("scripts", "space", "quickstart"):
        shutil.copytree(ROOT / part, package / part, ignore=skip)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, package)
    settings = {"IR3DE_ROUTER": router, "IR3DE_REVISION": revision}
    if samples:
        shutil.copy(samples, folder / "samples.jsonl")
        settings["IR3DE_SAMPLES"] = "samples.jsonl"
    lines = [f"os.environ.setdefault({key!r}, {value!r})\n" for key, value in settings.items() if value]
    (folder / "app.py").write_text(_APP.format(settings="".join(lines)), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme(router), encoding="utf-8")


def requirements() -> list[str]:
    """What a Space installs beside Gradio: the versions that are installed here."""
    wanted = []
    for line in metadata.requires("ir3de") or []:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if extra and extra[1] not in _EXTRAS:
            continue
        wanted.append(line.split(";")[0].strip() if name == _UNPINNED else f"{name}=={metadata.version(name)}")
    return wanted


def readme(router: str | None) -> str:
    """The Space's README, whose front matter says how the Hub runs it."""
    front = {
        "title": _TITLE,
        "emoji": "🧭",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": metadata.version("gradio"),
        "python_version": "3.11",
        "app_file": "app.py",
        "license": "apache-2.0",
        "short_description": "Which expert LLM should answer, and why",
        "tags": ["ir3de", "router", "llm-routing", "mcp-server"],
        "models": [router or "HuggingFaceTB/SmolLM2-135M-Instruct"],
    }
    named = f"the router [{router}](https://huggingface.co/{router})" if router else "the embedded router"
    matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{matter}---\n\n{_README.format(title=_TITLE, router=named)}"


def publish_space(
    space: str,
    router: str | None = None,
    revision: str | None = None,
    samples: str | None = None,
    private: bool = False,
) -> str:
    """Makes or renews a Space.

    Args:
        space (`str`): its Hub id.
        router (`str`, *optional*): Hub id; by default the embedded router. It is pinned to its present commit.
        revision (`str`, *optional*): another commit, tag or branch of it.
        samples (`str`, *optional*): JSON Lines of labelled prompts.
        private (`bool`): whether a new Space is private.

    Returns:
        `str`: URL of the commit.

    Raises:
        ValueError: the router is a folder.
        OSError: the Hub refuses.
    """
    if router and Path(router).is_dir():
        raise ValueError(f"{router} is a folder, and a Space loads its router from the Hub: push it there first.")
    api = HfApi()
    sha = api.model_info(router, revision=revision).sha if router else None
    with tempfile.TemporaryDirectory() as folder:
        write_space(Path(folder), router, sha, samples)
        space = api.create_repo(space, repo_type="space", space_sdk="gradio", private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=space,
            repo_type="space",
            folder_path=folder,
            commit_message="Upload IR3DE's app",
            delete_patterns=["ir3de/**"],
        )
    return str(commit.commit_url)
