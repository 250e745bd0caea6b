"""Thumbs: a visitor says whether an answer was good, and the router learns from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from ir3de.space import views
from ir3de.space.site import Event, Options, Site, Visitor

_TOLD = ("id", "expert", "recognised")  # of a record, what a score of it needs


class Thumbs(NamedTuple):
    """The two buttons, the record of the answer that they are of, and what is said once one was pressed."""

    good: gr.Button
    bad: gr.Button
    record: gr.State
    notice: gr.HTML

    @property
    def parts(self) -> list[gr.components.Component]:
        """What changes with an answer: see [`shown`]."""
        return [self.record, self.good, self.bad]


def build(site: Site, name: str) -> Thumbs:
    """Builds them, for those who may judge.

    Args:
        site ([`Site`]): whose answers are judged.
        name (`str`): of the tab.
    """
    with gr.Row(elem_classes="ir-buttons", visible=site.may_judge):
        good = gr.Button("👍 Good answer", min_width=90, interactive=False, elem_id=f"good-{name}")
        bad = gr.Button("👎 Bad answer", min_width=90, interactive=False, elem_id=f"bad-{name}")
    return Thumbs(good, bad, gr.State(None), gr.HTML(elem_id=f"judged-{name}"))


def record_of(event: Event) -> Event | None:
    """What of the event that ends an answer is needed to judge it; None where there was no answer."""
    if event["generated_text"] is None:
        return None
    return {key: event[key] for key in _TOLD}


def shown(record: Event | None) -> tuple[Event | None, Options, Options]:
    """The record, and the buttons: active where there is one."""
    active = gr.update(interactive=record is not None)
    return record, active, active


def listen(site: Site, visitor: gr.State, thumbs: Thumbs) -> None:
    """Connects the buttons."""

    def judge(good: bool, record: Event | None, visitor: Visitor | None) -> tuple[Any, ...]:
        """Tells the router, once."""
        if record is None:
            return visitor, "", *shown(None)
        try:
            visitor, said = site.judged(visitor, record, float(good))
        except Exception as error:  # which the visitor should not read
            return visitor, views.message(site.sorry(error), "error"), *shown(record)
        return visitor, views.message(said), *shown(None)

    private: Options = {"api_visibility": "private", "show_progress": "hidden"}
    outputs = [visitor, thumbs.notice, *thumbs.parts]
    for button, good in ((thumbs.good, True), (thumbs.bad, False)):
        button.click(lambda *given, good=good: judge(good, *given), [thumbs.record, visitor], outputs, **private)
