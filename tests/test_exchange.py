"""Servers that exchange outcomes: they end with one ledger, whatever happens between them."""

import hashlib
import itertools
import json
import logging
import os
import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from ir3de.outcomes_ir3de import COLUMNS, ONE, Contribution, Ledger, sum_up
from ir3de.traffic.errors import ExchangeRefused, MovedOn, OtherStore
from ir3de.traffic.exchange import FOLDER, Exchange, Found
from ir3de.traffic.remade import Remade, remade, tag_of
from ir3de.traffic.removal import Which, take_back
from ir3de.traffic.statements import FORMAT, MANIFEST, Filed, Said, join, packed, unpacked
from ir3de.traffic.store import Answer, Given, Store

from .test_traffic_store import DAY, DOMAINS, NOW, answer

SERVERS, FEEDBACKS = int(os.environ.get("IR3DE_SERVERS", "3")), int(os.environ.get("IR3DE_FEEDBACKS", "400"))
DAYS = 100  # over which answers are spread, so that months become files


class Killed(BaseException):
    """The process is no more."""


class Commits:
    """A repository in memory."""

    def __init__(self) -> None:
        self.history: list[dict[str, bytes]] = [{}]

    @property
    def now(self) -> dict[str, bytes]:
        return self.history[-1]

    def head(self) -> str:
        return str(len(self.history) - 1)

    def files(self, head: str) -> dict[str, Found]:
        return {
            path: Found(len(content), hashlib.sha256(content).hexdigest())
            for path, content in self.history[int(head)].items()
        }

    def fetch(self, head: str, path: str, folder: Path) -> Path:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(self.history[int(head)][path])
        return place

    def commit(self, head: str, files: Mapping[str, bytes | None], message: str) -> None:
        if head != self.head():
            raise MovedOn
        kept = self.now | files
        self.history.append({path: content for path, content in kept.items() if content is not None})


class Line(Commits):
    """A server's line to a repository, on which everything may go wrong."""

    def __init__(self, commits: Commits, draw: random.Random, between: Callable[[], None]) -> None:
        self.commits = commits
        self.draw = draw
        self.between = between  # what others do meanwhile
        self.away = False
        self.bad = True

    @property
    def history(self) -> list[dict[str, bytes]]:  # type: ignore[override]
        return self.commits.history

    def meets(self, part: float) -> bool:
        return self.bad and self.draw.random() < part

    def head(self) -> str:
        if self.away:
            raise ExchangeRefused("nobody answers")
        late = self.draw.randrange(4) if self.meets(0.1) else 0
        return str(max(len(self.history) - 1 - late, 0))

    def fetch(self, head: str, path: str, folder: Path) -> Path:
        if self.meets(0.01):
            raise ExchangeRefused("the line broke")
        return super().fetch(head, path, folder)

    def commit(self, head: str, files: Mapping[str, bytes | None], message: str) -> None:
        if self.meets(0.3):
            self.between()
        if self.meets(0.1):
            raise Killed
        super().commit(head, files, message)
        if self.meets(0.1):
            raise ExchangeRefused("the answer was lost, and it was written all the same")
        if self.meets(0.1):
            raise Killed


class Server:
    """A server: a store that outlives it, and what it knows, which does not."""

    def __init__(self, folder: Path, name: str, line: Line) -> None:
        self.place, self.name, self.line = str(folder / f"{name}.sqlite"), name, line
        self.busy = False
        self.start()

    def start(self) -> None:
        self.store = Store(self.place, self.name)
        self.exchange = Exchange(self.line, pause=0)

    def restart(self) -> None:
        self.store.close()
        self.start()

    def round(self) -> Remade | None:
        if self.busy:  # it is what another one's line calls
            return None
        self.busy = True
        try:
            return self.exchange.round(lambda: remade(self.store))
        except ExchangeRefused:
            return None
        except Killed:
            self.restart()
            return None
        finally:
            self.busy = False


def files_of(ledger: Ledger, folder: Path) -> dict[str, bytes]:
    """A ledger as it lies in a router."""
    folder.mkdir(parents=True)
    ledger.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keep(store: Store, *kept: Answer) -> None:
    with store.writing() as connection:
        store.add_answers(connection, kept)


