"""LLMRouter's routers among those that learn from outcomes: what they are given, and what is said without them."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ir3de.scripts import cli
from ir3de.scripts.data.judged import Judged
from ir3de.scripts.routers.outcome_peers import KINDS, LLMRouterPeer

SCORES = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, np.nan, 1.0]])
DATA = Judged(["court", "jury", "prime"], ["law", "law", "math"], SCORES, np.full_like(SCORES, np.nan))
VECTORS = {"court": [1.0, 0.0], "jury": [0.9, 0.1], "prime": [0.0, 1.0], "angle": [0.1, 0.9]}
ENCODER: Any = SimpleNamespace(cached=lambda texts: np.array([VECTORS[text] for text in texts]))


class KNNRouter:
    """A stand-in that reads what LLMRouter's does: the first of the best experts of each prompt is its label."""

    def __init__(self, path: str) -> None:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        self.hparam = config["hparam"]
        data = config["data_path"]
        vectors = torch.load(data["query_embedding_data"], weights_only=True)
        best: dict[str, dict[str, Any]] = {}
        for line in Path(data["routing_data_train"]).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["query"] not in best or row["performance"] > best[row["query"]]["performance"]:
                best[row["query"]] = row
        self.labels = [row["model_name"] for row in best.values()]
        self.vectors = torch.stack([vectors[row["embedding_id"]] for row in best.values()]).numpy()

    def predict(self, vectors: Any) -> list[str]:
        return [self.labels[place] for place in (vectors @ self.vectors.T).argmax(axis=1)]


class KNNRouterTrainer:
    def __init__(self, router: KNNRouter, device: str) -> None:
        self.model = router

    def train(self) -> None:
        print("what LLMRouter says stays with it")


def test_llmrouter_is_given_each_outcome_and_our_vectors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = SimpleNamespace(KNNRouter=KNNRouter, KNNRouterTrainer=KNNRouterTrainer)
    monkeypatch.setitem(sys.modules, "llmrouter", SimpleNamespace(models=models))
    peer = LLMRouterPeer("llmrouter-knn", ENCODER).fit(DATA)
    assert peer.router.hparam == {"n_neighbors": 5}
    scores, costs = peer.expected(["court", "jury", "angle"])
    assert scores.argmax(axis=1).tolist() == [1, 1, 2], "of two that are best the one that is best in the mean"
    assert scores.sum(axis=1).tolist() == [1, 1, 1]
    assert np.isnan(costs).all()
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(importlib.util.find_spec("llmrouter") is not None, reason="it is installed")
def test_a_package_that_is_missing_is_told_before_anything_is_measured(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "judged.jsonl"
    rows = [{"text": t, "scores": {"a": 1}, "source": "x", "split": s} for t, s in (("a", "train"), ("b", "test"))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr("ir3de.scripts.routers.encoders.shared_encoder", lambda name: ENCODER)
    options = ["benchmark", "--embeddings", source, "--outcomes", str(data), "--output", str(tmp_path / "out")]
    assert cli.main([*options, "--encoder", "x", "--routers", "llmrouter-mf"]) != 0
    assert "llmrouter-mf needs llmrouter-lib" in capsys.readouterr().err
    assert cli.main([*options, "--encoder", "x", "--routers", "best"]) == 2
    said = capsys.readouterr().err
    assert "does not know best" in said
    assert all(kind in said for kind in KINDS)
