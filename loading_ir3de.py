"""Models are loaded one at a time in a process, and without bars.

transformers changes classes of its own while it loads a model (tying weights does nothing then) and puts back what it
found. Of two threads that load at once one puts back what the other had changed, and no model of the process has its
tied weights from then on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

_one_at_a_time = threading.RLock()


@contextmanager
def loading() -> Iterator[None]:
    """Held while a model is loaded."""
    with _one_at_a_time, without_bars():
        yield


@contextmanager
def without_bars() -> Iterator[None]:
    """Keeps transformers' bars for weights out of what is printed: whoever routes a prompt asked for an answer, and not
    which model it takes. Those of downloads stay.
    """

    def hidden(make: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A bar that is not drawn."""
        return make(*args, **{**kwargs, "disable": True})

    before = logging.set_tqdm_hook(hidden)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _after_fork() -> None:
    """The thread that was loading is not in the new process."""
    global _one_at_a_time  # noqa: PLW0603
    _one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
