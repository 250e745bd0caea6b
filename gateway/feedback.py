"""What answers were worth: they are kept in a store as they go out, and whoever has one says how good it was."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from ir3de.outcome_rows_ir3de import LARGEST
from ir3de.outcomes_ir3de import ONE
from ir3de.specs_ir3de import ExpertSpec
from ir3de.traffic.errors import Conflict, Expired, NoAnswer, NotScored, StoreUnavailable, Unknown
from ir3de.traffic.removal import FIELDS, Which, take_back
from ir3de.traffic.signals import Seen, Turns, Watcher
from ir3de.traffic.store import Answer, Given, Signal, Store
from ir3de.traffic.texts import Texts
from ir3de.traffic.writer import After, Work, Writer

from .body import Body
from .errors import GatewayError, short, wrong
from .exchange import Exchange
from .keys import Keys
from .limits import Limits
from .metrics import Metrics
from .reading import read_body
from .requests import Ask
from .serving import Serving

logger = logging.getLogger(__name__)

_WORDS = {"good": 1.0, "bad": 0.0}
_FIELDS = ("id", "score", "comment", "cost", "seconds")
_LONGEST = {"id": 200, "comment": 10_000, "Idempotency-Key": 256}
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what databases do not take: NUL, and halves of characters
_ON_ITS_WAY = 0.3  # seconds that an answer may need to the store, from another process say
_STATUS: dict[type[NotScored], tuple[int, str]] = {
    Unknown: (404, "answer_not_found"),
    Expired: (410, "answer_expired"),
    NoAnswer: (409, "nothing_to_score"),
    Conflict: (409, "idempotency_conflict"),
}


class Keeping(NamedTuple):
    """
    What is kept, and where.

    Args:
        store ([`Store`]): of answers and scores.
        texts ([`Texts`], *optional*): where the text of requests and comments goes.
        implicit (`float`, *optional*): what signs count for that nobody gave as a score, of an outcome.
    """

    store: Store
    texts: Texts | None = None
    implicit: float = 0.0


class Traffic:
    """
    Keeps answers and scores.

    Args:
        keeping ([`Keeping`]): what and where.
        metrics ([`Metrics`]): where it is counted.
        keys ([`Keys`]): of the callers.
    """

    def __init__(self, keeping: Keeping, metrics: Metrics, keys: Keys) -> None:
        self.store, self.texts = keeping.store, keeping.texts
        self._units = round(keeping.implicit * ONE)
        self._watcher = Watcher() if self._units else None
        self._metrics = metrics
        self._keys = keys
        self._writer = Writer(keeping.store, metrics.lost)
        self._text_failed = False

    def came(self, exchange: Exchange, ask: Ask, headers: Mapping[str, str]) -> None:
        """Looks what a request says of the answer before it."""
        if self._watcher is None:
            return
        exchange.turns = turns_of(ask, exchange.caller, headers)
        seen = self._watcher.seen(exchange.turns)
        if seen is not None:
            kind, answer = seen
            sign = Signal(kind, *answer, self._units, time.time())
            with suppress(StoreUnavailable):
                self._writer.do(lambda connection: self.store.add_signal(connection, sign))

    def went(self, exchange: Exchange, serving: Serving) -> None:
        """Keeps what became of a request that was routed."""
        if not exchange.routed:
            return
        spec = serving.router.experts.spec(exchange.expert) if exchange.expert in serving.experts else None
        answer = answer_of(exchange, self._keys.hash_of(exchange.caller), spec)
        kept = self._writer.keep(answer, lambda _: self._keep_text(answer, exchange.said))
        self._metrics.waits(self._writer.waiting)
        if kept is None:
            return
        if self._watcher is not None and exchange.turns is not None and answer.expert:
            self._watcher.answered(exchange.turns, Seen(answer.request_id, answer.uid))

    async def do(self, work: Work, after: After | None = None) -> Any:
        """The result of work on the store, once it is committed.

        Args:
            work (`Callable`): writes with the connection that it is given.
            after (`Callable`, *optional*): called with the result then.

        Raises:
            GatewayError: the store cannot be written to now.
            NotScored: raised by the work.
        """
        try:
            future = self._writer.do(work, after)
            self._metrics.waits(self._writer.waiting)
            return await asyncio.wrap_future(future)
        except StoreUnavailable as error:
            message = f"The store cannot be written to: {error}. Nothing was kept; send it again later."
            raise GatewayError(503, "store_unavailable", message, retry_after=5) from None

    async def score(self, given: Given, comment: str = "") -> Any:
        """Takes a score; the answer's row.

        Args:
            given ([`Given`]): the score.
            comment (`str`): kept where text is.

        Raises:
            GatewayError: the store cannot be written to now.
            NotScored: the score is not taken.
        """

        def after(answer: Any) -> None:
            """Keeps the comment."""
            self._write_down(answer, time=time.time(), comment=comment)

        for last in (False, True):
            try:
                return await self.do(lambda connection: self.store.score(connection, given), after if comment else None)
            except Unknown:
                if last:
                    raise
                await asyncio.sleep(_ON_ITS_WAY)
        raise AssertionError("unreachable")

    async def take_back(self, which: Which) -> int:
        """Removes answers with all that was said of them, their text too; how many."""

        def work(connection: Any) -> int:
            """Removes them, and counts."""
            return len(take_back(connection, which, self.texts))

        removed: int = await self.do(work)
        if removed:
            await asyncio.to_thread(self.store.wipe)
        return removed

    def close(self) -> None:
        """Writes what waits, and closes the store."""
        self._writer.close()
        self.store.close()

    def _keep_text(self, answer: Answer, said: str) -> None:
        """Keeps the text of a request."""
        self._write_down(answer, id=answer.request_id, time=answer.time, expert=answer.expert, text=said)

    def _write_down(self, answer: Any, **row: Any) -> None:
        """Adds to the file of texts what belongs to an answer that is committed, unless it was taken back meanwhile."""
        if self.texts is None:
            return
        try:
            with self.store.writing() as connection:  # so that nobody takes it back between
                if self.store.has(connection, answer.request_id, answer.uid):
                    self.texts.add(uid=answer.uid, **row)
            self._text_failed = False
        except OSError as error:
            if not self._text_failed:
                logger.error("No text can be kept in %s: %s.", self.texts.path, error.strerror or error)
            self._text_failed = True


def answer_of(exchange: Exchange, caller: str, spec: ExpertSpec | None) -> Answer:
    """What is kept of an answer.

    Args:
        exchange ([`Exchange`]): that is done with.
        caller (`str`): a hash of its key.
        spec (`dict`, *optional*): of the expert, whose price it may name.
    """
    read, written = exchange.prompt_tokens, exchange.completion_tokens
    return Answer(
        uid=uuid.uuid4().hex,
        request_id=exchange.id,
        answer_id=exchange.answer or None,
        time=time.time(),
        caller=caller,
        expert=exchange.expert,
        status=exchange.outcome,
        recognised=exchange.recognised,
        tokens=read + written or None,
        cost=exchange.cost(spec),
        seconds=round(exchange.seconds, 6),
    )


def turns_of(ask: Ask, caller: str, headers: Mapping[str, str]) -> Turns:
    """A conversation as signs are looked for in it."""
    fields = ask.body.fields
    metadata = fields.get("metadata")
    person = [fields.get("user"), metadata.get("user_id") if isinstance(metadata, dict) else None]
    person += [caller, headers.get("x-session-id")]
    after: list[Any] = []
    for role, content in ask.api.turns(fields):
        if role == "user":
            after = []
        elif role == "tool":
            after.append(content)
    return Turns(json.dumps(person) if any(person) else "", ask.said, after)


class FeedbackPages:
    """
    The addresses under `/v1/feedback`.

    Args:
        traffic ([`Traffic`]): that scores go to.
        keys ([`Keys`]): of the callers.
        limits ([`Limits`]): of a request.
        metrics ([`Metrics`]): where it is counted.
    """

    def __init__(self, traffic: Traffic, keys: Keys, limits: Limits, metrics: Metrics) -> None:
        self._traffic = traffic
        self._keys = keys
        self._limits = limits
        self._metrics = metrics

    async def give(self, request: Request) -> Response:
        """Takes a score."""
        try:
            caller = self._keys.admit(request.headers)
            body = Body(await read_body(request.receive, request.headers, self._limits))
            given, comment = read_given(body.fields, request.headers.get("idempotency-key"))
            is_admin = self._keys.is_admin(caller)
            if caller and not is_admin and (given.cost, given.seconds) != (None, None):
                # A single large number would make an expert look dear, or slow, to all.
                message = "Cost and seconds are measured here; only an admin's key may say otherwise."
                raise GatewayError(403, "forbidden", message, "cost" if given.seconds is None else "seconds")
            given = given._replace(caller=self._keys.hash_of(caller), any_caller=is_admin)
            answer = await self._traffic.score(given, comment)
        except (GatewayError, NotScored) as error:
            raise self._refused(error) from None
        self._metrics.gave("ok")
        shown = {"object": "feedback", "id": given.id, "expert": answer.expert, "score": given.score}
        if comment:
            shown["comment_kept"] = self._traffic.texts is not None
        return Response(json.dumps(shown), media_type="application/json")

    async def take_back(self, request: Request) -> Response:
        """Removes an answer of the caller's, with all that was said of it."""
        caller = self._keys.admit(request.headers)
        id_ = request.path_params["id"]
        key = None if self._keys.is_admin(caller) else self._keys.hash_of(caller)
        removed = await self._traffic.take_back(Which(id=id_, key=key))
        if not removed:
            raise self._refused(Unknown("There is no such answer here; answers of other keys cannot be removed."))
        return _removed(removed)

    async def take_many_back(self, request: Request) -> Response:
        """Removes answers of a key, of a server or of a time; for admins."""
        self._keys.check_admin(request.headers)
        said = dict(request.query_params)
        if not said or not said.keys() <= set(FIELDS):
            raise GatewayError(400, "invalid_value", f"Say in the query which, by {', '.join(FIELDS)}.")
        if "key" in said:
            said["key"] = self._keys.hash_of(said["key"]) or said["key"]
        try:
            which = Which.of(said)
        except ValueError as error:
            raise GatewayError(400, "invalid_value", str(error)) from None
        return _removed(await self._traffic.take_back(which))

    def _refused(self, error: GatewayError | NotScored) -> GatewayError:
        """An error as the client is told of it, counted."""
        if isinstance(error, NotScored):
            status, code = _STATUS[type(error)]
            error = GatewayError(status, code, str(error), "id")
        self._metrics.gave("unavailable" if error.status == 503 else "refused")
        return error


