"""The store in a database of Postgres that several servers share; skipped where there is no Postgres."""

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ir3de.outcomes_ir3de import ONE
from ir3de.traffic.apart import remade_apart
from ir3de.traffic.errors import Conflict, StoreUnavailable, Unknown, WrongStore
from ir3de.traffic.remade import remade, tag_of
from ir3de.traffic.removal import Which, take_back
from ir3de.traffic.store import Answer, Given, Signal, Store
from ir3de.traffic.writer import Writer

NEEDED = shutil.which("initdb"), shutil.which("pg_ctl"), importlib.util.find_spec("psycopg")
pytestmark = pytest.mark.skipif(None in NEEDED, reason="needs Postgres and psycopg")
NOW = 1_772_366_400.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server that runs for these tests."""
    user: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}  # root may not run it
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, "postgres")
        data, log = f"{folder}/data", f"{folder}/log"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": folder, **user}
        try:
            subprocess.run(["initdb", "-D", data, "-U", "tester", "--auth=trust", "--no-sync"], check=True, **quiet)
            options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
            subprocess.run(["pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start"], check=True, **quiet)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"Postgres does not start here: {error}")
        try:
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run(["pg_ctl", "-D", data, "-m", "immediate", "stop"], check=True, **quiet)


def answer(number: int, **fields: Any) -> Answer:
    made = {"request_id": f"request-{number}", "answer_id": None, "time": NOW, "caller": "", "expert": "law"}
    recognised = {"code": ONE // 4, "law": ONE - ONE // 4}
    return Answer(**{**made, "uid": f"{number:032x}", "status": "answered", "recognised": recognised, **fields})


def brought(store: Store, numbers: range) -> None:
    """Answers and scores of one server, as many at once as come."""
    writer = Writer(store)
    waited = []
    for number in numbers:
        writer.keep(answer(number))
        given = Given(f"request-{number}", number % 2, key=f"k{number}")
        waited.append(writer.do(lambda c, g=given: store.score(c, g, NOW)))  # type: ignore[misc]
    for each in waited:
        each.result(60)
    writer.close()


def test_servers_that_begin_at_the_same_time_share_a_store_and_lose_nothing(server: str, tmp_path: Path) -> None:
    stores: list[Store] = []

    def serve(place: int) -> None:
        """One server of several."""
        store = Store(server, replica=f"server {place}")
        stores.append(store)
        brought(store, range(100 * place, 100 * place + 50))

    threads = [threading.Thread(target=serve, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 3
    made = remade(stores[0])
    assert made.outcomes == 150
    assert {tag_of("server 0"), tag_of("server 1"), tag_of("server 2")} <= made.tags
    assert len(made.ledger.contributions["law"]) == 3, "one of each server"

    alone = Store(str(tmp_path / "store.sqlite"), replica="server 1")
    brought(alone, range(100, 150))
    assert remade(stores[0], "server 1").ledger == remade(alone).ledger, "the same from both kinds of store"
    assert remade(alone).ledger.contributions.keys() == remade(stores[0], "server 1").ledger.contributions.keys()

    with stores[0].writing() as connection:
        assert len(take_back(connection, Which(replica="server 1"))) == 50
        stores[0].add_signal(connection, Signal("repeated", "request-1", answer(1).uid, ONE // 2, NOW))
        with pytest.raises(Unknown):
            stores[0].score(connection, Given("request-101", 1.0), NOW)
        with pytest.raises(Conflict):
            stores[0].score(connection, Given("request-1", 0.5, key="k1"), NOW)
    assert remade(stores[0]).outcomes == 100
    for store in (*stores, alone):
        store.close()


def test_the_same_key_at_two_servers_at_once_is_taken_once(server: str) -> None:
    stores = [Store(server, replica=f"twin {place}") for place in range(2)]
    with stores[0].writing() as connection:
        stores[0].add_answers(connection, [answer(900)])
    writers = [Writer(store) for store in stores]
    for turn in range(30):
        given = Given("request-900", turn % 2, key=f"same {turn}")
        both = [writer.do(lambda c, w=writer, g=given: w.store.score(c, g, NOW)) for writer in writers]  # type: ignore[misc]
        assert [each.result(30).uid for each in both] == [answer(900).uid] * 2
    for writer in writers:
        writer.close()
    with stores[0].reading() as connection:
        found = connection.exec_driver_sql("SELECT count(*) FROM ir3de_receipts WHERE key LIKE 'same %%'")
        assert found.scalar() == 30
    for store in stores:
        store.close()


def test_the_mark_of_what_was_taken_back_is_the_latest_and_text_stays_only_with_its_answer(server: str) -> None:
    one, two = (Store(server, replica=f"marked {place}") for place in range(2))
    assert len(one.identity) == 32
    assert one.identity == two.identity, "one store, however many serve it"
    marks = []
    for store, number in ((one, 700), (two, 701)):
        brought(store, range(number, number + 1))
        with store.writing() as connection:
            assert store.has(connection, f"request-{number}", answer(number).uid)
            assert len(take_back(connection, Which(id=f"request-{number}"))) == 1
            assert not store.has(connection, f"request-{number}", answer(number).uid)
        marks.append(one.taken_back)
        assert two.taken_back == marks[-1]
    assert None not in marks
    assert marks[0] != marks[1], "a second time is told from the first"
    one.forgotten(str(marks[0]))
    assert one.taken_back == marks[1], "what was forgotten was the first alone"
    two.forgotten(str(marks[1]))
    assert one.taken_back is None
    for store in (one, two):
        store.close()


def test_another_process_counts_it_and_a_server_gets_another_name(server: str) -> None:
    store = Store(server, replica="before")
    brought(store, range(800, 803))
    assert remade_apart(store) == remade(store)
    with store.writing() as connection:
        assert store.rename(connection, "before", "after") == 3
    assert {"before", "after"} <= set(store.replicas)
    assert remade(store, "before").ledger == remade(store, "nobody").ledger
    assert remade(store, "after").outcomes == 3
    store.close()


def test_one_that_is_away_or_newer_is_refused(server: str) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be opened") as refused:
        Store("postgresql+psycopg://tester:hush@127.0.0.1:1/none")
    assert "hush" not in str(refused.value)
    store = Store(server)
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE ir3de_about SET value = '99' WHERE name = 'version'")
    store.close()
    with pytest.raises(WrongStore, match="'99'"):
        Store(server)
