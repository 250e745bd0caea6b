"""An OpenAI-compatible endpoint in front of a routing pipeline: an ASGI application that needs Starlette alone."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .completions import ROUTER, Answer, Completion, Limits, RequestError, no_model, read_completion

logger = logging.getLogger(__name__)

Stream = Callable[..., Iterator[dict[str, Any]]]
Events = AsyncGenerator[dict[str, Any], None]


def endpoint(router: Any, limits: Limits | None = None, stream: Stream | None = None) -> Starlette:
    """Makes the application; mount it under `/v1`.

    Args:
        router ([`IR3DERoutingPipeline`]): that routes and answers.
        limits ([`Limits`], *optional*): what a request may take.
        stream (`Callable`, *optional*): stands in for `router.stream`.
    """
    server = _Endpoint(router, limits or Limits(), stream or router.stream)
    routes = [
        Route("/models", server.models),
        Route("/models/{name}", server.model),
        Route("/chat/completions", server.complete, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refuse, RequestError: _refuse})


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        message = f"{error.detail}: {request.method} is not answered at this address."
        error = RequestError(error.status_code, "not_found" if error.status_code == 404 else "refused", message)
    assert isinstance(error, RequestError)
    headers = {429: {"retry-after": "1"}, 413: {"connection": "close"}}.get(error.status)
    return JSONResponse(error.body, error.status, headers)


class _Endpoint:
    """
    The handlers. At most `limits.at_once` answers are made at a time, each in a thread; others wait, and are forgotten
    when their client leaves.
    """

    def __init__(self, router: Any, limits: Limits, stream: Stream) -> None:
        self._router = router
        self._limits = limits
        self._stream = stream
        self._started = int(time.time())
        self._inside = 0
        self._turn = asyncio.Semaphore(limits.at_once)
        self._threads = ThreadPoolExecutor(limits.at_once, thread_name_prefix="ir3de-endpoint")

    def _experts(self) -> list[str]:
        return [name for name in self._router.model.config.expert_names if self._router.experts.can_answer(name)]

    def _describe(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": ROUTER}

    async def models(self, _: Request) -> Response:
        """Lists the router and its experts."""
        return JSONResponse({"object": "list", "data": [self._describe(name) for name in (ROUTER, *self._experts())]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name, known = request.path_params["name"], [ROUTER, *self._experts()]
        if name not in known:
            raise no_model(name, known)
        return JSONResponse(self._describe(name))

    async def complete(self, request: Request) -> Response:
        """Routes a conversation and answers it."""
        wanted = read_completion(await self._body(request), self._limits, self._experts())
        events = self._events(wanted)
        try:
            route, text = await _unless_gone(request, _first_text(events))
            answer = Answer(route)
            pieces = _until_stop(_texts(events, text), wanted.stop)
            if wanted.stream:
                return StreamingResponse(self._chunks(wanted, answer, pieces, events), media_type="text/event-stream")
            async with aclosing(events):
                text = await _unless_gone(request, _joined(pieces))
            return JSONResponse(answer.whole(text, *self._end(wanted, text)))
        except RequestError:
            raise
        except (ValueError, TypeError) as error:  # of the pipeline's checks, before anything was generated
            raise RequestError(400, "invalid_value", str(error)[:500]) from None
        except Exception as error:
            raise _failed(error) from None

    async def _body(self, request: Request) -> bytes:
        """The body, refused before it is read where its size is known."""
        most, body = self._limits.body, b""
        error = RequestError(413, "too_large", f"A request has at most {most:,} bytes.")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise error
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise error
        return body

    async def _events(self, wanted: Completion) -> Events:
        """Events of the pipeline's stream, which is made in a thread; closing this iterator stops the generation."""
        if self._inside >= self._limits.at_once + self._limits.waiting:
            raise RequestError(429, "busy", f"{self._inside} requests are waiting already: try again in a moment.")
        self._inside += 1
        try:
            await self._turn.acquire()
        except BaseException:
            self._inside -= 1
            raise
        loop, closed = asyncio.get_running_loop(), threading.Event()
        events: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()

        def put(event: dict[str, Any] | Exception | None) -> None:
            """Hands an event to the loop from the thread that works."""
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            """Streams the answer until it is complete or nobody reads it."""
            try:
                with closing(self._stream(wanted.messages, **wanted.options)) as stream:  # type: ignore[type-var]
                    for event in stream:
                        if closed.is_set():
                            return
                        put(event)
                put(None)
            except Exception as error:
                put(error)

        def done(_: object) -> None:
            """Lets the next request in, whatever became of this one."""
            self._inside -= 1
            self._turn.release()

        loop.run_in_executor(self._threads, work).add_done_callback(done)
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            closed.set()

    async def _chunks(
        self,
        wanted: Completion,
        answer: Answer,
        pieces: AsyncIterator[str],
        events: Events,
    ) -> AsyncIterator[str]:
        """Server-sent events of a streamed answer. An error has no status any more, so it is an event too."""
        yield _event(answer.chunk({"role": "assistant", "content": ""}))
        texts = []
        async with aclosing(events):
            try:
                async for piece in pieces:
                    texts.append(piece)
                    yield _event(answer.chunk({"content": piece}))
            except Exception as error:
                yield _event((error if isinstance(error, RequestError) else _failed(error)).body)
                return
        finish, usage = self._end(wanted, "".join(texts))
        yield _event(answer.chunk({}, finish))
        if wanted.usage:
            yield _event(answer.usage_chunk(usage))
        yield "data: [DONE]\n\n"

    def _end(self, wanted: Completion, text: str) -> tuple[str, dict[str, int]]:
        """Why an answer ended, and how many tokens it took, as the router's tokenizer counts them."""
        count = self._router.tokenizer
        prompt, answer = (
            len(count(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in ("\n".join(message["content"] for message in wanted.messages), text)
        )
        usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        return "length" if answer >= wanted.max_tokens else "stop", usage


def _failed(error: Exception) -> RequestError:
    """What a client learns of an error here: nothing, since it may name folders or more."""
    logger.error("An answer failed: %s", type(error).__name__)
    return RequestError(502, "expert_failed", "No expert answered.")


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


async def _first_text(events: Events) -> tuple[dict[str, Any], str]:
    """The route and the beginning of the answer: from then on the expert is the one that answers."""
    route: dict[str, Any] = {}
    async for event in events:
        if event["event"] == "text":
            return route, event["text"]
        route = event
    if route["expert"] is None:
        raise RequestError(422, "no_expert", "No expert scores at least `min_score` on this prompt.", "ir3de")
    if route["generated_text"] is None:
        logger.error("No expert answered: %s", ", ".join(failure["expert"] for failure in route["failures"]))
        raise RequestError(502, "expert_failed", "No expert answered.")
    return route, ""


async def _texts(events: Events, first: str) -> AsyncIterator[str]:
    """The pieces of the answer."""
    yield first
    async for event in events:
        if event["event"] == "text":
            yield event["text"]
        elif event["event"] == "route" or event["generated_text"] is None:  # the next expert would begin anew
            raise RequestError(502, "expert_failed", "The expert failed in the middle of its answer.")


async def _until_stop(pieces: AsyncIterator[str], stop: list[str]) -> AsyncIterator[str]:
    """The pieces up to a stop string, of which a beginning may be held back for a while."""
    held, keep = "", max((len(each) for each in stop), default=1) - 1
    async for piece in pieces:
        held += piece
        found = [at for each in stop if (at := held.find(each)) >= 0]
        if found:
            yield held[: min(found)]
            return
        ready = len(held) - keep
        if ready > 0:
            yield held[:ready]
            held = held[ready:]
    if held:
        yield held


async def _joined(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, which is cancelled if the client leaves first."""

    async def gone() -> None:
        """Waits until the client has left."""
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "client_left", "The client closed the connection.")
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
