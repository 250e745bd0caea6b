"""The second opinion: closed form, exact edits, files of strangers, and that only unsure prompts pay for it."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ir3de import DomainStatistics, IR3DEModel, IR3DERoutingPipeline, SecondOpinion
from ir3de.atomic_save_ir3de import SECOND_FOLDER
from ir3de.familiarity_ir3de import LEVELS, PARTS, FamiliarityScale
from ir3de.route_selector_ir3de import probabilities
from ir3de.scripts.fitting.second import familiarity_scale
from ir3de.second_opinion_ir3de import combined
from ir3de.token_router_ir3de import orthogonal_frequencies

from . import tiny

NAMES = list(tiny.DOMAINS)
SURE, UNSURE = "court judge jury trial", ["does the find python", "contract root of that", "tell me why"]
CALIBRATION = {"temperature": 0.2, "spread": 0.5}


class WordEncoder:
    """Stands in for a sentence encoder: an axis a domain, one for other words, and some by letters."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> Any:
        self.texts += texts
        rows = [
            [sum(word in words for word in text.split()) for words in tiny.DOMAINS.values()]
            + [0.5, self.scale * text.count("e"), text.count("r")]
            for text in texts
        ]
        X = np.array(rows, dtype=np.float32)
        return X / np.linalg.norm(X, axis=1, keepdims=True)


def texts_of(name: str) -> list[str]:
    return tiny.sentences(name, 15, seed=1)


def second(names: list[str] = NAMES, encode: Any = None, **options: Any) -> SecondOpinion:
    options = {"num_features": 0, "calibration": CALIBRATION, **options}
    made = SecondOpinion("words", encode=encode or WordEncoder(), **options)
    for name in names:
        made.add_expert(name, texts_of(name))
    return made


@pytest.fixture
def unsure_router() -> IR3DEModel:
    """A router whose scores lie on either side of 0.9."""
    return tiny.router(variant="prompt", calibration={"temperature": 0.15, "spread": 0.0})


# The closed form and its edits.


