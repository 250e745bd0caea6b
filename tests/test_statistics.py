"""Section 3.1, first half: the sums of a domain, and the files that they are kept in."""

import json
import math
import random
import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ir3de import DomainStatistics
from ir3de.batch_ir3de import Prompts, batches, prompt_weights
from ir3de.modeling_ir3de import feature_space
from ir3de.scripts.fitting.private import PrivateCollector
from ir3de.statistics_ir3de import (
    FORMAT,
    KINDS,
    StatisticsCollector,
    count_tokens,
    fingerprint,
    gram_from_counts,
    total,
)
from ir3de.token_router_ir3de import FeatureMap

from . import tiny

PROMPTS = [tiny.token_ids(text) for domain in tiny.DOMAINS for text in tiny.sentences(domain, 30)]
V = len(tiny.TOKENS)
SPACE = "0123456789abcdef"


def flat(prompts: list[list[int]]) -> torch.Tensor:
    return torch.tensor(list(chain(*prompts)), dtype=torch.int64)


def contribution(seed: int, space: str = SPACE, size: int = 4) -> DomainStatistics:
    X = torch.randn(7, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    X[:, -1] = 1
    return DomainStatistics.from_grams({"tokens": X.T @ X, "prompts": X[:2].T @ X[:2]}, space)


def same(left: DomainStatistics, right: DomainStatistics) -> bool:
    grams = all(torch.equal(left.gram(kind), right.gram(kind)) for kind in KINDS)
    return left.contributions.keys() == right.contributions.keys() and grams


def test_gram_of_counts_is_the_batched_sum_over_tokens() -> None:
    E = tiny.embeddings()
    A = torch.zeros(tiny.HIDDEN + 1, tiny.HIDDEN + 1, dtype=torch.float64)
    for prompt in PROMPTS:
        X = torch.cat([E[prompt].double(), torch.ones(len(prompt), 1, dtype=torch.float64)], dim=1)
        A += X.T @ X
    got = gram_from_counts(count_tokens(flat(PROMPTS), V), E)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, A, rtol=1e-12, atol=1e-12)


def test_counts_of_parts_add_up_in_any_order() -> None:
    whole = count_tokens(flat(PROMPTS), V)
    parts = [count_tokens(flat(PROMPTS[i::4]), V) for i in range(4)]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        total = sum((parts[i] for i in order), torch.zeros(V, dtype=torch.int64))
        assert torch.equal(total, whole)
        assert torch.equal(gram_from_counts(total, tiny.embeddings()), gram_from_counts(whole, tiny.embeddings()))


def test_nothing_is_counted_where_there_is_nothing() -> None:
    assert torch.equal(count_tokens(flat([]), V), torch.zeros(V, dtype=torch.int64))


@pytest.mark.parametrize("bad", [V, -1])
def test_token_ids_without_an_embedding_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=f"token id {bad}.*rows 0 to {V - 1}"):
        count_tokens(flat([[3], [4, bad]]), V)


def literal_row(prompt: list[int], E: torch.Tensor) -> torch.Tensor:
    """A prompt's row: its distinct tokens, weighted by 1 + ln(count), over the norm of the weights; and a one."""
    w = {v: 1 + math.log(prompt.count(v)) for v in set(prompt)}
    x = sum(w_v * E[v].double() for v, w_v in w.items()) / math.sqrt(sum(w_v**2 for w_v in w.values()))
    return torch.cat([x, torch.ones(1, dtype=torch.float64)])


def test_the_collector_sums_over_tokens_and_over_prompts() -> None:
    E, prompts = tiny.embeddings(), [*PROMPTS, [5, 5, 5, 6], [7]]
    collector = StatisticsCollector(E, SPACE)
    for part in (prompts[:20], prompts[20:]):
        collector.add(Prompts.of(part))
    statistics = collector.statistics
    assert torch.equal(statistics.gram("tokens"), gram_from_counts(count_tokens(flat(prompts), V), E))
    X = torch.stack([literal_row(prompt, E) for prompt in prompts])
    torch.testing.assert_close(statistics.gram("prompts"), X.T @ X, rtol=1e-5, atol=1e-5)
    assert (statistics.rows("tokens"), statistics.rows("prompts")) == (len(flat(prompts)), len(prompts))


def test_a_document_counts_once_for_a_token_however_often_it_has_it() -> None:
    collector = StatisticsCollector(tiny.embeddings(), SPACE)
    for part in ([[3, 3, 4], [4]], [[4, 5, 3, 5]]):
        collector.add(Prompts.of(part))
    documents = collector.statistics.documents
    assert documents is not None
    assert {v: int(documents[v]) for v in documents.nonzero().squeeze(1).tolist()} == {3: 2, 4: 3, 5: 1}


