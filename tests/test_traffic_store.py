"""The store of answers and scores, and the ledger that is remade from it."""

import itertools
import json
import logging
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as for_each
from hypothesis import settings, strategies

from ir3de import IR3DEModel
from ir3de.gateway.server import Service, run
from ir3de.outcome_rows_ir3de import Outcome
from ir3de.outcomes_ir3de import ONE, Ledger, OutcomesCollector, shared
from ir3de.scripts import cli
from ir3de.traffic import apart
from ir3de.traffic.apart import remade_apart
from ir3de.traffic.errors import Conflict, Expired, NoAnswer, StoreUnavailable, Unknown, WrongStore
from ir3de.traffic.marks import marked
from ir3de.traffic.remade import parts_of, remade, tag_of
from ir3de.traffic.removal import Which, moment, take_back
from ir3de.traffic.signals import REGENERATED, REPEATED, TOOL_FAILED, Seen, Turns, Watcher
from ir3de.traffic.store import Answer, Given, Signal, Store
from ir3de.traffic.tables import feedback
from ir3de.traffic.texts import Texts
from ir3de.traffic.writer import Writer

from . import tiny

NOW = moment("2026-03-01T12:00")
DAY = 86_400.0
DOMAINS = ["code", "law", "math"]
KILLS = int(os.environ.get("IR3DE_KILLS", "1"))


def answer(number: int = 1, **fields: Any) -> Answer:
    """An answer; those of different numbers are different in everything."""
    draw = np.random.default_rng(number)
    weights = shared(draw.dirichlet(np.ones(3), 1))[0].tolist()
    made = {
        "uid": f"{number:032x}",
        "request_id": f"request-{number}",
        "answer_id": f"chatcmpl-{number}",
        "time": NOW,
        "caller": "",
        "expert": DOMAINS[number % 3],
        "status": "answered",
        "recognised": dict(zip(DOMAINS, weights, strict=True)),
        "tokens": int(draw.integers(1, 1000)),
        "cost": float(draw.random()),
        "seconds": float(draw.random()),
    }
    return Answer(**{**made, **fields})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    made = Store(str(tmp_path / "store.sqlite"))
    yield made
    made.close()


def keep(store: Store, *kept: Answer) -> None:
    with store.writing() as connection:
        store.add_answers(connection, kept)


def score(store: Store, id_: str, value: float, now: float = NOW, **fields: Any) -> Any:
    with store.writing() as connection:
        return store.score(connection, Given(id_, value, **fields), now)


def rows_of(store: Store) -> dict[str, list[Any]]:
    """All that a store holds of answers, without the numbers that it gave them."""
    found = {}
    with store.reading() as connection:
        for table in ("answers", "feedback", "receipts", "signals"):
            key = "number" if table == "answers" else "answer"
            joined = f"JOIN ir3de_answers ON ir3de_answers.number = ir3de_{table}.{key}" if key == "answer" else ""
            rows = connection.exec_driver_sql(f"SELECT * FROM ir3de_{table} {joined}").mappings()
            kept = [{name: value for name, value in row.items() if name not in ("number", "answer")} for row in rows]
            found[table] = sorted(kept, key=repr)
    return found


def files_of(model: IR3DEModel, folder: Path) -> dict[str, bytes]:
    """The files of a router's outcomes, and its config."""
    model.save_pretrained(folder)
    paths = [*folder.joinpath("outcomes").glob("*"), folder / "config.json"]
    return {path.name: path.read_bytes() for path in paths}


def test_a_score_is_found_by_both_ids_and_a_second_one_replaces_it(store: Store) -> None:
    keep(store, answer(1), answer(2))
    score(store, "request-1", 0.25)
    score(store, "chatcmpl-2", 1.0)
    before = remade(store)
    score(store, "chatcmpl-1", 0.75)
    after = remade(store)
    assert before.outcomes == after.outcomes == 2
    assert before.ledger != after.ledger
    score(store, "request-1", 0.25)
    assert remade(store).ledger == before.ledger


