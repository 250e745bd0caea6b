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
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from ir3de.atomic_save_ir3de import writing_tensors
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.experts_ir3de import ExpertPool, describe_error
from ir3de.names_ir3de import file_name
from ir3de.scripts.metrics.measures import Array, Integers
from ir3de.specs_ir3de import ExpertSpec, has_source, is_remote

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

    nats: Array
    tokens: Integers
    seconds: dict[str, float]
    failures: dict[str, str]


@dataclass
class _Column:
    """
    What texts cost one expert.

    Args:
        nats (`np.ndarray` of shape `(texts,)`): NaN where a text was not read yet.
        tokens (`np.ndarray` of shape `(texts,)`): how many were predicted.
        seconds (`float`): that it took.
    """

    nats: Array
    tokens: Integers
    seconds: float = 0.0

    @classmethod
    def empty(cls, texts: int) -> _Column:
        """Scores of no text yet."""
        return cls(np.full(texts, np.nan), np.zeros(texts, dtype=np.int64))

    @classmethod
    def read(cls, file: Path, key: str) -> _Column | None:
        """The scores in a file, if it is of these texts and this expert."""
        try:
            with safe_open(file, framework="np") as opened:
                if (opened.metadata() or {}).get("key") != key:
                    return None
                nats, tokens, seconds = (opened.get_tensor(name) for name in ("nats", "tokens", "seconds"))
        except (FileNotFoundError, SafetensorError):
            return None
        return cls(nats, tokens, float(seconds))

    def write(self, file: Path, key: str) -> None:
        """Keeps the scores; a run that is cut off meanwhile leaves the file as it was."""
        partial = file.with_suffix(".partial")
        scores = {"nats": self.nats, "tokens": self.tokens, "seconds": np.array(self.seconds)}
        with writing_tensors(partial):
            save_file(scores, partial, metadata={"key": key})
        os.replace(partial, file)


@torch.inference_mode()
def negative_log_likelihoods(
    model: Any, batch: Sequence[Sequence[int]], given: Sequence[int] | None = None
) -> list[float]:
    """The sum over a text's tokens after those given of -ln p(token | tokens before it); padding never counts.

    Args:
        model (`PreTrainedModel`): a causal LM.
        batch (`Sequence[Sequence[int]]`): token ids, at least two a text.
        given (`Sequence[int]`, *optional*): how many tokens of each text are given, at least one; by default one.

    Returns:
        `list[float]`: nats, a number a text.
    """
    shape = len(batch), max(map(len, batch))
    input_ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, _IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, ids in enumerate(batch):  # padded on the right, which a causal LM does not see
        input_ids[row, : len(ids)] = labels[row, : len(ids)] = torch.tensor(ids)
        labels[row, : 1 if given is None else given[row]] = _IGNORED
        mask[row, : len(ids)] = 1
    logits = model(input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1]
    targets = labels[:, 1:].to(logits.device)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORED, reduction="none")
    return losses.view_as(targets).double().sum(dim=1).tolist()  # type: ignore[no-any-return]


def score_experts(folder: Path, texts: Sequence[str], specs: Sequence[ExpertSpec], **pool_options: Any) -> Scores:
    """Lets every expert read every text, without its system prompt.

    Args:
        folder (`Path`): for a file an expert; those of an earlier run with the same texts and experts are used.
        texts (`Sequence[str]`): each of two tokens or more.
        specs (`Sequence[dict]`): of the experts, as in a router's config.
        pool_options (*optional*): of [`ExpertPool`], such as `device` or `dtype`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # One base at a time: it is needed for all texts, and then no more. Adapters of one base share it.
    pool = ExpertPool(IR3DEConfig(experts=list(specs)), **{"max_loaded_experts": 1, **pool_options})
    columns: dict[str, _Column] = {}
    failures = {}
    with tqdm(total=len(texts) * len(specs), desc="Scoring", unit=" texts", disable=None) as progress:
        for spec in specs:
            name = spec["name"]
            progress.set_postfix_str(name)
            try:
                columns[name] = _column(folder / f"{file_name(name)}.safetensors", texts, spec, pool, progress)
            except Exception as error:  # the others go on
                columns[name], failures[name] = _Column.empty(len(texts)), describe_error(error)
            took = f"{columns[name].seconds:.0f} s"
            tqdm.write(f"{name}: {failures.get(name, took)}", file=sys.stderr)
    pool.unload()
    return Scores(
        np.stack([column.nats for column in columns.values()], axis=1),
        np.stack([column.tokens for column in columns.values()], axis=1),
        {name: column.seconds for name, column in columns.items()},
        failures,
    )


def _column(file: Path, texts: Sequence[str], spec: ExpertSpec, pool: ExpertPool, progress: tqdm[NoReturn]) -> _Column:
    """The scores of one expert; those that the file has are not computed again."""
    key = hashlib.sha256("\0".join([source_key(spec), *texts]).encode()).hexdigest()
    column = _Column.read(file, key) or _Column.empty(len(texts))
    missing = np.flatnonzero(np.isnan(column.nats)).tolist()
    progress.update(len(texts) - len(missing))
    if not missing:
        return column
    if is_remote(spec) or not has_source(spec):
        raise ValueError("it is no model on this machine, so its likelihoods cannot be read")
    since = time.monotonic()
    local = pool.load(spec["name"])
    tokenizer: Any = local.pipe.tokenizer
    ids = {i: tokenizer(texts[i], verbose=False)["input_ids"] for i in missing}
    longest, window = max(map(len, ids.values())), tokenizer.model_max_length
    if longest > window:
        raise ValueError(f"a text has {longest} tokens, and its window is {window}: lower --max-tokens")
    with local.using(spec) as model:
        for batch in _batches(ids):
            column.nats[batch] = negative_log_likelihoods(model, [ids[i] for i in batch])
            column.tokens[batch] = [len(ids[i]) - 1 for i in batch]
            progress.update(len(batch))
            now = time.monotonic()
            if now - since > SAVE_SECONDS:
                column.seconds += now - since
                since = now
                column.write(file, key)
    column.seconds += time.monotonic() - since
    column.write(file, key)
    return column


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


def source_key(spec: ExpertSpec) -> str:
    """Names what an expert reads with; of local folders also their files."""
    folders = [Path(place) for place in (spec.get("model"), spec.get("adapter")) if place and Path(place).is_dir()]
    files = []
    for folder in folders:
        for path in sorted(folder.glob("*.*")):
            about = path.stat()
            files.append([path.name, about.st_size, about.st_mtime_ns])
    source = {key: value for key, value in spec.items() if key not in ("system_prompt", "generation", "cost")}
    return hashlib.sha256(json.dumps([source, files], sort_keys=True).encode()).hexdigest()