def _removed(number: int) -> Response:
    return Response(json.dumps({"object": "feedback.removed", "answers": number}), media_type="application/json")


def read_given(fields: dict[str, Any], key: str | None) -> tuple[Given, str]:
    """A score from a request's body, and the comment.

    Args:
        fields (`dict`): of the body.
        key (`str`, *optional*): the header `Idempotency-Key`.

    Raises:
        GatewayError: a field is missing or malformed.
    """
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        message = f"Feedback has {', '.join(_FIELDS)}; got {short(unknown[0])}."
        raise GatewayError(400, "invalid_value", message, unknown[0][:60])
    texts = {"id": fields.get("id"), "comment": fields.get("comment") or "", "Idempotency-Key": key or "-"}
    for name, text in texts.items():
        if not isinstance(text, str) or len(text) > _LONGEST[name] or _NO_TEXT.search(text):
            raise wrong(name, f"must be a text of at most {_LONGEST[name]:,} characters", text)
    if not texts["id"]:
        raise wrong("id", "must be the id of an answer or of its request", fields.get("id"))
    score: Any = fields.get("score")
    score = _WORDS.get(score, score) if isinstance(score, str) else score
    if not _is_number(score, 1):
        raise wrong("score", 'must be a number from 0 to 1, "good" or "bad"', fields.get("score"))
    cost, seconds = _amount(fields, "cost"), _amount(fields, "seconds")
    return Given(str(texts["id"]), float(score), key=key or None, cost=cost, seconds=seconds), str(texts["comment"])


def _amount(fields: dict[str, Any], name: str) -> float | None:
    if fields.get(name) is None:
        return None
    if not _is_number(fields[name], LARGEST):
        raise wrong(name, f"must be a number from 0 to {LARGEST:,}", fields[name])
    return float(fields[name])


def _is_number(value: Any, most: float) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and not math.isnan(value) and 0 <= value <= most
