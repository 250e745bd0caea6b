"""Familiarity: how much a prompt is like what the router was fitted on."""

import json
import math
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ir3de import IR3DEModel, IR3DERoutingPipeline
from ir3de.batch_ir3de import Prompts
from ir3de.familiarity_ir3de import LEVELS, PARTS, FamiliarityScale, OutsideShare, familiarity_table, parts_of
from ir3de.scripts.cli import main
from ir3de.scripts.data.spool import Spool
from ir3de.statistics_ir3de import DomainStatistics, count_documents

from . import tiny

SCALE = FamiliarityScale.measured(np.random.default_rng(0).normal(size=(200, PARTS))).as_config()
FAST = ("--variant", "prompt", "--feature-map", "unit")
# Law, if anything, but for a word that is rarer there.
CRIMES = [f"{' '.join(random.Random(i).sample(tiny.SHARED, 5))} crime crime" for i in range(40)]


def from_outside(router: IR3DEModel) -> tuple[FamiliarityScale, torch.Tensor]:
    """A scale in which ten prompts of crimes have a say, and in how many of them each token occurs."""
    texts = [text for domain in tiny.DOMAINS for text in tiny.sentences(domain, 30, seed=5)]
    prompts, outside = router.tokenize(texts), count_documents(router.tokenize(CRIMES[:10]), router.config.vocab_size)
    documents = [each.documents for each in router.statistics.values() if each.documents is not None]
    table = familiarity_table(documents, 90, (outside, 10)).double().numpy()
    return FamiliarityScale.measured(parts_of(table, prompts, router.route(*prompts)), OutsideShare(10, 0.4)), outside


def given_outside(texts: Iterable[str], folder: Path) -> str:
    """A file of prompts from outside."""
    path = folder / "outside.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def fit(source: str, json_lines: Path, tmp_path: Path) -> Callable[..., Path]:
    """Fits a router with these options and returns its folder."""

    def run(*options: str) -> Path:
        arguments = ["--data", str(json_lines), "--embeddings", source, "--output", str(tmp_path / "router")]
        assert main(["fit", *arguments, *FAST, *options]) == 0
        return tmp_path / "router"

    return run


def read(folder: Path) -> IR3DERoutingPipeline:
    return IR3DERoutingPipeline(IR3DEModel.from_pretrained(folder), device="cpu")


# The parts and the scale


def test_the_parts_are_what_an_obvious_loop_gives() -> None:
    draw = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 9, (12,), generator=draw) for _ in range(3)]
    prompts = Prompts.of([[0, 3, 3, 7], [11], [5, 6]])
    logits = torch.randn(3, 3, generator=draw).double()
    table = familiarity_table(documents, 30).double().numpy()
    found = parts_of(table, prompts, logits)
    counts = torch.stack(documents, dim=1).double() + 0.3
    logs = (counts / counts.sum(dim=0)).log()
    frequency = ((torch.stack(documents).sum(dim=0) + 0.3) / 30).log()
    for row, ids, scores in zip(found, ([0, 3, 3, 7], [11], [5, 6]), logits.tolist(), strict=True):
        first, second, *_ = sorted(scores, reverse=True)
        odds = [float((logs[ids, d] - logs[ids].mean(dim=1)).mean()) for d in range(3)]
        of_tokens = frequency[ids]
        expected = [first - sum(scores) / 3, first - second, max(odds), float(of_tokens.mean()), float(of_tokens.min())]
        assert row.tolist() == pytest.approx(expected, rel=1e-5)


def test_what_prompts_from_outside_say_is_what_an_obvious_loop_gives() -> None:
    draw = torch.Generator().manual_seed(1)
    documents = [torch.randint(0, 9, (12,), generator=draw) for _ in range(3)]
    outside = torch.randint(0, 5, (12,), generator=draw)
    prompts = Prompts.of([[0, 3, 3, 7], [11], [5, 6]])
    logits = torch.randn(3, 3, generator=draw).double()
    without = parts_of(familiarity_table(documents, 30).double().numpy(), prompts, logits)
    found = parts_of(familiarity_table(documents, 30, (outside, 6)).double().numpy(), prompts, logits)
    assert np.array_equal(found[:, :PARTS], without)
    count = torch.stack(documents).sum(dim=0).tolist()
    for row, ids in zip(found, ([0, 3, 3, 7], [11], [5, 6]), strict=True):
        odds = [math.log((count[i] / 30 + 0.05) / (int(outside[i]) / 6 + 0.05)) for i in ids]
        assert row[PARTS] == pytest.approx(sum(odds) / len(odds), rel=1e-5, abs=1e-7)


