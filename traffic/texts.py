"""The text of requests, and what people said of answers: in a file of its own, where its owner wants it kept."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: one process alone may keep text there
    fcntl = None  # type: ignore[assignment]


class Texts:
    """
    A file of JSON Lines that its owner alone may read, and to which several processes may add.

    Args:
        path (`str` or `os.PathLike`): of the file; it is made where there is none.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with self._held():
            pass

    def add(self, **row: Any) -> None:
        """Adds a line.

        Raises:
            OSError: it cannot be written.
        """
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._held() as file:
            os.write(file, line)

    def remove(self, uids: Collection[str]) -> int:
        """Removes the lines of answers.

        Args:
            uids (`Collection[str]`): of the answers.

        Returns:
            `int`: how many lines left.

        Raises:
            OSError: the file cannot be written; it is as before.
        """
        gone = set(uids)
        with self._held():
            lines = self.path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _uid(line) not in gone]
            if len(kept) < len(lines):
                handle, made = tempfile.mkstemp(dir=self.path.parent)  # for its owner alone too
                with os.fdopen(handle, "wb") as file:
                    file.writelines(kept)
                    os.fsync(file.fileno())
                os.replace(made, self.path)
        return len(lines) - len(kept)

    @contextmanager
    def _held(self) -> Iterator[int]:
        """The file, open to be added to, while no other process adds or removes."""
        while True:
            file = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
                if self._is_still(file):
                    yield file
                    return
            finally:
                os.close(file)

    def _is_still(self, file: int) -> bool:
        """Whether no other file has taken its place while it was waited for."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        return False


def _uid(line: bytes) -> Any:
    """The answer that a line is of; of a line that was cut off none."""
    try:
        return json.loads(line).get("uid")
    except (ValueError, AttributeError):
        return None