def literal_rows(texts: list[str], num_features: int) -> Any:
    X = WordEncoder()(texts).astype(np.float64)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    if num_features:
        angles = X @ orthogonal_frequencies(6, num_features // 2, math.sqrt(2)).numpy()
        X = np.hstack([np.cos(angles), np.sin(angles)]) / math.sqrt(num_features / 2)
    return np.hstack([X, np.ones((len(X), 1))])


@pytest.mark.parametrize("num_features", [0, 16])
def test_w_is_the_ridge_solution_on_the_rows_and_a_column_of_ones(num_features: int) -> None:
    opinion = second(regularization=0.03, num_features=num_features)
    rows = [literal_rows(texts_of(name), num_features) for name in NAMES]
    A = sum(X.T @ X / len(X) for X in rows)
    columns = [X.sum(axis=0) / len(X) for X in rows]
    scale = np.diagonal(A)[:-1].mean()
    W = np.linalg.solve(A + 0.03 * scale * np.eye(len(A)), np.stack(columns, axis=1))
    vectors = opinion.encode([SURE, *UNSURE])
    expected = literal_rows([SURE, *UNSURE], num_features) @ W
    np.testing.assert_allclose(opinion.logits(vectors, NAMES).numpy(), expected, atol=1e-12)
    p = opinion.probabilities([SURE, *UNSURE], NAMES)
    torch.testing.assert_close(p, probabilities(torch.from_numpy(expected), **CALIBRATION), atol=1e-12, rtol=0)
    assert NAMES[int(p[0].argmax())] == "law"
    assert p.dtype == torch.float64


def test_added_and_removed_is_never_added_bit_for_bit_and_order_does_not_matter() -> None:
    never, edited, other = second(["code", "law"]), second(), second(["math", "law", "code"])
    before = edited.probabilities(UNSURE, NAMES)
    assert torch.equal(before, other.probabilities(UNSURE, NAMES))
    edited.remove_expert("math")
    assert torch.equal(never.probabilities(UNSURE, ["code", "law"]), edited.probabilities(UNSURE, ["code", "law"]))
    edited.add_expert("math", statistics=second(["math"]).statistics["math"])
    assert torch.equal(before, edited.probabilities(UNSURE, NAMES))


def test_columns_follow_the_names_and_only_these_compete() -> None:
    opinion = second()
    p, turned = opinion.probabilities(UNSURE, NAMES), opinion.probabilities(UNSURE, NAMES[::-1])
    torch.testing.assert_close(p.flip(1), turned, atol=1e-14, rtol=0)  # sums in another order
    assert torch.allclose(opinion.probabilities(UNSURE, ["law", "math"]).sum(dim=1), torch.ones(3).double())
    assert opinion.probabilities([], NAMES).shape == (0, 3)


def test_closeness_is_the_leverage_and_its_scale_that_of_each_prompt_left_out() -> None:
    texts = {name: texts_of(name) for name in NAMES}
    X = literal_rows([text for name in NAMES for text in texts[name]], 16)
    labels = torch.arange(3).repeat_interleave(15)
    opinion = second(regularization=0.03, num_features=16)
    A = X.T @ X / 15
    lam = 0.03 * np.diagonal(A)[:-1].mean() * np.eye(len(A))
    x = literal_rows([SURE], 16)[0]
    close = opinion.closeness(opinion.encode([SURE]))
    assert float(close[0]) == pytest.approx(-math.log(x @ np.linalg.solve(A + lam, x)))
    without = [-math.log(row @ np.linalg.solve(A - np.outer(row, row) / 15 + lam, row)) for row in X]
    found = familiarity_scale(torch.from_numpy(X), labels, 0.03)
    np.testing.assert_allclose(found, np.quantile(without, np.linspace(0, 1, LEVELS)), atol=1e-9)


def test_what_it_is_asked_it_tells_the_familiarity_of(unsure_router: IR3DEModel, tmp_path: Path) -> None:
    unsure_router.config.familiarity = FamiliarityScale.measured(
        np.random.default_rng(0).normal(size=(200, PARTS))
    ).as_config()
    unsure_router.fit()
    opinion = second(familiarity=np.linspace(-3, 3, LEVELS).tolist())
    records = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=opinion)([SURE, *UNSURE], generate=False)
    alone = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=False)([SURE, *UNSURE], generate=False)
    told = opinion.judge(UNSURE, NAMES)[1]
    assert told is not None
    assert ["second_opinion" in record for record in records] == [False, True, True, True]
    assert records[0]["familiarity"] == alone[0]["familiarity"]
    assert [record["familiarity"] for record in records[1:]] == told
    opinion.save_pretrained(tmp_path)
    again = SecondOpinion.from_pretrained(tmp_path, encode=WordEncoder())
    assert again.judge(UNSURE, NAMES)[1] == told
    config = json.loads((tmp_path / "config.json").read_text())
    assert len(config.pop("familiarity")) == LEVELS
    (tmp_path / "config.json").write_text(json.dumps(config))  # of an earlier version
    assert SecondOpinion.from_pretrained(tmp_path, encode=WordEncoder()).judge(UNSURE, NAMES)[1] is None
    with pytest.raises(ValueError, match="must be 101 ascending numbers"):
        second(familiarity=[1.0, 0.0])


def test_statistics_are_collected_without_the_others_text_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = second().collect(texts_of("law"))
    monkeypatch.setattr("ir3de.second_opinion_ir3de._TEXTS", 4)
    encoder = WordEncoder()
    assert second(encode=encoder).collect(iter(texts_of("law"))).contributions.keys() == whole.contributions.keys()
    assert whole.rows("prompts") == whole.rows("tokens") == 15


# Refusals, which leave all as it was.