def test_the_sixth_part_only_speaks_against_a_prompt() -> None:
    parts = np.random.default_rng(2).normal(size=(500, PARTS + 1))
    scale = FamiliarityScale.measured(parts, OutsideShare(20, 0.4))
    same = np.zeros((4, PARTS + 1))
    same[:, PARTS] = [9, 0, -1, -3]
    far, middle, near, least = scale.scores(same)
    assert far == middle == near > least


def test_held_out_prompts_are_spread_evenly_over_their_own_scale() -> None:
    parts = np.random.default_rng(1).normal(size=(1000, PARTS))
    values = FamiliarityScale.measured(parts).of(parts)
    assert np.sort(values) == pytest.approx(np.linspace(0, 1, 1000), abs=0.01)
    far = FamiliarityScale.measured(parts).of(parts - 20)
    assert far.tolist() == [0.0] * 1000


@pytest.mark.parametrize("learned", [False, True])
def test_a_prompt_alone_is_as_familiar_as_among_others(learned: bool) -> None:
    router = tiny.router(variant="prompt", familiarity=SCALE)
    if learned:
        router.set_familiarity(*from_outside(router))
    texts = [text for domain in tiny.DOMAINS for text in tiny.sentences(domain, 30, seed=5)] + ["zebra", "the of"]
    prompts = router.tokenize(texts)
    together = router.familiarity(prompts)
    alone = [router.familiarity(router.tokenize([text])) for text in texts]
    assert together == [value for (value,) in alone]
    assert len(set(together)) > 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"means": [0.0] * 3}, "5 finite numbers under 'means'"),
        ({"deviations": [1.0] * 4 + [float("nan")]}, "finite numbers under 'deviations'"),
        ({"deviations": [1.0] * 4 + [0.0]}, "deviations above 0"),
        ({"quantiles": [1.0] + [0.0] * (LEVELS - 1)}, "ascend"),
        ({"other": []}, "must be a mapping of means, deviations, quantiles"),
        ({"outside": {"prompts": 3}}, "the numbers prompts and weight under 'outside'"),
        ({"outside": {"prompts": 0, "weight": 0.2}}, "both above 0"),
        ({"outside": {"prompts": 3, "weight": 0.2}}, "6 finite numbers under 'means'"),
    ],
)
def test_a_scale_that_is_none_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.router(familiarity={**SCALE, **changed})


