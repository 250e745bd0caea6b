"""The in-memory Hub of the tests, driven by the real client."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, errors, get_session

from .hub_server import OTHER_TOKEN, READ_TOKEN, WRITE_TOKEN, Hub, serve

REPO = "user/router"
WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b"{}", "stats/0.safetensors": WEIGHTS}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running Hub. The client is online, and does not use Xet, which the Hub does not have."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve() as (_, running):
        yield running


@pytest.fixture
def api(hub: Hub) -> HfApi:
    """The owner's client, with one small and one large file published."""
    owner = client(hub, WRITE_TOKEN)
    owner.create_repo(REPO)
    add(owner, FILES)
    return owner


def client(hub: Hub, token: str | bool) -> HfApi:
    """A client that has this token; False makes it anonymous."""
    return HfApi(endpoint=hub.url, token=token)


def add(api: HfApi, files: dict[str, bytes], **options: Any) -> str:
    """Commits files and returns the commit's id."""
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return str(api.create_commit(REPO, operations, commit_message="add", **options).oid)


@contextmanager
def refused(status: HTTPStatus, error: type[errors.HfHubHTTPError] = errors.HfHubHTTPError) -> Iterator[None]:
    """Expects the Hub to answer with this status, and the client to raise this error."""
    with pytest.raises(error) as caught:
        yield
    assert caught.value.response.status_code == status


def test_upload_is_listed_and_stored(api: HfApi, hub: Hub) -> None:
    assert {path: hub.files(REPO)[path] for path in FILES} == FILES
    assert [entry.path for entry in api.list_repo_tree(REPO)] == [".gitattributes", "config.json", "stats"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "stats")] == ["stats/0.safetensors"]
    found = api.get_paths_info(REPO, ["config.json", "absent", "stats"])
    assert [entry.path for entry in found] == ["config.json", "stats"]
    siblings = api.model_info(REPO, files_metadata=True).siblings or []
    assert [(file.rfilename, file.size) for file in siblings if file.lfs] == [("stats/0.safetensors", 10240)]
    assert add(api, FILES) == api.repo_info(REPO).sha, "unchanged files make no commit"


def test_download_uses_cache_and_revision(api: HfApi, hub: Hub, tmp_path: Path) -> None:
    first = api.repo_info(REPO).sha
    add(api, {"config.json": b"[]"})
    old = api.hf_hub_download(REPO, "config.json", revision=first, cache_dir=tmp_path)
    new = api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
    assert (Path(old).read_bytes(), Path(new).read_bytes()) == (b"{}", b"[]")
    hub.log.clear()
    assert api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path) == new
    assert api.hf_hub_download(REPO, "config.json", revision=first, cache_dir=tmp_path) == old
    assert hub.log == [f"HEAD /{REPO}/resolve/main/config.json"]
    with refused(HTTPStatus.NOT_FOUND, errors.RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "absent.json", cache_dir=tmp_path)
    with refused(HTTPStatus.NOT_FOUND, errors.RevisionNotFoundError):
        api.hf_hub_download(REPO, "config.json", revision="absent", cache_dir=tmp_path)
    folder = Path(api.snapshot_download(REPO, cache_dir=tmp_path))
    assert {path: (folder / path).read_bytes() for path in hub.files(REPO)} == hub.files(REPO)


def test_ranges(api: HfApi) -> None:
    url = f"{api.endpoint}/{REPO}/resolve/main/stats/0.safetensors"
    for header, expected in {"2-4": WEIGHTS[2:5], "10230-": WEIGHTS[10230:], "-3": WEIGHTS[-3:]}.items():
        response = get_session().get(url, headers={"Range": f"bytes={header}"})
        assert (response.status_code, response.content) == (HTTPStatus.PARTIAL_CONTENT, expected)
    assert get_session().get(url, headers={"Range": "bytes=99999-"}).status_code == 416


def test_threads_that_commit_at_once_lose_nothing(api: HfApi, hub: Hub) -> None:
    def publish(domain: int) -> str:
        while True:
            parent = api.repo_info(REPO).sha
            count = int(hub.files(REPO).get("count", b"0")) + 1
            try:
                return add(api, {f"{domain}.bin": b"", "count": b"%d" % count}, parent_commit=parent)
            except errors.HfHubHTTPError as error:
                if error.response.status_code != HTTPStatus.PRECONDITION_FAILED:
                    raise

    stale = api.repo_info(REPO).sha
    with ThreadPoolExecutor(8) as pool:
        commits = set(pool.map(publish, range(8)))
    assert commits <= {commit.commit_id for commit in api.list_repo_commits(REPO)}
    assert hub.files(REPO)["count"] == b"8"
    assert {f"{domain}.bin" for domain in range(8)} <= set(hub.files(REPO))
    with refused(HTTPStatus.PRECONDITION_FAILED):
        add(api, {"late.bin": b""}, parent_commit=stale)
    assert "late.bin" not in hub.files(REPO)


