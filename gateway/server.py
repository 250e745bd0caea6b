"""Serving: one worker process or several, each with the router and connections of its own."""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import uvicorn
from starlette.applications import Starlette

import ir3de
from ir3de.scripts.data.rows import Row, read_file
from ir3de.traffic.budget import Budget, Spending

from .app import application
from .conversations import prepare_shared
from .forward import RemoteExpert
from .gateway import Gateway
from .guard import GuardedProtocol, room_for_connections
from .keys import Key, read_keys
from .limits import Limits, Timeouts
from .loading import Origin
from .serving import prepare_in_background, served
from .settings import Settings
from .trial import try_routes
from .watch import Watch, Watched, first_revision
from .workers import run_workers, started

if TYPE_CHECKING:
    from .feedback import Keeping
    from .learning import Learning
    from .tracing import Tracing

_KEYS_VARIABLE = "IR3DE_KEYS"  # keys, where no file of them is named
_KEEP_ALIVE = 75  # seconds that an idle connection stays: longer than clients and nginx send requests on theirs
_SOME_TIME = (0.001, 1e9)  # seconds
_RANGES = {  # that the numbers of a service and of its limits must be in, least and most
    "workers": (1, math.inf),
    "port": (1, 65535),
    "watch": _SOME_TIME,
    "feedback_days": (0.001, 1e6),
    "implicit": (0, 1),
    "body": (1, math.inf),
    "messages": (1, math.inf),
    "tools": (0, math.inf),
    "max_tokens": (1, math.inf),
    "at_once": (1, math.inf),
    "waiting": (0, math.inf),
    "images": (0, math.inf),
    "pixels": (1, math.inf),
    **dict.fromkeys(Timeouts._fields, _SOME_TIME),
}


