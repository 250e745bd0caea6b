"""Tokens of a request whose expert's server does not say how many: an estimate by the router's own tokenizer.

A stream of OpenAI's API says what it took only where the client asked for that, and a client that leaves never gets to
the end where it is said. To ask the server for it would change the answer, which goes to the client as it comes.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from .apis import COMPLETIONS

if TYPE_CHECKING:
    from .requests import Ask

_FIELDS = rb"content|reasoning_content|reasoning|thinking|text|delta|arguments|partial_json"  # that hold what was said
_SAID = re.compile(rb'"(?:' + _FIELDS + rb')"\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")')
_SAMPLE = 4096  # characters that are cut into tokens; the rest of a text is taken to be like them
_USUAL = 4  # characters a token, of a text that is not read


class Written:
    """What an answer says, as far as an estimate needs it: its beginning, and how long it is."""

    def __init__(self) -> None:
        self.beginning = ""
        self.characters = 0

    def add(self, part: bytes, is_coded: bool = False) -> None:
        """Takes the next part of an answer: whole events or all of it; of a compressed one its bytes count."""
        if is_coded:
            self.characters += len(part)
            return
        for found in _SAID.finditer(part):
            text = _read(found[1])
            self.characters += len(text)
            if len(self.beginning) < _SAMPLE:
                self.beginning += text

    def tokens(self, tokenizer: Any) -> int:
        """How many tokens that is."""
        return _tokens(tokenizer, self.beginning, self.characters)


def prompt_tokens(ask: Ask, tokenizer: Any) -> int:
    """How many tokens a request's conversation and tools are, without its images.

    Args:
        ask ([`Ask`]): the request.
        tokenizer (`PreTrainedTokenizerBase`): of the router.
    """
    fields = ask.body.fields
    if ask.api is COMPLETIONS and not ask.said:  # token ids: one list, or several
        prompt = fields["prompt"]
        return sum(len(each) if isinstance(each, list) else 1 for each in prompt) if isinstance(prompt, list) else 0
    return _tokens(tokenizer, ask.said[-1] if ask.said else "", ask.characters)


def _tokens(tokenizer: Any, beginning: str, characters: int) -> int:
    """Tokens of a text, from its beginning and its length."""
    sample = beginning[:_SAMPLE].encode("utf-8", "replace").decode()  # tokenizers refuse halves of characters
    a_character = 1 / _USUAL
    if sample.strip():
        a_character = len(tokenizer(sample, add_special_tokens=False)["input_ids"]) / len(sample)
    return math.ceil(a_character * characters)


def _read(text: bytes) -> str:
    try:
        read: str = json.loads(text)
    except ValueError:
        return text.decode("utf-8", "replace")
    return read
