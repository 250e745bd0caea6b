"""A small in-memory Hugging Face Hub, so that tests can publish and download without a network.

It speaks the part of the Hub's HTTP interface that `huggingface_hub` uses to create repositories, commit,
upload large files (LFS basic transfer), open and merge pull requests, and download:

```py
with serve() as (url, hub):
    api = HfApi(endpoint=url, token=WRITE_TOKEN)
    api.create_repo("user/router")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="user/router")
    assert hub.files("user/router")["config.json"] == b"{}"
```

The client must not use Xet storage, which this Hub does not have: set `HF_HUB_DISABLE_XET=1` before
`huggingface_hub` is imported, or `huggingface_hub.constants.HF_HUB_DISABLE_XET = True` after it.
"""

import base64
import hashlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
import uvicorn
import yaml  # type: ignore[import-untyped, unused-ignore]
from huggingface_hub import HfApi, constants
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Json = dict[str, Any]

WRITE_TOKEN = "hf_write"
READ_TOKEN = "hf_read"
OTHER_TOKEN = "hf_other"

MAIN = "refs/heads/main"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".onnx", ".msgpack", ".parquet", ".model", ".h5")
LFS_THRESHOLD = 10 * 1024 * 1024
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
SPACE_SDKS = ("gradio", "docker", "static")


class HubError(Exception):
    """An answer other than success.

    Args:
        status: the HTTP status.
        message: what went wrong, sent as the body's `error` and as `X-Error-Message`.
        code: the Hub's `X-Error-Code`, from which the client picks its exception class.
        headers: further response headers.
        extra: further fields of the JSON body.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Json | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {
            "X-Error-Message": message.encode("ascii", "backslashreplace").decode(),
            **(headers or {}),
        }
        if code is not None:
            self.headers["X-Error-Code"] = code
        self.body: Json = {"error": message, **(extra or {})}

    def response(self) -> Response:
        """The HTTP response that tells the client of this error."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def entry_not_found(message: str, commit: "Commit") -> HubError:
    """The error for a path that a commit does not contain."""
    return HubError(HTTPStatus.NOT_FOUND, message, "EntryNotFound", {"X-Repo-Commit": commit.oid})


def timestamp() -> str:
    """The current time as the Hub writes it, `2024-05-01T12:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- What the Hub stores


@dataclass(frozen=True)
class Account:
    """Whom a token belongs to, and whether it may write."""

    name: str
    role: str


TOKENS = {
    WRITE_TOKEN: Account("user", "write"),
    READ_TOKEN: Account("user", "read"),
    OTHER_TOKEN: Account("other", "write"),
}


@dataclass(frozen=True)
class Blob:
    """The content of one file; `sha256` is set when the file is kept in LFS."""

    content: bytes
    sha256: str | None = None

    @cached_property
    def git_body(self) -> bytes:
        """What git itself stores: the content, or the LFS pointer to it."""
        if self.sha256 is None:
            return self.content
        size = len(self.content)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @cached_property
    def git_oid(self) -> str:
        """The git object id of `git_body`."""
        return hashlib.sha1(b"blob %d\0" % len(self.git_body) + self.git_body).hexdigest()

    @property
    def etag(self) -> str:
        """What identifies the content to the client: sha256 for LFS, else the git object id."""
        return self.sha256 or self.git_oid

    def lfs_entry(self) -> Json | None:
        """The `lfs` field of a file listing, None for a regular file."""
        if self.sha256 is None:
            return None
        return {
            "oid": self.sha256,
            "sha256": self.sha256,
            "size": len(self.content),
            "pointerSize": len(self.git_body),
        }


Files = Mapping[str, Blob]


@dataclass(frozen=True)
class Commit:
    """One state of a repository: every file in it, and the commit that it came from."""

    oid: str
    parent: str | None
    files: Files
    title: str
    description: str
    author: str
    date: str

    def card(self) -> Json:
        """The YAML metadata of README.md, empty where there is none."""
        readme = self.files.get("README.md")
        return {} if readme is None else read_metadata(readme.content.decode())


@dataclass
class Discussion:
    """A discussion or a pull request. `base` is the commit that a pull request started from."""

    num: int
    title: str
    author: str
    status: str
    base: str
    target: str = MAIN
    is_pull_request: bool = True
    merge_commit: str | None = None
    date: str = field(default_factory=timestamp)
    events: list[Json] = field(default_factory=list)

    @property
    def ref(self) -> str:
        """The git reference that holds a pull request's commits."""
        return f"refs/pr/{self.num}"

    def add_event(self, kind: str, author: str, data: Json) -> Json:
        """Records an event (`comment`, `commit`, `status-change`) and returns it."""
        event = {
            "id": f"{self.num}-{len(self.events)}",
            "type": kind,
            "createdAt": timestamp(),
            "author": {"name": author},
            "data": data,
        }
        self.events.append(event)
        return event

    def add_comment(self, author: str, text: str) -> Json:
        """Records a comment and returns its event."""
        return self.add_event("comment", author, {"edited": False, "hidden": False, "latest": {"raw": text}})