SCALED = second(encode=WordEncoder(scale=3)).statistics["math"]
MAPPED = second(["math"], num_features=6).statistics["math"]
FORGED = DomainStatistics.from_grams(
    dict.fromkeys(("tokens", "prompts"), torch.eye(7).double()), second().space.fingerprint
)
REFUSED: dict[str, tuple[Callable[[SecondOpinion], Any], str]] = {
    "another encoder": (lambda o: o.add_expert("math", statistics=SCALED), "of feature space"),
    "of the router": (lambda o: o.add_expert("math", statistics=tiny.statistics(["a sum"])), "of feature space"),
    "longer than unit": (lambda o: o.add_expert("math", statistics=FORGED), "at most"),
    "taken": (lambda o: o.add_expert("Law", ["court"]), "already"),
    "twice": (lambda o: o.add_expert("math", statistics=o.statistics["law"]), "count twice"),
    "invisible": (lambda o: o.add_expert("law\u200b", ["court"]), "cannot name an expert"),
    "no text": (lambda o: o.add_expert("math", []), "no texts"),
    "neither": (lambda o: o.add_expert("math"), "either `texts`"),
    "not there": (lambda o: o.remove_expert("math"), "no expert 'math'"),
    "unknown": (lambda o: o.probabilities(UNSURE, NAMES), r"does not know \['math'\].*add_expert"),
    "lambda": (lambda o: SecondOpinion("words", regularization=0), "above 0"),
    "temperature": (lambda o: SecondOpinion("words", calibration={"temperature": float("nan")}), "temperature"),
    "calibration": (lambda o: SecondOpinion("words", calibration={"warmth": 1}), "warmth"),
    "features": (lambda o: SecondOpinion("words", num_features=7), "an even number"),
    "another map": (lambda o: o.add_expert("math", statistics=MAPPED), "of feature space"),
    "no vectors": (lambda o: second(encode=lambda texts: np.full((len(texts), 3), np.nan)), "finite"),
    "too few": (lambda o: second(encode=lambda texts: np.ones((2, 3))), "shape"),
}


@pytest.mark.parametrize(("act", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_leave_all_as_it_was(act: Callable[[SecondOpinion], Any], message: str) -> None:
    opinion = second(["code", "law"])
    before = opinion.probabilities(UNSURE, ["code", "law"])
    with pytest.raises(ValueError, match=message):
        act(opinion)
    assert list(opinion.statistics) == ["code", "law"]
    assert torch.equal(before, opinion.probabilities(UNSURE, ["code", "law"]))


def test_a_missing_package_and_a_missing_encoder_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"encoder .*nothing-here.* cannot be loaded"):
        SecondOpinion(str(tmp_path / "nothing-here")).add_expert("law", ["court"])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r'sentence-transformers: `pip install "ir3de\[second\]"`'):
        SecondOpinion("words").add_expert("law", ["court"])


# Files.


def test_a_saved_one_loads_as_it_was_without_its_encoder(tmp_path: Path) -> None:
    opinion = second(encoder_revision="v1", regularization=0.3)
    opinion.save_pretrained(tmp_path)
    loaded = SecondOpinion.from_pretrained(tmp_path, encode=WordEncoder())
    assert torch.equal(opinion.probabilities(UNSURE, NAMES), loaded.probabilities(UNSURE, NAMES))
    assert (loaded.encoder, loaded.encoder_revision, loaded.regularization) == ("words", "v1", 0.3)
    loaded.remove_expert("law")
    loaded.save_pretrained(tmp_path)
    assert sorted(path.stem for path in (tmp_path / "statistics").iterdir()) == ["code", "math"]
    assert sorted(SecondOpinion.from_pretrained(tmp_path).statistics) == ["code", "math"]
    assert SecondOpinion.from_pretrained(tmp_path, encoder="here").encoder == "here"


def test_vectors_of_other_precision_pass_and_another_encoder_does_not(tmp_path: Path) -> None:
    second().save_pretrained(tmp_path)
    rounded = SecondOpinion.from_pretrained(tmp_path, encode=lambda texts: WordEncoder()(texts).astype(np.float16))
    assert rounded.collect(["court"]).fingerprint == second().space.fingerprint
    for other in (WordEncoder(scale=3), lambda texts: WordEncoder()(texts)[:, :4]):
        with pytest.raises(ValueError, match="not the one that this second opinion was fitted on"):
            SecondOpinion.from_pretrained(tmp_path, encode=other).probabilities(UNSURE, NAMES)


