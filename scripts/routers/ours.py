"""IR3DE among the routers that are compared: what `ir3de fit` does, with rows that are in memory."""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ir3de.configuration_ir3de import FEATURE_MAPS, VARIANTS, IR3DEConfig
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.data.rows import Row
from ir3de.scripts.data.sampling import sample_per_domain
from ir3de.scripts.data.spool import Spool
from ir3de.scripts.fit import add_choice_arguments, check_domains, fit_router
from ir3de.scripts.routers.base import Options
from ir3de.scripts.second import choose
from ir3de.second_opinion_ir3de import SecondOpinion

AUTO, CHAIN = "ir3de", "ir3de-chain"
FEATURE_MAP_ROUTERS = tuple(f"{AUTO}-prompt-{name}" for name in FEATURE_MAPS if name != "identity")


class IR3DERouter:
    """
    Our router, behind the interface of the baselines.

    Args:
        options (`Sequence[str]`): of `ir3de fit`, those that decide how a router is fitted.
        tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
    """

    encoded = 0

    def __init__(self, options: Sequence[str], tokenizer: Any, embeddings: torch.Tensor) -> None:
        self.options = options
        self.tokenizer, self.embeddings = tokenizer, embeddings
        self.domains: list[str] = []
        self.choice = ""
        self.pipeline: Any = None

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> IR3DERouter:
        """Fits as `ir3de fit` does, without its printing."""
        self.domains = sorted(set(domains))
        parser = argparse.ArgumentParser()
        add_choice_arguments(parser)
        args = parser.parse_args(self.options)
        config = IR3DEConfig(experts=[{"name": name} for name in self.domains], num_features=args.num_features)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            spool = Spool(Path(folder))
            rows = (Row(text, domain) for text, domain in zip(texts, domains, strict=True))
            spool.fill(rows, self.tokenizer, config.max_length)
            check_domains(spool)
            model = fit_router(config, self.tokenizer, self.embeddings, spool, args)
        self.choice = ", ".join(f"{key} {value}" for key, value in _chosen(model.config).items())
        self.pipeline = IR3DERoutingPipeline(model, device="cpu")
        return self

    def route(self, texts: Sequence[str]) -> Any:
        """Their records."""
        return self.pipeline(list(texts), generate=False)

    def scores(self, texts: Sequence[str], cached: bool = False) -> Any:
        """The records' scores, in the order of `domains`."""
        records = self.pipeline(list(texts), generate=False)
        order = [{expert["expert"]: expert["score"] for expert in record["ranking"]} for record in records]
        return np.array([[row[name] for name in self.domains] for row in order])

    @property
    def nbytes(self) -> int:
        """Bytes of the token table, which is all that a prompt is routed with."""
        return sum(tensor.nbytes for tensor in self.pipeline.model.token_table())


class ChainRouter(IR3DERouter):
    """Our router with a second opinion on the sentence encoder, for prompts below its default bound."""

    def __init__(self, run: Options, tokenizer: Any, embeddings: torch.Tensor) -> None:
        super().__init__([], tokenizer, embeddings)
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

    def route(self, texts: Sequence[str]) -> Any:
        """Their records, the encoder at work for those that it is asked about."""
        self.cached = False
        return super().route(texts)

    def scores(self, texts: Sequence[str], cached: bool = False) -> Any:
        """As above; `cached` takes the vectors from the cache."""
        self.cached = cached
        return super().scores(texts)

    def _encode(self, texts: list[str]) -> Any:
        return (self.encoder.cached if self.cached else self.encoder.encode)(texts)

    @property
    def nbytes(self) -> int:
        """Bytes of the token table and of the encoder."""
        return super().nbytes + self.encoder.nbytes


def ours(tokenizer: Any, embeddings: torch.Tensor) -> dict[str, Any]:
    """A factory by name: the automatic choice, also with a second opinion, each variant, and `prompt` on each map."""
    options: dict[str, list[str]] = {AUTO: [], f"{AUTO}-best": ["--standard-errors", "0"]}
    options |= {f"{AUTO}-{variant}": ["--variant", variant] for variant in VARIANTS}
    options |= {name: ["--variant", "prompt", "--feature-map", name.split("-")[-1]] for name in FEATURE_MAP_ROUTERS}
    made: dict[str, Any] = {name: partial(_make, given, tokenizer, embeddings) for name, given in options.items()}
    return made | {CHAIN: partial(ChainRouter, tokenizer=tokenizer, embeddings=embeddings)}


def _make(options: Sequence[str], tokenizer: Any, embeddings: torch.Tensor, _: Any) -> IR3DERouter:
    return IR3DERouter(options, tokenizer, embeddings)


def _chosen(config: IR3DEConfig) -> dict[str, Any]:
    """The fields of the config that the choice set, as far as they matter to its variant."""
    prompt = config.variant == "prompt"
    keys = [
        "variant",
        "feature_map",
        *(["prompt_regularization", "token_noise", "lexical_weight"] if prompt else ["regularization"]),
    ]
    keys += ["num_votes"] if config.variant == "top-k" else []
    return {key: f"{value:.2g}" if isinstance(value := getattr(config, key), float) else value for key in keys}