@dataclass
class Repo:
    """A model, dataset or space repository. It starts with one commit that holds `.gitattributes`."""

    kind: str
    id: str
    private: bool = False
    sdk: str | None = None
    gated: str | bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: dict[int, Discussion] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = {".gitattributes": Blob(GITATTRIBUTES.encode())}
        self.add_commit(files, MAIN, "initial commit", author=self.owner)

    @property
    def owner(self) -> str:
        """The account whose namespace holds the repository."""
        return self.id.split("/")[0]

    @property
    def url_path(self) -> str:
        """The path of the repository's page, without a leading slash."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    def full_ref(self, revision: str) -> str | None:
        """The reference that a branch, tag or `refs/...` name stands for, None if there is none."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, reference or commit id stands for."""
        ref = self.full_ref(revision)
        commit = self.commits.get(revision if ref is None else self.refs[ref])
        if commit is None:
            raise HubError(HTTPStatus.NOT_FOUND, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def add_commit(
        self,
        files: Files,
        ref: str,
        title: str,
        author: str,
        description: str = "",
        parent: str | None = None,
    ) -> Commit:
        """Adds a commit and lets `ref` point to it."""
        serial = f"{self.url_path} {parent} {len(self.commits)} {time.time_ns()}"
        oid = hashlib.sha1(serial.encode()).hexdigest()
        commit = Commit(oid, parent, dict(files), title, description, author, timestamp())
        self.commits[oid] = commit
        self.refs[ref] = oid
        return commit

    def history(self, commit: Commit) -> Iterator[Commit]:
        """The commit and its ancestors, newest first."""
        current: Commit | None = commit
        while current is not None:
            yield current
            current = self.commits.get(current.parent or "")

    def open_discussion(
        self,
        title: str,
        author: str,
        status: str,
        base: Commit,
        target: str = MAIN,
        is_pull_request: bool = True,
    ) -> Discussion:
        """Starts a discussion; for a pull request, its reference starts at `base`."""
        num = len(self.discussions) + 1
        discussion = Discussion(num, title, author, status, base.oid, target, is_pull_request)
        self.discussions[discussion.num] = discussion
        if is_pull_request:
            self.refs[discussion.ref] = base.oid
        return discussion

    def pull_changes(self, pull: Discussion) -> dict[str, Blob | None]:
        """What a pull request changes: the new content of each path, None where it deletes."""
        before, after = self.commits[pull.base].files, self.resolve(pull.ref).files
        return {path: after.get(path) for path in {*before, *after} if before.get(path) != after.get(path)}

    def conflicts(self, pull: Discussion) -> list[str]:
        """The paths that both a pull request and, since it started, its target branch changed."""
        before, current = self.commits[pull.base].files, self.resolve(pull.target).files
        changes = self.pull_changes(pull)
        return sorted(path for path in changes if current.get(path) not in (before.get(path), changes[path]))


class Access(Enum):
    """What a caller wants to do with a repository."""

    LOOK = "see that it exists and what it lists, which a gated repository allows to everyone"
    READ = "download its files"
    PROPOSE = "open discussions and pull requests"
    WRITE = "change it"


class Hub:
    """The state of the Hub, and a log of the requests it has had.

    Attributes:
        url: where it is served.
        repos: repositories by kind (`model`, `dataset`, `space`) and id.
        lfs: contents of large files, by sha256.
        tokens: accounts by token.
        log: one line a request, `METHOD /path?query`, oldest first.
        lock: held while a request is handled. Hold it to read or change the state while clients run.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.tokens: dict[str, Account] = dict(TOKENS)
        self.log: list[str] = []
        self.lock = threading.RLock()

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The contents of a repository by path, without a request."""
        with self.lock:
            commit = self.repos[(kind, repo_id)].resolve(revision)
            return {path: blob.content for path, blob in commit.files.items()}

    def url_of(self, path: str) -> str:
        """The address of a path on this Hub."""
        return f"{self.url}/{path}"

    def account(self, request: Request) -> Account | None:
        """Whose token the request carries, None if it carries none."""
        authorization = request.headers.get("authorization")
        if authorization is None:
            return None
        account = self.tokens.get(authorization.removeprefix("Bearer "))
        if account is None:
            raise HubError(HTTPStatus.UNAUTHORIZED, "Invalid credentials in Authorization header")
        return account

    def open_repo(self, kind: str, repo_id: str, account: Account | None, access: Access) -> Repo:
        """The repository, if the account may use it so."""
        repo = self.repos.get((kind, repo_id))
        name = None if account is None else account.name
        if repo is None or (repo.private and name != repo.owner):
            status = HTTPStatus.UNAUTHORIZED if account is None else HTTPStatus.NOT_FOUND
            raise HubError(status, "Repository not found", "RepoNotFound")
        if access is Access.LOOK:
            return repo
        if repo.gated and name != repo.owner and name not in repo.granted:
            status = HTTPStatus.UNAUTHORIZED if account is None else HTTPStatus.FORBIDDEN
            raise HubError(status, f"Access to {kind} {repo_id} is restricted.", "GatedRepo")
        if access is Access.READ:
            return repo
        if account is None:
            # The client takes a 401 of the real Hub for a missing repository, but only on https addresses.
            raise HubError(HTTPStatus.UNAUTHORIZED, "Invalid username or password.", "RepoNotFound")
        if account.role != "write":
            raise HubError(HTTPStatus.FORBIDDEN, "This action needs a token with the write role.")
        if access is Access.WRITE and name != repo.owner:
            message = "pass `create_pr=1` as a query parameter to create a Pull Request"
            raise HubError(HTTPStatus.FORBIDDEN, message)
        return repo

    async def handle(self, request: Request) -> Response:
        """Answers one request, under the lock."""
        body = await request.body()
        path = request.scope["raw_path"].decode()
        query = f"?{request.url.query}" if request.url.query else ""
        with self.lock:
            self.log.append(f"{request.method} {path}{query}")
            try:
                return self.dispatch(request, path, body)
            except HubError as error:
                return error.response()

    def dispatch(self, request: Request, path: str, body: bytes) -> Response:
        """Calls the handler of the first route that fits."""
        method = "GET" if request.method == "HEAD" else request.method
        for route in ROUTES:
            match = route.regex.fullmatch(path)
            if match and route.method == method:
                params = {name: unquote(value) for name, value in match.groupdict("").items()}
                return route.handler(self, Call(request, params, body, self.account(request)))
        raise HubError(HTTPStatus.NOT_FOUND, f"No route for {request.method} {path}")


@dataclass(frozen=True)
class Call:
    """A request with what the route found in its path.

    `params` are unquoted after the path was matched, so that a revision may contain slashes.
    """

    request: Request
    params: Mapping[str, str]
    body: bytes
    account: Account | None

    @property
    def kind(self) -> str:
        """The kind of repository that the path names; model is the default."""
        return self.params.get("kinds", "").removesuffix("s") or "model"

    @property
    def caller(self) -> str:
        """The account's name, where access has been checked."""
        return self.member().name

    def member(self) -> Account:
        """The account, or an error when the caller is anonymous."""
        if self.account is None:
            raise HubError(HTTPStatus.UNAUTHORIZED, "Invalid username or password.")
        return self.account

    def json(self) -> Json:
        """The body as a JSON object; an absent body is an empty one."""
        return dict(json.loads(self.body or b"{}"))

    def flag(self, name: str) -> bool:
        """Whether a query parameter is set to a true value."""
        return self.request.query_params.get(name, "").lower() in ("1", "true")


Handler = Callable[[Hub, Call], Response]
RepoHandler = Callable[[Hub, Call, Repo], Response]


def with_repo(access: Access, handler: RepoHandler) -> Handler:
    """A handler that is given the repository named in the path, once access is checked."""

    def handle(hub: Hub, call: Call) -> Response:
        return handler(hub, call, hub.open_repo(call.kind, call.params["repo"], call.account, access))

    return handle


# ---- Accounts and repositories


def whoami(hub: Hub, call: Call) -> Response:
    """`HfApi.whoami`."""
    account = call.member()
    token = {"displayName": "test", "role": account.role}
    auth = {"type": "access_token", "accessToken": token}
    user = {"type": "user", "name": account.name, "fullname": account.name, "orgs": []}
    return JSONResponse({**user, "auth": auth})


def read_metadata(text: str) -> Json:
    """The YAML block that opens a card, empty where there is none; yaml.YAMLError when it is malformed."""
    if not text.startswith("---"):
        return {}
    metadata = yaml.safe_load(text.split("---", 2)[1]) or {}
    if not isinstance(metadata, dict):
        raise yaml.YAMLError("metadata must be a mapping")
    return metadata


def validate_yaml(hub: Hub, call: Call) -> Response:
    """The check of a card's metadata that the client makes before it commits README.md."""
    request = call.json()
    errors, warnings = [], []
    try:
        metadata = read_metadata(request["content"])
        if not metadata:
            warnings.append("empty or missing yaml metadata in repo card")
        elif request.get("repoType") == "space" and metadata.get("sdk") not in SPACE_SDKS:
            errors.append(f'"sdk" must be one of [{", ".join(SPACE_SDKS)}]')
    except yaml.YAMLError as error:
        errors.append(str(error))
    answer = {
        "errors": [{"message": text} for text in errors],
        "warnings": [{"message": text} for text in warnings],
    }
    return JSONResponse(answer, HTTPStatus.BAD_REQUEST if errors else HTTPStatus.OK)


def create_repo(hub: Hub, call: Call) -> Response:
    """`HfApi.create_repo`."""
    account, request = call.member(), call.json()
    kind, namespace = request.get("type") or "model", request.get("organization") or account.name
    if account.role != "write" or namespace != account.name:
        message = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
        raise HubError(HTTPStatus.FORBIDDEN, message)
    private = request.get("visibility") == "private" or request.get("private") is True
    repo = Repo(kind, f"{namespace}/{request['name']}", private, request.get("sdk"))
    url = hub.url_of(repo.url_path)
    if (kind, repo.id) in hub.repos:
        message = f"You already created this {kind} repo: {repo.id}"
        raise HubError(HTTPStatus.CONFLICT, message, extra={"url": url})
    hub.repos[(kind, repo.id)] = repo
    return JSONResponse({"url": url, "name": repo.id, "id": repo.id})


def delete_repo(hub: Hub, call: Call) -> Response:
    """`HfApi.delete_repo`."""
    request = call.json()
    kind, namespace = request.get("type") or "model", request.get("organization") or call.member().name
    repo = hub.open_repo(kind, f"{namespace}/{request['name']}", call.account, Access.WRITE)
    del hub.repos[(kind, repo.id)]
    return Response("OK")


def list_repos(hub: Hub, call: Call) -> Response:
    """`HfApi.list_models`, `list_datasets` and `list_spaces`, by author, search words and tags."""
    query = call.request.query_params
    caller = "" if call.account is None else call.account.name
    repos = [repo for (kind, _), repo in hub.repos.items() if kind == call.kind]
    visible = [repo for repo in repos if not repo.private or repo.owner == caller]
    words, tags = query.get("search", "").lower(), set(query.getlist("filter"))
    infos = [describe(repo, repo.resolve(MAIN)) for repo in visible if words in repo.id.lower()]
    by_author = [info for info in infos if query.get("author") in (None, info["author"])]
    found = [info for info in by_author if tags <= set(info["tags"])]
    return JSONResponse(found[: int(query.get("limit", len(found)))])


def describe(repo: Repo, commit: Commit, with_blobs: bool = False) -> Json:
    """The information about a repository at a commit that `HfApi.repo_info` reads."""
    card = commit.card()
    siblings: list[Json] = [{"rfilename": path} for path in sorted(commit.files)]
    if with_blobs:
        for sibling in siblings:
            blob = commit.files[sibling["rfilename"]]
            sibling.update(size=len(blob.content), blobId=blob.git_oid, lfs=blob.lfs_entry())
    library = card.get("library_name")
    return {
        "id": repo.id,
        "author": repo.owner,
        "sha": commit.oid,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*([library] if library else []), *(card.get("tags") or [])],
        "createdAt": list(repo.history(commit))[-1].date,
        "lastModified": commit.date,
        "siblings": siblings,
        "cardData": card or None,
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": library,
        "sdk": repo.sdk,
    }


