"""The `ir3de-routing` pipeline: text or chat in, route, generate with the chosen expert, record out."""

from __future__ import annotations

import copy
import logging
import math
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, compress, islice
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, Pipeline, PreTrainedTokenizerBase
from transformers.pipelines import PIPELINE_REGISTRY

from .batch_ir3de import Prompts
from .experts_ir3de import ExpertError, ExpertPool, describe_error
from .familiarity_ir3de import TokenFamiliarity
from .images_ir3de import check_pictures, has_images, pictures_in, with_pictures
from .options_ir3de import Options, check_options, generation_options, nearest
from .outcomes_ir3de import Ledger, shared
from .policy_ir3de import Policy, Ranked, Record
from .prompts_ir3de import Prompt, Unanswerable, check_prompt, text_of, token_ids_of, with_prompt
from .route_selector_ir3de import probabilities
from .second_opinion_ir3de import BELOW, SecondOpinion, combined

logger = logging.getLogger(__name__)

TASK = "ir3de-routing"
# What config.json says, so that `pipeline` finds this file in a repository.
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_ir3de.IR3DERoutingPipeline", "pt": ["AutoModel"], "type": "text"}}

# The options of a call that are ours, by stage; all others go to the experts.
_OPTIONS = {
    "preprocess": ("explain", "route_on", "stickiness"),
    "forward": ("explain", "variant", "num_votes"),
    "postprocess": ("generate", "on_error", "recognised", *Policy._fields),
}
_OWN = frozenset(key for keys in _OPTIONS.values() for key in keys)
ROUTING_OPTIONS = tuple(sorted(_OWN - {"generate", "on_error", "recognised"}))  # that decide who answers
_ROUTED_AT_ONCE = 1024  # prompts of a generator that are read at a time where nothing is generated


