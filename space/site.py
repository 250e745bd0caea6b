"""What the tabs share: the router, its limits, each visitor's own copy of it, and the samples it is tried on."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from ir3de.gateway.generation import pieces
from ir3de.gateway.limits import Limits
from ir3de.gateway.local import Generate
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.prompts_ir3de import Prompt
from ir3de.scripts.data.rows import Row
from ir3de.scripts.metrics.accuracy import RoutingFigures, routing_accuracy

Event = dict[str, Any]  # of a pipeline's stream
Options = dict[str, Any]  # of one of Gradio's listeners, or of a call of the pipeline

UNDO_STEPS = 10
PAUSE = 0.1  # seconds between two pieces of an answer on the page
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass
class Visitor:
    """
    A visitor's edited routers; who has edited nothing has none of these.

    Args:
        router ([`IR3DERoutingPipeline`]): the present one.
        before (`list[IR3DERoutingPipeline]`): those before it, the latest last.
    """

    router: IR3DERoutingPipeline
    before: list[IR3DERoutingPipeline] = field(default_factory=list)


@dataclass
class Site:
    """
    What the tabs share.

    Args:
        router ([`IR3DERoutingPipeline`]): that everybody meets; nothing changes it.
        stream (`Callable`): its `stream`, perhaps on hardware that is lent for the time of a call.
        limits ([`Limits`]): of a prompt and an answer.
        samples (`list[Row]`): labelled prompts that the router is tried on.
        allow_edit (`bool`): whether visitors may edit copies of their own.
        note (`str`): for the head of the page.
        generate (`Callable`): how the gateway's experts on this machine generate, perhaps on lent hardware too.
    """

    router: IR3DERoutingPipeline
    stream: Callable[..., Iterator[Event]]
    limits: Limits
    samples: Sequence[Row]
    allow_edit: bool
    note: str = ""
    generate: Generate = pieces

    def router_of(self, visitor: Visitor | None) -> IR3DERoutingPipeline:
        """The visitor's own router, or everybody's."""
        return self.router if visitor is None else visitor.router

    def answer(self, visitor: Visitor | None, prompt: Prompt, **options: Any) -> Iterator[Event]:
        """Events of the router's stream, with its text in pieces that a browser can follow.

        Closing this iterator stops the generation.
        """
        stream = self.stream if visitor is None else visitor.router.stream
        held, shown = "", 0.0
        with closing(stream(prompt, timeout=self.limits.seconds, **options)) as events:  # type: ignore[type-var]
            for event in events:
                if event["event"] == "text":
                    held += event["text"]
                if held and (event["event"] != "text" or time.monotonic() - shown > PAUSE):
                    yield {"event": "text", "text": held}
                    held, shown = "", time.monotonic()
                if event["event"] != "text":
                    yield event

    def edited(self, visitor: Visitor | None, edit: Callable[[IR3DEModel], object]) -> Visitor:
        """The visitor with one more edit, which is done on a copy and so done wholly or not at all."""
        here = self.router_of(visitor)
        after = here.copy()
        if visitor is None:
            after.experts = after.experts.for_strangers()
        edit(after.model)
        if here is not self.router:
            here.model.forget_tables()  # it is there to go back to; a visitor keeps statistics, which are shared, and W
        _return_memory()
        before = [*(visitor.before if visitor else []), here][-UNDO_STEPS:]
        return Visitor(after, before)

    def undone(self, visitor: Visitor) -> Visitor | None:
        """The visitor before the last edit."""
        *before, last = visitor.before
        return None if last is self.router else Visitor(last, before)

    def figures(self, router: IR3DERoutingPipeline, **choice: Any) -> RoutingFigures | None:
        """How a router does on those samples whose domain it has; none if there are none."""
        names = router.model.config.expert_names
        rows = [row for row in self.samples if row.domain in names]
        return routing_accuracy(router, rows, **choice) if rows else None

    def check(self, prompt: str) -> str:
        """Returns a prompt without the space around it.

        Raises:
            ValueError: it is too long, or holds control characters.
        """
        prompt, most = prompt.strip(), self.limits.characters
        found = _CONTROL.search(prompt)
        if found:
            raise ValueError(f"The prompt holds the control character U+{ord(found[0]):04X}: remove it.")
        if most is not None and len(prompt) > most:
            raise ValueError(f"The prompt has {len(prompt):,} characters; at most {most:,} go.")
        return prompt


def _return_memory() -> None:
    """Gives back to the system what an edit needed for a moment, which the C library would keep for the next one."""
    with suppress(OSError, AttributeError):  # not on Windows, and not with every C library
        ctypes.CDLL(None).malloc_trim(0)
