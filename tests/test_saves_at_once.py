"""One folder under use: writers beside writers, readers beside a writer, and several first starts."""

import json
import os
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from ir3de import IR3DEModel
from ir3de.scripts.fitting import embedded

from . import tiny
from .test_atomic_save import old_and_new, tree

LOADS = int(os.environ.get("IR3DE_LOADS", "25"))  # the full proof: `make prove`
PAIRS = int(os.environ.get("IR3DE_PAIRS", "6"))


def started(work: Callable[[], object]) -> int:
    """The number of a process that does something, and that ends with 0 if nothing was raised."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)  # the threads of the parent's pool are not here: waiting would never end
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end_well(children: list[int]) -> bool:
    """Waits for processes; whether nothing was raised in any."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes == [0] * len(children)


def which(loaded: IR3DEModel, models: tuple[IR3DEModel, ...]) -> int:
    """The number of the router that a loaded one is, to the last bit."""
    number = [model.config.expert_names for model in models].index(loaded.config.expert_names)
    weights = models[number].state_dict()
    assert all(torch.equal(weights[key], value) for key, value in loaded.state_dict().items())
    assert loaded.config.num_votes == models[number].config.num_votes
    return number


def saved_alternately(folder: Path, models: tuple[IR3DEModel, ...], end: Path) -> None:
    while not end.exists():
        for model in models:
            model.save_pretrained(folder)


def test_loads_beside_a_saving_writer_are_of_one_state(tmp_path: Path) -> None:
    models, folder, end = old_and_new(), tmp_path / "router", tmp_path / "end"
    models[0].config.num_votes = 3
    models[0].save_pretrained(folder)
    writer = started(lambda: saved_alternately(folder, models, end))
    found, slowest, anew = [0, 0], 0.0, 0
    try:
        for number in range(LOADS):
            start = time.perf_counter()
            # As `pipeline` does, which reads the config first.
            given = {"config": AutoConfig.from_pretrained(folder)} if number % 2 else {}
            loaded = IR3DEModel.from_pretrained(folder, **given)
            slowest = max(slowest, time.perf_counter() - start)
            if not given:
                found[which(loaded, models)] += 1
            try:
                assert set(loaded.statistics) == set(loaded.config.expert_names)
                loaded.fit()
            except ValueError as error:
                if "saved anew" not in str(error):
                    raise
                anew += 1
            state = loaded.state_dict()
            assert any(
                loaded.config.expert_names == model.config.expert_names
                and all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
                for model in models
            )
    finally:
        end.touch()
    assert end_well([writer])
    assert LOADS < 20 or min(found) > 0
    print(f"{LOADS} loads, none torn, none failed; the slowest took {slowest:.2f} s; {anew} routers whose statistics")
    print("were asked for after another save, and said so")


def test_pairs_of_savers_leave_one_of_the_two(tmp_path: Path) -> None:
    models = old_and_new()
    found = [0, 0]
    for number in range(PAIRS):
        folder = tmp_path / str(number % 4)  # some anew, some over what is there
        pair = [started(lambda model=model, folder=folder: model.save_pretrained(folder)) for model in models]
        assert end_well(pair)
        loaded = IR3DEModel.from_pretrained(folder)
        found[which(loaded, models)] += 1
        assert set(loaded.statistics) == {path.stem for path in (folder / "statistics").iterdir()}
        assert not list(folder.glob(".ir3de-*"))
    print(
        f"{PAIRS} pairs, no save failed, no folder is broken: {found[0]} ended as one router, {found[1]} as the other"
    )


def test_threads_save_and_load_one_folder(tmp_path: Path) -> None:
    models = old_and_new()
    models[0].save_pretrained(tmp_path)
    failed: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for _ in range(3):
                if number < 2:
                    models[number].save_pretrained(tmp_path)
                else:
                    which(IR3DEModel.from_pretrained(tmp_path), models)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_lock_is_not_kept_by_a_process_that_was_forked_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def fork_on(*_: object, **__: object) -> None:
        made.append(started(lambda: time.sleep(60)))

    with monkeypatch.context() as patch:
        patch.setattr("ir3de.repository_ir3de.update_card", fork_on)
        tiny.router().save_pretrained(tmp_path)
    saved = started(lambda: tiny.router().save_pretrained(tmp_path))
    try:
        assert end_well([saved])
        assert os.waitpid(made[0], os.WNOHANG) == (0, 0), "it still sleeps"
    finally:
        os.kill(made[0], 9)
        os.waitpid(made[0], 0)


def test_a_folder_that_may_not_be_written_to_is_read(tmp_path: Path) -> None:
    tiny.router().save_pretrained(tmp_path)
    (tmp_path / "statistics").chmod(0o555)
    tmp_path.chmod(0o555)
    before = tree(tmp_path)
    try:
        assert set(IR3DEModel.from_pretrained(tmp_path).statistics) == set(tiny.DOMAINS)
        assert tree(tmp_path) == before
    finally:
        tmp_path.chmod(0o755)
        (tmp_path / "statistics").chmod(0o755)


@pytest.mark.parametrize("number", [8])
def test_first_starts_at_once_all_succeed(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "IR3DE_LOADS" not in os.environ:  # in the suite the tiny world stands for the embedded router
        tiny.router({name: {"model": "org/x"} for name in tiny.DOMAINS}).save_pretrained(tmp_path / "embedded")
        sample = json.dumps({"text": "court", "domain": next(iter(tiny.DOMAINS))})
        (tmp_path / "embedded" / "sample.jsonl").write_text(sample, encoding="utf-8")
        monkeypatch.setattr(embedded, "FOLDER", tmp_path / "embedded")
        monkeypatch.setattr(embedded, "load_quickstart_source", lambda: (tiny.tokenizer(), tiny.embeddings()))
        monkeypatch.setattr(embedded, "quickstart_source", lambda: {"model": "tiny"})
    monkeypatch.setattr(embedded, "cached_assets_path", lambda *_, **__: str(tmp_path))

    def start() -> None:
        loaded = IR3DEModel.from_pretrained(embedded.build())
        assert set(loaded.statistics) == set(loaded.config.expert_names)

    assert end_well([started(start) for _ in range(number)])
    IR3DEModel.from_pretrained(embedded.build())
    print(f"{number} first starts at once, none failed")