def broken_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def field(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "json": (broken_json, "damaged"),
    "a router's": (lambda folder: tiny.router().save_pretrained(folder), "a router has its own in `second`"),
    "experts": (field(experts=["law"]), "`experts`"),
    "invisible": (field(experts=[{"name": "law\u200b"}]), "cannot name an expert"),
    "encoder": (field(encoder=3), "`encoder`"),
    "probe": (field(probe=[1, None]), "`probe`"),
    "lambda": (field(regularization=-1), "regularization"),
    "features": (field(num_features=-2), "`num_features`"),
    "other features": (field(num_features=6), "of feature space"),
    "another probe": (field(probe=[0.1] * 6), "of feature space"),
    "truncated": (lambda folder: (folder / "statistics/law.safetensors").write_bytes(b"\x08"), "truncated"),
    "of the router": (
        lambda folder: tiny.statistics(["court"]).save(folder / "statistics/law.safetensors"),
        "of feature space",
    ),
    "missing": (lambda folder: (folder / "statistics/law.safetensors").unlink(), "missing"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    second().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        SecondOpinion.from_pretrained(tmp_path)


# In the pipeline.


def scores(record: dict[str, Any]) -> torch.Tensor:
    of = {entry["expert"]: entry["score"] for entry in record["ranking"]}
    return torch.tensor([of[name] for name in NAMES], dtype=torch.float64)


def test_only_unsure_prompts_pay_and_their_scores_are_the_product(unsure_router: IR3DEModel) -> None:
    encoder = WordEncoder()
    opinion = second(encode=encoder)
    alone = IR3DERoutingPipeline(unsure_router, device="cpu")
    both = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=opinion)
    prompts = [SURE, *UNSURE, SURE]
    first, encoder.texts = alone(prompts, generate=False), []
    assert [record["score"] >= 0.9 for record in first] == [True, False, False, False, True]
    records = both(prompts, generate=False)
    assert encoder.texts == UNSURE
    assert [record.get("second_opinion") for record in records] == [None, True, True, True, None]
    assert records[0] == first[0]
    q = opinion.probabilities(UNSURE, NAMES)
    for record, before, other in zip(records[1:4], first[1:4], q, strict=True):
        product = scores(before) * other
        torch.testing.assert_close(scores(record), product / product.sum(), atol=1e-12, rtol=0)
        assert record["expert"] == NAMES[int(product.argmax())]
    assert list(both(iter(prompts), generate=False)) == records
    for prompt, record in zip(prompts, records, strict=True):
        torch.testing.assert_close(scores(both(prompt, generate=False)), scores(record), atol=1e-12, rtol=0)


def test_a_call_says_below_which_score(unsure_router: IR3DEModel) -> None:
    encoder = WordEncoder()
    both = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=second(encode=encoder))
    encoder.texts = []
    assert "second_opinion" not in both(UNSURE[0], generate=False, second_below=0)
    assert encoder.texts == []
    assert both(SURE, generate=False, second_below=1)["second_opinion"]
    never = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=second(), second_below=0)
    assert "second_opinion" not in never(UNSURE[0], generate=False)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="`second_below` is a probability"):
            both(SURE, generate=False, second_below=wrong)


def test_without_one_nothing_changes_and_asking_for_it_says_so(unsure_router: IR3DEModel) -> None:
    pipe = IR3DERoutingPipeline(unsure_router, device="cpu")
    assert "second_opinion" not in pipe(UNSURE[0], generate=False)
    assert pipe(UNSURE, generate=False, second_below=0) == pipe(UNSURE, generate=False)
    with pytest.raises(ValueError, match="needs a second opinion"):
        pipe(UNSURE, generate=False, second_below=0.5)
    with pytest.raises(ValueError, match="has no second opinion"):
        IR3DERoutingPipeline(unsure_router, second_opinion=True)


def test_among_a_subset_it_is_asked_where_these_are_close(unsure_router: IR3DEModel) -> None:
    opinion = second()
    both = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=opinion)
    assert "second_opinion" not in both(SURE, generate=False)
    record = both(SURE, generate=False, experts=["code", "math"], top_n=1)
    assert record["second_opinion"]
    assert "second_opinion" not in both(UNSURE[0], generate=False, experts=["math"])
    first = IR3DERoutingPipeline(unsure_router, device="cpu")(SURE, generate=False)
    product = scores(first) * opinion.probabilities([SURE], NAMES)[0]
    part = product[[NAMES.index("code"), NAMES.index("math")]]
    assert record["score"] == pytest.approx(float(part.max() / part.sum()), abs=1e-12)


def test_turns_of_a_chat_streams_and_options_of_the_policy(unsure_router: IR3DEModel) -> None:
    encoder = WordEncoder()
    both = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=second(encode=encoder))
    chat = [{"role": "user", "content": text} for text in (UNSURE[0], SURE, UNSURE[2])]
    encoder.texts = []
    record = both(chat, generate=False, stickiness=0.2, min_score=0.99, explain=True)
    assert encoder.texts[-2:] == [UNSURE[0], UNSURE[2]]
    assert record["second_opinion"]
    assert record["fallback"]
    assert record["tokens"]
    events = both.stream(chat, min_score=1)
    assert next(events)["second_opinion"]
    encoder.texts = []
    with pytest.raises(ValueError, match="no expert 'art'"):
        both(UNSURE, generate=False, experts=["art"])
    assert encoder.texts == []


