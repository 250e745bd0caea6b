"""Section 3.1, second half: W by ridge regression, and the token table."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.modeling_ir3de import _solve
from ir3de.statistics_ir3de import KINDS, DomainStatistics, gram_from_counts
from ir3de.token_router_ir3de import (
    FeatureMap,
    discriminant,
    entropy,
    fourier,
    log_odds,
    mean_diagonal,
    orthogonal_frequencies,
    ridge,
    sums,
)

# Three tokens in one dimension. Domain 0 says the first three times and the last once; domain 1 the second and last.
E = torch.tensor([[1.0], [-1.0], [0.0]])
COUNTS = [torch.tensor([3, 0, 1]), torch.tensor([0, 3, 1])]
GRAMS = [gram_from_counts(counts, E) for counts in COUNTS]


def random_domains(rows: tuple[int, ...] = (30, 50, 20), width: int = 5) -> list[torch.Tensor]:
    """Rows X_d of each domain, the column of ones last."""
    generator = torch.Generator().manual_seed(0)
    domains = [torch.randn(n, width, dtype=torch.float64, generator=generator) + d for d, n in enumerate(rows)]
    return [torch.cat([X, torch.ones(len(X), 1, dtype=torch.float64)], dim=1) for X in domains]


def grams(domains: list[torch.Tensor]) -> list[torch.Tensor]:
    return [X.T @ X for X in domains]


def solve(grams: list[torch.Tensor], regularization: float, balance: bool = True, **options: bool) -> torch.Tensor:
    return ridge(*sums(grams, balance), regularization, **options)


def least_squares(domains: list[torch.Tensor], regularization: float) -> torch.Tensor:
    """The ridge problem as an ordinary one: min ||(X; sqrt(lambda) I) W - (Y; 0)||^2."""
    X, width = torch.cat(domains), domains[0].shape[1]
    Y = torch.cat([F.one_hot(torch.full((len(X_d),), d), len(domains)) for d, X_d in enumerate(domains)])
    penalty = math.sqrt(regularization) * torch.eye(width, dtype=torch.float64)
    zeros = torch.zeros(width, len(domains), dtype=torch.float64)
    return torch.linalg.lstsq(torch.cat([X, penalty]), torch.cat([Y.double(), zeros])).solution


@pytest.mark.parametrize(
    ("options", "W"),
    [
        # A = 6 and b = (3, -3), so W = b / (6 + 2).
        ({"regularization": 2, "balance": False, "bias": False}, [[3 / 8, -3 / 8]]),
        # The ones: A = diag(6, 8), their row of B is (4, 4), so W's is 4 / (8 + 2).
        ({"regularization": 2, "balance": False, "bias": True}, [[3 / 8, -3 / 8], [0.4, 0.4]]),
        # Each domain divided by its four tokens: A = 3/2 and b = (3/4, -3/4).
        ({"regularization": 0.5, "balance": True, "bias": False}, [[3 / 8, -3 / 8]]),
        # The ones: A = 2, B = (1, 1).
        ({"regularization": 0.5, "balance": True, "bias": True}, [[3 / 8, -3 / 8], [0.4, 0.4]]),
    ],
)
def test_a_problem_solved_by_hand(options: dict[str, Any], W: list[list[float]]) -> None:
    torch.testing.assert_close(solve(GRAMS, **options), torch.tensor(W, dtype=torch.float64))


def test_log_odds_are_those_of_naive_bayes() -> None:
    got = log_odds(COUNTS)
    for v in range(3):
        logs = [math.log((float(counts[v]) + 0.3) / (4 + 3 * 0.3)) for counts in COUNTS]
        assert got[v].tolist() == pytest.approx([log - sum(logs) / 2 for log in logs], abs=1e-12)


def test_less_smoothing_makes_rare_tokens_say_more() -> None:
    counts = [torch.tensor([5, 1, 0]), torch.tensor([5, 0, 1])]
    usual, little = log_odds(counts), log_odds(counts, 0.01)
    torch.testing.assert_close(little[1, 0] - little[1, 1], torch.tensor(1.01 / 0.01, dtype=torch.float64).log())
    assert float(little[1, 0]) > float(usual[1, 0])


@pytest.mark.parametrize("regularization", [1e-6, 0.1, 10.0])
def test_the_solution_is_that_of_the_augmented_least_squares(regularization: float) -> None:
    domains = random_domains()
    W = solve(grams(domains), regularization, balance=False)
    torch.testing.assert_close(W, least_squares(domains, regularization), rtol=1e-9, atol=1e-10)


def test_balance_weighs_every_row_by_the_size_of_its_domain() -> None:
    domains = random_domains()
    weighted = [X / math.sqrt(len(X)) for X in domains]
    Y = torch.block_diag(*[torch.full((len(X), 1), len(X) ** -0.5, dtype=torch.float64) for X in domains])
    X = torch.cat(weighted)
    expected = torch.linalg.solve(X.T @ X + 0.01 * torch.eye(6, dtype=torch.float64), X.T @ Y)
    torch.testing.assert_close(solve(grams(domains), 0.01), expected, rtol=1e-9, atol=1e-10)


def test_said_twice_changes_nothing_where_domains_are_balanced() -> None:
    first, *others = grams(random_domains())
    for times in (2, 3, 1000):
        torch.testing.assert_close(solve([times * first, *others], 0.01), solve([first, *others], 0.01))
    unbalanced = [solve([times * first, *others], 0.01, balance=False) for times in (1, 3)]
    assert not torch.allclose(*unbalanced, rtol=1e-3)


def test_a_vanishing_lambda_gives_least_squares() -> None:
    domains = random_domains()
    Y = torch.block_diag(*[torch.ones(len(X), 1, dtype=torch.float64) for X in domains])
    expected = torch.linalg.lstsq(torch.cat(domains), Y).solution
    torch.testing.assert_close(solve(grams(domains), 1e-12, balance=False), expected, rtol=1e-9, atol=1e-10)


def test_a_huge_lambda_gives_the_sums_b_divided_by_it() -> None:
    domains = random_domains()
    W = solve(grams(domains), 1e12, balance=False)
    torch.testing.assert_close(1e12 * W, torch.stack([X.sum(dim=0) for X in domains], dim=1), rtol=1e-8, atol=1e-8)


def test_columns_are_normalised_only_on_demand() -> None:
    W, normalised = (solve(grams(random_domains()), 0.01, normalize_columns=choice) for choice in (False, True))
    torch.testing.assert_close(normalised.norm(dim=0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(normalised * W.norm(dim=0), W)
    assert not torch.allclose(W, normalised)


def test_without_bias_the_column_of_ones_takes_no_part() -> None:
    domains = random_domains()
    W = solve(grams(domains), 0.1, balance=False, bias=False)
    torch.testing.assert_close(W, least_squares([X[:, :-1] for X in domains], 0.1), rtol=1e-9, atol=1e-10)


def test_discriminant_analysis_gives_the_log_odds_of_normal_domains() -> None:
    domains = random_domains()
    W = discriminant(*sums(grams(domains)), 1e-9)
    rows = [X[:, :-1] for X in domains]
    shared = sum(torch.cov(X.T, correction=0) for X in rows)
    normal = [torch.distributions.MultivariateNormal(X.mean(dim=0), shared) for X in rows]
    x = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    log_p = torch.stack([each.log_prob(x) for each in normal], dim=1)
    scores = x @ W[:-1] + W[-1]
    torch.testing.assert_close(scores.log_softmax(dim=1), log_p.log_softmax(dim=1))


def test_sums_that_cannot_be_factorised_are_refused() -> None:
    twos = torch.full((2, 2), 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="Raise `regularization`"):
        solve([twos, twos], 1e-30, balance=False)


def test_sums_of_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        solve([GRAMS[0], GRAMS[1] * torch.nan], 0.1)


def test_the_scale_of_lambda_leaves_the_ones_out() -> None:
    assert mean_diagonal(sums(GRAMS, balance=False)[0]) == 6
    assert mean_diagonal(sums(GRAMS, balance=True)[0]) == 1.5


def test_token_noise_is_added_to_the_sums_over_prompts() -> None:
    domains = [DomainStatistics.from_grams(dict.fromkeys(KINDS, A_d), "f") for A_d in GRAMS]
    # Balanced, A = 3/2 over either kind of row, b = (3/4, -3/4), and the noise is 2 A.
    W_prompts = _solve(IR3DEConfig(token_noise=2, prompt_regularization=0.5), domains)[1]
    torch.testing.assert_close(W_prompts, 0.75 / (1.5 + 3 + 0.5) * torch.tensor([[1.0, -1.0]]).double())


def test_unit_features_have_length_one_and_no_common_part() -> None:
    embeddings = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 3
    phi = FeatureMap("unit").prepare(embeddings)(embeddings)
    torch.testing.assert_close(phi.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(phi, F.normalize(embeddings - embeddings.mean(dim=0), dim=1), rtol=1e-5, atol=1e-5)


def test_random_features_approximate_the_gaussian_kernel() -> None:
    embeddings = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    unit = FeatureMap("unit").prepare(embeddings)(embeddings)
    phi = FeatureMap("rff", 20_000, 0.8).prepare(embeddings)(embeddings)
    expected = (-torch.cdist(unit, unit).square() / (2 * 0.8**2)).exp()
    torch.testing.assert_close(phi @ phi.T, expected, rtol=0, atol=0.05)


def test_frequencies_at_right_angles_come_closer_to_the_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    X = F.normalize(torch.randn(40, 24, generator=generator).double(), dim=1)
    expected = (-torch.cdist(X, X).square() / (2 * 1.2**2)).exp()

    def error(frequencies: torch.Tensor) -> float:
        phi = fourier(X, frequencies)
        torch.testing.assert_close(phi.norm(dim=1), torch.ones(40).double())
        return float((phi @ phi.T - expected).square().mean())

    at_right_angles, drawn = [], []
    for seed in range(5):
        Omega = orthogonal_frequencies(24, 60, 1.2, seed)
        assert Omega.shape == (24, 60)
        block = Omega[:, 24:48]
        assert float((block.T @ block).fill_diagonal_(0).abs().max()) < 1e-12
        at_right_angles.append(error(Omega))
        drawn.append(error(torch.randn(24, 60, generator=generator).double() / 1.2))
    assert sum(at_right_angles) < 0.8 * sum(drawn)
    assert torch.equal(orthogonal_frequencies(24, 60, 1.2, 4), Omega)


@pytest.mark.parametrize("name", ["identity", "unit", "rff"])
def test_features_of_a_part_are_a_part_of_the_features(name: str) -> None:
    embeddings = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    features = FeatureMap(name, 8)
    whole = features.prepare(embeddings)(embeddings)
    assert whole.shape == (20, features.width(6))
    torch.testing.assert_close(features.prepare(embeddings)(embeddings[5:9]), whole[5:9])


def test_entropy_at_its_bounds() -> None:
    torch.testing.assert_close(entropy(torch.zeros(4)), torch.tensor(math.log(4)))
    assert float(entropy(torch.tensor([1000.0, 0.0, -1000.0]))) == 0
