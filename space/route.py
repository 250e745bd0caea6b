"""The Route tab: why a prompt goes where it goes, while it is typed, and what the experts answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import gradio as gr

from ir3de.choices_ir3de import VARIANTS
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.policy_ir3de import Ranked
from ir3de.scripts.data.rows import Row
from ir3de.space import thumbs, views
from ir3de.space.outcomes import most_weight
from ir3de.space.site import Event, Options, RefusedError, Site, Visitor

_FEWEST, _MOST = 6, 12  # examples
_LONGEST_EXAMPLE = 160  # characters
_VARIANTS = (
    "How the tokens of a prompt decide: the k surest vote (top-k), all vote (all), their mean decides (avg), or so it"
    " does with weights that were fitted on whole prompts (prompt)."
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

    def options(self, router: IR3DERoutingPipeline) -> Options:
        """The options of a call that they stand for.

        Raises:
            RefusedError: costs are to be weighed, and this router's experts do not all have one.
        """
        worth, costs = _about_costs(router.model)
        if self.cost_weight and not costs:
            raise RefusedError(f"Set the cost weight to 0. {worth}")
        return {
            "variant": self.variant,
            "num_votes": int(self.k),
            "min_score": self.min_score,
            "cost_weight": self.cost_weight,
        }


class _Widgets(NamedTuple):
    """The parts of the tab that act on each other."""

    prompt: gr.Textbox
    ask: gr.Button
    compare: gr.Button
    stop: gr.Button
    ranking: gr.HTML
    tokens: gr.HTML
    first: gr.HTML
    second: gr.HTML
    judging: thumbs.Thumbs


def build(site: Site, visitor: gr.State, demo: gr.Blocks) -> None:
    """Builds the tab."""
    shown = examples(site.samples)
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            prompt = gr.Textbox(
                shown[0] if shown else "",
                label="Prompt",
                info="Routed while you type. Enter lets the chosen expert answer.",
                max_length=site.limits.characters,
                max_lines=8,
                elem_id="prompt",
            )
            with gr.Row(elem_classes="ir-buttons"):
                ask = gr.Button("Answer", variant="primary", min_width=80, elem_id="answer")
                compare = gr.Button("Compare two", min_width=90, elem_id="compare")
                stop = gr.Button("Stop", min_width=60, interactive=False, elem_id="stop")
        with gr.Column(scale=6, min_width=300):
            ranking = gr.HTML(elem_id="ranking", label="Ranking")
            tokens = gr.HTML(elem_id="tokens", label="Tokens")
    with gr.Row(elem_id="answers"):
        first = gr.HTML(elem_id="first-answer", label="Answer", min_width=280)
        second = gr.HTML(elem_id="second-answer", label="Second answer", min_width=280)
    judging = thumbs.build(site, "route")
    if shown:
        rows = [[example] for example in shown]
        gr.Examples(rows, [prompt], label="Examples", examples_per_page=_MOST, elem_id="examples")
    controls = _controls(site)
    tab = _Widgets(prompt, ask, compare, stop, ranking, tokens, first, second, judging)
    _listen(site, visitor, demo, tab, controls)
    thumbs.listen(site, visitor, judging)


def examples(samples: Sequence[Row]) -> list[str]:
    """A few of the samples, of each domain in turn, short ones if there are any."""
    short = [row for row in samples if len(row.text) <= _LONGEST_EXAMPLE] or samples
    of_domain: dict[str, list[str]] = defaultdict(list)
    for row in short:
        of_domain[row.domain].append(row.text)
    in_turn = chain.from_iterable(zip_longest(*of_domain.values()))
    texts = dict.fromkeys(text for text in in_turn if text is not None)
    return list(texts)[: min(max(_FEWEST, len(of_domain)), _MOST)]


def _controls(site: Site) -> tuple[gr.Radio, gr.Slider, gr.Slider, gr.Slider, gr.Slider]:
    """Variant, k, minimum score, cost weight, and tokens of an answer."""
    config = site.router.model.config
    worth, costs = _about_costs(site.router.model)
    dearest = most_weight(site.router.model)
    most = min(512, site.limits.max_tokens)
    with gr.Accordion("Controls", open=True):
        variant = gr.Radio(
            VARIANTS, value=config.variant, label="Variant", elem_id="variant", info=_VARIANTS, elem_classes="ir-wide"
        )
        with gr.Row():
            k = gr.Slider(1, 100, config.num_votes, step=1, label="k: tokens that vote", min_width=225, elem_id="votes")
            min_score = gr.Slider(
                0, 1, config.min_score, step=0.01, label="Minimum score", min_width=225, elem_id="min-score"
            )
            cost_weight = gr.Slider(
                0, dearest, 0, step=dearest / 100, label="Cost weight", min_width=225, elem_id="cost-weight"
            )
            length = gr.Slider(
                8, most, min(128, most), step=8, label="Answer's tokens", min_width=225, elem_id="length"
            )
    k.info, k.interactive = "In variant top-k.", config.variant == "top-k"
    min_score.info = f"Below it {config.fallback_expert or 'nobody'} answers."
    cost_weight.info, cost_weight.interactive = worth, costs
    length.info = "At most."
    return variant, k, min_score, cost_weight, length


def _about_costs(model: IR3DEModel) -> tuple[str, bool]:
    """What to say of the experts' costs, and whether all have one, so that they can be weighed."""
    panel = model.panel
    experts, lacking = sorted({*panel.experts} - panel.mute), panel.lacking(panel.unpriced)
    if not lacking:
        return "Score that a unit of an expert's cost must be worth.", True
    if len(lacking) == len(experts):
        return "This router's experts have no costs.", False
    who = f"{lacking[0]} has none" if len(lacking) == 1 else f"{len(lacking)} of {len(experts)} have none"
    return f"Needs the cost of every expert that answers, and {who}.", False


