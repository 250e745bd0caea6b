"""What statistics reveal, and what the private mode hides."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch

from ir3de import DomainStatistics, IR3DEModel
from ir3de.batch_ir3de import Prompts
from ir3de.scripts import cli
from ir3de.scripts.fitting import private
from ir3de.scripts.fitting.private import (
    GRID,
    SENSITIVITY,
    SHARE,
    PrivateCollector,
    check_privacy,
    gaussian_delta,
    noise_scale,
    normal,
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


# The noise.


def test_noise_is_standard_normal_and_no_two_draws_are_alike() -> None:
    draw = normal(torch.Size([1001, 999]))
    assert draw.shape == (1001, 999)
    for order, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert float(draw.pow(order).mean()) == pytest.approx(moment, abs=0.03)
    inside = [float((draw.abs() < bound).double().mean()) for bound in (1, 2, 3)]
    assert inside == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.003)
    assert draw.flatten().unique().numel() == draw.numel()
    assert float((draw[:-1] * draw[1:]).mean()) == pytest.approx(0, abs=0.01)
    assert not torch.equal(draw, normal(torch.Size([1001, 999])))


def test_noise_follows_from_no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> torch.Tensor:
        torch.manual_seed(0)
        return normal(torch.Size([8]))

    assert not torch.equal(drawn(), drawn())
    asked: list[int] = []
    monkeypatch.setattr(private.secrets, "token_bytes", lambda size: asked.append(size) or bytes(size))
    drawn()
    assert sum(asked) * 8 >= 64 * 8, "64 bits of the operating system for each number"


def test_sums_and_noise_are_whole_steps_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(private, "_nearest", lambda A: seen.append(A) or torch.eye(len(A), dtype=torch.float64))
    collected(TEXTS, 1.0)
    for A in seen:
        assert torch.equal(A / GRID, (A / GRID).round())
        assert torch.equal(A, A.T)


def test_what_promises_little_or_tells_little_is_said() -> None:
    with pytest.warns(UserWarning, match="Epsilon 11 promises next to nothing"):
        check_privacy(11, 1e-6, "unit")
    with pytest.warns(UserWarning, match="60 prompts are too few for this epsilon"):
        collected(TEXTS, 1.0)
    size = torch.eye(3, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"not below 1 / 1,000,000, the number of prompts"):
        release(size * 1e6, size * 1e6, "f", 1.0, 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_privacy(10, 1e-6, "unit")
        release(size * 1e5, size * 1e5, "f", 1.0, 1e-6)


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-6), (-1, 1e-6), (math.inf, 1e-6), (math.nan, 0.1), (1, 0), (1, 1)]
)
def test_what_promises_nothing_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match="needs epsilon above 0"):
        check_privacy(epsilon, delta, "unit")
