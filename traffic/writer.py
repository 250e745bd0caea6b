"""The one who writes to a store: a thread that takes what is brought, so that no request waits for the disk."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from sqlalchemy import Connection

from .errors import NotScored, StoreUnavailable
from .store import Answer, Store

logger = logging.getLogger(__name__)

Work = Callable[[Connection], Any]
After = Callable[[Any], None]

_WAITING = 20_000  # pieces of work
_BATCH = 500  # of them in one transaction
_CLOSE_SECONDS = 15.0


class _Piece(NamedTuple):
    """Work, who waits for its result, and what is done with that once it is committed."""

    work: Work
    done: Future[Any]
    after: After | None


class Writer:
    """
    Writes to a store in the order in which work is brought, many pieces in one transaction.

    Args:
        store ([`Store`]): that is written to.
        lost (`Callable`, *optional*): told how many pieces were lost each time that some are.
        waiting (`int`): pieces that may wait; further ones are refused.
    """

    def __init__(self, store: Store, lost: Callable[[int], None] | None = None, waiting: int = _WAITING) -> None:
        self.store = store
        self._lost = lost or (lambda number: None)
        self._queue: queue.Queue[_Piece | None] = queue.Queue(waiting)
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="ir3de-store", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pieces that wait to be written."""
        return self._queue.qsize()

    def do(self, work: Work, after: After | None = None) -> Future[Any]:
        """Brings work.

        Args:
            work (`Callable`): writes with the connection that it is given; a [`NotScored`] that it raises must have
                written nothing.
            after (`Callable`, *optional*): called in the writer's thread with the result once that is committed, before
                any other work; not where it never is.

        Returns:
            `Future`: its result, once that is committed.

        Raises:
            StoreUnavailable: too much waits already, or the writer is closed.
        """
        piece = _Piece(work, Future(), after)
        if not self._thread.is_alive():
            raise StoreUnavailable("the store is closed")
        try:
            self._queue.put_nowait(piece)
        except queue.Full:
            self._failed(1, "too much waits to be written")
            raise StoreUnavailable(f"{self.waiting:,} pieces wait to be written to it already") from None
        return piece.done

    def keep(self, answer: Answer, after: After | None = None) -> Future[Any] | None:
        """Brings an answer, which is lost where the store cannot take it: an answer waits for nobody.

        Args:
            answer ([`Answer`]): to keep.
            after (`Callable`, *optional*): as in [`Writer.do`].

        Returns:
            `Future`, *optional*: done once the answer is committed; None where it is lost already.
        """
        try:
            return self.do(lambda connection: self.store.add_answers(connection, [answer]), after)
        except StoreUnavailable:
            return None

    def close(self) -> None:
        """Writes what waits, and ends."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        more = True
        while more:
            batch, more = self._next()
            if not batch:
                continue
            try:
                self._write(batch)
            except StoreUnavailable as error:
                self._give_up(batch, error)
            except Exception:  # of one of them: the others shall not suffer, and it may do better the second time
                for piece in batch:
                    self._write_alone(piece)

    def _next(self) -> tuple[list[_Piece], bool]:
        """What waits, up to a batch, and whether there may be more."""
        batch: list[_Piece] = []
        piece = self._queue.get()
        while piece is not None:
            batch.append(piece)
            if len(batch) == _BATCH:
                break
            try:
                piece = self._queue.get_nowait()
            except queue.Empty:
                break
        return batch, piece is not None

    def _write(self, batch: list[_Piece]) -> None:
        """Writes all in one transaction; their results are told when it is committed."""
        results: list[tuple[_Piece, Any, NotScored | None]] = []
        with self.store.writing() as connection:
            for piece in batch:
                try:
                    results.append((piece, piece.work(connection), None))
                except NotScored as error:
                    results.append((piece, None, error))
        if self._failing:
            self._failing = False
            logger.warning("The store is written to again.")
        for piece, result, refused in results:
            if piece.done.cancelled():
                continue
            if refused is None:
                piece.done.set_result(result)
            else:
                piece.done.set_exception(refused)
        for piece, result, refused in results:
            if piece.after is not None and refused is None:
                try:
                    piece.after(result)
                except Exception:  # what was committed stays, and so does the writer
                    logger.exception("What follows a piece of work of the store failed")

    def _write_alone(self, piece: _Piece) -> None:
        try:
            self._write([piece])
        except StoreUnavailable as error:
            self._give_up([piece], error)
        except Exception as error:
            logger.exception("A piece of work of the store failed")
            self._give_up([piece], StoreUnavailable(f"it met an error ({type(error).__name__})"))

    def _give_up(self, batch: list[_Piece], error: StoreUnavailable) -> None:
        self._failed(len(batch), str(error))
        for piece in batch:
            if not piece.done.cancelled():
                piece.done.set_exception(StoreUnavailable(str(error)))

    def _failed(self, number: int, why: str) -> None:
        """Counts what is lost, and says so once until the store is written to again."""
        self._lost(number)
        if not self._failing:
            self._failing = True
            logger.error("The store cannot be written to: %s. Answering goes on, without being kept.", why)
