"""IR3DE among the routers that are compared: what `ir3de fit` does, with rows that are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ir3de.choices_ir3de import FEATURE_MAPS, VARIANTS
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.data.rows import Row
from ir3de.scripts.data.sampling import sample_per_domain
from ir3de.scripts.fitting.fit import fit_rows
from ir3de.scripts.fitting.options import FitOptions
from ir3de.scripts.fitting.second import choose
from ir3de.scripts.metrics.measures import Array
from ir3de.scripts.routers.base import Factory, Options
from ir3de.second_opinion_ir3de import SecondOpinion

AUTO, CHAIN = "ir3de", "ir3de-chain"
FEATURE_MAP_ROUTERS = tuple(f"{AUTO}-prompt-{name}" for name in FEATURE_MAPS if name != "identity")


class IR3DERouter:
    """
    Our router, behind the interface of the baselines.

    Args:
        options ([`FitOptions`]): how it is fitted.
        tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
    """

    encoded = 0

    def __init__(self, options: FitOptions, tokenizer: Any, embeddings: torch.Tensor) -> None:
        self.options = options
        self.tokenizer, self.embeddings = tokenizer, embeddings
        self.domains: list[str] = []
        self.choice = ""
        self.pipeline: Any = None  # an [`IR3DERoutingPipeline`], once fitted

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> IR3DERouter:
        """Fits as `ir3de fit` does."""
        self.domains = sorted(set(domains))
        config = IR3DEConfig(experts=[{"name": name} for name in self.domains], **self.options.config_fields())
        rows = (Row(text, domain) for text, domain in zip(texts, domains, strict=True))
        model = fit_rows(config, self.tokenizer, self.embeddings, rows, self.options).model
        self.choice = _describe_choice(model.config)
        self.pipeline = IR3DERoutingPipeline(model, device="cpu")
        return self

    def route(self, texts: Sequence[str]) -> object:
        """Their records."""
        return self.pipeline(list(texts), generate=False, on_error="raise")

    def scores(self, texts: Sequence[str], cached: bool = False) -> Array:
        """The records' scores, in the order of `domains`."""
        records = self.pipeline(list(texts), generate=False, on_error="raise")
        rows = []
        for record in records:
            scores = {entry["expert"]: entry["score"] for entry in record["ranking"]}
            rows.append([scores[name] for name in self.domains])
        return np.array(rows)

    def familiarity(self, texts: Sequence[str]) -> Array | None:
        """How familiar prompts are, where the router tells it."""
        records = self.pipeline(list(texts), generate=False, top_n=1)
        told = [record["familiarity"] for record in records if "familiarity" in record]
        return np.array(told) if len(told) == len(texts) else None

    @property
    def nbytes(self) -> int:
        """Bytes of the tables, which are all that a prompt is routed with."""
        model = self.pipeline.model
        tables = [tensor for tensor in model.token_table() if tensor is not None]
        if model.familiarity_table is not None:
            tables.append(model.familiarity_table.weight)
        return sum(tensor.nbytes for tensor in tables)


class ChainRouter(IR3DERouter):
    """Our router with a second opinion on the sentence encoder, for prompts below its default bound."""

    def __init__(self, run: Options, tokenizer: Any, embeddings: torch.Tensor) -> None:
        super().__init__(FitOptions(), tokenizer, embeddings)
        self.run = run
        self.encoder = run.sentence_encoder
        self.cached = True

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> ChainRouter:
        """Fits both, the second to as many prompts as an encoder reads here."""
        self.cached = True
        super().fit(texts, domains)
        kept = sample_per_domain(domains, self.run.max_train, self.run.seed)
        labels = np.searchsorted(self.domains, [domains[i] for i in kept])
        opinion = SecondOpinion(self.run.encoder, encode=self._encode)
        X = opinion.encode([texts[i] for i in kept])
        choose(opinion, X, torch.from_numpy(labels), self.domains)
        self.choice += f"; second: lambda {opinion.regularization:g} x mean diagonal"
        self.encoded, self.pipeline.second_opinion = len(kept), opinion
        return self

    def route(self, texts: Sequence[str]) -> object:
        """Their records, the encoder at work for those that it is asked about."""
        self.cached = False
        return super().route(texts)

    def scores(self, texts: Sequence[str], cached: bool = False) -> Array:
        """As above; `cached` takes the vectors from the cache."""
        self.cached = cached
        return super().scores(texts)

    def _encode(self, texts: list[str]) -> Array:
        return self.encoder.cached(texts) if self.cached else self.encoder.encode(texts)

    @property
    def nbytes(self) -> int:
        """Bytes of the token table and of the encoder."""
        return super().nbytes + self.encoder.nbytes


def ours(tokenizer: Any, embeddings: torch.Tensor) -> dict[str, Factory]:
    """A factory by name: the automatic choice, also with a second opinion, each variant, and `prompt` on each map."""
    options = {AUTO: FitOptions(), f"{AUTO}-best": FitOptions(standard_errors=0)}
    options |= {f"{AUTO}-{variant}": FitOptions(variant=variant) for variant in VARIANTS}
    for name in FEATURE_MAP_ROUTERS:
        options[name] = FitOptions(variant="prompt", feature_map=name.split("-")[-1])
    made: dict[str, Factory] = {}
    for name, given in options.items():
        made[name] = partial(_make, given, tokenizer, embeddings)
    made[CHAIN] = partial(ChainRouter, tokenizer=tokenizer, embeddings=embeddings)
    return made


def _make(options: FitOptions, tokenizer: Any, embeddings: torch.Tensor, _: Options) -> IR3DERouter:
    return IR3DERouter(options, tokenizer, embeddings)


def _describe_choice(config: IR3DEConfig) -> str:
    """The fields of the config that the choice set, as far as they matter to its variant."""
    keys = ["variant", "feature_map"]
    if config.variant == "prompt":
        keys += ["prompt_regularization", "token_noise", "lexical_weight"]
        keys += ["discriminant"] * config.discriminant
    else:
        keys.append("regularization")
    if config.variant == "top-k":
        keys.append("num_votes")
    parts = []
    for key in keys:
        value = getattr(config, key)
        parts.append(f"{key} {value:.2g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(parts)
