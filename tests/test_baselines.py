"""The routers to compare with, on domains that differ by one word."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

pytest.importorskip("sklearn")

from ir3de.scripts.data.sampling import sample_per_domain
from ir3de.scripts.routers import base, baselines, encoders
from ir3de.scripts.routers.base import Options
from ir3de.scripts.routers.baselines import (
    BASELINES,
    Baseline,
    NearestNeighbours,
    fit_temperature,
    held_out,
    temper,
)
from ir3de.scripts.routers.ours import ours
from ir3de.scripts.routers.peers import PEERS

WORDS = {"cooking": ("oven", "salt"), "law": ("court", "judge"), "music": ("violin", "tempo")}
TEXTS = [f"please {verb} the {word} number {i}" for i in range(12) for verb in ("find", "name") for word in
         (word for words in WORDS.values() for word in words)]  # fmt: skip
DOMAINS = [next(domain for domain, words in WORDS.items() if text.split()[3] in words) for text in TEXTS]


class WordEncoder:
    """Stands in for a sentence encoder: one axis a known word."""

    nbytes = 100
    calls = 0

    def encode(self, texts):
        self.calls += len(texts)
        known = [word for words in WORDS.values() for word in words]
        X = np.array([[float(word in text) for word in known] + [0.1] for text in texts], dtype=np.float32)
        return X / np.linalg.norm(X, axis=1, keepdims=True)

    cached = encode


@pytest.fixture
def options(monkeypatch):
    encoder = WordEncoder()
    monkeypatch.setattr(base, "shared_encoder", lambda name: encoder)
    return Options(encoder="words")


@pytest.fixture
def source():
    """A tokenizer of these words, and embeddings in which each has an axis."""
    words = ["<unk>", *sorted({word for text in TEXTS for word in text.split()} | {"bring", "which", "hot"})]
    model = models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"), torch.eye(len(words))


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in ("random", "modem")])
def test_baseline_learns_domains_and_gives_probabilities(name, options):
    router = BASELINES[name](options).fit(TEXTS, DOMAINS)
    p = router.scores(["bring the violin", "which judge", "hot oven"])
    assert router.domains == ["cooking", "law", "music"]
    assert p.argmax(axis=1).tolist() == [2, 1, 0]
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert router.nbytes > 0


def test_random_router_spreads_evenly(options):
    p = BASELINES["random"](options).fit(TEXTS, DOMAINS).scores(["x"] * 3000)
    share = np.bincount(p.argmax(axis=1), minlength=3) / 3000
    np.testing.assert_allclose(share, 1 / 3, atol=0.05)
    np.testing.assert_allclose(p, 1 / 3, atol=1e-5)


def test_choice_and_calibration_see_only_held_out_prompts_and_the_fit_sees_all(options):
    fits = []

    class Spy:
        def __init__(self, value):
            self.value = value

        def fit(self, X, labels):
            fits.append((self.value, len(X)))
            return self

        def predict_proba(self, X):
            right = np.array([baselines.np.searchsorted(sorted(WORDS), DOMAINS[TEXTS.index(text)]) for text in X])
            return np.eye(3)[right if self.value == "good" else (right + 1) % 3] * 0.8 + 0.1

    class Grid(Baseline):
        grid = ("bad", "good", "bad again")

        def estimator(self, value):
            return Spy(value)

    router = Grid(options).fit(TEXTS, DOMAINS)
    held = int(held_out(np.searchsorted(sorted(WORDS), DOMAINS)).sum())
    part = len(TEXTS) - held
    assert fits == [("bad", part), ("good", part), ("bad again", part), ("good", len(TEXTS))]
    assert router.choice == "good"
    assert router.temperature < 1  # always right at 0.8, so it may be surer


def test_one_row_a_domain_leaves_nothing_to_choose_on(options):
    router = BASELINES["tfidf"](options).fit(["a violin", "a judge"], ["music", "law"])
    assert router.temperature == 1
    assert router.scores(["violin"]).argmax() == 1


def test_encoder_reads_at_most_max_train_prompts_a_domain(options):
    router = BASELINES["knn-1"](replace(options, max_train=5)).fit(TEXTS, DOMAINS)
    assert router.encoded == len(router.model.X) == 15


def test_held_out_is_every_fifth_of_each_domain():
    labels = np.array([0, 1] * 10 + [2])
    held = held_out(labels)
    assert np.flatnonzero(held[labels == 0]).tolist() == [1, 6]
    assert not held[-1]  # the only row of its domain is needed to fit


def test_smaller_samples_are_part_of_larger_ones():
    small, large = (set(sample_per_domain(DOMAINS, n, seed=1)) for n in (3, 7))
    assert small < large
    assert len(small) == 9
    assert sample_per_domain(DOMAINS, None, 0) == list(range(len(DOMAINS)))
    assert set(sample_per_domain(DOMAINS, 3, seed=2)) != small


def test_neighbours_vote_ties_go_to_the_nearer_and_distance_lowers_confidence():
    X = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]])
    model = NearestNeighbours(2).fit(X, np.array([0, 1, 0, 1]))
    near, far = model.predict_proba(np.array([[0.99, 0.141], [-1, 0]]))
    assert near.argmax() == 0  # one vote each
    assert near[0] - near[1] < 0.01
    np.testing.assert_allclose(far, 0.5)
    sure, less_sure = (
        NearestNeighbours(1).fit(X, np.array([0, 1, 0, 1])).predict_proba(np.array([[1, 0], [0.9, -0.436]]))
    )
    assert sure.max() > less_sure.max()


def test_k_larger_than_the_training_set_takes_them_all():
    p = NearestNeighbours(10).fit(np.eye(3), np.array([0, 0, 1])).predict_proba(np.eye(3)[2:])
    assert p.shape == (1, 2)


def test_temperature_finds_the_one_that_the_labels_were_drawn_with():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=20_000)
    drawn = (temper(p, 2.0).cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1).clip(max=3)
    assert fit_temperature(p, drawn) == pytest.approx(2.0, rel=0.1)
    assert fit_temperature(p[:0], drawn[:0]) == 1


def test_vectors_are_encoded_once_and_found_again(monkeypatch, tmp_path):
    def folder(library, namespace, subfolder):
        path = tmp_path / namespace / subfolder
        path.mkdir(parents=True, exist_ok=True)
        return path

    monkeypatch.setattr(encoders, "cached_assets_path", folder)

    class Model:
        max_seq_length = 8
        encoded: list[str] = []  # noqa: RUF012

        def encode(self, texts, **kwargs):
            self.encoded += texts
            return np.array([[len(text), 1.0] for text in texts])

    def make():
        encoder = encoders.Encoder.__new__(encoders.Encoder)
        encoder.model, encoder.name, encoder._folder, encoder._vectors = Model(), "m", None, {}
        return encoder

    first = make().cached(["a", "bbb", "a"])
    assert first[:, 0].tolist() == [1, 3, 1]
    Model.encoded.clear()
    again = make().cached(["bbb", "cc"])
    assert again[:, 0].tolist() == [3, 2]
    assert [text for text in Model.encoded if text != encoders._PROBE] == ["cc"]


def test_unknown_encoder_says_what_to_do(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(OSError, match="--encoder"):
        encoders.Encoder(str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    words = sorted({word for text in TEXTS for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "initializer_range": 0.3,
    }
    BertModel(BertConfig(vocab_size=len(words) + 5, **sizes)).save_pretrained(folder)
    return str(folder)


def test_fine_tuned_encoder_learns_and_gives_probabilities(tiny_bert):
    from ir3de.scripts.routers.fine_tuning import SequenceClassifier

    texts = [text.split()[3] for text in TEXTS]
    labels = np.searchsorted(sorted(WORDS), DOMAINS)
    model = SequenceClassifier(tiny_bert, epochs=24, learning_rate=5e-3).fit(texts, labels)
    p = model.predict_proba(texts)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (p.argmax(axis=1) == labels).mean() > 0.95
    assert model.nbytes > 0


def test_modem_takes_the_encoder_at_hand_where_deberta_cannot_be_had(monkeypatch, tiny_bert, capsys):
    monkeypatch.setattr(baselines, "MODEM_ENCODER", tiny_bert + "/nothing")
    for gpu in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        assert BASELINES["modem"](Options(encoder=tiny_bert)).estimator(None).name == tiny_bert
        assert (tiny_bert in capsys.readouterr().out) == gpu, "on a CPU nobody looks for DeBERTa"
    with pytest.raises(OSError, match="elsewhere"):
        BASELINES["modem"](Options(encoder=tiny_bert, modem_encoder="./elsewhere")).estimator(None)


@pytest.mark.parametrize("name", PEERS)
def test_another_projects_router_learns_or_says_what_it_needs(name, options):
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        with pytest.raises(ImportError, match=f"{name} needs its package"):
            PEERS[name](options)
    elif name == "adaptive-classifier":
        pytest.skip("it loads an encoder of its own, not this stand-in")
    else:
        router = PEERS[name](options).fit(TEXTS, DOMAINS)
        p = router.scores(TEXTS, cached=True)
        assert [router.domains[i] for i in p.argmax(axis=1)] == DOMAINS
        np.testing.assert_allclose(p.sum(axis=1), 1)


def test_our_router_asks_the_encoder_where_it_is_unsure(options, source):
    encoder = options.sentence_encoder
    router = ours(*source)["ir3de-chain"](options)
    router.options = replace(router.options, num_features=64)
    p = router.fit(TEXTS, DOMAINS).scores(["bring the violin", "which judge", "hot oven"])
    assert p.argmax(axis=1).tolist() == [2, 1, 0]
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert "second: lambda" in router.choice
    assert router.encoded == len(TEXTS)
    assert router.nbytes > encoder.nbytes
    before = encoder.calls
    router.pipeline.model.config.calibration = {"temperature": 1e-6, "spread": 0.0}  # sure of everything
    router.scores(["bring the violin"])
    assert encoder.calls == before
