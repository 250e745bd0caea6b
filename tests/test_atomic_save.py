"""A killed save leaves the old router or the new one."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from ir3de import IR3DEModel
from ir3de import atomic_save_ir3de as files

from . import tiny

KILLS = int(os.environ.get("IR3DE_KILLS", "12"))  # the full proof: `make prove`


def old_and_new() -> tuple[IR3DEModel, IR3DEModel]:
    new = tiny.router()
    new.remove_expert("law")
    new.add_expert("art", statistics=tiny.statistics(tiny.sentences("law", 7)), own=True)
    new.remove_expert("math")
    return tiny.router(), new


def which(folder: Path, *models: IR3DEModel) -> int:
    """The number of the router that a folder loads as, its statistics and tokenizer included."""
    loaded = IR3DEModel.from_pretrained(folder)
    weights = {key: value.clone() for key, value in loaded.state_dict().items()}
    loaded.fit()
    assert all(torch.equal(weights[key], value) for key, value in loaded.state_dict().items())
    assert len(loaded.tokenizer) == len(tiny.TOKENS)
    assert {path.stem for path in (files.current(folder) / "statistics").iterdir()} >= set(loaded.config.expert_names)
    return [model.config.expert_names for model in models].index(loaded.config.expert_names)


def test_saves_killed_at_random_instants_leave_one_of_the_two(tmp_path: Path) -> None:
    models = old_and_new()
    models[0].save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    start = time.perf_counter()
    models[0].save_pretrained(tmp_path)
    takes = time.perf_counter() - start
    draw, found, here = random.Random(0), [0, 0], 0
    for _ in range(KILLS):
        child = os.fork()
        if not child:
            torch.set_num_threads(1)  # the threads of the parent's pool are not here: waiting would never end
        while not child:  # saves one after the other until it is killed, first the one that is not there
            models[1 - here].save_pretrained(tmp_path)
            models[here].save_pretrained(tmp_path)
        time.sleep(draw.uniform(0, 6 * takes))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        here = which(tmp_path, *models)
        found[here] += 1
        assert (tmp_path / "notes.txt").read_text() == "mine"
    print(f"{found[0]} of {KILLS} kills left the old router, {found[1]} the new one")
    assert min(found) > 0, "kills before and after the moment that decides"


def tree(folder: Path) -> dict[str, object]:
    """What is in a folder: the bytes of files, and what links lead to."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


class Killed(BaseException):
    """Stands for a kill: nothing is cleaned up after it."""


def die_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Makes the given rename or replacement of a save the last thing that does not happen."""
    left = iter(range(step, -1, -1))

    def dying(operation):
        def run(*args, **kwargs):
            if next(left, -1) <= 0:
                raise Killed
            return operation(*args, **kwargs)

        return run

    for module, name in ((files.os, "replace"), (files.os, "link"), (Path, "unlink"), (files.shutil, "rmtree")):
        monkeypatch.setattr(module, name, dying(getattr(module, name)))


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 8, 13, 30, 50, 60, 1000])
def test_a_kill_at_any_step_leaves_one_of_the_two(step: int, tmp_path: Path) -> None:
    models = old_and_new()
    models[0].save_pretrained(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, step)
        try:
            models[1].save_pretrained(tmp_path)
        except Killed:
            assert step < 1000
    before = tree(tmp_path)
    assert which(tmp_path, *models) == (step >= 1), "one replacement decides"
    assert tree(tmp_path) == before, "loading writes nothing"
    models[1].save_pretrained(tmp_path)
    assert which(tmp_path, *models) == 1
    assert not list(tmp_path.glob(".ir3de-*")), "the next save clears up"
    assert {path.stem for path in (tmp_path / "statistics").iterdir()} == {"art", "code"}


def test_a_save_that_fails_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = old_and_new()
    models[0].save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ir3de.repository_ir3de.update_card", no_space)
    with pytest.raises(OSError, match="No space"):
        models[1].save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.name == "nt", reason="no such modes there")
@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)]
)
def test_what_is_saved_may_be_read_by_whom_the_umask_says(umask: int, file: int, folder: int, tmp_path: Path) -> None:
    model, place = tiny.router(), tmp_path / "router"
    before = os.umask(umask)
    try:
        model.save_pretrained(place)
        model.statistics["law"].save(tmp_path / "law.safetensors")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in [place, *place.rglob("*"), tmp_path / "law.safetensors"]}
    assert modes == {path: folder if path.is_dir() else file for path in modes}
    assert (place / "model.safetensors") in modes


# Folders of strangers.


def hostile(folder: Path, outside: Path) -> None:
    """Puts into a router's folder whatever could have something written, deleted or waited for elsewhere."""
    up = Path("..") / outside.name
    for name in (".ir3de-staged", ".ir3de-writing-a", ".ir3de-state-abc", ".ir3de-state-def"):
        (folder / name / "statistics").mkdir(parents=True)
        (folder / name / "model.safetensors").symlink_to(outside / "kept.txt")
        (folder / name / "link").symlink_to(outside)
        (folder / name / ("n" * 200)).mkdir()
        (folder / name / ("n" * 200) / "secret").write_text("x")
        (folder / name / "new.txt").write_text("planted")
        (folder / name / "statistics" / "law.safetensors").write_bytes(b"")
        os.mkfifo(folder / name / "pipe")
    (folder / ".ir3de-state-up").symlink_to(up)
    (folder / ".ir3de-writing-link").symlink_to(outside)
    (folder / ".ir3de-state-link").symlink_to(outside)
    (folder / ".ir3de-state-file").symlink_to(outside / "kept.txt")