def score(store: Store, *given: Given) -> None:
    with store.writing() as connection:
        for each in given:
            store.score(connection, each, NOW)


def back(store: Store, which: Which) -> None:
    with store.writing() as connection:
        assert take_back(connection, which)


def test_servers_end_with_one_ledger_whatever_happens_between_them(tmp_path: Path) -> None:
    draw = random.Random(os.environ.get("IR3DE_SEED", "1"))
    commits = Commits()
    servers: list[Server] = []

    def others() -> None:
        draw.choice(servers).round()

    servers += [Server(tmp_path, f"server-{number}", Line(commits, draw, others)) for number in range(SERVERS)]
    kept: dict[int, tuple[Server, Answer]] = {}
    for number in range(FEEDBACKS):
        made = answer(number, time=NOW - draw.randrange(DAYS) * DAY)
        kept[number] = (draw.choice(servers), made)
    for server in servers:
        server.store.days = 2 * DAYS
        keep(server.store, *(made for whose, made in kept.values() if whose is server))
    counted: dict[int, float] = {}
    numbers = list(kept)
    draw.shuffle(numbers)
    for part in _batches(numbers, 5):
        for number in part:
            server, made = kept[number]
            value = draw.choice([0.0, 0.25, 1.0, draw.random()])
            server.store.days = 2 * DAYS
            given = Given(made.request_id, value, key=f"key-{number}")
            score(server.store, *[given] * draw.choice([1, 1, 2]))  # it may be sent twice
            counted[number] = value
        if draw.random() < 0.1:
            gone = draw.choice(list(counted))
            back(kept[gone][0].store, Which(id=kept[gone][1].request_id))
            del counted[gone]
        one = draw.choice(servers)
        if draw.random() < 0.1:
            one.restart()
        if draw.random() < 0.1:
            one.line.away = not one.line.away
        one.round()
    for server in servers:
        server.line.away, server.line.bad = False, False
    for server in draw.sample(servers, len(servers)):
        assert server.round() is not None
    ends = [server.round() for server in servers]
    ledgers = [files_of(end.ledger, tmp_path / f"end-{place}") for place, end in enumerate(ends) if end]
    assert len(ledgers) == SERVERS
    assert all(ledger == ledgers[0] for ledger in ledgers)
    assert {end.outcomes for end in ends if end} == {len(counted)}
    assert ends[0] is not None
    assert np.array_equal(ends[0].ledger.sums(DOMAINS, DOMAINS), _sums_of([kept[n][1] for n in counted], counted))
    assert any(len(path.split("/")[2]) == len("2026-01.safetensors") for path in commits.now), "months are files"
    print(f"{SERVERS} servers, {FEEDBACKS} scores, {len(commits.history)} commits: one ledger")


def _batches(numbers: list[int], size: int) -> Iterator[list[int]]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def _sums_of(answers: list[Answer], scores: Mapping[int, float]) -> Any:
    """The sums of scores, counted by themselves: `(D, E, 9)`."""
    totals = np.zeros((len(DOMAINS), len(DOMAINS), len(COLUMNS)), dtype=np.int64)
    for column, expert in enumerate(DOMAINS):
        for made in answers:
            if made.expert == expert:
                assert made.recognised is not None
                weights = np.array([[made.recognised[domain] for domain in DOMAINS]])
                values = np.array([[scores[int(made.uid, 16)], made.cost, made.seconds, made.tokens]])
                totals[:, column] += sum_up(weights, values, expert)
    return totals


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """The stores of two servers, each with scores of four months."""
    made = (Store(str(tmp_path / "a.sqlite"), "a", 1e4), Store(str(tmp_path / "b.sqlite"), "b", 1e4))
    for place, store in enumerate(made):
        some = [answer(number, time=NOW - 7 * number * DAY) for number in range(16 * place, 16 * place + 16)]
        keep(store, *some)
        score(store, *(Given(each.request_id, 0.5) for each in some))
    yield made
    for store in made:
        store.close()