def test_documents_are_told_where_every_contribution_tells_them() -> None:
    told, other = (tiny.statistics(tiny.sentences("law", number)) for number in (8, 9))
    silent = DomainStatistics.from_grams({kind: told.gram(kind) for kind in KINDS}, told.fingerprint)
    assert torch.equal((told | other).documents, told.documents + other.documents)
    assert silent.documents is None
    assert (told | silent).documents is None
    assert told.contributions.keys() != silent.contributions.keys(), "what is told is part of the name"


@pytest.mark.parametrize("kind", [StatisticsCollector, PrivateCollector])
def test_a_collector_of_another_domain_begins_empty_and_shares_the_features(kind: type[StatisticsCollector]) -> None:
    E = tiny.embeddings() / 10
    first = kind(E, SPACE)
    first.add(Prompts.of(PROMPTS[:10]))
    before = first.statistics
    other, alone = first.of_another(), kind(E, SPACE)
    assert type(other) is kind
    assert other.features is first.features
    for each in (other, alone):
        each.add(Prompts.of(PROMPTS[10:]))
    assert same(other.statistics, alone.statistics)
    assert same(first.statistics, before)


def test_a_refused_prompt_leaves_the_collector_as_it_was() -> None:
    collector = StatisticsCollector(tiny.embeddings(), SPACE)
    collector.add(Prompts.of([[3, 4]]))
    before = collector.statistics
    with pytest.raises(ValueError, match="token id"):
        collector.add(Prompts.of([[5], [V]]))
    assert same(collector.statistics, before)


def test_weights_of_a_prompts_tokens_are_those_it_has_alone() -> None:
    twice, once = 1 + math.log(2), 1.0
    norm = math.hypot(twice, once)
    expected = [twice / 2 / norm, once / norm, twice / 2 / norm]
    got = prompt_weights(Prompts.of([[5, 6, 5], [6], [5, 6, 5]]))
    torch.testing.assert_close(got, torch.tensor([*expected, 1.0, *expected]))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=300))
def test_weights_of_a_single_prompt_are_those_it_has_among_others(ids: list[int]) -> None:
    alone = prompt_weights(Prompts.of([ids]))
    assert torch.equal(alone, prompt_weights(Prompts.of([ids, [7]]))[: len(ids)])


def test_batches_cover_every_prompt_once_in_order() -> None:
    lengths = torch.tensor([3, 70_000, 1, 2, *[1] * 5000, 70_000, 3, 300_000, 1])
    ids = torch.arange(len(lengths)).repeat_interleave(lengths)
    parts = list(batches(Prompts(ids, lengths)))
    assert torch.equal(torch.cat([part for part, _ in parts]), ids)
    assert torch.equal(torch.cat([numbers for _, numbers in parts]), lengths)
    for part, numbers in parts:
        assert len(part) == int(numbers.sum())
        assert len(numbers) == 1 or (len(part) <= 1 << 16 and len(numbers) <= 1 << 12)