def test_a_minimum_needs_a_scale() -> None:
    with pytest.raises(ValueError, match="no `familiarity`"):
        tiny.router(min_familiarity=0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        tiny.router(familiarity=SCALE, min_familiarity=1.5)
    pipe = IR3DERoutingPipeline(tiny.router(), device="cpu")
    with pytest.raises(ValueError, match="tells familiarity"):
        pipe("court", generate=False, min_familiarity=0.1)


def test_a_scale_and_what_is_known_of_outside_go_together() -> None:
    router = tiny.router(variant="prompt", familiarity=SCALE)
    scale, outside = from_outside(router)
    with pytest.raises(ValueError, match="both speak of prompts from outside"):
        router.set_familiarity(scale)
    with pytest.raises(ValueError, match="both speak of prompts from outside"):
        router.set_familiarity(FamiliarityScale.read(SCALE), outside)
    assert router.config.familiarity == SCALE


# Records


def test_without_a_scale_nothing_is_told() -> None:
    router = tiny.router()
    assert router.familiarity_table is None
    assert "familiarity" not in IR3DERoutingPipeline(router, device="cpu")("court", generate=False)


def test_unfamiliar_prompts_go_to_the_fallback_or_to_nobody(fit: Callable[..., Path]) -> None:
    pipe = read(fit())
    known, unknown = pipe(["the judge and the jury in court", "zebra zebra giraffe"], generate=False)
    assert known["familiarity"] > 0.05 > unknown["familiarity"]
    assert known["expert"] == "law"
    assert "fallback" not in unknown
    known, unknown = pipe(["the judge and the jury in court", "zebra giraffe"], generate=False, min_familiarity=0.05)
    assert (known["expert"], "fallback" in known) == ("law", False)
    assert (unknown["expert"], unknown["fallback"]) == (None, True)
    sent = pipe("zebra giraffe", generate=False, min_familiarity=0.05, fallback_expert="code")
    assert (sent["expert"], sent["fallback"]) == ("code", True)


def test_another_variant_leaves_familiarity_as_it_is(fit: Callable[..., Path]) -> None:
    pipe = read(fit())
    texts = [*tiny.sentences("math", 5, seed=9), "zebra"]
    own = [record["familiarity"] for record in pipe(texts, generate=False)]
    other = [record["familiarity"] for record in pipe(texts, generate=False, variant="all")]
    assert own == other
    explained = [record["familiarity"] for record in pipe(texts, generate=False, explain=True)]
    assert explained == own


@pytest.mark.parametrize("learned", [False, True])
def test_explained_tokens_say_what_each_adds(learned: bool) -> None:
    router = tiny.router(variant="prompt", familiarity=SCALE)
    if learned:
        router.set_familiarity(*from_outside(router))
    pipe = IR3DERoutingPipeline(router, device="cpu")
    scale = FamiliarityScale.read(router.config.familiarity)
    for text in ("the judge in court", "zebra and court", CRIMES[0]):
        tokens = pipe(text, generate=False, explain=True)["tokens"]
        assert [token["known"] for token in tokens] == [word != "zebra" for word in text.split()]
        prompts = router.tokenize([text])
        parts = parts_of(router.familiarity_table.weight.double().numpy(), prompts, router.route(*prompts))
        z = (parts[0] - scale.means) / scale.deviations
        expected = (z[2] + z[3]) / PARTS
        if learned:
            expected += 0.4 * min(z[PARTS] + 1.5, 0)
        assert sum(token["familiarity"] for token in tokens) == pytest.approx(expected)
    assert (
        "known"
        not in IR3DERoutingPipeline(tiny.router(), device="cpu")("court", generate=False, explain=True)["tokens"][0]
    )


def test_it_comes_back_as_it_was_saved_and_follows_edits(fit: Callable[..., Path], tmp_path: Path) -> None:
    pipe = read(fit())
    texts = tiny.sentences("code", 8, seed=3)
    before = [record["familiarity"] for record in pipe(texts, generate=False)]
    pipe.save_pretrained(tmp_path / "again")
    assert [record["familiarity"] for record in read(tmp_path / "again")(texts, generate=False)] == before
    statistics = pipe.model.statistics["code"]
    pipe.model.remove_expert("code")
    assert sum(record["familiarity"] for record in pipe(texts, generate=False)) < sum(before)
    pipe.model.add_expert("code", statistics=statistics)
    assert [record["familiarity"] for record in pipe(texts, generate=False)] == before


def test_it_rests_where_a_domain_keeps_its_counts_back() -> None:
    statistics = tiny.domain_statistics()
    law = statistics["law"]
    statistics["law"] = DomainStatistics.from_grams({k: law.gram(k) for k in ("tokens", "prompts")}, law.fingerprint)
    router = tiny.router(familiarity=SCALE)
    with pytest.warns(UserWarning, match="telling how familiar"):
        router.fit(statistics)
    assert "familiarity" not in IR3DERoutingPipeline(router, device="cpu")("court", generate=False)


# ir3de fit and ir3de route


def test_fit_measures_it_and_says_what_a_minimum_loses(
    fit: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit()
    shown = capsys.readouterr().out
    assert "Familiarity of 120 held-out prompts. Below a minimum" in shown
    assert "--min-familiarity 0.03 is suggested" in shown
    config = json.loads((folder / "config.json").read_text())
    assert len(config["familiarity"]["quantiles"]) == LEVELS
    assert config["evaluation"]["familiarity"]["lost"] == pytest.approx(0.03, abs=0.02)
    assert "with `min_familiarity=0.03`" in (folder / "README.md").read_text().lower()


def test_fit_measures_prompts_from_outside(
    fit: Callable[..., Path], json_lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside.jsonl"
    inside = json.loads(json_lines.read_text().splitlines()[0])["text"]
    texts = ["zebra giraffe", "a lion", "tell me of this elephant", inside.upper()]
    outside.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    folder = fit("--outside", str(outside), "--min-familiarity", "0.05", "--fallback", "law", "--min-score", "0.2")
    captured = capsys.readouterr()
    assert "and 3 from outside (AUROC" in captured.out
    assert "1 text of --outside is among the training rows" in captured.err
    config = json.loads((folder / "config.json").read_text())
    assert (config["min_familiarity"], config["min_score"], config["fallback_expert"]) == (0.05, 0.2, "law")
    assert config["evaluation"]["familiarity"]["outside"] == 3
    assert "3 prompts of none of the domains" in (folder / "README.md").read_text()
    assert main(["route", str(folder), "zebra giraffe"]) == 0
    shown = capsys.readouterr().out
    assert "familiarity: 0 % of held-out prompts were less familiar; never seen before: zebra giraffe" in shown
    assert "below the minimum: law answers" in shown
    assert main(["route", str(folder), "zebra giraffe", "--min-familiarity", "0", "--min-score", "0"]) == 0
    assert "below the minimum" not in capsys.readouterr().out


def test_familiarity_learns_from_prompts_from_outside_and_says_so(
    fit: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit("--outside", given_outside(CRIMES, tmp_path))
    shown = capsys.readouterr().out
    said = re.search(
        r"gives AUROC ([\d.]+) % instead of ([\d.]+) % \(difference \+- [\d.]+\), so they have a say", shown
    )
    assert said is not None
    assert float(said[1]) > float(said[2])
    assert f"{len(CRIMES)} from outside (AUROC {said[1]} %)" in shown, "one router, one figure"
    assert "so few prompts" not in shown
    config = json.loads((folder / "config.json").read_text())
    assert config["familiarity"]["outside"]["prompts"] == len(CRIMES)
    measured = config["evaluation"]["familiarity"]
    assert measured["auroc"] > measured["auroc_without"]
    assert "familiarity learned from these" in (folder / "README.md").read_text()
    pipe = read(folder)
    texts = [*tiny.sentences("law", 8, seed=3), *CRIMES[:3]]
    before = [record["familiarity"] for record in pipe(texts, generate=False)]
    statistics = pipe.model.statistics["code"]
    pipe.model.remove_expert("code")
    pipe.model.add_expert("code", statistics=statistics)
    assert [record["familiarity"] for record in pipe(texts, generate=False)] == before
    pipe.save_pretrained(tmp_path / "again")
    assert [record["familiarity"] for record in read(tmp_path / "again")(texts, generate=False)] == before


def test_familiarity_learns_nothing_from_what_is_no_different(
    fit: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [text for domain in tiny.DOMAINS for text in tiny.sentences(domain, 12, seed=77)]
    folder = fit("--outside", given_outside(texts, tmp_path))
    shown = capsys.readouterr().out
    assert "which may be chance, so they only measure" in shown
    assert re.search(r"from outside \(AUROC ([\d.]+) %\)", shown)[1] == re.search(r"instead of ([\d.]+) %", shown)[1]
    without = json.loads((folder / "config.json").read_text())["familiarity"]
    assert "outside" not in without
    fit()
    assert json.loads((folder / "config.json").read_text())["familiarity"] == without


def test_of_few_prompts_from_outside_nothing_is_learned(
    fit: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit("--outside", given_outside(CRIMES[:9], tmp_path))
    shown = capsys.readouterr().out
    assert "Nothing is learned from fewer than 10 prompts" in shown
    assert "Figures of so few prompts from outside tell little" in shown
    assert "outside" not in json.loads((folder / "config.json").read_text())["familiarity"]


def test_labelled_prompts_are_no_prompts_from_outside(
    source: str,
    json_lines: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"text": "a new case", "domain": "law"}, {"text": "a zebra", "domain": "animals"}, {"text": "a lion"}]
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fit = ["fit", "--data", str(json_lines), "--embeddings", source, "--output", str(tmp_path / "router"), *FAST]
    with monkeypatch.context() as patch:
        patch.setattr("ir3de.scripts.data.sources.load_source", lambda *_: pytest.fail("long work began"))
        assert main([*fit, "--outside", str(labelled)]) == 2
    refused = "--outside has rows that are labelled with the router's own domains: 'law' 1."
    said = capsys.readouterr().err
    assert refused in said
    assert "--validation" in said
    judged = tmp_path / "judged.jsonl"  # whose domains are known once they are read
    texts = [(domain, text) for domain in tiny.DOMAINS for text in tiny.sentences(domain, 12)]
    lines = [{"text": text, "domain": domain, "scores": {"one": 1.0, "two": 0.5}} for domain, text in texts]
    judged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([*fit[:1], "--outcomes", str(judged), *fit[3:], "--outside", str(labelled)]) == 2
    assert refused in capsys.readouterr().err
    tiny.router(variant="prompt").save_pretrained(tmp_path / "saved")
    evaluate = ["evaluate", str(tmp_path / "saved"), "--data", str(json_lines), "--outside", str(labelled)]
    assert main(evaluate) == 2
    assert refused in capsys.readouterr().err
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    assert main([*fit, "--outside", str(labelled)]) == 0
    assert "and 2 from outside" in capsys.readouterr().out


def test_equal_prompts_from_outside_count_once_and_are_told(
    fit: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("--outside", given_outside(["zebra giraffe"] * 40, tmp_path))
    captured = capsys.readouterr()
    assert "and 1 from outside" in captured.out
    assert "39 of 40 texts of --outside repeat another one: each counts once." in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--min-familiarity", "2"), "--min-familiarity must be between 0 and 1"),
        (("--min-score", "-1"), "--min-score must be between 0 and 1"),
        (("--fallback", "nobody"), "--fallback 'nobody' is none of the experts"),
        (("--outside", "DATA"), "All texts of --outside are among the training rows"),
    ],
)
def test_bad_options_are_refused(
    options: tuple[str, str],
    message: str,
    source: str,
    json_lines: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Spool, "fill", lambda *_: pytest.fail("long work began"))
    texts = [json.loads(line)["text"] for line in json_lines.read_text().splitlines()]
    given = [given_outside(texts, tmp_path) if option == "DATA" else option for option in options]
    fit = ["fit", "--data", str(json_lines), "--embeddings", source, "--output", str(tmp_path / "router"), *FAST]
    assert main([*fit, *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "router").exists()


@pytest.mark.parametrize("more", [(), ("--discover", "2")])
def test_judged_prompts_are_no_prompts_from_outside_either(
    more: tuple[str, ...],
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for late in ("fit.Spool.fill", "outcomes.discover"):
        monkeypatch.setattr(f"ir3de.scripts.fitting.{late}", lambda *_: pytest.fail("long work began"))
    judged = tmp_path / "judged.jsonl"
    lines = [{"text": text, "domain": "law", "scores": {"one": 1.0}} for text in tiny.sentences("law", 12)]
    judged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fit = ["fit", "--outcomes", str(judged), "--embeddings", source, "--output", str(tmp_path / "router"), *more]
    assert main([*fit, "--outside", given_outside([str(line["text"]) for line in lines], tmp_path)]) == 2
    assert "All texts of --outside are among the training rows" in capsys.readouterr().err


def test_a_minimum_needs_prompts_to_measure_on(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "few.jsonl"
    rows = [{"text": text, "domain": domain} for domain in tiny.DOMAINS for text in tiny.sentences(domain, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fit = ["fit", "--data", str(path), "--embeddings", source, "--output", str(tmp_path / "router"), *FAST]
    assert main([*fit, "--min-familiarity", "0.1"]) == 2
    assert "--min-familiarity needs 30 held-out prompts" in capsys.readouterr().err
    assert main(fit) == 0
    assert json.loads((tmp_path / "router" / "config.json").read_text())["familiarity"] is None
