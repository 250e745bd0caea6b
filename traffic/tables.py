"""The tables of a store, and how it is opened: a file of SQLite, or a database behind an address."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from .errors import StoreUnavailable, WrongStore

VERSION = "1"
IDENTITY = "identity"  # the row with what tells a store from all others
_KINDS = ("sqlite", "postgresql")
# What databases raise; SQLite also by itself, where a connection is set up.
DATABASE_ERRORS = (DBAPIError, sqlite3.Error)
LONGEST_NAME = 64  # of a server
WRITES = "ir3de_writes"  # the option of a connection that is to write
_BUSY_SECONDS = 5  # that a writer waits for another one
_WAL_TRIES = 50  # a tenth of a second apart: turning to WAL does not wait by itself
_LOCK = 7_461_203  # of Postgres, for those who make the tables at the same time

tables = MetaData()
_Number = BigInteger().with_variant(Integer, "sqlite")  # what SQLite counts up by itself

about = Table(
    "ir3de_about",
    tables,
    Column("name", String(128), primary_key=True),
    Column("value", Text, nullable=False),
)
# The domains, in the order of the weights; most answers share one of few rows.
panels = Table(
    "ir3de_panels",
    tables,
    Column("name", String(32), primary_key=True),
    Column("domains", Text, nullable=False),
)
answers = Table(
    "ir3de_answers",
    tables,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("uid", String(32), nullable=False),
    Column("request_id", String(128), nullable=False, index=True),
    Column("answer_id", String(200), index=True),
    Column("time", Double, nullable=False),
    Column("replica", String(LONGEST_NAME), nullable=False),
    Column("caller", String(64), nullable=False),
    Column("expert", Text, nullable=False),
    Column("status", String(32), nullable=False),
    Column("panel", String(32)),
    Column("weights", LargeBinary),
    Column("tokens", BigInteger),
    Column("cost", Double),
    Column("seconds", Double),
)
feedback = Table(
    "ir3de_feedback",
    tables,
    Column("answer", _Number, primary_key=True, autoincrement=False),
    Column("time", Double, nullable=False),
    Column("score", Double, nullable=False),
    Column("cost", Double),
    Column("seconds", Double),
    Column("name", LargeBinary(16), nullable=False),
)
# What was acknowledged under which key, so that a request that is sent again is known.
receipts = Table(
    "ir3de_receipts",
    tables,
    Column("caller", String(64), primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("answer", _Number, nullable=False, index=True),
    Column("digest", String(32), nullable=False),
)
signals = Table(
    "ir3de_signals",
    tables,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("answer", _Number, nullable=False, index=True),
    Column("time", Double, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("units", Integer, nullable=False),
    Column("name", LargeBinary(16), nullable=False),
)


def open_engine(place: str, make: bool = True) -> Engine:
    """The engine of a store.

    Args:
        place (`str`): a file of SQLite, or an address such as `postgresql+psycopg://user@host/name`.
        make (`bool`): whether the store is made where there is none yet.

    Raises:
        WrongStore: it is no store, or one of another version.
        StoreUnavailable: it cannot be opened.
    """
    engine = _engine_at(place, make)
    shown = engine.url.render_as_string(hide_password=True)
    try:
        if engine.dialect.name == "sqlite":
            _turn_to_wal(engine)
        version = _version(engine)
        if version is None and make:
            with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
                _make_tables(connection)
            version = _version(engine)
    except DATABASE_ERRORS as error:
        engine.dispose()
        raise StoreUnavailable(f"The store {shown} cannot be opened: {reason(error)}") from None
    if version is None and not make:
        engine.dispose()
        raise _no_store(shown)
    if version != VERSION:
        engine.dispose()
        raise WrongStore(
            f"The store {shown} is of version {str(version)[:20]!r}, this program's is {VERSION!r}. Serve it with the"
            " version of ir3de that wrote it, or name another store."
        )
    return engine


def _no_store(shown: str) -> WrongStore:
    return WrongStore(f"There is no store at {shown}: name the one that `ir3de serve --store` keeps.")


def reason(error: Exception) -> str:
    """What a database says of an error, without the statement and its values."""
    return " ".join(str(getattr(error, "orig", error)).split())[:200]


def _engine_at(place: str, make: bool) -> Engine:
    """An engine that has not connected yet."""
    if "://" not in place:
        path = Path(place)
        if make and not path.exists():
            _make_file(path)
        engine = create_engine(URL.create("sqlite", database=str(path)))
    else:
        try:
            url = make_url(place)
            engine = create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite")
        except (ArgumentError, ImportError) as error:
            said = type(error).__name__ if isinstance(error, ArgumentError) else str(error)
            raise WrongStore(
                f"The store is a file, or an address such as postgresql+psycopg://user@host/name, for whose driver"
                f" there is a package such as psycopg; this address cannot be used ({said})."
            ) from None
    if engine.dialect.name not in _KINDS:
        raise WrongStore(f"A store is SQLite or Postgres; this address is of {engine.dialect.name}.")
    if engine.dialect.name == "sqlite":
        file = engine.url.database
        if not make and not (file and Path(file).is_file()):
            raise _no_store(file or place)
        _set_up_sqlite(engine)
    return engine


def _make_file(path: Path) -> None:
    """An empty file that its owner alone may read."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StoreUnavailable(f"The store {path} cannot be made: {error.strerror}.") from None


def _set_up_sqlite(engine: Engine) -> None:
    """Transactions are begun here: one that writes says so at once, and so waits for its turn rather than fails."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        """Settings of a connection: what was committed outlives a loss of power, what was deleted is overwritten."""
        connection.isolation_level = None
        for setting in (f"busy_timeout={_BUSY_SECONDS * 1000}", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Begins a transaction."""
        writes = connection.get_execution_options().get(WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _turn_to_wal(engine: Engine) -> None:
    """Readers do not wait for the writer then; the file remembers it. One that may not be written stays as it is."""
    for _ in range(_WAL_TRIES):
        raw = engine.raw_connection()
        try:
            with suppress(Exception):
                if raw.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":  # type: ignore[attr-defined]
                    return
            if not os.access(str(engine.url.database), os.W_OK):
                return
        finally:
            raw.close()
        time.sleep(0.1)


def _version(engine: Engine) -> str | None:
    """The version of a store; None where there are no tables yet."""
    with engine.connect() as connection:
        if not inspect(connection).has_table(about.name):
            return None
        return connection.scalar(select(about.c.value).where(about.c.name == "version"))


def _make_tables(connection: Connection) -> None:
    """Makes the tables, unless another process was faster."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    if inspect(connection).has_table(about.name):
        return
    tables.create_all(connection)
    known = {"version": VERSION, "replica": secrets.token_hex(8), IDENTITY: secrets.token_hex(16)}
    connection.execute(about.insert(), [{"name": name, "value": value} for name, value in known.items()])
