"""Servers that exchange outcomes through a repository of the Hub, while they serve and by hand."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError

from ir3de import IR3DEModel
from ir3de.gateway.feedback import Keeping
from ir3de.gateway.learning import Learning
from ir3de.gateway.server import Service, make_application
from ir3de.gateway.serving import served
from ir3de.outcomes_ir3de import Ledger
from ir3de.scripts import cli
from ir3de.scripts.bench.stand_in import StandIn
from ir3de.scripts.serve import _seconds
from ir3de.traffic.errors import ExchangeRefused, MovedOn
from ir3de.traffic.exchange import FOLDER, Exchange
from ir3de.traffic.remade import remade, tag_of
from ir3de.traffic.repository import BRANCH, Repository
from ir3de.traffic.statements import MANIFEST
from ir3de.traffic.store import Given, Store

from . import tiny
from .gateway_world import World, world
from .hub_server import READ_TOKEN, Hub, running
from .test_exchange import files_of, keep
from .test_traffic_store import answer


@contextmanager
def teaching(folder: Path, name: str, repo_id: str) -> Iterator[tuple[World, Learning]]:
    """A gateway with a store that exchanges outcomes when it is told to."""
    store = Store(str(folder / f"{name}.sqlite"), name)
    with world(keeping=Keeping(store)) as made:
        try:
            yield made, Learning(made.gateway, Repository(repo_id), 60, remade)
        finally:
            assert made.gateway.traffic is not None
            made.gateway.traffic.close()


def judged(made: World, value: float, number: int = 1) -> list[str]:
    """Asks about law, and says how good that was; ids of the answers."""
    ids = [made.ask().headers["x-request-id"] for _ in range(number)]
    for id_ in ids:
        assert made.send("POST", "/v1/feedback", {"id": id_, "score": value}).status == 200
    return ids


def ledger_of(made: World) -> Ledger:
    ledger: Ledger = made.gateway.serving.router.model.outcomes
    return ledger


def score(store: Store, id_: str, value: float) -> None:
    with store.writing() as connection:
        store.score(connection, Given(id_, value), time.time())


def test_two_gateways_learn_from_each_other(repo: str, hub: Hub, tmp_path: Path) -> None:
    main = hub.files(repo)
    with teaching(tmp_path, "one", repo) as (one, first), teaching(tmp_path, "two", repo) as (two, second):
        before = one.gateway.serving
        judged(one, 0.0, 3)
        judged(two, 1.0, 2)
        for learning in (first, second, first):
            asyncio.run(learning.round())
        assert one.gateway.serving is not before
        assert one.gateway.serving.experts is before.experts
        assert not before.router.model.outcomes, "requests that have begun keep their router"
        assert files_of(ledger_of(one), tmp_path / "a") == files_of(ledger_of(two), tmp_path / "b")
        sums = ledger_of(two).sums(tiny.DOMAINS, ["law"])
        assert round(sums[:, 0, 0].sum() / (1 << 20)) == 5
        record = json.loads(one.ask(**{"ir3de": {"explain": True}}).body)["ir3de"]
        assert any(pair["outcomes"] > 0 for pair in record["pairs"]), "the next request is routed by it"
        serving = one.gateway.serving
        asyncio.run(first.round())
        assert one.gateway.serving is serving, "nothing new, nothing changes"
        assert 'ir3de_exchange_rounds_total{outcome="ok"} 3.0' in one.send("GET", "/metrics").body.decode()
        assert "ir3de_exchange_servers 2.0" in one.send("GET", "/metrics").body.decode()
    assert hub.files(repo) == main, "the router's own branch is as before"


def test_what_was_taken_back_is_forgotten_after_a_restart_too(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: Repository) -> None:
        raise ExchangeRefused("not now")

    with teaching(tmp_path, "one", repo) as (one, learning):
        (id_,) = judged(one, 0.0)
        asyncio.run(learning.round())
        with_it = Repository(repo).head()
        assert one.send("DELETE", f"/v1/feedback/{id_}").status == 200
        with monkeypatch.context() as patch:
            patch.setattr(Repository, "forget", refuses)
            asyncio.run(learning.round())
        assert HfApi().model_info(repo, revision=with_it), "it could not be forgotten yet"
    with teaching(tmp_path, "one", repo) as (one, learning):
        asyncio.run(learning.round())
        with pytest.raises(RevisionNotFoundError):
            HfApi().model_info(repo, revision=with_it)
        assert one.gateway.traffic is not None
        assert one.gateway.traffic.store.taken_back is None


def test_what_a_command_took_back_beside_a_server_is_forgotten_by_its_next_round(
    repo: str, hub: Hub, tmp_path: Path
) -> None:
    """The command knows nothing of the exchange; the store tells the server."""
    folder = str(tmp_path / "router")
    tiny.router().save_pretrained(folder)
    with teaching(tmp_path, "one", repo) as (one, learning):
        judged(one, 0.5)
        asyncio.run(learning.round())
        never = {path: c for path, c in hub.files(repo, revision=BRANCH).items() if not path.endswith(MANIFEST)}
        (id_,) = judged(one, 0.0)
        asyncio.run(learning.round())
        with_it = Repository(repo).head()
        command = ["outcomes", folder, "--from-store", str(tmp_path / "one.sqlite"), "--take-back", f"id={id_}"]
        assert cli.main(command) == 0
        assert HfApi().model_info(repo, revision=with_it), "the command did not reach the exchange"
        asyncio.run(learning.round())
        now = {path: c for path, c in hub.files(repo, revision=BRANCH).items() if not path.endswith(MANIFEST)}
        assert now == never
        with pytest.raises(RevisionNotFoundError):
            HfApi().model_info(repo, revision=with_it)
        assert round(ledger_of(one).sums(tiny.DOMAINS, ["law"])[:, 0, 0].sum() / (1 << 20)) == 1


def test_a_store_that_cannot_be_counted_is_told_of_once_and_what_was_learned_stays(
    repo: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with teaching(tmp_path, "one", repo) as (one, learning):
        judged(one, 0.0)
        asyncio.run(learning.round())
        known = ledger_of(one)
        for id_ in judged(one, 0.0, 3):
            assert one.send("POST", "/v1/feedback", {"id": id_, "score": 0, "cost": 2**30}).status == 200
        for _ in range(2):
            asyncio.run(learning.round())
        assert [record for record in caplog.messages if "cannot be counted" in record and "'law'" in record]
        assert sum("cannot be counted" in message for message in caplog.messages) == 1
        assert ledger_of(one) == known
        assert one.ask().status == 200


def test_what_is_taken_back_leaves_the_files_the_routers_and_the_history(
    repo: str,
    hub: Hub,
    tmp_path: Path,
) -> None:
    with teaching(tmp_path, "one", repo) as (one, first), teaching(tmp_path, "two", repo) as (two, second):
        judged(one, 0.5)
        for learning in (first, second):
            asyncio.run(learning.round())
        then, ledger = hub.files(repo, revision=BRANCH), files_of(ledger_of(two), tmp_path / "then")
        (id_,) = judged(one, 0.0)
        for learning in (first, second):
            asyncio.run(learning.round())
        assert hub.files(repo, revision=BRANCH) != then
        with_it = Repository(repo).head()
        assert one.send("DELETE", f"/v1/feedback/{id_}").status == 200
        for learning in (first, second):
            asyncio.run(learning.round())
        now = hub.files(repo, revision=BRANCH)
        assert now.keys() == then.keys()
        assert [path for path in now if now[path] != then[path]] == [f"{FOLDER}/{tag_of('one')}/{MANIFEST}"]
        assert files_of(ledger_of(two), tmp_path / "now") == ledger == files_of(ledger_of(one), tmp_path / "one")
        assert len(HfApi().list_repo_commits(repo, revision=BRANCH)) == 1
        with pytest.raises(RevisionNotFoundError):
            HfApi().model_info(repo, revision=with_it)


def test_a_gateway_under_a_name_that_is_taken_says_so_and_learns_from_its_own_store(
    repo: str, hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    with teaching(tmp_path / "a", "one", repo) as (first, learning):
        judged(first, 1.0, 2)
        asyncio.run(learning.round())
    published = hub.files(repo, revision=BRANCH)
    with teaching(tmp_path / "b", "one", repo) as (second, learning):
        judged(second, 0.0)
        for _ in range(2):
            asyncio.run(learning.round())
        assert sum("what another store says under the same name" in line for line in caplog.messages) == 1
        assert 'rounds_total{outcome="refused"} 2.0' in second.send("GET", "/metrics").body.decode()
        assert round(ledger_of(second).sums(tiny.DOMAINS, ["law"])[:, 0, 0].sum() / (1 << 20)) == 1
        assert second.ask().status == 200
    assert hub.files(repo, revision=BRANCH) == published


def test_where_the_repository_refuses_all_else_goes_on(
    repo: str,
    hub: Hub,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with teaching(tmp_path, "two", repo) as (two, second):
        judged(two, 1.0)
        asyncio.run(second.round())
    with teaching(tmp_path, "one", repo) as (one, first), caplog.at_level(logging.WARNING, "ir3de.gateway.learning"):
        judged(one, 0.5)
        monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
        for _ in range(3):
            asyncio.run(first.round())
        assert one.ask().status == 200
        (line,) = (record.getMessage() for record in caplog.records if record.name == "ir3de.gateway.learning")
        assert f"{repo} cannot be used: 403" in line
        assert READ_TOKEN not in line
        assert 'rounds_total{outcome="refused"} 3.0' in one.send("GET", "/metrics").body.decode()
        assert round(ledger_of(one).sums(tiny.DOMAINS, ["law"])[:, 0, 0].sum() / (1 << 20)) == 2, "it reads and learns"
        monkeypatch.undo()


def test_a_repository_that_is_not_there_is_refused_in_words(hub: Hub, tmp_path: Path) -> None:
    for repo_id, said in (("user/nowhere", "404, there is no such repository"), ("a/b/c", "HFValidationError")):
        with pytest.raises(ExchangeRefused, match=said):
            Repository(repo_id).head()
    with pytest.raises(ExchangeRefused, match="user/x cannot be used: ConnectError"):
        Repository("user/x", endpoint="http://127.0.0.1:9").head()


def test_a_router_that_takes_over_has_what_was_exchanged(repo: str, hub: Hub, tmp_path: Path) -> None:
    with teaching(tmp_path, "one", repo) as (one, first):
        fresh = one.gateway.serving.router.copy()
        assert first.taught(fresh) is fresh
        judged(one, 0.5)
        asyncio.run(first.round())
        assert first.taught(fresh).model.outcomes == ledger_of(one)
        one.gateway.serving = served(fresh, "next")
        asyncio.run(first.round())
        assert one.gateway.serving.revision == "next"
        assert ledger_of(one)


def test_a_server_exchanges_as_it_starts_and_routers_that_take_over_know_it(
    repo: str, hub: Hub, tmp_path: Path
) -> None:
    two = Store(str(tmp_path / "two.sqlite"), "two")
    keep(two, answer(1, time=time.time(), expert="law"))
    score(two, "request-1", 1.0)
    Exchange(Repository(repo)).round(lambda: remade(two))
    two.close()
    folder, store = tmp_path / "router", str(tmp_path / "one.sqlite")
    with StandIn() as server, socket.create_server(("127.0.0.1", 0)) as listener:
        specs = {name: {"endpoint": server.url, "model": name} for name in tiny.DOMAINS}
        tiny.router(specs).save_pretrained(folder)
        service = Service(str(folder), store=store, exchange=repo, every=3600, watch=0.2, log=False)
        with running(make_application(service), listener, lifespan="on"):
            made = World(None, listener.getsockname()[1], {})  # type: ignore[arg-type]

            def learned() -> bool:
                details = made.ask(ir3de={"explain": True}).json["ir3de"]
                return any(pair["outcomes"] > 0 for pair in details.get("pairs", ()))

            made.wait(learned, "the first round is taken at once")
            tiny.router({**specs, "code": {**specs["code"], "cost": 2.0}}).save_pretrained(folder)
            made.wait(
                lambda: 'swaps_total{outcome="taken"} 1.0' in made.send("GET", "/metrics").body.decode(), "a swap"
            )
            assert learned(), "the router that took over has what was exchanged"


def test_what_cannot_be_added_up_leaves_the_router_as_it_is(
    repo: str,
    hub: Hub,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with teaching(tmp_path, "one", repo) as (one, first):
        judged(one, 0.5)
        before = one.gateway.serving

        def refuse(*_: Any) -> None:
            raise OverflowError("too much")

        with monkeypatch.context() as patch:
            patch.setattr(IR3DEModel, "replace_outcomes", refuse)
            asyncio.run(first.round())
        assert one.gateway.serving is before
        assert "stays as it is: too much" in caplog.text
        asyncio.run(first.round())
        assert one.gateway.serving is not before


def test_the_command_takes_a_round(
    repo: str,
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By hand, with answers of a domain that the router lacks, of an expert that it lacks, and of days to come."""
    tiny.router().save_pretrained(tmp_path / "router")
    command = ["outcomes", str(tmp_path / "router"), "--exchange", repo, "--from-store"]
    for number, name in enumerate(("one", "two"), start=1):
        store = Store(str(tmp_path / name), name)
        keep(store, answer(number, time=time.time()), answer(number + 2, time=time.time(), expert="somebody"))
        keep(store, answer(number + 4, time=time.time() + 40 * 86_400))
        for each in (number, number + 2, number + 4):
            score(store, f"request-{each}", 1.0)
        store.close()
    assert cli.main([*command, str(tmp_path / "one"), "--dry-run"]) == 0
    assert [ref.name for ref in HfApi().list_repo_refs(repo).branches] == ["main"], "a dry run writes nothing"
    assert cli.main([*command, str(tmp_path / "one")]) == 0
    assert "3 outcomes: 1 contribution joined, 0 left." in capsys.readouterr().out
    assert cli.main([*command, str(tmp_path / "two")]) == 0
    shown = capsys.readouterr().out
    assert "6 outcomes: 1 contribution joined, 0 left." in shown
    assert "experts that this router lacks do not count: somebody" in shown
    assert "days to come stay behind" in shown
    assert cli.main([*command, str(tmp_path / "two"), "--take-back", "since=2020-01-01"]) == 0
    assert "0 contributions joined, 1 left." in capsys.readouterr().out
    store = Store(str(tmp_path / "one"), "one")
    left = remade(store).ledger
    store.close()
    model = IR3DEModel.from_pretrained(tmp_path / "router")
    (expert,) = model.outcomes.contributions
    assert model.outcomes.digest[expert] in {f"{int(name, 16):032x}" for name in left.contributions[expert]}
    assert len(HfApi().list_repo_commits(repo, revision=BRANCH)) == 1, "history forgets it too"
    assert cli.main([*command, str(tmp_path / "two"), "--take-back", "replica=one"]) == 0
    assert "0 contributions joined, 1 left." in capsys.readouterr().out, "of a server that is lost, by its name"
    assert not IR3DEModel.from_pretrained(tmp_path / "router").outcomes
    assert cli.main([*command[:-2], "x/y", "--from-store", str(tmp_path / "one")]) != 0
    assert "x/y cannot be used: 404" in capsys.readouterr().err


