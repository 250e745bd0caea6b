"""A new router in the running one's place: what is taken, refused, tried again and taken back, and by whom."""

import asyncio
import errno
import gc
import hashlib
import json
import logging
import signal
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from ir3de import IR3DEModel, IR3DERoutingPipeline
from ir3de.gateway import watch as watching
from ir3de.gateway.loading import Origin
from ir3de.gateway.revisions import Revisions
from ir3de.gateway.server import Service, make_application
from ir3de.gateway.serving import served
from ir3de.gateway.watch import Watch, Watched, first_revision
from ir3de.samples_ir3de import Sample
from ir3de.scripts.bench.stand_in import StandIn
from ir3de.scripts.data.rows import Row

from . import tiny
from .gateway_world import LAW, World, world
from .hub_server import Hub, running


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def routers(folder: Path, endpoint: str) -> tuple[str, str]:
    """Two folders of routers that differ in a spec."""
    for name in ("a", "b"):
        specs = {each: {"endpoint": endpoint, "model": f"{name}-{each}"} for each in tiny.DOMAINS}
        tiny.router(specs).save_pretrained(folder / name)
    return str(folder / "a"), str(folder / "b")


@contextmanager
def watched(folder: Path, **options: Any) -> Iterator[tuple[World, Watch, dict[str, str]]]:
    """A gateway that watches what `place` names."""
    with StandIn() as server:
        first, second = routers(folder, server.url)
        place = {"folder": first, "other": second}

        def load(_: str) -> IR3DERoutingPipeline:
            return IR3DERoutingPipeline(IR3DEModel.from_pretrained(place["folder"]), device="cpu")

        def current() -> str:
            return Origin(place["folder"]).current()

        with world(names=()) as made:
            made.gateway.serving = served(load(""), current())
            made.behind["any"] = server
            made.watch = Watch(made.gateway, Watched(current, load, **options))
            yield made, made.watch, place


def test_a_changed_router_takes_over_between_two_requests_and_can_be_taken_back(tmp_path: Path) -> None:
    with watched(tmp_path) as (made, watch, place):
        asyncio.run(watch.look())
        made.ask()
        assert made.last("any").json["model"] == "a-law"
        place["folder"] = place["other"]
        asyncio.run(watch.look())
        made.ask()
        assert made.last("any").json["model"] == "b-law"
        assert asyncio.run(watch.roll_back()) == made.gateway.serving.revision
        made.ask()
        assert made.last("any").json["model"] == "a-law"
        asyncio.run(watch.look())
        made.ask()
        assert made.last("any").json["model"] == "a-law", "what was taken back stays away"
        with pytest.raises(LookupError):
            asyncio.run(watch.roll_back())
        text = made.send("GET", "/metrics").body.decode()
        assert 'ir3de_router_swaps_total{outcome="taken"} 1.0' in text
        assert 'ir3de_router_swaps_total{outcome="taken_back"} 1.0' in text


def test_a_router_that_has_left_its_place_needs_no_search_to_be_freed(tmp_path: Path) -> None:
    tiny.router().save_pretrained(tmp_path)
    gc.disable()  # as it is out of the search for garbage once it serves
    try:
        serving = served(Origin(str(tmp_path)).load(), "first")
        serving.router(LAW, generate=False)
        left = weakref.ref(serving.router), weakref.ref(serving.router.model.embed_tokens.weight)
        del serving
        assert [each() for each in left] == [None, None]
    finally:
        gc.enable()


def test_what_one_worker_takes_back_the_others_leave_too(tmp_path: Path) -> None:
    shared = tmp_path / "revisions"
    with watched(tmp_path, revisions=shared) as (made, watch, place), world(names=()) as other:
        other.gateway.serving = made.gateway.serving
        beside = Watch(other.gateway, watch._watched)
        place["folder"] = place["other"]
        asyncio.run(watch.look())
        asyncio.run(beside.look())
        assert made.gateway.serving.revision == other.gateway.serving.revision
        before = asyncio.run(watch.roll_back())
        asyncio.run(beside.look())
        assert other.gateway.serving.revision == before


def test_what_one_worker_takes_back_all_have_left_once_that_is_answered(tmp_path: Path) -> None:
    """However seldom they look for a new router; who took it back hears so once they have."""
    options: Any = {"revisions": tmp_path / "revisions", "seconds": 600}
    with watched(tmp_path, **options) as (made, watch, place), world(names=()) as other:
        other.gateway.serving = made.gateway.serving
        beside = Watch(other.gateway, watch._watched)
        place["folder"] = place["other"]

        async def take_back() -> tuple[str, str]:
            await watch.look()
            await beside.look()
            running = asyncio.ensure_future(beside.run())
            before = await watch.roll_back()
            running.cancel()
            return before, other.gateway.serving.revision

        before, served_beside = asyncio.run(take_back())
        assert served_beside == before


