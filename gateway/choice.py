"""Who shall answer: the experts that can, ranked by the router, and for an agent the one that it began with."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from ir3de.policy_ir3de import Record

from .capabilities import capable
from .conversations import Conversations
from .errors import TOO_LONG, GatewayError
from .limits import Limits
from .orders import not_here
from .requests import ROUTER, Ask
from .serving import Serving
from .together import Together
from .words import Words

if TYPE_CHECKING:
    from .purse import Purse


_NO_WORDS = "(no words)"  # what stands for a prompt in which nobody said anything


class Choice(NamedTuple):
    """
    Who shall answer.

    Args:
        record (`dict`): of the pipeline: the chosen `expert`, its `score`, the `ranking`.
        candidates (`list[str]`): those that may answer, the chosen one first.
        before (`str`, *optional*): who answered this conversation before.
        said (`str`): what was routed on.
        costs (`dict[str, float]`): that are expected of all experts, where there is a budget.
    """

    record: Record
    candidates: list[str]
    before: str | None = None
    said: str = ""
    costs: dict[str, float] = {}  # noqa: RUF012


class Chooser:
    """
    Chooses who answers a request.

    Args:
        words ([`Words`]): what takes a harness's wrappers off a message.
        limits ([`Limits`]): what experts on this machine may be asked for.
        conversations ([`Conversations`]): who answered which.
        recognises (`bool`): whether records tell what was recognised, as answers that are kept need it.
        purse ([`Purse`], *optional*): of a budget.
    """

    def __init__(
        self,
        words: Words,
        limits: Limits,
        conversations: Conversations,
        recognises: bool = False,
        purse: Purse | None = None,
    ) -> None:
        self._words = words
        self._limits = limits
        self._recognises = recognises
        self._purse = purse
        self.conversations = conversations
        self._together = Together()

    async def choose(self, ask: Ask, serving: Serving) -> Choice:
        """The experts that may answer, best first.

        Args:
            ask ([`Ask`]): the request.
            serving ([`Serving`]): the router and its experts.

        Raises:
            GatewayError: none can do what it needs, the router would have nobody answer, its options are wrong, or the
                budget is spent.
        """
        choice = await self._choose(ask, serving)
        if self._purse is not None and ask.generate:
            choice = self._purse.afforded(choice, serving.router.model.panel, ask.model != ROUTER)
        return await self._with_recognised(choice, ask, serving) if self._recognises else choice

    async def _choose(self, ask: Ask, serving: Serving) -> Choice:
        if serving.here:
            ask = ask._replace(needs=ask.needs._replace(not_here=not_here(ask, self._limits)))
        if ask.model != ROUTER:
            self._able([ask.model], ask, serving)
            return _only(ask.model)
        if ask.previous is not None:
            return _only(self._who_made(ask.previous, serving))
        names = serving.router.model.config.expert_names
        allowed = self._allowed(ask, names)
        able = self._able([name for name in allowed if name in serving.experts], ask, serving)
        unable = serving.experts.keys() - able
        prompt = self._prompt(ask, _read(serving))
        if prompt is None:
            await self._route(_NO_WORDS, serving, dict(ask.options))  # which refuses options that make no sense
            return self._without_words(ask, [name for name in allowed if name in able], list(able), serving)
        options = dict(ask.options)
        if not unable.isdisjoint(allowed):
            options["experts"] = [name for name in allowed if name not in unable]
        priced = options if self._purse is None else self._purse.priced(options, serving.router.model.panel)
        record = await self._route(prompt, serving, priced)
        if priced is not options and "fallback" in record:
            # What a price chooses may score below the minimum. Nobody goes without an answer for that.
            record = await self._route(prompt, serving, options)
        if not ask.generate:
            return Choice(record, [])
        if self._purse is not None:
            self._purse.saw(record, serving.router.model.panel)
        return self._kept(ask, record, _candidates(record, able, ask, serving), unable)

    async def _with_recognised(self, choice: Choice, ask: Ask, serving: Serving) -> Choice:
        """The choice with what was recognised, also where an expert was named and nothing was routed."""
        prompt = self._prompt(ask, _read(serving))
        record = choice.record
        if "recognised" not in record and prompt is not None:
            with suppress(GatewayError):  # there is nothing to recognise in it
                record = {**record, "recognised": (await self._route(prompt, serving, {}))["recognised"]}
        said = prompt[-1]["content"] if isinstance(prompt, list) else prompt or ""
        return choice._replace(record=record, said=said)

    def _who_made(self, response: str, serving: Serving) -> str:
        """Who keeps a response that a request goes on from.

        Raises:
            GatewayError: that is not known here.
        """
        expert = self.conversations.expert(response)
        if expert is None or expert not in serving.experts:
            message = "`previous_response_id` names no response of this gateway; send the conversation, or its expert."
            raise GatewayError(400, "previous_response_not_found", message, "previous_response_id")
        return expert

    def _allowed(self, ask: Ask, names: list[str]) -> list[str]:
        """The experts that a request lets answer; a list that makes no sense is left to the pipeline's own check."""
        asked = ask.options.get("experts")
        if not isinstance(asked, list):
            return names
        if unknown := [name for name in asked if name not in names]:
            raise GatewayError(400, "invalid_value", f"There is no expert {unknown[0]!r}; there are {names}.", "ir3de")
        return [name for name in names if name in asked]

    def _able(self, names: list[str], ask: Ask, serving: Serving) -> set[str]:
        """All experts that can do what a request needs.

        Args:
            names (`list[str]`): those that may answer.

        Raises:
            GatewayError: none of `names` can.
        """
        able = set(capable(serving.experts, serving.experts, ask.needs)[0])
        if names and able.isdisjoint(names):
            refusal = ask.needs.not_here
            if refusal is not None and capable(names, serving.experts, ask.needs._replace(not_here=None))[0]:
                raise refusal  # nothing else is missing
            _, lacking = capable(names, serving.experts, ask.needs)
            hint = f" These could: {', '.join(sorted(able))}." if able else ""
            is_long = bool(capable(names, serving.experts, ask.needs._replace(tokens=0))[0])  # and no more is missing
            code = TOO_LONG if is_long else "unsupported_value"
            raise GatewayError(400, code, f"No expert has what this request needs ({lacking}).{hint}")
        return able

    def _without_words(self, ask: Ask, allowed: list[str], able: list[str], serving: Serving) -> Choice:
        """Who answers where there is nothing to route on, such as an image alone: who has the agent's conversation, the
        only one that can, or the fallback.

        Args:
            ask ([`Ask`]): the request.
            allowed, able (`list[str]`): experts that can do what it needs: those that may answer it, and all.
            serving ([`Serving`]): the router and its experts.

        Raises:
            GatewayError: there is none of these.
        """
        before = self.conversations.expert(ask.conversation) if ask.agent else None
        fallback = serving.router.policy(ask.options).fallback_expert
        if before in allowed or len(allowed) == 1:
            choice = _only(before if before in allowed else allowed[0])
        elif fallback in able:
            choice = _only(fallback)
        else:
            message = f"`{ask.api.conversation}` holds no text of a user to route on: add one, or name an expert."
            raise GatewayError(400, "nothing_to_route_on", message, ask.api.conversation)
        return choice if ask.generate else choice._replace(candidates=[])

    async def _route(self, prompt: Any, serving: Serving, options: dict[str, Any]) -> Record:
        """The pipeline's record.

        Raises:
            GatewayError: an option is out of range.
        """
        router = serving.router
        if self._recognises:
            options = {**options, "recognised": True}
        try:
            if router.second_opinion is None:
                record = await self._together.route(router, prompt, options)
            else:  # a sentence encoder takes too long for the loop
                record = await asyncio.to_thread(lambda: router(prompt, generate=False, **options))
        except (ValueError, TypeError, OverflowError) as error:
            raise GatewayError(400, "invalid_value", str(error)[:500], "ir3de") from None
        return record

    def _prompt(self, ask: Ask, most: int) -> Any:
        """What is routed on: the person's last words; an agent's first, so that it stays with its expert; or by option
        each turn. None where nobody said anything.
        """
        if "stickiness" in ask.options or "route_on" in ask.options:
            turns = [text for text in map(self._words.of, ask.said) if text] or ask.said
            return [{"role": "user", "content": _clean(text, most)} for text in turns if text.strip()] or None
        order = ask.said if ask.agent else ask.said[::-1]
        text = next((words for words in map(self._words.of, order) if words), None)
        if text is None:
            text = next((said for said in order if said.strip()), None)
        return None if text is None else _clean(text, most)

    def _kept(self, ask: Ask, record: Record, candidates: list[str], unable: set[str]) -> Choice:
        """The choice, with the expert first that an agent's conversation has had, where it may still answer."""
        before = self.conversations.expert(ask.conversation) if ask.agent else None
        if "stickiness" in ask.options or before not in candidates or before in unable:
            return Choice(record, candidates, before)
        assert before is not None
        score = next((entry["score"] for entry in record["ranking"] if entry["expert"] == before), record["score"])
        record = {**record, "expert": before, "score": score}
        return Choice(record, [before, *(name for name in candidates if name != before)], before)


