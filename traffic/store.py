"""A store of what was answered and how good it was: SQLite in a file, or a database that several servers share."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import BindParameter, Connection, Row, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from ir3de.outcome_rows_ir3de import Outcome

from .errors import Conflict, Expired, NoAnswer, StoreUnavailable, Unknown
from .tables import (
    DATABASE_ERRORS,
    IDENTITY,
    LONGEST_NAME,
    WRITES,
    about,
    answers,
    feedback,
    open_engine,
    panels,
    reason,
    receipts,
    signals,
)

TAKEN_BACK = "taken back"  # the row that says so, until what was published of it is forgotten
DAYS = 30.0  # that scores are taken for an answer
SCORED = ("answered", "left")  # what became of an answer that somebody has seen, in whole or in part
_DAY = 86_400.0  # seconds


# Statements are made once: making one takes longer than running it.
_ID: BindParameter[str] = bindparam("the_id")
_UID: BindParameter[str] = bindparam("the_uid")
_CALLER: BindParameter[str] = bindparam("the_caller")
_KEY: BindParameter[str] = bindparam("the_key")
_ANSWER: BindParameter[int] = bindparam("the_answer")
_FIND = select(answers).where(or_(answers.c.request_id == _ID, answers.c.answer_id == _ID))
_FIND_ANY = _FIND.order_by(answers.c.number.desc()).limit(1)
_FIND_OWN = _FIND.where(answers.c.caller == _CALLER).order_by(answers.c.number.desc()).limit(1)
_FIND_UID = select(answers.c.number).where(answers.c.request_id == _ID, answers.c.uid == _UID).with_for_update()
_FIND_KNOWN = (
    select(answers, receipts.c.digest)
    .join(receipts, receipts.c.answer == answers.c.number)
    .where(receipts.c.caller == _CALLER, receipts.c.key == _KEY)
)
_ADD_ANSWERS = insert(answers)
_ADD_FEEDBACK, _ADD_RECEIPT, _ADD_SIGNAL = insert(feedback), insert(receipts), insert(signals)
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_DROP_FEEDBACK = delete(feedback).where(feedback.c.answer == _ANSWER)


class Answer(NamedTuple):
    """
    What is kept of an answer.

    Args:
        uid (`str`): 32 hexadecimal digits, of this answer alone.
        request_id (`str`): of its request, which the client may have chosen.
        answer_id (`str`, *optional*): that its server gave it.
        time (`float`): seconds since 1970.
        caller (`str`): a hash of the key; empty where everybody may come.
        expert (`str`): who answered; empty where nobody did.
        status (`str`): what became of it; one of `SCORED` may be scored.
        recognised (`dict[str, int]`, *optional*): units in which it counts in each domain, as [`shared`] makes them.
        tokens (`int`, *optional*): of prompt and answer.
        cost (`float`, *optional*): in the unit of the router's costs.
        seconds (`float`, *optional*): that it took.
    """

    uid: str
    request_id: str
    answer_id: str | None
    time: float
    caller: str
    expert: str
    status: str
    recognised: dict[str, int] | None
    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None


class Given(NamedTuple):
    """
    A score that is given.

    Args:
        id (`str`): of the answer, or of its request.
        score (`float`): 0 to 1.
        caller (`str`): whose it is, as in [`Answer`].
        key (`str`, *optional*): under which it is taken once.
        cost, seconds (`float`, *optional*): instead of what was measured.
        any_caller (`bool`): whether it may be another caller's answer.
    """

    id: str
    score: float
    caller: str = ""
    key: str | None = None
    cost: float | None = None
    seconds: float | None = None
    any_caller: bool = False

    @property
    def digest(self) -> str:
        """Names what is said, to compare it with what was said under the same key."""
        said = json.dumps([self.id, self.score, self.cost, self.seconds])
        return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


class Signal(NamedTuple):
    """
    A sign that an answer was of no use, which nobody gave as a score.

    Args:
        kind (`str`): what was seen.
        request_id, uid (`str`): of the answer.
        units (`int`): that it counts for, of `ONE`.
        time (`float`): seconds since 1970.
    """

    kind: str
    request_id: str
    uid: str
    units: int
    time: float


class Store:
    """
    A store, opened.

    Args:
        place (`str`): a file of SQLite, or an address such as `postgresql+psycopg://user@host/name`.
        replica (`str`, *optional*): the name of this server; by default one that was drawn when the store was made.
        days (`float`): that scores are taken for an answer.
        make (`bool`): whether the store is made where there is none yet.

    Raises:
        WrongStore: it is no store, or one of another version.
        StoreUnavailable: it cannot be opened.
    """

    def __init__(self, place: str, replica: str | None = None, days: float = DAYS, make: bool = True) -> None:
        self._engine = open_engine(place, make)
        self.place = place
        self.days = days
        with self.reading() as connection:
            drawn = connection.scalar(select(about.c.value).where(about.c.name == "replica"))
        self.replica = replica or str(drawn)
        self.identity = self._identity()
        self._panels: set[str] = set()

    @property
    def file(self) -> Path | None:
        """Its file; None of a database that several servers share."""
        url = self._engine.url
        return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes, committed at the end.

        Raises:
            StoreUnavailable: the store is full, locked, read-only or away; nothing of the transaction is kept.
            IntegrityError: another server wrote the same at the same time, likewise; done again it sees that.
        """
        try:
            with self._engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
                yield connection
        except BaseException as error:
            self._panels.clear()
            if isinstance(error, DATABASE_ERRORS) and not isinstance(error, IntegrityError):
                raise StoreUnavailable(reason(error)) from error
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads: what others write meanwhile is not seen.

        Raises:
            StoreUnavailable: the store is locked or away.
        """
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except DATABASE_ERRORS as error:
            raise StoreUnavailable(reason(error)) from error

    def wipe(self) -> None:
        """Takes what was removed out of SQLite's log of writes too, unless somebody reads just then."""
        if self._engine.dialect.name != "sqlite":
            return
        raw = self._engine.raw_connection()
        try:
            with suppress(Exception):  # busy: the log is emptied when it is next full
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[attr-defined]
        finally:
            raw.close()

    def close(self) -> None:
        """Closes its connections."""
        self._engine.dispose()

    def add_answers(self, connection: Connection, kept: Sequence[Answer]) -> None:
        """Keeps answers.

        Args:
            connection (`Connection`): that writes.
            kept (`Sequence[Answer]`): in the order in which they were given.
        """
        for answer in kept:
            if answer.recognised:
                self._add_panel(connection, tuple(answer.recognised))
        if kept:
            connection.execute(_ADD_ANSWERS, [self._row(answer) for answer in kept])

    def score(self, connection: Connection, given: Given, now: float | None = None) -> Row[Any]:
        """Takes a score; a second one for the same answer replaces the first.

        Args:
            connection (`Connection`): that writes.
            given ([`Given`]): the score.
            now (`float`, *optional*): seconds since 1970.

        Returns:
            `Row`: the answer's.

        Raises:
            NotScored: it is not taken. The store is as before.
        """
        now = time.time() if now is None else now
        if given.key is not None and (known := self._known(connection, given)) is not None:
            return known
        answer = self.find(connection, given.id, None if given.any_caller else given.caller)
        if now - answer.time > self.days * _DAY:
            raise Expired(f"This answer is older than {self.days:g} days: scores are taken for that long.")
        if answer.status not in SCORED:
            raise NoAnswer(f"There was no answer to score: the request ended as {answer.status!r}.")
        if answer.panel is None:
            raise NoAnswer("Nothing was recognised in this request, so that a score has nothing to count for.")
        cost = answer.cost if given.cost is None else given.cost
        seconds = answer.seconds if given.seconds is None else given.seconds
        outcome = Outcome(answer.uid, answer.expert, given.score, cost, seconds, answer.tokens)
        row = {"answer": answer.number, "time": now, "score": given.score, "cost": cost, "seconds": seconds}
        connection.execute(_DROP_FEEDBACK, {"the_answer": answer.number})
        connection.execute(_ADD_FEEDBACK, {**row, "name": name_of(outcome)})
        if given.key is not None:
            receipt = {"caller": given.caller, "key": given.key, "answer": answer.number, "digest": given.digest}
            connection.execute(_ADD_RECEIPT, receipt)
        return answer

    def add_signal(self, connection: Connection, signal: Signal) -> None:
        """Notes a sign that an answer was of no use; one of each kind for an answer."""
        named = (answers.c.request_id == signal.request_id, answers.c.uid == signal.uid)
        answer = connection.execute(select(answers).where(*named)).first()
        if answer is None or answer.panel is None or answer.status not in SCORED:
            return
        same = (signals.c.answer == answer.number, signals.c.kind == signal.kind)
        if connection.execute(select(signals.c.number).where(*same)).first() is not None:
            return
        text = f"{answer.uid} {signal.kind}"
        outcome = Outcome(text, answer.expert, 0.0, answer.cost, answer.seconds, answer.tokens)
        row = {"answer": answer.number, "kind": signal.kind, "units": signal.units, "time": signal.time}
        connection.execute(_ADD_SIGNAL, {**row, "name": name_of(outcome)})

    def find(self, connection: Connection, id_: str, caller: str | None) -> Row[Any]:
        """The latest answer of an id, its own or its request's.

        Args:
            connection (`Connection`): that reads.
            id_ (`str`): the id.
            caller (`str`, *optional*): whose it must be; by default anybody's.

        Raises:
            Unknown: there is none.
        """
        if caller is None:
            answer = connection.execute(_FIND_ANY, {"the_id": id_}).first()
        else:
            answer = connection.execute(_FIND_OWN, {"the_id": id_, "the_caller": caller}).first()
        if answer is None:
            raise Unknown("There is no such answer here; answers of other keys cannot be scored.")
        return answer

    def has(self, connection: Connection, request_id: str, uid: str) -> bool:
        """Whether an answer is there; nobody else takes it back before the transaction ends.

        Args:
            connection (`Connection`): that writes.
            request_id, uid (`str`): of the answer.
        """
        return connection.execute(_FIND_UID, {"the_id": request_id, "the_uid": uid}).first() is not None

    def spent(self, since: float) -> float:
        """What this server's answers did cost since a moment, in seconds since 1970, as far as that is known."""
        own = (answers.c.replica == self.replica, answers.c.time >= since)
        with self.reading() as connection:
            return float(connection.scalar(select(func.sum(answers.c.cost)).where(*own)) or 0.0)

    @property
    def replicas(self) -> list[str]:
        """The names of all servers whose answers are or were here, this one's too."""
        with self.reading() as connection:
            known = set(connection.scalars(select(about.c.name).where(about.c.name.like("replica %"))))
            here = set(connection.scalars(select(answers.c.replica).distinct()))
        return sorted(here | {name.removeprefix("replica ") for name in known} | {self.replica})

    def rename(self, connection: Connection, old: str, new: str) -> int:
        """Has answers be another server's. The old name stays known, so that what was given under it is replaced.

        Args:
            connection (`Connection`): that writes.
            old, new (`str`): names of servers.

        Returns:
            `int`: how many answers.

        Raises:
            ValueError: the new name is too long, or no server of the old one has answers here.
        """
        if not 1 <= len(new) <= LONGEST_NAME:
            raise ValueError(f"A server's name has 1 to {LONGEST_NAME} characters, got {len(new)}.")
        renamed = connection.execute(update(answers).where(answers.c.replica == old).values(replica=new)).rowcount
        if not renamed:
            raise ValueError(f"The store has no answers of a server {old!r}; it knows {self.replicas}.")
        insert_new = INSERTS[self._engine.dialect.name]
        for name in (old, new):
            row = {"name": f"replica {name}", "value": ""}
            connection.execute(insert_new(about).on_conflict_do_nothing(), row)
        return renamed

    @property
    def taken_back(self) -> str | None:
        """Names the last time that answers were taken back, until [`Store.forgotten`]; None where none were."""
        with self.reading() as connection:
            said: str | None = connection.scalar(select(about.c.value).where(about.c.name == TAKEN_BACK))
        return said

    def forgotten(self, taken_back: str) -> None:
        """What was published before a time that answers were taken back is forgotten; a later time stays noted."""
        with self.writing() as connection:
            connection.execute(delete(about).where(about.c.name == TAKEN_BACK, about.c.value == taken_back))

    @property
    def counts(self) -> dict[str, int]:
        """How many answers, scores and signs there are."""
        named = {"answers": answers, "scores": feedback, "signals": signals}
        with self.reading() as connection:
            return {
                name: int(connection.scalar(select(func.count()).select_from(table)) or 0)
                for name, table in named.items()
            }

    def _identity(self) -> str:
        """What tells this store from all others; one that was made before there were identities is given one now."""
        known = select(about.c.value).where(about.c.name == IDENTITY)
        with self.reading() as connection:
            identity = connection.scalar(known)
        if identity is None:
            new = INSERTS[self._engine.dialect.name](about).on_conflict_do_nothing()
            with suppress(StoreUnavailable), self.writing() as connection:  # one that may only be read goes without
                connection.execute(new, {"name": IDENTITY, "value": secrets.token_hex(16)})
                identity = connection.scalar(known)
        return str(identity or "")

    def _known(self, connection: Connection, given: Given) -> Row[Any] | None:
        """The answer that was scored under this key already.

        Raises:
            Conflict: another score was given under it.
        """
        before = connection.execute(_FIND_KNOWN, {"the_caller": given.caller, "the_key": given.key}).first()
        if before is not None and before.digest != given.digest:
            raise Conflict("Something else was said under this Idempotency-Key: give each score a key of its own.")
        return before

    def _add_panel(self, connection: Connection, domains: tuple[str, ...]) -> None:
        """Notes the domains that weights are of, and who notes answers, once."""
        name = _panel_name(domains)
        if name in self._panels:
            return
        rows = [(panels, {"name": name, "domains": json.dumps(domains)})]
        rows.append((about, {"name": f"replica {self.replica}", "value": ""}))
        insert_new = INSERTS[connection.dialect.name]
        for table, row in rows:
            connection.execute(insert_new(table).on_conflict_do_nothing(), row)
        self._panels.add(name)

    def _row(self, answer: Answer) -> dict[str, Any]:
        """The row of an answer."""
        row = answer._asdict()
        recognised = row.pop("recognised")
        row["replica"] = self.replica
        row["panel"] = _panel_name(tuple(recognised)) if recognised else None
        row["weights"] = np.array([*recognised.values()], dtype="<u4").tobytes() if recognised else None
        return row


def name_of(outcome: Outcome) -> bytes:
    """What stands for an outcome in the name of the contribution that it is part of: 16 bytes."""
    return outcome.number.to_bytes(16, "little")


@lru_cache(64)
def _panel_name(domains: tuple[str, ...]) -> str:
    return hashlib.blake2b(json.dumps(domains).encode(), digest_size=16).hexdigest()
