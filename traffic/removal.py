"""Taking back: what answers left in a store goes, and a ledger that is remade is one that never had them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, or_, select

from .store import INSERTS, TAKEN_BACK
from .tables import about, answers, feedback, receipts, signals
from .texts import Texts

FIELDS = ("id", "key", "replica", "since", "until", "scored")
_AT_ONCE = 500  # numbers in a statement


class Which(NamedTuple):
    """
    Which answers are meant: those that are all of what is said.

    Args:
        id (`str`, *optional*): of the answer or its request.
        key (`str`, *optional*): the hash of a caller's key.
        replica (`str`, *optional*): the name of a server.
        since (`float`, *optional*): answered then or later; seconds since 1970.
        until (`float`, *optional*): answered before.
        scored (`bool`, *optional*): those that have a score or a sign, or those that have none.
    """

    id: str | None = None
    key: str | None = None
    replica: str | None = None
    since: float | None = None
    until: float | None = None
    scored: bool | None = None

    @classmethod
    def read(cls, text: str) -> Which:
        """Reads `field=value,field=value`; times are of UTC, such as 2026-11-28 or 2026-11-28T12:30.

        Raises:
            ValueError: it says nothing, or something else.
        """
        values: dict[str, str] = {}
        for part in text.split(","):
            name, sign, value = part.partition("=")
            if not sign or name not in FIELDS or not value or name in values:
                raise ValueError(f"Expected one or several of {'=..., '.join(FIELDS)}=..., each once; got {part!r}.")
            values[name] = value
        return cls.of(values)

    @classmethod
    def of(cls, texts: Mapping[str, str]) -> Which:
        """The same from texts by field.

        Raises:
            ValueError: a time is none, or `scored` is neither `yes` nor `no`.
        """
        values: dict[str, Any] = dict(texts)
        for name in ("since", "until"):
            if name in texts:
                values[name] = moment(texts[name])
        if "scored" in texts:
            if texts["scored"] not in ("yes", "no"):
                raise ValueError(f"Expected scored=yes or scored=no, got {texts['scored']!r}.")
            values["scored"] = texts["scored"] == "yes"
        return cls(**values)

    @property
    def condition(self) -> list[ColumnElement[bool]]:
        """As conditions on answers.

        Raises:
            ValueError: nothing is said, which would be all of them.
        """
        said: list[ColumnElement[bool]] = []
        if self.id is not None:
            said.append(or_(answers.c.request_id == self.id, answers.c.answer_id == self.id))
        if self.key is not None:
            said.append(answers.c.caller == self.key)
        if self.replica is not None:
            said.append(answers.c.replica == self.replica)
        if self.since is not None:
            said.append(answers.c.time >= self.since)
        if self.until is not None:
            said.append(answers.c.time < self.until)
        if self.scored is not None:
            told = [select(table.c.answer).where(table.c.answer == answers.c.number) for table in (feedback, signals)]
            scored = or_(*(each.exists() for each in told))
            said.append(scored if self.scored else ~scored)
        if not said:
            raise ValueError(f"Say which answers are to be taken back, by {', '.join(FIELDS)}.")
        return said


def moment(text: str) -> float:
    """A time of UTC as seconds since 1970.

    Raises:
        ValueError: it is none.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"Expected a time such as 2026-11-28 or 2026-11-28T12:30, got {text!r}.") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def take_back(connection: Connection, which: Which, texts: Texts | None = None) -> list[str]:
    """Removes answers with all that was said of them, and notes that what was published of them is to be forgotten.

    Args:
        connection (`Connection`): that writes.
        which ([`Which`]): which answers.
        texts ([`Texts`], *optional*): where their text is kept, from which it goes too.

    Returns:
        `list[str]`: the `uid` of each answer that was removed.

    Raises:
        ValueError: nothing is said of which.
        OSError: the text cannot be removed.
    """
    found = connection.execute(select(answers.c.number, answers.c.uid).where(*which.condition)).all()
    for start in range(0, len(found), _AT_ONCE):
        _remove(connection, [row.number for row in found[start : start + _AT_ONCE]])
    if found:
        _note(connection)
    uids = [row.uid for row in found]
    if uids and texts is not None:  # before the answers are committed: where it fails they stay, and can be named again
        texts.remove(uids)
    return uids


def _note(connection: Connection) -> None:
    """Notes this time by a name that was never there, so that it is told from those before."""
    new = INSERTS[connection.dialect.name](about).values(name=TAKEN_BACK, value=secrets.token_hex(8))
    connection.execute(new.on_conflict_do_update(index_elements=["name"], set_={"value": new.excluded.value}))


def _remove(connection: Connection, numbers: Sequence[int]) -> None:
    for table in (feedback, receipts, signals):
        connection.execute(delete(table).where(table.c.answer.in_(numbers)))
    connection.execute(delete(answers).where(answers.c.number.in_(numbers)))
