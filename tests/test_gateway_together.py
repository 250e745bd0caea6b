"""Requests that come at the same time are routed in one call, and nobody notices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ir3de import IR3DERoutingPipeline
from ir3de.gateway.together import Together

from . import tiny

TEXTS = [f"{text} {number}" for number in range(12) for text in ("the court and a judge", "debug my python loop")]


class Counting:
    """A router that counts its calls."""

    def __init__(self) -> None:
        self.pipe = IR3DERoutingPipeline(tiny.router(), device="cpu")
        self.sizes: list[int] = []

    def __call__(self, prompts: Any, **options: Any) -> Any:
        self.sizes.append(len(prompts) if isinstance(prompts, list) and isinstance(prompts[0], str) else 1)
        return self.pipe(prompts, **options)


def routed(router: Any, *asked: tuple[Any, dict[str, Any]]) -> list[Any]:
    """What comes of prompts that are asked for at the same time; an error stands for itself."""

    async def ask() -> list[Any]:
        together = Together()
        waiting = (together.route(router, prompt, options) for prompt, options in asked)
        return await asyncio.gather(*waiting, return_exceptions=True)

    return asyncio.run(ask())


def test_those_that_come_together_share_a_call_and_each_has_the_record_that_it_has_alone() -> None:
    router = Counting()
    records = routed(router, *((text, {}) for text in TEXTS))
    assert router.sizes == [len(TEXTS)]
    assert records == [router.pipe(text, generate=False) for text in TEXTS]


def test_a_call_is_bounded_and_nobody_is_forgotten() -> None:
    router = Counting()
    records = routed(router, *((text, {}) for text in 4 * TEXTS))
    assert router.sizes == [32, 32, 32]
    assert records == 4 * [router.pipe(text, generate=False) for text in TEXTS]


def test_each_has_its_own_options_and_router() -> None:
    first, second = Counting(), Counting()
    options: list[dict[str, Any]] = [{}, {"top_n": 1}, {"experts": ["law"]}]
    asked = [(text, options[number % 3]) for number, text in enumerate(TEXTS)]

    async def ask() -> list[Any]:
        together = Together()
        waiting = [
            together.route((first, second)[number % 2], prompt, kept)  # type: ignore[arg-type]
            for number, (prompt, kept) in enumerate(asked)
        ]
        return await asyncio.gather(*waiting)

    assert asyncio.run(ask()) == [first.pipe(text, generate=False, **kept) for text, kept in asked]
    assert first.sizes == second.sizes == [4, 4, 4]


def test_what_is_equal_and_not_the_same_does_not_share_a_call() -> None:
    router = Counting()
    *records, refused = routed(router, *((text, {"top_n": 1}) for text in TEXTS[:3]), (TEXTS[3], {"top_n": True}))
    assert records == [router.pipe(text, generate=False, top_n=1) for text in TEXTS[:3]]
    assert "`top_n`" in str(refused), "true is refused as it is alone"


def test_a_fault_of_the_router_is_told_to_each() -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    told = routed(broken, *((text, {}) for text in TEXTS[:5]))
    assert [str(error) for error in told] == 5 * ["out of memory"]


@pytest.mark.parametrize("odd", ["", [{"role": "user"}], 7])
def test_an_odd_prompt_keeps_nobody_from_an_answer(odd: Any) -> None:
    router = Counting()
    *records, refused = routed(router, *((text, {}) for text in TEXTS[:5]), (odd, {}))
    assert records == [router.pipe(text, generate=False) for text in TEXTS[:5]]
    with pytest.raises((ValueError, TypeError)) as alone:
        router.pipe(odd, generate=False)
    assert str(refused) == str(alone.value), "an error tells the one who is concerned what it tells alone"


def test_who_has_left_is_not_routed() -> None:
    router = Counting()

    async def ask() -> list[Any]:
        together = Together()
        tasks = [asyncio.ensure_future(together.route(router, text, {})) for text in TEXTS[:6]]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        tasks[2].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    records = asyncio.run(ask())
    assert isinstance(records[2], asyncio.CancelledError)
    assert router.sizes == [5]