def test_it_judges_among_the_experts_that_it_knows(unsure_router: IR3DEModel, tmp_path: Path) -> None:
    opinion = second(["code", "law"])
    both = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=opinion)
    first = both(UNSURE, generate=False, second_below=0)
    q = opinion.probabilities(UNSURE, ["code", "law"])
    for record, before, other in zip(both(UNSURE, generate=False), first, q, strict=True):
        assert record["second_opinion"]
        p, known = scores(before), [NAMES.index("code"), NAMES.index("law")]
        product = p[known] * other
        expected = p.clone()
        expected[known] = product / product.sum() * p[known].sum()
        torch.testing.assert_close(scores(record), expected, atol=1e-12, rtol=0)
    with pytest.warns(UserWarning, match=r"knows nothing of \['math'\]"):
        both.save_pretrained(tmp_path)
    assert sorted(IR3DEModel.from_pretrained(tmp_path).second_opinion.statistics) == ["code", "law"]


@pytest.mark.parametrize("known", [[], ["law"]])
def test_of_fewer_than_two_experts_there_is_nothing_to_say(unsure_router: IR3DEModel, known: list[str]) -> None:
    encoder = WordEncoder()
    both = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=second(known, encode=encoder))
    encoder.texts = []
    assert both(UNSURE, generate=False) == both(UNSURE, generate=False, second_below=0)
    assert encoder.texts == []


def test_certainties_that_contradict_each_other_still_give_probabilities() -> None:
    p = combined(torch.tensor([[0.5, 0.5, 0.0]]).double(), torch.tensor([[0.0, 0.0, 1.0]]).double())
    torch.testing.assert_close(p, torch.tensor([[0.5, 0.5, 0.0]]).double())


def test_of_a_subset_it_judges_those_that_it_knows(unsure_router: IR3DEModel) -> None:
    both = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=second(["code", "law"]))
    alone = {"generate": False, "experts": ["law", "math"]}
    assert both(UNSURE, **alone) == both(UNSURE, **alone, second_below=0), "of one there is nothing to say"


def test_one_from_another_module_is_asked_too(unsure_router: IR3DEModel) -> None:
    class Other:  # as the installed class is to a pipeline whose code came with a repository
        def __init__(self, own: SecondOpinion) -> None:
            self.statistics, self.probabilities = own.statistics, own.probabilities

    expected = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=second())(UNSURE, generate=False)
    both = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=Other(second()))
    assert both(UNSURE, generate=False) == expected
    assert isinstance(both.second_opinion, Other)


# With edits of its router.


def knows(model: IR3DEModel) -> dict[str, list[str]]:
    return {name: sorted(domain.contributions) for name, domain in model.second_opinion.statistics.items()}


def test_it_forgets_whom_the_router_forgets_and_copies_stay(unsure_router: IR3DEModel) -> None:
    pipe = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=second())
    before, copied = knows(unsure_router), pipe.copy()
    copied.model.remove_expert("law")
    assert knows(copied.model) == {name: before[name] for name in ("code", "math")}
    never = second(["code", "math"])
    assert torch.equal(copied.second_opinion._W, never._W), "as if it had never known the expert"
    assert copied(UNSURE[0], generate=False)["second_opinion"]
    assert knows(unsure_router) == before
    copied.second_opinion.add_expert("law", texts_of("law"))
    assert knows(copied.model).keys() == set(NAMES)
    copied.second_opinion.remove_expert("law")
    assert knows(unsure_router) == before
    copied.model.replace_expert("math", {"name": "maths", "cost": 1})
    assert knows(copied.model) == {"code": before["code"], "maths": before["math"]}
    copied.model.replace_expert("code", "code", texts=["def parse python file"])
    assert knows(copied.model) == {"maths": before["math"]}