def test_pull_request_is_merged_unless_it_conflicts(api: HfApi, hub: Hub) -> None:
    other = client(hub, OTHER_TOKEN)
    add(other, {"new.safetensors": WEIGHTS}, create_pr=True)
    add(other, {"note.txt": b"more"}, revision="refs/pr/1")
    add(api, {"meanwhile.txt": b"kept"})
    (listed,) = api.get_repo_discussions(REPO, discussion_status="open")
    assert (listed.num, listed.author, listed.is_pull_request) == (1, "other", True)
    assert "new.safetensors" in api.list_repo_files(REPO, revision="refs/pr/1")
    with refused(HTTPStatus.FORBIDDEN):
        other.merge_pull_request(REPO, 1)
    api.merge_pull_request(REPO, 1)
    assert {"new.safetensors", "note.txt", "meanwhile.txt"} <= set(hub.files(REPO))
    assert api.get_discussion_details(REPO, 1).merge_commit_oid == api.repo_info(REPO).sha
    add(other, {"config.json": b"theirs"}, create_pr=True)
    add(api, {"config.json": b"ours"})
    assert api.get_discussion_details(REPO, 2).conflicting_files == ["config.json"]
    with refused(HTTPStatus.CONFLICT):
        api.merge_pull_request(REPO, 2)


def test_write_needs_the_right_token(api: HfApi, hub: Hub) -> None:
    for token in (READ_TOKEN, OTHER_TOKEN):
        with refused(HTTPStatus.FORBIDDEN):
            add(client(hub, token), {"config.json": b"changed"})
    with refused(HTTPStatus.UNAUTHORIZED, errors.RepositoryNotFoundError):
        add(client(hub, False), {"config.json": b"changed"})
    with refused(HTTPStatus.UNAUTHORIZED):
        client(hub, "hf_unknown").whoami()


def test_private_repo_is_hidden(api: HfApi, hub: Hub, tmp_path: Path) -> None:
    api.update_repo_settings(REPO, private=True)
    assert client(hub, READ_TOKEN).repo_info(REPO).private
    with refused(HTTPStatus.UNAUTHORIZED, errors.RepositoryNotFoundError):
        client(hub, False).hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
    with refused(HTTPStatus.NOT_FOUND, errors.RepositoryNotFoundError):
        client(hub, OTHER_TOKEN).repo_info(REPO)


def test_gated_repo_shows_itself_but_not_its_files(
    api: HfApi, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.update_repo_settings(REPO, gated="manual")
    other = client(hub, OTHER_TOKEN)
    assert other.model_info(REPO).gated == "manual"
    with refused(HTTPStatus.FORBIDDEN, errors.GatedRepoError):
        other.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
    with refused(HTTPStatus.UNAUTHORIZED, errors.GatedRepoError):
        client(hub, False).hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)  # huggingface_hub 2.0 asks no other here
        api.grant_access(REPO, "other")
    assert Path(other.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)).read_bytes() == b"{}"


def test_repositories_of_every_kind(api: HfApi, hub: Hub) -> None:
    with refused(HTTPStatus.CONFLICT):
        api.create_repo(REPO)
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    api.create_repo(REPO, repo_type="space", space_sdk="gradio")
    api.create_repo(REPO, repo_type="dataset", private=True)
    card = b"---\ntags: [ir3de]\n---\n# Prompts\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=REPO, repo_type="dataset")
    assert [info.id for info in api.list_datasets(author="user", filter="ir3de")] == [REPO]
    api.delete_repo(REPO, repo_type="space")
    assert set(hub.repos) == {("model", REPO), ("dataset", REPO)}


def test_files_are_deleted(api: HfApi, hub: Hub) -> None:
    api.delete_file("config.json", REPO)
    api.delete_folder("stats", REPO)
    assert list(hub.files(REPO)) == [".gitattributes"]
    with refused(HTTPStatus.NOT_FOUND, errors.RemoteEntryNotFoundError):
        api.delete_file("config.json", REPO)


def test_branches_and_tags(api: HfApi, hub: Hub) -> None:
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="dev/next", revision="v1")
    with refused(HTTPStatus.CONFLICT):
        api.create_tag(REPO, tag="v1")
    with refused(HTTPStatus.NOT_FOUND, errors.RevisionNotFoundError):
        add(api, {"config.json": b"[]"}, revision="v1")
    add(api, {"config.json": b"[]"}, revision="dev/next")
    assert hub.files(REPO, revision="dev/next")["config.json"] == b"[]"
    assert hub.files(REPO, revision="v1")["config.json"] == b"{}"
    api.delete_branch(REPO, branch="dev/next")
    assert [ref.name for ref in api.list_repo_refs(REPO).branches] == ["main"]
