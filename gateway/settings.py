"""How a gateway serves: limits, timeouts, patience, and what is switched on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .attempts import Patience
from .breaker import BreakerOptions
from .keys import Key
from .limits import Limits, Timeouts


class Settings(NamedTuple):
    """
    How a gateway serves.

    Args:
        limits ([`Limits`]): of a request.
        timeouts ([`Timeouts`]): of an expert behind a server.
        patience ([`Patience`]): tries before a request fails.
        breaker ([`BreakerOptions`]): when an expert is left alone.
        details (`bool`): put the route into every answer, also where the request does not ask for it.
        default_expert (`str`, *optional*): whose server gets what is not routed, such as `/v1/embeddings`.
        keys (`tuple[Key, ...]`): of who may come; everybody where there are none.
        shared (`Path`, *optional*): a folder in which worker processes count together what keys have spent, and keep
            who answered which conversation.
        preload (`bool`): load experts on this machine before they are asked.
        cors (`tuple[str, ...]`): origins of web pages that may use it; `"*"` for all.
        more_wrappers (`tuple[str, ...]`): names of blocks that an agent's harness adds to the person's words.
    """

    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    patience: Patience = Patience()
    breaker: BreakerOptions = BreakerOptions()
    details: bool = False
    default_expert: str | None = None
    keys: tuple[Key, ...] = ()
    shared: Path | None = None
    preload: bool = False
    cors: tuple[str, ...] = ()
    more_wrappers: tuple[str, ...] = ()