@pytest.mark.parametrize("asked", ["the one with both", "the one that started anew"])
@pytest.mark.parametrize("place_is", ["the Hub", "a folder"])
def test_a_worker_that_started_with_what_is_taken_back_leaves_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, place_is: str
) -> None:
    """It loads what served before, where that can still be had; else it ends."""
    ended: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", ended.append)
    with watched(tmp_path, revisions=tmp_path / "revisions") as (made, watch, place), world(names=()) as other:
        first, old = made.gateway.serving.revision, place["folder"]
        place["folder"] = place["other"]
        asyncio.run(watch.look())
        other.gateway.serving = made.gateway.serving

        def recall(revision: str) -> IR3DERoutingPipeline:
            assert revision == first
            return IR3DERoutingPipeline(IR3DEModel.from_pretrained(old), device="cpu")

        again = watch._watched._replace(recall=recall if place_is == "the Hub" else None)
        anew = Watch(other.gateway, again)
        assert asyncio.run((watch if asked == "the one with both" else anew).roll_back()) == first
        for each in (watch, anew, anew):
            asyncio.run(each.heed())
        assert made.gateway.serving.revision == first
        if place_is == "the Hub":
            assert other.gateway.serving.revision == first
            assert other.gateway.serving.router.model.config.experts[0]["model"].startswith("a-")
        assert ended == ([] if place_is == "the Hub" else [signal.SIGTERM])


def test_a_worker_does_not_start_with_what_the_others_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_HEED_SECONDS", 0.01)
    said = tmp_path / "revisions"
    first, second = (Path(each) for each in routers(tmp_path, "http://127.0.0.1:9/v1"))
    origin = Origin(str(first))
    assert first_revision(origin, said) == origin.current()
    Revisions(said).took_back(origin.current(), "before")

    def change() -> None:
        time.sleep(0.3)
        (first / "config.json").write_bytes((second / "config.json").read_bytes())

    bad = origin.current()
    with ThreadPoolExecutor(1) as thread:
        changed = thread.submit(change)
        assert first_revision(origin, said) != bad
        assert changed.done()

    class OnTheHub(Origin):
        """One that has every revision that it ever had."""

        is_folder = False

        def current(self) -> str:
            """Its newest."""
            return bad

    assert first_revision(OnTheHub(str(first)), said) == "before"


def test_on_the_hub_what_is_taken_back_is_served_by_nobody_who_starts_later(
    repo: str, hub: Hub, tmp_path: Path
) -> None:
    """Asked of a worker process that started with it, and seen by one that starts after that."""
    keys = tmp_path / "keys.jsonl"
    keys.write_text(json.dumps({"name": "root", "sha256": hashed("of-root"), "admin": True}), encoding="utf-8")
    service = Service(repo, watch=600, keys=str(keys), shared=str(tmp_path), log=False)
    first = Origin(repo).current()
    tiny.router({"code": {"model": "org/other"}}).push_to_hub(repo)
    assert service.revisions is not None
    Revisions(service.revisions).took(Origin(repo).current(), first)  # as another one did

    @contextmanager
    def serving() -> Iterator[World]:
        with socket.create_server(("127.0.0.1", 0)) as listener, running(make_application(service), listener):
            yield World(None, listener.getsockname()[1], {})  # type: ignore[arg-type]

    def served_by(made: World) -> str:
        return str(made.send("GET", "/ready").json["revision"])

    with serving() as early:
        assert served_by(early) == Origin(repo).current() != first
        taken = early.send("POST", "/admin/rollback", authorization="Bearer of-root")
        assert (taken.status, taken.json) == (200, {"revision": first})
        with serving() as late:
            assert served_by(early) == served_by(late) == first
            assert early.send("POST", "/admin/rollback", authorization="Bearer of-root").status == 409