class Service(NamedTuple):
    """
    What is served, and how; of plain values, which travel to worker processes.

    Args:
        router (`str`): folder or Hub id.
        revision (`str`, *optional*): of the router on the Hub.
        second_opinion (`bool`): ask the router's second opinion where it is unsure.
        min_score (`float`, *optional*): instead of the router's own.
        fallback (`str`, *optional*): an expert, likewise.
        explore_loss (`float`, *optional*): likewise.
        preload (`bool`): load experts on this machine before they are asked.
        host, port: where to listen.
        workers (`int`): processes.
        limits (`dict`): fields of [`Limits`].
        timeouts (`dict`): fields of [`Timeouts`].
        details (`bool`): the route in every answer.
        default_expert (`str`, *optional*): who gets what is not routed.
        keys (`str`, *optional*): a file of keys.
        cors (`list[str]`): origins of web pages that may use it.
        wrappers (`list[str]`): further blocks that hold none of a person's words.
        watch (`float`, *optional*): seconds between two looks for a new router.
        samples (`str`, *optional*): JSON Lines that a new router is tried on.
        store (`str`, *optional*): a file of SQLite, or the address of a database, where answers and scores are kept.
        replica (`str`, *optional*): the name of this server in the store.
        keep_text (`str`, *optional*): a file for the text of requests.
        exchange (`str`, *optional*): the repository on the Hub where servers exchange outcomes.
        every (`float`): seconds between two rounds of exchange.
        budget (`str`, *optional*): what answers may cost in a period, as in `20/day`, instead of the router's own, or
            `none`; each worker has an even share.
        budget_end (`str`, *optional*): who answers once it is spent, likewise.
        feedback_days (`float`): that scores are taken for an answer.
        implicit (`float`): what signs count for that nobody gave as a score, of an outcome.
        log (`bool`): a line a request.
        shared (`str`): a folder that the workers share.
    """

    router: str
    revision: str | None = None
    second_opinion: bool = False
    min_score: float | None = None
    fallback: str | None = None
    explore_loss: float | None = None
    preload: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    limits: dict[str, Any] = {}  # noqa: RUF012
    timeouts: dict[str, Any] = {}  # noqa: RUF012
    details: bool = False
    default_expert: str | None = None
    keys: str | None = None
    cors: list[str] = []  # noqa: RUF012
    wrappers: list[str] = []  # noqa: RUF012
    watch: float | None = None
    samples: str | None = None
    store: str | None = None
    replica: str | None = None
    keep_text: str | None = None
    exchange: str | None = None
    every: float = 900.0
    budget: str | None = None
    budget_end: str | None = None
    feedback_days: float = 30.0
    implicit: float = 0.0
    log: bool = True
    shared: str = ""

    @property
    def revisions(self) -> Path | None:
        """The file in which its workers tell each other what is not to be served."""
        return Path(self.shared) / "revisions" if self.shared else None

    def settings(self) -> Settings:
        """The settings of its gateway.

        Raises:
            ValueError: the keys are malformed, or where they should be there is none.
            OSError: their file cannot be read.
        """
        return Settings(
            limits=Limits(**self.limits),
            timeouts=Timeouts(**self.timeouts),
            details=self.details,
            default_expert=self.default_expert,
            preload=self.preload,
            keys=tuple(self._read_keys()),
            shared=Path(self.shared) if self.shared else None,
            cors=tuple(self.cors),
            more_wrappers=tuple(self.wrappers),
        )

    def _read_keys(self) -> list[Key]:
        if self.keys is not None:
            return read_keys(Path(self.keys).read_text(encoding="utf-8"), self.keys)
        if _KEYS_VARIABLE in os.environ:
            return read_keys(os.environ[_KEYS_VARIABLE], f"The variable {_KEYS_VARIABLE}")
        return []

    def labelled(self) -> list[Row]:
        """The labelled prompts that a new router is tried on instead of its own.

        Raises:
            ValueError: they are malformed, or no new router is looked for.
            OSError: they cannot be read.
        """
        if self.samples is None:
            return []
        if self.watch is None:
            raise ValueError("`--samples` is what a new router is tried on: it needs `--watch`, which looks for one.")
        return list(read_file(self.samples))

    def _check_numbers(self) -> None:
        for name, value in {**self._asdict(), **self.limits, **self.timeouts}.items():
            if name not in _RANGES or value is None:
                continue
            least, most = _RANGES[name]
            if not least <= value <= most:  # as `nan` never is
                wanted = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                raise ValueError(f"`--{name.replace('_', '-')}` must be {wanted}, got {value:g}.")

    def spending(self, keeping: Keeping | None = None, of_router: Mapping[str, Any] | None = None) -> Spending | None:
        """What holds its gateway to a budget, if it has one.

        Args:
            keeping ([`Keeping`], *optional*): the store that knows what was spent before.
            of_router (`dict`, *optional*): the budget of the router's config, where no other is asked for.

        Raises:
            ValueError: the budget is malformed.
        """
        if self.budget == "none" or (self.budget is None and of_router is None):
            return None
        budget = Budget(**(of_router or {})) if self.budget is None else Budget.read(self.budget)
        if self.budget_end is not None:
            budget = Budget.read(f"{budget.cost!r}/{budget.per}", self.budget_end)
        before = None if keeping is None else partial(_spent, keeping)
        return Spending(budget, before, self.workers)

    def keeping(self) -> Keeping | None:
        """The store of its gateway, opened, if it has one.

        Raises:
            ValueError: it is no store, or one of another version.
            OSError: store or file cannot be opened.
        """
        if self.store is None:
            if self.keep_text or self.implicit or self.replica or self.exchange:
                raise ValueError("`--keep-text`, `--implicit`, `--replica` and `--exchange` need a `--store`.")
            return None
        from ir3de.traffic.store import Store
        from ir3de.traffic.texts import Texts

        from .feedback import Keeping

        store = Store(self.store, self.replica, self.feedback_days)
        return Keeping(store, Texts(self.keep_text) if self.keep_text else None, self.implicit)

    def check(self) -> None:
        """Looks at what can be told before the router is loaded.

        Raises:
            ValueError: keys, budget, samples, a number or the variables that ask for spans are malformed, or the store
                is none.
            OSError: keys, samples or store cannot be read.
            ImportError: the environment asks for spans, and their packages are missing.
        """
        self._check_numbers()
        self.settings()
        self.labelled()
        self.spending()
        if keeping := self.keeping():
            keeping.store.close()
        if traced := tracing():
            traced.close()
        if self.workers > 1 and self.implicit:
            logging.getLogger(__name__).warning(
                "--implicit with --workers %d: each worker process compares a request with those alone that came to"
                " itself, so most signs are missed where a conversation goes from one worker to another.",
                self.workers,
            )


def run(service: Service) -> None:
    """Serves until the process is told to stop; requests that have begun are answered first.

    Args:
        service ([`Service`]): what is served, and was checked.

    Raises:
        ValueError: the router is malformed, or a copy of the store is served already.
        OSError: it cannot be read.
    """
    keeping = service.keeping()
    if keeping is None:
        _listen(service)
        return
    from ir3de.traffic.marks import marked

    keeping.store.close()
    with marked(keeping.store):
        _listen(service)