def repo_info(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.repo_info`, at a revision or at main."""
    commit = repo.resolve(call.params.get("rev") or "main")
    return JSONResponse(describe(repo, commit, with_blobs=call.flag("blobs")))


def auth_check(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.auth_check`: reaching this far is the answer."""
    return JSONResponse({})


def update_settings(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.update_repo_settings`."""
    settings = call.json()
    if "gated" in settings:
        repo.gated = settings["gated"]
    if "visibility" in settings:
        repo.private = settings["visibility"] == "private"
    return JSONResponse({})


def grant_access(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.grant_access` to a gated repository."""
    repo.granted.add(call.json()["user"])
    return JSONResponse({})


# ---- Listings and references


def file_entry(path: str, blob: Blob) -> Json:
    """One file of a tree listing."""
    entry: Json = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_oid}
    lfs = blob.lfs_entry()
    return entry if lfs is None else {**entry, "lfs": lfs}


def tree_entries(files: Files) -> dict[str, Json]:
    """Every file and folder by path, in the order of paths."""
    entries = {path: file_entry(path, blob) for path, blob in files.items()}
    for path in files:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            oid = hashlib.sha1(folder.encode()).hexdigest()
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
    return dict(sorted(entries.items()))


def list_tree(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.list_repo_tree` of the whole repository or of a folder."""
    revision, folder = call.params["rev"], call.params["path"].strip("/")
    commit, prefix = repo.resolve(revision), f"{folder}/" if folder else ""
    inside = [entry for path, entry in tree_entries(commit.files).items() if path.startswith(prefix)]
    if folder and not inside:
        raise entry_not_found(f'{folder} does not exist on "{revision}"', commit)
    if not call.flag("recursive"):
        inside = [entry for entry in inside if "/" not in entry["path"].removeprefix(prefix)]
    return JSONResponse(inside)


def paths_info(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.get_paths_info`; paths that do not exist are left out."""
    is_json = call.request.headers.get("content-type", "").startswith("application/json")
    paths = call.json()["paths"] if is_json else parse_qs(call.body.decode()).get("paths", [])
    entries = tree_entries(repo.resolve(call.params["rev"]).files)
    return JSONResponse([entries[path] for path in paths if path in entries])


def list_refs(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.list_repo_refs`."""

    def refs_under(prefix: str) -> list[Json]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in repo.refs.items()
            if ref.startswith(prefix)
        ]

    return JSONResponse(
        {
            "branches": refs_under("refs/heads/"),
            "tags": refs_under("refs/tags/"),
            "pullRequests": refs_under("refs/pr/"),
            "converts": [],
        }
    )


def list_commits(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.list_repo_commits`, newest first."""
    return JSONResponse(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "date": commit.date,
                "authors": [{"user": commit.author}],
            }
            for commit in repo.history(repo.resolve(call.params["rev"]))
        ]
    )


def add_ref(repo: Repo, ref: str, commit: Commit) -> Response:
    """Adds a branch or a tag, which must be new."""
    if ref in repo.refs:
        raise HubError(HTTPStatus.CONFLICT, f"Reference already exists: {ref}")
    repo.refs[ref] = commit.oid
    return Response()


def remove_ref(repo: Repo, ref: str) -> Response:
    """Removes a branch or a tag; main is protected."""
    if ref == MAIN:
        raise HubError(HTTPStatus.FORBIDDEN, "Cannot delete the main branch")
    if ref not in repo.refs:
        raise HubError(HTTPStatus.NOT_FOUND, f"Reference does not exist: {ref}", "RevisionNotFound")
    del repo.refs[ref]
    return Response()


def create_branch(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.create_branch`."""
    start = repo.resolve(call.json().get("startingPoint") or "main")
    return add_ref(repo, f"refs/heads/{call.params['name']}", start)


def delete_branch(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.delete_branch`."""
    return remove_ref(repo, f"refs/heads/{call.params['name']}")


def squash_branch(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.super_squash_history`: a commit without ancestors takes the place of the branch's."""
    ref = f"refs/heads/{call.params['name']}"
    gone = list(repo.history(repo.resolve(call.params["name"])))
    repo.add_commit(gone[0].files, ref, call.json()["message"], call.caller)
    kept = {commit.oid for oid in repo.refs.values() for commit in repo.history(repo.commits[oid])}
    for commit in gone:
        if commit.oid not in kept:
            del repo.commits[commit.oid]
    return Response()


def create_tag(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.create_tag`; the path names the revision, the body the tag."""
    return add_ref(repo, f"refs/tags/{call.json()['tag']}", repo.resolve(call.params["name"]))


def delete_tag(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.delete_tag`."""
    return remove_ref(repo, f"refs/tags/{call.params['name']}")


# ---- Commits


def open_for_commit(hub: Hub, call: Call) -> Repo:
    """The repository, if the caller may commit: to a new pull request, to an own one, or as the owner."""
    repo = hub.open_repo(call.kind, call.params["repo"], call.account, Access.PROPOSE)
    own_pulls = {pull.ref for pull in repo.discussions.values() if pull.author == call.caller}
    if call.flag("create_pr") or call.params["rev"] in own_pulls:
        return repo
    return hub.open_repo(call.kind, call.params["repo"], call.account, Access.WRITE)


def preupload(hub: Hub, call: Call) -> Response:
    """Tells the client which files go to LFS, and what is there now, so that it skips unchanged files."""
    current = open_for_commit(hub, call).resolve(call.params["rev"]).files
    answers = []
    for upload in call.json()["files"]:
        path = upload["path"]
        is_binary = b"\0" in base64.b64decode(upload["sample"])
        is_large = path.endswith(LFS_SUFFIXES) or upload["size"] > LFS_THRESHOLD or is_binary
        answers.append(
            {
                "path": path,
                "uploadMode": "lfs" if is_large else "regular",
                "shouldIgnore": False,
                "oid": current[path].etag if path in current else None,
            }
        )
    return JSONResponse({"files": answers})


def put_file(hub: Hub, files: dict[str, Blob], operation: Json) -> None:
    """Applies the addition of a regular file."""
    files[operation["path"]] = Blob(base64.b64decode(operation["content"]))


def put_lfs_file(hub: Hub, files: dict[str, Blob], operation: Json) -> None:
    """Applies the addition of a file whose content was uploaded to LFS before."""
    path, oid = operation["path"], operation["oid"]
    if oid not in hub.lfs:
        raise HubError(HTTPStatus.BAD_REQUEST, f"LFS pointer pointed to a file that does not exist: {path}")
    files[path] = Blob(hub.lfs[oid], oid)


def delete_file(hub: Hub, files: dict[str, Blob], operation: Json) -> None:
    """Applies the deletion of a file."""
    if files.pop(operation["path"], None) is None:
        raise HubError(HTTPStatus.NOT_FOUND, "A file with this name doesn't exist", "EntryNotFound")


def delete_folder(hub: Hub, files: dict[str, Blob], operation: Json) -> None:
    """Applies the deletion of a folder."""
    prefix = operation["path"].rstrip("/") + "/"
    inside = [path for path in files if path.startswith(prefix)]
    if not inside:
        raise HubError(HTTPStatus.NOT_FOUND, "A folder with this name doesn't exist", "EntryNotFound")
    for path in inside:
        del files[path]


OPERATIONS = {
    "file": put_file,
    "lfsFile": put_lfs_file,
    "deletedFile": delete_file,
    "deletedFolder": delete_folder,
}


def parent_of_commit(repo: Repo, revision: str, expected: str | None, is_pull_request: bool) -> Commit:
    """The commit to build on.

    A commit to a branch must find the branch at the `expected` parent, if the client named one (it may be
    a prefix). A new pull request starts from the expected parent, wherever the branch is now.
    """
    head = repo.resolve(revision)
    if expected is None or head.oid.startswith(expected):
        return head
    if not is_pull_request:
        message = "A commit has happened since. Please refresh and try again."
        raise HubError(HTTPStatus.PRECONDITION_FAILED, message)
    started = next((oid for oid in repo.commits if oid.startswith(expected)), expected)
    return repo.resolve(started)


def commit_files(hub: Hub, call: Call) -> Response:
    """`HfApi.create_commit`: the body holds a header and the operations, one JSON object a line."""
    repo, revision, creates_pull = open_for_commit(hub, call), call.params["rev"], call.flag("create_pr")
    header, *operations = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    title, description = header["value"]["summary"], header["value"].get("description", "")
    ref = repo.full_ref(revision)
    if ref is None or ref.startswith("refs/tags/"):
        raise HubError(HTTPStatus.NOT_FOUND, f"Not a branch: {revision}", "RevisionNotFound")
    parent = parent_of_commit(repo, revision, header["value"].get("parentCommit"), creates_pull)
    files = dict(parent.files)
    for operation in operations:
        OPERATIONS[operation["key"]](hub, files, operation["value"])
    answer: Json = {"success": True, "hookOutput": ""}
    if creates_pull:
        pull = repo.open_discussion(title, call.caller, "open", parent, target=ref)
        answer["pullRequestUrl"] = hub.url_of(f"{repo.url_path}/discussions/{pull.num}")
        ref = pull.ref
    commit = repo.add_commit(files, ref, title, call.caller, description, parent.oid)
    answer.update(commitOid=commit.oid, commitUrl=hub.url_of(f"{repo.url_path}/commit/{commit.oid}"))
    return JSONResponse(answer)


# ---- Discussions and pull requests


def discussion_json(repo: Repo, discussion: Discussion) -> Json:
    """A discussion as the client reads it, in a list and alone."""
    is_open = discussion.is_pull_request and discussion.status in ("open", "draft")
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "author": {"name": discussion.author},
        "isPullRequest": discussion.is_pull_request,
        "createdAt": discussion.date,
        "repo": {"name": repo.id, "type": repo.kind},
        "changes": {"base": discussion.target, "mergeCommitId": discussion.merge_commit},
        "events": discussion.events,
        "filesWithConflicts": repo.conflicts(discussion) if is_open else [],
    }


def find_discussion(repo: Repo, call: Call) -> Discussion:
    """The discussion that the path names."""
    discussion = repo.discussions.get(int(call.params["num"]))
    if discussion is None:
        raise HubError(HTTPStatus.NOT_FOUND, f"No discussion {call.params['num']} in {repo.id}")
    return discussion


def list_discussions(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.get_repo_discussions`, newest first, on one page."""
    query = call.request.query_params
    statuses = {"open": ("open", "draft"), "closed": ("closed", "merged")}.get(query.get("status", ""))
    is_pull_request = {"pull_request": True, "discussion": False}.get(query.get("type", ""))
    found = [
        discussion_json(repo, discussion)
        for discussion in reversed(repo.discussions.values())
        if (statuses is None or discussion.status in statuses)
        and is_pull_request in (None, discussion.is_pull_request)
        and query.get("author") in (None, discussion.author)
    ]
    return JSONResponse({"discussions": found, "count": len(found), "start": 0})


def get_discussion(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.get_discussion_details`."""
    return JSONResponse(discussion_json(repo, find_discussion(repo, call)))


def create_discussion(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.create_discussion` and `create_pull_request`, which opens an empty draft."""
    request = call.json()
    is_pull_request = request.get("pullRequest", False)
    status = "draft" if is_pull_request else "open"
    base, title = repo.resolve(MAIN), request["title"]
    discussion = repo.open_discussion(title, call.caller, status, base, is_pull_request=is_pull_request)
    discussion.add_comment(call.caller, request.get("description", ""))
    return JSONResponse({"num": discussion.num})


def comment(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.comment_discussion`."""
    event = find_discussion(repo, call).add_comment(call.caller, call.json()["comment"])
    return JSONResponse({"newMessage": event})


def change_status(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.change_discussion_status`."""
    discussion, status = find_discussion(repo, call), call.json()["status"]
    discussion.status = status
    return JSONResponse({"newStatus": discussion.add_event("status-change", call.caller, {"status": status})})


def merge(hub: Hub, call: Call, repo: Repo) -> Response:
    """`HfApi.merge_pull_request`: one commit on the target branch; what others committed there stays."""
    pull = find_discussion(repo, call)
    if not pull.is_pull_request or pull.status not in ("open", "draft"):
        raise HubError(HTTPStatus.BAD_REQUEST, f"Discussion {pull.num} is not an open pull request")
    conflicts = repo.conflicts(pull)
    if conflicts:
        raise HubError(HTTPStatus.CONFLICT, f"Pull request {pull.num} has conflicts: {', '.join(conflicts)}")
    head = repo.resolve(pull.target)
    merged = {**head.files, **repo.pull_changes(pull)}
    files = {path: blob for path, blob in merged.items() if blob is not None}
    title, description = f"{pull.title} (#{pull.num})", call.json().get("comment") or ""
    commit = repo.add_commit(files, pull.target, title, pull.author, description, head.oid)
    pull.status, pull.merge_commit = "merged", commit.oid
    return JSONResponse({"newEvent": pull.add_event("status-change", call.caller, {"status": "merged"})})


# ---- Large files and downloads


def lfs_batch(hub: Hub, call: Call, repo: Repo) -> Response:
    """The LFS batch request: where to upload each object that is not stored yet."""
    answers = []
    for wanted in call.json()["objects"]:
        answer: Json = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.lfs:
            action = {"href": hub.url_of(f"lfs-store/{wanted['oid']}"), "header": {}}
            answer["actions"] = {"upload": action, "verify": action}
        answers.append(answer)
    return JSONResponse({"transfer": "basic", "objects": answers})


def lfs_upload(hub: Hub, call: Call) -> Response:
    """Stores an LFS object, whose address is its checksum."""
    if hashlib.sha256(call.body).hexdigest() != call.params["oid"]:
        raise HubError(HTTPStatus.BAD_REQUEST, f"The content does not have the checksum {call.params['oid']}")
    hub.lfs[call.params["oid"]] = call.body
    return Response()


def lfs_verify(hub: Hub, call: Call) -> Response:
    """Confirms that an LFS object has arrived."""
    return JSONResponse({}, HTTPStatus.OK if call.params["oid"] in hub.lfs else HTTPStatus.NOT_FOUND)


def find_blob(repo: Repo, call: Call) -> tuple[Commit, Blob]:
    """The file that the path names, and the commit that it was found in."""
    commit = repo.resolve(call.params["rev"])
    blob = commit.files.get(call.params["path"])
    if blob is None:
        raise entry_not_found("Entry not found", commit)
    return commit, blob


def open_for_download(hub: Hub, call: Call) -> Repo:
    """The repository, if the caller may download the file; the card of a gated one is for everyone."""
    access = Access.LOOK if call.params["path"] == "README.md" else Access.READ
    return hub.open_repo(call.kind, call.params["repo"], call.account, access)


def resolve_file(hub: Hub, call: Call) -> Response:
    """Downloads a file or a range of it; HEAD gives the metadata that the client's cache works with."""
    commit, blob = find_blob(open_for_download(hub, call), call)
    size = len(blob.content)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
    if blob.sha256 is not None:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(size)}
    status, content, requested = HTTPStatus.OK, blob.content, call.request.headers.get("range")
    if requested is not None:
        part = byte_range(requested, size)
        status, content = HTTPStatus.PARTIAL_CONTENT, content[part.start : part.stop]
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    return Response(content, status, headers, "application/octet-stream")


def byte_range(header: str, size: int) -> range:
    """The positions that a Range header with one range asks for: `bytes=2-5`, `bytes=2-` or `bytes=-4`."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    first, last = match.groups() if match else ("", "")
    if first:
        part = range(int(first), min(int(last) + 1, size) if last else size)
    else:
        part = range(max(size - int(last or 0), 0), size)
    if len(part) == 0:
        message, headers = f"Cannot serve {header}", {"Content-Range": f"bytes */{size}"}
        raise HubError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, message, headers=headers)
    return part


# ---- Routes

PATH_PATTERNS = {"kinds": "models|datasets|spaces", "repo": "[^/]+/[^/]+", "path": ".+", "num": r"\d+"}


@dataclass(frozen=True)
class Route:
    """A method and a path, and what handles them.

    In the pattern `{name}` stands for one quoted path segment, or for what `PATH_PATTERNS` says; the rest is
    a regular expression. A GET route also answers HEAD.
    """

    method: str
    pattern: str
    handler: Handler

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """The compiled pattern."""

        def group(match: re.Match[str]) -> str:
            return f"(?P<{match[1]}>{PATH_PATTERNS.get(match[1], '[^/]+')})"

        return re.compile(re.sub(r"{(\w+)}", group, self.pattern))


API = "/api/{kinds}/{repo}"
SITE = "(?:/{kinds})?/{repo}"

ROUTES = (
    Route("GET", "/api/whoami-v2", whoami),
    Route("POST", "/api/validate-yaml", validate_yaml),
    Route("POST", "/api/repos/create", create_repo),
    Route("DELETE", "/api/repos/delete", delete_repo),
    Route("GET", "/api/{kinds}", list_repos),
    Route("GET", API, with_repo(Access.LOOK, repo_info)),
    Route("GET", API + "/revision/{rev}", with_repo(Access.LOOK, repo_info)),
    Route("GET", API + "/auth-check", with_repo(Access.READ, auth_check)),
    Route("GET", API + "/auth-check/write", with_repo(Access.WRITE, auth_check)),
    Route("PUT", API + "/settings", with_repo(Access.WRITE, update_settings)),
    Route("POST", API + "/user-access-request/grant", with_repo(Access.WRITE, grant_access)),
    Route("GET", API + "/tree/{rev}(?:/{path})?", with_repo(Access.LOOK, list_tree)),
    Route("POST", API + "/paths-info/{rev}", with_repo(Access.LOOK, paths_info)),
    Route("GET", API + "/refs", with_repo(Access.LOOK, list_refs)),
    Route("GET", API + "/commits/{rev}", with_repo(Access.LOOK, list_commits)),
    Route("POST", API + "/branch/{name}", with_repo(Access.WRITE, create_branch)),
    Route("DELETE", API + "/branch/{name}", with_repo(Access.WRITE, delete_branch)),
    Route("POST", API + "/super-squash/{name}", with_repo(Access.WRITE, squash_branch)),
    Route("POST", API + "/tag/{name}", with_repo(Access.WRITE, create_tag)),
    Route("DELETE", API + "/tag/{name}", with_repo(Access.WRITE, delete_tag)),
    Route("POST", API + "/preupload/{rev}", preupload),
    Route("POST", API + "/commit/{rev}", commit_files),
    Route("GET", API + "/discussions", with_repo(Access.LOOK, list_discussions)),
    Route("POST", API + "/discussions", with_repo(Access.PROPOSE, create_discussion)),
    Route("GET", API + "/discussions/{num}", with_repo(Access.LOOK, get_discussion)),
    Route("POST", API + "/discussions/{num}/comment", with_repo(Access.PROPOSE, comment)),
    Route("POST", API + "/discussions/{num}/status", with_repo(Access.WRITE, change_status)),
    Route("POST", API + "/discussions/{num}/merge", with_repo(Access.WRITE, merge)),
    Route("POST", SITE + r"\.git/info/lfs/objects/batch", with_repo(Access.PROPOSE, lfs_batch)),
    Route("PUT", "/lfs-store/{oid}", lfs_upload),
    Route("POST", "/lfs-store/{oid}", lfs_verify),
    Route("GET", SITE + "/resolve/{rev}/{path}", resolve_file),
)


# ---- Serving


def create_app(hub: Hub) -> Starlette:
    """The web application in front of a Hub."""
    app = Starlette()
    app.add_route("/{path:path}", hub.handle, methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
    return app


@contextmanager
def running(app: Any, listener: socket.socket, **options: Any) -> Iterator[None]:
    """Runs an application in a thread, with options of uvicorn."""
    # Without this, each answer waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    settings: dict[str, Any] = {"log_level": "error", "lifespan": "off", "timeout_graceful_shutdown": 1}
    settings |= {"timeout_keep_alive": 60, **options}  # a slow test may come between two requests
    config = uvicorn.Config(app, **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("The server did not start")
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=5)


@contextmanager
def serve(port: int = 0) -> Iterator[tuple[str, Hub]]:
    """Runs a fresh Hub on 127.0.0.1 in a thread.

    Args:
        port: the port to listen on; 0 takes a free one.

    Yields:
        The Hub's address, to be given to the client as `endpoint` or `HF_ENDPOINT`, and its state.
    """
    with socket.create_server(("127.0.0.1", port)) as listener:
        hub = Hub(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with running(create_app(hub), listener):
            yield hub.url, hub


@contextmanager
def used_here(cache: Path) -> Iterator[Hub]:
    """A fresh Hub which this process uses, with a cache of its own, and where it is not logged in."""
    with pytest.MonkeyPatch.context() as patch, serve() as (url, hub):
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr("transformers.utils.hub._hf_api", HfApi(endpoint=url))  # else made once a process
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield hub


if __name__ == "__main__":
    with serve(int(sys.argv[1]) if len(sys.argv) > 1 else 8765) as (url, _):
        print(f"export HF_ENDPOINT={url} HF_HUB_DISABLE_XET=1 HF_TOKEN={WRITE_TOKEN}", flush=True)
        threading.Event().wait()
