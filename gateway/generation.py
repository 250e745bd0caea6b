"""The generation of an expert on this machine, piece by piece, with what ended it and how many tokens it took."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple, cast

import torch
from transformers import LogitsProcessor, TextStreamer
from transformers.cli.serving.utils import (
    ReasoningText,
    ToolCall,
    build_response_parser,
    get_response_template,
    response_events_to_chunks,
)

from ir3de.experts_ir3de import ExpertPool, from_thread
from ir3de.local_sources_ir3de import LocalSource
from ir3de.options_ir3de import MOST_SEED
from ir3de.remote_experts_ir3de import RemoteModel
from ir3de.specs_ir3de import ExpertSpec, is_remote

from .orders import Order


class Scored(NamedTuple):
    """
    A token of an answer and its log probability.

    Args:
        token (`str`): its text.
        logprob (`float`): before sampling changes it.
        start (`int`): where its text begins in the answer, in characters.
        others (`tuple[Scored]`): the likeliest tokens in its place, itself among them where it is one.
    """

    token: str
    logprob: float
    start: int = 0
    others: tuple[Scored, ...] = ()


class Piece(NamedTuple):
    """
    A piece of an answer.

    Args:
        kind (`str`): `"text"`, `"reasoning"`, `"call"` of a tool, or `"end"`.
        text (`str`): of the piece; of a call its arguments as JSON.
        choice (`int`): which of several answers it belongs to.
        name (`str`): of the tool that is called.
        logprobs (`list[Scored]`, *optional*): of its tokens, where they are asked for.
        finish (`str`): at the end: `"stop"`, `"length"` or `"tool_calls"`; empty where a server does not say.
        prompt_tokens, completion_tokens (`int`): so far; zeros where that is not known before the end.
        stop (`str`): at the end: the stop string that came, if one did.
    """

    kind: str
    text: str = ""
    choice: int = 0
    name: str = ""
    logprobs: list[Scored] | None = None
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stop: str = ""


def pieces(pool: ExpertPool, name: str, order: Order, max_tokens: int, seconds: float) -> Iterator[Piece]:
    """Generates answers to an order; closing the iterator stops the generation.

    Args:
        pool ([`ExpertPool`]): of the expert.
        name (`str`): of the expert.
        order ([`Order`]): what it is to generate.
        max_tokens (`int`): of each answer.
        seconds (`float`): that each may take.

    Raises:
        Exception: whatever kept the expert from answering.
    """
    if is_remote(pool.spec(name)):
        yield from _of_text_server(pool.spec(name), order, max_tokens, seconds)
        return

    def work(give: Callable[[Piece], None], closed: threading.Event) -> None:
        """Generates one answer after the other."""
        for choice in range(order.choices):
            _generate(pool, name, order, choice, max_tokens, seconds, give, closed)

    yield from from_thread(work)


def _of_text_server(spec: ExpertSpec, order: Order, max_tokens: int, seconds: float) -> Iterator[Piece]:
    """The pieces of an expert behind a server that speaks no API of ours, but continues text."""
    options: dict[str, Any] = {**spec.get("generation", {}), **order.options, "max_new_tokens": max_tokens}
    options |= {"timeout": spec.get("timeout", seconds)} | ({"stop_strings": order.stop} if order.stop else {})
    for choice in range(order.choices):
        model, stops = RemoteModel(spec, retries=0), Stops(order.stop)
        with closing(model.stream(order.prompt, options)) as texts:  # type: ignore[type-var]
            for text in texts:
                if said := stops.passed(text):
                    yield Piece("text", said, choice)
        if rest := stops.rest():
            yield Piece("text", rest, choice)
        ending = model.ending
        if ending is None:  # it did not say why; only a stop string of ours is known
            yield Piece("end", choice=choice, finish="stop" if stops.found else "", stop=stops.found)
            continue
        finish = "length" if ending.finish_reason == "length" else "stop"
        read, made = ending.input_length or 0, ending.generated_tokens
        yield Piece("end", "", choice, finish=finish, prompt_tokens=read, completion_tokens=made, stop=stops.found)


def _generate(
    pool: ExpertPool,
    name: str,
    order: Order,
    choice: int,
    max_tokens: int,
    seconds: float,
    put: Callable[[Piece], None],
    closed: threading.Event,
) -> None:
    source = pool.source(name)
    probabilities = None if order.logprobs is None else _Probabilities(order.logprobs, source.tokenizer)
    reader = _Reader(source, order, choice, put, probabilities)
    options: dict[str, Any] = {**order.options, "max_new_tokens": max_tokens, "timeout": seconds, "streamer": reader}
    if "seed" in options:
        options["seed"] = (options["seed"] + choice) % (MOST_SEED + 1)
    if order.tools:
        options["tools"] = order.tools
    processors: list[Any] = []
    if order.frequency_penalty or order.presence_penalty:
        processors.append(_Penalties(order.frequency_penalty, order.presence_penalty))
    if order.schema is not None:
        from .guided import Guided

        processors.append(Guided(source.tokenizer, order.schema))
    if probabilities is not None:
        processors.append(probabilities)
    if processors:
        options["logits_processor"] = processors

    def stop(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """A stopping criterion: true once nobody reads on, or a stop string has come."""
        return torch.full((len(input_ids),), closed.is_set() or reader.stopped, device=input_ids.device)

    [answer] = pool.generate(name, [order.prompt], 1, **options, stopping_criteria=[stop])
    if isinstance(answer, Exception):
        raise answer
    put(reader.ending(max_tokens))


class _Reader(TextStreamer):
    """Takes the tokens of an answer as they come and makes pieces of them."""

    def __init__(
        self,
        source: LocalSource,
        order: Order,
        choice: int,
        put: Callable[[Piece], None],
        probabilities: _Probabilities | None,
    ) -> None:
        self._source = source
        self._order = order
        self._choice = choice
        self._put = put
        self._probabilities = probabilities
        self._parser: Any = None
        self._calls = 0
        self._stops = Stops(order.stop)
        self._last = -1
        self._given = 0  # characters of the text so far
        self._said = 0  # of those that are certain to be in the answer
        self.prompt_tokens = 0
        self.tokens = 0
        super().__init__(source.tokenizer, skip_prompt=True, skip_special_tokens=True)

    @property
    def stopped(self) -> bool:
        """Whether all that is asked for has come: a stop string, or the only call."""
        return bool(self._stops.found) or self._has_its_call

    @property
    def _has_its_call(self) -> bool:
        return self._order.one_call and self._calls > 0

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt's tokens first, then the answer's."""
        ids = value.reshape(-1)
        if self.next_tokens_are_prompt:
            self.prompt_tokens = len(ids)
            if isinstance(self._order.prompt, list):
                self._parser = build_response_parser(
                    self.tokenizer, cast(Any, self._source), ids, tools=self._order.tools or None
                )
            self.decode_kwargs["skip_special_tokens"] = self._parser is None
            self._take(self._parser.initial_events if self._parser else [])
        else:
            self.tokens += len(ids)
            self._last = int(ids[-1])
            if self._probabilities is not None:
                self._probabilities.chosen(self._last, self._length())
        super().put(value)
        if self._probabilities is not None:
            self._probabilities.reached(self._length())

    def _length(self) -> int:
        """Characters of the text that the tokens so far make."""
        pending = self.tokenizer.decode(self.token_cache, **self.decode_kwargs)
        return self._given + len(pending) - self.print_len

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Makes pieces of the next text."""
        self._given += len(text)
        if self._parser is None:
            self._say(text)
        elif text:
            self._take(self._parser.feed(text))
        if stream_end and self._parser is not None:
            try:
                _, events = self._parser.finalize()
            except (ValueError, RuntimeError):  # cut in the middle of a call
                events = []
            self._take(events)
        if stream_end:
            self._emit(self._stops.rest(), ends=not self.stopped)

    def _take(self, events: list[dict[str, Any]]) -> None:
        for chunk in response_events_to_chunks(events):
            if self._has_its_call:
                return
            if not isinstance(chunk, (ToolCall, ReasoningText)):
                self._say(chunk)
                continue
            if self._probabilities is not None:
                self._probabilities.taken()  # these are told of the text alone
            if isinstance(chunk, ToolCall):
                self._calls += 1
                self._put(self._piece("call", chunk.arguments, name=chunk.name))
            else:
                self._put(self._piece("reasoning", str(chunk)))

    def _say(self, text: str) -> None:
        self._emit(self._stops.passed(text))

    def _emit(self, text: str, ends: bool = False) -> None:
        """Gives a text on, with those of its tokens that have not come before; at the end with all that are left."""
        self._said += len(text)
        scored = None
        if self._probabilities is not None:
            # A parser takes its marks out of the text, and the places of tokens are not known.
            all_of_them = ends or (bool(text) and self._parser is not None)
            scored = self._probabilities.taken(None if all_of_them else self._said)
        if text or scored:
            self._put(self._piece("text", text, logprobs=scored))

    def ending(self, max_tokens: int) -> Piece:
        """The last piece: why the answer ended."""
        cut = self.tokens >= max_tokens and self._last not in self.tokenizer.all_special_ids
        if self._calls:
            finish = "tool_calls"
        elif cut and not self.stopped:
            finish = "length"
        else:
            finish = "stop"
        return self._piece("end", finish=finish, stop=self._stops.found)

    def _piece(self, kind: str, text: str = "", **about: Any) -> Piece:
        return Piece(kind, text, self._choice, prompt_tokens=self.prompt_tokens, completion_tokens=self.tokens, **about)


def can_call_tools(source: LocalSource) -> bool:
    """Whether a tokenizer has both: a template that shows the tools, and one that finds calls in an answer."""
    template = getattr(source.tokenizer, "chat_template", None)
    templates = template.values() if isinstance(template, dict) else [template or ""]
    shown = any("tools" in text for text in templates)
    return shown and get_response_template(source.tokenizer, cast(Any, source)) is not None


class Stops:
    """
    Ends a text before the first stop string, of which a beginning may be held back for a while.

    Args:
        strings (`list[str]`): the stop strings.
    """

    def __init__(self, strings: list[str]) -> None:
        self._strings = strings
        self._keep = max((len(each) for each in strings), default=1) - 1
        self._held = ""
        self.found = ""  # the string that came

    def passed(self, text: str) -> str:
        """Takes the next text; returns what is certain to come before a stop string."""
        if self.found:
            return ""
        self._held += text
        places = [(self._held.find(each), each) for each in self._strings if each in self._held]
        if places:
            place, self.found = min(places)
            return self._held[:place]
        ready = max(0, len(self._held) - self._keep)
        text, self._held = self._held[:ready], self._held[ready:]
        return text

    def rest(self) -> str:
        """What was held back when the text ended."""
        rest, self._held = self._held, ""
        return "" if self.found else rest


class _Penalties(LogitsProcessor):
    """OpenAI's penalties: less for a token that the answer holds, and less again for each time that it does."""

    def __init__(self, frequency: float, presence: float) -> None:
        self._frequency = frequency
        self._presence = presence
        self._prompt = -1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._prompt < 0:
            self._prompt = input_ids.shape[1]
        answer = input_ids[:, self._prompt :]
        counts = torch.zeros_like(scores).scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0)


