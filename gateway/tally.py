"""What requests have spent: numbers of one process, or of all worker processes of a server together."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where workers may count a request twice or not at all when they write at once
    fcntl = None  # type: ignore[assignment]


class Tally:
    """
    Numbers that begin at 0. Within a `with` block nobody else reads or writes them.

    Args:
        size (`int`): how many there are.
        path (`Path`, *optional*): a file on this machine that processes share, which is made where it is not there.
    """

    def __init__(self, size: int, path: Path | None = None) -> None:
        self._file: int | None = None
        length = 8 * max(size, 1)
        if path is None:
            self.numbers = memoryview(bytearray(length)).cast("d")
            return
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, length)
        self.numbers = memoryview(mmap.mmap(self._file, length)).cast("d")

    def __enter__(self) -> memoryview[float]:
        if self._file is not None and fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        return self.numbers

    def __exit__(self, *_: object) -> None:
        if self._file is not None and fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