def _listen(service: Service) -> None:
    """Answers requests, in this process or in workers."""
    if service.workers == 1:
        uvicorn.run(_of_this_process(service), **_options(service))
        return
    with tempfile.TemporaryDirectory(prefix="ir3de-workers-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        prepare_shared(Path(folder) / "conversations")
        service = service._replace(shared=folder)
        listening = uvicorn.Config("", **_options(service)).bind_socket()
        run_workers(partial(_work, service, listening), service.workers, Path(folder))


def _work(service: Service, listening: socket) -> None:
    """Answers requests in a worker process."""
    made = started(partial(_of_this_process, service), Path(service.shared))
    uvicorn.Server(uvicorn.Config(made, **_options(service))).run([listening])


def _options(service: Service) -> dict[str, Any]:
    """What uvicorn is told."""
    options: dict[str, Any] = {"host": service.host, "port": service.port, "log_level": "warning"}
    options |= {"http": GuardedProtocol, "limit_concurrency": room_for_connections(), "access_log": False}
    options |= {"timeout_keep_alive": _KEEP_ALIVE}
    return options | {"backlog": 2048, "server_header": False, "proxy_headers": False}


def _of_this_process(service: Service) -> Starlette:
    """The application, with all that is loaded for it taken out of the search for garbage, which would walk through it
    again every few requests. A router whose place another one takes is freed all the same: nothing of it refers back.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a few prompts are too small a task to share
    made = make_application(service)
    gc.collect()
    gc.freeze()
    return made


def make_application(service: Service) -> Starlette:
    """Loads the router and makes the application.

    Args:
        service ([`Service`]): what is served.

    Raises:
        ValueError: the router or the keys are malformed.
        OSError: they cannot be read.
    """
    ir3de.register()
    settings = service.settings()
    if service.log:
        _log_requests()
    origin = Origin(
        service.router,
        service.revision,
        service.second_opinion,
        service.min_score,
        service.fallback,
        service.explore_loss,
    )
    revision = "" if service.watch is None else first_revision(origin, service.revisions)
    serving = served(origin.load(revision or None), revision)
    if not serving.experts:
        logging.getLogger(__name__).warning(
            "No expert of %s can answer, so routes are told and all other requests are refused (422): say where one"
            " is with `ir3de experts ROUTER --set NAME model=...` (or `endpoint=...`).",
            service.router,
        )
    try_routes(serving.router)  # makes the tables that routes are looked up in, before the first request
    expert = settings.default_expert
    if expert is not None and not isinstance(serving.experts.get(expert), RemoteExpert):
        raise ValueError(f"The default expert {expert!r} is no expert of this router behind a server.")
    if all(isinstance(expert, RemoteExpert) for expert in serving.experts.values()):
        torch.set_num_threads(1)  # a route is too small a task to share
    prepare_in_background(serving, settings.preload)
    keeping = service.keeping()
    spending = service.spending(keeping, serving.router.model.config.budget)
    panel = serving.router.model.panel
    if spending is not None and (missing := panel.lacking(panel.unpriced)):
        raise ValueError(
            "A budget needs a `cost` in the spec of every expert that answers, or outcomes that tell it;"
            f" {missing} have none."
        )
    gateway = Gateway(serving, settings, keeping=keeping, spending=spending, tracing=tracing())
    learning = _learning(service, gateway)
    return application(gateway, _watch(service, origin, gateway, learning), learning)


def tracing() -> Tracing | None:
    """What makes spans, if OpenTelemetry's environment variables ask for them; else its packages are not needed.

    Raises:
        ValueError: a variable asks for what there is not.
        ImportError: the packages are missing.
    """
    variables = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get(variables[0]) == "none"
    if off or not any(map(os.environ.get, variables)):
        return None
    try:
        from .tracing import Tracing
    except ImportError as error:
        message = (
            f'Spans are asked for by the environment and need further packages ({error}): `pip install "ir3de[otel]"`.'
        )
        raise ImportError(message) from error
    return Tracing()


def _spent(keeping: Keeping, since: float) -> float:
    """What a store knows to have been spent."""
    try:
        return keeping.store.spent(since)
    except OSError as error:
        logging.getLogger(__name__).warning("What was spent before is not known: %s", error)
        return 0.0


def _learning(service: Service, gateway: Gateway) -> Learning | None:
    if service.exchange is None:
        return None
    from ir3de.traffic.repository import Repository

    from .learning import Learning

    return Learning(gateway, Repository(service.exchange), service.every)


def _watch(service: Service, origin: Origin, gateway: Gateway, learning: Learning | None) -> Watch | None:
    if service.watch is None:
        return None

    def load(revision: str) -> Any:
        """Loads a revision; what was exchanged is not in it."""
        router = origin.load(revision)
        return learning.taught(router) if learning else router

    recall = None if origin.is_folder else load
    watched = Watched(origin.current, load, service.watch, service.labelled(), recall=recall)
    return Watch(gateway, watched._replace(revisions=service.revisions))


def _log_requests() -> None:
    """A line of JSON a request on standard error."""
    logger = logging.getLogger("ir3de.requests")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # What a line says nothing of, and what takes as long to find as all the rest of it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