def world(root: Path) -> tuple[Path, Path]:
    """A stranger's folder, and files outside of it."""
    outside = root / "outside"
    (outside / "statistics").mkdir(parents=True)
    (outside / "new").mkdir()
    for name in ("kept.txt", "config.json", "statistics/law.safetensors", "statistics/gone.safetensors", "new/x"):
        (outside / name).write_text("mine")
    tiny.router().save_pretrained(root / "router")
    return root / "router", outside


SWITCHES = ["", "..", "../outside", ".ir3de-state-link", ".ir3de-state-abc", ".ir3de-state-" + "n" * 300, "\0", "/etc"]


@pytest.mark.parametrize("switch", [*SWITCHES, "a link", "a pipe", "a folder"])
@pytest.mark.parametrize("former", [False, True])
def test_a_strangers_folder_changes_nothing_outside_of_it_and_nothing_inside_when_read(
    switch: str, former: bool, tmp_path: Path
) -> None:
    folder, outside = world(tmp_path)
    hostile(folder, outside)
    if former:  # a save by an earlier version, past its moment
        (folder / ".ir3de-staged" / "model.safetensors").unlink()
    else:
        (folder / ".ir3de-staged" / "config.json").write_text("{}")
    if switch == "a link":
        (folder / ".ir3de-switch").symlink_to(outside / "kept.txt")
    elif switch == "a pipe":
        os.mkfifo(folder / ".ir3de-switch")
    elif switch == "a folder":
        (folder / ".ir3de-switch").mkdir()
    elif switch:
        (folder / ".ir3de-switch").write_text(switch)
    before = tree(tmp_path)
    with contextlib.suppress(ValueError, OSError):
        loaded = IR3DEModel.from_pretrained(folder)
        assert (loaded.statistics, loaded.second_opinion) == (loaded.statistics, None)
    assert tree(tmp_path) == before
    elsewhere = tree(outside)
    with contextlib.suppress(ValueError, OSError):  # a folder in the switch's place
        tiny.router().save_pretrained(folder)
    assert tree(outside) == elsewhere
    if switch != "a folder":
        assert IR3DEModel.from_pretrained(folder).config.expert_names == tiny.router().config.expert_names
        assert not list(folder.glob(".ir3de-*"))


@pytest.mark.parametrize("part", ["statistics", "second"])
def test_a_save_does_not_go_through_a_link_out_of_the_folder(part: str, tmp_path: Path) -> None:
    folder, outside = world(tmp_path)
    if part == "statistics":
        files.shutil.rmtree(folder / part)
    (folder / part).symlink_to(outside)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=f"{part} is a link to elsewhere"):
        tiny.router().save_pretrained(folder)
    assert tree(tmp_path) == before


def test_links_to_files_are_replaced_not_written_through(tmp_path: Path) -> None:
    folder, outside = world(tmp_path)
    for name in ("config.json", "model.safetensors", "README.md", "statistics/law.safetensors"):
        (folder / name).unlink()
        (folder / name).symlink_to(outside / "kept.txt")
    elsewhere = tree(outside)
    tiny.router().save_pretrained(folder)
    assert tree(outside) == elsewhere
    assert not (folder / "config.json").is_symlink()
    IR3DEModel.from_pretrained(folder)


def test_what_an_earlier_version_left_half_done_is_said(tmp_path: Path) -> None:
    folder, _ = world(tmp_path)
    (folder / ".ir3de-staged").mkdir()
    (folder / "model.safetensors").rename(folder / ".ir3de-staged" / "model.safetensors")
    with pytest.raises(ValueError, match=r"by an earlier version that was killed: move what is in \.ir3de-staged"):
        IR3DEModel.from_pretrained(folder)
    (folder / ".ir3de-staged" / "model.safetensors").rename(folder / "model.safetensors")
    (folder / ".ir3de-staged").rmdir()
    IR3DEModel.from_pretrained(folder)


def test_a_copy_without_its_hidden_files_is_said(tmp_path: Path) -> None:
    folder, _ = world(tmp_path)
    (folder / ".ir3de-switch").write_text(".ir3de-state-gone")
    with pytest.raises(ValueError, match=r"not whole.*with its hidden files"):
        IR3DEModel.from_pretrained(folder)


def test_a_router_whose_folder_was_saved_anew_reads_no_files_of_the_other(tmp_path: Path) -> None:
    old, new = old_and_new()
    old.save_pretrained(tmp_path)
    loaded, whole = IR3DEModel.from_pretrained(tmp_path), IR3DEModel.from_pretrained(tmp_path)
    assert set(whole.statistics) == set(old.config.expert_names)
    new.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="saved anew since this router was loaded"):
        loaded.statistics  # noqa: B018
    assert set(whole.statistics) == set(old.config.expert_names)
    config = AutoConfig.from_pretrained(tmp_path)
    old.save_pretrained(tmp_path)
    assert IR3DEModel.from_pretrained(tmp_path, config=config).config.expert_names == old.config.expert_names


def test_a_router_that_was_loaded_offline_is_saved_as_one_that_was_not(tmp_path: Path) -> None:
    tiny.router().save_pretrained(tmp_path / "made")
    IR3DEModel.from_pretrained(tmp_path / "made", local_files_only=True).save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not config.get("local_files_only")
