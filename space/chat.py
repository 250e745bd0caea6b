"""The Chat tab: a conversation whose answers come from the routed experts, each labelled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from ir3de.space import thumbs, views
from ir3de.space.site import Event, Options, RefusedError, Site, Visitor

Turn = dict[str, Any]  # a message; one of an expert with `expert`, `score`, `state` and `note`, at last `record` too
Turns = list[Turn]
Shown = tuple[str, Turns, str, str]  # the conversation as HTML and as turns, the message box, a notice


class _Widgets(NamedTuple):
    """The parts of the tab that act on each other."""

    turns: gr.State
    shown: gr.HTML
    said: gr.Textbox
    notice: gr.HTML
    send: gr.Button
    stop: gr.Button
    retry: gr.Button
    clear: gr.Button
    judging: thumbs.Thumbs


def build(site: Site, visitor: gr.State) -> None:
    """Builds the tab."""
    turns = gr.State([])
    shown = gr.HTML(views.conversation([], site.palette), elem_id="chat")
    said = gr.Textbox(
        label="Your message",
        placeholder="Ask, then ask about something else",
        max_length=site.limits.characters,
        max_lines=6,
        elem_id="message",
    )
    notice = gr.HTML(elem_id="chat-notice")
    with gr.Row(elem_classes="ir-buttons"):
        send = gr.Button("Send", variant="primary", min_width=70, elem_id="send")
        stop = gr.Button("Stop", min_width=60, interactive=False, elem_id="stop-chat")
        retry = gr.Button("Retry", min_width=60, interactive=False, elem_id="retry")
        clear = gr.Button("Clear", min_width=60, interactive=False, elem_id="clear")
    judging = thumbs.build(site, "chat")
    _listen(site, visitor, _Widgets(turns, shown, said, notice, send, stop, retry, clear, judging), _choices(site))
    thumbs.listen(site, visitor, judging)


def _choices(site: Site) -> list[gr.components.Component]:
    """Stickiness, what is routed on, and the length of an answer."""
    most = min(512, site.limits.max_tokens)
    with gr.Row():
        stickiness = gr.Slider(
            0,
            1,
            0.2,
            step=0.05,
            label="Stickiness",
            info="By how much another expert must lead to take over the conversation.",
            elem_id="stickiness",
        )
        route_on = gr.Radio(
            [("last message", "last"), ("whole conversation", "conversation")], value="last", label="Route on"
        )
        length = gr.Slider(8, most, min(128, most), step=8, label="Tokens of an answer", elem_id="chat-length")
    return [stickiness, route_on, length]


def _listen(site: Site, visitor: gr.State, tab: _Widgets, choices: list[gr.components.Component]) -> None:
    """Connects the parts of the tab."""

    def buttons(running: bool, turns: Turns) -> tuple[Any, ...]:
        """Stop, Retry, Clear and the thumbs: active where they act."""
        active = (running, bool(turns) and not running, bool(turns))
        record = turns[-1].get("record") if turns and not running else None
        return *(gr.update(interactive=each) for each in active), *thumbs.shown(record)

    def grown(answer: Iterator[Shown], turns: Turns, said: str) -> Iterator[tuple[Any, ...]]:
        """An answer as it grows, and the buttons that act meanwhile and after it."""
        yield gr.skip(), turns, said, "", *buttons(True, turns)
        after = turns
        for html, after, still_said, notice in answer:
            yield html, after, still_said, notice, *buttons(True, after)
        yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), *buttons(False, after)

    def ask(text: str, turns: Turns, *choice: Any) -> Iterator[tuple[Any, ...]]:
        """A message and its answer."""
        if not text.strip():
            yield gr.skip(), turns, text, views.message("Type a message first."), *buttons(False, turns)
            return
        yield from grown(replied(site, text, turns, *choice), turns, text)

    def again(text: str, turns: Turns, *choice: Any) -> Iterator[tuple[Any, ...]]:
        """The last message once more."""
        asked = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if asked is not None:
            yield from grown(retried(asked, text, turns, *choice), turns, text)

    def retried(asked: int, text: str, turns: Turns, *choice: Any) -> Iterator[Shown]:
        """Another answer to one of the messages; where that fails the answer before stays."""
        for html, after, _, notice in replied(site, turns[asked]["content"], turns[:asked], *choice):
            if notice:
                yield views.conversation(turns, site.palette_of(choice[-1])), turns, text, notice
            else:
                yield html, after, text, notice

    def halt(turns: Turns, visitor: Visitor | None) -> tuple[Any, ...]:
        """What there is of an answer that was stopped."""
        turns = [{**turn, "state": ""} for turn in turns]
        return views.conversation(turns, site.palette_of(visitor)), turns, *buttons(False, turns)

    private: Options = {"api_visibility": "private", "show_progress": "hidden"}
    active = [tab.stop, tab.retry, tab.clear, *tab.judging.parts]
    generating: Options = {
        "inputs": [tab.said, tab.turns, *choices, visitor],
        "outputs": [tab.shown, tab.turns, tab.said, tab.notice, *active],
        "concurrency_id": "answers",
        **private,
    }
    running = [gr.on([tab.said.submit, tab.send.click], ask, **generating), tab.retry.click(again, **generating)]
    stopped = tab.stop.click(None, cancels=running, **private)
    stopped.then(halt, [tab.turns, visitor], [tab.shown, tab.turns, *active], queue=False, **private)
    empty: tuple[Any, ...] = (views.conversation([], site.palette), [], "", *buttons(False, []))
    emptied = [tab.shown, tab.turns, tab.notice, *active]
    tab.clear.click(lambda: empty, None, emptied, cancels=running, queue=False, **private)


def replied(
    site: Site, text: str, before: Turns, stickiness: float, route_on: str, length: int, visitor: Visitor | None
) -> Iterator[Shown]:
    """The conversation as the answer to a new message grows; where that fails it stays as it was, with a notice."""
    palette = site.palette_of(visitor)
    reply: Turn = {"role": "assistant"}
    turns = [*before, {"role": "user", "content": text.strip()}]
    chat = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    kept = views.conversation(before, palette), before, text
    try:
        site.check("\n".join(message["content"] for message in chat))
        events = site.answer(visitor, chat, stickiness=stickiness, route_on=route_on, max_new_tokens=int(length))
        for event in events:
            if event["event"] == "route" and event["expert"]:
                reply = {**reply, "content": "", "state": "writing", "note": _note(event)}
                reply |= {"expert": event["expert"], "score": event["score"]}
            elif event["event"] == "text":
                reply = {**reply, "content": reply["content"] + event["text"]}
            elif event["event"] == "record" and event["generated_text"] is None:
                raise RefusedError(site.no_answer(visitor, event))
            elif event["event"] == "record":
                reply = {**reply, "state": ""}
                if site.may_judge:
                    reply["record"] = thumbs.record_of(event)
            if "content" in reply:
                yield views.conversation([*turns, reply], palette), [*turns, reply], "", ""
    except Exception as error:  # which the visitor should not read
        yield *kept, views.message(site.sorry(error), "error")


def _note(event: Event) -> str:
    """Whether stickiness kept the conversation with its expert."""
    best = event["ranking"][0]
    if best["expert"] == event["expert"] or event.get("fallback") or "failures" in event:
        return ""
    lead = best["score"] - event["score"]
    return f"Stays with {event['expert']}: {best['expert']} leads by {lead:.2f} only."
