"""What statistics reveal, and what the private mode hides."""

import json
import math
from pathlib import Path

import pytest
import torch

from ir3de import DomainStatistics, IR3DEModel
from ir3de.batch_ir3de import Prompts
from ir3de.scripts import cli
from ir3de.scripts.fitting.private import (
    SENSITIVITY,
    SHARE,
    PrivateCollector,
    gaussian_delta,
    noise_scale,
    release,
)
from ir3de.statistics_ir3de import gram_from_counts
from ir3de.token_router_ir3de import FeatureMap

from . import tiny

TEXTS = tiny.sentences("law", 60)
UNIT = FeatureMap("unit")
PHI = UNIT.prepare(tiny.embeddings())(tiny.embeddings())


def reconstructed(A: torch.Tensor) -> torch.Tensor:
    """Token counts solved back out of A = X^T diag(c) X, in the least-squares sense."""
    X = torch.cat([PHI.double(), torch.ones(len(PHI), 1, dtype=torch.float64)], dim=1)
    rows, columns = torch.triu_indices(len(A), len(A))
    system = X[:, rows] * X[:, columns]  # (V, equations): what one occurrence of each token adds
    return torch.linalg.lstsq(system.T, A[rows, columns].unsqueeze(1), driver="gelsd").solution.squeeze(1)


def collected(texts: list[str], epsilon: float | None) -> DomainStatistics:
    if epsilon is None:
        return tiny.statistics(texts, UNIT)
    collector = PrivateCollector(PHI, "f")
    collector.add(Prompts.of([tiny.token_ids(text) for text in texts]))
    tokens = gram_from_counts(collector.counts, PHI) / SHARE
    return release(tokens, collector.prompts, "f", epsilon, 1e-6)


def test_token_counts_can_be_solved_out_of_plain_statistics() -> None:
    counts = torch.bincount(torch.tensor([i for text in TEXTS for i in tiny.token_ids(text)]), minlength=len(PHI))
    found = reconstructed(collected(TEXTS, None).gram("tokens"))
    assert torch.equal(found.round().long(), counts)


def test_in_private_mode_they_cannot() -> None:
    shares = torch.zeros(len(PHI), dtype=torch.float64)
    for text in TEXTS:
        ids = torch.tensor(tiny.token_ids(text))
        shares += torch.bincount(ids, minlength=len(PHI)) / len(ids)
    without_noise = PrivateCollector(PHI, "f")
    without_noise.add(Prompts.of([tiny.token_ids(text) for text in TEXTS]))
    exact = reconstructed(gram_from_counts(without_noise.counts, PHI) / SHARE)
    assert float((exact - shares).abs().max()) < 1e-3, "the reconstruction works on what the noise then hides"
    found = reconstructed(collected(TEXTS, 1.0).gram("tokens"))
    assert float((found - shares).norm() / shares.norm()) > 1, "worse than guessing nothing"


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_the_noise_is_the_least_that_keeps_the_promise(epsilon: float) -> None:
    sigma = noise_scale(epsilon, 1e-6, SENSITIVITY)
    assert gaussian_delta(sigma, epsilon, SENSITIVITY) <= 1e-6
    assert gaussian_delta(0.999 * sigma, epsilon, SENSITIVITY) > 1e-6
    assert noise_scale(epsilon, 1e-6, 3 * SENSITIVITY) == pytest.approx(3 * sigma, rel=1e-6)
    if epsilon <= 1:  # the classical mechanism, which is proven there, needs more
        assert sigma < math.sqrt(2 * math.log(1.25e6)) * SENSITIVITY / epsilon


def test_delta_is_what_integration_says() -> None:
    sigma, epsilon, sensitivity = 1.7, 0.8, 2.0
    x = torch.linspace(-40, 40, 800001, dtype=torch.float64)
    p, q = (torch.exp(-((x - m) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi)) for m in (sensitivity, 0.0))
    worst = torch.trapezoid((p - math.exp(epsilon) * q).clamp_min(0), x)
    assert gaussian_delta(sigma, epsilon, sensitivity) == pytest.approx(float(worst), rel=1e-6)


def test_one_prompt_moves_the_sums_by_no_more_than_the_noise_is_made_for() -> None:
    for text in (*tiny.sentences("law", 20), "court " * 300, "a", "my my my the"):
        collector = PrivateCollector(PHI, "f")
        collector.add(Prompts.of([tiny.token_ids(text)]))
        tokens = gram_from_counts(collector.counts, PHI) / SHARE
        moved = math.sqrt(float(tokens.square().sum() + collector.prompts.square().sum()))
        assert moved <= SENSITIVITY * (1 + 1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 100.0])
def test_private_statistics_are_accepted_as_any_others(epsilon: float, tmp_path: Path) -> None:
    made = tiny.router(feature_map="unit")
    made.remove_expert("law")
    made.save_pretrained(tmp_path / "router")
    (tmp_path / "law.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    output = tmp_path / "law.safetensors"
    arguments = ["collect", "--router", str(tmp_path / "router"), "--name", "law", "--output", str(output)]
    assert cli.main([*arguments, "--data", str(tmp_path / "law.jsonl"), "--epsilon", str(epsilon)]) == 0
    assert cli.main(["add", str(tmp_path / "router"), "law", "--statistics", str(output)]) == 0
    model = IR3DEModel.from_pretrained(tmp_path / "router")
    assert model.config.expert_names == ["code", "law", "math"]
    assert model.statistics["law"].contributions.keys().isdisjoint(collected(TEXTS, None).contributions)
    if epsilon == 100:
        inputs = model.tokenizer(["the court and a judge"], return_tensors="pt", return_token_type_ids=False)
        assert model(**inputs, variant="prompt").logits.argmax().item() == 1


def test_it_needs_tokens_of_bounded_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.router().save_pretrained(tmp_path / "router")
    (tmp_path / "art.jsonl").write_text(json.dumps({"text": "show me"}))
    arguments = ["collect", "--router", str(tmp_path / "router"), "--name", "art", "--epsilon", "1"]
    assert cli.main([*arguments, "--data", str(tmp_path / "art.jsonl"), "--output", str(tmp_path / "art")]) == 2
    assert "bounded length" in capsys.readouterr().err
