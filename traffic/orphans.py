"""Processes that end with the one that started them, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of prctl: the signal that a process gets when the thread that started it ends


def end_with_parent(by: signal.Signals, parent: int | None = None) -> None:
    """Has this process get a signal once the one that started it has ended, even if that was killed. Only Linux can.

    Args:
        by (`signal.Signals`): that it gets.
        parent (`int`, *optional*): the process that started it, where it may have ended already.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(by))
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), by)
