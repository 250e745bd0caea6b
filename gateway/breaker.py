"""A circuit breaker: an expert that failed several times in a row is left alone for a while, then tried once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class BreakerOptions(NamedTuple):
    """
    When a breaker opens, and for how long.

    Args:
        failures (`int`): in a row that open it.
        seconds (`float`): until one request may try again; doubled each time that one fails.
        most_seconds (`float`): at most.
    """

    failures: int = 5
    seconds: float = 5.0
    most_seconds: float = 60.0


class Breaker:
    """
    Lets requests through to an expert, or not.

    Args:
        options ([`BreakerOptions`]): when it opens.
        clock (`Callable`): gives the time in seconds.
    """

    def __init__(self, options: BreakerOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._failures = 0  # since an answer began
        self._breaks = 0  # of answers since one was complete
        self._pauses = 0  # since then
        self._open = False
        self._until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether it is more than closed: open, or half open while one request tries."""
        return self._open

    @property
    def wait(self) -> float:
        """Seconds until it lets a request through."""
        return max(0.0, self._until - self._clock())

    def admit(self) -> bool:
        """Whether a request may go to the expert now; who is admitted must say how it went."""
        if self._probing or (self._until and self.wait > 0):
            return False
        self._probing = self._open
        return True

    def began(self) -> None:
        """The expert began an answer, and is asked again."""
        if self._open:
            self._until = 0.0
        self._open = self._probing = False
        self._failures = 0

    def succeeded(self) -> None:
        """The expert answered."""
        self.began()
        self._breaks = self._pauses = 0

    def failed(self) -> None:
        """The expert did not begin to answer."""
        self._failures += 1
        if self._probing or (not self._open and self._failures >= self._options.failures):
            self._leave_alone()
        self._probing = False

    def broke_off(self) -> None:
        """The expert broke off in the middle of an answer."""
        self._breaks += 1
        if not self._open and self._breaks >= self._options.failures:
            self._leave_alone()

    def _leave_alone(self) -> None:
        pause = min(self._options.most_seconds, self._options.seconds * 2**self._pauses)
        self._pauses += 1
        self._open = True
        self._until = self._clock() + pause

    def rest(self, seconds: float) -> None:
        """The expert asked to be left alone for so long; no longer than it may be after failures."""
        self._until = max(self._until, self._clock() + min(seconds, self._options.most_seconds))

    def left(self) -> None:
        """The client went away before it was known how the expert does."""
        self._probing = False
