"""The embedded router, end to end with a real language model."""

from pathlib import Path

from ir3de import IR3DERoutingPipeline
from ir3de.scripts.data.sources import quickstart_source
from ir3de.scripts.fitting.embedded import FOLDER

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