def rounds(commits: Commits, *stores: Store) -> list[tuple[Exchange, Remade]]:
    """A round of each store's server, and then one more of each, by servers that have just started."""
    made = [(Exchange(commits, pause=0), store) for store in stores]
    for exchange, store in made:
        exchange.round(lambda store=store: remade(store))
    return [(exchange, exchange.round(lambda store=store: remade(store))) for exchange, store in made]


def test_what_was_taken_back_leaves_files_that_never_had_it(stores: tuple[Store, Store], tmp_path: Path) -> None:
    """All but the number in the manifest, which rises."""
    one, _ = stores
    never = Commits()
    rounds(never, one)
    again, more = Commits(), answer(99, time=NOW - DAY)
    keep(one, more)
    score(one, Given(more.request_id, 1.0))
    rounds(again, one)
    published = dict(again.now)
    assert published.keys() != never.now.keys() or published != never.now
    back(one, Which(id=more.request_id))
    rounds(again, one)
    assert again.now.keys() == never.now.keys()
    manifests = [json.loads(commits.now[f"{FOLDER}/{tag_of('a')}/{MANIFEST}"]) for commits in (never, again)]
    assert manifests[0].pop("sequence") <= manifests[1].pop("sequence")
    assert manifests[0] == manifests[1]
    for path in never.now:
        assert path.endswith(MANIFEST) or again.now[path] == never.now[path]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_left_is_published_as_if_the_rest_had_never_been(seed: int, tmp_path: Path) -> None:
    """In any order, with rounds in between: the same names, the same hashes."""
    draw = random.Random(seed)
    numbers = draw.sample(range(1000), 30)
    stays = set(draw.sample(numbers, draw.randrange(len(numbers))))
    times = {number: NOW - draw.randrange(DAYS) * DAY for number in numbers}
    full, bare = (Store(str(tmp_path / name), "a", 1e4) for name in ("full", "bare"))
    published, never = Commits(), Commits()
    for number in numbers:
        keep(full, answer(number, time=times[number]))
        score(full, Given(f"request-{number}", number / 1000))
        if draw.random() < 0.1:
            rounds(published, full)
    rounds(published, full)
    for number in draw.sample(sorted(set(numbers) - stays), len(numbers) - len(stays)):
        back(full, Which(id=f"request-{number}"))
        if draw.random() < 0.1:
            rounds(published, full)
    for number in sorted(stays):
        keep(bare, answer(number, time=times[number]))
        score(bare, Given(f"request-{number}", number / 1000))
    for commits, store in ((published, full), (never, bare)):
        rounds(commits, store)
        store.close()
    kept = [
        {path: c for path, c in commits.now.items() if not path.endswith(MANIFEST)} for commits in (published, never)
    ]
    assert kept[0] == kept[1]
    listed = json.loads(published.now[f"{FOLDER}/{tag_of('a')}/{MANIFEST}"])["files"]
    assert listed == {path.split("/")[2]: hashlib.sha256(content).hexdigest() for path, content in kept[1].items()}


def test_a_server_with_nothing_left_says_so(stores: tuple[Store, Store]) -> None:
    commits = Commits()
    rounds(commits, *stores)
    back(stores[0], Which(since=0))
    (_, own), (other, both) = rounds(commits, *stores)
    assert own.ledger == both.ledger == remade(stores[1]).ledger
    assert [path for path in commits.now if tag_of("a") in path] == [f"{FOLDER}/{tag_of('a')}/{MANIFEST}"]
    assert other.known[tag_of("a")].files == {}


def test_nothing_is_written_where_nothing_changed(stores: tuple[Store, Store]) -> None:
    commits = Commits()
    rounds(commits, *stores)
    before = len(commits.history)
    rounds(commits, *stores)
    assert len(commits.history) == before


def test_a_score_changes_one_file_and_the_manifest(stores: tuple[Store, Store]) -> None:
    commits = Commits()
    rounds(commits, *stores)
    score(stores[0], Given("request-1", 0.9))
    rounds(commits, *stores)
    old, new = commits.history[-2:]
    changed = sorted(path.split("/")[2] for path in new if new[path] != old.get(path))
    assert changed == ["2026-02-22.safetensors", MANIFEST]


