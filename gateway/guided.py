"""JSON of a schema from an expert on this machine: tokens that would leave the schema are ruled out."""

from __future__ import annotations

import importlib.util
import json
from functools import lru_cache
from typing import Any

import torch
from transformers import LogitsProcessor

from .errors import GatewayError

AVAILABLE = importlib.util.find_spec("llguidance") is not None


@lru_cache(maxsize=16)
def _vocabulary(tokenizer: Any) -> Any:
    """The tokenizer as llguidance reads it, which takes a second to make."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer)


class Guided(LogitsProcessor):
    """
    Rules out the tokens that no answer of a schema goes on with.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): of the expert.
        schema (`dict` or `bool`): a JSON schema, or true for any object.

    Raises:
        GatewayError: the schema is not one, or uses what cannot be followed.
    """

    def __init__(self, tokenizer: Any, schema: dict[str, Any] | bool) -> None:
        from llguidance import LLMatcher

        wanted = {"type": "object"} if schema is True else schema
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(wanted))
        except (ValueError, RecursionError) as error:
            raise _bad(str(error)) from None
        try:
            vocabulary = _vocabulary(tokenizer)
        except ValueError as error:
            message = f"The expert's tokenizer cannot be held to JSON ({str(error)[:100]})."
            raise GatewayError(400, "unsupported_value", message, "response_format", elsewhere=True) from None
        self._matcher = LLMatcher(vocabulary, grammar)
        if self._matcher.is_error():
            raise _bad(self._matcher.get_error())
        self._read = -1  # tokens of the answer, and before the first of the prompt, that the matcher knows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of the next token, minus infinity for those that are ruled out.

        Raises:
            GatewayError: the schema turns out to be too much to follow.
        """
        if self._read < 0:
            self._read = input_ids.shape[1]
        for token in input_ids[0, self._read :].tolist():
            self._matcher.consume_token(token)
        self._read = input_ids.shape[1]
        # 0 where a token is ruled out; a model may have more rows of scores than there are tokens.
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) > 0
        if self._matcher.is_error():  # it would let the answer end here
            raise _bad(self._matcher.get_error().splitlines()[0])
        ruled_out = torch.ones(scores.shape[-1], dtype=torch.bool)
        ruled_out[: len(allowed)] = ~allowed[: scores.shape[-1]]
        return scores.masked_fill(ruled_out.to(scores.device), float("-inf"))


def _bad(why: str) -> GatewayError:
    return GatewayError(400, "invalid_value", f"The JSON schema cannot be followed: {why[:200]}.", "response_format")
