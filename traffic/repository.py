"""The place on the Hub where servers exchange outcomes: a branch of a repository, such as the router's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from .errors import ExchangeRefused, MovedOn
from .exchange import FOLDER, Found

# Of its own: a router that is watched does not change with it, and its history may be forgotten.
BRANCH = "exchange"


class Repository:
    """
    A branch of a repository on the Hub, a [`Place`] of exchange.

    Args:
        repo_id (`str`): of the repository, which exists.
        token (`str`, *optional*): by default the login.
        endpoint (`str`, *optional*): of the Hub.
    """

    def __init__(self, repo_id: str, token: str | None = None, endpoint: str | None = None) -> None:
        self.repo_id = repo_id
        self._api = HfApi(endpoint, token)

    def head(self) -> str:
        """The branch's commit; empty where there is no such branch."""
        with self._reached():
            try:
                return str(self._api.model_info(self.repo_id, revision=BRANCH).sha)
            except RevisionNotFoundError:
                return ""

    def files(self, head: str) -> dict[str, Found]:
        """The files of exchange in a commit."""
        with self._reached():
            try:
                entries = list(self._api.list_repo_tree(self.repo_id, FOLDER, recursive=True, revision=head))
            except EntryNotFoundError:
                return {}
        files = (entry for entry in entries if isinstance(entry, RepoFile))
        return {file.path: Found(file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in files}

    def fetch(self, head: str, path: str, folder: Path) -> Path:
        """Downloads a file, past the cache of the Hub: what is read once would fill it."""
        with self._reached():
            return Path(self._api.hf_hub_download(self.repo_id, path, revision=head, local_dir=folder))

    def commit(self, head: str, files: Mapping[str, bytes | None], message: str) -> None:
        """Commits files on top of a commit, and makes the branch where there is none."""
        with self._reached():
            if not head:
                self._api.create_branch(self.repo_id, branch=BRANCH, exist_ok=True)
                raise MovedOn
            operations = [
                CommitOperationDelete(path) if content is None else CommitOperationAdd(path, content)
                for path, content in files.items()
            ]
            try:
                self._api.create_commit(
                    self.repo_id, operations, commit_message=message, revision=BRANCH, parent_commit=head
                )
            except HfHubHTTPError as error:
                if error.response.status_code == HTTPStatus.PRECONDITION_FAILED:
                    raise MovedOn from None
                raise

    def forget(self) -> None:
        """Leaves of the branch's history the present files alone, as where something was taken back."""
        with self._reached():
            self._api.super_squash_history(self.repo_id, branch=BRANCH, commit_message="Outcomes of traffic")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raises what keeps the Hub from being reached as one kind of error, in few words."""
        try:
            yield
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx2.HTTPError, OSError) as error:
            raise ExchangeRefused(f"{self.repo_id} cannot be used: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What the Hub said, without addresses."""
    if not isinstance(error, HfHubHTTPError):
        return type(error).__name__
    status = error.response.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"{status}, the login may not read or write it"
    if status == HTTPStatus.NOT_FOUND:
        return f"{status}, there is no such repository for this login"
    return f"{status} {error.response.reason_phrase}"
