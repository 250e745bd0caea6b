"""The app on the tiny world, running."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from ir3de import IR3DERoutingPipeline
from ir3de.app import build_demo, launch
from ir3de.gateway.limits import Limits
from ir3de.scripts.data.rows import Row
from ir3de.space.site import Site

from . import tiny

LIMITS = Limits(characters=2_000, max_tokens=400)


def make_site(specs: dict[str, dict[str, Any]], **changes: Any) -> Site:
    """A site whose experts answer and cost something."""
    costs = {name: {**specs[name], "cost": cost} for name, cost in (("code", 1), ("law", 2), ("math", 3))}
    pipe = IR3DERoutingPipeline(tiny.router(costs, variant="prompt"), device="cpu")
    rows = [Row(text, domain) for domain in tiny.DOMAINS for text in tiny.sentences(domain, 6, seed=11)]
    site = {"stream": pipe.stream, "limits": LIMITS, "samples": rows, "allow_edit": True, **changes}
    return Site(pipe, **site)


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