def test_the_ledger_is_that_of_the_same_outcomes_as_rows(store: Store) -> None:
    kept = [answer(number, time=NOW + number % 4 * DAY) for number in range(60)]
    keep(store, *kept)
    for number in range(60):
        score(store, f"request-{number}", number / 60)
    collector = OutcomesCollector(DOMAINS)
    for number, each in enumerate(kept):
        assert each.recognised is not None
        day = time.strftime("%Y-%m-%d", time.gmtime(each.time))
        outcome = Outcome(each.uid, each.expert, number / 60, each.cost, each.seconds, each.tokens, day=day)
        collector.add([outcome], np.array([[*each.recognised.values()]]))
    made = remade(store)
    experts = sorted(collector.ledger.contributions)
    for half_life in (None, 2.0):
        sums = [ledger.sums(DOMAINS, experts, half_life) for ledger in (collector.ledger, made.ledger)]
        assert np.array_equal(*sums)
    assert {part.day for parts in made.ledger.contributions.values() for part in parts.values()} == {
        f"2026-03-0{day}" for day in (1, 2, 3, 4)
    }


@pytest.mark.parametrize("rows", [50_000, 1])
def test_scores_that_are_too_much_to_count_are_named_and_can_be_taken_back(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store.db"), replica="the shop's till")
    monkeypatch.setattr("ir3de.traffic.remade._ROWS", rows)
    sure = {"recognised": {"code": ONE, "law": 0, "math": 0}, "expert": "law"}
    keep(store, answer(1, time=NOW - DAY), *(answer(number, **sure) for number in (2, 3)))
    for number in (1, 2, 3):
        score(store, f"request-{number}", 1.0, cost=None if number == 1 else 1e9)
    with pytest.raises(OverflowError, match=r"2026-03-01.*'law'.*--take-back") as found:
        remade(store)
    command = re.search("`(ir3de outcomes [^`]+)`", str(found.value))
    assert command is not None
    *_, option, which = shlex.split(command[1])
    assert option == "--take-back"
    with store.writing() as connection:
        assert len(take_back(connection, Which.read(which))) == 2
    assert remade(store).outcomes == 1
    store.close()


def test_the_same_scores_have_the_same_names_in_any_order(tmp_path: Path) -> None:
    made = []
    for name, numbers in (("a", range(1, 20)), ("b", reversed(range(1, 20)))):
        each = Store(str(tmp_path / name), replica="one")
        for number in numbers:
            keep(each, answer(number))
            score(each, f"request-{number}", 0.5, key=None if name == "a" else f"key {number}")
        made.append(remade(each).ledger)
        each.close()
    assert made[0].contributions.keys() == made[1].contributions.keys()
    for expert, parts in made[0].contributions.items():
        assert list(parts) == list(made[1].contributions[expert])
        assert all(name.startswith(tag_of("one")) for name in parts)


@pytest.mark.parametrize(
    ("kept", "given", "error"),
    [
        ({}, {"id_": "request-9"}, Unknown),
        ({"caller": "a" * 64}, {"caller": "b" * 64}, Unknown),
        ({"caller": "a" * 64}, {"caller": ""}, Unknown),
        ({"status": "expert_failed", "expert": ""}, {}, NoAnswer),
        ({"status": "broken"}, {}, NoAnswer),
        ({"recognised": None}, {}, NoAnswer),
        ({"time": NOW - 31 * DAY}, {}, Expired),
    ],
)
def test_what_cannot_be_scored_is_refused_and_leaves_nothing(
    store: Store, kept: dict[str, Any], given: dict[str, Any], error: type[Exception]
) -> None:
    keep(store, answer(1, **kept))
    before = rows_of(store)
    with pytest.raises(error):
        score(store, **{"id_": "request-1", "value": 1.0, "key": "k", **given})
    assert rows_of(store) == before
    assert not remade(store).ledger


def test_a_key_is_taken_once(store: Store) -> None:
    keep(store, answer(1), answer(2))
    score(store, "request-1", 1.0, key="k")
    with pytest.raises(Conflict):
        score(store, "request-1", 0.0, key="k")
    with pytest.raises(Conflict):
        score(store, "request-2", 1.0, key="k")
    score(store, "request-1", 0.5, key="other")
    assert score(store, "request-1", 1.0, key="k").request_id == "request-1", "the same again"
    with store.reading() as connection:
        assert connection.scalar(feedback.select().with_only_columns(feedback.c.score)) == 0.5


def test_of_two_answers_of_one_id_the_latest_is_meant_whatever_the_clock_says(store: Store) -> None:
    keep(store, answer(1, request_id="same", status="expert_failed"), answer(2, request_id="same", time=NOW - DAY))
    assert score(store, "same", 1.0).uid == answer(2).uid


def test_a_clock_that_jumps_breaks_nothing(store: Store) -> None:
    keep(store, answer(1, time=NOW + 400 * DAY), answer(2, time=NOW - 3 * DAY), answer(3, time=-1.0))
    assert score(store, "request-1", 1.0).uid == answer(1).uid, "from before the clock was set back"
    score(store, "request-2", 1.0)
    with pytest.raises(Expired):
        score(store, "request-3", 1.0)
    assert remade(store).outcomes == 2


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    Store(str(path)).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE ir3de_about SET value = '2' WHERE name = 'version'")
    raw.close()
    with pytest.raises(WrongStore, match=r"version '2'.*Serve it with the version of ir3de that wrote it"):
        Store(str(path))


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("no database, but long enough to have been one " * 100)
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match="not a database"):
        Store(str(path))
    assert path.read_bytes() == before
    with pytest.raises(StoreUnavailable, match="cannot be made"):
        Store(str(tmp_path / "missing" / "store.sqlite"))
    with pytest.raises(WrongStore, match="cannot be used"):
        Store("nonsense://host/name")


