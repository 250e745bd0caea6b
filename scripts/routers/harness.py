"""The routed pipeline as a model of lm-eval, the harness that the paper measured tasks with."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.specs_ir3de import is_remote


@register_model("ir3de")
class RoutedLM(LM):  # type: ignore[misc]
    """
    Routes each request and lets the chosen expert answer it.

    Generation goes through the pipeline, which renders a request as the expert reads it: with its system prompt, and
    as a chat where it has a template. Likelihoods are read by lm-eval's own code from the chosen expert, of the plain
    text; every choice of a question has the same context and so the same expert.

    Args:
        router (`str` or [`IR3DERoutingPipeline`]): folder or Hub id of a router, or its pipeline.
        expert (`str`, *optional*): that answers everything, instead of the one that is routed to.
        batch_size (`int` or `str`, *optional*): requests that an expert answers at once.
        kwargs (*optional*): of the pipeline, such as `device` or `max_loaded_experts`.
    """

    def __init__(
        self,
        router: str | IR3DERoutingPipeline,
        expert: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.router = (
            IR3DERoutingPipeline(IR3DEModel.from_pretrained(router), **kwargs) if isinstance(router, str) else router
        )
        self.choice: dict[str, Any] = {"min_score": 0, **({} if expert is None else {"experts": [expert]})}
        self.batch_size = int(batch_size or 1)
        self._readers: dict[int, HFLM] = {}

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers requests, those of equal options together, each up to the first of its stop strings."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(index)
        for key, indices in groups.items():
            until, options = generation_options(json.loads(key))
            prompts = [requests[i].args[0] for i in indices]
            records = self.router(prompts, batch_size=self.batch_size, on_error="raise", **self.choice, **options)
            for index, record in zip(indices, records, strict=True):
                answers[index] = postprocess_generated_text(record["generated_text"], until, None)
        return answers

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation under the expert that its context is routed to; see [`LM`]."""
        texts = [context if context.strip() else continuation for context, continuation in _arguments(requests)]
        return self._read(requests, texts, lambda reader, share: reader.loglikelihood(share, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text under the expert that it is routed to; see [`LM`]."""
        texts = [text for (text,) in _arguments(requests)]
        return self._read(requests, texts, lambda reader, share: reader.loglikelihood_rolling(share, disable_tqdm=True))

    def _read(
        self, requests: Sequence[Instance], texts: list[str], read: Callable[[HFLM, list[Instance]], list[Any]]
    ) -> list[Any]:
        """What the experts say of the requests, each asked for its share at once."""
        shares: dict[str, list[int]] = defaultdict(list)
        for index, record in enumerate(self.router(texts, generate=False, on_error="raise", **self.choice)):
            shares[record["expert"]].append(index)
        answers: list[Any] = [None] * len(requests)
        for name, indices in shares.items():
            spec = self.router.experts.spec(name)
            if is_remote(spec):
                raise ValueError(f"Expert {name!r} answers elsewhere: its likelihoods cannot be read.")
            local = self.router.experts.load(name)
            with local.using(spec) as model:
                if id(local) not in self._readers:
                    tokenizer = copy.deepcopy(local.pipe.tokenizer)
                    self._readers = {id(local): HFLM(model, tokenizer=tokenizer, batch_size=self.batch_size)}
                share = read(self._readers[id(local)], [requests[i] for i in indices])
            for index, answer in zip(indices, share, strict=True):
                answers[index] = answer
        return answers


def generation_options(given: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """A task's generation arguments as stop strings and options of the pipeline."""
    options = dict(normalize_gen_kwargs(given))
    until = [stop for stop in options.pop("until") if stop]
    options["max_new_tokens"] = options.pop("max_gen_toks")
    if not options.get("do_sample"):
        options.pop("temperature", None)
    if until:
        options["stop_strings"] = until
    return until, {**options, "truncation": True}  # a prompt beyond the window loses its beginning, as in lm-eval


def _arguments(requests: Sequence[Instance]) -> list[Any]:
    return [request.args for request in requests]