class _Probabilities(LogitsProcessor):
    """Notes the log probabilities of each token, before sampling changes them."""

    def __init__(self, most: int, tokenizer: Any) -> None:
        self._most = most
        self._tokenizer = tokenizer
        self._present: torch.Tensor | None = None
        self._unseen = frozenset(tokenizer.all_special_ids)
        self._waiting: list[Scored] = []
        self._ends: list[int] = []  # of their texts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._present = torch.log_softmax(scores[0].float(), dim=-1)
        return scores

    def chosen(self, token: int, start: int) -> None:
        """Notes which token came, and where its text begins; one that ends an answer is no part of it."""
        if self._present is None or token in self._unseen:
            return
        top = self._present.topk(self._most).indices.tolist() if self._most else []
        own = self._scored(token)
        self._waiting.append(own._replace(start=start, others=tuple(map(self._scored, top))))

    def _scored(self, token: int) -> Scored:
        assert self._present is not None
        return Scored(str(self._tokenizer.decode([token])), max(float(self._present[token]), -9999.0))

    def reached(self, end: int) -> None:
        """Notes where the text of the tokens so far ends; several may make one character, which is shorter than what
        the first of them seemed to be.
        """
        self._ends = [min(each, end) for each in self._ends]
        self._ends += [end] * (len(self._waiting) - len(self._ends))

    def taken(self, end: int | None = None) -> list[Scored]:
        """Those of the tokens since the last time that end within so many characters of the text; by default all."""
        number = len(self._waiting) if end is None else sum(each <= end for each in self._ends)
        taken, self._waiting, self._ends = self._waiting[:number], self._waiting[number:], self._ends[number:]
        return taken
