"""What the tabs share: the router, its limits, each visitor's own copy of it, and the samples it is tried on."""

from __future__ import annotations

import ctypes
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ir3de.gateway.generation import pieces
from ir3de.gateway.limits import Limits
from ir3de.gateway.local import Generate
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.outcomes_ir3de import Ledger
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.prompts_ir3de import Prompt
from ir3de.scripts.data.rows import Row
from ir3de.scripts.metrics.accuracy import RoutingFigures, routing_accuracy
from ir3de.space.palette import Palette
from ir3de.specs_ir3de import has_source

if TYPE_CHECKING:
    from ir3de.gateway.feedback import Keeping

Event = dict[str, Any]  # of a pipeline's stream
Options = dict[str, Any]  # of one of Gradio's listeners, or of a call of the pipeline

UNDO_STEPS = 10
PAUSE = 0.1  # seconds between two pieces of an answer on the page
_LOG = logging.getLogger(__name__)
_HALF = re.compile(r"[\ud800-\udfff]")


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
        scored (`dict[str, list[Ledger]]`): what was added at each score of an answer, by its record's id.
    """

    router: IR3DERoutingPipeline
    palette: Palette
    before: list[IR3DERoutingPipeline] = field(default_factory=list)
    scored: dict[str, list[Ledger]] = field(default_factory=dict)


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
        keeping ([`Keeping`], *optional*): where answers that were judged are kept.
    """

    router: IR3DERoutingPipeline
    stream: Callable[..., Iterator[Event]]
    limits: Limits
    samples: Sequence[Row]
    allow_edit: bool
    note: str = ""
    generate: Generate = pieces
    keeping: Keeping | None = None

    def __post_init__(self) -> None:
        self.palette = Palette().having(_names(self.router))

    @property
    def may_judge(self) -> bool:
        """Whether visitors may say how good answers are: into the store, or into a copy of their own."""
        return self.keeping is not None or self.allow_edit

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
        with closing(stream(prompt, timeout=self.limits.seconds, recognised=self.may_judge, **options)) as events:  # type: ignore[type-var]
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
        scored = {} if visitor is None else visitor.scored
        return Visitor(after, self.palette_of(visitor).having(_names(after)), before, scored)

    def judged(self, visitor: Visitor | None, record: Event, score: float) -> tuple[Visitor | None, str]:
        """Takes a score of an answer: into the store, or where there is none, or the visitor has edited a copy of the
        router, into the visitor's copy. A further one of the same answer takes the place of the first.

        Args:
            visitor ([`Visitor`], *optional*): who judges.
            record (`dict`): of the answer, with `id`, `expert` and `recognised`.
            score (`float`): 0 to 1.

        Returns:
            `tuple[Visitor, str]`: the visitor from now on, and what to say.

        Raises:
            RefusedError: there is nowhere for it, or the store cannot take it now.
        """
        word = "good" if score > 0.5 else "bad"
        if visitor is None and self.keeping is not None:
            self._keep(self.keeping, record, score)
            return None, f"Noted for the owner: {record['expert']} was {word} here."
        if not self.allow_edit:
            raise RefusedError("Nothing is learned here.")
        scored = {} if visitor is None else dict(visitor.scored)

        def edit(model: IR3DEModel) -> None:
            """Puts the score in the place of the earlier one that is there; undoing may have changed which."""
            earlier = scored.get(record["id"], [])
            for ledger in earlier:
                with suppress(ValueError):
                    model.remove_outcomes(ledger)
            scored[record["id"]] = [*earlier, model.add_feedback(record, score)]

        after = self.edited(visitor, edit)
        after.scored = scored
        return after, f"Your copy of the router has learned that {record['expert']} was {word} here."

    def _keep(self, keeping: Keeping, record: Event, score: float) -> None:
        """Keeps an answer with its score.

        Raises:
            RefusedError: the store cannot take it now.
        """
        from ir3de.traffic.errors import StoreUnavailable, Unknown
        from ir3de.traffic.store import Answer, Given

        spec = next(spec for spec in self.router.model.config.specs if spec["name"] == record["expert"])
        fields = {"request_id": record["id"], "answer_id": None, "time": time.time(), "caller": ""}
        answer = Answer(
            uid=record["id"],
            expert=record["expert"],
            status="answered",
            recognised=record["recognised"],
            cost=spec.get("cost") if "price" not in spec else None,
            **fields,
        )
        try:
            with keeping.store.writing() as connection:
                try:
                    keeping.store.score(connection, Given(record["id"], score))
                except Unknown:  # it was not judged before
                    keeping.store.add_answers(connection, [answer])
                    keeping.store.score(connection, Given(record["id"], score))
        except StoreUnavailable as error:
            _LOG.error("The store cannot be written to: %s", error)
            raise RefusedError("This could not be noted just now: try again in a moment.") from None

    def undone(self, visitor: Visitor) -> Visitor | None:
        """The visitor before the last edit."""
        *before, last = visitor.before
        return None if last is self.router else Visitor(last, visitor.palette, before, visitor.scored)

    def figures(self, router: IR3DERoutingPipeline, **choice: Any) -> RoutingFigures | None:
        """How a router does on those samples whose domain it has; none if there are none."""
        names = router.model.config.domain_names
        rows = [row for row in self.samples if row.domain in names]
        return routing_accuracy(router, rows, **choice) if rows else None

    def check(self, prompt: str) -> str:
        """Returns a prompt without the space around it.

        Raises:
            RefusedError: it is too long, or holds half a surrogate pair, which is no text.
        """
        prompt, most = prompt.strip(), self.limits.characters
        if found := _HALF.search(prompt):
            raise RefusedError(f"The prompt holds half a surrogate pair, U+{ord(found[0]):04X}: remove it.")
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