def test_unions_do_not_care_for_order_grouping_or_repetition() -> None:
    a, b, c = map(contribution, range(3))
    assert same(a | b, b | a)
    assert same((a | b) | c, c | (b | a))
    assert same((a | b) | a, a | b)
    assert not same(a, a | b)
    for kind in KINDS:
        expected = a.gram(kind) + b.gram(kind) + c.gram(kind)
        torch.testing.assert_close((a | b | c).gram(kind), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("size", [1, 2, 7, 600])  # the last has several blocks
def test_a_packed_triangle_is_its_matrix_again(size: int) -> None:
    X = torch.randn(5, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    A = (X.T @ X + X.T.flip(1) @ X.flip(0)) / 2
    A = torch.triu(A) + torch.triu(A, 1).T
    domain = DomainStatistics.from_grams(dict.fromkeys(KINDS, A), "f")
    assert torch.equal(domain.gram("tokens"), A)
    assert torch.equal(domain.diagonal("prompts"), A.diagonal())


@pytest.mark.parametrize("balance", [True, False])
def test_the_total_of_packed_sums_is_that_of_the_matrices(balance: bool) -> None:
    domains = [contribution(0), contribution(1) | contribution(2), contribution(3)]
    for kind in KINDS:
        grams = [domain.gram(kind) for domain in domains]
        weighted = [A_d / A_d[-1, -1] if balance else A_d for A_d in grams]
        A, B = total(domains, kind, balance)
        assert torch.equal(A, weighted[0] + weighted[1] + weighted[2])
        assert torch.equal(B, torch.stack([A_d[:, -1] for A_d in weighted], dim=1))
        assert all(torch.equal(domain.gram(kind), A_d) for domain, A_d in zip(domains, grams, strict=True))


def test_a_contribution_that_is_left_out_was_never_there() -> None:
    parts = [contribution(seed) for seed in range(6)]
    expected = parts[0] | parts[1] | parts[2]
    random.Random(0).shuffle(parts)
    union = parts[0]
    for part in parts[1:]:
        union |= part
    for gone in union.contributions.keys() - expected.contributions.keys():
        del union.contributions[gone]
    assert same(union, expected)


@pytest.mark.parametrize("other", [contribution(1, space="f" * 16), contribution(1, size=5)])
def test_sums_of_different_feature_spaces_are_never_added(other: DomainStatistics) -> None:
    with pytest.raises(ValueError, match="to be added are of feature space"):
        contribution(0) | other


def test_a_round_trip_is_identical_byte_for_byte(tmp_path: Path) -> None:
    union = contribution(0) | contribution(1)
    union.save(tmp_path / "a.safetensors")
    loaded = DomainStatistics.load(tmp_path / "a.safetensors")
    assert same(loaded, union)
    assert (loaded.fingerprint, loaded.size, loaded.rows("tokens"), loaded.rows("prompts")) == (SPACE, 4, 14, 4)
    (contribution(1) | contribution(0)).save(tmp_path / "b.safetensors")
    loaded.save(tmp_path / "c.safetensors")
    first, *others = [(tmp_path / f"{name}.safetensors").read_bytes() for name in "abc"]
    assert others == [first, first]


def test_statistics_can_be_saved_over_the_file_they_came_from(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    contribution(0).save(path)
    (DomainStatistics.load(path) | contribution(1)).save(path)
    assert same(DomainStatistics.load(path), contribution(0) | contribution(1))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"law\.safetensors is missing"):
        DomainStatistics.load(tmp_path / "law.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "law.safetensors"
    contribution(0).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=re.escape(str(path)) + " is truncated"):
        DomainStatistics.load(path)


FEATURE_MAPS = [("unit",), ("rff", 8), ("rff", 10), ("rff", 8, 2.0), ("rff", 8, 2.0, 1)]
GOOD = {"format": FORMAT, "fingerprint": SPACE, "size": 4}
BAD_HEADERS = {
    "of another library": None,
    "of a later format": {**GOOD, "format": "ir3de-statistics-99"},
    "no object": [GOOD],
    "without a size": {"format": FORMAT, "fingerprint": SPACE},
    "of another size": {**GOOD, "size": 5},
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_foreign_file_is_refused(tmp_path: Path, header: object) -> None:
    path = tmp_path / "law.safetensors"
    contribution(0).save(path)
    save_file(load_file(path), path, metadata={"ir3de": json.dumps(header)} if header else {"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(str(path))):
        DomainStatistics.load(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed.index_fill(0, torch.tensor([2]), torch.nan),
        lambda packed: packed.index_fill(0, torch.tensor([2]), torch.inf),
        lambda packed: packed * 0,
        lambda packed: packed[:-1].clone(),
        lambda packed: packed.float(),
    ],
    ids=["NaN", "infinity", "no rows", "wrong shape", "wrong dtype"],
)
def test_sums_that_cannot_be_are_refused(tmp_path: Path, spoil) -> None:
    path = tmp_path / "law.safetensors"
    contribution(0).save(path)
    tensors = {key: spoil(packed) for key, packed in load_file(path).items()}
    save_file(tensors, path, metadata={"ir3de": json.dumps(GOOD)})
    with pytest.raises(ValueError, match=re.escape(str(path))):
        DomainStatistics.load(path)


def test_a_file_without_contributions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "law.safetensors"
    save_file({}, path, metadata={"ir3de": json.dumps(GOOD)})
    with pytest.raises(ValueError, match=re.escape(str(path))):
        DomainStatistics.load(path)


def test_the_fingerprint_tells_tokenizers_embeddings_and_feature_maps_apart() -> None:
    vocabulary, E = {"a": 0, "b": 1}, torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    nearly = E.clone()
    nearly[1, 1] += 1e-6
    names = [
        fingerprint(vocabulary, [0], E, "identity"),
        fingerprint({"a": 1, "b": 0}, [0], E, "identity"),
        fingerprint(vocabulary, [1], E, "identity"),
        fingerprint(vocabulary, [0], nearly, "identity"),
        fingerprint(vocabulary, [0], E.reshape(4, 1), "identity"),
        *(fingerprint(vocabulary, [0], E, FeatureMap(*args).description) for args in FEATURE_MAPS),
    ]
    assert len(set(names)) == len(names)
    assert fingerprint({"b": 1, "a": 0}, [0], E.clone(), "identity") == names[0]


def test_a_tokenizer_that_does_not_fit_the_embeddings_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{V} tokens and the embeddings {V - 1} rows"):
        feature_space(tiny.tokenizer(), tiny.embeddings()[:-1], FeatureMap())
