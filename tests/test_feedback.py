"""Feedback: scores that come to the gateway, to the pipeline, and what is kept of the answers that they are of."""

import hashlib
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from ir3de import IR3DERoutingPipeline
from ir3de.gateway.feedback import Keeping
from ir3de.gateway.keys import Key
from ir3de.gateway.server import Service
from ir3de.outcomes_ir3de import ONE, shared
from ir3de.scripts.bench.stand_in import Received, StandIn
from ir3de.traffic.remade import remade
from ir3de.traffic.removal import Which, take_back
from ir3de.traffic.store import Store
from ir3de.traffic.texts import Texts

from . import tiny
from .gateway_world import CODE, HASTY, LAW, Answered, World, command, post, world


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


KEYS = (Key("ann", hashed("of-ann")), Key("bob", hashed("of-bob")), Key("root", hashed("of-root"), admin=True))
ANN, BOB, ROOT = ({"authorization": f"Bearer of-{name}"} for name in ("ann", "bob", "root"))


@contextmanager
def kept(folder: Path, texts: bool = False, implicit: float = 0.0, **options: Any) -> Iterator[tuple[World, Store]]:
    """A gateway with a store."""
    store = Store(str(folder / "store.sqlite"))
    keeping = Keeping(store, Texts(folder / "texts.jsonl") if texts else None, implicit)
    with world(keeping=keeping, **options) as made:
        try:
            yield made, store
        finally:
            assert made.gateway.traffic is not None
            made.gateway.traffic.close()


@pytest.fixture
def open_world(tmp_path: Path) -> Iterator[tuple[World, Store]]:
    """A gateway for everybody, with a store."""
    with kept(tmp_path) as made:
        yield made


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[tuple[World, Store]]:
    """A gateway that asks for keys, with a store, which keeps text too."""
    with kept(tmp_path, texts=True, settings=HASTY._replace(keys=KEYS)) as made:
        yield made


def give(made: World, headers: dict[str, str] | None = None, **fields: Any) -> Answered:
    """Gives a score."""
    return made.send("POST", "/v1/feedback", fields, **(headers or {}))


def rows(store: Store, table: str = "answers") -> list[dict[str, Any]]:
    with store.reading() as connection:
        return [dict(row) for row in connection.exec_driver_sql(f"SELECT * FROM ir3de_{table}").mappings()]


def test_an_answer_is_scored_by_each_of_its_ids(open_world: tuple[World, Store]) -> None:
    made, store = open_world
    answered = made.ask()
    scored = give(made, id=answered.headers["x-request-id"], score="good")
    assert scored.json == {"object": "feedback", "id": answered.headers["x-request-id"], "expert": "law", "score": 1.0}
    assert give(made, id=answered.json["id"], score=0.25, cost=0.5, seconds=2).status == 200
    (answer,), (given,) = rows(store), rows(store, "feedback")
    router = made.gateway.serving.router
    p = router.model.recognise([LAW[0]["content"]]).numpy()
    assert answer["weights"] == shared(p)[0].astype("<u4").tobytes(), "what was recognised, to the last unit"
    assert (answer["expert"], answer["status"], answer["tokens"]) == ("law", "answered", 18)
    assert abs(answer["time"] - time.time()) < 60
    assert (given["score"], given["cost"], given["seconds"]) == (0.25, 0.5, 2.0)
    assert remade(store).outcomes == 1


@pytest.mark.parametrize("said", [{"cost": 1e9}, {"seconds": 1e9}, {"cost": 0, "seconds": 0}])
def test_only_an_admin_says_what_an_answer_cost(locked: tuple[World, Store], said: dict[str, float]) -> None:
    made, store = locked
    answered = made.ask(headers=ANN)
    refused = give(made, ANN, id=answered.json["id"], score="good", **said)
    assert (refused.status, refused.code) == (403, "forbidden")
    assert not rows(store, "feedback")
    assert give(made, ROOT, id=answered.json["id"], score="good", **said).status == 200


