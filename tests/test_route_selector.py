"""Section 3.2: the route of a prompt, against the paper's formulas written out slowly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ir3de import IR3DEConfig, IR3DEModel
from ir3de.batch_ir3de import Prompts
from ir3de.configuration_ir3de import VARIANTS
from ir3de.route_selector_ir3de import TokenTable, most_certain, probabilities, select, vote_logits

V, WIDTH = 30, 4
CLEAR = 1e-4  # closer calls than this may fall either way in float32


def random_router(seed: int, domains: int) -> IR3DEModel:
    experts = [{"name": f"domain-{d}"} for d in range(domains)]
    model = IR3DEModel(IR3DEConfig(vocab_size=V, hidden_size=WIDTH, experts=experts)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def literal_softmax(z: Sequence[float]) -> list[float]:
    return [math.exp(value) / sum(map(math.exp, z)) for value in z]


def literal_logits(model: IR3DEModel, ids: list[int], variant: str) -> list[list[float]]:
    """E(T(x)) W, a number at a time, in float64."""
    router = model.prompt_router if variant == "prompt" else model.token_router
    E, W = model.embed_tokens.weight.tolist(), router.weight.tolist()
    b = [0.0] * len(W) if router.bias is None else router.bias.tolist()
    return [
        [sum(e * w for e, w in zip(E[v], column, strict=True)) + b_d for column, b_d in zip(W, b, strict=True)]
        for v in ids
    ]


def literal_route(model: IR3DEModel, ids: list[int], variant: str, k: int) -> int:
    """Section 3.2; rejects the example where a comparison is too close to call in float32."""
    z = literal_logits(model, ids, variant)
    domains = range(len(z[0]))
    if variant == "avg":
        mean = [sum(row[d] for row in z) / len(z) for d in domains]
        return clearest(mean)
    if variant == "prompt":
        w = {v: 1 + math.log(ids.count(v)) for v in ids}
        norm = math.sqrt(sum(w_v**2 for w_v in w.values()))
        return clearest([sum(w_v * z[ids.index(v)][d] for v, w_v in w.items()) / norm for d in domains])
    s = [literal_softmax(row) for row in z]
    entropies = [-sum(p * math.log(p) for p in row) for row in s]
    order = sorted(range(len(ids)), key=lambda t: entropies[t])
    counted = order[: k if variant == "top-k" else len(ids)]
    if len(counted) < len(ids):
        last, first = counted[-1], order[len(counted)]
        assume(ids[last] == ids[first] or entropies[first] - entropies[last] > CLEAR)
    votes = [0] * len(domains)
    for t in counted:
        votes[clearest(z[t])] += 1
    summed = [sum(s[t][d] for t in counted) for d in domains]
    first = [d for d in domains if votes[d] == max(votes)]
    clearest([summed[d] for d in first])
    return max(first, key=lambda d: (summed[d], -d))


def clearest(values: Sequence[float]) -> int:
    """The arg max, if it is clear."""
    best, *second = sorted(values, reverse=True)[:2]
    assume(not second or best - second[0] > CLEAR)
    return list(values).index(best)


def batch(prompts: list[list[int]], side: str, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    rows, masks = [], []
    for ids in prompts:
        padding, zeros, ones = [pad] * (longest - len(ids)), [0] * (longest - len(ids)), [1] * len(ids)
        rows.append(padding + ids if side == "left" else ids + padding)
        masks.append(zeros + ones if side == "left" else ones + zeros)
    return torch.tensor(rows), torch.tensor(masks)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    domains=st.integers(2, 5),
    prompts=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=12), min_size=1, max_size=5),
    variant=st.sampled_from(VARIANTS),
    k=st.integers(1, 15),
    pad=st.integers(0, V - 1),
)
def test_batched_equals_unbatched_equals_the_paper(
    seed: int, domains: int, prompts: list[list[int]], variant: str, k: int, pad: int
) -> None:
    model = random_router(seed, domains)
    expected = [literal_route(model, ids, variant, k) for ids in prompts]
    alone = torch.cat([model(torch.tensor([ids]), variant=variant, num_votes=k).logits for ids in prompts])
    assert alone.argmax(dim=1).tolist() == expected
    for side in ("left", "right"):
        ids, mask = batch(prompts, side, pad)
        output = model(ids, mask, variant=variant, num_votes=k, output_tokens=True)
        torch.testing.assert_close(output.logits, alone, rtol=1e-5, atol=1e-5)
        assert output.logits.argmax(dim=1).tolist() == expected
        assert output.entropies[mask == 0].tolist() == [math.inf] * int((mask == 0).sum())
        assert not output.counted[mask == 0].any()
        counted = [min(k, len(p)) if variant == "top-k" else len(p) for p in prompts]
        assert output.counted.sum(dim=1).tolist() == counted


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), ids=st.lists(st.integers(0, V - 1), min_size=1, max_size=12), k=st.integers(1, 12))
def test_tokens_that_count_are_those_of_lowest_entropy(seed: int, ids: list[int], k: int) -> None:
    output = random_router(seed, 3)(torch.tensor([ids]), num_votes=k, output_tokens=True)
    entropies, counted = output.entropies[0], output.counted[0]
    if not counted.all():
        assert entropies[counted].max() <= entropies[~counted].min()


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_a_distribution(variant: str) -> None:
    output = random_router(0, 4)(torch.tensor([[1, 2, 3]]), variant=variant)
    assert output.logits.dtype == torch.float64
    assert output.logits.shape == (1, 4)
    if variant in ("top-k", "all"):
        torch.testing.assert_close(output.logits.exp().sum(dim=1), torch.ones(1, dtype=torch.float64))


def votes(*token_logits: list[float]) -> list[float]:
    table, voters = TokenTable.of(torch.tensor(token_logits), "all"), torch.arange(len(token_logits))
    return vote_logits(table, Prompts(voters, torch.tensor([len(voters)]))).exp()[0].tolist()


def test_votes_outweigh_any_sum_of_probabilities() -> None:
    # Two lukewarm votes for the first domain against a certain one for the second.
    shares = votes([0.1, 0.0], [0.1, 0.0], [0.0, 50.0])
    assert shares[0] > shares[1]
    assert shares[0] == pytest.approx((2 + (2 * 0.52498 + 0.0) / 3) / 4, abs=1e-4)


def test_equal_votes_go_to_the_larger_summed_probability() -> None:
    shares = votes([1.0, 0.0], [0.0, 2.0])
    assert shares[1] > shares[0]
    shares = votes([2.0, 0.0], [0.0, 1.0])
    assert shares[0] > shares[1]


def test_equal_sums_go_to_the_smaller_index() -> None:
    shares = votes([0.0, 3.0, 1.0], [0.0, 1.0, 3.0])
    assert shares[1] == shares[2] > shares[0]
    assert max(range(3), key=shares.__getitem__) == 1


def test_of_equal_entropies_the_earlier_token_counts() -> None:
    entropies, lengths = torch.tensor([0.5, 0.2, 0.2, 1e-30, 0.0, 0.0]), torch.tensor([4, 2])
    assert most_certain(entropies, lengths, 1).tolist() == [False, False, False, True, True, False]
    assert most_certain(entropies, lengths, 2).tolist() == [False, True, False, True, True, True]
    assert most_certain(entropies[:4], lengths[:1], 2).tolist() == [False, True, False, True]


def test_a_short_prompt_has_fewer_voters_than_k() -> None:
    assert most_certain(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([2, 1]), 5).all()


def test_a_mean_is_of_its_own_prompt() -> None:
    table = TokenTable.of(torch.tensor([[1.0, 3.0], [3.0, 1.0], [90.0, -90.0]]), "avg")
    logits = select(table, Prompts.of([[0, 1], [2]]), "avg", 1)
    assert logits.tolist() == [[2.0, 2.0], [90.0, -90.0]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_contributions_of_the_tokens_add_up(variant: str) -> None:
    ids, mask = batch([[1, 2, 3, 2, 9], [4, 4]], "left", 0)
    output = random_router(0, 3)(ids, mask, variant=variant, num_votes=2, output_tokens=True)
    total = output.logits.exp() if variant in ("top-k", "all") else output.logits
    torch.testing.assert_close(output.contributions.sum(dim=1), total, rtol=1e-5, atol=1e-6)
    assert not output.contributions[~output.counted].any()


def test_calibration_changes_how_sure_but_never_the_order() -> None:
    logits = torch.tensor([[0.3, -1.2, 0.1], [2.0, 2.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(probabilities(logits), logits.softmax(dim=1))
    for temperature, spread in ((0.01, 0.0), (5.0, 0.0), (1.0, 0.5), (0.3, 0.5)):
        p = probabilities(logits, temperature, spread)
        assert p[0].argsort().tolist() == logits[0].argsort().tolist()
        torch.testing.assert_close(p.sum(dim=1), torch.ones(2, dtype=torch.float64))
        torch.testing.assert_close(p[1], torch.full((3,), 1 / 3, dtype=torch.float64))
    assert probabilities(logits, 0.1)[0, 0] > probabilities(logits, 1.0)[0, 0]
