"""What texts cost every expert: negative log-likelihoods in nats, computed once and resumed where a run was cut off."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from ir3de.experts_ir3de import ExpertPool, describe_error

BATCH_TOKENS = 512  # padding included; larger batches are no faster on a CPU, where their logits fill the memory
SAVE_SECONDS = 20.0  # of work that a run that is cut off may lose
_IGNORED = -100  # the label that cross-entropy leaves out


@dataclass
class Scores:
    """
    What texts cost experts.

    Args:
        nats (`np.ndarray` of shape `(texts, experts)`): negative log-likelihoods; NaN for an expert that failed.
        tokens (`np.ndarray` of shape `(texts, experts)`): how many were predicted.
        seconds (`dict[str, float]`): that each expert took to load and to read, earlier runs included.
        failures (`dict[str, str]`): the experts that failed, and with what.
    """

    nats: Any
    tokens: Any
    seconds: dict[str, float]
    failures: dict[str, str]


@torch.inference_mode()
def negative_log_likelihoods(model: Any, batch: Sequence[Sequence[int]]) -> list[float]:
    """The sum over a text's tokens after its first of -ln p(token | tokens before it); padding never counts.

    Args:
        model (`PreTrainedModel`): a causal LM.
        batch (`Sequence[Sequence[int]]`): token ids, at least two a text.

    Returns:
        `list[float]`: nats, a number a text.
    """
    shape = len(batch), max(map(len, batch))
    input_ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, _IGNORED)
    for row, ids in enumerate(batch):  # padded on the right, which a causal LM does not see
        input_ids[row, : len(ids)] = labels[row, : len(ids)] = torch.tensor(ids)
    mask = (labels != _IGNORED).long()
    logits = model(input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1]
    targets = labels[:, 1:].to(logits.device)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORED, reduction="none")
    return losses.view_as(targets).double().sum(dim=1).tolist()  # type: ignore[no-any-return]


def score_experts(folder: Path, texts: Sequence[str], specs: Sequence[dict[str, Any]], **pool_options: Any) -> Scores:
    """Lets every expert read every text, without its system prompt.

    Args:
        folder (`Path`): for a file an expert; those of an earlier run with the same texts and experts are used.
        texts (`Sequence[str]`): each of two tokens or more.
        specs (`Sequence[dict]`): of the experts, as in a router's config.
        pool_options (*optional*): of [`ExpertPool`], such as `device` or `dtype`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # One base at a time: it is needed for all texts, and then no more. Adapters of one base share it.
    pool = ExpertPool(SimpleNamespace(experts=specs), **{"max_loaded_experts": 1, **pool_options})
    columns: dict[str, dict[str, Any]] = {}
    failures = {}
    with tqdm(total=len(texts) * len(specs), desc="Scoring", unit=" texts", disable=None) as progress:
        for spec in specs:
            name = spec["name"]
            progress.set_postfix_str(name)
            try:
                columns[name] = _column(folder / f"{name}.safetensors", texts, spec, pool, progress)
            except Exception as error:  # the others go on
                columns[name], failures[name] = _nothing(len(texts)), describe_error(error)
            took = f"{columns[name]['seconds']:.0f} s"
            tqdm.write(f"{name}: {failures.get(name, took)}", file=sys.stderr)
    pool.unload()
    nats, tokens = (np.stack([column[key] for column in columns.values()], axis=1) for key in ("nats", "tokens"))
    return Scores(nats, tokens, {name: float(column["seconds"]) for name, column in columns.items()}, failures)


def _column(
    file: Path, texts: Sequence[str], spec: dict[str, Any], pool: ExpertPool, progress: tqdm[Any]
) -> dict[str, Any]:
    """The scores of one expert; those that the file has are not computed again."""
    key = hashlib.sha256("\0".join([source_key(spec), *texts]).encode()).hexdigest()
    scores = _read(file, key) or _nothing(len(texts))
    missing = np.flatnonzero(np.isnan(scores["nats"]))
    progress.update(len(texts) - len(missing))
    if not len(missing):
        return scores
    if not spec.keys() & {"model", "adapter"} or spec.keys() & {"endpoint", "provider"}:
        raise ValueError("it is no model on this machine, so its likelihoods cannot be read")
    saved = time.monotonic()
    local = pool.load(spec["name"])
    tokenizer: Any = local.pipe.tokenizer
    ids = {int(i): tokenizer(texts[i], verbose=False)["input_ids"] for i in missing}
    longest, window = max(map(len, ids.values())), tokenizer.model_max_length
    if longest > window:
        raise ValueError(f"a text has {longest} tokens, and its window is {window}: lower --max-tokens")
    with local.using(spec) as model:
        for batch in _batches(ids):
            scores["nats"][batch] = negative_log_likelihoods(model, [ids[i] for i in batch])
            scores["tokens"][batch] = [len(ids[i]) - 1 for i in batch]
            progress.update(len(batch))
            if time.monotonic() - saved > SAVE_SECONDS:
                saved = _write(file, scores, key, saved)
    _write(file, scores, key, saved)
    return scores


def _nothing(texts: int) -> dict[str, Any]:
    """Scores of no text yet."""
    return {"nats": np.full(texts, np.nan), "tokens": np.zeros(texts, dtype=np.int64), "seconds": np.zeros(())}


def _batches(ids: dict[int, list[int]]) -> Iterator[list[int]]:
    """Indices of texts of about the same length, the longest first, so that what does not fit fails at once."""
    batch: list[int] = []
    for i in sorted(ids, key=lambda i: -len(ids[i])):
        if batch and (len(batch) + 1) * len(ids[batch[0]]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def source_key(spec: dict[str, Any]) -> str:
    """Names what an expert reads with; of local folders also their files."""
    folders = [Path(spec[key]) for key in ("model", "adapter") if key in spec and Path(spec[key]).is_dir()]
    files = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for f in folders for p in sorted(f.glob("*.*"))]
    source = {key: value for key, value in spec.items() if key not in ("system_prompt", "generation", "cost")}
    return hashlib.sha256(json.dumps([source, files], sort_keys=True).encode()).hexdigest()


def _read(file: Path, key: str) -> dict[str, Any] | None:
    """The scores in a file, if it is of these texts and this expert."""
    try:
        with safe_open(file, framework="np") as opened:
            if (opened.metadata() or {}).get("key") == key:
                return {name: opened.get_tensor(name) for name in ("nats", "tokens", "seconds")}
    except (FileNotFoundError, SafetensorError):
        pass
    return None


def _write(file: Path, scores: dict[str, Any], key: str, since: float) -> float:
    """Keeps the scores, with the time that they took since the last were kept, and returns what time it is."""
    now, partial = time.monotonic(), file.with_suffix(".partial")
    scores["seconds"] += now - since
    save_file(scores, partial, metadata={"key": key})
    os.replace(partial, file)
    return now
