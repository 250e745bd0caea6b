"""A router fitted in English meets German: it is unfamiliar, or, with embeddings of both, routed."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from ir3de import IR3DEModel, IR3DERoutingPipeline
from ir3de.scripts.cli import main

from . import tiny

GERMAN = {
    "code": ["Feld", "Fehler", "Klasse", "Schleife", "Zeiger", "Skript", "Zeichenkette"],
    "law": ["Berufung", "Anwalt", "Klausel", "Vertrag", "Gericht", "Richter", "Geschworene"],
    "math": ["Winkel", "Kreis", "Kosinus", "Ableitung", "Gleichung", "Primzahl", "Beweis"],
}
SHARED = ["der", "die", "und", "ein", "wie", "was", "mir", "zeige"]


def static_model(folder: Path, shared_meaning: bool) -> str:
    """A folder as model2vec saves it, whose table has German words beside their translations or anywhere."""
    words = [*tiny.TOKENS, *(word for of in GERMAN.values() for word in of), *SHARED]
    draw = torch.Generator().manual_seed(2)
    table = torch.cat(
        [tiny.embeddings(), 0.1 * torch.randn(len(words) - len(tiny.TOKENS), tiny.HIDDEN, generator=draw)]
    )
    for column, of in enumerate(GERMAN.values() if shared_meaning else ()):
        table[[words.index(word) for word in of], column] += 1
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "architectures": ["StaticModel"]}))
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embeddings": table}, folder / "model.safetensors")
    return str(folder)


def german(domain: str, number: int) -> list[str]:
    draw = random.Random(domain)
    return [" ".join(draw.choices([*GERMAN[domain] * 2, *SHARED], k=6)) for _ in range(number)]


@pytest.mark.parametrize("shared_meaning", [False, True])
def test_german_after_an_english_fit(shared_meaning: bool, json_lines: Path, tmp_path: Path) -> None:
    source, output = static_model(tmp_path / "static", shared_meaning), str(tmp_path / "router")
    options = ["--variant", "prompt", "--feature-map", "unit", "--lexical-weight", "0"]
    assert main(["fit", "--data", str(json_lines), "--embeddings", source, "--output", output, *options]) == 0
    router = IR3DERoutingPipeline(IR3DEModel.from_pretrained(output), device="cpu")
    labelled = [(text, domain) for domain in GERMAN for text in german(domain, 20)]
    records = router([text for text, _ in labelled], generate=False)
    right = sum(record["expert"] == domain for record, (_, domain) in zip(records, labelled, strict=True))
    unfamiliar = sum(record["familiarity"] < 0.03 for record in records)
    if shared_meaning:
        assert right >= 0.9 * len(labelled), "translations lie together"
    else:
        assert unfamiliar >= 0.9 * len(labelled), "no word of theirs is known"
        fallback = router(labelled[0][0], generate=False, min_familiarity=0.03, fallback_expert="law")
        assert (fallback["expert"], fallback["fallback"]) == ("law", True)
    english = router([text for name in tiny.DOMAINS for text in tiny.sentences(name, 20, seed=7)], generate=False)
    assert sum(record["familiarity"] < 0.03 for record in english) <= 0.1 * len(english)