def test_a_store_takes_the_place_of_one_that_is_lost_or_another_name(
    repo: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.router().save_pretrained(tmp_path / "router")
    for number, file in enumerate(("lost", "new", "third"), start=1):
        store = Store(str(tmp_path / file), "one")
        keep(store, answer(number, time=time.time()))
        score(store, f"request-{number}", 1.0)
        store.close()
    command = ["outcomes", str(tmp_path / "router"), "--exchange", repo, "--from-store"]
    assert cli.main([*command, str(tmp_path / "lost")]) == 0
    published = hub.files(repo, revision=BRANCH)
    assert cli.main([*command, str(tmp_path / "new")]) != 0
    assert f"{FOLDER}/{tag_of('one')} there holds what another store says" in capsys.readouterr().err
    assert hub.files(repo, revision=BRANCH) == published
    assert cli.main([*command, str(tmp_path / "new"), "--take-over"]) == 0
    assert hub.files(repo, revision=BRANCH) != published
    assert cli.main([*command, str(tmp_path / "lost")]) != 0
    assert cli.main([*command, str(tmp_path / "third"), "--rename", "one=two"]) == 0
    assert "2 outcomes: 1 contribution joined, 0 left." in capsys.readouterr().out
    folders = {path.split("/")[1] for path in hub.files(repo, revision=BRANCH) if path.startswith(FOLDER)}
    assert folders == {tag_of("one"), tag_of("two")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--take-over"], "--take-over goes with --exchange"),
        (["--rename", "one"], "OLD=NEW, got 'one'"),
        (["--rename", "one=two", "--dry-run"], "leave --dry-run away"),
        (["--rename", "nobody=two"], "no answers of a server 'nobody'"),
        (["--rename", f"one={'x' * 65}"], "1 to 64 characters, got 65"),
    ],
)
def test_a_name_or_place_that_cannot_be_taken_is_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.router().save_pretrained(tmp_path / "router")
    store = Store(str(tmp_path / "store"), "one")
    keep(store, answer(1))
    before = store.replicas
    assert cli.main(["outcomes", str(tmp_path / "router"), "--from-store", str(tmp_path / "store"), *options]) != 0
    assert said in capsys.readouterr().err
    assert store.replicas == before
    store.close()


def test_who_comes_second_is_told(repo: str, hub: Hub) -> None:
    one = Repository(repo)
    with pytest.raises(MovedOn):
        one.commit("", {}, "makes the branch")
    head = one.head()
    one.commit(head, {f"{FOLDER}/x/{MANIFEST}": b"{}"}, "first")
    with pytest.raises(MovedOn):
        one.commit(head, {f"{FOLDER}/y/{MANIFEST}": b"{}"}, "second")
    assert list(one.files(one.head())) == [f"{FOLDER}/x/{MANIFEST}"]


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert _seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "m", "-5m", "1d", "0.5s", "nan", "inf"])
def test_times_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="15m or 1h"):
        _seconds(text)


def test_an_exchange_needs_a_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`--exchange` need a `--store`"):
        Service("router", exchange="org/router").keeping()
    tiny.router().save_pretrained(tmp_path / "router")
    assert cli.main(["outcomes", str(tmp_path / "router"), "--exchange", "org/router"]) != 0
    assert "--exchange and --dry-run go with --from-store" in capsys.readouterr().err
