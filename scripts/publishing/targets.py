"""Edits of a router in a folder or on the Hub: what `ir3de add`, `remove`, `merge` and `publish` share."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.scripts.publishing.options import TargetRouter

Edit = Callable[[IR3DEModel], None]

ATTEMPTS = 30  # to publish, while others publish too
_PAUSE = 0.2  # seconds before the second attempt; it grows up to _LONGEST_PAUSE
_LONGEST_PAUSE = 10.0


def apply_edit(target: TargetRouter, edit: Edit, message: str) -> str:
    """Edits a router where it lives.

    Args:
        target ([`TargetRouter`]): which router, and where the result goes.
        edit (`Callable`): changes the loaded router, or raises.
        message (`str`): says what it does, in the imperative.

    Returns:
        `str`: where the result is.
    """
    if target.output is None and not Path(target.router).is_dir():
        return publish(target.router, edit, message, target.create_pr)
    place = target.output or target.router
    if target.create_pr:
        raise ValueError(f"--create-pr opens a pull request on the Hub, but the result goes to {place}.")
    model = IR3DEModel.from_pretrained(target.router)
    edit(model)
    model.save_pretrained(place)
    return place


def publish(
    repo_id: str, edit: Edit, message: str, create_pr: bool = False, token: str | None = None, attempts: int = ATTEMPTS
) -> str:
    """Edits a router on the Hub by one commit that builds on the branch's head, also while others do the same.

    Where another commit came first, the edit is done anew on the new head: contributions are a union, so nobody's is
    lost, and the order does not matter.

    Args:
        repo_id (`str`): of the router.
        edit (`Callable`): changes the loaded router, or raises.
        message (`str`): title of the commit.
        create_pr (`bool`): open a pull request instead.
        token (`str`, *optional*): by default the login.
        attempts (`int`): after which it gives up.

    Returns:
        `str`: URL of the commit or pull request.

    Raises:
        RuntimeError: the branch moved on during every attempt.
        OSError: the repository is missing or may not be written.
    """
    api = HfApi(token=token)
    for attempt in range(attempts):
        head = api.model_info(repo_id, revision="main").sha
        model = IR3DEModel.from_pretrained(repo_id, revision=head, token=token)
        edit(model)
        try:
            commit = model.push_to_hub(
                repo_id, commit_message=message, create_pr=create_pr, parent_commit=head, token=token
            )
            return str(commit.pr_url or commit.commit_url)
        except HfHubHTTPError as error:
            check_permission(error, repo_id)
            if error.response.status_code != HTTPStatus.PRECONDITION_FAILED:
                raise
        time.sleep(random.uniform(0, min(_LONGEST_PAUSE, _PAUSE * 2**attempt)))
    raise RuntimeError(
        f"Others committed to {repo_id} during each of {attempts} attempts. Nothing was published and your files are"
        " unchanged: try again, or with --create-pr."
    )


def check_permission(error: HfHubHTTPError, repo_id: str) -> None:
    """Raises PermissionError where the Hub refused for lack of rights."""
    if error.response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise PermissionError(
            f"You may not write to {repo_id} ({error.response.status_code}). Your files are unchanged. Log in with"
            " `hf auth login` and a token that may write, or propose the change with --create-pr."
        ) from error
