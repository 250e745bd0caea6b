"""The Measured tab: the card's figures, and what can be measured here and now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import gradio as gr

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.second_opinion_ir3de import load_encoder
from ir3de.space import views
from ir3de.space.palette import Palette
from ir3de.space.site import Options, Site, Visitor

Work = Callable[[list[str]], object]  # on a batch of texts

VOTES = (1, 2, 5, 10, 20, 50, 100)
_REPEATS = 20


def build(site: Site, visitor: gr.State, tab: gr.Tab) -> None:
    """Builds the tab."""
    shown = gr.HTML(elem_id="figures")
    private: Options = {"api_visibility": "private"}
    gr.on(
        [tab.select, visitor.change],
        lambda visitor: figures(site, visitor),
        visitor,
        shown,
        show_progress="minimal",
        concurrency_id="measuring",
        **private,
    )
    measure = gr.Button("Measure latency on this machine", elem_id="measure")
    times = gr.HTML(elem_id="latency")
    measure.click(
        lambda visitor: latency(site, visitor),
        visitor,
        times,
        concurrency_id="measuring",
        concurrency_limit=1,
        **private,
    )


def figures(site: Site, visitor: Visitor | None) -> str:
    """The router's figures, as HTML."""
    router, palette = site.router_of(visitor), site.palette_of(visitor)
    return _card(router.model.config, palette) + _live(site, router, palette)


def _card(config: IR3DEConfig, palette: Palette) -> str:
    """What was measured when the router was fitted."""
    evaluation = config.evaluation
    if not evaluation:
        return views.message("This router holds no figures of its own.")
    edited = " The experts were edited since: the figures are of the router before." if config.measured_on else ""
    tiles = [
        (views.percent(evaluation["macro_accuracy"]), "are taken for the right domain, as a mean over the domains"),
        (f"{100 * evaluation['standard_error']:.1f}", "points of standard error of that"),
        (f"{evaluation['calibration_error']:.3f}", "calibration error: how far scores are from shares that are right"),
        (f"{evaluation['prompts']:,}", "prompts that were held out"),
    ]
    shown = "".join(f'<div class="ir-tile"><b>{value}</b><span>{what}</span></div>' for value, what in tiles)
    note = views.message(
        f"From the router's card: prompts that were held out to measure it, before it was fitted on all.{edited}"
    )
    if "confusion" in evaluation:
        table = views.confusion(evaluation, config.domain_names, palette, "What held-out prompts were taken for")
    else:
        rows = [
            (palette.badge(name), views.percent(domain["recall"]), f"{domain['prompts']:,}")
            for name, domain in evaluation["domains"].items()
        ]
        table = views.table(
            ("domain", "right", "held-out prompts"), rows, "How many prompts of each domain are recognised"
        )
    return f'<h3>When it was fitted</h3>{note}<div class="ir-tiles">{shown}</div>{table}'


def _live(site: Site, router: IR3DERoutingPipeline, palette: Palette) -> str:
    """What is measured now on the samples."""
    own = site.figures(router)
    if own is None:
        return views.message("This router comes without sample prompts of its domains to measure on here.")
    config = router.model.config
    caption = f"What the {own['prompts']} sample prompts are taken for: {100 * own['macro_accuracy']:.1f} % are right"
    used = f"This router uses variant {config.variant}"
    used += f" with k = {config.num_votes}" if config.variant == "top-k" else ""
    points = []
    for k in VOTES:
        voted = site.figures(router, variant="top-k", num_votes=k)
        points.append((k, voted["macro_accuracy"] if voted else 0.0))
    return (
        "<h3>Now, on the sample prompts</h3>"
        + views.message("A few labelled prompts that the owner chose as examples: they say little of other prompts.")
        + views.confusion(own, config.domain_names, palette, caption)
        + views.curve(points, f"Accuracy with variant top-k, by k, the tokens that vote. {used}.")
    )


def latency(site: Site, visitor: Visitor | None) -> str:
    """Time a prompt takes to be tokenized, routed and, where there is one, encoded, as HTML."""
    router = site.router_of(visitor)
    texts = [row.text for row in site.samples] or ["Which expert should answer this?"] * 40

    def tokenize(batch: list[str]) -> object:
        """What routing cannot do without."""
        return router.tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)

    tasks: list[tuple[str, Work, int]] = [
        ("tokenizing alone", tokenize, _REPEATS),
        ("tokenizing and routing", lambda batch: router(batch, generate=False), _REPEATS),
    ]
    encode = _encoder()
    if encode:
        tasks.append(("a sentence encoder (MiniLM), before any routing", encode, 1))
    rows = [
        (what, *(f"{_microseconds(work, texts, n, repeats):,.0f}" for n in (1, len(texts))))
        for what, work, repeats in tasks
    ]
    head = ("what", "µs a prompt, one by one", f"µs a prompt, {len(texts)} at once")
    note = "" if encode else views.message("No sentence encoder is installed here to compare with.")
    return (
        views.table(head, rows, f"Measured just now: {len(texts)} prompts, best of {_REPEATS} (encoder: one) runs")
        + note
    )


def _microseconds(work: Work, texts: Sequence[str], at_once: int, repeats: int) -> float:
    """The best time a prompt, after one run that does not count."""
    batches = [list(texts[i : i + at_once]) for i in range(0, len(texts), at_once)]
    work(batches[0])
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        for batch in batches:
            work(batch)
        best = min(best, time.perf_counter() - started)
    return 1e6 * best / len(texts)


def _encoder() -> Work | None:
    """A sentence encoder, if one is installed with its weights."""
    from ir3de.scripts.routers.encoders import MINILM, default_encoder

    place = default_encoder()
    if place == MINILM:
        return None
    try:
        model = load_encoder(place, device="cpu")
    except ImportError:
        return None
    return lambda batch: model.encode(batch, batch_size=len(batch), show_progress_bar=False)