def _read(serving: Serving) -> int:
    """Characters of a prompt that are enough for all tokens that count."""
    length: int = serving.router.model.config.max_length
    return 32 * length


def _only(name: str) -> Choice:
    """The choice where there is none."""
    return Choice({"expert": name, "score": 1.0, "ranking": [{"expert": name, "score": 1.0}]}, [name])


def _candidates(record: Record, able: set[str], ask: Ask, serving: Serving) -> list[str]:
    """The chosen expert, and after it those of `able` that may answer where it fails.

    Raises:
        GatewayError: the router has nobody answer, or somebody who only routes.
    """
    chosen = record["expert"]
    if chosen is None:
        message = "This prompt lies below `min_score` or `min_familiarity`, and there is no `fallback_expert`."
        raise GatewayError(422, "no_expert", message, "ir3de", details=record)
    if chosen not in serving.experts:
        message = f"Expert {chosen!r} only routes: its spec has no `model`, `adapter` or `endpoint` to answer with."
        raise GatewayError(422, "no_answer", message, "ir3de", details=record)
    if chosen not in able:  # a fallback, since the others were left out before the ranking
        _, lacking = capable([chosen], serving.experts, ask.needs)
        message = f"Expert {chosen!r}, who stands in, has not all that this request needs ({lacking})."
        raise GatewayError(400, "unsupported_value", message)
    names = (candidate["expert"] for candidate in serving.router.policy(ask.options).candidates(record))
    return [name for name in names if name in able]


def _clean(text: str, most: int) -> str:
    """The beginning of a text, without the halves of characters that tokenizers refuse."""
    return text[:most].encode("utf-8", "replace").decode()
