"""A killed save leaves the old router or the new one."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from ir3de import IR3DEModel
from ir3de import files_ir3de as files

from . import tiny

KILLS = int(os.environ.get("IR3DE_KILLS", "12"))  # the full proof: `make prove`


def old_and_new() -> tuple[IR3DEModel, IR3DEModel]:
    new = tiny.router()
    new.remove_expert("law")
    new.add_expert("art", statistics=tiny.statistics(tiny.sentences("law", 7)))
    new.remove_expert("math")
    return tiny.router(), new


def which(folder: Path, *models: IR3DEModel) -> int:
    """The number of the router that a folder loads as, its statistics and tokenizer included."""
    loaded = IR3DEModel.from_pretrained(folder)
    weights = {key: value.clone() for key, value in loaded.state_dict().items()}
    loaded.fit()
    assert all(torch.equal(weights[key], value) for key, value in loaded.state_dict().items())
    assert len(loaded.tokenizer) == len(tiny.TOKENS)
    assert {path.stem for path in (folder / "statistics").iterdir()} >= set(loaded.config.expert_names)
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

    monkeypatch.setattr(files.os, "replace", dying(os.replace))
    monkeypatch.setattr(Path, "rename", dying(Path.rename))
    monkeypatch.setattr(files.tempfile.TemporaryDirectory, "cleanup", lambda self: None)
    monkeypatch.setattr(files.tempfile.TemporaryDirectory, "__exit__", lambda *_: None)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 8, 13, 1000])
def test_a_kill_at_any_step_leaves_one_of_the_two(step: int, tmp_path: Path) -> None:
    models = old_and_new()
    models[0].save_pretrained(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, step)
        try:
            models[1].save_pretrained(tmp_path)
        except Killed:
            assert step < 1000
    assert which(tmp_path, *models) == (step >= 2), "the rename of the folder and that of config.json decide"
    models[1].save_pretrained(tmp_path)
    assert which(tmp_path, *models) == 1
    assert not list(tmp_path.glob(".ir3de-*")), "the next save clears up"
    assert {path.stem for path in (tmp_path / "statistics").iterdir()} == {"art", "code"}


def test_a_save_that_fails_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = old_and_new()
    models[0].save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ir3de.modeling_ir3de.update_card", no_space)
    with pytest.raises(OSError, match="No space"):
        models[1].save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
