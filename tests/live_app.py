"""The app on the tiny world, running."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from ir3de import IR3DEConfig, IR3DEModel, IR3DERoutingPipeline
from ir3de.app import build_demo, launch
from ir3de.gateway.limits import Limits
from ir3de.scripts.data.rows import Row
from ir3de.space.site import Site

from . import tiny

WIDE = {  # twelve domains with long names, each of a few of the tiny world's words
    "account-and-login-problems": ("array", "bug", "class"),
    "billing-and-refund-requests": ("compile", "debug", "function"),
    "contract-renewal": ("integer", "loop", "pointer"),
    "delivery-delays-and-lost-parcels": ("python", "return", "script"),
    "guarantee": ("appeal", "attorney", "clause"),
    "international-customs-and-duties": ("contract", "court", "crime"),
    "marketing-newsletter-cancellation": ("judge", "jury", "lawsuit"),
    "mobile-application-crashes": ("liable", "plaintiff", "statute"),
    'Press, partners & "Öffentlichkeitsarbeit" for patients and staff (central desk)': ("algebra", "angle", "circle"),
    "product_advice_and_comparison_before_the_purchase_of_goods": ("cosine", "cube", "derivative"),
    "returns-of-damaged-goods": ("equation", "integral", "matrix"),
    "spare-parts-and-repair-instructions": ("prime", "proof", "root"),
}
LIMITS = Limits(characters=2_000, max_tokens=400)


def make_site(specs: dict[str, dict[str, Any]], **changes: Any) -> Site:
    """A site whose experts answer and cost something."""
    costs = {name: {**specs[name], "cost": cost} for name, cost in (("code", 1), ("law", 2), ("math", 3))}
    pipe = IR3DERoutingPipeline(tiny.router(costs, variant="prompt"), device="cpu")
    rows = [Row(text, domain) for domain in tiny.DOMAINS for text in tiny.sentences(domain, 6, seed=11)]
    site = {"stream": pipe.stream, "limits": LIMITS, "samples": rows, "allow_edit": True, **changes}
    return Site(pipe, **site)


def wide_site(model: str, **changes: Any) -> Site:
    """A site whose router has twelve experts with long names, of which every second only routes."""
    draw = random.Random(5)
    texts = {
        name: [" ".join(draw.choices([*words * 4, *tiny.SHARED], k=9)) for _ in range(12)]
        for name, words in WIDE.items()
    }
    specs = [
        {"name": name, **({"model": model, "cost": place} if place % 2 else {})} for place, name in enumerate(WIDE)
    ]
    config = IR3DEConfig(experts=specs, variant="prompt")
    statistics = {name: tiny.statistics(texts[name], config.features) for name in WIDE}
    pipe = IR3DERoutingPipeline(
        IR3DEModel.from_statistics(config, tiny.embeddings(), statistics, tiny.tokenizer()), device="cpu"
    )
    rows = [Row(text, name) for name in WIDE for text in texts[name][:2]]
    return Site(pipe, **{"stream": pipe.stream, "limits": LIMITS, "samples": rows, "allow_edit": True, **changes})


def judged_site(specs: dict[str, dict[str, Any]], **changes: Any) -> Site:
    """A site whose experts were judged on ten days: code and law are cheap and good at their own, math is dear and good
    at all.
    """
    site = make_site(specs, **changes)
    costs = {"code": 0.001, "law": 0.002, "math": 0.01}
    rows = []
    for domain in tiny.DOMAINS:
        for place, text in enumerate(tiny.sentences(domain, 40, seed=3)):
            good = {"code": domain == "code", "law": domain == "law" or place % 4 == 0, "math": place % 8 != 0}
            scores = {name: float(value) for name, value in good.items()}
            row = {"text": text, "domain": domain, "scores": scores, "costs": costs}
            rows.append({**row, "day": f"2026-11-{1 + 2 * (place // 4):02d}"})
    site.router.model.add_outcomes(rows)
    return site


@contextmanager
def running(site: Site) -> Iterator[str]:
    """The address of the app."""
    demo = build_demo(site)
    _, url, _ = launch(site, demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        yield url.rstrip("/")
    finally:
        demo.close(verbose=False)


class Endless:
    """Stands in for a stream: words without end until it is closed."""

    def __init__(self) -> None:
        self.open = 0

    def __call__(self, prompt: Any, **_: Any) -> Iterator[dict[str, Any]]:
        self.open += 1
        try:
            yield {"event": "route", "expert": "law", "score": 1.0, "ranking": [{"expert": "law", "score": 1.0}]}
            while True:
                time.sleep(0.02)
                yield {"event": "text", "text": "word "}
        finally:
            self.open -= 1

    def wait_closed(self) -> None:
        """Waits until every stream is closed."""
        end = time.monotonic() + 10
        while self.open:
            assert time.monotonic() < end, "a stream is still open"
            time.sleep(0.02)