@pytest.mark.parametrize(("api", "stream"), [("responses", False), ("messages", True), ("chat/completions", True)])
def test_every_api_and_streams_have_ids(open_world: tuple[World, Store], api: str, stream: bool) -> None:
    made, _ = open_world
    asked = {"messages": None, "input": "the court"} if api == "responses" else {}
    answered = made.ask(api, stream=stream, max_tokens=9, **asked)
    assert answered.status == 200
    text = answered.body.decode()
    own = text.partition('"id":')[2].partition('"')[2].partition('"')[0]
    assert own
    assert give(made, id=own, score="bad").json["score"] == 0.0


def test_who_names_an_expert_teaches_too(open_world: tuple[World, Store]) -> None:
    made, store = open_world
    answered = made.ask(model="math", messages=LAW)
    assert give(made, id=answered.headers["x-request-id"], score=1).json["expert"] == "math"
    sums = remade(store).ledger.sums(["code", "law", "math"], ["math"])
    assert sums[:, 0, 0].sum() == ONE
    assert sums[:, 0, 0].argmax() == 1, "of a question of law"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "id"),
        ({"id": 5, "score": 1}, "id"),
        ({"id": "x" * 300, "score": 1}, "id"),
        ({"id": "x\0", "score": 1}, "id"),
        ({"id": "x\ud800", "score": 1}, "id"),
        ({"id": "", "score": 1}, "id"),
        ({"id": "x"}, "score"),
        ({"id": "x", "score": "great"}, "score"),
        ({"id": "x", "score": True}, "score"),
        ({"id": "x", "score": 1.01}, "score"),
        ({"id": "x", "score": -1}, "score"),
        ({"id": "x", "score": [1]}, "score"),
        ({"id": "x", "score": 1, "cost": -1}, "cost"),
        ({"id": "x", "score": 1, "seconds": "1"}, "seconds"),
        ({"id": "x", "score": 1, "comment": 1}, "comment"),
        ({"id": "x", "score": 1, "rating": 5}, "rating"),
    ],
)
def test_a_malformed_score_is_refused(open_world: tuple[World, Store], fields: dict[str, Any], param: str) -> None:
    answered = give(open_world[0], **fields)
    assert (answered.status, answered.json["error"]["param"]) == (400, param)


def test_a_body_that_is_no_object_is_refused(open_world: tuple[World, Store]) -> None:
    made, _ = open_world
    for body in (b"", b"[]", b"{", b'{"id": "x", "id": "y", "score": 1}', b'{"id": "x", "score": NaN}', b"\xff"):
        answered = made.send("POST", "/v1/feedback", body)
        assert (answered.status, answered.code) == (400, "invalid_json"), body
    assert give(made, {"idempotency_key": "k" * 300}, id="x", score=1).status == 400


def test_only_who_was_answered_scores_an_answer(locked: tuple[World, Store]) -> None:
    made, store = locked
    id_ = made.ask(headers=ANN).headers["x-request-id"]
    foreign = give(made, BOB, id=id_, score="good")
    unknown = give(made, BOB, id="nothing", score="good")
    assert (foreign.status, foreign.json) == (404, unknown.json), "told apart by nobody"
    assert give(made, id=id_, score="good").status == 401
    assert rows(store, "feedback") == []
    assert give(made, ROOT, id=id_, score="bad").status == 200, "an admin may"
    assert give(made, ANN, id=id_, score="good").status == 200
    assert [row["score"] for row in rows(store, "feedback")] == [1.0]
    assert rows(store)[0]["caller"] == hashed("of-ann")


def test_the_same_id_of_two_callers_is_two_answers(locked: tuple[World, Store]) -> None:
    made, store = locked
    for who in (ANN, BOB):
        assert made.ask(headers={**who, "x_request_id": "mine"}).status == 200
    assert give(made, ANN, id="mine", score="good").status == 200
    assert give(made, BOB, id="mine", score="bad").status == 200
    assert sorted(row["score"] for row in rows(store, "feedback")) == [0.0, 1.0]