def test_days_become_months_and_nothing_counts_twice(stores: tuple[Store, Store]) -> None:
    """One who still knows the files of days drops them, as the manifest lists them no more."""
    commits = Commits()
    ((reader, before),) = rounds(commits, stores[1])
    (_, _), (_, _) = rounds(commits, *stores)
    reader.round(lambda: remade(stores[1]))
    days = sorted(reader.known[tag_of("a")].files)
    late = answer(500, time=NOW + 40 * DAY)
    keep(stores[0], late)
    score(stores[0], Given(late.request_id, 1.0))
    rounds(commits, stores[0])
    after = reader.round(lambda: remade(stores[1]))
    files = sorted(reader.known[tag_of("a")].files)
    assert "2026-02-22.safetensors" in days
    assert "2026-02-22.safetensors" not in files
    assert "2026-02.safetensors" in files
    assert after.outcomes == before.outcomes + 17
    assert after.ledger == before.ledger | remade(stores[0]).ledger
    assert {path.split("/")[2] for path in commits.now if tag_of("a") in path} == {*files, MANIFEST}


def test_days_live_on_in_the_files_of_months(stores: tuple[Store, Store], tmp_path: Path) -> None:
    ledger = remade(stores[0]).ledger
    united = Ledger()
    for name, content in packed(ledger).items():
        (tmp_path / name).write_bytes(content)
        united = united | unpacked(tmp_path / name, tag_of("a"), name)
    assert files_of(united, tmp_path / "one") == files_of(ledger, tmp_path / "two")
    assert list(united.by_day()) == list(ledger.by_day())


def test_two_stores_of_one_name_do_not_overwrite_each_other(stores: tuple[Store, Store], tmp_path: Path) -> None:
    """Who comes second is refused before anything is written, until it has another name or takes the other's place."""
    commits, place = Commits(), str(tmp_path / "second.sqlite")
    ((_, there),) = rounds(commits, stores[0])
    before = commits.now
    second, exchange = Store(place, "a", 1e4), Exchange(commits, pause=0)
    for number in (98, 99):
        with pytest.raises(OtherStore, match=r"says under the same name of a server.*--rename OLD=NEW.*--take-over"):
            exchange.round(lambda: remade(second))
        keep(second, answer(number))
        score(second, Given(f"request-{number}", 0.0))
    assert commits.now is before, "nothing was written"
    with second.writing() as connection:
        assert second.rename(connection, "a", "c") == 2
    second.close()
    second = Store(place, "c", 1e4)
    both = exchange.round(lambda: remade(second))
    assert commits.now.items() > before.items(), "the first one's files are as they were"
    assert both.outcomes == there.outcomes + 2, "and are read, though only looked at before"
    ((_, of_one),) = rounds(commits, stores[0])
    assert of_one.ledger == both.ledger

    third = Store(str(tmp_path / "third.sqlite"), "a", 1e4)
    keep(third, answer(3))
    score(third, Given("request-3", 0.5))
    made = Exchange(commits, pause=0).round(lambda: remade(third), replaced=frozenset([tag_of("a")]))
    assert made.outcomes == 3
    with pytest.raises(OtherStore):
        rounds(commits, stores[0])
    for store in (second, third):
        store.close()


def test_files_that_do_not_say_whose_store_they_are_of_are_read_and_named(stores: tuple[Store, Store]) -> None:
    """As those that an older version published."""
    commits = Commits()
    one, two = stores
    rounds(commits, one)
    path = f"{FOLDER}/{tag_of('a')}/{MANIFEST}"
    manifest = json.loads(commits.now[path])
    assert manifest.pop("store") == one.identity != two.identity
    commits.history.append(commits.now | {path: json.dumps(manifest).encode()})
    assert rounds(commits, two)[0][1].outcomes == 32
    rounds(commits, one)
    assert json.loads(commits.now[path])["store"] == one.identity


def test_a_store_without_an_identity_gets_one_that_it_keeps(tmp_path: Path) -> None:
    place = tmp_path / "old.sqlite"
    Store(str(place)).close()
    with closing(sqlite3.connect(place)) as connection, connection:
        connection.execute("DELETE FROM ir3de_about WHERE name = 'identity'")
    stores = [Store(str(place), make=False), Store(str(place))]
    assert len(stores[0].identity) == 32
    assert stores[0].identity == stores[1].identity
    for store in stores:
        store.close()