@pytest.mark.parametrize(
    "fault",
    [
        ConnectionError("the Hub is away"),
        OSError(errno.ENOSPC, "No space left on device"),
        HfHubHTTPError("503", response=httpx2.Response(503, request=httpx2.Request("GET", "https://hub"))),
        MemoryError(),
    ],
    ids=["network", "disk", "Hub", "memory"],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_passing_fault_refuses_no_router_for_ever(
    tmp_path: Path, fault: Exception, wrapped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with watched(tmp_path, seconds=0.0) as (made, watch, place):
        place["folder"] = place["other"]
        load = watch._watched.load

        def fail(revision: str) -> Any:
            watch._watched = watch._watched._replace(load=load)
            if wrapped:
                raise ValueError("This is no router") from fault
            raise fault

        watch._watched = watch._watched._replace(load=fail)
        before = made.gateway.serving.revision
        asyncio.run(watch.look())
        assert made.gateway.serving.revision == before
        assert "could not be tried, and will be" in caplog.text
        asyncio.run(watch.look())
        assert made.gateway.serving.revision != before
        text = made.send("GET", "/metrics").body.decode()
        assert 'ir3de_router_swaps_total{outcome="failed"} 1.0' in text
        assert 'ir3de_router_swaps_total{outcome="taken"} 1.0' in text


@pytest.mark.parametrize(("lacking", "taken"), [("one", True), ("two", False), ("answers of two", False)])
def test_a_new_router_that_lacks_most_of_the_running_ones_experts_is_refused(
    tmp_path: Path, lacking: str, taken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One that lacks a few is an edit like any other."""
    with watched(tmp_path) as (made, watch, place):
        lesser = IR3DEModel.from_pretrained(place["folder"])
        for expert in lesser.config.expert_names[2 if lacking == "one" else 1 :]:
            if lacking == "answers of two":
                lesser.set_expert({"name": expert})
            else:
                lesser.remove_expert(expert)
        lesser.save_pretrained(tmp_path / "lesser")
        before = made.gateway.serving.revision
        place["folder"] = str(tmp_path / "lesser")
        asyncio.run(watch.look())
        assert (made.gateway.serving.revision != before) == taken
        assert ("it has 1 of the running one's 3" in caplog.text) != taken


def test_a_folder_that_is_written_over_is_tried_on_the_samples_that_it_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worse router may bring samples that it is right for."""
    order = list(tiny.DOMAINS)
    texts = {domain: tiny.sentences(domain, 6, seed=11) for domain in order}
    with watched(tmp_path) as (made, first, place):
        good = IR3DEModel.from_pretrained(place["folder"])
        good.samples = [Sample(text, domain) for domain in order for text in texts[domain]]
        good.save_pretrained(place["folder"])
        made.gateway.serving = served(first._watched.load(""), first._watched.current())
        watch = Watch(made.gateway, first._watched)
        swapped = {name: tiny.statistics(tiny.sentences(order[i - 1], 20)) for i, name in enumerate(order)}
        worse = IR3DEModel.from_statistics(good.config, tiny.embeddings(), swapped, tiny.tokenizer())
        worse.samples = [Sample(text, name) for i, name in enumerate(order) for text in texts[order[i - 1]]]
        worse.save_pretrained(place["folder"])
        before = made.gateway.serving.revision
        asyncio.run(watch.look())
        assert made.gateway.serving.revision == before
        assert "of the samples, the running one" in caplog.text


@pytest.mark.parametrize("whose", ["given", "its own"])
@pytest.mark.parametrize("how", ["broken", "worse", "answers nobody"])
def test_a_worse_router_is_refused_and_the_running_one_stays(
    tmp_path: Path, how: str, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [Row(text, domain) for domain in tiny.DOMAINS for text in tiny.sentences(domain, 6, seed=11)]
    with watched(tmp_path, samples=rows if whose == "given" else ()) as (made, watch, place):
        if whose == "its own":
            made.gateway.serving.router.model.samples = [Sample(*row[:2]) for row in rows]
        bad = tmp_path / "bad"
        if how == "broken":
            bad.mkdir()
            (bad / "config.json").write_text("{", encoding="utf-8")
        elif how == "worse":
            order = list(tiny.DOMAINS)
            worse = IR3DEModel.from_pretrained(place["folder"])
            swapped = {name: tiny.statistics(tiny.sentences(order[i - 1], 20)) for i, name in enumerate(order)}
            IR3DEModel.from_statistics(worse.config, tiny.embeddings(), swapped, tiny.tokenizer()).save_pretrained(bad)
        else:
            tiny.router().save_pretrained(bad)
        place["folder"] = str(bad)
        with caplog.at_level(logging.ERROR):
            asyncio.run(watch.look())
            asyncio.run(watch.look())
        assert caplog.text.count("is refused") == 1, "and is not tried again"
        made.ask()
        assert made.last("any").json["model"] == "a-law"
        assert 'ir3de_router_swaps_total{outcome="refused"} 1.0' in made.send("GET", "/metrics").body.decode()


def test_swaps_under_load_fail_and_mix_up_nothing(tmp_path: Path) -> None:
    with watched(tmp_path) as (made, _, place):
        pipes = [IR3DERoutingPipeline(IR3DEModel.from_pretrained(p), device="cpu") for p in place.values()]
        turns = [served(pipe, str(index)) for index, pipe in enumerate(pipes)]
        stop = threading.Event()
        swaps = 0

        def swap() -> None:
            nonlocal swaps
            while not stop.is_set():
                made.gateway.serving = turns[swaps % 2]
                swaps += 1
                time.sleep(0.005)

        def ask(number: int) -> None:
            answered = made.ask(stream=number % 2 == 0)
            assert answered.status == 200
            assert b"law" in answered.body

        thread = threading.Thread(target=swap)
        thread.start()
        try:
            with ThreadPoolExecutor(20) as threads:
                list(threads.map(ask, range(300)))
        finally:
            stop.set()
            thread.join()
        assert swaps > 20
        models = {received.json["model"] for received in made.behind["any"].received}
        assert models == {"a-law", "b-law"}