def test_only_its_owner_may_read_it(store: Store, tmp_path: Path) -> None:
    keep(store, answer(1))
    paths = [path for path in tmp_path.iterdir() if path.name.startswith("store.sqlite")]
    assert paths
    assert {path.stat().st_mode & 0o077 for path in paths} == {0}


# The writer.


def full(store: Store) -> None:
    """Lets a store grow no further."""

    def limit(connection: Any, _: Any) -> None:
        """As the disk is full."""
        connection.execute("PRAGMA max_page_count=1")  # SQLite takes the present size instead

    from sqlalchemy import event

    store._engine.dispose()
    event.listen(store._engine, "connect", limit)


def read_only(store: Store) -> None:
    """Lets nobody write to a store."""
    from sqlalchemy import event

    store._engine.dispose()
    event.listen(store._engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only=1"))


@pytest.mark.parametrize(("harm", "reason"), [(full, "full"), (read_only, "readonly")])
def test_a_store_that_takes_nothing_says_why_once_and_takes_it_later(
    store: Store, harm: Callable[[Store], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[int] = []
    writer = Writer(store, lost.append)
    kept = writer.keep(answer(0))
    assert kept is not None
    kept.result(10)
    harm(store)
    with caplog.at_level(logging.WARNING):
        tries = [writer.keep(answer(number, expert="x" * 5000)) for number in range(1, 4)]
        for brought in tries:
            assert brought is not None
            with pytest.raises(StoreUnavailable, match=reason):
                brought.result(10)
        time.sleep(0.05)
    assert sum(lost) == 3
    assert caplog.text.count("cannot be written to") == 1
    store._engine.pool.dispatch.connect.clear()  # what harms it is over
    store._engine.dispose()
    writer.close()


def test_a_locked_store_is_waited_for_and_then_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ir3de.traffic.tables._BUSY_SECONDS", 0)
    store = Store(str(tmp_path / "store.sqlite"))
    keep(store, answer(1))
    writer = Writer(store)
    raw = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        writer.do(lambda connection: store.score(connection, Given("request-1", 1.0), NOW)).result(10)
    raw.execute("ROLLBACK")
    raw.close()
    writer.do(lambda connection: store.score(connection, Given("request-1", 1.0), NOW)).result(10)
    writer.close()
    assert remade(store).outcomes == 1
    store.close()


def test_nobody_waits_where_too_much_waits_already(store: Store) -> None:
    held, lost = threading.Event(), []
    writer = Writer(store, lost.append, waiting=2)
    first = writer.do(lambda connection: held.wait(10))
    while writer.waiting:
        time.sleep(0.001)
    brought = [writer.keep(answer(number)) for number in range(5)]
    assert [each is None for each in brought] == [False, False, True, True, True]
    with pytest.raises(StoreUnavailable, match="wait to be written"):
        writer.do(lambda connection: None)
    held.set()
    first.result(10)
    writer.close()
    assert store.counts["answers"] == 2
    assert sum(lost) == 4
    with pytest.raises(StoreUnavailable, match="closed"):
        writer.do(lambda connection: None)


def test_work_that_fails_spoils_nobody_elses(store: Store) -> None:
    writer, held = Writer(store), threading.Event()
    first = writer.do(lambda connection: held.wait(10))
    kept = [writer.keep(answer(1)), writer.do(lambda connection: 1 / 0), writer.keep(answer(2))]
    scored = writer.do(lambda connection: store.score(connection, Given("request-2", 1.0), NOW))
    refused = writer.do(lambda connection: store.score(connection, Given("request-9", 1.0), NOW))
    held.set()
    first.result(10)
    with pytest.raises(StoreUnavailable, match="ZeroDivisionError"):
        kept[1].result(10)  # type: ignore[union-attr]
    with pytest.raises(Unknown):
        refused.result(10)
    assert scored.result(10).uid == answer(2).uid
    assert store.counts == {"answers": 2, "scores": 1, "signals": 0}
    writer.close()


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    """As worker processes do: each with connections of its own, on one file."""
    stores = [Store(str(tmp_path / "store.sqlite")) for _ in range(3)]
    assert len({each.replica for each in stores}) == 1
    writers = [Writer(each) for each in stores]
    brought: list[Future[Any]] = []
    for number in range(150):
        writer = writers[number % 3]
        kept = writer.keep(answer(number))
        assert kept is not None
        given = Given(f"request-{number}", 1.0, key=f"k{number}")
        brought += [kept, writer.do(lambda c, w=writer, g=given: w.store.score(c, g, NOW))]  # type: ignore[misc]
    for each in brought:
        each.result(60)
    for writer in writers:
        writer.close()
    assert remade(stores[0]).outcomes == 150
    for store in stores:
        store.close()


_SCORER = """
import sys
from ir3de.traffic.store import Answer, Given, Store
from ir3de.traffic.writer import Writer
store = Store(sys.argv[1])
writer = Writer(store)
for number in range(100_000):
    name = f"{sys.argv[2]}-{number}"
    kept = Answer(f"{number:032x}", name, None, 1e9, "", "law", "answered", {"law": 1 << 20})
    writer.keep(kept)
    writer.do(lambda c: store.score(c, Given(name, 1.0, key=name), 1e9)).result()
    print(name, flush=True)
"""


def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    path, acknowledged = tmp_path / "store.sqlite", []
    for turn in range(KILLS):
        command = [sys.executable, "-c", _SCORER, str(path), str(turn)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged += [process.stdout.readline().strip() for _ in range(20 + turn)]
            process.kill()
            acknowledged += process.stdout.read().split("\n")[:-1]
    store = Store(str(path), days=1e6)
    assert len(acknowledged) >= 20 * KILLS
    with store.reading() as connection:
        kept = {*connection.exec_driver_sql("SELECT key FROM ir3de_receipts").scalars()}
    assert set(acknowledged) <= kept
    assert remade(store).outcomes == len(kept)
    store.close()


# Taking back.


@settings(max_examples=12, deadline=None)
@for_each(data=strategies.data())
def test_taken_back_equals_never_given(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("stores")
    numbers = strategies.integers(1, 12)
    kept = data.draw(strategies.lists(numbers, unique=True, min_size=1), label="answers")
    scores = data.draw(strategies.lists(strategies.tuples(numbers, strategies.floats(0, 1))), label="scores")
    kind = data.draw(strategies.sampled_from(["id", "key", "replica", "since"]), label="by")
    gone = set(data.draw(strategies.lists(strategies.sampled_from(kept)), label="gone"))

    def made(name: str, leave_out: set[int]) -> Store:
        """A store with all but some of the answers."""
        stores = {here: Store(str(folder / name), replica=here) for here in ("stays", "goes")}
        for number in kept:
            if number not in leave_out:
                apart = number in gone
                caller, at = ("f" * 64, NOW + 9 * DAY) if apart else ("", NOW + number % 3 * DAY)
                keep(stores["goes" if apart else "stays"], answer(number, caller=caller, time=at))
        for place, (number, value) in enumerate(scores):
            if number in kept and number not in leave_out:
                given = {"caller": "f" * 64} if number in gone else {}
                score(stores["stays"], f"request-{number}", value, NOW + 10 * DAY, key=f"k{place}", **given)
        stores["goes"].close()
        return stores["stays"]

    never, with_all = made("never", gone), made("all", set())
    ways = {
        "id": [Which(id=f"request-{number}") for number in gone],
        "key": [Which(key="f" * 64)],
        "replica": [Which(replica="goes")],
        "since": [Which(since=NOW + 5 * DAY, until=NOW + 20 * DAY)],
    }
    uids: list[str] = []
    with with_all.writing() as connection:
        for which in ways[kind]:
            uids += take_back(connection, which)
    assert set(uids) == {answer(number).uid for number in gone}
    assert rows_of(with_all) == rows_of(never)
    ledgers = []
    for store, name in ((with_all, "files"), (never, "others")):
        folder.joinpath(name).mkdir()
        remade(store).ledger.save(folder / name)
        ledgers.append({path.name: path.read_bytes() for path in folder.joinpath(name).iterdir()})
        store.close()
    assert ledgers[0] == ledgers[1]
    shutil.rmtree(folder)


def test_answers_that_nobody_scored_go_without_a_change_to_the_ledger(store: Store) -> None:
    keep(store, *(answer(number) for number in range(6)))
    score(store, "request-2", 1.0)
    with store.writing() as connection:
        store.add_signal(connection, Signal(REPEATED, "request-3", answer(3).uid, ONE, NOW))
    before = remade(store)
    with store.writing() as connection:
        assert len(take_back(connection, Which.read("scored=no,until=2026-03-02"))) == 4
    assert remade(store) == before
    with store.writing() as connection:
        assert len(take_back(connection, Which.read("scored=yes"))) == 2


def test_what_was_removed_is_not_left_in_the_file(store: Store, tmp_path: Path) -> None:
    keep(store, answer(1, request_id="a-most-telling-name"), answer(2))
    with store.writing() as connection:
        take_back(connection, Which(id="a-most-telling-name"))
    store.wipe()
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert not any(b"a-most-telling-name" in path.read_bytes() for path in files)
    assert any(b"request-2" in path.read_bytes() for path in files)


@pytest.mark.parametrize("text", ["", "id", "id=", "who=me", "id=a,id=b", "since=soon", "scored=maybe", "2026"])
def test_what_is_to_be_taken_back_must_be_said(text: str) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Which.read(text)


def test_times_are_of_utc() -> None:
    assert moment("1970-01-02") == DAY
    assert moment("1970-01-02T01:00+01:00") == DAY
    assert Which.read("since=1970-01-02,key=abc") == Which(since=DAY, key="abc")


# The command.


@pytest.fixture
def router(tmp_path: Path) -> Path:
    """A folder with a router."""
    folder = tmp_path / "router"
    tiny.router({name: {} for name in tiny.DOMAINS}).save_pretrained(folder)
    return folder


def scored(path: Path, numbers: range, **fields: Any) -> None:
    """A store with scores."""
    store = Store(str(path), replica="one")
    for number in numbers:
        keep(store, answer(number, time=time.time(), **fields))
        score(store, f"request-{number}", number % 2, time.time())
    store.close()


def test_a_router_learns_from_a_store_and_forgets_what_is_taken_back(
    router: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(IR3DEModel.from_pretrained(router), tmp_path / "before")
    path = tmp_path / "store.sqlite"
    scored(path, range(1, 10))
    command = ["outcomes", str(router), "--from-store", str(path)]
    assert cli.main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "9 outcomes: 3 contributions joined, 0 left." in shown
    assert "\nlaw  " in shown
    assert "An expert's expected score in each domain" in shown
    assert not IR3DEModel.from_pretrained(router).outcomes
    assert cli.main(command) == 0
    first = files_of(IR3DEModel.from_pretrained(router), tmp_path / "first")
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "as before" in capsys.readouterr().out
    scored(path, range(10, 13))
    assert cli.main(command) == 0
    assert "3 contributions joined, 3 left" in capsys.readouterr().out, "replaced"
    assert cli.main([*command, *itertools.chain(*(["--take-back", f"id=request-{n}"] for n in (10, 11, 12)))]) == 0
    assert "3 answers were taken back" in capsys.readouterr().out
    assert files_of(IR3DEModel.from_pretrained(router), tmp_path / "again") == first
    assert cli.main([*command, "--take-back", "replica=one"]) == 0
    assert files_of(IR3DEModel.from_pretrained(router), tmp_path / "after") == before


def test_what_a_lost_store_gave_is_taken_back_by_its_servers_name(router: Path, tmp_path: Path) -> None:
    before = files_of(IR3DEModel.from_pretrained(router), tmp_path / "before")
    lost, other = tmp_path / "lost.sqlite", tmp_path / "other.sqlite"
    scored(lost, range(1, 4))
    assert cli.main(["outcomes", str(router), "--from-store", str(lost)]) == 0
    lost.unlink()
    Store(str(other)).close()
    command = ["outcomes", str(router), "--from-store", str(other)]
    assert cli.main([*command, "--take-back", "replica=two"]) == 0
    assert IR3DEModel.from_pretrained(router).outcomes
    assert cli.main([*command, "--take-back", "replica=one"]) == 0
    assert files_of(IR3DEModel.from_pretrained(router), tmp_path / "after") == before


@pytest.mark.parametrize("more", [[], ["--take-back", "replica=one"]])
@pytest.mark.parametrize("form", ["{}", "sqlite:///{}"])
def test_a_mistyped_store_is_named_and_not_made(
    router: Path, tmp_path: Path, form: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mistyped.sqlite"
    assert cli.main(["outcomes", str(router), "--from-store", form.format(path), *more]) == 2
    assert f"There is no store at {path}" in capsys.readouterr().err
    assert not path.exists()
    path.touch()
    assert cli.main(["outcomes", str(router), "--from-store", form.format(path), *more]) == 2
    assert "There is no store at" in capsys.readouterr().err


def test_the_command_says_which_scores_are_too_much_to_count(
    router: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.sqlite"
    scored(path, range(3, 12), cost=1e9)
    command = ["outcomes", str(router), "--from-store", str(path)]
    assert cli.main(command) == 2
    which = re.search("--take-back ([^`]+)`", capsys.readouterr().err)
    assert which is not None
    assert cli.main([*command, "--take-back", which[1]]) == 0


@pytest.mark.parametrize(
    ("place", "more", "error"),
    [
        ("router", ["--texts", "mistyped.jsonl"], "There is no file mistyped.jsonl"),
        ("router", ["--create-pr"], "--create-pr opens a pull request on the Hub"),
        ("router", ["--exchange", "org/mistyped"], "org/mistyped cannot be used"),
        ("mistyped", [], "There is no folder mistyped"),
    ],
)
def test_nothing_is_taken_back_where_something_is_mistyped(
    router: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    more: list[str],
    error: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    scored(Path("store.sqlite"), range(1, 4))
    command = ["outcomes", place, "--from-store", "store.sqlite", "--take-back", "replica=one"]
    assert cli.main([*command, *more]) == 2
    assert error in capsys.readouterr().err
    store = Store("store.sqlite")
    assert store.counts["answers"] == 3
    store.close()
    assert not Path("mistyped.jsonl").exists()


def test_what_came_from_elsewhere_stays(router: Path, tmp_path: Path) -> None:
    model = IR3DEModel.from_pretrained(router)
    rows = [{"text": "the court", "expert": "law", "score": 1.0}]
    added = model.add_outcomes(rows)
    model.save_pretrained(router)
    path = tmp_path / "store.sqlite"
    scored(path, range(1, 4))
    command = ["outcomes", str(router), "--from-store", str(path)]
    assert cli.main(command) == 0
    assert cli.main([*command, "--take-back", "replica=one"]) == 0
    assert IR3DEModel.from_pretrained(router).outcomes == added


def test_what_a_router_does_not_know_rests_and_is_said(
    router: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.sqlite"
    scored(path, range(1, 2), expert="law", recognised={"law": ONE // 2, "physics": ONE - ONE // 2})
    scored(path, range(2, 3), expert="somebody")
    store = Store(str(path))
    keep(store, answer(3, time=time.time() + 40 * DAY))
    score(store, "request-3", 1.0)
    store.close()
    assert cli.main(["outcomes", str(router), "--from-store", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "experts that this router lacks do not count: somebody" in shown
    assert "domains that this router lacks do not count: physics" in shown
    assert "days to come stay behind" in shown
    model = IR3DEModel.from_pretrained(router)
    assert list(model.outcomes.contributions) == ["law"]
    assert model.outcomes.sums(["law"], ["law"])[0, 0, 0] == ONE // 2


@pytest.mark.parametrize(
    "more", [["--dry-run", "--take-back", "id=1"], ["--split", "a"], ["--remove"], ["--take-back", "x=1"]]
)
def test_options_that_do_not_go_together_are_refused(
    router: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.sqlite"
    scored(path, range(1, 3))
    assert cli.main(["outcomes", str(router), "--from-store", str(path), *more]) != 0
    assert not IR3DEModel.from_pretrained(router).outcomes
    store = Store(str(path))
    assert store.counts["answers"] == 2
    store.close()


# Text.


def test_text_is_kept_apart_and_goes_when_its_answer_does(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    texts, other = Texts(path), Texts(path)
    for number in range(6):
        (texts if number % 2 else other).add(uid=answer(number).uid, text=f"wörds {number}\ud800")
    assert path.stat().st_mode & 0o077 == 0
    assert other.remove([answer(1).uid, answer(4).uid]) == 2
    texts.add(uid=answer(7).uid, text="more")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == [f"wörds {n}?" for n in (0, 2, 3, 5)] + ["more"]
    assert path.stat().st_mode & 0o077 == 0


# Signs.


def test_parts_of_an_outcome_add_up() -> None:
    weights = shared(np.random.default_rng(0).dirichlet(np.ones(7), 50))
    units = np.arange(50) * 20_000
    parts = parts_of(weights, units)
    assert (parts.sum(axis=1) == units).all()
    assert (parts >= 0).all()
    assert (np.abs(parts - weights * units[:, None] / ONE) <= 1).all()
    assert np.array_equal(parts_of(weights, np.full(50, ONE)), weights)


def test_a_sign_counts_for_its_part_until_somebody_gives_a_score(store: Store) -> None:
    keep(store, answer(1))
    before = rows_of(store)
    with store.writing() as connection:
        for kind in (REPEATED, REPEATED):
            store.add_signal(connection, Signal(kind, "request-1", answer(1).uid, ONE // 4, NOW))
        store.add_signal(connection, Signal(REPEATED, "request-1", answer(2).uid, ONE // 4, NOW))
    made = remade(store)
    assert made.outcomes == 1
    sums = made.ledger.sums(DOMAINS, [answer(1).expert])
    assert sums[:, 0, 0].sum() == ONE // 4
    assert sums[:, 0, 1].sum() == 0, "a bad score"
    score(store, "request-1", 1.0)
    alone = remade(store).ledger
    assert alone.sums(DOMAINS, [answer(1).expert])[:, 0, :2].sum() == 2 * ONE
    with store.writing() as connection:
        take_back(connection, Which(id="request-1"))
    assert rows_of(store)["signals"] == []
    assert before["signals"] == []
    assert remade(store).ledger == Ledger()


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (Turns("ann", ["Why?"]), Turns("ann", ["Why?"]), REGENERATED),
        (Turns("ann", ["a", "b"]), Turns("ann", ["a", "B "]), REGENERATED),
        (Turns("ann", ["Why is it so?"]), Turns("ann", ["Why is it so?", "why  is it SO?"]), REPEATED),
        (Turns("ann", ["Why?"]), Turns("ann", ["Why?", "Thanks"]), None),
        (Turns("ann", ["Why?"]), Turns("bob", ["Why?"]), None),
        (Turns("", ["Why?"]), Turns("", ["Why?"]), None),
        (Turns("ann", ["do"]), Turns("ann", ["do"], ["Error: no such file"]), TOOL_FAILED),
        (Turns("ann", ["do"]), Turns("ann", ["do"], ['{"error": "no"}']), TOOL_FAILED),
        (Turns("ann", ["do"]), Turns("ann", ["do"], [[{"type": "tool_result", "is_error": True}]]), TOOL_FAILED),
        (Turns("ann", ["do"]), Turns("ann", ["do"], ["42 errors were mended"]), None),
        (Turns("ann", ["do"], ["error"]), Turns("ann", ["do"], ["error", "fine"]), None),
    ],
)
def test_what_the_next_request_says_of_an_answer(before: Turns, after: Turns, kind: str | None) -> None:
    watcher = Watcher()
    assert watcher.seen(before) is None
    watcher.answered(before, Seen("request", "uid"))
    seen = watcher.seen(after)
    assert (seen and seen[0]) == kind
    assert seen is None or seen[1] == ("request", "uid")


def test_a_watcher_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher(most=2)
    for name in ("a", "b", "c"):
        watcher.answered(Turns("ann", [name]), Seen("request", "uid"))
    assert watcher.seen(Turns("ann", ["a"])) is None
    assert watcher.seen(Turns("ann", ["c"])) is not None
    later = time.monotonic() + 3600
    monkeypatch.setattr("ir3de.traffic.signals.time.monotonic", lambda: later)
    assert watcher.seen(Turns("ann", ["c"])) is None


def test_another_process_remakes_the_same_ledger_and_says_the_same_errors(store: Store) -> None:
    assert remade_apart(store) == remade(store), "of an empty store too"
    keep(store, *(answer(number, expert=f"a/{number % 2}", time=NOW - number * DAY) for number in range(8)))
    for number in range(8):
        score(store, f"request-{number}", number / 8)
    made, same = remade(store), remade_apart(store)
    assert same == made
    assert same.outcomes == 8
    assert same.ledger.sums(DOMAINS, ["a/0", "a/1"]).tobytes() == made.ledger.sums(DOMAINS, ["a/0", "a/1"]).tobytes()
    for number in range(3):
        score(store, f"request-{2 * number}", 1.0, cost=2**30)
        score(store, f"request-{2 * number + 1}", 1.0, cost=2**30)
    keep(store, *(answer(number, time=NOW) for number in range(20, 24)))
    for number in range(20, 24):
        score(store, f"request-{number}", 1.0, cost=2**30)
    for make in (remade, remade_apart):
        with pytest.raises(OverflowError, match="take that day's answers back"):
            make(store)
    store.place += "-that-is-not-there"
    with pytest.raises(WrongStore, match="There is no store at"):
        remade_apart(store)


def test_a_process_that_ends_badly_is_told_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_CODE", "import sys; sys.exit('it broke')")
    with pytest.raises(RuntimeError, match="ended with 1: it broke"):
        remade_apart(store)


# Served twice


def test_a_store_that_is_served_is_told_from_its_copy_and_a_second_server_is_told_of_the_first(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    served: list[Service] = []
    monkeypatch.setattr("ir3de.gateway.server._listen", served.append)
    with sqlite3.connect(store.place) as connection:
        connection.execute("VACUUM INTO ?", [str(tmp_path / "copy.sqlite")])
    one, again, copied = Service("r", store=store.place), Service("r", store=f"sqlite:///{store.place}"), Service("r")
    copied = copied._replace(store=str(tmp_path / "copy.sqlite"))
    run(one)
    run(copied)  # when the first has stopped
    assert served == [one, copied]
    with marked(store):
        with pytest.raises(WrongStore, match=r"copy\.sqlite is served already as .*store\.sqlite: one is a copy"):
            run(copied)
        assert not caplog.records
        run(again)
        assert "Another server keeps its answers in" in caplog.text
    run(copied)
    assert served == [one, copied, again, copied]


def test_a_mark_that_cannot_be_made_keeps_nobody_from_serving(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with marked(store):
        assert store.counts["answers"] == 0
