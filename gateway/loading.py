"""The router that is served: loaded from a folder or the Hub, and told apart by its revision."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi

from ir3de.addresses_ir3de import check_public
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.specs_ir3de import ExpertSpec


class Origin(NamedTuple):
    """
    Where a router comes from.

    Args:
        place (`str`): folder or Hub id.
        revision (`str`, *optional*): a branch, tag or commit of the Hub.
        second_opinion (`bool`): ask the router's second opinion where it is unsure.
        min_score (`float`, *optional*): instead of the router's own.
        fallback (`str`, *optional*): an expert, likewise.
        explore_loss (`float`, *optional*): likewise.
    """

    place: str
    revision: str | None = None
    second_opinion: bool = False
    min_score: float | None = None
    fallback: str | None = None
    explore_loss: float | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine."""
        return os.path.isdir(self.place)

    def current(self) -> str:
        """The present revision: of a folder a hash of its files' sizes and times, on the Hub a commit.

        Raises:
            OSError: it cannot be reached.
        """
        if not self.is_folder:
            return str(HfApi().model_info(self.place, revision=self.revision).sha)
        seen = hashlib.sha256()
        for path in sorted(Path(self.place).rglob("*")):
            if path.is_file():
                about = path.stat()
                seen.update(f"{path.name} {about.st_size} {about.st_mtime_ns}\n".encode())
        return seen.hexdigest()[:40]

    def load(self, revision: str | None = None) -> IR3DERoutingPipeline:
        """Loads the router.

        Args:
            revision (`str`, *optional*): a commit of the Hub, instead of the present one.

        Raises:
            ValueError: it is malformed, or comes from the Hub and names a server within a private network.
            OSError: it cannot be read.
        """
        wanted = None if self.is_folder else revision or self.revision
        model = IR3DEModel.from_pretrained(self.place, revision=wanted)
        instead = {"min_score": self.min_score, "fallback_expert": self.fallback, "explore_loss": self.explore_loss}
        given: Any = {key: value for key, value in instead.items() if value is not None}
        if not self.is_folder:
            given["expert_kwargs"] = {"private_hosts": allowed_hosts(model.config.experts or [])}
        router = IR3DERoutingPipeline(model, second_opinion=self.second_opinion, **given)
        router.policy({}).check(model.panel)
        return router


def allowed_hosts(specs: list[ExpertSpec]) -> list[str]:
    """The hosts of private networks that experts of a router of the Hub may be at: those which the environment variable
    `IR3DE_ALLOW_HOSTS` names.

    Args:
        specs (`list[ExpertSpec]`): of its experts.

    Raises:
        ValueError: one of them is at another.
        OSError: the host of one of them has no address.
    """
    allowed = os.environ.get("IR3DE_ALLOW_HOSTS", "").replace(",", " ").lower().split()
    for spec in specs:
        if "endpoint" in spec:
            check_public(spec["endpoint"], allowed)
    return allowed
