"""Edits of a router in a folder or on the Hub: what `ir3de add`, `remove`, `merge` and `publish` share."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.portable_ir3de import check_portable, private_parts
from ir3de.samples_ir3de import SAMPLES_NAME
from ir3de.scripts.command import check_folder
from ir3de.scripts.publishing.options import TargetRouter

Edit = Callable[[IR3DEModel], None]

ATTEMPTS = 30  # to publish, while others publish too
_PAUSE = 0.2  # seconds before the second attempt; it grows up to _LONGEST_PAUSE
_LONGEST_PAUSE = 10.0
_SHOWN = 80  # characters of a sample


def check_target(target: TargetRouter) -> None:
    """Refuses a pull request for what goes to a folder, and a folder that cannot be written to.

    Raises:
        ValueError: one is asked for.
    """
    if target.create_pr and (target.output is not None or Path(target.router).is_dir()):
        place = target.output or target.router
        raise ValueError(f"--create-pr opens a pull request on the Hub, but the result goes to {place}.")
    check_folder(target.output)
    if target.output is None and Path(target.router).is_dir():
        check_folder(target.router, "name a folder for the result with --output")


def apply_edit(target: TargetRouter, edit: Edit, message: str) -> str:
    """Edits a router where it lives.

    Args:
        target ([`TargetRouter`]): which router, and where the result goes.
        edit (`Callable`): changes the loaded router, or raises.
        message (`str`): says what it does, in the imperative.

    Returns:
        `str`: where the result is.
    """
    check_target(target)
    if target.output is None and not Path(target.router).is_dir():
        return publish(target.router, edit, message, target.create_pr, allow_private=target.allow_private)
    place = target.output or target.router
    model = IR3DEModel.from_pretrained(target.router)
    edit(model)
    model.save_pretrained(place)
    return place


def publish(
    repo_id: str,
    edit: Edit,
    message: str,
    create_pr: bool = False,
    token: str | None = None,
    attempts: int = ATTEMPTS,
    allow_private: bool = False,
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
        allow_private (`bool`): publish folders of this machine and addresses of private networks that an expert names.
            What experts on the Hub name already stays as it is.

    Returns:
        `str`: URL of the commit or pull request.

    Raises:
        ValueError: an expert that is new names what is of this machine alone. Nothing was sent.
        RuntimeError: the branch moved on during every attempt.
        OSError: the repository is missing or may not be written.
    """
    api = HfApi(token=token)
    for attempt in range(attempts):
        head = api.model_info(repo_id, revision="main").sha
        model = IR3DEModel.from_pretrained(repo_id, revision=head, token=token)
        there = list(model.config.specs)
        edit(model)
        if not allow_private:
            check_portable(spec for spec in model.config.specs if spec not in there)
        try:
            commit = model.push_to_hub(
                repo_id,
                commit_message=message,
                create_pr=create_pr,
                parent_commit=head,
                token=token,
                allow_private=True,
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


def push_folder(folder: str, target: TargetRouter) -> str:
    """Publishes the router of a folder; on a terminal it asks before it sends what is of this machine alone.

    Args:
        folder (`str`): of the router.
        target ([`TargetRouter`]): where it goes.

    Returns:
        `str`: URL of the commit or pull request.

    Raises:
        ValueError: an expert is of this machine alone, and nobody says that it may be read. Nothing was sent.
        OSError: the Hub refuses.
    """
    model = IR3DEModel.from_pretrained(folder)
    if model.samples and not _may_read_samples(model, target.router):
        model.samples = []
    try:
        commit = model.push_to_hub(
            target.router, create_pr=target.create_pr, allow_private=target.allow_private or _is_allowed(model)
        )
    except HfHubHTTPError as error:
        check_permission(error, target.router)
        raise
    return str(commit.pr_url or commit.commit_url)


def _is_allowed(model: IR3DEModel) -> bool:
    """Whether a person at a terminal says that others may read what is of this machine alone."""
    opinion = model.second_opinion
    parts = private_parts(model.config.specs, opinion.encoder if opinion else None)
    if not parts or not sys.stdin.isatty():
        return False
    print("Others could read this, and not use it:", *parts, sep="\n  ", file=sys.stderr)
    return input("Publish it all the same? [y/N] ").strip().lower() in ("y", "yes")


def _may_read_samples(model: IR3DEModel, repo_id: str) -> bool:
    """Whether the sample prompts may be read where they were not so far; without a terminal their owner chose so."""
    if not sys.stdin.isatty() or HfApi().file_exists(repo_id, SAMPLES_NAME):
        return True
    first = [f"{sample.domain}: {sample.text[:_SHOWN]!r}" for sample in model.samples[:3]]
    print(
        f"{len(model.samples):,} sample prompts of the router go to {repo_id}, such as",
        *first,
        sep="\n  ",
        file=sys.stderr,
    )
    return input("May whoever reads that repository read them? [y/N] ").strip().lower() in ("y", "yes")


def check_permission(error: HfHubHTTPError, repo_id: str) -> None:
    """Raises PermissionError where the Hub refused for lack of rights."""
    if error.response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise PermissionError(
            f"You may not write to {repo_id} ({error.response.status_code}). Your files are unchanged. Log in with"
            " `hf auth login` and a token that may write, or propose the change with --create-pr."
        ) from error
