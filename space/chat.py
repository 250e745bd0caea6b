"""The Chat tab: a conversation whose answers come from the routed experts, each labelled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ir3de.space import views
from ir3de.space.site import Event, Options, Site, Visitor

Turn = dict[str, Any]  # a message; one of an expert with `expert`, `score`, `state` and `note` too
Turns = list[Turn]
Shown = tuple[str, Turns, str, str]  # the conversation as HTML and as turns, the message box, a notice


def build(site: Site, visitor: gr.State) -> None:
    """Builds the tab."""
    turns = gr.State([])
    shown = gr.HTML(views.conversation([], []), elem_id="chat")
    said = gr.Textbox(
        label="Your message",
        placeholder="Ask, then ask about something else",
        max_length=site.limits.characters,
        max_lines=6,
        elem_id="message",
    )
    notice = gr.HTML(elem_id="chat-notice")
    with gr.Row():
        send = gr.Button("Send", variant="primary", min_width=80, elem_id="send")
        stop = gr.Button("Stop", min_width=70, elem_id="stop-chat")
        retry = gr.Button("Retry", min_width=70, elem_id="retry")
        clear = gr.Button("Clear", min_width=70, elem_id="clear")
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
        most = min(512, site.limits.max_tokens)
        length = gr.Slider(8, most, min(128, most), step=8, label="Tokens of an answer", elem_id="chat-length")

    def ask(text: str, turns: Turns, *choice: Any) -> Iterator[Shown]:
        if text.strip():
            yield from replied(site, text, turns, *choice)

    def again(text: str, turns: Turns, *choice: Any) -> Iterator[Shown]:
        asked = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if asked is not None:
            for html, after, _, notice in replied(site, turns[asked]["content"], turns[:asked], *choice):
                yield html, after, text, notice

    def halt(turns: Turns, visitor: Visitor | None) -> tuple[str, Turns]:
        turns = [{**turn, "state": ""} for turn in turns]
        return views.conversation(turns, site.router_of(visitor).model.config.expert_names), turns

    private: Options = {"api_visibility": "private", "show_progress": "hidden"}
    generating: Options = {
        "inputs": [said, turns, stickiness, route_on, length, visitor],
        "outputs": [shown, turns, said, notice],
        "concurrency_id": "answers",
        **private,
    }
    running = [gr.on([said.submit, send.click], ask, **generating), retry.click(again, **generating)]
    stop.click(None, cancels=running, **private).then(halt, [turns, visitor], [shown, turns], queue=False, **private)
    empty: tuple[str, Turns, str] = (views.conversation([], []), [], "")
    clear.click(lambda: empty, None, [shown, turns, notice], cancels=running, queue=False, **private)


def replied(
    site: Site, text: str, before: Turns, stickiness: float, route_on: str, length: int, visitor: Visitor | None
) -> Iterator[Shown]:
    """The conversation as the answer to a new message grows; where that fails it stays as it was, with a notice."""
    names = site.router_of(visitor).model.config.expert_names
    reply: Turn = {"role": "assistant"}
    turns = [*before, {"role": "user", "content": text.strip()}]
    chat = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    kept = views.conversation(before, names), before, text
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
                raise ValueError("No expert could answer. Its model may be missing or out of reach.")
            elif event["event"] == "record":
                reply = {**reply, "state": ""}
            if "content" in reply:
                yield views.conversation([*turns, reply], names), [*turns, reply], "", ""
    except ValueError as error:
        yield *kept, views.message(str(error), "error")


def _note(event: Event) -> str:
    """Whether stickiness kept the conversation with its expert."""
    best = event["ranking"][0]
    if best["expert"] == event["expert"] or event.get("fallback") or "failures" in event:
        return ""
    lead = best["score"] - event["score"]
    return f"Stays with {event['expert']}: {best['expert']} leads by {lead:.2f} only."