def _listen(
    site: Site,
    visitor: gr.State,
    demo: gr.Blocks,
    tab: _Widgets,
    controls: tuple[gr.Radio, gr.Slider, gr.Slider, gr.Slider, gr.Slider],
) -> None:
    """Connects the parts of the tab."""
    variant, k, min_score, cost_weight, length = controls
    choice = [variant, k, min_score, cost_weight, visitor]
    active, idle = gr.update(interactive=True), gr.update(interactive=False)  # the button Stop

    def show(text: str, *choice: Any) -> tuple[str, str]:
        """The route, as the bars and the tokens."""
        *values, visitor = choice
        return shown(site, text, Controls(*values), visitor)

    def answer(text: str, length: int, *choice: Any) -> Iterator[tuple[Any, ...]]:
        """The chosen expert's answer as it comes, with thumbs to judge it once it is there."""
        *values, visitor = choice
        records: list[Event | None] = []
        yield "", "", active, *thumbs.shown(None)
        for pane in answered(site, text, length, Controls(*values), visitor, records.append):
            yield pane, "", active, *thumbs.shown(None)
        yield gr.skip(), gr.skip(), idle, *thumbs.shown(records[-1] if records else None)

    def answer_both(text: str, length: int, *choice: Any) -> Iterator[tuple[Any, ...]]:
        """The answers of the first two experts, each in its own pane as it comes."""
        *values, visitor = choice
        yield "", "", active, *thumbs.shown(None)
        for panes in compared(site, text, length, Controls(*values), visitor):
            yield *panes, active, *thumbs.shown(None)
        yield gr.skip(), gr.skip(), idle, *thumbs.shown(None)

    private: Options = {"api_visibility": "private", "show_progress": "hidden"}
    routing = {"fn": show, "inputs": [tab.prompt, *choice], "outputs": [tab.ranking, tab.tokens], "queue": False}
    parts = (tab.prompt, variant, k, min_score, cost_weight, visitor)
    changed = [part.change for part in parts]
    gr.on([*changed, demo.load], trigger_mode="always_last", **routing, **private)
    variant.change(lambda name: gr.update(interactive=name == "top-k"), variant, k, queue=False, **private)
    generating = {
        "inputs": [tab.prompt, length, *choice],
        "outputs": [tab.first, tab.second, tab.stop, *tab.judging.parts],
        "concurrency_id": "answers",
        **private,
    }
    submitted = gr.on([tab.prompt.submit, tab.ask.click], **routing, **private)
    running = [submitted.then(answer, **generating), tab.compare.click(answer_both, **generating)]
    stopped = tab.stop.click(None, cancels=running, **private)
    stopped.then(lambda: idle, None, tab.stop, queue=False, **private)


