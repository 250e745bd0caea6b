"""Worker processes: one that dies is replaced, and where none could be started the service ends and says why."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from socket import socket
from typing import TypeVar

from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.supervisors.multiprocess import Multiprocess, Process

logger = logging.getLogger(__name__)

_STARTED, _FAILED = "started", "failed"  # files in the folder that the workers share
_PAUSE = 5.0  # seconds before a worker is started again that could not be
Made = TypeVar("Made")


class Workers(Multiprocess):
    """
    uvicorn's worker processes, with an end where they cannot start and an eye on the figures of those that died.

    Args:
        config (`Config`): of uvicorn.
        sockets (`list[socket]`): that they listen on.
        shared (`Path`): a folder that they share.
    """

    def __init__(self, config: Config, sockets: list[socket], shared: Path) -> None:
        super().__init__(config, sockets)
        self._shared = shared
        self._known: set[int | None] = set()

    def keep_subprocess_alive(self) -> None:
        """Replaces those that died; before one of them has ever served, a death is the end.

        uvicorn asks each for a sign of life, and waits minutes for that of one that dies just then. Here it is enough
        that the process runs.
        """
        if self.should_exit.is_set():
            return
        for index, process in enumerate(self.processes):
            code = process.process.exitcode
            if code is None:
                continue
            if not (self._shared / _STARTED).exists():
                _note_failure(self._shared, RuntimeError(f"A worker process ended with code {code} as it started."))
                self.should_exit.set()
                return
            logger.warning("Worker process %s ended with code %s: another one takes its place", process.pid, code)
            self.processes[index] = Process(self.config, self.sockets)
            self.processes[index].start()
        running = {process.pid for process in self.processes}
        for gone in self._known - running:  # or its requests would count as under way for ever
            mark_process_dead(gone)
        self._known = running


def run_workers(config: Config, shared: Path) -> None:
    """Serves in worker processes until this one is told to stop.

    Args:
        config (`Config`): of uvicorn.
        shared (`Path`): a folder that they share, in which prometheus_client has its files too.

    Raises:
        ValueError: no worker could be started; the message says why.
        OSError: likewise, where something could not be read.
    """
    Workers(config, [config.bind_socket()], shared).run()
    failed = shared / _FAILED
    if failed.exists():
        told = json.loads(failed.read_text(encoding="utf-8"))
        raise (OSError if told["is_os_error"] else ValueError)(told["said"])


def started(make: Callable[[], Made], shared: Path) -> Made:
    """What a worker process makes as it starts; where that fails the process ends.

    Args:
        make (`Callable`): that makes it.
        shared (`Path`): the folder that the workers share.
    """
    try:
        made = make()
    except Exception as error:
        if not (shared / _STARTED).exists():
            _note_failure(shared, error)
            sys.exit(STARTUP_FAILURE)
        # Others serve, and what failed may be the network: it must not end them.
        logger.error("A worker process cannot start and is tried again: %s: %s", type(error).__name__, error)
        time.sleep(_PAUSE)
        sys.exit(1)
    (shared / _STARTED).touch()
    return made


def _note_failure(shared: Path, error: Exception) -> None:
    """Keeps the first reason, for the process that started the workers."""
    said = str(error) or type(error).__name__
    try:
        with (shared / _FAILED).open("x", encoding="utf-8") as file:
            json.dump({"is_os_error": isinstance(error, OSError), "said": said}, file)
    except FileExistsError:
        pass
