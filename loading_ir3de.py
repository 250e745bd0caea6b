"""Models are loaded one at a time in a process.

transformers changes classes of its own while it loads a model (tying weights does nothing then) and puts back what it
found. Of two threads that load at once one puts back what the other had changed, and no model of the process has its
tied weights from then on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_one_at_a_time = threading.RLock()


@contextmanager
def loading() -> Iterator[None]:
    """Held while a model is loaded."""
    with _one_at_a_time:
        yield


def _after_fork() -> None:
    """The thread that was loading is not in the new process."""
    global _one_at_a_time  # noqa: PLW0603
    _one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
