"""What the tabs share: the router, its limits, each visitor's own copy of it, and the samples it is tried on."""

from __future__ import annotations

import ctypes
import logging
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
from ir3de.space.palette import Palette
from ir3de.specs_ir3de import has_source

Event = dict[str, Any]  # of a pipeline's stream
Options = dict[str, Any]  # of one of Gradio's listeners, or of a call of the pipeline

UNDO_STEPS = 10
PAUSE = 0.1  # seconds between two pieces of an answer on the page
_LOG = logging.getLogger(__name__)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class RefusedError(ValueError):
    """What a visitor asks cannot be done; the message says why, to the visitor."""


@dataclass
class Visitor:
    """
    A visitor's edited routers; who has edited nothing has none of these.

    Args:
        router ([`IR3DERoutingPipeline`]): the present one.
        palette ([`Palette`]): of all experts that the visitor has seen.
        before (`list[IR3DERoutingPipeline]`): those before it, the latest last.
    """

    router: IR3DERoutingPipeline
    palette: Palette
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

    def __post_init__(self) -> None:
        self.palette = Palette().having(_names(self.router))

    def router_of(self, visitor: Visitor | None) -> IR3DERoutingPipeline:
        """The visitor's own router, or everybody's."""
        return self.router if visitor is None else visitor.router

    def palette_of(self, visitor: Visitor | None) -> Palette:
        """The colours of the experts that the visitor sees."""
        return self.palette if visitor is None else visitor.palette

    def routing_only(self, visitor: Visitor | None) -> set[str]:
        """The experts that no model answers for."""
        return {spec["name"] for spec in self.router_of(visitor).model.config.specs if not has_source(spec)}

    def answer(self, visitor: Visitor | None, prompt: Prompt, **options: Any) -> Iterator[Event]:
        """Events of the router's stream, with its text in pieces that a browser can follow.

        Closing this iterator stops the generation.
        """
        record = self.router_of(visitor)(prompt, generate=False, **options)
        if record["expert"] in self.routing_only(visitor):
            yield {"event": "route", **record}
            yield {"event": "record", **record, "generated_text": None}
            return
        stream = self.stream if visitor is None else visitor.router.stream
        held, shown = "", 0.0
        with closing(stream(prompt, timeout=self.limits.seconds, **options)) as events:  # type: ignore[type-var]
            for event in events:
                if event["event"] == "text":
                    held += event["text"]
                if held and (event["event"] != "text" or time.monotonic() - shown > PAUSE):
                    yield {"event": "text", "text": held}
                    held, shown = "", time.monotonic()
                if event["event"] == "record":
                    for failure in event.get("failures", []):
                        _LOG.error("Expert %s did not answer: %s", failure["expert"], failure["error"])
                if event["event"] != "text":
                    yield event

    def no_answer(self, visitor: Visitor | None, event: Event) -> str:
        """Why the record that ends a stream has no text, in words for a visitor."""
        name = event["expert"]
        if name is None:
            return "The score, or how familiar the prompt is, lies below the minimum, so nobody answers."
        if name in self.routing_only(visitor):
            return f"{name} only routes: its owner has given it no model that answers."
        return "No expert could answer just now. The owner of this page finds the reason in its log."

    def sorry(self, error: Exception) -> str:
        """What a visitor learns of an error: why something was refused; all else is for the owner, in the log."""
        if isinstance(error, RefusedError):
            return str(error)
        _LOG.error("A visitor met an error.", exc_info=error)
        return "That did not work here. The owner of this page finds the reason in its log."

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
        return Visitor(after, self.palette_of(visitor).having(_names(after)), before)

    def undone(self, visitor: Visitor) -> Visitor | None:
        """The visitor before the last edit."""
        *before, last = visitor.before
        return None if last is self.router else Visitor(last, visitor.palette, before)

    def figures(self, router: IR3DERoutingPipeline, **choice: Any) -> RoutingFigures | None:
        """How a router does on those samples whose domain it has; none if there are none."""
        names = router.model.config.domain_names
        rows = [row for row in self.samples if row.domain in names]
        return routing_accuracy(router, rows, **choice) if rows else None

    def check(self, prompt: str) -> str:
        """Returns a prompt without the space around it.

        Raises:
            RefusedError: it is too long, or holds control characters.
        """
        prompt, most = prompt.strip(), self.limits.characters
        found = _CONTROL.search(prompt)
        if found:
            raise RefusedError(f"The prompt holds the control character U+{ord(found[0]):04X}: remove it.")
        if most is not None and len(prompt) > most:
            raise RefusedError(f"The prompt has {len(prompt):,} characters; at most {most:,} go.")
        return prompt


def _return_memory() -> None:
    """Gives back to the system what an edit needed for a moment, which the C library would keep for the next one."""
    with suppress(OSError, AttributeError):  # not on Windows, and not with every C library
        ctypes.CDLL(None).malloc_trim(0)


def _names(router: IR3DERoutingPipeline) -> list[str]:
    """What needs a colour: experts and domains."""
    config = router.model.config
    return [*config.expert_names, *config.domain_names]
