"""One router as it is served: its pipeline, its experts by name, and what each of them can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ir3de.specs_ir3de import is_remote

from .capabilities import Capabilities
from .forward import RemoteExpert

Expert = RemoteExpert


class Serving(NamedTuple):
    """
    A router and what belongs to it; nothing of it changes, so that another one can take its place at once.

    Args:
        router ([`IR3DERoutingPipeline`]): that routes.
        experts (`Mapping[str, Expert]`): those that can answer, by name.
        capabilities (`Mapping[str, Capabilities]`): of each of them.
        revision (`str`): which router it is.
    """

    router: Any
    experts: Mapping[str, Expert]
    capabilities: Mapping[str, Capabilities]
    revision: str = ""


def served(router: Any, revision: str = "") -> Serving:
    """A router with its experts.

    Args:
        router ([`IR3DERoutingPipeline`]): that routes.
        revision (`str`): which one it is.
    """
    specs = [router.experts.spec(name) for name in router.model.config.expert_names]
    experts = {spec["name"]: RemoteExpert(spec) for spec in specs if is_remote(spec)}
    capabilities = {spec["name"]: Capabilities.of_spec(spec) for spec in specs if spec["name"] in experts}
    return Serving(router, experts, capabilities, revision)