def test_a_key_of_idempotency_is_taken_once(open_world: tuple[World, Store]) -> None:
    made, store = open_world
    id_ = made.ask().headers["x-request-id"]
    key = {"idempotency_key": "k"}
    first = give(made, key, id=id_, score=1)
    assert give(made, key, id=id_, score=1).json == first.json
    other = give(made, key, id=id_, score=0)
    assert (other.status, other.code) == (409, "idempotency_conflict")
    assert [row["score"] for row in rows(store, "feedback")] == [1.0]


def test_a_request_that_nobody_answered_has_nothing_to_score(tmp_path: Path) -> None:
    async def fails(_: web.Request, __: Received) -> web.StreamResponse:
        return web.Response(status=500)

    with kept(tmp_path, responds=dict.fromkeys(tiny.DOMAINS, fails)) as (made, store):
        failed = made.ask()
        assert failed.status == 502
        answered = give(made, id=failed.headers["x-request-id"], score="bad")
        assert (answered.status, answered.code) == (409, "nothing_to_score")
        refused = made.ask(messages=[])
        assert refused.status == 400
        assert give(made, id=refused.headers["x-request-id"], score=1).code == "answer_not_found"
        assert rows(store, "feedback") == []


def test_an_answer_grows_too_old(open_world: tuple[World, Store]) -> None:
    made, store = open_world
    id_ = made.ask().headers["x-request-id"]
    store.days = -1.0
    answered = give(made, id=id_, score=1)
    assert (answered.status, answered.code) == (410, "answer_expired")


