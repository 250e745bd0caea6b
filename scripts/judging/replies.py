"""What experts make of a question: the answer that they write, or how likely they hold what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ir3de.experts_ir3de import ExpertPool
from ir3de.scripts.judging.questions import Question
from ir3de.scripts.metrics.perplexity import negative_log_likelihoods
from ir3de.specs_ir3de import has_source, is_remote


@dataclass(frozen=True)
class Replied:
    """
    What came of a question to an expert.

    Args:
        read (`int`): tokens that the expert read.
        written (`int`): tokens that it wrote.
        text (`str`, *optional*): the answer, to be scored.
        score (`float`, *optional*): where there is no answer, but a score already.
    """

    read: int
    written: int
    text: str | None = None
    score: float | None = None


Ask = Callable[[str, Question], Replied]  # an expert's name and a question; raises where the expert fails


def answering(pool: ExpertPool, max_new_tokens: int, count_tokens: Callable[[str], int]) -> Ask:
    """Lets experts answer.

    Args:
        pool ([`ExpertPool`]): of the experts.
        max_new_tokens (`int`): of an answer.
        count_tokens (`Callable`): tokens of a text, where a server does not say how many it counted.
    """

    def ask(name: str, question: Question) -> Replied:
        """Asks for an answer."""
        reply = pool.ask(name, [{"role": "user", "content": question.text}], max_new_tokens=max_new_tokens)
        read = count_tokens(question.text) if reply.read is None else reply.read
        written = count_tokens(reply.text) if reply.written is None else reply.written
        return Replied(read, written, reply.text)

    return ask


def reading(pool: ExpertPool, count_tokens: Callable[[str], int]) -> Ask:
    """Lets experts on this machine read what is expected, after the prompt, or the prompt alone where nothing is.

    The score is exp(-nats / tokens), the geometric mean of the probabilities of the tokens read, which is one over
    their perplexity. The tokens are counted by `count_tokens` whoever reads, since experts cut text into tokens of
    their own: only so are their scores of one text comparable. Text is read as it is, without a chat template or system
    prompt.
    """

    def ask(name: str, question: Question) -> Replied:
        """Reads."""
        spec = pool.spec(name)
        local = pool.load(name)
        tokenizer: Any = local.pipe.tokenizer
        text, given, counted = question.text, 1, count_tokens(question.text) - 1
        if question.expected:
            given = len(tokenizer(question.text, verbose=False)["input_ids"])
            text, counted = f"{question.text} {question.expected[0]}", count_tokens(question.expected[0])
        ids = tokenizer(text, verbose=False)["input_ids"]
        if len(ids) <= given:
            raise ValueError("the text has no token whose likelihood could be read")
        if len(ids) > tokenizer.model_max_length:
            raise ValueError(f"the text has {len(ids)} tokens, and the window is {tokenizer.model_max_length}")
        with local.using(spec) as model:
            [nats] = negative_log_likelihoods(model, [ids], [given])
        return Replied(len(ids), 0, score=math.exp(-nats / max(1, counted)))

    return ask


def check_readable(pool: ExpertPool, names: list[str]) -> None:
    """Raises ValueError where an expert is no model on this machine."""
    for name in names:
        spec = pool.spec(name)
        if is_remote(spec) or not has_source(spec):
            raise ValueError(
                f"Expert {name!r} is no model on this machine, so its likelihoods cannot be read: leave it out with"
                " --experts, or judge by its answers."
            )
