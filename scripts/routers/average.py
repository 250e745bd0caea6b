"""The average of the experts' weights, as an expert of its own: a baseline that reads every prompt with one model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ir3de.local_sources_ir3de import adapter_folder, base_spec
from ir3de.scripts.metrics.perplexity import source_key
from ir3de.specs_ir3de import BaseSpec, ExpertSpec, has_source, is_remote


def average_experts(folder: Path, specs: Sequence[ExpertSpec], name: str) -> ExpertSpec:
    """Averages experts, unless the folder has the average of the same ones.

    Of adapters on one base the average is exact: their low-rank matrices side by side, scaled by one over their number,
    multiply to the mean of the products (`combination_type="cat"` in PEFT). Other experts must be of one architecture;
    their weights are averaged one by one, in float32.

    Args:
        folder (`Path`): for the average alone.
        specs (`Sequence[ExpertSpec]`): of the experts, as in a router's config.
        name (`str`): what the average is called.

    Returns:
        `ExpertSpec`: of the average.

    Raises:
        ValueError: the experts cannot be averaged: some are adapters and some are not, or their bases differ.
    """
    if any(is_remote(spec) or not has_source(spec) for spec in specs):
        raise ValueError("only models on this machine can be averaged")
    bases, adapters = [base_spec(spec) for spec in specs], ["adapter" in spec for spec in specs]
    if any(adapters) and not (all(adapters) and all(base == bases[0] for base in bases)):
        raise ValueError("only whole models, or adapters on one base, can be averaged")
    done, key = folder / "done", " ".join(source_key(spec) for spec in specs)
    if not done.is_file() or done.read_text(encoding="utf-8") != key:
        shutil.rmtree(folder, ignore_errors=True)
        if all(adapters):
            _average_adapters(folder, specs, name, bases[0])
        else:
            _average_models(folder / name, bases)
        done.write_text(key, encoding="utf-8")
    if all(adapters):
        return cast(ExpertSpec, {**bases[0], "name": name, "adapter": str(folder / name)})
    return {"name": name, "model": str(folder / name)}


def _average_adapters(folder: Path, specs: Sequence[ExpertSpec], name: str, base: BaseSpec) -> None:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError('Averaging adapters needs peft: `pip install "ir3de[adapters]"`.') from error
    first, *others = specs
    model: Any = PeftModel.from_pretrained(_load(base), str(adapter_folder(first)), first["name"])
    for spec in others:
        model.load_adapter(str(adapter_folder(spec)), spec["name"])
    names = [spec["name"] for spec in specs]
    model.add_weighted_adapter(names, [1 / len(names)] * len(names), name, combination_type="cat")
    model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)


def _average_models(folder: Path, bases: Sequence[BaseSpec]) -> None:
    average = _load(bases[0])
    with torch.no_grad():
        for base in bases[1:]:
            other = dict(_load(base).named_parameters())
            for key, weight in average.named_parameters():
                if key not in other or other[key].shape != weight.shape:
                    raise ValueError(f"{bases[0]['model']} and {base['model']} are not of one architecture ({key})")
                weight.add_(other[key])
        for weight in average.parameters():
            weight.div_(len(bases))
    average.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bases[0]["model"], **_where(bases[0])).save_pretrained(folder)


def _load(base: BaseSpec) -> Any:
    return AutoModelForCausalLM.from_pretrained(base["model"], dtype=torch.float32, **_where(base))


def _where(base: BaseSpec) -> dict[str, str]:
    """Which of its weights a base is, as options of `from_pretrained`."""
    given = {"revision": base.get("revision"), "gguf_file": base.get("gguf_file")}
    return {key: value for key, value in given.items() if value is not None}
