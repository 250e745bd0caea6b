"""One router as it is served: its pipeline, and its experts by name."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ir3de.experts_ir3de import ExpertPool
from ir3de.specs_ir3de import is_remote

from .forward import RemoteExpert
from .local import LocalExpert

Expert = RemoteExpert | LocalExpert


class Serving(NamedTuple):
    """
    A router and what belongs to it; nothing of it changes, so that another one can take its place at once.

    Args:
        router ([`IR3DERoutingPipeline`]): that routes.
        experts (`Mapping[str, Expert]`): those that can answer, by name.
        revision (`str`): which router it is.
        here (`bool`): whether some of the experts are on this machine.
    """

    router: Any
    experts: Mapping[str, Expert]
    revision: str = ""
    here: bool = False


def prepare_in_background(serving: Serving, preload: bool = False) -> threading.Thread:
    """Reads in a thread what experts can do; one whose files cannot be read is left to its first use.

    Args:
        serving ([`Serving`]): whose experts these are.
        preload (`bool`): load those on this machine too, as many as the budget takes.
    """

    def prepare() -> None:
        """Reads one expert after the other."""
        for expert in serving.experts.values():
            with suppress(Exception):
                expert.learn()
        if preload:
            serving.router.experts.preload(serving.experts, background=False)

    thread = threading.Thread(target=prepare, daemon=True)
    thread.start()
    return thread


def served(router: Any, revision: str = "") -> Serving:
    """A router with its experts.

    Args:
        router ([`IR3DERoutingPipeline`]): that routes.
        revision (`str`): which one it is.

    Raises:
        ValueError: a default option of an expert's generation is out of range.
    """
    pool: ExpertPool = router.experts
    names = [name for name in router.model.config.expert_names if pool.can_answer(name)]
    experts: dict[str, Expert] = {}
    for name in names:
        spec = pool.spec(name)
        pool.check_ranges(name)
        speaks_openai = is_remote(spec) and spec.get("task") != "text"
        experts[name] = RemoteExpert(spec) if speaks_openai else LocalExpert(name, pool)
    return Serving(router, experts, revision, any(expert.is_here for expert in experts.values()))
