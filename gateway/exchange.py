"""What became of one request: noted while it is served, then counted and logged, without its text."""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ir3de.specs_ir3de import ExpertSpec
from ir3de.traffic.signals import Turns

from .estimate import Written, prompt_tokens

if TYPE_CHECKING:
    from .breaker import Breaker
    from .relay import Reply
    from .requests import Ask
    from .tracing import Trace

logger = logging.getLogger("ir3de.requests")

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_RESPONSE = re.compile(rb'"id"\s*:\s*"(resp[^"]{1,200})"')
_ANSWER = re.compile(rb'"id"\s*:\s*"([^"\\\x00-\x1f]{1,200})"')
_COUNTED = 8192  # bytes at either end of an answer in which its usage is looked for
_MOST_TOKENS = 1 << 27  # of a prompt or of an answer; a server that claims more is not believed
_DECODER = json.JSONDecoder()


@dataclass
class Exchange:
    """
    One request and its answer.

    Args:
        id (`str`): of the request.
        api (`str`): the path that it came to.
        caller (`str`): the name of its key; empty without keys.
    """

    id: str
    api: str
    caller: str = ""
    model: str = ""
    expert: str = ""
    score: float | None = None
    status: int = 0
    outcome: str = ""
    stream: bool = False
    started: float = field(default_factory=time.perf_counter)
    route_seconds: float | None = None
    expert_seconds: float | None = None  # from the request to the expert to the first byte of its answer
    first_byte_seconds: float | None = None
    note: str = ""  # for the client
    response: str = ""  # the id of a response that a server may keep
    answer: str = ""  # the id that the server gave its answer
    routed: bool = False  # whether anybody was asked
    recognised: dict[str, int] | None = None  # units of each domain, where answers are kept
    said: str = ""  # what was routed on, where text is kept
    turns: Turns | None = None  # where signs are looked for
    trace: Trace | None = None  # its spans, where these are asked for
    failures: list[tuple[str, str]] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False  # whether nobody said how many tokens these are
    written: Written = field(default_factory=Written)
    ask: Ask | None = None  # once an expert began to answer it
    reply: Reply | None = None
    sent: bytes = b""  # the last events of a stream that went to the client
    breaker: Breaker | None = None  # of an expert whose answer has begun and was not complete then
    expected: dict[str, float] = field(default_factory=dict)  # what each expert costs, where there is a budget
    reserved: float = 0.0  # of it for the answer

    def cost(self, spec: ExpertSpec | None) -> float | None:
        """What the answer did cost, by its expert's price of tokens or its cost an answer, if that is known."""
        cost = self.cost_of_tokens(spec)
        return spec.get("cost") if cost is None and spec is not None and "price" not in spec else cost

    def cost_of_tokens(self, spec: ExpertSpec | None) -> float | None:
        """What the answer did cost by its expert's price of tokens, if it has one and the tokens are known."""
        read, written = self.prompt_tokens, self.completion_tokens
        if spec is not None and (price := spec.get("price")) and read + written:
            return (read * price["input"] + written * price["output"]) / 1e6
        return None

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self.started

    def count_tokens(self, tokenizer: Any) -> None:
        """Completes the tokens once the answer has ended: as they were made here, as the server said, or estimated.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): of the router, for an estimate.
        """
        if self.ask is None or self.reply is None or self.status >= 400:
            return
        if any(self.reply.counted):
            self.prompt_tokens, self.completion_tokens = self.reply.counted
            return
        told = self.prompt_tokens, self.completion_tokens
        if not self.prompt_tokens:
            self.prompt_tokens = prompt_tokens(self.ask, tokenizer)
        if not self.completion_tokens or self.outcome != "answered":  # what was told before the end is not all
            self.completion_tokens = max(self.completion_tokens, self.written.tokens(tokenizer))
        self.estimated = told != (self.prompt_tokens, self.completion_tokens)

    def read_usage(self, part: bytes) -> None:
        """Notes the tokens that an answer says it took, if this part of it says so."""
        for part_end in (part[:_COUNTED], part[-_COUNTED:]) if len(part) > _COUNTED else (part,):
            for found in _USAGE.finditer(part_end):
                self._note_usage(part_end, found.end() - 1)

    def _note_usage(self, part: bytes, place: int) -> None:
        try:
            usage, _ = _DECODER.raw_decode(part[place:].decode("utf-8", "replace"))
        except (ValueError, RecursionError):  # cut off, or nested without end
            return
        for names, field_name in (
            (("prompt_tokens", "input_tokens"), "prompt_tokens"),
            (("completion_tokens", "output_tokens"), "completion_tokens"),
        ):
            for name in names:
                if _is_count(usage.get(name)):
                    setattr(self, field_name, usage[name])

    def read_id(self, part: bytes) -> None:
        """Notes the id of a response, from the beginning of an answer."""
        found = _RESPONSE.search(part[:_COUNTED])
        if found:
            self.response = found[1].decode("ascii", "replace")

    def read_answer_id(self, part: bytes) -> None:
        """Notes the id of an answer: the first that its beginning holds."""
        found = _ANSWER.search(part[:_COUNTED])
        if found:
            self.answer = found[1].decode("utf-8", "replace")

    def log(self) -> None:
        """One line of JSON: nothing in it was said by the client or by an expert, but names that the router knows."""
        if not logger.isEnabledFor(logging.INFO):
            return
        line: dict[str, Any] = {
            "id": self.id,
            "api": self.api,
            "caller": self.caller,
            "model": self.model,
            "expert": self.expert,
            "score": self.score,
            "status": self.status,
            "outcome": self.outcome,
            "stream": self.stream,
            "seconds": self.seconds,
            "route_seconds": self.route_seconds,
            "first_byte_seconds": self.first_byte_seconds,
            "failures": [f"{expert}: {why}" for expert, why in self.failures],
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "tokens_estimated": self.estimated or None,
        }
        kept = {
            key: round(value, 6) if isinstance(value, float) else value
            for key, value in line.items()
            if value not in (None, "", [])
        }
        # The record by hand, since `logger.info` would look for the line of code that logs.
        logger.handle(logging.LogRecord(logger.name, logging.INFO, __file__, 0, json.dumps(kept), None, None))


def _is_count(value: Any) -> bool:
    """Whether a server's number of tokens can be one; what cannot is not known."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
