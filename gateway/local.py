"""Experts on this machine: they take turns, each answer is made in a thread, and a client that leaves stops it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

from ir3de.experts_ir3de import ExpertPool
from ir3de.images_ir3de import BadImage, Picture, check_pictures, has_images, pictures_in
from ir3de.local_sources_ir3de import LocalSource
from ir3de.specs_ir3de import ExpertSpec, is_remote

from . import guided
from .capabilities import Capabilities
from .chats import bad_image
from .errors import TOO_LONG, GatewayError, wrong
from .forward import ExpertFailed, Headers
from .generation import Piece, can_call_tools
from .limits import Limits
from .metrics import Metrics
from .orders import Order, read_order
from .requests import Ask
from .shapes import ChatShape, shape_of

logger = logging.getLogger(__name__)

_DECODED_AT_ONCE = 2  # requests whose images are checked; each takes memory for all of its pixels
Generate = Callable[[ExpertPool, str, Order, int, float], Iterator[Piece]]
_Next = Piece | Exception | None


class LocalExpert:
    """
    An expert on this machine, or one behind a server of plain text, which is asked from a thread likewise.

    Args:
        name (`str`): of the expert.
        pool ([`ExpertPool`]): that loads it.
    """

    base = "here"
    is_here = True

    def __init__(self, name: str, pool: ExpertPool) -> None:
        self.name = name
        self.pool = pool
        here = not is_remote(pool.spec(name))  # else it is a server that continues text, and no more
        spec = pool.spec(name)
        can = {"tool_choice": False, "json": here and guided.AVAILABLE, "logprobs": here}
        can |= {} if here else {"tools": False}
        can |= {} if here and "adapter" not in spec else {"images": False}
        self.capabilities = Capabilities.of_spec({**can, **spec})

    def learn(self) -> None:
        """Reads from the files of its model what else it can do, without its weights.

        Raises:
            Exception: whatever keeps these files from being read.
        """
        if is_remote(self.pool.spec(self.name)):
            return
        source = self.pool.source(self.name)
        known = {"context": source.window, "tools": can_call_tools(source), "images": source.sees}
        self.capabilities = self.capabilities.completed(known)


class LocalReply:
    """
    An answer that is being made on this machine.

    Args:
        expert ([`LocalExpert`]): that makes it.
        shape ([`ChatShape`]): of its API.
        stream (`bool`): whether it goes to the client piece by piece.
    """

    status = 200
    is_coded = False

    def __init__(self, expert: LocalExpert, shape: ChatShape, stream: bool) -> None:
        self._expert = expert
        self._shape = shape
        self._closed = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[_Next] = asyncio.Queue()
        kind = b"text/event-stream" if stream else b"application/json"
        self.headers: Headers = [(b"content-type", kind)]
        if stream:
            self.headers.append((b"cache-control", b"no-cache"))
        self.is_events = stream
        self.first = b""
        self.complete = False
        self._read = 0  # tokens of the prompt
        self._made: dict[int, int] = {}  # tokens of each answer

    def work(self, generate: Generate, order: Order, limits: Limits) -> None:
        """Generates, in a thread, until the answer is complete or nobody reads it."""
        try:
            if not self._closed.is_set():
                pool, name = self._expert.pool, self._expert.name
                most = _checked(self._expert, order, limits)
                with closing(generate(pool, name, order, most, limits.seconds)) as made:  # type: ignore[type-var]
                    for piece in made:
                        self._count(piece)
                        if self._closed.is_set():
                            return
                        self._put(piece)
            self._put(None)
        except Exception as error:
            self._put(error)

    @property
    def counted(self) -> tuple[int, int]:
        """Tokens of the prompt, and those made so far."""
        return self._read, sum(self._made.copy().values())

    def _count(self, piece: Piece) -> None:
        self._read = max(self._read, piece.prompt_tokens)
        self._made[piece.choice] = max(self._made.get(piece.choice, 0), piece.completion_tokens)

    def _put(self, piece: _Next) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def begin(self) -> None:
        """Waits for the first piece, or of an answer in one piece for all of it."""
        if self.is_events:
            first = await self._next()
            assert first is not None  # there is always an end
            events = [*self._shape.begin(), *self._shape.event(first)]
            self.first = b"".join(map(self._shape.text, events))
            return
        made = []
        while (piece := await self._next()) is not None:
            made.append(piece)
        self.first = json.dumps(self._shape.whole(made)).encode()
        self.complete = True

    async def read(self) -> bytes:
        """The events of the next piece; empty at the end.

        Raises:
            GatewayError: what is asked cannot be done to its end.
            ExpertFailed: the answer breaks off.
        """
        if self.complete:
            return b""
        piece = await self._next()
        if piece is not None:
            return b"".join(map(self._shape.text, self._shape.event(piece)))
        self.complete = True
        return b"".join(map(self._shape.text, self._shape.end())) + self._shape.last

    async def _next(self) -> Piece | None:
        piece = await self._pieces.get()
        if not isinstance(piece, Exception):
            return piece
        if isinstance(piece, GatewayError):
            raise piece
        # What it says may name folders of this machine, or more.
        logger.error("Expert %s failed: %s", self._expert.name, type(piece).__name__)
        raise ExpertFailed("no answer in time" if isinstance(piece, TimeoutError) else "it could not generate")

    def close(self) -> None:
        """Stops the generation."""
        self._closed.set()


class Workshop:
    """
    Where experts on this machine generate: some at once, while others wait for their turn.

    Args:
        limits ([`Limits`]): how many.
        generate (`Callable`): generates the pieces of an answer.
        metrics ([`Metrics`]): where it is shown how many wait.
    """

    def __init__(self, limits: Limits, generate: Generate, metrics: Metrics) -> None:
        self._limits = limits
        self._generate = generate
        self._metrics = metrics
        self._inside = 0
        self._turn = asyncio.Semaphore(limits.at_once)
        self._threads = ThreadPoolExecutor(limits.at_once, thread_name_prefix="ir3de-gateway")
        self._eyes = ThreadPoolExecutor(_DECODED_AT_ONCE, thread_name_prefix="ir3de-images")

    async def open(self, expert: LocalExpert, ask: Ask) -> LocalReply:
        """An answer that has begun.

        Args:
            expert ([`LocalExpert`]): that is to make it.
            ask ([`Ask`]): the request.

        Raises:
            GatewayError: the request cannot be answered here, or too many wait.
            ExpertFailed: the expert could not generate.
        """
        order = read_order(ask, self._limits)
        pictures = pictures_in(order.prompt)
        if self._inside >= self._limits.at_once + self._limits.waiting:
            message = f"{self._inside} requests are being answered or waiting already: try again in a moment."
            raise GatewayError(429, "busy", message, retry_after=1)
        self._count(1)
        try:
            if pictures:
                await self._check(pictures)
            await self._turn.acquire()
        except BaseException:
            self._count(-1)
            raise
        shape = shape_of(ask.api, expert.name, ask.body.fields)
        reply = LocalReply(expert, shape, ask.stream)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, reply.work, self._generate, order, self._limits)
        work.add_done_callback(self._leave)
        try:
            await reply.begin()
        except BaseException:
            reply.close()
            raise
        return reply

    async def _check(self, pictures: list[Picture]) -> None:
        """Decodes the images of a request once, apart from the loop, so that a broken one takes nobody's turn. Their
        pixels are not kept while the request waits.

        Raises:
            GatewayError: one is broken, too large or too many.
        """
        limits, loop = self._limits, asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._eyes, check_pictures, pictures, limits.images, limits.pixels)
        except BadImage as error:
            raise bad_image(error) from None

    def _leave(self, _: Any) -> None:
        """Lets the next request in, whatever became of this one."""
        self._count(-1)
        self._turn.release()

    def _count(self, change: int) -> None:
        self._inside += change
        self._metrics.inside_here(self._inside)


def _checked(expert: LocalExpert, order: Order, limits: Limits) -> int:
    """Checks what of a request only its expert knows, before it generates. What is raised here of the request is the
    client's fault; what is raised later is the expert's, and counts as its failure.

    Returns:
        `int`: tokens that the answer may have: those that are asked for, or as many as usual and fit.

    Raises:
        GatewayError: the expert cannot answer this request.
        Exception: whatever keeps the expert from being read.
    """
    spec = expert.pool.spec(expert.name)
    usual = spec.get("generation", {}).get("max_new_tokens", limits.default_tokens)
    source = None if is_remote(spec) else expert.pool.source(expert.name)
    if has_images(order.prompt) and not (source and source.sees):
        raise _cannot(order, f"Expert {expert.name!r} reads no images: its model is one of text.")
    if source is None:
        return order.max_tokens or usual
    if order.tools and not can_call_tools(source):
        raise _cannot(order, f"Expert {expert.name!r} calls no tools: its tokenizer has no template for them.", "tools")
    _check_bias(source, order)
    length = _length(source, spec, order)
    asked = order.max_tokens
    if length + (asked or 1) > source.window:
        message = f"The conversation has {length:,} tokens for expert {expert.name!r}"
        message += f", and {asked:,} new ones are asked for" if asked else ""
        message += f"; its window holds {source.window:,}: shorten it{' or ask for less' if asked else ''}."
        raise _cannot(order, message, code=TOO_LONG)
    return asked if asked is not None else min(usual, source.window - length)


def _cannot(order: Order, message: str, field: str | None = None, code: str = "unsupported_value") -> GatewayError:
    """The refusal of what one expert cannot do; by default it is about the conversation."""
    return GatewayError(400, code, message, field or order.field, elsewhere=True)


def _check_bias(source: LocalSource, order: Order) -> None:
    """Raises GatewayError where a bias is that of a token which the model does not have."""
    vocabulary = getattr(source.config.get_text_config(decoder=True), "vocab_size", None)
    for [token], _ in order.options.get("sequence_bias", ()):
        if vocabulary is not None and token >= vocabulary:
            raise wrong("logit_bias", f"may hold the ids of the expert's {vocabulary:,} tokens", token)


def _length(source: LocalSource, spec: ExpertSpec, order: Order) -> int:
    """Tokens of the prompt, those of its images included.

    Raises:
        GatewayError: template, tokenizer or processor refuse it, as some processors do with very narrow images.
        Exception: they refuse whatever is said.
    """
    try:
        return source.length(spec, order.prompt, order.tools)
    except MemoryError:
        raise
    except Exception as error:
        try:
            source.length(spec, [{"role": "user", "content": "Hello"}])
        except Exception:
            raise error from None
        raise _refused(order, error) from error


def _refused(order: Order, error: Exception) -> GatewayError:
    """What to say of a conversation that the expert's files refuse, though they read others."""
    for field, value in ((order.field, order.prompt), ("tools", order.tools)):
        what = f"The conversation (`{field}`)" if field == order.field else f"`{field}`"
        try:
            json.dumps(value, default=str, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            message = f"{what} has half a character in it, such as one of the pair \\ud83d\\ude00: send whole ones."
            return GatewayError(400, "invalid_value", message, field)
        except RecursionError:
            return GatewayError(400, "invalid_value", f"{what} is nested too deeply to be read.", field)
    if has_images(order.prompt):
        message = f"The expert's processor refuses this conversation or its images ({type(error).__name__})."
        return _cannot(order, message, code="invalid_image")
    said = f": {str(error)[:200]}" if type(error).__name__ == "TemplateError" else f" ({type(error).__name__})"
    return _cannot(order, f"The expert's chat template or tokenizer refuses this conversation{said}.")