class IR3DERoutingPipeline(Pipeline):
    """
    Routes prompts to experts and lets the chosen expert answer.

    Args:
        model ([`IR3DEModel`]): the router.
        tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*): or its folder or Hub id; by default the one that was
            saved with the router.
        expert_kwargs (`dict`, *optional*): how experts are loaded: `device`, and whatever
            `AutoModelForCausalLM.from_pretrained` takes, such as `dtype` or `device_map`. By default experts run where
            the router does. `trust_remote_code=True` and `use_safetensors=False` concern only experts whose specs say
            the same. `retries` is how often a busy remote expert is asked again (default: 2).
        max_loaded_experts (`int`, *optional*): models that stay in memory; experts of one base count as one.
        max_memory (`int` or `str`, *optional*): bytes, or a size such as `"8GB"`, that experts in memory take.
        preload (`bool` or `list[str]`, *optional*): load all experts, or these, in the background.
        second_opinion ([`SecondOpinion`], `str` or `bool`, *optional*): a slower router on a sentence encoder, which
            is asked too where the score is below `second_below`: with `True` the one in the router's own repository;
            or one in memory, or its folder or Hub id, which then becomes the router's and is saved with it.
        kwargs (*optional*): of [`~transformers.Pipeline`], and options of a call that shall hold for every call.
    """

    model: Any
    tokenizer: Any
    _registered_impl: ClassVar[dict[str, Any]]
    _load_tokenizer: Any = False  # the router has its own; `pipeline` cannot guess it of a model in memory
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        expert_kwargs: Options | None = None,
        max_loaded_experts: int | None = None,
        max_memory: int | str | None = None,
        preload: bool | list[str] = False,
        second_opinion: SecondOpinion | str | bool | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        super().__init__(model=model, tokenizer=tokenizer or model.tokenizer, **kwargs)
        budget = {"max_loaded_experts": max_loaded_experts, "max_memory": max_memory}
        self.experts = ExpertPool(model.config, **{"device": self.device, **budget, **(expert_kwargs or {})})
        self.second_opinion = second_opinion
        self.draw = np.random.default_rng()  # of what explores; one of your own seed makes it the same each time
        if preload:
            self.experts.preload(model.config.expert_names if preload is True else preload)

    @property
    def loaded_experts(self) -> list[dict[str, Any]]:
        """The models in memory, the least recently used first: `model`, its `experts`, `bytes` and `device`."""
        return self.experts.loaded

    @property
    def second_opinion(self) -> SecondOpinion | None:
        """The router's [`SecondOpinion`], where this pipeline asks it, or None."""
        return self.model.second_opinion if self._has_second else None

    @second_opinion.setter
    def second_opinion(self, source: SecondOpinion | str | os.PathLike[str] | bool | None) -> None:
        """Sets the router's, from memory, a folder or the Hub; with `True` it has one; with None it is not asked."""
        if isinstance(source, (str, os.PathLike)):
            source = SecondOpinion.from_pretrained(source)
        if source is True and self.model.second_opinion is None:
            raise ValueError("This router has no second opinion: `ir3de second` makes one and adds it.")
        if source not in (None, False, True):  # of whichever module: that of a repository is not the installed one
            self.model.second_opinion = source
        self._has_second = bool(source)

    def copy(self) -> IR3DERoutingPipeline:
        """A pipeline with a copy of the router, to edit apart from this one; the two share loaded experts."""
        made = copy.copy(self)
        made.model = self.model.copy()
        made.experts = self.experts.for_config(made.model.config)
        return made

    def __call__(  # type: ignore[override]
        self, inputs: Any, *, batch_size: int | None = None, num_workers: int | None = None, **kwargs: Any
    ) -> Any:
        """Routes, and generates unless told not to.

        Args:
            inputs (`str`, chat, or any iterable of them): such as a list, a generator, a column of a table or of a
                data set. A chat is a list of messages `{"role": ..., "content": ...}`; by default it is routed on its
                last user message. With images among the parts of a content an expert on this machine that sees answers.
            batch_size (`int`, *optional*): prompts that an expert answers at once, by default all of a list. Of a
                generator or data set it is also the number of prompts read at a time, by default one.
            num_workers (`int`, *optional*): for compatibility; there are none.
            generate (`bool`, *optional*, defaults to `True`): let the chosen expert answer.
            explain (`bool`, *optional*, defaults to `False`): add `tokens`, all `domains` and, where domains and
                experts differ or there are outcomes, the `pairs` that decided to each record.
            variant (`str`, *optional*): instead of the config's.
            num_votes (`int`, *optional*): instead of the config's.
            experts (`list[str]`, *optional*): those that may be chosen.
            top_n (`int`, *optional*): how many experts the ranking lists; all by default.
            cost_weight (`float`, *optional*, defaults to 0): score that a unit of an expert's cost must be worth: as
                measured where there are outcomes that tell it, else the `cost` of its spec.
            latency_weight (`float`, *optional*, defaults to 0): score that a second must be worth, as measured.
            min_score (`float`, *optional*): instead of the config's; below it `fallback_expert` answers, or nobody.
            min_familiarity (`float`, *optional*): instead of the config's, where the router tells familiarity; below it
                likewise.
            fallback_expert (`str`, *optional*): instead of the config's.
            second_below (`float`, *optional*, defaults to 0.9): below this score the second opinion is asked, if the
                pipeline has one; the score is then of both.
            explore_loss (`float`, *optional*): instead of the config's, whose default is 0: what a choice may be
                expected to lose, of score less weighted cost, for learning of others than the best. Needs outcomes.
            route_on (`str`, *optional*, defaults to `"last"`): of a chat, its last user message, or with
                `"conversation"` all of them.
            stickiness (`float`, *optional*, defaults to 0): a chat's expert changes only when another leads by it.
            on_error (`str`, *optional*, defaults to `"next"`): where an expert fails, the `"next"` in the ranking that
                scores at least `min_score` answers, then `fallback_expert`; and one prompt of several for which
                nobody can be asked has a record that says why. With `"raise"` the error is raised.
            recognised (`bool`, *optional*, defaults to `False`): add to each record what `feedback` needs: an `id`, and
                `recognised`, the domains in units that add up to one outcome; of an empty prompt all are 0.
            kwargs (*optional*): options of the expert's text-generation pipeline, such as `max_new_tokens`; `seed`;
                `timeout`, the seconds that an expert may take; `truncation`, to cut the beginning of what is too long.

        Returns:
            `dict`, or of a list a list and of other iterables an iterator, in their order: `expert`; its `score`;
            `ranking`, every expert with its score, best first; `generated_text`; where the router tells it
            `familiarity`, the share of held-out prompts that were less familiar; `fallback` where score or familiarity
            was below the minimum, and `expert` is then the fallback or `None`; `explored` where another than the best
            was chosen to learn of it; `second_opinion` where that was asked;
            where experts failed, `failures`, each with `expert` and `error`, and then `expert` is the one that
            answered, or where none did the chosen one, and `generated_text` is `None`; where one prompt of several is
            empty or not text, or its expert only routes, the `reason` why nobody was asked; and with `explain`
            `tokens`, each with its text (`token`), its `entropy` in nats, its `vote`, the `weight` with which it lifts
            that expert above the mean of all, whether it was `counted`, and its `contribution` to the chosen expert's
            `support`, which is the sum of them: a logit where a mean decides, the share of the vote where tokens vote;
            and where the router tells familiarity whether it is `known` from any prompt that the router was fitted on,
            and what it adds to the prompt's `familiarity`. A second opinion has no part in these.

        Raises:
            TypeError: an input is neither text nor chat, or an option is unknown.
            ValueError: an option is out of range; or `inputs` is a single prompt, or with `on_error="raise"` holds one,
                that is empty ([`EmptyPromptError`]) or not text or whose expert only routes. Nothing has been
                generated then.
            ExpertError: an expert failed, with `on_error="raise"`.
        """
        options = self._merge(kwargs)
        options[2].setdefault("batch_size", batch_size or self._batch_size)
        if isinstance(inputs, str) or _is_chat(inputs):
            return _asked(self._as_it_is_now().run_single([inputs], *options)[0])
        if isinstance(inputs, (list, tuple)):
            return self._run(list(inputs), *options)
        return self._run_lazily(_each(inputs), *options)

    def stream(self, prompt: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Routes a prompt and streams the chosen expert's answer; closing the iterator stops the generation.

        Args:
            prompt (`str` or chat): one prompt.
            kwargs (*optional*): of a call.

        Yields:
            `dict`: first the route (`event` is `"route"`, with `expert`, `score` and `ranking`), then pieces of the
            answer (`"text"`, with `text`), at last the complete record (`"record"`). Where an expert fails, a further
            route, with `failures`, names the one that answers from the beginning.

        Raises:
            ValueError: as in a call of a single prompt.
            ExpertError: an expert failed, with `on_error="raise"`.
        """
        preprocess, forward, postprocess = self._merge(kwargs)
        now = self._as_it_is_now()
        record = now.run_single([prompt], preprocess, forward, {**postprocess, "generate": False})[0]
        prompt = _check_prompt(prompt, 0)
        generation, on_error = postprocess["generation"], postprocess.get("on_error", "next")
        check_options(generation)
        candidates = now._candidates(record, prompt, 0, now.policy(postprocess), on_error)
        _asked(record)
        if not candidates:
            yield {"event": "route", **record}
        for candidate in candidates:
            _set_expert(record, candidate)
            yield {"event": "route", **record}
            pieces = []
            try:
                for piece in now.experts.stream(candidate["expert"], prompt, **generation):
                    pieces.append(piece)
                    yield {"event": "text", "text": piece}
            except Exception as error:
                _note_failure(record, candidate["expert"], error, on_error)
                continue
            text = "".join(pieces)
            full = generation.get("return_full_text", False)
            yield {"event": "record", **record, "generated_text": with_prompt(prompt, text) if full else text}
            return
        if candidates:  # all of them failed, and the record names the one that was chosen
            _set_expert(record, candidates[0])
        yield {"event": "record", **record, "generated_text": None}

    def _merge(self, kwargs: Options) -> tuple[Options, Options, Options]:
        """The options of this pipeline under those of a call, by stage."""
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        generation = {**self._postprocess_params.get("generation", {}), **postprocess.pop("generation", {})}
        return (
            {**self._preprocess_params, **preprocess},
            {**self._forward_params, **forward},
            {**self._postprocess_params, **postprocess, "generation": generation},
        )

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[Options, Options, Options]:
        """Sorts options by stage; what is not ours goes to the experts, if they know it."""
        preprocess, forward, postprocess = (
            {key: kwargs[key] for key in keys if key in kwargs} for keys in _OPTIONS.values()
        )
        generation = {key: value for key, value in kwargs.items() if key not in _OWN}
        if postprocess.get("on_error", "next") not in ("next", "raise"):
            raise ValueError(f"`on_error` must be 'next' or 'raise', got {postprocess['on_error']!r}.")
        for key in generation.keys() - generation_options() if generation else ():
            hint = nearest(key, _OWN)
            raise TypeError(f"{key!r} is neither an option of ir3de-routing nor of text-generation.{hint}")
        return preprocess, forward, {**postprocess, **({"generation": generation} if generation else {})}

    def _run(self, prompts: list[Any], *options: Options) -> list[Record]:
        """The records of several prompts, of which empty ones must not keep the others from theirs."""
        if not prompts:
            return []
        now = self._as_it_is_now()
        try:
            return now.run_single(prompts, *options)  # type: ignore[no-any-return]
        except EmptyPromptError as error:
            if options[2].get("on_error", "next") == "raise":
                raise
            empty = error.indices
        rest = [prompt for index, prompt in enumerate(prompts) if index not in empty]
        records = iter(now.run_single(rest, *options) if rest else [])
        explain, generate = options[0].get("explain", False), options[2].get("generate", True)
        domains = now.model.config.domain_names if options[2].get("recognised") else None
        return [
            _empty_record(explain, generate, domains) if index in empty else next(records)
            for index in range(len(prompts))
        ]

    def _as_it_is_now(self) -> IR3DERoutingPipeline:
        """This pipeline with the router at one moment, so that a record is not half before and half after an edit."""
        # These are made or read on first use: once, here, and not by the router of every moment.
        self.model.panel  # noqa: B018
        if self._has_second:
            self.model.second_opinion  # noqa: B018
        now: IR3DERoutingPipeline = object.__new__(type(self))
        now.__dict__.update(self.__dict__)  # a third of what `copy.copy` takes
        now.model = self.model.as_it_is_now()
        now.experts = self.experts.for_config(now.model.config)
        return now

    def _run_lazily(self, prompts: Iterable[Any], *options: Options) -> Iterator[Record]:
        at_once = options[2]["batch_size"] or (1 if options[2].get("generate", True) else _ROUTED_AT_ONCE)
        prompts = iter(prompts)
        while batch := list(islice(prompts, at_once)):
            yield from self._run(batch, *options)

    def preprocess(  # type: ignore[override]
        self, prompts: list[Any], explain: bool = False, route_on: str = "last", stickiness: float = 0.0
    ) -> Options:
        """Checks and tokenizes: the `batch`, each turn of a prompt a prompt of its own, and to explain the `pieces` of
        text that its tokens are.
        """
        if route_on not in ("last", "conversation"):
            raise ValueError(f"`route_on` is 'last' (user message) or 'conversation', got {route_on!r}.")
        prompts = [_check_prompt(prompt, index) for index, prompt in enumerate(prompts)]
        first = 0 if stickiness else -1
        turns = [[_as_routed(text) for text in _turns(prompt, route_on)[first:]] for prompt in prompts]
        texts = list(chain.from_iterable(turns))
        token_ids = token_ids_of(self.tokenizer, texts, self.model.config.max_length)
        if not all(token_ids):
            turns = _without_empty_turns(prompts, turns, token_ids)
            texts, token_ids = list(chain.from_iterable(turns)), [ids for ids in token_ids if ids]
        return {
            "prompts": prompts,
            "texts": texts,
            "turns": [len(of_prompt) for of_prompt in turns],
            "pieces": _pieces(self.tokenizer, texts) if explain else None,
            "batch": Prompts.of(token_ids),
        }

    def forward(self, model_inputs: dict[str, Any], **forward_params: Any) -> Options:
        """Routes on the model's device. The one of transformers walks through all of the inputs for that, in which a
        single prompt would spend as long as in its route (`short_cuts` of scripts/bench/scale.py).
        """
        with torch.inference_mode():
            return self._forward({**model_inputs, "batch": model_inputs["batch"].to(self.device)}, **forward_params)

    def _forward(  # type: ignore[override]
        self, inputs: dict[str, Any], explain: bool = False, **choice: Any
    ) -> Options:
        """Routes all turns together: `logits`, and to explain what `forward` says of each token."""
        batch: Prompts = inputs["batch"]
        kept = {key: inputs[key] for key in ("prompts", "texts", "turns", "pieces")}
        if not explain:
            logits = self.model.route(*batch, **choice).cpu()
            return {**kept, "logits": logits, "familiarity": self._familiarity(batch, logits, choice)}
        one_by_one = batch.token_ids.split(batch.lengths.tolist())
        outputs = [self.model(ids[None], output_tokens=True, **choice) for ids in one_by_one]
        logits = torch.cat([output.logits for output in outputs]).cpu()
        familiarity = self._familiarity(batch, logits, choice)
        tokens = [_said(output) for output in outputs]
        familiar = [self.model.token_familiarity(ids) for ids in one_by_one]
        return {**kept, "logits": logits, "familiarity": familiarity, "tokens": tokens, "familiar": familiar}

    def _familiarity(self, batch: Prompts, logits: torch.Tensor, choice: Options) -> list[float] | None:
        """How familiar each turn is, if the router tells it; that is measured by the logits of its own variant."""
        config = self.model.config
        if config.familiarity is None:
            return None
        own = not choice or all(getattr(config, key) == value for key, value in choice.items() if value is not None)
        return self.model.familiarity(batch, logits if own else None)  # type: ignore[no-any-return]

    def postprocess(  # type: ignore[override]
        self,
        outputs: dict[str, Any],
        generate: bool = True,
        on_error: str = "next",
        recognised: bool = False,
        batch_size: int | None = None,
        generation: Options | None = None,
        **policy: Any,
    ) -> list[Record]:
        """Turns logits into records, in input order, and lets each expert answer its share in one call."""
        config = self.model.config
        panel, turns = self.model.panel, outputs["turns"]
        p = probabilities(outputs["logits"], **(config.calibration or {}))
        chosen = self.policy(policy)
        asked, told = [False] * len(p), None
        if chosen.second_below:
            chosen.check(panel)  # before an encoder is loaded
            counting = panel.among(chosen.experts)[0].domains
            p, asked, told = self._ask_again(p, chosen.unsure(p, panel), outputs["texts"], counting)
        familiarity = outputs["familiarity"]
        if familiarity is not None and told is not None:  # whoever knows the prompt's meaning tells it better
            familiarity = [next(told) if again else own for again, own in zip(asked, familiarity, strict=True)]
        if chosen.min_familiarity and familiarity is None:
            raise ValueError("`min_familiarity` needs a router that tells familiarity: `ir3de fit` makes such routers.")
        explain = outputs["pieces"] is not None
        records = chosen.decide(p, panel, turns, explain, self.draw)
        last_turns = [end - 1 for end in accumulate(turns)]
        if recognised:
            _add_recognised(records, p[last_turns], config.domain_names)
        for record, turn in zip(records, last_turns, strict=True):
            if asked[turn]:
                record["second_opinion"] = True
            if familiarity is not None:
                chosen.judge_familiarity(record, familiarity[turn])
            if explain:
                _explain(record, outputs["pieces"][turn], outputs["tokens"][turn], config.domain_names)
                _explain_familiarity(record, outputs["familiar"][turn])
        if generate:
            self._answer(records, outputs["prompts"], chosen, on_error, batch_size, generation or {})
        return records

    def feedback(self, record: Record, score: float, cost: float | None = None, seconds: float | None = None) -> Ledger:
        """Tells the router how good the answer of a record was; it counts from the next call on, in memory.

        Another score for the same answer replaces the one before, until the router is loaded anew.

        Args:
            record (`dict`): of a call with `recognised=True`.
            score (`float`): 0 to 1.
            cost (`float`, *optional*): of the answer, in the unit of the router's costs.
            seconds (`float`, *optional*): that it took.

        Returns:
            [`Ledger`]: what was added; `model.remove_outcomes` takes it back, bit for bit.

        Raises:
            ValueError: the record does not tell what was recognised, nobody answered, a number is out of range, or this
                was said already. The router is as before.
        """
        return self.model.add_feedback(record, score, cost, seconds)  # type: ignore[no-any-return]

    def policy(self, options: Options) -> Policy:
        """How a call chooses: as its options say, and where they do not, as the router's config does.

        Args:
            options (`dict`): of a call; those that are no part of a policy are left alone.
        """
        config = self.model.config
        made: Options = {
            "min_score": config.min_score,
            "min_familiarity": config.min_familiarity,
            "fallback_expert": config.fallback_expert,
            "explore_loss": config.explore_loss or 0.0,
        }
        if self.second_opinion is not None:
            made["second_below"] = BELOW
        given = {**self._postprocess_params, **options}
        return Policy(**{**made, **{key: given[key] for key in Policy._fields if key in given}})

    def _ask_again(
        self, p: torch.Tensor, unsure: torch.Tensor, texts: list[str], counting: Sequence[str]
    ) -> tuple[torch.Tensor, list[bool], Iterator[float] | None]:
        """Probabilities, `(texts, D)`, where the second opinion has joined in those rows that are unsure; which these
        are; and how familiar it finds them, if it tells.

        It judges among the domains that it knows and that count; the others' probabilities stay.
        """
        second, names = self.second_opinion, self.model.config.domain_names
        if second is None:
            raise ValueError(
                "`second_below` needs a second opinion: give `pipeline(..., second_opinion=True)` where the router has"
                " one, which `ir3de second` makes."
            )
        known = [name for name in names if name in second.statistics]
        judged = [name for name in known if name in counting]
        if len(judged) < 2:
            return p, [False] * len(p), None
        asked: list[bool] = unsure.tolist()
        again, told = list(compress(texts, asked)), None
        if hasattr(second, "judge"):
            q, told = second.judge(again, known)
        else:  # of a repository with the code of an earlier version
            q = second.probabilities(again, known)
        q = q[:, [known.index(name) for name in judged]]
        places = unsure.nonzero(), torch.tensor([names.index(name) for name in judged])
        p = p.clone()
        p[places] = combined(p[places], q)
        return p, asked, None if told is None else iter(told)

    def _answer(
        self,
        records: list[Record],
        prompts: list[Prompt],
        policy: Policy,
        on_error: str,
        batch_size: int | None,
        generation: Options,
    ) -> None:
        """Adds `generated_text` to each record: a call an expert, then others for the prompts that failed."""
        check_options(generation)
        candidates = [
            self._candidates(record, prompt, index, policy, on_error)
            for index, (record, prompt) in enumerate(zip(records, prompts, strict=True))
        ]
        waiting = list(range(len(records)))
        for attempt in range(max(map(len, candidates), default=0)):
            waiting = [index for index in waiting if attempt < len(candidates[index])]
            shares: dict[str, list[int]] = defaultdict(list)
            for index in waiting:
                candidate = candidates[index][attempt]
                _set_expert(records[index], candidate)
                shares[candidate["expert"]].append(index)
            for name, indices in shares.items():
                answers = self.experts.generate(name, [prompts[i] for i in indices], batch_size, **generation)
                for index, answer in zip(indices, answers, strict=True):
                    if isinstance(answer, Exception):
                        _note_failure(records[index], name, answer, on_error)
                    else:
                        records[index]["generated_text"] = answer
                        waiting.remove(index)
        for record, tried in zip(records, candidates, strict=True):
            if "generated_text" in record:
                continue
            record["generated_text"] = None
            if tried:  # all of them failed, and the record names the one that was chosen
                _set_expert(record, tried[0])

    def _candidates(self, record: Record, prompt: Prompt, index: int, policy: Policy, on_error: str) -> list[Ranked]:
        """The experts that may answer a prompt, best first; prompt and specs are checked before any loads. Where none
        may, the record is told the reason.
        """
        ranked = policy.candidates(record)
        candidates = ranked[:1] + [each for each in ranked[1:] if self.experts.can_answer(each["expert"])]
        seen = has_images(prompt)
        if seen:
            candidates = [each for each in candidates if self.experts.sees(each["expert"])]
        try:
            check_prompt(prompt, index, sees=seen and bool(candidates))
            if record["expert"] is not None:
                self.experts.check([record["expert"]])
            check_pictures(pictures_in(with_pictures(prompt, f"prompt {index}, messages")))
        except Unanswerable as error:
            if on_error == "raise":
                raise
            record["reason"] = str(error)
            return []
        candidates = candidates if on_error == "next" else candidates[:1]
        self.experts.check(candidate["expert"] for candidate in candidates)
        return candidates

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves the router as [`IR3DEModel.save_pretrained`] does, with the tokenizer from here."""
        self.model.tokenizer = self.tokenizer
        self.model.save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Uploads the router as [`IR3DEModel.push_to_hub`] does, with the tokenizer from here."""
        self.model.tokenizer = self.tokenizer
        return self.model.push_to_hub(repo_id, **kwargs)


def _add_recognised(records: list[Record], p: torch.Tensor, domains: list[str]) -> None:
    """Adds to each record an id, and as how much of an outcome its answer would count in each domain."""
    for record, weights in zip(records, shared(p.numpy()).tolist(), strict=True):
        record["id"] = uuid.uuid4().hex
        record["recognised"] = dict(zip(domains, weights, strict=True))


def _set_expert(record: Record, candidate: Ranked) -> None:
    """Makes an expert the one that answers."""
    record["expert"], record["score"] = candidate["expert"], candidate["score"]


def _note_failure(record: Record, expert: str, error: Exception, on_error: str) -> None:
    """Adds to a record that an expert did not answer, or raises what kept it."""
    if on_error == "raise":
        raise ExpertError(expert, error) from error
    said = describe_error(error)
    logger.warning("Expert %s did not answer: %s", expert, ascii(said))  # ascii: a server may send control characters
    record.setdefault("failures", []).append({"expert": expert, "error": said})


class EmptyPromptError(Unanswerable):
    """
    Prompts without a token, which leave nothing to route on; a ValueError.

    Args:
        indices (`list[int]`): of theirs.
        prompts (`list`): all of them.
    """

    def __init__(self, indices: list[int], prompts: list[Prompt]) -> None:
        first = indices[0]
        super().__init__(f"Prompt {first} is empty ({prompts[first]!r}): there is nothing to route on.")
        self.indices = set(indices)


def _without_empty_turns(prompts: list[Prompt], turns: list[list[str]], token_ids: list[list[int]]) -> list[list[str]]:
    """The turns that have a token, or raises where a present one, which is the last of a prompt, has none."""
    ids = iter(token_ids)
    kept = [[(text, bool(next(ids))) for text in of_prompt] for of_prompt in turns]
    if empty := [index for index, of_prompt in enumerate(kept) if not of_prompt[-1][1]]:
        raise EmptyPromptError(empty, prompts)
    return [[text for text, is_there in of_prompt if is_there] for of_prompt in kept]


def _asked(record: Record) -> Record:
    """The record of a single prompt, or raises Unanswerable where nobody was asked."""
    if "reason" in record:
        raise Unanswerable(record["reason"])
    return record


def _empty_record(explain: bool, generate: bool, domains: list[str] | None) -> Record:
    """The record of an empty prompt among others; where domains are to be told, none was recognised."""
    record: Record = {"expert": None, "score": 0.0, "ranking": [], "reason": "It is empty: nothing to route on."}
    if explain:
        record["support"], record["tokens"] = 0.0, []
    if generate:
        record["generated_text"] = None
    if domains is not None:
        record["id"], record["recognised"] = uuid.uuid4().hex, dict.fromkeys(domains, 0)
    return record


def _each(inputs: Any) -> Iterable[Any]:
    """The prompts of an iterable in its own order, or raises TypeError."""
    # Iterable, but not over prompts: a single message; a table, which gives the names of its columns.
    if not isinstance(inputs, (bytes, bytearray, Mapping)) and getattr(inputs, "ndim", 1) == 1:
        if isinstance(inputs, Iterable):
            return inputs
        if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):  # torch's data sets
            return (inputs[index] for index in range(len(inputs)))
    raise TypeError(f"Expected text, a chat, or an iterable of them, such as a list or one column; got {inputs!r}.")


def _is_chat(inputs: object) -> bool:
    return isinstance(inputs, (list, tuple)) and bool(inputs) and isinstance(inputs[0], dict)


def _check_prompt(prompt: Any, index: int) -> Prompt:
    """Returns a prompt as text or as a list of messages, or raises TypeError."""
    prompt = getattr(prompt, "messages", prompt)  # transformers' Chat
    if isinstance(prompt, str):
        return prompt
    if prompt is None or (isinstance(prompt, float) and math.isnan(prompt)):
        return ""  # a value that is missing from a column
    if not _is_chat(prompt):
        raise TypeError(f"Prompt {index} is {prompt!r}: expected text, or a chat, which is a list of messages.")
    for message in prompt:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise TypeError(f"Prompt {index} has the message {message!r}: a message has a `role` and a `content`.")
    return list(prompt)


def _as_routed(text: str) -> str:
    """Text with the replacement character for each half of a surrogate pair, which no tokenizer reads; of white space
    alone nothing, although many tokenizers have tokens for it.
    """
    if text.isspace():
        return ""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _turns(prompt: Prompt, route_on: str) -> list[str]:
    """The texts that a prompt was routed on, turn by turn, the present one last.

    Of a chat that is each user message, or with `route_on="conversation"` all user messages up to it. A chat without
    any is routed on its last message.
    """
    if isinstance(prompt, str):
        return [prompt]
    messages = [message for message in prompt if message["role"] == "user"] or prompt[-1:]
    texts = [text_of(message["content"]) for message in messages]
    if route_on == "conversation":
        return ["\n".join(texts[: end + 1]) for end in range(len(texts))]
    return texts


class _Said(NamedTuple):
    """What each token of a prompt says: the fields of [`IR3DEOutput`] of those names, as lists."""

    entropies: list[float]
    votes: list[int]
    counted: list[bool]
    contributions: list[list[float]]


def _said(output: Any) -> _Said:
    """What an [`IR3DEOutput`] says of each token, of a batch of one prompt."""
    fields = (getattr(output, name) for name in _Said._fields)
    return _Said(*(field[0].tolist() for field in fields))


def _explain(record: Record, pieces: list[str], said: _Said, domains: list[str]) -> None:
    """Adds to a record what each token said, and what it added to the chosen expert's domain, or to that of the first
    of the ranking if a fallback or nobody stands in its place; where domains and experts differ, to the likeliest.
    """
    chosen = record["expert"]
    if chosen is None or "fallback" in record:
        chosen = record["ranking"][0]["expert"]
    expert = domains.index(chosen if chosen in domains and "pairs" not in record else record["domains"][0]["domain"])
    record["support"] = sum(row[expert] for row in said.contributions)
    # There are more pieces than tokens where a prompt was longer than the router reads.
    record["tokens"] = [
        {
            "token": piece,
            "entropy": entropy,
            "vote": domains[vote],
            "weight": row[vote] - sum(row) / len(row),
            "counted": counted,
            "contribution": row[expert],
        }
        for piece, entropy, vote, counted, row in zip(pieces, *said, strict=False)
    ]


def _explain_familiarity(record: Record, familiar: list[TokenFamiliarity] | None) -> None:
    """Adds to the tokens of a record which of them the router knows, and what each adds to the prompt's familiarity."""
    for token, told in zip(record["tokens"], familiar or (), strict=False):
        token["known"], token["familiarity"] = told


def _pieces(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[str]]:
    """For each prompt the text of each token, such that together they give back the prompt up to its last token.

    A tokenizer without a fast version knows no places in a text: then they are the tokens as its vocabulary has them.
    """
    if not tokenizer.is_fast:
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [list(tokenizer.convert_ids_to_tokens(ids)) for ids in encoded]
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_offsets_mapping": True}
    spans = tokenizer(texts, verbose=False, **options)["offset_mapping"]
    return [_cut(text, [stop for _, stop in of_text]) for text, of_text in zip(texts, spans, strict=True)]


def _cut(text: str, stops: list[int]) -> list[str]:
    """The text up to each stop, from the one before it; a stop that goes back has none."""
    ends = list(accumulate(stops, max))
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _register() -> None:
    """Registers the task; code loaded from a repository leaves a registration that exists as it is."""
    supported = PIPELINE_REGISTRY.supported_tasks
    if __name__.startswith("transformers_modules") and TASK in supported:
        IR3DERoutingPipeline._registered_impl = {TASK: {**supported[TASK], "impl": IR3DERoutingPipeline}}
    else:
        PIPELINE_REGISTRY.register_pipeline(TASK, IR3DERoutingPipeline, pt_model=(AutoModel,), type="text")


_register()
