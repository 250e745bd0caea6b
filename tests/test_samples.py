"""Samples: a few labelled prompts that travel with a router, in folders and on the Hub, and are the app's examples."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from ir3de import IR3DEModel
from ir3de.app import load
from ir3de.samples_ir3de import SAMPLES_NAME, Sample, read_samples, write_samples
from ir3de.scripts import cli

from . import tiny
from .hub_server import WRITE_TOKEN, used_here

SAMPLES = [Sample("court of appeal", "law"), Sample("mein Vertrag ä 東京\n\u2028 judge", "law")]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    """A running Hub, where this process is logged in."""
    with used_here(tmp_path / "cache") as hub:
        monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
        yield HfApi(endpoint=hub.url, token=WRITE_TOKEN)


def test_samples_travel_through_folders_copies_and_edits(router: IR3DEModel, tmp_path: Path) -> None:
    assert router.samples == []
    router.save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / SAMPLES_NAME).exists()
    router.samples = [sample._asdict() for sample in SAMPLES]
    router.save_pretrained(tmp_path / "with")
    loaded = IR3DEModel.from_pretrained(tmp_path / "with")
    loaded.remove_expert("math")
    loaded.copy().save_pretrained(tmp_path / "edited")
    assert IR3DEModel.from_pretrained(tmp_path / "edited").samples == SAMPLES
    assert load(str(tmp_path / "edited")).samples[0][:2] == SAMPLES[0]


def test_samples_that_are_taken_out_are_gone(router: IR3DEModel, tmp_path: Path) -> None:
    router.samples = SAMPLES
    router.save_pretrained(tmp_path)
    loaded = IR3DEModel.from_pretrained(tmp_path)
    loaded.samples = []
    loaded.save_pretrained(tmp_path)
    assert "court" not in (tmp_path / SAMPLES_NAME).read_text(encoding="utf-8")
    assert IR3DEModel.from_pretrained(tmp_path).samples == []


def test_a_new_fit_keeps_the_samples_that_an_owner_put_in_its_folder(router: IR3DEModel, tmp_path: Path) -> None:
    write_samples(tmp_path / SAMPLES_NAME, SAMPLES)
    router.save_pretrained(tmp_path)
    assert IR3DEModel.from_pretrained(tmp_path).samples == SAMPLES


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "court", "domain": "law"}\n{"text": "court"}\n', r"line 2: expected"),
        (b'{"text": " ", "domain": "law"}\n', r"line 1: expected"),
        (b'["court", "law"]\n', r"line 1: expected"),
        (b"{\n", r"line 1: not JSON"),
        (b"\xff\n", r"line 1: not JSON"),
        (b"[" * 100_000, r"line 1: not JSON"),
        (b'{"text": "\\ud83d", "domain": "law"}\n', r"lone surrogate"),
        (b" " * ((1 << 20) + 1), r"at most 1,048,576"),
        (b'{"text": "court", "domain": "law"}\n' * 1001, r"more than 1,000"),
    ],
)
def test_a_bad_file_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / SAMPLES_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_samples(tmp_path / SAMPLES_NAME)


def test_bad_samples_leave_a_router_as_it_was(router: IR3DEModel) -> None:
    router.samples = SAMPLES
    with pytest.raises(ValueError, match="Sample 2: expected"):
        router.samples = [SAMPLES[0], {"text": 3, "domain": "law"}]
    assert router.samples == SAMPLES


def test_a_push_says_once_that_text_goes_along(router: IR3DEModel, api: HfApi) -> None:
    router.samples = SAMPLES
    with pytest.warns(UserWarning, match=r"the text of 2 sample prompts: whoever may read"):
        router.push_to_hub("user/samples")
    again = IR3DEModel.from_pretrained("user/samples")
    assert again.samples == SAMPLES
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again.push_to_hub("user/samples")
        tiny.router().push_to_hub("user/samples")  # a new fit, which says nothing of samples
    assert IR3DEModel.from_pretrained("user/samples").samples == SAMPLES
    again.samples = []
    again.push_to_hub("user/samples")
    assert IR3DEModel.from_pretrained("user/samples").samples == []


@pytest.mark.parametrize(("answer", "published"), [("n", []), ("yes", SAMPLES)])
def test_on_a_terminal_the_owner_is_asked_about_samples(
    answer: str,
    published: list[Sample],
    api: HfApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = tiny.router()
    made.samples = SAMPLES
    made.save_pretrained(tmp_path / "router")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    answers = iter([answer])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert cli.main(["publish", str(tmp_path / "router"), "--router", "user/asked"]) == 0
    assert (
        "2 sample prompts of the router go to user/asked, such as\n  law: 'court of appeal'" in capsys.readouterr().err
    )
    assert IR3DEModel.from_pretrained("user/asked").samples == published
    assert IR3DEModel.from_pretrained(tmp_path / "router").samples == SAMPLES, "those of the folder stay"


def test_samples_of_domains_that_there_are_not_are_refused(
    json_lines: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_samples(tmp_path / "mine.jsonl", [*SAMPLES, Sample("paint a wall", "art")])
    arguments: list[Any] = ["fit", "--data", json_lines, "--embeddings", source, "--output", tmp_path / "router"]
    assert cli.main([*map(str, arguments), "--variant", "avg", "--samples", str(tmp_path / "mine.jsonl")]) == 2
    assert "--samples has prompts of ['art']" in capsys.readouterr().err
    assert not (tmp_path / "router").exists()


def test_fit_takes_samples_along_and_says_so(
    json_lines: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_samples(tmp_path / "mine.jsonl", SAMPLES)
    arguments: list[Any] = ["fit", "--data", json_lines, "--embeddings", source, "--output", tmp_path / "router"]
    assert cli.main([*map(str, arguments), "--variant", "avg", "--samples", str(tmp_path / "mine.jsonl")]) == 0
    assert "holds the text of 2 prompts" in capsys.readouterr().out
    assert IR3DEModel.from_pretrained(tmp_path / "router").samples == SAMPLES
