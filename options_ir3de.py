"""The options of a generation: which there are, and what is out of range."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

from transformers import GenerationConfig, TextGenerationPipeline

Options = dict[str, Any]  # of a generation, by name

_RANGES = {  # of numbers that may be none too
    "temperature": (0, math.inf),
    "timeout": (0, math.inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0, math.inf),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}


@cache
def generation_options() -> frozenset[str]:
    """Names of the options that experts take: those of a text-generation pipeline and `generate`, `seed`, `timeout`."""
    stages = (TextGenerationPipeline._sanitize_parameters, TextGenerationPipeline._forward)
    named = {name for stage in stages for name in inspect.signature(stage).parameters}
    extra = {"streamer", "stopping_criteria", "logits_processor", "assistant_model", "prefix_allowed_tokens_fn"}
    options = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    ours = {"seed", "timeout", "frequency_penalty", "presence_penalty"}
    return frozenset(options | named | extra | ours) - {"self", "model_inputs", "generate_kwargs", "kwargs"}


def check_options(options: Options) -> None:
    """Checks the options of a call before anything is loaded.

    Raises:
        ValueError: one is out of range.
    """
    for key in ("max_new_tokens", "num_return_sequences"):
        value = options.get(key, 1)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"`{key}` must be a whole number of at least 1, got {value!r}.")
    for key, (least, most) in _RANGES.items():
        value = options.get(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (is_number and least <= value <= most and math.isfinite(value)):  # no NaN either
            span = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise ValueError(f"`{key}` must be a finite number {span}, got {value!r}.")


def nearest(key: str, others: Iterable[str]) -> str:
    """A hint at the option that an unknown one was meant to be, or nothing."""
    near = difflib.get_close_matches(key, [*generation_options(), *others], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
