"""What `/metrics` shows, in Prometheus' form."""

from __future__ import annotations

import os
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from .exchange import Exchange

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)


class Metrics:
    """The counters of one gateway; those of several worker processes are added up where the files are shared."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._series: dict[tuple[Any, ...], Any] = {}
        made: Any = {"registry": self._registry}
        self._requests = Counter("ir3de_requests", "Requests", ["api", "expert", "outcome"], **made)
        self._first_byte = Histogram(
            "ir3de_first_byte_seconds", "Until the first byte went to the client", ["expert"], buckets=_SECONDS, **made
        )
        self._total = Histogram("ir3de_request_seconds", "Until the last byte", ["expert"], buckets=_SECONDS, **made)
        self._added = Histogram(
            "ir3de_added_seconds",
            "Until the first byte, without the time that the expert took",
            buckets=_SHORT_SECONDS,
            **made,
        )
        self._route = Histogram("ir3de_route_seconds", "Spent on choosing an expert", buckets=_SHORT_SECONDS, **made)
        self._tokens = Counter(
            "ir3de_tokens", "Tokens, as the experts count them, or as estimated", ["expert", "kind"], **made
        )
        self._failures = Counter("ir3de_expert_failures", "Attempts that failed", ["expert"], **made)
        self._open = Gauge(
            "ir3de_breaker_open", "Whether an expert is left alone", ["expert"], multiprocess_mode="livemax", **made
        )
        self._inside = Gauge("ir3de_requests_inside", "Requests under way", multiprocess_mode="livesum", **made)
        self._here = Gauge(
            "ir3de_requests_here",
            "Requests with experts on this machine, those that wait included",
            multiprocess_mode="livesum",
            **made,
        )
        self._feedback = Counter("ir3de_feedback", "Scores of answers", ["outcome"], **made)
        self._lost = Counter("ir3de_store_lost", "Pieces that the store could not take", **made)
        self._waiting = Gauge(
            "ir3de_store_waiting", "Pieces that wait to be stored", multiprocess_mode="livesum", **made
        )
        kinds: Any = {"multiprocess_mode": "livesum", **made}
        self._spent = Gauge("ir3de_budget_spent", "Of the budget, in this period", **kinds)
        self._left = Gauge("ir3de_budget_left", "Of the budget, in this period", **kinds)
        largest: Any = {"multiprocess_mode": "livemax", **made}
        self._price = Gauge("ir3de_price", "Score that a unit of cost must be worth", **largest)
        self._rounds = Counter("ir3de_exchange_rounds", "Rounds of exchange with other servers", ["outcome"], **made)
        self._known = Gauge("ir3de_exchange_servers", "Servers whose outcomes are known, this one too", **largest)
        self._aside = Gauge("ir3de_exchange_set_aside", "Servers whose files are not read", **largest)
        self._swaps = Counter("ir3de_router_swaps", "New revisions of the router", ["outcome"], **made)

    def inside_here(self, number: int) -> None:
        """So many requests are with experts on this machine, or wait for them."""
        self._here.set(number)

    def came_in(self) -> None:
        """A request came."""
        self._inside.inc()

    def went_out(self, exchange: Exchange) -> None:
        """It is done with."""
        self._inside.dec()
        expert = exchange.expert
        self._labelled(self._requests, exchange.api, expert, exchange.outcome).inc()
        if exchange.first_byte_seconds is not None:
            self._labelled(self._first_byte, expert).observe(exchange.first_byte_seconds)
            if exchange.expert_seconds is not None:
                self._added.observe(max(0.0, exchange.first_byte_seconds - exchange.expert_seconds))
        if exchange.route_seconds is not None:
            self._route.observe(exchange.route_seconds)
        if expert:
            self._labelled(self._total, expert).observe(exchange.seconds)
            self._labelled(self._tokens, expert, "prompt").inc(exchange.prompt_tokens)
            self._labelled(self._tokens, expert, "completion").inc(exchange.completion_tokens)

    def _labelled(self, metric: Any, *labels: str) -> Any:
        """One series of a metric, kept: to look it up checks all labels anew."""
        key = (metric, *labels)
        if key not in self._series:
            self._series[key] = metric.labels(*labels)
        return self._series[key]

    def failed(self, expert: str, is_open: bool) -> None:
        """An attempt with an expert failed."""
        self._failures.labels(expert).inc()
        self._open.labels(expert).set(is_open)

    def answered(self, expert: str) -> None:
        """An expert answered after it had failed."""
        self._open.labels(expert).set(0)

    def spent(self, spent: float, left: float, price: float) -> None:
        """So much of the budget is spent and left, and this is the price."""
        self._spent.set(spent)
        self._left.set(left)
        self._price.set(price)

    def swapped(self, outcome: str) -> None:
        """A new revision of the router was taken, refused or taken back."""
        self._swaps.labels(outcome).inc()

    def gave(self, outcome: str) -> None:
        """A score was taken (`ok`), refused, or the store was unavailable."""
        self._feedback.labels(outcome).inc()

    def lost(self, number: int) -> None:
        """So many pieces could not be stored."""
        self._lost.inc(number)

    def waits(self, number: int) -> None:
        """So many pieces wait to be stored."""
        self._waiting.set(number)

    def exchanged(self, ok: bool, known: int, aside: int) -> None:
        """A round of exchange was taken (`ok`) or refused; so many servers are known, so many set aside."""
        self._rounds.labels("ok" if ok else "refused").inc()
        self._known.set(known)
        self._aside.set(aside)

    def shown(self) -> bytes:
        """All of it as text."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)
