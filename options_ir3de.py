"""The options of a generation: which there are, and what is out of range."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable
from functools import cache
from numbers import Integral, Real
from typing import Any, NamedTuple

from transformers import GenerationConfig, TextGenerationPipeline

Options = dict[str, Any]  # of a generation, by name

COLD = 1e-4  # a temperature below which the likeliest token is all that is left, and a division may overflow


_OF_SERVERS = ("frequency_penalty", "presence_penalty")
MOST_SEED = 2**32 - 1  # that `set_seed` of transformers takes, from 0; servers take others, as -1 for one at random


class _Span(NamedTuple):
    """
    Which numbers an option takes, that may be none too.

    Args:
        least, most (`float`): the ends, which are among them.
        whole (`bool`): whether they are whole numbers.
        above (`bool`): whether `least` is not among them.
    """

    least: float
    most: float = math.inf
    whole: bool = False
    above: bool = False

    def holds(self, value: object) -> bool:
        """Whether a value is one of them; no truth value is, nor infinity or NaN."""
        if not isinstance(value, Integral if self.whole else Real) or isinstance(value, bool):
            return False
        number = int(value) if isinstance(value, Integral) else float(value)
        finite = isinstance(number, int) or math.isfinite(number)
        return finite and self.least <= number <= self.most and not (self.above and number == self.least)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        if self.least == -math.inf:
            return kind
        if self.most == math.inf:
            return f"{kind} {'above' if self.above else 'of at least'} {self.least:g}"
        ends = ("above", "and at most") if self.above else ("from", "to")
        return f"{kind} {ends[0]} {self.least:g} {ends[1]} {self.most:.15g}"


_SPANS = {
    **dict.fromkeys(
        ("max_new_tokens", "num_return_sequences", "num_beams", "max_length", "prompt_lookup_num_tokens"),
        _Span(1, whole=True),
    ),
    **dict.fromkeys(
        ("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _Span(0, whole=True)
    ),
    "top_k": _Span(-1, whole=True),  # -1, like 0, is all of them, and older servers of vLLM know -1 alone
    "seed": _Span(-math.inf, whole=True),
    **dict.fromkeys(("temperature", "timeout", "max_time"), _Span(0)),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), _Span(0, above=True)),
    **dict.fromkeys(("top_p", "min_p", "epsilon_cutoff", "eta_cutoff"), _Span(0, 1)),
    **dict.fromkeys(("typical_p", "top_h"), _Span(0, 1, above=True)),
    **dict.fromkeys(_OF_SERVERS, _Span(-2, 2)),
    **dict.fromkeys(("length_penalty", "guidance_scale"), _Span(-math.inf)),
}
_FLOATS = {name for name, span in _SPANS.items() if not span.whole and name != "timeout"}  # as transformers wants them


@cache
def generation_options() -> frozenset[str]:
    """Names of the options that experts take: those of a text-generation pipeline and `generate`, `seed`, `timeout`."""
    stages = (TextGenerationPipeline._sanitize_parameters, TextGenerationPipeline._forward)
    named = {name for stage in stages for name in inspect.signature(stage).parameters}
    extra = {"streamer", "stopping_criteria", "logits_processor", "assistant_model", "prefix_allowed_tokens_fn"}
    options = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    ours = {"seed", "timeout", *_OF_SERVERS}
    return frozenset(options | named | extra | ours) - {"self", "model_inputs", "generate_kwargs", "kwargs"}


def check_options(options: Options, whose: str = "") -> None:
    """Checks the options of a generation before anything is loaded or asked.

    Args:
        options (`dict`): of a call, or the defaults of an expert.
        whose (`str`): they are, for messages; empty for those of a call.

    Raises:
        ValueError: one is out of range, or transformers refuses it.
    """
    of = f" of {whose}" if whose else ""
    for name, span in _SPANS.items():
        value = options.get(name)
        if value is not None and not span.holds(value):
            raise ValueError(f"`{name}`{of} must be {span}, got {value!r}.")
    settings = vars(GenerationConfig())
    known = {name: value for name, value in options.items() if value is not None and name in settings}
    known.pop("num_return_sequences", None)  # servers give several of the likeliest too
    try:
        # It checks itself, and would warn of options of sampling where nothing says whether tokens are sampled.
        GenerationConfig(**{"do_sample": True, **known})
        _check_tokens(known)
    except (ValueError, TypeError) as error:
        raise ValueError(f"The options{of or ' of the generation'} do not go: {error}") from error


def check_seed(options: Options, whose: str = "") -> None:
    """Checks the seed of a generation on this machine; servers take others.

    Args:
        options (`dict`): that [`check_options`] has let pass.
        whose (`str`): they are, for messages; empty for those of a call.

    Raises:
        ValueError: it is below 0 or above `MOST_SEED`.
    """
    seed = options.get("seed")
    if seed is not None and not 0 <= seed <= MOST_SEED:
        of = f" of {whose}" if whose else ""
        raise ValueError(f"`seed`{of} must be from 0 to {MOST_SEED} for an expert on this machine, got {seed}.")


def _check_tokens(options: Options) -> None:
    """Raises ValueError where what transformers is to do to tokens is not what it takes."""
    from transformers import NoBadWordsLogitsProcessor, SequenceBiasLogitsProcessor

    if "sequence_bias" in options:
        SequenceBiasLogitsProcessor(options["sequence_bias"])
    if "bad_words_ids" in options:
        NoBadWordsLogitsProcessor(options["bad_words_ids"])


def for_transformers(options: Options) -> Options:
    """The options, in which servers and transformers differ, as transformers takes them.

    Args:
        options (`dict`): that were checked.

    Raises:
        ValueError: one, or its value, is for servers alone, or several answers are asked for where only one is the
            likeliest.
    """
    check_seed(options)
    made = {name: float(value) if name in _FLOATS and value is not None else value for name, value in options.items()}
    if made.get("temperature") is not None and made["temperature"] < COLD:
        del made["temperature"]
        made["do_sample"] = False
    if made.get("top_k") == -1:
        made["top_k"] = 0
    for name in _OF_SERVERS:
        if made.pop(name, None):
            raise ValueError(
                f"`{name}` is for experts behind servers; those on this machine take `repetition_penalty`."
            )
    number, beams = made.get("num_return_sequences") or 1, made.get("num_beams") or 1
    if made.get("do_sample") is False and number > beams:
        raise ValueError(
            f"`num_return_sequences` is {number}, and without sampling there is one likeliest answer: give"
            " `do_sample=True`, or as many `num_beams`."
        )
    return made


def nearest(key: str, others: Iterable[str]) -> str:
    """A hint at the option that an unknown one was meant to be, or nothing."""
    near = difflib.get_close_matches(key, [*generation_options(), *others], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