def test_joining_knows_no_order() -> None:
    draw = random.Random(2)
    states = [
        {tag: Said(draw.randrange(3), {"2026-01.safetensors": Filed(draw.choice("ab"), Ledger())}) for tag in "xyz"}
        for _ in range(4)
    ]
    results = set()
    for order in itertools.permutations(states):
        known: dict[str, Said] = {}
        for state in (*order, draw.choice(order)):
            known = join(known, state)
        results.add(str(sorted((tag, said.rank) for tag, said in known.items())))
    assert len(results) == 1


def test_the_number_rises_also_where_the_clock_stands_still(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ir3de.traffic.statements.time.time", lambda: 5.0)
    commits, seen = Commits(), []
    for value in (0.1, 0.2, 0.3):
        score(stores[0], Given("request-1", value))
        rounds(commits, stores[0])
        seen.append(json.loads(commits.now[f"{FOLDER}/{tag_of('a')}/{MANIFEST}"])["sequence"])
    assert seen == [5, 6, 7]


A = f"{FOLDER}/{tag_of('a')}/"
DAY_FILE = "2026-02-22.safetensors"


def _manifest(files: Mapping[str, bytes], **changed: Any) -> bytes:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return json.dumps({"format": FORMAT, "sequence": 1 << 40, "files": digests, **changed}).encode()


def _tensors(folder: Path, content: bytes) -> dict[str, Any]:
    (folder / "file").write_bytes(content)
    return load_file(folder / "file")


def _forged(folder: Path, content: bytes, **changed: Any) -> bytes:
    """A day's file with another header, or other sums."""
    tensors = _tensors(folder, content)
    header = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["ir3de"])
    if change := changed.pop("sums", None):
        tensors = {key: np.ascontiguousarray(change(value)) for key, value in tensors.items()}
    return save(tensors, metadata={"ir3de": json.dumps({**header, **changed})})


HOSTILE: dict[str, tuple[Callable[[Path, bytes], dict[str, bytes]], str]] = {
    "a newer version": (lambda _, day: {MANIFEST: _manifest({}, format="ir3de-exchange-2")}, "ir3de-exchange-2"),
    "no JSON": (lambda _, day: {MANIFEST: b"{" * 2000}, "no JSON"),
    "no manifest": (lambda _, day: {DAY_FILE: day}, "no folder of a server"),
    "a number below zero": (lambda _, day: {MANIFEST: _manifest({}, sequence=-1)}, "as its sequence"),
    "a number of words": (lambda _, day: {MANIFEST: _manifest({}, sequence=True)}, "as its sequence"),
    "a path that leads away": (lambda _, day: {MANIFEST: _manifest({"../../config.json": day})}, "no file of a day"),
    "another file": (lambda _, day: {MANIFEST: _manifest({DAY_FILE: b"else"}), DAY_FILE: day}, "not the file"),
    "a file that is missing": (lambda _, day: {MANIFEST: _manifest({"2026-02-20.safetensors": day[:9]})}, "missing"),
    "no tensors": (lambda _, day: _said(DAY_FILE, b"\0" * 40), "not an outcomes file"),
    "a file of a newer version": (lambda at, day: _said(DAY_FILE, _forged(at, day, format="x-2")), "x-2"),
    "a header of other experts": (lambda at, day: _said(DAY_FILE, _forged(at, day, experts={})), "experts"),
    "another day": (lambda _, day: _said("2026-02-21.safetensors", day), "belongs elsewhere"),
    "sums below zero": (lambda at, day: _said(DAY_FILE, _forged(at, day, sums=lambda each: -each)), "not such of"),
    "sums of another form": (lambda at, day: _said(DAY_FILE, _forged(at, day, sums=lambda each: each * 0.5)), "F64"),
}