def shown(site: Site, text: str, controls: Controls, visitor: Visitor | None) -> tuple[str, str]:
    """The ranking and the tokens of a prompt, as HTML."""
    router = site.router_of(visitor)
    palette = site.palette_of(visitor)
    try:
        if not (text := site.check(text)):
            return views.message("Type a prompt to see where it goes, and why."), ""
        record = router(text, generate=False, explain=True, **controls.options(router))
    except Exception as error:  # which the visitor should not read
        return views.message(site.sorry(error), "error"), ""
    note = f"Ranked by score less {controls.cost_weight:g} times cost." if controls.cost_weight else ""
    ranking = views.route(record, palette, site.routing_only(visitor), note)
    return ranking + views.pairs(record, palette), views.tokens(record, palette)


def answered(
    site: Site,
    text: str,
    length: int,
    controls: Controls,
    visitor: Visitor | None,
    done: Callable[[Event | None], object] | None = None,
) -> Iterator[str]:
    """The chosen expert's answer as it grows, as HTML; at its end `done` is told what is needed to judge it."""
    try:
        if text := site.check(text):
            options = controls.options(site.router_of(visitor))
            yield from pane(site, visitor, text, done=done, max_new_tokens=int(length), **options)
        else:
            yield views.message("Type a prompt first.")
    except Exception as error:  # which the visitor should not read
        yield views.message(site.sorry(error), "error")


def compared(
    site: Site, text: str, length: int, controls: Controls, visitor: Visitor | None
) -> Iterator[tuple[str, str]]:
    """The answers of the first two experts, one after the other."""
    try:
        if not (text := site.check(text)):
            yield views.message("Type a prompt first."), ""
            return
        router = site.router_of(visitor)
        chosen = controls._replace(min_score=0).options(router)
        first, *others = router(text, generate=False, top_n=2, **chosen)["ranking"]
        left = ""
        for left in pane(site, visitor, text, first, max_new_tokens=int(length)):
            yield left, ""
        for other in others:
            for right in pane(site, visitor, text, other, max_new_tokens=int(length)):
                yield left, right
    except Exception as error:  # which the visitor should not read
        yield views.message(site.sorry(error), "error"), ""


def pane(
    site: Site,
    visitor: Visitor | None,
    text: str,
    entry: Ranked | None = None,
    done: Callable[[Event | None], object] | None = None,
    **options: Any,
) -> Iterator[str]:
    """An answer as it grows: of the expert that the options choose, or of that of an entry of a ranking."""
    palette = site.palette_of(visitor)
    name, score, said = "", 0.0, ""
    if entry:
        options |= {"experts": [entry["expert"]]}
    for event in site.answer(visitor, text, **options):
        if event["event"] == "route":
            name, score, said = event["expert"], entry["score"] if entry else event["score"], ""
        elif event["event"] == "text":
            said += event["text"]
        elif event["generated_text"] is None:
            yield views.message(site.no_answer(visitor, event), "error" if "failures" in event else "hint")
            return
        if done is not None and event["event"] == "record" and site.may_judge:
            done(thumbs.record_of(event))
        if name:
            yield views.answer(name, palette, score, said, "" if event["event"] == "record" else "writing")
