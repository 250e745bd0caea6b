"""The Route tab: why a prompt goes where it goes, while it is typed, and what the experts answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from ir3de.choices_ir3de import VARIANTS
from ir3de.policy_ir3de import Ranked
from ir3de.space import views
from ir3de.space.site import Options, Site, Visitor

EXAMPLES = (
    "Explain how to compute prime numbers with a sieve.",
    "Does quantum mechanics leave room for free will?",
    "Who invented calculus, and who got the credit?",
    "Write a Python function that simulates a falling ball.",
    "Is a proof by computer still a proof?",
    "How did the steam engine change warfare?",
)


class Controls(NamedTuple):
    """
    What the controls of the tab say.

    Args:
        variant (`str`): of the router.
        k (`float`): tokens that vote in top-k, a whole number, which a slider may give as a float.
        min_score (`float`): below it the fallback answers, or nobody.
        cost_weight (`float`): score that a unit of an expert's cost must be worth.
    """

    variant: str
    k: float
    min_score: float
    cost_weight: float

    def options(self) -> Options:
        """The options of a call that they stand for."""
        return {
            "variant": self.variant,
            "num_votes": int(self.k),
            "min_score": self.min_score,
            "cost_weight": self.cost_weight,
        }


def build(site: Site, visitor: gr.State, demo: gr.Blocks) -> None:
    """Builds the tab."""
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            prompt = gr.Textbox(
                EXAMPLES[0],
                label="Prompt",
                info="Routed while you type. Enter lets the chosen expert answer.",
                max_length=site.limits.characters,
                max_lines=8,
                elem_id="prompt",
            )
            with gr.Row():
                ask = gr.Button("Answer", variant="primary", min_width=80, elem_id="answer")
                compare = gr.Button("Compare two", min_width=80, elem_id="compare")
                stop = gr.Button("Stop", min_width=60, elem_id="stop")
        with gr.Column(scale=6, min_width=300):
            ranking = gr.HTML(elem_id="ranking", label="Ranking")
            tokens = gr.HTML(elem_id="tokens", label="Tokens")
    with gr.Row():
        first = gr.HTML(elem_id="first-answer", label="Answer", min_width=280)
        second = gr.HTML(elem_id="second-answer", label="Second answer", min_width=280)
    gr.Examples([[example] for example in EXAMPLES], [prompt], label="Examples between two domains")
    variant, k, min_score, cost_weight, length = _controls(site)

    choice = [variant, k, min_score, cost_weight, visitor]

    def show(text: str, *choice: Any) -> tuple[str, str]:
        *values, visitor = choice
        return shown(site, text, Controls(*values), visitor)

    def answer(text: str, length: int, *choice: Any) -> Iterator[tuple[str, str]]:
        *values, visitor = choice
        for pane in answered(site, text, length, Controls(*values), visitor):
            yield pane, ""

    def answer_both(text: str, length: int, *choice: Any) -> Iterator[tuple[str, str]]:
        *values, visitor = choice
        yield from compared(site, text, length, Controls(*values), visitor)

    private: Options = {"api_visibility": "private", "show_progress": "hidden"}
    routing = {"fn": show, "inputs": [prompt, *choice], "outputs": [ranking, tokens], "queue": False, **private}
    changes = [prompt.change, variant.change, k.change, min_score.change, cost_weight.change, visitor.change]
    gr.on([*changes, demo.load], trigger_mode="always_last", **routing)
    variant.change(lambda name: gr.update(interactive=name == "top-k"), variant, k, queue=False, **private)
    generating = {
        "inputs": [prompt, length, *choice],
        "outputs": [first, second],
        "concurrency_id": "answers",
        **private,
    }
    submitted = gr.on([prompt.submit, ask.click], **routing)
    answering = submitted.then(answer, **generating)
    comparing = compare.click(answer_both, **generating)
    stop.click(None, cancels=[answering, comparing], **private)


def _controls(site: Site) -> tuple[gr.Radio, gr.Slider, gr.Slider, gr.Slider, gr.Slider]:
    """Variant, k, minimum score, cost weight, and tokens of an answer."""
    config = site.router.model.config
    costs = all("cost" in spec for spec in config.experts)
    worth = "What a unit of an expert's cost must be worth." if costs else "This router's experts have no costs."
    most = min(512, site.limits.max_tokens)
    with gr.Accordion("Controls", open=True):
        variant = gr.Radio(VARIANTS, value=config.variant, label="Variant", elem_id="variant")
        with gr.Row():
            k = gr.Slider(1, 100, config.num_votes, step=1, label="k: tokens that vote", min_width=225, elem_id="votes")
            min_score = gr.Slider(
                0, 1, config.min_score, step=0.01, label="Minimum score", min_width=225, elem_id="min-score"
            )
            cost_weight = gr.Slider(0, 1, 0, step=0.01, label="Cost weight", min_width=225, elem_id="cost-weight")
            length = gr.Slider(
                8, most, min(128, most), step=8, label="Answer's tokens", min_width=225, elem_id="length"
            )
    k.info, k.interactive = "In variant top-k.", config.variant == "top-k"
    min_score.info = "Below it the fallback, or nobody."
    cost_weight.info, cost_weight.interactive = worth, costs
    length.info = "At most."
    return variant, k, min_score, cost_weight, length


def shown(site: Site, text: str, controls: Controls, visitor: Visitor | None) -> tuple[str, str]:
    """The ranking and the tokens of a prompt, as HTML."""
    router = site.router_of(visitor)
    names = router.model.config.expert_names
    try:
        if not (text := site.check(text)):
            return views.message("Type a prompt to see where it goes, and why."), ""
        record = router(text, generate=False, explain=True, **controls.options())
    except ValueError as error:
        return views.message(str(error), "error"), ""
    note = f"Ranked by score less {controls.cost_weight:g} times cost." if controls.cost_weight else ""
    return views.route(record, names, note), views.tokens(record, names)


def answered(site: Site, text: str, length: int, controls: Controls, visitor: Visitor | None) -> Iterator[str]:
    """The chosen expert's answer as it grows, as HTML."""
    try:
        if text := site.check(text):
            yield from pane(site, visitor, text, max_new_tokens=int(length), **controls.options())
    except ValueError as error:
        yield views.message(str(error), "error")