def _said(name: str, content: bytes) -> dict[str, bytes]:
    return {MANIFEST: _manifest({name: content}), name: content}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_server_that_says_nonsense_is_set_aside_and_the_others_count(
    kind: str, stores: tuple[Store, Store], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commits = Commits()
    ((_, both),) = rounds(commits, *stores)[1:]
    reader = Exchange(commits, pause=0)
    reader.round(lambda: remade(stores[1]))
    make, said = HOSTILE[kind]
    made = make(tmp_path, commits.now[A + DAY_FILE])
    honest = {path: content for path, content in commits.now.items() if not path.startswith(A)}
    commits.history.append(honest | {A + name: content for name, content in made.items()})
    with caplog.at_level(logging.ERROR):
        new = Exchange(commits, pause=0)
        alone = new.round(lambda: remade(stores[1]))
        again = reader.round(lambda: remade(stores[1]))
        reader.round(lambda: remade(stores[1]))
    assert alone.ledger == remade(stores[1]).ledger, "who has never read it goes without"
    assert again.ledger == both.ledger, "who knew it before keeps that"
    assert said in new.aside[tag_of("a")]
    assert len(caplog.records) == 2, "each says it once"
    (_, mended), (_, read) = rounds(commits, *stores)
    assert mended.ledger == read.ledger == both.ledger, "the server itself mends what it says"
    assert reader.round(lambda: remade(stores[1])).ledger == both.ledger
    assert not reader.aside


def test_a_name_of_another_server_counts_for_nobody(stores: tuple[Store, Store]) -> None:
    commits = Commits()
    rounds(commits, stores[0])
    stranger = f"{FOLDER}/{'0' * 12}/"
    commits.history.append({path.replace(A, stranger): content for path, content in commits.now.items()})
    reader = Exchange(commits, pause=0)
    assert reader.round(lambda: remade(stores[1])).ledger == remade(stores[1]).ledger
    assert "belongs elsewhere" in reader.aside["0" * 12]


def test_a_server_that_is_far_too_large_is_not_fetched(stores: tuple[Store, Store]) -> None:
    commits = Commits()
    rounds(commits, stores[0])
    reader = Exchange(_Large(commits.history), pause=0)
    assert reader.round(lambda: remade(stores[1])).ledger == remade(stores[1]).ledger
    assert "expected at most" in reader.aside[tag_of("a")]


class _Large(Commits):
    """A repository whose files are large."""

    def __init__(self, history: list[dict[str, bytes]]) -> None:
        self.history = history

    def files(self, head: str) -> dict[str, Found]:
        return {
            path: found if path.endswith(MANIFEST) else Found(1 << 29, found.id)
            for path, found in super().files(head).items()
        }

    def fetch(self, head: str, path: str, folder: Path) -> Path:
        assert path.endswith(MANIFEST)
        return super().fetch(head, path, folder)


def test_a_folder_that_is_removed_says_nothing_and_leaves_the_routers(stores: tuple[Store, Store]) -> None:
    commits = Commits()
    _, (reader, both) = rounds(commits, *stores)
    commits.history.append({path: content for path, content in commits.now.items() if not path.startswith(A)})
    after = reader.round(lambda: remade(stores[1]))
    assert after.ledger == remade(stores[1]).ledger
    leaves, joins = after.changes(both.ledger, DOMAINS)
    assert leaves == remade(stores[0]).ledger
    assert not joins


def test_it_gives_up_where_others_always_come_first(stores: tuple[Store, Store]) -> None:
    class Busy(Commits):
        def commit(self, head: str, files: Mapping[str, bytes | None], message: str) -> None:
            raise MovedOn

    with pytest.raises(ExchangeRefused, match="30 attempts"):
        Exchange(Busy(), pause=0).round(lambda: remade(stores[0]))


def test_what_leaves_a_router_is_of_servers_alone() -> None:
    """Outcomes that a router has from files stay, whatever servers say."""
    row = np.zeros((1, len(COLUMNS)), dtype=np.int64)
    row[0, 0] = ONE
    part = Contribution(("law",), row, "2026-01-01")
    tag = tag_of("a")
    here = Ledger({"law": {"f" * 32: part, tag + "1" * 20: part}})
    leaves, _ = Remade(Ledger(), frozenset({tag}), 0).changes(here, ["law"])
    assert leaves.contributions["law"].keys() == {tag + "1" * 20}
