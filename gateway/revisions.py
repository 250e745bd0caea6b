"""Which revisions of the router are not to be served, and what is in their place: worker processes tell each other."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


class Revisions:
    """
    What became of revisions, as this process or any worker process that shares the file has said.

    Args:
        path (`Path`, *optional*): of the file: a line a piece of news, with its kind and two revisions.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._read = 0  # bytes
        self._before: dict[str, str] = {}
        self._instead: dict[str, str] = {}

    def took(self, revision: str, before: str) -> None:
        """A revision was taken, after another one."""
        self._tell("taken", revision, before)

    def refuse(self, revision: str, instead: str) -> None:
        """A revision is not served, and another one stays."""
        self._tell("refused", revision, instead)

    def took_back(self, revision: str, instead: str) -> None:
        """A revision is served no more, and the one before it is again."""
        self._tell("back", revision, instead)

    def before(self, revision: str) -> str | None:
        """What can be taken back instead of a revision: what served before it, if that is known."""
        return self._before.get(revision)

    def instead(self, revision: str) -> str | None:
        """What is served in place of a revision that is not to be."""
        return self._instead.get(revision)

    def allowed(self, revision: str) -> str:
        """A revision, or what is served in its place."""
        passed = {revision}
        while (instead := self._instead.get(revision)) is not None and instead not in passed:
            passed.add(instead)
            revision = instead
        return revision

    def read(self) -> None:
        """Takes note of what others have said since; which costs a look at the file's size where there is nothing."""
        if self._path is None:
            return
        with suppress(FileNotFoundError):
            if self._path.stat().st_size > self._read:
                with self._path.open("rb") as file:
                    file.seek(self._read)
                    news = file.read()
                news = news[: news.rfind(b"\n") + 1]  # a line may be half written
                self._read += len(news)
                for line in news.decode().splitlines():
                    self._note(*line.split(" "))

    def _tell(self, kind: str, revision: str, other: str) -> None:
        if self._path is None:
            self._note(kind, revision, other)
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{kind} {revision} {other}\n")
        self.read()

    def _note(self, kind: str, revision: str, other: str) -> None:
        if kind == "taken":
            self._before[revision] = other
            return
        self._instead[revision] = other
        if kind == "back":
            self._before.pop(other, None)  # one step back is all
