"""Worker processes: one that dies is replaced, and where none could be started the service ends and says why."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Event
from typing import TypeVar

from prometheus_client.multiprocess import mark_process_dead

from ir3de.traffic.orphans import end_with_parent

logger = logging.getLogger(__name__)

_STARTED, _FAILED = "started", "failed"  # files in the folder that the workers share
_PAUSE = 5.0  # seconds before a worker is started again that could not be
_LOOK = 0.5  # seconds between two looks whether to stop
Made = TypeVar("Made")


def run_workers(work: Callable[[], None], number: int, shared: Path) -> None:
    """Serves in worker processes until this one is told to stop, which they then are too.

    Args:
        work (`Callable`): what a worker does until it is told to stop; it travels to the process.
        number (`int`): of processes.
        shared (`Path`): a folder that they share, in which prometheus_client has its files too.

    Raises:
        ValueError: no worker could be started; the message says why.
        OSError: likewise, where something could not be read.
    """
    workers: list[SpawnProcess] = []
    with _told_to_stop() as stop:
        try:
            workers.extend(_start(work) for _ in range(number))
            while not stop.is_set():
                wait([worker.sentinel for worker in workers], _LOOK)
                if not stop.is_set() and not _replace_dead(workers, work, shared):
                    break
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()
    _raise_failure(shared)


@contextmanager
def _told_to_stop() -> Iterator[Event]:
    """An event that is set when this process is told to stop."""
    stop = Event()
    before = {each: signal.signal(each, lambda *_: stop.set()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _start(work: Callable[[], None]) -> SpawnProcess:
    worker = multiprocessing.get_context("spawn").Process(target=_work, args=(work,))
    worker.start()
    return worker


def _work(work: Callable[[], None]) -> None:
    parent = multiprocessing.parent_process()
    end_with_parent(signal.SIGTERM, parent.pid if parent else None)
    with suppress(KeyboardInterrupt):  # of a terminal, which sends it to all processes
        work()


def _replace_dead(workers: list[SpawnProcess], work: Callable[[], None], shared: Path) -> bool:
    """Starts a worker in the place of each that died; before one has ever served, a death is the end, and False."""
    for index, worker in enumerate(workers):
        if worker.exitcode is None:
            continue
        said = f"ended with code {worker.exitcode}"
        if not (shared / _STARTED).exists():
            _note_failure(shared, RuntimeError(f"A worker process {said} as it started."))
            return False
        logger.warning("Worker process %s %s: another one takes its place", worker.pid, said)
        mark_process_dead(worker.pid)  # or its requests would count as under way for ever
        (shared / _FAILED).unlink(missing_ok=True)  # noted before others started: it is no reason to end any more
        workers[index] = _start(work)
    return True


def started(make: Callable[[], Made], shared: Path) -> Made:
    """What a worker process makes as it starts; where that fails the process ends.

    Args:
        make (`Callable`): that makes it.
        shared (`Path`): the folder that the workers share.
    """
    try:
        made = make()
    except Exception as error:
        if (shared / _STARTED).exists():  # others serve, and what failed may be the network
            logger.error("A worker process cannot start and is tried again: %s: %s", type(error).__name__, error)
            time.sleep(_PAUSE)
        else:
            _note_failure(shared, error)
        sys.exit(1)
    (shared / _STARTED).touch()
    return made


def _note_failure(shared: Path, error: Exception) -> None:
    """Keeps the first reason, for the process that started the workers."""
    told = {"said": str(error) or type(error).__name__, "is_os_error": isinstance(error, OSError)}
    with suppress(FileExistsError), (shared / _FAILED).open("x", encoding="utf-8") as file:
        json.dump(told, file)


def _raise_failure(shared: Path) -> None:
    """Raises what a worker noted, if one did."""
    failed = shared / _FAILED
    if failed.exists():
        told = json.loads(failed.read_text(encoding="utf-8"))
        raise (OSError if told["is_os_error"] else ValueError)(told["said"])