def test_what_it_knows_already_stays_when_the_expert_joins(unsure_router: IR3DEModel) -> None:
    unsure_router.second_opinion = second([*NAMES])
    unsure_router.second_opinion.add_expert("art", ["the root of a python"])
    known = knows(unsure_router)
    unsure_router.add_expert("art", texts=["the root of a python"])
    assert knows(unsure_router) == known
    with pytest.raises(ValueError, match="no expert 'music'"):
        unsure_router.remove_expert("music")
    assert knows(unsure_router) == known


def test_what_it_alone_has_to_learn_is_merged_too(unsure_router: IR3DEModel) -> None:
    other = unsure_router.copy()
    unsure_router.second_opinion, other.second_opinion = second(["code"]), second()
    unsure_router.second_opinion.add_expert("law", ["a clause"])
    own = knows(unsure_router)
    unsure_router.merge(other)
    assert knows(unsure_router) == {**knows(other), "law": sorted([*own["law"], *knows(other)["law"]])}
    with pytest.raises(ValueError, match="Nothing to merge"):
        unsure_router.merge(other)


def test_a_router_goes_without_it_once_told_to(unsure_router: IR3DEModel, tmp_path: Path) -> None:
    unsure_router.second_opinion = second()
    unsure_router.save_pretrained(tmp_path)
    loaded = IR3DEModel.from_pretrained(tmp_path)
    assert loaded.copy().second_opinion is not None
    loaded.second_opinion = None
    loaded.remove_expert("law")
    assert loaded.second_opinion is None


def test_it_learns_what_a_merged_routers_knows(unsure_router: IR3DEModel) -> None:
    other = unsure_router.copy()
    unsure_router.remove_expert("law")
    unsure_router.second_opinion, other.second_opinion = second(["code", "math"]), second()
    unsure_router.merge(other)
    assert knows(unsure_router) == knows(other)
    assert torch.equal(unsure_router.second_opinion._W, other.second_opinion._W)
    stranger = unsure_router.copy()
    stranger.add_expert("art", texts=["the root of a python"])
    stranger.second_opinion = SecondOpinion("others", encode=lambda texts: np.ones((len(texts), 2)))
    stranger.second_opinion.add_expert("art", ["a painting in oil"])
    unsure_router.merge(stranger)
    assert "art" in unsure_router.config.expert_names
    assert knows(unsure_router) == knows(other), "what another encoder read stays behind"


# In a router's folder.


def test_it_is_saved_with_the_router_and_found_there(unsure_router: IR3DEModel, tmp_path: Path) -> None:
    pipe = IR3DERoutingPipeline(unsure_router, device="cpu", second_opinion=second())
    pipe.save_pretrained(tmp_path / "a")
    IR3DEModel.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "a")  # in place
    IR3DEModel.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    loaded = IR3DEModel.from_pretrained(tmp_path / "b")
    loaded.second_opinion._encoder = WordEncoder()
    found = IR3DERoutingPipeline(loaded, device="cpu", second_opinion=True)
    for one, other in zip(found(UNSURE, generate=False), pipe(UNSURE, generate=False), strict=True):
        assert one == {**other, "score": one["score"], "ranking": one["ranking"]}
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)  # where weights lie decides their last bits
    by_folder = IR3DERoutingPipeline(loaded, second_opinion=tmp_path / "b" / SECOND_FOLDER)
    assert by_folder.second_opinion.statistics.keys() == set(NAMES)
    assert "second_opinion" not in IR3DERoutingPipeline(loaded, device="cpu")(UNSURE[0], generate=False)


def test_a_save_over_a_router_that_had_fewer_experts_leaves_no_former_statistics(tmp_path: Path) -> None:
    model = tiny.router()
    model.second_opinion = second()
    model.save_pretrained(tmp_path)
    model.second_opinion.remove_expert("law")
    model.save_pretrained(tmp_path)
    assert sorted(path.stem for path in (tmp_path / "second/statistics").iterdir()) == ["code", "math"]
    assert sorted(path.stem for path in (tmp_path / "statistics").iterdir()) == NAMES
    assert not list(tmp_path.rglob(".ir3de*"))


def test_a_router_saved_elsewhere_leaves_another_second_opinion_alone(tmp_path: Path) -> None:
    second().save_pretrained(tmp_path / SECOND_FOLDER)
    tiny.router().save_pretrained(tmp_path)
    assert sorted(SecondOpinion.from_pretrained(tmp_path, SECOND_FOLDER).statistics) == NAMES
