"""What comes to a visitor's router from the Hub, and how it leaves: as a file, or with the visitor's own token."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from gradio.utils import get_upload_folder
from huggingface_hub.errors import HfHubHTTPError

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.scripts.fitting.embedded import as_published
from ir3de.scripts.publishing.targets import check_permission
from ir3de.specs_ir3de import check_hub_id, check_strangers_spec

_FOLDERS = re.compile(r"(?<!\w)(?:/[\w.@-]+)+/")


def stranger(repo: str) -> IR3DEModel:
    """A router on the Hub whose experts may join: they send prompts nowhere, and read no folder of this machine.

    Raises:
        ValueError: it is named otherwise than by its id, or an expert answers from elsewhere.
        OSError: it is not public, or the Hub cannot be reached.
    """
    repo = check_hub_id("The router", repo.strip())
    router: IR3DEModel = IR3DEModel.from_pretrained(repo, token=False)
    for spec in router.config.experts or []:
        check_strangers_spec(spec)
    return router


def public_words(error: Exception) -> str:
    """What a visitor learns of an error: of a refusal its words without folders, of others their kind."""
    if isinstance(error, ValueError):
        return _FOLDERS.sub("", str(error))
    return f"It cannot be read ({type(error).__name__}): check its name, and that it is public."


def packed(model: IR3DEModel) -> str:
    """The router as a zip file in Gradio's cache, with which it is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        _portable(model).save_pretrained(Path(folder, "router"))
        cache = Path(get_upload_folder())
        cache.mkdir(parents=True, exist_ok=True)  # Gradio makes it with the first upload
        target = tempfile.mkdtemp(dir=cache)
        return shutil.make_archive(str(Path(target, "router")), "zip", folder, "router")


def push(model: IR3DEModel, repo: str, token: str, as_pr: bool) -> tuple[bool, str]:
    """Pushes a router with a visitor's token.

    Returns:
        `tuple[bool, str]`: whether it worked, and what to tell the visitor; never the token.
    """
    if not token:
        return False, "Give a token that may write."
    try:
        repo = check_hub_id("The router", repo.strip())
        made = _portable(model)
        commit = made.push_to_hub(repo, token=token, create_pr=as_pr)
        told = f" With it went its {len(made.samples):,} sample prompts." if made.samples else ""
        return True, f"Pushed: {commit.pr_url or commit.commit_url}{told}"
    except HfHubHTTPError as error:
        try:
            check_permission(error, repo)
        except PermissionError:
            return False, f"This token may not write to {repo}."
        return False, f"The Hub did not take it ({type(error).__name__})."
    except (OSError, ValueError) as error:
        return False, public_words(error).replace(token, "...")


def _portable(model: IR3DEModel) -> IR3DEModel:
    """A copy of a router whose experts name no folder of this machine."""
    made = model.copy()
    made.config.set_experts([as_published(spec) for spec in made.config.experts or []])
    return made
