"""LLMRouter's routers that learn from outcomes, for those who have it installed; it is no extra of ours.

As of llmrouter-lib 0.4.0 its requirements include a server and a graph library that these four do without: `pip install
--no-deps llmrouter-lib litellm pandas`, and what its import then asks for. Each is trained by its own trainer as it
comes, but on the vectors of our sentence encoder, since its own (Longformer's) has to be downloaded. It learns which
expert was best on each prompt, so it says who is chosen and nothing of scores or costs.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ir3de.scripts.data.judged import Judged
from ir3de.scripts.metrics.measures import Array
from ir3de.scripts.routers.encoders import Encoder

# Class, trainer and options; where LLMRouter names no value of its own, those of its examples.
KINDS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "llmrouter-knn": ("KNNRouter", "KNNRouterTrainer", {"n_neighbors": 5}),
    "llmrouter-svm": ("SVMRouter", "SVMRouterTrainer", {}),
    "llmrouter-mlp": ("MLPRouter", "MLPTrainer", {}),
    "llmrouter-mf": ("MFRouter", "MFRouterTrainer", {}),
}


class LLMRouterPeer:
    """
    One of LLMRouter's routers.

    Args:
        kind (`str`): of `KINDS`.
        encoder ([`Encoder`]): of prompts.

    Raises:
        ImportError: the package is missing, or one that it imports.
    """

    def __init__(self, kind: str, encoder: Encoder) -> None:
        try:
            from llmrouter import models
        except ImportError as error:
            raise ImportError(
                f"The router {kind} needs llmrouter-lib ({error}): see scripts/routers/outcome_peers.py, or leave it"
                " out of --routers."
            ) from error
        name, trainer, self.options = KINDS[kind]
        self.make, self.train = getattr(models, name), getattr(models, trainer)
        self.encoder = encoder
        self.choice = ""

    def fit(self, data: Judged) -> LLMRouterPeer:
        """Trains on a folder of files in LLMRouter's form."""
        torch.manual_seed(0)
        self.experts = data.scores.shape[1]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            self.router = self.make(str(self._write(Path(folder), data)))
            trainer = self.train(self.router, device="cpu")
            trainer.train()
        self.model = trainer.model
        return self

    def _write(self, folder: Path, data: Judged) -> Path:
        """The training data, and the configuration that names them."""
        vectors = torch.from_numpy(self.encoder.cached(list(data.texts))).float()
        torch.save(vectors, folder / "vectors.pt")
        # Of several that are best on a prompt LLMRouter takes the first: here the one that is best in the mean.
        order = np.argsort(-np.nanmean(data.scores, axis=0), kind="stable")
        with (folder / "routing.jsonl").open("w", encoding="utf-8") as file:
            for row, place in np.argwhere(~np.isnan(data.scores[:, order])).tolist():
                expert = int(order[place])
                found = {"query": data.texts[row], "model_name": f"{expert:04}", "embedding_id": row}
                file.write(json.dumps({**found, "performance": float(data.scores[row, expert])}) + "\n")
        config = {
            "data_path": {
                "routing_data_train": str(folder / "routing.jsonl"),
                "query_embedding_data": str(folder / "vectors.pt"),
            },
            "model_path": {f"{part}_model_path": str(folder / f"{part}.pkl") for part in ("ini", "save", "load")},
            "hparam": {**self.options, **({"text_dim": vectors.shape[1]} if self.make.__name__ == "MFRouter" else {})},
        }
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def expected(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """1 for the expert that is chosen; nothing of costs."""
        vectors = torch.from_numpy(self.encoder.cached(list(texts))).float()
        with torch.no_grad():
            if hasattr(self.model, "score_all"):  # matrix factorisation
                ids = [int(self.model.score_all(self.model.project_text(vector)).argmax()) for vector in vectors]
                names = [self.router.idx_to_model[each] for each in ids]
            elif hasattr(self.router, "idx_to_model"):  # a network
                names = [self.router.idx_to_model[int(each)] for each in self.model.predict(vectors)]
            else:  # scikit-learn's
                names = list(self.model.predict(vectors.numpy()))
        scores = np.zeros((len(texts), self.experts))
        scores[np.arange(len(texts)), [int(name) for name in names]] = 1
        return scores, np.full_like(scores, np.nan)


def peers(encoder: Encoder) -> dict[str, Callable[[], LLMRouterPeer]]:
    """Makers of LLMRouter's routers, by name."""
    return {kind: partial(LLMRouterPeer, kind, encoder) for kind in KINDS}