def test_answering_goes_on_where_the_store_takes_nothing(
    open_world: tuple[World, Store], caplog: pytest.LogCaptureFixture
) -> None:
    made, store = open_world
    id_ = made.ask().headers["x-request-id"]
    assert give(made, id=id_, score=1).status == 200
    from sqlalchemy import event

    store._engine.dispose()
    event.listen(store._engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only=1"))
    for _ in range(3):
        assert made.ask().status == 200
        answered = give(made, id=id_, score=0)
        assert (answered.status, answered.code) == (503, "store_unavailable")
        assert "readonly" in answered.json["error"]["message"]
        assert answered.headers["retry-after"]
    assert caplog.text.count("cannot be written to") == 1
    text = made.gateway.metrics.shown().decode()
    assert 'ir3de_feedback_total{outcome="ok"} 1.0' in text
    assert 'ir3de_feedback_total{outcome="unavailable"} 3.0' in text
    assert "ir3de_store_lost_total 6.0" in text
    assert "ir3de_store_waiting " in text


def test_no_request_waits_for_the_store(open_world: tuple[World, Store], tmp_path: Path) -> None:
    made, store = open_world
    raw = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")  # somebody else writes
    assert [made.ask().status for _ in range(5)] == [200] * 5
    assert store.counts["answers"] == 0
    raw.execute("ROLLBACK")
    raw.close()
    made.wait(lambda: store.counts["answers"] == 5, "all kept")


def test_text_and_comments_are_kept_where_they_are_wanted_and_nowhere_else(
    locked: tuple[World, Store], tmp_path: Path
) -> None:
    made, _ = locked
    id_ = made.ask(headers=ANN).headers["x-request-id"]
    scored = give(made, ANN, id=id_, score="bad", comment="not my court")
    assert scored.json["comment_kept"] is True
    path = tmp_path / "texts.jsonl"
    made.wait(lambda: path.read_bytes().count(b"\n") == 2, "two lines")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert (lines[0]["text"], lines[0]["expert"], lines[0]["id"]) == (LAW[0]["content"], "law", id_)
    assert lines[1]["comment"] == "not my court"
    assert lines[0]["uid"] == lines[1]["uid"]
    assert not any(b"court" in each.read_bytes() for each in tmp_path.glob("store.sqlite*"))
    assert made.send("DELETE", f"/v1/feedback/{id_}", **ANN).json["answers"] == 1
    assert path.read_bytes() == b""


def test_where_text_cannot_be_removed_its_answer_stays(
    locked: tuple[World, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, store = locked
    id_ = made.ask(headers=ANN).headers["x-request-id"]

    def fails(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Texts, "remove", fails)
        assert made.send("DELETE", f"/v1/feedback/{id_}", **ANN).status == 503
    assert store.counts["answers"] == 1
    assert made.send("DELETE", f"/v1/feedback/{id_}", **ANN).status == 200


def test_text_stays_only_with_an_answer_that_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the commit fails, or the answer is taken back in the same breath, no text is left."""
    path = tmp_path / "texts.jsonl"

    def fails(connection: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    from sqlalchemy import event

    with kept(tmp_path, texts=True) as (made, store):
        assert made.gateway.traffic is not None
        event.listen(store._engine, "commit", fails)
        id_ = made.ask().headers["x-request-id"]
        lost = made.gateway.metrics.shown
        made.wait(lambda: "ir3de_store_lost_total 0.0" not in lost().decode(), "the answer is lost")
        event.remove(store._engine, "commit", fails)
        assert made.send("DELETE", f"/v1/feedback/{id_}").status == 404
        assert path.read_bytes() == b""

        writer, held = made.gateway.traffic._writer, threading.Event()
        first = writer.do(lambda connection: held.wait(10))
        made.wait(lambda: not writer.waiting, "it waits for what follows")
        made.ask()
        made.wait(lambda: writer.waiting, "the answer waits too, which is noted once it is with the client")
        gone = writer.do(lambda connection: take_back(connection, Which(since=0), Texts(path)))
        held.set()
        assert first.result(10)
        assert len(gone.result(10)) == 1
        made.ask()
        made.wait(lambda: path.read_bytes().count(b"\n") == 1, "of the answer that stayed alone")
        (row,) = rows(store)
        assert json.loads(path.read_bytes())["uid"] == row["uid"]


def test_comments_are_not_kept_without_a_file(open_world: tuple[World, Store], tmp_path: Path) -> None:
    made, _ = open_world
    id_ = made.ask().headers["x-request-id"]
    assert give(made, id=id_, score="bad", comment="not my judge").json["comment_kept"] is False
    assert not any(b"judge" in each.read_bytes() for each in tmp_path.iterdir())


def test_what_was_given_is_taken_back_by_its_caller(locked: tuple[World, Store]) -> None:
    made, store = locked
    before = remade(store).ledger
    mine, other = (made.ask(headers=ANN).headers["x-request-id"] for _ in range(2))
    for id_ in (mine, other):
        assert give(made, ANN, id=id_, score=1).status == 200
    assert made.send("DELETE", f"/v1/feedback/{mine}", **BOB).status == 404
    assert made.send("DELETE", f"/v1/feedback/{mine}", **ANN).json["answers"] == 1
    assert made.send("DELETE", f"/v1/feedback/{mine}", **ANN).status == 404
    assert give(made, ANN, id=mine, score=1).status == 404
    assert remade(store).outcomes == 1
    assert made.send("DELETE", f"/v1/feedback/{other}", **ROOT).json["answers"] == 1
    assert remade(store).ledger == before


def test_without_keys_nobody_is_an_admin_and_is_told_how_to_be_one(open_world: tuple[World, Store]) -> None:
    made, store = open_world
    made.ask()
    made.wait(lambda: store.counts["answers"] == 1, "it is kept")
    for path in ("/v1/feedback?since=2020-01-01", "/v1/feedback?key=ann"):
        refused = made.send("DELETE", path)
        assert (refused.status, refused.code) == (403, "forbidden")
        message = refused.json["error"]["message"]
        assert "this gateway has no keys" in message
        assert "--new-key NAME" in message
        assert '"admin": true' in message
    assert store.counts["answers"] == 1


def test_an_admin_takes_a_key_or_a_time_back(locked: tuple[World, Store]) -> None:
    made, store = locked
    for who in (ANN, ANN, BOB):
        made.ask(headers=who)
    made.wait(lambda: store.counts["answers"] == 3, "all kept")
    assert made.send("DELETE", "/v1/feedback?key=ann", **ANN).status == 403
    for wrong in ("", "?who=ann", "?since=soon"):
        assert made.send("DELETE", f"/v1/feedback{wrong}", **ROOT).status == 400
    assert made.send("DELETE", "/v1/feedback?key=ann", **ROOT).json["answers"] == 2
    assert made.send("DELETE", "/v1/feedback?since=2020-01-01&until=2020-02-01", **ROOT).json["answers"] == 0
    assert made.send("DELETE", "/v1/feedback?since=2020-01-01", **ROOT).json["answers"] == 1
    assert store.counts["answers"] == 0


def test_without_a_store_nothing_is_as_before() -> None:
    with world() as made:
        assert give(made, id="x", score=1).status == 404
        assert made.send("DELETE", "/v1/feedback/x").status == 404


def test_many_at_once_lose_nothing(locked: tuple[World, Store]) -> None:
    made, store = locked

    def ask(number: int) -> None:
        who = (ANN, BOB)[number % 2]
        id_ = made.ask(headers=who, messages=(LAW, CODE)[number % 2]).headers["x-request-id"]
        assert give(made, {**who, "idempotency_key": f"k{number}"}, id=id_, score=number % 3 / 2).status == 200

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(80)))
    assert store.counts == {"answers": 80, "scores": 80, "signals": 0}
    assert remade(store).outcomes == 80


def test_prices_make_costs(tmp_path: Path) -> None:
    specs = {"law": {"price": {"input": 10, "output": 100}}, "code": {"cost": 3}}
    with kept(tmp_path, specs=specs) as (made, store):
        for name in tiny.DOMAINS:
            assert made.ask(model=name).status == 200
        made.wait(lambda: store.counts["answers"] == 3, "all kept")
        costs = {row["expert"]: row["cost"] for row in rows(store)}
    assert costs == {"law": pytest.approx((11 * 10 + 7 * 100) / 1e6), "code": 3.0, "math": None}


def test_signs_are_kept_apart_and_off_unless_they_are_wanted(tmp_path: Path) -> None:
    again = [*LAW, {"role": "assistant", "content": "Sure."}, *LAW]
    for place, weight in (("off", 0.0), ("on", 0.25)):
        folder = tmp_path / place
        folder.mkdir()
        with kept(folder, implicit=weight) as (made, store):
            for messages in (LAW, again):
                assert made.ask(messages=messages, user="ann").status == 200
            made.ask(messages=CODE, user="bob")
            made.wait(lambda: store.counts["answers"] == 3, "all kept")
            signs = rows(store, "signals")
            assert remade(store).outcomes == len(signs) == (1 if weight else 0)
            if weight:
                assert (signs[0]["kind"], signs[0]["units"]) == ("repeated", ONE // 4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep_text": "x"}, "need a `--store`"),
        ({"store": "s", "implicit": 2.0}, "from 0 to 1"),
        ({"store": "s", "feedback_days": 0.0}, "`--feedback-days` must be from"),
    ],
)
def test_options_that_make_no_sense_are_refused(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    if "store" in fields:
        fields = {**fields, "store": str(tmp_path / "store.sqlite")}
    with pytest.raises(ValueError, match=said):
        Service("router", **fields).check()


def test_workers_are_said_to_miss_signs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def said() -> list[str]:
        """What the server logged: connections of other tests that are collected just now may log too."""
        return [record.getMessage() for record in caplog.records if record.name.startswith("ir3de")]

    store = str(tmp_path / "store.sqlite")
    for fields in ({"workers": 2}, {"implicit": 0.1}):
        Service("router", store=store, **fields).check()
        assert said() == []
    Service("router", store=store, workers=2, implicit=0.1).check()
    (line,) = said()
    assert "--implicit with --workers 2" in line


def test_nothing_acknowledged_is_lost_when_two_workers_are_killed(tmp_path: Path) -> None:
    with StandIn() as server:
        specs = {name: {"endpoint": server.url} for name in tiny.DOMAINS}
        tiny.router(specs).save_pretrained(tmp_path / "router")
        path, acknowledged = tmp_path / "store.sqlite", []
        with command(tmp_path / "router", "--workers", "2", "--store", str(path)) as (process, url):

            def ask(number: int) -> None:
                name = f"request-{number}"
                try:
                    asked = {"model": "ir3de", "messages": LAW}
                    post(f"{url}/v1/chat/completions", asked, **{"x-request-id": name})
                    if post(f"{url}/v1/feedback", {"id": name, "score": 1})[0] == 200:
                        acknowledged.append(name)
                except OSError:  # killed
                    return

            with ThreadPoolExecutor(4) as threads:
                brought = [threads.submit(ask, number) for number in range(400)]
                while len(acknowledged) < 60:
                    assert process.poll() is None
                    time.sleep(0.005)
                os.killpg(process.pid, signal.SIGKILL)
                for each in brought:
                    each.result()
    store = Store(str(path))
    scored = {row["answer"] for row in rows(store, "feedback")}
    assert {row["request_id"] for row in rows(store) if row["number"] in scored} >= set(acknowledged)
    assert len(acknowledged) >= 60
    store.close()


# The pipeline.


def test_the_pipeline_learns_from_a_score_and_forgets_it_again() -> None:
    pipe = IR3DERoutingPipeline(tiny.router({name: {} for name in tiny.DOMAINS}), device="cpu", generate=False)
    before, text = pipe("the court and a judge"), "the court and a judge"
    record = pipe(text, recognised=True)
    assert {key: record[key] for key in before} == before
    assert sum(record["recognised"].values()) == ONE
    assert [*record["recognised"]] == pipe.model.config.domain_names
    added = [pipe.feedback(pipe(text, recognised=True, experts=["law"]), 0.0) for _ in range(50)]
    assert pipe(text)["expert"] != record["expert"]
    collected = pipe.model.outcomes.sums(["law"], ["law"])[0, 0, 0]
    assert collected == 50 * record["recognised"]["law"]
    for ledger in added:
        pipe.model.remove_outcomes(ledger)
    assert pipe(text) == before
    p = pipe.model.recognise([text]).numpy()
    assert np.array_equal([*record["recognised"].values()], shared(p)[0])


def test_a_second_score_for_a_record_replaces_the_first() -> None:
    pipe = IR3DERoutingPipeline(tiny.router({name: {} for name in tiny.DOMAINS}), device="cpu", generate=False)
    record = pipe("the court and a judge", recognised=True)
    pipe.feedback(record, 1.0)
    copy = pipe.model.copy()
    second = pipe.feedback(record, 0.5)
    assert pipe.model.outcomes == second
    assert copy.add_feedback(record, 0.0) == copy.outcomes, "a copy knows what was said before, and goes its own way"
    assert pipe.model.outcomes == second
    other = pipe.feedback(pipe("debug my python loop", recognised=True), 1.0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        pipe.feedback(record, 2.0)
    assert pipe.model.outcomes == second | other, "what is refused takes nothing away"
    pipe.model.remove_outcomes(second)
    pipe.model.remove_outcomes(other)
    third = pipe.feedback(record, 0.0)
    assert pipe.model.outcomes == third, "what was removed already need not be replaced"


def test_the_pipeline_refuses_a_score_that_means_nothing() -> None:
    pipe = IR3DERoutingPipeline(tiny.router({name: {} for name in tiny.DOMAINS}), device="cpu", generate=False)
    with pytest.raises(ValueError, match="recognised=True"):
        pipe.feedback(pipe("the court"), 1.0)
    record = pipe("the court", recognised=True)
    for wrong in (1.5, True, "good"):
        with pytest.raises(ValueError, match="from 0 to 1"):
            pipe.feedback(record, wrong)
    pipe.feedback(record, 1.0)
    with pytest.raises(ValueError, match="already"):
        pipe.feedback(record, 1.0)
    with pytest.raises(ValueError, match="Nobody answered"):
        pipe.feedback({**pipe("the court", recognised=True), "expert": None}, 1.0)
    court, empty = pipe(["the court", ""], recognised=True)
    assert empty.keys() >= {"id", "recognised"}
    assert empty["id"] != court["id"]
    assert empty["recognised"] == dict.fromkeys(court["recognised"], 0)
    with pytest.raises(ValueError, match="Nobody answered"):
        pipe.feedback(empty, 1.0)
    below = pipe("the court", recognised=True, min_score=1.0, experts=["math"])
    assert sum(below["recognised"].values()) == ONE, "of all domains, whoever may be chosen"
