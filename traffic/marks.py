"""A mark of a store that is served: by it another server of this machine notices that the same file is served already,
or a copy of it, which nothing else would tell.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import WrongStore
from .store import Store

try:
    import fcntl
except ImportError:  # on Windows, where nothing is noticed
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_MOST_BYTES = 4096  # of what a mark says


@contextmanager
def marked(store: Store) -> Iterator[None]:
    """Holds the mark of a store in a file for as long as the block lasts; the system lets go of it, however that ends.

    Args:
        store ([`Store`]): that is served. Of a database, which servers may share, there is no mark.

    Raises:
        WrongStore: a copy of it is served.
    """
    mark = _opened(store)
    if mark is None:
        yield
        return
    try:
        _hold(mark, store)
        yield
    finally:
        os.close(mark)


def _opened(store: Store) -> int | None:
    """The file of a store's mark; None where there is none to hold, such as where it is another user's."""
    if fcntl is None or store.file is None or not store.identity:
        return None
    path = Path(tempfile.gettempdir(), f"ir3de-store-{store.identity}")
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None


def _hold(mark: int, store: Store) -> None:
    """Takes a mark and writes into it whose it is, unless another server holds it."""
    assert store.file is not None
    about = store.file.stat()
    own = f"{about.st_dev} {about.st_ino} {store.file.resolve()}"
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        other = os.pread(mark, _MOST_BYTES, 0).decode(errors="replace")
        if not other or other.split(" ")[:2] == own.split(" ")[:2]:
            logger.warning(
                "Another server keeps its answers in %s already. Both learn from all of them, but each has the whole"
                " budget to spend: for more processes there is --workers.",
                store.place,
            )
            return
        raise WrongStore(
            f"The store {store.place} is served already as {other.split(' ', 2)[-1]}: one is a copy of the other. Where"
            " servers exchange outcomes nobody could tell the two apart, and each would take back what the other says."
            " Stop the other server, or begin a new store."
        ) from None
    os.ftruncate(mark, 0)
    os.pwrite(mark, own.encode(errors="surrogateescape"), 0)