def compared(
    site: Site, text: str, length: int, controls: Controls, visitor: Visitor | None
) -> Iterator[tuple[str, str]]:
    """The answers of the first two experts, one after the other."""
    try:
        if not (text := site.check(text)):
            return
        chosen = controls._replace(min_score=0).options()
        first, *others = site.router_of(visitor)(text, generate=False, top_n=2, **chosen)["ranking"]
        left = ""
        for left in pane(site, visitor, text, first, max_new_tokens=int(length)):
            yield left, ""
        for other in others:
            for right in pane(site, visitor, text, other, max_new_tokens=int(length)):
                yield left, right
    except ValueError as error:
        yield views.message(str(error), "error"), ""


def pane(site: Site, visitor: Visitor | None, text: str, entry: Ranked | None = None, **options: Any) -> Iterator[str]:
    """An answer as it grows: of the expert that the options choose, or of that of an entry of a ranking."""
    names = site.router_of(visitor).model.config.expert_names
    name, score, said = "", 0.0, ""
    if entry:
        options |= {"experts": [entry["expert"]]}
    for event in site.answer(visitor, text, **options):
        if event["event"] == "route":
            name, score, said = event["expert"], entry["score"] if entry else event["score"], ""
        elif event["event"] == "text":
            said += event["text"]
        elif event["expert"] is None:
            yield views.message("No expert scores at least the minimum, so nobody answers.")
            return
        elif event["generated_text"] is None:
            yield views.message("No expert could answer. Its model may be missing or out of reach.", "error")
            return
        if name:
            yield views.answer(name, names, score, said, "" if event["event"] == "record" else "writing")
