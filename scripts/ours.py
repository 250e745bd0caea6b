"""IR3DE among the routers that are compared: what `ir3de fit` does, with rows that are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ir3de.configuration_ir3de import VARIANTS, IR3DEConfig
from ir3de.modeling_ir3de import IR3DEModel, feature_space
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.choose import NUM_VOTES, RELATIVE_LAMBDAS, choose
from ir3de.scripts.data import Row
from ir3de.scripts.fit import collect, domain_statistics
from ir3de.token_router_ir3de import mean_diagonal

AUTO = "ir3de"


class IR3DERouter:
    """
    Our router, behind the interface of the baselines.

    Args:
        variant (`str`): one of the config's, or `"auto"`.
        tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
    """

    encoded = 0

    def __init__(self, variant: str, tokenizer: Any, embeddings: torch.Tensor) -> None:
        self.variants = VARIANTS if variant == "auto" else (variant,)
        self.tokenizer, self.embeddings = tokenizer, embeddings
        self.domains: list[str] = []
        self.choice = ""
        self.pipeline: Any = None

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> IR3DERouter:
        """Fits as `ir3de fit` does."""
        rows = [Row(text, domain) for text, domain in zip(texts, domains, strict=True)]
        self.domains = sorted(set(domains))
        config = IR3DEConfig(experts=[{"name": name} for name in self.domains])
        name = feature_space(self.tokenizer, self.embeddings)
        corpus = collect(rows, self.tokenizer, len(self.embeddings), config.max_length)
        part = domain_statistics(corpus, self.embeddings, name, everything=False)
        model = IR3DEModel.from_statistics(config, self.embeddings, part, self.tokenizer)
        scale = mean_diagonal((domain.gram for domain in part.values()), config.balance)
        lambdas = [scale * value for value in RELATIVE_LAMBDAS]
        choose(model, corpus.held_out, self.variants, NUM_VOTES, lambdas)
        model.fit(domain_statistics(corpus, self.embeddings, name, everything=True))
        votes = f", k {model.config.num_votes}" if model.config.variant == "top-k" else ""
        self.choice = f"{model.config.variant}{votes}, lambda {model.config.regularization:.2g}"
        self.pipeline = IR3DERoutingPipeline(model, device="cpu")
        return self

    def scores(self, texts: Sequence[str], cached: bool = False) -> Any:
        """The records' scores, in the order of `domains`."""
        records = self.pipeline(list(texts), generate=False)
        order = [{expert["expert"]: expert["score"] for expert in record["ranking"]} for record in records]
        return np.array([[row[name] for name in self.domains] for row in order])

    @property
    def nbytes(self) -> int:
        """Bytes of the token table, which is all that a prompt is routed with."""
        return sum(tensor.nbytes for tensor in self.pipeline.model.token_table if torch.is_tensor(tensor))


def ours(tokenizer: Any, embeddings: torch.Tensor) -> dict[str, Any]:
    """A factory by name: the automatic choice, and each variant."""
    names = {AUTO: "auto", **{f"{AUTO}-{variant}": variant for variant in VARIANTS}}
    return {
        name: lambda _, variant=variant: IR3DERouter(variant, tokenizer, embeddings) for name, variant in names.items()
    }
