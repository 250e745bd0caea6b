"""The embedded router, end to end with a real language model."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ir3de import IR3DERoutingPipeline
from ir3de.familiarity_ir3de import LEVELS
from ir3de.scripts.data.columns import Row
from ir3de.scripts.data.rows import RowSource, read_texts
from ir3de.scripts.data.sources import quickstart_source
from ir3de.scripts.fitting import embedded
from ir3de.scripts.fitting.calibration import calibration_error
from ir3de.scripts.fitting.embedded import FOLDER, everyday
from ir3de.scripts.metrics.measures import auroc
from ir3de.statistics_ir3de import DomainStatistics

from . import tiny
from .test_shop import SHOP

PROMPTS = {
    "coding": "Write a Python function that reverses a linked list.",
    "math": "Find the roots of the polynomial x^2 - 5x + 6.",
    "physics": "How does friction slow a block that slides down an incline?",
    "history": "What caused the fall of the Roman Empire?",
    "philosophy": "Is it ever right to lie, according to Kant's categorical imperative?",
}


def test_plain_questions_go_where_they_belong(quickstart: IR3DERoutingPipeline) -> None:
    records = quickstart(list(PROMPTS.values()), generate=False)
    assert [record["expert"] for record in records] == list(PROMPTS)


def test_everyday_questions_that_nothing_was_chosen_on_go_where_they_belong(quickstart: IR3DERoutingPipeline) -> None:
    rows = list(everyday("test"))
    records = quickstart([row.text for row in rows], generate=False)
    asked = Counter(row.domain for row in rows)
    right = Counter(row.domain for row, record in zip(rows, records, strict=True) if record["expert"] == row.domain)
    assert sorted(asked) == quickstart.model.config.expert_names
    assert min(asked.values()) >= 60
    assert sum(right[domain] / asked[domain] for domain in asked) / len(asked) >= 0.88
    assert min(right[domain] / asked[domain] for domain in asked) >= 0.8


def test_scores_of_everyday_questions_hold(quickstart: IR3DERoutingPipeline) -> None:
    rows, model = list(everyday("test")), quickstart.model
    labels = torch.tensor([model.config.domain_names.index(row.domain) for row in rows])
    logits = model.route(*model.tokenize([row.text for row in rows]))
    assert calibration_error(logits, labels, model.config.calibration) <= 0.05


def test_it_tells_how_familiar_a_prompt_is(quickstart: IR3DERoutingPipeline) -> None:
    asked = [record["familiarity"] for record in quickstart([row.text for row in everyday("test")], generate=False)]
    mails = list(read_texts(RowSource((str(SHOP / "train"),), any_domain=True), "--data"))
    told = [record["familiarity"] for record in quickstart(mails, generate=False)]
    assert sum(value < 0.05 for value in asked) / len(asked) <= 0.05
    assert auroc(np.array(asked), np.array(told)) > 0.8


def test_no_test_question_was_learned_from() -> None:
    def plain(row: Row) -> str:
        """The letters and digits of a question, in lower case."""
        return "".join(filter(str.isalnum, row.text.lower()))

    learned, asked = ([plain(row) for row in everyday(split)] for split in ("train", "test"))
    assert len(learned) >= 2500
    assert len({*learned, *asked}) == len(learned) + len(asked)


def test_the_sums_and_the_router_are_the_embedded_ones_bit_for_bit(quickstart: IR3DERoutingPipeline) -> None:
    for name, built in quickstart.model.statistics.items():
        kept = DomainStatistics.load(FOLDER / "statistics" / f"{name}.safetensors")
        assert built.contributions.keys() == kept.contributions.keys()
        for key, sums in kept.contributions.items():
            assert all(torch.equal(built.contributions[key][kind], tensor) for kind, tensor in sums.items())
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert all(getattr(quickstart.model.config, key) == config[key] for key in ("calibration", "lexical_weight"))


def test_refit_learns_from_the_questions_to_train_on_and_from_openings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = tmp_path / "everyday.jsonl"
    domains = list(PROMPTS)
    rows = [
        {"text": f"{text} {number}", "domain": domain, "split": split}
        for domain, text in PROMPTS.items()
        for split, several in (("train", 12), ("test", 3))
        for number in range(several)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copy(FOLDER / "experts.yaml", tmp_path)
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    monkeypatch.setattr(embedded, "QUESTIONS", questions)
    monkeypatch.setattr(embedded, "load_quickstart_source", lambda: (tiny.tokenizer(), tiny.embeddings()))
    passages = [Row("def f():\n    " + "return a " * 100, domain) for domain in domains for _ in range(8)]
    fitted = embedded.refit(passages)
    assert {name: domain.rows("prompts") for name, domain in fitted.model.statistics.items()} == dict.fromkeys(
        sorted(domains), 12 + 8
    )
    for domain in domains:
        kept = DomainStatistics.load(tmp_path / "statistics" / f"{domain}.safetensors")
        assert kept.contributions.keys() == fitted.model.statistics[domain].contributions.keys()
    assert json.loads((tmp_path / "config.json").read_text())["evaluation"]["prompts"] == sum(
        len(rows) for rows in fitted.chosen.logits.values()
    )

    before = json.loads((tmp_path / "config.json").read_text())
    monkeypatch.setattr(embedded, "_BLOCK", 2)
    found, _ = embedded.remeasure()
    after = json.loads((tmp_path / "config.json").read_text())
    assert found.inside == 12 * len(domains)
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed <= {"calibration", "familiarity", "evaluation"}
    assert len(after["familiarity"]["quantiles"]) == LEVELS


def test_what_is_held_out_leaves_the_sums_of_the_rest() -> None:
    model = tiny.router(variant="prompt")
    texts = tiny.sentences("law", 20)  # what its statistics are of
    rest = embedded._without(model.statistics["law"], model.tokenize(texts[:6]), model)
    expected = tiny.statistics(texts[6:])
    for kind in ("tokens", "prompts"):
        assert torch.allclose(rest.gram(kind), expected.gram(kind))
    assert torch.equal(rest.documents, expected.documents)


def test_an_opening_is_the_first_words_as_they_were_written() -> None:
    code = "def f(a):\n    return  a\n"
    rows = [Row(code, "coding"), Row(" ".join(map(str, range(100))), "math"), Row(" \n", "math")]
    short, long = embedded._openings(rows)
    assert short == Row(code.rstrip(), "coding")
    assert long == Row(" ".join(map(str, range(88))), "math")


def test_the_chosen_expert_answers(quickstart: IR3DERoutingPipeline) -> None:
    record = quickstart(PROMPTS["history"], max_new_tokens=16, do_sample=False)
    assert "Rom" in record["generated_text"]


def test_the_config_names_the_hub_and_no_local_folder(quickstart: IR3DERoutingPipeline) -> None:
    text = (FOLDER / "config.json").read_text(encoding="utf-8")
    assert str(Path(quickstart_source()["model"]).parent) not in text
    assert quickstart.model.config.evaluation["macro_accuracy"] > 0.8


def test_what_is_embedded_is_small() -> None:
    adapters = list(FOLDER.glob("experts/*/adapter_model.safetensors"))
    assert len(adapters) == 5
    assert all(path.stat().st_size <= 3_000_000 for path in adapters)
    rest = [path for path in FOLDER.rglob("*") if path.is_file() and path not in adapters]
    assert sum(path.stat().st_size for path in rest) <= 16 * 2**20
